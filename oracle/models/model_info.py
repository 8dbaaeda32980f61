"""`ModelInfo`: what a model's config.json says of its structure, read without transformers.

Spellings differ by family and age (`n_embd`, `torch_dtype`, `rope_scaling`, a nested `text_config`, fields
left out because they hold the family's default). Aliases and defaults come from
`dodona.oracle.models.known_models`, which is drawn from transformers' configuration classes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any

from dodona.oracle.errors import ConfigError
from dodona.oracle.models.config_fields import Fields, Size
from dodona.oracle.models.config_files import companion_quantization, read_config_json, stored_modules
from dodona.oracle.models.heads import kv_heads, query_heads
from dodona.oracle.models.known_models import known_model, release
from dodona.oracle.models.math_modifiers import MATH_MODIFIERS, is_neutral
from dodona.oracle.models.quantization import QuantizationConfig, read_quantization
from dodona.oracle.models.rope import Rope, read_rope, rope_defaults
from dodona.oracle.models.widths import EXPERT_COUNTS, expert_widths, other_widths

_TEXT_KEYS = ("text_config", "language_config", "llm_config", "thinker_config", "decoder", "generator")
_OTHER_MODALITIES = (
    "vision_config",
    "audio_config",
    "vision_tower",
    "mm_vision_tower",
    "visual",
    "speech_config",
)
_STATEFUL_LAYERS = (
    "mamba",
    "mamba2",
    "linear_attention",
    "recurrent",
    "conv",
    "ssm",
    "hybrid",
    "gated_delta_net",
)
_ATTENTION_LAYERS = frozenset({"attention", "chunked_attention", "full_attention", "sliding_attention"})
_LAYER_LISTS = ("layer_types", "layers_block_type", "block_types")
_STATEFUL_KEYS = ("ssm_cfg", "mamba_d_state", "ssm_state_size", "hybrid_override_pattern", "mamba_d_ssm")
_DEFAULT_KIND = "full_attention"

_GENERATE = (
    "ForCausalLM",
    "ForConditionalGeneration",
    "LMHeadModel",
    "ModelWithLMHead",
    "GenerationDecoder",
    "ChatModel",
    "ForSpeechSeq2Seq",
)
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, eq=False)
class ModelInfo:
    """A read-only view of one config.json. Sizes count elements; None means that the file and its family do
    not say.

    `raw` is the file; `text` is its language model's part: the family's defaults, then the top level, then
    the nested text configuration, under transformers' canonical field names.
    """

    file: str
    raw: Mapping[str, Any]
    text: Mapping[str, Any]
    architectures: tuple[str, ...]
    model_type: str
    """Model type of the language model: the nested configuration's, where there is one."""
    hidden_size: int | None
    intermediate_size: int | None
    feed_forward_widths: tuple[Size, ...]
    """Widths of dense feed-forward layers and of shared experts that ranks split; empty where there are none,
    or the file and its family do not say."""
    expert_widths: tuple[Size, ...]
    """Widths of routed experts; empty in a dense model."""
    num_hidden_layers: int | None
    num_attention_heads: int | None
    num_key_value_heads: int | None
    query_heads: tuple[Size, ...]
    """The numbers of query heads that layers have; empty where the file and its family do not say."""
    kv_heads: tuple[Size, ...]
    """The numbers of key/value heads that layers have, likewise."""
    head_size: int | None
    """Size of a query/key head."""
    vocab_size: int | None
    max_position_embeddings: int | None
    hidden_act: str | None
    attention_bias: bool
    """Whether any of the attention projections has a bias, as far as config.json decides it."""
    mlp_bias: bool
    tie_word_embeddings: bool
    rope: Rope | None
    """Rotary embedding; None where the model has none."""
    sliding_window: int | None
    """Most recent tokens that a query of a sliding layer sees (itself included); None where no layer
    slides."""
    layer_types: tuple[str, ...] | None
    """Kind of each layer in order, where config.json gives it or its family's rule is known; else None."""
    layer_kinds: tuple[str, ...]
    """The kinds of layers that occur, sorted; usually one. Where the file doesn't list them, its family's
    usual ones."""
    dtype: str | None
    """Type of the stored weights: float32, bfloat16, float16 or another torch name."""
    quant_method: str | None
    """Quantization method of the stored weights ("unspecified" where they are quantized and it is not
    named)."""
    quantization: QuantizationConfig | None
    """How the stored weights are quantized; None where they are not."""
    num_experts: int
    """Routed experts of a layer; 0 in a dense model."""
    has_inner_state: bool
    """Whether some layer carries a recurrent or convolutional state from token to token."""
    is_attention_free: bool
    transformers_since: str | None
    """The first version of transformers ("5.24") that has the file's model type and that of a language model
    in it; None where all supported versions have them, or none."""
    is_causal_lm: bool
    """Whether transformers has a causal language model of the file's model type."""
    is_encoder_decoder: bool
    is_multimodal: bool
    use_mla: bool
    """Multi-head latent attention: keys and values are stored as one low-rank vector."""
    has_remote_code: bool
    """Whether the model wants code of its own to be run (`auto_map`)."""
    pooling_tasks: tuple[str, ...]
    """Tasks whose automatic class of transformers makes a text model of the file's model type: embed,
    classify, token_classify."""
    is_masked_lm: bool
    """Whether transformers has a masked language model of the file's model type: it is an encoder, unless it
    is configured as a decoder."""
    modules: tuple[str, ...]
    """The modules that the directory's modules.json (Sentence Transformers) names, in order, such as
    "Transformer", "Pooling"."""
    math_modifiers: tuple[str, ...]
    """Those of `MATH_MODIFIERS` that are in effect."""
    eos_token_ids: tuple[int, ...]

    @property
    def is_moe(self) -> bool:
        """Whether feed-forward layers route to experts."""
        return self.num_experts > 0

    @property
    def rope_type(self) -> str:
        """The rotary embedding's type, or "none"."""
        return self.rope.rope_type if self.rope else "none"

    @property
    def rope_fixed_length(self) -> int | None:
        """Tokens up to which the rotary frequencies are fixed; None where no length changes them."""
        return None if self.rope is None else self.rope.fixed_length(self.max_position_embeddings)

    @property
    def rope_stretch(self) -> float:
        """The longest sequence over `max_position_embeddings`: the factor of "dynamic" RoPE, else 1."""
        factor = self.rope.parameters.get("factor") if self.rope and self.rope_type == "dynamic" else 1.0
        return max(1.0, float(factor)) if isinstance(factor, int | float) else 1.0

    @property
    def num_queries_per_kv(self) -> int | None:
        """Query heads that share a key/value head; None where the two do not divide or are not known."""
        if not self.num_attention_heads or not self.num_key_value_heads:
            return None
        quotient, remainder = divmod(self.num_attention_heads, self.num_key_value_heads)
        return None if remainder else quotient

    @property
    def default_runner(self) -> str:
        """What `runner="auto"` means for the model: "generate" or "pooling".

        A Sentence Transformers directory pools whatever its architecture; otherwise the architecture's name
        decides.
        """
        if "Pooling" in self.modules:
            return "pooling"
        generates = any(name.endswith(_GENERATE) for name in self.architectures)
        return "generate" if generates else "pooling"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ModelInfo:
        """Read a model directory (or a config.json). Cached by path, time of change and size.

        Raises ConfigError that names the file, the field and the mend.
        """
        name = os.fspath(path)
        name = name if name.endswith(".json") else os.path.join(name, "config.json")
        cached = _CACHE.get(name)
        try:
            # Strings and few system calls: every verdict passes here.
            if cached is not None and cached[0] == _stamp(name, cached[1]):
                return cached[2]
            file = Path(name)
            companions = tuple(str(p) for p in map(file.with_name, _COMPANIONS) if p.is_file())
            stamp = _stamp(name, companions)
        except OSError as error:
            raise ConfigError(_missing(name, error)) from None
        info = cls.from_mapping(
            read_config_json(file),
            file=name,
            modules=stored_modules(file.parent),
            quantization=companion_quantization(file.parent),
        )
        if len(_CACHE) >= _MAX_CACHED:
            _CACHE.clear()
        _CACHE[name] = (stamp, companions, info)
        return info

    @classmethod
    def from_mapping(
        cls,
        raw: Mapping[str, Any],
        *,
        file: str = "config.json",
        modules: tuple[str, ...] = (),
        quantization: Mapping[str, Any] | None = None,
        named: bool = True,
    ) -> ModelInfo:
        """From the contents of a config.json; `file` is the name in error messages.

        `modules` and `quantization` (in the form of a `quantization_config`) are what the directory's other
        files say. named: whether the file must name its architectures. Raises ConfigError.
        """
        get = Fields(file, raw, _merge(file, raw))
        if named and not get.strings("architectures", raw):
            raise get.fail("architectures", 'a list such as ["LlamaForCausalLM"]', raw.get("architectures"))
        return _read(raw, get, modules, quantization)


