"""Tiny-ImageNet: a folder of images."""

from bench.data.dataset import DatasetInfo, datasets


@datasets.register("tiny_imagenet")
class TinyImageNet(DatasetInfo):
    """Tiny-ImageNet (Le and Yang 2015): 100,000 + 10,000 images of 64x64 pixels."""

    title, short, classes, image_size = "Tiny-ImageNet", "TIN", 200, 64
    train_images, test_images = 100_000, 10_000
    hint = "unpack tiny-imagenet-200.zip as tiny_imagenet/{train,val}/<class>/*"
