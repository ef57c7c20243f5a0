"""Grids: YAML to validated cells."""

import math
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from bench.claims import statements
from bench.errors import UserError, did_you_mean
from bench.spec import EVERY, Arm, Cell, Dataset, Grid, Knn, Probe, Protocol, arm_name

GRIDS = Path(__file__).parent / "grids"
MAX_BYTES = 200_000
MAX_CELLS = 100_000
MAX_DEPTH = 20  # of the dotted key of a setting
# Any grid, made small enough to try on a laptop's CPU. A grid's own `mini` goes on top of it.
MINI: dict[str, Any] = {
    "backbone": "resnet_small",
    "seeds": [0],
    "protocol": {
        "epochs": 2,
        "batch_size": 32,
        "input_size": 32,
        "precision": "fp32",
        "compile": None,
        "probe": {"epochs": 10},
    },
}
MINI_DATASET: dict[str, Any] = {"train_images": 640, "backbone": None, "protocol": {}}
TOY = "toy"  # a file with this key is no grid of cells but a study of `bench.toy`
MINI_TOY: dict[str, Any] = {"seeds": [0, 1], "early": 2, "toy": {"evaluate_at": [0, 1, 2, 5], "prior_steps": 5}}

REHEARSAL = "@rehearsal"  # ends the name of a rehearsed grid
REHEARSED = Protocol(epochs=2, batch_size=2, probe=Probe(epochs=3, batch_size=2), knn=Knn(k=1))
ROOM = ("input_size", "blur")  # what a rehearsal keeps of the protocol


class _Loader(yaml.SafeLoader):
    """Plain YAML: mappings, lists, words, numbers of up to 64 bits, true, false, null.

    Without aliases (a few lines of them can stand for gigabytes) and without repeated keys.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"line {line}: aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: a key must be a plain word")
            if key_node.value in seen:
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: key {key_node.value!r} is there twice")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        value.encode()  # half of a surrogate pair is no text: no record could hold it
        return value

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = super().construct_yaml_int(node)
        if abs(value) >= 2**63:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: a whole number of more than 64 bits")
        return value


_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
_Loader.yaml_constructors = {
    None: yaml.SafeLoader.yaml_constructors[None],  # refuses the other tags
    **{f"tag:yaml.org,2002:{kind}": getattr(_Loader, f"construct_yaml_{kind}") for kind in _PLAIN},
}
# YAML 1.1 reads 1e-3 as a string; people who write it mean a number.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(text: str, source: str) -> Any:
    """Parse YAML text. Raises UserError naming `source` and the line."""
    try:
        return yaml.load(text, Loader=_Loader)
    except Exception as error:  # PyYAML raises nearly anything on a tag that its value does not suit
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split()) or type(error).__name__}") from error


def find_grid(name: str) -> Path:
    """Return the path of the shipped grid `name`, or of the file `name`. Raises UserError."""
    shipped = {path.stem: path for path in GRIDS.glob("*.yaml")}
    if name in shipped:
        return shipped[name]
    path = Path(name)
    with suppress(OSError):  # a name that is too long for a file's
        if path.is_file():
            return path
    if path.suffix in {".yaml", ".yml"} or "/" in name:
        raise UserError(f"--grid {name}: no such file")
    raise UserError(f"unknown grid {name!r}{did_you_mean(name, shipped)}")


def load_grid(name: str, profile: str | None = None, settings: Sequence[str] = ()) -> Grid:
    """Read and validate a grid.

    Args:
        name: a shipped grid's name or a path.
        profile: a key of the grid's `profiles`, or "mini", whose overrides are merged in.
        settings: `KEY=VALUE` strings with dotted keys and YAML values, merged in last.

    Raises:
        UserError: naming the file, the key, the value and the fix.
    """
    raw, path = read_grid(name)
    if TOY in raw:
        raise UserError(f"{path}: a study of the kind {TOY!r} has no cells; `run`, `status` and `report` know it")
    raw, source = with_overrides(raw, path, profile, settings)
    return _validated(_spelled_out(raw), source)


def read_grid(name: str) -> tuple[dict[str, Any], Path]:
    """Return what a grid's file says, not validated yet, and the file. Raises UserError."""
    path = find_grid(name)
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: over {MAX_BYTES:,} bytes, which no grid is")
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a UTF-8 text file") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a grid is a mapping with keys such as name, datasets, arms")
    return {"name": path.stem, **raw}, path


