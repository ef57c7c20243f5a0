"""A cell: an arm on a dataset with all that decides its result, and the ids that are made of it."""

import hashlib
import json
import re
from collections import Counter
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator, model_validator

from bench.grid.base import Budget, Model, Name, Params, Precision, Seed, Size, Space
from bench.grid.controls import Wrapped
from bench.grid.evaluation import Asked, Evaluation

BASELINE = "byol"  # the paper's `<DATASET>-T` priors are BYOL backbones, whatever else the grid trains
LABELLED = "supervised"  # the one method of ours that sees the labels
PROTOCOL_VERSION = 1  # raised whenever the code changes a result that the keys below do not show
LBFGS_VERSION = 2  # raised whenever that recipe gives other accuracies
L2 = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # of the mean loss, on features of deviation 1


class Probe(Model):
    """Linear evaluation: one Linear on frozen features, by Adam (paper section on evaluation, public code).

    Or, as `recipe: lbfgs`, the minimum of a penalised logistic regression, which has no use for `epochs`, `batch_size`
    and `lr` and takes the best of the strengths `l2` by a tenth of the training images. The two recipes give different
    accuracies, and which it was is part of a cell's identity.

    The accuracy is that of the first of `seeds` probes; the others tell how far it depends on the probe's own chance.
    """

    recipe: Literal["adam", "lbfgs"] = "adam"
    l2: Annotated[tuple[PositiveFloat, ...], Field(strict=False, min_length=1, max_length=20)] = L2
    epochs: PositiveInt = 100
    batch_size: PositiveInt = 128
    lr: PositiveFloat = 3e-4
    seeds: PositiveInt = 1


class Knn(Model):
    """Weighted k-nearest-neighbour evaluation (Wu et al. 2018)."""

    k: PositiveInt = 200
    temperature: Annotated[float, Field(ge=0.02)] = 0.1  # exp(1 / temperature) must be a float32


class Recipe(Model):
    """How the weights are optimised. The defaults are the paper's: AdamW at one rate, whatever the budget."""

    optimiser: Literal["adamw", "sgd", "lars"] = "adamw"
    lr: PositiveFloat = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of SGD and LARS
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    decay_norm_and_bias: bool = True  # False: no weight decay on them, and with LARS no scaling of their rate
    schedule: Literal["constant", "cosine"] = "constant"  # of the rate; cosine ends at 0 with the cell's own budget
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of the cell's own steps over which the rate rises
    teacher: Literal["constant", "cosine"] = "constant"  # a momentum network's momentum: the method's, or up to 1


