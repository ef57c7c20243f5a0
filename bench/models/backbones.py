"""Backbones: networks from images (B, 3, size, size) to features (B, d)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.core.errors import UserError, did_you_mean
from bench.core.registry import Registry
from bench.core.seeds import derive


@dataclass(frozen=True)
class Backbone:
    """A network and the dimension d of its features."""

    module: nn.Module
    dim: int


backbones: Registry[Callable[[], Backbone]] = Registry("backbone", package="bench.models.backbones")


def build_backbone(name: str, input_size: int) -> Backbone:
    """Return the network called `name`, randomly initialised from torch's global generator.

    A name is registered here (or by a plugin), or is any model of timm, as `timm:<model>` or by its bare name.
    Raises UserError on an unknown name.
    """
    if name in backbones:
        return backbones.get(name)()
    import timm

    model = name.removeprefix("timm:")
    check_backbone(name)
    extra: dict[str, Any] = {"img_size": input_size} if model.startswith(("vit_", "deit", "swin")) else {}
    if model.startswith(("vit_", "deit")) and "relpos" not in model:
        extra["dynamic_img_size"] = True  # for local views, which are smaller
    module: Any = timm.create_model(model, pretrained=False, num_classes=0, **extra)
    return Backbone(module, int(getattr(module, "head_hidden_size", module.num_features)))


def initial_backbone(name: str, input_size: int, seed: int) -> Backbone:
    """Return the network with the initial weights of a cell's seed: the same for all arms. Raises UserError."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "backbone"))
        return build_backbone(name, input_size)


def check_backbone(name: str) -> None:
    """Raise UserError, with the nearest known name, when no backbone is called `name`."""
    if name in backbones:
        return
    import timm

    model, _, tag = name.removeprefix("timm:").partition(".")
    if not timm.is_model(model) or (tag and f"{model}.{tag}" not in timm.list_pretrained(f"{model}.*")):
        raise UserError(f"unknown backbone {name!r}{did_you_mean(name, [*backbones, *timm.list_models()])}")


def _resnet(name: str, small_images: bool) -> Backbone:
    """Torchvision's network, as in ReLA's public code; for small images 3x3 stem, stride 1, no max-pool."""
    import torchvision

    module = torchvision.models.get_model(name, weights=None)
    dim = module.fc.in_features
    module.fc = nn.Identity()
    if small_images:
        module.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        module.maxpool = nn.Identity()
    return Backbone(module, dim)


@backbones.register("resnet18")
def resnet18() -> Backbone:
    """ResNet-18 (He et al. 2016)."""
    return _resnet("resnet18", small_images=False)


@backbones.register("resnet50")
def resnet50() -> Backbone:
    """ResNet-50 (He et al. 2016)."""
    return _resnet("resnet50", small_images=False)


@backbones.register("resnet18_cifar")
def resnet18_cifar() -> Backbone:
    """ResNet-18 with the stem for small images."""
    return _resnet("resnet18", small_images=True)


@backbones.register("resnet50_cifar")
def resnet50_cifar() -> Backbone:
    """ResNet-50 with the stem for small images."""
    return _resnet("resnet50", small_images=True)


class Block(nn.Module):
    """A basic block with an option-A shortcut (He et al. 2016, section 4.2): subsampled, padded with zeros."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.pad = stride, width - width_in

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        if self.stride != 1 or self.pad:
            before = self.pad // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.pad - before))
        return F.relu(out + x, inplace=True)


class CifarResNet(nn.Module):
    """A ResNet for 32x32 images: 3x3 stem of a stride, stages of basic blocks, global average pooling."""

    def __init__(self, widths: tuple[int, ...], blocks: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        width_in = widths[0]
        self.stages = len(widths)
        for stage, width in enumerate(widths, start=1):
            strides = [1 if stage == 1 else 2] + [1] * (blocks - 1)
            layer = nn.Sequential()
            for stride in strides:
                layer.append(Block(width_in, width, stride))
                width_in = width
            self.add_module(f"layer{stage}", layer)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return x.mean(dim=(2, 3))


@backbones.register("resnet20_cifar")
def resnet20_cifar() -> Backbone:
    """The CIFAR ResNet-20 of He et al. 2016, section 4.2: widths 16/32/64, three blocks each."""
    return Backbone(CifarResNet((16, 32, 64), blocks=3), 64)


@backbones.register("resnet_small")
def resnet_small() -> Backbone:
    """A ResNet for CPU grids: four basic blocks of width 16 to 128; 31.6 MFLOP an image of 32 px."""
    return Backbone(CifarResNet((16, 32, 64, 128), blocks=1), 128)


@backbones.register("resnet_tiny")
def resnet_tiny() -> Backbone:
    """A ResNet for a first try on a CPU: three basic blocks of width 24 to 96; 3.4 MFLOP an image of 16 px."""
    return Backbone(CifarResNet((24, 48, 96), blocks=1, stride=2), 96)


def _vit(dim: int, depth: int) -> Backbone:
    """A ViT (Dosovitskiy et al. 2021) of patches of 4 pixels; its features are the mean of its patch tokens.

    There is no class token, which methods that predict patches would not train. Positions are learnt for 32 px and
    interpolated for other sizes.
    """
    from timm.models.vision_transformer import VisionTransformer

    module = VisionTransformer(
        img_size=32,
        patch_size=4,
        embed_dim=dim,
        depth=depth,
        num_heads=3,
        num_classes=0,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
        dynamic_img_size=True,
    )
    return Backbone(module, dim)


@backbones.register("vit_tiny_cifar")
def vit_tiny_cifar() -> Backbone:
    """A ViT-Tiny for small images: 12 blocks of width 192; 718 MFLOP an image of 32 px."""
    return _vit(192, depth=12)


@backbones.register("vit_micro")
def vit_micro() -> Backbone:
    """A ViT for CPU grids: 4 blocks of width 96; 63.5 MFLOP an image of 32 px."""
    return _vit(96, depth=4)
