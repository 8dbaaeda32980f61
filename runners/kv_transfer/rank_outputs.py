"""What the ranks of an engine report of KV transfers, put together: each moves its part of every block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dodona.runners.interface import KVConnectorOutput


class RankOutputs:
    """Counts the reports of `num_ranks` ranks: a transfer has ended once it has on all of them."""

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._sent: Counter[str] = Counter()
        self._received: Counter[str] = Counter()
        self._invalid: set[int] = set()
        """Failed blocks of loads that some rank is still to report. Some may be of loads that all reported:
        who holds such a block by then only computes it again."""

    def add(self, outputs: Sequence[KVConnectorOutput | None]) -> KVConnectorOutput | None:
        """Take what each rank reports with a step; returns what has ended on all of them, if anything."""
        for output in outputs:
            if output is not None:
                self._sent.update(output.finished_sending)
                self._received.update(output.finished_recving)
                self._invalid.update(output.invalid_block_ids)
        sent, received = self._take_ended(self._sent), self._take_ended(self._received)
        if not (sent or received):
            return None
        invalid = frozenset(self._invalid)
        if not self._received:
            self._invalid.clear()
        return KVConnectorOutput(sent, received, invalid if received else frozenset())

    def _take_ended(self, counts: Counter[str]) -> frozenset[str]:
        ended = frozenset(name for name, count in counts.items() if count == self._num_ranks)
        for name in ended:
            del counts[name]
        return ended
