"""Image i meets target i and label i, however it comes to a step; a shuffled control meets random others."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from bench.core import distributed
from bench.data import Split
from bench.data.folder import PathList
from bench.data.loader import open_source
from bench.data.sampler import Sampler
from bench.train.loop import Trainer
from methods import Batch
from methods.byol import BYOL
from methods.rela import ReLA
from tests.train.colours import (
    BATCH,
    CLASSES,
    COUNT,
    CPU,
    PLAIN,
    SIZE,
    colours,
    pictures,
    red_of,
    registered,
    run,
    spread,
    tasks_of,
    write_files,
)

STEPS = COUNT // BATCH
RELA = "{method: byol, rela: {prior: red, phase: 1.0}}"


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with registered():
        yield


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of the images; a prior sees them in batches of 40."""
    monkeypatch.delenv("BENCH_CACHE", raising=False)
    monkeypatch.setattr("bench.data.loader.SMALL_IMAGES", 40)
    monkeypatch.setattr("bench.data.loader.LARGE_IMAGES", 40)
    write_files(tmp_path)
    return tmp_path


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """What each step of a cell was given, in order; views show the images as they are."""
    found: list[Batch] = []
    monkeypatch.setattr("methods.rela.VIEW", PLAIN)
    monkeypatch.setattr(BYOL, "views", (PLAIN, PLAIN))
    # A step that is only counted is not taken.
    monkeypatch.setattr(Trainer, "_count", lambda self, kind, batch: self.spent.step_flops.update({kind: 1}))
    last: list[Batch] = []
    for method in (ReLA, BYOL):
        loss, after_step = method.loss, method.after_step

        def spy(self: ReLA | BYOL, batch: Batch, loss: object = loss) -> Tensor:
            last[:] = [batch]
            return loss(self, batch)  # type: ignore[operator]

        def taken(self: ReLA | BYOL, after_step: object = after_step) -> None:
            found.extend(last)  # of the two that act after a step of ReLA, the first has it
            last.clear()
            after_step(self)  # type: ignore[operator]

        monkeypatch.setattr(method, "loss", spy)
        monkeypatch.setattr(method, "after_step", taken)
    return found


def files(root: Path) -> list[Path]:
    return sorted((root / "colour_files" / "train").rglob("*.png"))


def reds_in_order(dataset: str, root: Path) -> np.ndarray:
    """Return the reds of the training images in the order of the dataset."""
    return colours(COUNT) if dataset == "colours" else np.array([1000 - int(path.stem) for path in files(root)])


def reds_of(seen: list[Batch]) -> list[list[int]]:
    """Return the images of each step, having looked that all views of a step show the same and labels are theirs."""
    found = []
    for batch in seen:
        reds = [red_of(view) for view in batch.views]
        assert all(view == reds[0] for view in reds)
        assert batch.labels.tolist() == [red % CLASSES for red in reds[0]]
        found.append(reds[0])
    return found


@pytest.mark.parametrize(
    ("dataset", "budget", "images", "workers"),
    [
        ("colours", 1.0, None, 0),
        ("colours", 0.5, None, 0),
        ("colours", 1.0, 64, 0),
        ("colour_files", 1.0, None, 0),
        ("colour_files", 0.5, 64, 2),
    ],
)
def test_an_image_has_its_own_target_and_label(
    dataset: str, budget: float, images: int | None, workers: int, root: Path, seen: list[Batch]
) -> None:
    (task,), paths = tasks_of(root, RELA, dataset, budget, images=images)
    record = run(task, paths, workers)
    steps = int((images or COUNT) * budget) // BATCH
    reds = reds_of(seen)
    assert len(seen) == 3 * steps
    part = sorted({red for step in reds for red in step})
    if images:
        assert record.ledger.targets is not None
        assert record.ledger.targets.images == images >= len(part)
    if budget == 1.0:
        assert len(part) == (images or COUNT)
        expected = dict(zip(part, spread(part), strict=True))
        for batch, step in zip(seen, reds, strict=True):
            assert batch.targets is not None
            np.testing.assert_allclose(batch.targets[:, 0], [expected[red] for red in step], atol=1e-3)
    else:  # of a share, not all of what the targets are standardised over is seen: a line through all of them
        targets = np.concatenate([batch.targets[:, 0].numpy() for batch in seen if batch.targets is not None])
        line = np.polyfit(np.concatenate(reds), targets, 1)
        np.testing.assert_allclose(targets, np.polyval(line, np.concatenate(reds)), atol=1e-3)
        assert line[0] > 0.02
    epochs = [sorted(chain(*reds[first : first + steps])) for first in range(0, 3 * steps, steps)]
    assert all(len(set(epoch)) == steps * BATCH for epoch in epochs), "no image comes twice in an epoch"
    assert (epochs[0] != epochs[1] != epochs[2]) == (budget < 1), "a share is drawn anew in each epoch"
    assert reds[:steps] != reds[steps : 2 * steps], "and so is the order"


