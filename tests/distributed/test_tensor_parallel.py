"""V1's tokens under tensor parallelism are those of transformers' own `generate`."""

from __future__ import annotations

import pytest
import torch

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.distributed.ranks import RankSizes
from dodona.runners.v1.tensor_parallel import shard_model
from tests.distributed.thread_runners import generate_on_ranks
from tests.support.equal_tokens import EqualTokens
from tests.support.thread_ranks import run_ranks
from tests.support.tiny_models import VOCAB_SIZE, make_model

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


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_four_ranks_with_chunks_preemption_and_prefix_caching(tiny_models, reference, family):
    path = tiny_models.path(family)
    todo = [*prompts(), [*prompts()[2][:17], 7, 8, 9]]
    counts = (*NEW_TOKENS, 8)
    found, drivers = generate_on_ranks(
        path,
        todo,
        counts,
        tensor_parallel_size=4,
        driver={"budget": 7, "preempt_every": 5, "prefix_caching": True},
        rounds=2,
    )
    compare(path, reference, found, todo, counts)
    assert drivers[0].preemptions
    assert drivers[0].prefix_hits
    # Two key/value heads on four ranks: neighbours share one.
    assert {layer.num_kv_heads for layer in drivers[0].runner.get_kv_cache_spec().layers} == {1}


def test_a_rank_holds_its_share_of_the_weights() -> None:
    whole, half = make_model("mixtral"), make_model("mixtral")
    run_ranks(RankSizes(1, 1, 2), lambda mesh: mesh.rank or shard_model(half, mesh.tensor))
    shapes = {name: tuple(parameter.shape) for name, parameter in half.named_parameters()}
    for name, parameter in whole.named_parameters():
        rows = [*parameter.shape]
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            rows[0] //= 2
        elif name.endswith("gate_up_proj"):
            rows[1] //= 2
        elif name.endswith(("o_proj.weight", "down_proj")):
            rows[-1] //= 2
        assert shapes[name] == tuple(rows), name


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("gpt2", {}, "no plan that splits"),
        ("llama", {"intermediate_size": 51}, "gate_proj: 51 does not divide by 2 ranks"),
        (
            "llama",
            {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3},
            "heads: 3 does not",
        ),
    ],
)
def test_what_cannot_be_split_is_refused_by_name(family, changes, words):
    def shard(mesh):
        shard_model(make_model(family, **changes), mesh.tensor)

    with pytest.raises(UnsupportedConfiguration, match=words):
        run_ranks(RankSizes(1, 1, 2), shard)
