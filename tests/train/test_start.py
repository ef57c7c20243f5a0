"""A cell that begins with the weights of a prior: the same features, whatever the prior's normalisation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.core.errors import UserError
from bench.core.paths import Paths
from bench.data import load_dataset
from bench.data.augment import EvalView
from bench.data.loader import InMemoryLoader
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.measure.clock import Clock
from bench.models.backbones import Backbone, backbones, build_backbone, resnet_small
from bench.models.weights import read_state, save_weights
from bench.plan.graph import Missing, Ready, Task, plan
from bench.report.collect import collect
from bench.report.costs import ALONE, FLOP, PRIOR
from bench.run.progress import Display
from bench.run.runner import run_tasks
from bench.targets.make import features
from bench.train.start import starting_backbone
from methods.build import build_method
from priors import Prior, priors

CPU, SIZE = torch.device("cpu"), 12
GRID = """
backbone: resnet_small
datasets: [{name: digits, train_images: 64}]
seeds: [0]
arms: ARMS
protocol: {epochs: 2, batch_size: 32, input_size: 12, lr: 1.0e-12, probe: {epochs: 3}, knn: {k: 5}}
"""


class Other(Prior):
    """A network that wants its images in a normalisation of its own."""

    mean, std = (0.5, 0.4, 0.3), (0.5, 0.25, 1.0)

    def model(self) -> nn.Module:
        torch.manual_seed(3)
        return build_backbone("resnet_small", SIZE).module

    def digest(self) -> str:
        return "other"


def places_in(folder: Path) -> Paths:
    return Paths(folder / "data", folder / "results", "tiny")


def tasks_of(folder: Path, arms: str) -> list[Task]:
    path = folder / "tiny.yaml"
    path.write_text(GRID.replace("ARMS", arms))
    return plan(cells := expand(load_grid(str(path))), cells, places_in(folder), "grid tiny")


def ready(folder: Path, warm_start: str, backbone: str = "resnet_small") -> Ready:
    (task,) = tasks_of(folder, f"[{{method: byol, backbone: {backbone}, warm_start: '{warm_start}'}}]")
    assert isinstance(task, Ready), task
    return task


@torch.no_grad()
def by_the_cell(task: Ready, source: InMemoryLoader, size: int) -> Tensor:
    """Return the features of the training images before the first step, as an evaluation makes them."""
    method = build_method(task.cell, size, None, 1, backbone=starting_backbone(task, size))
    return torch.cat([method.backbone.eval()(batch) for batch in source.eval_batches(EvalView(size))])


def by_the_prior(prior: Prior, source: InMemoryLoader, size: int) -> Tensor:
    """Return them as targets are made of them: by the prior's own pipeline."""
    prior.input_size = size
    return torch.cat([part for part, _ in features(prior, source, size, Clock(CPU), "fp32")])


def source_of(folder: Path, size: int) -> InMemoryLoader:
    split = load_dataset("digits", places_in(folder)).train
    return InMemoryLoader(torch.from_numpy(split.images[:64]), torch.from_numpy(split.labels[:64]), size, CPU)


def stored(folder: Path) -> str:
    torch.manual_seed(5)
    save_weights(build_backbone("resnet_small", SIZE).module, folder / "weights.safetensors")
    return f"file:{folder / 'weights.safetensors'}"


@pytest.mark.parametrize("kind", ["file", "other"])
def test_the_features_at_step_0_are_the_priors(kind: str, temporary: Any, tmp_path: Path) -> None:
    temporary(priors, other=Other)
    task = ready(tmp_path, stored(tmp_path) if kind == "file" else "other")
    assert task.start is not None
    source = source_of(tmp_path, SIZE)
    ours, theirs = by_the_cell(task, source, SIZE), by_the_prior(task.start, source, SIZE)
    assert (ours - theirs).abs().max() <= 1e-6 * max(1.0, theirs.abs().max().item())
    untrained = build_method(task.cell, SIZE, None, 1).backbone.eval()(next(source.eval_batches(EvalView(SIZE))))
    assert (untrained - ours).abs().max() > 0.01, "which are others than the seed's"


def test_the_public_resnet20_begins_as_it_is(resnet20_weights: Path, tmp_path: Path) -> None:
    task = ready(tmp_path, f"file:{resnet20_weights}", "resnet20_cifar")
    assert task.start is not None
    source = source_of(tmp_path, 32)
    ours, theirs = by_the_cell(task, source, 32), by_the_prior(task.start, source, 32)
    assert (ours - theirs).abs().max() <= 1e-6 * max(1.0, theirs.abs().max().item())


def test_a_prior_that_the_grid_trains_is_waited_for_and_charged(tmp_path: Path) -> None:
    maker, warm = tasks = tasks_of(tmp_path, "[byol, {name: warm, method: simclr, warm_start: DIGITS-T}]")
    paths = places_in(tmp_path)
    assert isinstance(maker, Ready)
    assert isinstance(warm, Ready)
    assert warm.needs is maker
    assert (warm.inputs.warm_start, warm.inputs.prior) == (maker.id, None)
    with Display() as display:
        outcomes = run_tasks(tasks, paths, CPU, 0, display)
    assert [outcome.status for outcome in outcomes] == ["done", "done"]
    one, other = (read_state(paths.backbone(task.id)) for task in (maker, warm))
    for name, value in one.items():
        if "running" not in name and "num_batches" not in name:  # which follow the images, at a rate of nothing
            torch.testing.assert_close(other[name], value, atol=1e-6, rtol=0)
    found = collect(load_grid(str(tmp_path / "tiny.yaml")), paths.records)
    first, second = found.done
    assert found.costs.of(second, FLOP, ALONE) == second.ledger.flops, "nothing in training"
    assert found.costs.of(second, FLOP, PRIOR) == second.ledger.flops + first.ledger.flops
    assert second.references is not None
    assert second.references.prior is not None


def test_another_architecture_is_refused_in_one_sentence(tmp_path: Path) -> None:
    arms = "[{name: warm, method: byol, backbone: resnet20_cifar, warm_start: DIGITS-T}, byol]"
    with pytest.raises(UserError) as caught:
        tasks_of(tmp_path, arms)
    expected = "grid tiny: arm 'warm': warm_start 'DIGITS-T' is another architecture than backbone 'resnet20_cifar'"
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_here_mark_the_task(tmp_path: Path) -> None:
    (task,) = tasks_of(tmp_path, "[{method: byol, warm_start: 'file:nowhere.pt'}]")
    assert isinstance(task, Missing)
    assert "file:nowhere.pt" in task.reason


def test_a_network_of_the_same_names_and_other_features_is_refused(temporary: Any, tmp_path: Path) -> None:
    temporary(backbones)

    @backbones.register("twin")
    def twin() -> Backbone:
        found = resnet_small()
        found.module.register_forward_hook(lambda module, given, features: 2 * features)
        return found

    task = ready(tmp_path, stored(tmp_path), "resnet_small")
    task = Ready(**{**vars(task), "cell": task.cell.model_copy(update={"backbone": "twin"})})
    with pytest.raises(UserError, match=r"has the weights of warm_start .* but not its features"):
        starting_backbone(task, SIZE)
