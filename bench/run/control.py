"""What `run` does around an executor: which of the planned tasks it runs, and how their end is reported."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence

import typer

from bench.core.environment import launched
from bench.core.errors import DeviceLost, Interrupted, UserError, WriteError, did_you_mean
from bench.core.paths import Paths
from bench.plan.graph import Ready, Task, Waiting
from bench.plan.state import Outcome, with_status

LOST = 70  # exit code of one of several processes that leaves its place to another one


def chosen(tasks: Sequence[Task], paths: Paths, cells: Sequence[str], retry: Sequence[str]) -> list[Task]:
    """Return the tasks that `--cell` and `--retry` choose, the latter with what they need; all without them.

    The cell `-` stands for those whose ids are on standard input. Raises UserError on an id that no cell has, and when
    there is none.
    """
    known = {task.id for task in tasks if isinstance(task, Ready)}
    if "-" in cells:
        said = sys.stdin.read().split()
        if not said:
            raise UserError("--cell -: there is no id on standard input")
        cells = [*(each for each in cells if each != "-"), *said]
    for each in cells:
        if each not in known:
            raise UserError(f"--cell {each}: no cell of {paths.grid} has this id; `status --cells` shows them")
    if cells:
        named = set(cells)
        tasks = [task for task in tasks if isinstance(task, Ready) and task.id in named]
    if not retry:
        return list(tasks)
    again = {task.id for task in with_status(tasks, paths, retry)}
    if not again:
        print(f"no cell is {' or '.join(retry)}")
    return [task for task in tasks if isinstance(task, Ready) and task.id in again]


def in_turns(
    tasks: Sequence[Task], plan_again: Callable[[], Sequence[Task]], run: Callable[[Sequence[Task]], list[Outcome]]
) -> list[Outcome]:
    """Run tasks, and then those that waited for trials, and return what became of each.

    The trials of a cell choose its recipe, so that it is planned again once they have run.
    """
    outcomes: dict[str, Outcome] = {}
    while fresh := [task for task in tasks if not isinstance(task, Waiting) and _name(task) not in outcomes]:
        outcomes |= {_name(outcome.task): outcome for outcome in run(fresh)}
        if any(task.cell.tuned for task in tasks):
            tasks = plan_again()
    queued = any(outcome.status == "queued" for outcome in outcomes.values())
    waits = [
        Outcome(task, "queued" if queued else "skipped", reason=task.reason)
        for task in tasks
        if isinstance(task, Waiting)
    ]
    return [outcomes[_name(task)] for task in tasks if not isinstance(task, Waiting)] + waits


def _name(task: Task) -> str:
    return task.id if isinstance(task, Ready) else task.cell.key()


def check_retry(retry: Sequence[str], other: bool) -> None:
    """Raise UserError unless `--retry` names statuses and stands alone."""
    known = ["failed", "oom", "timeout"]
    for status in retry:
        if status not in known:
            raise UserError(f"--retry {status}: no such status{did_you_mean(status, known)}")
    if retry and other:
        raise UserError("--retry is for a real run: leave out --rehearse and --dry-run")


def concluded(run: Callable[[], list[Outcome]], paths: Paths) -> list[Outcome]:
    """Return what `run()` returns, having printed what became of the cells. Raises Exit where the run ended early."""
    try:
        outcomes = run()
    except Interrupted:
        if speaks():
            print("stopped, and what was running is saved: the same command resumes it", file=sys.stderr)
        raise typer.Exit(130) from None
    except KeyboardInterrupt:
        print("stopped at once: the same command resumes from the last checkpoint", file=sys.stderr)
        raise typer.Exit(130) from None
    except WriteError as error:
        raise UserError(
            f"{error.filename}: cannot be written ({error.strerror}); finished cells and the last checkpoint are kept:"
            " make room and run the same command again"
        ) from error
    except DeviceLost:
        raise typer.Exit(LOST) from None
    if speaks():
        _conclude(outcomes, paths)
    return outcomes


def speaks() -> bool:
    """Return whether this process is the one that prints how the command ends."""
    return launched() is None


def _conclude(outcomes: Sequence[Outcome], paths: Paths) -> None:
    queued = sum(outcome.status == "queued" for outcome in outcomes)
    bad = [outcome for outcome in outcomes if outcome.bad]
    elsewhere = sum(outcome.elsewhere for outcome in outcomes)
    before = sum(outcome.cached for outcome in outcomes) - elsewhere
    by_others = f", {elsewhere} by other runners" if elsewhere else ""
    waiting = f", {queued} queued" if queued else ""
    done = f"{len(outcomes) - len(bad) - queued} of {len(outcomes)} cells done ({before} before{by_others}){waiting}"
    print(f"{paths.mark}{done}; records in {paths.records}")
    told = Counter(
        (each.status, each.reason) for each in bad if isinstance(each.task, Ready)
    )  # of others: what is missing
    for (state, reason), count in told.items():
        print(f"{count} {state}: {reason}", file=sys.stderr)
