"""The columns of the exported points: what each one means, its type and its unit."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bench.report.collect import Collected
from bench.report.facts import learned, phase_seconds, score_linear, wall_seconds
from bench.report.frames import points_frame
from bench.store.record import OTHER_LOAD, Finished, References

if TYPE_CHECKING:
    import pandas as pd

Type = Literal["string", "Int64", "Float64", "boolean"]  # of pandas, all of which may be empty


@dataclass(frozen=True)
class Column:
    """What a column holds; `unit` is "" for words."""

    type: Type
    unit: str
    meaning: str


def _text(meaning: str) -> Column:
    return Column("string", "", meaning)


def _count(unit: str, meaning: str) -> Column:
    return Column("Int64", unit, meaning)


def _real(unit: str, meaning: str) -> Column:
    return Column("Float64", unit, meaning)


def _flag(meaning: str) -> Column:
    return Column("boolean", "", meaning)


ONLY_ALONE = f"Seconds and joules are there up to {OTHER_LOAD}"
# FLOPs are reals: those of a large run are more than 64 bits hold.
COLUMNS = {
    "id": _text("id of the cell, which names its record"),
    "grid": _text("name of the grid"),
    "rehearsal": _flag("whether the cell was only rehearsed: its numbers mean nothing then"),
    "dataset": _text("name of the dataset"),
    "dataset_title": _text("title of the dataset"),
    "data": _text("digest of the dataset's content"),
    "arm": _text("label of the arm: method, wrapper, prior and settings"),
    "method": _text("self-supervised method"),
    "method_version": _count("1", "version of the method's code"),
    "params": _text("parameters of the method, as JSON"),
    "prior": _text("prior of ReLA; empty without ReLA"),
    "prior_digest": _text("what identifies the prior's weights"),
    "prior_backbone": _text("architecture of a prior that is a file"),
    "prior_input_size": _count("pixels", "size of the images that the prior sees, where the grid says it"),
    "prior_precision": _text("of the prior's passes, when it makes the targets"),
    "phase": _text("ReLA's phase: adaptive, or its share of the epochs"),
    "train_map": _flag("whether ReLA's linear map is trained"),
    "check_every": _count("steps", "between two looks at the adaptive switch"),
    "shuffle": _flag("whether each image has the targets of another one"),
    "flops_of": _text("the arm whose FLOPs this one matches"),
    "budget": _real("1", "share of the full number of steps"),
    "seed": _count("1", "seed of the training"),
    "backbone": _text("architecture that is trained"),
    "train_images": _count("images", "part of the training set that is used; empty: all of it"),
    "epochs": _count("epochs", "each over the budget's share of the images"),
    "batch_size": _count("images", "in each step"),
    "lr": _real("1", "learning rate of AdamW"),
    "weight_decay": _real("1", "weight decay of AdamW"),
    "precision": _text("of the training steps"),
    "compile": _text("mode of torch.compile for the training steps; empty: not compiled"),
    "input_size": _count("pixels", "of the images that are trained on; empty: the dataset's own"),
    "eval_resize": _count("pixels", "of the shorter side of which evaluation takes the centre; empty: input_size"),
    "blur": _flag("whether views are blurred"),
    "probe_recipe": _text("of the linear probe: adam or lbfgs"),
    "probe_epochs": _count("epochs", "of the linear probe; adam"),
    "probe_batch_size": _count("images", "in each step of the linear probe; adam"),
    "probe_seeds": _count("1", "probes that were trained on the same features"),
    "probe_lr": _real("1", "learning rate of the linear probe; adam"),
    "knn_k": _count("images", "that vote"),
    "knn_temperature": _real("1", "of the kNN vote"),
    "step": _count("steps", "taken until this evaluation"),
    "images": _count("images", "trained on until this evaluation, each as often as it was seen"),
    "train_flops": _real("FLOP", "of training until this evaluation, 2 per multiply-add"),
    "target_flops": _real("FLOP", "of making the targets, charged in full to each cell"),
    "train_seconds": _real("s", "of training until this evaluation"),
    "target_seconds": _real("s", "of making the targets, charged in full to each cell"),
    "train_joules": _real("J", "of the GPU, of training until this evaluation; empty: not measured"),
    "target_joules": _real("J", "of the GPU, of making the targets"),
    "loss": _real("1", "of the method at this step"),
    "linear": _real("1", "share of the test images that the linear probe gets right, mean over its last epochs"),
    "linear_probe_sd": _real("1", "sample standard deviation (ddof 1) of that over the probe's last epochs"),
    "linear_probe_seed_sd": _real("1", "sample standard deviation (ddof 1) of that over probes of several seeds"),
    "linear_by_adam": _real("1", "that of the paper's probe beside it, at the end, where another recipe decides"),
    "knn": _real("1", "share of the test images that the kNN vote gets right"),
    "final": _flag("whether this is the evaluation at the end of the cell"),
    "effective_rank": _real("1", "of the test images' features at the end of the cell (RankMe)"),
    "probe_converged": _flag("whether the deciding probe had converged at the end of the cell; empty: not measured"),
    "learned": _flag("whether the accuracy is above the untrained one's and nothing has collapsed; empty: not known"),
    "untrained_linear": _real("1", "linear accuracy of the backbone before training, by the same probe"),
    "prior_linear": _real("1", "linear accuracy of the prior itself, by the same probe"),
    "switch_step": _count("steps", "at which ReLA handed over to the method; empty: never"),
    "eval_seconds": _real("s", "of all evaluations of the cell"),
    "other_seconds": _real("s", "of all else in the cell, such as checkpoints"),
    "wall_seconds": _real("s", "of the whole cell, without targets that were cached"),
    "side_by_side": _count("cells", "on the device at a time; of more than one, seconds and joules are empty"),
    "other_load": _real("1", f"share of the time that other work took; empty: not known. {ONLY_ALONE}"),
    "target_other_load": _real("1", "the same of making the targets"),
    "peak_memory_bytes": _count("bytes", "peak of the whole cell: of the GPU's allocator, else of the process"),
    "target_images": _count("images", "of which targets were made"),
    "target_empty": _count("1", "components of the targets that have no variance"),
    "time": _text("when the record was made"),
    "code_version": _text("of rela-bench"),
    "code_commit": _text("of rela-bench, where it is a git checkout"),
    "code_dirty": _flag("whether that checkout had uncommitted changes"),
    "torch": _text("version of torch"),
    "device": _text("kind of device"),
    "gpu": _text("name of the GPU"),
    "cpu": _text("name of the CPU"),
    "threads": _count("1", "CPU threads of torch"),
    "processes": _count("1", "that trained the cell together"),
}


def tidy_frame(found: Collected) -> "pd.DataFrame":
    """Return one row for each evaluation of each record that is used, with the settings and costs of its cell.

    Columns and their types are those of COLUMNS. Raises OverflowError on a whole number of more than 64 bits.
    """
    import pandas as pd

    points = points_frame(found)
    cells = pd.DataFrame([_of_cell(record) for record in found.done], dtype=object)
    frame = points.astype(object).merge(cells, on="id", how="left", validate="many_to_one")
    frame["final"] = ~frame["id"].duplicated(keep="last")
    return pd.DataFrame({name: frame[name].astype(column.type) for name, column in COLUMNS.items()})


def _of_cell(record: Finished) -> dict[str, Any]:
    cell, ledger, rela, targets = record.cell, record.ledger, record.cell.rela, record.ledger.targets
    protocol, origin = cell.protocol, record.provenance
    by_epochs = protocol.probe.recipe == "adam"
    score, beside = record.final, record.references or References(untrained=None)
    code, packages = _mapping(origin.get("code")), _mapping(origin.get("packages"))
    return {
        "id": record.id,
        "grid": record.grid,
        "rehearsal": record.rehearsal,
        "method_version": record.inputs.method_version,
        "params": json.dumps(record.inputs.params, sort_keys=True),
        "prior_digest": record.inputs.prior,
        "prior_backbone": rela and rela.backbone,
        "prior_input_size": rela and rela.input_size,
        "prior_precision": rela and rela.precision,
        "train_map": rela and rela.train_map,
        "check_every": rela and rela.check_every,
        "shuffle": rela and rela.shuffle,
        "flops_of": cell.flops_of,
        "backbone": cell.backbone,
        "train_images": cell.train_images,
        "epochs": protocol.epochs,
        "batch_size": protocol.batch_size,
        "lr": protocol.lr,
        "weight_decay": protocol.weight_decay,
        "precision": protocol.precision,
        "compile": protocol.compile,
        "input_size": protocol.input_size,
        "eval_resize": protocol.eval_resize,
        "blur": protocol.blur,
        "probe_recipe": protocol.probe.recipe,
        "probe_epochs": protocol.probe.epochs if by_epochs else None,
        "probe_batch_size": protocol.probe.batch_size if by_epochs else None,
        "probe_lr": protocol.probe.lr if by_epochs else None,
        "probe_seeds": protocol.probe.seeds,
        "knn_k": protocol.knn.k,
        "knn_temperature": protocol.knn.temperature,
        "effective_rank": score.effective_rank,
        "probe_converged": score.end.converged if score.end else None,
        "learned": learned(record),
        "untrained_linear": score_linear(beside.untrained) if beside.untrained else None,
        "prior_linear": score_linear(beside.prior) if beside.prior else None,
        "switch_step": record.switch_step,
        "eval_seconds": phase_seconds(record, "eval"),
        "other_seconds": phase_seconds(record, "other"),
        "wall_seconds": wall_seconds(record),
        "side_by_side": ledger.side_by_side,
        "other_load": ledger.other_load,
        "target_other_load": targets and targets.other_load,
        "peak_memory_bytes": ledger.peak_memory_bytes,
        "target_images": targets and targets.images,
        "target_empty": targets and targets.empty,
        "time": _word(origin.get("time")),
        "code_version": _word(code.get("version")),
        "code_commit": _word(code.get("commit")),
        "code_dirty": dirty if isinstance(dirty := code.get("dirty"), bool) else None,
        "torch": _word(packages.get("torch")),
        "device": _word(origin.get("device")),
        "gpu": _word(origin.get("gpu")),
        "cpu": _word(origin.get("cpu")),
        "threads": _whole(origin.get("threads")),
        "processes": _whole(origin.get("processes")),
    }


def _mapping(value: Any) -> dict[str, Any]:
    """Return what a record's provenance says, which may be anything."""
    return value if isinstance(value, dict) else {}


def _word(value: Any) -> str | None:
    return None if value is None else str(value)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
