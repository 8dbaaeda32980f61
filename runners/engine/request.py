"""One sequence that the engine generates, from admission to its last token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dodona.runners.engine.events import Progress, Sink, discard
from dodona.runners.engine.grammar import Grammar
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.sampling.token_logprobs import TokenLogprobs
from dodona.runners.text.stop_strings import StopStringText

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dodona.runners.lora.adapter import Adapter
    from dodona.runners.pooling.params import PoolingInput

NO_ROW = -1


class Request:
    """State of one sequence. Once it is submitted, only the engine's thread reads and changes it.

    `token_ids` are the tokens read so far, prompt first; `num_tokens` counts also those that steps under
    way will yield, so `num_tokens - len(token_ids)` tokens are in flight. A step that verifies drafts may
    yield less than it was counted for; then the counts go back when it is read.
    """

    __slots__ = (
        "adapter",
        "bad_words_token_ids",
        "block_hashes",
        "block_ids",
        "capacity",
        "draft_token_ids",
        "eos_token_ids",
        "error",
        "finish_reason",
        "grammar",
        "index",
        "kv_transfer_id",
        "limit",
        "logprobs",
        "next_block_end",
        "num_accepted_tokens",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_delivered_tokens",
        "num_draft_tokens",
        "num_forgotten_blocks",
        "num_prefill_tokens",
        "num_prompt_tokens",
        "num_remembered_blocks",
        "num_tokens",
        "params",
        "parent_id",
        "pooled",
        "pooling",
        "prompt_logprobs",
        "request_id",
        "row",
        "schedulable_until",
        "seed",
        "sink",
        "stop_reason",
        "stop_text",
        "stop_token_ids",
        "streaming",
        "token_ids",
        "wants_logprobs",
        "wants_prompt_logprobs",
        "window_spans",
    )

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        seed: int,
        limit: int,
        eos_token_ids: frozenset[int] = frozenset(),
        bad_words_token_ids: tuple[tuple[int, ...], ...] = (),
        stop_text: StopStringText | None = None,
        grammar: Grammar | None = None,
        adapter: Adapter | None = None,
        pooling: PoolingInput | None = None,
        parent_id: str | None = None,
        index: int = 0,
        sink: Sink = discard,
        streaming: bool = False,
    ) -> None:
        """
        limit: most tokens that it may have, prompt included.
        stop_text: its text, given with stop strings only: the engine must look for them.
        grammar: its place in its grammar, given with structured outputs only.
        adapter: what changes the model for it; held to its end.
        pooling: what is asked of a pooling model, given with a prompt that nothing is generated for.
        parent_id: the prompt's request id, where it has several sequences; `index` is this one's number.
        sink: where its news go; after each token if it is `streaming`, else once it is finished.
        """
        self.request_id = request_id
        self.parent_id = request_id if parent_id is None else parent_id
        self.index = index
        self.params = params
        self.seed = seed
        self.limit = limit
        self.eos_token_ids = frozenset() if params.ignore_eos else eos_token_ids
        self.stop_token_ids = self.eos_token_ids.union(params.stop_token_ids or ())
        self.bad_words_token_ids = bad_words_token_ids
        self.stop_text = stop_text
        self.grammar = grammar
        self.adapter = adapter
        self.pooling = pooling
        self.pooled: npt.NDArray[np.float32] | None = None
        """What the model made of the prompt."""
        self.wants_logprobs = params.wants_logprobs
        self.wants_prompt_logprobs = params.prompt_logprobs is not None

        self.num_prompt_tokens = len(prompt_token_ids)
        self.token_ids = list(prompt_token_ids)
        self.num_tokens = self.num_prompt_tokens
        self.schedulable_until = limit if grammar is None else min(limit, self.num_tokens + 1)
        """Most tokens it may have, those in flight included. With a grammar, one more than those that were
        read: what the grammar allows depends on the token before."""
        self.num_computed_tokens = 0
        """Leading tokens whose KV exists, or will once the steps under way are done."""
        self.draft_token_ids: Sequence[int] = ()
        """What the runner proposes to follow `token_ids`, until it is scheduled next."""
        self.num_draft_tokens = 0
        """Drafts that were verified."""
        self.num_accepted_tokens = 0
        """Those of them that were accepted."""
        self.num_cached_tokens: int | None = None
        """Prompt tokens found in the prefix cache, or loaded, when first admitted; None before that."""
        self.num_prefill_tokens = 0
        """Tokens known when it got its row: those that are computed in chunks, before it decodes."""
        self.row = NO_ROW
        self.block_ids: list[int] = []
        self.capacity = 0
        """Tokens that `block_ids` have room for."""
        self.num_forgotten_blocks = 0
        """Leading blocks of `block_ids` that it gave back, because no query sees them any more."""
        self.window_spans: list[tuple[int, int]] = []
        """For each group of layers with window blocks: the blocks [first, end) of `block_ids` whose window
        blocks it uses."""
        self.kv_transfer_id = ""
        """Its name in KV transfers since it last got blocks."""
        self.block_hashes: list[bytes] = []
        """Chained hashes of the leading full blocks, as far as they were needed."""
        self.num_remembered_blocks = 0
        """Leading blocks of `block_ids` that the prefix cache knows."""
        self.next_block_end = 0
        """Tokens at which the next block is full and goes into the prefix cache; without prefix caching, more
        than any request has."""

        self.logprobs: list[TokenLogprobs] = []
        self.prompt_logprobs: list[TokenLogprobs] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.error: str | None = None
        """Why it ended, with the finish reason "error"."""

        self.sink = sink
        self.streaming = streaming
        self.num_delivered_tokens = 0

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated and read."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self.finish_reason is not None

    def append(self, token_id: int) -> int:
        """Take a token that was read; sets `finish_reason` and `stop_reason` if it is the last one.

        Returns how many tokens there are now.
        """
        if token_id < 0:
            self._fail(
                f"the model's logits after {len(self.token_ids)} tokens are NaN or all -inf: check the "
                "weights, or compute in another dtype"
            )
            return len(self.token_ids)
        grammar = self.grammar
        if grammar is not None and not grammar.accept(token_id):
            self._fail(grammar.error)
            return len(self.token_ids)
        self.token_ids.append(token_id)
        num_tokens = len(self.token_ids)
        if token_id in self.stop_token_ids and (
            num_tokens - self.num_prompt_tokens >= self.params.min_tokens
            # After a grammar's end nothing can come.
            or (grammar is not None and token_id in self.eos_token_ids)
        ):
            self.finish_reason = "stop"
            self.stop_reason = None if token_id in self.eos_token_ids else token_id
            self._finish_text(token_id if self.params.include_stop_str_in_output else None)
            return num_tokens
        if grammar is not None:
            self.schedulable_until = min(self.limit, num_tokens + 1)
        if self.stop_text is not None:
            stop_string = self.stop_text.add(token_id)
            if stop_string is not None:
                self.finish_reason, self.stop_reason = "stop", stop_string
                return num_tokens
            if self.stop_text.error is not None:
                self._fail(self.stop_text.error)
                return num_tokens
        if num_tokens >= self.limit:
            self.finish_reason = "length"
            self._finish_text(None)
        return num_tokens

    def extend(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> int:
        """Take tokens that one step yielded, up to the one that is the last, with their log-probabilities if
        it wants them. Returns how many tokens there are now."""
        self.logprobs.extend(logprobs)
        for token_id in token_ids:
            self.append(token_id)
            if self.finish_reason is not None:
                del self.logprobs[self.num_output_tokens :]
                break
        return len(self.token_ids)

    def finish_pooled(self, pooled: npt.NDArray[np.float32], *, is_finite: bool) -> None:
        """End it with what the model made of its prompt, or with an error where that is no number."""
        if is_finite:
            self.pooled, self.finish_reason = pooled, "stop"
        else:
            self._fail(
                "the model's output is NaN or infinite: check the weights, or compute in another dtype"
            )

    def take_progress(self) -> Progress:
        """What is new since the last call; the prompt's log-probabilities come with the first."""
        first = self.num_delivered_tokens
        begin = self.num_prompt_tokens + first
        self.num_delivered_tokens = len(self.token_ids) - self.num_prompt_tokens
        return Progress(
            request_id=self.parent_id,
            sequence_index=self.index,
            token_ids=tuple(self.token_ids[begin:]),
            logprobs=tuple(self.logprobs[first:]) if self.wants_logprobs else (),
            # Whatever is delivered before the end has a token, so that 0 of them means the first time.
            prompt_logprobs=tuple(self.prompt_logprobs) if self.wants_prompt_logprobs and not first else None,
            num_cached_tokens=self.num_cached_tokens or 0,
            text=None if self.stop_text is None else self.stop_text.take(),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            error=self.error,
            num_draft_tokens=self.num_draft_tokens,
            num_accepted_tokens=self.num_accepted_tokens,
            pooled=self.pooled,
        )

    def abort(self) -> None:
        """End it with what there is."""
        self.finish_reason = "abort"
        if self.stop_text is not None:
            self.stop_text.finish(None)

    def _finish_text(self, token_id: int | None) -> None:
        """End the text of a request with stop strings, with one more token if given."""
        if self.stop_text is not None:
            self.stop_text.finish(token_id)
            if self.stop_text.error is not None:
                self.finish_reason, self.error = "error", self.stop_text.error

    def _fail(self, error: str | None) -> None:
        """End it without the token just read, whose log-probabilities are here already."""
        self.finish_reason = "error"
        self.error = error
        del self.logprobs[self.num_output_tokens :]
        if self.stop_text is not None:
            self.stop_text.finish(None)

    def __repr__(self) -> str:
        return (
            f"Request({self.request_id!r}, {len(self.token_ids)}/{self.limit} tokens, {self.finish_reason})"
        )
