"""Checkpoints of bitsandbytes and torchao on V1: the tokens are those of transformers' own generate."""

from __future__ import annotations

import importlib.util
import logging
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
from dodona.runners.quantization.library import has_library_layers, say_once
from dodona.runners.v1.capabilities import check_supported
from tests.lora.test_v1 import GREEDY, PROMPTS, check, make_llm
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


ON_GPU = [
    pytest.param(name, marks=BNB if name.endswith("bitsandbytes") else AO)
    for name in MAKE
    if name != "w8a8_torchao"
]
GPU_CASES = [case for case in CASES if case.values[1] != "w8a8_torchao"]

Quantized = Callable[..., Path]


@pytest.fixture(scope="module")
def quantized(tiny_models: TinyModels, tmp_path_factory: Any) -> Quantized:
    """A quantized copy of a tiny model, by family, scheme, device and dtype."""
    root = tmp_path_factory.mktemp("library")

    def get(family: str, name: str, device: str = "cpu", dtype: str = "float32") -> Path:
        path: Path = root / f"{family}-{name}-{device}-{dtype}"
        if not path.exists():
            sizes = SIZES if family == "qwen3" else {}
            source = tiny_models.path(family, **sizes)
            model = from_pretrained(name, source, device, dtype, quantization_config=MAKE[name]())
            model.save_pretrained(path)
        return path

    return get


def from_pretrained(name: str, path: Path, device: str, dtype: str, **settings: Any) -> Any:
    """transformers' model in a scheme; bitsandbytes quantizes on the device that transformers is told."""
    maps = name.endswith("bitsandbytes") and device != "cpu"
    placed = {"device_map": {"": device}} if maps else {}
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), **placed, **settings)
    return model if maps else model.to(device)


def plain(path: Path, name: str, device: str = "cpu", dtype: str = "float32") -> Any:
    return from_pretrained(name, path, device, dtype, attn_implementation="eager").eval()


def compare_with_generate(path: Path, name: str, device: str, dtype: str, *, half_precision: bool) -> None:
    runner, model = make_runner(path, device=device, dtype=dtype), plain(path, name, device, dtype)
    assert has_library_layers(runner._loaded.model.model)
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(2, VOCAB_SIZE, (n,), generator=generator).tolist() for n in (1, 9, 23)]

    def last_logits(ids):
        with torch.inference_mode():
            return model(input_ids=torch.tensor([list(ids)], device=device)).logits[0, -1]

    equal = EqualTokens(last_logits, half_precision=half_precision)
    for job in Driver(runner, budget=13, preempt_every=5).generate(prompts, [12] * len(prompts)):
        expected = model.generate(
            torch.tensor([job.prompt], device=device), do_sample=False, min_new_tokens=12, max_new_tokens=12
        )
        equal.compare(job.prompt, expected[0, len(job.prompt) :].tolist(), job.output)
    equal.check()
    runner.shutdown()


@pytest.mark.parametrize(("family", "name"), CASES)
def test_tokens_are_those_of_generate(family, name, quantized):
    path = quantized(family, name)
    verdict = select_runner(str(path))
    assert verdict.runner == "v1"
    info = ModelInfo.load(path)
    assert info.quantization is not None
    assert info.quantization.overall_scheme(2) == name
    # Rounding makes a step of a last bit: then only clear decisions can be compared.
    compare_with_generate(path, name, "cpu", "float32", half_precision="a8" in name)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("family", "name"), GPU_CASES)
