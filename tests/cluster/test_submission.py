"""What is handed to Slurm, and what a job does, with scripts in the place of Slurm's commands that note their words.

That Slurm does with it what is meant is seen on a real one (`test_slurm.py`, slow).
"""

import json
import os
import pickle
import re
import shlex
import signal
import stat
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest

from bench.core.environment import own_command
from bench.core.errors import UserError
from bench.core.paths import Paths
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.plan.graph import Task, plan
from bench.plan.state import Outcome
from bench.run import slurm_job
from bench.run.executors import Resources, Work, find_executor
from bench.run.executors.slurm import Job, cancel, grouped, jobs_of
from bench.run.request import RunRequest
from bench.run.status import state_of
from bench.run.together import ON_A_NODE, torchrun
from tests.run.processes import ROOT, bench, until

GRID = """
backbone: resnet_small
datasets: [{name: digits}]
seeds: [0, 1]
budgets: [0.5]
arms:
  - {method: byol, budgets: [0.2, 1.0]}
  - {name: first, method: byol, rela: {prior: DIGITS-T}}
  - {name: second, method: byol, budgets: [0.2, 0.5], rela: {prior: DIGITS-T, phase: 0.5}}
  - {name: matched, method: simclr, flops_of: first}
"""
SBATCH = """
number=$(($(cat "$STAND_IN/number" 2>/dev/null || echo 10) + 1))
echo $number > "$STAND_IN/number"
cp "${@: -1}" "$STAND_IN/$number.sh"
echo "Submitted batch job $number"
"""


