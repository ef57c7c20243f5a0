"""What every accelerator must do, and the losses of ours against formulas written from the papers, in float64."""

import copy
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.core.errors import Interrupted
from bench.core.paths import Paths
from bench.core.seeds import generator
from bench.data import load_dataset
from bench.data.loader import InMemoryLoader
from bench.data.sampler import Sampler
from bench.grid.cell import Protocol
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.measure.clock import Clock
from bench.measure.flops import step_flops
from bench.models.backbones import build_backbone
from bench.models.weights import read_state
from bench.plan.graph import Ready, plan
from bench.train.cell import run_cell
from bench.train.keeper import Hooks
from bench.train.loop import Trainer
from methods import Accelerator, Batch, Method, accelerators, methods
from tests.methods.small import accelerate, around, backbone_for
from tests.methods.test_conformance import COUNT, SIZE, STEPS, train
from tests.train.test_determinism import assert_same

CPU, TAKEN = torch.device("cpu"), 6  # steps, enough for each kind of them
ARMS = {
    name: {"method": "byol", "backbone": backbone_for(name), "accelerate": accelerate(name)} for name in accelerators
}
ARMS["freeze_out"] |= {"method": "simclr"}
ARMS["progressive"] |= {"rela": {"prior": "rand", "phase": 0.5}}
ARMS["token_drop"] |= {"method": "mocov3", "params": {"hidden": 32}}
GRID = """
backbone: resnet_small
datasets: [{name: digits, train_images: 48}]
seeds: [0]
arms: [ARM]
protocol: {epochs: 3, batch_size: 24, input_size: 12, evaluate_at: [0.5], probe: {epochs: 1}, knn: {k: 5}}
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    root = tmp_path_factory.mktemp("data")
    return torch.from_numpy(load_dataset("digits", Paths(root, root, "test")).train.images[:COUNT])


@pytest.fixture(params=list(accelerators))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def build(name: str) -> Accelerator:
    torch.manual_seed(0)
    backbone = build_backbone(backbone_for(name), SIZE)
    return around(name, methods.build("byol", backbone.module, backbone.dim, {}))


def test_the_loss_is_a_finite_number_and_falls(name: str, images: Tensor) -> None:
    losses = train(build(name), images, STEPS, same_batch=True)
    assert all(map(torch.isfinite, map(torch.tensor, losses)))
    assert sum(losses[-5:]) < sum(losses[:5])


def test_every_parameter_is_trained_or_declared_frozen(name: str, images: Tensor) -> None:
    """In the first steps: what an accelerator freezes later has been trained by then."""
    found = build(name)
    before = {key: value.clone() for key, value in found.named_parameters() if value.requires_grad}
    train(found, images, 2)
    assert [key for key, value in found.named_parameters() if key in before and torch.equal(value, before[key])] == []


def trainer_of(name: str, images: Tensor) -> Trainer:
    """Return what trains the accelerator, of two steps an epoch, before it has chosen its images."""
    source, order = InMemoryLoader(images, torch.arange(COUNT) % 10, SIZE, CPU), Sampler(COUNT, 1.0, COUNT // 2, 0)
    targets = torch.randn(COUNT, 8, generator=generator(0, "targets"))
    return Trainer(build(name), source, order, targets, Protocol(epochs=TAKEN // 2), Clock(CPU))


def test_a_run_that_is_resumed_has_the_bits_of_one_that_was_not(name: str, images: Tensor) -> None:
    """In the last of the kinds of step that there are."""
    whole, resumed = trainer_of(name, images), trainer_of(name, images)
    whole.choose()
    whole.train(TAKEN - 1, lambda: None)
    resumed.restore(copy.deepcopy(whole.state()))
    for each in (whole, resumed):
        each.train(TAKEN, lambda: None)
    assert_same(whole, resumed)


def test_steps_of_one_kind_take_equal_flops_and_the_ledger_is_their_sum(name: str, images: Tensor) -> None:
    """The trainer counts the first step of a kind, and this test the last one."""
    trainer = trainer_of(name, images)
    trainer.choose()
    taken, last, counts = trainer.spent.flops, dict[str, Method](), Counter[str]()
    for step in range(TAKEN):
        now = copy.deepcopy(trainer.method).train()
        now.before_step(step, TAKEN)
        last[now.kind] = now
        counts[now.kind] += 1
        trainer.train(step + 1, lambda: None)
    for kind, each in last.items():
        index, views = next(trainer.source.batches(each.views, trainer.order, range(1)))
        batch = Batch(views, trainer.source.labels[index], torch.randn(len(index), 8))
        flops = step_flops(lambda each=each, batch=batch: each.loss(batch))  # type: ignore[misc]
        assert trainer.spent.step_flops[kind] == flops, kind
        taken += counts[kind] * flops
    assert trainer.spent.flops == taken


@pytest.mark.parametrize("which", ARMS)
def test_a_cell_is_interrupted_and_goes_on_and_saves_a_plain_backbone(which: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(GRID.replace("ARM", json.dumps(ARMS[which])))
    cells, paths = expand(load_grid(str(tmp_path / "tiny.yaml"))), Paths(tmp_path, tmp_path / "results", "tiny")
    (task,) = plan(cells, cells, paths, "grid tiny")
    assert isinstance(task, Ready)
    steps: list[int] = []
    hooks = Hooks(lambda step, *_: steps.append(step), lambda *_: None, lambda: steps == [1, 2, 3, 4])
    with pytest.raises(Interrupted):
        run_cell(task, paths, CPU, 0, hooks)
    found = run_cell(task, paths, CPU, 0, replace(hooks, stop=lambda: False))
    assert (found.ledger.steps, [point.step for point in found.curve]) == (TAKEN, [TAKEN // 2, TAKEN])
    assert steps == [*range(1, TAKEN + 1)], "no step is taken twice"
    weights = read_state(paths.backbone(task.id))
    assert weights.keys() == build_backbone(task.cell.backbone, SIZE).module.state_dict().keys()


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
