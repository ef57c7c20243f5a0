"""ReLA-D: a prior's features of the training set, reduced and standardised (Sun et al. 2024, public code)."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bench.core.files import set_aside
from bench.grid.schema import digest
from bench.models.weights import save_tensors
from bench.store.record import Cells
from bench.targets.rows import Mapped

DAMAGED = "targets that are damaged, or not those of its name"
VERSION = 1  # raised whenever the code makes other targets of the same features


@dataclass(frozen=True)
class Cost:
    """What making the targets took, paid once and charged to every cell that uses them.

    `side_by_side`: the most cells that ran on the device meanwhile; `other_load`: the share of the seconds that other
    work took, None where it is not known.
    """

    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    flops: Annotated[int, Field(ge=0)]
    images: Annotated[int, Field(ge=0)]
    joules: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None  # of the GPU; None: not measured
    side_by_side: Cells = 1
    other_load: Annotated[float, Field(ge=0, le=1)] | None = None

    @classmethod
    def read(cls, text: str) -> "Cost":
        """Return the cost that JSON text holds. Raises ValueError when it holds none."""
        return TypeAdapter(cls).validate_json(text, strict=True)


@dataclass(frozen=True)
class Targets:
    """Targets float32 (N, k) of N training images, how many of the k components are empty, and their cost.

    `maker` is the id of the cell that made them. The values are in memory, or rows of a file when the images stream.
    """

    values: Tensor | Mapped
    empty: int
    cost: Cost
    maker: str = ""


def reduce_features(features: Tensor, dim: int) -> tuple[Tensor, int]:
    """Return the standardised principal components of features, and how many of them are empty.

    Features (N, p) are centred and projected onto the top k = min(dim, p) eigenvectors of their covariance, in
    float64; each component then has mean 0 and (biased) variance 1. Components are in the order of falling
    variance, their sign makes the eigenvector's largest entry positive. A component without variance, such as a
    prior with constant outputs has, is 0: the public code would divide by zero there.
    """
    count = len(features)
    mean = features.double().mean(dim=0)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=features.device)
    for part in torch.split(features, 16384):
        centred = part.double() - mean
        covariance += centred.T @ centred
    values, vectors = components(covariance / max(count - 1, 1), dim)
    full = has_variance(values)
    reduced = torch.cat([(part.double() - mean) @ vectors for part in torch.split(features, 16384)])
    reduced -= reduced.mean(dim=0)
    deviation = reduced.std(dim=0, correction=0)
    standard = torch.where(full, reduced / torch.where(full, deviation, 1.0), 0.0)
    return standard.float(), int((~full).sum())


def components(covariance: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the largest k = min(dim, p) eigenvalues (k,) of a covariance (p, p), falling, and eigenvectors (p, k)."""
    values, vectors = torch.linalg.eigh(covariance)
    k = min(dim, len(values))
    values, vectors = values.flip(0)[:k], vectors.flip(1)[:, :k]
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    return values, vectors * largest.sign()


def has_variance(values: Tensor) -> Tensor:
    """Tell which components, by their falling eigenvalues (k,), are not empty: bool (k,)."""
    return values > values[0].clamp(min=1e-30) * 1e-12


def cache_path(cache: Path, **identity: str | int) -> Path:
    """Return where targets of this identity are cached; data, prior and settings all count."""
    return cache / "targets" / f"{digest({'version': VERSION, **identity})}.safetensors"


def save_targets(targets: Targets, path: Path) -> None:
    """Write targets that are in memory, and their cost, atomically."""
    assert isinstance(targets.values, Tensor)
    metadata = {
        "empty": str(targets.empty),
        "cost": json.dumps(asdict(targets.cost)),
        "maker": targets.maker,
        "digest": digest_of(targets.values),
    }
    save_tensors({"targets": targets.values.cpu()}, path, metadata)


def load_targets(path: Path, count: int) -> Targets | None:
    """Return cached targets of `count` images; None when there are none, or the file is damaged and set aside."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            values = file.get_tensor("targets")
        targets = read_metadata(values, metadata)
        fits = values.dtype == torch.float32 and values.dim() == 2 and len(values) == count
        if fits and digest_of(values) == metadata["digest"]:
            return targets
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RuntimeError):
        pass
    set_aside(path, DAMAGED)
    return None


def read_metadata(values: Tensor | Mapped, metadata: dict[str, str]) -> Targets:
    """Return the targets whose values and metadata a file holds. Raises KeyError, TypeError, ValueError."""
    cost = Cost.read(metadata["cost"])
    return Targets(values, int(metadata["empty"]), cost, metadata.get("maker", ""))


def digest_of(values: Tensor) -> str:
    """Return the digest of a tensor's bytes."""
    return hashlib.sha256(values.cpu().contiguous().numpy().data).hexdigest()[:16]
