"""Writes docs/parallel-models.md: every causal language model type of transformers on several ranks of V1,
against one rank.

``python -m tests.support.ranks_table`` tries the types that tests/data/ranks/transformers-VERSION.json has no
result of for the tiny configuration that they have now. With ``--again`` it tries all, with names of types
only these. ``--document`` writes the document from the results of all versions.

The rules' lists of families are left out while a type is tried: they name what this table found.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.support import models_table, sweep
from tests.support.every_family import architecture, model_types
from tests.support.sweep import first_line, markdown, refused_or_wrong, run_each

RESULTS: Final = sweep.RESULTS / "ranks"
DOCUMENT: Final = models_table.ROOT / "docs" / "parallel-models.md"

TENSOR: Final = {"tensor_parallel_size": 2}
LAYOUTS: Final[Mapping[str, dict[str, Any]]] = {
    "TP 2": TENSOR,
    "TP 4": {"tensor_parallel_size": 4},
    "TP 2, int8": {**TENSOR, "quantization": "int8"},
    "EP 2": {**TENSOR, "enable_expert_parallel": True},
    "PP 2": {"pipeline_parallel_size": 2},
    "PCP 2": {"prefill_context_parallel_size": 2},
}
"""What is tried. "int8" is weights that are quantized at load, which one rank does, too."""

FAMILIES: Final = {
    "tensor-parallel-families": ("TENSOR_PARALLEL_FAMILIES", "TP 2"),
    "expert-parallel-families": ("EXPERT_PARALLEL_FAMILIES", "EP 2"),
    "pipeline-parallel-families": ("PIPELINE_PARALLEL_FAMILIES", "PP 2"),
}
"""The rules that list architectures, V1's own list of each, and the layout that says which have a place."""


def all_results() -> dict[str, dict[str, dict[str, Any]]]:
    """By version of transformers and by type: what `try_type` said, with the architecture."""
    return {
        file.stem.removeprefix("transformers-"): json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(RESULTS.glob("transformers-*.json"))
    }


def served_types(layout: str) -> set[str]:
    """The types that the installed transformers has whose tokens were those of one rank."""
    return {
        model_type
        for found in all_results().values()
        for model_type, entry in found.items()
        if entry.get(layout) == "equal" and model_type in model_types()
    }


def served(found: Mapping[str, Mapping[str, Any]], layout: str) -> set[str]:
    """The architectures of the types whose tokens were those of one rank, if no type's were wrong."""
    outcomes: dict[str, set[str]] = {}
    for entry in found.values():
        outcome = entry.get(layout, "").partition(":")[0]
        outcomes.setdefault(entry["architecture"], set()).add(outcome)
    return {name for name, said in outcomes.items() if "equal" in said and "wrong" not in said}


def try_type(model_type: str) -> dict[str, Any]:
    """The outcome of each layout by its name: "equal", or "refused: …", "wrong: …" with the reason; of a
    type that one rank does not serve, "outcome" alone."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            models_table.save(model_type, Path(directory))
            model, _ = models_table.answers(directory)
        except Exception as error:
            return {"outcome": f"untried: {first_line(error)}"}
        try:
            alone: dict[Any, list[list[int]]] = {None: _tokens(directory, {})}
        except Exception as error:
            return {"outcome": _said(error)}
        _permit(architecture(model_type))
        found: dict[str, Any] = {}
        for name, layout in LAYOUTS.items():
            quantization = layout.get("quantization")
            try:
                if quantization not in alone:
                    alone[quantization] = _tokens(directory, {"quantization": quantization})
                tokens = _tokens(directory, layout)
                found[name] = _compare(model, alone[quantization], tokens, quantization is not None)
            except Exception as error:
                found[name] = _said(error)
        return found


def _said(error: Exception) -> str:
    said = refused_or_wrong(error)
    return f"{said['outcome']}: {re.sub(r'^UnsupportedConfiguration: ', '', said['why'])}"


def _permit(named: str) -> None:
    """Let V1 try this architecture on several ranks. The process tries one type and ends, so nothing is put
    back."""
    from dodona.runners.v1 import capabilities

    for names, _ in FAMILIES.values():
        setattr(capabilities, names, (named,))


def _tokens(directory: str, flat: Mapping[str, Any]) -> list[list[int]]:
    """V1's greedy tokens; ranks are threads."""
    import pytest

    from dodona import LLM, SamplingParams
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.oracle.select import select_runner
    from dodona.oracle.systems.books import load_rulebook
    from tests.distributed.thread_workers import use_threads

    book = load_rulebook("dodona")
    rules = tuple(rule for rule in book.rules if rule.id not in FAMILIES)
    book = book.model_copy(update={"rules": rules})
    greedy = SamplingParams(temperature=0.0, max_tokens=models_table.NEW_TOKENS, ignore_eos=True)
    prompts = [{"prompt_token_ids": prompt} for prompt in models_table.prompts()]
    config = EngineConfig.from_flat(directory, **models_table.ENGINE, **flat)
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_threads(monkeypatch)
        with LLM.from_verdict(select_runner(config, rulebook=book)) as llm:
            outputs = llm.generate(prompts, greedy, use_tqdm=False)
    failed = [output.error for output in outputs if output.error]
    if failed:
        raise RuntimeError(failed[0])
    return [list(output.outputs[0].token_ids) for output in outputs]


