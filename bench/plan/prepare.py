"""Fetches data and weights, and verifies them: what is fetched is read, and weights are loaded into their network."""

import sys
from collections.abc import Sequence

import numpy as np

from bench.core.errors import describe_error
from bench.core.paths import Paths
from bench.data import ImageSet, find_dataset, image_size, load_dataset
from bench.grid.cell import Cell, trained_on
from bench.grid.controls import PriorChoice
from bench.plan.graph import Task
from priors import find_prior
from priors.base import feature_dim
from priors.joined import as_chosen


def prepare_tasks(tasks: Sequence[Task], paths: Paths) -> bool:
    """Fetch and read what the tasks need, say what happened to each, and return whether all is there and whole."""
    good = True
    paths.data.mkdir(parents=True, exist_ok=True)
    further = (name for task in tasks for each in task.cell.protocol.evaluate for name in each.needs)
    for name in dict.fromkeys([*(task.cell.dataset for task in tasks), *further]):
        try:
            info = find_dataset(name, paths.data)
            if not info.here(paths.data):
                info.fetch(paths.data)
            images = load_dataset(name, paths)
            print(f"dataset {name}: {images.title}, digest {images.digest}; {_counts(images)}")
            if unused := info.ignored(paths.data):
                kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(unused.items()))
                print(f"dataset {name}: {sum(unused.values()):,} files are not used: {kinds}")
        except (Exception, SystemExit) as error:  # a plugin may raise anything, and others must be prepared
            good = False
            print(f"dataset {name}: {describe_error(error)}", file=sys.stderr)
    asking = (cell for task in tasks for cell in _asking(task.cell))
    for cell in {cell.targets_of and _weights(cell.targets_of): cell for cell in asking}.values():
        if cell.targets_of is None or trained_on(name := cell.targets_of.prior):
            continue
        try:
            prior = as_chosen(find_prior(name, cell, paths), cell.targets_of)
            prior.fetch()
            digest, size = prior.digest(), prior.input_size or image_size(cell, paths)
            print(f"prior {name}: {feature_dim(prior.model(), size, name)} features at {size} pixels, digest {digest}")
        except (Exception, SystemExit) as error:
            good = False
            sentence = describe_error(error)
            print(sentence if sentence.startswith("prior ") else f"prior {name}: {sentence}", file=sys.stderr)
    return good


def _counts(images: ImageSet) -> str:
    """Return how many images and classes each split has."""
    splits = (("training", images.train), ("test", images.test))
    return ", ".join(
        f"{len(split):,} {name} images of {len(np.unique(split.labels)):,} classes" for name, split in splits
    )


def _asking(cell: Cell) -> list[Cell]:
    """Return a cell, and what it would be with each of its further priors alone."""
    further = cell.targets_of.ensemble if cell.targets_of else ()
    return [cell, cell.as_started(), *map(cell.with_prior, further)]


def _weights(choice: PriorChoice) -> tuple[str | int | None, ...]:
    """Return what names the weights of a prior, and the size at which they must fit."""
    return choice.prior, choice.backbone, choice.weights_key, choice.input_size, choice.layer
