"""What README and docs say of shipped results is what the report's own functions make of the records.

`BENCH_UPDATE=1 pytest tests/test_readme.py` writes it anew, between `<!-- results: GRID -->` and `<!-- end -->`.
"""

import os
import re
from pathlib import Path

import pytest

from bench.grid import load_grid
from bench.report.claims import Judgement, certainty, judged, rooms, verdict_table
from bench.report.collect import Collected, collect
from bench.report.costs import FLOP, TARGETS
from bench.report.document import linear_caption, marks, settings
from bench.report.facts import ledger_of, linear
from bench.report.markdown import escape_markdown, to_markdown
from bench.report.saving import smallest_table
from bench.report.tables import accuracy_table, gain_table

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?<=<!-- results: )(\S+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


def collected(name: str) -> Collected:
    grid, _, profile = name.partition("@")
    return collect(load_grid(grid, profile or None), ROOT / "results" / name)


def text_of(found: Collected) -> str:
    """How a grid was run, its accuracies, or gains where it has many methods, and its verdicts."""
    parts = [escape_markdown(text, None) for text in (" ".join(settings(found)), linear_caption(found))]
    claims = judged(found)
    if len(found.families) > 1:
        return "\n\n".join([*parts, to_markdown(gain_table(found)), verdicts(claims)])
    (family,) = found.families
    table = accuracy_table(found, family, linear)
    parts += [to_markdown(table), escape_markdown(" ".join(marks(table, family.name)), None), verdicts(claims)]
    parts.append(to_markdown(verdict_table([[one for one in each if one.ledger == TARGETS] for each in claims])))
    parts.append(escape_markdown(certainty(claims), None))
    parts.append("\n".join(f"- {escape_markdown(line, None)}" for line in rooms(found, claims)))
    parts += ["The smallest budget that suffices, of those tried:", to_markdown(smallest_table(found))]
    return "\n\n".join(parts)


def verdicts(claims: list[list[Judgement]]) -> str:
    """Which claims are what, counted in FLOP: a line for each verdict."""
    names: dict[str, dict[str, list[str]]] = {}
    for judgements in claims:
        one = [each for each in judgements if each.currency is FLOP][:2][-1]  # with targets, where the claim is of cost
        claim, _, arm = one.claim.name.partition(": ")
        names.setdefault(one.verdict, {}).setdefault(claim, []).extend([arm] if arm else [])
    lines = [f"{len(claims)} claims, judged together, by FLOP with targets where they speak of cost:", ""]
    for verdict, there in names.items():
        told = [claim + f" ({', '.join(arms)})" * bool(arms) for claim, arms in there.items()]
        lines.append(f"- {verdict}: {escape_markdown('; '.join(told), None)}.")
    return "\n".join(lines)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_results_are_those_of_the_records(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    now = BLOCK.sub(lambda match: f"{match[1]}{match[2]}{text_of(collected(match[1]))}\n", text)
    if os.environ.get("BENCH_UPDATE"):
        path.write_text(now, encoding="utf-8")
    else:
        assert text == now, "BENCH_UPDATE=1 pytest tests/test_readme.py writes it anew"


def test_readme_states_no_accuracy_outside_of_the_blocks() -> None:
    text = FILES[0].read_text(encoding="utf-8")
    assert len(BLOCK.findall(text)) == 2
    assert re.findall(r"\d ± \d|\d points", BLOCK.sub("", text)) == []


def test_cifar_small_takes_the_time_that_readme_says() -> None:
    minutes = re.search(r"`cifar_small` \|.*under (\d+) minutes on 2 cores", FILES[0].read_text(encoding="utf-8"))
    assert minutes
    assert sum(ledger_of(record).wall_seconds for record in collected("cifar_small").done) < 60 * int(minutes[1])
