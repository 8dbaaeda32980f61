"""What a model's weights must have, as far as config.json tells: its layers; of plain dense decoders each
tensor with its shape; a classifier; an MTP layer. What more a model has, loading it tells.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from dodona.oracle.errors import ConfigError
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.quantization import QuantizationConfig, WeightScheme
from dodona.oracle.models.stored_tensors import StoredTensor

Shape = tuple[int | None, ...]
"""A tensor's sizes; None: not known."""

Tensors = Mapping[str, StoredTensor]

_LAYER = re.compile(r"(.*?(?:^|\.)(?:layers|layer|h|blocks|block)\.)([0-9]{1,6})\.")

ONE_OF_SEVERAL: Final = ("dory", "hrm_text", "longcat_flash")
"""Model types that have fewer layers in their files than `num_hidden_layers` says."""

DENSE: Final = ("gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Model types whose tensors are all known."""

_MLP_BIAS: Final = ("granite", "llama", "smollm3")

MAX_OF_LAYER: Final = 5_000
"""Most tensors for each layer of a model. Those of 384 experts with three tensors a weight are 3,456."""

MAX_BESIDE: Final = 10_000
"""Most tensors beside: those of towers for pictures, and of what a model doesn't use, which takes as long to
load as what it uses."""

CLASSIFIERS: Final = ("score", "classifier", "classification_head", "logits_proj", "sequence_summary")
"""Parts of the names that a classifier's own tensors have."""


def check_tensors(
    directory: Path,
    model: ModelInfo,
    stored: Tensors,
    *,
    quantization: QuantizationConfig | None,
    has_lm_head: bool,
) -> None:
    """Raise ConfigError that names what a directory's tensors lack of a model, or have in another shape.

    quantization: how linear layers are stored. has_lm_head: whether the output layer is used.
    """
    most = MAX_BESIDE + MAX_OF_LAYER * (model.num_hidden_layers or 0)
    if len(stored) > most:
        raise ConfigError(
            f"{directory}: the safetensors have {len(stored)} tensors, more than the {most} that a model of "
            f"{model.num_hidden_layers} layers may have; check that weights and config.json belong together"
        )
    if model.is_multimodal:
        return  # which part of the files is the language model's, transformers knows
    _check_layers(directory, model, stored)
    if model.model_type not in DENSE or model.raw.get("model_type") != model.model_type:
        return
    plain = {name.removeprefix("model."): tensor for name, tensor in stored.items()}
    expected: dict[str, Shape | None] = dict(_dense(model))
    if has_lm_head and not model.tie_word_embeddings:
        expected["lm_head.weight"] = (model.vocab_size, model.hidden_size)
    if model.tie_word_embeddings and "lm_head.weight" in plain:
        expected.pop("embed_tokens.weight")
    if quantization is not None:
        expected = dict(_as_quantized(expected, quantization.with_names_of(stored)))
    unused = len(plain.keys() - expected)
    if unused > MAX_BESIDE:
        raise ConfigError(
            f"{directory}: the safetensors have {unused} tensors that the model does not use, more than "
            f"{MAX_BESIDE}; check that weights and config.json belong together"
        )
    missing = [name for name in expected if name not in plain]
    if missing:
        raise ConfigError(
            f"{directory}: the safetensors lack {len(missing)} weights of the model: {_first(missing)}; "
            "fetch the model again"
        )
    others = [
        f"{name} {list(plain[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if shape is not None and not _fits(plain[name].shape, shape)
    ]
    if others:
        raise ConfigError(
            f"{directory}: {len(others)} weights have other shapes than config.json says: {_first(others)}; "
            "check that weights and config.json belong together"
        )


def _as_quantized(
    expected: Mapping[str, Shape | None], quantization: QuantizationConfig
) -> Iterator[tuple[str, Shape | None]]:
    """The names of what a checkpoint stores for these tensors; of a quantized layer without shapes."""
    for name, shape in expected.items():
        module = name.rpartition(".")[0]
        is_linear = shape is not None and len(shape) == 2 and module != "embed_tokens"
        if not is_linear:
            yield name, shape
            continue
        if quantization.library_scheme is not None or quantization.unreadable is not None:
            continue
        scheme = quantization.scheme_of(module if module == "lm_head" else f"model.{module}")
        if scheme is None or scheme.layout == "online":
            yield name, shape
            continue
        for stored in _parts(scheme):
            yield f"{module}.{stored}", None


def _parts(scheme: WeightScheme) -> Iterator[str]:
    """Names of a quantized layer's tensors; scales beside a plain weight have several spellings."""
    if scheme.layout in ("gptq", "awq"):
        yield from ("qweight", "qzeros", "scales")
    elif scheme.layout == "pack-quantized":
        yield from ("weight_packed", "weight_scale")
    else:
        yield "weight"


def _fits(shape: Sequence[int], expected: Shape) -> bool:
    return len(shape) == len(expected) and all(
        theirs is None or mine == theirs for mine, theirs in zip(shape, expected, strict=True)
    )


def _check_layers(directory: Path, model: ModelInfo, stored: Tensors) -> None:
    count = model.num_hidden_layers
    if count is None or model.model_type in ONE_OF_SEVERAL or model.is_encoder_decoder:
        return
    groups: dict[str, set[int]] = {}
    for name in stored:
        match = _LAYER.match(name)
        if match is not None:
            groups.setdefault(match[1], set()).add(int(match[2]))
    if not groups:
        return
    lost = min((set(range(count)) - found for found in groups.values()), key=len)
    if lost:
        prefix = max(groups, key=lambda prefix: len(groups[prefix]))
        raise ConfigError(
            f"{directory}: the safetensors lack {len(lost)} of the {count} layers (num_hidden_layers): "
            f"{_first([f'{prefix}{index}' for index in sorted(lost)])}; fetch the model again, or correct "
            f"{model.file}"
        )


def _dense(model: ModelInfo) -> Iterator[tuple[str, Shape | None]]:
    """Every tensor but the output layer's, without "model." before its name."""
    hidden, inner, head = model.hidden_size, model.intermediate_size, model.head_size
    queries = None if head is None else head * (model.num_attention_heads or 0)
    keys = None if head is None else head * (model.num_key_value_heads or 0)
    yield "embed_tokens.weight", (model.vocab_size, hidden)
    yield "norm.weight", (hidden,)
    linears: Mapping[str, tuple[int | None, int | None]] = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    biased = _biased(model)
    for index in range(model.num_hidden_layers or 0):
        begin = f"layers.{index}."
        for name, shape in linears.items():
            yield f"{begin}{name}.weight", shape
            if name.rpartition("_")[0].rpartition(".")[2] in biased:
                yield f"{begin}{name}.bias", shape[:1]
        for name in _norms(model.model_type):
            yield f"{begin}{name}.weight", (hidden,)
        if model.model_type in ("qwen3", "gemma3_text"):
            yield f"{begin}self_attn.q_norm.weight", (head,)
            yield f"{begin}self_attn.k_norm.weight", (head,)


def _norms(model_type: str) -> tuple[str, ...]:
    both = ("input_layernorm", "post_attention_layernorm")
    is_double = model_type in ("gemma2", "gemma3_text")
    return (*both, "pre_feedforward_layernorm", "post_feedforward_layernorm") if is_double else both


def _biased(model: ModelInfo) -> tuple[str, ...]:
    """Linear layers with a bias, by what comes before "_proj"."""
    if model.model_type == "qwen2":
        return ("q", "k", "v")
    found: tuple[str, ...] = ()
    if model.model_type != "mistral" and model.text.get("attention_bias") is True:
        found += ("q", "k", "v", "o")
    if model.model_type in _MLP_BIAS and model.text.get("mlp_bias") is True:
        found += ("gate", "up", "down")
    return found


def check_classifier(directory: Path, stored: Tensors, num_labels: int) -> None:
    """Raise ConfigError where a directory's tensors have no classifier, or one of another number of
    classes."""
    own = [name for name in stored if not {*CLASSIFIERS}.isdisjoint(name.split(".")[:2])]
    if not own:
        raise ConfigError(
            f"{directory}: the safetensors have no classifier (tensors such as score.weight, "
            "classifier.weight); choose a model that was trained to classify, or set convert='embed'"
        )
    for name in ("score.weight", "classifier.weight", "classifier.out_proj.weight"):
        if name in stored and stored[name].shape[:1] != (num_labels,):
            raise ConfigError(
                f"{directory}: {name} has {list(stored[name].shape)[:1]} classes, and config.json has "
                f"{num_labels} (id2label, num_labels); correct config.json"
            )


_TARGET_LAYER: Final = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,5})\.(.+)", re.DOTALL)

