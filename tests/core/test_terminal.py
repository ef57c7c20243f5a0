"""Tables: in a terminal they fit, elsewhere a row is a line, and nothing is lost."""

import re
import sys
from io import StringIO

import pytest

from bench.core.terminal import shortened, table_text

HEAD = ("#", "id", "cell", "state", "steps", "images", "TFLOP")
CELL = "cifar10 rela(byol(momentum=0.9,projection=64),file:some/very/long/path/of_a_prior.pt) 50% seed 0"
ROWS = [
    ("1", "0123456789abcdef", CELL, "after 12", "1,234,567", "123,456,789", "1,234.56"),
    ("12", "-", "x", "", "", "", ""),
]


class Screen(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("NO_COLOR", "1")


def shown(stream: StringIO, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(sys, "stdout", stream)
    print(table_text(HEAD, ROWS, ("#", "steps", "images", "TFLOP"), shorten="cell"))
    return stream.getvalue().splitlines()


def test_in_a_pipe_a_row_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    head, one, two = shown(StringIO(), monkeypatch)
    assert one.split("  ") == [" 1", *ROWS[0][1:]]
    assert two == f"12  -{' ' * 17}x"
    assert head.index("TFLOP") + 5 == len(one)


@pytest.mark.parametrize("stream", [Screen, StringIO])
def test_where_a_line_has_a_width_a_row_is_cut_in_the_middle_of_one_column(
    stream: type[StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    head, one, two = shown(stream(), monkeypatch)
    assert max(map(len, (head, one, two))) <= 80
    number, name, cell, *rest = re.split("  +", one.strip())
    assert (number, name, *rest) == (ROWS[0][0], ROWS[0][1], *ROWS[0][3:])
    start, end = cell.split("…")
    assert CELL.startswith(start)
    assert CELL.endswith(end)
    assert min(len(start), len(end)) >= 5


def test_a_terminal_folds_the_last_column_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    stream = Screen()
    monkeypatch.setattr(sys, "stdout", stream)
    print(table_text(("", ""), [("0123456789abcdef", CELL), ("x", "")]))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("0123456789abcdef  cifar10")
    assert "".join("".join(lines).split()) == f"0123456789abcdef{CELL}x".replace(" ", "")


def test_only_a_terminal_has_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "xterm")
    said = []
    for stream in (Screen(), StringIO()):
        monkeypatch.setattr(sys, "stdout", stream)
        print(table_text(("a", "state"), [("done", "3 done")], states="state"))
        said.append(stream.getvalue())
    assert said[0].splitlines()[1] == "done  3 \x1b[32mdone\x1b[0m"
    assert "\x1b" not in said[1]


@pytest.mark.parametrize(("length", "text"), [(3, "a…g"), (4, "ab…g"), (6, "abc…fg"), (7, "abcdefg")])
def test_shortened(length: int, text: str) -> None:
    assert shortened("abcdefg", length) == text


def test_brackets_are_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    print(table_text(("", ""), [("[bold]x", "[/red] :smile:")]))
    assert stream.getvalue() == "[bold]x  [/red] :smile:\n"
