"""Two references for a cell's scores: its backbone before training, and its prior itself, by the same probe and vote.

They are evaluated once for all cells that share them, and kept in the cache. No training is charged with them.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bench.core.arrays import read_arrays, write_arrays
from bench.core.errors import DamagedFile, TrainingError, WriteError
from bench.core.files import remove_leftovers, set_aside
from bench.core.lock import wait_for
from bench.core.paths import Paths
from bench.data.augment import EvalView
from bench.data.images import Images
from bench.evaluate.features import extract
from bench.evaluate.score import score
from bench.grid.cell import digest
from bench.measure.clock import Clock
from bench.models.backbones import initial_backbone
from bench.plan.graph import Ready
from bench.store.record import References, Score

VERSION = 1  # raised whenever the code gives other scores to the same network
PRIORS_SEED = 0  # of the probe on a prior, which cells of all seeds share


@dataclass(frozen=True)
class Network:
    """A frozen network, what identifies it, how it is shown images, and the seed of its probe."""

    build: Callable[[], nn.Module]
    digest: str
    view: EvalView
    seed: int


def find_or_make_references(
    task: Ready, images: Images, paths: Paths, clock: Clock, check: Callable[[], None]
) -> References:
    """Return a cell's references; None for one whose features are not finite. The cache holds them after.

    Of several runners one evaluates a network, and the others wait; `check` is called meanwhile and may raise to stop
    there.
    """
    cell, judge = task.cell, Judge(task, images, paths.cache / "references", clock, check)
    untrained = Network(
        lambda: initial_backbone(cell.backbone, images.size, cell.seed).module,
        f"untrained {cell.backbone} {cell.seed}",
        EvalView(images.size, shorter=cell.protocol.eval_resize),
        cell.seed,
    )
    prior, choice = task.prior or task.start, cell.targets_of or cell.as_started().targets_of
    if not (choice and prior):
        return References(untrained=judge.score(untrained))
    view = EvalView(prior.input_size or images.size, prior.mean, prior.std, choice.precision)
    same = choice.named == "rand" and view == untrained.view
    network = untrained if same else Network(prior.model, prior.digest(), view, PRIORS_SEED)
    return References(untrained=judge.score(untrained), prior=judge.score(network))


@dataclass(frozen=True)
class Judge:
    """Scores networks on the images of a cell by its probe and its vote, and keeps the scores in a folder."""

    task: Ready
    images: Images
    folder: Path
    clock: Clock
    check: Callable[[], None]  # called while another runner is at a network

    def score(self, network: Network) -> Score | None:
        """Return a network's score, kept where the folder can be written; None when its features are not finite."""
        path = self._path(network)
        if found := _kept(path):
            return found
        try:
            lock = wait_for(path.with_suffix(".lock"), self.check)
        except OSError:
            return self._made(network)
        with lock:
            if found := _kept(path):  # another runner has made it
                return found
            remove_leftovers(path)
            if made := self._made(network):
                with suppress(WriteError):
                    write_arrays(path, {}, {"score": made.model_dump_json()})
            return made

    def _path(self, network: Network) -> Path:
        protocol = self.task.cell.settings()["protocol"]
        identity = {
            "version": VERSION,
            "data": self.task.inputs.data,
            "part": self.task.cell.train_images or 0,
            "tests": len(self.images.test.labels),
            "network": network.digest,
            "size": network.view.size,
            "shorter": network.view.shorter,
            "precision": network.view.precision,
            "seed": network.seed,
            "probe": protocol["probe"],
            "knn": protocol["knn"],
        }
        return self.folder / f"{digest(identity)}.safetensors"

    def _made(self, network: Network) -> Score | None:
        with self.clock.phase("eval"), suppress(TrainingError):
            model = network.build().to(self.clock.device).to(memory_format=torch.channels_last)
            features = extract(model, self.images.train, self.images.test, network.view)
            return score(features, self.images.classes, self.task.cell.protocol, network.seed)
        return None


def _kept(path: Path) -> Score | None:
    """Return the score in a file; None when there is none, or the file is damaged and set aside."""
    if not path.exists():
        return None
    try:
        return Score.model_validate_json(read_arrays(path)[1]["score"])
    except (DamagedFile, LookupError, ValueError):  # cut, or of another version
        set_aside(path, "a damaged score of a reference")
        return None
