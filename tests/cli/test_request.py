"""Every command that is printed works when it is pasted: each is run here as it was printed."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from bench.cli import main as cli
from bench.plan.request import Request, program
from methods import methods
from tests.run.processes import ROOT, Ran, bench

GRID = """
backbone: resnet_small
datasets: [{name: digits, train_images: 64}]
seeds: [0]
arms: [mine]
protocol: {epochs: 1, batch_size: 32, input_size: 8, probe: {epochs: 1}, knn: {k: 5}}
profiles: {longer: {protocol: {epochs: 2}}}
"""
PLUGIN = """
from methods import methods
from methods.simsiam import SimSiam

@methods.register("mine")
class Mine(SimSiam):
    "A method that nothing but the plugin knows."
"""
STUDY = """
toy: {dimension: 2, distance: 2.0, sigma: 0.5, samples: 20, test_samples: 20, hidden: 3, lr: 0.1, batch_size: 4,
  evaluate_at: [0, 2], prior_samples: 20, prior_steps: 2}
seeds: [0]
sigmas: [0.2]
rhos: [0.5]
early: 2
target_loss: 0.5
profiles: {longer: {seeds: [0, 1]}}
"""
NAME = "it's @ home & $HOME.yaml"
OPTIONS = ["--results", "my results", "--set", "name=its_own", "--set", "title='a \"b\"; c'", "--profile", "longer"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: Any) -> Path:
    """The working directory: a folder with a grid and a plugin whose names a shell has to be told with care."""
    for folder in ("here", "-x"):
        (tmp_path / "here" / folder).mkdir(parents=True)
    here = tmp_path / "here"
    (here / NAME).write_text(GRID)
    (here / "-x" / "study.yaml").write_text(STUDY)
    (here / "~p.py").write_text(PLUGIN)
    monkeypatch.chdir(here)
    monkeypatch.delenv("BENCH_DATA", raising=False)
    temporary(methods)
    return here


def printed(ran: Ran) -> list[list[str]]:
    """Return the words of each command in what was said, without those of the program."""
    by = re.escape(shlex.join(program()))
    found = re.findall(rf"(?:^|`){by} (.+?)(?:`|  |$)", ran.out + ran.err, re.MULTILINE)
    return [shlex.split(words) for words in found]


def cells(verb: str, *words: str) -> Ran:
    return bench(verb, "--grid", NAME, "--plugin", "./~p.py", *OPTIONS, *words)


def test_after_a_run_the_report_and_back(here: Path) -> None:
    ran = cells("run", "--device", "cpu", "--data-root", "~d/../here")
    assert ran.code == 2, "no such home folder"
    ran = cells("run", "--device", "cpu")
    assert ran.code == 0, ran.err
    [report] = printed(ran)
    assert report[0] == "report"
    reported = bench(*report)
    assert reported.code == 0, reported.err
    assert (here / "reports" / "its_own" / "report.md").is_file()
    shutil.rmtree(here / "my results" / "its_own")
    absent = bench(*report)
    assert absent.code == 2
    [again] = printed(absent)
    assert again[0] == "run"
    assert bench(*again, "--device", "cpu").code == 0
    assert bench(*report, "--format", "csv").code == 0


@pytest.mark.slow
def test_after_a_study_the_report_and_back(here: Path) -> None:
    words = ["--grid=-x/study.yaml", "--set", "name=-x"]
    assert bench("run", *words).code == 2
    ran = bench("run", *words[:1], *OPTIONS)
    [report] = printed(ran)
    assert bench(*report).code == 0
    assert (here / "reports" / "its_own" / "report.md").is_file()
    shutil.rmtree(here / "my results")
    [again] = printed(bench(*report))
    assert bench(*again).code == 0
    assert bench(*report).code == 0


def test_after_a_rehearsal(here: Path) -> None:
    ran = cells("run", "--rehearse", "--device", "cpu")
    assert ran.code == 0, ran.err
    [report] = printed(ran)
    assert bench(*report).code == 0
    assert (here / "reports" / "its_own@rehearsal" / "report.md").is_file()
    shutil.rmtree(here / "my results")
    [again] = printed(bench(*report))
    assert "--rehearse" in again
    assert bench(*again, "--device", "cpu").code == 0


def test_what_is_not_here_can_be_prepared(here: Path) -> None:
    arm = "arms=[{method: mine, rela: {prior: 'file:x.pth', backbone: resnet_small}}]"
    ran = cells("run", "--data-root", "my data", "--set", arm, "--device", "cpu")
    assert ran.code == 1
    assert f"1 cell waits for prior file:x.pth: put it into {here / 'my data' / 'priors'}\n" in ran.err.replace(
        "my data/priors", str(here / "my data" / "priors")
    )
    [rehearse] = [
        shlex.split(line.partition("  ")[0])
        for line in ran.err.replace("\n  ", "\n").splitlines()
        if "--rehearse" in line
    ]
    assert bench(*rehearse[len(program()) :], "--device", "cpu").code == 0
    ran = cells("run", "--data-root", "my data", "--set", "datasets=[cifar100]", "--device", "cpu")
    [prepare] = printed(ran)
    assert prepare[:2] == ["prepare", f"{NAME}@longer"]
    assert prepare[-4:] == ["--data-root", "my data", "--results", "my results"]


def test_a_name_for_records_that_are_not_there(here: Path) -> None:
    [run] = printed(bench("report", "--results", "empty ones"))
    assert run == ["run", "quickstart", "--results", "empty ones"]
    [run] = printed(bench("report", "quickstart@mini@rehearsal"))
    assert run == ["run", "quickstart@mini", "--rehearse"]


@pytest.mark.slow
def test_a_baseline_of_other_settings(here: Path) -> None:
    (here / "b.json").write_text("{}")
    ran = bench(
        "check",
        "--grid",
        NAME,
        "--plugin",
        "./~p.py",
        "--profile",
        "longer",
        "--set",
        "name=its_own",
        "--baseline",
        "b.json",
    )
    assert ran.code == 2
    assert len(printed(ran)) == 1, ran.err
    [update] = printed(ran)
    assert update[-3:] == ["--baseline", str(here / "b.json"), "--update"]
    assert bench(*update, "--seeds", "3", "--device", "cpu").code == 0


@pytest.mark.slow
def test_report_without_a_name_says_what_it_leaves_out(here: Path) -> None:
    shutil.copytree(ROOT / "results" / "cifar_small", here / "results" / "cifar_small")
    shutil.copytree(ROOT / "results" / "cifar_small", here / "results" / "its_own")
    shutil.copytree(ROOT / "results" / "cifar_small", here / "results" / "quickstart")
    ran = bench("report")
    assert ran.code == 1
    assert (here / "reports" / "cifar_small" / "report.md").is_file()
    lines = ran.err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("results/its_own: left out: unknown grid 'its_own'")
    assert lines[1].startswith(
        "results/quickstart: left out: results/quickstart: no record of grid quickstart (there: "
    )
    for line in lines:
        assert line.endswith("where its grid is a file, or was run with --set or --plugin, `report` needs these")


@pytest.mark.parametrize("verb", ["run", "status", "prepare", "report", "cancel", "check"])
def test_every_verb_takes_what_it_is_given(verb: str, here: Path) -> None:
    request = Request("~/g.yaml", "p", ("a=-1",), (Path("~p.py"),), Path("-d"), Path("r s"))
    words = shlex.split(request.command(verb))[len(program()) :]
    given = typer.main.get_command(cli.app).commands[verb].make_context(verb, words[1:]).params  # type: ignore[attr-defined]
    assert given["grid"] == f"{Path.home() / 'g.yaml'}@p"
    assert given["settings"] == ["a=-1"]
    there = {"plugin": [Path("~p.py")], "data_root": Path("-d"), "results": Path("r s") if verb != "check" else None}
    assert {name: value for name, value in there.items() if name in given} == {
        name: value for name, value in given.items() if name in there
    }


@pytest.mark.slow
def test_a_shell_runs_what_is_printed(here: Path) -> None:
    words = [sys.executable, "-m", "bench", "run", "--grid", "-x/study.yaml", *OPTIONS]
    environment = {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(here)}
    ran = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    line = ran.stdout.splitlines()[-1].partition("  ")[0]
    beside = Path(sys.executable).with_name("rela-bench")
    named = beside.name if beside.is_file() else f"{Path(sys.executable).name} -m bench"
    assert line.startswith(f"{named} report ./-x/study.yaml")
    pasted = subprocess.run(line, shell=True, env=environment, capture_output=True, text=True)
    assert pasted.returncode == 0, pasted.stderr
    del environment["PATH"]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True)
    whole = str(beside) if beside.is_file() else f"{shlex.quote(sys.executable)} -m bench"
    assert ran.stdout.splitlines()[-1].startswith(f"{whole} report")
