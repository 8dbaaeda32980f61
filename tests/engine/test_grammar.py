"""Masks of grammars against trying every token, and what is refused with which words."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dodona.runners.engine.admission import Admission
from dodona.runners.engine.grammar import MOST_KEPT, GrammarCompiler
from dodona.runners.engine.prompts import Prompt
from dodona.runners.errors import InvalidRequestError
from dodona.runners.sampling import structured_outputs
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.sampling.structured_outputs import StructuredOutputsParams
from tests.support.json_schemas import SCHEMAS, conforms, token_bytes

EOS = 0
VOCAB = 405
"""More than the tokenizer's 400, and no multiple of 32."""


@pytest.fixture(scope="module")
def compiler(tokenizer: Any) -> GrammarCompiler:
    pytest.importorskip("llguidance")
    return GrammarCompiler(tokenizer, VOCAB, [EOS])


def allowed(grammar: Any) -> set[int]:
    words = grammar.vocabulary.bitmask([grammar.matcher])
    assert words.shape == (1, -(-VOCAB // 32))
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    assert not bits[VOCAB:].any()
    return set(np.flatnonzero(bits).tolist())


def by_trying(grammar: Any) -> set[int]:
    """The tokens that the grammar accepts, one by one."""
    matcher = grammar.matcher
    # `validate_tokens` is 300 times as fast as a copy that consumes the token, but never takes the end.
    taken = {token for token in range(VOCAB) if matcher.validate_tokens([token])}
    return taken | ({EOS} if matcher.deep_copy().consume_token(EOS) else set())


def assert_mask(mask: set[int], possible: set[int], forced: bytes) -> None:
    """The mask is what is possible; but where text is forced, the tokenizer's own token for its beginning."""
    if forced and len(possible) > 1:
        assert len(mask) == 1
        assert mask < possible
    else:
        assert mask == possible
    assert mask


@settings(max_examples=150, deadline=None)
@given(
    schema=SCHEMAS,
    choices=st.lists(st.integers(0, 10**6), min_size=30, max_size=30),
)
def test_masks_of_schemas_are_the_tokens_that_are_accepted(
    compiler: GrammarCompiler, tokenizer: Any, schema: Any, choices: list[int]
) -> None:
    grammar = compiler.grammar(StructuredOutputsParams(json=schema, disable_any_whitespace=True))
    table, text = token_bytes(tokenizer), b""
    for choice in choices:
        mask = allowed(grammar)
        assert_mask(mask, by_trying(grammar), grammar.matcher.compute_ff_bytes())
        token = sorted(mask)[choice % len(mask)]
        if EOS in mask:
            # The end is allowed exactly where the text is complete.
            assert conforms(json.loads(text), schema)
        assert grammar.accept(token)
        if token == EOS:
            break
        text += table[token]


def common_prefix(texts: list[bytes]) -> bytes:
    first, last = min(texts), max(texts)
    return first[
        : next((i for i, pair in enumerate(zip(first, last, strict=False)) if len({*pair}) > 1), None)
    ]


WORDS = ["yes", "no", "not", "nötig", "notwendig 🙂", "\"'\\/\n\t", "数字", "a\u0000b"]


@settings(max_examples=150, deadline=None)
@given(
    words=st.lists(
        st.one_of(st.sampled_from(WORDS), st.text(min_size=1, max_size=6)),
        min_size=1,
        max_size=5,
        unique=True,
    ),
    data=st.data(),
)
def test_masks_of_choices_are_the_prefixes_of_the_texts(
    compiler: GrammarCompiler, tokenizer: Any, words: list[str], data: st.DataObject
) -> None:
    """By the bytes of the texts alone: tokens may end within a character."""
    table = token_bytes(tokenizer)
    texts = {word.encode() for word in words}
    grammar = compiler.grammar(StructuredOutputsParams(choice=words))
    text = b""
    while True:
        expected = {t for t, piece in table.items() if any(w.startswith(text + piece) for w in texts)}
        expected |= {EOS} if text in texts else set()
        left = [w[len(text) :] for w in texts if w.startswith(text)]
        mask = allowed(grammar)
        if mask != expected:
            assert_mask(mask, expected, common_prefix(left))
        token = data.draw(st.sampled_from(sorted(mask)))
        assert grammar.accept(token)
        if token == EOS:
            break
        text += table[token]
    assert text in texts


def test_masks_of_several_grammars_are_those_of_each(compiler: GrammarCompiler) -> None:
    asked = [{"regex": "[0-9]{2,4}"}, {"choice": ["one"]}, {"json_object": True}, {"regex": "(two )+"}]
    grammars = [compiler.grammar(StructuredOutputsParams(**params)) for params in asked]
    together = compiler.grammar(StructuredOutputsParams(regex="x")).vocabulary.bitmask(
        [grammar.matcher for grammar in grammars]
    )
    for grammar, words in zip(grammars, together, strict=True):
        assert (grammar.vocabulary.bitmask([grammar.matcher])[0] == words).all()


def test_grammars_of_the_same_parameters_are_apart(compiler: GrammarCompiler, tokenizer: Any) -> None:
    one, other = (compiler.grammar(StructuredOutputsParams(choice=["one", "two"])) for _ in range(2))
    start = allowed(other)
    assert one.accept(tokenizer("one")["input_ids"][0])
    assert allowed(one) != start
    assert allowed(other) == start


def test_few_compiled_grammars_are_kept(tokenizer: Any) -> None:
    pytest.importorskip("llguidance")
    compiler = GrammarCompiler(tokenizer, VOCAB, [EOS])
    for i in range(MOST_KEPT + 5):
        compiler.grammar(StructuredOutputsParams(regex=str(i)))
    assert len(compiler._compiled) == MOST_KEPT
    assert StructuredOutputsParams(regex="4") not in compiler._compiled


def test_a_vocabulary_smaller_than_the_tokenizers(tokenizer: Any) -> None:
    pytest.importorskip("llguidance")
    grammar = GrammarCompiler(tokenizer, 300, [EOS]).grammar(StructuredOutputsParams(regex="(?s).*"))
    words = grammar.vocabulary.bitmask([grammar.matcher])
    assert words.shape == (1, 10)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    assert bits[:300].sum() > 200
    assert not bits[300:].any()


def test_a_token_that_is_not_allowed(compiler: GrammarCompiler, tokenizer: Any) -> None:
    grammar = compiler.grammar(StructuredOutputsParams(regex="[0-9]"))
    assert not grammar.accept(tokenizer("a")["input_ids"][0])
    assert "doesn't satisfy the grammar" in (grammar.error or "")
    assert allowed(grammar) == {EOS}
    assert not grammar.accept(EOS)


def admission(tokenizer: Any = None, eos: tuple[int, ...] = (EOS,)) -> Admission:
    return Admission(
        vocab_size=VOCAB, max_model_len=50, max_logprobs=5, seed=1, eos_token_ids=eos, tokenizer=tokenizer,
        request_features=frozenset({"structured-outputs"}),
    )  # fmt: skip


def refusal(admitted: Admission, **structured: Any) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        admitted.admit(Prompt(token_ids=[1]), SamplingParams(structured_outputs=structured))
    return str(caught.value)


def chain_of_rules(count: int) -> str:
    return "start: a0\n" + "\n".join(f"a{i}: a{i + 1}" for i in range(count)) + f'\na{count}: "y"\n'


def chain_of_references(count: int) -> dict[str, Any]:
    parts = {f"d{i}": {"anyOf": [{}, {"$ref": f"#/d/d{i + 1}"}]} for i in range(count)}
    return {"$ref": "#/d/d0", "d": {**parts, f"d{count}": {"type": "string"}}}


@pytest.mark.parametrize("small", [False, True], ids=["as it is", "a small stack"])
def test_a_long_chain_does_not_end_the_process(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, small: bool
) -> None:
    """llguidance goes along a chain by recursion, without a limit."""
    pytest.importorskip("llguidance")
    monkeypatch.setattr(structured_outputs, "MAX_RULES", 10**9)
    monkeypatch.setattr(structured_outputs, "MAX_ENTRIES", 10**9)
    monkeypatch.setattr(structured_outputs, "MAX_WORK", 10**18)
    compiler = GrammarCompiler(tokenizer, VOCAB, [EOS])
    asked = [{"grammar": chain_of_rules(17_000)}, {"json": chain_of_references(4_500)}]
    found: list[Any] = []

    def compile_all() -> None:
        found.extend(compiler.grammar(StructuredOutputsParams(**params)) for params in asked)

    before = threading.stack_size(1 << 20 if small else 0)
    try:
        thread = threading.Thread(target=compile_all)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    assert len(found) == 2


def test_rules_and_references_are_counted() -> None:
    StructuredOutputsParams(grammar=chain_of_rules(490))
    StructuredOutputsParams(json=chain_of_references(490))
    StructuredOutputsParams(grammar='start: "' + ":" * 1_000 + '" /a:b/ // ' + ":" * 1_000)
    with pytest.raises(InvalidRequestError, match=r"has 602 rules, .* more than 500"):
        StructuredOutputsParams(grammar=chain_of_rules(600))
    with pytest.raises(InvalidRequestError, match="602 rules"):
        StructuredOutputsParams(grammar=chain_of_rules(600).replace(":", " ::="))
    with pytest.raises(InvalidRequestError, match="refers to 601 definitions, more than 500"):
        StructuredOutputsParams(json=chain_of_references(600))


@pytest.mark.parametrize(
    ("structured", "expected"),
    [
        ({"json": {"type": "strin"}}, "structured_outputs.json: Invalid type: strin"),
        ({"json": {"not": {}}}, "structured_outputs.json: Unimplemented keys"),
        ({"json": {"type": "integer", "minimum": 3, "maximum": 2}}, "structured_outputs.json: Unsatisfiable"),
        ({"regex": "("}, "structured_outputs.regex: "),
        ({"regex": r"[^\x00-\x{10ffff}]"}, "structured_outputs.regex: nothing can come"),
        ({"grammar": 'start: "x'}, "structured_outputs.grammar: "),
        ({"grammar": 'root ::= "x" ('}, "structured_outputs.grammar: "),
        ({"grammar": "start: other"}, "structured_outputs.grammar: "),
    ],
)
def test_refused_grammars(tokenizer: Any, structured: dict[str, Any], expected: str) -> None:
    pytest.importorskip("llguidance")
    message = refusal(admission(tokenizer), **structured)
    assert message.startswith(expected)
    assert "<non-verbose/>" not in message


def test_what_structured_outputs_need(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llguidance")
    assert "needs a tokenizer; there is none" in refusal(admission(), regex="a")
    assert "the model names none" in refusal(admission(tokenizer, eos=()), regex="a")
    # A tokenizer that is not one of the fast ones.
    slow = type("Slow", (), {"all_special_ids": (), "__len__": lambda self: 3})()
    assert "llguidance can't use a Slow" in refusal(admission(slow), regex="a")
    monkeypatch.setitem(sys.modules, "llguidance", None)
    assert "pip install 'dodona[structured]'" in refusal(admission(tokenizer), regex="a")
    # All others are served without it.
    admission(tokenizer).admit(Prompt(token_ids=[1]), SamplingParams())


def test_each_sequence_has_its_own_grammar(tokenizer: Any) -> None:
    pytest.importorskip("llguidance")
    params = SamplingParams(n=3, structured_outputs={"regex": "[0-9]+"})
    requests = admission(tokenizer).admit(Prompt(token_ids=[1]), params)
    assert len({id(request.grammar) for request in requests}) == 3
    assert len({id(request.grammar.matcher) for request in requests if request.grammar}) == 3


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, "exactly one of json, regex, choice, grammar, json_object; got none"),
        ({"json": {}, "regex": "a"}, "got json and regex"),
        ({"json": "{"}, "structured_outputs.json is not JSON"),
        ({"json": "3"}, "must hold a JSON schema"),
        ({"json": 3}, "as text or mapping, got int"),
        ({"json": {"a": object()}}, "can't be written as JSON"),
        ({"regex": ""}, "structured_outputs.regex must be non-empty text, got ''"),
        ({"grammar": 3}, "structured_outputs.grammar must be non-empty text, got 3"),
        ({"choice": "yes"}, "must be a list of texts, got 'yes'"),
        ({"choice": []}, "must be a list of texts, got []"),
        ({"choice": ["a", ""]}, "must hold non-empty texts, got ''"),
        ({"json_object": 3}, "json_object must be true or false, got 3"),
        ({"json_object": False}, "got none"),
        ({"regex": "a", "disable_any_whitespace": True}, "goes with json and json_object, not with regex"),
        ({"regexp": "a"}, "structured_outputs has no 'regexp'; it has json, regex"),
    ],
)
def test_refused_parameters(params: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(structured_outputs=params)
    assert expected in str(caught.value)


def test_parameters() -> None:
    schema = {"type": "object", "properties": {"ä": {"const": "ö"}}}
    from_mapping = StructuredOutputsParams(json=schema)
    assert json.loads(str(from_mapping.json)) == schema
    assert StructuredOutputsParams(json=str(from_mapping.json)) == from_mapping
    assert SamplingParams(structured_outputs={"json": schema}).structured_outputs == from_mapping
    assert hash(StructuredOutputsParams(choice=["a", "b"])) == hash(
        StructuredOutputsParams(choice=("a", "b"))
    )
    with pytest.raises(InvalidRequestError, match="ignore_eos can't go with structured_outputs"):
        SamplingParams(structured_outputs={"regex": "a"}, ignore_eos=True)
    with pytest.raises(InvalidRequestError, match="must be StructuredOutputsParams or a mapping"):
        SamplingParams(structured_outputs="a")
