"""Mutated rule files and random configurations: each gives a result or a named error, in time and in bounded
memory.

    python benchmarks/rule_fuzz.py [--files 100000] [--configurations 1000000] [--seed 1]

Files are the bundled books, or a few rules of one, changed in their bytes or in their structure. One that
still loads is evaluated, its examples are run, and some are formatted. Configurations are facts of every bundled
book (values around what it compares, strange ones, unknown ones) and, one in four, whole configurations with
wrong fields and values. Rule books are evaluated by the reference evaluator.

Exits with 1 on any other exception than a named error, where a file takes longer than the limit, or where
memory grew by more than 8 MiB over the second half.
"""
# ruff: noqa: E501

from __future__ import annotations

import argparse
import copy
import functools
import gc
import json
import os
import platform
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from dodona.oracle.analysis.source import sourced_text
from dodona.oracle.authoring.coverage import run_examples
from dodona.oracle.authoring.formatting import format_text
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decide.evaluate import evaluate
from dodona.oracle.errors import ConfigError, RuleFileError
from dodona.oracle.language.extends import folder_sibling
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.language.yaml_source import read_yaml
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.systems.books import bundled_rulebook, bundled_rulebooks
from dodona.oracle.systems.own.facts import derive_facts
from dodona.oracle.testing import RandomFacts

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "rules").rglob("*.yaml"))
GROWTH_LIMIT_MIB = 8.0
SECONDS_PER_FILE = 5.0

WORDS = (
    "null", "true", "no", "~", "''", "[]", "{}", "[", "}", "- ", ": ", "# ", "|", ">-", "&a", "*a", "!!str", "<<: ", "---\n",
    "%YAML 1.1\n", "\t", "\r", "\x00", "\u2028", "\ufeff", "\ud83d", "é", "0x10", "1.5", "-1", "9" * 30, "2026-02-30",
    "..", "/etc/passwd", "../dodona", "{model_config.is_moe}", "{{", "all:", "any: []", "not: ", "is_set", "v3", "x" * 300,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**53 - 1, 2**53, 10**400, "", "x", "v1", "v2", "v3", "vllm", "dodona", "../x", "no", "a b",
    "Ünïcode ✓", "\x07", "{", "{model_config.is_moe}", [], {}, [[]], [None], {"all": []}, {"not": {"not": {}}}, ["v1", "v1"],
    {"model_config.is_moe": True}, {"cache_config.block_size": {"gt": 1}}, {"lora_config": {"is_set": True}}, 1.5,
)  # fmt: skip


class TooLong(BaseException):
    """A file took longer than the limit. No `except Exception` on the way stops it."""


