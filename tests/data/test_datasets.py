"""Datasets as they come, and as they should not: every damage is a sentence that names a path."""

import gzip
import hashlib
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100

from bench.core.errors import MissingError, UserError
from bench.core.paths import Paths
from bench.core.registry import Registry, load_plugin
from bench.data import (
    DatasetInfo,
    ImageSet,
    Split,
    balanced_part,
    dataset_cache,
    dataset_facts,
    datasets,
    find_dataset,
    load_dataset,
)
from bench.data.decode import read_image
from bench.data.folder import PathList
from bench.data.sets.cifar10 import Cifar10
from bench.data.sets.cifar100 import Cifar100

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_CACHE", raising=False)
    dataset_cache.clear()


def paths(root: Path) -> Paths:
    return Paths(data=root, results=root / "results", grid="g")


def load(name: str, root: Path) -> ImageSet:
    """Load as a new process would: from disk."""
    dataset_cache.clear()
    return load_dataset(name, paths(root))


def pixels(found: ImageSet, split: str = "train") -> np.ndarray:
    images = getattr(found, split).images
    assert isinstance(images, np.ndarray)
    return images


def refusal(name: str, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(name, root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# Digits


def test_digits_are_those_of_scikit_learn(tmp_path: Path) -> None:
    found = load("digits", tmp_path)
    bunch = load_digits()
    test = np.arange(1797) % 5 == 0
    for split, mask in ((found.train, ~test), (found.test, test)):
        assert isinstance(split.images, np.ndarray)
        assert split.images.dtype == np.uint8
        assert split.images.shape == (mask.sum(), 3, 8, 8)
        assert np.array_equal(split.labels, bunch.target[mask])
        assert np.abs(split.images / 255 - bunch.images[mask][:, None] / 16).max() <= 0.5 / 255
    assert (found.title, found.classes) == ("Digits", 10)
    assert len(found.train) == find_dataset("digits", tmp_path).train_images


# CIFAR, as the archive has it


class Python2:
    """Writes what Python 2's `cPickle.dump(batch, file, 2)` wrote: `str` is bytes there, arrays are numpy 1's."""

    def __call__(self, value: Any) -> bytes:
        return b"\x80\x02" + self.write(value) + b"."

    def write(self, value: Any) -> bytes:
        if isinstance(value, dict):
            return b"}(" + b"".join(self.write(k) + self.write(v) for k, v in value.items()) + b"u"
        if isinstance(value, list):
            return b"](" + b"".join(map(self.write, value)) + b"e"
        if isinstance(value, tuple):
            return b"(" + b"".join(map(self.write, value)) + b"t"
        if isinstance(value, bytes):
            return b"T" + struct.pack("<i", len(value)) + value
        if isinstance(value, bool):
            return b"\x88" if value else b"\x89"
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, np.ndarray):
            make = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + self.write((0,)) + b"U\x01btR"
            kind = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            state = b"(K\x01" + self.write(value.shape) + kind + b"\x89" + self.write(value.tobytes()) + b"t"
            return make + state + b"b"
        raise TypeError(type(value))


PYTHON2 = Python2()


def python3(value: Any) -> bytes:
    return pickle.dumps(value, protocol=2)


Write = Callable[[Any], bytes]


def batch(count: int, key: bytes, classes: int, seed: int) -> dict[bytes, Any]:
    labels = (np.random.default_rng(seed).permutation(count) % classes).tolist()
    return {
        b"batch_label": b"batch",
        key: labels,
        b"data": noise(count, 3072, seed=seed),
        b"filenames": [b"a.png"] * count,
    }


def cifar(root: Path, name: str, write: Write = PYTHON2) -> list[tuple[Path, dict[bytes, Any]]]:
    """Write a small archive; return its files with what is in them, the test batch last."""
    if name == "cifar10":
        folder, key, names = "cifar-10-batches-py", b"labels", [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    else:
        folder, key, names = "cifar-100-python", b"fine_labels", ["train", "test"]
    (root / folder).mkdir(parents=True)
    found = []
    for seed, file in enumerate(names):
        classes = 10 if name == "cifar10" else 100
        content = batch(classes + seed, key, classes, seed)
        if name == "cifar100":
            content[b"coarse_labels"] = [0] * (classes + seed)
        (root / folder / file).write_bytes(write(content))
        found.append((root / folder / file, content))
    return found


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """`publish(path)`: let a file of an archive be the one that was published."""

    def as_it_is(path: Path) -> None:
        digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        monkeypatch.setitem((Cifar10 if path.parent.name == Cifar10.archive else Cifar100).known, path.name, digest)

    return as_it_is


@pytest.mark.parametrize("write", [PYTHON2, python3], ids=["python2", "python3"])
@pytest.mark.parametrize(("name", "key"), [("cifar10", b"labels"), ("cifar100", b"fine_labels")])
def test_a_cifar_archive(tmp_path: Path, name: str, key: bytes, write: Write, publish: Callable[[Path], None]) -> None:
    *train, (_, test) = files = cifar(tmp_path, name, write)
    for path, _ in files:
        publish(path)
    found = load(name, tmp_path)
    contents = [content for _, content in train]
    data = np.concatenate([content[b"data"] for content in contents])
    assert np.array_equal(pixels(found), data.reshape(-1, 3, 32, 32))
    assert found.train.labels.tolist() == [label for content in contents for label in content[key]]
    assert np.array_equal(pixels(found, "test"), test[b"data"].reshape(-1, 3, 32, 32))
    assert found.test.labels.tolist() == test[key]
    train_part, test_part = (60, 15) if name == "cifar10" else (100, 101)
    part = f"{train_part} of 50,000 images, {test_part} of 10,000 test images"
    assert found.title == f"{'CIFAR-10' if name == 'cifar10' else 'CIFAR-100'}, {part}"


def test_python_2s_pickle_is_the_one_that_numpy_reads() -> None:
    content = batch(3, b"labels", 10, 0)
    found = pickle.loads(PYTHON2(content), encoding="bytes")  # our own bytes
    assert np.array_equal(found.pop(b"data"), content.pop(b"data"))
    assert found == content


def test_an_incomplete_archive_is_none(tmp_path: Path) -> None:
    cifar(tmp_path, "cifar10")[2][0].unlink()
    with pytest.raises(MissingError, match="looked in"):
        load("cifar10", tmp_path)


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_pickle_that_was_not_published_is_not_loaded(tmp_path: Path, name: str) -> None:
    target = tmp_path / "made"
    path = cifar(tmp_path, name)[0][0]
    path.write_bytes(pickle.dumps(Evil(target)))
    text = refusal(name, tmp_path)
    assert text.startswith(f"{path}: not the file that was published (MD5 ")
    assert not target.exists()
    pickle.loads(path.read_bytes())  # the trap itself works
    assert target.exists()


def test_damaged_cifar_batches_are_refused(tmp_path: Path, publish: Callable[[Path], None]) -> None:
    files = [path for path, _ in cifar(tmp_path, "cifar10")]
    for path in files:
        publish(path)
    before, whole = load("cifar10", tmp_path), files[1].read_bytes()
    flipped = bytearray(whole)
    flipped[2000] ^= 1
    for content in (b"", whole[:-1], bytes(flipped), whole + b"\0", python3({})):
        files[1].write_bytes(content)
        assert refusal("cifar10", tmp_path).startswith(f"{files[1]}: not the file that was published (MD5 ")
    files[1].write_bytes(whole)
    assert load("cifar10", tmp_path).digest == before.digest


@pytest.mark.parametrize(("ours", "theirs"), [(Cifar10, CIFAR10), (Cifar100, CIFAR100)])
def test_the_published_files_are_those_of_torchvision(ours: type[Cifar10], theirs: type[CIFAR10]) -> None:
    assert list(ours.known.items()) == [tuple(each) for each in theirs.train_list + theirs.test_list]
    assert (ours.archive, ours.torchvision) == (theirs.base_folder, theirs.__name__)


# Fashion-MNIST


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.astype(np.uint8).tobytes()


def fashion(root: Path, zipped: bool, folder: str = "fashion_mnist") -> dict[str, np.ndarray]:
    arrays = {
        "train-images-idx3-ubyte": noise(20, 28, 28),
        "train-labels-idx1-ubyte": np.arange(20) % 10,
        "t10k-images-idx3-ubyte": noise(10, 28, 28, seed=1),
        "t10k-labels-idx1-ubyte": np.arange(10)[::-1],
    }
    (root / folder).mkdir(parents=True)
    for stem, array in arrays.items():
        raw = idx(array)
        (root / folder / (f"{stem}.gz" if zipped else stem)).write_bytes(gzip.compress(raw) if zipped else raw)
    return arrays


@pytest.mark.parametrize("folder", ["fashion_mnist", "FashionMNIST/raw"])
@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist(tmp_path: Path, zipped: bool, folder: str) -> None:
    arrays = list(fashion(tmp_path, zipped, folder).values())
    found = load("fashion_mnist", tmp_path)
    assert np.array_equal(pixels(found), np.repeat(arrays[0][:, None], 3, axis=1))
    assert np.array_equal(pixels(found, "test"), np.repeat(arrays[2][:, None], 3, axis=1))
    assert found.train.labels.tolist() == arrays[1].tolist()
    assert found.test.labels.tolist() == arrays[3].tolist()
    assert found.title == "Fashion-MNIST, 20 of 60,000 images, 10 of 10,000 test images"
    assert found.classes == 10


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("stem", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_damaged_idx_file(tmp_path: Path, stem: str, zipped: bool) -> None:
    fashion(tmp_path, zipped)
    path = tmp_path / "fashion_mnist" / (f"{stem}.gz" if zipped else stem)
    whole = path.read_bytes()
    half = len(whole) // 2
    damaged = [
        b"",
        whole[:3],
        whole[:half],
        whole[:-1],
        b"\1" + whole[1:],
        whole[:10] + b"\xff" + whole[11:],
    ]
    for content in damaged if zipped else damaged[:-1]:
        path.write_bytes(content)
        assert refusal("fashion_mnist", tmp_path).startswith(f"{path}: not ")


@pytest.mark.parametrize(
    ("stem", "array"),
    [
        ("train-images-idx3-ubyte", noise(20, 27, 28)),
        ("train-images-idx3-ubyte", noise(20)),
        ("train-labels-idx1-ubyte", noise(19) % 10),
        ("train-labels-idx1-ubyte", noise(20, 28, 28)),
        ("t10k-labels-idx1-ubyte", np.arange(1, 11)),
    ],
)
def test_idx_files_that_do_not_belong_together(tmp_path: Path, stem: str, array: np.ndarray) -> None:
    fashion(tmp_path, zipped=False)
    path = tmp_path / "fashion_mnist" / stem
    path.write_bytes(idx(array))
    assert refusal("fashion_mnist", tmp_path).startswith(f"{path}: ")


def test_debians_fashion_mnist(tmp_path: Path) -> None:
    if not DEBIAN_FASHION.is_dir():
        pytest.skip(f"needs the Debian package dataset-fashion-mnist, looked for {DEBIAN_FASHION}")
    (tmp_path / "fashion_mnist").symlink_to(DEBIAN_FASHION)
    found = load("fashion_mnist", tmp_path)
    assert (len(found.train), len(found.test)) == (60_000, 10_000)
    assert np.bincount(found.train.labels).tolist() == [6_000] * 10


# Folders


def image_folder(base: Path, suffix: str = "png", size: int = 8, classes: int = 3, test: str = "test") -> Path:
    """Three training images and two test images for each class; pixels depend on all of split, class and number."""
    for split, count in (("train", 3), (test, 2)):
        for label in range(classes):
            folder = base / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                array = noise(size, size, 3, seed=1000 * count + 10 * label + number)
                Image.fromarray(array).save(folder / f"{number}.{suffix}")
    return base


def test_a_folder_of_png_files(tmp_path: Path) -> None:
    image_folder(tmp_path / "mine")
    found = load("mine", tmp_path)
    assert pixels(found).shape == (9, 3, 8, 8)
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(pixels(found)[4], noise(8, 8, 3, seed=3011).transpose(2, 0, 1))
    assert np.array_equal(pixels(found, "test")[5], noise(8, 8, 3, seed=2021).transpose(2, 0, 1))
    assert (found.title, found.classes) == ("mine", 3)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "JPEG"])
def test_a_folder_of_jpeg_files(tmp_path: Path, suffix: str) -> None:
    image_folder(tmp_path / "mine", suffix)
    found = load("mine", tmp_path)
    with Image.open(tmp_path / "mine" / "train" / "class1" / f"2.{suffix}") as image:
        assert np.array_equal(pixels(found)[5], np.asarray(image).transpose(2, 0, 1))


def test_val_stands_for_test(tmp_path: Path) -> None:
    image_folder(tmp_path / "one")
    image_folder(tmp_path / "two", test="val")
    assert load("one", tmp_path).digest == load("two", tmp_path).digest


def test_images_in_a_folder_below_the_class_as_in_tiny_imagenet(tmp_path: Path) -> None:
    image_folder(tmp_path / "mine")
    before = load("mine", tmp_path)
    for folder in [*(tmp_path / "mine" / "train").iterdir()]:
        (folder / "images").mkdir()
        for file in folder.glob("*.png"):
            file.rename(folder / "images" / file.name)
        (folder / "boxes.txt").write_text("0 0 8 8")
    assert load("mine", tmp_path).digest == before.digest


def test_grey_and_palette_images_become_rgb(tmp_path: Path) -> None:
    image_folder(tmp_path / "mine")
    path = tmp_path / "mine" / "train" / "class0" / "0.png"
    Image.fromarray(noise(8, 8)).save(path)
    assert np.array_equal(pixels(load("mine", tmp_path))[0], np.repeat(noise(8, 8)[None], 3, axis=0))


@pytest.mark.parametrize(
    ("damage", "where", "why"),
    [
        (lambda b: shutil.rmtree(b / "test" / "class1"), "test/class1", "missing or has no image"),
        (lambda b: (b / "train" / "class3").mkdir(), "train/class3", "missing or has no image"),
        (lambda b: (b / "test" / "class9").mkdir(), "test/class9", "does not have"),
        (lambda b: shutil.rmtree(b / "test"), "", "needs the folders train and test"),
        (lambda b: (b / "train" / "class2" / "1.png").write_bytes(b""), "train/class2/1.png", "not a readable image"),
        (lambda b: (b / "test" / "class0" / "1.jpg").write_text("hello"), "test/class0/1.jpg", "not a readable image"),
        (
            lambda b: Image.fromarray(noise(8, 9, 3)).save(b / "train" / "class1" / "2.png"),
            "train/class1/2.png",
            "9x8 pixels where most images have 8x8 (14 of 8x8, 1 of 9x8); make them one size",
        ),
    ],
)
def test_a_damaged_folder(tmp_path: Path, damage: Callable[[Path], object], where: str, why: str) -> None:
    path = image_folder(tmp_path / "mine")
    damage(path)
    text = refusal("mine", tmp_path)
    assert text.startswith(f"{path / where}: ")
    assert why in text


def test_a_truncated_jpeg(tmp_path: Path) -> None:
    path = image_folder(tmp_path / "mine", "jpg", size=32) / "train" / "class1" / "1.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    assert refusal("mine", tmp_path).startswith(f"{path}: not a readable image: ")


def test_damaged_images_are_refused_or_read(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for suffix in ("png", "jpg", "bmp", "webp", "ppm"):
        path = tmp_path / f"x.{suffix}"
        Image.fromarray(noise(8, 8, 3)).save(path)
        whole = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            damaged[draw.integers(0, len(whole))] = draw.integers(0, 256)
            path.write_bytes(damaged[: draw.integers(1, 2 * len(whole))])
            try:
                assert read_image(path).ndim == 3
            except UserError as error:
                assert str(path) in str(error)  # noqa: PT017


def test_cifar10_of_another_size_or_number_of_classes(tmp_path: Path) -> None:
    path = image_folder(tmp_path / "a" / "cifar10", size=32, classes=9)
    assert refusal("cifar10", tmp_path / "a") == f"{path}: 9 class folders where CIFAR-10 has 10"
    path = image_folder(tmp_path / "b" / "cifar10", size=28, classes=10)
    text = refusal("cifar10", tmp_path / "b")
    assert text.startswith(f"{path}/train/class0/0.png: 28x28 pixels where 32x32 are expected (and 49 more: ")


@pytest.mark.parametrize(
    ("suffix", "title"), [("jpg", "CIFAR-10 (JPEG)"), ("JPEG", "CIFAR-10 (JPEG)"), ("png", "CIFAR-10")]
)
def test_a_lossy_copy_says_so(tmp_path: Path, suffix: str, title: str) -> None:
    image_folder(tmp_path / "cifar10", suffix, size=32, classes=10)
    for _ in range(2):  # from the files, then from the cache
        assert load("cifar10", tmp_path).title == f"{title}, 30 of 50,000 images, 20 of 10,000 test images"
    assert find_dataset("cifar10", tmp_path).title_here(tmp_path) == title


def test_one_jpeg_among_the_originals_is_a_lossy_copy(tmp_path: Path) -> None:
    image_folder(tmp_path / "cifar10", size=32, classes=10)
    Image.fromarray(noise(32, 32, 3)).save(tmp_path / "cifar10" / "test" / "class9" / "9.jpg")
    assert load("cifar10", tmp_path).title.startswith("CIFAR-10 (JPEG), ")


@pytest.mark.slow
def test_the_shared_cifar10_is_a_lossy_copy(cifar10_jpeg: Path) -> None:
    found = load("cifar10", cifar10_jpeg)
    assert found.title == "CIFAR-10 (JPEG), 1,000 of 50,000 images, 500 of 10,000 test images"
    assert np.bincount(found.train.labels).tolist() == [100] * 10
    assert np.bincount(found.test.labels).tolist() == [50] * 10
    assert pixels(found).shape == (1000, 3, 32, 32)


@pytest.mark.slow
def test_a_set_that_streams_is_decoded_for_its_digest_alone(tmp_path: Path) -> None:
    image_folder(tmp_path / "imagenet1k", "jpg", classes=1000, size=8)
    found = load("imagenet1k", tmp_path)
    again = load("imagenet1k", tmp_path)
    assert isinstance(found.train.images, PathList)
    assert found.train.images[0] == tmp_path / "imagenet1k" / "train" / "class0" / "0.jpg"
    assert list(found.train.images) == list(again.train.images)
    assert found.digest == again.digest
    part = "3,000 of 1,281,167 images, 2,000 of 50,000 test images"
    assert found.title == dataset_facts("imagenet1k", paths(tmp_path)).title == f"ImageNet-1K, {part}"
    before = found.digest
    found.train.images[5].write_bytes(found.train.images[6].read_bytes())
    assert dataset_facts("imagenet1k", paths(tmp_path)).digest != before
    found.train.images[5].write_bytes(b"not even an image")
    assert refusal("imagenet1k", tmp_path).startswith(f"{found.train.images[5]}: not a readable image")


def test_all_damaged_files_of_an_archive_are_named_together(tmp_path: Path, publish: Callable[[Path], None]) -> None:
    fashion(tmp_path, zipped=False)
    first, *_, last = paths = sorted((tmp_path / "fashion_mnist").iterdir(), key=lambda path: "t10k" in path.name)
    for path in (first, last):
        path.write_bytes(b"")
    text = refusal("fashion_mnist", tmp_path)
    assert (text.startswith(f"{first}: not "), text.endswith(f"(and 1 more: {last})")) == (True, True), paths
    first, *others, last = (path for path, _ in cifar(tmp_path, "cifar10"))
    for path in others:
        publish(path)
    for path in (first, last):
        path.write_bytes(b"")
    text = refusal("cifar10", tmp_path)
    assert (text.startswith(f"{first}: not "), text.endswith(f"(and 1 more: {last})")) == (True, True)


# A data set is the one that it is known as


def known(temporary: Any, **attributes: Any) -> None:
    """Register `mine`: 9 + 6 images of 8x8 pixels of 3 classes, as `image_folder` writes them."""
    whole = {"title": "Mine", "short": "M", "classes": 3, "train_images": 9, "test_images": 6, "image_size": 8}
    temporary(datasets, mine=type("Mine", (DatasetInfo,), whole | attributes))


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("gone", "title"),
    [
        ([], "Mine"),
        (["train/class0/0.png"], "Mine, 8 of 9 images"),
        (["test/class0/0.png", "test/class2/1.png"], "Mine, 4 of 6 test images"),
        (["train/class1/2.png", "test/class0/0.png"], "Mine, 8 of 9 images, 5 of 6 test images"),
    ],
)
def test_a_part_says_that_it_is_one(tmp_path: Path, temporary: Any, gone: list[str], title: str, streams: bool) -> None:
    known(temporary, streams=streams)
    image_folder(tmp_path / "mine")
    for name in gone:
        (tmp_path / "mine" / name).unlink()
    for _ in range(2):  # from the files, then from the cache
        assert load("mine", tmp_path).title == title
        facts = dataset_facts("mine", paths(tmp_path))
        assert (facts.title, facts.train_images) == (title, 9 - sum(name.startswith("train") for name in gone))


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(("split", "name"), [("train", "training"), ("test", "test")])
def test_more_images_than_the_set_has(tmp_path: Path, temporary: Any, split: str, name: str, streams: bool) -> None:
    known(temporary, streams=streams)
    image_folder(tmp_path / "mine")
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "mine" / split / "class0" / "9.png")
    count, whole = (10, 9) if split == "train" else (7, 6)
    text = refusal("mine", tmp_path)
    assert text == f"dataset 'mine' in {tmp_path}: {count} {name} images where Mine has {whole}"


