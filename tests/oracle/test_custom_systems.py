"""A rule book of an engine that Dodona does not know: other names of runners, and a variable of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dodona.cli.app import app
from dodona.oracle.analysis.check import check_book
from dodona.oracle.analysis.diff import diff_books
from dodona.oracle.analysis.matrix import make_matrix
from dodona.oracle.analysis.matrix_formats import matrix_html, matrix_markdown
from dodona.oracle.analysis.replay import differences
from dodona.oracle.analysis.source import load_sourced
from dodona.oracle.authoring.schema import rule_file_schema
from dodona.oracle.authoring.template import checked_rule, new_rule
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decide.verdict import Verdict
from dodona.oracle.decision_log import select_and_log
from dodona.oracle.errors import ConfigError, RuleFileError, UnsupportedConfiguration
from dodona.oracle.explain.counterfactuals import counterfactuals
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.language.yaml_source import parse_yaml
from dodona.oracle.machine.environment import Environment, assumed_gpu
from dodona.oracle.select import select_runner
from dodona.oracle.systems.books import load_rulebook, parse_rulebook
from dodona.oracle.systems.registry import facts_of, registered_systems, system_of
from dodona.oracle.systems.system import OVERRIDE, RecordedAnswer
from dodona.oracle.systems.verdict_deployment import deployment_of
from dodona.oracle.testing import PROPERTIES, check_counterfactuals, check_property

QWEN3 = Path(__file__).parents[2] / "checkpoints" / "qwen3"
OTHERS = ("DODONA_USE_V2_MODEL_RUNNER", "VLLM_USE_V2_MODEL_RUNNER", "MY_ENGINE_RUNNER")

TEXT = """\
rulebook: mine
description: Three runners of an engine of one's own.
system: my-engine
runners: [fast, slow, tiny]
environment:
  variable: MY_ENGINE_RUNNER
  values: {quick: fast, slow: slow, tiny: tiny}
  otherwise: error

rules:
  - id: forced-fast
    kind: override
    runners: [fast]
    precedence: 1
    when: {environment.override: fast}
    feature: MY_ENGINE_RUNNER=quick
    because: The variable asks for it.
    since: 2026-01-31
    examples:
      fires: [{environment.override: fast}]
      passes: [{environment.override: slow}, {environment.override: null}]

  - id: forced-slow
    kind: override
    runners: [slow]
    precedence: 2
    when: {environment.override: slow}
    feature: MY_ENGINE_RUNNER=slow
    because: The variable asks for it.
    since: 2026-01-31
    examples:
      fires: [{environment.override: slow}]
      passes: [{environment.override: tiny}, {environment.override: null}]

  - id: forced-tiny
    kind: override
    runners: [tiny]
    precedence: 3
    when: {environment.override: tiny}
    feature: MY_ENGINE_RUNNER=tiny
    because: The variable asks for it.
    since: 2026-01-31
    examples:
      fires: [{environment.override: tiny}]
      passes: [{environment.override: slow}, {environment.override: null}]

  - id: pipeline-parallelism
    kind: veto
    runners: [fast]
    when: {parallel_config.pipeline_parallel_size: {gt: 1}}
    feature: pipeline parallelism ({parallel_config.pipeline_parallel_size} devices)
    because: The fast runner takes one device.
    since: 2026-01-31
    examples:
      fires: [{parallel_config.pipeline_parallel_size: 2}]
      passes: [{parallel_config.pipeline_parallel_size: 1}]

  - id: lora
    kind: veto
    runners: [fast, slow]
    when: {lora_config: true}
    feature: LoRA
    because: Only the tiny runner has it.
    since: 2026-01-31
    examples:
      fires: [{lora_config: true}]
      passes: [{lora_config: null}]

  - id: no-moe
    kind: veto
    runners: [fast, slow, tiny]
    when: {model_config.is_moe: true}
    feature: mixture of experts
    because: No runner has it.
    since: 2026-01-31
    examples:
      fires: [{model_config.is_moe: true}]
      passes: [{model_config.is_moe: false}]
