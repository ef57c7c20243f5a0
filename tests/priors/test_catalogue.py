"""The named priors: that the table says what timm and the built networks say, and what happens to their files."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from torch import Tensor, nn

from bench.cli.listing import listing
from bench.core.errors import MissingError, UserError
from bench.core.paths import Paths
from bench.core.registry import load_plugin
from bench.data.augment import EvalView
from bench.data.loader import InMemoryLoader
from bench.grid.cell import Cell, Protocol
from bench.grid.controls import Rela
from bench.models.backbones import build_backbone
from bench.models.weights import save_tensors, save_weights
from bench.plan.graph import Ready, plan
from bench.plan.load import load_grid
from bench.plan.prepare import prepare_tasks
from bench.targets.reduce import reduce_features
from priors import find_prior, priors
from priors.catalogue import CATALOGUE, Entry
from priors.named import Named, NamedTimm, build, weights_digest
from priors.timm import Timm

OF_TIMM = [entry for entry in CATALOGUE.values() if (entry.model or "").startswith("timm:")]
SMALL = "IN21K-MobileNetV3"  # of timm's, the quickest
TINY_VIT = "test_vit.r160_in1k"
PLUGIN = '''
from torch import nn

from priors import Prior, priors


@priors.register("YOLOv9")
class Yolo(Prior):
    """Its features."""

    def model(self):
        return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())
'''


def asking(prior: str, trained: str = "resnet_small", **rela: Any) -> Cell:
    return Cell(
        arm="a",
        dataset="digits",
        train_images=100,
        backbone=trained,
        method="byol",
        params={},
        rela=Rela(prior=prior, **rela),
        budget=0.5,
        seed=0,
        protocol=Protocol(input_size=16),
    )


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return Paths(tmp_path / "data", tmp_path / "results", "g")


def stored(name: str, paths: Paths) -> nn.Module:
    """Return a network of an entry with random weights, which are now where the entry's are looked for."""
    torch.manual_seed(1)
    model = build(CATALOGUE[name]).eval()
    save_weights(model, CATALOGUE[name].path(paths.data))
    return model


def test_the_priors_of_the_paper_have_their_input_sizes() -> None:
    sizes = {name: entry.input_size for name, entry in CATALOGUE.items()}
    assert sizes == {
        "CF10-R20": 32,
        "IN21K-MobileNetV3": 224,
        "IN21K-RN50": 224,
        "CLIP-RN50": 224,
        "CLIP-RN101": 224,
        "CLIP-RN50x4": 288,
        "CLIP-B32": 224,
        "CLIP-B16": 224,
        "CLIP-L14": 224,
        "YOLOv9": 640,
    }


@pytest.mark.parametrize("entry", OF_TIMM, ids=lambda entry: entry.name)
def test_the_catalogue_says_what_timm_says(entry: Entry, paths: Paths) -> None:
    config = timm.get_pretrained_cfg(entry.model.removeprefix("timm:") if entry.model else "")
    assert config is not None
    assert config.input_size == (3, entry.input_size, entry.input_size)
    assert (config.mean, config.std) == (entry.mean, entry.std)
    assert config.license
    assert config.license in entry.licence.lower()
    prior = find_prior(entry.name, asking(entry.name), paths)
    assert (prior.input_size, prior.mean, prior.std) == (entry.input_size, entry.mean, entry.std)


@pytest.mark.parametrize("entry", [e for e in CATALOGUE.values() if e.model], ids=lambda entry: entry.name)
def test_the_catalogue_says_what_the_network_is(entry: Entry) -> None:
    with torch.device("meta"), torch.no_grad():
        model = build(entry).eval()
        features = model(torch.zeros(2, 3, entry.input_size, entry.input_size))
    assert features.shape == (2, entry.dim)
    assert sum(parameter.numel() for parameter in model.parameters()) == entry.parameters


