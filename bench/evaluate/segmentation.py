"""Semantic segmentation of Pascal VOC 2012 by a head on the frozen backbone's feature maps.

As in ReLA's public code as far as that is known (an FCN head, Adam at 3e-4, 10 epochs in batches of 8 at 224 pixels).
Our choices: the backbone is frozen, as for the linear probe; an image is resized to a square, whatever its shape, and
not augmented; pixels are counted at that size; those marked as void count nowhere.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Resampling
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from bench.core.errors import MissingError, TrainingError, UserError
from bench.core.seeds import derive, generator
from bench.data.augment import normalise
from bench.evaluate.subject import Found, Subject
from bench.grid.evaluation import Segmentation
from bench.measure.flops import step_flops
from bench.models.backbones import CifarResNet
from methods.tokens import encode, patches

CLASSES = 21  # of Pascal VOC, the background among them
VOID = 255  # of pixels that have no class: the rims of objects
FOLDER = Path("VOCdevkit") / "VOC2012"
ARCHIVE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"

Maps = Callable[[Tensor], Tensor]  # from normalised images (B, 3, size, size) to feature maps (B, d, h, w)


def segmentation(subject: Subject, settings: Segmentation) -> Found:
    """Return mean IoU and pixel accuracy. Raises UserError without feature maps, MissingError without the images."""
    maps = feature_maps(subject.backbone, subject.task.cell.backbone)
    train, test = (read_scenes(subject, settings, part) for part in ("train", "val"))
    head, flops = _trained(subject, settings, maps, train)
    values = scores(_confusion(subject, settings, maps, head, test))
    return Found(values, flops, {"voc2012": hashlib.sha256(f"{train.digest}{test.digest}".encode()).hexdigest()[:16]})


def feature_maps(backbone: nn.Module, name: str) -> Maps:
    """Return what makes a backbone's last feature maps. Raises UserError where it is not known to have any."""
    from torchvision.models import ResNet

    if isinstance(backbone, VisionTransformer) and backbone.dynamic_img_size:
        return partial(_of_tokens, backbone)
    if isinstance(backbone, ResNet):
        return partial(_of_layer, backbone, "layer4")
    if isinstance(backbone, CifarResNet):
        return partial(_of_layer, backbone, f"layer{backbone.stages}")
    raise UserError(
        f"segmentation needs feature maps, and backbone {name!r} has none that are known: use a ResNet or a vision"
        " transformer (`list backbones`), or leave `segmentation` out"
    )


def _of_layer(backbone: nn.Module, layer: str, images: Tensor) -> Tensor:
    """Return what a layer makes of images."""
    made: list[Tensor] = []
    with backbone.get_submodule(layer).register_forward_hook(lambda module, given, output: made.append(output)):
        backbone(images)
    return made[0]


def _of_tokens(vit: VisionTransformer, images: Tensor) -> Tensor:
    """Return the patch tokens of a vision transformer as maps, in the places of their patches."""
    tokens = patches(vit, images)
    encoded = encode(vit, tokens)[:, vit.num_prefix_tokens :]
    return encoded.mT.reshape(len(images), -1, *tokens.shape[1:3])


@dataclass(frozen=True)
class Scenes:
    """Images uint8 (N, 3, size, size) and the class of each pixel, uint8 (N, size, size), on the host; their digest."""

    images: Tensor
    classes: Tensor
    digest: str


def read_scenes(subject: Subject, settings: Segmentation, part: str) -> Scenes:
    """Return the images of `train` or `val`. Raises MissingError when they are not here."""
    from torchvision.datasets import VOCSegmentation

    root, square = subject.paths.data, (settings.size, settings.size)
    try:
        data = VOCSegmentation(root, year="2012", image_set=part, download=False)
    except (OSError, RuntimeError) as error:
        raise MissingError(
            f"the {part} images of Pascal VOC 2012 are not in {root / FOLDER}: download {ARCHIVE} and unpack it in"
            f" {root}"
        ) from error
    sha, images, classes = hashlib.sha256(), [], []
    for index in range(min(settings.images or len(data), len(data))):
        subject.check()
        for path in (data.images[index], data.masks[index]):
            sha.update(Path(path).read_bytes())
        image, mask = data[index]  # whose palette says how to paint a class
        images.append(torch.from_numpy(np.array(image.resize(square, Resampling.BILINEAR)).transpose(2, 0, 1)))
        classes.append(torch.from_numpy(np.array(mask.resize(square, Resampling.NEAREST))))
    return Scenes(torch.stack(images), torch.stack(classes), sha.hexdigest())


