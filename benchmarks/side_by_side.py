"""Two engines on the same GPU, in the order A B B A, each run in a process of its own.

    python -m benchmarks.side_by_side --a dodona-v2 --b vllm --b-path /path/to/unpacked/vllm \\
        --json-dir benchmarks/results/today -- --model qwen3-0.6b --workload nano256 --workload bs1

What follows `--` goes to `benchmarks.throughput` as it is. Drift of the machine (clocks, heat) between the
runs falls on both engines alike; the spread between an engine's two runs says how much of it there was.

A start takes longer than many a run. With `--alive` there is one process of each engine for all runs: they
take turns, a workload at a time, each warmed up and then A B B A; the GPU must hold both, so give each its
memory (`--a-set kv_cache_memory_bytes=…`). With `--few-starts` the two runs of B in the middle are one
process's.

Prints the ratio A / B of tokens per second by workload, and of latencies where both have them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks import results, throughput
from benchmarks.engines import ENGINES
from benchmarks.turns import alternate

ORDER = "abba"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the processes, print the ratios."""
    options = _parser().parse_args(arguments)
    passed = options.throughput[1:] if options.throughput[:1] == ["--"] else options.throughput
    engines = {"a": options.a, "b": options.b}
    environments = {"a": _environment(options.a_path), "b": _environment(options.b_path)}
    settings = {"a": options.a_set, "b": options.b_set}
    labels = {"a": options.a_label, "b": options.b_label}

    def command(side: str, *arguments: str) -> list[str]:
        sets = [part for setting in settings[side] for part in ("--set", setting)]
        label = ["--label", labels[side]] if labels[side] else []
        own = ["--engine", engines[side], *passed, *label, *sets, *arguments]
        return [sys.executable, "-m", "benchmarks.throughput", *own]

    records: dict[str, list[dict[str, Any]]] = {"a": [], "b": []}
    if options.alive:
        files = {side: options.json_dir / f"{engines[side]}.json" for side in "ab"}
        commands = {
            side: command(side, "--repeat", "2", "--take-turns", "--json", str(file))
            for side, file in files.items()
        }
        if not alternate(commands, environments, streams(throughput.parser().parse_args(commands["a"][3:]))):
            return 1
        for side, file in files.items():
            records[side] = [run for record in results.read(file)["records"] for run in _runs_of(record)]
    else:
        starts = [(side, len([*group])) for side, group in groupby(ORDER)]
        if not options.few_starts:
            starts = [(side, 0) for side in ORDER]  # each as often as the arguments say
        for number, (side, repeat) in enumerate(starts, start=1):
            out = options.json_dir / f"{number}-{engines[side]}.json"
            full = command(side, *(["--repeat", str(repeat)] if repeat else []))
            print(f"[{number}/{len(starts)}] {' '.join(full[1:])}", flush=True)
            finished = subprocess.run([*full, "--json", str(out)], env=environments[side], check=False)
            if finished.returncode:
                print(f"error: run {number} ended with status {finished.returncode}", file=sys.stderr)
                return 1
            found = results.read(out)["records"]
            records[side] += [run for record in found for run in (_runs_of(record) if repeat else [record])]
    print()
    print(table(engines["a"], engines["b"], records["a"], records["b"]))
    return 0


def streams(options: argparse.Namespace) -> list[bool]:
    """Whether each workload is streamed, too. options: of `benchmarks.throughput`."""
    return [throughput.is_streamed(options, name) for name in options.workload]


def _runs_of(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A record of each run of a record."""
    workload = record["workload"]
    for run in record["runs"]:
        seconds = run["seconds"]
        yield {
            **record,
            "runs": [run],
            "seconds": seconds,
            "output_tokens_per_s": workload["output_tokens"] / seconds,
            "input_tokens_per_s": workload["input_tokens"] / seconds,
        }


def table(name_a: str, name_b: str, a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: by workload both engines' figures (mean of runs, spread in %), and A / B.

    Raises ValueError where the two were not asked the same.
    """
    lines = [
        f"| workload | measure | {name_a} | {name_b} | {name_a} / {name_b} |",
        "|---|---|---|---|---|",
    ]
    names = dict.fromkeys(record["workload"]["name"] for record in a)
    for name in names:
        mine = [record for record in a if record["workload"]["name"] == name]
        theirs = [record for record in b if record["workload"]["name"] == name]
        if len({record["workload"]["fingerprint"] for record in [*mine, *theirs]}) != 1 or not theirs:
            raise ValueError(f"{name}: the engines were not asked the same; run both with equal arguments")
        for measure, ours, others in _measures(mine, theirs):
            ratio = statistics.fmean(ours) / statistics.fmean(others)
            lines.append(f"| {name} | {measure} | {_figure(ours)} | {_figure(others)} | {ratio:.3f} |")
    return "\n".join(lines)


def _measures(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]
) -> list[tuple[str, list[float], list[float]]]:
    """(measure, values of A, values of B): input tokens where almost all tokens are inputs, else outputs."""
    workload = a[0]["workload"]
    side = "input" if workload["input_tokens"] > 100 * workload["output_tokens"] else "output"
    measures = []
    if not workload["online"]:
        key = f"{side}_tokens_per_s"
        measures.append((f"{side} tok/s", [record[key] for record in a], [record[key] for record in b]))
    if all(record["latency"] for record in [*a, *b]):
        for kind, title in (("ttft_s", "TTFT"), ("tpot_s", "TPOT")):
            for which in ("p50", "p99"):
                if all(record["latency"][kind] for record in [*a, *b]):
                    ours, others = (
                        [1e3 * record["latency"][kind][which] for record in each] for each in (a, b)
                    )
                    measures.append((f"{title} {which} ms", ours, others))
    return measures


def _figure(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    text = f"{mean:,.0f}" if mean >= 100 else f"{mean:.2f}"
    return f"{text} (±{50 * (max(values) - min(values)) / mean:.1f} %)"


def _environment(path: Path | None) -> dict[str, str]:
    """This process's variables, with `path` first among Python's paths."""
    environment = dict(os.environ)
    if path is not None:
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{path}{os.pathsep}{known}" if known else str(path)
    return environment


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.side_by_side", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--a", required=True, choices=ENGINES)
    add("--b", required=True, choices=ENGINES)
    add("--a-path", type=Path, help="a folder that goes on A's PYTHONPATH (an unpacked vLLM)")
    add("--b-path", type=Path, help="the same for B")
    add("--a-set", action="append", default=[], metavar="NAME=VALUE", help="an argument for engine A alone")
    add("--b-set", action="append", default=[], metavar="NAME=VALUE", help="the same for B")
    add("--a-label", default="", help="what tells A from other runs of its engine")
    add("--b-label", default="", help="the same for B")
    add("--alive", action="store_true", help="one process of each engine, in turns")
    add("--few-starts", action="store_true", help="one process for the two runs of B in the middle")
    add("--json-dir", type=Path, required=True, help="a folder for the files of results")
    add("throughput", nargs=argparse.REMAINDER, help="-- and the arguments of benchmarks.throughput")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"error: {error}")
