"""What the tests do not see: mutmut changes the code in one place, many times over, and runs the tests that go there.

    python tests/mutation.py [--sample 300] [--seed 0] [--jobs 2] [--only 'methods.*'] [--out docs/mutation.md]

What is changed, and by which tests it is tried, stands in pyproject.toml. A mutant is one change; it is killed when a
test fails, or takes far longer than before. What was tried is kept in `mutants/`: the same command goes on where it was
stopped. Change the code, and the mutants of the functions that changed are tried again. `mutmut show NAME` prints a
mutant. `--out` is a file whose part between two marks becomes the result.
"""

import argparse
import fnmatch
import os
import random
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- mutation: begin -->", "<!-- mutation: end -->"
KILLED = {"killed", "timeout"}
FIRST = "bench.data.sampler.x_steps_per_epoch__*"  # a handful: to make all mutants, and to see which tests go where


def mutmut(*words: str, quiet: bool = False) -> str:
    """Run mutmut; return what it prints when `quiet`. Raises CalledProcessError."""
    environment = {"BENCH_SHARED": str(ROOT.parent / "shared"), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, "-m", "mutmut", *words],
        cwd=ROOT,
        env=environment | os.environ,
        check=True,
        text=True,
        stdout=subprocess.PIPE if quiet else None,
    )
    return done.stdout or ""


def states() -> dict[str, str]:
    """Return what became of each mutant, by its name."""
    pairs = [line.split(": ") for line in mutmut("results", "--all", "True", quiet=True).splitlines()]
    return {name.strip(): state for name, state in pairs}


def file_of(name: str) -> str:
    """Return the file of a mutant, such as `methods.rela.xǁReLAǁloss__mutmut_3`."""
    return name.rpartition(".")[0].replace(".", "/") + ".py"


def table(tried: dict[str, str], of: int, seed: int) -> str:
    """Return how many mutants were killed, by file, and the names of those that were not, in Markdown."""
    alive = {name: state for name, state in tried.items() if state not in KILLED}
    total, left = Counter(map(file_of, tried)), Counter(map(file_of, alive))
    share = 100 * (1 - len(alive) / len(tried))
    lines = [
        f"{len(tried) - len(alive)} of {len(tried)} mutants are killed ({share:.1f} %; drawn from {of:,} with seed"
        f" {seed}, {datetime.now(UTC):%Y-%m-%d}).",
        *("", "| File | Mutants | Killed |", "| --- | ---: | ---: |"),
        *(f"| {file} | {total[file]} | {total[file] - left[file]} |" for file in sorted(total)),
        *("", "Not killed:" if alive else "None survives.", ""),
        *(f"- `{name}` ({state})" for name, state in sorted(alive.items())),
    ]
    return "\n".join(lines).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="*", help="a pattern of mutants' names")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    mutmut("run", "--max-children", str(options.jobs), FIRST)
    known = sorted(fnmatch.filter(states(), options.only))
    chosen = random.Random(options.seed).sample(known, min(options.sample, len(known)))
    before = states()
    if missing := [name for name in chosen if before[name] == "not checked"]:
        mutmut("run", "--max-children", str(options.jobs), *missing)
    after = states()
    if late := [name for name in chosen if after[name] == "timeout"]:  # by the mutant, or because the machine was busy
        mutmut("run", "--max-children", "1", *late)
        after = states()
    result = table({name: after[name] for name in chosen}, len(known), options.seed)
    print(result)
    if options.out:
        text, rest = options.out.read_text().split(BEGIN)
        options.out.write_text(f"{text}{BEGIN}\n{result}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
