"""Packs recorded answers for the tests.

    python tools/record_vllm/pack.py RELEASE MODELS_FOLDER CASES ANSWERS [--sample N] [--target FOLDER]

Writes RELEASE.jsonl.gz into FOLDER (tests/data/vllm_recorded): each case with its answer, and `{models}` in
place of the folder of models. Answers that the recorder broke on are left out: an operator or a package
that the made-up machine lacks says nothing of the release.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[2] / "tests" / "data" / "vllm_recorded"

ARTEFACTS = (
    "_OpNamespace",
    "No module named",
    "failed to be inspected",
    "cannot import name",
    "Invalid repository ID",
    "cumem allocator is not supported",
    "Arctic Inference is required",
    "Couldn't instantiate the backend tokenizer",
    "failed to tokenize reasoning strings",
    "could not locate think start/end tokens in the tokenizer",
    "Can't load feature extractor",
    "Can't load image processor",
    "is larger than the number of available GPUs",
)
"""Words of errors of the recording: a package, module, tokenizer, processor, network or GPU that it lacks."""


KINDS = 3
"""Cases of each kind of refusal that a sample has, if there are so many."""


def main() -> None:
    """Read the arguments, join cases and answers by `id`, and write what is of use."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("release")
    parser.add_argument("models", help="the folder of models that the cases name")
    parser.add_argument("cases", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--target", type=Path, default=TARGET, metavar="FOLDER")
    parser.add_argument("--sample", type=int, metavar="N", help="keep N cases, and all with `held_out`")
    args = parser.parse_args()
    given = {case["id"]: case for case in map(json.loads, args.cases.read_text().splitlines())}
    kept = {}
    for answer in map(json.loads, args.answers.read_text().splitlines()):
        message = answer.get("raised", {}).get("message", "")
        broken = "broken" in answer or any(words in message for words in ARTEFACTS)
        if answer["id"] in given and not broken:
            kept[answer["id"]] = {**given[answer["id"]], **answer}
    chosen = set(kept) if args.sample is None else sample(kept, args.sample)
    text = "".join(json.dumps(kept[name], sort_keys=True) + "\n" for name in sorted(chosen))
    data = text.replace(args.models.rstrip("/") + "/", "{models}/").encode()
    args.target.mkdir(parents=True, exist_ok=True)
    (args.target / f"{args.release}.jsonl.gz").write_bytes(gzip.compress(data, mtime=0))
    print(f"{args.release}: {len(chosen)} of {len(kept)} cases")


def sample(kept: Mapping[str, Mapping[str, Any]], count: int) -> set[str]:
    """Some of each kind of refusal, every held-out case, and others at random."""
    order = random.Random(15).sample(sorted(kept), len(kept))
    chosen = {name for name in order if "held_out" in kept[name]}
    seen: Counter[str] = Counter()
    for name in order:
        kind = _kind(kept[name])
        if kind is not None and seen[kind] < KINDS:
            seen[kind] += 1
            chosen.add(name)
    rest = [name for name in order if name not in chosen]
    return chosen | set(rest[: max(0, count - len(chosen))])


def _kind(case: Mapping[str, Any]) -> str | None:
    """What a refusal says, without numbers, names and paths; None where nothing was refused."""
    raised = case.get("raised")
    if raised is None:
        return None
    words = re.sub(r"\[.*?\]|'.*?'|\S*[/\d]\S*", "", raised["message"].partition("[type=")[0])
    return f"{raised['type']} {words[:60]}"


if __name__ == "__main__":
    main()