def with_overrides(
    raw: dict[str, Any], path: Path, profile: str | None, settings: Sequence[str]
) -> tuple[dict[str, Any], str]:
    """Return what a grid's file says under a profile and `KEY=VALUE` settings, and how errors name the two."""
    if profile is not None:
        raw = _with_profile(raw, profile, str(path))
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise UserError(f"--set {setting}: write KEY=VALUE, for example --set protocol.epochs=2")
        override: Any = read_yaml(value, f"--set {setting}")
        parts = key.strip().split(".")
        if len(parts) > MAX_DEPTH or not key.isprintable():
            raise UserError(f"--set {setting}: a key is up to {MAX_DEPTH} words with dots between them")
        for part in reversed(parts):
            override = {part: override}
        raw = _overridden(raw, override)
    return raw, " ".join([str(path), *(f"--set {setting}" for setting in settings)])


def rehearsed(grid: Grid) -> Grid:
    """Return the grid with a handful of steps: the same cells of one seed, each with one batch an epoch."""
    smallest = min(budget for arm in grid.arms for budget in arm.budgets or grid.budgets)
    datasets = tuple(
        dataset.model_copy(
            update={
                "train_images": _one_batch(smallest),
                "protocol": {key: value for key, value in dataset.protocol.items() if key in ROOM},
            }
        )
        for dataset in grid.datasets
    )
    return grid.model_copy(
        update={
            "name": grid.name + REHEARSAL,
            "title": f"REHEARSAL of: {grid.title or grid.name}",
            "seeds": grid.seeds[:1],
            "datasets": datasets,
            "protocol": REHEARSED.model_copy(update={key: getattr(grid.protocol, key) for key in ROOM}),
        }
    )


def _one_batch(budget: float) -> int:
    """Return how many training images are one batch an epoch of a rehearsal."""
    return math.ceil(REHEARSED.batch_size / budget - 1e-9)


def expand(grid: Grid) -> list[Cell]:
    """Return the grid's cells in the order datasets, arms, budgets, seeds."""
    cells = []
    for dataset in grid.datasets:
        protocol = protocol_of(grid, dataset)
        for arm in arms_on(grid, dataset):
            for budget, seed in product(arm.budgets or grid.budgets, grid.seeds):
                cells.append(_cell(grid, dataset, protocol, arm, budget, seed))
    return cells


def _cell(grid: Grid, dataset: Dataset, protocol: Protocol, arm: Arm, budget: float, seed: int) -> Cell:
    return Cell(
        arm=arm_name(arm),
        dataset=dataset.name,
        train_images=_one_batch(budget) if grid.name.endswith(REHEARSAL) else dataset.train_images,
        backbone=arm.backbone or dataset.backbone or grid.backbone,
        method=arm.method,
        params={**grid.params.get(arm.method, {}), **arm.params},
        rela=arm.rela,
        flops_of=arm.flops_of,
        budget=budget,
        seed=seed,
        protocol=protocol,
    )


def arms_on(grid: Grid, dataset: Dataset) -> list[Arm]:
    """Return the arms that run on a dataset of the grid."""
    return [arm for arm in grid.arms if dataset.arms is None or arm_name(arm) in dataset.arms]


def protocol_of(grid: Grid, dataset: Dataset) -> Protocol:
    """Return the grid's protocol with the dataset's own overrides. Raises ValidationError."""
    return Protocol.model_validate(_merge(grid.protocol.model_dump(), dataset.protocol))


