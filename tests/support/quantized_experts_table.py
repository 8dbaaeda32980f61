"""Tries quantized experts: tiny models of every MoE type that transformers ships, on V1, against
transformers' plain model with the values that the quantized weights stand for.

``python -m tests.support.quantized_experts_table`` writes tests/data/models/quantized-experts-VERSION.json:
by type, what came of a checkpoint with quantized experts ("stored") and of `--quantization int8` ("online").
With names of types only these are tried again.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from checkpoints.quantize import FORMATS
from dodona.kernels.linear.quantized_weight import dequantize, quantize_weight
from dodona.oracle.models.quantization import online_quantization
from tests.support import models_table, sweep
from tests.support.equal_tokens import EqualTokens
from tests.support.every_family import make_model, model_types, tiny_config
from tests.support.quantized_reference import dense_weight

FORMAT = "w8a16"
EXPERT = re.compile(r".*experts\.\d+\..*weight")
TARGET = r"re:.*experts\.\d+\."


def is_moe(model_type: str) -> bool:
    """Whether the tiny model of a type has experts."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(tiny_config(model_type))
    except Exception:
        return False
    return any("Experts" in type(module).__name__ for module in model.modules())


def save_stored(model_type: str, directory: Path) -> tuple[Path, Path]:
    """(a checkpoint with quantized experts, one with their values); raises LookupError where no expert's
    weight is stored by itself."""
    from safetensors.torch import load_file, save_file

    dense = directory / "dense"
    models_table.save(model_type, dense)
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(dense.glob("*.safetensors")):
        tensors |= load_file(file)
    if not any(EXPERT.fullmatch(name) and tensor.dim() == 2 for name, tensor in tensors.items()):
        raise LookupError("its checkpoints store experts stacked")
    made = FORMATS[FORMAT]
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in list(tensors.items()):
        if not EXPERT.fullmatch(name) or tensor.dim() != 2:
            stored[name] = tensor
            continue
        parts = made.store(tensor.float())
        stored |= {name.removesuffix("weight") + part: value for part, value in parts.items()}
        tensors[name] = dense_weight(made.config, parts)
    config = json.loads((dense / "config.json").read_text())
    (group,) = made.config["config_groups"].values()
    quantized = {**made.config, "config_groups": {"group_0": {**group, "targets": [TARGET]}}}
    for name, values, said in (
        ("stored", stored, {**config, "quantization_config": quantized}),
        ("values", tensors, config),
    ):
        (directory / name).mkdir()
        save_file(values, directory / name / "model.safetensors", {"format": "pt"})
        (directory / name / "config.json").write_text(json.dumps(said))
        # Without it generate() would take the end-of-sequence id of config.json, and never give that token.
        shutil.copy(dense / "generation_config.json", directory / name)
    return directory / "stored", directory / "values"


@torch.no_grad()
def save_online(model_type: str, directory: Path) -> tuple[Path, Path]:
    """(an unquantized checkpoint, one with the values that quantization at load makes of it)."""
    from dodona.runners.quantization.experts import is_expert_stack
    from dodona.runners.quantization.replacement import is_plain_linear

    model = make_model(tiny_config(model_type))
    models_table.save(model_type, directory / "dense", model)
    quantization = online_quantization("int8")

    def rounded(weight: torch.Tensor) -> torch.Tensor:
        return dequantize(quantize_weight(weight, kind="int8"))

    stacks = 0
    for name, module in model.named_modules():
        if is_plain_linear(module) and quantization.scheme_of(name) is not None:
            if module is not model.get_output_embeddings():
                module.weight.copy_(rounded(module.weight))
        elif is_expert_stack(module):
            stacks += 1
            for parameter in module.parameters(recurse=False):
                for weight in parameter if parameter.dim() == 3 else ():
                    weight.copy_(rounded(weight.T).T if module.is_transposed else rounded(weight))
    if not stacks:
        raise LookupError("its experts are no stacks of plain linear layers")
    models_table.save(model_type, directory / "rounded", model)
    return directory / "dense", directory / "rounded"


def try_family(
    model_type: str, save: Callable[[str, Path], tuple[Path, Path]], **engine: Any
) -> dict[str, str]:
    """ "equal", "untried", "refused" or "wrong", and why."""
    from dodona.oracle.models import quantized_experts

    # Whether a type is listed is what is to be found out.
    for name in ("STORED", "AT_LOAD"):
        setattr(quantized_experts, name, tuple(model_types_of(model_type)))
    with tempfile.TemporaryDirectory() as folder:
        try:
            quantized, values = save(model_type, Path(folder))
            plain, expected = models_table.answers(str(values))
        except LookupError as error:
            return {"outcome": "refused", "why": str(error)}
        except Exception as error:
            return {"outcome": "untried", "why": sweep.first_line(error)}
        try:
            _, _, actual = models_table.dodona(str(quantized), **engine)
        except Exception as error:
            return {"outcome": "wrong", "why": sweep.first_line(error)}

        def logits(ids: Sequence[int]) -> Any:
            with torch.inference_mode():
                return plain(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1]

        failure = models_table.difference(EqualTokens(logits, max_ties=1), expected, actual)
    return {"outcome": "wrong", "why": failure} if failure else {"outcome": "equal", "why": ""}


ATTEMPTS: Mapping[str, Callable[[str], dict[str, str]]] = {
    "stored": partial(try_family, save=save_stored),
    "online": partial(try_family, save=save_online, quantization="int8"),
}


def model_types_of(model_type: str) -> set[str]:
    """The type, and that of the language model within it."""
    return {model_type, models_table.described(model_type)["language_model"]}


def results_file(version: str) -> Path:
    """The results of one version of transformers."""
    return models_table.RESULTS / f"quantized-experts-{version}.json"


def result_files() -> list[Path]:
    """The results of all versions."""
    return sorted(models_table.RESULTS.glob("quantized-experts-*.json"))


def main() -> None:
    """Command line."""
    given = sweep.arguments(__doc__).parse_args()
    file = results_file(sweep.prepare("dodona.runners.v1.runner"))
    known: dict[str, Any] = sweep.load(file)
    wanted = [t for t in given.types or model_types() if given.types or given.again or t not in known]
    found: dict[str, dict[str, Any]] = {t: {} for t in wanted if is_moe(t)}
    for kind, attempt in ATTEMPTS.items():
        for model_type, outcome in sweep.run_each(list(found), attempt, given.jobs):
            found[model_type][kind] = outcome
            print(model_type, kind, outcome, flush=True)
    for model_type, kinds in found.items():
        known[model_type] = {**kinds, "language_model": models_table.described(model_type)["language_model"]}
    sweep.save(file, known)


if __name__ == "__main__":
    main()
