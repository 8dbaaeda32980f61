"""Sampling in plain torch: what runner V1 uses, and the reference of V2's sampler.

The stages that V2's kernels compute, too, are defined in `dodona.kernels.sampling.reference`.

A row's logits go through these stages, in fp32 and in this order. A stage that the row's parameters leave off
is the identity.

1. `allowed_token_ids`: every other token becomes -inf; then likewise what the grammar of
   `structured_outputs` does not allow.
2. `min_tokens`: while fewer tokens have been generated, the ids that would end the request become -inf.
3. `bad_words`: the last token of a bad word becomes -inf where the generated tokens end with its other
   tokens. Prompt tokens do not count towards a match.
4. `logit_bias`: added.
5. Penalties: repetition (tokens of the prompt or the output), then frequency and presence (output only).
6. `temperature`: logits are multiplied by its fp32 reciprocal. Greedy rows stop here and take the argmax.
7. `min_p`, `top_k`, `top_p`, each on the distribution that the former left. **Ties are kept**: every token
   whose logit equals that of the last token kept is kept too, so that the result never depends on an order
   among equals.
8. Gumbel-max: argmax of logit + Gumbel noise, which is a draw from the softmax. The noise is a pure function
   of (seed, position, token), so a request's tokens do not depend on what shares its batch. Equal sums: the
   lowest id wins.

Unusual logits: NaN counts as -inf, and what exceeds 1e30 (+inf too) as 1e30. Logits that are NaN or -inf
throughout say nothing, and `NO_TOKEN` ends the request with an error. Where masks leave no token, the row
yields its *fallback token*: the lowest of its allowed ids, else the lowest id that ends the request, else 0.
A constraint of allowed ids is therefore never broken; `min_tokens` and `bad_words` give way. With a grammar
the fallback token is the lowest that it allows, among the allowed ids if one of these is: all else gives way
to a grammar.

Log-probabilities are those of the raw logits: log_softmax before every stage above.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dodona.kernels.sampling.reference import (
    LOGIT_CAP,
    gumbel_argmax,
    logprobs_and_ranks,
    sanitize,
    thresholds,
)
from dodona.runners.sampling.params import GREEDY_BELOW
from dodona.runners.sampling.token_logprobs import TokenLogprobs

if TYPE_CHECKING:
    import numpy.typing as npt

    from dodona.runners.sampling.params import SamplingParams


NO_TOKEN = -1
"""In place of a token where none could be drawn: the request ends with an error."""


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """One row to sample for: its parameters and all the state that they look at."""

    params: SamplingParams
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    """Tokens generated so far."""
    seed: int
    """In [0, 2**63)."""
    stop_token_ids: Sequence[int] = ()
    """Ids that end the request, masked before `min_tokens`."""
    bad_words_token_ids: Sequence[Sequence[int]] = ()
    grammar_words: npt.NDArray[np.int32] | None = None
    """[ceil(vocab / 32)]: what the row's grammar allows (see `GrammarOutput`), where it has one."""

    @property
    def position(self) -> int:
        """Absolute position of the token to be sampled."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """Parallel to the rows given to `sample`."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]
    """None for rows that do not ask (`params.logprobs` is None)."""


def sample(logits: Tensor, rows: Sequence[SamplingRow]) -> SampledTokens:
    """Draw one token for each row.

    Args:
        logits: [n, vocab], any floating dtype, CPU or CUDA; not modified.
        rows: n rows, parallel to `logits`.
    """
    if logits.ndim != 2 or logits.shape[0] != len(rows):
        raise ValueError(f"logits must be [{len(rows)} rows, vocab]; got shape {tuple(logits.shape)}")
    if not rows:
        return SampledTokens([], [])
    token_ids = draw(logits, rows)
    return SampledTokens(token_ids.tolist(), _sampled_logprobs(logits, token_ids, rows))


