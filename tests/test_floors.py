"""The floors of the project: imports go down only, and never in a circle.

The imports are read from the source, so that those inside functions and those for type checkers count too.
Importing a module also imports the packages that it is in.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("oracle", "kernels", "runners", "cli")

FLOORS: Sequence[Sequence[str]] = (
    ("oracle.printable", "oracle.markdown"),
    ("oracle.errors",),
    ("oracle.files",),
    ("oracle.language",),
    ("oracle.config",),
    ("oracle.models", "oracle.machine"),
    ("oracle.decide",),
    ("oracle.systems",),
    ("oracle.explain", "oracle.analysis"),
    ("oracle.authoring",),
    ("oracle.testing",),
    ("oracle.select",),
    ("oracle.upgrade",),
    ("oracle.decision_log",),
    ("kernels.devices", "kernels.dependent_launch", "kernels.l1_cache"),
    ("kernels.linear", "kernels.sampling", "kernels.state", "kernels.state_space", "kernels.collective"),
    ("kernels.attention", "kernels.moe"),
    (
        "runners.errors",
        "runners.outputs",
        "runners.machine",
        "runners.progress_bar",
        "runners.third_party",
        "runners.after_fork",
        "runners.safetensors_file",
        "runners.meta_device",
    ),
    ("runners.sampling", "runners.quantization", "runners.phases"),
    ("runners.limits", "runners.rpc", "runners.current_config", "runners.lora", "runners.pooling"),
    ("runners.interface",),
    ("runners.weights",),
    ("runners.kv_transfer", "runners.drafting"),
    ("runners.warm_up", "runners.device", "runners.kv_room"),
    ("runners.text", "runners.distributed", "runners.pooling_runner"),
    ("runners.engine", "runners.v1", "runners.v2", "runners.model_files"),
    ("runners.build", "runners.control"),
    ("runners.startup",),
    ("runners.client", "runners.trial_load"),
    ("runners.stream", "runners.chat", "runners.waiting"),
    ("runners.pooling_client",),
    ("runners.llm",),
    ("cli",),
)
"""Folders and modules from the lowest floor up. Each may import from lower floors and from itself, but not
from others of its floor."""

APART: Mapping[str, Sequence[str]] = {"kernels": ("oracle", "runners")}
"""Folders that import nothing of some folders on lower floors either."""

FACADES = ("", "oracle")
"""Packages whose `__init__` offers the public names of modules on every floor. It imports them when they are
first used, so that importing the package imports nothing of them."""

EXCEPTIONS: Mapping[tuple[str, str], str] = {
    ("oracle.decide.verdict", "oracle.explain.text"): "Verdict.explain is a shorthand for explain(verdict)",
    ("oracle.decide.verdict", "oracle.explain.counterfactuals"): "Verdict.counterfactuals is a shorthand too",
    ("oracle.decide.verdict", "runners.build"): "Verdict.build is a shorthand for build_runner(verdict)",
    ("oracle.decide.verdict", "runners.interface"): "the type that Verdict.build returns",
    (
        "oracle.errors",
        "oracle.decide.verdict",
    ): "the type of the verdict that UnsupportedConfiguration carries",
}
"""Imports that go up, each with its reason; none of them happens when a module is imported."""


def modules() -> dict[str, str]:
    """The sources of all modules by name, without `dodona.`; packages have the names of their folders."""
    found = {"": (ROOT / "src" / "dodona" / "__init__.py").read_text(encoding="utf-8")}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = path.read_text(encoding="utf-8")
    return found


@functools.cache
def import_statements(source: str) -> tuple[ast.Import | ast.ImportFrom, ...]:
    """All imports in a module's text, also those inside functions."""
    return tuple(n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.Import, ast.ImportFrom)))


def imports(name: str, sources: Mapping[str, str]) -> Iterator[str]:
    """The modules of `sources` that a module imports anywhere in its text."""
    for node in import_statements(sources[name]):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: line {node.lineno}: relative imports are not read here"
            parts = (node.module or "").split(".")
            if parts[0] == "dodona":
                base = ".".join(parts[1:])
                for alias in node.names:
                    member = f"{base}.{alias.name}".lstrip(".")
                    yield member if member in sources else base
        else:
            yield from (
                alias.name.removeprefix("dodona").lstrip(".")
                for alias in node.names
                if alias.name.split(".")[0] == "dodona"
            )


