"""Token masks and biases: what a request forbids or favours, written into fp32 copies of its logits.

`prepare_scores` makes the copy (and keeps only allowed ids where asked); the others edit it in place, each
with one program per row or per bad word, and touch only the rows that ask. A row asks by its own state: a
table entry per state row, so nothing here depends on tokens the host has read.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from dodona.kernels.sampling import reference
from dodona.kernels.sampling.common import load_scores, vocab_block

NO_TOKEN = -1
"""Fills the unused places of id tables."""


def pack_token_bits(token_ids: Tensor, vocab: int) -> Tensor:
    """Token ids as a set of bits, on the CPU: int32 [ceil(vocab / 32)], t is bit t % 32 of word t // 32."""
    ids = token_ids.numpy()
    member = np.zeros((vocab + 31) // 32 * 32, dtype=np.uint8)
    member[ids[(ids >= 0) & (ids < vocab)]] = 1
    return torch.from_numpy(np.packbits(member, bitorder="little").view("<i4"))


def unpack_token_bits(words: Tensor, vocab: int) -> Tensor:
    """The inverse of `pack_token_bits` for [..., words]: bool [..., vocab]."""
    return ((words[..., None] >> torch.arange(32, device=words.device)) & 1).flatten(-2)[..., :vocab].bool()


def prepare_scores(
    logits: Tensor,
    *,
    idx_mapping: Tensor,
    allowed_bits: Tensor | None = None,
    is_restricted: Tensor | None = None,
) -> Tensor:
    """An fp32 copy of `logits`: NaN is -inf, large values are capped, and what a row disallows is -inf.

    Args:
        logits: [n, vocab], any floating dtype, unit stride along the vocabulary.
        idx_mapping: [n] integer, state row of each batch row.
        allowed_bits: [rows, ceil(vocab / 32)] int32 (see `pack_token_bits`), or None where no row is
            restricted.
        is_restricted: [rows] integer, non-zero where the row has a set of allowed ids; goes with
            `allowed_bits`.
    Returns: [n, vocab] fp32.
    """
    n, vocab = logits.shape
    scores = torch.empty(n, vocab, dtype=torch.float32, device=logits.device)
    if n == 0:
        return scores
    block = vocab_block(n, vocab)
    words = 0 if allowed_bits is None else allowed_bits.shape[1]
    _prepare_kernel[(n, triton.cdiv(vocab, block))](
        logits, logits.stride(0), scores, idx_mapping, allowed_bits, words, is_restricted, vocab,
        BLOCK=block, HAS_ALLOWED=allowed_bits is not None,
    )  # fmt: skip
    return scores


def prepare_scores_reference(
    logits: Tensor,
    *,
    idx_mapping: Tensor,
    allowed_bits: Tensor | None = None,
    is_restricted: Tensor | None = None,
) -> Tensor:
    """What `prepare_scores` computes, in plain torch."""
    scores = reference.sanitize(logits)
    if allowed_bits is None or is_restricted is None:
        return scores
    state = idx_mapping.long()
    allowed = unpack_token_bits(allowed_bits[state], logits.shape[1]) | (is_restricted[state] == 0)[:, None]
    return scores.masked_fill(~allowed, -torch.inf)


def mask_stop_tokens(
    scores: Tensor,
    *,
    idx_mapping: Tensor,
    positions: Tensor,
    prompt_lens: Tensor,
    min_tokens: Tensor,
    stop_ids: Tensor,
) -> None:
    """Forbid, in place, the ids that end a request while it has generated fewer than its `min_tokens`.

    Args:
        scores: [n, vocab] fp32.
        idx_mapping: [n] integer, state row of each batch row.
        positions: [n] integer, absolute position of the token to be drawn.
        prompt_lens, min_tokens: [rows] int64, per state row.
        stop_ids: [rows, width] int32; ids outside the vocabulary (such as `NO_TOKEN`) are passed over.
    """
    n, vocab = scores.shape
    if n == 0:
        return
    width = stop_ids.shape[1]
    _mask_stop_tokens_kernel[(n,)](
        scores, idx_mapping, positions, prompt_lens, min_tokens, stop_ids, width, vocab,
        BLOCK=32, num_warps=1,
    )  # fmt: skip


def mask_stop_tokens_reference(
    scores: Tensor,
    *,
    idx_mapping: Tensor,
    positions: Tensor,
    prompt_lens: Tensor,
    min_tokens: Tensor,
    stop_ids: Tensor,
) -> None:
    """What `mask_stop_tokens` does, in plain torch."""
    for i, state in enumerate(idx_mapping.tolist()):
        if int(positions[i]) - int(prompt_lens[state]) < int(min_tokens[state]):
            for token in stop_ids[state].tolist():
                if 0 <= token < scores.shape[1]:
                    scores[i, token] = -torch.inf


def mask_bad_words(
    scores: Tensor,
    *,
    idx_mapping: Tensor,
    positions: Tensor,
    prompt_lens: Tensor,
    token_ids: Tensor,
    word_tokens: Tensor,
    word_ends: Tensor,
    max_words: int,
) -> None:
    """Forbid, in place, the last token of each bad word whose other tokens are the last ones generated.

    Args:
        scores: [n, vocab] fp32.
        idx_mapping: [n] integer, state row of each batch row.
        positions: [n] integer, absolute position of the token to be drawn.
        prompt_lens: [rows] int64, per state row.
        token_ids: [rows, max_model_len] int32, token history; entries before the position are read.
        word_tokens: [rows, width] int32, a row's words one after another.
        word_ends: [rows, most words] int32, where each word ends in `word_tokens`; `NO_TOKEN` past the last
            word.
        max_words: most words of a scheduled row, <= most words.
    """
    n, vocab = scores.shape
    if n == 0 or max_words == 0:
        return
    _mask_bad_words_kernel[(n, max_words)](
        scores, idx_mapping, positions, prompt_lens, token_ids, token_ids.stride(0),
        word_tokens, word_tokens.stride(0), word_ends, word_ends.stride(0), vocab, num_warps=1,
    )  # fmt: skip


def mask_bad_words_reference(
    scores: Tensor,
    *,
    idx_mapping: Tensor,
    positions: Tensor,
    prompt_lens: Tensor,
    token_ids: Tensor,
    word_tokens: Tensor,
    word_ends: Tensor,
    max_words: int,
) -> None:
    """What `mask_bad_words` does, in plain torch."""
    for i, state in enumerate(idx_mapping.tolist()):
        generated = token_ids[state, int(prompt_lens[state]) : int(positions[i])].tolist()
        start = 0
        for end in word_ends[state, :max_words].tolist():
            if end == NO_TOKEN:
                break
            *prefix, last = word_tokens[state, start:end].tolist()
            start = end
            matches = len(prefix) <= len(generated) and generated[len(generated) - len(prefix) :] == prefix
            if matches and 0 <= last < scores.shape[1]:
                scores[i, last] = -torch.inf


def add_logit_bias(scores: Tensor, *, idx_mapping: Tensor, bias_ids: Tensor, bias_values: Tensor) -> None:
    """Add biases in place.

    Args:
        scores: [n, vocab] fp32.
        idx_mapping: [n] integer, state row of each batch row.
        bias_ids: [rows, width] int32, distinct within a row; ids outside the vocabulary are passed over.
        bias_values: [rows, width] fp32.
    """
    n, vocab = scores.shape
    if n == 0:
        return
    _add_logit_bias_kernel[(n,)](
        scores, idx_mapping, bias_ids, bias_values, bias_ids.shape[1], vocab, BLOCK=256, num_warps=2
    )


def add_logit_bias_reference(
    scores: Tensor, *, idx_mapping: Tensor, bias_ids: Tensor, bias_values: Tensor
) -> None:
    """What `add_logit_bias` does, in plain torch."""
    for i, state in enumerate(idx_mapping.tolist()):
        for token, value in zip(bias_ids[state].tolist(), bias_values[state].tolist(), strict=True):
            if 0 <= token < scores.shape[1]:
                scores[i, token] += value


@triton.jit
def _prepare_kernel(
    logits_ptr,  # [n, vocab]
    logits_stride,
    scores_ptr,  # [n, vocab]
    idx_mapping_ptr,  # [n]
    bits_ptr,  # [rows, words] or None
    words,
    is_restricted_ptr,  # [rows] or None
    vocab,
    BLOCK: tl.constexpr,
    HAS_ALLOWED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    state = tl.load(idx_mapping_ptr + row)
    if state < 0:
        return
    tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = tokens < vocab
    scores = load_scores(logits_ptr + row * logits_stride, tokens, inside)
    if HAS_ALLOWED:
        restricted = tl.load(is_restricted_ptr + state) != 0
        word_ptr = bits_ptr + state.to(tl.int64) * words + tokens // 32
        word = tl.load(word_ptr, mask=inside & restricted, other=-1)
        scores = tl.where(((word >> (tokens % 32)) & 1) != 0, scores, float("-inf"))
    tl.store(scores_ptr + row * vocab + tokens, scores, mask=inside)


# Tables grow with what requests list: their widths must not mean new kernels.
@triton.jit(do_not_specialize=["width"])
def _mask_stop_tokens_kernel(
    scores_ptr,  # [n, vocab]
    idx_mapping_ptr,  # [n]
    positions_ptr,  # [n]
    prompt_lens_ptr,  # [rows]
    min_tokens_ptr,  # [rows]
    stop_ids_ptr,  # [rows, width]
    width,
    vocab,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    state = tl.load(idx_mapping_ptr + row)
    if state < 0:
        return
    generated = tl.load(positions_ptr + row) - tl.load(prompt_lens_ptr + state)
    early = generated < tl.load(min_tokens_ptr + state)
    for first in range(0, width, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        ids = tl.load(stop_ids_ptr + state * width + columns, mask=columns < width, other=-1)
        tl.store(scores_ptr + row * vocab + ids, float("-inf"), mask=early & (ids >= 0) & (ids < vocab))


@triton.jit(do_not_specialize=["word_tokens_stride", "word_ends_stride"])
def _mask_bad_words_kernel(
    scores_ptr,  # [n, vocab]
    idx_mapping_ptr,  # [n]
    positions_ptr,  # [n]
    prompt_lens_ptr,  # [rows]
    token_ids_ptr,  # [rows, max_model_len]
    token_ids_stride,
    word_tokens_ptr,  # [rows, width]
    word_tokens_stride,
    word_ends_ptr,  # [rows, most words]
    word_ends_stride,
    vocab,
):
    row = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1)
    state = tl.load(idx_mapping_ptr + row).to(tl.int64)
    if state < 0:
        return
    ends_ptr = word_ends_ptr + state * word_ends_stride
    end = tl.load(ends_ptr + word)
    if end < 0:
        return
    start = tl.load(ends_ptr + word - 1, mask=word > 0, other=0)
    tokens_ptr = word_tokens_ptr + state * word_tokens_stride
    position = tl.load(positions_ptr + row)
    prefix = end - 1 - start
    matches = prefix <= position - tl.load(prompt_lens_ptr + state)
    if matches:
        history_ptr = token_ids_ptr + state * token_ids_stride + position - prefix
        for i in range(prefix):
            matches = matches & (tl.load(history_ptr + i) == tl.load(tokens_ptr + start + i))
    last = tl.load(tokens_ptr + end - 1)
    tl.store(scores_ptr + row * vocab + last, float("-inf"), mask=matches & (last >= 0) & (last < vocab))


@triton.jit(do_not_specialize=["width"])
def _add_logit_bias_kernel(
    scores_ptr,  # [n, vocab]
    idx_mapping_ptr,  # [n]
    bias_ids_ptr,  # [rows, width]
    bias_values_ptr,  # [rows, width]
    width,
    vocab,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    state = tl.load(idx_mapping_ptr + row).to(tl.int64)
    if state < 0:
        return
    for first in range(0, width, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        ids = tl.load(bias_ids_ptr + state * width + columns, mask=columns < width, other=-1)
        inside = (ids >= 0) & (ids < vocab)
        bias = tl.load(bias_values_ptr + state * width + columns, mask=inside, other=0.0)
        places = scores_ptr + row * vocab + ids
        tl.store(places, tl.load(places, mask=inside, other=0.0) + bias, mask=inside)
