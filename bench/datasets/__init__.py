"""Datasets: where they are looked for, how they are read, and their digests."""

from bench.datasets.base import (
    DatasetInfo,
    ImageSet,
    Split,
    balanced_part,
    dataset_digest,
    datasets,
    find_dataset,
    image_size,
    load_dataset,
    short_name,
)

__all__ = [
    "DatasetInfo",
    "ImageSet",
    "Split",
    "balanced_part",
    "dataset_digest",
    "datasets",
    "find_dataset",
    "image_size",
    "load_dataset",
    "short_name",
]
