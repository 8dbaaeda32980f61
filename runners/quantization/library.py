"""Layers that a quantization library makes and computes (`oracle.models.quantization.LIBRARY_SCHEMES`)."""

from __future__ import annotations

import logging

import torch

from dodona.oracle.models.quantization import LIBRARY_SCHEMES

_LIBRARIES = frozenset(LIBRARY_SCHEMES.values())


def has_library_layers(model: torch.nn.Module) -> bool:
    """Whether some layer is a library's (bitsandbytes), or its weight is (torchao)."""
    return any(
        type(part).__module__.partition(".")[0] in _LIBRARIES
        for module in model.modules()
        for part in (module, getattr(module, "weight", None))
    )


class _Once(logging.Filter):
    """Lets each message of a logger pass once."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether nothing like it was said."""
        is_new = record.getMessage() not in self._said
        self._said.add(record.getMessage())
        return is_new


_ONCE = _Once()


def say_once() -> None:
    """Keep bitsandbytes from repeating in every product that it casts activations to float16."""
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_ONCE)