@pytest.mark.parametrize("streams", [False, True])
def test_a_set_of_another_size(tmp_path: Path, temporary: Any, streams: bool) -> None:
    known(temporary, streams=streams)
    path = image_folder(tmp_path / "mine") / "test" / "class2" / "1.png"
    Image.fromarray(noise(9, 8, 3)).save(path)
    assert refusal("mine", tmp_path) == f"{path}: 8x9 pixels where 8x8 are expected"


@pytest.mark.parametrize(("place", "split"), [("train", "training"), ("t10k", "test")])
def test_an_archive_of_fewer_classes(tmp_path: Path, place: str, split: str, publish: Callable[[Path], None]) -> None:
    fashion(tmp_path / "idx", zipped=True)
    stem = tmp_path / "idx" / "fashion_mnist" / f"{place}-labels-idx1-ubyte.gz"
    stem.write_bytes(gzip.compress(idx(np.arange(20 if place == "train" else 10) % 9)))
    where = f"dataset 'fashion_mnist' in {tmp_path / 'idx'}"
    assert (
        refusal("fashion_mnist", tmp_path / "idx") == f"{where}: {split} images of 9 classes where Fashion-MNIST has 10"
    )
    for path, content in cifar(tmp_path / "cifar", "cifar10"):
        labels = [label % 9 for label in content[b"labels"]]
        if (path.name == "test_batch") == (split == "test"):
            path.write_bytes(python3(content | {b"labels": labels}))
        publish(path)
    where = f"dataset 'cifar10' in {tmp_path / 'cifar'}"
    assert refusal("cifar10", tmp_path / "cifar") == f"{where}: {split} images of 9 classes where CIFAR-10 has 10"


