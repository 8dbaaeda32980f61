"""`dodona rules diff` finds what brute force finds, its witnesses differ, and layout is no difference."""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dodona.cli.app import app
from dodona.oracle.analysis.diff import Difference, Witness, diff_books, diff_sources
from dodona.oracle.analysis.source import SourcedBook, load_sourced, sourced_text
from dodona.oracle.decide.evaluate import firings, with_assumptions
from dodona.oracle.decide.outcome import decide
from dodona.oracle.errors import ConfigError, RuleFileError
from dodona.oracle.language.facts import UNKNOWN, FactValue
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.systems.books import bundled_rulebooks
from tests.support.small_books import book_data, points, text_of

ROOT = Path(__file__).parents[2]
BOOKS = bundled_rulebooks()


def said(book: RuleBook, facts: Mapping[str, FactValue]) -> tuple[Any, ...]:
    """All that a book says of facts: outcome, who decides, refusals, rules that fire, features lacked."""
    facts, _ = with_assumptions(book, facts)
    fired = firings(book, facts)
    outcome = decide(book, fired)
    lacks = {
        (runner, rule.show_feature(facts))
        for rule in (book.by_id[f.rule] for f in fired)
        if rule.kind != "override"
        for runner in rule.runners
    }
    return outcome.kind, outcome.decided_by, set(outcome.refusals), {f.rule for f in fired}, lacks


def assert_differs(a: RuleBook, b: RuleBook, witness: Witness) -> None:
    before, after = said(a, witness.all_facts), said(b, witness.all_facts)
    assert before != after
    for answer, (kind, decided_by, refusals, fired, lacks) in (
        (witness.before, before),
        (witness.after, after),
    ):
        assert (answer.kind, answer.decided_by) == (kind, decided_by)
        assert set(answer.refusals) == refusals
        assert set(answer.reasons) == fired
        assert {(r, f) for r, features in answer.unsupported.items() for f in features} == lacks
    index = {"outcome": 0, "refusals": 2, "unsupported": 4, "reasons": 3}[witness.effect]
    assert before[index] != after[index] or witness.effect == "reasons"


def assert_true(a: SourcedBook, b: SourcedBook, found: Difference) -> None:
    """Every witness of a difference shows what it is said to show."""
    for change in found.outcomes:
        assert_differs(a.book, b.book, change.witness)
        assert (change.witness.before.kind, change.witness.after.kind) == (change.before, change.after)
        assert change.known is (UNKNOWN not in change.witness.all_facts.values())
    for rule in found.rules:
        assert_differs(a.book, b.book, rule.witness)


@pytest.mark.parametrize("name", BOOKS)
def test_a_book_does_not_differ_from_itself(name: str) -> None:
    source = load_sourced(name)
    assert not diff_books(source, source)
    assert diff_books(source, source).notes == ()


RELEASES = [name for name in BOOKS if name.startswith("vllm/")]


@pytest.mark.parametrize(("a", "b"), list(itertools.pairwise(RELEASES)))
def test_witnesses_between_releases_differ(a: str, b: str) -> None:
    before, after = load_sourced(a), load_sourced(b)
    found = diff_books(before, after)
    assert_true(before, after, found)
    same_rules = before.book.rules == after.book.rules
    assert bool(found) is not same_rules


def test_witnesses_over_many_releases_differ() -> None:
    before, after = load_sourced("vllm/0.22.0"), load_sourced("vllm/0.33.0")
    assert_true(before, after, diff_books(before, after))
    assert_true(after, before, diff_books(after, before))


def test_a_release_with_two_more_architectures() -> None:
    found = diff_books(load_sourced("vllm/0.22.0"), load_sourced("vllm/0.23.0"))
    changed = {rule.rule: rule for rule in found.rules}
    assert set(changed) == {"architecture", "hybrid-mamba", "mamba-prefix-caching", "reasoning-budget"}
    assert changed["architecture"].what == ("fires for fewer",)
    assert dict(changed["architecture"].witness.facts) == {
        "model_config.architectures": ("LlamaForCausalLM",)
    }
    assert changed["reasoning-budget"].status == "removed"
    assert found.radius is not None
    assert found.radius.plain == {
        "LlamaForCausalLM": (("v1", False), ("v2", False)),
        "MistralForCausalLM": (("v1", False), ("v2", False)),
    }


def test_books_of_two_systems_are_not_compared() -> None:
    with pytest.raises(ConfigError, match=r"dodona describes dodona, vllm/0\.22\.0 describes vllm"):
        diff_books(load_sourced("dodona"), load_sourced("vllm/0.22.0"))


# --- random books -------------------------------------------------------------------------------------------


