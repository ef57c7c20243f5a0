"""`bench.grid.tune`: the points of a search, the trials that stand at them, and what cannot be tuned."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import qmc

from bench.core.errors import UserError
from bench.grid.cell import Tuning
from bench.grid.claims import statements
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.grid.schema import Grid
from bench.grid.tune import arm_or_trials, points, trials_of

BASE: dict[str, Any] = {
    "backbone": "resnet_small",
    "datasets": ["digits"],
    "budgets": [0.5, 1.0],
    "seeds": [0, 1],
    "arms": ["byol", {"name": "rela", "method": "byol", "rela": {"prior": "rand"}}],
    "tune": {"trials": 3, "space": {"lr": [1e-4, 1e-2], "schedule": ["constant", "cosine"]}, "seed": 7},
}


def load(path: Path, **changes: Any) -> Grid:
    (path / "g.yaml").write_text(yaml.safe_dump(BASE | changes))
    return load_grid(str(path / "g.yaml"))


def with_tune(**changes: Any) -> dict[str, Any]:
    return {"tune": BASE["tune"] | changes}


def test_the_points_are_scipys() -> None:
    space = {"lr": (1e-4, 1e-2), "schedule": ("constant", "cosine"), "weight_decay": (0.0, 0.2), "warmup": (0.1, 0.3)}
    found = points(Tuning(trials=16, space=space, seed=7))
    unit = qmc.Halton(4, scramble=True, seed=np.random.default_rng(7)).random(16)
    for point, (lr, schedule, warmup, decay) in zip(found, unit, strict=True):
        assert point["lr"] == pytest.approx(10 ** (-4 + 2 * lr), rel=6e-4)
        assert point["schedule"] == ("constant" if schedule < 0.5 else "cosine")
        assert point["warmup"] == pytest.approx(0.1 + 0.2 * warmup, rel=6e-4)
        assert point["weight_decay"] == pytest.approx(0.2 * decay, rel=6e-4)
    assert {point["schedule"] for point in found} == {"constant", "cosine"}
    assert points(Tuning(trials=16, space=space, seed=8)) != found
    above_zero = Tuning(trials=16, space={"weight_decay": (1e-4, 1.0)}, seed=7)
    assert sum(point["weight_decay"] < 0.01 for point in points(above_zero)) == 8, "half of them below the middle"


def test_every_arm_has_the_same_trials_at_each_budget(tmp_path: Path) -> None:
    grid = load(tmp_path)
    cells = expand(grid)
    assert grid.tune
    trials = [cell for cell in cells if cell.validation]
    assert len(cells) == 2 * 2 * (3 + 2)
    assert [cell.arm for cell in cells][:5] == ["byol, trial 1", "byol, trial 2", "byol, trial 3", "byol", "byol"]
    assert {(cell.seed, cell.validation.share, cell.validation.seed) for cell in trials if cell.validation} == {
        (7, 0.1, 7)
    }
    chosen = points(grid.tune)
    for start in range(0, len(trials), 3):
        found = [{key: getattr(one.protocol, key) for key in ("lr", "schedule")} for one in trials[start : start + 3]]
        assert found == chosen
    tuned = [cell for cell in cells if cell.tuned]
    assert len(tuned) == 8
    assert not any(cell.validation for cell in tuned)
    assert trials_of(tuned[0]) == trials_of(tuned[1]) == trials[:3], "whatever their seeds"
    assert {arm_or_trials(trial) for trial in trials[:3]} == {f"{tuned[0].arm}: trials"}
    assert arm_or_trials(tuned[0]) == tuned[0].arm


def test_trials_are_evaluated_once_at_their_end(tmp_path: Path) -> None:
    protocol = {"evaluate_at": [0.5], "evaluations": 4, "probe": {"seeds": 3}, "weight_decay": 0.3, "epochs": 7}
    trial = expand(load(tmp_path, protocol=protocol))[0].protocol
    assert (trial.evaluate_at, trial.evaluations, trial.probe.seeds) == ((1.0,), None, 1)
    assert (trial.weight_decay, trial.epochs) == (0.3, 7), "what is not in the space is the arm's"


def test_only_some_arms_are_tuned(tmp_path: Path) -> None:
    cells = expand(load(tmp_path, **with_tune(arms=["rela"])))
    assert {cell.arm for cell in cells if cell.tuned} == {"rela"}
    assert {cell.arm for cell in cells if cell.validation} == {f"rela, trial {number}" for number in (1, 2, 3)}


def test_an_arm_may_be_there_with_its_own_recipe_and_tuned(tmp_path: Path) -> None:
    arms = ["byol", {"name": "BYOL", "method": "byol"}]
    assert len({cell.key() for cell in expand(load(tmp_path, arms=arms, **with_tune(arms=["BYOL"])))}) == 2 * (
        2 + 3 + 2
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (with_tune(seed=1), "tune.seed: 1 is a seed of the grid; choose one that only the trials have"),
        (with_tune(arms=["relu"]), "tune.arms: 'relu' is no arm; did you mean 'rela'?"),
        (with_tune(space={"lrr": [1e-4, 1e-2]}), "tune.space.lrr: no key of a recipe; did you mean 'lr'?"),
        (with_tune(space={"epochs": [1.0, 2.0]}), "tune.space.epochs: no key of a recipe"),
        (with_tune(space={"lr": [1e-2, 1e-4]}), "tune.space.lr: must be the lowest and the highest value"),
        (with_tune(space={"lr": [1e-4, 1e-3, 1e-2]}), "tune.space.lr: must be the lowest and the highest value"),
        (with_tune(space={"lr": [0.0, 1e-2]}), "tune.space.lr: 0.0: input should be greater than 0"),
        (with_tune(space={"schedule": ["cosine"]}), "tune.space.schedule: must be two or more values, each once"),
        (with_tune(space={"schedule": ["cosine", "linear"]}), "tune.space.schedule: 'linear': input should be"),
        (with_tune(space={"schedule": ["cosine", "constant"]}), "only 2 differ; ask for fewer, or for a larger space"),
        (with_tune(space={"momentum": [0.5, 0.9]}), "only 1 differ; ask for fewer, or for a larger space"),
        (with_tune(space={}), "tune.space: {}: dictionary should have at least 1 item"),
        (with_tune(trials=1), "tune.trials: 1: input should be greater than or equal to 2"),
        (
            {"arms": ["byol", {"name": "m", "method": "simclr", "flops_of": "byol"}]},
            "tune.arms: 'm' ends at what another arm took (flops_of, seconds_of), and trials of it cannot",
        ),
        (
            with_tune(space={"optimiser": ["adamw", "sgd"], "lr": [0.1, 1.0]}) | {"protocol": {"precision": "fp16"}},
            "precision fp16 is for optimiser adamw",
        ),
        ({"arms": ["byol", {"name": "byol, trial 2", "method": "simclr"}]}, "'byol, trial 2' has the name of a trial"),
        (
            {"arms": ["byol", {"name": "b", "method": "byol", "recipe": {"lr": 0.1}}]},
            "arm 'b' is the same as 'byol'",
        ),
    ],
)
def test_what_cannot_be_tuned(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, **changes)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_trials_count_as_cells(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="102,204 cells"):
        load(tmp_path, budgets=[part / 51 for part in range(1, 52)], **with_tune(trials=1000))


def test_other_arms_are_not_tuned_by_names_of_those_that_are_gone(tmp_path: Path) -> None:
    load(tmp_path, **with_tune(arms=["rela"]))
    path = str(tmp_path / "g.yaml")
    assert load_grid(path, settings=["arms=[byol]"]).tune is None
    load(tmp_path)
    assert load_grid(path, settings=["arms=[byol]"]).tuned == {"byol"}


CLAIM = {"name": "half", "arm": "rela", "budget": 0.5, "baseline": "best", "share": 0.5}


def test_the_best_baseline_is_one_of_the_tuned_plain_arms_of_the_method_and_backbone(tmp_path: Path) -> None:
    arms = [
        *BASE["arms"],
        {"name": "slow", "method": "byol", "params": {"momentum": 0.9}},
        {"name": "half", "method": "byol", "params": {"momentum": 0.8}, "budgets": [0.5]},
        {"name": "wide", "method": "byol", "backbone": "resnet18"},
        {"name": "untuned", "method": "byol", "recipe": {"lr": 0.5}},
        "simclr",
    ]
    tuned = with_tune(arms=["byol", "rela", "slow", "half", "wide", "simclr"])
    (said,) = statements(load(tmp_path, arms=arms, claims=[CLAIM], **tuned))
    assert (said.arm, said.best_of, said.baseline_budget) == ("rela", ("byol", "slow"), 1.0)
    (said,) = statements(load(tmp_path, arms=arms, claims=[CLAIM | {"baseline_budget": "same"}], **tuned))
    assert said.best_of == ("byol", "slow", "half")


def test_the_best_of_none_is_refused(tmp_path: Path) -> None:
    for changes in ({"tune": None}, with_tune(arms=["rela"])):
        with pytest.raises(UserError) as caught:
            load(tmp_path, claims=[CLAIM], **changes)
        why = "'best': no plain arm of 'byol' at budget 1 is tuned; add one to `tune`, or name a baseline"
        assert str(caught.value).endswith(f"claims[0].baseline: {why}")


def test_a_tuned_arm_without_a_named_baseline_has_the_tuned_plain_one(tmp_path: Path) -> None:
    arms = [*BASE["arms"], {"name": "plain", "method": "byol"}]
    claim = {key: value for key, value in CLAIM.items() if key != "baseline"}
    for tuned, plain in (["rela", "plain"], "plain"), (["plain"], "byol"):
        (said,) = statements(load(tmp_path, arms=arms, claims=[claim], **with_tune(arms=tuned)))
        assert said.baseline == plain


def test_log_uniform_points_are_as_dense_in_each_decade() -> None:
    found = [math.log10(float(point["lr"])) for point in points(Tuning(trials=300, space={"lr": (1e-5, 1e-2)}))]
    assert [sum(low <= value < low + 1 for value in found) for low in (-5, -4, -3)] == pytest.approx([100] * 3, abs=3)
