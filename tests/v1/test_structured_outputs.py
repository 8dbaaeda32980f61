"""Structured outputs through `LLM` on V1: trained and random models always keep to the form, and requests
beside each other don't feel it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from tests.support.json_schemas import SCHEMAS, conforms
from tests.support.tiny_models import make_model

pytest.importorskip("llguidance")

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
FORMS: list[dict[str, Any]] = [
    {"regex": r"[0-9]{2,4}(\.[0-9])?"},
    {"choice": ["ja", "nein", "vielleicht 🙂", "ja doch"]},
    {"grammar": 'start: "(" start ")" | "x"'},
    {"grammar": 'root ::= [a-c] root? | "数" "字"'},
    {"json": {"enum": ["rot", "grün", 3, None]}},
]


def make_llm(path: Path, **flat: Any) -> LLM:
    settings = {"device": "cpu", "dtype": "float32", "max_num_seqs": 8, "block_size": 4, **flat}
    return LLM(path, **settings)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a trained checkpoint's tokenizer, and a vocabulary a little wider than that's."""
    path = tmp_path_factory.mktemp("random-model")
    model = make_model("llama", vocab_size=390, max_position_embeddings=512, eos_token_id=3)
    model.save_pretrained(path)
    for file in (CHECKPOINTS / "qwen3").glob("tokenizer*"):
        shutil.copy(file, path)
    return path


@pytest.fixture(scope="module", params=["random", "qwen3"])
def llm(request: pytest.FixtureRequest, random_model: Path):
    with make_llm(random_model if request.param == "random" else CHECKPOINTS / request.param) as llm:
        yield llm


def matches(text: str, form: dict[str, Any]) -> bool:
    """By Python's own means."""
    if "regex" in form:
        return re.fullmatch(form["regex"], text) is not None
    if "choice" in form:
        return text in form["choice"]
    if "json" in form:
        return conforms(json.loads(text), form["json"])
    if "start" in form["grammar"]:
        depth = len(text) // 2
        return text == "(" * depth + "x" + ")" * depth
    return re.fullmatch("(a|b|c)*(a|b|c|数字)", text) is not None


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(schemas=st.lists(SCHEMAS, min_size=4, max_size=4), seed=st.integers(0, 2**31))
def test_outputs_conform_to_their_schemas(llm: LLM, schemas: list[dict[str, Any]], seed: int) -> None:
    params = [
        SamplingParams(
            temperature=temperature,
            seed=seed,
            max_tokens=400,
            structured_outputs={"json": schema, "disable_any_whitespace": True},
        )
        for schema in schemas
        for temperature in (0.0, 1.0)
    ]
    for output, asked in zip(llm.generate(["What is 12 + 7?"] * len(params), params), params, strict=True):
        assert output.error is None
        (completion,) = output.outputs
        schema = json.loads(asked.structured_outputs.json)
        assert completion.finish_reason == "stop", (schema, completion.text)
        assert conforms(json.loads(completion.text), schema), (schema, completion.text)


def summary(output: Any) -> list[tuple[Any, ...]]:
    """What must be the same in every batch: all but the rounding of log-probabilities."""
    return [(c.token_ids, c.text, c.finish_reason, c.stop_reason) for c in output.outputs]


def ask(form: dict[str, Any] | None, i: int, **changes: Any) -> SamplingParams:
    return SamplingParams(
        **{"temperature": 1.0, "seed": i, "max_tokens": 30, "structured_outputs": form, **changes}
    )


def test_every_kind_in_one_batch_as_alone(llm: LLM) -> None:
    """With plain rows between; every kind of stage beside."""
    changes: list[dict[str, Any]] = [
        {}, {"temperature": 0.0}, {"top_p": 0.8, "logprobs": 2}, {"repetition_penalty": 1.3, "min_tokens": 3},
    ]  # fmt: skip
    params = [
        ask(form, i, **changes[i % len(changes)])
        for i, form in enumerate(form for form in FORMS for form in (form, None, form))
    ]
    prompts = [f"What is {i} + 7?" for i in range(len(params))]
    together = llm.generate(prompts, params)
    finished = 0
    for prompt, asked, output in zip(prompts, params, together, strict=True):
        (alone,) = llm.generate(prompt, asked)
        assert output.error is None
        assert summary(output) == summary(alone)
        if asked.structured_outputs is not None and output.outputs[0].finish_reason == "stop":
            form = {"json": json.loads(asked.structured_outputs.json)} if asked.structured_outputs.json else {
                name: value
                for name in ("regex", "choice", "grammar")
                if (value := getattr(asked.structured_outputs, name)) is not None
            }  # fmt: skip
            assert matches(output.outputs[0].text, form)
            finished += 1
    assert finished > 4


def test_preempted_requests_keep_to_their_form(random_model: Path) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 6, "maxItems": 9}
    params = [ask({"json": schema, "disable_any_whitespace": True}, i, max_tokens=100) for i in range(6)]
    prompts = [f"What is {i} + 7?" for i in range(6)]
    with make_llm(random_model) as roomy:
        expected = [summary(output) for output in roomy.generate(prompts, params)]
    with make_llm(random_model, num_gpu_blocks_override=30, max_model_len=110) as tight:
        outputs = tight.generate(prompts, params)
        assert tight._client.call(lambda _, scheduler: scheduler.num_preemptions) > 0
    assert [summary(output) for output in outputs] == expected
    assert all(conforms(json.loads(output.outputs[0].text), schema) for output in outputs)


