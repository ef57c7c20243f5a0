"""A Slurm job: run one cell, save it when the job must stop, and requeue the job.

Little is imported: this process only waits for the one that trains.
"""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import FrameType

from bench.core.environment import LAUNCH, NODES
from bench.core.files import written

SAVING_SECONDS = 60.0  # that a cell has to finish its step and save itself; submitit asks for a warning 90 s ahead


def run(words: list[str], nodes: int, checkpoint: str) -> None:
    """Run the command that `words` are, a runner of one cell on so many nodes; end with its exit code.

    The first signal, SIGUSR2 ahead of the time limit or SIGTERM where Slurm preempts, stops the command with what it
    has done saved, and the job goes back into the queue: it goes on from there. A job that somebody has cancelled, or
    that Slurm itself has put back, is left alone. So is one whose time was up before it had saved anything to the file
    `checkpoint`: it would be requeued for ever.
    """
    asked: list[tuple[int, float]] = []
    before = written(Path(checkpoint))
    cell = _started(words, nodes)

    def ask(number: int, frame: FrameType | None) -> None:
        if not asked:
            print(f"{signal.Signals(number).name}: the cell is to save itself", file=sys.stderr, flush=True)
            cell.terminate()
        asked.append((number, time.monotonic()))

    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, ask)
    _wait(cell, asked)
    if cell.returncode is not None and cell.returncode < 0 and not asked:
        cell = _started(words, nodes)  # which finds that one was killed, and makes that the cell's record
        _wait(cell, asked)
    if cell.returncode != 0 and asked and _is_running():
        if asked[0][0] == signal.SIGUSR2 and written(Path(checkpoint)) == before:
            print("the job's time ended before anything was saved; raise --slurm time=...", file=sys.stderr)
        else:
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
    code = cell.wait()  # of one that did not save itself in time: Slurm ends it
    sys.exit(code if code >= 0 else 128 - code)


def _started(words: list[str], nodes: int) -> subprocess.Popen[bytes]:
    """Start the command under a name for this launch; it ignores the warning, which Slurm sends to all processes."""
    name = f"slurm {os.environ['SLURM_JOB_ID']} {os.environ.get('SLURM_RESTART_COUNT', '0')}"
    ignore = partial(signal.signal, signal.SIGUSR2, signal.SIG_IGN)
    return subprocess.Popen(words, env=os.environ | {LAUNCH: name, NODES: str(nodes)}, preexec_fn=ignore)


def _wait(cell: subprocess.Popen[bytes], asked: list[tuple[int, float]]) -> None:
    """Wait until the command has ended, or has had its time to do so."""
    while cell.poll() is None and not (asked and time.monotonic() > asked[0][1] + SAVING_SECONDS):
        time.sleep(0.2)


def _is_running() -> bool:
    """Return whether the job runs on as far as Slurm knows: it is neither cancelled nor put back already."""
    words = ["squeue", "--noheader", f"--jobs={os.environ['SLURM_JOB_ID']}", "--format=%T"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() == "RUNNING"
