"""Logits that are not numbers end their request with an error, on both runners, and nobody else's."""

from __future__ import annotations

import math
import shutil

import pytest
from safetensors.torch import load_file, save_file

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.machine.environment import assumed_gpu
from dodona.oracle.select import select_runner
from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from tests.v2.drive import DEVICE, generate, make_runner
from tests.v2.test_greedy_tokens import Reference, prompts_of
from tests.v2.test_speculation import NGRAM, SMALL, NoisyOracle

SPOILT = 7
"""The token whose embedding is not a number."""
SAMPLED = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True),
    "plain": SamplingParams(temperature=0.8, seed=3, max_tokens=3, ignore_eos=True),
    "masked": SamplingParams(
        temperature=0.8, seed=3, top_k=5, top_p=0.9, min_p=0.01, bad_words=None, repetition_penalty=1.1,
        logit_bias={SPOILT: -100.0}, max_tokens=3, ignore_eos=True,
    ),
    "log-probabilities": SamplingParams(temperature=0.0, logprobs=2, max_tokens=3, ignore_eos=True),
}  # fmt: skip


@pytest.fixture(scope="module")
def spoilt_model(tiny_models, tmp_path_factory):
    path = tmp_path_factory.mktemp("spoilt") / "model"
    shutil.copytree(tiny_models.path("qwen3", **SMALL), path)
    tensors = load_file(path / "model.safetensors")
    tensors["model.embed_tokens.weight"][SPOILT] = math.nan
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.mark.usefixtures("no_warm_up")
@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_a_lost_row_ends_its_request_alone(spoilt_model, tiny_models, monkeypatch, runner):
    sizes = {
        "max_num_seqs": 8,
        "max_num_batched_tokens": 48,
        "max_model_len": 64,
        "enable_prefix_caching": False,
    }
    if runner == "v1":
        monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
        sizes["device"] = DEVICE
    config = EngineConfig.from_flat(
        str(spoilt_model), skip_tokenizer_init=True, num_gpu_blocks_override=40, **sizes
    )
    verdict = select_runner(config, environment=assumed_gpu() if runner == "v2" else None)
    good = [[token for token in prompt if token != SPOILT] for prompt in prompts_of(3, 12, 9, 5)]
    bad = [[SPOILT], [*good[1], SPOILT], [SPOILT, 4, 5], [4, SPOILT, 6, 8]]
    with LLM.from_verdict(verdict) as llm:
        assert llm.verdict.runner == runner
        apart = [list(result.outputs[0].token_ids) for result in llm.generate(good, list(SAMPLED.values()))]
        for _ in range(2):  # rows and blocks of lost requests serve others
            prompts = [prompt for pair in zip(good, bad, strict=True) for prompt in pair]
            params = [params for params in SAMPLED.values() for _ in range(2)]
            results = llm.generate(prompts, params)
            outputs = [result.outputs[0] for result in results]
            lost = outputs[1::2]
            assert [output.finish_reason for output in lost] == ["error"] * 4
            assert all("NaN" in (result.error or "") for result in results[1::2]), results[1].error
            assert [list(output.token_ids) for output in lost] == [[]] * 4
            assert [output.finish_reason for output in outputs[::2]] == ["length"] * 4
            assert [list(output.token_ids) for output in outputs[::2]] == apart
    reference = Reference(tiny_models.path("qwen3", **SMALL))
    reference.check(good[:1], [list(outputs[0].token_ids)], max_tokens=3)


def test_a_row_is_lost_among_accepted_drafts(spoilt_model) -> None:
    """`good`, until its penalty leaves `SPOILT`, after which nothing is a number."""
    good = 10
    params = [
        SamplingParams(
            temperature=0.0, ignore_eos=True, logit_bias={good: 9.0}, frequency_penalty=2.0,
            allowed_token_ids=[good, SPOILT], logprobs=1,
        ),
        SamplingParams(temperature=0.9, seed=3, ignore_eos=True),
    ]  # fmt: skip
    prompts, lengths = [[good] * 5, [25, 30, 28]], (9, 4)
    plain = generate(make_runner(spoilt_model), prompts, max_tokens=lengths, params=params)
    assert [request.finish_reason for request in plain.requests] == ["error", "length"]
    assert plain.outputs[0][-1] == SPOILT
    assert len(plain.outputs[0]) > 2
    runner = make_runner(spoilt_model, speculative_config=NGRAM)
    runner._lookup = NoisyOracle(  # type: ignore[assignment]
        {tuple(r.token_ids[: r.num_prompt_tokens]): [*r.token_ids, 9, 9, 9] for r in plain.requests}
    )
    run = generate(runner, prompts, max_tokens=lengths, params=params)
    assert run.outputs == plain.outputs
    for mine, theirs in zip(run.requests, plain.requests, strict=True):
        assert (mine.finish_reason, mine.error) == (theirs.finish_reason, theirs.error)
        assert len(mine.logprobs) == len(theirs.logprobs)
    assert run.scheduler.draft_stats.num_accepted_tokens > 2
    assert (run.scheduler.num_free_rows, run.scheduler.blocks.num_free) == (4, 40)
