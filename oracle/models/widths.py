"""Widths of feed-forward layers, of which a mixture of experts has several."""

from __future__ import annotations

from typing import Final

from dodona.oracle.models.config_fields import Fields

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
SHARED_COUNTS: Final = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
"""How many experts' widths the shared expert has, in families whose config.json does not give its own."""


def expert_widths(get: Fields) -> tuple[int, ...]:
    """Widths of the routed experts of a mixture of experts; without one of their own they have
    `intermediate_size`. Raises UnreadableField."""
    own = _sizes(get, EXPERT_FIELDS)
    return own or _sizes(get, ("intermediate_size",))


def other_widths(get: Fields, experts: tuple[int, ...]) -> tuple[int, ...]:
    """Widths of dense feed-forward layers and of shared experts; experts: widths of the routed ones, or
    nothing. Raises UnreadableField."""
    given = _sizes(get, (*DENSE_FIELDS, *SHARED_FIELDS))
    joined = {count * width for count in _sizes(get, SHARED_COUNTS) for width in experts}
    return tuple(sorted({*given, *joined}))


def _sizes(get: Fields, fields: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(sorted({size for field in fields for size in get.sizes(field) if size}))
