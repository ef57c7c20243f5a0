"""The linear probe in full: top-1 and top-5, by both of its recipes."""

import statistics

from bench.evaluate.linear_probe import Fit, linear_probe
from bench.evaluate.subject import Found, Subject
from bench.grid.evaluation import Linear

TOP5_CLASSES = 10  # at least, for the first five to mean anything


def linear(subject: Subject, settings: Linear) -> Found:
    """Return top-1 and, of at least ten classes, top-5 of the linear probe by L-BFGS and by Adam."""
    classes, values = subject.images.classes, dict[str, float]()
    papers = subject.task.cell.protocol.probe.model_copy(update={"recipe": "adam", "seeds": 1})
    for name, probe in {"L-BFGS": subject.probe, "Adam": papers}.items():
        (fit,) = linear_probe(subject.features, classes, probe, subject.seed)
        values |= {f"{name} {key}": value for key, value in top(fit, classes).items()}
    return Found(values)


def top(fit: Fit, classes: int) -> dict[str, float]:
    """Return a probe's top-1 and, of at least ten classes, top-5: means over its last epochs."""
    return shares(statistics.fmean(fit.accuracies), statistics.fmean(fit.top5), classes)


def shares(top1: float, top5: float, classes: int) -> dict[str, float]:
    """Return the share of images whose class comes first and, of at least ten classes, is among the first five."""
    return {"top-1": top1} | ({"top-5": top5} if classes >= TOP5_CLASSES else {})
