"""Makes requests of a prompt and its parameters, or says why they can't be served. Runs in the caller's
thread."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dodona.oracle.printable import short
from dodona.runners.engine.events import Sink, discard
from dodona.runners.engine.grammar import Grammar, GrammarCompiler
from dodona.runners.engine.prompts import Prompt
from dodona.runners.engine.request import Request
from dodona.runners.errors import InvalidRequestError
from dodona.runners.interface import RESERVED_REQUEST_ID_PREFIX
from dodona.runners.pooling.params import PoolingInput, PoolingParams
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.sampling.structured_outputs import StructuredOutputsParams
from dodona.runners.text.detokenizer import Detokenizer, IncrementalText
from dodona.runners.text.stop_strings import StopStringText
from dodona.runners.third_party import first_line, is_third_party

LONGEST_TOKEN = 512
"""Characters of a token where a tokenizer doesn't list its vocabulary."""

LONGEST_TOKEN_SLACK = 4
"""A tokenizer may shorten text before it makes tokens, for instance by composing characters: a text may have
this many times the characters of the most tokens at their longest."""

MAX_PROMPT_COPIES = 1 << 26
"""Most prompt tokens of one prompt's sequences together: each has a list of its own."""

MAX_CUT_CHARACTERS = 1 << 20
"""Longest text that is cut to `truncate_prompt_tokens`: a tokenizer makes all tokens before it cuts."""

MAX_ID_LENGTH = 256
"""Longest request id that a caller may give."""

if TYPE_CHECKING:
    from dodona.oracle.systems.own.pooler import PoolingSettings
    from dodona.runners.lora.adapter import Adapter

_NO_SAMPLING = SamplingParams(temperature=0.0, max_tokens=1)
"""Parameters of a request whose prompt is pooled: nothing is sampled."""

_MASK_63 = (1 << 63) - 1


AUTOMATIC_ID_PREFIX = "auto-"


def new_request_id() -> str:
    """An id that nobody can guess, and that no caller may give."""
    return f"{AUTOMATIC_ID_PREFIX}{uuid.uuid4().hex}"


def check_request_id(request_id: object) -> str:
    """A request id that a caller gives. Raises InvalidRequestError where it is none, or reserved."""
    if not isinstance(request_id, str) or not 0 < len(request_id) <= MAX_ID_LENGTH:
        raise InvalidRequestError(
            f"request_id must be text of 1 to {MAX_ID_LENGTH} characters, got {short(request_id)}"
        )
    for prefix in (AUTOMATIC_ID_PREFIX, RESERVED_REQUEST_ID_PREFIX):
        if request_id.startswith(prefix):
            raise InvalidRequestError(
                f"request id {short(request_id)}: ids that begin with {prefix!r} are reserved"
            )
    return request_id