@pytest.mark.parametrize(
    ("images", "labels", "why"),
    [
        (noise(10, 3, 8, 8), 9, "10 training images with 9 labels"),
        (noise(8, 3, 8, 8), 9, "8 training images with 9 labels"),
        (noise(9, 3, 9, 8), 9, "training images are uint8 (9, 3, 9, 8) where uint8 (N, 3, 8, 8) is expected"),
        (noise(9, 8, 8, 3), 9, "training images are uint8 (9, 8, 8, 3) where uint8 (N, 3, 8, 8) is expected"),
        (noise(9, 3, 8, 8) / 255, 9, "training images are float64 (9, 3, 8, 8) where uint8 (N, 3, 8, 8) is expected"),
        ([Path("a.png")] * 9, 9, "files that are not decoded; a class whose `read` gives them says `streams = True`"),
        (noise(0, 3, 8, 8), 0, "no training image"),
    ],
)
def test_what_a_plugins_read_may_not_give(tmp_path: Path, temporary: Any, images: Any, labels: int, why: str) -> None:
    splits = Split(images, np.arange(labels) % 3), Split(noise(6, 3, 8, 8), np.arange(6) % 3)
    known(temporary, here=lambda self, root: True, read=lambda self, root: splits)
    said = refusal("mine", tmp_path)
    assert said.startswith((f"dataset 'mine' in {tmp_path}: ", f"dataset 'mine' ({__file__}): "))
    assert said.endswith(f": {why}")


