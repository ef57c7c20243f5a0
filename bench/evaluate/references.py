"""Two references for a cell's scores: its backbone before training, and its prior itself, by the same probe and vote.

They are evaluated once for all cells that share them, and kept in the cache. No training is charged with them.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bench.core.errors import TrainingError
from bench.core.files import WriteError, atomic_write, remove_leftovers, set_aside
from bench.core.lock import wait_for
from bench.core.paths import Places
from bench.data.augment import EvalView
from bench.data.loader import Source
from bench.evaluate.features import extract
from bench.evaluate.score import score
from bench.grid.schema import Model, digest
from bench.measure.clock import Clock
from bench.models.backbones import initial_backbone
from bench.plan.graph import Ready
from bench.store.record import Damaged, References, Score, read_model

VERSION = 1  # raised whenever the code gives other scores to the same network
PRIORS_SEED = 0  # of the probe on a prior, which cells of all seeds share


class Reference(Model):
    """A score in the cache, with the digest of its content."""

    id: str
    score: Score
    digest: str
    schema_version: int = VERSION


@dataclass(frozen=True)
class Network:
    """A frozen network, what identifies it, how it is shown images, and the seed of its probe."""

    build: Callable[[], nn.Module]
    digest: str
    view: EvalView
    seed: int


@dataclass(frozen=True)
class Images:
    """Training and test images of a cell, and how many classes they have."""

    train: Source
    test: Source
    classes: int


def find_or_make_references(
    task: Ready, images: Images, size: int, places: Places, clock: Clock, check: Callable[[], None]
) -> References:
    """Return a cell's references; None for one whose features are not finite. The cache holds them after.

    Of several runners one evaluates a network, and the others wait; `check` is called meanwhile and may raise to stop
    there.
    """
    cell = task.cell
    untrained = Network(
        lambda: initial_backbone(cell.backbone, size, cell.seed).module,
        f"untrained {cell.backbone} {cell.seed}",
        EvalView(size, shorter=cell.protocol.eval_resize),
        cell.seed,
    )
    networks = {"untrained": untrained}
    if cell.rela and (prior := task.prior):
        view = EvalView(prior.input_size or size, prior.mean, prior.std, cell.rela.precision)
        if cell.rela.prior == "rand" and view == untrained.view:
            networks["prior"] = untrained
        else:
            networks["prior"] = Network(prior.model, prior.digest(), view, PRIORS_SEED)
    scores = {}
    for name, network in networks.items():
        path = _path(places.cache, task, network, images)
        scores[name] = _found(path) or _make(path, task, network, images, clock, check)
    return References(**scores)


def _path(cache: Path, task: Ready, network: Network, images: Images) -> Path:
    assert task.inputs
    settings = task.cell.settings()["protocol"]
    identity = {
        "version": VERSION,
        "data": task.inputs.data,
        "part": task.cell.train_images or 0,
        "tests": len(images.test.labels),
        "network": network.digest,
        "size": network.view.size,
        "shorter": network.view.shorter,
        "precision": network.view.precision,
        "seed": network.seed,
        "probe": settings["probe"],
        "knn": settings["knn"],
    }
    return cache / "references" / f"{digest(identity)}.json"


def _make(
    path: Path, task: Ready, network: Network, images: Images, clock: Clock, check: Callable[[], None]
) -> Score | None:
    """Return a network's score and keep it in the cache, where that can be written."""
    try:
        lock = wait_for(path.with_suffix(".lock"), check)
    except OSError:
        return _evaluated(task, network, images, clock)
    with lock:
        if found := _found(path):  # another runner has made it
            return found
        remove_leftovers(path)
        made = _evaluated(task, network, images, clock)
        if made:
            kept = Reference(id=path.stem, score=made, digest=digest(made.model_dump(mode="json")))
            with suppress(WriteError), atomic_write(path) as file:
                file.write((kept.model_dump_json(indent=1) + "\n").encode())
        return made


def _evaluated(task: Ready, network: Network, images: Images, clock: Clock) -> Score | None:
    with clock.phase("eval"):
        model = network.build().to(clock.device).to(memory_format=torch.channels_last)
        try:
            features = extract(model, images.train, images.test, network.view)
        except TrainingError:
            return None
        return score(features, images.classes, task.cell.protocol, network.seed)


def _found(path: Path) -> Score | None:
    """Return the score in a file; None when there is none, or the file is damaged and set aside."""
    if not path.exists():
        return None
    found = read_model(path, lambda raw: Reference, lambda kept: _is_whole(kept, path), VERSION)
    if isinstance(found, Damaged):
        set_aside(path, f"a damaged score of a reference ({found.reason})")
        return None
    return found.score


def _is_whole(kept: Reference, path: Path) -> bool:
    return (kept.id, kept.digest) == (path.stem, digest(kept.score.model_dump(mode="json")))
