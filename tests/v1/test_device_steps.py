"""V1's steps from state on the device, here by Triton's interpreter."""

from __future__ import annotations

import gc
import logging
import weakref
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING

from dodona import LLM, SamplingParams
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.machine.environment import assumed_gpu
from dodona.oracle.select import select_runner
from dodona.runners.device.steps import DeviceSteps
from dodona.runners.quantization.replacement import quantized_layers, unrounded_inputs
from dodona.runners.v1 import agreement, device_forward, device_serving, packed_mixers
from dodona.runners.v1.device_check import check_device_steps
from dodona.runners.v1.device_serving import DeviceServing, _reasons_against
from dodona.runners.v1.expert_fusions import fused_experts, fused_router
from dodona.runners.v1.fusions import Fusions
from dodona.runners.v1.packed_mixers import packed_forward
from dodona.runners.v1.packed_model import PackedModel
from dodona.runners.v1.quantized_experts import fused_quantized_experts
from dodona.runners.v1.shared_inputs import layers_by_input
from tests.support.equal_tokens import EqualTokens
from tests.support.replaced_parts import (
    PACKED_MIXERS,
    QUANTIZED,
    REPLACED,
    check_replaced,
    quantized_experts,
    quantized_layer,
)
from tests.support.tiny_hybrids import HYBRIDS
from tests.support.tiny_models import make_model
from tests.v1.driver import Driver, make_runner

