"""Datasets: where they are looked for, how they are read, and their digests."""

from bench.data.dataset import (
    DatasetFacts,
    DatasetInfo,
    ImageSet,
    Split,
    balanced_part,
    cached_facts,
    dataset_digest,
    dataset_facts,
    datasets,
    find_dataset,
    image_size,
    load_dataset,
    short_name,
)

__all__ = [
    "DatasetFacts",
    "DatasetInfo",
    "ImageSet",
    "Split",
    "balanced_part",
    "cached_facts",
    "dataset_digest",
    "dataset_facts",
    "datasets",
    "find_dataset",
    "image_size",
    "load_dataset",
    "short_name",
]
