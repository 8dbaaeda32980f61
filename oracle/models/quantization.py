"""What a `quantization_config` says: which layers are quantized, and how their weights are stored.

Read from config.json (`quantization_config` or `compression_config`), or from AutoGPTQ's quantize_config.json
beside it. What can't be read here no runner serves: `QuantizationConfig.unreadable` says why.

Sources of the formats: the documentation and code of compressed-tensors 0.20, AutoGPTQ, AutoAWQ and
transformers' `FineGrainedFP8Config`, `Mxfp4Config`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from dodona.oracle.models.patterns import matching_steps, pattern_fault

MAX_STEPS = 300_000_000
"""Of matching all names of layers; see `matching_steps`. It takes seconds at most."""

_LOOK_UP_STEPS = 500
"""What `scheme_of` takes beside its comparisons."""

ONLINE_METHODS = ("fp8", "int8")
"""Methods that quantize the linear layers of an unquantized checkpoint while it is read."""

LIBRARY_SCHEMES: Mapping[str, str] = MappingProxyType(
    {
        "w8a8_bitsandbytes": "bitsandbytes",
        "w4a16_bitsandbytes": "bitsandbytes",
        "w8a8_torchao": "torchao",
        "w8a16_torchao": "torchao",
    }
)
"""Schemes whose layers a library of this name makes and computes."""

SCHEMES = (
    "w4a16",
    "w4a16_act_order",
    "w8a16",
    "w8a16_act_order",
    "w8a16_fp8",
    "w8a8_int8",
    "w8a8_int8_asymmetric",
    "w8a8_int8_static",
    "w8a8_fp8",
    "w8a8_fp8_static",
    "w8a8_fp8_block",
    "w4a16_mxfp4",
    *LIBRARY_SCHEMES,
    "mixed",
    "other",
)
"""Names of schemes: bits of weights and activations, then what else matters to a runner. "mixed": several of
them in one model. "other": what is not read here."""

Layout = Literal["plain", "pack-quantized", "fp8", "gptq", "awq", "mxfp4", "online"]

_HEADS = ("lm_head", "score", "classifier")
"""Last layers, which methods that are made for decoders' layers leave as they are."""

_FUSED = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("self_attn.o_proj",),
    ("mlp.down_proj",),
)
"""Linear layers of a dense decoder's layer; those that V2 computes as one product are together."""


@dataclass(frozen=True, slots=True)
class ActivationScheme:
    """How the input of a linear layer is quantized before the product."""

    kind: Literal["int8", "fp8"]
    strategy: Literal["token", "tensor", "group"]
    """One scale for each token, for the whole input, or for each group of `group_size` of a token's
    elements."""
    dynamic: bool = True
    """Whether scales are computed from the input; else they are stored (`strategy` is "tensor" then)."""
    symmetric: bool = True
    group_size: int | None = None


@dataclass(frozen=True, slots=True)
class WeightScheme:
    """How the weight of a linear layer is stored."""

    layout: Layout
    """"plain": one element of `weight` for each value (int-quantized, float-quantized, naive-quantized of
    compressed-tensors); "online": the stored weight is not quantized yet."""
    kind: Literal["int", "float"]
    bits: int
    strategy: Literal["tensor", "channel", "group", "block"]
    group_size: int | None = None
    """Elements of the inner dimension that share a scale, with strategies "group" and "block"."""
    block_rows: int | None = None
    """Rows that share a scale, with strategy "block"."""
    symmetric: bool = True
    act_order: bool = False
    """Whether a stored index gives each inner element its group."""
    zero_offset: int = 0
    """What is added to stored zero points: 1 in the first GPTQ format."""
    activations: ActivationScheme | None = None
    scale_name: str = "weight_scale"
    input_scale_name: str = "input_scale"

    @property
    def name(self) -> str:
        """One of SCHEMES."""
        if self.layout == "mxfp4":
            return "w4a16_mxfp4"
        if self.activations is None:
            base = f"w{self.bits}a16"
            return base + ("_fp8" if self.kind == "float" else "_act_order" if self.act_order else "")
        if self.kind == "float":
            base = "w8a8_fp8_block" if self.strategy == "block" else "w8a8_fp8"
        else:
            base = "w8a8_int8" if self.activations.symmetric else "w8a8_int8_asymmetric"
        return base if self.activations.dynamic else base.removesuffix("_asymmetric") + "_static"


