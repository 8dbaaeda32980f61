"""Writes the table of docs/pooling.md: text model types of transformers that pool, run by V1, against
transformers.

``python -m tests.support.pooling_table`` tries the types that tests/data/pooling/transformers-VERSION.json
has no result of. With ``--again`` it tries all, with names of types only these. ``--document`` writes the
document from the results of all versions.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support import sweep
from tests.support.every_family import SPECIAL, VOCAB_SIZE, make_model, tiny_config
from tests.support.known_models import POOLING_TASKS, model_types, pooling_tasks
from tests.support.sweep import first_line, markdown, refused_or_wrong, run_each

DOCUMENT = Path(__file__).parents[2] / "docs" / "pooling.md"

AUTO_CLASSES = {
    "embed": "AutoModel",
    "classify": "AutoModelForSequenceClassification",
    "token_classify": "AutoModelForTokenClassification",
}
PROMPT_LENGTHS = (5, 17, 40, 39, 16, 6)
LIMIT = 1e-5
"""Largest difference of an element from transformers', over the largest element of the output, or 1."""
NUM_LABELS = 3
ENGINE = {"device": "cpu", "dtype": "float32", "runner": "pooling", "max_model_len": 64}

SETTINGS: Mapping[str, Mapping[str, Any]] = {}
"""Model type → fields beside those of `every_family`."""


def prompts() -> list[list[int]]:
    """Random prompts; ids from 8 on, so that none is a padding token."""
    import torch

    generator = torch.Generator().manual_seed(3)
    return [torch.randint(8, VOCAB_SIZE - 2, (n,), generator=generator).tolist() for n in PROMPT_LENGTHS]


def try_type(model_type: str) -> dict[str, Any]:
    """The outcome of each task of a type: "batched", "alone", "refused", "untried" or "wrong", and why."""
    found: dict[str, Any] = {}
    for task in pooling_tasks(model_type):
        with tempfile.TemporaryDirectory() as directory:
            found[task] = attempt(model_type, task, Path(directory))
    return found


def _refused(model_type: str, task: str) -> str:
    """The rules that refuse a config.json of the type for the task; else nothing."""
    from transformers.models.auto import modeling_auto

    named = getattr(modeling_auto, f"{POOLING_TASKS[task]}_MAPPING_NAMES")[model_type]
    try:
        written = config_of(model_type).to_dict()
    except Exception:  # a type that can't be made small; its defaults tell enough
        written = {}
    architectures = [named] if isinstance(named, str) else [named[0]]
    raw = {**written, "architectures": architectures, "model_type": model_type}
    return ", ".join(sweep.refusals(raw, runner="pooling"))


def config_of(model_type: str) -> Any:
    """A tiny configuration: an encoder where the type can be one."""
    settings = dict(SETTINGS.get(model_type, {}))
    if "is_decoder" in SPECIAL.get(model_type, {}):
        settings["is_decoder"] = False
    return tiny_config(model_type, **settings)


def save(model_type: str, task: str, directory: Path, num_labels: int = NUM_LABELS) -> None:
    """Write a tiny random model of the type for the task."""
    config = config_of(model_type)
    config.num_labels = num_labels
    if getattr(config.get_text_config(), "pad_token_id", None) is None:
        config.get_text_config().pad_token_id = 0  # as trained classifiers have it
    make_model(config, AUTO_CLASSES[task]).save_pretrained(directory)


def reference(directory: Path, task: str) -> list[Any]:
    """transformers' output of each prompt alone: the last token's hidden state, or logits.

    With a mask where the model takes one: without it, transformers 5.17's Moshi sees later tokens.
    """
    import inspect

    import torch
    import transformers

    model = getattr(transformers, AUTO_CLASSES[task]).from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    takes, outputs = inspect.signature(model.forward).parameters, []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        given = {"attention_mask": torch.ones_like(ids)} if "attention_mask" in takes else {}
        with torch.inference_mode():
            output = model.eval()(input_ids=ids, **given)
        outputs.append(output.last_hidden_state[0, -1] if task == "embed" else output.logits[0])
    return outputs


def attempt(model_type: str, task: str, directory: Path) -> dict[str, str]:
    """The outcome of one task; `directory` is empty."""
    refused = _refused(model_type, task)
    if refused:
        return {"outcome": "refused", "why": refused}
    try:
        save(model_type, task, directory)
        expected = reference(directory, task)
    except Exception as error:
        return {"outcome": "untried", "why": first_line(error)}
    try:
        way, why, actual = _dodona(str(directory))
    except Exception as error:
        return refused_or_wrong(error)
    worst = max(difference(a, b) for a, b in zip(expected, actual, strict=True))
    if not worst <= LIMIT:
        return {"outcome": "wrong", "why": f"differs by {worst:.2g}"}
    return {"outcome": way, "why": why}


