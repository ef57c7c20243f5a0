"""Records matched to the cells of a grid, and the numbers that are made of them."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.core.errors import NotMadeError
from bench.data import short_name
from bench.grid.cell import BASELINE, Arm, Cell, arm_name, is_plain, trained_on
from bench.grid.expand import REHEARSAL, expand
from bench.grid.schema import Grid
from bench.grid.tune import trial_name
from bench.report.costs import Costs
from bench.report.facts import Summary, learned, summarise
from bench.report.labels import Family, arm_labels, families, percent
from bench.report.trials import Trials
from bench.store.evaluated import Evaluated, latest_of
from bench.store.reading import Damaged
from bench.store.record import Failed, Finished, Record, read_records


@dataclass(frozen=True)
class Group:
    """A dataset as it was when the records were made; results on different data are never put together.

    `data` is the digest of its content, "" where nothing was recorded; `label` tells the groups of a grid apart.
    """

    dataset: str
    title: str
    data: str
    label: str


@dataclass(frozen=True)
class Result:
    """An arm at one budget on one group's data: its planned seeds and what there is of them."""

    group: Group
    arm: Arm
    label: str
    budget: float
    seeds: tuple[int, ...]
    done: tuple[Finished, ...]
    failed: tuple[Failed, ...]
    trials: Trials | None = None  # that choose its recipe

    @property
    def name(self) -> str:
        """What to call it: its data, arm and budget."""
        return f"{self.group.label}, {self.label} at {percent(self.budget)}"

    @property
    def missing(self) -> list[int]:
        """Seeds without a record."""
        there = {record.cell.seed for record in (*self.done, *self.failed)}
        return [seed for seed in self.seeds if seed not in there]

    @property
    def learned(self) -> bool | None:
        """Whether all finished seeds learned anything; None where that was not measured, and none is known to fail."""
        answers = [learned(record) for record in self.done]
        return False if False in answers else None if None in answers or not answers else True

    def over_seeds(self, value: Callable[[Finished], float | None]) -> Summary | None:
        """Summarise a value of the finished seeds, None where nothing was measured."""
        return summarise(value(record) for record in self.done)

    def mean(self, value: Callable[[Finished], float | None]) -> float | None:
        """Return the mean of a value of the finished seeds, None where nothing was measured."""
        summary = self.over_seeds(value)
        return summary.mean if summary else None


Used = dict[tuple[Group, str, float], list[Record]]  # by group, arm and budget


@dataclass(frozen=True, eq=False)
class Collected:
    """All that a report shows; one is equal to no other, so that what is worked out of it can be kept.

    `left_out` counts records of other settings; `replaced` are records of planned cells of which another is used.
    """

    grid: Grid
    planned: tuple[Cell, ...]
    groups: tuple[Group, ...]
    families: tuple[Family, ...]
    results: tuple[Result, ...]
    left_out: int
    replaced: tuple[Record, ...]
    damaged: tuple[Damaged, ...]
    evaluated: Mapping[str, tuple[Evaluated, ...]]  # the further evaluations of cells, by their ids

    @cached_property
    def groups_done(self) -> list[Group]:
        """The groups in which something is finished."""
        return [group for group in self.groups if self.finished(group)]

    def finished(self, group: Group) -> list[Result]:
        """Return a group's results in which something is finished."""
        return [result for result in self.results if result.group == group and result.done]

    def find(self, group: Group, arm: Arm | None, budget: float) -> Result | None:
        """Return an arm's result, None where the grid does not plan it."""
        return self._places.get((group, arm_name(arm), budget)) if arm else None

    def why_skipped(self, result: Result, seed: int) -> str | None:
        """Return why a cell without a record is none that merely has not run yet: what it needs is no good."""
        if result.trials and len(result.trials.failed) == result.trials.tuning.trials:
            return "all trials that choose its recipe have failed"
        needed = self._needed(result)
        if needed is None:
            return None
        bad = next((record.status for record in needed.failed if record.cell.seed == seed), None)
        if bad is None and seed in needed.missing and self.why_skipped(needed, seed):
            bad = "skipped"
        return f"it needs {needed.name}, which is {bad}" if bad else None

    def _needed(self, result: Result) -> Result | None:
        """Return the results that those of an arm are made from: its prior's, or those whose cost it matches."""
        arm = result.arm
        if arm.matches:
            return self._places.get((result.group, arm.matches, result.budget))
        short = next(filter(None, map(trained_on, arm.priors)), None)
        makers = (
            each
            for each in self.results
            if each.arm.method == BASELINE and is_plain(each.arm) and not each.arm.params and each.budget == 1.0
        )
        return next((each for each in makers if short and short_name(each.group.dataset) == short), None)

    def done_of(self, group: Group, arm: Arm) -> list[Result]:
        """Return an arm's results in which something is finished, by rising budget."""
        there = (self.find(group, arm, budget) for budget in sorted(arm.budgets or self.grid.budgets))
        return [result for result in there if result and result.done]

    @cached_property
    def costs(self) -> Costs:
        """What the records cost."""
        return Costs(self)

    def label(self, arm: Arm) -> str:
        """Return what to call an arm."""
        return self._labels[arm_name(arm)]

    @cached_property
    def _labels(self) -> dict[str, str]:
        return arm_labels(self.grid.arms, tuned=self.grid.tuned)

    @cached_property
    def _places(self) -> dict[tuple[Group, str, float], Result]:
        return {(result.group, arm_name(result.arm), result.budget): result for result in self.results}

    @cached_property
    def done(self) -> list[Finished]:
        """The records that the numbers are made of."""
        return [record for result in self.results for record in result.done]

    @property
    def cells_done(self) -> int:
        """Planned cells with a result, on whatever data."""
        seeds = ((result, record.cell.seed) for result in self.results for record in result.done)
        return len({(each.group.dataset, arm_name(each.arm), each.budget, seed) for each, seed in seeds})


