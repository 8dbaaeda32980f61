"""Which facts a rule book may read: each system whose runners books describe has a registry of its own."""

from __future__ import annotations

from collections.abc import Mapping

from dodona.oracle.language.facts import FactSpec
from dodona.oracle.systems.own.facts import FACTS

VLLM: str = "vllm"
"""`system` of the books that describe vLLM's releases."""


def facts_of(system: object) -> Mapping[str, FactSpec]:
    """The registry of facts for the books of `system`; this runtime's own for a system that has none."""
    if system == VLLM:
        from dodona.oracle.systems.vllm.facts import VLLM_FACTS

        return VLLM_FACTS
    return FACTS
