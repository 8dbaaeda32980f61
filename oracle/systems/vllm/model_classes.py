"""The model classes of each release: which ones its registry has, and what it says of them.

The table is model_classes.json, which ``python -m tools.record_vllm.model_classes`` draws from recorded
registries of vLLM.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from dodona.oracle.systems.vllm.releases import nearest_release, release_number

SUFFIXES: Final[tuple[tuple[str, str, str], ...]] = (
    ("ForCausalLM", "generate", "none"),
    ("ForConditionalGeneration", "generate", "none"),
    ("ChatModel", "generate", "none"),
    ("LMHeadModel", "generate", "none"),
    ("ForTextEncoding", "pooling", "embed"),
    ("EmbeddingModel", "pooling", "embed"),
    ("ForSequenceClassification", "pooling", "classify"),
    ("ForTokenClassification", "pooling", "classify"),
    ("ForAudioClassification", "pooling", "classify"),
    ("ForImageClassification", "pooling", "classify"),
    ("ForVideoClassification", "pooling", "classify"),
    ("ClassificationModel", "pooling", "classify"),
    ("ForRewardModeling", "pooling", "embed"),
    ("RewardModel", "pooling", "embed"),
    ("Model", "pooling", "embed"),
)
"""What vLLM takes from the end of a class's name, first match first: the runner, and the conversion."""


@dataclass(frozen=True, slots=True)
class ModelClass:
    """What a release's registry says of a model class."""

    generates: bool
    pools: bool
    is_multimodal: bool
    has_inner_state: bool
    is_attention_free: bool
    is_hybrid: bool
    supports_pp: bool
    """Whether its layers can be split among pipeline stages."""
    supports_lora: bool


LETTERS: Final[Mapping[str, str]] = {
    "g": "generates",
    "p": "pools",
    "m": "is_multimodal",
    "s": "has_inner_state",
    "f": "is_attention_free",
    "h": "is_hybrid",
    "P": "supports_pp",
    "L": "supports_lora",
}
"""Letter of the table → field of `ModelClass`."""


@dataclass(frozen=True, eq=False)
class Registry:
    """The model classes of one release."""

    release: str
    classes: Mapping[str, ModelClass]
    unread: frozenset[str]
    """Classes that the release has, of which nothing else is known."""
    gone: frozenset[str]
    """Classes that an earlier release had and this one doesn't."""
    quantization: frozenset[str] = frozenset()
    """Names of quantization methods; none where the release isn't recorded, here and below."""
    speculation: frozenset[str] = frozenset()
    """Names of speculative methods."""
    sections: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Fields of the sections that the command line takes as JSON; `!` behind one that must be given."""
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The values that an argument may have, by its flat name; empty where they weren't recorded."""
    config_types: frozenset[str] = frozenset()
    """Model types whose configuration classes vLLM has itself, beside those of transformers."""
    drafts_for: frozenset[str] = frozenset()
    """Words of the code that makes a draft's configuration: among them are the model types and classes that
    multi-token prediction can draft for."""
    connectors: frozenset[str] = frozenset()
    """Names of KV connectors."""
    breakable_graphs: frozenset[str] = frozenset()
    """Classes that on CUDA run with breakable CUDA graphs in place of compilation."""

    @property
    def is_recorded(self) -> bool:
        """Whether the release itself was recorded, not only its neighbours."""
        return bool(self.quantization)

    def find(self, architecture: str) -> ModelClass | None:
        """What is said of a class: itself, or the base that vLLM converts it from; None where neither is
        there.
        """
        found = self.classes.get(architecture)
        if found is not None:
            return found
        suffix = next((s for s, _, _ in SUFFIXES if architecture.endswith(s)), None)
        if suffix is not None:
            stem = architecture.removesuffix(suffix)
            return next((self.classes[stem + s] for s, _, _ in SUFFIXES if stem + s in self.classes), None)
        return None


@functools.cache
def registry_of(release: str | None = None) -> Registry:
    """The registry of a release; None: the newest one's.

    One that isn't in the table has its neighbours' classes, and nothing that only an exact record tells.
    """
    known: list[str] = _data()["releases"]
    if release is None or release in known:
        return _recorded(release or known[-1])
    before = nearest_release(release, known) or known[-1]
    after = next((other for other in known if _number(other) > _number(before)), before)
    if _number(release) < _number(before):
        after = before
    older, newer = _recorded(before), _recorded(after)
    classes = {**newer.classes, **older.classes}
    unread = (older.unread | newer.unread) - classes.keys()
    gone = (older.gone | newer.gone) - classes.keys() - unread
    return Registry(
        release,
        classes,
        unread,
        gone,
        config_types=older.config_types | newer.config_types,
        breakable_graphs=older.breakable_graphs & newer.breakable_graphs,
    )


@functools.cache
def _recorded(release: str) -> Registry:
    data = _data()
    classes: dict[str, ModelClass] = {}
    unread, gone = set(), set()
    for name, history in data["classes"].items():
        told = [then for since, then in history if _number(since) <= _number(release)]
        if not told:
            continue
        if told[-1] is None:
            gone.add(name)
        elif told[-1] == "?":
            unread.add(name)
        else:
            said = told[-1]
            classes[name] = ModelClass(**{key: letter in said for letter, key in LETTERS.items()})
    return Registry(
        release,
        classes,
        frozenset(unread),
        frozenset(gone),
        quantization=frozenset(data["quantization"].get(release, ())),
        speculation=frozenset(data["speculation"].get(release, ())),
        sections={name: tuple(names) for name, names in data["sections"].get(release, {}).items()},
        choices={name: tuple(values) for name, values in data["choices"].get(release, {}).items()},
        config_types=frozenset(data["config_types"].get(release, ())),
        drafts_for=frozenset(data["drafts_for"].get(release, ())),
        connectors=frozenset(data["connectors"].get(release, ())),
        breakable_graphs=frozenset(data["breakable_graphs"].get(release, ())),
    )


def _number(release: str) -> tuple[int, int, int]:
    return release_number(release) or (0, 0, 0)


WRAPS_MORE_SINCE: Final = (0, 29, 0)
"""First release that may wrap models of transformers that don't take another attention."""


def cannot_be_wrapped(model_type: str, release: str) -> bool:
    """Whether a release can't serve transformers' own model of a type, as far as that is known."""
    kept = "without_backend" if _number(release) < WRAPS_MORE_SINCE else "without_interface"
    return model_type in _data()[kept]


def architecture_of(model_type: str) -> str | None:
    """The class that stands in for a config.json that names none: transformers' bare model of the type."""
    found: str | None = _data()["of_type"].get(model_type)
    return found


@functools.cache
def _data() -> dict[str, Any]:
    file = importlib.resources.files(__package__) / "model_classes.json"
    data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return data
