"""README and docs against the records that are shipped."""

import re
import subprocess
import sys

from tests.readme import BLOCK, FILES, ROOT, collected


def test_what_they_say_of_results_is_what_the_records_say() -> None:
    """In a process of its own, which knows no method that another test has loaded."""
    command = [sys.executable, "-m", "tests.readme", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), "`python -m tests.readme` writes it anew\n" + done.stderr


def test_readme_states_no_accuracy_outside_of_what_is_made_of_records() -> None:
    text = FILES[0].read_text(encoding="utf-8")
    assert [name for name, _ in BLOCK.findall(text)] == ["quickstart", "cifar_small", "paper_methods@cpu"]
    assert re.findall(r"\d ± \d|\d points", BLOCK.sub("", text)) == []


def test_cifar_small_takes_the_time_that_readme_says() -> None:
    minutes = re.search(r"`cifar_small` \|.*under (\d+) minutes on 2 cores", FILES[0].read_text(encoding="utf-8"))
    assert minutes
    assert sum(record.ledger.wall_seconds for record in collected("cifar_small").done) < 60 * int(minutes[1])
