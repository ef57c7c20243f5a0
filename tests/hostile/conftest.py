"""Broken and hostile input for every reader: a few hundred of each by default, 10,000 of each under `-m slow`."""

import copy
import math
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from bench.core.errors import LONGEST, UserError

T = TypeVar("T")
ROOM = 2 << 30  # bytes of address space that a reader may take beside what the process has
HANG = 600  # seconds for one input, which takes milliseconds, on a machine that does much else


def nested(depth: int) -> Any:
    found: Any = 1
    for level in range(depth):
        found = [found] if level % 2 else {"x": found}
    return found


VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308),
    *(math.nan, math.inf, -math.inf, "", "x", "*", "~", "null", "1e3", "1e400", "0x10", "adaptive", "byol", "rand"),
    *("../x", "/etc/passwd", "a/../../b", ".", "..", "\0", "a\0b", "\x1b[31m", "\u202e", "\ud800", "ü" * 300),
    *("x" * 10_000, "../" * 50, "file:/dev/zero", "file:../../x", "file:", "timm:", "timm:*", "CF10-T", "rand:1"),
    *("timm:resnet18.a/../../b", [], {}, [[]], [None], ["x", "x"], {"": None}, {1: 2}, {"x": math.nan}),
    *(nested(5), nested(40), [0] * 300, list(range(300)), b"bytes"),
]


def places_in(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each (container, key) of a tree of dicts and lists."""
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(value, dict | list):
            yield from places_in(value)


class Fuzz:
    """Runs a reader on `count` inputs: each is taken, or refused with a sentence. `place` is where it may write."""

    def __init__(self, count: int, place: Path) -> None:
        self.count, self.place = count, place

    def __call__(self, inputs: SearchStrategy[T], reads: Callable[[T], bool], parts: int = 1) -> None:
        """Try inputs; `reads` tells whether one was taken. Some must be, and some must not.

        The number of inputs is shared by the `parts` of a test that is run for several kinds of them.
        """
        count = math.ceil(self.count / parts)
        seen = refused = 0
        slowest = 0.0

        @settings(
            max_examples=count,
            derandomize=self.count < 1000,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(inputs)
        def attempt(given: T) -> None:
            nonlocal seen, refused, slowest
            seen += 1
            began = time.perf_counter()
            signal.alarm(HANG)
            try:
                refused += not reads(given)
            except UserError as error:
                refused += 1
                check_sentence(str(error))
            finally:
                signal.alarm(0)
            slowest = max(slowest, time.perf_counter() - began)

        began = time.perf_counter()
        with limited_memory(), hang_is_an_error():
            attempt()
        took = time.perf_counter() - began
        print(f"\n{seen:,} inputs, {refused:,} refused, {took:.1f} s, the slowest {slowest:.2f} s")
        assert seen >= count
        assert 0 < refused < seen

    @staticmethod
    @st.composite
    def changed(draw: DrawFn, tree: Any, values: list[Any] = VALUES) -> Any:
        """A tree of dicts and lists with one to three things in it replaced, removed, repeated, renamed, wrapped."""
        root = [copy.deepcopy(tree)]
        for _ in range(draw(st.integers(0, 3))):
            paths = list(places_in(root))
            holder, key = paths[draw(st.integers(0, len(paths) - 1))]
            value = copy.deepcopy(values[draw(st.integers(0, len(values) - 1))])
            match draw(
                st.sampled_from(["replace", "replace", "replace", "remove", "repeat", "rename", "wrap", "move"])
            ):
                case "replace":
                    holder[key] = value
                case "remove" if holder is not root:
                    del holder[key]
                case "repeat" if isinstance(holder, list) and holder is not root:
                    holder.insert(key, copy.deepcopy(holder[key]))
                case "rename" if isinstance(holder, dict) and isinstance(value, str):
                    holder[value] = holder.pop(key)
                case "wrap":
                    holder[key] = draw(st.sampled_from([[holder[key]], {"x": holder[key]}]))
                case "move":
                    other, place = paths[draw(st.integers(0, len(paths) - 1))]
                    holder[key] = copy.deepcopy(other[place] if place in other or isinstance(other, list) else value)
        return root[0]

    @staticmethod
    @st.composite
    def damaged(draw: DrawFn, content: bytes, pieces: tuple[bytes, ...] = (), head: int | None = None) -> bytes:
        """Bytes with up to four changes, mostly among the first `head`: flipped, cut, removed, repeated, put in."""
        raw = bytearray(content)
        for _ in range(draw(st.integers(0, 4))):
            end = len(raw) if head is None or draw(st.integers(0, 3)) == 0 else min(head, len(raw))
            start = draw(st.integers(0, max(end - 1, 0)))
            stop = min(start + draw(st.integers(1, 40)), len(raw))
            match draw(st.sampled_from(["flip", "set", "cut", "remove", "repeat", *["piece"] * (2 * bool(pieces))])):
                case "flip" if raw:
                    raw[start] ^= 1 << draw(st.integers(0, 7))
                case "set" if raw:
                    raw[start:stop] = draw(st.sampled_from([b"\0", b"\xff", b"\x7f", b"9", b" "])) * (stop - start)
                case "cut":
                    del raw[start:]
                case "remove":
                    del raw[start:stop]
                case "repeat":
                    raw[start:start] = raw[start:stop]
                case "piece":
                    raw[start : draw(st.sampled_from([start, stop]))] = draw(st.sampled_from(pieces))
        return bytes(raw)


def check_sentence(text: str) -> None:
    assert text
    assert len(text) < 7 * LONGEST  # of characters that are written as escapes
    assert text.isprintable()
    assert "\n" not in text


@contextmanager
def limited_memory() -> Iterator[None]:
    """Limit the process to what it has now and `ROOM`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def hang_is_an_error() -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise TimeoutError(f"an input took more than {HANG} s")

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=[pytest.param(200, id="some"), pytest.param(10_000, id="many", marks=pytest.mark.slow)])
def fuzz(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fuzz]:
    """The number of inputs, and a folder to read from: nothing may appear beside it or in the working directory."""
    place, here = tmp_path / "place", tmp_path / "here"
    place.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("BENCH_CACHE", raising=False)
    yield Fuzz(request.param, place)
    assert sorted(path.name for path in tmp_path.rglob("*") if place not in (path, *path.parents)) == ["here"]
