"""The columns of points.csv, tidy.csv and tidy.parquet: a row for each evaluation of a cell."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.grid.base import Model
from bench.plan.stale import stale_parts
from bench.report.collect import Collected, Result
from bench.report.columns import Column, count, flag, of_result, real, text
from bench.report.costs import ALONE, JOULES, SECONDS, Currency
from bench.report.facts import (
    learned,
    linear,
    phase_seconds,
    probe_sd,
    probe_seed_sd,
    target_flops,
    target_joules,
    wall_seconds,
)
from bench.store.record import OTHER_LOAD, ByAdam, Finished, Point, Score, score_linear


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of a finished cell, a row of POINTS."""

    found: Collected
    result: Result
    record: Finished
    point: Point

    @property
    def score(self) -> Score:
        """What it found."""
        return self.point.score

    def spent(self, currency: Currency) -> float | None:
        """Return what training had spent until then; None where it was not measured, or not alone."""
        return self.found.costs.of(self.record, currency, ALONE, self.point)

    def probe(self, name: str) -> Any:
        """Return a setting of the probe by epochs, None where the probe is another one."""
        probe = self.record.cell.protocol.probe
        return getattr(probe, name) if probe.recipe == "adam" else None


def _linear(score: Score | ByAdam | None) -> float | None:
    return score_linear(score) if score else None


def _validation(row: Evaluation) -> float | None:
    best = row.result.trials.best if row.result.trials else None
    return linear(best) if best else None


def reference(name: str) -> Callable[[Evaluation], float | None]:
    """Return what gives the linear accuracy of what a cell is seen beside, None where it was not measured."""
    score = at(f"references.{name}")
    return lambda row: _linear(score(row))


def at(path: str, kind: type = object) -> Callable[[Evaluation], Any]:
    """Return what gives the value at a path in a record: None where a part is, or where it is not of this kind."""
    names = path.split(".")

    def value(row: Evaluation) -> Any:
        there: Any = row.record
        for name in names:
            if isinstance(there, Model):
                there = getattr(there, name)
            else:
                there = there.get(name) if isinstance(there, dict) else None
        return there if isinstance(there, kind) else None

    return value


