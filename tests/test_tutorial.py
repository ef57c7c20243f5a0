"""The tutorial's examples and commands, run as they stand there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bench.store.record import Finished, read_records

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
FILES = {"method": "my_method.py", "prior": "my_prior.py", "dataset": "my_dataset.py", "grid": "mine.yaml"}


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


@pytest.mark.slow
def test_the_first_commands_run(folder: Path) -> None:
    """In the profile `mini`, whose cells take seconds."""
    first, second = block("run: quickstart").splitlines()
    run(f"{first} --profile mini", folder)
    run(f"{second}@mini", folder)
    assert (folder / "reports" / "quickstart@mini" / "report.md").is_file()


@pytest.mark.slow
def test_the_example_method_passes_the_conformance_tests(folder: Path) -> None:
    command = [sys.executable, "-m", "pytest", "tests/methods/test_conformance.py", "-k", "align_uniform", "-x"]
    plugin = ["-p", "no:cacheprovider", "--plugin", str(folder / "my_method.py")]
    ran = subprocess.run([*command, *plugin], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
    assert re.search(r"\b8 passed", ran.stdout), ran.stdout