@dataclass
class Tally:
    """What came of it."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0
    growth_mib: float = 0.0
    seconds: float = 0.0

    def report(self, name: str) -> str:
        """One line, and one for each fault."""
        parts = ", ".join(f"{count} {what}" for what, count in sorted(self.outcomes.items()))
        lines = [
            f"{name}: {parts}; slowest {self.slowest * 1000:.0f} ms, memory {self.growth_mib:+.1f} MiB over the second "
            f"half, {self.seconds:.0f} s"
        ]
        return "\n".join(lines + [f"  FAULT {fault}" for fault in self.faults[:20]])


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TooLong after some seconds of wall time."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def resident_mib() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _run(count: int, one: Callable[[], str], describe: Callable[[], str], seconds: float) -> Tally:
    tally = Tally()
    start = time.perf_counter()
    half = 0.0
    for number in range(count):
        if number == count // 2:
            gc.collect()
            half = resident_mib()
        began = time.perf_counter()
        try:
            with limited(seconds):
                outcome = one()
        except TooLong:
            outcome = "too long"
            tally.faults.append(f"longer than {seconds} s: {describe()}")
        except Exception as error:
            outcome = "crashed"
            tally.faults.append(f"{type(error).__name__}: {error}: {describe()}")
        tally.slowest = max(tally.slowest, time.perf_counter() - began)
        tally.outcomes[outcome] += 1
    gc.collect()
    tally.growth_mib = resident_mib() - half
    tally.seconds = time.perf_counter() - start
    return tally


# --- rule files


@functools.cache
def _sources() -> tuple[tuple[Path, str, Any], ...]:
    return tuple((path, path.read_text(encoding="utf-8"), read_yaml(path).data) for path in FILES)


def mutated_file(rng: random.Random) -> tuple[Path, bytes]:
    """The text of a changed book, and the file that it was."""
    path, text, data = rng.choice(_sources())
    if rng.random() < 0.5:
        return path, _changed_bytes(_excerpt(text, rng), rng)
    return path, _changed_structure(data, rng)


def _excerpt(text: str, rng: random.Random) -> str:
    """The head of a book and a few of its rules; one in twenty whole."""
    head, *rules = text.split("\n  - id: ")
    if rng.random() < 0.05 or not rules:
        return text
    return "\n  - id: ".join([head, *rng.sample(rules, min(len(rules), rng.randint(1, 3)))])


def _changed_bytes(text: str, rng: random.Random) -> bytes:
    raw = text.encode()
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at, to = sorted((rng.randrange(len(raw) + 1), rng.randrange(len(raw) + 1)))
        to = min(to, at + rng.choice((1, 4, 40)))
        kind = rng.randrange(7)
        if kind == 0:
            raw = raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]
        elif kind == 1:
            raw = raw[:at] + raw[to:]
        elif kind == 2:
            raw = raw[:to] + raw[at:to] * rng.choice((1, 2, 50)) + raw[to:]
        elif kind == 3:
            raw = raw[:at] + rng.choice(WORDS).encode("utf-8", "surrogatepass") + raw[at:]
        elif kind == 4:
            lines = raw.split(b"\n")
            a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
            lines[a], lines[b] = lines[b], lines[a]
            raw = b"\n".join(lines)
        elif kind == 5:
            lines = raw.split(b"\n")
            line = rng.randrange(len(lines))
            lines[line] = b" " * rng.randrange(9) + lines[line].lstrip()
            raw = b"\n".join(lines)
        else:
            raw = raw[:at] + rng.choice(WORDS).encode("utf-8", "surrogatepass") + raw[to:]
    return raw


def _changed_structure(data: Any, rng: random.Random) -> bytes:
    changed = copy.deepcopy(data)
    rules = changed.get("rules")
    if rules and rng.random() < 0.95:
        changed["rules"] = rng.sample(rules, min(len(rules), rng.randint(1, 4)))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(changed))
        holder, key = rng.choice(places)
        kind = rng.randrange(7)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            # a copy: what follows changes it
            holder[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 2:
            other, name = rng.choice(places)
            holder[key] = copy.deepcopy(other[name])
        elif kind == 3:
            holder[key] = rng.choice(([holder[key]], {"not": holder[key]}, {"all": [holder[key]]}))
        elif kind == 4:
            for _ in range(rng.choice((2, 14, 40))):
                holder[key] = rng.choice(({"not": holder[key]}, {"any": [holder[key]]}, [holder[key]]))
        elif isinstance(holder, dict):
            name = key + rng.choice(("s", "_", "x", "")) if kind == 5 else rng.choice(WORDS)
            holder[name[: rng.randint(1, len(name))] if name else "x"] = holder.pop(key)
        else:
            holder.append(copy.deepcopy(holder[key]))
        if not list(_places(changed)):
            break
    return json.dumps(changed, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, 1))).encode(
        "utf-8", "surrogatepass"
    )


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of nested data, as far down as the mutations may go."""
    todo = [value]
    while todo:
        here = todo.pop()
        items = here.items() if isinstance(here, dict) else enumerate(here)
        for key, item in items:
            yield here, key
            if isinstance(item, (dict, list)):
                todo.append(item)


def fuzz_files(count: int, seed: int, *, seconds: float = SECONDS_PER_FILE) -> Tally:
    """Load mutated rule files, and use those that load."""
    rng = random.Random(f"files {seed}")
    siblings = {
        folder: functools.cache(folder_sibling(folder / "x.yaml")) for folder in {p.parent for p in FILES}
    }
    current: tuple[Path, bytes] = (FILES[0], b"")

    def one() -> str:
        nonlocal current
        current = path, raw = mutated_file(rng)
        sibling = siblings[path.parent]
        try:
            source = sourced_text(raw, file=path.name, sibling=sibling)
        except RuleFileError as error:
            if not (error.message and error.hint and error.line >= 1 and error.column >= 1):
                raise AssertionError(f"an error without place or hint: {error}") from None
            return "named error"
        book = source.book
        run_examples(source)
        draw = RandomFacts(book, rng.randrange(2**32))
        for _ in range(3):
            _decided(book, draw())
        if rng.random() < 0.2:
            text = raw.decode()
            written = format_text(text, sibling=sibling)
            assert format_text(written, sibling=sibling) == written, "not idempotent"
        return "loaded"

    return _run(count, one, lambda: f"{current[0].name} {current[1]!r}"[:3000], seconds)


def _decided(book: RuleBook, facts: Any) -> str:
    outcome = evaluate(book, facts).outcome
    assert outcome.runner is not None or outcome.refusals
    return f"{outcome.runner or 'no runner'}{', refused' if outcome.refusals else ''}"


