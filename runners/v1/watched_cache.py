"""A transformers cache that notes uses other than storing attention's keys and values."""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache

_PLAIN_USES = frozenset(
    {
        "update",
        "get_mask_sizes",
        "get_query_offset",
        "get_max_cache_shape",
        "is_compileable",
        "is_dummy",
        "is_initialized",
        "is_linear",
        "is_sliding",
        "max_batch_size",
        "max_cache_len",
    }
)
"""What transformers itself does to store keys and values and to make masks."""


class WatchedCache(DynamicCache):
    """A DynamicCache that notes the uses which paged KV can't serve.

    Such uses are other states (convolutions, compressed keys, an indexer's keys), which often matter only
    beyond the length of the self-check, and layers that ask how many tokens are cached, instead of reading
    their position from `position_ids`.
    """

    def __init__(self, config: Any) -> None:
        self._watching = False
        self._updated = False
        self._unusual: set[str] = set()
        super().__init__(config=config)
        self._watching = True

    def begin_pass(self) -> None:
        """Call before each forward pass."""
        self._updated = False

    def __getattribute__(self, name: str) -> Any:
        own = object.__getattribute__
        if name.startswith("_") or name == "begin_pass" or not own(self, "_watching"):
            return own(self, name)
        # The cache's own methods and properties read its attributes too; those are not uses by the model.
        object.__setattr__(self, "_watching", False)
        try:
            value = own(self, name)
        finally:
            object.__setattr__(self, "_watching", True)
        if name == "update":
            object.__setattr__(self, "_updated", True)
        elif name == "get_seq_length":
            # Before the first layer it only serves to make masks and positions, and these are given.
            if own(self, "_updated"):
                own(self, "_unusual").add(name)
        elif name not in _PLAIN_USES:
            own(self, "_unusual").add(name)
        return _unwatched(self, value) if callable(value) else value


def unusual_uses(cache: WatchedCache) -> tuple[str, ...]:
    """Names of the cache's attributes that were used unusually, sorted."""
    return tuple(sorted(cache._unusual))


def _unwatched(cache: WatchedCache, method: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        object.__setattr__(cache, "_watching", False)
        try:
            return method(*args, **kwargs)
        finally:
            object.__setattr__(cache, "_watching", True)

    return call