_QWEN3_NEXT: Final = {
    "mtp.fc.": "eh_proj.",
    "mtp.pre_fc_norm_embedding.": "enorm.",
    "mtp.pre_fc_norm_hidden.": "hnorm.",
    "mtp.norm.": "norm.",
    "mtp.layers.0.": "block.",
}
"""Beginnings of an MTP layer's names, and of their names in `mtp_name`."""

_DEEPSEEK: Final = {
    "eh_proj.": "eh_proj.",
    "enorm.": "enorm.",
    "hnorm.": "hnorm.",
    "shared_head.norm.": "norm.",
}
"""The same after `model.layers.N.`, N the number of the target's layers; all others are the block's."""

_TARGETS: Final = ("embed_tokens.", "shared_head.head.", "rotary_emb.")
"""Copies of the target's tensors in a DeepSeek layer."""


def mtp_name(name: str, num_layers: int) -> str | None:
    """The name of a tensor of the first MTP layer without what its family puts before it: `eh_proj.`,
    `enorm.`, `hnorm.`, `norm.`, `block.`; None for other tensors."""
    for begin, mine in _QWEN3_NEXT.items():
        if name.startswith(begin):
            return mine + name.removeprefix(begin)
    match = re.fullmatch(rf"model\.layers\.{num_layers}\.(.+)", name)
    if match is None or match[1].startswith(_TARGETS):
        return None
    for begin, mine in _DEEPSEEK.items():
        if match[1].startswith(begin):
            return mine + match[1].removeprefix(begin)
    return f"block.{match[1]}"