def test_a_class_of_the_test_images_alone(tmp_path: Path, temporary: Any) -> None:
    splits = Split(noise(4, 3, 8, 8), np.array([0, 2] * 2)), Split(noise(3, 3, 8, 8), np.arange(3))
    known(temporary, classes=None, here=lambda self, root: True, read=lambda self, root: splits)
    assert refusal("mine", tmp_path).endswith("a class of the test images has no training image")


def test_a_set_that_code_makes_is_made_anew_when_the_code_has_changed(tmp_path: Path, temporary: Any) -> None:
    """Its cache has no files to tell by: it would go on with the images of the code as it was."""
    code = """
import numpy as np
from bench.data import DatasetInfo, Split, datasets, dataset_cache

@datasets.register("mine")
class Mine(DatasetInfo):
    title = short = "Mine"

    def here(self, root):
        return True

    def read(self, root):
        return tuple(Split(np.zeros((COUNT, 3, 8, 8), np.uint8), np.arange(COUNT) % 2) for _ in range(2))
"""
    plugin = tmp_path / "mine.py"
    temporary(datasets)
    for count in (4, 40):
        plugin.write_text(code.replace("COUNT", str(count)))
        load_plugin(plugin)
        assert dataset_facts("mine", paths(tmp_path)).train_images == count


