"""What sweeps over model types share: a process for each type, a file of results, the command line."""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import resource
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "data"
SECONDS = 120


def prepare(*modules: str) -> str:
    """Import these once, before processes fork, and silence transformers. Returns its version."""
    import transformers

    for module in modules:
        importlib.import_module(module)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers.__version__


def run_apart(model_type: str, attempt: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """`attempt` in a process of its own, which is ended after `SECONDS`."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(attempt, model_type, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(SECONDS):
            return {"outcome": "untried", "why": f"no end after {SECONDS} s"}
        return dict(ours.recv())
    except EOFError:
        return {"outcome": "untried", "why": "the process died"}
    finally:
        process.kill()
        process.join()


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


def main(
    description: str | None,
    run: Callable[[Sequence[str], bool], None],
    document: Callable[[], str],
    file: Path,
) -> None:
    """The command line of a sweep that writes a document."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("types", nargs="*")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--document", action="store_true")
    arguments = parser.parse_args()
    if not arguments.document:
        run(arguments.types, arguments.again)
    file.write_text(document(), encoding="utf-8")