FAMILIES = ("gemma2", "llama4", "falcon-h1")
"""Windows, soft caps, 1 + weight; chunks and another rotation; inner states. More on a GPU: `test_gpu`."""

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2], [2, 7, 1]]


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps run from state on the device on a CPU, too."""
    monkeypatch.setattr(device_serving, "kernels_run_on", lambda device: True)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens(tiny_models, reference, family):
    path = tiny_models.path(family)
    plain = reference(path)
    runner = make_runner(path, num_blocks=40)
    assert runner.max_steps_in_flight == 2
    driver = Driver(runner, num_blocks=40, budget=9, preempt_every=4)
    equal = EqualTokens(lambda ids: plain.logits(ids)[-1])
    for job in driver.generate(PROMPTS, 4):
        equal.compare(job.prompt, plain.generate(job.prompt, job.max_tokens), job.output)
    equal.check()


@pytest.mark.usefixtures("interpreted")
def test_drafts_that_are_looked_up(tiny_models, reference, monkeypatch):
    """Verified by steps on the device, one under way at a time; some are accepted."""
    monkeypatch.setattr(device_serving, "check_device_steps", lambda *args, **kwargs: 0.0)
    path = tiny_models.path("qwen3")
    ngram = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1}
    right, verified = DeviceSteps.execute, []

    def execute(self, output):
        verified.append(len(output.draft_token_ids))
        right(self, output)

    monkeypatch.setattr(DeviceSteps, "execute", execute)
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")
    with LLM(
        path, device="cpu", skip_tokenizer_init=True, max_num_seqs=2, max_model_len=64, block_size=4,
        max_num_batched_tokens=32, num_gpu_blocks_override=40, speculative_config=ngram,
    ) as llm:  # fmt: skip
        outputs = llm.generate(
            [{"prompt_token_ids": ids} for ids in PROMPTS],
            SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True),
            use_tqdm=False,
        )
        accepted = llm.draft_stats().num_accepted_tokens
    plain = reference(path)
    for ids, output in zip(PROMPTS, outputs, strict=True):
        assert list(output.outputs[0].token_ids) == plain.generate(ids, 10)
    assert accepted > 0
    assert any(verified)


@pytest.mark.parametrize(
    ("family", "method", "on_host"),
    [
        ("llama", "ngram", False),
        ("llama", "draft_model", True),
        ("falcon-h1", "ngram", True),
    ],
)
def test_a_verdict_says_where_drafts_need_the_host(tiny_models, family, method, on_host):
    path = tiny_models.path(family)
    speculative = {"method": method, "num_speculative_tokens": 2}
    if method == "draft_model":
        speculative["model"] = str(path)
    if method == "ngram":
        speculative["prompt_lookup_max"] = 3
    runner = make_runner(path, speculative_config=speculative)
    loaded = runner._loaded
    assert bool(_reasons_against(loaded.model, runner.config, runner.limits, loaded.plan)) == on_host
    config = EngineConfig.from_flat(str(path), speculative_config=speculative)
    verdict = select_runner(config, environment=assumed_gpu("v1"))
    assert verdict.runner == "v1"
    found = {found.consequence for found in verdict.consequences}
    assert ("steps-on-the-host" in found) == on_host


@pytest.mark.usefixtures("interpreted")
def test_a_model_whose_steps_differ_on_the_device_runs_on_the_host(
    tiny_models, reference, caplog, monkeypatch
):
    """A kernel that computes something else is found by the check at load, and nothing of it stays."""

    def wrong(*, out: torch.Tensor, **kwargs: object) -> torch.Tensor:
        return out.fill_(0.5)

    monkeypatch.setattr(device_forward, "paged_decode_attention", wrong)
    path = tiny_models.path("qwen3")
    with caplog.at_level(logging.WARNING):
        runner = make_runner(path)
    assert "laid out on the host" in caplog.text
    assert runner.max_steps_in_flight == 1
    job = Driver(runner).generate([[5, 6, 7]], 3)[0]
    assert job.output == reference(path).generate(job.prompt, 3)


@pytest.mark.usefixtures("interpreted")
def test_what_the_host_must_lay_out_is_said(tiny_models, caplog):
    with caplog.at_level(logging.WARNING):
        runner = make_runner(tiny_models.path("llama"), max_num_seqs=1 << 24, load=False)
        runner.load_model()
    assert "too large for the requests' state" in caplog.text
    assert runner.max_steps_in_flight == 1


def test_fused_parts_are_found_by_what_they_compute(tiny_models):
    """Norms by a weight and by 1 + a weight, kinds of gates, rotations, experts; a rotation of neighbouring
    dimensions and a norm that centres stay as they are."""
    for family in ("qwen3", "gemma2", "cohere", "qwen3-moe"):
        model = make_model(family)
        fusions = Fusions(model)
        expected = REPLACED.get(family, frozenset({"CohereMLP", "Linear"}))
        check_replaced(model, {part.module for part in fusions._fusions}, expected)
        ids = torch.tensor([[3, 1, 4, 1, 5]])
        fused = model(input_ids=ids).logits
        with fusions.removed():
            plain = model(input_ids=ids).logits
            assert not any("forward" in module.__dict__ for module in model.modules())
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("scheme", QUANTIZED)
def test_quantized_layers_are_computed_as_they_are_stored(scheme):
    """But not with stored scales of inputs, and not experts, whose numbers of tokens nobody knows before."""
    layer = quantized_layer(scheme, 96, 256, dtype=torch.float32, device="cpu")
    x = torch.randn(2, 5, 256, generator=torch.Generator().manual_seed(1))
    expected = layer(x)
    (fusion,) = Fusions(layer)._fusions
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    assert fusion.forward is layer.forward
    del layer.__dict__["forward"]
    assert not len(Fusions(torch.nn.ModuleDict({"experts": torch.nn.ModuleList([layer])})))
    if layer.activations is not None:
        layer.activations = replace(layer.activations, dynamic=False)
        assert not len(Fusions(layer))


@torch.inference_mode()
@pytest.mark.parametrize("scheme", ["w4a16-act-order", "fp8-block", "w8a8-int8-static", "mxfp4"])
def test_quantized_experts_are_computed_as_they_are_stored(scheme):
    """For any routing by the same launches, and without rounding inside `unrounded_inputs`. The experts'
    tensors are parts of one, and what is written into them counts. More on a GPU: `test_gpu`."""
    experts = quantized_experts(scheme, hidden=64, inner=32, dtype=torch.float32, device="cpu")
    generator = torch.Generator().manual_seed(1)
    x, weights = torch.randn(5, 64, generator=generator), torch.rand(5, 2, generator=generator)
    chosen = torch.rand(5, 4, generator=generator).topk(2).indices
    with unrounded_inputs(experts):
        plain = experts(x, chosen, weights)
    expected = experts(x, chosen, weights)
    (fusion,) = Fusions(torch.nn.ModuleDict({"experts": experts}))._fusions
    assert fusion.module is experts
    layers = list(quantized_layers(experts).values())
    assert len({layer.data.untyped_storage().data_ptr() for layer in layers}) == len(experts.layers())
    # A last bit may be a whole step of rounding.
    assert agreement.close(expected.bfloat16(), experts(x, chosen, weights).bfloat16())
    with unrounded_inputs(experts):
        assert agreement.close(plain, experts(x, chosen, weights))
    layers[0].data.zero_()
    layers[1].data.zero_()
    changed = experts(x, chosen, weights)
    experts.__dict__.pop("forward")
    assert agreement.close(experts(x, chosen, weights).bfloat16(), changed.bfloat16())
    layers[-1].register_forward_hook(lambda module, args, output: output)
    assert fused_quantized_experts(experts, {}) is None


@torch.inference_mode()
def test_limits_on_gates_and_biases_that_may_come_are_seen():
    """Random numbers alone reach no limit, and a bias of a router's choice may be zeros at first."""
    model = make_model("qwen3-moe")
    experts = model.model.layers[0].mlp.experts
    assert fused_experts(experts) is not None
    router = model.model.layers[0].mlp.gate
    assert fused_router(router) is not None
    router.register_buffer("bias", torch.zeros(router.num_experts))
    assert fused_router(router) is None
    plain = experts._apply_gate
    experts._apply_gate = lambda gate_up: plain(gate_up.clamp(max=7.0))
    experts.config._experts_implementation = "grouped_mm"
    assert fused_experts(experts) is None
    mlp = make_model("qwen3").model.layers[0].mlp
    assert mlp in [fusion.module for fusion in Fusions(mlp)._fusions]
    mlp.act_fn = torch.nn.Sequential(torch.nn.Hardtanh(-1e9, 7.0), mlp.act_fn)
    assert mlp not in [fusion.module for fusion in Fusions(mlp)._fusions]