def test_tokens_on_a_gpu(family, name, dtype, quantized):
    """bitsandbytes computes 4 bits in bfloat16 whatever the model's dtype is."""
    half_precision = name != "w8a16_torchao" or dtype == "bfloat16"
    compare_with_generate(
        quantized(family, name, "cuda", dtype), name, "cuda", dtype, half_precision=half_precision
    )


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_GPU)
def test_adapters_on_a_gpu(name, quantized, tmp_path):
    path = quantized("qwen3", name, "cuda")
    base, changed = plain(path, name, "cuda"), with_adapter(plain(path, name, "cuda"), tmp_path / "adapter")
    half_precision = name != "w8a16_torchao"
    with make_llm(path, device="cuda", num_gpu_blocks_override=None, gpu_memory_utilization=0.3) as llm:
        adapter = LoRARequest("adapter", 1, str(tmp_path / "adapter"))
        outputs = llm.generate(PROMPTS, GREEDY, lora_request=[adapter, None, adapter], use_tqdm=False)
    for model, prompt, output in zip([changed, base, changed], PROMPTS, outputs, strict=True):
        assert output.error is None

        def last_logits(ids, model=model):
            with torch.inference_mode():
                return model(torch.tensor([ids], device="cuda"), use_cache=False).logits[0, -1]

        expected = list(prompt)
        for _ in range(GREEDY.max_tokens):
            expected.append(int(last_logits(expected).argmax()))
        equal = EqualTokens(last_logits, half_precision=half_precision)
        equal.compare(prompt, expected[len(prompt) :], list(output.outputs[0].token_ids))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_GPU)
def test_random_weights_on_a_gpu(name, quantized):
    runner = make_runner(quantized("qwen3", name, "cuda"), device="cuda", load_format="dummy")
    assert has_library_layers(runner._loaded.model.model)
    assert len(Driver(runner).generate([[5, 6, 7]], [3])[0].output) == 3
    runner.shutdown()


def with_adapter(model: Any, folder: Path) -> Any:
    """A model with an adapter's products added by hooks; the adapter is written to `folder`."""
    layers = linear_layers(model, ["q_proj", "down_proj"])
    write_adapter(folder, layers, r=4, seed=1)
    stored = load_file(folder / "adapter_model.safetensors", device=str(model.device))
    for layer in layers:
        a, b = (stored[f"base_model.model.{layer}.lora_{side}.weight"] for side in "AB")

        def add(module, args, output, a=a, b=b):
            return output + 2.0 * (args[0] @ a.T @ b.T)

        model.get_submodule(layer).register_forward_hook(add)
    return model


@pytest.mark.parametrize(
    "name",
    [pytest.param("w4a16_bitsandbytes", marks=BNB), pytest.param("w8a16_torchao", marks=AO)],
)
def test_adapters_add_to_the_librarys_layers(name, quantized, tmp_path):
    path = quantized("qwen3", name)
    base, changed = plain(path, name), with_adapter(plain(path, name), tmp_path / "adapter")
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


def test_a_librarys_warning_is_said_once(caplog):
    """bitsandbytes says in each product of each step that it casts to float16."""
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    filters = list(logger.filters)
    try:
        for _ in range(2):  # a second model changes nothing
            say_once()
        for dtype in ("bfloat16", "bfloat16", "float32", "bfloat16"):
            logger.warning("a test of inputs in %s", dtype)
    finally:
        logger.filters[:] = filters
    assert caplog.messages == [f"a test of inputs in {dtype}" for dtype in ("bfloat16", "float32")]


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


@pytest.mark.parametrize(
    ("method", "stored", "refused"),
    [
        ("torchao", {"quant_type": {"default": {"_type": "Int8DynamicActivationInt8WeightConfig"}}}, True),
        ("torchao", {"quant_type": INT8}, False),
        ("bitsandbytes", {"load_in_8bit": True}, False),
        ("bitsandbytes", {"load_in_4bit": True}, False),
    ],
)
def test_what_a_gpu_serves(method, stored, refused, tiny_models):
    """The same to the rules and to the runner; a library that isn't there is named on a GPU too."""
    raw = ModelInfo.load(tiny_models.path("qwen3")).raw
    info = ModelInfo.from_mapping({**raw, "quantization_config": {"quant_method": method, **stored}})
    config = EngineConfig.from_flat("m")
    for packages, more in ((TESTED, ()), ({**TESTED, method: None}, ("quantization-package",))):
        machine = Environment(has_triton=True, platform="cuda", packages=packages)
        verdict = verdict_for(config, info, machine, load_rulebook("dodona"))
        expected = {*(["library-quantization-device"] if refused else []), *more}
        refusals = {reason.rule for reason in verdict.refusals}
        assert expected <= refusals if expected else not refusals
        assert set(check_supported(config, info, machine)) == expected


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
