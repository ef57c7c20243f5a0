"""Images of one colour each, which tells which image it is: datasets of them, a prior, and cells."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bench.core.paths import Paths
from bench.data import DatasetInfo, Split, dataset_cache, datasets
from bench.data.augment import MEAN, STD, View
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.plan.graph import Task, plan
from bench.store.record import Finished
from bench.train.cell import run_cell
from bench.train.keeper import Hooks
from priors import Prior, priors

COUNT, TEST, SIZE, BATCH, CLASSES = 96, 120, 8, 16, 4
PLAIN = View(jitter=0.0, grey=0.0)  # of an image of one colour: the image
CPU = torch.device("cpu")
GRID = """
backbone: resnet_small
datasets: [{name: DATASET, train_images: IMAGES}]
seeds: [SEED]
budgets: [BUDGET]
arms: [ARM]
protocol: {epochs: 3, batch_size: 16, input_size: 8, blur: false, PROTOCOL}
"""


def colours(count: int) -> np.ndarray:
    """Return the reds of a split's images, all different, in the order of the images: which is that of none of them."""
    return np.random.default_rng(count).permutation(count)


def pictures(reds: np.ndarray) -> np.ndarray:
    """Return images uint8 (N, 3, 8, 8): red tells which one it is, blue its class."""
    pixels = np.stack([reds, 255 - 2 * reds, 80 * (reds % CLASSES)], axis=1).astype(np.uint8)
    return np.broadcast_to(pixels[:, :, None, None], (len(reds), 3, SIZE, SIZE)).copy()


def red_of(images: Tensor) -> list[int]:
    """Return the red of normalised images (B, 3, size, size) of one colour each."""
    values = (images[:, 0] * STD[0] + MEAN[0]) * 255
    assert torch.allclose(values, values.round(), atol=0.02)
    assert (values.amax(dim=(1, 2)) - values.amin(dim=(1, 2)) < 0.02).all()
    return [int(value) for value in values.mean(dim=(1, 2)).round()]


class Colours(DatasetInfo):
    """The images in memory; a test image has the label of the class after its own where `turned` says so."""

    title, short, image_size, turned = "Colours", "COL", SIZE, 0

    def here(self, root: Path) -> bool:
        return True

    def read(self, root: Path) -> tuple[Split, Split]:
        train, test = colours(COUNT), colours(TEST)
        labels = (train % CLASSES).astype(np.int64), ((test + self.turned) % CLASSES).astype(np.int64)
        return Split(pictures(train), labels[0]), Split(pictures(test), labels[1])


class Turned(Colours):
    turned = 1


class Anyhow(Colours):
    """Labels are drawn at random and test images are brighter: what a probe gets right depends on its every detail."""

    def read(self, root: Path) -> tuple[Split, Split]:
        draw, (train, test) = np.random.default_rng(0), super().read(root)
        brighter = 255 - (255 - np.asarray(test.images)) // 2
        return Split(train.images, draw.permutation(train.labels)), Split(brighter, draw.permutation(test.labels))


class ColourFiles(DatasetInfo):
    """The same images as files, which stream."""

    title, short, streams = "Colour files", "COF", True


class Red(Prior):
    """One feature, an image's red; in train mode its batch norm and its dropout make something else of it."""

    def model(self) -> nn.Module:
        class Mean(nn.Module):
            def forward(self, images: Tensor) -> Tensor:
                return images[:, :1].mean(dim=(2, 3))

        same = nn.Conv2d(3, 3, 1, groups=3, bias=False)
        nn.init.ones_(same.weight)
        return nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), same, Mean())


@contextmanager
def registered() -> Iterator[None]:
    """Know the datasets and the prior for as long as the context lasts."""
    dataset_cache.clear()
    named = {"colours": Colours, "turned": Turned, "anyhow": Anyhow, "colour_files": ColourFiles}
    try:
        with datasets.temporary(**named), priors.temporary(red=Red):
            yield
    finally:
        dataset_cache.clear()


def write_files(root: Path) -> None:
    """Write the images as files of the dataset `colour_files`."""
    for split, count in (("train", COUNT), ("test", TEST)):
        reds = colours(count)
        for red, image in zip(reds, pictures(reds), strict=True):
            path = root / "colour_files" / split / str(red % CLASSES) / f"{1000 - red}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(path)


def tasks_of(
    root: Path,
    arms: str,
    dataset: str = "colours",
    budget: float = 1.0,
    seed: int = 0,
    images: int | None = None,
    protocol: str = "probe: {epochs: 1}, knn: {k: 5}",
) -> tuple[list[Task], Paths]:
    """Return the planned cells of a small grid, and where they run."""
    text = GRID.replace("DATASET", dataset).replace("IMAGES", str(images or "null")).replace("BUDGET", str(budget))
    (root / "colours.yaml").write_text(
        text.replace("SEED", str(seed)).replace("ARM", arms).replace("PROTOCOL", protocol)
    )
    cells, paths = expand(load_grid(str(root / "colours.yaml"))), Paths(root, root / "results", "colours")
    return plan(cells, cells, paths, "grid colours"), paths


def run(
    task: Task, paths: Paths, workers: int = 0, step: Callable[[int, int, float], None] = lambda *facts: None
) -> Finished:
    """Run a cell to its end."""
    return run_cell(task, paths, CPU, workers, Hooks(step, lambda *facts: None, lambda: False))


def spread(values: Sequence[int]) -> np.ndarray:
    """Return values with mean 0 and variance 1: what targets of one feature are."""
    found = np.asarray(values, dtype=np.float64)
    return (found - found.mean()) / found.std()
