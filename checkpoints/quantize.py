"""Makes quantized copies of a checkpoint, one for each storage format that the runners read.

    python -m checkpoints.quantize checkpoints/qwen3 /tmp/qwen3-w4a16 --format w4a16

The values are the nearest ones, with no calibration but that of stored activation scales: enough for small
models, and for tests.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dodona.kernels.linear.quantized_weight import FP8_MAX, quantize_weight, unpack_nibbles

LINEAR = re.compile(
    r"model\.layers\.\d+\."
    r"((self_attn|mlp|mlp\.shared_experts?|mlp\.experts\.\d+)\.\w+_proj(_with_mqa)?|block_sparse_moe\.experts\.\d+\.w[123])"
    r"\.weight"
)
"""Names of the weights that are quantized: those of attention, dense feed-forward layers and experts."""
GROUP = 32
BLOCK = 128

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Format:
    """A storage format."""

    config: Mapping[str, Any]
    """The `quantization_config`."""
    store: Callable[[torch.Tensor], Tensors]
    """A linear layer's weight [out, in], fp32 → its stored tensors."""
    has_input_scales: bool = False


def _integers(
    weight: torch.Tensor, bits: int, group_size: int | None, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unsigned values [out, in], scales [out, groups], unsigned zero points [out, groups]."""
    kind = "int4" if bits == 4 else "int8"
    made = quantize_weight(weight, kind=kind, group_size=group_size, symmetric=symmetric)
    offset = 1 << (bits - 1)
    values = unpack_nibbles(made.data) if bits == 4 else (made.data.int() + 128).to(torch.uint8)
    if made.zeros is None:
        zeros = torch.full_like(made.scales, offset)
    else:
        zeros = made.zeros.float() + (0 if bits == 4 else 128)
    return values.int(), made.scales, zeros.int()


def _pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [rows, columns * bits / 32], the lowest bits first; filled up with zeros."""
    per_word = 32 // bits
    missing = -values.shape[1] % per_word
    parts = torch.nn.functional.pad(values, (0, missing)).unflatten(1, (-1, per_word)).int()
    words = [parts[..., i] << (bits * i) for i in range(per_word)]
    return sum(words[1:], start=words[0]).contiguous()


def _order(weight: torch.Tensor) -> torch.Tensor:
    """Inner elements, those with the largest weights first."""
    return weight.square().sum(0).argsort(descending=True)


def _group_index(order: torch.Tensor) -> torch.Tensor:
    index = torch.empty_like(order)
    index[order] = torch.arange(len(order)) // GROUP
    return index.int()


def _store_packed(
    weight: torch.Tensor,
    *,
    bits: int,
    group_size: int | None,
    symmetric: bool = True,
    act_order: bool = False,
) -> Tensors:
    order = _order(weight) if act_order else torch.arange(weight.shape[1])
    values, scales, zeros = _integers(weight[:, order], bits, group_size, symmetric)
    found = {
        "weight_packed": _pack(values[:, order.argsort()], bits),
        "weight_scale": scales.bfloat16(),
        "weight_shape": torch.tensor(weight.shape),
    }
    if not symmetric:
        found["weight_zero_point"] = _pack(zeros.T.contiguous(), bits).T.contiguous()
    if act_order:
        found["weight_g_idx"] = _group_index(order)
    return found


def _store_int8(weight: torch.Tensor) -> Tensors:
    made = quantize_weight(weight, kind="int8")
    return {"weight": made.data, "weight_scale": made.scales.bfloat16()}


def _store_fp8(weight: torch.Tensor, *, per_tensor: bool = False) -> Tensors:
    made = quantize_weight(weight.view(1, -1) if per_tensor else weight, kind="fp8")
    scales = made.scales.view(1) if per_tensor else made.scales
    return {"weight": made.data.view(weight.shape), "weight_scale": scales}


def _store_blocks(weight: torch.Tensor, *, name: str) -> Tensors:
    rows, inner = weight.shape
    grid = [-(-rows // BLOCK), -(-inner // BLOCK)]
    padded = torch.zeros(grid[0] * BLOCK, grid[1] * BLOCK)
    padded[:rows, :inner] = weight
    blocks = padded.view(grid[0], BLOCK, grid[1], BLOCK)
    scales = (blocks.abs().amax((1, 3)) / FP8_MAX).clamp(min=1e-12)
    data = (blocks / scales[:, None, :, None]).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return {"weight": data.view(padded.shape)[:rows, :inner].contiguous(), name: scales}


def _store_gptq(weight: torch.Tensor, *, act_order: bool, bits: int = 4) -> Tensors:
    order = _order(weight) if act_order else torch.arange(weight.shape[1])
    values, scales, zeros = _integers(weight[:, order], bits, GROUP, symmetric=False)
    return {
        "qweight": _pack(values[:, order.argsort()], bits).T.contiguous(),
        "qzeros": _pack((zeros.T - 1) & ((1 << bits) - 1), bits),
        "scales": scales.T.contiguous().half(),
        "g_idx": _group_index(order),
    }


def _store_awq(weight: torch.Tensor) -> Tensors:
    values, scales, zeros = _integers(weight, 4, GROUP, symmetric=False)

    def pack(columns: torch.Tensor) -> torch.Tensor:  # [n, out]
        return _pack(columns.unflatten(1, (-1, 8))[..., [0, 2, 4, 6, 1, 3, 5, 7]].flatten(1), 4)

    return {
        "qweight": pack(values.T.contiguous()),
        "qzeros": pack(zeros.T.contiguous()),
        "scales": scales.T.contiguous().half(),
    }


def _compressed(
    format: str, weights: Mapping[str, Any], activations: Mapping[str, Any] | None = None
) -> Mapping[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def _weights(type: str, bits: int, strategy: str, **more: Any) -> Mapping[str, Any]:
    return {"type": type, "num_bits": bits, "strategy": strategy, "symmetric": True, "dynamic": False, **more}


def _activations(type: str, strategy: str, dynamic: bool = True, **more: Any) -> Mapping[str, Any]:
    return {"type": type, "num_bits": 8, "strategy": strategy, "dynamic": dynamic, "symmetric": True, **more}


_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False, "checkpoint_format": "gptq"}

FORMATS: Mapping[str, Format] = {
    "w8a16": Format(
        _compressed("pack-quantized", _weights("int", 8, "channel")),
        lambda w: _store_packed(w, bits=8, group_size=None),
    ),
    "w4a16": Format(
        _compressed("pack-quantized", _weights("int", 4, "group", group_size=GROUP)),
        lambda w: _store_packed(w, bits=4, group_size=GROUP),
    ),
    "w4a16-asym": Format(
        _compressed("pack-quantized", _weights("int", 4, "group", group_size=GROUP, symmetric=False)),
        lambda w: _store_packed(w, bits=4, group_size=GROUP, symmetric=False),
    ),
    "w4a16-act-order": Format(
        _compressed("pack-quantized", _weights("int", 4, "group", group_size=GROUP, actorder="group")),
        lambda w: _store_packed(w, bits=4, group_size=GROUP, act_order=True),
    ),
    "w8a8-int8": Format(
        _compressed("int-quantized", _weights("int", 8, "channel"), _activations("int", "token")),
        _store_int8,
    ),
    "w8a8-int8-asym": Format(
        _compressed(
            "int-quantized", _weights("int", 8, "channel"), _activations("int", "token", symmetric=False)
        ),
        _store_int8,
    ),
    "w8a8-int8-static": Format(
        _compressed("int-quantized", _weights("int", 8, "channel"), _activations("int", "tensor", False)),
        _store_int8,
        has_input_scales=True,
    ),
    "w8a8-fp8": Format(
        _compressed("float-quantized", _weights("float", 8, "channel"), _activations("float", "token")),
        _store_fp8,
    ),
    "w8a8-fp8-static": Format(
        _compressed(
            "float-quantized",
            _weights("float", 8, "tensor"),
            _activations("float", "tensor", False),
        ),
        lambda w: _store_fp8(w, per_tensor=True),
        has_input_scales=True,
    ),
    "w8a8-fp8-block": Format(
        _compressed(
            "float-quantized",
            _weights("float", 8, "block", block_structure=[BLOCK, BLOCK]),
            _activations("float", "group", group_size=BLOCK),
        ),
        lambda w: _store_blocks(w, name="weight_scale"),
    ),
    "fp8": Format(
        {
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
            "weight_block_size": [BLOCK, BLOCK],
        },
        lambda w: _store_blocks(w, name="weight_scale_inv"),
    ),
    "gptq": Format({**_GPTQ, "desc_act": False}, lambda w: _store_gptq(w, act_order=False)),
    "gptq-act-order": Format({**_GPTQ, "desc_act": True}, lambda w: _store_gptq(w, act_order=True)),
    "gptq-8bit": Format(
        {**_GPTQ, "bits": 8, "desc_act": False}, lambda w: _store_gptq(w, act_order=False, bits=8)
    ),
    "awq": Format(
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
        _store_awq,
    ),
}  # fmt: skip
"""Name → format. Groups have 32 elements, so that small models have several."""


def quantize_checkpoint(
    source: Path, target: Path, format_name: str, *, prompts: Sequence[Sequence[int]] = ()
) -> None:
    """Write a quantized copy of the model directory `source` into the new directory `target`.

    `prompts`: token ids for which stored activation scales are made wide enough; formats that have such
    scales need some.
    """
    made = FORMATS[format_name]
    inputs = _largest_inputs(source, prompts) if made.has_input_scales else {}
    stored: Tensors = {}
    for file in sorted(source.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            if not LINEAR.fullmatch(name):
                stored[name] = tensor
                continue
            layer = name.removesuffix("weight")
            stored |= {layer + part: value for part, value in made.store(tensor.float()).items()}
            if made.has_input_scales:
                limit = FP8_MAX if "float" in made.config["format"] else 127.5
                stored[layer + "input_scale"] = torch.tensor([inputs[layer[:-1]] / limit])
    target.mkdir(parents=True)
    save_file(stored, target / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = made.config
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (source / name).is_file():
            shutil.copy(source / name, target / name)


def _largest_inputs(source: Path, prompts: Sequence[Sequence[int]]) -> dict[str, float]:
    """The largest size of each linear layer's input, by module name. Each expert is given all tokens."""
    from transformers import AutoModelForCausalLM

    if not prompts:
        raise ValueError("this format stores scales of activations: give prompts")
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    largest: dict[str, float] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            largest[name] = max(largest.get(name, 0.0), args[0].abs().max().item())

        return hook

    def watch_experts(name: str) -> Callable[..., None]:
        def hook(stack: Any, args: tuple[torch.Tensor, ...]) -> None:
            for index, weight in enumerate(stack.gate_up_proj):
                inner = stack._apply_gate(args[0] @ weight.T)
                for part, x in (("gate", args[0]), ("up", args[0]), ("down", inner)):
                    key = f"{name}.{index}.{part}_proj"
                    largest[key] = max(largest.get(key, 0.0), x.abs().max().item())

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(watch(name))
        elif hasattr(module, "gate_up_proj") and name.endswith(".experts"):
            module.register_forward_pre_hook(watch_experts(name))
    with torch.inference_mode():
        for prompt in prompts:
            model(input_ids=torch.tensor([list(prompt)]))
    return largest


def calibration_prompts(tokenizer: Any) -> list[list[int]]:
    """Token ids of a few conversations, for stored activation scales."""
    from checkpoints.evaluate import held_out_prompts

    found = held_out_prompts(tokenizer, count=16, recall=True, seed=2)
    return [list(prompt.token_ids) for form in found.values() for prompt in form]


def main() -> None:
    """Quantize a checkpoint of the command line's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--format", choices=sorted(FORMATS), required=True)
    args = parser.parse_args()
    prompts: list[list[int]] = []
    if FORMATS[args.format].has_input_scales:
        from transformers import AutoTokenizer

        prompts = calibration_prompts(AutoTokenizer.from_pretrained(args.source))
    quantize_checkpoint(args.source, args.target, args.format, prompts=prompts)


if __name__ == "__main__":
    main()
