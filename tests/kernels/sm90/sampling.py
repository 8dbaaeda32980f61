"""Launches of the sampling kernels, with bf16 and fp32 logits."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from dodona.kernels.sampling import acceptance, masks
from dodona.kernels.sampling.filters import filter_cuts
from dodona.kernels.sampling.grammar import mask_by_grammar
from dodona.kernels.sampling.gumbel import gumbel_sample, gumbel_sample_and_append
from dodona.kernels.sampling.logprobs import given_logprobs, token_logprobs
from dodona.kernels.sampling.penalties import DraftsBefore, apply_penalties, count_kept_tokens, count_tokens

ROWS, VOCAB, WORDS = 8, 151_936, 151_936 // 32
FLOATS = torch.zeros(ROWS)
INTEGERS = torch.zeros(ROWS, dtype=torch.int64)


def _batch(n: int) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(n, dtype=torch.int32) for name in ("idx_mapping", "positions")}


def _mapping(n: int) -> dict[str, torch.Tensor]:
    return {"idx_mapping": torch.zeros(n, dtype=torch.int32)}


def _table(width: int) -> torch.Tensor:
    return torch.zeros(ROWS, width, dtype=torch.int32)


def _gumbel(dtype: torch.dtype, n: int, cuts: bool) -> None:
    gumbel_sample(
        torch.zeros(n, VOCAB, dtype=dtype),
        **_batch(n),
        seeds=INTEGERS,
        inverse_temperatures=FLOATS,
        fallback=INTEGERS,
        cuts=torch.zeros(n) if cuts else None,
    )


def _gumbel_and_append(dtype: torch.dtype, n: int) -> None:
    gumbel_sample_and_append(
        torch.zeros(n, VOCAB, dtype=dtype),
        **_batch(n),
        seeds=INTEGERS,
        inverse_temperatures=FLOATS,
        fallback=INTEGERS,
        num_computed=torch.zeros(ROWS, dtype=torch.int32),
        token_ids=_table(4096),
        ring=_table(256),
        turn=torch.zeros(1, dtype=torch.int32),
    )


def _filters(dtype: torch.dtype) -> None:
    filter_cuts(
        torch.zeros(4, VOCAB, dtype=dtype),
        **_mapping(4),
        inverse_temperatures=FLOATS,
        log_min_p=FLOATS,
        top_k=INTEGERS,
        top_p=FLOATS,
    )


def _logprobs(dtype: torch.dtype, n: int, top_n: int, some: bool) -> None:
    rows = torch.zeros(n, dtype=torch.int32) if some else None
    token_logprobs(
        torch.zeros(n, VOCAB, dtype=dtype), torch.zeros(n, dtype=torch.int32), top_n=top_n, rows=rows
    )


def _given_logprobs(dtype: torch.dtype) -> None:
    entries = torch.zeros(5, dtype=torch.int32)
    given_logprobs(torch.zeros(2, VOCAB, dtype=dtype), rows=entries, token_ids=entries)


def _grammar(m: int) -> None:
    rows = torch.zeros(m, dtype=torch.int64)
    mask_by_grammar(
        torch.zeros(ROWS, VOCAB), batch_rows=rows, bitmask=torch.zeros(m, WORDS, dtype=torch.int32)
    )


def _prepare(dtype: torch.dtype, restricted: bool) -> None:
    logits = torch.zeros(4, VOCAB, dtype=dtype)
    bits = {"allowed_bits": _table(WORDS), "is_restricted": INTEGERS} if restricted else {}
    masks.prepare_scores(logits, **_mapping(4), **bits)


def _edits() -> None:
    scores = torch.zeros(4, VOCAB)
    masks.mask_stop_tokens(scores, **_batch(4), prompt_lens=INTEGERS, min_tokens=INTEGERS, stop_ids=_table(3))
    masks.mask_bad_words(
        scores,
        **_batch(4),
        prompt_lens=INTEGERS,
        token_ids=_table(4096),
        word_tokens=_table(20),
        word_ends=_table(7),
        max_words=7,
    )
    masks.add_logit_bias(scores, **_mapping(4), bias_ids=_table(300), bias_values=torch.zeros(ROWS, 300))


def _penalties(counts_dtype: torch.dtype) -> None:
    counts = torch.zeros(ROWS, VOCAB, dtype=counts_dtype)
    apply_penalties(
        torch.zeros(4, VOCAB),
        **_mapping(4),
        is_penalized=INTEGERS,
        repetition=FLOATS,
        frequency=FLOATS,
        presence=FLOATS,
        prompt_bits=_table(WORDS),
        output_counts=counts,
    )
    count_tokens(counts, **_mapping(4), token_ids=torch.zeros(4, dtype=torch.int32), is_penalized=INTEGERS)


def _drafts(counts_dtype: torch.dtype) -> None:
    counts, ints = torch.zeros(ROWS, VOCAB, dtype=counts_dtype), torch.zeros(5, dtype=torch.int32)
    apply_penalties(
        torch.zeros(5, VOCAB),
        **_mapping(5),
        is_penalized=INTEGERS,
        repetition=FLOATS,
        frequency=FLOATS,
        presence=FLOATS,
        prompt_bits=_table(WORDS),
        output_counts=counts,
        drafts=DraftsBefore(ints, ints, _table(4096)),
    )
    kept = acceptance.count_kept_tokens(ints, **_batch(5), offsets=ints, history=_table(4096), max_offset=4)
    count_kept_tokens(
        counts, **_mapping(5), token_ids=ints, num_kept=kept, is_penalized=INTEGERS, max_offset=4
    )


CASES: dict[str, Callable[[], None]] = {
    "edits": _edits,
    "grammar-one": functools.partial(_grammar, 1),
    "grammar-many": functools.partial(_grammar, ROWS),
    "penalties-int16": functools.partial(_penalties, torch.int16),
    "drafts-int16": functools.partial(_drafts, torch.int16),
    "drafts-int32": functools.partial(_drafts, torch.int32),
    "penalties-int32": functools.partial(_penalties, torch.int32),
}
for _dtype in (torch.bfloat16, torch.float32):
    _name = str(_dtype).removeprefix("torch.")
    CASES |= {
        f"gumbel-{_name}": functools.partial(_gumbel, _dtype, 1, False),
        f"gumbel-append-{_name}": functools.partial(_gumbel_and_append, _dtype, 8),
        f"gumbel-cuts-{_name}": functools.partial(_gumbel, _dtype, 8, True),
        f"filters-{_name}": functools.partial(_filters, _dtype),
        f"logprobs-own-{_name}": functools.partial(_logprobs, _dtype, 2, 0, False),
        f"logprobs-top20-{_name}": functools.partial(_logprobs, _dtype, 8, 20, True),
        f"logprobs-top64-{_name}": functools.partial(_logprobs, _dtype, 1, 64, False),
        f"logprobs-top100-{_name}": functools.partial(_logprobs, _dtype, 2, 100, False),
        f"logprobs-given-{_name}": functools.partial(_given_logprobs, _dtype),
        f"prepare-{_name}": functools.partial(_prepare, _dtype, False),
        f"prepare-allowed-{_name}": functools.partial(_prepare, _dtype, True),
    }
