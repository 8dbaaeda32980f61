"""The tokenizer and the defaults of sampling are looked at by rule, as an engine reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dodona.oracle import UnsupportedConfiguration, select_runner
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.own.companions import companions_fault
from dodona.runners.llm import LLM
from tests.support.damaged_models import DAMAGES, copy

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"

REFUSED = {
    "broken tokenizer": "tokenizer.json:1:2: not valid JSON",
    "broken tokenizer_config": "tokenizer_config.json:1:2: not valid JSON",
    "tokenizer_config is a list": "tokenizer_config.json: expected an object, got list",
    "broken generation_config": "generation_config.json:1:2: not valid JSON",
    "generation_config is a list": "generation_config.json: expected an object, got list",
    "hot generation_config": "temperature must be at least 0, got -3",
    "sampling nonsense": "top_p must be a finite number, got 'x'",
    "wrong end": "eos_token_id must be a token id",
}
MENDS: dict[str, Any] = {"skip_tokenizer_init": True, "generation_config": "vllm"}


def fault(folder: Path, **flat: Any) -> str | None:
    return companions_fault(EngineConfig.from_flat(str(folder), **flat), ModelInfo.load(folder))


@pytest.mark.parametrize("kind", REFUSED)
def test_rules_and_engine_refuse_the_same(kind: str, tmp_path: Path) -> None:
    folder = copy(CHECKPOINTS / "qwen3", tmp_path / "model")
    assert fault(folder) is None
    verdict = select_runner(EngineConfig.from_flat(str(folder), device="cpu"))
    DAMAGES[kind](folder)
    found = fault(folder)
    assert found is not None
    assert REFUSED[kind] in found
    with pytest.raises(UnsupportedConfiguration, match=r"\[companion-directories\]"):
        select_runner(EngineConfig.from_flat(str(folder), device="cpu"))
    with pytest.raises(ConfigError) as raised:
        LLM.from_verdict(verdict)
    assert str(raised.value) == found
    assert fault(folder, **MENDS) is None


def test_a_large_tokenizer_that_was_cut_off(tmp_path: Path) -> None:
    folder = copy(CHECKPOINTS / "qwen3", tmp_path / "model")
    whole = '{"model": {}, "padding": "' + "x" * (1 << 20) + '"}'
    (folder / "tokenizer.json").write_text(whole)
    assert fault(folder) is None
    (folder / "tokenizer.json").write_text(whole[:-10])
    assert "is cut off" in (fault(folder) or "")


def test_a_model_that_no_directory_holds_is_not_looked_at() -> None:
    model = ModelInfo.from_mapping({"architectures": ["LlamaForCausalLM"]})
    assert companions_fault(EngineConfig.from_flat("model"), model) is None
