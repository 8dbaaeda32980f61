"""`DensePoolingModel`: V2's dense decoder over whole prompts, packed one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from dodona.runners.device.caches import zero_caches
from dodona.runners.device.forward_inputs import ForwardInputs
from dodona.runners.limits import Limits
from dodona.runners.pooling.sequence import TokenSequence
from dodona.runners.v2.models.dense import DenseModel


class DensePoolingModel:
    """A model, and room for keys and values of one step.

    Layers write keys and values before they attend, and none reads another's, so all have the same room.
    """

    def __init__(self, model: DenseModel, limits: Limits) -> None:
        self.model = model
        self._block_size = limits.block_size
        num_blocks = limits.max_num_batched_tokens // limits.block_size + limits.max_num_seqs
        shape = model.cache_shape(num_blocks, limits.block_size)
        self._caches = zero_caches([shape], dtype=model.dtype, device=model.device) * model.spec.num_layers

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.model.dtype

    @torch.inference_mode()
    def forward(self, sequences: Sequence[TokenSequence]) -> list[torch.Tensor]:
        """The output of each sequence: the hidden states after the last norm [tokens, hidden], or, with the
        classifier's weights, the logits [classes] of its last token, or of all of them [tokens, classes].

        At most as many sequences and tokens as the limits allow in a step.
        """
        hidden = self.model.forward(self._inputs(sequences), self._caches)
        found = list(torch.split(hidden, [len(sequence.token_ids) for sequence in sequences]))
        spec, weights = self.model.spec.score, self.model.weights.score
        if spec is None or weights is None:
            return found
        if spec.of_last_token:
            last = [_last_token(sequence.token_ids, spec.pad_token_id) for sequence in sequences]
            found = [states[index] for states, index in zip(found, last, strict=True)]
        return [functional.linear(states, weights.weight, weights.bias) for states in found]

    def _inputs(self, sequences: Sequence[TokenSequence]) -> ForwardInputs:
        """A step in which all sequences begin and end; each has blocks of its own."""
        device, block_size = self.model.device, self._block_size
        lengths = torch.tensor([len(sequence.token_ids) for sequence in sequences])
        ends = lengths.cumsum(0)
        positions = torch.arange(int(ends[-1])) - (ends - lengths).repeat_interleave(lengths)
        counts = (lengths + block_size - 1) // block_size
        first_blocks = counts.cumsum(0) - counts
        slots = first_blocks.repeat_interleave(lengths) * block_size + positions
        ids = [token for sequence in sequences for token in sequence.token_ids]

        def on_device(values: torch.Tensor) -> torch.Tensor:
            return values.to(device, torch.int32)

        return ForwardInputs(
            input_ids=on_device(torch.tensor(ids)),
            positions=on_device(positions),
            slots=on_device(slots),
            rows=on_device(torch.arange(len(sequences))),
            query_start=on_device(functional.pad(ends, (1, 0))),
            seq_lens=on_device(lengths),
            block_table=on_device(first_blocks[:, None] + torch.arange(int(counts.max()))),
            arrivals=torch.zeros(0, dtype=torch.int32, device=device),
            num_decodes=0,
            max_fresh_len=int(lengths.max()),
            max_continued_len=0,
        )


def _last_token(token_ids: Sequence[int], padding: int | None) -> int:
    """Index of the last token that isn't padding, as transformers' classifiers have it."""
    return max((index for index, token in enumerate(token_ids) if token != padding), default=0)
