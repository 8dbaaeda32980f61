"""MXFP4: E2M1 numbers in groups of 32, each with a power of two for a scale (E8M0), as gpt-oss has.

Source: the OCP Microscaling Formats specification 1.0. A tensor NAME [experts, out, in] is stored as
NAME_blocks [experts, out, in / 32, 16] uint8, the even element of each pair in the lower four bits, and
NAME_scales [experts, out, in / 32] uint8, the exponent plus 127.
"""

from __future__ import annotations

import torch

from dodona.kernels.linear.quantized_weight import FP4_VALUES, QuantizedWeight, pack_nibbles
from dodona.oracle.errors import ConfigError

GROUP = 32
_LARGEST = max(FP4_VALUES)


def check_groups(name: str, inner: int) -> None:
    """Raises ConfigError where experts of this input size can't be stored."""
    if inner % GROUP:
        raise ConfigError(
            f"experts {name!r}: their input size {inner} is not a multiple of {GROUP}, so the "
            "quantization method 'mxfp4' of config.json can't store them"
        )


def from_blocks(blocks: torch.Tensor, scales: torch.Tensor) -> QuantizedWeight:
    """A weight [out, in] from its stored blocks [out, in / 32, 16] and scales [out, in / 32], both uint8."""
    values = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(1)
    return QuantizedWeight("fp4", pack_nibbles(values), scales.view(torch.float8_e8m0fnu), None, GROUP)


def quantize_mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(blocks, scales) of the nearest numbers to `weight` [..., in], for the least powers of two that reach
    the largest of each group."""
    groups = weight.float().reshape(*weight.shape[:-1], -1, GROUP)
    largest = groups.abs().amax(-1, keepdim=True).clamp(min=2.0**-100)
    exponents = (largest / _LARGEST).log2().ceil().clamp(-127, 127)
    table = torch.tensor(FP4_VALUES, device=weight.device)
    values = (groups / exponents.exp2())[..., None].sub(table).abs().argmin(-1).to(torch.uint8)
    blocks = values[..., 0::2] | (values[..., 1::2] << 4)
    return blocks, (exponents.squeeze(-1) + 127).to(torch.uint8)
