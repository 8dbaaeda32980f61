"""Torch without the values of weights: inside `on_meta`, code that loads a model runs as it is, and its
weights and activations have shapes and types only. They take no memory, and nothing reads or computes them.

They are tensors of torch's device "meta". Small tensors of integers (token ids, positions, tables) keep their
values, whatever device the code puts them on: code looks into these to find its way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_any, tree_map_only

META: Final = torch.device("meta")
_HOST: Final = torch.device("cpu")

MOST_KEPT: Final = 1 << 20
"""Elements of the largest tensor that keeps its values; of a file's tensors, bytes."""

MOST_CALLS: Final = 50_000
"""Of torch's functions. 100 layers of Llama take 17,000, 60 of DeepSeek V3 21,000; 50,000 take 11 to 23 s
of one slow core."""

_MAKERS = frozenset(
    {
        torch.empty, torch.zeros, torch.ones, torch.full, torch.arange, torch.linspace, torch.eye, torch.rand,
        torch.randn, torch.randint, torch.randperm, torch.tensor, torch.empty_strided, torch.scalar_tensor,
    }
)  # fmt: skip
_GROUPED_PRODUCTS = ("grouped_mm", "_grouped_mm")
_OF_META = re.compile(r"(\b|_)meta(\b|_)", re.IGNORECASE)
"""What torch calls the device in its errors; others may speak of metadata."""


class NeedsValues(BaseException):
    """What runs inside `on_meta` asks for the value of a weight or an activation.

    No Exception: code that names what a model's code raises must not take this for one of its errors.
    """


class TooManyCalls(BaseException):
    """What runs inside `on_meta` calls torch more often than `MOST_CALLS`."""


@contextmanager
def on_meta(*, asks_host: bool = False) -> Iterator[OnMeta]:
    """Inside, no weight has values, whatever device it is put on. Of this thread only.

    asks_host: the system is asked for the memory of large new tensors, which is given back untouched; torch
    raises where it has none.

    Raises NeedsValues where a value is asked for, and TooManyCalls.
    """
    with OnMeta(asks_host) as mode:
        yield mode


class OnMeta(TorchFunctionMode):
    """What `on_meta` does to the calls of torch."""

    def __init__(self, asks_host: bool = False) -> None:
        super().__init__()
        self._calls = 0
        self._asks_host = asks_host
        self.has_guessed = False
        """Whether it was asked which elements of something without values are not zero, and said: none; or
        how large numbers without values are, and said: 0. Shapes of weights and caches don't depend on it;
        errors may come of it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._calls += 1
        if self._calls > MOST_CALLS:
            raise TooManyCalls
        given, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name == "nonzero" and args[0].is_meta:
            self.has_guessed = True
            return (
                _nowhere(args[0])
                if given.get("as_tuple")
                else torch.empty(0, args[0].ndim, dtype=torch.int64)
            )
        if func is torch.Tensor.tolist and _is_meta_number(args[0]):
            self.has_guessed = True
            return torch.zeros(args[0].shape, dtype=args[0].dtype).tolist()
        if name in ("__getitem__", "__setitem__") and tree_any(_is_meta_mask, args[1]):
            self.has_guessed = True
            args = (args[0], _without_masks(args[1]), *args[2:])
        if name == "split" and self.has_guessed and len(args) > 1:
            args = _filled_up(args, given.get("dim", 0))
        try:
            made = _call(func, args, given)
            if self._asks_host and func in _MAKERS and made.nbytes > MOST_KEPT:
                torch.empty(made.nbytes, dtype=torch.uint8)
            return made
        except (NotImplementedError, RuntimeError, TypeError) as error:
            if not _OF_META.search(str(error)):
                raise
            raise NeedsValues(str(error).partition("\n")[0]) from error


def _call(func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    if func in _MAKERS:
        return _make(func, args, given)
    if func is torch.asarray and isinstance(args[0], torch.UntypedStorage):
        # So safetensors makes a tensor of a file's bytes, of which torch would read the first ones.
        size = args[0].nbytes()
        if size > MOST_KEPT and given == {"dtype": torch.uint8}:
            return torch.empty(size, dtype=torch.uint8, device=META)
    if func in (torch.Tensor.cpu, torch.Tensor.cuda):
        func, args, given = torch.Tensor.to, (args[0], _HOST), {}
    if func is not torch.equal and tree_any(_is_without_values, (args, given)):
        args, given = tree_map_only(torch.Tensor, _without_values, (args, given))
    device = _device_beside(args)
    if given.get("device") is not None:
        given["device"] = device
    if func is torch.Tensor.to:
        args = (args[0], *(device if isinstance(arg, (str, torch.device)) else arg for arg in args[1:]))
    if getattr(func, "__name__", "") in _GROUPED_PRODUCTS:
        return _grouped_product(func, args, given)
    if func is torch.histc and not args[0].is_floating_point() and not args[0].is_meta:
        # A CPU counts floats only, of which code knows that runs on one.
        return func(args[0].float(), *args[1:], **given).to(args[0].dtype)
    return func(*args, **given)


def _make(func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    """A new tensor. One of numbers that is asked for on a device is a weight or an activation."""
    asked = given.pop("device", None) is not None
    given.pop("pin_memory", None)
    if given.get("generator") is not None or tree_any(_is_tensor, args):
        return func(*args, **given)
    planned = func(*args, **given, device=META)
    if planned.numel() > MOST_KEPT or (asked and planned.is_floating_point()):
        return planned
    return func(*args, **given, device=_HOST)


def _device_beside(args: tuple[Any, ...]) -> torch.device:
    """The device of what is made from these arguments, where one is asked for."""
    source = next((arg for arg in args if isinstance(arg, torch.Tensor)), None)
    return META if source is not None and (source.is_meta or source.is_floating_point()) else _HOST


def _grouped_product(func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    """The product on "meta", where torch has it of bfloat16 only."""
    halves = [a.bfloat16() if _is_tensor(a) and a.is_floating_point() else a for a in args]
    return func(*halves, **given).to(args[0].dtype)


def _nowhere(mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The positions at which a mask is not zero, if there are none."""
    return (torch.empty(0, dtype=torch.int64),) * mask.ndim


def _without_masks(index: Any) -> Any:
    parts = index if isinstance(index, tuple) else (index,)
    return tuple(p for part in parts for p in (_nowhere(part) if _is_meta_mask(part) else (part,)))


def _filled_up(args: tuple[Any, ...], dim: int) -> tuple[Any, ...]:
    """Arguments of `split` by which the last part gets what is missing: the sizes may be guesses."""
    tensor, sizes, *rest = args
    if isinstance(sizes, (list, tuple)) and sizes:
        missing = tensor.shape[rest[0] if rest else dim] - sum(sizes)
        sizes = [*sizes[:-1], sizes[-1] + max(0, missing)]
    return (tensor, sizes, *rest)


def _is_meta_number(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_meta and not value.is_floating_point()


def _is_meta_mask(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_meta and value.dtype is torch.bool


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _is_without_values(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and (value.is_meta or value.numel() > MOST_KEPT)


def _without_values(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_meta else tensor.to(META)
