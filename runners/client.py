"""The engine's client: prompts and parameters go in, and each request's news come out by a sink.

`LLM` and its streams stand on this; so can a server, whose sinks call back into its event loop.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from dodona.oracle.printable import short
from dodona.runners.control import EngineControl
from dodona.runners.engine.admission import Admission, check_request_id, new_request_id
from dodona.runners.engine.assembler import OutputAssembler
from dodona.runners.engine.engine import Engine
from dodona.runners.engine.events import Sink
from dodona.runners.engine.prompts import PromptLike, RefusedPrompt, parse_prompt
from dodona.runners.engine.replicas import Replicas
from dodona.runners.engine.request import Request
from dodona.runners.engine.scheduler import Scheduler
from dodona.runners.errors import EngineDeadError, InvalidRequestError, WrongTaskError
from dodona.runners.interface import Runner
from dodona.runners.limits import KVSize
from dodona.runners.lora.registry import AdapterRegistry
from dodona.runners.lora.request import LoRARequest
from dodona.runners.model_files import read_model_files
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.startup import start

if TYPE_CHECKING:
    from dodona.oracle.decide.verdict import Verdict
    from dodona.oracle.systems.own.pooler import PoolingSettings


@dataclass(frozen=True, slots=True)
class Submission:
    """What became of a list of prompts, by a prompt's index in the list: each is in one of the two."""

    admitted: Mapping[int, OutputAssembler]
    """Turns the news of the prompt's request into outputs."""
    refused: Mapping[int, str]
    """Why the prompt can't be served."""


