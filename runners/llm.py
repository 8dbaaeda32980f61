"""`LLM`: a model directory goes in, the verdict builds the runner, prompts become tokens."""

from __future__ import annotations

import contextlib
import itertools
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decision_log import select_and_log
from dodona.oracle.errors import ConfigError
from dodona.oracle.models.hub import resolve_model
from dodona.oracle.models.model_info import ModelInfo
from dodona.runners.engine.admission import Admission
from dodona.runners.engine.assembler import OutputAssembler
from dodona.runners.engine.engine import Engine
from dodona.runners.engine.events import Event
from dodona.runners.engine.prompts import PromptLike, as_prompt_list, parse_prompt
from dodona.runners.engine.request import Request
from dodona.runners.engine.scheduler import Scheduler
from dodona.runners.errors import InvalidRequestError
from dodona.runners.interface import Runner
from dodona.runners.limits import KVSize
from dodona.runners.outputs import CompletionOutput, RequestOutput
from dodona.runners.sampling.generation_defaults import GenerationDefaults
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.startup import start
from dodona.runners.stream import OutputStream
from dodona.runners.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from dodona.oracle.decide.verdict import Verdict

PROGRESS_BAR_DELAY = 2.0
"""Seconds that work must last before a progress bar shows by default."""
_REDRAW_AFTER = 0.5
"""Seconds without news after which the bar is drawn anew: the first prompts may take long."""

