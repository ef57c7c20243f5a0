"""Further evaluations of finished cells: made after the cell, added later, each once, none at the cell's expense."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli.main import app
from bench.core.paths import Paths
from bench.grid.evaluation import EVALUATIONS
from bench.store.evaluated import Evaluated, evaluated_in
from bench.store.record import Finished, read_record, read_records

ROOT = Path(__file__).parents[2]
GRID = """
backbone: resnet_tiny
datasets: [{name: digits, train_images: 120}]
seeds: [0, 1]
arms: [byol]
protocol: {epochs: 1, batch_size: 32, input_size: 8, blur: false, probe: {epochs: 2}, knn: {k: 3}}
"""
ASKED = "protocol.evaluate=[linear, {name: knn, k: [1, 5]}]"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(GRID)
    return tmp_path


def call(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*words])
    assert result.exit_code == code, result.output
    return result.output


def records() -> list[Finished]:
    return [record for record in read_records(Path("results/tiny"))[0] if isinstance(record, Finished)]


def evaluations(of: Finished) -> list[Evaluated]:
    return evaluated_in(Paths(Path(), Path("results"), "tiny").evaluations(of.id))[0]


def files(folder: str = "results/tiny") -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in Path(folder).rglob("*.json")}


def test_evaluations_come_after_the_cell_and_leave_its_record_as_it_is(folder: Path) -> None:
    call("run", "tiny.yaml", "--results", "plain")
    said = call("run", "tiny.yaml", "--set", ASKED)
    assert "  linear: L-BFGS top-1 " in said
    assert said.rstrip().endswith("makes tables and plots of them")
    for record in records():
        other = read_record(Path("plain/tiny") / f"{record.id}.json")
        assert isinstance(other, Finished)
        assert record.model_dump(include=record.decided) == other.model_dump(include=other.decided)
        named = {each.evaluation.name: each for each in evaluations(record)}
        assert named.keys() == {"linear", "knn"}
        assert [*named["knn"].values] == ["k = 1", "k = 5"]
        assert {each.cell for each in named.values()} == {record.id}
    assert len(records()) == 2
    before = files()
    assert "2 of 2 cells done (2 before)" in call("run", "tiny.yaml", "--set", ASKED)
    assert files() == before, "what is there is not made again"


def test_an_evaluation_is_added_later_and_nothing_is_trained(folder: Path) -> None:
    call("run", "tiny.yaml")
    before = files()
    said = call("evaluate", "tiny.yaml", "--with", "knn,linear", "--jobs", "1")
    assert "every finished cell has the evaluations that are asked for" in said
    assert " report tiny.yaml  shows them" in said, "all that are there, whatever is asked for"
    after = files()
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 4
    call("evaluate", "tiny.yaml", "--with", "knn,linear")
    assert files() == after


def test_one_that_fails_leaves_the_others_and_the_command_says_so(folder: Path) -> None:
    asked = "protocol.evaluate=[{name: transfer, datasets: [cifar100]}, linear]"
    said = call("run", "tiny.yaml", "--set", asked, code=1)
    assert "not evaluated by transfer: dataset 'cifar100' is not there" in said
    assert "2 of 2 cells done" in said
    assert "further evaluations that are missing: transfer 2" in said
    assert [[each.evaluation.name for each in evaluations(record)] for record in records()] == [["linear"]] * 2
    assert "missing: transfer 2" in call("status", "tiny.yaml", "--set", asked)
    assert "missing: transfer 2" in call("evaluate", "tiny.yaml", "--set", asked, code=1)


def test_cells_whose_data_is_not_here_are_not_said_to_be_evaluated(folder: Path) -> None:
    said = call("evaluate", "cifar_small", "--with", "knn", "--results", str(ROOT / "results"), code=1)
    assert "wait for dataset cifar10" in said
    assert "every finished cell" not in said


def test_without_its_backbone_a_cell_is_not_evaluated(folder: Path) -> None:
    call("run", "tiny.yaml")
    for path in Path("results/tiny/backbones").iterdir():
        path.unlink()
    said = call("evaluate", "tiny.yaml", "--with", "knn", code=1)
    assert "knn 2, of cells whose backbones are not in results/tiny" in said
    assert not list(Path("results/tiny").glob("evaluations/*/*"))


@pytest.mark.parametrize("content", ["", '{"schema_version": 1}'])
def test_a_damaged_record_of_an_evaluation_is_made_anew_and_said(folder: Path, content: str) -> None:
    call("run", "tiny.yaml", "--set", ASKED)
    before = {name: json.loads(text)["values"] for name, (_, text) in files("results/tiny/evaluations").items()}
    path = Path(next(iter(before)))
    path.write_text(content)
    assert path.name in call("report", "tiny.yaml", "--format", "md") + Path("reports/tiny/report.md").read_text()
    call("run", "tiny.yaml", "--set", ASKED)
    after = {name: json.loads(text)["values"] for name, (_, text) in files("results/tiny/evaluations").items()}
    assert after == before


def test_a_name_that_is_none_is_refused(folder: Path) -> None:
    said = CliRunner().invoke(app, ["evaluate", "tiny.yaml", "--with", "few_lables"])
    assert "did you mean 'few_labels'?" in str(said.exception)
    for asked, words in (
        ("[linear, linear]", "names linear twice; keep one"),
        ("[few_lables]", "did you mean 'few_labels'?"),
    ):
        refused = CliRunner().invoke(app, ["run", "tiny.yaml", "--set", f"protocol.evaluate={asked}"])
        assert words in str(refused.exception)


def test_merging_brings_evaluations_along_and_a_report_shows_them(folder: Path) -> None:
    call("run", "tiny.yaml", "--set", ASKED)
    call("merge", "results", "--into", "all")
    copied = {name.replace("all/", "results/"): content for name, (_, content) in files("all").items()}
    assert copied == {name: content for name, (_, content) in files("results").items()}
    call("report", "tiny.yaml", "--results", "all", "--format", "md")
    text = Path("reports/tiny/report.md").read_text()
    assert "## Further evaluations" in text
    one, two = (evaluations(record) for record in records())
    values = [next(each.values["k = 5"] for each in there if each.evaluation.name == "knn") for there in (one, two)]
    mean = 50 * sum(values)
    deviation = 100 * abs(values[0] - values[1]) / 2**0.5
    assert f"| {mean:.1f} ± {deviation:.1f} (n=2) |" in text


@pytest.mark.slow
def test_every_evaluation_is_rehearsed(folder: Path) -> None:
    names = ", ".join(name for name in EVALUATIONS if name != "segmentation")
    said = call("run", "tiny.yaml", "--rehearse", "--set", f"protocol.evaluate=[{names}]")
    for name in names.split(", "):
        assert f"  {name}: " in said
