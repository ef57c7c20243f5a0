"""The cells as jobs of a Slurm cluster, through submitit: what is ready in arrays, the rest behind what it needs."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

from bench.core.errors import UserError
from bench.core.files import atomic_write
from bench.core.paths import Paths
from bench.plan.graph import Ready, Task
from bench.plan.state import Outcome, is_done, to_run
from bench.run import slurm_job
from bench.run.executors import Executor, Resources, Work, executors
from bench.train.checkpoint import checkpoint_path

T = TypeVar("T")
NOTE = "slurm.json"  # in a cell's folder: its job
MINUTES = 240  # of a job, unless --slurm time=... says otherwise; a cell that takes longer goes on in the next round
ARRAY = 1000  # cells of an array, as many as Slurm takes unless it is told otherwise
WARNING_SECONDS = 90
# What --slurm cannot set: these make the jobs what `status`, `cancel` and the cells' order rely on.
OWN = {"array", "dependency", "error", "gpus", "gpus-per-node", "job-name", "kill-on-invalid-dep", "ntasks"}
OWN |= {"ntasks-per-node", "open-mode", "output", "requeue", "signal"}


@dataclass(frozen=True)
class Job:
    """A cell's job: `id` as Slurm writes it, such as 12 or 12_3, and where its output is.

    `state` is Slurm's word (PENDING, RUNNING, ...), "" when the job is not in the queue any more, None when Slurm
    cannot be asked from here; `where` is its node, or why it waits.
    """

    id: str
    log: Path
    state: str | None
    where: str = ""

    @property
    def queued(self) -> bool:
        """Whether the job waits or runs."""
        return bool(self.state)

    def __str__(self) -> str:
        return f"job {self.id}" + (f", {self.where}" if self.where else "")


@executors.register("slurm")
class Slurm(Executor):
    """On a cluster: submits the cells to Slurm and returns; `status` and `cancel` take it from there."""

    takes = frozenset({"gpus_per_cell", "slurm"})

    def __init__(self, device: str, resources: Resources) -> None:
        super().__init__(device, resources)
        self.further = dict(_setting(each) for each in resources.slurm or ())
        self.nodes = _count(self.further.pop("nodes", 1), "nodes")
        self.parallelism = _count(self.further.pop("array-parallelism", ARRAY), "array-parallelism")
        self.gpus = resources.gpus_per_cell or 0
        if self.gpus % self.nodes:
            raise UserError(
                f"--gpus-per-cell {self.gpus} is not a multiple of --slurm nodes={self.nodes}; change one of them"
            )
        if not shutil.which("sbatch"):
            raise UserError("--executor slurm: no `sbatch` here; run this where jobs are submitted to Slurm")
        try:
            import submitit  # noqa: F401
        except ImportError:
            raise UserError("--executor slurm needs submitit: pip install 'rela-bench[slurm]'") from None

    def run(self, work: Work) -> list[Outcome]:
        """Submit what is neither done nor queued, and return at once; what waits for a job is `queued`."""
        paths, known = work.paths, jobs_of(work.paths)
        if any(job.state is None for job in known.values()):
            raise UserError(
                "--executor slurm: `squeue` gives no answer, so what is in the queue is not known; try again"
            )
        jobs = {cell: job for cell, job in known.items() if job.queued}
        ready = to_run(work.tasks, paths)
        pending = {task.id for task in ready}
        fresh = [task for task in ready if task.id not in jobs]
        awaited = {_needed(task, paths) for task in fresh}
        fresh.sort(key=lambda task: task.id not in awaited)  # what others wait for begins first
        groups, left_out = grouped(fresh, awaited, jobs)
        arrays = [(needed, part) for needed, tasks in groups.items() for part in _parts(tasks)]
        for needed, tasks in arrays:
            after = jobs[needed] if needed else None
            jobs |= self._submitted(tasks, after, work)
            print(f"{_named(tasks, jobs)}{f', after job {after.id}' if after else ''}")
        self._say(len(fresh) - len(left_out), len(arrays), len(pending) - len(fresh))
        return [self._outcome(task, pending, left_out, jobs) for task in work.tasks]

    def _submitted(self, tasks: Sequence[Ready], after: Job | None, work: Work) -> dict[str, Job]:
        """Submit cells as one array, note each one's job, and return them by cell. Raises UserError."""
        import submitit

        folder = _own_folder(work.paths)
        executor = submitit.SlurmExecutor(folder)
        executor.update_parameters(**self._parameters(work.paths, after))
        processes = max(self.gpus, self.nodes)
        together = ["--gpus-per-cell", str(processes)] if processes > 1 else []
        words = [[*work.request.to_argv(), *together, "--cell", task.id] for task in tasks]
        nodes = [self.nodes] * len(tasks)
        checkpoints = [str(checkpoint_path(work.paths, task.id).absolute()) for task in tasks]
        try:
            with redirect_stderr(StringIO()):  # where submitit repeats what Slurm says
                submitted = executor.map_array(slurm_job.run, words, nodes, checkpoints)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise UserError(f"Slurm refuses the jobs: {_complaint(str(error))}") from error
        made = {}
        for task, each in zip(tasks, submitted, strict=True):
            made[task.id] = Job(each.job_id, _log(folder, each.job_id), "PENDING")
            with atomic_write(work.paths.work(task.id) / NOTE) as file:
                noted = {"job": each.job_id, "submitted": datetime.now(UTC).isoformat(timespec="seconds")}
                file.write(json.dumps(noted).encode())
        return made

    def _parameters(self, paths: Paths, after: Job | None) -> dict[str, Any]:
        """Return what submitit is to tell `sbatch`."""
        return {
            "job_name": _name(paths),
            "time": MINUTES,
            "nodes": self.nodes,
            "ntasks_per_node": 1,
            "gpus_per_node": self.gpus // self.nodes or None,
            "array_parallelism": self.parallelism,
            # One runner, on the first node, which starts the processes of the cell on all of them.
            "srun_args": ["--nodes=1", "--ntasks=1"] if self.nodes > 1 else None,
            "dependency": f"afterok:{after.id}" if after else None,
            "signal_delay_s": WARNING_SECONDS,
            "stderr_to_stdout": True,
            "wckey": None,  # submitit's own would be refused where keys are checked
            # From version 22.05 on, `srun` does not see by itself what the job has asked for.
            "setup": ['[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"'],
            "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes", **self.further},
        }

    def _say(self, submitted: int, arrays: int, before: int) -> None:
        if not submitted:
            print("nothing to submit" + (f": {before} cells are in the queue already" if before else ""))
        elif submitted == 1:
            print("1 cell submitted, as a job by itself; for so little, --executor local is as good")
        else:
            print(f"{submitted} cells submitted, in {arrays} {'group' if arrays == 1 else 'groups'}")

    def _outcome(
        self, task: Task, pending: Collection[str], left_out: Mapping[str, str], jobs: Mapping[str, Job]
    ) -> Outcome:
        if not isinstance(task, Ready):
            return Outcome(task, "skipped", reason=task.reason)
        if task.id in left_out:
            return Outcome(task, "skipped", reason=left_out[task.id])
        if task.id in pending:
            return Outcome(task, "queued", reason=str(jobs[task.id]))
        return Outcome(task, "done", cached=True)


