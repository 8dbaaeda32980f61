"""The generated table of model families against the transformers that is installed."""

from __future__ import annotations

import json

import transformers
from transformers.models.auto import configuration_auto, modeling_auto

from dodona.oracle.models import known_models
from dodona.oracle.models.model_info import ModelInfo
from tests.support import known_models as generator


def generated_from_this_version() -> bool:
    return transformers.__version__ == known_models.transformers_version()


def test_every_generator_of_transformers_is_a_known_architecture() -> None:
    names = {name for value in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in [value]}
    unknown = {name for name in names if name not in known_models.known_architectures()}
    assert not unknown or not generated_from_this_version()
    assert {
        "LlamaForCausalLM",
        "Qwen3ForCausalLM",
        "MistralForCausalLM",
    } <= known_models.known_architectures()


def test_the_table_is_what_the_generator_writes() -> None:
    if generated_from_this_version():
        assert generator.TARGET.read_text(encoding="utf-8") == generator.text()
        return
    # Another version may add families and fields; what both know of the families that are run must agree.
    for model_type in (
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3_text",
        "phi3",
        "mixtral",
        "mamba",
    ):
        known, entry = known_models.known_model(model_type), generator.entry(model_type)
        assert known is not None
        assert (known.aliases, known.defaults) == (entry.get("aliases", {}), entry.get("defaults", {})), (
            model_type
        )


def test_the_version_that_a_type_came_with_is_told() -> None:
    """Whichever version is installed has just the types that came with it or before."""
    version = known_models.release(transformers.__version__)
    for model_type in known_models.known_model_types():
        since = known_models.known_model(model_type).since
        is_there = since is None or known_models.release(since) <= version
        assert (model_type in configuration_auto.CONFIG_MAPPING_NAMES) == is_there, model_type


def test_an_unknown_model_type_is_none() -> None:
    assert known_models.known_model("no_such_family") is None


def test_every_causal_family_of_transformers_is_read() -> None:
    """Each family's own default configuration, written out whole, is understood and agrees in its sizes."""
    read = 0
    for model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = generator.config_class(model_type)()
        except Exception:
            continue  # some need arguments
        text = config.get_text_config(decoder=True)
        raw = json.loads(config.to_json_string(use_diff=False))
        info = ModelInfo.from_mapping({**raw, "model_type": model_type, "architectures": ["AnyForCausalLM"]})
        for field in ("hidden_size", "vocab_size"):
            expected = getattr(text, field, None)  # some nest their parts otherwise
            assert expected in (None, getattr(info, field)), (model_type, field)
        heads = text.to_dict().get("num_attention_heads")
        assert info.is_attention_free or heads in (None, info.num_attention_heads), model_type
        read += 1
    assert read > 150
