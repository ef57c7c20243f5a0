"""Folders of images that are broken or meant to harm: each path is named, by `prepare` and by the run itself."""

import io
import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets.folder import default_loader

from bench.core.errors import UserError
from bench.core.paths import Paths
from bench.data import DatasetInfo, dataset_cache, dataset_facts, datasets, load_dataset
from bench.data import dataset as base
from bench.data.augment import EvalView
from bench.data.decode import MAX_PIXELS, read_image
from bench.data.folder import files
from bench.data.loader import open_source
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.plan.graph import plan
from bench.plan.prepare import prepare_tasks
from bench.plan.rehearsal import lay_out

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF")


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def encoded(kind: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(9, 7, 3)).convert(mode).save(file, kind)
    return file.getvalue()


def png(width: int, height: int, depth: int = 8, colour: int = 2, pixels: bytes = b"") -> bytes:
    """A PNG file whose checksums are right, whatever it says."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def checked(given: bytes) -> bytes:
    """A damaged PNG file with the checksum of its header made right again, so that more of it is looked at."""
    return given[:29] + struct.pack(">I", zlib.crc32(given[12:29])) + given[33:] if len(given) > 33 else given


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FORMATS)
def test_an_image_is_read_or_refused(fuzz, kind: str) -> None:
    path = fuzz.place / "x.jpg"
    modes = ("RGB", "L", "P", "1", "RGBA") if kind in {"PNG", "TIFF"} else ("RGB",)
    pieces = (
        b"\xff" * 4,
        b"\0" * 4,
        b"\x7f\xff\xff\xff",
        b"\xff\xd9",
        b"\xff\xda",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"IDAT",
        b"IEND",
    )
    contents = st.one_of([fuzz.damaged(encoded(kind, mode), pieces, 120) for mode in modes])

    def reads(content: bytes) -> bool:
        path.write_bytes(content)
        image = read_image(path)
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[0] == 3
        assert image.size > 0
        return True

    fuzz(contents.map(checked) if kind == "PNG" else contents, reads, parts=6)


def image_folder(base: Path, size: int = 8) -> Path:
    for split in ("train", "test"):
        for label in ("a", "b"):
            (base / split / label).mkdir(parents=True)
            for number in range(2):
                Image.fromarray(noise(size, size, 3)).save(base / split / label / f"{number}.png")
    return base


@pytest.mark.filterwarnings("ignore")
def test_a_folder_is_read_or_refused(fuzz) -> None:
    """Files and folders removed, emptied, renamed, linked, replaced."""
    whole = image_folder(fuzz.place / "whole")
    inside = sorted(path.relative_to(whole) for path in whole.rglob("*"))
    names = [b"x.png", b"\xff.png", b"a\nb.png", b".png", b"b", b"\x1b[31m.jpg", b"c" * 250, b"train", b"x.jpg"]
    acts = st.sampled_from(["remove", "empty", "rename", "loop", "link", "nowhere", "pipe", "folder", "text", "small"])
    changes = st.lists(st.tuples(st.sampled_from(inside), acts, st.sampled_from(names)), max_size=3)
    paths = Paths(fuzz.place, fuzz.place / "results", "g")

    def reads(given: list[tuple[Path, str, bytes]]) -> bool:
        mine = fuzz.place / "mine"
        shutil.rmtree(mine, ignore_errors=True)
        shutil.copytree(whole, mine)
        for inner, act, name in given:
            path = mine / inner
            other = Path(os.fsdecode(os.path.join(os.fsencode(path.parent), name)))  # noqa: PTH118
            if path.is_symlink() or not path.exists() or other.exists() or other.is_symlink():
                continue
            match act:
                case "remove" | "empty" if path.is_dir():
                    shutil.rmtree(path)
                case "empty" | "text":
                    _ = path.is_file() and path.write_text("" if act == "empty" else "hello")
                case "remove":
                    path.unlink()
                case "rename":
                    path.rename(other)
                case "loop":
                    other.symlink_to(path.parent)
                case "link":
                    other.symlink_to(path)
                case "nowhere":
                    other.symlink_to("nowhere")
                case "pipe":
                    os.mkfifo(other)
                case "folder":
                    other.mkdir()
                case "small":
                    Image.fromarray(noise(2, 2, 3)).save(other, "PNG")
        dataset_cache.clear()
        found = load_dataset("mine", paths)
        assert len(found.train) == len(np.asarray(found.train.images)) > 0
        assert found.classes == 2 or found.classes == len(list((mine / "train").iterdir()))
        return True

    fuzz(changes, reads, parts=5)


# Explicit cases


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: not a readable image: ")
    return str(caught.value)


@pytest.mark.filterwarnings("ignore:Image size")  # of Pillow's, beside our error
@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 2**31 - 1), (MAX_PIXELS + 1, 1), (10_000, 10_000)])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(*size))
    assert "pixels" in refusal(path)


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_an_image_has_pixels(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "x.png").write_bytes(png(*size))
    refusal(tmp_path / "x.png")


def tiff(bits: int, channels: int, pixels: bytes) -> bytes:
    """A TIFF file of 2x2 pixels that are not compressed; four bits and more are whole bytes here."""
    tags = [(256, 3, 2), (257, 3, 2), (259, 3, 1), (262, 3, 2 if channels > 2 else 1), (273, 4, 0), (277, 3, channels)]
    tags += [(278, 3, 2), (279, 4, len(pixels)), *[(338, 3, 2)] * (channels in {2, 4})]
    at = 8 + 2 + 12 * (len(tags) + 1) + 4
    depths = struct.pack("<H", bits) * channels
    entries = [
        (258, 3, channels, at if channels > 2 else bits * 0x10001),
        *((tag, kind, 1, x) for tag, kind, x in tags),
    ]
    entries = [(*entry[:3], at + len(depths)) if entry[0] == 273 else entry for entry in sorted(entries)]
    ifd = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + ifd + b"\0\0\0\0" + depths + pixels


def ppm(magic: int, white: int) -> bytes:
    """A PBM, PGM or PPM file of 2x2 pixels, the first of which is white, as bytes or (below 4) as text."""
    count = 12 if magic % 3 == 0 else 4
    values = [white] * (count // 4) + [0] * (count - count // 4)
    wide = 2 if white > 255 else 1
    body = b"".join(value.to_bytes(wide) for value in values) if magic > 3 else " ".join(map(str, values)).encode()
    return f"P{magic} 2 2 {white}\n".encode() + body


DEEP = {
    "grey png": png(2, 2, depth=16, colour=0, pixels=b"\0\1\2\3\4" * 2),
    "grey and alpha png": png(2, 2, depth=16, colour=4, pixels=(b"\0" + b"\1\2\xff\xff" * 2) * 2),
    "RGB png": png(2, 2, depth=16, colour=2, pixels=(b"\0" + b"\1\2\3\4\5\6" * 2) * 2),
    "RGBA png": png(2, 2, depth=16, colour=6, pixels=(b"\0" + b"\1\2\3\4\5\6\xff\xff" * 2) * 2),
    "grey tiff": tiff(16, 1, bytes(range(8))),
    "RGB tiff": tiff(16, 3, bytes(range(24))),
    "RGBA tiff": tiff(16, 4, bytes(range(32))),
    "pgm": ppm(5, 65535),
    "ppm": ppm(6, 65535),
    "ppm of 10 bits": ppm(6, 1023),
    "pgm as text": ppm(2, 65535),
    "ppm as text": ppm(3, 65535),
}
SHALLOW = {
    "grey png": png(2, 2, colour=0, pixels=b"\0\xff\0\0\0\0"),
    "grey png of 4 bits": png(2, 2, depth=4, colour=0, pixels=b"\0\xf0\0\0"),
    "grey and alpha png": png(2, 2, colour=4, pixels=b"\0\xff\xff\0\xff\0\0\xff\0\xff"),
    "RGB png": png(2, 2, pixels=b"\0\xff\xff\xff\0\0\0\0\0\0\0\0\0\0"),
    "grey tiff": tiff(8, 1, b"\xff\0\0\0"),
    "RGB tiff": tiff(8, 3, b"\xff\xff\xff" + bytes(9)),
    "pgm": ppm(5, 255),
    "ppm of 4 bits": ppm(6, 15),
    "ppm as text": ppm(3, 255),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_are_not_cut_off(tmp_path: Path, name: str) -> None:
    """Pillow makes white of nearly every grey of 16 bits, and keeps the upper 8 bits of colours."""
    (tmp_path / "x.png").write_bytes(DEEP[name])
    with Image.open(tmp_path / "x.png") as image:
        assert image.convert("RGB").size == (2, 2), "it is sound, and Pillow reads it"
    assert "more than 8 bits in a channel" in refusal(tmp_path / "x.png")


@pytest.mark.parametrize("name", SHALLOW)
def test_up_to_8_bits_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.png").write_bytes(SHALLOW[name])
    assert read_image(tmp_path / "x.png").tolist() == [[[255, 0], [0, 0]]] * 3


def test_floating_point_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "y.tiff")
    assert "more than 8 bits" in refusal(tmp_path / "y.tiff")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_camera_that_was_held_upright_is_as_torchvision_has_it(tmp_path: Path, kind: str) -> None:
    """What EXIF says of the orientation is not applied; what TIFF itself says is, by Pillow."""
    path = tmp_path / f"x.{kind.lower()}"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 90 degrees
    Image.fromarray(noise(9, 7, 3)).save(path, kind, exif=exif)
    theirs = np.asarray(default_loader(str(path))).transpose(2, 0, 1)
    assert np.array_equal(read_image(path), theirs)
    assert theirs.shape == ((3, 7, 9) if kind == "TIFF" else (3, 9, 7))


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"hello", encoded("PNG")[:60], encoded("JPEG")[:-40]])
def test_an_image_that_is_not_whole(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    refusal(tmp_path / "x.jpg")


def test_no_other_program_is_run_for_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    trap, tool = tmp_path / "trap", tmp_path / "bin" / "gs"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\ntouch {trap}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    path = tmp_path / "x.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    refusal(path)
    assert not trap.exists()


def test_links_are_followed_into_each_folder_once(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.png").write_bytes(encoded("PNG"))
    root = tmp_path / "root"
    root.mkdir()
    (root / "a").symlink_to(outside)
    for name in ("up", "again"):  # each alone would be followed 40 times, both together 2 ** 40 times
        (root / name).symlink_to(root)
        (outside / name).symlink_to(root)
    below = root
    for _ in range(40):  # 2 ** 40 ways to the last one
        below = below / "deep"
        below.mkdir()
        for name in ("one", "two"):
            (below.parent / name).symlink_to(below)
    (below / "y.png").write_bytes(encoded("PNG"))
    assert [path.name for path in files(root)] == ["x.png", "y.png"]


@pytest.fixture(params=[False, True], ids=["resident", "streams"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: Any) -> Any:
    """The path of a sound data set in a folder, whose name is `mine`."""

    class Mine(DatasetInfo):
        title, short, streams, image_size = "Mine", "M", request.param, 8

    temporary(datasets, mine=Mine)
    monkeypatch.delenv("BENCH_CACHE", raising=False)
    dataset_cache.clear()
    return image_folder(tmp_path / "mine")


GRID = "{backbone: resnet_small, datasets: [mine], seeds: [0], arms: [supervised], protocol: {input_size: 8}}"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda b: (b / "train/b/1.png").write_bytes(encoded("JPEG")[:-40]), "train/b/1.png"),
    "empty": (lambda b: (b / "test/a/0.png").write_bytes(b""), "test/a/0.png"),
    "text": (lambda b: (b / "train/a/1.png").write_text("hello"), "train/a/1.png"),
    "bomb": (lambda b: (b / "test/b/1.png").write_bytes(png(100_000, 100_000)), "test/b/1.png"),
    "pipe": (lambda b: os.mkfifo(b / "train/a/x.png"), "train/a/x.png"),
    "link": (lambda b: (b / "train/a/x.png").symlink_to("nowhere"), "train/a/x.png"),
    "missing class": (lambda b: shutil.rmtree(b / "test/b"), "test/b"),
    "empty class": (lambda b: (b / "train/c").mkdir(), "train/c"),
    "folder that is gone": (lambda b: (b / "train/c").symlink_to("nowhere"), "train/c"),
    "loop": (lambda b: (b / "train/a/more").symlink_to("more"), "train/a/more"),
    "other class": (lambda b: (b / "test/c").mkdir(), "test/c"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_prepare_finds_what_is_damaged_and_names_it(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    (tmp_path / "grid.yaml").write_text(GRID)
    paths = Paths(tmp_path, tmp_path / "results", "grid")
    cells = expand(load_grid(str(tmp_path / "grid.yaml")))
    tasks = plan(cells, cells, paths, "grid")
    assert prepare_tasks(tasks, paths)
    counts = "4 training images of 2 classes, 4 test images of 2 classes"
    assert re.search(f"dataset mine: Mine, digest [0-9a-f]{{16}}; {counts}\n", capsys.readouterr().out)
    act, where = DAMAGE[damage]
    act(dataset)
    shutil.rmtree(tmp_path / "cache")
    dataset_cache.clear()
    assert not prepare_tasks(tasks, paths)
    assert f"{dataset / where}: " in capsys.readouterr().err


@pytest.mark.parametrize("first", ["train/a/0.png", "train/a/1.png"])
def test_all_damaged_images_are_named_together(dataset: Path, tmp_path: Path, first: str) -> None:
    """Also the first of all, and those of both splits."""
    for name in (first, "train/b/0.png", "test/a/0.png", "test/b/1.png"):
        (dataset / name).write_bytes(b"")
    with pytest.raises(UserError) as caught:
        dataset_facts("mine", Paths(tmp_path, tmp_path / "results", "grid"))
    text = str(caught.value)
    others = ", ".join(str(dataset / name) for name in ("train/b/0.png", "test/a/0.png", "test/b/1.png"))
    assert f"(and 3 more: {others})" in text
    assert text.startswith(f"{dataset / first}: not a readable image")


def test_prepare_says_once_what_is_not_used(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files of other formats, images beside the class folders, and a split that is not the one."""
    Image.fromarray(noise(8, 8, 3)).save(dataset / "train/a/x.gif")
    Image.fromarray(noise(8, 8, 3)).save(dataset / "train/b/x.GIF")
    shutil.copy(dataset / "train/a/0.png", dataset / "train/loose.png")
    shutil.copytree(dataset / "test", dataset / "val")
    for name in ("LICENSE", "test/a/boxes.txt", ".DS_Store", "train/a/._0.png"):
        (dataset / name).write_text("hello")
    (tmp_path / "grid.yaml").write_text(GRID)
    paths = Paths(tmp_path, tmp_path / "results", "grid")
    cells = expand(load_grid(str(tmp_path / "grid.yaml")))
    assert prepare_tasks(plan(cells, cells, paths, "grid"), paths)
    kinds = ".gif in train, 1 .png in train, 4 .png in val, 1 .txt in test, 1 without a suffix in mine"
    assert f"dataset mine: 9 files are not used: 2 {kinds}\n" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_names_the_image_that_it_cannot_read(tmp_path: Path, workers: int) -> None:
    path = image_folder(tmp_path / "mine") / "train" / "a" / "1.png"
    paths = [path.with_name("0.png"), path]
    path.write_bytes(encoded("JPEG")[:-40])
    source = open_source(base.Split(paths, np.zeros(2, np.int64)), 8, torch.device("cpu"), workers)
    with pytest.raises(UserError) as caught:
        list(source.eval_batches(EvalView(8)))
    assert str(caught.value).startswith(f"{path}: not a readable image: ")


