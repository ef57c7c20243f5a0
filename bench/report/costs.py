"""What a cell cost, in every currency and under each of three nested ledgers."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from bench.store.record import Company, Finished, Point, TargetCost

if TYPE_CHECKING:
    from bench.report.collect import Collected

Ledgers = Literal["training alone", "with targets", "with the prior's training"]
ALONE: Ledgers = "training alone"
TARGETS: Ledgers = "with targets"
PRIOR: Ledgers = "with the prior's training"
LEDGERS = (ALONE, TARGETS, PRIOR)


@dataclass(frozen=True, eq=False)
class Currency:
    """A way to count.

    `field` is the attribute of a point and of the targets' cost. `exact`: it is the same in every run of a cell, with
    no spread, and no matter what else the device did.
    """

    value: str
    field: str
    exact: bool = True

    @property
    def in_words(self) -> str:
        """Its name inside a sentence."""
        return self.value if self.value.isupper() else self.value.lower()


STEPS, IMAGES, FLOP = Currency("Steps", "step"), Currency("Images", "images"), Currency("FLOP", "flops")
SECONDS, JOULES = Currency("Seconds", "seconds", exact=False), Currency("Joules", "joules", exact=False)
CURRENCIES = (STEPS, IMAGES, FLOP, SECONDS, JOULES)


class Costs:
    """The costs of the records of a report.

    The training of a prior that the grid trains itself is shared by all cells of its seed that the grid plans with it;
    a random network took none; that of a model from elsewhere is not known.
    """

    def __init__(self, found: "Collected") -> None:
        self._records = {record.id: record for record in found.done}
        self._users = Counter((prior, cell.seed) for cell in found.planned for prior in cell.priors)

    def of(self, record: Finished, currency: Currency, ledger: Ledgers, point: Point | None = None) -> float | None:
        """Return what a finished cell had spent at one of its evaluations, the last unless `point` names one.

        None where it was not measured or is not known.
        """
        spent = _counted(point or record.curve[-1], record.ledger, currency)
        for each in LEDGERS[1 : LEDGERS.index(ledger) + 1]:
            part = self.part(record, currency, each)
            spent = None if spent is None or part is None else spent + part
        return spent

    def part(self, record: Finished, currency: Currency, ledger: Ledgers) -> float | None:
        """Return what a ledger adds to the one below it; None where it was not measured or is not known."""
        if ledger == PRIOR:
            return self._prior(record, currency)
        made = record.ledger.targets
        if ledger == ALONE:
            return _counted(record.curve[-1], record.ledger, currency)
        return 0.0 if made is None or currency is STEPS else _counted(made, made, currency)

    def log_ratios(
        self, pairs: Iterable[tuple[Finished, Finished]], currency: Currency, ledger: Ledgers
    ) -> list[float | None]:
        """Return the logarithm of each pair's ratio of costs, None where one of the two is not known."""
        costs = [[self.of(record, currency, ledger) for record in pair] for pair in pairs]
        return [math.log(one / other) if one and other and math.isfinite(one / other) else None for one, other in costs]

    @cached_property
    def currencies(self) -> tuple[Currency, ...]:
        """The currencies that any record knows."""
        records = self._records.values()
        return tuple(each for each in CURRENCIES if any(self.part(one, each, ALONE) is not None for one in records))

    def _prior(self, record: Finished, currency: Currency) -> float | None:
        total = 0.0
        for prior, digest in record.priors.items():
            if prior == "rand":
                continue
            trained = self._records.get(digest)
            spent = self.of(trained, currency, PRIOR) if trained else None
            if spent is None:
                return None
            total += spent / self._users[prior, record.cell.seed]
        return total


def _counted(what: Point | TargetCost, measured: Company, currency: Currency) -> float | None:
    """Return what was spent; None where it was not measured, or not alone."""
    spent: float | None = getattr(what, currency.field) if currency.exact or measured.alone else None
    return spent
