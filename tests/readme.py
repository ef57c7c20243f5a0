"""What README and docs say of shipped results, made of the records by the report's own functions.

`python -m tests.readme` writes it anew, between `<!-- results: GRID -->` and `<!-- end -->`; with `--check` it only
names the files that differ.
"""

import re
import sys
from pathlib import Path

from bench.plan.load import load_grid
from bench.report.claims import Judgement, judged
from bench.report.collect import Collected, collect
from bench.report.costs import FLOP, TARGETS
from bench.report.facts import linear
from bench.report.render.markdown import escape_markdown, to_markdown
from bench.report.sections.accuracy import accuracy_table, linear_caption, marks
from bench.report.sections.gains import gain_table
from bench.report.sections.references import reference_table
from bench.report.sections.settings import settings
from bench.report.sections.smallest import smallest_table
from bench.report.sections.verdicts import certainty, rooms, verdict_table

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
    parts += [to_markdown(table), escape_markdown(" ".join(marks(table, family.name)), None)]
    parts += ["By the same probe, for comparison:", to_markdown(reference_table(found)), verdicts(claims)]
    parts.append(to_markdown(verdict_table([[one for one in each if one.ledger == TARGETS] for each in claims])))
    parts.append(escape_markdown(certainty(claims), None))
    parts.append("\n".join(f"- {escape_markdown(line, None)}" for line in rooms(found, claims)))
    parts += ["The smallest budget that suffices, of those tried:", to_markdown(smallest_table(found))]
    return "\n\n".join(filter(None, parts))


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


def renewed(text: str) -> str:
    """The text with what it says of results as the records have it."""
    return BLOCK.sub(lambda match: f"{match[1]}{match[2]}{text_of(collected(match[1]))}\n", text)


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