def difference(expected: Any, actual: Any) -> float:
    """The largest difference of an element, over the largest element or 1."""
    import torch

    found = torch.as_tensor(actual)
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / max(1.0, float(expected.abs().max())))


def _dodona(directory: str) -> tuple[str, str, list[Any]]:
    """How V1 computed the prompts, why not in batches, and its outputs."""
    from dodona import LLM, PoolingParams
    from dodona.runners.v1.pooling import runner

    chosen: list[Any] = []

    def choose(*args: Any, **kwargs: Any) -> Any:
        chosen.append(original(*args, **kwargs))
        return chosen[-1]

    original, runner.choose = runner.choose, choose
    try:
        pooler = {"pooling_type": "LAST", "use_activation": False}
        with LLM(directory, **ENGINE, pooler_config=pooler) as llm:
            outputs = llm.encode(
                [{"prompt_token_ids": p} for p in prompts()], PoolingParams(), use_tqdm=False
            )
    finally:
        runner.choose = original
    failed = [output.error for output in outputs if output.error]
    if failed:
        raise RuntimeError(failed[0])
    way = "batched" if chosen[0].model.pads else "alone"
    return way, chosen[0].why_alone or "", [output.outputs.data for output in outputs]


def types() -> list[str]:
    """Every text model type that pools."""
    return [model_type for model_type in model_types() if pooling_tasks(model_type)]


def results_file(version: str) -> Path:
    """The results of one version of transformers."""
    return sweep.RESULTS / "pooling" / f"transformers-{version}.json"


def run(only: Sequence[str], again: bool, jobs: int) -> None:
    """Try what has no result yet, and keep the results."""
    file = results_file(sweep.prepare("dodona.runners.v1.pooling.runner", "dodona.runners.llm"))
    known = sweep.load(file)
    wanted = [t for t in types() if (t in only if only else again or t not in known)]
    for model_type, found in run_each(wanted, try_type, jobs):
        ended = "outcome" not in found  # else the process came to no end, with all tasks
        known[model_type] = found if ended else dict.fromkeys(pooling_tasks(model_type), found)
        print(model_type, known[model_type], flush=True)
        sweep.save(file, known)


WORDS = {
    "batched": "batched",
    "alone": "one at a time",
    "refused": "refused",
    "untried": "not tried",
    "wrong": "**wrong**",
}
BEGIN, END = "<!-- pooling: begin -->", "<!-- pooling: end -->"


def table() -> str:
    """The table of docs/pooling.md with its markers, from the results of all versions."""
    results = {
        file.stem.removeprefix("transformers-"): json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(results_file("x").parent.glob("transformers-*.json"))
    }
    parts = [BEGIN]
    for version, found in results.items():
        outcomes = [entry["outcome"] for tasks in found.values() for entry in tasks.values()]
        counts = ", ".join(f"{outcomes.count(o)} {word}" for o, word in WORDS.items())
        parts += [
            f"transformers {version}, {len(found)} types and {len(outcomes)} models of them: {counts}.",
            "",
        ]
    parts += [
        "| Model type | embed | classify | token\\_classify | Remarks |",
        "| --- | --- | --- | --- | --- |",
        *(
            _row(model_type, results)
            for model_type in sorted({t for found in results.values() for t in found})
        ),
        END,
    ]
    return "\n".join(parts)


def _row(model_type: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    tasks = {version: found[model_type] for version, found in results.items() if model_type in found}
    cells = []
    for task in AUTO_CLASSES:
        words = {version: WORDS[found[task]["outcome"]] for version, found in tasks.items() if task in found}
        same = len(set(words.values())) == 1
        cells.append(
            min(words.values()) if same else ", ".join(f"{v}: {word}" for v, word in words.items()) or "–"
        )
    missing = [version for version in results if version not in tasks]
    absent = [f"not in transformers {', '.join(missing)}"] if missing else []
    whys = dict.fromkeys(markdown(e["why"]) for found in tasks.values() for e in found.values() if e["why"])
    return f"| `{model_type}` | {' | '.join(cells)} | {'; '.join([*absent, *whys])} |"


def document() -> str:
    """docs/pooling.md with its table written anew."""
    text = DOCUMENT.read_text(encoding="utf-8")
    return text[: text.index(BEGIN)] + table() + text[text.index(END) + len(END) :]


if __name__ == "__main__":
    sweep.main(__doc__, run, document, DOCUMENT)
