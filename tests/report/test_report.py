"""`bench.report` against numbers worked out by numpy and by hand."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.core.errors import UserError
from bench.grid.cell import Cell, Inputs, cell_id
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.grid.schema import Grid
from bench.report import write_report
from bench.report.collect import Collected, collect
from bench.report.costs import FLOP, TARGETS
from bench.report.document import report_document
from bench.report.figures.costs import cost_view
from bench.report.figures.draw import view_figure
from bench.report.render.latex import escape_latex, latex_document
from bench.report.render.markdown import escape_markdown, markdown_document
from bench.report.render.text import terminal_text
from bench.report.sections.settings import settings
from bench.report.tables import number
from bench.store.record import Failed, Finished, Ledger, Point, Score, TargetCost, write_record
from tests.report.frames import results_frame

NASTY = r"50%_of #1 & $x$ {a} <b>|~^\n*[c]"
GRID = """
title: A test of reports
backbone: resnet_small
datasets: [digits]
budgets: [0.2, 0.5]
seeds: [0, 1, 2]
arms:
  - {method: byol, budgets: [0.2, 0.5, 1.0]}
  - {method: byol, rela: {prior: rand}}
  - {method: byol, rela: {prior: "file:net.safetensors", backbone: resnet20_cifar}}
protocol: {epochs: 20}
"""
PROVENANCE = {
    "time": "2026-01-02T03:04:05+00:00",
    "code": {"version": "0.1.0", "commit": "abc123", "dirty": False},
    "packages": {"torch": "2.14.1"},
    "device": "cpu",
    "gpu": None,
    "cpu": "Some CPU",
}
BASE = {"byol": 0.60, "rela(byol,rand)": 0.62, "rela(byol,file:net.safetensors)": 0.70}


def grid_of(tmp_path: Path, text: str = GRID) -> Grid:
    path = tmp_path / "trial.yaml"
    path.write_text(text)
    return load_grid(str(path))


def probe_of(cell: Cell) -> tuple[float, float, float]:
    """Made-up accuracies that differ by arm, budget, seed and epoch of the probe."""
    middle = BASE.get(cell.arm, 0.5) + 0.1 * cell.budget + (0.0, 0.013, 0.031)[cell.seed % 3]
    return middle - 0.004, middle, middle + 0.007


def record_of(cell: Cell, **changes: Any) -> Finished:
    """A finished record of a cell; `changes` to its fields, `data` and `prior` to its inputs."""
    prior = (changes.pop("prior", None) or f"prior-{cell.rela.prior}") if cell.rela else None
    inputs = Inputs(
        data=changes.pop("data", "d" * 16),
        prior=prior,
        method_version=changes.pop("method_version", 1),
        params={"momentum": 0.99},
    )
    linear = changes.pop("linear", probe_of(cell))
    steps = round(1000 * cell.budget)
    targets = TargetCost(seconds=3.0, flops=2 * 10**12, images=1437, empty=0, cached=False, other_load=0.0)
    seconds = {"targets": 3.0 if cell.rela else 0.0, "train": 100 * cell.budget, "eval": 4.0, "other": 1.0}
    points = tuple(
        Point(
            step=steps * part // 2,
            images=64 * steps * part // 2,
            flops=10**10 * steps * part // 2,
            seconds=50 * cell.budget * part,
            loss=-0.5,
            score=Score(linear=linear if part == 2 else (0.1, 0.1, 0.1), knn=linear[1] - 0.05 if part == 2 else 0.1),
        )
        for part in (1, 2)
    )
    fields: dict[str, Any] = {
        "id": cell_id(cell, inputs),
        "grid": "trial",
        "cell": cell,
        "inputs": inputs,
        "dataset_title": "Digits",
        "curve": points,
        "ledger": Ledger(
            steps=steps,
            images=64 * steps,
            flops=10**10 * steps,
            seconds=seconds,
            wall_seconds=sum(seconds.values()),
            peak_memory_bytes=100 * 2**20,
            targets=targets if cell.rela else None,
            flops_not_counted="the weather is not counted",
            other_load=0.0,
        ),
        "provenance": PROVENANCE,
    }
    return Finished(**(fields | changes))


def failed(cell: Cell, error: str, **changes: Any) -> Failed:
    done = record_of(cell, **changes)
    return Failed(
        id=done.id,
        grid=done.grid,
        status="failed",
        error=error,
        cell=cell,
        inputs=done.inputs,
        dataset_title=cell.dataset,
        provenance=done.provenance,
    )


def report(tmp_path: Path, grid: Grid, records: list[Finished]) -> tuple[str, str]:
    """Write the records; return the text for the terminal and the report, without drawing its plots."""
    for record in records:
        write_record(record, tmp_path / "records")
    found = collect(grid, tmp_path / "records")
    return terminal_text(found, []), markdown_document(report_document(found))


def files(tmp_path: Path, grid: Grid, records: list[Finished]) -> tuple[str, Path]:
    """Write the records and the whole report; return the text for the terminal and the folder."""
    for record in records:
        write_record(record, tmp_path / "records")
    return write_report(grid, tmp_path / "records", tmp_path / "out"), tmp_path / "out"


def rows_of(markdown: str, after: str, first: str) -> list[list[str]]:
    """The cells of the rows that begin with `first` below a heading."""
    section = markdown.split(f"{after}\n", 1)[1].split("\n## ", 1)[0]
    return [line[2:-2].split(" | ") for line in section.splitlines() if line.startswith(f"| {first}")]


def seeds(cells: list[Cell], arm: str, budget: float) -> np.ndarray:
    return np.array([np.mean(probe_of(cell)) for cell in cells if (cell.arm, cell.budget) == (arm, budget)])


def shown(values: np.ndarray) -> str:
    return f"{100 * values.mean():.1f} ± {100 * values.std(ddof=1):.1f}"


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return grid_of(tmp_path)


def test_table_1(tmp_path: Path, grid: Grid) -> None:
    cells = expand(grid)
    text, out = files(tmp_path, grid, [record_of(cell) for cell in cells])
    markdown = (out / "report.md").read_text()
    rand, net = "rela(byol,rand)", "rela(byol,file:net.safetensors)"
    star = shown(seeds(cells, "byol", 1.0))
    low, high = rows_of(markdown, "## Linear accuracy", "Digits")
    assert low == [
        "Digits",
        "20%",
        f"{shown(seeds(cells, 'byol', 0.2))} (n=3)",
        f"{shown(seeds(cells, rand, 0.2))} (n=3)",
        f"**<u>{shown(seeds(cells, net, 0.2))}</u>** (n=3)",
        f"{star} (n=3)",
    ]
    assert high[1:4] == ["50%", f"{shown(seeds(cells, 'byol', 0.5))} (n=3)", f"{shown(seeds(cells, rand, 0.5))} (n=3)"]
    assert high[5] == f"{star} (n=3)"
    assert "| Dataset | Budget | byol | ReLA (rand) | ReLA (net) | byol\\* |" in markdown
    assert "sample standard deviation over them (ddof 1)" in markdown
    assert "all training images that were there, backbone resnet\\_small, 20 epochs" in markdown
    assert "Nothing: all 21 planned cells are done" in markdown
    assert shown(seeds(cells, net, 0.5)) in text
    [wrote] = [line for line in text.split("\n\n") if line.startswith("wrote ")]
    assert re.fullmatch(rf"wrote {re.escape(str(out))}: .*, table\.csv,.*", " ".join(wrote.split()))
    knn = rows_of(markdown, "## kNN accuracy", "Digits")[0]
    values = np.array([probe_of(cell)[1] - 0.05 for cell in cells if (cell.arm, cell.budget) == ("byol", 0.2)])
    assert knn[2] == f"{shown(values)} (n=3)"


def test_best_is_chosen_without_the_star(tmp_path: Path, grid: Grid) -> None:
    cells = [cell for cell in expand(grid) if cell.seed == 0]
    value = {("byol", 0.2): 0.6, ("byol", 1.0): 0.9, ("rela(byol,rand)", 0.2): 0.6004, ("byol", 0.5): 0.91}
    records = [
        record_of(cell, linear=(value[cell.arm, cell.budget],) * 3)
        for cell in cells
        if (cell.arm, cell.budget) in value
    ]
    _, markdown = report(tmp_path, grid, records)
    low, high = rows_of(markdown, "## Linear accuracy", "Digits")
    assert low[2:] == ["60.0 (n=1)†", "**60.0** (n=1)†", "—", "90.0 (n=1)†"]
    assert high[2:] == ["<u>91.0</u> (n=1)†", "—", "—", "90.0 (n=1)†"]  # alone in its row: nothing to be the best of
    assert "fewer seeds than planned" in markdown
    latex = latex_document(collect(grid, tmp_path / "records"))
    assert r"\textbf{60.0} (n=1)$^\dag$ & --- &" in latex
    assert r" & 50\% & \underline{91.0} (n=1)$^\dag$" in latex


def test_a_tie_with_the_star_does_not_beat_it(tmp_path: Path, grid: Grid) -> None:
    records = [record_of(cell, linear=(0.5, 0.5, 0.5)) for cell in expand(grid)]
    _, markdown = report(tmp_path, grid, records)
    assert "<u>" not in markdown


def test_spreads_are_kept_apart(tmp_path: Path, grid: Grid) -> None:
    cells = expand(grid)
    _, markdown = report(tmp_path, grid, [record_of(cell) for cell in cells])
    row = next(row for row in rows_of(markdown, "## Spreads, kept apart", "Digits") if row[1:3] == ["byol", "50%"])
    within = np.std([-0.004, 0, 0.007], ddof=1)
    over = seeds(cells, "byol", 0.5).std(ddof=1)
    assert row[3:] == [f"{100 * within:.2f}", "n=3", "—", "n=1", f"{100 * over:.2f}", "n=3"]


def test_the_spread_over_probe_seeds_is_that_of_the_probes_means(tmp_path: Path, grid: Grid) -> None:
    cells = expand(grid)
    further = {0: ((0.5, 0.52, 0.51), (0.4, 0.5, 0.6)), 1: ((0.61, 0.61, 0.61), (0.7, 0.6, 0.65)), 2: ()}
    records = []
    for cell in cells:
        record = record_of(cell)
        score = record.curve[-1].score.model_copy(update={"further_probes": further[cell.seed]})
        point = record.curve[-1].model_copy(update={"score": score})
        records.append(record.model_copy(update={"curve": (*record.curve[:-1], point)}))
    _, markdown = report(tmp_path, grid, records)
    row = next(row for row in rows_of(markdown, "## Spreads, kept apart", "Digits") if row[1:3] == ["byol", "50%"])
    means = [
        [np.mean(probe_of(cell)), 0.51, 0.5] for cell in cells if (cell.arm, cell.budget, cell.seed) == ("byol", 0.5, 0)
    ]
    means += [
        [np.mean(probe_of(cell)), 0.61, 0.65]
        for cell in cells
        if (cell.arm, cell.budget, cell.seed) == ("byol", 0.5, 1)
    ]
    assert row[5:7] == [f"{100 * np.mean([np.std(each, ddof=1) for each in means]):.2f}", "n=1 or 3"]


def test_costs(tmp_path: Path, grid: Grid) -> None:
    records = []
    for cell in expand(grid):
        record = record_of(cell)
        if cell.rela and cell.rela.prior == "rand" and cell.budget == 0.5:
            assert record.ledger.targets
            seconds = record.ledger.seconds | {"targets": 0.0}
            record = record.model_copy(
                update={
                    "switch_step": (None, 400, 420)[cell.seed],
                    "ledger": record.ledger.model_copy(
                        update={
                            "seconds": seconds,
                            "wall_seconds": sum(seconds.values()),
                            "targets": record.ledger.targets.model_copy(update={"cached": True}),
                        }
                    ),
                }
            )
        records.append(record)
    _, markdown = report(tmp_path, grid, records)
    rows = {(row[0], row[1]): row[2:] for row in rows_of(markdown, "### Digits", "byol")}
    # n, steps, images, TFLOP, targets' TFLOP and share (2 of 2 + 5), seconds (the cached targets in full), wall, MiB
    costs = ["3", "500", "32,000", "5.00", "2.00", "0", "28.6%", "50.0", "3.00", "4.00", "1.00", "55.0", "100"]
    assert rows["byol + ReLA (rand)", "50%"] == [*costs, "at 400 to 420 (2 of 3 seeds)"]
    assert rows["byol + ReLA (rand)", "20%"][-1] == "not in 200 steps"
    costs = ["3", "1,000", "64,000", "10.0", "0", "0", "0%", "100", "0", "4.00", "1.00", "105", "100"]
    assert rows["byol", "100%"] == [*costs, ""]
    assert "FLOP: the weather is not counted." in markdown
    assert "do not add up" not in markdown
    assert "ReLA never switched" not in markdown


@pytest.mark.parametrize(("empty", "line"), [(0, None), (1, "1 component"), (7, "7 components")])
def test_empty_components_of_targets_are_named(tmp_path: Path, grid: Grid, empty: int, line: str | None) -> None:
    cell = next(cell for cell in expand(grid) if cell.rela and cell.budget == 0.5 and cell.seed == 1)
    record = record_of(cell)
    assert record.ledger.targets
    targets = record.ledger.targets.model_copy(update={"empty": empty})
    record = record.model_copy(update={"ledger": record.ledger.model_copy(update={"targets": targets})})
    _, markdown = report(tmp_path, grid, [record])
    assert ("it tells nothing" in markdown) == (line is not None)
    assert line is None or f"byol + ReLA (rand) at 50%: {line}\n" in markdown


@pytest.mark.parametrize(("wall", "named"), [(57.9, False), (59.3, True), (56.9, False), (55.5, True)])
def test_phases_that_miss_the_wall_time_are_named(tmp_path: Path, grid: Grid, wall: float, named: bool) -> None:
    """Phases of 58 s: 2 % of the wall time is the line."""
    cell = next(cell for cell in expand(grid) if cell.rela and cell.budget == 0.5 and cell.seed == 1)
    record = record_of(cell)
    record = record.model_copy(update={"ledger": record.ledger.model_copy(update={"wall_seconds": wall})})
    _, markdown = report(tmp_path, grid, [record])
    gap = f"{abs(58 / wall - 1):.1%} {'less' if wall > 58 else 'more'} than the wall time"
    assert (f"byol + ReLA (rand) at 50%, seed 1 ({record.id}): the phases are {gap}" in markdown) == named
    assert ("do not add up to the wall time within 2%" in markdown) == named


def test_what_needs_a_failed_cell_is_skipped_and_says_so(tmp_path: Path) -> None:
    """A prior of the grid, and who matches the FLOPs of those with it: of one seed, the cell that makes it failed."""
    text = """
