"""The verb `schema`: what a grid may say, for editors."""

import json
from typing import Any


def schema() -> None:
    """Print the JSON schema of a grid, by which editors complete and check its YAML."""
    print(json.dumps(grid_schema(), indent=1))


def grid_schema() -> dict[str, Any]:
    """Return the JSON schema of a grid or study as a file has it: short forms and partial mappings included."""
    from pydantic.json_schema import models_json_schema

    from bench.grid.cell import Recipe
    from bench.grid.schema import Grid
    from bench.toy.study import ToyGrid

    _, made = models_json_schema([(model, "validation") for model in (Grid, Recipe, ToyGrid)])
    kinds = made["$defs"]
    grid = kinds["Grid"]["properties"]
    for key, kind in (("datasets", "Dataset"), ("arms", "Arm")):
        grid[key]["items"] = {"anyOf": [{"type": "string"}, _kind(kind)]}
    kinds["Dataset"]["properties"]["protocol"] = _kind("Protocol")
    kinds["Arm"]["properties"]["recipe"] = _kind("Recipe")
    grid["recipes"]["additionalProperties"] = _kind("Recipe")
    for kind in ("Grid", "ToyGrid"):
        kinds[kind]["required"].remove("name")  # which is the file's
        overrides = {name: what for name, what in kinds[kind]["properties"].items() if name != "profiles"}
        profile = {"type": "object", "properties": overrides, "additionalProperties": False}
        kinds[kind]["properties"]["profiles"]["additionalProperties"] = profile
    kinds["ToyGrid"]["properties"]["profiles"]["additionalProperties"]["properties"]["toy"] = {"type": "object"}
    return {"title": "A grid of rela-bench", "anyOf": [_kind("Grid"), _kind("ToyGrid")], "$defs": kinds}


def _kind(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}
