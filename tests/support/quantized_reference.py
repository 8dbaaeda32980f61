"""What quantized layers mean, written out from the formats' documentation and independent of the runners, and
transformers' plain model with such layers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from checkpoints.quantize import LINEAR

Tensors = Mapping[str, torch.Tensor]


def bits_of(word: int, bits: int, place: int) -> int:
    """The unsigned number at a place of an int32."""
    return ((word & 0xFFFFFFFF) >> (bits * place)) & ((1 << bits) - 1)


def dense_weight(config: Mapping[str, Any], layer: Tensors) -> torch.Tensor:
    """[out, in] fp32 of a layer's stored tensors."""
    method = config["quant_method"]
    if method == "gptq":
        return _gptq(config["bits"], layer)
    if method == "awq":
        return _awq(config["group_size"], layer)
    if method == "fp8":
        return _blocks(
            layer["weight"].float(), layer["weight_scale_inv"].float(), config["weight_block_size"]
        )
    weights = config["config_groups"]["group_0"]["weights"]
    if config["format"] == "pack-quantized":
        return _packed(weights, layer)
    if weights["strategy"] == "block":
        return _blocks(layer["weight"].float(), layer["weight_scale"].float(), weights["block_structure"])
    return layer["weight"].float() * layer["weight_scale"].float()


