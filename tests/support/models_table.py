"""Writes docs/models.md: every causal language model type of transformers, run by V1, against `generate`.

``python -m tests.support.models_table`` tries the types that tests/data/models/transformers-VERSION.json has
no result of for the tiny configuration that they have now. With ``--again`` it tries all, with names of types
only these. ``--document`` writes the document from the results of all versions.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.support import sweep
from tests.support.every_family import VOCAB_SIZE, architecture, make_model, model_types, tiny_config
from tests.support.sweep import first_line, markdown, refused_or_wrong, run_each

ROOT = Path(__file__).parents[2]
RESULTS = sweep.RESULTS / "models"
DOCUMENT = ROOT / "docs" / "models.md"

PROMPT_LENGTHS = (5, 17, 40)
NEW_TOKENS = 12
ENGINE = {
    "device": "cpu", "dtype": "float32", "block_size": 4, "max_num_batched_tokens": 16, "max_num_seqs": 4,
    "max_model_len": 64, "num_gpu_blocks_override": 20,
}  # fmt: skip
"""Chunks of 16 tokens; too few blocks for all prompts, so that one is preempted."""


def prompts() -> list[list[int]]:
    """Random prompts; ids from 4 on, so that none is a padding token."""
    import torch

    generator = torch.Generator().manual_seed(3)
    return [torch.randint(4, VOCAB_SIZE - 2, (n,), generator=generator).tolist() for n in PROMPT_LENGTHS]


def try_family(model_type: str) -> dict[str, str]:
    """The outcome of one type: "packed", "rows, …", "refused", "untried" or "wrong", and why."""
    import torch

    refused = _refused(model_type)
    if refused:
        return {"outcome": "refused", "why": refused}
    with tempfile.TemporaryDirectory() as directory:
        try:
            save(model_type, Path(directory))
            plain, expected = answers(directory)
        except Exception as error:
            return {"outcome": "untried", "why": first_line(error)}
        try:
            way, why, actual = dodona(directory)
        except Exception as error:
            return refused_or_wrong(error)
        from tests.support.equal_tokens import EqualTokens

        def logits(ids: Sequence[int]) -> Any:
            with torch.inference_mode():
                return plain(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1]

        equal = EqualTokens(logits, max_ties=1)
        failure = difference(equal, expected, actual)
        if failure:
            # generate() numbers RoBERTa's positions from 0; the model's own forward pass does not.
            own = [_greedy(logits, prompt) for prompt in prompts()]
            if own != expected:
                again = difference(EqualTokens(logits, max_ties=1), own, actual)
                if again is None:
                    return {
                        "outcome": way,
                        "why": why,
                        "note": "equal to forward(), from which generate() differs",
                    }
            return {"outcome": "wrong", "why": failure}
        return {"outcome": way, "why": why}


BY_TYPE = ("causal-lm", "transformers-version", "model-family")
"""The rules that refuse a type whatever else its configuration says."""


def _refused(model_type: str) -> str:
    """The rule of `BY_TYPE` that refuses the type, and what the type does; else nothing."""
    from dodona.oracle.models.row_by_row import UNSERVED, UNSERVED_ARCHITECTURES

    named = architecture(model_type)
    rules = ", ".join(r for r in sweep.refusals(config_file(model_type, named)) if r in BY_TYPE)
    does = UNSERVED.get(model_type) or UNSERVED_ARCHITECTURES.get(named)
    return f"{rules}: {does}" if does else rules


def config_file(model_type: str, architecture: str) -> dict[str, Any]:
    """What a config.json of the type says that generates: of BERT's kin, that it is a decoder."""
    from dodona.oracle.systems.own.model_code import DECODERS_BY_FLAG

    is_decoder = {"is_decoder": True} if model_type in DECODERS_BY_FLAG else {}
    return {"architectures": [architecture], "model_type": model_type, **is_decoder}


