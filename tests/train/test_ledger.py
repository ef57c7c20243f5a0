"""Where each second and each FLOP of a cell is charged, by a clock that moves only where it is told to; its scores."""

import copy
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from bench.core.errors import Interrupted
from bench.core.seeds import derive, generator
from bench.data import datasets
from bench.data import loader as source
from bench.data.augment import MEAN, STD
from bench.data.loader import InMemoryLoader, StreamingLoader
from bench.models.backbones import build_backbone
from bench.models.weights import read_state
from bench.store.record import write_record
from bench.train import cell as experiment
from bench.train import keeper
from bench.train.cell import run_cell
from bench.train.keeper import Hooks, Limits
from methods import Batch, Method
from methods.build import build_method
from methods.byol import BYOL
from methods.rela import ReLA
from tests.train.colours import (
    BATCH,
    CLASSES,
    COUNT,
    CPU,
    SIZE,
    TEST,
    Red,
    registered,
    run,
    tasks_of,
    write_files,
)

EPOCH = COUNT // BATCH
RELA = "{method: byol, rela: {prior: red, phase: 0.34}}"  # one epoch of the three
# Seconds: ReLA's own loss, BYOL's, the views of a step, a prior's batch, to begin a pass over a set, to save something.
RELA_LOSS, BYOL_LOSS, VIEWS, PRIOR, PASS, SAVING = 5.0, 3.0, 0.5, 20.0, 100.0, 1000.0
RELA_STEP, BYOL_STEP = VIEWS + RELA_LOSS, VIEWS + RELA_LOSS + BYOL_LOSS  # ReLA hands on to BYOL


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("BENCH_CACHE", raising=False)
    with registered():
        yield


@pytest.fixture
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time stands still but for what is slow here."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def slow(owner: object, name: str, seconds: float) -> None:
        function = getattr(owner, name)

        def slower(*given: object, **more: object) -> object:
            now[0] += seconds
            return function(*given, **more)

        monkeypatch.setattr(owner, name, slower)

    for owner, name, seconds in (
        (ReLA, "loss", RELA_LOSS),
        (BYOL, "loss", BYOL_LOSS),
        (source, "augment", VIEWS),
        (InMemoryLoader, "eval_batches", PASS),
        (StreamingLoader, "eval_batches", PASS),
        (keeper, "save_checkpoint", SAVING),
        (experiment, "save_weights", SAVING),
    ):
        slow(owner, name, seconds)
    model = Red.model

    def slow_model(prior: Red) -> nn.Module:
        network = model(prior)
        slow(network[0], "forward", PRIOR)  # type: ignore[index]
        return network

    monkeypatch.setattr(Red, "model", slow_model)


