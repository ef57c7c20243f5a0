"""What every accelerator must do, and the losses of ours against formulas written from the papers, in float64."""

import copy

import pytest
import torch
from torch import Tensor, nn

from bench.core.paths import Paths
from bench.data import load_dataset
from bench.models.backbones import build_backbone
from methods import Accelerator, Batch, accelerators, methods
from tests.methods.test_conformance import COUNT, SIZE, STEPS, train

SMALL: dict[str, dict[str, int]] = {"seed": {"queue": COUNT}}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    root = tmp_path_factory.mktemp("data")
    return torch.from_numpy(load_dataset("digits", Paths(root, root, "test")).train.images[:COUNT])


@pytest.fixture(params=list(accelerators))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def build(name: str) -> Accelerator:
    torch.manual_seed(0)
    backbone = build_backbone("resnet_small", SIZE)
    method = methods.build("byol", backbone.module, backbone.dim, {})
    return accelerators.build(name, method, 8, SMALL.get(name, {}))


def test_the_loss_is_a_finite_number_and_falls(name: str, images: Tensor) -> None:
    losses = train(build(name), images, STEPS, same_batch=True)
    assert all(map(torch.isfinite, map(torch.tensor, losses)))
    assert sum(losses[-5:]) < sum(losses[:5])


def test_every_parameter_is_trained_or_declared_frozen(name: str, images: Tensor) -> None:
    found = build(name)
    before = {key: value.clone() for key, value in found.named_parameters()}
    train(found, images, 2)
    still = [key for key, value in found.named_parameters() if value.requires_grad and torch.equal(value, before[key])]
    assert still == []


def test_the_state_is_all_that_a_resumed_run_needs(name: str, images: Tensor) -> None:
    whole = build(name)
    train(whole, images, 2)
    resumed = build(name)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert train(resumed, images, 3) == train(whole, images, 3)
    for one, other in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


def test_it_says_in_its_docstring_what_differs_from_its_paper(name: str) -> None:
    assert "What differs:" in (accelerators.get(name).__doc__ or "")


def tiny(name: str, **params: object) -> Accelerator:
    torch.manual_seed(0)
    method = methods.build("byol", nn.Sequential(nn.Flatten(), nn.Linear(48, 12)), 12, {})
    return accelerators.build(name, method, 5, params).double()


def data(step: int = 0, count: int = 7) -> Batch:
    draw = torch.Generator().manual_seed(step)
    views = [torch.randn(count, 3, 4, 4, generator=draw).double() for _ in range(2)]
    return Batch(views, torch.zeros(count, dtype=torch.int64), torch.randn(count, 5, generator=draw).double())


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(dim=1, keepdim=True).sqrt()


@pytest.fixture
def _double(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "float", Tensor.double)


@pytest.mark.usefixtures("_double")
def test_simreg_is_the_squared_distance_of_normalised_features() -> None:
    model, seen = tiny("simreg"), data()
    assert seen.targets is not None
    ours = model.loss(seen)
    layers = [each for each in model.head.modules() if isinstance(each, nn.Linear)]
    assert [(each.in_features, each.out_features) for each in layers] == [(12, 24), (24, 12), (12, 24), (24, 5)]
    norms = [each for each in model.head.modules() if isinstance(each, nn.BatchNorm1d)]
    terms = []
    for view in seen.views:
        x = model.backbone(view)
        for index, layer in enumerate(layers):
            x = x @ layer.weight.T + (layer.bias if layer.bias is not None else 0)
            if index in {0, 2}:
                x = (x - x.mean(0)) / (x.var(0, unbiased=False) + norms[index // 2].eps).sqrt()
                x = x.clamp(min=0)
        terms.append((unit(x) - unit(seen.targets)).square().sum(dim=1))
    assert ours.item() == pytest.approx(torch.stack(terms).mean().item(), abs=1e-6)


@pytest.mark.usefixtures("_double")
def test_seed_is_the_cross_entropy_of_similarities_to_the_queue() -> None:
    model = tiny("seed", queue=16, temperature=0.3, prior_temperature=0.05)
    rows: Tensor = model.queue.rows.clone()
    for step in range(3):  # 7 rows a step: the queue comes round
        seen = data(step)
        assert seen.targets is not None
        ours = model.loss(seen)
        assert torch.equal(model.queue.rows, rows), "a step's own rows come after it"
        target = unit(seen.targets)
        terms = []
        for view in seen.views:
            z = unit(model.head(model.backbone(view)))
            for image in range(len(z)):
                known = torch.cat([target[image : image + 1], rows])
                wanted = torch.exp(known @ target[image] / 0.05)
                guess = torch.exp(known @ z[image] / 0.3)
                terms.append(-(wanted / wanted.sum() * (guess / guess.sum()).log()).sum())
        assert ours.item() == pytest.approx(torch.stack(terms).mean().item(), abs=1e-6)
        model.after_step()
        slots = [(7 * step + offset) % 16 for offset in range(7)]
        rows[slots] = target
        torch.testing.assert_close(model.queue.rows, rows)  # the oldest rows go first, in the order of the batch


def test_the_papers_settings_are_the_defaults() -> None:
    found = accelerators.resolved("seed", {}, "")
    assert found == {"queue": 65536, "temperature": 0.2, "prior_temperature": 0.01}


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("which", ["simreg", "seed"])
def test_the_targets_get_no_gradient_that_anything_is_trained_by(which: str) -> None:
    """The prior is frozen: what is trained is the backbone and the head, and not the method's own heads."""
    params = {"queue": 16} if which == "seed" else {}
    model, seen = tiny(which, **params), data()
    model.loss(seen).backward()  # type: ignore[no-untyped-call]
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in model.backbone.parameters())
    assert {key.partition(".")[0] for key, _ in model.named_parameters()} == {"backbone", "head"}
    if which == "seed":
        assert not model.queue.rows.requires_grad
        assert not model.queue.kept.requires_grad
