"""README and docs against the records that are shipped."""

import re
import subprocess
import sys

import pytest

from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.store.record import Finished, read_records
from tests.readme import BLOCK, FILES, ROOT, collected, records_of


@pytest.mark.slow
def test_what_they_say_of_results_is_what_the_records_say() -> None:
    """In a process of its own, which knows no method that another test has loaded."""
    command = [sys.executable, "-m", "tests.readme", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), "`python -m tests.readme` writes it anew\n" + done.stderr


def test_readme_states_no_accuracy_outside_of_what_is_made_of_records() -> None:
    text = FILES[0].read_text(encoding="utf-8")
    blocks = [("headline", "cifar_small"), ("terminal", "quickstart"), ("terminal", "cifar_small")]
    assert [names[:2] for names in BLOCK.findall(text)] == blocks
    assert re.findall(r"\d ± \d|\d points", BLOCK.sub("", text)) == []


def test_readme_is_short() -> None:
    assert len(FILES[0].read_text(encoding="utf-8").splitlines()) <= 120


def test_cifar_small_takes_the_time_that_the_guide_says() -> None:
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    minutes = re.search(r"`cifar_small` \|.*under (\d+) minutes on 2 cores, with `--jobs 2`", guide)
    assert minutes
    records, _ = read_records(records_of("cifar_small"))  # of the trials too
    spent = [record.ledger.wall_seconds for record in records if isinstance(record, Finished)]
    assert len(spent) == len(expand(load_grid("cifar_small")))
    assert sum(spent) / 2 < 60 * int(minutes[1])


def test_in_the_quickstart_the_prior_takes_more_than_training_by_the_plain_method() -> None:
    done = {
        (record.cell.arm, record.cell.budget, record.cell.seed): record.ledger
        for record in collected("quickstart").done
    }
    for seed in (0, 1, 2):
        made = done["CF10-R20", 0.5, seed].targets
        assert made
        assert made.flops > done["byol", 1.0, seed].flops


def test_the_first_command_has_something_to_do() -> None:
    """Records of it that came with the project would be taken for its own."""
    shipped = subprocess.run(["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True, check=False)
    if shipped.returncode:
        pytest.skip("no git here to say what is shipped")
    assert "results/cifar_small/" in shipped.stdout
    assert "results/quickstart/" not in shipped.stdout