@torch.inference_mode()
def test_zeros_prove_nothing():
    """Whatever a gate computes, weights of zeros make zeros of it, and others may come later."""
    gated = make_model("qwen3", hidden_act="gelu_pytorch_tanh").model.layers[0].mlp
    gated.down_proj.weight.zero_()
    centring = make_model("cohere").model.norm
    centring.weight.zero_()
    for part in (gated, centring):
        assert part not in [fusion.module for fusion in Fusions(part)._fusions]


@pytest.mark.usefixtures("interpreted")
def test_fused_parts_see_weights_that_come_later(tiny_models, reference, monkeypatch):
    """Those of a checkpoint after a sleep that dropped the old ones. Graphs that are captured in between are
    not compared with a model whose weights are lost, which would drop them."""
    checks = []
    monkeypatch.setattr(DeviceServing, "capture_graphs", lambda self, *, check: checks.append(check))
    monkeypatch.setattr(device_serving, "check_device_steps", lambda *args, **kwargs: 0.0)
    path = tiny_models.path("qwen3-moe")
    runner = make_runner(tiny_models.path("qwen3-moe", seed=1), num_blocks=8)
    assert runner.max_steps_in_flight == 2
    runner.sleep(level=2)
    runner.wake_up()
    runner.load_weights(load_file(path / "model.safetensors").items())
    runner.capture_graphs()
    assert checks == [False, True]
    job = Driver(runner, num_blocks=8).generate(PROMPTS[1:], 2)[0]
    assert job.output == reference(path).generate(job.prompt, 2)


