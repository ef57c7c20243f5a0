"""What a user sees of data that are fewer than they seem: in `prepare`, `run`, `status` and `report`."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from bench.cli.main import app
from bench.core.errors import UserError
from bench.core.paths import Paths
from bench.data import dataset_cache, datasets
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.plan.estimate import duration
from bench.plan.graph import plan
from bench.plan.rehearsal import obstacles
from bench.report.collect import collect
from bench.report.document import report_document
from bench.report.render.markdown import markdown_document
from bench.report.render.text import terminal_text
from bench.store.record import read_records

GRID = """
backbone: resnet_small
datasets: [NAME]
seeds: [0]
arms: [simsiam]
protocol: {epochs: 1, batch_size: 4, input_size: 8, blur: false, probe: {epochs: 3}, knn: {k: 5}}
"""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_CACHE", raising=False)
    dataset_cache.clear()


def make(root: Path, name: str, classes: int, size: int, train: int = 3, test: int = 1) -> Path:
    draw = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for label in range(classes):
            for number in range(count):
                path = root / name / split / f"c{label}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(draw.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
    return root / name


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    """Runs the command line on a grid of one data set, `bench(name, *words)`, and returns what it printed."""

    def run(name: str, *words: str, grid: str = GRID) -> str:
        (tmp_path / "g.yaml").write_text(grid.replace("NAME", name))
        paths = ["--data-root", tmp_path] if words[0] != "report" else []
        of = [tmp_path / "g.yaml"] if words[0] == "report" else ["--grid", tmp_path / "g.yaml"]
        arguments = [words[0], *of, *words[1:], *paths, "--results", tmp_path / "results"]
        ran = CliRunner().invoke(app, list(map(str, arguments)))
        if isinstance(ran.exception, UserError):
            raise ran.exception
        assert ran.exit_code == 0, ran.output
        return ran.stdout

    return run


PART = "CIFAR-10, 30 of 50,000 images, 10 of 10,000 test images"


def test_a_part_of_cifar10_is_one_in_every_output(bench: Any, tmp_path: Path) -> None:
    make(tmp_path, "cifar10", 10, 32)
    counts = "30 training images of 10 classes, 10 test images of 10 classes"
    assert re.search(f"dataset cifar10: {PART}, digest [0-9a-f]{{16}}; {counts}\n", bench("cifar10", "prepare"))
    assert "FLOP of training in 7 steps:" in bench("cifar10", "run", "--dry-run")
    bench("cifar10", "run")
    assert "done, linear " in bench("cifar10", "status", "--cells")
    (record,) = read_records(tmp_path / "results" / "g")[0]
    assert record.dataset_title == PART
    assert record.ledger.steps == 7
    collected = collect(load_grid(str(tmp_path / "g.yaml")), tmp_path / "results" / "g")
    assert PART in terminal_text(collected, [])
    markdown = markdown_document(report_document(collected)).replace("\\", "")
    assert f"{PART}: all training images that were there" in markdown
    rows = [row for row in markdown.splitlines() if row.startswith("| CIFAR")]
    assert len(rows) == 4
    assert all(row.startswith(f"| {PART} |") for row in rows), rows
    bench("cifar10", "report", "--format", "csv,latex", "--reports", str(tmp_path / "reports"))
    for name in ("table.csv", "points.csv", "tidy.csv", "table.tex"):
        assert PART in (tmp_path / "reports" / "g" / name).read_text()


def test_a_cell_that_fails_knows_the_part(bench: Any, tmp_path: Path) -> None:
    make(tmp_path, "cifar10", 10, 32)
    grid = GRID.replace("arms: [simsiam]", "arms: [{method: simsiam, budgets: [0.1]}]")
    with pytest.raises(AssertionError, match="less than one batch"):
        bench("cifar10", "run", grid=grid)
    (record,) = read_records(tmp_path / "results" / "g")[0]
    assert (record.status, record.dataset_title) == ("failed", PART)


WIDE = {"COLUMNS": "400"}


def test_list_says_what_was_counted(bench: Any, tmp_path: Path) -> None:
    def row() -> str:
        listed = CliRunner().invoke(app, ["list", "datasets", "--data-root", str(tmp_path)], env=WIDE)
        assert listed.exit_code == 0, listed.output
        return next(" ".join(line.split()) for line in listed.stdout.splitlines() if "cifar10 " in line)

    assert row().startswith(f"cifar10 CIFAR-10: not in {tmp_path}")
    make(tmp_path, "cifar10", 10, 32)
    assert row() == "cifar10 CIFAR-10: here; `prepare` counts its images"
    bench("cifar10", "prepare")
    assert row() == f"cifar10 {PART}: here"
    (tmp_path / "cifar10" / "train" / "c0" / "more").symlink_to("more")
    assert row().startswith(f"cifar10 {tmp_path}/cifar10/train/c0/more: cannot be read: ")


PLUGIN = """
import numpy as np
from bench.data import DatasetInfo, Split, datasets

