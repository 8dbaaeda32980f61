"""The program that measures the checkpoints' accuracy."""

from __future__ import annotations

import json

import pytest

from checkpoints import accuracy


def test_rows_are_shares_or_the_rules_that_refuse(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")  # set by the program; restored after the test
    monkeypatch.setattr(accuracy, "share_right", lambda *args, **settings: {"all": 1.0})
    out = tmp_path / "rows.json"
    assert accuracy.main(["lfm2", "--runner", "v1", "v2", "--count", "2", "--json", str(out)]) == 0
    v1, v2 = json.loads(out.read_text())
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [v1, v2]
    assert (v1["questions"], v1["right"]) == (6, {"all": 1.0})
    assert "right" not in v2
    assert "model-architecture" in v2["refused"] or "cuda" in v2["refused"]


def test_a_copy_two_points_behind_is_an_error(monkeypatch, capsys):
    shares = {"qwen3": 0.99, "qwen3-awq": 0.965, "qwen3-fp8": 0.98}
    monkeypatch.setattr(
        accuracy,
        "measure",
        lambda name, runner, device, dtype, count: {
            "checkpoint": name,
            "runner": runner,
            "dtype": dtype,
            "right": {"all": shares[name]},
        },
    )
    assert accuracy.main([*shares]) == 1
    assert capsys.readouterr().err == "error: qwen3-awq on v1 in float32: 0.965, unquantized 0.990\n"


def test_unknown_names_are_refused(capsys):
    with pytest.raises(SystemExit):
        accuracy.main(["qwen9"])
    assert "qwen9" in capsys.readouterr().err