@pytest.mark.usefixtures("_clock")
@pytest.mark.parametrize("dataset", ["colours", "colour_files"])
def test_each_second_is_charged_to_what_took_it(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.data.loader.SMALL_IMAGES", 40)  # three batches
    monkeypatch.setattr("bench.data.loader.LARGE_IMAGES", 40)
    write_files(tmp_path)
    protocol = "evaluate_at: [0.5], probe: {epochs: 1}, knn: {k: 5}"
    (task,), paths = tasks_of(tmp_path, RELA, dataset, protocol=protocol)
    record = run(task, paths)
    ledger = record.ledger
    assert ledger is not None
    assert ledger.targets is not None
    half, end = EPOCH * RELA_STEP + EPOCH // 2 * BYOL_STEP, EPOCH * RELA_STEP + 2 * EPOCH * BYOL_STEP
    assert [point.seconds for point in record.curve] == [half, end]
    assert ledger.seconds["train"] == end
    assert ledger.seconds["targets"] == ledger.targets.seconds == PASS + 3 * PRIOR
    references = 2 * 2 * PASS + (3 + 3) * PRIOR  # the untrained backbone and the prior, on training and test images
    assert ledger.seconds["eval"] == 2 * 2 * PASS + references
    counting = PRIOR + RELA_LOSS + RELA_LOSS + BYOL_LOSS  # of FLOPs: of the prior and of a step of each kind
    assert ledger.seconds["other"] == counting + 2 * SAVING
    assert ledger.wall_seconds == sum(ledger.seconds.values())
    again = run(tasks_of(tmp_path, RELA.replace("0.34", "0.67"), dataset, protocol=protocol)[0][0], paths)
    assert again.ledger.seconds["targets"] == 0
    assert not ledger.targets.cached
    assert again.ledger.targets == ledger.targets.model_copy(update={"cached": True}), "who finds them owes as much"


@pytest.mark.usefixtures("_clock")
def test_a_cell_that_goes_on_keeps_what_it_had_spent(tmp_path: Path) -> None:
    (task,), paths = tasks_of(tmp_path, RELA)
    steps: list[int] = []
    stopping = Hooks(lambda step, *_: steps.append(step), lambda *_: None, lambda: len(steps) == 4)
    with pytest.raises(Interrupted):
        run_cell(task, paths, CPU, 0, stopping, Limits(1e9))
    record = run(task, paths)
    assert record.ledger.seconds["train"] == EPOCH * RELA_STEP + 2 * EPOCH * BYOL_STEP == record.curve[-1].seconds
    assert record.ledger.seconds["targets"] == PASS + PRIOR
    assert record.ledger.targets is not None
    assert not record.ledger.targets.cached, "it made them itself"
    assert record.ledger.wall_seconds == sum(record.ledger.seconds.values())


@pytest.mark.slow
@pytest.mark.usefixtures("_clock")
@pytest.mark.parametrize("cut", [0, 5, -1])
def test_an_arm_stops_where_another_ones_seconds_are_spent(cut: int, tmp_path: Path) -> None:
    """Whole, or cut and gone on: after the fifth step, or after the last one, before it was evaluated."""
    arms = f"{RELA.replace('{', '{name: rela, ', 1)}, {{name: timed, method: byol, seconds_of: rela}}"
    (rela, timed), paths = tasks_of(tmp_path, arms, protocol="evaluate_at: [0.5], probe: {epochs: 1}, knn: {k: 5}")
    assert timed.needs is rela
    spent = (other := run(rela, paths)).ledger
    write_record(other, paths.records)
    assert spent.targets is not None
    steps = math.ceil((spent.seconds["train"] + spent.targets.seconds) / (VIEWS + BYOL_LOSS))
    assert steps > 3 * EPOCH, "more than its budget has: its own step is cheaper, and targets are charged"
    if cut:
        taken: list[int] = []
        until = cut if cut > 0 else steps
        hooks = Hooks(lambda step, *_: taken.append(step), lambda *_: None, lambda: len(taken) == until)
        with pytest.raises(Interrupted):
            run_cell(timed, paths, CPU, 0, hooks, Limits(1e9))
    record = run(timed, paths)
    assert [point.step for point in record.curve] == [record.ledger.steps] == [steps]
    assert record.curve[-1].seconds == record.ledger.seconds["train"] == steps * (VIEWS + BYOL_LOSS)
    assert record.inputs.seconds_of == rela.id
    assert record.final.linear
    assert record.final.effective_rank is not None, "what only a last evaluation has"


def counted(method: Method, views: list[Tensor], targets: Tensor | None) -> int:
    """Return the FLOPs of a step by torch's own counter."""
    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(method).loss(Batch(views, torch.zeros(BATCH, dtype=torch.int64), targets)).backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops())


