"""Runs that are killed, stopped, or out of disk: what they leave is what one that was never disturbed leaves."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.run.processes import ALWAYS, Forks, events, folder, images, left, strays, until

ONE = """
backbone: resnet_small
datasets: [{name: digits, train_images: 64}]
seeds: [3]
arms: [{method: moco, params: {queue: 64}, rela: {prior: rand, phase: 0.5}}]
protocol: {epochs: 2, batch_size: 32, input_size: 8, probe: {epochs: 3}, knn: {k: 5}}
"""
STREAMED = """
backbone: resnet_small
datasets: [streams]
seeds: [3]
arms: [{method: byol, rela: {prior: rand, phase: 0.5}}]
protocol: {epochs: 6, batch_size: 24, input_size: 8, blur: false, probe: {epochs: 2}, knn: {k: 5}}
"""
SLOW = """
import time
from pathlib import Path
from bench.data import loader as source

read = source.read_image

def slowly(path):
    Path({marker!r}).touch()
    until = time.monotonic() + 0.02
    while time.monotonic() < until:
        pass
    return read(path)

source.read_image = slowly
"""
LONG = ("--set", "protocol.epochs=4000")
KILLS = int(os.environ.get("BENCH_KILLS", "100"))
SEED = int(os.environ.get("BENCH_SEED", "0"))


def doing(folder: Path) -> str:
    """Return what a run was doing last, by its logs."""
    last = [(log.stat().st_mtime_ns, log) for log in folder.glob("results/tiny/.work/*/events.jsonl")]
    lines = max(last)[1].read_text().splitlines() if last else []
    try:
        return str(json.loads(lines[-1])["event"]) if lines else "nothing yet"
    except ValueError:
        return "a line of a log"


def spent(process: int) -> tuple[float, bool]:
    """Return the seconds of CPU time that a process has spent, whatever else the machine does, and if it has ended."""
    state, *rest = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return (int(rest[10]) + int(rest[11])) / os.sysconf("SC_CLK_TCK"), state == "Z"


def kill_at_random(server: Forks, base: Path, kills: int, seed: int) -> tuple[int, Counter[str]]:
    """Kill runs at random moments, compare what they leave in the end, begin anew; return how many were compared."""
    whole = folder(base / "whole")
    process = server.start(whole, environment=ALWAYS)
    until(lambda: spent(process)[1])
    longest = spent(process)[0] * 0.75
    assert server.wait(process) == 0, (whole / "out").read_text()
    expected, draw = left(whole), random.Random(seed)
    killed: Counter[str] = Counter()
    grids = 0
    while killed.total() < kills:
        cut, code = folder(base / f"cut{grids}"), -9
        while code == -9:
            process = server.start(cut, environment=ALWAYS)
            if killed.total() < kills:
                moment = draw.uniform(0, longest)
                until(lambda process=process, moment=moment: spent(process) >= (moment, False) or spent(process)[1])
                os.kill(process, signal.SIGKILL)
            code = server.wait(process)
            killed[doing(cut)] += code == -9
        assert code == 0, (cut / "out").read_text()
        assert left(cut) == expected
        assert strays(cut) == []
        grids += 1
    return grids, killed


@pytest.mark.slow
def test_a_run_that_is_killed_twice_leaves_what_one_leaves_that_is_not(server: Forks, tmp_path: Path) -> None:
    whole, cut = folder(tmp_path / "whole", ONE), folder(tmp_path / "cut", ONE)
    assert server.run(whole, die_at=0, out="out") == 0
    count = int((whole / "out.count").read_text())
    for die_at in (count // 2, count // 4):
        assert server.run(cut, die_at=die_at, environment=ALWAYS) == -9
    assert server.run(cut) == 0
    assert left(cut) == left(whole)
    assert strays(cut) == []


@pytest.mark.slow
def test_a_run_survives_kills_at_random_moments(server: Forks, tmp_path: Path) -> None:
    began = time.monotonic()
    grids, killed = kill_at_random(server, tmp_path, KILLS, SEED)
    print(f"{killed.total()} kills, {grids} grids of 4 cells compared, {time.monotonic() - began:.0f} s: {killed}")
    assert killed.total() == KILLS
    assert killed["nothing yet"] < KILLS / 2, "most of them had something to lose"


@pytest.mark.slow
def test_a_run_survives_a_kill_at_each_of_its_operations_on_files(server: Forks, tmp_path: Path) -> None:
    whole = folder(tmp_path / "whole", ONE)
    assert server.run(whole, die_at=0) == 0
    expected, count = left(whole), int((whole / "out.count").read_text())
    for die_at in range(1, count + 1):
        cut = folder(tmp_path / "cut", ONE)
        assert server.run(cut, die_at=die_at) in {-9, 0}, "0: a heartbeat more or less"
        assert server.run(cut) == 0, (cut / "out").read_text()
        assert left(cut) == expected, die_at
        assert strays(cut) == [], die_at
        shutil.rmtree(cut)
    print(f"{count} operations")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_saves_a_cell_whose_images_stream(
    number: signal.Signals, server: Forks, tmp_path: Path
) -> None:
    """As Ctrl-C does: the processes that decode images get it, too."""
    whole, cut = folder(tmp_path / "whole", STREAMED), folder(tmp_path / "cut", STREAMED)
    for each in (whole, cut):
        images(each, 48)
    # So that the main process mostly waits for those that decode.
    (cut / "slow.py").write_text(SLOW.format(marker=str(cut / "decoding")))
    plugins = ("--plugin", cut / "streams.py", "--plugin", cut / "slow.py")
    process = server.start(cut, *plugins, "--workers", "2")
    until(lambda: any(log[-1]["event"] == "start" for log in events(cut).values() if log))
    (cut / "decoding").unlink()  # of the targets
    until((cut / "decoding").exists)
    os.killpg(process, number)
    assert server.wait(process) == 130, (cut / "out").read_text()
    assert "the same command resumes it" in (cut / "out").read_text()
    (log,) = events(cut).values()
    assert log[-1]["event"] == "interrupted"
    assert "why" not in log[-1], "no worker has died"
    assert not list((cut / "results" / "tiny").glob("*.json")), "nothing is recorded as failed"
    saved = max(event["step"] for event in log if event["event"] == "checkpoint")
    assert server.run(cut, "--plugin", cut / "streams.py", "--workers", "1") == 0
    resumed = next(event for event in events(cut).popitem()[1] if event["event"] == "resume")
    assert resumed["step"] == saved, "no step is lost"
    assert server.run(whole, "--plugin", whole / "streams.py", "--workers", "0") == 0
    assert left(cut) == left(whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_stops_at_once(number: signal.Signals, server: Forks, tmp_path: Path) -> None:
    """The method stays in its third step for ever."""
    cut = folder(tmp_path / "cut", ONE.replace("method: moco, params: {queue: 64}", "method: hangs"))
    plugin = cut / "hangs.py"
    plugin.write_text(HANGS.format(folder=str(cut)))
    process = server.start(cut, "--plugin", plugin, *LONG)
    until((cut / "hanging").exists)
    os.kill(process, number)
    until((cut / "heard").exists)
    os.kill(process, number)
    code = server.wait(process)
    assert code == (130 if number == signal.SIGINT else -signal.SIGTERM), (cut / "out").read_text()


HANGS = """
import signal
from pathlib import Path
from methods import methods
from methods.byol import BYOL

