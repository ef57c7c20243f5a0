"""Tables and plots from records."""

from pathlib import Path

from bench.core.environment import keeping_all
from bench.grid.schema import Grid
from bench.report.collect import collect
from bench.report.document import report_document
from bench.report.frames import points_frame, results_frame, to_csv
from bench.report.html import html_document
from bench.report.latex import latex_document
from bench.report.markdown import markdown_document
from bench.report.plots import NotDrawn, draw_plots, own_settings, write_files
from bench.report.terminal import terminal_text

__all__ = ["NotDrawn", "write_report"]

PLOTS = ("accuracy_vs_steps", "accuracy_vs_flops", "accuracy_vs_epochs", "saving_vs_target")


@keeping_all()
def write_report(grid: Grid, records: Path, out: Path) -> str:
    """Write tables and plots of a grid's records to the folder `out` and return a short text for the terminal.

    Reads records only and trains nothing. Raises UserError when the grid has no record.
    """
    found = collect(grid, records)
    document = report_document(found)
    with own_settings():
        page = html_document(document)
    files = {
        "report.md": markdown_document(document).encode(),
        "index.html": page.encode(),
        "table.csv": to_csv(results_frame(found)),
        "points.csv": to_csv(points_frame(found)),
        "table.tex": latex_document(found).encode(),
        **draw_plots(found, PLOTS),
    }
    write_files(files, out, PLOTS)
    return terminal_text(found, [out / name for name in files])
