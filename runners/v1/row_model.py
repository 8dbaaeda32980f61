"""A Hugging Face causal LM that computes each request of a step by itself: `RowModel`.

It is for models whose attention or states can't be given packed rows. Every request has the cache that the
model itself makes (a `DynamicCache`, or states of its own), and the model is called once for each row of a
step.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal

import torch

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.interface import LayerKVSpec
from dodona.runners.kv_transfer.block_layout import LayerKV
from dodona.runners.third_party import first_line
from dodona.runners.v1.lora import adapters_of_row
from dodona.runners.v1.positions import first_position, takes_positions
from dodona.runners.v1.state_slots import StateSlots
from dodona.runners.v1.step_layout import StepLayout

_CACHE_NAMES = ("past_key_values", "cache_params", "cache", "state", "mems", "past_buckets_states")
"""Names under which models of transformers take a cache and hand it back."""

_MEASURED_LENGTHS = (4, 16, 144)
"""Lengths in tokens at which the bytes of a cache are counted: beyond usual windows of convolutions and
beyond the 128 tokens that some models compress to one."""


@dataclass(slots=True)
class RowState:
    """One request's cache under the name of the model's argument, and how many tokens are computed."""

    cache: dict[str, Any] = field(default_factory=dict)
    length: int = 0
    token_ids: list[torch.Tensor] = field(default_factory=list)
    """The tokens so far, where the model may have to compute them again."""


class RowCaches:
    """The caches of the requests by state row. A freed row keeps nothing."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._rows: dict[int, RowState] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def state(self, row: int, num_computed: int) -> RowState:
        """The row's state; an empty one where nothing is computed yet.

        Raises ValueError where the row holds another number of tokens.
        """
        if num_computed == 0:
            self._rows[row] = RowState()
        state = self._rows.get(row, RowState())
        if state.length != num_computed:
            raise ValueError(f"row {row} has {state.length} tokens in its cache, expected {num_computed}")
        return state

    def layers(self) -> list[LayerKV]:
        """Nothing: the rows' caches are not paged."""
        return []

    def free_rows(self, rows: Sequence[int]) -> None:
        """Release the caches of these rows, where they have one."""
        for row in rows:
            self._rows.pop(row, None)


@dataclass(frozen=True, slots=True)
class RowBytes:
    """An upper bound of a cache's size: `fixed` bytes, and `per_token` for each token."""

    fixed: int
    per_token: int


Continuation = Literal["chunks", "tokens", "none"]
"""What may follow a cache: a chunk of several tokens, one token at a time, or nothing. Where nothing may,
each step computes the row's whole sequence again, without a cache."""


