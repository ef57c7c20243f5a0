"""The tables of further evaluations: means over seeds, beside the plain method at the full budget."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.grid.evaluation import LabelFree, Neighbours
from bench.grid.expand import expand
from bench.report.collect import collect
from bench.report.sections.further import above_table, further_table
from bench.store.record import write_record
from tests.report.test_label_free_section import evaluated
from tests.report.test_report import grid_of, record_of

GRID = """
backbone: resnet_small
datasets: [digits]
seeds: [0, 1]
budgets: [0.5]
arms:
  - {method: byol, budgets: [0.5, 1.0]}
  - {name: good, method: byol, rela: {prior: rand}}
  - {name: bad, method: byol, rela: {prior: rand, phase: 0.5}}
  - supervised
protocol: {epochs: 20}
"""
VALUES = {  # of the two seeds
    ("byol", 0.5): (0.50, 0.52),
    ("byol", 1.0): (0.60, 0.64),
    ("good", 0.5): (0.59, 0.66),
    ("bad", 0.5): (0.59, 0.64),
    ("supervised", 0.5): (0.90, 0.91),
}


def test_accuracies_above_the_plain_method_at_the_full_budget_are_underlined(tmp_path: Path) -> None:
    """By the same evaluation; what is no accuracy is not, nor is a method that the grid has at no full budget."""
    grid = grid_of(tmp_path, GRID)
    there = {}
    for cell in expand(grid):
        record = record_of(cell)
        write_record(record, tmp_path / "records")
        value = VALUES[cell.arm, cell.budget][cell.seed]
        there[record.id] = (
            evaluated(record.id, Neighbours(), **{"k = 1": value, "k = 20": 1 - value}),
            evaluated(record.id, LabelFree(), RankMe=value),
        )
    found = replace(collect(grid, tmp_path / "records"), evaluated=there)
    table = further_table(found, Neighbours())
    assert table.head == ("Dataset", "Arm", "Budget", "k = 1", "k = 20")
    rows = {(row[1].text, row[2].text): row[3:] for row in table.rows}
    assert len(rows) == len(VALUES)
    for (arm, budget), values in VALUES.items():
        first, second = rows[arm, f"{100 * budget:g}%"]
        assert first.text == f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"
        assert first.note == "(n=2)"
        assert first.underline == (arm == "good"), arm
        assert second.underline == ((arm, budget) in {("byol", 0.5), ("bad", 0.5)}), arm
    assert not any(entry.underline for row in further_table(found, LabelFree()).rows for entry in row)
    above = [tuple(entry.text for entry in row[1:]) for row in above_table(found).rows]
    assert above == [
        ("byol", "50%", "1 of 2", "only Nearest neighbours, k = 20"),
        ("good", "50%", "1 of 2", "only Nearest neighbours, k = 1"),
        ("bad", "50%", "1 of 2", "only Nearest neighbours, k = 20"),
    ]
    no_accuracies = replace(found, evaluated={name: each[1:] for name, each in there.items()})
    assert above_table(no_accuracies).rows == ()
