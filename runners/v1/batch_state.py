"""What V1 remembers of each state row between steps, on the host: tokens, block table, parameters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dodona.runners.interface import NewRequest, SchedulerOutput


class RequestState:
    """One request's row."""

    def __init__(self, request: NewRequest) -> None:
        self.request = request
        self.prompt_token_ids: tuple[int, ...] = tuple(request.token_ids[: request.num_prompt_tokens])
        self.output_token_ids: list[int] = list(request.token_ids[request.num_prompt_tokens :])
        self.block_ids: list[int] = list(request.block_ids)

    def tokens(self, start: int, end: int) -> Sequence[int]:
        """Token ids at positions [start, end) of prompt and output."""
        prompt = len(self.prompt_token_ids)
        if end <= prompt:
            return self.prompt_token_ids[start:end]
        if start >= prompt:
            return self.output_token_ids[start - prompt : end - prompt]
        return [*self.prompt_token_ids[start:], *self.output_token_ids[: end - prompt]]


class BatchState:
    """State rows by number. A freed row keeps nothing."""

    def __init__(self) -> None:
        self._rows: dict[int, RequestState] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> RequestState:
        return self._rows[row]

    def apply(self, step: SchedulerOutput) -> None:
        """Free rows, admit requests, append blocks, in this order. Raises ValueError on a row taken twice."""
        for row in step.freed_rows:
            self._rows.pop(row, None)
        for request in step.new_requests:
            if request.row in self._rows:
                taken = self._rows[request.row].request.request_id
                raise ValueError(f"row {request.row} of request {request.request_id!r} belongs to {taken!r}")
            self._rows[request.row] = RequestState(request)
        for row, block_ids in step.new_blocks:
            self._rows[row].block_ids.extend(block_ids)

    def block_tables(self, rows: Sequence[int], needed: Sequence[int]) -> np.ndarray:
        """[rows, most blocks] int64: each row's first `needed` block ids, padded with zeros.

        Raises ValueError where a row has fewer blocks than its tokens take.
        """
        tables = np.zeros((len(rows), max(needed)), dtype=np.int64)
        for i, (row, count) in enumerate(zip(rows, needed, strict=True)):
            block_ids = self._rows[row].block_ids
            if len(block_ids) < count:
                raise ValueError(f"row {row} has {len(block_ids)} KV blocks, but its tokens take {count}")
            tables[i, :count] = block_ids[:count]
        return tables

    def clear(self) -> None:
        """Forget all rows."""
        self._rows.clear()
