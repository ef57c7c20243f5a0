"""Datasets: where they are looked for, how they are read, and their digests."""

from bench.data.cache import DatasetFacts, ImageSet, cached_facts, dataset_cache, dataset_facts, load_dataset
from bench.data.dataset import DatasetInfo, Split, balanced_part, datasets, find_dataset, image_size, short_name

__all__ = [
    "DatasetFacts",
    "DatasetInfo",
    "ImageSet",
    "Split",
    "balanced_part",
    "cached_facts",
    "dataset_cache",
    "dataset_facts",
    "datasets",
    "find_dataset",
    "image_size",
    "load_dataset",
    "short_name",
]
