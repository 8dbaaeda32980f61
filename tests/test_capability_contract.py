"""The capability contract: the rule book says exactly what the runners' own code says of itself."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decide.evaluate import firings
from dodona.oracle.language.condition_text import to_data
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.books import load_rulebook
from dodona.oracle.systems.own.facts import derive_facts
from dodona.oracle.testing import engine_config_mappings, environments, model_configs
from dodona.runners.interface import Runner
from dodona.runners.v1 import capabilities as v1
from dodona.runners.v1.pooling.runner import V1PoolingRunner
from dodona.runners.v1.runner import V1Runner
from dodona.runners.v2 import capabilities as v2
from dodona.runners.v2.models.registry import MODEL_FAMILIES, POOLING_FAMILIES
from dodona.runners.v2.pooling.runner import V2PoolingRunner
from dodona.runners.v2.runner import V2Runner

BOOK = load_rulebook("dodona")

TELLING_CONFIG_JSON = st.one_of(
    model_configs(),
    st.builds(
        lambda base, more: {**base, **more},
        model_configs(),
        st.fixed_dictionaries(
            {},
            optional={
                "partial_rotary_factor": st.sampled_from([0.5, 1.0]),
                "attn_logit_softcapping": st.sampled_from([None, 30.0]),
                "layer_types": st.sampled_from(
                    [
                        ["full_attention"] * 2,
                        ["full_attention", "sliding_attention"],
                        ["sliding_attention"] * 2,
                    ]
                ),
                "num_experts": st.sampled_from([0, 8]),
                "is_encoder_decoder": st.booleans(),
                "rope_parameters": st.sampled_from(
                    [
                        {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
                        {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 256},
                    ]
                ),
                "auto_map": st.sampled_from([{}, {"AutoModelForCausalLM": "modeling.Model"}]),
            },
        ),
    ),
)


def spoken_of(runner: str) -> set[str]:
    """Ids of the rules that say what `runner` lacks."""
    return {rule.id for rule in BOOK.rules if rule.kind != "override" and runner in rule.runners}


@pytest.mark.parametrize(("runner", "lacks"), [("v1", v1.LACKS), ("v2", v2.LACKS)])
def test_a_runner_lacks_a_feature_just_where_a_rule_names_it(runner: str, lacks: frozenset[str]) -> None:
    assert set(lacks) == spoken_of(runner)


def test_the_book_lists_the_architectures_that_v2_has_code_for() -> None:
    condition = to_data(BOOK.by_id["architecture"].when)
    generates, pools = condition["any"]
    assert generates == {"model_config.architectures": {"any_in": list(MODEL_FAMILIES)}}
    others = [name for name in POOLING_FAMILIES if name not in MODEL_FAMILIES]
    assert pools == {
        "all": [
            {"model_config.runner_type": "pooling"},
            {"model_config.architectures": {"any_in": others}},
        ]
    }


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(engine_config_mappings(), TELLING_CONFIG_JSON, environments(override=False), st.booleans())
def test_rules_and_loaders_refuse_the_same(mapping, raw, environment, trust_remote_code) -> None:
    mapping["model_config"]["trust_remote_code"] = trust_remote_code
    config, model = EngineConfig.from_mapping(mapping), ModelInfo.from_mapping(raw)
    fired = firings(BOOK, derive_facts(config, model, environment))
    maybe = {f.rule for f in fired}
    surely = {f.rule for f in fired if f.certain}
    # A rule may fire for want of a fact; a loader refuses only what it sees.
    refused = set(v2.check_supported(config, model, environment))
    assert surely & spoken_of("v2") <= refused <= maybe
    refused = set(v1.check_supported(config, model, environment))
    assert surely & spoken_of("v1") <= refused <= maybe


def public(cls: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(member)
        for name, member in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_")
    }


def test_both_runners_have_one_surface() -> None:
    interface = public(Runner)
    runners = (V1Runner, V1PoolingRunner, V2Runner, V2PoolingRunner)
    assert all(public(cls).keys() == interface.keys() for cls in runners)
    for name, signature in interface.items():
        parameters = [p.name for p in signature.parameters.values()]
        for cls in runners:
            assert [p.name for p in public(cls)[name].parameters.values()] == parameters, (cls, name)
    assert {cls.name for cls in runners} == set(BOOK.runners)


@pytest.mark.parametrize("override", ["v1", "v2"])
def test_the_environment_of_the_machine_never_makes_a_rule_about_the_model_fire(override) -> None:
    environment = Environment(has_triton=True, platform="cuda", override=override)
    raw = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 128, "head_dim": 32,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64,
        "vocab_size": 100, "max_position_embeddings": 64, "hidden_act": "silu", "torch_dtype": "bfloat16",
        "rope_theta": 1e4, "attention_bias": False,
    }  # fmt: skip
    facts = derive_facts(EngineConfig.from_flat("m"), ModelInfo.from_mapping(raw), environment)
    assert [f.rule for f in firings(BOOK, facts)] == [f"environment-{override}"]
