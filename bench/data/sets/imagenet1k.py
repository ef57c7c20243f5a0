"""ImageNet-1K: a folder of images, decoded when they are needed."""

from bench.data.dataset import DatasetInfo, datasets


@datasets.register("imagenet1k")
class ImageNet1K(DatasetInfo):
    """ImageNet-1K (Russakovsky et al. 2015): 1,281,167 + 50,000 images of many sizes."""

    title, short, classes, streams = "ImageNet-1K", "IN1K", 1000, True
    train_images, test_images = 1_281_167, 50_000
    hint = "unpack ILSVRC2012 (image-net.org) as imagenet1k/{train,val}/<class>/*"