def test_sequences_and_streams(llm: LLM) -> None:
    form = {"regex": "[a-f]{3,9}"}
    (output,) = llm.generate("x", ask(form, 3, n=4))
    texts = [completion.text for completion in output.outputs]
    assert all(matches(text, form) for text in texts)
    assert len(set(texts)) > 1
    pieces = [news.outputs[0].text for news in llm.stream("x", ask(form, 3))]
    assert "".join(pieces) == texts[0]
    assert {completion.finish_reason for completion in output.outputs} == {"stop"}


def test_stops_of_the_callers_own_end_the_output_earlier(llm: LLM) -> None:
    (digit,) = llm.get_tokenizer()("7", add_special_tokens=False)["input_ids"]
    form = {"grammar": 'start: "7" start | "8"'}
    only_seven = {"logit_bias": {digit: 100.0}, "max_tokens": 9}
    (stopped,) = llm.generate("x", ask(form, 1, stop_token_ids=[digit], **only_seven))
    assert stopped.outputs[0].token_ids == [digit]
    assert (stopped.outputs[0].finish_reason, stopped.outputs[0].stop_reason) == ("stop", digit)
    (stopped,) = llm.generate("x", ask(form, 1, stop="77", **only_seven))
    assert (stopped.outputs[0].finish_reason, stopped.outputs[0].text) == ("stop", "")
    (cut,) = llm.generate("x", ask(form, 1, **only_seven))
    assert (cut.outputs[0].finish_reason, cut.outputs[0].text) == ("length", "7" * 9)


def test_all_else_gives_way_to_a_grammar(llm: LLM) -> None:
    words = {"choice": ["ja", "nein"]}
    for changes in (
        {"min_tokens": 20}, {"bad_words": ["ja", "nein", "j", "n"]}, {"allowed_token_ids": [5]},
        {"logit_bias": {3: -100, 0: -100}}, {"top_k": 1, "top_p": 0.1},
    ):  # fmt: skip
        (output,) = llm.generate("x", ask(words, 5, **changes))
        assert output.outputs[0].text in words["choice"]
        assert sum(token in (0, 3) for token in output.outputs[0].token_ids) == 1
        assert output.outputs[0].finish_reason == "stop"


def test_a_refused_grammar_leaves_the_others_alone(llm: LLM) -> None:
    good, bad = llm.generate(["a", "b"], [ask({"regex": "[0-9]"}, 1), ask({"regex": "["}, 1)])
    assert matches(good.outputs[0].text, {"regex": "[0-9]"})
    assert bad.error is not None
    assert bad.error.startswith("structured_outputs.regex: ")
    assert bad.outputs[0].finish_reason == "error"


def test_a_grammar_that_reaches_a_limit_is_an_error_of_its_request(llm: LLM, monkeypatch) -> None:
    from dodona.runners.engine.grammar import Grammar

    accept = Grammar.accept

    def broken(self: Grammar, token_id: int) -> bool:
        if len(seen) == 2:
            self.error = "structured_outputs: too complex"
            return False
        seen.append(token_id)
        return accept(self, token_id)

    seen: list[int] = []
    monkeypatch.setattr(Grammar, "accept", broken)
    (output,) = llm.generate("a", ask({"regex": "[0-9]{7}"}, 1, logprobs=0))
    assert output.error == "structured_outputs: too complex"
    assert output.outputs[0].finish_reason == "error"
    assert output.outputs[0].token_ids == seen
    assert len(output.outputs[0].logprobs) == 2


def test_logprobs_of_given_tokens(llm: LLM) -> None:
    ids = [5, 200, 17]
    params = [
        SamplingParams(temperature=1.0, seed=2, max_tokens=4, logprobs=top_n, logprob_token_ids=ids)
        for top_n in (None, 2)
    ]
    all_of_them = SamplingParams(temperature=1.0, seed=2, max_tokens=4, logprobs=20)
    few, more, reference = llm.generate(["What is 3 + 7?"] * 3, [*params, all_of_them])
    for output in (few, more):
        completion = output.outputs[0]
        assert completion.token_ids == reference.outputs[0].token_ids
        assert completion.cumulative_logprob == pytest.approx(reference.outputs[0].cumulative_logprob)
        for entry, token, known in zip(
            completion.logprobs, completion.token_ids, reference.outputs[0].logprobs, strict=True
        ):
            assert next(iter(entry)) == token
            assert set(ids) <= set(entry)
            for other in entry:
                if other in known:
                    assert entry[other].rank == known[other].rank
                    assert entry[other].logprob == pytest.approx(known[other].logprob, abs=1e-5)
                else:
                    assert entry[other].rank > 20
    assert all(set(entry) == {token, *ids} for entry, token in zip(
        few.outputs[0].logprobs, few.outputs[0].token_ids, strict=True
    ))  # fmt: skip
    (refused,) = llm.generate("a", SamplingParams(logprob_token_ids=list(range(21))))
    assert "logprob_token_ids holds 21 ids, which is over max_logprobs=20" in refused.error
    (refused,) = llm.generate("a", SamplingParams(logprob_token_ids=[390]))
    assert "logprob_token_ids: token id 390 is out of the vocabulary" in refused.error
