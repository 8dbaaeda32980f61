"""Hostile files of the corpus that are small, and grow or branch when they are read: deployments with
variables, anchors and lists, arguments in YAML, tokenizers, chat templates, grammars, rule books, logs.

Each entry is one file, or one request, beside things that work.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.hostile_files import QWEN3, command
from tests.support.hostile_parts import Change, put, upgrade

Text = Callable[[], str]

LONG = 400_000
"""Characters of a value that is repeated."""

DEPLOYMENTS: dict[str, tuple[str, Text]] = {
    "a long value 100,000 times in a word": (
        "serve.sh",
        lambda: f"A={'x' * LONG}\nvllm serve {'$A' * 100_000}\n",
    ),
    "a long value 1,900 times in a command": (
        "serve.sh",
        lambda: f"A={'x' * LONG}\nvllm serve {'$A ' * 1_900}\n",
    ),
    "a long value in 20,000 commands": (
        "serve.sh",
        lambda: f"A={'x' * LONG}\n" + "vllm serve m --x $A\n" * 20_000,
    ),
    "a value that doubles": ("serve.sh", lambda: "A=xx\n" + "A=$A$A\n" * 60 + "vllm serve $A\n"),
    "400,000 commands of a letter": ("serve.sh", lambda: "a;" * LONG + "\nvllm serve m\n"),
    "900,000 empty lines": ("serve.sh", lambda: "\n" * 900_000 + "vllm serve m\n"),
    "200,000 comments": ("serve.sh", lambda: "#\n" * 200_000 + "vllm serve m\n"),
    "60,000 starts": ("serve.sh", lambda: "".join(f"vllm serve m{i}\n" for i in range(60_000))),
    "a shell of 5,000 starts 1,000 times": (
        "serve.sh",
        lambda: f"A='{'vllm serve m;' * 5_000}'\n" + 'sh -c "$A"\n' * 1_000,
    ),
    "shells in shells": ("serve.sh", lambda: "sh -c 'sh -c \"bash -c vllm\"'\n" * 20_000 + "vllm serve m\n"),
    "10,000 launchers": ("serve.sh", lambda: "srun a b c d e f g h vllm serve m\n" * 10_000),
    "a launcher with 1,990 words": (
        "serve.sh",
        lambda: ("srun " + "a " * 1_990 + "\n") * 50 + "vllm serve m\n",
    ),
    "2,000 exports and 20,000 commands": (
        "serve.sh",
        lambda: "".join(f"export A{i}=1\n" for i in range(1_990)) + "vllm serve m\n" * 20_000,
    ),
    "100,000 variables": (
        "serve.sh",
        lambda: "".join(f"A{i}=1\n" for i in range(100_000)) + "vllm serve m\n",
    ),
    "300,000 open substitutions": ("serve.sh", lambda: "vllm serve " + "$(" * 300_000 + "\n"),
    "open substitutions in words": ("serve.sh", lambda: "vllm serve m\n" + '"${A:-" ' * 100_000 + "\n"),
    "100,000 here-documents": ("serve.sh", lambda: "vllm serve m\n" + "cat <<A\n" * 100_000),
    "here-documents on a line": ("serve.sh", lambda: "vllm serve m " + "<<A " * 100_000 + "\nA\n" * 100_000),
    "800,000 quotes": ("serve.sh", lambda: "vllm serve " + "'" * 800_000 + "\n"),
    "continued lines": ("serve.sh", lambda: "vllm serve m \\\n" + "\\\n" * 300_000),
    "assignments before a command": ("serve.sh", lambda: "A=1 " * 1_990 + "vllm serve m\n"),
    "a Dockerfile's value that doubles": (
        "Dockerfile",
        lambda: "FROM vllm/vllm-openai\nENV A=xx\n" + "ENV A=$A$A\n" * 60 + 'CMD ["m"]\n',
    ),
    "a Dockerfile's long value": (
        "Dockerfile",
        lambda: f"FROM vllm/vllm-openai\nENV A={'x' * LONG}\nENV B={'$A' * 100_000}\nCMD m\n",
    ),
    "CMD of 200,000 words": (
        "Dockerfile",
        lambda: "FROM vllm/vllm-openai\nCMD " + json.dumps(["a"] * 200_000) + "\n",
    ),
    "ENV of 100,000 words": (
        "Dockerfile",
        lambda: "FROM vllm/vllm-openai\nENV " + "A=1 " * 100_000 + "\nCMD m\n",
    ),
    "100,000 ENV": (
        "Dockerfile",
        lambda: "FROM vllm/vllm-openai\n" + "".join(f"ENV A{i}=1\n" for i in range(70_000)) + "CMD m\n",
    ),
    "one ENV 100,000 times": (
        "Dockerfile",
        lambda: (
            "FROM vllm/vllm-openai\n"
            + "".join(f"ENV A{i}=1\n" for i in range(1_900))
            + "ENV A=1\n" * 100_000
            + "CMD m\n"
        ),
    ),
    "70,000 ARG": (
        "Dockerfile",
        lambda: "".join(f"ARG A{i}=1\n" for i in range(70_000)) + "FROM vllm/vllm-openai\nCMD m\n",
    ),
    "100,000 stages": ("Dockerfile", lambda: "FROM vllm/vllm-openai\n" * 40_000 + "CMD m\n"),
    "stages with 1,900 variables": (
        "Dockerfile",
        lambda: (
            "FROM vllm/vllm-openai AS a\n"
            + "".join(f"ENV A{i}=1\n" for i in range(1_900))
            + "FROM a AS a\n" * 60_000
            + "CMD m\n"
        ),
    ),
    "CMD of 500,000 brackets": ("Dockerfile", lambda: "FROM vllm/vllm-openai\nCMD " + "[" * 500_000 + "\n"),
    "a word of a megabyte": (
        "compose.yaml",
        lambda: f"services: {{a: {{image: vllm/x, command: {'x' * 10**6}}}}}",
    ),
    "a recipe of brackets": ("recipe.yaml", lambda: "model: m\nhf_overrides: {a: '" + "[" * 500_000 + "'}\n"),
    "a Dockerfile of continued lines": (
        "Dockerfile",
        lambda: "FROM vllm\nCMD vllm \\\n" + "a \\\n" * 200_000,
    ),
    "70,000 Environment": (
        "vllm.service",
        lambda: "".join(f"Environment=A{i}=1\n" for i in range(50_000)) + "ExecStart=vllm serve m\n",
    ),
    "50,000 ExecStart": (
        "vllm.service",
        lambda: "".join(f"Environment=A{i}=1\n" for i in range(1_900)) + "ExecStart=a\n" * 50_000,
    ),
    "an anchored environment of 10,000 in 4,000 containers": (
        "pods.yaml",
        lambda: (
            "e: &e\n"
            + "".join(f"- {{name: A{i}, value: x}}\n" for i in range(10_000))
            + "c:\n"
            + "- {image: vllm/vllm-openai, args: [m], env: *e}\n" * 4_000
        ),
    ),
    "an anchored text in 4,000 containers": (
        "pods.yaml",
        lambda: f"t: &t {'a ' * 200_000}\nc:\n" + "- {image: vllm/vllm-openai, args: *t}\n" * 4_000,
    ),
    "anchored arguments in 4,000 containers": (
        "pods.yaml",
        lambda: "t: &t [" + "a, " * 1_900 + "a]\nc:\n" + "- {image: vllm/vllm-openai, args: *t}\n" * 4_000,
    ),
    "anchored services": (
        "compose.yaml",
        lambda: (
            "x: &e {"
            + ", ".join(f"A{i}: x" for i in range(5_000))
            + "}\nservices:\n"
            + "".join(
                f"  s{i}: {{image: vllm/vllm-openai, environment: *e, command: m}}\n" for i in range(5_000)
            )
        ),
    ),
    "arguments that grow": (
        "pods.yaml",
        lambda: f"image: vllm/x\nenv: [{{name: A, value: {'x' * LONG}}}]\nargs: ['{'$(A)' * 100_000}']\n",
    ),
    "20,000 arguments": ("pods.yaml", lambda: "image: vllm\ncommand: [" + "a, " * 20_000 + "a]\n"),
    "20,000 containers": ("pods.yaml", lambda: "- {image: vllm/vllm-openai, args: [m]}\n" * 20_000),
    "anchored arguments of charts": (
        "values.yaml",
        lambda: (
            "t: &t ["
            + "a, " * 10_000
            + "a]\nm:\n"
            + "- {modelURL: vllm, vllmConfig: {extraArgs: *t}}\n" * 4_000
        ),
    ),
    "anchors that double": (
        "pods.yaml",
        lambda: (
            "a0: &a0 [vllm serve m]\n"
            + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
        ),
    ),
    "merges that double": (
        "pods.yaml",
        lambda: (
            "a0: &a0 {k: vllm}\n"
            + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}], k{i}: 1}}\n" for i in range(1, 500))
        ),
    ),
    "open templates": ("values.yaml", lambda: "a: vllm serve " + "{{ " * 300_000 + "\n"),
    "a deployment of braces": ("values.yaml", lambda: "vllm: " + "{" * 400_000),
}
"""Deployments by what is odd about them: a file's name, and its text."""


