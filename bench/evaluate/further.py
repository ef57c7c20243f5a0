"""The further evaluations by name, and the record of one of them."""

import time
from collections.abc import Callable
from typing import Any

from bench.evaluate.corruptions import corruptions
from bench.evaluate.few_labels import few_labels
from bench.evaluate.fine_tune import fine_tune
from bench.evaluate.knn import knn
from bench.evaluate.label_free import label_free
from bench.evaluate.linear import linear
from bench.evaluate.segmentation import segmentation
from bench.evaluate.subject import Found, Subject
from bench.evaluate.transfer import transfer
from bench.grid.evaluation import Evaluation
from bench.measure.clock import synchronise
from bench.measure.provenance import provenance
from bench.store.evaluated import Evaluated, evaluation_id

KINDS: dict[str, Callable[[Subject, Any], Found]] = {
    "linear": linear,
    "knn": knn,
    "few_labels": few_labels,
    "fine_tune": fine_tune,
    "transfer": transfer,
    "corruptions": corruptions,
    "label_free": label_free,
    "segmentation": segmentation,
}


def evaluated(subject: Subject, evaluation: Evaluation) -> Evaluated:
    """Return the record of an evaluation of a backbone. Raises UserError when it lacks something."""
    subject.features  # noqa: B018  the pass that evaluations share, which none of them is charged with
    began = time.perf_counter()
    found = KINDS[evaluation.name](subject, evaluation)
    synchronise(subject.device)
    task, data = subject.task, dict(found.data)
    return Evaluated(
        id=evaluation_id(task.id, evaluation, data),
        grid=subject.paths.grid,
        cell=task.id,
        evaluation=evaluation,  # type: ignore[arg-type]  # one of the kinds
        version=evaluation.version,
        data=data,
        values=dict(found.values),
        seconds=time.perf_counter() - began,
        flops=found.flops,
        provenance=provenance(subject.device),
        rehearsal=subject.paths.rehearsal,
    )
