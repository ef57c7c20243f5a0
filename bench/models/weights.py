"""Weights on disk: read without ever running what a file contains, written whole or not at all."""

import hashlib
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bench.core.errors import UserError
from bench.core.files import atomic_write

# Parts of names that torch's own wrappers add: compile, data parallelism and averages, FSDP, checkpointed activations.
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
COUNTERS = ("num_batches_tracked", "n_averaged")
HEADS = ("linear.", "fc.", "head.", "classifier.", "heads.")
DEEPEST, MOST_PARTS, NAMED = 8, 40, 5  # mappings in one another, parts of a name, prefixes in a sentence
# How files begin that are no weights but what a download left in their place, and what helps.
IMPOSTORS = {
    rb"\Z": "is empty: get it again",
    rb"version https://git-lfs": "is a pointer of Git LFS, not the weights: `git lfs pull` gets them",
    rb"\s*<(!doctype|html|head|\?xml|!--)": "is a web page, not the weights: get the file by its link for downloads",
    rb"PK\x03\x04": "is cut short, or not a state dict: get it again",
}


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file or of what torch saved; of mappings in mappings by dotted names.

    Raises UserError when the file is damaged, or is a pickled module: loading one runs code from the file.
    """
    safe = path.suffix == ".safetensors"
    try:
        if not safe:
            _check_stored(path)
        found: Any = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both raise nearly anything on a damaged file
        if how := _impostor(path):
            raise UserError(f"{path}: {how}") from error
        if safe:
            raise UserError(
                f"{path}: not a readable safetensors file ({error}); where a download was cut short, get it again"
            ) from error
        raise UserError(
            f"{path}: not a state dict that loads without running code from the file; where you trust it, save the"
            " model's state_dict() alone, best as safetensors"
        ) from error
    state = _tensors(found)
    if not state:
        raise UserError(f"{path}: not a state dict (a mapping from names to tensors)")
    for name, value in state.items():
        if value.layout != torch.strided or value.is_nested or value.is_quantized or value.device.type != "cpu":
            raise UserError(f"{path}: {name}: not a plain tensor; save it dense, and not quantized")
    return state


def _impostor(path: Path) -> str | None:
    """Return what a file that does not load is, and what helps, where its beginning tells."""
    try:
        with path.open("rb") as file:
            head = file.read(200)
        whole = zipfile.is_zipfile(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except zipfile.BadZipFile:  # which it raises on some ends instead of answering
        whole = False
    return next((how for sign, how in IMPOSTORS.items() if not whole and re.match(sign, head, re.IGNORECASE)), None)


def _tensors(found: Any) -> dict[str, Tensor]:
    """Return the tensors in mappings, each mapping once: a file can hold one that contains itself."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    left: list[tuple[tuple[str, ...], Any]] = [((), found)]
    while left:
        place, value = left.pop()
        if isinstance(value, Tensor) and place:
            state[".".join(place)] = value
        elif isinstance(value, dict) and id(value) not in seen and len(place) < DEEPEST:
            seen.add(id(value))
            left += [((*place, str(name)), inner) for name, inner in value.items()]
    return state


def _check_stored(path: Path) -> None:
    """Raise ValueError when an archive of torch's is compressed, as torch's own are not: it could hold any size."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("compressed")


def load_weights(module: nn.Module, path: Path, key: str | None = None) -> None:
    """Load the file's tensors into `module`: all that the module needs, in the right shapes, or UserError."""
    module.load_state_dict(fitting_state(module, path, key), strict=False)


def fitting_state(module: nn.Module, path: Path, key: str | None = None) -> dict[str, Tensor]:
    """Return the file's tensors under the names and in the types of `module`, which may be on the device `meta`.

    Its names may stand in one place of the file, behind a prefix or in a mapping; of several, `key` says which. A
    classifier that the module does not have is left out. Raises UserError unless all is there that the module needs, in
    the right shapes, and in one place.
    """
    own = module.state_dict()
    state = _in_one_place(_unwrapped(read_state(path), own), own, path, key)
    for name in own.keys() & state.keys():
        if own[name].shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)} where {tuple(own[name].shape)} is needed"
            raise UserError(f"{path}: does not fit the architecture: {name} has shape {shapes}")
    fitting = {name: state[name].to(own[name].dtype) for name in own if name in state}
    for name, value in fitting.items():
        if not value.isfinite().all():
            raise UserError(f"{path}: {name} holds values that are not finite numbers")
    return fitting