"""

NULL_OTHER = (
    TEXT.replace("rulebook: mine", "rulebook: other")
    .replace("{gt: 1}", "{gt: 2}")
    .replace(
        "fires: [{parallel_config.pipeline_parallel_size: 2}]",
        "fires: [{parallel_config.pipeline_parallel_size: 3}]",
    )
)
BOOK = parse_rulebook(TEXT)
GPU = assumed_gpu()


@pytest.fixture
def book(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture(autouse=True)
def without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OTHERS:
        monkeypatch.delenv(name, raising=False)


def run(*words: str, code: int = 0, **env: str) -> str:
    result = CliRunner().invoke(app, list(words), env=dict.fromkeys(OTHERS) | env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout if code in (0, 1, 3) else result.stderr


def select(book: str | RuleBook, environment: Environment | None = None, **flags: Any) -> Verdict:
    return select_runner(EngineConfig.from_flat(str(QWEN3), **flags), rulebook=book, environment=environment)


# --- the environment section ------------------------------------------------------------------------------


VERSIONS = """\
rulebook: versions
description: An engine of one's own with runners V1 and V2.
system: my-engine
runners: [v2, v1]
environment:
  variable: MY_ENGINE_RUNNER
  values: {slow: v1}
  otherwise: unset
rules:
  - id: forced
    kind: override
    runners: [v1]
    precedence: 1
    when: {environment.override: v1}
    feature: MY_ENGINE_RUNNER=slow
    because: The variable asks for it.
    since: 2026-01-31
    examples:
      fires: [{environment.override: v1}]
      passes: [{environment.override: null}]