def _gptq(bits: int, layer: Tensors) -> torch.Tensor:
    """w[n, k] = s[g_idx[k], n] * (q[k, n] - (z[g_idx[k], n] + 1))."""
    per_word = 32 // bits
    words, zeros, groups = layer["qweight"].tolist(), layer["qzeros"].tolist(), layer["g_idx"].tolist()
    scales = layer["scales"].float()
    made = torch.empty(scales.shape[1], len(groups))
    for k, group in enumerate(groups):
        for n in range(made.shape[0]):
            value = bits_of(words[k // per_word][n], bits, k % per_word)
            zero = bits_of(zeros[group][n // per_word], bits, n % per_word) + 1
            made[n, k] = scales[group, n] * (value - zero)
    return made


def _awq(group_size: int, layer: Tensors) -> torch.Tensor:
    """Eight columns in a word, in the order 0, 2, 4, 6, 1, 3, 5, 7."""
    place = {column: i for i, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7))}
    words, zeros, scales = layer["qweight"].tolist(), layer["qzeros"].tolist(), layer["scales"].float()
    made = torch.empty(scales.shape[1], len(words))
    for k in range(made.shape[1]):
        group = k // group_size
        for n in range(made.shape[0]):
            value = bits_of(words[k][n // 8], 4, place[n % 8])
            made[n, k] = scales[group, n] * (value - bits_of(zeros[group][n // 8], 4, place[n % 8]))
    return made


def _packed(weights: Mapping[str, Any], layer: Tensors) -> torch.Tensor:
    """Offset binary, packed along the inner dimension; zero points along the rows."""
    bits, (rows, inner) = weights["num_bits"], layer["weight_shape"].tolist()
    per_word, offset = 32 // bits, 1 << (bits - 1)
    words, scales = layer["weight_packed"].tolist(), layer["weight_scale"].float()
    size = weights.get("group_size") or inner
    groups = layer["weight_g_idx"].tolist() if "weight_g_idx" in layer else [k // size for k in range(inner)]
    zeros = layer["weight_zero_point"].tolist() if "weight_zero_point" in layer else None
    made = torch.empty(rows, inner)
    for n in range(rows):
        for k, group in enumerate(groups):
            zero = offset if zeros is None else bits_of(zeros[n // per_word][group], bits, n % per_word)
            made[n, k] = scales[n, group] * (bits_of(words[n][k // per_word], bits, k % per_word) - zero)
    return made


def _blocks(values: torch.Tensor, scales: torch.Tensor, block: list[int]) -> torch.Tensor:
    made = values.clone()
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            made[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]] *= scales[i, j]
    return made


def rounded_input(
    config: Mapping[str, Any], x: torch.Tensor, input_scale: torch.Tensor | None, *, ranks: int = 1
) -> torch.Tensor:
    """`x` [..., in] fp32 as the layer's product sees it, on ranks that each round their part of it."""
    if config["quant_method"] == "fp8":
        activations: Any = {
            "type": "float",
            "strategy": "group",
            "group_size": config["weight_block_size"][1],
        }
    elif config["quant_method"] == "compressed-tensors":
        activations = config["config_groups"]["group_0"]["input_activations"]
    else:
        activations = None
    if activations is None:
        return x
    size = activations.get("group_size") or x.shape[-1] // ranks
    parts = []
    for part in x.split(size, dim=-1):
        largest = part.abs().amax(-1, keepdim=True)
        if activations["type"] == "float":
            scale = (largest / 448).clamp(min=1e-30) if input_scale is None else input_scale
            parts.append((part / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale)
        elif activations.get("symmetric", True):
            scale = (largest / 127.5).clamp(min=1e-30) if input_scale is None else input_scale
            parts.append((part / scale).round().clamp(-128, 127) * scale)
        else:
            low, high = part.amin(-1, keepdim=True).clamp(max=0), part.amax(-1, keepdim=True).clamp(min=0)
            scale = (high - low).clamp(min=1e-30) / 255
            zero = (-128 - low / scale).round()
            parts.append(((part / scale + zero).round().clamp(-128, 127) - zero) * scale)
    return torch.cat(parts, dim=-1)


_MIXTRAL = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def _module_name(stored: str) -> str:
    """transformers' name of a tensor that Mixtral's checkpoints call otherwise."""
    named = re.sub(r"\.w([123])\.", lambda m: f".{_MIXTRAL['w' + m[1]]}.", stored)
    return named.replace(".block_sparse_moe.", ".mlp.")


def plain_model(path: Path, *, ranks: int = 1) -> Any:
    """transformers' model of a quantized directory in fp32, with linear layers and experts that do what is
    written out above. ranks: how many round the inputs of layers whose inputs they share."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = json.loads((path / "config.json").read_text())["quantization_config"]
    raw = load_file(path / "model.safetensors")
    stored = {_module_name(name): tensor for name, tensor in raw.items()}
    model_config = AutoConfig.from_pretrained(path)
    del model_config.quantization_config
    model: Any = AutoModelForCausalLM.from_config(
        model_config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model.generation_config.eos_token_id = None  # `min_new_tokens` would suppress it

    def layer(prefix: str) -> dict[str, torch.Tensor]:
        return {n.removeprefix(prefix): t for n, t in stored.items() if n.startswith(prefix)}

    dense: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            continue
        if LINEAR.fullmatch(name):
            prefix = name.removesuffix("weight")
            tensors = layer(prefix)
            dense[name] = dense_weight(config, tensors)
            module = model.get_submodule(prefix[:-1])
            scale = tensors.get("input_scale")
            shares = ranks if prefix.endswith(("o_proj.", "down_proj.")) else 1
            module.register_forward_pre_hook(
                lambda module, args, scale=scale, ranks=shares: (
                    rounded_input(config, args[0], scale, ranks=ranks),
                    *args[1:],
                )
            )
        else:
            dense[name] = stored[name].float()
        assert dense[name].shape == parameter.shape
    model.load_state_dict(dense, strict=False)
    for name, module in model.named_modules():
        if name.endswith(".experts"):
            experts = [
                {part: layer(f"{name}.{index}.{part}_proj.") for part in ("gate", "up", "down")}
                for index in range(module.num_experts)
            ]
            module.forward = _experts(config, experts, module.act_fn)
    return model


def _experts(
    config: Mapping[str, Any], experts: Sequence[Mapping[str, Tensors]], activation: Any
) -> Callable[..., torch.Tensor]:
    """The forward pass of experts, token by token."""
    weights = [{part: dense_weight(config, tensors) for part, tensors in e.items()} for e in experts]

    def product(index: int, part: str, x: torch.Tensor) -> torch.Tensor:
        scale = experts[index][part].get("input_scale")
        return rounded_input(config, x, scale) @ weights[index][part].T

    def forward(x: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        results = []
        for row, indices, parts in zip(x, chosen.tolist(), shares, strict=True):
            total = torch.zeros_like(row)
            for index, share in zip(indices, parts, strict=True):
                inner = activation(product(index, "gate", row)) * product(index, "up", row)
                total += share * product(index, "down", inner)
            results.append(total)
        return torch.stack(results)

    return forward
