"""The tables for other tools are what the records say, read back by the tools that they are for."""

import builtins
import math
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from typer.testing import CliRunner

from bench.cli.main import app
from bench.core.errors import UserError
from bench.grid.cell import Inputs, cell_id
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.grid.schema import Grid
from bench.report import write_report
from bench.report.columns import RESULTS
from bench.report.points import BRIEF, POINTS
from bench.store.record import (
    ByAdam,
    Finished,
    Ledger,
    Moved,
    Point,
    References,
    Score,
    TargetCost,
    read_records,
    write_record,
)

COLUMNS = {column.name: column for column in POINTS}
ROOT = Path(__file__).parent.parent.parent
NASTY = r'50%_of #1, & "$x$" {a} <b>|~^\ *[c] é'
GRID = f"""
title: '{NASTY}'
backbone: resnet_small
datasets: [digits]
budgets: [0.5]
seeds: [0, 1]
arms:
  - {{method: byol, budgets: [0.5, 1.0]}}
  - {{name: '../../{NASTY}', method: byol, rela: {{prior: rand, check_every: 50}}}}
"""


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    (tmp_path / "trial.yaml").write_text(GRID)
    return load_grid(str(tmp_path / "trial.yaml"))


EARLIER = {"end": None, "by_adam": None, "effective_rank": None}


def last_score(draw: np.random.Generator) -> Score:
    moved = Moved(loss=(1.0, draw.uniform(0.98, 1.0)), accuracy=(0.5, 0.5))
    by_adam = ByAdam(linear=tuple(draw.random(3).tolist()))
    linear, knn, rank = tuple(draw.random(3).tolist()), draw.random(), draw.uniform(1, 9)
    return Score(linear=linear, knn=knn, end=moved, by_adam=by_adam, effective_rank=rank)


def records_of(grid: Grid, folder: Path) -> list[Finished]:
    """Write a record with made-up numbers of all digits for each cell of the grid."""
    draw = np.random.default_rng(0)
    records = []
    for cell in expand(grid):
        inputs = Inputs(data="d", prior="p" if cell.rela else None, method_version=1, params={"momentum": 0.99})
        points = tuple(
            Point(
                step=step,
                images=64 * step,
                flops=step * 10**17 + 1,
                seconds=draw.uniform(0, 1000),
                loss=draw.normal(),
                score=last_score(draw).model_copy(update={} if step == 70 else EARLIER),
            )
            for step in (3, 70)
        )
        references = References(untrained=last_score(draw), prior=last_score(draw) if cell.rela else None)
        targets = TargetCost(seconds=draw.uniform(0, 9), flops=10**19, images=9, empty=2, cached=True, other_load=0.02)
        ledger = Ledger(
            steps=70,
            images=64 * 70,
            flops=points[-1].flops,
            seconds={"train": points[-1].seconds, "targets": 0.0, "eval": draw.random(), "other": draw.random()},
            wall_seconds=draw.uniform(0, 2000),
            peak_memory_bytes=None if cell.seed else 2**40 + 1,
            targets=targets if cell.rela else None,
            flops_not_counted="",
            other_load=0.01,
        )
        record = Finished(
            id=cell_id(cell, inputs),
            grid=grid.name,
            cell=cell,
            inputs=inputs,
            dataset_title=NASTY,
            curve=points,
            switch_step=50 if cell.rela else None,
            ledger=ledger,
            references=references,
            provenance={
                "time": "2026-01-02T03:04:05+00:00",
                "code": {"dirty": False},
                "packages": {"torch": 3},
                "threads": 2,
            },
        )
        write_record(record, folder)
        records.append(record)
    return records


def points(records: list[Finished]) -> dict[tuple[str, int], tuple[Finished, Point]]:
    return {(record.id, point.step): (record, point) for record in records for point in record.curve}


