"""Locks: one holder at a time; the dead and the silent are replaced, the slow are not."""

import json
import os
import time
from pathlib import Path
from threading import Thread

import pytest

from bench.core import lock
from bench.core.errors import Lost
from bench.core.lock import STALE, Holder, Lock, holder, take, wait_for
from tests.run.processes import python

COUNTS = """
import sys
from pathlib import Path
from bench.core import lock
lock.POLL = 0.001
place, counter = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(int(sys.argv[3])):
    with lock.wait_for(place, lambda: None):
        count = int(counter.read_text())
        counter.with_name("copy").write_text(str(count + 1))
        counter.with_name("copy").replace(counter)
"""
HOLDS = """
import sys
from pathlib import Path
from bench.core.lock import take
held = take(Path(sys.argv[1]))
print(held.number, flush=True)
sys.stdin.read()
"""


def taken(place: Path) -> Lock:
    found = take(place)
    assert isinstance(found, Lock)
    return found


def as_of_another_machine(found: Lock, seconds: float) -> None:
    """Make a lock look as if a process elsewhere had touched it that long ago, and touch it no more."""
    found._ended.set()
    found._thread.join()
    found.path.write_text(json.dumps(json.loads(found.path.read_text()) | {"machine": "another"}))
    now = found.path.stat().st_mtime
    os.utime(found.path, (now - seconds, now - seconds))


def test_one_has_it_until_it_is_released(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "lock"
    assert holder(place) is None
    with taken(place):
        for found in (take(place), holder(place)):
            assert isinstance(found, Holder)
            assert found.name.endswith(f":{os.getpid()}")
            assert 0 <= found.seconds < STALE
    assert holder(place) is None
    with taken(place) as again:
        again.check()


def test_who_waits_gets_it_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "POLL", 0.001)
    first, asked = taken(tmp_path / "lock"), list[int]()

    def meanwhile() -> None:
        asked.append(1)
        if len(asked) == 3:
            first.release()

    with wait_for(tmp_path / "lock", meanwhile) as second:
        assert len(asked) == 3
        second.check()
        with pytest.raises(Lost):
            first.check()


def test_one_who_gives_up_waiting_leaves_it_alone(tmp_path: Path) -> None:
    class GivenUp(Exception):
        pass

    def meanwhile() -> None:
        raise GivenUp

    with taken(tmp_path / "lock") as first:
        with pytest.raises(GivenUp):
            wait_for(tmp_path / "lock", meanwhile)
        first.check()


@pytest.mark.parametrize(("seconds", "free"), [(STALE + 5, True), (STALE - 5, False), (-3600, False)])
def test_a_silent_one_is_replaced_and_a_slow_one_is_not(seconds: float, free: bool, tmp_path: Path) -> None:
    first = taken(tmp_path / "lock")
    as_of_another_machine(first, seconds)
    second = take(tmp_path / "lock")
    assert isinstance(second, Lock) == free
    if isinstance(second, Lock):
        with pytest.raises(Lost):
            first.check()
        first.release()  # late: it takes nothing from the second
        assert isinstance(take(tmp_path / "lock"), Holder)
        second.check()
        second.release()
    else:
        first.check()


def test_the_clock_of_this_machine_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = taken(tmp_path / "lock")
    as_of_another_machine(first, 1)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 86_400)
    assert isinstance(take(tmp_path / "lock"), Holder)


def test_a_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.001)
    with taken(tmp_path / "lock") as first:
        os.utime(first.path, (1, 1))
        deadline = time.monotonic() + 30
        while first.path.stat().st_mtime < 1000:
            assert time.monotonic() < deadline
            os.sched_yield()


def test_a_killed_ones_claim_is_free_at_once(tmp_path: Path) -> None:
    place = tmp_path / "lock"
    other = python(HOLDS, place)
    assert other.stdout
    assert other.stdin
    assert other.stdout.readline() == "1\n"
    found = take(place)
    assert isinstance(found, Holder)
    assert found.name.endswith(f":{other.pid}")
    other.kill()
    other.wait()
    other.stdin.close()
    other.stdout.close()
    with taken(place) as second:
        assert second.number == 2
        assert sorted(path.name for path in tmp_path.iterdir()) == ["lock.2"]


def test_a_process_with_the_number_of_a_dead_one_is_another(tmp_path: Path) -> None:
    first = taken(tmp_path / "lock")
    told = json.loads(first.path.read_text())
    first.path.write_text(json.dumps(told | {"process": f"{os.getpid()} 1"}))
    assert holder(tmp_path / "lock") is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 1}'])
def test_a_claim_that_is_being_written_counts(content: str, tmp_path: Path) -> None:
    with taken(tmp_path / "lock") as first:
        first.path.write_text(content)
        assert isinstance(take(tmp_path / "lock"), Holder)


def test_a_claim_that_is_gone_is_lost(tmp_path: Path) -> None:
    first = taken(tmp_path / "lock")
    first.path.unlink()
    with pytest.raises(Lost):
        first.check()


def test_never_two_at_a_time(tmp_path: Path) -> None:
    """Four processes count to 100 together, and four threads of this one to 20 more; each needs the last one's sum."""
    place, counter = tmp_path / "lock", tmp_path / "counter"
    counter.write_text("0")
    others = [python(COUNTS, place, counter, "25") for _ in range(4)]

    def counts() -> None:
        for _ in range(5):
            with wait_for(place, lambda: None):
                counter.write_text(str(int(counter.read_text()) + 1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "POLL", 0.001)
        threads = [Thread(target=counts) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [other.wait(timeout=120) for other in others] == [0] * 4
    for other in others:
        assert other.stdin
        assert other.stdout
        other.stdin.close()
        other.stdout.close()
    assert counter.read_text() == "120"
