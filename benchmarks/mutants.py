"""Mutation testing: small faults put into a file, one at a time, and the tests that should notice each.

    python -m benchmarks.mutants runners/engine/scheduler.py --tests tests/engine/test_scheduler.py
    python -m benchmarks.mutants oracle/decide/verdict.py --within decide --tests tests/oracle/test_verdict.py
    python -m benchmarks.mutants runners/engine/*.py --tests tests/engine --sample 40 --output mutants.jsonl

Each mutant is one change of the file's syntax tree:

- a comparison: `<` becomes `<=` and `>=`, `==` becomes `!=`, `in` becomes `not in`, `is` becomes `is not`,
  and back
- `and` becomes `or` and back; `not` is removed; a condition without operators is negated
- `+` becomes `-`, `*` becomes `//`, and back, in augmented assignments too
- an integer is one more and one less; True becomes False and back
- `min` becomes `max` and back (with swapped arguments they give the same); `break` becomes `continue`, and
  back
- a statement is dropped: a call, an assignment to an attribute or an entry, an augmented assignment,
  a `raise`
- a returned value becomes None; a returned condition is negated

Annotations, decorators, f-strings (the text of messages) and `strict=` of `zip` stay as they are.

The tree is copied to a temporary folder, and only the copy is changed. The tests run on each mutant in a new
process, as `pytest -x -q -p no:cacheprovider`; it is forked from a process that has imported the modules of
`--preload`, which saves their import. A mutant is killed when pytest fails, and when pytest takes longer than
the time limit (five times as long as the tests without a mutant, and ten seconds). Before the first mutant,
the tests must pass on the unchanged copy and fail when the file can't be parsed: else they don't test the
copy.

`benchmarks/equivalent_mutants.txt` lists mutants that no test can tell from the original, each with a reason.
They are not run and don't count. An entry names the function and the changed line, but no line number:

    runners/engine/scheduler.py Scheduler._admit
    - if blocks.num_free < needed:
    + if blocks.num_free <= needed:
    because one block is always kept back

The result is a table, the survivors in the same form, and with `--output` a JSON line for each mutant: file,
line, function, before, after, outcome ("killed", "timeout", "survived" or "equivalent"), seconds. The exit
status is 0 when each file's share of killed mutants is at least `--at-least` percent.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
EQUIVALENT: Final = ROOT / "benchmarks" / "equivalent_mutants.txt"
NOT_COPIED: Final = (".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info")
PRELOADED: Final = "pytest,numpy,hypothesis,pydantic,yaml"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of a file. `before` and `after` are the changed statement's first line, as ast writes it."""

    file: str
    line: int
    function: str
    before: str
    after: str
    source: str = field(repr=False)
    """The whole changed file."""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What names the mutant, wherever its line is."""
        return self.file, self.function, self.before, self.after

    def difference(self) -> str:
        """The change, in the form of the list of equivalent mutants."""
        return f"{self.file}:{self.line} {self.function}\n- {self.before}\n+ {self.after}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a mutant: "killed", "timeout", "survived" or "equivalent"."""

    mutant: Mutant
    outcome: str
    seconds: float = 0.0

    def as_json(self) -> str:
        """One line of the output file."""
        found = asdict(self.mutant) | {"outcome": self.outcome, "seconds": round(self.seconds, 2)}
        del found["source"]
        return json.dumps(found, ensure_ascii=False)


