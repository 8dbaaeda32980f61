"""LoRA adapters on a model's linear layers: rows of several adapters, and of none, in one packed pass.

Each layer that can have an adapter has room for `max_loras` of them, padded with zeros to `max_lora_rank`:
A [slots * rank, in] and B [out, slots * rank]. A forward pass adds B ((A x) where the token's slot is), so
that it takes two products whatever adapters a step has; on a GPU one kernel for few tokens. Punica (Chen et
al., 2023) names the task; gathering by token is not needed for the few adapters of one step.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from dodona.kernels.linear.adapters import FEW_TOKENS, add_adapters
from dodona.oracle.config.sections import LoRAConfig
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.lora.adapter import Adapter, LoRAWeights, SavedLinear
from dodona.runners.lora.target import LoRATarget, is_expert
from dodona.runners.quantization.replacement import is_transposed_linear
from dodona.runners.v1.tensor_parallel import LinearShare

NO_SLOT = -1

_PROBED_TOKENS = 5


class _Tokens(NamedTuple):
    """The slots of some tokens' adapters. One entry serves all tokens of a row that is computed by itself."""

    slots: torch.Tensor
    """[tokens] integers; `NO_SLOT` for none."""
    others: torch.Tensor
    """[tokens, slots * rank] bool: the columns of A x that are of other adapters."""

    def select(self, selection: torch.Tensor | slice) -> _Tokens:
        """These of the tokens, in this order."""
        return _Tokens(self.slots[selection], self.others[selection])


@dataclass(frozen=True, slots=True)
class _Pass:
    """Which adapters the tokens of a pass have."""

    tokens: _Tokens
    """For layers over all tokens of the pass."""
    kept: _Tokens
    """For layers over the tokens whose logits are wanted."""


_current: ContextVar[_Pass | None] = ContextVar("dodona_v1_lora", default=None)


@contextmanager
def adapters_of(selection: torch.Tensor | slice) -> Iterator[None]:
    """Inside, layers compute only these of the pass's tokens, in this order."""
    given = _current.get()
    if given is None:
        yield
        return
    token = _current.set(_Pass(given.tokens.select(selection), given.kept))
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def adapters_of_share(tokens: torch.Tensor, kept: torch.Tensor) -> Iterator[None]:
    """Inside, layers compute only these of the pass's tokens, and then those of them whose logits are wanted:
    kept counts in `tokens`."""
    given = _current.get()
    if given is None:
        yield
        return
    share = given.tokens.select(tokens)
    token = _current.set(_Pass(share, share.select(kept)))
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def adapters_of_row(start: int) -> Iterator[None]:
    """Inside, layers compute any tokens of one row, whose first token of the pass has this index."""
    given = _current.get()
    if given is None:
        yield
        return
    row = given.tokens.select(slice(start, start + 1))
    token = _current.set(_Pass(row, row))
    try:
        yield
    finally:
        _current.reset(token)


class FoundLayer(NamedTuple):
    """A linear layer that can have adapters."""

    name: str
    is_kept: bool
    """It sees one token of each row, or those alone whose logits are wanted; else all tokens of the pass."""
    is_head: bool = False
    """An adapter may bring another layer in its place."""


