"""Locks: which of several runners on one folder, on one machine or on many, works on something.

A lock is a file `<place>.<number>` that its holder touches every few seconds. To take the place, a process creates the
file with the next number. It may do so once the last lock is released, has not been touched for a minute, or belongs to
a dead process of this machine. That a file is made by one process alone (O_CREAT with O_EXCL) holds on NFS from version
3 on, where locks may not. Its age is that beside a file made now in the same folder, so machines' clocks need not
agree. A lock is removed only after a later one exists: a holder that was taken for dead sees it and stops.
"""

import json
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.core.errors import Lost

BEAT = 5.0  # seconds between two touches
STALE = 60.0  # seconds after which a lock that was not touched is free
POLL = 1.0  # seconds between two looks at a lock that is waited for


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, and how old its heartbeat is."""

    name: str  # host:pid
    seconds: float

    def __str__(self) -> str:
        return f"{self.name}, heartbeat {self.seconds:.0f} s ago"


class Lock:
    """A lock that this process holds, until it is released. A thread touches its file."""

    def __init__(self, place: Path, number: int) -> None:
        self.place, self.number = place, number
        self.path = _file(place, number)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise Lost unless the lock is still this process's."""
        check(self.place, self.number)

    def release(self) -> None:
        """Let others have the place."""
        self._ended.set()
        self._thread.join()
        with suppress(OSError):
            os.utime(self.path, (0, 0))

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with suppress(OSError):  # the next one may succeed
                os.utime(self.path)


def check(place: Path, number: int) -> None:
    """Raise Lost unless the lock with this number is the place's last one."""
    if _last(place) != number:
        raise Lost(f"{place}: another runner has taken over")


def take(place: Path) -> Lock | Holder:
    """Lock a place, or return its holder."""
    place.parent.mkdir(parents=True, exist_ok=True)
    last = _last(place)
    if now := _holder(place, last):
        return now
    number = last + 1
    try:
        file = os.open(_file(place, number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:  # somebody was faster
        return holder(place) or Holder("another runner", 0.0)
    with os.fdopen(file, "w") as out:
        out.write(json.dumps(_identity()))
    lock = Lock(place, number)
    if _last(place) != number:  # somebody was faster, and the lock seen here is long gone
        lock.release()
        return holder(place) or Holder("another runner", 0.0)
    for old in _numbers(place):
        if old < number:
            _file(place, old).unlink(missing_ok=True)
    return lock


def wait_for(place: Path, meanwhile: Callable[[], None]) -> Lock:
    """Lock a place once it is free; `meanwhile` is called now and then and may raise to give up."""
    while isinstance(lock := take(place), Holder):
        meanwhile()
        time.sleep(POLL)
    return lock


def holder(place: Path) -> Holder | None:
    """Return the holder of a place, or None if it is free."""
    return _holder(place, _last(place))


def _holder(place: Path, number: int) -> Holder | None:
    """Return the holder of the lock with this number, or None if nobody holds it any more."""
    if not number:
        return None
    try:
        with _file(place, number).open("rb") as file:  # opening makes NFS look, where `stat` may not
            touched = os.fstat(file.fileno()).st_mtime
            content = file.read(10_000)
    except OSError:
        return None
    seconds = _now(place.parent) - touched
    try:
        told = json.loads(content)
        name, gone = f"{told['host']}:{told['pid']}", _is_gone(told)
    except (ValueError, LookupError, TypeError):  # it is being written
        name, gone = "another runner", False
    return None if touched == 0 or seconds > STALE or gone else Holder(name, max(seconds, 0.0))


def _file(place: Path, number: int) -> Path:
    return place.with_name(f"{place.name}.{number}")


def _numbers(place: Path) -> list[int]:
    """Return the numbers of the locks that are there."""
    names = [path.name for path in place.parent.iterdir()] if place.parent.is_dir() else []
    matches = (re.fullmatch(rf"{re.escape(place.name)}\.(\d+)", name) for name in names)
    return [int(match[1]) for match in matches if match]


def _last(place: Path) -> int:
    return max(_numbers(place), default=0)


def _now(folder: Path) -> float:
    """Return the time of the folder's file system."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:  # has no name, where the file system knows such a thing
            return os.fstat(file.fileno()).st_mtime
    except OSError:  # full, or not for this user to write
        return time.time()


def _identity() -> dict[str, str | int | None]:
    """Return what names this process, for others to read; `machine` and `process` on Linux only."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "machine": _machine(), "process": _process(str(pid))}


def _is_gone(told: dict[str, Any]) -> bool:
    """Return whether the process of an identity has ended, as far as that can be seen: on this machine alone."""
    if told["machine"] is None or told["machine"] != _machine():
        return False
    return bool(told["process"] != _process(str(told["process"]).partition(" ")[0]))


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
