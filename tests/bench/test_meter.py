"""The clock adds up, whatever is nested in what."""

import pytest
import torch

from bench.meter import Clock, peak_memory, reset_peak_memory


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
    clock.add({"train": 100.0, "eval": 10.0}, wall=112.0)
    assert clock.read()["train"] == 100.0
    assert 112.0 < clock.wall < 113.0


def test_peak_memory_sees_a_large_tensor() -> None:
    device = torch.device("cpu")
    reset_peak_memory(device)
    before = peak_memory(device)
    torch.ones(25_000_000)
    after = peak_memory(device)
    assert before is None or (after is not None and 90e6 < after - before < 250e6)
