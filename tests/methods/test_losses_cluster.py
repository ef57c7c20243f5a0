"""Whitening, groups, centroids, covariances and local views: losses and gradients against the papers, in float64."""

from itertools import product

import pytest
import torch
from torch import nn

from bench.core.errors import TrainingError, UserError
from methods import Batch, Method, methods
from methods.mmcr import polar
from methods.wmse import whitened
from tests.methods.test_losses import assert_same, method, sinkhorn_by_hand, unit

pytestmark = pytest.mark.usefixtures("float_is_double")
EXACT = {"rtol": 1e-6, "atol": 1e-9}


def batch(count: int, views: int = 2) -> Batch:
    draw = torch.Generator().manual_seed(1)
    shape = (count, 3, 8, 8)
    return Batch([torch.randn(shape, generator=draw).double() for _ in range(views)], torch.zeros(count).long())


def exact(name: str, **params: object) -> Method:
    """Return a method in float64, whose momentum network, if any, is another one than its student."""
    model = method(name, **params).double()
    with torch.no_grad():
        for parameter in model.teacher.parameters() if hasattr(model, "teacher") else ():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_wmse_is_the_distance_of_whitened_projections_of_length_one() -> None:
    model, data = exact("wmse", hidden=8, projection=3, sub_batch=6), batch(12)
    z0, z1 = (model.projector(model.backbone(x)) for x in data.views)
    terms = []
    for rows in (slice(0, 6), slice(6, 12)):
        whiteners = (torch.linalg.inv(torch.linalg.cholesky(torch.cov(z[rows].T))) for z in (z0, z1))
        w0, w1 = (unit((z[rows] - z[rows].mean(0)) @ w.T) for z, w in zip((z0, z1), whiteners, strict=True))
        terms.append((w0 - w1).square().sum(dim=1))
    assert_same(model, model.loss(data), torch.cat(terms).mean())
    torch.testing.assert_close(torch.cov(whitened(z0).T), torch.eye(3).double(), **EXACT)


def test_wmse_refuses_batches_that_cannot_be_whitened() -> None:
    with pytest.raises(UserError, match=r"params.sub_batch 64 must be larger than params.projection 64"):
        method("wmse", sub_batch=64)
    with pytest.raises(TrainingError, match=r"protocol.batch_size 12 must be a multiple of params.sub_batch 8"):
        exact("wmse", projection=3, sub_batch=8).loss(batch(12))
    collapsed = torch.tensor([[2.0, 2.0], [-2.0, -2.0], [0.0, 0.0]])  # its first component could be whitened
    assert whitened(collapsed).isnan().all()


def test_smog_predicts_the_other_views_group_while_groups_move_with_gradient() -> None:
    model, data = exact("smog", hidden=8, projection=4, groups=9), batch(12)
    old, (x0, x1) = model.groups.clone(), data.views
    z, key = model.student(x0), model.teacher.module(x1)
    groups, sizes = [], []
    for index, group in enumerate(old):
        members = [row for row in z if (unit(old) @ row).argmax() == index]
        groups.append(0.99 * group + 0.01 * torch.stack(members).mean(0) if members else group)
        sizes.append(len(members))
    assert min(sizes) == 0
    assert max(sizes) > 1
    moved = torch.stack(groups)
    logits = unit(model.predictor(z)) @ unit(moved).T / 0.1
    chosen = [(unit(old) @ row).argmax() for row in key]
    formula = -torch.stack([row.log_softmax(0)[index] for row, index in zip(logits, chosen, strict=True)]).mean()
    assert_same(model, model.loss(data), formula)
    assert torch.equal(model.groups, old), "the gradient needs the groups as they are"
    for _ in range(2):  # the second one had no loss, as in a ReLA phase
        model.after_step()
        torch.testing.assert_close(model.groups, moved.detach(), **EXACT)


@pytest.mark.parametrize("projection", [16, 4])  # more than there are images, and fewer
def test_mmcr_is_the_nuclear_norm_of_centroids(projection: int) -> None:
    model, data = exact("mmcr", hidden=8, projection=projection, pairs=2), batch(6, views=4)
    rows = [unit(network(x)) for x in data.views for network in (model.student, model.teacher.module)]
    formula = -torch.linalg.svdvals(sum(rows) / 8).sum()
    assert_same(model, model.loss(data), formula)
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())


def test_a_polar_factor_has_all_singular_values_at_one() -> None:
    draw = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, 4, generator=draw).double()).Q for n in (5, 7))
    spread = torch.tensor([30.0, 1.0, 1e-3, 1e-4]).double()
    torch.testing.assert_close(polar(u * spread @ v.T), u @ v.T, rtol=0, atol=1e-6)
    torch.testing.assert_close(polar(v * spread @ u.T), v @ u.T, rtol=0, atol=1e-6)


@pytest.mark.parametrize("projection", [16, 4])  # more than there are samples, and fewer
def test_frossl_is_the_difference_and_the_frobenius_norms_of_standardised_projections(projection: int) -> None:
    model, data = exact("frossl", hidden=8, projection=projection), batch(6)
    formula, views = torch.zeros(()), []
    for x in data.views:
        z = model.projector(model.backbone(x))
        z = (z - z.mean(0)) / z.std(0)
        z = projection**0.5 * z / z.norm(dim=0)
        kernel = torch.einsum("bi,bj->ij", z, z) / 6
        formula = formula + 2 * kernel.norm().log()  # minus the entropy of second order
        views.append(z)
    formula = formula + (views[0] - views[1]).square().mean()
    assert_same(model, model.loss(data), formula)