_CACHE: dict[str, tuple[tuple[int, ...], tuple[str, ...], ModelInfo]] = {}
"""File → its stamp when it was read, the companions that were beside it, and what it says."""
_MAX_CACHED = 256
_COMPANIONS = ("modules.json", "hf_quant_config.json", "quantize_config.json")


def _read(
    raw: Mapping[str, Any], get: Fields, modules: tuple[str, ...], companion: Mapping[str, Any] | None
) -> ModelInfo:
    text = get.text
    architectures = get.strings("architectures", raw) or ()
    model_type = get.word("model_type") or ""
    known = known_model(model_type)
    # transformers' automatic classes go by the file's own type, not by that of a language model inside.
    own = known_model(str(raw.get("model_type", "")))
    hidden_size, heads = get.size("hidden_size"), get.size("num_attention_heads")
    use_mla = get.size("kv_lora_rank") is not None and get.size("qk_rope_head_dim") is not None
    head_size = _head_size(get, hidden_size, heads, use_mla)
    layer_types, kinds = _layers(get, known.layer_kinds if known else ())
    num_layers = get.size("num_hidden_layers") or (len(layer_types) if layer_types else None)
    stateful = bool(known and known.stateful) or any(k in text for k in _STATEFUL_KEYS)
    stateful = stateful or any(kind in _STATEFUL_LAYERS for kind in kinds)
    if _lists_layers(get) and set(kinds) <= _ATTENTION_LAYERS:
        stateful = known is not None and "hybrid" in known.layer_kinds
    num_experts = _num_experts(get)
    experts = expert_widths(get) if num_experts else ()
    window = get.size("sliding_window") or None
    if not get.flag("use_sliding_window", default=True) or (
        layer_types and "sliding_attention" not in layer_types
    ):
        window = None
    stored = _stored_quantization(get) or companion
    quant_method = None if stored is None else _quantization_method(stored)
    return ModelInfo(
        file=get.file,
        raw=MappingProxyType(dict(raw)),
        text=MappingProxyType(dict(text)),
        architectures=architectures,
        model_type=model_type,
        hidden_size=hidden_size,
        intermediate_size=get.size("intermediate_size"),
        feed_forward_widths=other_widths(get, model_type, experts),
        expert_widths=experts,
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        num_key_value_heads=get.size("num_key_value_heads") or heads,
        query_heads=query_heads(get, model_type),
        kv_heads=kv_heads(get, model_type, kinds),
        head_size=head_size,
        vocab_size=get.size("vocab_size"),
        max_position_embeddings=_positions(get, offset=known.positions_after_padding if known else False),
        hidden_act=get.word("hidden_act") or get.word("hidden_activation") or get.word("activation_function"),
        attention_bias=any(get.flag(key) for key in ("attention_bias", "qkv_bias", "use_qkv_bias")),
        mlp_bias=get.flag("mlp_bias"),
        tie_word_embeddings=_tied(get),
        rope=read_rope(get.file, text, head_size, rotary=known.rotary if known else None),
        sliding_window=window,
        layer_types=layer_types,
        layer_kinds=kinds,
        dtype=_dtype(get),
        quant_method=quant_method,
        quantization=None
        if stored is None or quant_method is None
        else read_quantization(quant_method, stored, num_layers or 1),
        num_experts=num_experts,
        has_inner_state=stateful,
        is_attention_free=stateful and heads is None and set(kinds) <= {*_STATEFUL_LAYERS, _DEFAULT_KIND},
        transformers_since=max(
            (kind.since for kind in (own, known) if kind is not None and kind.since is not None),
            key=release,
            default=None,
        ),
        is_causal_lm=own is not None and own.causal,
        is_encoder_decoder=get.flag("is_encoder_decoder") or raw.get("is_encoder_decoder") is True,
        is_multimodal=any(isinstance(raw.get(key), (dict, str)) for key in _OTHER_MODALITIES),
        use_mla=use_mla,
        has_remote_code=bool(raw.get("auto_map")),
        pooling_tasks=own.pooling_tasks if own else (),
        is_masked_lm=own is not None and own.masked,
        modules=modules,
        math_modifiers=tuple(key for key in MATH_MODIFIERS if not is_neutral(text, key)),
        eos_token_ids=_token_ids(get, "eos_token_id"),
    )


