"""Compares vLLM's books with what its releases were recorded to decide.

``python -m tests.support.vllm_agreement``

It prints the table of docs/vllm-books.md, with `--all` each case that differs,
and writes the table with `--write`. `--held-out` prints the table of those cases
that were drawn after the books were written. `--recording FOLDER` takes the cases
of a folder that tools/record_vllm/pack.py wrote instead of those of the tests.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from dodona.oracle.errors import ConfigError
from dodona.oracle.language.facts import UNKNOWN, FactValue
from dodona.oracle.machine.environment import Environment
from dodona.oracle.select import select_runner
from dodona.oracle.systems.books import bundled_rulebook
from dodona.oracle.systems.registry import system_of

DATA: Final = Path(__file__).parents[1] / "data" / "vllm_recorded"
DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "vllm-books.md"
BEGIN, END = "<!-- agreement: begin -->", "<!-- agreement: end -->"
NAMES: Final = {
    "model_config.get_total_num_kv_heads": "model_config.total_num_kv_heads",
    "model_config.model_arch_config.total_num_attention_heads": "model_config.total_num_attention_heads",
}
"""Name in the recording → name of the fact, where they differ. Facts that rules read are derived of these."""
HOPPER: Final = Environment(has_triton=True, platform="cuda")


@dataclass(frozen=True)
class Compared:
    """One case: what was recorded, and what the book says."""

    id: str
    recorded: str
    """v1, v2 or "refused"."""
    book: str
    """v1, v2 or "refused", where the configuration can't be read too."""
    why: str
    """Of a refusal: vLLM's words, and the book's."""
    facts: tuple[tuple[str, Any, FactValue], ...]
    """Facts that rules of the book read and that differ: name, recorded, ours."""
    compared: int
    """Facts that were compared."""
    open: int
    """Facts that the book takes as not known."""
    held_out: bool
    """Whether the case was drawn after the book was written."""


def releases(folder: Path = DATA) -> list[str]:
    """The recorded releases, oldest first."""
    found = [path.name.removesuffix(".jsonl.gz") for path in folder.glob("*.jsonl.gz")]
    return sorted(found, key=lambda release: [int(part) for part in release.split(".")])


@cache
def models_folder() -> Path:
    """The recorded models' directories, unpacked once."""
    folder = Path(tempfile.mkdtemp(prefix="vllm_recorded_"))
    for line in (DATA / "models.jsonl").read_text().splitlines():
        model = json.loads(line)
        for name, text in {"config.json": json.dumps(model["config"]), **model.get("files", {})}.items():
            file = folder / model["name"] / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    return folder


def cases(release: str, folder: Path = DATA) -> Iterator[dict[str, Any]]:
    """The recorded cases of a release."""
    text = gzip.decompress((folder / f"{release}.jsonl.gz").read_bytes()).decode()
    for line in text.splitlines():
        yield json.loads(line.replace("{models}", str(models_folder())))


@cache
def compare(release: str, folder: Path = DATA) -> tuple[Compared, ...]:
    """Every recorded case of a release against its book."""
    return tuple(_compared(release, case) for case in cases(release, folder))


def _compared(release: str, case: Mapping[str, Any]) -> Compared:
    book = bundled_rulebook(f"vllm/{release}")
    words = [*(f"{name}={value}" for name, value in case["env"].items()), "vllm", "serve", *case["argv"]]
    raised = case.get("raised")
    recorded = "refused" if raised is not None else ("v2" if case["use_v2"] else "v1")
    why = "" if raised is None else raised["message"]
    held_out = "held_out" in case
    try:
        verdict = select_runner(words, rulebook=book, environment=HOPPER)
        answer = str(verdict.runner) if not verdict.refusals else "refused"
        if verdict.refusals:
            why += " | " + "; ".join(map(str, verdict.refusals))
        deployment = system_of(book.system).deploy(words, HOPPER, book)
        known = deployment.known_facts()
    except ConfigError as error:
        return Compared(case["id"], recorded, "refused", f"{why} | {error}", (), 0, 0, held_out)
    differing, compared, unknown = [], 0, 0
    for recorded_name, value in case.get("facts", {}).items():
        name = NAMES.get(recorded_name, recorded_name)
        if name not in known or not (name in book.reads or recorded_name in NAMES):
            continue
        ours = known[name]
        if ours is UNKNOWN:
            unknown += 1
            continue
        compared += 1
        plain = list(ours) if isinstance(ours, tuple) else ours
        if plain != value and (plain or value):
            differing.append((name, value, ours))
    return Compared(case["id"], recorded, answer, why, tuple(differing), compared, unknown, held_out)


def table(folder: Path = DATA, *, held_out: bool = False) -> str:
    """Agreement by release, as Markdown; held_out: only of the cases drawn after the books."""
    rows = [
        "| release | decided | choice agrees | refused | predicted | wrongly refused | facts agree |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for release in releases(folder):
        found = [case for case in compare(release, folder) if case.held_out or not held_out]
        decided = [case for case in found if case.recorded != "refused"]
        refused = [case for case in found if case.recorded == "refused"]
        agree = sum(case.book == case.recorded for case in decided)
        predicted = sum(case.book == "refused" for case in refused)
        wrongly = sum(case.book == "refused" for case in decided)
        facts = sum(case.compared for case in decided)
        same = facts - sum(len(case.facts) for case in decided)
        rows.append(
            f"| {release} | {len(decided)} | {_share(agree, len(decided))} | {len(refused)} "
            f"| {_share(predicted, len(refused))} | {wrongly} | {_share(same, facts)} |"
        )
    return "\n".join(rows)


def _share(part: int, whole: int) -> str:
    return f"{part} ({100 * part / whole:.1f} %)" if whole else "0"


def differences(folder: Path = DATA) -> Iterator[str]:
    """A line for each case, and each kind of fact, that differs."""
    for release in releases(folder):
        facts: Counter[str] = Counter()
        for case in compare(release, folder):
            if case.book != case.recorded:
                yield f"{release} {case.id}: {case.recorded}, book {case.book}: {case.why}"
            facts.update(f"{name}: {value!r}, ours {ours!r}" for name, value, ours in case.facts)
        for text, count in facts.most_common():
            yield f"{release} {count} × {text}"


def documented() -> str:
    """docs/vllm-books.md with the table as it should be."""
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Read the arguments; print, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--recording", type=Path, default=DATA, metavar="FOLDER")
    args = parser.parse_args()
    print(table(args.recording, held_out=args.held_out))
    if args.write:
        DOCUMENT.write_text(documented())
    if args.all:
        print("\n".join(differences(args.recording)))


if __name__ == "__main__":
    main()