def check(frame: pd.DataFrame, records: list[Finished]) -> None:
    """Compare each row with the record that it is of."""
    expected = points(records)
    assert list(frame.columns) == list(COLUMNS)
    assert {(row["id"], row["step"]) for _, row in frame.iterrows()} == expected.keys()
    assert len(frame) == len(expected)
    for _, row in frame.iterrows():
        record, point = expected[row["id"], row["step"]]
        cell, ledger = record.cell, record.ledger
        assert ledger is not None
        targets, last = ledger.targets, record.final
        assert last
        assert last.effective_rank
        assert isinstance(last.end, Moved)
        assert record.references
        untrained, prior = record.references.untrained, record.references.prior
        assert untrained
        values = {
            "grid": record.grid,
            "rehearsal": False,
            "dataset": cell.dataset,
            "dataset_title": record.dataset_title,
            "data": record.inputs.data,
            "method": cell.method,
            "method_version": 1,
            "prior": cell.rela.prior if cell.rela else None,
            "prior_digest": record.inputs.prior,
            "phase": str(cell.rela.phase) if cell.rela else None,
            "prior_precision": cell.rela.precision if cell.rela else None,
            "check_every": cell.rela.check_every if cell.rela else None,
            "shuffle": cell.rela.shuffle if cell.rela else None,
            "budget": cell.budget,
            "seed": cell.seed,
            "backbone": cell.backbone,
            "train_images": cell.train_images,
            "epochs": cell.protocol.epochs,
            "lr": cell.protocol.lr,
            "blur": cell.protocol.blur,
            "probe_lr": cell.protocol.probe.lr,
            "knn_k": cell.protocol.knn.k,
            "images": point.images,
            "train_flops": float(point.flops),
            "target_flops": float(targets.flops) if targets else 0.0,
            "train_seconds": point.seconds,
            "target_seconds": targets.seconds if targets else 0.0,
            "train_joules": point.joules,
            "target_joules": targets.joules if targets else None,
            "loss": point.loss,
            "linear": statistics.fmean(point.score.linear),
            "linear_probe_sd": statistics.stdev(point.score.linear),
            "linear_by_adam": statistics.fmean(point.score.by_adam.linear) if point.score.by_adam else None,
            "effective_rank": last.effective_rank,
            "probe_converged": last.end.loss[1] >= 0.99,
            "learned": last.effective_rank >= 2 and statistics.fmean(last.linear) > statistics.fmean(untrained.linear),
            "untrained_linear": statistics.fmean(untrained.linear),
            "prior_linear": statistics.fmean(prior.linear) if prior else None,
            "knn": point.score.knn,
            "final": point is record.curve[-1],
            "switch_step": record.switch_step,
            "eval_seconds": ledger.seconds["eval"],
            "wall_seconds": ledger.wall_seconds,
            "peak_memory_bytes": ledger.peak_memory_bytes,
            "target_empty": targets.empty if targets else None,
            "time": record.provenance["time"],
            "code_dirty": False,
            "threads": 2,
            "gpu": None,
        }
        for name, value in values.items():
            exact = pytest.approx(value, rel=1e-14) if isinstance(value, float) else value
            assert pd.isna(row[name]) if value is None else row[name] == exact, name


def test_parquet_and_csv_hold_what_the_records_say(grid: Grid, tmp_path: Path) -> None:
    records = records_of(grid, tmp_path / "records")
    write_report(grid, tmp_path / "records", tmp_path / "out", ["csv", "parquet"])
    read = pd.read_parquet(tmp_path / "out" / "tidy.parquet")
    check(read, records)
    types = {name: column.type for name, column in COLUMNS.items()}
    check(pd.read_csv(tmp_path / "out" / "tidy.csv", engine="python", dtype=types), records)
    assert {name: str(kind) for name, kind in read.dtypes.items()} == types
    schema = parquet.read_schema(tmp_path / "out" / "tidy.parquet")
    described = (tmp_path / "out" / "columns.md").read_text()
    for column in RESULTS:
        assert f"| {column.name} | {column.type.lower()} | {column.unit or '—'} | {column.meaning} |" in described
    for name, column in COLUMNS.items():
        metadata = schema.field(name).metadata
        assert metadata == {b"unit": column.unit.encode(), b"description": column.meaning.encode()}
        assert f"| {name} | {column.type.lower()} | {column.unit or '—'} | {column.meaning} |" in described
    assert schema.field("train_seconds").metadata[b"unit"] == b"s"
    brief, tidy = (
        pd.read_csv(tmp_path / "out" / name, engine="python", dtype=types) for name in ("points.csv", "tidy.csv")
    )
    assert list(brief) == [column.name for column in BRIEF]
    pd.testing.assert_frame_equal(brief, tidy[list(brief)])