class _Layer:
    """One linear layer's room for adapters. Once made, the layer adds them."""

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        share: LinearShare | None,
        found: FoundLayer,
        rank: int,
        num_slots: int,
        like: torch.Tensor,
    ) -> None:
        """share: the part of the layer that `module` is; None: all of it."""
        self._found = found
        self._share = share
        self._rank = rank
        self._has_bias = getattr(module, "bias", None) is not None
        here = features(module)
        self.a = like.new_zeros(num_slots * rank, here.in_features)
        self.b = like.new_zeros(here.out_features, num_slots * rank)
        self._saved: list[SavedLinear | None] = [None] * (num_slots if found.is_head else 0)
        """By slot, what the adapter has in place of the layer."""
        # Before ranks add up their parts of the result.
        module.register_forward_hook(self._add, prepend=True)

    @property
    def target(self) -> LoRATarget:
        """The sizes of the whole layer."""
        inputs, outputs = self.a.shape[1], len(self.b)
        if self._share is None:
            return LoRATarget(inputs, outputs, self._found.is_head, self._has_bias, dtype=self.a.dtype)
        if self._share.of_inputs:
            return LoRATarget(inputs * self._share.parts, outputs, dtype=self.a.dtype)
        return LoRATarget(inputs, outputs * self._share.parts, dtype=self.a.dtype)

    def write(self, slot: int, adapter: Adapter) -> None:
        """Put what an adapter has for this layer into a slot."""
        name = self._found.name
        if self._saved:
            saved = adapter.saved.get(name)
            self._saved[slot] = None if saved is None else self._here(saved)
        self._write(slot * self._rank, (slot + 1) * self._rank, adapter.layers.get(name))

    def _here(self, saved: SavedLinear) -> SavedLinear:
        """The same in the model's type, on its device."""
        return SavedLinear(saved.weight.to(self.a), None if saved.bias is None else saved.bias.to(self.a))

    def _write(self, begin: int, end: int, weights: LoRAWeights | None) -> None:
        """Put an adapter of the whole layer into the columns [begin, end); None: nothing."""
        self.a[begin:end].zero_()
        self.b[:, begin:end].zero_()
        if weights is None:
            return
        a, b, share = weights.a, weights.scaled_b(), self._share
        if share is not None and share.of_inputs:
            a = a[:, share.index * self.a.shape[1] :][:, : self.a.shape[1]]
        elif share is not None:
            b = b[share.index * len(self.b) :][: len(self.b)]
        self.a[begin : begin + len(a)].copy_(a)
        self.b[:, begin : begin + len(a)].copy_(b)

    def _add(
        self, module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor
    ) -> torch.Tensor | None:
        given = _current.get()
        if given is None:
            return None
        x = args[0].to(self.a.dtype)
        tokens = given.kept if self._found.is_kept else given.tokens
        others = tokens.others
        rows = x.reshape(-1, x.shape[-1])
        result = output.contiguous()  # the layer's own, so it can be added to in place
        sums = result.view(len(rows), -1)
        if rows.is_cuda and len(rows) <= FEW_TOKENS and len(rows) == len(tokens.slots):
            add_adapters(
                out=sums, x=rows.contiguous(), a=self.a, b=self.b, slots=tokens.slots, rank=self._rank
            )
        else:
            inner = functional.linear(rows, self.a).masked_fill_(others, 0)
            if sums.dtype == inner.dtype:
                sums.addmm_(inner, self.b.t())
            else:
                sums += functional.linear(inner, self.b)
        for slot, saved in enumerate(self._saved):
            if saved is not None:
                other = functional.linear(rows, saved.weight, saved.bias).to(result.dtype)
                keep = others[:, slot * self._rank, None]
                result = torch.where(keep, result.reshape(-1, result.shape[-1]), other).view(result.shape)
        return result


class LoRALayers:
    """The linear layers of a model with room for `max_loras` adapters, and which adapter has which slot.

    model: as transformers runs it, with its own attention. Only layers that see each token of a pass once, in
    order, can have adapters: experts do not. shares: of the layers that are split among ranks. layers: those
    that can have adapters; None: `layers_by_token`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        config: LoRAConfig,
        shares: Mapping[str, LinearShare] = MappingProxyType({}),
        *,
        layers: Sequence[FoundLayer] | None = None,
    ) -> None:
        self._rank = config.max_lora_rank
        self._num_slots = config.max_loras
        like = next(p for p in model.parameters() if p.is_floating_point())
        modules = dict(model.named_modules())
        self._layers = {
            found.name: _Layer(
                modules[found.name],
                share=shares.get(found.name),
                found=found,
                rank=self._rank,
                num_slots=self._num_slots,
                like=like.data,
            )
            for found in (layers_by_token(model) if layers is None else layers)
        }
        self.targets: Mapping[str, LoRATarget] = {name: layer.target for name, layer in self._layers.items()}
        self._slots: OrderedDict[bytes, int] = OrderedDict()
        """Slots by the adapter's key, the one used last at the end."""
        self._slot_of_column = torch.arange(self._num_slots, device=like.device).repeat_interleave(self._rank)

    @contextmanager
    def step(
        self, adapters: Sequence[Adapter | None], num_tokens: Sequence[int], kept: torch.Tensor
    ) -> Iterator[None]:
        """Inside, the model computes a packed pass over rows with these adapters.

        num_tokens: of each row. kept: [n], packed indices of the tokens whose logits are wanted. There are at
        most `max_loras` different adapters.
        """
        if all(adapter is None for adapter in adapters):
            yield
            return
        self.place(adapter for adapter in adapters if adapter is not None)
        rows = torch.tensor([NO_SLOT if each is None else self.slot(each) for each in adapters])
        slots = rows.repeat_interleave(torch.tensor(num_tokens)).to(kept.device)
        with self.slots_of_pass(slots, slots[kept]):
            yield

    @contextmanager
    def slots_of_pass(self, tokens: torch.Tensor, kept: torch.Tensor) -> Iterator[None]:
        """Inside, the model computes tokens with the adapters in these slots, `NO_SLOT` for none: [tokens],
        and [n] for those whose logits are wanted."""
        everything, of_logits = (
            _Tokens(slots, slots[:, None] != self._slot_of_column) for slots in (tokens, kept)
        )
        token = _current.set(_Pass(everything, of_logits))
        try:
            yield
        finally:
            _current.reset(token)

    def slot(self, adapter: Adapter) -> int:
        """The slot that `place` gave an adapter. Raises KeyError where it has none."""
        return self._slots[adapter.key]

    def place(self, adapters: Iterable[Adapter]) -> None:
        """Give each of these adapters, of which at most `max_loras` differ, a slot in place of those unused
        for the longest."""
        wanted = {adapter.key: adapter for adapter in adapters}
        for key in wanted:
            if key in self._slots:
                self._slots.move_to_end(key)
        for key, adapter in wanted.items():
            if key not in self._slots:
                if len(self._slots) < self._num_slots:
                    slot = len(self._slots)
                else:
                    _, slot = self._slots.popitem(last=False)
                self._write(adapter, slot)
                self._slots[key] = slot

    def _write(self, adapter: Adapter, slot: int) -> None:
        with torch.inference_mode():
            for layer in self._layers.values():
                layer.write(slot, adapter)


