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
from torch.optim.swa_utils import AveragedModel
from typer.testing import CliRunner

from bench.cli.main import app
from bench.core.errors import MissingError, UserError
from bench.core.paths import Paths
from bench.data import load_dataset
from bench.data.augment import normalise
from bench.grid.cell import Cell, trained_on
from bench.grid.controls import Rela
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.models.backbones import build_backbone
from bench.models.weights import load_weights, read_state, save_tensors, save_weights
from bench.store.record import read_records
from priors import find_prior


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


def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "data", tmp_path / "results", "test")


def under(module: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in module.state_dict().items()}


def trained_once(module: nn.Module) -> dict[str, Any]:
    """The state of an optimiser after a step that leaves the weights as they are."""
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.0)
    module(torch.ones(2, 3, 16, 16)).sum().backward()
    optimiser.step()
    return optimiser.state_dict()


SAVES: dict[str, Callable[[nn.Module, Path], None]] = {
    "plain.safetensors": save_weights,
    "plain.pt": lambda module, path: torch.save(module.state_dict(), path),
    "nested.pt": lambda module, path: torch.save({"epoch": 3, "state_dict": module.state_dict()}, path),
    "wrapped.pt": lambda module, path: torch.save({f"module.{k}": v for k, v in module.state_dict().items()}, path),
    "compiled.pt": lambda module, path: torch.save(torch.compile(module).state_dict(), path),
    "averaged.pt": lambda module, path: torch.save(AveragedModel(module).state_dict(), path),
    "averaged.safetensors": lambda module, path: save_tensors(
        {k: v.clone() for k, v in AveragedModel(nn.DataParallel(module)).state_dict().items()}, path
    ),
    "all wrappers.pt": lambda module, path: torch.save(
        nn.DataParallel(torch.compile(AveragedModel(nn.DataParallel(module)))).state_dict(), path
    ),
    "compiled inside.pt": lambda module, path: torch.save(
        {k.replace("layer1.", "layer1._orig_mod."): v for k, v in module.state_dict().items()}, path
    ),
    "trainer.pt": lambda module, path: torch.save({"state_dict": under(module, "model.backbone.")}, path),
    "net.pt": lambda module, path: torch.save({"net": module.state_dict(), "acc": 0.9, "epoch": 3}, path),
    "resumable.pt": lambda module, path: torch.save(
        {"model_state_dict": module.state_dict(), "optimizer_state_dict": trained_once(module)}, path
    ),
    "projector.pt": lambda module, path: torch.save(
        under(module, "backbone.") | under(nn.Linear(128, 8), "projector."), path
    ),
    "queue.pt": lambda module, path: torch.save(
        under(module, "module.encoder_q.") | {"module.queue": torch.ones(8, 4), "module.queue_ptr": torch.ones(1)}, path
    ),
    "deep.pt": lambda module, path: torch.save({"a": {"b": {"c": under(module, "d.")}}, "args": ["x"]}, path),
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


SEVERAL: dict[str, Callable[[nn.Module, nn.Module], dict[str, Any]]] = {
    "dino": lambda one, other: {"student": under(one, "module.backbone."), "teacher": under(other, "backbone.")},
    "moco": lambda one, other: under(one, "module.encoder_q.") | under(other, "module.encoder_k."),
    "average": lambda one, other: {"state_dict": one.state_dict(), "state_dict_ema": AveragedModel(other).state_dict()},
    "beside": lambda one, other: one.state_dict() | under(other, "teacher."),
    "same names": lambda one, other: one.state_dict() | under(other, "module."),
    "in part": lambda one, other: {
        "model": one.state_dict(),
        "ema": {name: value for name, value in other.state_dict().items() if "running" not in name},
    },
}


@pytest.mark.parametrize(
    ("how", "places_of", "one", "other"),
    [
        ("dino", "'student.backbone.', 'teacher.backbone.'", "student", "teacher.backbone."),
        ("moco", "'encoder_k.', 'encoder_q.'", "module.encoder_q.", "encoder_k"),
        ("average", "'state_dict.', 'state_dict_ema.'", "state_dict", "state_dict_ema.module."),
        ("beside", "'', 'teacher.'", "", "teacher"),
        ("same names", "'', 'module.'", "", "module"),
        ("in part", "'ema.', 'model.'", "model.", None),
    ],
)
def test_of_several_networks_none_is_guessed_and_a_key_names_one(
    how: str, places_of: str, one: str, other: str | None, tmp_path: Path
) -> None:
    networks, path, loaded = (network(0), network(1)), tmp_path / "x.pt", network(2)
    torch.save(SEVERAL[how](*networks), path)
    with pytest.raises(UserError) as caught:
        load_weights(loaded, path)
    assert str(caught.value) == (
        f"{path}: the network's names are there behind {places_of}: let rela.weights_key name one of these"
    )
    assert_same(loaded, network(2))
    for key, expected in zip((one, other), networks, strict=True):
        if key is not None:
            load_weights(loaded, path, key)
            assert_same(loaded, expected)
    with pytest.raises(UserError, match="weights_key: no name of the network is behind 'nobody', but '"):
        load_weights(loaded, path, "nobody")


def test_what_a_named_part_lacks_is_said(tmp_path: Path) -> None:
    path, teacher = tmp_path / "x.pt", network(1).state_dict()
    del teacher["bn1.bias"]
    torch.save({"student": network(0).state_dict(), "teacher": teacher}, path)
    with pytest.raises(UserError, match=r"it lacks 'bn1\.bias' behind 'teacher\.' \(1 names differ\)"):
        load_weights(network(2), path, "teacher")


def test_a_larger_network_that_has_all_the_names_is_not_taken_for_it(tmp_path: Path) -> None:
    torch.save({"model": under(build_backbone("resnet18", 32).module, "backbone.")}, tmp_path / "x.pt")
    larger = build_backbone("resnet18", 32).module
    del larger.layer4[1]
    with pytest.raises(UserError, match=r"it has an unexpected 'layer4\.1\.\S+' behind 'model\.backbone\.'"):
        load_weights(larger, tmp_path / "x.pt")


def test_a_key_is_part_of_what_a_file_is(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "priors"
    folder.mkdir(parents=True)
    torch.save({"student": network(0).state_dict(), "teacher": network(1).state_dict()}, folder / "x.pt")
    cells = [cell("file:x.pt", backbone="resnet_small", weights_key=key) for key in (None, "student", "teacher")]
    neither, student, teacher = (find_prior("file:x.pt", each, paths(tmp_path)) for each in cells)
    assert_same(student.model(), network(0))
    assert_same(teacher.model(), network(1))
    assert len({each.digest() for each in (neither, student, teacher)}) == 3
    assert len({each.key() for each in cells}) == 3
    assert "weights_key" not in cells[0].settings()["rela"]


GRID = """
name: keyed
backbone: resnet_small
datasets: [{name: digits, train_images: 16}]
seeds: [0]
arms:
  - {name: one, method: simsiam, rela: {prior: "file:x.pt", backbone: resnet_small, weights_key: student}}
  - {name: two, method: simsiam, rela: {prior: "file:x.pt", backbone: resnet_small, weights_key: teacher}}
  - {name: none, method: simsiam, rela: {prior: "file:x.pt", backbone: resnet_small}}
protocol: {epochs: 1, batch_size: 8, input_size: 16, probe: {epochs: 1}, knn: {k: 5}}
"""


def test_every_verb_knows_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keyed.yaml").write_text(GRID)
    torch.save({"student": network(0).state_dict(), "teacher": network(1).state_dict()}, tmp_path / "x.pt")
    grid = ["--grid", "keyed.yaml"]
    prepared = CliRunner().invoke(app, ["prepare", *grid])
    assert prepared.exit_code == 1
    digests = re.findall(r"^prior file:x\.pt: 128 features at 16 pixels, digest (\S+)$", prepared.output, re.M)
    assert len(set(digests)) == 2
    assert "let rela.weights_key name one of these" in prepared.output
    ran = CliRunner().invoke(app, ["run", *grid, "--device", "cpu"])
    assert ran.exit_code == 1
    records, _ = read_records(tmp_path / "results" / "keyed")
    outcomes = {record.cell.arm: (record.status, record.inputs.prior) for record in records}
    assert [outcomes[arm] for arm in ("one", "two")] == [("done", digest) for digest in digests]
    assert outcomes["none"][0] == "failed"
    rehearsed = CliRunner().invoke(app, ["run", *grid, "--rehearse", "--device", "cpu"])
    assert rehearsed.exit_code == 0, rehearsed.output
    assert "1 of 3 cells would fail: x.pt: the network's names are there behind 'student.'" in rehearsed.output
    arms = "arms=[{method: byol, rela: {prior: rand, weights_key: x}}]"
    wrong = CliRunner().invoke(app, ["status", *grid, "--set", arms])
    assert str(wrong.exception).endswith("weights_key is for a prior file:<path>, and 'rand' is none; leave it out")


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
    first, again, other = (find_prior("rand", cell("rand", seed), paths(tmp_path)) for seed in (0, 0, 1))
    assert_same(first.model(), again.model())
    assert first.digest() == again.digest() != other.digest()
    assert not torch.equal(first.model().state_dict()["conv1.weight"], other.model().state_dict()["conv1.weight"])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "priors"
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_weights(network(seed), folder / f"{name}.safetensors")
    a, b, c = (
        find_prior(f"file:{n}.safetensors", cell("file:x", backbone="resnet_small"), paths(tmp_path)) for n in "abc"
    )
    assert a.digest() == b.digest() != c.digest()
    assert_same(a.model(), network(0))
    there = find_prior(f"file:{folder / 'a.safetensors'}", cell("file:x", backbone="resnet_small"), paths(tmp_path))
    assert there.digest() == a.digest()
    with pytest.raises(UserError, match=r"rela\.backbone must name the architecture"):
        find_prior("file:a.safetensors", cell("file:x"), paths(tmp_path)).digest()
    with pytest.raises(MissingError, match=re.escape(str(folder / "nowhere.safetensors"))):
        find_prior("file:nowhere.safetensors", cell("file:x", backbone="resnet_small"), paths(tmp_path)).digest()


def test_a_timm_prior_is_the_stored_weights_and_never_random_ones(tmp_path: Path) -> None:
    name = "mobilenetv3_small_050.lamb_in1k"
    prior = find_prior(f"timm:{name}", cell("timm:x"), paths(tmp_path))
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
        find_prior(name, cell("timm:x"), paths(tmp_path))


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
    data = load_dataset("cifar10", Paths(cifar10_jpeg, tmp_path, "test"))
    prior = find_prior(f"file:{resnet20_weights}", cell("file:x", backbone="resnet20_cifar"), paths(tmp_path))
    head = read_state(resnet20_weights)
    assert not isinstance(data.test.images, list)
    with torch.no_grad():
        features = prior.model().eval()(normalise(torch.from_numpy(data.test.images).float() / 255))
    guesses = (features @ head["linear.weight"].T + head["linear.bias"]).argmax(dim=1)
    accuracy = (guesses == torch.from_numpy(data.test.labels)).double().mean().item()
    assert abs(accuracy - 0.81) < 0.06
