"""Models whose layers keep an inner state: V1's greedy tokens are those of transformers' own `generate`."""

from __future__ import annotations

import random

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.errors import EngineSetupError
from dodona.runners.limits import size_kv_cache
from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.v1.drafting.drafting import LookupDrafting
from dodona.runners.v1.mixers import at_tokens, step_states
from dodona.runners.v1.packed_model import PackedModel
from dodona.runners.v1.self_check import self_check
from dodona.runners.v1.state_slots import DeviceStates, StateRound, StateSlots, StateSpec
from tests.support.equal_tokens import EqualTokens
from tests.support.tiny_hybrids import HYBRIDS
from tests.support.tiny_models import MAX_LENGTH, make_model
from tests.v1.driver import Driver, make_runner
from tests.v1.test_greedy_tokens import NEW_TOKENS, mixed_prompts

ONE_BY_ONE = {"mamba", "falcon-mamba", "jamba"}
"""Mamba-1: transformers' scan of several tokens begins without a state."""


def _compare(tiny_models, reference, family, *, num_blocks=160, **driver_settings):
    path = tiny_models.path(family)
    runner = make_runner(path, num_blocks=num_blocks, max_model_len=MAX_LENGTH)
    plain = reference(path)
    driver = Driver(runner, num_blocks=num_blocks, **driver_settings)
    equal = EqualTokens(lambda ids: plain.logits(ids)[-1])
    for job in driver.generate(mixed_prompts(), NEW_TOKENS):
        equal.compare(job.prompt, plain.generate(job.prompt, job.max_tokens), job.output)
    equal.check()
    return driver, runner


@pytest.mark.parametrize("family", HYBRIDS)
def test_chunks_and_preemption(tiny_models, reference, family):
    if HYBRIDS[family][0] not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {HYBRIDS[family][0]}")
    driver, runner = _compare(tiny_models, reference, family, budget=7, preempt_every=5)
    assert driver.preemptions > 0
    mixers = runner._loaded.model.mixers
    assert mixers
    assert {mixer.continues for mixer in mixers} == {family not in ONE_BY_ONE}


@pytest.mark.parametrize("family", ["lfm2", "falcon-h1", "mamba"])
def test_mixed_lengths_in_one_batch(tiny_models, reference, family):
    _compare(tiny_models, reference, family)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["lfm2", "bamba", "jamba"])
def test_half_precision(family, dtype):
    model = PackedModel(make_model(family).to(dtype))
    self_check(model, max_model_len=MAX_LENGTH)
    assert {mixer.continues for mixer in model.mixers} == {family not in ONE_BY_ONE}


def _generate(path, prompts, **flat):
    """The outputs of an LLM over the model, its KV size, and its scheduler when all requests have ended."""
    greedy = SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True)
    settings = {"device": "cpu", "block_size": 4, "max_model_len": MAX_LENGTH, "max_num_seqs": 4, **flat}
    with LLM(path, **settings) as llm:
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], greedy, use_tqdm=False)
        return outputs, llm.num_kv_blocks, llm._client.call(lambda _, scheduler: scheduler)


@pytest.mark.parametrize("family", ["lfm2", "mamba"])
def test_through_the_engine_without_a_prefix_cache(tiny_models, reference, family, monkeypatch, caplog):
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    path = tiny_models.path(family)
    prompts = mixed_prompts()
    # Twice the same: a prefix cache would find the second ones.
    outputs, num_blocks, scheduler = _generate(
        path, [*prompts, *prompts], max_num_batched_tokens=16, kv_cache_memory_bytes=1 << 18
    )
    plain = reference(path)
    equal = EqualTokens(lambda ids: plain.logits(ids)[-1])
    for prompt, output in zip([*prompts, *prompts], outputs, strict=True):
        equal.compare(prompt, plain.generate(prompt, 9), list(output.outputs[0].token_ids))
        assert output.num_cached_tokens == 0
    equal.check()
    assert "prefix caching is off" in caplog.text
    assert scheduler.blocks.num_free == num_blocks
    assert scheduler.num_free_rows == 4


