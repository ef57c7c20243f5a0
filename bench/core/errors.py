"""Exceptions of the harness, and how errors are described."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import dropwhile
from pathlib import Path
from traceback import extract_tb
from typing import NamedTuple

LONGEST = 2000  # characters of a sentence, which may hold a path or two
LONGEST_WORD = 100  # characters of a word that could be a slip of the pen
FETCH = "`prepare` downloads it"  # how to get what has an address
MOST_CAUSES = 20  # of an error, one behind the other
ANNOUNCES = re.compile(r":$|^\d+ validation errors? for ")  # a line that only announces the next one


class UserError(Exception):
    """One clear sentence that names the file, the key and the fix; the program ends with exit code 2."""

    def __str__(self) -> str:
        """Return the sentence on one line of printable text, whatever was in what it quotes."""
        return _printable(" ".join(line.strip() for line in super().__str__().splitlines()))


class Lack(NamedTuple):
    """A thing that is not on this machine, and how to get it, where "`prepare`" is the verb."""

    what: str
    how: str = ""


class MissingError(UserError):
    """A dataset or a prior's weights that are not on this machine, and how to get them; `lacks` says it in short."""

    def __init__(self, sentence: str, *lacks: Lack) -> None:
        super().__init__(sentence)
        self.lacks = lacks or (Lack(str(self)),)


class PluginError(MissingError):
    """A method, prior or dataset breaks its contract; only its own cells fail. The message has the fix."""


class DamagedFile(UserError):
    """A file that is not what was written there, or not the one that was published."""


class NotMadeError(UserError):
    """Results that are not there; `by` is the verb that makes them, and its words beyond those of the request."""

    def __init__(self, sentence: str, *by: str) -> None:
        super().__init__(sentence)
        self.by = by


class TrainingError(Exception):
    """The loss, or what the backbone makes of images, is no longer a number."""


class SealedError(Exception):
    """A trial, which chooses a recipe, has looked at the test set."""


class WorkerDied(Exception):
    """A data-loading worker died, or ran out of a resource that fewer workers need less of."""


class Interrupted(Exception):
    """The user asked to stop; the checkpoint is written."""


class TimedOut(Exception):
    """The cell has had the time that it may take; the checkpoint is written."""


class WriteError(OSError):
    """A file could not be written: the disk is full or refuses it. `filename` and `strerror` say which and why."""


class Lost(Exception):
    """Another runner has taken over a lock: this one was silent for too long."""


class DeviceLost(Exception):
    """The GPU no longer responds to this process, as after an assertion in a kernel: only another process can go on."""


class OutOfMemory(Exception):
    """Memory did not suffice; the message says for what."""


def describe_error(error: BaseException) -> str:
    """Return an error and its cause as one line of printable text."""
    cause = error
    for _ in range(MOST_CAUSES):  # an error may be its own cause
        cause = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause.__cause__ or cause
    text, why = _said(error), _said(cause)
    return _printable(text if why in text else f"{text}, because of {why}")


def _said(error: BaseException) -> str:
    """Return an error's kind and the line of its text that tells what is wrong: mostly the first one."""
    if isinstance(error, UserError):
        return str(error)
    kind = type(error).__name__
    try:
        lines = [line for line in str(error).splitlines() if line.strip()]
    except Exception:  # of the plugin's own
        return kind
    # Text of another process: its error stands behind the frames, which are indented.
    ends = [index for index, line in enumerate(lines, 1) if line.endswith("(most recent call last):")]
    behind = [list(dropwhile(lambda line: line.startswith(" "), lines[end:])) for end in ends]
    if inner := [_first(rest) for rest in behind if rest]:
        caused = any("the direct cause of" in line for line in lines) and inner[0] != inner[-1]
        return f"{inner[-1]}, because of {inner[0]}" if caused else inner[-1]
    if not lines:
        raised = extract_tb(error.__traceback__)[-1:]
        return kind + "".join(f" in {Path(at.filename).name}, line {at.lineno}" for at in raised)
    stderr = getattr(error, "stderr", None) or ""  # of a command that failed
    last = (stderr.decode(errors="replace") if isinstance(stderr, bytes) else str(stderr)).strip().splitlines()[-1:]
    return ": ".join([kind, _first(lines), *last])


def _first(lines: Sequence[str]) -> str:
    """Return the first line, and the second where the first one only announces it."""
    return " ".join(line.strip() for line in lines[: 1 + bool(ANNOUNCES.search(lines[0].strip()))])


def _printable(text: str) -> str:
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest known word, or else the known words."""
    names = sorted(name for name in known if len(name) <= LONGEST_WORD)
    if len(word) > LONGEST_WORD:  # comparing takes the product of the lengths
        return ""
    near = get_close_matches(word.lower(), [name.lower() for name in names], n=1, cutoff=0.6)
    if near:
        return f"; did you mean {next(name for name in names if name.lower() == near[0])!r}?"
    return f"; known: {', '.join(names)}" if names else ""
