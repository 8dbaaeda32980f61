"""`LLM` loads a model with the runner of the verdict and generates text for prompts."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decision_log import select_and_log
from dodona.runners.chat import Message, chat_prompts
from dodona.runners.client import EngineClient, Submission
from dodona.runners.engine.draft_stats import DraftStats
from dodona.runners.engine.events import Event, Progress
from dodona.runners.engine.prompts import PromptLike, RefusedPrompt, as_prompt_list, is_single_prompt
from dodona.runners.errors import InvalidRequestError
from dodona.runners.lora.request import LoRARequest
from dodona.runners.outputs import (
    ClassificationOutput,
    CompletionOutput,
    EmbeddingOutput,
    PoolingOutput,
    PoolingRequestOutput,
    RequestOutput,
    ScoringOutput,
)
from dodona.runners.pooling.params import PoolingParams
from dodona.runners.pooling_client import PoolingClient
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.stream import OutputStream
from dodona.runners.waiting import ended_by_ctrl_c, wait_for_outputs

if TYPE_CHECKING:
    import torch

    from dodona.oracle.decide.verdict import Verdict


class LLM:
    """A model that is ready to generate. All methods may be called from several threads at once.

    >>> with LLM("path/to/model", max_num_batched_tokens=1024) as llm:  # doctest: +SKIP
    ...     print(llm.generate("2 + 2 =", SamplingParams(temperature=0.0))[0].outputs[0].text)

    `model` is a Hugging Face model directory or hub id; the other arguments are vLLM's flat names, see
    `dodona.oracle.config.flat`. Raises ConfigError, UnsupportedConfiguration (it carries the verdict),
    EngineSetupError.

    After `shutdown`, or once the runner has failed, methods raise EngineDeadError with the cause.
    """

    def __init__(
        self, model: str | os.PathLike[str], *, _verdict: Verdict | None = None, **arguments: Any
    ) -> None:
        self.verdict = _verdict or select_and_log(EngineConfig.from_flat(os.fspath(model), **arguments))
        """Why this runner runs."""
        self._client = EngineClient(self.verdict)

    @classmethod
    def from_verdict(cls, verdict: Verdict) -> LLM:
        """The model of a verdict that was reached before; nothing is decided anew."""
        return cls(verdict.config.model_config.model, _verdict=verdict)

    # --- What it is

    @property
    def config(self) -> EngineConfig:
        """The configuration at present: the verdict's, with all updates since."""
        return self._client.control.config

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and output together."""
        return self._client.max_model_len

    @property
    def num_kv_blocks(self) -> int:
        """KV blocks, of `block_size` tokens each, of all replicas together."""
        return self._client.num_kv_blocks

    def get_tokenizer(self) -> Any | None:
        """transformers' tokenizer; None where there is none."""
        return self._client.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What a call without sampling parameters uses: generation_config.json's, else the usual ones."""
        return self._client.default_sampling_params

    # --- Generating

    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | None = None,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
    ) -> list[RequestOutput]:
        """Generate for each prompt; returns the outputs in the prompts' order.

        prompts: text, token ids, ``{"prompt": text}`` or ``{"prompt_token_ids": ids}``, or a list of these.
        sampling_params: one for all, or one per prompt; None uses `get_default_sampling_params()`.
        use_tqdm: show a progress bar; None shows it after two seconds where stderr is a terminal.
        lora_request: the adapter of all prompts, or one per prompt (None: without); needs enable_lora=True.

        A prompt that can't be served has its reason in `.error` and the finish reason "error"; the others
        go on. Ctrl-C ends the engine.
        """
        return self._generate(as_prompt_list(prompts), sampling_params, use_tqdm, lora_request)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | None = None,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """`generate` for a conversation (a list of messages with "role" and "content"), or for several.

        Raises InvalidRequestError where there is no tokenizer or no chat template, and for one conversation
        that the template can't take. Of several, such a conversation has its reason in `.error`, and the
        others go on.
        """
        self._client.check_callable()
        prompts = chat_prompts(
            self._client.tokenizer,
            messages,
            check_length=self._client.admission.check_length,
            add_generation_prompt=add_generation_prompt,
            chat_template=chat_template,
            chat_template_kwargs=chat_template_kwargs,
        )
        return self._generate(prompts, sampling_params, use_tqdm, lora_request)

    def stream(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        request_id: str | Sequence[str] | None = None,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
    ) -> OutputStream:
        """Generate for one prompt, or for several, token by token. Closing the iterator aborts the unfinished
        requests.

        prompts, sampling_params, lora_request: as for `generate`.
        request_id: the request's id, or a list of them for a list of prompts; None makes up ids that nobody
            can guess. Ids that begin with "auto-" or "__dodona_" are reserved.

        Each item is a RequestOutput with the news of one request: the new text, token ids and
        log-probabilities of each sequence that has any. Text that may turn out to be part of a stop string is
        held back. A request's last item has `finished`. Items of several requests come as they are made,
        those of each in order; `request_id` says whose item it is, and the stream's `request_ids` are in the
        prompts' order.

        Raises InvalidRequestError for a prompt that can't be served, and for a request id that is in use by
        an unfinished request. In a list of prompts, a prompt that can't be served has one item with its
        reason in `.error` and the finish reason "error", before all other items; the other prompts go on.
        """
        single = is_single_prompt(prompts)
        prompt_list: list[Any] = [prompts] if single else list(prompts)
        ids = self._client.request_ids(request_id, len(prompt_list))
        events: SimpleQueue[Event] = SimpleQueue()
        submission = self._client.submit(
            prompt_list,
            sampling_params,
            events.put,
            request_ids=ids,
            streaming=True,
            lora_request=lora_request,
        )
        if single and submission.refused:
            raise InvalidRequestError(submission.refused[0])
        return OutputStream(
            self._client,
            events,
            submission.admitted.values(),
            request_ids=ids,
            refused=[
                _refused_output(prompt_list[index], reason, ids[index])
                for index, reason in submission.refused.items()
            ],
        )

    def abort(self, request_id: str) -> None:
        """End a request with the tokens that it has, and the finish reason "abort". Ignores unknown ids.

        Returns at once: the id is free for another request when the stream of this one has ended.
        """
        self._client.abort(request_id)

    # --- Pooling models

    def embed(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        use_tqdm: bool | None = None,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
    ) -> list[PoolingRequestOutput[EmbeddingOutput]]:
        """The embedding of each prompt, in the prompts' order, by a model with runner type "pooling".

        pooling_params: one for all, or one per prompt. lora_request and the others: as for `generate`.

        A prompt that can't be served has its reason in `.error`; the others go on. Raises WrongTaskError
        where the model generates or classifies.
        """
        return PoolingClient(self._client).embed(prompts, pooling_params, lora_request, use_tqdm)

    def classify(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        use_tqdm: bool | None = None,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
    ) -> list[PoolingRequestOutput[ClassificationOutput]]:
        """The classes of each prompt, with their labels, by a classifier of sequences.

        A reward model is a classifier of one class: its reward is the logit, with
        ``PoolingParams(use_activation=False)``. Arguments and errors: as for `embed`.
        """
        return PoolingClient(self._client).classify(prompts, pooling_params, lora_request, use_tqdm)

    def score(
        self,
        queries: PromptLike | Sequence[PromptLike],
        documents: PromptLike | Sequence[PromptLike],
        *,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        use_tqdm: bool | None = None,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
    ) -> list[PoolingRequestOutput[ScoringOutput]]:
        """How well each document fits its query: by a cross-encoder (a classifier of pairs with one class),
        or as the cosine of two embeddings.

        queries: one for all documents, or one per document. A cross-encoder takes texts only. pooling_params:
        one for all, or one for each document (for embeddings: for each query, then each document), and so
        lora_request. Errors: as for `embed`.
        """
        return PoolingClient(self._client).score(queries, documents, pooling_params, lora_request, use_tqdm)

    def encode(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        pooling_task: str | None = None,
        use_tqdm: bool | None = None,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """What the model makes of each prompt, as an array: an embedding, classes, or the classes of each
        token.

        pooling_task: what the caller expects, "embed", "classify" or "token_classify"; WrongTaskError where
        the model is served for another. The others: as for `embed`.
        """
        return PoolingClient(self._client).encode(
            prompts, pooling_params, lora_request, pooling_task, use_tqdm
        )

    # --- Adapters

    def add_lora(self, lora_request: LoRARequest) -> bool:
        """Load an adapter before a request needs it; True if it was not loaded. Raises InvalidRequestError
        for what can't be served."""
        adapters = self._client.adapters()
        known = adapters.loaded()
        adapters.get(lora_request)
        return lora_request.lora_int_id not in known

    def remove_lora(self, lora_id: int) -> bool:
        """Forget an adapter; False where there is none of this number. Requests that run with it go on."""
        return self._client.adapters().remove(lora_id)

    def list_loras(self) -> set[int]:
        """Numbers of the loaded adapters."""
        return self._client.adapters().loaded()

    # --- The running engine

    def collective_rpc(
        self, method: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """Call one of `rpc.RPC_METHODS` by name on every worker, between two steps. Returns the results in
        the order of ranks, replica after replica; see `Runner.collective_rpc`.

        One that changes weights waits for running requests and ends the life of cached prefixes, see
        `reload_weights`.
        """
        return self._client.control.collective_rpc(method, args, kwargs)

    def update_config(self, overrides: Mapping[str, Mapping[str, Any]]) -> None:
        """Change fields of the configuration: {section: {field: value}}, as vLLM has it.

        Only `load_config.load_format` may change: with it, an engine that began with random weights reads
        the model's at the next `reload_weights`. Raises ConfigError that names section and field.
        """
        self._client.control.update_config(overrides)

    def reload_weights(self, path: str | os.PathLike[str] | None = None) -> None:
        """Read the weights again, from the directory `path` or (None) from the model's own, in place.

        Waits until the requests submitted before are finished, so that each has one version of the weights;
        those submitted after wait for it. Cached prefixes of the old weights are not used again. Raises
        ConfigError that names the tensor which is missing or has another shape; the old weights then serve
        on.
        """
        self._client.control.reload_weights(path)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Overwrite the given tensors of the model in place, and wait as `reload_weights` does.

        weights: (name as in the model's checkpoint, tensor), all or some. Raises InvalidRequestError that
        names the tensor which is unknown, given twice, or of another shape or type; nothing is written then.
        """
        self._client.control.load_weights(weights)

    def apply_sparse_weight_patches(self, patches: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Overwrite single elements in place, and wait as `reload_weights` does. The same as to patch the
        checkpoint and to reload it.

        patches: {name as in the model's checkpoint: (flat indices [n] int64 or int32, values [n])}. Raises
        InvalidRequestError that names the tensor and what is wrong; nothing is written then.
        """
        self._client.control.apply_sparse_weight_patches(patches)

    def sleep(self, level: int = 1) -> None:
        """Wait for the requests submitted before, then give back the memory of weights, KV cache and graphs.

        level: 1 keeps the weights in host memory (on a CPU they stay where they are); 2 drops them, and after
        `wake_up` they must be loaded by `reload_weights` or `load_weights`. Until then, new requests are
        refused with EngineAsleepError.
        """
        self._client.control.sleep(level)

    def wake_up(self, tags: Collection[str] | None = None) -> None:
        """Take the memory again of "weights", "kv_cache", or both (None), and capture graphs once all is
        here. Does nothing where the engine is awake."""
        self._client.control.wake_up(tags)

    def is_sleeping(self) -> bool:
        """Whether requests are refused: after `sleep`, until all of it is back."""
        return self._client.control.is_sleeping

    def draft_stats(self) -> DraftStats:
        """Counts of speculative decoding since the start, over all requests."""
        return DraftStats.total(self._client.call_all(lambda _, scheduler: scheduler.draft_stats.copy()))

    def shutdown(self) -> None:
        """End the engine and release the model. Waiting callers get EngineDeadError. Idempotent."""
        self._client.shutdown()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def __repr__(self) -> str:
        return f"LLM({self.config.model_config.model!r}, runner={self.verdict.runner!r})"

    def _generate(
        self,
        prompts: Sequence[PromptLike | RefusedPrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool | None,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None,
    ) -> list[RequestOutput]:
        events: SimpleQueue[Event] = SimpleQueue()
        with ended_by_ctrl_c(self._client):
            submission = self._client.submit(prompts, sampling_params, events.put, lora_request=lora_request)
            return self._collect(prompts, submission, events, use_tqdm)

    def _collect(
        self,
        prompts: Sequence[PromptLike | RefusedPrompt],
        submission: Submission,
        events: SimpleQueue[Event],
        use_tqdm: bool | None,
    ) -> list[RequestOutput]:
        """Wait for all outputs, in the prompts' order. After an error nothing goes on."""
        running = {
            assembler.request_id: (index, assembler) for index, assembler in submission.admitted.items()
        }
        sequences: dict[str, list[CompletionOutput]] = {request_id: [] for request_id in running}

        def take(progress: Progress) -> tuple[int, RequestOutput] | None:
            index, assembler = running[progress.request_id]
            outputs = sequences[progress.request_id]
            outputs.append(assembler.add(progress))
            if not assembler.finished:
                return None
            outputs.sort(key=lambda output: output.index)
            return index, assembler.output(outputs)

        refused = {
            index: _refused_output(prompts[index], reason, "") for index, reason in submission.refused.items()
        }
        return wait_for_outputs(self._client, events, running, take, refused, use_tqdm=use_tqdm)


def _refused_output(prompt: PromptLike | RefusedPrompt, reason: str, request_id: str) -> RequestOutput:
    """The output of a prompt that was not admitted."""
    refused = CompletionOutput(
        index=0, text="", token_ids=[], cumulative_logprob=None, logprobs=None, finish_reason="error"
    )
    return RequestOutput(
        request_id=request_id,
        prompt=prompt if isinstance(prompt, str) else None,
        prompt_token_ids=[],
        prompt_logprobs=None,
        outputs=[refused],
        finished=True,
        error=reason,
    )
