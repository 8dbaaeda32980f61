"""Generates oracle/systems/vllm/flags.json: the flags of `vllm serve`, per release, from vLLM's wheels.

    python -m tests.support.vllm_flags FOLDER

FOLDER holds one folder per release (`0.33.0/vllm/…`), unpacked from its wheel. Nothing of vLLM is imported:
what `add_argument` names is read from the source, and how many values a flag takes from the annotation of the
field that it stands for.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).resolve().parents[2] / "oracle" / "systems" / "vllm" / "flags.json"
FRONTENDS = (
    "entrypoints/openai/cli_args.py",
    "entrypoints/launchers/cli_args.py",
    "entrypoints/common/cli_args.py",
)


def kind_of(annotation: str) -> str:
    """How many values a flag of a field takes, by vLLM's rules in `_compute_kwargs`."""
    plain = annotation.replace(" ", "")
    parts = set(plain.split("|"))
    if parts == {"bool", "str", "None"}:
        return "optional"
    if "bool" in parts or plain.startswith("Optional[bool]"):
        return "switch"
    if any(part.startswith(("list[", "tuple[", "set[")) for part in parts):
        return "many"
    return "one"


def fields(tree: ast.AST) -> Iterator[tuple[str, str, str]]:
    """(class, field, annotation) of all annotated fields."""
    for cls in ast.walk(tree):
        if isinstance(cls, ast.ClassDef):
            for statement in cls.body:
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                    yield cls.name, statement.target.id, ast.unparse(statement.annotation)


def flags_of(vllm: Path) -> dict[str, list[Any]]:
    """The flags of one release: all option strings, joined by a space → [dest, kind]."""
    known: dict[str, str] = {}
    aliases: dict[str, str] = {}
    for path in sorted((vllm / "config").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Assign)
                and len(node.targets) == 1
                and isinstance(node.targets[0], ast.Name)
            ):
                aliases[node.targets[0].id] = ast.unparse(node.value)
        for _, name, annotation in fields(tree):
            known.setdefault(name, annotation)
    source = (vllm / "engine" / "arg_utils.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    own = {
        name: annotation for cls, name, annotation in fields(tree) if cls in ("EngineArgs", "AsyncEngineArgs")
    }
    found: dict[str, list[Any]] = {}
    for options, dest, keywords, field in arguments(tree):
        annotation = own.get(dest) or known.get(field or dest, "str")
        kind = kind_of(annotation)
        if "nargs" in keywords:
            kind = "optional" if "?" in keywords["nargs"] else "many"
        elif "action" in keywords:
            kind = _of_action(keywords["action"]) or kind
        found[" ".join(options)] = [dest, kind]
    for file in FRONTENDS:
        path = vllm / file
        if not path.is_file():
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for cls, name, annotation in fields(tree):
            if cls.endswith("FrontendArgs"):
                found["--" + name.replace("_", "-")] = [name, kind_of(annotation)]
        for options, dest, keywords, _ in arguments(tree):
            kind = _of_action(keywords.get("action", "")) or "one"
            if keywords.get("nargs"):
                kind = "optional" if "?" in keywords["nargs"] else "many"
            found.setdefault(" ".join(options), [dest, kind])
    # these are given with `append`, as JSON, or with an action of their own
    for name in ("middleware", "allowed_origins", "allowed_methods", "allowed_headers"):
        found["--" + name.replace("_", "-")] = [name, "one"]
    for name in ("api_key", "lora_modules"):
        found["--" + name.replace("_", "-")] = [name, "many"]
    if "--device-ids" in found:
        found["--device-ids"] = ["device_ids", "one"]
    return dict(sorted(found.items()))


def _of_action(action: str) -> str | None:
    """ "set": no value and no negation; "switch": no value, and `--no-…`; None: another action."""
    return "set" if "store_" in action else "switch" if "Boolean" in action else None


def arguments(tree: ast.AST) -> Iterator[tuple[list[str], str, Mapping[str, str], str | None]]:
    """Each `add_argument`: option strings, dest, keywords, and the field whose keywords it takes."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr != "add_argument":
            continue
        options = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if not options or not options[0].startswith("-"):
            continue
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}
        field = None
        for keyword in node.keywords:
            if keyword.arg is None and isinstance(keyword.value, ast.Subscript):
                index = keyword.value.slice
                field = index.value if isinstance(index, ast.Constant) else None
        long = next((o for o in options if o.startswith("--")), options[0])
        dest = (
            ast.literal_eval(keywords["dest"]) if "dest" in keywords else long.lstrip("-").replace("-", "_")
        )
        yield options, dest, keywords, field


def generate(folder: Path) -> dict[str, Any]:
    """For each flag, the releases that have it in this form."""
    releases = sorted(
        (path.name for path in folder.iterdir() if (path / "vllm" / "engine" / "arg_utils.py").is_file()),
        key=lambda name: [int(part) for part in name.split(".")],
    )
    forms: dict[tuple[str, str, str], list[str]] = {}
    for release in releases:
        for options, (dest, kind) in flags_of(folder / release / "vllm").items():
            forms.setdefault((options, dest, kind), []).append(release)
    flags = []
    for (options, dest, kind), have in sorted(forms.items()):
        for first, last in spans(have, releases):
            since = None if first == releases[0] else first
            until = None if last == releases[-1] else last
            row = [options, dest, kind, since, until]
            while row[-1] is None:
                row.pop()
            flags.append(row)
    return {"releases": releases, "flags": flags}


def spans(have: Sequence[str], releases: Sequence[str]) -> Iterator[tuple[str, str]]:
    """First and last of each run of consecutive releases."""
    start = None
    for release, after in zip(releases, [*releases[1:], None], strict=True):
        if release in have and start is None:
            start = release
        if start is not None and (after is None or after not in have):
            yield start, release
            start = None


def main() -> None:
    """Write the table."""
    found = generate(Path(sys.argv[1]))
    rows = ",\n".join(json.dumps(row) for row in found["flags"])
    releases = json.dumps(found["releases"])
    OUTPUT.write_text(f'{{"releases": {releases},\n"flags": [\n{rows}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
