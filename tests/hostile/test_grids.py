"""Grids that are broken, absurd or meant to harm: a sentence, in bounded time and memory, and nothing is run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from bench.core.errors import UserError
from bench.core.paths import Paths
from bench.grid.expand import expand, rehearsed, select
from bench.grid.load import GRIDS, MAX_BYTES, MAX_DEPTH, load_grid
from bench.grid.schema import MAX_CELLS
from bench.plan.graph import Missing, plan
from bench.toy.study import find_toy

GRID: dict[str, Any] = {
    "title": "A test",
    "backbone": "resnet_small",
    "datasets": ["digits", {"name": "cifar10", "train_images": 500, "arms": ["byol"], "protocol": {"epochs": 2}}],
    "budgets": [0.5, 1.0],
    "seeds": [0, 1],
    "arms": [
        "byol",
        {"name": "named", "method": "simclr", "params": {"temperature": 0.2}, "budgets": [1.0]},
        {"method": "byol", "rela": {"prior": "rand", "phase": 0.5, "check_every": 3}},
        {"method": "byol", "rela": {"prior": "file:net.pt", "backbone": "resnet20_cifar"}},
        {"name": "same cost", "method": "byol", "flops_of": "byol"},
        {"name": "same time", "method": "byol", "seconds_of": "byol"},
        {"method": "byol", "accelerate": {"name": "seed", "prior": "rand", "queue": 16}},
        {"method": "byol", "warm_start": "DIGITS-T"},
    ],
    "params": {"byol": {"momentum": 0.9}},
    "claims": [{"name": "half", "arm": "rela(byol,rand)", "budget": 0.5, "baseline": "byol", "share": 0.5}],
    "published": [{"arm": "byol", "epoch": 3, "linear": 0.5, "source": "Table 1"}],
    "protocol": {"epochs": 3, "input_size": 16, "evaluate_at": [0.5, 1.0], "probe": {"epochs": 5}, "knn": {"k": 5}},
    "profiles": {"tiny": {"seeds": [0], "arms": ["byol"], "protocol": {"epochs": 1}}},
}
PIECES = tuple(
    piece if isinstance(piece, bytes) else piece.encode()
    for piece in (
        *(
            "*a",
            "&a ",
            "[&a x, *a]",
            "<<: {a: 1}\n",
            "<<: [1]\n",
            "? [a]\n: 1\n",
            "\t",
            "\0",
            "---\n",
            "...\n",
            "\ufeff",
        ),
        *("!!python/object/apply:os.mkdir [pwned]", "!!python/name:os.system ''", "!!timestamp x", "!!bool x", "!x y"),
        *("!!int ''", "!!float ''", "!!binary '*'", "!!set {a}", "!!omap [a]", "!!null x", "!!str [a]", "!!seq {a: 1}"),
        *("!!map [a]", "!!int 1:x", "%YAML 9.9\n", "'", '"', "[", "]", "{", "}", "- ", ": ", "|\n", "# ", "\n", "\n  "),
        *("0x" + "f" * 4000, "9" * 5000, "1:1:1", "1e400", ".nan", "-.inf", "[" * 500, "{a: " * 500, "- " * 500, "1_0"),
        *(b"\xed\xa0\x80", b"\xff\xfe", b'"\\ud800"', b'"\\0"'),
    )
)
PROFILES = st.sampled_from([None, None, None, "mini", "tiny", "none"])


def text(tree: Any) -> bytes:
    """A tree as YAML: JSON is, but for numbers that are none."""
    dumped = json.dumps(tree, default=lambda value: str(value))
    return dumped.replace("NaN", ".nan").replace("Infinity", ".inf").encode()


def block(tree: Any) -> bytes:
    """A tree as YAML that people write."""
    return yaml.safe_dump(tree, sort_keys=False).encode()


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("kind", ["tree", "text"])
def test_a_grid_is_planned_or_refused(fuzz, kind: str) -> None:
    path = fuzz.place / "mine.yaml"
    paths = Paths(fuzz.place / "data", fuzz.place / "results", "mine")
    contents = fuzz.changed(GRID).map(text) if kind == "tree" else fuzz.damaged(block(GRID), PIECES)

    def reads(given: tuple[bytes, str | None]) -> bool:
        path.write_bytes(given[0])
        grid = load_grid(str(path), given[1])
        cells = expand(grid)
        assert 0 < len(cells) <= MAX_CELLS
        expand(rehearsed(grid))
        for task in plan(cells, cells[:6], paths, f"grid {grid.name}"):
            assert task.reason if isinstance(task, Missing) else task.id
        return True

    fuzz(st.tuples(contents, PROFILES), reads, parts=2)


@pytest.mark.parametrize("kind", ["tree", "text"])
def test_a_study_is_read_or_refused(fuzz, kind: str) -> None:
    path = fuzz.place / "toy.yaml"
    whole = (GRIDS / "paper_toy.yaml").read_bytes()
    contents = fuzz.changed(yaml.safe_load(whole)).map(text) if kind == "tree" else fuzz.damaged(whole, PIECES)

    def reads(given: tuple[bytes, str | None]) -> bool:
        path.write_bytes(given[0])
        toy = find_toy(str(path), given[1])
        return toy is not None and all(setting.id for setting in toy.settings)

    fuzz(st.tuples(contents, PROFILES), reads, parts=2)


def test_a_setting_is_used_or_refused(fuzz) -> None:
    keys = fuzz.damaged(b"protocol.epochs", (b".", b"=", b"arms", b"seeds", b"params.byol.", b"a." * 5000))
    values = fuzz.damaged(b"[0, 1]", PIECES)
    sound = st.sampled_from(
        [b"protocol.epochs=2", b"seeds=[0]", b"budgets=[0.5, 1.0]", b"protocol={epochs: 2}", b"title=x"]
    )
    damaged = st.builds(lambda key, value: key + b"=" + value, keys, values)
    settings = st.one_of(damaged, sound).map(lambda raw: raw.decode(errors="surrogateescape"))
    path = fuzz.place / "mine.yaml"
    path.write_bytes(text(GRID))
    fuzz(settings, lambda setting: bool(expand(load_grid(str(path), None, [setting]))))


def test_only_selects_or_is_refused(fuzz) -> None:
    words = st.sampled_from(
        ["dataset", "arm", "prior", "budget", "seed", "x", "digits", "byol", "1", "0.5", "nan", "inf"]
    )
    signs = st.sampled_from(["=", "=", "=", ",", "", "\0", "1e400", "\ud800"])
    expressions = st.lists(st.tuples(words, signs), min_size=1, max_size=6).map(
        lambda parts: "".join(map("".join, parts))
    )
    path = fuzz.place / "mine.yaml"
    path.write_bytes(text(GRID))
    cells = expand(load_grid(str(path)))
    fuzz(st.one_of(expressions, st.sampled_from(["seed=0", "arm=byol,budget=0.5"])), lambda e: bool(select(cells, e)))


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Any]:
    """Load GRID with other values for some of its keys."""

    def load(raw: bytes | None = None, **changes: Any) -> Any:
        path = tmp_path / "mine.yaml"
        path.write_bytes(raw if raw is not None else text(GRID | changes))
        return load_grid(str(path))

    return load


def test_too_many_cells_are_refused_before_they_are_made(load: Callable[..., Any]) -> None:
    many = {"claims": [], "datasets": ["digits"]}
    assert len(expand(load(seeds=list(range(1000)), **many))) == 15000
    why = refusal(lambda: load(seeds=list(range(MAX_CELLS // 15 + 1)), **many))
    assert f"cells, datasets x arms x budgets x seeds, where {MAX_CELLS:,} are the most" in why
    names = [f"d{number}" for number in range(3000)]
    assert "180,000 cells" in refusal(lambda: load(datasets=names, claims=[], seeds=[0, 1, 2, 3]))
    assert "seeds: 1000000000: " in refusal(lambda: load(seeds=10**9))
    assert f"over {MAX_BYTES:,} bytes" in refusal(lambda: load(seeds=list(range(10**5))))


@pytest.mark.parametrize("name", ["", "\0", "a\0", "a\nb", "\x1b[31m", "\u202e", "x" * 10_000, "ü" * 150])
@pytest.mark.parametrize("what", ["arm", "dataset", "backbone", "method", "claim"])
def test_a_name_fits_into_a_line_and_a_files_name(load: Callable[..., Any], what: str, name: str) -> None:
    changes: dict[str, Any] = {
        "arm": {"arms": [{"method": "byol", "name": name}], "claims": []},
        "dataset": {"datasets": [name]},
        "backbone": {"backbone": name},
        "method": {"arms": [{"method": name}]},
        "claim": {"claims": [GRID["claims"][0] | {"name": name}]},
    }
    assert "must be 1 to 200 bytes of printable text" in refusal(lambda: load(**changes[what]))


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "..", ".", "", "a\0", "x" * 10_000, "-x", "@", "ü"])
def test_a_grids_name_is_a_plain_files(load: Callable[..., Any], name: str) -> None:
    assert "name: " in refusal(lambda: load(name=name))


@pytest.mark.parametrize("name", ["../x", "/etc", "a/../../x", "..", "."])
@pytest.mark.parametrize("argument", ["dataset", "file", "timm", "backbone"])
def test_names_lead_nowhere(load: Callable[..., Any], tmp_path: Path, argument: str, name: str) -> None:
    byol = {"method": "byol"}
    changes: dict[str, Any] = {
        "dataset": {"datasets": [name], "arms": [byol]},
        "file": {
            "datasets": ["digits"],
            "arms": [byol | {"rela": {"prior": f"file:{name}", "backbone": "resnet20_cifar"}}],
        },
        "timm": {"datasets": ["digits"], "arms": [byol | {"rela": {"prior": f"timm:resnet18.{name}"}}]},
        "backbone": {"backbone": f"timm:resnet18.{name}", "arms": [byol]},
    }
    (tmp_path / "x" / "train").mkdir(parents=True)
    cells = expand(load(claims=[], published=[], params={}, **changes[argument]))
    paths = Paths(tmp_path / "data", tmp_path / "results", "mine")
    if argument == "file":  # a path may be anywhere, and what is not a file is missing
        assert all("is not there: looked for" in task.reason for task in plan(cells, cells, paths, "mine"))
    else:
        assert "unknown" in refusal(lambda: plan(cells, cells, paths, "mine"))


@pytest.mark.parametrize(
    "tag",
    [
        "!!timestamp x",
        "!!bool x",
        "!!int ''",
        "!!float ''",
        "!!binary aGk=",
        "!!set {a}",
        "!!omap [a: 1]",
        "!mine x",
        '"\\ud800"',
    ],
)
def test_only_plain_values_are_made(load: Callable[..., Any], tag: str) -> None:
    assert "not valid YAML" in refusal(lambda: load(block(GRID) + f"x: {tag}\n".encode()))


@pytest.mark.parametrize("digits", ["9223372036854775808", "-9223372036854775808", "0x" + "f" * 5000, "0" + "7" * 5000])
def test_a_number_has_64_bits(load: Callable[..., Any], digits: str) -> None:
    assert "more than 64 bits" in refusal(lambda: load(block(GRID) + f"x: {digits}\n".encode()))
    assert load(seeds=[2**63 - 1]).seeds == (2**63 - 1,)


def test_a_deep_setting_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(text(GRID))
    for key in ("params.byol.", "title."):
        deep = key + "a." * 5000 + "b=1"
        assert f"up to {MAX_DEPTH} words" in refusal(
            lambda deep=deep: load_grid(str(tmp_path / "mine.yaml"), None, [deep])
        )


@pytest.mark.parametrize("piece", [b"[" * 90_000, b"{a: " * 40_000, b"- " * 90_000, b"a: b, " * 30_000, b"? " * 90_000])
def test_deep_or_long_text_takes_seconds_at_most(load: Callable[..., Any], piece: bytes) -> None:
    refusal(lambda: load(block(GRID) + b"x: " + piece))


def test_a_study_that_memory_does_not_hold_is_refused(tmp_path: Path) -> None:
    raw = yaml.safe_load((GRIDS / "paper_toy.yaml").read_text())
    (tmp_path / "toy.yaml").write_bytes(text(raw | {"toy": raw["toy"] | {"samples": 100_000, "dimension": 1000}}))
    assert "numbers at a time" in refusal(lambda: find_toy(str(tmp_path / "toy.yaml")))