@given(book_data(), book_data(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_difference_is_what_brute_force_finds(
    first: dict[str, Any], second: dict[str, Any], data: st.DataObject
) -> None:
    edited = copy.deepcopy(first)
    for index, rule in enumerate(edited["rules"]):
        if data.draw(st.booleans()) and index < len(second["rules"]):
            other = second["rules"][index]
            if other["kind"] == rule["kind"]:
                rule["when"] = other["when"]
    if data.draw(st.booleans()):
        edited["forced_refusal"] = second["forced_refusal"]
    a, b = sourced_text(text_of(first)), sourced_text(text_of(edited))
    names = set(a.book.reads) | set(b.book.reads)
    if len(names) > 4:
        return
    found = diff_books(a, b)
    assert_true(a, b, found)
    changes: set[tuple[object, object]] = set()
    nearest: dict[tuple[object, object], int] = {}
    differ = False
    baseline = _plain()
    for facts in points(a.book, b.book, unknown=True):
        full = {**baseline, **facts}
        before, after = said(a.book, full), said(b.book, full)
        differ = differ or before != after
        if before[0] != after[0]:
            change = before[0], after[0]
            changes.add(change)
            if UNKNOWN not in facts.values():
                away = sum(facts[name] != baseline[name] for name in facts)
                nearest[change] = min(nearest.get(change, 99), away)
    assert bool(found) is (
        differ or (a.book.forced_refusal != b.book.forced_refusal and bool(found.settings))
    )
    assert {(c.before, c.after) for c in found.outcomes} == changes
    for change in found.outcomes:
        key = change.before, change.after
        assert change.known is (key in nearest)
        if change.known:
            away = sum(value != baseline[name] for name, value in change.witness.all_facts.items())
            assert away == nearest[key]


def _plain() -> Mapping[str, FactValue]:
    from dodona.oracle.analysis.baseline import plain_facts

    return plain_facts("dodona")


# --- layout is no difference --------------------------------------------------------------------------------


def own_text() -> str:
    return (ROOT / "rules" / "dodona.yaml").read_text()


def relaid(text: str, *, flow: bool) -> str:
    """The same book with its rules and keys in another order, without comments, in another style."""
    data = yaml.safe_load(text)
    data["rules"] = [dict(reversed(rule.items())) for rule in reversed(data["rules"])]
    if flow:
        return json.dumps(data, default=str)
    return yaml.safe_dump(data, default_flow_style=False, width=60)


@pytest.mark.parametrize("flow", [False, True])
def test_layout_is_no_difference(flow: bool) -> None:
    text = own_text()
    found = diff_books(sourced_text(text), sourced_text(relaid(text, flow=flow)))
    assert not found
    assert found.notes == ()


@pytest.mark.parametrize(
    ("old", "new", "note"),
    [
        (
            "when: {model_config.is_moe: true}",
            "when: {not: {model_config.is_moe: false}}",
            "`when` is written otherwise",
        ),
        ("because: V2 has no expert routing.", "because: Experts are not routed.", "other because"),
        (
            "when: {environment.compute_capability: {ge: 80}}",
            "when: {environment.compute_capability: {gt: 79}}",
            "`when` is written otherwise",
        ),
        ("precedence: 2", "precedence: 7", "precedence 2 → 7, which changes nothing"),
    ],
)
def test_the_same_said_otherwise_is_a_note(old: str, new: str, note: str) -> None:
    text = own_text()
    assert old in text
    found = diff_books(sourced_text(text), sourced_text(text.replace(old, new)))
    assert not found
    assert any(note in line for line in found.notes)


def test_equal_over_known_facts_but_not_over_unknown_ones_is_said_so() -> None:
    """`is_moe or not is_moe` is true of all known facts, and open where the fact isn't known."""
    text = own_text()
    old = "when: {model_config.has_partial_rotary: false}"
    assert old in text
    either = "{any: [{model_config.use_mla: true}, {model_config.use_mla: false}]}"
    new = "when: {all: [" + old.removeprefix("when: ") + ", " + either + "]}"
    a, b = sourced_text(text), sourced_text(text.replace(old, new))
    found = diff_books(a, b)
    (rule,) = found.rules
    assert rule.what == ("fires for more, where facts aren't known",)
    assert rule.witness.all_facts["model_config.use_mla"] is UNKNOWN
    assert_true(a, b, found)


# --- the command --------------------------------------------------------------------------------------------

runner = CliRunner()


def run(*arguments: str) -> Any:
    return runner.invoke(app, ["rules", "diff", *arguments])


def test_exit_codes(tmp_path: Path) -> None:
    assert run("vllm/0.22.0", "vllm/0.22.1").exit_code == 0
    assert run("vllm/0.22.0", "vllm/0.23.0").exit_code == 1
    assert run("vllm/0.22.0", "vllm/9.9.9").exit_code == 2
    assert run("vllm/0.22.0", "dodona").exit_code == 2
    broken = tmp_path / "broken.yaml"
    broken.write_text("rulebook: [")
    assert run("dodona", str(broken)).exit_code == 2
    assert run("dodona", str(tmp_path)).exit_code == 2


def test_text_json_and_markdown() -> None:
    text = run("vllm/0.22.0", "vllm/0.23.0").output
    assert "~ architecture: fires for fewer" in text
    assert "for model_config.architectures: [LlamaForCausalLM]" in text
    assert "- reasoning-budget: veto on v2" in text
    (book,) = json.loads(run("vllm/0.22.0", "vllm/0.23.0", "--json").output)["books"]
    assert book["differs"] is True
    rules = {"architecture", "hybrid-mamba", "mamba-prefix-caching", "reasoning-budget"}
    assert {rule["rule"] for rule in book["rules"]} == rules
    assert sorted(book["architectures"]["plain"]) == ["LlamaForCausalLM", "MistralForCausalLM"]
    (rule,) = [rule for rule in book["rules"] if rule["rule"] == "architecture"]
    assert rule["witness"]["facts"] == {"model_config.architectures": ["LlamaForCausalLM"]}
    assert rule["witness"]["before"]["runner"] == "v1"
    assert rule["witness"]["after"]["runner"] == "v2"
    markdown = run("vllm/0.22.0", "vllm/0.23.0", "--markdown").output
    assert "| `reasoning-budget` | removed: veto on v2 | `reasoning_config: true` | v1 → v2 |" in markdown
    assert "No verdict changes." in run("vllm/0.22.0", "vllm/0.22.1", "--markdown").output


def test_folders(tmp_path: Path) -> None:
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        (tmp_path / side / "same.yaml").write_text(own_text())
    (tmp_path / "a" / "gone.yaml").write_text(own_text())
    (tmp_path / "b" / "new.yaml").write_text(own_text())
    found = diff_sources(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (found.added, found.removed) == (("new.yaml",), ("gone.yaml",))
    assert [bool(book) for book in found.books] == [False]
    assert found
    output = run(str(tmp_path / "a"), str(tmp_path / "b"))
    assert output.exit_code == 1
    assert "new.yaml: only in" in output.output


def test_a_folder_s_markdown_shows_what_differs(tmp_path: Path) -> None:
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        for name in ("one", "two", "three"):
            text = own_text()
            if (side, name) == ("b", "two"):
                text = text.replace("head_size: {in: [16,", "head_size: {in: [8, 16,")
            (tmp_path / side / f"{name}.yaml").write_text(text)
    output = run(str(tmp_path / "a"), str(tmp_path / "b"), "--markdown").output
    assert output.count("###") == 1
    assert "two.yaml` →" in output
    assert "| `head-size` | changed: fires for fewer | `model_config.head_size: 8` | v1 → v2 |" in output
    assert "2 other books: no verdict changes." in output


SMALL = """
rulebook: base
description: Two rules.
system: dodona
runners: [v2, v1]
rules:
  - id: block-size
    kind: require
    runners: [v2]
    when: {cache_config.block_size: {in: [16, 32]}}
    feature: KV blocks
    because: Blocks are powers of two.
    since: 2026-01-31
    examples: {fires: [{cache_config.block_size: 8}], passes: [{cache_config.block_size: 16}]}
  - id: lora
    kind: veto
    runners: [v2]
    when: {lora_config: {is_set: true}}
    feature: LoRA adapters
    because: V2 does not apply adapters.
    since: 2026-01-31
    examples: {fires: [{lora_config: true}], passes: [{lora_config: null}]}
"""


def test_git_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    folder = tmp_path / "rules"
    folder.mkdir()
    (folder / "base.yaml").write_text(SMALL)
    (folder / "child.yaml").write_text(
        "rulebook: child\nextends: base\ndescription: A child.\nremove: [lora]\n"
    )
    git("add", ".")
    git("commit", "-qm", "first")
    (folder / "base.yaml").write_text(SMALL.replace("block_size: {in: [16,", "block_size: {in: [8, 16,"))
    git("commit", "-qam", "second")
    monkeypatch.chdir(tmp_path)
    found = diff_sources("HEAD~1:rules/base.yaml", "rules/base.yaml")
    (difference,) = found.books
    assert [rule.rule for rule in difference.rules] == ["block-size"]
    assert difference.rules[0].place.file == "rules/base.yaml"
    both = diff_sources("HEAD~1:rules", "HEAD:rules")
    assert [bool(book) for book in both.books] == [True, True]
    (lora,) = diff_sources("HEAD:rules/base.yaml", "HEAD:rules/child.yaml").books[0].rules
    assert (lora.rule, lora.status) == ("lora", "removed")
    for wrong in ("HEAD~9:rules/base.yaml", "HEAD:rules/none.yaml", "HEAD:nothing"):
        with pytest.raises(ConfigError, match=wrong.split(":")[0]):
            diff_sources(wrong, "rules/base.yaml")
    (folder / "child.yaml").write_text("rulebook: child\nextends: nobody\n")
    with pytest.raises(RuleFileError, match=r"nobody\.yaml"):
        diff_sources("rules/child.yaml", "rules/base.yaml")
