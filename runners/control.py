"""What callers do to a running engine beside requests: its configuration, its weights, its sleep."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dodona.oracle.errors import ConfigError, UnsupportedConfiguration
from dodona.runners.engine.engine import Engine
from dodona.runners.engine.replicas import Replicas
from dodona.runners.engine.scheduler import Scheduler
from dodona.runners.errors import EngineAsleepError, InvalidRequestError
from dodona.runners.interface import SLEEP_TAGS, Runner
from dodona.runners.rpc import check_arguments, rpc_method
from dodona.runners.weights.source import weights_directory

if TYPE_CHECKING:
    import torch

    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.runners.current_config import CurrentConfig


class EngineControl:
    """Calls of the runner's public methods, between two steps. Thread-safe.

    A call that changes weights waits until the requests submitted before are finished, so that each has one
    version of the weights; those submitted after wait for it, and use no cached prefix of the old weights.
    """

    def __init__(self, engine: Engine | Replicas, current_config: CurrentConfig) -> None:
        self._engine = engine
        self._current_config = current_config
        self._lock = threading.Lock()
        """Held by one call that puts to sleep or wakes up; guards the two below."""
        self._asleep: frozenset[str] = frozenset()
        self._weights_lost = False
        """Whether the weights were dropped and have not all been loaded again."""

    @property
    def config(self) -> EngineConfig:
        """The configuration, with all updates so far."""
        return self._current_config.value

    @property
    def is_sleeping(self) -> bool:
        """Whether requests are refused because memory was given back."""
        return bool(self._asleep) or self._weights_lost

    def collective_rpc(
        self, method: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """Call one of `rpc.RPC_METHODS` on every worker; see `Runner.collective_rpc`."""
        rpc_method(method)
        check_arguments(method, args, kwargs)
        self._engine.check_callable()  # before the lock, which a forked child may find held
        if method == "sleep":
            return self._sleep(args, kwargs)
        if method == "wake_up":
            return self._wake_up(args, kwargs)
        results = self._call(method, args, kwargs)
        if method in ("reload_weights", "load_weights"):
            self._weights_are_back()
        return results

    def update_config(self, overrides: Mapping[str, Mapping[str, Any]]) -> None:
        """Change fields of the configuration; see `CurrentConfig.update`."""
        self.collective_rpc("update_config", (overrides,))

    def reload_weights(self, path: str | os.PathLike[str] | None = None) -> None:
        """Read all weights again; see `Runner.reload_weights`."""
        self.collective_rpc("reload_weights", (path,))

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Overwrite the given tensors; see `Runner.load_weights`. Iterates in the caller's thread."""
        if not isinstance(weights, Iterable):
            raise InvalidRequestError(
                f"load_weights: expected pairs of a tensor's name and its values, got {weights!r:.80}"
            )
        self.collective_rpc("load_weights", (list(weights),))

    def apply_sparse_weight_patches(self, patches: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Overwrite single elements; see `Runner.apply_sparse_weight_patches`."""
        self.collective_rpc("apply_sparse_weight_patches", (patches,))

    def sleep(self, level: int = 1) -> None:
        """Wait for the requests submitted before, then give back memory; see `Runner.sleep`.

        From the call on until `wake_up`, new requests are refused with EngineAsleepError.
        """
        self.collective_rpc("sleep", (level,))

    def wake_up(self, tags: Collection[str] | None = None) -> None:
        """Take memory again; see `Runner.wake_up`. Once all is back, requests are taken."""
        self.collective_rpc("wake_up", (tags,))

    # --- Parts

    def _call(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> list[Any]:
        changes_weights = rpc_method(method).changes_weights

        def call(runner: Runner, scheduler: Scheduler) -> list[Any]:
            if changes_weights:
                return _change_weights(runner, scheduler, method, args, kwargs or {})
            return runner.collective_rpc(method, args, kwargs)

        of_engines: list[list[Any]] = self._engine.call_all(call, drain=changes_weights)
        return [result for results in of_engines for result in results]

    def _sleep(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> list[Any]:
        with self._lock:
            if self.is_sleeping:
                raise EngineAsleepError("sleep: asleep already; call wake_up first")
            # At once, not when the engine gets there: else requests would pile up behind a sleeping engine.
            self._engine.refuse_requests("the engine is asleep; call wake_up first")
            try:
                results = self._call("sleep", args, kwargs)
            except BaseException:
                self._engine.refuse_requests(None)
                raise
            self._asleep = frozenset(SLEEP_TAGS)
            self._weights_lost = _first(args, kwargs or {}, "level", 1) == 2
            return results

    def _wake_up(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> list[Any]:
        with self._lock:
            results = self._call("wake_up", args, kwargs)
            tags = _first(args, kwargs or {}, "tags")
            self._asleep = frozenset() if tags is None else self._asleep - frozenset(tags)
            self._take_requests_if_awake()
            return results

    def _weights_are_back(self) -> None:
        with self._lock:
            if not self._weights_lost:
                return
            missing = [name for names in self._call("missing_weights", (), None) for name in names]
            self._weights_lost = bool(missing)
            self._take_requests_if_awake(missing)

    def _take_requests_if_awake(self, missing: Sequence[str] = ()) -> None:
        if not self.is_sleeping:
            self._engine.refuse_requests(None)
        elif not self._asleep:
            # load_weights is refused where each worker holds a share of the tensors
            one = self.config.parallel_config.world_size == 1
            self._engine.refuse_requests(
                "the weights were dropped by sleep(level=2); call reload_weights"
                + (" or load_weights first" if one else " first")
                + (f": {len(missing)} tensors are missing, such as {missing[0]}" if missing else "")
            )


_REFUSALS = (InvalidRequestError, EngineAsleepError, UnsupportedConfiguration)
"""What a runner raises before it writes anything."""


def _change_weights(
    runner: Runner, scheduler: Scheduler, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[Any]:
    """Call a method that changes weights, or loses the KV cache; what is cached is then forgotten.

    A KV connector shares on with engines that have the same weights: after a sleep of level 1, and after a
    reload from files. It shares nothing where nobody else can have them, or the call failed.
    """
    keeps_weights = method == "wake_up" or (method == "sleep" and _first(args, kwargs, "level", 1) == 1)
    path = _first(args, kwargs, "path")
    before = _fingerprint(runner, scheduler, path) if method == "reload_weights" else None
    try:
        results = runner.collective_rpc(method, args, kwargs)
    except _REFUSALS:
        scheduler.reset_prefix_cache()
        raise
    except BaseException:
        scheduler.new_weights()
        raise
    if keeps_weights:
        scheduler.reset_prefix_cache()
    elif before is not None and before == _fingerprint(runner, scheduler, path):
        scheduler.new_weights(before)
    else:
        scheduler.new_weights()
    return results


def _fingerprint(runner: Runner, scheduler: Scheduler, path: Any) -> str | None:
    """What stands for the weights that `reload_weights(path)` reads, as their files are now; None: not known,
    or nobody asks."""
    try:
        directory = weights_directory(runner.config, runner.model_info, path)
        return scheduler.transfers.connector.fingerprint(directory)
    except (ConfigError, OSError):
        return None  # the reload says what is wrong


def _first(args: Sequence[Any], kwargs: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """A method's first argument, which has this name."""
    return args[0] if args else kwargs.get(name, default)