# What the file system does not tell, and what is no data


@pytest.mark.parametrize(
    "where", ["", "train", "test", "train/class1", "test/class2", "train/class0/more", "cifar-10-batches-py"]
)
def test_a_folder_that_may_not_be_read_is_not_an_empty_one(open_to_all: Path, closed: Any, where: str) -> None:
    root = open_to_all
    base_folder = image_folder(root / "cifar10", size=32, classes=10)
    (base_folder / "train" / "class0" / "more").mkdir()
    Image.fromarray(noise(32, 32, 3)).save(base_folder / "train" / "class0" / "more" / "9.png")
    cifar(root, "cifar10")[0][0].unlink()
    load("cifar10", root)
    path = root / where if where.startswith("cifar") else base_folder / where
    with closed(path):
        text = refusal("cifar10", root)
    assert text.startswith(str(path))
    assert text.endswith(": cannot be read: Permission denied")


@pytest.mark.parametrize("target", ["more", "nowhere"])
@pytest.mark.parametrize("where", ["train/class0/more", "test/class1/more", "train/more", "more"])
def test_a_link_that_leads_nowhere_is_not_fewer_images(tmp_path: Path, where: str, target: str) -> None:
    path = image_folder(tmp_path / "mine") / where
    path.symlink_to(target)  # to itself, or to what is gone
    assert refusal("mine", tmp_path).startswith(f"{path}: cannot be read: ")


