"""What is shipped stays what it is: each record its id, each report its tables."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.grid.cell import cell_id
from bench.grid.load import load_grid
from bench.report.collect import collect
from bench.report.document import report_document
from bench.report.render.markdown import markdown_document
from bench.store.record import Finished, read_records
from tests.readme import records_of

ROOT = Path(__file__).parent.parent
TABLES = ("report.md", "table.csv", "points.csv", "table.tex")  # the rest is drawn by matplotlib, and differs with it


@pytest.mark.parametrize("grid", ["accelerators", "cifar_small", "gpu_row@short", "paper_methods@cpu", "quickstart"])
def test_records_have_the_ids_of_their_cells(grid: str) -> None:
    records, damaged = read_records(records_of(grid))
    assert records
    assert not damaged
    for record in records:
        assert isinstance(record, Finished)
        assert cell_id(record.cell, record.inputs) == record.id


def test_a_report_says_what_its_records_and_this_code_say() -> None:
    """As the slow test below, for one grid and its text alone."""
    found = collect(load_grid("cifar_small"), ROOT / "results" / "cifar_small")
    shipped = (ROOT / "reports" / "cifar_small" / "report.md").read_text(encoding="utf-8")
    assert markdown_document(report_document(found)) == shipped


@pytest.mark.slow
@pytest.mark.parametrize("grid", ["accelerators", "cifar_small", "paper_methods@cpu", "paper_toy"])
def test_reports_have_the_tables_that_their_records_make(grid: str, tmp_path: Path) -> None:
    """In a process of its own, which knows no method that another test has loaded."""
    command = [sys.executable, "-m", "bench", "report", grid, "--reports", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    there = [name for name in TABLES if (ROOT / "reports" / grid / name).is_file()]
    assert "report.md" in there
    for name in there:
        assert (tmp_path / grid / name).read_bytes() == (ROOT / "reports" / grid / name).read_bytes(), name