def test_a_preempted_request_begins_anew(tiny_models, reference, monkeypatch):
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    path = tiny_models.path("falcon-h1")
    prompts = mixed_prompts()
    outputs, _, scheduler = _generate(
        path, prompts, max_num_batched_tokens=16, num_gpu_blocks_override=14, max_model_len=56
    )
    plain = reference(path)
    equal = EqualTokens(lambda ids: plain.logits(ids)[-1])
    for prompt, output in zip(prompts, outputs, strict=True):
        equal.compare(prompt, plain.generate(prompt, 9), list(output.outputs[0].token_ids))
    equal.check()
    assert scheduler.num_preemptions > 0


def test_states_come_before_kv_blocks_in_the_memory_plan(tiny_models, monkeypatch):
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    path = tiny_models.path("lfm2")
    runner = make_runner(path)
    spec = runner.get_kv_cache_spec()
    # Two convolutions over 32 channels and 3 tokens; one attention layer with 2 heads of 8, twice.
    assert spec.state_bytes_per_row == 2 * 32 * 3 * 4
    assert spec.bytes_per_block == 2 * 2 * 8 * 4 * 4
    memory = 4 * spec.state_bytes_per_row + 70 * spec.bytes_per_block
    assert _generate(path, [[5, 6, 7]], kv_cache_memory_bytes=memory)[1] == 70
    few = 4 * spec.state_bytes_per_row - 1
    with pytest.raises(UnsupportedConfiguration, match=f"kv_cache_memory_bytes={few} is less than"):
        _generate(path, [[5, 6, 7]], kv_cache_memory_bytes=few)
    config, limits = EngineConfig.from_flat(str(path)), runner.limits
    with pytest.raises(EngineSetupError, match="hold no inner states of max_num_seqs=8 rows"):
        size_kv_cache(
            config,
            limits,
            bytes_per_block=spec.bytes_per_block,
            state_bytes_per_row=spec.state_bytes_per_row,
            determine_available_memory=lambda: few,
        )
    measured = runner.determine_available_memory()
    assert measured == 8 * spec.state_bytes_per_row + 8 * (MAX_LENGTH // 4) * spec.bytes_per_block


def test_without_attention_a_block_is_a_sequence_and_takes_no_bytes(tiny_models, monkeypatch):
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    path = tiny_models.path("mamba2")
    spec = make_runner(path, max_model_len=MAX_LENGTH).get_kv_cache_spec()
    assert (spec.layers, spec.block_size, spec.bytes_per_block) == ((), MAX_LENGTH, 0)
    assert _generate(path, [[5, 6, 7]], kv_cache_memory_bytes=1 << 20)[1] == 2 * 4


def test_a_row_goes_on_only_where_its_states_end():
    slots = StateSlots([[StateSpec("conv", 0, (2, 3), torch.float32)]], 2, torch.device("cpu"))
    slots.step([1], [5], [0])
    slots.step([0, 1], [4, 1], [0, 5])
    for computed in (5, 7):  # cut back; found in a prefix cache
        with pytest.raises(ValueError, match=f"row 1 goes on at token {computed}, .* stand for 6 tokens"):
            slots.step([1], [1], [computed])
    slots.step([1], [3], [0])
    assert StateSlots([], 2, torch.device("cpu")).step([1], [1], [9]) is None


def test_a_state_of_another_shape_is_noticed():
    model = PackedModel(make_model("lfm2"))
    mixer = model.mixers[0]
    layer = mixer._layer(None)
    mixer._run({"hidden_states": torch.zeros(1, 2, 32)}, layer)
    layer.conv_states[0] = layer.conv_states[0][..., :2]
    with pytest.raises(RuntimeError, match="conv state has shape"):
        mixer._states_of(layer)


def test_the_self_check_notices_states_of_other_rows(monkeypatch):
    model = PackedModel(make_model("lfm2"))
    gathered = torch.Tensor.index_select
    monkeypatch.setattr(
        torch.Tensor,
        "index_select",
        lambda self, dim, index: gathered(self, dim, index.flip(0) if self.shape[1:] == (32, 3) else index),
    )
    with pytest.raises(UnsupportedConfiguration, match="the paged path differs"):
        self_check(model, max_model_len=MAX_LENGTH)


class _Guesses:
    """In place of a drafter: what follows in known texts, now and then with a wrong token in it."""

    def __init__(self, texts, vocab_size):
        self.texts, self.vocab_size, self.rng = texts, vocab_size, random.Random(3)

    def propose(self, contexts):
        found = {}
        for context in contexts:
            known = list(context.state.tokens(0, context.end + 1))
            text = next((t for t in self.texts if t[: len(known)] == known), known)
            drafts = text[len(known) : len(known) + self.rng.randint(0, 3)]
            if drafts and self.rng.random() < 0.5:
                drafts[self.rng.randrange(len(drafts))] = self.rng.randrange(self.vocab_size)
            if context.wants_drafts:
                found[context.row] = drafts
        return found


@pytest.mark.parametrize("family", HYBRIDS)
def test_states_go_on_from_the_last_accepted_draft(tiny_models, reference, family, monkeypatch):
    if HYBRIDS[family][0] not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {HYBRIDS[family][0]}")
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    path, prompts = tiny_models.path(family), mixed_prompts()
    plain = reference(path)
    answers = [plain.generate(prompt, 9) for prompt in prompts]
    guesses = _Guesses(
        [[*p, *a] for p, a in zip(prompts, answers, strict=True)], plain.model.config.vocab_size
    )
    monkeypatch.setattr(LookupDrafting, "start", lambda *_: guesses)
    blocks = {"num_gpu_blocks_override": 20, "max_model_len": 56, "max_num_batched_tokens": 17}
    speculative = {"method": "ngram", "num_speculative_tokens": 3}
    outputs, _, scheduler = _generate(path, prompts, speculative_config=speculative, **blocks)
    equal = EqualTokens(lambda ids: plain.logits(ids)[-1])
    for prompt, answer, output in zip(prompts, answers, outputs, strict=True):
        equal.compare(prompt, answer, list(output.outputs[0].token_ids))
    equal.check()
    counts = scheduler.draft_stats
    assert 5 < counts.num_accepted_tokens < counts.num_draft_tokens - 5


@pytest.mark.parametrize("family", ["mamba2", "lfm2"])
def test_a_draft_model_has_kv_blocks_where_its_target_has_states(tiny_models, reference, family, monkeypatch):
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    path, prompts = tiny_models.path(family), mixed_prompts()
    plain = reference(path)
    speculative = {
        "method": "draft_model",
        "model": str(tiny_models.path("llama")),
        "num_speculative_tokens": 2,
    }
    outputs, _, scheduler = _generate(
        path, prompts, speculative_config=speculative, num_gpu_blocks_override=20, max_model_len=56
    )
    equal = EqualTokens(lambda ids: plain.logits(ids)[-1])
    for prompt, output in zip(prompts, outputs, strict=True):
        equal.compare(prompt, plain.generate(prompt, 9), list(output.outputs[0].token_ids))
    equal.check()
    assert scheduler.block_size == 4
    assert scheduler.draft_stats.num_draft_tokens > 10


@pytest.mark.parametrize("family", ["mamba", "lfm2"])
def test_a_sequence_that_begins_among_decodes_has_no_state(family):
    """A prompt of one token joins a graph's decodes; its row's slot holds what the last request left."""
    mixer = PackedModel(make_model(family)).mixers[0]
    slots = [torch.full((2, *state.shape), 7.0) for state in mixer.states]
    row = torch.tensor([1])
    begins = StateRound(torch.tensor([0]), row, row, torch.tensor([True]))
    with torch.inference_mode():
        with step_states(DeviceStates([slots], [begins], [], None)):
            found = mixer.module(**at_tokens(mixer.arguments, [2]))
        alone = mixer.piecewise([[2]])
    torch.testing.assert_close(found, alone.outputs[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close([slot[1:] for slot in slots], list(alone.states), rtol=1e-5, atol=1e-5)
    assert all((slot[0] == 7).all() for slot in slots)
