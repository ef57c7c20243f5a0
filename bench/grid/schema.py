"""What a grid may say: a frozen model that refuses every key it does not know, and whose cells can be planned."""

import operator
from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from bench.core.errors import did_you_mean
from bench.grid.base import Budget, Model, Name, Params, Seed
from bench.grid.cell import Arm, Cell, Protocol, Recipe, arm_name, trained_on
from bench.grid.claims import Claim, statements
from bench.grid.controls import Wrapped
from bench.grid.published import Peer, figure_curves
from bench.grid.tune import Tune, check_tuning
from bench.grid.validate import sentence

GRID_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.@-]*$"
MAX_CELLS = 100_000


class Dataset(Model):
    """A dataset of a grid, with what is particular to it there."""

    name: Name
    train_images: PositiveInt | None = None  # a class-balanced part of the training set; None: all of it
    backbone: Name | None = None
    arms: Annotated[tuple[str, ...] | None, Field(strict=False)] = None  # those that run on it; None: all
    protocol: dict[str, Any] = Field(default_factory=dict)


class Published(Model):
    """An accuracy that the paper reports, to be shown beside ours."""

    arm: str
    epoch: PositiveInt
    linear: Annotated[float, Field(ge=0, le=1)]
    source: str


class Grid(Model):
    """A named set of cells: datasets x arms x budgets x seeds."""

    name: Annotated[str, Field(pattern=GRID_NAME, max_length=80)]
    title: str = ""
    backbone: Name
    datasets: Annotated[tuple[Dataset, ...], Field(strict=False, min_length=1)]
    budgets: Annotated[tuple[Budget, ...], Field(strict=False, min_length=1)] = (1.0,)
    seeds: Annotated[tuple[Seed, ...], Field(strict=False, min_length=1)]
    arms: Annotated[tuple[Arm, ...], Field(strict=False, min_length=1)]
    params: dict[str, Params] = Field(default_factory=dict)  # by method: under those of its arms
    recipes: dict[str, dict[str, Any]] = Field(default_factory=dict)  # by method: keys of Recipe, under its arms' own
    tune: Tune | None = None  # whose recipes are chosen by trials, and from which
    claims: Annotated[tuple[Claim, ...], Field(strict=False)] = ()
    targets_share: PositiveFloat | None = None  # claim: making targets takes no more of the plain method's full cost
    published: Annotated[tuple[Published, ...], Field(strict=False)] = ()
    figure: dict[str, str] = Field(default_factory=dict)  # by arm: the curve of the paper's figure that is its
    peer: Peer | None = None  # whose numbers stand beside ours
    protocol: Protocol = Protocol()
    profiles: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @property
    def tuned(self) -> frozenset[str]:
        """The names of the arms whose recipes are chosen by trials."""
        return self.tune.names(self.arms) if self.tune else frozenset()

    def arms_on(self, dataset: Dataset) -> list[Arm]:
        """Return the arms that run on a dataset of the grid."""
        return [arm for arm in self.arms if dataset.arms is None or arm_name(arm) in dataset.arms]

    def protocol_on(self, dataset: Dataset, arm: Arm | None = None) -> Protocol:
        """Return the protocol on a dataset, with the recipe of an arm: its method's, and over it its own."""
        recipe = self.recipe(arm) if arm else {}
        return Protocol.model_validate(merge(self.protocol.model_dump(), dataset.protocol) | recipe)

    def recipe(self, arm: Arm) -> dict[str, Any]:
        """Return what the recipe of an arm sets instead of the protocol: its method's keys, and over them its own."""
        return self.recipes.get(arm.method, {}) | arm.recipe

    def cell(self, dataset: Dataset, protocol: Protocol, arm: Arm, budget: float, seed: int) -> Cell:
        """Return the cell of an arm on a dataset, whose protocol this is, at a budget with a seed."""
        return Cell(
            arm=arm_name(arm),
            dataset=dataset.name,
            train_images=dataset.train_images,
            backbone=arm.backbone or dataset.backbone or self.backbone,
            method=arm.method,
            params={**self.params.get(arm.method, {}), **arm.params},
            **{key: getattr(arm, key) for key in Wrapped.model_fields},
            budget=budget,
            seed=seed,
            protocol=protocol,
            tuned=self.tune.tuning() if self.tune and arm_name(arm) in self.tuned else None,
        )

    @model_validator(mode="after")
    def _not_too_many_cells(self) -> Self:
        trials = dict.fromkeys(self.tuned, self.tune.trials) if self.tune else {}
        runs = [len(self.seeds) + trials.get(arm_name(arm), 0) for arm in self.arms]
        budgets = [len(arm.budgets or self.budgets) for arm in self.arms]
        cells = len(self.datasets) * sum(map(operator.mul, runs, budgets))
        if cells > MAX_CELLS:
            raise ValueError(f"{cells:,} cells, datasets x arms x budgets x seeds, where {MAX_CELLS:,} are the most")
        return self

    @model_validator(mode="after")
    def _nothing_twice(self) -> Self:
        _refuse_twins("dataset", [dataset.name for dataset in self.datasets])
        _refuse_twins("arm", [arm_name(arm) for arm in self.arms])
        _refuse_twins("seed", self.seeds)
        for budgets in (self.budgets, *(arm.budgets or () for arm in self.arms)):
            _refuse_twins("budget", budgets)
        return self

    @model_validator(mode="after")
    def _others_can_be_matched(self) -> Self:
        arms = {arm_name(arm): arm for arm in self.arms}
        for index, arm in enumerate(self.arms):
            for key in ("flops_of", "seconds_of"):
                if (name := getattr(arm, key)) is not None:
                    _must_match(self, arm, name, arms, f"arms[{index}].{key}")
        return self

    @model_validator(mode="after")
    def _an_arm_begins_and_waits_once(self) -> Self:
        for index, arm in enumerate(self.arms):
            where = f"arms[{index}]"
            if arm.rela and arm.accelerate and arm.accelerate.prior:
                raise ValueError(
                    f"{where}: rela and accelerate both need the targets of a prior; leave out one of them"
                )
            if arm.warm_start == "rand":
                raise ValueError(
                    f"{where}.warm_start: every arm begins with random weights; leave it out, or name a prior"
                )
            trained = [prior for prior in arm.priors if trained_on(prior)]
            needed = [repr(name) for name in (*trained, arm.matches) if name]
            if len(needed) > 1:
                raise ValueError(
                    f"{where}: needs {' and '.join(needed)}, and can wait for one of them only; leave out one"
                )
        return self

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        statements(self)
        arms, methods = [arm_name(arm) for arm in self.arms], {arm.method for arm in self.arms}
        for index, point in enumerate(self.published):
            _must_be_an_arm(point.arm, arms, f"published[{index}].arm")
        for name, curve in self.figure.items():
            _must_be_an_arm(name, arms, "figure")
            if curve not in figure_curves():
                raise ValueError(f"figure.{name}: no curve {curve!r}{did_you_mean(curve, figure_curves())}")
        for key in ("params", "recipes"):
            for method in getattr(self, key):
                if method not in methods:
                    raise ValueError(f"{key}.{method}: no arm has this method{did_you_mean(method, methods)}")
        return self

    @model_validator(mode="after")
    def _recipes_are_recipes(self) -> Self:
        recipes = {f"recipes.{method}": recipe for method, recipe in self.recipes.items()}
        for where, recipe in {
            **recipes,
            **{f"arms[{i}].recipe": arm.recipe for i, arm in enumerate(self.arms)},
        }.items():
            try:
                Recipe.model_validate(recipe)
            except ValidationError as error:
                raise ValueError(sentence(error, Recipe, where)) from error
        return self

    @model_validator(mode="after")
    def _datasets_are_whole(self) -> Self:
        arms = [arm_name(arm) for arm in self.arms]
        for index, dataset in enumerate(self.datasets):
            where = f"datasets[{index}]"
            for name in dataset.arms or ():
                _must_be_an_arm(name, arms, f"{where}.arms")
            there = self.arms_on(dataset)
            for arm in there:
                if arm.matches and arm.matches not in map(arm_name, there):
                    raise ValueError(f"{where}.arms: {arm_name(arm)!r} needs {arm.matches!r} there, too")
            for each in (None, *there):
                try:
                    protocol = self.protocol_on(dataset, each)
                except ValidationError as error:
                    of = f"{where}.protocol" if each is None else f"{where}, arm {arm_name(each)!r}"
                    raise ValueError(sentence(error, Protocol, of)) from error
                if each and each.seconds_of:
                    _must_not_know_its_end(protocol, f"{where}, arm {arm_name(each)!r}")
        return self

    @model_validator(mode="after")
    def _tuning_can_be_done(self) -> Self:
        if self.tune:
            check_tuning(self.tune, self)
        return self

    @model_validator(mode="after")
    def _arms_differ(self) -> Self:
        """Refuse two arms that would share their records: what a cell's key sees of them is the same."""
        first: dict[str, Arm] = {}
        for index, arm in enumerate(self.arms):
            same = first.setdefault(
                self.cell(self.datasets[0], self.protocol_on(self.datasets[0], arm), arm, 1.0, 0).key(), arm
            )
            if same is arm:
                continue
            fix = "remove one"
            if same.priors != arm.priors:
                fix = "of a prior's path only the file's name counts; rename one file"
            raise ValueError(f"arms[{index}]: arm {arm_name(arm)!r} is the same as {arm_name(same)!r}; {fix}")
        return self


