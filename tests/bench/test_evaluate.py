"""The probe against scikit-learn's logistic regression, the vote against a plain loop."""

import numpy as np
import pytest
import torch
from lightly.utils.benchmarking import knn_predict
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from bench import evaluate
from bench.datasets import Split
from bench.evaluate import Features, extract, knn_accuracy
from bench.probe import linear_probe, logistic_regression
from bench.seeds import derive, generator
from bench.source import open_source
from bench.spec import Knn, Probe
from bench.views import MEAN, STD


@pytest.fixture(scope="module")
def features() -> Features:
    """The digits' own pixels as features, the last 600 for test."""
    bunch = load_digits()
    pixels = torch.from_numpy(StandardScaler().fit_transform(bunch.data)).float()
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    return Features(pixels[:-600], labels[:-600], pixels[-600:], labels[-600:])


def test_the_probe_is_within_a_point_of_logistic_regression(features: Features) -> None:
    reference = LogisticRegression(max_iter=5000, C=10.0).fit(features.train, features.train_labels)
    expected = reference.score(features.test, features.test_labels)
    # 10 steps an epoch: the paper's rate is slow here.
    (accuracies,) = linear_probe(features, 10, Probe(lr=3e-3), seed=0)
    assert len(accuracies) == 3
    assert abs(np.mean(accuracies) - expected) < 0.01


def test_the_probe_reports_its_last_epochs_and_shares_of_images(features: Features) -> None:
    (accuracies,) = linear_probe(features, 10, Probe(epochs=2), seed=0)
    assert len(accuracies) == 2
    for accuracy in accuracies:
        assert (accuracy * 600) == pytest.approx(round(accuracy * 600), abs=1e-9)
    assert [accuracies] == linear_probe(features, 10, Probe(epochs=2), seed=0)
    assert [accuracies] != linear_probe(features, 10, Probe(epochs=2), seed=1)


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
    together = linear_probe(features, 10, probe, seed=5)
    seeds = [5, derive(5, "probe seed", 1), derive(5, "probe seed", 2)]
    alone = [plain_probe(features, probe, seed) for seed in seeds]
    assert np.array(together) == pytest.approx(np.array(alone), abs=2.1 / 600), "up to a vote that is a near tie"
    assert together[0] != together[1] != together[2]
    assert together[:1] == linear_probe(features, 10, Probe(lr=3e-3, epochs=12), seed=5), "the first is as without more"


L2 = (1e-4, 1e-2, 1.0)


def objective(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, l2: float) -> float:
    return float(cross_entropy(features @ weight + bias, labels) + l2 / 2 * weight.square().sum())


def test_logistic_regressions_side_by_side_are_scikit_learns(
    features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, labels = features.train.double().numpy(), features.train_labels
    monkeypatch.setattr("bench.probe.PASSES", 1000)
    weight, bias = logistic_regression(features.train, labels, 10, L2)
    for which, l2 in enumerate(L2):
        reference = LogisticRegression(C=1 / (l2 * len(data)), tol=1e-8, max_iter=10_000).fit(data, labels)
        found = objective(features.train, labels, weight[which], bias[which], l2)
        theirs = [torch.from_numpy(each.T).float() for each in (reference.coef_, reference.intercept_)]
        assert found == pytest.approx(objective(features.train, labels, *theirs, l2), abs=1e-4)
        ours = (features.test @ weight[which] + bias[which]).argmax(1).numpy()
        assert np.mean(ours == reference.predict(features.test.double())) > 0.99
    monkeypatch.setattr("bench.probe.SCORES", 3 * 10 * 250)  # 250 images at a time
    again, _ = logistic_regression(features.train, labels, 10, L2)
    assert torch.allclose(weight, again, atol=0.02 * float(weight.abs().max()))


def test_the_probe_by_lbfgs_takes_the_strength_that_held_out_images_choose(features: Features) -> None:
    """Of the three, 1 fits so little that a tenth of the images is enough to see it."""
    probe = Probe(recipe="lbfgs", l2=L2, seeds=2)
    found = linear_probe(features, 10, probe, seed=0)
    alone = {l2: linear_probe(features, 10, Probe(recipe="lbfgs", l2=(l2,)), seed=0)[0] for l2 in L2}
    assert found[0] in (alone[1e-4], alone[1e-2])
    assert alone[1.0][0] < found[0][0] - 0.02
    assert [len(each) for each in found] == [1, 1]
    shifted = Features(3 + 7 * features.train, features.train_labels, 3 + 7 * features.test, features.test_labels)
    (again,) = linear_probe(shifted, 10, Probe(recipe="lbfgs", l2=L2), seed=0)
    assert again == pytest.approx(found[0], abs=2.1 / 600)


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
    monkeypatch.setattr(evaluate, "BANK_BYTES", 4 * 64 * rows)
    monkeypatch.setattr(evaluate, "VOTE_BYTES", 4 * 70 * 10 * rows)
    assert knn_accuracy(features, 10, Knn(k=70, temperature=0.07)) == expected
    assert torch.equal(features.train, given), "the features are as they were"


def test_k_may_exceed_the_training_set() -> None:
    few = Features(torch.eye(3), torch.tensor([0, 1, 1]), torch.eye(3), torch.tensor([0, 1, 1]))
    assert knn_accuracy(few, 2, Knn(k=200, temperature=0.02)) == 1.0


def test_features_are_of_plain_images_in_eval_mode_without_gradient() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    split = Split(images, np.arange(5))
    source = open_source(split, 4, torch.device("cpu"), workers=0)
    backbone = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten()).train()
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    found = extract(backbone, source, source, 4)
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
        ((accuracy,),) = linear_probe(turned, 10, probe, seed=0)
        right += accuracy
    assert right == pytest.approx(1.0, abs=1e-9)