# --- configurations

_FIELDS: dict[str, tuple[str, ...]] = {
    "model_config": ("model", "dtype", "runner", "quantization", "max_model_len", "seed", "enforce_eager"),
    "cache_config": ("block_size", "cache_dtype", "kv_offloading_size", "kv_offloading_backend"),
    "parallel_config": ("tensor_parallel_size", "pipeline_parallel_size", "enable_expert_parallel", "no_such"),
    "device_config": ("device",),
    "scheduler_config": ("max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill"),
    "speculative_config": ("method", "model", "num_speculative_tokens", "parallel_drafting"),
    "compilation_config": ("mode", "level"),
    "kv_transfer_config": ("kv_connector", "kv_role"),
    "lora_config": ("max_loras", "max_lora_rank"),
    "no_such_config": ("x",),
}  # fmt: skip
_PLAUSIBLE: tuple[Any, ...] = (
    1, 2, 4, 16, 128, 1.5, True, False, None, "auto", "float16", "cuda", "cpu", "eagle3", "ngram", "fp8", "kv_both", "NixlConnector",
    "STOCK_TORCH_COMPILE", "pooling", "generate", 3, "model",
)  # fmt: skip
_CONFIG_JSON = (
    "architectures", "model_type", "num_experts", "head_dim", "hidden_size", "num_attention_heads", "rope_scaling",
    "quantization_config", "sliding_window", "layer_types", "torch_dtype", "hidden_act", "text_config", "auto_map",
)  # fmt: skip


def fuzz_configurations(count: int, seed: int, *, seconds: float = SECONDS_PER_FILE) -> Tally:
    """Decide for random facts of every bundled book, and for random configurations."""
    rng = random.Random(f"configurations {seed}")
    books = [bundled_rulebook(name) for name in bundled_rulebooks()]
    draws = [(book, RandomFacts(book, rng.randrange(2**32))) for book in books]
    own = bundled_rulebook("dodona")
    current: Any = None

    def one() -> str:
        nonlocal current
        if rng.random() < 0.75:
            book, draw = rng.choice(draws)
            current = draw()
            return _decided(book, current)
        config, model = _random_mapping(rng), _random_model(rng)
        current = config, model
        try:
            engine, info = EngineConfig.from_mapping(config), ModelInfo.from_mapping(model)
        except ConfigError as error:
            return "named error" if str(error) else "error without words"
        environment = Environment(
            has_triton=rng.random() < 0.5,
            platform=rng.choice(("cuda", "cpu", "rocm")),
            override=rng.choice((None, None, "v1", "v2")),
        )
        return _decided(own, derive_facts(engine, info, environment))

    return _run(count, one, lambda: repr(current)[:3000], seconds)


def _random_mapping(rng: random.Random) -> dict[str, Any]:
    found: dict[str, Any] = {"model_config": {"model": "m"}}
    for section in rng.sample(sorted(_FIELDS), rng.randint(0, 3)):
        fields = rng.sample(_FIELDS[section], rng.randint(0, min(2, len(_FIELDS[section]))))
        values = {name: _random_value(rng) for name in fields}
        found[section] = {**found.get(section, {}), **values} if rng.random() < 0.95 else _random_value(rng)
    return found


def _random_model(rng: random.Random) -> dict[str, Any]:
    architecture = rng.choice(("Qwen3ForCausalLM", "LlamaForCausalLM", "MixtralForCausalLM", "Other"))
    found: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": rng.choice(("qwen3", "llama", "x")),
    }
    return found | {name: _random_value(rng) for name in rng.sample(_CONFIG_JSON, rng.randint(0, 2))}


def _random_value(rng: random.Random) -> Any:
    return rng.choice(_PLAUSIBLE) if rng.random() < 0.8 else rng.choice(VALUES)


def machine() -> str:
    """The machine and the versions that matter, one line each."""
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    packages = ", ".join(f"{name} {version(name)}" for name in ("pydantic", "PyYAML"))
    return f"{cpu}, {os.cpu_count()} cores; {platform.system()} {platform.release()}\n" + (
        f"Python {platform.python_version()}, {packages}"
    )


def main() -> int:
    """Run both, and print what came of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--configurations", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(machine())
    failed = False
    for name, fuzz, count in (
        ("rule files", fuzz_files, arguments.files),
        ("configurations", fuzz_configurations, arguments.configurations),
    ):
        if not count:
            continue
        tally = fuzz(count, arguments.seed)
        print(tally.report(f"{count} {name}"), flush=True)
        failed = failed or bool(tally.faults) or tally.growth_mib > GROWTH_LIMIT_MIB
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
