"""Which scheme a layer has: rules whose targets overlap, and layers that GPTQ's configuration leaves out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from checkpoints.quantize import FORMATS
from dodona.oracle.models.quantization import read_quantization

NAMES = [
    f"model.layers.{index}.{part}"
    for index, part in itertools.product((0, 1, 10), ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"))
]
TARGETS = ["Linear", "re:.*proj$", "re:.*down.*", "re:model[.]layers[.]1[.].*", NAMES[0], NAMES[5]]
GPTQ: Mapping[str, Any] = FORMATS["gptq"].config


def config_of(targets: tuple[str, ...], **more: Any) -> dict[str, Any]:
    """A group of its own for each target, told apart by its number of weights that share a scale."""
    group = FORMATS["w4a16"].config["config_groups"]["group_0"]
    groups = {
        f"group_{index}": {
            **group,
            "targets": [target],
            "weights": {**group["weights"], "group_size": 8 * (index + 1)},
        }
        for index, target in enumerate(targets)
    }
    return {**FORMATS["w4a16"].config, "config_groups": groups, **more}


def test_targets_that_overlap_as_compressed_tensors_has_them() -> None:
    match = pytest.importorskip("compressed_tensors.utils.match", reason="extra 'dev' is not installed")
    layer = torch.nn.Linear(1, 1)
    for targets in itertools.permutations(TARGETS, 3):
        found = read_quantization("compressed-tensors", config_of(targets))
        for name in NAMES:
            scheme = found.scheme_of(name)
            matched = match.match_targets(name, layer, targets)
            expected = 8 * (targets.index(matched[0]) + 1) if matched else None
            assert (None if scheme is None else scheme.group_size) == expected, (name, targets)


def test_of_two_groups_with_one_target_the_last_decides() -> None:
    found = read_quantization("compressed-tensors", config_of(("Linear", "Linear")))
    scheme = found.scheme_of("x")
    assert scheme is not None
    assert scheme.group_size == 16


@pytest.mark.parametrize("listed", [["mlp.up_proj", "q_proj"], [["mlp.up_proj"], ["q_proj"]]])
def test_gptq_quantizes_the_layers_of_a_block_that_it_names(listed: Any) -> None:
    found = read_quantization("gptq", {**GPTQ, "modules_in_block_to_quantize": listed})
    quantized = {name for name in NAMES if found.scheme_of(name) is not None}
    assert quantized == {name for name in NAMES if "down" not in name}
    assert found.overall_scheme(1) == "mixed"
    assert read_quantization("gptq", {**GPTQ, "modules_in_block_to_quantize": [[3]]}).unreadable


def test_gptq_skips_the_layers_of_negative_patterns() -> None:
    found = read_quantization("gptq", {**GPTQ, "dynamic": {r"-:.*\.1\..*": {}, "-:.*down": {}}})
    skipped = {name for name in NAMES if found.scheme_of(name) is None}
    assert skipped == {name for name in NAMES if ".1." in name or "down" in name}
    for dynamic, words in (
        ({"+:.*down": {"bits": 8}}, "parameters of their own"),
        ({".*down": {"bits": 8}}, "parameters of their own"),
        ({"-:(.*)*": {}}, "repeats a group"),
    ):
        assert words in str(read_quantization("gptq", {**GPTQ, "dynamic": dynamic}).unreadable)
