"""V2's sampler: parameters in stable rows on the device, one Triton stage per feature, launched only when
asked.

Three verbs: `add_request` notes what a request asks for, `apply_staged_writes` sends it to the device before
a step, `sample` draws. The base stage (temperature, greedy, Gumbel-max) reads device tensors only and can be
captured in a graph; all other stages run when a scheduled row asks, and look only at state on the device, so
the host may be steps behind the tokens. `dodona.runners.sampling.reference` says what each stage means and
in which order they come.
"""

from __future__ import annotations

import enum
import functools
import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dodona.kernels.sampling.filters import filter_cuts
from dodona.kernels.sampling.grammar import mask_by_grammar
from dodona.kernels.sampling.gumbel import gumbel_sample, gumbel_sample_and_append
from dodona.kernels.sampling.logprobs import LogprobTensors, given_logprobs, token_logprobs
from dodona.kernels.sampling.masks import (
    NO_TOKEN,
    add_logit_bias,
    mask_bad_words,
    mask_stop_tokens,
    pack_token_bits,
    prepare_scores,
)
from dodona.kernels.sampling.penalties import apply_penalties, count_tokens
from dodona.runners.interface import GrammarOutput, NewRequest, TokenLogprobs
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.sampling.reference import (
    fallback_id,
    grammar_fallback_ids,
    inverse_temperature,
    log_min_p,
    repetition_factor,
    with_given,
)
from dodona.runners.v2.sampling.tables import Array, CountTable, RowTable, ScalarTable, upload


class Stage(enum.Flag):
    """What a row asks for beyond the base stage."""

    ALLOWED_IDS = enum.auto()
    MIN_TOKENS = enum.auto()
    BAD_WORDS = enum.auto()
    LOGIT_BIAS = enum.auto()
    PENALTIES = enum.auto()
    FILTERS = enum.auto()
    LOGPROBS = enum.auto()
    GRAMMAR = enum.auto()


NOTHING = Stage(0)
EDITS = (
    Stage.ALLOWED_IDS
    | Stage.GRAMMAR
    | Stage.MIN_TOKENS
    | Stage.BAD_WORDS
    | Stage.LOGIT_BIAS
    | Stage.PENALTIES
)
"""Stages that change logits, and so need an fp32 copy of them."""


@dataclass(frozen=True, slots=True)
class SamplerOutput:
    """Tokens of a step, on the device."""

    token_ids: Tensor
    """[n] int32."""
    logprobs: LogprobTensors | None
    """For the batch rows in `logprob_rows`, in that order; None where no row asks."""
    logprob_rows: tuple[int, ...]
    """Batch rows (indices into `token_ids`) that ask for log-probabilities."""
    logprob_counts: tuple[int, ...]
    """How many of the most probable tokens each of `logprob_rows` asks for."""
    given_logprobs: LogprobTensors | None = None
    """The tokens that `logprob_rows` ask for by id, all after one another; None where no row does."""
    given_counts: tuple[int, ...] = ()
    """How many of them are each of `logprob_rows`'."""


