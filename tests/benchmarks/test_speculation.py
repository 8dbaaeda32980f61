"""The benchmark of drafts runs where there is no GPU, and accepts what it is told to."""

from __future__ import annotations

import pytest

from benchmarks.speculation import main


def test_acceptance_is_forced(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--model tiny --batch-sizes 1 --prompt-tokens 5 --output-tokens 5 --repetitions 1"
    report = main([*options.split(), "--num-speculative-tokens", "2", "--forced-acceptance", "1"])
    plain, forced = report["records"]
    assert forced["mean_acceptance_length"] == 2.0
    assert forced["note"] == "acceptance was forced, and outputs mean nothing"
    assert plain["batches"][1]["steps"] == 5
    assert forced["batches"][1]["steps"] == 3  # the prompt's, then two of two tokens
    measures = {"output_tokens_per_second", "seconds_per_step", "median_step_seconds"}
    assert set(forced["against_plain"][1]) == measures
    assert 0 < plain["batches"][1]["median_step_seconds"] < plain["batches"][1]["seconds"]
    assert "forced" in capsys.readouterr().out