ARGUMENTS: dict[str, Text] = {
    "a text of a megabyte": lambda: "dtype: " + "x" * 1_000_000,
    "text of a million and more": lambda: "dtype: " + "x" * 1_100_000,
    "30,000 keys": lambda: "".join(f"k{i}: 1\n" for i in range(30_000)),
    "one key 20,000 times": lambda: "dtype: auto\n" * 19_000,
    "anchors": lambda: "a: &a [1]\nb: *a\n",
    "anchors that double": lambda: (
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    ),
    "a tag": lambda: "dtype: !!python/object/apply:os.system [id]\n",
    "a date": lambda: "dtype: 2024-01-01\n",
    "a date that is none": lambda: "dtype: 2024-99-99\n",
    "a set": lambda: "dtype: !!set {a, b}\n",
    "binary": lambda: "dtype: !!binary x\n",
    "a key of a list": lambda: "? [a, b]\n: 1\n",
    "a key of an object": lambda: "? {a: b}\n: 1\n",
    "a null key": lambda: "~: 1\n",
    "a merge of itself": lambda: "a: &a\n  <<: *a\n",
    "an infinite number": lambda: "max_model_len: .inf\n",
    "no number": lambda: "gpu_memory_utilization: .nan\n",
    "a number of 5,000 digits": lambda: "max_model_len: " + "9" * 5_000 + "\n",
    "a number of 900,000 digits": lambda: "max_model_len: " + "9" * 900_000 + "\n",
    "a number in base 60": lambda: "max_model_len: 1:" + ":".join(["59"] * 100_000) + "\n",
    "a hexadecimal number": lambda: "max_model_len: 0x" + "f" * 500_000 + "\n",
    "two documents": lambda: "a: 1\n---\na: 2\n",
    "50,000 documents": lambda: "---\n" * 50_000,
    "escapes": lambda: '"\\e[2J": "\\u202e"\n',
    "escapes in a value": lambda: 'dtype: "\\e[2J\\u202e\\ud800"\n',
    "an open quote": lambda: 'dtype: "' + "\\x00" * 100_000,
    "deep lists": lambda: "a: " + "[" * 400_000,
    "deep keys": lambda: "? " * 100_000,
    "deep dashes": lambda: "- " * 100_000,
    "a long indentation": lambda: " " * 900_000 + "a: 1\n",
    "hashes": lambda: "#" * 900_000 + "\n",
    "percent": lambda: "%YAML 9.9\n---\na: 1\n",
    "a tab": lambda: "a:\n\t- 1\n",
    "override of a section": lambda: "parallel_config: 5\n",
    "lists of lists": lambda: "served_model_name: [[[[1]]]]\n",
}
"""YAML of `--config` by what is odd about it."""


def deployments() -> Iterator[Change]:
    """Deployments that grow."""
    for name, (file, text) in DEPLOYMENTS.items():
        yield f"{file}: {name}", lambda p, f=file, t=text: upgrade(p, f, t().encode())


def arguments() -> Iterator[Change]:
    """`--config`."""
    for name, text in ARGUMENTS.items():
        yield name, lambda p, t=text: configured(p, t())


def configured(path: Path, text: str) -> None:
    """A choice by a YAML of arguments."""
    put(path / "arguments.yaml", text.encode("utf-8", "surrogatepass"))
    command(["select", str(QWEN3), "--config", str(path / "arguments.yaml")])
