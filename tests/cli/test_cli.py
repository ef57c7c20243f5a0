"""The command line: one sentence and exit code 2 for a mistake, 1 for failed cells, 130 for Ctrl-C."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.store.record import read_records
from tests.run import processes
from tests.run.processes import ROOT, Ran

TINY = """
backbone: resnet_small
datasets: [{name: digits, train_images: 200}]
seeds: [0]
budgets: [0.5]
arms: [{method: byol, budgets: [0.5, 1.0]}, {method: byol, rela: {prior: DIGITS-T}}]
protocol: {epochs: 2, batch_size: 32, input_size: 12, blur: false, probe: {epochs: 3}}
"""
SHOWN = {
    "run": "--set --only --device --executor --data-root --results --plugin --workers --dry-run --json --rehearse"
    " --retry --cell-timeout --track --deterministic --jobs --gpus-per-cell --slurm --help",
    "check": "--baseline --update --seeds --junit --set --device --data-root --results --plugin --help",
    "report": "--set --results --reports --format --plugin --help",
    "status": "--set --only --data-root --results --plugin --cells --json --help",
    "cancel": "--results --help",
    "prepare": "--set --data-root --plugin --help",
    "merge": "--into --keep-first --help",
    "list": "--data-root --plugin --json --help",
    "schema": "--help",
}


def command(tmp_path: Path, *arguments: str) -> list[str]:
    (tmp_path / "tiny.yaml").write_text(TINY)
    words = [word.replace("TINY", str(tmp_path / "tiny.yaml")) for word in arguments]
    paths = {
        "run": ["--data-root", str(tmp_path / "data"), "--results", str(tmp_path / "results")],
        "report": ["--results", str(tmp_path / "results"), "--reports", str(tmp_path / "reports")],
    }
    paths["status"] = paths["prepare"] = paths["run"]
    return [sys.executable, "-m", "bench", *words, *paths.get(words[0], [])]


def bench(tmp_path: Path, *arguments: str) -> Ran:
    return processes.bench(*command(tmp_path, *arguments)[3:])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--grid", "quikstart"], "did you mean 'quickstart'"),
        (["run", "--grid", "TINY", "--set", "arms=[byoll]"], "unknown method 'byoll'; did you mean 'byol'"),
        (["run", "--grid", "TINY", "--set", "datasets=[digit]"], "did you mean 'digits'"),
        (["run", "--grid", "TINY", "--set", "backbone=resnet_smal"], "did you mean 'resnet_small'"),
        (["run", "--grid", "TINY", "--set", "arms=[{method: byol, rela: {prior: rnd}}]"], "did you mean 'rand'"),
        (["run", "--grid", "TINY", "--set", "arms=[{method: byol, rela: {prior: CF10-T}}]"], "the grid does not have"),
        (["run", "--grid", "TINY", "--set", "arms=[{method: byol, params: {momentun: 1}}]"], "did you mean 'momentum'"),
        (
            ["run", "--grid", "TINY", "--set", "budgets=[0.01]", "--set", "arms=[byol]", "--dry-run"],
            "less than one batch",
        ),
        (["run", "--grid", "TINY", "--set", "arms=[byol, {method: byol, params: {momentum: 0.99}}]"], "'byol' again"),
        (["run", "--grid", "TINY", "--only", "seed=9"], "no cell has seed=9"),
        (["run", "--grid", "TINY", "--device", "gpu"], "must be auto, cpu or cuda"),
        (["run", "--grid", "TINY", "--plugin", "nowhere.py"], "no such file"),
        (["report", "TINY"], "no record of grid tiny"),
        (["report"], "no records there"),
        (["list", "method"], "did you mean 'methods'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments: list[str], words: str, tmp_path: Path) -> None:
    ran = bench(tmp_path, *arguments)
    assert ran.code == 2, ran.err
    assert ran.err.startswith("error: ")
    assert len(ran.err.splitlines()) == 1
    assert words in ran.err


@pytest.mark.slow
def test_the_shipped_report_is_that_of_the_shipped_records(tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(ROOT / "results" / "cifar_small", results / "cifar_small")
    shutil.copytree(results / "cifar_small", results / "of_another_grid")
    ran = bench(tmp_path, "report")
    assert ran.code == 1, ran.err
    assert "of_another_grid: left out: unknown grid 'of_another_grid'" in ran.err
    for name in ("report.md", "table.csv", "points.csv", "table.tex"):
        shipped = ROOT / "reports" / "cifar_small" / name
        assert (tmp_path / "reports" / "cifar_small" / name).read_text() == shipped.read_text()


def test_a_results_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where a folder should be")
    ran = bench(tmp_path, "run", "--grid", "TINY")
    assert ran.code == 2
    assert re.match(rf"error: {re.escape(str(tmp_path / 'results'))}.*: .+\n$", ran.err)


@pytest.mark.parametrize("content", ["raise ValueError('on purpose')", "def (", "import nowhere"])
def test_a_broken_plugin_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text(content)
    ran = bench(tmp_path, "run", "--grid", "TINY", "--plugin", str(path))
    assert ran.code == 2
    assert re.match(rf"error: --plugin {re.escape(str(path))}: \w+Error: .+\n$", ran.err)


@pytest.mark.parametrize("verb", ["run", "report", "list", "status", "prepare", "merge", "results"])
def test_every_verb_has_help_without_loading_torch(verb: str) -> None:
    code = (
        f"import sys; sys.argv = ['bench', '{verb}', '--help']\n"
        "from bench.cli.main import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'pandas', 'matplotlib'} & sys.modules.keys()\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "--" in ran.stdout


@pytest.mark.parametrize("verb", ["status", "check", "cancel", "prepare"])
def test_a_grid_is_an_argument_or_an_option_and_one(verb: str, tmp_path: Path) -> None:
    for words in (["quikstart"], ["--grid", "quikstart"], ["--grid=quikstart"]):
        assert "did you mean 'quickstart'" in bench(tmp_path, verb, *words).err
    for words, why in ((["a", "--grid", "b"], "a --grid b: name one grid"), ([], "name a grid, such as")):
        ran = bench(tmp_path, verb, *words)
        assert (ran.code, ran.err.startswith(f"error: {why}")) == (2, True), ran.err


def test_the_name_that_merge_had_before_goes_on_working(tmp_path: Path) -> None:
    for number, words in enumerate((["merge"], ["results", "merge"])):
        ran = bench(tmp_path, *words, str(ROOT / "results"), "--into", str(tmp_path / str(number)))
        assert ran.code == 0, ran.err
    assert "results" not in bench(tmp_path, "--help").out.split("Commands")[-1].split()
    assert len(list((tmp_path / "0").rglob("*.json"))) == len(list((tmp_path / "1").rglob("*.json"))) > 0


def test_what_is_missing_is_said_once_with_the_cells_that_it_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    options = ["--set", "datasets=[digits, cifar10]", "--set", "seeds=[0, 1]"]
    for words in (["status", "TINY"], ["run", "--grid", "TINY", "--dry-run"]):
        lines = bench(tmp_path, *words, *options).out.splitlines()
        [why] = [line for line in lines if "dataset cifar10" in line]
        assert re.fullmatch(r"6 cells wait for dataset cifar10: `.* prepare .*tiny\.yaml .*`", why)
        row = r"^cifar10  byol +(4 missing  50%, 100%|100% +2 missing)"
        assert sum(bool(re.search(row, line)) for line in lines) == 1, lines
        told = json.loads(bench(tmp_path, *words, *options, "--json").out)
        assert len(told) == 12
        assert sum(cell["state"] == "missing" and cell["dataset"] == "cifar10" for cell in told) == 6
    every = bench(tmp_path, "status", "TINY", *options, "--cells").out.splitlines()
    assert sum(bool(re.search(r"^-  +cifar10 byol 100% seed \d +missing", line)) for line in every) == 2, every


def test_of_many_arms_those_that_are_done_stand_in_a_few_lines(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "results" / "cifar_small", tmp_path / "results" / "cifar_small")
    lines = bench(tmp_path, "status", "cifar_small").out.splitlines()
    assert len(lines) <= 12
    assert max(map(len, lines)) <= 80
    assert any("CF10-R20, tuned 20% 45.4, 50% 59.2" in line for line in lines)
    assert lines[-1] == "128 done; 128 by records alone: their data is not here"


def test_a_grid_may_have_its_profile_behind_it(tmp_path: Path) -> None:
    for verb in ("status", "run", "check", "cancel", "prepare"):
        for words in (["quickstart@mino"], ["quickstart", "--profile", "mino"], ["--grid", "quickstart@mino"]):
            assert "unknown profile 'mino'; did you mean 'mini'?" in bench(tmp_path, verb, *words).err
        twice = bench(tmp_path, verb, "quickstart@mini", "--profile", "mini")
        assert twice.err == "error: quickstart@mini --profile mini: name one profile\n"
    (tmp_path / "a@mini.yaml").write_text(TINY)
    assert "3 waiting" in bench(tmp_path, "status", str(tmp_path / "a@mini.yaml")).out, "a file's own name"
    mini = json.loads(bench(tmp_path, "status", "TINY@mini", "--json").out)
    assert mini == json.loads(bench(tmp_path, "status", "TINY", "--profile", "mini", "--json").out)
    assert mini != json.loads(bench(tmp_path, "status", "TINY", "--json").out)


def test_what_options_were_called_before_goes_on_working_or_is_told(tmp_path: Path) -> None:
    for option in ("--jobs", "--jobs-per-gpu"):
        refused = bench(tmp_path, "run", "TINY", option, "1000000", "--device", "cpu").err
        assert refused.startswith("error: --jobs 1000000: this process may use "), refused
    assert bench(tmp_path, "cancel", "paper_toy", "--set", "seeds=[0]").out == "paper_toy has no jobs\n"
    refused = bench(tmp_path, "run", "TINY", "--dry-run", "--cells").err
    assert refused == ("error: --cells is an option of `status`; `run --dry-run --json` says what each cell costs\n")
    for verb, options in SHOWN.items():
        assert re.findall(r"^ +(--[a-z-]+)", bench(tmp_path, verb, "--help").out, re.MULTILINE) == options.split()


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("methods", ["joint embedding  byol", "masked           mae", "labels           supervised"]),
        ("priors", ["rand", "file", "timm", "<DATASET>-T"]),
        ("datasets", ["digits", "cifar10", "imagenet1k"]),
        ("backbones", ["resnet_small", "resnet18_cifar", "timm:<model>"]),
        ("grids", ["quickstart", "paper_table1"]),
    ],
)
def test_lists_name_what_there_is(what: str, names: list[str], tmp_path: Path) -> None:
    ran = bench(tmp_path, "list", what)
    assert ran.code == 0, ran.err
    for name in names:
        assert re.search(rf"^{re.escape(name)} +\S.*$", ran.out, re.MULTILINE), ran.out


def test_a_grid_from_dry_run_to_report(tmp_path: Path) -> None:
    dry = bench(tmp_path, "run", "--grid", "TINY", "--dry-run")
    assert dry.code == 0, dry.err
    assert re.search(r"3 of 3 cells to run\n[\d.]+ [GT]FLOP of training in 24 steps:\n", dry.out)
    assert re.search(r" of a GPU at an assumed 300 TFLOP/s; no record of the grid tells a rate\n", dry.out)
    assert not (tmp_path / "results").exists()
    ran = bench(tmp_path, "run", "--grid", "TINY")
    assert ran.code == 0, ran.err
    assert "3 of 3 cells done (0 before)" in ran.out
    assert "3 of 3 cells done (3 before)" in bench(tmp_path, "run", "--grid", "TINY").out
    assert bench(tmp_path, "status", "--grid", "TINY").out.splitlines()[-1] == "3 done"
    assert "0 of 3 cells to run" in bench(tmp_path, "run", "--grid", "TINY", "--dry-run").out
    reported = bench(tmp_path, "report", "TINY")
    assert reported.code == 0, reported.err
    assert {path.name for path in (tmp_path / "reports" / "tiny").iterdir()} >= {
        "report.md",
        "table.csv",
        "table.tex",
        "accuracy_vs_steps.png",
        "accuracy_vs_flops.svg",
    }


def test_a_missing_dataset_fails_the_run_but_not_with_a_traceback(tmp_path: Path) -> None:
    ran = bench(tmp_path, "run", "--grid", "TINY", "--set", "datasets=[cifar10]", "--set", "arms=[byol]")
    assert ran.code == 1
    assert re.search(r"1 cell waits for dataset cifar10: `.* prepare .*`\n", ran.err)
    assert f"looked in {tmp_path / 'data'}; --data-root names another folder\n" in ran.err
    assert "byol" not in ran.out, "not a line for each cell"
    assert "Traceback" not in ran.err
    prepared = bench(tmp_path, "prepare", "--grid", "TINY", "--set", "datasets=[tiny_imagenet]", "--set", "arms=[byol]")
    assert prepared.code == 1
    assert "tiny-imagenet-200.zip" in prepared.err


def test_prepare_reads_what_is_here(tmp_path: Path) -> None:
    ran = bench(tmp_path, "prepare", "--grid", "TINY")
    assert ran.code == 0, ran.err
    assert re.search(r"dataset digits: Digits, digest [0-9a-f]{16}", ran.out)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_ctrl_c_saves_the_cell_and_the_same_command_goes_on(tmp_path: Path) -> None:
    arguments = [
        "run",
        "--grid",
        "TINY",
        "--set",
        "protocol.epochs=400",
        "--set",
        "arms=[{method: byol, budgets: [1.0]}]",
    ]
    running = subprocess.Popen(
        command(tmp_path, *arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    events = tmp_path / "results" / "tiny" / ".work"
    deadline = time.monotonic() + 60
    while not list(events.glob("*/events.jsonl")) and time.monotonic() < deadline and running.poll() is None:
        os.sched_yield()
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert "the same command resumes it" in errors
    assert list(events.glob("*/checkpoint.pt"))
    assert read_records(tmp_path / "results" / "tiny") == ([], [])
    assert "started: interrupted" in bench(tmp_path, "status", *arguments[1:]).out
