"""Tables: in a terminal they fit, elsewhere a row is a line, and nothing is lost."""

import sys
from io import StringIO

import pytest

from bench.core.terminal import print_table

HEAD = ("#", "id", "cell", "state", "steps", "images", "TFLOP")
CELL = "cifar10 rela(byol(momentum=0.9,projection=64),file:some/very/long/path/of_a_prior.pt) 50% seed 0"
ROWS = [
    ("1", "0123456789abcdef", CELL, "after 12", "1,234,567", "123,456,789", "1,234.56"),
    ("12", "-", "x", "", "", "", ""),
]


class Screen(StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: StringIO, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(sys, "stdout", stream)
    print_table(HEAD, ROWS, ("#", "steps", "images", "TFLOP"))
    return stream.getvalue().splitlines()


def test_in_a_pipe_a_row_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    head, one, two = shown(StringIO(), monkeypatch)
    assert one.split("  ") == [" 1", *ROWS[0][1:]]
    assert two == f"12  -{' ' * 17}x"
    assert head.index("TFLOP") + 5 == len(one)


def test_a_terminal_folds_what_is_too_long_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("NO_COLOR", "1")
    lines = shown(Screen(), monkeypatch)
    assert max(map(len, lines)) <= 80
    text = "".join("".join(line.split()) for line in lines)
    assert all(word in "".join(lines) for word in ROWS[0][1:2] + ROWS[0][4:])
    assert sorted(text) == sorted(
        "".join("".join(HEAD).split()) + "".join("".join(row) for row in ROWS).replace(" ", "")
    )


def test_brackets_are_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    print_table(("", ""), [("[bold]x", "[/red] :smile:")])
    assert stream.getvalue() == "[bold]x  [/red] :smile:\n"
