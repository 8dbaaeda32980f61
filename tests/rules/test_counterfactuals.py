"""Counterfactuals against brute force over all subsets of changes, for dodona.yaml and for random books."""

from __future__ import annotations

import datetime
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decide.evaluate import firings, with_assumptions
from dodona.oracle.decide.outcome import decide
from dodona.oracle.decide.verdict import Verdict
from dodona.oracle.errors import ConfigError, UnsupportedConfiguration
from dodona.oracle.explain.counterfactuals import Counterfactuals, counterfactuals
from dodona.oracle.language.rule import RunnerName
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.machine.environment import Environment, assumed_gpu
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.select import select_runner, verdict_for
from dodona.oracle.systems.books import bundled_rulebook
from dodona.oracle.systems.deployment import Change
from dodona.oracle.systems.own.deployment import OwnDeployment, apply_changes, own_changes
from dodona.oracle.systems.own.facts import FACTS, derive_facts
from dodona.oracle.systems.verdict_deployment import deployment_of
from dodona.oracle.systems.vllm.arguments import from_command_line
from dodona.oracle.systems.vllm.deployment import VllmDeployment
from dodona.oracle.testing import engine_config_mappings, environments, model_infos

DODONA = bundled_rulebook("dodona")
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "bfloat16"}
PLAIN = ModelInfo.from_mapping(QWEN3)
CPU = Environment(has_triton=False, platform="cpu")

RUNNERS = st.sampled_from(["v1", "v2"])

Paths = frozenset[tuple[str, Any]]
"""A set of changes as pairs of a path and a new value."""


# --- brute force --------------------------------------------------------------------------------------------


def moves(config: EngineConfig) -> list[tuple[str, Any]]:
    """Every way to take one thing away, by comparing the configuration with a plain one."""
    given_, plain = config.to_mapping(), EngineConfig.from_flat("model").to_mapping()
    found: list[tuple[str, Any]] = []
    for section, fields in given_.items():
        if fields is None:
            continue
        default = plain[section]
        if default is None:
            found.append((section, None))
            default = EngineConfig.from_mapping({"model_config": {"model": "m"}, section: {}}).to_mapping()[
                section
            ]
        for field, value in fields.items():
            if (section, field) in (("model_config", "model"), ("model_config", "revision")):
                continue
            if value != default[field]:
                found.append((f"{section}.{field}", default[field]))
            if value is True and default[field] is True:
                found.append((f"{section}.{field}", False))
    return found


def moved(config: EngineConfig, chosen: tuple[tuple[str, Any], ...]) -> EngineConfig | None:
    """The configuration after some moves; None where two of them speak of the same thing."""
    mapping = config.to_mapping()
    seen: set[str] = set()
    for path, value in chosen:
        section, _, field = path.partition(".")
        if path in seen or section in seen or (not field and any(s.startswith(f"{path}.") for s in seen)):
            return None
        seen.add(path)
        if field:
            mapping[section][field] = value
        else:
            mapping[section] = None
    return EngineConfig.from_mapping(mapping)


def serves(
    config: EngineConfig, model: ModelInfo | None, machine: Environment, book: RuleBook, runner: str
) -> bool:
    facts, _ = with_assumptions(book, derive_facts(config, model, machine))
    outcome = decide(book, firings(book, facts))
    return outcome.runner == runner and not outcome.refusals


def brute_force(
    config: EngineConfig, model: ModelInfo | None, machine: Environment, book: RuleBook, runner: str
) -> set[Paths]:
    possible = moves(config)
    found: set[Paths] = set()
    for size in range(len(possible) + 1):
        for chosen in itertools.combinations(possible, size):
            if any(least <= frozenset(chosen) for least in found):
                continue
            changed = moved(config, chosen)
            if changed is not None and serves(changed, model, machine, book, runner):
                found.add(frozenset(chosen))
    return found


def paths(found: Counterfactuals) -> list[Paths]:
    return [frozenset((change.path, change.after) for change in least) for least in found]


def few_moves(config: EngineConfig, most: int, seed: int) -> EngineConfig:
    """The configuration with some fields reset until brute force over it is bearable."""
    rng = random.Random(seed)
    while len(possible := [move for move in moves(config) if move[1] is not False]) > most:
        reduced = moved(config, (rng.choice(possible),))
        assert reduced is not None
        config = reduced
    return config


