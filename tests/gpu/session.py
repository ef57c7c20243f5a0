"""What a quarter of an hour on a GPU is spent on, in order of worth; `run.sh` starts it.

Each part is a process of its own with a limit of time, and leaves what it found as soon as it has found it: one that
fails or runs late takes nothing from the others.
"""

import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from tests.gpu.page import page

ROOT = Path(__file__).resolve().parents[2]
PACKED = ROOT / ".gpu"
GPU = torch.cuda.is_available()
GRID = "gpu_row"
PROFILE = "short" if GPU else "cpu"
# Cells in order of worth, a run each, and how many at a time.
CELLS = ("arm=byol,arm=CF10-R20,arm=Rand.", "arm=CF10-T")
SIDE_BY_SIDE = 9 if GPU else 2
SAVING = 30  # seconds that a run of cells has to write its checkpoints
PACKING = 15  # and that the archives take
PART = 15 * 2**20  # bytes of a file that comes back, of which there can be eight
PARTS = 3  # of what the next session goes on from


class Session:
    """A stretch of time on a device, and the folder of what comes of it."""

    def __init__(self, out: Path, seconds: float) -> None:
        self.out, self.end = out, time.monotonic() + seconds
        self.figures: dict[str, object] = {}

    @property
    def left(self) -> float:
        """Seconds until everything has to be packed."""
        return self.end - PACKING - time.monotonic()

    def keep(self, name: str, value: object) -> None:
        """Add a figure to figures.json."""
        self.figures[name] = value
        (self.out / "figures.json").write_text(json.dumps(self.figures, indent=1) + "\n")

    def part(self, name: str, words: Sequence[str], seconds: float) -> int | None:
        """Run `python WORDS` for so many seconds at most; return its exit code, None when it ran late."""
        seconds = min(seconds, self.left)
        print(f"== {name}, at most {seconds:.0f} s: {' '.join(words)}")
        began = time.monotonic()
        code = None
        if seconds > 0:
            process = subprocess.Popen([sys.executable, *words], cwd=ROOT, start_new_session=True)
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                stop(process)
        self.keep(name, {"exit_code": code, "seconds": round(time.monotonic() - began, 1)})
        return code


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to save itself, and end it with its children when it does not."""
    process.terminate()
    try:
        process.wait(SAVING)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def about() -> dict[str, object]:
    """Return what the figures were taken on."""
    found: dict[str, object] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    if GPU:
        asked = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit"
        told = subprocess.run(["nvidia-smi", f"--query-gpu={asked}", "--format=csv"], capture_output=True, text=True)
        found |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "nvidia_smi": told.stdout}
    return found


def lay_out_data(data: Path) -> None:
    """Unpack the images and weights that came along."""
    (data / "priors").mkdir(parents=True)
    if (PACKED / "cifar10-jpeg.tar.xz").is_file():
        with tarfile.open(PACKED / "cifar10-jpeg.tar.xz") as archive:
            archive.extractall(data / "cifar10", filter="data")
        shutil.copy(PACKED / "resnet20_cifar10.safetensors", data / "priors")


def unpack(folder: Path, archives: Sequence[Path]) -> None:
    """Unpack what an earlier session has sent: the parts of its checkpoints, and its records."""
    parts = [path.read_bytes() for path in archives if path.suffix != ".tar"]
    for content in (b"".join(parts), *(path.read_bytes() for path in archives if path.suffix == ".tar")):
        if content:
            with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                tar.extractall(folder, filter="data")


def pack(folder: Path, paths: Sequence[Path], archive: Path, parts: int = 1) -> dict[str, object]:
    """Pack files of a folder, the first ones first, as far as they fit into so many parts; return what came of it.

    `cat ARCHIVE.*` puts the parts together.
    """
    packed, size = [], 0
    for path in paths:
        if size + path.stat().st_size + 2048 < parts * PART:
            packed.append(path)
            size += path.stat().st_size + 2048
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in packed:
            tar.add(path, path.relative_to(folder))
    content = buffer.getvalue()
    for number, begin in enumerate(range(0, len(content), PART)):
        name = archive if parts == 1 else archive.with_name(f"{archive.name}.{number}")
        name.write_bytes(content[begin : begin + PART])
    return {"packed": len(packed), "left_out": [str(path.relative_to(folder)) for path in paths if path not in packed]}


def worth_keeping(grid: Path) -> list[Path]:
    """Return what the next session can go on from: backbones that are priors first, then checkpoints."""
    full = [path.stem for path in grid.glob("*.json") if json.loads(path.read_text())["cell"]["budget"] == 1.0]
    backbones = [grid / "backbones" / f"{name}.safetensors" for name in sorted(full)]
    checkpoints = sorted(grid.glob(".work/*/checkpoint*"))
    return [path for path in (*backbones, *checkpoints) if path.is_file()]


@contextmanager
def several_processes() -> Iterator[None]:
    """Let kernels of several processes run on the GPU at a time (CUDA's MPS), where that is installed."""
    control = shutil.which("nvidia-cuda-mps-control") if GPU else None
    if control:
        subprocess.run([control, "-d"], check=False)
    try:
        yield
    finally:
        if control:
            subprocess.run([control], input=b"quit", check=False)


def cells(session: Session, work: Path) -> None:
    """Run cells for as long as there is time."""
    words = ["-m", "bench", "run", "--grid", GRID, "--profile", PROFILE, "--data-root", str(work / "data")]
    words += ["--results", str(work / "results"), "--jobs", str(SIDE_BY_SIDE)]
    with several_processes():
        for only in CELLS:
            if session.left > SAVING:
                only += "" if GPU else ",seed=0"
                session.part(f"cells {only}", [*words, "--only", only], session.left - SAVING)


def step_times(session: Session, path: Path, share: float) -> None:
    """Time steps, and keep what there is of them; one that is compiled takes a minute."""
    session.part("step times", ["-m", "tests.gpu.times", str(path), str(130 * share)], 180 * share)
    session.keep("times", json.loads(path.read_text()) if path.is_file() else {})


def cuda_tests(session: Session, share: float) -> None:
    """Run the tests that need CUDA."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # so that its sums can have the same bits each time
    words = ["-m", "pytest", "-m", "cuda", "-n", "4", "-p", "no:cacheprovider"]
    words += [f"--junit-xml={session.out / 'tests.xml'}", "tests/gpu", "tests/methods/test_waiting.py"]
    session.part("tests", [*words, "tests/data/test_augment.py"], 120 * share)


def main(out: Path, seconds: float, parts: Sequence[str]) -> None:
    """Spend so many seconds; what comes of them is in `out`."""
    session, work = Session(out, seconds), out / "work"
    shutil.rmtree(work, ignore_errors=True)
    session.keep("about", about())
    lay_out_data(work / "data")
    grid, share = work / "results" / f"{GRID}@{PROFILE}", min(1.0, seconds / 700)
    if (shipped := ROOT / "results" / grid.name).is_dir():
        shutil.copytree(shipped, grid)
    unpack(grid, [*sorted(PACKED.glob("checkpoints.tar.*")), *PACKED.glob("records.tar")])
    if "tests" in parts:
        cuda_tests(session, share)
    if "times" in parts:
        step_times(session, work / "times.json", share)
    if "cells" in parts:
        cells(session, work)
    session.keep("records", pack(grid, sorted(grid.glob("*.json")), out / "records.tar"))
    session.keep("checkpoints", pack(grid, worth_keeping(grid), out / "checkpoints.tar", PARTS))
    shutil.rmtree(work)
    (out / "gpu.md").write_text(page(session.figures))
    print(page(session.figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:] or ("tests", "times", "cells"))
