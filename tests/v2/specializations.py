"""Which kernels a V2 runner would compile, told on a machine without a GPU.

Run as a program, without TRITON_INTERPRET: launches only note what Triton would specialise on, and compute
nothing (tokens stay zeros). It starts a runner as the engine does, serves varied requests without graphs and
then with them, and prints, one per line, each kernel and specialisation that was new to a request.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from triton.runtime.jit import JITFunction

import tests.v2.test_sampled_tokens as sampled
from dodona.runners.device.graphs import FixedStep, decode_sizes, prompt_sizes
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.v2 import capabilities
from dodona.runners.warm_up import warm_up
from tests.kernels.sm90.compile_only import LAUNCH_OPTIONS
from tests.support.tiny_models import TinyModels
from tests.v2.drive import GREEDY, EagerGraphs, generate, make_runner, set_graphs
from tests.v2.test_greedy_tokens import prompts_of


def specialization(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """What decides whether a launch needs a kernel of its own."""
    options = {name: kwargs.pop(name) for name in LAUNCH_OPTIONS if name in kwargs}
    bound = kernel.signature.bind(*args, **kwargs)
    bound.apply_defaults()
    parts = [f"{kernel.__name__} {sorted(options.items())}"]
    for parameter, (name, value) in zip(kernel.params, bound.arguments.items(), strict=True):
        fixed = parameter.do_not_specialize
        if parameter.is_constexpr or value is None or isinstance(value, bool):
            kind = repr(value)
        elif hasattr(value, "block_shape"):
            kind = f"{value.base.dtype}{value.block_shape}"
        elif hasattr(value, "data_ptr"):
            aligned = value.data_ptr() % 16 == 0 or fixed or parameter.do_not_specialize_on_alignment
            kind = f"{value.dtype}{'' if aligned else ' unaligned'}"
        elif isinstance(value, int):
            size = "int32" if -(2**31) <= value < 2**31 else "int64"
            kind = size if fixed else "1" if value == 1 else f"{size}{' by 16' if value % 16 == 0 else ''}"
        else:
            kind = type(value).__name__
        parts.append(f"{name}={kind}")
    return " ".join(parts)


def main() -> int:
    """Start, serve, print."""
    seen: dict[str, None] = {}

    def getitem(self: Any, grid: Any) -> Any:
        return lambda *args, **kwargs: seen.setdefault(specialization(self, args, kwargs))

    JITFunction.__getitem__ = getitem  # type: ignore[method-assign]
    for name, module in list(sys.modules.items()):
        for predicate in ("supports_dependent_launch", "is_hopper"):
            if name.startswith("dodona.kernels.") and hasattr(module, predicate):
                setattr(module, predicate, lambda device: True)
    capabilities.check_supported = lambda *args, **kwargs: ()
    lengths = [1, 2, 17, 100, 250, 600, 1100]
    random = SamplingParams(temperature=0.9, seed=5, ignore_eos=True)
    with tempfile.TemporaryDirectory() as folder:
        path = TinyModels(Path(folder)).path("qwen3", head_dim=64, max_position_embeddings=2048)
        runner = make_runner(
            path,
            max_num_seqs=24,
            max_num_batched_tokens=2048,
            max_model_len=2000,
            dtype="bfloat16",
            load=False,
        )
        runner.load_model()
        runner.determine_available_memory()
        runner.initialize_kv_cache(400)
        warm_up(runner)
        runner.steps.rehearse_all()
        graphs = EagerGraphs(runner.ready.steps, decodes=decode_sizes(24), prompts=prompt_sizes(2000))
        kinds = (
            [random],
            [GREEDY],
            sampled.MIXED,
            [random, *sampled.MIXED, SamplingParams(logprobs=5), SamplingParams(logprobs=20)],
            [SamplingParams(logprobs=1, prompt_logprobs=2, temperature=0.5)],
            [SamplingParams(logit_bias=dict.fromkeys(range(n), 1.0)) for n in (2, 5, 16)],
            [SamplingParams(min_tokens=2, stop_token_ids=list(range(90, 90 + n))) for n in (2, 5, 16)],
        )

        def serve() -> None:
            before = set(seen)
            for params in kinds:
                for count in (1, 2, 5, 16, 24):
                    prompts = prompts_of(*(lengths[i % len(lengths)] for i in range(count)))
                    generate(
                        runner,
                        prompts,
                        max_tokens=[3 + i % 4 for i in range(count)],
                        params=[params[i % len(params)] for i in range(count)],
                        num_blocks=400,
                    )
            new = [line for line in seen if line not in before]
            print(*new, sep="\n", end="\n" * bool(new))
            print(f"{len(before)} before, {len(new)} new", file=sys.stderr)

        serve()
        with torch.inference_mode():
            for prompts, sizes in ((False, graphs.sizes.decodes), (True, graphs.sizes.prompts)):
                runner.ready.steps.set_padding(prompts=prompts)
                for size in sizes:  # as captured
                    for samples in (True, False):
                        runner.ready.steps.run(FixedStep(size, samples, prompts))
            runner.ready.steps.forget_runs()
        set_graphs(runner, graphs)
        serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
