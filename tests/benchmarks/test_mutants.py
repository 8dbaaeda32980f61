"""Mutants: which there are, which tests notice them, and what is left out of the count."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from benchmarks.mutants import EQUIVALENT, Workshop, main, mutants, read_equivalent

PROJECT = {
    "pyproject.toml": '[tool.pytest.ini_options]\npythonpath = ["."]\naddopts = "--import-mode=importlib"\n',
    "pages.py": (
        "def pages(items, size):\n"
        "    if size <= 0:\n"
        "        raise ValueError('size')\n"
        "    return -(-items // size)\n"
        "\n"
        "\n"
        "def countdown(start):\n"
        "    while start:\n"
        "        start -= 1\n"
        "    return start\n"
    ),
    "tests/test_pages.py": (
        "import pages\nimport pytest\n\n\n"
        "def test_pages():\n"
        "    assert [pages.pages(n, 2) for n in range(4)] == [0, 1, 1, 2]\n"
        "    with pytest.raises(ValueError):\n"
        "        pages.pages(1, -1)\n\n\n"
        "def test_countdown():\n"
        "    assert pages.countdown(3) == 0\n"
    ),
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in PROJECT.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "project"


def changes(source: str, **more: str) -> set[tuple[str, str]]:
    return {(m.before, m.after) for m in mutants("x.py", source, **more)}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = a < b", {"x = a <= b", "x = a >= b"}),
        ("x = a >= b", {"x = a > b", "x = a < b"}),
        ("x = a == b", {"x = a != b"}),
        ("x = a is not b", {"x = a is b"}),
        ("x = a in b", {"x = a not in b"}),
        ("x = a and b", {"x = a or b"}),
        ("x = not a", {"x = a"}),
        ("x = a + b", {"x = a - b"}),
        ("x = a // b", {"x = a * b"}),
        ("x = 4", {"x = 5", "x = 3"}),
        ("x = True", {"x = False"}),
        ("x = min(a, b)", {"x = max(a, b)"}),
        ("x = [y for y in z if y]", {"x = [y for y in z if not y]"}),
        ("if x:\n    pass", {"if not x:"}),
        ("f(x)", {"pass"}),
        ("x.y = z", {"pass"}),
        ("x[y] = z", {"pass"}),
        ("x += y", {"pass", "x -= y"}),
        ("raise x", {"pass"}),
        ("def f():\n    return x", {"return None"}),
        ("def f():\n    return x is y", {"return not x is y", "return x is not y"}),
        ("for x in y:\n    break", {"continue"}),
        ("for x in y:\n    continue", {"break"}),
        ("def f(x=1): pass", {"def f(x=2):", "def f(x=0):"}),
    ],
)
def test_each_change(source: str, expected: set[str]) -> None:
    assert {after for _, after in changes(source)} == expected


@pytest.mark.parametrize(
    "source",
    [
        "x = y",
        '"""Text."""',
        "x = f'{a + 1}'",
        "x: tuple[1] = y",
        "@f(True)\nclass C: pass",
        "x = zip(a, b, strict=True)",
        "def f() -> a < b: pass",
        "if TYPE_CHECKING:\n    f()",
        "def f():\n    return None",
    ],
)
def test_what_stays_as_it_is(source: str) -> None:
    assert changes(source) == set()


def test_a_mutant_is_one_change_and_names_its_place() -> None:
    source = "class C:\n    def f(self):\n        if self.x and self.y:\n            self.z = 1\n"
    found = {(m.line, m.function, m.before, m.after) for m in mutants("x.py", source)}
    assert found == {
        (3, "C.f", "if self.x and self.y:", "if self.x or self.y:"),
        (4, "C.f", "self.z = 1", "pass"),
        (4, "C.f", "self.z = 1", "self.z = 2"),
        (4, "C.f", "self.z = 1", "self.z = 0"),
    }
    lines = ast.unparse(ast.parse(source)).splitlines()
    for mutant in mutants("x.py", source):
        assert sum(a != b for a, b in zip(lines, mutant.source.splitlines(), strict=True)) == 1


def test_mutants_within_a_function() -> None:
    source = "def f():\n    a()\n    def g():\n        b()\nclass C:\n    def g(self):\n        c()\n"
    assert changes(source, within="f") == {("a()", "pass"), ("b()", "pass")}
    assert changes(source, within="g") == {("b()", "pass"), ("c()", "pass")}
    assert changes(source, within="C.g") == {("c()", "pass")}


def test_killed_survived_and_equivalent_mutants(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = project.parent / "equivalent.txt"
    listed.write_text(
        "# a comment\n\npages.py pages\n- return -(-items // size)\n+ return None\nbecause nobody\nlooks\n"
    )
    output = project.parent / "out.jsonl"
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    arguments = ["pages.py", "--within", "pages", "--tests", "tests", "--root", str(project)]
    arguments += ["--equivalent", str(listed), "--output", str(output)]
    assert main([*arguments, "--at-least", "90"]) == 1
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert {(each["line"], each["after"], each["outcome"]) for each in found} == {
        (2, "if size < 0:", "survived"),  # size 0 is never tried
        (2, "if size > 0:", "killed"),
        (2, "if size <= 1:", "survived"),  # nor 1
        (2, "if size <= -1:", "survived"),
        (3, "pass", "killed"),
        (4, "return None", "equivalent"),
        (4, "return -(-items * size)", "killed"),
    }
    assert all(each["file"] == "pages.py" and each["function"] == "pages" for each in found)
    printed = capsys.readouterr().out
    assert "survived: pages.py:2 pages\n- if size <= 0:\n+ if size < 0:" in printed
    assert "| pages.py | 7 | 3 | 0 | 3 | 1 | 50.0 % |" in printed
    after = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    assert after == before


def test_a_mutant_that_hangs_is_ended(project: Path) -> None:
    with Workshop(project, ["tests"], []) as workshop:
        endless = PROJECT["pages.py"].replace("start -= 1", "pass")
        assert workshop.run("pages.py", endless, limit=1.0)[0] == "timeout"
        assert (workshop.tree / "pages.py").read_text() == PROJECT["pages.py"]
    assert not workshop.tree.exists()


def test_an_entry_that_is_no_mutant_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = project.parent / "equivalent.txt"
    listed.write_text("pages.py pages\n- gone\n+ pass\nbecause it was there once\n")
    main(["pages.py", "--tests", "tests", "--root", str(project), "--equivalent", str(listed), "--list"])
    assert "no mutant of pages.py is pages | gone | pass" in capsys.readouterr().err


def test_a_sample_is_the_same_for_the_same_seed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def sample(*more: str) -> str:
        main(["pages.py", "--tests", "x", "--root", str(project), "--list", *more])
        return capsys.readouterr().out

    everything = sample()
    assert sample("--sample", "3", "--seed", "1") == sample("--sample", "3", "--seed", "1")
    assert sample("--sample", "3", "--seed", "1") != sample("--sample", "3", "--seed", "2")
    assert sample("--sample", "3").count("\n+ ") == 3
    assert sample("--sample", "999") == everything


def test_tests_that_fail_by_themselves_are_refused(project: Path) -> None:
    (project / "tests/test_pages.py").write_text("def test_it():\n    assert False, 'by itself'\n")
    with pytest.raises(ValueError, match=r"(?s)fail without a mutant.*by itself"):
        main(["pages.py", "--tests", "tests", "--root", str(project)])


def test_tests_that_do_not_import_the_file_are_refused(project: Path) -> None:
    (project / "tests/test_pages.py").write_text("def test_it():\n    pass\n")
    with pytest.raises(ValueError, match=r"pages\.py: the tests pass though it can't be parsed"):
        main(["pages.py", "--tests", "tests", "--root", str(project)])


@pytest.mark.parametrize(
    "entry",
    [
        "a.py f\n- x\n+ y",
        "a.py f\n- x\n+ y\nbecause",
        "a.py f\n- x\n+ y\nsince it is so",
        "a.py\n- x\n+ y\nbecause z",
        "a.py f\n+ y\n- x\nbecause z",
    ],
)
def test_an_entry_without_its_parts_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=r"line \d.*because REASON"):
        read_equivalent(f"# head\n\n{entry}\n")


def test_the_list_of_equivalent_mutants_can_be_read() -> None:
    for (file, *_), reason in read_equivalent(EQUIVALENT.read_text()).items():
        assert (EQUIVALENT.parents[1] / file).suffix == ".py"
        assert len(reason) > 10
