"""Faults planted in a sound rule book: each is caught, and the message names the line where it was planted.

FAULTS is the table: what was planted, what catches it first (loading the book, `rules check`, the book's own
examples, or `rules diff` against the sound book), and the code of the finding or a part of the message.
"""
# ruff: noqa: E501

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest

from dodona.oracle.analysis.check import check_sourced
from dodona.oracle.analysis.diff import diff_books
from dodona.oracle.analysis.source import SourcedBook, sourced_text
from dodona.oracle.authoring.coverage import run_examples
from dodona.oracle.errors import RuleFileError
from dodona.oracle.language.yaml_source import Document, parse_yaml

SOUND = """\
rulebook: sound
description: A small book without faults.
system: dodona
runners: [v2, v1]
environment:
  variable: SOUND_USE_V2
  values: {"0": v1, "1": v2}
  otherwise: error
forced_refusal: choice
rules:
  - id: forced-v1
    kind: override
    runners: [v1]
    precedence: 1
    when: {environment.override: v1}
    feature: SOUND_USE_V2=0
    because: It asks for V1.
    since: 2026-01-01
    examples: {fires: [{environment.override: v1}], passes: [{environment.override: null}]}

  - id: forced-v2
    kind: override
    runners: [v2]
    precedence: 2
    when: {environment.override: v2}
    feature: SOUND_USE_V2=1
    because: It asks for V2.
    since: 2026-01-01
    examples: {fires: [{environment.override: v2}], passes: [{environment.override: null}]}

  - id: architecture
    kind: require
    runners: [v2]
    when: {model_config.architectures: {any_in: [Qwen3ForCausalLM, LlamaForCausalLM]}}
    feature: architecture '{model_config.architectures}'
    because: V2 has its own model code.
    since: 2026-01-01
    examples:
      fires: [{model_config.architectures: [GPT2LMHeadModel]}]
      passes: [{model_config.architectures: [Qwen3ForCausalLM]}]

  - id: generate
    kind: require
    runners: [v2]
    when: {model_config.runner_type: generate}
    feature: runner type
    because: V2 generates.
    since: 2026-01-01
    examples:
      fires: [{model_config.runner_type: pooling}]
      passes: [{model_config.runner_type: generate}]

  - id: head-size
    kind: require
    runners: [v2]
    when: {model_config.head_size: {in: [64, 128, 256]}}
    feature: head size {model_config.head_size}
    because: Its kernels have these.
    since: 2026-01-01
    examples:
      fires: [{model_config.head_size: 80}]
      passes: [{model_config.head_size: 64}]

  - id: full-or-sliding
    kind: require
    runners: [v2]
    when:
      any:
        - model_config.attention_pattern: full
        - model_config.attention_pattern: sliding
    feature: attention pattern
    because: All layers are alike.
    since: 2026-01-01
    examples:
      fires: [{model_config.attention_pattern: mixed}]
      passes: [{model_config.attention_pattern: full}, {model_config.attention_pattern: sliding}]

  - id: plain-cache
    kind: require
    runners: [v2]
    when: {not: {cache_config.cache_dtype: fp8}}
    feature: fp8 cache
    because: It stores the model's type.
    since: 2026-01-01
    examples:
      fires: [{cache_config.cache_dtype: fp8}]
      passes: [{cache_config.cache_dtype: auto}]

  - id: tensor-parallelism
    kind: veto
    runners: [v1, v2]
    when: {parallel_config.tensor_parallel_size: {gt: 1}}
    feature: tensor parallelism
    because: One device only.
    since: 2026-01-01
    examples:
      fires: [{parallel_config.tensor_parallel_size: 4}]
      passes: [{parallel_config.tensor_parallel_size: 1}]

  - id: lora
    kind: veto
    runners: [v2]
    when: {lora_config: {is_set: true}}
    feature: LoRA
    because: V2 has no adapters.
    since: 2026-01-01
    examples: {fires: [{lora_config: true}], passes: [{lora_config: null}]}

  - id: speculation
    kind: veto
    runners: [v1, v2]
    when: {speculative_config: {is_set: true}}
    feature: speculative decoding
    because: Nobody drafts.
    since: 2026-01-01
    examples: {fires: [{speculative_config: true}], passes: [{speculative_config: null}]}

  - id: eagle-parallel
    kind: veto
    runners: [v1, v2]
    refines: [speculation]
    when:
      all:
        - speculative_config.method: eagle3
        - parallel_config.pipeline_parallel_size: {gt: 1}
    feature: EAGLE3 with pipeline parallelism
    because: Hidden states lie elsewhere.
    since: 2026-01-01
    examples:
      fires: [{speculative_config.method: eagle3, parallel_config.pipeline_parallel_size: 2}]
      passes:
        - {speculative_config.method: eagle3, parallel_config.pipeline_parallel_size: 1}
        - {speculative_config.method: eagle, parallel_config.pipeline_parallel_size: 2}
"""

