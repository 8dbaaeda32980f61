"""`LoRARequest`: which adapter a request uses."""

from __future__ import annotations

import os
from dataclasses import dataclass

from dodona.runners.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """An adapter by name, number and directory, as vLLM's.

    Raises InvalidRequestError for an empty name, a number below 1, and a path that is none.
    """

    lora_name: str
    """Any name, for messages."""
    lora_int_id: int
    """The adapter's number, from 1. While it is loaded, the number belongs to this name and path."""
    lora_path: str
    """Directory with adapter_config.json and adapter_model.safetensors."""
    load_inplace: bool = False
    """Read the directory again even if the adapter is loaded. Requests that run keep what they began with."""

    def __post_init__(self) -> None:
        if not isinstance(self.lora_name, str) or not self.lora_name:
            raise InvalidRequestError(f"lora_name: expected text, got {self.lora_name!r:.80}")
        number = self.lora_int_id
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise InvalidRequestError(f"lora_int_id: expected a number from 1, got {number!r:.80}")
        if isinstance(self.lora_path, os.PathLike):
            object.__setattr__(self, "lora_path", os.fspath(self.lora_path))
        if not isinstance(self.lora_path, str) or not self.lora_path:
            raise InvalidRequestError(f"lora_path: expected a directory, got {self.lora_path!r:.80}")
