"""The methods of a runner that callers may call by name, and the call itself."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dodona.oracle.errors import did_you_mean
from dodona.runners.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class RpcMethod:
    """How the engine treats a call of a method."""

    changes_weights: bool = False
    """The call waits for running requests, those that come later wait for it, and cached prefixes are
    forgotten."""


RPC_METHODS: Mapping[str, RpcMethod] = {
    "get_kv_cache_spec": RpcMethod(),
    "update_config": RpcMethod(),
    "reload_weights": RpcMethod(changes_weights=True),
    "load_weights": RpcMethod(changes_weights=True),
    "apply_sparse_weight_patches": RpcMethod(changes_weights=True),
    "missing_weights": RpcMethod(),
    "sleep": RpcMethod(changes_weights=True),
    "wake_up": RpcMethod(),
}
"""All of them. Everything else of a runner is the engine's to call."""


def rpc_method(name: object) -> RpcMethod:
    """The entry of a method. Raises InvalidRequestError for a name that is none of them."""
    if isinstance(name, str) and name in RPC_METHODS:
        return RPC_METHODS[name]
    hint = did_you_mean(name, RPC_METHODS) if isinstance(name, str) else ""
    raise InvalidRequestError(
        f"collective_rpc: {name!r:.80} can't be called by name; "
        + (f"{hint} " if hint else "")
        + f"callable: {', '.join(RPC_METHODS)}"
    )


def check_arguments(method: str, args: object, kwargs: object) -> None:
    """Raise InvalidRequestError unless these are the arguments of a call: a list or tuple, and a mapping or
    None."""
    if not isinstance(args, (list, tuple)):
        raise InvalidRequestError(f"collective_rpc: {method}: args must be a list, got {args!r:.80}")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise InvalidRequestError(f"collective_rpc: {method}: kwargs must be a mapping, got {kwargs!r:.80}")


def call_worker(
    worker: Any,
    method: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    *,
    rank: int,
    num_workers: int,
) -> Any:
    """Call one of `RPC_METHODS` on the worker of this rank.

    Raises InvalidRequestError for other names, and for arguments that don't fit the method's parameters;
    what the method raises gets a note of the rank.
    """
    rpc_method(method)
    function = getattr(worker, method)
    try:
        bound = inspect.signature(function).bind(*args, **(kwargs or {}))
    except TypeError as error:
        raise InvalidRequestError(f"collective_rpc: {method}: {error}") from None
    try:
        return function(*bound.args, **bound.kwargs)
    except Exception as error:
        error.add_note(f"{method} in worker {rank} of {num_workers}")
        raise
