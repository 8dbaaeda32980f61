"""Quantized checkpoints under V2's tensor parallelism: log-probabilities are those of a plain model whose
layers do what the formats say. Where activations are rounded per token, each rank rounds its own part of a
layer's inputs, and so does the plain model; elsewhere it is one rank's."""

from __future__ import annotations

import json

import pytest
import torch

from checkpoints.quantize import quantize_checkpoint
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.select import select_runner
from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from tests.distributed.test_v2_tensor_parallel import equal_on_ranks
from tests.distributed.v2_ranks import on_ranks
from tests.support.quantized_reference import plain_model
from tests.v2.drive import DEVICE, generate
from tests.v2.test_greedy_tokens import prompts_of

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2,
}  # fmt: skip
BLOCKS = {**SIZES, "intermediate_size": 256, "head_dim": 128, "num_attention_heads": 2}
"""Two ranks have a block of 128 each."""
BFLOAT16 = {
    **BLOCKS,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "initializer_range": 0.06,
}
"""Sizes that all kernels serve."""
GREEDY = SamplingParams(temperature=0.0, logprobs=5, ignore_eos=True)


@pytest.fixture(scope="module")
def quantized(tiny_models, tmp_path_factory):
    """A quantized copy of a tiny Qwen3, by format and sizes."""
    root = tmp_path_factory.mktemp("quantized")

    def get(name, sizes):
        path = root / f"{name}-{sizes['intermediate_size']}"
        if not path.exists():
            quantize_checkpoint(
                tiny_models.path("qwen3", **sizes), path, name.replace("w8a16-fp8", "w8a8-fp8")
            )
            if name == "w8a16-fp8":
                config = json.loads((path / "config.json").read_text())
                config["quantization_config"]["config_groups"]["group_0"]["input_activations"] = None
                (path / "config.json").write_text(json.dumps(config))
        return path

    return get


def check(plain, prompts, found, *, tolerance):
    """`found`: for each prompt, the tokens, and for each of these the entries of log-probabilities."""
    for prompt, (tokens, entries) in zip(prompts, found, strict=True):
        with torch.inference_mode():
            logits = plain(input_ids=torch.tensor([[*prompt, *tokens[:-1]]], device=DEVICE)).logits[0]
        expected = logits[len(prompt) - 1 :].float().log_softmax(-1).cpu()
        for row, token, (ids, values) in zip(expected, tokens, entries, strict=True):
            assert row[token] >= row.max() - 2 * tolerance
            assert (row[list(ids)] - torch.tensor(values)).abs().max() < tolerance


def rounds(name):
    """Whether activations are rounded."""
    return "a8" in name or name == "fp8"


def greedy(runner, prompts, max_tokens):
    run = generate(runner, prompts, max_tokens=max_tokens, params=GREEDY)
    return [
        (list(tokens), [(e.token_ids, e.logprobs) for e in request.logprobs])
        for tokens, request in zip(run.outputs, run.requests, strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "ranks", "sizes"),
    [
        ("w8a16", 2, SIZES),
        ("w4a16-asym", 2, SIZES),
        ("w8a8-int8", 4, SIZES),
        ("w8a8-fp8", 2, SIZES),
        ("w8a16-fp8", 2, SIZES),
        ("fp8", 2, BLOCKS),
        ("gptq", 2, SIZES),
    ],
)
def test_log_probabilities_are_those_of_the_plain_model(name, ranks, sizes, quantized):
    """A rounding that another order of a sum moves to the next number changes them by up to 0.005; scales of
    whole rows in place of the ranks' own by 0.02."""
    path, prompts = quantized(name, sizes), prompts_of(5)
    found = equal_on_ranks(
        on_ranks(path, lambda runner: greedy(runner, prompts, 2), tensor_parallel_size=ranks)
    )
    plain = plain_model(path, ranks=ranks).to(DEVICE)
    check(plain, prompts, found, tolerance=5e-3 if rounds(name) else 1e-4)


def test_reload_and_sleep(quantized):
    def work(runner):
        first = greedy(runner, prompts_of(6), 1)
        runner.sleep(level=2)
        runner.wake_up()
        assert len(runner.missing_weights()) > 10
        runner.reload_weights()
        assert not runner.missing_weights()
        return first, greedy(runner, prompts_of(6), 1)

    first, awake = equal_on_ranks(on_ranks(quantized("gptq", SIZES), work, tensor_parallel_size=2))
    assert first == awake


@pytest.mark.gpu
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(
    "name", ["w8a16", "w4a16", "w4a16-asym", "w8a8-int8", "w8a8-fp8", "w8a16-fp8", "fp8", "gptq", "awq"]
)
def test_bfloat16(name, ranks, quantized):
    """One decode, a few, and prompts have kernels of their own; the plain model computes in fp32. Inputs that
    are bfloat16 before they are rounded change its own log-probabilities by up to 0.2."""
    path, prompts = quantized(name, BFLOAT16), prompts_of(40, 7, 23)

    def work(runner):
        return [greedy(runner, some, 6) for some in (prompts[:1], prompts)]

    alone, together = equal_on_ranks(on_ranks(path, work, dtype="bfloat16", tensor_parallel_size=ranks))
    plain = plain_model(path, ranks=ranks).to(DEVICE)
    tolerance = 0.3 if rounds(name) else 0.1
    check(plain, prompts[:1], alone, tolerance=tolerance)
    check(plain, prompts, together, tolerance=tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", ["w4a16", "fp8", "w8a8-int8"])
def test_processes_on_several_gpus(name, ranks, quantized):
    """Under the whole engine, with captured graphs and all launches between the ranks.

    The plain model's own log-probabilities change by up to 0.04 where its embeddings change by 1e-7 of their
    size and its activations are rounded.
    """
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    path, prompts = quantized(name, BFLOAT16), prompts_of(40, 7, 23)
    config = EngineConfig.from_flat(
        str(path), dtype="float32", skip_tokenizer_init=True, max_model_len=128, max_num_seqs=4,
        num_gpu_blocks_override=64, tensor_parallel_size=ranks,
    )  # fmt: skip
    verdict = select_runner(config)
    assert verdict.runner == "v2"
    params = SamplingParams(temperature=0.0, max_tokens=12, logprobs=5, ignore_eos=True)
    with LLM.from_verdict(verdict) as llm:
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    found = [
        (
            list(output.outputs[0].token_ids),
            [(tuple(each), [e.logprob for e in each.values()]) for each in output.outputs[0].logprobs],
        )
        for output in outputs
    ]
    tolerance = 5e-2 if rounds(name) else 1e-4
    check(plain_model(path, ranks=ranks).to(DEVICE), prompts, found, tolerance=tolerance)