def _trained(subject: Subject, settings: Segmentation, maps: Maps, scenes: Scenes) -> tuple[nn.Module, int]:
    """Return a trained head and the FLOPs of its training; an epoch's last, short batch is dropped.

    Raises TrainingError when the loss is not a finite number.
    """
    torch.manual_seed(derive(subject.seed, "segmentation"))
    head = _head(_maps_of(subject, maps, scenes.images[:1]).shape[1]).to(subject.device)
    optimiser = torch.optim.Adam(head.parameters(), lr=settings.lr)
    flops = steps = 0
    for index in _batches(len(scenes.images), settings, subject.seed):
        subject.check()

        def loss_of(model: nn.Module, index: Tensor = index) -> Tensor:
            scored = _scored(model, _maps_of(subject, maps, scenes.images[index]), settings.size)
            labels = scenes.classes[index].to(subject.device).long()
            return cross_entropy(scored.movedim(1, -1).flatten(0, 2), labels.flatten(), ignore_index=VOID)

        flops = flops or step_flops(lambda: loss_of(copy.deepcopy(head)))
        optimiser.zero_grad()
        loss = loss_of(head)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        steps += 1
    if not loss.isfinite():
        raise TrainingError(f"the loss is {loss.item()} after training for segmentation")
    return head.eval(), steps * flops


def _batches(count: int, settings: Segmentation, seed: int) -> Iterator[Tensor]:
    """Yield the indices of each step's images, each once in an epoch."""
    size = min(settings.batch_size, count)
    for epoch in range(settings.epochs):
        order = torch.randperm(count, generator=generator(seed, "segmentation", epoch))
        yield from torch.split(order[: count - count % size], size)


def _head(dim: int) -> nn.Module:
    """Return the head of torchvision's FCN: a 3x3 convolution to a quarter of the channels, and one to the classes."""
    from torchvision.models.segmentation.fcn import FCNHead

    head: nn.Module = FCNHead(dim, CLASSES)
    return head


@torch.no_grad()
def _maps_of(subject: Subject, maps: Maps, images: Tensor) -> Tensor:
    """Return the frozen feature maps of images uint8 (B, 3, size, size) of the host."""
    return maps(normalise(images.to(subject.device).float() / 255, subject.view.mean, subject.view.std))


def _scored(head: nn.Module, maps: Tensor, size: int) -> Tensor:
    """Return the scores (B, classes, size, size) of each pixel's classes."""
    return interpolate(head(maps), size=(size, size), mode="bilinear", align_corners=False)


@torch.no_grad()
def _confusion(subject: Subject, settings: Segmentation, maps: Maps, head: nn.Module, scenes: Scenes) -> Tensor:
    """Return how many pixels of each class (rows) are taken for each class (columns), int64 (classes, classes)."""
    counts = torch.zeros(CLASSES * CLASSES, dtype=torch.int64)
    batches = (torch.split(each, settings.batch_size) for each in (scenes.images, scenes.classes))
    for images, classes in zip(*batches, strict=True):
        subject.check()
        found = _scored(head, _maps_of(subject, maps, images), settings.size).argmax(dim=1).cpu()
        known = classes != VOID
        counts += torch.bincount(CLASSES * classes[known].long() + found[known], minlength=CLASSES * CLASSES)
    return counts.view(CLASSES, CLASSES)


def scores(confusion: Tensor) -> dict[str, float]:
    """Return mean IoU over the classes that are there or are found, and the share of pixels that are right."""
    right, union = confusion.diag().double(), confusion.sum(dim=0) + confusion.sum(dim=1) - confusion.diag()
    seen = union > 0
    return {
        "mean IoU": float((right[seen] / union[seen]).mean()),
        "pixel accuracy": float(right.sum() / confusion.sum()),
    }
