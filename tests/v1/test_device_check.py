"""The check of steps on the device at load, of a model that rounds its inputs to FP8."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.device.graphs import FixedSizes, LaunchedSteps
from dodona.runners.device.steps import DeviceSteps
from dodona.runners.quantization.experts import is_expert_stack
from dodona.runners.v1 import device_check, device_serving
from dodona.runners.v1.device_check import check_device_steps, check_graphs
from dodona.runners.v1.device_model import DeviceModel
from dodona.runners.v1.self_check import TOLERANCE
from tests.v1.driver import make_runner

SIZES = {"num_blocks": 40, "prompt_length": 9}


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_serving, "kernels_run_on", lambda device: True)
        # Those that sample otherwise have the same layout; the interpreter is slow.
        patch.setattr(device_check, "_SAMPLINGS", device_check._SAMPLINGS[:1])
        patch.setattr(device_check, "NEW_TOKENS", 5)
        patch.setattr(device_serving, "_check_length", lambda model: 3)
        yield patch


@pytest.fixture(scope="module")
def serving(tiny_models, module_patch):
    """Steps that round: found right at load."""
    path = tiny_models.path("qwen3", initializer_range=0.15, num_hidden_layers=1)
    runner = make_runner(path, quantization="fp8", num_blocks=SIZES["num_blocks"])
    assert runner.max_steps_in_flight == 2
    yield runner._on_device
    runner.shutdown()


def swapped_blocks(inputs):
    table = inputs.block_table.clone()
    table[:, :2] = table[:, :2].flip(1)
    return replace(inputs, block_table=table)


def a_token_less(inputs):
    return replace(inputs, seq_lens=(inputs.seq_lens - 1).clamp(min=1))


def shifted_positions(inputs):
    if not inputs.num_decodes:
        return inputs
    return replace(inputs, positions=inputs.positions + 1)


def anothers_slot(inputs):
    """The last token's keys lie where the first token of the cache does."""
    slots = inputs.slots.clone()
    slots[-1] = 0
    return replace(inputs, slots=slots)


def anothers_row(inputs):
    return replace(inputs, rows=inputs.rows.flip(0))


@pytest.mark.parametrize(
    "fault", [swapped_blocks, a_token_less, shifted_positions, anothers_slot, anothers_row]
)
def test_wrong_layouts_are_found(serving, monkeypatch, fault):
    """Not by a bound that rounding would blur: it is that of models that round nothing."""
    right = DeviceModel.forward

    def forward(self, inputs, caches, *, wanted=None):
        return right(self, fault(inputs), caches, wanted=wanted)

    monkeypatch.setattr(DeviceModel, "forward", forward)
    with pytest.raises(UnsupportedConfiguration, match=rf"plain model .*limit {TOLERANCE[torch.float32]:g}"):
        check_device_steps(serving.model, serving.steps, **SIZES)


def test_drafts_are_verified_in_the_check(serving, monkeypatch):
    """By entries of one row that follow one another: each sees those before it."""
    steps = DeviceSteps(serving.model, serving.steps.limits, capture=False, num_speculative_tokens=2)
    steps.initialize(SIZES["num_blocks"])
    assert check_device_steps(serving.model, steps, **SIZES) <= TOLERANCE[torch.float32]
    right, seen = DeviceModel.forward, []

    def forward(self, inputs, caches, *, wanted=None):
        seen.append(inputs.has_drafts)
        return right(self, a_token_less(inputs) if inputs.has_drafts else inputs, caches, wanted=wanted)

    monkeypatch.setattr(DeviceModel, "forward", forward)
    with pytest.raises(UnsupportedConfiguration, match="plain model"):
        check_device_steps(serving.model, steps, **SIZES)
    assert seen.count(True) == 1


def test_a_near_tie_of_experts_is_no_fault(tiny_models, module_patch, monkeypatch):
    """A step may choose another expert than the plain model; a wrong layout is found all the same."""
    path = tiny_models.path("qwen3-moe", initializer_range=0.15, num_hidden_layers=1)
    with monkeypatch.context() as patch:
        patch.setattr(device_serving, "check_device_steps", lambda *args, **kwargs: 0.0)
        serving = make_runner(path, num_blocks=SIZES["num_blocks"])._on_device
    serving.model.fusions.remove()  # which the interpreter computes slowly
    serving.model.fusions._fusions = ()
    right, is_step = DeviceModel.forward, False

    def swap(module, args):
        hidden, chosen, weights = args
        return (hidden, chosen.flip(1), weights) if is_step else args

    (experts,) = (m for m in serving.model.packed.model.modules() if is_expert_stack(m))
    experts.register_forward_pre_hook(swap)
    faults = []

    def forward(self, inputs, caches, *, wanted=None):
        nonlocal is_step
        is_step = True
        for fault in faults:
            inputs = fault(inputs)
        found = right(self, inputs, caches, wanted=wanted)
        is_step = False
        return found

    monkeypatch.setattr(DeviceModel, "forward", forward)
    assert check_device_steps(serving.model, serving.steps, **SIZES) <= TOLERANCE[torch.float32]
    faults.append(anothers_slot)
    with pytest.raises(UnsupportedConfiguration, match="plain model"):
        check_device_steps(serving.model, serving.steps, **SIZES)


class Stale(LaunchedSteps):
    """Graphs of which those of one decode hold another size's step."""

    def replay(self, step):
        super().replay(step)
        if step.size == 1 and not step.is_prompt:
            logits = self.steps.logits(1)
            logits.copy_(logits.roll(1, 1))


def test_graphs_are_compared_with_the_same_steps_launched(serving):
    """As they serve: with the rounding that they hold."""
    steps = serving.steps
    wrong = Stale(FixedSizes((1, 2), ()), steps.ready.steps.run)
    wrong.steps = steps.ready.steps
    steps.use_graphs(wrong)
    try:
        with pytest.raises(UnsupportedConfiguration, match="a graph's step differs"):
            check_graphs(serving.model, steps, **SIZES)
        assert steps.ready.graphs is wrong
    finally:
        steps.use_graphs(None)
