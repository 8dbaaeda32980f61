"""Rotary angles against transformers' own."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from dodona.runners.v2.models.rope import cos_sin_table, inverse_frequencies
from dodona.runners.v2.models.spec import RopeSpec

LLAMA_3_1 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("theta", "parameters"),
    [(10000.0, {}), (1e6, {}), (500000.0, LLAMA_3_1), (10000.0, {**LLAMA_3_1, "factor": 32.0})],
)
@pytest.mark.parametrize("head_size", [16, 64, 128])
def test_tables_agree_with_transformers(theta, parameters, head_size):
    rope_type = "llama3" if parameters else "default"
    config = LlamaConfig(
        hidden_size=2 * head_size,
        num_attention_heads=2,
        head_dim=head_size,
        max_position_embeddings=131072,
        rope_parameters={"rope_type": rope_type, "rope_theta": theta, **parameters},
    )
    theirs = LlamaRotaryEmbedding(config)
    spec = RopeSpec(rope_type, theta, **parameters)
    torch.testing.assert_close(inverse_frequencies(spec, head_size), theirs.inv_freq, rtol=1e-6, atol=0)
    positions = torch.tensor([[0, 1, 77, 4095]])
    cos, sin = theirs(torch.zeros(1, 4, head_size), positions)
    table = cos_sin_table(spec, head_size, 4096)[positions[0]]
    half = head_size // 2
    torch.testing.assert_close(table[:, :half], cos[0, :, :half], rtol=0, atol=1e-4)
    torch.testing.assert_close(table[:, half:], sin[0, :, :half], rtol=0, atol=1e-4)


def test_other_types_are_refused():
    with pytest.raises(ValueError, match="yarn"):
        inverse_frequencies(RopeSpec("yarn", 10000.0), 64)
