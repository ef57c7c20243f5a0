"""Grids: YAML, profiles and settings to a validated grid."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.core.errors import UserError, did_you_mean
from bench.core.paths import expanded, is_file
from bench.grid.claims import EVERY
from bench.grid.schema import Grid, merge
from bench.grid.strict_yaml import read_yaml
from bench.grid.validate import sentence

Names = Callable[[], Iterable[str]]
GRIDS = Path(__file__).parent / "shipped"
MAX_BYTES = 200_000
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
TOY = "toy"  # a file with this key is no grid of cells but a study of `bench.toy.study`
MINI_TOY: dict[str, Any] = {"seeds": [0, 1], "early": 2, "toy": {"evaluate_at": [0, 1, 2, 5], "prior_steps": 5}}


def find_grid(name: str) -> Path:
    """Return the path of the shipped grid `name`, or of the file `name`. Raises UserError."""
    shipped = {path.stem: path for path in GRIDS.glob("*.yaml")}
    if name in shipped:
        return shipped[name]
    path = expanded(name)
    if is_file(path):
        return path
    if path.suffix in {".yaml", ".yml"} or "/" in name:
        raise UserError(f"grid {name}: no such file")
    raise UserError(f"unknown grid {name!r}{did_you_mean(name, shipped)}")


def load_grid(
    name: str, profile: str | None = None, settings: Sequence[str] = (), methods: Names | None = None
) -> Grid:
    """Read and validate a grid.

    Args:
        name: a shipped grid's name or a path.
        profile: a key of the grid's `profiles`, or "mini", whose overrides are merged in.
        settings: `KEY=VALUE` strings with dotted keys and YAML values, merged in last.
        methods: what an arm of method "*" stands for; `bench.plan.load` hands in all there are.

    Raises:
        UserError: naming the file, the key, the value and the fix.
    """
    raw, path = read_grid(name)
    if TOY in raw:
        raise UserError(f"{path}: a study of the kind {TOY!r} has no cells; `run`, `status` and `report` know it")
    raw, source = with_overrides(raw, path, profile, settings)
    raw = _spelled_out(raw)
    if isinstance(raw.get("arms"), list):
        raw["arms"] = [each for arm in raw["arms"] for each in _every_method(arm, methods, source)]
    try:
        return Grid.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{source}: {sentence(error, Grid)}") from error


def read_grid(name: str) -> tuple[dict[str, Any], Path]:
    """Return what a grid's file says, not validated yet, and the file. Raises UserError."""
    path = find_grid(name)
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: over {MAX_BYTES:,} bytes, too large for a grid")
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


def _spelled_out(raw: dict[str, Any]) -> dict[str, Any]:
    """Turn the short forms `datasets: [digits]` and `arms: [byol]` into mappings."""
    raw = dict(raw)
    for key, field in (("datasets", "name"), ("arms", "method")):
        if isinstance(raw.get(key), list):
            raw[key] = [{field: item} if isinstance(item, str) else item for item in raw[key]]
    return raw


def _every_method(arm: Any, methods: Names | None, source: str) -> list[Any]:
    """Return the arm, or one for each method when its method is "*", which then stands for the method's name."""
    if not isinstance(arm, dict) or arm.get("method") != EVERY:
        return [arm]
    if methods is None:
        raise UserError(f"{source}: arms: method {EVERY!r} is for grids that are loaded by bench.plan.load")
    arms = [{**arm, "method": each} for each in methods()]
    if isinstance(arm.get("name"), str):
        arms = [each | {"name": arm["name"].replace(EVERY, each["method"])} for each in arms]
    return arms


def _with_profile(raw: dict[str, Any], profile: str, source: str) -> dict[str, Any]:
    profiles = raw.get("profiles") or {}
    if not isinstance(profiles, dict) or profile not in {"mini", *profiles}:
        known = {"mini", *map(str, profiles)} if isinstance(profiles, dict) else {"mini"}
        raise UserError(f"{source}: unknown profile {profile!r}{did_you_mean(profile, known)}")
    if profile == "mini" and TOY in raw:
        raw = merge(raw, MINI_TOY)
    elif profile == "mini":
        raw = _spelled_out(merge(raw, MINI))
        if isinstance(raw.get("datasets"), list):
            raw["datasets"] = [{**item, **MINI_DATASET} if isinstance(item, dict) else item for item in raw["datasets"]]
    own = profiles.get(profile) or {}
    if not isinstance(own, dict):
        raise UserError(f"{source}: profiles.{profile} must be a mapping of keys to override")
    return _overridden(raw, own) | {"name": f"{raw['name']}@{profile}"}


def _overridden(raw: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """Merge an override into a grid; other arms leave out what the grid says of those that are gone."""
    merged = merge(raw, override)
    arms = override.get("arms")
    if isinstance(arms, list):
        for key in {"claims", "published", "figure"} - override.keys():
            merged.pop(key, None)
        named = [arm.get("method") if isinstance(arm, dict) else arm for arm in arms]
        there = {method for method in named if isinstance(method, str)}
        if "tune" not in override and isinstance(merged.get("tune"), dict) and merged["tune"].get("arms"):
            merged.pop("tune")
        params = merged.get("params")
        if isinstance(params, dict) and "params" not in override and EVERY not in there:
            merged["params"] = {method: value for method, value in params.items() if method in there}
    return merged
