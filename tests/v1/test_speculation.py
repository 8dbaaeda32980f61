"""Speculative decoding on V1: every method gives the tokens of decoding without drafts."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from checkpoints.evaluate import held_out_prompts
from dodona.oracle.errors import ConfigError
from dodona.runners.engine.draft_stats import DraftStats
from dodona.runners.llm import LLM
from dodona.runners.outputs import RequestOutput
from dodona.runners.sampling.params import SamplingParams
from tests.v1.driver import make_runner

QWEN3 = Path(__file__).parents[2] / "checkpoints" / "qwen3"
NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1}

HEADS = ("qwen3-eagle3", "qwen3-peagle")
METHODS: dict[str, dict[str, Any]] = {
    "ngram": NGRAM,
    "suffix": {
        "method": "suffix",
        "num_speculative_tokens": 6,
        "suffix_decoding_max_cached_requests": 0,
    },
    # A draft model that is the target agrees with it wherever the two compute the same.
    "draft_model": {"method": "draft_model", "model": str(QWEN3), "num_speculative_tokens": 3},
    **{
        name: {
            "method": "eagle3",
            "model": str(QWEN3.parent / name),
            "num_speculative_tokens": 4,
            "parallel_drafting": name == "qwen3-peagle",
        }
        for name in HEADS
    },
}


def make_llm(path: Path = QWEN3, **flat: Any) -> LLM:
    return LLM(path, **{"device": "cpu", "dtype": "float32", "max_num_seqs": 8, "block_size": 8, **flat})


def run(llm: LLM, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[RequestOutput]:
    return llm.generate([{"prompt_token_ids": list(p)} for p in prompts], list(params), use_tqdm=False)


def make_prompts() -> list[list[int]]:
    """Plain questions and conversations, some with a common beginning, and nonsense that repeats itself."""
    forms = held_out_prompts(AutoTokenizer.from_pretrained(QWEN3), count=4, recall=False, seed=5)
    found = [list(prompt.token_ids) for prompts in forms.values() for prompt in prompts]
    rng = random.Random(5)
    phrase = [rng.randrange(4, 380) for _ in range(7)]
    return [*found, found[-1][:40], found[-1][:33], phrase * 9, [rng.randrange(4, 380) for _ in range(50)]]


def mixed_params() -> list[SamplingParams]:
    """Greedy and random, with every stage of sampling; parallel to `make_prompts`."""
    common = {"max_tokens": 24, "ignore_eos": True, "seed": 11}
    stages: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.0, "logprobs": 2, "prompt_logprobs": 1},
        {"temperature": 0.8, "top_k": 5, "top_p": 0.9},
        {"temperature": 0.0, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
        {"temperature": 1.2, "logit_bias": {7: 3.0}, "logprobs": 0},
        {"temperature": 0.0, "min_tokens": 9, "ignore_eos": False, "stop": ["1", "May"]},
        {"temperature": 0.0, "max_tokens": 3},
    ]
    return [SamplingParams(**{**common, **stages[i % len(stages)]}) for i in range(16)]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return make_prompts()


@pytest.fixture(scope="module")
def mixed() -> list[SamplingParams]:
    return mixed_params()


@pytest.fixture(scope="module")
def plain(prompts: list[list[int]], mixed: list[SamplingParams]) -> list[RequestOutput]:
    """Without drafts, each request by itself."""
    with make_llm(max_num_seqs=1, enable_prefix_caching=False) as llm:
        return run(llm, prompts, mixed)


def assert_equal(found: Sequence[RequestOutput], expected: Sequence[RequestOutput]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        for own, other in zip(mine.outputs, theirs.outputs, strict=True):
            assert own.token_ids == other.token_ids
            assert (own.text, own.finish_reason, own.stop_reason) == (
                other.text, other.finish_reason, other.stop_reason,
            )  # fmt: skip
            assert (own.logprobs is None) == (other.logprobs is None)
            for entry, known in zip(own.logprobs or (), other.logprobs or (), strict=True):
                assert [*entry] == [*known]
                for token in entry:
                    assert entry[token].logprob == pytest.approx(known[token].logprob, abs=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({}, id="together"),
        pytest.param({"max_num_batched_tokens": 16}, id="chunked"),
        pytest.param({"num_gpu_blocks_override": 24, "max_model_len": 160, "block_size": 8}, id="preempted"),
    ],
)
def test_tokens_are_those_without_drafts(
    method: str,
    sizes: dict[str, Any],
    prompts: list[list[int]],
    mixed: list[SamplingParams],
    plain: list[RequestOutput],
) -> None:
    short = [i for i, prompt in enumerate(prompts) if len(prompt) <= 120]
    with make_llm(speculative_config=METHODS[method], **sizes) as llm:
        for _ in range(2):  # the second time prompts are in the prefix cache
            found = run(llm, [prompts[i] for i in short], [mixed[i] for i in short])
            assert_equal(found, [plain[i] for i in short])
        counts = llm.draft_stats()
        assert 10 < counts.num_accepted_tokens <= counts.num_draft_tokens
        last = sum(sequence.num_accepted_tokens for output in found for sequence in output.outputs)
        assert 0 < last < counts.num_accepted_tokens
        if "num_gpu_blocks_override" in sizes:
            assert llm._client.call(lambda _, scheduler: scheduler.num_preemptions) > 0


@pytest.mark.parametrize("method", METHODS)
def test_grammars_with_drafts(method: str, prompts: list[list[int]]) -> None:
    pytest.importorskip("llguidance")
    forms = [
        {"regex": r"(ab){3,9}c"},
        {"json": {"type": "array", "items": {"enum": ["x", 12]}, "minItems": 5, "maxItems": 9}},
        {"choice": ["May 12, 2031", "May 13"]},
    ]
    params = [
        SamplingParams(temperature=t, seed=3, max_tokens=60, structured_outputs=form)
        for form in forms
        for t in (0.0, 1.0)
    ]
    with make_llm(max_num_seqs=1) as llm:
        expected = run(llm, prompts[:6], params)
    with make_llm(speculative_config=METHODS[method]) as llm:
        found = run(llm, prompts[:6], params)
        assert llm.draft_stats().num_accepted_tokens > 0
    assert_equal(found, expected)


def test_a_draft_model_that_is_the_target_is_always_right(
    prompts: list[list[int]], mixed: list[SamplingParams]
) -> None:
    """Random requests included: drafts are drawn with the noise of their positions."""
    with make_llm(speculative_config=METHODS["draft_model"], enable_prefix_caching=False) as llm:
        run(llm, prompts, mixed)
        counts = llm.draft_stats()
    assert counts.num_draft_tokens > 100
    # Near ties that are computed in two ways.
    assert counts.num_accepted_tokens >= counts.num_draft_tokens - 3


def test_memory_counts_the_draft() -> None:
    plain, drafting = (
        make_runner(QWEN3, speculative_config=config) for config in (None, METHODS["draft_model"])
    )
    one, both = plain.get_kv_cache_spec(), drafting.get_kv_cache_spec()
    assert both.bytes_per_block == 2 * one.bytes_per_block
    # Three drafts fit into one block of a row's own.
    assert (one.state_bytes_per_row, both.state_bytes_per_row) == (0, one.bytes_per_block)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 390}, "vocab_size=390 does not fit the target"),
        ({"max_position_embeddings": 256}, "max_position_embeddings=256 is less than max_model_len=512"),
        ({"quantization_config": {"quant_method": "awq"}}, "can't run this draft model, for"),
    ],
)
def test_a_draft_model_that_does_not_fit(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    raw = json.loads((QWEN3 / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, **changes}))
    shutil.copy(QWEN3 / "model.safetensors", tmp_path)
    speculative = {"method": "draft_model", "model": str(tmp_path), "num_speculative_tokens": 2}
    runner = make_runner(QWEN3, load=False, speculative_config=speculative)
    with pytest.raises(ConfigError, match=message):
        runner.load_model()


def test_a_draft_model_of_other_tokens(tmp_path: Path) -> None:
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(QWEN3 / file, tmp_path)
    tokens = json.loads((tmp_path / "tokenizer.json").read_text())
    first, second, *_ = tokens["model"]["vocab"]
    vocabulary = tokens["model"]["vocab"]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokens))
    speculative = {"method": "draft_model", "model": str(tmp_path), "num_speculative_tokens": 2}
    runner = make_runner(QWEN3, load=False, speculative_config=speculative)
    with pytest.raises(ConfigError, match="other tokens than the target's"):
        runner.load_model()


def test_lookup_takes_the_longest_and_latest_match() -> None:
    from dodona.runners.drafting.prompt_lookup import PromptLookup

    drafter = PromptLookup(num_speculative_tokens=2, largest=3, smallest=1)
    assert drafter.lookup([1, 2, 3, 4, 9, 2, 3, 5, 6, 1, 2, 3]) == [4, 9]  # three tokens before two
    assert drafter.lookup([2, 3, 4, 4, 9, 2, 3, 5, 6, 7, 2, 3]) == [5, 6]  # the later of two
    assert drafter.lookup([5, 5, 5, 5]) == [5]  # the earliest where none has enough after it
    assert drafter.lookup([1, 2, 3]) == []
    assert drafter.lookup([7]) == []
    assert PromptLookup(num_speculative_tokens=2, largest=3, smallest=2).lookup([1, 8, 2, 1]) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": "ngram"}, "num_speculative_tokens is not set"),
        (
            {
                "method": "ngram",
                "num_speculative_tokens": 2,
                "prompt_lookup_max": 2,
                "prompt_lookup_min": 3,
            },
            "prompt_lookup_min=3 is over prompt_lookup_max=2",
        ),
        ({"method": "suffix"}, "suffix_decoding_max_cached_requests=10000: .* set it to 0"),
        (
            {"method": "ngram", "num_speculative_tokens": 2, "suffix_decoding_min_token_prob": 0.0},
            "suffix_decoding_min_token_prob is for method 'suffix', and the method is 'ngram'",
        ),
        (
            {"method": "suffix", "suffix_decoding_max_cached_requests": 0, "prompt_lookup_max": 2},
            "prompt_lookup_max is for method 'ngram'",
        ),
    ],
)
def test_what_does_not_fit_is_named(config: dict[str, Any], message: str) -> None:
    runner = make_runner(QWEN3, load=False, speculative_config=config)
    with pytest.raises(ConfigError, match=message):
        runner.load_model()


def drafted_answers(speculative: dict[str, Any]) -> tuple[list[RequestOutput], DraftStats]:
    """Greedy answers to 40 held-out questions, and what became of the drafts."""
    forms = held_out_prompts(AutoTokenizer.from_pretrained(QWEN3), count=40, recall=False, seed=1)
    questions = [list(prompt.token_ids) for prompt in forms["plain"]]
    with make_llm(speculative_config=speculative) as llm:
        outputs = run(llm, questions, [SamplingParams(temperature=0.0, max_tokens=24)] * len(questions))
        return outputs, llm.draft_stats()


def accepted_after_first(stats: DraftStats) -> float:
    """Accepted drafts of a step but the first."""
    return sum(stats.num_accepted_tokens_per_pos[1:]) / stats.num_drafts


def test_trained_heads_draft_what_the_target_says() -> None:
    lengths = {name: drafted_answers(METHODS[name])[1].mean_acceptance_length for name in HEADS}
    assert lengths["qwen3-eagle3"] > 2.5
    assert lengths["qwen3-peagle"] > 0.9 * lengths["qwen3-eagle3"]


def test_a_parallel_head_that_drafts_one_after_the_other_collapses(tmp_path: Path) -> None:
    """What vllm-project/vllm#43010 prevents: a P-EAGLE head that is run as a sequential one gives drafts that
    are hardly ever right after the first. V1 refuses it; here its config.json says that it is an EAGLE3
    head."""
    source = QWEN3.parent / "qwen3-peagle"
    raw = json.loads((source / "config.json").read_text())
    del raw["mask_token_id"]
    (tmp_path / "config.json").write_text(json.dumps({**raw, "speculators_model_type": "eagle3"}))
    tensors = load_file(source / "model.safetensors")
    del tensors["mask_hidden"]
    save_file(tensors, tmp_path / "model.safetensors")
    outputs, parallel = drafted_answers(METHODS["qwen3-peagle"])
    collapsed_outputs, collapsed = drafted_answers(
        {"method": "eagle3", "model": str(tmp_path), "num_speculative_tokens": 4}
    )
    assert_equal(collapsed_outputs, outputs)  # acceptance suffers, outputs don't
    assert accepted_after_first(collapsed) < 0.25 * accepted_after_first(parallel)