def grouped(
    tasks: Iterable[Ready], awaited: Collection[str], queued: Collection[str]
) -> tuple[dict[str, list[Ready]], dict[str, str]]:
    """Return tasks by the id of the one that they wait for, "" for none, and why others cannot be submitted, by id.

    One job that is waited for makes one array: Slurm lets only a whole array wait for an element of another one. Tasks,
    and so the groups, come after what they need. `awaited` are the ids of those that are needed and not done, `queued`
    of those that have jobs.
    """
    groups: dict[str, list[Ready]] = {}
    left_out: dict[str, str] = {}
    there = set(queued)
    for task in tasks:
        needed = task.needs.id if task.needs and task.needs.id in awaited else ""
        if needed and needed not in there:
            left_out[task.id] = f"the cell {needed} that it needs is neither done nor among those to run"
            continue
        groups.setdefault(needed, []).append(task)
        there.add(task.id)
    return groups, left_out


def jobs_of(paths: Paths) -> dict[str, Job]:
    """Return the jobs that were submitted for the cells of a grid, by the cells' ids; Slurm is asked once."""
    noted = dict(_noted(paths))
    if not noted:
        return {}
    queue = _queue(paths)
    jobs = {}
    for cell, number in noted.items():
        state, where = queue.get(number, ("", "")) if queue is not None else (None, "")
        jobs[cell] = Job(number, _log(_folder(paths), number), state, where)
    return jobs


