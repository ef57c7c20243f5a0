"""The tutorial's examples and commands, run as they stand there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.core.paths import Paths
from bench.core.registry import load_plugin
from bench.grid.expand import expand, select
from bench.grid.load import load_grid
from bench.models.backbones import build_backbone
from bench.plan.graph import Ready, plan
from bench.store.record import Finished, read_records
from bench.train.cell import run_cell
from bench.train.keeper import Hooks
from methods import Batch, accelerators, methods

CPU = torch.device("cpu")

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
FILES = {
    "method": "my_method.py",
    "prior": "my_prior.py",
    "dataset": "my_dataset.py",
    "grid": "mine.yaml",
    "accelerator": "my_accelerator.py",
    "faster": "faster.yaml",
}


def block(mark: str) -> str:
    found = re.search(rf"<!-- {mark} -->\n```\w+\n(.*?)```", TEXT, re.DOTALL)
    assert found is not None, mark
    return found[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write the examples to the files that the tutorial names."""
    for kind, name in FILES.items():
        assert f"`{name}`" in TEXT
        (tmp_path / name).write_text(block(f"example: {kind}"))
    return tmp_path


def run(command: str, folder: Path) -> str:
    program, *words = shlex.split(command)
    assert program == "rela-bench"
    ran = subprocess.run(
        [sys.executable, "-m", "bench", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.slow
def test_a_grid_of_the_examples_runs_and_is_judged(folder: Path) -> None:
    _, report = (run(command, folder) for command in block("run: mine").splitlines())
    records, damaged = read_records(folder / "results" / "mine")
    assert not damaged
    assert len(records) == 6
    assert all(isinstance(record, Finished) and record.dataset_title == "Stripes" for record in records)
    assert "6 of 6 cells done" in report
    assert "half the cost" in (folder / "reports" / "mine" / "report.md").read_text()


def flops_of_byol(pixels: int) -> int:
    """Return the FLOPs of a step on 32 images of so many pixels, by torch's own counter."""
    method = methods.build("byol", (backbone := build_backbone("resnet_small", 8)).module, backbone.dim, {})
    with FlopCounterMode(display=False) as counter:
        views = [torch.rand(32, 3, pixels, pixels) for _ in range(2)]
        method.loss(Batch(views, torch.zeros(32))).backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops())


def test_the_example_accelerator_takes_the_first_steps_on_smaller_images(folder: Path) -> None:
    """Alone and around ReLA: cells of the grid as it stands there, on fewer images."""
    settings = ["datasets=[{name: digits, train_images: 64}]", "protocol.probe={epochs: 1}"]
    paths = Paths(folder / "data", folder / "results", "faster")
    done: dict[str, Finished] = {}
    with accelerators.temporary():
        load_plugin(folder / "my_accelerator.py")
        cells = select(expand(load_grid(str(folder / "faster.yaml"), settings=settings)), "budget=0.5,seed=0")
        for task in plan(cells, select(cells, "arm=small first,arm=both"), paths, "grid faster"):
            assert isinstance(task, Ready)
            done[task.cell.arm] = run_cell(task, paths, CPU, 0, Hooks(lambda *_: None, lambda *_: None, lambda: False))
    losses = {name: set(record.curve[-1].mean_losses) for name, record in done.items()}
    assert losses == {"small first": {"small method", "method"}, "both": {"small rela", "rela", "method"}}
    assert {record.ledger.steps for record in done.values()} == {4}, "one of 32 images in each epoch"
    assert done["small first"].ledger.flops == flops_of_byol(4) + 3 * flops_of_byol(8)
    assert [done["both"].switch_step, done["small first"].switch_step] == [2, None]


@pytest.mark.slow
def test_the_commands_for_an_accelerator_run_and_rank_it(folder: Path) -> None:
    for command in block("run: faster").splitlines():
        run(command, folder)
    report = (folder / "reports" / "faster" / "report.md").read_text()
    assert "ReLA at 50%: rank" in report
    assert "| both | 50% | small first |" in report


@pytest.mark.slow
def test_the_first_commands_run(folder: Path) -> None:
    """In the profile `mini`, whose cells take seconds."""
    first, second = block("run: quickstart").splitlines()
    run(f"{first} --profile mini", folder)
    run(f"{second}@mini", folder)
    assert (folder / "reports" / "quickstart@mini" / "report.md").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tests", "name", "plugin", "count"),
    [
        ("test_conformance.py", "align_uniform", "my_method.py", 8),
        ("test_accelerators.py", "small_first", "my_accelerator.py", 6),
    ],
)
def test_the_examples_pass_the_conformance_tests(tests: str, name: str, plugin: str, count: int, folder: Path) -> None:
    command = [sys.executable, "-m", "pytest", f"tests/methods/{tests}", "-k", name, "-x", "-p", "no:cacheprovider"]
    command += ["--plugin", str(folder / plugin)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
    assert re.search(rf"\b{count} passed", ran.stdout), ran.stdout