@dataclass(frozen=True, slots=True)
class SchemeRule:
    """The scheme of the layers that one of `targets` names."""

    targets: tuple[str, ...]
    """Class names ("Linear"), module names, or "re:" and a pattern."""
    scheme: WeightScheme


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """Which layers of a model are quantized, and how."""

    method: str
    rules: tuple[SchemeRule, ...] = ()
    ignore: tuple[str, ...] = ()
    """Layers that are not quantized: names or "re:" and a pattern."""
    ignores_parts: bool = False
    """Whether a name in `ignore` is any run of a module name's parts ("mlp.gate"), not the whole name."""
    unreadable: str | None = None
    """Why no layer's scheme could be read."""
    library_scheme: str | None = None
    """The one of LIBRARY_SCHEMES by which transformers loads the checkpoint; there are no rules then."""

    def scheme_of(self, name: str, class_name: str = "Linear") -> WeightScheme | None:
        """The scheme of a linear layer by its module name; None where it is not quantized.

        Where rules overlap, the one with the most specific target decides, wherever it stands: the layer's
        name before a pattern, a pattern before the layer's class; of several patterns the first by alphabet;
        of equal targets the last (compressed-tensors' `match_targets`).
        """
        for ignored in self.ignore:
            if _rank(name, class_name, ignored) or (self.ignores_parts and f".{ignored}." in f".{name}."):
                return None
        found = [
            (rank, target, rule.scheme)
            for rule in reversed(self.rules)
            for target in rule.targets
            if (rank := _rank(name, class_name, target))
        ]
        return min(found, key=lambda each: each[:2])[2] if found else None

    def with_names_of(self, stored: Iterable[str]) -> QuantizationConfig:
        """The same with the names of scales that a checkpoint has, by the names of its tensors.

        config.json does not tell them with the method "fp8" and a scale per tensor: transformers' own layers
        store `weight_scale_inv` and `activation_scale`, others `weight_scale` and `input_scale`.
        """
        if self.method != "fp8" or not any(name.endswith(".weight_scale_inv") for name in stored):
            return self
        return replace(self, rules=tuple(map(_with_transformers_names, self.rules)))

    def overall_scheme(self, num_layers: int) -> str:
        """The one of SCHEMES that describes a model of `num_layers` layers.

        "mixed" also where layers that a fast runner computes as one product differ.
        """
        if self.unreadable is not None:
            return "other"
        if self.library_scheme is not None:
            return self.library_scheme
        names = {rule.scheme.name for rule in self.rules}
        if len(names) != 1 or len(self.rules) != 1:
            return "mixed" if self.rules else "other"
        if self.method != "mxfp4":
            if self.scheme_of("lm_head") is not None:
                return "mixed"
            for layer in range(num_layers):
                for parts in _FUSED:
                    found = {self.scheme_of(f"model.layers.{layer}.{part}") for part in parts}
                    if len(found) > 1:
                        return "mixed"
        return names.pop()


def _with_transformers_names(rule: SchemeRule) -> SchemeRule:
    scheme = replace(rule.scheme, scale_name="weight_scale_inv", input_scale_name="activation_scale")
    return replace(rule, scheme=scheme)


def online_quantization(method: str) -> QuantizationConfig:
    """What `--quantization` means for a checkpoint that is not quantized: one of ONLINE_METHODS.

    "fp8": E4M3 weights with a scale per row, activations quantized per token. "int8": int8 weights with a
    scale per row. The output layer and the routers of experts stay as they are.
    """
    activations = ActivationScheme("fp8", "token") if method == "fp8" else None
    kind: Literal["int", "float"] = "float" if method == "fp8" else "int"
    scheme = WeightScheme("online", kind, 8, "channel", activations=activations)
    ignore = ("lm_head", "gate", "router", "shared_expert_gate")
    return QuantizationConfig(method, (SchemeRule(("Linear",), scheme),), ignore, ignores_parts=True)


def read_quantization(method: str, stored: Mapping[str, Any], num_layers: int = 1) -> QuantizationConfig:
    """From the contents of a `quantization_config` with this (lower-case) method, of a model with so many
    layers. Never raises: what is not understood makes the result `unreadable`."""
    read = _READERS.get(method)
    if read is None:
        return QuantizationConfig(method, unreadable=f"no runner reads weights of the method {method!r}")
    try:
        found = read(stored)
        _check_work(found, num_layers)
    except _Unreadable as error:
        return QuantizationConfig(method, unreadable=str(error))
    return found