def save(model_type: str, directory: Path, model: Any = None) -> None:
    """Save a tiny model of the type, or this one, with the configuration that checkpoints of it have."""
    config = tiny_config(model_type)
    saved = make_model(config) if model is None else model
    saved.save_pretrained(directory)
    if saved.config.model_type != model_type:
        # A language model that is saved without the model around it; checkpoints have both.
        whole = {**config.to_dict(), "architectures": [type(saved).__name__]}
        (directory / "config.json").write_text(json.dumps(whole, default=str), encoding="utf-8")


def difference(equal: Any, expected: Sequence[Any], actual: Sequence[Any]) -> str | None:
    """Where the tokens differ first; None where they are equal, but for a tie."""
    try:
        for prompt, tokens, found in zip(prompts(), expected, actual, strict=True):
            equal.compare(prompt, tokens, found)
        equal.check()
    except AssertionError as error:
        return first_line(error)
    return None


def _greedy(logits: Callable[[Sequence[int]], Any], prompt: Sequence[int]) -> list[int]:
    """Greedy tokens by forward passes over the whole sequence."""
    found: list[int] = []
    for _ in range(NEW_TOKENS):
        found.append(int(logits([*prompt, *found]).argmax()))
    return found


def answers(directory: str) -> tuple[Any, list[list[int]]]:
    """transformers' model and its greedy tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    answers = []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            output = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
            )  # fmt: skip
        answers.append(output[0, len(prompt) :].tolist())
    return model, answers


def dodona(directory: str, **engine: Any) -> tuple[str, str, list[list[int]]]:
    """How V1 computed the model's steps, why not packed, and its greedy tokens."""
    from dodona import LLM, SamplingParams
    from dodona.runners.v1 import runner
    from dodona.runners.v1.row_model import RowModel

    chosen: list[Any] = []

    def choose(*args: Any, **kwargs: Any) -> Any:
        chosen.append(original(*args, **kwargs))
        return chosen[-1]

    # The process runs one model and ends, so nothing is put back.
    original, runner.choose = runner.choose, choose
    greedy = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
    with LLM(directory, **ENGINE, **engine) as llm:
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts()], greedy, use_tqdm=False)
    failed = [output.error for output in outputs if output.error]
    if failed:
        raise RuntimeError(failed[0])
    model = chosen[0].model
    way = f"rows, {model.continuation}" if isinstance(model, RowModel) else "packed"
    return way, chosen[0].why_not_packed or "", [list(output.outputs[0].token_ids) for output in outputs]


def described(model_type: str) -> dict[str, str]:
    """What rules read of a config.json of the type: the architecture, and the type of the language model."""
    from dodona.oracle.models.model_info import ModelInfo

    raw = {"architectures": [architecture(model_type)], "model_type": model_type}
    try:
        raw = {**tiny_config(model_type).to_dict(), **raw}
    except Exception:  # a type that can't be made small; its defaults tell enough
        raw = dict(raw)
    return {
        "architecture": architecture(model_type),
        "language_model": ModelInfo.from_mapping(raw).model_type,
    }


def key(model_type: str) -> str:
    """What a result belongs to: the tiny configuration."""
    try:
        config = tiny_config(model_type).to_dict()
    except Exception as error:
        config = {"fails": first_line(error)}
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16]


def results_file(version: str) -> Path:
    """The results of one version of transformers."""
    return RESULTS / f"transformers-{version}.json"


def run(only: Sequence[str], again: bool, jobs: int) -> None:
    """Try what has no result yet, and keep the results."""
    file = results_file(sweep.prepare("dodona.runners.v1.runner"))
    known: dict[str, dict[str, str]] = sweep.load(file)
    keys = {model_type: key(model_type) for model_type in model_types()}
    wanted = [
        model_type
        for model_type, now in keys.items()
        if (model_type in only if only else again or known.get(model_type, {}).get("config") != now)
    ]
    for model_type, found in run_each(wanted, try_family, jobs):
        known[model_type] = {"config": keys[model_type], **found}
        print(model_type, found["outcome"], found["why"], flush=True)
        sweep.save(file, known)
    sweep.save(file, {t: {**known[t], **described(t)} for t in keys if t in known})


