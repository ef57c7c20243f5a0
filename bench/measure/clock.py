"""The clock of a cell: where its wall time and its GPU's energy go, and what others took of them."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pynvml
import torch

from bench.core.distributed import world_size
from bench.core.environment import side_by_side
from bench.measure.load import Reading, load_reader, nvml_handle, taken

PHASES = ("targets", "train", "eval", "other")


@dataclass(frozen=True)
class Spent:
    """Seconds, the joules of the GPU in them, and how many of the seconds other work took; None: not measured."""

    seconds: float
    joules: float | None
    taken: float | None = None

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.seconds + other.seconds, _sum(self.joules, other.joules), _sum(self.taken, other.taken))

    def __sub__(self, other: "Spent") -> "Spent":
        joules, taken = (None if value is None else -value for value in (other.joules, other.taken))
        return self + Spent(-other.seconds, joules, taken)

    @property
    def other_load(self) -> float | None:
        """The share of the seconds that other work took, None where it is not known."""
        return None if self.taken is None else min(self.taken / self.seconds, 1.0) if self.seconds else 0.0


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


class Clock:
    """Charges all wall time to phases: to the innermost one that is open, else to "other".

    The device is synchronised only where a phase begins or ends.

    `side_by_side` is the most cells that ran on the device at a time, this one among them.

    Args:
        device: what the cell runs on.
        energy: reads a counter of joules; None: those that the GPU's driver counts, if it does.
        load: reads what else the machine does; None: from the system's counters.
    """

    def __init__(
        self,
        device: torch.device,
        energy: Callable[[], float | None] | None = None,
        load: Callable[[], Reading | None] | None = None,
    ) -> None:
        self.device = device
        self._energy = energy or energy_counter(device)
        self._load = load or load_reader(device)
        self._since, self._read = Spent(time.perf_counter(), self._energy()), self._load()
        self._nothing = Spent(0.0, None if self._since.joules is None else 0.0, None if self._read is None else 0.0)
        self._spent = dict.fromkeys(PHASES, self._nothing)
        self._open = ["other"]
        self._began = self._since.seconds
        self.side_by_side: int
        self.forget()

    @property
    def wall(self) -> float:
        """Seconds of wall time, read from its own start and not from the phases."""
        return self._earlier_wall + time.perf_counter() - self._began

    def add(
        self,
        seconds: dict[str, float],
        wall: float,
        joules: dict[str, float] | None = None,
        side_by_side: int = 1,
        taken: dict[str, float] | None = None,
    ) -> None:
        """Go on from what an interrupted run had spent, beside how many cells, and what other work took of it."""
        for name, value in seconds.items():
            self._earlier[name] += Spent(value, (joules or {}).get(name), (taken or {}).get(name))
        self._earlier_wall += wall
        self.side_by_side = max(self.side_by_side, side_by_side)

    def forget(self) -> None:
        """Undo `add`."""
        self._earlier, self._earlier_wall = dict.fromkeys(PHASES, self._nothing), 0.0
        self.side_by_side = side_by_side()

    def read(self) -> dict[str, float]:
        """Return the seconds by phase until now."""
        return {name: spent.seconds for name, spent in self._totals().items()}

    def joules(self) -> dict[str, float] | None:
        """Return the joules by phase until now; None where they are not measured in all of them."""
        return self._by_phase(lambda spent: spent.joules)

    def taken(self) -> dict[str, float] | None:
        """Return the seconds that other work took by phase until now; None where this is not known of all of them."""
        return self._by_phase(lambda spent: spent.taken)

    def spent(self, phase: str) -> Spent:
        """Return what a phase has spent until now."""
        return self._totals()[phase]

    def seconds(self, phase: str) -> float:
        """Return the seconds that a phase has spent until now, and read nothing but the time: for every step."""
        passing = time.perf_counter() - self._since.seconds if self._open[-1] == phase else 0.0
        return self._earlier[phase].seconds + self._spent[phase].seconds + passing

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge the time inside to `name`, except that of a phase inside it."""
        synchronise(self.device)
        self.look()
        self._open.append(name)
        try:
            yield
        finally:
            synchronise(self.device)
            self.look()
            self._open.pop()

    def _by_phase(self, part: Callable[[Spent], float | None]) -> dict[str, float] | None:
        known = {name: value for name, spent in self._totals().items() if (value := part(spent)) is not None}
        return known if len(known) == len(PHASES) else None

    def _totals(self) -> dict[str, Spent]:
        self.look()
        return {name: self._earlier[name] + self._spent[name] for name in PHASES}

    def look(self) -> None:
        """Charge what was spent since the last look, and see how much of it others took."""
        now, read = Spent(time.perf_counter(), self._energy()), self._load()
        self._spent[self._open[-1]] += replace(now - self._since, taken=taken(self._read, read))
        self._since, self._read = now, read


def energy_counter(device: torch.device) -> Callable[[], float | None]:
    """Return what reads the joules that a GPU has spent since its driver was loaded, those of other processes included.

    It reads None without a GPU, on one whose driver does not count them, and beside other processes of the cell,
    whose GPUs this one does not see.
    """
    if device.type != "cuda" or world_size() > 1:
        return lambda: None

    def read() -> float | None:
        try:
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(nvml_handle(device))) / 1000
        except pynvml.NVMLError:
            return None

    return read


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
