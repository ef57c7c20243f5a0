"""Several processes of this machine that share the cells of a grid, and the one that started them.

Each is a runner of the same command line on the same folder of results: which cell is whose is told by the locks, as
for any runners. What they would show to people they tell the parent, which shows it in one place.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from types import FrameType
from typing import IO, Any
from uuid import uuid4

from bench.core.environment import LAUNCH, whole_number
from bench.core.errors import Interrupted, UserError
from bench.plan.graph import Missing, Ready, Task
from bench.plan.state import Outcome
from bench.run.executors.base import Work
from bench.run.progress import Display, describe
from bench.train.loop import Every

PIPE = "BENCH_PIPE"  # the number of the file that a process tells its parent through
ERROR = "error: "
ENDS = {0, 1, 2, 130}  # exit codes of a runner that was not killed
POLL = 0.5  # seconds
TELL_SECONDS = 0.2  # between two steps that are told


class Teller(Display):
    """Tells the parent what a display would show, a line of JSON each. Asks this process to stop when it is gone."""

    def __init__(self, pipe: int) -> None:
        super().__init__()
        self.bars = None
        self.due = Every(TELL_SECONDS)
        self.pipe = open(pipe, "w", buffering=1, encoding="utf-8")  # noqa: SIM115  # to the end of the process

    def begin(self, cells: int) -> None:
        """The parent knows."""

    def started(self, task: Ready) -> None:
        """Tell that a cell begins."""
        self._tell(task, "started")

    def step(self, task: Ready, done: int, steps: int, loss: float) -> None:
        """Tell a cell's step, now and then."""
        if self.due():
            self._tell(task, "step", done, steps, loss)

    def event(self, task: Ready, name: str, facts: dict[str, Any]) -> None:
        """Tell what happened in a cell."""
        self._tell(task, "event", name, facts)

    def waits(self, task: Ready, holder: str) -> None:
        """Tell that another runner has a cell."""
        self._tell(task, "waits", holder)

    def finished(self, outcome: Outcome) -> None:
        """Tell what became of a cell."""
        self._tell(outcome.task, "finished", outcome.status, outcome.cached, outcome.reason, outcome.elsewhere)

    def _tell(self, task: Task, *words: Any) -> None:
        try:
            print(json.dumps([task.cell.key(), *words]), file=self.pipe)
        except BrokenPipeError:
            os.kill(os.getpid(), signal.SIGTERM)


def told_display() -> Teller | None:
    """Return what tells the parent of this process; None when it has none."""
    return Teller(number) if (number := whole_number(PIPE)) else None


