"""Experts of gpt-oss as its checkpoints store them: all of a layer in a few tensors of MXFP4 numbers."""

from __future__ import annotations

import torch

from dodona.runners.quantization.experts import ExpertPart, QuantizedExperts, stacked_parts
from dodona.runners.quantization.formats import Converted
from dodona.runners.quantization.linear import QuantizedLinear
from dodona.runners.quantization.mxfp4 import GROUP, check_groups, from_blocks


class StoredMxfp4Experts(torch.nn.Module):
    """The experts of a layer as a checkpoint stores them: buffers to be filled, then `converted`.

    stack: transformers' module. Raises ConfigError where its sizes are no multiples of 32.
    """

    def __init__(self, stack: torch.nn.Module, *, name: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self._stack = (stack,)
        for part, stacked in stacked_parts(stack).items():
            count, rows, inner = stacked.weight.shape
            check_groups(name, inner)
            groups, device = inner // GROUP, stacked.weight.device
            for suffix, shape in (("blocks", (groups, GROUP // 2)), ("scales", (groups,))):
                buffer = torch.empty(count, rows, *shape, dtype=torch.uint8, device=device)
                self.register_buffer(f"{part}_proj_{suffix}", buffer)
            if stacked.bias is not None:
                bias = torch.empty(count, rows, dtype=dtype, device=device)
                self.register_buffer(f"{part}_proj_bias", bias)

    def converted(self) -> QuantizedExperts:
        """The experts in the form that computes."""
        stored = dict(self.named_buffers())

        def make(
            index: int, part: ExpertPart, weight: torch.Tensor, bias: torch.Tensor | None
        ) -> torch.nn.Module:
            blocks, scales = stored[f"{part}_proj_blocks"][index], stored[f"{part}_proj_scales"][index]
            return QuantizedLinear(
                Converted(from_blocks(blocks, scales.clone())),
                activations=None,
                bias=None if bias is None else stored[f"{part}_proj_bias"][index].clone(),
                dtype=self.dtype,
            )

        (stack,) = self._stack
        return QuantizedExperts(stack, stacked_parts(stack), make)
