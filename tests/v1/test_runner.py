"""V1Runner's life: what it refuses, loads, measures, forgets and releases."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError, UnsupportedConfiguration
from dodona.oracle.machine.environment import Environment
from dodona.oracle.machine.packages import TESTED
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.models.row_by_row import ROW_BY_ROW_WRAPPERS
from dodona.oracle.systems.own.model_code import outgrows_rope
from dodona.runners.device import host_memory
from dodona.runners.interface import NewRequest, SchedulerOutput
from dodona.runners.limits import Limits
from dodona.runners.v1 import memory
from dodona.runners.v1.capabilities import LACKS, check_supported
from dodona.runners.v1.packed_model import PackedModel
from tests.support.tiny_models import make_model
from tests.v1.driver import GREEDY, Driver, make_runner

CPU = Environment(has_triton=False, platform="cpu")
LIMITS = Limits("cpu", "float32", 64, 4, 64, 4, None, 0.9)
PROMPTS = [[5, 6, 7], [9] * 20, [3]]


def _tokens(runner, **settings):
    return [job.output for job in Driver(runner, **settings).generate(PROMPTS, 8)]


ASKS = {
    "quantization": {"quantization": "awq"},
    "draft-runner": {"runner": "draft"},
    "pooling-combinations": {
        "runner": "pooling",
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 2},
        "max_model_len": 64,
    },
    "pooler-config": {"pooler_config": {}},
    "sizes": {"max_model_len": 64, "num_gpu_blocks_override": 1},
    "device-count": {"tensor_parallel_size": 65},
    "executor-backend": {"distributed_executor_backend": "external_launcher"},
    "workers-combinations": {
        "tensor_parallel_size": 2,
        "compilation_config": {"mode": "STOCK_TORCH_COMPILE"},
    },
    "tensor-parallel-sizes": {"tensor_parallel_size": 5},
    "pipeline-parallel-layers": {"pipeline_parallel_size": 50},
    "data-parallel-deployment": {"data_parallel_rank": 0},
    "decode-context-parallelism": {"decode_context_parallel_size": 2},
    "expert-parallel-ranks": {"enable_expert_parallel": True},
    "lora-torch-compile": {
        "enable_lora": True,
        "compilation_config": {"mode": "STOCK_TORCH_COMPILE"},
    },
    "speculative-method": {"speculative_config": {"method": "medusa"}},
    "parallel-drafting": {
        "speculative_config": {"method": "ngram", "parallel_drafting": True, "num_speculative_tokens": 2}
    },
    "draft-tensor-parallelism": {
        "speculative_config": {
            "method": "ngram",
            "draft_tensor_parallel_size": 2,
            "num_speculative_tokens": 2,
        },
    },
    "kv-connector": {"kv_transfer_config": {"kv_connector": "X", "kv_role": "kv_both"}},
    "companion-directories": {"generation_config": "/missing"},
    "kv-connector-settings": {"kv_offloading_size": 1.0, "kv_transfer_config": {"kv_port": 80}},
    "speculative-kv-connector": {
        "speculative_config": {"method": "draft_model", "model": "m", "num_speculative_tokens": 2},
        "kv_offloading_size": 1.0,
    },
    "speculative-mtp": {"speculative_config": {"method": "mtp", "num_speculative_tokens": 2}},
    "kv-cache-dtype": {"kv_cache_dtype": "fp8"},
    "dynamo-trace-once": {"compilation_config": {"mode": "DYNAMO_TRACE_ONCE"}},
    "vllm-compile": {"compilation_config": {"mode": "VLLM_COMPILE"}},
}


@pytest.mark.parametrize("feature", ASKS)
def test_what_is_lacking_is_refused_before_anything_loads(tiny_models, monkeypatch, feature):
    runner = make_runner(tiny_models.path("llama"), load=False, **ASKS[feature])
    monkeypatch.setattr(runner, "_read_model", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(UnsupportedConfiguration, match=feature) as caught:
        runner.load_model()
    assert feature in caught.value.features
    assert set(caught.value.features) <= LACKS


@pytest.mark.parametrize(
    ("feature", "change"),
    [
        ("quantization", {"quantization_config": {"quant_method": "hqq"}}),
        ("quantized-experts", {"quantization_config": {"quant_method": "fp8"}, "num_local_experts": 4}),
        ("causal-lm", {"model_type": "clip_text_model"}),
        ("model-family", {"model_type": "xlnet"}),
        ("encoder-decoder", {"is_encoder_decoder": True}),
        ("pooling", {"architectures": ["HF_ColBERT"]}),
        ("pooling", {"architectures": ["LlamaForRewardModel"]}),
        ("pooling-model", {"architectures": ["T5EncoderModel"], "model_type": "my_own"}),
        ("pooling-multimodal", {"architectures": ["LlamaModel"], "vision_config": {}}),
    ],
)
def test_what_config_json_asks_and_v1_lacks(tiny_models, feature, change):
    path = tiny_models.path("llama")
    model = ModelInfo.from_mapping({**json.loads((path / "config.json").read_text()), **change})
    assert check_supported(make_runner(path, load=False).config, model, CPU) == (feature,)


ROW_BY_ROW_ASKS = {
    "torch-compile-row-by-row": {"compilation_config": {"mode": "STOCK_TORCH_COMPILE"}},
    "speculative-row-by-row": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
    "kv-connector-row-by-row": {"kv_offloading_size": 1.0},
}


@pytest.mark.parametrize("feature", ROW_BY_ROW_ASKS)
def test_what_only_packed_rows_have(tiny_models, feature):
    path = tiny_models.path("llama")
    raw = json.loads((path / "config.json").read_text())
    config = EngineConfig.from_flat(str(path), device="cpu", **ROW_BY_ROW_ASKS[feature])
    assert check_supported(config, ModelInfo.from_mapping(raw), CPU) == ()
    for change in ({"model_type": "bloom"}, {"architectures": list(ROW_BY_ROW_WRAPPERS)}):
        assert check_supported(config, ModelInfo.from_mapping({**raw, **change}), CPU) == (feature,)


def test_pooling_and_code_that_comes_with_the_model(tiny_models):
    path = tiny_models.path("llama")
    raw = {**json.loads((path / "config.json").read_text()), "auto_map": {"AutoModel": "m.M"}}
    for trusted, lacking in ((False, ()), (True, ("pooling-remote-code",))):
        config = EngineConfig.from_flat("m", device="cpu", runner="pooling", trust_remote_code=trusted)
        assert check_supported(config, ModelInfo.from_mapping(raw), CPU) == lacking


def test_a_gpu_that_is_not_there(tiny_models):
    path = tiny_models.path("llama")
    config, model = EngineConfig.from_flat(str(path), device="cuda"), ModelInfo.load(path)
    assert check_supported(config, model, CPU) == ("device",)
    gpu = Environment(has_triton=True, platform="cuda")
    assert check_supported(config, model, gpu) == ()
    on_ray = EngineConfig.from_flat(str(path), distributed_executor_backend="ray")
    for machine in (gpu, CPU):
        assert check_supported(on_ray, model, machine) == ()
        without = replace(machine, packages={"ray": None})
        assert check_supported(on_ray, model, without) == ("ray-package",)


@pytest.mark.parametrize("size", ["tensor", "pipeline", "prefill_context"])
def test_gpus_that_ray_gives(tiny_models, size):
    path = tiny_models.path("llama")
    model = ModelInfo.load(path)
    ranks = {f"{size}_parallel_size": 2, "distributed_executor_backend": "ray"}
    of_one, of_cluster = (
        Environment(has_triton=True, platform="cuda", device_count=1, ray_cluster=cluster)
        for cluster in (False, True)
    )

    def lacking(machine, **flat):
        return check_supported(EngineConfig.from_flat(str(path), **flat), model, machine)

    assert lacking(of_one, **ranks) == ("device-count", "ray-device")
    assert lacking(of_cluster, **ranks) == ("ray-device",)
    assert lacking(CPU, **ranks) == ()
    for backend in ("data_parallel_backend", "distributed_executor_backend"):
        replicas = {"data_parallel_size": 2, backend: "ray"}
        assert lacking(of_one, **replicas) == ("device-count",)
        assert lacking(of_cluster, **replicas) == ()
    processes = {"distributed_executor_backend": "mp", "data_parallel_size": 2}
    assert lacking(of_cluster, **processes) == ("device-count",)


@pytest.mark.parametrize(
    ("feature", "change"),
    [
        ("vision-package", {"model_type": "gemma3n", "architectures": ["Gemma3nForConditionalGeneration"]}),
        ("transformers-version", {"model_type": "exaone", "architectures": ["ExaoneForCausalLM"]}),
        (
            "quantization-package",
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        ),
    ],
)
def test_what_installed_packages_lack(tiny_models, feature, change):
    path = tiny_models.path("llama")
    model = ModelInfo.from_mapping({**json.loads((path / "config.json").read_text()), **change})
    config = EngineConfig.from_flat("m", device="cpu")
    old = {"transformers": "5.23.0", "bitsandbytes": "0.50.2", "accelerate": None, "timm": None}
    for packages, lacking in ((old, (feature,)), (TESTED, ()), ({}, ())):
        machine = Environment(has_triton=False, platform="cpu", packages=packages)
        assert check_supported(config, model, machine) == lacking
    if feature == "quantization-package":
        on_ranks = EngineConfig.from_flat("m", device="cpu", tensor_parallel_size=2)
        machine = Environment(has_triton=False, platform="cpu", packages=TESTED)
        assert check_supported(on_ranks, model, machine) == ("library-quantization",)


def test_everything_v1_lacks_is_checked(tiny_models):
    of_models = {
        "causal-lm", "model-family", "encoder-decoder", "length-dependent-rope",
        "kv-connector-inner-states", "quantized-experts", "quantized-tensor-parallelism",
        "tensor-parallel-families", "pipeline-parallel-families", "expert-parallel-families",
        "workers-row-by-row", "context-parallel-inner-states", *ROW_BY_ROW_ASKS, "pooling", "pooling-model",
        "pooling-whole-prompts",
        "pooling-multimodal", "pooling-remote-code", "pooling-quantized-experts",
        "speculative-settings", "pooler-settings", "weights", "memory",
        "config-values",
        "speculative-hidden-states", "library-quantization", "library-quantization-device",
        "quantization-package",
    }  # fmt: skip
    of_machines = {"device", "ray-device", "ray-package", "transformers-version", "vision-package"}
    assert set(ASKS) | of_machines | of_models == LACKS


@pytest.mark.parametrize("flat", [{"kv_transfer_config": {}}, {"compilation_config": {"mode": "NONE"}}])
def test_what_asks_for_nothing_is_not_refused(tiny_models, flat):
    path = tiny_models.path("llama")
    assert check_supported(make_runner(path, load=False, **flat).config, ModelInfo.load(path), CPU) == ()


def test_ropes_that_change_with_length(tiny_models):
    path = tiny_models.path("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0})
    make_runner(path, max_model_len=256)
    dynamic = ModelInfo.load(path)
    within, beyond = (EngineConfig.from_flat("m", device="cpu", max_model_len=n) for n in (256, 257))
    assert not outgrows_rope(within, dynamic)
    assert check_supported(within, dynamic, CPU) == ()
    assert outgrows_rope(beyond, dynamic)
    assert check_supported(beyond, dynamic, CPU) == ()
    shared = EngineConfig.from_flat("m", device="cpu", max_model_len=257, kv_offloading_size=1.0)
    assert check_supported(shared, dynamic, CPU) == ("length-dependent-rope",)


def test_kv_spec_and_block_bytes(tiny_models):
    spec = make_runner(tiny_models.path("deepseek-v3"), block_size=8).get_kv_cache_spec()
    assert [(s.num_kv_heads, s.head_size_k, s.head_size_v) for s in spec.layers] == [(4, 16, 12)] * 2
    assert spec.bytes_per_block == 2 * 4 * (16 + 12) * 8 * 4


def test_dtypes(tiny_models):
    path = tiny_models.path("llama")
    assert make_runner(path).get_kv_cache_spec().dtype_bytes == 4
    assert make_runner(path, dtype="bfloat16").get_kv_cache_spec().dtype_bytes == 2


def test_available_memory_is_capped_by_what_requests_can_use(tiny_models):
    runner = make_runner(tiny_models.path("llama"), max_num_seqs=3, max_model_len=50, block_size=16)
    spec = runner.get_kv_cache_spec()
    assert runner.determine_available_memory() == 3 * 4 * spec.bytes_per_block


def test_the_largest_step_is_that_of_the_limits(tiny_models, monkeypatch):
    runner = make_runner(
        tiny_models.path("llama"), max_num_seqs=3, max_model_len=24, max_num_batched_tokens=64
    )
    rows: list[list[tuple[int, int]]] = []
    forward = PackedModel.forward

    def note(model, token_ids, layout, cache, positions, states):
        lengths = layout.last_tokens - layout.starts + 1
        ends = layout.positions[layout.last_tokens] + 1
        rows.append(list(zip(lengths.tolist(), ends.tolist(), strict=True)))
        return forward(model, token_ids, layout, cache, positions, states)

    monkeypatch.setattr(PackedModel, "forward", note)
    runner.determine_available_memory()
    assert rows == [[(24, 24), (24, 24), (16, 16)], [(1, 24)] * 3]


def test_a_new_kv_cache_forgets_the_requests_of_the_old_one(tiny_models):
    runner = make_runner(tiny_models.path("llama"))
    step = _step([_request(0)], [0], [3], [0], [True])
    tokens = []
    for _ in range(2):
        runner.initialize_kv_cache(8, 32)
        runner.execute_model(step)
        tokens.append(list(runner.sample_tokens().result().token_ids))
    assert tokens[0] == tokens[1]


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak can't be reset here")
def test_the_largest_step_takes_its_memory_from_what_the_share_leaves(monkeypatch):
    has, size = 1 << 30, 200 << 20
    monkeypatch.setattr(host_memory, "available_memory", lambda: has)

    def measure(utilization, ranks=1):
        return memory.measure_available_memory(
            lambda: torch.ones(size, dtype=torch.uint8),
            torch.device("cpu"),
            limits=replace(LIMITS, gpu_memory_utilization=utilization, ranks_on_host=ranks),
            most_useful=1 << 40,
        )

    assert measure(0.5) == has // 2
    assert measure(1e-6) == int(has * 1e-6)
    assert has - size * 1.5 < measure(1.0) < has - size * 0.9
    # four ranks and their steps, all at the same time
    assert measure(0.1, ranks=4) == int(has // 4 * 0.1)
    assert has // 4 - size * 1.1 < measure(1.0, ranks=4) < has // 4 - size * 0.9
    monkeypatch.setattr(host_memory, "available_memory", lambda: size // 2)
    assert measure(0.5) == 0


def test_reload_is_in_place(tiny_models, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(tiny_models.path("llama"), path)
    runner = make_runner(path)
    before = _tokens(runner)
    held = [p.data_ptr() for p in runner._loaded.model.model.parameters()]
    other = tiny_models.path("llama", seed=1)
    shutil.copy(other / "model.safetensors", path / "model.safetensors")
    runner.reload_weights()
    assert [p.data_ptr() for p in runner._loaded.model.model.parameters()] == held
    after = _tokens(runner)
    assert after != before
    assert after == _tokens(make_runner(other))


def test_dummy_weights_come_from_the_seed(tiny_models, tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    shutil.copy(tiny_models.path("llama") / "config.json", path)
    state = torch.get_rng_state()
    first, again, other = (_tokens(make_runner(path, load_format="dummy", seed=seed)) for seed in (3, 3, 4))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_missing_weights_are_an_error(tiny_models, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(tiny_models.path("llama"), path)
    weights = load_file(path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lack 1 weights.*lm_head\.weight"):
        make_runner(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="model"):
        make_runner(path)


def test_weights_that_were_cut_off_are_an_error(tiny_models, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(tiny_models.path("llama"), path)
    file = next(path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(
        ConfigError, match=r"model\.safetensors: cannot be read as safetensors: .*fetch the model again"
    ):
        make_runner(path)


def test_weights_of_another_shape_are_an_error(tiny_models, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(tiny_models.path("llama"), path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(ConfigError, match=r"shape"):
        make_runner(path)


def test_an_unknown_architecture_is_refused(tiny_models, tmp_path):
    config = json.loads((tiny_models.path("llama") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "no-such-model"}))
    with pytest.raises(UnsupportedConfiguration, match="causal-lm"):
        make_runner(tmp_path)


def _request(row: int, **changes) -> NewRequest:
    fields = {
        "request_id": f"r{row}", "row": row, "token_ids": [4, 5, 6], "num_prompt_tokens": 3,
        "num_computed_tokens": 0, "block_ids": [row], "sampling_params": GREEDY, "seed": 0,
    }  # fmt: skip
    return NewRequest(**{**fields, **changes})


def _step(new=(), rows=(), num_tokens=(), computed=(), samples=(), freed=(), blocks=()) -> SchedulerOutput:
    return SchedulerOutput(1, freed, new, blocks, rows, num_tokens, computed, samples, 0)


def test_freed_rows_keep_nothing(tiny_models):
    runner = make_runner(tiny_models.path("llama"))
    _tokens(runner)
    assert len(runner._ready.batch) == 0
    first = _tokens(runner)
    # The KV of former requests lies where new ones are written; poison shows whether any of it is read.
    for tensor in (*runner._ready.cache.keys, *runner._ready.cache.values):
        tensor.fill_(float("nan"))
    assert _tokens(runner) == first


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (_step([_request(0), _request(0)], [0], [3], [0], [True]), "belongs to 'r0'"),
        (_step([_request(0)], [0], [4], [0], [True]), "no tokens yet"),
        (_step([_request(0, block_ids=[])], [0], [3], [0], [True]), "0 KV blocks"),
    ],
)
def test_steps_that_contradict_themselves(tiny_models, step, message):
    runner = make_runner(tiny_models.path("llama"))
    with pytest.raises(ValueError, match=message):
        runner.execute_model(step)


def test_order_of_calls(tiny_models):
    runner = make_runner(tiny_models.path("llama"), load=False)
    with pytest.raises(RuntimeError, match="load_model first"):
        runner.get_kv_cache_spec()
    runner.load_model()
    with pytest.raises(RuntimeError, match="before initialize_kv_cache"):
        runner.execute_model(_step())
    runner.initialize_kv_cache(8)
    with pytest.raises(RuntimeError, match="without execute_model"):
        runner.sample_tokens()
    step = _step([_request(0)], [0], [3], [0], [True])
    runner.execute_model(step)
    with pytest.raises(RuntimeError, match="twice"):
        runner.execute_model(step)


def test_exceptions_of_a_forward_pass_reach_the_caller(tiny_models):
    runner = make_runner(tiny_models.path("llama"))

    def fail(*_):
        raise FloatingPointError("overflow in the third layer")

    runner._loaded.model.model.get_input_embeddings().register_forward_hook(fail)
    with pytest.raises(FloatingPointError, match="third layer"):
        runner.execute_model(_step([_request(0)], [0], [3], [0], [True]))


def test_a_step_of_chunks_alone_samples_nothing(tiny_models):
    runner = make_runner(tiny_models.path("llama"))
    runner.execute_model(_step([_request(0)], [0], [2], [0], [False]))
    output = runner.sample_tokens().result()
    assert list(output.rows) == []
    assert list(output.token_ids) == []


def test_a_row_reads_what_another_row_writes_in_the_same_step(tiny_models, reference):
    path = tiny_models.path("mistral")
    runner = make_runner(path)
    tokens = [4, 5, 6, 7, 8, 9]
    first = _request(0, token_ids=tokens[:5], num_prompt_tokens=5, block_ids=[0, 1])
    second = _request(1, token_ids=tokens, num_prompt_tokens=6, num_computed_tokens=4, block_ids=[0, 2])
    runner.execute_model(_step([first, second], [0, 1], [5, 2], [0, 4], [True, True]))
    output = runner.sample_tokens().result()
    assert list(output.token_ids) == [reference(path).generate(t, 1)[0] for t in (tokens[:5], tokens)]


def test_shutdown_releases_and_can_be_repeated(tiny_models):
    runner = make_runner(tiny_models.path("llama"))
    runner.shutdown()
    runner.shutdown()
    with pytest.raises(RuntimeError, match="load_model first"):
        runner.get_kv_cache_spec()


def test_models_differ_by_seed():
    a, b = make_model("llama"), make_model("llama", seed=1)
    assert not torch.equal(a.lm_head.weight, b.lm_head.weight)
