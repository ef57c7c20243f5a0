"""How strong the gate is: plants faults, one at a time, in a copy of the code, and tells whether `check` turns red.

    python tests/faults.py --data-root DATA [--jobs 2] [--seeds 3] [--only NAME] --out docs/check.md

A fault is a text that stands exactly once in a file, and what to put there. `--out` is a file whose part between two
marks becomes the table. A set takes about a minute of a core for each fault.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from bench.measure.provenance import provenance
from bench.report.render.markdown import escape_markdown

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"


@dataclass(frozen=True)
class Fault:
    """A change of one text in one file; `harmless` when nothing is learned otherwise: the gate must stay green."""

    name: str
    file: str
    old: str
    new: str
    harmless: bool = False

    def plant(self, root: Path) -> None:
        """Change the file in a copy of the code. Raises ValueError unless the text stands there exactly once."""
        path = root / self.file
        text = path.read_text()
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.old!r} stands {text.count(self.old)} times in {self.file}")
        path.write_text(text.replace(self.old, self.new))


TRAINED = "[parameter for parameter in method.parameters() if parameter.requires_grad]"
NAMED = "[p for name, p in method.named_parameters() if p.requires_grad and {} in name]"
RELA_LOSS = "loss = 1 - (cosine_similarity(y0, batch.targets) + cosine_similarity(y1, batch.targets)).mean() / 2"
RELA_MSE = "loss = ((y0 - batch.targets).square() + (y1 - batch.targets).square()).mean() / 2"
BYOL_TARGETS = "z1, z0 = (self.teacher(x).float() for x in (x1, x0))"
STANDARD = "standard = torch.where(full, reduced / torch.where(full, deviation, 1.0), 0.0)"

FAULTS = (
    # no faults: the gate must stay green
    Fault(
        "other memory layout",
        "bench/train/cell.py",
        "method.to(clock.device).to(memory_format=torch.channels_last)",
        "method.to(clock.device)",
        True,
    ),
    Fault(
        "the loss in double precision",
        "bench/train/loop.py",
        "self.scaler.scale(loss)",
        "self.scaler.scale(loss.double())",
        True,
    ),
    # no fault either, but every record is another one: all the means stay, and the seeds do not repeat
    Fault(
        "other random numbers throughout",
        "bench/core/seeds.py",
        "map(str, (seed, *purpose))",
        'map(str, ("other", seed, *purpose))',
    ),
    # the hardest to see
    Fault("no flip", "bench/data/augment.py", "flip: float = 0.5", "flip: float = 0.0"),
    Fault("weight decay off", "bench/train/recipe.py", "recipe.lr, recipe.weight_decay", "recipe.lr, 0.0"),
    Fault("SimCLR temperature 0.5 to 0.4", "methods/simclr.py", "temperature: float = 0.5", "temperature: float = 0.4"),
    Fault(
        "kNN temperature x10",
        "bench/evaluate/knn.py",
        "(cosine / temperature).exp()[",
        "(cosine / (10 * temperature)).exp()[",
    ),
    Fault(
        "probe for half of its epochs",
        "bench/evaluate/linear_probe.py",
        "range(probe.epochs)",
        "range(probe.epochs // 2, probe.epochs)",
    ),
    Fault(
        "the same images in every epoch",
        "bench/data/sampler.py",
        'generator(seed, "order", epoch)',
        'generator(seed, "order")',
    ),
    Fault("no colour jitter", "bench/data/augment.py", "jitter: float = 0.8", "jitter: float = 0.0"),
    Fault("no random greyscale", "bench/data/augment.py", "grey: float = 0.2", "grey: float = 0.0"),
    Fault("hue jitter off", "bench/data/augment.py", "hue: float = 0.1", "hue: float = 0.0"),
    Fault("no crop", "bench/data/augment.py", "= (0.08, 1.0)", "= (1.0, 1.0)"),
    Fault(
        "views not normalised",
        "bench/data/augment.py",
        "return normalise(views)",
        "return views.to(memory_format=torch.channels_last)",
    ),
    Fault(
        "images of evaluation not normalised",
        "bench/data/loader.py",
        "normalise(resize(images, view.size, view.shorter), view.mean, view.std)",
        "resize(images, view.size)",
    ),
    Fault("targets standardised no more", "bench/targets/reduce.py", STANDARD, "standard = reduced"),
    Fault(
        "targets of other images",
        "bench/targets/make.py",
        "values = values.to(device)",
        "values = values.to(device).flip(0)",
    ),
    Fault(
        "prior sees images that are not normalised",
        "bench/targets/make.py",
        "size, prior.mean, prior.std, precision)",
        "size, (0.0,) * 3, (1.0,) * 3, precision)",
    ),
    Fault(
        "prior in train mode",
        "bench/targets/make.py",
        "to(memory_format=torch.channels_last).eval()",
        "to(memory_format=torch.channels_last).train()",
    ),
    Fault("momentum 0.99 to 0", "methods/byol.py", "momentum: float = 0.99", "momentum: float = 0.0"),
    Fault("momentum 0.99 to 0.9", "methods/byol.py", "momentum: float = 0.99", "momentum: float = 0.9"),
    Fault("momentum network never updated", "methods/parts.py", "self.update(*self._online)", "pass"),
    Fault("gradient through the target", "methods/byol.py", BYOL_TARGETS, BYOL_TARGETS.replace("teacher", "student")),
    Fault("one view used twice", "methods/byol.py", "x0, x1 = batch.views", "x0, x1 = batch.views[0], batch.views[0]"),
    Fault("optimiser misses the backbone", "bench/train/loop.py", TRAINED, NAMED.format('"backbone" not')),
    Fault("optimiser misses the heads", "bench/train/loop.py", TRAINED, NAMED.format('"backbone"')),
    Fault("learning rate x3", "bench/train/recipe.py", "return float(", "return 3 * float("),
    Fault("learning rate /3", "bench/train/recipe.py", "return float(", "return 1 / 3 * float("),
    Fault("features taken in train mode", "bench/evaluate/features.py", "backbone.eval()", "backbone.train()"),
    Fault(
        "probe trained on the test images",
        "bench/evaluate/features.py",
        "Features(parts[0], train.labels,",
        "Features(parts[1], test.labels,",
    ),
    Fault(
        "training labels shifted by one class",
        "bench/data/dataset.py",
        "self.labels[index])",
        "(self.labels[index] + 1) % 10)",
    ),
    Fault("ReLA's loss with the wrong sign", "methods/rela.py", RELA_LOSS, RELA_LOSS.replace("1 -", "1 +")),
    Fault("ReLA's loss squared error", "methods/rela.py", RELA_LOSS, RELA_MSE),
    Fault("ReLA never switches", "methods/rela.py", "if over:", "if False:"),
    Fault("ReLA switches at once", "methods/rela.py", "= 0 if phase_steps == 0 else None", "= 0"),
    Fault("budget halved", "bench/data/sampler.py", "count * budget + 1e-9", "count * budget / 2 + 1e-9"),
    Fault(
        "batch halved",
        "bench/train/cell.py",
        "cell.budget, cell.protocol.batch_size, cell.seed)",
        "cell.budget, cell.protocol.batch_size // 2, cell.seed)",
    ),
    Fault(
        "last, short batch kept",
        "bench/data/sampler.py",
        "return images_per_epoch(count, budget) // batch_size",
        "return -(-images_per_epoch(count, budget) // batch_size)",
    ),
    Fault(
        "FLOP of the targets not counted",
        "bench/targets/make.py",
        "yield part, flops * len(batch)",
        "yield part, 0",
    ),
    Fault("seeds ignored", "bench/core/seeds.py", "map(str, (seed, *purpose))", "map(str, (0, *purpose))"),
)


@dataclass(frozen=True)
class Outcome:
    """What the gate said of a fault: its exit code, how many comparisons are red, and the one that moved the most."""

    fault: Fault
    code: int
    red: int
    worst: str


def try_fault(fault: Fault, data: Path, baseline: Path, seeds: int) -> Outcome:
    """Run the gate on a copy of the code with the fault in it."""
    with tempfile.TemporaryDirectory() as folder:
        copy, junit = Path(folder) / "copy", Path(folder) / "junit.xml"
        for package in ("bench", "methods", "priors"):
            shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
        fault.plant(copy)
        command = [sys.executable, "-m", "bench", "check", "--grid", "cifar_ci", "--baseline", str(baseline)]
        command += ["--data-root", str(data), "--junit", str(junit), "--seeds", str(seeds)]
        environment = os.environ | {"PYTHONPATH": str(copy)}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        if not junit.is_file():
            return Outcome(fault, done.returncode, 0, done.stderr.strip()[-200:])
        cases = ET.parse(junit).getroot().findall("testcase")
        red = [(case, failure.get("message", "")) for case in cases if (failure := case.find("failure")) is not None]
        told = red or [(case, case.findtext("system-out") or "") for case in cases]
        case, worst = max(told, key=lambda pair: moved(pair[1]))
        where = case.get("classname", "").partition(".")[2]
        outcome = Outcome(fault, done.returncode, len(red), f"{where}, {case.get('name')}: {worst}")
        print(f"{fault.name}: exit {outcome.code}, {outcome.red} red; {outcome.worst}", flush=True)
        return outcome


def moved(message: str) -> float:
    """Return by how many standard deviations a comparison moved; a count says none."""
    words = message.rpartition("moved by ")
    return abs(float(words[2].removesuffix(" sd"))) if words[1] else 0.0


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the table in Markdown, with where and when it was made."""
    faults = [outcome for outcome in outcomes if not outcome.fault.harmless]
    origin = provenance(torch.device("cpu"))
    lines = [
        f"{sum(outcome.code == 1 for outcome in faults)} of {len(faults)} faults turn the gate red"
        f" ({datetime.now(UTC):%Y-%m-%d}, {origin['cpu']}, torch {torch.__version__}).",
        "",
        "| Change | Gate | Red | What moved the most |",
        "| --- | --- | ---: | --- |",
    ]
    for outcome in outcomes:
        state = {0: "green", 1: "red"}.get(outcome.code, f"exit {outcome.code}")
        wrong = outcome.code != (0 if outcome.fault.harmless else 1)
        name = f"(no fault) {outcome.fault.name}" if outcome.fault.harmless else outcome.fault.name
        state = f"**{state}**" if wrong else state
        lines.append(f"| {escape_markdown(name)} | {state} | {outcome.red} | {escape_markdown(outcome.worst)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--baseline", type=Path, default=ROOT / "bench" / "check" / "baselines" / "cifar_ci.json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", action="append", help="a fault's name; repeatable")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    chosen = [fault for fault in FAULTS if not options.only or fault.name in options.only]
    data, baseline = options.data_root.absolute(), options.baseline.absolute()
    outcomes = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for outcome in pool.map(lambda fault: try_fault(fault, data, baseline, options.seeds), chosen):
            outcomes.append(outcome)
            if options.out:  # after each, so that nothing is lost
                before, rest = options.out.read_text().split(BEGIN)
                options.out.write_text(f"{before}{BEGIN}\n{table(outcomes)}\n{END}{rest.partition(END)[2]}")
    print(table(outcomes))


if __name__ == "__main__":
    main()
