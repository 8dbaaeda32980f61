"""V2's greedy tokens against transformers' own `generate`, through the real scheduler.

On a CPU Triton's interpreter runs the kernels, eagerly; on a GPU decode steps are CUDA graphs.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from dodona.runners.sampling.params import SamplingParams
from tests.support.equal_tokens import EqualTokens
from tests.support.tiny_models import VOCAB_SIZE
from tests.v2.drive import DEVICE, generate, make_runner

FAMILIES = ("qwen3", "llama", "llama-rope", "mistral", "mistral-full")
GRAPHS_AND_EAGER = [pytest.param(False, marks=pytest.mark.gpu, id="graphs"), pytest.param(True, id="eager")]
MAX_TOKENS = 6


def prompts_of(*lengths: int, seed: int = 3) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, VOCAB_SIZE, (n,), generator=generator).tolist() for n in lengths]


class Reference:
    """transformers' model of a directory, on the device that V2 uses."""

    def __init__(self, path, dtype=torch.float32):
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(DEVICE).eval()

    def logits(self, token_ids):
        with torch.inference_mode():
            return self.model(torch.tensor([token_ids], device=DEVICE)).logits[0, -1].cpu()

    def generate(self, prompt, max_tokens):
        ids = torch.tensor([prompt], device=DEVICE)
        with torch.inference_mode():
            output = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False
            )
        return output[0, len(prompt) :].tolist()

    def check(self, prompts, outputs, max_tokens=MAX_TOKENS, **tolerance):
        equal = EqualTokens(self.logits, **tolerance)
        for prompt, output in zip(prompts, outputs, strict=True):
            equal.compare(prompt, self.generate(prompt, max_tokens), output)
        equal.check()


@pytest.mark.parametrize("enforce_eager", GRAPHS_AND_EAGER)
@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_lengths(tiny_models, family, enforce_eager):
    path = tiny_models.path(family, head_dim=16)
    prompts = prompts_of(1, 23, 40, 7, 17)
    runner = make_runner(path, enforce_eager=enforce_eager)
    run = generate(runner, prompts, max_tokens=MAX_TOKENS)
    Reference(path).check(prompts, run.outputs)
    assert run.scheduler.num_free_rows == 4


def test_tied_embeddings_and_odd_group(tiny_models):
    path = tiny_models.path(
        "qwen3", head_dim=32, num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True
    )
    prompts = prompts_of(12, 3)
    Reference(path).check(prompts, generate(make_runner(path), prompts, max_tokens=MAX_TOKENS).outputs)


@pytest.mark.parametrize("family", ["qwen3", "mistral"])
def test_chunked_prefill(tiny_models, family):
    path = tiny_models.path(family, head_dim=16)
    prompts = prompts_of(50, 21)
    runner = make_runner(path, max_num_batched_tokens=9, max_num_seqs=3)
    run = generate(runner, prompts, max_tokens=MAX_TOKENS)
    assert run.steps >= 8 + MAX_TOKENS
    Reference(path).check(prompts, run.outputs)


def test_preemption(tiny_models):
    path = tiny_models.path("llama", head_dim=16)
    prompts = prompts_of(30, 28)
    run = generate(make_runner(path, num_blocks=5), prompts, max_tokens=8, num_blocks=5)
    assert run.scheduler.num_preemptions > 0
    assert run.scheduler.blocks.num_free == 5
    Reference(path).check(prompts, run.outputs, max_tokens=8)


def test_prefix_caching(tiny_models):
    path = tiny_models.path("qwen3", head_dim=16)
    shared = prompts_of(33)[0]
    prompts = [[*shared, 5, 6], [*shared, 7], shared[:20]]
    runner = make_runner(path)
    first = generate(runner, prompts, max_tokens=MAX_TOKENS, enable_prefix_caching=True)
    again = generate(
        runner, prompts, max_tokens=MAX_TOKENS, enable_prefix_caching=True, scheduler=first.scheduler
    )
    assert [request.num_cached_tokens for request in again.requests] == [32, 32, 16]
    reference = Reference(path)
    reference.check(prompts, first.outputs)
    reference.check(prompts, again.outputs)


@pytest.mark.parametrize("in_flight", [1, 2])
def test_steps_in_flight_make_no_difference(tiny_models, in_flight):
    path = tiny_models.path("llama", head_dim=16)
    prompts = prompts_of(5, 18)
    run = generate(make_runner(path), prompts, max_tokens=[3, 8], in_flight=in_flight)
    reference = Reference(path)
    assert run.outputs == [reference.generate(prompts[0], 3), reference.generate(prompts[1], 8)]


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16(tiny_models, family):
    # Wide random weights would make the model chaotic: roundings grow from layer to layer, and more than ties
    # change.
    sizes = {"head_dim": 64, "hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.06}
    path = tiny_models.path(family, **sizes)
    prompts = prompts_of(1, 23, 40, 7, 100, 64)
    runner = make_runner(path, dtype="bfloat16", max_num_seqs=8)
    run = generate(runner, prompts, max_tokens=24)
    Reference(path, torch.bfloat16).check(
        prompts, run.outputs, max_tokens=24, half_precision=True, max_ties=4
    )


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_as_near_to_float32_as_transformers(tiny_models, family):
    path = tiny_models.path(family, head_dim=64, hidden_size=128, intermediate_size=256)
    prompt = prompts_of(200)[0]
    params = SamplingParams(temperature=0.0, prompt_logprobs=0, ignore_eos=True)
    runner = make_runner(path, dtype="bfloat16")
    request = generate(runner, [prompt], max_tokens=1, params=params).requests[0]
    ours = torch.tensor([entry.logprobs[0] for entry in request.prompt_logprobs])
    exact, theirs = (
        prompt_logprobs(Reference(path, d).model, prompt) for d in (torch.float32, torch.bfloat16)
    )
    assert (ours - exact).square().mean() <= 1.5 * (theirs - exact).square().mean()


def prompt_logprobs(model, prompt):
    with torch.inference_mode():
        logits = model(torch.tensor([prompt], device=DEVICE)).logits[0, :-1].float().cpu()
    return logits.log_softmax(-1).gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
