"""The further evaluations of a finished cell, one after the other; one that fails leaves the others, and the cell."""

import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.core.errors import Interrupted, Lost, WriteError
from bench.core.paths import Paths
from bench.data.images import open_images
from bench.evaluate.further import evaluated
from bench.evaluate.subject import Subject, trained_backbone
from bench.grid.evaluation import Evaluation
from bench.measure.memory import memory_for, release
from bench.plan.graph import Ready
from bench.run.attempt import judged
from bench.run.events import CellLog
from bench.store.evaluated import write_evaluated


def evaluate(
    task: Ready,
    asked: Sequence[Evaluation],
    paths: Paths,
    device: torch.device,
    workers: int,
    check: Callable[[], None],
    tell: Callable[[str, dict[str, Any]], None],
) -> None:
    """Make evaluations of a cell's saved backbone, each with a record of its own, and tell what they found.

    `check` is called now and then, and may raise to stop. Raises WriteError when a record cannot be written.
    """
    subject: Subject | None = None
    for evaluation in asked:
        check()
        try:
            with memory_for(f"evaluating by {evaluation.name}", device):
                if subject is None:
                    images = open_images(task.cell, paths, device, workers)
                    backbone = trained_backbone(task, images, paths, device)
                    subject = Subject(task, backbone, images, paths, device, workers, check)
                record = evaluated(subject, evaluation)
        except (Interrupted, Lost, WriteError):
            raise
        except (Exception, SystemExit) as error:  # of one evaluation; the cell and the others have their results
            CellLog(paths.work(task.id)).text(traceback.format_exc())
            tell("unevaluated", {"name": evaluation.name, "why": judged(error)[1]})
            continue
        check()
        write_evaluated(record, paths.evaluations(task.id))
        form = "{:.1%}" if evaluation.unit == "%" else "{:.3g}"
        found = ", ".join(f"{name} {form.format(value)}" for name, value in record.values.items())
        tell("evaluated", {"name": evaluation.name, "found": found})
    if asked:
        release(device)
