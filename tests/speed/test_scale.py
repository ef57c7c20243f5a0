"""Memory and time per image of sets that stream: 5,000 and 20,000 JPEG files of 224 pixels, each in its own process.

`pytest tests/speed/test_scale.py -m slow --benchmark-enable -s` prints what it measures; memory is asserted either way.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture

pytestmark = pytest.mark.slow

SIZES = (5_000, 20_000)
DISTINCT, CLASSES, PIXELS, TESTS = 200, 10, 224, 200
MIB = 2**20
GROWTH = 48 * MIB  # what 15,000 more images may cost: paths, labels, and gaps that the allocator happens to leave
HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `jpeg`: 20,000 + 200 JPEG files, hard links to 200 distinct images of noise at all scales."""
    found = tmp_path_factory.mktemp("scale")
    draw = np.random.default_rng(0)
    for index in range(DISTINCT):
        layers = [draw.normal(0, 12 * 2**level, (PIXELS >> level, PIXELS >> level, 3)) for level in range(6)]
        sizes = [np.repeat(np.repeat(layer, 2**level, 0), 2**level, 1) for level, layer in enumerate(layers)]
        pixels = (sum(sizes) / 4 + 128).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(found / f"{index}.jpg", quality=90)
    for split, count in (("train", SIZES[-1]), ("test", TESTS)):
        for label in range(CLASSES):
            (found / "jpeg" / split / f"n{label:08}").mkdir(parents=True)
        for index in range(count):
            name = found / "jpeg" / split / f"n{index % CLASSES:08}" / f"n{index % CLASSES:08}_{index:05}.JPEG"
            os.link(found / f"{index % DISTINCT}.jpg", name)
    return found


def measure(root: Path, count: int, what: str) -> dict[str, float]:
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, str(HERE / "scale.py"), str(root), str(count), what]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.benchmark(group="streaming, JPEG files of 224 px, resnet_small at 32 px, 1 worker")
@pytest.mark.parametrize("what", ["train", "targets", "probe"])
def test_memory_does_not_grow_with_the_number_of_images(what: str, root: Path, benchmark: BenchmarkFixture) -> None:
    few, many = SIZES
    small = measure(root, few, what)
    large = benchmark.pedantic(measure, args=(root, many, what), rounds=1)
    for count, found in ((few, small), (many, large)):
        benchmark.extra_info[f"{count}"] = {
            "ms per image": round(1000 * found["seconds"], 2),
            "peak MiB": round(found["peak"] / MIB, 1),
            "peak MiB of a worker": round(found["worker"] / MIB, 1),
            "features MiB": round(found["held"] / MIB, 1),
        }
    print(what, json.dumps(benchmark.extra_info))
    held = large["held"] - small["held"]  # the probe's features, which a worker that is forked then shares
    assert large["peak"] - small["peak"] - held < GROWTH
    assert large["worker"] - small["worker"] - held < GROWTH
