"""What README and docs say of shipped results, made of the records by the report's own functions.

`python -m tests.readme` writes it anew, between `<!-- end -->` and one of `<!-- results: GRID -->` (all of it),
`<!-- headline: GRID -->` (the answer) and `<!-- terminal: GRID -->` (what `report` prints). With `--check` it only
names the files that differ.
"""

import io
import os
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path

from bench.plan.load import load_grid
from bench.report.claims import Judgement, judged
from bench.report.collect import Collected, collect
from bench.report.costs import TARGETS
from bench.report.facts import linear
from bench.report.render.markdown import escape_markdown, markdown_blocks, to_markdown
from bench.report.render.text import terminal_text
from bench.report.sections import front, label_free
from bench.report.sections.accuracy import accuracy_table, linear_caption, marks
from bench.report.sections.further import above_table
from bench.report.sections.gains import gain_table
from bench.report.sections.references import reference_table
from bench.report.sections.settings import settings
from bench.report.sections.smallest import smallest_table
from bench.report.sections.verdicts import certainty, headline, rooms, verdict_heading, verdict_table, verdicts_in_words

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?<=<!-- )(results|terminal|headline): (\S+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


def records_of(name: str) -> Path:
    """Where the records of a text are: the quickstart's are kept from `results/`, where its command would find them."""
    return ROOT / ("tests" if name == "quickstart" else "results") / name


def collected(name: str) -> Collected:
    grid, _, profile = name.partition("@")
    return collect(load_grid(grid, profile or None), records_of(name))


def terminal(found: Collected) -> str:
    """What `report` prints, but for the files that it wrote."""
    os.environ["COLUMNS"] = "80"
    with redirect_stdout(io.StringIO()):  # no terminal, whose width would count
        return f"```text\n{terminal_text(found, ()).strip()}\n```"


def results(found: Collected) -> str:
    """How a grid was run, its accuracies and verdicts; of few methods all, of many their gains or ways to save."""
    claims = judged(found)
    parts = [escape_markdown(text, None) for text in (" ".join(settings(found)), linear_caption(found))]
    if len(found.families) > 3:
        ways = markdown_blocks([*front.section(found)][1:])  # but for their heading
        return "\n\n".join([*parts, ways or to_markdown(gain_table(found)), verdicts(claims), without_labels(found)])
    for family in found.families:
        table = accuracy_table(found, family, linear)
        parts += [to_markdown(table), escape_markdown(" ".join(marks(found, family, table)), None)]
    parts += [verdicts(claims), "By the same probe, for comparison:", to_markdown(reference_table(found))]
    parts.append(to_markdown(verdict_table([[one for one in each if one.ledger == TARGETS] for each in claims])))
    parts.append(escape_markdown(certainty(claims), None))
    parts.append("\n".join(f"- {escape_markdown(line, None)}" for line in rooms(found, claims)))
    parts += ["The smallest budget that suffices, of those tried:", to_markdown(smallest_table(found))]
    if (above := above_table(found)).rows:
        parts.append("By the further evaluations: means beside the plain method's at the full budget, without a test.")
        parts.append(to_markdown(above))
    parts.append(without_labels(found))
    return "\n\n".join(filter(None, parts))


def without_labels(found: Collected) -> str:
    """Whether measures without labels tell accuracy."""
    return markdown_blocks([*label_free.section(found)][1:])  # but for its heading


def verdicts(claims: list[list[Judgement]]) -> str:
    """Which claims are what, counted in FLOP: a line for each verdict."""
    lines = [f"- {verdict}: {escape_markdown(names, None)}." for verdict, names in verdicts_in_words(claims)]
    return "\n".join([verdict_heading(claims), "", *lines])


def renewed(text: str) -> str:
    """The text with what it says of results as the records have it."""
    return BLOCK.sub(lambda match: f"{match[1]}: {match[2]}{match[3]}{MAKERS[match[1]](collected(match[2]))}\n", text)


def answer(found: Collected) -> str:
    """The first sentences of a report."""
    return escape_markdown(headline(found, judged(found)), None)


MAKERS = {"results": results, "headline": answer, "terminal": terminal}


def main() -> int:
    files = {path: path.read_text(encoding="utf-8") for path in FILES}
    differ = {path: new for path, text in files.items() if (new := renewed(text)) != text}
    for path, text in differ.items():
        print(path.name)
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
    return 1 if differ and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
