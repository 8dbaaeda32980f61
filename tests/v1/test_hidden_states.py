"""The rule `speculative-hidden-states` names models whose hidden states no head can look at."""

from __future__ import annotations

import pytest

from dodona.runners.v1.capabilities import NO_LAYERS_SEEN, SEVERAL_STREAMS
from tests.support.hidden_states import seen


@pytest.mark.parametrize("model_type", NO_LAYERS_SEEN)
def test_layers_that_are_not_found(model_type: str) -> None:
    assert seen(model_type) == (False, False)


@pytest.mark.parametrize("model_type", SEVERAL_STREAMS)
def test_several_hidden_states_of_a_token(model_type: str) -> None:
    assert seen(model_type) == (True, False)


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox", "qwen3_moe"])
def test_one_hidden_state_of_a_token(model_type: str) -> None:
    assert seen(model_type) == (True, True)
