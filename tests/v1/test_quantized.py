"""Quantized checkpoints on V1: the tokens are those of a plain model whose layers do what the formats say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from checkpoints.quantize import FORMATS, quantize_checkpoint
from dodona.kernels.linear.quantized_weight import dequantize, quantize_weight
from dodona.oracle.errors import ConfigError, UnsupportedConfiguration
from dodona.oracle.machine.environment import Environment
from dodona.oracle.select import select_runner
from dodona.runners.quantization.linear import QuantizedLinear
from dodona.runners.quantization.replacement import quantized_layers
from dodona.runners.v1 import loading
from tests.support.equal_tokens import EqualTokens
from tests.support.every_family import make_model, tiny_config
from tests.support.quantized_reference import dense_weight, plain_model
from tests.support.tiny_models import VOCAB_SIZE
from tests.v1.driver import Driver, make_runner

SIZES = {"hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.15}
NO_GPU = Environment(has_triton=False, platform="cpu")


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(2, VOCAB_SIZE, (n,), generator=generator).tolist() for n in (1, 9, 23)]


@pytest.fixture(scope="module")
def quantized(tiny_models, prompts, tmp_path_factory):
    """A quantized copy of a tiny Qwen3, by format."""
    source, root = tiny_models.path("qwen3", **SIZES), tmp_path_factory.mktemp("quantized")

    def get(name: str) -> Path:
        if not (root / name).exists():
            quantize_checkpoint(source, root / name, name, prompts=prompts)
        return root / name

    return get


@pytest.mark.parametrize("name", FORMATS)
def test_tokens_are_those_of_the_plain_model(name, quantized, prompts):
    path = quantized(name)
    assert select_runner(str(path), environment=NO_GPU).runner == "v1"
    runner = make_runner(path)
    plain = plain_model(path)
    rounds = "a8" in name or name == "fp8"
    # Rounding makes a step of a last bit: then only clear decisions can be compared.
    equal = EqualTokens(lambda ids: _last_logits(plain, ids), half_precision=rounds)
    for job in Driver(runner, budget=13).generate(prompts, [12] * len(prompts)):
        expected = plain.generate(
            torch.tensor([job.prompt]), do_sample=False, min_new_tokens=12, max_new_tokens=12
        )
        equal.compare(job.prompt, expected[0, len(job.prompt) :].tolist(), job.output)
    equal.check()


def _last_logits(model, ids):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([list(ids)])).logits[0, -1]


def test_scales_by_the_names_of_transformers_own_fp8_layers(quantized, prompts, tmp_path):
    """A scale per tensor is `weight_scale_inv` [] and `activation_scale` [] there."""
    source, names = (
        quantized("w8a8-fp8-static"),
        {"weight_scale": "weight_scale_inv", "input_scale": "activation_scale"},
    )
    stored = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        layer, _, part = name.rpartition(".")
        stored[f"{layer}.{names.get(part, part)}"] = tensor.view(()) if part in names else tensor
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None,
        "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert select_runner(str(tmp_path), environment=NO_GPU).runner == "v1"
    expected, found = (
        [job.output for job in Driver(make_runner(path)).generate(prompts, [8] * len(prompts))]
        for path in (source, tmp_path)
    )
    assert found == expected


def test_weights_stay_compressed(quantized):
    sizes = {}
    for name in ("w4a16", "w8a16"):
        runner = make_runner(quantized(name))
        layers = quantized_layers(runner._loaded.model.model)
        assert len(layers) == 2 * 7
        assert not any(isinstance(m, torch.nn.Linear) for n, m in _modules(runner) if "_proj" in n)
        values = sum(layer.in_features * layer.out_features for layer in layers.values())
        sizes[name] = sum(b.nbytes for layer in layers.values() for b in layer.buffers()) / values
        Driver(runner).generate([[5, 6, 7]], [3])
        assert sizes[name] == sum(b.nbytes for layer in layers.values() for b in layer.buffers()) / values
    assert sizes["w4a16"] < 0.65
    assert sizes["w8a16"] < 1.1


def _modules(runner):
    return runner._loaded.model.model.named_modules()


@pytest.mark.parametrize("method", ["fp8", "int8"])
def test_an_unquantized_checkpoint_is_quantized_while_it_is_read(method, tiny_models, prompts):
    path = tiny_models.path("qwen3", **SIZES)
    runner = make_runner(path, quantization=method)
    layers = quantized_layers(runner._loaded.model.model)
    assert {layer.kind for layer in layers.values()} == {method}
    assert isinstance(dict(_modules(runner))["lm_head"], torch.nn.Linear)
    outputs = [job.output for job in Driver(runner).generate(prompts, [8] * len(prompts))]
    runner.reload_weights()
    assert [job.output for job in Driver(runner).generate(prompts, [8] * len(prompts))] == outputs


@pytest.mark.parametrize(("family", "output"), [("falcon", "lm_head"), ("rwkv", "head")])
def test_quantization_at_load_reaches_linear_layers_of_other_names(family, output, prompts, tmp_path):
    """Falcon's layers have a class of their own, and RWKV calls its output layer by another name."""
    make_model(tiny_config(family)).save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    linears = {name for name, module in plain.named_modules() if isinstance(module, torch.nn.Linear)}
    runner = make_runner(tmp_path, quantization="int8")
    assert set(quantized_layers(runner._loaded.model.model)) == linears - {output}
    for name in linears - {output}:
        weight = plain.get_submodule(name).weight
        weight.data.copy_(dequantize(quantize_weight(weight.data, kind="int8")))
    _check_tokens(runner, plain, prompts[1:])


