"""Recipes chosen by trials, on real digits: by whom, whatever ends a run, and what a claim says before and after."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench.core.paths import Paths
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.grid.tune import points
from bench.models.backbones import Backbone, backbones
from bench.plan.graph import Missing, Ready, Task, Waiting, plan
from bench.plan.state import Outcome
from bench.report import write_report
from bench.report.claims import judged
from bench.report.collect import collect
from bench.report.costs import ALONE, STEPS
from bench.run.control import in_turns
from bench.run.progress import Display
from bench.run.runner import run_tasks
from bench.run.status import state_of
from bench.store.record import Finished, read_record, read_records, record_path
from methods import Batch, methods
from methods.byol import BYOL
from tests.run.processes import ALWAYS, Forks, bench, folder, left, strays

CPU = torch.device("cpu")
GRID = """
backbone: resnet_small
datasets: [{name: digits, train_images: 80}]
seeds: [0]
arms:
  - {method: byol}
  - {name: trained, method: simclr, rela: {prior: DIGITS-T, phase: 0.5}, budgets: [0.5]}
  - {name: matched, method: simclr, flops_of: trained, budgets: [0.5]}
tune: {arms: [byol, trained], trials: 2, space: {lr: [0.0001, 0.01], schedule: [constant, cosine]}, validation: 0.2}
protocol: {epochs: 2, batch_size: 32, input_size: 8, probe: {epochs: 3}, knn: {k: 5}}
"""


def planned(there: Path, *settings: str) -> tuple[list[Task], Paths]:
    paths = Paths(there / "data", there / "results", "tiny")
    cells = expand(load_grid(str(there / "tiny.yaml"), settings=settings))
    return plan(cells, cells, paths, "grid tiny"), paths


def run(there: Path, *settings: str) -> list[Outcome]:
    tasks, paths = planned(there, *settings)

    def run_some(some: Any) -> list[Outcome]:
        return run_tasks(some, paths, CPU, 0, Display(quiet=True))

    return in_turns(tasks, lambda: planned(there, *settings)[0], run_some)


def record(task: Task, paths: Paths) -> Finished:
    assert isinstance(task, Ready)
    found = read_record(record_path(paths.records, task.id))
    assert isinstance(found, Finished)
    return found


def test_the_best_trial_is_the_recipe_of_its_arm(tmp_path: Path) -> None:
    there = folder(tmp_path / "a", GRID)
    tasks, paths = planned(there)
    assert [isinstance(task, Waiting) for task in tasks] == [False, False, True, True, True, True, True]
    assert [task.cell.arm for task in tasks][2:6:3] == ["byol", "trained"]
    assert tasks[3].needs is tasks[2], "the prior of a trial is the backbone of the grid's first seed"
    assert state_of(tasks[2], paths).text == "waiting: 2 of 2 trials that choose its recipe are not done"
    outcomes = run(there)
    assert [outcome.status for outcome in outcomes] == ["done"] * 7
    assert [outcome.task.cell.arm for outcome in outcomes] == [task.cell.arm for task in tasks]
    grid = load_grid(str(there / "tiny.yaml"))
    assert grid.tune
    for start, steps in ((0, 4), (3, 2)):  # of 32 images, in 2 epochs over 64 and 80 images, and over half as many
        one, two, arm = (record(outcome.task, paths) for outcome in outcomes[start : start + 3])
        accuracies = [statistics.fmean(trial.final.linear) for trial in (one, two)]
        best = one if accuracies[0] >= accuracies[1] else two
        point = points(grid.tune)[(one, two).index(best)]
        for found in (best, arm):
            assert (found.cell.protocol.lr, found.cell.protocol.schedule) == (point["lr"], point["schedule"])
        assert (one.test_images, arm.test_images) == (16, 360)
        assert (one.ledger.steps, two.ledger.steps, arm.ledger.steps) == (steps,) * 3
    assert [outcome.cached for outcome in run(there)] == [True] * 7


@pytest.mark.slow
def test_killed_in_the_middle_of_tuning_the_same_recipes_win(
    server: Forks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    whole, cut = folder(tmp_path / "whole", GRID), folder(tmp_path / "cut", GRID)
    assert server.run(whole, die_at=0, out="out") == 0, (whole / "out").read_text()
    count = int((whole / "out.count").read_text())
    assert server.run(cut, die_at=count // 3, environment=ALWAYS) == -9
    words = ("--grid", cut / "tiny.yaml", "--results", cut / "results")
    assert "that choose its recipe are not done" in bench("status", *words, "--cells", "--data-root", cut / "data").out
    said = bench("report", *words[1:], "--reports", tmp_path / "reports", "--format", "md").out
    assert "missing: Digits, byol, tuned at 100%: 1 trial\n" in said
    assert "not chosen: 1 trial to run" in (tmp_path / "reports" / "tiny" / "report.md").read_text()
    assert server.run(cut) == 0, (cut / "out").read_text()
    assert left(cut) == left(whole)
    assert strays(cut) == []


@pytest.mark.slow
def test_side_by_side_the_same_recipes_win(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "one", GRID), folder(tmp_path / "two", GRID)
    for there, jobs in ((one, ()), (two, ("--jobs", 2))):
        words = ("run", "--grid", there / "tiny.yaml", "--data-root", there / "data", "--results", there / "results")
        ran = bench(*words, "--device", "cpu", *jobs)
        assert ran.code == 0, ran.out + ran.err
        assert "7 of 7 cells done" in ran.out
    assert left(one, cached=False).keys() == left(two, cached=False).keys()


class Fragile(BYOL):
    """Fails at the first step of a trial whose rate is too high for it."""

    most = 0.0

    def loss(self, batch: Batch) -> torch.Tensor:
        raise RuntimeError("it broke")


def test_a_failed_trial_does_not_win_and_when_all_have_failed_nothing_is_run(
    tmp_path: Path, temporary: Callable[..., None]
) -> None:
    there = folder(
        tmp_path / "a",
        GRID.replace("byol}", "fragile}").replace("tune: {arms: [byol, trained]", "tune: {arms: [fragile]"),
    )
    text = (there / "tiny.yaml").read_text().replace("DIGITS-T", "rand")
    (there / "tiny.yaml").write_text(text)
    temporary(methods, fragile=Fragile)
    outcomes = {outcome.task.cell.arm: outcome for outcome in run(there)}
    assert {outcomes[f"fragile, trial {number}"].status for number in (1, 2)} == {"failed"}
    assert isinstance(outcomes["fragile"].task, Missing)
    assert outcomes["fragile"].reason == "arm 'fragile': all 2 trials that choose its recipe have failed"
    assert outcomes["trained"].status == "done"
    found = collect(load_grid(str(there / "tiny.yaml")), there / "results" / "tiny")
    (result,) = (each for each in found.results if each.trials)
    assert found.why_skipped(result, 0) == "all trials that choose its recipe have failed"
    said = write_report(found.grid, there / "results" / "tiny", tmp_path / "out", ["md"])
    assert "failed: Digits, fragile, tuned at 100%, fragile, trial 1: RuntimeError: it broke" in said
    # One of them is mended: it wins, although it comes second and the other one stays failed.
    tasks, paths = planned(there)
    temporary(methods, fragile=type("Mended", (BYOL,), {}))
    (second,) = (task for task in tasks if task.cell.arm == "fragile, trial 2")
    assert run_tasks([second], paths, CPU, 0, Display(quiet=True))[0].status == "done"
    (chosen,) = (task for task in planned(there)[0] if task.cell.arm == "fragile")
    assert isinstance(chosen, Ready)
    assert chosen.cell.protocol.lr == second.cell.protocol.lr


BAD_RATE = """
backbone: narrow
datasets: [digits]
seeds: [0, 1, 2, 3, 4, 5]
params: {supervised: {classes: 10}}
arms:
  - {name: half, method: supervised, budgets: [0.5], rela: {prior: rand, phase: 0.5}, recipe: {lr: 0.02}}
  - {name: full, method: supervised, recipe: {lr: 0.2}}
