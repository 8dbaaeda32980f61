"""Dynamic RoPE on V1: in any company, each row has the tokens that transformers gives it alone."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from dodona import LLM, SamplingParams
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.machine.environment import Environment, assumed_gpu
from dodona.oracle.select import select_runner
from dodona.runners.v1.device_serving import _reasons_against
from dodona.runners.v1.dynamic_rope import install_dynamic_rope, rotary_lengths
from tests.support.equal_tokens import EqualTokens
from tests.support.tiny_models import VOCAB_SIZE
from tests.v1.driver import make_runner

ORIGINAL, FACTOR, NEW = 48, 4.0, 24
ROPE = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": FACTOR}
NO_GPU = Environment(has_triton=False, platform="cpu")


@pytest.fixture(scope="module")
def path(tiny_models):
    return tiny_models.path("llama", max_position_embeddings=ORIGINAL, rope_parameters=ROPE)


def alone(path, prompt, count):
    """transformers' greedy tokens by a model that has seen nothing yet."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    ids = torch.tensor([prompt])
    out = model.eval().generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=count, max_new_tokens=count
    )
    return out[0, len(prompt) :].tolist()


def last_logits(path, prompt, ids):
    """Of the last of `ids`, which begin with `prompt`, as generate() computes them."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        out = model(input_ids=torch.tensor([list(prompt)]), use_cache=True)
        for token in ids[len(prompt) :]:
            out = model(input_ids=torch.tensor([[token]]), past_key_values=out.past_key_values)
    return out.logits[0, -1]


@pytest.mark.parametrize("blocks", [None, 48], ids=["", "preemption"])
def test_each_row_has_its_tokens_alone(blocks, path):
    generator = torch.Generator().manual_seed(1)
    # Never beyond, growing beyond, beyond from the first token on; several chunks.
    lengths = (5, 40, 47, 60, 100)
    prompts = [torch.randint(2, VOCAB_SIZE, (n,), generator=generator).tolist() for n in lengths]
    # The same beginning in a prompt of another length: its keys have other frequencies.
    prompts.append([*prompts[3], *prompts[1]])
    with LLM(
        path, device="cpu", dtype="float32", max_model_len=int(ORIGINAL * FACTOR), block_size=4,
        max_num_batched_tokens=32, max_num_seqs=4, num_gpu_blocks_override=blocks, enable_prefix_caching=True,
    ) as llm:  # fmt: skip
        outputs = llm.generate(
            [{"prompt_token_ids": p} for p in prompts],
            SamplingParams(temperature=0.0, max_tokens=NEW, ignore_eos=True),
            use_tqdm=False,
        )
    for prompt, output in zip(prompts, outputs, strict=True):
        equal = EqualTokens(lambda ids, prompt=prompt: last_logits(path, prompt, ids))
        equal.compare(prompt, alone(path, prompt, NEW), list(output.outputs[0].token_ids))
        equal.check()


def test_the_frequencies_are_those_of_transformers(path):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    lengths = torch.tensor([1, ORIGINAL, ORIGINAL + 1, 150])
    positions = torch.tensor([[0, 47, 48, 149]])
    assert install_dynamic_rope(model)
    with rotary_lengths(lengths):
        cos, sin = model.model.rotary_emb(torch.zeros(1, 4, 8), positions)
    for i, length in enumerate(lengths.tolist()):
        expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](model.config, "cpu", seq_len=length)
        angles = torch.cat((positions[0, i] * expected,) * 2)
        torch.testing.assert_close(cos[0, i], angles.cos(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(sin[0, i], angles.sin(), rtol=1e-4, atol=1e-4)


def test_a_model_of_another_rope_has_nothing_to_install(tiny_models):
    model = AutoModelForCausalLM.from_pretrained(tiny_models.path("llama"))
    assert not install_dynamic_rope(model)


def test_an_unknown_embedding_is_refused():
    class Odd(torch.nn.Module):
        rope_type = "dynamic"

        def __init__(self):
            super().__init__()
            self.inv_freq = torch.ones(4)
            self.config = type(
                "C", (), {"rope_parameters": {**ROPE, "rope_theta": 100.0}, "max_position_embeddings": 8}
            )

        def forward(self, x, positions):
            angles = positions[..., None] * torch.arange(4)
            return angles.cos() * 0 + self.inv_freq.sum(), angles.sin()

    with pytest.raises(UnsupportedConfiguration, match=r"Odd: .*inv_freq"):
        install_dynamic_rope(torch.nn.ModuleList([Odd()]))


@pytest.mark.parametrize("max_model_len", [ORIGINAL, ORIGINAL + 1])
def test_a_verdict_says_that_the_host_lays_out_the_steps(path, max_model_len):
    runner = make_runner(path, max_model_len=max_model_len)
    reasons = _reasons_against(runner._loaded.model, runner.config, runner.limits, None)
    assert bool(reasons) == (max_model_len > ORIGINAL)
    config = EngineConfig.from_flat(str(path), max_model_len=max_model_len)
    verdict = select_runner(config, environment=assumed_gpu("v1"))
    told = "steps-on-the-host" in {found.consequence for found in verdict.consequences}
    assert told == (max_model_len > ORIGINAL)


def test_what_needs_more_is_refused_by_name(path):
    beyond = int(ORIGINAL * FACTOR)

    def select(**flat):
        config = EngineConfig.from_flat(str(path), **{"max_model_len": beyond, **flat})
        return select_runner(config, environment=NO_GPU)

    assert select().runner == "v1"
    with pytest.raises(UnsupportedConfiguration, match="length-dependent-rope"):
        select(tensor_parallel_size=2)
    with pytest.raises(UnsupportedConfiguration, match="length-dependent-rope"):
        select(kv_offloading_size=1.0)
    assert select(tensor_parallel_size=2, max_model_len=ORIGINAL).runner == "v1"
    with pytest.raises(
        UnsupportedConfiguration, match=r"over the 48 positions.*times 4 \(dynamic RoPE\).*at most 192"
    ):
        LLM(path, device="cpu", max_model_len=beyond + 1)
