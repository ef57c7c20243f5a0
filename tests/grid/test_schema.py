"""The JSON schema of a grid, which editors check files by, against the shipped grids and the model."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from bench.cli.main import app
from bench.cli.schema import grid_schema
from bench.core.errors import UserError
from bench.grid.load import GRIDS, load_grid
from bench.grid.schema import Grid

SCHEMA = grid_schema()
SHIPPED = sorted(GRIDS.glob("*.yaml"))
TYPES: dict[str, Any] = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
SAYS_NOTHING = {"title", "description", "default", "$defs"}
LIMITS: dict[str, Any] = {
    "minimum": lambda value, limit: value >= limit,
    "maximum": lambda value, limit: value <= limit,
    "exclusiveMinimum": lambda value, limit: value > limit,
    "exclusiveMaximum": lambda value, limit: value < limit,
    "minItems": lambda value, limit: len(value) >= limit,
    "maxItems": lambda value, limit: len(value) <= limit,
    "minProperties": lambda value, limit: len(value) >= limit,
    "maxLength": lambda value, limit: len(value) <= limit,
    "pattern": lambda value, limit: re.search(limit, value) is not None,
    "enum": lambda value, limit: value in limit,
    "const": lambda value, limit: value == limit,
}


def problems(value: Any, schema: Any, where: str = "") -> list[str]:
    """What is wrong with a value, by JSON Schema as far as our schema uses it; another keyword is a KeyError."""
    if schema is True:
        return []
    if schema is False:
        return [f"{where}: not allowed"]
    rules = {key: rule for key, rule in schema.items() if key not in SAYS_NOTHING}
    if "$ref" in rules:
        return problems(value, SCHEMA["$defs"][rules["$ref"].removeprefix("#/$defs/")], where)
    if "anyOf" in rules:
        tried = [problems(value, each, where) for each in rules["anyOf"]]
        return [] if [] in tried else [each for those in tried for each in those]
    if not is_a(value, rules.pop("type", None)):
        return [f"{where}: {value!r} is of another type"]
    found = []
    known, other, items = (
        rules.pop(key, default)
        for key, default in (("properties", {}), ("additionalProperties", True), ("items", True))
    )
    found += [f"{where}: {name} is needed" for name in rules.pop("required", []) if name not in value]
    if isinstance(value, dict):
        found += [
            each for name, of in value.items() for each in problems(of, known.get(name, other), f"{where}.{name}")
        ]
    if isinstance(value, list):
        found += [each for index, of in enumerate(value) for each in problems(of, items, f"{where}[{index}]")]
    return found + [f"{where}: {key} {limit}" for key, limit in rules.items() if not LIMITS[key](value, limit)]


def is_a(value: Any, kind: str | None) -> bool:
    if kind in {"number", "integer"}:
        return type(value) is int or (kind == "number" and type(value) is float)
    return kind is None or isinstance(value, TYPES[kind])


def test_the_kept_schema_is_what_the_command_prints() -> None:
    ran = CliRunner().invoke(app, ["schema"])
    assert ran.exit_code == 0, ran.output
    assert (GRIDS.parent / "grid.schema.json").read_text() == ran.stdout
    assert json.loads(ran.stdout) == SCHEMA


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_a_shipped_grid_names_the_schema_and_is_one(path: Path) -> None:
    text = path.read_text()
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert named
    assert (path.parent / named[1]).resolve() == GRIDS.parent / "grid.schema.json"
    assert problems(yaml.safe_load(text), SCHEMA) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"arm": ["byol"]}, ".arm: not allowed"),
        ({"seeds": []}, ": minItems 1"),
        ({"seeds": None}, ".seeds: None is of another type"),
        ({"budgets": [1.5]}, ".budgets[0]: maximum 1"),
        ({"arms": [{"method": "byol", "rela": {"prior": "rand", "shufle": True}}]}, ".rela.shufle: not allowed"),
        ({"arms": [{"method": "byol", "recipe": {"optimizer": "sgd"}}]}, ".recipe.optimizer: not allowed"),
        ({"datasets": [{"name": "digits", "protocol": {"epoch": 3}}]}, ".protocol.epoch: not allowed"),
        ({"protocol": {"optimiser": "adam"}}, ".protocol.optimiser: enum"),
        ({"profiles": {"p": {"seed": [1]}}}, ".profiles.p.seed: not allowed"),
        ({"recipes": {"byol": {"lr": 0}}}, ".recipes.byol.lr: exclusiveMinimum"),
    ],
)
def test_a_mistake_is_one_for_the_schema_as_for_the_model(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    grid = {"backbone": "resnet_small", "datasets": ["digits"], "seeds": [0], "arms": ["byol"]}
    assert problems(grid, SCHEMA) == []
    changed = grid | change
    assert any(problem in each for each in problems(changed, SCHEMA)), problems(changed, SCHEMA)
    path = tmp_path / "g.yaml"
    path.write_text(yaml.safe_dump(changed))
    with pytest.raises(UserError):
        load_grid(str(path), *change.get("profiles", []))


def test_every_key_of_a_grid_is_in_the_schema() -> None:
    assert SCHEMA["$defs"]["Grid"]["properties"].keys() == Grid.model_fields.keys()
    assert load_grid("quickstart").model_fields_set <= SCHEMA["$defs"]["Grid"]["properties"].keys()
