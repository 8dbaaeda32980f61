"""`LLM` with the trained checkpoints on V1 equals transformers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"


@pytest.mark.parametrize("name", ["qwen3", "llama", "mistral"])
def test_generates_with_the_runner_of_the_verdict(name: str) -> None:
    from transformers import AutoModelForCausalLM

    directory = CHECKPOINTS / name
    params = SamplingParams(temperature=0.0, max_tokens=12)
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype="float32")
    prompts = ["7+5=", "sort: 3 1 2 =", "12+34="]
    with LLM(
        directory, device="cpu", dtype="float32", max_num_seqs=4, max_num_batched_tokens=8, block_size=4
    ) as llm:
        assert llm.verdict.runner == "v1"
        tokenizer = llm.get_tokenizer()
        outputs = llm.generate(prompts, params)
        streamed = "".join(output.outputs[0].text for output in llm.stream(prompts[0], params))
        assert streamed == outputs[0].outputs[0].text
        assert llm._client.call(lambda runner, scheduler: scheduler.num_unfinished) == 0
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        expected = reference.generate(**ids, max_new_tokens=12, do_sample=False)[
            0, ids["input_ids"].shape[1] :
        ].tolist()
        assert output.outputs[0].token_ids == expected


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_batches_that_are_chunked_preempted_and_cached_equal_transformers(
    enable_prefix_caching: bool,
) -> None:
    from transformers import AutoModelForCausalLM

    directory = CHECKPOINTS / "qwen3"
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype="float32")
    rng = random.Random(0)
    prompts = [
        [5] * rng.choice([0, 9]) + [rng.randrange(4, 200) for _ in range(rng.randrange(1, 20))]
        for _ in range(10)
    ]
    params = SamplingParams(temperature=0.0, max_tokens=25, ignore_eos=True)
    sizes = {"block_size": 4, "max_num_seqs": 5, "max_num_batched_tokens": 9, "num_gpu_blocks_override": 20}
    with LLM(
        directory,
        device="cpu",
        dtype="float32",
        max_model_len=80,
        enable_prefix_caching=enable_prefix_caching,
        **sizes,
    ) as llm:
        outputs = llm.generate(prompts, params)
        preemptions, free = llm._client.call(
            lambda runner, scheduler: (scheduler.num_preemptions, scheduler.blocks.num_free)
        )
    assert preemptions > 0
    assert free == 20
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = torch.tensor([prompt])
        expected = reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=25, do_sample=False, eos_token_id=None
        )
        assert output.outputs[0].token_ids == expected[0, len(prompt) :].tolist()
