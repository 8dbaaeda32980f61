"""Many requests over a small Markov chain whose drafts are verified, by the definitions in torch or by V2's
kernels.

The chain's next token depends on the last one; what a request asks for makes it depend on all tokens before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from dodona.kernels.sampling.reference import gumbel_argmax, sanitize, thresholds
from dodona.kernels.state.step_state import update_state
from dodona.runners.device.sampling.sampler import DeviceSampler
from dodona.runners.device.sampling.stage import SamplingBatch, VerifiedDrafts
from dodona.runners.interface import NewRequest
from dodona.runners.sampling import reference as sampling
from dodona.runners.sampling.params import SamplingParams

VOCAB, DRAFTS, LENGTH = 5, 2, 3
"""LENGTH: tokens of a request that are counted."""
PROMPT = (0, 3)

_GENERATOR = torch.Generator().manual_seed(5)
CHAIN = torch.randn(VOCAB, VOCAB, generator=_GENERATOR) * 1.5
"""[last token, next token] logits of the target."""
DRAFT_CHAIN = CHAIN + torch.randn(VOCAB, VOCAB, generator=_GENERATOR)
"""Those of a draft that is wrong in places."""
DRAFTS_AHEAD = DRAFT_CHAIN[None] + torch.randn(DRAFTS, VOCAB, VOCAB, generator=_GENERATOR) * 0.5
"""[depth, last token, token at that depth]: those of a head that drafts all depths in one pass."""

PARAMS = {
    "temperature": SamplingParams(temperature=0.8),
    "every stage": SamplingParams(
        temperature=0.9, top_k=4, top_p=0.97, min_p=0.02, repetition_penalty=1.2, frequency_penalty=0.4,
        presence_penalty=-0.3, logit_bias={2: 0.7},
    ),
}  # fmt: skip


def seeds_of(count: int) -> Tensor:
    """A seed of each request."""
    return torch.arange(count) * 7919 + 13


Sample = Callable[[Tensor, int], Tensor]
"""Logits [n, vocab] and how many tokens come before -> tokens [n]: a draft's draw, with the noise of the
request and of the position."""


def _fixed(tokens: Tensor, ahead: int, sample: Sample) -> Tensor:
    return torch.tensor([[2, 4]], device=tokens.device).expand(len(tokens), DRAFTS)


def _sequential(tokens: Tensor, ahead: int, sample: Sample) -> Tensor:
    drafts: list[Tensor] = []
    for depth in range(DRAFTS):
        last = drafts[-1] if drafts else tokens
        drafts.append(sample(DRAFT_CHAIN.to(tokens.device)[last], ahead + depth))
    return torch.stack(drafts, dim=1)


def _in_one_pass(tokens: Tensor, ahead: int, sample: Sample) -> Tensor:
    logits = DRAFTS_AHEAD.to(tokens.device)
    return torch.stack([sample(logits[d][tokens], ahead + d) for d in range(DRAFTS)], dim=1)


def _unrelated(tokens: Tensor, ahead: int, sample: Sample) -> Tensor:
    drafts = torch.randint(VOCAB, (len(tokens), DRAFTS), generator=torch.Generator().manual_seed(ahead))
    return drafts.to(tokens.device)


METHODS: dict[str, Callable[[Tensor, int, Sample], Tensor]] = {
    "ngram": _fixed,
    "draft_model, eagle, eagle3": _sequential,
    "eagle3 with parallel_drafting": _in_one_pass,
    "drafts at random": _unrelated,
}
"""Drafts [n, DRAFTS] after each request's last token [n]."""


