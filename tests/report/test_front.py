"""The ways to save, ranked: each number against scipy's, each front and rank against a search of all pairs."""

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from bench.report.blocks import Bullets
from bench.report.collect import Collected
from bench.report.costs import FLOP, SECONDS, STEPS
from bench.report.sections.front import certainty, combined_table, on_front, rela_places, section, ways_table
from bench.report.tables import NONE, Table
from bench.store.record import Finished
from tests.report.test_saving import GRID, read, with_end
from tests.report.test_shared_device import with_ledger

WAYS = """
backbone: resnet_small
datasets: [digits]
budgets: [0.25, 0.5]
seeds: [0, 1, 2]
arms:
  - {method: byol, budgets: [0.25, 0.5, 1.0]}
  - {name: own, method: byol, rela: {prior: rand}}
  - {name: small, method: byol, accelerate: {name: small}}
  - {name: both, method: byol, rela: {prior: rand}, accelerate: {name: small}}
  - {name: distilled, method: byol, accelerate: {name: simreg, prior: rand}}
  - {name: shuffled, method: byol, rela: {prior: rand, shuffle: true}}
"""
ARMS = ("byol", "own", "small", "both", "distilled", "shuffled")
BUDGETS = (0.25, 0.5, 1.0)
SEEDS = (0, 1, 2)
TARGETS_FLOP, TARGETS_SECONDS = 20_000, 2.0  # of test_saving's records with ReLA
Told = dict[tuple[str, float], np.ndarray]


def told(low: float, high: float, seed: int) -> Told:
    """Return a value for each arm, budget and seed, drawn between two."""
    draw = np.random.default_rng(seed)
    return {key: draw.uniform(low, high, len(SEEDS)) for key in itertools.product(ARMS, BUDGETS)}


ACCURACY, SPENT = told(0.4, 0.9, 3), told(20.0, 90.0, 5)
FLOPS = {key: np.full(3, int(each.mean() * 1e4)) for key, each in told(20.0, 90.0, 7).items()}


def as_told(record: Finished) -> Finished:
    """Return the record with the accuracy, the FLOP and the seconds that are told of its cell."""
    cell = record.cell
    accuracy, flops, seconds = (each[cell.arm, cell.budget][cell.seed] for each in (ACCURACY, FLOPS, SPENT))
    spent = {"flops": int(flops), "seconds": float(seconds)}
    curve = (*record.curve[:-1], record.curve[-1].model_copy(update=spent))
    return with_end(record.model_copy(update={"curve": curve}), float(accuracy))


def cost(arm: str, budget: float, currency: Any) -> np.ndarray:
    """Return what the seeds of an arm took, with the targets of those with ReLA."""
    rela = arm in {"own", "both", "shuffled"}
    if currency is STEPS:
        return np.full(3, 1000 * budget)
    own, targets = (FLOPS, TARGETS_FLOP) if currency is FLOP else (SPENT, TARGETS_SECONDS)
    return own[arm, budget] + rela * targets


def budgets(arm: str) -> tuple[float, ...]:
    return BUDGETS if arm == "byol" else BUDGETS[:2]


