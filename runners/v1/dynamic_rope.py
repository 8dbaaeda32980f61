"""Rotary frequencies that grow with a row's length ("dynamic" NTK), for packed rows.

transformers takes the frequencies of a forward pass from its longest sequence, and cached keys keep those of
their time. Of one request computed by itself that is: the prompt's tokens have the frequencies of the
prompt's length, and each generated token those of the length up to itself. Here each packed token has the
frequencies of its own row, whatever else the step computes and however the prompt is cut.

Source of the formula: transformers' `_compute_dynamic_ntk_parameters`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from dodona.oracle.errors import UnsupportedConfiguration

_lengths: ContextVar[torch.Tensor | None] = ContextVar("dodona_v1_rotary_lengths", default=None)


@contextmanager
def rotary_lengths(lengths: torch.Tensor | None) -> Iterator[None]:
    """Inside, the tokens of a forward pass have the frequencies of these lengths, [T] int64. None: those that
    transformers takes."""
    token = _lengths.set(lengths)
    try:
        yield
    finally:
        _lengths.reset(token)


def install_dynamic_rope(model: torch.nn.Module) -> bool:
    """Let the model's rotary embeddings follow `rotary_lengths`; False where none changes with the length.

    Raises UnsupportedConfiguration where one computes in a way that isn't known.
    """
    found = [m for m in model.modules() if _is_dynamic(getattr(m, "rope_type", None))]
    for module in found:
        _DynamicRope(module)
    return bool(found)


def _is_dynamic(rope_type: Any) -> bool:
    types = rope_type.values() if isinstance(rope_type, dict) else (rope_type,)
    return any(isinstance(kind, str) and "dynamic" in kind for kind in types)


class _DynamicRope:
    """A rotary embedding of transformers whose frequencies are set before each of its passes."""

    def __init__(self, module: Any) -> None:
        self._module = module
        name = type(module).__name__
        if not isinstance(self._module.rope_type, str) or not hasattr(module, "inv_freq"):
            raise _unknown(name, "layers differ in their rotary embedding")
        config = self._module.config
        parameters = config.rope_parameters
        self._base = float(parameters["rope_theta"])
        self._factor = float(parameters["factor"])
        self._original = int(config.max_position_embeddings)
        self._plain = self._module.inv_freq.detach().clone()
        # transformers' own update goes by this name; it would take one length for all rows.
        self._type, self._module.rope_type = self._module.rope_type, "default"
        self._handle = module.register_forward_pre_hook(self._before)
        if not self._follows_its_frequencies():
            self._handle.remove()
            self._module.rope_type = self._type
            raise _unknown(name, "its code does not multiply positions by `inv_freq` token by token")

    def frequencies(self, lengths: torch.Tensor) -> torch.Tensor:
        """[..., dim / 2] fp32 for `lengths` [...] in tokens."""
        dim = 2 * self._plain.numel()
        longest = lengths.clamp(min=self._original).float()
        stretched = (self._factor * longest / self._original - (self._factor - 1)) ** (dim / (dim - 2))
        exponents = torch.arange(0, dim, 2, device=lengths.device, dtype=torch.float32) / dim
        found: torch.Tensor = 1.0 / (self._base * stretched[..., None]) ** exponents
        return found

    def _before(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        lengths = _lengths.get()
        positions = args[1] if len(args) > 1 else None
        if lengths is None:  # the plain model, over one sequence or several of one length
            longest = 0 if positions is None else positions.max() + 1
            length = torch.as_tensor(longest, device=self._plain.device)
            self._module.inv_freq = self.frequencies(length)
        else:
            self._module.inv_freq = self.frequencies(lengths)[None]

    def _follows_its_frequencies(self) -> bool:
        """Whether one pass over tokens of several lengths is, token by token, a pass over each."""
        device = self._plain.device
        x = torch.zeros(1, 3, 1, device=device)
        positions = torch.tensor([[0, 3, 5]], device=device)
        lengths = torch.tensor([1, 2 * self._original, 3 * self._original], device=device)
        try:
            with torch.no_grad(), rotary_lengths(lengths):
                together = self._module(x, positions)
            for i in range(3):
                with torch.no_grad(), rotary_lengths(lengths[i : i + 1]):
                    alone = self._module(x[:, i : i + 1], positions[:, i : i + 1])
                for all_tokens, one in zip(together, alone, strict=True):
                    if not torch.equal(all_tokens[:, i : i + 1], one):
                        return False
        except Exception:  # it takes other inputs than those of a decoder's embedding
            return False
        return True


def _unknown(name: str, why: str) -> UnsupportedConfiguration:
    return UnsupportedConfiguration.lacking("v1", "length-dependent-rope", why=f"{name}: {why}")
