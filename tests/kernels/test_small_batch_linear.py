"""Linear layers of small batches against torch, on the GPU: Gluon has no interpreter."""

from __future__ import annotations

import pytest
import torch

from dodona.kernels.linear.single_token_linear import fused_linear_reference
from dodona.kernels.linear.small_batch_linear import (
    Tiles,
    max_small_batch_tokens,
    small_batch_linear,
    supports_small_batch_linear,
)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9, 16])
@pytest.mark.parametrize(
    ("columns", "inner"),
    [(48, 64), (100, 40), (2056, 96), (24, 5000), (4096, 1024), (1024, 3072), (64, 12288), (4096, 4104)],
)
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("epilogue", ["plain", "residual", "silu_mul"])
@pytest.mark.parametrize("tiles", [None, Tiles(columns=32, num_warps=8, ahead=4)], ids=["chosen", "wide"])
def test_agrees_with_torch(tokens, columns, inner, norm, epilogue, tiles, hopper, generator):
    def random(*shape):
        return torch.randn(shape, generator=generator, device=hopper).bfloat16()

    x, weight = random(tokens, inner), random(columns * (2 if epilogue == "silu_mul" else 1), inner)
    weight /= inner**0.5
    residual = random(tokens, columns) if epilogue == "residual" else None
    case = {
        "x": x, "weight": weight, "norm_weight": random(inner) if norm else None, "eps": 1e-5,
        "silu_mul": epilogue == "silu_mul",
    }  # fmt: skip
    expected = fused_linear_reference(**case, residual=residual)
    case["tiles"] = tiles
    # What is beyond the tokens is another's.
    whole = torch.full((tokens + 1, columns), 7.0, device=hopper, dtype=torch.bfloat16)
    if residual is None:
        actual = small_batch_linear(**case, out=whole[:tokens])
    else:
        whole[:tokens] = residual
        actual = small_batch_linear(**case, residual=whole[:tokens])
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)
    assert (actual.float() - expected.float()).norm() < 6e-3 * expected.float().norm()
    assert (whole[tokens] == 7).all()


def test_unfit_operands_are_refused():
    x, weight = torch.zeros(17, 64), torch.zeros(8, 64)
    with pytest.raises(ValueError, match="at most 16 rows, got 17"):
        small_batch_linear(x=x, weight=weight)
    with pytest.raises(ValueError, match="multiple of 8 elements, got 60"):
        small_batch_linear(x=x[:2, :60], weight=weight[:, :60])
    assert max_small_batch_tokens(1024) <= 16


def test_float16_and_other_devices_are_left_to_other_kernels():
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    assert not supports_small_batch_linear(device=device, dtype=torch.float16, sizes=[64])
    assert not supports_small_batch_linear(device=torch.device("cpu"), dtype=torch.bfloat16, sizes=[64])
