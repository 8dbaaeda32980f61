"""Tokens per second of runner V1 with LoRA adapters, beside the same engine without room for them.

    python -m benchmarks.lora --rank 16 --model qwen3-0.6b --workload bs1 --workload nano256 --json out.json

Two engines, one after the other. The first has no room for adapters. The second has room for two: its
requests have none, then all have the same, then none, the first and the second in turn. Adapters are random,
of every layer that can have one. Other arguments are those of `benchmarks.throughput`, and so are the
records, whose labels say which adapters the requests have.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks import results, throughput
from benchmarks.engines.dodona import DodonaV1
from benchmarks.environment import describe
from benchmarks.models import model_directory, read_config
from benchmarks.roofline import Rates
from benchmarks.workloads import Ask

MAX_LORAS = 2


class WithAdapters(DodonaV1):
    """Requests have the adapters of `turns`, in turn."""

    turns: Sequence[Any] = (None,)

    def generate(self, asks: Sequence[Ask]) -> list[list[int]]:
        return self.generate_with(asks, lora_request=list(islice(cycle(self.turns), len(asks))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write."""
    own, passed = _parser().parse_known_args(arguments)
    options = throughput.parser().parse_args(["--engine", DodonaV1.name, *passed])
    config = read_config(options.model)
    workloads = throughput.make_workloads(options, config)
    records: list[dict[str, Any]] = []
    with model_directory(options.model) as directory, tempfile.TemporaryDirectory() as folder:
        plain = throughput.make_setup(options, config, workloads, directory)
        room = {"enable_lora": True, "max_loras": MAX_LORAS, "max_lora_rank": own.rank}
        for engine_class, setup in (
            (DodonaV1, plain),
            (WithAdapters, replace(plain, arguments={**plain.arguments, **room})),
        ):
            started = time.perf_counter()
            engine = engine_class.load(setup)
            try:
                head = {
                    "engine": engine.name,
                    "model": options.model,
                    "config": config,
                    "dtype": setup.dtype,
                    "settings": engine.settings() | dict(setup.arguments),
                    "versions": engine.versions(),
                    "environment": describe(),
                    "start_seconds": time.perf_counter() - started,
                }
                print(throughput.headline(head), flush=True)
                cases: Mapping[str, Sequence[Any]] = {options.label: (None,)}
                if isinstance(engine, WithAdapters):
                    cases = _cases(
                        [_adapter(engine, Path(folder), n + 1, own.rank) for n in range(MAX_LORAS)]
                    )
                for workload in workloads:
                    for label, turns in cases.items():
                        if isinstance(engine, WithAdapters):
                            engine.turns = turns
                        record = {**head, "label": label} | throughput.measure(
                            engine,
                            workload,
                            head,
                            repeat=options.repeat,
                            streamed=False,
                            rates=Rates.of(
                                head["environment"]["gpu"], bandwidth=options.bandwidth, flops=options.flops
                            ),
                        )
                        print(
                            f"{label or 'without room for adapters'}: {throughput.summary(record)}",
                            flush=True,
                        )
                        records.append(record)
                        if options.json is not None:  # after each, so that a later failure costs nothing
                            results.write(options.json, results.THROUGHPUT, records)
            finally:
                engine.close()
    return 0


def _cases(adapters: Sequence[Any]) -> Mapping[str, Sequence[Any]]:
    """The adapters that requests have in turn, by label."""
    return {
        f"room for {len(adapters)} adapters": (None,),
        "one adapter": adapters[:1],
        f"none and {len(adapters)} adapters in turn": (None, *adapters),
    }


def _adapter(engine: DodonaV1, folder: Path, number: int, rank: int) -> Any:
    """A request for a random adapter of every layer that can have one."""
    import torch
    from safetensors.torch import save_file

    from dodona import LoRARequest

    targets = engine.llm._client.call(lambda runner, _: runner.get_lora_targets())
    generator = torch.Generator().manual_seed(number)

    def values(*shape: int) -> torch.Tensor:
        return 0.02 * torch.randn(shape, generator=generator)

    tensors = {}
    for name, target in targets.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = values(rank, target.in_features)
        tensors[f"base_model.model.{name}.lora_B.weight"] = values(target.out_features, rank)
    directory = folder / str(number)
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors")
    modules = sorted({name.rpartition(".")[2] for name in targets})
    adapter_config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": modules}
    (directory / "adapter_config.json").write_text(json.dumps(adapter_config))
    return LoRARequest(f"adapter-{number}", number, str(directory))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lora", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--rank", type=int, default=16, help="of the adapters")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"error: {error}")
