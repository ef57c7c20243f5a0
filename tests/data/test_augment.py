"""`bench.data.augment` against torchvision, scipy and lightly."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as F
from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform
from lightly.transforms.solarize import RandomSolarization
from PIL import Image
from scipy import ndimage, stats
from sklearn.datasets import load_sample_image
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.v2 import functional as F2

from bench.core.device import threads
from bench.data import augment as views
from bench.data import resample
from bench.data.augment import MEAN, STD, View, normalise

PLAIN = View(jitter=0, grey=0)  # crop and flip only
EVERYTHING = View(jitter=0.8, grey=0.3, blur=0.5, solarise=0.3)
SMALLEST_P = 0.005


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """torchvision and lightly draw from the global generators."""
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        np.random.seed(0)
        yield
    np.random.set_state(state)


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed))


def augment(images: Tensor, view: View, size: int, draw: Generator) -> Tensor:
    """Return one view of each image."""
    return views.augment([images], [view], size, draw)[0]


def colours(count: int = 48) -> Tensor:
    """Random colours, and those where RGB -> HSV has its cases: greys, primaries, ties, near-greys."""
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0])] * 3)
    greys = torch.linspace(0, 1, 9)[:, None] + torch.tensor([0.0, 1e-7, 1e-3])
    special = torch.cat([corners, greys.clamp(max=1)]).T.reshape(1, 3, 6, 6).expand(count, -1, -1, -1)
    return torch.cat([special, torch.rand(count, 3, 6, 6, generator=generator())], dim=2)


def assert_same_law(a: np.ndarray, b: np.ndarray) -> None:
    assert stats.ks_2samp(a, b, method="asymp").pvalue > SMALLEST_P


def draws_for(images: Tensor, view: View, seed: int = 0) -> views.Draws:
    return views.draw(len(images), *images.shape[2:], view, generator(seed))


def cropped(image: Tensor, box: Tensor, flip: Tensor, size: int) -> Tensor:
    crop = F.resized_crop(image.float() / 255, *box.tolist(), [size, size], antialias=True)
    return F.hflip(crop) if flip else crop


def blurred(image: Tensor, sigma: float) -> Tensor:
    smooth = ndimage.gaussian_filter(image.double().numpy(), sigma, axes=(1, 2), mode="nearest", truncate=8)
    return torch.from_numpy(smooth).float()


def reference(image: Tensor, draws: views.Draws, sample: int, size: int) -> Tensor:
    """One sample of `_apply`, by torchvision and scipy."""
    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    view = cropped(image, draws.boxes[sample], draws.flip[sample], size)
    for operation in draws.order[sample].tolist():
        if operation < 4:
            view = adjust[operation](view, draws.factors[sample, operation].item())
    if draws.grey[sample]:
        view = F.rgb_to_grayscale(view, 3)
    if draws.blur[sample]:
        view = blurred(view, draws.sigma[sample].item())
    if draws.solarise[sample]:
        view = F.solarize(view.clamp(0, 1), 0.5)
    return F.normalize(view, MEAN, STD)


@pytest.mark.parametrize(("height", "width", "size"), [(40, 56, 32), (32, 32, 32), (8, 8, 16), (97, 61, 24)])
def test_crop_flip_and_resize_are_those_of_torchvision(height: int, width: int, size: int) -> None:
    images = noise(40, 3, height, width)
    draws = draws_for(images, PLAIN)
    assert 0 < draws.flip.sum() < 40
    expected = [cropped(*sample, size) for sample in zip(images, draws.boxes, draws.flip, strict=True)]
    torch.testing.assert_close(views.apply(images, draws, size), normalise(torch.stack(expected)), rtol=0, atol=3e-5)
    weights = resample.interpolation(draws.boxes[:, 0].float(), draws.boxes[:, 2].float(), height, size)
    torch.testing.assert_close(weights.sum(2), torch.ones(40, size))


def test_a_crop_never_reads_outside_its_box() -> None:
    images = noise(30, 3, 20, 24)
    draws = draws_for(images, View(crop=(0.05, 0.5)))
    results = []
    for outside in (0, 255):
        surrounded = torch.full_like(images, outside)
        for around, image, (top, left, height, width) in zip(surrounded, images, draws.boxes, strict=True):
            box = (slice(None), slice(top, top + height), slice(left, left + width))
            around[box] = image[box]
        results.append(views.apply(surrounded, draws, 16))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("height", "width", "share"), [(37, 50, (0.08, 1.0)), (32, 32, (0.2, 1.0)), (20, 60, (0.3, 0.9))]
)
def test_boxes_follow_the_law_of_torchvision(height: int, width: int, share: tuple[float, float]) -> None:
    ours = resample.crop_boxes(4000, height, width, share, generator()).double().numpy()
    image = torch.empty(3, height, width)
    params = [T.RandomResizedCrop.get_params(image, list(share), [3 / 4, 4 / 3]) for _ in range(4000)]
    theirs = np.array(params, dtype=float)

    def statistics(boxes: np.ndarray) -> list[np.ndarray]:
        top, left, h, w = boxes.T
        return [h * w, np.log(w / h), top, left, height - h - top, width - w - left]

    for a, b in zip(statistics(ours), statistics(theirs), strict=True):
        assert_same_law(a, b)


@pytest.mark.parametrize(("height", "width"), [(10, 100), (100, 10), (9, 32), (33, 7)])
def test_boxes_fall_back_to_the_centre(height: int, width: int) -> None:
    expected = T.RandomResizedCrop.get_params(torch.empty(3, height, width), [0.95, 1.0], [3 / 4, 4 / 3])
    assert resample.crop_boxes(5, height, width, (0.95, 1.0), generator()).tolist() == [list(expected)] * 5


@pytest.mark.parametrize("library", [F, F2])
@pytest.mark.parametrize("position", range(4))
def test_each_jitter_operation_is_that_of_torchvision(library: object, position: int) -> None:
    operation = views.JITTER[position]
    name = operation.__name__.removeprefix("_")
    images = colours()
    view = View(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.5)
    factors = draws_for(images, view).factors[:, position]
    ours = images.clone()
    operation(ours, factors[:, None, None, None])
    adjust = getattr(library, f"adjust_{name}")
    theirs = [adjust(image, factor) for image, factor in zip(images, factors.tolist(), strict=True)]
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=0, atol=1e-6)


def test_jitter_factors_are_uniform_on_torchvisions_spans() -> None:
    view = View(brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1)
    jitter = T.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)
    draws = views.draw(5000, 32, 32, view, generator())
    spans = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    for values, (low, high) in zip((*draws.factors.T, draws.sigma), (*spans, (0.1, 2.0)), strict=True):
        assert stats.kstest(values.numpy(), stats.uniform(low, high - low).cdf).pvalue > SMALLEST_P


def test_order_of_jitter_is_uniform_over_permutations() -> None:
    order = views.draw(24_000, 32, 32, View(jitter=1), generator()).order
    counts = Counter(map(tuple, order.tolist()))
    assert len(counts) == math.factorial(4)
    assert stats.chisquare(list(counts.values())).pvalue > SMALLEST_P


@pytest.mark.parametrize("name", ["flip", "jitter", "grey", "blur", "solarise"])
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_frequencies(name: str, probability: float) -> None:
    draws = views.draw(5000, 32, 32, View(**{name: probability}), generator())
    happened = draws.order[:, 0] < 4 if name == "jitter" else getattr(draws, name)
    assert stats.binomtest(int(happened.sum()), 5000, probability).pvalue > SMALLEST_P


def test_events_are_independent() -> None:
    view = View(flip=0.5, jitter=0.5, grey=0.5, blur=0.5, solarise=0.5)
    draws = views.draw(20_000, 32, 32, view, generator())
    events = [draws.flip, draws.order[:, 0] < 4, draws.grey, draws.blur, draws.solarise]
    correlation = torch.corrcoef(torch.stack([*events, *draws.factors.T, draws.sigma, *draws.boxes.T]))[:10]
    assert correlation.fill_diagonal_(0).abs().max() < 4 / math.sqrt(20_000)


def test_blur_is_a_gaussian_with_replicated_edges() -> None:
    images = torch.rand(12, 3, 20, 20, generator=generator())
    sigma = torch.linspace(0.1, 2, 12)
    weights = resample.gaussian(sigma, 20)
    expected = [blurred(image, s) for image, s in zip(images, sigma.tolist(), strict=True)]
    torch.testing.assert_close(resample.resample(images, weights, weights), torch.stack(expected), rtol=0, atol=1e-6)


def test_solarise_inverts_the_values_that_lightly_inverts() -> None:
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    view = View(crop=(1, 1), flip=0, jitter=0, grey=0, solarise=1)
    draws = draws_for(ramp, view)._replace(boxes=torch.tensor([[0, 0, 16, 16]]))
    pil = RandomSolarization(prob=1)(Image.fromarray(ramp[0].permute(1, 2, 0).numpy()))
    expected = F.normalize(F.to_tensor(pil), MEAN, STD)
    torch.testing.assert_close(views.apply(ramp, draws, 16)[0], expected, rtol=0, atol=1e-5)


def test_the_whole_pipeline_is_that_of_torchvision_sample_by_sample() -> None:
    images = noise(64, 3, 30, 36)
    draws = draws_for(images, EVERYTHING)
    # A value within rounding of the threshold may fall on either side of it, here and there.
    expected = torch.stack([reference(image, draws, n, 16) for n, image in enumerate(images)])
    wrong = (views.apply(images, draws, 16) - expected).abs() > 5e-5
    assert wrong.double().mean() < 1e-4


def test_augment_is_its_draws_applied_whatever_the_pieces() -> None:
    images = noise(200, 3, 32, 32)
    assert images.numel() > 2 * views.PIECE
    whole = views.apply(images, draws_for(images, EVERYTHING), 32)
    torch.testing.assert_close(augment(images, EVERYTHING, 32, generator()), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("view", "transform"),
    [
        (View(), BYOLView1Transform(input_size=32, gaussian_blur=0.0)),
        (View(blur=0.1, solarise=0.2), BYOLView2Transform(input_size=32)),
    ],
)
@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_views_are_distributed_as_those_of_lightly(name: str, view: View, transform: object) -> None:
    count = 1000
    photo = load_sample_image(name)[100:400, 150:450]
    pil = Image.fromarray(photo).resize((32, 32))
    batch = torch.from_numpy(np.array(pil)).permute(2, 0, 1).expand(count, -1, -1, -1)
    ours = augment(batch, view, 32, generator())
    theirs = torch.stack([transform(pil) for _ in range(count)])  # type: ignore[operator]
    for statistic in (lambda x: x.mean((2, 3)), lambda x: x.std((2, 3)), lambda x: x[:, :, 16, 5]):
        for a, b in zip(statistic(ours).T, statistic(theirs).T, strict=True):
            assert_same_law(a.numpy(), b.numpy())


def test_result_is_normalised_floats_in_channels_last() -> None:
    result = augment(noise(5, 3, 20, 30), EVERYTHING, 16, generator())
    assert result.shape == (5, 3, 16, 16)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_a_seed_decides_everything() -> None:
    images = noise(40, 3, 32, 32)
    before = images.clone()
    first = augment(images, EVERYTHING, 32, generator(1))
    assert torch.equal(images, before)
    assert torch.equal(first, augment(images, EVERYTHING, 32, generator(1)))
    packed = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(first, augment(packed, EVERYTHING, 32, generator(1)))
    assert not torch.equal(first, augment(images, EVERYTHING, 32, generator(2)))


def test_threads_do_not_change_a_view() -> None:
    images, results = noise(64, 3, 32, 32), []
    for count in (1, 2):
        with threads(count):
            results.append(augment(images, EVERYTHING, 32, generator()))
            assert torch.get_num_threads() == count  # as before: the passes that follow want them all
    assert torch.equal(*results)


def test_nothing_waits_for_the_device() -> None:
    """A meta tensor has no values: whatever reads one back to the host raises."""
    images = noise(8, 3, 20, 20).to("meta")
    assert augment(images, EVERYTHING, 16, generator()).device.type == "meta"
    assert resample.resize(images, 16).device.type == "meta"


@pytest.mark.parametrize("how", ["in_pieces", "together"])  # on a CPU, elsewhere
def test_several_views_are_those_made_one_by_one(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, laws, draw = [noise(24, 3, 32, 40, seed=seed) for seed in (0, 1)], [EVERYTHING, PLAIN], generator()
    one_by_one = [augment(each, law, 20, draw) for each, law in zip(images, laws, strict=True)]
    monkeypatch.setattr(views, "in_pieces", getattr(views, how))
    for ours, expected in zip(views.augment(images, laws, 20, generator()), one_by_one, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
        assert ours.is_contiguous(memory_format=torch.channels_last)


def test_a_local_view_is_smaller_and_otherwise_a_view_as_any() -> None:
    images, local = noise(8, 3, 32, 32), replace(EVERYTHING, size=96 / 224)
    laws = [PLAIN, local, local, PLAIN]
    made = views.augment([images] * 4, laws, 32, generator())
    assert [tuple(each.shape[2:]) for each in made] == [(32, 32), (12, 12), (12, 12), (32, 32)]
    draw = generator()
    for ours, law in zip(made, laws, strict=True):
        alone = augment(images, replace(law, size=1.0), law.pixels(32), draw)
        torch.testing.assert_close(ours, alone, rtol=0, atol=1e-6)
    assert [replace(local, size=96 / 224).pixels(size) for size in (224, 64, 32, 16, 8)] == [96, 28, 12, 8, 4]


def test_on_a_device_two_views_take_no_more_operations_than_one() -> None:
    counts, images = [], noise(64, 3, 20, 20).to("meta")
    for count in (1, 2):
        with Operations() as seen:
            views.augment([images] * count, [EVERYTHING] * count, 16, generator())
        counts.append(seen.on_device)
    assert 0 < counts[1] <= counts[0] + 2
    assert seen.copies == 1, "of all that was drawn for both views"


class Operations(TorchDispatchMode):
    """Counts the operations whose results are on the meta device, and those of them that send something there."""

    on_device = copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.on_device += isinstance(made, Tensor) and made.device.type == "meta"
        self.copies += func._schema.name == "aten::_to_copy" and args[0].device != made.device
        return made


@pytest.mark.cuda
def test_cuda_gives_the_views_of_the_cpu() -> None:
    images = noise(64, 3, 40, 40)
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_device = augment(images.pin_memory().cuda(non_blocking=True), EVERYTHING, 32, generator())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    wrong = (on_device.cpu() - augment(images, EVERYTHING, 32, generator())).abs() > 1e-4
    assert wrong.double().mean() < 1e-4


@pytest.mark.parametrize(
    ("height", "width", "shorter", "size"),
    [
        *((40, 60, 32, 32), (60, 40, 32, 32), (8, 8, 16, 16), (33, 47, 20, 20), (32, 32, 32, 32), (9, 20, 13, 13)),
        *((333, 500, 256, 224), (500, 375, 256, 224), (224, 224, 256, 224), (256, 300, 256, 224), (61, 47, 40, 33)),
    ],
)
def test_resize_is_that_of_torchvision(height: int, width: int, shorter: int, size: int) -> None:
    images = noise(2, 3, height, width)
    transform = T.Compose([T.Resize(shorter, antialias=True), T.CenterCrop(size)])
    ours = resample.resize(images, size, shorter)
    torch.testing.assert_close(ours, transform(images.float() / 255), rtol=0, atol=2e-5)
    pil = transform(Image.fromarray(images[0].permute(1, 2, 0).numpy()))
    torch.testing.assert_close(ours[0], F.to_tensor(pil), rtol=0, atol=1.5 / 255)


def test_normalise_is_that_of_torchvision_and_leaves_its_input() -> None:
    images = torch.rand(4, 3, 6, 8, generator=generator())
    before = images.clone()
    result = normalise(images)
    torch.testing.assert_close(result, F.normalize(before, MEAN, STD), rtol=0, atol=2e-6)
    assert torch.equal(images, before)
    assert result.is_contiguous(memory_format=torch.channels_last)