# --- what is changed
# ---------------------------------------------------------------------------------------------------------

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult,
}  # fmt: skip
_SKIPPED_FIELDS = frozenset({"annotation", "returns", "decorator_list", "type_params"})
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a node hangs in the tree."""

    holder: ast.AST
    field: str
    index: int | None
    statement: ast.stmt
    function: str

    def put(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.holder, self.field, node)
        else:
            getattr(self.holder, self.field)[self.index] = node


def mutants(file: str, source: str, *, within: str | None = None) -> list[Mutant]:
    """All mutants of a file's source, in order of appearance; `within` takes only those of one function or
    class, by its name or qualified name.
    """
    tree = ast.parse(source)
    seen = {ast.unparse(tree)}
    found: list[Mutant] = []
    for node, place in list(_places(tree, None, "")):
        parts = place.function.split(".")
        if within is not None and within not in parts and within != place.function:
            continue
        for changed in _changes(node, place):
            before = _header(place.statement)
            place.put(changed)
            text = ast.unparse(ast.fix_missing_locations(tree))
            after = _header(changed if node is place.statement else place.statement)
            place.put(node)
            if text not in seen:
                seen.add(text)
                line = getattr(node, "lineno", place.statement.lineno)
                found.append(Mutant(file, line, place.function or "(module)", before, after, text + "\n"))
    return sorted(found, key=lambda mutant: mutant.line)


def _places(node: ast.AST, statement: ast.stmt | None, function: str) -> Iterator[tuple[ast.AST, _Place]]:
    """Every node that may be changed, with its place."""
    for name, value in ast.iter_fields(node):
        if name in _SKIPPED_FIELDS:
            continue
        children = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
        for index, child in children:
            if not isinstance(child, ast.AST) or _left_alone(child):
                continue
            its = child if isinstance(child, ast.stmt) else statement
            if its is not None:
                yield child, _Place(node, name, index, its, function)
            inner = f"{function}.{child.name}".lstrip(".") if isinstance(child, _SCOPES) else function
            yield from _places(child, its, inner)


def _left_alone(node: ast.AST) -> bool:
    return (
        isinstance(node, (ast.JoinedStr, ast.expr_context, ast.operator, ast.cmpop))
        or (isinstance(node, ast.keyword) and node.arg == "strict")
        or (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"))
    )


def _changes(node: ast.AST, place: _Place) -> Iterator[ast.AST]:
    """The nodes that replace this one, one for each mutant."""
    match node:
        case ast.Compare():
            for i, op in enumerate(node.ops):
                for other in _COMPARISONS[type(op)]:
                    ops = [*node.ops[:i], other(), *node.ops[i + 1 :]]
                    yield ast.Compare(node.left, ops, node.comparators)
        case ast.BoolOp():
            yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand
        case ast.BinOp() if type(node.op) in _ARITHMETIC:
            yield ast.BinOp(node.left, _ARITHMETIC[type(node.op)](), node.right)
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
            yield ast.Constant(value - 1)
        case ast.Call(func=ast.Name(id="min" | "max" as name)):
            other_name = ast.Name("max" if name == "min" else "min", ast.Load())
            yield ast.Call(other_name, node.args, node.keywords)
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
        case ast.Return(value=ast.expr() as value) if not _is_none(value):
            yield ast.Return(_negated(value) if _is_condition(value) else ast.Constant(None))
    if _may_be_dropped(node):
        yield ast.Pass()
    if isinstance(node, ast.AugAssign) and type(node.op) in _ARITHMETIC:
        yield ast.AugAssign(node.target, _ARITHMETIC[type(node.op)](), node.value)
    tested = (place.field == "test" and not isinstance(place.holder, ast.Assert)) or place.field == "ifs"
    if tested and isinstance(node, (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.NamedExpr)):
        yield _negated(node)


def _may_be_dropped(node: ast.AST) -> bool:
    match node:
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.AugAssign():
            return True
        case ast.Assign(targets=targets):
            return all(isinstance(target, (ast.Attribute, ast.Subscript)) for target in targets)
        case ast.AnnAssign(target=ast.Attribute(), value=ast.expr()):
            return True
    return False


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_condition(node: ast.expr) -> bool:
    return (
        isinstance(node, (ast.Compare, ast.BoolOp))
        or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not))
        or (isinstance(node, ast.Constant) and isinstance(node.value, bool))
    )


def _negated(node: ast.expr) -> ast.expr:
    return ast.UnaryOp(ast.Not(), node)


def _header(node: ast.AST) -> str:
    """A statement's first line, without what it contains; `elif` and decorators don't matter."""
    if isinstance(node, _SCOPES):
        return next(line for line in ast.unparse(node).splitlines() if not line.startswith("@"))
    return ast.unparse(ast.fix_missing_locations(node)).splitlines()[0]


# --- equivalent mutants
# ---------------------------------------------------------------------------------------------------------


def read_equivalent(text: str) -> dict[tuple[str, str, str, str], str]:
    """Reasons by mutant, from blocks of `FILE FUNCTION`, `- BEFORE`, `+ AFTER`, `because REASON`, with blank
    lines between; lines that begin with `#` are comments. Raises ValueError that names the line.
    """
    found: dict[tuple[str, str, str, str], str] = {}
    block: list[str] = []
    for number, raw in enumerate([*text.splitlines(), ""], 1):
        line = raw.rstrip()
        if line.startswith("#"):
            continue
        if line:
            block.append(line)
            continue
        if not block:
            continue
        head = block[0].split()
        starts = [line[:2] for line in block[1:3]]
        because = " ".join(block[3:])
        if len(head) != 2 or starts != ["- ", "+ "] or not because.removeprefix("because ").strip():
            raise ValueError(
                f"equivalent mutants, the entry that ends at line {number - 1}: expected the lines "
                "`FILE FUNCTION`, `- BEFORE`, `+ AFTER`, `because REASON`"
            )
        if not because.startswith("because "):
            raise ValueError(f"equivalent mutants, line {number - 1}: expected `because REASON`")
        found[head[0], head[1], block[1][2:], block[2][2:]] = because.removeprefix("because ")
        block = []
    return found


# --- running the tests
# ---------------------------------------------------------------------------------------------------------


class Workshop:
    """A copy of the tree, in which one file at a time is changed, and the tests are run.

    A context manager: the copy is removed at its end.
    """

    def __init__(self, root: Path, tests: Sequence[str], preload: Sequence[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mutants-")
        self.tree = Path(self._folder.name) / "tree"
        self._tests = list(tests)
        shutil.copytree(root, self.tree, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
        self._changes = 0
        for name in preload:
            importlib.import_module(name)

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def run(self, file: str, source: str, limit: float) -> tuple[str, float]:
        """The outcome with this source of the file, and the seconds it took; the file is restored."""
        path = self.tree / file
        original = path.read_text()
        self._write(path, source)
        try:
            return self.run_tests(limit)
        finally:
            self._write(path, original)

    def run_tests(self, limit: float) -> tuple[str, float]:
        """The outcome with the tree as it is: "survived", "killed" or "timeout", and the seconds it took."""
        begin = time.monotonic()
        child = os.fork()
        if not child:
            self._run_pytest()
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            seconds = time.monotonic() - begin
            if done:
                return ("survived" if status == 0 else "killed"), seconds
            if seconds > limit:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return "timeout", seconds
            time.sleep(0.02)

    def _run_pytest(self) -> None:
        """In the child: never returns."""
        status = 70
        try:
            os.setsid()
            os.chdir(self.tree)
            log = (Path(self._folder.name) / "log").open("w")
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            sys.stdout = sys.stderr = log
            others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != "src"]
            os.environ["PYTHONPATH"] = os.pathsep.join([str(self.tree / "src"), *others])
            os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
            sys.dont_write_bytecode = False  # else the whole project is compiled for each mutant
            sys.path[:] = [str(self.tree / "src"), *(p for p in sys.path if p not in ("", str(ROOT), "src"))]
            for name in list(sys.modules):
                if name.split(".")[0] in ("benchmarks", "dodona", "tests"):
                    del sys.modules[name]
            if "hypothesis" in sys.modules:
                _draw_the_same_examples()
            pytest = importlib.import_module("pytest")
            status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *self._tests]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)

    def log(self) -> str:
        """What the last run wrote."""
        return (Path(self._folder.name) / "log").read_text(errors="replace")

    def _write(self, path: Path, text: str) -> None:
        # Python takes a compiled file for current that has the source's time in seconds and its size.
        self._changes += 1
        path.write_text(text)
        moment = 1_000_000_000 + self._changes
        os.utime(path, (moment, moment))


def _draw_the_same_examples() -> None:
    """Hypothesis draws the same examples for every mutant, and doesn't look for the least that fails."""
    hypothesis = importlib.import_module("hypothesis")
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile(
        "mutants", derandomize=True, database=None, deadline=None, phases=phases
    )
    hypothesis.settings.load_profile("mutants")