def draw(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """The tokens of `sample` alone, at least one: [n] int64 on the logits' device."""
    scores = sanitize(logits)
    lost = lost_rows(logits)
    for i, row in enumerate(rows):
        process_row(scores[i], row)
    inverse = torch.tensor([inverse_temperature(row.params.temperature) for row in rows], dtype=torch.float32)
    _filter_rows(scores, inverse, rows)
    token_ids = gumbel_argmax(
        scores,
        inverse.to(logits.device),
        torch.tensor([row.seed for row in rows], dtype=torch.int64, device=logits.device),
        torch.tensor([row.position for row in rows], dtype=torch.int64, device=logits.device),
        torch.tensor(
            [_fallback(row) for row in rows],
            dtype=torch.int64,
            device=logits.device,
        ),
    )
    return token_ids.masked_fill_(lost, NO_TOKEN)


def lost_rows(logits: Tensor) -> Tensor:
    """[n] bool: the rows of `logits` ([n, vocab]) that are NaN or -inf throughout. They say nothing, whatever
    masks would leave."""
    return ~(logits > -math.inf).any(dim=1)


def prompt_logprobs(logits: Tensor, next_token_ids: Sequence[int], top_n: int) -> list[TokenLogprobs]:
    """Log-probabilities of a prompt's tokens.

    Args:
        logits: [m, vocab], raw logits of m prompt positions.
        next_token_ids: the m tokens that follow those positions.
        top_n: number of most probable tokens reported beside the token itself.
    """
    targets = torch.tensor(list(next_token_ids), dtype=torch.int64, device=logits.device)
    return token_logprobs(logits, targets, top_n)


def token_logprobs(logits: Tensor, token_ids: Tensor, top_n: int) -> list[TokenLogprobs]:
    """Log-probability and rank of one token per row, with the row's `top_n` most probable.

    Among equals the lowest id comes first. A token's rank is 1 + the number of tokens with greater logits.

    Args:
        logits: [m, vocab], raw.
        token_ids: [m] int64, on the same device.
        top_n: 0 for the token alone; more than the vocabulary has means all of it.
    """
    if token_ids.numel() == 0:
        return []
    ids, logprobs, ranks = logprobs_and_ranks(logits, token_ids, top_n)
    columns = zip(ids.tolist(), logprobs.tolist(), ranks.tolist(), strict=True)
    return [TokenLogprobs(tuple(i), tuple(p), r) for i, p, r in columns]


def inverse_temperature(temperature: float) -> float:
    """The fp32 reciprocal by which logits are multiplied; 0 means greedy, huge temperatures stay above it."""
    if temperature < GREEDY_BELOW:
        return 0.0
    return max(float(torch.tensor(temperature, dtype=torch.float32).reciprocal()), 1e-30)


def fallback_id(
    params: SamplingParams, stop_token_ids: Sequence[int], bad_words_token_ids: Sequence[Sequence[int]]
) -> int:
    """The token of a row whose masks leave nothing (see the module's docstring).

    `NO_TOKEN` where nothing masks the row: its logits are NaN or all -inf (see `lost_rows`).
    """
    if not (params.allowed_token_ids or params.min_tokens or bad_words_token_ids):
        return NO_TOKEN
    return min(params.allowed_token_ids or stop_token_ids or (0,))


def grammar_fallback_ids(
    bitmask: npt.NDArray[np.int32], params: Sequence[SamplingParams]
) -> npt.NDArray[np.int64]:
    """Fallback tokens of rows with grammars: [m] int64.

    Args:
        bitmask: [m, words], what the grammars allow (see `GrammarOutput`).
        params: the m rows' parameters.
    """
    first = (bitmask != 0).argmax(axis=1)
    words = bitmask[np.arange(len(bitmask)), first].astype(np.int64) & 0xFFFFFFFF
    # A word's lowest bit by itself is a power of two; a row without any bit yields token 0.
    ids: npt.NDArray[np.int64] = 32 * first + np.log2(np.maximum(words & -words, 1)).astype(np.int64)
    for i, row_params in enumerate(params):
        for token in sorted(row_params.allowed_token_ids or ()):
            if token < 32 * bitmask.shape[1] and (bitmask[i, token // 32] >> (token % 32)) & 1:
                ids[i] = token
                break
    return ids


def _fallback(row: SamplingRow) -> int:
    if row.grammar_words is None:
        return fallback_id(row.params, row.stop_token_ids, row.bad_words_token_ids)
    return int(grammar_fallback_ids(row.grammar_words[None], [row.params])[0])


def repetition_factor(params: SamplingParams) -> float:
    """The repetition penalty, kept where its fp32 value and reciprocal are finite: 0 * inf would be NaN."""
    return min(max(params.repetition_penalty, 1e-30), 1e30)


def process_row(scores: Tensor, row: SamplingRow) -> None:
    """Stages 1 to 5, in place, on one row's `scores` ([vocab] fp32)."""
    params, generated = row.params, row.output_token_ids
    if params.allowed_token_ids:
        ids = _index(params.allowed_token_ids, scores)
        kept = scores[ids]
        scores.fill_(-math.inf)
        scores[ids] = kept
    if row.grammar_words is not None:
        bits = np.unpackbits(row.grammar_words.view(np.uint8), bitorder="little", count=scores.numel())
        scores.masked_fill_(torch.from_numpy(bits == 0).to(scores.device), -math.inf)
    if len(generated) < params.min_tokens and row.stop_token_ids:
        scores[_index(row.stop_token_ids, scores)] = -math.inf
    banned = [word[-1] for word in row.bad_words_token_ids if _ends_with(generated, word[:-1])]
    if banned:
        scores[_index(banned, scores)] = -math.inf
    if params.logit_bias:
        ids = _index(params.logit_bias, scores)
        bias = [value for token, value in params.logit_bias.items() if 0 <= token < scores.numel()]
        scores[ids] += torch.tensor(bias, dtype=torch.float32, device=scores.device)
    if params.repetition_penalty != 1.0:
        ids = _index({*row.prompt_token_ids, *generated}, scores)
        seen = scores[ids]
        penalty = repetition_factor(params)
        scores[ids] = torch.where(seen > 0, seen / penalty, seen * penalty).clamp_(max=LOGIT_CAP)
    if generated and (params.frequency_penalty or params.presence_penalty):
        ids, counts = torch.unique(_index(generated, scores), return_counts=True)
        scores[ids] = scores[ids] - params.frequency_penalty * counts - params.presence_penalty


def _filter_rows(scores: Tensor, inverse: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Stage 7 in place, on the rows that ask."""
    asking = [i for i, row in enumerate(rows) if inverse[i] > 0 and _filters(row.params)]
    if not asking:
        return
    params = [rows[i].params for i in asking]
    device = scores.device
    index = torch.tensor(asking, device=device)
    tempered = scores[index] * inverse[asking].to(device)[:, None]
    cut = thresholds(
        tempered,
        torch.tensor([log_min_p(p.min_p) for p in params], dtype=torch.float32, device=device),
        torch.tensor([min(p.top_k, scores.shape[1]) for p in params], dtype=torch.int64, device=device),
        torch.tensor([p.top_p for p in params], dtype=torch.float32, device=device),
    )
    scores[index] = scores[index].masked_fill(tempered < cut[:, None], -math.inf)


def log_min_p(min_p: float) -> float:
    """The distance below the greatest score at which min-p cuts; -inf where it is off."""
    return math.log(min_p) if min_p > 0 else -math.inf


def _filters(params: SamplingParams) -> bool:
    return params.min_p > 0 or params.top_k > 0 or params.top_p < 1


def _sampled_logprobs(
    logits: Tensor, token_ids: Tensor, rows: Sequence[SamplingRow]
) -> list[TokenLogprobs | None]:
    """Entries for the rows that ask; rows that want as many share one pass."""
    result: list[TokenLogprobs | None] = [None] * len(rows)
    counts = [row.params.logprobs or 0 if row.params.wants_logprobs else None for row in rows]
    for top_n in {count for count in counts if count is not None}:
        asking = [i for i, count in enumerate(counts) if count == top_n]
        index = torch.tensor(asking, device=logits.device)
        drawn = token_ids[index].clamp(min=0)
        for i, entry in zip(asking, token_logprobs(logits[index], drawn, top_n), strict=True):
            given = rows[i].params.logprob_token_ids
            result[i] = with_given(entry, _given_logprobs(logits[i], given)) if given else entry
    return result


def _given_logprobs(logits: Tensor, token_ids: Sequence[int]) -> list[TokenLogprobs]:
    """Each of `token_ids` by itself, after one row's `logits` ([vocab])."""
    ids = torch.tensor(list(token_ids), dtype=torch.int64, device=logits.device)
    return token_logprobs(logits.expand(len(ids), -1), ids, 0)


def with_given(entry: TokenLogprobs, given: Sequence[TokenLogprobs]) -> TokenLogprobs:
    """`entry`, followed by the tokens that were asked for by id (entries of one token each)."""
    return TokenLogprobs(
        entry.token_ids + tuple(g.token_ids[0] for g in given),
        entry.logprobs + tuple(g.logprobs[0] for g in given),
        entry.rank,
        tuple(g.rank for g in given),
    )


def _index(ids: Iterable[int], scores: Tensor) -> Tensor:
    """Token ids as an index into `scores`; ids beyond the vocabulary are left out."""
    return torch.tensor([t for t in ids if 0 <= t < scores.numel()], dtype=torch.int64, device=scores.device)


def _ends_with(tokens: Sequence[int], suffix: Sequence[int]) -> bool:
    count = len(suffix)
    return count == 0 or (len(tokens) >= count and list(tokens[-count:]) == list(suffix))
