"""A trial is trained on a part of the training images, judged by the rest of them, and never looks at the test set."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.core.errors import SealedError
from bench.core.paths import Paths
from bench.data import ImageSet, load_dataset
from bench.data.images import Images, open_images, part_of
from bench.data.sampler import total_steps
from bench.grid.cell import Cell, Protocol, Validation
from bench.plan.graph import Ready, Task, plan
from bench.plan.state import Outcome
from bench.run.progress import Display
from bench.run.runner import run_tasks
from bench.store.record import Finished
from tests.train.colours import CPU, registered, run, tasks_of


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with registered():
        yield


def trial_of(task: Task, paths: Paths) -> Ready:
    (trial,) = plan(
        [cell := task.cell.model_copy(update={"validation": Validation(share=0.25, seed=3)})], [cell], paths, "g"
    )
    assert isinstance(trial, Ready)
    return trial


def cell(share: float, seed: int = 3, images: int | None = None) -> Cell:
    return Cell(
        arm="trial",
        dataset="digits",
        train_images=images,
        backbone="resnet_small",
        method="byol",
        params={},
        rela=None,
        budget=1.0,
        seed=0,
        protocol=Protocol(),
        validation=Validation(share=share, seed=seed),
    )


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder = tmp_path_factory.mktemp("digits")
    return load_dataset("digits", Paths(folder, folder, "test"))


def images_of(split: object) -> list[bytes]:
    return [image.tobytes() for image in np.asarray(split.images)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("share", "images"), [(0.1, 500), (0.25, 1000), (0.1, None)])
def test_the_split_is_balanced_disjoint_and_all_of_the_part(digits: ImageSet, share: float, images: int | None) -> None:
    whole = part_of(digits, cell(share, images=images).model_copy(update={"validation": None})).train
    data = part_of(digits, cell(share, images=images))
    assert data.validation is not None
    assert len(data.validation) == round(share * len(whole))
    assert len(data.train) == len(whole) - len(data.validation)
    of_each = Counter(data.validation.labels.tolist())
    assert len(of_each) == 10
    assert max(of_each.values()) - min(of_each.values()) <= 1
    both = sorted([*images_of(data.train), *images_of(data.validation)])
    assert both == sorted(images_of(whole))
    labels = dict(zip(images_of(whole), whole.labels, strict=True))
    assert [labels[image] for image in images_of(data.validation)] == data.validation.labels.tolist()


def test_the_split_is_that_of_its_seed(digits: ImageSet) -> None:
    splits = [part_of(digits, cell(0.1, seed)).validation for seed in (3, 3, 4)]
    one, again, other = (images_of(split) for split in splits)
    assert one == again
    assert len({*one} & {*other}) < 0.3 * len(one), "a tenth is drawn twice"


def test_whatever_reads_the_test_set_of_a_trial_raises(digits: ImageSet, tmp_path: Path) -> None:
    paths = Paths(tmp_path, tmp_path, "test")
    images = open_images(cell(0.1, images=100), paths, CPU, 0)
    for sealed in (part_of(digits, cell(0.1)).test, images.test):
        for look in (len, lambda it: it.labels, lambda it: it.images, lambda it: it.eval_batches):
            with pytest.raises(SealedError):
                look(sealed)
    assert len(images.judging.labels) == 10


def test_a_trial_is_the_same_whatever_the_test_set_holds(tmp_path: Path) -> None:
    """The two datasets have the same training images and other test labels."""
    scores = {}
    for dataset in ("colours", "turned"):
        (task,), paths = tasks_of(tmp_path, "byol", dataset)
        trial = run(trial_of(task, paths), paths)
        scores[dataset] = [(point.score, point.loss, point.weight_norm) for point in trial.curve]
        scores[dataset, "test"] = run(task, paths).final
        assert trial.test_images == 24
        assert trial.references is None
        assert not paths.backbone(trial.id).exists()
    assert scores["colours"] == scores["turned"]
    assert scores["colours", "test"] != scores["turned", "test"]


def ran(trial: Ready, paths: Paths) -> Outcome:
    (outcome,) = run_tasks([trial], paths, CPU, 0, Display(quiet=True))
    return outcome


def test_a_look_at_the_test_set_ends_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (task,), paths = tasks_of(tmp_path, "byol")
    trial = trial_of(task, paths)
    monkeypatch.setattr(Images, "judging", property(lambda images: images.test))
    outcome = ran(trial, paths)
    assert outcome.status == "failed"
    assert "a trial that chooses a recipe has looked at the test set" in outcome.reason
    monkeypatch.undo()
    assert ran(trial, paths).status == "done"


def test_the_targets_of_a_trial_are_of_its_own_images(tmp_path: Path) -> None:
    """And not in the cache for the arm itself, nor the other way round."""
    (task,), paths = tasks_of(tmp_path, "{method: byol, rela: {prior: red, phase: 1.0}}")
    trial = trial_of(task, paths)
    records: list[Finished] = [run(each, paths) for each in (trial, task, trial) if isinstance(each, Ready)]
    targets = [record.ledger.targets for record in records]
    assert [(made.images, made.cached) for made in targets if made] == [(72, False), (96, False), (72, False)]
    assert trial.train_images == 72
    assert records[0].ledger.steps == total_steps(trial.cell, 72) == 12
    assert records[0].final == records[2].final
