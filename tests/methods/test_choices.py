"""What accelerators choose to train on, against slow loops written from the papers, in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.core.errors import UserError
from bench.data.sampler import Chosen, Sampler
from bench.measure.flops import count_flops
from methods import Accelerator, accelerators, methods
from methods.parts import clusters

Rows = NDArray[np.float64]
CHOOSING = ["subset", "herding", "sas"]


def targets_of(count: int, dim: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def built(name: str, **params: Any) -> Accelerator:
    method = methods.build("byol", nn.Sequential(nn.Flatten(), nn.Linear(48, 12)), 12, {})
    return accelerators.build(name, method, 6 if accelerators.get(name).needs_prior else None, params)


def choice(name: str, targets: Tensor, seed: int = 0, **params: Any) -> list[int]:
    torch.manual_seed(seed)
    found = built(name, **params)
    torch.manual_seed(seed)
    chosen = found.choose(len(targets), targets if found.needs_prior else None)
    assert chosen is not None
    assert chosen.dtype == torch.int64
    return chosen.tolist()


def herded(rows: Rows, count: int) -> list[int]:
    """iCaRL, algorithm 4, without its classes: each time, try every row as the next one."""
    chosen: list[int] = []
    for _ in range(count):
        distances = {
            row: np.linalg.norm(rows.mean(axis=0) - rows[[*chosen, row]].mean(axis=0))
            for row in range(len(rows))
            if row not in chosen
        }
        chosen.append(min(distances, key=distances.__getitem__))
    return chosen


def cut(rows: Rows, inside: list[int]) -> float:
    """SAS: the similarities between a set and what is outside of it."""
    total = 0.0
    for i in set(range(len(rows))) - set(inside):
        for j in inside:
            total += max(0.0, float(rows[i] @ rows[j] / np.linalg.norm(rows[i]) / np.linalg.norm(rows[j])))
    return total


def greedily(rows: Rows, count: int) -> list[int]:
    chosen: list[int] = []
    for _ in range(count):
        values = {row: cut(rows, [*chosen, row]) for row in range(len(rows)) if row not in chosen}
        chosen.append(max(values, key=values.__getitem__))
    return chosen


def grouped(rows: Rows, starts: list[int]) -> list[int]:
    """Lloyd's algorithm, a row and a centre at a time."""
    centres, groups = [rows[start] for start in starts], [-1] * len(rows)
    while True:
        nearest = [min(range(len(centres)), key=lambda c: float(np.sum((row - centres[c]) ** 2))) for row in rows]
        if nearest == groups:
            return groups
        groups = nearest
        for centre in range(len(centres)):
            if members := [row for row, group in zip(rows, groups, strict=True) if group == centre]:
                centres[centre] = np.mean(members, axis=0)


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_herding_takes_the_images_whose_mean_is_nearest_to_the_mean_of_all(shift: float) -> None:
    rows = targets_of(24) + shift
    assert choice("herding", rows, share=0.5) == herded(rows.numpy(), 12)
    assert sorted(choice("herding", rows, share=1.0)) == list(range(24)), "each once"


def test_herding_keeps_the_mean_that_a_random_part_loses() -> None:
    rows = targets_of(400)
    means = {name: rows[choice(name, rows, share=0.1)].mean(dim=0) for name in ("herding", "subset")}
    away = {name: (mean - rows.mean(dim=0)).norm() for name, mean in means.items()}
    assert away["herding"] < 0.1 * away["subset"]


@pytest.mark.parametrize("classes", [1, 3, 5])
def test_sas_is_the_greedy_maximum_of_the_similarities_to_the_rest_of_each_class(classes: int) -> None:
    rows = targets_of(26, seed=classes)
    torch.manual_seed(0)
    groups = grouped(rows.numpy(), torch.randperm(26)[:classes].tolist())
    wanted, before, share = [], 0, 0.4
    for group in range(classes):
        members = [row for row in range(26) if groups[row] == group]
        end = int(share * sum(each <= group for each in groups) + 1e-9)
        wanted += [members[at] for at in greedily(rows.numpy()[members], end - before)]
        before = end
    assert choice("sas", rows, share=share, classes=classes) == wanted
    assert len(wanted) == 10


def test_similarities_in_pieces_are_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = choice("sas", targets_of(50), classes=2)
    monkeypatch.setattr("methods.sas.PART", 7)
    assert choice("sas", targets_of(50), classes=2) == whole


def test_a_cluster_that_nothing_is_nearest_to_stays_empty() -> None:
    """Of equal centres, the first one has all that is near."""
    rows = torch.tensor([[0.0], [0.0], [0.0], [9.0]], dtype=torch.float64)
    for seed in range(8):
        torch.manual_seed(seed)
        starts = torch.randperm(4)[:3].tolist()
        torch.manual_seed(seed)
        assert clusters(rows, 3).tolist() == grouped(rows.numpy(), starts)


@pytest.mark.parametrize("name", CHOOSING)
@pytest.mark.parametrize(("count", "share", "size"), [(40, 0.5, 20), (41, 0.5, 20), (10, 0.7, 7), (9, 1.0, 9)])
def test_a_share_is_so_many_images_each_once(name: str, count: int, share: float, size: int) -> None:
    chosen = choice(name, targets_of(count), share=share)
    assert len(chosen) == len(set(chosen)) == size
    assert set(chosen) <= set(range(count))


@pytest.mark.parametrize("name", CHOOSING)
def test_a_choice_follows_from_the_seed_and_the_targets(name: str) -> None:
    rows = targets_of(60)
    first, again, other = (choice(name, rows, seed=seed, share=0.3) for seed in (0, 0, 1))
    assert first == again
    assert (first == other) == (name == "herding"), "which draws nothing"


@pytest.mark.parametrize("name", CHOOSING)
def test_identical_targets_and_fewer_images_than_classes(name: str) -> None:
    for rows in (torch.ones(30, 6).double(), torch.zeros(30, 6).double(), targets_of(7)):
        chosen = choice(name, rows, share=0.5)
        assert len(chosen) == len(set(chosen)) == len(rows) // 2


@pytest.mark.parametrize("name", CHOOSING)
def test_a_share_that_is_none_and_one_without_a_batch_are_refused(name: str) -> None:
    for share in (0.0, -0.5, 1.5, float("nan")):
        with pytest.raises(UserError, match=r"accelerate.share is .*; make it more than 0 and at most 1"):
            built(name, share=share)
    order = Sampler(40, 1.0, 8, 0)
    with pytest.raises(UserError, match="7 chosen images are less than one batch of 8; choose more"):
        Chosen(order, torch.tensor(choice(name, targets_of(40), share=0.19)))
    with pytest.raises(UserError, match=r"accelerate.classes is 0; make it 1 or more"):
        built("sas", classes=0)


def test_the_products_of_a_choice_are_counted() -> None:
    """By hand: a product for each image and step of the greedy, all similarities of a class, the passes of k-means."""
    count, dim, share = 40, 6, 0.5
    rows, steps = targets_of(count, dim), int(count * share)

    def flops(name: str, **params: Any) -> int:
        found = built(name, share=share, **params)
        torch.manual_seed(0)
        return count_flops(lambda: found.choose(count, rows))

    assert flops("herding") == 2 * count * dim * steps
    assert flops("subset") == 0
    assert flops("sas", classes=1) == 2 * count * dim * (steps + count + 3), "two looks at the centre, one move"
