"""Structured outputs on V2: the tokens of V1, with plain requests beside and two steps under way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from tests.support.json_schemas import conforms
from tests.v2.test_llm import make_llm

pytest.importorskip("llguidance")

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
SCHEMA = {
    "type": "object",
    "properties": {"s": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["s"],
    "additionalProperties": False,
}
FORMS: list[dict[str, Any] | None] = [
    {"json": SCHEMA, "disable_any_whitespace": True},
    None,
    {"choice": ["ja", "nein 🙂"]},
    {"regex": "[0-9]{2,3}"},
    None,
]


def ask(form: dict[str, Any] | None, i: int, **changes: Any) -> SamplingParams:
    return SamplingParams(
        **{"temperature": 1.0, "seed": i, "max_tokens": 24, "structured_outputs": form, **changes}
    )


def both_runners(
    prompts: list[str], params: list[SamplingParams], **flat: Any
) -> tuple[list[Any], list[Any]]:
    path = CHECKPOINTS / "qwen3"
    flat = {"dtype": "float32", "max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 128, **flat}
    with LLM(path, device="cpu", block_size=16, **flat) as v1:
        expected = v1.generate(prompts, params)
        assert v1.verdict.runner == "v1"
    with make_llm(path, **flat) as v2:
        assert v2.verdict.runner == "v2"
        return v2.generate(prompts, params), expected


def check_forms(outputs: list[Any], params: list[SamplingParams]) -> None:
    for output, asked in zip(outputs, params, strict=True):
        if asked.structured_outputs is not None:
            assert output.outputs[0].finish_reason == "stop"
            if asked.structured_outputs.json:
                assert conforms(json.loads(output.outputs[0].text), SCHEMA)
            if asked.structured_outputs.choice:
                assert output.outputs[0].text in asked.structured_outputs.choice


@pytest.mark.usefixtures("no_warm_up")
def test_v1s_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """More requests than rows, and other stages beside."""
    changes: list[dict[str, Any]] = [
        {"logprobs": 2, "logprob_token_ids": [5, 17, 300]}, {"top_p": 0.8}, {"repetition_penalty": 1.3},
    ]  # fmt: skip
    params = [ask(form, i, max_tokens=18 if form else 7, **changes[i % 3]) for i, form in enumerate(FORMS)]
    prompts = [f"{i} + 7" for i in range(len(params))]
    outputs, expected = both_runners(prompts, params, max_num_seqs=3)
    check_forms(outputs, params)
    for output, reference in zip(outputs, expected, strict=True):
        ours, theirs = output.outputs[0], reference.outputs[0]
        assert (ours.token_ids, ours.text, ours.finish_reason) == (
            theirs.token_ids, theirs.text, theirs.finish_reason,
        )  # fmt: skip
        assert (ours.logprobs is None) == (theirs.logprobs is None)
        for entry, known in zip(ours.logprobs or (), theirs.logprobs or (), strict=True):
            assert list(entry) == list(known)
            for token in known:
                assert entry[token].rank == known[token].rank
                assert entry[token].logprob == pytest.approx(known[token].logprob, abs=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_many_among_plain_ones(dtype: str) -> None:
    """Every form holds, and plain requests have their solo tokens but for odd ties of rounding."""
    params = [ask(FORMS[i % len(FORMS)], i, max_tokens=40) for i in range(150)]
    prompts = [f"What is {i} + 7?" for i in range(len(params))]
    with make_llm(CHECKPOINTS / "qwen3", dtype=dtype, max_num_seqs=64, gpu_memory_utilization=0.3) as llm:
        together = llm.generate(prompts, params)
        check_forms(together, params)
        plain = [i for i, asked in enumerate(params) if asked.structured_outputs is None]
        alone = llm.generate([prompts[i] for i in plain], [params[i] for i in plain])
    different = [
        i for i, output in zip(plain, alone, strict=True)
        if output.outputs[0].token_ids != together[i].outputs[0].token_ids
    ]  # fmt: skip
    assert len(different) <= (2 if dtype == "float32" else 12)


@pytest.mark.gpu
def test_v1s_tokens_on_a_gpu() -> None:
    params = [ask(FORMS[i % len(FORMS)], i) for i in range(40)]
    prompts = [f"What is {i} + 7?" for i in range(len(params))]
    outputs, expected = both_runners(prompts, params, max_num_seqs=16)
    check_forms(outputs, params)
    pairs = zip(outputs, expected, strict=True)
    different = [ours.outputs[0].token_ids != theirs.outputs[0].token_ids for ours, theirs in pairs]
    assert sum(different) <= 2  # V1 ran on the CPU: rounding may differ
