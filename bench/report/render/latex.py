"""The report's first table as LaTeX."""

from bench.report.collect import Collected
from bench.report.facts import linear
from bench.report.sections.accuracy import accuracy_table, linear_caption, marks
from bench.report.sections.settings import settings
from bench.report.tables import Entry, Table, one_line


def latex_document(found: Collected) -> str:
    """Return a tabular of linear accuracies for each method."""
    parts = ["% \\usepackage{booktabs}"]
    for family in found.families:
        table = accuracy_table(found, family, linear)
        notes = [f"Linear accuracy in % of the test images, grid {found.grid.name}, method {family.name}."]
        notes += [*settings(found), linear_caption(found), *marks(found, family, table)]
        parts.append("\n".join([*(f"% {escape_latex(note)}" for note in notes), to_latex(table)]))
    return "\n\n".join(parts) + "\n"


def to_latex(table: Table) -> str:
    """Return a table as a tabular for the package booktabs."""
    numbers = len(table.head) - table.names
    lines = [
        rf"\begin{{tabular}}{{{'l' * table.names}{'r' * numbers}}}",
        r"\toprule",
        rf"{' & '.join(escape_latex(text) for text in table.head)} \\",
        r"\midrule",
    ]
    before = None
    for row in table.rows:
        if before not in (None, row[0].text):
            lines.append(r"\midrule")
        first = "" if row[0].text == before else escape_latex(row[0].text)
        lines.append(rf"{' & '.join([first, *map(_latex_entry, row[1:])])} \\")
        before = row[0].text
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


# In braces: a bracket or a star at the beginning of a row would be taken for an argument of the line break before it.
_LATEX = {
    **{c: f"\\{c}" for c in "{}$&#_%"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "±": r"$\pm$",
    "—": "---",
    "…": r"\ldots{}",
    "†": r"$^\dag$",
    "‡": r"$^\ddag$",
    "§": r"\S{}",
}


def escape_latex(text: str) -> str:
    """Return text that LaTeX prints as it is; a letter that pdflatex may not know is given by its code point."""
    return "".join(
        _LATEX.get(c) or (c if c.isascii() or _is_accented(c) else f"{{[}}U+{ord(c):04X}{{]}}") for c in one_line(text)
    )


def _is_accented(c: str) -> bool:
    return "À" <= c <= "ÿ" and c not in "\xd7\xf7ÐðÞþ"  # the signs for times and divided by


def _latex_entry(entry: Entry) -> str:
    text = escape_latex(entry.text)
    text = rf"\textbf{{{text}}}" if entry.bold else text
    text = rf"\underline{{{text}}}" if entry.underline else text
    return f"{text} {escape_latex(entry.note)}".rstrip()