def test_names_with_a_leading_dot_are_no_data(tmp_path: Path) -> None:
    path = image_folder(tmp_path / "mine")
    before = load("mine", tmp_path)
    Image.fromarray(noise(8, 8, 3)).save(path / "train" / "class0" / "x.png")
    for folder in (".ipynb_checkpoints", "train/.ipynb_checkpoints", "train/class0/.ipynb_checkpoints", "test/.cache"):
        (path / folder).mkdir()
        shutil.move(path / "train" / "class0" / "x.png", path / folder / "x.png")
        shutil.copy(path / folder / "x.png", path / "train" / "class0" / "x.png")
    (path / "train" / "class0" / "x.png").unlink()
    for name in ("train/.DS_Store", "train/class1/.DS_Store", "train/class1/._0.png", "test/class2/._1.png", "._train"):
        (path / name).write_bytes(b"Mac OS X")
    (path / "test" / ".gone").symlink_to("nowhere")
    assert load("mine", tmp_path).digest == before.digest
    assert not find_dataset("mine", tmp_path).ignored(tmp_path)


def test_the_split_for_test_is_the_one_with_the_classes_of_train(tmp_path: Path) -> None:
    path = image_folder(tmp_path / "mine", test="val")
    before = load("mine", tmp_path).digest
    for name in ("0.png", "images/1.png"):
        (path / "test" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(8, 8, 3)).save(path / "test" / name)
    assert load("mine", tmp_path).digest == before, "a test set without labels, as archives have it"
    shutil.rmtree(path / "test")
    shutil.copytree(path / "train", path / "test")
    found = load("mine", tmp_path)
    assert np.array_equal(pixels(found, "test"), pixels(found)), "where both will do, `test` it is"


def test_no_split_has_the_classes_of_train(tmp_path: Path) -> None:
    path = image_folder(tmp_path / "mine", test="val")
    (path / "test").mkdir()
    Image.fromarray(noise(8, 8, 3)).save(path / "test" / "0.png")
    (path / "val" / "class1").rename(path / "val" / "class9")
    cure = f"test or val must have the class folders of {path / 'train'}"
    missing = f"{path / 'test' / 'class0'}: the class folder is missing or has no image"
    assert refusal("mine", tmp_path) == f"{missing}; {cure}"
    shutil.rmtree(path / "test")
    extra = f"{path / 'val' / 'class9'}: a class folder that {path / 'train'} does not have"
    assert refusal("mine", tmp_path) == f"{extra}; {cure}"


NFC, NFD = "caf\u00e9", "cafe\u0301"