class StandIn:
    """Scripts in the place of Slurm's commands, in a folder that is first on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.put("srun", "")
        self.put("sbatch", SBATCH)
        self.put("squeue", 'echo squeue "$@" >> "$STAND_IN/asked"; cat "$STAND_IN/queue"')
        for name in ("scancel", "scontrol"):
            self.put(name, f'echo {name} "$@" >> "$STAND_IN/told"')
        self.queue("")

    def put(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def queue(self, text: str) -> None:
        (self.folder / "queue").write_text(text)

    @property
    def told(self) -> list[str]:
        path = self.folder / "told"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def scripts(self) -> dict[int, dict[str, str]]:
        """What `sbatch` was given: the options of each job."""
        found = {}
        for path in sorted(self.folder.glob("*.sh")):
            found[int(path.stem)] = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", path.read_text(), re.MULTILINE))
        return found


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    folder = tmp_path / "commands"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("STAND_IN", str(folder))
    return StandIn(folder)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(data=tmp_path / "data", results=tmp_path / "results", grid="g")


def planned(paths: Paths) -> list[Task]:
    path = paths.data.parent / "g.yaml"
    path.write_text(GRID)
    cells = expand(load_grid(str(path)))
    return plan(cells, cells, paths, "grid g")


def submit(paths: Paths, tasks: list[Task], **options: object) -> list[Outcome]:
    request = RunRequest(str(paths.data.parent / "g.yaml"), data_root=paths.data, results=paths.results)
    runs = find_executor("slurm", "cpu", Resources(**options))  # type: ignore[arg-type]
    return runs.run(Work(tasks, paths, request))


def at(tasks: list[Task], arm: str, seed: int, budget: float = 0.5) -> Task:
    (found,) = (t for t in tasks if (t.cell.arm, t.cell.seed, t.cell.budget) == (arm, seed, budget))
    return found


def test_what_is_ready_is_one_array_and_the_rest_waits_for_the_one_job_that_it_needs(
    paths: Paths, stand_in: StandIn
) -> None:
    tasks = planned(paths)
    outcomes = submit(paths, tasks, gpus_per_cell=4, slurm=("partition=gpu", "nodes=2", "array_parallelism=3"))
    assert {outcome.status for outcome in outcomes} == {"queued"}
    jobs = {cell: job.id for cell, job in jobs_of(paths).items()}
    assert jobs.keys() == {task.id for task in tasks}
    assert len(set(jobs.values())) == len(tasks) == 12
    ready = [task for task in tasks if not task.needs]
    assert sorted(jobs[task.id] for task in ready) == [f"11_{index}" for index in range(4)]
    assert {jobs[at(tasks, "byol", seed, 1.0).id] for seed in (0, 1)} == {"11_0", "11_1"}  # what others wait for
    for seed in (0, 1):
        maker, first = at(tasks, "byol", seed, 1.0), at(tasks, "first", seed)
        users = [first, at(tasks, "second", seed, 0.2), at(tasks, "second", seed, 0.5)]
        (array,) = {jobs[task.id].partition("_")[0] for task in users}
        assert stand_in.scripts[int(array)]["dependency"] == f"afterok:{jobs[maker.id]}"
        assert stand_in.scripts[int(array)]["array"] == "0-2%3"
        alone = stand_in.scripts[int(jobs[at(tasks, "matched", seed).id])]
        assert alone["dependency"] == f"afterok:{jobs[first.id]}"
        assert "array" not in alone
    assert len(stand_in.scripts) == 5
    for options in stand_in.scripts.values():
        assert options["partition"] == "gpu"
        assert (options["nodes"], options["gpus-per-node"], options["ntasks-per-node"]) == ("2", "2", "1")
        assert options["kill-on-invalid-dep"] == "yes"
        assert options["requeue"] == ""
        assert options["signal"] == "USR2@90"
        assert options["job-name"] == "rela-bench:g"
    assert "dependency" not in stand_in.scripts[11]
    assert stand_in.scripts[11]["array"] == "0-3%3"


def test_what_is_pickled_is_words_and_a_number_in_a_folder_of_its_owner(paths: Paths, stand_in: StandIn) -> None:
    tasks = planned(paths)
    submit(paths, tasks)
    folder = paths.records / ".work" / "slurm"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    pickled = list(folder.glob("*_submitted.pkl"))
    assert len(pickled) == len(tasks)
    for path in pickled:
        loaded = Narrow(path.open("rb"))
        with loaded.file:
            submission = loaded.load()
        words, nodes, checkpoint = submission.args
        assert words[:6] == [sys.executable, "-m", "bench", "run", "--grid", str(paths.data.parent / "g.yaml")]
        assert words[-2] == "--cell"
        assert words[-1] in {task.id for task in tasks}
        assert "--gpus-per-cell" not in words
        assert checkpoint == str((paths.work(words[-1]) / "checkpoint.pt").absolute())
        assert (submission.function, nodes, submission.kwargs) == (slurm_job.run, 1, {})


class Narrow(pickle.Unpickler):
    """Loads a pickle that names nothing but what is known."""

    KNOWN = frozenset({("submitit.core.utils", "DelayedSubmission"), ("bench.run.slurm_job", "run")})

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.file = file

    def find_class(self, module: str, name: str) -> Any:
        assert (module, name) in self.KNOWN
        return super().find_class(module, name)


def test_only_what_is_neither_done_nor_queued_is_submitted(
    paths: Paths, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = planned(paths)
    submit(paths, tasks)
    jobs = {cell: job.id for cell, job in jobs_of(paths).items()}
    stand_in.queue("".join(f"{job}|PENDING||Priority\n" for job in jobs.values()))
    assert {outcome.status for outcome in submit(paths, tasks)} == {"queued"}
    assert "nothing to submit: 12 cells are in the queue already" in capsys.readouterr().out
    gone = [at(tasks, "byol", 0, 0.2), at(tasks, "first", 1)]
    stand_in.queue(
        "".join(f"{job}|RUNNING|n1|None\n" for cell, job in jobs.items() if cell not in {t.id for t in gone})
    )
    submit(paths, tasks)
    assert sorted(stand_in.scripts) == list(range(11, 18))
    fresh = {task.id: stand_in.scripts[int(jobs_of(paths)[task.id].id)] for task in gone}
    assert "dependency" not in fresh[gone[0].id]
    assert fresh[gone[1].id]["dependency"] == f"afterok:{jobs[at(tasks, 'byol', 1, 1.0).id]}"
    asked = (stand_in.folder / "asked").read_text().splitlines()
    assert all("--name=rela-bench:g" in line for line in asked)


def test_a_cell_whose_need_nobody_runs_is_skipped_with_all_that_follow(paths: Paths, stand_in: StandIn) -> None:
    tasks = planned(paths)
    without = [task for task in tasks if task is not at(tasks, "byol", 0, 1.0)]
    outcomes = submit(paths, without)
    skipped = {outcome.task.id: outcome.reason for outcome in outcomes if outcome.status == "skipped"}
    mine = [t for t in without if t.cell.seed == 0 and t.needs]
    assert skipped.keys() == {task.id for task in mine}
    need = at(tasks, "first", 0)
    assert skipped[at(tasks, "matched", 0).id].startswith(f"the cell {need.id} that it needs is neither done nor")


def test_groups_come_after_what_they_need(paths: Paths) -> None:
    tasks = planned(paths)
    groups, left_out = grouped(tasks, {task.id for task in tasks}, set())
    assert not left_out
    seen: set[str] = {""}
    for needed, members in groups.items():
        assert needed in seen
        seen |= {task.id for task in members}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"gpus_per_cell": 3, "slurm": ("nodes=2",)}, "--gpus-per-cell 3 is not a multiple of --slurm nodes=2"),
        ({"slurm": ("nodes=many",)}, "--slurm nodes=many: must be a whole number, at least 1"),
        ({"slurm": ("array-parallelism=0",)}, "--slurm array-parallelism=0: must be a whole number, at least 1"),
        ({"slurm": ("account",)}, ""),
        ({"slurm": ("=x",)}, "--slurm =x: must be KEY=VALUE"),
        ({"slurm": ("time=",)}, "--slurm time=: must be KEY=VALUE"),
        ({"slurm": ("--array=1-3",)}, "array is set by --executor slurm itself"),
        ({"slurm": ("ntasks_per_node=3",)}, "ntasks-per-node is set by --executor slurm itself"),
        ({"jobs": 3}, "--jobs is not an option of --executor slurm"),
    ],
)
def test_options_that_cannot_be_are_one_sentence(stand_in: StandIn, options: dict[str, object], sentence: str) -> None:
    if not sentence:
        find_executor("slurm", "cpu", Resources(**options))  # type: ignore[arg-type]
        return
    with pytest.raises(UserError, match=re.escape(sentence)):
        find_executor("slurm", "cpu", Resources(**options))  # type: ignore[arg-type]


def test_further_options_reach_sbatch(paths: Paths, stand_in: StandIn) -> None:
    submit(paths, planned(paths)[:1], slurm=("account=abc", "time=1-00:00:00", "exclusive", "mem_per_gpu=8G"))
    (options,) = stand_in.scripts.values()
    assert options.items() >= {"account": "abc", "time": "1-00:00:00", "exclusive": "", "mem-per-gpu": "8G"}.items()
    assert "partition" not in options


def test_no_cluster_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no `sbatch` here"):
        find_executor("slurm", "cpu", Resources())


def test_no_submitit_is_one_sentence(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"needs submitit: pip install 'rela-bench\[slurm\]'"):
        find_executor("slurm", "cpu", Resources())


def test_nothing_is_submitted_while_the_queue_is_not_known(paths: Paths, stand_in: StandIn) -> None:
    tasks = planned(paths)
    submit(paths, tasks)
    stand_in.put("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(UserError, match="`squeue` gives no answer"):
        submit(paths, tasks)
    assert len(stand_in.scripts) == 5


def test_a_forged_note_names_no_job(paths: Paths, stand_in: StandIn) -> None:
    for number, content in enumerate(['{"job": "--user=root"}', '{"job": 3}', "[]", '{"job": "1; rm"}', "{"]):
        (paths.records / ".work" / f"cell{number}").mkdir(parents=True)
        (paths.records / ".work" / f"cell{number}" / "slurm.json").write_text(content)
    assert jobs_of(paths) == {}
    assert cancel(paths) == []


def test_what_slurm_refuses_is_one_sentence_and_what_it_took_before_stays(
    paths: Paths, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    """The words are those of Slurm 22.05."""
    refuses = "sbatch: error: invalid partition specified: nope\nsbatch: error: Batch job submission failed: Invalid"
    stand_in.put("sbatch", f'grep -q afterok "${{@: -1}}" || {{ {SBATCH} exit; }}\necho "{refuses}" >&2; exit 1')
    tasks = planned(paths)
    with pytest.raises(UserError, match=r"^Slurm refuses the jobs: invalid partition specified: nope$"):
        submit(paths, tasks)
    assert capsys.readouterr().err == ""
    assert jobs_of(paths).keys() == {task.id for task in tasks if not task.needs}


def test_the_commands_that_are_printed_work(tmp_path: Path, stand_in: StandIn) -> None:
    (tmp_path / "my grid.yaml").write_text(GRID)
    words = ["--grid", tmp_path / "my grid.yaml", "--set", "name=mine", "--results", tmp_path / "r s"]
    ran = bench("run", *words, "--data-root", tmp_path / "d", "--executor", "slurm")
    assert ran.code == 0, ran.err
    said = [shlex.split(line.partition("  ")[0]) for line in ran.out.splitlines()[-2:]]
    status, cancelled = (words[words.index(verb) :] for words, verb in zip(said, ("status", "cancel"), strict=True))
    assert bench(*status).out.splitlines()[-1] == "12 waiting", "the stand-in has no queue"
    assert bench(*cancelled) == (0, "mine has no jobs in the queue\n", "")


def test_one_cell_is_a_job_and_that_is_said(
    paths: Paths, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(paths, [at(planned(paths), "byol", 0, 0.2)])
    assert "1 cell submitted, as a job by itself" in capsys.readouterr().out
    assert "array" not in stand_in.scripts[11]


def test_cancel_names_this_grid_s_jobs_alone(paths: Paths, stand_in: StandIn) -> None:
    tasks = planned(paths)
    submit(paths, tasks)
    submit(replace(paths, grid="other"), tasks)
    jobs = sorted(job.id for job in jobs_of(paths).values())
    stand_in.queue("".join(f"{job}|PENDING||Priority\n" for job in jobs[:3]))
    assert sorted(job.id for job in cancel(paths)) == jobs[:3]
    (told,) = stand_in.told
    assert sorted(told.split()[2:]) == jobs[:3]
    stand_in.queue("")
    assert cancel(paths) == []
    assert len(stand_in.told) == 1


def test_states_have_their_jobs(paths: Paths, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = planned(paths)
    submit(paths, tasks)
    task = at(tasks, "byol", 0, 1.0)
    number = jobs_of(paths)[task.id].id

    def state() -> str:
        return state_of(task, paths, jobs_of(paths)).text

    stand_in.queue(f"{number}|PENDING||Priority\n")
    assert state() == f"queued (job {number}, Priority)"
    stand_in.queue(f"{number}|RUNNING|n7|None\n")
    assert state() == f"running (job {number}, on n7), starting"
    stand_in.queue("")
    assert state() == "waiting"
    log = paths.records / ".work" / "slurm" / f"{number}_0_log.out"
    log.touch()
    assert state() == f"stopped: job {number} has left the queue; {log.absolute()}"
    lines = [
        {"time": "2026-01-01T00:00:00+00:00", "event": "start", "step": 0, "steps": 1000},
        {"time": "2026-01-01T00:10:00+00:00", "event": "resume", "step": 100, "steps": 1000},
        {"time": "2026-01-01T00:11:40+00:00", "event": "step", "step": 300, "steps": 1000},
        {"time": "2026-01-01T00:11:41+00:00", "event": "checkpoint", "step": 302},
    ]
    (paths.work(task.id) / "events.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert state().startswith(f"stopped: job {number} has left the queue, step 302; ")
    (paths.work(task.id) / "lock.1").write_text("{}")
    stand_in.queue(f"{number}|RUNNING|n7|None\n")
    # 200 steps took 100 s, 700 are left.
    after = r", step 302 of 1,000, about 5.8 minutes left; job " + number + ", on n7"
    assert re.fullmatch(r"running \(another runner, heartbeat \d s ago\)" + after, state())
    monkeypatch.setenv("PATH", str(paths.results))
    other = at(tasks, "byol", 1, 1.0)
    assert jobs_of(paths)[other.id].state is None
    assert state_of(other, paths, jobs_of(paths)).text.startswith("submitted: job ")


def test_a_job_without_a_queue_is_not_queued() -> None:
    assert [Job("1", Path("x"), state).queued for state in ("PENDING", "RUNNING", "", None)] == [
        True,
        True,
        False,
        False,
    ]


class Jobs:
    """`bench.run.slurm_job` in a process of its own, with a script in the place of the cell."""

    def __init__(self, folder: Path, stand_in: StandIn) -> None:
        self.folder, self.stand_in = folder, stand_in
        stand_in.put("squeue", 'cat "$STAND_IN/queue"')
        stand_in.queue("RUNNING\n")

    def start(self, cell: str, setting: str = "") -> subprocess.Popen[bytes]:
        (self.folder / "cell.py").write_text(textwrap.dedent(cell))
        words = [sys.executable, str(self.folder / "cell.py"), str(self.folder)]
        job = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import bench.run.slurm_job as job; {setting}"
        job += f"job.run({words!r}, 1, {str(self.folder / 'saved')!r})"
        environment = os.environ | {"SLURM_JOB_ID": "7"}
        return subprocess.Popen([sys.executable, "-c", job], env=environment, stderr=subprocess.DEVNULL)


@pytest.fixture
def jobs(tmp_path: Path, stand_in: StandIn) -> Jobs:
    return Jobs(tmp_path, stand_in)


SAVES = """
    import os, pathlib, signal, sys, time
    folder = pathlib.Path(sys.argv[1])
    def save(number, frame):
        (folder / "saved").write_text(str(number))
        sys.exit(130)
    signal.signal(signal.SIGTERM, save)
    (folder / "starts").write_text(str(os.getpid()))
    (folder / "starts").rename(folder / "ready")
    while True:
        time.sleep(0.05)