def _must_match(grid: Grid, arm: Arm, name: str, arms: dict[str, Arm], where: str) -> None:
    """Raise ValueError, which begins with `where`, unless an arm can stop at what the arm `name` took."""
    other = arms.get(name)
    if other is None:
        raise ValueError(f"{where}: {name!r} is not an arm{did_you_mean(name, arms)}")
    if arm.flops_of and arm.seconds_of:
        raise ValueError(f"{where}: an arm stops at another one's FLOPs or at its seconds; leave out one of the two")
    if other.matches:
        raise ValueError(f"{where}: arm {name!r} itself matches another arm; name that one")
    if wrapper := next(iter(arm.wrappers), None):
        what = "FLOPs" if arm.flops_of else "seconds"
        raise ValueError(f"{where}: an arm with {wrapper} cannot match another one's {what}; leave out one of the two")
    for budget in sorted({*(arm.budgets or grid.budgets)} - {*(other.budgets or grid.budgets)}):
        raise ValueError(f"{where}: arm {name!r} has no budget {budget:g} to match; give both the same budgets")


def _must_not_know_its_end(protocol: Protocol, where: str) -> None:
    """Raise ValueError when a recipe needs the number of steps, which with `seconds_of` nobody knows before."""
    for key in ("schedule", "warmup", "teacher"):
        if (value := getattr(protocol, key)) != getattr(Recipe(), key):
            fix = f"give the arm the recipe {key}: {getattr(Recipe(), key)}, or take flops_of"
            raise ValueError(f"{where}: {key} {value} needs the number of steps, which seconds_of leaves open; {fix}")


def _refuse_twins(what: str, names: Sequence[str | float]) -> None:
    first: dict[str | float, int] = {}
    for index, name in enumerate(names):
        if first.setdefault(name, index) != index:
            raise ValueError(f"{what}s[{index}]: {what} {name} is there twice; remove one")


def _must_be_an_arm(name: str, arms: Sequence[str], where: str) -> None:
    if name not in arms:
        raise ValueError(f"{where}: {name!r} is no arm{did_you_mean(name, arms)}")


def merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """Merge mappings key by key; anything else is replaced."""
    merged = dict(base)
    for key, value in override.items():
        inner = merged.get(key)
        merged[key] = merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged
