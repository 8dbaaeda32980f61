"""Makes and measures the committed quantized copies of the small checkpoints.

python -m checkpoints.quantized_copies                # all
python -m checkpoints.quantized_copies qwen3-w4a16 --measure 100
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from transformers import AutoTokenizer

from checkpoints.evaluate import MAX_NEW_TOKENS, Prompt, held_out_prompts
from checkpoints.quantize import FORMATS, calibration_prompts, quantize_checkpoint
from checkpoints.recipes import RECIPES

HERE = Path(__file__).resolve().parent

DESCRIPTIONS: Mapping[str, str] = {
    "w8a16": "int8 weights, a scale per row (compressed-tensors, pack-quantized)",
    "w4a16": "int4 weights in symmetric groups of 32 (compressed-tensors, pack-quantized)",
    "w4a16-asym": "int4 weights in asymmetric groups of 32 (compressed-tensors, pack-quantized)",
    "w8a8-int8": (
        "int8 weights, a scale per row; activations int8, a scale per token "
        "(compressed-tensors, int-quantized)"
    ),
    "w8a8-fp8": (
        "E4M3 weights, a scale per row; activations E4M3, a scale per token "
        "(compressed-tensors, float-quantized)"
    ),
    "fp8": "E4M3 weights in blocks of 128 x 128; activations E4M3 in groups of 128 (`fp8`, as DeepSeek's)",
    "gptq": "4-bit weights in asymmetric groups of 32, in GPTQ's layout (nearest values, no search)",
    "awq": "4-bit weights in asymmetric groups of 32, in AWQ's GEMM layout (nearest values, no search)",
}
"""Format → what it stores, of the formats that are committed."""

COPIES: tuple[str, ...] = tuple(f"qwen3-{format_name}" for format_name in DESCRIPTIONS)
"""Folders: the source's name, a hyphen, the format's name."""


KV_BYTES = 1 << 28
"""More than 64 sequences need, and little enough for many engines on one GPU."""


def source_and_format(name: str) -> tuple[str, str]:
    """The two parts of a folder's name."""
    source, _, format_name = name.partition("-")
    return source, format_name


def share_right(
    path: Path,
    prompts: Mapping[str, list[Prompt]],
    device: str = "cpu",
    *,
    ranks: int = 1,
    dtype: str = "float32",
) -> dict[str, float]:
    """Share of right greedy answers on the runner that is chosen: "all", and by form. `ranks` split each
    layer."""
    from dodona.runners.llm import LLM
    from dodona.runners.sampling.params import SamplingParams

    listed = [prompt for form in prompts.values() for prompt in form]
    sizes = {"max_num_seqs": 64, "max_model_len": 256, "tensor_parallel_size": ranks}
    with LLM(path, device=device, dtype=dtype, kv_cache_memory_bytes=KV_BYTES, **sizes) as llm:
        outputs = llm.generate(
            [{"prompt_token_ids": list(prompt.token_ids)} for prompt in listed],
            SamplingParams(temperature=0.0, max_tokens=MAX_NEW_TOKENS),
            use_tqdm=False,
        )
    right = [o.outputs[0].text.strip() == p.answer for o, p in zip(outputs, listed, strict=True)]
    shares, start = {"all": sum(right) / len(right)}, 0
    for form, of_form in prompts.items():
        shares[form] = sum(right[start : start + len(of_form)]) / len(of_form)
        start += len(of_form)
    return shares


def make(name: str, root: Path) -> None:
    """Write the copy `name` into `root`; replaces one that is there."""
    source, format_name = source_and_format(name)
    shutil.rmtree(root / name, ignore_errors=True)
    prompts = (
        calibration_prompts(AutoTokenizer.from_pretrained(HERE / source))
        if FORMATS[format_name].has_input_scales
        else []
    )
    quantize_checkpoint(HERE / source, root / name, format_name, prompts=prompts)


def write_card(
    folder: Path, measured: Mapping[str, float], unquantized: Mapping[str, float], count: int
) -> None:
    """Write README.md of the copy: what it stores, and its accuracy beside the unquantized one's."""
    source, format_name = source_and_format(folder.name)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    table = "\n".join(f"| {form} | {measured[form]:.2%} | {unquantized[form]:.2%} |" for form in measured)
    (folder / "README.md").write_text(
        f"""---
license: apache-2.0
library_name: transformers
---
# {RECIPES[source].title}, {format_name}

`checkpoints/{source}` with quantized linear layers: {DESCRIPTIONS[format_name]}. {size / 1e6:.2f} MB.
Made by `python -m checkpoints.quantize checkpoints/{source} TARGET --format {format_name}`, for the tests of
this repository.

## Accuracy

Greedy exact match on held-out questions (`checkpoints/task.py`), {count} distinct prompts of each form, on
runner V1 of this repository on a CPU, in float32.

| prompts | {format_name} | unquantized |
| --- | --- | --- |
{table}

Again: `python -m checkpoints.quantized_copies {folder.name}`
""",
        encoding="utf-8",
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(COPIES)}; default: all")
    parser.add_argument("--measure", type=int, default=300, help="prompts of each form (default %(default)s)")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(COPIES))
    if unknown:
        parser.error(f"no such copies: {', '.join(unknown)}; there are: {', '.join(COPIES)}")
    os.environ["DODONA_USE_V2_MODEL_RUNNER"] = "0"
    unquantized: dict[str, dict[str, float]] = {}
    for name in args.names or COPIES:
        source, _ = source_and_format(name)
        tokenizer = AutoTokenizer.from_pretrained(HERE / source)
        prompts = held_out_prompts(tokenizer, count=args.measure, recall=RECIPES[source].recall, seed=1)
        if source not in unquantized:
            unquantized[source] = share_right(HERE / source, prompts)
        make(name, HERE)
        measured = share_right(HERE / name, prompts)
        write_card(HERE / name, measured, unquantized[source], args.measure)
        print(name, measured, "unquantized:", unquantized[source], flush=True)


if __name__ == "__main__":
    main()