"""


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_warning_saves_the_cell_and_puts_the_job_back(tmp_path: Path, jobs: Jobs, number: int) -> None:
    job = jobs.start(SAVES)
    until((tmp_path / "ready").exists)
    job.send_signal(number)
    assert job.wait(30) == 130
    assert (tmp_path / "saved").read_text() == str(int(signal.SIGTERM))
    assert jobs.stand_in.told == ["scontrol requeue 7"]


@pytest.mark.parametrize("state", ["COMPLETING\n", ""])
def test_a_cancelled_job_is_not_put_back(tmp_path: Path, jobs: Jobs, state: str) -> None:
    jobs.stand_in.queue(state)
    job = jobs.start(SAVES)
    until((tmp_path / "ready").exists)
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == 130
    assert jobs.stand_in.told == []


@pytest.mark.parametrize(("number", "told"), [(signal.SIGUSR2, []), (signal.SIGTERM, ["scontrol requeue 7"])])
def test_a_time_limit_that_leaves_nothing_saved_puts_nothing_back(
    tmp_path: Path, jobs: Jobs, number: int, told: list[str]
) -> None:
    """What was saved in an earlier round does not count; a preempted job has not had its time."""
    (tmp_path / "saved").touch()
    job = jobs.start(SAVES.replace('(folder / "saved").write_text(str(number))', ""))
    until((tmp_path / "ready").exists)
    job.send_signal(number)
    assert job.wait(30) == 130
    assert jobs.stand_in.told == told


def test_a_cell_that_does_not_save_itself_in_time_is_put_back_all_the_same(tmp_path: Path, jobs: Jobs) -> None:
    job = jobs.start(SAVES.replace("sys.exit(130)", "pass"), "job.SAVING_SECONDS = 0.1; ")
    until((tmp_path / "ready").exists)
    job.send_signal(signal.SIGUSR2)
    until(lambda: jobs.stand_in.told)
    assert job.poll() is None  # until Slurm ends it
    assert jobs.stand_in.told == ["scontrol requeue 7"]
    os.kill(int((tmp_path / "ready").read_text()), signal.SIGKILL)
    assert job.wait(30) == 128 + signal.SIGKILL


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_job_ends_as_its_cell_does(jobs: Jobs, code: int) -> None:
    assert jobs.start(f"import sys; sys.exit({code})").wait(30) == code
    assert jobs.stand_in.told == []


def test_a_cell_that_ends_well_after_a_warning_is_not_run_again(tmp_path: Path, jobs: Jobs) -> None:
    job = jobs.start(SAVES.replace("130", "0"))
    until((tmp_path / "ready").exists)
    job.send_signal(signal.SIGUSR2)
    assert job.wait(30) == 0
    assert jobs.stand_in.told == []


def test_a_cell_whose_process_is_killed_is_started_once_more_to_record_it(tmp_path: Path, jobs: Jobs) -> None:
    job = jobs.start("""
        import os, pathlib, signal, sys
        with (pathlib.Path(sys.argv[1]) / "launches").open("a") as file:
            print(os.environ["BENCH_LAUNCH"], file=file)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert job.wait(30) == 128 + signal.SIGKILL
    assert (tmp_path / "launches").read_text().splitlines() == ["slurm 7 0"] * 2


