"""A real engine whose weights and adapters change while clients use it, on either runner.

    python -m tests.support.changes --runner v1 --changes 100 --clients 32

V2 has no adapters; without a GPU its kernels run in Triton's interpreter, which takes minutes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

PATIENCE = 600.0
SIZES = {"block_size": 16, "max_model_len": 48, "num_gpu_blocks_override": 200}
LAYERS = {"model.layers.0.self_attn.q_proj": (32, 64), "model.layers.0.mlp.down_proj": (48, 32)}


def check_changes(
    folder: Path, models: tuple[Path, Path], *, runner: str, changes: int, clients: int, tokens: int = 6
) -> None:
    """Reload, patch and swap adapters `changes` times while `clients` threads wait for answers, and raise
    AssertionError where an answer is of no one version, memory moved, or something is left behind.

    models: directories of two models of one config.json, each with a hidden layer of `LAYERS`.
    """
    import torch
    from safetensors.torch import load_file

    from dodona import LoRARequest
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.oracle.machine.environment import Environment, assumed_gpu
    from dodona.oracle.select import select_runner
    from dodona.runners.llm import LLM
    from dodona.runners.sampling.params import SamplingParams
    from tests.support.adapters import write_adapter

    path = folder / "model"
    shutil.copytree(models[0], path)
    weights = load_file(path / "model.safetensors")
    row = weights["lm_head.weight"].shape[1]
    # Makes token 7 the likeliest after anything that the old row liked.
    patch = {"lm_head.weight": (torch.arange(7 * row, 8 * row), 4 * weights["lm_head.weight"][9])}
    prompts = [[i + 1, 2 * i + 1, 3] for i in range(min(8, clients))]
    greedy = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    flat: dict[str, Any] = {**SIZES, "skip_tokenizer_init": True, "max_num_seqs": clients}
    kinds: tuple[LoRARequest | None, ...] = (None,)
    machine = assumed_gpu("v2")
    if runner == "v1":
        machine = Environment(has_triton=False, platform="cpu")
        flat |= {"device": "cpu", "dtype": "float32", "enable_lora": True, "max_loras": 2}
        adapters = [write_adapter(folder / f"adapter-{i}", LAYERS, seed=i) for i in (1, 2)]
        kinds += tuple(LoRARequest(str(i), i, str(adapter)) for i, adapter in enumerate(adapters, 1))
    verdict = select_runner(EngineConfig.from_flat(str(path), **flat), environment=machine)
    assert verdict.runner == runner
    with LLM.from_verdict(verdict) as llm:

        def run() -> list[list[int]]:
            """All prompts without an adapter, then with each of the two."""
            each = [kind for kind in kinds for _ in prompts]
            outputs = llm.generate(
                prompts * len(kinds),
                greedy,
                use_tqdm=False,
                lora_request=each if len(kinds) > 1 else None,
            )
            return [list(output.outputs[0].token_ids) for output in outputs]

        def views() -> list[int]:
            found = llm._client._engine.call(lambda runner, _: runner._weight_views().views)
            return sorted(tensor.data_ptr() for tensor in found.values())

        ways = [
            lambda: llm.reload_weights(models[0]),
            lambda: llm.reload_weights(models[1]),
            lambda: llm.apply_sparse_weight_patches(patch),
        ]
        known = []
        for change in ways:
            change()
            known.append(run())
        held = views()
        assert known[0] != known[1] != known[2]
        for answers in known:
            by_kind = [
                answers[start : start + len(prompts)] for start in range(0, len(answers), len(prompts))
            ]
            assert all(one != other for one, other in itertools.combinations(by_kind, 2))
        done = threading.Event()

        def work(number: int) -> int:
            for turn in itertools.count():
                if done.is_set() and turn:
                    return turn
                kind, index = (number + turn) % len(kinds), number % len(prompts)
                (output,) = llm.generate(prompts[index], greedy, use_tqdm=False, lora_request=kinds[kind])
                place = kind * len(prompts) + index
                found = list(output.outputs[0].token_ids)
                assert found in [answers[place] for answers in known], (kind, index, found)
            raise AssertionError

        with ThreadPoolExecutor(clients) as pool:
            workers = [pool.submit(work, number) for number in range(clients)]
            try:
                for change in range(changes):
                    ways[change % 2 if change % 10 else 2]()
                    if not change % 10:
                        ways[1]()
                    if len(kinds) > 1:
                        llm.remove_lora(1 + change % 2)
                        llm.add_lora(replace(kinds[1 + change % 2], load_inplace=True))  # type: ignore[type-var]
            finally:
                done.set()
            turns = sum(worker.result(PATIENCE) for worker in workers)
        assert turns >= clients
        ways[0]()
        assert run() == known[0]
        assert views() == held
        blocks = llm._client._engine.call(lambda runner, scheduler: scheduler.blocks)
        assert blocks.num_free == blocks.num_blocks
    assert not any(thread.name == "dodona-engine" for thread in threading.enumerate())


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runner", choices=["v1", "v2"], default="v1")
    parser.add_argument("--changes", type=int, default=100)
    parser.add_argument("--clients", type=int, default=32)
    arguments = parser.parse_args()
    if not Path("/dev/nvidiactl").exists():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    from tests.support.tiny_models import TinyModels

    with tempfile.TemporaryDirectory() as name:
        tiny = TinyModels(Path(name) / "models")
        models = tuple(tiny.path("llama", num_hidden_layers=1, head_dim=16, seed=seed) for seed in (0, 1))
        check_changes(Path(name), (models[0], models[1]), **vars(arguments))
    print("no answer mixed versions, and nothing was left behind")


if __name__ == "__main__":
    main()
