"""The verb `check`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bench.cli import options
from bench.cli.planning import load_plugins, run_here
from bench.core.errors import UserError
from bench.plan.request import Request

EMPTY = "empty folder for the records; default: a temporary one"


def check(
    grid: options.GridArgument = None,
    named: options.NamedOption = None,
    baseline: Annotated[Path | None, options.PathOption(help="file of stored values; cifar_ci has its own")] = None,
    update: Annotated[bool, typer.Option("--update", help="write the baseline instead")] = False,
    seeds: Annotated[int | None, typer.Option(help="default: the grid's, or 30 with --update", min=1)] = None,
    junit: Annotated[Path | None, options.PathOption(help="JUnit XML file to write")] = None,
    profile: options.ProfileOption = None,
    settings: options.SetOption = None,
    device: options.DeviceOption = "auto",
    data_root: options.DataOption = Path("data"),
    results: Annotated[Path | None, options.PathOption(help=EMPTY)] = None,
    plugin: options.PluginOption = None,
    workers: Annotated[int, typer.Option(min=0, hidden=True)] = 2,
) -> None:
    """Rerun a small grid and compare it with its baseline; exit code 1 if something moved."""
    from bench.check.baseline import read_baseline
    from bench.check.check import Gate, baseline_path, with_seeds
    from bench.core.device import find_device

    if update and junit:
        raise UserError("--update only writes the baseline: leave out --junit")
    chosen = options.chosen_grid(grid, named, profile)
    request = Request(*chosen, tuple(settings or ()), tuple(plugin or ()), data_root)
    load_plugins(plugin)
    spec = with_seeds(request.load()[0], seeds, update)
    path = baseline_path(baseline, spec)
    gate = Gate(spec, data_root, results, partial(run_here, device=find_device(device), workers=workers))
    if update:
        print(gate.update(path))
        return
    with request.naming_commands():
        stored = read_baseline(path, spec)
    if gate.moved(stored, junit):
        raise typer.Exit(1)
