"""Models that V1 computes row by row: equal tokens, and what a row's cache takes and leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dodona import LLM, SamplingParams
from dodona.oracle.errors import ConfigError, UnsupportedConfiguration
from dodona.runners.v1.choice import choose
from dodona.runners.v1.packed_model import PackedModel
from dodona.runners.v1.positions import first_position
from dodona.runners.v1.row_model import RowCaches, RowModel, RowState, bound, cache_bytes
from tests.support.equal_tokens import EqualTokens
from tests.support.every_family import VOCAB_SIZE, make_model, tiny_config
from tests.v1.driver import Driver, make_runner

FAMILIES = {
    # model type: what may follow a cache, and the configuration beside the tiny one
    "bloom": ("chunks", {}),
    "gpt_neo": ("chunks", {}),
    "falcon": ("chunks", {"alibi": True}),
    "deepseek_v32": ("chunks", {}),
    "rwkv": ("chunks", {}),
    "reformer": ("tokens", {}),
    "openai-gpt": ("none", {}),
}
LENGTHS = (1, 17, 40, 5)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The directory of a tiny model, by type and configuration."""
    made: dict[str, Path] = {}

    def path(model_type: str, **overrides) -> Path:
        key = f"{model_type} {sorted(overrides.items())}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp(model_type)
            make_model(tiny_config(model_type, **overrides)).save_pretrained(made[key])
        return made[key]

    return path


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(4, VOCAB_SIZE - 2, (n,), generator=generator).tolist() for n in lengths]


def compare(plain, jobs) -> None:
    """Greedy tokens of jobs against passes of the plain model over whole sequences."""
    equal = EqualTokens(lambda ids: plain.logits(ids)[-1])
    for job in jobs:
        expected: list[int] = []
        for _ in job.output:
            expected.append(int(plain.logits([*job.prompt, *expected])[-1].argmax()))
        equal.compare(job.prompt, expected, job.output)
    equal.check()


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_of_several_rows_and_preemption(saved, reference, family):
    continuation, overrides = FAMILIES[family]
    path = saved(family, **overrides)
    runner = make_runner(path, max_model_len=64)
    model = runner._loaded.model
    assert isinstance(model, RowModel)
    assert model.continuation == continuation
    driver = Driver(runner, budget=7, preempt_every=6)
    compare(reference(path), driver.generate(prompts(*LENGTHS), 6))
    assert driver.preemptions
    assert len(runner._ready.cache) <= 1, "a freed row keeps its cache"
    assert not runner.get_kv_cache_spec().shares_prefixes
    runner.shutdown()


@pytest.mark.parametrize("family", ["roberta", "xmod"])
def test_positions_that_begin_behind_padding_are_packed(saved, reference, family):
    path = saved(family)
    runner = make_runner(path, max_model_len=64)
    assert isinstance(runner._loaded.model, PackedModel)
    assert first_position(runner._loaded.model.model) == 2
    compare(reference(path), Driver(runner, budget=7).generate(prompts(*LENGTHS), 6))


def test_rope_that_changes_with_length_changes_for_each_row(saved, reference):
    # Rows that stay below 32 tokens, grow beyond it while decoding, and are beyond it from the first.
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 3.0, 5.0]}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32, **factors}
    path = saved(
        "phi3", rope_parameters=rope, original_max_position_embeddings=32, max_position_embeddings=64
    )
    runner = make_runner(path, max_model_len=64)
    assert isinstance(runner._loaded.model, RowModel)
    plain = reference(path)
    compare(plain, Driver(runner, budget=16).generate(prompts(9, 28, 40, 31), 8))
    whole = prompts(40)[0]
    assert not torch.allclose(plain.logits(whole)[9], plain.logits(whole[:10])[9], atol=1e-3)
    # Where no row can outgrow the fixed length, rows are packed.
    assert isinstance(make_runner(path, max_model_len=32)._loaded.model, PackedModel)


def test_an_engine_shares_no_prefixes_row_by_row(saved):
    prompt = prompts(24)[0]
    with LLM(saved("bloom"), device="cpu", block_size=4, max_model_len=64, max_num_seqs=2) as llm:
        outputs = [llm.generate([prompt], SamplingParams(temperature=0.0, max_tokens=4))[0] for _ in range(2)]
    assert outputs[0].outputs[0].token_ids == outputs[1].outputs[0].token_ids
    assert [output.num_cached_tokens for output in outputs] == [0, 0]


@pytest.mark.parametrize("family", ["bloom", "rwkv", "mistral", "deepseek_v4", "inkling_text", "openai-gpt"])
def test_no_cache_is_larger_than_what_is_counted(family):
    continuation = "none" if family == "openai-gpt" else "chunks"
    model = RowModel(make_model(tiny_config(family)), max_model_len=256, continuation=continuation)
    per_token = sum(layer.head_size_k * layer.num_kv_heads for layer in model.layers) * 4
    for length in (1, 3, 11, 12, 13, 30, 100, 200):
        state = RowState()
        with torch.inference_mode():
            for start in range(0, length, 16):
                model._advance(state, torch.full((min(16, length - start),), 7), [0])
        assert cache_bytes(state.cache) <= model.state_bytes_per_row + length * per_token, length


@pytest.mark.parametrize(
    "sizes",
    [{4: 0, 16: 0, 144: 0}, {4: 40, 16: 160, 144: 160}, {4: 10, 16: 10, 144: 1000}, {1: 9}, {4: 17, 16: 30}],
)
def test_the_bound_is_nowhere_below_what_was_measured(sizes):
    found = bound(sizes)
    assert all(found.fixed + found.per_token * length >= size for length, size in sizes.items())


def test_a_row_must_go_on_where_its_cache_ends():
    caches = RowCaches(8, 4)
    caches.state(3, 0).length = 5
    assert caches.state(3, 5).length == 5
    with pytest.raises(ValueError, match="row 3 has 5 tokens in its cache, expected 6"):
        caches.state(3, 6)
    assert caches.state(3, 0).length == 0
    caches.free_rows([3, 8])
    assert len(caches) == 0


def test_what_neither_way_computes_is_refused_by_what_it_does():
    with pytest.raises(UnsupportedConfiguration) as caught:
        choose(make_model(tiny_config("xlnet")), max_model_len=64)
    text = str(caught.value)
    assert "XLNetLMHeadModel.forward takes no position_ids" in text
    assert "row by row: " in text
    assert "computed again for each token, it differs from one pass over all tokens" in text


def test_no_internals_in_a_reason(caplog):
    choose(make_model(tiny_config("falcon")), max_model_len=64)
    assert "its own code computes with attention masks" in caplog.text
    assert "AttentionPattern" not in caplog.text
    assert "slow: each request is computed on its own" in caplog.text


def test_what_only_packed_rows_have_is_refused_at_load_too():
    with pytest.raises(UnsupportedConfiguration, match=r"speculative-row-by-row: .*takes no position_ids"):
        choose(make_model(tiny_config("bloom")), max_model_len=64, need_packing=["speculative-row-by-row"])


def test_a_package_that_the_models_code_needs_is_named(saved, monkeypatch):
    import transformers

    def fail(*args, **kwargs):
        raise ImportError("\nTimmWrapperModel requires the PIL library but it was not found.\n")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(ConfigError, match="needs a package: TimmWrapperModel requires the PIL library"):
        make_runner(saved("bloom"), max_model_len=64)
