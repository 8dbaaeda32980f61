"""Which values the numbers among sampling parameters may have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from dodona.oracle.printable import short


@dataclass(frozen=True, slots=True)
class _Whole:
    """Whole numbers from `least` on."""

    least: int


@dataclass(frozen=True, slots=True)
class _Real:
    """Finite numbers from `low` (above: beyond it) to `high`."""

    low: float
    high: float
    above: bool = False


_BOUNDS: Final[Mapping[str, _Whole | _Real]] = MappingProxyType(
    {
        "n": _Whole(1),
        "temperature": _Real(0.0, math.inf),
        "top_p": _Real(0.0, 1.0, above=True),
        "top_k": _Whole(-1),
        "min_p": _Real(0.0, 1.0),
        "presence_penalty": _Real(-2.0, 2.0),
        "frequency_penalty": _Real(-2.0, 2.0),
        "repetition_penalty": _Real(0.0, math.inf, above=True),
        "max_tokens": _Whole(1),
        "min_tokens": _Whole(0),
        "logprobs": _Whole(0),
        "prompt_logprobs": _Whole(0),
        "seed": _Whole(-1),
    }
)


def bounds_fault(name: str, value: object) -> str | None:
    """Why a sampling parameter can't have a value; None where it can.

    >>> bounds_fault("top_p", 2.0)
    'top_p must be above 0 and at most 1, got 2'
    """
    bounds = _BOUNDS[name]
    if isinstance(bounds, _Whole):
        if not isinstance(value, int) or isinstance(value, bool):
            return f"{name} must be an integer, got {short(value)}"
        return f"{name} must be at least {bounds.least}, got {value}" if value < bounds.least else None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not _is_finite(value):
        return f"{name} must be a finite number, got {short(value)}"
    if (bounds.low < value if bounds.above else bounds.low <= value) and value <= bounds.high:
        return None
    least = f"above {bounds.low:g}" if bounds.above else f"at least {bounds.low:g}"
    most = "" if math.isinf(bounds.high) else f" and at most {bounds.high:g}"
    return f"{name} must be {least}{most}, got {value:g}"


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False
