"""The cases to record: every model with its defaults and with every flag set.

    python tools/record_vllm/plan.py MODELS_FOLDER CASES
    python tools/record_vllm/plan.py MODELS_FOLDER CASES --held-out 0.33.0 [--count 60]

Unpacks the models of tests/data/vllm_recorded into MODELS_FOLDER and writes cases for `record.py`, the grid
first, and each part in random order, so that whatever is recorded of a part is a fair sample of it.
`{NAME}` in a flag set is the folder of a model. With `--held-out` the cases have two flag sets each, drawn at
random, the text after it being the seed, and the key `held_out`.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[2] / "tests" / "data" / "vllm_recorded"

GRID = 64
"""Models that are recorded with each flag set of the grid."""


def main() -> None:
    """Read the arguments, unpack the models, write the cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--held-out", metavar="SEED")
    parser.add_argument("--count", type=int, default=60)
    args = parser.parse_args()
    unpack(args.models)
    planned = (
        list(cases(args.models))
        if args.held_out is None
        else held_out(args.models, args.held_out, args.count)
    )
    with args.cases.open("w") as file:
        for case in planned:
            file.write(json.dumps(case) + "\n")


def models() -> list[dict[str, Any]]:
    """The recorded models: name, config, and other files beside config.json."""
    return [json.loads(line) for line in (DATA / "models.jsonl").read_text().splitlines()]


def unpack(folder: Path) -> None:
    """Write each model's directory."""
    for model in models():
        files = {"config.json": json.dumps(model["config"], indent=1), **model.get("files", {})}
        for name, text in files.items():
            file = folder / model["name"] / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)


def flag_sets() -> list[dict[str, Any]]:
    """The flag sets: `flags`, `env`, and `models` where a set suits only some."""
    return [json.loads(line) for line in (DATA / "flag_sets.jsonl").read_text().splitlines()]


def cases(folder: Path) -> Iterator[dict[str, Any]]:
    """Every model with its defaults and with each flag set that suits it.

    First, in random order, come the defaults, the flag sets that name their models, and the grid: real models
    with the flag sets that have `grid`. Then the other pairs, in random order.
    """
    drawn = random.Random(15)
    named = {model["name"]: model for model in models() if not model["name"].startswith("draft-")}
    real = drawn.sample([name for name in named if not re.search("unknown|no-architectures", name)], GRID)
    first: list[tuple[str, dict[str, Any]]] = [(name, {"flags": ""}) for name in named]
    then: list[tuple[str, dict[str, Any]]] = []
    for flags in flag_sets():
        of_grid = real if "grid" in flags else ()
        first += [(name, flags) for name in flags.get("models", of_grid)]
        then += [] if "models" in flags else [(name, flags) for name in named if name not in of_grid]
    seen = set()
    for name, flags in [*drawn.sample(first, len(first)), *drawn.sample(then, len(then))]:
        case = _case(folder, named[name], flags)
        if case["id"] not in seen:
            seen.add(case["id"])
            yield case


def held_out(folder: Path, seed: str, count: int) -> list[dict[str, Any]]:
    """Random cases of two flag sets each, which the plan has one at a time."""
    drawn = random.Random(f"held out {seed}")
    named = [model for model in models() if not model["name"].startswith("draft-")]
    free = [flags for flags in flag_sets() if "models" not in flags]
    found: dict[str, dict[str, Any]] = {}
    while len(found) < count:
        sets = drawn.sample(free, 2)
        flags = {
            "flags": " ".join(one["flags"] for one in sets).strip(),
            "env": {name: value for one in sets for name, value in one.get("env", {}).items()},
        }
        case = _case(folder, drawn.choice(named), flags)
        found[case["id"]] = {**case, "held_out": seed}
    return list(found.values())


def _case(folder: Path, model: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    identity = " ".join(filter(None, [_env(flags), model["name"], flags["flags"]]))
    return {"id": identity, "argv": _argv(folder, model, flags), "env": flags.get("env", {})}


def _env(flags: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in flags.get("env", {}).items())


def _argv(folder: Path, model: dict[str, Any], flags: dict[str, Any]) -> list[str]:
    words = shlex.split(flags["flags"])
    for other in models():
        words = [word.replace("{" + other["name"] + "}", str(folder / other["name"])) for word in words]
    own_code = any(name.endswith(".py") for name in model.get("files", {}))
    remote = ["--trust-remote-code"] if own_code and not flags.get("no_remote") else []
    return [str(folder / model["name"]), *remote, *words]


if __name__ == "__main__":
    main()
