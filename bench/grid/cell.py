"""A cell: an arm on a dataset with all that decides its result, and the ids that are made of it."""

import hashlib
import json
import re
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

BASELINE = "byol"  # the paper's `<DATASET>-T` priors are BYOL backbones, whatever else the grid trains
PROTOCOL_VERSION = 1  # raised whenever the code changes a result that the keys below do not show
LBFGS_VERSION = 2  # raised whenever that recipe gives other accuracies
L2 = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # of the mean loss, on features of deviation 1
MAX_NAME = 200  # bytes: names of files end at 255

Budget = Annotated[float, Field(ge=1e-6, le=1)]
Seed = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=4, le=1024)]
Precision = Literal["fp32", "bf16", "fp16"]  # of forward passes; weights are fp32


def _plain(params: dict[str, Any]) -> dict[str, Any]:
    """Refuse what JSON cannot hold: a record has to."""
    try:
        json.dumps(params, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError("must be finite numbers, strings, true, false, null, or lists and mappings of them") from error
    return params


def _printable(name: str) -> str:
    """Refuse a name that would not fit into a line or a file's name."""
    if not name.isprintable() or not 0 < len(name.encode()) <= MAX_NAME:
        raise ValueError(f"must be 1 to {MAX_NAME} bytes of printable text")
    return name


Name = Annotated[str, AfterValidator(_printable)]
Params = Annotated[dict[str, Any], AfterValidator(_plain)]


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


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

    @model_validator(mode="after")
    def _fp16_steps_are_counted(self) -> Self:
        if self.precision == "fp16" and self.optimiser != "adamw":
            raise ValueError(f"precision fp16 is for optimiser adamw; with {self.optimiser} take bf16 or fp32")
        return self

    @field_validator("eval_resize")
    @classmethod
    def _holds_the_input(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and (size := info.data.get("input_size")) and value < size:
            raise ValueError(f"must be at least input_size, {size}")
        return value


class Rela(Model):
    """The ReLA wrapper of an arm."""

    prior: str
    backbone: str | None = None  # architecture of a `file:` prior
    weights_key: str | None = None  # of a `file:` prior: behind which prefix its network is; None: the only one
    input_size: Size | None = None  # pixels the prior sees; None: what the prior declares, else the cell's own
    precision: Precision = "fp32"  # the prior's, when it makes the targets
    phase: Literal["adaptive"] | Annotated[float, Field(ge=0, le=1)] = "adaptive"  # or a share of the epochs
    train_map: bool = False  # the reference leaves the linear map at its random initial value
    check_every: PositiveInt = 1  # steps between two looks at the adaptive switch
    shuffle: bool = False  # control: each image gets the targets of another

    @model_validator(mode="after")
    def _key_of_a_file(self) -> "Rela":
        if self.weights_key is not None and not self.prior.startswith("file:"):
            raise ValueError(f"weights_key is for a prior file:<path>, and {self.prior!r} is none; leave it out")
        return self


class Arm(Model):
    """A method with its wrapper and settings."""

    name: Name | None = None
    method: Name
    params: Params = {}
    backbone: Name | None = None  # instead of the dataset's or the grid's
    rela: Rela | None = None
    recipe: dict[str, Any] = Field(default_factory=dict)  # keys of Recipe, instead of the protocol's
    flops_of: str | None = None  # control: stop where the FLOPs are spent that this arm took, targets included
    budgets: Annotated[tuple[Budget, ...] | None, Field(strict=False)] = None


def arm_name(arm: Arm) -> str:
    """Return the arm's own name, or one made of its method, wrapper and prior."""
    if arm.name:
        return arm.name
    params = ",".join(f"{key}={value}" for key, value in sorted(arm.params.items()))
    name = f"{arm.method}({params})" if params else arm.method
    if arm.backbone:
        name += f", {arm.backbone.removeprefix('timm:')}"
    name += "".join(f", {key} {value}" for key, value in sorted(arm.recipe.items()))
    if arm.flops_of:
        name += f" at the FLOPs of {arm.flops_of}"
    return f"rela({name},{arm.rela.prior})" if arm.rela else name


def is_plain(arm: Arm) -> bool:
    """Return whether an arm is its method and no more: without ReLA, and not stopped at another one's FLOPs."""
    return not (arm.rela or arm.flops_of)


class Cell(Model):
    """One arm at one budget on one dataset with one seed. `arm` is a label; all the rest decides the result."""

    arm: str
    dataset: str
    train_images: int | None
    backbone: str
    method: str
    params: dict[str, Any]
    rela: Rela | None
    flops_of: str | None = None
    budget: Budget
    seed: Seed
    protocol: Protocol

    def __str__(self) -> str:
        """Name it for people."""
        return f"{self.dataset} {self.arm} {self.budget:.0%} seed {self.seed}"

    def settings(self) -> dict[str, Any]:
        """Return all that decides the result and can be known without data or weights, ready for JSON.

        Of a prior's file only the name is kept: where it lies decides nothing, its content is in the inputs.
        """
        settings = self.model_dump(mode="json", exclude={"arm"})
        rela, protocol, probe = settings["rela"] or {}, settings["protocol"], settings["protocol"]["probe"]
        # Settings that came later are left out where they are off: what was run before them keeps its name.
        later: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (settings, {"flops_of": None}),
            (rela, {"weights_key": None, "shuffle": False, "precision": "fp32"}),
            (protocol, {"compile": None, "eval_resize": None, "evaluations": None}),
            (protocol, Recipe().model_dump(exclude={"lr", "weight_decay"})),
            (probe, {"seeds": 1}),
        ]
        for part, off in later:
            for name in off.keys() & part.keys():
                if part[name] == off[name]:
                    del part[name]
        # Of the recipes, each keeps what it uses.
        if self.protocol.optimiser == "adamw":
            protocol.pop("momentum", None)
        for unused in ("recipe", "l2") if probe["recipe"] == "adam" else ("epochs", "batch_size", "lr"):
            del probe[unused]
        if probe.get("recipe") == "lbfgs":
            probe["version"] = LBFGS_VERSION
        if self.rela and self.rela.prior.startswith("file:"):
            settings["rela"]["prior"] = "file:" + PurePath(self.rela.prior[len("file:") :]).name
        return settings

    def key(self) -> str:
        """Return the hash of the settings: which cell of a grid a record belongs to."""
        return digest({"protocol_version": PROTOCOL_VERSION, **self.settings()})


class Inputs(Model):
    """What a cell's result depends on beyond its settings.

    `data` and `prior` are digests of content (of a prior that the grid trains, its cell's id); `params` are the
    method's parameters with its defaults filled in; `flops_of` is the id of the cell whose FLOPs are matched.
    """

    data: str
    prior: str | None
    method_version: int
    params: dict[str, Any]
    flops_of: str | None = None


def makes_prior(cell: Cell) -> bool:
    """Return whether the cell's backbone is a `<DATASET>-T` prior."""
    return cell.method == BASELINE and not (cell.rela or cell.flops_of or cell.params) and cell.budget == 1.0


def trained_on(prior: str) -> str | None:
    """Return the dataset's short name of a `<DATASET>-T` prior, None for any other prior."""
    match = re.fullmatch(r"(?P<dataset>.+)-T", prior)
    return match["dataset"] if match and ":" not in prior else None


def cell_id(cell: Cell, inputs: Inputs) -> str:
    """Return the content hash that names the cell's record, checkpoint and backbone."""
    settings = cell.settings() | {"params": None}
    if cell.rela and cell.rela.prior.startswith("file:"):
        settings["rela"]["prior"] = "file:"
    if cell.flops_of:
        settings["flops_of"] = None  # the other arm's name decides nothing, its cell's id is in the inputs
    known = inputs.model_dump(mode="json", exclude={"flops_of"} if inputs.flops_of is None else None)
    return digest({"protocol_version": PROTOCOL_VERSION, "settings": settings, "inputs": known})


def digest(value: Any) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
