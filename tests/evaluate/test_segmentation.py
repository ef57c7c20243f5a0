"""Segmentation of a dozen stand-in images in the layout of Pascal VOC, and IoU from a confusion matrix by hand."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from bench.core.errors import MissingError, TrainingError, UserError
from bench.evaluate.segmentation import feature_maps, read_scenes, scores, segmentation
from bench.evaluate.subject import Subject
from bench.grid.evaluation import Segmentation
from bench.models.backbones import build_backbone
from tests.evaluate.subjects import patterns, subject_of

CAT = 8  # a class: what is bright in the images that this file writes
TRAIN, VAL = 8, 4


def write_voc(root: Path) -> Path:
    """Dark images with a bright square somewhere, whose rim is void; palette PNGs, as VOC's are."""
    folder, draw = root / "VOCdevkit" / "VOC2012", np.random.default_rng(0)
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    names = {"train": [f"train{i}" for i in range(TRAIN)], "val": [f"val{i}" for i in range(VAL)]}
    for part, listed in names.items():
        (folder / "ImageSets/Segmentation" / f"{part}.txt").write_text("\n".join(listed) + "\n")
        for name in listed:
            height, width = draw.integers(48, 80, 2)
            y, x = draw.integers(0, 16, 2)
            pixels = draw.integers(0, 60, (height, width, 3))
            pixels[y : y + 32, x : x + 32] += 190
            classes = np.zeros((height, width), np.uint8)
            classes[y : y + 32, x : x + 32] = 255
            classes[y + 1 : y + 31, x + 1 : x + 31] = CAT
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
            mask = Image.fromarray(classes).convert("P")  # which keeps the numbers of greys
            mask.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
            mask.save(folder / "SegmentationClass" / f"{name}.png")
    return folder


def subject_with(backbone: nn.Module, data: Path) -> Subject:
    return subject_of(backbone, patterns(6), patterns(6), data=data)


def small_resnet() -> nn.Module:
    torch.manual_seed(0)
    return build_backbone("resnet_tiny", 32).module


@pytest.mark.parametrize("name", ["resnet_tiny", "vit_micro"])
def test_a_bright_square_is_found(name: str, tmp_path: Path) -> None:
    write_voc(tmp_path)
    torch.manual_seed(0)
    backbone = build_backbone(name, 32).module
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    subject = subject_with(backbone, tmp_path)
    settings = Segmentation(size=32, epochs=15, batch_size=4, lr=1e-2)
    found = segmentation(subject, settings)
    assert set(found.values) == {"mean IoU", "pixel accuracy"}
    assert 0.6 < found.values["mean IoU"] < found.values["pixel accuracy"] <= 1
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items()), "it is frozen"
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert segmentation(subject, settings).values == found.values
    again = segmentation(subject, settings.model_copy(update={"epochs": 30}))
    assert found.flops
    assert again.flops == 2 * found.flops
    assert again.data == found.data


def test_a_rehearsal_is_one_epoch_of_few_images(tmp_path: Path) -> None:
    folder = write_voc(tmp_path)
    settings = Segmentation().rehearsed()
    assert (settings.epochs, settings.images) == (1, 4)
    subject = subject_with(small_resnet(), tmp_path)
    found = segmentation(subject, settings)
    assert all(0 <= value <= 1 for value in found.values.values())
    read = read_scenes(subject, settings, "train")
    assert read.images.shape == (4, 3, settings.size, settings.size)
    (folder / "JPEGImages" / "train7.jpg").unlink()  # which the first four are without
    assert segmentation(subject, settings) == found
    Image.new("RGB", (50, 50)).save(folder / "JPEGImages" / "val1.jpg")
    assert segmentation(subject, settings).data != found.data


def test_images_are_squares_and_classes_stay_classes(tmp_path: Path) -> None:
    folder = write_voc(tmp_path)
    read = read_scenes(subject_with(small_resnet(), tmp_path), Segmentation(size=24), "val")
    assert read.images.shape == (VAL, 3, 24, 24)
    assert read.images.dtype == torch.uint8
    assert set(read.classes.unique().tolist()) == {0, CAT, 255}
    sha = hashlib.sha256()
    for index in range(VAL):
        image, mask = folder / "JPEGImages" / f"val{index}.jpg", folder / "SegmentationClass" / f"val{index}.png"
        with Image.open(image) as opened:
            expected = np.asarray(opened.convert("RGB").resize((24, 24), Image.Resampling.BILINEAR))
        assert np.array_equal(read.images[index].permute(1, 2, 0), expected)
        with Image.open(mask) as opened:
            whole = np.asarray(opened)
        at = [np.floor((np.arange(24) + 0.5) * side / 24).astype(int) for side in whole.shape]
        assert np.array_equal(read.classes[index], whole[np.ix_(*at)])
        sha.update(image.read_bytes() + mask.read_bytes())
    assert read.digest == sha.hexdigest()


