"""What a grid must be beyond its types, and what is wrong with it in one sentence."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from bench.core.errors import UserError, did_you_mean
from bench.grid.claims import statements
from bench.grid.expand import arms_on, cell_of, protocol_of
from bench.grid.schema import Arm, Grid, Protocol, arm_name

MAX_CELLS = 100_000


def validated(raw: dict[str, Any], source: str) -> Grid:
    """Return the grid that is meant, or raise UserError with `source`, the key, the value and the fix."""
    try:
        grid = Grid.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{source}: {sentence(error, Grid)}") from error
    cells = len(grid.datasets) * len(grid.seeds) * sum(len(arm.budgets or grid.budgets) for arm in grid.arms)
    if cells > MAX_CELLS:
        raise UserError(
            f"{source}: {cells:,} cells, datasets x arms x budgets x seeds, where {MAX_CELLS:,} are the most"
        )
    unique: list[tuple[str, Sequence[str | float]]] = [
        ("dataset", [dataset.name for dataset in grid.datasets]),
        ("arm", [arm_name(arm) for arm in grid.arms]),
        ("seed", list(grid.seeds)),
        ("budget", list(grid.budgets)),
        *(("budget", list(arm.budgets)) for arm in grid.arms if arm.budgets),
    ]
    for what, names in unique:
        seen: set[str | float] = set()
        for index, name in enumerate(names):
            if name in seen:
                raise UserError(f"{source}: {what}s[{index}]: {what} {name} is there twice; remove one")
            seen.add(name)
    arms = {arm_name(arm): arm for arm in grid.arms}
    for index, arm in enumerate(grid.arms):
        if arm.flops_of is not None:
            _check_match(grid, arm, arms, f"{source}: arms[{index}].flops_of")

    def check_arm(name: str, key: str) -> None:
        if name not in arms:
            raise UserError(f"{source}: {key}: {name!r} is no arm{did_you_mean(name, arms)}")

    try:
        statements(grid)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    for index, point in enumerate(grid.published):
        check_arm(point.arm, f"published[{index}].arm")
    used = {arm.method for arm in grid.arms}
    for method in grid.params:
        if method not in used:
            raise UserError(f"{source}: params.{method}: no arm has this method{did_you_mean(method, used)}")
    for index, dataset in enumerate(grid.datasets):
        for name in dataset.arms or ():
            check_arm(name, f"datasets[{index}].arms")
        there = arms_on(grid, dataset)
        for arm in there:
            if arm.flops_of and arm.flops_of not in map(arm_name, there):
                raise UserError(
                    f"{source}: datasets[{index}].arms: {arm_name(arm)!r} needs {arm.flops_of!r} there, too"
                )
        try:
            protocol_of(grid, dataset)
        except ValidationError as error:
            raise UserError(f"{source}: {sentence(error, Protocol, f'datasets[{index}].protocol')}") from error
    first: dict[str, Arm] = {}
    for index, arm in enumerate(grid.arms):
        # What a cell's key sees of an arm: two arms that have it in common would share their records.
        cell = cell_of(grid, grid.datasets[0], grid.protocol, arm, 1.0, 0)
        same = first.setdefault(cell.key(), arm)
        if same is not arm:
            why = "of a prior's path only the file's name counts; rename one file" if _paths_differ(same, arm) else ""
            raise UserError(
                f"{source}: arms[{index}]: arm {arm_name(arm)!r} is the same as {arm_name(same)!r}; "
                f"{why or 'remove one'}"
            )
    return grid


def _check_match(grid: Grid, arm: Arm, arms: dict[str, Arm], where: str) -> None:
    """Raise UserError unless the arm can spend what the one it names in `flops_of` spends."""
    other = arms.get(arm.flops_of or "")
    if other is None:
        raise UserError(f"{where}: {arm.flops_of!r} is not an arm{did_you_mean(arm.flops_of or '', arms)}")
    if other.flops_of:
        raise UserError(f"{where}: arm {arm.flops_of!r} matches another one itself; name that one")
    if arm.rela:
        raise UserError(f"{where}: an arm with rela cannot match another one's FLOPs; leave out one of the two")
    for budget in sorted({*(arm.budgets or grid.budgets)} - {*(other.budgets or grid.budgets)}):
        raise UserError(f"{where}: arm {arm.flops_of!r} has no budget {budget:g} to match; give both the same budgets")


def _paths_differ(one: Arm, other: Arm) -> bool:
    return bool(one.rela and other.rela and one.rela.prior != other.rela.prior)


def sentence(error: ValidationError, model: type[BaseModel], under: str = "") -> str:
    """Turn pydantic's first complaint into one sentence: key (below the key `under`), value, fix."""
    complaints = error.errors(include_url=False)
    first = complaints[0]
    path = list(first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if path and "[" in str(path[-1]) and first["type"] != "extra_forbidden":
        # Not a key: the branch of a union (`adaptive` or a share), or that a mapping's key itself is wrong.
        path.pop()
        others = [c["msg"][0].lower() + c["msg"][1:] for c in complaints[1:] if list(c["loc"][:-1]) == path]
        message = ", or ".join([message, *others])
    key = under + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    key = key.lstrip(".")
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}{did_you_mean(str(path[-1]), _fields(model, path[:-1]))}"
    if first["type"] == "missing":
        return f"key {key!r} is missing"
    value = repr(first["input"])
    value = value if len(value) <= 80 else f"{value[:77]}..."
    return f"{key}: {value}: {message[0].lower()}{message[1:]}"


def _fields(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """Return the field names of the model that `path` leads to from `model`."""
    for part in path:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        found = _models(model.model_fields[part].annotation)
        if not found:
            return []
        model = found[0]
    return list(model.model_fields)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in getattr(annotation, "__args__", ()) for model in _models(argument)]
