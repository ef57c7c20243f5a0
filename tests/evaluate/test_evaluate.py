"""The probe against scikit-learn's logistic regression, the vote against a plain loop."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from lightly.utils.benchmarking import knn_predict
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from bench.core.errors import TrainingError
from bench.core.seeds import derive, generator
from bench.data import Split
from bench.data.augment import MEAN, STD, EvalView
from bench.data.loader import open_source
from bench.evaluate.features import Features, extract
from bench.evaluate.knn import knn_accuracy
from bench.evaluate.linear_probe import curvature, linear_probe, logistic_regression
from bench.evaluate.score import effective_rank, score
from bench.grid.cell import Knn, Probe, Protocol
from bench.store.record import ByAdam, Moved, Solved


@pytest.fixture(scope="module")
def features() -> Features:
    """The digits' own pixels as features, the last 600 for test."""
    bunch = load_digits()
    pixels = torch.from_numpy(StandardScaler().fit_transform(bunch.data)).float()
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    return Features(pixels[:-600], labels[:-600], pixels[-600:], labels[-600:])


def accuracies_of(features: Features, probe: Probe, seed: int) -> list[list[float]]:
    """The accuracies after each of the last epochs, by probe seed."""
    return [list(fit.accuracies) for fit in linear_probe(features, 10, probe, seed)]


def test_the_probe_is_within_a_point_of_logistic_regression(features: Features) -> None:
    reference = LogisticRegression(max_iter=5000, C=10.0).fit(features.train, features.train_labels)
    expected = reference.score(features.test, features.test_labels)
    # 10 steps an epoch: the paper's rate is slow here.
    (accuracies,) = accuracies_of(features, Probe(lr=3e-3), seed=0)
    assert len(accuracies) == 3
    assert abs(np.mean(accuracies) - expected) < 0.01


def test_the_probe_reports_its_last_epochs_and_shares_of_images(features: Features) -> None:
    (accuracies,) = accuracies_of(features, Probe(epochs=2), seed=0)
    assert len(accuracies) == 2
    for accuracy in accuracies:
        assert (accuracy * 600) == pytest.approx(round(accuracy * 600), abs=1e-9)
    assert [accuracies] == accuracies_of(features, Probe(epochs=2), seed=0)
    assert [accuracies] != accuracies_of(features, Probe(epochs=2), seed=1)


def plain_probe(features: Features, probe: Probe, seed: int) -> list[float]:
    """One probe by itself, as the paper's code writes it."""
    torch.manual_seed(derive(seed, "probe"))
    layer = torch.nn.Linear(features.train.shape[1], 10)
    adam = torch.optim.Adam(layer.parameters(), lr=probe.lr)
    accuracies = []
    for epoch in range(probe.epochs):
        order = torch.randperm(len(features.train), generator=generator(seed, "probe", epoch))
        for index in torch.split(order, probe.batch_size):
            adam.zero_grad()
            cross_entropy(layer(features.train[index]), features.train_labels[index]).backward()
            adam.step()
        accuracies.append((layer(features.test).argmax(1) == features.test_labels).double().mean().item())
    return accuracies[-3:]


def test_probes_side_by_side_are_what_each_is_by_itself(features: Features) -> None:
    probe = Probe(lr=3e-3, epochs=12, seeds=3)
    together = accuracies_of(features, probe, seed=5)
    seeds = [5, derive(5, "probe seed", 1), derive(5, "probe seed", 2)]
    alone = [plain_probe(features, probe, seed) for seed in seeds]
    assert np.array(together) == pytest.approx(np.array(alone), abs=2.1 / 600), "up to a vote that is a near tie"
    assert together[0] != together[1] != together[2]
    assert together[:1] == accuracies_of(features, Probe(lr=3e-3, epochs=12), seed=5), "the first is as without more"


