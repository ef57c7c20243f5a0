"""What a report says of trials: what they chose and took, apart from all else, and which baseline is the best."""

from pathlib import Path

import pytest

from bench.grid.cell import Cell
from bench.grid.expand import expand
from bench.grid.schema import Grid
from bench.report.claims import judged
from bench.report.collect import Collected, collect
from bench.report.sections.tuning import tuning_table
from bench.report.sections.verdicts import headline
from bench.store.record import Finished, Record, write_record
from tests.report.test_report import failed, grid_of, record_of

GRID = """
backbone: resnet_small
datasets: [digits]
seeds: [0, 1]
arms:
  - {name: untuned, method: byol}
  - {method: byol}
  - {name: slow, method: byol, recipe: {weight_decay: 0.1}}
  - {name: rela, method: byol, rela: {prior: rand}, budgets: [0.5]}
tune: {arms: [byol, slow, rela], trials: 3, space: {lr: [0.001, 0.1]}}
claims: [{name: half, arm: rela, budget: 0.5, baseline: best, share: 0.6}]
"""
VALIDATION = {"byol": (0.5, 0.7, 0.6), "slow": (0.8, 0.1, 0.8), "rela": (0.4, 0.4, 0.3)}


def accuracy(cell: Cell) -> float:
    """Of a trial, that of VALIDATION; of an arm, the other way round: on the test set, the best arm is another one."""
    if cell.validation:
        arm, _, number = cell.arm.rpartition(", trial ")
        return VALIDATION[arm][int(number) - 1]
    return {"untuned": 0.9, "byol": 0.8, "slow": 0.5, "rela": 0.6}[cell.arm] + 0.01 * cell.seed


def chosen(cell: Cell, grid: Grid) -> Cell:
    """A tuned cell with the recipe of its best trial, of equals the first."""
    if cell.tuned is None:
        return cell
    best = VALIDATION[cell.arm].index(max(VALIDATION[cell.arm])) + 1
    (trial,) = (each for each in expand(grid) if (each.arm, each.budget) == (f"{cell.arm}, trial {best}", cell.budget))
    return cell.model_copy(update={"protocol": cell.protocol.model_copy(update={"lr": trial.protocol.lr})})


def records_of(grid: Grid) -> list[Finished]:
    return [record_of(chosen(cell, grid), linear=(accuracy(cell),) * 3) for cell in expand(grid)]


def collected(folder: Path, grid: Grid, records: list[Record]) -> Collected:
    for record in records:
        write_record(record, folder / "records")
    return collect(grid, folder / "records")


def test_trials_are_apart_from_all_else(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, GRID)
    found = collected(tmp_path, grid, list(records_of(grid)))
    assert (found.cells_done, len(found.planned), found.left_out, found.replaced) == (8, 8, 0, ())
    assert not any(record.cell.validation for record in found.done)
    assert [result.label for result in found.results] == ["untuned", "byol, tuned", "slow, tuned", "rela, tuned"]


def test_the_table_says_what_was_chosen_and_what_all_trials_took(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, GRID)
    found = collected(tmp_path, grid, list(records_of(grid)))
    rows = [[entry.text for entry in row] for row in tuning_table(found).rows]
    trials = {cell.arm: cell for cell in expand(grid) if cell.validation}
    assert rows == [
        [
            "Digits",
            "byol, tuned",
            "100%",
            f"lr {trials['byol, trial 2'].protocol.lr}",
            "70.0",
            "50.0 to 70.0",
            "3",
            "3,000",
            "30.0",
            "300",
        ],
        [
            "Digits",
            "slow, tuned",
            "100%",
            f"lr {trials['slow, trial 1'].protocol.lr}",
            "80.0",
            "10.0 to 80.0",
            "3",
            "3,000",
            "30.0",
            "300",
        ],
        [
            "Digits",
            "rela, tuned",
            "50%",
            f"lr {trials['rela, trial 1'].protocol.lr}",
            "40.0",
            "30.0 to 40.0",
            "3",
            "1,500",
            "21.0",
            "159",
        ],
    ]


