"""V2 under the whole engine: the oracle's verdict, `LLM`, its thread, stop conditions, aborts."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.machine.environment import assumed_gpu
from dodona.oracle.select import select_runner
from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.v1.runner import V1Runner
from dodona.runners.v2.runner import V2Runner
from tests.support.stress import Sizes, check_stress
from tests.v2 import stress
from tests.v2.test_greedy_tokens import Reference, prompts_of

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
SMALL = {"max_num_seqs": 4, "max_num_batched_tokens": 48, "max_model_len": 256, "num_gpu_blocks_override": 40}
GREEDY = SamplingParams(temperature=0.0, max_tokens=5)


def make_llm(path, override=None, **flat):
    """An LLM by the verdict for a machine with a GPU; without one, Triton's interpreter runs V2's kernels."""
    verdict = select_runner(EngineConfig.from_flat(str(path), **flat), environment=assumed_gpu(override))
    return LLM.from_verdict(verdict)


@pytest.fixture(scope="module")
def llm(tiny_models):
    llm = make_llm(tiny_models.path("qwen3", head_dim=16), skip_tokenizer_init=True, **SMALL)
    yield llm
    llm.shutdown()


def test_generate_equals_transformers(llm, tiny_models):
    assert llm.verdict.runner == "v2"
    prompts = prompts_of(3, 60, 17, 31, 8)
    outputs = llm.generate(prompts, GREEDY)
    reference = Reference(tiny_models.path("qwen3", head_dim=16))
    reference.check(prompts, [list(output.outputs[0].token_ids) for output in outputs], max_tokens=5)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_replicas_in_processes_with_two_steps_in_flight(tiny_models):
    path = tiny_models.path("qwen3", head_dim=16)
    with make_llm(path, skip_tokenizer_init=True, data_parallel_size=2, **SMALL) as llm:
        assert llm._client.call_all(lambda runner, _: (runner.name, runner.max_steps_in_flight)) == [
            ("v2", 2),
            ("v2", 2),
        ]
        prompts = prompts_of(3, 60, 17, 31)
        outputs = llm.generate(prompts, GREEDY)
        assert min(llm._client.call_all(lambda _, scheduler: scheduler._num_steps)) > 0
    Reference(path).check(prompts, [list(output.outputs[0].token_ids) for output in outputs], max_tokens=5)


def test_a_stop_token_ends_one_request_while_the_next_step_runs(llm):
    prompts = prompts_of(9, 12)
    free = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True))
    tokens = list(free[0].outputs[0].token_ids)
    stop = tokens[2]
    stopping = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, stop_token_ids=[stop])
    ended, whole = llm.generate(
        prompts, [stopping, SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)]
    )
    assert list(ended.outputs[0].token_ids) == tokens[: tokens.index(stop) + 1]
    assert ended.outputs[0].finish_reason == "stop"
    assert list(whole.outputs[0].token_ids) == list(free[1].outputs[0].token_ids)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["qwen3", "llama", "mistral"])
def test_trained_checkpoints_answer_alike_on_both_runners(name):
    from tests.support.equal_tokens import EqualTokens

    path = CHECKPOINTS / name
    sums = [(a, b) for a in range(3, 900, 70) for b in range(5, 90, 17)]
    questions = [f"What is {a} + {b}?" for a, b in sums]
    params = SamplingParams(temperature=0.0, max_tokens=12)
    answers = {}
    for override, runner in ((None, V2Runner), ("v1", V1Runner)):
        llm = make_llm(path, override, dtype="float32", gpu_memory_utilization=0.3)
        assert llm.verdict.runner == runner.name
        answers[runner.name] = [output.outputs[0] for output in llm.generate(questions, params)]
        tokenizer = llm.get_tokenizer()
        llm.shutdown()
    right = [str(a + b) == answer.text.strip() for (a, b), answer in zip(sums, answers["v2"], strict=True)]
    assert sum(right) >= 0.9 * len(right)
    equal = EqualTokens(Reference(path).logits)
    for question, v1, v2 in zip(questions, answers["v1"], answers["v2"], strict=True):
        equal.compare(tokenizer(question).input_ids, list(v1.token_ids), list(v2.token_ids))
    equal.check()


def test_random_requests_with_aborts_and_drafts_equal_their_solo_runs(tmp_path):
    """Few of them; `python -m tests.v2.stress` runs 200."""
    pytest.importorskip("llguidance")
    stats = stress.check(12, seed=0, drafts=stress.NGRAM, folder=tmp_path)
    assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens


@pytest.mark.gpu
@pytest.mark.slow
def test_random_requests_equal_their_solo_runs():
    path = CHECKPOINTS / "mistral"  # its sliding window is shorter than most sequences
    check_stress(
        partial(make_llm, path, dtype="float32"),
        Reference(path).logits,
        AutoTokenizer.from_pretrained(path),
        block_size=16,
        # A window's blocks are freed behind it: only requests that grow beyond their first block preempt.
        sizes=Sizes(longest_prompt=24, most_tokens=120),
    )
