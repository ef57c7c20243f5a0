"""A small cell, its images and its trainer: what the tests of training train."""

import torch

from bench.core.seeds import generator
from bench.data.loader import InMemoryLoader
from bench.data.sampler import Sampler
from bench.grid.cell import Cell, Protocol
from bench.grid.controls import Rela
from bench.measure.clock import Clock
from bench.train.loop import Trainer
from methods import Method
from methods.build import build_method

CPU = torch.device("cpu")
BATCH, SIZE, DIM = 8, 8, 5
SMALL = {"moco": {"queue": 24}, "dino": {"hidden": 24, "outputs": 24}}


def noise(count: int) -> InMemoryLoader:
    """Return so many images of noise, of ten classes."""
    pixels = torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator(0, "images"))
    return InMemoryLoader(pixels, torch.arange(count) % 10, SIZE, CPU)


def cell(
    method: str = "byol", seed: int = 0, phase: float | None = None, budget: float = 1.0, **protocol: object
) -> Cell:
    """Return a cell; `phase` is ReLA's, None: without ReLA."""
    return Cell(
        arm="arm",
        dataset="digits",
        train_images=None,
        backbone="resnet_small",
        method=method,
        params=SMALL.get(method, {}),
        rela=None if phase is None else Rela(prior="rand", phase=phase),
        budget=budget,
        seed=seed,
        protocol=Protocol.model_validate({"batch_size": BATCH, "input_size": SIZE, **protocol}),
    )


def method_of(of: Cell, count: int) -> Method:
    """Return a cell's method, as it is before training on so many images."""
    return build_method(of, SIZE, DIM, steps_per_epoch=count // BATCH)


def trainer_of(of: Cell, source: InMemoryLoader, method: Method | None = None) -> Trainer:
    """Return what trains a cell: its method, or another one."""
    count = len(source.labels)
    targets = torch.randn(count, DIM, generator=generator(0, "targets")) if of.rela else None
    order = Sampler(count, of.budget, BATCH, of.seed)
    return Trainer(method or method_of(of, count), source, order, targets, of.protocol, Clock(CPU))