def _compare(
    model: Any, expected: Sequence[list[int]], found: Sequence[list[int]], is_quantized: bool
) -> str:
    import torch

    from tests.support.equal_tokens import EqualTokens

    if is_quantized:
        return "equal" if found == expected else "wrong: tokens differ from those of one rank"

    def logits(ids: Sequence[int]) -> Any:
        with torch.inference_mode():
            return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1]

    failure = models_table.difference(EqualTokens(logits, max_ties=1), expected, found)
    return "equal" if failure is None else f"wrong: {failure}"


def results_file(version: str) -> Path:
    """The results of one version of transformers."""
    return RESULTS / f"transformers-{version}.json"


def run(only: Sequence[str], again: bool, jobs: int) -> None:
    """Try what has no result yet, and keep the results."""
    file = results_file(sweep.prepare("dodona.runners.v1.runner", "tests.distributed.thread_workers"))
    known: dict[str, dict[str, Any]] = sweep.load(file)
    keys = {model_type: models_table.key(model_type) for model_type in model_types()}
    wanted = [
        model_type
        for model_type, now in keys.items()
        if (model_type in only if only else again or known.get(model_type, {}).get("config") != now)
    ]
    for model_type, found in run_each(wanted, try_type, jobs):
        known[model_type] = {
            "config": keys[model_type],
            "architecture": architecture(model_type),
            **found,
        }
        print(model_type, *(found.get(name, "–") for name in LAYOUTS), found.get("outcome", ""), flush=True)
        sweep.save(file, known)


HEAD = """# Models on several ranks

Which causal language models of transformers runner V1 serves on several ranks. This page is generated by
`python -m tests.support.ranks_table`: a tiny model with random weights of every type runs in fp32 on a CPU on
2 and 4 tensor-parallel ranks (TP), on 2 with weights quantized to int8 at load, on 2 with experts spread over
them (EP, `enable_expert_parallel`), on 2 pipeline stages (PP) and on 2 ranks that share prompts (PCP). Ranks
are threads of one process, which exchange what processes do. Greedy tokens are compared with those of one
rank, under the conditions of [models.md](models.md): chunks of prompts, a preemption, prompts of three
lengths together.

{counts}

The rules `tensor-parallel-families`, `expert-parallel-families` and `pipeline-parallel-families` list the
architectures with "equal" under TP 2, EP 2 and PP 2, and no others (`tests/distributed/test_families.py`).
What one rank serves row by row, several refuse (`workers-row-by-row`): such types are left out.

{table}

## Why not

{reasons}
"""


def document() -> str:
    """The text of docs/parallel-models.md, from the results of all versions."""
    results = all_results()
    counts = [f"| transformers | {' | '.join(LAYOUTS)} |", "| --- |" + " --: |" * len(LAYOUTS)]
    rows = [
        f"| Model type | transformers | {' | '.join(LAYOUTS)} |",
        "| --- | --- |" + " --- |" * len(LAYOUTS),
    ]
    reasons: dict[str, list[str]] = {}
    for version, found in results.items():
        equal = (sum(entry.get(name) == "equal" for entry in found.values()) for name in LAYOUTS)
        counts.append(f"| {version} | " + " | ".join(map(str, equal)) + " |")
        for model_type, entry in sorted(found.items()):
            said = {name: entry[name] for name in LAYOUTS if name in entry}
            if not said or all("workers-row-by-row" in each for each in said.values()):
                continue
            cells = [each.partition(":")[0] for each in said.values()]
            rows.append(f"| `{model_type}` | {version} | " + " | ".join(cells) + " |")
            for name, each in said.items():
                if each != "equal":
                    why = each.replace(f"{entry['architecture']}: ", "")
                    reasons.setdefault(why, []).append(f"`{model_type}` ({name})")
    listed = [f"- {markdown(reason)}: {', '.join(sorted(set(types)))}" for reason, types in reasons.items()]
    return HEAD.format(counts="\n".join(counts), table="\n".join(rows), reasons="\n".join(listed))


if __name__ == "__main__":
    sweep.main(__doc__, run, document, DOCUMENT)
