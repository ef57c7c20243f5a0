"""Fetches data and weights."""

import sys
from collections.abc import Sequence

from bench.datasets import dataset_digest, find_dataset
from bench.errors import UserError
from bench.places import Places
from bench.plan import Task
from priors import find_prior
from priors.base import trained_on


def prepare_tasks(tasks: Sequence[Task], places: Places) -> bool:
    """Fetch and read what the tasks need, say what happened to each, and return whether all is there."""
    good = True
    places.data.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(task.cell.dataset for task in tasks):
        info = find_dataset(name, places.data)
        try:
            if not info.here(places.data):
                info.fetch(places.data)
            print(f"dataset {name}: {info.title_here(places.data)}, digest {dataset_digest(name, places)}")
        except UserError as error:
            good = False
            print(f"dataset {name}: {error}", file=sys.stderr)
    arms = {task.cell.rela.prior: task.cell for task in tasks if task.cell.rela}
    for name, cell in arms.items():
        if trained_on(name):
            continue
        try:
            prior = find_prior(name, cell, places)
            prior.fetch()
            print(f"prior {name}: digest {prior.digest()}")
        except UserError as error:
            good = False
            print(f"prior {name}: {error}", file=sys.stderr)
    return good