def test_tensorboard_reads_a_run_for_each_cell(grid: Grid, tmp_path: Path) -> None:
    records = records_of(grid, tmp_path / "records")
    out = tmp_path / "out"
    for _ in range(2):  # a second report replaces the first one
        said = write_report(grid, tmp_path / "records", out, ["tensorboard"])
    assert " ".join(said.split()).endswith(f"wrote {out / 'tensorboard'}: {len(records)} runs")
    runs = sorted((out / "tensorboard").iterdir())
    assert [len(list(run.iterdir())) for run in runs] == [1] * len(runs)
    by_id = {re.sub(".*_", "", run.name): run for run in runs}
    assert by_id.keys() == {record.id for record in records}
    for record in records:
        events = EventAccumulator(str(by_id[record.id]), size_guidance={"scalars": 0})
        events.Reload()
        targets = record.ledger.targets
        values = {
            "accuracy/linear": [statistics.fmean(point.score.linear) for point in record.curve],
            "accuracy/knn": [point.score.knn for point in record.curve],
            "train/loss": [point.loss for point in record.curve],
            "cost/images": [point.images for point in record.curve],
            "cost/train_flops": [point.flops for point in record.curve],
            "cost/target_flops": [targets.flops if targets else 0] * 2,
            "cost/train_seconds": [point.seconds for point in record.curve],
            "cost/target_seconds": [targets.seconds if targets else 0.0] * 2,
        }
        assert {*events.Tags()["scalars"]} == values.keys()
        for tag, expected in values.items():
            there = events.Scalars(tag)
            assert [event.step for event in there] == [3, 70]
            assert [event.value for event in there] == np.float32(expected).tolist()
        start = HParamsPluginData.FromString(
            events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        ).session_start_info
        assert start.hparams["budget"].number_value == record.cell.budget
        assert start.hparams["seed"].number_value == record.cell.seed
        assert ("prior" in start.hparams) == (record.cell.rela is not None)


def test_a_run_that_is_gone_leaves_no_event_file(grid: Grid, tmp_path: Path) -> None:
    records = records_of(grid, tmp_path / "records")
    write_report(grid, tmp_path / "records", tmp_path / "out", ["tensorboard"])
    mine = tmp_path / "out" / "tensorboard" / "mine" / "events.out.tfevents.1"
    mine.parent.mkdir()
    mine.write_bytes(b"")
    (tmp_path / "records" / f"{records[0].id}.json").unlink()
    write_report(grid, tmp_path / "records", tmp_path / "out", ["tensorboard"])
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(left) == len(records)
    assert mine in left


