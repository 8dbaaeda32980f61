"""A Hugging Face causal LM as a model whose steps run from state on the device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from dodona.kernels.devices import count_multiprocessors
from dodona.kernels.state_space.sequences import SlotSequences
from dodona.runners.device.caches import zero_caches
from dodona.runners.device.forward_inputs import ForwardInputs
from dodona.runners.v1.attention import forward_state
from dodona.runners.v1.device_forward import DeviceForward, kv_cache_shape
from dodona.runners.v1.device_lora import DeviceAdapters
from dodona.runners.v1.fusions import Fusions
from dodona.runners.v1.mixers import step_states
from dodona.runners.v1.packed_mixers import packed_forward
from dodona.runners.v1.packed_model import PackedModel
from dodona.runners.v1.shared_inputs import layers_by_input
from dodona.runners.v1.state_slots import DeviceStates, PackedStates, StateChunk, StateRound


class DeviceModel:
    """A `runners.device.model.StepModel` over a packed model.

    The model's body gives hidden states, and its head gives logits of those that are wanted: the head is the
    causal LM's own forward pass around a body whose result is given. So whatever a model does to its logits
    is done here, too, and no step has logits of more positions than it needs.

    With adapters, hidden states have one more column: the slot of the token's adapter, for what the output
    layer adds.

    Args:
        model: packed rows can be computed with it.
        block_size: tokens of a KV block.
        adapters: of the requests; None: there can be none.

    Raises ValueError where the causal LM has no body of its own, or the two give no logits.
    """

    def __init__(self, model: PackedModel, block_size: int, adapters: DeviceAdapters | None = None) -> None:
        self.packed = model
        self.adapters = adapters
        self._block_size = block_size
        self._causal_lm: Any = model.model
        self._body: Any = _body(self._causal_lm)
        self._packed_forwards = tuple(packed_forward(mixer) for mixer in model.mixers)
        self._no_ids = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
        self._num_multiprocessors = count_multiprocessors(model.device)
        with model.plain(), torch.inference_mode():
            positions = {"position_ids": model.position_ids(self._no_ids[0])} if model.takes_positions else {}
            run = partial(self._body, input_ids=self._no_ids, use_cache=False, **positions)
            output = run()
            groups = layers_by_input(self._body, run)
        self.fusions = Fusions(self._causal_lm, groups)
        """Installed in the model."""
        if not hasattr(output, "last_hidden_state"):
            raise ValueError(f"the body of {model.name} returns no last_hidden_state")
        self._output_type: Any = type(output)
        with torch.inference_mode():
            logits = self._head(output.last_hidden_state[0])
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
        return max((spec.num_kv_heads for spec in self.packed.layers), default=1)

    @property
    def index_dtype(self) -> torch.dtype:
        """Type of token ids and positions: modelling code expects int64."""
        return torch.int64

    @property
    def embedding(self) -> None:
        """The model looks embeddings up itself."""
        return

    @property
    def pads_prompts(self) -> bool:
        """Inner states would go on over padding."""
        return not self.packed.mixers

    def long_context(self, size: int, *, verifies: bool) -> int | None:
        """None: there is one way."""
        return None

    def make_caches(self, num_blocks: int, block_size: int, num_rows: int) -> Sequence[torch.Tensor]:
        """One per attention call, in the order of the calls; then the inner states of `num_rows` rows, and
        one more for padding, mixer after mixer."""
        packed = self.packed
        shapes = [kv_cache_shape(spec, num_blocks, block_size) for spec in packed.layers]
        keys_and_values = zero_caches(shapes, dtype=packed.kv_dtype, device=packed.device)
        slots = packed.make_state_slots(num_rows + 1)
        return [*keys_and_values, *itertools.chain.from_iterable(slots.tensors)]

    def forward(
        self,
        inputs: ForwardInputs,
        caches: Sequence[torch.Tensor],
        *,
        wanted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states that the head takes: [tokens, hidden], or [n, hidden] at packed indices `wanted`."""
        packed = self.packed
        calls = len(packed.layers)
        state = DeviceForward(
            inputs,
            caches[:calls],
            layers=packed.layers,
            patterns=packed.patterns,
            block_size=self._block_size,
            num_multiprocessors=self._num_multiprocessors,
        )
        positions = {"position_ids": packed.position_ids(inputs.positions)} if packed.takes_positions else {}
        with ExitStack() as contexts:
            contexts.enter_context(forward_state(state))
            contexts.enter_context(step_states(self._states(inputs, caches[calls:])))
            if self.adapters is not None:
                slots = self.adapters.slots_of(inputs)
                contexts.enter_context(self.adapters.layers.slots_of_pass(slots, slots))
            output = self._body(input_ids=inputs.input_ids[None], use_cache=False, **positions)
        hidden: torch.Tensor = output.last_hidden_state[0]
        if self.adapters is not None:
            hidden = torch.cat([hidden, slots[:, None].to(hidden.dtype)], dim=1)
        return hidden if wanted is None else hidden.index_select(0, wanted)

    def _states(self, inputs: ForwardInputs, tensors: Sequence[torch.Tensor]) -> DeviceStates | None:
        """The inner states of the step's rows, of caches that `make_caches` made."""
        if not tensors:
            return None
        rest = iter(tensors)
        by_mixer = [tuple(itertools.islice(rest, len(mixer.states))) for mixer in self.packed.mixers]
        count = inputs.num_decodes
        rows = inputs.rows.long()
        slots = torch.where(rows < 0, len(tensors[0]) - 1, rows)  # the last slot is the padding's
        # A prompt of one token is among the decodes.
        begins = inputs.seq_lens <= inputs.query_start.diff()
        tokens = torch.arange(count, device=rows.device)
        decodes = StateRound(tokens, slots[:count], slots[:count], begins[:count])
        sequences = SlotSequences(inputs.query_start, slots, begins, max(1, inputs.max_prefill_len))
        return DeviceStates(
            by_mixer,
            [decodes] if count else [],
            [StateChunk(c.row, c.row, c.start, c.num_tokens, not c.num_computed) for c in inputs.chunks],
            PackedStates(self._packed_forwards, sequences),
        )

    def logits(self, hidden: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """[n, vocab] of hidden states [n, hidden]; written into `out` where given."""
        if self.adapters is None:
            logits = self._head(hidden)
        else:
            slots = hidden[:, -1].int()
            with self.adapters.layers.slots_of_pass(slots, slots):
                # Rows of an odd length would keep the output layer from its fast kernels.
                logits = self._head(hidden[:, :-1].contiguous())
        return logits if out is None else out.copy_(logits)

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        """[n, vocab] of hidden states [n, hidden] as the body gives them."""
        given = self._output_type(last_hidden_state=hidden[None])
        # An instance's `forward` comes before its class's.
        self._body.__dict__["forward"] = lambda *args, **kwargs: given
        try:
            logits: torch.Tensor = self._causal_lm(input_ids=self._no_ids, use_cache=False).logits[0]
        finally:
            del self._body.__dict__["forward"]
        return logits

    def decode(
        self, inputs: ForwardInputs, caches: Sequence[torch.Tensor], *, out: torch.Tensor
    ) -> torch.Tensor:
        """`forward` and `logits` of a step of decodes alone: `out`, [tokens, vocab]."""
        return self.logits(self.forward(inputs, caches), out=out)


def _body(causal_lm: Any) -> Any:
    """The part of a causal LM that gives hidden states. Raises ValueError where it has none of its own."""
    if causal_lm.base_model is not causal_lm:
        return causal_lm.base_model
    parts = [part for part in causal_lm.children() if isinstance(part, PreTrainedModel)]
    if len(parts) != 1:
        raise ValueError(f"{type(causal_lm).__name__} has {len(parts)} bodies beside its head, expected one")
    return parts[0]