class Protocol(Recipe):
    """Everything that must be equal for two results to be comparable, but the recipe, which an arm may have of its own.

    The defaults are the paper's.
    """

    epochs: PositiveInt = 100
    batch_size: Annotated[int, Field(ge=2)] = 128
    precision: Precision = "fp32"
    compile: Literal["default", "reduce-overhead"] | None = None  # torch.compile's mode; the second is CUDA graphs
    input_size: Size | None = None  # pixels; None: the dataset's own
    eval_resize: Size | None = None  # pixels of the shorter side of which evaluation takes the centre; None: input_size
    blur: bool = True  # the reference drops every blur on CIFAR
    evaluate_at: Annotated[tuple[Budget, ...], Field(strict=False)] = (1.0,)  # shares of the cell's own steps
    evaluations: PositiveInt | None = None  # so many more: at all steps of the full budget, a half, a quarter, ...
    probe: Probe = Probe()
    knn: Knn = Knn()
    # What the backbone is further judged by. Each has an id of its own, made of the cell's and its settings.
    evaluate: Annotated[tuple[Asked, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _fp16_steps_are_counted(self) -> Self:
        if self.precision == "fp16" and self.optimiser != "adamw":
            raise ValueError(f"precision fp16 is for optimiser adamw; with {self.optimiser} take bf16 or fp32")
        return self

    @field_validator("evaluate")
    @classmethod
    def _each_once(cls, value: tuple[Evaluation, ...]) -> tuple[Evaluation, ...]:
        if twice := [name for name, count in Counter(each.name for each in value).items() if count > 1]:
            raise ValueError(f"names {twice[0]} twice; keep one")
        return value

    @field_validator("eval_resize")
    @classmethod
    def _holds_the_input(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and (size := info.data.get("input_size")) and value < size:
            raise ValueError(f"must be at least input_size, {size}")
        return value


class Validation(Model):
    """A class-balanced part of the training images that a trial is judged by, and not trained on."""

    share: Annotated[float, Field(gt=0, lt=1)]
    seed: Seed

    def count(self, images: int) -> int:
        """Return how many of so many training images it has."""
        return max(1, round(self.share * images))


class Tuning(Model):
    """How a recipe is chosen: by the best of some trials, as many and at the same points for each arm.

    `space` has keys of Recipe: of a number the lowest and the highest value, of anything else the values to choose
    from. A trial trains with `seed`, and leaves out the part `validation` of the training images, which judges it.
    """

    trials: Annotated[int, Field(ge=2, le=1000)] = 8  # of each arm, dataset and budget
    space: Annotated[dict[str, Space], Field(min_length=1)]  # keys of Recipe: a range, or values to choose from
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share of the training images that judges
    seed: Seed = 100  # of the points, the split and the trials' training


class Arm(Wrapped):
    """A method with its wrapper and settings."""

    name: Name | None = None
    method: Name
    params: Params = Field(default_factory=dict)
    backbone: Name | None = None  # instead of the dataset's or the grid's
    recipe: dict[str, Any] = Field(default_factory=dict)  # keys of Recipe, instead of the protocol's
    budgets: Annotated[tuple[Budget, ...] | None, Field(strict=False)] = None


def arm_name(arm: Arm) -> str:
    """Return the arm's own name, or one made of its method, wrapper and prior."""
    if arm.name:
        return arm.name
    params = ",".join(_settings_of(arm.params))
    name = f"{arm.method}({params})" if params else arm.method
    if arm.backbone:
        name += f", {arm.backbone.removeprefix('timm:')}"
    name += "".join(f", {key} {value}" for key, value in sorted(arm.recipe.items()))
    if arm.warm_start:
        name += f" from {arm.warm_start}"
    if arm.matches:
        name += f" at the {'FLOPs' if arm.flops_of else 'seconds'} of {arm.matches}"
    if arm.rela:
        name = f"rela({name},{arm.rela.prior})"
    if arm.accelerate:
        prior = [arm.accelerate.prior] if arm.accelerate.prior else []
        name = f"{arm.accelerate.name}({','.join([name, *prior, *_settings_of(arm.accelerate.params)])})"
    return name


def _settings_of(params: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in sorted(params.items())]


def is_plain(arm: Wrapped) -> bool:
    """Return whether an arm is its method alone: from random weights, and not stopped at what another one took."""
    return not (arm.wrappers or arm.warm_start or arm.matches)


class Cell(Wrapped):
    """One arm at one budget on one dataset with one seed. `arm` is a label; all the rest decides the result.

    Of a `tuned` cell, the keys of the space are chosen by trials, which are cells with a `validation`; until then they
    are the arm's own.
    """

    arm: str
    dataset: str
    train_images: int | None
    backbone: str
    method: str
    params: dict[str, Any]
    budget: Budget
    seed: Seed
    protocol: Protocol
    tuned: Tuning | None = None
    validation: Validation | None = None

    def __str__(self) -> str:
        """Name it for people."""
        return f"{self.dataset} {self.arm} {self.budget:.0%} seed {self.seed}"

    def settings(self) -> dict[str, Any]:
        """Return all that decides the result and can be known without data or weights, ready for JSON.

        Of a prior's file only the name is kept: where it lies decides nothing, its content is in the inputs.
        """
        settings = self.model_dump(mode="json", exclude={"arm"})
        rela, accelerate = settings["rela"] or {}, settings["accelerate"] or {}
        protocol, probe = settings["protocol"], settings["protocol"]["probe"]
        del protocol["evaluate"]
        # Settings that came later are left out where they are off: what was run before them keeps its name.
        later: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (settings, {"accelerate": None, "warm_start": None, "flops_of": None, "seconds_of": None}),
            (settings, {"tuned": None, "validation": None}),
            (rela, {"weights_key": None, "shuffle": False, "precision": "fp32", "then": None}),
            *((wrapper, {"layer": None, "ensemble": []}) for wrapper in (rela, accelerate)),
            (protocol, {"compile": None, "eval_resize": None, "evaluations": None}),
            (protocol, Recipe().model_dump(exclude={"lr", "weight_decay"})),
            (probe, {"seeds": 1}),
        ]
        for part, off in later:
            for name in off.keys() & part.keys():
                if part[name] == off[name]:
                    del part[name]
        # Of the recipes, each keeps what it uses.
        if self.protocol.optimiser == "adamw" and not self.tuned:
            protocol.pop("momentum", None)
        for unused in ("recipe", "l2") if probe["recipe"] == "adam" else ("epochs", "batch_size", "lr"):
            del probe[unused]
        if probe.get("recipe") == "lbfgs":
            probe["version"] = LBFGS_VERSION
        for part, key in _files(settings):
            part[key] = "file:" + PurePath(part[key][len("file:") :]).name
        return settings

    def as_started(self) -> Self:
        """Return the cell with the prior that its weights begin with in the place of that of its targets."""
        architecture = self.backbone if str(self.warm_start).startswith("file:") else None
        bare = self.model_copy(update={"rela": None, "accelerate": None})
        return bare.with_prior(self.warm_start, architecture) if self.warm_start else bare

    def key(self) -> str:
        """Return the hash of the settings: which cell of a grid a record belongs to.

        It is the same before a recipe is chosen and after; the id is of the chosen one.
        """
        settings = self.settings()
        for chosen in self.tuned.space if self.tuned else ():
            settings["protocol"].pop(chosen, None)
        return digest({"protocol_version": PROTOCOL_VERSION, **settings})


class Inputs(Model):
    """What a cell's result depends on beyond its settings.

    `data`, `prior` and `warm_start` are digests of content (of a prior that the grid trains, its cell's id); `params`
    are the method's parameters with its defaults filled in, `accelerator_params` the accelerator's; `flops_of` and
    `seconds_of` are the id of the cell whose FLOPs or seconds are matched.
    """

    data: str
    prior: str | None
    method_version: int
    params: dict[str, Any]
    flops_of: str | None = None
    seconds_of: str | None = None
    warm_start: str | None = None
    accelerator_version: int | None = None
    accelerator_params: dict[str, Any] | None = None


def makes_prior(cell: Cell) -> bool:
    """Return whether the cell's backbone is a `<DATASET>-T` prior."""
    plain = is_plain(cell) and not (cell.params or cell.validation)
    return cell.method == BASELINE and plain and cell.budget == 1.0


def trained_on(prior: str) -> str | None:
    """Return the dataset's short name of a `<DATASET>-T` prior, None for any other prior."""
    match = re.fullmatch(r"(?P<dataset>.+)-T", prior)
    return match["dataset"] if match and ":" not in prior else None


def cell_id(cell: Cell, inputs: Inputs) -> str:
    """Return the content hash that names the cell's record, checkpoint and backbone."""
    settings = cell.settings() | {"params": None}
    for part, key in _files(settings):
        part[key] = "file:"
    if cell.accelerate:
        settings["accelerate"] = {k: v for k, v in settings["accelerate"].items() if k not in cell.accelerate.params}
    for name in ("flops_of", "seconds_of"):
        if settings.get(name):
            settings[name] = None  # the other arm's name decides nothing, its cell's id is in the inputs
    known = inputs.model_dump(mode="json")
    # What came later is left out where it is not: what was run before it keeps its id.
    for name in known.keys() - {"data", "prior", "method_version", "params"}:
        if known[name] is None:
            del known[name]
    return digest({"protocol_version": PROTOCOL_VERSION, "settings": settings, "inputs": known})


def _files(settings: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Return where settings name a prior that is a file: the mappings, and the key in each."""
    files = [(settings, "warm_start")]
    files += [(part, "prior") for name in ("rela", "accelerate") if (part := settings.get(name))]
    return [(part, key) for part, key in files if str(part.get(key)).startswith("file:")]


def digest(value: Any) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
