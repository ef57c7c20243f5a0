"""What this process takes from its surroundings: streams that may be anything, and variables that others have set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.core import distributed
from bench.core.device import find_device
from bench.core.environment import SIDE_BY_SIDE, TORCHRUN, in_torchrun, side_by_side
from bench.core.errors import UserError
from tests.run.processes import ROOT, bench, folder

TALK = """
import os, sys
from bench.core.environment import keep_talking
keep_talking()
open(sys.argv[1], "w").write("the work")
for line in range(9999):
    print(line, "50 \\N{PLUS-MINUS SIGN} 1 \\N{GREEK SMALL LETTER RHO} \\udc80")
print("\\N{EM DASH}", file=sys.stderr)
sys.stdout.flush()
assert open(sys.argv[1]).read() == "the work"
open(sys.argv[1], "a").write(", done; " + sys.stdin.read())
"""
GRID = """
backbone: resnet_small
datasets: [{name: digits, train_images: 64}]
seeds: [0]
arms: [{name: "\N{LATIN SMALL LETTER U WITH DIAERESIS} \N{GREEK SMALL LETTER RHO}", method: simsiam}, {method: byol}]
protocol: {epochs: 1, batch_size: 32, input_size: 8, probe: {epochs: 1}, knn: {k: 5}}
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1:strict", "utf-8"])
def test_letters_that_a_stream_cannot_show_are_spelled_out(encoding: str, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", TALK, tmp_path / "work"],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": encoding},
        input=b"\xe4",
        capture_output=True,
    )
    assert ran.returncode == 0, ran.stderr
    said = "50 \N{PLUS-MINUS SIGN} 1 \N{GREEK SMALL LETTER RHO} \\udc80\n"
    name = encoding.partition(":")[0]
    assert ran.stdout.decode(name).splitlines(keepends=True)[0] == f"0 {said}".encode(name, "backslashreplace").decode(
        name
    )
    assert ran.stderr.decode(name) == "\N{EM DASH}\n".encode(name, "backslashreplace").decode(name)
    assert (tmp_path / "work").read_bytes().startswith(b"the work, done; ")


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_closed_stream_ends_no_work_and_no_file_takes_its_number(closed: tuple[int, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-c", TALK, str(tmp_path / "work")]
    shell = 'exec "$@" ' + " ".join(f"{number}>&-" for number in closed)
    ran = subprocess.run(["sh", "-c", shell, "sh", *command], cwd=ROOT, input=b"", capture_output=True)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "work").read_text() == "the work, done; "


def test_a_reader_that_has_gone_and_a_full_disk_end_no_work(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-c", TALK, tmp_path / "work"]
    ran = subprocess.run(command, cwd=ROOT, input=b"", stdout=writes, stderr=subprocess.PIPE)
    os.close(writes)
    assert (ran.returncode, ran.stderr.decode()) == (0, "\N{EM DASH}\n")
    assert (tmp_path / "work").read_text() == "the work, done; "
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(command, cwd=ROOT, input=b"", stdout=full, stderr=subprocess.PIPE)
    assert ran.returncode == 0
    assert ran.stderr.decode().count("No space left on device") == 1


def test_a_pipe_that_does_not_wait_gets_all(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    with subprocess.Popen(
        [sys.executable, "-c", TALK, tmp_path / "work"], cwd=ROOT, stdin=-3, stdout=writes
    ) as started:
        os.close(writes)
        with os.fdopen(reads, encoding="utf-8") as lines:
            assert len(lines.readlines()) == 9999
    assert started.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [[], ["--jobs", "2"]])
def test_a_run_goes_on_when_nobody_can_read_what_it_says(jobs: list[str], tmp_path: Path) -> None:
    here = folder(tmp_path / "here", GRID)
    words = ["run", "--grid", here / "tiny.yaml", "--results", here / "r", "--data-root", here / "d", "--device", "cpu"]
    ran = subprocess.run(
        ["sh", "-c", '"$@" | true', "sh", sys.executable, "-m", "bench", *words, *jobs],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert ran.stderr == ""
    assert len(list((here / "r" / "tiny").glob("*.json"))) == 2


@pytest.mark.parametrize(
    "variables",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": ""},
        {"WORLD_SIZE": "many", "RANK": "first", "LOCAL_RANK": "x"},
        {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"},  # as a job of Kubernetes has
        dict.fromkeys(TORCHRUN, ""),
    ],
)
def test_without_all_that_torchrun_sets_this_is_one_process(
    variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert not in_torchrun()
    with monkeypatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: True)
        assert find_device("auto").index is None
    here = folder(tmp_path / "here", GRID)
    ran = bench("run", "--grid", here / "tiny.yaml", "--results", here / "r", "--data-root", here, "--device", "cpu")
    assert ran.code == 0, ran.err
    assert "2 of 2 cells done (0 before)" in ran.out


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"RANK": "first"}, "RANK=first in the environment is not a whole number; unset it"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE=-1 in the environment is not a whole number; unset it"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT=http in the environment is not a whole number; unset it"),
        ({"RANK": "2"}, "RANK=2, LOCAL_RANK=1 and WORLD_SIZE=2 are no process of torchrun; unset them"),
    ],
)
def test_variables_that_cannot_be_torchruns_are_one_sentence(
    variables: dict[str, str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "29500", "MASTER_ADDR": "localhost"}
    for name, value in (whole | variables).items():
        monkeypatch.setenv(name, value)
    ran = bench("run", "--grid", "quickstart", "--device", "cpu", "--jobs", "1")
    assert (ran.code, ran.err) == (2, f"error: {why}\n")
    monkeypatch.setenv(SIDE_BY_SIDE, "two")
    with pytest.raises(UserError, match=f"{SIDE_BY_SIDE}=two in the environment is not a whole number"):
        side_by_side()


@pytest.mark.parametrize(("rank", "said"), [("0", True), ("1", False)])
def test_torchrun_is_for_cells_and_that_is_said_once(rank: str, said: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_PORT": "1", "MASTER_ADDR": "localhost"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    ran = bench("run", "quickstart")
    assert (ran.code, ran.out, bool(ran.err)) == (2, "", said)
    if said:
        assert "`run` starts torchrun itself" in ran.err
        assert "`run --gpus-per-cell 2`" in ran.err


def test_a_grid_is_named_once() -> None:
    assert bench("run", "quickstart", "--grid", "cifar_ci").err == "error: quickstart --grid cifar_ci: name one grid\n"
    assert bench("run").err.startswith("error: name a grid")
    assert bench("run", "quickstart", "--dry-run", "--device", "cpu").out == (
        bench("run", "--grid", "quickstart", "--dry-run", "--device", "cpu").out
    )


@pytest.mark.parametrize("value", ["soon", "-1", "inf", "nan"])
def test_seconds_between_checkpoints_are_a_number(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CHECKPOINT_SECONDS", value)
    ran = bench("run", "quickstart", "--device", "cpu")
    assert ran.code == 2
    assert (
        ran.err == f"error: BENCH_CHECKPOINT_SECONDS={value} in the environment is not a number of seconds; unset it\n"
    )


def test_a_batch_that_cannot_be_shared_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(UserError, match="a batch of 32 is not a multiple of 3 processes"):
        distributed.rank_slice(32)
