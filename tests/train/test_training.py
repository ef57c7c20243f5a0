"""What training does to the weights, by a law written out by hand; what each seed decides; who is in which mode."""

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.core.errors import UserError
from bench.core.graphs import Recorded
from bench.core.paths import Paths
from bench.core.seeds import derive, generator
from bench.data.augment import EvalView, View, augment
from bench.data.loader import InMemoryLoader
from bench.data.sampler import Sampler
from bench.measure.clock import Clock
from bench.models.weights import read_state
from bench.targets.make import make_targets
from bench.targets.reduce import reduce_features
from bench.train import loop
from methods import Batch, Method, Momentum, Queue
from methods.build import build_method
from methods.rela import ReLA
from priors import find_prior
from tests.train.colours import registered, run, tasks_of
from tests.train.small import BATCH, CPU, DIM, SIZE, cell, method_of, noise, trainer_of

COUNT, STEPS = 24, 4
MOMENTUM = {"moco": 0.999, "dino": 0.99, "byol": 0.99}


@pytest.fixture(scope="module")
def source() -> InMemoryLoader:
    return noise(COUNT)


def adamw(weight: Tensor, gradients: list[Tensor], lr: float, decay: float) -> Tensor:
    """Return a weight after as many steps (Loshchilov and Hutter 2019, algorithm 2), in float64."""
    weight, m, v = weight.double(), torch.zeros(()), torch.zeros(())
    for t, gradient in enumerate(gradients, start=1):
        g = gradient.double()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        weight = weight - lr * decay * weight - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return weight


@pytest.mark.parametrize(("precision", "scale"), [("fp32", 1.0), ("bf16", 1.0), ("fp16", 65536.0)])
def test_only_losses_in_fp16_are_scaled(precision: str, scale: float, source: InMemoryLoader) -> None:
    of = cell(precision=precision)
    assert trainer_of(of, source).scaler.get_scale() == scale


@pytest.mark.parametrize("protocol", [{}, {"lr": 0.03, "weight_decay": 0.5}], ids=["defaults", "large"])
@pytest.mark.parametrize(("name", "rela"), [("byol", False), ("moco", False), ("dino", False), ("byol", True)])
def test_each_step_is_adamw_on_all_trained_weights_and_then_the_momentum_update(
    name: str, rela: bool, protocol: dict[str, float], source: InMemoryLoader
) -> None:
    """The gradients are those of a copy before each step; weight decay takes hold of biases and batch norms too."""
    of = cell(name, phase=1.0 if rela else None, **protocol)
    lr, decay = protocol.get("lr", 1e-3), protocol.get("weight_decay", 0.01)
    method = method_of(of, COUNT)
    with torch.no_grad():  # zeros and ones would hide their decay
        for parameter in method.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator(1, parameter.numel())))
    initial = {key: value.detach().clone() for key, value in method.named_parameters()}
    trainer = trainer_of(of, source, method)
    gradients: dict[str, list[Tensor]] = {key: [] for key, value in method.named_parameters() if value.requires_grad}
    views = source.batches(method.views, trainer.order, range(STEPS))
    (follows,) = [each for each in method.modules() if isinstance(each, Momentum)]
    inner = method.method if isinstance(method, ReLA) else method
    online = {"byol": "student", "dino": "student", "moco": "query"}[name]
    for step, (index, images) in enumerate(views, start=1):
        before = [parameter.double() for parameter in follows.parameters()]
        twin = copy.deepcopy(method).train()
        targets = trainer.targets[index] if trainer.targets is not None else None
        twin.loss(Batch(images, source.labels[index], targets)).backward()  # type: ignore[no-untyped-call]
        for key, parameter in twin.named_parameters():
            if key in gradients and parameter.grad is not None:
                gradients[key].append(parameter.grad.clone())
        trainer.train(step, lambda: None)
        for old, now, led in zip(before, follows.parameters(), inner.get_submodule(online).parameters(), strict=True):
            momentum = MOMENTUM[name]
            torch.testing.assert_close(now.double(), momentum * old + (1 - momentum) * led.double(), atol=2e-7, rtol=0)
    copies = set(map(id, follows.parameters()))
    for key, parameter in method.named_parameters():
        if gradients.get(key):
            assert len(gradients[key]) == STEPS
            expected = adamw(initial[key], gradients[key], lr, decay)
            torch.testing.assert_close(parameter.double(), expected, atol=1e-6 + 2e-4 * lr, rtol=0, msg=key)
        elif id(parameter) not in copies:  # ReLA's map, and the heads in its phase
            assert torch.equal(parameter, initial[key]), key


class Drawing(Method):
    """Draws in its loss, as dropout would."""

    views = (View(), View())

    def __init__(self, backbone: nn.Module, dim: int) -> None:
        super().__init__(backbone, dim)
        self.drawn: list[float] = []
        self.seen: list[Tensor] = []

    def loss(self, batch: Batch) -> Tensor:
        self.drawn.append(float(torch.rand(())))
        self.seen += batch.views
        return self.backbone(batch.views[0]).square().mean()


