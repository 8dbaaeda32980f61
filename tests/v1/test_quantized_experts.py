"""Quantized experts on V1: the tokens are those of a plain model whose experts do what the formats say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from checkpoints.quantize import quantize_checkpoint
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.machine.environment import Environment
from dodona.oracle.models import quantized_experts
from dodona.oracle.select import select_runner
from dodona.runners.quantization.experts import QuantizedExperts
from dodona.runners.quantization.mxfp4 import quantize_mxfp4
from dodona.runners.quantization.replacement import quantized_layers
from dodona.runners.v1.self_check import TOLERANCE
from tests.support import quantized_experts_table
from tests.support.equal_tokens import EqualTokens
from tests.support.quantized_reference import dense_weight, plain_model
from tests.support.tiny_models import VOCAB_SIZE
from tests.v1.driver import Driver, make_runner

SIZES = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32, "initializer_range": 0.15}
CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
NO_GPU = Environment(has_triton=False, platform="cpu")


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(2, VOCAB_SIZE, (n,), generator=generator).tolist() for n in (1, 9, 23)]


def modules(runner):
    return runner._loaded.model.model.named_modules()


def compare(path, plain, prompts, *, half_precision=False):
    assert select_runner(str(path), environment=NO_GPU).runner == "v1"
    runner = make_runner(path)
    assert any(isinstance(module, QuantizedExperts) for _, module in modules(runner))

    def last_logits(ids):
        with torch.inference_mode():
            return plain(input_ids=torch.tensor([list(ids)])).logits[0, -1]

    equal = EqualTokens(last_logits, half_precision=half_precision)
    for job in Driver(runner, budget=13).generate(prompts, [8] * len(prompts)):
        expected = plain.generate(
            torch.tensor([job.prompt]), do_sample=False, min_new_tokens=8, max_new_tokens=8
        )
        equal.compare(job.prompt, expected[0, len(job.prompt) :].tolist(), job.output)
    equal.check()
    return runner


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("qwen3-moe", "w4a16-asym"),
        ("qwen3-moe", "gptq-act-order"),
        ("qwen3-moe", "awq"),
        ("qwen3-moe", "w8a8-int8-static"),
        ("qwen3-moe", "w8a8-fp8"),
        ("qwen3-moe", "fp8"),
        ("mixtral", "w8a8-fp8"),  # stored as w1, w2, w3, with a tensor `weight`
    ],
)
def test_tokens_are_those_of_the_plain_model(family, name, tiny_models, prompts, tmp_path):
    sizes = {k: v for k, v in SIZES.items() if family != "mixtral" or k != "moe_intermediate_size"}
    quantize_checkpoint(tiny_models.path(family, **sizes), tmp_path / name, name, prompts=prompts)
    rounds = "a8" in name or name == "fp8"
    compare(tmp_path / name, plain_model(tmp_path / name), prompts, half_precision=rounds)


def test_experts_stay_compressed_and_are_loaded_again_in_place(tiny_models, prompts, tmp_path):
    quantize_checkpoint(tiny_models.path("qwen3-moe", **SIZES), tmp_path / "q", "w4a16")
    runner = make_runner(tmp_path / "q")
    layers = quantized_layers(runner._loaded.model.model)
    assert len(layers) == 2 * (4 + 4 * 3)
    values = sum(layer.in_features * layer.out_features for layer in layers.values())
    assert sum(b.nbytes for layer in layers.values() for b in layer.buffers()) / values < 0.65
    dense = [p for n, p in runner._loaded.model.model.named_parameters() if ".experts." in n]
    assert dense == []
    before = [job.output for job in Driver(runner).generate(prompts, [6] * len(prompts))]
    layer = next(layer for name, layer in layers.items() if name.endswith("experts.1.up"))
    address = layer.data.data_ptr()
    layer.data.zero_()
    runner.reload_weights()
    assert layer.data.data_ptr() == address
    assert [job.output for job in Driver(runner).generate(prompts, [6] * len(prompts))] == before


@pytest.mark.parametrize("method", ["fp8", "int8"])
def test_experts_are_quantized_while_they_are_read(method, tiny_models, prompts):
    runner = make_runner(tiny_models.path("qwen3-moe", **SIZES), quantization=method)
    layers = quantized_layers(runner._loaded.model.model)
    assert sum(".experts." in name for name in layers) == 2 * 4 * 2
    assert {layer.kind for layer in layers.values()} == {method}
    outputs = [job.output for job in Driver(runner).generate(prompts, [6] * len(prompts))]
    runner.reload_weights()
    assert [job.output for job in Driver(runner).generate(prompts, [6] * len(prompts))] == outputs


E2M1 = [sign * value for sign in (1, -1) for value in (0, 0.5, 1, 1.5, 2, 3, 4, 6)]


def mxfp4_values(blocks, scales):
    """[..., in]: what MXFP4 tensors say, number by number."""
    made = torch.empty(*blocks.shape[:-2], blocks.shape[-2] * 32)
    flat, exponents = blocks.flatten(0, -2).tolist(), scales.flatten().tolist()
    rows = [
        [E2M1[nibble] * 2.0 ** (exponent - 127) for byte in block for nibble in (byte & 15, byte >> 4)]
        for block, exponent in zip(flat, exponents, strict=True)
    ]
    return torch.tensor(rows).view(made.shape)


def write_mxfp4(tiny_models, path):
    """A tiny gpt-oss as it is published; returns the plain model and the stored tensors."""
    from transformers import AutoModelForCausalLM

    source = tiny_models.path("gpt-oss", hidden_size=64, intermediate_size=32, initializer_range=0.15)
    plain = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    stored, dense = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if tensor.dim() == 3:  # [experts, in, out]
            blocks, scales = quantize_mxfp4(tensor.transpose(1, 2))
            stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            dense[name] = mxfp4_values(blocks, scales).transpose(1, 2)
            assert (dense[name] - tensor).abs().max() < 0.26 * tensor.abs().max()
        else:
            stored[name] = tensor
    plain.load_state_dict(dense, strict=False)
    config = json.loads((source / "config.json").read_text())
    skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": skipped}
    path.mkdir(exist_ok=True)
    save_file(stored, path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text(json.dumps(config))
    return plain, stored


def test_mxfp4_of_gpt_oss(tiny_models, prompts, tmp_path):
    plain, stored = write_mxfp4(tiny_models, tmp_path)
    runner = compare(tmp_path, plain, prompts)
    model = runner._loaded.model.model
    held = sum(b.nbytes for n, b in model.named_buffers() if ".experts." in n and not n.endswith("bias"))
    assert held == sum(t.nbytes for t in stored.values() if t.dtype == torch.uint8)
    before = [job.output for job in Driver(runner).generate(prompts, [6] * len(prompts))]
    next(layer for layer in quantized_layers(model).values()).data.zero_()
    runner.reload_weights()
    assert [job.output for job in Driver(runner).generate(prompts, [6] * len(prompts))] == before
    random = make_runner(tmp_path, load_format="dummy")
    layouts = [
        {n: (t.shape, t.dtype) for n, t in r._loaded.model.model.state_dict().items()}
        for r in (runner, random)
    ]
    assert layouts[0] == layouts[1]


def test_the_self_check_is_not_blurred_by_a_routers_choice_of_rounded_inputs():
    """With rounding, a near tie makes this model differ from itself by more than the tolerance."""
    runner = make_runner(CHECKPOINTS / "qwen3_moe", quantization="fp8", dtype="float32")
    assert runner._loaded.model.packs_rows
    assert runner._loaded.self_check.tolerance == TOLERANCE[torch.float32]
    layers = quantized_layers(runner._loaded.model.model).values()
    assert {layer.round_input is not None for layer in layers} == {True}


def test_types_whose_experts_are_not_read_are_refused(tiny_models, tmp_path):
    config = json.loads((tiny_models.path("llama4") / "config.json").read_text())
    for number, changed in enumerate(
        [{"quant_method": "gptq", "bits": 4, "group_size": 32}, {"quant_method": "mxfp4"}]
    ):
        path = tmp_path / str(number)
        path.mkdir()
        (path / "config.json").write_text(json.dumps({**config, "quantization_config": changed}))
        with pytest.raises(
            UnsupportedConfiguration, match="quantized experts of the model type 'llama4_text'"
        ):
            select_runner(str(path), environment=NO_GPU)
        with pytest.raises(UnsupportedConfiguration, match="quantized-experts"):
            make_runner(path)


def test_experts_of_a_layer_have_several_schemes_or_none(tiny_models, prompts, tmp_path):
    """Down projections in 8 bits, the others in 4, one expert and one projection as they are."""
    source = tiny_models.path("qwen3-moe", **SIZES)
    path, plain = tmp_path / "mixed", tmp_path / "plain"
    dense, configs, stored = load_file(source / "model.safetensors"), {}, {}
    for name in ("w4a16", "w8a16"):
        quantize_checkpoint(source, tmp_path / name, name)
        configs[name] = json.loads((tmp_path / name / "config.json").read_text())
        stored[name] = load_file(tmp_path / name / "model.safetensors")
    narrow, wide = (configs[name]["quantization_config"] for name in ("w4a16", "w8a16"))
    made, values = {}, {}
    for layer in {name.removesuffix("weight") for name in dense}:
        form = "w8a16" if layer.endswith("down_proj.") else "w4a16"
        tensors = {n.removeprefix(layer): t for n, t in stored[form].items() if n.startswith(layer)}
        if ".experts.0." in layer or ".experts.2.up_proj." in layer or "weight" in tensors:
            made[f"{layer}weight"] = values[f"{layer}weight"] = dense[f"{layer}weight"]
        else:
            made |= {layer + part: tensor for part, tensor in tensors.items()}
            values[f"{layer}weight"] = dense_weight(configs[form]["quantization_config"], tensors)
    group = {**wide["config_groups"]["group_0"], "targets": [r"re:.*experts\.\d+\.down_proj"]}
    narrow["config_groups"]["group_1"] = group
    narrow["ignore"] += [r"re:.*experts\.0\..*", r"re:.*experts\.2\.up_proj"]
    for folder, tensors, config in (
        (path, made, configs["w4a16"]),
        (plain, values, json.loads((source / "config.json").read_text())),
    ):
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config))
    reference = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    reference.generation_config.eos_token_id = None
    runner = compare(path, reference, prompts)
    found = {n: m for n, m in modules(runner) if ".experts." in n and isinstance(m, torch.nn.Linear)}
    assert {name.partition(".experts.")[2] for name in found} == {"0.gating", "0.up", "0.down", "2.up"}
    before = [job.output for job in Driver(runner).generate(prompts, [6] * len(prompts))]
    for linear in found.values():
        linear.weight.data.zero_()
    runner.reload_weights()
    assert [job.output for job in Driver(runner).generate(prompts, [6] * len(prompts))] == before


@pytest.mark.parametrize(
    ("kind", "listed"), [("stored", quantized_experts.STORED), ("online", quantized_experts.AT_LOAD)]
)
def test_the_lists_are_what_runs_of_every_type_say(kind, listed):
    """A type is listed where a run of a version of transformers is equal, and none is wrong."""
    by_outcome: dict[str, set[str]] = {}
    for file in quantized_experts_table.result_files():
        for result in json.loads(file.read_text()).values():
            by_outcome.setdefault(result[kind]["outcome"], set()).add(result["language_model"])
    assert set(listed) == by_outcome["equal"] - by_outcome.get("wrong", set())
    document = (Path(__file__).parents[2] / "docs" / "quantization.md").read_text()
    assert not [name for name in listed if f"`{name}`" not in document]