def test_a_probe_by_adam_tells_how_far_it_moved_in_its_last_fifth(features: Features) -> None:
    """Of 40 epochs, 30 to 32 and 38 to 40."""
    layer = torch.nn.Linear(64, 10)
    torch.manual_seed(derive(0, "probe"))
    layer.reset_parameters()
    adam = torch.optim.Adam(layer.parameters(), lr=3e-4)
    losses, accuracies = [], []
    for epoch in range(40):
        for index in torch.split(torch.randperm(1197, generator=generator(0, "probe", epoch)), 128):
            adam.zero_grad()
            cross_entropy(layer(features.train[index]), features.train_labels[index]).backward()
            adam.step()
        losses.append(cross_entropy(layer(features.train), features.train_labels).item())
        accuracies.append((layer(features.test).argmax(1) == features.test_labels).double().mean().item())
    (fit,) = linear_probe(features, 10, Probe(epochs=40), seed=0)
    assert isinstance(fit.end, Moved)
    assert fit.end.loss == pytest.approx((np.mean(losses[29:32]), np.mean(losses[37:])), rel=1e-4)
    assert fit.end.accuracy == pytest.approx((np.mean(accuracies[29:32]), np.mean(accuracies[37:])), abs=1.1 / 600)
    assert not fit.end.converged
    (longer,) = linear_probe(features, 10, Probe(epochs=60, lr=0.1, batch_size=1197), seed=0)
    assert isinstance(longer.end, Moved)
    assert longer.end.loss[1] < 0.05 * fit.end.loss[1]
    (short,) = linear_probe(features, 10, Probe(epochs=1), seed=0)
    assert short.end is None, "a probe of one epoch has no last fifth"


@pytest.mark.parametrize(
    ("loss", "accuracy", "converged"),
    [
        ((1.0, 0.995), (0.40, 0.401), True),
        ((1.0, 1.2), (0.40, 0.40), True),  # a loss that rises falls no more
        ((1.0, 0.98), (0.40, 0.40), False),
        ((1.0, 1.0), (0.40, 0.403), False),
        ((1.0, 1.0), (0.40, 0.397), False),
    ],
)
def test_a_probe_has_converged_when_neither_loss_nor_accuracy_moves(
    loss: tuple[float, float], accuracy: tuple[float, float], converged: bool
) -> None:
    assert Moved(loss=loss, accuracy=accuracy).converged == converged


L2 = (1e-5, 1e-4, 1e-2, 1.0)


def objective(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, l2: float) -> float:
    return float(cross_entropy(features @ weight + bias, labels) + l2 / 2 * weight.square().sum())


