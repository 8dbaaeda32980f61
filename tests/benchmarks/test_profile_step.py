"""The step profile: its loop over both runners, and the time of kernels that overlap."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import profile_step, results
from dodona.runners.engine.scheduler import Scheduler
from tests.support.tiny_models import TinyModels
from tests.v2.drive import make_runner


def test_v1_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    out = tmp_path / "step.json"
    arguments = ["--engine", "dodona-v1", "--model", "tiny", "--steps", "5", "--json", str(out)]
    arguments += ["--batch", "1", "--batch", "3", "--context", "20", "--sampling", "all"]
    assert profile_step.main([*arguments, "--sampling", "mixed"]) == 0
    records = results.read(out)["records"]
    assert [(r["sampling"], r["batch"]) for r in records] == [
        ("all", 1), ("all", 3), ("mixed", 1), ("mixed", 3)
    ]  # fmt: skip
    for record in records:
        assert set(record["host_us"]) == set(profile_step.PARTS)
        assert record["tokens_per_s"] == pytest.approx(record["batch"] / record["step_us"] * 1e6)
        assert 20 < record["mean_context"] < 40


def test_loop_over_v2(tmp_path: Path) -> None:
    """Two steps under way: the first call of `step` has no result yet."""
    runner = make_runner(TinyModels(tmp_path).path("qwen3"), num_blocks=16)
    scheduler = Scheduler(num_blocks=16, block_size=16, max_num_seqs=4, max_num_batched_tokens=64)
    loop = profile_step.Loop(runner, scheduler, 131)
    loop.add(2, 5, 40, profile_step.SAMPLING["temperature"])
    before = loop.mean_context
    times = loop.step()
    assert tuple(times) == profile_step.PARTS
    assert loop.mean_context == before + 1
    loop.clear()
    assert scheduler.num_unfinished == 0
    assert scheduler.blocks.num_free == 16
    runner.shutdown()


def test_a_loop_whose_requests_end_says_so(tmp_path: Path) -> None:
    runner = make_runner(TinyModels(tmp_path).path("qwen3"), num_blocks=16)
    scheduler = Scheduler(num_blocks=16, block_size=16, max_num_seqs=4, max_num_batched_tokens=64)
    loop = profile_step.Loop(runner, scheduler, 131)
    with pytest.raises(RuntimeError, match="nothing can run"):
        loop.add(1, 5, 7, profile_step.SAMPLING["greedy"])
    runner.shutdown()


def test_overlapping_kernels_count_once_as_busy() -> None:
    spans = [("copy", 5.0, 9.0), ("matmul", 0.0, 6.0), ("norm", 12.0, 14.0), ("norm", 15.0, 16.0)]
    table = profile_step.kernel_table(spans, 2)
    assert table["busy_us"] == pytest.approx((9.0 + 2.0 + 1.0) / 2)
    assert table["idle_us"] == pytest.approx((16.0 - 12.0) / 2)
    assert table["kernels"] == [
        {"name": "matmul", "us": 3.0, "launches": 0.5},
        {"name": "copy", "us": 2.0, "launches": 0.5},
        {"name": "norm", "us": 1.5, "launches": 1.0},
    ]
    assert profile_step.kernel_table([], 2) == {"busy_us": 0.0, "idle_us": 0.0, "kernels": []}
