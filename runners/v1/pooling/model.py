"""`TransformersPoolingModel`: a transformers model that computes whole sequences, without a cache."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from dodona.runners.lora.adapter import Adapter
from dodona.runners.pooling.sequence import TokenSequence
from dodona.runners.v1.lora import LoRALayers
from dodona.runners.v1.mixers import cache_argument

AUTO_CLASSES = {
    "embed": "AutoModel",
    "classify": "AutoModelForSequenceClassification",
    "token_classify": "AutoModelForTokenClassification",
}
"""Pooling task → transformers' automatic class."""

MOST_PADDING = 0.25
"""Largest share of a batch's longest sequence by which another one may be shorter."""

MOST_TOKENS = {"cuda": 16384, "cpu": 2048}
"""Most tokens of a batch, padding included, by device; a longer sequence is computed alone."""


class TransformersPoolingModel:
    """A module, and how it computes several sequences at once.

    pads: whether sequences of different lengths go into one batch, the shorter ones padded at their end and
    masked, which transformers' models take. Else each is computed alone.
    lora: the module's room for adapters.
    """

    def __init__(self, module: torch.nn.Module, *, pads: bool, lora: LoRALayers | None = None) -> None:
        self.module: Any = module
        self.pads = pads
        self.lora = lora
        self.device: torch.device = next(module.parameters()).device
        parameters = inspect.signature(module.forward).parameters
        self._takes = frozenset(parameters)
        config: Any = self.module.config
        padding = getattr(config.get_text_config(), "pad_token_id", None)
        self._pad_token_id: int | None = padding
        # A classifier of a causal model finds the last token by it.
        self._padding = padding if isinstance(padding, int) and 0 <= padding < self.vocab_size else 0

    @property
    def name(self) -> str:
        """Name of the model's class."""
        return type(self.module).__name__

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        found: torch.dtype = next(p.dtype for p in self.module.parameters() if p.is_floating_point())
        return found

    @property
    def vocab_size(self) -> int:
        """Rows of the input embedding: input ids are below this."""
        return int(self.module.get_input_embeddings().weight.shape[0])

    @property
    def takes_padding(self) -> bool:
        """Whether the module can be told which tokens are padding."""
        return "attention_mask" in self._takes

    def forward(
        self, sequences: Sequence[TokenSequence], adapters: Sequence[Adapter | None] | None = None
    ) -> list[torch.Tensor]:
        """The module's output of each sequence: the last hidden states [tokens, size], the logits [classes]
        of a classifier of sequences, or those of one of tokens [tokens, classes].

        adapters: of each sequence; None: of none. There are at most `max_loras` different ones.
        """
        each = [None] * len(sequences) if adapters is None else adapters
        found: list[torch.Tensor | None] = [None] * len(sequences)
        lengths = [len(sequence.token_ids) for sequence in sequences]
        for members in batches(lengths, MOST_TOKENS[self.device.type] if self.pads else 0):
            outputs = self.compute([sequences[i] for i in members], [each[i] for i in members])
            for index, output in zip(members, outputs, strict=True):
                found[index] = output
        return [output for output in found if output is not None]

    def has_content(self, token_ids: Sequence[int]) -> bool:
        """Whether some token isn't padding to a classifier that looks for the last one."""
        return self._pad_token_id is None or any(token_id != self._pad_token_id for token_id in token_ids)

    def compute(
        self,
        sequences: Sequence[TokenSequence],
        adapters: Sequence[Adapter | None] | None = None,
        *,
        cache: Any = None,
    ) -> list[torch.Tensor]:
        """The same by one pass over all sequences, padded to the longest.

        cache: transformers' cache with the keys and values of the tokens before a single sequence, which
        takes in those of the sequence.
        """
        lengths = [len(sequence.token_ids) for sequence in sequences]
        longest = max(lengths)
        ids = [[*s.token_ids, *[self._padding] * (longest - len(s.token_ids))] for s in sequences]
        given: dict[str, Any] = {"input_ids": torch.tensor(ids, device=self.device)}
        if self.takes_padding and cache is None:
            mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
            given["attention_mask"] = mask.to(self.device, torch.int64)
        if "token_type_ids" in self._takes and any(s.token_type_ids is not None for s in sequences):
            types = [[*(s.token_type_ids or ()), *[0] * longest][:longest] for s in sequences]
            given["token_type_ids"] = torch.tensor(types, device=self.device)
        if "use_cache" in self._takes:
            given["use_cache"] = cache is not None
        if cache is not None:
            given[cache_argument(self.module.forward)] = cache
        with torch.inference_mode(), self._with(adapters, len(sequences), longest):
            output = self.module(**given)
        result: torch.Tensor = output.logits if "logits" in output else output.last_hidden_state
        if result.ndim == 2:
            return list(result)
        return [row[:length] for row, length in zip(result, lengths, strict=True)]

    def _with(
        self, adapters: Sequence[Adapter | None] | None, rows: int, longest: int
    ) -> AbstractContextManager[None]:
        """Inside, a pass over rows of `longest` tokens with padding has these adapters."""
        if self.lora is None or adapters is None:
            return nullcontext()
        firsts = torch.arange(rows, device=self.device) * longest
        return self.lora.step(adapters, [longest] * rows, firsts)


def batches(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Indices of sequences that are computed together: of similar lengths, the longest first.

    A batch has at most `most_tokens` tokens with its padding, or one sequence.
    """
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        batch = found[-1] if found else []
        longest = lengths[batch[0]] if batch else 0
        fits = (len(batch) + 1) * longest <= most_tokens
        if batch and fits and lengths[index] >= (1 - MOST_PADDING) * longest:
            batch.append(index)
        else:
            found.append([index])
    return found
