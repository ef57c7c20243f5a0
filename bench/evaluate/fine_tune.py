"""The whole network trained on labels, from the trained backbone."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.core.device import autocast
from bench.core.errors import TrainingError
from bench.core.seeds import derive
from bench.data.augment import View
from bench.data.sampler import Part
from bench.evaluate.linear import shares
from bench.evaluate.linear_probe import FIRST
from bench.evaluate.subject import Found, Subject
from bench.grid.evaluation import FineTune, Labelled
from bench.measure.flops import step_flops

OF_BACKBONE = 0.1  # of the classifier's rate


def fine_tune(subject: Subject, settings: FineTune) -> Found:
    """Return top-1 and, of at least ten classes, top-5 of the backbone trained on all labels."""
    return fine_tuned(subject, settings, torch.arange(len(subject.images.train.labels)))


def fine_tuned(subject: Subject, settings: Labelled, part: Tensor) -> Found:
    """Train a copy of the backbone and a new classifier on some of the training images, and return what it gets right.

    AdamW on mirrored crops, at rates that fall to 0 as a cosine; the last, short batch of an epoch is dropped. `part`:
    the indices int64 (n,) of the images. Raises TrainingError when the loss is not a finite number.
    """
    network = _network(subject)
    views = (View(crop=settings.crop, brightness=0, contrast=0, saturation=0, hue=0, jitter=0, grey=0),)
    order = Part(part, min(settings.batch_size, len(part)), derive(subject.seed, "fine-tune"))
    steps, flops = settings.epochs * order.steps_per_epoch, 0
    groups = [
        {"params": [*network[0].parameters()], "lr": OF_BACKBONE * settings.lr},
        {"params": [*network[1].parameters()], "lr": settings.lr},
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    precision = "fp32" if subject.task.cell.protocol.precision == "fp32" else "bf16"
    network.train()
    torch.manual_seed(derive(subject.seed, "fine-tune"))
    for index, (images,) in subject.images.train.batches(views, order, range(steps)):
        subject.check()

        def loss_of(model: nn.Module, images: Tensor = images, index: Tensor = index) -> Tensor:
            with autocast(subject.device, precision):
                return cross_entropy(model(images).float(), subject.images.train.labels[index])

        flops = flops or step_flops(lambda: loss_of(copy.deepcopy(network)))
        optimiser.zero_grad()
        loss = loss_of(network)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        falling.step()
    if not loss.isfinite():
        raise TrainingError(f"the loss is {loss.item()} after fine-tuning")
    return Found(_right(network.eval(), subject), steps * flops)


def _network(subject: Subject) -> nn.Sequential:
    """Return a copy of the backbone, and a classifier on its features that starts at zero."""
    head = nn.Linear(subject.features.train.shape[1], subject.images.classes, device=subject.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(nn.Sequential(copy.deepcopy(subject.backbone), nn.Flatten()), head)


@torch.no_grad()
def _right(network: nn.Module, subject: Subject) -> dict[str, float]:
    """Return the shares of test images whose class comes first and, of at least ten, among the first five."""
    test, classes = subject.images.test, subject.images.classes
    first = torch.cat([network(images).topk(min(FIRST, classes)).indices for images in test.eval_batches(subject.view)])
    right = (first == test.labels[:, None]).sum(dim=0)  # by place
    return shares(int(right[0]) / len(test.labels), int(right.sum()) / len(test.labels), classes)