@pytest.mark.parametrize("l2", L2)
def test_a_logistic_regression_is_scikit_learns(l2: float, features: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    data, labels = features.train.double().numpy(), features.train_labels
    basis = curvature(features.train)
    found = logistic_regression(features.train, labels, 10, l2, basis)
    reference = LogisticRegression(C=1 / (l2 * len(data)), tol=1e-8, max_iter=10_000).fit(data, labels)
    ours, theirs = (
        objective(features.train, labels, weight, bias, l2)
        for weight, bias in (
            (found.weight[0], found.bias[0, 0]),
            [torch.from_numpy(each.T).float() for each in (reference.coef_, reference.intercept_)],
        )
    )
    assert ours == pytest.approx(theirs, abs=2e-4)
    predicted = (features.test @ found.weight[0] + found.bias[0]).argmax(1).numpy()
    assert np.mean(predicted == reference.predict(features.test.double())) > 0.98
    assert found.gradient < 3e-4
    assert found.passes < 250
    monkeypatch.setattr("bench.evaluate.linear_probe.SCORES", 10 * 250)  # 250 images at a time
    again = logistic_regression(features.train, labels, 10, l2, basis)
    assert objective(features.train, labels, again.weight[0], again.bias[0, 0], l2) == pytest.approx(ours, abs=2e-4)
    warm = logistic_regression(features.train, labels, 10, l2, basis, start=found)
    assert warm.passes < 4, "what starts at the minimum is there"
    monkeypatch.setattr("bench.evaluate.linear_probe.PASSES", 3)
    short = logistic_regression(features.train, labels, 10, l2, basis)
    stopped = Solved(l2=l2, at_edge=False, passes=short.passes, gradient=short.gradient)
    assert not stopped.converged


def test_the_probe_by_lbfgs_takes_the_strength_that_held_out_images_choose(features: Features) -> None:
    """By scikit-learn: the strength with the least loss on the tenth that is held out, fitted to all images."""
    probe = Probe(recipe="lbfgs", l2=L2, seeds=2)
    found = linear_probe(features, 10, probe, seed=0)
    held, kept = torch.split(torch.randperm(1197, generator=generator(0, "probe", 0)), [119, 1078])
    scaler = StandardScaler().fit(features.train)
    train, test = (torch.from_numpy(scaler.transform(each)) for each in (features.train, features.test))

    def fitted(l2: float, rows: Tensor) -> LogisticRegression:
        model = LogisticRegression(C=1 / (l2 * len(rows)), tol=1e-6, max_iter=10_000)
        return model.fit(train[rows], features.train_labels[rows])

    losses = {l2: log_loss(features.train_labels[held], fitted(l2, kept).predict_proba(train[held])) for l2 in L2}
    best = min(L2, key=lambda l2: losses[l2])
    expected = fitted(best, torch.arange(1197)).score(test, features.test_labels)
    assert isinstance(found[0].end, Solved)
    assert (found[0].end.l2, found[0].end.at_edge, found[0].end.converged) == (best, best in (1e-5, 1.0), True)
    assert found[0].accuracies == pytest.approx((expected,), abs=1.1 / 600)
    assert [len(fit.accuracies) for fit in found] == [1, 1]
    (edge,) = linear_probe(features, 10, Probe(recipe="lbfgs", l2=(1.0, 10.0)), seed=0)
    assert isinstance(edge.end, Solved)
    assert (edge.end.l2, edge.end.at_edge) == (1.0, True)
    assert edge.accuracies[0] < found[0].accuracies[0] - 0.02
    shifted = Features(3 + 7 * features.train, features.train_labels, 3 + 7 * features.test, features.test_labels)
    (again,) = accuracies_of(shifted, probe.model_copy(update={"seeds": 1}), seed=0)
    assert again == pytest.approx(found[0].accuracies, abs=2.1 / 600)


def test_the_papers_recipe_is_measured_beside_another_one_at_the_last_evaluation(features: Features) -> None:
    protocol = Protocol(probe=Probe(recipe="lbfgs", epochs=10, seeds=2), knn=Knn(k=5))
    last, earlier = (score(features, 10, protocol, 3, last=flag) for flag in (True, False))
    (alone,) = linear_probe(features, 10, Probe(epochs=10), seed=3)
    assert last.by_adam == ByAdam(linear=alone.accuracies, end=alone.end)
    assert len(last.further_probes) == 1
    assert (earlier.by_adam, earlier.effective_rank) == (None, None)
    assert earlier.linear == last.linear
    by_adam = score(features, 10, Protocol(probe=Probe(epochs=10), knn=Knn(k=5)), 3)
    assert (by_adam.linear, by_adam.by_adam) == (alone.accuracies, None), "where it decides, nothing else runs"


def test_the_effective_rank_is_rankme() -> None:
    """Garrido et al. 2023, equation 1, as it stands there."""
    draw = np.random.default_rng(0)
    matrix = draw.normal(size=(300, 20)) * np.geomspace(1, 1e-3, 20)
    values = np.linalg.svd(matrix, compute_uv=False)
    p = values / np.abs(values).sum() + 1e-7
    assert effective_rank(torch.from_numpy(matrix).float()) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)
    assert effective_rank(torch.ones(50, 8)) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.zeros(50, 8)) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.eye(8).repeat(5, 1)) == pytest.approx(8, abs=1e-4)


def test_the_vote_against_a_plain_loop(features: Features) -> None:
    knn = Knn(k=7, temperature=0.1)
    bank = features.train / features.train.norm(dim=1, keepdim=True)
    right = 0
    for feature, label in zip(features.test, features.test_labels, strict=True):
        cosines = bank @ (feature / feature.norm())
        votes = [0.0] * 10
        for neighbour in cosines.argsort(descending=True)[:7]:
            votes[int(features.train_labels[neighbour])] += float(torch.exp(cosines[neighbour] / 0.1))
        right += int(np.argmax(votes) == label)
    assert knn_accuracy(features, 10, knn) == pytest.approx(right / 600)