@pytest.mark.parametrize("name", ["CLIP-B32", "CLIP-B16", "CLIP-L14"])
def test_clips_transformers_are_those_that_openai_trained(name: str) -> None:
    """Timm has a model with QuickGELU that reads the very same weights."""
    model = str(CATALOGUE[name].model).removeprefix("timm:")
    native = model.replace("_clip_", "_clip_quickgelu_")
    with torch.device("meta"):
        assert str(build(CATALOGUE[name])) == str(timm.create_model(native))
    ours, theirs = timm.get_pretrained_cfg(model), timm.get_pretrained_cfg(native)
    assert ours is not None
    assert theirs is not None
    assert ours.hf_hub_id == theirs.hf_hub_id


def test_a_named_prior_of_timm_is_the_stored_weights(paths: Paths) -> None:
    model = stored(SMALL, paths)
    prior = find_prior(SMALL, asking(SMALL), paths)
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(prior.model().eval()(images), model(images))


def test_the_digest_is_of_the_weights_wherever_and_however_they_lie(paths: Paths, tmp_path: Path) -> None:
    model = stored(SMALL, paths)
    path = CATALOGUE[SMALL].path(paths.data)
    here = find_prior(SMALL, asking(SMALL), paths).digest()
    other = Paths(tmp_path / "elsewhere", tmp_path, "h")
    wrapped = {f"module.{name}": value for name, value in reversed(model.state_dict().items())}
    save_tensors(wrapped | {"module.classifier.weight": torch.ones(2, 1280)}, CATALOGUE[SMALL].path(other.data))
    assert find_prior(SMALL, asking(SMALL, trained="resnet18"), other).digest() == here
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    save_weights(model, path)
    assert find_prior(SMALL, asking(SMALL), paths).digest() != here


def test_the_public_resnet20(resnet20_weights: Path, paths: Paths) -> None:
    prior = find_prior("CF10-R20", asking("CF10-R20"), paths)
    assert re.fullmatch("[0-9a-f]{16}", prior.digest())
    same = find_prior(f"file:{resnet20_weights}", asking("x", backbone="resnet20_cifar"), paths).model().state_dict()
    for name, value in prior.model().state_dict().items():
        assert torch.equal(value, same[name])


def test_other_weights_under_a_known_name_are_refused(tmp_path: Path, paths: Paths) -> None:
    save_weights(build(CATALOGUE["CF10-R20"]), tmp_path / "other.safetensors")
    entry = replace(CATALOGUE["CF10-R20"], file=str(tmp_path / "other.safetensors"))
    with pytest.raises(MissingError, match=r"'CF10-R20'.*its weights have the SHA-256 \w+\.\.\., not 2191d83b"):
        weights_digest(entry, paths.data)


@pytest.mark.parametrize("name", sorted(CATALOGUE.keys() - {"CF10-R20"}))
def test_missing_weights_only_mark_the_tasks_that_need_them(name: str, paths: Paths) -> None:
    cells = [asking(name), asking("rand")]
    missing, there = plan(cells, cells, paths, "grid g")
    assert there.id
    assert missing.reason.startswith(f"prior {name!r} ")
    assert "\n" not in missing.reason
    if name == "YOLOv9":
        assert missing.reason.endswith("): register its features under this name in a --plugin file")
    else:
        assert missing.reason.endswith(f"looked for {CATALOGUE[name].path(paths.data)}; `prepare` downloads it")


def test_a_plugin_brings_a_model_that_nothing_here_has(paths: Paths, tmp_path: Path) -> None:
    plugin = tmp_path / "yolo.py"
    plugin.write_text(PLUGIN)
    with priors.temporary():
        load_plugin(plugin)
        task = plan([asking("YOLOv9")], [asking("YOLOv9")], paths, "grid g")[0]
        assert task.id
        assert "from a plugin: Its features." in dict(listing("priors", paths.data))["YOLOv9"]