@pytest.mark.parametrize("dataset", ["colours", "colour_files"])
def test_shuffled_targets_are_a_random_permutation_the_same_in_all_epochs(
    dataset: str, root: Path, seen: list[Batch]
) -> None:
    (task,), paths = tasks_of(root, RELA.replace("red,", "red, shuffle: true,"), dataset)
    run(task, paths)
    values = spread(range(COUNT))
    given: dict[int, set[int]] = {}
    for batch, step in zip(seen, reds_of(seen), strict=True):
        assert batch.targets is not None
        for red, target in zip(step, batch.targets[:, 0].tolist(), strict=True):
            given.setdefault(red, set()).add(int(np.abs(values - target).argmin()))
    assert all(len(targets) == 1 for targets in given.values())
    owner = np.array([min(given[red]) for red in range(COUNT)])
    assert sorted(owner) == list(range(COUNT)), "each target is some image's"
    # In the order of colours and in that of the dataset: a permutation at random has one fixed point in the mean, 63 %
    # of the offsets there are, and a rank correlation of 0 give or take 0.1.
    place = np.argsort(reds_in_order(dataset, root))
    for one, other in ((np.arange(COUNT), owner), (place, place[owner])):
        assert (one == other).sum() <= 4
        assert len(set((one - other) % COUNT)) > COUNT / 2
        assert abs(spearmanr(one, other).statistic) < 0.4


def test_all_arms_of_a_seed_see_the_same_images_and_those_of_another_seed_others(root: Path, seen: list[Batch]) -> None:
    found = []
    for seed in (0, 1):
        tasks, paths = tasks_of(root, f"byol, {RELA}", seed=seed)
        for task in tasks:
            seen.clear()
            run(task, paths)
            found.append(reds_of(seen))
    assert found[0] == found[1]
    assert found[2] == found[3]
    assert not any(one == other for one, other in zip(found[0], found[2], strict=True))


@pytest.mark.parametrize("dataset", ["colours", "colour_files"])
def test_each_of_several_processes_has_the_images_of_its_own_indices(
    dataset: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reds = reds_in_order(dataset, root)
    images = pictures(reds) if dataset == "colours" else PathList(files(root))
    source = open_source(Split(images, (reds % CLASSES).astype(np.int64)), SIZE, CPU, 0)
    order = Sampler(COUNT, 0.5, BATCH, seed=2)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(distributed.lightly_dist, "rank", lambda rank=rank: rank)
        for step, (index, views) in enumerate(source.batches((PLAIN, PLAIN), order, range(5))):
            assert torch.equal(index, order(step)[rank * BATCH // 2 :][: BATCH // 2])
            for view in views:
                assert red_of(view) == reds[index].tolist()


def test_cells_share_targets_where_images_prior_and_size_are_the_same_and_nowhere_else(root: Path) -> None:
    ways = [
        ("{method: simclr, rela: {prior: red}}", "colours", None, 1),
        ("{method: byol, rela: {prior: red, shuffle: true}}", "colours", None, 1),
        ("{method: byol, rela: {prior: red}}", "colours", 64, 2),
        ("{method: byol, rela: {prior: red, input_size: 16}}", "colours", None, 3),
        ("{method: byol, rela: {prior: red, precision: bf16}}", "colours", None, 4),
        ("{method: byol, rela: {prior: rand}}", "colours", None, 5),
        ("{method: byol, backbone: resnet20_cifar, rela: {prior: red}}", "colours", None, 6),
        ("{method: byol, rela: {prior: red}}", "turned", None, 7),
    ]
    made = 0
    for arm, dataset, images, files in ways:
        (task,), paths = tasks_of(root, arm, dataset, budget=0.25, images=images)
        record = run(task, paths)
        assert len(list((root / "cache" / "targets").glob("*.safetensors"))) == files
        assert record.ledger.targets is not None
        assert record.ledger.targets.cached == (files == made), "who made them has not found them"
        made = files
