"""What the engines are asked: token ids, lengths, sampling parameters and times of arrival, by seed.

Every engine gets the same requests. Each generates exactly `max_tokens` tokens (the end-of-sequence token is
ignored), so that the number of tokens is known before, and checked after.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    prompt: tuple[int, ...]
    """Token ids."""
    max_tokens: int
    sampling: Mapping[str, Any]
    """Sampling parameters by the names that vLLM and dodona share; the lengths are not among them."""
    arrival: float = 0.0
    """Seconds after the start."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests, and whether they arrive over time."""

    name: str
    seed: int
    asks: tuple[Ask, ...]
    online: bool = False
    """Whether requests are submitted as they arrive and streamed, rather than all at once."""

    @property
    def input_tokens(self) -> int:
        """Prompt tokens over all requests."""
        return sum(len(ask.prompt) for ask in self.asks)

    @property
    def output_tokens(self) -> int:
        """Tokens to be generated over all requests."""
        return sum(ask.max_tokens for ask in self.asks)

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest request, prompt and output."""
        return max(len(ask.prompt) + ask.max_tokens for ask in self.asks)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that is asked: equal for runs that may be compared."""
        text = json.dumps([[a.prompt, a.max_tokens, dict(a.sampling), a.arrival] for a in self.asks])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def warm_up(self, max_tokens: int = 8) -> Workload:
        """The same batch with other prompts and short outputs, all at once."""
        rng = random.Random(self.seed + 1)
        top = 1 + max(max(ask.prompt) for ask in self.asks)
        asks = tuple(
            _shortened(
                replace(ask, prompt=tuple(rng.randrange(top) for _ in ask.prompt), arrival=0.0),
                min(max_tokens, ask.max_tokens),
            )
            for ask in self.asks
        )
        return replace(self, name=f"{self.name}-warm-up", asks=asks, online=False)

    def smaller(self, requests: int | None, divide: int) -> Workload:
        """The first `requests` requests, lengths divided by `divide`: for trying things out."""
        if requests is None and divide == 1:
            return self
        asks = tuple(
            _shortened(
                replace(ask, prompt=ask.prompt[: max(1, len(ask.prompt) // divide)]),
                max(1, ask.max_tokens // divide),
            )
            for ask in self.asks[:requests]
        )
        return replace(self, name=f"{self.name}-small", asks=asks)


_TEMPERATURE: Mapping[str, Any] = {"temperature": 0.6}

MIXED: tuple[Mapping[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.6},
    {"temperature": 0.8, "top_k": 50},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 20, "top_p": 0.95, "seed": 7},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 0.7, "repetition_penalty": 1.1},
    {"temperature": 0.7, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    {"temperature": 0.6, "logprobs": 1},
    {"temperature": 0.0, "logprobs": 5},
    {"temperature": 1.0, "logit_bias": {11: 4.0, 17: -100.0}},
    {"temperature": 0.6, "seed": 11, "stop_token_ids": (3,)},
)
"""The kinds of requests of `mixed`, in turn; no kind can end a request early before its last token."""


def _uniform(
    rng: random.Random, vocab: int, count: int, prompt: tuple[int, int], output: tuple[int, int]
) -> tuple[Ask, ...]:
    """Lengths uniform in the closed intervals, token ids uniform over the vocabulary."""
    return tuple(
        Ask(
            prompt=tuple(rng.randrange(vocab) for _ in range(rng.randint(*prompt))),
            max_tokens=rng.randint(*output),
            sampling=_TEMPERATURE,
        )
        for _ in range(count)
    )


def _poisson(rng: random.Random, vocab: int, rate: float) -> tuple[Ask, ...]:
    now, asks = 0.0, []
    for ask in _uniform(rng, vocab, 128, (100, 1024), (100, 1024)):
        now += rng.expovariate(rate)
        asks.append(replace(ask, arrival=round(now, 6)))
    return tuple(asks)


def _mixed(rng: random.Random, vocab: int, rate: float) -> tuple[Ask, ...]:
    asks = _uniform(rng, vocab, 256, (100, 1024), (100, 512))
    return tuple(
        _shortened(replace(ask, sampling=MIXED[i % len(MIXED)]), ask.max_tokens) for i, ask in enumerate(asks)
    )


def _shortened(ask: Ask, max_tokens: int) -> Ask:
    """The ask with another length. Where it has stop ids, they are masked up to the end: the length stays
    known."""
    sampling = ask.sampling
    if "stop_token_ids" in sampling:
        sampling = {**sampling, "min_tokens": max_tokens}
    return replace(ask, max_tokens=max_tokens, sampling=sampling)


_MAKERS: Mapping[str, Callable[[random.Random, int, float], tuple[Ask, ...]]] = {
    "nano256": lambda rng, vocab, _: _uniform(rng, vocab, 256, (100, 1024), (100, 1024)),
    "short512": lambda rng, vocab, _: _uniform(rng, vocab, 512, (32, 32), (512, 512)),
    "prefill256": lambda rng, vocab, _: _uniform(rng, vocab, 256, (2048, 2048), (1, 1)),
    "bs1": lambda rng, vocab, _: _uniform(rng, vocab, 1, (128, 128), (512, 512)),
    "bs8": lambda rng, vocab, _: _uniform(rng, vocab, 8, (128, 128), (512, 512)),
    "long2": lambda rng, vocab, _: _uniform(rng, vocab, 2, (16_384, 16_384), (512, 512)),
    "poisson": _poisson,
    "mixed": _mixed,
}
WORKLOADS = tuple(_MAKERS)
"""Names that `make_workload` knows."""


def make_workload(name: str, *, vocab_size: int, seed: int = 0, rate: float = 8.0) -> Workload:
    """The requests of a name in `WORKLOADS`.

    nano256: 256 requests, prompts of 100 to 1024 tokens, outputs of 100 to 1024. short512: 512 requests, 32
    in, 512 out. prefill256: 256 requests, 2048 in, 1 out. bs1, bs8: one request or eight, 128 in, 512 out.
    long2: two requests, 16384 in, 512 out. poisson: 128 of nano256's kind that arrive at `rate` per second,
    streamed. mixed: 256 requests, 100 to 1024 in, 100 to 512 out, their sampling parameters `MIXED` in turn.
    Temperature 0.6 but in mixed.

    Raises ValueError for other names.
    """
    if name not in _MAKERS:
        raise ValueError(f"workload {name!r} is not known; expected one of {', '.join(WORKLOADS)}")
    if rate <= 0:
        raise ValueError(f"--rate must be above 0, got {rate}")
    # A string seed hashes the same in every process and version.
    asks = _MAKERS[name](random.Random(f"{name} {seed}"), vocab_size, rate)
    return Workload(name=name, seed=seed, asks=asks, online=name == "poisson")
