"""`select_runner` on real model directories: what it takes, what it refuses, and that it decides once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decide.durable import engine as durable_engine
from dodona.oracle.decide.durable import evaluation as durable
from dodona.oracle.decide.durable.compiling import CompiledBook
from dodona.oracle.decide.durable.engine import Engine, EngineFault, EngineUnavailable
from dodona.oracle.decide.verdict import Verdict
from dodona.oracle.errors import ConfigError, RuleFileError, UnsupportedConfiguration
from dodona.oracle.language.rulebook import EnvironmentVariable
from dodona.oracle.machine.environment import Environment
from dodona.oracle.select import select_runner
from dodona.oracle.systems.books import bundled_rulebook, parse_rulebook
from dodona.oracle.testing import engine_config_mappings, environments
from tests.support.child_interpreter import child_environment

OVERRIDE_VARIABLE = "DODONA_USE_V2_MODEL_RUNNER"
CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
QWEN3 = CHECKPOINTS / "qwen3"
BOOK_FILE = Path(__file__).parents[2] / "rules" / "dodona.yaml"
GPU = Environment(has_triton=True, platform="cuda")
CPU = Environment(has_triton=False, platform="cpu")

durable_rules = pytest.mark.skipif(sys.version_info >= (3, 13), reason="durable-rules has no Python 3.13")


@pytest.mark.parametrize("name", ["qwen3", "llama", "mistral"])
def test_trained_checkpoints(name: str) -> None:
    on_gpu = select_runner(CHECKPOINTS / name, environment=GPU)
    assert (on_gpu.runner, on_gpu.decided_by, on_gpu.reasons) == ("v2", "preferred", ())
    on_cpu = select_runner(CHECKPOINTS / name, environment=CPU)
    assert (on_cpu.runner, on_cpu.decided_by, on_cpu.refusals) == ("v1", "fallback", ())
    assert {reason.rule for reason in on_cpu.reasons} == {"cuda", "triton", "compute-capability"}


def test_what_select_runner_takes() -> None:
    config = EngineConfig.from_flat(str(QWEN3))
    expected = select_runner(config, environment=GPU)
    for same in (QWEN3, str(QWEN3), {"model_config": {"model": str(QWEN3)}}, config.to_mapping()):
        assert select_runner(same, environment=GPU) == expected
    assert select_runner(config, rulebook=bundled_rulebook("dodona"), environment=GPU) == expected
    with pytest.raises(
        ConfigError, match="expected an EngineConfig, a mapping, or a model directory, got int"
    ):
        select_runner(3)  # type: ignore[arg-type]


@settings(max_examples=100)
@given(engine_config_mappings(str(QWEN3)), environments())
def test_every_configuration_gets_a_verdict_or_a_named_refusal(
    mapping: dict[str, Any], machine: Environment
) -> None:
    refusal: UnsupportedConfiguration | None = None
    try:
        verdict = select_runner(mapping, environment=machine)
    except UnsupportedConfiguration as error:
        verdict, refusal = error.verdict, error
    assert verdict is not None
    assert (refusal is None) is not bool(verdict.refusals)
    if refusal is not None:
        assert all(f"[{reason.rule}]" in str(refusal) for reason in verdict.refusals)
    if machine.override is not None:
        assert verdict.forced_runner == machine.override
        assert verdict.runner in (machine.override, None)


@pytest.mark.parametrize(
    ("flags", "runner", "rules"),
    [
        ({"pipeline_parallel_size": 2}, "v2", {"pipeline-parallelism"}),
        ({"compilation_config": {"mode": 1}}, "v2", {"stock-torch-compile"}),
        ({"speculative_config": {"method": "medusa"}}, "v2", {"speculative-decoding"}),
        ({"speculative_config": {"method": "medusa"}}, "v1", {"speculative-method"}),
        (
            {"enable_lora": True, "kv_cache_dtype": "fp8", "block_size": 8},
            "v2",
            {"lora", "kv-cache-dtype", "block-size"},
        ),
    ],
)
def test_a_forced_runner_past_any_reason_is_refused_with_all_of_them(
    flags: dict[str, Any], runner: str, rules: set[str]
) -> None:
    forced = Environment(has_triton=True, platform="cuda", override=runner)
    with pytest.raises(UnsupportedConfiguration, match=f"{runner}, which was forced") as caught:
        select_runner(EngineConfig.from_flat(str(QWEN3), **flags), environment=forced)
    verdict = caught.value.verdict
    assert verdict is not None
    assert verdict.runner is None
    assert {reason.rule for reason in verdict.refusals} == rules
    assert set(caught.value.features) == {reason.feature for reason in verdict.refusals}
    with pytest.raises(UnsupportedConfiguration):
        verdict.build()


def test_where_no_runner_can_serve_the_error_carries_the_verdict() -> None:
    with pytest.raises(UnsupportedConfiguration, match="no runner can serve") as caught:
        select_runner(EngineConfig.from_flat(str(QWEN3), decode_context_parallel_size=2), environment=GPU)
    verdict = caught.value.verdict
    assert verdict is not None
    assert (verdict.runner, [r.rule for r in verdict.refusals]) == ("v1", ["decode-context-parallelism"])
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_bad_input_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent"):
        select_runner(tmp_path / "absent", environment=GPU)
    with pytest.raises(ConfigError, match=r"config\.json"):
        select_runner(tmp_path, environment=GPU)
    with pytest.raises(ConfigError, match="parallel_config"):
        select_runner({"model_config": {"model": str(QWEN3)}, "paralel_config": {}}, environment=GPU)
    with pytest.raises(ConfigError, match="Did you mean 'dodona'"):
        select_runner(QWEN3, rulebook="dodonna", environment=GPU)
    broken = tmp_path / "book.yaml"
    broken.write_text("rulebook: x\nrules: no\n")
    with pytest.raises(RuleFileError, match=r"book\.yaml:2:8"):
        select_runner(QWEN3, rulebook=broken, environment=GPU)


# --- once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "runner"), [("0", "v1"), (None, "v1")])
def test_the_decision_is_made_once(value: str | None, runner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def set_variable(text: str | None) -> None:
        if text is None:
            monkeypatch.delenv(OVERRIDE_VARIABLE, raising=False)
        else:
            monkeypatch.setenv(OVERRIDE_VARIABLE, text)

    set_variable(value)
    verdict = select_runner({"model_config": {"model": str(QWEN3)}, "device_config": {"device": "cpu"}})
    before = verdict.model_dump_json()

    def asked_again(*_: Any) -> Any:
        raise AssertionError("the environment was asked a second time")

    monkeypatch.setattr(EnvironmentVariable, "parse", asked_again)
    monkeypatch.setattr(Environment, "detect", asked_again)
    for later in ("0", "1", "nonsense", None):
        set_variable(later)
        built = verdict.build()
        assert built.name == runner == verdict.runner
        assert built.config is verdict.config
        assert verdict.model_dump_json() == before
        received = Verdict.model_validate_json(before)
        assert received == verdict
        assert received.build().name == runner


def test_the_variable_decides_when_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OVERRIDE_VARIABLE, "0")
    assert select_runner(QWEN3).decided_by == "environment-v1"
    monkeypatch.setenv(OVERRIDE_VARIABLE, "maybe")
    with pytest.raises(ConfigError, match=OVERRIDE_VARIABLE):
        select_runner(QWEN3)
    # an environment that is given replaces the process's
    assert select_runner(QWEN3, environment=GPU).runner == "v2"


def test_no_module_names_a_variable_that_forces_a_runner() -> None:
    """Only the `environment` section of a rule book does."""
    root = Path(__file__).parents[2]
    folders = ("oracle", "runners", "kernels", "cli")
    sources = [path for folder in folders for path in (root / folder).rglob("*.py")]
    assert {path.name for path in sources if "USE_V2_MODEL_RUNNER" in path.read_text()} == set()


# --- evaluators --------------------------------------------------------------------------------------------


@durable_rules
def test_durable_rules_evaluates() -> None:
    assert select_runner(QWEN3, environment=GPU).evaluated_by == "durable_rules"


def test_the_reference_serves_where_durable_rules_can_not(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = select_runner(QWEN3, environment=CPU)

    def broken() -> Any:
        raise ImportError("undefined symbol: PyEval_CallObject")

    monkeypatch.setattr(durable_engine, "_import_host", broken)
    monkeypatch.setattr(durable, "_engine", Engine())
    monkeypatch.setattr(durable, "_books", {})
    verdict = select_runner(QWEN3, environment=CPU)
    assert verdict.evaluated_by == "reference"
    assert verdict.model_copy(update={"evaluated_by": expected.evaluated_by}) == expected
    assert "the reference evaluator" in verdict.explain()


def test_a_fault_of_the_engine_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: Any, **__: Any) -> Any:
        raise EngineFault("fired twice")

    monkeypatch.setattr(durable, "firings", fault)
    with pytest.raises(EngineFault):
        select_runner(QWEN3, environment=GPU)


@durable_rules
def test_a_book_of_ones_own_is_tried_and_then_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    real = durable.try_in_child

    def trial(compiled: CompiledBook) -> None:
        tried.append("once")
        real(compiled)

    monkeypatch.setattr(durable, "try_in_child", trial)
    path = tmp_path / "own.yaml"
    text = BOOK_FILE.read_text().replace("rulebook: dodona", "rulebook: own").replace("{ge: 80}", "{ge: 100}")
    path.write_text(text)
    for _ in range(2):
        verdict = select_runner(QWEN3, rulebook=path, environment=GPU)
        assert verdict.evaluated_by == "durable_rules"
        assert [reason.rule for reason in verdict.reasons] == ["compute-capability"]
        assert verdict.rulebook.name == "own"
    assert tried == ["once"]


@durable_rules
def test_a_book_that_crashes_the_engine_is_left_to_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(compiled: CompiledBook) -> None:
        raise EngineUnavailable("the rule engine failed on this book in a trial: exit status -11")

    monkeypatch.setattr(durable, "try_in_child", crash)
    path = tmp_path / "own.yaml"
    path.write_text(BOOK_FILE.read_text().replace("rulebook: dodona", "rulebook: crashing"))
    verdict = select_runner(QWEN3, rulebook=path, environment=CPU)
    assert (verdict.runner, verdict.evaluated_by) == ("v1", "reference")


def test_a_book_of_another_system_gives_its_verdict_also_where_refused() -> None:
    text = BOOK_FILE.read_text().replace("system: dodona", "system: elsewhere")
    config = EngineConfig.from_flat(str(QWEN3), decode_context_parallel_size=2)
    verdict = select_runner(config, rulebook=parse_rulebook(text), environment=GPU)
    assert [reason.rule for reason in verdict.refusals] == ["decode-context-parallelism"]


def test_import_is_light() -> None:
    program = (
        "import sys, dodona.oracle, dodona.oracle.select; import json;"
        "print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=child_environment()
    )
    heavy = {
        "torch",
        "transformers",
        "triton",
        "durable",
        "ruamel",
        "huggingface_hub",
        "hypothesis",
        "rich",
        "typer",
    }
    assert not heavy & set(json.loads(done.stdout))