def _check_work(found: QuantizationConfig, num_layers: int) -> None:
    """The scheme of each linear layer must be found in a bounded time."""
    targets = [*found.ignore, *(target for rule in found.rules for target in rule.targets)]
    names = num_layers * sum(map(len, _FUSED))
    if found.library_scheme is None and names * (_LOOK_UP_STEPS + matching_steps(targets)) > MAX_STEPS:
        raise _Unreadable(
            f"its {len(targets)} names and patterns would take too long to match with {num_layers} layers"
        )


class _Unreadable(Exception):
    """Why a quantization_config can't be served."""


def _rank(name: str, class_name: str, target: str) -> int:
    """How a target matches a layer: 1 by its name, 2 by a pattern, 3 by its class; 0: not."""
    if target.startswith("re:"):
        return 2 if re.match(target[3:], name) else 0
    return 1 if target == name else 3 if target == class_name else 0


def _get(stored: Mapping[str, Any], field: str, kind: type | tuple[type, ...], default: Any) -> Any:
    value = stored.get(field)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise _Unreadable(f"its field {field!r} has the unexpected value {value!r:.80}")
    return value


def _names(stored: Mapping[str, Any], *fields: str) -> tuple[str, ...]:
    found: list[str] = []
    for field in fields:
        values = _get(stored, field, list, [])
        if not all(isinstance(value, str) for value in values):
            raise _Unreadable(f"its field {field!r} is no list of names")
        found += values
    _check_patterns(found)
    return tuple(found)


def _check_patterns(targets: Iterable[str]) -> None:
    for pattern in (target[3:] for target in targets if target.startswith("re:")):
        fault = pattern_fault(pattern)
        if fault is not None:
            raise _Unreadable(f"its pattern {pattern!r:.80} is not used: {fault}")


def _expect(stored: Mapping[str, Any], what: str, field: str, *allowed: Any) -> Any:
    value = stored.get(field)
    return _one_of(value.lower() if isinstance(value, str) else value, what, field, *allowed)


def _one_of(value: Any, what: str, field: str, *allowed: Any) -> Any:
    if value not in allowed:
        expected = ", ".join(repr(a) for a in allowed if a is not None)
        raise _Unreadable(f"{what} {field!r} is {value!r:.80}; served are: {expected}")
    return value


# --- compressed-tensors

_PLAIN = ("int-quantized", "float-quantized", "naive-quantized", "dense")


def _compressed_tensors(stored: Mapping[str, Any]) -> QuantizationConfig:
    groups = _get(stored, "config_groups", Mapping, {})
    if not groups:
        raise _Unreadable("it has no config_groups")
    if stored.get("kv_cache_scheme"):
        raise _Unreadable("it quantizes keys and values (kv_cache_scheme)")
    if (_get(stored, "sparsity_config", Mapping, {}).get("format") or "dense") != "dense":
        raise _Unreadable("its weights are stored sparse (sparsity_config)")
    if _get(stored, "transform_config", Mapping, {}).get("config_groups"):
        raise _Unreadable("it transforms layers (transform_config)")
    _expect(stored, "its", "quantization_status", "compressed", None)
    rules = tuple(_compressed_rule(stored, group) for group in groups.values())
    return QuantizationConfig("compressed-tensors", rules, _names(stored, "ignore"))


def _compressed_rule(stored: Mapping[str, Any], group: Any) -> SchemeRule:
    if not isinstance(group, Mapping):
        raise _Unreadable("its config_groups are no objects")
    targets = _names(group, "targets")
    weights = _get(group, "weights", Mapping, None)
    if weights is None or not targets:
        raise _Unreadable("a group of its config_groups has no weights or no targets")
    if group.get("output_activations"):
        raise _Unreadable("it quantizes output activations")
    format = _get(group, "format", str, None) or _get(stored, "format", str, "dense")
    kind = _expect(weights, "its weights'", "type", "int", "float")
    bits = _get(weights, "num_bits", int, 8)
    strategy = _strategy(weights)
    if _get(weights, "dynamic", (bool, str), False):
        raise _Unreadable("its weights' scales are dynamic")
    group_size, block_rows = _group(weights, strategy)
    activations = _compressed_activations(_get(group, "input_activations", Mapping, None))
    if format == "pack-quantized":
        supported = kind == "int" and bits in (4, 8) and activations is None and strategy != "block"
    else:
        supported = format in _PLAIN and bits == 8
    symmetric = _get(weights, "symmetric", bool, True)
    if not supported or (kind == "float" and not symmetric) or strategy == "tensor_group":
        raise _Unreadable(
            f"its format {format!r:.80} with weights of type {kind!r}, {bits} bits, {strategy!r}"
        )
    if activations is not None and activations.kind != ("fp8" if kind == "float" else "int8"):
        raise _Unreadable("weights and activations have different types")
    if activations is not None and activations.group_size not in (None, group_size):
        raise _Unreadable("weights and activations have different groups")
    # "group" puts the order into the groups and stores it; "weight" and "static" leave groups contiguous.
    act_order = weights.get("actorder") in (True, "group", "dynamic")
    scheme = WeightScheme(
        "pack-quantized" if format == "pack-quantized" else "plain",
        kind,
        bits,
        strategy,
        group_size,
        block_rows,
        symmetric,
        act_order and strategy == "group",
        activations=activations,
    )
    return SchemeRule(targets, scheme)


