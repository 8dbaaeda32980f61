"""Storage formats against compressed-tensors' own code, and against their definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from checkpoints.quantize import FORMATS, GROUP
from dodona.kernels.linear.quantized_weight import dequantize, pack_nibbles, round_rows, unpack_nibbles
from dodona.oracle.errors import ConfigError
from dodona.oracle.models.quantization import read_quantization
from dodona.runners.quantization.formats import LinearShape
from dodona.runners.quantization.linear import StoredLinear
from tests.support.quantized_reference import dense_weight, rounded_input

ROWS, INNER = 24, 96
COMPRESSED = [
    name
    for name, made in FORMATS.items()
    # compressed-tensors 0.20 has given up groups in the order of activations.
    if made.config["quant_method"] == "compressed-tensors" and name != "w4a16-act-order"
]


def make(name: str, seed: int = 0) -> tuple[torch.Tensor, StoredLinear, dict[str, torch.Tensor]]:
    """(the weight, a layer filled with its stored tensors, those)."""
    made = FORMATS[name]
    weight = torch.randn(ROWS, INNER, generator=torch.Generator().manual_seed(seed))
    tensors = made.store(weight)
    if made.has_input_scales:
        tensors["input_scale"] = torch.tensor([0.03])
    config = read_quantization(str(made.config["quant_method"]), made.config)
    assert config.unreadable is None
    scheme = config.scheme_of("model.layers.0.mlp.up_proj")
    assert scheme is not None
    stored = StoredLinear(
        scheme, LinearShape("up", ROWS, INNER), bias=False, dtype=torch.float32, device=torch.device("cpu")
    )
    buffers = dict(stored.named_buffers())
    assert buffers.keys() == tensors.keys()
    for key, value in tensors.items():
        assert buffers[key].shape == value.shape, key
        buffers[key].copy_(value)
    return weight, stored, tensors


@pytest.mark.parametrize("name", FORMATS)
def test_a_layer_is_what_its_format_says(name: str) -> None:
    weight, stored, tensors = make(name)
    layer = stored.converted()
    values = dequantize(layer.quantized_weight)
    expected = dense_weight(FORMATS[name].config, tensors)
    if layer.order is not None:
        values = values[:, layer.order.argsort()]
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-7)
    # The definition itself is right: it gives back what was stored, as far as the bits go.
    bits = 8 if "8" in name else 4
    assert (expected - weight).norm() < {8: 0.03, 4: 0.12}[bits] * weight.norm()
    x = torch.randn(3, 2, INNER, generator=torch.Generator().manual_seed(1))
    product = rounded_input(FORMATS[name].config, x, tensors.get("input_scale")) @ expected.T
    torch.testing.assert_close(layer(x), product, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", COMPRESSED)
def test_agrees_with_compressed_tensors(name: str) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed (extra 'dev')")
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme, QuantizationStatus
    from compressed_tensors.quantization.lifecycle.forward import forward_quantize

    config: Any = FORMATS[name].config
    _, stored, tensors = make(name)
    scheme = QuantizationScheme(**config["config_groups"]["group_0"])
    library = BaseCompressor.get_value_from_registry(config["format"])
    wide = {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in tensors.items()}
    expected = library.decompress(wide, scheme)["weight"].float()
    values = dequantize(stored.converted().quantized_weight)
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-7)
    if scheme.input_activations is None:
        return
    x = torch.randn(2, 5, INNER, generator=torch.Generator().manual_seed(1))
    if scheme.input_activations.strategy == "group":
        x = x[0, :, :64]
        scheme.input_activations.group_size = 32
    module = torch.nn.Module()
    if "input_scale" in tensors:
        module.input_scale = torch.nn.Parameter(tensors["input_scale"])
        module.input_zero_point = torch.nn.Parameter(torch.zeros(1))
    module.quantization_status = QuantizationStatus.COMPRESSED
    expected = forward_quantize(module, x, "input", scheme.input_activations)
    actual = round_rows(
        x,
        kind="fp8" if scheme.input_activations.type == "float" else "int8",
        group_size=scheme.input_activations.group_size,
        scale=tensors.get("input_scale"),
        symmetric=scheme.input_activations.symmetric,
    )
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


def test_nibbles_pack_and_unpack() -> None:
    values = torch.randint(0, 16, (5, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    words = pack_nibbles(values)
    assert words.shape == (5, 8)
    assert torch.equal(unpack_nibbles(words), values)
    # Neighbours are the halves of what a shift and a mask leave.
    assert words[0, 0].item() >> 4 & 0x000F000F == values[0, 2].item() | values[0, 3].item() << 16


def test_rounding_of_a_row_does_not_depend_on_other_rows() -> None:
    x = torch.randn(4, 40, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[1.0], [100], [0], [1e-3]]
    )
    for kind in ("int8", "fp8"):
        together = round_rows(x, kind=kind, group_size=16)
        apart = torch.cat([round_rows(row[None], kind=kind, group_size=16) for row in x])
        assert torch.equal(together, apart)
        assert (together - x).abs().max(1).values.le(x.abs().max(1).values * 0.04).all()


def test_an_index_of_groups_that_is_none_is_refused() -> None:
    for name in ("gptq-act-order", "w4a16-act-order"):
        _, stored, _ = make(name)
        index = stored.get_buffer("g_idx" if name.startswith("gptq") else "weight_g_idx")
        index[0] = (index[0] + 1) % (INNER // GROUP)
        with pytest.raises(ConfigError, match=r"up\.\w*g_idx: expected each group's number 32 times"):
            stored.converted()


def test_an_order_of_groups_that_config_json_does_not_mention_is_refused() -> None:
    _, stored, _ = make("gptq")
    stored.get_buffer("g_idx").copy_(make("gptq-act-order")[1].get_buffer("g_idx"))
    with pytest.raises(ConfigError, match="desc_act false; set it to true"):
        stored.converted()


def test_a_size_that_a_format_cannot_pack_is_refused() -> None:
    scheme = read_quantization("awq", FORMATS["awq"].config).scheme_of("x")
    assert scheme is not None
    with pytest.raises(ConfigError, match="layer 'odd': its output size 12 is not a multiple of 8"):
        StoredLinear(
            scheme, LinearShape("odd", 12, 32), bias=False, dtype=torch.float32, device=torch.device("cpu")
        )
