"""LoRA adapters on their way to workers: each goes once, and then by its key, as long as it is among the last
ones used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dodona.runners.interface import SchedulerOutput
    from dodona.runners.lora.adapter import Adapter


class _LastUsed:
    """Adapters by key. Both ends of a connection make the same calls, so that they hold the same ones."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._adapters: OrderedDict[bytes, Adapter] = OrderedDict()

    def get(self, key: bytes) -> Adapter | None:
        """The adapter, which counts as used now."""
        if key in self._adapters:
            self._adapters.move_to_end(key)
        return self._adapters.get(key)

    def put(self, adapter: Adapter) -> None:
        """Hold an adapter, in place of the one unused for the longest where there are too many."""
        self._adapters[adapter.key] = adapter
        if len(self._adapters) > self._most:
            self._adapters.popitem(last=False)


class AdapterSender:
    """The engine's end. most: adapters that the other ends hold."""

    def __init__(self, most: int) -> None:
        self._sent = _LastUsed(most)

    def abridge(self, step: SchedulerOutput) -> SchedulerOutput:
        """The step, with adapters that were sent before as their keys alone."""
        return _with_adapters(step, self._abridged)

    def _abridged(self, adapter: Adapter) -> Adapter:
        if self._sent.get(adapter.key) is not None:
            return replace(adapter, layers={})
        self._sent.put(adapter)
        return adapter


class AdapterReceiver:
    """A worker's end."""

    def __init__(self, most: int) -> None:
        self._held = _LastUsed(most)

    def complete(self, step: SchedulerOutput) -> SchedulerOutput:
        """The step as it was before `abridge`."""
        return _with_adapters(step, self._complete)

    def _complete(self, adapter: Adapter) -> Adapter | None:
        if not adapter.layers:
            return self._held.get(adapter.key)
        self._held.put(adapter)
        return adapter


def _with_adapters(step: SchedulerOutput, change: Callable[[Adapter], Adapter | None]) -> SchedulerOutput:
    """The step with the adapters of its new requests changed."""
    if not any(request.adapter for request in step.new_requests):
        return step
    requests = [
        request if request.adapter is None else replace(request, adapter=change(request.adapter))
        for request in step.new_requests
    ]
    return replace(step, new_requests=requests)
