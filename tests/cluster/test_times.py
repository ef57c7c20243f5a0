"""The simulation behind the table of docs/cluster.md."""

import importlib.util
import random
import re
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("cluster_times", ROOT / "docs" / "cluster_times.py")
assert spec
assert spec.loader
times = importlib.util.module_from_spec(spec)
spec.loader.exec_module(times)

# a, b and c are ready; d and e need b, f needs d.
SECONDS, NEEDS = [5.0, 3.0, 4.0, 2.0, 6.0, 1.0], [None, None, None, 1, 1, 3]


@pytest.mark.parametrize(("machines", "end"), [(1, 21.0), (2, 11.0), (3, 10.0), (4, 9.0)])
def test_a_schedule_by_hand(machines: int, end: float) -> None:
    """What others need comes first: on two, b to 3, a to 5, d to 5, c to 9, e to 11, f to 10.

    On three e begins at 4, when c has ended, and on four at 3, when b has.
    """
    assert times.makespan(SECONDS, NEEDS, machines) == end


def test_no_schedule_beats_its_bounds() -> None:
    draw = random.Random(0)
    for _ in range(100):
        needs = [draw.choice([None, *range(index)]) if index else None for index in range(12)]
        seconds = [draw.uniform(1, 9) for _ in needs]
        chain = times.longest(seconds, needs)
        length = sum(seconds[index] for index in chain)
        assert all(needs[later] == earlier for earlier, later in pairwise(chain))
        assert times.makespan(seconds, needs, 1) == pytest.approx(sum(seconds))
        assert times.makespan(seconds, needs, 12) == pytest.approx(length)
        for machines in (2, 3, 5):
            span = times.makespan(seconds, needs, machines)
            # Graham 1966: no list schedule takes longer than this, and none is faster than the two bounds.
            assert max(length, sum(seconds) / machines) - 1e-9 <= span
            assert span <= sum(seconds) / machines + length * (1 - 1 / machines) + 1e-9


@pytest.mark.slow
def test_the_table_of_the_docs_is_what_the_script_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    said = re.search(r"cluster_times\.py --tflops (\d+)", page)
    assert said
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["cluster_times.py", "--tflops", said[1], "--data-root", str(tmp_path)])
        times.main()
    for line in filter(None, capsys.readouterr().out.splitlines()):
        assert line in page