def test_a_model_without_layers_that_can_be_quantized_is_refused(tiny_models, monkeypatch):
    monkeypatch.setattr(loading, "quantize_layers", lambda *_: None)
    with pytest.raises(UnsupportedConfiguration, match="no layer that can be quantized at load"):
        make_runner(tiny_models.path("qwen3", **SIZES), quantization="int8")


@torch.no_grad()
def _gpt2_with(path, change):
    """transformers' GPT-2, its transposed weights [in, out] changed as [out, in], and their layers' names."""
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    names = [name for name, module in model.named_modules() if type(module).__name__ == "Conv1D"]
    for name in names:
        weight = model.get_submodule(name).weight
        weight.copy_(change(name, weight.T.contiguous()).T)
    return model, names


def _check_tokens(runner, plain, prompts, **tie):
    equal = EqualTokens(lambda ids: _last_logits(plain, ids), **tie)
    for job in Driver(runner, budget=13).generate(prompts, [8] * len(prompts)):
        expected = plain.generate(
            torch.tensor([job.prompt]), do_sample=False, min_new_tokens=8, max_new_tokens=8
        )
        equal.compare(job.prompt, expected[0, len(job.prompt) :].tolist(), job.output)
    equal.check()


def test_transposed_weights_are_quantized_while_they_are_read(tiny_models, prompts):
    path = tiny_models.path("gpt2")
    plain, names = _gpt2_with(path, lambda _, weight: dequantize(quantize_weight(weight, kind="int8")))
    runner = make_runner(path, quantization="int8")
    assert set(quantized_layers(runner._loaded.model.model)) == set(names)
    assert len(names) == 2 * 4
    _check_tokens(runner, plain, prompts)
    fp8 = quantized_layers(make_runner(path, quantization="fp8")._loaded.model.model)
    assert {layer.kind for layer in fp8.values()} == {"fp8"}
    assert set(fp8) == set(names)


