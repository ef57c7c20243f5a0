"""The handwritten digits of scikit-learn, which need no download."""

from pathlib import Path

import numpy as np

from bench.data.dataset import DatasetInfo, Split, datasets, grey_to_rgb


@datasets.register("digits")
class Digits(DatasetInfo):
    """1,797 handwritten digits of 8x8 pixels that scikit-learn ships; every fifth is for test."""

    title, short, classes, image_size = "Digits", "DIGITS", 10, 8
    train_images, test_images = 1437, 360
    hint = "it comes with scikit-learn"

    def here(self, root: Path) -> bool:
        return True

    def read(self, root: Path) -> tuple[Split, Split]:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = grey_to_rgb(np.round(bunch.images * (255 / 16)).astype(np.uint8))
        labels = bunch.target.astype(np.int64)
        test = np.arange(len(labels)) % 5 == 0
        return Split(images[~test], labels[~test]), Split(images[test], labels[test])