claims: [{name: half the cost, arm: half, budget: 0.5, baseline: full, share: 0.51}]
protocol: {epochs: 6, batch_size: 100, input_size: 8, probe: {recipe: lbfgs, epochs: 3}, knn: {k: 5}}
"""
TUNED = "tune={trials: 4, space: {lr: [0.002, 0.2]}, validation: 0.2}"
AGAINST_BEST = "claims=[{name: half the cost, arm: half, budget: 0.5, baseline: best, share: 0.51}]"


def narrow() -> Backbone:
    """A network of four features, of which untrained ones tell few digits apart."""
    return Backbone(nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.Tanh(), nn.Linear(64, 4)), 4)


@pytest.mark.slow
def test_a_claim_against_a_bad_rate_is_reproduced_and_against_the_tuned_one_is_not(
    tmp_path: Path, temporary: Callable[..., None]
) -> None:
    """The baseline learns at a rate ten times that of the arm, which is too high for it."""
    temporary(backbones, narrow=narrow)
    verdicts = {}
    for name, settings in (("as it is", ()), ("tuned", (TUNED, AGAINST_BEST))):
        there = folder(tmp_path / name, BAD_RATE)
        assert {outcome.status for outcome in run(there, *settings)} == {"done"}
        grid = load_grid(str(there / "tiny.yaml"), settings=settings)
        found = collect(grid, there / "results" / "tiny")
        (judgements,) = judged(found)
        (steps,) = (one for one in judgements if (one.currency, one.ledger) == (STEPS, ALONE))
        verdicts[name] = steps.verdict
        assert {one.claim.baseline for one in judgements} == {"full"}
        print(name, steps.difference)
    assert verdicts == {"as it is": "reproduced", "tuned": "not reproduced"}
    records = read_records(there / "results" / "tiny")[0]
    assert len(records) == 6 * 2 + 4 * 2
    write_report(grid, there / "results" / "tiny", tmp_path / "out", ["md"])
    text = (tmp_path / "out" / "report.md").read_text()
    best = max((r for r in records if r.cell.arm.startswith("full, trial")), key=lambda r: r.final.linear[0])  # type: ignore[union-attr]
    assert "below full, the best tuned arm without ReLA, at 100%" in text
    assert f"full, tuned: lr {best.cell.protocol.lr}. Evaluated by linear probe, recipe lbfgs." in text
