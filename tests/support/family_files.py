"""What rules count and miss in the files of every model type that transformers makes, tiny and random.

    python -m tests.support.family_files --part 0 --parts 4

prints a line for each type and task: that nothing is missed in files which transformers wrote, and how
`least_kv_bytes` compares with the fewest bytes with which the engine's own plan starts. The exit status is 1
where something is missed, or more is counted than is needed.
"""

from __future__ import annotations

import argparse
import tempfile
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import DodonaError
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.select import select_runner
from dodona.oracle.systems.own import memory
from dodona.oracle.systems.own.config_values import config_values_fault
from dodona.oracle.systems.own.weights import weights_fault
from dodona.runners.build import build_runner
from dodona.runners.limits import resolve_limits, size_kv_cache
from dodona.runners.machine import torch_environment
from tests.support import every_family, known_models, pooling_table

SIZES: tuple[dict[str, int], ...] = (
    {"max_model_len": 200, "block_size": 4, "max_num_batched_tokens": 16},
    {"max_num_batched_tokens": 64},
)
MOST_BYTES = 1 << 28


class _AnyType:
    """In place of PLAIN_KV: every type is counted."""

    def __contains__(self, model_type: object) -> bool:
        return True


def jobs() -> list[tuple[str, str]]:
    """Model type and task."""
    pooled = sorted(set(known_models.model_types()) & set(CONFIG_MAPPING))
    return [(t, "generate") for t in every_family.model_types()] + [
        (t, task) for t in pooled for task in known_models.pooling_tasks(t)
    ]


def outcomes(model_type: str, task: str, folder: Path) -> Iterator[str]:
    """A line for each thing that was looked at; a first word in capitals means that a rule is wrong."""
    try:
        if task == "generate":
            every_family.make_model(every_family.tiny_config(model_type)).save_pretrained(folder)
        else:
            pooling_table.save(model_type, task, folder)
    except Exception as error:
        yield f"unmade: {str(error)[:80]}"
        return
    runner = {"generate": {"runner": "generate"}, "token_classify": {"runner": "pooling"}}
    flat = runner.get(task, {"runner": "pooling", "convert": task})
    config = EngineConfig.from_flat(str(folder), device="cpu", **flat)
    info = ModelInfo.load(folder)
    fault = config_values_fault(info) or weights_fault(config, info, torch_environment("cpu"))
    yield "whole" if fault is None else f"MISSED: {fault}"
    if task == "generate":
        for sizes in SIZES:
            yield _kv(folder, sizes)


def _kv(folder: Path, sizes: dict[str, int]) -> str:
    try:
        verdict = select_runner(EngineConfig.from_flat(str(folder), device="cpu", **sizes))
        info = ModelInfo.load(folder)
        least = memory.least_kv_bytes(verdict.config, info, torch_environment("cpu"))
        limits = resolve_limits(verdict.config, info)
        runner = build_runner(verdict, info, limits)
        runner.load_model()
    except DodonaError as error:
        return f"not loaded: {str(error)[:120]!r}"
    spec = runner.get_kv_cache_spec()
    groups = zip(spec.most_window_blocks(limits), spec.window_groups, strict=True)
    plan: dict[str, Any] = {
        "block_size": spec.block_size,
        "bytes_per_block": spec.bytes_per_block,
        "state_bytes_per_row": spec.state_bytes_per_row,
        "window_groups": [(most, group.bytes_per_block) for most, group in groups],
        "most_blocks_per_row": spec.most_blocks_per_row(limits) if spec.layers else None,
        "determine_available_memory": lambda: 0,
    }
    runner.shutdown()

    def starts(count: int) -> bool:
        try:
            size_kv_cache(verdict.config, replace(limits, kv_cache_memory_bytes=count), **plan)
        except DodonaError:
            return False
        return True

    needed = bisect_left(range(MOST_BYTES), True, key=starts)
    word = "exact" if least == needed else "below" if least < needed else "OVER"
    return f"{word}: {least} of {needed} bytes"


def main() -> int:
    """The program; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    arguments = parser.parse_args()
    wrong = 0
    memory.PLAIN_KV = _AnyType()  # type: ignore[assignment]
    for model_type, task in jobs()[arguments.part :: arguments.parts]:
        with tempfile.TemporaryDirectory() as folder:
            for line in outcomes(model_type, task, Path(folder)):
                wrong += line.split(":")[0].isupper()
                print(model_type, task, line.replace(folder, ""), flush=True)
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
