"""Models that take turns: the order, processes that fail, and the table."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks.models_in_turns import main, play, table, turns
from benchmarks.turns import WAITING

CHILD = f"""
import os, sys
name, steps, file = sys.argv[1], int(sys.argv[2]), sys.argv[3]
for _ in range(steps):
    print({WAITING!r}, flush=True)
    if not sys.stdin.readline():
        sys.exit(3)
    with open(file, "a") as out:
        out.write(name)
sys.exit(name == "c")
"""


def test_one_at_a_time_there_and_back(tmp_path: Path) -> None:
    file = tmp_path / "order"
    order = turns(["a", "b", "c", "d"], 3, [True, False])
    own = len(order) // 4
    steps = {"a": own, "b": own, "c": own, "d": 0}
    commands = {
        name: [sys.executable, "-c", CHILD, name, str(count), str(file)] for name, count in steps.items()
    }
    failed = play(commands, os.environ, order)
    assert failed == ["c"]
    # Each workload: a warm-up, three runs; the first's latencies. The one that ended at once had no turn.
    assert file.read_text() == "abc" + "abc" + "cba" + "abc" + "abc" + "abc" + "abc" + "cba" + "abc"


def test_ratios_are_to_the_first_model() -> None:
    def record(*seconds: float) -> dict[str, object]:
        middle = sorted(seconds)[len(seconds) // 2]
        return {
            "workload": {"name": "bs1"},
            "runs": [{"seconds": each} for each in seconds],
            "seconds": middle,
            "output_tokens_per_s": 512 / middle,
        }

    text = table({"plain": [record(2.0, 2.1, 1.9)], "fast": [record(1.0, 1.0, 1.0)]})
    assert text.splitlines()[2:] == [
        "| `plain` | bs1 | 256 (±5.0 %) | 1.00 |",
        "| `fast` | bs1 | 512 (±0.0 %) | 2.00 |",
    ]


def test_arrivals_take_no_turns(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="poisson"):
        main(
            [
                *("--models", "tiny", "--json-dir", str(tmp_path)),
                *("--", "--engine", "dodona-v1", "--workload", "poisson"),
            ]
        )
