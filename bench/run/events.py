"""What a cell leaves behind of its way: `events.jsonl` for programs, `run.log` for people."""

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

EVENTS, LOG = "events.jsonl", "run.log"


class CellLog:
    """The two logs in a cell's folder. Lines are only appended; a disk that refuses them stops nobody."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)

    def beat(self, step: int, steps: int) -> None:
        """Note a step, for programs alone."""
        self._append(EVENTS, json.dumps({"time": _now(), "event": "step", "step": step, "steps": steps}))

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
