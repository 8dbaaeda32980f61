"""V1 and V2 on two GPUs, by NCCL, and as Ray's workers: their tokens are those of one GPU, up to ties."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.select import select_runner
from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from tests.support.equal_tokens import EqualTokens
from tests.v2.test_greedy_tokens import Reference

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "qwen3"
DRAFTS = {"method": "draft_model", "model": str(CHECKPOINT), "num_speculative_tokens": 3}
HEAD = CHECKPOINT.parent / "qwen3-eagle3"
EAGLE3 = {"method": "eagle3", "model": str(HEAD), "num_speculative_tokens": 3}
PROMPTS = ["2 + 2 =", "17 + 25 =", "October 3 is", "1, 2, 3, 4,"]


MIXED = [
    SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True),
    SamplingParams(temperature=0.8, seed=3, max_tokens=24, ignore_eos=True),
    SamplingParams(temperature=1.1, top_k=20, top_p=0.9, seed=4, max_tokens=24, ignore_eos=True),
    SamplingParams(temperature=0.0, repetition_penalty=1.2, max_tokens=24, ignore_eos=True),
]


def tokens(params: Any = MIXED[0], runner: str | None = None, **flat: Any) -> list[tuple[int, ...]]:
    """fp32, in which a tie would be a coincidence. runner: the one that must be chosen."""
    settings = {"dtype": "float32", "max_model_len": 128, "num_gpu_blocks_override": 64}
    config = EngineConfig.from_flat(str(CHECKPOINT), **{**settings, **flat})
    verdict = select_runner(config)
    assert runner in (None, verdict.runner)
    with LLM.from_verdict(verdict) as llm:
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
def test_two_gpus_equal_one(sizes, monkeypatch):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    whole = tokens()
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    assert tokens(runner="v1", **sizes) == whole


@pytest.mark.gpu
@pytest.mark.parametrize("ranks", [2, 4])
def test_v2_on_several_gpus_equals_one(ranks, caplog):
    """Captured graphs, two steps in flight. GPUs that reach each other's memory sum in one launch: no rank
    warns that it can't."""
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    small = {"max_num_seqs": 8, "num_gpu_blocks_override": 256}
    assert tokens(MIXED, "v2", tensor_parallel_size=ranks, **small) == tokens(MIXED, "v2", **small)
    if torch.cuda.can_device_access_peer(0, 1):
        assert "by NCCL" not in caplog.text


@pytest.mark.gpu
def test_v2_on_two_gpus_in_bfloat16():
    """Few decodes at a time have kernels of their own, and one has others; the reference is transformers."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    config = EngineConfig.from_flat(
        str(CHECKPOINT),
        dtype="bfloat16",
        max_model_len=128,
        max_num_seqs=32,
        num_gpu_blocks_override=512,
        tensor_parallel_size=2,
    )
    verdict = select_runner(config)
    assert verdict.runner == "v2"
    reference = Reference(CHECKPOINT, torch.bfloat16)
    equal = EqualTokens(reference.logits, half_precision=True, max_ties=3)
    with LLM.from_verdict(verdict) as llm:
        tokenizer = llm.get_tokenizer()
        batches = [PROMPTS[:1], PROMPTS[1:], [f"What is {a} + {b}?" for a in (3, 17, 40) for b in range(9)]]
        for batch in batches:
            for prompt, output in zip(batch, llm.generate(batch, params, use_tqdm=False), strict=True):
                ids = tokenizer(prompt).input_ids
                expected = reference.generate(ids, 12)  # up to EOS
                equal.compare(ids, expected, list(output.outputs[0].token_ids)[: len(expected)])
    equal.check()


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'dodona[ray]'")
@pytest.mark.parametrize("runner", ["v1", "v2"])
@pytest.mark.parametrize(
    "ray",
    [
        {"distributed_executor_backend": "ray"},
        {"data_parallel_backend": "ray", "data_parallel_size": 2},
    ],
    ids=["one", "replicas"],
)
def test_rays_workers_on_gpus(runner, ray, monkeypatch):
    """Each replica's worker is on a GPU of its own."""
    if torch.cuda.device_count() < ray.get("data_parallel_size", 1):
        pytest.skip("needs two GPUs")
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", str(int(runner == "v2")))
    small = {"max_num_seqs": 8, "num_gpu_blocks_override": 256}
    assert tokens(MIXED, runner, **ray, **small) == tokens(MIXED, runner, **small)
