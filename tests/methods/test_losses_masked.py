"""Losses and gradients of methods that mask or predict, against formulas written from the papers, in float64.

The formulas cut patches out one by one and hide tokens from attention, where the methods leave tokens out.
"""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate
from torch.nn.utils.parametrize import is_parametrized

from bench.core.errors import UserError
from bench.models.backbones import build_backbone
from methods import Batch, Method, methods
from methods.lejepa import gaussianity
from methods.tokens import blocks, shuffled
from tests.methods.test_losses import assert_same, sinkhorn_by_hand

pytestmark = pytest.mark.usefixtures("float_is_double")
PATCH = 4
SMALL: dict[str, dict[str, Any]] = {
    "dinov2": {"hidden": 16, "bottleneck": 6, "outputs": 7},
    "ibot": {"hidden": 16, "bottleneck": 6, "outputs": 7},
    "lejepa": {"hidden": 16, "projection": 5, "directions": 6},
    "msn": {"hidden": 16, "projection": 6, "prototypes": 7},
}


def build(name: str, count: int = 3, size: int = 16) -> tuple[Method, Batch]:
    """Return a method whose momentum network lags behind, and a batch; its loss then draws from seed 2."""
    torch.manual_seed(0)
    backbone = build_backbone("vit_micro", size)
    model = methods.get(name)(backbone.module, backbone.dim, **SMALL.get(name, {})).double()
    for part in ("teacher", "target"):
        for parameter in getattr(model, part).parameters() if hasattr(model, part) else ():
            parameter.data.mul_(0.9)
    views = [torch.randn(count, 3, *[view.pixels(size)] * 2).double() for view in model.views]
    torch.manual_seed(2)
    return model, Batch(views, torch.zeros(count, dtype=torch.int64))


def squares(image: Tensor) -> list[Tensor]:
    """Return the patches (3, 4, 4) of an image (3, size, size), row by row."""
    _, height, width = image.shape
    return [image[:, y : y + 4, x : x + 4] for y in range(0, height, PATCH) for x in range(0, width, PATCH)]


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


def line(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)


def block(layer: Any, x: Tensor, hidden: Sequence[int]) -> Tensor:
    """Return what a block makes of tokens (n, d) of which some are hidden from all others."""
    count, dim = x.shape
    heads = layer.attn.num_heads
    made = []
    for q, k, v in line(layer.attn.qkv, norm(layer.norm1, x)).view(count, 3, heads, -1).permute(2, 1, 0, 3):
        scores = q @ k.T / math.sqrt(dim / heads)
        scores[:, list(hidden)] = -torch.inf
        made.append(scores.softmax(dim=1) @ v)
    x = x + line(layer.attn.proj, torch.cat(made, dim=1))
    return x + line(layer.mlp.fc2, gelu(line(layer.mlp.fc1, norm(layer.norm2, x))))


def embed(vit: VisionTransformer, image: Tensor) -> Tensor:
    """Return an image's patch tokens (n, d), without positions."""
    kernel, bias = vit.patch_embed.proj.weight, vit.patch_embed.proj.bias
    return torch.stack([torch.einsum("dcij,cij->d", kernel, patch) for patch in squares(image)]) + bias


def encoded(vit: VisionTransformer, tokens: Tensor, hidden: Sequence[int] = ()) -> Tensor:
    """Return what the backbone makes of patch tokens (n, d): of the hidden ones nothing of use."""
    side = math.isqrt(len(tokens))
    grid = vit.pos_embed.view(1, 8, 8, -1).permute(0, 3, 1, 2)
    places = interpolate(grid, size=(side, side), mode="bicubic", antialias=True)[0].flatten(1).T
    x = tokens + places
    for layer in vit.blocks:
        x = block(layer, x, hidden)
    return norm(vit.norm, x)


