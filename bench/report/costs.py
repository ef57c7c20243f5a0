"""What a cell cost, in every currency and under each of three nested ledgers."""

import math
from collections import Counter
from collections.abc import Iterable
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from bench.store.record import Finished, Point

if TYPE_CHECKING:
    from bench.report.collect import Collected

Ledgers = Literal["training alone", "with targets", "with the prior's training"]
ALONE: Ledgers = "training alone"
TARGETS: Ledgers = "with targets"
PRIOR: Ledgers = "with the prior's training"
LEDGERS = (ALONE, TARGETS, PRIOR)
ADDED: dict[Ledgers, tuple[Ledgers, ...]] = {ALONE: (), TARGETS: (TARGETS,), PRIOR: (TARGETS, PRIOR)}


class Currency(Enum):
    """A way to count.

    `exact`: it is the same in every run of a cell, with no spread, and no matter what else the device did. `field`: the
    attribute of a point and of the targets' cost. Neither is worked out when asked for, which a report does a million
    times.
    """

    STEPS = "Steps"
    IMAGES = "Images"
    FLOP = "FLOP"
    SECONDS = "Seconds"
    JOULES = "Joules"

    def __init__(self, name: str) -> None:
        self.exact = name not in {"Seconds", "Joules"}
        self.field = {"Steps": "step", "FLOP": "flops"}.get(name, name.lower())


CURRENCIES = tuple(Currency)
STEPS, IMAGES, FLOP, SECONDS, JOULES = CURRENCIES


class Costs:
    """The costs of the records of a report.

    The training of a prior that the grid trains itself is shared by all cells of its seed that the grid plans with it;
    a random network took none; that of a model from elsewhere is not known.
    """

    def __init__(self, found: "Collected") -> None:
        self._records = {record.id: record for record in found.done}
        self._users = Counter((cell.rela.prior, cell.seed) for cell in found.planned if cell.rela)

    def of(self, record: Finished, currency: Currency, ledger: Ledgers, point: Point | None = None) -> float | None:
        """Return what a finished cell had spent at one of its evaluations, the last unless `point` names one.

        None where it was not measured or is not known.
        """
        spent = _training(record, point or record.curve[-1], currency)
        for each in ADDED[ledger]:
            part = self.part(record, currency, each)
            spent = None if spent is None or part is None else spent + part
        return spent

    def part(self, record: Finished, currency: Currency, ledger: Ledgers) -> float | None:
        """Return what a ledger adds to the one below it; None where it was not measured or is not known."""
        if ledger == ALONE:
            return _training(record, record.curve[-1], currency)
        return _targets(record, currency) if ledger == TARGETS else self._prior(record, currency)

    def log_ratios(
        self, pairs: Iterable[tuple[Finished, Finished]], currency: Currency, ledger: Ledgers
    ) -> list[float | None]:
        """Return the logarithm of each pair's ratio of costs, None where one of the two is not known."""
        costs = [[self.of(record, currency, ledger) for record in pair] for pair in pairs]
        return [math.log(one / other) if one and other and math.isfinite(one / other) else None for one, other in costs]

    def measured(self, currency: Currency) -> bool:
        """Return whether any record knows this currency."""
        return currency in self.currencies

    @cached_property
    def currencies(self) -> tuple[Currency, ...]:
        """The currencies that any record knows."""
        ends = [(record, record.curve[-1]) for record in self._records.values()]
        return tuple(each for each in CURRENCIES if any(_training(*end, each) is not None for end in ends))

    def _prior(self, record: Finished, currency: Currency) -> float | None:
        rela = record.cell.rela
        if rela is None or rela.prior == "rand":
            return 0.0
        trained = self._records.get(record.inputs.prior or "")
        total = self.of(trained, currency, PRIOR) if trained else None
        return None if total is None else total / self._users[rela.prior, record.cell.seed]


def _training(record: Finished, point: Point, currency: Currency) -> float | None:
    if not currency.exact and not record.ledger.alone:
        return None
    spent: float | None = getattr(point, currency.field)
    return spent


def _targets(record: Finished, currency: Currency) -> float | None:
    made = record.ledger.targets
    if made is None or currency is STEPS:
        return 0.0
    if not currency.exact and not made.alone:
        return None
    spent: float | None = getattr(made, currency.field)
    return spent
