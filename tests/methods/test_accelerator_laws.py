"""The laws of the accelerators that shorten a method's steps, against values by hand and independent formulas."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.core.errors import UserError
from bench.core.seeds import generator
from bench.data.augment import EvalView, View
from bench.data.loader import InMemoryLoader
from bench.data.sampler import Sampler
from bench.evaluate.features import extract
from bench.grid.cell import Protocol
from bench.measure.clock import Clock
from bench.models.backbones import build_backbone
from bench.train.loop import Trainer
from methods import Accelerator, Batch, Method, accelerators, methods
from methods.many_patches import coding_rate
from methods.rela import VIEW, ReLA
from methods.tokens import encode, patches, pooled
from tests.methods.small import AROUND

CPU, SIZE, COUNT = torch.device("cpu"), 16, 8
SMALL = {"byol": {"projection": 8}, "mocov3": {"hidden": 16, "projection": 8}}


def inner(name: str = "byol", backbone: str = "resnet_small") -> Method:
    torch.manual_seed(0)
    network = build_backbone(backbone, SIZE)
    return methods.build(name, network.module, network.dim, SMALL.get(name, {}))


def trainer_of(method: Method, epochs: int, **recipe: Any) -> Trainer:
    """Return what trains a method on eight images of noise, one step an epoch."""
    pixels = torch.randint(0, 256, (COUNT, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator(0, "images"))
    source = InMemoryLoader(pixels, torch.arange(COUNT), SIZE, CPU)
    targets = torch.randn(COUNT, 8, generator=generator(0, "targets"))
    return Trainer(
        method, source, Sampler(COUNT, 1.0, COUNT, 0), targets, Protocol(epochs=epochs, **recipe), Clock(CPU)
    )


def steps_of(trainer: Trainer) -> list[tuple[str, set[int], float]]:
    """Take all steps, and return the kind of each, the pixels of its views and its rate."""
    seen: list[set[int]] = []

    def loss(batch: Batch) -> Tensor:
        seen.append({view.shape[2] for view in batch.views})
        return own(batch)

    own, trainer.method.loss = trainer.method.loss, loss  # type: ignore[method-assign]
    found = []
    for step in range(trainer.steps):
        trainer.train(step + 1, lambda: None)
        found.append((trainer.kind, seen[-1], trainer.lr))
    return found


RATES = [0.2777778, 0.8333333, 0.9330127, 0.6473777, 0.2830581, 0.0345631]  # at 1/12, 3/12, ..., 11/12 of a cycle


def test_views_grow_to_their_size_and_the_rate_rises_and_falls_within_each_cycle() -> None:
    trainer = trainer_of(accelerators.build("progressive", inner(), None, {}), epochs=12, lr=0.01)
    kinds, pixels, rates = zip(*steps_of(trainer), strict=True)
    assert pixels == ({8}, {8}, {12}, {12}, {16}, {16}) * 2
    assert (
        kinds == ("method at 0.5 of the size",) * 2 + ("method at 0.75 of the size",) * 2 + ("method",) * 2 + kinds[:6]
    )
    assert rates == pytest.approx([0.01 * rate for rate in RATES] * 2, abs=1e-8)
    assert trainer.method.views == methods.get("byol").views, "a view of full size is the method's own"


def test_other_cycles_levels_and_sizes_of_views() -> None:
    """Local views grow with the others, and cycles, the last level too, need not be whole numbers of steps."""
    method = inner("swav_multicrop")
    found = accelerators.build("progressive", method, None, {"cycles": 3, "levels": 4, "smallest": 0.25})
    shares = []
    for step in range(20):
        found.before_step(step, 20)
        assert [view.size for view in found.views] == [view.size * found.share for view in method.views]
        shares.append(found.share)
    assert sorted(set(shares)) == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert shares[:8] == pytest.approx([0.25, 0.25, 0.5, 0.75, 0.75, 1.0, 1.0, 0.25])
    assert shares[-1] == 1.0


def test_relas_views_grow_too_and_its_rate_and_kinds_are_inside() -> None:
    rela = ReLA(inner(), 8, phase_steps=4)
    trainer = trainer_of(accelerators.build("progressive", rela, None, {"cycles": 1}), epochs=6)
    found = steps_of(trainer)
    assert [kind for kind, _, _ in found] == [
        *["rela at 0.5 of the size"] * 2,
        *["rela at 0.75 of the size"] * 2,
        *["method"] * 2,
    ]
    assert [pixels for _, pixels, _ in found] == [{8}, {8}, {12}, {12}, {16}, {16}]
    assert [rate for *_, rate in found] == pytest.approx([1e-3 * rate for rate in RATES], abs=1e-9)
    rela.switch_step = None
    assert trainer.method.views == (VIEW, VIEW)
    assert rela.steps == 6
    rela.falling = 0.5
    assert trainer.method.rate == pytest.approx(0.5 * RATES[-1], abs=1e-6)


# Of conv1, bn1 and the four blocks: 0.8, 0.84, ..., 1, cubed.
ENDS = [0.512, 0.592704, 0.681472, 0.778688, 0.884736, 1.0]
LAYERS = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")


def test_layers_are_frozen_at_the_cubes_of_equal_shares_and_then_take_no_backward_pass() -> None:
    trainer = trainer_of(accelerators.build("freeze_out", inner(), None, {}), epochs=10)
    kinds = [kind for kind, *_ in steps_of(trainer)]
    frozen = [sum(end <= step / 10 for end in ENDS) for step in range(10)]
    assert frozen == [0, 0, 0, 0, 0, 0, 2, 3, 4, 5]
    assert kinds == [f"method, {count} layers frozen" if count else "method" for count in frozen]
    flops = [trainer.spent.step_flops[kind] for kind in kinds]
    assert sorted(set(flops), reverse=True) == [flops[step] for step in (0, 6, 7, 8, 9)], "fewer with each layer"


@pytest.mark.parametrize("recipe", [{"weight_decay": 0.5}, {"optimiser": "lars", "lr": 1.0}], ids=["adamw", "lars"])
def test_a_frozen_layer_stays_bit_by_bit_while_all_else_moves(recipe: dict[str, Any]) -> None:
    """Neither weight decay nor a momentum changes it, and its batch norms keep their statistics; its copy follows."""
    trainer = trainer_of(accelerators.build("freeze_out", inner(), None, {}), epochs=7, **recipe)

    def state() -> dict[str, Tensor]:
        return {key: value.clone() for key, value in trainer.method.state_dict().items() if "num_batches" not in key}

    for step in range(7):
        before = state()
        trainer.train(step + 1, lambda: None)
        changed = {key for key, value in state().items() if not torch.equal(value, before[key])}
        frozen = {layer for layer, end in zip(LAYERS, ENDS, strict=True) if end <= step / 7}
        of_backbone = {key for key in before if key.startswith("method.backbone.")}
        still = {key for key in of_backbone if key.split(".")[2] in frozen}
        assert changed & of_backbone == of_backbone - still, f"step {step}"
        assert "method.teacher.module.0.conv1.weight" in changed, "the momentum network follows"
        assert "method.projector.layers.0.weight" in changed


@pytest.mark.parametrize(("optimiser", "scaled"), [("adamw", True), ("sgd", False)])
def test_each_layer_has_a_rate_of_its_own_that_falls_to_zero_where_it_is_frozen(optimiser: str, scaled: bool) -> None:
    """The weights are those of the optimiser's own groups of parameters, in float64, with the rates of equation 1."""
    found = accelerators.build("freeze_out", inner(), None, {"scaled": scaled})
    names = [key for key, value in found.named_parameters() if value.requires_grad]
    ends = {f"backbone.{layer}": end for layer, end in zip(LAYERS, ENDS, strict=True)}
    weights = {key: nn.Parameter(found.get_parameter(key).detach().double()) for key in names}
    groups = [{"params": [weights[key]], "end": ends.get(".".join(key.split(".")[:2]), 1.0)} for key in names]
    kinds = {
        "adamw": lambda: torch.optim.AdamW(groups, weight_decay=0.1),
        "sgd": lambda: torch.optim.SGD(groups, 1.0, 0.9),
    }
    by_hand, steps = kinds[optimiser](), 8
    trainer = trainer_of(found, steps, optimiser=optimiser, lr=0.01, weight_decay=0.1 if optimiser == "adamw" else 0.0)
    for step in range(steps):
        twin = copy.deepcopy(found).train()
        twin.before_step(step, steps)
        index, views = next(trainer.source.batches(twin.views, trainer.order, range(step, step + 1)))
        twin.loss(Batch(views, index)).backward()  # type: ignore[no-untyped-call]
        for key, value in weights.items():
            gradient = twin.get_parameter(key).grad
            value.grad = None if gradient is None else gradient.double()
        for group in by_hand.param_groups:
            at, end = step / steps, group["end"]
            group["lr"] = 0.01 * 0.5 * (1 + math.cos(math.pi * at / end)) / (end if scaled else 1) if at < end else 0.0
        by_hand.step()
        trainer.train(step + 1, lambda: None)
        for key, value in weights.items():
            torch.testing.assert_close(found.get_parameter(key).double(), value.detach(), atol=1e-6, rtol=0, msg=key)


