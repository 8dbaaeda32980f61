"""Kernels of prompts without context, and of small batches. See `kernel_cases`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional

from benchmarks.kernel_cases import BLOCK_SIZE, EPS, Case, Inputs, Pages, Scene, attention_shape
from benchmarks.roofline import Shape
from dodona.kernels.attention.arguments import NewTokens, QKNorm
from dodona.kernels.attention.decode import paged_decode_attention_reference
from dodona.kernels.attention.fresh import fresh_prefill_attention, supports_fresh_prefill
from dodona.kernels.attention.rotary import qk_norm_rope_kv_write_reference
from dodona.kernels.attention.small_batch import small_batch_attention
from dodona.kernels.linear.single_token_linear import fused_linear_reference, single_token_linear
from dodona.kernels.linear.small_batch_linear import small_batch_linear, supports_small_batch_linear


def fresh_prefill_cases(
    scene: Scene, label: str, shape: Shape, grid: Sequence[tuple[int, int]]
) -> Iterator[Case]:
    """Whole prompts over their own projection; grid: (prompts, tokens of each). None where the GPU can't."""
    q_heads, kv_heads, dim = shape.num_q_heads, shape.num_kv_heads, shape.head_size
    if not supports_fresh_prefill(device=scene.device, dtype=scene.dtype, head_size=dim, window=None):
        return
    for batch, length in grid:

        def make(batch: int = batch, length: int = length) -> Inputs:
            qkv = scene.random(batch * length, (q_heads + 2 * kv_heads) * dim)
            starts = scene.ints([i * length for i in range(batch + 1)])
            seq_lens = scene.ints([length] * batch)
            heads = qkv.view(batch, length, -1, dim).transpose(1, 2)
            q, k, v = heads.split([q_heads, kv_heads, kv_heads], dim=1)
            return Inputs(
                lambda: fresh_prefill_attention(
                    qkv=qkv, query_start=starts, seq_lens=seq_lens, max_query_len=length,
                    shape=attention_shape(shape), num_multiprocessors=scene.num_multiprocessors,
                ),
                lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
                None,
            )  # fmt: skip

        moved = batch * length * (2 * kv_heads + 2 * q_heads) * dim * scene.dtype.itemsize
        flops = 4 * batch * (length * (length + 1) // 2) * q_heads * dim
        yield Case("fresh_prefill_attention", f"{label} {batch} × {length} tokens", moved, flops, make)


def small_batch_cases(scene: Scene, label: str, shape: Shape, contexts: Sequence[int]) -> Iterator[Case]:
    """Attention of one token straight from the projection; products with what is fused to them, of one token
    and, where the GPU can, of 4 and 16."""
    yield from _product_cases(scene, label, shape, 1)
    if supports_small_batch_linear(device=scene.device, dtype=scene.dtype, sizes=[shape.hidden_size]):
        for tokens in (4, 16):
            yield from _product_cases(scene, label, shape, tokens)
    for context in contexts:
        moved = (2 * context * shape.num_kv_heads + 2 * shape.num_q_heads) * shape.head_size
        yield Case(
            "small_batch_attention",
            f"{label} batch 1 context {context}",
            moved * scene.dtype.itemsize,
            4 * context * shape.num_q_heads * shape.head_size,
            lambda context=context: _one_token_attention(scene, shape, context),
        )


def _product_cases(scene: Scene, label: str, shape: Shape, tokens: int) -> Iterator[Case]:
    hidden, size = shape.hidden_size, shape.intermediate_size
    q, kv = shape.num_q_heads * shape.head_size, shape.num_kv_heads * shape.head_size
    linear = single_token_linear if tokens == 1 else small_batch_linear
    for part, rows, columns, norm, gate, add in (
        ("qkv", q + 2 * kv, hidden, True, False, False),
        ("o", hidden, q, False, False, True),
        ("gate_up", 2 * size, hidden, True, True, False),
        ("down", hidden, size, False, False, True),
        ("lm_head", shape.vocab_size, hidden, True, False, False),
    ):
        if part == "lm_head" and tokens > 1:
            continue

        def make(
            rows: int = rows, columns: int = columns, norm: bool = norm, gate: bool = gate, add: bool = add
        ) -> Inputs:
            x, weight = scene.random(tokens, columns), scene.random(rows, columns) * columns**-0.5
            norm_weight = scene.random(columns) if norm else None
            residual = scene.random(tokens, rows) if add else None

            def kernel() -> torch.Tensor:
                return linear(
                    x=x, weight=weight, norm_weight=norm_weight, eps=EPS, residual=residual, silu_mul=gate
                )

            def verify() -> Sequence[tuple[torch.Tensor, torch.Tensor]]:
                expected = fused_linear_reference(x, weight, norm_weight, EPS, residual, gate)
                return [(kernel(), expected)]

            return Inputs(kernel, lambda: functional.linear(x, weight), verify)

        moved = (rows * columns + tokens * (columns + rows)) * scene.dtype.itemsize
        name = "single_token_linear" if tokens == 1 else "small_batch_linear"
        case = f"{label} {part} {tokens} tokens"
        yield Case(name, case, moved, 2 * tokens * rows * columns, make)


def _one_token_attention(scene: Scene, shape: Shape, context: int) -> Inputs:
    q_heads, kv_heads, dim = shape.num_q_heads, shape.num_kv_heads, shape.head_size
    pages = Pages(scene, 1, context, kv_heads, dim)
    qkv = scene.random(1, (q_heads + 2 * kv_heads) * dim)
    norm = QKNorm(scene.random(dim), scene.random(dim), EPS)
    block, offset = divmod(context - 1, BLOCK_SIZE)
    angles = torch.rand(context, dim // 2, device=scene.device) * 6
    new = NewTokens(
        positions=scene.ints([context - 1]),
        slots=pages.sequences.block_table[:, block] * BLOCK_SIZE + offset,
        cos_sin=torch.cat([angles.cos(), angles.sin()], dim=-1),
    )
    arrivals = scene.ints([0] * kv_heads)

    def kernel() -> torch.Tensor:
        return small_batch_attention(
            qkv=qkv, tokens=new, norm=norm, kv_cache=pages.kv_cache, sequences=pages.sequences,
            shape=attention_shape(shape), arrivals=arrivals,
        )  # fmt: skip

    def verify() -> Sequence[tuple[torch.Tensor, torch.Tensor]]:
        queries, cache = qk_norm_rope_kv_write_reference(
            qkv, new, norm, pages.kv_cache, attention_shape(shape)
        )
        expected = paged_decode_attention_reference(queries, cache, pages.sequences, attention_shape(shape))
        return [(kernel(), expected)]

    return Inputs(kernel, None, verify)
