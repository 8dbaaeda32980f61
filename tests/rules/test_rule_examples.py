"""`dodona rules test`: failing examples, and the parts of conditions that no example reaches."""
# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Mapping

import pytest

from dodona.oracle.analysis.source import load_sourced, sourced_text
from dodona.oracle.authoring.coverage import BookReport, distinct, run_examples, totals
from dodona.oracle.systems.books import bundled_rulebooks

HEAD = "rulebook: trial\ndescription: A trial.\nsystem: dodona\nrunners: [v2, v1]\nrules:\n"
RULE = """\
  - id: trial
    kind: {kind}
    runners: [v2]
    when: {when}
    feature: trial
    because: It is one.
    since: 2026-01-31
    examples:
      fires: [{fires}]
      passes: [{passes}]
"""
MOE, TP, PP = (
    "model_config.is_moe: true",
    "parallel_config.tensor_parallel_size: 2",
    "parallel_config.pipeline_parallel_size: 2",
)
DENSE, TP1, PP1 = MOE.replace("true", "false"), TP.replace("2", "1"), PP.replace("2", "1")


def report(when: str, fires: str, passes: str, *, kind: str = "veto") -> BookReport:
    return run_examples(
        sourced_text(HEAD + RULE.format(kind=kind, when=when, fires=fires, passes=passes), file="trial.yaml")
    )


def findings(when: str, fires: str, passes: str, *, kind: str = "veto") -> list[tuple[str, int, int]]:
    found = report(when, fires, passes, kind=kind).findings
    return [(finding.code, finding.place.line, finding.place.column) for finding in found]


ANY = f"{{any: [{{{MOE}}}, {{{TP}}}, {{{PP}}}]}}"
ALL = f"{{all: [{{{MOE}}}, {{{TP}}}]}}"
NESTED = f"{{all: [{{{MOE}}}, {{any: [{{{TP}}}, {{not: {{{PP}}}}}]}}]}}"


@pytest.mark.parametrize(
    ("when", "fires", "passes", "expected"),
    [
        (f"{{{MOE}}}", f"{{{MOE}}}", f"{{{DENSE}}}", []),
        (f"{{{MOE}}}", f"{{{DENSE}}}", f"{{{DENSE}}}", [("example-fails", 14, 15)]),
        (f"{{{MOE}}}", f"{{{MOE}}}", f"{{{DENSE}}}, {{{TP1}}}", [("example-fails", 15, 46)]),
        (f"{{{MOE}}}", f"{{{MOE}}}, {{{TP}}}", f"{{{MOE}}}", [("example-fails", 14, 44), ("example-fails", 15, 16)]),
        (ANY, f"{{{MOE}}}, {{{TP}}}, {{{PP}}}", f"{{{DENSE}, {TP1}, {PP1}}}", []),
        (ANY, f"{{{MOE}}}, {{{TP}}}", f"{{{DENSE}, {TP1}, {PP1}}}", [("unreached-branch", 9, 90)]),
        (ANY, f"{{{MOE}, {TP}}}, {{{PP}}}", f"{{{DENSE}, {TP1}, {PP1}}}", [("unreached-branch", 9, 18), ("unreached-branch", 9, 47)]),
        (ALL, f"{{{MOE}, {TP}}}", f"{{{DENSE}}}, {{{TP1}}}", []),
        (ALL, f"{{{MOE}, {TP}}}", f"{{{DENSE}}}", [("unreached-branch", 9, 47)]),
        (ALL, f"{{{MOE}, {TP}}}", f"{{{DENSE}, {TP1}}}", [("unreached-branch", 9, 18), ("unreached-branch", 9, 47)]),
        (NESTED, f"{{{MOE}, {TP}, {PP}}}, {{{MOE}, {TP1}, {PP1}}}", f"{{{DENSE}}}, {{{TP1}, {PP}}}", []),
        (NESTED, f"{{{MOE}, {TP}, {PP}}}", f"{{{DENSE}}}, {{{TP1}, {PP}}}", [("unreached-branch", 9, 97)]),
        (f"{{all: [{{{MOE}}}]}}", f"{{{MOE}}}", f"{{{DENSE}}}", []),
    ],
)  # fmt: skip
def test_findings(when: str, fires: str, passes: str, expected: list[tuple[str, int, int]]) -> None:
    assert findings(when, fires, passes) == expected


def test_of_a_require_the_sides_are_turned() -> None:
    assert findings(f"{{{DENSE}}}", f"{{{MOE}}}", f"{{{DENSE}}}", kind="require") == []
    assert findings(ANY, f"{{{DENSE}, {TP1}, {PP1}}}", f"{{{MOE}}}, {{{TP}}}, {{{PP}}}", kind="require") == []
    assert findings(ANY, f"{{{DENSE}, {TP1}, {PP1}}}", f"{{{MOE}}}", kind="require") != []


def test_messages_say_how_to_mend() -> None:
    unknown, wrong, branch = report(
        ALL, f"{{{MOE}}}, {{{MOE}, {TP}}}", f"{{{MOE}, {TP}}}, {{{DENSE}}}"
    ).findings
    assert "leaves it open" in unknown.message
    assert unknown.hint == "Give a value to parallel_config.tensor_parallel_size: facts left out are unknown."
    assert "under `passes`, but makes the rule fire" in wrong.message
    assert wrong.hint == (
        "The rule fires where model_config.is_moe is true and parallel_config.tensor_parallel_size is 2."
    )
    assert branch.message.endswith("part of `all`: parallel_config.tensor_parallel_size is 2")
    assert branch.hint == "Add one in which this part fails and all other parts may hold."


def test_listed_values() -> None:
    architectures = "model_config.architectures"
    (rule,) = report(
        f"{{any: [{{{architectures}: {{any_in: [A, B, C]}}}}, {{speculative_config.method: {{in: [one, two]}}}}]}}",
        f"{{{architectures}: [B, Z]}}, {{speculative_config.method: two}}, {{{architectures}: [C]}}",
        f"{{{architectures}: [], speculative_config.method: null}}",
    ).rules
    assert (rule.counts.values, rule.counts.values_reached) == (5, 3)
    assert rule.unreached_values == {architectures: ("A",), "speculative_config.method": ("one",)}


def test_totals_count_a_text_once() -> None:
    reports = [run_examples(load_sourced(name)) for name in ("vllm/0.22.0", "vllm/0.22.1", "vllm/0.22.0")]
    assert len({len(each.rules) for each in reports}) == 1
    once = totals(distinct(reports))
    assert once == totals(reports[0].rules)
    assert once.rules > 10


def test_a_rule_that_a_book_changes_counts_again() -> None:
    base = run_examples(load_sourced("vllm/0.32.0"))
    child = run_examples(load_sourced("vllm/0.33.0"))
    assert len(distinct([base, child])) > len(base.rules)
    assert len(distinct([base, child])) < len(base.rules) + len(child.rules)


def _places(name: str) -> Mapping[str, str]:
    return {rule.rule: rule.place.file for rule in run_examples(load_sourced(name)).rules}


def test_inherited_rules_are_placed_where_they_are_written() -> None:
    places = _places("vllm/0.33.0")
    assert places["triton-worker"].endswith("0.33.0.yaml")
    assert places["forced-v1"].endswith("0.29.0.yaml")


@pytest.mark.parametrize("name", bundled_rulebooks())
def test_bundled_books_reach_every_part(name: str) -> None:
    assert run_examples(load_sourced(name)).findings == ()