@methods.register("hangs")
class Hangs(BYOL):
    steps = 0

    def after_step(self):
        self.steps += 1
        if self.steps == 3:
            (Path({folder!r}) / "hanging").touch()
            while signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
                pass
            (Path({folder!r}) / "heard").touch()
            while True:
                pass
        super().after_step()
"""


# Disks that are full


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "number", "code", "sentence"),
    [
        ("checkpoint.pt", 2, 2, "checkpoint.pt: cannot be written (File too large); finished cells and the last"),
        ("targets", 1, 2, "cannot be written (File too large)"),
        (".json", 1, 2, ".json: cannot be written (File too large)"),  # the record
    ],
)
def test_a_full_disk_is_one_sentence_and_what_was_there_stays(
    what: str, number: int, code: int, sentence: str, server: Forks, tmp_path: Path
) -> None:
    cut, whole = folder(tmp_path / "cut", ONE), folder(tmp_path / "whole", ONE)
    assert server.run(cut, full=what, number=number, environment=ALWAYS) == code
    assert sentence in (cut / "out").read_text()
    assert "Traceback" not in (cut / "out").read_text()
    assert not list((cut / "results" / "tiny").glob("*.json"))
    if what == "checkpoint.pt":
        (log,) = events(cut).values()
        assert [event["step"] for event in log if event["event"] == "checkpoint"] == [1]
    assert server.run(cut) == 0, (cut / "out").read_text()
    if what == "checkpoint.pt":
        assert next(e for e in events(cut).popitem()[1] if e["event"] == "resume")["step"] == 1
    assert server.run(whole) == 0
    assert left(cut) == left(whole)
    assert strays(cut) == []


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_small_disk(server: Forks, tmp_path: Path) -> None:
    """Its size is such that the first checkpoint finds no room beside what else is there."""
    cut, whole = folder(tmp_path / "cut", ONE), folder(tmp_path / "whole", ONE)
    assert server.run(whole) == 0
    (cut / "results").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(cut / "results")], check=True)
    try:
        code = server.run(cut, environment=ALWAYS)
        assert code == 2, (cut / "out").read_text()
        assert "cannot be written (No space left on device)" in (cut / "out").read_text()
        assert not list(cut.glob("results/tiny/*.json"))
        subprocess.run(["mount", "-o", "remount,size=100m", str(cut / "results")], check=True)
        assert server.run(cut) == 0
        assert left(cut) == left(whole)
    finally:
        subprocess.run(["umount", str(cut / "results")], check=True)
