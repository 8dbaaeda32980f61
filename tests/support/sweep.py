"""What sweeps over model types share: a process for each type, a file of results, the command line."""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import resource
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parents[1] / "data"
SECONDS = 120
_LATE = {"outcome": "untried", "why": f"no end after {SECONDS} s"}


def prepare(*modules: str) -> str:
    """Import these once, before processes fork, and silence transformers. Returns its version."""
    import transformers

    for module in modules:
        importlib.import_module(module)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers.__version__


def run_apart(model_type: str, attempt: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """What `attempt` found of one type, in a process of its own."""
    ((_, found),) = run_each([model_type], attempt)
    return found


def run_each(
    model_types: Sequence[str], attempt: Callable[[str], dict[str, Any]], jobs: int = 1
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(type, what `attempt` found), in the order in which they end: each type in a process of its own, which
    is ended after `SECONDS`; `jobs` at a time."""
    waiting, running = deque(model_types), dict[Connection, _Running]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                started = _start(waiting.popleft(), attempt)
                running[started.pipe] = started
            until = min(started.until for started in running.values())
            ended = wait(list(running), max(0.0, until - time.monotonic()))
            late = [pipe for pipe, started in running.items() if started.until <= time.monotonic()]
            for pipe in ended or late:
                found = _received(pipe) if ended else _LATE
                started = running.pop(pipe)
                started.end()
                yield started.model_type, found
    finally:
        for started in running.values():
            started.end()


class _Running(NamedTuple):
    model_type: str
    process: ForkProcess
    pipe: Connection
    until: float

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _start(model_type: str, attempt: Callable[[str], dict[str, Any]]) -> _Running:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(attempt, model_type, theirs))
    process.start()
    theirs.close()
    return _Running(model_type, process, ours, time.monotonic() + SECONDS)


def _received(pipe: Connection) -> dict[str, Any]:
    try:
        return dict(pipe.recv())
    except EOFError:
        return {"outcome": "untried", "why": "the process died"}


def _child(attempt: Callable[[str], dict[str, Any]], model_type: str, pipe: Any) -> None:
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    pipe.send(attempt(model_type))


def first_line(error: BaseException) -> str:
    """An error in a result: its type and first line, without the folder of temporary files."""
    text = (str(error).strip().splitlines() or [""])[0]
    named = text if isinstance(error, AssertionError) else f"{type(error).__name__}: {text}"
    return named.replace(str(Path(tempfile.gettempdir())), "")[:220]


def refused_or_wrong(error: Exception) -> dict[str, str]:
    """The result of a type that V1 raised this for: "refused" by its rules, else "wrong"."""
    from dodona.oracle.errors import UnsupportedConfiguration

    if isinstance(error, UnsupportedConfiguration):
        rules = [] if error.verdict is None else [r.rule for r in error.verdict.refusals]
        return {"outcome": "refused", "why": ", ".join(rules) or first_line(error)}
    return {"outcome": "wrong", "why": first_line(error)}


def refusals(config_json: Mapping[str, Any], **flat: Any) -> tuple[str, ...]:
    """The rules that refuse a config.json with this transformers on a machine without a GPU."""
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.oracle.machine.environment import Environment
    from dodona.oracle.machine.packages import installed_versions
    from dodona.oracle.models.model_info import ModelInfo
    from dodona.oracle.select import verdict_for
    from dodona.oracle.systems.books import load_rulebook

    machine = Environment(has_triton=False, platform="cpu", packages=installed_versions())
    config, info = EngineConfig.from_flat("m", **flat), ModelInfo.from_mapping(config_json)
    verdict = verdict_for(config, info, machine, load_rulebook("dodona"))
    return tuple(reason.rule for reason in verdict.refusals)


def load(file: Path) -> dict[str, Any]:
    """The results that there are, by type."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def save(file: Path, results: Mapping[str, Any]) -> None:
    """Write results, a line for each type."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(t)}: {json.dumps(results[t], sort_keys=True)}" for t in sorted(results)]
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def markdown(text: str) -> str:
    """Text in a cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("_", "\\_").replace("*", "\\*")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """What all sweeps take on the command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("types", nargs="*", help="only these")
    parser.add_argument("--again", action="store_true", help="also what has a result")
    parser.add_argument("--jobs", type=int, default=1, help="types at a time")
    return parser


def main(
    description: str | None,
    run: Callable[[Sequence[str], bool, int], None],
    document: Callable[[], str],
    file: Path,
) -> None:
    """The command line of a sweep that writes a document."""
    parser = arguments(description)
    parser.add_argument("--document", action="store_true", help="run nothing")
    given = parser.parse_args()
    if not given.document:
        run(given.types, given.again, given.jobs)
    file.write_text(document(), encoding="utf-8")