def test_each_flop_is_counted_once_and_where_it_belongs(tmp_path: Path) -> None:
    protocol = "evaluate_at: [0.5], probe: {epochs: 1}, knn: {k: 5}"
    tasks, paths = tasks_of(tmp_path, f"{RELA}, byol", protocol=protocol)
    rela, byol = (run(task, paths) for task in tasks)
    method = build_method(tasks[0].cell, SIZE, 1, EPOCH)
    assert isinstance(method, ReLA)
    views = [torch.randn(BATCH, 3, SIZE, SIZE) for _ in range(2)]
    ours, theirs = counted(method, views, torch.randn(BATCH, 1)), counted(method.method, views, None)
    assert ours != theirs
    assert [point.flops for point in byol.curve] == [3 * EPOCH // 2 * theirs, 3 * EPOCH * theirs]
    assert [point.flops for point in rela.curve] == [
        EPOCH * ours + EPOCH // 2 * theirs,
        EPOCH * ours + 2 * EPOCH * theirs,
    ]
    assert (rela.ledger.flops, byol.ledger.flops) == (rela.curve[-1].flops, byol.curve[-1].flops)
    assert rela.ledger.targets is not None
    assert rela.ledger.targets.flops == COUNT * 2 * 3 * SIZE * SIZE, "one product for each value of each image"
    assert (rela.ledger.targets.images, byol.ledger.targets) == (COUNT, None)
    assert rela.ledger.flops_with_targets == rela.ledger.flops + rela.ledger.targets.flops
    assert [point.images for point in rela.curve] == [3 * EPOCH // 2 * BATCH, 3 * EPOCH * BATCH]


def learned(dataset: str, backbone: Path) -> list[tuple[Tensor, Tensor]]:
    """Return features and labels of the training and the test images, by a cell's backbone."""
    network = build_backbone("resnet_small", SIZE).module.eval()
    network.load_state_dict(read_state(backbone))
    found = []
    for split in datasets.get(dataset)(dataset).read(Path()):
        images = (np.asarray(split.images) / 255 - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
        with torch.no_grad():
            found.append((network(torch.from_numpy(images).float()), torch.from_numpy(split.labels)))
    return found


@pytest.mark.parametrize("dataset", ["colours", "turned", "anyhow"])
def test_scores_are_of_test_images_by_what_training_images_taught(dataset: str, tmp_path: Path) -> None:
    """Of `turned` the test images have the label of another class: who learned from them would be right.

    Of `anyhow` nothing can be learned: what is right by chance follows the regression's every detail.
    """
    protocol = "probe: {recipe: lbfgs, l2: [0.003]}, knn: {k: 3, temperature: 0.1}"
    (task,), paths = tasks_of(tmp_path, "byol", dataset, protocol=protocol)
    score = run(task, paths).curve[-1].score
    (train, labels), (test, wanted) = learned(dataset, paths.backbone(task.id))
    vote = KNeighborsClassifier(3, weights=lambda distance: np.exp((1 - distance) / 0.1), metric="cosine")
    assert score.knn == pytest.approx(vote.fit(train, labels).score(test, wanted), abs=1.1 / TEST)
    scaler = StandardScaler().fit(train)
    regression = LogisticRegression(C=1 / (0.003 * COUNT), tol=1e-8, max_iter=1000)
    expected = regression.fit(scaler.transform(train), labels).score(scaler.transform(test), wanted)
    assert score.linear == (pytest.approx(expected, abs=1.1 / TEST),), "up to an image that is a near tie"
    right = [score.knn, *score.linear]
    assert {"colours": min(right) > 0.8, "turned": max(right) < 0.1, "anyhow": True}[dataset]
    assert [share * TEST for share in right] == pytest.approx([round(share * TEST) for share in right])


def test_a_cell_draws_its_probe_by_its_own_seed(tmp_path: Path) -> None:
    """The paper's probe in a plain loop, on labels that say nothing: another seed is right about others."""
    (task,), paths = tasks_of(
        tmp_path, "byol", "anyhow", seed=7, protocol="probe: {epochs: 4, batch_size: 32, lr: 0.01}"
    )
    score = run(task, paths).curve[-1].score
    (train, labels), (test, wanted) = learned("anyhow", paths.backbone(task.id))
    expected = {}
    for seed in (7, 0):
        torch.manual_seed(derive(seed, "probe"))
        layer = nn.Linear(128, CLASSES)
        adam = torch.optim.Adam(layer.parameters(), lr=0.01)
        right = []
        for epoch in range(4):
            for index in torch.split(torch.randperm(COUNT, generator=generator(seed, "probe", epoch)), 32):
                adam.zero_grad()
                cross_entropy(layer(train[index]), labels[index]).backward()
                adam.step()
            right.append((layer(test).argmax(1) == wanted).double().mean().item())
        expected[seed] = right[1:]
    assert score.linear == pytest.approx(expected[7], abs=1.1 / TEST), "up to an image that is a near tie"
    assert score.linear != pytest.approx(expected[0], abs=1.1 / TEST)
