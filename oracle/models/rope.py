"""Rotary position embedding as config.json gives it, in either spelling.

transformers 5 writes `rope_parameters` (one object, or one for each layer type); before, the base stood in
`rope_theta` and the rest in `rope_scaling`, whose kind was called `type` at first and `rope_type` later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from dodona.oracle.errors import UnreadableField

DEFAULT_THETA = 10000.0
_RENAMED = {"su": "longrope"}
_MEND = "correct it or fetch the model again"


@dataclass(frozen=True, eq=False)
class Rope:
    """One rotary embedding.

    `rope_type` is transformers' name ("default", "linear", "dynamic", "yarn", "longrope", "llama3", …),
    "mrope" where positions have several parts, or "mixed" where layers differ. `parameters` holds the type's
    own (factor, …).
    """

    rope_type: str
    theta: float
    partial_rotary_factor: float
    """Share of each head that is rotated; 1.0 means all of it."""
    parameters: Mapping[str, Any]
    by_layer_type: Mapping[str, Rope] | None = None
    """One for each layer type where they differ ("mixed"), else None."""

    @property
    def is_partial(self) -> bool:
        """Whether only a part of each head is rotated."""
        return self.partial_rotary_factor != 1.0

    def fixed_length(self, max_position_embeddings: int | None) -> int | None:
        """Tokens up to which the frequencies are fixed; None where they don't depend on lengths.

        transformers takes other frequencies for "longrope" beyond `original_max_position_embeddings` and for
        "dynamic" beyond `max_position_embeddings`. A length that config.json doesn't tell counts as 0.
        """
        if self.by_layer_type is not None:
            lengths = [part.fixed_length(max_position_embeddings) for part in self.by_layer_type.values()]
            return min((length for length in lengths if length is not None), default=None)
        if self.rope_type == "longrope":
            original = self.parameters.get("original_max_position_embeddings") or max_position_embeddings
            return original if isinstance(original, int) else 0
        return (max_position_embeddings or 0) if self.rope_type == "dynamic" else None


_SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "rope_theta": ("rope_theta", "rotary_emb_base"),
    "partial_rotary_factor": ("partial_rotary_factor", "rotary_pct", "rotary_dim"),
}
"""What a value can be called outside of `rope_parameters`."""


def rope_defaults(usual: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """Fields for a configuration that leaves out (part of) its rotary embedding; `usual` is its family's."""
    given = text.get("rope_parameters") or text.get("rope_scaling")
    if not given and not any(text.get(name) is not None for names in _SPELLINGS.values() for name in names):
        return {"rope_parameters": usual} if usual else {}
    return {
        field: usual[field]
        for field, names in _SPELLINGS.items()
        if isinstance(usual.get(field), float) and not any(text.get(name) is not None for name in names)
    }


def read_rope(
    file: str, text: Mapping[str, Any], head_size: int | None, *, rotary: bool | None = None
) -> Rope | None:
    """The rotary embedding of a merged configuration, or None where there is none.

    `rotary` is whether the model's family has one (None: not known; then it has unless nothing speaks of it).
    Raises ConfigError that names file and field.
    """
    given = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        name = "rope_parameters" if text.get("rope_parameters") else "rope_scaling"
        raise UnreadableField(f"{file}: field {name!r}: expected an object, got {given!r:.80}; {_MEND}", name)
    names = [name for spellings in _SPELLINGS.values() for name in spellings]
    silent = not given and rotary is not True and not any(text.get(name) is not None for name in names)
    if silent and (rotary is False or "num_attention_heads" not in text):
        return None
    parts = {key: value for key, value in given.items() if isinstance(value, Mapping)}
    if parts and len(parts) == len([v for v in given.values() if v is not None]):
        ropes = {key: _one(file, text, value, head_size) for key, value in parts.items()}
        return _mixed(ropes)
    rope = _one(file, text, given, head_size)
    local = text.get("rope_local_base_freq")
    if isinstance(local, (int, float)) and local != rope.theta:
        sliding = Rope("default", float(local), rope.partial_rotary_factor, MappingProxyType({}))
        return _mixed({"full_attention": rope, "sliding_attention": sliding})
    return rope


def _mixed(ropes: Mapping[str, Rope]) -> Rope:
    first, *others = ropes.values()
    signature = (first.rope_type, first.theta, first.partial_rotary_factor, dict(first.parameters))
    if all((r.rope_type, r.theta, r.partial_rotary_factor, dict(r.parameters)) == signature for r in others):
        return first
    return Rope(
        "mixed", first.theta, first.partial_rotary_factor, first.parameters, MappingProxyType(dict(ropes))
    )


def _one(file: str, text: Mapping[str, Any], given: Mapping[str, Any], head_size: int | None) -> Rope:
    kind = given.get("rope_type", given.get("type", "default"))
    if not isinstance(kind, str):
        raise UnreadableField(
            f"{file}: field 'rope_type': expected text, got {kind!r:.80}; {_MEND}", "rope_type"
        )
    if "mrope_section" in given and kind == "default":
        kind = "mrope"
    theta = _number(file, "rope_theta", given, text, fallbacks=("rotary_emb_base",))
    partial = _number(file, "partial_rotary_factor", given, text, fallbacks=("rotary_pct",))
    dim = text.get("rotary_dim")
    if partial is None and isinstance(dim, int) and dim and head_size:
        partial = dim / head_size
    skipped = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
    parameters = {key: value for key, value in given.items() if key not in skipped}
    for inherited in ("original_max_position_embeddings",):
        if kind != "default" and inherited not in parameters and text.get(inherited) is not None:
            parameters[inherited] = text[inherited]
    return Rope(
        rope_type=_RENAMED.get(kind, kind),
        theta=DEFAULT_THETA if theta is None else theta,
        partial_rotary_factor=1.0 if partial is None else partial,
        parameters=MappingProxyType(parameters),
    )


def _number(
    file: str, field: str, given: Mapping[str, Any], text: Mapping[str, Any], fallbacks: tuple[str, ...]
) -> float | None:
    for source, name in ((given, field), (text, field), *((text, name) for name in fallbacks)):
        value = source.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UnreadableField(
                f"{file}: field {name!r}: expected a number, got {value!r:.80}; {_MEND}", name
            )
        return float(value)
    return None
