"""transformers: its continuous batching, and its plain `generate` for one request or a padded batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.engines.base import BenchmarkEngine, Setup, Timeline, timeline
from benchmarks.workloads import Ask

KNOWN = frozenset({"temperature"})
"""Sampling parameters it takes here: one set for all requests of a call."""


class Transformers(BenchmarkEngine):
    """The model as transformers builds it from config.json."""

    name = "transformers"

    def __init__(self, model: Any) -> None:
        self._model = model

    @classmethod
    def load(cls, setup: Setup) -> Transformers:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        if setup.arguments:
            raise ValueError(f"--set is not known to transformers: {', '.join(setup.arguments)}")
        config = AutoConfig.from_pretrained(setup.directory)
        dtype = config.dtype if setup.dtype == "auto" else getattr(torch, setup.dtype)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        # No token ends a request.
        model.generation_config.eos_token_id = None
        model.config.eos_token_id = None
        return cls(model.eval())

    def versions(self) -> dict[str, str]:
        import transformers

        return {"transformers": transformers.__version__}

    def settings(self) -> dict[str, Any]:
        return {"attn_implementation": self._model.config._attn_implementation}

    def generate(self, asks: Sequence[Ask]) -> list[list[int]]:
        import torch

        if len(asks) > 1:
            return [output.generated_tokens for output in self._batched(asks)]
        (ask,) = asks
        prompt = torch.tensor([ask.prompt], device=self._model.device)
        with torch.inference_mode():
            output = self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=self._config(asks, max_new_tokens=ask.max_tokens),
            )
        return [output[0, len(ask.prompt) :].tolist()]

    def serve(self, asks: Sequence[Ask]) -> list[Timeline]:
        start = time.perf_counter()
        outputs = self._batched(asks, start)
        return [timeline(ask, start, each.timestamps or ()) for ask, each in zip(asks, outputs, strict=True)]

    def close(self) -> None:
        del self._model

    def _config(self, asks: Sequence[Ask], **settings: Any) -> Any:
        from transformers import GenerationConfig

        kinds = {tuple(sorted(ask.sampling.items())) for ask in asks}
        if len(kinds) > 1 or not set(asks[0].sampling) <= KNOWN:
            raise ValueError(
                "transformers takes one temperature for all requests here; choose a workload other than mixed"
            )
        temperature = asks[0].sampling["temperature"]
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        # top_k is 50 unless turned off.
        return GenerationConfig(
            **sampling, **({"top_k": 0} if temperature else {}), pad_token_id=0, **settings
        )

    def _batched(self, asks: Sequence[Ask], start: float | None = None) -> list[Any]:
        config = self._config(asks, max_new_tokens=max(ask.max_tokens for ask in asks))
        found: dict[str, Any] = {}
        # It stays for the next call: its start is no part of what is measured.
        with self._model.continuous_batching_context_manager(
            generation_config=config, persistent_manager=True
        ) as manager:
            for index, ask in enumerate(asks):
                if start is not None and (wait := start + ask.arrival - time.perf_counter()) > 0:
                    time.sleep(wait)
                manager.add_request(
                    list(ask.prompt),
                    request_id=str(index),
                    max_new_tokens=ask.max_tokens,
                    record_timestamps=start is not None,
                )
            while len(found) < len(asks):
                result = manager.get_result(timeout=1.0)
                if result is None:
                    if not manager.is_running():
                        raise RuntimeError("transformers' continuous batching ended before its requests")
                    continue
                if result.error is not None:
                    raise RuntimeError(f"transformers failed a request: {result.error}")
                if result.is_finished():
                    found[result.request_id] = result
        return [found[str(index)] for index in range(len(asks))]


class TransformersGenerate(Transformers):
    """One `generate` for all requests, padded on the left: for models that continuous batching can't serve.
    It goes on until the longest request has its tokens; what is beyond a request's own is cut off."""

    name = "transformers-generate"

    def generate(self, asks: Sequence[Ask]) -> list[list[int]]:
        width = max(len(ask.prompt) for ask in asks)
        rows = self._padded(asks)
        return [row[width : width + ask.max_tokens] for row, ask in zip(rows, asks, strict=True)]

    def serve(self, asks: Sequence[Ask]) -> list[Timeline]:
        if len(asks) != 1:
            raise ValueError("transformers-generate streams one request only; leave latencies out")
        clock = _Clock()
        start = time.perf_counter()
        self._padded(asks, streamer=clock)
        return [timeline(asks[0], start, clock.times[1:])]

    def _padded(self, asks: Sequence[Ask], **settings: Any) -> list[list[int]]:
        """Prompts and what follows them, of equal length."""
        import torch

        width = max(len(ask.prompt) for ask in asks)
        padding = [width - len(ask.prompt) for ask in asks]
        ids = [[0] * n + list(ask.prompt) for n, ask in zip(padding, asks, strict=True)]
        mask = [[0] * n + [1] * (width - n) for n in padding]
        device = self._model.device
        with torch.inference_mode():
            output = self._model.generate(
                torch.tensor(ids, device=device),
                attention_mask=torch.tensor(mask, device=device),
                generation_config=self._config(asks, max_new_tokens=max(ask.max_tokens for ask in asks)),
                **settings,
            )
        tokens: list[list[int]] = output.tolist()
        return tokens


class _Clock:
    """A streamer that notes when the prompt, and then each token, came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Called once all is generated."""
