"""Structured outputs on the host: each request's place in its grammar, and the tokens that may come next.

llguidance, an optional dependency, does the work: it knows a tokenizer's tokens as bytes, so that a token may
end within a character, and it checks all tokens at once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np

from dodona.runners.errors import InvalidRequestError
from dodona.runners.interface import GrammarOutput
from dodona.runners.third_party import first_line, is_third_party

if TYPE_CHECKING:
    import numpy.typing as npt

    from dodona.runners.sampling.structured_outputs import StructuredOutputsParams

EXTRA = "structured"
"""The extra of this package that brings llguidance."""

ANY_OBJECT = '{"type": "object"}'

MOST_KEPT = 64
"""Compiled grammars that are kept for later requests."""

STACK_BYTES = 128 << 20
"""Of the thread that compiles. llguidance follows a rule's rules and a schema's references by recursion, 3 to
6 KB each, without a limit of its own: what does not fit ends the process. 262,144 characters hold 10,000 of
them. What is not used of a stack takes no memory."""

_starting = threading.Lock()
"""Held while a thread of another stack is started: its size is a setting of the whole process."""


class GrammarCompiler:
    """Makes grammars for one model and its tokenizer. Thread-safe; costs nothing before the first use.

    Args:
        tokenizer: transformers' fast tokenizer, or None where there is none.
        vocab_size: width of the model's logits.
        eos_token_ids: the tokens that may end an output, and nothing else.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, eos_token_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = sorted(eos_token_ids)
        self._lock = threading.Lock()
        self._vocabulary: Vocabulary | None = None
        self._compiled: OrderedDict[StructuredOutputsParams, Future[Any]] = OrderedDict()

    def grammar(self, params: StructuredOutputsParams) -> Grammar:
        """A grammar at its beginning.

        Raises InvalidRequestError where llguidance isn't installed, the tokenizer can't be used, there is no
        end-of-sequence token, or the schema, expression or grammar is not a good one.
        """
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self._tokenizer, self._vocab_size, self._eos_token_ids)
            vocabulary = self._vocabulary
            known = self._compiled.get(params)
            if known is not None:
                self._compiled.move_to_end(params)
                compiled = known
            else:
                compiled = self._compiled[params] = Future()
                if len(self._compiled) > MOST_KEPT:
                    self._compiled.popitem(last=False)
        if known is None:  # others go on meanwhile; who asks for the same waits for it
            try:
                compiled.set_result(_with_large_stack(lambda: vocabulary.compile(params)))
            except BaseException as error:
                compiled.set_exception(error)
                with self._lock:
                    if self._compiled.get(params) is compiled:
                        del self._compiled[params]
        matcher = compiled.result()
        with self._lock:  # deep_copy reads what another copy may be reading
            return Grammar(matcher.deep_copy(), vocabulary)


def _with_large_stack(work: Callable[[], Any]) -> Any:
    """What `work` returns or raises, in a thread of its own."""
    found: Future[Any] = Future()

    def run() -> None:
        try:
            found.set_result(work())
        except BaseException as error:
            found.set_exception(error)

    thread = threading.Thread(target=run, name="dodona-grammar", daemon=True)
    try:
        with _starting:
            before = threading.stack_size(STACK_BYTES)
            try:
                thread.start()
            finally:
                threading.stack_size(before)
    except RuntimeError as error:
        raise InvalidRequestError(f"structured_outputs: no memory to compile it: {error}") from error
    return found.result()