def test_a_stand_in_is_not_written_through_a_link(dataset: Path, tmp_path: Path) -> None:
    """An empty folder of a data set is no data set: a rehearsal makes its own, and leaves that one alone."""
    shutil.rmtree(dataset)
    dataset.mkdir()
    to = tmp_path / "results" / "grid@rehearsal" / ".data"
    (tmp_path / "grid.yaml").write_text(GRID.replace("mine", "{name: mine, train_images: 4}"))
    lay_out(expand(load_grid(str(tmp_path / "grid.yaml"))), tmp_path, to)
    assert list(dataset.iterdir()) == []
    assert len(files(to / "mine")) == 6


def test_a_name_in_no_encoding_is_read_and_named(tmp_path: Path) -> None:
    image_folder(tmp_path / "mine")
    odd = Path(os.fsdecode(os.fsencode(tmp_path / "mine" / "train" / "a") + b"/\xff.png"))
    Image.fromarray(noise(8, 8, 3)).save(odd)
    paths = Paths(tmp_path, tmp_path / "results", "grid")
    dataset_cache.clear()
    assert len(load_dataset("mine", paths).train) == 5
    odd.write_bytes(b"hello")
    with pytest.raises(UserError) as caught:
        dataset_facts("mine", paths)
    assert "\\udcff.png: not a readable image" in str(caught.value)
    assert str(caught.value).isprintable()
