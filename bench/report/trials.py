"""The trials that choose the recipe of an arm: what there is of them, which was chosen, and what all of them took."""

import math
from dataclasses import dataclass

from bench.grid.cell import Tuning
from bench.report.facts import phase_seconds
from bench.store.record import Failed, Finished, best_trial


@dataclass(frozen=True)
class Trials:
    """The trials of an arm at a budget on a group's data, and how they choose its recipe."""

    tuning: Tuning
    done: tuple[Finished, ...]
    failed: tuple[Failed, ...]

    @property
    def missing(self) -> int:
        """How many have no record."""
        return self.tuning.trials - len(self.done) - len(self.failed)

    @property
    def best(self) -> Finished | None:
        """The one that is chosen; None until all have a record, and where all have failed."""
        return best_trial(self.done) if self.done and not self.missing else None

    @property
    def seconds(self) -> float | None:
        """What training and targets took in all; None where any was not measured alone."""
        parts = [phase_seconds(record, phase) for record in self.done for phase in ("train", "targets")]
        known = [part for part in parts if part is not None]
        return math.fsum(known) if known and len(known) == len(parts) else None

    def recipe(self, record: Finished) -> str:
        """Return what was chosen of the recipe of a record."""
        return ", ".join(f"{key} {getattr(record.cell.protocol, key)}" for key in sorted(self.tuning.space))
