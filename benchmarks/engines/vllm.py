"""vLLM, by `LLM.generate`, and by its engine's own loop where requests arrive over time."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.engines.base import BenchmarkEngine, Setup, Timeline, timeline
from benchmarks.workloads import Ask

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "1",
}
"""Set unless set already: no network, and its V2 runner (set VLLM_USE_V2_MODEL_RUNNER=0 for V1)."""


class VLLM(BenchmarkEngine):
    """vLLM with full CUDA graphs, as it chooses by itself."""

    name = "vllm"

    def __init__(self, llm: Any, settings: dict[str, Any]) -> None:
        self._llm = llm
        self._settings = settings

    @classmethod
    def load(cls, setup: Setup) -> VLLM:
        for variable, value in ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        from vllm import LLM

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
        arguments |= setup.arguments
        llm = LLM(model=str(setup.directory), **arguments)
        settings = {k: v for k, v in arguments.items() if k not in ("load_format", "skip_tokenizer_init")}
        settings["VLLM_USE_V2_MODEL_RUNNER"] = os.environ["VLLM_USE_V2_MODEL_RUNNER"]
        scheduler = getattr(getattr(llm.llm_engine, "vllm_config", None), "scheduler_config", None)
        if scheduler is not None:
            settings["max_num_batched_tokens"] = scheduler.max_num_batched_tokens
        return cls(llm, settings)

    def versions(self) -> dict[str, str]:
        import vllm

        return {"vllm": vllm.__version__}

    def settings(self) -> dict[str, Any]:
        return self._settings

    def generate(self, asks: Sequence[Ask]) -> list[list[int]]:
        prompts = [{"prompt_token_ids": list(ask.prompt)} for ask in asks]
        outputs = self._llm.generate(prompts, [_params(ask) for ask in asks], use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def serve(self, asks: Sequence[Ask]) -> list[Timeline]:
        from vllm.sampling_params import RequestOutputKind

        engine = self._llm.llm_engine
        times: list[list[float]] = [[] for _ in asks]
        params = [_params(ask) for ask in asks]
        for each in params:
            each.output_kind = RequestOutputKind.DELTA
        start = time.perf_counter()
        first = 0
        while first < len(asks) or engine.has_unfinished_requests():
            while first < len(asks) and time.perf_counter() >= start + asks[first].arrival:
                prompt = {"prompt_token_ids": list(asks[first].prompt)}
                engine.add_request(f"served-{start}-{first}", prompt, params[first])
                first += 1
            if not engine.has_unfinished_requests():
                time.sleep(max(0.0, start + asks[first].arrival - time.perf_counter()))
                continue
            for output in engine.step():
                now = time.perf_counter()
                index = int(output.request_id.rsplit("-", 1)[1])
                times[index].extend([now] * len(output.outputs[0].token_ids))
        return [timeline(ask, start, mine) for ask, mine in zip(asks, times, strict=True)]

    def close(self) -> None:
        engine = getattr(self._llm.llm_engine, "engine_core", None)
        if engine is not None:
            engine.shutdown()


def _params(ask: Ask) -> Any:
    from vllm import SamplingParams

    sampling = dict(ask.sampling)
    if "stop_token_ids" in sampling:
        sampling["stop_token_ids"] = list(sampling["stop_token_ids"])
    return SamplingParams(max_tokens=ask.max_tokens, ignore_eos=True, detokenize=False, **sampling)