class Processes:
    """Runs the pending cells of some work in a process for each of the environments, and shows what they tell."""

    def __init__(self, work: Work, pending: Sequence[Ready], environments: Sequence[dict[str, str]]) -> None:
        self.work, self.environments = work, environments
        self.tasks = {task.cell.key(): task for task in work.tasks}
        self.pending = {task.id for task in pending}
        self.command = [*work.command, "--cell", "-"]
        self.cells = "\n".join(task.id for task in work.tasks if isinstance(task, Ready))
        self.launch = str(uuid4())
        self.display = Display(work.places.mark, several=True)
        self.lock = threading.Lock()
        self.outcomes: dict[str, Outcome] = {}
        self.errors: list[str] = []  # what any process has said that a user has to mend
        self.mistaken = False  # whether one has ended with it
        self.living: list[_Process] = []
        self.ended: SimpleQueue[_Process] = SimpleQueue()
        self.asked = 0

    def run(self) -> list[Outcome]:
        """Return what became of each task once all processes have ended.

        One that was killed is replaced; its cell counts as failed. Raises Interrupted and KeyboardInterrupt after
        the first and the second SIGINT or SIGTERM, UserError when a process has said one.
        """
        with self._stop_requests(), self.display:
            self.display.begin(len(self.tasks))
            for task in self.work.tasks:
                if isinstance(task, Missing):
                    self._finished(Outcome(task, "skipped", reason=task.reason))
            try:
                for environment in self.environments:
                    self._start(environment)
                while self.living:
                    with suppress(Empty):  # now and then: a signal that another thread got does not end the wait
                        self._after(self.ended.get(timeout=POLL))
            finally:
                self._signal(signal.SIGKILL)
            self._check_end()
            for key, task in self.tasks.items():
                if key not in self.outcomes:
                    self._finished(Outcome(task, "failed", reason="no process was left to run it"))
                elif self.outcomes[key].elsewhere:
                    self.display.finished(self.outcomes[key])
        return [self.outcomes[key] for key in self.tasks]

    def _check_end(self) -> None:
        """Raise what the processes have ended with, unless they have seen to every task."""
        if self.asked > 1:
            raise KeyboardInterrupt
        if self.asked and len(self.outcomes) < len(self.tasks):
            raise Interrupted
        if self.errors and self.mistaken:
            raise UserError(self.errors[0])
        for line in self.errors:
            print(f"{ERROR}{line}", file=sys.stderr)

    def _start(self, environment: dict[str, str]) -> None:
        environment = environment | {LAUNCH: self.launch}
        process = _Process(self.command, self.cells, environment, self._hear, self._show, self.ended)
        self.living.append(process)
        if self.asked:  # meanwhile
            self._signal(signal.SIGTERM)

    def _after(self, process: "_Process") -> None:
        """See to it that another process takes the place of one that was killed, if it was of any use."""
        self.living.remove(process)
        code = process.code
        self.mistaken = self.mistaken or code == 2
        if code in ENDS or self.asked:
            return
        at = f" while it ran {describe(process.task.cell)}" if process.task else ""
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        with self.lock:
            self.display.say(f"  process {process.pid} {how}{at}{'; another takes its place' * process.began}")
        if process.began:  # else the next one would end like it, for ever
            self._start(process.environment)

    def _hear(self, process: "_Process", key: str, what: str, *words: Any) -> None:
        task = self.tasks[key]
        with self.lock:
            if what == "started":
                process.task, process.began = task, True
                self.display.started(task)
            elif what == "step":
                self.display.step(task, *words)
            elif what == "event":
                self.display.event(task, *words)
            elif what == "waits":
                if words[0] not in {f"{socket.gethostname()}:{each.pid}" for each in self.living}:
                    self.display.waits(task, *words)
            else:
                if process.task is task:
                    process.task = None
                outcome = Outcome(task, *words)
                # What a process that began late finds done was made by another one.
                late = outcome.cached and task.id in self.pending
                self._finished(replace(outcome, elsewhere=True) if late else outcome)

    def _finished(self, outcome: Outcome) -> None:
        """Keep and show what became of a task: all tell it, and only who made it tells how it went."""
        key = outcome.task.cell.key()
        known = self.outcomes.get(key)
        if known is None or (known.elsewhere and not outcome.elsewhere):
            self.outcomes[key] = outcome
            if not outcome.elsewhere:
                self.display.finished(outcome)

    def _show(self, line: str, to: IO[str]) -> None:
        with self.lock:
            if to is sys.stderr and line.startswith(ERROR):
                self.errors.append(line.removeprefix(ERROR))
            elif to is sys.stdout:
                self.display.say(line)
            else:
                print(line, file=to)

    def _signal(self, number: int) -> None:
        for process in self.living:
            process.signal(number)

    @contextmanager
    def _stop_requests(self) -> Iterator[None]:
        """Have the first SIGINT or SIGTERM ask the processes to save and stop, the second one end them."""

        def ask(number: int, frame: FrameType | None) -> None:
            self.asked += 1
            self._signal(signal.SIGTERM if self.asked == 1 else signal.SIGKILL)

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Process:
    """A runner in a process group of its own, so that a terminal's Ctrl-C reaches the parent alone.

    `given` is its standard input. `hear` is called with what it tells, `show` with each line that it prints and where
    to; itself is put into `ended` once it has ended and all that it said was heard.
    """

    def __init__(
        self,
        command: Sequence[str],
        given: str,
        environment: dict[str, str],
        hear: Callable[..., None],
        show: Callable[[str, IO[str]], None],
        ended: "SimpleQueue[_Process]",
    ) -> None:
        self.environment = environment
        self.task: Task | None = None  # that it runs
        self.began = False
        told, tells = os.pipe()
        self._popen = subprocess.Popen(
            command,
            env=os.environ | environment | {PIPE: str(tells), "PYTHONIOENCODING": "utf-8"},
            pass_fds=(tells,),
            process_group=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
        os.close(tells)
        self.pid = self._popen.pid
        self._hear, self._show, self._ended = hear, show, ended
        assert self._popen.stdin
        assert self._popen.stdout
        assert self._popen.stderr
        threading.Thread(target=_give, args=(given, self._popen.stdin), daemon=True).start()
        readers = [
            threading.Thread(target=self._listen, args=(told,), daemon=True),
            threading.Thread(target=self._pass_on, args=(self._popen.stdout, sys.stdout), daemon=True),
            threading.Thread(target=self._pass_on, args=(self._popen.stderr, sys.stderr), daemon=True),
        ]
        for reader in readers:
            reader.start()
        threading.Thread(target=self._wait, args=(readers,), daemon=True).start()

    @property
    def code(self) -> int:
        """The exit code, minus the signal's number when one has ended it; only after the end."""
        assert self._popen.returncode is not None
        return self._popen.returncode

    def signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        self._popen.send_signal(number)

    def _listen(self, told: int) -> None:
        with open(told, encoding="utf-8") as lines:
            for line in lines:
                with suppress(json.JSONDecodeError):  # cut short by a kill
                    self._hear(self, *json.loads(line))

    def _pass_on(self, lines: IO[str], to: IO[str]) -> None:
        for line in lines:
            self._show(line.rstrip("\n"), to)

    def _wait(self, readers: Sequence[threading.Thread]) -> None:
        self._popen.wait()
        for reader in readers:
            reader.join(10)  # processes that decode images may hold the pipes a little longer
        self._ended.put(self)


def _give(text: str, to: IO[str]) -> None:
    """Write what a process reads, which may be more than a pipe holds; it may end before it has read it."""
    with suppress(BrokenPipeError), to:
        to.write(text)
