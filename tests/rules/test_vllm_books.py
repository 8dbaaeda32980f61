"""The rule books of vLLM's releases: against recorded answers, and against the history of the checks."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from dodona.oracle.analysis.replay import book_answer, read_cases, replay
from dodona.oracle.decide import evaluate as reference
from dodona.oracle.decide.choice_log import choice_log
from dodona.oracle.decide.durable import evaluation as durable
from dodona.oracle.decide.durable.engine import EngineUnavailable
from dodona.oracle.decide.outcome import decide
from dodona.oracle.language.conditions import evaluate
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.systems.books import bundled_rulebook, bundled_rulebooks
from dodona.oracle.systems.vllm.cases import case_facts
from dodona.oracle.systems.vllm.facts import VLLM_FACTS
from tests.support.history_reference import answer, history
from tests.support.vllm_cases import random_case

GOLDEN = Path(__file__).resolve().parent.parent / "data" / "vllm_golden"
RECORDED = sorted(path.name.removesuffix(".jsonl.gz") for path in GOLDEN.glob("*.jsonl.gz"))
RELEASES = list(history())


def _book(release: str) -> RuleBook:
    return bundled_rulebook(f"vllm/{release}")


def test_every_release_has_a_book_and_every_book_a_release() -> None:
    books = [name.removeprefix("vllm/") for name in bundled_rulebooks() if name.startswith("vllm/")]
    assert sorted(books) == sorted(RELEASES)
    assert set(RECORDED) <= set(RELEASES)
    assert (len(RELEASES), len(RECORDED)) >= (26, 19)


@pytest.mark.parametrize("release", RECORDED)
def test_recorded_cases_agree(release: str) -> None:
    result = replay(_book(release), [GOLDEN / f"{release}.jsonl.gz"])
    assert result.agreed == result.total >= 300, "\n".join(map(str, result.disagreements))


@pytest.mark.parametrize("release", RECORDED)
def test_what_vllm_logs_agrees(release: str) -> None:
    book = _book(release)
    told = 0
    for _, case in read_cases(GOLDEN / f"{release}.jsonl.gz"):
        # a default that is passed over logs a line too, which the books leave out
        recorded = [
            line for line in case["expect"]["warnings"] if not line.startswith("Skipping the ROCm V1")
        ]
        if case["expect"]["use_v2"] is None:
            continue
        facts = case_facts(book, case)
        found = reference.firings(book, facts)
        outcome = decide(book, found)
        forced_by = outcome.decided_by if outcome.forced else None
        line = choice_log(book, facts, [book.by_id[f.rule] for f in found], forced_by=forced_by)
        # the order of the features is the file's, not vLLM's
        assert [_words(line)] * (line is not None) == [_words(text) for text in recorded], case
        told += line is not None
    assert (told > 0) is (release > "0.21.0")


def _words(text: str | None) -> list[str]:
    return sorted(re.split(r"[ ,;]+", text or ""))


@pytest.mark.parametrize("release", RELEASES)
def test_unseen_cases_agree_with_the_history(release: str) -> None:
    book = _book(release)
    rng = random.Random(f"vllm {release}")
    for _ in range(1000):
        case = random_case(rng)
        expected, got = answer(release, case), book_answer(book, case)
        if expected.use_v2 is None:
            assert got.runner is None, case
            continue
        assert (got.runner == "v2", got.starts) == (expected.use_v2, expected.starts), case
        if expected.unsupported_v2 is not None:
            assert got.unsupported["v2"] == expected.unsupported_v2, case
        if expected.unsupported_v1 is not None:
            assert got.unsupported["v1"] == expected.unsupported_v1, case


@pytest.mark.parametrize("release", RELEASES)
def test_examples_hold(release: str) -> None:
    for rule in _book(release).rules:
        for facts in rule.examples.fires:
            assert evaluate(rule.fires_when, facts) is True, (rule.id, facts)
        for facts in rule.examples.passes:
            assert evaluate(rule.fires_when, facts) is False, (rule.id, facts)


@pytest.mark.parametrize("release", RELEASES)
def test_rules_are_dated_by_the_release_that_brought_them(release: str) -> None:
    dates = {record["date"] for record in history().values() if record["date"] <= history()[release]["date"]}
    for rule in _book(release).rules:
        assert str(rule.since) in dates, rule.id


def test_releases_with_the_same_logic_share_one_text() -> None:
    about_the_wheel = {
        "release",
        "date",
        "wheel",
        "torch_pin",
        "transformers_pin",
        "requires_python",
        "triton_pin",
    }
    first: dict[str, str] = {}
    for release, record in history().items():
        logic = repr(sorted((k, repr(v)) for k, v in record.items() if k not in about_the_wheel))
        other = first.setdefault(logic, release)
        assert _book(release).rules == _book(other).rules
    assert len(first) >= 14


def test_every_fact_is_read_by_some_book() -> None:
    read = {name for release in RELEASES for entry in _book(release).entries for name in entry.reads}
    only_for_derived = {"parallel_config.ubatch_size"}
    only_shown = {"model_config.total_num_attention_heads", "model_config.total_num_kv_heads"}
    assert set(VLLM_FACTS) - read == only_for_derived | only_shown


@pytest.mark.parametrize("release", ["0.20.0", "0.23.0", "0.28.0", "0.29.0", "0.31.0", "0.33.0"])
def test_the_rule_engine_fires_as_the_reference_does(release: str) -> None:
    book = _book(release)
    rng = random.Random(f"engine {release}")
    for _ in range(100):
        case = random_case(rng) | {"env": rng.choice((None, "0", "1"))}
        facts = case_facts(book, case)
        try:
            fired = durable.firings(book, facts, trusted=True)
        except EngineUnavailable as reason:
            pytest.skip(str(reason))
        assert fired == reference.firings(book, facts), case
