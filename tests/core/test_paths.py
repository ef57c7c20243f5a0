"""Paths that a user names: `~` is the home folder wherever one can be named, whether a shell has seen it or not."""

import shutil
from pathlib import Path

import pytest

from bench.core.errors import UserError
from bench.core.paths import Paths, expanded
from bench.grid.expand import expand
from bench.grid.load import load_grid
from priors.file import File
from tests.run.processes import ROOT, bench

GRID = "backbone: resnet_small\ndatasets: [digits]\nseeds: [0]\narms: [byol]\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, with a grid of nothing but digits; the working directory is another one."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    (home / "g.yaml").write_text(GRID)
    (home / "p.py").write_text("from pathlib import Path\n(Path(__file__).parent / 'imported').touch()\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    return home


@pytest.mark.slow
def test_a_home_folder_on_the_command_line(home: Path) -> None:
    ran = bench("prepare", "--grid=~/g.yaml", "--data-root=~/data", "--plugin=~/p.py")
    assert ran.code == 0, ran.err
    assert (home / "data").is_dir()
    assert (home / "imported").exists()
    shutil.copytree(ROOT / "results" / "cifar_small", home / "r" / "cifar_small")
    assert bench("report", "cifar_small", "--results=~/r", "--reports=~/reports").code == 0
    assert (home / "reports" / "cifar_small" / "report.md").is_file()
    assert list((home / "reports" / "cifar_small").glob("*.csv"))
    assert bench("results", "merge", "~/r", "--into=~/all").code == 0
    assert len(list((home / "all" / "cifar_small").glob("*.json"))) == len(list((home / "r").glob("*/*.json")))
    assert f"{home}/b.json" in bench("check", "--grid=~/g.yaml", "--baseline=~/b.json").err
    assert "no record of grid g" in bench("report", "~/g.yaml").err
    assert not list(Path.cwd().iterdir())


def test_a_home_folder_in_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_DATA", "~/data")
    monkeypatch.setenv("BENCH_CACHE", "~/cache")
    assert bench("prepare", "--grid", home / "g.yaml").code == 0
    assert (home / "data").is_dir()
    assert Paths(Path("data"), Path("results"), "g").cache == home / "cache"
    assert not list(Path.cwd().iterdir())


def test_a_home_folder_in_a_grid(home: Path) -> None:
    arm = "arms=[{method: byol, rela: {prior: 'file:~/x.pth', backbone: resnet_small}}]"
    cell = expand(load_grid("~/g.yaml", settings=[arm]))[0]
    (home / "x.pth").touch()
    assert File("~/x.pth", cell, Paths(Path("data"), Path("results"), "g")).path() == home / "x.pth"


def test_a_home_folder_that_is_not_known(home: Path) -> None:
    ran = bench("status", "--grid", "quickstart", "--results=~nobody-of-this-name/x")
    assert ran.code == 2
    assert ran.err == (
        "error: ~nobody-of-this-name/x: no home folder is known for ~nobody-of-this-name;"
        " write ./~nobody-of-this-name/x if it is a name\n"
    )
    with pytest.raises(UserError, match="no home folder"):
        expanded("~nobody-of-this-name")
    assert expanded("./~x/y") == Path("~x") / "y"
