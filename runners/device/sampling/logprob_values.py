"""Log-probabilities of sampled tokens as values, on the device or on the host."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from dodona.kernels.sampling.logprobs import LogprobTensors
from dodona.runners.sampling.reference import with_given
from dodona.runners.sampling.token_logprobs import TokenLogprobs


@dataclass(frozen=True, slots=True, eq=False)
class SampledLogprobs:
    """Log-probabilities of a step's sampled tokens, for the rows that ask."""

    rows: tuple[int, ...]
    """Their state rows; a row that verifies drafts stands here once for each of its tokens."""
    top: LogprobTensors
    """One entry per row: the sampled token, then the most probable ones."""
    top_counts: tuple[int, ...]
    """How many of the most probable tokens each row asks for."""
    given: LogprobTensors | None = None
    """The tokens that rows ask for by id, all after one another; None where no row does."""
    given_counts: tuple[int, ...] = ()
    """How many of them are each row's; empty where `given` is None."""

    def by_row(self) -> dict[int, TokenLogprobs]:
        """State row → its entry. Waits for tensors on a device."""
        return dict(zip(self.rows, self.entries(), strict=True))

    def entries(self) -> list[TokenLogprobs]:
        """Parallel to `rows`. Waits for tensors on a device."""
        return host_logprobs(self.top, self.top_counts, self.given, self.given_counts)


def host_logprobs(
    tensors: LogprobTensors,
    counts: Sequence[int],
    given: LogprobTensors | None = None,
    given_counts: Sequence[int] = (),
) -> list[TokenLogprobs]:
    """Entries for the engine (waits for tensors on a device); row i keeps its `counts[i]` best tokens.

    `given`: the tokens that rows asked for by id, one after another, `given_counts[i]` of row i.
    """
    columns = zip(
        tensors.token_ids.tolist(), tensors.logprobs.tolist(), tensors.ranks.tolist(), counts, strict=True
    )
    entries = [TokenLogprobs(tuple(i[: 1 + n]), tuple(p[: 1 + n]), rank) for i, p, rank, n in columns]
    if given is not None:
        singles = iter(host_logprobs(given, [0] * len(given.ranks)))
        pairs = zip(entries, given_counts, strict=True)
        entries = [with_given(entry, list(itertools.islice(singles, count))) for entry, count in pairs]
    return entries