class Vocabulary:
    """A tokenizer as llguidance sees it."""

    def __init__(self, tokenizer: Any, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        try:
            import llguidance
            import llguidance.hf
        except ImportError as error:
            raise InvalidRequestError(
                "structured_outputs needs the package llguidance, which is not installed: "
                f"pip install 'dodona[{EXTRA}]'"
            ) from error
        if tokenizer is None:
            raise InvalidRequestError(
                "structured_outputs is about text, which needs a tokenizer; there is none"
            )
        if not eos_token_ids:
            raise InvalidRequestError(
                "structured_outputs ends with an end-of-sequence token, and the model names none; "
                "give eos_token_id in its generation_config.json"
            )
        self._llguidance: Any = llguidance  # it takes more than its annotations say
        self.vocab_size = vocab_size
        try:
            self._tokenizer = llguidance.hf.from_tokenizer(
                tokenizer, n_vocab=max(vocab_size, len(tokenizer)), eos_token=list(eos_token_ids)
            )
        except Exception as error:  # the library raises whatever its parts do
            raise InvalidRequestError(
                f"structured_outputs: llguidance can't use a {type(tokenizer).__name__}: {error}"
            ) from error
        self._executor: Any = None

    def compile(self, params: StructuredOutputsParams) -> Any:
        """An LLMatcher at the beginning of the grammar."""
        try:
            kind, text = self._definition(params)
            matcher = self._llguidance.LLMatcher(
                self._tokenizer,
                text,
                log_level=0,
                limits=self._llguidance.LLParserLimits(verbose_errors=False),
            )
        except BaseException as error:
            if not is_third_party(error):
                raise
            raise InvalidRequestError(f"structured_outputs: {first_line(error)}") from error
        if not matcher.is_error():
            # Only now it is seen whether anything matches at all.
            first = matcher.deep_copy()
            self.bitmask([first])
            if not first.is_error():
                return matcher
            matcher = first
        raise InvalidRequestError(f"structured_outputs.{kind}: {_message(matcher)}")

    def bitmask(self, matchers: Sequence[Any]) -> npt.NDArray[np.int32]:
        """What each allows next: [len(matchers), ceil(vocab_size / 32)], as in `GrammarOutput`."""
        # What the tokenizer has beyond the model's vocabulary is written, then cut off.
        words = np.zeros((len(matchers), -(-self._tokenizer.vocab_size // 32)), dtype=np.int32)
        if len(matchers) == 1:
            matchers[0].unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        else:
            if self._executor is None:
                self._executor = self._llguidance.LLExecutor()
            self._executor.unsafe_compute_mask_ptr(
                list(zip(matchers, range(len(matchers)), strict=True)),
                words.ctypes.data,
                words.shape[1] * words.itemsize,
                len(matchers),
            )
        words = np.ascontiguousarray(words[:, : -(-self.vocab_size // 32)])
        if self.vocab_size % 32:
            words[:, -1] &= (1 << self.vocab_size % 32) - 1
        return words

    def _definition(self, params: StructuredOutputsParams) -> tuple[str, str]:
        """Which parameter it is, and llguidance's text of it."""
        matcher = self._llguidance.LLMatcher
        json_options = {"whitespace_flexible": not params.disable_any_whitespace}
        if params.json is not None:
            return "json", matcher.grammar_from_json_schema(params.json, defaults=json_options)
        if params.json_object is not None:
            return "json_object", matcher.grammar_from_json_schema(ANY_OBJECT, defaults=json_options)
        if params.regex is not None:
            return "regex", matcher.grammar_from_regex(params.regex)
        if params.choice is not None:
            return "choice", self._llguidance.grammar_from("choice", list(params.choice))
        try:
            return "grammar", self._llguidance.grammar_from("grammar", params.grammar)
        except ValueError as error:
            raise InvalidRequestError(f"structured_outputs.grammar: {error}") from error


class Grammar:
    """One request's place in its grammar."""

    __slots__ = ("error", "matcher", "vocabulary")

    def __init__(self, matcher: Any, vocabulary: Vocabulary) -> None:
        self.matcher = matcher
        self.vocabulary = vocabulary
        self.error: str | None = None
        """Why it can't go on: a limit of the library was reached, or a token came that it didn't allow."""

    def accept(self, token_id: int) -> bool:
        """Go on by a token; whether that was possible."""
        if self.error is None and not self.matcher.consume_token(token_id):
            self.error = f"structured_outputs: {_message(self.matcher)}"
        return self.error is None

    def num_allowed(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens, from the first on, it would accept."""
        return 0 if self.error is not None else int(self.matcher.validate_tokens(list(token_ids)))

    def lookahead(self, token_ids: Sequence[int]) -> list[Any]:
        """Matchers at its place and after each of these tokens, which it allows. It stays where it is."""
        matchers = [self.matcher]
        for token_id in token_ids:
            matchers.append(matchers[-1].deep_copy())
            matchers[-1].consume_token(token_id)
        return matchers


def grammar_output(
    grammars: Sequence[tuple[int, Grammar]], draft_token_ids: Mapping[int, Sequence[int]]
) -> GrammarOutput:
    """The tokens that may come next, for pairs of state row and grammar, at least one. All tokens of these
    rows have been read.

    draft_token_ids: by row, drafts that its grammar allows.

    A grammar that can't go on allows the end of the sequence, which it will then not accept.
    """
    vocabulary = grammars[0][1].vocabulary
    rows: list[int] = []
    matchers: list[Any] = []
    for row, grammar in grammars:
        found = grammar.lookahead(draft_token_ids.get(row, ()))
        rows += [row] * len(found)
        matchers += found
    return GrammarOutput(rows, vocabulary.bitmask(matchers))


def _message(matcher: Any) -> str:
    text = str(matcher.get_error()).replace("<non-verbose/>", "").strip()
    # A bare name is that of a stop reason, such as NoExtensionBias.
    return text if " " in text else f"nothing can come next ({text or matcher.stop_reason()})"
