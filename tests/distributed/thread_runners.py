"""V1 runners of several ranks in one process, driven in lockstep."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.models.model_info import ModelInfo
from dodona.runners.distributed.mesh import Mesh
from dodona.runners.distributed.ranks import RankSizes
from dodona.runners.limits import resolve_limits
from dodona.runners.v1.runner import V1Runner
from tests.support.thread_ranks import PATIENCE, run_ranks
from tests.v1.driver import Driver

_LOADING = threading.Lock()


class LoadsAlone(V1Runner):
    """transformers' loading changes global state for a while."""

    def _read_model(self, *args: Any) -> torch.nn.Module:
        with _LOADING:
            return super()._read_model(*args)


def generate_on_ranks(
    path: Path,
    prompts: Sequence[Sequence[int]],
    new_tokens: Sequence[int],
    *,
    num_blocks: int = 160,
    driver: dict[str, Any] | None = None,
    rounds: int = 1,
    **flat: Any,
) -> tuple[list[list[list[int]]], list[Driver]]:
    """Per round the tokens of each prompt, from a runner of as many ranks as the configuration says; and the
    ranks' drivers. All ranks must agree; ranks that don't sample are told the tokens of the one that does.
    """
    settings = {"device": "cpu", "block_size": 4, "max_num_batched_tokens": 64, "max_num_seqs": 8, **flat}
    config, model = EngineConfig.from_flat(str(path), **settings), ModelInfo.load(path)
    sizes = RankSizes.of(config.parallel_config)
    told = _Told(sizes.world)

    def work(mesh: Mesh) -> tuple[list[list[list[int]]], Driver]:
        try:
            return _work(mesh)
        except BaseException:
            told.barrier.abort()
            raise

    def _work(mesh: Mesh) -> tuple[list[list[list[int]]], Driver]:
        runner = LoadsAlone(config, model, resolve_limits(config, model), mesh)
        runner.load_model()
        runner.initialize_kv_cache(num_blocks)
        whole = {layer.num_kv_heads for layer in runner.get_kv_part().layers}
        assert whole <= {*(heads for _, heads in model.kv_heads), model.num_attention_heads}
        drive = Driver(_Told.Runner(runner, told, mesh), num_blocks=num_blocks, **(driver or {}))
        found = [[job.output for job in drive.generate(prompts, list(new_tokens))] for _ in range(rounds)]
        return found, drive

    results = run_ranks(sizes, work)
    for tokens, _ in results:
        assert tokens == results[0][0]
    return results[0][0], [drive for _, drive in results]


class _Told:
    """Hands the sampling rank's outputs to the others, as the engine does."""

    def __init__(self, world: int) -> None:
        self.barrier = threading.Barrier(world, timeout=PATIENCE)
        self._output: Any = None

    class Runner:
        """A rank's runner as the driver sees it: all ranks give the sampling rank's output."""

        def __init__(self, runner: V1Runner, told: _Told, mesh: Mesh) -> None:
            self._runner, self._told, self._mesh = runner, told, mesh
            self.limits = runner.limits
            self.get_kv_cache_spec = runner.get_kv_cache_spec
            self.execute_model = runner.execute_model

        def sample_tokens(self) -> Any:
            told = self._told
            if self._mesh.samples:
                told._output = self._runner.sample_tokens().result()
            told.barrier.wait()
            output = told._output
            told.barrier.wait()
            if not self._mesh.samples:
                self._runner.take_sampled_tokens(output)
            return _Done(output)


class _Done:
    def __init__(self, output: Any) -> None:
        self._output = output

    def result(self) -> Any:
        return self._output
