"""Quantized checkpoints on V2: the tokens are those of a plain model whose layers do what the formats say."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.quantize import FORMATS, quantize_checkpoint
from dodona.kernels.linear.quantized_weight import dequantize
from dodona.oracle.errors import ConfigError, UnsupportedConfiguration
from dodona.oracle.machine.environment import Environment
from dodona.oracle.select import select_runner
from dodona.runners.v2.capabilities import QUANTIZATION_SCHEMES
from dodona.runners.v2.models.weights import quantized_tensors
from tests.support.equal_tokens import EqualTokens
from tests.support.quantized_reference import plain_model
from tests.support.tiny_models import VOCAB_SIZE
from tests.v2.drive import DEVICE, generate, make_runner

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "initializer_range": 0.2, "head_dim": 16,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
SERVED = (
    "w8a16", "w4a16", "w4a16-asym", "w8a8-int8", "w8a8-fp8", "w8a8-fp8-block", "fp8", "gptq", "gptq-8bit",
    "awq",
)  # fmt: skip
GPU = Environment(has_triton=True, platform="cuda", compute_capability=90)
MAX_TOKENS = 3


@pytest.fixture(scope="module")
def quantized(tiny_models, tmp_path_factory):
    """A quantized copy of a tiny Qwen3, by format."""
    source, root = tiny_models.path("qwen3", **SIZES), tmp_path_factory.mktemp("quantized")

    def get(name):
        if not (root / name).exists():
            quantize_checkpoint(source, root / name, name, prompts=[[3, 5, 7]])
        return root / name

    return get


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(2, VOCAB_SIZE, (n,), generator=generator).tolist() for n in (9, 4)]


@pytest.mark.parametrize("name", SERVED)
def test_tokens_are_those_of_the_plain_model(name, quantized, prompts):
    path = quantized(name)
    assert select_runner(str(path), environment=GPU).runner == "v2"
    plain = plain_model(path).to(DEVICE)

    def last_logits(ids):
        with torch.inference_mode():
            return plain(input_ids=torch.tensor([list(ids)], device=DEVICE)).logits[0, -1].cpu()

    equal = EqualTokens(last_logits, half_precision="a8" in name or name == "fp8")
    runner = make_runner(path)
    # Together, and one alone, whose decodes are steps of one token.
    for given in (prompts, prompts[1:]):
        outputs = generate(runner, given, max_tokens=MAX_TOKENS).outputs
        for prompt, output in zip(given, outputs, strict=True):
            expected = plain.generate(
                torch.tensor([prompt], device=DEVICE), do_sample=False, min_new_tokens=MAX_TOKENS,
                max_new_tokens=MAX_TOKENS,
            )  # fmt: skip
            equal.compare(prompt, expected[0, len(prompt) :].tolist(), output)
    equal.check()


def test_a_scheme_is_served_by_v2_just_where_its_capabilities_say(quantized):
    for name in FORMATS:
        verdict = select_runner(str(quantized(name)), environment=GPU)
        assert (verdict.runner == "v2") == (name in SERVED), name
        if verdict.runner == "v1":
            with pytest.raises(UnsupportedConfiguration, match="quantized-weights"):
                make_runner(quantized(name))
    old = Environment(has_triton=True, platform="cuda", compute_capability=80)
    assert select_runner(str(quantized("fp8")), environment=old).runner == "v1"
    assert select_runner(str(quantized("awq")), environment=old).runner == "v2"
    assert len(QUANTIZATION_SCHEMES) == 6


@pytest.mark.parametrize("method", ["fp8", "int8"])
def test_an_unquantized_checkpoint_is_quantized_while_it_is_read(method, tiny_models, prompts):
    runner = make_runner(tiny_models.path("qwen3", **SIZES), quantization=method)
    layer = runner.loaded.model.weights.layers[0]
    assert layer.qkv.weight.kind == method
    outputs = generate(runner, prompts, max_tokens=3).outputs
    runner.reload_weights()
    assert generate(runner, prompts, max_tokens=3).outputs == outputs


def test_random_weights_are_of_the_usual_size(quantized):
    for name in ("w4a16-asym", "w8a16", "w8a8-fp8-block"):
        runner = make_runner(quantized(name), load_format="dummy")
        for projection in runner.loaded.model.weights.layers[0].projections:
            assert 0.015 < dequantize(projection.weight).std() < 0.025, name


def test_scales_by_either_of_their_names(quantized, tmp_path):
    """One per tensor, by the name that transformers' own FP8 layers store, and by the other."""
    source = quantized("w8a8-fp8-static")
    stored = {
        n: t for n, t in load_file(source / "model.safetensors").items() if not n.endswith("input_scale")
    }
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    found = []
    for name in ("weight_scale", "weight_scale_inv"):
        path = tmp_path / name
        path.mkdir()
        renamed = {key.replace("weight_scale", name): tensor for key, tensor in stored.items()}
        save_file(renamed, path / "model.safetensors", {"format": "pt"})
        (path / "config.json").write_text(json.dumps(config))
        assert select_runner(str(path), environment=GPU).runner == "v2"
        found.append(quantized_tensors(make_runner(path).loaded.model.weights))
    one, other = found
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor.view(torch.uint8), other[name].view(torch.uint8)), name


def test_a_reload_is_in_place_and_whole(quantized, tmp_path):
    path = quantized("gptq")
    runner = make_runner(path)
    weight = runner.loaded.model.weights.layers[0].gate_up.weight
    before, address = weight.data.clone(), weight.data.data_ptr()
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.0.mlp.down_proj.scales"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((path / "config.json").read_text())
    weight.data.zero_()
    with pytest.raises(ConfigError, match=r"1 of \d+ tensors are in none.*down_proj\.scales"):
        runner.reload_weights(tmp_path)
    assert not weight.data.any()
    runner.reload_weights()
    assert torch.equal(weight.data, before)
    assert weight.data.data_ptr() == address


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, n: {**t, n: t[n][:-1].clone()}, "has shape"),
        (lambda t, n: {**t, n: t[n].short()}, "has type I16, expected one of I32"),
        (lambda t, n: {**t, n + "s": t[n].clone()}, "unexpected tensor"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message, quantized, tmp_path):
    name = "model.layers.0.self_attn.k_proj.qweight"
    tensors = change(load_file(quantized("awq") / "model.safetensors"), name)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((quantized("awq") / "config.json").read_text())
    with pytest.raises(ConfigError, match=message) as caught:
        make_runner(tmp_path)
    assert name in str(caught.value)
