"""The examples of CONTRIBUTING.md, run as they stand there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.store.record import Finished, read_records

ROOT = Path(__file__).parent.parent
GRID = """
backbone: resnet_small
datasets: [stripes]
seeds: [0]
budgets: [0.5]
arms:
  - {method: align_uniform}
  - {method: align_uniform, params: {t: 3.0}, rela: {prior: pixels}}
protocol: {epochs: 4, batch_size: 32, blur: false, probe: {epochs: 5}}
"""


@pytest.fixture
def plugins(tmp_path: Path) -> list[str]:
    """Write the examples to files and return the options that name them."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    options = []
    for kind in ("method", "prior", "dataset"):
        block = re.search(rf"<!-- example: {kind} -->\n```python\n(.*?)```", text, re.DOTALL)
        assert block is not None, kind
        path = tmp_path / f"my_{kind}.py"
        path.write_text(block[1])
        options += ["--plugin", str(path)]
    return options


def test_the_example_method_prior_and_dataset_run(plugins: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(GRID)
    command = [sys.executable, "-m", "bench", "run", "--grid", str(tmp_path / "mine.yaml"), "--device", "cpu"]
    folders = ["--data-root", str(tmp_path / "data"), "--results", str(tmp_path / "results")]
    ran = subprocess.run([*command, *folders, *plugins], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    records, damaged = read_records(tmp_path / "results" / "mine")
    assert not damaged
    assert all(isinstance(record, Finished) for record in records)
    assert {(record.cell.method, record.inputs.params["t"]) for record in records} == {
        ("align_uniform", 2.0),
        ("align_uniform", 3.0),
    }
    assert all(record.dataset_title == "Stripes" for record in records)


@pytest.mark.slow
def test_the_example_method_passes_the_conformance_tests(plugins: list[str]) -> None:
    command = [sys.executable, "-m", "pytest", "tests/methods/test_conformance.py", "-k", "align_uniform", "-x"]
    ran = subprocess.run(
        [*command, "-p", "no:cacheprovider", *plugins[:2]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout
    assert re.search(r"\b9 passed", ran.stdout), ran.stdout
