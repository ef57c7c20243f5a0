"""What a network's features are worth: the scores of a linear probe and of a vote, and the dimensions they fill."""

import torch
from torch import Tensor

from bench.evaluate.features import Features
from bench.evaluate.knn import knn_accuracy
from bench.evaluate.linear_probe import linear_probe
from bench.grid.cell import Protocol
from bench.store.record import ByAdam, Score, Solved

EPSILON = 1e-7  # RankMe's


def score(features: Features, classes: int, protocol: Protocol, seed: int, last: bool = True) -> Score:
    """Return the scores of features; the effective rank and the paper's recipe beside another one at the last alone."""
    first, *further = linear_probe(features, classes, protocol.probe, seed)
    by_adam = None
    if last and protocol.probe.recipe != "adam":
        papers = protocol.probe.model_copy(update={"recipe": "adam", "seeds": 1})
        (beside,) = linear_probe(features, classes, papers, seed)
        assert not isinstance(beside.end, Solved)
        by_adam = ByAdam(linear=beside.accuracies, end=beside.end)
    return Score(
        linear=first.accuracies,
        knn=knn_accuracy(features, classes, protocol.knn),
        further_probes=tuple(each.accuracies for each in further),
        end=first.end,
        by_adam=by_adam,
        effective_rank=effective_rank(features.test) if last else None,
    )


def effective_rank(features: Tensor) -> float:
    """Return RankMe of features (N, d): e to the entropy of their singular values' shares (arXiv 2210.02885).

    1 where all are the same up to a factor, d where each direction counts as much as any other.
    """
    moment = sum(part.double().T @ part.double() for part in torch.split(features, 2**14))
    values = torch.linalg.eigvalsh(moment).clamp(min=0).sqrt()
    shares = values / values.sum().clamp(min=EPSILON) + EPSILON
    return float((-shares * shares.log()).sum().exp())
