"""Ledgers, and what reaching an accuracy costs, against numbers worked out by hand and by numpy."""

import itertools
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.grid.cell import Arm, Cell, Inputs, cell_id
from bench.grid.claims import statements
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.grid.schema import Grid
from bench.report.claims import judged
from bench.report.collect import Collected, collect
from bench.report.costs import ALONE, CURRENCIES, FLOP, IMAGES, JOULES, PRIOR, SECONDS, STEPS, TARGETS, Costs
from bench.report.sections.savings import (
    REACHED_BY_CHANCE,
    Spending,
    held,
    saving,
    saving_table,
    spending,
    targets,
)
from bench.report.sections.smallest import smallest_table
from bench.report.sections.targets import targets_table
from bench.report.sections.verdicts import certainty, rooms, verdict_table
from bench.store.record import Finished, Ledger, Point, Score, TargetCost, write_record

GRID = """
backbone: resnet_small
datasets: [digits]
budgets: [0.25, 0.5]
seeds: [0, 1, 2, 3]
arms:
  - {method: byol, budgets: [0.25, 0.5, 1.0]}
  - {name: own, method: byol, rela: {prior: DIGITS-T}}
  - {name: random, method: byol, rela: {prior: rand}}
  - {name: public, method: byol, rela: {prior: "file:net.safetensors", backbone: resnet20_cifar}}
claims:
  - {name: half, arm: "*", budget: 0.5, share: 0.55}
targets_share: 0.03
"""
# Accuracy at the end of a cell, by arm and budget; each seed is a point above the one before.
REACHED = {
    ("byol", 0.25): 0.40,
    ("byol", 0.5): 0.50,
    ("byol", 1.0): 0.60,
    ("own", 0.25): 0.55,
    ("own", 0.5): 0.70,
    ("random", 0.25): 0.41,
    ("random", 0.5): 0.45,
    ("public", 0.25): 0.62,
    ("public", 0.5): 0.75,
}


def record_of(cell: Cell, joules: bool) -> Finished:
    end = REACHED.get((cell.arm, cell.budget), 0.5) + 0.01 * cell.seed
    steps = int(1000 * cell.budget)
    prior = None
    if cell.rela:
        prior = maker_of(cell) if cell.rela.prior == "DIGITS-T" else cell.rela.prior
    inputs = Inputs(data="d" * 16, prior=prior, method_version=1, params={})
    made = TargetCost(
        seconds=2.0,
        flops=20_000,
        images=1437,
        empty=0,
        cached=False,
        joules=40.0 if joules else None,
        other_load=0.0,
    )
    points = tuple(
        Point(
            step=int(part * steps),
            images=int(part * steps * 64),
            flops=int(part * steps * (900 if cell.rela else 1000)),
            seconds=part * steps * 0.1,
            loss=-0.5,
            score=Score(linear=(part * end,), knn=0.3),
            joules=part * steps * 3.0 if joules else None,
        )
        for part in (0.5, 1.0)
    )
    return Finished(
        id=cell_id(cell, inputs),
        grid="trial",
        cell=cell,
        inputs=inputs,
        dataset_title="Digits",
        test_images=400,
        curve=points,
        ledger=Ledger(
            steps=steps,
            images=points[-1].images,
            flops=points[-1].flops,
            seconds={"targets": 2.0 if cell.rela else 0.0, "train": points[-1].seconds, "eval": 1.0, "other": 0.0},
            wall_seconds=points[-1].seconds + 1.0 + 2.0 * bool(cell.rela),
            peak_memory_bytes=None,
            targets=made if cell.rela else None,
            flops_not_counted="",
            other_load=0.01,
        ),
        provenance={},
    )


def with_end(record: Finished, accuracy: float) -> Finished:
    last = record.curve[-1].model_copy(update={"score": Score(linear=(accuracy,), knn=0.3)})
    return record.model_copy(update={"curve": (*record.curve[:-1], last)})


