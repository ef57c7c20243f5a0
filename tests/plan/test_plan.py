"""`bench.plan.graph`: which cells run, in which order, and what stands in their way."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench.core.errors import UserError
from bench.core.paths import Paths
from bench.core.registry import load_plugin
from bench.grid.expand import expand, select
from bench.grid.load import load_grid
from bench.models.backbones import build_backbone
from bench.models.weights import save_weights
from bench.plan.graph import Missing, Ready, Task, plan
from bench.run.status import state_of
from methods import methods
from priors.trained import Trained

GRID = """
backbone: resnet_small
datasets: [digits]
budgets: [0.2, 0.5]
seeds: [0, 1]
arms:
  - {name: after, method: simclr, rela: {prior: DIGITS-T}}
  - {method: byol, budgets: [0.2, 1.0]}
  - {name: rand, method: byol, rela: {prior: rand}}
protocol: {input_size: 12}
"""


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(data=tmp_path / "data", results=tmp_path / "results", grid="g")


def planned(paths: Paths, *settings: str, only: str | None = None, text: str = GRID) -> list[Task]:
    path = paths.data.parent / "g.yaml"
    path.write_text(text)
    cells = expand(load_grid(str(path), settings=settings))
    return plan(cells, select(cells, only) if only else cells, paths, "grid g")


def refusal(paths: Paths, *settings: str, text: str = GRID) -> str:
    with pytest.raises(UserError) as caught:
        planned(paths, *settings, text=text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_cell_once_and_after_what_it_needs(paths: Paths) -> None:
    tasks = planned(paths)
    assert len({task.id for task in tasks}) == len(tasks) == 2 * 2 + 2 * 2 + 2 * 2
    seen: set[str] = set()
    for task in tasks:
        assert isinstance(task, Ready)
        assert task.needs is None or task.needs.id in seen
        seen.add(task.id)
    # the order of the grid, but for the makers, which go first
    assert [task.cell.arm for task in tasks][:4] == ["byol", "after", "byol", "after"]


def test_a_trained_prior_is_the_full_byol_cell_of_the_same_seed(paths: Paths) -> None:
    dependent = [task for task in planned(paths) if task.cell.arm == "after"]
    assert len(dependent) == 4
    for task in dependent:
        maker = task.needs
        assert maker is not None
        assert (maker.cell.method, maker.cell.rela, maker.cell.budget) == ("byol", None, 1.0)
        assert maker.cell.seed == task.cell.seed
        assert isinstance(task.prior, Trained)
        assert task.inputs is not None
        assert task.inputs.prior == task.prior.digest() == maker.id
        assert task.prior.input_size == 12


def test_a_prior_on_a_dataset_is_trained_on_that_one(paths: Paths) -> None:
    folder = paths.data / "mine"
    for name in ("train/a/0.png", "train/b/0.png", "test/a/0.png", "test/b/0.png"):
        (folder / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8), (len(name), 0, 0)).save(folder / name)
    tasks = planned(
        paths, "datasets=[digits, mine]", "arms=[{method: byol, budgets: [1]}, {method: byol, rela: {prior: mine-T}}]"
    )
    needs = {(task.cell.dataset, task.needs.cell.dataset) for task in tasks if task.needs}
    assert needs == {("digits", "mine"), ("mine", "mine")}


def test_a_change_of_the_maker_changes_the_dependent(paths: Paths) -> None:
    def ids(*settings: str) -> dict[str, str]:
        return {task.cell.arm: task.id for task in planned(paths, *settings, only="arm=after,seed=0,budget=0.5")}

    before, after = ids(), ids("protocol.lr=0.01")
    assert before.keys() == after.keys() == {"after", "byol"}
    assert before["after"] != after["after"]


def test_only_a_dependent_pulls_in_its_maker(paths: Paths) -> None:
    tasks = planned(paths, only="arm=after,seed=1,budget=0.5")
    assert [(task.cell.arm, task.cell.budget, task.cell.seed) for task in tasks] == [
        ("byol", 1.0, 1),
        ("after", 0.5, 1),
    ]
    everything = {task.id for task in planned(paths)}
    assert {task.id for task in tasks} <= everything


def test_a_prior_that_no_cell_makes(paths: Paths) -> None:
    text = refusal(paths, "arms=[{method: byol, budgets: [1]}, {method: byol, rela: {prior: DIGIT-T}}]")
    assert text.startswith(
        "grid g: arm 'rela(byol,DIGIT-T)': prior 'DIGIT-T' is the backbone of the cell byol at budget 1"
    )
    assert text.endswith("did you mean 'DIGITS-T'?")
    for arms in ("[{method: byol, budgets: [0.5]}", "[{method: byol, budgets: [1], params: {momentum: 0.9}}"):
        assert "which the grid does not have" in refusal(
            paths, f"arms={arms}, {{name: x, method: byol, rela: {{prior: DIGITS-T}}}}]"
        )


@pytest.mark.parametrize(
    ("setting", "arm", "sentence"),
    [
        ("arms=[byool]", "byool", "unknown method 'byool'; did you mean 'byol'?"),
        ("datasets=[digitz]", "after", "did you mean 'digits'?"),
        ("backbone=resnet18_cfar", "after", "unknown backbone 'resnet18_cfar'; did you mean 'resnet18_cifar'?"),
        ("arms=[{method: byol, name: a, rela: {prior: ran}}]", "a", "unknown prior 'ran'; did you mean 'rand'?"),
        (
            "arms=[{method: byol, name: a, rela: {prior: 'timm:resnet50_clp.openai'}}]",
            "a",
            "did you mean 'resnet50_clip.openai'?",
        ),
        (
            "arms=[{method: byol, name: a, rela: {prior: 'timm:resnet50_clip.opena'}}]",
            "a",
            "did you mean 'resnet50_clip.openai'?",
        ),
        (
            "arms=[{method: byol, name: a, rela: {prior: 'file:x.pt', backbone: resnet20_cifr}}]",
            "a",
            "unknown backbone 'resnet20_cifr'; did you mean 'resnet20_cifar'?",
        ),
        (
            "arms=[{method: byol, name: a, params: {momentun: 0.9}}]",
            "a",
            "params.momentun: no such parameter; did you mean 'momentum'?",
        ),
        ("arms=[{method: byol, name: a, params: {momentum: high}}]", "a", "params.momentum: 'high' is not a float"),
        ("arms=[{method: byol, name: a, params: {projection: true}}]", "a", "params.projection: True is not a int"),
    ],
)
def test_an_unknown_name(paths: Paths, setting: str, arm: str, sentence: str) -> None:
    text = refusal(paths, setting)
    assert text.startswith(f"grid g: arm {arm!r}")
    assert sentence in text


def test_a_method_of_patch_tokens_is_refused_around_a_resnet(paths: Paths) -> None:
    class Masked(methods.get("byol")):  # type: ignore[misc]
        needs_tokens = True

    with methods.temporary(masked=Masked):
        text = refusal(paths, "arms=[masked]")
        assert text.startswith("grid g: arm 'masked' on digits: method 'masked' needs the patch tokens of a vision")
        assert "the backbone is a CifarResNet: use vit_micro" in text
        assert all(isinstance(task, Ready) for task in planned(paths, "arms=[masked]", "backbone=vit_micro"))


def test_ijepa_is_refused_around_a_backbone_that_reads_its_class_token(paths: Paths) -> None:
    text = refusal(paths, "arms=[ijepa]", "backbone=vit_tiny_patch16_224")
    assert text.startswith("grid g: arm 'ijepa' on digits: method 'ijepa' trains patch tokens, and the backbone reads")
    assert all(isinstance(task, Ready) for task in planned(paths, "arms=[mae]", "backbone=vit_tiny_patch16_224"))


def test_a_missing_dataset_marks_the_tasks_that_need_it(paths: Paths) -> None:
    tasks = planned(paths, "datasets=[digits, cifar10]")
    missing = [task for task in tasks if isinstance(task, Missing)]
    assert {task.cell.dataset for task in missing} == {"cifar10"}
    assert len(missing) == len(tasks) // 2
    for task in missing:
        assert str(paths.data / "cifar10") in task.reason
        assert state_of(task, paths).text == f"missing: {task.reason}"


def test_a_missing_maker_makes_its_dependents_missing(paths: Paths) -> None:
    arms = "arms=[{method: byol, budgets: [1]}, {method: byol, rela: {prior: CF10-T}}]"
    tasks = planned(paths, "datasets=[digits, cifar10]", arms)
    on_digits = [task for task in tasks if task.cell.dataset == "digits" and task.cell.rela]
    assert len(on_digits) == 4
    assert all(str(paths.data / "cifar10") in task.reason for task in on_digits)


@pytest.mark.parametrize(
    ("prior", "file"),
    [("file:net.safetensors", "priors/net.safetensors"), ("timm:resnet10t", "priors/timm/resnet10t.safetensors")],
)
def test_missing_weights_mark_the_tasks_that_need_them(paths: Paths, prior: str, file: str) -> None:
    tasks = planned(paths, f"arms=[byol, {{method: byol, rela: {{prior: '{prior}', backbone: resnet_small}}}}]")
    assert [isinstance(task, Missing) for task in tasks] == [False] * 4 + [True] * 4
    assert all(str(paths.data / file) in task.reason for task in tasks if isinstance(task, Missing))


def test_a_dataset_without_a_size_needs_one(paths: Paths) -> None:
    text = refusal(paths, "datasets=[imagenet1k]", "protocol.input_size=null")
    assert "set protocol.input_size" in text
    assert text.startswith("grid g: ")


def test_a_priors_file_counts_by_content_wherever_it_lies(paths: Paths, tmp_path: Path) -> None:
    one, two = tmp_path / "one" / "net.safetensors", tmp_path / "two" / "net.safetensors"
    save_weights(build_backbone("resnet_small", 12).module, one)
    two.parent.mkdir()
    shutil.copy(one, two)

    def identifier(path: Path) -> str:
        arm = f"arms=[{{method: byol, rela: {{prior: 'file:{path}', backbone: resnet_small}}}}]"
        return planned(paths, arm, "seeds=[0]", "budgets=[0.5]")[0].id

    assert identifier(one) == identifier(two)
    torch.manual_seed(1)
    save_weights(build_backbone("resnet_small", 12).module, two)
    assert identifier(one) != identifier(two)


def test_a_grid_of_10_000_cells(paths: Paths) -> None:
    tasks = planned(paths, f"seeds={list(range(2_500))}", "arms=[{method: byol, budgets: [0.1, 0.2, 0.5, 1]}]")
    assert len({task.id for task in tasks}) == 10_000
    assert {task.cell.seed for task in tasks} == set(range(2_500))


PLUGIN = """
from methods import methods
from methods.byol import BYOL

