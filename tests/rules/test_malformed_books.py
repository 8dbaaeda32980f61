"""Malformed rule books: each gives file, line, column, what is wrong and how to mend it."""
# ruff: noqa: E501

from __future__ import annotations

from pathlib import Path

import pytest

from dodona.oracle.errors import RuleFileError
from dodona.oracle.systems.books import load_rulebook, parse_rulebook

BOOK = """\
rulebook: trial
description: A book for tests.
system: dodona
runners: [v2, v1]
environment:
  variable: DODONA_USE_V2_MODEL_RUNNER
  values: {"0": v1, "1": v2}
  otherwise: error
rules:
  - id: forced
    kind: override
    runners: [v1]
    precedence: 1
    when: {environment.override: v1}
    feature: the variable
    because: It asks.
    since: 2026-01-31
    examples:
      fires: [{environment.override: v1}]
      passes: [{environment.override: v2}]
  - id: speculation
    kind: veto
    runners: [v1, v2]
    when: {speculative_config: {is_set: true}}
    feature: "speculation by '{speculative_config.method}'"
    because: Not yet.
    since: 2026-01-31
    examples:
      fires: [{speculative_config: true}]
      passes: [{speculative_config: null}]
  - id: eagle
    kind: veto
    runners: [v2]
    refines: [speculation]
    when: {speculative_config.method: eagle}
    feature: EAGLE
    because: Not yet.
    since: 2026-01-31
    examples:
      fires: [{speculative_config.method: eagle}]
      passes: [{speculative_config.method: ngram}]
"""

WHEN = "when: {speculative_config.method: eagle}"