EXTRA = """
  - id: planted
    kind: veto
    runners: [v2]
    when: {WHEN}
    feature: planted
    because: It was planted.
    since: 2026-01-01
    examples:
      fires: [{FIRES}]
      passes: [{PASSES}]
"""

OVERRIDE = """
  - id: planted
    kind: override
    runners: [RUNNER]
    precedence: PRECEDENCE
    when: {WHEN}
    feature: planted
    because: It was planted.
    since: 2026-01-01
    examples:
      fires: [{FIRES}]
      passes: [{PASSES}]
"""


def extra(when: str, fires: str, passes: str) -> tuple[str, str]:
    """A veto on V2 at the end of the book."""
    return "", EXTRA.replace("WHEN", when).replace("FIRES", fires).replace("PASSES", passes)


def override(
    when: str, fires: str, passes: str, *, runner: str = "v2", precedence: str = "3"
) -> tuple[str, str]:
    """An override at the end of the book."""
    text = OVERRIDE.replace("RUNNER", runner).replace("PRECEDENCE", precedence)
    return "", text.replace("WHEN", when).replace("FIRES", fires).replace("PASSES", passes)


@dataclass(frozen=True)
class Fault:
    """What is planted (`change`: old text → new text; no old text appends), and how it shows."""

    name: str
    change: tuple[str, str]
    caught_by: str
    says: str
    """Code of the finding, a part of the load error's message, or what differs."""
    line: str
    """Begins the line of the faulty book that the message names (its first occurrence at or after the change)."""


TP = "when: {parallel_config.tensor_parallel_size: {gt: 1}}"
MOE = "{model_config.is_moe: true}"
DENSE = "{model_config.is_moe: false}"

