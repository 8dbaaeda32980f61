"""V2 runners of several ranks in one process, driven in lockstep. On a GPU all ranks share it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.models.model_info import ModelInfo
from dodona.runners.distributed import worker
from dodona.runners.distributed.mesh import Mesh
from dodona.runners.distributed.messages import Start
from dodona.runners.distributed.ranks import RankSizes
from dodona.runners.limits import resolve_limits
from dodona.runners.v2.runner import V2Runner
from tests.distributed import thread_workers
from tests.support.thread_ranks import run_ranks
from tests.v2.drive import DEVICE

T = TypeVar("T")


def on_ranks(path: Path, function: Callable[[V2Runner], T], *, num_blocks: int = 40, **flat: Any) -> list[T]:
    """`function(runner)` of each rank's runner, which is loaded and has a KV cache; as many ranks as the
    configuration says."""
    settings = {
        "device": DEVICE,
        "max_num_batched_tokens": 64,
        "max_num_seqs": 4,
        "max_model_len": 256,
        "enforce_eager": True,
    }
    config, model = EngineConfig.from_flat(str(path), **{**settings, **flat}), ModelInfo.load(path)
    if DEVICE == "cuda" and torch.cuda.device_count() < config.parallel_config.world_size_across_dp:
        pytest.skip("V2 refuses more ranks than there are GPUs")

    def work(mesh: Mesh) -> T:
        runner = V2Runner(config, model, resolve_limits(config, model), mesh)
        runner.load_model()
        runner.initialize_kv_cache(num_blocks)
        runner.capture_graphs()
        return function(runner)

    return run_ranks(RankSizes.of(config.parallel_config), work)


def use_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines with workers have threads in place of processes, and each rank V2."""
    thread_workers.use_threads(monkeypatch)

    def start(message: Start) -> tuple[V2Runner, bool]:
        torch.set_num_threads(1)
        mesh = thread_workers._places.place.of(message)
        return V2Runner(message.config, message.model, message.limits, mesh), mesh.samples

    monkeypatch.setattr(worker, "_start", start)
