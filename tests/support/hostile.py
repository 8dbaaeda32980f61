"""A corpus of hostile and unlucky checkpoints, requests and command lines, and what becomes of each.

    python -m tests.support.hostile        # a table of kind and outcome
    python -m tests.support.hostile --processes 12 --seconds 5 --kind "draft model" --kind quantization

A case with a bad outcome is printed at once, the table at the end. Each case runs
in a process of its own, forked from one that has imported everything, with limits of time and
memory. "answered" and "named error" are good outcomes; "traceback", "hang" and "memory" are not.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import hostile_books as books
from tests.support import hostile_growth as growth
from tests.support import hostile_models as models
from tests.support import hostile_parts as parts
from tests.support import hostile_settings as settings
from tests.support import hostile_trials as trials
from tests.support import hostile_weights as weights
from tests.support.hostile_files import CONTENTS, HUGE, QWEN3, ROOT, SPECIAL, TEXTS, command, folder

MAX_SECONDS = 30
"""A process takes longer than alone while others compute; what hangs takes forever."""
MAX_MORE_BYTES = 2 << 30
"""Address space beyond what the parent has: libraries map more than they use."""
MOST_MEGABYTES = 1_024
"""Memory in use, beyond what the parent has."""
LONGEST = 20_000
"""Characters of an error."""
GOOD = ("answered", "named error")

SIZES = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_size",
    "vocab_size",
    "intermediate_size",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class Case:
    """One thing that somebody might do."""

    kind: str
    name: str
    act: Callable[[Path], object]
    """Does it, in an empty folder."""


def corpus() -> Iterator[Case]:
    """All cases."""
    for field in SIZES:
        for value in HUGE:
            yield Case(
                "size in config.json", f"{field}={value!r:.20}", lambda p, f=field, v=value: select(p, {f: v})
            )
    for field in (
        "architectures",
        "model_type",
        "hidden_act",
        "dtype",
        "rope_parameters",
        "quantization_config",
    ):
        for text in TEXTS:
            value = [text] if field == "architectures" else text
            yield Case(
                "text in config.json", f"{field}={text!r:.20}", lambda p, f=field, v=value: select(p, {f: v})
            )
    for name, content in CONTENTS.items():
        for file in (
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "model.safetensors",
            "model.safetensors.index.json",
        ):
            yield Case("content of a file", f"{file}: {name}", lambda p, f=file, c=content: load(p, f, c))
    for name, make in SPECIAL.items():
        for file in ("config.json", "tokenizer.json", "model.safetensors"):
            yield Case("special file", f"{file}: {name}", lambda p, f=file, m=make: load(p, f, m))
        yield Case("special file", f"--config: {name}", lambda p, m=make: config_file(p, m))
    for name, words in COMMANDS.items():
        yield Case("command line", name, lambda p, w=words: command(w))
    for name, request in REQUESTS.items():
        yield Case("request", name, lambda p, r=request: generate(r))
    for kind, changes in PARTS.items():
        for name, act in changes():
            yield Case(kind, name, act)


PARTS: dict[str, Callable[[], Iterator[parts.Change]]] = {
    "draft model": parts.drafts,
    "LoRA adapter": parts.adapters,
    "Sentence Transformers": parts.embedders,
    "quantization": parts.quantized,
    "machine file": parts.machines,
    "repository": parts.repositories,
    "KV connector": settings.connectors,
    "package version": settings.versions,
    "quantization library": settings.libraries,
    "suffix lookup": settings.suffixes,
    "several devices": settings.devices,
    "draft folder": settings.draft_folders,
    "layers of an adapter": settings.layers_of_adapters,
    "header of weights": weights.headers,
    "index of weights": weights.indices,
    "trial load": trials.trials,
    "deployment that grows": growth.deployments,
    "arguments in YAML": growth.arguments,
    "generation_config.json": models.generation_configs,
    "field of config.json": models.configs,
    "tokenizer": models.tokenizers,
    "chat template": models.templates,
    "structured output": models.grammars,
    "rule book": books.books,
    "recorded cases": books.recorded,
    "folder of a connector": books.blocks,
    "large adapter": books.large_adapters,
}

COMMANDS: dict[str, list[str]] = {
    "no model": ["select"],
    "missing": ["select", "/no/such/model"],
    "root": ["select", "/"],
    "null byte": ["select", "a\0b"],
    "escape": ["select", "\x1b[2J"],
    "long": ["select", "x" * 100_000],
    "number": ["select", str(QWEN3), "--max-model-len", "9" * 500],
    "negative": ["select", str(QWEN3), "--block-size", "-5"],
    "json": ["select", str(QWEN3), "--speculative-config", "{" * 5000],
    "json list": ["select", str(QWEN3), "--kv-transfer-config", "[]"],
    "book": ["select", str(QWEN3), "--rulebook", "/dev/zero"],
    "book folder": ["select", str(QWEN3), "--rulebook", "/tmp"],
    "check": ["rules", "check", "/dev/zero"],
    "diff": ["rules", "diff", "HEAD~9999:x.yaml", "dodona"],
    "replay": ["rules", "replay", "dodona", "/dev/zero"],
    "generate": ["generate", "/no/such/model", "--prompt", "x"],
    "grammar": ["generate", str(QWEN3), "--prompt", "x", "--grammar", "/dev/zero"],
    "vllm words": ["select", "--rulebook", "vllm/0.24.0", "vllm", "serve", "--", "--", "-x"],
}

REQUESTS: dict[str, dict[str, Any]] = {
    "surrogate": {"prompts": ["ok", "bad \udcff"]},
    "no text": {"prompts": [None]},
    "number": {"prompts": 5},
    "empty": {"prompts": [""]},
    "50 MB": {"prompts": ["x" * 50_000_000]},
    "ids": {"prompts": [[1, 10**30]]},
    "negative ids": {"prompts": [[-1]]},
    "nested": {"prompts": [[[1]]]},
    "temperature": {"temperature": 10**400},
    "nan": {"temperature": float("nan")},
    "n": {"n": 10**9, "temperature": 1.0},
    "seed": {"seed": 2**70},
    "stop": {"stop": ["\ud800"]},
    "bad words": {"bad_words": ["\ud800"]},
    "bias": {"logit_bias": {"x": 1}},
    "logprobs": {"logprobs": 10**9},
    "regex": {"structured_outputs": {"regex": "(" * 5_000}},
    "regex power": {"structured_outputs": {"regex": "(a{1000}){1000}"}},
    "grammar": {"structured_outputs": {"grammar": "start: start"}},
    "choices": {"structured_outputs": {"choice": ["x"] * 100_000}},
    "schema": {"structured_outputs": {"json": "[" * 50_000}},
    "schema reference": {"structured_outputs": {"json": '{"$ref": "#"}'}},
    "processor": {"logits_processors": [1]},
    "request id": {"request_id": 5},
    "reserved id": {"request_id": "auto-1"},
    "rpc": {"rpc": ("shutdown",)},
    "rpc private": {"rpc": ("__init__",)},
    "rpc cache": {"rpc": ("initialize_kv_cache", [-5])},
}


def select(path: Path, changes: dict[str, Any]) -> None:
    command(["select", str(folder(path, changes)), "--explain"])


def load(path: Path, file: str, content: bytes | Callable[[Path], object]) -> None:
    """A model in whose directory one file is something else."""
    folder(path, {})
    (path / file).unlink(missing_ok=True)
    if file.endswith("index.json"):
        (path / "model.safetensors").unlink()
    if callable(content):
        content(path / file)
    else:
        (path / file).write_bytes(content)
    command(["generate", str(path), "--prompt", "1 + 1", "--max-tokens", "2", "--max-model-len", "64"])


def config_file(path: Path, make: Callable[[Path], object]) -> None:
    make(path / "arguments.yaml")
    command(["select", str(QWEN3), "--config", str(path / "arguments.yaml")])


def generate(request: dict[str, Any]) -> None:
    from dodona import LLM, SamplingParams
    from dodona.oracle.errors import ConfigError

    given = dict(request)
    prompts, rpc = given.pop("prompts", ["What is 1 + 1?"]), given.pop("rpc", None)
    request_id = given.pop("request_id", None)
    with LLM(QWEN3, device="cpu", max_model_len=64, num_gpu_blocks_override=16, max_num_seqs=4) as llm:
        try:
            if rpc is not None:
                llm.collective_rpc(*rpc)
            params = SamplingParams(**{"temperature": 0.0, "max_tokens": 2, **given})
            if request_id is not None:
                list(llm.stream(prompts[0], params, request_id=request_id))
            for output in llm.generate(prompts, params):
                if output.error is not None and len(prompts) == 1:
                    raise ConfigError(output.error)
        finally:
            # nobody else notices
            (after,) = llm.generate("What is 2 + 2?", SamplingParams(temperature=0.0, max_tokens=2))
            assert after.error is None


def prepare() -> None:
    """Import and load what the forks then need not."""
    import dodona.runners.llm
    import dodona.runners.v1.runner  # noqa: F401

    command(["upgrade", "--from", "vllm/0.24.0", "--to", "vllm/0.33.0", "--json", str(ROOT / "README.md")])


@dataclass(frozen=True)
class Tried:
    """What became of a case, and what its process took."""

    said: str
    seconds: float
    cpu_seconds: float
    """Processor time, which other processes hardly change."""
    megabytes: int
    """Most memory beyond what the parent had."""


def outcome(case: Case, seconds: float = MAX_SECONDS) -> str:
    """What becomes of a case, in a child process that has this time."""
    return tried(case, seconds).said


def tried(case: Case, seconds: float = MAX_SECONDS) -> Tried:
    """The same, with what it took."""
    begin = time.monotonic()
    before = _resident()
    with tempfile.TemporaryDirectory() as scratch:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            os._exit(_in_child(case, Path(scratch), writing))
        os.close(writing)
        end, hangs = begin + seconds, False
        done, status, used = os.wait4(child, os.WNOHANG)
        while not done:
            if time.monotonic() > end and not hangs:
                hangs = True
                os.kill(child, signal.SIGKILL)
            time.sleep(0.005)
            done, status, used = os.wait4(child, os.WNOHANG)
        with os.fdopen(reading, errors="replace") as said:
            text = "hang" if hangs else said.read() or f"ended by {status}"
        more = max(0, used.ru_maxrss * 1024 - before) >> 20
        if text in GOOD and more > MOST_MEGABYTES:
            text = f"memory: {more} MB"
        return Tried(text, time.monotonic() - begin, used.ru_utime + used.ru_stime, more)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _in_child(case: Case, scratch: Path, writing: int) -> int:
    from dodona.oracle.errors import DodonaError
    from dodona.oracle.printable import HIDDEN

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_MORE_BYTES, resource.RLIM_INFINITY))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.chdir(scratch)  # what a case writes by a relative path goes with it
    try:
        case.act(scratch)
        said = "answered"
    except DodonaError as error:
        text = str(error)
        said = "raw text" if HIDDEN.search(text) else "long text" if len(text) > LONGEST else "named error"
    except MemoryError:
        said = "memory"
    except BaseException as error:
        said = f"traceback: {type(error).__name__}: {error!s:.200}"
    os.write(writing, said.encode(errors="replace"))
    return 0


def _tried(index: int, seconds: float) -> Tried:
    return tried(_CASES[index], seconds)


_CASES: list[Case] = []
"""What processes that were forked from this one choose from."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 where an outcome is not good."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", action="append", help="a kind of cases; default: all")
    parser.add_argument("--seconds", type=float, default=MAX_SECONDS, help="a case's time")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="cases that an interrupted run answered")
    parser.add_argument("--most", type=int, default=20, help="cases to list at the end")
    given = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cases are the parallel work
    prepare()
    _CASES.extend(case for case in corpus() if given.kind is None or case.kind in given.kind)
    # The first to load a model in a new machine waits for its files.
    outcome(Case("", "", lambda path: generate({})), 60)
    counts: Counter[tuple[str, str]] = Counter()
    all_tried: list[tuple[Case, Tried]] = []
    bad = 0
    pool = ProcessPoolExecutor(given.processes, multiprocessing.get_context("fork"))
    # Cases of a kind take similar time, and are next to each other.
    order = [i for first in range(50) for i in range(first, len(_CASES), 50)][given.first :]
    try:
        waiting = {pool.submit(_tried, index, given.seconds): _CASES[index] for index in order}
        for done in as_completed(waiting):
            case, found = waiting[done], done.result()
            counts[case.kind, found.said.split(":")[0]] += 1
            all_tried.append((case, found))
            if found.said not in GOOD:
                bad += 1
                print(f"BAD {case.kind}, {case.name}: {found.said}", flush=True)
            if len(all_tried) % 500 == 0:
                print(f"{len(all_tried)} of {len(order)} cases", flush=True)
    except KeyboardInterrupt:
        print("interrupted")
    pool.shutdown(wait=False, cancel_futures=True)
    print("| kind | outcome | cases |\n| --- | --- | --- |")
    for (kind, found), count in sorted(counts.items()):
        print(f"| {kind} | {found} | {count} |")
    print(f"{len(all_tried)} of {len(order)} cases; most processor time, and most memory:")
    for most in (lambda found: found.cpu_seconds, lambda found: found.megabytes):
        for case, found in sorted(all_tried, key=lambda pair: -most(pair[1]))[: given.most]:
            print(
                f"{found.cpu_seconds:6.1f} s of {found.seconds:5.1f} s {found.megabytes:5} MB"
                f"  {case.kind}, {case.name}"
            )
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
