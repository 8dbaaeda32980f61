"""`dodona rules check`: bundled books pass, and its findings in random books are those of brute force."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from typer.testing import CliRunner

from dodona.cli.app import app
from dodona.oracle.analysis.check import check_book, check_sourced, known_regions
from dodona.oracle.analysis.findings import Finding
from dodona.oracle.analysis.properties import broken_properties
from dodona.oracle.analysis.source import books_of, condition_paths, sourced_text
from dodona.oracle.decide.evaluate import firings
from dodona.oracle.decide.outcome import decide
from dodona.oracle.errors import RuleFileError
from dodona.oracle.language.conditions import All, AnyOf, Compare, Condition, Not, compare, evaluate
from dodona.oracle.language.facts import FactValue
from dodona.oracle.language.rule import Rule
from dodona.oracle.language.rulebook import MAX_RULES, RuleBook
from dodona.oracle.systems.books import bundled_rulebook, bundled_rulebooks, parse_rulebook
from tests.support.small_books import OVERRIDE, VALUES, book_data, fires, points, text_of

Facts = dict[str, FactValue]


@pytest.mark.parametrize("name", bundled_rulebooks())
def test_bundled_books_pass(name: str) -> None:
    report = check_book(books_of(name)[""])
    assert [str(f) for f in report.findings if f.level == "error"] == []
    assert report.exceptions == tuple(e.property for e in bundled_rulebook(name).exceptions)
    assert report.outcomes[0][0] == ("v2", False)


def test_our_own_book_breaks_no_property() -> None:
    assert bundled_rulebook("dodona").exceptions == ()
    regions = known_regions(bundled_rulebook("dodona"))
    assert {broken.property for broken in broken_properties(regions) if broken.region} == set()


DECLARED = {
    "vllm/0.16.0": {"preferred-by-default"},
    "vllm/0.21.0": {"preferred-by-default"},
    "vllm/0.22.0": set(),
    "vllm/0.26.0": set(),
    "vllm/0.27.0": {"monotone"},
    "vllm/0.28.0": {"monotone"},
    "vllm/0.29.0": {"preferred-by-default"},
    "vllm/0.30.0": {"preferred-by-default", "user-decides"},
    "vllm/0.33.0": {"user-decides"},
}


@pytest.mark.parametrize("name", DECLARED)
def test_what_books_of_vllm_declare(name: str) -> None:
    """V1 always up to 0.21; prefill context parallelism forces V2 in 0.27; features overrule people in
    0.30.
    """
    assert {e.property for e in bundled_rulebook(name).exceptions} == DECLARED[name]


# --- against brute force ------------------------------------------------------------------------------------


def kind(book: RuleBook, facts: Facts, *, without: frozenset[str] = frozenset()) -> object:
    return decide(book, firings(book, facts, without=without)).kind


def of(findings: tuple[Finding, ...], code: str) -> set[str | None]:
    return {finding.rule for finding in findings if finding.code == code}


def against(rule: Rule) -> bool:
    return rule.kind != "override"


def stages(rule: Rule) -> set[str]:
    return {"choice", "startup"} if rule.stage == "both" else {rule.stage}


@given(book_data())
@settings(max_examples=120, deadline=None)
def test_findings_are_what_brute_force_finds(data: dict[str, Any]) -> None:
    source = sourced_text(text_of(data))
    book = source.book
    report = check_sourced(source)
    space = list(points(book))
    fired = {rule.id: [fires(rule, facts) for facts in space] for rule in book.rules}
    dead = {rule for rule, where in fired.items() if not any(where)}
    always = {rule for rule, where in fired.items() if all(where)}
    assert of(report.findings, "dead-rule") == dead
    assert of(report.findings, "always-fires") == always
    alive = [rule for rule in book.rules if rule.id not in dead | always]

    def inside(narrow: Rule, broad: Rule) -> bool:
        return all(b or not a for a, b in zip(fired[narrow.id], fired[broad.id], strict=True))

    wrong = {r.id for r in alive if any(not inside(r, book.by_id[b]) for b in r.refines)}
    assert of(report.findings, "wrong-refines") == wrong

    def covers(broad: Rule, narrow: Rule) -> bool:
        return (
            against(broad)
            and set(narrow.runners) <= set(broad.runners)
            and stages(narrow) <= stages(broad)
            and inside(narrow, broad)
        )

    shadowed = of(report.findings, "shadowed")
    for rule in alive:
        shadows = [
            o
            for o in book.rules
            if o.id != rule.id and covers(o, rule) and o.id not in book.refined_by(rule.id)
        ]
        if rule.id in shadowed:
            assert shadows
        elif against(rule):
            # only by rules that are the same as it, of which one is the one that is not shadowed
            assert all(covers(rule, o) for o in shadows)

    for rule in alive:
        if not against(rule):
            decides = any(decide(book, firings(book, facts)).decided_by == rule.id for facts in space)
            assert (rule.id in of(report.findings, "never-decides")) is not decides
        elif rule.id not in shadowed:
            broader = book.refined_by(rule.id)
            matters = any(
                kind(book, facts, without=broader) != kind(book, facts, without=broader | {rule.id})
                for facts in space
            )
            assert (rule.id in of(report.findings, "not-only-reason")) is not matters

    assert {k for k, _ in report.outcomes} == {kind(book, facts) for facts in space}
    unserved = {
        rule
        for facts in space
        if not (outcome := decide(book, firings(book, facts))).forced
        for rule in outcome.refusals
    }
    assert {rule for rule, _ in report.unserved} == unserved


@given(book_data())
@settings(max_examples=60, deadline=None)
def test_witnesses_show_what_is_found(data: dict[str, Any]) -> None:
    source = sourced_text(text_of(data))
    book = source.book
    regions = known_regions(book)
    for finding in check_sourced(source).findings:
        if finding.witness is None:
            continue
        facts = {**regions.space.baseline, **finding.witness}
        if finding.rule is not None:
            rule = book.by_id[finding.rule]
            assert fires(rule, facts), finding
            if finding.code == "wrong-refines":
                assert not all(fires(book.by_id[b], facts) for b in rule.refines)
            if finding.code == "never-decides":
                assert decide(book, firings(book, facts)).decided_by != rule.id
        outcome = decide(book, firings(book, facts))
        if finding.code == "not-user-decides":
            assert outcome.runner not in (None, facts[OVERRIDE])
        if finding.code == "not-preferred-by-default":
            assert facts[OVERRIDE] is None
            assert outcome.kind != (book.runners[0], False)


@given(book_data())
@settings(max_examples=60, deadline=None)
def test_a_dead_rule_can_be_removed(data: dict[str, Any]) -> None:
    source = sourced_text(text_of(data))
    book = source.book
    dead = of(check_sourced(source).findings, "dead-rule")
    for facts in points(book):
        before = decide(book, firings(book, facts))
        assert decide(book, firings(book, facts, without=frozenset(map(str, dead)))) == before


def without(condition: Condition, gone: tuple[str | int, ...]) -> Condition:
    """A condition less the part at a path below `when`."""
    if isinstance(condition, Not):
        return Not(without(condition.part, gone[1:]))
    assert isinstance(condition, (All, AnyOf))
    index = gone[1]
    assert isinstance(index, int)
    parts = list(condition.parts)
    if len(gone) == 2:
        del parts[index]
    else:
        parts[index] = without(parts[index], gone[2:])
    return All(tuple(parts)) if isinstance(condition, All) else AnyOf(tuple(parts))


@given(book_data())
@settings(max_examples=120, deadline=None)
def test_idle_parts_are_what_brute_force_finds(data: dict[str, Any]) -> None:
    source = sourced_text(text_of(data))
    report = check_sourced(source)
    space = list(points(source.book))
    skip = of(report.findings, "dead-rule") | of(report.findings, "always-fires")
    constant = of(report.findings, "constant-comparison")
    for rule in source.book.rules:
        values = {
            (c.fact, c.op, c.value): {compare(c, v) for v in VALUES[c.fact]}
            for c, _ in condition_paths(rule.when)
            if isinstance(c, Compare)
        }
        assert (rule.id in constant) is any(len(v) == 1 for v in values.values())
        if rule.id in skip:
            continue
        meaning = [evaluate(rule.when, facts) for facts in space]
        idle = set()
        for group, path in condition_paths(rule.when):
            for i in (
                range(len(group.parts)) if isinstance(group, (All, AnyOf)) and len(group.parts) > 1 else ()
            ):
                fewer = without(rule.when, (*path[1:], "all" if isinstance(group, All) else "any", i))
                if [evaluate(fewer, facts) for facts in space] == meaning:
                    idle.add(i)
        found = [
            f for f in report.findings if f.rule == rule.id and f.code.startswith("idle-") and f.code in CODES
        ]
        if rule.id not in constant:
            assert bool(found) is bool(idle)


CODES = ("idle-branch", "idle-condition")


# --- properties of whole books ------------------------------------------------------------------------------


@given(book_data())
@settings(max_examples=60, deadline=None)
def test_properties_are_what_brute_force_finds(data: dict[str, Any]) -> None:
    book = sourced_text(text_of(data)).book
    regions = known_regions(book)
    broken = {b.property: b.region for b in broken_properties(regions)}
    space = list(points(book))
    outcomes = [decide(book, firings(book, facts)) for facts in space]

    overruled = [
        OVERRIDE in book.reads and facts[OVERRIDE] is not None and o.runner not in (None, facts[OVERRIDE])
        for facts, o in zip(space, outcomes, strict=True)
    ]
    assert_region(regions.space.contains, broken["user-decides"], space, overruled)

    free = [facts[OVERRIDE] is None for facts in space]
    speaks = [r for r in book.rules if against(r) and book.runners[0] in r.runners]
    clean = [not any(fires(rule, facts) for rule in speaks) for facts in space]
    by_default = [o.kind == (book.runners[0], False) for o in outcomes]
    never_clean = not any(f and c for f, c in zip(free, clean, strict=True))
    wrong = [
        f and (c or never_clean) and not default
        for f, c, default in zip(free, clean, by_default, strict=True)
    ]
    assert_region(regions.space.contains, broken["preferred-by-default"], space, wrong)
    assert_region(regions.space.contains, broken["monotone"], space, turned(book, space))


def turned(book: RuleBook, space: list[Facts]) -> list[bool]:
    """Which points have one configured feature more than a point with another runner, and the preferred
    one.
    """
    preferred = book.runners[0]
    rules = [r for r in book.rules if against(r) and preferred in r.runners]
    runner = {}
    fired = {}
    for facts in space:
        key = tuple(facts.values())
        runner[key] = decide(book, firings(book, facts)).runner
        fired[key] = {r.id for r in rules if fires(r, facts)}

    def has_step(key: tuple[FactValue, ...]) -> bool:
        for i, name in enumerate(space[0]):
            if book.facts[name].source != "config":
                continue
            for value in VALUES[name]:
                earlier = (*key[:i], value, *key[i + 1 :])
                came_from_other = runner.get(earlier, preferred) not in (preferred, None)
                if came_from_other and fired[earlier] < fired[key]:
                    return True
        return False

    return [runner[key] == preferred and has_step(key) for key in (tuple(f.values()) for f in space)]


def assert_region(
    contains: Callable[[int, Facts], bool], region: int, space: list[Facts], expected: list[bool]
) -> None:
    assert [contains(region, facts) for facts in space] == expected


# --- declared exceptions ------------------------------------------------------------------------------------

OVERRULED = """
rulebook: overruled
description: A feature that beats what the user asks for.
system: dodona
runners: [v2, v1]
EXCEPTIONS
rules:
  - id: moe-needs-v2
    kind: override
    runners: [v2]
    precedence: 1
    when: {model_config.is_moe: true}
    feature: MoE
    because: Only V2 has it.
    since: 2026-01-01
    examples: {fires: [{model_config.is_moe: true}], passes: [{model_config.is_moe: false}]}
  - id: forced-v1
    kind: override
    runners: [v1]
    precedence: 2
    when: {environment.override: v1}
    feature: the variable
    because: It asks for V1.
    since: 2026-01-01
    examples: {fires: [{environment.override: v1}], passes: [{environment.override: null}]}
