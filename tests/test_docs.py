"""Every name that the documents give exists."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dodona.cli.app import app
from dodona.oracle.config.flat import flat_names
from dodona.oracle.systems.books import bundled_rulebook, parse_rulebook
from dodona.oracle.systems.own.facts import FACTS
from tests.support import facts_table

ROOT = Path(__file__).resolve().parents[1]
OVERRIDE_VARIABLE = "DODONA_USE_V2_MODEL_RUNNER"
WORDS = {"when", "Verdict", "LACKS", "_reference", "dodona", "dodona.oracle", OVERRIDE_VARIABLE}
"""Code spans of the architecture that name neither a path nor a definition."""
COMMANDS = ("dodona ", "make ", "python ")


def code_spans(document: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def exists(name: str) -> bool:
    """Whether a dotted name below `dodona` is a module or something that a module defines."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module("dodona." + ".".join(parts[:length]))
        except ModuleNotFoundError as error:
            if error.name is None or not error.name.startswith("dodona"):
                raise
            continue
        for attribute in parts[length:]:
            annotations = getattr(found, "__annotations__", {})
            if not hasattr(found, attribute) and attribute not in annotations:
                return False
            found = getattr(found, attribute, None)
        return True
    return False


def test_every_name_in_the_architecture_exists() -> None:
    pytest.importorskip("triton", reason="V2's modules import Triton, which exists for Linux only")
    known = WORDS | set(FACTS) | set(flat_names()) | set(bundled_rulebook("dodona").by_id)
    spans = code_spans("docs/architecture.md")
    assert len(spans) > 60
    missing = [
        span
        for span in dict.fromkeys(spans)
        if not (
            span in known
            or span.startswith(COMMANDS)
            or (("/" in span or (ROOT / span).is_file()) and (ROOT / span).exists())
            or ("." in span and "/" not in span and exists(span))
        )
    ]
    assert not missing, missing


def test_no_document_has_the_marks_of_a_merge() -> None:
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")]
    marked = [str(path) for path in documents if re.search(r"^(<{7}|>{7}) ", path.read_text("utf-8"), re.M)]
    assert not marked, marked


@pytest.mark.parametrize("name", ["oracle.select.select_one", "oracle.nothing", "runners.llm.LLM.generat"])
def test_the_check_finds_names_that_do_not_exist(name: str) -> None:
    assert not exists(name)


def documents() -> list[str]:
    return [
        *(path.name for path in ROOT.glob("*.md")),
        *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
    ]


@pytest.mark.parametrize("document", documents())
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith(("http://", "https://")):
            assert ((ROOT / document).parent / target).exists(), target


@pytest.mark.parametrize("document", documents())
def test_make_targets_and_files_that_documents_name_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for span in code_spans(document):
        if span.startswith("make "):
            assert span.split()[1] in targets, span
        elif re.fullmatch(
            r"(oracle|runners|kernels|rules|tests|docs|benchmarks|examples|checkpoints)/[\w./-]*", span
        ):
            assert (ROOT / span).exists(), span


def test_the_table_of_facts_is_the_registry() -> None:
    for document, facts in facts_table.TABLES.items():
        found = facts_table.current(document)
        assert found == facts_table.render(facts), "run python -m tests.support.facts_table"


def test_the_book_in_the_documentation_of_rules_loads() -> None:
    head, rule, *_ = re.findall(
        r"^```yaml\n(.*?)^```", (ROOT / "docs/rules.md").read_text(), flags=re.DOTALL | re.MULTILINE
    )
    book = parse_rulebook(head.replace("rules: [...]", "rules:") + rule)
    assert [r.id for r in book.rules] == ["decode-context-parallelism"]
    assert book.environment is not None
    assert book.environment.variable == OVERRIDE_VARIABLE


def console_examples() -> list[tuple[str, str]]:
    """Commands of the README that only decide, and what it shows of their output."""
    blocks = re.findall(
        r"^```\n(\$ .*?)^```", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE
    )
    examples = [
        re.split(r"\n", part, maxsplit=1) for block in blocks for part in block.split("$ dodona ")[1:]
    ]
    return [(command, shown.strip()) for command, shown in examples if command.startswith("select ")]


@pytest.mark.parametrize(("command", "shown"), console_examples(), ids=[c for c, _ in console_examples()])
def test_the_readme_shows_what_commands_print(
    command: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv(OVERRIDE_VARIABLE, raising=False)
    arguments = shlex.split(command.removesuffix("; echo $?"))
    result = CliRunner().invoke(app, arguments)
    printed = result.stdout + (f"{result.exit_code}\n" if command.endswith("; echo $?") else "")
    expected = shown.removeprefix("…\n")
    printed, expected = printed.strip(), expected.strip()
    assert printed.endswith(expected) if shown.startswith("…") else printed == expected


def test_the_readme_has_console_examples() -> None:
    assert len(console_examples()) >= 4


@pytest.mark.slow
def test_the_python_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv(OVERRIDE_VARIABLE, raising=False)
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE
    )
    assert len(blocks) == 2
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in blocks:
            exec(block, {})
    for expected in ("decode context parallelism (2 devices)", " 95", " 1 3 7 9", "November 1, 2024"):
        assert expected in printed.getvalue()