FAULTS = (
    # --- loading the book
    Fault("typo in a fact", ("head_size: {in", "headsize: {in"), "load", "unknown fact", "when: {model_config.headsize"),
    Fault("typo in a feature's fact", ("size {model_config.head_size}", "size {model_config.hed_size}"), "load", "unknown fact", "feature: head size"),
    Fault("typo in an example's fact", ("[{model_config.head_size: 80}]", "[{model_config.head_sze: 80}]"), "load", "unknown fact", "fires: [{model_config.head_sze"),
    Fault("value outside its domain", ("runner_type: generate}\n    f", "runner_type: generat}\n    f"), "load", "outside the domain", "when: {model_config.runner_type"),
    Fault("number out of range", (TP, TP.replace("gt: 1", "gt: -1")), "load", "outside the range", TP[:40]),
    Fault("text for a number", (TP, TP.replace("1", "'1'")), "load", "compared with", TP[:40]),
    Fault("operator of another type", (TP, TP.replace("gt: 1", "any_in: [1]")), "load", "doesn't fit", TP[:40]),
    Fault("unknown operator", (TP, TP.replace("gt", "greater")), "load", "unknown operator", TP[:40]),
    Fault("comparison with null", ("{lora_config: {is_set: true}}\n", "{lora_config: null}\n"), "load", "compared with null", "when: {lora_config"),
    Fault("is_set of what is always set", (TP, TP.replace("gt: 1", "is_set: true")), "load", "always set", TP[:40]),
    Fault("empty any", ("any:\n        - model_config.attention_pattern: full\n        - model_config.attention_pattern: sliding", "any: []"), "load", "at least one condition", "any: []"),
    Fault("two keys in one condition", ("{environment.override: v1}\n    feature", "{environment.override: v1, model_config.is_moe: true}\n    feature"), "load", "exactly one key", "when: {environment.override: v1, "),
    Fault("id used twice", ("id: head-size", "id: generate"), "load", "used twice", "- id: generate"),
    Fault("misspelt key", ("because: Nobody", "becuase: Nobody"), "load", "unknown key", "becuase: Nobody"),
    Fault("key left out", ("    because: Nobody drafts.\n", ""), "load", "'because' is missing", "- id: speculation"),
    Fault("example left out", (", passes: [{speculative_config: null}]", ""), "load", "'passes' is missing", "examples: {fires: [{speculative_config: true}]"),
    Fault("unknown kind", ("kind: veto\n    runners: [v2]", "kind: vetoes\n    runners: [v2]"), "load", "'vetoes'", "kind: vetoes"),
    Fault("runner that the book has not", ("runners: [v1, v2]\n    when: {parallel", "runners: [v1, v3]\n    when: {parallel"), "load", "'v3'", "runners: [v1, v3]"),
    Fault("refines an unknown rule", ("refines: [speculation]", "refines: [speculations]"), "load", "refines the unknown rule", "refines: [speculations]"),
    Fault("refines itself in a circle", ("when: {speculative_config: {is_set: true}}", "refines: [eagle-parallel]\n    when: {speculative_config: {is_set: true}}"), "load", "in a circle", "refines: ["),
    Fault("refines a rule of fewer runners", ("refines: [speculation]", "refines: [lora]"), "load", "same runners", "refines: [lora]"),
    Fault("clash of two overrides", ("precedence: 2", "precedence: 1"), "load", "precedence 1 is taken", "precedence: 1"),
    Fault("override without precedence", ("    precedence: 2\n", ""), "load", "needs a precedence", "- id: forced-v2"),
    Fault("veto with precedence", ("when: {lora_config", "precedence: 3\n    when: {lora_config"), "load", "no precedence", "precedence: 3"),
    Fault("duplicate key", ("    because: Nobody drafts.\n", "    because: Nobody drafts.\n    because: Nobody does.\n"), "load", "appears twice", "because: Nobody does"),
    Fault("yes for true", ("{lora_config: {is_set: true}}", "{lora_config: {is_set: yes}}"), "load", "boolean", "when: {lora_config: {is_set: yes"),
    Fault("broken extends", ("system: dodona", "extends: nobody"), "load", "no book nobody.yaml", "extends: nobody"),
    Fault("removes what is not there", ("system: dodona", "extends: base\nremove: [nothing]"), "load", "removes 'nothing'", "remove: [nothing]"),
    # --- rules check
    Fault("dead rule", extra("all: [{model_config.head_size: {gt: 9}}, {model_config.head_size: {lt: 8}}]", "model_config.head_size: 9", "model_config.head_size: 8"), "check", "dead-rule", "when: {all: [{model_config.head_size"),
    Fault("flipped comparison that can't hold", (TP, TP.replace("gt", "lt")), "check", "dead-rule", TP[:40]),
    Fault("comparison that always holds", (TP, TP.replace("gt: 1", "ge: 1")), "check", "always-fires", TP[:40]),
    Fault("tautology", extra("any: [" + MOE + ", {not: " + MOE + "}]", "model_config.is_moe: true", "model_config.is_moe: false"), "check", "always-fires", "when: {any: [" + MOE),
    Fault("section that is never false", ("{speculative_config: {is_set: true}}\n", "{speculative_config: false}\n"), "check", "constant-comparison", "when: {speculative_config: false"),
    Fault("shadowed veto", extra("parallel_config.tensor_parallel_size: {gt: 3}", "parallel_config.tensor_parallel_size: 4", "parallel_config.tensor_parallel_size: 3"), "check", "shadowed", "when: {parallel_config.tensor_parallel_size: {gt: 3"),
    Fault("the same rule twice", extra("lora_config: {is_set: true}", "lora_config: true", "lora_config: null"), "check", "shadowed", "when: {lora_config"),
    Fault("special case not marked", ("    refines: [speculation]\n", ""), "check", "shadowed", "when:"),
    Fault("wrong refines", ("refines: [speculation]", "refines: [tensor-parallelism]"), "check", "wrong-refines", "refines: [tensor"),
    Fault("special case of nothing", ("- speculative_config.method: eagle3", "- model_config.is_moe: true"), "check", "wrong-refines", "refines: [speculation]"),
    Fault("covered by two rules together", extra("all: [{parallel_config.tensor_parallel_size: {ge: 2}}, {any: [{lora_config: {is_set: true}}, {lora_config: {is_set: false}}]}]", "parallel_config.tensor_parallel_size: 4, lora_config: true", "parallel_config.tensor_parallel_size: 1, lora_config: null"), "check", "idle-condition", "when: {all: [{parallel_config.tensor"),
    Fault("never the only reason", extra("all: [{not: {model_config.runner_type: generate}}, {lora_config: {is_set: true}}, {model_config.use_mla: true}]", "model_config.runner_type: pooling, lora_config: true, model_config.use_mla: true", "model_config.runner_type: generate"), "check", "shadowed", "when: {all: [{not"),
    Fault("never the only reason, by two rules", extra("any: [{all: [" + "{lora_config: {is_set: true}}, " + MOE + "]}, {all: [{speculative_config: {is_set: true}}, " + MOE + "]}]", "lora_config: true, model_config.is_moe: true", "model_config.is_moe: false"), "check", "not-only-reason", "when: {any: [{all: [{lora"),
    Fault("unreachable branch of any", ("- model_config.attention_pattern: sliding\n", "- all: [{model_config.head_size: 64}, {model_config.head_size: 65}]\n"), "check", "idle-branch", "- all: [{model_config.head_size: 64"),
    Fault("branch of any that adds nothing", ("- model_config.attention_pattern: sliding\n", "- all: [{model_config.attention_pattern: full}, {model_config.is_moe: true}]\n"), "check", "idle-branch", "- all: [{model_config.attention_pattern"),
    Fault("the same branch twice", ("attention_pattern: sliding\n    f", "attention_pattern: full\n    f"), "check", "idle-branch", "- model_config.attention_pattern: full\n    f"),
    Fault("condition that the others imply", ("- speculative_config.method: eagle3\n", "- speculative_config.method: eagle3\n        - speculative_config: {is_set: true}\n"), "check", "idle-condition", "- speculative_config: {is_set"),
    Fault("override that never decides", override("all: [{environment.override: v1}, " + MOE + "]", "environment.override: v1, model_config.is_moe: true", "environment.override: null", runner="v1"), "check", "never-decides", "precedence: 3"),
    Fault("a feature beats the user", ("precedence: 1\n    when: {environment.override: v1}", "precedence: 1\n    when: {any: [{environment.override: v1}, {model_config.is_moe: true}]}"), "check", "not-user-decides", "rulebook: sound"),
    Fault("environment variable's runners swapped", ("runners: [v1]\n    precedence: 1", "runners: [v2]\n    precedence: 1"), "check", "not-user-decides", "rulebook: sound"),
    Fault("a lacking feature forces the runner", ("forced_refusal: choice\nrules:\n", "forced_refusal: startup\nrules:\n" + override("parallel_config.tensor_parallel_size: {gt: 1}", "parallel_config.tensor_parallel_size: 2", "parallel_config.tensor_parallel_size: 1", precedence="9")[1]), "check", "not-monotone", "rulebook: sound"),
    Fault("fallback without a reason", override(MOE[1:-1], "model_config.is_moe: true", "model_config.is_moe: false", precedence="9", runner="v1"), "check", "not-preferred-by-default", "rulebook: sound"),
    Fault("unless_vetoed that never counts", override("all: [{parallel_config.tensor_parallel_size: 1}, {speculative_config: {is_set: false}}]", "parallel_config.tensor_parallel_size: 1, speculative_config: null", "parallel_config.tensor_parallel_size: 2", precedence="9\n    unless_vetoed: v1", runner="v1"), "check", "idle-unless-vetoed", "unless_vetoed: v1"),
    Fault("misspelt architecture", ("any_in: [Qwen3ForCausalLM, LlamaForCausalLM]", "any_in: [Qwen3ForCausalLM, LamaForCausalLM]"), "check", "unknown-architecture", "when: {model_config.architectures"),
    Fault("example that can't be", ("passes: [{speculative_config: null}]", "passes: [{speculative_config: null, speculative_config.method: mtp}]"), "check", "impossible-example", "examples: {fires: [{speculative_config: true}]"),
    Fault("exception that is none", ("rules:\n", "exceptions:\n  - {property: monotone, because: No., witness: {model_config.is_moe: true}}\nrules:\n"), "check", "stale-exception", "- {property: monotone"),
    Fault("one negation too many", ("when: {environment.override: v2}", "when: {not: {environment.override: v2}}"), "check", "not-user-decides", "rulebook: sound"),
    Fault("all for any", ("      any:\n", "      all:\n"), "check", "always-fires", "when:"),
    Fault("any for all", ("      all:\n", "      any:\n"), "check", "wrong-refines", "refines: [speculation]"),
    # --- the book's own examples
    Fault("flipped comparison", (TP, TP.replace("gt", "le")), "test", "example-fails", "fires: [{parallel_config.tensor_parallel_size: 4"),
    Fault("missing negation", ("{not: {cache_config.cache_dtype: fp8}}", "{cache_config.cache_dtype: fp8}"), "test", "example-fails", "fires: [{cache_config.cache_dtype: fp8"),
    Fault("require for veto", ("kind: veto\n    runners: [v2]", "kind: require\n    runners: [v2]"), "test", "example-fails", "examples: {fires: [{lora_config"),
    Fault("veto for require", ("kind: require\n    runners: [v2]\n    when: {model_config.runner", "kind: veto\n    runners: [v2]\n    when: {model_config.runner"), "test", "example-fails", "fires: [{model_config.runner_type: pooling"),
    Fault("wrong value", ("head_size: {in: [64, 128, 256]}", "head_size: {in: [46, 128, 256]}"), "test", "example-fails", "passes: [{model_config.head_size: 64"),
    Fault("wrong example", ("fires: [{model_config.head_size: 80}]", "fires: [{model_config.head_size: 128}]"), "test", "example-fails", "fires: [{model_config.head_size: 128"),
    # --- only the difference to what was before
    Fault("bound off by one", (TP, TP.replace("1", "2")), "diff", "fires for fewer", TP[:40]),
    Fault("listed value lost", ("head_size: {in: [64, 128, 256]}", "head_size: {in: [64, 128]}"), "diff", "fires for more", "when: {model_config.head_size"),
    Fault("architecture lost", ("[Qwen3ForCausalLM, LlamaForCausalLM]}}", "[Qwen3ForCausalLM]}}"), "diff", "fires for more", "when: {model_config.architectures"),
    Fault("runner lost", ("runners: [v1, v2]\n    when: {parallel", "runners: [v2]\n    when: {parallel"), "diff", "runners v1, v2 → v2", "runners: [v2]"),
    Fault("wrong runner", ("runners: [v2]\n    when: {lora", "runners: [v1]\n    when: {lora"), "diff", "runners v2 → v1", "runners: [v1]"),
    Fault("stage set", ("when: {lora_config", "stage: startup\n    when: {lora_config"), "diff", "stage both → startup", "stage: startup"),
    Fault("override that gives way", ("precedence: 1\n", "precedence: 1\n    unless_vetoed: v1\n"), "diff", "unless_vetoed none → v1", "unless_vetoed: v1"),
    Fault("other feature", ("feature: LoRA", "feature: adapters"), "diff", "the feature is 'adapters'", "feature: adapters"),
    Fault("rule removed", (SOUND[SOUND.index("  - id: lora") : SOUND.index("  - id: speculation")], ""), "diff", "veto on v2", ""),
    Fault("rule renamed", ("id: lora", "id: adapters"), "diff", "was 'lora'", "- id: adapters"),
    Fault("variable's values swapped", ('{"0": v1, "1": v2}', '{"0": v2, "1": v1}'), "diff", "environment:", ""),
    Fault("refusal at another stage", ("forced_refusal: choice", "forced_refusal: startup"), "diff", "forced_refusal:", ""),
)  # fmt: skip


