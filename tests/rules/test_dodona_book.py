"""What holds of rules/dodona.yaml: its examples, and the properties that docs/rules.md promises of it."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decide.evaluate import firings
from dodona.oracle.decide.outcome import Outcome, decide
from dodona.oracle.language.conditions import evaluate
from dodona.oracle.language.facts import UNKNOWN
from dodona.oracle.language.rule import Rule
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.machine.environment import Environment
from dodona.oracle.machine.packages import TESTED
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.select import verdict_for
from dodona.oracle.systems.books import bundled_rulebook
from dodona.oracle.systems.own.facts import FACTS, derive_facts
from dodona.oracle.testing import candidate_values, engine_config_mappings, environments, facts, model_infos

BOOK = bundled_rulebook("dodona")
RULES = {rule.id: rule for rule in BOOK.rules}
AGAINST_V2 = [rule for rule in BOOK.rules if rule.kind != "override" and "v2" in rule.runners]

GOOD_FACTS = {
    **derive_facts(
        EngineConfig.from_flat("model", dtype="bfloat16"),
        ModelInfo.from_mapping(
            {
                "architectures": ["Qwen3ForCausalLM"],
                "model_type": "qwen3",
                "hidden_size": 1024,
                "intermediate_size": 3072,
                "num_hidden_layers": 28,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "hidden_act": "silu",
                "vocab_size": 151936,
                "max_position_embeddings": 40960,
                "rope_theta": 1000000,
            }
        ),
        Environment(has_triton=True, platform="cuda", packages=TESTED),
    )
}
"""Qwen3-0.6B on a Hopper GPU: everything that V2 wants."""


def outcome(values: dict[str, Any], *, without: frozenset[str] = frozenset()) -> Outcome:
    return decide(BOOK, firings(BOOK, values, without=without))


def fired(values: dict[str, Any], *, without: frozenset[str] = frozenset()) -> set[str]:
    return {firing.rule for firing in firings(BOOK, values, without=without)}


BESIDE: dict[str, dict[str, Any]] = {
    "kv-connector-inner-states": {
        "kv_transfer_config.kv_connector": "OffloadingConnector",
        "model_config.model_type": "jamba",
    },
    "speculative-row-by-row": {"speculative_config.method": "ngram"},
    "kv-connector-row-by-row": {"kv_transfer_config.kv_connector": "OffloadingConnector"},
    "pooling-combinations": {"kv_transfer_config.kv_connector": "OffloadingConnector"},
    "speculative-kv-connector": {
        "kv_transfer_config.kv_connector": "OffloadingConnector",
        "speculative_config": True,
    },
}
"""By rule, what must be served for it to be the only reason: a drafter or a connector, and the model without
it."""


def witnesses(rule: Rule) -> list[dict[str, Any]]:
    """GOOD_FACTS, changed in the rule's own facts only (and those BESIDE it) so that it surely fires."""
    choices = [candidate_values(FACTS[name], BOOK, unknown=False) for name in rule.reads]
    found = []
    for values in itertools.islice(itertools.product(*choices), 20_000):
        changed = {
            **GOOD_FACTS,
            **BESIDE.get(rule.id, {}),
            **dict(zip(rule.reads, values, strict=True)),
        }
        if evaluate(rule.fires_when, changed) is True:
            found.append(changed)
    return found


@pytest.mark.parametrize("rule", RULES)
def test_examples(rule: str) -> None:
    condition = RULES[rule].fires_when
    for example in RULES[rule].examples.fires:
        assert evaluate(condition, example) is True, example
    for example in RULES[rule].examples.passes:
        assert evaluate(condition, example) is False, example


def test_v2_is_chosen_where_nothing_speaks_against_it() -> None:
    assert outcome(GOOD_FACTS) == Outcome("v2", False, "preferred", ())


def against(runner: str, values: dict[str, Any], *, without: frozenset[str]) -> set[str]:
    ids = fired(values, without=without)
    return {rule for rule in ids if RULES[rule].kind != "override" and runner in RULES[rule].runners}


