"""What transformers' configuration classes know that a config.json may leave out.

The data are in known_models.json, which ``python -m tests.support.known_models`` generates from transformers;
a test compares them with the version that is installed. The file is read at the first use.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KnownModel:
    """One model type: field names of its own (`aliases`), and the values of fields that are left out
    (`defaults`)."""

    since: str | None
    """The version of transformers that it came with ("5.24"); None: all supported versions have it."""
    text_model_type: str | None
    """Model type of a wrapper's language model."""
    causal: bool
    """Whether transformers' automatic class for causal language models makes a model of this type."""
    masked: bool
    """Whether the automatic class for masked language models does."""
    pooling_tasks: tuple[str, ...]
    """Tasks whose automatic class does, of causal and masked language models: embed (the class without a
    head), classify (sequences), token_classify."""
    positions_after_padding: bool
    """Whether positions are numbered from `pad_token_id` + 1 on, within `max_position_embeddings`."""
    rotary: bool
    stateful: bool
    rope: Mapping[str, Any]
    """Rotary embedding (as `rope_parameters`) where it isn't the plain one."""
    layer_kinds: tuple[str, ...]
    """Kinds of layers where they are not all full attention."""
    aliases: Mapping[str, str]
    defaults: Mapping[str, Any]


@functools.cache
def known_model(model_type: str) -> KnownModel | None:
    """What is known of a model type, or None."""
    found = _data()["models"].get(model_type)
    if found is None:
        return None
    return KnownModel(
        since=found.get("since"),
        text_model_type=found.get("text"),
        causal=found.get("causal", False),
        masked=found.get("masked", False),
        pooling_tasks=tuple(found.get("pooling", ())),
        positions_after_padding=found.get("positions_after_padding", False),
        rotary=found.get("rotary", False),
        stateful=found.get("stateful", False),
        rope=found.get("rope", {}),
        layer_kinds=tuple(found.get("kinds", ())),
        aliases=found.get("aliases", {}),
        defaults=found.get("defaults", {}),
    )


@functools.cache
def known_model_types() -> tuple[str, ...]:
    """Every model type of the table, sorted."""
    return tuple(sorted(_data()["models"]))


@functools.cache
def known_architectures() -> frozenset[str]:
    """Names of model classes that transformers or vLLM knows for language models."""
    return frozenset(_data()["architectures"])


def transformers_version() -> str:
    """The version of transformers that the data were generated from."""
    return str(_data()["transformers"])


def release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: `release("5.24.0.dev0")` is (5, 24, 0).

    >>> release("5.9") < release("5.24.1")
    True
    """
    found = re.match(r"[0-9]{1,9}(\.[0-9]{1,9})*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


@functools.cache
def _data() -> dict[str, Any]:
    file = importlib.resources.files(__package__) / "known_models.json"
    data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return data
