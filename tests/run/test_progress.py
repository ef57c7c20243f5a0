"""How long a run takes yet, by a clock that the test sets."""

from pathlib import Path

import pytest

from bench.core.paths import Paths
from bench.plan.graph import Ready, plan
from bench.plan.state import Outcome
from bench.run.progress import Display
from tests.train.small import cell


@pytest.mark.parametrize(("trained", "left"), [(False, f"{179 / 44:.1f} minutes"), (True, "60 seconds")])
def test_time_left_goes_by_images_or_by_cells_that_are_only_evaluated(
    trained: bool, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cells have 44 and 179 steps; the first one takes a minute."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    cells = [cell(budget=budget) for budget in (0.25, 1.0)]
    first, second = plan(cells, cells, Paths(tmp_path / "data", tmp_path / "results", "g"), "grid g")
    assert isinstance(first, Ready)
    ids = {task.id for task in (first, second) if isinstance(task, Ready)}
    display = Display()
    display.begin([first, second], ids, ids if trained else ())
    display.started(first)
    for step, now in [] if trained else [(1, 0.0), (25, 60.0)]:
        clock[0] = now
        display.step(first, step, 25, 0.5)
    clock[0] = 60.0
    display.finished(Outcome(first, "done"))
    assert capsys.readouterr().out.endswith(f"done (about {left} left)\n")
