"""Records, studies' records and logs: read, or set aside with a reason."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from bench.core.errors import UserError
from bench.grid.cell import Cell, Inputs, cell_id
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.report.claims import judged
from bench.report.collect import collect
from bench.report.sections.verdicts import verdict_table
from bench.run.status import last_event
from bench.store.reading import Damaged
from bench.store.record import Finished, Ledger, Point, Score, TargetCost, read_record, write_record
from bench.toy.study import ToyRecord, find_toy, read_toy

PIECES = tuple(
    piece if isinstance(piece, bytes) else piece.encode()
    for piece in (
        *("{", "}", "[", "]", '"', ",", ":", "null", "true", "NaN", "-Infinity", "1e400", "-1", "9" * 5000, "\0"),
        *(
            "[" * 3000,
            '{"a":' * 3000,
            '"schema_version": 1,',
            '"status": "done",',
            '"\\ud800"',
            "\\u0000",
            "//",
            "\ufeff",
        ),
        *(b"\xff", b"\xed\xa0\x80"),
    )
)


def record(cell: Cell) -> Finished:
    inputs = Inputs(data="d" * 16, prior="p" * 16 if cell.rela else None, method_version=1, params={"momentum": 0.99})
    score = Score(linear=(0.1, 0.2, 0.3), knn=0.25)
    points = tuple(Point(step=i, images=10 * i, flops=10**17, seconds=1.5, loss=-0.3, score=score) for i in (3, 6))
    ledger = Ledger(
        steps=6,
        images=60,
        flops=10**17,
        seconds={"train": 1.5, "eval": 0.5},
        wall_seconds=2.0,
        peak_memory_bytes=10**9,
        targets=TargetCost(seconds=0.5, flops=10**15, images=60, empty=0, cached=False) if cell.rela else None,
        flops_not_counted="",
    )
    return Finished(
        id=cell_id(cell, inputs),
        grid="cifar_small",
        cell=cell,
        inputs=inputs,
        dataset_title="CIFAR-10",
        curve=points,
        switch_step=4 if cell.rela else None,
        ledger=ledger,
        provenance={"time": "now", "packages": {"torch": "2"}},
    )


def text(tree: Any) -> bytes:
    return json.dumps(tree, default=lambda value: str(value)).encode()


@pytest.mark.parametrize("kind", ["tree", "text"])
def test_a_record_is_read_or_set_aside(fuzz, kind: str) -> None:
    """What is read can be written again as it was, and the claims of its grid judged with it."""
    grid = load_grid("cifar_small")
    claim = grid.claims[0]
    sides = {(claim.arm, claim.budget), (claim.baseline, claim.baseline_budget)}
    records = [record(cell) for cell in expand(grid) if (cell.arm, cell.budget) in sides]
    assert len(records) == 2 * len(grid.seeds)
    for one in records:
        write_record(one, fuzz.place)
    whole = next(one for one in records if one.cell.arm == claim.arm)
    tree = whole.model_dump(mode="json")
    contents = fuzz.changed(tree).map(text) if kind == "tree" else fuzz.damaged(text(tree), PIECES)
    path = fuzz.place / f"{whole.id}.json"

    def reads(content: bytes) -> bool:
        path.write_bytes(content)
        found = read_record(path)
        if isinstance(found, Damaged):
            raise UserError(found.reason)
        write_record(found, fuzz.place / "again")
        again = read_record(fuzz.place / "again" / path.name)
        assert isinstance(again, Finished)
        assert again.model_dump_json() == found.model_dump_json()  # text, for a NaN is not equal to itself
        assert verdict_table(judged(collect(grid, fuzz.place))).rows
        return True

    fuzz(contents, reads, parts=2)


@pytest.mark.parametrize("kind", ["tree", "text"])
def test_a_studys_record_is_read_or_set_aside(fuzz, kind: str) -> None:
    toy = find_toy("paper_toy", "mini")
    assert toy
    setting = toy.settings[0]
    rows = tuple(tuple(0.5 for _ in toy.toy.evaluate_at) for _ in toy.seeds)
    whole = ToyRecord(
        id=setting.id,
        grid=toy.name,
        setting=setting,
        accuracy=rows,
        loss=rows,
        prior_accuracy=None,
        seconds=1.0,
        provenance={"time": "now"},
    )
    tree = whole.model_dump(mode="json")
    contents = fuzz.changed(tree).map(text) if kind == "tree" else fuzz.damaged(text(tree), PIECES)
    path = fuzz.place / f"{whole.id}.json"

    def reads(content: bytes) -> bool:
        path.write_bytes(content)
        found = read_toy(path)
        if isinstance(found, Damaged):
            raise UserError(found.reason)
        assert [len(found.at(found.loss, step)) for step in toy.toy.evaluate_at] == [len(toy.seeds)] * len(rows[0])
        return True

    fuzz(contents, reads, parts=2)


def test_a_log_gives_its_last_sound_event(fuzz) -> None:
    lines = [{"time": "2026-01-01", "event": "step", "step": step, "steps": 9} for step in range(3)]
    path = fuzz.place / "events.jsonl"

    def reads(contents: list[bytes]) -> bool:
        path.write_bytes(b"\n".join(contents))
        last = last_event(path)
        return last is not None and f"{last.get('step', 0):,}" != ""

    line = st.one_of(fuzz.changed(lines[0]).map(text), fuzz.damaged(text(lines[1]), PIECES))
    fuzz(st.lists(line, max_size=2), reads)


def test_what_is_not_a_file_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "loop.json").symlink_to("loop.json")
    (tmp_path / "gone.json").symlink_to("nowhere")
    for path in tmp_path.iterdir():
        assert isinstance(read_record(path), Damaged)


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    read = f"from bench.store.record import *; print(type(read_record(Path({str(tmp_path / 'pipe.json')!r}))).__name__)"
    ran = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout == "Damaged\n"


@pytest.mark.parametrize(
    ("where", "value"),
    [
        *((f"ledger.{key}", value) for key in ("steps", "images", "flops") for value in (0, -1, 10**31)),
        *((f"ledger.{key}", value) for key in ("wall_seconds", "seconds.train") for value in (-1.0, 1e308)),
        *((f"ledger.targets.{key}", value) for key in ("flops", "images", "empty") for value in (-1, 10**31)),
        *(
            (f"curve.0.{key}", value)
            for key in ("step", "flops", "score.knn", "score.linear.1")
            for value in (-1, 10**31)
        ),
        *(("curve.1.score.knn", 1.1), ("switch_step", 10**31), ("provenance.packages", "torch")),
    ],
)
def test_what_no_report_can_count_with_is_set_aside(tmp_path: Path, where: str, value: Any) -> None:
    whole = record(next(cell for cell in expand(load_grid("cifar_small")) if cell.rela))
    assert whole.ledger.targets
    tree = whole.model_dump(mode="json")
    path = tmp_path / f"{whole.id}.json"
    path.write_bytes(text(tree))
    assert read_record(path) == whole
    holder: Any = tree
    *parts, last = where.split(".")
    for part in parts:
        holder = holder[int(part) if part.isdigit() else part]
    holder[int(last) if last.isdigit() else last] = value
    path.write_bytes(text(tree))
    found = read_record(path)
    assert isinstance(found, Damaged)
    assert where in found.reason or (where == "provenance.packages" and "packages" in found.reason)
