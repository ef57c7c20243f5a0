"""`rela-bench` and `python -m bench` where a user has folders and files of our names."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.run.processes import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
GRID = """
backbone: resnet_small
datasets: [{name: digits, train_images: 64}]
seeds: [0, 1]
arms: [{method: simsiam, rela: {prior: rand}}]
protocol: {epochs: 1, batch_size: 32, input_size: 8, probe: {epochs: 1}, knn: {k: 5}}
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A working directory with `methods`, `priors` and `bench` of the user's own."""
    here = tmp_path / "here"
    for name in ("methods/__init__.py", "priors.py", "bench/__init__.py"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(f"raise ImportError('the user has a {name}')")
    (here / "g.yaml").write_text(GRID)
    module, _, function = PROJECT["project"]["scripts"]["rela-bench"].partition(":")
    (tmp_path / "rela-bench").write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    return here


def started(here: Path, program: list[str], *words: str, path: Path) -> str:
    """Return what a command says in the working directory, which is first on Python's path too, before `path`."""
    environment = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{path}"}
    ran = subprocess.run([sys.executable, *program, *words], cwd=here, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def console(here: Path, *words: str) -> str:
    """Run `rela-bench` as pip installs it."""
    there = ROOT / PROJECT["tool"]["setuptools"]["packages"]["find"]["where"][1]
    return started(here, [str(here.parent / "rela-bench")], *words, path=there)


@pytest.mark.slow
def test_the_command_finds_its_own_packages(here: Path) -> None:
    assert "byol" in console(here, "list", "methods")


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_so_do_the_processes_that_it_starts(jobs: str, here: Path) -> None:
    said = console(here, "run", "--grid", "g.yaml", "--device", "cpu", "--jobs", jobs)
    assert "2 of 2 cells done" in said
    report = said.splitlines()[-1].partition("  ")[0]
    assert report == f"{here.parent / 'rela-bench'} report g.yaml"
    assert "2 of 2 cells done" in console(here, *report.split()[1:])


def test_python_m_bench_finds_its_own_methods_and_priors(here: Path) -> None:
    (here / "bench" / "__init__.py").unlink()
    assert "CLIP-RN50" in started(here, ["-m", "bench"], "list", "priors", path=ROOT)