def maker_of(cell: Cell) -> str:
    plain = cell.model_copy(update={"arm": "byol", "rela": None, "budget": 1.0})
    return cell_id(plain, Inputs(data="d" * 16, prior=None, method_version=1, params={}))


def read(
    tmp_path: Path,
    joules: bool = False,
    text: str = GRID,
    change: Callable[[Finished], Finished] = lambda record: record,
) -> Collected:
    (tmp_path / "trial.yaml").write_text(text)
    grid: Grid = load_grid(str(tmp_path / "trial.yaml"))
    for cell in expand(grid):
        write_record(change(record_of(cell, joules)), tmp_path / "records")
    return collect(grid, tmp_path / "records")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Collected:
    return read(tmp_path_factory.mktemp("found"), joules=True)


def pick(found: Collected, arm: str, budget: float, seed: int = 0) -> Finished:
    return next(
        record
        for record in found.done
        if (record.cell.arm, record.cell.budget, record.cell.seed) == (arm, budget, seed)
    )


def arm_of(found: Collected, name: str) -> Arm:
    return next(arm for arm in found.grid.arms if (arm.name or arm.method) == name)


def test_ledgers_are_nested(found: Collected) -> None:
    costs = Costs(found)
    own, rand, public, plain = (pick(found, arm, 0.5) for arm in ("own", "random", "public", "byol"))
    assert [costs.of(own, FLOP, ledger) for ledger in (ALONE, TARGETS)] == [450_000, 470_000]
    # byol at full budget took 1,000,000; two cells of this seed use its backbone: own at 25 and at 50 %.
    assert costs.of(own, FLOP, PRIOR) == 470_000 + 1_000_000 / 2
    assert costs.of(own, STEPS, PRIOR) == 500 + 1000 / 2
    assert costs.of(own, SECONDS, PRIOR) == pytest.approx(50 + 2 + 100 / 2)
    assert costs.of(own, JOULES, PRIOR) == pytest.approx(1500 + 40 + 3000 / 2)
    assert costs.of(own, IMAGES, TARGETS) == 32_000 + 1437
    assert costs.of(rand, FLOP, PRIOR) == 470_000, "nothing was trained"
    assert costs.of(public, FLOP, PRIOR) is None, "nobody knows"
    assert [costs.of(plain, FLOP, ledger) for ledger in (ALONE, TARGETS, PRIOR)] == [500_000] * 3
    assert costs.of(own, FLOP, TARGETS, own.curve[0]) == 225_000 + 20_000, "targets come before training"


def test_targets_made_beside_other_work_have_flop_but_no_seconds(tmp_path: Path) -> None:
    def busy(record: Finished) -> Finished:
        made = record.ledger.targets
        if made is None:
            return record
        made = made.model_copy(update={"other_load": 0.5})
        return record.model_copy(update={"ledger": record.ledger.model_copy(update={"targets": made})})

    found = read(tmp_path, change=busy)
    own = pick(found, "own", 0.5)
    assert found.costs.of(own, FLOP, TARGETS) == 470_000
    assert found.costs.of(own, SECONDS, TARGETS) is None
    assert found.costs.of(own, SECONDS, ALONE) == pytest.approx(50)


def test_a_cost_that_one_seed_does_not_know_is_not_that_of_the_others(tmp_path: Path) -> None:
    def busy(record: Finished) -> Finished:
        if record.cell.arm != "own" or record.cell.seed:
            return record
        return record.model_copy(update={"ledger": record.ledger.model_copy(update={"other_load": 0.5})})

    half = next(row for row in judged(read(tmp_path, change=busy)) if row[0].claim.arm == "own")
    by = {one.currency: one for one in half if one.ledger == ALONE}
    assert by[STEPS].ratio
    assert (by[SECONDS].ratio, by[SECONDS].verdict, by[SECONDS].n) == (None, "inconclusive", 4)


