"""Targets of a layer of a prior, and of several priors: the features by hand, what they cost, who is told of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.flop_counter import FlopCounterMode

from bench.core.errors import UserError
from bench.core.paths import Paths
from bench.data.augment import MEAN, STD
from bench.data.images import open_images
from bench.grid.cell import Arm, Cell, Protocol
from bench.grid.controls import PriorChoice, Rela
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.measure.clock import Clock
from bench.models.backbones import build_backbone
from bench.models.weights import save_weights
from bench.plan.graph import Missing, Ready, Task, plan
from bench.plan.prepare import prepare_tasks
from bench.report.labels import arm_labels
from bench.targets.cache import Targets
from bench.targets.make import find_or_make_targets
from priors import Prior, find_prior, priors
from priors.joined import Joined, as_chosen

CPU, IMAGES, SIZE = torch.device("cpu"), 32, 12
GRID = """
backbone: resnet_small
datasets: [{name: digits, train_images: 32}]
seeds: [0]
arms: [ARMS]
protocol: {epochs: 1, batch_size: 16, input_size: 12, probe: {epochs: 1}, knn: {k: 5}}
"""


class Pixels(Prior):
    """The pixels of an image as they are, of a size and a normalisation of its own."""

    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)

    def model(self) -> nn.Module:
        self.input_size = self.input_size or int(self.argument or SIZE)
        return nn.Flatten()


class Lists(Prior):
    """A network with modules whose outputs are no features."""

    def model(self) -> nn.Module:
        class Pair(nn.Module):
            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                return x, x

        class Network(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.pair, self.never = Pair(), nn.Identity()

            def forward(self, x: Tensor) -> Tensor:
                return self.pair(x)[0].flatten(1)

        return Network()


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("BENCH_CACHE", raising=False)
    with priors.temporary(pixels=Pixels, lists=Lists):
        yield


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "data", tmp_path / "results", "tiny")


def cell(backbone: str = "resnet_small", key: str = "rela", **choice: Any) -> Cell:
    around = {"rela": choice} if key == "rela" else {"accelerate": {"name": "herding", **choice}}
    about = {"arm": "a", "dataset": "digits", "train_images": IMAGES, "params": {}, "method": "byol"}
    return Cell.model_validate(
        about | {"backbone": backbone, "budget": 1.0, "seed": 0, "protocol": Protocol(input_size=SIZE)} | around
    )


def chosen(asking: Cell, paths: Paths) -> Prior:
    choice = asking.targets_of
    assert choice
    return as_chosen(find_prior(choice.prior, asking, paths), choice)


@torch.no_grad()
def features(prior: Prior, images: Tensor) -> Tensor:
    found: Tensor = prior.model().eval().to(images.dtype)(images)
    return found


def images_of(count: int = 3, size: int = SIZE) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def tasks_of(arms: str, paths: Paths) -> list[Task]:
    path = paths.results.parent / "tiny.yaml"
    path.write_text(GRID.replace("ARMS", arms))
    cells = expand(load_grid(str(path)))
    return plan(cells, cells, paths, "grid tiny")


def test_a_map_is_averaged_over_its_pixels(paths: Paths) -> None:
    asking, x = cell(prior="rand", layer="layer2"), images_of()
    network: Any = find_prior("rand", asking, paths).model().eval().double()
    with torch.no_grad():
        maps = network.layer2(network.layer1(torch.relu(network.bn1(network.conv1(x)))))
    assert maps.ndim == 4
    expected = torch.stack([torch.stack([channel.sum() / channel.numel() for channel in each]) for each in maps])
    torch.testing.assert_close(features(chosen(asking, paths), x), expected, rtol=0, atol=1e-6)


def test_tokens_are_averaged(paths: Paths) -> None:
    asking, x = cell("vit_micro", prior="rand", layer="blocks.1"), images_of()
    network: Any = find_prior("rand", asking, paths).model().eval().double()
    with torch.no_grad():
        tokens = network.forward_intermediates(x, indices=[1], output_fmt="NLC", intermediates_only=True)[0]
    torch.testing.assert_close(features(chosen(asking, paths), x), tokens.sum(1) / tokens.shape[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("key", ["rela", "accelerate"])
def test_a_module_that_is_not_there_or_has_no_features_is_refused(key: str, paths: Paths) -> None:
    with pytest.raises(UserError, match=rf"^{key}.layer: the prior's network has no module 'layer9'; did you mean 'la"):
        chosen(cell(key=key, prior="rand", layer="layer9"), paths).untrained()
    for layer, shape in (("pair", "tuple"), ("never", "NoneType")):
        prior = chosen(cell(key=key, prior="lists", layer=layer), paths)
        with pytest.raises(UserError, match=rf"{key}.layer: the output of module '{layer}' is {shape}, not \(B, d\)"):
            features(prior, images_of())


def test_each_of_an_ensemble_sees_the_images_as_it_would_alone_and_counts_as_much(paths: Paths) -> None:
    """One of another normalisation, and one of another size, which is made of the larger one."""
    asking, pixels = cell(prior="rand"), torch.rand(3, 3, 2 * SIZE, 2 * SIZE).double()
    members = [find_prior(name, asking, paths) for name in ("rand", "pixels")]
    members[1].input_size = 2 * SIZE

    def seen(prior: Prior, size: int) -> Tensor:
        sized = interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(each).double()[:, None, None] for each in (prior.mean, prior.std))
        return features(prior, (sized - mean) / std).flatten(1)

    parts = [seen(members[0], SIZE), seen(members[1], 2 * SIZE)]
    expected = torch.cat([part / part.square().sum(1, keepdim=True).sqrt() for part in parts], dim=1)
    joined = Joined(members)
    assert joined.input_size == 2 * SIZE
    given = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        found = joined.model().eval().double()(given)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_what_makes_other_features_has_another_digest(paths: Paths) -> None:
    asking = cell(prior="rand")

    def one(name: str, size: int | None = None, layer: str | None = None) -> Prior:
        return as_chosen(find_prior(name, asking, paths), PriorChoice(prior=name, input_size=size, layer=layer))

    made = [one("rand"), one("rand", layer="layer1"), one("rand", layer="layer2"), Joined([one("rand"), one("lists")])]
    made += [Joined([one("lists"), one("rand")]), Joined([one("rand", layer="layer1"), one("lists")])]
    made += [Joined([one("rand", size=size), one("pixels", size=64)]) for size in (8, 16)]
    assert len({prior.digest() for prior in made}) == len(made)
    assert made[0].digest() == find_prior("rand", asking, paths).digest(), "and plain ones keep theirs"
    choice = PriorChoice(prior="rand", layer="layer1", ensemble=("lists",))
    assert choice.members(made[5].digest()) == {"rand": "rand-resnet_small-0", "lists": "Lists-1"}


def passes(prior: Prior, size: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        prior.model().eval()(torch.rand(1, 3, size, size))
    return int(counter.get_total_flops())


def targets_of(task: Task, paths: Paths) -> Targets:
    assert isinstance(task, Ready)
    images = open_images(task.cell, paths, CPU, 0)
    made = find_or_make_targets(task, images.train, SIZE, paths, Clock(CPU), lambda: None, lambda done: None)
    assert made
    return made


def test_targets_of_both_are_paid_for_and_kept_apart(paths: Paths) -> None:
    """By a layer, and by an ensemble that waits for the backbone that another cell trains; rehearsed ones beside."""
    arms = """byol, {name: plain, method: byol, rela: {prior: rand}},
      {name: one, method: byol, rela: {prior: rand, layer: layer1}},
      {name: two, method: byol, accelerate: {name: herding, prior: rand, ensemble: [CF10-R20, DIGITS-T]}}"""
    byol, plain, one, two = tasks_of(arms, paths)
    assert isinstance(byol, Ready)
    assert two.needs is byol
    save_weights(build_backbone("resnet_small", SIZE).module, paths.backbone(byol.id))
    made = [targets_of(task, paths) for task in (plain, one, two)]
    network = passes(find_prior("rand", cell(prior="rand"), paths), SIZE)
    r20 = passes(find_prior("CF10-R20", cell(prior="CF10-R20"), paths), 32)
    assert [each.cost.flops for each in made] == [IMAGES * flops for flops in (network, network, 2 * network + r20)]
    assert [each.values.shape[1] for each in made] == [128, 16, 128], "of layer1 all, of others as many as the backbone"
    assert isinstance(two, Ready)
    known = two.cell.targets_of.members(two.inputs.prior)
    assert known.keys() == {"rand", "CF10-R20", "DIGITS-T"}
    assert known["DIGITS-T"] == byol.id, "which tells the report what that one's training took"
    staged = Paths(paths.data, paths.results, "tiny", rehearsal=True)
    for task in tasks_of(arms, staged)[1:]:
        targets_of(task, staged)
    assert len(list(paths.cache.glob("targets/*.safetensors"))) == 6


def test_a_prior_of_an_ensemble_that_is_missing_makes_the_cell_missing(paths: Paths) -> None:
    arms = "{name: it, method: byol, rela: {prior: rand, layer: layer1, ensemble: [CLIP-RN50]}}"
    (task,) = tasks_of(arms, paths)
    assert isinstance(task, Missing)
    assert "CLIP-RN50" in task.reason


def test_prepare_tells_of_each_prior_and_of_a_wrong_layer(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    arms = "{method: byol, rela: {prior: rand}}, {name: it, method: byol, rela: {prior: rand, layer: layer2, "
    arms += "ensemble: [CF10-R20]}}"
    assert prepare_tasks(tasks_of(arms, paths), paths)
    said = capsys.readouterr().out
    assert "prior rand: 128 features at 12 pixels, digest rand-resnet_small-0\n" in said
    assert "prior rand: 32 features at 12 pixels, digest rand-resnet_small-0 at layer2" in said
    assert "prior CF10-R20: 64 features at 32 pixels" in said
    assert not prepare_tasks(tasks_of(arms.replace("layer2", "layr2"), paths), paths)
    assert "rela.layer: the prior's network has no module 'layr2'; did you mean 'layer2'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"prior": "rand", "ensemble": ["rand"]}, "ensemble: 'rand' is there twice; keep one"),
        ({"prior": "rand", "ensemble": ["CF10-T", "CF10-T"]}, "ensemble: 'CF10-T' is there twice; keep one"),
        ({"prior": "rand", "ensemble": ["file:a.pt"]}, "ensemble: 'file:a.pt' needs a backbone, which only prior has"),
        ({"prior": "", "layer": "layer1"}, "layer is for a prior, and none is named"),
        ({"prior": "", "ensemble": ["rand"]}, "ensemble is for a prior, and none is named"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(choice: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PriorChoice.model_validate(choice)
    assert PriorChoice(prior="rand", layer="layer1", ensemble=("rand",)).named == "rand at layer1 + rand"


def test_an_arm_waits_for_one_backbone_at_most(paths: Paths) -> None:
    arms = "byol, {name: it, method: byol, rela: {prior: CF10-T, ensemble: [DIGITS-T]}}"
    with pytest.raises(UserError, match="needs 'CF10-T' and 'DIGITS-T', and can wait for one of them only"):
        tasks_of(arms, paths)


def test_labels_tell_layers_and_ensembles_apart() -> None:
    file = "file:a/net.safetensors"
    choices = [Rela(prior="rand"), Rela(prior="rand", layer="layer1", ensemble=("timm:vit", "CF10-R20"))]
    choices.append(Rela(prior=file, backbone="resnet18", layer="fc"))
    labels = [next(iter(arm_labels([Arm(method="byol", rela=choice)]).values())) for choice in choices]
    assert labels == ["byol + ReLA (rand)", "byol + ReLA (rand at layer1 + vit + CF10-R20)", "byol + ReLA (net at fc)"]
