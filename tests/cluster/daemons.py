"""A real Slurm of two nodes on this machine: munge, slurmctld and two slurmd on loopback, in a folder of their own."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from tests.run import processes

NODES = ("n1", "n2")
until = partial(processes.until, seconds=300, pause=0.05)  # asks seldom enough to leave the CPUs to the jobs
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo", "runuser")


def why_not() -> str | None:
    """Return why no Slurm can be started here; None when it can."""
    if os.geteuid() != 0:
        return "starting a Slurm takes root"
    if missing := [name for name in NEEDED if not shutil.which(name)]:
        return f"no {', '.join(missing)} here; on Debian: apt-get install slurm-wlm munge"
    return None


class Slurm:
    """A cluster of two nodes with one CPU each, below a folder; `environment` is that in which its commands find it.

    Jobs in its partition `urgent` preempt those in `main`, which have a minute to leave.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.conf, self.munge = folder, folder / "slurm.conf", folder / "munge"
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf)}
        self.started = False

    def start(self) -> None:
        """Start all daemons and wait until both nodes are idle."""
        self.munge.mkdir(mode=0o755)
        key = self.munge / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        for path in (self.munge, key):
            shutil.chown(path, "munge", "munge")
        paths = {"key-file": key, "socket": self.munge / "socket"}
        paths |= {f"{name}-file": self.munge / f"munged.{name}" for name in ("pid", "log", "seed")}
        words = [f"--{name}={path}" for name, path in paths.items()]
        subprocess.run(["runuser", "-u", "munge", "--", "munged", *words], check=True)
        for name in ("state", "spool", "log"):
            (self.folder / name).mkdir()
        self.conf.write_text(self._configuration())
        self.run("slurmctld", "-L", str(self.folder / "log" / "slurmctld"))
        self.started = True
        for node in NODES:
            self.start_node(node)

    def start_node(self, node: str) -> None:
        """Start the daemon of a node, and wait until it is idle."""
        self.run("slurmd", "-N", node, "-L", str(self.folder / "log" / node))
        until(lambda: self.nodes().get(node) == "idle")

    def lose_node(self, node: str) -> None:
        """Kill a node at once: its daemon, the keepers of its jobs, so that they tell nobody, and their processes."""
        jobs = [pid for pid in _processes() if _has(pid, f"SLURMD_NODENAME={node}") and _has(pid, str(self.conf))]
        keepers = {_parent(pid) for pid in jobs} - {*jobs}
        for pid in [int((self.folder / f"{node}.pid").read_text()), *keepers, *jobs]:
            if pid > 1:
                _kill(pid, signal.SIGKILL)

    def nodes(self) -> dict[str, str]:
        """Return the state of each node; nothing while the controller starts."""
        with suppress(subprocess.CalledProcessError):
            return dict(line.split() for line in self.run("sinfo", "-h", "-N", "-o", "%N %t").splitlines())
        return {}

    def run(self, *words: str) -> str:
        """Return what a command of Slurm prints. Raises CalledProcessError."""
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, check=True).stdout

    def stop(self) -> None:
        """End all jobs and all daemons, whatever state they are in."""
        if self.started:  # or these would wait for a controller that is not there
            self._end_jobs()
        for path in [*(self.folder / f"{name}.pid" for name in (*NODES, "slurmctld")), self.munge / "munged.pid"]:
            with suppress(OSError, ValueError):
                _kill(int(path.read_text()), signal.SIGTERM)
        with suppress(AssertionError):
            until(lambda: not self._processes(), seconds=10)
        for pid in self._processes():
            _kill(pid, signal.SIGKILL)
        with suppress(OSError, ValueError):
            _kill(int((self.munge / "munged.pid").read_text()), signal.SIGKILL)

    def _end_jobs(self) -> None:
        with suppress(subprocess.CalledProcessError, AssertionError):
            self.run("scancel", "--user=root")
            self.run("scancel", "--signal=KILL", "--full", "--user=root")
            until(lambda: not self.run("squeue", "-h"), seconds=40)

    def _processes(self) -> list[int]:
        """Return the processes that the cluster consists of, jobs among them."""
        return [pid for pid in _processes() if _has(pid, str(self.conf)) and pid != os.getpid()]

    def _configuration(self) -> str:
        host, (control, *ports) = socket.gethostname().partition(".")[0], _free_ports(1 + len(NODES))
        lines = [
            "ClusterName=test",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={control}",
            "SlurmUser=root",
            "SlurmdUser=root",
            "AuthType=auth/munge",
            "CredType=cred/munge",
            # A job that goes back into the queue waits for as long as a credential may live: not the usual two minutes.
            f"AuthInfo=socket={self.munge / 'socket'},cred_expire=5",
            f"StateSaveLocation={self.folder}/state",
            f"SlurmdSpoolDir={self.folder}/spool/%n",
            f"SlurmctldPidFile={self.folder}/slurmctld.pid",
            f"SlurmdPidFile={self.folder}/%n.pid",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "JobAcctGatherType=jobacct_gather/none",
            "AccountingStorageType=accounting_storage/none",
            "MpiDefault=none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core",
            "ReturnToService=2",
            "SlurmdTimeout=10",
            "SchedulerParameters=batch_sched_delay=0,sched_interval=2",
            *(f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1"
              for node, port in zip(NODES, ports, strict=True)),
            "PreemptType=preempt/partition_prio",
            "PreemptMode=REQUEUE",
            f"PartitionName=main Nodes={','.join(NODES)} Default=YES PriorityTier=1 GraceTime=60 State=UP",
            f"PartitionName=urgent Nodes={','.join(NODES)} PriorityTier=9 State=UP",
        ]  # fmt: skip
        return "\n".join(lines) + "\n"


@contextmanager
def running(folder: Path) -> Iterator[Slurm]:
    """Yield a Slurm that runs below a folder, and stop it in the end."""
    slurm = Slurm(folder)
    with ExitStack() as stack:
        stack.callback(slurm.stop)
        slurm.start()
        yield slurm


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _has(pid: int, text: str) -> bool:
    """Return whether a text is in a process's environment."""
    try:
        return text.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
    except OSError:
        return 0


def _kill(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
