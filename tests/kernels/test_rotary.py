from __future__ import annotations

import pytest
import torch

from dodona.kernels.attention.arguments import AttentionShape, NewTokens, QKNorm
from dodona.kernels.attention.rotary import qk_norm_rope_kv_write, qk_norm_rope_kv_write_reference


def make_case(tokens, num_q_heads, num_kv_heads, head_size, block_size, dtype, device, generator):
    num_blocks = 6
    qkv = torch.randn(
        tokens, (num_q_heads + 2 * num_kv_heads) * head_size, generator=generator, device=device
    )
    angles = torch.rand(64, head_size // 2, generator=generator, device=device) * 6
    slots = torch.randperm(num_blocks * block_size, generator=generator, device=device)[:tokens].int()
    return {
        "qkv": qkv.to(dtype),
        "tokens": NewTokens(
            positions=torch.randint(0, 64, (tokens,), generator=generator, device=device).int(),
            slots=slots,
            cos_sin=torch.cat([angles.cos(), angles.sin()], dim=-1),
        ),
        "kv_cache": torch.randn(
            num_blocks, 2, num_kv_heads, block_size, head_size, generator=generator, device=device
        ).to(dtype),
        "norm": QKNorm(
            q_weight=torch.randn(head_size, generator=generator, device=device).to(dtype),
            k_weight=torch.randn(head_size, generator=generator, device=device).to(dtype),
            eps=1e-6,
        ),
        "shape": AttentionShape(num_q_heads, num_kv_heads, head_size, head_size**-0.5),
    }


@pytest.mark.parametrize(
    ("num_q_heads", "num_kv_heads", "head_size"),
    [(4, 2, 16), (3, 1, 32), (5, 5, 64), (16, 8, 128), (4, 1, 256), (14, 2, 64)],
)
@pytest.mark.parametrize("with_norm", [True, False])
@pytest.mark.parametrize("keys_in_place", [True, False])
def test_agrees_with_torch(
    num_q_heads, num_kv_heads, head_size, with_norm, keys_in_place, dtype, device, tolerance, generator
):
    case = make_case(5, num_q_heads, num_kv_heads, head_size, 16, dtype, device, generator)
    if not with_norm:
        case["norm"] = None
    case["tokens"].slots[1] = -1
    case["qkv"][1, ::3] = float("nan")
    case["keys_in_place"] = keys_in_place
    expected, expected_cache = qk_norm_rope_kv_write_reference(**case)
    before = case["qkv"].clone()
    before[1] = 0  # of a token without a slot nothing may be left that is not a number
    q = qk_norm_rope_kv_write(**case)
    torch.testing.assert_close(q, expected[:, :num_q_heads], **tolerance)
    torch.testing.assert_close(case["kv_cache"], expected_cache, **tolerance)
    overwritten = expected.shape[1] * head_size
    assert overwritten == (num_q_heads + (num_kv_heads if keys_in_place else 0)) * head_size
    torch.testing.assert_close(case["qkv"][:, :overwritten], expected.flatten(1), **tolerance)
    # The rest of the projection stays as it was.
    torch.testing.assert_close(case["qkv"][:, overwritten:], before[:, overwritten:], rtol=0, atol=0)
    assert not case["qkv"][1].any()


def test_rotation_is_that_of_transformers(device, generator):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    case = make_case(4, 2, 2, 32, 16, torch.float32, device, generator)
    case["norm"], tokens = None, case["tokens"]
    heads = case["qkv"].clone().view(4, 6, 32)
    cos, sin = tokens.cos_sin[tokens.positions.long()].chunk(2, dim=-1)
    cos, sin = (torch.cat([t, t], dim=-1)[None] for t in (cos, sin))
    expected_q, expected_k = apply_rotary_pos_emb(
        heads[:, :2].transpose(0, 1)[None], heads[:, 2:4].transpose(0, 1)[None], cos, sin
    )
    q = qk_norm_rope_kv_write(**case)
    torch.testing.assert_close(q, expected_q[0].transpose(0, 1), rtol=1e-5, atol=1e-5)
    slots = tokens.slots.long()
    k = case["kv_cache"][slots // 16, 0, :, slots % 16]
    torch.testing.assert_close(k, expected_k[0].transpose(0, 1), rtol=1e-5, atol=1e-5)
    v = case["kv_cache"][slots // 16, 1, :, slots % 16]
    torch.testing.assert_close(v, heads[:, 4:], rtol=0, atol=0)