CHANGE_WEIGHTS = frozenset({"reload_weights"})
"""Methods of a runner after which KV that was computed before is of no use."""


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
        verdict = _verdict or select_and_log(EngineConfig.from_flat(os.fspath(model), **arguments))
        self.verdict = verdict
        """Why this runner runs."""
        model_config = verdict.config.model_config
        directory = resolve_model(model_config.model, revision=model_config.revision)
        info = ModelInfo.load(directory)
        self._tokenizer = load_tokenizer(verdict.config, directory)
        eos = info.eos_token_ids
        if not eos and self._tokenizer is not None and self._tokenizer.eos_token_id is not None:
            eos = (self._tokenizer.eos_token_id,)
        self._defaults = GenerationDefaults.load(verdict.config, directory, eos)

        sizes: list[KVSize] = []

        def start_runner() -> tuple[Runner, Scheduler]:
            runner, scheduler, size = start(verdict, info)
            sizes.append(size)
            return runner, scheduler

        self._engine = Engine(start_runner)
        self._finalizer = weakref.finalize(self, self._engine.shutdown)
        try:
            self._engine.wait_until_ready()
        except BaseException:
            self.shutdown()
            raise
        self.max_model_len = sizes[0].max_model_len
        """Most tokens of prompt and output together."""
        self.num_kv_blocks = sizes[0].num_blocks
        request_features, self._max_num_batched_tokens = self._engine.call(
            lambda runner, scheduler: (runner.request_features, scheduler.max_num_batched_tokens)
        )
        self._admission = Admission(
            vocab_size=_vocab_size(info.vocab_size, self._tokenizer),
            max_model_len=self.max_model_len,
            max_logprobs=model_config.max_logprobs,
            seed=model_config.seed,
            eos_token_ids=self._defaults.eos_token_ids,
            tokenizer=self._tokenizer,
            request_features=request_features,
        )
        self._stream_numbers = itertools.count()

    @classmethod
    def from_verdict(cls, verdict: Verdict) -> LLM:
        """The model of a verdict that was reached before; nothing is decided anew."""
        return cls(verdict.config.model_config.model, _verdict=verdict)

    # --- What it is

    @property
    def config(self) -> EngineConfig:
        """The configuration, as the verdict carries it."""
        return self.verdict.config

    def get_tokenizer(self) -> Any | None:
        """transformers' tokenizer; None where there is none."""
        return self._tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What a call without sampling parameters uses: generation_config.json's, else the usual ones."""
        return self._defaults.sampling_params

    # --- Generating

    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | None = None,
    ) -> list[RequestOutput]:
        """Generate for each prompt; returns the outputs in the prompts' order.

        prompts: text, token ids, ``{"prompt": text}`` or ``{"prompt_token_ids": ids}``, or a list of these.
        sampling_params: one for all, or one per prompt; None uses `get_default_sampling_params()`.
        use_tqdm: show a progress bar; None shows it after two seconds where stderr is a terminal.

        A prompt that can't be served has its reason in `.error` and the finish reason "error"; the others
        go on. Ctrl-C ends the engine.
        """
        prompt_list = as_prompt_list(prompts)
        params_list = self._params_list(sampling_params, len(prompt_list))
        try:
            return self._generate(prompt_list, params_list, use_tqdm)
        except KeyboardInterrupt as interrupt:
            self._engine.shutdown(interrupt)
            raise

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | None = None,
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """`generate` for a conversation (a list of messages with "role" and "content"), or for several.

        Raises InvalidRequestError where there is no tokenizer or no chat template, or for what the template
        can't take.
        """
        if self._tokenizer is None:
            raise InvalidRequestError("chat needs a tokenizer, and there is none; give token ids to generate")
        if chat_template is None and not getattr(self._tokenizer, "chat_template", None):
            raise InvalidRequestError("the tokenizer has no chat template; give one by chat_template=")
        single = bool(messages) and isinstance(messages[0], Mapping)
        prompts = []
        for conversation in [messages] if single else messages:
            if isinstance(conversation, str) or not all(isinstance(m, Mapping) for m in conversation):
                raise InvalidRequestError(
                    'a conversation is a list of messages such as {"role": "user", "content": "text"}, '
                    f"got {conversation!r:.80}"
                )
            try:
                text = self._tokenizer.apply_chat_template(
                    conversation,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    chat_template=chat_template,
                    **(chat_template_kwargs or {}),
                )
            except Exception as error:  # a template is a program, and may raise anything
                raise InvalidRequestError(
                    f"the chat template refuses {conversation!r:.80}: {error}"
                ) from error
            # The template has put the special tokens in.
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            prompts.append({"prompt": text, "prompt_token_ids": ids})
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def stream(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        request_id: str | Sequence[str] | None = None,
    ) -> OutputStream:
        """Generate for one prompt, or for several, token by token. Closing the iterator aborts what is left.

        prompts, sampling_params: as for `generate`.
        request_id: the request's id, or a list of them for a list of prompts; None makes one up for each.

        Each item is a RequestOutput that holds what is new of one request: of each sequence with news its
        new text, token ids and log-probabilities. Text that may yet turn out to be part of a stop string is
        held back. A request's last item has `finished`. Items of several requests come as they are made,
        those of each in order; `request_id` says which one an item is of, and the stream's `request_ids`
        are in the prompts' order.

        Raises InvalidRequestError for a prompt that can't be served, and for a request id that is in use by
        an unfinished request. In a list of prompts, a prompt that can't be served has one item with its
        reason in `.error` and the finish reason "error", before all others, which go on.
        """
        one = _is_one(prompts)
        prompt_list: list[Any] = [prompts] if one else list(prompts)
        params_list = self._params_list(sampling_params, len(prompt_list))
        ids = self._request_ids(request_id, len(prompt_list))
        events: SimpleQueue[Event] = SimpleQueue()
        assemblers, refused = self._submit(
            prompt_list, params_list, events, request_ids=ids, streaming=True, strict=one
        )
        return OutputStream(
            self._engine,
            events,
            {key: assembler for key, (_, assembler) in assemblers.items()},
            request_ids=ids,
            refused=refused.values(),
            keep_alive=self,
        )

    def abort(self, request_id: str) -> None:
        """End a request with what it has so far; its finish reason is "abort". Unknown ids are left alone."""
        self._engine.abort(request_id)

    # --- Runner and life

    def collective_rpc(
        self, method: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """Call a method of the runner by name, between two steps. Returns one result per worker.

        One that changes weights waits for running requests and ends the life of cached prefixes, see
        `reload_weights`.
        """

        def call(runner: Runner, scheduler: Scheduler) -> Any:
            try:
                return getattr(runner, method)(*args, **(kwargs or {}))
            finally:
                if method in CHANGE_WEIGHTS:
                    scheduler.new_weights()

        return [self._engine.call(call, alone=method in CHANGE_WEIGHTS)]

    def reload_weights(self) -> None:
        """Read the weights again from the model directory.

        Waits until the requests submitted before are finished, so that each has one version of the weights;
        those submitted after wait for it. Cached prefixes of the old weights are not used again.
        """
        self.collective_rpc("reload_weights")

    def shutdown(self) -> None:
        """End the engine and release the model. Waiting callers get EngineDeadError. Idempotent."""
        self._finalizer.detach()
        self._engine.shutdown()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def __repr__(self) -> str:
        return f"LLM({self.config.model_config.model!r}, runner={self.verdict.runner!r})"

    # --- How generate does it

    def _generate(
        self, prompts: list[PromptLike], params_list: list[SamplingParams], use_tqdm: bool | None
    ) -> list[RequestOutput]:
        events: SimpleQueue[Event] = SimpleQueue()
        waiting, results = self._submit(prompts, params_list, events)
        sequences: dict[str, list[CompletionOutput]] = {request_id: [] for request_id in waiting}
        try:
            with _progress_bar(len(prompts), use_tqdm) as bar:
                bar.update(len(results))
                while waiting:
                    try:
                        progress = events.get(timeout=_REDRAW_AFTER)
                    except Empty:
                        bar.update(0)
                        continue
                    if progress is None:
                        raise self._engine.dead_error()
                    request_id = progress.request.parent_id
                    index, assembler = waiting[request_id]
                    outputs = sequences[request_id]
                    outputs.append(assembler.add(progress))
                    if assembler.finished:
                        outputs.sort(key=lambda output: output.index)
                        results[index] = assembler.output(outputs)
                        del waiting[request_id]
                        bar.update(1)
        except BaseException:
            self._engine.abort(*waiting)
            raise
        return [results[index] for index in range(len(prompts))]

    def _submit(
        self,
        prompts: Sequence[PromptLike],
        params_list: Sequence[SamplingParams],
        events: SimpleQueue[Event],
        *,
        request_ids: Sequence[str | None] | None = None,
        streaming: bool = False,
        strict: bool = False,
    ) -> tuple[dict[str, tuple[int, OutputAssembler]], dict[int, RequestOutput]]:
        """Hand the prompts over to the engine; their news come to `events`.

        Returns each one's index and assembler by request id, and by index the outputs of those that were
        refused, which `strict` raises instead. After an error nothing goes on.
        """
        admitted: dict[str, tuple[int, OutputAssembler]] = {}
        refused: dict[int, RequestOutput] = {}
        begun: list[str] = []
        batch: list[Request] = []
        num_tokens = 0
        ids = request_ids or [None] * len(prompts)
        try:
            for index, (prompt, params, given_id) in enumerate(zip(prompts, params_list, ids, strict=True)):
                try:
                    parsed = parse_prompt(prompt)
                    requests = self._admission.admit(parsed, params, given_id)
                except InvalidRequestError as error:
                    if strict:
                        raise
                    refused[index] = _refused(prompt, error, given_id)
                    continue
                for request in requests:
                    request.events = events
                    request.streaming = streaming
                assembler = OutputAssembler(parsed.text, requests, self._admission.detokenizer)
                admitted[requests[0].parent_id] = (index, assembler)
                batch += requests
                num_tokens += sum(request.num_prompt_tokens for request in requests)
                # The engine begins with as much as fills a step, while the others are still looked at.
                if num_tokens >= self._max_num_batched_tokens:
                    self._engine.submit(batch)
                    begun = list(admitted)
                    batch, num_tokens = [], 0
            self._engine.submit(batch)
        except BaseException:
            self._engine.abort(*begun)  # not all: an id may be refused because it is somebody else's
            raise
        return admitted, refused

    def _request_ids(self, given: str | Sequence[str] | None, count: int) -> list[str]:
        """A stream's request ids: those given, if each of its prompts has its own, or new ones."""
        if given is None:
            number = next(self._stream_numbers)
            return [f"stream-{number}-{index}" for index in range(count)]
        ids = [given] if isinstance(given, str) else list(given)
        if len(ids) != count or len(set(ids)) != count or not all(isinstance(each, str) for each in ids):
            raise InvalidRequestError(
                f"request_id must be text, different for each of {count} prompts; got {given!r:.80}"
            )
        return ids

    def _params_list(
        self, params: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> list[SamplingParams]:
        if params is None:
            params = self._defaults.sampling_params
        if isinstance(params, SamplingParams):
            return [params] * count
        several = isinstance(params, Iterable) and not isinstance(params, (str, Mapping))
        listed: list[Any] = list(params) if several else [params]
        for given in listed:
            if not isinstance(given, SamplingParams):
                raise InvalidRequestError(
                    f"sampling_params must be SamplingParams, or one for each prompt; got {given!r:.80}"
                )
        if len(listed) != count:
            raise InvalidRequestError(
                f"{len(listed)} sampling_params for {count} prompts; give one, or one for each"
            )
        return listed


def _is_one(prompts: PromptLike | Sequence[PromptLike]) -> bool:
    """Whether this is one prompt, be it one that can't be served, rather than a list of prompts."""
    if isinstance(prompts, (str, Mapping)) or not isinstance(prompts, Sequence) or not len(prompts):
        return True
    first: Any = prompts[0]
    return as_prompt_list([first])[0] is not first  # the integers of one prompt come back in a list


def _refused(prompt: PromptLike, error: InvalidRequestError, request_id: str | None) -> RequestOutput:
    """The output of a prompt that was not admitted."""
    text = prompt if isinstance(prompt, str) else None
    refused = CompletionOutput(
        index=0, text="", token_ids=[], cumulative_logprob=None, logprobs=None, finish_reason="error"
    )
    return RequestOutput(
        request_id=request_id or "",
        prompt=text,
        prompt_token_ids=[],
        prompt_logprobs=None,
        outputs=[refused],
        finished=True,
        error=str(error),
    )


def _vocab_size(vocab_size: int | None, tokenizer: Any) -> int:
    if vocab_size is not None:
        return vocab_size
    if tokenizer is None:
        raise ConfigError("config.json has no vocab_size, and there is no tokenizer to count tokens of")
    return len(tokenizer)


def _progress_bar(total: int, use_tqdm: bool | None) -> Any:
    """A tqdm bar over prompts, or something with the same `update` that shows nothing."""
    if use_tqdm is False:
        return contextlib.nullcontext(_NoBar())
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    shown = {"delay": PROGRESS_BAR_DELAY, "disable": None} if use_tqdm is None else {}
    return tqdm(total=total, desc="Generating", unit="prompt", dynamic_ncols=True, **shown)


class _NoBar:
    def update(self, count: int) -> None:
        """Show nothing."""
