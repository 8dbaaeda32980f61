"""Writes oracle/systems/vllm/model_classes.json from recorded registries.

    python tools/record_vllm/model_classes.py 0.22.0=FILE 0.25.1=FILE …

Each FILE is what `record.py --architectures` wrote for the release. What vLLM says of classes that it had
before (`previously`) is part of the table: such a class is gone from the release on that says so.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[2] / "oracle" / "systems" / "vllm" / "model_classes.json"

FIELDS = {
    "g": "is_text_generation_model",
    "p": "is_pooling_model",
    "m": "supports_multimodal",
    "s": "has_inner_state",
    "f": "is_attention_free",
    "h": "is_hybrid",
    "P": "supports_pp",
    "L": "supports_lora",
}
"""Letters of the table, and the fields of vLLM's `_ModelInfo`."""


def main(words: list[str]) -> None:
    """Merge the files."""
    recorded = [
        (word.partition("=")[0], json.loads(Path(word.partition("=")[2]).read_text())) for word in words
    ]
    recorded.sort(key=lambda pair: [int(part) for part in pair[0].split(".")])
    table = {
        "releases": [release for release, _ in recorded],
        "classes": {name: history(name, recorded) for name in _names(recorded)},
        "of_type": next(data["of_type"] for _, data in reversed(recorded) if "of_type" in data),
        "without_backend": next((d["without_backend"] for _, d in recorded if "without_backend" in d), []),
        "without_interface": _common(
            [d["without_interface"] for _, d in recorded if "without_interface" in d]
        ),
        **{
            key: {release: data[key] for release, data in recorded if key in data}
            for key in (
                "quantization",
                "speculation",
                "config_types",
                "drafts_for",
                "connectors",
                "sections",
                "choices",
                "breakable_graphs",
            )
        },
    }
    TARGET.write_text(_text(table))


def _common(lists: list[list[str]]) -> list[str]:
    """What all of the lists have."""
    return sorted(set.intersection(*map(set, lists))) if lists else []


def history(name: str, recorded: list[tuple[str, dict[str, Any]]]) -> list[list[str | None]]:
    """What the releases say of a class: each change with the release that made it.

    null: it is gone. Where its module could not be imported when the registry was recorded, what the next
    release says of it counts, else the last one's; "?": none says anything.
    """
    changes: list[list[str | None]] = []
    for release, data in recorded:
        info = data["models"].get(name)
        if info is None:
            letters = None
            missing = not changes and name not in data["previously"] and name not in data["elsewhere"]
        else:
            told = "".join(letter for letter, field in FIELDS.items() if info.get(field))
            letters = _told_by_others(name, release, recorded) if "raised" in info else told
            missing = False
        if not missing and (not changes or changes[-1][1] != letters):
            changes.append([release, letters])
    return changes


def _told_by_others(name: str, release: str, recorded: list[tuple[str, dict[str, Any]]]) -> str:
    at = [r for r, _ in recorded].index(release)
    for _, data in (*recorded[at + 1 :], *reversed(recorded[:at])):
        info = data["models"].get(name)
        if info is not None and "raised" not in info:
            return "".join(letter for letter, field in FIELDS.items() if info.get(field))
    return "?"


def _names(recorded: list[tuple[str, dict[str, Any]]]) -> list[str]:
    found: set[str] = set()
    for _, data in recorded:
        found |= {*data["models"], *data["previously"], *data["elsewhere"]}
    return sorted(found)


def _text(table: dict[str, Any]) -> str:
    rest = {key: value for key, value in table.items() if key not in ("releases", "classes")}
    rows = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in table["classes"].items()]
    return (
        f'{{\n"releases": {json.dumps(table["releases"])},\n"classes": {{\n'
        + ",\n".join(rows)
        + "\n},\n"
        + ",\n".join(f"{json.dumps(key)}: {_object(value)}" for key, value in rest.items())
        + "\n}\n"
    )


def _object(value: Any) -> str:
    if isinstance(value, list):
        return json.dumps(value)
    return "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(value.items())) + "\n}"


if __name__ == "__main__":
    main(sys.argv[1:])