BRIEF: tuple[Column[Evaluation], ...] = (  # all that is not a setting of the cell
    *of_result(lambda c: c.result),
    count("seed", "1", "seed of the training", at("cell.seed")),
    text("id", "id of the cell, which names its record", at("id")),
    count("step", "steps", "taken until this evaluation", lambda c: c.point.step),
    count("images", "images", "trained on until this evaluation, each as often as seen", lambda c: c.point.images),
    real("train_flops", "FLOP", "of training until this evaluation, 2 per multiply-add", lambda c: c.point.flops),
    real("target_flops", "FLOP", "of making the targets, in full", lambda c: target_flops(c.record)),
    real("train_seconds", "s", "of training until this evaluation", lambda c: c.spent(SECONDS)),
    real("target_seconds", "s", "of making the targets, in full", lambda c: phase_seconds(c.record, "targets")),
    real("train_joules", "J", "of the GPU, of training until this evaluation", lambda c: c.spent(JOULES)),
    real("target_joules", "J", "of the GPU, of making the targets", lambda c: target_joules(c.record)),
    real("loss", "1", "of the method at this step", lambda c: c.point.loss),
    real(
        "linear",
        "1",
        "share of test images that the linear probe gets right, mean of its last epochs",
        lambda c: score_linear(c.score),
    ),
    real(
        "linear_probe_sd",
        "1",
        "its standard deviation (ddof 1) over the probe's last epochs",
        lambda c: probe_sd(c.score),
    ),
    real(
        "linear_probe_seed_sd",
        "1",
        "its standard deviation (ddof 1) over probes of several seeds",
        lambda c: probe_seed_sd(c.score),
    ),
    real(
        "linear_by_adam", "1", "by the paper's probe, where another recipe decides", lambda c: _linear(c.score.by_adam)
    ),
    real("knn", "1", "share of the test images that the kNN vote gets right", lambda c: c.score.knn),
)
POINTS: tuple[Column[Evaluation], ...] = (
    *BRIEF,
    flag("final", "whether this is the evaluation at the end of the cell", lambda c: c.point is c.record.curve[-1]),
    text("grid", "name of the grid", at("grid")),
    flag("rehearsal", "whether it was only rehearsed: its numbers mean nothing", at("rehearsal")),
    count("method_version", "1", "version of the method's code", at("inputs.method_version")),
    text("params", "parameters of the method, as JSON", lambda c: json.dumps(c.record.inputs.params, sort_keys=True)),
    text("prior_digest", "what identifies the prior's weights", at("inputs.prior")),
    text("prior_backbone", "architecture of a prior that is a file", at("cell.targets_of.backbone")),
    count(
        "prior_input_size",
        "pixels",
        "of the images that the prior sees, if the grid says it",
        at("cell.targets_of.input_size"),
    ),
    text("prior_precision", "of the prior's passes, when it makes the targets", at("cell.targets_of.precision")),
    flag("train_map", "whether ReLA's linear map is trained", at("cell.rela.train_map")),
    count("check_every", "steps", "between two looks at the adaptive switch", at("cell.rela.check_every")),
    flag("shuffle", "whether each image has the targets of another one", at("cell.targets_of.shuffle")),
    flag("tuned", "whether its recipe was chosen by trials", lambda c: c.record.cell.tuned is not None),
    real("validation_linear", "1", "of the chosen trial, on its validation images", _validation),
    text("flops_of", "the arm whose FLOPs this one matches", at("cell.flops_of")),
    text("seconds_of", "the arm whose seconds this one matches", at("cell.seconds_of")),
    text("accelerator", "around the method, beside ReLA", at("cell.accelerate.name")),
    text("warm_start", "the prior whose weights training begins with", at("cell.warm_start")),
    text("backbone", "architecture that is trained", at("cell.backbone")),
    count("train_images", "images", "used of the training set; empty: all", at("cell.train_images")),
    count("epochs", "epochs", "each over the budget's share of the images", at("cell.protocol.epochs")),
    count("batch_size", "images", "in each step", at("cell.protocol.batch_size")),
    text("optimiser", "adamw, sgd or lars", at("cell.protocol.optimiser")),
    real("lr", "1", "learning rate, the highest where it moves", at("cell.protocol.lr")),
    real("momentum", "1", "of SGD and LARS", at("cell.protocol.momentum")),
    real("weight_decay", "1", "weight decay", at("cell.protocol.weight_decay")),
    flag("decay_norm_and_bias", "whether norms and biases have it", at("cell.protocol.decay_norm_and_bias")),
    text("schedule", "of the learning rate: constant or cosine", at("cell.protocol.schedule")),
    real("warmup", "1", "share of the steps in which the learning rate rises", at("cell.protocol.warmup")),
    text("teacher", "schedule of a momentum network's momentum", at("cell.protocol.teacher")),
    text("precision", "of the training steps", at("cell.protocol.precision")),
    text("compile", "mode of torch.compile for the training steps; empty: not compiled", at("cell.protocol.compile")),
    count("input_size", "pixels", "of the images trained on; empty: the dataset's own", at("cell.protocol.input_size")),
    count("eval_resize", "pixels", "of the shorter side before evaluation crops", at("cell.protocol.eval_resize")),
    flag("blur", "whether views are blurred", at("cell.protocol.blur")),
    text("probe_recipe", "of the linear probe: adam or lbfgs", at("cell.protocol.probe.recipe")),
    count("probe_epochs", "epochs", "of the linear probe; adam", lambda c: c.probe("epochs")),
    count("probe_batch_size", "images", "in each step of the linear probe; adam", lambda c: c.probe("batch_size")),
    count("probe_seeds", "1", "probes that were trained on the same features", at("cell.protocol.probe.seeds")),
    real("probe_lr", "1", "learning rate of the linear probe; adam", lambda c: c.probe("lr")),
    count("knn_k", "images", "that vote", at("cell.protocol.knn.k")),
    real("knn_temperature", "1", "of the kNN vote", at("cell.protocol.knn.temperature")),
    real("effective_rank", "1", "of the test images' features at the cell's end (RankMe)", at("final.effective_rank")),
    flag("probe_converged", "whether the deciding probe had converged; empty: not measured", at("final.end.converged")),
    flag("learned", "whether it is above the untrained backbone and not collapsed", lambda c: learned(c.record)),
    real("untrained_linear", "1", "linear accuracy before training, by the same probe", reference("untrained")),
    real("prior_linear", "1", "of the prior itself, by the same probe", reference("prior")),
    count("switch_step", "steps", "at which ReLA handed over to the method", at("switch_step")),
    real("eval_seconds", "s", "of all evaluations of the cell", lambda c: phase_seconds(c.record, "eval")),
    real("other_seconds", "s", "of all else, such as checkpoints", lambda c: phase_seconds(c.record, "other")),
    real("wall_seconds", "s", "of the cell, without targets that were cached", lambda c: wall_seconds(c.record)),
    count("side_by_side", "cells", "on the device at a time; more than one are not timed", at("ledger.side_by_side")),
    real(
        "other_load",
        "1",
        f"share of the time that other work took; above {OTHER_LOAD} nothing is timed",
        at("ledger.other_load"),
    ),
    real("target_other_load", "1", "the same of making the targets", at("ledger.targets.other_load")),
    count(
        "peak_memory_bytes", "bytes", "peak of the GPU's allocator, else of the process", at("ledger.peak_memory_bytes")
    ),
    count("target_images", "images", "of which targets were made", at("ledger.targets.images")),
    count("target_empty", "1", "components of the targets that have no variance", at("ledger.targets.empty")),
    text("time", "when the record was made", at("provenance.time")),
    text("code_version", "of rela-bench", at("provenance.code.version")),
    text("code_commit", "of rela-bench, where it is a git checkout", at("provenance.code.commit")),
    flag(
        "stale",
        "whether the code that decides its numbers has changed since; empty: not known",
        lambda c: bool(stale_parts(c.record)) if c.record.code else None,
    ),
    flag("code_dirty", "whether that checkout had uncommitted changes", at("provenance.code.dirty", bool)),
    text("torch", "version of torch", at("provenance.packages.torch")),
    text("device", "kind of device", at("provenance.device")),
    text("gpu", "name of the GPU", at("provenance.gpu")),
    text("cpu", "name of the CPU", at("provenance.cpu")),
    count("threads", "1", "CPU threads of torch", at("provenance.threads", int)),
    count("processes", "1", "that trained the cell together", at("provenance.processes", int)),
)


def evaluations(found: Collected) -> list[Evaluation]:
    """Return the evaluations of the cells that are used, in the order of the grid."""
    return [
        Evaluation(found, result, record, point)
        for result in found.results
        for record in result.done
        for point in record.curve
    ]
