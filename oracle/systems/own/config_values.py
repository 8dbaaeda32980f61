"""Values in config.json of which transformers makes no model, whatever the weights are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from dodona.oracle.errors import ConfigError, did_you_mean
from dodona.oracle.models.expected_tensors import DENSE
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.printable import short
from dodona.oracle.systems.own.memory import PLAIN_KV

ACTIVATIONS: Final = (
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
    "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "prelu", "quick_gelu",
    "relu", "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh", "xielu",
)  # fmt: skip
"""Names that transformers has a function for; a test compares them with the version that is installed."""

ROPE_FIELDS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "default": (),
        "mrope": (),
        "linear": ("factor",),
        "dynamic": ("factor",),
        "yarn": ("factor",),
        "longrope": ("short_factor", "long_factor"),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
        "proportional": (),
    }
)
"""Fields without which transformers does not read a rotary embedding, by its type."""


def config_values_fault(model: ModelInfo) -> str | None:
    """Which value of config.json transformers makes no model of; None where none is known to be so."""
    try:
        check_config_values(model)
    except ConfigError as error:
        return str(error)
    return None


def check_config_values(model: ModelInfo) -> None:
    """Raise ConfigError that names the field."""
    if model.has_remote_code:
        return
    for field, value, expected in _unknown(model):
        raise ConfigError(
            f"{model.file}: field {field!r}: expected {expected}, got {short(value)}; correct it"
        )


def _unknown(model: ModelInfo) -> Iterator[tuple[str, Any, str]]:
    """Field, value, and what was expected."""
    if model.model_type not in (*DENSE, *PLAIN_KV):
        return
    # Gemma's files have the name of one activation in two fields, of which one is read.
    if model.hidden_act not in (None, *ACTIVATIONS) and "hidden_activation" not in model.text:
        hint = did_you_mean(str(model.hidden_act), ACTIVATIONS)
        yield "hidden_act", model.hidden_act, "an activation of transformers" + (f" ({hint})" if hint else "")
    listed, count = model.raw.get("layer_types"), model.num_hidden_layers
    if isinstance(listed, list) and count is not None and len(listed) != count:
        yield "layer_types", f"{len(listed)} of them", f"one for each of num_hidden_layers={count}"
    yield from _unknown_rope(model)
    if model.model_type not in DENSE:
        return
    padding, size = model.raw.get("pad_token_id"), model.vocab_size
    if type(padding) is int and size is not None and not -size <= padding < size:
        yield "pad_token_id", padding, f"a token of vocab_size={size}"
    if "max_position_embeddings" in model.raw and model.raw["max_position_embeddings"] is None:
        yield "max_position_embeddings", None, "a whole number, or no such field"


def _unknown_rope(model: ModelInfo) -> Iterator[tuple[str, Any, str]]:
    if model.rope is None:
        return
    kind = model.rope.rope_type
    if kind != "mixed" and kind not in ROPE_FIELDS:
        yield "rope_type", kind, f"one of {', '.join(ROPE_FIELDS)}"
    for field in ROPE_FIELDS.get(kind, ()):
        if field not in model.rope.parameters:
            yield f"rope_parameters.{field}", None, f"a value, which rope_type {kind!r} needs"
