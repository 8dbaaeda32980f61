"""A Hugging Face causal LM that computes packed steps: `PackedModel`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.interface import LayerKVSpec
from dodona.runners.v1.attention import PAGED_ATTENTION, ForwardState, forward_state
from dodona.runners.v1.discovery import RECORDING_ATTENTION, AttentionCall, ForeignMask, recording
from dodona.runners.v1.kv_cache import PagedKVCache
from dodona.runners.v1.patterns import AttentionPattern
from dodona.runners.v1.positions import first_position
from dodona.runners.v1.step_layout import StepLayout

PLAIN_ATTENTION = "eager"
"""transformers' own attention, the reference of the paged one."""


class PackedModel:
    """A model and the attention calls that it makes, recorded by a forward pass over four tokens.

    Raises UnsupportedConfiguration where the model can't compute packed rows: it takes no `position_ids`,
    makes no call through transformers' attention interface, or uses an unknown mask.
    """

    shares_prefixes = True
    state_bytes = 0

    def __init__(self, model: torch.nn.Module, *, compiled: bool = False) -> None:
        self.model: Any = model
        self.device: torch.device = next(model.parameters()).device
        parameters = inspect.signature(model.forward).parameters
        if "position_ids" not in parameters:
            raise UnsupportedConfiguration.lacking(
                "v1",
                "architecture",
                why=f"{type(model).__name__}.forward takes no position_ids, so rows can't be packed",
            )
        self._first_position = first_position(model)
        self._takes_logits_to_keep = "logits_to_keep" in parameters
        self.calls: tuple[AttentionCall, ...] = self._record_calls()
        self.layers: tuple[LayerKVSpec, ...] = tuple(call.spec for call in self.calls)
        self.kv_dtype: torch.dtype = self.calls[0].dtype
        self._patterns = tuple(call.pattern for call in self.calls)
        set_attention(model, PAGED_ATTENTION)
        self._forward: Any = torch.compile(model, dynamic=True) if compiled else model

    @property
    def name(self) -> str:
        """Name of the model's class."""
        return type(self.model).__name__

    @property
    def text_config(self) -> Any:
        """transformers' configuration of the language model."""
        config: Any = self.model.config
        return config.get_text_config(decoder=True)

    @property
    def vocab_size(self) -> int:
        """Rows of the input embedding: input ids are below this."""
        return int(self.model.get_input_embeddings().num_embeddings)

    def make_cache(self, num_blocks: int, block_size: int) -> PagedKVCache:
        """A KV cache of this model's shapes on its device."""
        return PagedKVCache(self.layers, num_blocks, block_size, self.kv_dtype, self.device)

    def forward(
        self, token_ids: torch.Tensor, layout: StepLayout, cache: PagedKVCache, positions: torch.Tensor
    ) -> torch.Tensor:
        """Run the model on packed tokens and write their keys and values to the cache.

        token_ids: [T] int64. positions: [n] int64, packed indices. Returns logits [n, vocab] at `positions`.
        """
        keep = {"logits_to_keep": positions} if self._takes_logits_to_keep else {}
        with torch.inference_mode(), forward_state(ForwardState(layout, cache, self._patterns)):
            position_ids = layout.positions + self._first_position if self._first_position else layout.positions
            output = self._forward(
                input_ids=token_ids[None], position_ids=position_ids[None], use_cache=False, **keep
            )
        logits: torch.Tensor = output.logits[0]
        return logits if keep else logits.index_select(0, positions)

    @contextmanager
    def plain(self) -> Iterator[torch.nn.Module]:
        """The model with transformers' own attention, which the self-check compares with."""
        set_attention(self.model, PLAIN_ATTENTION)
        try:
            yield self.model
        finally:
            set_attention(self.model, PAGED_ATTENTION)

    def _record_calls(self) -> tuple[AttentionCall, ...]:
        set_attention(self.model, RECORDING_ATTENTION)
        ids = torch.zeros(1, 4, dtype=torch.int64, device=self.device)
        positions = torch.arange(4, device=self.device)[None] + self._first_position
        try:
            with torch.inference_mode(), recording(self.device) as calls:
                self.model(input_ids=ids, position_ids=positions, use_cache=False)
        except UnsupportedConfiguration:
            raise
        except Exception as error:
            raise UnsupportedConfiguration.lacking(
                "v1",
                "architecture",
                why=f"{self.name} does not take the masks and calls of packed rows: {_what_failed(error)}",
            ) from error
        if not calls:
            raise UnsupportedConfiguration.lacking(
                "v1", "attention", why=f"{self.name} makes no call through transformers' attention interface"
            )
        return tuple(calls)


def set_attention(model: torch.nn.Module, implementation: str) -> None:
    """Set the attention implementation of all modules of a model, by its name in transformers' registry."""
    # Parts of a model may have configurations of their own.
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    for config in configs.values():
        if hasattr(config, "_attn_implementation"):
            config._attn_implementation = implementation


def _what_failed(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    line = text[0] if text else ""
    if AttentionPattern.__name__ in line or ForeignMask.__name__ in line:
        return "its own code computes with attention masks"
    return f"{type(error).__name__}: {line}".rstrip(": ")
