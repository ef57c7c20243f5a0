"""A cell's two logs: whole lines, whatever a kill has cut."""

import json
from pathlib import Path

import pytest

from bench.run.events import CellLog, Follower, last_attempt


def test_each_line_is_whole_after_a_line_that_was_cut(tmp_path: Path) -> None:
    log = CellLog(tmp_path)
    log.event("start", {"step": 0, "steps": 9})
    for name in ("events.jsonl", "run.log"):
        with (tmp_path / name).open("a") as file:
            file.write('{"time": "2')
    log.beat(3, 9)
    log.event("evaluation", {"loss": 0.123456789, "score": {"linear": [0.5, 0.25]}})
    first, cut, *others = (tmp_path / "events.jsonl").read_text().splitlines()
    assert cut == '{"time": "2'
    assert [json.loads(line)["event"] for line in (first, *others)] == ["start", "step", "evaluation"]
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert [line[27:] for line in lines if line[0] != "{"] == [
        "start: step 0, steps 9",
        "evaluation: loss 0.123457, score (linear [0.5, 0.25])",
    ]


def test_a_disk_that_refuses_stops_nobody(tmp_path: Path) -> None:
    log = CellLog(tmp_path)
    (tmp_path / "events.jsonl").mkdir()
    log.event("start", {})
    assert (tmp_path / "run.log").read_text().endswith("  start\n")


def test_a_text_of_many_lines_stays_together(tmp_path: Path) -> None:
    CellLog(tmp_path).text("Traceback\n  File x\nValueError: y\n")
    first, *rest = (tmp_path / "run.log").read_text().splitlines()
    assert first.endswith("  Traceback")
    assert rest == ["      File x", "    ValueError: y"]


@pytest.mark.parametrize("name", ["events.jsonl", "run.log"])
def test_an_empty_log_takes_a_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    CellLog(tmp_path).event("start", {})
    assert (tmp_path / name).read_text().count("\n") == 1


def test_a_follower_reads_whole_events_as_they_come(tmp_path: Path) -> None:
    log = CellLog(tmp_path)
    log.event("start", {"step": 0, "steps": 9})
    follower, path = Follower(tmp_path), tmp_path / "events.jsonl"
    assert list(follower.new()) == []
    log.beat(3, 9, 0.5)
    with path.open("a") as file:
        file.write('{"event": "evalu')
    assert [(event["event"], event["step"], event["loss"]) for event in follower.new()] == [("step", 3, 0.5)]
    with path.open("a") as file:
        file.write('ation"}\n7\n[[[\n{"event": 3}\n{"ev')
    assert list(follower.new()) == [{"event": "evaluation"}]
    log.event("done", {})
    assert [event["event"] for event in follower.new()] == ["done"]
    path.unlink()
    assert list(follower.new()) == []
    assert list(Follower(tmp_path / "nowhere").new()) == []


def test_how_the_last_attempt_at_a_cell_ended(tmp_path: Path) -> None:
    assert last_attempt(tmp_path) == ({}, "")
    log = CellLog(tmp_path)
    log.event("taken", {"by": "a:1", "launch": "x"})
    log.event("interrupted", {})
    assert last_attempt(tmp_path)[1] == "interrupted"
    log.event("taken", {"by": "b:2"})
    log.event("start", {"step": 0, "steps": 9})
    taken, end = last_attempt(tmp_path)
    assert (taken["by"], taken.get("launch"), end) == ("b:2", None, "")
    log.event("failed", {"reason": "on purpose"})
    assert last_attempt(tmp_path)[1] == "failed"
