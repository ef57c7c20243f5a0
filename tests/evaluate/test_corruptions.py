"""Each corruption against what scipy, PIL, colorsys or a plain loop makes of the same image."""

import colorsys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats
from torch import Generator, Tensor

from bench.core.seeds import generator
from bench.data import Split, balanced_part
from bench.data.augment import EvalView, normalise
from bench.evaluate.corruptions import CORRUPTIONS, corruptions, disc, plain_images, spoiler
from bench.evaluate.linear_probe import classifier
from bench.grid.evaluation import Corruptions
from tests.evaluate.subjects import Floats, Pooled, patterns, source_of, subject_of

# Numbers of each severity, copied once more from the tables of the public code.
SMALL = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
}
LARGE = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": (60, 25, 12, 5, 3),
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
    "speckle_noise": (0.15, 0.2, 0.35, 0.45, 0.6),
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "gaussian_blur": (1, 2, 3, 4, 6),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
}


def scene(size: int, count: int = 2) -> Tensor:
    """Smooth, pale images with black, white and grey pixels in them: float32 (count, 3, size, size)."""
    draw = np.random.default_rng(size)
    rough = draw.uniform(0, 1, (count, 3, size, size))
    images = ndimage.gaussian_filter(rough, (0, 0.7, 1, 1)) * 0.8 + 0.1
    images[:, :, 0, :3] = np.array([0.0, 1.0, 0.5])
    return torch.from_numpy(images).float()


def uniform(images: Tensor, draw: Generator) -> Floats:
    return torch.rand(images.shape, generator=draw).double().numpy()


def normal(images: Tensor, draw: Generator) -> Floats:
    return torch.randn(images.shape, generator=draw).double().numpy()


def shot(images: Tensor, draw: Generator, photons: float) -> Floats:
    return stats.poisson.ppf(uniform(images, draw), photons * images.double().numpy()).clip(0) / photons


def impulse(images: Tensor, draw: Generator, amount: float) -> Floats:
    made = images.double().numpy().copy()
    share = uniform(images, draw)
    for place in np.ndindex(made.shape):
        made[place] = 0 if share[place] < amount / 2 else 1 if share[place] >= 1 - amount / 2 else made[place]
    return made


def defocus(images: Tensor, draw: Generator, radius: float, soft: float) -> Floats:
    """A disc on a large grid, made soft and laid over the images by scipy; its mirror is numpy's `reflect`."""
    place = np.arange(-16, 17)
    inside = (place[:, None] ** 2 + place**2 <= radius**2).astype(float)
    taps = np.exp(-(np.arange(-2, 3.0) ** 2) / (2 * soft**2)) if radius > 8 else np.zeros(5)
    taps[1:4] = np.exp(-(np.arange(-1, 2.0) ** 2) / (2 * soft**2))
    taps /= taps.sum()
    kernel = ndimage.convolve(inside / inside.sum(), np.outer(taps, taps), mode="constant")
    planes = [[ndimage.correlate(c, kernel, mode="mirror") for c in image] for image in images.double().numpy()]
    return np.array(planes)


def blurred(images: Tensor, draw: Generator, sigma: float) -> Floats:
    return ndimage.gaussian_filter(images.double().numpy(), (0, 0, sigma, sigma), mode="nearest")


def by_hsv(change: Callable[..., tuple[float, float, float]]) -> Callable[..., Floats]:
    """Pixel by pixel through HSV."""

    def changed(images: Tensor, draw: Generator, *amounts: float) -> Floats:
        made = images.double().numpy().copy()
        for b, y, x in np.ndindex(made.shape[0], *made.shape[2:]):
            made[b, :, y, x] = colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*made[b, :, y, x]), *amounts))
        return made

    return changed


def contrasted(images: Tensor, draw: Generator, factor: float) -> Floats:
    given = images.double().numpy()
    means = np.array([[c.mean() for c in image] for image in given])[:, :, None, None]
    return factor * given + (1 - factor) * means


def pixelated(images: Tensor, draw: Generator, share: float) -> Floats:
    size = images.shape[-1]
    few = int(size * share)

    def once(plane: Floats) -> Floats:
        small = Image.fromarray(plane.astype(np.float32)).resize((few, few), Image.Resampling.BOX)
        return np.array(small.resize((size, size), Image.Resampling.BOX), dtype=np.float64)

    return np.array([[once(c) for c in image] for image in images.double().numpy()])


EXPECTED: dict[str, Callable[..., Floats]] = {
    "gaussian_noise": lambda images, draw, scale: images.double().numpy() + scale * normal(images, draw),
    "shot_noise": shot,
    "impulse_noise": impulse,
    "speckle_noise": lambda images, draw, scale: images.double().numpy() * (1 + scale * normal(images, draw)),
    "defocus_blur": defocus,
    "gaussian_blur": blurred,
    "brightness": by_hsv(lambda h, s, v, more: (h, s, min(v + more, 1))),
    "contrast": contrasted,
    "saturate": by_hsv(lambda h, s, v, factor, more: (h, min(s * factor + more, 1), v)),
    "pixelate": pixelated,
}