def test_transposed_weights_as_gptq_stores_them(tiny_models, prompts, tmp_path):
    path, made = tiny_models.path("gpt2", n_embd=64, n_inner=96), FORMATS["gptq"]
    stored = load_file(path / "model.safetensors")
    prefix = "" if "h.0.attn.c_attn.weight" in stored else "transformer."

    def store(name, weight):
        parts = made.store(weight.float())
        key = prefix + name.removeprefix("transformer.")
        stored.pop(f"{key}.weight")
        stored.update({f"{key}.{part}": value for part, value in parts.items()})
        return dense_weight(made.config, parts)

    plain, names = _gpt2_with(path, store)
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": made.config}))
    runner = make_runner(tmp_path)
    assert set(quantized_layers(runner._loaded.model.model)) == set(names)
    _check_tokens(runner, plain, prompts)


def test_random_weights_have_the_layout_of_the_checkpoint(quantized, prompts):
    path = quantized("w4a16-asym")
    stored, random = make_runner(path), make_runner(path, load_format="dummy")
    shapes = [
        {n: (t.shape, t.dtype) for n, t in runner._loaded.model.model.state_dict().items()}
        for runner in (stored, random)
    ]
    assert shapes[0] == shapes[1]
    Driver(random).generate(prompts, [2] * len(prompts))


def test_reloading_is_in_place_and_gives_the_same_tokens(quantized, prompts):
    runner = make_runner(quantized("gptq-act-order"))
    before = [job.output for job in Driver(runner).generate(prompts, [8] * len(prompts))]
    layer = next(m for _, m in _modules(runner) if isinstance(m, QuantizedLinear))
    address = layer.data.data_ptr()
    layer.data.zero_()
    runner.reload_weights()
    assert layer.data.data_ptr() == address
    assert [job.output for job in Driver(runner).generate(prompts, [8] * len(prompts))] == before


def _damaged(path: Path, target: Path, change) -> Path:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    target.mkdir()
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    (target / "config.json").write_text((path / "config.json").read_text())
    return target


LAYER = "model.layers.1.mlp.up_proj."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(LAYER + "weight_scale"), r"lack 1 weights.*up_proj\.weight_scale"),
        (
            lambda t: t.update({LAYER + "weight_packed": t[LAYER + "weight_packed"][:, :-1].clone()}),
            r"other shapes than config\.json says.*up_proj\.weight_packed",
        ),
        (
            lambda t: t.update({LAYER + "weight_g_idx": torch.zeros(64, dtype=torch.int32)}),
            r"makes no use of 1 stored tensors.*up_proj\.weight_g_idx",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message, quantized, tmp_path):
    with pytest.raises(ConfigError, match=message):
        make_runner(_damaged(quantized("w4a16"), tmp_path / "damaged", change))


def test_a_flag_that_contradicts_config_json_is_an_error(quantized, tiny_models):
    path = quantized("gptq")
    given = {"model_config": {"model": str(path), "quantization": "awq"}}
    with pytest.raises(ConfigError, match=r"quantization is 'awq', but .*config\.json says .* 'gptq'"):
        select_runner(given, environment=NO_GPU)
    given["model_config"]["quantization"] = "gptq_marlin"
    assert select_runner(given, environment=NO_GPU).runner == "v1"
    given["model_config"] = {"model": str(tiny_models.path("qwen3", **SIZES)), "quantization": "awq"}
    with pytest.raises(UnsupportedConfiguration, match="quantization 'awq'"):
        select_runner(given, environment=NO_GPU)


def test_what_no_runner_reads_is_refused_before_anything_loads(quantized, tmp_path):
    config = json.loads((quantized("w4a16") / "config.json").read_text())
    for number, changed in enumerate(
        [
            {"quant_method": "hqq"},
            {"quant_method": "quanto"},
            {**config["quantization_config"], "format": "marlin-24"},
            {**config["quantization_config"], "kv_cache_scheme": {"num_bits": 8}},
        ]
    ):
        path = tmp_path / str(number)
        path.mkdir()
        (path / "config.json").write_text(json.dumps({**config, "quantization_config": changed}))
        with pytest.raises(UnsupportedConfiguration, match="quantization"):
            select_runner(str(path), environment=NO_GPU)
        with pytest.raises(UnsupportedConfiguration, match="quantization"):
            make_runner(path)
