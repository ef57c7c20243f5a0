"""Targets against scikit-learn's PCA."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from bench.targets.cache import Cost, Targets, cache_path, load_targets, save_targets
from bench.targets.reduce import reduce_features


def features(count: int, dim: int) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    mixed = torch.randn(count, dim, generator=draw) @ torch.randn(dim, dim, generator=draw)
    return mixed + 5 * torch.randn(dim, generator=draw)


@pytest.mark.parametrize(("count", "dim", "asked"), [(300, 20, 8), (300, 20, 20), (300, 20, 64), (20_000, 12, 5)])
def test_targets_are_the_standardised_principal_components(count: int, dim: int, asked: int) -> None:
    given = features(count, dim)
    values, empty = reduce_features(given, asked)
    k = min(asked, dim)
    assert values.shape == (count, k)
    assert values.dtype == torch.float32
    assert empty == 0
    expected = PCA(n_components=k).fit_transform(given.double().numpy())
    expected = (expected - expected.mean(axis=0)) / expected.std(axis=0)
    signs = np.sign((expected * values.numpy()).sum(axis=0))
    np.testing.assert_allclose(values.numpy(), expected * signs, atol=2e-4)
    np.testing.assert_allclose(values.mean(dim=0), 0, atol=1e-5)
    np.testing.assert_allclose(values.std(dim=0, correction=0), 1, atol=1e-5)


def test_signs_do_not_depend_on_those_of_the_solver() -> None:
    values, _ = reduce_features(features(100, 6), 4)
    mirrored, _ = reduce_features(-features(100, 6), 4)
    torch.testing.assert_close(mirrored, -values, atol=1e-4, rtol=0)


def test_components_without_variance_are_zero_and_counted() -> None:
    given = features(50, 4)
    flat = torch.cat([given, given[:, :2], torch.full((50, 3), 7.0)], dim=1)  # rank 4 of 9
    values, empty = reduce_features(flat, 9)
    assert empty == 5
    assert torch.equal(values[:, 4:], torch.zeros(50, 5))
    assert torch.isfinite(values).all()
    constant, empty = reduce_features(torch.ones(10, 3), 3)
    assert empty == 3
    assert torch.equal(constant, torch.zeros(10, 3))


def test_the_cache_gives_back_what_was_saved_and_nothing_else(tmp_path: Path) -> None:
    path = cache_path(tmp_path, data="a", prior="b", dim=3)
    targets = Targets(torch.randn(5, 3), 1, Cost(seconds=2.5, flops=10**15, images=5))
    assert load_targets(path, 5) is None
    save_targets(targets, path)
    found = load_targets(path, 5)
    assert found is not None
    assert torch.equal(found.values, targets.values)
    assert (found.empty, found.cost) == (targets.empty, targets.cost)
    whole = path.read_bytes()
    assert load_targets(path, 6) is None, "targets of another number of images"
    raw = bytearray(whole)
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert load_targets(path, 5) is None, "a changed value"
    path.write_bytes(raw[:40])
    assert load_targets(path, 5) is None, "a file cut short"
    assert not path.exists()
    kept = [path.with_name(path.name + end).read_bytes() for end in (".damaged", ".damaged.2", ".damaged.3")]
    assert kept == [whole, bytes(raw), bytes(raw[:40])], "nothing is lost"


def test_the_cache_tells_data_prior_and_settings_apart(tmp_path: Path) -> None:
    base: dict[str, str | int] = {"data": "a", "prior": "b", "size": 32, "dim": 64}
    others = [base | change for change in ({"data": "x"}, {"prior": "x"}, {"size": 64}, {"dim": 65})]
    assert len({cache_path(tmp_path, **identity) for identity in (base, *others)}) == 5
