"""Token dropout: Lin et al. 2024, "Accelerating augmentation invariance pretraining", arXiv 2410.22364."""

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from bench.core.errors import UserError
from methods import Around, Method, accelerators
from methods.tokens import shuffled, take, transformer


@accelerators.register("token_drop")
class TokenDrop(Around):
    """In training, a vision transformer sees a random part of an image's patches, which makes its sequences shorter.

    Each pass of the backbone, and of a momentum network, drops patch tokens of its own, once positions are added. Other
    tokens, such as a class token, stay. Evaluations see all tokens.

    What differs: the paper also enlarges patches, and follows a schedule of both, found by the error of gradients;
    here a constant share is dropped, the same of all networks, and its default is ours.

    Args:
        share: of the patch tokens, dropped; one of them is always kept.

    Raises UserError on a backbone that is no vision transformer, on a method that encodes patches itself, and on a
    share that is not between 0 and 1.
    """

    needs_tokens = True
    recordable = False  # draws on the host

    def __init__(self, method: Method, target_dim: int | None, share: float = 0.5) -> None:
        if not 0 < share < 1:
            raise UserError(f"token_drop: accelerate.share is {share:g}; set it between 0 and 1")
        if own := [type(each).__name__ for each in method.modules() if isinstance(each, Method) and each.needs_tokens]:
            raise UserError(f"token_drop: {own[0]} encodes patches itself; take another method, such as mocov3")
        transformer(method.backbone)
        super().__init__(method, target_dim)
        for each in method.modules():
            if isinstance(each, VisionTransformer):
                each.patch_drop = Drop(each.num_prefix_tokens, share)  # type: ignore[assignment]


class Drop(nn.Module):
    """Keeps, in training, the first `prefix` tokens and a random part of the n others: of (B, prefix + n, d)."""

    def __init__(self, prefix: int, share: float) -> None:
        super().__init__()
        self.prefix, self.share = prefix, share

    def forward(self, rows: Tensor) -> Tensor:
        if not self.training:
            return rows
        before, patches = rows[:, : self.prefix], rows[:, self.prefix :]
        count = patches.shape[1]
        kept = shuffled(rows, count)[:, : max(1, round((1 - self.share) * count))]
        return torch.cat([before, take(patches, kept)], dim=1)
