"""Accuracy of the committed checkpoints and of their quantized copies on the runners that serve them.

python -m checkpoints.accuracy --device cuda --runner v1 v2 --dtype float32 bfloat16
python -m checkpoints.accuracy qwen3-awq qwen3_moe --runner v1 --json accuracy.json

Questions and answers are those of `checkpoints.evaluate`. Where the rules refuse a runner, the row says by
which of them. The exit status is 1 where a copy is two points or more behind the unquantized checkpoint on
the same runner.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from checkpoints.evaluate import held_out_prompts
from checkpoints.quantized_copies import COPIES, HERE, share_right, source_and_format
from checkpoints.recipes import RECIPES

NAMES: tuple[str, ...] = (*RECIPES, *COPIES)
SEED = 1
"""Of the questions, as in the checkpoints' cards."""


def refusal(name: str, runner: str, device: str, dtype: str) -> str | None:
    """By which rules `runner` is refused here; None where it serves the checkpoint."""
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.oracle.errors import UnsupportedConfiguration
    from dodona.oracle.select import select_runner

    os.environ["DODONA_USE_V2_MODEL_RUNNER"] = {"v1": "0", "v2": "1"}[runner]
    try:
        select_runner(EngineConfig.from_flat(str(HERE / name), device=device, dtype=dtype))
    except UnsupportedConfiguration as error:
        if error.verdict is None:
            raise
        return ", ".join(reason.rule for reason in error.verdict.refusals)
    return None


def measure(name: str, runner: str, device: str, dtype: str, count: int) -> dict[str, Any]:
    """One row: shares of right answers by form of prompt, or why there are none."""
    source, _ = source_and_format(name)
    row: dict[str, Any] = {"checkpoint": name, "runner": runner, "device": device, "dtype": dtype}
    refused = refusal(name, runner, device, dtype)
    if refused is not None:
        return {**row, "refused": refused}
    tokenizer = AutoTokenizer.from_pretrained(HERE / source)
    prompts = held_out_prompts(tokenizer, count=count, recall=RECIPES[source].recall, seed=SEED)
    shares = share_right(HERE / name, prompts, device, dtype=dtype)
    return {**row, "questions": sum(map(len, prompts.values())), "right": shares}


def behind(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The copies that are two points or more behind the unquantized checkpoint on the same runner, or, where
    that was not measured, behind 100 %."""
    shares = {
        (row["checkpoint"], row["runner"], row["dtype"]): row["right"]["all"]
        for row in rows
        if "right" in row
    }
    found = []
    for (name, runner, dtype), share in shares.items():
        source, _ = source_and_format(name)
        plain = shares.get((source, runner, dtype), 1.0)
        if share <= plain - 0.02:
            found.append(f"{name} on {runner} in {dtype}: {share:.3f}, unquantized {plain:.3f}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    add("--runner", nargs="+", choices=("v1", "v2"), default=["v1"])
    add("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    add("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    add("--count", type=int, default=50, help="questions of each of three forms (default %(default)s)")
    add("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(NAMES))
    if unknown:
        parser.error(f"no such checkpoints: {', '.join(unknown)}; there are: {', '.join(NAMES)}")
    rows = []
    for name, runner, dtype in itertools.product(options.names or NAMES, options.runner, options.dtype):
        row = measure(name, runner, options.device, dtype, options.count)
        print(json.dumps(row), flush=True)
        rows.append(row)
        if options.json is not None:  # after each, so that a later failure costs nothing
            options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for line in (found := behind(rows)):
        print(f"error: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