class RowModel:
    """A model, the name of its cache and the bytes that a request's cache takes.

    continuation: see `Continuation`. recompute_beyond: the number of tokens beyond which rotary frequencies
    are others, so that a row which grows beyond it is computed again from its first token; None where nothing
    changes.

    Raises UnsupportedConfiguration where the model does not compute a prompt with a cache (with "none": at
    all).
    """

    packs_rows = False
    has_states = False
    shares_prefixes = False

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        max_model_len: int,
        continuation: Continuation = "chunks",
        recompute_beyond: int | None = None,
    ) -> None:
        self.model: Any = model
        self.device: torch.device = next(model.parameters()).device
        self.kv_dtype: torch.dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        self.continuation = continuation
        self._recompute_beyond = 0 if continuation == "none" else recompute_beyond
        self._takes_positions = takes_positions(model)
        self._first_position = first_position(model)
        self._takes_logits_to_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._cache_names = _accepted_caches(model)
        row_bytes = self._measure([n for n in _MEASURED_LENGTHS if n <= max_model_len] or [1])
        elements = -(-row_bytes.per_token // self.kv_dtype.itemsize)
        self.layers = (LayerKVSpec(1, elements, 0),) if elements else ()
        """What a token adds to a request's cache, as one layer; none where it adds nothing."""
        self.layer_names = ("",) * len(self.layers)
        self.state_bytes_per_row = row_bytes.fixed
        """Bytes that a request's cache has whatever its length."""

    @property
    def name(self) -> str:
        """Name of the model's class."""
        return type(self.model).__name__

    @property
    def vocab_size(self) -> int:
        """Rows of the input embedding: input ids are below this."""
        return int(self.model.get_input_embeddings().num_embeddings)

    def make_cache(
        self, num_blocks: int, block_size: int, window_blocks: Sequence[tuple[Sequence[int], int]] = ()
    ) -> RowCaches:
        """No rows yet. The blocks only count tokens: each row's cache grows by itself.

        window_blocks: empty, since no layer has window blocks.
        """
        return RowCaches(num_blocks, block_size)

    def make_state_slots(self, num_rows: int, *, num_drafts: int = 0) -> StateSlots:
        """None: inner states are in the rows' caches."""
        return StateSlots((), num_rows, self.device)

    def forward(
        self,
        token_ids: torch.Tensor,
        layout: StepLayout,
        cache: RowCaches,
        positions: torch.Tensor,
        states: None = None,
        window_layouts: Mapping[int, StepLayout] = MappingProxyType({}),
    ) -> torch.Tensor:
        """Run the model once for each row, on its tokens among `token_ids`, and keep the rows' caches.

        token_ids: [T] int64. positions: [n] int64, ascending packed indices. Returns logits [n, vocab] there.
        """
        wanted = positions.cpu().numpy()
        logits: list[torch.Tensor] = []
        spans = zip(layout.rows, layout.starts, layout.num_tokens, layout.num_computed, strict=True)
        with torch.inference_mode():
            for row, start, count, computed in spans:
                here = wanted[(wanted >= start) & (wanted < start + count)] - start
                state = cache.state(row, int(computed))
                with adapters_of_row(int(start)):
                    logits.append(self._advance(state, token_ids[start : start + count], here.tolist()))
        return torch.cat([part for part in logits if len(part)])

    @contextmanager
    def plain(self) -> Iterator[torch.nn.Module]:
        """The model itself, which the self-check compares with."""
        yield self.model

    def _advance(self, state: RowState, ids: torch.Tensor, wanted: Sequence[int]) -> torch.Tensor:
        """Logits [n, vocab] of the row's next tokens `ids`, after those with an index in `wanted`."""
        limit, count = self._recompute_beyond, len(ids)
        if limit is not None:
            state.token_ids.append(ids)
        if self.continuation == "none":
            state.length += count
            if not wanted:
                return ids[:0]
            whole = torch.cat(state.token_ids)
            given = {"input_ids": whole[None], "use_cache": False}
            return self._logits(given, [len(whole) - count + i for i in wanted])[0]
        if limit is not None and state.length <= limit < state.length + count:
            state.cache, state.length = {}, 0
            whole = torch.cat(state.token_ids)
            return self._call(state, whole, [len(whole) - count + i for i in wanted])
        if state.length == 0 or self.continuation == "chunks":
            return self._call(state, ids, wanted)
        parts = [self._call(state, one, [0] * (i in wanted)) for i, one in enumerate(torch.split(ids, 1))]
        return torch.cat(parts)

    def _call(self, state: RowState, ids: torch.Tensor, wanted: Sequence[int]) -> torch.Tensor:
        """Logits of one forward pass over `ids` after the state, which is then that after them."""
        given: dict[str, Any] = {"input_ids": ids[None], "use_cache": True, **state.cache}
        if self._takes_positions:
            first = self._first_position + state.length
            given["position_ids"] = torch.arange(first, first + len(ids), device=self.device)[None]
        logits, output = self._logits(given, wanted)
        state.cache = self._cache_of(output)
        state.length += len(ids)
        return logits

    def _logits(self, given: dict[str, Any], wanted: Sequence[int]) -> tuple[torch.Tensor, Any]:
        """Logits [n, vocab] at the indices `wanted` of the tokens given, and the model's output."""
        indices = torch.tensor(wanted, dtype=torch.int64, device=self.device)
        if not self._takes_logits_to_keep:
            output = self.model(**given)
            return output.logits[0][indices], output
        # The head must be given a position even where no logits are wanted.
        output = self.model(**given, logits_to_keep=indices if wanted else 1)
        return output.logits[0][: len(wanted)], output

    def _cache_of(self, output: Any) -> dict[str, Any]:
        for name in self._cache_names:
            found = getattr(output, name, None)
            if found is not None:
                return {name: found}
        raise UnsupportedConfiguration.lacking(
            "v1", "architecture", why=f"{self.name} hands back no cache that its next call could go on from"
        )

    def _measure(self, lengths: Sequence[int]) -> RowBytes:
        """Count a cache's bytes at these lengths, and bound them by a line."""
        sizes: dict[int, int] = {}
        try:
            with torch.inference_mode():
                for length in lengths:
                    state = RowState()
                    self._advance(state, torch.zeros(length, dtype=torch.int64, device=self.device), [0])
                    sizes[length] = cache_bytes(state.cache)
        except UnsupportedConfiguration:
            raise
        except Exception as error:
            what = "a prompt" if self.continuation == "none" else "a prompt with a cache"
            why = f"{self.name} does not compute {what}: {first_line(error)}"
            raise UnsupportedConfiguration.lacking("v1", "architecture", why=why) from error
        return bound(sizes)


def _accepted_caches(model: torch.nn.Module) -> tuple[str, ...]:
    parameters = inspect.signature(model.forward).parameters
    return tuple(name for name in _CACHE_NAMES if name in parameters)


def bound(sizes: Mapping[int, int]) -> RowBytes:
    """The line that is nowhere below bytes by length. Its slope is the steepest between neighbours."""
    points = sorted(sizes.items())
    slopes = [-(-(b - a) // (n - m)) for (m, a), (n, b) in pairwise(points)]
    per_token = max(0, *slopes, *([0] if slopes else [-(-points[0][1] // points[0][0])]))
    return RowBytes(max(0, *(size - per_token * length for length, size in points)), per_token)


def cache_bytes(cache: Any) -> int:
    """Bytes of all tensors in an object's attributes, lists, tuples and dicts, each storage once."""
    seen: set[int] = set()
    storages: dict[int, int] = {}
    todo: list[Any] = [cache]
    while todo:
        item = todo.pop()
        if id(item) in seen or item is None or isinstance(item, (str, int, float, type, torch.nn.Module)):
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            storage = item.untyped_storage()
            storages[storage._cdata] = storage.nbytes()  # those of "meta" all have the address 0
        elif isinstance(item, Mapping):
            todo.extend(item.values())
        elif isinstance(item, (list, tuple, set)):
            todo.extend(item)
        else:
            todo.extend(vars(item).values() if hasattr(item, "__dict__") else ())
    return sum(storages.values())
