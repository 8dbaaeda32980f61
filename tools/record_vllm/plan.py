"""The cases to record: each model with its defaults and a few flag sets, each flag set with several models.

    python tools/record_vllm/plan.py MODELS_FOLDER CASES [--flag-sets-each 3]
    python tools/record_vllm/plan.py MODELS_FOLDER CASES --held-out 0.33.0 [--count 30]

Unpacks the models of tests/data/vllm_recorded into MODELS_FOLDER and writes cases for `record.py`. The cases
are in an order of which each beginning is a fair sample. `{NAME}` in a flag set is the folder of a model.
With `--held-out` the cases are drawn at random, the text after it being the seed: models with one or two
flag sets that the plan without it does not combine. Each has the key `held_out`.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[2] / "tests" / "data" / "vllm_recorded"


def main() -> None:
    """Read the arguments, unpack the models, write the cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--flag-sets-each", type=int, default=3)
    parser.add_argument("--held-out", metavar="SEED")
    parser.add_argument("--count", type=int, default=30)
    args = parser.parse_args()
    unpack(args.models)
    planned = list(cases(args.models, args.flag_sets_each))
    if args.held_out is not None:
        planned = held_out(args.models, args.held_out, args.count, {case["id"] for case in planned})
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


def cases(folder: Path, each: int) -> Iterator[dict[str, Any]]:
    """All cases: the defaults of every model, then rounds of flag sets."""
    drawn = random.Random(15)
    named = [model for model in models() if not model["name"].startswith("draft-")]
    by_name = {model["name"]: model for model in named}
    bound: list[tuple[str, dict[str, Any]]] = []
    free: list[dict[str, Any]] = []
    for flags in flag_sets():
        if "models" in flags:
            bound += [(name, flags) for name in flags["models"]]
        else:
            free.append(flags)
    rounds: list[tuple[str, dict[str, Any]]] = []
    deck: list[dict[str, Any]] = []
    for _ in range(each):
        for model in drawn.sample(named, len(named)):
            if not deck:
                deck = drawn.sample(free, len(free))
            rounds.append((model["name"], deck.pop()))
    plain: list[tuple[str, dict[str, Any]]] = [(model["name"], {"flags": ""}) for model in named]
    mixed = bound + rounds
    drawn.shuffle(mixed)
    drawn.shuffle(plain)
    share = max(1, len(mixed) // len(plain))
    order = []
    for i, pair in enumerate(plain):
        order += [pair, *mixed[i * share : (i + 1) * share]]
    order += mixed[len(plain) * share :]
    seen = set()
    for name, flags in order:
        case = _case(folder, by_name[name], flags)
        if case["id"] not in seen:
            seen.add(case["id"])
            yield case


def held_out(folder: Path, seed: str, count: int, known: set[str]) -> list[dict[str, Any]]:
    """Random cases whose `id` is not among `known`; two of three have one flag set, the third has two."""
    drawn = random.Random(f"held out {seed}")
    named = [model for model in models() if not model["name"].startswith("draft-")]
    free = [flags for flags in flag_sets() if "models" not in flags]
    found: dict[str, dict[str, Any]] = {}
    while len(found) < count:
        sets = drawn.sample(free, 2 if len(found) % 3 == 2 else 1)
        flags = {
            "flags": " ".join(one["flags"] for one in sets).strip(),
            "env": {name: value for one in sets for name, value in one.get("env", {}).items()},
        }
        case = _case(folder, drawn.choice(named), flags)
        if case["id"] not in known:
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
