"""Several runners of this machine that share the cells of a grid, and the process that started them.

Each runs the same command line on the same folder of results: which cell is whose is told by the locks, as for any
runners. What they do is shown in one place, from the logs of their cells.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from bench.core.environment import LAUNCH, PARENT
from bench.core.errors import Interrupted, UserError
from bench.core.files import written
from bench.core.lock import holder
from bench.core.throttle import Throttle
from bench.plan.graph import Ready, Task
from bench.plan.state import Outcome, is_done
from bench.run.events import FAILURES, Follower
from bench.run.executors.base import Work
from bench.run.progress import Display
from bench.run.runner import KILLED
from bench.run.stop import on_signals
from bench.store.record import Failed, read_record, record_path

ERROR = "error: "
ENDS = {0, 1, 2, 130}  # exit codes of a runner that was not killed
POLL = 0.2  # seconds
SWEEP = 1.0  # seconds between two looks at the logs of all cells, of which there may be thousands


class SideBySide:
    """Runs the pending cells of some work in a runner for each of the environments, and shows how they do."""

    def __init__(self, work: Work, pending: Sequence[Ready], environments: Sequence[dict[str, str]]) -> None:
        self.work, self.environments = work, environments
        self.display = Display(work.paths.mark, several=True)
        self.board = _Board(work, pending, self.display)
        self.launch = str(uuid4())
        self.sweep_due = Throttle(SWEEP)
        self.errors: list[str] = []  # what any runner has said that a user has to mend
        self.mistaken = False  # whether one has ended with it
        self.living: list[_Runner] = []
        self.asked = 0

    def run(self) -> list[Outcome]:
        """Return what became of each task once all runners have ended.

        One that was killed is replaced; its cell counts as failed. Raises Interrupted and KeyboardInterrupt after
        the first and the second SIGINT or SIGTERM, UserError when a runner has said one.
        """
        with on_signals(self._ask), self.display:
            self.board.begin()
            try:
                for environment in self.environments:
                    self._start(environment)
                while self.living:
                    time.sleep(POLL)
                    self._look()
            finally:
                self._signal(signal.SIGKILL)
            self._check_end()
            return self.board.settled()

    def _start(self, environment: dict[str, str]) -> None:
        runner = _Runner(self.work, environment | {LAUNCH: self.launch})
        self.living.append(runner)
        self.board.runners.add(runner.name)
        if self.asked:  # meanwhile
            self._signal(signal.SIGTERM)

    def _look(self) -> None:
        """Print what the runners have said, show what they have done, and replace those that were killed."""
        ended = [runner for runner in self.living if runner.process.poll() is not None]
        for runner in self.living:
            for line in runner.complaints.read().splitlines():
                if line.startswith(ERROR):
                    self.errors.append(line.removeprefix(ERROR))
                else:
                    print(line, file=sys.stderr)
        self.board.hear(everything=bool(ended) or self.sweep_due())
        for runner in ended:
            self.living.remove(runner)
            runner.complaints.close()
            self._after(runner)

    def _after(self, runner: "_Runner") -> None:
        """Replace a runner that was killed, unless it never began a cell."""
        code = runner.process.returncode
        self.mistaken = self.mistaken or code == 2
        if code in ENDS or self.asked:
            return
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        task = self.board.running.get(runner.name)
        at = f" while it ran {task.cell}" if task else ""
        useful = runner.name in self.board.began  # else the next one would end like it, and the one after that
        self.display.say(f"  process {runner.process.pid} {how}{at}{'; another takes its place' if useful else ''}")
        if useful:
            self._start(runner.environment)

    def _check_end(self) -> None:
        """Raise what the runners have ended with, unless they have seen to every task."""
        if self.asked > 1:
            raise KeyboardInterrupt
        if self.asked and not self.board.complete():
            raise Interrupted
        if self.errors and self.mistaken:
            raise UserError(self.errors[0])
        for line in self.errors:
            print(f"{ERROR}{line}", file=sys.stderr)

    def _signal(self, number: int) -> None:
        for runner in self.living:
            runner.process.send_signal(number)

    def _ask(self) -> None:
        """Have the runners save and stop when a user asks for it, end them when that is asked for once more."""
        self.asked += 1
        self._signal(signal.SIGTERM if self.asked == 1 else signal.SIGKILL)


class _Board:
    """What became of each task so far, from the logs of the cells and, in the end, from their records."""

    def __init__(self, work: Work, pending: Sequence[Ready], display: Display) -> None:
        self.tasks, self.paths, self.display = work.tasks, work.paths, display
        self.pending = {task.id: task for task in pending}
        self.logs = {task.id: Follower(self.paths.work(task.id)) for task in pending}
        self.before = {task.id: written(record_path(self.paths.records, task.id)) for task in pending}
        self.runners: set[str] = set()  # as their locks name them: ours, those that have ended among them
        self.began: set[str] = set()  # the runners that have had a cell
        self.taken: dict[str, str] = {}  # by whom a cell is run, by its id
        self.running: dict[str, Ready] = {}  # what a runner runs, or ran when it was killed
        self.outcomes: dict[str, Outcome] = {}  # by the cell's key

    def begin(self) -> None:
        """Show what is known before any runner has begun."""
        trained = {name for name, task in self.pending.items() if is_done(task, self.paths)}
        self.display.begin(self.tasks, self.pending, trained)
        for task in self.tasks:
            if not isinstance(task, Ready):
                self._ended(Outcome(task, "skipped", reason=task.reason))
            elif task.id not in self.pending:
                self._ended(Outcome(task, "done", cached=True))
            elif other := holder(self.paths.lock(task.id)):
                self.display.waits(task, other.name)

    def hear(self, everything: bool) -> None:
        """Show what is new in the logs of the cells that are run, or in those of all."""
        for task in [*self.pending.values()] if everything else [self.pending[cell] for cell in self.taken]:
            for event in self.logs[task.id].new():
                with suppress(LookupError, TypeError, ValueError):  # somebody may have edited the log
                    self._heard(task, event["event"], event)

    def complete(self) -> bool:
        """Return whether it is known what became of every task."""
        return len(self.outcomes) == len(self.tasks)

    def settled(self) -> list[Outcome]:
        """Return what became of each task once no runner is left."""
        for task in self.tasks:
            if task.cell.key() not in self.outcomes:
                self._ended(self._unheard(task))
        return [self.outcomes[task.cell.key()] for task in self.tasks]

    def _heard(self, task: Ready, name: str, facts: dict[str, Any]) -> None:
        if name == "taken":
            self.taken[task.id] = by = str(facts["by"])
            self.running[by] = task
            self.outcomes.pop(task.cell.key(), None)
            if by in self.runners:
                self.began.add(by)
                self.display.started(task)
            else:
                self.display.waits(task, by)
        elif name in FAILURES | {"done", "interrupted"}:
            by = self.taken.pop(task.id, "")
            if facts.get("reason") != KILLED:  # which another runner says, maybe before its end is seen here
                self.running.pop(by, None)
            if name == "interrupted":
                return
            elsewhere = by not in self.runners
            self._ended(Outcome(task, name, elsewhere, facts.get("reason", ""), elsewhere))  # type: ignore[arg-type]
        elif self.taken.get(task.id) in self.runners:
            self.display.heard(task, facts)

    def _ended(self, outcome: Outcome) -> None:
        """Keep and show what became of a task, and of those that needed it."""
        if outcome.task.cell.key() in self.outcomes:
            return
        self.outcomes[outcome.task.cell.key()] = outcome
        self.display.finished(outcome)
        for task in self.pending.values():
            if outcome.bad and task.needs is outcome.task:
                reason = f"the cell {task.needs.id} that it needs is {outcome.status}"
                self._ended(Outcome(task, "skipped", reason=reason))

    def _unheard(self, task: Task) -> Outcome:
        """Return what became of a task of which no log tells."""
        assert isinstance(task, Ready)
        path = record_path(self.paths.records, task.id)
        if is_done(task, self.paths):
            return Outcome(task, "done", cached=True, elsewhere=True)
        record = read_record(path)
        if isinstance(record, Failed) and written(path) != self.before[task.id]:
            return Outcome(task, record.status, reason=record.error)
        if task.needs and not is_done(task.needs, self.paths, backbone_needed=not task.cell.matches):
            return Outcome(task, "skipped", reason=f"the cell {task.needs.id} that it needs is not done")
        return Outcome(task, "failed", reason="no process was left to run it")


class _Runner:
    """A runner in a process group of its own, so that a terminal's Ctrl-C reaches the parent alone.

    `complaints` is what it writes to standard error.
    """

    def __init__(self, work: Work, environment: dict[str, str]) -> None:
        self.environment = environment
        # Files, not pipes: nobody has to read or write them at the right moment.
        with tempfile.TemporaryFile("w+") as cells, tempfile.NamedTemporaryFile() as complaints:
            cells.write("\n".join(task.id for task in work.tasks if isinstance(task, Ready)))
            cells.seek(0)
            self.complaints = Path(complaints.name).open(encoding="utf-8", errors="replace")  # noqa: SIM115
            self.process = subprocess.Popen(
                [*work.request.to_argv(), "--cell", "-"],
                env=os.environ | environment | {PARENT: str(os.getpid())},
                process_group=0,
                stdin=cells,
                stderr=complaints,
            )
        self.name = f"{socket.gethostname()}:{self.process.pid}"
