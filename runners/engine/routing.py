"""Which replica takes a request: by what it has to do already, and by the prefixes that it knows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from dodona.runners.engine.kv_blocks import block_hash, root_hash


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes, and what it counts there until it is finished."""

    replica: int
    cost: int


class Router:
    """Sends each request to the replica that then has the fewest tokens to compute. Not thread-safe.

    A request counts with all tokens that it may have, less those whose KV the replica should have: the blocks
    of the prompts that were sent there last, as many as it holds. That is a guess, since nobody asks the
    replica what it still has; a wrong one costs time only.

    block_size: tokens of a KV block. num_blocks: per replica, the blocks that its prefix cache holds; 0 where
    prefixes are not shared.
    """

    def __init__(self, block_size: int, num_blocks: Sequence[int]) -> None:
        self._block_size = block_size
        self._num_blocks = tuple(num_blocks)
        self._known: list[OrderedDict[bytes, None]] = [OrderedDict() for _ in num_blocks]
        self._load = [0] * len(self._num_blocks)

    @property
    def load(self) -> Sequence[int]:
        """Tokens that the unfinished requests of each replica count."""
        return tuple(self._load)

    def choose(
        self, prompt_token_ids: Sequence[int], limits: Sequence[int], adapter_key: bytes = b""
    ) -> Route:
        """The route of a prompt.

        limits: for each of its sequences, the most tokens that it may have, prompt included.
        adapter_key: of the adapter that changes the model for it.
        """
        hashes = self._hashes(prompt_token_ids, adapter_key)
        costs = [sum(limits) - len(limits) * self._cached_tokens(known, hashes) for known in self._known]
        replica = min(
            range(len(costs)), key=lambda each: (self._load[each] + costs[each], len(self._known[each]))
        )
        self._load[replica] += costs[replica]
        self._remember(replica, hashes)
        return Route(replica, costs[replica])

    def finished(self, route: Route) -> None:
        """All sequences of a prompt are finished."""
        self._load[route.replica] -= route.cost

    def _hashes(self, token_ids: Sequence[int], adapter_key: bytes) -> Sequence[bytes]:
        if not any(self._num_blocks):
            return ()
        size, hashes = self._block_size, [root_hash(adapter_key)]
        # The last token of a prompt is always computed.
        for end in range(size, len(token_ids), size):
            hashes.append(block_hash(hashes[-1], token_ids[end - size : end]))
        return hashes[1:]

    def _cached_tokens(self, known: OrderedDict[bytes, None], hashes: Sequence[bytes]) -> int:
        found = next((index for index, value in enumerate(hashes) if value not in known), len(hashes))
        return found * self._block_size

    def _remember(self, replica: int, hashes: Sequence[bytes]) -> None:
        known, most = self._known[replica], self._num_blocks[replica]
        for value in reversed(hashes):  # a prefix's end is forgotten before its beginning
            known[value] = None
            known.move_to_end(value)
        while len(known) > most:
            known.popitem(last=False)
