"""Where the tokens of two engines part, as `benchmarks.torch_compile` counts it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from benchmarks.torch_compile import compare


def output(tokens: list[int]) -> Any:
    """Of a request; each token's log-probability is -1, and the next id's is -1.5."""
    logprobs = [
        {token: SimpleNamespace(logprob=-1.0), token + 1: SimpleNamespace(logprob=-1.5)} for token in tokens
    ]
    return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens, logprobs=logprobs)])


def test_where_tokens_part():
    compiled = [output([5, 6, 7]), output([5, 7, 9]), output([1])]
    plain = [output([5, 6, 7]), output([5, 6, 9]), output([1])]
    assert compare(compiled, plain) == {
        "requests": 3,
        "equal": 2,
        "differing": [{"request": 1, "place": 1, "logprobs": [-1.0, -1.5]}],
    }
    assert compare(plain, plain)["differing"] == []
