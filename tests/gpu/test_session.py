"""The command for a GPU, in miniature on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.grid.expand import expand, select
from bench.grid.load import load_grid
from bench.store.record import Finished, read_record
from tests.gpu.page import page
from tests.gpu.session import CELLS, Session, pack, unpack

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_all_of_it_runs_in_miniature(tmp_path: Path) -> None:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = ["bash", "tests/gpu/run.sh", str(tmp_path / "out"), "600"]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    parts = ("tests", *(f"cells {only},seed=0" for only in CELLS))
    assert {name: figures[name]["exit_code"] for name in parts} == dict.fromkeys(parts, 0)
    assert not [name for name, value in figures["times"].items() if isinstance(value, str)]
    written = (tmp_path / "out" / "gpu.md").read_text()
    assert "What limits a step of BYOL: " in written
    assert "nan" not in written
    unpack(tmp_path / "back", sorted((tmp_path / "out").glob("*.tar*")))
    records = [read_record(path) for path in (tmp_path / "back").glob("*.json")]
    planned = {cell.key() for cell in expand(load_grid("gpu_row", "cpu", ["seeds=[0]"]))}
    assert {record.cell.key() for record in records if isinstance(record, Finished)} == planned
    full = [record.id for record in records if isinstance(record, Finished) and record.cell.budget == 1.0]
    assert [path.stem for path in (tmp_path / "back" / "backbones").iterdir()] == full


def test_the_docs_have_the_figures_of_the_last_session() -> None:
    figures = json.loads((ROOT / "docs" / "gpu_h200.json").read_text())
    assert page(figures) in (ROOT / "docs" / "gpu.md").read_text()


def test_the_list_names_each_cell_once() -> None:
    cells = expand(load_grid("gpu_row", "short"))
    named = [cell.key() for only in CELLS for cell in select(cells, only)]
    assert sorted(named) == sorted(cell.key() for cell in cells)


def test_a_part_that_fails_or_is_late_takes_nothing_from_the_next(tmp_path: Path) -> None:
    session = Session(tmp_path, 100)
    assert session.part("fails", ["-c", "raise SystemExit(3)"], 50) == 3
    assert session.part("late", ["-c", "import time; time.sleep(60)"], 0.5) is None
    assert session.part("good", ["-c", "print('here')"], 50) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [figures[name]["exit_code"] for name in ("fails", "late", "good")] == [3, None, 0]


def test_what_does_not_fit_is_left_out_and_the_rest_comes_back(tmp_path: Path) -> None:
    sizes = {"small": 1, "large": 40 * 2**20, "larger": 30 * 2**20}
    files = {name: os.urandom(size) for name, size in sizes.items()}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    told = pack(tmp_path, [tmp_path / name for name in files], tmp_path / "c.tar", 3)
    assert told == {"packed": 2, "left_out": ["larger"]}
    assert max(path.stat().st_size for path in tmp_path.glob("c.tar.*")) <= 15 * 2**20
    unpack(tmp_path / "back", sorted(tmp_path.glob("c.tar.*")))
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()} == {
        name: files[name] for name in ("small", "large")
    }
