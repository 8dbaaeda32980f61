"""Several models of one engine on the same GPU, each in a process of its own, one at a time.

    python -m benchmarks.models_in_turns --models qwen3-8b qwen3-8b-w4a16 qwen3-8b-fp8 \\
        --json-dir benchmarks/results/today -- --engine dodona-v2 --workload bs1 --repeat 4 \\
        --set kv_cache_memory_bytes=700000000

What follows `--` goes to `benchmarks.throughput` as it is. All processes start together and stay alive, so
the GPU must hold all models: give each its KV memory, as above. Once all are ready they are warmed up,
and run in the order A B C C B A, as often as the repetitions say: drift of the machine falls on all alike.
A model whose start fails is named, and the others go on.

Prints tokens per second by model, the spread between its runs, and the ratio to the first model's.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import results, throughput
from benchmarks.turns import Player


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the processes, print the table; 1 where a model has no figures."""
    options = _parser().parse_args(arguments)
    passed = options.throughput[1:] if options.throughput[:1] == ["--"] else options.throughput
    files = {model: options.json_dir / f"{model}.json" for model in options.models}
    commands = {
        model: [
            *(sys.executable, "-m", "benchmarks.throughput", *passed),
            *("--model", model, "--take-turns", "--json", str(file)),
        ]
        for model, file in files.items()
    }
    parsed = throughput.parser().parse_args(commands[options.models[0]][3:])
    if "poisson" in parsed.workload:
        raise ValueError("--workload poisson: arrivals decide its time; give workloads that are not online")
    streamed = [throughput.is_streamed(parsed, name) for name in parsed.workload]
    failed = play(commands, os.environ, turns([*commands], parsed.repeat, streamed))
    for model in failed:
        print(f"error: {model} ended before its turns were over", file=sys.stderr)
    print(
        table({model: results.read(file)["records"] for model, file in files.items() if model not in failed})
    )
    return 1 if failed else 0


def turns(models: Sequence[str], repeat: int, streamed: Sequence[bool]) -> list[str]:
    """Whose turn it is, in order: per workload a warm-up, `repeat` runs, there and back again, and one run
    more where the workload is streamed for its latencies.

    >>> turns(["a", "b"], 2, [True])
    ['a', 'b', 'a', 'b', 'b', 'a', 'a', 'b']
    """
    order: list[str] = []
    for is_streamed in streamed:
        order += models
        for run in range(repeat):
            order += models[::-1] if run % 2 else models
        order += models if is_streamed else []
    return order


def play(
    commands: Mapping[str, Sequence[str]], environment: Mapping[str, str], order: Sequence[str]
) -> list[str]:
    """Start all commands at once, wait for all, and give turns. Returns the names of those that failed."""
    players = {name: Player(command, environment) for name, command in commands.items()}
    try:
        with ThreadPoolExecutor(len(players)) as pool:  # none may wait for a reader while it starts
            waiting = dict(zip(players, pool.map(Player.wait, players.values()), strict=True))
        for name in order:
            if waiting[name]:
                waiting[name] = players[name].play()
        return [name for name, player in players.items() if player.finish()]
    finally:
        for player in players.values():
            player.kill()


def table(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Markdown: each model's tokens per second (median of runs, spread in %), and by the first model's."""
    lines = ["| model | workload | output tokens/s | of the first |", "|---|---|---|---|"]
    first: dict[str, float] = {}
    for model, found in records.items():
        for record in found:
            name, rate = record["workload"]["name"], record["output_tokens_per_s"]
            runs = [run["seconds"] for run in record["runs"]]
            spread = 50 * (max(runs) - min(runs)) / record["seconds"]
            ratio = rate / first.setdefault(name, rate)
            lines.append(f"| `{model}` | {name} | {rate:,.0f} (±{spread:.1f} %) | {ratio:.2f} |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models_in_turns", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add(
        "--models",
        nargs="+",
        required=True,
        help="known shapes; the first is what the others are compared with",
    )
    add("--json-dir", type=Path, required=True, help="a folder for the files of results, one per model")
    add("throughput", nargs=argparse.REMAINDER, help="-- and the arguments of benchmarks.throughput")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"error: {error}")