"""


def exceptions_text(*entries: Mapping[str, Any]) -> str:
    return OVERRULED.replace(
        "EXCEPTIONS", f"exceptions: {json.dumps(list(entries))}" if entries else "# none"
    )


def test_an_undeclared_exception_is_a_finding_with_a_witness() -> None:
    (finding,) = check_sourced(sourced_text(exceptions_text())).findings
    assert finding.code == "not-user-decides"
    assert finding.witness == {"model_config.is_moe": True, "environment.override": "v1"}


def test_a_declared_exception_with_a_true_witness_is_confirmed() -> None:
    witness = {"model_config.is_moe": True, "environment.override": "v1"}
    entry = {"property": "user-decides", "because": "It is so.", "witness": witness}
    report = check_sourced(sourced_text(exceptions_text(entry)))
    assert report.findings == ()
    assert report.exceptions == ("user-decides",)


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        ({"property": "user-decides", "witness": {"model_config.is_moe": True}}, "wrong-witness"),
        ({"property": "monotone", "witness": {"model_config.is_moe": True}}, "stale-exception"),
    ],
)
def test_a_wrong_exception_is_a_finding_at_its_line(entry: dict[str, Any], code: str) -> None:
    true = {
        "property": "user-decides",
        "because": "It is so.",
        "witness": {"model_config.is_moe": True, "environment.override": "v1"},
    }
    entries = [{**entry, "because": "Wrong."}]
    entries += [true] if entry["property"] != "user-decides" else []
    (finding,) = check_sourced(sourced_text(exceptions_text(*entries))).findings
    assert finding.code == code
    assert finding.place.line == 6
    assert finding.level == "error"


# --- the command --------------------------------------------------------------------------------------------

runner = CliRunner()
NEVER = "{all: [{environment.override: v1}, {environment.override: v2}]}"
DEAD = OVERRULED.replace("EXCEPTIONS", "# none").replace("when: {environment.override: v1}", f"when: {NEVER}")


def run(*arguments: str) -> Any:
    return runner.invoke(app, ["rules", "check", *arguments])


def test_the_command_passes_bundled_books() -> None:
    result = run("dodona", "vllm/0.27.0")
    assert result.exit_code == 0, result.output
    size = f"{len(bundled_rulebook('vllm/0.27.0').rules)} rules over "
    first, second, *_ = result.output.splitlines()
    assert first.startswith("dodona: ")
    assert first.endswith(": nothing wrong")
    assert second.startswith(f"vllm/0.27.0: {size}")
    assert second.endswith("facts: nothing wrong; declared exceptions, confirmed: monotone")


def test_the_command_names_file_line_rule_and_hint(tmp_path: Any) -> None:
    file = tmp_path / "book.yaml"
    file.write_text(DEAD)
    result = run(str(file))
    assert result.exit_code == 1
    assert f"{file}:21:5: error[dead-rule]: rule forced-v1: never fires: `when` can't hold" in result.output
    assert "hint: Mend the condition" in result.output


def test_the_command_writes_json_and_workflow_commands(tmp_path: Any) -> None:
    file = tmp_path / "book.yaml"
    file.write_text(DEAD)
    (report,) = json.loads(run(str(tmp_path), "--json").output)
    (finding,) = [f for f in report["findings"] if f["code"] == "dead-rule"]
    assert (finding["line"], finding["column"], finding["rule"]) == (21, 5, "forced-v1")
    lines = run(str(file), "--github").output.splitlines()
    assert f"::error file={file},line=21,col=5,title=dodona%3A dead-rule::rule forced-v1: never fires" in (
        "\n".join(lines)
    )
    assert all(line.startswith("::") for line in lines)


def test_the_command_reports_a_book_that_does_not_load(tmp_path: Any) -> None:
    file = tmp_path / "book.yaml"
    file.write_text(DEAD.replace("kind: override", "kind: overide", 1))
    result = run(str(file))
    assert result.exit_code == 1
    assert f"{file}:9:11: error[load]" in result.output


def test_the_command_fails_on_warnings_only_if_strict(tmp_path: Any) -> None:
    file = tmp_path / "book.yaml"
    file.write_text("""