@pytest.mark.parametrize("rule", [rule.id for rule in BOOK.rules if rule.kind != "override"])
def test_each_rule_can_be_the_only_reason(rule: str) -> None:
    broader = BOOK.refined_by(rule)
    for runner in RULES[rule].runners:
        alone = [v for v in witnesses(RULES[rule]) if against(runner, v, without=broader) == {rule}]
        assert alone, f"no facts make this rule the only one against {runner}"
        for values in alone:
            forced = {**values, "environment.override": runner}
            override = f"environment-{runner}"
            assert outcome(forced, without=broader) == Outcome(None, True, override, (rule,))
            assert outcome(forced, without=broader | {rule}) == Outcome(runner, True, override, ())
            if runner == "v2":
                assert outcome(values, without=broader).runner == "v1"
                assert outcome(values, without=broader | {rule}) == Outcome("v2", False, "preferred", ())


def test_each_override_can_be_the_only_reason() -> None:
    for runner in ("v1", "v2"):
        (values,) = witnesses(RULES[f"environment-{runner}"])
        assert fired(values) == {f"environment-{runner}"}
        assert outcome(values) == Outcome(runner, True, f"environment-{runner}", ())


@pytest.mark.parametrize("rule", [rule.id for rule in BOOK.rules if rule.refines])
def test_a_special_case_fires_only_where_the_broader_rule_does(rule: str) -> None:
    specials = RULES[rule]
    broader = [RULES[target] for target in specials.refines]
    reads = sorted({name for r in (specials, *broader) for name in r.reads})
    # sections and their fields are derived together: a field that is set belongs to a section that is
    for values in itertools.product(*(candidate_values(FACTS[name], BOOK, unknown=False) for name in reads)):
        changed = {**GOOD_FACTS, **dict(zip(reads, values, strict=True))}
        if any(name.startswith("speculative_config.") and changed[name] is not None for name in reads):
            changed["speculative_config"] = True
        if rule in fired(changed):
            assert set(specials.refines) <= fired(changed)


@given(facts(BOOK))
def test_the_verdict_is_total_and_deterministic(values: dict[str, Any]) -> None:
    first = outcome(values)
    assert first == outcome(dict(reversed(values.items())))
    assert first.runner in ("v1", "v2") or first.refusals
    against = {rule.id for rule in AGAINST_V2} & fired(values)
    if first.runner == "v2":
        assert not against
    if first.runner is None:
        assert first.forced


@given(facts(BOOK), st.randoms(use_true_random=False))
def test_the_order_of_rules_changes_no_outcome(values: dict[str, Any], rng: random.Random) -> None:
    shuffled = list(BOOK.rules)
    rng.shuffle(shuffled)
    other = RuleBook.model_validate(
        {**BOOK.model_dump(mode="python"), "rules": tuple(shuffled)}, context=BOOK.facts
    )
    ours, theirs = outcome(values), decide(other, firings(other, values))
    assert (ours.runner, ours.forced, ours.decided_by) == (theirs.runner, theirs.forced, theirs.decided_by)
    assert set(ours.refusals) == set(theirs.refusals)


@given(facts(BOOK), st.sampled_from(AGAINST_V2), st.data())
def test_adding_an_unsupported_feature_never_turns_v1_into_v2(
    values: dict[str, Any], rule: Rule, data: st.DataObject
) -> None:
    witness = data.draw(st.sampled_from(witnesses(rule)))
    added = {**values, **{name: witness[name] for name in rule.reads}}
    before, after = outcome(values), outcome(added)
    assert rule.id in fired(added)
    assert after.runner != "v2"
    if before.runner != "v2":
        assert after.runner in (before.runner, None) or before.runner is None


@given(facts(BOOK))
def test_without_the_features_that_fired_the_preferred_runner_is_chosen(values: dict[str, Any]) -> None:
    values = {**values, "environment.override": None}
    # Again while something fires: a method taken away can leave a setting behind that needs one.
    while blamed := {name for rule in fired(values) for name in RULES[rule].reads}:
        repaired = {**values, **{name: GOOD_FACTS[name] for name in blamed}}
        assert repaired != values, "the rules that fire read good facts only"
        values = repaired
    assert outcome(values) == Outcome("v2", False, "preferred", ())


@given(facts(BOOK))
def test_forcing_past_a_reason_is_refused_with_every_reason(values: dict[str, Any]) -> None:
    for runner in ("v1", "v2"):
        forced = {**values, "environment.override": runner}
        result = outcome(forced)
        against = tuple(
            rule.id
            for rule in BOOK.rules
            if rule.kind != "override" and runner in rule.runners and rule.id in fired(forced)
        )
        expected = None if against else runner
        assert result == Outcome(expected, True, f"environment-{runner}", against)


