"""Models with sliding windows keep what their queries still see, through the whole engine."""

from __future__ import annotations

import pytest

from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from tests.support.equal_tokens import EqualTokens
from tests.support.tiny_models import SLIDING_WINDOW
from tests.v1.test_greedy_tokens import mixed_prompts

BLOCK_SIZE = 4


@pytest.mark.parametrize(
    ("family", "windows"),
    [
        ("mistral", [SLIDING_WINDOW]),
        ("llama", [None]),
        ("gemma3", [None, SLIDING_WINDOW]),
        ("gpt-oss", [None, SLIDING_WINDOW]),
        ("llama4", [None, SLIDING_WINDOW]),
    ],
)
def test_equal_tokens_with_few_blocks(tiny_models, reference, family, windows, monkeypatch):
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    path = tiny_models.path(family)
    prompts = [p * 2 for p in mixed_prompts()]
    prompts += prompts[3:6]  # the prefix cache may find these
    greedy = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    num_blocks = 20 if windows[0] else 34  # 30 hold the longest sequence whole
    plain = reference(path)
    equal = EqualTokens(lambda ids: plain.logits(ids)[-1])
    with LLM(
        path,
        device="cpu",
        block_size=BLOCK_SIZE,
        max_model_len=120,
        max_num_seqs=4,
        max_num_batched_tokens=16,
        num_gpu_blocks_override=num_blocks,
    ) as llm:
        for _ in range(2):
            outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], greedy, use_tqdm=False)
            for prompt, output in zip(prompts, outputs, strict=True):
                equal.compare(prompt, plain.generate(prompt, 20), list(output.outputs[0].token_ids))
        scheduler = llm._client.call(lambda _, scheduler: scheduler)
        spec = llm._client.call(lambda runner, _: runner.get_kv_cache_spec())
    equal.check()
    assert [group.window for group in spec.groups] == windows
    assert scheduler.blocks.num_free == num_blocks
    assert all(group.num_used == 0 for group in scheduler.windows.groups)
    if windows[0] is None:
        assert any(output.num_cached_tokens for output in outputs)
