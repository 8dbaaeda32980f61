"""Replicas, experts and KV connectors on two GPUs: tokens are those of one GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.select import select_runner
from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from tests.v1.test_kv_shared_memory import memory
from tests.v1.test_kv_shared_storage import storage

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "qwen3"
MOE = CHECKPOINT.parent / "qwen3_moe"
PROMPTS = [
    "2 + 2 =",
    "17 + 25 =",
    "October 3 is",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18,",
]
TP, DP = "tensor_parallel_size", "data_parallel_size"

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _two_gpus():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")


def engine(runner: str = "v1", model: Path = CHECKPOINT, **flat: Any) -> LLM:
    """fp32, in which a tie would be a coincidence."""
    settings = {
        "dtype": "float32",
        "max_model_len": 128,
        "block_size": 16,
        "num_gpu_blocks_override": 64,
        "max_num_seqs": 8,
    }
    config = EngineConfig.from_flat(str(model), **{**settings, **flat})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DODONA_USE_V2_MODEL_RUNNER", {"v1": "0", "v2": "1"}[runner])
        verdict = select_runner(config)
    assert verdict.runner == runner
    return LLM.from_verdict(verdict)


def generate(llm: LLM, prompts: Sequence[str] = PROMPTS) -> tuple[list[tuple[int, ...]], list[int]]:
    """Tokens, and how many of each prompt came from a cache."""
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    outputs = llm.generate(list(prompts), params, use_tqdm=False)
    return [tuple(o.outputs[0].token_ids) for o in outputs], [o.num_cached_tokens for o in outputs]


_WHOLE: dict[Path, list[tuple[int, ...]]] = {}


def whole(model: Path = CHECKPOINT) -> list[tuple[int, ...]]:
    """One GPU's tokens, on V1."""
    if model not in _WHOLE:
        with engine(model=model) as llm:
            _WHOLE[model] = generate(llm)[0]
    return _WHOLE[model]


def test_experts_on_two_gpus():
    with engine(model=MOE, enable_expert_parallel=True, **{TP: 2}) as llm:
        assert generate(llm)[0] == whole(MOE)


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_replicas_on_two_gpus(runner):
    with engine(runner, **{DP: 2}) as llm:
        for _ in range(2):
            assert generate(llm)[0] == whole()


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_offloaded_blocks_come_back_to_two_gpus(runner):
    """A rank moves its part of each block."""
    flat = {"kv_offloading_size": 0.05, "enable_prefix_caching": False}
    with engine(runner, **flat, **{TP: 2}) as llm:
        for turn in range(3):
            tokens, cached = generate(llm)
            assert tokens == whole()
            assert (cached[-1] >= 16) == bool(turn)


@pytest.mark.parametrize(("writer", "reader"), [("v1", "v2"), ("v2", "v1")])
def test_blocks_of_two_gpus_are_read_by_one(tmp_path, writer, reader):
    """Through shared memory while both run, and from files after the writer has ended."""
    ours, theirs = (memory(tmp_path / "m", role) for role in ("kv_producer", "kv_consumer"))
    with engine(writer, **ours, **{TP: 2}) as producer, engine(reader, **theirs) as consumer:
        assert generate(producer)[0] == whole()
        check_loaded(consumer)
    with engine(writer, **storage(tmp_path / "f"), **{TP: 2}) as producer:
        generate(producer)
    with engine(reader, **storage(tmp_path / "f")) as consumer:
        check_loaded(consumer)


def check_loaded(llm: LLM) -> None:
    tokens, cached = generate(llm)
    assert tokens == whole()
    assert cached[-1] >= 16
