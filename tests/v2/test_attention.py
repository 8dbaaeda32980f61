"""Which kernels a step's attention is planned for, and with what."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dodona.kernels.attention.arguments import AttentionShape
from dodona.runners.device.forward_inputs import ForwardInputs
from dodona.runners.v2 import attention as v2_attention
from dodona.runners.v2.attention import (
    Attention,
    DecodeAttention,
    MixedAttention,
    SingleTokenAttention,
    SmallBatchAttention,
)
from tests.v2.drive import DEVICE

SHAPE = AttentionShape(num_q_heads=4, num_kv_heads=2, head_size=16, scale=0.25)


def ints(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32, device=DEVICE)


def counting(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.int32, device=DEVICE)


def make_attention(shape: AttentionShape = SHAPE) -> Attention:
    cos_sin = torch.zeros(64, shape.head_size, device=DEVICE)
    return Attention(shape=shape, dtype=torch.float32, cos_sin=cos_sin)


def make_inputs(decodes: int, fresh: tuple[int, ...] = (), continued: tuple[int, ...] = ()) -> ForwardInputs:
    """Inputs of so many decodes, and of chunks of such lengths without and with tokens before them."""
    chunks = [*fresh, *continued]
    batch, tokens = decodes + len(chunks), decodes + sum(chunks)
    return ForwardInputs(
        input_ids=ints(tokens), positions=ints(tokens), slots=ints(tokens),
        rows=counting(batch), query_start=counting(batch + 1), seq_lens=10 + counting(batch),
        block_table=ints(batch, 4),
        arrivals=ints(2 * batch), num_decodes=decodes, max_fresh_len=max(fresh, default=0),
        max_continued_len=max(continued, default=0),
    )  # fmt: skip


def test_decodes_alone() -> None:
    inputs = make_inputs(5)
    planned = make_attention().plan(inputs)
    assert isinstance(planned, DecodeAttention)
    assert not planned.plan.includes_new_key  # attention itself writes it
    assert planned.sequences.rows is inputs.rows
    assert planned.arrivals is inputs.arrivals


def test_a_mixed_step_is_cut_where_its_decodes_end() -> None:
    inputs = make_inputs(3, fresh=(20,), continued=(7, 30))
    planned = make_attention().plan(inputs)
    assert isinstance(planned, MixedAttention)
    assert planned.decodes is not None
    assert planned.decodes.count == 3
    assert planned.decodes.plan.includes_new_key  # all keys are written before attention
    assert planned.decodes.sequences.rows.tolist() == [0, 1, 2]
    assert planned.sequences.rows.tolist() == [3, 4, 5]
    assert planned.sequences.seq_lens.tolist() == [13, 14, 15]
    assert planned.query_start.tolist() == [3, 4, 5, 6]
    # Fresh prompts of 20 tokens are too short for a kernel of their own: all chunks attend over the cache.
    assert (planned.max_fresh_len, planned.max_paged_len) == (0, 30)
    assert not planned.keys_in_place


def test_prompts_alone_have_no_decodes() -> None:
    planned = make_attention().plan(make_inputs(0, fresh=(20,)))
    assert isinstance(planned, MixedAttention)
    assert planned.decodes is None
    assert planned.max_paged_len == 20


@pytest.mark.parametrize(
    ("fresh", "continued", "lengths"),
    [
        ((200,), (), (200, 0)),  # nothing is left for the paged kernel
        ((200, 9), (7, 300), (200, 300)),
        ((127,), (7,), (0, 127)),  # too short to be worth while
        ((128,), (7,), (128, 7)),
        ((), (300,), (0, 300)),
    ],
)
def test_long_fresh_prompts_attend_over_the_projection_on_hopper(fresh, continued, lengths, monkeypatch):
    monkeypatch.setattr(v2_attention, "supports_fresh_prefill", lambda **kwargs: True)
    planned = make_attention().plan(make_inputs(1, fresh, continued))
    assert isinstance(planned, MixedAttention)
    assert (planned.max_fresh_len, planned.max_paged_len) == lengths
    assert planned.keys_in_place


@pytest.mark.parametrize(
    ("tokens", "shape", "kind"),
    [
        (1, SHAPE, SingleTokenAttention),
        (2, SHAPE, SmallBatchAttention),
        (3, SHAPE, DecodeAttention),
        (1, AttentionShape(9, 1, 16, 0.25), DecodeAttention),  # a group that the kernel does not hold
        (1, AttentionShape(8, 1, 128, 0.25), SingleTokenAttention),  # 4096 bytes of fp32
        (1, AttentionShape(16, 2, 128, 0.25), SmallBatchAttention),  # too many for the output projection
    ],
    ids=str,
)
def test_small_batches(tokens, shape, kind) -> None:
    assert type(make_attention(shape).plan_small_batch(make_inputs(tokens), leave_parts=True)) is kind


@pytest.mark.parametrize(
    ("tokens", "has_drafts", "window", "group", "expected"),
    [
        (1, False, None, 4, 4608),
        (2, False, None, 4, 1280),
        (2, False, None, 2, 3584),
        (3, False, None, 4, None),  # `stream` for any length
        (5, True, None, 4, 1024),
        (1, False, None, 9, None),
        (1, False, 4608, 4, None),  # no sequence has more keys than the window
        (1, False, 8192, 4, 4608),
    ],
)
def test_when_a_sequence_is_long(tokens, has_drafts, window, group, expected, monkeypatch) -> None:
    shape = AttentionShape(2 * group, 2, 16, 0.25, window)
    assert make_attention(shape).long_context(tokens, has_drafts=has_drafts) is None  # no `stream` there
    monkeypatch.setattr(v2_attention, "supports_streams", lambda **kwargs: True)
    assert make_attention(shape).long_context(tokens, has_drafts=has_drafts) == expected


def test_long_sequences_have_the_plan_of_large_batches() -> None:
    for tokens in (1, 2):
        inputs = replace(make_inputs(tokens), has_long=True)
        assert isinstance(make_attention().plan_small_batch(inputs, leave_parts=True), DecodeAttention)
