"""Regular expressions out of files of other people, which must not take long to match."""

from __future__ import annotations

import re
from typing import Final

MAX_LENGTH: Final = 512
MAX_REPETITIONS: Final = 4
"""Of single characters. The time to match a name grows with the name's length to this power."""


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
    if len(re.findall(r"[*+{]", pattern)) > MAX_REPETITIONS:
        return f"it has more than {MAX_REPETITIONS} repetitions, and may take too long to match"
    return None