"""


@pytest.fixture
def versions(tmp_path: Path) -> str:
    path = tmp_path / "versions.yaml"
    path.write_text(VERSIONS)
    return str(path)


def test_the_books_variable_forces_and_no_other_does(versions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_rulebook(versions)
    for name in OTHERS[:2]:
        for value in ("0", "1", "nonsense"):
            monkeypatch.setenv(name, value)
            assert (select(versions).runner, select(versions).forced) == ("v2", False)
            assert Environment.detect(book=loaded).override is None
    monkeypatch.setenv("MY_ENGINE_RUNNER", "slow")
    verdict = select(versions)
    assert (verdict.runner, verdict.decided_by) == ("v1", "forced")
    assert verdict.environment == Environment.detect(book=loaded)
    assert verdict.environment is not None
    assert verdict.environment.override == "v1"
    monkeypatch.setenv("MY_ENGINE_RUNNER", "else")
    assert select(versions).runner == "v2"


def test_what_a_counterfactual_says_of_the_variable_is_what_happens(
    versions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = counterfactuals(deployment_of(select(versions), load_rulebook(versions)), "v1")
    assert [str(forcing) for forcing in found.forcing] == ["MY_ENGINE_RUNNER=slow: v1 starts"]
    monkeypatch.setenv("MY_ENGINE_RUNNER", "slow")
    assert select(versions).runner == "v1"
    found = counterfactuals(deployment_of(select(versions), load_rulebook(versions)), "v2")
    assert [str(forcing) for forcing in found.forcing] == ["MY_ENGINE_RUNNER unset: v2 starts"]


def test_the_command_line_obeys_the_books_variable(versions: str, tmp_path: Path) -> None:
    words = ("select", str(QWEN3), "--rulebook", versions)
    log = tmp_path / "log.jsonl"
    for gpu in ((), ("--assume-gpu",)):
        forced = json.loads(
            run(*words, *gpu, "--json", MY_ENGINE_RUNNER="slow", DODONA_DECISION_LOG=str(log))
        )
        assert (forced["runner"], forced["decided_by"]) == ("v1", "forced")
        free = json.loads(run(*words, *gpu, "--json", DODONA_USE_V2_MODEL_RUNNER="0"))
        assert (free["runner"], free["forced"]) == ("v2", False)
    assert [json.loads(line)["runner"] for line in log.read_text().splitlines()] == ["v1", "v1"]
    assert [json.loads(line)["forced"] for line in log.read_text().splitlines()] == [True, True]
    advice = run(*words, "--assume-gpu", "--why-not", "v2", MY_ENGINE_RUNNER="slow")
    assert "By force: MY_ENGINE_RUNNER unset: v2 starts." in advice
    table = run("select", str(QWEN3), "--assume-gpu", "--compare", f"{versions},{versions}", code=2)
    assert "at least two" in table


def test_a_value_without_a_meaning_is_named_by_the_books_variable(
    book: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_ENGINE_RUNNER", "v2")
    with pytest.raises(ConfigError, match=r"MY_ENGINE_RUNNER='v2' means nothing.*\"quick\" for runner fast"):
        select(book)
    with pytest.raises(ConfigError, match="MY_ENGINE_RUNNER"):
        Environment.detect(book=BOOK)
    assert "MY_ENGINE_RUNNER='v2'" in run(
        "select", str(QWEN3), "--rulebook", book, "--assume-gpu", code=2, MY_ENGINE_RUNNER="v2"
    )


def test_a_book_without_the_section_has_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    text = VERSIONS.replace(
        "environment:\n  variable: MY_ENGINE_RUNNER\n  values: {slow: v1}\n  otherwise: unset\n", ""
    )
    plain = parse_rulebook(text)
    assert plain.environment is None
    for name in OTHERS:
        monkeypatch.setenv(name, "0")
    assert select(plain).runner == "v2"
    assert Environment.detect(book=plain).override is None


def test_without_a_book_the_variable_is_that_of_dodonas_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_ENGINE_RUNNER", "nonsense")
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    assert Environment.detect().override == "v1"


# --- the runners' names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "runner", "decided_by"),
    [
        ({}, "fast", "preferred"),
        ({"pipeline_parallel_size": 2}, "slow", "fallback"),
        ({"enable_lora": True}, "tiny", "fallback"),
    ],
)
def test_each_runner_is_chosen(book: str, flags: dict[str, Any], runner: str, decided_by: str) -> None:
    verdict = select(book, GPU, **flags)
    assert (verdict.runner, verdict.decided_by, verdict.refusals) == (runner, decided_by, ())
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict
    assert runner in verdict.explain().splitlines()[0]


@pytest.mark.parametrize("runner", BOOK.runners)
def test_each_runner_can_be_forced(book: str, runner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = "quick" if runner == "fast" else runner
    monkeypatch.setenv("MY_ENGINE_RUNNER", value)
    detected, given = select(book), select(book, Environment(True, "cuda", override=runner))
    for verdict in (detected, given):
        assert (verdict.runner, verdict.forced_runner, verdict.decided_by) == (
            runner, runner, f"forced-{runner}"
        )  # fmt: skip
    assert detected.environment == Environment.detect(book=BOOK)


def test_a_refusal_of_another_engine_is_a_verdict_and_its_runners_are_not_built(book: str) -> None:
    verdict = select(book, Environment(True, "cuda", override="slow"), enable_lora=True)
    assert (verdict.runner, [reason.rule for reason in verdict.refusals]) == (None, ["lora"])
    assert verdict.forced_runner == "slow"
    with pytest.raises(UnsupportedConfiguration, match="my-engine"):
        select(book, GPU).build()


def test_a_forced_runner_that_the_book_lacks_is_an_error(book: str) -> None:
    for name, rulebook in (("v2", book), ("fast", "dodona"), ("v3", "dodona"), ("fast", "vllm/0.33.0")):
        with pytest.raises(ConfigError, match=rf"environment\.override.*{name}.*expected one of"):
            select(rulebook, Environment(True, "cuda", override=name))


def test_features_that_each_runner_lacks(book: str) -> None:
    verdict = select(book, GPU, pipeline_parallel_size=2, enable_lora=True)
    lacking = {runner: verdict.unsupported[runner] for runner in BOOK.runners}
    assert lacking == {
        "fast": ("pipeline parallelism (2 devices)", "LoRA"), "slow": ("LoRA",), "tiny": ()
    }  # fmt: skip


def test_explanations_name_each_runner_once(book: str) -> None:
    text = select(book, GPU, pipeline_parallel_size=2, enable_lora=True).explain()
    assert text.startswith("Runner tiny for ")
    assert "What fast can't do here" in text
    assert text.count("pipeline parallelism (2 devices)") == 1


def test_why_not(book: str) -> None:
    words = ("select", str(QWEN3), "--rulebook", book, "--assume-gpu")
    shown = run(*words, "--enable-lora", "-pp", "2", "--why-not", "slow")
    assert "For slow to be chosen and to start:" in shown
    assert "lora_config → unset" in shown
    assert "By force: MY_ENGINE_RUNNER=slow: refused for LoRA." in shown
    shown = run(*words, "--why-not", "tiny")
    assert "No change of the configuration leads to tiny." in shown
    assert "By force: MY_ENGINE_RUNNER=tiny: tiny starts." in shown
    assert "Every rule" in run(*words, "--explain")
    assert "expected one of fast, slow, tiny" in run(*words, "--why-not", "v1", code=2)


def test_the_decision_log(book: str, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    for flags in ({}, {"enable_lora": True}):
        config = EngineConfig.from_flat(str(QWEN3), **flags)
        select_and_log(config, rulebook=book, environment=GPU, log=log)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["rulebook"], line["runner"]) for line in lines] == [("mine", "fast"), ("mine", "tiny")]


def test_two_books_side_by_side(book: str, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(NULL_OTHER)
    words = ("select", str(QWEN3), "--assume-gpu", "-pp", "2", "--compare", f"{book},{other}")
    found = json.loads(run(*words, "--json"))
    assert {name: verdict["runner"] for name, verdict in found.items()} == {book: "slow", str(other): "fast"}
    assert "slow" in run(*words)


def test_a_book_of_vllm_may_have_other_names_too(monkeypatch: pytest.MonkeyPatch) -> None:
    text = TEXT.replace("system: my-engine", "system: vllm")
    words = [str(QWEN3), "-pp", "2", "--enable-lora"]
    vllm = parse_rulebook(text)
    assert select_runner(words, rulebook=vllm, environment=GPU).runner == "tiny"
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    assert select_runner(words[:3], rulebook=vllm).runner == "slow"
    monkeypatch.setenv("MY_ENGINE_RUNNER", "tiny")
    verdict = select_runner(words[:3], rulebook=vllm)
    assert (verdict.runner, verdict.decided_by) == ("tiny", "forced-tiny")
    assert counterfactuals(deployment_of(verdict, vllm), "tiny").holds_already


# --- analysis ---------------------------------------------------------------------------------------------


def test_check(book: str) -> None:
    report = check_book(lambda: load_sourced(book))
    assert not report.failed, report.findings
    kinds = {kind: dict(facts) for kind, facts in report.outcomes}
    assert set(kinds) == {
        ("fast", False), ("slow", False), ("tiny", False), ("tiny", True), (None, True)
    }  # fmt: skip
    assert kinds["fast", False] == {}
    assert kinds["slow", False] in (
        {"parallel_config.pipeline_parallel_size": 2}, {OVERRIDE: "slow"}
    )  # fmt: skip
    assert "nothing wrong" in run("rules", "check", book)


def test_check_sees_that_a_forced_runner_is_overruled(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(TEXT.replace("when: {environment.override: tiny}", "when: {lora_config: true}", 1))
    codes = {finding.code for finding in check_book(lambda: load_sourced(str(path))).findings}
    assert "not-user-decides" in codes


def test_diff(book: str, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(NULL_OTHER)
    found = diff_books(load_sourced(book), load_sourced(str(other)))
    changed = {(c.before, c.after): c.witness.facts for c in found.outcomes}
    devices = {"parallel_config.pipeline_parallel_size": 2}
    assert changed == {
        (("slow", False), ("fast", False)): devices,
        ((None, True), ("fast", False)): {**devices, OVERRIDE: "fast"},
    }
    assert "slow" in run("rules", "diff", book, str(other), code=1)
    assert run("rules", "diff", book, str(other), "--markdown", code=1)
    assert json.loads(run("rules", "diff", book, str(other), "--json", code=1))["books"]


def test_diff_sees_a_runner_that_one_book_has_alone(tmp_path: Path, versions: str) -> None:
    more = VERSIONS.replace("[v2, v1]", "[v2, v1, tiny]").replace("{slow: v1}", "{slow: v1, tiny: tiny}") + (
        TEXT[TEXT.index("  - id: forced-tiny") : TEXT.index("  - id: pipeline")]
        .replace("{environment.override: slow}", "{environment.override: v1}")
        .rstrip()
        + "\n"
    )
    path = tmp_path / "more.yaml"
    path.write_text(more)
    for a, b in ((versions, str(path)), (str(path), versions)):
        found = diff_books(load_sourced(a), load_sourced(b))
        kinds = {frozenset((c.before, c.after)) for c in found.outcomes}
        assert frozenset({("v2", False), ("tiny", False)}) in kinds
        changed = next(c for c in found.outcomes if ("tiny", False) in (c.before, c.after))
        assert changed.witness.facts[OVERRIDE] == "tiny"


def test_the_matrix(book: str) -> None:
    matrix = make_matrix(load_rulebook(book))
    plain = next(column for column in matrix.columns for model in column.models if model.note == "dense")
    cells = {
        feature.rules: (cell.runner, cell.starts)
        for feature, cell in zip(matrix.features, plain.cells, strict=True)
    }
    assert cells == {
        (): ("fast", True), ("pipeline-parallelism",): ("slow", True), ("lora",): ("tiny", True)
    }  # fmt: skip
    text = matrix_markdown(matrix)
    assert "FAST ✗, SLOW ✗, TINY ✗: chosen, and doesn't start." in text
    assert "TINY ✗ |" in text
    page = matrix_html(matrix)
    assert '<td class="cell preferred">FAST</td>' in page
    assert '<td class="cell other">TINY</td>' in page
    assert '<td class="cell refused">TINY ✗</td>' in page
    assert "TINY" in run("matrix", "--rulebook", book)


def test_the_matrix_does_not_depend_on_a_variable(book: str) -> None:
    assert run("matrix", "--rulebook", book, "--format", "json", MY_ENGINE_RUNNER="tiny") == run(
        "matrix", "--rulebook", book, "--format", "json"
    )


@pytest.mark.parametrize("name", sorted(set(PROPERTIES) - {"counterfactuals"}))
def test_properties(book: str, name: str) -> None:
    assert check_property(book, name, max_examples=30)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_counterfactuals_hold(data: st.DataObject) -> None:
    check_counterfactuals(BOOK, data)


# --- authoring --------------------------------------------------------------------------------------------


def test_rules_test_list_and_fmt(book: str) -> None:
    assert "12 of 12 examples hold" not in run("rules", "test", book)
    assert "15 of 15 examples hold" in run("rules", "test", book)
    assert json.loads(run("rules", "list", "--rulebook", book, "--json"))["runners"] == list(BOOK.runners)
    assert "fast, slow, tiny" in run("rules", "list", "--rulebook", book)
    assert run("rules", "fmt", book, "--check") == ""


def test_a_new_rule(book: str) -> None:
    words = ("rules", "new", "moe-again", "--when", "model_config.num_experts: {gt: 8}")
    assert "runners: [tiny]" in run(*words, "--runner", "tiny")
    assert run(*words, "--append", book, "--runner", "tiny", "--runner", "slow")
    assert run("rules", "new", "gguf", "--when", "model_config.quantization: gguf", "--append", book)
    rules = load_rulebook(book).by_id
    assert (rules["moe-again"].runners, rules["gguf"].runners) == (("tiny", "slow"), ("fast",))
    again = ("rules", "new", "again", "--kind", "override", "--when", "environment.override: tiny")
    assert run(*again, "--append", book, "--runner", "tiny")
    assert "no runner 'v2'" in run(
        *words[:2], "other", *words[3:], "--append", book, "--runner", "v2", code=2
    )
    assert "outside the domain" in run(
        "rules", "new", "x", "--when", "environment.override: v1", "--append", book, code=2
    )
    rule = new_rule("x", "environment.override: slow", registry=facts_of("my-engine", BOOK.runners))
    with pytest.raises(RuleFileError):
        checked_rule(rule, "my-engine")
    with pytest.raises(RuleFileError, match="v2"):
        checked_rule(rule, "my-engine", BOOK.runners)


def test_the_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft7Validator(rule_file_schema())
    for text in (TEXT, VERSIONS):
        assert [error.message for error in validator.iter_errors(parse_yaml(text).data)] == []
    for old, new in (("runners: [fast, slow, tiny]\nenv", "runners: 3\nenv"), ("slow: slow", "slow: 3")):
        assert not validator.is_valid(parse_yaml(TEXT.replace(old, new)).data)


def test_facts_have_the_books_runners() -> None:
    assert BOOK.facts[OVERRIDE].domain == ("fast", "slow", "tiny")
    assert {name: spec for name, spec in BOOK.facts.items() if name != OVERRIDE} == {
        name: spec for name, spec in facts_of("dodona").items() if name != OVERRIDE
    }
    assert load_rulebook("dodona").facts is facts_of("dodona")
    with pytest.raises(RuleFileError, match=r"'v1' is outside the domain of 'environment\.override'"):
        parse_rulebook(TEXT.replace("{environment.override: slow}", "{environment.override: v1}"))


# --- replay and the registry ------------------------------------------------------------------------------


def test_differences_name_the_runners() -> None:
    recorded = RecordedAnswer("fast", True, {"fast": frozenset(), "tiny": frozenset({"LoRA"})}, ())
    answered = RecordedAnswer("fast", False, {"fast": frozenset(), "tiny": frozenset()}, ())
    assert differences(recorded, answered) == ("startup", "unsupported by TINY")


def test_no_cases_of_another_engine_are_recorded(book: str, tmp_path: Path) -> None:
    cases = tmp_path / "cases.jsonl"
    cases.write_text('{"config": {}, "env": null}\n')
    assert "describes my-engine" in run("rules", "replay", book, str(cases), code=2)


def test_the_systems() -> None:
    assert registered_systems() == ("dodona", "vllm")
    assert [system_of(name).builds_runners for name in ("dodona", "vllm", "my-engine")] == [
        True,
        False,
        False,
    ]
    assert system_of("my-engine").name == "my-engine"
    assert system_of("my-engine").facts is system_of("dodona").facts
    assert system_of("vllm").nearest_book("vllm/0.34.0", ["dodona", "vllm/0.33.0"]) == (
        "The nearest release is 'vllm/0.33.0'."
    )
    assert system_of("my-engine").nearest_book("my-engine/1", ["dodona"]) == ""
    assert facts_of(["vllm"]) is facts_of(None) is facts_of("dodona")
    for malformed in ("fast", 3, [], ["fast"], ["fast", "fast"], [1, None]):
        assert facts_of(3, malformed)[OVERRIDE].domain is None


@pytest.mark.parametrize("runners", ["[fast]", "[fast, fast]", "fast", "3"])
def test_a_book_is_refused_for_its_runners_and_not_for_rules_that_name_them(runners: str) -> None:
    with pytest.raises(RuleFileError) as caught:
        parse_rulebook(VERSIONS.replace("[v2, v1]", runners))
    assert "environment.override" not in str(caught.value)


def test_a_forcing_value_is_one_that_means_the_runner() -> None:
    # Any value that is not listed asks for `tiny`, and the first numbers are listed.
    book = parse_rulebook(
        TEXT.replace("{quick: fast, slow: slow, tiny: tiny}", '{"1": slow, "2": fast}').replace(
            "otherwise: error", "otherwise: tiny"
        )
    )
    verdict = select_runner(str(QWEN3), rulebook=book, environment=assumed_gpu())
    assert verdict.runner == "fast"
    assert book.environment is not None
    for runner in ("slow", "tiny"):
        (forcing,) = counterfactuals(deployment_of(verdict, book), runner).forcing
        assert book.environment.parse(forcing.value) == runner
        assert forcing.runner == runner
