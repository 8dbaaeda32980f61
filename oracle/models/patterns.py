"""Regular expressions out of files of other people, which must not take long to match."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from math import factorial, prod
from typing import Final

MAX_LENGTH: Final = 512
MAX_STEPS: Final = 1_000_000
"""Of one pattern with one name: 10 ms. Four repetitions of single characters take 700,000."""

NAME_LENGTH: Final = 64
"""Characters of a module's name, by which steps are counted."""

_NAME_STEPS: Final = 30
"""To compare a name takes as long as so many steps of a pattern."""

_ONE_CHARACTER: Final = re.compile(r"\\.|\[\^?\]?(?:\\.|[^]\\])*\]", re.DOTALL)
_EXTENSION: Final = re.compile(r"\(\?(?:[aiLmsux]+\)|P<\w+>|P[=>]|[:=!>]|<[=!]|[aiLmsux-]+:)?")


def pattern_fault(pattern: str) -> str | None:
    """Why a pattern is not to be matched; None where it may be.

    A repeated group may take time that doubles with each character of a name.
    """
    if len(pattern) > MAX_LENGTH:
        return f"it is longer than {MAX_LENGTH} characters"
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"it is malformed: {error}"
    if re.search(r"\)[*+?{]", pattern):
        return "it repeats a group, and may take too long to match"
    if _steps(pattern) > MAX_STEPS:
        return "it has many repetitions or alternatives, and may take too long to match"
    return None


def matching_steps(targets: Iterable[str]) -> int:
    """Most steps, of some 10 ns, that it takes to match a module's name with all targets: names, or "re:" and
    a pattern that has no fault."""
    return sum(_NAME_STEPS + (_steps(t[3:]) if t.startswith("re:") else 0) for t in targets)


@functools.lru_cache(maxsize=4096)
def _steps(pattern: str) -> int:
    """Most ways in which a pattern without repeated groups can be tried on a name.

    A repetition ends anywhere after the one before it, an optional character doubles the ways, and each
    group multiplies them by its alternatives, as far as groups stand one after another.
    """
    text = _EXTENSION.sub("(", _ONE_CHARACTER.sub("x", pattern))
    repeated = len(re.findall(r"[*+{]", text))
    ways = 1 << len(re.findall(r"(?<![*+?}])\?", text))
    open_groups = [1]
    for char in re.findall(r"[(|)]", text):
        if char == "(":
            open_groups.append(1)
        elif char == "|":
            open_groups[-1] += 1
        else:
            ways *= open_groups.pop()
    places: int = NAME_LENGTH**repeated // factorial(repeated)
    return ways * prod(open_groups) * (1 + places)
