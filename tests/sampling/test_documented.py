"""docs/sampling.md speaks of every sampling parameter, and its example works."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from dodona.runners.sampling.params import SamplingParams
from dodona.runners.sampling.structured_outputs import StructuredOutputsParams

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "sampling.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("cls", [SamplingParams, StructuredOutputsParams])
def test_every_parameter_is_documented(cls: type) -> None:
    spans = set(re.findall(r"`([^`\n]+)`", TEXT))
    assert {field.name for field in dataclasses.fields(cls)} <= spans


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("llguidance")
    (example,) = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
    arguments = f'"{ROOT / "checkpoints" / "qwen3"}", device="cpu"'
    exec(example.replace('"path/to/model"', arguments), {})
    assert capsys.readouterr().out.strip().startswith("{")
