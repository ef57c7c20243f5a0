"""What an arm has around and under its method: an accelerator, a prior to start from, a cost to stop at."""

from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, PositiveInt, model_validator

from bench.grid.base import Model, Name, Precision, Size, plain


class PriorChoice(Model):
    """A prior, and how the targets are made of it."""

    prior: str
    backbone: str | None = None  # architecture of a `file:` prior
    weights_key: str | None = None  # of a `file:` prior: behind which prefix its network is; None: the only one
    input_size: Size | None = None  # pixels the prior sees; None: what the prior declares, else the cell's own
    precision: Precision = "fp32"  # the prior's, when it makes the targets
    shuffle: bool = False  # control: each image gets the targets of another
    layer: Name | None = None  # the module of the prior whose output its features are; None: the prior's own
    ensemble: Annotated[tuple[Name, ...], Field(strict=False)] = ()  # further priors, whose features stand beside

    @property
    def first(self) -> str:
        """The prior with its layer."""
        return f"{self.prior} at {self.layer}" if self.layer else self.prior

    @property
    def named(self) -> str:
        """The prior with its layer, and its ensemble."""
        return " + ".join((self.first, *self.ensemble))

    def members(self, digest: str) -> dict[str, str]:
        """Return the digest of each prior by its name, of that of all of them (priors/joined.py)."""
        if not (self.layer or self.ensemble):
            return {self.prior: digest}
        parts = [part.partition(" at ")[0] for part in digest.split(" + ")]
        return dict(zip((self.prior, *self.ensemble), parts, strict=False))

    @model_validator(mode="after")
    def _key_of_a_file(self) -> Self:
        if self.weights_key is not None and not self.prior.startswith("file:"):
            raise ValueError(f"weights_key is for a prior file:<path>, and {self.prior!r} is none; leave it out")
        return self

    @model_validator(mode="after")
    def _each_prior_once(self) -> Self:
        if not self.prior and (self.layer or self.ensemble):
            raise ValueError(f"{'layer' if self.layer else 'ensemble'} is for a prior, and none is named; leave it out")
        names = [*([] if self.layer else [self.prior]), *self.ensemble]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"ensemble: {twice[0]!r} is there twice; keep one")
        if files := [name for name in self.ensemble if name.startswith("file:")]:
            raise ValueError(f"ensemble: {files[0]!r} needs a backbone, which only prior has; name it there")
        return self


class Rela(PriorChoice):
    """The ReLA wrapper of an arm."""

    phase: Literal["adaptive"] | Annotated[float, Field(ge=0, le=1)] = "adaptive"  # or a share of the epochs
    train_map: bool = False  # the reference leaves the linear map at its random initial value
    check_every: PositiveInt = 1  # steps between two looks at the adaptive switch
    then: Literal["cosine"] | None = None  # after the phase: the rate falls to 0 at the cell's end; None: the recipe's


class Accelerate(PriorChoice):
    """Another accelerator around an arm's method. Keys that are not fields here are its own parameters."""

    model_config = ConfigDict(extra="allow")

    name: Name
    prior: str = ""  # "": none

    @property
    def params(self) -> dict[str, Any]:
        """The accelerator's own parameters, as the grid gives them."""
        return self.model_extra or {}

    @model_validator(mode="after")
    def _plain_parameters(self) -> Self:
        plain(self.params)
        return self


class Wrapped(Model):
    """What an arm and its cells have around and under their method."""

    rela: Rela | None = None
    accelerate: Accelerate | None = None
    warm_start: Name | None = None  # control: a prior whose weights training begins with
    flops_of: str | None = None  # control: stop where the FLOPs are spent that this arm took, targets included
    seconds_of: str | None = None  # control: the same with the seconds

    @property
    def wrappers(self) -> dict[str, Rela | Accelerate]:
        """What is around the method, from within, by its key."""
        return {key: each for key, each in (("rela", self.rela), ("accelerate", self.accelerate)) if each}

    @property
    def targets_key(self) -> str | None:
        """The key of the wrapper whose prior's targets are trained on, None where none are."""
        return next((key for key, each in self.wrappers.items() if each.prior), None)

    @property
    def targets_of(self) -> PriorChoice | None:
        """The prior whose targets are trained on, None where none are."""
        return self.wrappers[self.targets_key] if self.targets_key else None

    @property
    def priors(self) -> tuple[str, ...]:
        """The names of the priors: of the targets, and of the weights that training begins with."""
        choice = self.targets_of
        named = (*((choice.prior, *choice.ensemble) if choice else ()), self.warm_start)
        return tuple(dict.fromkeys(name for name in named if name))

    def with_prior(self, prior: str, backbone: str | None = None) -> Self:
        """Return what has that prior's targets in the place of its own."""
        return self.model_copy(update={"rela": Rela(prior=prior, backbone=backbone), "accelerate": None})

    @property
    def matches(self) -> str | None:
        """The arm whose FLOPs or seconds are matched."""
        return self.flops_of or self.seconds_of
