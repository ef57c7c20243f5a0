"""Records that were made on several machines, brought together in one folder.

Besides the records only the backbones are copied that cells may still wait for as their prior: those are days of
training on a GPU. Checkpoints and logs stay where they were made, and so do the backbones that no cell needs.
"""

import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.core.errors import UserError
from bench.core.files import atomic_write
from bench.core.paths import EVALUATIONS, Paths
from bench.grid.cell import makes_prior
from bench.grid.schema import GRID_NAME
from bench.store.evaluated import read_evaluated
from bench.store.reading import Damaged
from bench.store.record import Failed, Finished, read_record, record_files, record_path

ID = "[0-9a-f]{16}"
Read = Callable[[Path], Any]  # a file as a kind of record, or as Damaged


@dataclass(frozen=True)
class Copy:
    """A file to copy. `replaces` tells that a record of a failed cell is there."""

    source: Path
    target: Path
    replaces: bool = False


@dataclass(frozen=True)
class Merge:
    """What bringing records together does: the files to copy, records there already, and files that are left out."""

    records: tuple[Copy, ...]
    backbones: tuple[Copy, ...]
    same: int
    left_out: tuple[Damaged, ...]


@dataclass(frozen=True)
class _Candidate:
    """A record and where it is."""

    path: Path
    record: Any

    def differs(self, other: "_Candidate") -> str:
        """Return the first thing that settings and seed decide and the two records disagree on, "" without any."""
        return _difference(*(one.record.model_dump(include=self.record.decided) for one in (self, other)))


def plan_merge(
    sources: Sequence[Path], into: Path, keep_first: bool = False, kinds: Sequence[Read] = (read_record,)
) -> Merge:
    """Return what to copy from some folders to another one, each of them of one grid or with a folder for each grid.

    A finished record wins over failed ones; of several failed ones, the newest wins. Finished ones must agree in what
    settings and seed decide, bit for bit; with `keep_first` the first counts where they do not, `into` coming before
    the sources. Nothing is written. Raises UserError when two records disagree, and when the
    folders are none that can be brought together.
    """
    targets = _by_target(sources, into)
    below = [path for source in sources for path in sorted(source.iterdir())]
    links = [path for path in below if path.is_symlink() and record_files(path)]
    left_out = [Damaged(link, "a link: name the folder that it points to") for link in links]
    records: list[Copy] = []
    backbones: list[Copy] = []
    disagreements: list[str] = []
    same = 0
    evaluations = [(*place, name.absolute().name, (read_evaluated,)) for name, place in _evaluations(targets)]
    cells = [(target, folders, target.absolute().name, kinds) for target, folders in targets.items()]
    for target, folders, grid, of_kinds in (*cells, *evaluations):
        for candidates in _candidates(target, folders, grid, of_kinds, left_out):
            done = [one for one in candidates if not isinstance(one.record, Failed)]
            best = done[0] if done else max(candidates, key=_time)  # of equals the first
            pairs = [(one, best.differs(one)) for one in done]
            disagreements += [f"{best.path} and {one.path} disagree on {what}" for one, what in pairs if what]
            place = record_path(target, best.record.id)
            if best.path == place:
                same += 1
            else:
                records.append(Copy(best.path, place, replaces=candidates[0].path == place))
            if isinstance(best.record, Finished) and makes_prior(best.record.cell):
                there = [_backbone(one.path) for one, what in pairs if not what]
                weights = next(filter(_is_plain, there), None)
                if weights and weights != _backbone(place):
                    backbones.append(Copy(weights, _backbone(place)))
    if disagreements and not keep_first:
        more = f" (and {len(disagreements) - 1} more)" if len(disagreements) > 1 else ""
        raise UserError(f"{disagreements[0]}{more}: remove one of the files, or take the first one by --keep-first")
    return Merge(tuple(records), tuple(backbones), same, tuple(left_out))


def copy_files(merge: Merge) -> None:
    """Copy the files, each whole or not at all; the sources stay as they are.

    A backbone comes before its record: whatever stops this in between, the same merge goes on from there.
    """
    for each in (*merge.backbones, *merge.records):
        with each.source.open("rb") as source, atomic_write(each.target) as target:
            shutil.copyfileobj(source, target)


