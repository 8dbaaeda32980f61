"""Experts, and widths of feed-forward layers, of which a mixture of experts has several."""

from __future__ import annotations

from typing import Final

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
SHARED_COUNTS: Final = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
"""How many experts' widths the shared expert has, in families whose config.json does not give its own."""


def expert_widths(get: Fields) -> tuple[Size, ...]:
    """Widths of the routed experts of a mixture of experts; without one of their own they have
    `intermediate_size`. Raises UnreadableField."""
    own = _sizes(get, EXPERT_FIELDS)
    return own or _sizes(get, ("intermediate_size",))


def other_widths(get: Fields, experts: tuple[Size, ...]) -> tuple[Size, ...]:
    """Widths of dense feed-forward layers and of shared experts; experts: widths of the routed ones, or
    nothing. Raises UnreadableField."""
    joined = [
        Size(f"{count.field} * {width.field}", count.value * width.value)
        for count in _sizes(get, SHARED_COUNTS)
        for width in experts
    ]
    return (*_sizes(get, (*DENSE_FIELDS, *SHARED_FIELDS)), *joined)


def _sizes(get: Fields, fields: tuple[str, ...]) -> tuple[Size, ...]:
    return tuple(size for field in fields for size in get.of_layers(field))
