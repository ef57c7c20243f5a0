"""What the report, the exports and the estimate make of cells that had company: all but their seconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from bench.core.paths import Paths
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.plan.estimate import measured_rate
from bench.report.claims import judged
from bench.report.collect import Collected, collect
from bench.report.costs import ALONE, FLOP, JOULES, PRIOR, SECONDS, STEPS, TARGETS
from bench.report.document import report_document
from bench.report.facts import phase_seconds, wall_seconds
from bench.report.render.html import html_document
from bench.report.render.markdown import markdown_document
from bench.report.sections.costs import cost_table
from bench.report.sections.savings import saving_table
from bench.report.sections.smallest import smallest_table
from bench.report.sections.targets import targets_table
from bench.report.sections.verdicts import verdict_table
from bench.report.tables import NONE, Table
from bench.store.record import Finished, write_record
from tests.report.frames import results_frame, tidy_frame
from tests.report.test_saving import GRID, pick, record_of

ALL_SHARED = "Seconds and joules of 36 of 36 finished cells were not measured alone, and count nowhere"
COMPANY = ({"side_by_side": 2}, {"other_load": 0.051}, {"other_load": None})


def with_ledger(record: Finished, **changes: object) -> Finished:
    return record.model_copy(update={"ledger": record.ledger.model_copy(update=changes)})


def beside(record: Finished) -> Finished:
    return with_ledger(record, side_by_side=2)


def targets_beside(record: Finished) -> Finished:
    assert record.ledger.targets
    return with_ledger(record, targets=record.ledger.targets.model_copy(update={"side_by_side": 3}))


def read(folder: Path, change: Callable[[Finished], Finished]) -> Collected:
    folder.mkdir()
    (folder / "trial.yaml").write_text(GRID)
    grid = load_grid(str(folder / "trial.yaml"))
    for cell in expand(grid):
        write_record(change(record_of(cell, joules=True)), folder / "records" / "trial")
    return collect(grid, folder / "records" / "trial")


def only(arm: str, budget: float, seed: int, to: Callable[[Finished], Finished]) -> Callable[[Finished], Finished]:
    def change(record: Finished) -> Finished:
        cell = record.cell
        return to(record) if (cell.arm, cell.budget, cell.seed) == (arm, budget, seed) else record

    return change


def column(table: Table, name: str, arm: str) -> list[str]:
    """Return the texts of a column in the rows of an arm; the first columns name it."""
    index = next(i for i, head in enumerate(table.head) if head.startswith(name))
    return [
        f"{row[index].text} {row[index].note}".strip()
        for row in table.rows
        if arm in [entry.text for entry in row[: table.names]]
    ]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Collected:
    return read(tmp_path_factory.mktemp("before") / "all", lambda record: record)


@pytest.mark.parametrize("company", COMPANY)
def test_a_cell_that_was_not_alone_has_no_seconds_and_no_joules(tmp_path: Path, company: dict[str, Any]) -> None:
    found = read(tmp_path / "one", only("own", 0.5, 1, lambda record: with_ledger(record, **company)))
    shared, other = pick(found, "own", 0.5, 1), pick(found, "own", 0.5, 2)
    for currency in (SECONDS, JOULES):
        assert [found.costs.of(shared, currency, ledger) for ledger in (ALONE, TARGETS, PRIOR)] == [None] * 3
        assert None not in [found.costs.of(other, currency, ledger) for ledger in (ALONE, TARGETS, PRIOR)]
    assert found.costs.of(shared, STEPS, PRIOR) == found.costs.of(other, STEPS, PRIOR)
    assert found.costs.of(shared, FLOP, PRIOR) == found.costs.of(other, FLOP, PRIOR)
    assert [phase_seconds(shared, phase) for phase in ("train", "eval", "other", "targets")] == [None, None, None, 2.0]
    assert wall_seconds(shared) is None
    assert shared.ledger.seconds["train"] == 50, "kept"


def test_what_is_shared_goes_through_the_ledgers(tmp_path: Path) -> None:
    made = read(tmp_path / "targets", only("random", 0.5, 0, targets_beside))
    random = pick(made, "random", 0.5)
    assert [made.costs.of(random, SECONDS, ledger) for ledger in (ALONE, TARGETS)] == [50, None]
    shares = targets_table(read(tmp_path / "share", only("random", 0.25, 0, targets_beside)))
    assert column(shares, "Targets, share of Seconds", "random") == [NONE]
    assert column(shares, "Targets, share of FLOP", "random") == ["reproduced (2%)"]
    prior = read(tmp_path / "prior", only("byol", 1.0, 0, beside))
    own = pick(prior, "own", 0.5)
    assert [prior.costs.of(own, SECONDS, ledger) for ledger in (ALONE, TARGETS, PRIOR)] == [50, 52, None]


def test_verdicts_and_savings_in_seconds_are_over_all_seeds_or_not_at_all(tmp_path: Path, before: Collected) -> None:
    found = read(tmp_path / "one", only("own", 0.5, 1, beside))
    verdicts, were = (verdict_table(judged(each)) for each in (found, before))
    half = "half: own"
    assert column(verdicts, "Seconds", half) == ["inconclusive (not known)"] * 3
    assert column(verdicts, "Joules", half) == ["inconclusive (not known)"] * 3
    for name in ("Steps", "FLOP", "Images"):
        assert column(verdicts, name, half) == column(were, name, half)
    for table, plain in ((saving_table(found), saving_table(before)), (smallest_table(found), smallest_table(before))):
        seconds = column(table, "Seconds", "own")
        assert seconds
        assert seconds != column(plain, "Seconds", "own")
        assert column(table, "FLOP", "own") == column(plain, "FLOP", "own")
        assert column(table, "Seconds", "random") == column(plain, "Seconds", "random")
    assert set(column(saving_table(found), "Seconds", "own")) == {NONE}


def test_a_mean_of_seconds_says_of_how_many_cells(tmp_path: Path, before: Collected) -> None:
    found = read(tmp_path / "one", only("own", 0.5, 1, beside))
    table = cost_table(found, found.groups[0])
    assert column(table, "Train s", "own") == ["25.0", "50.0 (n=3)"]
    assert column(table, "Targets s", "own") == ["2.00", "2.00"]
    frame = results_frame(found)
    row = frame[(frame["arm"] == "own") & (frame["budget"] == 0.5)].iloc[0]
    assert pd.isna(row["train_seconds"])
    assert row["target_seconds"] == 2
    tidy = tidy_frame(found).set_index(["id", "step"])
    mine = tidy.loc[pick(found, "own", 0.5, 1).id]
    empty = ["train_seconds", "train_joules", "eval_seconds", "other_seconds", "wall_seconds"]
    assert mine[empty].isna().all(axis=None)
    assert list(mine["side_by_side"]) == [2, 2]
    assert list(mine["other_load"]) == [0.01, 0.01]
    assert list(mine["target_other_load"]) == [0.0, 0.0]
    others = tidy_frame(before)
    assert not others[["train_seconds", "train_joules", "wall_seconds"]].isna().any(axis=None)
    assert set(others["side_by_side"]) == {1}


def test_a_report_without_any_seconds(tmp_path: Path) -> None:
    found = read(tmp_path / "all", beside)
    assert found.costs.currencies == tuple(currency for currency in found.costs.currencies if currency.exact)
    document = report_document(found)
    text = markdown_document(document)
    assert text.count(ALL_SHARED) == 2, "by the costs and by the verdicts"
    assert text.count("other cells ran on the same device.") == 2
    assert ALL_SHARED in html_document(document)
    assert set(column(saving_table(found), "Seconds", "own")) == {NONE}
    assert not any("Seconds" in head for head in targets_table(found).head)


def test_a_report_of_cells_that_were_alone_does_not_speak_of_it(before: Collected) -> None:
    assert "measured alone" not in markdown_document(report_document(before))


def test_a_report_says_which_cells_had_company_and_of_what_kind(tmp_path: Path) -> None:
    def change(record: Finished) -> Finished:
        arm, seed = record.cell.arm, record.cell.seed
        if arm == "byol" and record.cell.budget == 1.0:
            return with_ledger(record, other_load=(0.06, 0.5, 0.01, 0.0)[seed])
        if arm == "own":
            return with_ledger(record, other_load=None)
        return targets_beside(record) if (arm, seed) == ("random", 0) else record

    text = markdown_document(report_document(read(tmp_path / "all", change)))
    assert "Seconds and joules of 12 of 36 finished cells were not measured alone" in text
    assert "- other work took over 5% of the time: Digits, byol at 100% (6% to 50%)\n" in text
    assert "- whether other work ran was not measured: Digits, own at 25%; Digits, own at 50%\n" in text
    assert "- other cells ran on the same device: Digits, random at 25%; Digits, random at 50%\n" in text


def test_the_rate_of_an_estimate_is_that_of_cells_that_were_alone(tmp_path: Path) -> None:
    def slower(record: Finished) -> Finished:
        record = record.model_copy(update={"provenance": {"device": "cpu"}})
        if record.cell.arm != "byol":
            return record
        return with_ledger(record, side_by_side=2, seconds={**record.ledger.seconds, "train": 10**6})

    cpu = torch.device("cpu")
    read(tmp_path / "some", slower)
    # 900 FLOP a step of 0.1 s in all arms that are not byol.
    assert measured_rate(Paths(tmp_path, tmp_path / "some" / "records", "trial"), cpu) == pytest.approx(9000)
    read(tmp_path / "none", lambda record: beside(slower(record)))
    assert measured_rate(Paths(tmp_path, tmp_path / "none" / "records", "trial"), cpu) is None
