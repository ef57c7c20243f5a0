"""What a check found, as text, as Markdown and as JUnit XML."""

import math
import os
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from bench.check.baseline import Baseline
from bench.check.compare import Finding, same_seeds
from bench.core.files import atomic_write
from bench.report.render.markdown import escape_markdown, to_markdown
from bench.report.render.text import to_text
from bench.report.tables import Entry, Table

MOST_ROWS = 12
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def verdict(findings: Sequence[Finding], baseline: Baseline, now: Baseline) -> str:
    """Return one sentence: red or not, and of how many comparisons."""
    red = sum(finding.red for finding in findings)
    seeds = f"{len(now.seeds)} seeds against {len(baseline.seeds)}"
    if red:
        return f"{red} of {len(findings)} comparisons moved ({seeds})"
    most = max((abs(finding.moved) for finding in findings if finding.moved is not None), default=0.0)
    return f"nothing moved: {len(findings)} comparisons ({seeds}), at most {most:.1f} standard deviations"


def sameness(baseline: Baseline, now: Baseline) -> str:
    """Return a sentence on what decides nothing: whether data and the results of common seeds are the same."""
    other = sorted(name for name, content in now.data.items() if baseline.data.get(name) != content)
    data = f"; not on the same pixels of {', '.join(other)}" if other else ""
    count, differ, most = same_seeds(baseline, now)
    if not count:
        return f"no seed in common with the baseline{data}"
    if not differ:
        return f"all {count} values of the seeds in common are the baseline's, bit for bit{data}"
    return f"{differ} of {count} values of the seeds in common differ, by at most {most:.2g} standard deviations{data}"


def moved_table(findings: Sequence[Finding]) -> Table:
    """Return what is red, or else what moved the most."""
    red = sorted((finding for finding in findings if finding.red), key=_distance, reverse=True)
    rest = sorted((finding for finding in findings if finding.moved is not None), key=_distance, reverse=True)
    rows = tuple(
        (
            Entry(finding.where),
            Entry(finding.what),
            Entry(finding.before),
            Entry(finding.now),
            Entry("" if finding.moved is None else f"{finding.moved:+.1f}", bold=finding.red),
            Entry("" if finding.p is None else f"{finding.p:.1g}"),
        )
        for finding in (red or rest)[:MOST_ROWS]
    )
    return Table(("Cell", "What", "Baseline", "Now", "Moved, sd", "p"), rows, names=2)


def _distance(finding: Finding) -> float:
    return math.inf if finding.moved is None else abs(finding.moved)


def check_text(findings: Sequence[Finding], baseline: Baseline, now: Baseline) -> str:
    """Return what the terminal shows."""
    left = max(0, sum(finding.red for finding in findings) - MOST_ROWS)
    lines = [to_text(moved_table(findings)), f"and {left} more\n" if left else ""]
    return "\n".join([*lines, sameness(baseline, now), f"check: {verdict(findings, baseline, now)}"])


def check_markdown(findings: Sequence[Finding], baseline: Baseline, now: Baseline) -> str:
    """Return the same as Markdown, ending with a line break: what a CI job's summary shows."""
    title = f"### {'❌' if any(finding.red for finding in findings) else '✅'} `check {baseline.grid}`"
    sentence = escape_markdown(f"{verdict(findings, baseline, now)}; {sameness(baseline, now)}.")
    return "\n\n".join([title, sentence, to_markdown(moved_table(findings))]) + "\n"


def publish(findings: Sequence[Finding], baseline: Baseline, now: Baseline, junit: Path | None) -> None:
    """Print the comparison; then write the JUnit file and, in a GitHub job, its summary."""
    print(check_text(findings, baseline, now))
    if junit:
        write_junit(findings, now.grid, junit)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(check_markdown(findings, baseline, now))
        except OSError as error:
            print(f"GITHUB_STEP_SUMMARY={summary}: {error.strerror}; there is no summary", file=sys.stderr)


def write_junit(findings: Sequence[Finding], grid: str, path: Path) -> None:
    """Write a test case for each comparison, atomically; a red one has failed."""
    suite = ET.Element("testsuite", name=f"check {grid}", tests=str(len(findings)))
    suite.set("failures", str(sum(finding.red for finding in findings)))
    for finding in findings:
        names = {"classname": f"{grid}.{finding.where}", "name": finding.what}
        case = ET.SubElement(suite, "testcase", {key: _NO_XML.sub("\ufffd", text) for key, text in names.items()})
        by = "" if finding.moved is None else f", moved by {finding.moved:+.2f} sd"
        told = _NO_XML.sub("\ufffd", f"was {finding.before}, is {finding.now}{by}")
        if finding.red:
            ET.SubElement(case, "failure", message=told)
        else:
            ET.SubElement(case, "system-out").text = told
    with atomic_write(path) as file:
        ET.ElementTree(suite).write(file, encoding="utf-8", xml_declaration=True)