class V2Sampler:
    """Samples for requests that live in stable rows.

    Args:
        max_num_seqs: number of state rows.
        vocab_size: width of the logits.
        token_ids: [max_num_seqs, max_model_len] int32 on the device: the token history, which the runner
            keeps.
    """

    def __init__(self, *, max_num_seqs: int, vocab_size: int, token_ids: Tensor) -> None:
        device = token_ids.device
        self._vocab_size = vocab_size
        self._token_ids = token_ids
        self._floats = ScalarTable(
            max_num_seqs,
            ("inverse_temperature", "log_min_p", "top_p", "repetition", "frequency", "presence"),
            np.float32,
            device,
        )
        self._integers = ScalarTable(
            max_num_seqs,
            ("seed", "fallback", "top_k", "prompt_len", "min_tokens", "is_restricted", "is_penalized"),
            np.int64,
            device,
        )
        self._allowed_bits = RowTable(max_num_seqs, np.int32, 0, device)
        self._prompt_bits = RowTable(max_num_seqs, np.int32, 0, device)
        self._stop_ids = RowTable(max_num_seqs, np.int32, NO_TOKEN, device)
        self._word_tokens = RowTable(max_num_seqs, np.int32, NO_TOKEN, device)
        self._word_ends = RowTable(max_num_seqs, np.int32, NO_TOKEN, device)
        self._bias_ids = RowTable(max_num_seqs, np.int32, NO_TOKEN, device)
        self._bias_values = RowTable(max_num_seqs, np.float32, 0.0, device)
        self._output_counts = CountTable(max_num_seqs, vocab_size, token_ids.shape[1], device)
        self._tables = (
            self._floats, self._integers, self._allowed_bits, self._prompt_bits, self._stop_ids,
            self._word_tokens, self._word_ends, self._bias_ids, self._bias_values, self._output_counts,
        )  # fmt: skip
        # What the host must know to decide on launches, per state row.
        self._stages = [0] * max_num_seqs  # values of `Stage`: its own operators are slow in a step's loop
        self._num_words = [0] * max_num_seqs
        self._num_logprobs = [0] * max_num_seqs
        self._logprob_ids: list[Sequence[int]] = [()] * max_num_seqs
        self._params: dict[int, SamplingParams] = {}
        """Parameters of the rows that have a grammar."""

    def add_request(self, request: NewRequest) -> None:
        """Take over a row for a new or resumed request; `apply_staged_writes` tells the device."""
        params, row = request.sampling_params, request.row
        stages = stages_of(request)
        self._stages[row] = stages.value
        self._num_words[row] = len(request.bad_words_token_ids)
        self._num_logprobs[row] = params.logprobs or 0
        self._logprob_ids[row] = params.logprob_token_ids or ()
        if Stage.GRAMMAR in stages:
            self._params[row] = params
        greedy = params.greedy
        self._floats.stage(
            row,
            inverse_temperature=inverse_temperature(params.temperature),
            log_min_p=log_min_p(0.0 if greedy else params.min_p),
            top_p=1.0 if greedy else params.top_p,
            repetition=repetition_factor(params),
            frequency=params.frequency_penalty,
            presence=params.presence_penalty,
        )
        self._integers.stage(
            row,
            seed=request.seed,
            fallback=fallback_id(params, request.stop_token_ids),
            top_k=0 if greedy else min(params.top_k, self._vocab_size),
            prompt_len=request.num_prompt_tokens,
            min_tokens=min(params.min_tokens, self._token_ids.shape[1]),
            is_restricted=Stage.ALLOWED_IDS in stages,
            is_penalized=Stage.PENALTIES in stages,
        )
        self._stage_lists(request, stages)

    def apply_staged_writes(self) -> None:
        """Send the rows that changed to the device; before `sample` of a step with new requests."""
        for table in self._tables:
            table.apply_staged_writes()

    def stages(self, rows: Sequence[int]) -> Stage:
        """All that these state rows ask for; `NOTHING` means that `sample_base` is all of `sample`."""
        return Stage(functools.reduce(operator.or_, map(self._stages.__getitem__, rows), 0))

    def sample(
        self,
        logits: Tensor,
        *,
        idx_mapping: Tensor,
        positions: Tensor,
        rows: Sequence[int],
        grammar_output: GrammarOutput | None = None,
    ) -> SamplerOutput:
        """Draw a token for each batch row and count it.

        Args:
            logits: [n, vocab], the model's dtype; not modified.
            idx_mapping: [n] integer, state row of each batch row, on the device.
            positions: [n] integer, absolute position of the token to be drawn (the tokens the row has), on
                the device.
            rows: the same state rows as in `idx_mapping`, on the host.
            grammar_output: what the grammars of those rows allow that have one.
        """
        if logits.shape != (len(rows), self._vocab_size):
            expected = f"[{len(rows)} rows, {self._vocab_size} tokens]"
            raise ValueError(f"logits must be {expected}; got shape {tuple(logits.shape)}")
        asked = self.stages(rows)
        scores, cuts = logits, None
        if asked & EDITS:
            scores = self._edited(logits, idx_mapping, positions, rows, asked, grammar_output)
        if Stage.FILTERS in asked:
            cuts = filter_cuts(
                scores,
                idx_mapping=idx_mapping,
                inverse_temperatures=self._floats["inverse_temperature"],
                log_min_p=self._floats["log_min_p"],
                top_k=self._integers["top_k"],
                top_p=self._floats["top_p"],
            )
        token_ids = self.sample_base(scores, idx_mapping=idx_mapping, positions=positions, cuts=cuts)
        if Stage.PENALTIES in asked:
            count_tokens(
                self._output_counts.values,
                idx_mapping=idx_mapping,
                token_ids=token_ids,
                is_penalized=self._integers["is_penalized"],
            )
        return self._with_logprobs(logits, token_ids, rows, asked)

    def sample_base(
        self,
        logits: Tensor,
        *,
        idx_mapping: Tensor,
        positions: Tensor,
        cuts: Tensor | None = None,
    ) -> Tensor:
        """The base stage alone: [n] int32 token ids.

        Args are those of `sample`, and may be padded: negative entries of `idx_mapping` are passed over.
        `cuts` ([n] fp32) are thresholds of min-p, top-k and top-p.
        """
        return gumbel_sample(
            logits, idx_mapping=idx_mapping, positions=positions, cuts=cuts, **self._base_parameters()
        )

    def sample_base_and_append(
        self,
        logits: Tensor,
        *,
        idx_mapping: Tensor,
        positions: Tensor,
        num_computed: Tensor,
        ring: Tensor,
        turn: Tensor,
    ) -> None:
        """`sample_base` without cuts, then the state's update: tokens go to the token history and into slot
        `turn` of `ring`. It can be captured in a graph. See `gumbel_sample_and_append`.
        """
        gumbel_sample_and_append(
            logits,
            idx_mapping=idx_mapping,
            positions=positions,
            num_computed=num_computed,
            token_ids=self._token_ids,
            ring=ring,
            turn=turn,
            **self._base_parameters(),
        )

    def _base_parameters(self) -> dict[str, Tensor]:
        return {
            "seeds": self._integers["seed"],
            "inverse_temperatures": self._floats["inverse_temperature"],
            "fallback": self._integers["fallback"],
        }

    def _stage_lists(self, request: NewRequest, stages: Stage) -> None:
        params, row = request.sampling_params, request.row
        if Stage.ALLOWED_IDS in stages:
            self._allowed_bits.stage(row, self._bits(params.allowed_token_ids or ()))
        if Stage.MIN_TOKENS in stages:
            self._stop_ids.stage(row, request.stop_token_ids)
        # These two have no flag beside them: a list left by the row's former request must go.
        words, bias = request.bad_words_token_ids, params.logit_bias or {}
        self._word_tokens.stage(row, [token for word in words for token in word])
        self._word_ends.stage(row, np.cumsum([len(word) for word in words], dtype=np.int32))
        self._bias_ids.stage(row, list(bias))
        self._bias_values.stage(row, list(bias.values()))
        if Stage.PENALTIES in stages:
            prompt_len = request.num_prompt_tokens
            self._prompt_bits.stage(row, self._bits(request.token_ids[:prompt_len]))
            self._output_counts.stage(row, request.token_ids[prompt_len:])

    def _bits(self, token_ids: Sequence[int]) -> Array:
        return pack_token_bits(torch.as_tensor(list(token_ids), dtype=torch.int64), self._vocab_size).numpy()

    def _edited(
        self,
        logits: Tensor,
        idx_mapping: Tensor,
        positions: Tensor,
        rows: Sequence[int],
        asked: Stage,
        grammar_output: GrammarOutput | None,
    ) -> Tensor:
        """An fp32 copy of the logits with masks, biases and penalties: [n, vocab]."""
        integers, floats = self._integers, self._floats
        restricted = Stage.ALLOWED_IDS in asked
        scores = prepare_scores(
            logits,
            idx_mapping=idx_mapping,
            allowed_bits=self._allowed_bits.values if restricted else None,
            is_restricted=integers["is_restricted"] if restricted else None,
        )
        if Stage.GRAMMAR in asked:
            self._apply_grammars(scores, rows, grammar_output)
        if Stage.MIN_TOKENS in asked:
            mask_stop_tokens(
                scores,
                idx_mapping=idx_mapping,
                positions=positions,
                prompt_lens=integers["prompt_len"],
                min_tokens=integers["min_tokens"],
                stop_ids=self._stop_ids.values,
            )
        if Stage.BAD_WORDS in asked:
            mask_bad_words(
                scores,
                idx_mapping=idx_mapping,
                positions=positions,
                prompt_lens=integers["prompt_len"],
                token_ids=self._token_ids,
                word_tokens=self._word_tokens.values,
                word_ends=self._word_ends.values,
                max_words=max(self._num_words[row] for row in rows),
            )
        if Stage.LOGIT_BIAS in asked:
            add_logit_bias(
                scores,
                idx_mapping=idx_mapping,
                bias_ids=self._bias_ids.values,
                bias_values=self._bias_values.values,
            )
        if Stage.PENALTIES in asked:
            apply_penalties(
                scores,
                idx_mapping=idx_mapping,
                is_penalized=integers["is_penalized"],
                repetition=floats["repetition"],
                frequency=floats["frequency"],
                presence=floats["presence"],
                prompt_bits=self._prompt_bits.values,
                output_counts=self._output_counts.values,
            )
        return scores

    def _apply_grammars(
        self, scores: Tensor, rows: Sequence[int], grammar_output: GrammarOutput | None
    ) -> None:
        """Mask the scores of rows with grammars, and tell the device these rows' fallback tokens."""
        given = {} if grammar_output is None else {row: i for i, row in enumerate(grammar_output.rows)}
        asking = [i for i, row in enumerate(rows) if self._stages[row] & Stage.GRAMMAR.value]
        states = [rows[i] for i in asking]
        missing = [row for row in states if row not in given]
        if grammar_output is None or missing:
            raise ValueError(f"rows {missing} have grammars, and grammar_output doesn't say what they allow")
        bitmask = grammar_output.bitmask[[given[row] for row in states]]
        fallback = grammar_fallback_ids(bitmask, [self._params[row] for row in states])
        index = upload(np.array([asking, states, fallback], dtype=np.int64), scores.device)
        mask_by_grammar(scores, batch_rows=index[0], bitmask=upload(bitmask, scores.device))
        self._integers["fallback"].index_copy_(0, index[1], index[2])

    def _with_logprobs(
        self, logits: Tensor, token_ids: Tensor, rows: Sequence[int], asked: Stage
    ) -> SamplerOutput:
        if Stage.LOGPROBS not in asked:
            return SamplerOutput(token_ids, None, (), ())
        batch_rows = tuple(i for i, row in enumerate(rows) if self._stages[row] & Stage.LOGPROBS.value)
        counts = tuple(self._num_logprobs[rows[i]] for i in batch_rows)
        some = None if len(batch_rows) == len(rows) else upload(np.array(batch_rows), logits.device)
        logprobs = token_logprobs(logits, token_ids, top_n=max(counts), rows=some)
        given_counts = tuple(len(self._logprob_ids[rows[i]]) for i in batch_rows)
        if not any(given_counts):
            return SamplerOutput(token_ids, logprobs, batch_rows, counts)
        pairs = [(i, token) for i in batch_rows for token in self._logprob_ids[rows[i]]]
        # Apart, since a kernel is compiled anew for a pointer of another alignment.
        where, what = (upload(column, logits.device) for column in np.array(pairs, dtype=np.int32).T)
        given = given_logprobs(logits, rows=where, token_ids=what)
        return SamplerOutput(token_ids, logprobs, batch_rows, counts, given, given_counts)


def stages_of(request: NewRequest) -> Stage:
    """What a request asks for beyond the base stage."""
    params: SamplingParams = request.sampling_params
    filtered = not params.greedy and (params.min_p > 0 or params.top_k > 0 or params.top_p < 1)
    wanted = (
        (Stage.ALLOWED_IDS, params.allowed_token_ids is not None),
        (Stage.MIN_TOKENS, params.min_tokens > 0 and request.stop_token_ids),
        (Stage.BAD_WORDS, request.bad_words_token_ids),
        (Stage.LOGIT_BIAS, params.logit_bias),
        (Stage.PENALTIES, params.has_penalties),
        (Stage.FILTERS, filtered),
        (Stage.LOGPROBS, params.wants_logprobs),
        (Stage.GRAMMAR, params.structured_outputs is not None),
    )
    return functools.reduce(operator.or_, (stage for stage, asks in wanted if asks), NOTHING)


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
