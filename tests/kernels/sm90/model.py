"""The model's and the state's kernels, in the variants that models use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from dodona.kernels.attention.arguments import AttentionShape, NewTokens, PagedSequences, QKNorm
from dodona.kernels.attention.decode import decode_attention_from_qkv, paged_decode_attention
from dodona.kernels.attention.decode_plan import DecodePlan, plan_decode_attention
from dodona.kernels.attention.prefill import paged_prefill_attention
from dodona.kernels.attention.rotary import qk_norm_rope_kv_write
from dodona.kernels.linear.activation import silu_and_mul
from dodona.kernels.linear.rms_norm import add_rms_norm, rms_norm
from dodona.kernels.linear.single_token_linear import single_token_linear
from dodona.kernels.state.block_copies import CacheTensors, copy_blocks
from dodona.kernels.state.host_copies import copy_to_host
from dodona.kernels.state.staged_writes import scatter_ragged
from dodona.kernels.state.step_state import prepare_inputs, update_state

# bfloat16 and float16 take the same paths (tile sizes follow an element's bytes), so float16 is tried once.
HEAD_SIZES = {
    torch.bfloat16: (16, 32, 64, 128, 256),
    torch.float16: (128,),
    torch.float32: (16, 64, 128, 256),
}
HIDDEN_SIZES = {torch.bfloat16: (64, 1024, 5120), torch.float16: (1024,), torch.float32: (64, 5120)}


def ints(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def norms(dtype: torch.dtype, hidden: int) -> None:
    x, residual, weight = (torch.zeros(s, dtype=dtype) for s in ((2, hidden), (2, hidden), (hidden,)))
    rms_norm(x=x, weight=weight, eps=1e-6)
    add_rms_norm(x=x, residual=residual, weight=weight, eps=1e-6)


def rotary(dtype: torch.dtype, head_size: int, q_heads: int, kv_heads: int, norm: bool) -> None:
    weight = torch.zeros(head_size, dtype=dtype)
    qk_norm_rope_kv_write(
        qkv=torch.zeros(2, (q_heads + 2 * kv_heads) * head_size, dtype=dtype),
        tokens=NewTokens(ints(2), ints(2), torch.zeros(8, head_size)),
        norm=QKNorm(weight, weight, 1e-6) if norm else None,
        kv_cache=torch.zeros(2, 2, kv_heads, 16, head_size, dtype=dtype),
        shape=AttentionShape(q_heads, kv_heads, head_size, 0.1),
    )


def make_sequences(batch: int) -> PagedSequences:
    return PagedSequences(ints(batch, 32), ints(batch), ints(batch))


def make_plan(dtype: torch.dtype, batch: int, shape: AttentionShape, *, includes_new_key: bool) -> DecodePlan:
    return plan_decode_attention(
        sequences=make_sequences(batch), shape=shape, row_bytes=shape.head_size * dtype.itemsize,
        includes_new_key=includes_new_key, num_multiprocessors=132,
    )  # fmt: skip


def decode(dtype: torch.dtype, head_size: int, group: int, window: int | None) -> None:
    shape = AttentionShape(2 * group, 2, head_size, 0.1, window)
    paged_decode_attention(
        q=torch.zeros(2, 2 * group, head_size, dtype=dtype),
        kv_cache=torch.zeros(2, 2, 2, 16, head_size, dtype=dtype),
        sequences=make_sequences(2),
        shape=shape,
        plan=make_plan(dtype, 2, shape, includes_new_key=True),
    )


def decode_from_qkv(dtype: torch.dtype, head_size: int, batch: int) -> None:
    shape = AttentionShape(4, 2, head_size, 0.1)
    decode_attention_from_qkv(
        qkv=torch.zeros(batch, 8 * head_size, dtype=dtype),
        tokens=NewTokens(ints(batch), ints(batch), torch.zeros(8, head_size)),
        norm=QKNorm(torch.zeros(head_size, dtype=dtype), torch.zeros(head_size, dtype=dtype), 1e-6),
        kv_cache=torch.zeros(2, 2, 2, 16, head_size, dtype=dtype),
        sequences=make_sequences(batch),
        shape=shape,
        plan=make_plan(dtype, batch, shape, includes_new_key=False),
    )


def one_row(dtype: torch.dtype) -> None:
    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    single_token_linear(x=zeros(1, 1024), weight=zeros(4096, 1024), norm_weight=zeros(1024), eps=1e-6)
    single_token_linear(x=zeros(1, 3072), weight=zeros(1024, 3072), residual=zeros(1, 1024))
    single_token_linear(
        x=zeros(1, 1024), weight=zeros(6144, 1024), norm_weight=zeros(1024), eps=1e-6, silu_mul=True
    )


def prefill(dtype: torch.dtype, head_size: int, group: int, window: int | None, longest: int) -> None:
    paged_prefill_attention(
        q=torch.zeros(2, 2 * group, head_size, dtype=dtype),
        kv_cache=torch.zeros(2, 2, 2, 16, head_size, dtype=dtype),
        sequences=make_sequences(2),
        query_start=ints(3),
        max_query_len=longest,
        shape=AttentionShape(2 * group, 2, head_size, 0.1, window),
    )


def state(tokens: int) -> None:
    cache = [torch.zeros(3, 2, 8, 16, 128, dtype=torch.bfloat16) for _ in range(2)]
    tensors = CacheTensors.of([half.transpose(1, 2) for c in cache for half in (c[:, 0], c[:, 1])])
    assert tensors is not None
    for pack in (True, False):
        packed = torch.zeros(2, 4 * 8 * 16 * 128, dtype=torch.bfloat16)
        copy_blocks(tensors, torch.zeros(2, dtype=torch.int64), packed, pack=pack)
    scatter_ragged(target=ints(4096), packed=ints(64), num_writes=3)
    prepare_inputs(
        rows=ints(2), query_start=ints(3), num_computed=ints(2), token_ids=ints(2, 4096),
        block_table=ints(2, 256), block_size=16, input_ids=ints(tokens), positions=ints(tokens),
        slots=ints(tokens), seq_lens=ints(2), turn=ints(1), num_turns=3,
    )  # fmt: skip
    prepare_inputs(
        rows=ints(2), query_start=ints(3), num_computed=ints(2), token_ids=ints(2, 4096),
        block_table=ints(2, 256), block_size=16, input_ids=ints(tokens), positions=ints(tokens),
        slots=ints(tokens), seq_lens=ints(2), offsets=ints(2), turn=ints(1), num_turns=3,
    )  # fmt: skip
    for index, ring in ((None, ints(3, 8, 2)), (ints(2), None)):
        update_state(
            rows=ints(2), seq_lens=ints(2), sample_index=index, sampled=ints(2), num_kept=ints(2),
            num_computed=ints(2), token_ids=ints(2, 4096), ring=ring, turn=None if ring is None else ints(1),
        )  # fmt: skip
    for index in (None, ints(2)):
        for sampled in (ints(2), ints(2).long()):
            update_state(
                rows=ints(2), seq_lens=ints(2), sample_index=index, sampled=sampled, num_computed=ints(2),
                token_ids=ints(2, 4096),
            )  # fmt: skip


CASES: dict[str, Callable[[], None]] = {
    "state, decode": partial(state, 2),
    "state, mixed": partial(state, 50),
    "host copies": lambda: copy_to_host(x=torch.ones(3), out=torch.ones(3)),
}
for dtype in HEAD_SIZES:
    name = str(dtype).removeprefix("torch.")
    for hidden in HIDDEN_SIZES[dtype]:
        CASES[f"norms {name} {hidden}"] = partial(norms, dtype, hidden)
    CASES[f"silu {name}"] = lambda dtype=dtype: silu_and_mul(gate_up=torch.zeros(2, 6144, dtype=dtype))
    CASES[f"one row {name}"] = partial(one_row, dtype)
    for head_size in HEAD_SIZES[dtype]:
        CASES[f"decode from qkv {name} {head_size}"] = partial(decode_from_qkv, dtype, head_size, 2)
        CASES[f"rotary {name} {head_size}"] = partial(rotary, dtype, head_size, 4, 2, head_size != 64)
        CASES[f"decode {name} {head_size}"] = partial(decode, dtype, head_size, 4, None)
        CASES[f"prefill {name} {head_size}"] = partial(prefill, dtype, head_size, 4, None, 500)
for group in (1, 2, 5, 8):
    CASES[f"decode group {group}"] = partial(decode, torch.bfloat16, 128, group, None)
    CASES[f"prefill group {group}"] = partial(prefill, torch.bfloat16, 128, group, None, 500)
for batch in (300, 2000):
    CASES[f"decode from qkv, batch {batch}"] = partial(decode_from_qkv, torch.bfloat16, 128, batch)
CASES["prefill long chunk"] = partial(prefill, torch.bfloat16, 128, 2, None, 2048)
CASES["rotary 40 heads"] = partial(rotary, torch.bfloat16, 128, 40, 8, True)
CASES["decode window"] = partial(decode, torch.bfloat16, 128, 4, 4096)
CASES["prefill window"] = partial(prefill, torch.bfloat16, 128, 4, 4096, 500)
CASES["prefill short chunk"] = partial(prefill, torch.bfloat16, 128, 2, None, 3)
