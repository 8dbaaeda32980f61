"""Checkpoints of bitsandbytes and torchao on V1: the tokens are those of transformers' own generate."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dodona import LoRARequest
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.machine.environment import Environment
from dodona.oracle.machine.packages import TESTED
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.quantization import read_quantization
from dodona.oracle.select import select_runner, verdict_for
from dodona.oracle.systems.books import load_rulebook
from dodona.runners.errors import InvalidRequestError
from dodona.runners.quantization.library import has_library_layers
from tests.lora.test_v1 import check, make_llm
from tests.support.adapters import linear_layers, write_adapter
from tests.support.equal_tokens import EqualTokens
from tests.support.tiny_models import VOCAB_SIZE, TinyModels
from tests.v1.driver import Driver, make_runner

SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def _bitsandbytes(**settings: Any) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(bnb_4bit_compute_dtype=torch.bfloat16, **settings)


def _torchao(kind: str) -> Any:
    import torchao.quantization
    from transformers import TorchAoConfig

    return TorchAoConfig(getattr(torchao.quantization, kind)())


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    extra = "bitsandbytes" if "bitsandbytes" in packages else "torchao"
    return pytest.mark.skipif(
        bool(missing), reason=f"{', '.join(missing)} missing: pip install 'dodona[{extra}]'"
    )


BNB, AO = needs("bitsandbytes", "accelerate"), needs("torchao")
MAKE: dict[str, Callable[[], Any]] = {
    "w8a8_bitsandbytes": lambda: _bitsandbytes(load_in_8bit=True),
    "w4a16_bitsandbytes": lambda: _bitsandbytes(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    ),
    "w8a16_torchao": lambda: _torchao("Int8WeightOnlyConfig"),
    "w8a8_torchao": lambda: _torchao("Int8DynamicActivationInt8WeightConfig"),
}
CASES = [
    pytest.param("qwen3", name, marks=BNB if name.endswith("bitsandbytes") else AO, id=f"qwen3-{name}")
    for name in MAKE
]
CASES += [
    pytest.param("gpt2", "w8a8_bitsandbytes", marks=BNB, id="gpt2"),  # transposed weights
    pytest.param("gemma3", "w8a16_torchao", marks=AO, id="gemma3"),
]


@pytest.fixture(scope="module")
def quantized(tiny_models: TinyModels, tmp_path_factory: Any) -> Callable[[str, str], Path]:
    """A quantized copy of a tiny model, by family and scheme."""
    root = tmp_path_factory.mktemp("library")

    def get(family: str, name: str) -> Path:
        path: Path = root / f"{family}-{name}"
        if not path.exists():
            sizes = SIZES if family == "qwen3" else {}
            model = AutoModelForCausalLM.from_pretrained(
                tiny_models.path(family, **sizes), quantization_config=MAKE[name](), dtype=torch.float32
            )
            model.save_pretrained(path)
        return path

    return get


def plain(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.mark.parametrize(("family", "name"), CASES)
def test_tokens_are_those_of_generate(family, name, quantized):
    path = quantized(family, name)
    verdict = select_runner(str(path))
    assert verdict.runner == "v1"
    info = ModelInfo.load(path)
    assert info.quantization is not None
    assert info.quantization.overall_scheme(2) == name
    runner, model = make_runner(path), plain(path)
    assert has_library_layers(runner._loaded.model.model)
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(2, VOCAB_SIZE, (n,), generator=generator).tolist() for n in (1, 9, 23)]

    def last_logits(ids):
        with torch.inference_mode():
            return model(input_ids=torch.tensor([list(ids)])).logits[0, -1]

    # Rounding makes a step of a last bit: then only clear decisions can be compared.
    equal = EqualTokens(last_logits, half_precision="a8" in name)
    for job in Driver(runner, budget=13, preempt_every=5).generate(prompts, [12] * len(prompts)):
        expected = model.generate(
            torch.tensor([job.prompt]), do_sample=False, min_new_tokens=12, max_new_tokens=12
        )
        equal.compare(job.prompt, expected[0, len(job.prompt) :].tolist(), job.output)
    equal.check()


@pytest.mark.parametrize(
    "name",
    [pytest.param("w4a16_bitsandbytes", marks=BNB), pytest.param("w8a16_torchao", marks=AO)],
)
def test_adapters_add_to_the_librarys_layers(name, quantized, tmp_path):
    path = quantized("qwen3", name)
    base, changed = plain(path), plain(path)
    layers = linear_layers(base, ["q_proj", "down_proj"])
    # transformers' model with the adapter's products added by hooks
    write_adapter(tmp_path / "adapter", layers, r=4, seed=1)
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for layer in layers:
        a, b = (stored[f"base_model.model.{layer}.lora_{side}.weight"] for side in "AB")

        def add(module, args, output, a=a, b=b):
            return output + 2.0 * (args[0] @ a.T @ b.T)

        changed.get_submodule(layer).register_forward_hook(add)
    with make_llm(path) as llm:
        adapter = LoRARequest("adapter", 1, str(tmp_path / "adapter"))
        check(llm, [adapter, None, adapter], [changed, base, changed])


@AO
def test_weights_are_not_changed_in_place(quantized):
    runner = make_runner(quantized("qwen3", "w8a16_torchao"))
    before = Driver(runner).generate([[5, 6, 7]], [4])[0].output
    calls = {
        "reload_weights": runner.reload_weights,
        "sleep": lambda: runner.sleep(1),
        "load_weights": lambda: runner.load_weights([("lm_head.weight", torch.zeros(VOCAB_SIZE, 64))]),
        "apply_sparse_weight_patches": lambda: runner.apply_sparse_weight_patches({}),
    }
    for name, call in calls.items():
        with pytest.raises(InvalidRequestError, match=f"{name}: the weights are in layers of torchao"):
            call()
    assert Driver(runner).generate([[5, 6, 7]], [4])[0].output == before


@pytest.mark.parametrize(
    "name", [pytest.param("w4a16_bitsandbytes", marks=BNB), pytest.param("w8a16_torchao", marks=AO)]
)
def test_random_weights_are_in_the_librarys_layers(name, quantized):
    path = quantized("qwen3", name)
    stored, random = make_runner(path), make_runner(path, load_format="dummy")
    shapes = [
        {name: (tensor.shape, tensor.dtype) for name, tensor in runner._loaded.model.model.named_parameters()}
        for runner in (stored, random)
    ]
    assert shapes[0] == shapes[1]
    assert len(Driver(random).generate([[5, 6, 7]], [3])[0].output) == 3


INT8 = {"default": {"_type": "Int8WeightOnlyConfig"}}


@pytest.mark.parametrize(
    ("method", "stored", "scheme"),
    [
        ("bitsandbytes", {"load_in_8bit": True, "load_in_4bit": False}, "w8a8_bitsandbytes"),
        ("bitsandbytes", {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "w4a16_bitsandbytes"),
        ("bitsandbytes", {}, "other"),
        ("bitsandbytes", {"load_in_4bit": True, "load_in_8bit": True}, "other"),
        ("bitsandbytes", {"load_in_4bit": "yes"}, "other"),
        ("bitsandbytes", {"load_in_8bit": True, "llm_int8_enable_fp32_cpu_offload": True}, "other"),
        ("bitsandbytes", {"load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"}, "other"),
        ("torchao", {"quant_type": INT8}, "w8a16_torchao"),
        (
            "torchao",
            {"quant_type": {"default": {"_type": "Int8DynamicActivationInt8WeightConfig"}}},
            "w8a8_torchao",
        ),
        ("torchao", {"quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}}, "other"),
        ("torchao", {"quant_type": {"default": {"_type": ["Int8WeightOnlyConfig"]}}}, "other"),
        ("torchao", {"quant_type": {**INT8, "model.layers.0": INT8["default"]}}, "other"),
        ("torchao", {"quant_type": "int8_weight_only"}, "other"),
        ("torchao", {}, "other"),
    ],
)
def test_what_config_json_says(method, stored, scheme):
    assert read_quantization(method, stored).overall_scheme(2) == scheme


@pytest.mark.parametrize(("package", "method"), [("accelerate", "bitsandbytes"), ("torchao", "torchao")])
def test_a_missing_library_is_named_before_anything_loads(package, method, tiny_models):
    raw: dict[str, Any] = {
        **ModelInfo.load(tiny_models.path("qwen3")).raw,
        "quantization_config": {"quant_method": method, "load_in_4bit": True, "quant_type": INT8},
    }

    def refusals(**packages: str | None) -> dict[str, str]:
        machine = Environment(has_triton=False, platform="cpu", packages=packages)
        config, info = EngineConfig.from_flat("m"), ModelInfo.from_mapping(raw)
        found = verdict_for(config, info, machine, load_rulebook("dodona")).refusals
        return {reason.rule: reason.because for reason in found}

    installed = {"bitsandbytes": "0.50.2", "accelerate": "1.15.0", "torchao": "0.18.0"}
    assert refusals(**installed) == {}
    found = refusals(**{**installed, package: None})
    assert found.keys() == {"quantization-package"}
    assert f"dodona[{method}]" in found["quantization-package"]


@AO
def test_what_no_run_stands_behind_is_refused_by_both(quantized):
    path, machine = quantized("qwen3", "w8a16_torchao"), Environment(False, "cpu", packages=TESTED)
    for flat in (
        {"tensor_parallel_size": 2},
        {"runner": "pooling", "max_num_batched_tokens": 256},
    ):
        config = EngineConfig.from_flat(str(path), **flat)
        with pytest.raises(UnsupportedConfiguration, match="beyond what their library"):
            select_runner(config, environment=machine)
        with pytest.raises(UnsupportedConfiguration, match="library-quantization"):
            make_runner(path, **flat)
