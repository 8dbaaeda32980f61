"""What lies beside a model (tokenizer, defaults of sampling, drafts, pooling) is looked at by rule, as an
engine reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dodona.oracle import UnsupportedConfiguration, select_runner
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models import hub, sentence_transformers
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.own import speculation
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
    "tokenizer of nothing": "has no 'model' and 'added_tokens'",
    "only tokenizer_config": "no file has a vocabulary",
    "wrong end": "eos_token_id must be a token id",
}
HERE = Environment(has_triton=False, platform="cpu", is_here=True)
MENDS: dict[str, Any] = {"skip_tokenizer_init": True, "generation_config": "vllm"}


def fault(folder: Path, **flat: Any) -> str | None:
    return companions_fault(EngineConfig.from_flat(str(folder), **flat), ModelInfo.load(folder), HERE)


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
    whole = '{"model": {}, "added_tokens": [], "padding": "' + "x" * (1 << 20) + '"}'
    (folder / "tokenizer.json").write_text(whole)
    assert fault(folder) is None
    (folder / "tokenizer.json").write_text(whole[:-10])
    assert "is cut off" in (fault(folder) or "")


def test_a_model_that_no_directory_holds_is_not_looked_at() -> None:
    model = ModelInfo.from_mapping({"architectures": ["LlamaForCausalLM"]})
    assert companions_fault(EngineConfig.from_flat("model"), model, HERE) is None


def test_a_draft_on_the_hub_that_can_not_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def locate(name: str) -> Path:
        asked.append(name)
        raise ConfigError(f"model {name}: no such directory, not in the cache, and the download fails")

    hub._downloaded.cache_clear()
    monkeypatch.setattr(hub, "locate_or_download", locate)
    for named in ({"method": "eagle3"}, {}):
        draft = {**named, "model": "some/head", "num_speculative_tokens": 2}
        config = EngineConfig.from_flat(str(CHECKPOINTS / "qwen3"), speculative_config=draft)
        with pytest.raises(UnsupportedConfiguration, match=r"some/head: .* the download fails"):
            select_runner(config)
        # The hub isn't asked about what another machine may have.
        elsewhere = Environment(has_triton=False, platform="cpu")
        assert speculation.speculation_fault(config, None, elsewhere) is None
    assert asked == ["some/head"]
    hub._downloaded.cache_clear()


def test_a_draft_in_the_cache_of_the_hub_tells_its_method(monkeypatch: pytest.MonkeyPatch) -> None:
    hub._downloaded.cache_clear()
    monkeypatch.setattr(hub, "locate_or_download", lambda name: CHECKPOINTS / "qwen3-peagle")
    draft = {"model": "some/head", "num_speculative_tokens": 2}
    verdict = select_runner(EngineConfig.from_flat(str(CHECKPOINTS / "qwen3"), speculative_config=draft))
    assert verdict.config.speculative_config is not None
    assert verdict.config.speculative_config.method == "eagle3"
    assert verdict.config.speculative_config.parallel_drafting
    hub._downloaded.cache_clear()


def test_a_draft_model_without_its_weights_is_refused(tmp_path: Path) -> None:
    draft = copy(CHECKPOINTS / "qwen3", tmp_path / "draft")
    speculative = {"method": "draft_model", "model": str(draft), "num_speculative_tokens": 2}
    config = EngineConfig.from_flat(str(CHECKPOINTS / "qwen3"), speculative_config=speculative)
    assert select_runner(config).runner == "v1"
    DAMAGES["lost norm"](draft)
    with pytest.raises(UnsupportedConfiguration, match=r"draft: the safetensors lack 1 weights"):
        select_runner(config)


def test_files_of_sentence_transformers_are_read_once_while_they_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy(CHECKPOINTS / "qwen3", tmp_path / "model")
    DAMAGES["dense"](folder)
    width = ModelInfo.load(folder).hidden_size
    config_json = folder / "2_Dense" / "config.json"
    config_json.write_text(json.dumps({"in_features": width, "out_features": 8, "bias": False}))
    weights = folder / "2_Dense" / "model.safetensors"
    save_file({"linear.weight": torch.ones(8, width or 0)}, weights)
    read: list[str] = []
    read_json = sentence_transformers.read_json

    def count(file: Path, **more: Any) -> Any:
        read.append(file.name)
        return read_json(file, **more)

    monkeypatch.setattr(sentence_transformers, "read_json", count)
    assert select_runner(EngineConfig.from_flat(str(folder))).runner == "v1"
    assert sorted(read) == ["config.json", "config.json", "modules.json"]
    weights.unlink()
    with pytest.raises(UnsupportedConfiguration, match=r"2_Dense.*\[pooler-settings\]"):
        select_runner(EngineConfig.from_flat(str(folder)))
    assert len(read) == 3
    config_json.write_text("{}")
    with pytest.raises((ConfigError, UnsupportedConfiguration), match="in_features"):
        select_runner(EngineConfig.from_flat(str(folder)))
