"""What grids may say in YAML: nothing that two versions of YAML read as two things."""

import re
from pathlib import Path

import pytest
import yaml

from bench.core.errors import UserError
from bench.grid.load import GRIDS, load_grid
from bench.grid.strict_yaml import read_yaml

BASE = "backbone: resnet_small\ndatasets: [digits]\nseeds: [0]\narms: [byol]\n"


@pytest.mark.parametrize(
    ("written", "one", "other"),
    [
        ("1:30", "90", '"1:30"'),
        ("-1:30:00.5", "-5400.5", '"-1:30:00.5"'),
        ("010", "8", "10"),
        ("+010", "8", "10"),
        ("08", '"08"', "8"),
        ("0o10", '"0o10"', "8"),
        ("0b11", "3", '"0b11"'),
        ("-0x1F", "-31", '"-0x1F"'),
        ("0x1_F", "31", '"0x1_F"'),
        ("1_000", "1000", '"1_000"'),
        ("1_0.5", "10.5", '"1_0.5"'),
        *((word, "true", f'"{word}"') for word in ("yes", "Yes", "on", "ON")),
        *((word, "false", f'"{word}"') for word in ("no", "NO", "off", "Off")),
        ("!!int '010'", "8", "10"),
        ("!!bool yes", "true", '"yes"'),
    ],
)
def test_what_two_versions_of_yaml_read_differently_is_refused(written: str, one: str, other: str) -> None:
    value = written.split()[-1].strip("'")
    for text in (f"a: 1\nb: {written}\n", f"a: 1\n{{{written}: 3}}\n".replace("a: 1\n{", "# a\n{")):
        with pytest.raises(UserError) as refused:
            read_yaml(text, "g.yaml")
        assert str(refused.value).endswith(
            f"line 2: {value} is {one} in YAML 1.1 and {other} in YAML 1.2; write one of these"
        )
        assert str(refused.value).startswith("g.yaml: ")
    assert read_yaml(f"b: '{value}'", "g.yaml") == {"b": value}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        *(("0", 0), ("00", 0), ("-7", -7), ("0x1F", 31), ("0.5", 0.5), ("1e-3", 0.001), (".5", 0.5)),
        *(("12:99", "12:99"), ("cifar_10", "cifar_10"), ("2024-01-01", "2024-01-01"), ("_", "_"), ("1e1_0", "1e1_0")),
        *(("true", True), ("False", False), ("null", None), ("y", "y"), ("nothing", "nothing")),
    ],
)
def test_what_both_versions_read_alike_is_read(written: str, value: object) -> None:
    found = read_yaml(f"a: {written}", "g.yaml")["a"]
    assert found == value
    assert type(found) is type(value)


def test_a_grid_and_a_setting_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text(BASE + "protocol:\n  epochs: 1:30\n")
    with pytest.raises(UserError, match=r"g\.yaml: .*line 6: 1:30 is 90 in YAML 1\.1"):
        load_grid(str(path))
    with pytest.raises(UserError, match=r"--set protocol\.epochs=010: .*line 1: 010 is 8 in YAML 1\.1 and 10"):
        load_grid("quickstart", settings=["protocol.epochs=010"])


@pytest.mark.parametrize("path", sorted(GRIDS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_grids_read_as_by_any_reader(path: Path) -> None:
    def numbers(value: object) -> object:
        """Read 1e-3 as a number, as people mean it."""
        if isinstance(value, dict):
            return {key: numbers(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return list(map(numbers, value))
        if isinstance(value, str) and re.fullmatch(r"[0-9.]+e-?[0-9]+", value):
            return float(value)
        return value

    text = path.read_text(encoding="utf-8")
    assert read_yaml(text, str(path)) == numbers(yaml.safe_load(text))
