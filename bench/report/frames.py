"""Tidy tables for further work: accuracies are shares of images, costs are plain FLOP, seconds and bytes."""

import statistics
from typing import TYPE_CHECKING, Any

from bench.report.collect import Collected, Result
from bench.report.costs import ALONE, JOULES, SECONDS
from bench.report.facts import (
    knn,
    linear,
    phase_seconds,
    probe_sd,
    probe_seed_sd,
    score_linear,
    target_flops,
    target_joules,
    wall_seconds,
)

if TYPE_CHECKING:
    import pandas as pd


POINTS = (
    *("dataset", "dataset_title", "data", "arm", "method", "prior", "phase", "budget", "seed", "id"),
    *("step", "images", "train_flops", "target_flops", "train_seconds", "target_seconds", "train_joules"),
    *("target_joules", "loss", "linear", "linear_probe_sd", "linear_probe_seed_sd", "linear_by_adam", "knn"),
)


def results_frame(found: Collected) -> "pd.DataFrame":
    """Return one row for each group, arm and budget of the grid; where no seed is finished n is 0, without values."""
    import pandas as pd

    rows = []
    for result in found.results:
        scores = {"linear": result.over_seeds(linear), "knn": result.over_seeds(knn)}
        costs = {
            "steps": result.over_seeds(lambda record: record.ledger.steps),
            "images": result.over_seeds(lambda record: record.ledger.images),
            "train_flops": result.over_seeds(lambda record: record.ledger.flops),
            "target_flops": result.over_seeds(target_flops),
            "train_seconds": result.over_seeds(lambda record: phase_seconds(record, "train")),
            "target_seconds": result.over_seeds(lambda record: phase_seconds(record, "targets")),
            "eval_seconds": result.over_seeds(lambda record: phase_seconds(record, "eval")),
            "other_seconds": result.over_seeds(lambda record: phase_seconds(record, "other")),
            "wall_seconds": result.over_seeds(wall_seconds),
            "peak_memory_bytes": result.over_seeds(lambda record: record.ledger.peak_memory_bytes),
            "switch_step": result.over_seeds(lambda record: record.switch_step),
        }
        spread = result.over_seeds(lambda record: probe_sd(record.final))
        row = _about(result) | {"budget": result.budget, "n_planned": len(result.seeds), "n": len(result.done)}
        for name, score in scores.items():
            row |= {f"{name}_mean": score and score.mean, f"{name}_sd": score and score.sd}
        row["linear_probe_sd"] = spread and spread.mean
        for name, cost in costs.items():
            partly = name.endswith("_seconds") and cost and cost.n < len(result.done)  # measured alone in some seeds
            row[name] = None if partly else cost and cost.mean
        row["n_switched"] = sum(record.switch_step is not None for record in result.done) if result.arm.rela else None
        rows.append(row)
    return pd.DataFrame(rows)


def points_frame(found: Collected) -> "pd.DataFrame":
    """Return one row for each evaluation of each record that is used."""
    import pandas as pd

    rows = []
    for result in found.results:
        about = _about(result) | {"budget": result.budget}
        for record in result.done:
            for point in record.curve:
                scores = point.score.linear
                rows.append(
                    about
                    | {
                        "seed": record.cell.seed,
                        "id": record.id,
                        "step": point.step,
                        "images": point.images,
                        "train_flops": point.flops,
                        "target_flops": target_flops(record),
                        "train_seconds": found.costs.of(record, SECONDS, ALONE, point),
                        "target_seconds": phase_seconds(record, "targets"),
                        "train_joules": found.costs.of(record, JOULES, ALONE, point),
                        "target_joules": target_joules(record),
                        "loss": point.loss,
                        "linear": statistics.fmean(scores) if scores else None,
                        "linear_probe_sd": probe_sd(point.score),
                        "linear_probe_seed_sd": probe_seed_sd(point.score),
                        "linear_by_adam": score_linear(point.score.by_adam) if point.score.by_adam else None,
                        "knn": point.score.knn,
                    }
                )
    return pd.DataFrame(rows, columns=list(POINTS))


def to_csv(frame: "pd.DataFrame") -> bytes:
    """Return a frame as CSV."""
    return frame.to_csv(index=False, lineterminator="\n").encode()


def _about(result: Result) -> dict[str, Any]:
    rela = result.arm.rela
    return {
        "dataset": result.group.dataset,
        "dataset_title": result.group.title,
        "data": result.group.data,
        "arm": result.label,
        "method": result.arm.method,
        "prior": rela.prior if rela else None,
        "phase": str(rela.phase) if rela else None,
    }