class EngineClient:
    """An engine over a verdict's model and runner. All methods may be called from several threads at once.

    Everything that can be refused is refused in the caller's thread, before the engine's thread sees it. When
    the client is dropped, its engine is shut down. Once the engine has ended, methods raise EngineDeadError
    with the cause.
    """

    def __init__(self, verdict: Verdict) -> None:
        """Loads the tokenizer, and starts the engine in its thread; returns when it can take requests.

        Raises ConfigError, EngineSetupError, and what the runner raises.
        """
        config = verdict.config
        files = read_model_files(config)
        self.tokenizer: Any | None = files.tokenizer
        """transformers' tokenizer; None where there is none."""
        self.default_sampling_params = files.defaults.sampling_params
        """What prompts without sampling parameters get: generation_config.json's, else the usual ones."""

        count = config.parallel_config.data_parallel_size
        sizes: list[Future[KVSize]] = [Future() for _ in range(count)]
        given_up = threading.Event()
        loaded = [threading.Event() for _ in range(count)]

        def start_runner(replica: int) -> tuple[Runner, Scheduler]:
            runner, scheduler, kv_size = start(verdict, files.model, replica, given_up, loaded)
            sizes[replica].set_result(kv_size)
            return runner, scheduler

        starts = [partial(start_runner, replica) for replica in range(count)]
        self._engine = Engine(starts[0]) if count == 1 else Replicas(starts, give_up=given_up.set)
        self._finalizer = weakref.finalize(self, self._engine.shutdown)
        try:
            self._engine.wait_until_ready()
        except BaseException:  # Ctrl-C, too
            given_up.set()
            self.shutdown()
            raise
        self.max_model_len = min(size.result().max_model_len for size in sizes)
        """Most tokens of prompt and output together."""
        self.num_kv_blocks = sum(size.result().num_blocks for size in sizes)
        """Of all replicas together."""
        request_features, self.max_num_batched_tokens, current_config, settings = self.call(
            lambda runner, scheduler: (
                runner.request_features,
                scheduler.max_num_batched_tokens,
                runner.current_config,
                runner.pooling_settings,
            )
        )
        self.pooling_settings: PoolingSettings | None = settings
        """How the model is served for pooling; None where it generates."""
        self.control = EngineControl(self._engine, current_config)
        """Configuration, weights and sleep of the running engine."""
        self.admission = Admission(
            vocab_size=files.vocab_size,
            max_model_len=self.max_model_len,
            max_logprobs=config.model_config.max_logprobs,
            seed=config.model_config.seed,
            eos_token_ids=files.defaults.eos_token_ids,
            tokenizer=self.tokenizer,
            request_features=request_features,
        )
        self._adapters: AdapterRegistry | None = None
        if config.lora_config is not None:
            targets = self.call(lambda runner, scheduler: runner.get_lora_targets())
            self._adapters = AdapterRegistry(config.lora_config, targets)

    def submit(
        self,
        prompts: Sequence[PromptLike | RefusedPrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        sink: Sink,
        *,
        request_ids: Sequence[str] | None = None,
        streaming: bool = False,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
    ) -> Submission:
        """Hand prompts over to the engine, as many at a time as fill a step.

        sampling_params: one for all, or one per prompt; None is `default_sampling_params`.
        sink: takes their news, and None for each sequence that is unfinished when the engine ends. The first
            news may come before this returns.
        request_ids: one per prompt, all different, such as `request_ids` gives; None makes them up.
        streaming: news after each token, rather than once per sequence.
        lora_request: the adapter of all prompts, or one per prompt (None: without).

        Raises InvalidRequestError for `sampling_params` that don't fit the prompts, and for a request id that
        is in use; EngineDeadError. After an error none of the prompts goes on.
        """
        self.check_callable()
        if self.pooling_settings is not None:
            task = self.pooling_settings.task
            raise WrongTaskError(
                f"the model is served for pooling task {task!r} and generates nothing; use LLM.embed, "
                "LLM.classify, LLM.score or LLM.encode, or make the LLM with runner='generate'"
            )
        params_list = self._params_list(sampling_params, len(prompts))
        ids = [None] * len(prompts) if request_ids is None else request_ids
        lora_requests = per_prompt(lora_request, len(prompts))
        admitted: dict[int, OutputAssembler] = {}
        refused: dict[int, str] = {}
        submitted: list[str] = []
        batch: list[Request] = []
        num_tokens = 0
        try:
            for index, (prompt, params, given_id, lora) in enumerate(
                zip(prompts, params_list, ids, lora_requests, strict=True)
            ):
                try:
                    parsed = parse_prompt(prompt)
                    adapter = None if lora is None else self.adapters().get(lora)
                    requests = self.admission.admit(
                        parsed, params, given_id, adapter=adapter, sink=sink, streaming=streaming
                    )
                    assembler = OutputAssembler(parsed.text, requests, self.admission.detokenizer)
                except InvalidRequestError as error:
                    refused[index] = str(error)
                    continue
                admitted[index] = assembler
                batch += requests
                num_tokens += sum(request.num_prompt_tokens for request in requests)
                # The engine begins with as much as fills a step, while the others are still looked at.
                if num_tokens >= self.max_num_batched_tokens:
                    self._engine.submit(batch)
                    submitted = [each.request_id for each in admitted.values()]
                    batch, num_tokens = [], 0
            self._engine.submit(batch)
        except BaseException:
            self._engine.abort(*submitted)  # not all: an id may be refused because it is somebody else's
            raise
        return Submission(admitted, refused)

    def check_callable(self) -> None:
        """Raise EngineDeadError once the engine has ended, and EngineThreadError in its own thread.

        Callers do this first: in a forked child, locks of tokenizers, grammars and adapters may be held by a
        thread that only the parent has.
        """
        self._engine.check_callable()

    def submit_requests(self, requests: Sequence[Request]) -> None:
        """Hand over requests that `admission` made; see `Engine.submit`."""
        self._engine.submit(requests)

    def adapters(self) -> AdapterRegistry:
        """The adapters that requests can use. Raises InvalidRequestError without `enable_lora`."""
        self.check_callable()
        if self._adapters is None:
            raise InvalidRequestError("lora_request: adapters are off; make the LLM with enable_lora=True")
        return self._adapters

    def abort(self, *request_ids: str) -> None:
        """End requests with the tokens that they have; their finish reason is "abort". Ignores ids that are
        unknown, and those of finished requests."""
        self._engine.abort(*request_ids)

    def call(self, function: Callable[[Runner, Scheduler], Any], *, drain: bool = False) -> Any:
        """Run `function(runner, scheduler)` in the engine's thread between two steps; see `Engine.call`.

        Of several replicas, which all run it, the first one's result.
        """
        return self.call_all(function, drain=drain)[0]

    def call_all(self, function: Callable[[Runner, Scheduler], Any], *, drain: bool = False) -> list[Any]:
        """`call`, with the results of all replicas; see `Replicas.call_all`."""
        return self._engine.call_all(function, drain=drain)

    def shutdown(self, cause: BaseException | None = None) -> None:
        """End the engine and release the model. Waiting callers get EngineDeadError. Idempotent."""
        self._finalizer.detach()
        self._engine.shutdown(cause)

    def dead_error(self) -> EngineDeadError:
        """The error for who was told None by its sink."""
        return self._engine.dead_error()

    def request_ids(self, given: str | Sequence[str] | None, count: int) -> list[str]:
        """Ids for `count` prompts: those given, or new ones.

        Raises InvalidRequestError unless each prompt has its own.
        """
        if given is None:
            return [new_request_id() for _ in range(count)]
        ids = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
        if len(ids) != count:
            raise InvalidRequestError(f"{len(ids)} request ids for {count} prompts; give one for each")
        checked = [check_request_id(each) for each in ids]
        if len(set(checked)) != count:
            raise InvalidRequestError(f"request ids must differ from one another, got {short(given)}")
        return checked

    def _params_list(
        self, params: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> list[SamplingParams]:
        if params is None:
            params = self.default_sampling_params
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


def per_prompt(
    given: LoRARequest | Sequence[LoRARequest | None] | None, count: int
) -> Sequence[LoRARequest | None]:
    """One adapter or None for each prompt. Raises InvalidRequestError for a list of another length."""
    if given is None or isinstance(given, LoRARequest):
        return [given] * count
    if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence):
        raise InvalidRequestError(f"lora_request: expected a LoRARequest, got {given!r:.80}")
    if len(given) != count:
        raise InvalidRequestError(
            f"{len(given)} lora_requests for {count} prompts; give one, or one for each"
        )
    return given
