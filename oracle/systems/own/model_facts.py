"""The facts that config.json says, alone or with the configuration and the machine."""

from __future__ import annotations

from operator import attrgetter

from dodona.oracle.language.facts import UNKNOWN, FactValue
from dodona.oracle.models.math_modifiers import MATH_MODIFIERS
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.quantization import SCHEMES
from dodona.oracle.systems.own.fact_kinds import Inputs, OwnFact, known, model_size, of_config_json, of_field
from dodona.oracle.systems.own.model_code import (
    PROMPT_STEPS,
    has_causal_lm,
    is_row_by_row,
    lacks_vision_package,
    needs_newer_transformers,
    outgrows_rope,
    prompt_steps,
    transformers_since,
)
from dodona.oracle.systems.own.pooling import POOLING_TASKS, has_pooling_model, pooling_task
from dodona.oracle.systems.own.quantization import (
    has_unread_experts,
    lacks_quantization_package,
    quantization_fault,
    quantization_scheme,
)
from dodona.oracle.systems.own.resolved import (
    DTYPES,
    resolved_device,
    resolved_dtype,
    resolved_quantization,
    resolved_runner_type,
)


def _dtype(inputs: Inputs) -> FactValue:
    found = resolved_dtype(inputs.config, inputs.model, resolved_device(inputs.config, inputs.environment))
    if found is None:
        return UNKNOWN
    return found if found in DTYPES else "other"


def _attention_pattern(model: ModelInfo) -> FactValue:
    kinds = set(model.layer_kinds)
    if model.is_attention_free:
        return "none"
    if kinds <= {"full_attention"}:
        return "full"
    if kinds == {"sliding_attention"}:
        return "sliding"
    return "mixed" if kinds <= {"full_attention", "sliding_attention"} else "other"


