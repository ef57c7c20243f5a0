"""Records of further evaluations: one JSON file each, `results/<grid>/evaluations/<cell id>/<id>.json`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from bench.core.files import atomic_write
from bench.core.paths import EVALUATIONS
from bench.grid.base import Model
from bench.grid.cell import digest
from bench.grid.evaluation import AnyEvaluation, Evaluation
from bench.store.reading import SCHEMA, Damaged, read_model
from bench.store.record import Count, Seconds, record_files, record_path


class Evaluated(Model):
    """What an evaluation has found of a finished cell's backbone.

    `cell` is the cell's id, `data` the digests of the datasets that it used beside the cell's own, and `values` what
    was measured, by name. `flops` and `seconds` are the evaluation's own, without those of the features that
    evaluations share; the FLOPs are None where nothing was trained.
    """

    decided: ClassVar[dict[str, Any]] = {"values": True, "flops": True}  # by settings and seed

    id: str
    grid: str
    cell: str
    evaluation: AnyEvaluation
    version: int
    data: dict[str, str]
    values: dict[str, float]
    seconds: Seconds
    flops: Count | None
    provenance: dict[str, Any]
    rehearsal: bool = False
    schema_version: int = SCHEMA

    @property
    def settles(self) -> tuple[str, str]:
        """What it is the answer to: the cell, and the evaluation with its settings."""
        return question(self.cell, self.evaluation, self.version)


def question(cell: str, evaluation: Evaluation, version: int | None = None) -> tuple[str, str]:
    """Return what an evaluation of a cell is the answer to, by today's code where no version is given."""
    settings = evaluation.model_dump(mode="json")
    return cell, digest({"version": version or evaluation.version, **settings})


def evaluation_id(cell: str, evaluation: Evaluation, data: dict[str, str], version: int | None = None) -> str:
    """Return the content hash that names an evaluation's record."""
    return digest({"asked": question(cell, evaluation, version), "data": data})


def write_evaluated(record: Evaluated, folder: Path) -> None:
    """Write a record to a folder, whole or not at all."""
    with atomic_write(record_path(folder, record.id)) as file:
        file.write((record.model_dump_json(indent=1) + "\n").encode())


def read_evaluated(path: Path) -> Evaluated | Damaged:
    """Return the record in a file, or why it is none: it must be whole, of this schema, and hash to its name."""
    return read_model(path, lambda raw: Evaluated, lambda each: _id(each) == each.id == path.stem)


def _id(record: Evaluated) -> str:
    return evaluation_id(record.cell, record.evaluation, record.data, record.version)


def evaluated_in(folder: Path) -> tuple[list[Evaluated], list[Damaged]]:
    """Return the records of a folder in the order of their names, and the files that are none."""
    read = [read_evaluated(path) for path in record_files(folder)]
    return [r for r in read if isinstance(r, Evaluated)], [r for r in read if isinstance(r, Damaged)]


def latest_of(folder: Path, cells: Iterable[str]) -> tuple[dict[str, tuple[Evaluated, ...]], list[Damaged]]:
    """Return the evaluations of cells beside whose records they are, and the files that are none.

    Those by today's code, of a cell's with the same settings the newest.
    """
    there = {cell: evaluated_in(folder / EVALUATIONS / cell) for cell in cells}
    latest = {}
    for cell, (records, _) in there.items():
        today = [record for record in records if record.version == record.evaluation.version]
        by_time = sorted(today, key=lambda record: str(record.provenance.get("time", "")))
        latest[cell] = tuple({record.settles: record for record in by_time}.values())
    return {cell: kept for cell, kept in latest.items() if kept}, [each for _, bad in there.values() for each in bad]