def test_scores_of_a_confusion_matrix() -> None:
    """Three classes are there, one of which is never found; a fourth is found and not there; 17 are neither."""
    confusion = torch.zeros(21, 21, dtype=torch.int64)
    confusion[0, 0], confusion[0, 1], confusion[1, 1], confusion[1, 0] = 50, 10, 20, 5
    confusion[2, 0], confusion[1, 3] = 4, 1
    iou = [50 / (50 + 10 + 5 + 4), 20 / (20 + 10 + 5 + 1), 0, 0]
    assert scores(confusion) == pytest.approx({"mean IoU": sum(iou) / 4, "pixel accuracy": 70 / 90})


def test_void_pixels_count_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that says background everywhere is right on all background, and wrong on all of the square."""
    write_voc(tmp_path)
    subject, settings = subject_with(small_resnet(), tmp_path), Segmentation(size=32, epochs=1, batch_size=3)

    class Background(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.none = nn.Parameter(torch.zeros(()))

        def forward(self, maps: Tensor) -> Tensor:
            here = torch.zeros(len(maps), 21, *maps.shape[2:])
            here[:, 0] = 1
            return here + self.none

    monkeypatch.setattr("bench.evaluate.segmentation._head", lambda dim: Background())
    classes = read_scenes(subject, settings, "val").classes
    dark, bright = int((classes == 0).sum()), int((classes == CAT).sum())
    assert dark + bright < classes.numel()
    share = dark / (dark + bright)
    expected = {"mean IoU": share / 2, "pixel accuracy": share}
    assert segmentation(subject, settings).values == pytest.approx(expected)


def test_the_loss_is_of_the_pixels_that_have_a_class(tmp_path: Path) -> None:
    folder = write_voc(tmp_path)
    for path in (folder / "SegmentationClass").glob("train*.png"):
        with Image.open(path) as mask:
            void = mask.point(lambda index: 255)
        void.save(path)
    with pytest.raises(TrainingError, match=r"^the loss is nan after training for segmentation$"):
        segmentation(subject_with(small_resnet(), tmp_path), Segmentation(size=32, epochs=1))


@pytest.mark.parametrize("part", ["all", "val"])
def test_missing_images_are_one_sentence(part: str, tmp_path: Path) -> None:
    if part == "val":
        (write_voc(tmp_path) / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(MissingError) as raised:
        segmentation(subject_with(small_resnet(), tmp_path), Segmentation(size=32, epochs=1))
    text = str(raised.value)
    assert text.startswith(f"the {'train' if part == 'all' else 'val'} images of Pascal VOC 2012 are not in {tmp_path}")
    assert "VOCdevkit/VOC2012: download http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012" in text
    assert text.endswith(f"and unpack it in {tmp_path}")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet18", (512, 2, 2)),
        ("resnet18_cifar", (512, 8, 8)),
        ("resnet_small", (128, 8, 8)),
        ("resnet_tiny", (96, 8, 8)),
        ("vit_micro", (96, 16, 16)),
    ],
)
def test_maps_have_the_features_that_a_backbone_pools(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, 64).module.eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        maps = feature_maps(backbone, name)(images)
        assert maps.shape == (2, *shape)
        torch.testing.assert_close(maps.mean(dim=(2, 3)), backbone(images))


def test_a_patch_is_in_its_place() -> None:
    """What changes in one corner of an image changes most there."""
    torch.manual_seed(0)
    backbone = build_backbone("vit_micro", 32).module.eval()
    images = torch.zeros(1, 3, 32, 24)
    changed = images.clone()
    changed[:, :, -4:, :4] = 3
    with torch.no_grad():
        apart = (feature_maps(backbone, "")(changed) - feature_maps(backbone, "")(images)).square().sum(dim=1)[0]
    assert apart.shape == (8, 6)
    assert divmod(int(apart.argmax()), 6) == (7, 0)


def test_a_backbone_without_maps_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    subject = subject_with(nn.Flatten(), tmp_path)
    with pytest.raises(UserError, match=r"^segmentation needs feature maps, and backbone 'made_up' has none that are"):
        segmentation(subject, Segmentation())
