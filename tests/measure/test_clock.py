"""The clock adds up, whatever is nested in what."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.measure.clock import Clock

ROOT = Path(__file__).parents[2]


def busy(count: int) -> int:
    return sum(range(count))


def test_phases_add_up_to_the_wall_time() -> None:
    clock = Clock(torch.device("cpu"))
    busy(200_000)
    with clock.phase("train"):
        busy(400_000)
        with clock.phase("eval"):
            busy(800_000)
        busy(400_000)
    seconds, wall = clock.read(), clock.wall
    assert all(seconds[name] > 0 for name in ("train", "eval", "other"))
    assert seconds["targets"] == 0
    assert abs(sum(seconds.values()) - wall) < 0.02 * wall
    assert seconds["eval"] < wall - seconds["train"], "a phase inside another is not charged twice"


def test_an_error_closes_its_phase() -> None:
    clock = Clock(torch.device("cpu"))
    with pytest.raises(KeyError), clock.phase("train"):
        {}["nothing"]
    spent = clock.read()["train"]
    busy(200_000)
    assert clock.read()["train"] == spent


def test_it_goes_on_from_an_interrupted_run() -> None:
    clock = Clock(torch.device("cpu"))
    clock.add({"train": 100.0, "eval": 10.0}, wall=112.0, taken={"train": 5.0, "eval": 1.0})
    assert clock.read()["train"] == 100.0
    assert (clock.spent("train").taken, clock.spent("eval").taken) == (5.0, 1.0)
    assert 112.0 < clock.wall < 113.0


def test_the_energy_goes_to_the_phase_in_which_it_was_spent() -> None:
    counter = [1000.0]

    def use(joules: float) -> None:
        counter[0] += joules

    clock = Clock(torch.device("cpu"), energy=lambda: counter[0])
    use(1)
    with clock.phase("targets"):
        use(20)
        before = clock.spent("targets")
        with clock.phase("eval"):
            use(300)
        use(4000)
    assert clock.joules() == {"targets": 4020, "train": 0, "eval": 300, "other": 1}
    assert (clock.spent("targets") - before).joules == 4000
    clock.add({"train": 1.0}, 1.0, {"train": 7.0})
    assert clock.joules() == {"targets": 4020, "train": 7, "eval": 300, "other": 1}
    clock.add({"train": 1.0}, 1.0)
    assert clock.joules() is None, "a part that was not measured is not nothing"
    assert clock.spent("eval").joules == 300


def test_energy_is_unknown_where_nothing_measures_it() -> None:
    clock = Clock(torch.device("cpu"))
    assert clock.joules() is None
    assert (clock.spent("train") + clock.spent("eval")).joules is None


def test_peak_memory_sees_a_large_tensor() -> None:
    """In a process of its own: memory that this one has freed before would be used again."""
    code = (
        "import torch\n"
        "from bench.measure.memory import peak_memory, reset_peak_memory\n"
        "device = torch.device('cpu')\n"
        "torch.ones(50_000_000)\n"
        "reset_peak_memory(device)\n"
        "before = peak_memory(device)\n"
        "torch.ones(25_000_000)\n"
        "print(peak_memory(device) - before)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert 90e6 < int(ran.stdout) < 150e6
