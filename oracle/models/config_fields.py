"""Typed reads of a config.json."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from dodona.oracle.errors import UnreadableField
from dodona.oracle.models.config_files import MEND

MAX_SIZE = 2**31
MAX_SIZES: Mapping[str, int] = {"num_hidden_layers": 10**5}
"""Largest size that a field may give; others: `MAX_SIZE`."""

_POSITIVE = frozenset({"num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size", "hidden_size"})
"""Sizes that are at least 1 where a file gives them."""

T = TypeVar("T")


class Size(NamedTuple):
    """A size of the model, and the field that gives it."""

    field: str
    value: int


class Fields:
    """Typed reads of `text`, the merged configuration of `raw`; None where a field is missing or null. What
    is of the wrong type is an UnreadableField that names file and field."""

    def __init__(self, file: str, raw: Mapping[str, Any], text: Mapping[str, Any]) -> None:
        self.file = file
        self.raw = raw
        self.text = text

    def fail(self, field: str, expected: str, value: object) -> UnreadableField:
        """The error of a field that holds something else than what is expected."""
        shown = json.dumps(value, default=str)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return UnreadableField(
            f"{self.file}: field {field!r}: expected {expected}, got {shown}; {MEND}", field
        )

    def _typed(self, field: str, kind: type[T], expected: str) -> T | None:
        value = self.text.get(field)
        if value is None or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
            return value
        raise self.fail(field, expected, value)

    def size(self, field: str) -> int | None:
        """A whole number within the field's bounds; the largest of a list with one for each layer."""
        return max(self.sizes(field), default=None)

    def sizes(self, field: str) -> tuple[int, ...]:
        """Whole numbers within the field's bounds: one, or one for each layer, 0 where a layer has none;
        empty where the field is missing."""
        value = self.text.get(field)
        if isinstance(value, list) and value and all(isinstance(v, int) for v in value):
            # Some families give one value for each layer.
            numbers = tuple(int(v) for v in value)
        else:
            number = self._typed(field, int, "a whole number")
            numbers = () if number is None else (number,)
        least, most = int(field in _POSITIVE), MAX_SIZES.get(field, MAX_SIZE)
        beyond = [number for number in numbers if not 0 <= number <= most]
        if not beyond and max(numbers, default=least) < least:
            beyond = [max(numbers)]
        if beyond:
            raise self.fail(field, f"a whole number from {least} to {most}", beyond[0])
        return numbers

    @functools.cached_property
    def layer_fields(self) -> Mapping[str, Mapping[int, str]]:
        """What `per_layer_config` gives single layers in place of the whole model's fields: by field its
        sizes, each with the first layer that has it. What is no size there is left out."""
        found: dict[str, dict[int, str]] = {}
        layers = self.text.get("per_layer_config")
        for index, fields in layers.items() if isinstance(layers, Mapping) else ():
            for field, value in fields.items() if isinstance(fields, Mapping) else ():
                if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SIZE:
                    found.setdefault(field, {}).setdefault(value, str(index))
        return found

    def of_layers(self, field: str) -> tuple[Size, ...]:
        """The sizes above 0 that layers have: the field's, and those of `per_layer_config`."""
        own = [Size(field, value) for value in dict.fromkeys(self.sizes(field))]
        layers = self.layer_fields.get(field, {})
        own += [Size(f"per_layer_config.{index}.{field}", value) for value, index in layers.items()]
        return tuple(size for size in own if size.value)

    def flag(self, field: str, default: bool = False) -> bool:
        """true or false."""
        value = self._typed(field, bool, "true or false")
        return default if value is None else value

    def word(self, field: str) -> str | None:
        """A text."""
        return self._typed(field, str, "text")

    def strings(self, field: str, source: Mapping[str, Any] | None = None) -> tuple[str, ...] | None:
        """A list of names, of `source` instead of the merged configuration where there is one."""
        value = (self.text if source is None else source).get(field)
        if value is None:
            return None
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            raise self.fail(field, "a list of names", value)
        return tuple(value)
