"""Records: whole and unchanged, or set aside with a reason; files: the old or the new, never a part."""

import json
import random
from pathlib import Path

import pytest

from bench.core.errors import WriteError
from bench.core.files import atomic_write
from bench.grid.cell import Inputs, cell_id
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.store.reading import Damaged
from bench.store.record import Finished, Ledger, Point, Score, read_record, read_records, write_record


def record() -> Finished:
    cell = expand(load_grid("cifar_small"))[0]
    inputs = Inputs(data="d", prior=None, method_version=1, params={"momentum": 0.99})
    score = Score(linear=(0.1, 0.2, 0.3), knn=0.25)
    return Finished(
        id=cell_id(cell, inputs),
        grid="test",
        cell=cell,
        inputs=inputs,
        dataset_title="CIFAR-10",
        curve=(Point(step=3, images=30, flops=10**17, seconds=1.5, loss=-0.3, score=score),),
        ledger=Ledger(
            steps=3,
            images=30,
            flops=10**17,
            seconds={"train": 1.5},
            wall_seconds=1.5,
            peak_memory_bytes=None,
            targets=None,
            flops_not_counted="",
        ),
        provenance={"time": "now", "packages": {"torch": "2"}},
    )


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    write_record(record(), tmp_path)
    assert read_records(tmp_path) == ([record()], [])
    assert [path.name for path in tmp_path.iterdir()] == [f"{record().id}.json"]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"schema_version": 1', '"schema_version": 99', "schema version 99 where 1 is known"),
        ('"seed": 0', '"seed": 1', "do not hash to its id"),
        ('"lr": 0.001', '"lr": 0.002', "do not hash to its id"),
        ('"data": "d"', '"data": "e"', "do not hash to its id"),
        ('"status": "done"', '"status": "won"', "status"),
        ('"knn": 0.25', '"knn": "high"', "knn"),
        ('"grid"', '"gird"', "grid"),
        ('"budget": 0.2', '"budget": 1.5', "budget"),
    ],
)
def test_an_edited_record_is_set_aside(old: str, new: str, reason: str, tmp_path: Path) -> None:
    write_record(record(), tmp_path)
    path = tmp_path / f"{record().id}.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    found = read_record(path)
    assert isinstance(found, Damaged)
    assert reason in found.reason
    assert path.exists(), "set aside, never deleted"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000, b"{}", b'{"a": NaN}']
)
def test_what_is_no_record_is_set_aside(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "0123456789abcdef.json"
    path.write_bytes(content)
    assert isinstance(read_record(path), Damaged)


def test_a_record_under_another_name_or_cut_short_is_set_aside(tmp_path: Path) -> None:
    write_record(record(), tmp_path)
    path = tmp_path / f"{record().id}.json"
    whole = path.read_bytes()
    path.rename(tmp_path / "other.json")
    assert isinstance(read_record(tmp_path / "other.json"), Damaged)
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        assert isinstance(read_record(path), Damaged)


def test_numbers_are_plain_json(tmp_path: Path) -> None:
    write_record(record(), tmp_path)
    raw = json.loads((tmp_path / f"{record().id}.json").read_text())
    assert raw["curve"][0]["flops"] == 10**17
    assert raw["curve"][0]["score"]["linear"] == [0.1, 0.2, 0.3]


def test_every_number_survives(tmp_path: Path) -> None:
    draw = random.Random(0)
    for _ in range(50):
        params = {"x": draw.uniform(-1, 1) * 10.0 ** draw.randint(-300, 300), "i": draw.getrandbits(80), "one": 1.0}
        cell = record().cell.model_copy(update={"params": params, "budget": 1 - draw.random(), "seed": 2**70})
        changed = record().model_copy(update={"cell": cell, "id": cell_id(cell, record().inputs)})
        write_record(changed, tmp_path)
        assert read_record(tmp_path / f"{changed.id}.json") == changed


def test_damaged_files_hide_no_record(tmp_path: Path) -> None:
    write_record(record(), tmp_path)
    for name in ("0.json", "notes.txt", ".hidden.tmp"):
        (tmp_path / name).write_text("{")
    (tmp_path / "folder.json").mkdir()
    records, damaged = read_records(tmp_path)
    assert records == [record()]
    assert [(d.path.name, d.reason) for d in damaged] == [
        ("0.json", "not valid JSON"),
        ("folder.json", "not a file"),
    ]
    assert read_records(tmp_path / "nowhere") == ([], [])


def test_what_cannot_be_put_in_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(WriteError, match="Is a directory"), atomic_write(tmp_path / "taken") as file:
        file.write(b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_the_old_content_is_there_until_the_new_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    for old, new in ((None, b"one"), (b"one", b"two")):
        with atomic_write(path) as file:
            file.write(new)
            file.flush()
            assert (path.read_bytes() if path.exists() else None) == old
        assert path.read_bytes() == new
    assert list(path.parent.iterdir()) == [path]


def test_others_may_read_what_is_written_as_the_umask_says(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    with atomic_write(tmp_path / "atomic") as file:
        file.write(b"")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_write(path) as file:
        file.write(b"old")
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.writelines([b"new", "text"])  # type: ignore[list-item]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
