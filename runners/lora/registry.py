"""`AdapterRegistry`: the adapters that requests can use, by number. Reads them in the caller's thread."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping

from dodona.oracle.config.sections import LoRAConfig
from dodona.oracle.errors import ConfigError
from dodona.runners.errors import InvalidRequestError
from dodona.runners.lora.adapter import Adapter, read_adapter
from dodona.runners.lora.request import LoRARequest
from dodona.runners.lora.target import LoRATarget


class AdapterRegistry:
    """Loaded adapters, at most `max_cpu_loras`; the one unused for the longest goes first. Thread-safe.

    A request holds its adapter itself, so that one which is removed or replaced here serves the requests that
    began with it to their end.
    """

    def __init__(self, config: LoRAConfig, targets: Mapping[str, LoRATarget]) -> None:
        """targets: the model's layers that adapters can change, by name."""
        self._targets = targets
        self._max_rank = config.max_lora_rank
        self._max_adapters = config.max_loras if config.max_cpu_loras is None else config.max_cpu_loras
        self._lock = threading.Lock()
        """Guards the adapters; held while one is read, so that none is read twice."""
        self._adapters: OrderedDict[int, Adapter] = OrderedDict()
        """The one used last at the end."""

    def get(self, request: LoRARequest) -> Adapter:
        """The adapter of a request; reads it if it is not loaded, or is to be read again.

        Raises InvalidRequestError for what can't be served, and where the number belongs to another adapter.
        """
        if not isinstance(request, LoRARequest):
            raise InvalidRequestError(f"lora_request: expected a LoRARequest, got {request!r:.80}")
        name, path, number = request.lora_name, request.lora_path, request.lora_int_id
        with self._lock:
            found = self._adapters.get(number)
            same = found is None or (found.lora_name, found.lora_path) == (name, path)
            if found is not None and not same and not request.load_inplace:
                raise InvalidRequestError(
                    f"lora_int_id {number} is adapter {found.lora_name!r} of {found.lora_path}, not "
                    f"{name!r} of {path}; use another number, or remove_lora first"
                )
            if found is None or request.load_inplace:
                found = self._read(request)
                self._adapters[number] = found
            self._adapters.move_to_end(number)
            while len(self._adapters) > self._max_adapters:
                self._adapters.popitem(last=False)
            return found

    def remove(self, lora_int_id: int) -> bool:
        """Forget an adapter; False where there is none of this number."""
        with self._lock:
            known = isinstance(lora_int_id, int) and lora_int_id in self._adapters
            return known and self._adapters.pop(lora_int_id) is not None

    def loaded(self) -> set[int]:
        """Numbers of the loaded adapters."""
        with self._lock:
            return set(self._adapters)

    def _read(self, request: LoRARequest) -> Adapter:
        try:
            return read_adapter(request, self._targets, max_lora_rank=self._max_rank)
        except ConfigError as error:
            raise InvalidRequestError(f"adapter {request.lora_name!r}: {error}") from error
