"""The generated table of model families against the transformers that is installed."""

from __future__ import annotations

import transformers
from transformers.models.auto import modeling_auto

from dodona.oracle import known_models
from tests.support import known_models as generator


def generated_from_this_version() -> bool:
    return f"transformers {transformers.__version__}; " in (known_models.__doc__ or "")


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
        assert generator.TARGET.read_text() == generator.module()
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


def test_an_unknown_model_type_is_none() -> None:
    assert known_models.known_model("no_such_family") is None
