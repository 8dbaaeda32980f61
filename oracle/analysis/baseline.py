"""A plain configuration, from which the distance of witnesses is counted: Qwen3, dense and unquantized,
that generates text on one NVIDIA GPU, with nothing special asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType

from dodona.oracle.analysis.space import generic_baseline, sections_of
from dodona.oracle.language.facts import FactSpec, FactValue
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.systems.own.facts import FACTS
from dodona.oracle.systems.registry import VLLM, facts_of

ARCHITECTURE = "Qwen3ForCausalLM"


def baseline_of(book: RuleBook) -> Mapping[str, FactValue]:
    """Plain values of all facts that a book may read."""
    return plain_facts(book.system)


@functools.cache
def plain_facts(system: str) -> Mapping[str, FactValue]:
    """Plain values of all facts of a system's registry."""
    registry = facts_of(system)
    found = generic_baseline(registry)
    if registry is FACTS:
        found |= _own()
    elif system == VLLM:
        found |= _vllm(registry)
    for name in registry:
        if any(found[section] is None for section in sections_of(name, registry)):
            found[name] = None
    return MappingProxyType(found)


def _own() -> dict[str, FactValue]:
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.oracle.machine.environment import assumed_gpu
    from dodona.oracle.models.model_info import ModelInfo
    from dodona.oracle.systems.own.facts import derive_facts

    model = ModelInfo.from_mapping(
        {"architectures": [ARCHITECTURE], "model_type": "qwen3", "torch_dtype": "bfloat16"}
    )
    return derive_facts(EngineConfig.from_flat("model"), model, assumed_gpu())


def _vllm(registry: Mapping[str, FactSpec]) -> dict[str, FactValue]:
    from dodona.oracle.language.facts import UNKNOWN
    from dodona.oracle.systems.vllm.facts import default_of

    found: dict[str, FactValue] = {
        name: value for name in registry if (value := default_of(name)) is not UNKNOWN
    }
    return found | {
        "model_config": True,
        "model_config.architectures": (ARCHITECTURE,),
        "model_config.architecture": ARCHITECTURE,
        "parallel_config.use_ubatching": False,
        "environment.has_triton": True,
        "environment.platform": "cuda",
    }
