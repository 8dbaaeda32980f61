"""Canonical form and refusals of sampling parameters."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest

from dodona.oracle.errors import DodonaError
from dodona.runners.errors import InvalidRequestError
from dodona.runners.sampling.params import SamplingParams


def test_canonical_form() -> None:
    params = SamplingParams(
        temperature=1e-6,
        top_k=-1,
        seed=-1,
        stop="\n",
        stop_token_ids=[3, 3, 1],
        logit_bias={"5": 300, 6: -1},
        allowed_token_ids=[2],
        bad_words=["x"],
    )
    assert params.temperature == 0.0
    assert params.greedy
    assert params.top_k == 0
    assert params.seed is None
    assert params.stop == ("\n",)
    assert params.stop_token_ids == (3, 1)
    assert params.logit_bias == {5: 100.0, 6: -1.0}
    assert params.allowed_token_ids == (2,)
    assert params.bad_words == ("x",)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("n", 0, "n must be at least 1, got 0"),
        ("n", "2", "n must be an integer, got '2'"),
        ("n", True, "n must be an integer, got True"),
        ("logprobs", True, "logprobs must be an integer, got True"),
        ("temperature", True, "temperature must be a finite number, got True"),
        ("stop", 5, "stop must be a list of strings, got 5"),
        ("stop_token_ids", 5, "stop_token_ids must be a list of token ids, got 5"),
        ("allowed_token_ids", 5, "allowed_token_ids must be a list of token ids, got 5"),
        ("logit_bias", [5], "logit_bias must map token ids to numbers, got [5]"),
        ("temperature", -0.1, "temperature must be at least 0, got -0.1"),
        ("temperature", float("nan"), "temperature must be a finite number"),
        ("top_p", 0.0, "top_p must be above 0 and at most 1, got 0"),
        ("top_p", 1.1, "top_p must be above 0 and at most 1, got 1.1"),
        ("top_k", -2, "top_k must be at least -1, got -2"),
        ("min_p", 1.5, "min_p must be at least 0 and at most 1"),
        ("presence_penalty", 2.5, "presence_penalty must be at least -2 and at most 2"),
        ("frequency_penalty", -3, "frequency_penalty must be at least -2"),
        ("repetition_penalty", 0, "repetition_penalty must be above 0, got 0"),
        ("max_tokens", 0, "max_tokens must be at least 1, got 0"),
        ("min_tokens", 17, "min_tokens must be at most max_tokens=16, got 17"),
        ("logprobs", -1, "logprobs must be at least 0"),
        ("prompt_logprobs", 1.0, "prompt_logprobs must be an integer"),
        ("seed", 2**63, "seed must be below"),
        ("stop", [""], "stop must hold non-empty strings"),
        ("bad_words", "word", "bad_words must be a list of strings"),
        ("stop_token_ids", [-1], "stop_token_ids must hold token ids"),
        ("allowed_token_ids", [], "allowed_token_ids is empty"),
        ("logit_bias", {"x": 1}, "logit_bias must map token ids to numbers, got 'x': 1"),
        ("logit_bias", {1: float("nan")}, "logit_bias must map"),
    ],
)
def test_out_of_range_values_are_named(name: str, value: Any, expected: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**{name: value})
    assert expected in str(caught.value)


def test_the_error_is_dodonas_and_a_value_error() -> None:
    assert issubclass(InvalidRequestError, DodonaError)
    assert issubclass(InvalidRequestError, ValueError)


def test_parameters_that_contradict_each_other() -> None:
    with pytest.raises(InvalidRequestError, match="n must be 1 with temperature 0"):
        SamplingParams(temperature=0, n=2)
    with pytest.raises(InvalidRequestError, match="detokenize=True"):
        SamplingParams(stop="x", detokenize=False)


def test_immutable_hashable_and_picklable() -> None:
    params = SamplingParams(logit_bias={1: 2.0}, stop=["x"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.n = 2  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(params)) == params
    assert hash(params) == hash(params.replace())
    assert params.replace(n=3).n == 3


def test_a_changed_bias_outside_changes_nothing() -> None:
    bias = {1: 1.0}
    params = SamplingParams(logit_bias=bias)
    bias[1] = 5.0
    assert params.logit_bias == {1: 1.0}
