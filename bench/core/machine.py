"""This machine as a process sees it: its cores, and whether another process still lives."""

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any


def usable_cores() -> set[int]:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def identity() -> dict[str, str | int | None]:
    """Return what names this process, to be written down for others; `machine` and `process` on Linux only."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "machine": _machine(), "process": _process(str(pid))}


def is_here(told: dict[str, Any]) -> bool:
    """Return whether an identity is of this machine, so that its process can be checked."""
    return told["machine"] is not None and told["machine"] == _machine()


def lives(told: dict[str, Any]) -> bool:
    """Return whether the process of an identity of this machine is still there."""
    return bool(told["process"] == _process(str(told["process"]).partition(" ")[0]))


def _machine() -> str | None:
    """Return what names this machine since it was started, and the processes that can be seen on it; Linux only."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return None


def _process(pid: str) -> str | None:
    """Return what names a process among all that have its number, None when it is gone; Linux only."""
    with suppress(OSError, ValueError):
        state, *rest = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(") ")[2].split()
        return None if state in {"Z", "X"} else f"{pid} {rest[18]}"  # its number, and when it began
    return None