def _by_target(sources: Sequence[Path], into: Path) -> dict[Path, list[Path]]:
    """Return the sources' folders of each grid by the folder that their records go to. Raises UserError."""
    for source in sources:
        if not source.is_dir():
            raise UserError(f"{source}: no such folder")
        one, other = source.resolve(), into.resolve()
        if one.is_relative_to(other) or other.is_relative_to(one):
            raise UserError(f"{source} and --into {into} are one folder, or one is in the other: nothing to merge")
    folders = {source: _grids(source) for source in sources}
    there = _grids(into) if into.is_dir() else {}
    single = [source for source, grids in folders.items() if "" in grids]
    if single and len(single) < len(folders):
        why = "holds one grid's records and others a folder for each grid: name one kind of folder"
        raise UserError(f"{single[0]} {why}")
    if single and there.keys() - {""}:
        raise UserError(f"--into {into} holds a folder for each grid: name one of them, as the sources are of one")
    if not single and "" in there:
        raise UserError(f"--into {into} holds one grid's records and the sources a folder for each: name its parent")
    by_target: dict[Path, list[Path]] = defaultdict(list)
    for source, grids in folders.items():
        if not grids:
            raise UserError(f"{source}: no records there, nor in the folders below it")
        for name, folder in grids.items():
            if (into / name).resolve() == folder.resolve():
                raise UserError(f"{into / name} and {folder} are one folder: nothing to merge")
            by_target[into / name].append(folder)
    return by_target


def _grids(folder: Path) -> dict[str, Path]:
    """Return the folders of records by the grid's name, links aside; one that holds records itself is called ""."""
    if record_files(folder):
        return {"": folder}
    below = [path for path in sorted(folder.iterdir()) if not path.is_symlink() and re.match(GRID_NAME, path.name)]
    return {path.name: path for path in below if record_files(path)}


def _evaluations(targets: dict[Path, list[Path]]) -> Iterator[tuple[Path, tuple[Path, list[Path]]]]:
    """Yield, by a grid's target, where each cell's further evaluations go to and the folders that they are in."""
    for target, folders in targets.items():
        by_cell: dict[Path, list[Path]] = defaultdict(list)
        for folder in folders:
            for below in sorted((folder / EVALUATIONS).glob("*")):
                if re.fullmatch(ID, below.name) and not below.is_symlink():
                    by_cell[target / EVALUATIONS / below.name].append(below)
        yield from ((target, place) for place in by_cell.items())


def _candidates(
    target: Path, folders: Sequence[Path], grid: str, kinds: Sequence[Read], left_out: list[Damaged]
) -> list[list[_Candidate]]:
    """Return the records of each cell, those of `target` first, and add the files that are left out to `left_out`."""
    by_cell: dict[str, list[_Candidate]] = defaultdict(list)
    blocked: dict[str, str] = {}
    for folder in (target, *folders):
        for path in record_files(folder):
            one = _read(path, grid, kinds)
            if isinstance(one, _Candidate) and path.stem not in blocked:
                by_cell[path.stem].append(one)
            elif isinstance(one, _Candidate):
                left_out.append(Damaged(path, blocked[path.stem]))
            elif folder == target:
                blocked[path.stem] = f"{path} is in its place: {one.reason}"
            else:
                left_out.append(one)
    return list(by_cell.values())


def _read(path: Path, grid: str, kinds: Sequence[Read]) -> _Candidate | Damaged:
    """Return the record of `grid` in a file, or why it holds none."""
    if not _is_plain(path):
        return Damaged(path, "a link, or no file")
    faults: list[Damaged] = []
    for read in kinds:
        record = read(path)
        if isinstance(record, Damaged):
            faults.append(record)
        elif record.grid != grid:
            return Damaged(path, f"a record of grid {record.grid}, not of {grid}")
        else:
            return _Candidate(path, record)
    return faults[0]


def _time(one: _Candidate) -> str:
    return str(one.record.provenance.get("time", ""))


def _backbone(record: Path) -> Path:
    """Return where the backbone of a record's cell lies."""
    return Paths(Path(), record.parent.parent, record.parent.name).backbone(record.stem)


def _is_plain(path: Path) -> bool:
    return not path.is_symlink() and path.is_file()


def _difference(one: Any, other: Any, key: str = "") -> str:
    """Return the first key whose values differ, with the two, "" when there is none."""
    if isinstance(one, dict) and isinstance(other, dict):
        parts = [_difference(one[name], other[name], f"{key}.{name}".lstrip(".")) for name in one]
    elif isinstance(one, tuple) and isinstance(other, tuple):
        if len(one) != len(other):
            return f"the length of {key}: {len(one)} and {len(other)}"
        parts = [_difference(*pair, f"{key}[{index}]") for index, pair in enumerate(zip(one, other, strict=True))]
    else:
        return "" if one == other else f"{key}: {one} and {other}"
    return next(filter(None, parts), "")
