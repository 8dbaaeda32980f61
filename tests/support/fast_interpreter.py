"""Triton's interpreter without work that it repeats, and for several threads.

A launch replaces the functions of `triton.language` by interpreted ones, which takes some milliseconds. The
interpreter does the same again for each call of a helper inside a kernel, program by program, where nothing
is left to replace; that is a third of the time of V2's tests. It also makes a table of types for each value.

What a launch replaces is the process' own, and so is the interpreter's place in the grid: a second thread's
launch would find them gone in the middle. Launches wait for one another.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

_PARTS = ("_patch_lang", "_get_np_dtype", "GridExecutor", "InterpretedFunction", "tl")


def speed_up() -> None:
    """Take effect once Triton's interpreter is imported; nothing where it has other parts than in 3.7."""
    interpreter: Any = sys.modules.get("triton.runtime.interpreter")
    if interpreter is None or not all(hasattr(interpreter, part) for part in _PARTS):
        return
    if not isinstance(interpreter._patch_lang, _PatchOnce):
        interpreter._patch_lang = _PatchOnce(interpreter._patch_lang, interpreter.tl)
        interpreter._get_np_dtype = _numpy_types(interpreter._get_np_dtype, interpreter.tl)


def _numpy_types(convert: Callable[[Any], Any], tl: Any) -> Callable[[Any], Any]:
    known: dict[str, Any] = {}

    def numpy_type(given: Any) -> Any:
        element = given.element_ty if isinstance(given, tl.block_type) else given
        if isinstance(element, tl.pointer_type):
            return convert(given)
        found = known.get(element.name)
        if found is None:
            found = known[element.name] = convert(element)
        return found

    return numpy_type


class _PatchOnce:
    """In the place of `_patch_lang`: within a launch, it patches each module once.

    As before, what a launch patches is restored at its end, and what helpers patch beside stays. A launch of
    another thread waits until then.
    """

    def __init__(self, patch: Any, tl: Any) -> None:
        self._patch = patch
        self._launch = threading.RLock()
        self._modules = {id(tl): tl, id(tl.core): tl.core}
        self._of_globals: dict[int, frozenset[int]] = {}
        self._launched: frozenset[int] | None = None
        """The modules that the launch under way has patched."""
        self._lasting: frozenset[int] = frozenset()

    def __call__(self, function: Any) -> Any:
        with self._launch:
            modules = self._used(function.__globals__)
            if self._launched is None:
                scope = self._patch(function)
                self._launched = modules
                self._launch.acquire()
                return _Launch(self, scope)
            if modules <= self._launched | self._lasting:
                return _NOTHING
            self._lasting |= modules
            return self._patch(function)

    def ended(self) -> None:
        """The launch has restored what it patched."""
        self._launched = None
        self._launch.release()

    def _used(self, names: dict[str, Any]) -> frozenset[int]:
        found = self._of_globals.get(id(names))
        if found is None:
            found = frozenset(id(value) for value in names.values() if id(value) in self._modules)
            self._of_globals[id(names)] = found
        return found


class _Launch:
    def __init__(self, once: _PatchOnce, scope: Any) -> None:
        self._once, self._scope = once, scope

    def restore(self) -> None:
        self._scope.restore()
        self._once.ended()


class _Nothing:
    def restore(self) -> None:
        """There is nothing to restore."""


_NOTHING = _Nothing()