class Admission:
    """Checks prompts and parameters against what the model and the engine can do. Thread-safe."""

    def __init__(
        self,
        *,
        vocab_size: int,
        max_model_len: int,
        max_logprobs: int,
        seed: int,
        eos_token_ids: Iterable[int] = (),
        tokenizer: Any = None,
        request_features: frozenset[str] = frozenset(),
    ) -> None:
        self.vocab_size = vocab_size
        self.max_model_len = max_model_len
        self.max_logprobs = max_logprobs
        self.seed = seed
        self.eos_token_ids = frozenset(token_id for token_id in eos_token_ids if token_id < vocab_size)
        """Those that the model can generate."""
        self.tokenizer = tokenizer
        self.longest_token = 1 if tokenizer is None else longest_token(tokenizer)
        """Characters of the vocabulary's longest token."""
        self.detokenizer = None if tokenizer is None else Detokenizer(tokenizer)
        self.request_features = request_features
        self._grammars = GrammarCompiler(tokenizer, vocab_size, self.eos_token_ids)
        self._counter = itertools.count()

    def admit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        request_id: str | None = None,
        *,
        adapter: Adapter | None = None,
        sink: Sink = discard,
        streaming: bool = False,
    ) -> list[Request]:
        """The `params.n` requests for a prompt, whose news will go to `sink`, token by token if `streaming`.
        Without a request id, they get one that no other prompt has. `adapter` is what changes the model for
        them.

        Raises InvalidRequestError that says what can't be served.
        """
        number = next(self._counter)
        if request_id is None:
            request_id = new_request_id()
        elif not isinstance(request_id, str) or not request_id.startswith(AUTOMATIC_ID_PREFIX):
            check_request_id(request_id)
        token_ids = self._token_ids(prompt)
        self._check_params(params)
        if params.n * len(token_ids) > MAX_PROMPT_COPIES:
            raise InvalidRequestError(
                f"n={params.n} sequences of a prompt of {len(token_ids)} tokens are more than "
                f"{MAX_PROMPT_COPIES} tokens; ask for fewer at a time"
            )
        room = self.max_model_len - len(token_ids)
        limit = len(token_ids) + (room if params.max_tokens is None else min(room, params.max_tokens))
        seed = derive_seed(self.seed, number) if params.seed is None else params.seed
        bad_words = self._bad_words(params)
        # Only the first sequence brings the prompt's log-probabilities: the others may use the prefix cache.
        others = params if params.prompt_logprobs is None else params.replace(prompt_logprobs=None)
        return [
            Request(
                request_id if params.n == 1 else f"{request_id}/{index}",
                token_ids,
                params if index == 0 else others,
                seed=(seed + index) & _MASK_63,
                limit=limit,
                eos_token_ids=self.eos_token_ids,
                bad_words_token_ids=bad_words,
                stop_text=self._stop_text(token_ids, params),
                grammar=self._grammar(params),
                adapter=adapter,
                parent_id=request_id,
                index=index,
                sink=sink,
                streaming=streaming,
            )
            for index in range(params.n)
        ]

    def admit_pooling(
        self,
        prompt: Prompt,
        pair: Prompt | None,
        params: PoolingParams,
        settings: PoolingSettings,
        sink: Sink,
        adapter: Adapter | None = None,
    ) -> Request:
        """The request of a prompt for a pooling model, or of a pair of texts.

        `adapter` is what changes the model for it.

        Raises InvalidRequestError that says what can't be served.
        """
        if params.dimensions is not None:
            self._check_dimensions(params.dimensions, settings)
        token_ids, token_type_ids = self._pooling_tokens(prompt, pair, params, settings)
        self._check_token_ids("prompt", (min(token_ids), max(token_ids)))
        return Request(
            new_request_id(),
            token_ids,
            _NO_SAMPLING,
            seed=0,
            limit=len(token_ids) + 1,
            pooling=PoolingInput(params, token_type_ids),
            adapter=adapter,
            sink=sink,
        )

    def _check_dimensions(self, dimensions: int, settings: PoolingSettings) -> None:
        allowed = settings.matryoshka_dimensions
        if settings.task != "embed":
            raise InvalidRequestError("dimensions: the model classifies; only embeddings can be shortened")
        if allowed is None:
            raise InvalidRequestError(
                "dimensions: config.json doesn't say that the model's embeddings can be shortened "
                "(is_matryoshka, matryoshka_dimensions); set pooler_config.dimensions to shorten all"
            )
        if allowed and dimensions not in allowed:
            raise InvalidRequestError(
                f"dimensions={dimensions}: the model has {', '.join(map(str, allowed))}"
            )

    def _pooling_tokens(
        self, prompt: Prompt, pair: Prompt | None, params: PoolingParams, settings: PoolingSettings
    ) -> tuple[list[int], tuple[int, ...] | None]:
        """Token ids, and their segments where there are two."""
        most = params.truncate_prompt_tokens
        if prompt.token_ids is not None:
            if pair is not None or most is not None:
                what = "a pair" if pair is not None else "truncate_prompt_tokens"
                raise InvalidRequestError(f"{what} needs texts, and the prompt is token ids")
            token_ids, segments = prompt.token_ids, None
        else:
            self._require_tokenizer()
            texts = [given.text or "" for given in (prompt, pair) if given is not None]
            if settings.do_lower_case:
                texts = [text.lower() for text in texts]
            options: dict[str, Any] = {}
            if most is not None:
                longest = self.max_model_len
                _check_cut(texts)
                options = {"truncation": True, "max_length": longest if most < 0 else min(most, longest)}
            else:
                self.check_length("".join(texts))
            encoded = self._encode("the prompt", *texts, **options)
            token_ids, segments = list(encoded["input_ids"]), encoded.get("token_type_ids")
        if not token_ids:
            raise InvalidRequestError("the prompt is empty; it must have at least one token")
        if len(token_ids) > self.max_model_len:
            raise InvalidRequestError(
                f"the prompt has {len(token_ids)} tokens, which is over max_model_len={self.max_model_len}; "
                "shorten it, set truncate_prompt_tokens, or raise max_model_len"
            )
        return token_ids, tuple(segments) if segments is not None and any(segments) else None

    def _require_tokenizer(self) -> None:
        if self.tokenizer is None:
            raise InvalidRequestError(
                "a text prompt needs a tokenizer, and there is none (no tokenizer files, or "
                "skip_tokenizer_init=True); give token ids"
            )

    def _token_ids(self, prompt: Prompt) -> list[int]:
        token_ids = prompt.token_ids
        if token_ids is None:
            self._require_tokenizer()
            self.check_length(prompt.text or "")
            token_ids = self._tokenize("the prompt", prompt.text)
        if not token_ids:
            raise InvalidRequestError("the prompt is empty; it must have at least one token")
        if len(token_ids) >= self.max_model_len:
            raise InvalidRequestError(
                f"the prompt has {len(token_ids)} tokens, and with at least one more to generate that is "
                f"over max_model_len={self.max_model_len}; shorten it or raise max_model_len"
            )
        self._check_token_ids("prompt", (min(token_ids), max(token_ids)))
        return token_ids

    def _tokenize(self, name: str, text: Any, **options: Any) -> list[int]:
        return list(self._encode(name, text, **options)["input_ids"])

    def _encode(self, name: str, *texts: Any, **options: Any) -> Any:
        """The tokenizer's encoding of a text, or of a pair of texts."""
        try:
            return self.tokenizer(*texts, **options)
        except BaseException as error:
            if not is_third_party(error):
                raise
            raise InvalidRequestError(
                f"{name}: the tokenizer can't take {short(texts[0])}: {first_line(error)}"
            ) from error

    def check_length(self, text: str) -> None:
        """Refuse a text that is certainly too long, before the work of tokenizing it."""
        most = self.max_model_len * self.longest_token * LONGEST_TOKEN_SLACK
        if len(text) > most:
            raise InvalidRequestError(
                f"the prompt has {len(text)} characters, more than {most}, which max_model_len="
                f"{self.max_model_len} tokens can't hold; shorten it or raise max_model_len"
            )

    def _check_params(self, params: SamplingParams) -> None:
        for name, value in (("logprobs", params.logprobs), ("prompt_logprobs", params.prompt_logprobs)):
            if value is not None and value > self.max_logprobs:
                raise InvalidRequestError(
                    f"{name}={value} is over max_logprobs={self.max_logprobs}; ask for fewer or raise it"
                )
        if params.logprob_token_ids is not None and len(params.logprob_token_ids) > self.max_logprobs:
            raise InvalidRequestError(
                f"logprob_token_ids holds {len(params.logprob_token_ids)} ids, which is over "
                f"max_logprobs={self.max_logprobs}; ask for fewer or raise it"
            )
        self._check_token_ids("logprob_token_ids", params.logprob_token_ids or ())
        self._check_token_ids("stop_token_ids", params.stop_token_ids or ())
        self._check_token_ids("allowed_token_ids", params.allowed_token_ids or ())
        self._check_token_ids("logit_bias", params.logit_bias or ())
        for name, feature in (
            ("structured_outputs", "structured-outputs"),
            ("logits_processors", "logits-processors"),
        ):
            if getattr(params, name) is not None and feature not in self.request_features:
                raise InvalidRequestError(f"{name}: the runner does not support {feature}")
        for name in ("stop", "bad_words"):
            if getattr(params, name) and self.tokenizer is None:
                raise InvalidRequestError(f"{name} holds text, which needs a tokenizer, and there is none")

    def _check_token_ids(self, name: str, token_ids: Iterable[int]) -> None:
        for token_id in token_ids:
            if not 0 <= token_id < self.vocab_size:
                raise InvalidRequestError(
                    f"{name}: token id {token_id} is out of the vocabulary (0 .. {self.vocab_size - 1})"
                )

    def _bad_words(self, params: SamplingParams) -> tuple[tuple[int, ...], ...]:
        """Each bad word's tokens, with and without a space before it."""
        found: dict[tuple[int, ...], None] = {}
        for word in params.bad_words or ():
            for text in (word.lstrip(), " " + word.lstrip()):
                ids = tuple(self._tokenize("bad_words", text, add_special_tokens=False))
                if ids:
                    found[ids] = None
        return tuple(found)

    def _grammar(self, params: SamplingParams) -> Grammar | None:
        asked = params.structured_outputs
        return self._grammars.grammar(asked) if isinstance(asked, StructuredOutputsParams) else None

    def _stop_text(self, prompt_token_ids: list[int], params: SamplingParams) -> StopStringText | None:
        if not params.stop or self.detokenizer is None:
            return None
        text = IncrementalText(
            self.detokenizer,
            prompt_token_ids,
            skip_special_tokens=params.skip_special_tokens,
            spaces_between_special_tokens=params.spaces_between_special_tokens,
        )
        return StopStringText(
            text,
            tuple(params.stop),
            include_stop_string=params.include_stop_str_in_output,
            min_tokens=params.min_tokens,
        )


def _check_cut(texts: Sequence[str]) -> None:
    length = sum(map(len, texts))
    if length > MAX_CUT_CHARACTERS:
        raise InvalidRequestError(
            f"the prompt has {length} characters, more than {MAX_CUT_CHARACTERS}: they are all tokenized "
            "before truncate_prompt_tokens cuts; cut the text"
        )


def longest_token(tokenizer: Any) -> int:
    """Characters of the longest token of a vocabulary, at least 1."""
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else ()
    return max(map(len, vocabulary), default=LONGEST_TOKEN)


def derive_seed(engine_seed: int, number: int) -> int:
    """A seed in [0, 2**63) for the `number`-th prompt, by two rounds of SplitMix64 (Steele, Lea and Flood,
    2014), so that the seeds of neighbours differ in all bits."""
    value = (engine_seed * 0x9E3779B97F4A7C15 + number) & (2**64 - 1)
    for _ in range(2):
        value = (value + 0x9E3779B97F4A7C15) & (2**64 - 1)
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        value ^= value >> 31
    return value & _MASK_63
