"""Mistakes that a user can mend."""

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 2000  # characters of a sentence, which may hold a path or two
LONGEST_WORD = 100  # characters of a word that could be a slip of the pen


class UserError(Exception):
    """One clear sentence that names the file, the key and the fix; the program ends with exit code 2."""

    def __str__(self) -> str:
        """Return the sentence on one line of printable text, whatever was in what it quotes."""
        return _printable(" ".join(line.strip() for line in super().__str__().splitlines()))


class MissingError(UserError):
    """A dataset or a prior's weights that are not on this machine, and how to get them."""


class NotMadeError(UserError):
    """Results that are not there; `by` is the verb that makes them, and its words beyond those of the request."""

    def __init__(self, sentence: str, *by: str) -> None:
        super().__init__(sentence)
        self.by = by


def told(error: BaseException) -> str:
    """Return what kind of error a plugin or a library raised and the first line of what it says, as printable text."""
    kind = type(error).__name__
    try:
        said = str(error).strip().partition("\n")[0]
    except Exception:  # of the plugin's own
        return kind
    return _printable(f"{kind}: {said}" if said else kind)


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
