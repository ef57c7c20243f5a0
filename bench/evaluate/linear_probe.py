"""The linear probe: a Linear on frozen features, by the paper's recipe or as a regularised logistic regression."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.core.graphs import Recorded
from bench.core.seeds import derive, generator
from bench.evaluate.features import Features
from bench.grid.cell import Probe
from bench.store.record import Moved, Solved

LAST_EPOCHS = 3  # the paper reports mean and deviation of the test accuracy over these
EARLIER = 0.8  # of the epochs: where a probe stood then tells whether it still moves at the end
HELD_OUT = 10  # one in so many training images chooses the strength of the penalty
PASSES = 500  # over all images, at most; features of CIFAR-10 take 20 to 110
TOLERANCE = (
    1e-4  # of the largest entry of the gradient: on features of CIFAR-10, within 0.1 points of the minimum's accuracy
)
FIRST = 5  # of a probe's classes, among which the right one counts as found by top-5
SCORES = 2**26  # that are in memory at a time: 256 MiB


@dataclass(frozen=True)
class Fit:
    """A trained probe's test accuracies, shares of images, and how its training ended; None: too short to tell.

    One accuracy after each of the last epochs; one alone of the recipe `lbfgs`, which has no epochs. `top5`: shares
    of the images whose class is among the first five.
    """

    accuracies: tuple[float, ...]
    end: Moved | Solved | None
    top5: tuple[float, ...]


def linear_probe(features: Features, classes: int, probe: Probe, seed: int) -> list[Fit]:
    """Train a Linear on the features for each probe seed."""
    seeds = [seed if which == 0 else derive(seed, "probe seed", which) for which in range(probe.seeds)]
    return {"adam": _adam, "lbfgs": _lbfgs}[probe.recipe](features, classes, probe, seeds)


def _adam(features: Features, classes: int, probe: Probe, seeds: list[int]) -> list[Fit]:
    """Adam at a constant rate, all images in each epoch, the short last batch included (paper, protocol).

    The probes are trained side by side, each on its own order of the images.
    """
    device, count = features.train.device, len(features.train)
    weight, bias = (start.to(device).requires_grad_() for start in _initial(seeds, features.train.shape[1], classes))
    optimiser = torch.optim.Adam([weight, bias], lr=probe.lr, fused=True)

    def step(index: Tensor) -> Tensor:
        # Torch warns of a step that could be recorded and is not.
        optimiser.param_groups[0]["capturable"] = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        optimiser.zero_grad()
        scores = torch.baddbmm(bias, features.train[index], weight)
        loss = cross_entropy(scores.flatten(0, 1), features.train_labels[index].flatten())
        (loss * len(seeds)).backward()  # type: ignore[no-untyped-call]  # so that each probe has the gradient of its own mean
        optimiser.step()
        return loss.detach()

    recorded = Recorded(step, device)
    earlier = round(EARLIER * probe.epochs)
    looks: dict[int, Tensor] = {}  # after an epoch, each probe's loss on training images, top-1 and top-5 (3, seeds)
    for epoch in range(probe.epochs):
        orders = [torch.randperm(count, generator=generator(each, "probe", epoch)) for each in seeds]
        for index in torch.split(torch.stack(orders).to(device), probe.batch_size, dim=1):
            recorded(index)
        if any(end - LAST_EPOCHS <= epoch < end for end in (earlier, probe.epochs)):
            loss = _judged(features.train, features.train_labels, weight, bias)[:1]
            looks[epoch] = torch.cat([loss, _judged(features.test, features.test_labels, weight, bias)[1:]])
    last = _last(looks, probe.epochs)
    ends: list[Moved | None] = [None] * len(seeds)
    if 0 < earlier < probe.epochs and last.isfinite().all():
        moved = torch.stack([_last(looks, earlier).mean(dim=0), last.mean(dim=0)], dim=-1)[:2].tolist()
        ends = [Moved(loss=loss, accuracy=accuracy) for loss, accuracy in zip(*moved, strict=True)]
    top1, top5 = (last[:, row].T.tolist() for row in (1, 2))
    return [Fit(tuple(one), end, tuple(five)) for one, end, five in zip(top1, ends, top5, strict=True)]


def _last(looks: dict[int, Tensor], end: int) -> Tensor:
    """Return what was seen after the last epochs before `end`: (epochs, 3, seeds)."""
    return torch.stack([look for epoch, look in looks.items() if end - LAST_EPOCHS <= epoch < end])


def _initial(seeds: list[int], dim: int, classes: int) -> tuple[Tensor, Tensor]:
    """Return the initial weights (seeds, dim, classes) and biases (seeds, 1, classes) of torch's Linear."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        layers = []
        for seed in seeds:
            torch.manual_seed(derive(seed, "probe"))
            layers.append(nn.Linear(dim, classes))
        weights = torch.stack([layer.weight.T for layer in layers])
        return weights, torch.stack([layer.bias[None] for layer in layers])


@dataclass(frozen=True)
class Minimum:
    """Weights (1, d, classes) and biases (1, 1, classes), the passes to get there, and the gradient's largest entry."""

    weight: Tensor
    bias: Tensor
    passes: int
    gradient: float


def _lbfgs(features: Features, classes: int, probe: Probe, seeds: list[int]) -> list[Fit]:
    """Full-batch logistic regression on standardised features, by each probe's seed."""
    standard, fits = Standard.of(features.train), []
    train, test = standard(features.train), standard(features.test)
    basis = curvature(train)
    for seed in seeds:
        final, end = _strongest(train, features.train_labels, classes, probe, seed, basis)
        _, top1, top5 = _judged(test, features.test_labels, final.weight, final.bias)
        fits.append(Fit(tuple(top1.tolist()), end, tuple(top5.tolist())))
    return fits


