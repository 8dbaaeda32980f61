"""Two stages of a pipeline at work at once: what is told to ranks that don't sample, and tokens that stay
those of one rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.machine.environment import Environment
from dodona.oracle.select import select_runner
from dodona.runners.distributed.runner import DistributedRunner
from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from tests.distributed.thread_workers import use_threads

QWEN3 = Path(__file__).parents[2] / "checkpoints" / "qwen3"
CPU = Environment(has_triton=False, platform="cpu")
PROMPTS = [[5 + (i * 31 + j * j) % 370 for j in range(n)] for i, n in enumerate((3, 40, 9, 1, 17, 6, 23))]
COUNTS = (14, 9, 20, 12, 5, 16, 8)


def test_tokens_with_aborts_and_calls_in_between(monkeypatch: pytest.MonkeyPatch, reference) -> None:
    """Rows of aborted requests go to others while steps are under way."""
    use_threads(monkeypatch)
    most: list[int] = []
    execute = DistributedRunner.execute_model

    def counting(runner: DistributedRunner, step) -> None:
        execute(runner, step)
        most.append(len(runner._in_flight))

    monkeypatch.setattr(DistributedRunner, "execute_model", counting)
    config = EngineConfig.from_flat(
        str(QWEN3), device="cpu", dtype="float32", pipeline_parallel_size=2, max_num_seqs=4, block_size=4,
        max_num_batched_tokens=12, num_gpu_blocks_override=30, max_model_len=64,
    )  # fmt: skip
    plain = reference(QWEN3)
    with LLM.from_verdict(select_runner(config, environment=CPU)) as llm:
        endless = SamplingParams(temperature=0.0, max_tokens=50, ignore_eos=True)
        for prompt in PROMPTS[:2]:
            stream = llm.stream({"prompt_token_ids": prompt}, endless)
            next(stream)
            llm.collective_rpc("missing_weights")
            next(stream)
            stream.close()  # aborts it
            params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in COUNTS]
            outputs = llm.generate([{"prompt_token_ids": p} for p in PROMPTS], params, use_tqdm=False)
            for own, count, output in zip(PROMPTS, COUNTS, outputs, strict=True):
                tokens = list(output.outputs[0].token_ids)
                assert len(tokens) == count
                assert tokens == plain.logits([*own, *tokens[:-1]]).argmax(-1)[len(own) - 1 :].tolist()
        assert max(most) == 2


@pytest.mark.parametrize(("size", "replicas"), [("pipeline_parallel_size", 1), ("data_parallel_size", 2)])
def test_each_rank_has_the_blocks_that_are_useful(monkeypatch: pytest.MonkeyPatch, size, replicas) -> None:
    """The memory that ranks on a CPU share is divided, not what each of them needs of it."""
    use_threads(monkeypatch)
    config = EngineConfig.from_flat(
        str(QWEN3), device="cpu", dtype="float32", max_num_seqs=4, block_size=4, max_model_len=64, **{size: 2}
    )  # fmt: skip
    with LLM.from_verdict(select_runner(config, environment=CPU)) as llm:
        assert llm.num_kv_blocks == replicas * 4 * 64 // 4