def test_a_transformers_positions_are_frozen_with_its_first_layer_and_what_was_random_stays_so() -> None:
    """MoCo v3 never trains the patch projection: the first layer that learns is the first block."""
    method = inner("mocov3", "vit_micro")
    found = accelerators.build("freeze_out", method, None, {"first": 0.5})
    learns = {key for key, value in method.backbone.named_parameters() if value.requires_grad}
    assert "pos_embed" in learns
    for at, layers in ((0.1, 0), (0.125, 1), (0.3, 2), (0.99, 4), (0.0, 0)):  # (0.5, 0.625, ..., 1) cubed
        found.before_step(round(100000 * at), 100000)
        gone = learns - {key for key, value in method.backbone.named_parameters() if value.requires_grad}
        first = {"pos_embed"} if layers else set[str]()
        assert gone == first | {key for key in learns if key.startswith(tuple(f"blocks.{i}." for i in range(layers)))}
    assert not method.backbone.patch_embed.proj.weight.requires_grad


def test_a_backbone_without_layers_of_its_own_is_never_frozen() -> None:
    class Whole(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input.flatten(1))

    backbones: list[nn.Module] = [Whole(3, 4), nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.ReLU())]
    for backbone in backbones:
        found = accelerators.build("freeze_out", methods.build("byol", backbone, 4, {}), None, {})
        found.before_step(999, 1000)
        assert found.kind == "method"
        assert all(value.requires_grad for value in backbone.parameters())


