"""Dodona's own runners, by `LLM.generate` and `LLM.stream`."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from itertools import groupby
from typing import Any, ClassVar

from benchmarks.engines.base import BenchmarkEngine, Setup, Timeline, timeline
from benchmarks.workloads import Ask


class _Dodona(BenchmarkEngine):
    runner: ClassVar[str]

    def __init__(self, llm: Any) -> None:
        self.llm = llm

    @classmethod
    def load(cls, setup: Setup) -> _Dodona:
        from dodona.runners.llm import LLM

        os.environ["DODONA_USE_V2_MODEL_RUNNER"] = {"v1": "0", "v2": "1"}[cls.runner]
        arguments: dict[str, Any] = {
            "dtype": setup.dtype,
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "max_num_seqs": setup.max_num_seqs,
            "max_model_len": setup.max_model_len,
            "gpu_memory_utilization": setup.gpu_memory_utilization,
            "enable_prefix_caching": False,
            "enforce_eager": setup.enforce_eager,
        }
        if setup.max_num_batched_tokens is not None:
            arguments["max_num_batched_tokens"] = setup.max_num_batched_tokens
        llm = LLM(setup.directory, **{**arguments, **setup.arguments})
        if llm.verdict.runner != cls.runner:
            raise RuntimeError(f"asked for runner {cls.runner}, but the verdict is {llm.verdict.runner}")
        return cls(llm)

    def versions(self) -> dict[str, str]:
        import dodona

        return {"dodona": dodona.__version__}

    def settings(self) -> dict[str, Any]:
        from dodona.oracle.models.model_info import ModelInfo
        from dodona.runners.limits import resolve_limits

        config = self.llm.config
        limits = resolve_limits(config, ModelInfo.load(config.model_config.model))
        return {
            "max_num_seqs": limits.max_num_seqs,
            "max_num_batched_tokens": limits.max_num_batched_tokens,
            "max_model_len": self.llm.max_model_len,
            "block_size": limits.block_size,
            "num_kv_blocks": self.llm.num_kv_blocks,
            "enable_prefix_caching": config.cache_config.enable_prefix_caching,
            "enforce_eager": config.model_config.enforce_eager,
            "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
        }

    def generate(self, asks: Sequence[Ask]) -> list[list[int]]:
        return self.generate_with(asks)

    def generate_with(self, asks: Sequence[Ask], **arguments: Any) -> list[list[int]]:
        """As `generate`, with more arguments of `LLM.generate`."""
        prompts = [list(ask.prompt) for ask in asks]
        outputs = self.llm.generate(prompts, [_params(ask) for ask in asks], use_tqdm=False, **arguments)
        for output in outputs:
            if output.error is not None:
                raise RuntimeError(f"a request was refused: {output.error}")
        return [output.outputs[0].token_ids for output in outputs]

    def serve(self, asks: Sequence[Ask]) -> list[Timeline]:
        """One stream, and one thread that reads it, for all requests that arrive at the same time."""
        times: list[list[float]] = [[] for _ in asks]
        failures: list[BaseException] = []

        def read(stream: Any, mine: dict[str, list[float]]) -> None:
            try:
                for output in stream:
                    now = time.perf_counter()
                    if output.error is not None:
                        raise RuntimeError(f"a request was refused: {output.error}")
                    mine[output.request_id].extend([now] * len(output.outputs[0].token_ids))
            except BaseException as error:
                failures.append(error)

        threads = []
        params = [_params(ask) for ask in asks]
        start = time.perf_counter()
        for arrival, group in groupby(range(len(asks)), key=lambda index: asks[index].arrival):
            together = list(group)
            if (wait := start + arrival - time.perf_counter()) > 0:
                time.sleep(wait)
            prompts = [list(asks[index].prompt) for index in together]
            stream = self.llm.stream(prompts, [params[index] for index in together])
            mine = {key: times[index] for key, index in zip(stream.request_ids, together, strict=True)}
            thread = threading.Thread(target=read, args=(stream, mine), daemon=True)
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return [timeline(ask, start, mine) for ask, mine in zip(asks, times, strict=True)]

    def close(self) -> None:
        self.llm.shutdown()


class DodonaV1(_Dodona):
    """Runner V1, forced."""

    name = "dodona-v1"
    runner = "v1"


class DodonaV2(_Dodona):
    """Runner V2, forced."""

    name = "dodona-v2"
    runner = "v2"


def _params(ask: Ask) -> Any:
    from dodona.runners.sampling.params import SamplingParams

    return SamplingParams(max_tokens=ask.max_tokens, ignore_eos=True, detokenize=False, **ask.sampling)
