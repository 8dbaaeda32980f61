"""Patterns out of files: those that could take long are refused, those that tools write are not."""

from __future__ import annotations

import re

import pytest

from dodona.oracle.models.patterns import MAX_LENGTH, matching_steps, pattern_fault
from dodona.oracle.models.quantization import read_quantization


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
        ("a?" * 30 + "a" * 30, "alternatives"),
        (r"\(?" * 30 + "x", "alternatives"),
        (".?" * 30 + "x", "alternatives"),
        ("(?:ab|a.)" * 24 + "x", "alternatives"),
        ("(?:ab|a.|(?:c|d.)(?:e|f.))" * 12 + "x", "alternatives"),
        (".*(a|b|c).*(a|b|c).*(a|b|c).*", "alternatives"),
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


@pytest.mark.parametrize(
    ("pattern", "steps"),
    [
        ("lm_head", 2), (r"\(|\?[?(*|]", 4), (".*lm_head", 65), ("(?i)x", 2), (r".*(?P<x>a|b|c)$", 195),
        ("(?=.*a|b)c", 130), ("a*?b+?c??", 4098), ("[]?*|(]", 2), ("[^]?*|(]x?", 4),
    ],
)  # fmt: skip
def test_steps_are_counted(pattern: str, steps: int) -> None:
    assert matching_steps([f"re:{pattern}"]) == 30 + steps
    assert matching_steps([pattern, "x"]) == 60


def test_names_and_patterns_are_bounded_by_the_layers_that_they_are_matched_with() -> None:
    settings = {"quant_method": "fp8", "modules_to_not_convert": [f"layers.{i}.mlp" for i in range(2_000)]}
    assert read_quantization("fp8", settings, 100).unreadable is None
    assert "with 1000 layers" in (read_quantization("fp8", settings, 1_000).unreadable or "")
    assert read_quantization("fp8", {}, 10_000).unreadable is None
    assert "with 100000 layers" in (read_quantization("fp8", {}, 100_000).unreadable or "")
