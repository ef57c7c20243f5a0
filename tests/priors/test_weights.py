"""Weights from files: what is loaded, and that nothing in a file is ever run."""

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from bench.backbones import build_backbone
from bench.cells import expand
from bench.datasets import load_dataset
from bench.errors import MissingError, UserError
from bench.grid import load_grid
from bench.places import Places
from bench.spec import Cell, Rela, trained_on
from bench.views import normalise
from priors import find_prior
from priors.weights import load_weights, read_state, save_tensors, save_weights


class Payload:
    """A pickle of this would create a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_backbone("resnet_small", 32).module


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for (name, value), (_, expected) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(value, expected), name


def cell(prior: str, seed: int = 0, **rela: Any) -> Cell:
    found = next(cell for cell in expand(load_grid("cifar_small")) if cell.rela)
    return found.model_copy(update={"rela": Rela(prior=prior, **rela), "seed": seed})


def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "data", tmp_path / "results", "test")


SAVES: dict[str, Callable[[nn.Module, Path], None]] = {
    "plain.safetensors": save_weights,
    "plain.pt": lambda module, path: torch.save(module.state_dict(), path),
    "nested.pt": lambda module, path: torch.save({"epoch": 3, "state_dict": module.state_dict()}, path),
    "wrapped.pt": lambda module, path: torch.save({f"module.{k}": v for k, v in module.state_dict().items()}, path),
    "classifier.safetensors": lambda module, path: save_tensors(
        {**module.state_dict(), "linear.weight": torch.ones(10, 128), "linear.bias": torch.ones(10)}, path
    ),
}


@pytest.mark.parametrize("name", SAVES)
def test_weights_load_from_every_usual_form(name: str, tmp_path: Path) -> None:
    saved, loaded = network(0), network(1)
    SAVES[name](saved, tmp_path / name)
    load_weights(loaded, tmp_path / name)
    assert_same(loaded, saved)


def write_bad(how: str, path: Path, trap: Path) -> None:
    state = {name: value.clone() for name, value in network().state_dict().items()}
    match how:
        case "lacking":
            del state["layer3.0.conv1.weight"]
            torch.save(state, path)
        case "foreign":
            torch.save(state | {"other.weight": torch.ones(1)}, path)
        case "shape":
            torch.save(state | {"conv1.weight": torch.ones(1, 3, 3, 3)}, path)
        case "module":
            torch.save(network(), path)
        case "payload":
            torch.save(state | {"conv1.weight": Payload(trap)}, path)
        case "bare payload":
            path.write_bytes(pickle.dumps(Payload(trap)))
        case "list":
            torch.save([1, 2], path)
        case "noise":
            path.write_bytes(os.urandom(300))
        case "empty":
            path.write_bytes(b"")
        case "cut":
            save_weights(network(), path)
            path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "how", ["lacking", "foreign", "shape", "module", "payload", "bare payload", "list", "noise", "empty", "cut"]
)
def test_what_does_not_fit_or_is_not_weights_is_refused(how: str, suffix: str, tmp_path: Path) -> None:
    path, trap = tmp_path / f"net{suffix}", tmp_path / "trap"
    write_bad(how, path, trap)
    model = network(1)
    with pytest.raises(UserError, match=re.escape(str(path))) as caught:
        load_weights(model, path)
    assert "\n" not in str(caught.value)
    assert not trap.exists()
    assert_same(model, network(1))


def test_rand_is_the_networks_own_initialisation_and_leaves_the_global_stream_alone(tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (find_prior("rand", cell("rand", seed), places(tmp_path)) for seed in (0, 0, 1))
    assert_same(first.model(), again.model())
    assert first.digest() == again.digest() != other.digest()
    assert not torch.equal(first.model().state_dict()["conv1.weight"], other.model().state_dict()["conv1.weight"])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "priors"
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_weights(network(seed), folder / f"{name}.safetensors")
    a, b, c = (
        find_prior(f"file:{n}.safetensors", cell("file:x", backbone="resnet_small"), places(tmp_path)) for n in "abc"
    )
    assert a.digest() == b.digest() != c.digest()
    assert_same(a.model(), network(0))
    there = find_prior(f"file:{folder / 'a.safetensors'}", cell("file:x", backbone="resnet_small"), places(tmp_path))
    assert there.digest() == a.digest()
    with pytest.raises(UserError, match=r"rela\.backbone must name the architecture"):
        find_prior("file:a.safetensors", cell("file:x"), places(tmp_path)).digest()
    with pytest.raises(MissingError, match=re.escape(str(folder / "nowhere.safetensors"))):
        find_prior("file:nowhere.safetensors", cell("file:x", backbone="resnet_small"), places(tmp_path)).digest()


def test_a_timm_prior_is_the_stored_weights_and_never_random_ones(tmp_path: Path) -> None:
    name = "mobilenetv3_small_050.lamb_in1k"
    prior = find_prior(f"timm:{name}", cell("timm:x"), places(tmp_path))
    for ask in (prior.digest, prior.model):
        with pytest.raises((MissingError, UserError), match=re.escape(f"{name}.safetensors")):
            ask()
    torch.manual_seed(5)
    stored = timm.create_model(name, pretrained=False, num_classes=0)
    save_weights(stored, tmp_path / "data" / "priors" / "timm" / f"{name}.safetensors")
    assert_same(prior.model(), stored)
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    assert (prior.input_size, tuple(prior.mean), tuple(prior.std)) == (224, config.mean, config.std)
    assert prior.digest()


@pytest.mark.parametrize("name", ["timm:no_such_model", "timm:resnet50.no_such_tag"])
def test_timm_without_such_weights_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=name):
        find_prior(name, cell("timm:x"), places(tmp_path))


@pytest.mark.parametrize(
    ("name", "short"), [("CF10-T", "CF10"), ("my-set-T", "my-set"), ("rand", None), ("timm:x-T", None), ("-T", None)]
)
def test_names_of_trained_priors(name: str, short: str | None) -> None:
    assert trained_on(name) == short


def test_the_public_resnet20_classifies_real_images(
    resnet20_weights: Path, cifar10_jpeg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own head, on a part of the JPEG copy: 81.0 % on all of it; 500 images have a standard error of 1.8 points."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    data = load_dataset("cifar10", Places(cifar10_jpeg, tmp_path, "test"))
    prior = find_prior(f"file:{resnet20_weights}", cell("file:x", backbone="resnet20_cifar"), places(tmp_path))
    head = read_state(resnet20_weights)
    assert not isinstance(data.test.images, list)
    with torch.no_grad():
        features = prior.model().eval()(normalise(torch.from_numpy(data.test.images).float() / 255))
    guesses = (features @ head["linear.weight"].T + head["linear.bias"]).argmax(dim=1)
    accuracy = (guesses == torch.from_numpy(data.test.labels)).double().mean().item()
    assert abs(accuracy - 0.81) < 0.06