def sines(side: int, width: int) -> Tensor:
    """Return the fixed position (width,) of each patch of a square grid: sines and cosines of its row, and column."""
    waves = [10000 ** (-4 * i / width) for i in range(width // 4)]
    rows = []
    for y in range(side):
        for x in range(side):
            rows.append([f(at * wave) for f in (math.sin, math.cos) for at in (y, x) for wave in waves])
    return torch.tensor(rows, dtype=torch.float64)


def predicted(predictor: Any, context: Tensor, kept: Sequence[int], wanted: Sequence[int], side: int) -> Tensor:
    """Return what a predictor makes of the wanted patches, by a sequence in the order of the grid."""
    places = sines(side, predictor.width)
    rows = [(place, line(predictor.embed, row) + places[place]) for place, row in zip(kept, context, strict=True)]
    rows = sorted([*rows, *((place, predictor.mask + places[place]) for place in wanted)], key=lambda each: each[0])
    x = torch.stack([row for _, row in rows])
    for layer in predictor.blocks:
        x = block(layer, x, ())
    order = [place for place, _ in rows]
    return line(predictor.out, norm(predictor.norm, x[[order.index(place) for place in wanted]]))


def shuffles(draws: Tensor) -> list[list[int]]:
    """Return for each row of draws its places, the smallest draw first."""
    return [sorted(range(len(row)), key=row.__getitem__) for row in draws.tolist()]


def block_places(draws: Tensor, side: int, aspect: tuple[float, float], size: int) -> list[list[int]]:
    """Return for each row of three draws the `size` patches around a point of the image."""
    found = []
    for down, across, ratio in draws.tolist():
        stretch = aspect[0] * (aspect[1] / aspect[0]) ** ratio
        far = [
            max(abs(y + 0.5 - side * down) / stretch, abs(x + 0.5 - side * across))
            for y in range(side)
            for x in range(side)
        ]
        found.append(sorted(range(side * side), key=far.__getitem__)[:size])
    return found


def test_mae_makes_the_standardised_pixels_of_masked_patches() -> None:
    model, data = build("mae")
    ours = model.loss(data)
    torch.manual_seed(2)
    vit, terms = model.backbone, []
    for image, order in zip(data.views[0], shuffles(torch.rand(3, 16)), strict=True):
        kept, hidden = order[:4], order[4:]  # 75 % are masked
        made = predicted(model.decoder, encoded(vit, embed(vit, image), hidden)[kept], kept, hidden, 4)
        for place, row in zip(hidden, made, strict=True):
            target = squares(image)[place].flatten()
            deviation = (target - target.mean()).square().sum() / 47
            terms.append((row - (target - target.mean()) / (deviation + 1e-6).sqrt()).square().mean())
    assert len(terms) == 3 * 12
    assert_same(model, ours, torch.stack(terms).mean())


def test_maes_decoder_is_half_as_wide_and_a_third_as_deep() -> None:
    for name, width, depth in (("vit_micro", 64, 1), ("vit_tiny_cifar", 96, 4), ("vit_large_patch16_224", 512, 8)):
        with torch.device("meta"):
            backbone = build_backbone(name, 32)
            decoder = methods.get("mae")(backbone.module, backbone.dim).decoder
        assert (decoder.width, len(decoder.blocks), decoder.blocks[0].attn.head_dim) == (width, depth, 32)


@pytest.mark.parametrize(("size", "square"), [(16, 32 / 224), (16, 0.6), (12, 32 / 224)])
def test_simmim_makes_the_masked_pixels(size: int, square: float) -> None:
    model, data = build("simmim", size=size)
    model.square = square
    ours = model.loss(data)
    torch.manual_seed(2)
    side, unit = size // 4, 2 if square == 0.6 else 1
    cells = side // unit
    vit, terms = model.backbone, []
    for image, order in zip(data.views[0], shuffles(torch.rand(3, cells**2)), strict=True):
        masked = order[: {16: 10, 9: 6, 4: 3}[cells**2]]  # 60 %, rounded up
        hidden = [p for p in range(side**2) if p // side // unit * cells + p % side // unit in masked]
        tokens = [model.mask_token if p in hidden else token for p, token in enumerate(embed(vit, image))]
        made = line(model.decoder, encoded(vit, torch.stack(tokens)))
        terms += [(made[place] - squares(image)[place].flatten()).abs().mean() for place in hidden]
    assert_same(model, ours, torch.stack(terms).mean())


def smooth(gap: Tensor) -> Tensor:
    return torch.where(gap.abs() < 1, gap.square() / 2, gap.abs() - 0.5)


def test_ijepa_predicts_the_teachers_tokens_of_four_blocks_from_patches_outside() -> None:
    model, data = build("ijepa")
    ours = model.loss(data)
    torch.manual_seed(2)
    targets = [block_places(torch.rand(3, 3), 4, (0.75, 1.5), 2) for _ in range(4)]  # 17.5 % of 16
    orders = shuffles(torch.rand(3, 16))
    vit, teacher, terms = model.backbone, model.teacher.module, []
    for index, image in enumerate(data.views[0]):
        mine = [each[index] for each in targets]
        kept = [place for place in orders[index] if not any(place in each for each in mine)][:8]
        assert len(kept) == 8
        whole = encoded(teacher, embed(teacher, image)).detach()
        whole = (whole - whole.mean(1, keepdim=True)) / (whole.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        context = encoded(vit, embed(vit, image), [place for place in range(16) if place not in kept])[kept]
        for wanted in mine:
            terms.append(smooth(predicted(model.predictor, context, kept, wanted, 4) - whole[wanted]).mean())
    assert_same(model, ours, torch.stack(terms).mean())


def test_ijepas_predictor_is_half_as_wide_and_half_as_deep() -> None:
    for name, width, depth in (("vit_micro", 64, 2), ("vit_tiny_cifar", 96, 6), ("vit_base_patch16_gap_224", 384, 6)):
        with torch.device("meta"):
            backbone = build_backbone(name, 32)
            predictor = methods.get("ijepa")(backbone.module, backbone.dim).predictor
        assert (predictor.width, len(predictor.blocks), predictor.out.out_features) == (width, depth, backbone.dim)


def test_ijepa_refuses_a_backbone_that_reads_its_class_token() -> None:
    with torch.device("meta"):
        backbone = build_backbone("vit_tiny_patch16_224", 32)
    with pytest.raises(UserError, match="the backbone reads its class token: use vit_micro"):
        methods.get("ijepa")(backbone.module, backbone.dim)


def batch_norm(layer: nn.BatchNorm1d, x: Tensor) -> Tensor:
    return (x - x.mean(0)) / (x.var(0, unbiased=False) + layer.eps).sqrt() * layer.weight + layer.bias


def head_by_hand(head: nn.Module, x: Tensor) -> Tensor:
    """Return what a head's linear layers, batch norms and activations make of rows; prototypes see length 1."""
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            if is_parametrized(layer):  # prototypes
                x = unit(x)
            x = line(layer, x)
        elif isinstance(layer, nn.BatchNorm1d):
            x = batch_norm(layer, x)
        elif isinstance(layer, nn.GELU):
            x = gelu(x)
        elif isinstance(layer, nn.ReLU):
            x = x.clamp(min=0)
    return x


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(dim=1, keepdim=True).sqrt()


def features_of(vit: VisionTransformer, images: Tensor) -> Tensor:
    return torch.stack([encoded(vit, embed(vit, image)).mean(0) for image in images])


def test_lejepa_is_the_distance_to_the_global_views_and_the_statistic_of_epps_and_pulley() -> None:
    model, data = build("lejepa", count=4)
    ours = model.loss(data)
    torch.manual_seed(2)
    directions = torch.randn(5, 6).double()
    directions = directions / directions.square().sum(0).sqrt()
    vit = model.backbone
    z = head_by_hand(model.projector, torch.cat([features_of(vit, view) for view in data.views])).view(8, 4, 5)
    centre = (z[0] + z[1]) / 2
    distance = sum((each - centre).square().sum() for each in z) / z.numel()
    step, statistics = 3 / 16, []
    for view in z:
        for direction in directions.T:
            total = torch.zeros((), dtype=torch.float64)
            for knot in range(-16, 17):  # the whole line, by the trapezoidal rule
                t = step * knot
                share = step / 2 if abs(knot) == 16 else step
                gap = torch.exp(1j * t * (view @ direction)).mean() - math.exp(-t * t / 2)
                total = total + share * math.exp(-t * t / 2) * (gap * gap.conj()).real
            statistics.append(4 * total)
    assert_same(model, ours, 0.95 * distance + 0.05 * torch.stack(statistics).mean())


def test_lejepas_statistic_is_small_for_a_gaussian_alone() -> None:
    torch.manual_seed(0)
    normal = torch.randn(500, 1, 4).double()
    wrong = [2 * normal, normal + 0.5, normal.sign(), normal[:, :, :1].expand(-1, -1, 4), 0 * normal]
    assert all(gaussianity(normal, 64) < gaussianity(each, 64) / 5 for each in wrong)


def pair_by_hand(
    model: Method, vit: VisionTransformer, views: list[Tensor], places: list[list[int]], masked: bool
) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """Return features by image and view, and the tokens at each image's places, counted through both views."""
    features, patches = [], []
    for index, mine in enumerate(places):
        both = []
        for view in (0, 1):
            tokens = list(embed(vit, views[view][index]))
            if masked:
                tokens = [model.mask_token if 16 * view + p in mine else each for p, each in enumerate(tokens)]
            both.append(encoded(vit, torch.stack(tokens)))
        features.append([each.mean(0) for each in both])
        patches.append([both[place // 16][place % 16] for place in mine])
    return features, patches


def places_by_hand() -> list[list[int]]:
    torch.manual_seed(2)
    masked = block_places(torch.rand(3, 3), 4, (0.3, 1 / 0.3), 5)  # 30 % of 16
    second = [row[0] < 0.5 for row in torch.rand(3, 1).tolist()]
    assert {*second} == {True, False}
    return [[place + 16 * late for place in mine] for mine, late in zip(masked, second, strict=True)]


def cross_entropy(wanted: Tensor, scores: Tensor) -> Tensor:
    return -(wanted * (scores.exp() / scores.exp().sum()).log()).sum()


def test_ibot_predicts_the_other_view_and_the_masked_patches() -> None:
    model, data = build("ibot")
    model.centres.copy_(torch.randn(2, 7))
    centres = model.centres.clone()
    torch.manual_seed(2)
    ours = model.loss(data)
    places = places_by_hand()
    made, taught = [], []
    for (network, head), found, masked in (
        (model.student, made, True),
        (model.teacher.module.children(), taught, False),
    ):
        features, patches = pair_by_hand(model, network, data.views, places, masked)
        rows = torch.stack([*(row for both in features for row in both), *(row for mine in patches for row in mine)])
        found.append(head_by_hand(head, rows))
    scores, target = made[0] / 0.1, taught[0].detach()
    wanted = torch.cat([((target[:6] - centres[0]) / 0.04).softmax(1), ((target[6:] - centres[1]) / 0.04).softmax(1)])
    own = [
        cross_entropy(wanted[2 * image + 1 - view], scores[2 * image + view]) for image in range(3) for view in (0, 1)
    ]
    per_view = []
    for image, mine in enumerate(places):
        terms = [cross_entropy(wanted[6 + 5 * image + i], scores[6 + 5 * image + i]) for i in range(len(mine))]
        per_view += [torch.stack(terms).mean(), torch.zeros((), dtype=torch.float64)]  # nothing is masked in the other
    assert_same(model, ours, torch.stack(own).mean() + torch.stack(per_view).mean())
    model.after_step()
    moved = 0.9 * centres + 0.1 * torch.stack([target[:6].mean(0), target[6:].mean(0)])
    torch.testing.assert_close(model.centres, moved)
    model.after_step()
    torch.testing.assert_close(model.centres, moved)  # a step without a loss, as in a ReLA phase


def test_dinov2_has_two_heads_balanced_targets_local_views_and_koleo() -> None:
    model, data = build("dinov2")
    ours = model.loss(data)
    places = places_by_hand()
    network, head, patch_head = model.student
    teacher, teacher_head, teacher_patch_head = model.teacher.module.children()
    own, patches = pair_by_hand(model, network, data.views[:2], places, masked=True)
    seen, seen_patches = pair_by_hand(model, teacher, data.views[:2], places, masked=False)
    small = torch.cat([features_of(network, view) for view in data.views[2:]])
    flat = torch.stack([row for both in own for row in both])
    scores = head_by_hand(head, torch.cat([flat, small])) / 0.1
    wanted = balanced(head_by_hand(teacher_head, torch.stack([row for both in seen for row in both])))
    terms = []
    for image in range(3):
        for target in (0, 1):
            guesses = [scores[2 * image + 1 - target], *(scores[6 + 3 * view + image] for view in range(8))]
            terms += [cross_entropy(wanted[2 * image + target], guess) for guess in guesses]
    guess = head_by_hand(patch_head, torch.stack([row for mine in patches for row in mine])) / 0.1
    aim = balanced(head_by_hand(teacher_patch_head, torch.stack([row for mine in seen_patches for row in mine])))
    masked = torch.stack([cross_entropy(one, other) for one, other in zip(aim, guess, strict=True)]).mean() / 2
    spread = torch.zeros((), dtype=torch.float64)
    for view in (0, 1):
        rows = unit(torch.stack([both[view] for both in own]))
        for index, row in enumerate(rows):
            nearest = min((row - other).square().sum().sqrt() for place, other in enumerate(rows) if place != index)
            spread = spread - nearest.log() / 3
    assert_same(model, ours, torch.stack(terms).mean() + masked + 0.1 * spread)


def balanced(scores: Tensor) -> Tensor:
    return sinkhorn_by_hand(scores.detach() * 0.05 / 0.07)  # at temperature 0.07


def test_msn_picks_the_prototypes_of_the_whole_view() -> None:
    model, data = build("msn")
    ours = model.loss(data)
    torch.manual_seed(2)
    vit, teacher = model.backbone, model.target.module[0]
    whole, dropped, *focal = data.views
    anchors = []
    for image, order in zip(dropped, shuffles(torch.rand(3, 16)), strict=True):
        kept = order[:13]  # 15 % are left out
        anchors.append(encoded(vit, embed(vit, image), order[13:])[kept].mean(0))
    rows = torch.cat([torch.stack(anchors), *(features_of(vit, view) for view in focal)])
    prototypes = unit(model.prototypes)
    guess = (unit(head_by_hand(model.anchor[1], rows)) @ prototypes.T / 0.1).softmax(1)
    seen = unit(head_by_hand(model.target.module[1], features_of(teacher, whole)))
    sharp = (seen @ prototypes.T / 0.1).softmax(1).detach() ** 4
    wanted = sinkhorn_by_hand((sharp / sharp.sum(1, keepdim=True)).log() * 0.05)
    terms = [-(wanted[index % 3] * row.log()).sum() for index, row in enumerate(guess)]
    mean = guess.mean(0)
    assert_same(model, ours, torch.stack(terms).mean() - (-(mean * mean.log()).sum()) + math.log(7))


@pytest.mark.parametrize(("height", "width"), [(3, 3), (8, 8), (2, 5)])
def test_the_first_patches_of_an_order_are_a_block(height: int, width: int) -> None:
    torch.manual_seed(0)
    orders = blocks(torch.zeros(1000, 1), height, width, (0.5, 2.0))
    assert torch.equal(orders.sort(dim=1).values, torch.arange(height * width).expand(1000, -1)), "each patch once"
    for size in (1, 2, height * width // 2):
        for mine in orders[:100, :size].tolist():
            rows, columns = ({place // width for place in mine}, {place % width for place in mine})
            box = (max(rows) - min(rows) + 1) * (max(columns) - min(columns) + 1)
            rim = max(len(rows), len(columns))
            assert box - rim < size <= box, "a rectangle but for a part of its rim"
    assert {*orders[:, 0].tolist()} == {*range(height * width)}, "anywhere"


def test_a_block_has_the_aspect_ratio_that_was_drawn() -> None:
    torch.manual_seed(0)
    for aspect, tall in (((4.0, 4.0), True), ((0.25, 0.25), False)):
        inner = []
        for mine in blocks(torch.zeros(300, 1), 16, 16, aspect)[:, :16].tolist():
            rows, columns = ({place // 16 for place in mine}, {place % 16 for place in mine})
            if not ({0, 15} & rows or {0, 15} & columns):
                inner.append(len(rows) / len(columns))
        assert len(inner) > 30
        mean = sum(inner) / len(inner)
        assert mean > 2.5 if tall else mean < 0.4


def test_a_shuffle_is_of_each_image_alone() -> None:
    torch.manual_seed(0)
    orders = shuffled(torch.zeros(64, 1), 9)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(9).expand(64, -1))
    assert len({tuple(row) for row in orders.tolist()}) == 64


@pytest.mark.parametrize(
    ("name", "online", "follower", "momentum"),
    [
        ("dinov2", "student", "teacher", 0.992),
        ("ibot", "student", "teacher", 0.996),
        ("ijepa", "backbone", "teacher", 0.996),
        ("msn", "anchor", "target", 0.996),
    ],
)
def test_a_momentum_network_follows_after_each_step(name: str, online: str, follower: str, momentum: float) -> None:
    model, _ = build(name)
    network, copy = getattr(model, online), getattr(model, follower)
    before = [parameter.clone() for parameter in copy.parameters()]
    model.after_step()
    for old, new, leader in zip(before, copy.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), momentum * old + (1 - momentum) * leader.detach())


def test_sizes_are_those_of_the_public_code() -> None:
    found = {name: {key: methods.resolved(name, {}, "")[key] for key in sizes} for name, sizes in SMALL.items()}
    assert found == {
        "dinov2": {"hidden": 2048, "bottleneck": 256, "outputs": 65536},
        "ibot": {"hidden": 2048, "bottleneck": 256, "outputs": 8192},
        "lejepa": {"hidden": 2048, "projection": 128, "directions": 1024},
        "msn": {"hidden": 2048, "projection": 256, "prototypes": 1024},
    }


def test_methods_that_predict_one_view_change_no_colour() -> None:
    for name, smallest, flip in (("mae", 0.2, 0.5), ("simmim", 0.67, 0.5), ("ijepa", 0.3, 0.0)):
        (view,) = methods.get(name).views
        assert view.crop == (smallest, 1.0)
        assert (view.flip, view.jitter, view.grey, view.blur, view.solarise, view.size) == (flip, 0, 0, 0, 0, 1)


@pytest.mark.parametrize("name", ["ibot", "mae", "simmim"])
def test_a_backbone_with_a_class_token_is_trained_too(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone("vit_tiny_patch16_224", 32)
    model = methods.get(name)(backbone.module, backbone.dim, **SMALL.get(name, {}))
    views = [torch.randn(2, 3, 32, 32) for _ in model.views]
    torch.autograd.grad(model.loss(Batch(views, torch.zeros(2))), [p for p in model.parameters() if p.requires_grad])
