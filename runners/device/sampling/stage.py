"""What a stage of the sampler is, and the values that pass through the stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dodona.kernels.sampling.masks import pack_token_bits, prepare_scores
from dodona.runners.device.sampling.logprob_values import SampledLogprobs
from dodona.runners.device.sampling.tables import Array, ScalarTable
from dodona.runners.interface import GrammarOutput, NewRequest


@dataclass(frozen=True, slots=True)
class Example:
    """A request that asks for a stage: for warm-up, rehearsal, benchmarks and tests.

    Token ids are below 32, so that every vocabulary has them.
    """

    params: Mapping[str, Any]
    """Sampling parameters beside the temperature."""
    stop_token_ids: tuple[int, ...] = ()
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()


class SamplerRows:
    """State of the sampler's rows that stages share: sizes, the token history, and all numbers per row.

    The numbers of all stages lie in one table per dtype, so that a step with new requests sends two tables,
    however many stages there are.

    Args:
        max_num_seqs: number of state rows.
        vocab_size: width of the logits.
        token_ids: [max_num_seqs, max_model_len] int32 on the device: the token history, which the runner
            keeps.
        floats, integers: names of the numbers that stages keep per row.
    """

    def __init__(
        self,
        *,
        max_num_seqs: int,
        vocab_size: int,
        token_ids: Tensor,
        floats: Sequence[str],
        integers: Sequence[str],
    ) -> None:
        self.max_num_seqs = max_num_seqs
        self.vocab_size = vocab_size
        self.token_ids = token_ids
        self.device: torch.device = token_ids.device
        self.floats = ScalarTable(max_num_seqs, floats, np.float32, self.device)
        self.integers = ScalarTable(max_num_seqs, ("prompt_len", *integers), np.int64, self.device)
        self.prompt_lens = self.integers["prompt_len"]
        """[max_num_seqs] int64: tokens of each row's prompt."""

    @property
    def max_model_len(self) -> int:
        """Most tokens of a row."""
        return self.token_ids.shape[1]

    def add_request(self, request: NewRequest) -> None:
        """Stage what every stage may look at."""
        self.integers.stage(request.row, prompt_len=request.num_prompt_tokens)

    def apply_staged_writes(self) -> None:
        """Send the numbers that changed to the device."""
        self.floats.apply_staged_writes()
        self.integers.apply_staged_writes()

    def pack_bits(self, token_ids: Sequence[int]) -> Array:
        """A set of token ids: [ceil(vocab / 32)] int32, on the host."""
        return pack_token_bits(torch.as_tensor(list(token_ids), dtype=torch.int64), self.vocab_size).numpy()


@dataclass(frozen=True, slots=True, eq=False)
class VerifiedDrafts:
    """The drafts of a batch whose rows verify some."""

    offsets: Tensor
    """[n] int32 on the device: how many drafts of its row come before each token to be drawn."""
    most: int
    """Most drafts of a row in any step."""


@dataclass(frozen=True, slots=True, eq=False)
class SamplingBatch:
    """The rows that a token is drawn for. A row that verifies k drafts stands here 1 + k times in a row: for
    the token after its last one, and for those after each draft."""

    rows: Sequence[int]
    """State rows, on the host."""
    idx_mapping: Tensor
    """[n] integer on the device: the same state rows."""
    positions: Tensor
    """[n] integer on the device: absolute position of each token to be drawn (the tokens the row has)."""
    grammar_output: GrammarOutput | None = None
    """What the grammars allow of those rows that have one."""
    drafts: VerifiedDrafts | None = None
    """None where no row verifies any."""


@dataclass(slots=True, eq=False)
class Draw:
    """One draw for a batch, on its way through the stages."""

    batch: SamplingBatch
    logits: Tensor
    """[n, vocab], the model's; not modified."""
    scores: Tensor
    """[n, vocab], what is drawn from: `logits`, or an fp32 copy that stages changed."""
    cuts: Tensor | None = None
    """[n] fp32: least tempered score that is drawn, per batch row; None where no row has one."""
    fallback: Tensor | None = None
    """[n] int64: what is drawn where no token is left, per batch row; None: as the rows' parameters say."""
    num_kept: Tensor | None = None
    """[n] int32, once tokens are drawn: how many of a row's are kept (`kernels.sampling.acceptance`); None
    where no drafts are verified, and all are."""
    logprobs: SampledLogprobs | None = None
    """Log-probabilities of the tokens drawn."""

    def editable_scores(self) -> Tensor:
        """`scores` as fp32 that a stage may write into."""
        if self.scores is self.logits:
            self.scores = prepare_scores(self.logits, idx_mapping=self.batch.idx_mapping)
        return self.scores


class Stage(ABC):
    """One feature of the sampler beyond its base draw: tables of what rows ask for, and launches over them.

    A stage is launched for a whole batch when at least one of its rows asks, so its numbers and lists must
    be neutral for rows that do not ask. It looks only at state on the device, since the host may be steps
    behind the tokens. A table that was given to a launch keeps its tensor, or grows before the next launch.
    """

    name: ClassVar[str]
    masks: ClassVar[bool] = False
    """Whether it may leave a row without any token, which is then given its fallback token."""
    floats: ClassVar[tuple[str, ...]] = ()
    """Names of the fp32 numbers that it keeps per row in `SamplerRows.floats`."""
    integers: ClassVar[tuple[str, ...]] = ()
    """Names of the int64 numbers that it keeps per row in `SamplerRows.integers`."""
    example: ClassVar[Example]

    @abstractmethod
    def __init__(self, rows: SamplerRows) -> None:
        """Make the stage's tables for `rows`."""

    @staticmethod
    @abstractmethod
    def asks(request: NewRequest) -> bool:
        """Whether the request needs this stage."""

    @abstractmethod
    def add_request(self, request: NewRequest, asks: bool) -> None:
        """Stage all of the row's numbers and lists for a new or resumed request; nothing of the row's former
        request may stay. `asks` is what `asks(request)` says."""

    def apply_staged_writes(self) -> None:
        """Send the stage's own tables, where they changed, to the device."""
        return

    def before_draw(self, draw: Draw) -> None:
        """Change what is drawn from: `draw.editable_scores()` in place, or `draw.cuts`."""
        return

    def after_draw(self, draw: Draw, token_ids: Tensor) -> None:
        """Take note of the tokens drawn ([n] int32), or add to the draw's results."""
        return
