"""A Hugging Face causal LM as a model whose steps run from state on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from dodona.runners.device.forward_inputs import ForwardInputs
from dodona.runners.v1.attention import forward_state
from dodona.runners.v1.device_forward import DeviceForward, kv_cache_shape
from dodona.runners.v1.fusions import Fusions
from dodona.runners.v1.packed_model import PackedModel


class DeviceModel:
    """A `runners.device.model.StepModel` over a packed model.

    The model's body gives hidden states, and its head gives logits of those that are wanted: the head is the
    causal LM's own forward pass around a body whose result is given. So whatever a model does to its logits
    is done here, too, and no step has logits of more positions than it needs.

    Args:
        model: packed rows can be computed with it.
        block_size: tokens of a KV block.

    Raises ValueError where the causal LM has no body of its own, or the two give no logits.
    """

    def __init__(self, model: PackedModel, block_size: int) -> None:
        self.packed = model
        self._block_size = block_size
        self._causal_lm: Any = model.model
        self._body: Any = _body(self._causal_lm)
        self.fusions = Fusions(self._causal_lm)
        """Installed in the model."""
        self._no_ids = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
        self._num_multiprocessors = (
            torch.cuda.get_device_properties(model.device).multi_processor_count
            if model.device.type == "cuda"
            else 1
        )
        with self.plain(), torch.inference_mode():
            output = self._body(input_ids=self._no_ids, position_ids=self._no_ids, use_cache=False)
        if not hasattr(output, "last_hidden_state"):
            raise ValueError(f"the body of {model.name} returns no last_hidden_state")
        self._output_type: Any = type(output)
        with torch.inference_mode():
            logits = self.logits(output.last_hidden_state[0])
        self._vocab_size, self._dtype = logits.shape[1], logits.dtype

    @contextmanager
    def plain(self) -> Iterator[None]:
        """The model as transformers runs it: with its own attention and without fused parts."""
        with self.fusions.removed(), self.packed.plain():
            yield

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.packed.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the logits."""
        return self._dtype

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self._vocab_size

    @property
    def max_kv_heads(self) -> int:
        """Most KV heads of an attention call."""
        return max(spec.num_kv_heads for spec in self.packed.layers)

    @property
    def index_dtype(self) -> torch.dtype:
        """Type of token ids and positions: modelling code expects int64."""
        return torch.int64

    @property
    def embedding(self) -> None:
        """The model looks embeddings up itself."""
        return

    @property
    def kv_dtype(self) -> torch.dtype:
        """Type of keys and values."""
        return self.packed.kv_dtype

    def kv_cache_shapes(self, num_blocks: int, block_size: int) -> Sequence[tuple[int, ...]]:
        """One per attention call, in the order of the calls."""
        return [kv_cache_shape(spec, num_blocks, block_size) for spec in self.packed.layers]

    def forward(
        self,
        inputs: ForwardInputs,
        kv_caches: Sequence[torch.Tensor],
        *,
        wanted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states that the head takes: [tokens, hidden], or [n, hidden] at packed indices `wanted`."""
        state = DeviceForward(
            inputs,
            kv_caches,
            layers=self.packed.layers,
            patterns=self.packed.patterns,
            block_size=self._block_size,
            num_multiprocessors=self._num_multiprocessors,
        )
        with forward_state(state):
            output = self._body(
                input_ids=inputs.input_ids[None], position_ids=inputs.positions[None], use_cache=False
            )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden if wanted is None else hidden.index_select(0, wanted)

    def logits(self, hidden: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """[n, vocab] of hidden states [n, hidden]; written into `out` where given."""
        given = self._output_type(last_hidden_state=hidden[None])
        # An instance's `forward` comes before its class's.
        self._body.__dict__["forward"] = lambda *args, **kwargs: given
        try:
            logits: torch.Tensor = self._causal_lm(input_ids=self._no_ids, use_cache=False).logits[0]
        finally:
            del self._body.__dict__["forward"]
        return logits if out is None else out.copy_(logits)

    def decode(
        self, inputs: ForwardInputs, kv_caches: Sequence[torch.Tensor], *, out: torch.Tensor
    ) -> torch.Tensor:
        """`forward` and `logits` of a step of decodes alone: `out`, [tokens, vocab]."""
        return self.logits(self.forward(inputs, kv_caches), out=out)


def _body(causal_lm: Any) -> Any:
    """The part of a causal LM that gives hidden states. Raises ValueError where it has none of its own."""
    if causal_lm.base_model is not causal_lm:
        return causal_lm.base_model
    parts = [part for part in causal_lm.children() if isinstance(part, PreTrainedModel)]
    if len(parts) != 1:
        raise ValueError(f"{type(causal_lm).__name__} has {len(parts)} bodies beside its head, expected one")
    return parts[0]
