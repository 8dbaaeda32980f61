"""Values in config.json of which transformers makes no model are refused by rule, and by the engine alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from dodona.oracle import UnsupportedConfiguration, select_runner
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.own.config_values import ACTIVATIONS, ROPE_FIELDS, config_values_fault
from dodona.runners.llm import LLM
from tests.support.damaged_models import DAMAGES, copy

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"

REFUSED = {
    "no such activation": "'hidden_act': expected an activation of transformers, got 'nonsense'",
    "no such rope": "'rope_type': expected one of default, ",
    "half a yarn": "'rope_parameters.factor': expected a value, which rope_type 'yarn' needs",
    "layer types too few": "'layer_types': expected one for each of num_hidden_layers=3",
    "padding beyond": "'pad_token_id': expected a token of vocab_size=",
    "no positions": "'max_position_embeddings'",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_rules_and_engine_refuse_the_same(kind: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = copy(CHECKPOINTS / "qwen3", tmp_path / "model")
    verdict = select_runner(EngineConfig.from_flat(str(folder), device="cpu"))
    DAMAGES[kind](folder)
    found = config_values_fault(ModelInfo.load(folder))
    assert found is not None
    assert REFUSED[kind] in found
    with pytest.raises(UnsupportedConfiguration, match=r"\[config-values\]"):
        select_runner(EngineConfig.from_flat(str(folder), device="cpu"))
    with pytest.raises(ConfigError) as raised:
        LLM.from_verdict(verdict)
    assert str(raised.value) == found
    # It is true: transformers makes no model of it.
    with pytest.raises(Exception, match=r"."):
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


@pytest.mark.parametrize("kind", ["another activation", "linear rope", "dynamic rope", "one label"])
def test_what_makes_another_model_is_permitted(kind: str, tmp_path: Path) -> None:
    folder = copy(CHECKPOINTS / "qwen3", tmp_path / "model")
    DAMAGES[kind](folder)
    assert config_values_fault(ModelInfo.load(folder)) is None


def test_names_are_those_of_transformers() -> None:
    from transformers.activations import ACT2FN
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    assert set(ACT2FN) <= set(ACTIVATIONS)
    assert set(ROPE_INIT_FUNCTIONS) <= set(ROPE_FIELDS)
