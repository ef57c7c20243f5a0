"""The clock of a cell: where its wall time and its GPU's energy go, and its peak memory."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pynvml
import torch

from bench.distributed import world
from bench.process import side_by_side

PHASES = ("targets", "train", "eval", "other")


@dataclass(frozen=True)
class Spent:
    """Seconds, and the joules of the GPU in them; None where nothing measures these."""

    seconds: float
    joules: float | None

    def __add__(self, other: "Spent") -> "Spent":
        joules = None if self.joules is None or other.joules is None else self.joules + other.joules
        return Spent(self.seconds + other.seconds, joules)

    def __sub__(self, other: "Spent") -> "Spent":
        return self + Spent(-other.seconds, None if other.joules is None else -other.joules)


class Clock:
    """Charges all wall time to phases: to the innermost one that is open, else to "other".

    The device is synchronised only where a phase begins or ends.

    `side_by_side` is the most cells that ran on the device at a time, this one among them.

    Args:
        device: what the cell runs on.
        energy: reads a counter of joules; None: those that the GPU's driver counts, if it does.
        cells: counts the cells that are on the device now.
    """

    def __init__(
        self,
        device: torch.device,
        energy: Callable[[], float | None] | None = None,
        cells: Callable[[], int] = side_by_side,
    ) -> None:
        self.device, self._cells = device, cells
        self._energy = energy or energy_counter(device)
        self._since = Spent(time.perf_counter(), self._energy())
        self._spent = dict.fromkeys(PHASES, Spent(0.0, None if self._since.joules is None else 0.0))
        self._open = ["other"]
        self._began = self._since.seconds
        self._earlier_wall = 0.0
        self.side_by_side = cells()

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
    ) -> None:
        """Go on from what an interrupted run had spent, beside how many cells."""
        for name, value in seconds.items():
            self._spent[name] += Spent(value, joules[name] if joules else None)
        self._earlier_wall += wall
        self.side_by_side = max(self.side_by_side, side_by_side)

    def take_away(self, seconds: dict[str, float], wall: float, joules: dict[str, float] | None = None) -> None:
        """Undo `add`."""
        back = {name: -value for name, value in joules.items()} if joules else None
        self.add({name: -value for name, value in seconds.items()}, -wall, back)
        self.side_by_side = self._cells()

    def look(self) -> None:
        """Count the cells on the device anew: others may have come."""
        self.side_by_side = max(self.side_by_side, self._cells())

    def read(self) -> dict[str, float]:
        """Return the seconds by phase until now."""
        self._charge()
        return {name: spent.seconds for name, spent in self._spent.items()}

    def joules(self) -> dict[str, float] | None:
        """Return the joules by phase until now; None where they are not measured in all of them."""
        self._charge()
        known = {name: spent.joules for name, spent in self._spent.items() if spent.joules is not None}
        return known if len(known) == len(self._spent) else None

    def spent(self, phase: str) -> Spent:
        """Return what a phase has spent until now."""
        self._charge()
        return self._spent[phase]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge the time inside to `name`, except that of a phase inside it."""
        synchronise(self.device)
        self.look()
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            synchronise(self.device)
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        now = Spent(time.perf_counter(), self._energy())
        self._spent[self._open[-1]] += now - self._since
        self._since = now


def energy_counter(device: torch.device) -> Callable[[], float | None]:
    """Return what reads the joules that a GPU has spent since its driver was loaded, those of other processes included.

    It reads None without a GPU, on one whose driver does not count them, and beside other processes of the cell,
    whose GPUs this one does not see.
    """
    if device.type != "cuda" or world() > 1:
        return lambda: None

    def read() -> float | None:
        try:
            pynvml.nvmlInit()  # counted by NVML: once is as good as often
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
        except pynvml.NVMLError:
            return None

    return read


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new measurement of peak memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """Return the peak memory in bytes since the reset: of the GPU's allocator, or resident in this process (Linux)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return None
