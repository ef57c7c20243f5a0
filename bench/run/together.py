"""One cell trained by several processes, which `torchrun` starts for it alone.

The runner and rank zero talk through the cell's folder: events come through its log and the record through a file. The
processes' standard input is a pipe: a byte asks them to save the cell and stop, and its end ends them at once, so that
none outlives its runner.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from bench.core.environment import own_command
from bench.core.errors import Interrupted, WriteError
from bench.core.files import remove_leftovers
from bench.core.lock import Lock
from bench.core.paths import Paths
from bench.core.throttle import Throttle
from bench.plan.graph import Ready
from bench.run.attempt import HEARTBEAT_SECONDS, Trouble
from bench.run.events import FAILURES, Follower
from bench.run.progress import Display
from bench.run.request import RunRequest
from bench.store.record import Finished

RESULT = "result.json"  # in the cell's folder: its record, from rank zero to the runner
DIED = "one of the processes that trained it died"
POLL = 0.2  # seconds
GRACE = 10.0  # seconds that torchrun has to end once its processes were told to
FIRST_PORT, PORTS = 20_000, 10_000  # for nodes to meet: below those that a system hands out by itself
# On each node of a job, which Slurm warns by SIGUSR2: the runner hears that, and asks through the pipe.
ON_A_NODE = 'trap "" USR2; exec "$0" -m torch.distributed.run --rdzv-conf=is_host=$((SLURM_NODEID == 0)) "$@"'


@dataclass(frozen=True)
class Part:
    """What each of the processes gets: the request, the cell's key and folder, and the number of its lock."""

    request: RunRequest
    key: str
    folder: Path
    lock: int

    def to_json(self) -> str:
        """Return it as one word of a command line."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "Part":
        """Return what `to_json` has made a word of."""
        return TypeAdapter(cls).validate_json(text)


@dataclass(frozen=True)
class Together:
    """Trains each cell in so many processes, on one node or on several of a job of Slurm.

    `environment` is what they get beyond this process's own.
    """

    paths: Paths
    request: RunRequest
    display: Display
    processes: int
    nodes: int
    environment: Mapping[str, str]

    def __call__(self, task: Ready, lock: Lock, stop: Callable[[], bool]) -> Finished | Trouble:
        """Return the cell's record, or why it has none."""
        work = self.paths.work(task.id)
        (work / RESULT).unlink(missing_ok=True)
        remove_leftovers(work / RESULT)
        told = _Told(task, work, self.display)
        part = Part(self.request, task.cell.key(), work, lock.number)
        command = torchrun(self.processes, self.nodes, part.to_json())
        due, asked = Throttle(HEARTBEAT_SECONDS), False
        # A group of its own, so that a terminal's Ctrl-C reaches the runner alone.
        started = subprocess.Popen(
            command, env={**os.environ, **self.environment}, stdin=subprocess.PIPE, process_group=0
        )
        assert started.stdin
        try:
            while started.poll() is None:
                told.hear()
                if due():
                    lock.check()
                if stop() and not asked:
                    asked = True
                    with suppress(BrokenPipeError):
                        os.write(started.stdin.fileno(), b".")
                time.sleep(POLL)
        finally:
            started.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                started.wait(GRACE)
            started.kill()
        told.hear()
        lock.check()
        return told.result(asked or stop())


class _Told:
    """What the processes of a cell have told so far."""

    def __init__(self, task: Ready, work: Path, display: Display) -> None:
        self.task, self.record, self.display = task, work / RESULT, display
        self.log = Follower(work)
        self.trouble: Trouble | None = None
        self.stopped: dict[str, Any] | None = None

    def hear(self) -> None:
        """Show what is new, and keep what ends the cell."""
        for event in self.log.new():
            with suppress(LookupError, TypeError, ValueError):  # somebody may have edited the log
                if event["event"] == "trouble" and event["status"] in FAILURES:
                    self.trouble = self.trouble or Trouble(event["status"], str(event["reason"]))
                elif event["event"] == "stopped":
                    self.stopped = event
                else:
                    self.display.heard(self.task, event)

    def result(self, asked: bool) -> Finished | Trouble:
        """Return the cell's record, or why there is none, once all processes have ended."""
        if self.record.is_file():
            record = Finished.model_validate_json(self.record.read_bytes())
            self.record.unlink()
            return record
        if self.trouble:
            return self.trouble
        if self.stopped and "file" in self.stopped:
            raise WriteError(self.stopped["errno"], self.stopped["why"], self.stopped["file"])
        if asked:
            raise Interrupted
        return Trouble("failed", DIED)


def torchrun(processes: int, nodes: int, part: str) -> list[str]:
    """Return the words that start a cell's processes, on all nodes of this process's job where there are several."""
    program = [f"--nproc-per-node={processes // nodes}", "--no-python", *own_command(), "worker", part]
    if nodes == 1:
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", *program]
    job, again = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_RESTART_COUNT", "0")
    # Nodes meet on the first one, where the runner is; the requeued job knows nothing of the earlier one.
    meeting = f"{os.environ['SLURM_LAUNCH_NODE_IPADDR']}:{FIRST_PORT + int(job) % PORTS}"
    options = [f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={meeting}", f"--rdzv-id={job}.{again}"]
    # The step shares what the job has with the one that the runner is in.
    srun = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--cpu-bind=none"]
    return [*srun, "sh", "-c", ON_A_NODE, sys.executable, *options, *program]
