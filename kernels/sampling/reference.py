"""What the sampling stages mean, in plain torch: thresholds, random bits, log-probabilities.

Triton is not needed here: V1 samples with these functions on any machine, and the kernels of this folder are
held to them. `dodona.runners.sampling.reference` lists the stages and their order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOGIT_CAP = 1e30
"""Logits above this are lowered to it; times the largest inverse temperature (1e5) it is finite in fp32."""

_MASK32 = 0xFFFFFFFF
_NOISE_CHUNK = 1 << 24
"""Elements of noise made at once: bounds the int64 temporaries."""


def sanitize(logits: Tensor) -> Tensor:
    """An fp32 copy in which NaN is -inf and nothing exceeds `LOGIT_CAP`."""
    scores = logits.to(torch.float32, copy=True)
    return scores.masked_fill_(scores.isnan(), -math.inf).clamp_(max=LOGIT_CAP)


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
        factor, perturbed = inverse[part, None], scores[part]
        if (factor > 0).any():  # noise takes longer than all the rest
            noise = gumbel_noise(seeds[part], positions[part], scores.shape[1])
            perturbed = torch.where(factor > 0, perturbed * factor + noise, perturbed)
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


def logprobs_and_ranks(logits: Tensor, token_ids: Tensor, top_n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability and rank of one token per row, with the row's `top_n` most probable.

    Among equals the lowest id comes first. A token's rank is 1 + the number of tokens with greater logits.

    Args:
        logits: [m, vocab], raw.
        token_ids: [m] int64, on the same device.
        top_n: 0 for the token alone; more than the vocabulary has means all of it.

    Returns:
        (ids, log-probabilities, ranks): [m, 1 + top_n] int64, the token itself first; the same shape, fp32;
        [m] int64, of the token itself.
    """
    wanted = min(top_n, logits.shape[-1])
    scores = sanitize(logits)
    own = scores.gather(1, token_ids[:, None])
    # Rows without any finite logit have no distribution: -inf for all, not NaN.
    full = torch.log_softmax(scores, dim=1).masked_fill_(scores == -math.inf, -math.inf)
    ranks = 1 + (scores > own).sum(dim=1)
    ids = token_ids[:, None]
    if wanted:
        top = torch.topk(order_keys(scores), wanted, dim=1).values
        ids = torch.cat([ids, _MASK32 - (top & _MASK32)], dim=1)
    return ids, full.gather(1, ids), ranks
