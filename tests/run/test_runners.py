"""Several runners on one folder: no cell runs twice, none is left out, nothing is torn."""

import os
import signal
from pathlib import Path

import pytest

from bench.core.paths import Paths
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.plan.graph import plan
from bench.run.status import state_of
from tests.run.processes import ALWAYS, GRID, Forks, events, folder, left, strays, until

SHORT = GRID.replace("epochs: 4", "epochs: 1").replace("evaluate_at: [0.5], ", "")
SEEDS = GRID.replace("seeds: [3]", "seeds: [3, 4]")


def names(folder: Path) -> list[list[str]]:
    """Return the names of each cell's events that say how it began and ended."""
    told = {"start", "resume", "interrupted", "done", "failed", "oom", "timeout"}
    return [[event["event"] for event in log if event["event"] in told] for log in events(folder).values()]


@pytest.mark.slow
def test_two_runners_share_a_grid(server: Forks, tmp_path: Path) -> None:
    alone, together = folder(tmp_path / "alone", SHORT), folder(tmp_path / "together", SHORT)
    runners = [server.start(together, out=out) for out in ("a", "b")]
    assert [server.wait(runner) for runner in runners] == [0, 0], [(together / out).read_text() for out in ("a", "b")]
    assert server.run(alone) == 0
    assert left(together, cached=False) == left(alone, cached=False)
    assert names(together) == [["start", "done"]] * 4
    texts = [(together / out).read_text() for out in ("a", "b")]
    assert all("4 of 4 cells done" in text for text in texts)
    assert sum(text.count(": done, linear") for text in texts) == 4
    assert strays(together) == []


@pytest.mark.slow
def test_four_runners_share_a_grid_and_one_is_killed(server: Forks, tmp_path: Path) -> None:
    alone, together = folder(tmp_path / "alone", SEEDS), folder(tmp_path / "together", SEEDS)
    paths = Paths(together / "data", together / "results", "tiny")
    cells = expand(load_grid(str(together / "tiny.yaml")))
    tasks = plan(cells, cells, paths, "grid tiny")
    runners = [server.start(together, out=f"out{i}", environment=ALWAYS) for i in range(4)]

    def in_the_midst() -> list[str]:
        saved = {cell for cell, log in events(together).items() if log and log[-1]["event"] == "checkpoint"}
        states = [state_of(task, paths).text for task in tasks if task.id in saved]
        return [state for state in states if state.startswith("running (")]

    until(in_the_midst)
    running = in_the_midst()
    victim = int(running[0].partition(":")[2].partition(",")[0])
    assert victim in runners
    os.kill(victim, signal.SIGKILL)
    codes = {runner: server.wait(runner) for runner in runners}
    assert codes.pop(victim) == -9
    assert set(codes.values()) == {0}, [(together / f"out{i}").read_text() for i in range(4)]
    assert server.run(alone) == 0
    assert left(together, cached=False) == left(alone, cached=False)
    told = names(together)
    assert len(told) == len(tasks)
    assert sorted(told) == [["start", "done"]] * (len(tasks) - 1) + [["start", "resume", "done"]]
    assert strays(together) == []
    assert len(list((together / "data" / "cache" / "targets").glob("*.safetensors"))) == 4
    print(f"{len(tasks)} cells, 4 runners, one killed; waited: {running}")


@pytest.mark.slow
def test_a_failure_of_another_runner_is_not_repeated(server: Forks, tmp_path: Path) -> None:
    """The method fails once both runners are there, in whichever has it."""
    there = folder(tmp_path / "there", GRID.replace("method: moco, params: {queue: 64}", "method: fails"))
    plugin = there / "fails.py"
    plugin.write_text(FAILS.format(folder=str(there)))
    options = ("--plugin", plugin, "--only", "arm=queue")
    first = server.start(there, *options, out="a")
    until((there / "tries").exists)
    second = server.start(there, *options, out="b")
    until(lambda: (there / "b").exists() and "runs it" in (there / "b").read_text())
    (there / "go").touch()
    assert [server.wait(runner) for runner in (first, second)] == [1, 1]
    assert (there / "tries").read_text() == "x"
    assert names(there) == [["start", "failed"]]
    assert all("1 failed: ValueError: on purpose" in (there / out).read_text() for out in ("a", "b"))
    assert server.run(there, *options) == 1
    assert (there / "tries").read_text() == "xx", "the next run tries it again"


FAILS = """
import os
from pathlib import Path
from methods import methods
from methods.byol import BYOL

@methods.register("fails")
class Fails(BYOL):
    def after_step(self):
        with (Path({folder!r}) / "tries").open("a") as file:
            file.write("x")
        while not (Path({folder!r}) / "go").exists():
            os.sched_yield()
        raise ValueError("on purpose")
"""
