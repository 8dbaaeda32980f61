"""V1 on the trained checkpoints: transformers' own greedy tokens for real prompts, to the answer's end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from checkpoints.evaluate import held_out_prompts
from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from tests.support.equal_tokens import EqualTokens

ROOT = Path(__file__).parents[2] / "checkpoints"


@pytest.mark.parametrize("prefix_caching", [False, True], ids=["", "prefix-caching"])
@pytest.mark.parametrize(("chunk", "blocks"), [(2048, None), (32, 24)], ids=["", "chunked, preemption"])
@pytest.mark.parametrize("name", ["qwen3", "llama", "mistral", "lfm2", "qwen3_moe"])
def test_greedy_tokens(reference, monkeypatch, name, chunk, blocks, prefix_caching):
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    path = ROOT / name
    plain = reference(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    kinds = held_out_prompts(tokenizer, count=4, recall=name == "mistral", seed=7)
    prompts = [list(prompt.token_ids) for prompts in kinds.values() for prompt in prompts]
    equal = EqualTokens(lambda ids: plain.logits(ids)[-1])
    llm = LLM(
        path, device="cpu", max_num_seqs=8, max_num_batched_tokens=chunk, max_model_len=192,
        num_gpu_blocks_override=blocks, enable_prefix_caching=prefix_caching,
    )  # fmt: skip
    with llm:
        params = SamplingParams(temperature=0.0, max_tokens=24)
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    for ids, output in zip(prompts, outputs, strict=True):
        with torch.inference_mode():
            row = torch.tensor([ids])
            expected = plain.model.generate(
                row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=24
            )
        equal.compare(ids, expected[0, len(ids) :].tolist(), list(output.outputs[0].token_ids))
    equal.check()
    assert sum(output.outputs[0].finish_reason == "stop" for output in outputs) > len(outputs) * 0.9
