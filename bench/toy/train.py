"""Training on two Gaussians: what a setting of `bench.toy.study` does, for all of its seeds side by side.

After the toy study of the paper's section on data-centric efficiency, which classifies a mixture of two Gaussians,
modifies the variance of the training samples and mixes their labels with a model's predictions, and looks at the test
loss. Its dimension, means, network, loss, optimiser, numbers of samples and steps, and what makes its soft targets are
not known to us: everything here beyond that sentence, and every number in `paper_toy.yaml`, is our choice.

Everything is float64 on the CPU. The first axis of each tensor is the seed: seeds share operations and nothing else.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from bench.core.errors import UserError
from bench.core.seeds import generator
from bench.toy.study import Setting, Toy


class Weights(NamedTuple):
    """A network with one hidden layer and one logit, for each of S seeds, D inputs and H hidden units."""

    hidden: Tensor  # (S, D, H)
    hidden_bias: Tensor  # (S, 1, H)
    output: Tensor  # (S, H, 1)
    output_bias: Tensor  # (S, 1, 1)


class Curves(NamedTuple):
    """What a setting reached: an outer list of seeds, an inner one of `toy.evaluate_at`."""

    accuracy: list[list[float]]  # share of the test samples
    loss: list[list[float]]  # mean test cross-entropy against the true classes, nats
    prior_accuracy: list[float] | None  # of each seed's prior, on the same test samples


def study(setting: Setting) -> Curves:
    """Train on the modified samples and targets, and test on samples of the unmodified mixture.

    Raises UserError when the training diverges.
    """
    toy, seeds = setting.toy, setting.seeds
    x, targets = draw(toy, seeds, "train", toy.samples, setting.sigma)
    test_x, test_y = draw(toy, seeds, "test", toy.test_samples, toy.sigma)
    prior_accuracy = None
    if setting.rho > 0:
        prior = train_prior(toy, seeds)
        targets = relabel(targets, prior, x, setting.rho)
        prior_accuracy = evaluate(prior, test_x, test_y)[0].tolist()
    accuracy, loss = [], []
    start = initial(toy, seeds, "student")
    for step, weights in descend(toy, seeds, "student", start, x, targets, toy.evaluate_at[-1]):
        if step in toy.evaluate_at:
            reached = evaluate(weights, test_x, test_y)
            if not bool(torch.isfinite(reached[1]).all()):
                raise UserError(f"{setting}: the test loss is not finite after step {step}; lower toy.lr ({toy.lr:g})")
            accuracy.append(reached[0])
            loss.append(reached[1])
    return Curves(torch.stack(accuracy, 1).tolist(), torch.stack(loss, 1).tolist(), prior_accuracy)


def draw(toy: Toy, seeds: Sequence[int], purpose: str, count: int, sigma: float) -> tuple[Tensor, Tensor]:
    """Return samples (S, count, D) of the mixture and their classes (S, count), 0 or 1 with equal chance.

    Class c is N(mean_c, sigma^2 I); the means lie at -+ distance / 2 on the first axis. Classes and noise depend on
    seed and purpose alone: another sigma stretches the same noise, so settings pair.
    """
    noise, classes = [], []
    for seed in seeds:
        stream = generator(seed, "toy", purpose, "samples")
        classes.append(torch.randint(0, 2, (count,), generator=stream).double())
        noise.append(torch.randn(count, toy.dimension, generator=stream, dtype=torch.float64))
    x, y = sigma * torch.stack(noise), torch.stack(classes)
    x[..., 0] += (y - 0.5) * toy.distance
    return x, y


def initial(toy: Toy, seeds: Sequence[int], purpose: str) -> Weights:
    """Return random weights N(0, 1 / fan-in) and zero biases."""

    def normal(fan_in: int, fan_out: int, layer: str) -> Tensor:
        streams = [generator(seed, "toy", purpose, "weights", layer) for seed in seeds]
        drawn = [torch.randn(fan_in, fan_out, generator=stream, dtype=torch.float64) for stream in streams]
        return torch.stack(drawn) / math.sqrt(fan_in)

    def zeros(width: int) -> Tensor:
        return torch.zeros(len(seeds), 1, width, dtype=torch.float64)

    return Weights(
        normal(toy.dimension, toy.hidden, "hidden"), zeros(toy.hidden), normal(toy.hidden, 1, "output"), zeros(1)
    )


def logits(weights: Weights, x: Tensor) -> Tensor:
    """Return the logit (S, N) of class 1 for samples (S, N, D)."""
    hidden = torch.relu(x @ weights.hidden + weights.hidden_bias)
    return (hidden @ weights.output + weights.output_bias).squeeze(-1)


def sgd_step(weights: Weights, x: Tensor, targets: Tensor, lr: float) -> Weights:
    """Return the weights after a plain SGD step on the mean cross-entropy of a batch (S, B, D), targets (S, B)."""
    leaves = [tensor.detach().requires_grad_() for tensor in weights]
    losses = binary_cross_entropy_with_logits(logits(Weights(*leaves), x), targets, reduction="none")
    gradients = torch.autograd.grad(losses.mean(1).sum(), leaves)  # the sum keeps the seeds apart
    return Weights(*(leaf.detach() - lr * gradient for leaf, gradient in zip(leaves, gradients, strict=True)))


def descend(
    toy: Toy, seeds: Sequence[int], purpose: str, weights: Weights, x: Tensor, targets: Tensor, steps: int
) -> Iterator[tuple[int, Weights]]:
    """Yield the steps done and the weights, from 0 to `steps`. Batches are drawn with replacement."""
    drawn = [
        torch.randint(0, x.shape[1], (steps, toy.batch_size), generator=generator(seed, "toy", purpose, "order"))
        for seed in seeds
    ]
    order = torch.stack(drawn)
    each = torch.arange(len(seeds)).unsqueeze(1)
    yield 0, weights
    for step in range(steps):
        batch = order[:, step]
        weights = sgd_step(weights, x[each, batch], targets[each, batch], toy.lr)
        yield step + 1, weights


@functools.lru_cache(maxsize=1)  # the settings of a study share it
def train_prior(toy: Toy, seeds: tuple[int, ...]) -> Weights:
    """Return each seed's prior: the same network, trained before on unmodified samples of its own."""
    x, y = draw(toy, seeds, "prior", toy.prior_samples, toy.sigma)
    weights = start = initial(toy, seeds, "prior")
    for _, reached in descend(toy, seeds, "prior", start, x, y, toy.prior_steps):
        weights = reached
    return weights


def relabel(classes: Tensor, prior: Weights, x: Tensor, rho: float) -> Tensor:
    """Return rho * (the prior's probability of class 1) + (1 - rho) * class, (S, N)."""
    return rho * torch.sigmoid(logits(prior, x)) + (1 - rho) * classes


def evaluate(weights: Weights, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return each seed's accuracy (share) and mean cross-entropy (nats) against the classes, both (S,)."""
    outputs = logits(weights, x)
    right = (outputs > 0) == (y > 0.5)
    return right.double().mean(1), binary_cross_entropy_with_logits(outputs, y, reduction="none").mean(1)