THERE = [(arm, budget) for arm in ARMS for budget in budgets(arm)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Collected:
    return read(tmp_path_factory.mktemp("ways"), text=WAYS, change=as_told)


def cells(table: Table, *names: str) -> dict[str, str]:
    """Return the texts of the row that begins with these, by the heads."""
    rows = [row for row in table.rows if tuple(entry.text for entry in row[: len(names)]) == names]
    assert len(rows) == 1, names
    return {head: f"{one.text} {one.note}".strip() for head, one in zip(table.head, rows[0], strict=True)}


def numbers(text: str) -> list[float]:
    return [float(each.replace(",", "")) for each in re.findall(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?", text)]


def between(values: np.ndarray) -> tuple[float, ...]:
    """Return the mean and scipy's 95 % interval of it."""
    return (values.mean(), *stats.ttest_1samp(values, 0.0).confidence_interval(0.95))


@pytest.mark.parametrize(("arm", "budget"), THERE)
def test_each_arm_has_its_accuracy_and_costs_beside_those_of_the_plain_method(
    arm: str, budget: float, found: Collected
) -> None:
    row = cells(ways_table(found, found.groups[0]), arm, f"{100 * budget:g}%")
    accuracy = ACCURACY[arm, budget]
    assert numbers(row["Linear, %"]) == pytest.approx([100 * accuracy.mean(), 100 * accuracy.std(ddof=1), 3], abs=0.05)
    if arm == "byol":
        assert row["Above plain"] == ""
    else:
        above = between(100 * (accuracy - ACCURACY["byol", budget]))
        assert numbers(row["Above plain"]) == pytest.approx([*above, 3], abs=0.051)
    for head, currency, scale in (("TFLOP", FLOP, 1e12), ("Seconds", SECONDS, 1), ("Steps", STEPS, 1)):
        ours = cost(arm, budget, currency)
        spread = [ours.std(ddof=1) / scale] if currency is SECONDS else []
        assert numbers(row[head]) == pytest.approx([ours.mean() / scale, *spread], rel=0.05)
        for of, other in (("plain's", budget), ("plain's largest", 1.0)):
            if (arm, budget) == ("byol", other):
                assert row[f"{head}, of {of}"] == ""
                continue
            logs = np.log(ours / cost("byol", other, currency))
            shares = 100 * np.exp(between(logs) if currency is SECONDS else [logs.mean()])
            assert numbers(row[f"{head}, of {of}"]) == pytest.approx(list(shares), abs=0.051)


def best(points: list[tuple[float, float]]) -> list[bool]:
    """Tell of each (cost, accuracy) whether no other is as cheap and as accurate, and better in one of the two."""
    return [
        not any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in points)
        for cost, accuracy in points
    ]


def test_on_the_front_is_what_no_other_arm_beats_in_cost_and_accuracy(found: Collected) -> None:
    table = ways_table(found, found.groups[0])
    assert table.head[-1] == "Front of FLOP, Seconds, Steps"
    expected = {key: [] for key in THERE}
    for currency in (FLOP, SECONDS, STEPS):
        on = best([(cost(*key, currency).mean(), ACCURACY[key].mean()) for key in THERE])
        assert True in on
        assert False in on
        for key, yes in zip(THERE, on, strict=True):
            expected[key] += [currency.value] * yes
    for (arm, budget), where in expected.items():
        assert cells(table, arm, f"{100 * budget:g}%")[table.head[-1]] == (", ".join(where) or "no")


def test_arms_of_one_cost_and_accuracy_are_on_the_front_together(found: Collected) -> None:
    result = next(each for each in found.results if each.arm.name == "own")
    assert on_front(found, [result, replace(result, label="twin")], FLOP) == [True, True]


def ranks(names: list[str], budget: float, seed: int | slice) -> dict[str, int]:
    accuracy = [np.mean(ACCURACY[name, budget][seed]) for name in names]
    return dict(zip(names, stats.rankdata(-np.array(accuracy), "min").astype(int).tolist(), strict=True))


def test_relas_place_is_among_the_accelerated_arms_and_on_the_front_in_so_many_seeds(found: Collected) -> None:
    """A control with shuffled targets is on the front, if it is, but has no rank."""
    names = ["own", "small", "both", "distilled"]
    lines = [line for _, line in rela_places(found, found.groups[0])]
    assert len(lines) == 2
    for budget, line in zip(BUDGETS, lines, strict=False):
        each = [ranks(names, budget, seed)["own"] for seed in SEEDS]
        text = (
            f"own at {100 * budget:g}%: rank {ranks(names, budget, slice(None))['own']} of 4 accelerated arms by mean"
        )
        text += f" accuracy ({min(each)} to {max(each)} over 3 seeds)"
        for currency, word in ((FLOP, "FLOP"), (SECONDS, "seconds"), (STEPS, "steps")):
            on = 0
            for seed in SEEDS:
                points = [(float(cost(*key, currency)[seed]), float(ACCURACY[key][seed])) for key in THERE]
                on += best(points)[THERE.index(("own", budget))]
            text += f"; on the front of {word} in {on} of 3"
        assert line == f"{text}."
        assert min(each) < max(each), "or the range would show nothing"


def without(found: Collected, arm: str, seed: int) -> Collected:
    """Return what was collected without one record of an arm at each budget."""
    kept = (
        replace(r, done=tuple(one for one in r.done if (one.cell.arm, one.cell.seed) != (arm, seed)))
        for r in found.results
    )
    return replace(found, results=tuple(kept))


def test_ranks_are_over_the_seeds_that_all_have(found: Collected) -> None:
    names = ["own", "small", "both", "distilled"]
    (n, line), *_ = rela_places(without(found, "small", 2), found.groups[0])
    each = [ranks(names, 0.25, seed)["own"] for seed in (0, 1)]
    over = ranks(names, 0.25, slice(0, 2))["own"]
    assert n == 2
    assert f"rank {over} of 4 accelerated arms by mean accuracy ({min(each)} to {max(each)} over 2 seeds)" in line
    assert re.search(r"of FLOP in \d of 2;", line)


def test_seconds_that_were_not_measured_alone_count_nowhere(tmp_path: Path, found: Collected) -> None:
    def beside(record: Finished) -> Finished:
        record = as_told(record)
        return with_ledger(record, side_by_side=2) if (record.cell.arm, record.cell.seed) == ("small", 1) else record

    one = read(tmp_path, text=WAYS, change=beside)
    table, before = (ways_table(each, each.groups[0]) for each in (one, found))
    assert table.head[-1] == "Front of FLOP, Steps", "one whose seconds nobody knows may be the cheapest"
    small, own = cells(table, "small", "50%"), cells(table, "own", "50%")
    assert {small[head] for head in small if head.startswith("Seconds")} == {NONE}
    assert own["Seconds"] == cells(before, "own", "50%")["Seconds"]
    assert small["TFLOP"] == cells(before, "small", "50%")["TFLOP"]
    lines = [line for _, line in rela_places(one, one.groups[0])]
    assert lines
    # Of the seeds of all arms, those of which the seconds are known.
    assert all("of seconds in" in line and line.split("of seconds in ")[1][4:6] in {" 2", "2;"} for line in lines)


def test_a_report_without_any_seconds_has_no_column_of_them(tmp_path: Path) -> None:
    found = read(tmp_path, text=WAYS, change=lambda record: with_ledger(as_told(record), side_by_side=2))
    assert not any("Seconds" in head for head in ways_table(found, found.groups[0]).head)
    assert not any("Seconds" in line for _, line in rela_places(found, found.groups[0]))


def of_three(own: float, small: float, spread: float, flops: int) -> Callable[[Finished], Finished]:
    """Return what puts `both` so far above the two alone, give or take a spread, at so many FLOP."""
    ends = {"both": 0.7, "own": 0.7 - own, "small": 0.7 - small}

    def change(record: Finished) -> Finished:
        cell = record.cell
        end = ends.get(cell.arm, 0.5) + (spread * (cell.seed - 1) if cell.arm == "both" else 0.0)
        took = flops if cell.arm == "both" else 300_000
        curve = (*record.curve[:-1], record.curve[-1].model_copy(update={"flops": took}))
        return with_end(record.model_copy(update={"curve": curve}), end)

    return change


@pytest.mark.parametrize(
    ("own", "small", "spread", "flops", "answer"),
    [
        (0.05, 0.03, 0.01, 280_000, "yes"),  # with its targets as much as the accelerator alone
        (0.05, 0.03, 0.01, 280_001, "no"),
        (0.05, 0.02, 0.01, 200_000, "undecided"),  # 2 ± 2.48 points
        (0.05, -0.03, 0.01, 200_000, "no"),
    ],
)
def test_a_combination_is_better_than_both_where_it_is_above_each_at_no_more_flop(
    own: float, small: float, spread: float, flops: int, answer: str, tmp_path: Path
) -> None:
    found = read(tmp_path, text=WAYS, change=of_three(own, small, spread, flops))
    table = combined_table(found, found.groups[0])
    assert len(table.rows) == 4, "two budgets, beside each of the two"
    for name, gap in (("own", own), ("small", small)):
        row = cells(table, "both", "50%", name)
        assert row["Better than both"] == answer
        assert numbers(row["Above"]) == pytest.approx([*between(100 * (gap + spread * np.arange(-1, 2))), 3], abs=0.051)
        assert numbers(row["TFLOP"]) == pytest.approx([(flops + TARGETS_FLOP) / 1e12], rel=0.05)
        alone = 300_000 + (TARGETS_FLOP if name == "own" else 0)
        assert numbers(row["Alone, TFLOP"]) == pytest.approx([alone / 1e12], rel=0.05)
        assert numbers(row["Alone, %"]) == pytest.approx([100 * (0.7 - gap), 0, 3], abs=0.05)


SMALL = "{name: small, method: byol, accelerate: {name: small}}"
OTHER = "{name: other, method: byol, recipe: {lr: 0.5}, accelerate: {name: small}}"


@pytest.mark.parametrize(
    ("arms", "beside"),
    [
        (SMALL.replace("{name: small}", "{name: small, x: 1}"), set()),
        (OTHER, {"own", "other"}),  # each has the recipe that suits it
        (f"{OTHER}\n  - {SMALL}", {"own", "small"}),
    ],
)
def test_a_combination_stands_beside_arms_that_differ_in_their_recipes_at_most(
    arms: str, beside: set[str], tmp_path: Path
) -> None:
    found = read(tmp_path, text=WAYS.replace(SMALL, arms), change=of_three(0.05, 0.03, 0.01, 200_000))
    assert {row[2].text for row in combined_table(found, found.groups[0]).rows} == beside


def test_nothing_is_above_a_plain_method_that_learned_nothing(tmp_path: Path) -> None:
    def collapsed(record: Finished) -> Finished:
        score = record.curve[-1].score.model_copy(update={"effective_rank": 1.0})
        bad = record.curve[-1].model_copy(update={"score": score})
        return record.model_copy(update={"curve": (*record.curve[:-1], bad)}) if record.cell.arm == "byol" else record

    found = read(tmp_path, text=WAYS, change=collapsed)
    assert cells(ways_table(found, found.groups[0]), "own", "50%")["Above plain"] == f"{NONE} ‡"


@pytest.mark.parametrize("n", [2, 3, 5])
def test_what_n_seeds_say_of_a_rank_is_counted_out(n: int) -> None:
    orders = list(itertools.permutations(range(n + 1)))  # of n seeds and a further one, the last
    inside = np.mean([min(order[:n]) < order[n] < max(order[:n]) for order in orders])
    ordered = np.mean([len(set(ahead)) == 1 for ahead in itertools.product((0, 1), repeat=n)])
    text = certainty(n)
    assert f"with n = {n}, a further seed ranks within it with a chance of at least {100 * inside:.3g}%" in text
    assert f"one is ahead in all {n} with a chance of {100 * ordered:.3g}%" in text
    assert "no range" in certainty(1)


def test_the_section_is_there_where_an_accelerator_has_no_prior(tmp_path: Path, found: Collected) -> None:
    blocks = list(section(found))
    assert next(len(block.items) for block in blocks if isinstance(block, Bullets)) == 2
    controls = GRID.replace("claims:", "  - {name: it, method: byol, accelerate: {name: simreg, prior: rand}}\nclaims:")
    for index, text in enumerate((GRID, controls)):
        (tmp_path / str(index)).mkdir()
        assert list(section(read(tmp_path / str(index), text=text))) == []