def _merge(file: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{file}: expected a JSON object, got {type(raw).__name__}; fetch the model again")
    own: dict[str, Any] = dict(raw)
    shared = dict(raw)
    if not isinstance(own.get("text_config", {}), (Mapping, NoneType)):
        raise Fields(file, raw, raw).fail("text_config", "an object", own["text_config"])
    for _ in range(3):  # thinker_config holds a text_config of its own
        nested = next(((k, own[k]) for k in _TEXT_KEYS if isinstance(own.get(k), Mapping)), None)
        if nested is None:
            break
        outer = known_model(str(own.get("model_type", "")))
        own = {"model_type": outer.text_model_type if outer else None, **nested[1]}
        if own["model_type"] is None:
            own.pop("model_type")
            shared.pop("model_type", None)
    wrapped = own is not raw and any(isinstance(raw.get(k), Mapping) for k in _TEXT_KEYS)
    base = {k: v for k, v in shared.items() if not isinstance(v, Mapping)} if wrapped else {}
    merged = {**base, **own}
    known = known_model(str(merged.get("model_type", "")))
    if known is None:
        return merged
    for field, alias in known.aliases.items():
        if alias in merged and field not in own:
            merged[field] = merged[alias]
    defaults = dict(known.defaults)
    if any(merged.get(field) is not None for field in EXPERT_COUNTS):
        # One count under any of its names leaves nothing to the family's default.
        defaults = {field: value for field, value in defaults.items() if field not in EXPERT_COUNTS}
    return {**defaults, **rope_defaults(known.rope, merged), **merged}


def _positions(get: Fields, *, offset: bool) -> int | None:
    """Most positions of a sequence. RoBERTa and its kin number them from `pad_token_id` + 1 on."""
    positions, padding = get.size("max_position_embeddings"), get.text.get("pad_token_id")
    if positions is None or not offset or not isinstance(padding, int):
        return positions
    return max(1, positions - padding - 1)


def _head_size(get: Fields, hidden_size: int | None, heads: int | None, use_mla: bool) -> int | None:
    if use_mla:
        nope, rotary = get.size("qk_nope_head_dim"), get.size("qk_rope_head_dim")
        if nope is not None and rotary is not None:
            return nope + rotary
    given = get.size("head_dim") or get.size("attention_head_dim") or get.size("kv_channels")
    if given:
        return given
    return hidden_size // heads if hidden_size and heads else None


def _lists_layers(get: Fields) -> bool:
    """Whether the file says of each layer what it is."""
    fields = (*_LAYER_LISTS, "full_attn_idxs")
    return any(get.raw.get(field) or get.text.get(field) for field in fields)


def _layers(get: Fields, default_kinds: tuple[str, ...]) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    given = next((found for field in _LAYER_LISTS if (found := get.strings(field)) is not None), None)
    layers, full_until = get.size("num_hidden_layers"), get.size("max_window_layers")
    attention = get.text.get("full_attn_idxs")
    if given is None and layers and isinstance(attention, list):
        # LFM2's rule: all other layers are short convolutions.
        given = tuple("full_attention" if i in attention else "conv" for i in range(layers))
    if given:
        return given, tuple(sorted(set(given)))
    if layers and full_until is not None and "use_sliding_window" in get.text:
        # Qwen's rule: with use_sliding_window, the layers from max_window_layers on slide.
        slides = get.flag("use_sliding_window") and bool(get.size("sliding_window"))
        types = tuple(
            "sliding_attention" if slides and i >= full_until else "full_attention" for i in range(layers)
        )
        return types, tuple(sorted(set(types)))
    if default_kinds:
        return None, default_kinds
    slides = get.flag("use_sliding_window", default=True) and bool(get.size("sliding_window"))
    kind = "sliding_attention" if slides else _DEFAULT_KIND
    if any(
        isinstance(get.text.get(key), int) for key in ("sliding_window_pattern", "_sliding_window_pattern")
    ):
        return None, ("full_attention", "sliding_attention")
    return ((kind,) * layers if layers else None), (kind,)


def _tied(get: Fields) -> bool:
    # A wrapper's own flag decides over its language model's, as it does in transformers.
    top = get.raw.get("tie_word_embeddings")
    return top if isinstance(top, bool) else get.flag("tie_word_embeddings")


def _dtype(get: Fields) -> str | None:
    for source in (get.text, get.raw):
        for field in ("dtype", "torch_dtype"):
            value = source.get(field)
            if value is not None:
                if not isinstance(value, str):
                    raise get.fail(field, f"one of {', '.join(_DTYPES)}", value)
                return value.removeprefix("torch.")
    return None


def _stored_quantization(get: Fields) -> Mapping[str, Any] | None:
    for field in ("quantization_config", "compression_config"):
        for source in (get.text, get.raw):
            value = source.get(field)
            if value is None or value == {}:
                continue
            if not isinstance(value, Mapping):
                raise get.fail(field, "an object", value)
            return value
    return None


def _quantization_method(stored: Mapping[str, Any]) -> str:
    method = stored.get("quant_method")
    if method is None and (stored.get("load_in_4bit") or stored.get("load_in_8bit")):
        return "bitsandbytes"
    return method.lower() if isinstance(method, str) and method else "unspecified"


def _num_experts(get: Fields) -> int:
    counts = [get.size(field) or 0 for field in EXPERT_COUNTS]
    for field in ("ffn_config", "moe", "moe_config"):
        nested = get.text.get(field)
        if isinstance(nested, Mapping):
            values = (nested.get(key) for key in (*EXPERT_COUNTS, "n_experts"))
            counts += [value for value in values if isinstance(value, int)]
    return max(counts)


def _token_ids(get: Fields, field: str) -> tuple[int, ...]:
    value = get.text.get(field)
    if value is None:
        return ()
    ids = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise get.fail(field, "a token id or a list of token ids", value)
    return tuple(ids)


def _missing(file: str, error: OSError) -> str:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return (
            f"{file}: no such file; a model directory in Hugging Face form has a config.json "
            "beside its weights: check the path"
        )
    return f"{file}: cannot be read: {error.strerror or error}"


def _stamp(name: str, companions: tuple[str, ...]) -> tuple[int, ...]:
    """What changes when the file, or one of its companions, does; files that come or go change the folder."""
    status = os.stat(name)
    stamp = [status.st_mtime_ns, status.st_size, os.stat(os.path.dirname(name) or ".").st_mtime_ns]
    for companion in companions:
        try:
            stamp.append(os.stat(companion).st_mtime_ns)
        except OSError:
            stamp.append(0)
    return tuple(stamp)
