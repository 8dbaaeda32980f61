"""Prompts for a pooling model: embeddings, classes, and scores of pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from dodona.oracle.systems.own.pooler import PoolingSettings
from dodona.runners.client import EngineClient, per_prompt
from dodona.runners.engine.events import Event, Progress
from dodona.runners.engine.prompts import PromptLike, as_prompt_list, parse_prompt
from dodona.runners.engine.request import Request
from dodona.runners.errors import InvalidRequestError, WrongTaskError
from dodona.runners.lora.request import LoRARequest
from dodona.runners.outputs import (
    ClassificationOutput,
    EmbeddingOutput,
    PoolingOutput,
    PoolingRequestOutput,
    ScoringOutput,
)
from dodona.runners.pooling.params import PoolingParams
from dodona.runners.waiting import ended_by_ctrl_c, wait_for_outputs

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

T = TypeVar("T")
Params = PoolingParams | Sequence[PoolingParams] | None
Lora = LoRARequest | Sequence[LoRARequest | None] | None
Pair = tuple[PromptLike, PromptLike | None]
"""A prompt, and the second text of a pair."""

_CALLS = {"embed": "LLM.embed", "classify": "LLM.classify", "token_classify": "LLM.encode"}


@dataclass(frozen=True, slots=True)
class PoolingClient:
    """What `LLM` does with a pooling model; see its methods for arguments and errors."""

    client: EngineClient

    def embed(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: Params,
        lora: Lora,
        use_tqdm: bool | None,
    ) -> list[PoolingRequestOutput[EmbeddingOutput]]:
        """The embedding of each prompt."""
        self._settings("LLM.embed", "embed")
        return self._run(
            _singles(prompts), params, lora, use_tqdm, lambda data: EmbeddingOutput(data.tolist())
        )

    def classify(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: Params,
        lora: Lora,
        use_tqdm: bool | None,
    ) -> list[PoolingRequestOutput[ClassificationOutput]]:
        """The classes of each prompt."""
        labels = self._settings("LLM.classify", "classify").labels
        return self._run(
            _singles(prompts),
            params,
            lora,
            use_tqdm,
            lambda data: ClassificationOutput(data.tolist(), labels),
        )

    def encode(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: Params,
        lora: Lora,
        pooling_task: str | None,
        use_tqdm: bool | None,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """The model's pooled output of each prompt as it is."""
        settings = self._settings("LLM.encode")
        if pooling_task not in (None, settings.task):
            raise WrongTaskError(
                f"LLM.encode: the model is served for {settings.task!r}, not for {pooling_task!r:.40}; a "
                "model has one task, which its architecture and `convert` choose"
            )
        return self._run(
            _singles(prompts), params, lora, use_tqdm, lambda data: PoolingOutput(data, settings.labels)
        )

    def score(
        self,
        queries: PromptLike | Sequence[PromptLike],
        documents: PromptLike | Sequence[PromptLike],
        params: Params,
        lora: Lora,
        use_tqdm: bool | None,
    ) -> list[PoolingRequestOutput[ScoringOutput]]:
        """How well each document fits its query, or the one query that there is."""
        settings = self._settings("LLM.score", "embed", "classify")
        firsts, seconds = as_prompt_list(queries), as_prompt_list(documents)
        if len(firsts) not in (1, len(seconds)):
            raise InvalidRequestError(
                f"LLM.score: {len(firsts)} queries for {len(seconds)} documents; give one, or one for each"
            )
        if settings.task == "embed":
            return self._cosines(firsts, seconds, params, lora, use_tqdm)
        if len(settings.labels) != 1:
            raise WrongTaskError(
                f"LLM.score: a cross-encoder has one class, and this model has {len(settings.labels)}; use "
                "LLM.classify"
            )
        pairs = list(zip(firsts * (len(seconds) if len(firsts) == 1 else 1), seconds, strict=True))
        return self._run(pairs, params, lora, use_tqdm, lambda data: ScoringOutput(float(data[0])))

    def _cosines(
        self,
        queries: list[PromptLike],
        documents: list[PromptLike],
        params: Params,
        lora: Lora,
        use_tqdm: bool | None,
    ) -> list[PoolingRequestOutput[ScoringOutput]]:
        """Cosines of embeddings; a query that stands alone is embedded once."""
        import numpy as np

        singles = [(prompt, None) for prompt in (*queries, *documents)]
        found = self._run(singles, params, lora, use_tqdm, lambda data: data)
        firsts = found[: len(queries)] * (len(documents) if len(queries) == 1 else 1)
        results: list[PoolingRequestOutput[ScoringOutput]] = []
        for first, second in zip(firsts, found[len(queries) :], strict=True):
            error = first.error or second.error
            output = None
            if first.outputs is not None and second.outputs is not None:
                a, b = (x.outputs.astype(np.float64) for x in (first, second) if x.outputs is not None)
                length = float(np.linalg.norm(a) * np.linalg.norm(b))
                output = ScoringOutput(float(a @ b) / length if length else 0.0)
            ids = [*first.prompt_token_ids, *second.prompt_token_ids]
            results.append(PoolingRequestOutput(second.request_id, second.prompt, ids, output, error=error))
        return results

    def _settings(self, call: str, *tasks: str) -> PoolingSettings:
        """The model's settings. Raises WrongTaskError where it generates, or is for none of these tasks."""
        self.client.check_callable()
        settings = self.client.pooling_settings
        if settings is None:
            raise WrongTaskError(
                f"{call}: the model is served to generate (runner type 'generate'); use LLM.generate, or "
                "make the LLM with runner='pooling'"
            )
        if tasks and settings.task not in tasks:
            raise WrongTaskError(
                f"{call}: the model is served for pooling task {settings.task!r}; use {_CALLS[settings.task]}"
            )
        return settings

    def _run(
        self,
        pairs: Sequence[Pair],
        params: Params,
        lora: Lora,
        use_tqdm: bool | None,
        convert: Callable[[npt.NDArray[np.float32]], T],
    ) -> list[PoolingRequestOutput[T]]:
        """Submit, and wait for all outputs, in the prompts' order. After an error nothing goes on."""
        params_list = _params_list(params, len(pairs))
        loras = per_prompt(lora, len(pairs))
        events: SimpleQueue[Event] = SimpleQueue()
        refused: dict[int, PoolingRequestOutput[T]] = {}
        running: dict[str, tuple[int, Request]] = {}

        def take(progress: Progress) -> tuple[int, PoolingRequestOutput[T]]:
            index, request = running[progress.request_id]
            return index, PoolingRequestOutput(
                request_id=request.request_id,
                prompt=_text(pairs[index][0]),
                prompt_token_ids=request.token_ids,
                outputs=None if progress.pooled is None else convert(progress.pooled),
                error=progress.error,
            )

        with ended_by_ctrl_c(self.client):
            try:
                for index, request in self._submit(pairs, params_list, loras, events, refused):
                    running[request.request_id] = (index, request)
            except BaseException:
                self.client.abort(*running)
                raise
            return wait_for_outputs(self.client, events, running, take, refused, use_tqdm=use_tqdm)

    def _submit(
        self,
        pairs: Sequence[Pair],
        params: Sequence[PoolingParams],
        loras: Sequence[LoRARequest | None],
        events: SimpleQueue[Event],
        refused: dict[int, PoolingRequestOutput[T]],
    ) -> Iterable[tuple[int, Request]]:
        """The requests that were handed to the engine, as many at a time as fill a step; the outputs of
        prompts that can't be served go into `refused`."""
        settings = self._settings("pooling")
        batch: list[tuple[int, Request]] = []
        num_tokens = 0
        for index, (pair, asked, lora) in enumerate(zip(pairs, params, loras, strict=True)):
            try:
                first, second = (None if prompt is None else parse_prompt(prompt) for prompt in pair)
                if first is None:
                    raise InvalidRequestError("a prompt must be text, token ids or a mapping, got None")
                adapter = None if lora is None else self.client.adapters().get(lora)
                request = self.client.admission.admit_pooling(
                    first, second, asked, settings, events.put, adapter
                )
            except InvalidRequestError as error:
                refused[index] = PoolingRequestOutput("", _text(pair[0]), [], None, error=str(error))
                continue
            batch.append((index, request))
            num_tokens += request.num_prompt_tokens
            if num_tokens >= self.client.max_num_batched_tokens:
                self.client.submit_requests([r for _, r in batch])
                yield from batch
                batch, num_tokens = [], 0
        self.client.submit_requests([r for _, r in batch])
        yield from batch


def _singles(prompts: PromptLike | Sequence[PromptLike]) -> list[Pair]:
    return [(prompt, None) for prompt in as_prompt_list(prompts)]


def _text(prompt: PromptLike) -> str | None:
    if isinstance(prompt, Mapping):
        text: Any = prompt.get("prompt")
        return text if isinstance(text, str) else None
    return prompt if isinstance(prompt, str) else None


def _params_list(params: Params, count: int) -> list[PoolingParams]:
    one: Any = PoolingParams() if params is None else params
    listed: list[Any] = list(one) if isinstance(one, (list, tuple)) else [one] * count
    for given in listed:
        if not isinstance(given, PoolingParams):
            raise InvalidRequestError(
                f"pooling_params must be PoolingParams, or one for each prompt; got {given!r:.80}"
            )
    if len(listed) != count:
        raise InvalidRequestError(f"{len(listed)} pooling_params for {count} prompts; give one for each")
    return listed
