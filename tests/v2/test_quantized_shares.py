"""What a tensor-parallel rank holds of quantized layers: together the ranks hold the checkpoint's values."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file

from checkpoints.quantize import quantize_checkpoint
from dodona.kernels.linear.quantized_weight import dequantize
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError, UnsupportedConfiguration
from dodona.oracle.models.model_info import ModelInfo
from dodona.oracle.select import select_runner
from dodona.oracle.systems.own.parallel import quantized_share_fault
from dodona.oracle.systems.own.quantization import quantization_of
from dodona.runners.limits import resolve_limits
from dodona.runners.v2.loading import loader
from dodona.runners.v2.loading.loader import load_safetensors
from dodona.runners.v2.loading.quantized import fill_parts, fill_parts_randomly
from dodona.runners.v2.models.registry import checkpoint_shares, checkpoint_views, make_spec, quantized_parts
from dodona.runners.v2.models.spec import share_spec
from dodona.runners.v2.models.weights import allocate_weights
from tests.v2.test_quantized import GPU, SERVED

SIZES = {
    "hidden_size": 32, "intermediate_size": 512, "num_hidden_layers": 1, "head_dim": 128,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
"""Four ranks have a block of 128 each; neighbours have the same key/value head."""


@pytest.fixture(scope="module")
def checkpoint(tiny_models, tmp_path_factory):
    """(directory, flags) of a tiny Qwen3, by format."""
    root = tmp_path_factory.mktemp("quantized")

    def get(name, **changes):
        source = tiny_models.path("qwen3", **{**SIZES, **changes})
        if name.startswith("online-"):
            return source, {"quantization": name.removeprefix("online-")}
        path = root / "-".join(map(str, (name, *changes.values())))
        if not path.exists():
            quantize_checkpoint(source, path, name, prompts=[[3, 5, 7]])
        return path, {}

    return get


def parts_of(path, rank, ranks, **flags):
    """(spec, weights, parts) of a rank, not filled."""
    config, model = EngineConfig.from_flat(str(path), device="cpu", **flags), ModelInfo.load(path)
    whole = make_spec(model, resolve_limits(config, model), quantization_of(config, model))
    spec = share_spec(whole, rank, ranks)
    weights = allocate_weights(spec, torch.device("cpu"))
    return spec, weights, quantized_parts(spec, weights)


def load_parts(path, rank, ranks, **flags):
    spec, weights, parts = parts_of(path, rank, ranks, **flags)
    views, shares = checkpoint_views(spec, weights), checkpoint_shares(spec)
    load_safetensors(path, views, parts, tied=spec.tie_word_embeddings, shares=shares)
    return parts


def check_together(of_ranks, alone):
    ranks = len(of_ranks)
    for name, part in alone.items():
        values = [dequantize(parts[name].target) for parts in of_ranks]
        if name.endswith(("k_proj", "v_proj")):
            same = ranks // 2
            assert all(torch.equal(value, values[i - i % same]) for i, value in enumerate(values)), name
            values = values[::same]
        dim = 1 if name.endswith(("o_proj", "down_proj")) else 0
        assert torch.equal(torch.cat(values, dim), dequantize(part.target)), name


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", [*SERVED, "online-fp8", "online-int8"])
def test_ranks_hold_the_checkpoint_together(name, ranks, checkpoint):
    path, flags = checkpoint(name)
    of_ranks = [load_parts(path, rank, ranks, **flags) for rank in range(ranks)]
    assert len(of_ranks[0]) == 7
    check_together(of_ranks, load_parts(path, 0, 1, **flags))


@pytest.mark.parametrize("name", ["w4a16-asym", "w8a16", "fp8"])
def test_random_weights_are_those_of_one_rank(name, checkpoint):
    path, _ = checkpoint(name)

    def filled(rank, ranks):
        *_, parts = parts_of(path, rank, ranks)
        fill_parts_randomly(parts, seed=4)
        return parts

    check_together([filled(rank, 4) for rank in range(4)], filled(0, 1))


@pytest.mark.parametrize("name", ["w4a16-asym", "gptq", "awq", "fp8", "w8a8-int8"])
def test_no_rank_reads_the_numbers_of_others(name, checkpoint, monkeypatch):
    path, _ = checkpoint(name)
    whole, opened = [], loader.open_safetensors

    @contextmanager
    def spying(file):
        with opened(file) as stored:

            class Spy:
                def get_tensor(self, tensor):
                    whole.append(tensor)
                    return stored.get_tensor(tensor)

                def __getattr__(self, attribute):
                    return getattr(stored, attribute)

            yield Spy()

    monkeypatch.setattr(loader, "open_safetensors", spying)
    load_parts(path, 1, 2)
    read = {tensor.rpartition(".")[2] for tensor in whole if "_proj." in tensor}
    assert read <= {"g_idx", "weight_shape", "weight_scale"}
    assert not [tensor for tensor in whole if tensor.endswith("up_proj.weight_scale")]


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "w4a16",
            {"intermediate_size": 96},
            "down_proj: each of 2 parts has 48 of 96 inputs, no multiple of 32",
        ),
        (
            "gptq-8bit",
            {"head_dim": 16, "num_attention_heads": 2},
            "o_proj: each of 2 parts has 16 of 32 inputs",
        ),
        ("fp8", {"head_dim": 32}, "q_proj: each of 2 parts has 64 of 128 results, no multiple of 128"),
        ("w8a8-fp8-block", {"intermediate_size": 384}, "gate_proj: each of 2 parts has 192 of 384 results"),
        ("awq", {"num_key_value_heads": 1}, None),
    ],
)
def test_what_would_cut_groups_is_a_rule(name, changes, words, checkpoint):
    path, _ = checkpoint(name, **changes)
    config = EngineConfig.from_flat(str(path), tensor_parallel_size=2, device="cuda")
    fault = quantized_share_fault(config, ModelInfo.load(path))
    verdict = select_runner(config, environment=GPU)
    if words is None:
        assert (fault, verdict.runner) == (None, "v2")
        return
    assert words in fault
    assert verdict.runner == "v1"
    assert "tensor-parallel-groups" in {reason.rule for reason in verdict.reasons}
    with pytest.raises(UnsupportedConfiguration, match=r"tensor-parallel-groups: model\.layers\.0") as caught:
        parts_of(path, 0, 2)
    assert fault in str(caught.value)


def test_groups_that_are_not_a_ranks_own_are_an_error(checkpoint):
    """Of GPTQ, whose files number the groups."""
    path, _ = checkpoint("gptq")
    *_, parts = parts_of(path, 1, 2)
    name = "model.layers.0.mlp.down_proj"
    stored = load_file(path / "model.safetensors")
    stored[f"{name}.g_idx"] = stored[f"{name}.g_idx"].flip(0).contiguous()
    with pytest.raises(ConfigError, match=r"down_proj\.g_idx: expected each group's number 32 times"):
        fill_parts({name: parts[name]}, lambda tensor, place: stored[tensor][place or ...])