def collect(grid: Grid, folder: Path) -> Collected:
    """Match the records of a folder to the cells of a grid. Raises UserError when no cell has a record."""
    records, damaged = read_records(folder)
    planned = {cell.key(): cell for cell in expand(grid)}
    rehearsal = grid.name.endswith(REHEARSAL)  # whose records never count as real ones, wherever they lie
    keyed = [(record, planned.get(record.cell.key())) for record in records if record.rehearsal == rehearsal]
    matched = [(record, cell) for record, cell in keyed if cell]
    left_out = len(records) - len(matched)
    if not matched:
        others = [f"{left_out} made with other settings"] * bool(left_out)
        others += [f"{len(damaged)} damaged, {damaged[0].path.name}: {damaged[0].reason}"] if damaged else []
        there = f" (there: {'; '.join(others)})" if others else ""
        raise NotMadeError(f"{folder}: no record of grid {grid.name}{there}", "run", *["--rehearse"] * rehearsal)
    group_of = _groups(grid, [record for record, _ in matched])
    used, replaced = _newest(matched, group_of)
    groups, (evaluated, spoilt) = tuple(dict.fromkeys(group_of.values())), latest_of(folder, [r.id for r, _ in matched])
    return Collected(
        grid=grid,
        planned=tuple(cell for cell in planned.values() if cell.validation is None),
        groups=groups,
        families=families(grid),
        results=tuple(_results(grid, groups, used)),
        left_out=left_out,
        replaced=tuple(replaced),
        damaged=(*damaged, *spoilt),
        evaluated=evaluated,
    )


def _results(grid: Grid, groups: Iterable[Group], used: Used) -> Iterator[Result]:
    """Yield the results of all arms, with their trials."""
    labels = arm_labels(grid.arms, tuned=grid.tuned)
    arms = {dataset.name: grid.arms_on(dataset) for dataset in grid.datasets}
    for group in groups:
        for arm in arms[group.dataset]:
            name, trials = arm_name(arm), None
            for budget in arm.budgets or grid.budgets:
                if grid.tune and name in grid.tuned:
                    names = [trial_name(name, number) for number in range(1, grid.tune.trials + 1)]
                    tried = [record for each in names for record in used.get((group, each, budget), [])]
                    trials = Trials(grid.tune, *_done_and_failed(tried))
                there = _done_and_failed(used.get((group, name, budget), []))
                yield Result(group, arm, labels[name], budget, grid.seeds, *there, trials)


