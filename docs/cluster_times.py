"""How long a grid takes on so many GPUs, by simulation: `python docs/cluster_times.py --tflops 100`.

Each cell is a job that takes its FLOPs of training, as `run --dry-run` counts them, divided by an assumed rate; a free
set of GPUs takes the next cell in the order in which `--executor slurm` submits them, those that others need first.
Not counted are making targets, evaluations, starting up, and waiting for others.
"""

import argparse
import heapq
from collections.abc import Sequence
from pathlib import Path

GRID, GPUS, PER_CELL = "paper_table1", (1, 8, 64, 512), (1, 8)


def makespan(seconds: Sequence[float], needs: Sequence[int | None], machines: int) -> float:
    """Return when the last of some jobs ends; `needs` has the index of the job that each one waits for, if any."""
    awaited = set(needs)
    ready = [(index not in awaited, index) for index, needed in enumerate(needs) if needed is None]
    heapq.heapify(ready)
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < machines:
            _, index = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds[index], index))
        now, done = heapq.heappop(running)
        for index, needed in enumerate(needs):
            if needed == done:
                heapq.heappush(ready, (index not in awaited, index))
    return now


def longest(seconds: Sequence[float], needs: Sequence[int | None]) -> list[int]:
    """Return the indices of the chain of jobs, each of which needs the one before, that takes longest."""
    ends: dict[int, float] = {}
    for index, needed in enumerate(needs):  # each comes after what it needs
        ends[index] = seconds[index] + (0.0 if needed is None else ends[needed])
    chain: list[int] = []
    at: int | None = max(ends, key=ends.__getitem__)
    while at is not None:
        chain.insert(0, at)
        at = needs[at]
    return chain


def costs(grid: str, data: Path) -> tuple[list[str], list[float], list[int | None]]:
    """Return each cell's name, its FLOPs of training, and the index of the cell that it needs."""
    from bench.core.paths import Paths
    from bench.data import find_dataset, image_size
    from bench.data.sampler import total_steps
    from bench.grid.expand import expand
    from bench.plan.estimate import flops_per_image
    from bench.plan.graph import plan
    from bench.plan.load import load_grid
    from bench.run.progress import describe

    spec = load_grid(grid)
    paths, cells = Paths(data, Path("results"), spec.name), expand(spec)
    tasks = plan(cells, cells, paths, f"grid {spec.name}")
    index = {id(task): number for number, task in enumerate(tasks)}
    flops = []
    for task in tasks:
        images = task.cell.train_images or find_dataset(task.cell.dataset, data).train_images
        assert images
        steps = total_steps(task.cell, images)
        each = flops_per_image(task.cell, image_size(task.cell, paths))
        flops.append(float(steps * task.cell.protocol.batch_size * each))
    needs = [index[id(task.needs)] if task.needs else None for task in tasks]
    return [describe(task.cell) for task in tasks], flops, needs


def main() -> None:
    """Print the table of docs/cluster.md."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tflops", type=float, default=100.0, help="rate of a GPU, in TFLOP/s")
    options.add_argument("--grid", default=GRID)
    options.add_argument("--data-root", type=Path, default=Path("data"))
    asked = options.parse_args()
    names, flops, needs = costs(asked.grid, asked.data_root)
    hours = [each / (asked.tflops * 1e12) / 3600 for each in flops]
    print(f"Assumes {asked.tflops:g} TFLOP/s per GPU; not measured on a GPU.\n")
    print("| GPUs | " + " | ".join(f"{each} for each cell" for each in PER_CELL) + " | busy |")
    print("| ---: | " + "---: | " * len(PER_CELL) + "---: |")
    for gpus in GPUS:
        spans = [makespan([h / per for h in hours], needs, gpus // per) if gpus >= per else None for per in PER_CELL]
        busy = sum(hours) / (gpus * min(span for span in spans if span))
        told = (f"{span:,.1f} h" if span else "—" for span in spans)
        print(f"| {gpus} | {' | '.join(told)} | {busy:.0%} |")
    chain = longest(hours, needs)
    limit = sum(hours[each] for each in chain)
    enough = next(n for n in range(1, len(hours) + 1) if makespan(hours, needs, n) < limit * 1.001)
    print(f"\n{len(hours)} cells, {sum(hours):,.1f} GPU-hours. The longest chain takes {limit:,.1f} h:\n")
    for each in chain:
        print(f"- {names[each]} ({hours[each]:.1f} h)")
    print(f"\nWith one GPU for each cell, more than {enough} GPUs make nothing faster.")


if __name__ == "__main__":
    main()
