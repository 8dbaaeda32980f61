"""V1 on two GPUs, by NCCL: its tokens are those of one GPU, up to ties."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.select import select_runner
from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "qwen3"
DRAFTS = {"method": "draft_model", "model": str(CHECKPOINT), "num_speculative_tokens": 3}
HEAD = CHECKPOINT.parent / "qwen3-eagle3"
EAGLE3 = {"method": "eagle3", "model": str(HEAD), "num_speculative_tokens": 3}
PROMPTS = ["2 + 2 =", "17 + 25 =", "October 3 is", "1, 2, 3, 4,"]


def tokens(**flat: Any) -> list[tuple[int, ...]]:
    """fp32, in which a tie would be a coincidence."""
    config = EngineConfig.from_flat(str(CHECKPOINT), dtype="float32", max_model_len=128, **flat)
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    with LLM.from_verdict(select_runner(config)) as llm:
        return [tuple(o.outputs[0].token_ids) for o in llm.generate(PROMPTS, params, use_tqdm=False)]


@pytest.mark.gpu
@pytest.mark.parametrize(
    "sizes",
    [
        {"tensor_parallel_size": 2},
        {"pipeline_parallel_size": 2},
        {"prefill_context_parallel_size": 2},
        {"pipeline_parallel_size": 2, "speculative_config": DRAFTS},
        {"pipeline_parallel_size": 2, "speculative_config": EAGLE3},
        {"prefill_context_parallel_size": 2, "speculative_config": EAGLE3},
    ],
    ids=lambda sizes: "-".join(
        [next(iter(sizes)), sizes.get("speculative_config", {}).get("method", "plain")]
    ),
)
def test_two_gpus_equal_one(sizes):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    whole = tokens()
    assert tokens(**sizes) == whole
