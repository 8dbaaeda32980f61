"""Writes docs/models.md: every causal language model type of transformers, run by V1 and compared with `generate`.

``python -m tests.support.models_table`` tries the types that tests/data/models/VERSION.json has no result of for the
tiny configuration that they have now, and writes the document. With ``--again`` it tries all, with names of types
only these. ``--document`` only writes the document from the results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import resource
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.every_family import VOCAB_SIZE, make_model, model_types, tiny_config

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests" / "data" / "models"
DOCUMENT = ROOT / "docs" / "models.md"

PROMPT_LENGTHS = (5, 17, 40)
NEW_TOKENS = 12
ENGINE = {
    "device": "cpu", "dtype": "float32", "block_size": 4, "max_num_batched_tokens": 16, "max_num_seqs": 4,
    "max_model_len": 64, "num_gpu_blocks_override": 20,
}  # fmt: skip
"""Chunks of 16 tokens; too few blocks for all prompts, so that one is preempted."""

SECONDS = 120


def prompts() -> list[list[int]]:
    """Random prompts; ids from 4 on, so that none is a padding token."""
    import torch

    generator = torch.Generator().manual_seed(3)
    return [torch.randint(4, VOCAB_SIZE - 2, (n,), generator=generator).tolist() for n in PROMPT_LENGTHS]


def try_family(model_type: str) -> dict[str, str]:
    """The outcome of one type: "packed", "row by row", "refused", "untried" or "wrong", and why."""
    import torch

    with tempfile.TemporaryDirectory() as directory:
        try:
            make_model(tiny_config(model_type)).save_pretrained(directory)
            plain, expected = _answers(directory)
        except Exception as error:
            return {"outcome": "untried", "why": _first_line(error)}
        try:
            way, why, actual = _dodona(directory)
        except Exception as error:
            from dodona.oracle.errors import UnsupportedConfiguration

            if isinstance(error, UnsupportedConfiguration):
                rules = [] if error.verdict is None else [r.rule for r in error.verdict.refusals]
                return {"outcome": "refused", "why": ", ".join(rules) or _first_line(error)}
            return {"outcome": "wrong", "why": _first_line(error)}
        from tests.support.equal_tokens import EqualTokens

        def logits(ids: Sequence[int]) -> Any:
            with torch.inference_mode():
                return plain(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1]

        equal = EqualTokens(logits, max_ties=1)
        failure = _difference(equal, expected, actual)
        if failure:
            # generate() numbers RoBERTa's positions from 0; the model's own forward pass does not.
            own = [_greedy(logits, prompt) for prompt in prompts()]
            if own != expected:
                again = _difference(EqualTokens(logits, max_ties=1), own, actual)
                if again is None:
                    return {"outcome": way, "why": why, "note": "equal to forward(), from which generate() differs"}
            return {"outcome": "wrong", "why": failure}
        return {"outcome": way, "why": why}


def _difference(equal: Any, expected: Sequence[Any], actual: Sequence[Any]) -> str | None:
    """Where the tokens differ first; None where they are equal, but for a tie."""
    try:
        for prompt, tokens, found in zip(prompts(), expected, actual, strict=True):
            equal.compare(prompt, tokens, found)
        equal.check()
    except AssertionError as error:
        return _first_line(error)
    return None


def _greedy(logits: Callable[[Sequence[int]], Any], prompt: Sequence[int]) -> list[int]:
    """Greedy tokens by forward passes over the whole sequence."""
    found: list[int] = []
    for _ in range(NEW_TOKENS):
        found.append(int(logits([*prompt, *found]).argmax()))
    return found


def _answers(directory: str) -> tuple[Any, list[list[int]]]:
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


def _dodona(directory: str) -> tuple[str, str, list[list[int]]]:
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
    with LLM(directory, **ENGINE) as llm:
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts()], greedy, use_tqdm=False)
    failed = [output.error for output in outputs if output.error]
    if failed:
        raise RuntimeError(failed[0])
    model = chosen[0].model
    way = f"rows, {model.continuation}" if isinstance(model, RowModel) else "packed"
    return way, chosen[0].why_not_packed or "", [list(output.outputs[0].token_ids) for output in outputs]


def _first_line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    named = text if isinstance(error, AssertionError) else f"{type(error).__name__}: {text}"
    return named.replace(str(Path(tempfile.gettempdir())), "")[:220]


# --- One process for each type


def _child(model_type: str, pipe: Any) -> None:
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    pipe.send(try_family(model_type))


def run_apart(model_type: str) -> dict[str, str]:
    """`try_family` in a process of its own, which is ended after `SECONDS`."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(model_type, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(SECONDS):
            return {"outcome": "untried", "why": f"no end after {SECONDS} s"}
        return dict(ours.recv())
    except EOFError:
        return {"outcome": "untried", "why": "the process died"}
    finally:
        process.kill()
        process.join()


def key(model_type: str) -> str:
    """What a result belongs to: the tiny configuration."""
    try:
        config = tiny_config(model_type).to_dict()
    except Exception as error:
        config = {"fails": _first_line(error)}
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16]


def results_file(version: str) -> Path:
    """The results of one version of transformers."""
    return RESULTS / f"transformers-{version}.json"


def load(version: str) -> dict[str, dict[str, str]]:
    """The results that there are, by type."""
    file = results_file(version)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def run(only: Sequence[str], again: bool) -> None:
    """Try what has no result yet, and keep the results."""
    import transformers

    import dodona.runners.v1.runner  # imported once, before the processes fork

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    version = transformers.__version__
    known = load(version)
    results: dict[str, dict[str, str]] = {}
    for model_type in model_types():
        now = key(model_type)
        found = known.get(model_type)
        wanted = model_type in only if only else again or found is None or found["config"] != now
        if wanted:
            found = {"config": now, **run_apart(model_type)}
            print(model_type, found["outcome"], found["why"], flush=True)
            known[model_type] = found
            _write(version, known)
        if found is not None:
            results[model_type] = found
    _write(version, results)


def _write(version: str, results: Mapping[str, Mapping[str, str]]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(t)}: {json.dumps(results[t], sort_keys=True)}" for t in sorted(results)]
    results_file(version).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--document", action="store_true")
    arguments = parser.parse_args()
    if not arguments.document:
        run(arguments.types, arguments.again)


if __name__ == "__main__":
    main()
