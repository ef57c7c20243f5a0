"""Mistakes that a user can mend."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """One clear sentence that names the file, the key and the fix; the program ends with exit code 2."""

    def __str__(self) -> str:
        """Return the sentence on one line, whatever line breaks were in what it quotes."""
        return " ".join(line.strip() for line in super().__str__().splitlines())


class MissingError(UserError):
    """A dataset or a prior's weights that are not on this machine, and how to get them."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest known word, or else the known words."""
    names = sorted(known)
    near = get_close_matches(word.lower(), [name.lower() for name in names], n=1, cutoff=0.6)
    if near:
        return f"; did you mean {next(name for name in names if name.lower() == near[0])!r}?"
    return f"; known: {', '.join(names)}" if names else ""
