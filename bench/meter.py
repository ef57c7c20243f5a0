"""The clock of a cell: where its wall time goes, and its peak memory."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

PHASES = ("targets", "train", "eval", "other")


class Clock:
    """Charges all wall time to phases: to the innermost one that is open, else to "other".

    The device is synchronised only where a phase begins or ends.

    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._open = ["other"]
        self._began = self._since = time.perf_counter()
        self._earlier_wall = 0.0

    @property
    def wall(self) -> float:
        """Seconds of wall time, read from its own start and not from the phases."""
        return self._earlier_wall + time.perf_counter() - self._began

    def add(self, seconds: dict[str, float], wall: float) -> None:
        """Go on from what an interrupted run had spent."""
        for name, value in seconds.items():
            self.seconds[name] += value
        self._earlier_wall += wall

    def read(self) -> dict[str, float]:
        """Return the seconds by phase until now."""
        self._charge()
        return dict(self.seconds)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge the time inside to `name`, except that of a phase inside it."""
        synchronise(self.device)
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            synchronise(self.device)
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now


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
