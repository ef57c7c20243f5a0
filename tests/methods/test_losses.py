"""Losses, gradients and the momentum update against formulas written from the papers."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods import Batch, Momentum, methods
from methods.base import Method


def batch(count: int = 6) -> Batch:
    draw = torch.Generator().manual_seed(1)
    views = [torch.randn(count, 3, 8, 8, generator=draw) for _ in range(2)]
    return Batch(views, torch.zeros(count, dtype=torch.int64))


def method(name: str) -> Method:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(192, 12))
    return methods.get(name)(backbone, 12)


def assert_same_gradients(model: Method, ours: Tensor, formula: Tensor) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(ours, trained, retain_graph=True)
    expected = torch.autograd.grad(formula, trained)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def unit(x: Tensor) -> Tensor:
    return x / x.pow(2).sum(dim=1, keepdim=True).sqrt()


def test_byol_is_the_symmetric_negative_cosine_to_a_detached_teacher() -> None:
    model, data = method("byol"), batch()
    with torch.no_grad():  # the teacher lags behind: make it differ from the student
        for parameter in model.teacher.parameters():
            parameter.mul_(0.9)
    ours = model.loss(data)
    x0, x1 = data.views
    p0, p1 = (unit(model.predictor(model.projector(model.backbone(x)))) for x in (x0, x1))
    with torch.no_grad():
        z0, z1 = (unit(model.teacher.module(x)) for x in (x0, x1))
    formula = -((p0 * z1).sum(1).mean() + (p1 * z0).sum(1).mean()) / 2
    torch.testing.assert_close(ours, formula)
    assert_same_gradients(model, ours, formula)


def test_byol_heads_have_the_shapes_of_the_reference() -> None:
    model = method("byol")
    for head, shape in ((model.projector, (12, 24, 256)), (model.predictor, (256, 24, 256))):
        linear = [module for module in head.modules() if isinstance(module, nn.Linear)]
        assert [(layer.in_features, layer.out_features) for layer in linear] == [shape[:2], shape[1:]]
        kinds = [type(module) for module in head.modules() if not list(module.children())]
        assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]


def test_simclr_is_nt_xent_at_its_temperature() -> None:
    model, data = method("simclr"), batch()
    ours = model.loss(data)
    z = torch.cat([unit(model.projector(model.backbone(x))) for x in data.views])
    count = len(data.labels)
    similarity = (z @ z.T / 0.5).masked_fill(torch.eye(2 * count, dtype=torch.bool), -torch.inf)
    partner = torch.cat([torch.arange(count, 2 * count), torch.arange(count)])
    formula = cross_entropy(similarity, partner)
    torch.testing.assert_close(ours, formula, rtol=1e-5, atol=1e-5)
    assert_same_gradients(model, ours, formula)


def test_momentum_follows_parameters_and_keeps_its_own_buffers() -> None:
    torch.manual_seed(0)
    online = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    copy = Momentum(online, 0.9)
    before = {name: value.clone() for name, value in copy.module.state_dict().items()}
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.add_(1.0)
    online(torch.randn(8, 4))
    copy.update(online)
    after = copy.module.state_dict()
    for name, parameter in online.named_parameters():
        torch.testing.assert_close(after[name], 0.9 * before[name] + 0.1 * parameter.detach())
    assert torch.equal(after["1.running_mean"], before["1.running_mean"])
    assert not any(parameter.requires_grad for parameter in copy.parameters())


def test_byol_updates_its_teacher_after_a_step_by_a_hundredth() -> None:
    model = method("byol")
    before = [parameter.clone() for parameter in model.teacher.parameters()]
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(2.0)
    model.after_step()
    for old, new, student in zip(before, model.teacher.parameters(), model.student.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), 0.99 * old + 0.01 * student.detach())
