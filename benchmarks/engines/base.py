"""What the benchmarks need of an engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.workloads import Ask


@dataclass(frozen=True, slots=True)
class Setup:
    """How an engine is to be started; the same for all."""

    directory: Path
    """Holds a config.json."""
    dtype: str
    max_num_seqs: int
    max_model_len: int
    max_num_batched_tokens: int | None
    """None: the engine's own default."""
    gpu_memory_utilization: float
    enforce_eager: bool
    arguments: Mapping[str, Any]
    """More arguments for the engine alone, by its own names."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """When a request's tokens came, in seconds of one clock."""

    arrival: float
    token_times: tuple[float, ...]

    @property
    def time_to_first_token(self) -> float:
        """Seconds from arrival to the first token."""
        return self.token_times[0] - self.arrival

    @property
    def time_per_output_token(self) -> float | None:
        """Mean seconds between tokens after the first; None where there is but one."""
        count = len(self.token_times)
        return (self.token_times[-1] - self.token_times[0]) / (count - 1) if count > 1 else None


class BenchmarkEngine(ABC):
    """An engine that is ready to generate. Made by `start`, which imports it."""

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def load(cls, setup: Setup) -> BenchmarkEngine:
        """Import the engine, load the model with random weights, and be ready."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of what does the work, beside torch and Python."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Settings in force that matter for speed."""

    @abstractmethod
    def generate(self, asks: Sequence[Ask]) -> list[list[int]]:
        """All requests at once, by the engine's plain call on token ids; their generated tokens."""

    @abstractmethod
    def serve(self, asks: Sequence[Ask]) -> list[Timeline]:
        """Submit each request at its time of arrival and stream it. Raises where a request's tokens don't
        come to `max_tokens`."""

    @abstractmethod
    def close(self) -> None:
        """Release the model."""


def timeline(ask: Ask, start: float, times: Sequence[float]) -> Timeline:
    """A request's timeline, if it has all its tokens; RuntimeError if not."""
    if len(times) != ask.max_tokens:
        raise RuntimeError(f"a request for {ask.max_tokens} tokens got {len(times)}: nothing was measured")
    return Timeline(start + ask.arrival, tuple(times))
