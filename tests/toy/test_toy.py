"""The two-Gaussian study: its samples and steps, its speed-ups, its records, its report."""

import json
import math
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from bench.core.errors import UserError
from bench.grid.load import load_grid
from bench.plan.request import program
from bench.store.reading import Damaged
from bench.toy import train as gaussians
from bench.toy.report import write_toy_report
from bench.toy.study import Setting, ToyGrid, ToyRecord, find_toy, read_toy
from bench.toy.train import Weights, descend, draw, evaluate, initial, logits, relabel, sgd_step, study, train_prior
from tests.run import processes
from tests.run.processes import ROOT, Ran

TINY: dict[str, Any] = {
    "title": "Tiny",
    "toy": {
        "dimension": 3,
        "distance": 1.0,
        "sigma": 0.5,
        "samples": 32,
        "test_samples": 100,
        "hidden": 4,
        "lr": 0.1,
        "batch_size": 8,
        "evaluate_at": [0, 2, 5],
        "prior_samples": 64,
        "prior_steps": 10,
    },
    "seeds": [0, 1, 2],
    "sigmas": [0.1],
    "rhos": [1.0],
    "early": 2,
    "target_loss": 0.7,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return tmp_path / "results" / "tiny"


def bench(path: Path, verb: str, *arguments: str, of: str = "") -> Ran:
    """Run a verb on the study in this process; `of` is a profile behind its name."""
    words = [verb, *([f"{path}{of}"] if verb == "report" else ["--grid", str(path)]), *arguments]
    words += ["--results", str(path.parent / "results")]
    words += ["--reports", str(path.parent / "reports")] if verb == "report" else []
    return processes.bench(*words)


def shipped() -> ToyGrid:
    grid = find_toy("paper_toy")
    assert grid
    return grid


def tiny(**changes: Any) -> Setting:
    grid = ToyGrid.model_validate({"name": "tiny", **TINY})
    return Setting(**{**dict(grid.unmodified), **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_samples_have_the_means_and_the_variance_that_were_asked_for() -> None:
    toy, sigma, count = shipped().toy, 0.7, 40_000
    x, y = draw(toy, (0, 1), "test", count, sigma)
    assert x.shape == (2, count, toy.dimension)
    for seed in range(2):
        assert abs(float(y[seed].mean()) - 0.5) < 5 * 0.5 / math.sqrt(count)
        for label in (0, 1):
            of_class = x[seed][y[seed] == label].numpy()
            mean = np.zeros(toy.dimension)
            mean[0] = (label - 0.5) * toy.distance
            assert np.abs(of_class.mean(0) - mean).max() < 5 * sigma / math.sqrt(len(of_class))
            off = np.cov(of_class.T) - sigma**2 * np.eye(toy.dimension)
            assert np.abs(off).max() < 6 * math.sqrt(2 / len(of_class)) * sigma**2
    assert not torch.equal(x[0], x[1])


def test_another_sigma_stretches_the_same_noise() -> None:
    toy = shipped().toy
    (x, y), (wide, same) = draw(toy, (3,), "train", 50, 0.5), draw(toy, (3,), "train", 50, 1.5)
    assert torch.equal(y, same)
    mean = torch.zeros_like(x)
    mean[..., 0] = (y - 0.5) * toy.distance
    torch.testing.assert_close(wide - mean, 3 * (x - mean))
    assert not torch.equal(x, draw(toy, (3,), "test", 50, 0.5)[0])


def test_no_classifier_beats_the_bayes_accuracy_and_the_right_one_reaches_it() -> None:
    toy, count = shipped().toy, 200_000
    x, y = draw(toy, (0,), "test", count, toy.sigma)
    reached = float(((x[..., 0] > 0) == (y > 0.5)).double().mean())
    assert reached == pytest.approx(toy.bayes_accuracy, abs=5 * 0.5 / math.sqrt(count))


def test_a_step_is_that_of_the_formula() -> None:
    draws = np.random.default_rng(0)
    shapes = ((2, 3, 5), (2, 1, 5), (2, 5, 1), (2, 1, 1))
    before = [draws.normal(size=shape) for shape in shapes]
    x, targets, lr = draws.normal(size=(2, 7, 3)), draws.uniform(size=(2, 7)), 0.3
    after = sgd_step(Weights(*map(torch.from_numpy, before)), torch.from_numpy(x), torch.from_numpy(targets), lr)
    for seed in range(2):
        w1, b1, w2, b2 = (tensor[seed] for tensor in before)
        inner = x[seed] @ w1 + b1
        hidden = np.maximum(inner, 0)
        probability = 1 / (1 + np.exp(-(hidden @ w2 + b2)))
        slope = (probability - targets[seed][:, None]) / 7  # of the mean cross-entropy, by the logit
        back = (slope @ w2.T) * (inner > 0)
        gradients = (x[seed].T @ back, back.sum(0, keepdims=True), hidden.T @ slope, slope.sum(0, keepdims=True))
        for old, gradient, new in zip((w1, b1, w2, b2), gradients, after, strict=True):
            np.testing.assert_allclose(new[seed].numpy(), old - lr * gradient, rtol=1e-12, atol=1e-14)


def test_targets_are_mixed_with_what_the_prior_predicts() -> None:
    toy, seeds = tiny().toy, (0, 1)
    prior = train_prior(toy, seeds)
    x, y = draw(toy, seeds, "train", toy.samples, toy.sigma)
    predicted = 1 / (1 + np.exp(-logits(prior, x).numpy()))
    assert torch.equal(relabel(y, prior, x, 0.0), y)
    for rho in (0.25, 1.0):
        np.testing.assert_allclose(relabel(y, prior, x, rho).numpy(), rho * predicted + (1 - rho) * y.numpy())


def test_a_prior_has_learned() -> None:
    grid = shipped()
    test = draw(grid.toy, grid.seeds, "test", grid.toy.test_samples, grid.toy.sigma)
    prior = evaluate(train_prior(grid.toy, grid.seeds), *test)[0]
    untrained = evaluate(initial(grid.toy, grid.seeds, "prior"), *test)[0]
    assert float(prior.mean()) > grid.toy.bayes_accuracy - 0.02 > float(untrained.mean()) + 0.2


def test_a_run_is_deterministic_and_its_seeds_are_apart() -> None:
    setting = tiny(rho=0.5)
    first = study(setting)
    train_prior.cache_clear()
    assert study(setting) == first
    alone = study(tiny(rho=0.5, seeds=(1,)))
    np.testing.assert_allclose(alone.loss, first.loss[1:2], rtol=1e-9)
    assert alone.accuracy == first.accuracy[1:2]
    assert first.loss[0] != first.loss[1]


def test_every_setting_starts_from_the_same_weights_and_is_tested_on_the_unmodified_mixture() -> None:
    starts = [study(setting) for setting in (tiny(), tiny(sigma=9.0), tiny(rho=1.0))]
    assert len({tuple(row[0] for row in curves.loss) for curves in starts}) == 1
    assert len({tuple(row[-1] for row in curves.loss) for curves in starts}) == 3


def test_each_seed_has_its_own_order_which_no_setting_changes() -> None:
    toy, seeds = tiny().toy, (0, 1)
    x = torch.arange(float(toy.samples)).double().reshape(1, -1, 1).expand(2, -1, toy.dimension)
    weights = Weights(*(tensor[:1].expand(2, -1, -1) for tensor in initial(toy, seeds, "student")))
    targets = torch.zeros(2, toy.samples, dtype=torch.float64)
    ends = [[*descend(toy, seeds, "student", weights, x, targets, 3)][-1][1] for _ in range(2)]
    assert not torch.equal(ends[0].hidden[0], ends[0].hidden[1])
    assert torch.equal(ends[0].hidden, ends[1].hidden)


def test_smaller_variance_is_faster_at_first_and_larger_slower() -> None:
    grid = shipped()
    index = grid.toy.evaluate_at.index(grid.early)
    base = np.array(study(grid.unmodified).loss)[:, index]
    for sigma, sign in ((0.1, -1), (1.0, 1)):
        setting = next(setting for setting in grid.by_sigma if setting.sigma == sigma)
        gap = sign * (np.array(study(setting).loss)[:, index] - base)  # paired: same noise, weights and order
        assert gap.mean() > 5 * gap.std(ddof=1) / math.sqrt(len(gap))


def test_soft_targets_end_at_a_lower_loss() -> None:
    grid = shipped()
    gain = np.array(study(grid.unmodified).loss)[:, -1] - np.array(study(grid.by_rho[-1]).loss)[:, -1]
    assert grid.by_rho[-1].rho == 1
    assert gain.mean() > 5 * gain.std(ddof=1) / math.sqrt(len(gain))


def test_settings_vary_one_thing_at_a_time() -> None:
    grid = shipped()
    assert grid.settings[0] == grid.unmodified
    assert len({setting.id for setting in grid.settings}) == len(grid.settings) == 1 + len(grid.sigmas) + len(grid.rhos)
    assert all(setting.rho == 0 or setting.sigma == grid.toy.sigma for setting in grid.settings)
    assert 0.1 in grid.sigmas


def test_what_decides_a_result_is_in_its_id_and_nothing_else(path: Path) -> None:
    base = {setting.id for setting in ToyGrid.model_validate({"name": "tiny", **TINY}).settings}
    for key, value in TINY["toy"].items():
        other = [0, 2, 6] if key == "evaluate_at" else value * 2
        found = find_toy(str(path), None, [f"toy.{key}={other}"])
        assert found
        assert base.isdisjoint(setting.id for setting in found.settings), key
    for setting in ("name=other", "title=Other", "early=5", "target_loss=0.1", "seeds=[0, 1, 2]"):
        found = find_toy(str(path), None, [setting])
        assert found
        assert {setting.id for setting in found.settings} == base
    found = find_toy(str(path), None, ["seeds=[0, 1]"])
    assert found
    assert base.isdisjoint(setting.id for setting in found.settings)


def test_from_dry_run_to_report(path: Path, records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dry = bench(path, "run", "--dry-run")
    assert (dry.code, dry.err) == (0, "")
    assert "3 of 3 settings to run, 3 seeds each" in dry.out
    assert not records.exists()
    ran = bench(path, "run")
    assert (ran.code, ran.err) == (0, "")
    assert "3 of 3 settings done (0 before)" in ran.out
    before = contents(records)
    monkeypatch.setattr(gaussians, "study", lambda setting: pytest.fail("computed again"))
    assert "3 of 3 settings done (3 before)" in bench(path, "run").out
    assert contents(records) == before
    assert "0 of 3 settings to run" in bench(path, "status").out
    reported = bench(path, "report")
    assert (reported.code, reported.err) == (0, "")
    out = path.parent / "reports" / "tiny"
    assert {file.name for file in out.iterdir()} == {"report.md", "curves.png", "curves.svg", "curves.pdf"}
    files = contents(out)
    assert files["curves.png"].startswith(b"\x89PNG")
    bench(path, "report")
    assert contents(out) == files


def test_the_report_has_n_and_spread_of_what_the_records_say(path: Path, records: Path) -> None:
    bench(path, "run")
    shown = bench(path, "report").out
    text = (path.parent / "reports" / "tiny" / "report.md").read_text()
    raw = {(r["setting"]["sigma"], r["setting"]["rho"]): r for r in map(json.loads, contents(records).values())}
    base = [row[1] for row in raw[0.5, 0.0]["loss"]]
    for key, name in (((0.5, 0.0), "unmodified"), ((0.1, 0.0), "Σ = 0.1"), ((0.5, 1.0), "ρ = 1")):  # noqa: RUF001
        early, end = ([row[index] for row in raw[key]["loss"]] for index in (1, 2))
        accuracy = [100 * row[2] for row in raw[key]["accuracy"]]
        line = next(line for line in text.splitlines() if line.startswith(f"| {name}"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1] == "3"
        assert cells[2] == f"{statistics.mean(early):.3f} ± {statistics.stdev(early):.3f}"
        if key != (0.5, 0.0):
            gap = [one - other for one, other in zip(early, base, strict=True)]
            assert cells[3] == f"{statistics.mean(gap):+.3f} ± {statistics.stdev(gap):.3f}"
        assert cells[5] == f"{statistics.mean(end):.3f} ± {statistics.stdev(end):.3f}"
        assert cells[6] == f"{statistics.mean(accuracy):.1f} ± {statistics.stdev(accuracy):.1f}"
        assert cells[2] in shown
    assert "this project's choice" in text
    assert "Nothing: all 3 settings are done" in text


def test_one_seed_has_no_spread(path: Path) -> None:
    arguments = ("--set", "seeds=[4]", "--set", "name=tiny")
    bench(path, "run", *arguments)
    shown = bench(path, "report", *arguments)
    assert shown.code == 0
    assert "±" not in shown.out.partition("Training data")[2]


@pytest.mark.parametrize(("losses", "steps"), [((0.9, 0.5, 0.4), 2), ((0.9, 0.8, 0.7), math.inf), ((0.5, 0.6, 0.7), 0)])
def test_steps_to_a_loss(losses: tuple[float, ...], steps: float) -> None:
    setting = tiny(seeds=(0,))
    record = ToyRecord(
        id=setting.id,
        grid="tiny",
        setting=setting,
        accuracy=((0.5, 0.5, 0.5),),
        loss=(losses,),
        prior_accuracy=None,
        seconds=0.0,
        provenance={},
    )
    assert record.steps_to(0.5) == [steps]


def _truncated(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def _changed(**changes: Any) -> Any:
    return lambda raw: json.dumps(json.loads(raw) | changes).encode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_truncated, "not valid JSON"),
        (lambda raw: b"", "not valid JSON"),
        (lambda raw: b"[1]", "not a record"),
        (_changed(schema_version=99), "schema version 99"),
        (_changed(seeds=[1]), "seeds: Extra inputs"),
        (_changed(loss=[[0.5, 0.5]]), "loss: Value error, not one value for each seed and evaluation"),
        (_changed(accuracy=[[2.0] * 3] * 3), "accuracy.0.0: Input should be less than or equal to 1"),
        (_changed(prior_accuracy=[0.5]), "prior_accuracy: Value error, not one value for each seed's prior"),
        (lambda raw: raw.replace(b'"sigma":0.1', b'"sigma":0.2'), "its settings do not hash to its id"),
        (lambda raw: raw.replace(b'"loss":[[0', b'"loss":[[NaN,0'), "not valid JSON|loss"),
    ],
)
def test_a_damaged_record_is_set_aside_and_run_again(damage: Any, why: str, path: Path, records: Path) -> None:
    bench(path, "run")
    setting = next(s for s in ToyGrid.model_validate({"name": "tiny", **TINY}).settings if s.sigma == 0.1)
    file = records / f"{setting.id}.json"
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert file.read_bytes() != whole
    found = read_toy(file)
    assert isinstance(found, Damaged)
    assert any(part in found.reason for part in why.split("|"))
    reported = bench(path, "report")
    assert f"damaged: {file.name}: {found.reason}" in reported.out
    assert "2 of 3 settings done" in reported.out
    assert "1 of 3 settings to run" in bench(path, "status").out
    again = bench(path, "run")
    assert again.code == 0
    assert again.err == f"damaged: {file}: {found.reason}; it is run again\n"
    assert "3 of 3 settings done (2 before)" in again.out
    measured = ("accuracy", "loss", "setting")
    mended, before = json.loads(file.read_bytes()), json.loads(whole)
    assert [mended[key] for key in measured] == [before[key] for key in measured]


def test_a_record_under_another_name_or_of_other_settings_is_not_used(path: Path, records: Path) -> None:
    bench(path, "run")
    file = next(records.iterdir())
    (records / "0123456789abcdef.json").write_bytes(file.read_bytes())
    bench(path, "run", "--set", "sigmas=[0.3]")
    shown = bench(path, "report").out
    assert "damaged: 0123456789abcdef.json: its settings do not hash to its id" in shown
    assert shown.count("left out: ") == 1
    assert "3 of 3 settings done" in shown


def test_a_report_without_records_says_how_to_make_them(path: Path) -> None:
    ran = bench(path, "report")
    assert ran.code == 2
    assert ran.err.startswith("error: ")
    assert shlex.join([*program(), "run"]) in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("words", [["report", "--reports", "reports"], ["run", "--dry-run", "--grid"]])
def test_a_report_and_a_dry_run_need_no_torch(words: list[str], path: Path) -> None:
    bench(path, "run")
    words = [str(path.parent / word) if word == "reports" else word for word in words]
    code = (
        f"import sys; sys.argv = {['bench', *words, str(path), '--results', str(path.parent / 'results')]!r}\n"
        "from bench.cli.main import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("toy.lrr=1", "unknown key 'toy.lrr'; did you mean 'lr'?"),
        ("sigma=[1]", "unknown key 'sigma'; did you mean 'sigmas'?"),
        ("toy.lr=-1", "toy.lr: -1: input should be greater than 0"),
        ("toy.lr=.nan", "toy.lr: nan: input should be "),
        ("toy.hidden=few", "toy.hidden: 'few': input should be a valid integer"),
        ("toy.samples=1000000000", "toy.samples: 1000000000: input should be less than or equal to 100000"),
        ("toy.evaluate_at=[0, 5, 2]", "toy.evaluate_at: [0, 5, 2]: must rise from step to step, to 1 or more"),
        ("toy.evaluate_at=[0]", "toy.evaluate_at: [0]: must rise from step to step, to 1 or more"),
        ("toy.evaluate_at=[]", "toy.evaluate_at: []: "),
        ("toy=5", "toy: 5: "),
        ("sigmas=[0]", "sigmas[0]: 0: input should be greater than 0"),
        ("sigmas=[0.1, 0.1]", "sigmas: [0.1, 0.1]: 0.1 is there twice; remove one"),
        ("rhos=[1.5]", "rhos[0]: 1.5: input should be less than or equal to 1"),
        ("seeds=[0, 0]", "seeds: [0, 0]: 0 is there twice; remove one"),
        ("seeds=[]", "seeds: []: "),
        ("early=3", "early: 3: must be one of toy.evaluate_at"),
        ("name=../up", "name: '../up': "),
    ],
)
@pytest.mark.parametrize("verb", ["run", "report"])
def test_a_mistake_is_one_sentence(verb: str, setting: str, says: str, path: Path) -> None:
    ran = bench(path, verb, "--set", setting)
    assert ran.code == 2
    assert ran.err.startswith(f"error: {path} --set {setting}: {says}")
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("key", ["seeds", "sigmas", "rhos", "early", "target_loss"])
def test_a_missing_key(key: str, path: Path) -> None:
    path.write_text(yaml.safe_dump({k: v for k, v in TINY.items() if k != key}))
    with pytest.raises(UserError, match=f"^{path}: key '{key}' is missing$"):
        find_toy(str(path))


def test_a_training_that_diverges_is_one_sentence_and_no_record(path: Path, records: Path) -> None:
    ran = bench(path, "run", "--set", "toy.lr=1e200")
    assert ran.code == 2
    assert ran.err == "error: Sigma 0.5, rho 0: the test loss is not finite after step 2; lower toy.lr (1e+200)\n"
    assert not records.exists()


def test_what_does_not_apply_is_said(path: Path) -> None:
    assert "has no cells" in bench(path, "run", "--only", "seed=1").err
    for option in ("--cell a", "--executor slurm", "--jobs 2", "--slurm partition=gpu", "--track wandb"):
        ran = bench(path, "run", *option.split())
        assert ran.code == 2
        assert "has settings instead of cells: leave out --cell, --track, --executor and its options" in ran.err
    assert "nothing to fetch" in bench(path, "prepare").out
    with pytest.raises(UserError, match="has no cells"):
        load_grid("paper_toy")
    assert find_toy("quickstart") is None


def test_any_profile_of_its_own_and_mini(path: Path) -> None:
    path.write_text(yaml.safe_dump(TINY | {"profiles": {"wide": {"sigmas": [3.0]}}}))
    wide = find_toy(str(path), "wide")
    assert wide
    assert (wide.name, wide.sigmas) == ("tiny@wide", (3.0,))
    mini = find_toy("paper_toy", "mini")
    assert mini
    assert (mini.name, mini.seeds, mini.toy.evaluate_at[-1]) == ("paper_toy@mini", (0, 1), 5)
    assert bench(path, "run", "--profile", "wide").code == 0
    assert "3 of 3 settings done" in bench(path, "report", of="@wide").out


def test_the_shipped_study_is_listed() -> None:
    listed = processes.bench("list", "grids").out
    assert "paper_toy" in listed
    assert shipped().title in listed


def test_the_shipped_report_is_that_of_the_shipped_records(tmp_path: Path) -> None:
    write_toy_report(shipped(), ROOT / "results" / "paper_toy", tmp_path)
    assert (tmp_path / "report.md").read_text() == (ROOT / "reports" / "paper_toy" / "report.md").read_text()