@pytest.mark.parametrize(
    ("rela", "sentence"),
    [
        ({"prior": "CLIP-RN5"}, "unknown prior 'CLIP-RN5'; did you mean 'CLIP-RN50'?"),
        ({"prior": "yolov9"}, "did you mean 'YOLOv9'?"),
        ({"prior": "CLIP-RN50:x"}, "takes nothing after a colon"),
        ({"prior": "CF10-R20:x"}, "takes nothing after a colon"),
        ({"prior": "CF10-R20", "backbone": "resnet20_cifar"}, "leave out rela.backbone"),
    ],
)
def test_a_mistake_is_one_sentence(rela: dict[str, str], sentence: str, paths: Paths) -> None:
    cell = asking(**rela)
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        plan([cell], [cell], paths, "grid g")
    assert str(caught.value).startswith("grid g: arm 'a'")


def test_the_list_says_what_is_ready(paths: Paths) -> None:
    stored(SMALL, paths)
    lines = dict(listing("priors", paths.data))
    assert {"rand", "file", "timm", "<DATASET>-T"} <= lines.keys()
    for name, entry in CATALOGUE.items():
        assert f"{entry.input_size} px" in lines[name]
        assert entry.licence in lines[name]
    assert lines[SMALL].endswith("; ready here")
    assert "dimension 1280, 4.2 M parameters, 17 MB, Apache-2.0" in lines[SMALL]
    assert lines["CLIP-B16"].endswith(f"not in {paths.data}; `prepare` downloads it")
    assert lines["YOLOv9"].endswith("bring its features in a --plugin file")


def prepared(cell: Cell, paths: Paths, capsys: pytest.CaptureFixture[str]) -> tuple[bool, str, str]:
    good = prepare_tasks(plan([cell], [cell], paths, "grid g"), paths)
    said = capsys.readouterr()
    return good, said.out, said.err


def test_what_nobody_knows_of_a_prior_is_left_out() -> None:
    assert CATALOGUE["YOLOv9"].numbers() == ("640", "", "")
    assert CATALOGUE[SMALL].numbers() == ("224", "1280", "17")