def check_tests(workshop: Workshop, files: Iterable[str]) -> float:
    """The seconds that the tests take. Raises ValueError where they fail as they are, or don't notice that a
    file can't be parsed.
    """
    outcome, seconds = workshop.run_tests(3600)
    if outcome != "survived":
        raise ValueError(f"the tests fail without a mutant:\n{workshop.log()[-3000:]}")
    for file in files:
        if workshop.run(file, "this is no Python\n", 3600)[0] != "killed":
            raise ValueError(f"{file}: the tests pass though it can't be parsed; they don't import it")
    return seconds


# --- the report
# ---------------------------------------------------------------------------------------------------------


def score(outcomes: Counter[str]) -> float:
    """Percent of the mutants that count that were killed; a timeout is one killed."""
    killed = outcomes["killed"] + outcomes["timeout"]
    counted = killed + outcomes["survived"]
    return 100.0 * killed / counted if counted else 100.0


def table(outcomes: Sequence[Outcome]) -> str:
    """A Markdown table with a line for each file."""
    lines = [
        "| file | mutants | killed | timeout | survived | equivalent | score |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    for file in dict.fromkeys(each.mutant.file for each in outcomes):
        count = Counter(each.outcome for each in outcomes if each.mutant.file == file)
        numbers = (count.total(), count["killed"], count["timeout"], count["survived"], count["equivalent"])
        lines.append(f"| {file} | " + " | ".join(map(str, numbers)) + f" | {score(count):.1f} % |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the mutants, run the tests on each, and print what came of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", help="Python files, from the root of the tree")
    parser.add_argument("--tests", nargs="+", required=True, help="what pytest runs on each mutant")
    parser.add_argument("--within", help="only one function or class, by name")
    parser.add_argument("--sample", type=int, help="so many mutants of each file, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--timeout", type=float, help="seconds for one mutant")
    parser.add_argument("--preload", default=PRELOADED, help="modules to import once, by commas")
    parser.add_argument("--equivalent", type=Path, default=EQUIVALENT)
    parser.add_argument("--output", type=Path, help="JSON lines")
    parser.add_argument("--at-least", type=float, default=0.0, metavar="PERCENT")
    parser.add_argument("--list", action="store_true", help="only print the mutants")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)

    equivalent = read_equivalent(chosen.equivalent.read_text()) if chosen.equivalent.exists() else {}
    drawn: list[Mutant] = []
    for file in chosen.files:
        found = mutants(file, (chosen.root / file).read_text(), within=chosen.within)
        keys = {mutant.key for mutant in found}
        for key in equivalent:
            if key[0] == file and chosen.within is None and key not in keys:
                print(f"equivalent mutants: no mutant of {file} is {' | '.join(key[1:])}", file=sys.stderr)
        if chosen.sample is not None and chosen.sample < len(found):
            picked = random.Random(chosen.seed).sample(range(len(found)), chosen.sample)
            found = [found[i] for i in sorted(picked)]
        drawn += found
    if chosen.list:
        print("\n\n".join(mutant.difference() for mutant in drawn))
        return 0

    outcomes: list[Outcome] = []
    preload = [name for name in chosen.preload.split(",") if name]
    with Workshop(chosen.root, chosen.tests, preload) as workshop:
        seconds = check_tests(workshop, chosen.files)
        limit = chosen.timeout or 5 * seconds + 10
        print(f"{len(drawn)} mutants; the tests take {seconds:.1f} s", flush=True)
        for mutant in drawn:
            if mutant.key in equivalent:
                outcomes.append(Outcome(mutant, "equivalent"))
            else:
                outcomes.append(Outcome(mutant, *workshop.run(mutant.file, mutant.source, limit)))
            if chosen.output is not None:
                with chosen.output.open("a") as output:
                    output.write(outcomes[-1].as_json() + "\n")
            if outcomes[-1].outcome == "survived":
                print(f"\nsurvived: {mutant.difference()}", flush=True)
    print(f"\n{table(outcomes)}")
    scores = [
        score(Counter(each.outcome for each in outcomes if each.mutant.file == file)) for file in chosen.files
    ]
    return int(min(scores) < chosen.at_least)


if __name__ == "__main__":
    sys.exit(main())