def cancel(paths: Paths) -> list[Job]:
    """Take a grid's jobs out of the queue and return them; a cell that runs saves itself. Raises UserError."""
    jobs = [job for job in jobs_of(paths).values() if job.queued or job.state is None]
    if jobs and not shutil.which("scancel"):
        raise UserError("cancel: no `scancel` here; run this where jobs are submitted to Slurm")
    for part in _parts(jobs):
        done = subprocess.run(
            ["scancel", "--quiet", *(job.id for job in part)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise UserError(f"cancel: Slurm refuses: {_complaint(done.stderr)}")
    return jobs


def _needed(task: Ready, paths: Paths) -> str:
    """Return the id of the cell that a task has to wait for, "" when there is none or it is done."""
    if task.needs is None or is_done(task.needs, paths, backbone_needed=not task.cell.matches):
        return ""
    return task.needs.id


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + ARRAY] for start in range(0, len(items), ARRAY))


def _setting(text: str) -> tuple[str, str | bool]:
    """Return the key and value of a `--slurm` option. Raises UserError."""
    key, equals, value = text.partition("=")
    key = key.strip().removeprefix("--").replace("_", "-")
    if not key or (equals and not value):
        raise UserError(f"--slurm {text}: must be KEY=VALUE, such as account=abc or time=1-00:00:00")
    if key in OWN:
        raise UserError(f"--slurm {text}: {key} is set by --executor slurm itself; `run --help` has its options")
    return key, value if equals else True


def _count(value: str | bool | int, key: str) -> int:
    """Return the number that a `--slurm` option has. Raises UserError."""
    if not (str(value).isascii() and str(value).isdecimal() and int(value)):
        raise UserError(f"--slurm {key}={value}: must be a whole number, at least 1")
    return int(value)


def _queue(paths: Paths) -> dict[str, tuple[str, str]] | None:
    """Return state, and node or reason, of each job of the grid in Slurm's queue, or None if it cannot be asked."""
    words = ["squeue", "--noheader", "--array", f"--name={_name(paths)}", "--format=%i|%T|%N|%r"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    rows = (line.strip().split("|", 3) for line in done.stdout.splitlines() if line.count("|") >= 3)
    return {number: (state, f"on {node}" if node else reason) for number, state, node, reason in rows}


def _noted(paths: Paths) -> Iterator[tuple[str, str]]:
    """Yield each cell that was submitted, and its job."""
    for path in sorted((paths.records / ".work").glob(f"*/{NOTE}")):
        with suppress(OSError, ValueError, LookupError, TypeError):  # somebody may have edited it
            number = json.loads(path.read_text())["job"]
            if re.fullmatch(r"\d+(_\d+)?", number):
                yield path.parent.name, number


def _name(paths: Paths) -> str:
    return f"rela-bench:{paths.grid}"


def _folder(paths: Paths) -> Path:
    return (paths.records / ".work" / "slurm").absolute()


def _own_folder(paths: Paths) -> Path:
    """Return where submitit puts its pickles, having made it one that only its owner can enter. Raises UserError."""
    folder = _folder(paths)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UserError(
            f"{folder}: belongs to another user, and jobs would load pickles from it; use a --results folder of your"
            " own, and `merge` brings records together"
        )
    folder.chmod(0o700)
    return folder


def _log(folder: Path, number: str) -> Path:
    return folder / f"{number}_0_log.out"


def _named(tasks: Sequence[Ready], jobs: Mapping[str, Job]) -> str:
    first, last = jobs[tasks[0].id].id, jobs[tasks[-1].id].id
    return f"job {first}: 1 cell" if len(tasks) == 1 else f"jobs {first} to {last}: {len(tasks)} cells"


def _complaint(text: str) -> str:
    """Return the error line of a Slurm command's output, or else its first line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    complaint = next((line for line in lines if "error:" in line), lines[0] if lines else "it does not say why")
    return re.sub(r"^\w+: (error: )?", "", complaint)