def test_prepare_verifies_what_is_there(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    stored(SMALL, paths)
    good, out, _ = prepared(asking(SMALL), paths, capsys)
    assert good
    digest = find_prior(SMALL, asking(SMALL), paths).digest()
    assert f"prior {SMALL}: 1280 features at 224 pixels, digest {digest}" in out


@pytest.mark.parametrize("how", ["cut", "noise", "other"])
@pytest.mark.parametrize(
    ("name", "file", "backbone"),
    [
        (SMALL, f"{SMALL}.safetensors", None),
        ("file:net.safetensors", "net.safetensors", "resnet_small"),
        (f"timm:{TINY_VIT}", f"timm/{TINY_VIT}.safetensors", None),
    ],
)
def test_prepare_says_what_is_damaged(
    name: str, file: str, backbone: str | None, how: str, paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    path = paths.data / "priors" / file
    save_weights(build_backbone("resnet18", 16).module, path)
    if how != "other":
        path.write_bytes(os.urandom(300) if how == "noise" else path.read_bytes()[:-1000])
    good, _, err = prepared(asking(name, backbone=backbone), paths, capsys)
    assert not good
    assert err.startswith("prior ")
    assert str(path) in err
    assert err.count("\n") == 1


def test_a_hub_that_cannot_be_reached_is_one_sentence(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    good, _, err = prepared(asking("CLIP-RN50"), paths, capsys)
    assert not good
    assert err.startswith("prior 'CLIP-RN50' cannot be downloaded: ")
    assert err.count("\n") == 1
    assert not CATALOGUE["CLIP-RN50"].path(paths.data).exists()


def features_at(size: int | None, name: str, paths: Paths) -> Tensor:
    prior = find_prior(f"timm:{name}", asking("x"), paths)
    prior.input_size = size or prior.input_size
    with torch.no_grad():
        out: Tensor = prior.model().eval()(torch.ones(1, 3, size or 160, size or 160))
    return out


def test_a_transformer_takes_another_size_than_its_own(paths: Paths) -> None:
    """As timm itself resamples its position embeddings."""
    torch.manual_seed(0)
    model: Any = timm.create_model(TINY_VIT, pretrained=False, num_classes=0)
    nn.init.normal_(model.pos_embed)
    save_weights(model, paths.data / "priors" / "timm" / f"{TINY_VIT}.safetensors")
    with torch.no_grad():
        assert torch.equal(features_at(None, TINY_VIT, paths), model.eval()(torch.ones(1, 3, 160, 160)))
        model.set_input_size(img_size=64)
        torch.testing.assert_close(features_at(64, TINY_VIT, paths), model.eval()(torch.ones(1, 3, 64, 64)))
    with pytest.raises(UserError, match=r"takes no images of 4 pixels .*its own size is 160: leave out") as caught:
        features_at(4, TINY_VIT, paths)
    assert "\n" not in str(caught.value)


def test_a_convolutional_prior_takes_another_size_as_it_is(paths: Paths) -> None:
    name = "test_resnet.r160_in1k"
    model = timm.create_model(name, pretrained=False, num_classes=0).eval()
    save_weights(model, paths.data / "priors" / "timm" / f"{name}.safetensors")
    with torch.no_grad():
        assert torch.equal(features_at(64, name, paths), model(torch.ones(1, 3, 64, 64)))


@pytest.mark.parametrize(
    ("prior", "backbone", "input_size", "trained", "k"),
    [
        ("file:net.safetensors", "resnet20_cifar", 32, "resnet18_cifar", 64),  # d 512 > p 64
        ("file:net.safetensors", "resnet18", 32, "resnet20_cifar", 64),  # d 64 < p 512
        (f"timm:{TINY_VIT}", None, 32, "resnet18", 64),  # a transformer for a ResNet
        ("file:net.safetensors", "resnet_small", 16, "vit_tiny_patch16_224", 128),  # a ResNet for a transformer
        ("rand", None, 16, "vit_tiny_patch16_224", 192),
        ("CF10-R20", None, None, "resnet18", 64),
    ],
)
def test_any_architecture_is_a_prior_for_any_other(
    prior: str,
    backbone: str | None,
    input_size: int | None,
    trained: str,
    k: int,
    paths: Paths,
) -> None:
    folder = paths.data / "priors"
    if backbone:
        save_weights(build_backbone(backbone, 16).module, folder / "net.safetensors")
    elif prior.startswith("timm:"):
        save_weights(timm.create_model(TINY_VIT, num_classes=0), folder / "timm" / f"{TINY_VIT}.safetensors")
    cell = asking(prior, trained, backbone=backbone, input_size=input_size)
    task = plan([cell], [cell], paths, "grid g")[0]
    assert isinstance(task, Ready), task.reason
    assert task.prior is not None
    images = torch.rand(70, 3, 16, 16)
    source = InMemoryLoader((images * 255).byte(), torch.zeros(70), 16, torch.device("cpu"))
    (batch,) = source.eval_batches(EvalView(task.prior.input_size or 16, task.prior.mean, task.prior.std))
    with torch.no_grad():
        features = task.prior.model().eval()(batch)
    values, _ = reduce_features(features, build_backbone(trained, 16).dim)
    assert values.shape == (70, k)
    assert values.isfinite().all()


def test_the_grids_name_priors_of_the_catalogue() -> None:
    named = {arm.rela.prior for arm in load_grid("paper_priors").arms if arm.rela}
    assert named == set(CATALOGUE)
    for grid in ("paper_table1", "paper_methods"):
        assert "CLIP-RN50" in {arm.rela.prior for arm in load_grid(grid).arms if arm.rela}


def test_every_name_that_has_a_model_is_registered() -> None:
    for name, entry in CATALOGUE.items():
        assert (name in priors) == (entry.model is not None)
        if name in priors:
            assert issubclass(priors.get(name), NamedTimm if entry in OF_TIMM else Named)
    assert issubclass(NamedTimm, Timm)
