"""Each measure against numpy and scipy on random features, and where its value is known."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.spatial.distance import pdist
from torch import Tensor, nn

from bench.core.errors import TrainingError
from bench.core.seeds import derive
from bench.data.augment import View
from bench.data.sampler import Part
from bench.evaluate.label_free import alignment, label_free, lidar, uniformity, view_features
from bench.grid.evaluation import LabelFree
from tests.evaluate.subjects import Floats, Pooled, patterns, subject_of


def features_of(*shape: int, seed: int = 0) -> Tensor:
    draw = np.random.default_rng(seed)
    return torch.from_numpy(draw.normal(0.3, 1, shape) * np.geomspace(1, 0.05, shape[-1])).float()


def number_of(values: Floats) -> float:
    """The effective number of eigenvalues, as both papers write it."""
    shares = values / np.abs(values).sum() + 1e-7
    return float(np.exp(-(shares * np.log(shares)).sum()))


def lidar_by_scipy(features: Floats) -> float:
    """Eigenvalues of `between v = lambda within v`, from scatters that are added up image by image."""
    n, q, d = features.shape
    middle, between, within = features.reshape(-1, d).mean(0), np.zeros((d, d)), 1e-4 * np.eye(d)
    for views in features:
        mean = views.mean(0)
        between += np.outer(mean - middle, mean - middle) / n
        within += sum(np.outer(view - mean, view - mean) for view in views) / (n * q)
    return number_of(scipy.linalg.eigh(between, within, eigvals_only=True).clip(0))


@pytest.mark.parametrize("shape", [(40, 5, 12), (6, 3, 20), (30, 2, 4)])
def test_lidar_is_the_generalised_eigenproblem(shape: tuple[int, int, int]) -> None:
    features = features_of(*shape) + 2 * features_of(shape[0], 1, shape[2], seed=1)
    assert lidar(features) == pytest.approx(lidar_by_scipy(features.double().numpy()), rel=1e-5)


def test_lidar_where_it_is_known() -> None:
    simplex = torch.eye(8)[:, None].expand(-1, 4, -1)  # 8 images in 7 dimensions, whose views are all the same
    assert lidar(simplex) == pytest.approx(7, abs=1e-3)
    line = torch.linspace(-1, 1, 9)[:, None, None] * torch.ones(1, 4, 5)
    assert lidar(line) == pytest.approx(1, abs=1e-3)
    # Two directions of one spread between images, in one of which views spread too: that one hardly counts.
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])[:, None].repeat(1, 2, 1)
    corners[:, 0, 1] += 3
    corners[:, 1, 1] -= 3
    assert lidar(corners) == pytest.approx(1, abs=1e-3)


def test_alignment_and_uniformity_are_wang_and_isolas() -> None:
    one, other = features_of(50, 6), features_of(50, 6, seed=2)
    units = [each.double().numpy() / np.linalg.norm(each.double().numpy(), axis=1)[:, None] for each in (one, other)]
    assert alignment(one, other) == pytest.approx(np.mean(((units[0] - units[1]) ** 2).sum(1)), rel=1e-5)
    assert alignment(one, 3 * one) == pytest.approx(0, abs=1e-12)
    assert alignment(one, -one) == pytest.approx(4)
    assert uniformity(one) == pytest.approx(np.log(np.mean(np.exp(-2 * pdist(units[0]) ** 2))), rel=1e-5)


def test_uniformity_is_the_same_however_many_rows_are_compared_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    features = features_of(70, 6)
    whole = uniformity(features)
    monkeypatch.setattr("bench.evaluate.label_free.ROWS", 16)
    assert uniformity(features) == pytest.approx(whole, rel=1e-12)


def test_uniformity_where_it_is_known() -> None:
    assert uniformity(torch.ones(30, 4)) == pytest.approx(0, abs=1e-9)
    assert uniformity(torch.zeros(30, 4)) == pytest.approx(0, abs=1e-9), "features that are all 0 are all the same"
    sphere = torch.randn(3000, 3, generator=torch.Generator().manual_seed(0))
    # On the sphere in three dimensions the cosine is uniform: E exp(-4 (1 - cos)) = (1 - exp(-8)) / 8.
    assert uniformity(sphere) == pytest.approx(math.log((1 - math.exp(-8)) / 8), abs=0.01)


class Constant(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.ones(len(images), 5) + 0 * images.mean()


def test_features_that_are_all_the_same() -> None:
    subject = subject_of(Constant(), patterns(20), patterns(9))
    values = label_free(subject, LabelFree(images=6, views=3)).values
    expected = {"RankMe": 1, "LiDAR": 1, "alignment": 0, "uniformity": 0}
    assert values == pytest.approx(expected, abs=1e-4)


def test_each_of_the_first_images_has_its_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven images, three at a time: by the harness's own views, of a batch of six and of one."""
    monkeypatch.setattr("bench.evaluate.label_free.BATCH", 12)
    train = patterns(20)
    train.images[:] = np.arange(20)[:, None, None, None] * 12  # all pixels of an image are its number

    class Grey(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            return images.mean(dim=(2, 3))

    subject = subject_of(Grey(), train, patterns(9))
    monkeypatch.setattr("bench.evaluate.label_free.View", lambda: View(jitter=0, grey=0))
    features = view_features(subject, LabelFree(images=7, views=4))
    assert features.shape == (7, 4, 3)
    numbers = ((features[:, :, 0] * 0.229 + 0.485) * 255 / 12).round()
    assert sorted(numbers[:, 0].tolist()) == list(range(7))
    assert torch.equal(numbers, numbers[:, :1].expand(-1, 4)), "the views of a row are those of one image"


def test_the_values_are_those_of_the_cells_images_and_views() -> None:
    train, test = patterns(20), patterns(30, seed=1)
    subject = subject_of(Pooled(), train, test)
    values = label_free(subject, LabelFree(images=12, views=3)).values
    order = Part(torch.arange(12), 12, derive(3, "label-free", 12))
    ((index, images),) = subject.images.train.batches((View(),) * 3, order, range(1))
    assert sorted(index.tolist()) == list(range(12))
    views = torch.stack([Pooled()(each) for each in images], dim=1).double().numpy()
    unit = views / np.linalg.norm(views, axis=2)[:, :, None]
    features = subject.features.test.double().numpy()
    singular = np.linalg.svd(features, compute_uv=False)
    assert values["RankMe"] == pytest.approx(number_of(singular), rel=1e-4)
    assert values["LiDAR"] == pytest.approx(lidar_by_scipy(views), rel=1e-4)
    assert values["alignment"] == pytest.approx(((unit[:, 0] - unit[:, 1]) ** 2).sum(1).mean(), rel=1e-5)
    assert values["uniformity"] == pytest.approx(uniformity(subject.features.test))
    assert list(values) == ["RankMe", "LiDAR", "alignment", "uniformity"]
    assert label_free(subject, LabelFree(images=12, views=3)).values == values
    assert label_free(subject, LabelFree(images=1000, views=3)).values["RankMe"] == values["RankMe"]


def test_features_of_views_that_are_no_numbers_are_refused() -> None:
    class Infinite(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1) / 0

    with pytest.raises(TrainingError, match=r"^the backbone's features of augmented images are not finite numbers$"):
        view_features(subject_of(Infinite(), patterns(6), patterns(6)), LabelFree(images=4, views=2))
