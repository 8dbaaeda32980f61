"""The state rows of V1, on the host: each request's tokens, block table and sampling parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dodona.runners.interface import NewRequest, SchedulerOutput
from dodona.runners.sampling.reference import SamplingRow

if TYPE_CHECKING:
    import numpy.typing as npt

    from dodona.runners.sampling.params import SamplingParams


class RequestState:
    """One request's row."""

    def __init__(self, request: NewRequest) -> None:
        self.request = request
        self.prompt_token_ids: tuple[int, ...] = tuple(request.token_ids[: request.num_prompt_tokens])
        self.output_token_ids: list[int] = list(request.token_ids[request.num_prompt_tokens :])
        self.block_ids: list[int] = list(request.block_ids)

    @property
    def sampling_params(self) -> SamplingParams:
        """As the request gave them."""
        return self.request.sampling_params

    def tokens(self, start: int, end: int) -> Sequence[int]:
        """Token ids at positions [start, end) of prompt and output."""
        prompt = len(self.prompt_token_ids)
        if end <= prompt:
            return self.prompt_token_ids[start:end]
        if start >= prompt:
            return self.output_token_ids[start - prompt : end - prompt]
        return [*self.prompt_token_ids[start:], *self.output_token_ids[: end - prompt]]

    def sampling_row(
        self, grammar_words: npt.NDArray[np.int32] | None, drafts: Sequence[int] = ()
    ) -> SamplingRow:
        """What the sampler needs to know of the row, its output continued by `drafts`.

        grammar_words: [ceil(vocab / 32)], the row's share of `GrammarOutput.bitmask`, for a request with
        structured outputs; ValueError where it is missing.
        """
        if grammar_words is None and self.sampling_params.structured_outputs is not None:
            raise ValueError(
                f"row {self.request.row} has a grammar, and grammar_output doesn't say what it allows"
            )
        row = self.ungoverned_row(drafts)
        return row if grammar_words is None else replace(row, grammar_words=grammar_words)

    def ungoverned_row(self, drafts: Sequence[int] = ()) -> SamplingRow:
        """The same without a grammar."""
        request = self.request
        return SamplingRow(
            params=self.sampling_params,
            prompt_token_ids=self.prompt_token_ids,
            output_token_ids=[*self.output_token_ids, *drafts] if drafts else self.output_token_ids,
            seed=request.seed,
            stop_token_ids=request.stop_token_ids,
            bad_words_token_ids=request.bad_words_token_ids,
        )


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

    def input_token_ids(self, step: SchedulerOutput) -> npt.NDArray[np.int64]:
        """[total tokens] int64: the tokens that the step computes, row after row.

        Raises ValueError where a row has fewer tokens than the step computes.
        """
        token_ids: list[int] = []
        for row, count, start in zip(step.rows, step.num_tokens, step.num_computed_tokens, strict=True):
            drafts = step.draft_token_ids.get(row, ())
            tokens = [*self._rows[row].tokens(start, start + count - len(drafts)), *drafts]
            if len(tokens) < count:
                raise ValueError(
                    f"row {row} has no tokens yet at positions {start + len(tokens)} .. {start + count - 1}"
                )
            token_ids.extend(tokens)
        return np.asarray(token_ids, dtype=np.int64)

    def block_tables(self, step: SchedulerOutput, block_size: int) -> npt.NDArray[np.int64]:
        """[rows, most blocks] int64: the block ids of each row's tokens up to the step's end, padded with
        zeros.

        Raises ValueError where a row has fewer blocks than its tokens take.
        """
        ends = np.add(step.num_computed_tokens, step.num_tokens)
        needed = (-(-ends // block_size)).tolist()
        tables = np.zeros((len(needed), max(needed)), dtype=np.int64)
        for i, (row, count) in enumerate(zip(step.rows, needed, strict=True)):
            block_ids = self._rows[row].block_ids
            if len(block_ids) < count:
                raise ValueError(f"row {row} has {len(block_ids)} KV blocks, but its tokens take {count}")
            tables[i, :count] = block_ids[:count]
        return tables
