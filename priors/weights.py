"""Weights on disk: read without ever running what a file contains, written whole or not at all."""

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bench.atomic import atomic_write
from bench.errors import UserError

PREFIXES = ("module.", "backbone.", "encoder.", "model.")
COUNTER = "num_batches_tracked"
HEADS = ("linear.", "fc.", "head.", "classifier.", "heads.")


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file or of a state dict saved by torch.

    Raises UserError when the file is damaged, or is a pickled module: loading one runs code from the file.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # so does torch, on a type or a shape that it does not have
            raise UserError(f"{path}: not a readable safetensors file: {error}") from error
    try:
        _check_stored(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything on a damaged file
        raise UserError(
            f"{path}: not a state dict that loads without running code from the file; where you trust it, save the"
            " model's state_dict() alone, best as safetensors"
        ) from error
    for _ in range(2):  # as trainers nest it; no more, for a file can hold a mapping that contains itself
        inner = found.get("state_dict", found.get("model")) if isinstance(found, dict) else None
        found = inner if isinstance(inner, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path}: not a state dict (a mapping from names to tensors)")
    for name, value in found.items():
        if value.layout != torch.strided or value.is_nested or value.is_quantized or value.device.type != "cpu":
            raise UserError(f"{path}: {name}: not a plain tensor; save it dense, and not quantized")
    return {str(name): value for name, value in found.items()}


def _check_stored(path: Path) -> None:
    """Raise ValueError when an archive of torch's is compressed, as torch's own are not: it could hold any size."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("compressed")


def load_weights(module: nn.Module, path: Path) -> None:
    """Load the file's tensors into `module`: all that the module needs, in the right shapes, or UserError."""
    module.load_state_dict(fitting_state(module, path), strict=False)


def fitting_state(module: nn.Module, path: Path) -> dict[str, Tensor]:
    """Return the file's tensors under the names and in the types of `module`, which may be on the device `meta`.

    Prefixes that wrappers add (`module.`, `backbone.`, ...) are dropped, a classifier that the module does not
    have is left out. Raises UserError unless all is there that the module needs, in the right shapes.
    """
    state = read_state(path)
    own = module.state_dict()
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state) and not all(name.startswith(prefix) for name in own):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    needed = {name for name in own if not name.endswith(COUNTER)}
    missing = sorted(needed - state.keys())
    foreign = sorted(name for name in state.keys() - own.keys() if not name.startswith(HEADS))
    if missing or foreign:
        sentence = f"lacks {missing[0]!r}" if missing else f"has {foreign[0]!r} too much"
        count = len(missing) + len(foreign)
        raise UserError(f"{path}: does not fit the architecture: it {sentence} ({count} names differ)")
    for name in own.keys() & state.keys():
        if own[name].shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)} where {tuple(own[name].shape)} is needed"
            raise UserError(f"{path}: does not fit the architecture: {name} has shape {shapes}")
    fitting = {name: state[name].to(own[name].dtype) for name in own if name in state}
    for name, value in fitting.items():
        if not value.isfinite().all():
            raise UserError(f"{path}: {name} holds values that are not finite numbers")
    return fitting


def digest_state(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256, in hexadecimal, of tensors by name: of the same weights the same, however they are stored.

    Counters of batches, which no network uses in eval mode, are left out.
    """
    sha = hashlib.sha256()
    for name in sorted(name for name in state if not name.endswith(COUNTER)):
        value = state[name].cpu().contiguous()
        sha.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def save_weights(module: nn.Module, path: Path) -> None:
    """Write the module's state as safetensors, atomically."""
    save_tensors({name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}, path)


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically: a reader sees the whole file or none."""
    with atomic_write(path) as file:
        file.write(save(tensors, metadata))
