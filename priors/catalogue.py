"""The named priors: every prior that the paper uses and that is not a BYOL backbone, and the public CIFAR ResNet-20.

Input size, normalisation and licence of a model of timm are those of timm's pretrained configuration; the tests compare
them, and the dimensions and parameter counts with the built networks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.core.errors import FETCH, Lack, MissingError
from bench.data.augment import MEAN, STD

SHIPPED = Path(__file__).parent / "shipped"  # weights that come with the package
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CLIP = "Radford et al. 2021, https://github.com/openai/CLIP"
# OpenAI's repository says MIT, timm's configuration of the transformers Apache-2.0.
CLIP_VIT_LICENCE = "MIT (timm's copy: Apache-2.0)"
# OpenAI trained its transformers with QuickGELU, which timm's model of that name leaves out.
QUICK = {"act_layer": "quick_gelu"}


@dataclass(frozen=True)
class Entry:
    """A named prior.

    Args:
        name: as a grid says it.
        about: what the network is.
        model: its architecture: `timm:<model>.<tag>`, whose weights timm downloads, or a backbone of the harness. None:
            neither has it.
        source: publication and address.
        licence: of the weights, as their publisher states it, or "unknown".
        input_size: pixels of a side.
        dim: dimension p of the features; None where there is no model here.
        parameters: how many the network has, up to its features; None where there is no model here.
        mean, std: of the images' channels, which the network expects to be subtracted and divided by.
        options: for `timm.create_model`.
        file: the weights, where they come with the package; "": they are in `<data root>/priors`, once downloaded.
        sha256: of the tensors in use (`bench.models.weights.digest_state`), where known; others are refused then.
    """

    name: str
    about: str
    model: str | None
    source: str
    licence: str
    input_size: int
    dim: int | None
    parameters: int | None
    mean: Sequence[float] = MEAN
    std: Sequence[float] = STD
    options: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""
    sha256: str | None = None

    @property
    def timm(self) -> str | None:
        """The name of its model in timm; None where that has none."""
        name = (self.model or "").removeprefix("timm:")
        return name if name != self.model else None

    def path(self, root: Path) -> Path:
        """Return where the weights lie: in the package, or else below the data root."""
        return SHIPPED / self.file if self.file else root / "priors" / f"{self.name}.safetensors"

    def missing(self, root: Path) -> MissingError:
        """Return an error that says what is not there, and how to get it."""
        if self.model is None:
            how = "register its features under this name in a --plugin file"
            return MissingError(
                f"prior {self.name!r} has no model here or in timm (its code is {self.licence}): {how}",
                Lack(f"prior {self.name}", how),
            )
        return MissingError(
            f"prior {self.name!r} is not there: looked for {self.path(root)}; {FETCH}",
            Lack(f"prior {self.name}", FETCH),
        )

    def line(self) -> str:
        """Return what it is, on one line."""
        facts = [f"{self.input_size} px"]
        if self.dim and self.parameters:
            # float32: 4 bytes each
            size = f"{self.parameters / 1e6:.3g} M parameters, {self.parameters * 4 / 1e6:.0f} MB"
            facts += [f"dimension {self.dim}", size]
        return f"{self.about}, {self.model or 'no model here'} ({self.source}): {', '.join([*facts, self.licence])}"

    def numbers(self) -> tuple[str, str, str]:
        """Return the pixels of a side, the dimension, and the MB of the weights in float32, as text."""
        size = f"{self.parameters * 4 / 1e6:,.0f}" if self.parameters else ""
        return str(self.input_size), str(self.dim or ""), size


def _clip(name: str, about: str, model: str, input_size: int, dim: int, parameters: int) -> Entry:
    """Return an image tower of CLIP, whose features are its output: the projection stays on."""
    vit = model.startswith("vit")
    return Entry(
        name,
        f"CLIP {about}",
        f"timm:{model}.openai",
        CLIP,
        CLIP_VIT_LICENCE if vit else "MIT",
        input_size,
        dim,
        parameters,
        CLIP_MEAN,
        CLIP_STD,
        options=QUICK if vit else {},
    )


_ENTRIES = (
    Entry(
        "CF10-R20",
        "ResNet-20 trained with labels on CIFAR-10",
        "resnet20_cifar",
        "https://github.com/akamaster/pytorch_resnet_cifar10",
        "BSD-2-Clause",
        32,
        64,
        269_072,
        file="resnet20_cifar10.safetensors",
        sha256="2191d83b20660bd6a1647dfef68fb430c5834cfccf241d2862165cb0aada9bb1",
    ),
    Entry(
        "IN21K-MobileNetV3",
        "MobileNetV3-Large trained on ImageNet-21K-P",
        "timm:mobilenetv3_large_100.miil_in21k",
        "Ridnik et al. 2021, https://github.com/Alibaba-MIIL/ImageNet21K",
        "Apache-2.0",
        224,
        1280,
        4_202_032,
        (0.0, 0.0, 0.0),
        (1.0, 1.0, 1.0),
        options={"num_classes": 0},
    ),
    # The public code reads resnet50_miil_21k.pth (Ridnik et al. 2021), which timm does not have: it is usable as
    # `file:resnet50_miil_21k.pth` with `backbone: timm:resnet50`. Timm's only ResNet-50 of ImageNet-21K is BiT's.
    Entry(
        "IN21K-RN50",
        "BiT-M ResNet-50 (pre-activation, group norm) trained on ImageNet-21K; the paper's is another training",
        "timm:resnetv2_50x1_bit.goog_in21k",
        "Kolesnikov et al. 2020, https://github.com/google-research/big_transfer",
        "Apache-2.0",
        224,
        2048,
        23_500_352,
        (0.5, 0.5, 0.5),
        (0.5, 0.5, 0.5),
        options={"num_classes": 0},
    ),
    _clip("CLIP-RN50", "ResNet-50", "resnet50_clip", 224, 1024, 38_316_896),
    _clip("CLIP-RN101", "ResNet-101", "resnet101_clip", 224, 512, 56_259_936),
    _clip("CLIP-RN50x4", "ResNet-50x4", "resnet50x4_clip", 288, 640, 87_137_080),
    _clip("CLIP-B32", "ViT-B/32", "vit_base_patch32_clip_224", 224, 512, 87_849_728),
    _clip("CLIP-B16", "ViT-B/16", "vit_base_patch16_clip_224", 224, 512, 86_193_152),
    _clip("CLIP-L14", "ViT-L/14", "vit_large_patch14_clip_224", 224, 768, 303_966_976),
    Entry(
        "YOLOv9",
        "detector",
        None,
        "Wang et al. 2024, https://github.com/WongKinYiu/yolov9",
        "GPL-3.0",
        640,
        None,
        None,
    ),
)

CATALOGUE: Mapping[str, Entry] = {entry.name: entry for entry in _ENTRIES}