DOCUMENT = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage[a3paper,landscape,margin=15mm]{geometry}
\usepackage{booktabs}
\begin{document}
\noindent\input{table.tex}
\end{document}
"""


def test_the_table_compiles_in_a_document(grid: Grid, tmp_path: Path) -> None:
    records_of(grid, tmp_path / "records")
    shipped = load_grid("cifar_small")
    write_report(grid, tmp_path / "records", tmp_path / "nasty", ["latex"])
    write_report(shipped, ROOT / "results" / "cifar_small", tmp_path / "shipped", ["latex"])
    text = (tmp_path / "shipped" / "table.tex").read_text()
    assert r"\toprule" in text
    assert r"\textbf{\underline{59.2 $\pm$ 0.6}} (n=3)" in text or r"\underline{\textbf{59.2 $\pm$ 0.6}} (n=3)" in text
    compiler = shutil.which("pdflatex")
    if not compiler:
        pytest.skip("needs pdflatex")
    for folder in ("nasty", "shipped"):
        (tmp_path / folder / "document.tex").write_text(DOCUMENT)
        ran = subprocess.run(
            [compiler, "-halt-on-error", "-interaction=nonstopmode", "document.tex"],
            cwd=tmp_path / folder,
            capture_output=True,
            check=False,
        )
        log = ran.stdout.decode(errors="replace")
        assert ran.returncode == 0, log[-2000:]
        assert "Overfull" not in log
        assert (tmp_path / folder / "document.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cifar_small", "--format", "csv,parket"], "unknown format 'parket'; did you mean 'parquet'"),
        (["cifar_smal", "--format", "csv"], "did you mean 'cifar_small'"),
        (["paper_toy", "--format", "csv"], "unknown format 'csv'"),
        (["quickstart", "--format", "csv"], "no record of grid quickstart"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(arguments: list[str], words: str, tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "cifar_small").symlink_to(ROOT / "results" / "cifar_small")
    ran = CliRunner().invoke(app, ["report", *arguments, "--results", str(results), "--reports", str(tmp_path / "out")])
    assert isinstance(ran.exception, UserError)
    assert words in str(ran.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "package"), [("parquet", "pyarrow"), ("tensorboard", "tensorboard")])
def test_a_package_that_is_not_there_is_named(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def fail(wanted: str, scope: Any = None, *rest: Any) -> Any:
        if wanted.partition(".")[0] == package and scope["__name__"].startswith("bench."):  # pandas has its own ways
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(wanted, scope, *rest)

    shipped = load_grid("cifar_small")
    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(UserError, match=rf"--format {name} needs the package {package}: pip install 'rela-bench\[exp"):
        write_report(shipped, ROOT / "results" / "cifar_small", tmp_path / "out", ["csv", name])
    assert not (tmp_path / "out").exists()


def test_a_number_that_is_too_large_is_an_error_and_not_another_number(grid: Grid, tmp_path: Path) -> None:
    for record in records_of(grid, tmp_path / "few"):
        cell = record.cell.model_copy(update={"seed": 2**70})
        write_record(record.model_copy(update={"cell": cell, "id": cell_id(cell, record.inputs)}), tmp_path / "records")
    large = grid.model_copy(update={"seeds": (2**70,)})
    with pytest.raises(UserError, match="more than 64 bits"):
        write_report(large, tmp_path / "records", tmp_path / "out", ["csv", "parquet"])
    assert not (tmp_path / "out").exists()
    write_report(large, tmp_path / "records", tmp_path / "out", ["csv"])
    assert f",{2**70}," in (tmp_path / "out" / "tidy.csv").read_text()


@pytest.mark.slow
def test_profiles_and_rehearsals_are_named_as_folders_are_and_no_more_is_loaded_than_needed(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "results" / "cifar_small", tmp_path / "results" / "cifar_small@mini@rehearsal")

    def run(formats: str, absent: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        code = (
            "import sys\n"
            "from bench.cli.main import app\n"
            "app(sys.argv[1:], standalone_mode=False)\n"
            f"assert not {{*{absent.split()}}} & sys.modules.keys()\n"
        )
        words = ["report", *arguments, "--format", formats, "--reports", str(tmp_path / "out")]
        return subprocess.run(
            [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False
        )

    ran = run("csv,parquet", "torch tensorflow matplotlib", "cifar_small")
    assert ran.returncode == 0, ran.stderr
    ran = run("md,html,latex,csv", "torch tensorflow pandas", "cifar_small")
    assert ran.returncode == 0, ran.stderr
    ran = run("tensorboard", "tensorflow matplotlib", "cifar_small")
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "out" / "cifar_small" / "tidy.csv").is_file()
    records = [each for each in read_records(ROOT / "results" / "cifar_small")[0] if not each.cell.validation]
    written = pd.read_parquet(tmp_path / "out" / "cifar_small" / "tidy.parquet")
    assert len(written) == sum(len(record.curve) for record in records)
    assert math.isclose(written["linear"].sum(), sum(np.mean(p.score.linear) for _, p in points(records).values()))
    rehearsed = run("csv", "torch", "cifar_small@mini@rehearsal", "--results", str(tmp_path / "results"))
    assert "no record of grid cifar_small@mini@rehearsal" in rehearsed.stderr