MODEL_SPECS = (
    of_config_json("architectures", "list", "Model classes that config.json names."),
    of_config_json("model_type", "str", "config.json's model type (of the language model, in a wrapper)."),
    OwnFact(
        "model_config.runner_type",
        "str",
        "What the model is served for; `auto` goes by the model's architecture and pooling module.",
        "model",
        derive=lambda i: resolved_runner_type(i.config, i.model) or UNKNOWN,
        domain=("generate", "pooling", "draft"),
        reads=("model_config.runner", "model_config.convert"),
    ),
    of_field(
        "model_config.convert",
        "str",
        "What a pooling runner is to make of the model, as configured.",
        domain=("auto", "none", "embed", "classify"),
    ),
    OwnFact(
        "model_config.pooling_task",
        "str",
        "What a pooling runner computes, by `convert`, modules.json and architectures; `reward` is a head of "
        "its own, `other` an unknown module; null where the model is not for pooling.",
        "model",
        derive=lambda i: UNKNOWN if i.model is None else pooling_task(i.config, i.model),
        domain=POOLING_TASKS,
        nullable=True,
        reads=("model_config.convert", "model_config.runner"),
    ),
    OwnFact(
        "model_config.has_pooling_model",
        "bool",
        "transformers has a class of text models of this type for the pooling task; null without a task.",
        "model",
        derive=lambda i: UNKNOWN if i.model is None else has_pooling_model(i.config, i.model),
        nullable=True,
        reads=("model_config.convert", "model_config.runner"),
    ),
    OwnFact(
        "model_config.prompt_steps",
        "str",
        "Steps that a pooling model's prompt may need: `several` if it can be longer than "
        "`max_num_batched_tokens`, `too_long` if the model then can't go on after a chunk; null without a "
        "task.",
        "model",
        derive=lambda i: UNKNOWN if i.model is None else prompt_steps(i.config, i.model),
        domain=PROMPT_STEPS,
        nullable=True,
        reads=(
            "scheduler_config.max_num_batched_tokens",
            "model_config.max_model_len",
            "model_config.convert",
            "model_config.runner",
        ),
    ),
    OwnFact(
        "model_config.has_causal_lm",
        "bool",
        "transformers has a causal language model of this type, or trusted code comes with the model; "
        "of BERT's kin only with `is_decoder`.",
        "model",
        derive=lambda i: UNKNOWN if i.model is None else has_causal_lm(i.config, i.model),
    ),
    OwnFact(
        "model_config.transformers_since",
        "str",
        "First version of transformers that has the model type, and computes it as it is served (some causal "
        "models saw later tokens); null where all supported ones do, or none.",
        "model",
        derive=lambda i: UNKNOWN if i.model is None else transformers_since(i.config, i.model),
        nullable=True,
        reads=("model_config.convert", "model_config.runner"),
    ),
    OwnFact(
        "model_config.needs_newer_transformers",
        "bool",
        "The installed transformers is older than `transformers_since`, and no trusted code comes with the "
        "model.",
        "model",
        derive=lambda i: (
            UNKNOWN if i.model is None else known(needs_newer_transformers(i.config, i.model, i.environment))
        ),
        reads=("model_config.convert", "model_config.runner", "model_config.trust_remote_code"),
    ),
    OwnFact(
        "model_config.lacks_vision_package",
        "bool",
        "The package that transformers makes the model's vision tower of (of Gemma 3n, timm) isn't there, "
        "and no trusted code comes with the model.",
        "model",
        derive=lambda i: (
            UNKNOWN if i.model is None else known(lacks_vision_package(i.config, i.model, i.environment))
        ),
        reads=("model_config.trust_remote_code",),
    ),
    OwnFact(
        "model_config.is_row_by_row",
        "bool",
        "V1 can't compute the model's requests together: by its type (docs/models.md; for pooling "
        "docs/pooling.md), or because it outgrows its RoPE, if that isn't `dynamic`.",
        "model",
        derive=lambda i: (
            UNKNOWN if i.model is None else known(is_row_by_row(i.config, i.model, i.environment))
        ),
        reads=("model_config.convert", "model_config.runner"),
    ),
    OwnFact(
        "model_config.quantization",
        "str",
        "Quantization method of the weights: as configured, else config.json's; null where there is none.",
        "model",
        derive=lambda i: resolved_quantization(i.config, i.model),
        nullable=True,
        reads=("model_config.quantization",),
    ),
    OwnFact(
        "model_config.quantization_scheme",
        "str",
        "How weights and activations are quantized, and what of it matters to a runner; `other` is what no "
        "runner reads; null without quantization.",
        "model",
        derive=lambda i: UNKNOWN if i.model is None else quantization_scheme(i.config, i.model),
        nullable=True,
        domain=SCHEMES,
        reads=("model_config.quantization",),
    ),
    OwnFact(
        "model_config.quantization_fault",
        "str",
        "What in config.json's quantization_config, or of the method asked for, no runner reads; null where "
        "one may read it.",
        "model",
        derive=lambda i: UNKNOWN if i.model is None else quantization_fault(i.config, i.model),
        nullable=True,
        reads=("model_config.quantization",),
    ),
    OwnFact(
        "model_config.lacks_quantization_package",
        "bool",
        "A package that the weights are loaded through (bitsandbytes, torchao) isn't installed.",
        "model",
        derive=lambda i: (
            UNKNOWN
            if i.model is None
            else known(lacks_quantization_package(i.config, i.model, i.environment))
        ),
        reads=("model_config.quantization",),
    ),
    OwnFact(
        "model_config.has_unread_experts",
        "bool",
        "The model has experts that are quantized, or are to be, in a way in which V1 does not read those of "
        "its type.",
        "model",
        derive=lambda i: (
            UNKNOWN if i.model is None else known(has_unread_experts(i.config, i.model, i.environment))
        ),
        reads=("model_config.quantization",),
    ),
    OwnFact(
        "model_config.dtype",
        "str",
        "Type that the model is computed in; `auto` is config.json's, and float32 on a CPU.",
        "model",
        derive=_dtype,
        domain=(*DTYPES, "other"),
        reads=("model_config.dtype", "device_config.device"),
    ),
    of_config_json("is_moe", "bool", "Feed-forward layers route to experts."),
    of_config_json("num_experts", "int", "Routed experts of a layer; 0 in a dense model.", minimum=0),
    of_config_json(
        "has_inner_state",
        "bool",
        "Some layer carries a recurrent or convolutional state (Mamba, linear attention).",
    ),
    of_config_json("is_attention_free", "bool", "No layer has attention with keys and values."),
    of_config_json(
        "is_hybrid",
        "bool",
        "Attention layers and layers with an inner state together.",
        lambda m: m.has_inner_state and not m.is_attention_free,
    ),
    of_config_json("is_encoder_decoder", "bool", "An encoder's output is attended to (T5, Whisper, …)."),
    of_config_json("is_multimodal", "bool", "The model takes images, sound or video too."),
    of_config_json("use_mla", "bool", "Multi-head latent attention."),
    model_size("head_size", "Elements of a query/key head; null without attention."),
    model_size("hidden_size", "Elements of a token's hidden state."),
    model_size("intermediate_size", "Elements between the two halves of a feed-forward layer."),
    model_size("num_hidden_layers", "Layers."),
    model_size("num_attention_heads", "Query heads; null without attention."),
    model_size("num_key_value_heads", "Key/value heads; null without attention."),
    model_size("vocab_size", "Tokens of the vocabulary."),
    of_config_json(
        "num_queries_per_kv",
        "int",
        "Query heads that share a key/value head; null where their numbers don't divide.",
        nullable=True,
        minimum=1,
    ),
    of_config_json(
        "rope_type",
        "str",
        "Rotary embedding: transformers' name, `mrope` (several positions), `mixed` (layers differ), `none`.",
    ),
    OwnFact(
        "model_config.outgrows_rope",
        "bool",
        "`max_model_len` is beyond `rope_fixed_length`.",
        "model",
        derive=lambda i: UNKNOWN if i.model is None else outgrows_rope(i.config, i.model),
    ),
    of_config_json(
        "rope_fixed_length",
        "int",
        "Length up to which rotary frequencies are fixed; null where no length changes them.",
        nullable=True,
        minimum=0,
    ),
    of_config_json(
        "has_partial_rotary",
        "bool",
        "Only a part of each head is rotated.",
        lambda m: m.rope is not None and m.rope.is_partial,
    ),
    of_config_json(
        "hidden_act",
        "str",
        "Activation of the feed-forward layers; null where config.json has none.",
        nullable=True,
    ),
    of_config_json("attention_bias", "bool", "config.json asks for a bias in attention projections."),
    of_config_json("mlp_bias", "bool", "config.json asks for a bias in feed-forward projections."),
    of_config_json("tie_word_embeddings", "bool", "The output layer uses the input embeddings."),
    of_config_json(
        "attention_pattern",
        "str",
        "Attention layers: all full, all sliding, both mixed, others (chunked, linear, …) or none.",
        _attention_pattern,
        domain=("full", "sliding", "mixed", "other", "none"),
    ),
    of_config_json(
        "layer_types",
        "list",
        "Kinds of layers that occur, under transformers' names.",
        attrgetter("layer_kinds"),
    ),
    of_config_json(
        "sliding_window",
        "int",
        "Most recent tokens that a query of a sliding layer sees; null where no layer slides.",
        nullable=True,
        minimum=1,
    ),
    of_config_json(
        "math_modifiers",
        "list",
        "config.json fields in effect that change a plain decoder's arithmetic; null where there are none.",
        lambda m: m.math_modifiers or None,
        domain=MATH_MODIFIERS,
        nullable=True,
    ),
    of_config_json("has_remote_code", "bool", "The model wants code of its own to be run."),
    of_field("model_config.trust_remote_code", "bool", "Code that comes with the model may be run."),
    of_field("model_config.enforce_eager", "bool", "CUDA graphs are never captured."),
    of_field(
        "model_config.max_model_len",
        "int",
        "Longest sequence as configured; null where it isn't.",
        nullable=True,
    ),
)
"""The facts of config.json, for the registry `facts.FACTS`."""