# --- properties ---------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    engine_config_mappings(),
    st.one_of(st.none(), model_infos()),
    environments(),
    RUNNERS,
    st.booleans(),
    st.integers(0, 99),
)
def test_dodona_against_brute_force(
    mapping: dict[str, Any],
    model: ModelInfo | None,
    machine: Environment,
    runner: RunnerName,
    plain: bool,
    seed: int,
) -> None:
    if plain:
        # most random models and machines rule V2 out by themselves
        model, machine = PLAIN, assumed_gpu(machine.override)
    config = few_moves(EngineConfig.from_mapping(mapping), 6, seed)
    found = counterfactuals(OwnDeployment(config, model, machine, DODONA), runner)
    assert found.complete
    assert len(set(paths(found))) == len(found)
    assert set(paths(found)) == brute_force(config, model, machine, DODONA, runner)
    assert bool(found.blocked_by) is (len(found) == 0)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(engine_config_mappings(), environments(), RUNNERS)
def test_each_set_leads_to_the_runner_and_no_subset_does(
    mapping: dict[str, Any], machine: Environment, runner: RunnerName
) -> None:
    """Without a limit on the size of the configuration."""
    config = EngineConfig.from_mapping(mapping)
    machine = assumed_gpu(machine.override)
    for least in list(counterfactuals(OwnDeployment(config, PLAIN, machine, DODONA), runner))[:4]:
        assert serves(apply_changes(config, least), PLAIN, machine, DODONA, runner)
        for left_out in least:
            rest = [change for change in least if change is not left_out]
            assert not serves(apply_changes(config, rest), PLAIN, machine, DODONA, runner)


COMPARISONS = st.sampled_from(
    [
        {"parallel_config.pipeline_parallel_size": {"gt": 1}},
        {"parallel_config.tensor_parallel_size": {"ne": 1}},
        {"parallel_config.enable_expert_parallel": True},
        {"cache_config.enable_prefix_caching": True},
        {"cache_config.block_size": {"in": [16, 32]}},
        {"lora_config": {"is_set": True}},
        {"lora_config.max_loras": {"gt": 1}},
        {"compilation_config.mode": {"not_in": ["NONE", "VLLM_COMPILE"]}},
        {"speculative_config.method": "eagle3"},
        {"kv_transfer_config.is_active": True},
        {"device_config.device": "cpu"},
        {"model_config.quantization": {"is_set": True}},
        {"environment.override": "v2"},
    ]
)
CONDITIONS = st.recursive(
    COMPARISONS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=2).map(lambda parts: {"all": parts}),
        st.lists(inner, min_size=1, max_size=2).map(lambda parts: {"any": parts}),
        inner.map(lambda part: {"not": part}),
    ),
    max_leaves=3,
)


@st.composite
def books(draw: st.DrawFn) -> RuleBook:
    """Small books of any form: overrides, stages, vetoes on either runner."""
    rules: list[dict[str, Any]] = []
    for i in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["override", "require", "veto", "veto"]))
        rule = {
            "id": f"rule-{i}",
            "kind": kind,
            "when": draw(CONDITIONS),
            "feature": "feature",
            "because": "because",
            "since": datetime.date(2026, 1, 1),
            "examples": {
                "fires": [{"lora_config": None}],
                "passes": [{"lora_config": None}],
            },
        }
        if kind == "override":
            rule["runners"] = draw(st.sampled_from([["v1"], ["v2"], []]))
            rule["precedence"] = i + 1
            rule["unless_vetoed"] = draw(st.sampled_from([None, "v1", "v2"]))
        else:
            rule["runners"] = draw(st.sampled_from([["v1"], ["v2"], ["v2"], ["v1", "v2"]]))
            rule["stage"] = draw(st.sampled_from(["both", "choice", "startup"]))
        rules.append(rule)
    return RuleBook.model_validate(
        {
            "rulebook": "random",
            "description": "random",
            "system": "dodona",
            "runners": draw(st.sampled_from([["v2", "v1"], ["v1", "v2"]])),
            "environment": {"variable": "V", "values": {"0": "v1", "1": "v2"}, "otherwise": "error"},
            "forced_refusal": draw(st.sampled_from(["choice", "startup"])),
            "rules": rules,
        },
        context=FACTS,
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    books(),
    st.fixed_dictionaries(
        {},
        optional={
            "pipeline_parallel_size": st.just(2),
            "tensor_parallel_size": st.just(2),
            "enable_expert_parallel": st.just(True),
            "enable_prefix_caching": st.booleans(),
            "block_size": st.sampled_from([8, 32]),
            "quantization": st.just("fp8"),
            "device": st.just("cpu"),
            "compilation_config": st.sampled_from([0, 1]),
            "speculative_config": st.sampled_from([{"method": "eagle3"}, {"model": "x-eagle3"}]),
            "kv_transfer_config": st.just({"kv_connector": "C", "kv_role": "kv_both"}),
        },
    ),
    st.booleans(),
    environments(),
    RUNNERS,
)
def test_any_book_against_brute_force(
    book: RuleBook, arguments: dict[str, Any], lora: bool, machine: Environment, runner: RunnerName
) -> None:
    if lora:
        arguments |= {"enable_lora": True, "max_loras": 2}
    config = EngineConfig.from_flat("model", **arguments)
    config = few_moves(config, 6, len(arguments))
    found = counterfactuals(OwnDeployment(config, PLAIN, machine, book), runner)
    assert set(paths(found)) == brute_force(config, PLAIN, machine, book, runner)
    assert bool(found.blocked_by) is (len(found) == 0)


