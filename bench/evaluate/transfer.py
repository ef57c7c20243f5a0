"""The frozen backbone on other datasets."""

from bench.data import Split, balanced_part, load_dataset
from bench.data.loader import open_source
from bench.evaluate.features import extract
from bench.evaluate.linear import top
from bench.evaluate.linear_probe import linear_probe
from bench.evaluate.subject import Found, Subject
from bench.grid.evaluation import Transfer


def transfer(subject: Subject, settings: Transfer) -> Found:
    """Return the accuracies of linear probes on other datasets. Raises MissingError when one is not here."""
    values: dict[str, float] = {}
    digests: dict[str, str] = {}
    for name in settings.datasets:
        subject.check()
        data = load_dataset(name, subject.paths)
        digests[name] = data.digest
        size, device = subject.images.size, subject.device
        train, test = _part(data.train, settings.train_images), _part(data.test, settings.test_images)
        seen, unseen = (open_source(split, size, device, subject.workers) for split in (train, test))
        features = extract(subject.backbone, seen, unseen, subject.view)
        (fit,) = linear_probe(features, data.classes, subject.probe, subject.seed)
        values |= {f"{name} {key}": value for key, value in top(fit, data.classes).items()}
    return Found(values, data=digests)


def _part(split: Split, count: int | None) -> Split:
    """Return a class-balanced part of a split, all of it where there are not more images."""
    if count is None or count >= len(split):
        return split
    return split.part(balanced_part(split.labels, count))
