"""Priors of every kind at the sizes they are asked for, and weights in the less usual forms."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.core.errors import MissingError, UserError
from bench.core.paths import Paths
from bench.grid.cell import Cell, Protocol
from bench.grid.controls import Rela
from bench.models.backbones import build_backbone
from bench.models.weights import load_weights, read_state, save_weights
from priors import Prior, find_prior, priors
from priors.base import Stored
from priors.catalogue import SHIPPED
from priors.trained import Trained
from priors.untrained import Untrained

VIT = "vit_tiny_patch16_224"  # a transformer: its weights fit one input size alone


def cell(prior: str, backbone: str = "resnet_small", size: int | None = 48) -> Cell:
    return Cell(
        arm="a",
        dataset="digits",
        train_images=None,
        backbone=backbone,
        method="byol",
        params={},
        rela=Rela(prior=prior),
        budget=0.5,
        seed=0,
        protocol=Protocol(input_size=size),
    )


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "data", tmp_path / "results", "g")


@torch.no_grad()
def features(model: nn.Module, size: int) -> Tensor:
    out: Tensor = model.eval()(torch.zeros(2, 3, size, size))
    return out


def test_rand_fits_the_cells_images(paths: Paths) -> None:
    """A transformer has weights for one size: that of the cell, which the prior sees unless it is told otherwise."""
    model = find_prior("rand", cell("rand", VIT), paths).model()
    assert features(model, 48).shape == (2, 192)


def test_rand_fits_the_datasets_own_size(paths: Paths) -> None:
    prior = find_prior("rand", cell("rand", size=None), paths)
    assert features(prior.model(), 8).shape == (2, 128)


def test_a_file_fits_the_cells_images(paths: Paths) -> None:
    stored = build_backbone(VIT, 48).module
    save_weights(stored, paths.data / "priors" / "vit.safetensors")
    name = "file:vit.safetensors"
    asking = cell(name).model_copy(update={"rela": Rela(prior=name, backbone=VIT)})
    model = find_prior(name, asking, paths).model()
    assert torch.equal(features(model, 48), features(stored, 48))


def test_a_file_that_the_data_root_lacks_comes_with_the_package(paths: Paths) -> None:
    prior = find_prior("file:resnet20_cifar10.safetensors", cell("file:x"), paths)
    assert isinstance(prior, Stored)
    assert prior.path() == SHIPPED / "resnet20_cifar10.safetensors"
    own = paths.data / "priors" / "resnet20_cifar10.safetensors"
    save_weights(nn.Linear(1, 1), own)
    assert prior.path() == own


def test_a_trained_backbone_is_the_makers(paths: Paths) -> None:
    torch.manual_seed(0)
    stored = build_backbone("resnet_small", 16).module
    save_weights(stored, paths.backbone("0123456789abcdef"))
    maker, asking = cell("rand").model_copy(update={"rela": None}), cell("DIGITS-T", backbone="resnet18")
    prior = Trained(maker, "0123456789abcdef", 16, asking, paths)
    assert torch.equal(features(prior.model(), 16), features(stored, 16))
    assert prior.digest() == "0123456789abcdef"


def test_a_trained_backbone_that_is_not_there(paths: Paths) -> None:
    prior = Trained(cell("rand"), "0123456789abcdef", 16, cell("DIGITS-T"), paths)
    with pytest.raises(MissingError) as caught:
        prior.model()
    assert str(paths.backbone("0123456789abcdef")) in str(caught.value)


def test_a_rehearsal_looks_at_two_images_by_the_priors_own_network(paths: Paths) -> None:
    prior = find_prior("timm:resnet18", cell("timm:resnet18"), paths)
    prior.input_size = 32
    stand_in = Untrained(prior, "timm:resnet18")
    assert (stand_in.input_size, stand_in.mean, stand_in.std) == (32, prior.mean, prior.std)
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, again = (stand_in.model().eval()(images) for _ in range(2))
    assert torch.equal(one, again)
    assert one.shape == (5, 512)
    assert torch.equal(one[[2, 3, 4]], one[[0, 1, 0]])
    assert not torch.equal(one[0], one[1])


def test_priors_of_two_plugins_never_share_their_targets(paths: Paths) -> None:
    class One(Prior):
        """One."""

    class Two(Prior):
        """Another."""

        version = 2

    digests = [kind("", cell("x"), paths).digest() for kind in (One, Two)]
    assert digests == ["One-1", "Two-2"]


def test_every_kind_says_what_it_is() -> None:
    assert {"rand", "file", "timm"} <= set(priors)
    assert all(priors.get(name).__doc__ for name in priors)


@pytest.mark.parametrize("name", ["", ":", "file", "timm:", "timm:../../x", "rnd:3", "CF10"])
def test_a_name_that_is_none(paths: Paths, name: str) -> None:
    """Of a bare `file`, only the weights are missing: it names the folder as if it were the file."""
    with pytest.raises(UserError) as caught:
        find_prior(name, cell(name), paths).digest()
    assert "prior " in str(caught.value)
    assert "\n" not in str(caught.value)


class Wrapped(nn.Module):
    """A backbone of a plugin that has all its weights below one name, which wrappers also use."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(3, 2)


def test_a_module_whose_own_names_look_wrapped_comes_back(tmp_path: Path) -> None:
    one, two = Wrapped(), Wrapped()
    save_weights(one, tmp_path / "x.safetensors")
    load_weights(two, tmp_path / "x.safetensors")
    assert torch.equal(one.module.weight, two.module.weight)
    torch.save({f"_orig_mod.{k}": v for k, v in one.state_dict().items()}, tmp_path / "x.pt")
    nn.init.zeros_(two.module.weight)
    load_weights(two, tmp_path / "x.pt")
    assert torch.equal(one.module.weight, two.module.weight)


def test_a_state_that_contains_itself_is_read_once(tmp_path: Path) -> None:
    state: dict[str, object] = {"weight": torch.ones(1)}
    state["model"] = [state, {"bias": torch.ones(1)}]
    state["again"] = {"itself": state}
    torch.save(state, tmp_path / "x.pt")
    assert read_state(tmp_path / "x.pt").keys() == {"weight"}


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    one, two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    nn.init.normal_(one.weight)
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in one.state_dict().items()}, tmp_path / "x.pt")
    load_weights(two, tmp_path / "x.pt")
    assert two.weight.dtype == torch.float32
    assert torch.equal(two.weight, one.weight.half().float())


def test_a_counter_of_another_shape_is_refused(tmp_path: Path) -> None:
    state = nn.BatchNorm2d(3).state_dict() | {"num_batches_tracked": torch.zeros(2)}
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(UserError, match="num_batches_tracked has shape"):
        load_weights(nn.BatchNorm2d(3), tmp_path / "x.pt")


def test_old_files_have_no_counter(tmp_path: Path) -> None:
    state = {k: v for k, v in nn.BatchNorm2d(3).state_dict().items() if k != "num_batches_tracked"}
    torch.save(state, tmp_path / "x.pt")
    load_weights(nn.BatchNorm2d(3), tmp_path / "x.pt")
