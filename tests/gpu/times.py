"""Times of training steps, written to a JSON file as they come: `python -m tests.gpu.times FILE SECONDS`.

In milliseconds a step: medians of rounds in which ours and Bare take turns, by CUDA events. Without a GPU all of it
runs once with a small network, so that it is known to run.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.data.loader import InMemoryLoader
from bench.data.sampler import Sampler
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.measure.clock import Clock
from bench.train.loop import Trainer
from methods.build import build_method
from tests.speed.bare import TARGETS, bare
from tests.speed.reference import Reference

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
ROUNDS, STEPS, WORKERS = (5, 20, 8) if GPU else (2, 1, 1)
ARMS = {"byol": "byol", "simclr": "simclr", "rela": "Rand."}
RECORDED = "CUDA graph" if GPU else "eager"  # how a step runs that is not compiled
TOP = 12  # operations of a profile
BUSY = 0.9  # of the time: below it the device waits for launches


@dataclass(frozen=True)
class Variant:
    """A step to be timed."""

    arm: str
    backbone: str
    batch: int
    px: int
    mode: str | None = None  # of torch.compile
    channels_last: bool = True
    precision: str = "bf16"

    @property
    def steps(self) -> int:
        """How many are timed at a time: those of large images take longer."""
        return max(1, STEPS // 5) if self.px > 100 else STEPS

    @property
    def name(self) -> str:
        """What the figures call it."""
        layout = "channels_last" if self.channels_last else "contiguous"
        images = f"{self.backbone}, {self.px} px, batch {self.batch}"
        return f"{self.arm}, {images}, {self.precision}, {self.mode or RECORDED}, {layout}"


def variants() -> Iterator[Variant]:
    """Yield what is timed, the most wanted first: after the usual steps one of each other kind, then the rest."""
    network, batch = ("resnet18_cifar", 128) if GPU else ("resnet_small", 16)
    first, *others = ARMS
    for arm in ARMS:
        yield Variant(arm, network, batch, 32)
    if GPU:
        yield Variant(first, network, 512, 32)
        yield Variant(first, "resnet50", batch, 224)
        yield Variant(first, network, batch, 32, mode="reduce-overhead")
        yield Variant(first, network, batch, 32, channels_last=False)
        for arm in others:
            yield Variant(arm, network, 512, 32)
            yield Variant(arm, "resnet50", batch, 224)
        yield Variant(first, network, batch, 32, precision="fp16")
        yield Variant(first, network, batch, 32, precision="fp32")
        yield Variant(first, network, batch, 32, mode="default")
        for arm in others:
            yield Variant(arm, network, batch, 32, mode="reduce-overhead")


def trainer(variant: Variant) -> Trainer:
    """Return what trains a variant on noise; its FLOPs are counted, it is compiled, its optimiser's state is there."""
    count = variant.batch * (40 if variant.px < 100 else 8)
    arms = "arms=[byol, simclr, {name: Rand., method: byol, rela: {prior: rand, check_every: 50}}]"
    cell = next(c for c in expand(load_grid("cifar_small", settings=[arms])) if c.arm == ARMS[variant.arm])
    cell = cell.model_copy(update={"backbone": variant.backbone})
    images = torch.randint(0, 256, (count, 3, variant.px, variant.px), dtype=torch.uint8)
    source = InMemoryLoader(images, torch.zeros(count, dtype=torch.int64), variant.px, DEVICE)
    targets = torch.randn(count, TARGETS, device=DEVICE) if cell.rela else None
    method = build_method(cell, variant.px, TARGETS if cell.rela else None, 4).to(DEVICE)
    if variant.channels_last:
        method = method.to(memory_format=torch.channels_last)
    protocol = cell.protocol.model_copy(update={"precision": variant.precision, "compile": variant.mode})
    made = Trainer(method, source, Sampler(count, 1.0, variant.batch, 0), targets, protocol, Clock(DEVICE))
    made.train(4, lambda: None)
    return made


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds that the device takes for some work."""
    if not GPU:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def against_bare(variant: Variant) -> dict[str, float]:
    """Return the milliseconds of a step, those of Bare's, and the medians of their ratio, smallest and largest."""
    ours, steps = trainer(variant), variant.steps
    views = [torch.randn(variant.batch, 3, variant.px, variant.px, device=DEVICE) for _ in range(2)]
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[variant.precision]
    mixed = variant.precision != "fp32"
    passes = bare(variant.arm, variant.backbone, views, lambda: torch.autocast(DEVICE.type, dtype, enabled=mixed))
    passes()

    def bare_steps() -> None:
        for _ in range(steps):
            passes()

    pairs = [
        (seconds_of(lambda: ours.train(ours.step + steps, lambda: None)), seconds_of(bare_steps)) for _ in range(ROUNDS)
    ]
    ratios = [one / other for one, other in pairs]
    step, least = (1000 * statistics.median(each) / steps for each in zip(*pairs, strict=True))
    return {
        "ms": step,
        "bare_ms": least,
        "of_bare": statistics.median(ratios),
        "of_bare_low": min(ratios),
        "of_bare_high": max(ratios),
        "rounds": ROUNDS,
    }


