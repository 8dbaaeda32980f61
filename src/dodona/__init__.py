"""Dodona chooses an LLM engine's model runner by rules, says why, and runs it.

>>> from dodona import LLM, SamplingParams          # doctest: +SKIP
>>> LLM("path/to/model").generate("2 + 2 =", SamplingParams(temperature=0.0))  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dodona.runners.llm import LLM
    from dodona.runners.lora.request import LoRARequest
    from dodona.runners.pooling.params import PoolingParams
    from dodona.runners.sampling.params import SamplingParams
    from dodona.runners.sampling.structured_outputs import StructuredOutputsParams

__version__ = "0.1.0"
__all__ = ["LLM", "LoRARequest", "PoolingParams", "SamplingParams", "StructuredOutputsParams", "__version__"]

_HOMES = {
    "LLM": "dodona.runners.llm",
    "LoRARequest": "dodona.runners.lora.request",
    "PoolingParams": "dodona.runners.pooling.params",
    "SamplingParams": "dodona.runners.sampling.params",
    "StructuredOutputsParams": "dodona.runners.sampling.structured_outputs",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import dodona.oracle` loads nothing of the runtime."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
