"""The trace of a decision against the verdict, and the factoring of sets of changes."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.explain.set_products import independent_choices
from dodona.oracle.explain.trace import Step, trace
from dodona.oracle.machine.environment import Environment, assumed_gpu
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.select import verdict_for
from dodona.oracle.systems.books import bundled_rulebook
from dodona.oracle.systems.own.deployment import OwnDeployment
from dodona.oracle.systems.vllm.deployment import VllmDeployment
from dodona.oracle.testing import engine_config_mappings, environments, model_infos

DODONA = bundled_rulebook("dodona")
PLAIN = ModelInfo.from_mapping(
    {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "bfloat16"}
)


def steps_of(machine: Environment | None = None, **arguments: Any) -> dict[str, Step]:
    config = EngineConfig.from_flat("model", **arguments)
    steps = trace(OwnDeployment(config, PLAIN, machine or assumed_gpu(), DODONA))
    return {step.rule.id: step for step in steps}


@settings(max_examples=80, deadline=None)
@given(engine_config_mappings(), st.one_of(st.none(), model_infos()), environments())
def test_a_trace_agrees_with_the_verdict(
    mapping: dict[str, Any], model: ModelInfo | None, machine: Environment
) -> None:
    config = EngineConfig.from_mapping(mapping)
    verdict = verdict_for(config, model, machine, DODONA)
    steps = trace(OwnDeployment(config, model, machine, DODONA))
    assert [step.rule.id for step in steps] == [rule.id for rule in DODONA.rules]
    assert [s.rule.id for s in steps if s.fired] == [reason.rule for reason in verdict.reasons]
    assert [s.feature for s in steps if s.fired] == [reason.feature for reason in verdict.reasons]
    for step, rule in zip(steps, DODONA.rules, strict=True):
        assert tuple(read.name for read in step.facts) == rule.reads
        assert bool(step.effect) is step.fired
    decisive = {s.rule.id for s in steps if s.decisive}
    assert {reason.rule for reason in verdict.refusals} <= decisive
    # no rule is decisive where the preferred runner serves, and some rule is elsewhere
    assert bool(decisive) is (verdict.decided_by != "preferred")
    json.dumps([step.to_mapping() for step in steps])


def test_the_deciding_override_and_what_it_makes_moot() -> None:
    steps = steps_of(assumed_gpu("v1"), block_size=48)
    assert (steps["environment-v1"].effect, steps["environment-v1"].decisive) == ("chooses v1", True)
    assert (steps["block-size"].effect, steps["block-size"].decisive) == ("against v2, moot", False)


def test_what_ruled_out_the_preferred_runner() -> None:
    step = steps_of(block_size=48)["block-size"]
    assert (step.fired, step.effect, step.decisive) == (True, "rules out v2", True)
    assert [str(read) for read in step.facts] == ["cache_config.block_size = 48"]


def test_unknown_facts_are_told_as_such() -> None:
    config = EngineConfig.from_flat("model")
    steps = {s.rule.id: s for s in trace(OwnDeployment(config, None, assumed_gpu(), DODONA))}
    moe = steps["moe"]
    assert (moe.fired, moe.certain) == (True, False)
    assert [str(read) for read in moe.facts] == ["model_config.is_moe is not known"]
    assert moe.to_mapping()["facts"] == [{"fact": "model_config.is_moe", "assumed": False, "known": False}]


def test_assumed_facts_are_told_as_such() -> None:
    book = bundled_rulebook("vllm/0.33.0")
    sections = {"model_config": {"model": "m"}, "parallel_config": {"pipeline_parallel_size": 2}}
    steps = {s.rule.id: s for s in trace(VllmDeployment(sections, PLAIN, assumed_gpu(), book))}
    reads = [str(read) for read in steps["v1-pipeline-parallelism-async"].facts]
    assert "scheduler_config.async_scheduling = unset (assumed)" in reads
    assert "parallel_config.pipeline_parallel_size = 2" in reads


SETS = st.lists(st.frozensets(st.integers(0, 5), max_size=4), min_size=1, max_size=8, unique=True)


@given(SETS)
def test_factors_give_the_family_again(family: list[frozenset[int]]) -> None:
    blocks = independent_choices([tuple(sorted(chosen)) for chosen in family])
    products = [frozenset(itertools.chain(*picked)) for picked in itertools.product(*blocks)]
    assert sorted(map(sorted, products)) == sorted(map(sorted, family))


def test_factors_of_a_product() -> None:
    family = [("a", "c", "e"), ("a", "d", "e"), ("b", "c", "e"), ("b", "d", "e")]
    assert independent_choices(family) == [[("a",), ("b",)], [("c",), ("d",)], [("e",)]]
