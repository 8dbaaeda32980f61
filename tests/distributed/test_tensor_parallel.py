"""V1's tokens under tensor parallelism are those of transformers' own `generate`, for every family of the rule."""

from __future__ import annotations

import pytest
import torch

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.v1 import capabilities
from tests.distributed.thread_runners import generate_on_ranks
from tests.support.equal_tokens import EqualTokens
from tests.support.tiny_models import FAMILIES, VOCAB_SIZE

LENGTHS, NEW_TOKENS = (1, 5, 23), (5, 7, 6)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(2, VOCAB_SIZE, (n,), generator=generator).tolist() for n in LENGTHS]


def compare(path, reference, found, todo, new_tokens):
    plain = reference(path)
    equal = EqualTokens(lambda ids: plain.logits(ids)[-1], max_ties=2)
    for tokens in found:
        for prompt, count, output in zip(todo, new_tokens, tokens, strict=True):
            equal.compare(prompt, plain.generate(prompt, count), output)
    equal.check()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(tiny_models, reference, family):
    path = tiny_models.path(family)
    found, _ = generate_on_ranks(
        path, prompts(), NEW_TOKENS, tensor_parallel_size=2, driver={"budget": 16}, num_blocks=40
    )
    compare(path, reference, found, prompts(), NEW_TOKENS)
