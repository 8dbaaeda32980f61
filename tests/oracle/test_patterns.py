"""Patterns out of files: those that could take long are refused, those that tools write are not."""

from __future__ import annotations

import re

import pytest

from dodona.oracle.models.patterns import MAX_LENGTH, pattern_fault


@pytest.mark.parametrize(
    "pattern",
    [
        r".*lm_head", r"model[.]layers[.]\d+[.](self_attn|mlp)[.].*_proj", r"^(?!.*experts).*gate$",
        r".*layers\.[0-9]+\.mlp\.(gate|up)_proj$", r"visual.*", r"layers\.(0|1|2)\.self_attn\.q_proj",
    ],
)  # fmt: skip
def test_patterns_of_checkpoints_are_used(pattern: str) -> None:
    assert pattern_fault(pattern) is None


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("([a-z.]+)+!", "repeats a group"),
        ("(?:a|a)*b", "repeats a group"),
        ("(a){9}", "repeats a group"),
        (".*.*.*.*.*x", "repetitions"),
        ("a" * (MAX_LENGTH + 1), "longer"),
        ("(" * MAX_LENGTH, "malformed"),
        ("(?P<x>a)(?P<x>b)", "malformed"),
        ("a{99999999999}", "malformed"),
    ],
)
def test_other_patterns_are_refused(pattern: str, why: str) -> None:
    assert why in (pattern_fault(pattern) or "")


def test_the_slowest_pattern_ends() -> None:
    assert pattern_fault(".*.*.*.*!") is None
    assert re.match(".*.*.*.*!", "model.language_model.layers.0.mlp.experts.down_proj") is None
