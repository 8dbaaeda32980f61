"""`min_p`, `top_k` and `top_p`: only the most probable tokens are drawn."""

from __future__ import annotations

from typing import ClassVar

from dodona.kernels.sampling.filters import filter_cuts
from dodona.runners.device.sampling.stage import Draw, Example, SamplerRows, Stage
from dodona.runners.interface import NewRequest
from dodona.runners.sampling.reference import log_min_p


class Filters(Stage):
    """Computes the least score that is drawn, from the scores as all stages before leave them."""

    name: ClassVar[str] = "filters"
    floats: ClassVar[tuple[str, ...]] = ("log_min_p", "top_p")
    integers: ClassVar[tuple[str, ...]] = ("top_k",)
    example: ClassVar[Example] = Example({"top_k": 5, "top_p": 0.9, "min_p": 0.01})

    def __init__(self, rows: SamplerRows) -> None:
        self._rows = rows

    @staticmethod
    def asks(request: NewRequest) -> bool:
        """Whether any filter is on; a greedy request needs none."""
        params = request.sampling_params
        return not params.greedy and (params.min_p > 0 or params.top_k > 0 or params.top_p < 1)

    def add_request(self, request: NewRequest, asks: bool) -> None:
        """Stage the filters, off for rows that do not ask."""
        row, params = request.row, request.sampling_params
        self._rows.floats.stage(
            row, log_min_p=log_min_p(params.min_p if asks else 0.0), top_p=params.top_p if asks else 1.0
        )
        self._rows.integers.stage(row, top_k=min(params.top_k, self._rows.vocab_size) if asks else 0)

    def before_draw(self, draw: Draw) -> None:
        """Compute the cuts."""
        floats, integers = self._rows.floats, self._rows.integers
        draw.cuts = filter_cuts(
            draw.scores,
            idx_mapping=draw.batch.idx_mapping,
            inverse_temperatures=floats["inverse_temperature"],
            log_min_p=floats["log_min_p"],
            top_k=integers["top_k"],
            top_p=floats["top_p"],
        )
