"""Speculative decoding on V2: the tokens of decoding without drafts, whatever is drafted."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from dodona.runners.interface import SchedulerOutput, StepOutput
from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.v2.runner import V2Runner
from tests.v2.drive import EagerGraphs, Run, generate, make_runner, set_graphs
from tests.v2.test_greedy_tokens import prompts_of
from tests.v2.test_llm import CHECKPOINTS, make_llm

K = 3
NGRAM = {"method": "ngram", "num_speculative_tokens": K, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
SMALL = {"head_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}

STAGES = [
    SamplingParams(temperature=0.0, ignore_eos=True, logprobs=2, prompt_logprobs=1),
    SamplingParams(
        temperature=1.0, seed=6, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.6, top_k=9,
        top_p=0.9, logit_bias={7: 3.0}, ignore_eos=True, logprobs=0,
    ),
    SamplingParams(
        temperature=0.8, seed=8, allowed_token_ids=[3, 4, 5, 6], frequency_penalty=1.5, min_tokens=5,
        stop_token_ids=[3, 4],
    ),
]  # fmt: skip
LENGTHS = (14, 8, 8)
"""With four blocks the second request has to wait for the end of the first."""
RANDOM = SamplingParams(temperature=0.9, seed=5, ignore_eos=True)


class NoisyOracle:
    """In the place of a drafter: what a request will yield, with mistakes, and often nothing."""

    def __init__(self, expected: Mapping[tuple[int, ...], Sequence[int]], most: int = K) -> None:
        self._random = random.Random(4)
        self._expected = expected
        self._most = most
        self._tokens: dict[int, list[int]] = {}

    def begin(self, step: SchedulerOutput) -> None:
        for request in step.new_requests:
            self._tokens[request.row] = list(request.token_ids)

    def propose(self, output: StepOutput) -> StepOutput:
        drafts = {}
        for row, token_id in zip(output.rows, output.token_ids, strict=True):
            tokens = self._tokens[row]
            tokens += [token_id, *(output.further[row].token_ids if row in output.further else ())]
            whole = next(w for p, w in self._expected.items() if tuple(tokens[: len(p)]) == p)
            count = self._random.randint(0, self._most)
            draft = [t if self._random.random() < 0.8 else 1 for t in whole[len(tokens) :][:count]]
            if draft:
                drafts[row] = draft
        return replace(output, draft_token_ids=drafts)


def with_oracle(runner: V2Runner, plain: Run) -> None:
    runner._lookup = NoisyOracle(  # type: ignore[assignment]
        {tuple(r.token_ids[: r.num_prompt_tokens]): r.token_ids for r in plain.requests}
    )


def assert_equal(found: Run, expected: Run) -> None:
    for mine, theirs in zip(found.requests, expected.requests, strict=True):
        assert mine.token_ids == theirs.token_ids
        assert mine.finish_reason == theirs.finish_reason
        for own, known in ((mine.logprobs, theirs.logprobs), (mine.prompt_logprobs, theirs.prompt_logprobs)):
            assert len(own) == len(known)
            for entry, other in zip(own, known, strict=True):
                assert (entry.token_ids, entry.rank) == (other.token_ids, other.rank)
                assert entry.logprobs == pytest.approx(other.logprobs, abs=1e-3)


@pytest.fixture(scope="module")
def case(tiny_models) -> tuple[Any, list[list[int]], Run]:
    path, prompts = tiny_models.path("qwen3", **SMALL), prompts_of(14, 30, 15)
    return path, prompts, generate(make_runner(path), prompts, max_tokens=LENGTHS, params=STAGES)


def test_tokens_are_those_without_drafts(case) -> None:
    """Chunked prompts beside rows that verify, prefix caching, preemption, and every stage of the sampler."""
    path, prompts, plain = case
    runner = make_runner(path, speculative_config=NGRAM, max_num_batched_tokens=24)
    assert (runner.num_speculative_tokens, runner.max_steps_in_flight) == (K, 1)
    with_oracle(runner, plain)
    run = generate(
        runner, prompts, max_tokens=LENGTHS, params=STAGES, num_blocks=4, enable_prefix_caching=True
    )
    assert_equal(run, plain)
    stats = run.scheduler.draft_stats
    assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens
    assert run.scheduler.num_preemptions > 0


def test_padding_after_drafts_does_no_harm(case) -> None:
    path, prompts, plain = case
    runner = make_runner(path, speculative_config=NGRAM)
    graphs = EagerGraphs(runner.ready.steps, decodes=(1, 4), prompts=(32,), drafts=(5, 14))
    set_graphs(runner, graphs)
    with_oracle(runner, plain)
    assert_equal(generate(runner, prompts, max_tokens=LENGTHS, params=STAGES), plain)
    expected = generate(make_runner(path), prompts[:1], max_tokens=8, params=RANDOM)
    with_oracle(runner, expected)
    assert_equal(generate(runner, prompts[:1], max_tokens=8, params=RANDOM), expected)
    assert {(step.samples, step.size) for step in graphs.replayed if step.verifies} >= {
        (True, 5),
        (False, 14),
    }


def test_lookup_finds_what_repeats_in_a_sliding_window(tiny_models) -> None:
    path = tiny_models.path("mistral", sliding_window=8, **SMALL)
    prompts = [[5, 6, 7, 8] * 5]
    params = SamplingParams(temperature=0.0, allowed_token_ids=[7], ignore_eos=True)
    plain = generate(make_runner(path), prompts, max_tokens=11, params=params)
    run = generate(make_runner(path, speculative_config=NGRAM), prompts, max_tokens=11, params=params)
    assert run.outputs == plain.outputs
    assert run.scheduler.draft_stats.num_accepted_tokens > 3
    assert run.steps < plain.steps


@pytest.mark.usefixtures("no_warm_up")
def test_grammars_of_an_engine() -> None:
    pytest.importorskip("llguidance")
    params = [
        SamplingParams(temperature=1.0, seed=2, max_tokens=9, structured_outputs={"regex": "(ab){3,4}c"}),
        SamplingParams(temperature=0.7, seed=3, max_tokens=5, ignore_eos=True),
    ]
    prompts = ["1 + 7", "4 4 4 4 4"]
    flat = {
        "dtype": "float32", "max_num_seqs": 2, "max_num_batched_tokens": 24, "max_model_len": 64,
        "num_gpu_blocks_override": 10,
    }  # fmt: skip
    with LLM(CHECKPOINTS / "qwen3", device="cpu", block_size=16, **flat) as v1:
        expected = v1.generate(prompts, params, use_tqdm=False)
    with make_llm(CHECKPOINTS / "qwen3", speculative_config=NGRAM, **flat) as llm:
        assert llm.verdict.runner == "v2"
        found = llm.generate(prompts, params, use_tqdm=False)
        assert llm.draft_stats().num_accepted_tokens > 0
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.outputs[0].token_ids == theirs.outputs[0].token_ids
        assert mine.outputs[0].finish_reason == theirs.outputs[0].finish_reason


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_captured_steps_verify(dtype: str, tiny_models) -> None:
    """Steps of fixed form as graphs, on a GPU."""
    path, prompts = tiny_models.path("qwen3", head_dim=64, hidden_size=128), prompts_of(4, 20, 9, 13)
    settings, params = {"dtype": dtype, "max_num_seqs": 6}, [RANDOM, *STAGES]
    plain = generate(make_runner(path, **settings), prompts, max_tokens=20, params=params)
    runner = make_runner(path, speculative_config=NGRAM, **settings)
    with_oracle(runner, plain)
    run = generate(runner, prompts, max_tokens=20, params=params)
    different = [a for a, b in zip(run.outputs, plain.outputs, strict=True) if a != b]
    assert len(different) <= (0 if dtype == "float32" else 2)  # near ties are rounded in two ways
    assert run.scheduler.draft_stats.num_accepted_tokens > 10
