"""The rank correlations of label-free measures with accuracy, against numpy, and which cells they are of."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from bench.grid.evaluation import Evaluation, LabelFree, Linear
from bench.grid.expand import expand
from bench.report.blocks import TableBlock
from bench.report.collect import Collected, Result, collect
from bench.report.sections.label_free import Correlation, correlation, label_free_table, section
from bench.store.evaluated import Evaluated
from bench.store.record import write_record
from tests.report.test_report import grid_of, record_of

GRID = """
backbone: resnet_small
datasets: [digits]
seeds: [0, 1, 2, 3, 4, 5]
budgets: [0.5]
arms: [byol]
protocol: {epochs: 20}
"""
ACCURACIES = (0.3, 0.5, 0.4, 0.7, 0.6, 0.8)


def test_a_correlation_is_that_of_ranks_with_its_interval() -> None:
    draw = np.random.default_rng(0)
    one = draw.normal(size=12)
    other = np.exp(one + draw.normal(size=12))
    ranks = [np.argsort(np.argsort(each)) for each in (one, other)]
    expected = np.corrcoef(*ranks)[0, 1]
    found = correlation(one.tolist(), other.tolist())
    assert found
    assert (found.n, found.rank) == (12, pytest.approx(expected))
    assert 0 < expected < 1
    half = 1.959964 * math.sqrt((1 + expected**2 / 2) / 9)
    bounds = tuple(math.tanh(math.atanh(expected) + sign * half) for sign in (-1, 1))
    assert found.interval == pytest.approx(bounds, abs=1e-6)


def test_ties_have_their_mean_rank() -> None:
    found = correlation([1, 1, 2, 3, 4], [1, 2, 3, 4, 5])
    assert found
    assert found.rank == pytest.approx(np.corrcoef([1.5, 1.5, 3, 4, 5], [1, 2, 3, 4, 5])[0, 1])


def test_what_has_no_correlation_or_no_interval() -> None:
    assert correlation([1, 2, 3, 4], [1, 2, 3, 4]) is None
    assert correlation([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]) is None
    assert correlation([1, 2, 3, 4, 5], [2, 2, 2, 2, 2]) is None
    assert correlation([1, 2, 3, 4, 5], [5, 4, 3, 2, 1]) == Correlation(5, -1.0, None)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, ...]:
    """Six finished cells of one arm."""
    folder: Path = tmp_path_factory.mktemp("label_free")
    grid = grid_of(folder, GRID)
    for cell, accuracy in zip(expand(grid), ACCURACIES, strict=True):
        write_record(record_of(cell, linear=(accuracy,) * 3), folder / "records")
    return collect(grid, folder / "records").results


def evaluated(cell: str, evaluation: Evaluation, **values: float) -> Evaluated:
    fixed = {"id": "e", "grid": "trial", "version": 1, "data": {}, "seconds": 1.0, "flops": None, "provenance": {}}
    return Evaluated.model_validate({**fixed, "cell": cell, "evaluation": evaluation, "values": values})


def test_the_table_is_of_the_finished_cells_that_have_both(results: tuple[Result, ...]) -> None:
    records = results[0].done
    found = {
        record.id: (
            evaluated(record.id, LabelFree(), RankMe=10 * record.final.linear[0], alignment=rank),
            evaluated(record.id, Linear(), **{"L-BFGS top-1": 0.5}),
        )
        for record, rank in zip(records[:5], (2, 1, 5, 3, 4), strict=True)
    }
    found["another"] = (evaluated("another", LabelFree(), RankMe=0.0, alignment=0.0),)
    sixth = records[5].id  # and a cell of which other views were taken, as of one that has both
    found[sixth] = (evaluated(sixth, LabelFree(views=2), RankMe=-1.0, alignment=7.0),)
    found[records[0].id] += (evaluated(records[0].id, LabelFree(views=2), RankMe=-1.0, alignment=7.0),)
    table = label_free_table(results, found)
    rows = [tuple(entry.text for entry in row) for row in table.rows]
    expected = correlation([2, 1, 5, 3, 4], list(ACCURACIES[:5]))
    assert expected
    assert expected.interval
    low, high = expected.interval
    assert rows == [
        ("Digits", "RankMe", "+1.00", "—", "5"),
        ("Digits", "alignment", f"{expected.rank:+.2f}", f"{low:+.2f} to {high:+.2f}", "5"),
    ]
    blocks = list(section(cast(Collected, SimpleNamespace(results=results, evaluated=found))))
    assert any(isinstance(block, TableBlock) and block.table == table for block in blocks)


def test_the_effective_rank_of_all_records_is_a_measure(results: tuple[Result, ...]) -> None:
    """Without any further evaluation, as in the grids that ship."""
    ranks = (3.0, 2.0, 6.0, None, 4.0, 5.0)
    done = []
    for record, rank in zip(results[0].done, ranks, strict=True):
        score = record.final.model_copy(update={"effective_rank": rank})
        done.append(record.model_copy(update={"curve": (record.curve[-1].model_copy(update={"score": score}),)}))
    table = label_free_table((replace(results[0], done=tuple(done)),), {})
    expected = correlation([3, 2, 6, 4, 5], [0.3, 0.5, 0.4, 0.6, 0.8])
    assert expected
    assert [[entry.text for entry in row[1:3]] for row in table.rows] == [["RankMe", f"{expected.rank:+.2f}"]]
    assert table.rows[0][-1].text == "5"


def test_nothing_is_said_of_fewer_than_five_cells(results: tuple[Result, ...]) -> None:
    few = {r.id: (evaluated(r.id, LabelFree(), RankMe=r.final.linear[0]),) for r in results[0].done[:4]}
    for found in (few, {}):
        assert list(section(cast(Collected, SimpleNamespace(results=results, evaluated=found)))) == []
