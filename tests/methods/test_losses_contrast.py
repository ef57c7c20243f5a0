"""Contrastive methods and SimSiam's successor: losses and gradients against the papers' formulas, in float64."""

import pytest
import torch
from torch import Tensor, nn

from bench.models.backbones import build_backbone
from methods import Batch, Method, View, methods
from tests.methods.test_losses import assert_same, method, unit

pytestmark = pytest.mark.usefixtures("float_is_double")
COUNT = 6
QUEUES = {"nnclr": {"queue": 4}, "ressl": {"queue": 4}}  # a full one takes seconds to draw


def batch(step: int = 0, views: int = 2) -> Batch:
    draw = torch.Generator().manual_seed(step)
    made = [torch.randn(COUNT, 3, 8, 8, generator=draw, dtype=torch.float64) for _ in range(views)]
    return Batch(made, torch.zeros(COUNT, dtype=torch.int64))


def model_of(name: str, lagging: str = "", **params: object) -> Method:
    """Return a method in float64, whose momentum network `lagging` is not the one it follows."""
    model = method(name, **params).double()
    if lagging:
        with torch.no_grad():
            for parameter in getattr(model, lagging).parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def info_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Return the mean over rows i of -log(exp(q_i k_i / tau) / sum over j of exp(q_i k_j / tau)), row by row."""
    terms = []
    for i, query in enumerate(queries):
        scores = torch.stack([(query @ key / temperature).exp() for key in keys])
        terms.append(-(scores[i] / scores.sum()).log())
    return torch.stack(terms).mean()


def test_nnclr_picks_the_prediction_of_the_image_whose_nearest_neighbour_it_has() -> None:
    model = model_of("nnclr", hidden=16, projection=8, prediction=16, queue=9)
    rows: Tensor = model.queue.rows.clone()
    for step in range(3):
        data = batch(step)
        ours = model.loss(data)
        z = [model.projector(model.backbone(view)) for view in data.views]
        p = [unit(model.predictor(each)) for each in z]
        near = []
        for each in z:
            distances = [[(row - image).square().sum().item() for row in rows] for image in unit(each.detach())]
            near.append(torch.stack([rows[min(range(9), key=own.__getitem__)] for own in distances]))
        assert not torch.equal(near[0], near[1])
        assert_same(model, ours, (info_nce(near[0], p[1], 0.1) + info_nce(near[1], p[0], 0.1)) / 2)
        assert torch.equal(model.queue.rows, rows), "a step's own rows come after it"
        rows[[(COUNT * step + offset) % 9 for offset in range(COUNT)]] = unit(z[0].detach())
        for _ in range(2):  # the second one had no loss, as in a ReLA phase
            model.after_step()
            torch.testing.assert_close(model.queue.rows, rows)


def test_mocov3_picks_the_other_views_key_among_those_of_the_batch() -> None:
    model, data = model_of("mocov3", lagging="key", hidden=16, projection=8), batch()
    ours = model.loss(data)
    q = [unit(model.predictor(model.query(view))) for view in data.views]
    with torch.no_grad():
        k = [unit(model.key.module(view)) for view in data.views]
    formula = 2 * 0.2 * info_nce(q[0], k[1], 0.2) + 2 * 0.2 * info_nce(q[1], k[0], 0.2)
    assert_same(model, ours, formula)


def test_ressl_gives_a_strong_view_the_relations_of_a_weak_one() -> None:
    model, data = model_of("ressl", lagging="teacher", hidden=16, projection=8, queue=9), batch()
    rows: Tensor = model.queue.rows.clone()
    ours = model.loss(data)
    strong, weak = data.views
    query = unit(model.student(strong))
    with torch.no_grad():
        key = unit(model.teacher.module(weak))
    terms = []
    for q, k in zip(query, key, strict=True):
        wanted = torch.stack([(k @ row / 0.04).exp() for row in rows])
        guess = torch.stack([(q @ row / 0.1).exp() for row in rows])
        terms.append(-(wanted / wanted.sum() * (guess / guess.sum()).log()).sum())
    assert_same(model, ours, torch.stack(terms).mean())
    for _ in range(2):  # the second one had no loss, as in a ReLA phase
        model.after_step()
        torch.testing.assert_close(model.queue.rows, torch.cat([key, rows[COUNT:]]))


def test_ressls_weak_view_is_only_cropped_and_flipped() -> None:
    strong, weak = methods.get("ressl").views
    assert weak == View(crop=(0.2, 1.0), flip=0.5, jitter=0.0, grey=0.0, blur=0.0, solarise=0.0)
    assert strong == methods.get("moco").views[0]


def test_tico_avoids_the_directions_of_earlier_projections() -> None:
    model = model_of("tico", lagging="teacher", hidden=16, projection=5)
    covariance = torch.zeros(5, 5, dtype=torch.float64)
    for step in range(3):
        data = batch(step)
        ours = model.loss(data)
        z = unit(model.student(data.views[0]))
        with torch.no_grad():
            target = unit(model.teacher.module(data.views[1]))
            outer = torch.stack([torch.outer(each, each) for each in z]).mean(0)
            covariance = 0.9 * covariance + 0.1 * outer
        terms = [1 - a @ b + 8 * (a @ covariance @ a) for a, b in zip(z, target, strict=True)]
        assert_same(model, ours, torch.stack(terms).mean())
        assert not torch.equal(model.covariance, covariance), "it moves after the step"
        for _ in range(2):  # the second one had no loss, as in a ReLA phase
            model.after_step()
            torch.testing.assert_close(model.covariance, covariance)


@pytest.mark.parametrize("weighted", [False, True])
def test_dcl_and_dclw_contrast_with_the_views_of_other_images_alone(weighted: bool) -> None:
    model, data = model_of("dclw" if weighted else "dcl"), batch()
    ours = model.loss(data)
    z = [unit(model.projector(model.backbone(view))) for view in data.views]
    positive = torch.stack([a @ b for a, b in zip(*z, strict=True)])
    likely = (positive.detach() / 0.5).exp()
    weights = 2 - likely / likely.mean() if weighted else torch.ones(COUNT)
    terms = []
    for view in range(2):
        for i in range(COUNT):
            others = [(z[view][i] @ z[other][j] / 0.1).exp() for other in range(2) for j in range(COUNT) if j != i]
            terms.append(-weights[i] * positive[i] / 0.1 + torch.stack(others).sum().log())
    assert_same(model, ours, torch.stack(terms).mean())


def test_fastsiam_predicts_the_mean_of_three_other_views() -> None:
    model, data = model_of("fastsiam", projection=16, bottleneck=4), batch(views=4)
    assert len(model.views) == 4
    assert set(model.views) == set(methods.get("simsiam").views)
    ours = model.loss(data)
    z = [model.projector(model.backbone(view)) for view in data.views]
    terms = []
    for i in range(4):
        target = torch.stack([z[j].detach() for j in range(4) if j != i]).mean(0)
        terms.append(-(unit(model.predictor(z[i])) * unit(target)).sum(1).mean())
    assert_same(model, ours, torch.stack(terms).mean())


def layers(head: nn.Module) -> str:
    """Return the layers of a head, such as "12-24 norm relu 24-8"; a plain norm has no scale and no shift."""
    words = []
    for each in head.modules():
        if isinstance(each, nn.Linear):
            words.append(f"{each.in_features}-{each.out_features}")
        elif isinstance(each, nn.BatchNorm1d):
            words.append("norm" if each.affine else "plain norm")
        elif isinstance(each, nn.ReLU):
            words.append("relu")
    return " ".join(words)


HEADS = {  # with d = 12
    "nnclr": {
        "projector": "12-2048 norm relu 2048-2048 norm relu 2048-256 norm",
        "predictor": "256-4096 norm relu 4096-256",
    },
    "mocov3": {"query.1": "12-4096 norm relu 4096-256 plain norm", "predictor": "256-4096 norm relu 4096-256"},
    "ressl": {"student.1": "12-4096 relu 4096-512"},
    "tico": {"student.1": "12-4096 norm relu 4096-256"},
    "dcl": {"projector": "12-12 norm relu 12-128 norm"},
    "dclw": {"projector": "12-12 norm relu 12-128 norm"},
    "fastsiam": {
        "projector": "12-12 norm relu 12-12 norm relu 12-2048 plain norm",
        "predictor": "2048-512 norm relu 512-2048",
    },
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_those_of_the_paper(name: str) -> None:
    model = method(name, **QUEUES.get(name, {}))
    assert {head: layers(model.get_submodule(head)) for head in HEADS[name]} == HEADS[name]


def test_mocov3_gives_a_vision_transformer_deeper_heads_and_a_random_patch_projection() -> None:
    backbone = build_backbone("vit_micro", 12)
    model = methods.get("mocov3")(backbone.module, backbone.dim, hidden=32)
    assert layers(model.query[1]) == f"{backbone.dim}-32 norm relu 32-32 norm relu 32-256 plain norm"
    assert layers(model.predictor) == "256-32 norm relu 32-256 plain norm"
    frozen = {name for name, each in backbone.module.named_parameters() if not each.requires_grad}
    assert frozen == {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    model.loss(Batch([torch.randn(4, 3, 12, 12) for _ in range(2)], torch.zeros(4))).backward()  # type: ignore[no-untyped-call]
    assert all(each.grad is not None for each in model.parameters() if each.requires_grad)


DEFAULTS = {
    "nnclr": {"queue": 65536, "temperature": 0.1},
    "mocov3": {"temperature": 0.2, "momentum": 0.99},
    "ressl": {"queue": 131072, "student_temperature": 0.1, "teacher_temperature": 0.04, "momentum": 0.999},
    "tico": {"rho": 8.0, "beta": 0.9, "momentum": 0.99},
    "dcl": {"temperature": 0.1},
    "dclw": {"temperature": 0.1, "sigma": 0.5},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_settings_of_the_paper_are_the_defaults(name: str) -> None:
    assert DEFAULTS[name].items() <= methods.resolved(name, {}, "").items()


@pytest.mark.parametrize(
    ("name", "online", "follower", "momentum"),
    [("mocov3", "query", "key", 0.99), ("ressl", "student", "teacher", 0.999), ("tico", "student", "teacher", 0.99)],
)
def test_a_momentum_network_follows_after_each_step(name: str, online: str, follower: str, momentum: float) -> None:
    model = model_of(name, lagging=follower, **QUEUES.get(name, {}))
    network, copy = getattr(model, online), getattr(model, follower)
    before = [parameter.clone() for parameter in copy.parameters()]
    model.after_step()
    for old, new, leader in zip(before, copy.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), momentum * old + (1 - momentum) * leader.detach())