FLAGS = st.fixed_dictionaries(
    {},
    optional={
        "-pp": st.just("2"),
        "-pcp": st.just("2"),
        "--enable-dbo": st.just(None),
        "--enable-lora": st.just(None),
        "--reasoning-parser": st.just("x"),
        "--runner": st.just("pooling"),
        "--compilation-config": st.just("1"),
        "--async-scheduling": st.just(None),
        "--kv-sharing-fast-prefill": st.just(None),
        "--speculative-config": st.sampled_from(
            ['{"method": "dspark"}', '{"method": "eagle3", "parallel_drafting": true}']
        ),
        "--watermark-config": st.just("{}"),
    },
)


@pytest.mark.parametrize("release", ["0.22.0", "0.27.0", "0.33.0"])
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(FLAGS, st.sampled_from([None, "v1", "v2"]), RUNNERS)
def test_vllm_books(
    release: str, tmp_path: Path, flags: dict[str, str | None], override: Any, runner: RunnerName
) -> None:
    """All subsets of the changes of a deployment: the selection itself confirms each."""
    (tmp_path / "config.json").write_text(json.dumps(QWEN3))
    book = f"vllm/{release}"
    words = [w for flag, value in flags.items() for w in (flag, value) if w is not None]
    machine = assumed_gpu(override)
    verdict = select_runner([str(tmp_path), *words], rulebook=book, environment=machine)
    deployment = deployment_of(verdict)
    assert isinstance(deployment, VllmDeployment)
    assume(len(deployment.changes()) <= 6)

    def reached(chosen: tuple[Change, ...]) -> bool:
        changed = select_runner(deployment.sections_after(chosen), rulebook=book, environment=machine)
        return changed.runner == runner and not changed.refusals

    expected: list[tuple[Change, ...]] = []
    for size in range(len(deployment.changes()) + 1):
        for chosen in itertools.combinations(deployment.changes(), size):
            if any(a.clashes(b) for a, b in itertools.combinations(chosen, 2)):
                continue
            if not any(set(least) <= set(chosen) for least in expected) and reached(chosen):
                expected.append(chosen)
    assert sorted(map(str, verdict.counterfactuals(runner))) == sorted(map(str, expected))


# --- single cases -------------------------------------------------------------------------------------------


def ask(runner: RunnerName, machine: Environment | None = None, **arguments: Any) -> Counterfactuals:
    config = EngineConfig.from_flat("model", **arguments)
    return counterfactuals(OwnDeployment(config, PLAIN, machine or assumed_gpu(), DODONA), runner)


def texts(found: Counterfactuals) -> list[list[str]]:
    return [[str(change) for change in least] for least in found]


def test_a_field_goes_back_to_its_default() -> None:
    assert texts(ask("v2", pipeline_parallel_size=2)) == [["parallel_config.pipeline_parallel_size 2 → 1"]]


def test_a_section_is_left_out() -> None:
    found = ask("v2", kv_transfer_config={"kv_connector": "C", "kv_role": "kv_both"})
    assert texts(found) == [
        ["kv_transfer_config → unset"],
        ["kv_transfer_config.kv_connector C → unset"],
        ["kv_transfer_config.kv_role kv_both → unset"],
    ]


def test_nothing_has_to_change() -> None:
    found = ask("v2")
    assert found.holds_already
    assert list(found) == [()]
    assert found.blocked_by == ()


