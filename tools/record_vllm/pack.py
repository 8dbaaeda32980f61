"""Packs recorded answers for the tests.

    python tools/record_vllm/pack.py RELEASE MODELS_FOLDER CASES ANSWERS

Writes tests/data/vllm_recorded/RELEASE.jsonl.gz: each case with its answer, and `{models}` in place of the
folder. Answers that the recorder itself broke on are left out: an operator or a package that the made-up
machine lacks says nothing of the release.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

TARGET = Path(__file__).parents[2] / "tests" / "data" / "vllm_recorded"

ARTEFACTS = (
    "_OpNamespace",
    "No module named",
    "failed to be inspected",
    "cannot import name",
    "Invalid repository ID",
    "cumem allocator is not supported",
    "Arctic Inference is required",
    "could not locate think start/end tokens in the tokenizer",
    "is larger than the number of available GPUs",
)
"""Words of errors of the recording: no such package, compiled module, tokenizer, network or ninth GPU."""


def main(release: str, folder: str, cases: str, answers: str) -> None:
    """Join the two files by `id`, and write what is of use."""
    given = {case["id"]: case for case in map(json.loads, Path(cases).read_text().splitlines())}
    kept = {}
    for answer in map(json.loads, Path(answers).read_text().splitlines()):
        message = answer.get("raised", {}).get("message", "")
        broken = "broken" in answer or any(words in message for words in ARTEFACTS)
        if answer["id"] in given and not broken:
            kept[answer["id"]] = {**given[answer["id"]], **answer}
    text = "".join(json.dumps(kept[name], sort_keys=True) + "\n" for name in sorted(kept))
    data = text.replace(folder.rstrip("/") + "/", "{models}/").encode()
    (TARGET / f"{release}.jsonl.gz").write_bytes(gzip.compress(data, mtime=0))
    print(f"{release}: {len(kept)} cases")


if __name__ == "__main__":
    main(*sys.argv[1:])