def _done_and_failed(records: list[Record]) -> tuple[tuple[Finished, ...], tuple[Failed, ...]]:
    done = tuple(record for record in records if isinstance(record, Finished))
    return done, tuple(record for record in records if isinstance(record, Failed))


def may_be_baseline(result: Result | None) -> bool:
    """Return whether others can be compared with a result: it is not known to have learned nothing."""
    return result is None or result.learned is not False


def pairs(one: Result | None, other: Result | None) -> list[tuple[Finished, Finished]]:
    """Return the finished records of two results that have a seed in common, in the order of the seeds."""
    if not one or not other:
        return []
    others = {record.cell.seed: record for record in other.done}
    return [(record, others[record.cell.seed]) for record in one.done if record.cell.seed in others]


def _groups(grid: Grid, matched: list[Record]) -> dict[tuple[str, str, str], Group]:
    """Return the group of each (dataset, title, data digest), in the order of the grid's datasets.

    A cell that failed knows its dataset's name but not its title: it belongs to the data it was started on. A dataset
    without records has a group of its own, so that what is missing has a place.
    """
    titles: dict[tuple[str, str], set[str]] = defaultdict(set)
    for record in matched:
        if isinstance(record, Finished):
            titles[record.cell.dataset, record.inputs.data].add(record.dataset_title)
    named: dict[tuple[str, str, str], tuple[str, str, str]] = {}
    for record in matched:
        key = (record.cell.dataset, record.dataset_title, record.inputs.data)
        known = titles[record.cell.dataset, record.inputs.data]
        title = record.dataset_title if isinstance(record, Finished) or not known else min(known)
        named[key] = (record.cell.dataset, title, record.inputs.data)
    for dataset in grid.datasets:
        if not any(name == dataset.name for name, _, _ in named):
            named[dataset.name, dataset.name, ""] = (dataset.name, dataset.name, "")
    counts = Counter(title for _, title, _ in set(named.values()))
    order = [dataset.name for dataset in grid.datasets]
    return {
        key: Group(dataset, title, data, title if counts[title] == 1 else f"{title} [{dataset}, data {data or 'none'}]")
        for key, (dataset, title, data) in sorted(named.items(), key=lambda item: (order.index(item[0][0]), item[1]))
    }


def _newest(
    matched: list[tuple[Record, Cell]], group_of: dict[tuple[str, str, str], Group]
) -> tuple[Used, list[Record]]:
    """Return the records to use by group, arm and budget, in the order of their seeds, and those that others replace.

    An arm's records are put together only when method, parameters and prior are of one version, the newest, and those
    of a budget when the same recipe was chosen; of a cell's records the newest counts.
    """
    by_arm: dict[tuple[Group, str], list[Record]] = defaultdict(list)
    for record, cell in sorted(matched, key=lambda pair: (str(pair[0].provenance.get("time", "")), pair[0].id)):
        group = group_of[record.cell.dataset, record.dataset_title, record.inputs.data]
        by_arm[group, cell.arm].append(record)
    used: Used = defaultdict(list)
    replaced = []
    for (group, arm), records in by_arm.items():
        version = _version(records[-1])
        chosen = {record.cell.budget: _chosen(record) for record in records}
        of_one = [each for each in records if (_version(each), _chosen(each)) == (version, chosen[each.cell.budget])]
        newest = {(record.cell.budget, record.cell.seed): record for record in of_one}
        for (budget, _), record in sorted(newest.items()):
            used[group, arm, budget].append(record)
        kept = {record.id for record in newest.values()}
        replaced += [record for record in records if record.id not in kept]
    return used, replaced


def _chosen(record: Record) -> dict[str, Any]:
    """Return what trials have chosen of a record's recipe."""
    return {key: getattr(record.cell.protocol, key) for key in (record.cell.tuned.space if record.cell.tuned else ())}


def _version(record: Record) -> tuple[object, ...]:
    """Return what must be equal in all of an arm's records beyond their settings.

    Only the weights of a file or of a published model are the same for all seeds of an arm.
    """
    inputs, shared = record.inputs, ("file:", "timm:")
    weights = [digest for prior, digest in record.priors.items() if prior.startswith(shared)]
    return inputs.method_version, inputs.accelerator_version, inputs.params, inputs.accelerator_params, weights
