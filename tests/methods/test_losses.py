"""Losses, gradients and the momentum update against formulas written from the papers."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods import Batch, Method, Momentum, Queue, methods


def batch(count: int = 6) -> Batch:
    draw = torch.Generator().manual_seed(1)
    views = [torch.randn(count, 3, 8, 8, generator=draw) for _ in range(2)]
    return Batch(views, torch.zeros(count, dtype=torch.int64))


def method(name: str, **params: object) -> Method:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(192, 12))
    return methods.get(name)(backbone, 12, **params)


def assert_same_gradients(model: Method, ours: Tensor, formula: Tensor, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(ours, trained, retain_graph=True)
    expected = torch.autograd.grad(formula, trained)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def assert_same(model: Method, ours: Tensor, formula: Tensor) -> None:
    """Assert that a loss and its gradients in float64 are those of a formula."""
    torch.testing.assert_close(ours, formula, rtol=1e-6, atol=1e-9)
    assert_same_gradients(model, ours, formula, rtol=1e-6, atol=1e-9)


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


@pytest.mark.parametrize("name", ["byol", "simsiam"])
def test_a_cosine_is_of_float32_whatever_the_networks_compute_in(name: str) -> None:
    model, data = method(name), batch()
    pairs: list[tuple[Tensor, Tensor]] = []
    model.criterion.register_forward_pre_hook(lambda _, pair: pairs.append(pair))
    with torch.autocast("cpu", torch.bfloat16):
        ours = model.loss(data)
    assert {each.dtype for pair in pairs for each in pair} == {torch.float32}
    formula = -sum((unit(one) * unit(other)).sum(1).mean() for one, other in pairs) / 2
    torch.testing.assert_close(ours, formula, rtol=0, atol=1e-6)
    assert ours.dtype == torch.float32


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


def test_simsiam_is_the_symmetric_negative_cosine_to_the_detached_other_view() -> None:
    model, data = method("simsiam"), batch()
    ours = model.loss(data)
    z0, z1 = (model.projector(model.backbone(x)) for x in data.views)
    terms = [(unit(model.predictor(a)) * unit(b).detach()).sum(1).mean() for a, b in ((z0, z1), (z1, z0))]
    formula = -(terms[0] + terms[1]) / 2
    torch.testing.assert_close(ours, formula)
    assert_same_gradients(model, ours, formula)


@pytest.mark.parametrize("projection", [16, 4])  # more than there are samples, and fewer
def test_barlow_twins_is_the_distance_of_the_cross_correlation_from_the_identity(projection: int) -> None:
    model, data = method("barlow_twins", projection=projection), batch()
    ours = model.loss(data)
    za, zb = (model.projector(model.backbone(x)) for x in data.views)
    za, zb = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (za, zb))
    formula = torch.zeros(())
    for i in range(projection):
        for j in range(projection):
            correlation = (za[:, i] * zb[:, j]).mean()
            formula = formula + ((1 - correlation) ** 2 if i == j else 0.005 * correlation**2)
    torch.testing.assert_close(ours, formula, rtol=1e-4, atol=1e-4)
    assert_same_gradients(model, ours, formula)


@pytest.mark.parametrize("projection", [16, 4])  # more than there are samples, and fewer
def test_vicreg_is_invariance_variance_and_covariance(projection: int) -> None:
    model, data = method("vicreg", projection=projection), batch()
    ours = model.loss(data)
    za, zb = (model.projector(model.backbone(x)) for x in data.views)

    def variance(z: Tensor) -> Tensor:
        return (1 - (z.var(0) + 1e-4).sqrt()).clamp(min=0).mean()

    def covariance(z: Tensor) -> Tensor:
        square = torch.cov(z.T) ** 2
        return (square.sum() - square.diagonal().sum()) / projection

    # The public code halves the variance terms that equation 6 adds up, and divides equation 5 by the components.
    formula = 25 * ((za - zb) ** 2).mean() + 25 * (variance(za) + variance(zb)) / 2 + covariance(za) + covariance(zb)
    torch.testing.assert_close(ours, formula, rtol=1e-4, atol=1e-4)
    assert_same_gradients(model, ours, formula)


def test_moco_picks_the_key_among_those_of_earlier_batches() -> None:
    model, data = method("moco", queue=8), batch()
    with torch.no_grad():
        for parameter in model.key.parameters():
            parameter.mul_(0.9)
    rows = model.queue.rows.clone()
    ours = model.loss(data)
    x0, x1 = data.views
    query = unit(model.query(x0))
    with torch.no_grad():
        key = unit(model.key.module(x1))
    terms = []
    for q, k in zip(query, key, strict=True):
        logits = torch.stack([q @ k, *(q @ row for row in rows)]) / 0.2
        terms.append(logits.exp().sum().log() - logits[0])
    formula = torch.stack(terms).mean()
    torch.testing.assert_close(ours, formula)
    assert_same_gradients(model, ours, formula)
    for _ in range(2):  # the second one had no loss, as in a ReLA phase
        model.after_step()
        torch.testing.assert_close(model.queue.rows, torch.cat([key, rows[6:]]))


def sinkhorn_by_hand(scores: Tensor) -> Tensor:
    """Return the assignments (B, K): alternately equal sums over prototypes and over samples, three times."""
    plan = (scores.double() / 0.05).exp()
    for _ in range(3):
        plan = plan / plan.sum(dim=0, keepdim=True)  # every prototype gets as much as the others
        plan = plan / plan.sum(dim=1, keepdim=True)  # every sample gives as much as the others
    return plan


@pytest.mark.parametrize("queue", [0, 6])
def test_swav_predicts_the_other_views_assignment(queue: int) -> None:
    model, data = method("swav", prototypes=5, queue=queue, queue_after=0), batch()
    model.loss(data)
    model.after_step()  # fills a queue of one batch
    earlier = [each.rows.clone() for each in model.queues]
    ours = model.loss(data)
    weight = model.prototypes.weight
    z = [unit(model.projector(model.backbone(x))) for x in data.views]
    scores = [each @ weight.T for each in z]
    count = len(data.labels)
    codes = [
        sinkhorn_by_hand((torch.cat([each, rows]) @ weight.T).detach())[:count]
        for each, rows in zip(z, earlier, strict=True)
    ]
    terms = [-(codes[1 - i] * (scores[i] / 0.1).log_softmax(dim=1)).sum(1).mean() for i in (0, 1)]
    formula = ((terms[0] + terms[1]) / 2).float()
    torch.testing.assert_close(ours, formula, rtol=1e-5, atol=1e-5)
    assert_same_gradients(model, ours, formula)
    model.after_step()
    for each, rows in zip(model.queues, z, strict=True):
        torch.testing.assert_close(each.rows, rows.detach()[:queue])
    with torch.no_grad():
        model.prototypes.weight.mul_(3)
    model.after_step()
    torch.testing.assert_close(model.prototypes.weight.norm(dim=1), torch.ones(5))


def test_swavs_queue_is_used_after_so_many_images() -> None:
    data = batch()
    with_queue, without = (method("swav", prototypes=5, queue=size, queue_after=18) for size in (4, 0))
    kinds, same = [], []
    for _ in range(5):
        kinds.append(with_queue.kind)
        same.append(torch.allclose(with_queue.loss(data), without.loss(data), rtol=1e-5))
        with_queue.after_step()
    assert kinds == ["method"] * 3 + ["queue"] * 2, "18 images are three steps"
    assert same == [True] * 3 + [False] * 2
    assert methods.resolved("swav", {}, "")["queue_after"] == 15 * 1_281_167, "15 epochs of ImageNet"


def test_dino_is_the_cross_entropy_to_the_centred_sharpened_teacher() -> None:
    model, data = method("dino", hidden=16, bottleneck=4, outputs=7), batch()
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            parameter.mul_(0.9)
        model.criterion.center.copy_(torch.randn(7))
    centre = model.criterion.center.flatten().clone()
    ours = model.loss(data)
    x0, x1 = data.views
    with torch.no_grad():
        outputs = [model.teacher.module(x) for x in (x0, x1)]
        t0, t1 = (((out - centre) / 0.04).softmax(dim=1) for out in outputs)
    s0, s1 = ((model.student(x) / 0.1).log_softmax(dim=1) for x in (x0, x1))
    formula = -((t0 * s1).sum(1).mean() + (t1 * s0).sum(1).mean()) / 2
    torch.testing.assert_close(ours, formula)
    assert_same_gradients(model, ours, formula)
    torch.testing.assert_close(model.criterion.center.flatten(), centre, rtol=0, atol=0)
    model.after_step()
    moved = 0.9 * centre + 0.1 * torch.cat(outputs).mean(0)
    torch.testing.assert_close(model.criterion.center.flatten(), moved)


def test_dino_scores_rows_of_length_one_against_prototypes_of_length_one() -> None:
    model, data = method("dino", hidden=16, bottleneck=4, outputs=7), batch()
    mlp, _, last = model.student[1]
    torch.testing.assert_close(last.weight.norm(dim=1), torch.ones(7))
    assert not last.parametrizations.weight.original0.requires_grad, "the length stays"
    rows = unit(mlp(model.backbone(data.views[0])))
    torch.testing.assert_close(model.student(data.views[0]), rows @ last.weight.T)


def test_dinos_head_is_that_of_relas_public_code() -> None:
    mlp, _, last = method("dino").student[1]
    kinds = [type(module) for module in mlp.modules() if not list(module.children())]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.GELU, nn.Linear]
    first, second = (module for module in mlp.modules() if isinstance(module, nn.Linear))
    for layer, inputs in ((first, 12), (second, 2048), (last, 256)):  # torch's law: uniform in +-1 / sqrt(inputs)
        direction = layer.parametrizations.weight.original1 if layer is last else layer.weight
        torch.testing.assert_close(direction.std().item(), (3 * inputs) ** -0.5, rtol=0.02, atol=0)
    assert first.bias is None, "batch norm has its own"
    assert second.bias.abs().max() > 0


def test_supervised_is_the_cross_entropy_of_a_linear_classifier() -> None:
    model, data = method("supervised", classes=10), batch()
    data = Batch(data.views[:1], torch.tensor([0, 3, 9, 1, 1, 2]))
    ours = model.loss(data)
    logits = model.backbone(data.views[0]) @ model.classifier.weight.T + model.classifier.bias
    chosen = torch.stack([row[label] for row, label in zip(logits, data.labels, strict=True)])
    formula = (logits.exp().sum(dim=1).log() - chosen).mean()
    torch.testing.assert_close(ours, formula)
    assert_same_gradients(model, ours, formula)


HEADS = {  # (in, out) of each linear layer, with d = 12, as the papers have them
    "simsiam": [(12, 12), (12, 12), (12, 2048), (2048, 512), (512, 2048)],
    "barlow_twins": [(12, 8192), (8192, 8192), (8192, 8192)],
    "vicreg": [(12, 8192), (8192, 8192), (8192, 8192)],
    "moco": [(12, 12), (12, 128)],
    "swav": [(12, 12), (12, 128), (128, 3000)],
    "dino": [(12, 2048), (2048, 256), (256, 2048)],
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_have_the_shapes_of_the_paper(name: str) -> None:
    model = method(name)
    frozen = {
        id(module) for momentum in model.modules() if isinstance(momentum, Momentum) for module in momentum.modules()
    }
    backbone = {id(module) for module in model.backbone.modules()}
    layers = [
        module for module in model.modules() if isinstance(module, nn.Linear) and id(module) not in frozen | backbone
    ]
    assert [(layer.in_features, layer.out_features) for layer in layers] == HEADS[name]


def test_a_queue_holds_the_last_rows_that_were_pushed() -> None:
    torch.manual_seed(0)
    queue = Queue(7, 2)
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(7))
    pushed = torch.arange(48.0).view(24, 2)
    for start, stop in ((0, 3), (3, 6), (6, 6), (6, 9)):
        assert not queue.ready
        queue.push(pushed[start:stop])
        assert {tuple(row) for row in pushed[max(0, stop - 7) : stop].tolist()} <= {
            tuple(r) for r in queue.rows.tolist()
        }
    assert queue.ready
    queue.push(pushed[9:24])
    assert {tuple(row) for row in queue.rows.tolist()} == {tuple(row) for row in pushed[17:].tolist()}
    empty = Queue(0, 2)
    empty.push(pushed)
    assert not empty.ready


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


@pytest.mark.parametrize(
    ("name", "online", "follower", "momentum"),
    [("byol", "student", "teacher", 0.99), ("dino", "student", "teacher", 0.99), ("moco", "query", "key", 0.999)],
)
def test_a_momentum_network_follows_after_each_step(name: str, online: str, follower: str, momentum: float) -> None:
    model = method(name)
    network, copy = getattr(model, online), getattr(model, follower)
    before = [parameter.clone() for parameter in copy.parameters()]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(2.0)
    model.after_step()
    for old, new, leader in zip(before, copy.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), momentum * old + (1 - momentum) * leader.detach())
