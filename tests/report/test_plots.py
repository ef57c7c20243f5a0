"""Pictures: the same bytes whatever a user has set for matplotlib, and one that fails costs nothing else."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import matplotlib
import pytest

from bench.grid.load import load_grid
from bench.report import write_report
from bench.report.figures.chart import Chart, Mark, Series, View
from bench.report.figures.draw import own_settings, view_figure
from bench.toy.report import write_toy_report
from bench.toy.study import find_toy
from tests.run.processes import ROOT, bench

HOSTILE = """
text.usetex: True
figure.facecolor: black
axes.facecolor: "#222222"
axes.prop_cycle: cycler("color", ["r", "g"])
font.size: 20
font.family: serif
savefig.bbox: tight
savefig.dpi: 50
savefig.format: pdf
svg.fonttype: none
svg.hashsalt: mine
axes.formatter.use_locale: True
lines.linewidth: 9
_internal.classic_mode: True
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reports of two shipped folders of records, one of cells and one of a study, as they should be."""
    out = tmp_path_factory.mktemp("plain")
    write_both(out)
    return out


def write_both(out: Path) -> None:
    study = find_toy("paper_toy")
    assert study
    write_report(load_grid("cifar_small"), ROOT / "results" / "cifar_small", out / "cifar_small")
    write_toy_report(study, ROOT / "results" / "paper_toy", out / "paper_toy")


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*.*")):
        yield str(path.relative_to(folder)), path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "here"),
    [
        ("module://matplotlib_inline.backend_inline", HOSTILE.encode()),
        ("nonsense", b"\xff\x00: no text"),
    ],
)
def test_a_users_settings_change_no_byte(backend: str, here: bytes, plain: Path, tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_bytes(here)  # matplotlib looks in the working directory first
    (tmp_path / "mine").write_text(HOSTILE)
    for name in ("cifar_small", "paper_toy"):
        shutil.copytree(ROOT / "results" / name, tmp_path / "results" / name)
    settings = {"MPLBACKEND": backend, "MATPLOTLIBRC": str(tmp_path / "mine"), "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-m", "bench", "report"],
        cwd=tmp_path,
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert dict(contents(tmp_path / "reports")) == dict(contents(plain))


@pytest.mark.slow
def test_nor_do_settings_of_the_process_and_they_stay(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text(HOSTILE)
    with matplotlib.rc_context(fname=tmp_path / "mine"):
        before = dict(matplotlib.rcParams)
        write_both(tmp_path / "reports")
        assert dict(matplotlib.rcParams) == before
    assert dict(contents(tmp_path / "reports")) == dict(contents(plain))


@pytest.mark.slow
def test_a_picture_that_cannot_be_drawn_costs_no_table(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: object, **more: object) -> None:
        raise RuntimeError("Failed to process string with tex because latex could not be found")

    shutil.copytree(plain, tmp_path / "reports")
    for path in (tmp_path / "reports").glob("*/*.*"):
        path.write_text("of an earlier report")
    monkeypatch.setattr("bench.report.figures.draw.view_figure", fails)
    for name, pictures in (
        ("cifar_small", ["accuracy_vs_steps", "accuracy_vs_epochs", "saving_vs_target"]),
        ("paper_toy", ["curves"]),
    ):
        ran = bench("report", name, "--results", ROOT / "results", "--reports", tmp_path / "reports")
        assert ran.code == 1
        for picture in pictures:
            assert f"warning: {picture} cannot be drawn: RuntimeError: Failed to process string with tex" in ran.err
            assert not list((tmp_path / "reports" / name).glob(f"{picture}.*")), "an earlier picture is not this one"
    left = dict(contents(tmp_path / "reports"))
    assert left == {name: content for name, content in contents(plain) if not name.endswith((".png", ".svg", ".pdf"))}


def test_a_legend_of_many_names_leaves_the_axes_their_height() -> None:
    heights = []
    for count in (30, 75):
        marks = (Mark(1.0, 1.0, ""), Mark(2.0, 2.0, ""))
        series = tuple(Series(f"arm number {number}", number, marks) for number in range(count))
        with own_settings():
            figure = view_figure(View("a", (Chart("a", "x", "y", series),)), "a")
            figure.draw_without_rendering()
        heights.append(figure.axes[0].get_window_extent().height)
    assert heights[1] == pytest.approx(heights[0], rel=0.1)


def test_names_of_levels_are_whole_and_stand_clear_of_one_another() -> None:
    levels = {"untrained resnet20_cifar": 34.1, "untrained resnet_small": 33.7, "the prior itself: R20 + rand": 83.0}
    marks = (Mark(1.0, 40.0, ""), Mark(2.0, 80.0, ""))
    arms = [Series(f"arm {number}", number, marks) for number in range(30)]
    named = [Series(name, 0, (), kind="reference", level=level) for name, level in levels.items()]
    with own_settings():
        figure = view_figure(View("a", (Chart("a", "x", "y", (*arms, *named)),)), "a")
        figure.draw_without_rendering()
        boxes = sorted((each.get_window_extent().y0, each.get_window_extent().y1) for each in figure.axes[0].texts)
    assert {each.get_text() for each in figure.axes[0].texts} == {
        "34.1 untrained resnet20_cifar", "33.7 untrained resnet_small", "83.0 R20 + rand"
    }  # fmt: skip
    assert all(below[1] <= above[0] for below, above in pairwise(boxes))


@pytest.mark.slow
def test_a_chart_of_the_page_that_cannot_be_drawn_costs_no_table(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: object, **more: object) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr("bench.report.figures.draw.draw_chart", fails)
    ran = bench("report", "cifar_small", "--results", ROOT / "results", "--reports", tmp_path, "--format", "html")
    assert ran.code == 1
    assert "warning: CIFAR-10 (JPEG) cannot be drawn: RuntimeError: no font" in ran.err
    page, whole = ((folder / "cifar_small" / "index.html").read_text() for folder in (tmp_path, plain))
    assert 'class="chart"' in whole
    assert 'class="chart"' not in page
    assert page.count("<table") == whole.count("<table") > 3
