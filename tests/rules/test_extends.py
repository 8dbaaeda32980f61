"""Books that extend others: what is inherited, changed, added and removed, and where errors are placed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dodona.oracle.errors import RuleFileError
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.systems.books import load_rulebook, parse_rulebook

BASE = """\
rulebook: base
description: A base.
system: vllm
runners: [v2, v1]
rules:
  - id: triton
    kind: require
    runners: [v2]
    when: {environment.has_triton: true}
    feature: Triton
    because: It is needed.
    since: 2026-01-01
    examples:
      fires: [{environment.has_triton: false}]
      passes: [{environment.has_triton: true}]
  - id: moe
    kind: veto
    runners: [v2]
    stage: choice
    when: {model_config.is_moe: true}
    feature: MoE
    because: It is not there.
    since: 2026-01-01
    examples:
      fires: [{model_config.is_moe: true}]
      passes: [{model_config.is_moe: false}]
"""

HYBRID = """\
  - id: hybrid
    kind: veto
    runners: [v2]
    when: {model_config.is_hybrid: true}
    feature: hybrid
    because: It is not there.
    since: 2026-02-01
    examples:
      fires: [{model_config.is_hybrid: true}]
      passes: [{model_config.is_hybrid: false}]
"""


def _load(folder: Path, child: str, base: str = BASE) -> RuleBook:
    (folder / "base.yaml").write_text(base)
    (folder / "child.yaml").write_text(child)
    return load_rulebook(folder / "child.yaml")


def _fails(folder: Path, child: str, base: str = BASE) -> RuleFileError:
    with pytest.raises(RuleFileError) as caught:
        _load(folder, child, base)
    return caught.value


def test_rules_are_inherited_changed_added_and_removed(tmp_path: Path) -> None:
    book = _load(
        tmp_path,
        "rulebook: child\nextends: base\nremove: [triton]\nrules:\n"
        "  - id: moe\n    because: Still not there.\n    stage: startup\n" + HYBRID,
    )
    assert [rule.id for rule in book.rules] == ["moe", "hybrid"]
    assert (book.by_id["moe"].because, book.by_id["moe"].stage) == ("Still not there.", "startup")
    assert book.by_id["moe"].feature == "MoE"
    assert (book.rulebook, book.description, book.runners) == ("child", "A base.", ("v2", "v1"))


def test_a_book_with_nothing_of_its_own_decides_alike(tmp_path: Path) -> None:
    assert _load(tmp_path, "rulebook: child\nextends: base\n").rules == parse_rulebook(BASE).rules


def test_an_error_in_an_added_rule_is_placed_in_its_own_file(tmp_path: Path) -> None:
    child = "rulebook: child\nextends: base\nremove: [triton]\nrules:\n" + HYBRID.replace(
        "is_hybrid: true}\n    f", "is_hybird: true}\n    f"
    )
    error = _fails(tmp_path, child)
    assert Path(error.file).name == "child.yaml"
    assert (error.line, error.column) == (8, 12)
    assert "is_hybrid" in error.hint


def test_an_error_in_an_inherited_rule_is_placed_in_the_extended_file(tmp_path: Path) -> None:
    error = _fails(
        tmp_path, "rulebook: child\nextends: base\n", BASE.replace("stage: choice", "stage: chioce")
    )
    assert Path(error.file).name == "base.yaml"
    assert error.line == 19


def test_an_error_that_the_child_causes_in_an_inherited_rule_is_placed_in_the_child(tmp_path: Path) -> None:
    refining = BASE.replace("    stage: choice\n", "    refines: [triton]\n")
    error = _fails(tmp_path, "rulebook: child\nextends: base\nremove: [triton]\n", refining)
    assert Path(error.file).name == "child.yaml"
    assert error.line == 2
    assert "triton" in error.message


@pytest.mark.parametrize(
    ("child", "line", "message"),
    [
        ("rulebook: child\nextends: ../base\n", 2, "no book's name"),
        ("rulebook: child\nextends: /etc/passwd\n", 2, "no book's name"),
        ("rulebook: child\nextends: other\n", 2, "no book other.yaml"),
        ("rulebook: child\nextends: child\n", 2, "extends more than"),
        ("rulebook: child\nextends: 22\n", 2, "no book's name"),
        ("rulebook: child\nextends: base\nremove: [moee]\n", 3, "doesn't have"),
        ("rulebook: child\nextends: base\nremove: [moe, moe]\n", 3, "removed twice"),
        ("rulebook: child\nextends: base\nremove: moe\n", 3, "not a list"),
        (
            "rulebook: child\nextends: base\nremove: [moe]\nrules: [{id: moe}]\n",
            4,
            "both removed and changed",
        ),
        ("rulebook: child\nextends: base\nrules: {id: moe}\n", 3, "not a list"),
        ("rulebook: child\nextends: base\nrules: [{id: moe}, {id: moe}]\n", 3, "missing"),
        ("rulebook: child\nremove: [moe]\n", 2, "extends no book"),
        ("rulebook: child\nextends: base\nrulez: []\n", 3, "unknown key"),
        ("rulebook: child\nextends: base\nrules: [3]\n", 3, ""),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, child: str, line: int, message: str) -> None:
    error = _fails(tmp_path, child)
    assert Path(error.file).name == "child.yaml"
    assert error.line == line
    assert message in str(error)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.yaml").write_text(BASE)
    folder = tmp_path / "rules"
    folder.mkdir()
    (folder / "outside.yaml").symlink_to(tmp_path / "elsewhere.yaml")
    error = _fails(folder, "rulebook: child\nextends: outside\n")
    assert "no book outside.yaml" in error.message


def test_a_text_without_a_folder_extends_nothing() -> None:
    with pytest.raises(RuleFileError, match="no folder"):
        parse_rulebook("rulebook: child\nextends: base\n")
