"""A deployment of vLLM, and the changes to its flags that take something away."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.language.conditions import Facts
from dodona.oracle.language.facts import FactSpec
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.machine.environment import WSL_PIN_MEMORY, Environment, is_on, vllm_variables
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.deployment import Change, Deployment, Value
from dodona.oracle.systems.vllm.assumptions import (
    ALWAYS_CONFIGURED,
    assumed_facts,
    completed_sections,
    decisive_assumptions,
)
from dodona.oracle.systems.vllm.configuration import shared_config
from dodona.oracle.systems.vllm.facts import VLLM_FACTS, default_of, derive_facts
from dodona.oracle.systems.vllm.releases import release_of

_FROM_ELSEWHERE: Final[Mapping[str, tuple[str, ...]]] = {
    "model_config.runner_type": ("model_config.runner", "model_config.convert"),
    "model_config.runner_refusal": ("model_config.runner", "model_config.convert"),
    "model_config.quantization_refusal": ("model_config.quantization",),
    "model_config.dtype_refusal": ("model_config.dtype",),
    "model_config.length_refusal": ("model_config.max_model_len",),
    "model_config.enable_return_routed_experts": ("aux_output_config.enable_return_routed_experts",),
    "model_config.weights_refusal": (
        "cache_config.gpu_memory_utilization",
        "cache_config.kv_cache_memory_bytes",
        "model_config.quantization",
        "offload_config.cpu_offload_gb",
        "parallel_config.tensor_parallel_size",
        "parallel_config.pipeline_parallel_size",
        "parallel_config.data_parallel_size",
        "parallel_config.prefill_context_parallel_size",
    ),
    "model_config.routed_experts_refusal": (
        "aux_output_config.enable_return_routed_experts",
        "model_config.enable_return_routed_experts",
        "parallel_config.pipeline_parallel_size",
        "parallel_config.decode_context_parallel_size",
        "parallel_config.prefill_context_parallel_size",
        "kv_transfer_config.kv_connector",
        "cache_config.enable_prefix_caching",
        "speculative_config.enable_adaptive_verification",
        "model_config.runner",
        "model_config.convert",
    ),
    "model_config.prompt_embeds_refusal": ("model_config.enable_prompt_embeds",),
    "aux_output_config.enable_return_routed_experts": ("model_config.enable_return_routed_experts",),
    "model_config.is_supported": ("model_config.model_impl",),
    "parallel_config.divides_attention_heads": ("parallel_config.tensor_parallel_size",),
    "parallel_config.fits_decode_context": (
        "parallel_config.tensor_parallel_size",
        "parallel_config.decode_context_parallel_size",
    ),
    "parallel_config.distributed_executor_backend": (
        "parallel_config.tensor_parallel_size",
        "parallel_config.pipeline_parallel_size",
        "parallel_config.data_parallel_size",
        "parallel_config.prefill_context_parallel_size",
    ),
    "parallel_config.refusal": (
        "parallel_config.enable_elastic_ep",
        "parallel_config.enable_eplb",
        "parallel_config.pipeline_parallel_size",
    ),
    "speculative_config.refusal": ("speculative_config", "parallel_config.pipeline_parallel_size"),
    "compilation_config.mode": ("model_config.enforce_eager",),
    "compilation_config.cudagraph_mode": ("model_config.enforce_eager",),
    "compilation_config.pass_config.enable_sp": ("parallel_config.tensor_parallel_size",),
    "scheduler_config.enable_chunked_prefill": ("model_config.runner", "model_config.convert"),
    "attention_config.hisparse_config": ("kv_transfer_config.kv_connector",),
}
"""Facts that depend on fields of other names than their own too."""

_DEFAULTS: Final[Mapping[str, Value]] = {"model_config.runner": "auto", "model_config.enforce_eager": False}

_STAYS: Final = (
    "speculative_config.method",
    "speculative_config.model",
    "speculative_config.draft_model_config",
)
"""Fields that are only removed together with their section: without the field, vLLM would choose another
value."""


@dataclass(frozen=True)
class VllmDeployment(Deployment):
    """vLLM's nested configuration as it was written, a model and a machine."""

    sections: Mapping[str, Any]
    model: ModelInfo
    environment: Environment
    book: RuleBook
    unread: tuple[str, ...] = ()
    """Arguments that could change the verdict and are not understood."""
    image_release: str | None = None
    """The release that the tag of the command's image names."""

    def engine_config(self) -> EngineConfig:
        """The part of the configuration that an EngineConfig can hold."""
        return shared_config(self.sections)

    def foreign_config(self) -> Mapping[str, Any]:
        """The whole configuration as it was given, nested."""
        return self.sections

    def changes(self) -> tuple[Change, ...]:
        """Every change that some fact of the book may depend on, in the order of the registry of facts."""
        found: dict[Change, None] = {}
        for name, spec in VLLM_FACTS.items():
            if name not in self.book.reads:
                continue
            own = spec.reads if spec.source == "config" else ()
            for path in (*own, *_FROM_ELSEWHERE.get(name, ())):
                for change in self._changes_of(path):
                    found[change] = None
        return tuple(found)

    def _changes_of(self, path: str) -> list[Change]:
        """What can be done about a field: leave out its section, or itself, or turn it off."""
        section = path.split(".")[0]
        given = self.sections.get(section)
        found: list[Change] = []
        if section not in ALWAYS_CONFIGURED and given is not None:
            found.append(Change(section, json.dumps(given, sort_keys=True), None))
        if path == section or path.startswith(_STAYS):
            return found
        spec = VLLM_FACTS.get(path)
        default = _default(path, spec, self.book)
        value = _at(self.sections, path)
        value = default if value is None else value
        if value is True and not (spec is not None and spec.section):
            # where vLLM decides by itself, off is sure and unset is not
            found.append(Change(path, True, False))
        elif value != default and not (value is False and default is None):
            simple = isinstance(value, (bool, int, float, str))
            found.append(Change(path, cast(Value, value) if simple else json.dumps(value), default))
        return found

    def affects(self, change: Change, fact: str) -> bool:
        """Whether a fact may have another value after a change."""
        also: Collection[str] = _FROM_ELSEWHERE.get(fact, ())
        return change.touches(VLLM_FACTS[fact], also)

    def known_facts(self, changes: Iterable[Change] = ()) -> Facts:
        """All facts, after changes that don't clash; unknown ones are unknown. Raises ConfigError."""
        sections = completed_sections(
            self.sections_after(changes), self.model, self.environment, release_of(self.book.rulebook)
        )
        return derive_facts(sections, self.environment, self.book.assume)

    def with_assumptions(self, known: Facts) -> Facts:
        """Known facts, with the book's assumptions or vLLM's defaults in place of unknown ones."""
        return {**known, **assumed_facts(known, self.model, self.book)}

    def assumptions(self, known: Facts) -> tuple[str, ...]:
        """Assumed values on which some rule depends, and that the image is of another release."""
        own = release_of(self.book.rulebook)
        other = self.image_release is not None and own is not None and self.image_release != own
        image = f"the image is vLLM {self.image_release}, and this decides as vLLM {own}"
        return (*decisive_assumptions(known, self.model, self.book), *([image] if other else []))

    def sections_after(self, changes: Iterable[Change]) -> dict[str, Any]:
        """The configuration after changes that don't clash."""
        sections = dict(self.sections)
        for change in changes:
            *parents, last = change.path.split(".")
            place = sections
            for part in parents:
                place[part] = dict(place.get(part) or {})
                place = place[part]
            if change.after is False:
                place[last] = False
            else:
                # vLLM's own default holds
                place.pop(last, None)
        return sections


def environment_of(
    environment: Environment, variables: Mapping[str, str | None], book: RuleBook
) -> Environment:
    """The environment after variables that a command line sets (None: unset). Raises ConfigError."""
    if not variables:
        return environment
    if book.environment is not None and book.environment.variable in variables:
        forced = book.environment.parse(variables[book.environment.variable])
        environment = dataclasses.replace(environment, override=forced)
    names = (set(environment.variables) - set(variables)) | set(vllm_variables(variables))
    pinned = is_on(variables[WSL_PIN_MEMORY]) if WSL_PIN_MEMORY in variables else environment.wsl_pin_memory
    return dataclasses.replace(environment, variables=tuple(sorted(names)), wsl_pin_memory=pinned)


def _default(path: str, spec: FactSpec | None, book: RuleBook) -> Value:
    """The value that a field has where it isn't given; None where vLLM decides by itself."""
    if path in _DEFAULTS:
        return _DEFAULTS[path]
    if spec is None or spec.section:
        return None
    value = default_of(path, book.assume)
    return value if isinstance(value, (bool, int, str)) else None


def _at(sections: Mapping[str, Any], path: str) -> Any:
    """The value that is given for a field; None where none is."""
    value: Any = sections
    for part in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value