backbone: resnet_small
datasets: [{name: digits}]
seeds: [0, 1]
budgets: [0.5]
arms:
  - {method: byol, budgets: [1.0]}
  - {name: trained, method: byol, rela: {prior: DIGITS-T}}
  - {name: matched, method: simclr, flops_of: trained}
  - {name: alone, method: simclr}
"""
    grid = grid_of(tmp_path, text)
    makers = [cell for cell in expand(grid) if cell.budget == 1.0]
    _, markdown = report(tmp_path, grid, [failed(makers[0], "no luck"), record_of(makers[1])])
    needed = "it needs Digits, byol at 100%, which is failed"
    assert f"- skipped: Digits, trained at 50%: seed {makers[0].seed}: {needed}\n" in markdown
    needed = "it needs Digits, trained at 50%, which is skipped"
    assert f"- skipped: Digits, matched at 50%: seed {makers[0].seed}: {needed}\n" in markdown
    assert f"- missing: Digits, trained at 50%: seed {makers[1].seed}\n" in markdown
    assert "- missing: Digits, alone at 50%: seeds 0, 1\n" in markdown


def test_what_is_missing_failed_damaged_left_out(tmp_path: Path, grid: Grid) -> None:
    cells = expand(grid)
    records = [record_of(cell) for cell in cells if cell.arm == "byol" and (cell.budget, cell.seed) != (0.2, 2)]
    hole = next(cell for cell in cells if cell.rela and (cell.budget, cell.seed) == (0.2, 1))
    records.append(failed(hole, "loss is |nan|\nat <step> 3"))
    stranger = cells[0].model_copy(update={"protocol": cells[0].protocol.model_copy(update={"epochs": 7})})
    records += [record_of(stranger), failed(stranger, "also a stranger", data="x" * 16)]
    folder = tmp_path / "records"
    folder.mkdir()
    (folder / "broken.json").write_text("{")
    text, markdown = report(tmp_path, grid, records)
    for line in (
        "missing: Digits, byol at 20%: seed 2",
        "missing: Digits, byol + ReLA (rand) at 20%: seeds 0, 2",
        "missing: Digits, byol + ReLA (net) at 20%, 50%: seeds 0, 1, 2",
        "failed: Digits, byol + ReLA (rand) at 20%, seed 1: loss is |nan| at <step> 3",
        "damaged: broken.json: not valid JSON",
        "left out: 2 records made with settings that the grid does not have",
    ):
        assert line in text
        assert f"- {escape_markdown(line)}" in markdown
    assert "8 of 21 cells done" in text
    low = rows_of(markdown, "## Linear accuracy", "Digits")[0]
    two = np.array([np.mean(probe_of(cell)) for cell in cells[:2]])
    assert low[2:4] == [f"{shown(two)} (n=2)†", "—"]


def test_other_data_is_another_row(tmp_path: Path, grid: Grid) -> None:
    cells = [cell for cell in expand(grid) if cell.arm == "byol"]
    records = [record_of(cell, linear=(0.5, 0.5, 0.5)) for cell in cells]
    records += [
        record_of(cell, linear=(0.7, 0.7, 0.7), data="e" * 16, dataset_title="Digits (JPEG)")
        for cell in cells
        if cell.seed == 0
    ]
    records.append(failed(next(c for c in cells if c.seed == 1), "no luck", data="e" * 16))
    text, markdown = report(tmp_path, grid, records)
    rows = rows_of(markdown, "## Linear accuracy", "Digits")
    assert [row[0] for row in rows] == ["Digits", "Digits", "Digits (JPEG)", "Digits (JPEG)"]
    assert [row[2] for row in rows] == ["50.0 ± 0.0 (n=3)"] * 2 + ["70.0 (n=1)†"] * 2
    assert [row[5] for row in rows] == ["50.0 ± 0.0 (n=3)"] * 2 + ["70.0 (n=1)†"] * 2
    assert "failed: Digits (JPEG), byol at 20%, seed 1: no luck" in text
    assert "missing: Digits (JPEG), byol at 20%: seed 2" in text
    frame = results_frame(collect(grid, tmp_path / "records"))
    assert set(zip(frame.dataset_title, frame.data, strict=True)) == {
        ("Digits", "d" * 16),
        ("Digits (JPEG)", "e" * 16),
    }


def test_same_title_on_other_data_is_told_apart(tmp_path: Path, grid: Grid) -> None:
    cell = expand(grid)[0]
    records = [record_of(cell, linear=(x, x, x), data=d * 16) for x, d in ((0.5, "d"), (0.7, "e"))]
    _, markdown = report(tmp_path, grid, records)
    rows = rows_of(markdown, "## Linear accuracy", "Digits")
    assert {row[0]: row[2] for row in rows if row[1] == "20%"} == {
        rf"Digits \[digits, data {'d' * 16}\]": "50.0 (n=1)†",
        rf"Digits \[digits, data {'e' * 16}\]": "70.0 (n=1)†",
    }


def test_newer_method_or_prior_replaces_and_is_never_mixed(tmp_path: Path, grid: Grid) -> None:
    cells = expand(grid)
    late = PROVENANCE | {"time": "2026-02-02T03:04:05+00:00"}
    byol = [cell for cell in cells if (cell.arm, cell.budget) == ("byol", 0.2)]
    net = [cell for cell in cells if cell.arm.startswith("rela(byol,file") and cell.budget == 0.2]
    rand = [cell for cell in cells if cell.arm == "rela(byol,rand)" and cell.budget == 0.2]
    records = [record_of(cell, linear=(0.5, 0.5, 0.5)) for cell in (*byol, *net)]
    records += [record_of(byol[0], linear=(0.8, 0.8, 0.8), method_version=2, provenance=late)]
    records += [record_of(net[1], linear=(0.9, 0.9, 0.9), prior="another file", provenance=late)]
    # A random network is another one for each seed: no mixture.
    records += [record_of(cell, linear=(0.4, 0.4, 0.4), prior=f"rand-{cell.seed}") for cell in rand]
    text, markdown = report(tmp_path, grid, records)
    low = rows_of(markdown, "## Linear accuracy", "Digits")[0]
    assert low[2:5] == ["80.0 (n=1)†", "40.0 ± 0.0 (n=3)", "**90.0** (n=1)†"]
    assert "missing: Digits, byol at 20%: seeds 1, 2" in text
    assert text.count("there is a newer one, or one of a newer method or prior") == 6


def test_csv_files(tmp_path: Path, grid: Grid) -> None:
    cells = expand(grid)
    _, out = files(tmp_path, grid, [record_of(cell) for cell in cells if cell.budget != 0.2])
    table = pd.read_csv(out / "table.csv")
    assert len(table) == 7
    row = table[(table.arm == "byol + ReLA (rand)") & (table.budget == 0.5)].iloc[0]
    values = seeds(cells, "rela(byol,rand)", 0.5)
    assert row.linear_mean == pytest.approx(values.mean(), abs=1e-12)
    assert row.linear_sd == pytest.approx(values.std(ddof=1), abs=1e-12)
    assert (row.n, row.prior, row.phase) == (3, "rand", "adaptive")
    assert (row.steps, row.train_flops, row.target_flops) == (500, 5e12, 2e12)
    assert (row.train_seconds, row.target_seconds, row.peak_memory_bytes) == (50, 3, 100 * 2**20)
    empty = table[table.budget == 0.2]
    assert (empty.n == 0).all()
    assert empty[["linear_mean", "linear_sd", "steps", "train_flops"]].isna().all(axis=None)
    points = pd.read_csv(out / "points.csv")
    assert len(points) == 2 * 12
    last = points[(points.arm == "byol") & (points.budget == 1.0) & (points.seed == 1)].sort_values("step").iloc[-1]
    assert last.linear == pytest.approx(np.mean([0.709, 0.713, 0.72]))
    assert (last.step, last.train_flops, last.images) == (1000, 10**13, 64_000)


def test_methods_have_their_own_tables(tmp_path: Path) -> None:
    grid = grid_of(
        tmp_path,
        """
