"""A Hugging Face causal LM that computes packed steps: `PackedModel`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.distributed.mesh import ALONE, Group
from dodona.runners.interface import LayerKVSpec
from dodona.runners.third_party import first_line
from dodona.runners.v1.attention import PAGED_ATTENTION, ForwardState, forward_state
from dodona.runners.v1.context_parallel import SharedForwardState, share_of, whole_logits
from dodona.runners.v1.discovery import RECORDING_ATTENTION, AttentionCall, ForeignMask, recording
from dodona.runners.v1.dynamic_rope import rotary_lengths
from dodona.runners.v1.kv_cache import PagedKVCache
from dodona.runners.v1.lora import adapters_of_share
from dodona.runners.v1.mixers import Mixer, has_mixers, install_mixers, step_states
from dodona.runners.v1.patterns import AttentionPattern
from dodona.runners.v1.positions import first_position
from dodona.runners.v1.state_slots import StateSlots, StepStates
from dodona.runners.v1.step_layout import StepLayout

PLAIN_ATTENTION = "eager"
"""transformers' own attention, the reference of the paged one."""


class PackedModel:
    """A model and the attention calls that it makes, recorded by a forward pass over four tokens.

    Raises UnsupportedConfiguration where the model can't compute packed rows: it takes no `position_ids`,
    makes no call through transformers' attention interface, or uses an unknown mask.
    """

    packs_rows = True

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        compiled: bool = False,
        context: Group = ALONE.context,
        grows_rope: bool = False,
    ) -> None:
        """context: the ranks that share the tokens of prompt chunks. grows_rope: whether the model's rotary
        embeddings follow the length of each token's row; see `dynamic_rope`."""
        self.model: Any = model
        self.grows_rope = grows_rope
        self._context = context
        self.device: torch.device = next(model.parameters()).device
        parameters = inspect.signature(model.forward).parameters
        stateful = has_mixers(self.text_config)
        self.takes_positions = "position_ids" in parameters
        if not self.takes_positions and not stateful:
            raise UnsupportedConfiguration.lacking(
                "v1",
                "architecture",
                why=f"{type(model).__name__}.forward takes no position_ids, so rows can't be packed",
            )
        self._first_position = first_position(model)
        self._takes_logits_to_keep = "logits_to_keep" in parameters
        self.calls: tuple[AttentionCall, ...] = self._record_calls(attention_free=stateful)
        set_attention(model, PLAIN_ATTENTION)
        self.mixers: tuple[Mixer, ...] = self._find_mixers() if stateful else ()
        self.layers: tuple[LayerKVSpec, ...] = tuple(call.spec for call in self.calls)
        names = {module: name for name, module in model.named_modules()}
        self.layer_names: tuple[str, ...] = tuple(names.get(call.module, "") for call in self.calls)
        self.kv_dtype: torch.dtype = self.calls[0].dtype if self.calls else next(model.parameters()).dtype
        self.patterns: tuple[AttentionPattern, ...] = tuple(call.pattern for call in self.calls)
        set_attention(model, PAGED_ATTENTION)
        self.is_compiled = compiled
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

    def make_cache(
        self, num_blocks: int, block_size: int, window_blocks: Sequence[tuple[Sequence[int], int]] = ()
    ) -> PagedKVCache:
        """A KV cache of this model's shapes on its device; see `PagedKVCache` for `window_blocks`."""
        return PagedKVCache(self.layers, num_blocks, block_size, self.kv_dtype, self.device, window_blocks)

    def position_ids(self, positions: torch.Tensor) -> torch.Tensor:
        """[1, T]: what the model is given for tokens at `positions` [T], counted from 0."""
        return (positions + self._first_position if self._first_position else positions)[None]

    @property
    def has_states(self) -> bool:
        """Whether the model keeps inner states of its rows in slots."""
        return bool(self.mixers)

    @property
    def shares_prefixes(self) -> bool:
        """Whether all that the model keeps of a prefix is in KV blocks, and depends on the prefix alone."""
        return not self.mixers and not self.grows_rope

    @property
    def state_bytes_per_row(self) -> int:
        """Bytes of one sequence's inner states; 0 where the model has none."""
        return sum(spec.num_bytes for mixer in self.mixers for spec in mixer.states)

    def make_state_slots(self, num_rows: int, *, num_drafts: int = 0) -> StateSlots:
        """Slots for the inner states of `num_rows` sequences, on the model's device; see `StateSlots`."""
        states = [mixer.states for mixer in self.mixers]
        return StateSlots(states, num_rows, self.device, num_drafts=num_drafts)

    def forward(
        self,
        token_ids: torch.Tensor,
        layout: StepLayout,
        cache: PagedKVCache,
        positions: torch.Tensor,
        states: StepStates | None = None,
        window_layouts: Mapping[int, StepLayout] = MappingProxyType({}),
    ) -> torch.Tensor:
        """Run the model on packed tokens; write their keys and values to the cache, and what they make of the
        rows' inner states to their slots.

        window_layouts: by attention call, the layout over its window blocks, where it has some.

        token_ids: [T] int64. positions: [n] int64, packed indices. Returns logits [n, vocab] at `positions`.
        """
        if self._context.size == 1:
            state = ForwardState(layout, cache, self.patterns, window_layouts)
            with rotary_lengths(layout.token_lengths() if self.grows_rope else None):
                return self._compute(token_ids, layout.positions, state, positions, states)
        share = share_of(layout, positions, self._context)
        state = SharedForwardState(share, cache, self.patterns, self._context)
        token_ids = token_ids.index_select(0, share.tokens)
        with adapters_of_share(share.tokens, share.kept):
            logits = self._compute(token_ids, share.layout.positions, state, share.kept, states)
        return whole_logits(share, logits, len(positions), self._context)

    def _compute(
        self,
        token_ids: torch.Tensor,
        token_positions: torch.Tensor,
        state: ForwardState,
        kept: torch.Tensor,
        states: StepStates | None,
    ) -> torch.Tensor:
        arguments: dict[str, torch.Tensor] = {}
        if self.takes_positions:
            arguments["position_ids"] = self.position_ids(token_positions)
        if self._takes_logits_to_keep:
            arguments["logits_to_keep"] = kept
        with torch.inference_mode(), forward_state(state), step_states(states):
            output = self._forward(input_ids=token_ids[None], use_cache=False, **arguments)
        logits: torch.Tensor = output.logits[0]
        return logits if self._takes_logits_to_keep else logits.index_select(0, kept)

    @contextmanager
    def plain(self) -> Iterator[torch.nn.Module]:
        """The model with transformers' own attention, which the self-check compares with."""
        set_attention(self.model, PLAIN_ATTENTION)
        try:
            yield self.model
        finally:
            set_attention(self.model, PAGED_ATTENTION)

    def _find_mixers(self) -> tuple[Mixer, ...]:
        try:
            return install_mixers(self.model, self.text_config, self.device)
        except UnsupportedConfiguration:
            raise
        except Exception as error:
            raise UnsupportedConfiguration.lacking(
                "v1",
                "hybrid-mamba",
                why=f"{self.name} keeps inner states in its own way: {_what_failed(error)}",
            ) from error

    def _record_calls(self, *, attention_free: bool) -> tuple[AttentionCall, ...]:
        """attention_free: whether a model without attention calls is no error."""
        set_attention(self.model, RECORDING_ATTENTION)
        ids = torch.zeros(1, 4, dtype=torch.int64, device=self.device)
        tokens = torch.arange(4, device=self.device)
        arguments = {"position_ids": self.position_ids(tokens)} if self.takes_positions else {}
        if self._takes_logits_to_keep:  # as in a step: with a number, a model may compute fewer tokens
            arguments["logits_to_keep"] = tokens
        try:
            with torch.inference_mode(), recording(self.device) as calls:
                self.model(input_ids=ids, use_cache=False, **arguments)
        except UnsupportedConfiguration:
            raise
        except Exception as error:
            raise UnsupportedConfiguration.lacking(
                "v1",
                "architecture",
                why=f"{self.name} does not take the masks and calls of packed rows: {_what_failed(error)}",
            ) from error
        if not calls and not attention_free:
            raise UnsupportedConfiguration.lacking(
                "v1", "attention", why=f"{self.name} makes no call through transformers' attention interface"
            )
        if calls and not self.takes_positions:
            raise UnsupportedConfiguration.lacking(
                "v1",
                "architecture",
                why=f"{self.name}.forward takes no position_ids, so rows can't be packed",
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
    line = first_line(error)
    if AttentionPattern.__name__ in line or ForeignMask.__name__ in line:
        return "its own code computes with attention masks"
    if "_SpyingCache" in line:
        return "it takes no cache but its own"
    return line
