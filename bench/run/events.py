"""A cell's logs: `events.jsonl` for programs, `run.log` for people."""

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

EVENTS, LOG = "events.jsonl", "run.log"
FAILURES = {"failed", "oom", "timeout"}  # events that a cell ends with: these, "done" and "interrupted"


class CellLog:
    """The two logs in a cell's folder. Lines are only appended; a disk that refuses them stops nobody."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)

    def beat(self, step: int, steps: int, loss: float = math.nan) -> None:
        """Note a step and the last loss that was looked at, for programs alone."""
        known = {"loss": loss} if math.isfinite(loss) else {}
        self._append(EVENTS, json.dumps({"time": _now(), "event": "step", "step": step, "steps": steps, **known}))

    def event(self, name: str, facts: dict[str, Any]) -> None:
        """Note what happened."""
        self._append(EVENTS, json.dumps({"time": _now(), "event": name, **facts}))
        said = ", ".join(f"{key} {_short(value)}" for key, value in facts.items())
        self.text(f"{name}: {said}" if said else name)

    def text(self, text: str) -> None:
        """Note a text of one or more lines, for people alone."""
        self._append(LOG, f"{_now()}  " + text.rstrip().replace("\n", "\n    "))

    def _append(self, name: str, line: str) -> None:
        with suppress(OSError), (self.folder / name).open("a+b") as file:
            # A kill may have cut the last line short: it must not swallow this one.
            whole = file.seek(0, 2) == 0 or (file.seek(-1, 2), file.read(1))[1] == b"\n"
            file.write(("" if whole else "\n").encode() + line.encode(errors="replace") + b"\n")


class Follower:
    """Reads the events that are added to a cell's log from now on."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / EVENTS
        self.rest = b""  # of a line that is not whole yet
        self.read = 0  # bytes
        with suppress(OSError):
            self.read = self.path.stat().st_size

    def new(self) -> Iterator[dict[str, Any]]:
        """Yield the events that were added since the last call; those that a kill has cut short are left out."""
        try:
            if self.path.stat().st_size <= self.read:
                return
            with self.path.open("rb") as file:
                file.seek(self.read)
                added = file.read()
        except OSError:
            return
        self.read += len(added)
        *lines, self.rest = (self.rest + added).split(b"\n")
        yield from _parsed(lines)


def last_attempt(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the last event by which a runner took a cell, and the event that ended it: {} and "" if there is none."""
    end = ""
    with suppress(OSError):
        for event in backwards(folder / EVENTS):
            if event["event"] == "taken":
                return event, end
            if not end and event["event"] in FAILURES | {"done", "interrupted"}:
                end = event["event"]
    return {}, end


def backwards(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a log, the last one first; those that a kill has cut short are left out. Raises OSError."""
    if path.is_file():
        yield from _parsed(reversed(path.read_bytes().splitlines()))


def _parsed(lines: Iterator[bytes] | list[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with suppress(ValueError, RecursionError):
            event = json.loads(line)
            if isinstance(event, dict) and isinstance(event.get("event"), str):
                yield event


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_short(inner)}" for key, inner in value.items()) + ")"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_short, value)) + "]"
    return str(value)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
