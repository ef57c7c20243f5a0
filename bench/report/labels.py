"""What arms and budgets are called in a report, and which arms belong to one method."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from bench.grid.cell import Arm, arm_name, is_plain
from bench.grid.controls import Accelerate, PriorChoice, Rela
from bench.grid.schema import Grid


@dataclass(frozen=True)
class Family:
    """A method with its parameters: the plain arm, if the grid has it, and those with ReLA and controls beside it."""

    name: str
    plain: Arm | None
    others: tuple[Arm, ...]

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All of them, the plain one first."""
        return (self.plain, *self.others) if self.plain else self.others


def families(grid: Grid) -> tuple[Family, ...]:
    """Return the grid's methods, each with the arms that belong to it, in the order of the arms."""
    members: dict[str, list[Arm]] = defaultdict(list)
    for arm in grid.arms:
        members[_family_name(arm)].append(arm)
    made = []
    for name, arms in members.items():
        plain = next(filter(is_plain, arms), None)
        others = tuple(arm for arm in arms if arm is not plain)
        label = _with_tuned(arm_name(plain), arm_name(plain) in grid.tuned) if plain else name
        made.append(Family(label, plain, others))
    return tuple(made)


def percent(share: float) -> str:
    """Return a budget for people."""
    return f"{100 * share:g}%"


def arm_labels(arms: Iterable[Arm], short: bool = False, tuned: Collection[str] = ()) -> dict[str, str]:
    """Return what to call each arm, by its name: its own name, or its method (unless `short`), prior and settings.

    Those whose names are among the `tuned` ones are called so.
    """
    labels = {arm_name(arm): _with_tuned(_label(arm, short), arm_name(arm) in tuned) for arm in arms}
    counts = Counter(labels.values())
    return {name: label if counts[label] == 1 else name for name, label in labels.items()}


def prior_name(prior: str) -> str:
    """Return what to call a prior: its name, or its file's."""
    if prior.startswith("file:"):
        prior = prior.removeprefix("file:").rpartition("/")[2].removesuffix(".safetensors")
    return prior.removeprefix("timm:")


def prior_label(choice: PriorChoice) -> str:
    """Return what to call a prior with its layer and its ensemble."""
    first = prior_name(choice.prior)
    return " + ".join((f"{first} at {choice.layer}" if choice.layer else first, *map(prior_name, choice.ensemble)))


def _family_name(arm: Arm) -> str:
    return arm_name(Arm(method=arm.method, params=arm.params, backbone=arm.backbone))


def _with_tuned(label: str, tuned: bool) -> str:
    return f"{label}, tuned" if tuned and "tuned" not in label else label


def _label(arm: Arm, short: bool) -> str:
    if arm.name or not arm.wrappers or arm.warm_start:
        matched = short and arm.matches and not arm.name
        return f"{arm.method} at the same {'FLOP' if arm.flops_of else 'seconds'}" if matched else arm_name(arm)
    labels = map(_wrapper_label, arm.wrappers.values())
    return " + ".join(labels if short else (_family_name(arm), *labels))


def _wrapper_label(wrapper: Rela | Accelerate) -> str:
    notes = [prior_label(wrapper)] if wrapper.prior else []
    notes += [wrapper.weights_key.strip(".")] if wrapper.weights_key else []
    notes += [wrapper.precision] if wrapper.precision != "fp32" else []
    if isinstance(wrapper, Rela):
        notes += [f"phase {wrapper.phase:g}"] if wrapper.phase != "adaptive" else []
        notes += ["trained map"] if wrapper.train_map else []
        notes += [f"then {wrapper.then}"] if wrapper.then else []
    else:
        notes += [f"{key} {value}" for key, value in sorted(wrapper.params.items())]
    notes += ["shuffled"] if wrapper.shuffle else []
    return ("ReLA" if isinstance(wrapper, Rela) else wrapper.name) + (f" ({', '.join(notes)})" if notes else "")
