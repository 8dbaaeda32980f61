"""The profile of whole workloads: on a tiny model with V1, and how it reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import profile_workload, results


def test_a_workload_is_run_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")  # the program sets it: undone afterwards
    out = tmp_path / "profile.json"
    arguments = ["--engine", "dodona-v1", "--model", "tiny", "--workload", "bs1", "--divide", "32"]
    assert profile_workload.main([*arguments, "--repeat", "3", "--json", str(out)]) == 0
    (record,) = results.read(out)["records"]
    assert (record["engine"], record["model"]) == ("dodona-v1", "tiny")
    assert len(record["seconds"]) == 3


def test_engines_of_other_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="vllm: its kernels run in another process"):
        profile_workload.main(["--engine", "vllm", "--model", "tiny", "--workload", "bs1"])


def test_kernels_are_told_with_their_mean() -> None:
    gpu = {
        "busy_us": 5000.0,
        "idle_us": 1000.0,
        "kernels": [{"name": "_a_kernel", "us": 4000.0, "launches": 8.0}],
    }
    lines = profile_workload.text({"workload": "bs1", "seconds": [0.25], "gpu": gpu}).splitlines()
    assert lines[0] == "bs1: 0.250 s"
    assert "busy 5.0 ms, idle 1.0 ms" in lines[1]
    assert lines[2].split() == ["4.0", "ms", "8×", "500.0", "µs", "_a_kernel"]
