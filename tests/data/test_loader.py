"""Images that stream are those that would live on the device, whatever the number of workers."""

import multiprocessing
import os
import re
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.core import distributed
from bench.core.errors import UserError, WorkerDied
from bench.data import Split
from bench.data.augment import MEAN, STD, EvalView, View
from bench.data.loader import InMemoryLoader, StreamingLoader, open_source
from bench.data.sampler import Sampler
from bench.data.workers import decoded

CPU = torch.device("cpu")
VIEWS = (View(), View(blur=0.5))


def folder(path: Path, count: int) -> list[Path]:
    draw = np.random.default_rng(0)
    paths = []
    for index in range(count):
        pixels = draw.integers(0, 256, (20 + index % 3, 24, 3), dtype=np.uint8)
        paths.append(path / f"{index:03}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def test_what_a_step_sees_does_not_depend_on_workers_or_on_where_one_begins(tmp_path: Path) -> None:
    paths = folder(tmp_path, 24)
    order = Sampler(24, 0.5, 4, seed=1)
    streams = [StreamingLoader(paths, torch.arange(24), 16, CPU, workers) for workers in (0, 2)]
    alone, together = (list(stream.batches(VIEWS, order, range(5))) for stream in streams)
    late = list(streams[0].batches(VIEWS, order, range(3, 5)))
    for (index, views), (other_index, other_views) in zip(alone + alone[3:], together + late, strict=True):
        assert torch.equal(index, other_index)
        assert all(torch.equal(one, other) for one, other in zip(views, other_views, strict=True))
        assert [view.shape for view in views] == [(4, 3, 16, 16)] * 2
    assert not torch.equal(alone[0][1][0], alone[0][1][1]), "two views of an image differ"


def test_files_are_cropped_to_the_size_of_each_view(tmp_path: Path) -> None:
    """And at once: not to the cell's size first, which would blur."""
    paths, local = folder(tmp_path, 4), View(size=96 / 224)
    cases = ((32, (View(), local)), (12, (View(), View())))
    streams = [(StreamingLoader(paths, torch.arange(4), size, CPU, 0), laws) for size, laws in cases]
    (_, both), (_, small) = (next(each.batches(laws, Sampler(4, 1.0, 4, 0), range(1))) for each, laws in streams)
    assert [view.shape for view in both] == [(4, 3, 32, 32), (4, 3, 12, 12)]
    assert torch.equal(both[1], small[1])


@pytest.mark.parametrize(("size", "first"), [(32, 200), (64, 128)])
def test_large_images_are_evaluated_in_smaller_batches(size: int, first: int) -> None:
    source = InMemoryLoader(torch.zeros(200, 3, 8, 8, dtype=torch.uint8), torch.zeros(200), 8, CPU)
    batches = [len(each) for each in source.eval_batches(EvalView(size))]
    assert (batches[0], sum(batches)) == (first, 200)


class Same(Sampler):
    """The first images, in every step."""

    def __call__(self, step: int) -> torch.Tensor:
        return torch.arange(self.batch_size)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("law", [View(flip=0.0, jitter=0.0, grey=0.0), View(flip=0.0, jitter=1.0, grey=0.0)])
def test_each_view_of_each_step_of_each_seed_is_drawn_anew(law: View, streams: bool, tmp_path: Path) -> None:
    """Of images of noise that are only cropped, and of images of one colour that only change it."""
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 16, 16), dtype=np.uint8)
    if law.jitter:
        images[:] = images[:, :, :1, :1] // 2 + 64
    paths = [tmp_path / f"{index}.png" for index in range(6)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    source = open_source(Split(paths if streams else images, np.arange(6)), 16, CPU, 0)
    views = [
        view
        for seed in (0, 1)
        for _, found in source.batches((law, law), Same(6, 1.0, 6, seed), range(2))
        for view in found
    ]
    for image in torch.stack(views, dim=1):
        distinct = torch.cdist(image.flatten(1), image.flatten(1)) > 0.05
        assert int(distinct.sum()) == 8 * 7, "two views, two steps, two seeds"


@pytest.mark.parametrize("streams", [False, True])
def test_a_view_is_cropped_once(streams: bool, tmp_path: Path) -> None:
    """Of an image whose red is the column and whose green the row, the ranges of both tell the share of the area."""
    rows, columns = np.indices((64, 64), dtype=np.uint8)
    image = np.stack([4 * columns, 4 * rows, 0 * rows])
    path = tmp_path / "ramp.png"
    Image.fromarray(image.transpose(1, 2, 0)).save(path)
    law = View(crop=(0.25, 0.25), jitter=0.0, grey=0.0)
    source = open_source(Split([path] if streams else image[None], np.arange(1)), 64, CPU, 0)
    for _, views in source.batches((law, law), Same(1, 1.0, 1, 0), range(4)):
        for view in views:
            ranges = (view.amax(dim=(0, 2, 3)) - view.amin(dim=(0, 2, 3)))[:2] * torch.tensor(STD[:2])
            assert float(ranges.prod()) == pytest.approx(0.25, abs=0.03)


def test_plain_images_are_the_centre_squares_in_order(tmp_path: Path) -> None:
    paths = folder(tmp_path, 5)
    stream = open_source(Split(paths, np.arange(5)), 20, CPU, workers=0)
    (batch,) = stream.eval_batches(EvalView(20))
    assert batch.shape == (5, 3, 20, 20)
    first = np.asarray(Image.open(paths[0])).transpose(2, 0, 1)[:, :, 2:22] / 255
    expected = (first - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    np.testing.assert_allclose(batch[0], expected, atol=1e-5)


def test_resident_and_streaming_sets_give_views_of_the_same_law(tmp_path: Path) -> None:
    """Means and deviations over many views of the same images; the draws themselves differ."""
    draw = np.random.default_rng(1)
    base = draw.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8).repeat(3, axis=1).repeat(3, axis=2)
    paths = []
    for index, pixels in enumerate(base):
        paths.append(tmp_path / f"{index:03}.png")
        Image.fromarray(pixels).save(paths[-1])
    order = Sampler(64, 1.0, 64, seed=0)
    images = np.ascontiguousarray(base.transpose(0, 3, 1, 2))
    sources = [open_source(Split(kind, np.arange(64)), 24, CPU, 0) for kind in (images, paths)]
    resident, streaming = (
        torch.cat([views[0] for _, views in source.batches(VIEWS, order, range(12))]) for source in sources
    )
    torch.testing.assert_close(resident.mean((0, 2, 3)), streaming.mean((0, 2, 3)), atol=0.06, rtol=0)
    torch.testing.assert_close(resident.std((0, 2, 3)), streaming.std((0, 2, 3)), atol=0.04, rtol=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_damaged_is_one_sentence_whoever_reads_it(tmp_path: Path, workers: int) -> None:
    paths = folder(tmp_path, 4)
    paths[2].write_bytes(b"not an image")
    stream = StreamingLoader(paths, torch.arange(4), 16, CPU, workers)
    with pytest.raises(UserError) as caught:
        list(stream.eval_batches(EvalView(16)))
    assert str(caught.value).startswith(f"{paths[2]}: not a readable image")
    assert "\n" not in str(caught.value)


def test_processes_share_a_batch_as_one_would_see_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, order = folder(tmp_path, 24), Sampler(24, 1.0, 8, seed=1)
    images = np.stack([np.asarray(Image.open(path).resize((20, 24))).transpose(2, 0, 1) for path in paths])
    for source in (open_source(Split(kind, np.arange(24)), 16, CPU, 0) for kind in (images, paths)):
        monkeypatch.undo()
        whole = list(source.batches(VIEWS, order, range(3)))
        shares = []
        for rank in (0, 1):
            monkeypatch.setattr(distributed, "world_size", lambda: 2)
            monkeypatch.setattr(distributed.lightly_dist, "rank", lambda rank=rank: rank)
            shares.append(list(source.batches(VIEWS, order, range(3))))
        for (index, views), (first, ones), (second, others) in zip(whole, *shares, strict=True):
            assert torch.equal(index, torch.cat([first, second]))
            for view, one, other in zip(views, ones, others, strict=True):
                torch.testing.assert_close(view, torch.cat([one, other]))


def test_a_lack_of_shared_memory_is_named_with_its_cure(tmp_path: Path) -> None:
    """A limit to the size of files is one to the pieces of shared memory, too: torch makes them as files."""
    stream = StreamingLoader(folder(tmp_path, 4), torch.arange(4), 16, CPU, workers=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, before[1]))
    try:
        with pytest.raises(WorkerDied) as caught:
            list(stream.eval_batches(EvalView(200)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert re.fullmatch(
        r"a process that decodes images failed: RuntimeError: unable to \S+ file </torch_\w+> .*: File too large \(27\)"
        r"; where shared memory is full, fewer --workers or a larger /dev/shm \(docker run --shm-size\) help",
        str(caught.value),
    ), str(caught.value)


class Ends(torch.utils.data.Dataset[int]):
    def __init__(self, number: int) -> None:
        self.number = number

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), self.number)
        return index

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("number", "how", "cure"),
    [
        (signal.SIGBUS, "code -7 (Bus error)", "where shared memory is full, fewer --workers or a larger /dev/shm"),
        (signal.SIGKILL, "code -9 (Killed)", "where memory is short, fewer --workers help"),
    ],
)
def test_how_a_process_ended_tells_what_helps(number: int, how: str, cure: str) -> None:
    with pytest.raises(WorkerDied) as caught:
        list(decoded(Ends(number), workers=1))
    assert f"ended with {how}; {cure}" in str(caught.value)


def test_a_process_that_ended_before_it_was_looked_for_is_told_of_too(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = torch.utils.data.DataLoader.__iter__

    def late(loader: torch.utils.data.DataLoader[int]) -> Any:
        before, images = set(multiprocessing.active_children()), begin(loader)
        for worker in set(multiprocessing.active_children()) - before:
            worker.join()
        return images

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", late)
    with pytest.raises(WorkerDied, match=r"ended with code -9 \(Killed\)"):
        list(decoded(Ends(signal.SIGKILL), workers=1))
