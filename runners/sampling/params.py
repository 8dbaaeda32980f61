"""A request's parameters of sampling and stopping, in vLLM's names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dodona.oracle.config.sampling_bounds import bounds_fault
from dodona.oracle.printable import short
from dodona.runners.errors import InvalidRequestError
from dodona.runners.sampling.structured_outputs import StructuredOutputsParams

GREEDY_BELOW = 1e-5
"""A temperature below this means greedy decoding."""

LOGIT_BIAS_LIMIT = 100.0
"""Logit biases are clamped to ± this, as in the OpenAI API."""


MAX_N = 16_384
"""Most sequences of one prompt."""

MAX_TEXTS, MAX_TEXT_CHARACTERS = 1_000, 1 << 16
"""Most stop strings or bad words, and most characters of all of them: each is looked for after each token."""


_ALWAYS_CHECKED = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "min_tokens",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to sample one request's tokens, and when to stop. Immutable; values are checked and made canonical.

    Raises InvalidRequestError, naming the parameter, for a value out of range.

    >>> SamplingParams(temperature=0.0, stop="\\n").stop
    ('\\n',)
    """

    n: int = 1
    """Sequences to sample for the prompt; sequence i is seeded with seed + i."""
    temperature: float = 1.0
    """0 (or below 1e-5) is greedy decoding."""
    top_p: float = 1.0
    """Keep the most probable tokens whose probabilities sum up to this, in (0, 1]."""
    top_k: int = 0
    """Keep this many most probable tokens; 0 or -1 keeps all (stored as 0)."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as probable as the most probable one, in [0, 1]."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of each token that was generated before, in [-2, 2]."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once for each time it was generated before, in [-2, 2]."""
    repetition_penalty: float = 1.0
    """Divides positive, multiplies negative logits of tokens in the prompt or generated before; > 0."""
    seed: int | None = None
    """In [0, 2**63). None (or -1): derived from the engine's seed and the order of arrival."""
    stop: str | Sequence[str] | None = ()
    """Strings that end the output. Stored as a tuple."""
    stop_token_ids: Sequence[int] | None = ()
    """Token ids that end the output: the token is in `token_ids`, its text isn't shown. Stored as a tuple."""
    bad_words: Sequence[str] | None = ()
    """Words that may not be generated. Stored as a tuple."""
    ignore_eos: bool = False
    """Go on after the model's end-of-sequence tokens."""
    max_tokens: int | None = 16
    """Most tokens to generate; None: as many as max_model_len leaves room for."""
    min_tokens: int = 0
    """Tokens to generate before any stop token or stop string counts."""
    logprobs: int | None = None
    """Log-probabilities per generated token: of the token itself and of this many most probable ones."""
    prompt_logprobs: int | None = None
    """The same per prompt token."""
    logprob_token_ids: Sequence[int] | None = None
    """Log-probabilities of these tokens too, per generated token; also without `logprobs`. Stored as a
    tuple."""
    detokenize: bool = True
    """Whether to produce text; stop strings need it."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    spaces_between_special_tokens: bool = True
    """Put a space between neighbouring special tokens in the text (when they aren't skipped)."""
    include_stop_str_in_output: bool = False
    """Keep the stop string (or the stop token's text) at the end of the text."""
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    """Added to the logits, by token id; clamped to [-100, 100]."""
    allowed_token_ids: Sequence[int] | None = None
    """Only these tokens may be generated. Stored as a tuple."""
    structured_outputs: StructuredOutputsParams | Mapping[str, Any] | None = None
    """The form that the whole output must have: a JSON schema, a regular expression, a grammar, or texts to
    choose from. A mapping of its names is taken too. Refused at admission unless the runner has the
    feature."""
    logits_processors: Sequence[Any] | None = field(default=None, hash=False)
    """Callables over logits; refused at admission unless the runner has the feature."""

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "stop", _strings("stop", (self.stop,) if isinstance(self.stop, str) else self.stop))
        put(self, "bad_words", _strings("bad_words", self.bad_words))
        put(self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids or ()))
        if self.allowed_token_ids is not None:
            put(self, "allowed_token_ids", _token_ids("allowed_token_ids", self.allowed_token_ids))
            if not self.allowed_token_ids:
                raise InvalidRequestError(
                    "allowed_token_ids is empty, so no token could be generated; "
                    "give at least one id, or None to allow all"
                )
        if self.logit_bias is not None:
            put(self, "logit_bias", _logit_bias(self.logit_bias) or None)
        if self.logprob_token_ids is not None:
            put(self, "logprob_token_ids", _token_ids("logprob_token_ids", self.logprob_token_ids) or None)
        if self.structured_outputs is not None:
            put(self, "structured_outputs", StructuredOutputsParams.of(self.structured_outputs))
            if self.ignore_eos:
                raise InvalidRequestError(
                    "ignore_eos can't go with structured_outputs, whose output ends with the end-of-sequence "
                    "token"
                )
        if self.logits_processors is not None:
            put(self, "logits_processors", tuple(self.logits_processors) or None)

        _check("n", self.n)
        if self.n > MAX_N:
            raise InvalidRequestError(f"n must be at most {MAX_N}, got {self.n}")
        for name in _ALWAYS_CHECKED:
            _check(name, getattr(self, name))
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _check(name, getattr(self, name))
        if self.max_tokens is not None:
            _check("max_tokens", self.max_tokens)
            if self.min_tokens > self.max_tokens:
                raise InvalidRequestError(
                    f"min_tokens must be at most max_tokens={self.max_tokens}, got {self.min_tokens}"
                )
        if self.seed is not None:
            _check("seed", self.seed)
            if self.seed >= 2**63:
                raise InvalidRequestError(f"seed must be below 2**63, got {self.seed}")
            put(self, "seed", None if self.seed == -1 else self.seed)
        if self.stop and not self.detokenize:
            raise InvalidRequestError(
                "stop strings are looked for in the text, so they need detokenize=True; "
                "use stop_token_ids instead"
            )
        put(self, "temperature", 0.0 if self.temperature < GREEDY_BELOW else float(self.temperature))
        put(self, "top_k", max(self.top_k, 0))
        if self.greedy and self.n > 1:
            raise InvalidRequestError(
                f"n must be 1 with temperature 0, since all sequences would be equal; got {self.n}"
            )

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken, without randomness."""
        return self.temperature == 0.0

    @property
    def wants_logprobs(self) -> bool:
        """Whether generated tokens come with log-probabilities."""
        return self.logprobs is not None or self.logprob_token_ids is not None

    @property
    def has_penalties(self) -> bool:
        """Whether any penalty needs the counts of earlier tokens."""
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0

    def replace(self, **changes: Any) -> SamplingParams:
        """A copy with some parameters changed."""
        return replace(self, **changes)


def _check(name: str, value: object) -> None:
    fault = bounds_fault(name, value)
    if fault is not None:
        raise InvalidRequestError(fault)


def _strings(name: str, values: Iterable[str] | None) -> tuple[str, ...]:
    if isinstance(values, str):
        raise InvalidRequestError(f"{name} must be a list of strings, got the string {short(values)}")
    result = _listed(name, "strings", values or ())
    for value in result:
        if not isinstance(value, str) or not value:
            raise InvalidRequestError(f"{name} must hold non-empty strings, got {short(value)}")
    if len(result) > MAX_TEXTS or sum(map(len, result)) > MAX_TEXT_CHARACTERS:
        raise InvalidRequestError(
            f"{name} holds more than {MAX_TEXTS} strings, or more than {MAX_TEXT_CHARACTERS} characters; "
            "give fewer"
        )
    return result


def _token_ids(name: str, values: Iterable[int]) -> tuple[int, ...]:
    result = tuple(dict.fromkeys(_listed(name, "token ids", values)))
    for value in result:
        if not isinstance(value, int) or value < 0:
            raise InvalidRequestError(
                f"{name} must hold token ids, that is integers >= 0, got {short(value)}"
            )
    return result


def _listed(name: str, what: str, values: Iterable[Any]) -> tuple[Any, ...]:
    if not isinstance(values, Iterable):
        raise InvalidRequestError(f"{name} must be a list of {what}, got {short(values)}")
    return tuple(values)


def _logit_bias(bias: Mapping[Any, Any]) -> dict[int, float]:
    if not isinstance(bias, Mapping):
        raise InvalidRequestError(f"logit_bias must map token ids to numbers, got {short(bias)}")
    result: dict[int, float] = {}
    for token, value in bias.items():
        try:
            token_id, number = int(token), float(value)  # JSON objects have string keys
        except (TypeError, ValueError, OverflowError):
            token_id, number = -1, 0.0
        if token_id < 0 or math.isnan(number):
            raise InvalidRequestError(
                f"logit_bias must map token ids to numbers, got {short(token)}: {short(value)}"
            )
        result[token_id] = min(max(number, -LOGIT_BIAS_LIMIT), LOGIT_BIAS_LIMIT)
    return result