def test_the_cell_lives_through_the_warning_that_slurm_sends_to_all_processes(tmp_path: Path, jobs: Jobs) -> None:
    job = jobs.start("""
        import os, pathlib, signal, sys
        os.kill(os.getpid(), signal.SIGUSR2)
        sys.exit(3)
    """)
    assert job.wait(30) == 3


def test_several_processes_meet_on_the_first_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def words(processes: int, nodes: int, **more: str) -> str:
        slurm = {"SLURM_JOB_ID": "123456", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.5"}
        for key, value in (slurm | more).items():
            monkeypatch.setenv(key, value)
        return shlex.join(torchrun(processes, nodes, "PART"))

    program = f"--nproc-per-node=4 --no-python {shlex.join(own_command())} worker PART"
    assert words(4, 1) == f"{sys.executable} -m torch.distributed.run --standalone {program}"
    srun = "srun --overlap --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpu-bind=none sh -c "
    meeting = "--nnodes=2 --rdzv-backend=c10d --rdzv-endpoint=10.0.0.5:23456"
    start, options = words(8, 2).split(f" {sys.executable} ", 1)
    assert start.startswith(srun)
    assert options == f"{meeting} --rdzv-id=123456.0 {program}"
    assert f"--rdzv-id=123456.3 {program}" in words(8, 2, SLURM_RESTART_COUNT="3")


@pytest.mark.parametrize("node", [0, 1])
def test_each_node_knows_whether_it_is_the_one_where_they_meet_and_lives_through_the_warning(node: int) -> None:
    script = "import os, signal, sys; os.kill(os.getpid(), signal.SIGUSR2); print(*sys.argv[1:])"
    python = 'python() { shift 2; "$PYTHON" -c "$SCRIPT" "$@"; }; '  # in the place of `python -m torch.distributed.run`
    shell = ON_A_NODE.replace('exec "$0"', "python")
    ran = subprocess.run(
        ["sh", "-c", python + shell, "python", "--nnodes=2", "a word"],
        env=os.environ | {"SLURM_NODEID": str(node), "PYTHON": sys.executable, "SCRIPT": script},
        capture_output=True,
        text=True,
    )
    assert ran.stdout == f"--rdzv-conf=is_host={int(node == 0)} --nnodes=2 a word\n", ran.stderr


def test_a_cell_on_several_nodes_has_one_runner_on_the_first(paths: Paths, stand_in: StandIn) -> None:
    submit(paths, planned(paths)[:1], slurm=("nodes=2",))
    (script,) = stand_in.folder.glob("*.sh")
    assert "--nodes=1 --ntasks=1" in script.read_text()
    (pickled,) = (paths.records / ".work" / "slurm").glob("*_submitted.pkl")
    with pickled.open("rb") as file:
        words, nodes, _ = Narrow(file).load().args
    assert nodes == 2
    assert words[words.index("--gpus-per-cell") + 1] == "2"
