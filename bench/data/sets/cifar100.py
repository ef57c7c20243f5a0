"""CIFAR-100: the archive of its authors, or a folder of images."""

from typing import ClassVar

from bench.data.dataset import datasets
from bench.data.sets.cifar10 import Cifar10


@datasets.register("cifar100")
class Cifar100(Cifar10):
    """CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 images of 32x32 pixels, fine labels."""

    title, short, classes = "CIFAR-100", "CF100", 100
    hint = "`prepare` downloads it, or unpack it as cifar100/{train,test}/<class>/*"
    torchvision = "CIFAR100"
    archive, label_key = "cifar-100-python", b"fine_labels"
    known: ClassVar[dict[str, str]] = {
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    }
