"""What a cell cost, in every currency and under each of three nested ledgers."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from bench.report.collect import Collected
from bench.store import Point, Record

Ledgers = Literal["training alone", "with targets", "with the prior's training"]
ALONE: Ledgers = "training alone"
TARGETS: Ledgers = "with targets"
PRIOR: Ledgers = "with the prior's training"
LEDGERS = (ALONE, TARGETS, PRIOR)


@dataclass(frozen=True)
class Currency:
    """A way to count. `exact`: the same in every run of a cell, so that it has no spread to allow for."""

    name: str
    exact: bool


STEPS, IMAGES, FLOP = (Currency(name, exact=True) for name in ("Steps", "Images", "FLOP"))
SECONDS, JOULES = (Currency(name, exact=False) for name in ("Seconds", "Joules"))
CURRENCIES = (STEPS, IMAGES, FLOP, SECONDS, JOULES)


class Costs:
    """The costs of the records of a report.

    The training of a prior that the grid trains itself is shared by all cells of its seed that the grid plans with it;
    a random network took none; that of a model from elsewhere is not known.
    """

    def __init__(self, found: Collected) -> None:
        self._records = {record.id: record for record in found.done}
        self._users = Counter((cell.rela.prior, cell.seed) for cell in found.planned if cell.rela)

    def of(self, record: Record, currency: Currency, ledger: Ledgers, point: Point | None = None) -> float | None:
        """Return what a finished cell had spent at one of its evaluations, the last unless `point` names one.

        None where it was not measured or is not known.
        """
        parts = [_training(point or record.curve[-1], currency)]
        if ledger != ALONE:
            parts.append(_targets(record, currency))
        if ledger == PRIOR:
            parts.append(self._prior(record, currency))
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None

    def measured(self, currency: Currency) -> bool:
        """Return whether any record knows this currency."""
        return any(_training(record.curve[-1], currency) is not None for record in self._records.values())

    def _prior(self, record: Record, currency: Currency) -> float | None:
        rela = record.cell.rela
        if rela is None or rela.prior == "rand":
            return 0.0
        trained = self._records.get(record.inputs.prior or "")
        total = self.of(trained, currency, PRIOR) if trained else None
        return None if total is None else total / self._users[rela.prior, record.cell.seed]


def _training(point: Point, currency: Currency) -> float | None:
    return {
        STEPS: point.step,
        IMAGES: point.images,
        FLOP: point.flops,
        SECONDS: point.seconds,
        JOULES: point.joules,
    }[currency]


def _targets(record: Record, currency: Currency) -> float | None:
    made = record.ledger.targets if record.ledger else None
    if made is None:
        return 0.0
    return {STEPS: 0, IMAGES: made.images, FLOP: made.flops, SECONDS: made.seconds, JOULES: made.joules}[currency]
