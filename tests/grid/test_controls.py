"""What a grid can say of accelerators and warm starts, and the sentence on what it cannot."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bench.core.errors import PluginError, UserError
from bench.core.paths import Paths
from bench.grid.cell import Arm, Cell, arm_name, is_plain, makes_prior
from bench.grid.controls import Accelerate
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.plan.graph import Missing, Task, plan
from bench.report.labels import arm_labels
from methods import Accelerator, Method, accelerators

GRID = """
backbone: resnet_small
datasets: [{name: digits, train_images: 64}]
seeds: [0]
arms: [byol, ARM]
protocol: {epochs: 2, batch_size: 32}
"""
SEED = "{method: byol, accelerate: {name: seed, prior: rand, queue: 16}}"


def tasks_of(folder: Path, arm: str) -> list[Task]:
    (folder / "tiny.yaml").write_text(GRID.replace("ARM", arm))
    cells = expand(load_grid(str(folder / "tiny.yaml")))
    return plan(cells, cells, Paths(folder, folder, "tiny"), "grid tiny")


def test_an_accelerators_own_keys_stand_beside_its_name_and_come_back_from_a_record(tmp_path: Path) -> None:
    _, task = tasks_of(tmp_path, SEED)
    found = task.cell.accelerate
    assert found is not None
    assert (found.name, found.prior, found.params) == ("seed", "rand", {"queue": 16})
    assert Cell.model_validate_json(task.cell.model_dump_json()) == task.cell
    assert not isinstance(task, Missing)
    assert task.inputs.accelerator_params == {"queue": 16, "temperature": 0.2, "prior_temperature": 0.01}
    assert task.prior is not None


def test_a_default_that_is_spelled_out_is_the_same_cell(tmp_path: Path) -> None:
    again = SEED.replace("queue: 16", "queue: 16, temperature: 0.2")
    with pytest.raises(UserError, match="again, once defaults are filled in"):
        tasks_of(tmp_path, f"{SEED}, {again}")


@pytest.mark.parametrize(
    ("accelerate", "why"),
    [
        ("{name: simrex, prior: rand}", "unknown accelerator 'simrex'; did you mean 'simreg'?"),
        ("{name: simreg}", "accelerator 'simreg' needs a prior's targets: name it as accelerate.prior"),
        ("{name: simreg}, rela: {prior: rand}", "name it as accelerate.prior, and leave out rela"),
        ("{name: seed, prior: rand, quee: 3}", "accelerate.quee: no such parameter; did you mean 'queue'?"),
        ("{name: seed, prior: rand, queue: 0.5}", "accelerate.queue: 0.5 is not a int"),
        ("{name: token_drop}", "accelerator 'token_drop' needs the patch tokens of a vision transformer, and the"),
        ("{name: freeze_out, prior: rand}", "has no use for a prior: leave out accelerate.prior"),
        ("{name: seed, prior: X-T}", "prior 'X-T' is the backbone of the cell byol"),
        ("{prior: rand}", "key 'arms[1].accelerate.name' is missing"),
        ("{name: seed, prior: rand, queue: .inf}", "must be finite numbers"),
        ("{name: seed, prior: rand, weights_key: a}", "weights_key is for a prior file:<path>"),
    ],
)
def test_an_accelerator_that_cannot_be(accelerate: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        tasks_of(tmp_path, f"{{name: it, method: byol, accelerate: {accelerate}}}")
    assert why in str(caught.value)
    assert str(tmp_path) in str(caught.value) or "grid tiny: arm 'it'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "name", "label"),
    [
        ({"accelerate": Accelerate(name="simreg", prior="rand")}, "simreg(byol,rand)", "byol + simreg (rand)"),
        (
            {"accelerate": Accelerate.model_validate({"name": "seed", "prior": "rand", "queue": 16, "shuffle": True})},
            "seed(byol,rand,queue=16)",
            "byol + seed (rand, queue 16, shuffled)",
        ),
        ({"warm_start": "CF10-T"}, "byol from CF10-T", "byol from CF10-T"),
        ({"seconds_of": "x"}, "byol at the seconds of x", "byol at the seconds of x"),
    ],
)
def test_what_an_arm_is_called(settings: dict[str, Any], name: str, label: str) -> None:
    arm = Arm(method="byol", **settings)
    assert arm_name(arm) == name
    assert arm_labels([arm]) == {name: label}
    assert not is_plain(arm)


def test_only_the_plain_method_makes_a_prior(tmp_path: Path) -> None:
    plain = tasks_of(tmp_path, SEED)[0].cell
    assert makes_prior(plain)
    for changed in ({"accelerate": Accelerate(name="x")}, {"warm_start": "A-T"}, {"seconds_of": "x"}):
        assert not makes_prior(plain.model_copy(update=changed))


def test_an_accelerator_that_breaks_the_contract_is_named(temporary: Any) -> None:
    class Around(Accelerator):
        def __init__(self, inner: Method, dim: int) -> None:
            super().__init__(inner, dim)

    class Shadows(Accelerator):
        def __init__(self, method: Method, target_dim: int, precision: int = 1) -> None:
            super().__init__(method, target_dim)

    temporary(accelerators, around=Around, shadows=Shadows, method=Method)
    for name, why in (
        ("around", r"accelerator 'around' \(.*\): its first two parameters must be method and target_dim"),
        ("shadows", "parameter 'precision' is a key of every accelerator"),
        ("method", "must be a subclass of Accelerator"),
    ):
        with pytest.raises(PluginError, match=why):
            accelerators.resolved(name, {}, "here")


def test_parameters_of_an_accelerator_are_what_json_holds() -> None:
    with pytest.raises(ValidationError, match="must be finite numbers"):
        Accelerate.model_validate({"name": "seed", "queue": object()})
