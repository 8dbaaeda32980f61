"""One thread parses Python at a time.

CPython before 3.11.8 and 3.12.2 counts the depth of a tree in a place that all threads share, and raises
`SystemError: AST constructor recursion depth mismatch` where a second thread parses in the middle
(https://github.com/python/cpython/issues/106905). Triton parses a kernel at its first launch, and tests run
ranks as threads.
"""

from __future__ import annotations

import ast
import threading
from functools import wraps
from typing import Any

_parse = ast.parse
_turn = threading.RLock()


@wraps(_parse)
def _parse_in_turn(*args: Any, **kwargs: Any) -> Any:
    with _turn:
        return _parse(*args, **kwargs)


def parse_in_turn() -> None:
    """Take effect for every caller of `ast.parse`."""
    ast.parse = _parse_in_turn
