"""The command line. Torch and the registries are imported by the verbs that need them: `--help` is instant."""

import sys

import typer

from bench.cli.check import check
from bench.cli.evaluate import evaluate
from bench.cli.listing import list_names
from bench.cli.merge import merge
from bench.cli.prepare import prepare
from bench.cli.report import report
from bench.cli.run import run, worker
from bench.cli.schema import schema
from bench.cli.status import cancel, status
from bench.core.environment import keep_talking, tune_process
from bench.core.errors import UserError

app = typer.Typer(
    name="rela-bench",
    help="Does a free prior model halve the cost of self-supervised learning? Run it and see.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in (run, evaluate, check, report, status, cancel, prepare, merge, schema):
    app.command()(verb)
app.command("list")(list_names)
app.command(hidden=True)(worker)
results_app = typer.Typer(help="The old name of `merge`.", no_args_is_help=True, rich_markup_mode=None)
results_app.command()(merge)
app.add_typer(results_app, name="results", hidden=True)


def main() -> None:
    """Run the command line; a UserError, or a path that cannot be used, becomes one sentence and exit code 2."""
    keep_talking()
    tune_process()
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if not error.filename:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