@given(facts(BOOK), st.sampled_from(sorted(BOOK.reads)))
def test_what_is_not_known_never_speaks_for_a_runner(values: dict[str, Any], name: str) -> None:
    if name.startswith("environment.override"):
        return
    known = fired(values)
    unknown = {**values, name: UNKNOWN}
    lost = known - fired(unknown)
    assert not lost


# --- from configurations

QWEN = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "vocab_size": 100,
    "max_position_embeddings": 128,
    "dtype": "bfloat16",
}
LLAMA = {**QWEN, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}

# (config.json, sections of the configuration, ids of the rules that fire on a GPU machine)
CONFIGURATIONS: dict[str, tuple[dict[str, Any], dict[str, Any], set[str]]] = {
    "plain": (QWEN, {}, set()),
    "empty KV transfer": (QWEN, {"kv_transfer_config": {}}, set()),
    "connector without role": (QWEN, {"kv_transfer_config": {"kv_connector": "NixlConnector"}}, set()),
    "connector": (
        QWEN,
        {"kv_transfer_config": {"kv_connector": "AnyName", "kv_role": "kv_both"}},
        {"kv-connector"},
    ),
    "KV offloading": (QWEN, {"cache_config": {"kv_offloading_size": 4.0}}, set()),
    "KV offloading by LMCache": (
        QWEN,
        {"cache_config": {"kv_offloading_size": 4.0, "kv_offloading_backend": "lmcache"}},
        {"kv-connector"},
    ),
    "KV offloading of nothing": (QWEN, {"cache_config": {"kv_offloading_size": 0.0}}, set()),
    "EAGLE3 with pipeline": (
        LLAMA,
        {
            "speculative_config": {"method": "eagle3", "model": "m"},
            "parallel_config": {"pipeline_parallel_size": 2},
        },
        {
            "pipeline-parallelism",
            "eagle3-pipeline-parallelism",
        },
    ),
    "drafting of unknown method with pipeline": (
        LLAMA,
        {"speculative_config": {"model": "draft"}, "parallel_config": {"pipeline_parallel_size": 2}},
        {
            "speculative-decoding",
            "speculative-method",
            "speculative-mtp",
            "pipeline-parallelism",
            "eagle3-pipeline-parallelism",
        },
    ),
    "parallel drafting": (
        LLAMA,
        {"speculative_config": {"method": "eagle", "model": "m", "parallel_drafting": True}},
        {"parallel-drafting"},
    ),
    "prompt lookup": (QWEN, {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, set()),
    "draft on two devices": (
        QWEN,
        {
            "speculative_config": {
                "method": "ngram",
                "draft_tensor_parallel_size": 2,
                "num_speculative_tokens": 2,
            }
        },
        {"draft-tensor-parallelism"},
    ),
    "empty speculation": (
        QWEN,
        {"speculative_config": {}},
        {"speculative-decoding", "speculative-method", "speculative-mtp"},
    ),
    "empty LoRA": (QWEN, {"lora_config": {}}, {"lora"}),
    "stock compile by number": (QWEN, {"compilation_config": {"mode": 1}}, {"stock-torch-compile"}),
    "stock compile by name": (
        QWEN,
        {"compilation_config": {"mode": "stock_torch_compile"}},
        {"stock-torch-compile"},
    ),
    "no compilation": (QWEN, {"compilation_config": {"mode": 0}}, set()),
    "yarn": ({**LLAMA, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, {}, {"rope"}),
    "attention bias": ({**LLAMA, "attention_bias": True}, {}, {"attention-bias"}),
    "head of 80": ({**LLAMA, "head_dim": 80}, {}, {"head-size"}),
    "quantized weights": ({**QWEN, "quantization_config": {"quant_method": "fp8"}}, {}, set()),
    "quantized by flag": (QWEN, {"model_config": {"quantization": "FP8"}}, set()),
    "groups in the order of activations": (
        {**QWEN, "quantization_config": {"quant_method": "gptq", "bits": 4, "desc_act": True}},
        {},
        {"quantized-weights"},
    ),
    "weights that none reads": (
        {**QWEN, "quantization_config": {"quant_method": "hqq"}},
        {},
        {"quantization"},
    ),
    "experts": (
        {**QWEN, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 8},
        {},
        {"architecture", "moe"},
    ),
    "CPU on a GPU machine": (QWEN, {"device_config": {"device": "cpu"}}, {"cuda"}),
    "pooling": (QWEN, {"model_config": {"runner": "pooling"}}, set()),
    "embeddings by convert": (QWEN, {"model_config": {"convert": "embed"}}, set()),
    "a classifier": ({**QWEN, "architectures": ["Qwen3ForSequenceClassification"]}, {}, set()),
    "the class without an output layer": ({**LLAMA, "architectures": ["LlamaModel"]}, {}, set()),
    "that class, to generate": (
        {**LLAMA, "architectures": ["LlamaModel"]},
        {"model_config": {"runner": "generate"}},
        {"architecture"},
    ),
    "pooling with drafts": (
        QWEN,
        {
            "model_config": {"runner": "pooling"},
            "speculative_config": {"method": "ngram", "num_speculative_tokens": 2},
        },
        {"pooling-combinations"},
    ),
    "a draft model": (QWEN, {"model_config": {"runner": "draft"}}, {"draft-runner"}),
    "late interaction": (
        {**QWEN, "architectures": ["ColBERTModel"]},
        {},
        {"architecture", "pooling"},
    ),
    "settings of pooling for a model that generates": (QWEN, {"pooler_config": {}}, {"pooler-config"}),
    "code of its own, not trusted": ({**LLAMA, "auto_map": {"AutoModel": "m.M"}}, {}, set()),
    "code of its own, trusted": (
        {**LLAMA, "auto_map": {"AutoModel": "m.M"}},
        {"model_config": {"trust_remote_code": True}},
        {"remote-code"},
    ),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_configurations_fire_the_rules_that_name_their_features(case: str) -> None:
    model, sections, expected = CONFIGURATIONS[case]
    merged = {**sections, "model_config": {"model": "m", **sections.get("model_config", {})}}
    verdict = verdict_for(
        EngineConfig.from_mapping(merged),
        ModelInfo.from_mapping(model),
        Environment(has_triton=True, platform="cuda"),
        BOOK,
        trusted=True,
    )
    assert {reason.rule for reason in verdict.reasons} == expected
    assert verdict.runner == ("v1" if expected else "v2")
    assert {r.rule for r in verdict.refusals} == {r for r in expected if "v1" in RULES[r].runners}


FEATURES: list[dict[str, Any]] = [
    {"parallel_config": {"tensor_parallel_size": 2}, "lora_config": {}},
    {"parallel_config": {"pipeline_parallel_size": 2}},
    {"parallel_config": {"prefill_context_parallel_size": 2}},
    {"parallel_config": {"enable_expert_parallel": True}},
    {"speculative_config": {"method": "medusa"}},
    {"speculative_config": {"method": "ngram", "parallel_drafting": True}},
    {"lora_config": {}},
    {"kv_transfer_config": {"kv_connector": "X", "kv_role": "kv_both"}},
    {"cache_config": {"kv_offloading_size": 1.0, "kv_offloading_backend": "lmcache"}},
    {"cache_config": {"block_size": 7}},
    {"compilation_config": {"mode": 1}},
    {"model_config": {"quantization": "awq"}},
    {"model_config": {"runner": "draft"}},
    {"device_config": {"device": "cpu"}},
]


@settings(max_examples=300)
@given(engine_config_mappings(), model_infos(), environments(), st.sampled_from(FEATURES))
def test_configurations_adding_a_feature_never_turns_v1_into_v2(
    mapping: dict[str, Any], model: ModelInfo, environment: Environment, feature: dict[str, Any]
) -> None:
    added = {
        **mapping,
        **{section: {**(mapping.get(section) or {}), **fields} for section, fields in feature.items()},
    }
    before = verdict_for(EngineConfig.from_mapping(mapping), model, environment, BOOK, trusted=True)
    after = verdict_for(EngineConfig.from_mapping(added), model, environment, BOOK, trusted=True)
    assert after.runner != "v2"
    assert {r.rule for r in after.reasons}
    if before.runner != "v2":
        assert after.runner in (before.runner, None) or before.runner is None
