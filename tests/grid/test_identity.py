"""What is part of a cell's identity, field by field, and what is not."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from bench.core.paths import Paths
from bench.grid.cell import PROTOCOL_VERSION, Cell, Inputs, Knn, Probe, Protocol, Tuning, Validation, cell_id
from bench.grid.controls import Accelerate, PriorChoice, Rela
from bench.grid.evaluation import FewLabels, Linear
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.plan.graph import plan
from bench.store.evaluated import evaluation_id

CELL = Cell(
    arm="x",
    dataset="digits",
    train_images=100,
    backbone="resnet_small",
    method="byol",
    params={"momentum": 0.9},
    rela=Rela(prior="rand"),
    budget=0.5,
    seed=0,
    protocol=Protocol(),
)
ACCELERATED = CELL.model_copy(update={"rela": None, "accelerate": Accelerate(name="simreg", prior="rand")})
INPUTS = Inputs(data="d", prior="p", method_version=1, params={"momentum": 0.9, "projection": 256})

OF_PRIOR = {
    "prior": "DIGITS-T",
    "backbone": "resnet18",
    "weights_key": "teacher",
    "input_size": 64,
    "precision": "bf16",
    "shuffle": True,
    "layer": "layers.1",
    "ensemble": ("CF10-R20",),
}
# For every field of every model, another value than the one it has in CELL or INPUTS.
OTHER: dict[type[BaseModel], dict[str, Any]] = {
    Probe: {"recipe": "lbfgs", "l2": (0.5,), "epochs": 99, "batch_size": 64, "lr": 1e-3, "seeds": 2},
    Knn: {"k": 20, "temperature": 0.2},
    Protocol: {
        "optimiser": "lars",
        "momentum": 0.8,
        "decay_norm_and_bias": False,
        "schedule": "cosine",
        "warmup": 0.1,
        "teacher": "cosine",
        "epochs": 99,
        "batch_size": 64,
        "lr": 1e-4,
        "weight_decay": 0.1,
        "precision": "bf16",
        "compile": "default",
        "input_size": 32,
        "eval_resize": 40,
        "blur": False,
        "evaluate_at": (0.5, 1.0),
        "evaluations": 4,
        "probe": Probe(epochs=99),
        "knn": Knn(k=20),
        "evaluate": (Linear(), FewLabels(shares=(0.5,))),
    },
    Rela: {**OF_PRIOR, "phase": 0.5, "train_map": True, "check_every": 2, "then": "cosine"},
    Accelerate: {**OF_PRIOR, "name": "seed"},
    Cell: {
        "dataset": "cifar10",
        "train_images": None,
        "backbone": "resnet18",
        "method": "simclr",
        "params": {"momentum": 0.8},
        "rela": None,
        "accelerate": Accelerate(name="simreg", prior="rand"),
        "warm_start": "CF10-T",
        "flops_of": "y",
        "seconds_of": "y",
        "budget": 0.2,
        "seed": 1,
        "protocol": Protocol(blur=False),
        "tuned": Tuning(space={"lr": (0.1, 1.0)}),
        "validation": Validation(share=0.1, seed=1),
    },
    Inputs: {
        "data": "e",
        "prior": None,
        "method_version": 2,
        "params": {"momentum": 0.9, "projection": 128},
        "flops_of": "f",
        "seconds_of": "f",
        "warm_start": "w",
        "accelerator_version": 1,
        "accelerator_params": {"queue": 16},
    },
}


UNUSED = {"Probe.l2", "Protocol.momentum"}  # by the defaults' recipes
APART = {"Cell.arm", "Protocol.evaluate", *UNUSED}  # from what the training depends on


def cases(*models: type[BaseModel]) -> list[Any]:
    return [pytest.param(m, field, id=f"{m.__name__}.{field}") for m in models for field in m.model_fields]


def changed(model: BaseModel, field: str) -> Any:
    value = OTHER[type(model)][field]
    assert value != getattr(model, field)
    return model.model_copy(update={field: value})


def with_field(model: type[BaseModel], field: str) -> Cell:
    """CELL with another value in the field of that model in it."""
    if model is Cell:
        found: Cell = changed(CELL, field)
        return found
    if model is Rela:
        return CELL.model_copy(update={"rela": changed(Rela(prior="rand"), field)})
    if model is Accelerate:
        return ACCELERATED.model_copy(update={"accelerate": changed(ACCELERATED.accelerate, field)})
    protocol = {
        Protocol: lambda: changed(Protocol(), field),
        Probe: lambda: Protocol(probe=changed(Probe(), field)),
        Knn: lambda: Protocol(knn=changed(Knn(), field)),
    }[model]()
    return CELL.model_copy(update={"protocol": protocol})


@pytest.mark.parametrize(
    ("model", "field"),
    [c for c in cases(Cell, Protocol, Probe, Knn, Rela) if c.id not in APART],
)
def test_a_field_of_the_cell_changes_key_and_id(model: type[BaseModel], field: str) -> None:
    other = with_field(model, field)
    assert other.key() != CELL.key()
    if (model, field) != (Cell, "params"):  # of the parameters, the resolved ones count: those of the inputs
        assert cell_id(other, INPUTS) != cell_id(CELL, INPUTS)


def test_a_further_evaluation_leaves_key_and_id_and_has_an_id_of_its_own() -> None:
    other = with_field(Protocol, "evaluate")
    assert (other.key(), cell_id(other, INPUTS)) == (CELL.key(), cell_id(CELL, INPUTS))
    one, fewer = FewLabels(shares=(0.1, 0.5)), FewLabels(shares=(0.5,))
    ids = [evaluation_id(cell, each, data) for cell in ("a", "b") for each in (one, fewer) for data in ({}, {"x": "y"})]
    assert len(set(ids)) == 8
    assert evaluation_id("a", one, {}, version=2) not in ids
    assert evaluation_id("a", FewLabels(shares=(0.1, 0.5)), {}) == ids[0]


@pytest.mark.parametrize("field", Accelerate.model_fields)
def test_a_field_of_an_accelerator_changes_key_and_id(field: str) -> None:
    other = with_field(Accelerate, field)
    assert other.key() != ACCELERATED.key()
    assert cell_id(other, INPUTS) != cell_id(ACCELERATED, INPUTS)
    assert set(OF_PRIOR) == set(PriorChoice.model_fields)


def test_of_an_accelerators_parameters_the_resolved_ones_are_in_the_id() -> None:
    other = CELL.model_copy(update={"rela": None, "accelerate": Accelerate(name="simreg", prior="rand", queue=16)})  # type: ignore[call-arg]
    assert other.key() != ACCELERATED.key()
    assert cell_id(other, INPUTS) == cell_id(ACCELERATED, INPUTS)


def test_where_the_file_of_a_starting_prior_lies_changes_nothing() -> None:
    one, two, other = (CELL.model_copy(update={"warm_start": f"file:{path}"}) for path in ("a/w.pt", "b/w.pt", "v.pt"))
    assert one.key() == two.key() != other.key()
    assert cell_id(one, INPUTS) == cell_id(two, INPUTS) == cell_id(other, INPUTS) != cell_id(CELL, INPUTS)


@pytest.mark.parametrize("field", Probe.model_fields)
def test_of_a_probe_what_its_recipe_uses_changes_key_and_id(field: str) -> None:
    unused = {"adam": {"l2"}, "lbfgs": {"epochs", "batch_size", "lr"}}
    for recipe in ("adam", "lbfgs"):
        probe = Probe(recipe=recipe)
        other = Probe(recipe="adam") if (field, recipe) == ("recipe", "lbfgs") else changed(probe, field)
        one, two = (CELL.model_copy(update={"protocol": Protocol(probe=each)}) for each in (probe, other))
        same = field in unused[recipe]
        assert (one.key() == two.key()) == same
        assert (cell_id(one, INPUTS) == cell_id(two, INPUTS)) == same


@pytest.mark.parametrize("optimiser", ["adamw", "sgd", "lars"])
def test_momentum_changes_key_and_id_of_what_has_one(optimiser: str) -> None:
    protocols = [Protocol.model_validate({"optimiser": optimiser, "momentum": m}) for m in (0.9, 0.8)]
    one, two = (CELL.model_copy(update={"protocol": protocol}) for protocol in protocols)
    assert (one.key() == two.key()) == (optimiser == "adamw")
    assert (cell_id(one, INPUTS) == cell_id(two, INPUTS)) == (optimiser == "adamw")


@pytest.mark.parametrize(("model", "field"), cases(Inputs))
def test_a_field_of_the_inputs_changes_the_id(model: type[BaseModel], field: str) -> None:
    assert cell_id(CELL, changed(INPUTS, field)) != cell_id(CELL, INPUTS)


def test_all_of_these_differ_from_each_other() -> None:
    same = {"Cell.arm", "Cell.params", "Protocol.momentum", "Protocol.evaluate"}
    fields = [c.values for c in cases(Cell, Protocol, Probe, Knn, Rela) if c.id not in same]
    assert {"seed", "budget", "blur", "temperature"} <= {field for _, field in fields}
    found = [cell_id(with_field(*pair), INPUTS) for pair in fields if pair[1] not in {"protocol", "probe", "knn"}]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("space", [("lr",), ("optimiser", "lr", "schedule")])
def test_what_trials_choose_changes_the_id_but_not_the_key(space: tuple[str, ...]) -> None:
    """A cell that is tuned is known before its recipe is, and two recipes make two results."""
    tuned = CELL.model_copy(
        update={"tuned": Tuning(space=dict.fromkeys(space, (0.1, 1.0))), "protocol": Protocol(momentum=0.8)}
    )
    chosen = tuned.protocol.model_copy(update={"optimiser": "sgd", "lr": 0.5, "schedule": "cosine"})
    other = tuned.model_copy(
        update={"protocol": tuned.protocol.model_copy(update={key: getattr(chosen, key) for key in space})}
    )
    assert other.key() == tuned.key()
    assert cell_id(other, INPUTS) != cell_id(tuned, INPUTS)
    fixed = other.model_copy(update={"protocol": other.protocol.model_copy(update={"weight_decay": 0.5})})
    assert fixed.key() != tuned.key()


@pytest.mark.parametrize("field", Tuning.model_fields)
def test_how_trials_choose_changes_key_and_id(field: str) -> None:
    others = {"trials": 9, "space": {"lr": (0.1, 2.0)}, "validation": 0.2, "seed": 101}
    one = Tuning(space={"lr": (0.1, 1.0)})
    cells = [CELL.model_copy(update={"tuned": each}) for each in (one, one.model_copy(update={field: others[field]}))]
    assert len({each.key() for each in cells}) == len({cell_id(each, INPUTS) for each in cells}) == 2


@pytest.mark.parametrize("held_out", [Validation(share=0.2, seed=1), Validation(share=0.1, seed=2)])
def test_what_a_trial_is_judged_by_changes_key_and_id(held_out: Validation) -> None:
    cells = [CELL.model_copy(update={"validation": each}) for each in (Validation(share=0.1, seed=1), held_out)]
    assert len({each.key() for each in cells}) == len({cell_id(each, INPUTS) for each in cells}) == 2


def test_the_arms_name_changes_nothing() -> None:
    other = CELL.model_copy(update={"arm": "y"})
    assert other.key() == CELL.key()
    assert cell_id(other, INPUTS) == cell_id(CELL, INPUTS)


def test_a_default_spelled_out_changes_the_key_alone() -> None:
    bare = CELL.model_copy(update={"params": {}})
    assert cell_id(bare, INPUTS) == cell_id(CELL, INPUTS)


def test_the_order_of_parameters_changes_nothing() -> None:
    one, two = (CELL.model_copy(update={"params": p}) for p in ({"a": 1, "b": 2}, {"b": 2, "a": 1}))
    assert one.key() == two.key()


def with_file(path: str) -> Cell:
    return CELL.model_copy(update={"rela": Rela(prior=f"file:{path}", backbone="resnet_small")})


def test_where_a_priors_file_lies_changes_nothing() -> None:
    here, there = with_file("a/weights.pt"), with_file("/b/c/weights.pt")
    assert here.key() == there.key()
    assert cell_id(here, INPUTS) == cell_id(there, INPUTS)


def test_what_a_priors_file_is_called_changes_the_key_but_not_the_id() -> None:
    one, two = with_file("one.pt"), with_file("two.pt")
    assert one.key() != two.key()
    assert cell_id(one, INPUTS) == cell_id(two, INPUTS)
    assert cell_id(one, INPUTS.model_copy(update={"prior": "q"})) != cell_id(one, INPUTS)


def test_where_data_and_results_lie_changes_no_id(tmp_path: Path) -> None:
    cells = expand(load_grid("quickstart"))
    found = [
        [task.id for task in plan(cells, cells, Paths(tmp_path / a / "d", tmp_path / a / "r", name), "grid g")]
        for a, name in (("one", "quickstart"), ("two", "other"))
    ]
    assert found[0] == found[1]
    assert len(set(found[0])) == len(cells)


def test_an_id_is_the_same_in_another_process() -> None:
    """Python's own `hash` of a string is salted; this one must not be."""
    code = (
        "from bench.grid.expand import expand; from bench.grid.load import load_grid; import hashlib;"
        "print(hashlib.sha256(''.join(c.key() for c in expand(load_grid('paper_table1'))).encode()).hexdigest())"
    )
    root = Path(__file__).parents[2]
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] != ""


def test_the_protocols_version_is_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = CELL.key(), cell_id(CELL, INPUTS)
    monkeypatch.setattr("bench.grid.cell.PROTOCOL_VERSION", PROTOCOL_VERSION + 1)
    after = CELL.key(), cell_id(CELL, INPUTS)
    assert before[0] != after[0]
    assert before[1] != after[1]
