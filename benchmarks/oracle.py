"""Times verdicts, watches memory over many of them, and compares the rule engine with the reference
evaluator.

    python benchmarks/oracle.py [--verdicts 1000000] [--comparisons 100000] [--seed 1]

Exits with 1 where the two evaluators differ, or where memory grew by more than 8 MiB in the second half of
the verdicts.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import random
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.decide import evaluate as reference
from dodona.oracle.decide.durable import evaluation as durable
from dodona.oracle.decide.verdict import Verdict, make_verdict
from dodona.oracle.language.rulebook import RuleBook
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.select import select_runner, verdict_for
from dodona.oracle.systems.books import bundled_rulebook, load_rulebook
from dodona.oracle.systems.own.facts import derive_facts
from dodona.oracle.testing import RandomFacts

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "checkpoints" / "qwen3"
GROWTH_LIMIT_MIB = 8.0


def resident_mib() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def machine() -> str:
    """The machine and the versions that matter, one line each."""
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    packages = ", ".join(f"{name} {version(name)}" for name in ("durable_rules", "pydantic", "PyYAML"))
    return (
        f"{cpu}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"{platform.system()} {platform.release()}\n"
        f"Python {platform.python_version()}, {packages}"
    )


def configurations(count: int, seed: int) -> list[tuple[EngineConfig, Environment]]:
    """Configurations of the Qwen3 checkpoint with up to three features on, on machines with and without a
    GPU.
    """
    rng = random.Random(seed)
    flags: list[dict[str, Any]] = [
        {"tensor_parallel_size": 2},
        {"pipeline_parallel_size": 2},
        {"prefill_context_parallel_size": 4},
        {"enable_lora": True},
        {"speculative_config": {"method": "eagle3"}},
        {"speculative_config": {"method": "ngram", "parallel_drafting": True}},
        {"kv_transfer_config": {"kv_connector": "NixlConnector", "kv_role": "kv_both"}},
        {"kv_transfer_config": {}},
        {"compilation_config": {"mode": 1}},
        {"quantization": "fp8"},
        {"kv_cache_dtype": "fp8"},
        {"block_size": 8},
        {"dtype": "float16"},
        {"max_model_len": 512},
    ]
    made = []
    for _ in range(count):
        chosen: dict[str, Any] = {}
        for flag in rng.sample(flags, rng.randint(0, 3)):
            chosen.update(flag)
        gpu = rng.random() < 0.5
        override = rng.choice([None, None, None, "v1", "v2"])
        machine_ = Environment(has_triton=gpu, platform="cuda" if gpu else "cpu", override=override)
        made.append((EngineConfig.from_flat(str(MODEL), **chosen), machine_))
    return made


def time_loading() -> None:
    """The first verdict of a process: parsing the book, compiling it, reading config.json."""
    start = time.perf_counter()
    load_rulebook(ROOT / "rules" / "dodona.yaml")
    parsed = time.perf_counter()
    select_runner(MODEL, environment=Environment(has_triton=True, platform="cuda"))
    print(
        f"load the book {1e3 * (parsed - start):.0f} ms; "
        f"the first verdict {1e3 * (time.perf_counter() - parsed):.0f} ms"
    )


def time_verdicts(
    book: RuleBook, model: ModelInfo, pairs: list[tuple[EngineConfig, Environment]], count: int
) -> None:
    """Distribution of the time of one verdict, whole and by its parts."""
    for _ in range(2):
        for config, machine_ in pairs:
            verdict_for(config, model, machine_, book, trusted=True)
    whole: list[float] = []
    parts: dict[str, list[float]] = {"facts": [], "rule engine": [], "verdict": [], "(reference instead)": []}
    clock = time.perf_counter
    for i in range(count):
        config, machine_ = pairs[i % len(pairs)]
        start = clock()
        verdict_for(config, model, machine_, book, trusted=True)
        whole.append(clock() - start)
        marks = [clock()]
        facts = derive_facts(config, model, machine_)
        marks.append(clock())
        found = durable.evaluate(book, facts, trusted=True)
        marks.append(clock())
        make_verdict(book, config, found, evaluated_by="durable_rules")
        marks.append(clock())
        reference.evaluate(book, facts)
        marks.append(clock())
        for name, before, after in zip(parts, marks, marks[1:], strict=False):
            parts[name].append(after - before)
    ordered = sorted(whole)
    print(
        f"one verdict, {count} times over {len(pairs)} configurations: "
        f"median {1e6 * statistics.median(whole):.0f} µs, "
        f"p99 {1e6 * ordered[int(0.99 * count)]:.0f} µs"
    )
    print(
        "  median of its parts: "
        + ", ".join(f"{n} {1e6 * statistics.median(p):.0f} µs" for n, p in parts.items())
    )


def watch_memory(
    book: RuleBook, model: ModelInfo, pairs: list[tuple[EngineConfig, Environment]], count: int
) -> bool:
    """Make `count` verdicts; whether resident memory stayed flat over the second half."""
    step = max(count // 10, 1)
    seen: list[float] = []
    last: Verdict | None = None
    start = time.perf_counter()
    for i in range(count):
        config, machine_ = pairs[i % len(pairs)]
        last = verdict_for(config, model, machine_, book, trusted=True)
        if (i + 1) % step == 0:
            gc.collect()
            seen.append(resident_mib())
    assert last is not None
    seconds = time.perf_counter() - start
    print(
        f"{count} verdicts in {seconds:.0f} s; "
        f"resident MiB at each tenth: {', '.join(f'{m:.1f}' for m in seen)}"
    )
    growth = seen[-1] - seen[len(seen) // 2 - 1 if len(seen) > 1 else 0]
    print(f"  growth over the second half: {growth:+.2f} MiB")
    return growth <= GROWTH_LIMIT_MIB


def compare(book: RuleBook, count: int, seed: int) -> bool:
    """Whether rule engine and reference agree on `count` draws of facts, half of them with unknown ones."""
    draw = RandomFacts(book, seed)
    differing = fired = 0
    start = time.perf_counter()
    for _ in range(count):
        facts = draw()
        expected = reference.firings(book, facts)
        fired += len(expected)
        if durable.firings(book, facts, trusted=True) != expected:
            differing += 1
            print(f"  differs on {facts}", file=sys.stderr)
    seconds = time.perf_counter() - start
    print(
        f"rule engine against reference: {count} draws of facts, {fired} firings, "
        f"{differing} differ ({seconds:.0f} s)"
    )
    return differing == 0


def main() -> int:
    """Run all of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--verdicts", type=int, default=1_000_000, help="verdicts to watch memory over")
    parser.add_argument("--comparisons", type=int, default=100_000, help="facts to compare the evaluators on")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(machine())
    time_loading()
    book, model = bundled_rulebook("dodona"), ModelInfo.load(MODEL)
    pairs = configurations(500, arguments.seed)
    time_verdicts(book, model, pairs, 5000)
    agree = compare(book, arguments.comparisons, arguments.seed)
    flat = watch_memory(book, model, pairs, arguments.verdicts)
    return 0 if agree and flat else 1


if __name__ == "__main__":
    sys.exit(main())
