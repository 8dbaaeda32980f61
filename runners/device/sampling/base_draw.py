"""The draw itself: temperature, greedy, Gumbel-max. Every row takes it."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dodona.kernels.sampling.gumbel import gumbel_sample, gumbel_sample_and_append
from dodona.runners.device.sampling.stage import SamplerRows
from dodona.runners.interface import NewRequest
from dodona.runners.sampling.reference import fallback_id, inverse_temperature


class BaseDraw:
    """Draws from scores. It reads device tensors only, which stay where they are, so that a graph can hold
    it."""

    floats: ClassVar[tuple[str, ...]] = ("inverse_temperature",)
    integers: ClassVar[tuple[str, ...]] = ("seed", "fallback")

    def __init__(self, rows: SamplerRows) -> None:
        self._rows = rows
        self._seeds = rows.integers["seed"]
        self._fallback = rows.integers["fallback"]
        self._inverse_temperatures = rows.floats["inverse_temperature"]

    def add_request(self, request: NewRequest) -> None:
        """Stage temperature, seed and fallback token."""
        params = request.sampling_params
        self._rows.floats.stage(request.row, inverse_temperature=inverse_temperature(params.temperature))
        fallback = fallback_id(params, request.stop_token_ids, request.bad_words_token_ids)
        self._rows.integers.stage(request.row, seed=request.seed, fallback=fallback)

    def sample(
        self,
        scores: Tensor,
        *,
        idx_mapping: Tensor,
        positions: Tensor,
        cuts: Tensor | None = None,
        fallback: Tensor | None = None,
        vocabulary: Tensor | None = None,
        ahead: int = 0,
        out: Tensor | None = None,
    ) -> Tensor:
        """[n] int32 token ids.

        Args:
            scores: [n, vocab], any floating dtype; not modified.
            idx_mapping, positions: those of `SamplingBatch`, and may be padded: negative entries of
                `idx_mapping` are passed over.
            cuts: [n] fp32, see `Draw.cuts`.
            fallback: [n] int64, see `Draw.fallback`.
            vocabulary, ahead, out: see `gumbel_sample`.
        """
        return gumbel_sample(
            scores,
            idx_mapping=idx_mapping,
            positions=positions,
            seeds=self._seeds,
            inverse_temperatures=self._inverse_temperatures,
            fallback=self._fallback,
            cuts=cuts,
            entry_fallback=fallback,
            vocabulary=vocabulary,
            ahead=ahead,
            out=out,
        )

    def sample_and_append(
        self,
        logits: Tensor,
        *,
        idx_mapping: Tensor,
        positions: Tensor,
        num_computed: Tensor,
        ring: Tensor,
        turn: Tensor,
    ) -> None:
        """`sample` without cuts, then the state's update: tokens go to the token history and into slot `turn`
        of `ring`. It can be captured in a graph. See `gumbel_sample_and_append`.
        """
        gumbel_sample_and_append(
            logits,
            idx_mapping=idx_mapping,
            positions=positions,
            seeds=self._seeds,
            inverse_temperatures=self._inverse_temperatures,
            fallback=self._fallback,
            num_computed=num_computed,
            token_ids=self._rows.token_ids,
            ring=ring,
            turn=turn,
        )