def select(cells: Iterable[Cell], expression: str) -> list[Cell]:
    """Return the cells that `--only` names: comma-separated KEY=VALUE, all of which must hold.

    Keys: dataset, arm, method, prior, budget, seed. A key may be repeated: any of its values will do. Raises
    UserError when the expression is not one, or matches nothing.
    """
    wanted: dict[str, set[str | float]] = {}
    for part in expression.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        known = ("dataset", "arm", "method", "prior", "budget", "seed")
        if not equals or key not in known:
            raise UserError(f"--only {expression}: {part!r} is not KEY=VALUE{did_you_mean(key, known)}")
        try:
            wanted.setdefault(key, set()).add(float(value) if key in {"budget", "seed"} else value)
        except ValueError as error:
            raise UserError(f"--only {expression}: {key} is a number, not {value!r}") from error
    cells = list(cells)
    facts: list[dict[str, str | float]] = [
        {
            "dataset": cell.dataset,
            "arm": cell.arm,
            "method": cell.method,
            "prior": cell.rela.prior if cell.rela else "none",
            "budget": cell.budget,
            "seed": float(cell.seed),
        }
        for cell in cells
    ]
    for key, values in wanted.items():
        there = {fact[key] for fact in facts}
        for absent in values - there:
            raise UserError(
                f"--only {expression}: no cell has {key}={absent}{did_you_mean(str(absent), map(str, there))}"
            )
    chosen = [cell for cell, fact in zip(cells, facts, strict=True) if all(fact[k] in v for k, v in wanted.items())]
    if not chosen:
        raise UserError(f"--only {expression}: no cell has all of these together")
    return chosen


def _spelled_out(raw: dict[str, Any]) -> dict[str, Any]:
    """Turn the short forms `datasets: [digits]` and `arms: [byol]` into mappings, and method "*" into every method."""
    raw = dict(raw)
    for key, field in (("datasets", "name"), ("arms", "method")):
        if isinstance(raw.get(key), list):
            raw[key] = [{field: item} if isinstance(item, str) else item for item in raw[key]]
    if isinstance(raw.get("arms"), list):
        raw["arms"] = [each for arm in raw["arms"] for each in _every_method(arm)]
    return raw


def _every_method(arm: Any) -> list[Any]:
    """Return the arm, or one for each method when its method is "*", which then stands for the method's name."""
    if not isinstance(arm, dict) or arm.get("method") != EVERY:
        return [arm]
    from methods import methods  # imports torch, which other grids can be read without

    arms = [{**arm, "method": each} for each in methods]
    if isinstance(arm.get("name"), str):
        arms = [each | {"name": arm["name"].replace(EVERY, each["method"])} for each in arms]
    return arms


def _with_profile(raw: dict[str, Any], profile: str, source: str) -> dict[str, Any]:
    profiles = raw.get("profiles") or {}
    if not isinstance(profiles, dict) or profile not in {"mini", *profiles}:
        known = {"mini", *map(str, profiles)} if isinstance(profiles, dict) else {"mini"}
        raise UserError(f"{source}: unknown profile {profile!r}{did_you_mean(profile, known)}")
    if profile == "mini" and TOY in raw:
        raw = _merge(raw, MINI_TOY)
    elif profile == "mini":
        raw = _spelled_out(_merge(raw, MINI))
        if isinstance(raw.get("datasets"), list):
            raw["datasets"] = [{**item, **MINI_DATASET} if isinstance(item, dict) else item for item in raw["datasets"]]
    own = profiles.get(profile) or {}
    if not isinstance(own, dict):
        raise UserError(f"{source}: profiles.{profile} must be a mapping of keys to override")
    return _overridden(raw, own) | {"name": f"{raw['name']}@{profile}"}


def _overridden(raw: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """Merge an override into a grid; other arms leave out what the grid says of those that are gone."""
    merged = _merge(raw, override)
    arms = override.get("arms")
    if isinstance(arms, list):
        for key in {"claims", "published"} - override.keys():
            merged.pop(key, None)
        named = [arm.get("method") if isinstance(arm, dict) else arm for arm in arms]
        there = {method for method in named if isinstance(method, str)}
        params = merged.get("params")
        if isinstance(params, dict) and "params" not in override and EVERY not in there:
            merged["params"] = {method: value for method, value in params.items() if method in there}
    return merged


def _merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """Merge mappings key by key; anything else is replaced."""
    merged = dict(base)
    for key, value in override.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _validated(raw: dict[str, Any], source: str) -> Grid:
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
        cell = _cell(grid, grid.datasets[0], grid.protocol, arm, 1.0, 0)
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
