"""`structured_outputs`: masks by grammars, which the host makes anew for each step."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import ClassVar

import numpy as np

from dodona.kernels.sampling.grammar import mask_by_grammar
from dodona.runners.device.sampling.stage import Draw, Example, SamplerRows, Stage
from dodona.runners.device.sampling.tables import upload
from dodona.runners.interface import NewRequest
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.sampling.reference import grammar_fallback_ids


class Grammar(Stage):
    """Masks what the rows' grammars forbid, and sets these rows' fallback tokens."""

    name: ClassVar[str] = "grammar"
    masks: ClassVar[bool] = True
    example: ClassVar[Example] = Example({"structured_outputs": {"regex": "."}})

    def __init__(self, rows: SamplerRows) -> None:
        self._rows = rows
        self._params: dict[int, SamplingParams] = {}
        """Parameters of the rows that have a grammar."""

    @staticmethod
    def asks(request: NewRequest) -> bool:
        """Whether the request has a grammar."""
        return request.sampling_params.structured_outputs is not None

    def add_request(self, request: NewRequest, asks: bool) -> None:
        """Note whether the row has a grammar."""
        if asks:
            self._params[request.row] = request.sampling_params
        else:
            self._params.pop(request.row, None)

    def before_draw(self, draw: Draw) -> None:
        """Mask the scores. Raises ValueError where the step's grammar output lacks a row."""
        scores, rows, output = draw.editable_scores(), draw.batch.rows, draw.batch.grammar_output
        places: defaultdict[int, deque[int]] = defaultdict(deque)
        for place, row in enumerate(() if output is None else output.rows):
            places[row].append(place)
        batch_rows = [i for i, row in enumerate(rows) if row in self._params]
        state_rows = [rows[i] for i in batch_rows]
        # A row that verifies drafts has a mask for each of its tokens, in their order.
        found = [places[row].popleft() if places[row] else None for row in state_rows]
        missing = [row for row, place in zip(state_rows, found, strict=True) if place is None]
        if output is None or missing:
            raise ValueError(
                f"rows {missing} have grammars, and grammar_output doesn't say what they allow; "
                "give a bitmask for each of them"
            )
        bitmask = output.bitmask[[place for place in found if place is not None]]
        fallback = grammar_fallback_ids(bitmask, [self._params[row] for row in state_rows])
        index = upload(np.array([batch_rows, fallback], dtype=np.int64), scores.device)
        mask_by_grammar(scores, batch_rows=index[0], bitmask=upload(bitmask, scores.device))
        draw.fallback = self._rows.integers["fallback"][draw.batch.idx_mapping.long()]
        draw.fallback.index_copy_(0, index[0], index[1])