WORDS = {
    "packed": "packed",
    "rows, chunks": "row by row",
    "rows, tokens": "row by row, token by token",
    "rows, none": "row by row, without a cache",
    "refused": "refused",
    "untried": "not tried",
    "wrong": "**wrong**",
}

HEAD = """# Models

Which causal language models of transformers runner V1 serves. This page is generated by `python -m
tests.support.models_table`: a tiny model with random weights of every type that transformers' automatic
class for causal language models knows is run by `dodona.LLM` in fp32 on a CPU (prompts of {prompts} tokens
together, chunks of {chunk}, KV blocks of {block}, too few blocks for all, {new} greedy tokens each) and
compared with transformers' own `generate`. Each type runs in a process of its own.

| transformers | types | packed | row by row | refused | not tried | wrong |
| --- | --: | --: | --: | --: | --: | --: |
{counts}

- **packed**: all requests of a step are computed in one forward pass, over a paged KV cache; inner states
  of hybrid and Mamba models are kept in slots.
- **row by row**: slow. Each request is computed on its own by transformers' plain model, with the cache
  that the model makes; prefixes are not cached. The rule book reports it as the consequence `row-by-row`.
  *Token by token*: a prompt that needs several steps goes on one token at a time after the first chunk.
  *Without a cache*: each token computes the whole sequence again.
- **refused**: by the rule that is named, before anything loads.
- **not tried**: no tiny model of the type could be made, or transformers itself could not generate with it.
- **–**: this version of transformers has no such type. The rule `transformers-version` refuses it there; what
  is supported is `{supported}`.

V1 does not choose by this table. At load it measures each model (`runners.v1.choice.choose`): packed if its
steps equal the plain model, else row by row if those steps do, else it refuses with the reason. A model
whose RoPE changes with length (`longrope` beyond its original length) is computed row by row too; with
`dynamic` RoPE rows are packed, and each has the frequencies of its own length.

| Model type | {versions} | Why not packed; remarks |
| --- | {dashes} | --- |
{rows}
"""


def supported() -> str:
    """The versions of transformers that the package asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (found,) = [name for name in project["dependencies"] if name.startswith("transformers")]
    return str(found)


def document() -> str:
    """The text of docs/models.md, from the results of all versions."""
    results = {
        file.stem.removeprefix("transformers-"): json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(RESULTS.glob("transformers-*.json"))
    }
    counts, rows = [], []
    for version, found in results.items():
        outcomes = [entry["outcome"] for entry in found.values()]
        numbers = [sum(o.startswith(kind) for o in outcomes) for kind in _KINDS]
        counts.append(f"| {version} | {len(outcomes)} | " + " | ".join(map(str, numbers)) + " |")
    for model_type in sorted({t for found in results.values() for t in found}):
        entries = {version: found.get(model_type) for version, found in results.items()}
        last = next(entry for entry in reversed(entries.values()) if entry)
        cells = [WORDS[entry["outcome"]] if entry else "–" for entry in entries.values()]
        refused = [
            f"{version}: {entry['why']}"
            for version, entry in entries.items()
            if entry and entry["outcome"] == "refused" != last["outcome"]
        ]
        remark = "; ".join(filter(None, (markdown(last["why"]), last.get("note"), *refused)))
        rows.append(f"| `{model_type}` | " + " | ".join(cells) + f" | {remark} |")
    return HEAD.format(
        prompts=", ".join(map(str, PROMPT_LENGTHS)), chunk=ENGINE["max_num_batched_tokens"],
        block=ENGINE["block_size"], new=NEW_TOKENS, counts="\n".join(counts), versions=" | ".join(results),
        supported=supported(),
        dashes=" | ".join("---" for _ in results), rows="\n".join(rows),
    )  # fmt: skip


_KINDS = ("packed", "rows", "refused", "untried", "wrong")


if __name__ == "__main__":
    sweep.main(__doc__, run, document, DOCUMENT)
