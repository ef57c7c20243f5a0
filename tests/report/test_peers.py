"""What others publish stands beside ours as they have it, and a difference between two recipes is seen."""

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.core.errors import UserError
from bench.grid.expand import expand
from bench.grid.load import GRIDS, load_grid
from bench.report import write_report
from bench.report.collect import Collected, collect
from bench.report.document import report_document
from bench.report.figures.curves import curve_views
from bench.report.figures.draw import inline_svg, own_settings
from bench.report.render.markdown import markdown_document
from bench.report.sections.peers import SAME, comparison, peers_table
from bench.store.record import write_record
from tests.report.test_report import record_of

SHARED = Path(__file__).parents[3] / "shared" / "published"
RECIPE = {"epochs": 200, "batch_size": 128, "lr": 0.06, "blur": False, "metric": "kNN", "which_epoch": "last epoch"}
OURS = RECIPE | {"params": {"queue": 4096, "temperature": 0.1}}
THEIRS = RECIPE | {"params": {"queue": 4096}, "besides": []}


def published(name: str) -> list[dict[str, str]]:
    with (GRIDS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def found_of(name: str, arm: str, folder: Path, *settings: str) -> Collected:
    """The shipped grid with one cell done, the first of an arm."""
    grid = load_grid(name, settings=settings)
    cell = next(cell for cell in expand(grid) if cell.arm == arm)
    write_record(record_of(cell, linear=(0.5, 0.6, 0.7)), folder)
    return collect(grid, folder)


@pytest.mark.parametrize("name", ["peers", "rela_figure_cifar10"])
def test_the_numbers_are_those_that_were_handed_over(name: str) -> None:
    original = SHARED / f"{name}.csv"
    if not original.is_file():
        pytest.skip(f"not compared with {original}, which is not here")
    assert (GRIDS / f"{name}.csv").read_bytes() == original.read_bytes()


@pytest.mark.parametrize(
    ("change", "said", "note"),
    [
        ({}, SAME, ""),
        ({"batch_size": 512, "lr": 0.24}, "differs in batch size (128 for 512), lr (0.06 for 0.24)", ""),
        ({"blur": True}, "differs in blur (off for on)", ""),
        ({"params": {"queue": 8192}}, "differs in params.queue (4096 for 8192)", ""),
        ({"params": {"momentum": 0.9}}, "differs in params.momentum (default for 0.9)", ""),
        ({"which_epoch": "maximum"}, "differs in which epoch (last epoch for maximum)", ""),
        ({"which_epoch": None}, "no setting differs", "(not known: which epoch)"),
        ({"params": {}, "lr": None}, "no setting differs", "(not known: lr, params)"),
        ({"besides": ["a", "b"], "epochs": 9}, "differs in epochs (200 for 9)", "(besides, it has a, b)"),
    ],
)
def test_recipes_are_compared_key_by_key(change: dict[str, Any], said: str, note: str) -> None:
    entry = comparison(OURS, THEIRS | change)
    assert (entry.text, entry.note) == (said, note)


def test_a_key_that_a_peer_does_not_state_is_unknown() -> None:
    for key in RECIPE:
        there = {name: value for name, value in THEIRS.items() if name != key}
        assert comparison(OURS, there).note == f"(not known: {key.replace('_', ' ')})"


@pytest.mark.parametrize(
    ("grid", "arm", "is_shown", "ours"),
    [
        ("lightly_cifar10", "byol", lambda row: (row["source"], row["dataset"]) == ("lightly", "CIFAR-10"), "55.0"),
        (
            "sololearn_cifar",
            "MoCo V2+",
            lambda row: (
                row["source"] == "solo-learn"
                and row["dataset"] in {"CIFAR-10", "CIFAR-100"}
                and row["metric"].endswith("top-1")
                and row["method"] not in {"All4One", "DeepCluster V2", "SupCon", "VIbCReg", "W-MSE"}
            ),
            "60.0",
        ),
    ],
)
def test_every_number_is_shown_to_the_digit(
    grid: str, arm: str, is_shown: Callable[[dict[str, str]], bool], ours: str, tmp_path: Path
) -> None:
    table = peers_table(found_of(grid, arm, tmp_path))
    rows = [[entry.text for entry in row] for row in table.rows]
    assert sorted(row[5] for row in rows) == sorted(row["value"] for row in published("peers") if is_shown(row))
    assert {row[4] for row in rows} == {"—", ours}
    assert {row[1] for row in rows if row[4] == ours} == {arm}
    assert not [entry for row in table.rows for entry in row if len(entry.text) > 390 or len(entry.note) > 390], "cut"
    assert not [row for row in rows if SAME in row[3]]


def test_the_recipe_of_lightlys_byol_is_ours_but_for_the_epoch(tmp_path: Path) -> None:
    found = found_of("lightly_cifar10", "byol", tmp_path)
    epoch = "which epoch (last epoch for maximum over all epochs on the test set)"
    said = [row[3].text for row in peers_table(found).rows if row[1].text == "byol"]
    assert said == [
        f"differs in {epoch}",
        f"differs in batch size (128 for 512), lr (0.06 for 0.24), {epoch}",
        f"differs in epochs (200 for 800), batch size (128 for 512), lr (0.06 for 0.24), {epoch}",
    ]
    report = markdown_document(report_document(found))
    assert "chosen by the test set" in report
    assert "kNN top-1 (k=200), maximum over all epochs on the test set" in report


def test_solo_learns_numbers_are_of_its_online_classifier(tmp_path: Path) -> None:
    found = found_of("sololearn_cifar", "byol", tmp_path, "protocol.epochs=100")
    nnclr = next(row for row in peers_table(found).rows if row[1].text == "nnclr")
    assert nnclr[2].text == "online linear top-1, epoch not stated"
    assert nnclr[3].text == (
        "differs in epochs (100 for 1000), precision (bf16 for fp16), metric (offline linear top-1 for online linear"
        " top-1)"
    )
    assert nnclr[3].note.endswith("not known: which epoch)")


def test_the_papers_curves_are_drawn_beside_ours(tmp_path: Path) -> None:
    found = found_of("paper_figure_cifar10", "byol", tmp_path / "records")
    with own_settings():
        svg = inline_svg(curve_views(found)[0].charts[0], "chart-")
    name = r"(\w+): published, read off a figure, ±0.004"
    read_off = re.findall(rf"<title>{name}: ([\d.]+) % after (\d+) epochs</title>", svg)
    arms = {"byol": "byol_unlabelled", "supervised": "supervised", "ReLA": "rela"}
    rows = published("rela_figure_cifar10")
    assert len(read_off) == 153
    assert {(arm, epoch): round(float(value) / 100, 4) for arm, value, epoch in read_off} == {
        (arm, row["epoch"]): float(row[curve]) for row in rows for arm, curve in arms.items()
    }
    write_report(found.grid, tmp_path / "records", tmp_path / "out", ["md"])
    assert "read off a figure, ±0.004" in (tmp_path / "out" / "report.md").read_text()
    assert "76.6" not in (tmp_path / "out" / "report.md").read_text(), "a point of a figure is no table's value"


@pytest.mark.parametrize(
    ("grid", "setting", "why"),
    [
        ("lightly_cifar10", "peer.source=lightli", "'lightli' has published nothing here; did you mean 'lightly'"),
        ("lightly_cifar10", "peer.recipes.Byol={}", "lightly has no such method; did you mean 'BYOL'"),
        ("lightly_cifar10", "peer.recipe.batchsize=1", "'batchsize' of a recipe; did you mean 'batch_size'"),
        ("paper_figure_cifar10", "figure.byol=relax", "figure.byol: no curve 'relax'; did you mean 'rela'"),
        ("paper_figure_cifar10", "figure.bjol=rela", "figure: 'bjol' is no arm; did you mean 'byol'"),
    ],
)
def test_a_name_that_nobody_has_is_refused(grid: str, setting: str, why: str) -> None:
    with pytest.raises(UserError, match=re.escape(why)):
        load_grid(grid, settings=[setting])