# (what is replaced, by what: "¦" marks the place that the message must name, words of message and hint)
CASES = {
    "unknown fact": (WHEN, "when: {¦model_config.is_mow: true}", "unknown fact 'model_config.is_mow'", "model_config.is_moe"),
    "fact without section": (WHEN, "when: {¦is_moe: true}", "unknown fact 'is_moe'", "model_config.is_moe"),
    "fact of another section": (WHEN, "when: {¦cache_config.tensor_parallel_size: 1}", "unknown fact", "parallel_config.tensor_parallel_size"),
    "unknown operator": (WHEN, "when: {cache_config.block_size: {¦greater: 3}}", "unknown operator 'greater'", "ge"),
    "symbol as operator": (WHEN, "when: {cache_config.block_size: {¦'>=': 3}}", "unknown operator '>='", "'ge'"),
    "operator of another type": (WHEN, "when: {speculative_config.method: {¦ge: 3}}", "doesn't fit", "in, not_in"),
    "any_in on text": (WHEN, "when: {speculative_config.method: {¦any_in: [a]}}", "doesn't fit", "in"),
    "order on a boolean": (WHEN, "when: {model_config.is_moe: {¦lt: true}}", "doesn't fit", "eq, ne"),
    "two operators": (WHEN, "when: {cache_config.block_size: ¦{ge: 3, le: 8}}", "exactly one operator, not 2", "all"),
    "no operator": (WHEN, "when: {cache_config.block_size: ¦{}}", "exactly one operator, not 0", ""),
    "text for a number": (WHEN, "when: {cache_config.block_size: ¦'16'}", "compared with text ('16')", "without quotes"),
    "number for text": (WHEN, "when: {speculative_config.method: ¦3}", "compared with a whole number (3)", "quotes"),
    "number for a boolean": (WHEN, "when: {model_config.is_moe: ¦1}", "compared with a whole number", "true/false"),
    "boolean for a number": (WHEN, "when: {cache_config.block_size: ¦true}", "compared with true/false", "a whole number"),
    "null": (WHEN, "when: {speculative_config.method: ¦null}", "compared with null", "is_set: false"),
    "list without operator": (WHEN, "when: {speculative_config.method: ¦[a, b]}", "without an operator", "{in: [...]}"),
    "list fact equal to text": (WHEN, "when: {model_config.architectures: ¦A}", "can't equal one value", "any_in"),
    "text in place of list": (WHEN, "when: {speculative_config.method: {in: ¦eagle}}", "'in' takes a list", "[...]"),
    "empty list": (WHEN, "when: {speculative_config.method: {in: ¦[]}}", "an empty list", "[...]"),
    "value listed twice": (WHEN, "when: {speculative_config.method: {in: [a, b, ¦a]}}", "listed twice", "Remove"),
    "outside closed domain": (WHEN, "when: {compilation_config.mode: ¦VLLM_COMPIL}", "outside the domain", "VLLM_COMPILE"),
    "outside closed domain in list": (WHEN, "when: {environment.platform: {in: [cuda, ¦gpu]}}", "outside the domain", "rocm"),
    "outside range": (WHEN, "when: {cache_config.block_size: {le: ¦0}}", "outside the range", "from 1"),
    "is_set on what is always set": (WHEN, "when: {model_config.is_moe: {is_set: ¦true}}", "always set", "its value"),
    "is_set with text": (WHEN, "when: {speculative_config.method: {is_set: ¦'true'}}", "takes true or false", "{is_set: true}"),
    "two keys in a condition": (WHEN, "when: ¦{speculative_config.method: a, model_config.is_moe: true}", "exactly one key, not 2", "all: [...]"),
    "empty condition": (WHEN, "when: ¦{}", "exactly one key, not 0", ""),
    "condition is a text": (WHEN, "when: ¦always", "a condition is a mapping", "FACT: VALUE"),
    "condition is a list": (WHEN, "when: ¦[{model_config.is_moe: true}]", "a condition is a mapping", "all: [...]"),
    "empty all": (WHEN, "when: {all: ¦[]}", "at least one condition", "[CONDITION, ...]"),
    "all of a mapping": (WHEN, "when: {any: ¦{model_config.is_moe: true}}", "takes a list", "[CONDITION, ...]"),
    "fault deep inside": (WHEN, "when: {all: [{not: {any: [{model_config.is_moe: true}, {¦modl: 1}]}}]}", "unknown fact 'modl'", ""),
    "too deep": (WHEN, "when: " + "{not: " * 13 + "¦{model_config.is_moe: true}" + "}" * 13, "nests deeper than 12", "Flatten"),
    "too many alternatives": (
        WHEN,
        "when: ¦{all: [" + ", ".join(f"{{any: [{{cache_config.block_size: {2 * i + 1}}}, {{cache_config.block_size: {2 * i + 2}}}]}}" for i in range(9)) + "]}",
        "more than 256 alternatives",
        "several rules",
    ),
    "control characters": (WHEN, 'when: {speculative_config.method: ¦"a\\x07"}', "control characters", "plain name"),
    "long text": (WHEN, "when: {speculative_config.method: ¦" + "x" * 300 + "}", "longer than 200", "plain name"),
    "duplicate id": ("- id: eagle", "- id: ¦speculation", "'speculation' is used twice", "unique"),
    "malformed id": ("- id: eagle", "- id: ¦Eagle_3", "wrong form", "lower-case"),
    "duplicate key": ("    feature: EAGLE\n", "    feature: EAGLE\n    ¦feature: Eagle\n", "'feature' appears twice", "line 36"),
    "unknown key": ("feature: EAGLE", "¦featur: EAGLE", "unknown key 'featur'", "feature"),
    "unknown key of the book": ("system: dodona", "¦sistem: dodona", "unknown key 'sistem'", "system"),
    "missing key": ("  - id: eagle\n    kind: veto\n", "  - ¦id: eagle\n", "'kind' is missing", "Add `kind:"),
    "missing examples": ("    examples:\n      fires: [{speculative_config.method: eagle}]\n      passes: [{speculative_config.method: ngram}]\n", "", "'examples' is missing", "Add"),
    "no passing example": ("passes: [{speculative_config.method: ngram}]", "passes: ¦[]", "empty or too short", "at least 1"),
    "wrong kind": ("kind: veto\n    runners: [v2]", "kind: ¦forbid\n    runners: [v2]", "'kind' is 'forbid'", "'veto'"),
    "wrong runner": ("runners: [v2]\n", "runners: [¦v3]\n", "'v3'", "'v1'"),
    "runner in place of list": ("runners: [v2]\n", "runners: ¦v2\n", "'runners' is text, not a list", "[...]"),
    "runner twice": ("runners: [v2]\n", "runners: ¦[v2, v2]\n", "twice", "Remove"),
    "because is a number": ("because: Not yet.\n    since: 2026-01-31\n    examples:\n      fires: [{speculative_config.method", "because: ¦3\n    since: 2026-01-31\n    examples:\n      fires: [{speculative_config.method", "'because' is a whole number, not text", "Quote"),
    "wrong date": ("since: 2026-01-31\n    examples:\n      fires: [{speculative_config.method", "since: ¦2026-13-31\n    examples:\n      fires: [{speculative_config.method", "not a date", "2026-01-31"),
    "unknown fact in template": ("feature: EAGLE", "feature: ¦'EAGLE {speculative_config.metod}'", "unknown fact 'speculative_config.metod'", "speculative_config.method"),
    "attribute in template": ("feature: EAGLE", "feature: ¦'EAGLE {speculative_config.__class__}'", "unknown fact", ""),
    "brace in template": ("feature: EAGLE", "feature: ¦'EAGLE {'", "brace", "{FACT}"),
    "refines unknown": ("refines: [speculation]", "refines: [¦speculations]", "unknown rule 'speculations'", "speculation"),
    "refines itself": ("refines: [speculation]", "refines: ¦[eagle]", "circle", "broader"),
    "refines in a circle": ("runners: [v1, v2]\n    when", "runners: [v2]\n    refines: ¦[eagle]\n    when", "circle", "broader"),
    "refines other runners": ("runners: [v2]\n    refines: [speculation]", "runners: [v2]\n    refines: [¦forced]", "same runners", ""),
    "refines is a text": ("refines: [speculation]", "refines: ¦speculation", "not a list", "[...]"),
    "override without precedence": ("    precedence: 1\n", "", "needs a precedence", "precedence: 1"),
    "veto with precedence": ("    refines: [speculation]\n", "    precedence: ¦2\n", "no precedence", "Remove"),
    "precedence taken": (
        "  - id: speculation\n    kind: veto\n    runners: [v1, v2]\n",
        "  - id: speculation\n    kind: override\n    precedence: ¦1\n    runners: [v1]\n",
        "precedence 1 is taken by 'forced'",
        "its own",
    ),
    "precedence out of range": ("precedence: 1\n", "precedence: ¦0\n", "'precedence': should be greater", "docs/rules.md"),
    "precedence is a text": ("precedence: 1\n", "precedence: ¦first\n", "'precedence' is text, not a whole number", "Write"),
    "veto without runners": ("runners: [v2]\n", "runners: ¦[]\n", "names no runner", "Write"),
    "empty feature": ("feature: EAGLE", "feature: ¦''", "a line of text", "one word"),
    "stage of an override": ("    precedence: 1\n", "    precedence: 1\n    stage: ¦choice\n", "no stage", "Remove"),
    "override of two runners": ("runners: [v1]\n    precedence", "runners: ¦[v1, v2]\n    precedence", "the one runner", "[v1]"),
    "example with unknown fact": ("fires: [{speculative_config.method: eagle}]", "fires: [{¦speculative_config.metod: eagle}]", "unknown fact", "method"),
    "example of wrong type": ("fires: [{speculative_config.method: eagle}]", "fires: [{cache_config.block_size: ¦x}]", "compared with text", ""),
    "example with impossible null": ("fires: [{speculative_config.method: eagle}]", "fires: [{model_config.is_moe: ¦null}]", "never null", "value"),
    "example outside the domain": ("fires: [{speculative_config.method: eagle}]", "fires: [{environment.platform: ¦gpu}]", "outside the domain", ""),
    "implicit boolean": (WHEN, "when: {model_config.is_moe: ¦no}", "no is read as a boolean", "false"),
    "implicit boolean as name": (WHEN, "when: {speculative_config.method: ¦off}", "off is read as a boolean", "'off'"),
    "octal": (WHEN, "when: {cache_config.block_size: ¦012}", "012 isn't a plain decimal", "leading zero"),
    "hexadecimal": (WHEN, "when: {cache_config.block_size: ¦0x10}", "isn't a plain decimal", "decimal"),
    "float": (WHEN, "when: {cache_config.block_size: ¦1.5}", "isn't a plain decimal", "quotes"),
    "exponent": (WHEN, "when: {cache_config.block_size: ¦1e-5}", "isn't a plain decimal", "quotes"),
    "underscores": (WHEN, "when: {cache_config.block_size: ¦1_000}", "isn't a plain decimal", "decimal"),
    "huge number": (WHEN, "when: {cache_config.block_size: ¦99999999999999999999}", "too large", "2^53"),
    "anchor": (WHEN, "when: ¦&x {speculative_config.method: eagle}", "anchor &x", "Write the value out"),
    "alias": (WHEN, "when: ¦*x", "alias *x", "Write the value out"),
    "merge key": (WHEN, "¦<<: {when: 1}", "merge key", "Write the entries out"),
    "tag": (WHEN, "when: ¦!!python/object/apply:os.system [id]", "uses the tag", "Remove"),
    "key is a number": (WHEN, "when: {¦12: eagle}", "not text", "Quote"),
    "key is a list": (WHEN, "when: {? ¦[a] : eagle}", "a key must be text", ""),
    "tab": ("    feature: EAGLE\n", "¦\tfeature: EAGLE\n", "not YAML", "tab"),
    "missing quote": ("feature: EAGLE", "feature: 'EAGLE", "not YAML", "quotes"),
    "colon in text": ("feature: EAGLE", "feature: EAGLE¦: here", "not YAML", "Quote"),
    "two documents": ("rules:\n", "¦---\nrules:\n", "second document", "---"),
    "runners of the book twice": ("runners: [v2, v1]", "runners: ¦[v2, v2]", "twice", ""),
    "one runner": ("runners: [v2, v1]", "runners: ¦[v2]", "too short", "at least 2"),
    "wrong variable": ("variable: DODONA_USE", "variable: ¦dodona use", "wrong form", ""),
    "value that means no runner": ('"1": v2}', '"1": ¦v3}', "no runner 'v3'", "'v2', 'v1'"),
    "runner that can't be passed over": ("    precedence: 1\n", "    precedence: 1\n    unless_vetoed: ¦v3\n", "no runner 'v3'", "'v1'"),
    "reserved runner": ("runners: [v2, v1]", "runners: [v2, v1, ¦unset]", "'unset' can't be a runner's name", "another name"),
    "malformed runner": ("runners: [v2, v1]", "runners: [v2, ¦V_1!]", "wrong form", "lower-case"),
    "wrong meaning": ("otherwise: error", "otherwise: ¦ignore", "'ignore'", "error"),
    "assumption outside domain": ("rules:\n", "assume: {environment.platform: ¦gpu}\nrules:\n", "outside the domain", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_malformed_book_names_place_and_mend(case: str) -> None:
    old, new, message, hint = CASES[case]
    assert BOOK.count(old) >= 1, "the case no longer fits the book"
    head, _, tail = BOOK.rpartition(old)
    marked = head + new + tail
    with pytest.raises(RuleFileError) as caught:
        parse_rulebook(marked.replace("¦", ""), file="books/trial.yaml")
    error = caught.value
    assert message in error.message
    assert hint in error.hint
    assert len(error.hint) > 5
    if "¦" in marked:
        before = marked[: marked.index("¦")]
        expected = (before.count("\n") + 1, len(before) - before.rfind("\n"))
        assert (error.line, error.column) == expected, str(error)
    assert str(error).startswith(f"books/trial.yaml:{error.line}:{error.column}: ")


def test_the_book_of_the_table_loads() -> None:
    book = parse_rulebook(BOOK)
    assert [rule.id for rule in book.rules] == ["forced", "speculation", "eagle"]
    assert book.refined_by("eagle") == {"speculation"}


WHOLE = {
    "empty": (b"", "empty"),
    "comments only": (b"# nothing\n", "empty"),
    "a list": (b"- a\n", "mapping"),
    "a text": (b"hello\n", "mapping"),
    "not UTF-8": (b"rulebook: \xff\n", "UTF-8"),
    "control character": (b"rulebook: \x00\n", "not YAML"),
    "huge": (b"# " + b"x" * 400_000, "larger than 256 KiB"),
    "deep": (b"rules: " + b"[" * 200_000, "deeper than 24"),
    "deep blocks": (b"- " * 5_000 + b"x", "deeper than 24"),
    "many values": (b"rules: [" + b"1," * 100_000 + b"]", "more than 20000 values"),
    "billion laughs": (
        b"a: &a [lol, lol]\nb: &b [*a, *a]\nc: &c [*b, *b]\nrulebook: [*c, *c]\n",
        "anchor &a",
    ),
    "directive": (b"%YAML 1.1\n---\nrulebook: x\n", "directive"),
}


@pytest.mark.parametrize("case", WHOLE)
def test_malformed_file_is_refused(case: str, tmp_path: Path) -> None:
    text, message = WHOLE[case]
    path = tmp_path / "book.yaml"
    path.write_bytes(text)
    with pytest.raises(RuleFileError) as caught:
        load_rulebook(path)
    assert message in caught.value.message
    assert str(caught.value).startswith(f"{path}:")


def test_missing_file_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(RuleFileError, match="cannot be read: No such file"):
        load_rulebook(tmp_path / "absent.yaml")
