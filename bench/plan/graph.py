"""The plan of a run: each cell with its id, the cell it waits for, and what it lacks."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from bench.core.errors import Lack, MissingError, UserError, describe_error, did_you_mean
from bench.core.paths import Paths
from bench.data import DatasetFacts, dataset_facts, find_dataset, image_size, short_name
from bench.grid.cell import BASELINE, Cell, Inputs, cell_id, makes_prior, trained_on
from bench.grid.controls import PriorChoice
from bench.grid.tune import trials_of
from bench.models.backbones import build_backbone, check_backbone
from bench.store.record import Failed, Finished, best_trial, read_record, record_path
from methods import Method, accelerators, methods
from methods.registry import check_prior
from methods.tokens import transformer
from priors import Prior, find_prior
from priors.joined import Joined, as_chosen
from priors.trained import Trained
from priors.untrained import Untrained


@dataclass(frozen=True)
class Ready:
    """A cell of which all is on this machine that it needs.

    `needs` is the cell that must be done before: the one whose backbone is a prior, or whose FLOPs or seconds it
    matches. `prior` makes its targets, `start` has the weights that its training begins with.
    `title` is that of its dataset as it is here, and `train_images` how many the cell uses.
    """

    cell: Cell
    id: str
    inputs: Inputs
    prior: Prior | None
    needs: "Ready | None"
    title: str
    train_images: int
    start: Prior | None = None


@dataclass(frozen=True)
class Missing:
    """A cell that cannot run on this machine, the reason, and all that it lacks.

    `train_images` is None when nobody knows their number.
    """

    cell: Cell
    reason: str
    needs: "Task | None"
    train_images: int | None
    lacks: tuple[Lack, ...] = ()


@dataclass(frozen=True)
class Waiting:
    """A cell whose recipe is not chosen yet, or that needs such a cell, and the reason; its id is known later."""

    cell: Cell
    reason: str
    needs: "Task | None"
    train_images: int | None


Task = Ready | Missing | Waiting


class _Undecided(Exception):
    """What a cell waits for."""


def plan(cells: Iterable[Cell], chosen: Iterable[Cell], paths: Paths, where: str) -> list[Task]:
    """Return the tasks of the chosen cells, and of the cells that they need, each after what it needs.

    `cells` is the whole grid and `where` names it in messages. Raises UserError on an unknown name and on a prior
    that no cell of the grid makes; a dataset or weights that are not here only mark the tasks that need them.
    """
    planner = _Planner(list(cells), paths, where)
    for cell in chosen:
        planner.task(cell)
    return list(planner.tasks.values())


def _missing(error: BaseException, what: str) -> MissingError:
    """Return why something cannot be had here. Raises an error again that is a mistake in the grid."""
    if isinstance(error, MissingError):
        return error
    if isinstance(error, UserError):
        raise error
    return MissingError(f"{what}: {describe_error(error)}")


class _Planner:
    def __init__(self, cells: list[Cell], paths: Paths, where: str) -> None:
        self.paths, self.where = paths, where
        self.tasks: dict[str, Task] = {}
        self._by_id: dict[str, Cell] = {}
        self._data: dict[str, DatasetFacts | MissingError] = {}
        self._checked: set[tuple[str | int | None, ...]] = set()
        self.makers: dict[tuple[str, int], Cell] = {}
        for cell in filter(makes_prior, cells):  # of several architectures, the first
            self.makers.setdefault((short_name(cell.dataset), cell.seed), cell)
        self.matched = {(cell.arm, cell.dataset, cell.budget, cell.seed): cell for cell in cells}
        self.first_seed = next((cell.seed for cell in cells if cell.validation is None), 0)

    def task(self, cell: Cell) -> Task:
        """Return the task of a cell, made once, after those it needs."""
        key = cell.key()
        if key not in self.tasks:
            needs: Task | None = None
            count: int | None = None
            task: Task
            try:
                self._check_names(cell)
                params = methods.resolved(cell.method, cell.params, self._arm(cell))
                count = self._train_images(cell)
                cell = self._with_recipe(cell)
                (one, prior), (other, start) = self._prior(cell), self._prior(cell.as_started())
                needs = one or other
                if cell.matches:
                    needs = self.task(self.matched[cell.matches, cell.dataset, cell.budget, cell.seed])
                if start:
                    self._check_start(cell, start)
                task = self._ready(cell, params, needs, prior, start)
            except _Undecided as reason:
                task = Waiting(cell, str(reason), needs, count)
            except (Exception, SystemExit) as error:  # a plugin may raise anything, and others must go on
                missing, data = _missing(error, f"{cell.dataset}, arm {cell.arm!r}"), self._data.get(cell.dataset)
                lacks = [each.lacks for each in (data, needs, missing) if isinstance(each, MissingError | Missing)]
                task = Missing(cell, str(missing), needs, count, tuple(dict.fromkeys(chain(*lacks))))
            if isinstance(task, Ready):
                self._check_new(task)
            self.tasks[key] = task
        return self.tasks[key]

    def _with_recipe(self, cell: Cell) -> Cell:
        """Return a cell with the recipe that its trials choose: that of the best one, of equals the first.

        Raises _Undecided until all of them have a record, and MissingError when none has a result.
        """
        if cell.tuned is None:
            return cell
        trials = [self.task(each) for each in trials_of(cell)]
        for trial in trials:
            if isinstance(trial, Missing):
                raise MissingError(trial.reason, *trial.lacks)
        paths = [record_path(self.paths.records, trial.id) for trial in trials if isinstance(trial, Ready)]
        records = [read_record(path) for path in paths]
        done = [record for record in records if isinstance(record, Finished)]
        if left := len(trials) - len(done) - sum(isinstance(record, Failed) for record in records):
            raise _Undecided(f"{left} of {len(trials)} trials that choose its recipe are not done")
        if not done:
            raise MissingError(f"arm {cell.arm!r}: all {len(trials)} trials that choose its recipe have failed")
        best = best_trial(done).cell.protocol
        chosen = {key: getattr(best, key) for key in cell.tuned.space}
        return cell.model_copy(update={"protocol": cell.protocol.model_copy(update=chosen)})

    def _ready(
        self, cell: Cell, params: dict[str, Any], needs: Task | None, prior: Prior | None, start: Prior | None
    ) -> Ready:
        """Return the task of a cell that has all that it needs. Raises MissingError, and _Undecided."""
        weights, facts, wrapper = prior.digest() if prior else None, self._facts(cell.dataset), cell.accelerate
        if isinstance(facts, MissingError):
            raise MissingError(str(facts), *facts.lacks)
        if isinstance(needs, Missing):
            raise MissingError(needs.reason, *needs.lacks)
        if isinstance(needs, Waiting):
            raise _Undecided(needs.reason)
        inputs = Inputs(
            data=facts.digest,
            prior=weights,
            method_version=methods.get(cell.method).version,
            params=params,
            flops_of=needs.id if needs and cell.flops_of else None,
            seconds_of=needs.id if needs and cell.seconds_of else None,
            warm_start=start.digest() if start else None,
            accelerator_version=accelerators.get(wrapper.name).version if wrapper else None,
            accelerator_params=accelerators.resolved(wrapper.name, wrapper.params, self._arm(cell))
            if wrapper
            else None,
        )
        count = self._train_images(cell) or facts.train_images
        return Ready(cell, cell_id(cell, inputs), inputs, prior, needs, facts.title, count, start)

    def _check_new(self, task: Ready) -> None:
        """Raise UserError when an earlier task is the same one under another name."""
        same = self._by_id.setdefault(task.id, task.cell)
        if same is not task.cell:
            raise UserError(
                f"{self.where}: arm {task.cell.arm!r} is arm {same.arm!r} again, once defaults are filled in and"
                " priors' files are read; remove one"
            )

    def _prior(self, cell: Cell) -> tuple[Task | None, Prior | None]:
        """Return the prior whose targets a cell is trained on, and the task that trains it; None where none does."""
        choice = cell.targets_of
        if choice is None:
            return None, None
        found = [self._first(cell, choice), *(self._prior(cell.with_prior(name)) for name in choice.ensemble)]
        priors = [prior for _, prior in found if prior]
        return next((task for task, _ in found if task), None), Joined(priors) if choice.ensemble else priors[0]

    def _first(self, cell: Cell, choice: PriorChoice) -> tuple[Task | None, Prior]:
        """Return the prior that a choice names, without its ensemble, and the task that trains it."""
        short = trained_on(choice.prior)
        if short is None:
            try:
                prior = as_chosen(find_prior(choice.prior, cell, self.paths), choice)
            except MissingError:
                raise
            except UserError as error:
                raise UserError(f"{self._arm(cell)}: {error}") from error
            return None, Untrained(prior, choice.first) if self.paths.rehearsal else prior
        seed = self.first_seed if cell.validation else cell.seed
        maker = self.makers.get((short, seed))
        if maker is None:
            shorts = sorted({f"{name}-T" for name, _ in self.makers})
            raise UserError(
                f"{self._arm(cell)}: prior {choice.prior!r} is the backbone of the cell {BASELINE} at budget 1 on that"
                f" dataset, seed {seed}, which the grid does not have{did_you_mean(choice.prior, shorts)}"
            )
        needs = self.task(maker)
        size = choice.input_size or image_size(maker, self.paths)
        identifier = needs.id if isinstance(needs, Ready) else ""
        return needs, as_chosen(Trained(maker, identifier, size, cell, self.paths), choice)

    def _check_start(self, cell: Cell, start: Prior) -> None:
        """Raise UserError when the weights that a cell begins with are of another architecture than its backbone."""
        networks = (build_backbone(cell.backbone, image_size(cell, self.paths)).module, start.untrained())
        own, others = ({name: value.shape for name, value in each.state_dict().items()} for each in networks)
        if differing := sorted(name for name in own.keys() | others.keys() if own.get(name) != others.get(name)):
            raise UserError(
                f"{self._arm(cell)}: warm_start {cell.warm_start!r} is another architecture than backbone"
                f" {cell.backbone!r}: they differ in {differing[0]!r} and {len(differing) - 1} more names or shapes"
            )

    def _check_tokens(self, cell: Cell, name: str, kind: type[Method]) -> None:
        """Raise UserError when what needs patch tokens finds none, or not the features that it trains."""
        if kind.needs_tokens:
            with torch.device("meta"):  # no weights
                network = build_backbone(cell.backbone, image_size(cell, self.paths)).module
            try:
                transformer(network, kind.class_token)
            except UserError as error:
                raise UserError(f"{name} {error}") from error

    def _arm(self, cell: Cell) -> str:
        return f"{self.where}: arm {cell.arm!r}"

    def _check_names(self, cell: Cell) -> None:
        """Raise UserError, naming the grid, when the cell's dataset, backbone or method is unknown."""
        of_prior, wrapper = cell.targets_of.backbone if cell.targets_of else None, cell.accelerate
        around = (wrapper.name, bool(wrapper.prior)) if wrapper else ()
        names = (cell.dataset, cell.backbone, cell.method, cell.protocol.input_size, of_prior, *around)
        if names in self._checked:
            return
        try:
            find_dataset(cell.dataset, self.paths.data)
            check_backbone(cell.backbone)
            if wrapper:
                check_prior(wrapper, cell.rela is not None)
                self._check_tokens(cell, f"accelerator {wrapper.name!r}", accelerators.get(wrapper.name))
            self._check_tokens(cell, f"method {cell.method!r}", methods.get(cell.method))
            image_size(cell, self.paths)
            if of_prior:
                check_backbone(of_prior)
        except MissingError:
            raise
        except UserError as error:
            raise UserError(f"{self._arm(cell)} on {cell.dataset}: {error}") from error
        self._checked.add(names)

    def _facts(self, name: str) -> DatasetFacts | MissingError:
        """Return what is known of a dataset, or the error that says why it cannot be had here."""
        if name not in self._data:
            try:
                self._data[name] = dataset_facts(name, self.paths)
            except (Exception, SystemExit) as error:  # a plugin may raise anything, and others must go on
                self._data[name] = _missing(error, f"dataset {name!r}")
        return self._data[name]

    def _train_images(self, cell: Cell) -> int | None:
        """Return how many training images a cell uses. Raises UserError when there are not that many."""
        facts = self._facts(cell.dataset)
        if isinstance(facts, MissingError):
            count = cell.train_images or find_dataset(cell.dataset, self.paths.data).train_images
        elif cell.train_images and cell.train_images > facts.train_images:
            raise UserError(
                f"{self.where}: dataset {cell.dataset!r}: train_images asks for {cell.train_images:,} and"
                f" {facts.train_images:,} are here"
            )
        else:
            count = cell.train_images or facts.train_images
        return count - cell.validation.count(count) if count and cell.validation else count
