"""Sampling in plain torch: what runner V1 uses, and the reference that V2's kernels are held to.

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

Unusual logits: NaN counts as -inf, and what exceeds 1e30 (+inf too) as 1e30. Where no token is left, the row
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

from dodona.runners.interface import TokenLogprobs
from dodona.runners.sampling.params import GREEDY_BELOW

if TYPE_CHECKING:
    import numpy.typing as npt

    from dodona.runners.sampling.params import SamplingParams

LOGIT_CAP = 1e30
"""Logits above this are lowered to it; times the largest inverse temperature (1e5) it is finite in fp32."""

_MASK32 = 0xFFFFFFFF
_NOISE_CHUNK = 1 << 24
"""Elements of noise made at once: bounds the int64 temporaries."""


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
    scores = sanitize(logits)
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
    return SampledTokens(token_ids.tolist(), _sampled_logprobs(logits, token_ids, rows))


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
    vocab = logits.shape[-1]
    wanted = min(top_n, vocab)
    scores = sanitize(logits)
    own = scores.gather(1, token_ids[:, None])
    # Rows without any finite logit have no distribution: -inf for all, not NaN.
    full = torch.log_softmax(scores, dim=1).masked_fill_(scores == -math.inf, -math.inf)
    ranks = 1 + (scores > own).sum(dim=1)
    ids = token_ids[:, None]
    if wanted:
        top = torch.topk(order_keys(scores), wanted, dim=1).values
        ids = torch.cat([ids, _MASK32 - (top & _MASK32)], dim=1)
    columns = zip(ids.tolist(), full.gather(1, ids).tolist(), ranks.tolist(), strict=True)
    return [TokenLogprobs(tuple(i), tuple(p), r) for i, p, r in columns]


def sanitize(logits: Tensor) -> Tensor:
    """An fp32 copy in which NaN is -inf and nothing exceeds `LOGIT_CAP`."""
    scores = logits.to(torch.float32, copy=True)
    return scores.masked_fill_(scores.isnan(), -math.inf).clamp_(max=LOGIT_CAP)


def inverse_temperature(temperature: float) -> float:
    """The fp32 reciprocal by which logits are multiplied; 0 means greedy, huge temperatures stay above it."""
    if temperature < GREEDY_BELOW:
        return 0.0
    return max(float(torch.tensor(temperature, dtype=torch.float32).reciprocal()), 1e-30)


def fallback_id(params: SamplingParams, stop_token_ids: Sequence[int]) -> int:
    """The token of a row whose masks leave nothing (see the module's docstring)."""
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
    words = bitmask[np.arange(len(bitmask)), first].astype(np.int64) & _MASK32
    # A word's lowest bit by itself is a power of two; a row without any bit yields token 0.
    ids = 32 * first + np.log2(np.maximum(words & -words, 1)).astype(np.int64)
    for i, row_params in enumerate(params):
        for token in sorted(row_params.allowed_token_ids or ()):
            if token < 32 * bitmask.shape[1] and (bitmask[i, token // 32] >> (token % 32)) & 1:
                ids[i] = token
                break
    return ids


def _fallback(row: SamplingRow) -> int:
    if row.grammar_words is None:
        return fallback_id(row.params, row.stop_token_ids)
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


def thresholds(scores: Tensor, log_min_p: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """For each row, the least score that min-p, top-k and top-p keep; a token is kept where its score >= it.

    min-p keeps scores >= max + log(min_p). top-k keeps the k greatest of these and all that equal the k-th.
    top-p keeps the greatest scores of what is then left whose probabilities, renormalised, first reach p, and
    all that equal the last of them.

    Args:
        scores: [m, vocab] fp32, after temperature.
        log_min_p: [m] fp32, -inf = off.
        top_k: [m] int64, 0 = off.
        top_p: [m] fp32, 1 = off.
    """
    ranked = scores.sort(dim=1, descending=True).values
    greatest = ranked[:, :1]
    kth = ranked.gather(1, (top_k.clamp(1, scores.shape[1]) - 1)[:, None])
    kth = torch.where(top_k[:, None] > 0, kth, -math.inf)
    cut = torch.maximum(greatest + log_min_p[:, None], kth)
    weights = torch.where(ranked >= cut, torch.exp(ranked - greatest), 0.0).double().nan_to_num(0.0)
    cumulative = weights.cumsum(dim=1)
    # The index of the first token at which the sum reaches p: as many as fall short of it.
    short = (cumulative < top_p.double()[:, None] * cumulative[:, -1:]).sum(dim=1, keepdim=True)
    nucleus = ranked.gather(1, short.clamp(max=scores.shape[1] - 1))
    cut = torch.where(top_p[:, None] < 1, torch.maximum(cut, nucleus), cut)
    return cut.squeeze(1).nan_to_num(nan=-math.inf, neginf=-math.inf)


def gumbel_argmax(
    scores: Tensor, inverse: Tensor, seeds: Tensor, positions: Tensor, fallback: Tensor
) -> Tensor:
    """Argmax of `scores * inverse + noise`, where rows with `inverse` 0 are greedy: argmax of `scores`.

    Args:
        scores: [n, vocab] fp32.
        inverse: [n] fp32, reciprocal temperatures.
        seeds: [n] int64 in [0, 2**63).
        positions: [n] int64, absolute positions of the tokens to be drawn.
        fallback: [n] int64, taken where a row has nothing above -inf.
    Returns: [n] int64 token ids.
    """
    chosen = []
    step = max(1, _NOISE_CHUNK // scores.shape[1])
    for start in range(0, scores.shape[0], step):
        part = slice(start, start + step)
        factor = inverse[part, None]
        noise = gumbel_noise(seeds[part], positions[part], scores.shape[1])
        perturbed = torch.where(factor > 0, scores[part] * factor + noise, scores[part])
        best, token = perturbed.max(dim=1).values, perturbed.argmax(dim=1)
        chosen.append(torch.where(best == -math.inf, fallback[part], token))
    return torch.cat(chosen)


def gumbel_noise(seeds: Tensor, positions: Tensor, vocab: int) -> Tensor:
    """Standard Gumbel noise [n, vocab] fp32 for tokens 0 .. vocab-1, from seeds and positions ([n] int64)."""
    uniform = uniform_noise(seeds, positions, vocab)
    # 1 - v loses the low bits of small v, and these draws win: there the series of -log(1 - v) is closer.
    series = 1 / 5 + uniform * (1 / 6)
    series = 1 / 2 + uniform * (1 / 3 + uniform * (1 / 4 + uniform * series))
    series = uniform + uniform * uniform * series
    exponential = torch.where(uniform < 0.0625, series, -torch.log(1.0 - uniform))
    return -torch.log(exponential)


def uniform_noise(seeds: Tensor, positions: Tensor, vocab: int) -> Tensor:
    """Uniform noise in (0, 1), [n, vocab] fp32: a counter-based generator in 32-bit lanes (murmur3 mixer)."""
    low, high = seeds & _MASK32, (seeds >> 32) & _MASK32
    key0 = fmix32(low ^ fmix32((positions + 0x9E3779B9) & _MASK32))
    key1 = fmix32(high ^ fmix32((key0 + 0x7F4A7C15) & _MASK32))
    tokens = torch.arange(vocab, dtype=torch.int64, device=seeds.device)
    bits = fmix32((fmix32(tokens ^ key0[:, None]) + key1[:, None]) & _MASK32)
    return ((bits.to(torch.float32) + 0.5) * 2.0**-32).clamp_(max=1.0 - 2.0**-24)


def fmix32(h: Tensor) -> Tensor:
    """murmur3's 32-bit finaliser on int64 values in [0, 2**32)."""
    h = h ^ (h >> 16)
    h = (h * 0x85EBCA6B) & _MASK32
    h = h ^ (h >> 13)
    h = (h * 0xC2B2AE35) & _MASK32
    return h ^ (h >> 16)


def order_keys(scores: Tensor) -> Tensor:
    """int64 keys [n, vocab] that order fp32 scores as numbers and, among equals, the lower id as greater.

    The low 32 bits are 2**32 - 1 - id; the high ones the float's bits made monotone.
    """
    # 0.0 + -0.0 is +0.0: the two zeros are equal numbers and must have equal keys.
    bits = (scores + 0.0).view(torch.int32).to(torch.int64)
    monotone = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    ids = torch.arange(scores.shape[1], dtype=torch.int64, device=scores.device)
    return (monotone << 32) | (_MASK32 - ids)


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
        for i, entry in zip(asking, token_logprobs(logits[index], token_ids[index], top_n), strict=True):
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