backbone: resnet_small
datasets: [digits]
budgets: [0.5]
seeds: [0]
arms:
  - {method: byol, budgets: [0.5, 1.0]}
  - {method: byol, params: {momentum: 0.9}}
  - {method: byol, params: {momentum: 0.9}, rela: {prior: rand, phase: 0.25}}
  - {method: simclr, rela: {prior: rand}}
""",
    )
    _, markdown = report(tmp_path, grid, [record_of(cell) for cell in expand(grid)])
    heads = [line for line in markdown.splitlines() if line.startswith("| Dataset | Budget | ")][:3]
    assert heads == [
        r"| Dataset | Budget | byol | byol\* |",
        r"| Dataset | Budget | byol(momentum=0.9) | ReLA (rand, phase 0.25) | byol(momentum=0.9)\* |",
        r"| Dataset | Budget | simclr | ReLA (rand) | simclr\* |",
    ]
    rows = rows_of(markdown, "## Linear accuracy", "Digits")
    assert rows[1][-1] == "—"  # the star of another method is none
    assert rows[2][2] == "—"
    assert latex_document(collect(grid, tmp_path / "records")).count(r"\begin{tabular}") == 3


def test_full_budget_has_a_row_where_rela_has_it(tmp_path: Path) -> None:
    arms = "arms: [{method: byol}, {method: byol, rela: {prior: rand}}]"
    grid = grid_of(tmp_path, f"backbone: resnet_small\ndatasets: [digits]\nbudgets: [0.5, 1.0]\nseeds: [0]\n{arms}")
    _, markdown = report(tmp_path, grid, [record_of(cell) for cell in expand(grid)])
    assert [row[1] for row in rows_of(markdown, "## Linear accuracy", "Digits")] == ["50%", "100%"]


def test_only_failures(tmp_path: Path, grid: Grid) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "accuracy_vs_steps.png").write_bytes(b"of an earlier report")
    text, out = files(tmp_path, grid, [failed(expand(grid)[0], "out of luck")])
    assert "0 of 21 cells done" in text
    assert "failed: digits, byol at 20%, seed 0: out of luck" in text
    assert sorted(path.name for path in out.iterdir()) == [
        "columns.md",
        "index.html",
        "points.csv",
        "report.md",
        "table.csv",
        "table.tex",
        "tidy.csv",
    ]
    assert "accuracy_vs" not in (out / "report.md").read_text()
    assert pd.read_csv(out / "points.csv").empty


@pytest.mark.parametrize(
    ("field", "empty", "reason"),
    [
        ("ledger", None, "Input should be an object"),
        ("curve", [], "Tuple should have at least 1 item after validation"),
    ],
)
def test_done_without_scores_or_costs_is_a_damaged_record(
    tmp_path: Path, grid: Grid, field: str, empty: Any, reason: str
) -> None:
    cells = expand(grid)
    whole = record_of(cells[1])
    (tmp_path / "records").mkdir()
    path = tmp_path / "records" / f"{whole.id}.json"
    path.write_text(json.dumps(whole.model_dump(mode="json") | {field: empty}))
    text, _ = report(tmp_path, grid, [record_of(cells[0])])
    assert f"damaged: {path.name}: {field}: {reason}" in text
    assert "missing: Digits, byol at 20%: seeds 1, 2" in text
    assert "1 of 21 cells done" in text


@pytest.mark.parametrize("strangers", [False, True])
def test_no_record_is_a_user_error(tmp_path: Path, grid: Grid, strangers: bool) -> None:
    folder = tmp_path / "records"
    if strangers:
        cell = expand(grid)[0].model_copy(update={"seed": 9})
        write_record(record_of(cell), folder)
        (folder / "broken.json").write_text("[]")
    with pytest.raises(UserError, match="no record of grid trial") as error:
        write_report(grid, folder, tmp_path / "out")
    assert ("1 made with other settings; 1 damaged, broken.json: not a record" in str(error.value)) == strangers
    assert not (tmp_path / "out").exists()


def test_mixed_provenance_is_stated(tmp_path: Path, grid: Grid) -> None:
    cells = expand(grid)
    other = PROVENANCE | {"packages": {"torch": "3.0"}, "code": {"version": "0.1.0", "commit": "abc123", "dirty": True}}
    records = [record_of(cell) for cell in cells[1:]] + [record_of(cells[0], provenance=other)]
    _, markdown = report(tmp_path, grid, records)
    assert "- **Mixed:** torch: 2.14.1 (20 records); 3.0 (1 record)" in markdown
    assert "commit abc123 (20 records); 0.1.0, commit abc123, with uncommitted changes (1 record)" in markdown
    assert "- CPU: Some CPU" in markdown
    assert "GPU" not in markdown


def nasty(tmp_path: Path) -> tuple[Grid, list[Finished]]:
    text = GRID.replace(
        "{method: byol, rela: {prior: rand}}", f"{{name: '{NASTY}', method: byol, rela: {{prior: rand}}}}"
    )
    grid = grid_of(tmp_path, text.replace("A test of reports", f"'{NASTY}'"))
    return grid, [record_of(cell, dataset_title=f"[{NASTY}") for cell in expand(grid)]


def test_names_are_escaped(tmp_path: Path) -> None:
    grid, records = nasty(tmp_path)
    _, markdown = report(tmp_path, grid, records)
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    assert not any("<b>" in line for line in tables)
    assert {
        len(re.split(r"(?<!\\)\|", line)) for line in tables if " 20% | **" in line or "| Budget | byol" in line
    } == {8}
    latex = latex_document(collect(grid, tmp_path / "records"))
    body = [line for line in latex.splitlines() if not line.startswith("%")]
    title = r"{[}50\%\_of \#1 \& \$x\$ \{a\} \textless{}b\textgreater{}\textbar{}\textasciitilde{}\textasciicircum{}"
    title += r"\textbackslash{}n{*}{[}c{]}"
    row = next(line for line in body if "20\\%" in line)
    assert row.startswith(f"{title} & 20\\% & ")
    assert {len(re.split(r"(?<!\\)&", line)) for line in body if line.endswith(r" \\")} == {6}


def test_latex_of_letters_beyond_ascii() -> None:
    assert escape_latex("é 中 —") == "é {[}U+4E2D{]} ---"


def test_markdown_that_would_begin_a_block() -> None:
    assert [escape_markdown(text) for text in ("1. x", "- x", "74.6", "# x", "a\nb")] == [
        r"1\. x",
        r"\- x",
        "74.6",
        r"\# x",
        "a b",
    ]


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
def test_latex_compiles(tmp_path: Path) -> None:
    grid, records = nasty(tmp_path)
    report(tmp_path, grid, records)
    table = latex_document(collect(grid, tmp_path / "records"))
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{table}\end{{document}}"
    (tmp_path / "doc.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "doc.tex"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
def test_same_records_same_bytes(tmp_path: Path, grid: Grid) -> None:
    records = [record_of(cell) for cell in expand(grid)]

    def digests() -> dict[str, str]:
        _, out = files(tmp_path, grid, records)
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()}

    before = digests()
    assert len(before) == 7 + 3 * 3
    assert digests() == before


def test_plots_show_every_arm(tmp_path: Path, grid: Grid) -> None:
    from matplotlib.colors import to_hex

    cells = expand(grid)
    for record in [record_of(cell) for cell in cells]:
        write_record(record, tmp_path / "records")
    figure = view_figure(cost_view(collect(grid, tmp_path / "records"), FLOP, TARGETS), grid.name)
    (panel,) = figure.axes
    curves = [line.lines[0] for line in panel.containers]
    assert [curve.get_xdata().tolist() for curve in curves] == [[2, 5, 10], [4, 7], [4, 7]]  # TFLOP, with the targets
    expected = [100 * seeds(cells, "byol", budget).mean() for budget in (0.2, 0.5, 1.0)]
    assert list(curves[0].get_ydata()) == pytest.approx(expected)
    bars = [segment[:, 1].tolist() for segment in panel.containers[0].lines[2][0].get_segments()]
    sds = [100 * seeds(cells, "byol", budget).std(ddof=1) for budget in (0.2, 0.5, 1.0)]
    assert bars == [pytest.approx([mean - sd, mean + sd]) for mean, sd in zip(expected, sds, strict=True)]
    assert len({to_hex(curve.get_color()) for curve in curves}) == 3
    assert len({curve.get_marker() for curve in curves}) == 3
    star = next(line for line in panel.get_lines() if line.get_linestyle() == "--")
    assert star.get_ydata() == pytest.approx([expected[-1]] * 2)
    assert panel.get_xlabel() == "TFLOP, with targets (log scale)"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "byol",
        "byol + ReLA (rand)",
        "byol + ReLA (net)",
        "the best at that cost or less",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.2, "0.20"),
        (0.0113, "0.011"),
        (1.684, "1.68"),
        (22.04, "22.0"),
        (12345.6, "12,346"),
        (2e-6, "2.0e-06"),
    ],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


def test_report_is_quick(tmp_path: Path, grid: Grid) -> None:
    write_record(record_of(expand(grid)[0]), tmp_path / "records")
    code = """
import sys
from pathlib import Path
from bench.grid.load import load_grid
from bench.report import write_report
assert not {"matplotlib", "pandas"} & set(sys.modules)
folder = Path(sys.argv[1])
write_report(load_grid(str(folder / "trial.yaml")), folder / "records", folder / "out")
heavy = {"torch", "torchvision", "timm", "lightly", "methods", "priors", "matplotlib.pyplot"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path)], check=True)


def test_the_report_says_which_recipe_an_arm_has(tmp_path: Path) -> None:
    text = """
backbone: resnet_small
datasets: [digits]
seeds: [0]
recipes: {byol: {lr: 0.01}}
arms: [{method: byol, recipe: {schedule: cosine}}, {method: simclr}]
"""
    (tmp_path / "own.yaml").write_text(text)
    lines = settings(Collected(load_grid(str(tmp_path / "own.yaml")), (), (), (), (), 0, (), (), {}))
    assert lines[1:] == ["byol, schedule cosine: lr 0.01, schedule cosine."]
