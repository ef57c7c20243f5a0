"""Trackers: where the values of a running cell are shown live, one file each. `run --track NAME` chooses one."""

from bench.core.errors import UserError, describe_error
from bench.core.registry import Registry
from bench.run.trackers.base import Run, Tracker

trackers: Registry[type[Tracker]] = Registry(
    "tracker", "bench.run.trackers", group="rela_bench.trackers", contract=Tracker
)


def find_tracker(name: str) -> type[Tracker]:
    """Return a tracker by its name, with what it needs imported. Raises UserError on an unknown or incomplete one."""
    kind = trackers.get(name)
    try:
        kind.load()
    except ImportError as error:
        extra = f": pip install 'rela-bench[{name}]'" if kind.__module__.startswith(__name__) else ""
        package = error.name.partition(".")[0] if error.name else describe_error(error)
        raise UserError(f"--track {name}: needs the package {package}{extra}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"--track {name}: {describe_error(error)}") from error
    return kind


__all__ = ["Run", "Tracker", "find_tracker", "trackers"]