@pytest.mark.usefixtures("interpreted")
def test_the_check_has_room_for_its_blocks(tiny_models, monkeypatch):
    """However many KV blocks there are, a row of the block table holds those of a whole sequence: more would
    be written beyond the table's end."""
    counts = []
    right = DeviceSteps.execute

    def execute(self, output):
        counts.extend(len(request.block_ids) for request in output.new_requests)
        right(self, output)

    monkeypatch.setattr(DeviceSteps, "execute", execute)
    runner = make_runner(tiny_models.path("llama"), num_blocks=2000, max_num_seqs=2, max_model_len=60)
    serving = runner._on_device
    counts.clear()
    check_device_steps(serving.model, serving.steps, num_blocks=2000, prompt_length=21)
    assert set(counts) == {60 // 4}


@torch.inference_mode()
def test_a_token_may_be_strided():
    """One row reshaped stays a view, whatever lies between its elements."""
    model = make_model("qwen3")
    mlp, norm = model.model.layers[0].mlp, model.model.norm
    x = torch.randn(1, 1, 32, 2, generator=torch.Generator().manual_seed(0))[..., 0]
    parts = (norm, mlp.down_proj, mlp)
    inputs = (x, torch.randn(1, 1, 48, 3)[..., 1], x)
    expected = [part(each) for part, each in zip(parts, inputs, strict=True)]
    assert len(Fusions(norm)) == 1
    assert len(Fusions(mlp, [[mlp.gate_proj, mlp.up_proj]])) == 4
    found = [part(each) for part, each in zip(parts, inputs, strict=True)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_part_that_someone_hooked_is_left_alone():
    model = make_model("qwen3")
    norm = model.model.norm
    norm.register_forward_hook(lambda module, args, output: output * 2)
    assert norm not in [part.module for part in Fusions(model)._fusions]


def test_weights_of_a_librarys_class_are_left_to_it():
    """They have a shape and a dtype, but no memory that a kernel could read."""

    class Quantized(torch.Tensor):
        __torch_function__ = torch._C._disabled_torch_function_impl

        def __new__(cls, data):
            return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=data.dtype)

        def __init__(self, data):
            self.data_of_its_own = data

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            def plain(value):
                return value.data_of_its_own if isinstance(value, cls) else value

            if func is torch.ops.aten.detach.default:
                return args[0]
            return func(*map(plain, args), **(kwargs or {}))

    model = make_model("qwen3")
    layers = [module for module in model.modules() if type(module) is torch.nn.Linear]
    for layer in layers:
        layer.weight = torch.nn.Parameter(Quantized(layer.weight.data), requires_grad=False)
    ids = torch.tensor([[3]])
    groups = layers_by_input(model, lambda: model(input_ids=ids))
    found = {fusion.module for fusion in Fusions(model, groups)._fusions}
    assert not found & {*layers, *(layer.mlp for layer in model.model.layers)}
    assert model.model.norm in found
    assert all(torch.isfinite(model(input_ids=ids).logits).flatten())


@pytest.mark.usefixtures("interpreted")
def test_shutdown_releases_the_model(tiny_models, monkeypatch):
    """At once, not when the garbage collector runs: another model may need the memory."""
    monkeypatch.setattr(device_serving, "check_device_steps", lambda *args, **kwargs: 0.0)
    runner = make_runner(tiny_models.path("qwen3"))
    assert runner.max_steps_in_flight == 2
    weight = weakref.ref(runner._loaded.model.model.model.norm.weight)
    gc.disable()
    try:
        runner.shutdown()
        assert weight() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("family", HYBRIDS)
def test_mixers_that_kernels_compute_for_all_rows_at_once(family):
    """By their functions' names and by trying; others compute row by row."""
    if HYBRIDS[family][0] not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {HYBRIDS[family][0]}")
    model = PackedModel(make_model(family))
    packed = {packed_forward(mixer) is not None for mixer in model.mixers}
    assert packed == {family in PACKED_MIXERS}


def test_a_mixer_is_not_packed_where_its_kernels_give_something_else(monkeypatch):
    mixer = PackedModel(make_model("falcon-h1")).mixers[0]
    assert packed_forward(mixer) is not None
    right = packed_mixers.selective_scan
    monkeypatch.setattr(
        packed_mixers,
        "selective_scan",
        lambda state, **kwargs: right(state=torch.zeros_like(state), **kwargs),
    )
    assert packed_forward(mixer) is None


def test_layers_of_the_same_input_share_a_launch(tiny_models):
    """Queries, keys and values; gate and up. Called with other tensors, each computes its own."""
    model = make_model("qwen3")
    ids = torch.tensor([[3]])
    groups = layers_by_input(model, lambda: model(input_ids=ids))
    first = model.model.layers[0]
    attention = [first.self_attn.q_proj, first.self_attn.k_proj, first.self_attn.v_proj]
    assert list(groups[:2]) == [attention, [first.mlp.gate_proj, first.mlp.up_proj]]
    assert len(groups) == 2 * len(model.model.layers)
    plain = model(input_ids=ids).logits
    fusions = Fusions(model, groups)
    torch.testing.assert_close(model(input_ids=ids).logits, plain, rtol=1e-4, atol=1e-4)
    one, other = torch.randn(2, 1, 1, attention[0].in_features)
    attention[0](one)
    found = [attention[1](other), attention[1](one), attention[1](one)]
    fusions.remove()
    torch.testing.assert_close(found, [attention[1](x) for x in (other, one, one)], rtol=1e-4, atol=1e-5)