@datasets.register("NAME")
class Mine(DatasetInfo):
    title = short = "Mine"
    train_images = DECLARED

    def here(self, root):
        return HERE

    def read(self, root):
        return tuple(Split(np.zeros((30, 3, 8, 8), np.uint8), np.arange(30) % 3) for _ in range(2))
"""


@pytest.mark.parametrize(
    ("declared", "here", "said"),
    [
        (None, True, " to run\n1.13 GFLOP of training in 7 steps:\n"),
        (50_000, True, " to run\n1.13 GFLOP of training in 7 steps:\n"),  # what is there counts
        (44, False, " to run, 1 more that lack something\n1.78 GFLOP of training in 11 steps:\n"),  # what is said to be
        (None, False, " to run, 1 more that lack something\nthe cost of 1 of them is not known before they run"),
    ],
)
def test_a_dry_run_counts_what_a_plugin_has(
    bench: Any, tmp_path: Path, temporary: Any, declared: int | None, here: bool, said: str
) -> None:
    temporary(datasets)
    code = PLUGIN.replace("NAME", "mine").replace("DECLARED", str(declared)).replace("HERE", str(here))
    (tmp_path / "p.py").write_text(code)
    out = bench("mine", "run", "--dry-run", "--plugin", str(tmp_path / "p.py"))
    assert f" cells{said}" in out
    assert "not known  not known\n" in out or "not known" not in said
    words = out.replace(",", "").split()
    assert not {("0", "steps"), ("0", "seconds"), ("0.0", "TFLOP"), ("0.00", "TFLOP")} & set(pairwise(words))


def test_a_dry_run_counts_a_folder_and_is_not_rounded_to_nothing(bench: Any, tmp_path: Path) -> None:
    make(tmp_path, "mine", 2, 8, train=15)
    (told,) = json.loads(bench("mine", "run", "--dry-run", "--json"))
    assert (told["steps"], told["images"]) == (7, 28)
    out = bench("mine", "run", "--dry-run")
    row = out.splitlines()[1].split()
    assert (row[-3], 0 < float(row[-2]) < 1000, row[-1]) == ("7", True, "GFLOP")
    assert "1 of 1 cells to run\n" in out
    assert duration(0.0321) == "0.03 seconds"
    assert duration(0) == "0 seconds"


def test_more_images_than_there_are_to_train_on(bench: Any, tmp_path: Path) -> None:
    make(tmp_path, "cifar10", 10, 32)
    for words in (["run"], ["run", "--dry-run"], ["status"], ["prepare"]):
        with pytest.raises(UserError) as caught:
            bench("{name: cifar10, train_images: 500}", *words)
        assert str(caught.value) == "grid g: dataset 'cifar10': train_images asks for 500 and 30 are here"


@pytest.mark.parametrize(
    "words", [["run"], ["run", "--jobs", "2"], ["run", "--dry-run"], ["run", "--rehearse"], ["status"], ["prepare"]]
)
def test_what_cannot_be_read_stops_every_command(bench: Any, tmp_path: Path, words: list[str]) -> None:
    path = make(tmp_path, "mine", 2, 8) / "train" / "c1" / "more"
    path.symlink_to("more")
    with pytest.raises(UserError) as caught:
        bench("mine", *words)
    assert f"{path}: cannot be read: " in str(caught.value).replace("results/g@rehearsal/.data/", "")
    assert not list((tmp_path / "results").rglob("*.json"))


def test_a_rehearsal_counts_the_images_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "mine", 2, 8, train=4)
    (tmp_path / "g.yaml").write_text(GRID.replace("NAME", "mine"))
    cells = expand(load_grid(str(tmp_path / "g.yaml")))
    paths = Paths(tmp_path, tmp_path / "results", "g")
    tasks = plan(cells, cells, paths, "g")
    pages = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 3 * 8 * 8 * 8}
    monkeypatch.setattr("os.sysconf", pages.__getitem__)
    assert not obstacles(tasks, paths)
    pages["SC_PHYS_PAGES"] -= 1
    (reason,) = obstacles(tasks, paths)
    assert reason.startswith("mine: images and targets take ")
