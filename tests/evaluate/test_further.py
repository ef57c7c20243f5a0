"""The further evaluations of a backbone, against scikit-learn and against loops of their own."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.core.errors import MissingError
from bench.core.paths import Paths
from bench.core.seeds import derive, generator
from bench.data import load_dataset
from bench.data.augment import EvalView, View, augment
from bench.data.images import Images, open_images
from bench.data.loader import InMemoryLoader, open_source
from bench.evaluate.features import Features, extract
from bench.evaluate.few_labels import few_labels, labelled
from bench.evaluate.fine_tune import fine_tune, fine_tuned
from bench.evaluate.further import KINDS, evaluated
from bench.evaluate.knn import knn, knn_accuracy, votes
from bench.evaluate.linear import linear
from bench.evaluate.linear_probe import classifier, linear_probe
from bench.evaluate.score import score
from bench.evaluate.subject import Subject
from bench.evaluate.transfer import transfer
from bench.grid.cell import Knn, Probe
from bench.grid.evaluation import EVALUATIONS, FewLabels, FineTune, LabelFree, Linear, Neighbours, Transfer
from bench.measure.flops import count_flops, step_flops
from bench.models.backbones import build_backbone, initial_backbone
from bench.plan.graph import Ready, plan
from methods import Batch
from methods.build import build_method
from tests.train.small import cell

CPU = torch.device("cpu")
SIZE = 8
CELL = cell(seed=3, input_size=SIZE, probe=Probe(epochs=4), knn=Knn(k=5))
CELL = CELL.model_copy(update={"train_images": 300, "backbone": "resnet_tiny"})


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """An untrained backbone and digits."""
    folder = tmp_path_factory.mktemp("further")
    paths = Paths(folder / "data", folder / "results", "g")
    (task,) = plan([CELL], [CELL], paths, "grid g")
    assert isinstance(task, Ready)
    backbone = initial_backbone("resnet_tiny", SIZE, 0).module.eval()
    return Subject(task, backbone, open_images(CELL, paths, CPU, 0), paths, CPU, 0, lambda: None)


@pytest.fixture(autouse=True)
def _backbone_stays(subject: Subject) -> Iterator[None]:
    """Whatever an evaluation does, it does to a copy."""
    before = copy.deepcopy(subject.backbone.state_dict())
    yield
    assert not any(each.training for each in subject.backbone.modules())
    assert all(torch.equal(value, before[name]) for name, value in subject.backbone.state_dict().items())


def with_labels(subject: Subject, train: Tensor | None = None, test: Tensor | None = None) -> Subject:
    """Return the subject with other labels."""

    def source(old: object, labels: Tensor | None) -> InMemoryLoader:
        assert isinstance(old, InMemoryLoader)
        return InMemoryLoader(old.images, old.labels if labels is None else labels, SIZE, CPU)

    images = subject.images
    changed: Images = replace(images, train=source(images.train, train), test=source(images.test, test))
    return replace(subject, images=changed)


def test_every_evaluation_of_a_grid_has_its_code() -> None:
    assert KINDS.keys() == EVALUATIONS.keys()


def test_the_probe_in_full_is_that_of_the_cell_and_of_scikit_learn(subject: Subject) -> None:
    found, features = linear(subject, Linear()).values, subject.features
    protocol = subject.task.cell.protocol
    assert found["Adam top-1"] == pytest.approx(np.mean(score(features, 10, protocol, 3).linear), abs=1e-12)
    (fit,) = linear_probe(features, 10, Probe(recipe="lbfgs"), 3)
    assert fit.end is not None
    assert found["L-BFGS top-1"] == fit.accuracies[0]
    scaler = StandardScaler().fit(features.train)
    l2 = getattr(fit.end, "l2")  # noqa: B009  of one recipe's end alone
    theirs = LogisticRegression(C=1 / (l2 * len(features.train)), max_iter=5000, tol=1e-8)
    theirs.fit(scaler.transform(features.train), features.train_labels)
    scores = theirs.decision_function(scaler.transform(features.test))
    for k in (1, 5):
        assert found[f"L-BFGS top-{k}"] == pytest.approx(
            top_k_accuracy_score(features.test_labels, scores, k=k), abs=0.003
        )
    ours = classifier(features, 10, Probe(recipe="lbfgs"), 3)(features.test)
    assert float((ours.argmax(1) == features.test_labels).double().mean()) == found["L-BFGS top-1"]


def test_fewer_than_ten_classes_have_no_top_5(subject: Subject) -> None:
    five = with_labels(subject, subject.images.train.labels % 5, subject.images.test.labels % 5)
    five = replace(five, images=replace(five.images, classes=5))
    assert [*linear(five, Linear()).values] == ["L-BFGS top-1", "Adam top-1"]
    assert [*fine_tune(five, FineTune(epochs=1)).values] == ["top-1"]


def test_votes_of_several_sizes_from_one_search_are_those_of_each_alone(subject: Subject) -> None:
    features = subject.features
    alone = [knn_accuracy(features, 10, Knn(k=k, temperature=0.07)) for k in (1, 20, 200)]
    assert votes(features, 10, (1, 20, 200), 0.07) == alone
    assert votes(features, 10, (200, 1), 0.07) == [alone[2], alone[0]]
    nearest = KNeighborsClassifier(1, metric="cosine").fit(features.train, features.train_labels)
    found = knn(subject, Neighbours()).values
    assert [*found] == ["k = 1", "k = 20", "k = 200"]
    assert found["k = 1"] == pytest.approx(nearest.score(features.test, features.test_labels), abs=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
def test_parts_of_the_labels_are_balanced_nested_and_drawn_by_the_seed(seed: int) -> None:
    labels = torch.arange(1000) % 10
    small, large = (labelled(labels, share, seed) for share in (0.01, 0.1))
    assert torch.bincount(labels[small]).tolist() == [1] * 10
    assert torch.bincount(labels[large]).tolist() == [10] * 10
    assert set(small.tolist()) <= set(large.tolist())
    assert not torch.equal(large, labelled(labels, 0.1, seed + 1))
    assert torch.bincount(labels[labelled(labels, 0.001, seed)]).tolist() == [1] * 10, "at least one of each class"


def test_few_labels_are_all_that_is_learned_from(subject: Subject) -> None:
    """The labels of all other training images and of the test images could be anything."""
    settings = FewLabels(shares=(0.1,), epochs=4)
    found = few_labels(subject, settings).values
    assert [*found] == [f"10% {how} top-{k}" for how in ("linear", "fine-tuned") for k in (1, 5)]
    labels = subject.images.train.labels
    part = labelled(labels, 0.1, CELL.seed)
    few = Features(*(values[part] for values in (subject.features.train, labels)), *_tests(subject))
    (fit,) = linear_probe(few, 10, Probe(recipe="lbfgs"), CELL.seed)
    assert found["10% linear top-1"] == fit.accuracies[0]
    tuned = fine_tuned(subject, settings, part).values
    assert {name: found[f"10% fine-tuned {name}"] for name in tuned} == tuned
    assert tuned != fine_tune(subject, FineTune(epochs=4, batch_size=16)).values, "which learns from all"
    # Were test images learned from, random labels of theirs would be, too.
    random = torch.randint(10, (len(subject.images.test.labels),), generator=generator(0, "labels"))
    blind = few_labels(with_labels(subject, test=random), replace_epochs(settings, 30)).values
    assert max(blind["10% linear top-1"], blind["10% fine-tuned top-1"]) < 0.16


def replace_epochs(settings: FewLabels, epochs: int) -> FewLabels:
    return settings.model_copy(update={"epochs": epochs})


def _tests(subject: Subject) -> tuple[Tensor, Tensor]:
    return subject.features.test, subject.features.test_labels


def test_fine_tuning_is_adamw_on_crops_at_two_rates_that_fall_as_a_cosine(subject: Subject) -> None:
    settings = FineTune(epochs=3, batch_size=64, lr=0.01, weight_decay=0.1)
    found = fine_tune(subject, settings)
    source, view = subject.images.train, View(settings.crop, 0.5, 0, 0, 0, 0, jitter=0, grey=0)
    assert isinstance(source, InMemoryLoader)
    seed, steps = derive(CELL.seed, "fine-tune"), 3 * (300 // 64)
    body, head = copy.deepcopy(subject.backbone).train(), nn.Linear(96, 10)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in (*body.parameters(), *head.parameters())}
    for step in range(steps):
        epoch, batch = divmod(step, 300 // 64)
        index = torch.randperm(300, generator=generator(seed, "order", epoch))[batch * 64 : batch * 64 + 64]
        (images,) = augment([source.images[index]], [view], SIZE, generator(seed, "views", step), 64)
        loss = cross_entropy(head(body(images)), source.labels[index])
        grads = torch.autograd.grad(loss, [*moments])
        for p, grad in zip(moments, grads, strict=True):
            rate = 0.01 * (0.1 if p.shape[-1] != 10 and p.shape != (10,) and p.shape != (10, 96) else 1.0)
            rate *= 0.5 * (1 + np.cos(np.pi * step / steps))
            first, second = moments[p]
            first.lerp_(grad, 0.1)
            second.lerp_(grad.square(), 0.001)
            with torch.no_grad():
                p.mul_(1 - rate * 0.1)
                p -= rate * (first / (1 - 0.9 ** (step + 1))) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
    test = subject.images.test
    with torch.no_grad():
        scores = head(body.eval()(next(test.eval_batches(EvalView(SIZE)))))
    first = len(scores)
    right = float((scores.argmax(1) == test.labels[:first]).double().mean())
    assert found.values["top-1"] == pytest.approx(right, abs=2.5 / len(test.labels))
    forward = count_flops(lambda: head(body(images)))
    assert found.flops is not None
    assert 2.5 * steps * forward < found.flops < 3 * steps * forward, "forward, and two backward but for the images"


def test_transfer_is_the_probe_on_another_datasets_features(subject: Subject) -> None:
    found = transfer(subject, Transfer(datasets=("cifar10_mini",), train_images=200, test_images=100))
    data = load_dataset("cifar10_mini", subject.paths)
    assert found.data == {"cifar10_mini": data.digest}
    assert [*found.values] == ["cifar10_mini top-1", "cifar10_mini top-5"]
    whole = transfer(subject, Transfer(datasets=("digits",), train_images=None, test_images=None))
    digits = load_dataset("digits", subject.paths)
    sources = [open_source(split, SIZE, CPU, 0) for split in (digits.train, digits.test)]
    features = extract(subject.backbone, sources[0], sources[1], EvalView(SIZE))
    (fit,) = linear_probe(features, 10, Probe(recipe="lbfgs"), CELL.seed)
    assert whole.values["digits top-1"] == fit.accuracies[0]


def test_transfer_to_a_dataset_that_is_not_here_says_where_it_was_looked_for(subject: Subject) -> None:
    with pytest.raises(MissingError, match=r"fashion_mnist.* is not there: looked in "):
        transfer(subject, Transfer(datasets=("fashion_mnist",)))


def test_a_record_of_an_evaluation_says_what_it_cost(subject: Subject, tmp_path: Path) -> None:
    record = evaluated(subject, FineTune(epochs=1))
    assert (record.cell, record.evaluation, record.version) == (subject.task.id, FineTune(epochs=1), 1)
    assert record.seconds > 0
    assert record.flops
    assert evaluated(subject, Linear()).flops is None


def test_evaluations_that_train_no_network_take_under_3_percent_of_a_cell_of_the_papers_scale() -> None:
    """By count, in forward passes of an image: 50,000 training images, 100 epochs of BYOL at the full budget."""
    backbone = build_backbone("resnet18_cifar", 32)
    forward = count_flops(lambda: backbone.module(torch.zeros(1, 3, 32, 32)))
    byol = build_method(CELL.model_copy(update={"backbone": "resnet18_cifar"}), 32, None, 1, False, backbone)
    views = [torch.zeros(2, 3, 32, 32)] * 2
    step = step_flops(lambda: byol.loss(Batch(views, torch.zeros(2, dtype=torch.int64))))
    training = 100 * 50_000 * step / 2
    free, other = LabelFree(), Transfer()
    assert other.train_images
    assert other.test_images
    images = 60_000 + free.images * free.views + len(other.datasets) * (other.train_images + other.test_images)
    probes = 2 * 100 * 50_000 * 6 * 512 * 10  # by Adam, and by L-BFGS in no more passes than that has epochs
    votes_of = 10_000 * 50_000 * 2 * 512
    assert 0.001 < (images * forward + probes + votes_of) / training < 0.03