def test_what_was_not_measured_has_no_column(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert JOULES not in Costs(found).currencies
    assert Costs(found).of(found.done[0], JOULES, ALONE) is None
    assert "Joules" not in verdict_table(judged(found)).head


def test_joules_have_a_column_where_they_were_measured(found: Collected) -> None:
    assert "Joules" in verdict_table(judged(found)).head


def test_a_claim_on_every_arm_is_judged_in_every_currency_and_ledger(found: Collected) -> None:
    own, rand, public = statements(found.grid)
    assert [one.name for one in (own, rand, public)] == ["half: own", "half: random", "half: public"]
    assert {one.baseline for one in (own, rand, public)} == {"byol"}
    judgements = judged(found)
    verdicts = {(j.ledger, j.currency): j.verdict for j in judgements[0]}
    assert len(verdicts) == 3 * len(CURRENCIES)
    assert {verdicts[ledger, currency] for ledger in (ALONE, TARGETS) for currency in CURRENCIES} == {"reproduced"}
    assert {verdicts[PRIOR, currency] for currency in CURRENCIES} == {"not reproduced"}, "a prior for two cells alone"
    # 70 against 60 points, but for a random prior 45: worse than byol at any price.
    assert {j.verdict for j in judgements[1]} == {"not reproduced"}
    unknown = [j for j in judgements[2] if j.ledger == PRIOR]
    assert {(j.verdict, j.ratio, j.seeds) for j in unknown} == {("inconclusive", None, None)}


def test_a_seed_that_collapsed_is_named_beside_the_verdict(tmp_path: Path) -> None:
    def collapsed(record: Finished) -> Finished:
        if (record.cell.arm, record.cell.budget, record.cell.seed) != ("own", 0.5, 2):
            return record
        return with_end(record, 0.2)

    found = read(tmp_path, change=collapsed)
    own, rand, _ = judged(found)
    assert (own[0].apart, rand[0].apart) == (2, None)
    assert own[0].verdict == "inconclusive"
    (note, *_), (other, *_) = ([row[2].note for row in verdict_table([each]).rows] for each in (own, rand))
    assert (note, other) == ("seed 2 apart", "")
    text = certainty(judged(found))
    assert "'Seed ... apart': the spread of the other seeds does not explain its difference" in text


def test_the_sentence_under_the_verdicts_has_the_error_of_so_many_test_images(found: Collected) -> None:
    own, rand, public = (each[0].error for each in judged(found))
    # Four seeds each a point above the other: means are 1.5 points above the first. 400 images.
    assert own == pytest.approx(math.sqrt((0.715 * 0.285 + 0.615 * 0.385) / 400))
    assert rand == pytest.approx(math.sqrt((0.465 * 0.535 + 0.615 * 0.385) / 400))
    assert public is not None
    text = certainty(judged(found))
    assert f"other test images, which add a standard error of up to {100 * rand:.1f} points, nor" in text
    old = replace(found, results=tuple(replace(r, done=tuple(map(unknown_images, r.done))) for r in found.results))
    assert [each[0].error for each in judged(old)] == [None] * 3
    assert "nothing of other test images nor of" in certainty(judged(old))


def unknown_images(record: Finished) -> Finished:
    return record.model_copy(update={"test_images": None})


def test_the_room_for_a_prior_of_unknown_cost(found: Collected) -> None:
    (line,) = rooms(found, judged(found))
    # 0.55 x 1,000,000 - 470,000 = 80,000 FLOP of 1,000,000.
    assert "half: public" in line
    assert "at most 8.0e-08 TFLOP, 8% of what the baseline took" in line
    quarter = found.grid.claims[0].model_copy(update={"name": "quarter", "arm": "public", "budget": 0.25, "share": 0.3})
    both = replace(found, grid=found.grid.model_copy(update={"claims": (*found.grid.claims, quarter)}))
    line, other = rooms(both, judged(both))
    assert "half: public" in line
    assert "8% of what" in line
    assert other.startswith("quarter, ")
    assert "at most 5.5e-08 TFLOP, 5.5% of what the baseline took" in other, "each claim has its own"


def test_the_share_of_the_targets_is_that_of_the_full_cost(found: Collected) -> None:
    table = targets_table(found)
    assert len(table.rows) == 3
    flops, seconds = table.head.index("Targets, share of FLOP"), table.head.index("Targets, share of Seconds")
    for row in table.rows:
        assert (row[flops].text, row[flops].note) == ("reproduced", "(2%)")
        assert (row[seconds].text, row[seconds].note) == ("reproduced", "(2%)")
    strict = found.grid.model_copy(update={"targets_share": 0.019})
    table = targets_table(replace(found, grid=strict))
    assert {row[flops].text for row in table.rows} == {"not reproduced"}


def test_the_cost_to_a_target_is_that_of_the_first_evaluation_there(found: Collected) -> None:
    spent = spending(found, found.groups[0], arm_of(found, "byol"), STEPS, ALONE)
    # Halfway the accuracies are 20, 25 and 30 %, at the end 40, 50 and 60 %: after 125 to 1,000 steps.
    expected = {0.31: 250, 0.41: 500, 0.5: 500, 0.55: 1000, 0.6: 1000, 0.61: math.inf}
    for target, steps in expected.items():
        assert spent.to_reach(target, [0]).tolist() == [[steps], [steps]], target
    # A run that was there at its first evaluation may have been there before.
    for target, steps in {0.19: 125, 0.2: 125, 0.24: 250, 0.3: 250}.items():
        assert spent.to_reach(target, [0]).tolist() == [[0], [steps]], target


def curve_of(record: Finished, *accuracies: float) -> Finished:
    """The record with these evaluations, at equal distances."""
    end, count = record.curve[-1], len(accuracies)
    points = (
        end.model_copy(update={"step": end.step * (i + 1) // count, "score": Score(linear=(value,), knn=0.3)})
        for i, value in enumerate(accuracies)
    )
    return record.model_copy(update={"curve": tuple(points)})


def test_a_target_is_held_at_all_later_evaluations_and_at_the_ends_of_larger_budgets(tmp_path: Path) -> None:
    runs = {0.25: (0.2, 0.5, 0.3, 0.45, 0.55), 0.5: (0.1, 0.6, 0.5, 0.35, 0.53), 1.0: (0.3, 0.2, 0.62, 0.61, 0.5)}

    def change(record: Finished) -> Finished:
        return curve_of(record, *runs[record.cell.budget]) if record.cell.arm == "byol" else record

    found = read(tmp_path, change=change)
    spent = spending(found, found.groups[0], arm_of(found, "byol"), STEPS, ALONE)
    # 50 and 55 % are reached at 250 steps, but 53 % at 500 is below, and 50 % at 1,000.
    expected = {0.25: 100, 0.31: 200, 0.44: 200, 0.46: 250, 0.5: 250, 0.51: math.inf}
    for target, steps in expected.items():
        assert spent.to_reach(target, [1]).tolist() == [[steps], [steps]], target
    assert spent.to_reach(0.2, [1]).tolist() == [[0], [50]]


def test_one_that_was_there_before_its_first_evaluation_saves_a_bound(tmp_path: Path) -> None:
    """At 45 %: own is there from the start, byol from the second of its evaluations, random from the second."""
    curves = {"byol": (0.4, 0.5, 0.6), "own": (0.5, 0.6, 0.7), "random": (0.44, 0.46, 0.6), "public": (0.3, 0.4, 0.6)}
    found = read(tmp_path, change=lambda record: curve_of(record, *curves[record.cell.arm]))
    group = found.groups[0]
    spent = {name: spending(found, group, arm_of(found, name), STEPS, ALONE) for name in curves}
    exact = saving(spent["random"], spent["byol"], 0.45)
    at_least, at_most = (saving(spent[one], spent[other], 0.45) for one, other in (("own", "byol"), ("byol", "own")))
    neither = saving(spent["own"], spent["own"], 0.45)
    assert exact
    assert at_least
    assert at_most
    assert neither
    assert (exact.bound, exact.share, exact.low) == ("", 0, 0)
    # Own after 83 of 250 steps, byol after 166.
    assert (at_least.bound, at_least.share, at_least.low) == ("at least", 1 - 83 / 166, None)
    assert (at_most.bound, at_most.share, at_most.exact) == ("at most", 1 - 166 / 83, False)
    assert (neither.bound, neither.exact) == ("not comparable", False)
    rows = [row for row in saving_table(found).rows if row[1].text == "own"]
    texts = [f"{row[3].text} {row[3].note}".strip() for row in rows]
    # Targets from 40 to 60 %; own is at 50 from the start, and at 55 and 60 in the second evaluation.
    assert texts == ["not comparable", "at least 50%", "at least 50%", "34% (34% to 34%)", "34% (34% to 34%)"]


def test_a_bound_of_the_median_is_what_the_seeds_beside_it_leave_open(found: Collected) -> None:
    """The seed below the median may have been there before, or not: the median is the same."""
    cost = np.array([[10.0, 20.0], [10.0, 20.0], [10.0, 20.0]])
    first = np.array([[1.0, 0.0]] * 3)
    theirs = Spending((0, 1, 2), np.array([[0.1, 0.5]] * 3), cost, first)
    one = Spending((0, 1, 2), np.array([[0.5, 0.5], [0.1, 0.5], [0.1, 0.5]]), cost, first)
    two = Spending((0, 1, 2), np.array([[0.5, 0.5], [0.5, 0.5], [0.1, 0.5]]), cost, first)
    bounds = [each.bound for ours in (one, two) if (each := saving(ours, theirs, 0.5))]
    assert bounds == ["", "at least"]


@pytest.mark.parametrize("evaluations", [2, 4, 6, 10])
def test_an_arm_below_the_target_rarely_reaches_it_by_chance(evaluations: int) -> None:
    """By its best evaluation, it would in 20, 49, 71 and 91 % of experiments."""
    count = 20_000
    accuracy = np.random.default_rng(evaluations).normal(0.495, 0.005, (3 * count, evaluations))
    cost = np.tile(np.arange(1.0, evaluations + 1), (3 * count, 1))
    reached = {}
    for name, values in (("held", held(accuracy)), ("best", accuracy)):
        arm = Spending(tuple(range(3 * count)), values, cost, np.zeros_like(cost))
        spent = arm.to_reach(0.5, range(3 * count))[1].reshape(count, 3)
        reached[name] = float(np.isfinite(np.median(spent, axis=1)).mean())
    assert 100 * reached["held"] == pytest.approx(float(REACHED_BY_CHANCE.removesuffix(" %")), abs=0.8)
    assert reached["best"] == pytest.approx({2: 0.20, 4: 0.49, 6: 0.71, 10: 0.91}[evaluations], abs=0.02)


def test_targets_end_at_the_median_of_the_full_budget(found: Collected) -> None:
    wanted = targets(found, found.groups[0], arm_of(found, "byol"), 5)
    assert wanted[0] == pytest.approx(0.20)
    assert wanted[-1] == statistics.median_low([0.60, 0.61, 0.62, 0.63])


@pytest.mark.parametrize("bottom", [0.07, 0.1, 0.21, 0.3])
def test_the_plain_method_reaches_its_own_median(tmp_path: Path, bottom: float) -> None:
    """Also where the steps between targets add up to a little more."""
    found = read(tmp_path, change=lambda record: curve_of(record, bottom, record.curve[-1].score.linear[0]))
    group, plain = found.groups[0], arm_of(found, "byol")
    spent = spending(found, group, plain, STEPS, ALONE)
    for count in range(2, 40):
        top = targets(found, group, plain, count)[-1]
        assert np.isfinite(np.median(spent.to_reach(top, spent.seeds)[1])), count


def test_the_saving_and_its_bootstrap(found: Collected) -> None:
    group = found.groups[0]
    ours, theirs = (spending(found, group, arm_of(found, name), FLOP, TARGETS) for name in ("own", "byol"))
    one = saving(ours, theirs, 0.61)
    assert one is not None
    # own: seeds reach 61 % at the end of 50 % (70 to 73); byol: 60 % misses, the others at the end of 100 %.
    assert (one.n, one.arm, one.baseline) == (4, 470_000, 1_000_000)
    assert one.share == pytest.approx(0.53)
    # All 256 ways to draw four seeds: the median of byol is infinite where two or more of the four are seed 0.
    costs = np.array([math.inf, 1e6, 1e6, 1e6])
    medians = [np.median(costs[list(each)]) for each in itertools.product(range(4), repeat=4)]
    infinite = np.mean(np.isinf(medians))
    assert 0.025 < infinite < 0.975
    assert one.low == pytest.approx(0.53)
    assert one.high == math.inf, "only the arm gets there in more than 2.5 % of the draws"


def test_misses_are_infinite_and_stay_in_the_median(found: Collected) -> None:
    group = found.groups[0]
    byol, rand = (spending(found, group, arm_of(found, name), STEPS, ALONE) for name in ("byol", "random"))
    missed = saving(rand, byol, 0.58)
    assert missed is not None
    assert math.isinf(missed.arm)
    assert missed.share == -math.inf
    there_at_once = Spending((0,), np.array([[0.5]]), np.array([[10.0]]), np.array([[1.0]]))
    never = saving(Spending((0,), np.array([[0.1]]), np.array([[10.0]]), np.array([[1.0]])), there_at_once, 0.5)
    assert never is not None
    assert (never.share, never.bound, never.exact) == (-math.inf, "", False)
    neither = saving(rand, rand, 0.9)
    assert neither is not None
    assert math.isnan(neither.share)
    assert neither.low is neither.high is None
    texts = {entry.text for row in saving_table(found).rows for entry in row}
    assert "not reached" in texts


def test_the_smallest_budget_that_suffices(found: Collected) -> None:
    rows, bold = {}, {}
    for _, arm, *rest in smallest_table(found).rows:
        rows[arm.text] = [f"{entry.text} {entry.note}".strip() for entry in rest]
        bold[arm.text] = [entry.text for entry in rest if entry.bold]
    # Differences are the same in all seeds: bounds are the means. The margin is one point.
    assert rows["own"] == ["50%", "up to 25%", "50.0%", "47.0%", "52.0% (52.0 to 52.0%)", "4"]
    assert rows["public"] == ["25%", "none tried", "25.0%", "24.5%", "27.0% (27.0 to 27.0%)", "4"]
    assert rows["random"] == ["none tried", "up to 50%", "—", "—", "—", "4"]
    assert rows["byol"] == ["none tried", "up to 50%", "—", "—", "—", "4"]
    assert bold == {"own": ["50%"], "public": ["25%"], "random": [], "byol": []}


def test_a_budget_suffices_only_where_all_larger_ones_do(tmp_path: Path) -> None:
    def other(record: Finished) -> Finished:
        """Own suffices at a quarter and not at half; random does at half, and a quarter is ruled out."""
        ends = {("own", 0.25): 0.70, ("own", 0.5): 0.55, ("random", 0.25): 0.41, ("random", 0.5): 0.65}
        end = ends.get((record.cell.arm, record.cell.budget))
        if end is None:
            return record
        score = Score(linear=(end + 0.01 * record.cell.seed,), knn=0.3)
        return record.model_copy(
            update={"curve": (record.curve[0], record.curve[1].model_copy(update={"score": score}))}
        )

    table = smallest_table(read(tmp_path, change=other))
    rows = {row[1].text: [entry.text for entry in row[2:4]] for row in table.rows}
    assert rows["own"] == ["none tried", "none tried"]
    assert rows["random"] == ["50%", "up to 25%"]
