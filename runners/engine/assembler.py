"""Makes a prompt's output of the progress of its sequences. Runs in the caller's thread."""

from __future__ import annotations

from collections.abc import Sequence

from dodona.runners.engine.events import Progress
from dodona.runners.engine.request import Request
from dodona.runners.errors import InvalidRequestError
from dodona.runners.outputs import CompletionOutput, Logprob, RequestOutput
from dodona.runners.sampling.token_logprobs import TokenLogprobs
from dodona.runners.text.detokenizer import Detokenizer, IncrementalText


class OutputAssembler:
    """The output of one prompt's n sequences. Reads `requests` when it is made, before they are submitted."""

    def __init__(
        self, prompt: str | None, requests: Sequence[Request], detokenizer: Detokenizer | None
    ) -> None:
        first = requests[0]
        self.request_id = first.parent_id
        self._prompt = prompt
        self._prompt_token_ids = first.token_ids[: first.num_prompt_tokens]
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        self._num_cached_tokens = 0
        self._error: str | None = None
        self._detokenizer = detokenizer
        self._sequences = [_Sequence(request, detokenizer) for request in requests]
        self._num_unfinished = len(requests)

    @property
    def finished(self) -> bool:
        """Whether all sequences are finished."""
        return not self._num_unfinished

    def add(self, progress: Progress) -> CompletionOutput:
        """The news of one sequence, with text."""
        if progress.sequence_index == 0:
            self._num_cached_tokens = progress.num_cached_tokens
        if progress.prompt_logprobs is not None:
            entries = [readable(entry, self._detokenizer) for entry in progress.prompt_logprobs]
            self._prompt_logprobs = [None, *entries]
        if progress.finish_reason is not None:
            self._num_unfinished -= 1
            self._error = self._error or progress.error
        sequence = self._sequences[progress.sequence_index]
        output = sequence.add(progress)
        self._error = self._error or sequence.error
        return output

    def output(self, outputs: list[CompletionOutput]) -> RequestOutput:
        """A prompt's output that holds these sequences."""
        return RequestOutput(
            request_id=self.request_id,
            prompt=self._prompt,
            prompt_token_ids=self._prompt_token_ids,
            prompt_logprobs=self._prompt_logprobs,
            outputs=outputs,
            finished=self.finished,
            num_cached_tokens=self._num_cached_tokens,
            error=self._error,
        )


class _Sequence:
    def __init__(self, request: Request, detokenizer: Detokenizer | None) -> None:
        self._index = request.index
        self._include_stop_token = request.params.include_stop_str_in_output
        self._wants_logprobs = request.wants_logprobs
        self._cumulative_logprob = 0.0
        self._detokenizer = detokenizer
        self._text: IncrementalText | None = None
        self.error: str | None = None
        """Why there is no more text."""
        if request.stop_text is None and request.params.detokenize and detokenizer is not None:
            self._text = IncrementalText(
                detokenizer,
                request.token_ids[: request.num_prompt_tokens],
                skip_special_tokens=request.params.skip_special_tokens,
                spaces_between_special_tokens=request.params.spaces_between_special_tokens,
            )

    def add(self, progress: Progress) -> CompletionOutput:
        self._cumulative_logprob += sum(entry.logprobs[0] for entry in progress.logprobs)
        logprobs = [readable(entry, self._detokenizer) for entry in progress.logprobs]
        text, reason = self._new_text(progress), progress.finish_reason
        return CompletionOutput(
            index=self._index,
            text=text,
            token_ids=list(progress.token_ids),
            cumulative_logprob=self._cumulative_logprob if self._wants_logprobs else None,
            logprobs=logprobs if self._wants_logprobs else None,
            finish_reason="error" if reason is not None and self.error is not None else reason,
            stop_reason=progress.stop_reason,
            num_draft_tokens=progress.num_draft_tokens,
            num_accepted_tokens=progress.num_accepted_tokens,
        )

    def _new_text(self, progress: Progress) -> str:
        if progress.text is not None:
            return progress.text
        if self._text is None:
            return ""
        token_ids = progress.token_ids
        if progress.finish_reason == "stop" and not self._include_stop_token:
            token_ids = token_ids[:-1]  # a token ended it, since it has no stop strings
        text = self._text
        try:
            return text.add(token_ids) if progress.finish_reason is None else text.finish(token_ids)
        except InvalidRequestError as error:
            self._text, self.error = None, str(error)
            return ""


def readable(entry: TokenLogprobs, detokenizer: Detokenizer | None) -> dict[int, Logprob]:
    """A position's log-probabilities by token id: the token itself, then the most probable ones by rank, then
    those asked for by id."""
    ranks = (entry.rank, *range(1, len(entry.token_ids) - len(entry.given_ranks)), *entry.given_ranks)
    result: dict[int, Logprob] = {}
    for token_id, logprob, rank in zip(entry.token_ids, entry.logprobs, ranks, strict=True):
        if token_id not in result:
            text = None if detokenizer is None else detokenizer.token(token_id)
            result[token_id] = Logprob(logprob, rank, text)
    return result
