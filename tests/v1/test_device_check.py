"""The check of steps on the device at load, of a model that rounds its inputs to FP8."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.device.graphs import FixedSizes, LaunchedSteps
from dodona.runners.v1 import device_check, device_serving
from dodona.runners.v1.device_check import check_device_steps, check_graphs
from dodona.runners.v1.device_model import DeviceModel
from dodona.runners.v1.self_check import TOLERANCE
from tests.v1.driver import make_runner

SIZES = {"num_blocks": 40, "prompt_length": 9}


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def serving(tiny_models, module_patch):
    """Steps that round: found right at load."""
    module_patch.setattr(device_serving, "kernels_run_on", lambda device: True)
    # Those that sample otherwise have the same layout; the interpreter is slow.
    module_patch.setattr(device_check, "_SAMPLINGS", device_check._SAMPLINGS[:1])
    module_patch.setattr(device_check, "NEW_TOKENS", 5)
    module_patch.setattr(device_serving, "_check_length", lambda model: 3)
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


class Stale(LaunchedSteps):
    """Graphs of which those of one decode hold another size's step."""

    def replay(self, step):
        super().replay(step)
        if step.size == 1 and not step.is_prompt:
            logits = self.steps.logits(1)
            logits.copy_(logits.roll(1, 1))


def test_graphs_are_compared_with_the_same_steps_launched(serving, monkeypatch):
    """As they serve: with the rounding that they hold."""
    steps = serving.steps
    sizes = FixedSizes((1, 2), ())
    right = LaunchedSteps(sizes, steps.ready.steps.run)
    wrong = Stale(sizes, steps.ready.steps.run)
    wrong.steps = steps.ready.steps
    try:
        steps.use_graphs(right)
        assert check_graphs(serving.model, steps, **SIZES) <= TOLERANCE[torch.float32]
        assert steps.ready.graphs is right
        steps.use_graphs(wrong)
        with pytest.raises(UnsupportedConfiguration, match="a graph's step differs"):
            check_graphs(serving.model, steps, **SIZES)
    finally:
        steps.use_graphs(None)
