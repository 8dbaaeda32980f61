"""Layers that a quantization library makes and computes (`oracle.models.quantization.LIBRARY_SCHEMES`)."""

from __future__ import annotations

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