def test_a_stream_has_its_number_by_the_formula_that_every_record_relies_on() -> None:
    number = int(hashlib.sha256(b"3/order/0").hexdigest()[:16], 16) // 2
    assert derive(3, "order", 0) == number
    torch.testing.assert_close(
        torch.rand(5, generator=generator(3, "order", 0)),
        torch.rand(5, generator=torch.Generator().manual_seed(number)),
    )


def random_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights that are drawn at random: no zeros, no ones."""
    return {name: value for name, value in module.named_parameters() if value.flatten()[:2].unique().numel() > 1}


def test_initial_weights_are_those_of_the_seed_and_their_own_for_each_part() -> None:
    first, again, other = (method_of(cell("byol", seed, phase=1.0), COUNT) for seed in (0, 0, 1))
    plain, simclr = method_of(cell("byol"), COUNT), method_of(cell("simclr"), COUNT)
    assert len(random_weights(first)) > 20
    for name, value in random_weights(first).items():
        assert torch.equal(value, again.get_parameter(name)), name
        assert (value == other.get_parameter(name)).double().mean() < 0.01, name
    for name, value in first.backbone.named_parameters():
        assert torch.equal(value, plain.backbone.get_parameter(name)), "all arms of a seed begin with one backbone"
        assert torch.equal(value, simclr.backbone.get_parameter(name)), "all arms of a seed begin with one backbone"
    assert isinstance(first, ReLA)
    for name, value in first.method.named_parameters():
        assert torch.equal(value, plain.get_parameter(name)), "with and without ReLA the heads are the same"
    wide = build_method(cell("byol", phase=1.0), SIZE, 256, 3)
    assert isinstance(wide, ReLA)
    alike = [value for value in wide.method.parameters() if value.shape == wide.map.weight.shape]
    assert alike
    assert not any(torch.equal(value, wide.map.weight) for value in alike), "the map has draws of its own"


def test_a_random_prior_is_the_initial_backbone_of_its_seed(tmp_path: Path) -> None:
    paths = Paths(tmp_path, tmp_path, "x")
    models = [find_prior("rand", cell(seed=seed, phase=1.0), paths).model() for seed in (0, 1)]
    for seed, model in enumerate(models):
        for name, value in method_of(cell(seed=seed), COUNT).backbone.named_parameters():
            assert torch.equal(value, model.get_parameter(name))
    assert not torch.equal(models[0].get_parameter("conv1.weight"), models[1].get_parameter("conv1.weight"))


def test_a_seed_decides_order_views_and_what_a_method_draws_and_no_two_steps_have_the_same(
    source: InMemoryLoader,
) -> None:
    found = []
    for seed in (0, 0, 1):
        of = cell(seed=seed)
        trainer = trainer_of(of, source, Drawing(method_of(of, COUNT).backbone, 128))
        torch.manual_seed(len(found))  # whatever was drawn before
        trainer.train(6, lambda: None)
        assert isinstance(trainer.method, Drawing)
        index = torch.cat([trainer.order(step) for step in range(6)])
        found.append((index.tolist(), trainer.method.drawn, torch.stack(trainer.method.seen)))
    assert found[0][:2] == found[1][:2]
    assert torch.equal(found[0][2], found[1][2])
    assert found[0][0] != found[2][0]
    assert not set(found[0][1]) & set(found[2][1])
    assert found[0][1] == [float(torch.rand((), generator=generator(0, "step", step))) for step in range(6)]
    assert len(set(found[0][1])) == 6
    assert found[0][0][:COUNT] != found[0][0][COUNT:], "two epochs of a seed"
    views = [found[which][2].flatten(1) for which in (0, 2)]
    assert len(torch.cat(views).unique(dim=0)) == 2 * 6 * 2, "two views, six steps, two seeds"


@pytest.mark.parametrize("name", ["moco", "swav"])
def test_a_queue_gets_what_a_recorded_loss_has_made(
    name: str, source: InMemoryLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph runs nothing on the host when it is launched: no queue then keeps anything by itself."""
    queues: list[Queue] = []

    class Launched(Recorded):
        def __call__(self, *inputs: Tensor) -> Any:
            made = self.work(*inputs)
            for queue in queues:
                queue.kept = None
            return made

    found = []
    for kind in (Recorded, Launched):
        monkeypatch.setattr(loop, "Recorded", kind)
        trainer = trainer_of(cell(name), source)
        queues[:] = [each for each in trainer.method.modules() if isinstance(each, Queue)]
        before = queues[0].rows.clone()
        trainer.train(STEPS, lambda: None)
        assert not torch.equal(queues[0].rows, before)
        found.append((trainer.loss, [queue.rows.tolist() for queue in queues], [queue.pushed for queue in queues]))
    assert found[0] == found[1]


