"""Records that were made on several machines, brought together in one folder.

Besides the records only the backbones are copied that cells may still wait for as their prior: those are days of
training on a GPU. Checkpoints and logs stay where they were made, and so do the backbones that no cell needs.
"""

import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.core.errors import UserError
from bench.core.files import atomic_write
from bench.core.paths import Places
from bench.grid.schema import GRID_NAME, makes_prior
from bench.store.record import Damaged, Failed, Finished, Record, read_record, record_files, record_path
from bench.toy.study import ToyRecord, read_toy

# What settings and seed decide of a result. Times and memory are the machine's, and so are a loss's last digits.
DECIDED: dict[str, Any] = {
    "rehearsal": True,
    "curve": {
        "__all__": {"step": True, "images": True, "flops": True, "score": {"linear", "knn", "further_probes"}},
    },
    "switch_step": True,
    "ledger": {"steps": True, "images": True, "flops": True, "targets": {"flops", "images"}},
}
DECIDED_TOY = {"accuracy", "loss", "prior_accuracy"}


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
class _Found:
    path: Path
    record: Record | ToyRecord

    @property
    def done(self) -> bool:
        return not isinstance(self.record, Failed)

    @property
    def time(self) -> str:
        return str(self.record.provenance.get("time", ""))

    @property
    def backbone(self) -> Path:
        return Places(Path(), self.path.parent.parent, self.path.parent.name).backbone(self.record.id)


def plan_merge(sources: Sequence[Path], into: Path, keep_first: bool = False) -> Merge:
    """Return what to copy from some folders to another one, each of them of one grid or with a folder for each grid.

    Of a cell's records a finished one counts, before one that failed; of several that failed the newest. Finished ones
    must agree in what settings and seed decide, bit for bit; with `keep_first` the first counts where they do not,
    `into` coming before the sources. Nothing is written. Raises UserError when two records disagree, and when the
    folders are none that can be brought together.
    """
    targets = _by_target(sources, into)
    records: list[Copy] = []
    backbones: list[Copy] = []
    left_out = [Damaged(link, "a link, that may lead anywhere: name the folder itself") for link in _links(sources)]
    disagreements: list[str] = []
    same = 0
    for target, folders in targets.items():
        for identifier, found in _candidates(target, folders, left_out).items():
            done = [one for one in found if one.done]
            best = done[0] if done else max(found, key=lambda one: one.time)  # of equals the first
            differences = [_difference(_decided(best.record), _decided(one.record)) for one in done]
            disagreements += [
                f"{best.path} and {one.path} disagree on {difference}"
                for one, difference in zip(done, differences, strict=True)
                if difference
            ]
            place = _Found(record_path(target, identifier), best.record)
            if best.path == place.path:
                same += 1
            else:
                records.append(Copy(best.path, place.path, replaces=found[0].path == place.path))
            if isinstance(best.record, Finished) and makes_prior(best.record.cell):
                agreeing = (one.backbone for one, difference in zip(done, differences, strict=True) if not difference)
                weights = next(filter(_is_plain, agreeing), place.backbone)
                backbones += [Copy(weights, place.backbone)] if weights != place.backbone else []
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
    kinds = {folder: _has_records(folder) for folder in sources}
    if len(set(kinds.values())) > 1:
        single = next(folder for folder, is_grid in kinds.items() if is_grid)
        raise UserError(f"{single} holds one grid's records and others a folder for each grid: name one kind of folder")
    if kinds[sources[0]]:
        if _grids(into):
            raise UserError(f"--into {into} holds a folder for each grid: name one of them, as the sources are of one")
        return {into: list(sources)}
    if _has_records(into):
        raise UserError(f"--into {into} holds one grid's records and the sources a folder for each: name its parent")
    found: dict[Path, list[Path]] = defaultdict(list)
    for source in sources:
        grids = _grids(source)
        if not grids:
            raise UserError(f"{source}: no records there, nor in the folders below it")
        for folder in grids:
            if (into / folder.name).resolve() == folder.resolve():
                raise UserError(f"{into / folder.name} and {folder} are one folder: nothing to merge")
            found[into / folder.name].append(folder)
    return found


def _has_records(folder: Path) -> bool:
    return bool(record_files(folder))


def _grids(folder: Path) -> list[Path]:
    """Return the folders with records below one, links aside."""
    below = sorted(folder.iterdir()) if folder.is_dir() else []
    return [each for each in below if not each.is_symlink() and re.match(GRID_NAME, each.name) and _has_records(each)]


def _links(folders: Sequence[Path]) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.iterdir()) if path.is_symlink() and _has_records(path)]


def _candidates(target: Path, folders: Sequence[Path], left_out: list[Damaged]) -> dict[str, list[_Found]]:
    """Return the records of each cell, those of `target` first, and add the files that are left out to `left_out`."""
    found: dict[str, list[_Found]] = defaultdict(list)
    blocked: dict[str, str] = {}
    for folder in (target, *folders):
        for path in record_files(folder):
            record = _read(path, target.absolute().name)
            if isinstance(record, Damaged):
                if folder == target:
                    blocked[path.stem] = f"{path} is in its place: {record.reason}"
                else:
                    left_out.append(record)
            elif record.id in blocked:
                left_out.append(Damaged(path, blocked[record.id]))
            else:
                found[record.id].append(_Found(path, record))
    return found


def _read(path: Path, grid: str) -> Record | ToyRecord | Damaged:
    """Return the record of `grid` in a file, or why it holds none."""
    if not _is_plain(path):
        return Damaged(path, "a link, or no file")
    record: Record | ToyRecord | Damaged = read_record(path)
    if isinstance(record, Damaged):
        toy = read_toy(path)
        record = record if isinstance(toy, Damaged) else toy
    if isinstance(record, Damaged) or record.grid == grid:
        return record
    return Damaged(path, f"a record of grid {record.grid}, not of {grid}")


def _is_plain(path: Path) -> bool:
    return not path.is_symlink() and path.is_file()


def _decided(record: Record | ToyRecord) -> dict[str, Any]:
    return record.model_dump(include=DECIDED if isinstance(record, Record) else DECIDED_TOY)


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