def test_dinos_student_predicts_the_global_views_from_all_others() -> None:
    model, data = exact("dino_multicrop", hidden=8, bottleneck=4, outputs=7), batch(6, views=8)
    outputs = [model.teacher.module(x).detach() for x in data.views[:2]]
    for centre in (torch.zeros(7), 0.1 * torch.cat(outputs).mean(0)):  # local views do not move it
        views = [*map(model.student, data.views[:2]), *model.student(torch.cat(data.views[2:])).split(6)]
        student = [(scores / 0.1).log_softmax(dim=1) for scores in views]
        teacher = [((out - centre) / 0.04).softmax(dim=1) for out in outputs]
        pairs = [(t, s) for t, s in product(range(2), range(8)) if t != s]
        formula = -torch.stack([(teacher[t] * student[s]).sum(1).mean() for t, s in pairs]).mean()
        assert_same(model, model.loss(data), formula)
        model.criterion.move()


@pytest.mark.parametrize("queue", [0, 6])
def test_swav_predicts_the_global_views_assignments_from_all_others(queue: int) -> None:
    model, data = exact("swav_multicrop", prototypes=5, queue=queue, queue_after=0), batch(6, views=8)
    model.loss(data)
    model.after_step()  # fills a queue of one batch
    earlier = [each.rows.clone() for each in model.queues]
    assert len(earlier) == 2, "local views have none"
    views = [*data.views[:2], torch.cat(data.views[2:])]
    z = [rows for x in views for rows in unit(model.projector(model.backbone(x))).split(6)]
    scores = [each @ model.prototypes.weight.T for each in z]
    terms = []
    for i, rows in enumerate(earlier):
        code = sinkhorn_by_hand((torch.cat([z[i], rows]) @ model.prototypes.weight.T).detach())[:6]
        terms += [-(code * (scores[v] / 0.1).log_softmax(dim=1)).sum(1).mean() for v in range(8) if v != i]
    assert_same(model, model.loss(data), sum(terms) / 14)
    model.after_step()
    for each, rows in zip(model.queues, z[:2], strict=True):
        torch.testing.assert_close(each.rows, rows.detach()[:queue], **EXACT)


@pytest.mark.parametrize(("name", "smallest", "border"), [("dino", 0.4, 0.4), ("swav", 0.14, 0.14)])
def test_multicrop_adds_six_local_views_to_the_two_of_its_method(name: str, smallest: float, border: float) -> None:
    views = methods.get(f"{name}_multicrop").views
    assert views[:2] == methods.get(name).views
    assert [view.pixels(224) for view in views] == 2 * [224] + 6 * [96]
    assert [view.crop for view in views] == 2 * [(smallest, 1.0)] + 6 * [(0.05, border)]
    assert {(view.blur, view.solarise) for view in views[2:]} == {(0.5, 0.0)}
    assert methods.resolved(f"{name}_multicrop", {}, "") == methods.resolved(name, {}, "")


@pytest.mark.parametrize("name", ["mmcr", "smog"])
def test_a_momentum_network_follows_after_each_step(name: str) -> None:
    model = exact(name, hidden=8)
    before = [parameter.clone() for parameter in model.teacher.parameters()]
    model.after_step()
    for old, new, leader in zip(before, model.teacher.parameters(), model.student.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), 0.99 * old + 0.01 * leader.detach(), **EXACT)


HEADS = {  # (in, out) of each linear layer with d = 12 and hidden layers of 8, and the kinds of what is between them
    "frossl": ([(12, 8), (8, 8), (8, 1024)], {nn.BatchNorm1d: 2, nn.ReLU: 2}),
    "mmcr": ([(12, 8), (8, 8), (8, 512)], {nn.BatchNorm1d: 2, nn.ReLU: 2}),
    "smog": ([(12, 8), (8, 128), (128, 8), (8, 128)], {nn.BatchNorm1d: 3, nn.ReLU: 2}),
    "wmse": ([(12, 8), (8, 64)], {nn.BatchNorm1d: 1, nn.ReLU: 1}),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_have_the_shapes_of_the_public_code(name: str) -> None:
    model = method(name, hidden=8)
    aside = [model.backbone, *model.backbone.modules(), *(model.teacher.modules() if hasattr(model, "teacher") else ())]
    head = [module for module in model.modules() if all(module is not each for each in aside)]
    shapes, kinds = HEADS[name]
    assert [(layer.in_features, layer.out_features) for layer in head if isinstance(layer, nn.Linear)] == shapes
    assert {kind: sum(isinstance(module, kind) for module in head) for kind in kinds} == kinds


def test_defaults_are_those_of_the_public_code() -> None:
    expected = {
        "frossl": {"hidden": 2048, "projection": 1024, "invariance": 1.0},
        "mmcr": {"hidden": 8192, "projection": 512, "pairs": 4, "momentum": 0.99},
        "smog": {
            "hidden": 2048,
            "projection": 128,
            "groups": 3000,
            "temperature": 0.1,
            "group_momentum": 0.99,
            "momentum": 0.99,
        },
        "wmse": {"hidden": 1024, "projection": 64, "sub_batch": 128},
    }
    assert {name: methods.resolved(name, {}, "") for name in expected} == expected
    assert len(method("mmcr", hidden=8).views) == 8