def test_the_model_blocks() -> None:
    moe = ModelInfo.from_mapping({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"})
    config = EngineConfig.from_flat("model", pipeline_parallel_size=2)
    found = counterfactuals(OwnDeployment(config, moe, assumed_gpu(), DODONA), "v2")
    assert not found
    assert [(b.rule, b.sources) for b in found.blocked_by] == [
        ("architecture", ("model",)),
        ("moe", ("model",)),
    ]


def test_the_machine_blocks() -> None:
    found = ask("v2", CPU, pipeline_parallel_size=2)
    assert not found
    assert {b.sources for b in found.blocked_by} == {("machine",)}
    assert found.blocked_by[0].facts == ("device_config.device = cpu", "environment.platform = cpu")


def test_the_override_blocks_and_forcing_is_told_apart() -> None:
    found = ask("v2", assumed_gpu("v1"), decode_context_parallel_size=2)
    assert [(b.rule, b.sources) for b in found.blocked_by] == [("environment-v1", ("override",))]
    assert [(f.value, f.runner, f.refusals) for f in found.forcing] == [
        ("1", None, ("decode context parallelism (2 devices)",)),
        (None, "v1", ("decode context parallelism (2 devices)",)),
    ]


def test_the_preference_blocks() -> None:
    found = ask("v1", enable_prefix_caching=False)
    assert not found
    assert [(b.rule, b.sources) for b in found.blocked_by] == [("preferred", ("preference",))]
    assert [str(f) for f in found.forcing] == ["DODONA_USE_V2_MODEL_RUNNER=0: v1 starts"]


def test_a_special_case_is_looked_at_by_itself() -> None:
    found = ask(
        "v2",
        pipeline_parallel_size=2,
        speculative_config={"method": "eagle3", "model": "m"},
    )
    assert texts(found) == [["parallel_config.pipeline_parallel_size 2 → 1"]]
    special = {
        case.rule: (case.broader, [list(map(str, least)) for least in case.sets])
        for case in found.special_cases
    }
    assert special == {
        "eagle3-pipeline-parallelism": (
            ("pipeline-parallelism",),
            [["parallel_config.pipeline_parallel_size 2 → 1"], ["speculative_config → unset"]],
        ),
    }


def test_what_is_on_by_default_may_be_turned_off() -> None:
    config = EngineConfig.from_flat("model", enable_chunked_prefill=False)
    found = {(c.path, c.after) for c in own_changes(config)}
    assert found == {
        ("cache_config.enable_prefix_caching", False),
        ("scheduler_config.enable_chunked_prefill", True),
    }


def test_thousands_of_sets_are_cut_off() -> None:
    """Twelve rules of which each can be met in three ways: more sets than anyone reads."""
    flags = {
        "pipeline_parallel_size": 2, "tensor_parallel_size": 2, "data_parallel_size": 2,
        "prefill_context_parallel_size": 2, "decode_context_parallel_size": 2, "block_size": 8,
        "max_num_seqs": 3, "max_num_batched_tokens": 9,
    }  # fmt: skip
    names = [c.path for c in own_changes(EngineConfig.from_flat("model", **flags)) if c.after is not False]
    wants = {c.path: c.before for c in own_changes(EngineConfig.from_flat("model", **flags))}
    rules = [
        {
            "id": f"pair-{i}",
            "kind": "veto",
            "runners": ["v2"],
            "when": {"all": [{n: {"eq": wants[n]}} for n in four]},
            "feature": "four",
            "because": "four",
            "since": datetime.date(2026, 1, 1),
            "examples": {"fires": [{"lora_config": None}], "passes": [{"lora_config": None}]},
        }
        for i, four in enumerate(itertools.combinations(names, 4))
    ]
    book = RuleBook.model_validate(
        {
            "rulebook": "big",
            "description": "big",
            "system": "dodona",
            "runners": ["v2", "v1"],
            "rules": rules,
        },
        context=FACTS,
    )
    config = EngineConfig.from_flat("model", **flags)
    found = counterfactuals(OwnDeployment(config, PLAIN, assumed_gpu(), book), "v2")
    # any five of the eight fields break all groups of four
    assert found.complete
    assert {len(least) for least in found} == {5}
    assert len(found) == 56


def test_an_unknown_runner_is_refused() -> None:
    with pytest.raises(ValueError, match="no runner 'v3'; it has v2, v1"):
        ask("v3")  # type: ignore[arg-type]


# --- from a verdict -----------------------------------------------------------------------------------------


@pytest.fixture
def qwen3(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3))
    return str(tmp_path)


def test_a_verdict_answers_for_the_machine_it_was_made_for(qwen3: str) -> None:
    config = EngineConfig.from_flat(qwen3, compilation_config=1)
    verdict = select_runner(config, environment=assumed_gpu())
    restored = Verdict.model_validate_json(verdict.model_dump_json())
    assert restored == verdict
    assert restored.environment == assumed_gpu()
    assert texts(restored.counterfactuals("v2")) == [
        ["compilation_config → unset"],
        ["compilation_config.mode STOCK_TORCH_COMPILE → unset"],
    ]
    on_cpu = select_runner(config, environment=CPU)
    assert not on_cpu.counterfactuals("v2")


def test_a_refused_verdict_answers_too(qwen3: str) -> None:
    with pytest.raises(UnsupportedConfiguration) as refusal:
        select_runner(
            EngineConfig.from_flat(qwen3, decode_context_parallel_size=2), environment=assumed_gpu()
        )
    assert refusal.value.verdict is not None
    assert texts(refusal.value.verdict.counterfactuals("v2")) == [
        ["parallel_config.decode_context_parallel_size 2 → 1"]
    ]


def test_a_verdict_of_another_content_is_refused(qwen3: str) -> None:
    verdict = select_runner(qwen3, environment=assumed_gpu())
    other = verdict.model_copy(
        update={"rulebook": verdict.rulebook.model_copy(update={"content_hash": "0" * 64})}
    )
    with pytest.raises(ConfigError, match="another content of rule book dodona"):
        other.counterfactuals("v2")
    foreign = verdict.model_copy(update={"rulebook": verdict.rulebook.model_copy(update={"name": "mine"})})
    with pytest.raises(ConfigError, match="rule book mine doesn't come with Dodona"):
        foreign.counterfactuals("v2")
    assert foreign.counterfactuals("v2", rulebook=DODONA).holds_already


def test_a_verdict_without_a_machine_is_refused(qwen3: str) -> None:
    verdict = select_runner(qwen3, environment=assumed_gpu()).model_copy(update={"environment": None})
    with pytest.raises(ConfigError, match="for which machine"):
        verdict.counterfactuals("v2")


def test_plain_values(qwen3: str) -> None:
    found = ask("v2", assumed_gpu("v1"), kv_transfer_config={"kv_connector": "C", "kv_role": "kv_both"})
    data = found.to_mapping()
    assert json.loads(json.dumps(data))["blocked_by"][0]["rule"] == "environment-v1"
    assert data["holds_already"] is False


def test_the_verdict_for_an_unknown_model_has_no_way_to_v2() -> None:
    config = EngineConfig.from_flat("model", pipeline_parallel_size=2)
    verdict = verdict_for(config, None, assumed_gpu(), DODONA)
    assert verdict.runner == "v1"
    found = counterfactuals(OwnDeployment(config, None, assumed_gpu(), DODONA), "v2")
    assert not found
    assert "model_config.is_moe is not known" in [text for b in found.blocked_by for text in b.facts]


# --- what facts depend on -----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(engine_config_mappings(), st.integers(1, 10**6), st.one_of(st.none(), model_infos()), environments())
def test_a_fact_stays_where_a_change_does_not_affect_it(
    mapping: dict[str, Any], length: int, model: ModelInfo | None, machine: Environment
) -> None:
    """The search trusts what the registry says each fact is derived from."""
    mapping = {**mapping, "model_config": {**mapping["model_config"], "max_model_len": length}}
    config = EngineConfig.from_mapping(mapping)
    before = derive_facts(config, model, machine)
    for change in own_changes(config):
        after = derive_facts(apply_changes(config, [change]), model, machine)
        moved_facts = {name for name in FACTS if before[name] != after[name]}
        assert {name for name in moved_facts if not change.touches(FACTS[name])} == set(), change


@settings(max_examples=60, deadline=None)
@given(FLAGS, st.sampled_from(["0.22.0", "0.30.0", "0.33.0"]))
def test_a_vllm_fact_stays_where_a_change_does_not_affect_it(
    flags: dict[str, str | None], release: str
) -> None:
    words = [w for flag, value in flags.items() for w in (flag, value) if w is not None]
    sections = from_command_line(["model", *words]).sections
    deployment = VllmDeployment(sections, PLAIN, assumed_gpu(), bundled_rulebook(f"vllm/{release}"))
    before = deployment.facts()
    for change in deployment.changes():
        after = deployment.facts([change])
        for name in before:
            assert before[name] == after[name] or deployment.affects(change, name), (change, name)