def _strategy(weights: Mapping[str, Any]) -> Any:
    found = _expect(
        weights, "its weights'", "strategy", "tensor", "channel", "group", "block", "tensor_group", None
    )
    if found is not None:
        return found
    size = _get(weights, "group_size", int, None)
    return "tensor" if size is None else "channel" if size == -1 else "group"


def _group(weights: Mapping[str, Any], strategy: str) -> tuple[int | None, int | None]:
    if strategy == "group":
        size = _get(weights, "group_size", int, None)
        if size is None or size <= 0:
            raise _Unreadable(f"its group_size is {size!r}")
        return size, None
    if strategy == "block":
        return _block(weights.get("block_structure"))
    return None, None


def _block(value: Any) -> tuple[int, int]:
    if isinstance(value, str):
        value = [int(part) for part in value.split("x") if re.fullmatch("[0-9]{1,10}", part)]
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(v, int) and v > 0 for v in value):
        raise _Unreadable(f"its blocks are {value!r:.80}, expected two numbers > 0")
    return value[1], value[0]


def _compressed_activations(stored: Mapping[str, Any] | None) -> ActivationScheme | None:
    if not stored:
        return None
    kind = _expect(stored, "its activations'", "type", "int", "float")
    strategy = _expect(stored, "its activations'", "strategy", "token", "tensor", "group")
    dynamic = _expect(stored, "its activations'", "dynamic", True, False)
    symmetric = _get(stored, "symmetric", bool, True)
    if _get(stored, "num_bits", int, 8) != 8:
        raise _Unreadable(f"its activations have {stored.get('num_bits')!r:.80} bits")
    if (not dynamic and strategy != "tensor") or (dynamic and strategy == "tensor"):
        raise _Unreadable(f"its activations are {'dynamic' if dynamic else 'static'} per {strategy}")
    if kind == "float" and not symmetric:
        raise _Unreadable("its activations are asymmetric floats")
    size = _get(stored, "group_size", int, None) if strategy == "group" else None
    if strategy == "group" and (size is None or size <= 0):
        raise _Unreadable(f"its activations' group_size is {size!r}")
    return ActivationScheme("fp8" if kind == "float" else "int8", strategy, dynamic, symmetric, size)


# --- the other methods


def _fp8(stored: Mapping[str, Any]) -> QuantizationConfig:
    _expect(stored, "its", "fmt", "e4m3", "float8_e4m3fn", None)
    dynamic = _expect(stored, "its", "activation_scheme", "dynamic", "static", None) != "static"
    block = stored.get("weight_block_size")
    if block is None:
        activations = (
            ActivationScheme("fp8", "token") if dynamic else ActivationScheme("fp8", "tensor", False)
        )
        scheme = WeightScheme("fp8", "float", 8, "tensor", activations=activations)
    else:
        if not dynamic:
            raise _Unreadable("blocks of weights with static activation scales")
        size, rows = _block(block)
        activations = ActivationScheme("fp8", "group", group_size=size)
        scheme = WeightScheme(
            "fp8", "float", 8, "block", size, rows, activations=activations, scale_name="weight_scale_inv"
        )
    ignore = (*_HEADS, *_names(stored, "modules_to_not_convert", "ignored_layers"))
    return QuantizationConfig("fp8", (SchemeRule(("Linear",), scheme),), ignore, ignores_parts=True)