def test_the_best_is_chosen_by_validation_and_not_on_the_test_set(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, GRID)
    (judgements,) = judged(collected(tmp_path, grid, list(records_of(grid))))
    assert {one.claim.baseline for one in judgements} == {"slow"}
    assert judgements[0].difference
    assert judgements[0].difference[0] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ({"rela": 0.6, "half": 0.3}, "rela at 50% of the steps is no worse than slow at 100%: +10.0 (+10.0 to +10.0) "),
        ({"rela": 0.4, "half": 0.3}, "No claim of a lower cost is reproduced, by FLOP with targets: 2 not reproduced."),
        (
            {"rela": 0.4, "half": 0.6},
            "No claim of a lower cost by ReLA is reproduced, by FLOP with targets: 1 reproduced, 1 not reproduced."
            " Of the controls, this is no worse too: untuned at 50% of the steps.",
        ),
    ],
)
def test_the_answer_is_first_that_against_the_best(tmp_path: Path, tests: dict[str, float], said: str) -> None:
    """The untuned arm learns little at the full budget: a claim against it there holds whatever the others do."""
    text = (
        GRID.replace("share: 0.6", "share: 0.9")
        .replace("method: byol}\n  - {m", "method: byol, budgets: [0.5, 1.0]}\n  - {m")
        .replace(
            "claims: [",
            "claims: [{name: c, arm: untuned, budget: 0.5, baseline: best, share: 0.9},"
            " {name: u, arm: rela, budget: 0.5, baseline: untuned, share: 0.9}, ",
        )
    )
    grid = grid_of(tmp_path, text)
    scores = {"untuned": 0.2, "byol": 0.5, "slow": 0.5, **tests}

    def score(cell: Cell) -> float:
        of_half = cell.arm == "untuned" and cell.budget == 0.5
        return accuracy(cell) if cell.validation else scores["half" if of_half else cell.arm]

    records = [record_of(chosen(cell, grid), linear=(score(cell),) * 3) for cell in expand(grid)]
    found = collected(tmp_path, grid, list(records))
    first, _, second = headline(found, judged(found)).partition(" Against an arm that was not tuned: ")
    assert first.startswith(f"Against the best tuned arm without ReLA: {said}")
    assert second.startswith("rela at 50% of the steps is no worse than untuned at 100%: +")
    assert second.endswith("points, for 70% of its FLOP, targets included (Digits, n=2).")


@pytest.mark.parametrize("left", ["byol, trial 2", "slow, trial 3"])
def test_until_all_trials_are_done_nothing_is_judged(tmp_path: Path, left: str) -> None:
    grid = grid_of(tmp_path, GRID)
    found = collected(tmp_path, grid, [record for record in records_of(grid) if record.cell.arm != left])
    (judgements,) = judged(found)
    assert {(one.claim.baseline, one.n) for one in judgements} == {("best", 0)}
    assert all(one.verdict.startswith("inconclusive") for one in judgements)
    row = next(row for row in tuning_table(found).rows if row[1].text.startswith(left.partition(",")[0]))
    assert [entry.text for entry in row][3:7:3] == ["not chosen: 1 trial to run", "2 of 3"]


def test_a_failed_trial_is_none_that_is_waited_for(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, GRID)
    records: list[Record] = [
        failed(record.cell, "out of luck") if record.cell.arm == "slow, trial 1" else record
        for record in records_of(grid)
    ]
    (judgements,) = judged(collected(tmp_path, grid, records))
    assert {one.claim.baseline for one in judgements} == {"slow"}, "its third trial is as good"


def test_seeds_of_two_recipes_are_not_put_together(tmp_path: Path) -> None:
    """A recipe that was chosen before, of which one seed has not been run anew, counts no more."""
    grid = grid_of(tmp_path, GRID)
    records = records_of(grid)
    (old,) = (record for record in records if (record.cell.arm, record.cell.seed) == ("byol", 1))
    protocol = old.cell.protocol.model_copy(update={"lr": 0.5})
    stale = record_of(old.cell.model_copy(update={"protocol": protocol}), linear=(0.1,) * 3)
    stale = stale.model_copy(update={"provenance": stale.provenance | {"time": "2025-01-01T00:00:00+00:00"}})
    found = collected(tmp_path, grid, [stale if record is old else record for record in records])
    (result,) = (each for each in found.results if each.label == "byol, tuned")
    assert [record.cell.seed for record in result.done] == [0]
    assert found.replaced == (stale,)
