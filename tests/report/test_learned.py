"""Whether a cell learned anything, what is said of those that did not, and the two references beside each accuracy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.core.paths import Paths
from bench.grid.cell import Cell
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.grid.schema import Grid
from bench.plan.graph import plan
from bench.plan.stale import code_of
from bench.report.claims import NO_BASELINE, judged
from bench.report.collect import collect
from bench.report.costs import ALONE, STEPS
from bench.report.document import report_document
from bench.report.facts import learned
from bench.report.render.html import html_document
from bench.report.render.markdown import markdown_document
from bench.report.render.text import terminal_text
from bench.report.sections.accuracy import NOT_LEARNED
from bench.report.sections.savings import savings
from bench.report.sections.smallest import smallest_table
from bench.run.progress import Display
from bench.run.runner import run_tasks
from bench.store.record import (
    ByAdam,
    Finished,
    Moved,
    References,
    Score,
    Solved,
    read_record,
    record_path,
    write_record,
)
from methods import Batch, methods
from methods.simsiam import SimSiam
from tests.report.frames import tidy_frame
from tests.report.test_report import GRID, grid_of, probe_of, record_of, rows_of

CLAIMS = """
claims:
  - {name: half, arm: "rela(byol,rand)", budget: 0.5, share: 0.6}
"""


def score_of(linear: float, rank: float | None = 20.0, **more: Any) -> Score:
    return Score(linear=(linear,), knn=0.2, effective_rank=rank, **more)


def with_scores(cell: Cell, untrained: float | None, rank: float | None = 20.0, **more: Any) -> Finished:
    """A record of a cell whose last score has an effective rank, and that of its backbone untrained."""
    record = record_of(cell)
    last = record.curve[-1]
    changed = last.model_copy(update={"score": last.score.model_copy(update={"effective_rank": rank, **more})})
    prior = score_of(0.8 + 0.01 * cell.seed, 30.0) if cell.rela else None
    references = None if untrained is None else References(untrained=score_of(untrained, 12.0), prior=prior)
    return record.model_copy(update={"curve": (*record.curve[:-1], changed), "references": references})


def texts(tmp_path: Path, grid: Grid, records: list[Finished]) -> tuple[str, str, str]:
    for record in records:
        write_record(record, tmp_path / "records")
    found = collect(grid, tmp_path / "records")
    document = report_document(found)
    return markdown_document(document), str(html_document(document)), terminal_text(found, [])


@pytest.mark.parametrize(
    ("above", "rank", "answer"),
    [
        (0.01, 20.0, True),
        (0.0, 20.0, False),  # as good as untrained
        (-0.01, 20.0, False),
        (0.3, 1.9, False),  # features on a line
        (None, 1.9, False),
        (0.01, None, None),  # a record of before
        (None, 20.0, None),
    ],
)
def test_a_cell_learned_when_it_is_above_its_backbone_untrained_and_has_not_collapsed(
    above: float | None, rank: float | None, answer: bool | None
) -> None:
    grid = load_grid("quickstart")
    cell = expand(grid)[0]
    accuracy = float(np.mean(probe_of(cell)))
    assert learned(with_scores(cell, None if above is None else accuracy - above, rank)) is answer


def test_what_learned_nothing_is_marked_and_nobodys_baseline(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, GRID + CLAIMS)
    cells = expand(grid)
    # byol at the full budget is below its backbone untrained, with one seed alone; at a lower budget it is above.
    untrained = {("byol", 1.0, 1): 0.9}
    records = [with_scores(cell, untrained.get((cell.arm, cell.budget, cell.seed), 0.3)) for cell in cells]
    markdown, page, terminal = texts(tmp_path, grid, records)
    found = collect(grid, tmp_path / "records")
    judgements = [one for each in judged(found) for one in each]
    assert {one.verdict for one in judgements} == {NO_BASELINE} == {"inconclusive: the baseline did not learn"}
    assert {one.currency.value for one in judgements} >= {"Steps", "FLOP", "Seconds"}
    assert {one.seeds for one in judgements} == {None}
    assert all(savings(found, group, STEPS, ALONE) == () for group in found.groups)
    assert smallest_table(found).rows == ()
    linear, *_ = rows_of(markdown, "## Linear accuracy", "Digits | 50%")
    assert linear[-1].endswith("(n=3)‡")
    assert "‡" not in "".join(linear[:-1])
    gains = rows_of(markdown, "## Gain over the plain method", "Digits | byol")
    assert {row[-1] for row in gains} == {"— ‡"}, "nothing gains over it"
    assert all(row[-2].startswith("+") for row in gains if row[3] != "100%")
    assert NOT_LEARNED in markdown.replace("\\", "")
    assert "Here: Digits, byol at 100%." in markdown
    assert NOT_LEARNED in " ".join(terminal.split())
    assert "byol ‡" in page, "in the charts, too"


def test_a_result_whose_code_has_changed_since_is_marked(tmp_path: Path) -> None:
    """One seed of one arm is stale; those made by the code as it is, and those that do not know theirs, are not."""
    grid = grid_of(tmp_path, GRID + CLAIMS)
    records = [record_of(cell) for cell in expand(grid)]
    known = [each.model_copy(update={"code": code_of(each.cell)}) for each in records[1:]]
    for text in texts(tmp_path, grid, [records[0], *known]):
        assert "stale" not in text
        assert "§" not in text
    index = next(i for i, each in enumerate(known) if (each.cell.arm, each.cell.budget) == ("byol", 1.0))
    changed = {**(known[index].code or {}), "method": "0" * 16, "evaluation": "1" * 16}
    known[index] = known[index].model_copy(update={"code": changed})
    markdown, page, terminal = texts(tmp_path, grid, [records[0], *known])
    note = "§ stale: the code of method and evaluation has changed since (1 of 3 seeds): Digits, byol at 100%."
    for text in (markdown.replace("\\", ""), page, " ".join(terminal.split())):
        assert note in text
    linear, *_ = rows_of(markdown, "## Linear accuracy", "Digits | 50%")
    assert linear[-1].endswith("(n=3)§")
    assert "§" not in "".join(linear[:-1])
    stale = tidy_frame(collect(grid, tmp_path / "records")).set_index("id")["stale"]
    assert stale[known[index].id].all()
    assert not stale[[each.id for each in known if each is not known[index]]].any()
    assert stale[records[0].id].isna().all()


def test_what_learned_is_not_marked_and_is_a_baseline(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, GRID + CLAIMS)
    end = Moved(loss=(1.0, 1.0), accuracy=(0.6, 0.6))
    markdown, page, terminal = texts(tmp_path, grid, [with_scores(cell, 0.3, end=end) for cell in expand(grid)])
    assert "The probe by Adam had converged in all 21 cells." in markdown
    assert "‡" not in markdown + terminal + page
    assert "did not learn" not in markdown
    assert "not measured" not in markdown.split("## What it cost")[0]


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, GRID + CLAIMS)
    markdown, _, _ = texts(tmp_path, grid, [record_of(cell) for cell in expand(grid)])
    assert "Whether the baselines learned anything was not measured for 3 of 3 of them." in markdown
    assert "Whether the probe had converged was not measured in 21 of 21 cells." in markdown
    beside = markdown.split("the untrained backbone, and the prior itself\n")[1]
    assert beside.lstrip().startswith("Not measured in these records.")


def test_the_references_stand_beside_the_accuracies(tmp_path: Path) -> None:
    """The untrained backbone once for each seed; a prior once, however many cells have it."""
    grid = grid_of(tmp_path)
    untrained = {0: 0.30, 1: 0.32, 2: 0.37}
    markdown, page, _ = texts(tmp_path, grid, [with_scores(cell, untrained[cell.seed]) for cell in expand(grid)])
    values = 100 * np.array(list(untrained.values()))
    (backbone,) = rows_of(markdown, "## Linear accuracy", "Digits | untrained backbone")
    assert backbone[2] == f"{values.mean():.1f} ± {values.std(ddof=1):.1f} (n=3)"
    assert backbone[5] == "12.0 ± 0.0 (n=3)"
    (prior,) = rows_of(markdown, "## Linear accuracy", "Digits | the prior itself: net")
    assert prior[2].endswith("(n=1)"), "a file is one network"
    assert f"untrained backbone: {values.mean():.1f}" in page, "a line in the chart"


def test_the_papers_probe_is_named_beside_the_one_that_decides(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, GRID.replace("epochs: 20", "epochs: 20, probe: {recipe: lbfgs}"))
    end = Solved(l2=1e-3, at_edge=False, passes=40, gradient=1e-4)
    moved = [Moved(loss=(1.0, 0.97), accuracy=(0.30, 0.304)), Moved(loss=(1.0, 0.999), accuracy=(0.30, 0.30))]
    records = [
        with_scores(
            cell,
            0.3,
            end=end.model_copy(update={"at_edge": cell.seed == 1}),
            by_adam=ByAdam(linear=(0.5 + 0.01 * cell.seed,), end=moved[cell.seed == 2]),
        )
        for cell in expand(grid)
    ]
    markdown, _, _ = texts(tmp_path, grid, records)
    row, *_ = rows_of(markdown, "## Linear accuracy", "Digits | 50%")
    assert all(entry.endswith("(n=3; by Adam 51.0 ± 1.0)") for entry in row[2:])
    assert (
        "The probe by Adam has not converged in 14 of 21 cells: over the last fifth of its epochs its training loss"
        " fell by 3.0 to 3.0 % and its test accuracy changed by +0.4 to +0.4 points."
    ) in markdown
    assert "The probe by L-BFGS ended at its minimum in 21 of 21 cells; in 7 its penalty is" in markdown


class NoStop(SimSiam):
    """SimSiam without stop-gradient, which has a constant as its best solution."""

    def loss(self, batch: Batch) -> torch.Tensor:
        z0, z1 = (self.projector(self.backbone(view)) for view in batch.views)
        loss: torch.Tensor = (self.criterion(self.predictor(z0), z1) + self.criterion(self.predictor(z1), z0)) / 2
        return loss


SMALL = (
    "datasets=[{name: digits, train_images: 600}]",
    "protocol={epochs: 10, batch_size: 64, input_size: 8, blur: false, probe: {recipe: adam, epochs: 20}}",
)


@pytest.mark.slow
def test_simsiam_learns_nothing_without_its_stop_gradient(tmp_path: Path, temporary: Any) -> None:
    temporary(methods, no_stop=NoStop)
    grid = load_grid(
        "quickstart", settings=["seeds=[0]", "budgets=[1.0]", "arms=[no_stop, simsiam]", "claims=[]", *SMALL]
    )
    paths = Paths(data=tmp_path / "data", results=tmp_path / "results", grid="quickstart")
    cells = expand(grid)
    found = {}
    for outcome in run_tasks(plan(cells, cells, paths, "quickstart"), paths, torch.device("cpu"), 0, Display()):
        record = read_record(record_path(paths.records, outcome.task.id))
        assert isinstance(record, Finished)
        found[record.cell.method] = learned(record)
    assert found == {"no_stop": False, "simsiam": True}
