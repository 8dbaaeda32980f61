"""A long prompt of a pooling decoder, computed in chunks over several steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.lora.adapter import Adapter
from dodona.runners.pooling.sequence import TokenSequence
from dodona.runners.quantization.replacement import unrounded_inputs
from dodona.runners.third_party import first_line
from dodona.runners.v1.pooling.model import TransformersPoolingModel
from dodona.runners.v1.self_check import tolerance_of

_CHECKED_TOKENS = 23
_CHECKED_CHUNK = 9


class ChunkedPrompt:
    """A prompt of which some tokens are computed: transformers' cache of its keys and values, and the
    outputs of its tokens."""

    def __init__(self, model: TransformersPoolingModel) -> None:
        from transformers import DynamicCache

        self._model = model
        self._cache = DynamicCache(config=model.module.config)
        self._of_tokens: list[torch.Tensor] = []
        self._of_sequence: torch.Tensor | None = None

    def add(self, chunk: TokenSequence, adapter: Adapter | None = None) -> None:
        """Compute the next tokens."""
        output = self._model.compute([chunk], [adapter], cache=self._cache)[0]
        if output.ndim == 2:
            self._of_tokens.append(output)
        # A classifier takes the last token that isn't padding; a chunk of padding alone has none.
        elif self._of_sequence is None or self._model.has_content(chunk.token_ids):
            self._of_sequence = output

    @property
    def output(self) -> torch.Tensor:
        """What `TransformersPoolingModel.forward` gives of the whole prompt, once all tokens are computed."""
        return torch.cat(self._of_tokens) if self._of_sequence is None else self._of_sequence


def check_chunks(model: TransformersPoolingModel, max_model_len: int) -> None:
    """Raise UnsupportedConfiguration where a prompt in chunks differs from the whole prompt."""
    with unrounded_inputs(model.module):
        _compare(model, min(_CHECKED_TOKENS, max_model_len))


def _compare(model: TransformersPoolingModel, longest: int) -> None:
    ids = [1 + 7 * i % max(1, model.vocab_size - 1) for i in range(longest)]
    whole = model.compute([TokenSequence(ids)])[0].float()
    try:
        found = in_chunks(model, ids, _CHECKED_CHUNK).float()
        difference = float((found - whole).square().mean().sqrt())
    except Exception as error:
        raise _refusal(model, f"it does not go on from a chunk: {first_line(error)}") from error
    spread = max(float(whole.std()), float(whole.square().mean().sqrt()), 1e-20)
    limit = tolerance_of(model.module, model.dtype)
    if not difference <= limit * spread:
        raise _refusal(model, f"in chunks it differs by {difference / spread:.2g} (limit {limit:g})")


def in_chunks(model: TransformersPoolingModel, token_ids: Sequence[int], size: int) -> torch.Tensor:
    """The model's output of a prompt that is computed `size` tokens at a time."""
    prompt = ChunkedPrompt(model)
    for start in range(0, len(token_ids), size):
        prompt.add(TokenSequence(token_ids[start : start + size]))
    return prompt.output


def _refusal(model: TransformersPoolingModel, what: str) -> UnsupportedConfiguration:
    why = f"self-check of {model.name} at load: {what}; raise max_num_batched_tokens to max_model_len"
    return UnsupportedConfiguration.lacking("v1", "pooling-whole-prompts", why=why)
