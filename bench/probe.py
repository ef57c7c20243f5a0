"""The linear probe: a Linear on frozen features, by the paper's recipe or as a regularised logistic regression."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.evaluate import Features
from bench.seeds import derive, generator
from bench.spec import Probe

LAST_EPOCHS = 3  # the paper reports mean and deviation of the test accuracy over these
HELD_OUT = 10  # one in so many training images chooses the strength of the penalty
PASSES = 200  # over all images, at most: on features of CIFAR-10, as many as change an accuracy
SCORES = 2**26  # that are in memory at a time: 256 MiB


def linear_probe(features: Features, classes: int, probe: Probe, seed: int) -> list[list[float]]:
    """Train a Linear on the features for each probe seed and return their test accuracies.

    Shares of images, [probe seeds][last epochs]; of the recipe `lbfgs`, which has no epochs, [probe seeds][1].
    """
    seeds = [seed if which == 0 else derive(seed, "probe seed", which) for which in range(probe.seeds)]
    return {"adam": _adam, "lbfgs": _lbfgs}[probe.recipe](features, classes, probe, seeds)


def _adam(features: Features, classes: int, probe: Probe, seeds: list[int]) -> list[list[float]]:
    """Adam at a constant rate, all images in each epoch, the short last batch included (paper, protocol).

    The probes are trained side by side, each on its own order of the images.
    """
    device, count = features.train.device, len(features.train)
    weight, bias = (start.to(device).requires_grad_() for start in _initial(seeds, features.train.shape[1], classes))
    optimiser = torch.optim.Adam([weight, bias], lr=probe.lr, fused=True)
    accuracies = []
    for epoch in range(probe.epochs):
        orders = [torch.randperm(count, generator=generator(each, "probe", epoch)) for each in seeds]
        for index in torch.split(torch.stack(orders).to(device), probe.batch_size, dim=1):
            scores = torch.baddbmm(bias, features.train[index], weight)
            loss = cross_entropy(scores.flatten(0, 1), features.train_labels[index].flatten())
            (loss * len(seeds)).backward()  # type: ignore[no-untyped-call]  # so that each probe has the gradient of its own mean
            optimiser.step()
            optimiser.zero_grad()
        if epoch >= probe.epochs - LAST_EPOCHS:
            with torch.no_grad():
                accuracies.append(_right(features.test, features.test_labels, weight, bias).tolist())
    return [list(each) for each in zip(*accuracies, strict=True)]


def _initial(seeds: list[int], dim: int, classes: int) -> tuple[Tensor, Tensor]:
    """Return the initial weights (seeds, dim, classes) and biases (seeds, 1, classes) of torch's Linear."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        layers = []
        for seed in seeds:
            torch.manual_seed(derive(seed, "probe"))
            layers.append(nn.Linear(dim, classes))
        weights = torch.stack([layer.weight.T for layer in layers])
        return weights, torch.stack([layer.bias[None] for layer in layers])


def _lbfgs(features: Features, classes: int, probe: Probe, seeds: list[int]) -> list[list[float]]:
    """Full-batch logistic regression on standardised features, at all strengths of the penalty at once.

    A tenth of the training images, drawn by the probe's seed, chooses the strength; all of them train the one that is
    tested.
    """
    mean, deviation = features.train.mean(dim=0), features.train.std(dim=0).clamp(min=1e-6)
    train, test = (features.train - mean) / deviation, (features.test - mean) / deviation
    accuracies = []
    for seed in seeds:
        order = torch.randperm(len(train), generator=generator(seed, "probe", 0)).to(train.device)
        held, kept = order[: len(order) // HELD_OUT], order[len(order) // HELD_OUT :]
        tried = logistic_regression(train[kept], features.train_labels[kept], classes, probe.l2)
        best = int(_right(train[held], features.train_labels[held], *tried).argmax())  # the first of equals
        final = logistic_regression(train, features.train_labels, classes, probe.l2[best : best + 1])
        accuracies.append(_right(test, features.test_labels, *final).tolist())
    return accuracies


def logistic_regression(features: Tensor, labels: Tensor, classes: int, l2: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Return the weights (S, d, classes) and biases (S, 1, classes) of the S minima of a convex loss.

    Mean cross-entropy + l2 / 2 |weights|^2 for each of the S strengths in `l2`, by L-BFGS over all images (N, d)
    together.
    """
    count, dim = features.shape
    weight = torch.zeros(len(l2), dim, classes, device=features.device, requires_grad=True)
    bias = torch.zeros(len(l2), 1, classes, device=features.device, requires_grad=True)
    strength = torch.tensor(l2, device=features.device)
    optimiser = torch.optim.LBFGS(
        [weight, bias],
        max_iter=PASSES,
        max_eval=PASSES,
        tolerance_grad=1e-5,
        tolerance_change=1e-9,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    rows = max(1, SCORES // (len(l2) * classes))

    def loss() -> Tensor:
        optimiser.zero_grad()
        total = (strength / 2 * weight.square().sum(dim=(1, 2))).sum()
        total.backward()  # type: ignore[no-untyped-call]
        for part, label in zip(torch.split(features, rows), torch.split(labels, rows), strict=True):
            scores = (part @ weight + bias).flatten(0, 1)
            entropy = cross_entropy(scores, label.repeat(len(l2)), reduction="sum") / count
            entropy.backward()  # type: ignore[no-untyped-call]
            total = total.detach() + entropy.detach()
        return total

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def _right(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the share of images that each Linear gets right, float64 (S,)."""
    rows = max(1, SCORES // (len(weight) * weight.shape[2]))
    right = torch.zeros(len(weight), dtype=torch.float64, device=features.device)
    for part, label in zip(torch.split(features, rows), torch.split(labels, rows), strict=True):
        right += ((part @ weight + bias).argmax(dim=2) == label).sum(dim=1)
    return right / len(features)
