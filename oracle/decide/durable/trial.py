"""The trial of a rule book in a child process: a crash of the rule engine can't be caught in this one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from dodona.oracle.decide.durable.compiling import CompiledBook
from dodona.oracle.decide.durable.encoding import Field
from dodona.oracle.decide.durable.engine import Definition, Engine, EngineUnavailable, Ruleset

TRIAL_SECONDS: Final = 20.0


def try_in_child(compiled: CompiledBook, *, seconds: float = TRIAL_SECONDS) -> None:
    """Compile and run a book in a child process. Raises EngineUnavailable where that crashes, hangs or
    misbehaves.
    """
    job = {
        "path": sys.path,
        "rulesets": [[r.name, dict(r.clauses), list(r.fields), r.definition] for r in compiled.rulesets],
    }
    program = (
        "import json, sys; job = json.load(sys.stdin); sys.path[:] = job['path'];"
        "from dodona.oracle.decide.durable.trial import run_trial; run_trial(job['rulesets'])"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EngineUnavailable(f"the rule engine took more than {seconds:g} s over this book") from None
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise EngineUnavailable(f"the rule engine failed on this book in a trial: {last[0]}")


def run_trial(rulesets: Sequence[tuple[str, dict[str, str], list[str], Definition]]) -> None:
    """The child's part of `try_in_child`: register every ruleset and run each on several facts."""
    engine = Engine()
    parsed = [Ruleset(name, clauses, tuple(fields), rules) for name, clauses, fields, rules in rulesets]
    engine.register(parsed)
    for ruleset in parsed:
        booleans = {
            field
            for rule in ruleset.definition.values()
            for part in rule["all"][0]["m"].get("$and", ())
            for field, value in part.items()
            if isinstance(value, bool)
        }
        for number in range(8):
            fields: dict[str, Field] = {
                field: bool(number % 2) if field in booleans else number for field in ruleset.fields
            }
            engine.fire(ruleset, fields)
