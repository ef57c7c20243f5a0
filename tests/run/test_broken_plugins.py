"""A plugin that breaks the contract costs its own cells alone, and is told in one sentence with the cure."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from typer.testing import CliRunner

from bench.cli.main import app
from bench.core.paths import Paths
from bench.core.registry import load_plugin
from bench.data import dataset_cache, datasets
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.plan.graph import Task, plan
from bench.store.record import Finished, read_records
from methods import Method, methods
from priors import priors

HEAD = """
import enum
import numpy as np
import torch
from torch import nn
from bench.data import DatasetInfo, Split, datasets
from bench.data.augment import View
from methods import Batch, Method, methods
from priors import Prior, priors

class Whole(Method):
    views = (View(),)
    def loss(self, batch):
        return self.backbone(batch.views[0]).square().mean()

class Mode(str, enum.Enum):
    FAST = "fast"
"""
METHOD = """
@methods.register("mine")
class Mine(Whole):
    def __init__(self, {parameters}) -> None:
        super().__init__(backbone, dim)
"""
GRID = """
name: h1
backbone: resnet_small
datasets: [{name: digits, train_images: 16}]
seeds: [0]
arms: [mine, simsiam]
protocol: {epochs: 1, batch_size: 8, input_size: 8, blur: false, probe: {epochs: 3}, knn: {k: 5}}
"""


@pytest.fixture(autouse=True)
def _as_before(temporary: Any) -> Iterator[None]:
    for registry in (methods, priors, datasets):
        temporary(registry)
    yield
    dataset_cache.clear()


def bench(tmp_path: Path, verb: str, *words: str) -> Any:
    (tmp_path / "h1.yaml").write_text(GRID)
    where = ["--grid", "h1.yaml", "--data-root", "data", "--results", "results", "--plugin", "mine.py"]
    if verb == "list":
        where = ["--data-root", "data", "--plugin", "mine.py"]
    return CliRunner().invoke(app, [verb, *words, *where])


def ran(tmp_path: Path, plugin: str, *settings: str) -> tuple[str, list[Finished]]:
    """Return what is said of the cell that has no result, and the records of a run that has exit code 1."""
    (tmp_path / "mine.py").write_text(HEAD + plugin)
    words = [word for setting in settings for word in ("--set", setting)]
    found = bench(tmp_path, "run", "--device", "cpu", *words)
    assert found.exit_code == 1, found.output
    assert "Traceback" not in found.output
    (said,) = re.findall(r"^1 (?:cell cannot run|failed): (.*)", found.output, re.M)
    return said, read_records(tmp_path / "results" / "h1")[0]


def planned(tmp_path: Path, plugin: str, setting: str) -> list[Task]:
    (tmp_path / "mine.py").write_text(HEAD + plugin)
    (tmp_path / "h1.yaml").write_text(GRID)
    load_plugin(tmp_path / "mine.py")
    cells = expand(load_grid(str(tmp_path / "h1.yaml"), settings=[setting]))
    return plan(cells, cells, Paths(tmp_path, tmp_path, "h1"), "grid h1")


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ("backbone, dim, weight", "parameter 'weight' has no default: give it one"),
        ("backbone, dim, *, weight", "parameter 'weight' has no default: give it one"),
        ("backbone, dim, *weights", "parameter '*weights' has no names to set: name each one, with a default"),
        ("backbone, dim, **others", "parameter '**others' has no names to set: name each one, with a default"),
        ("backbone, dim, weight=1.0, /", "parameter 'weight' cannot be set by its name: remove the /"),
        ("backbone, weight=1.0, dim=3", "its first two parameters must be backbone and dim"),
        ("backbone, dim, norm=nn.BatchNorm1d", "parameter 'norm' has the default <class 'torch.nn.modules.batchnorm"),
        ("backbone, dim, dtype=torch.float32", "parameter 'dtype' has the default torch.float32, which a grid cannot"),
        ("backbone, dim, act=lambda x: x", "parameter 'act' has the default <function"),
        ("backbone, dim, sizes={1, 2}", "parameter 'sizes' has the default {1, 2}, which a grid cannot hold"),
        ("backbone, dim, clip=float('inf')", "parameter 'clip' has the default inf, which a grid cannot hold"),
        ("backbone, dim, z=np.complex64(1)", "parameter 'z' has the default "),
        ("backbone, dim, rows=np.ones(2)", "parameter 'rows' has the default array([1., 1.])"),
        ("backbone, dim, word='\\udcff'", "parameter 'word' has the default"),
    ],
)
def test_a_parameter_that_no_grid_can_set_is_named(parameters: str, sentence: str, tmp_path: Path) -> None:
    mine, simsiam = planned(tmp_path, METHOD.format(parameters=parameters), "arms=[mine, simsiam]")
    assert mine.reason.startswith(f"method 'mine' ({tmp_path / 'mine.py'}): {sentence}")
    assert simsiam.id


@pytest.mark.parametrize(
    ("plugin", "sentence"),
    [
        (METHOD.format(parameters="backbone, dim") + "    version = '2'", "version is '2'; make it a whole number"),
        (
            METHOD.format(parameters="backbone, dim") + "    views = ()",
            "views is (); make it a tuple of methods.View",
        ),
        (
            METHOD.format(parameters="backbone, dim") + "    views = View()",
            "make it a tuple of methods.View",
        ),
        (METHOD.format(parameters="backbone, dim") + "    views = (1, 2)", "views is (1, 2); make it a tuple"),
        (
            "methods.register('mine')(type('Mine', (Method,), {}))",
            "views is None; make it a tuple of methods.View",
        ),
        ("methods.register('mine')(nn.Linear)", "must be a subclass of Method"),
        ("methods.register('mine')(3)", "must be a subclass of Method"),
        (METHOD.format(parameters="backbone, dim") + "        raise SystemExit('no GPU')", "SystemExit: no GPU"),
        (
            METHOD.format(parameters="backbone, dim").replace("Whole", "Method") + "    views = (View(),)",
            "NotImplementedError: Mine has no method `loss`",
        ),
    ],
)
def test_a_method_that_is_none_costs_its_own_cells(
    plugin: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said, records = ran(tmp_path, plugin)
    assert sentence in said
    assert {record.cell.method: record.status for record in records}["simsiam"] == "done"


@pytest.mark.parametrize(
    ("plugin", "sentence"),
    [
        ("priors.register('mine')(3)", "prior 'mine': must be a subclass of Prior"),
        ("class P(Prior): digest = lambda self: 3", "1 validation error for Inputs prior"),
        ("class P(Prior): digest = lambda self: exit('no')", "SystemExit: no"),
        ("class P(Prior): __init__ = lambda self: None", "TypeError: "),
        ("class P(Prior): pass", "NotImplementedError: P has no method `model`"),
        ("class P(Prior): model = lambda self: 3", "AttributeError: "),
    ],
)
def test_a_prior_that_is_none_costs_its_own_cells(
    plugin: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    add = "" if "register" in plugin else "\npriors.register('mine')(P)"
    arms = "arms=[{method: simsiam, rela: {prior: mine}}, simsiam]"
    said, records = ran(tmp_path, plugin + add, arms)
    assert sentence in said
    assert [record.status for record in records if not record.cell.rela] == ["done"]
    prepared = bench(tmp_path, "prepare", "--set", arms)
    assert prepared.exit_code == 1, prepared.output
    assert "Traceback" not in prepared.output
    assert prepared.exception is None or isinstance(prepared.exception, SystemExit)
    assert "dataset digits: " in prepared.output


MADE = """
class D(DatasetInfo):
    title, short, image_size, classes = "Mine", "MINE", 8, 2
    here = lambda self, root: True
    read = lambda self, root: (self.split({0}), self.split({0}))
    def split(self, labels):
        return Split(np.zeros((4, 3, 8, 8), np.{1}), np.array(labels))