def test_a_batch_norm_counts_no_batches_unless_it_needs_them_and_nothing_else_changes(source: InMemoryLoader) -> None:
    """The counters stay in the state, so that one from before, which has counted, can be loaded."""
    found = []
    for counted in (False, True):
        method = method_of(cell(), COUNT)
        norms = [each for each in method.modules() if isinstance(each, nn.BatchNorm1d | nn.BatchNorm2d)]
        norms[0].momentum = None  # the mean over all batches
        trainer = trainer_of(cell(), source, method)
        for norm in norms if counted else ():
            vars(norm).pop("num_batches_tracked", None)
        state = trainer.state()
        counters = {key for key in state["method"] if key.endswith("num_batches_tracked")}
        trainer.restore(state | {"method": state["method"] | dict.fromkeys(counters, torch.tensor(5))})
        trainer.train(2, lambda: None)
        found.append((trainer.loss, trainer.method.state_dict()))
    (loss, state), (same, with_counts) = found
    assert loss == same
    assert state.keys() == with_counts.keys()
    changed = {key for key, value in state.items() if not torch.equal(value, with_counts[key])}
    moved = {key for key in counters if state[key] != 5}
    assert changed == counters - moved
    names = {name for name, each in method.named_modules(remove_duplicate=False) if each is norms[0]}
    assert moved == {f"{name}.num_batches_tracked" for name in names}


@pytest.mark.parametrize("name", MOMENTUM)
def test_a_momentum_network_trains_no_weight_and_keeps_batch_norms_of_its_own(
    name: str, source: InMemoryLoader
) -> None:
    """In train mode, as in the public code: its batch norm takes the batch's statistics."""
    method = method_of(cell(name), COUNT)
    (follows,) = [each for each in method.modules() if isinstance(each, Momentum)]
    statistics = {key: value.clone() for key, value in follows.named_buffers() if "running_mean" in key}
    assert statistics
    index, images = next(source.batches(method.views, Sampler(COUNT, 1.0, BATCH, 0), range(1)))
    method.train()
    assert not any(out.requires_grad for out in map(follows, images))
    method.loss(Batch(images, source.labels[index])).backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in follows.parameters())
    trainer = trainer_of(cell(name), source)
    trainer.train(1, lambda: None)
    assert all(module.training for module in trainer.method.modules())
    (trained,) = [each for each in trainer.method.modules() if isinstance(each, Momentum)]
    optimised = set(map(id, trainer.trained))
    assert not any(id(parameter) in optimised for parameter in trained.parameters())
    for key, before in statistics.items():
        assert not torch.equal(trained.get_buffer(key), before), key


def test_a_prior_makes_targets_in_eval_mode_and_learns_nothing(source: InMemoryLoader, tmp_path: Path) -> None:
    prior = find_prior("rand", cell(phase=1.0), Paths(tmp_path, tmp_path, "x"))
    model = prior.model()
    with torch.no_grad():
        (images,) = source.eval_batches(EvalView(SIZE, prior.mean, prior.std))
        model.train()
        for _ in range(20):  # statistics of its batch norms that are not those of these images
            model(augment([source.images], [View()], SIZE, generator(0))[0] * 2 + 1)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        prior.model = lambda: model  # type: ignore[method-assign]
        targets = make_targets(prior, source, DIM, SIZE, Clock(CPU))
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        expected, _ = reduce_features(model.eval()(images), DIM)
    assert isinstance(targets.values, Tensor)
    torch.testing.assert_close(targets.values, expected, atol=1e-3, rtol=0)


def test_to_be_evaluated_on_the_way_changes_nothing_that_is_learned(tmp_path: Path) -> None:
    """The backbone goes back to train mode, and the probe's draws are its own."""
    with registered():
        learned = []
        for shares in ("[1.0]", "[0.3, 0.6, 1.0]"):
            (task,), paths = tasks_of(tmp_path, "byol", protocol=f"evaluate_at: {shares}, probe: {{epochs: 2}}")
            record = run(task, paths)
            learned.append((record.curve[-1].loss, record.curve[-1].score, read_state(paths.backbone(task.id))))
    assert learned[0][:2] == learned[1][:2]
    assert all(torch.equal(value, learned[1][2][key]) for key, value in learned[0][2].items())


@pytest.mark.parametrize("rela", [False, True])
def test_labels_that_no_output_stands_for_are_told_of_before_the_first_step(rela: bool, source: InMemoryLoader) -> None:
    of = cell("supervised", phase=0.5 if rela else None)
    nine, ten = (method_of(of.model_copy(update={"params": {"classes": count}}), COUNT) for count in (9, 10))
    with pytest.raises(UserError, match=r"^params.classes is 9, and the labels are of 10 classes; raise it$"):
        trainer_of(of, source, nine)
    trainer_of(of, source, ten)


def test_steps_that_fp16_skips_are_counted_and_change_nothing(source: InMemoryLoader) -> None:
    """Gradients beyond 65,504 are infinite in fp16; the scaler begins at a factor of 65,536 and halves it each time."""
    of = cell(precision="fp16")
    method = method_of(of, COUNT)
    trainer = trainer_of(of, source, method)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    norm, skipped = trainer.weight_norm(), 0
    trainer.train(1, lambda: None)
    while trainer.weight_norm() == norm:
        skipped += 1
        assert skipped < 24, "the factor is 1 by then"
        trainer.train(trainer.step + 1, lambda: None)
    assert trainer.skipped_steps() == skipped > 0
