"""What the processes of one `torchrun`, or of one `run --jobs`, know of one another's ends.

Either may start processes again after one has died: a cell that has cost one its life is not tried again by the same
command.
"""

from pathlib import Path

from bench.core.distributed import is_rank_zero, launch, world_size
from bench.store.record import Damaged, Failed, Record

LAUNCH, FAILURE = "launch", "failure.txt"  # in the cell's folder
DIED = "one of the processes that trained it died"
KILLED = "the process that ran it died; the next run goes on from the last checkpoint"


class ProcessError(Exception):
    """One of several processes that train together has failed: those that are left cannot go on."""


def begin(work: Path) -> None:
    """Note which launch has begun the cell: should a process of it die, the next ones know of it."""
    name = launch()
    if name and is_rank_zero():
        (work / FAILURE).unlink(missing_ok=True)
        (work / LAUNCH).write_text(name, encoding="utf-8")


def finish(work: Path) -> None:
    """Forget which launch has begun a cell that is done."""
    (work / LAUNCH).unlink(missing_ok=True)


def tell_failure(work: Path, reason: str) -> None:
    """Note why a process that is not the first has failed, unless it only lost the others."""
    if not lost_connection(reason):
        (work / FAILURE).write_text(reason, encoding="utf-8")


def given_up(work: Path, record: Record | Damaged | None) -> str | None:
    """Return why earlier processes of this launch did not finish the cell; None when none has begun it.

    Called by who holds the cell's lock: no other process is at it.
    """
    name = launch()
    if name is None or not (work / LAUNCH).is_file() or (work / LAUNCH).read_text(encoding="utf-8") != name:
        return None
    # The first process records its own failure, but not that another one failed or that it was killed itself.
    told = (work / FAILURE).read_text(encoding="utf-8") if (work / FAILURE).is_file() else ""
    known = record.error if isinstance(record, Failed) and record.provenance.get("launch") == name else None
    if known and not (told and lost_connection(known)):
        return known
    if world_size() == 1:
        return KILLED
    return f"one of the processes that trained it failed: {told}" if told else DIED


def lost_connection(reason: str) -> bool:
    """Return whether an error says no more than that another process is gone."""
    words = ("Connection closed", "Connection reset", "NCCL", "gloo")
    return reason == DIED or (world_size() > 1 and any(word in reason for word in words))