def _unwrapped(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without what torch's wrappers add to names, unless the module has such names itself."""
    dropped = WRAPPERS - {part for name in own for part in name.split(".")}
    short = {name: ".".join(part for part in name.split(".") if part not in dropped) for name in state}
    return {short[name]: state[name] for name in state} if len({*short.values()}) == len(short) else dict(state)


def _in_one_place(
    state: dict[str, Tensor], own: Mapping[str, Tensor], path: Path, key: str | None
) -> dict[str, Tensor]:
    """Return the tensors behind the one prefix that the module's names have in the file, without the prefix."""
    needed = {name for name in own if not name.endswith(COUNTERS)}
    counts = _prefixes(state, needed)
    whole = [prefix for prefix, count in counts.items() if count == len(needed)]
    try:
        prefix = _chosen(counts, whole, key)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    others = tuple(each.removeprefix(prefix) for each in whole if each.startswith(prefix) and each != prefix)
    state = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
    missing = sorted(needed - state.keys())
    foreign = sorted(name for name in state.keys() - own.keys() if not name.startswith((*HEADS, *others)))
    foreign = [name for name in foreign if not name.endswith(COUNTERS)]
    if missing or foreign:
        sentence = f"lacks {missing[0]!r}" if missing else f"has an unexpected {foreign[0]!r}"
        behind = f" behind {prefix!r}" if prefix else ""
        count = len(missing) + len(foreign)
        raise UserError(f"{path}: does not fit the architecture: it {sentence}{behind} ({count} names differ)")
    return state


def _prefixes(state: Iterable[str], needed: Collection[str]) -> Counter[str]:
    """Return how many of the needed names stand behind each prefix, which ends with a dot where it is not empty."""
    counts = Counter({"": 0})
    for name in state:
        parts = name.split(".", MOST_PARTS)
        cuts = [i for i in range(len(parts)) if ".".join(parts[i:]) in needed]
        counts.update("".join(f"{part}." for part in parts[:i]) for i in cuts)
    return counts


def _chosen(counts: Counter[str], whole: list[str], key: str | None) -> str:
    """Return the prefix that `key` means, or without one the only prefix in question.

    `whole`: the prefixes behind which no name is missing. Raises UserError where it would have to guess.
    """
    if key is None:
        half = max(counts.values()) / 2  # of the names: of another network that is there in part
        parts = [prefix for prefix in counts if counts[prefix] > half and not prefix.startswith(tuple(whole))]
        meant = whole + parts if whole else [max(counts, key=lambda prefix: counts[prefix])]
    else:
        meant = _named(counts, whole, key)
    if len(meant) == 1:
        return meant[0]
    found = ", ".join(map(repr, sorted(meant or whole)[:NAMED]))
    if not meant:
        raise UserError(f"rela.weights_key: no name of the network is behind {key!r}, but {found or 'nowhere'}")
    raise UserError(f"the network's names are there behind {found}: let rela.weights_key name one of these")


def _named(counts: Counter[str], whole: list[str], key: str) -> list[str]:
    """Return the prefixes that a key may mean: itself, or those that it is a part of, without torch's wrappers too."""
    given = [part for part in key.split(".") if part]
    for parts in (given, [part for part in given if part not in WRAPPERS]):
        named = "".join(f"{part}." for part in parts)
        if named in whole:
            return [named]
        if within := [prefix for prefix in counts if named and f".{named}" in f".{prefix}"]:
            return [prefix for prefix in within if prefix in whole] or [max(within, key=lambda each: counts[each])]
    return []


def digest_state(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256, in hexadecimal, of tensors by name: of the same weights the same, however they are stored.

    Counters of batches, which no network uses in eval mode, are left out.
    """
    sha = hashlib.sha256()
    for name in sorted(name for name in state if not name.endswith(COUNTERS)):
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