@dataclass(frozen=True)
class Standard:
    """Features less their mean and by their deviation, float32 (d,) each."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Standard":
        """Return the mean and deviation of features (N, d)."""
        return cls(features.mean(dim=0), features.std(dim=0).clamp(min=1e-6))

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation


def classifier(features: Features, classes: int, probe: Probe, seed: int) -> Callable[[Tensor], Tensor]:
    """Return what gives the scores (N, classes) of features (N, d), by the probe of recipe `lbfgs`."""
    standard = Standard.of(features.train)
    train = standard(features.train)
    final, _ = _strongest(train, features.train_labels, classes, probe, seed, curvature(train))
    return lambda given: standard(given) @ final.weight[0] + final.bias[0]


def _strongest(
    train: Tensor, labels: Tensor, classes: int, probe: Probe, seed: int, basis: tuple[Tensor, Tensor]
) -> tuple[Minimum, Solved | None]:
    """Return the minimum of logistic regression on standardised features, and how it was reached.

    The strength of its penalty is the one with the least loss on a tenth of the training images, drawn by the probe's
    seed; all of them train the one that is tested. Strengths are tried downwards, and none below one that was worse.
    """
    order = torch.randperm(len(train), generator=generator(seed, "probe", 0)).to(train.device)
    held, kept = order[: len(order) // HELD_OUT], order[len(order) // HELD_OUT :]
    least, best, start = math.inf, max(probe.l2), None
    for l2 in sorted(probe.l2, reverse=True) if len(probe.l2) > 1 else ():
        tried = logistic_regression(train[kept], labels[kept], classes, l2, basis, start)
        loss = float(_judged(train[held], labels[held], tried.weight, tried.bias)[0])
        if not loss < least:
            break
        least, best, start = loss, l2, tried
    final = logistic_regression(train, labels, classes, best, basis, start)
    at_edge = len(probe.l2) > 1 and best in (min(probe.l2), max(probe.l2))
    known = math.isfinite(final.gradient)
    return final, Solved(l2=best, at_edge=at_edge, passes=final.passes, gradient=final.gradient) if known else None


def curvature(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (d,) and eigenvectors (d, d) of the features' second moment."""
    values, vectors = torch.linalg.eigh(features.T @ features / len(features))
    return values.clamp(min=0), vectors


def logistic_regression(
    features: Tensor,
    labels: Tensor,
    classes: int,
    l2: float,
    basis: tuple[Tensor, Tensor],
    start: Minimum | None = None,
) -> Minimum:
    """Return the minimum of mean cross-entropy + l2 / 2 |weights|^2, by L-BFGS over all images (N, d), from `start` on.

    The weights are searched in the `basis` of the features' curvature, each direction scaled by about how steep the
    loss is there: that changes no minimum, and finds it in a tenth of the passes. So is the gradient.
    """
    steep = (basis[0] / classes + l2).sqrt()[:, None]
    scaled = torch.zeros(features.shape[1], classes, device=features.device, requires_grad=True)
    bias = torch.zeros(1, 1, classes, device=features.device, requires_grad=True)
    if start:
        scaled.data, bias.data = steep * (basis[1].T @ start.weight[0]), start.bias.clone()
    optimiser = _l_bfgs([scaled, bias])
    rows = max(1, SCORES // classes)

    def loss() -> Tensor:
        optimiser.zero_grad()
        weight = (basis[1] @ (scaled.detach() / steep)).requires_grad_()
        total = l2 / 2 * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        for part, label in zip(torch.split(features, rows), torch.split(labels, rows), strict=True):
            entropy = cross_entropy(part @ weight + bias[0], label, reduction="sum") / len(features)
            entropy.backward()  # type: ignore[no-untyped-call]
            total = total.detach() + entropy.detach()
        assert weight.grad is not None
        scaled.grad = basis[1].T @ weight.grad / steep
        return total

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    loss()  # whose gradient is that of the end, and not of a step that was tried
    gradient = max(float(each.grad.abs().max()) for each in (scaled, bias) if each.grad is not None)
    passes = int(optimiser.state[scaled]["func_evals"])
    return Minimum((basis[1] @ (scaled.detach() / steep))[None], bias.detach(), passes, gradient)


def _l_bfgs(searched: list[Tensor]) -> torch.optim.LBFGS:
    return torch.optim.LBFGS(
        searched,
        max_iter=PASSES,
        max_eval=PASSES,
        tolerance_grad=TOLERANCE,
        tolerance_change=1e-9,
        history_size=20,
        line_search_fn="strong_wolfe",
    )


@torch.no_grad()
def _judged(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return each Linear's mean cross-entropy, and shares of images that are right and in the first five.

    float64 (3, S).
    """
    rows = max(1, SCORES // (len(weight) * weight.shape[2]))
    found = torch.zeros(3, len(weight), dtype=torch.float64, device=features.device)
    for part, label in zip(torch.split(features, rows), torch.split(labels, rows), strict=True):
        scores = part @ weight + bias
        found[0] += cross_entropy(scores.mT, label.expand(len(weight), -1), reduction="none").sum(dim=1)
        found[1] += (scores.argmax(dim=2) == label).sum(dim=1)
        first = scores.topk(min(FIRST, scores.shape[2]), dim=2).indices
        found[2] += (first == label[:, None]).any(dim=2).sum(dim=1)
    return found / len(features)
