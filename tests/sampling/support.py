"""Rows and parameters that sampler tests share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from dodona.runners.sampling.params import SamplingParams
from dodona.runners.sampling.reference import SamplingRow


def make_row(
    *,
    seed: int = 0,
    prompt: tuple[int, ...] = (1, 2, 3),
    output: tuple[int, ...] = (),
    stop: tuple[int, ...] = (),
    bad_words: tuple[tuple[int, ...], ...] = (),
    grammar: Iterable[int] | None = None,
    vocab: int = 0,
    **params: Any,
) -> SamplingRow:
    """A row whose parameters are `params`, and whose grammar allows the tokens `grammar` of `vocab`."""
    params.setdefault("max_tokens", None)
    words = None
    if grammar is not None:
        params["structured_outputs"] = {"regex": "stands for it"}
        words = grammar_words(grammar, vocab)
    return SamplingRow(SamplingParams(**params), prompt, output, seed, stop, bad_words, words)


def grammar_words(token_ids: Iterable[int], vocab: int) -> np.ndarray:
    """The packed set of token ids, as grammars give it: [ceil(vocab / 32)] int32."""
    words = np.zeros(-(-vocab // 32), dtype=np.uint32)
    for token in token_ids:
        words[token // 32] |= np.uint32(1) << np.uint32(token % 32)
    return words.view(np.int32)


ENORMOUS_ROWS = (
    make_row(repetition_penalty=1e300, top_k=10**30, prompt=(0, 1, 2, 3)),
    make_row(repetition_penalty=1e-300, top_p=1e-300, prompt=(0, 1, 2, 3)),
    make_row(min_tokens=10**30, stop=(4,), temperature=0.0),
)
"""Parameters that are allowed, and far beyond what fits fp32 or 64 bits."""


def random_row(rng: np.random.Generator, vocab: int) -> SamplingRow:
    """A row that asks for a random few of all features."""

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, vocab, rng.integers(low, high)).tolist())

    def maybe(value: Any, off: Any) -> Any:
        return value if rng.random() < 0.35 else off

    output = tokens(0, 12)
    endings = [output[-size:] for size in (1, 2) if len(output) >= size]
    bad_words = [(*ending, int(rng.integers(0, vocab))) for ending in endings] + [
        tokens(1, 4) for _ in range(2)
    ]
    return make_row(
        seed=int(rng.integers(0, 2**63 - 1)),
        prompt=tokens(1, 20),
        output=output,
        stop=tokens(0, 3),
        bad_words=maybe(tuple(bad_words), ()),
        grammar=maybe(rng.permutation(vocab)[: rng.integers(1, vocab + 1)].tolist(), None),
        vocab=vocab,
        temperature=float(rng.choice([0.0, 0.4, 1.0, 1.8])),
        top_k=int(maybe(rng.integers(1, 40), 0)),
        top_p=float(maybe(rng.uniform(0.2, 0.99), 1.0)),
        min_p=float(maybe(rng.uniform(0.01, 0.3), 0.0)),
        repetition_penalty=float(maybe(rng.uniform(0.7, 2.0), 1.0)),
        frequency_penalty=float(maybe(rng.uniform(-1, 2), 0.0)),
        presence_penalty=float(maybe(rng.uniform(-1, 2), 0.0)),
        min_tokens=int(maybe(6, 0)),
        logit_bias=maybe({int(t): float(rng.normal() * 5) for t in tokens(1, 5)}, None),
        allowed_token_ids=maybe(tokens(1, 30), None),
        logprobs=maybe(int(rng.integers(0, 6)), None),
        logprob_token_ids=maybe(tokens(0, 5), None),
    )
