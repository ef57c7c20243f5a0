"""What each process does of those that `torchrun` starts for one cell: its part of that cell, and nothing else."""

import os
import select
import signal
import sys
import threading
import traceback
from functools import partial
from typing import Any

from bench.core.device import find_device
from bench.core.distributed import is_rank_zero, rank_zero_first, start
from bench.core.errors import Interrupted, Lost, MissingError, WriteError
from bench.core.files import atomic_write
from bench.core.lock import check
from bench.core.paths import Paths
from bench.grid.expand import expand
from bench.plan.graph import Ready, plan
from bench.run.attempt import Trouble, attempt, judged, logged
from bench.run.events import CellLog
from bench.run.request import RunRequest
from bench.run.together import RESULT, Part
from bench.store.record import Finished
from bench.train.keeper import Hooks

LOST_CONNECTION = ("Connection closed", "Connection reset", "NCCL", "gloo")  # in what torch says of it


def work(text: str) -> None:
    """Do this process's part of a cell, tell its runner what became of it, and end this process."""
    part = Part.from_json(text)
    log, code = CellLog(part.folder), 1
    try:
        part.request.prepare_process()
        start(part.request.device)
        result = _train(part, log)
        if isinstance(result, Finished):
            _hand_over(result, part)
            code = 0
        else:
            _tell(result, log)
    except (Interrupted, Lost, WriteError) as error:
        code = 0 if isinstance(error, Interrupted) and not str(error) else 1  # all processes have agreed on it, or not
        if is_rank_zero():
            log.event("stopped", _why(error))
    except Exception as error:  # before the cell has begun
        log.text(traceback.format_exc())
        _tell(Trouble(*judged(error)), log)
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of torch's process groups may abort the end of the interpreter, which torchrun would take for a failure.
    os._exit(code)


def _train(part: Part, log: CellLog) -> Finished | Trouble:
    """Train the cell and return its record, or why it has none."""
    asked = _listen()
    with rank_zero_first():
        task, paths = _task(part.request, part.key)
    own, stop = partial(check, paths.lock(task.id), part.lock), lambda: bool(asked)
    watch, track = Hooks(lambda *step: None, lambda *event: None, stop, own), None
    if is_rank_zero():
        watch, track = logged(task, log, own, stop), part.request.track
    device = find_device(part.request.device)
    return attempt(task, paths, device, part.request.workers_for(device), watch, part.request.limits(), track)


def _task(request: RunRequest, key: str) -> tuple[Ready, Paths]:
    """Return the task of the cell with this key."""
    spec, paths = request.load()
    cells = expand(spec)
    task = plan(cells, [cell for cell in cells if cell.key() == key], paths, f"grid {spec.name}")[-1]
    if not isinstance(task, Ready):
        raise MissingError(task.reason)
    return task, paths


def _hand_over(record: Finished, part: Part) -> None:
    """Write the record of rank zero, which is whole, for the runner."""
    if is_rank_zero():
        with atomic_write(part.folder / RESULT) as file:
            file.write(record.model_dump_json().encode())


def _tell(trouble: Trouble, log: CellLog) -> None:
    """Tell the runner why the cell failed, unless it is that another process is gone: then that one's reason counts."""
    if not any(word in trouble.reason for word in LOST_CONNECTION):
        log.event("trouble", {"status": trouble.status, "reason": trouble.reason})


def _listen() -> list[str]:
    """Return a list that gets an item when the cell is to be saved and left, and end this process with its runner."""
    asked: list[str] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: asked.append("signal"))
    poll = select.poll()
    poll.register(0, select.POLLIN if is_rank_zero() else 0)

    def listen() -> None:
        while True:
            for _, what in poll.poll():
                if what & select.POLLIN and os.read(0, 1):
                    asked.append("runner")
                else:
                    os._exit(130)

    threading.Thread(target=listen, daemon=True).start()
    return asked


def _why(error: Exception) -> dict[str, Any]:
    if isinstance(error, WriteError):
        return {"why": error.strerror, "errno": error.errno, "file": str(error.filename)}
    return {"why": str(error)} if str(error) else {}