def _gptq(stored: Mapping[str, Any]) -> QuantizationConfig:
    bits = _expect(stored, "its", "bits", 4, 8)
    version = _expect(stored, "its", "checkpoint_format", "gptq", "gptq_v2", None)
    size = _get(stored, "group_size", int, -1)
    scheme = WeightScheme(
        "gptq",
        "int",
        bits,
        "group" if size > 0 else "channel",
        size if size > 0 else None,
        symmetric=False,  # zero points are stored whether or not they vary
        act_order=_get(stored, "desc_act", bool, False),
        zero_offset=0 if version == "gptq_v2" else 1,
        scale_name="scales",
    )
    heads = _HEADS if not _get(stored, "lm_head", bool, False) else _HEADS[1:]
    rule = SchemeRule(_gptq_targets(stored), scheme)
    return QuantizationConfig("gptq", (rule,), (*heads, *_gptq_skipped(stored)), ignores_parts=True)


def _gptq_targets(stored: Mapping[str, Any]) -> tuple[str, ...]:
    """Optimum's `modules_in_block_to_quantize`: ends of names, in lists of layers quantized together."""
    field = "modules_in_block_to_quantize"
    listed = _get(stored, field, list, [])
    names = [name for part in listed for name in (part if isinstance(part, list) else [part])]
    if not all(isinstance(name, str) and name for name in names):
        raise _Unreadable(f"its field {field!r} is no list of names")
    targets = tuple(f"re:.*{re.escape(name)}$" for name in names)
    _check_patterns(targets)
    return targets or ("Linear",)


def _gptq_skipped(stored: Mapping[str, Any]) -> tuple[str, ...]:
    """GPTQModel's `dynamic`: patterns of layers, here of those that are left as they are ("-:")."""
    dynamic = _get(stored, "dynamic", Mapping, {})
    if not all(isinstance(key, str) and key.startswith("-:") for key in dynamic):
        raise _Unreadable("it gives layers parameters of their own (dynamic)")
    patterns = tuple(f"re:{key[2:]}" for key in dynamic)
    _check_patterns(patterns)
    return patterns


def _awq(stored: Mapping[str, Any]) -> QuantizationConfig:
    _expect(stored, "its", "bits", 4)
    _expect(stored, "its", "version", "gemm", None)
    size = _get(stored, "group_size", int, -1)
    scheme = WeightScheme(
        "awq",
        "int",
        4,
        "group" if size > 0 else "channel",
        size if size > 0 else None,
        symmetric=False,
        scale_name="scales",
    )
    ignore = (*_HEADS, *_names(stored, "modules_to_not_convert"))
    return QuantizationConfig("awq", (SchemeRule(("Linear",), scheme),), ignore, ignores_parts=True)


def _mxfp4(stored: Mapping[str, Any]) -> QuantizationConfig:
    scheme = WeightScheme("mxfp4", "float", 4, "group", 32)
    ignore = _names(stored, "modules_to_not_convert")
    return QuantizationConfig("mxfp4", (SchemeRule(("GptOssExperts",), scheme),), ignore, ignores_parts=True)


# --- methods of libraries, by which transformers loads the layers


def _bitsandbytes(stored: Mapping[str, Any]) -> QuantizationConfig:
    four, eight = (_get(stored, f"load_in_{bits}bit", bool, False) for bits in (4, 8))
    if four == eight:
        raise _Unreadable("it asks for neither 4 nor 8 bits, or for both")
    for field in ("llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight"):
        _expect(stored, "its", field, False, None)
    _expect(stored, "its", "bnb_4bit_quant_type", "nf4", "fp4", None)
    _expect(stored, "its", "bnb_4bit_quant_storage", "uint8", None)
    return QuantizationConfig(
        "bitsandbytes", library_scheme="w4a16_bitsandbytes" if four else "w8a8_bitsandbytes"
    )


_TORCHAO = {"Int8WeightOnlyConfig": "w8a16_torchao", "Int8DynamicActivationInt8WeightConfig": "w8a8_torchao"}
"""Other kinds need the checkpoint's own dtype, a GPU or a package of kernels."""


def _torchao(stored: Mapping[str, Any]) -> QuantizationConfig:
    kinds = _get(stored, "quant_type", Mapping, {})
    if kinds.keys() != {"default"} or not isinstance(kinds["default"], Mapping):
        raise _Unreadable("its quant_type is not one kind for all layers, as torchao 0.15 and later write it")
    kind = _one_of(kinds["default"].get("_type"), "its quant_type's", "_type", *_TORCHAO)
    return QuantizationConfig("torchao", library_scheme=_TORCHAO[kind])


_READERS = {
    "compressed-tensors": _compressed_tensors,
    "fp8": _fp8,
    "gptq": _gptq,
    "awq": _awq,
    "mxfp4": _mxfp4,
    "bitsandbytes": _bitsandbytes,
    "torchao": _torchao,
}