rulebook: misspelt
description: One rule, whose architecture no model has.
system: dodona
runners: [v2, v1]
rules:
  - id: listed
    kind: require
    runners: [v2]
    when: {model_config.architectures: {any_in: [Qwen3ForCausalLM, LlamaForCausaLM]}}
    feature: architecture
    because: V2 has two.
    since: 2026-01-01
    examples:
      fires: [{model_config.architectures: []}]
      passes: [{model_config.architectures: [Qwen3ForCausalLM]}]
""")
    result = run(str(file))
    assert result.exit_code == 0
    assert f"{file}:10:68: warning[unknown-architecture]" in result.output
    assert "Did you mean 'LlamaForCausalLM'?" in result.output
    assert run(str(file), "--strict").exit_code == 1


@pytest.mark.parametrize("name", ["no-such-book", "HEAD~1:../x.yaml", ":x.yaml", "-x:y.yaml"])
def test_the_command_refuses_what_names_no_book(name: str) -> None:
    result = runner.invoke(app, ["rules", "check", "--", name])
    assert result.exit_code == 2, result.output


# --- bounds -------------------------------------------------------------------------------------------------


def many_rules(count: int) -> str:
    rule = {
        "kind": "veto",
        "runners": ["v2"],
        "feature": "one of many",
        "because": "It is so.",
        "since": "2026-01-01",
        "examples": {"fires": [{OVERRIDE: None}], "passes": [{OVERRIDE: None}]},
    }
    rules = [
        {"id": f"r{i}", **rule, "when": {"model_config.layer_types": {"any_in": [f"kind{i}"]}}}
        for i in range(count)
    ]
    book = {"rulebook": "many", "description": "Many.", "system": "dodona", "runners": ["v2", "v1"]}
    return json.dumps({**book, "rules": rules})


def test_a_book_of_hundreds_of_rules_is_proved() -> None:
    report = check_sourced(sourced_text(many_rules(300)))
    assert report.findings == ()
    assert [kind for kind, _ in report.outcomes] == [("v2", False), ("v1", False)]


def test_a_book_beyond_the_bound_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dodona.oracle.analysis.diagrams.MAX_VARIABLES", 20)
    source = sourced_text(many_rules(30), file="many.yaml")
    report = check_book(lambda: source)
    (finding,) = report.findings
    assert finding.code == "too-entangled"
    assert "split the book" in finding.message
    assert report.failed


def _many(conditions: Iterable[str]) -> str:
    rule = """  - id: r{0}
    kind: veto
    runners: [v2]
    when: {1}
    feature: f
    because: It is so.
    since: 2026-11-29
    examples: {{fires: [{{model_config.hidden_size: 1}}], passes: [{{model_config.hidden_size: 2}}]}}
"""
    head = "rulebook: big\ndescription: Many rules.\nsystem: dodona\nrunners: [v2, v1]\nrules:\n"
    return head + "".join(rule.format(i, condition) for i, condition in enumerate(conditions))


def test_the_work_for_a_large_book_has_a_bound() -> None:
    """Each of these took from ten seconds to minutes, and is a named error, or checked, now."""
    entangled = (
        f"{{all: [{{model_config.hidden_size: {{gt: {i + 9}}}}}, {{model_config.vocab_size: {3 * i + 5}}}, "
        f"{{model_config.intermediate_size: {{lt: {7 * i + 5}}}}}]}}"
        for i in range(MAX_RULES)
    )
    report = check_book(lambda: sourced_text(_many(entangled)))
    assert [f.code for f in report.findings] == ["too-entangled"]
    with pytest.raises(RuleFileError, match=f"at most {MAX_RULES}"):
        parse_rulebook(_many(f"{{model_config.hidden_size: {i}}}" for i in range(MAX_RULES + 1)))
    values = ", ".join(map(str, range(15_000)))
    with pytest.raises(RuleFileError, match="lists 15000 values, more than 2000"):
        parse_rulebook(_many([f"{{model_config.hidden_size: {{in: [{values}]}}}}"]))
