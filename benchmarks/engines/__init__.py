"""The engines that benchmarks compare. Each module imports its engine only when it is started."""

from __future__ import annotations

from benchmarks.engines.base import BenchmarkEngine, Setup

ENGINES = ("dodona-v2", "dodona-v1", "vllm", "transformers", "transformers-generate")


def engine_class(name: str) -> type[BenchmarkEngine]:
    """The class of a name in `ENGINES`; ValueError for others."""
    if name == "dodona-v2":
        from benchmarks.engines.dodona import DodonaV2

        return DodonaV2
    if name == "dodona-v1":
        from benchmarks.engines.dodona import DodonaV1

        return DodonaV1
    if name == "vllm":
        from benchmarks.engines.vllm import VLLM

        return VLLM
    if name == "transformers":
        from benchmarks.engines.transformers import Transformers

        return Transformers
    if name == "transformers-generate":
        from benchmarks.engines.transformers import TransformersGenerate

        return TransformersGenerate
    raise ValueError(f"engine {name!r} is not known; expected one of {', '.join(ENGINES)}")


__all__ = ["ENGINES", "BenchmarkEngine", "Setup", "engine_class"]