def test_class_names_that_look_alike(tmp_path: Path) -> None:
    path = image_folder(tmp_path / "mine")
    (path / "train" / "class1").rename(path / "train" / NFC)
    (path / "test" / "class1").rename(path / "test" / NFD)
    text = refusal("mine", tmp_path)
    assert text.startswith(f"{path / 'test' / NFD}: 'cafe\\u0301' looks like the class folder 'caf\\xe9' of ")
    assert "Unicode (NFC, NFD): rename one of them" in text
    for split, number in (("train", 2), ("test", 1)):
        for name in (NFC, NFD):
            (path / split / name).mkdir(exist_ok=True)
            Image.fromarray(noise(8, 8, 3)).save(path / split / name / f"{number}.png")
    text = refusal("mine", tmp_path)
    assert text.startswith(f"{path / 'train'}: the class folders 'cafe\\u0301' and 'caf\\xe9' look alike")
    assert "put the images of both into one" in text


def test_a_datasets_name_that_looks_alike(tmp_path: Path) -> None:
    image_folder(tmp_path / NFD)
    text = refusal(NFC, tmp_path)
    assert text.startswith(f"unknown dataset 'caf\\xe9'; {tmp_path} has 'cafe\\u0301', which looks alike")


def test_images_of_several_sizes_stream(tmp_path: Path, temporary: Any) -> None:
    path = image_folder(tmp_path / "mine")
    for name, size in (("train/class0/0.png", (9, 8)), ("test/class1/0.png", (8, 9)), ("test/class1/1.png", (8, 9))):
        Image.fromarray(noise(*size, 3)).save(path / name)
    text = refusal("mine", tmp_path)
    assert text.startswith(
        f"{path}/train/class0/0.png: 8x9 pixels where most images have 8x8 (12 of 8x8, 2 of 9x8, 1 of"
    )
    assert "`streams = True` in a class of your own in a --plugin file, with protocol.input_size" in text
    known(temporary, image_size=None, streams=True)
    assert len(load("mine", tmp_path).train) == 9


# Not there, unknown


def test_a_missing_dataset_says_where_and_how(tmp_path: Path) -> None:
    for name in ("cifar10", "cifar100", "fashion_mnist", "tiny_imagenet", "imagenet1k"):
        with pytest.raises(MissingError) as caught:
            dataset_facts(name, paths(tmp_path))
        text = str(caught.value)
        assert text.startswith(f"dataset {name!r} is not there: looked in {tmp_path / name}; ")
        assert "BENCH_DATA" in text


def test_an_unknown_dataset(tmp_path: Path) -> None:
    assert "did you mean 'cifar10'?" in refusal("cifar_10", tmp_path)
    assert str(tmp_path / "mine" / "train") in refusal("mine", tmp_path)


@pytest.mark.parametrize("name", ["../mine", "/mine", ".", "..", "a/b"])
def test_a_dataset_lies_below_the_root(tmp_path: Path, name: str) -> None:
    image_folder(tmp_path / "mine")
    (tmp_path / "data").mkdir()
    assert "unknown dataset" in refusal(name, tmp_path / "data")


# Digests and the cache


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    image_folder(tmp_path / "a" / "mine")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.copytree(tmp_path / "a" / "mine", tmp_path / "c" / "other")
    digests = [
        load("mine", tmp_path / "a").digest,
        load("mine", tmp_path / "b").digest,
        load("other", tmp_path / "c").digest,
    ]
    assert len(set(digests)) == 1
    assert dataset_facts("mine", paths(tmp_path / "a")).digest == digests[0]


def test_pixels_labels_and_split_change_the_digest(tmp_path: Path) -> None:
    def digest(name: str, change: Callable[[Path], object]) -> str:
        change(image_folder(tmp_path / name))
        return load(name, tmp_path).digest

    def one_pixel(path: Path) -> None:
        array = noise(8, 8, 3, seed=2021)
        array[3, 4, 1] ^= 1
        Image.fromarray(array).save(path / "test" / "class2" / "1.png")

    def other_label(path: Path) -> None:
        (path / "train" / "class0" / "2.png").rename(path / "train" / "class1" / "!.png")  # still the third

    def other_split(path: Path) -> None:
        (path / "test" / "class2" / "1.png").rename(path / "train" / "class2" / "9.png")

    found = [digest("a", lambda _: None), digest("b", one_pixel), digest("c", other_label), digest("d", other_split)]
    assert len(set(found)) == 4


def cache_file(root: Path) -> Path:
    (found,) = (root / "cache" / "datasets").iterdir()
    return found