def against_reference(backbone: str, batch: int) -> dict[str, float]:
    """Return how many times faster a step of BYOL is than the reference pipeline's, both fp32 and ours bf16 too."""
    steps = 4 * STEPS
    images = torch.randint(0, 256, (batch * steps, 3, 32, 32), dtype=torch.uint8)
    reference = Reference(images, backbone, batch, WORKERS, DEVICE)
    theirs = [seconds_of(reference.epoch) for _ in range(2)][-1] / steps
    found = {"reference_ms": 1000 * theirs, "workers": WORKERS}
    for precision in ("fp32", "bf16"):
        ours = trainer(Variant("byol", backbone, batch, 32, precision=precision))
        spent = [seconds_of(lambda: ours.train(ours.step + STEPS, lambda: None)) / STEPS for _ in range(3)]  # noqa: B023
        found[f"times_faster_{precision}"] = theirs / statistics.median(spent)
    return found


def profiled(variant: Variant) -> dict[str, Any]:
    """Return a step's largest operations, its launches, and what limits it, in one line."""
    ours = trainer(variant)
    took = statistics.median(seconds_of(lambda: ours.train(ours.step + STEPS, lambda: None)) for _ in range(3))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if GPU else [])]
    with profile(activities=activities) as seen:
        ours.train(ours.step + STEPS, lambda: None)
    kind = "self_device_time_total" if GPU else "self_cpu_time_total"
    rows = sorted(seen.key_averages(), key=lambda row: -getattr(row, kind))
    kernels = [row for row in rows if not GPU or row.device_type == torch.autograd.DeviceType.CUDA]
    total = sum(getattr(row, kind) for row in kernels) / 1e6
    sums = sum(
        getattr(row, kind)
        for row in kernels
        if any(word in row.key.lower() for word in ("conv", "gemm", "sm90", "cutlass", "mm"))
    )
    busy, arithmetic = total / took, sums / 1e6 / total if total else 0.0
    why = "launches" if busy < BUSY else "arithmetic" if arithmetic > 0.5 else "memory traffic"
    launches = sum(row.count for row in kernels) / STEPS
    return {
        "top": [
            {"name": row.key[:100], "ms": getattr(row, kind) / 1000 / STEPS, "calls": row.count / STEPS}
            for row in rows[:TOP]
        ],
        "limit": f"{why}: {launches:.0f} operations a step, the device busy for {100 * busy:.0f} % of the time,"
        f" {100 * arithmetic:.0f} % of that in convolutions and products",
    }


def main(path: Path, seconds: float) -> None:
    """Time all there is time for; a variant that fails is a line of text among the figures."""
    end, found = time.monotonic() + seconds, dict[str, Any]()

    def keep(name: str, work: Callable[[], Any]) -> None:
        if time.monotonic() > end:
            return
        try:
            found[name] = work()
        except Exception as error:  # a figure less, not all of them
            found[name] = f"{type(error).__name__}: {error}"[:500]
        print(f"{name}: {found[name]}")
        path.write_text(json.dumps(found, indent=1))

    steps = list(variants())
    usual, rest = steps[: len(ARMS)], steps[len(ARMS) :]
    for each in usual:
        keep(each.name, lambda: against_bare(each))  # noqa: B023
    keep("reference", lambda: against_reference(usual[0].backbone, usual[0].batch))
    keep("profile", lambda: profiled(usual[0]))
    for each in rest:
        keep(each.name, lambda: against_bare(each))  # noqa: B023


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