def planted(fault: Fault) -> str:
    old, new = fault.change
    if not old:
        return SOUND + new
    assert old in SOUND, fault.name
    return SOUND.replace(old, new, 1)


def load(text: str) -> SourcedBook:
    base = SOUND.replace("rulebook: sound", "rulebook: base")

    def sibling(name: str) -> Document | None:
        return parse_yaml(base, file="base.yaml") if name == "base" else None

    return sourced_text(text, file="faulty.yaml", sibling=sibling)


def caught(text: str) -> tuple[str, list[tuple[int, str]]]:
    """What catches a fault first, and what it says: (line, code or message)."""
    try:
        source = load(text)
    except RuleFileError as error:
        return "load", [(error.line, error.message)]
    found = [(f.place.line, f.code) for f in check_sourced(source).findings]
    if found:
        return "check", found
    failed = [f for f in run_examples(source).findings if f.code == "example-fails"]
    if failed:
        return "test", [(f.place.line, f.code) for f in failed]
    difference = diff_books(load(SOUND), source)
    rules = [(rule.place.line, what) for rule in difference.rules for what in rule.what]
    return "diff" if difference else "nothing", rules + [(0, setting) for setting in difference.settings]


def test_the_sound_book_is_sound() -> None:
    assert caught(SOUND) == ("nothing", [])


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_caught_at_its_line(fault: Fault) -> None:
    text = planted(fault)
    by, found = caught(text)
    assert by == fault.caught_by, found
    said = [(line, what) for line, what in found if fault.says in what]
    assert said, found
    if fault.line:
        lines = text.splitlines()
        named = {lines[line - 1].strip() for line, _ in said}
        wanted = fault.line.split("\n")[0]
        assert any(line.startswith(wanted) for line in named), (named, found)


def test_there_are_many_faults_of_every_kind() -> None:
    counts = Counter(fault.caught_by for fault in FAULTS)
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 60
    assert min(counts[by] for by in ("load", "check", "test", "diff")) >= 6


@pytest.mark.parametrize(
    "fault", [f for f in FAULTS if f.caught_by == "check" and f.says == "dead-rule"], ids=lambda f: f.name
)
def test_a_dead_rule_found_can_be_removed_without_a_difference(fault: Fault) -> None:
    source = load(planted(fault))
    for finding in check_sourced(source).findings:
        if finding.code == "dead-rule":
            text = f"rulebook: less\nextends: base\nremove: [{finding.rule}]\n"
            less = sourced_text(text, sibling=lambda _: source.resolved.document)
            # a fact that isn't known leaves open even what can't hold
            assert not [change for change in diff_books(source, less).outcomes if change.known]
