"""What "equal tokens" means: the same ids, but for near ties that rounding may decide either way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

FP32_TIE = 1e-4
"""Two logits that are nearer than this are a tie in fp32."""

BF16_TIE = 2.0**-6
"""The same in bf16, relative to the logits' size."""

Logits = Callable[[Sequence[int]], torch.Tensor]
"""Reference: token ids so far → logits [vocab] of the next one."""


@dataclass
class EqualTokens:
    """Compares token sequences with a reference's and counts ties; `check()` fails when they are more than a
    few.

    Where two sequences first differ, the two tokens must be the reference's two best there and tie. What
    follows a tie is not compared, since it continues another text.
    """

    logits: Logits
    half_precision: bool = False
    max_ties: int = 2
    compared: int = 0
    ties: list[str] = field(default_factory=list)

    def compare(self, prompt: Sequence[int], expected: Sequence[int], actual: Sequence[int]) -> None:
        """Fail with AssertionError unless `actual` equals `expected` in the sense above."""
        self.compared += 1
        assert len(actual) == len(expected), (
            f"{len(actual)} tokens, expected {len(expected)}: {actual} / {expected}"
        )
        at = next(
            (i for i, pair in enumerate(zip(expected, actual, strict=True)) if pair[0] != pair[1]), None
        )
        if at is None:
            return
        logits = self.logits([*prompt, *expected[:at]]).float()
        top, ids = logits.topk(2)
        gap = (top[0] - top[1]).item()
        limit = BF16_TIE * top[0].abs().item() if self.half_precision else FP32_TIE
        where = f"token {at} after a prompt of {len(prompt)}: {actual[at]}, expected {expected[at]}"
        assert {expected[at], actual[at]} == set(ids.tolist()), f"{where}; the two best are {ids.tolist()}"
        assert gap <= limit, f"{where}; logits differ by {gap:.3g}, a tie is at most {limit:.3g}"
        self.ties.append(where)

    def check(self) -> None:
        """Fail if nothing was compared or ties were more than `max_ties`."""
        assert self.compared, "nothing was compared"
        assert len(self.ties) <= self.max_ties, (
            f"{len(self.ties)} ties in {self.compared} outputs: {self.ties}"
        )
