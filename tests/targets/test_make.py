"""Where targets are looked for."""

from functools import partial
from pathlib import Path

import pytest
import torch

from bench.core.paths import Paths
from bench.data.loader import InMemoryLoader
from bench.grid.expand import expand
from bench.measure.clock import Clock
from bench.models.backbones import build_backbone
from bench.plan.graph import Ready, plan
from bench.plan.load import load_grid
from bench.targets.cache import Cost, Targets, cache_path, save_targets
from bench.targets.make import find_or_make_targets

CPU, COUNT, SIZE = torch.device("cpu"), 64, 8
GRID = f"""
backbone: resnet_small
datasets: [{{name: digits, train_images: {COUNT}}}]
seeds: [0]
arms: [{{method: byol, rela: {{prior: rand, phase: 0.5}}}}]
protocol: {{epochs: 1, batch_size: 32, input_size: {SIZE}, probe: {{epochs: 1}}, knn: {{k: 5}}}}
"""


def test_a_gpu_takes_no_targets_that_a_cpu_made(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(GRID)
    cells, paths = expand(load_grid(str(tmp_path / "grid.yaml"))), Paths(tmp_path, tmp_path / "results", "grid")
    (task,) = plan(cells, cells, paths, "grid")
    assert isinstance(task, Ready)
    assert task.prior
    path = partial(
        cache_path,
        paths.cache,
        data=task.inputs.data,
        prior=task.prior.digest(),
        precision="fp32",
        part=COUNT,
        size=SIZE,
        dim=build_backbone("resnet_small", SIZE).dim,
    )
    for at, maker in ((path(), "a CPU"), (path(device="cuda"), "a GPU")):
        save_targets(Targets(torch.zeros(COUNT, 2), 0, Cost(seconds=1.0, flops=1, images=COUNT), maker), at)
    source = InMemoryLoader(torch.zeros(COUNT, 3, SIZE, SIZE, dtype=torch.uint8), torch.zeros(COUNT), SIZE, CPU)
    for device, maker in (("cpu", "a CPU"), ("cuda", "a GPU")):
        clock = Clock(CPU)
        clock.device = torch.device(device)
        found = find_or_make_targets(task, source, SIZE, paths, clock, lambda: None, lambda images: None)
        assert found
        assert found.maker == maker


def test_the_cost_of_two_parts_is_their_sum_and_other_work_is_weighed_by_their_seconds() -> None:
    one = Cost(seconds=2.0, flops=3, images=4, joules=5.0, side_by_side=1, other_load=0.5)
    other = Cost(seconds=6.0, flops=30, images=40, joules=50.0, side_by_side=2, other_load=0.1)
    both = one + other
    assert (both.seconds, both.flops, both.images, both.joules, both.side_by_side) == (8.0, 33, 44, 55.0, 2)
    assert both.other_load == pytest.approx((2 * 0.5 + 6 * 0.1) / 8)
    assert (one + other.model_copy(update={"joules": None})).joules is None
