"""Experts, and widths of feed-forward layers, of which a mixture of experts has several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dodona.oracle.models.config_fields import Fields, Size

DENSE_FIELDS: Final = (
    "intermediate_size",
    "intermediate_size_mlp",
    "dense_intermediate_size",
    "prefix_dense_intermediate_size",
    "ffn_hidden_size",
    "ffn_dim",
    "decoder_ffn_dim",
    "n_inner",
    "dff",
    "dim_ff",
)
SHARED_FIELDS: Final = (
    "shared_intermediate_size",
    "shared_expert_intermediate_size",
    "shared_experts_intermediate_size",
    "moe_shared_expert_intermediate_size",
)
"""Widths of experts that every token passes."""
EXPERT_FIELDS: Final = ("moe_intermediate_size", "expert_ffn_hidden_size")
EXPERT_COUNTS: Final = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "num_routed_experts",
    "moe_num_primary_experts",
)
"""Numbers of routed experts."""
NO_SPLIT_LAYERS: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(
        (
            "afmoe", "aria_text", "flex_olmo", "granitemoe", "granitemoe_swa", "granitemoehybrid",
            "granitemoeshared", "hunyuan_v1_moe", "jamba", "lfm2_moe", "minimax_m2", "minimax_m3_vl_text",
            "mixtral", "olmoe", "phimoe",
        ),
        (),
    ),
    **dict.fromkeys(("cohere2_moe", "mellum"), ("mlp_layer_types", "first_k_dense_replace")),
    **dict.fromkeys(("qwen2_moe", "qwen3_moe", "qwen3_next"), ("mlp_only_layers", "decoder_sparse_step")),
}  # fmt: skip
"""Mixtures of experts of which ranks split no layer of `intermediate_size`, unless each expert: there is none
or transformers' plan leaves it whole. Of each the fields that may give it such layers, which ranks split."""
_NO_DENSE_LAYERS: Final[Mapping[str, Any]] = {"first_k_dense_replace": 0, "decoder_sparse_step": 1}
SHARED_COUNTS: Final = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
"""How many experts' widths the shared expert has, in families whose config.json does not give its own."""


def expert_widths(get: Fields) -> tuple[Size, ...]:
    """Widths of the routed experts of a mixture of experts; without one of their own they have
    `intermediate_size`. Raises UnreadableField."""
    own = _sizes(get, EXPERT_FIELDS)
    return own or _sizes(get, ("intermediate_size",))


def other_widths(get: Fields, model_type: str, experts: tuple[Size, ...]) -> tuple[Size, ...]:
    """Widths of dense feed-forward layers and of shared experts that ranks split; experts: widths of the
    routed ones, or nothing. Raises UnreadableField."""
    split = _sizes(get, (*DENSE_FIELDS, *SHARED_FIELDS))
    if experts and not _splits_layers(get, model_type):
        whole = get.of_layers("intermediate_size")
        split = tuple(size for size in split if size not in whole)
    joined = [
        Size(f"{count.field} * {width.field}", count.value * width.value)
        for count in _sizes(get, SHARED_COUNTS)
        for width in experts
    ]
    return (*split, *joined)


def _splits_layers(get: Fields, model_type: str) -> bool:
    """Whether a mixture of experts may have layers of `intermediate_size` that ranks split."""
    fields = NO_SPLIT_LAYERS.get(model_type)
    return fields is None or any(_gives_dense_layers(field, get.text.get(field)) for field in fields)


def _gives_dense_layers(field: str, value: object) -> bool:
    if field == "mlp_layer_types" and isinstance(value, list):
        return any(kind != "sparse" for kind in value)
    return value not in (None, [], _NO_DENSE_LAYERS.get(field))


def _sizes(get: Fields, fields: tuple[str, ...]) -> tuple[Size, ...]:
    return tuple(size for field in fields for size in get.of_layers(field))
