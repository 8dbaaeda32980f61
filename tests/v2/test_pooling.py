"""Pooling on V2: embeddings and classes by its own model code, equal to transformers'."""

from __future__ import annotations

import pytest
import torch
import transformers
from safetensors.torch import load_file

from checkpoints.quantize import quantize_checkpoint
from dodona import LLM, PoolingParams
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.machine.environment import assumed_gpu
from dodona.oracle.select import select_runner
from tests.support import pooling_table
from tests.support.quantized_reference import plain_model
from tests.support.tiny_models import make_model
from tests.v2.drive import DEVICE

ENGINE = {"device": DEVICE, "dtype": "float32", "max_model_len": 64, "runner": "pooling"}
PROMPTS = pooling_table.prompts()[:2]
"""Of 5 and 17 tokens: one and two blocks, and more than a window."""
GIVEN = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
ATOL = 1e-5


def make_llm(path, **flat):
    """An LLM on V2; without a GPU, Triton's interpreter runs the kernels."""
    verdict = select_runner(
        EngineConfig.from_flat(str(path), skip_tokenizer_init=True, **{**ENGINE, **flat, "device": "auto"}),
        environment=assumed_gpu(),
    )
    assert verdict.runner == "v2", verdict.explain()
    return LLM.from_verdict(verdict)


def save(directory, family, auto_class="AutoModelForCausalLM", **config):
    """A tiny model of a family, by one of transformers' classes; config.json as that class writes it."""
    base = make_model(family, head_dim=16, **config)
    if auto_class != "AutoModelForCausalLM":
        base.config.num_labels = 3
        head = getattr(transformers, auto_class).from_config(base.config, dtype=torch.float32).eval()
        body = head if auto_class == "AutoModel" else head.model
        body.load_state_dict(base.model.state_dict())
        base = head
    base.save_pretrained(directory)
    return directory


def outputs_of(path, auto_class="AutoModel", prompts=PROMPTS):
    """transformers' last hidden states [tokens, size], or logits, of each prompt alone."""
    model = getattr(transformers, auto_class).from_pretrained(
        path, attn_implementation="eager", dtype=torch.float32
    )
    found = []
    for prompt in prompts:
        with torch.inference_mode():
            output = model.eval()(input_ids=torch.tensor([prompt]))
        found.append(output.logits[0] if "logits" in output else output.last_hidden_state[0])
    return found


def assert_close(actual, expected):
    torch.testing.assert_close(torch.as_tensor(actual), expected, atol=ATOL, rtol=ATOL)


# Norms of queries and keys, and a window; Llama 3's frequencies below.
@pytest.mark.parametrize("family", ["qwen3", "mistral"])
def test_hidden_states_are_pooled(tmp_path, family):
    path = save(tmp_path, family)
    states = outputs_of(path)
    with make_llm(path, max_num_batched_tokens=64, pooler_config={"pooling_type": "MEAN"}) as llm:
        means = llm.embed(GIVEN, use_tqdm=False)
        raw = llm.embed(GIVEN[0], PoolingParams(use_activation=False), use_tqdm=False)[0]
    for output, expected in zip(means, states, strict=True):
        assert_close(output.outputs.embedding, torch.nn.functional.normalize(expected.mean(0), dim=0))
    assert_close(raw.outputs.embedding, states[0].mean(0))


def test_a_model_without_an_output_layer_embeds_by_its_last_token(tmp_path):
    path = save(tmp_path, "qwen3", "AutoModel")
    assert "embed_tokens.weight" in load_file(path / "model.safetensors")
    with make_llm(path, runner="auto", block_size=32) as llm:
        found = llm.embed([[7], *PROMPTS], use_tqdm=False)
        half = {"norm.weight": load_file(path / "model.safetensors")["norm.weight"] * 0.5}
        llm.load_weights([("model.norm.weight", half["norm.weight"])])
        llm.sleep()
        llm.wake_up()
        halved = llm.embed(GIVEN[0], PoolingParams(use_activation=False), use_tqdm=False)[0]
        llm.reload_weights()
        again = llm.embed([PROMPTS[0]], use_tqdm=False)[0]
    states = outputs_of(path, prompts=[[7], *PROMPTS])
    for output, expected in zip(found, states, strict=True):
        assert_close(output.outputs.embedding, torch.nn.functional.normalize(expected[-1], dim=0))
    assert_close(again.outputs.embedding, torch.tensor(found[1].outputs.embedding))
    assert_close(halved.outputs.embedding, states[1][-1] * 0.5)


@pytest.mark.parametrize(
    ("family", "auto_class"),
    [
        ("llama-rope", "AutoModelForSequenceClassification"),
        ("mistral", "AutoModelForTokenClassification"),
    ],
)
def test_a_classifier_gives_transformers_logits(tmp_path, family, auto_class):
    path = save(tmp_path, family, auto_class, pad_token_id=5)
    # The last token that isn't padding decides on a sequence.
    prompts = [PROMPTS[0], [9, 8, 5, 5], [5, 5]]
    expected = outputs_of(path, auto_class, prompts)
    with make_llm(path) as llm:
        found = llm.encode(
            [{"prompt_token_ids": p} for p in prompts], PoolingParams(use_activation=False), use_tqdm=False
        )
    for output, logits in zip(found, expected, strict=True):
        assert_close(output.outputs.data, logits)


def test_quantized_weights_pool(tmp_path):
    path = save(tmp_path / "dense", "qwen3")
    quantize_checkpoint(path, tmp_path / "quantized", "w8a16")
    reference = plain_model(tmp_path / "quantized").model
    with make_llm(tmp_path / "quantized") as llm:
        found = llm.embed(GIVEN, PoolingParams(use_activation=False), use_tqdm=False)
    for output, prompt in zip(found, PROMPTS, strict=True):
        with torch.inference_mode():
            expected = reference(input_ids=torch.tensor([prompt])).last_hidden_state[0, -1]
        assert_close(output.outputs.embedding, expected)


def test_what_v2_does_not_pool(tmp_path):
    path = save(tmp_path, "llama")

    def refusal(**flat):
        config = EngineConfig.from_flat(str(path), **{**ENGINE, **flat})
        with pytest.raises(UnsupportedConfiguration) as caught:
            select_runner(config, environment=assumed_gpu("v2"))
        return {found.rule for found in caught.value.verdict.refusals}

    assert "draft-runner" in refusal(runner="draft")
    assert "pooling-combinations" in refusal(
        speculative_config={"method": "ngram", "num_speculative_tokens": 2}
    )