@methods.register("{name}")
class Mine(BYOL):
    pass
"""


def test_a_plugin_registers_what_it_defines(paths: Paths, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(name="test_plan_mine"))
    load_plugin(path)
    load_plugin(path)  # as `prepare` does
    assert "test_plan_mine" in methods
    assert all(task.cell.method == "test_plan_mine" for task in planned(paths, "arms=[test_plan_mine]"))


def test_plugins_of_one_file_name_do_not_displace_each_other(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(PLUGIN.format(name="test_plan_same"))
    load_plugin(tmp_path / "one" / "same.py")
    with pytest.raises(UserError, match="'test_plan_same' is defined twice"):
        load_plugin(tmp_path / "two" / "same.py")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("x.py", b"raise ValueError('one\\ntwo')", "ValueError: one"),
        ("x.py", b"def (", "SyntaxError"),
        ("x.py", b"\x00\xff", "Error"),
        ("x.py", b"import sys; sys.exit(0)", "SystemExit"),
        ("x.yaml", b"a: 1", "must end in .py"),
        ("x", b"", "must end in .py"),
        ("x.py", None, "no such file"),
    ],
)
def test_a_plugin_that_is_none(tmp_path: Path, name: str, content: bytes | None, why: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_plugin(path)
    text = str(caught.value)
    assert text.startswith(f"--plugin {path}: ")
    assert why in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("lines", "state"),
    [
        ([], "waiting"),
        ([""], "waiting"),
        (['{"time": "t", "event": "st'], "waiting"),
        (['{"time": "t", "event": "start"}', '{"time": "t2", "ev'], "started: start at t"),
        (['{"time": "t", "event": "step", "step": 1200}'], "started: step at t, step 1,200"),
        (['{"time": "t", "event": "start"}', "3"], "started: start at t"),
        (['{"time": "t", "event": "start"}', '{"time": "t2", "event": "resume"}'], "started: resume at t2"),
    ],
)
def test_the_state_of_a_cell_that_was_killed_at_any_moment(paths: Paths, lines: list[str], state: str) -> None:
    task = planned(paths, only="arm=rand,seed=0,budget=0.5")[0]
    if lines:
        paths.work(task.id).mkdir(parents=True)
        (paths.work(task.id) / "events.jsonl").write_text("\n".join(lines))
    assert state_of(task, paths).text == state


def test_the_state_of_a_damaged_record(paths: Paths) -> None:
    task = planned(paths, only="arm=rand,seed=0,budget=0.5")[0]
    paths.records.mkdir(parents=True)
    path = paths.records / f"{task.id}.json"
    path.write_text(json.dumps({"schema_version": 99}))
    assert state_of(task, paths).text == f"damaged: {path}: schema version 99 where 1 is known"