@pytest.mark.parametrize(("backbone", "before"), [("vit_micro", 0), ("vit_tiny_patch16_224", 1)])
def test_a_random_part_of_the_tokens_stays_each_with_its_position(backbone: str, before: int) -> None:
    """Of a batch's images each has its own; a class token stays; an evaluation sees all."""
    size = 16 if backbone == "vit_micro" else 64
    vit = build_backbone(backbone, size).module.double()
    plain = copy.deepcopy(vit).eval()
    found = accelerators.build("token_drop", methods.build("byol", vit, vit.embed_dim, {}), None, {"share": 0.7})
    assert vit.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(3, 3, size, size, generator=generator(0, "images")).double()
    found.train()
    torch.manual_seed(5)
    ours = found.backbone(images)
    torch.manual_seed(5)
    kept = torch.from_numpy(np.argsort(torch.rand(3, 16).numpy(), axis=1, kind="stable")[:, :5])  # 30 % of 16
    assert len({frozenset(row) for row in kept.tolist()}) == 3
    assert plain.num_prefix_tokens == before
    expected = pooled(plain, encode(plain, patches(plain, images), kept))
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
    found.eval()
    assert torch.equal(found.backbone(images), plain(images))


def test_every_network_drops_tokens_of_its_own_while_it_trains_and_features_are_of_all_tokens() -> None:
    method = inner("mocov3", "vit_micro")
    plain = copy.deepcopy(method.backbone)
    found = accelerators.build("token_drop", method, None, {}).train()
    lengths, rows = [], []

    def note(module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        lengths.append((given[0].shape[1], made.shape[1]))
        rows.append(made)

    for each in (method.query[0], method.key.module[0]):
        each.patch_drop.register_forward_hook(note)
    image = torch.rand(COUNT, 3, SIZE, SIZE)
    method.loss(Batch([image, image], torch.zeros(COUNT)))
    assert lengths == [(16, 8)] * 4
    assert not any(torch.equal(rows[0], other) for other in rows[1:]), "one image, and the momentum network its copy"
    pixels = torch.randint(0, 256, (COUNT, 3, SIZE, SIZE), dtype=torch.uint8)
    source = InMemoryLoader(pixels, torch.arange(COUNT), SIZE, CPU)
    ours, theirs = (extract(each, source, source, EvalView(SIZE)).train for each in (found.backbone, plain))
    assert torch.equal(ours, theirs)
    assert found.backbone.training, "and then training goes on"


def test_a_token_is_always_left_and_equal_shares_are_rounded() -> None:
    drop = accelerators.build("token_drop", inner("byol", "vit_micro"), None, {"share": 0.99}).backbone.patch_drop
    assert drop(torch.randn(2, 16, 4)).shape == (2, 1, 4)
    drop.share = 0.4
    assert drop(torch.randn(2, 9, 4)).shape == (2, 5, 4)


def total_coding_rate(z: Tensor, epsilon: float) -> float:
    """Return that of rows (B, p) by the determinant of (p, p), as equation 2 has it, in float64."""
    rows = z.detach().double().numpy()
    count, dim = rows.shape
    return float(0.5 * np.linalg.slogdet(np.eye(dim) + dim / (count * epsilon) * rows.T @ rows)[1])


@pytest.mark.parametrize(("count", "dim"), [(5, 12), (12, 5), (6, 6)])
def test_the_coding_rate_is_half_the_logarithm_of_a_determinant(count: int, dim: int) -> None:
    z = torch.randn(3, count, dim, generator=generator(0, "z")).double()
    expected = [total_coding_rate(each, 0.2) for each in z]
    torch.testing.assert_close(coding_rate(z, 0.2), torch.tensor(expected).double(), atol=1e-6, rtol=0)


@pytest.mark.usefixtures("float_is_double")
def test_the_loss_of_many_patches_pulls_an_images_crops_together_and_spreads_each_crop() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 12))
    params = {**AROUND["many_patches"], "patches": 4, "invariance": 30.0, "epsilon": 0.3}
    found = accelerators.build("many_patches", methods.build("byol", backbone, 12, {}), None, params).double()
    views = [torch.randn(7, 3, 4, 4, generator=generator(0, "view", k)).double() for k in range(4)]
    ours = found.loss(Batch(views, torch.zeros(7)))
    x = backbone(torch.cat(views))
    for layer in found.projector.layers:  # the batch norms see all crops
        x = layer(x)
    z = (x / x.square().sum(dim=1, keepdim=True).sqrt()).view(4, 7, -1).detach().numpy()
    cosines = [
        float(z[crop, image] @ middle / np.linalg.norm(middle) / np.linalg.norm(z[crop, image]))
        for image in range(7)
        for middle in [z[:, image].mean(axis=0)]
        for crop in range(4)
    ]
    spread = [total_coding_rate(torch.from_numpy(z[crop]), 0.3) for crop in range(4)]
    assert ours.item() == pytest.approx(-30 * np.mean(cosines) - np.mean(spread), abs=1e-6)