def is_adapter_hook(hook: object) -> bool:
    """Whether a forward hook adds adapters, and changes nothing where there are none."""
    return isinstance(getattr(hook, "__self__", None), _Layer)


def layers_by_token(model: Any) -> list[FoundLayer]:
    """The linear layers of a causal language model that see each token of a pass once. Found by two passes
    with hooks."""
    seen: dict[str, list[int]] = {}
    hooks = [
        module.register_forward_hook(_count(name, seen))
        for name, module in model.named_modules()
        if is_linear(module) and not is_expert(name)
    ]
    device = next(model.parameters()).device
    vocabulary = int(model.get_input_embeddings().num_embeddings)
    ids = torch.arange(1, _PROBED_TOKENS + 1, device=device).remainder(vocabulary)[None]
    kept = torch.tensor([1, 3], device=device)
    found: list[FoundLayer] = []
    try:
        with torch.inference_mode():
            _probe(model, input_ids=ids)
            everything = {name: counts[:] for name, counts in seen.items()}
            seen.clear()
            if takes_logits_to_keep(model):
                _probe(model, input_ids=ids, logits_to_keep=kept)
            else:
                seen.update(everything)
    finally:
        for hook in hooks:
            hook.remove()
    for name, counts in everything.items():
        if set(counts) == {_PROBED_TOKENS}:
            again = set(seen.get(name, ()))
            if again == {_PROBED_TOKENS} or again == {len(kept)}:
                found.append(FoundLayer(name, again == {len(kept)}))
    return found


def _probe(model: Any, **arguments: torch.Tensor) -> None:
    try:
        model(**arguments, use_cache=False)
    except Exception as error:
        raise UnsupportedConfiguration.lacking(
            "v1", "lora", why=f"{type(model).__name__} can't be run to find its linear layers: {error}"
        ) from error


def takes_logits_to_keep(model: torch.nn.Module) -> bool:
    """Whether the model computes logits of given positions alone."""
    import inspect

    return "logits_to_keep" in inspect.signature(model.forward).parameters


def _count(name: str, seen: dict[str, list[int]]) -> Any:
    def hook(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        count = 0  # a router may be a linear layer that returns more than its product
        if args and isinstance(args[0], torch.Tensor) and isinstance(output, torch.Tensor):
            sizes = features(module)
            if (args[0].shape[-1], output.shape[-1]) == (sizes.in_features, sizes.out_features):
                count = args[0].numel() // sizes.in_features
        seen.setdefault(name, []).append(count)

    return hook


def is_linear(module: torch.nn.Module) -> bool:
    """Linear layers, quantized ones, and those with a transposed weight."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return True
    return is_transposed_linear(module)


def features(module: Any) -> LoRATarget:
    """The sizes of a linear layer."""
    if hasattr(module, "in_features"):
        return LoRATarget(int(module.in_features), int(module.out_features))
    return LoRATarget(int(module.weight.shape[0]), int(module.nf))
