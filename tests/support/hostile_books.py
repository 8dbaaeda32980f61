"""Hostile rule books and decision logs of the corpus, and folders that other processes write: those of KV
connectors and of adapters.

Each entry is one file, or one folder, beside things that work.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.hostile_files import CONTENTS, QWEN3, SPECIAL, command
from tests.support.hostile_parts import Act, Change, put

HEAD: dict[str, Any] = {
    "rulebook": "mine",
    "description": "x",
    "system": "dodona",
    "runners": ["v2", "v1"],
    "environment": {
        "variable": "DODONA_USE_V2_MODEL_RUNNER",
        "values": {"0": "v1", "1": "v2"},
        "otherwise": "error",
    },
}
LENGTH = "model_config.max_model_len"


def rule(number: int, when: Any, **more: Any) -> dict[str, Any]:
    """A rule with this condition."""
    return {
        "id": f"r{number}",
        "kind": "veto",
        "runners": ["v2"],
        "when": when,
        "feature": "x",
        "because": "x",
        "since": "2026-01-01",
        "examples": {"fires": [{LENGTH: 7}], "passes": [{LENGTH: 7}]},
        **more,
    }


def nested(depth: int) -> Any:
    """A condition of conditions."""
    inner: Any = {"model_config.is_moe": True}
    for i in range(depth):
        inner = {"all": [inner]} if i % 2 else {"not": inner}
    return inner


def halves(depth: int) -> Any:
    """A condition that has two branches at each of its levels."""
    inner: Any = {"model_config.is_moe": True}
    for i in range(depth):
        inner = {
            "any": [{"all": [inner, {LENGTH: {"gt": i + 1}}]}, {"all": [inner, {LENGTH: {"lt": i + 1}}]}]
        }
    return inner


MOE: Any = {"model_config.is_moe": True}
FACTS = (
    "model_config.is_moe",
    "model_config.has_inner_state",
    "model_config.is_encoder_decoder",
    "model_config.is_multimodal",
    "cache_config.enable_prefix_caching",
    "model_config.enforce_eager",
)

BOOKS: dict[str, Callable[[], Any]] = {
    "no rules": lambda: {**HEAD, "rules": []},
    "a rule of nothing": lambda: {**HEAD, "rules": [{}]},
    "rules of text": lambda: {**HEAD, "rules": "x"},
    "300 rules": lambda: {**HEAD, "rules": [rule(i, {LENGTH: {"gt": i}}) for i in range(1, 301)]},
    "300 rules of six facts": lambda: {
        **HEAD,
        "rules": [
            rule(i, {"all": [{fact: bool(i >> j & 1)} for j, fact in enumerate(FACTS)]}) for i in range(300)
        ],
    },
    "301 rules": lambda: {**HEAD, "rules": [rule(i, MOE) for i in range(301)]},
    "a rule twice": lambda: {**HEAD, "rules": [rule(1, MOE), rule(1, MOE)]},
    "a rule that refines itself": lambda: {**HEAD, "rules": [rule(1, MOE, refines=["r1"])]},
    "rules that refine in a circle": lambda: {
        **HEAD,
        "rules": [rule(i, MOE, refines=[f"r{(i + 1) % 20}"]) for i in range(20)],
    },
    "a chain of refinements": lambda: {
        **HEAD,
        "rules": [rule(0, MOE)] + [rule(i, MOE, refines=[f"r{i - 1}"]) for i in range(1, 250)],
    },
    "an unknown fact": lambda: {**HEAD, "rules": [rule(1, {"\x1b[2J": True})]},
    "an unknown operator": lambda: {**HEAD, "rules": [rule(1, {LENGTH: {"\u202e": 1}})]},
    "a value of another type": lambda: {**HEAD, "rules": [rule(1, {LENGTH: "x"})]},
    "a number of 400 digits": lambda: {**HEAD, "rules": [rule(1, {LENGTH: {"gt": 10**400}})]},
    "a number that is none": lambda: {**HEAD, "rules": [rule(1, {LENGTH: {"gt": float("nan")}})]},
    "2,000 values": lambda: {**HEAD, "rules": [rule(1, {LENGTH: {"in": list(range(1, 2_001))}})]},
    "2,000 values four times": lambda: {
        **HEAD,
        "rules": [rule(i, {LENGTH: {"in": list(range(i + 1, 2_001 + i))}}) for i in range(4)],
    },
    "2,001 values": lambda: {**HEAD, "rules": [rule(1, {LENGTH: {"in": list(range(1, 2_002))}})]},
    "no values": lambda: {**HEAD, "rules": [rule(1, {LENGTH: {"in": []}})]},
    "one value 2,000 times": lambda: {**HEAD, "rules": [rule(1, {LENGTH: {"in": [1] * 2_000}})]},
    "10 levels": lambda: {**HEAD, "rules": [rule(1, nested(10))]},
    "100 levels": lambda: {**HEAD, "rules": [rule(1, nested(100))]},
    "4 halves": lambda: {**HEAD, "rules": [rule(1, halves(4))]},
    "sums of 40 products": lambda: {
        **HEAD,
        "rules": [
            rule(
                1,
                {
                    "all": [
                        {"any": [{LENGTH: {"eq": 3 * i + 1}}, {LENGTH: {"eq": 3 * i + 2}}]} for i in range(40)
                    ]
                },
            )
        ],
    },
    "all of nothing": lambda: {**HEAD, "rules": [rule(1, {"all": []})]},
    "a text of 100,000 characters": lambda: {**HEAD, "rules": [rule(1, MOE, because="x" * 100_000)]},
    "names of facts in a text": lambda: {
        **HEAD,
        "rules": [rule(1, MOE, feature="{model_config.is_moe}" * 1_000)],
    },
    "names of attributes in a text": lambda: {**HEAD, "rules": [rule(1, MOE, feature="{x.__class__}")]},
    "a width in a text": lambda: {**HEAD, "rules": [rule(1, MOE, feature="{model_config.is_moe:999999999}")]},
    "escapes in a text": lambda: {**HEAD, "rules": [rule(1, MOE, feature="\x1b[2J\u202e")]},
    "escapes in an id": lambda: {**HEAD, "rules": [rule(1, MOE, id="\x1b[2J")]},
    "escapes in the name": lambda: {**HEAD, "rulebook": "\x1b[2J", "rules": [rule(1, MOE)]},
    "a system that is none": lambda: {**HEAD, "system": "\x1b[2J", "rules": [rule(1, MOE)]},
    "runners that are none": lambda: {**HEAD, "runners": ["v2", "v2", "\x1b"], "rules": [rule(1, MOE)]},
    "1,000 runners": lambda: {**HEAD, "runners": [f"v{i}" for i in range(1_000)], "rules": [rule(1, MOE)]},
    "a variable that is none": lambda: {
        **HEAD,
        "environment": {**HEAD["environment"], "variable": "A=\0"},
        "rules": [rule(1, MOE)],
    },
    "a date that is none": lambda: {**HEAD, "rules": [rule(1, MOE, since="2026-99-99")]},
    "1,000 examples": lambda: {
        **HEAD,
        "rules": [rule(1, MOE, examples={"fires": [{"model_config.is_moe": True}] * 1_000, "passes": []})],
    },
    "a reference": lambda: {**HEAD, "rules": [rule(1, MOE, refs=["file:///etc/passwd", "x" * 10_000])]},
    "a base": lambda: {**HEAD, "extends": "/dev/zero", "rules": [rule(1, MOE)]},
    "consequences": lambda: {
        **HEAD,
        "rules": [rule(1, MOE)],
        "consequences": [
            {"id": f"c{i}", "severity": "\x1b", "runners": [], "when": MOE, "feature": "x", "because": "x"}
            for i in range(100)
        ],
    },
}
"""Rule books by what is odd about them."""

VERBS: tuple[list[str], ...] = (
    ["rules", "check", "BOOK"],
    ["rules", "test", "BOOK"],
    ["rules", "list", "--rulebook", "BOOK"],
    ["rules", "fmt", "BOOK"],
    ["select", str(QWEN3), "--rulebook", "BOOK"],
    ["matrix", "--rulebook", "BOOK"],
)

TEXTS_OF_BOOKS: dict[str, Callable[[], str]] = {
    "anchors that double": lambda: (
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    ),
    "a tag": lambda: "rulebook: !!python/object/apply:os.system [id]\n",
    "250 KiB of brackets": lambda: "[" * 250_000,
    "250 KiB of keys": lambda: "? " * 125_000,
    "250 KiB of one text": lambda: "rulebook: " + "x" * 250_000,
    "250 KiB of comments": lambda: "#\n" * 125_000,
    "a hexadecimal number": lambda: f"rulebook: 0x{'f' * 200_000}\n",
    "a hexadecimal number in a condition": lambda: json.dumps(
        {**HEAD, "rules": [rule(1, {LENGTH: {"gt": 1}})]}
    ).replace('"gt": 1', f'"gt": 0x{"f" * 100_000}'),
    "a number in base 60": lambda: "rulebook: 1:" + ":".join(["59"] * 50_000) + "\n",
    "a date": lambda: "rulebook: 2026-99-99\n",
    "two documents": lambda: "rulebook: a\n---\nrulebook: b\n",
}
"""Rule books that are no books."""

LINES: dict[str, Callable[[], bytes]] = {
    "a line of 20 MB": lambda: b'{"x": "' + b"y" * 20_000_000 + b'"}\n',
    "a million lines": lambda: b"{}\n" * 1_000_000,
    "a million empty lines": lambda: b"\n" * 1_000_000,
    "a list": lambda: b"[]\n",
    "deep": lambda: b"[" * 100_000 + b"\n",
    "a number": lambda: b"9" * 100_000 + b"\n",
    "a key twice": lambda: b'{"a": 1, "a": 2}\n',
    "not UTF-8": lambda: b"\xff\xfe\n",
    "escapes": lambda: b'{"\\u001b[2J": 1}\n',
    "a bomb": lambda: gzip.compress(b"\0" * 300_000_000, 1),
    "a bomb in lines": lambda: gzip.compress(b"{}\n" * 30_000_000, 1),
    "a bomb in a bomb": lambda: gzip.compress(gzip.compress(b"\0" * 300_000_000, 1)),
    "half of a file": lambda: gzip.compress(os.urandom(100_000))[:50_000],
    "more after the end": lambda: gzip.compress(b"{}\n") + b"x" * 1_000,
    "nothing": lambda: b"",
}
"""Recorded cases, and what lies in a decision log."""


def books() -> Iterator[Change]:
    """Rule books, by each command that reads one."""
    for verb in VERBS:
        for name, book in BOOKS.items():
            if verb[0] == "select" and name == "300 rules of six facts":
                continue  # bounded, but not to seconds
            yield f"{verb[0]} {verb[1]:.10}: {name}", lambda p, v=verb, b=book: read(p, v, json.dumps(b()))
    for name, text in TEXTS_OF_BOOKS.items():
        for verb in (VERBS[0], VERBS[4]):
            yield f"{verb[1]}: {name}", lambda p, v=verb, t=text: read(p, v, t())


def recorded() -> Iterator[Change]:
    """Files of recorded cases, and decision logs."""
    for name, content in LINES.items():
        for suffix in (".jsonl", ".jsonl.gz"):
            yield f"replay{suffix}: {name}", lambda p, s=suffix, c=content: replay(p, s, c())
    for name, content in (*CONTENTS.items(), *SPECIAL.items()):
        yield f"decision log: {name}", lambda p, c=content: log(p, c)
    yield "decision log: full", lambda p: log(p, lambda file: file.symlink_to("/dev/full"))
    yield "decision log: nowhere", lambda p: log(p, lambda file: file.symlink_to(p / "a/b"))
    yield "decision log: a name", lambda p: log(p, b"", "x" * 5_000)
    yield "decision log: a folder that is none", lambda p: log(p, b"", "log/x/y")


def blocks() -> Iterator[Change]:
    """What else lies in the folder of a KV connector."""
    from tests.support.hostile_settings import shared, stored

    for name, act in FOLDERS.items():
        yield f"stored: {name}", lambda p, a=act: stored(p, "namespace", a)
        yield f"shared: {name}", lambda p, a=act: shared(p, "x", a)


FOLDERS: dict[str, Act] = {
    "20,000 files": lambda path: _filled(path, 20_000, b""),
    "200 files of a megabyte": lambda path: _filled(path, 200, b"\xff" * 1_000_000),
    "names": lambda path: [
        path.mkdir(),
        *(
            (path / name).write_bytes(b"x")
            for name in ("\x1b[2J", "-rf", "0-999999999999.0of1.safetensors", "a\n")
        ),
    ],
    "deep folders": lambda path: os.makedirs(os.path.join(path, *["d"] * 500)),
    "links in a circle": lambda path: [path.mkdir(), (path / "a").symlink_to(path)],
    "no permission": lambda path: path.mkdir(mode=0),
}


def _filled(path: Path, count: int, content: bytes) -> None:
    path.mkdir()
    for i in range(count):
        (path / f"{i:064x}.safetensors").write_bytes(content)


def read(path: Path, verb: list[str], text: str) -> None:
    """A command that reads a rule book."""
    put(path / "book.yaml", text.encode("utf-8", "surrogatepass"))
    command([str(path / "book.yaml") if word == "BOOK" else word for word in verb])


def replay(path: Path, suffix: str, content: bytes) -> None:
    """Recorded cases of a book."""
    put(path / f"cases{suffix}", content)
    command(["rules", "replay", "vllm/0.24.0", str(path / f"cases{suffix}")])


def log(path: Path, content: bytes | Act, name: str = "log") -> None:
    """A choice that is logged to a file in which something else is: the choice stands."""
    put(path / "log", content)
    os.environ["DODONA_DECISION_LOG"] = str(path / name)
    command(["select", str(QWEN3), "--no-trial-load"])


def large_adapters() -> Iterator[Change]:
    """Adapters with many tensors, or settings of many entries."""
    from tests.support.hostile_parts import adapter
    from tests.support.hostile_weights import many, tensor, written

    def weights(header: Any) -> Act:
        return lambda file: written(file, header() if callable(header) else header, 0)

    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    empty = tensor()
    for title, header in {
        "300,000 tensors": lambda: many(300_000),
        "300,000 tensors with escapes": lambda: many(300_000).replace(b"data_o", b"data\\u005fo"),
        "100,000 tensors": lambda: many(100_000),
        "tensors of no rows": {name.format("A"): tensor([0, 128]), name.format("B"): tensor([256, 0])},
        "tensors of no sizes": {name.format("A"): empty, name.format("B"): empty},
        "names of escapes": {"\x1b[2J": empty},
        "a name of a million characters": {"x" * 1_000_000: empty},
        "integers": {name.format("A"): tensor([0, 128], "I64"), name.format("B"): tensor([256, 0], "I64")},
    }.items():
        yield f"weights: {title}", lambda p, h=header: adapter(p, {}, "adapter_model.safetensors", weights(h))
    for title, changes in {
        "100,000 ranks": lambda: {"rank_pattern": {f"x{i}": 4 for i in range(100_000)}},
        "9,000 ranks": lambda: {"rank_pattern": {f"x{i}": 4 for i in range(9_000)}},
        "9,000 expressions": lambda: {"alpha_pattern": {f"a?{i}.b": 4 for i in range(9_000)}},
        "100,000 targets": lambda: {"target_modules": [f"x{i}" for i in range(100_000)]},
        "alpha is no number": lambda: {"lora_alpha": float("nan")},
        "alpha without end": lambda: {"lora_alpha": float("inf")},
        "a huge alpha": lambda: {"lora_alpha": 10**400},
        "layers": lambda: {"layers_to_transform": list(range(100_000))},
        "an adapter of an adapter": lambda: {
            "base_model_name_or_path": "/dev/zero",
            "auto_mapping": {"x": "y"},
        },
        "saved modules": lambda: {"modules_to_save": ["lm_head"] * 10_000},
        "DoRA": lambda: {"use_dora": True, "use_rslora": True, "lora_bias": True},
        "corda": lambda: {
            "corda_config": {},
            "eva_config": {},
            "loftq_config": {"x": 1},
            "init_lora_weights": "eva",
        },
        "tokens": lambda: {"trainable_token_indices": list(range(100_000))},
    }.items():
        yield f"settings: {title}", lambda p, c=changes: adapter(p, c())