class Verifier(Protocol):
    """Steps of requests that all have as many tokens."""

    def sample_drafts(self, logits: Tensor, requests: Tensor, position: int) -> Tensor:
        """[n]: a draft of each of some requests."""

    def verify(self, outputs: Tensor, drafts: Tensor, requests: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [n, 1 + DRAFTS] after the outputs [n, tokens] and after each draft, and how many are kept
        [n].

        requests: [n], which they are, each at most once per number of tokens.
        """


def run_chain(verifier: Verifier, method: str, count: int) -> tuple[Tensor, float]:
    """The first LENGTH tokens of `count` requests [count, LENGTH], and the share of drafts that were
    accepted."""
    outputs = torch.full((count, LENGTH + 1 + DRAFTS), -1)
    lengths = torch.zeros(count, dtype=torch.int64)
    num_accepted = num_drafts = 0
    for length in range(LENGTH):
        requests = torch.nonzero(lengths == length).flatten()
        if not len(requests):
            continue
        position = len(PROMPT) + length
        last = outputs[requests, length - 1] if length else torch.full((len(requests),), PROMPT[-1])

        def sample(logits: Tensor, ahead: int, requests: Tensor = requests) -> Tensor:
            return verifier.sample_drafts(logits, requests, ahead)

        drafts = METHODS[method](last, position, sample)
        tokens, kept = verifier.verify(outputs[requests, :length], drafts, requests)
        for place in range(1 + DRAFTS):
            is_kept = kept > place
            outputs[requests[is_kept], length + place] = tokens[is_kept, place]
        lengths[requests] += kept
        num_accepted += int((kept - 1).sum())
        num_drafts += drafts.numel()
    return outputs[:, :LENGTH], num_accepted / num_drafts


class Defined:
    """By the definitions: scores of every context, from the stages that V1 runs."""

    def __init__(self, params: SamplingParams, seeds: Tensor) -> None:
        self._params = params
        self._seeds = seeds
        contexts = [
            c for size in range(LENGTH + DRAFTS) for c in itertools.product(range(VOCAB), repeat=size)
        ]
        self._places = {context: place for place, context in enumerate(contexts)}
        self._scores = torch.stack([self._processed(context) for context in contexts])

    def _processed(self, context: Sequence[int]) -> Tensor:
        """[vocab]: tempered scores after a context, -inf where the filters cut."""
        params = self._params
        scores = sanitize(CHAIN[[*PROMPT, *context][-1]])
        sampling.process_row(scores, sampling.SamplingRow(params, PROMPT, context, seed=0))
        scores *= sampling.inverse_temperature(params.temperature)
        cut = thresholds(
            scores[None],
            torch.tensor([sampling.log_min_p(params.min_p)]),
            torch.tensor([params.top_k]),
            torch.tensor([params.top_p]),
        )
        return scores.masked_fill(scores < cut, -torch.inf)

    def probabilities(self) -> Tensor:
        """[VOCAB, ...], float64: the target's of LENGTH tokens, without any draw."""
        found = torch.zeros((VOCAB,) * LENGTH, dtype=torch.float64)
        for tokens in itertools.product(range(VOCAB), repeat=LENGTH):
            steps = [
                self._scores[self._places[tokens[:i]]].double().softmax(0)[t] for i, t in enumerate(tokens)
            ]
            found[tokens] = torch.stack(steps).prod()
        return found

    def draw(self, outputs: Tensor, requests: Tensor) -> Tensor:
        """[n]: the token after outputs [n, tokens]."""
        size = outputs.shape[1]
        # Contexts of one size follow one another in the order of their tokens.
        weights = torch.tensor([VOCAB ** (size - 1 - i) for i in range(size)], dtype=torch.int64)
        places = self._places[(0,) * size] + (outputs * weights).sum(1)
        return self._argmax(self._scores[places], torch.ones(len(outputs)), requests, len(PROMPT) + size)

    def sample_drafts(self, logits: Tensor, requests: Tensor, position: int) -> Tensor:
        """See `Verifier`."""
        inverse = torch.full((len(logits),), sampling.inverse_temperature(self._params.temperature))
        return self._argmax(logits, inverse, requests, position)

    def verify(self, outputs: Tensor, drafts: Tensor, requests: Tensor) -> tuple[Tensor, Tensor]:
        """See `Verifier`."""
        contexts = [torch.cat([outputs, drafts[:, :depth]], dim=1) for depth in range(1 + DRAFTS)]
        tokens = torch.stack([self.draw(context, requests) for context in contexts], dim=1)
        agrees = (tokens[:, :-1] == drafts).long()
        return tokens, 1 + agrees.cumprod(dim=1).sum(1)

    def _argmax(self, scores: Tensor, inverse: Tensor, requests: Tensor, position: int) -> Tensor:
        positions = torch.full((len(scores),), position)
        none = torch.zeros(len(scores), dtype=torch.int64)
        return gumbel_argmax(scores, inverse, self._seeds[requests], positions, none)


class OnDevice:
    """By V2's sampler, its acceptance and the state's update, on state on the device."""

    def __init__(self, params: SamplingParams, seeds: Tensor, device: torch.device) -> None:
        count = len(seeds)
        self._device = device
        self._history = torch.zeros(count, 16, dtype=torch.int32, device=device)
        self._history[:, : len(PROMPT)] = torch.tensor(PROMPT)
        self._num_computed = torch.full((count,), len(PROMPT) - 1, dtype=torch.int32, device=device)
        self._sampler = DeviceSampler(max_num_seqs=count, vocab_size=VOCAB, token_ids=self._history)
        for row, seed in enumerate(seeds.tolist()):
            self._sampler.add_request(
                NewRequest(
                    request_id=str(row),
                    row=row,
                    token_ids=PROMPT,
                    num_prompt_tokens=len(PROMPT),
                    num_computed_tokens=0,
                    block_ids=(),
                    sampling_params=params,
                    seed=seed,
                )
            )
        self._sampler.apply_staged_writes()

    def sample_drafts(self, logits: Tensor, requests: Tensor, position: int) -> Tensor:
        """See `Verifier`."""
        rows = requests.int().to(self._device)
        drafts = self._sampler.base.sample(
            logits.to(self._device), idx_mapping=rows, positions=torch.full_like(rows, position)
        )
        return drafts.long().cpu()

    def verify(self, outputs: Tensor, drafts: Tensor, requests: Tensor) -> tuple[Tensor, Tensor]:
        """See `Verifier`. The history has what earlier steps kept."""
        device, position = self._device, len(PROMPT) + outputs.shape[1]
        assert self._history[requests, len(PROMPT) : position].tolist() == outputs.tolist()
        assert set(self._num_computed[requests].tolist()) == {position - 1}
        self._history[requests, position : position + DRAFTS] = drafts.int().to(device)
        last = outputs[:, -1:] if outputs.shape[1] else torch.full((len(outputs), 1), PROMPT[-1])
        logits = CHAIN[torch.cat([last, drafts], dim=1)].flatten(0, 1).to(device)
        rows = requests.repeat_interleave(1 + DRAFTS)
        idx_mapping = rows.int().to(device)
        offsets = torch.arange(1 + DRAFTS, dtype=torch.int32, device=device).repeat(len(requests))
        sampled = self._sampler.sample(
            logits,
            SamplingBatch(
                rows.tolist(), idx_mapping, position + offsets, drafts=VerifiedDrafts(offsets, DRAFTS)
            ),
        )
        assert sampled.num_kept is not None
        update_state(
            rows=idx_mapping, seq_lens=position + offsets, sample_index=None, sampled=sampled.token_ids,
            num_kept=sampled.num_kept, num_computed=self._num_computed, token_ids=self._history,
        )  # fmt: skip
        kept = sampled.num_kept.view(-1, 1 + DRAFTS)[:, 0]
        return sampled.token_ids.view(-1, 1 + DRAFTS).long().cpu(), kept.long().cpu()


@dataclass(frozen=True, slots=True)
class Fit:
    """How well tokens fit the target's distribution."""

    pvalue: float
    """Of a chi-square test over all runs of LENGTH tokens, those expected fewer than 5 times taken
    together."""
    num_impossible: int
    """Runs of tokens that the target never yields."""


def fit(tokens: Tensor, probabilities: Tensor) -> Fit:
    """tokens: [n, LENGTH]; probabilities: [VOCAB, ...]."""
    places = sum(tokens[:, i] * VOCAB ** (LENGTH - 1 - i) for i in range(LENGTH))
    observed = np.bincount(torch.as_tensor(places).numpy(), minlength=VOCAB**LENGTH).astype(float)
    expected = probabilities.flatten().numpy() * len(tokens)
    often = expected >= 5
    rest = (observed[~often].sum(), expected[~often].sum())
    observed_cells, expected_cells = observed[often], expected[often]
    if rest[1] >= 5:
        observed_cells, expected_cells = (
            np.append(observed_cells, rest[0]),
            np.append(expected_cells, rest[1]),
        )
    expected_cells *= observed_cells.sum() / expected_cells.sum()
    pvalue = float(stats.chisquare(observed_cells, expected_cells).pvalue)
    return Fit(pvalue, int(observed[expected == 0].sum()))
