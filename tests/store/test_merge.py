"""Records of several machines come together in one folder, or nothing is written."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.cli.main import app
from bench.core.errors import UserError
from bench.core.files import atomic_write
from bench.core.paths import Paths
from bench.grid.cell import Cell, Inputs, cell_id
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.store.merge import copy_files, plan_merge
from bench.store.record import (
    Failed,
    Finished,
    Ledger,
    Point,
    Score,
    TargetCost,
    read_record,
    read_records,
    write_record,
)
from bench.toy.study import ToyRecord, find_toy, read_toy

ROOT = Path(__file__).parent.parent.parent
CELLS = expand(load_grid("cifar_small"))
PRIOR = next(cell for cell in CELLS if cell.arm == "byol" and cell.budget == 1.0)
OTHER = next(cell for cell in CELLS if cell.rela)


def record_of(cell: Cell = PRIOR, seconds: float = 1.0, **changes: Any) -> Finished:
    inputs = Inputs(data="d", prior="p" if cell.rela else None, method_version=1, params={})
    score = Score(linear=(0.1, 0.2, 0.3), knn=0.25)
    points = tuple(Point(step=s, images=10 * s, flops=s, seconds=seconds, loss=seconds, score=score) for s in (3, 6))
    ledger = Ledger(
        steps=6,
        images=60,
        flops=6,
        seconds={"train": seconds},
        wall_seconds=seconds,
        peak_memory_bytes=int(seconds),
        targets=TargetCost(seconds=seconds, flops=5, images=10, empty=0, cached=False) if cell.rela else None,
        flops_not_counted="",
    )
    fields: dict[str, Any] = {
        "id": cell_id(cell, inputs),
        "grid": "g",
        "cell": cell,
        "inputs": inputs,
        "dataset_title": "CIFAR-10",
        "curve": points,
        "ledger": ledger,
        "provenance": {"time": f"2026-01-0{seconds:g}T00:00:00+00:00"},
    }
    return Finished(**(fields | changes))


def failed(cell: Cell = PRIOR, seconds: float = 1.0) -> Failed:
    done = record_of(cell, seconds)
    return Failed(
        id=done.id,
        grid=done.grid,
        status="failed",
        error=f"error {seconds:g}",
        cell=cell,
        inputs=done.inputs,
        dataset_title=done.dataset_title,
        provenance=done.provenance,
    )


def put(folder: Path, *records: Finished, backbone: bytes = b"") -> Path:
    """Write records of grid g below a results folder, each with what stands for its backbone, and return the folder."""
    for record in records:
        write_record(record, folder / "g")
        if backbone:
            weights = Paths(Path(), folder, "g").backbone(record.id)
            weights.parent.mkdir(exist_ok=True)
            weights.write_bytes(backbone)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


KINDS = (read_record, read_toy)


def merge(into: Path, *sources: Path, keep_first: bool = False) -> dict[str, bytes]:
    """Merge, check that the sources stay and that doing it again changes nothing, and return what `into` holds."""
    before = [content(source) for source in sources]
    copy_files(plan_merge(sources, into, keep_first, KINDS))
    assert [content(source) for source in sources] == before
    after = content(into)
    again = plan_merge(sources, into, keep_first, KINDS)
    assert not again.records
    assert not again.backbones
    return after


def test_records_come_together_byte_for_byte(tmp_path: Path) -> None:
    one, two = put(tmp_path / "1", record_of()), put(tmp_path / "2", record_of(OTHER))
    (two / "g" / f"{record_of(OTHER).id}.json").write_text(record_of(OTHER).model_dump_json())  # not as we write it
    (one / "g" / ".work" / "cell").mkdir(parents=True)
    (one / "g" / ".work" / "cell" / "checkpoint.pt").write_bytes(b"state")
    found = merge(tmp_path / "into", one, two)
    assert found == {key: value for key, value in (content(one) | content(two)).items() if ".work" not in key}
    assert len(found) == 2


def test_one_grids_folders_come_together_under_any_name(tmp_path: Path) -> None:
    one, two = put(tmp_path / "1", record_of()), put(tmp_path / "2", record_of(OTHER))
    (one / "g").rename(one / "of_gpu_1")
    merge(tmp_path / "g", one / "of_gpu_1", two / "g")
    assert {record.id for record in read_records(tmp_path / "g")[0]} == {record_of().id, record_of(OTHER).id}
    for source, into, words in (
        (one / "of_gpu_1", two, "holds a folder for each grid"),
        (two, one / "of_gpu_1", "holds one grid's records and the sources a folder for each"),
    ):
        with pytest.raises(UserError, match=words):
            plan_merge([source], into)
    with pytest.raises(UserError, match="name one kind of folder"):
        plan_merge([one / "of_gpu_1", two], tmp_path / "into")


def test_time_and_losses_are_the_machines_own_and_the_first_record_stays(tmp_path: Path) -> None:
    there = put(tmp_path / "into", record_of(seconds=1.0))
    before = content(there)
    assert merge(there, put(tmp_path / "1", record_of(seconds=2.0))) == before


def changed(value: Any, *path: str | int) -> Callable[[], Finished]:
    """A record of a cell with targets in which the value at a path is another."""

    def make() -> Finished:
        raw = record_of(OTHER).model_dump()
        inner: Any = raw
        for key in path[:-1]:
            inner[key] = list(inner[key]) if isinstance(inner[key], tuple) else inner[key]
            inner = inner[key]
        inner[path[-1]] = value
        return Finished.model_validate(raw, strict=False)

    return make


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (changed(0.1 + 1e-16, "curve", 0, "score", "linear", 0), r"curve\[0\].score.linear\[0\]: 0.1 and 0.1000"),
        (changed(0.26, "curve", 1, "score", "knn"), r"curve\[1\].score.knn: 0.25 and 0.26"),
        (changed((0.1, 0.2), "curve", 1, "score", "linear"), r"the length of curve\[1\].score.linear: 3 and 2"),
        (changed(7, "curve", 1, "flops"), r"curve\[1\].flops: 6 and 7"),
        (changed(7, "ledger", "steps"), "ledger.steps: 6 and 7"),
        (changed(6, "ledger", "targets", "flops"), "ledger.targets.flops: 5 and 6"),
        (changed(None, "ledger", "targets"), "ledger.targets: .* and None"),
        (changed(3, "switch_step"), "switch_step: None and 3"),
        (changed(True, "rehearsal"), "rehearsal: False and True"),
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_records_that_disagree_are_named_and_nothing_is_written(
    make: Callable[[], Finished], words: str, there: bool, tmp_path: Path
) -> None:
    new = record_of(CELLS[0])
    one, two = put(tmp_path / "1", record_of(OTHER), new), put(tmp_path / "2", make(), new)
    into = put(tmp_path / "into", record_of(OTHER)) if there else tmp_path / "into"
    before = content(into)
    with pytest.raises(UserError, match=words) as error:
        plan_merge([one, two], into)
    for folder in (into if there else one, two):
        assert str(folder / "g" / f"{make().id}.json") in str(error.value)
    assert content(into) == before
    after = merge(into, one, two, keep_first=True)
    assert after[f"g/{make().id}.json"] == (one / "g" / f"{make().id}.json").read_bytes()


def test_a_finished_record_counts_before_a_failed_one_and_of_those_the_newest(tmp_path: Path) -> None:
    one, two = put(tmp_path / "1", failed(seconds=5.0)), put(tmp_path / "2", record_of(seconds=2.0))
    assert merge(put(tmp_path / "a", failed(seconds=9.0)), one, two) == content(two)
    assert merge(put(tmp_path / "b", record_of(seconds=2.0)), one) == content(two)
    assert merge(put(tmp_path / "c", failed(seconds=3.0)), one) == content(one)
    assert merge(put(tmp_path / "d", failed(seconds=6.0)), one) == content(put(tmp_path / "6", failed(seconds=6.0)))


def test_a_priors_backbone_comes_with_its_own_record_alone(tmp_path: Path) -> None:
    one = put(tmp_path / "1", record_of(), record_of(OTHER), backbone=b"first")
    score = Score(linear=(0.1, 0.2, 0.3), knn=0.5)
    curve = tuple(point.model_copy(update={"score": score}) for point in record_of().curve)
    two = put(tmp_path / "2", record_of(curve=curve), backbone=b"of other weights")
    weights = f"g/backbones/{record_of().id}.safetensors"
    found = merge(tmp_path / "a", one)
    assert {key for key in found if "backbones" in key} == {weights}, "no cell waits for the other one's"
    assert found[weights] == b"first"
    assert weights not in merge(put(tmp_path / "b", record_of()), two, keep_first=True)
    assert merge(put(tmp_path / "c", record_of(seconds=2.0)), two, one, keep_first=True)[weights] == b"first"
    assert merge(put(tmp_path / "d", record_of(), backbone=b"mine"), one)[weights] == b"mine"
    assert merge(put(tmp_path / "e", failed(), backbone=b"of no record"), one)[weights] == b"first"
    link = tmp_path / "1" / weights
    link.unlink()
    link.symlink_to("/etc/passwd")
    assert weights not in merge(tmp_path / "f", one)


def test_a_stop_in_between_leaves_whole_files_and_the_same_merge_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = put(tmp_path / "1", record_of(), record_of(OTHER), *map(record_of, CELLS[:3]), backbone=b"weights")
    whole = merge(tmp_path / "whole", one)
    plan = plan_merge([one], tmp_path / "into")
    count = len(plan.records) + len(plan.backbones)
    for stop in range(count):
        into = tmp_path / f"into{stop}"
        left = [stop]

        def copy(source: Any, target: Any, left: list[int] = left) -> None:
            data = source.read()
            if not left[0]:
                target.write(data[: len(data) // 2])
                raise KeyboardInterrupt
            left[0] -= 1
            target.write(data)

        with monkeypatch.context() as patch:
            patch.setattr(shutil, "copyfileobj", copy)
            with pytest.raises(KeyboardInterrupt):
                copy_files(plan_merge([one], into))
        assert len(content(into)) == stop
        assert content(into).items() <= whole.items()
        assert merge(into, one) == whole


def test_what_is_no_record_of_the_grid_is_left_out_and_named(tmp_path: Path) -> None:
    one = put(tmp_path / "1", record_of(), record_of(OTHER))
    folder = one / "g"
    write_record(record_of(CELLS[0], grid="another"), folder)
    (folder / f"{record_of(OTHER).id}.json").write_text("{")
    (folder / "0123456789abcdef.json").write_text(record_of().model_dump_json())
    (folder / "link.json").symlink_to(folder / f"{record_of().id}.json")
    (folder / "endless.json").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.json")
    (folder / "\x1b[31m.json").write_text("[]")
    (one / "elsewhere").symlink_to(folder)
    put(tmp_path / "3", record_of())
    (tmp_path / "3" / "g").rename(one / "..g")
    ran = CliRunner().invoke(app, ["merge", str(one), "--into", str(tmp_path / "into")])
    assert ran.exit_code == 1
    assert "1 records copied" in ran.output
    for words in (
        f"{record_of(CELLS[0]).id}.json: a record of grid another, not of g",
        f"{record_of(OTHER).id}.json: not valid JSON",
        " [31m.json: not a record",
        "elsewhere: a link",
        "0123456789abcdef.json: its settings do not hash to its id",
        "link.json: a link, or no file",
        "endless.json: a link, or no file",
        "pipe.json: a link, or no file",
    ):
        assert words in ran.output
    assert "\x1b" not in ran.output
    assert list(content(tmp_path / "into")) == [f"g/{record_of().id}.json"]


def test_a_file_in_a_records_place_is_not_overwritten(tmp_path: Path) -> None:
    one, into = put(tmp_path / "1", record_of()), put(tmp_path / "into", record_of())
    place = into / "g" / f"{record_of().id}.json"
    place.write_text(place.read_text().replace('"schema_version": 1', '"schema_version": 2'))  # of a later version
    before = content(into)
    found = plan_merge([one], into)
    copy_files(found)
    assert content(into) == before
    assert [(each.path, str(place) in each.reason) for each in found.left_out] == [
        (one / "g" / f"{record_of().id}.json", True)
    ]
    assert "schema version 2" in found.left_out[0].reason


@pytest.mark.parametrize(
    ("source", "into", "words"),
    [
        ("1", "1", "one folder"),
        ("1", "./x/../1", "one folder"),
        ("1", "link", "one folder"),
        ("1/g", "1", "one is in the other"),
        ("1", "1/g/new", "one is in the other"),
        ("1", "links", "are one folder"),
        ("nowhere", "into", "no such folder"),
        ("empty", "into", "no records there"),
    ],
)
def test_a_merge_into_itself_or_of_nothing_is_refused(source: str, into: str, words: str, tmp_path: Path) -> None:
    one = put(tmp_path / "1", record_of())
    for name in ("x", "empty", "links"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(one)
    (tmp_path / "links" / "g").symlink_to(one / "g")
    before = content(tmp_path)
    ran = CliRunner().invoke(app, ["merge", str(tmp_path / source), "--into", str(tmp_path / into)])
    assert isinstance(ran.exception, UserError)
    assert words in str(ran.exception)
    assert content(tmp_path) == before


def test_toys_come_together_too(tmp_path: Path) -> None:
    grid = find_toy("paper_toy", "mini")
    assert grid
    setting = grid.settings[0]
    values = tuple((0.5,) * len(setting.toy.evaluate_at) for _ in setting.seeds)
    record = ToyRecord(
        id=setting.id,
        grid="t",
        setting=setting,
        accuracy=values,
        loss=values,
        prior_accuracy=None,
        seconds=1,
        provenance={},
    )
    other = record.model_copy(update={"seconds": 2.0}), record.model_copy(update={"loss": (*values[:-1], (0.4,) * 4)})
    for folder, each in zip(("1", "2", "3"), (record, *other), strict=True):
        with atomic_write(tmp_path / folder / "t" / f"{setting.id}.json") as file:
            file.write(each.model_dump_json().encode())
    assert list(merge(tmp_path / "into", tmp_path / "1", tmp_path / "2")) == [f"t/{setting.id}.json"]
    with pytest.raises(UserError, match=r"loss\[1\]\[0\]: 0.5 and 0.4"):
        plan_merge([tmp_path / "1", tmp_path / "3"], tmp_path / "into", kinds=KINDS)


def test_the_shipped_records_merge_without_torch(tmp_path: Path) -> None:
    into = tmp_path / "into"
    code = (
        f"import sys; sys.argv = ['bench', 'results', 'merge', 'results', '--into', {str(into)!r}]\n"
        "from bench.cli.main import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'pandas', 'matplotlib'} & sys.modules.keys()\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    for grid in ("accelerators", "cifar_small", "paper_methods@cpu", "paper_toy"):
        assert content(into / grid) == content(ROOT / "results" / grid)


def test_a_folder_that_may_not_be_read_is_not_one_without_records(open_to_all: Path, closed: Any) -> None:
    one, other = open_to_all / "one" / "g", open_to_all / "one" / "h"
    write_record(record_of(), one)
    write_record(record_of(grid="h"), other)
    with closed(other):
        with pytest.raises(PermissionError):
            read_records(other)
        with pytest.raises(PermissionError):
            plan_merge([open_to_all / "one"], open_to_all / "into")
    assert read_records(open_to_all / "no such folder") == ([], [])