def packages(name: str) -> set[str]:
    """The packages that a module is in, without the one around them all."""
    parts = name.split(".")
    return {".".join(parts[:length]) for length in range(1, len(parts))}


def edges(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Per module, the modules that it imports, and their packages unless it is in those itself.

    The imports of FACADES and those of EXCEPTIONS are left out.
    """
    found: dict[str, set[str]] = {}
    for name in sources:
        direct = set() if name in FACADES else set(imports(name, sources)) - {""}
        direct = {target for target in direct if (name, target) not in EXCEPTIONS}
        entered = {package for target in direct for package in packages(target)}
        found[name] = (direct | entered) - {name} - packages(name)
    return found


def floor(name: str) -> tuple[int, str]:
    """A module's floor, and the entry of FLOORS that it belongs to."""
    for number, entries in enumerate(FLOORS):
        for entry in entries:
            if name == entry or name.startswith(f"{entry}."):
                return number, entry
    raise AssertionError(f"{name} has no floor: add it to FLOORS in {Path(__file__).name}")


def climbs(sources: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Imports that go up, or across a floor, or where APART forbids them."""
    for name in sources:
        if name in FACADES or name in FOLDERS:
            continue
        here, entry = floor(name)
        for target in set(imports(name, sources)):
            if target in FACADES or (name, target) in EXCEPTIONS:
                continue
            there, other = floor(target) if target not in FOLDERS else (-1, target)
            apart = target.split(".")[0] in APART.get(name.split(".")[0], ())
            if apart or there > here or (there == here and other != entry):
                yield name, target


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """The sets of modules that import each other, directly or through others (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in graph.get(name, ()):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            members = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(members) > 1:
                found.append(sorted(members))

    for name in graph:
        if name not in index:
            visit(name)
    return sorted(found)


def test_imports_go_down() -> None:
    found = sorted(set(climbs(modules())))
    assert not found, "\n".join(f"{name} imports {target}" for name, target in found)


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert not circles(edges(modules()))


def test_every_exception_is_needed() -> None:
    sources = modules()
    needed = {(name, target) for name in sources for target in imports(name, sources)}
    assert not {*EXCEPTIONS} - needed


@pytest.mark.parametrize(
    "source",
    [
        "import dodona.oracle.select",
        "from dodona.oracle.select import select_runner",
        "from dodona.oracle import select",
        "def late() -> None:\n    from dodona.oracle.select import select_runner\n",
        "if TYPE_CHECKING:\n    from dodona.oracle.select import select_runner\n",
    ],
)
def test_an_import_that_goes_up_is_found(source: str) -> None:
    sources = {"oracle.language.facts": source, "oracle.select": "", "oracle": ""}
    assert list(climbs(sources)) == [("oracle.language.facts", "oracle.select")]


def test_an_import_across_a_floor_is_found() -> None:
    sources = {"runners.v1.runner": "import dodona.runners.v2.runner", "runners.v2.runner": ""}
    assert list(climbs(sources)) == [("runners.v1.runner", "runners.v2.runner")]
    inside = {"runners.v1.runner": "import dodona.runners.v1.memory", "runners.v1.memory": ""}
    assert not list(climbs(inside))


def test_kernels_stand_apart() -> None:
    sources = {"kernels.state.writes": "import dodona.oracle.errors", "oracle.errors": ""}
    assert list(climbs(sources)) == [("kernels.state.writes", "oracle.errors")]


def test_a_circle_is_found() -> None:
    sources = {
        "cli.a": "import dodona.cli.b",
        "cli.b": "def late() -> None:\n    from dodona.cli import c\n",
        "cli.c": "if TYPE_CHECKING:\n    from dodona.cli.a import Name\n",
        "cli.d": "import dodona.cli.a",
        "cli": "",
    }
    assert circles(edges(sources)) == [["cli.a", "cli.b", "cli.c"]]


def test_a_package_is_imported_with_its_modules() -> None:
    sources = {
        "oracle.explain": "import dodona.oracle.explain.text",
        "oracle.explain.text": "import dodona.oracle.analysis.diff",
        "oracle.explain.table": "",
        "oracle.analysis.diff": "import dodona.oracle.explain.table",
        "oracle.analysis": "",
    }
    assert circles(edges(sources)) == [["oracle.analysis.diff", "oracle.explain", "oracle.explain.text"]]