@pytest.mark.parametrize("size", [32, 72])
@pytest.mark.parametrize("kind", EXPECTED)
def test_a_corruption_is_its_formula_at_each_severity(kind: str, size: int) -> None:
    images = scene(size)
    assert list(CORRUPTIONS) == list(SMALL)
    for severity, amount in enumerate((SMALL if size == 32 else LARGE)[kind], start=1):
        amounts = amount if isinstance(amount, tuple) else (amount,)
        expected = EXPECTED[kind](images, generator(7, kind), *amounts).clip(0, 1)
        made = spoiler(kind, severity, generator(7, kind))(images).double().numpy()
        apart = np.abs(made - expected)
        if kind == "shot_noise":  # a share may lie between two counts by less than float32 tells apart
            assert (apart > 1e-6).mean() < 1e-3
            assert apart.max() < 1.1 / amount
        else:
            assert apart.max() < 3e-5


def test_images_of_up_to_64_pixels_are_small() -> None:
    images = scene(65, count=1)
    cut = images[:, :, :64, :64]
    for each, amount in ((images, 0.1), (cut, 0.05)):
        made = spoiler("brightness", 1, generator(0))(each)
        assert float((made - each).amax()) == pytest.approx(amount, abs=1e-5)


@pytest.mark.parametrize("size", [32, 72])
@pytest.mark.parametrize("kind", EXPECTED)
def test_the_fifth_severity_changes_more_than_the_first_and_leaves_values_in_range(kind: str, size: int) -> None:
    images = scene(size)
    given = images.clone()
    made = [spoiler(kind, severity, generator(1, kind))(images) for severity in (1, 5)]
    changes = [float((each - images).square().mean()) for each in made]
    assert 0 < changes[0] < changes[1]
    assert all(float(each.min()) >= 0 and float(each.max()) <= 1 for each in made)
    assert torch.equal(images, given), "the clean images are as they were"


@pytest.mark.parametrize("kind", EXPECTED)
def test_random_numbers_follow_from_the_seed_alone(kind: str) -> None:
    images = scene(16)
    one, same, other = (spoiler(kind, 3, generator(seed, kind))(images) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert torch.equal(one, other) == (not kind.endswith("noise"))
    draw = generator(0, kind)
    batches = [spoiler(kind, 3, draw)(images) for _ in range(2)]
    assert torch.equal(*batches) == (not kind.endswith("noise")), "no two batches meet the same noise"


def test_a_disc_has_all_the_light() -> None:
    for radius, soft in (*SMALL["defocus_blur"], *LARGE["defocus_blur"]):
        kernel = disc(radius, soft)
        assert float(kernel.sum()) == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(kernel, kernel.flip(0).T)


def test_plain_images_are_those_before_they_are_normalised() -> None:
    split = patterns(600)  # of more than one batch
    index = torch.tensor([0, 3, 511, 512, 599])
    found = plain_images(source_of(split), EvalView(8), index)
    assert torch.equal(found, torch.from_numpy(split.images[index.numpy()]).float().div(255))


def test_accuracies_are_those_of_the_clean_probe_and_the_mean_is_over_ten_kinds() -> None:
    train, test = patterns(60), patterns(40, seed=1)
    subject = subject_of(Pooled(), train, test)
    values = corruptions(subject, Corruptions(images=21)).values
    chosen = balanced_part(test.labels, 21)
    scores = classifier(subject.features, 3, subject.probe, seed=3)
    images, labels = torch.from_numpy(test.images[chosen]).float() / 255, torch.from_numpy(test.labels[chosen])

    def share(spoilt: Tensor) -> float:
        return float((scores(Pooled()(normalise(spoilt))).argmax(1) == labels).double().mean())

    by_kind = {}
    for kind in SMALL:
        draws = [generator(3, "corruption", kind, severity) for severity in range(1, 6)]
        by_kind[kind] = np.mean([share(spoiler(kind, s, d)(images)) for s, d in enumerate(draws, start=1)])
    assert {kind: values[kind] for kind in SMALL} == pytest.approx(by_kind)
    assert values["clean"] == share(images)
    assert values["mean"] == pytest.approx(np.mean(list(by_kind.values())))
    assert values["relative"] == pytest.approx(values["mean"] / values["clean"])
    assert set(values) == {"mean", "relative", "clean", *SMALL}
    assert 1 / 3 < values["mean"] < values["clean"] < 1, "the images are neither too easy nor too hard to tell"
    assert values == corruptions(subject, Corruptions(images=21)).values


def test_nothing_is_relative_to_no_right_image() -> None:
    train, test = patterns(60), patterns(4)
    subject = subject_of(Pooled(), train, test)
    predicted = classifier(subject.features, 3, subject.probe, seed=3)(subject.features.test).argmax(1)
    wrong = Split(test.images, ((predicted + 1) % 3).numpy())
    values = corruptions(subject_of(Pooled(), train, wrong), Corruptions(images=4)).values
    assert values["clean"] == 0
    assert set(values) == {"mean", "clean", *SMALL}


def test_a_rehearsal_takes_few_images_and_more_than_there_are_are_all() -> None:
    assert Corruptions().rehearsed().images == 4
    subject = subject_of(Pooled(), patterns(30), patterns(6, seed=2))
    assert corruptions(subject, Corruptions(images=1000)).values == corruptions(subject, Corruptions(images=6)).values