def check_mtp_tensors(directory: Path, names: Collection[str], num_layers: int) -> None:
    """Raise ConfigError where a checkpoint with tensors of these names has no MTP layer, or not all of it.

    The layer is as one of the target's own: what each of those has beside the feed-forward part, it has too.
    """
    found = {mine for name in names if (mine := mtp_name(name, num_layers)) is not None}
    if not found:
        raise ConfigError(
            f"{directory}: the checkpoint has no MTP layer: no tensors 'mtp.*' or "
            f"'model.layers.{num_layers}.*'; choose another speculative_config.method"
        )
    common = {name for name in _common(names, num_layers) if not name.startswith("block.mlp.")}
    wrong = {f"{part}.weight" for part in ("eh_proj", "enorm", "hnorm", "norm")} | common
    wrong -= found
    if wrong:
        raise ConfigError(
            f"{directory}: tensors of the MTP layer are missing or do not fit: {_first(sorted(wrong))}"
        )


def _common(names: Iterable[str], num_layers: int) -> set[str]:
    """What each of the target's layers has, with "block." before it."""
    layers: Counter[str] = Counter()
    for name in names:
        match = _TARGET_LAYER.fullmatch(name)
        if match is not None and int(match[1]) < num_layers:
            layers[f"block.{match[2]}"] += 1
    return {name for name, count in layers.items() if count == num_layers}


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
