"""What `test_scale.py` runs in a process of its own: `scale.py FOLDER COUNT train|targets|probe` prints JSON."""

import json
import resource
import sys
import time
from functools import partial
from pathlib import Path

from bench.core.environment import tune_process
from methods.build import build_method

tune_process()  # as the program does, before torch is imported
# ruff: noqa: E402

import torch
from torch import nn

from bench.core.paths import Paths
from bench.data import folder
from bench.data.augment import EvalView
from bench.data.loader import StreamingLoader
from bench.data.sampler import Sampler
from bench.evaluate import knn
from bench.evaluate.features import extract
from bench.evaluate.linear_probe import linear_probe
from bench.grid.cell import Knn, Probe
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.measure.clock import Clock
from bench.measure.memory import peak_memory
from bench.targets.make import features
from bench.targets.rows import MemmapRows, write_rows
from bench.targets.stream import stream_targets
from bench.train.loop import Trainer
from priors import Prior

CPU = torch.device("cpu")
SIZE, DIM, BATCH, STEPS, WORKERS = 32, 128, 64, 24, 1
SETTINGS = ["arms=[{method: byol, rela: {prior: rand}}]", "budgets=[1.0]", "seeds=[0]", f"protocol.batch_size={BATCH}"]
CELL = expand(load_grid("cifar_small", settings=SETTINGS))[0]


class Pixels(Prior):
    """2,028 features that cost next to nothing: what is measured is the way of the images and of the features."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(26), nn.Flatten())


class Enough(Exception):
    """Enough steps were taken."""


def source(split: folder.Listing, count: int | None = None) -> StreamingLoader:
    """Return a source of the first `count` images of a split."""
    paths, labels = split
    return StreamingLoader(folder.PathList(paths[:count]), torch.from_numpy(labels[:count]), SIZE, CPU, WORKERS)


def train(images: StreamingLoader, root: Path) -> int:
    """Take the first steps of a run of 100 epochs on targets in a file."""
    count = len(images.labels)
    path = root / f"rows{count}.safetensors"
    with path.open("wb") as file:
        write_rows(file, "targets", (count, DIM), (torch.randn(1, DIM) for _ in range(count)), dict)
    method = build_method(CELL, SIZE, DIM, 1).to(memory_format=torch.channels_last)
    trainer = Trainer(
        method, images, Sampler(count, 1.0, BATCH, 0), MemmapRows(path, (count, DIM)), CELL.protocol, Clock(CPU)
    )

    def enough() -> None:
        if trainer.step == STEPS:
            raise Enough

    try:
        trainer.train(100 * count // BATCH, enough)
    except Enough:
        return STEPS * BATCH
    raise AssertionError


def targets(images: StreamingLoader, root: Path) -> int:
    """Make the targets of all images."""
    count, clock = len(images.labels), Clock(CPU)
    prior = Pixels("", CELL, Paths(root, root, "scale"))
    made = stream_targets(
        partial(features, prior, images, SIZE, clock),
        count,
        DIM,
        root / f"targets{count}.safetensors",
        clock,
        shard=2048,
    )
    assert made.values.shape == (count, DIM)
    return count


def probe(images: StreamingLoader, test: StreamingLoader, root: Path) -> tuple[int, int]:
    """Extract the features of all images and evaluate them; also return how many bytes they take."""
    knn.BANK_BYTES = 2**20  # so small that these sets reach the bound, too
    found = extract(Pixels("", CELL, Paths(root, root, "scale")).model(), images, test, EvalView(SIZE))
    linear_probe(found, 10, Probe(epochs=2), seed=0)
    knn.knn_accuracy(found, 10, Knn())
    return len(found.train) + len(found.test), 4 * (found.train.numel() + found.test.numel())


def main(root: Path, count: int, what: str) -> None:
    torch.set_num_threads(1)
    train_split, test_split, _ = folder.scan(root / "jpeg")
    images, test = source(train_split, count), source(test_split)
    began, held = time.perf_counter(), 0
    if what == "train":
        seen = train(images, root)
    elif what == "targets":
        seen = targets(images, root)
    else:
        seen, held = probe(images, test, root)
    seconds = time.perf_counter() - began
    worker = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({"seconds": seconds / seen, "peak": peak_memory(CPU), "worker": worker, "held": held}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