"""


@pytest.mark.parametrize(
    ("plugin", "sentence"),
    [
        ("datasets.register('mine')(3)", "dataset 'mine': TypeError: 'int' object is not callable"),
        ("class D: __init__ = lambda self, name: None", "): must be a subclass of DatasetInfo"),
        ("class D(DatasetInfo): short = 'M'", "AttributeError: 'D' object has no attribute 'title'"),
        ("class D(DatasetInfo): title = 'M'", "AttributeError: 'D' object has no attribute 'short'"),
        (
            MADE.format("[0, 1, 0, 1]", "float32"),
            "images are float32 (4, 3, 8, 8) where uint8 (N, 3, 8, 8) is expected",
        ),
        (MADE.format("[0.0, 1.0, 0.0, 1.0]", "uint8"), "`read` must return splits with N labels, int64 and from 0 on"),
        (MADE.format("[0, 1, -1, 1]", "uint8"), "N labels, int64 and from 0 on"),
        (MADE.format("[0, 1]", "uint8"), "4 training images with 2 labels"),
        (MADE.format("1 / 0", "uint8"), "ZeroDivisionError: division by zero"),
    ],
)
def test_a_dataset_that_is_none_costs_its_own_cells(
    plugin: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    add = "" if "register" in plugin else "\ndatasets.register('mine')(D)"
    chosen = "datasets=[mine, {name: digits, train_images: 16}]"
    said, records = ran(tmp_path, plugin + add, chosen, "arms=[byol]", "protocol.knn.k=2")
    assert sentence in said
    assert [(record.cell.dataset, record.status) for record in records] == [("digits", "done")]
    for verb in ("prepare", "status"):
        other = bench(tmp_path, verb, "--set", chosen, "--set", "arms=[byol]")
        assert isinstance(other.exception, SystemExit | None), other.exception
        assert sentence in other.output


@pytest.mark.parametrize(
    "plugin",
    [
        METHOD.format(parameters="backbone, dim, weight"),
        METHOD.format(parameters="backbone, dim") + "        raise SystemExit('no GPU')",
        "methods.register('mine')(3)",
    ],
)
def test_every_verb_goes_on_beside_a_broken_method(
    plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(HEAD + plugin)
    for words in (["run", "--dry-run"], ["status"], ["prepare"], ["list", "methods"], ["list", "datasets"]):
        found = bench(tmp_path, *words)
        assert found.exit_code == 0, (words, found.output, found.exception)
    assert "simsiam" in bench(tmp_path, "run", "--dry-run").output
    real, rehearsed = bench(tmp_path, "run"), bench(tmp_path, "run", "--rehearse")
    assert real.exit_code == 1
    assert re.search(r"digits simsiam 100% seed 0: done", real.output)
    assert isinstance(rehearsed.exception, SystemExit | None), rehearsed.exception
    assert re.search(r"digits simsiam 100% seed 0: done", rehearsed.output)


@pytest.mark.parametrize(
    ("default", "same", "kept", "seen"),
    [
        ("np.float32(0.5)", "0.5", 0.5, 0.5),
        ("np.int64(3)", "3", 3, 3),
        ("np.bool_(True)", "true", True, True),
        ("(0.5, np.float32(1))", "[0.5, 1]", [0.5, 1.0], (0.5, 1.0)),
        ("((1, 2), (3,))", "[[1, 2], [3]]", [[1, 2], [3]], ((1, 2), (3,))),
        ("[1, 2]", "[1, 2]", [1, 2], [1, 2]),
        ("Mode.FAST", "fast", "fast", "fast"),
        ("2.0", "2", 2.0, 2.0),
        ("None", "[1]", None, [1]),
    ],
)
@pytest.mark.parametrize("star", ["", "*, "])
def test_a_default_can_be_set_and_is_the_same_setting(
    default: str, same: str, kept: Any, seen: Any, star: str, tmp_path: Path
) -> None:
    plugin = METHOD.format(parameters=f"backbone, dim, {star}x={default}") + "        self.x = x\n"
    settings = (f"arms=[{{name: a, method: mine, params: {params}}}]" for params in ("{}", f"{{x: {same}}}"))
    (left,), (said,) = (planned(tmp_path, plugin, setting) for setting in settings)
    assert left.inputs
    assert said.inputs
    assert left.inputs.params == {"x": kept}
    if kept is not None:
        assert left.id == said.id
        assert [*map(type, said.inputs.params.values())] == [type(kept)]
    built: Any = methods.build("mine", nn.Flatten(), 3, said.cell.params)
    assert built.x == seen
    assert type(built.x) is type(seen)
    assert isinstance(built, Method)
