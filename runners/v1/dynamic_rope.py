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
        self._forward, self._module.forward = self._module.forward, self._rotate
        self._token_by_token = True
        if not self._multiplies():
            # transformers 5.17 takes a matrix product: one set of frequencies for all tokens of a pass.
            self._token_by_token = False
            if not self._multiplies():
                self._module.forward, self._module.rope_type = self._forward, self._type
                raise _unknown(name, "its code does not multiply positions by `inv_freq`")

    def frequencies(self, lengths: torch.Tensor) -> torch.Tensor:
        """[..., dim / 2] fp32 for `lengths` [...] in tokens."""
        dim = 2 * self._plain.numel()
        longest = lengths.clamp(min=self._original).float()
        stretched = (self._factor * longest / self._original - (self._factor - 1)) ** (dim / (dim - 2))
        exponents = torch.arange(0, dim, 2, device=lengths.device, dtype=torch.float32) / dim
        found: torch.Tensor = 1.0 / (self._base * stretched[..., None]) ** exponents
        return found

    def _rotate(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The module's pass over x (dtype and device only) and positions [1, T] or, of the plain model over
        sequences of one length, [B, T]."""
        lengths = _lengths.get()
        if lengths is None:
            return self._pass(self.frequencies(position_ids.max() + 1), x, position_ids)
        if self._token_by_token:
            return self._pass(self.frequencies(lengths)[None], x, position_ids)
        values: Any = lengths  # Tensor.unique has no types
        distinct, which, counts = values.unique(return_inverse=True, return_counts=True)
        order = which.argsort()
        parts = [
            self._pass(frequencies, x, positions)
            for frequencies, positions in zip(
                self.frequencies(distinct),
                torch.split(position_ids[:, order], counts.tolist(), dim=1),
                strict=True,
            )
        ]
        back = order.argsort()
        return tuple(torch.cat(part, dim=1)[:, back] for part in zip(*parts, strict=True))

    def _pass(self, frequencies: torch.Tensor, x: torch.Tensor, positions: Any) -> tuple[torch.Tensor, ...]:
        self._module.inv_freq = frequencies
        found: tuple[torch.Tensor, ...] = self._forward(x, positions)
        return found

    def _multiplies(self) -> bool:
        """Whether a pass over tokens of several lengths is, token by token, a pass over each, and one with
        doubled frequencies one over doubled positions."""
        device = self._plain.device
        x = torch.zeros(1, 3, 1, device=device)
        positions = torch.tensor([[0, 3, 5]], device=device)
        lengths = torch.tensor([1, 2 * self._original, 3 * self._original], device=device)
        try:
            with torch.no_grad(), rotary_lengths(lengths):
                together = self._module(x, positions)
            for i in range(3):
                one, position = x[:, i : i + 1], positions[:, i : i + 1]
                frequencies = self.frequencies(lengths[i])
                with torch.no_grad(), rotary_lengths(lengths[i : i + 1]):
                    alone = self._module(one, position)
                faster = self._pass(2 * frequencies, one, position)
                farther = self._pass(frequencies, one, 2 * position)
                for token, expected in ((tuple(t[:, i : i + 1] for t in together), alone), (faster, farther)):
                    if not all(torch.equal(*pair) for pair in zip(token, expected, strict=True)):
                        return False
        except Exception:  # it takes other inputs than those of a decoder's embedding
            return False
        return True


def _unknown(name: str, why: str) -> UnsupportedConfiguration:
    return UnsupportedConfiguration.lacking("v1", "length-dependent-rope", why=f"{name}: {why}")
