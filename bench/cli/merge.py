"""The verb `merge`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.cli import options

SOURCES = "folders to merge: each of one grid, or with one folder for each grid"
KEEP = "if two results of a cell differ, keep the one in INTO, else the first"


def merge(
    sources: Annotated[list[Path], options.PathArgument(help=SOURCES)],
    into: Annotated[
        Path,
        options.PathOption("--into", help="folder to merge into, of the same kind as the sources; created if missing"),
    ],
    keep_first: Annotated[bool, typer.Option("--keep-first", help=KEEP)] = False,
) -> None:
    """Merge records of several machines; the sources stay unchanged.

    A finished record counts before a failed one, and the newer of two failed ones. Two finished records of a cell must
    have the same scores, steps and FLOPs, or nothing is written (exit code 2). Exit code 1: a file was left out, as it
    holds no record of the grid. Backbones that cells need as their prior come along; checkpoints stay.
    """
    from bench.report.tables import one_line
    from bench.store.merge import copy_files, plan_merge
    from bench.store.record import read_record
    from bench.toy.study import read_toy

    planned = plan_merge(sources, into, keep_first, (read_record, read_toy))
    copy_files(planned)
    replaced = sum(each.replaces for each in planned.records)
    print(
        f"{len(planned.records)} records copied to {into}, {replaced} of them in place of a failed one's;"
        f" {planned.same} were there; {len(planned.backbones)} backbones of priors copied"
    )
    for each in planned.left_out:
        print(one_line(f"left out: {each.path}: {each.reason}"), file=sys.stderr)
    if planned.left_out:
        raise typer.Exit(1)