def test_the_cache_is_used(tmp_path: Path) -> None:
    """Content is swapped below the cache, with names, sizes and times kept: what is cached must be what is seen."""
    image_folder(tmp_path / "mine")
    before = load("mine", tmp_path)
    path = tmp_path / "mine" / "train" / "class0" / "0.png"
    stat = path.stat()
    path.write_bytes(b"x" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = load("mine", tmp_path)
    assert after.digest == before.digest == dataset_facts("mine", paths(tmp_path)).digest
    assert np.array_equal(pixels(after), pixels(before))


def test_another_time_or_size_is_read_anew(tmp_path: Path) -> None:
    image_folder(tmp_path / "mine")
    before = load("mine", tmp_path).digest
    path = tmp_path / "mine" / "train" / "class0" / "0.png"
    stat = path.stat()
    Image.fromarray(noise(8, 8, 3, seed=77)).save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert load_dataset("mine", paths(tmp_path)).digest != before  # although the old one is in memory


def test_the_cache_is_a_safetensors_file(tmp_path: Path) -> None:
    image_folder(tmp_path / "mine")
    found = load("mine", tmp_path)
    arrays = load_file(cache_file(tmp_path))
    assert sorted(arrays) == ["test_images", "test_labels", "train_images", "train_labels"]
    for split in ("train", "test"):
        assert np.array_equal(arrays[f"{split}_images"], pixels(found, split))
        assert np.array_equal(arrays[f"{split}_labels"], getattr(found, split).labels)


def test_a_deleted_cache_is_made_again(tmp_path: Path) -> None:
    image_folder(tmp_path / "mine")
    before = load("mine", tmp_path)
    shutil.rmtree(tmp_path / "cache")
    assert dataset_facts("mine", paths(tmp_path)).digest == before.digest
    assert np.array_equal(pixels(load("mine", tmp_path)), pixels(before))


def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    image_folder(tmp_path / "mine")
    before = load("mine", tmp_path)
    path = cache_file(tmp_path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(pixels(before)[:1].tobytes()) + 5] ^= 1
    pickled = pickle.dumps({"digest": "0123456789abcdef"})
    with safe_open(path, framework="numpy") as file:
        arrays, texts = file.get_tensors(), file.metadata()
    stale = save(arrays | {"train_labels": before.train.labels[::-1].copy()}, texts)
    unsealed = save(arrays, {"digest": before.digest})
    for content in (b"", whole[: len(whole) // 2], whole[:-1], bytes(flipped), pickled, stale, unsealed):
        path.write_bytes(content)
        found = load("mine", tmp_path)
        assert np.array_equal(pixels(found), pixels(before))
        assert np.array_equal(found.train.labels, before.train.labels)
        assert path.stat().st_size == len(whole)
        path.write_bytes(content)
        assert dataset_facts("mine", paths(tmp_path)).digest == before.digest


def test_no_damage_of_the_cache_gets_through(tmp_path: Path) -> None:
    image_folder(tmp_path / "mine")
    before = load("mine", tmp_path)
    path = cache_file(tmp_path)
    whole = path.read_bytes()
    draw = np.random.default_rng(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in [*range(0, header, 7), *draw.integers(0, len(whole), 60)]:
        damaged = bytearray(whole)
        damaged[place] ^= 0x21
        path.write_bytes(damaged)
        assert load("mine", tmp_path).digest == before.digest


def test_the_cache_may_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_folder(tmp_path / "data" / "mine")
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "elsewhere"))
    load("mine", tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine"]
    assert len(list((tmp_path / "elsewhere" / "datasets").iterdir())) == 1


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_folder(tmp_path / "mine")
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "taken"))
    text = refusal("mine", tmp_path)
    assert str(tmp_path / "taken") in text
    assert "BENCH_CACHE names another folder" in text


# Parts


@pytest.mark.parametrize("count", [10, 100, 250, 1437])
def test_a_part_is_balanced(tmp_path: Path, count: int) -> None:
    labels = load("digits", tmp_path).train.labels
    index = balanced_part(labels, count)
    assert len(np.unique(index)) == len(index) == count
    assert np.array_equal(index, np.sort(index))
    counts, whole = np.bincount(labels[index]), np.bincount(labels)
    most = counts.max()
    assert all(most - c <= 1 or c == w for c, w in zip(counts, whole, strict=True))
    assert np.array_equal(index, balanced_part(labels, count))


def test_a_part_is_not_merely_the_first_images() -> None:
    labels = np.repeat(np.arange(2), 100)
    assert balanced_part(labels, 20).tolist() != [*range(10), *range(100, 110)]


def test_a_smaller_part_lies_in_a_larger_one() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 300)
    assert set(balanced_part(labels, 40)) < set(balanced_part(labels, 41))


def test_a_class_with_few_images_gives_all_of_them() -> None:
    labels = np.array([0] * 100 + [1] * 3)
    assert np.bincount(labels[balanced_part(labels, 20)]).tolist() == [17, 3]


def test_more_images_than_there_are() -> None:
    with pytest.raises(ValueError, match="4 of 3 images"):
        balanced_part(np.array([0, 1, 2]), 4)


# The registry


def test_a_name_is_taken_once() -> None:
    registry: Registry[Any] = Registry("thing", package="bench.data")
    registry.register("x")(load_digits)
    registry.register("x")(load_digits)  # the same module again, as a reload does
    with pytest.raises(UserError, match="thing 'x' is defined twice"):
        registry.register("x")(Image.open)


def test_every_registered_dataset_says_what_it_is(tmp_path: Path) -> None:
    shorts = []
    for name in datasets:
        info = datasets.get(name)(name)
        assert info.title
        assert info.hint
        assert info.here(tmp_path) == (name in {"cifar10_mini", "digits"})
        shorts.append(info.short)
    assert sorted(shorts) == ["CF10", "CF100", "CF10MINI", "DIGITS", "FMNIST", "IN1K", "TIN"]