def test_many_patches_are_the_papers() -> None:
    found = accelerators.resolved("many_patches", {}, "")
    assert found == {
        "patches": 20,
        "size": 1.0,
        "invariance": 200.0,
        "epsilon": 0.2,
        "hidden": 4096,
        "projection": 1024,
    }
    model: Accelerator = accelerators.build("many_patches", inner(), None, {"patches": 3, "size": 0.5, "hidden": 8})
    crop = View(crop=(0.25, 0.25), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2, jitter=0.8, size=0.5)
    (view,) = set(model.views)
    assert (len(model.views), view) == (3, View(**{**vars(crop), "grey": 0.2, "blur": 0.1, "solarise": 0.1}))
    assert view.pixels(32) == 16
    sizes = [each.out_features for each in model.projector.modules() if isinstance(each, nn.Linear)]
    assert sizes == [8, 8, 1024]


@pytest.mark.parametrize(
    ("name", "params", "why"),
    [
        ("progressive", {"cycles": 0}, "accelerate.cycles to 1"),
        ("progressive", {"levels": 1}, "levels to 2"),
        ("progressive", {"smallest": 1.0}, "smallest between 0 and 1"),
        ("freeze_out", {"first": 0.0}, "accelerate.first is 0"),
        ("freeze_out", {"first": 1.5}, "accelerate.first is 1.5"),
        ("token_drop", {"share": 1.0}, "accelerate.share is 1"),
        ("token_drop", {}, "needs the patch tokens of a vision transformer, and the backbone is a CifarResNet"),
        ("many_patches", {"patches": 1}, "accelerate.patches to 2"),
        ("many_patches", {"size": 1.5}, "size above 0 and to 1"),
    ],
)
def test_what_cannot_be_is_one_sentence(name: str, params: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        accelerators.build(name, inner(), None, params)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_method_that_encodes_patches_itself_is_refused(wrapped: bool) -> None:
    method = inner("mae", "vit_micro")
    with pytest.raises(UserError, match="token_drop: MAE encodes patches itself; take another method"):
        accelerators.build("token_drop", ReLA(method, 8) if wrapped else method, None, {})