@pytest.mark.parametrize("rows", [10**6, 1197, 500, 60, 1])
def test_the_vote_is_lightlys_however_many_training_images_it_looks_at_a_time(
    rows: int, features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = features.train.clone()
    ranked = knn_predict(
        normalize(features.test, dim=1), normalize(features.train, dim=1).T, features.train_labels, 10, 70, 0.07
    )
    expected = int((ranked[:, 0] == features.test_labels).sum()) / 600
    monkeypatch.setattr("bench.evaluate.knn.BANK_BYTES", 4 * 64 * rows)
    monkeypatch.setattr("bench.evaluate.knn.VOTE_BYTES", 4 * 70 * 10 * rows)
    assert knn_accuracy(features, 10, Knn(k=70, temperature=0.07)) == expected
    assert torch.equal(features.train, given), "the features are as they were"


def test_features_that_are_no_numbers_are_refused() -> None:
    source = open_source(Split(np.zeros((4, 3, 8, 8), np.uint8), np.zeros(4, np.int64)), 8, torch.device("cpu"), 0)

    class Infinite(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images / 0

    with pytest.raises(TrainingError, match=r"^the backbone's features are not finite numbers$"):
        extract(Infinite(), source, source, EvalView(8))


def test_k_may_exceed_the_training_set() -> None:
    few = Features(torch.eye(3), torch.tensor([0, 1, 1]), torch.eye(3), torch.tensor([0, 1, 1]))
    assert knn_accuracy(few, 2, Knn(k=200, temperature=0.02)) == 1.0


@pytest.mark.parametrize("streams", [False, True])
def test_features_are_of_the_centres_of_larger_images_where_the_protocol_says_so(tmp_path: Path, streams: bool) -> None:
    """As on ImageNet, where the public code resizes to 256 pixels and crops 224."""
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 30, 41), dtype=np.uint8)
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    source = open_source(Split(paths if streams else images, np.arange(5)), 14, torch.device("cpu"), workers=0)
    found = extract(nn.Flatten(), source, source, EvalView(14, shorter=16))
    steps = [T.Resize(16, antialias=True), T.CenterCrop(14), T.Normalize(MEAN, STD)]
    expected = T.Compose(steps)(torch.from_numpy(images) / 255).flatten(1)
    error = 0.51 / 255 / min(STD) if streams else 1e-4  # what streams is rounded to bytes
    torch.testing.assert_close(found.train, expected, rtol=0, atol=error)
    assert torch.equal(found.test, found.train)


def test_a_prior_in_reduced_precision_is_evaluated_in_it() -> None:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 4, 4), dtype=torch.uint8, generator=draw)
    source = open_source(Split(images.numpy(), np.zeros(4, np.int64)), 4, torch.device("cpu"), 0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    exact, coarse = (extract(backbone, source, source, EvalView(4, precision=p)).train for p in ("fp32", "bf16"))
    assert coarse.dtype == torch.float32
    assert torch.equal(coarse, coarse.bfloat16().float())
    assert not torch.equal(exact, coarse)


def test_features_are_of_plain_images_in_eval_mode_without_gradient() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    split = Split(images, np.arange(5))
    source = open_source(split, 4, torch.device("cpu"), workers=0)
    backbone = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten()).train()
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    found = extract(backbone, source, source, EvalView(4))
    normalised = (images / 255 - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    np.testing.assert_allclose(found.train, normalised.reshape(5, -1) / np.sqrt(1 + 1e-5), rtol=1e-4, atol=1e-5)
    assert torch.equal(found.test, found.train)
    assert not found.train.requires_grad
    assert backbone.training, "the mode is put back"
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())


def test_the_strength_is_chosen_without_a_look_at_test_labels(features: Features) -> None:
    """Then one probe is trained whatever they are, and each image has its one class in one of the ten turns of them."""
    probe, right = Probe(recipe="lbfgs", l2=(1e-2, 10.0)), 0.0
    train, labels, test, wanted = (
        features.train[:150],
        features.train_labels[:150],
        features.test,
        features.test_labels,
    )
    for turn in range(10):
        turned = Features(train, labels, test, (wanted + turn) % 10)
        (fit,) = linear_probe(turned, 10, probe, seed=0)
        right += fit.accuracies[0]
    assert right == pytest.approx(1.0, abs=1e-9)
