"""Starts of vLLM's server in a file: shell scripts, Dockerfiles, units of systemd, and YAML of compose,
Kubernetes, KServe, Helm and recipes.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from dodona.oracle.errors import ConfigError
from dodona.oracle.systems.vllm.flags import flag_table
from dodona.oracle.systems.vllm.invocation import (
    Invocation,
    container_invocations,
    image_release,
    invocations,
    is_vllm_image,
)
from dodona.oracle.upgrade.discovery import Candidate
from dodona.oracle.upgrade.documents import TEMPLATE_VALUE, Node, mark, parse_documents, walk

Place = Literal["shell", "dockerfile", "compose", "kubernetes", "kserve", "helm", "recipe", "systemd"]

MAX_SECTION: Final = 2000
"""Most values of one argument of a file for `--config`."""

_SERVES: Final = re.compile(r"\bvllm\s+serve\b|vllm\.entrypoints|\bvllm-openai\b")
_KSERVE_FLAGS: Final = ("--model_name", "--model_dir", "--backend", "--http_port", "--predictor_host")
_KSERVE_FORMATS: Final = ("vllm", "huggingface")


@dataclass(frozen=True)
class Found:
    """One start of vLLM's server, and where it is written."""

    path: str
    line: int
    place: Place
    name: str
    """The service, container or unit; "" where it has no name."""
    invocation: Invocation


def starts(file: Candidate) -> Iterator[Found]:
    """Every start in a file. Raises ConfigError for a file that can't be read as what it is."""
    if file.kind == "shell":
        for found in invocations(file.text):
            yield Found(file.path, found.line, "shell", "", found)
    elif file.kind == "dockerfile":
        yield from _dockerfile(file)
    elif file.kind == "systemd":
        yield from _systemd(file)
    else:
        yield from _yaml(file)


# --- Dockerfile ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stage:
    """What a stage of a Dockerfile would run."""

    image: str
    environ: Mapping[str, str | None]
    entrypoint: tuple[str, ...] | None = None
    command: tuple[str, ...] = ()
    line: int = 1


def _dockerfile(file: Candidate) -> Iterator[Found]:
    """What the last stage runs, with what it takes over from the stages that it is built on."""
    stages: dict[str, _Stage] = {}
    arguments: dict[str, str | None] = {}
    stage, name = _Stage("", {}), ""
    for line, text in _logical_lines(file.text):
        word, _, rest = text.partition(" ")
        word, rest = word.upper(), rest.strip()
        if word == "FROM":
            parts = [part for part in rest.split() if not part.startswith("--")]
            base = _expanded(parts[0], arguments) if parts else ""
            stage = replace(stages.get(base, _Stage(base, {})), line=line)
            name = parts[2] if len(parts) > 2 else ""
        elif word == "ARG":
            key, equals, value = rest.partition("=")
            if equals:
                arguments[key] = value.strip("\"'")
        elif word == "ENV":
            values = _assignments(rest, {**arguments, **stage.environ})
            stage = replace(stage, environ={**stage.environ, **values})
        elif word == "ENTRYPOINT":
            stage = replace(stage, entrypoint=_exec_form(rest), command=(), line=line)
        elif word == "CMD":
            stage = replace(stage, command=_exec_form(rest), line=line)
        stages[name] = stage
    for found in container_invocations(
        stage.image, stage.entrypoint, stage.command, stage.environ, line=stage.line
    ):
        yield Found(file.path, stage.line, "dockerfile", "", found)


def _exec_form(text: str) -> tuple[str, ...]:
    """The words of CMD or ENTRYPOINT, which is a JSON list or a shell's text."""
    if text.startswith("["):
        try:
            words = json.loads(text)
        except ValueError:
            words = None
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            return tuple(words)
    return ("sh", "-c", text)


def _expanded(text: str, environ: Mapping[str, str | None]) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        return environ.get(name) or match[0]

    return re.sub(r"\$(?:(\w+)|\{(\w+)(?::?-[^}$]*)?\})", value, text)


def _assignments(text: str, environ: Mapping[str, str | None]) -> dict[str, str]:
    """`ENV A=1 B="two"`, or `ENV A 1`."""
    if "=" not in text.split(" ")[0]:
        name, _, value = text.partition(" ")
        return {name: value.strip()} if name else {}
    try:
        words = shlex.split(text)
    except ValueError:
        return {}
    pairs = (word.partition("=") for word in words if "=" in word)
    return {name: _expanded(value, environ) for name, _, value in pairs}


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their continuations, and the number of the first; comments are left out."""
    parts: list[str] = []
    first = 0
    for number, line in enumerate(text.split("\n"), 1):
        bare = line.strip()
        if not bare or bare.startswith(("#", ";")):
            continue
        if not parts:
            first = number
        if bare.endswith("\\"):
            parts.append(bare[:-1].rstrip())
            continue
        yield first, " ".join([*parts, bare])
        parts = []
    if parts:
        yield first, " ".join(parts)


# --- systemd ------------------------------------------------------------------------------------------------


def _systemd(file: Candidate) -> Iterator[Found]:
    environ: dict[str, str | None] = {}
    unread: list[str] = []
    commands: list[tuple[int, str]] = []
    for line, text in _logical_lines(file.text):
        key, equals, value = text.partition("=")
        if not equals:
            continue
        if key == "Environment":
            environ.update(_assignments(value, {}))
        elif key == "EnvironmentFile":
            unread.append(f"EnvironmentFile={value.lstrip('-')}: its variables are not known here")
        elif key == "ExecStart":
            # a leading -, @, :, + or ! says how systemd runs it
            commands.append((line, value.lstrip("-@:+!").replace("%", "$")))
    name = file.path.rpartition("/")[2]
    for line, command in commands:
        for found in invocations(command, environ):
            yield Found(file.path, line, "systemd", name, _with_unread(found, unread))


def _with_unread(found: Invocation, unread: Sequence[str]) -> Invocation:
    return Invocation(found.arguments, found.environ, found.release, found.line, (*unread, *found.unread))


# --- YAML ---------------------------------------------------------------------------------------------------


def _yaml(file: Candidate) -> Iterator[Found]:
    seen: set[int] = set()
    for document in parse_documents(file.text, where=file.path):
        if _is_recipe(document):
            yield from _recipe(file, document)
            continue
        services = document.get("services")
        if services is not None and document.get("kind") is None and services.entries:
            for name, service in services.entries.items():
                mark([service], seen)
                yield from _service(file, name, service)
        for node in walk([document]):
            if id(node) in seen:
                continue
            seen.add(id(node))
            if node.text is not None:
                yield from _text(file, node)
            elif node.entries:
                yield from _container(file, node, seen)


def _text(file: Candidate, node: Node) -> Iterator[Found]:
    """A text that is a command of its own: a step of a workflow, a recipe's command."""
    if node.text is None or not _SERVES.search(node.text):
        return
    try:
        found = list(invocations(node.text))
    except ConfigError:
        return
    for invocation in found:
        yield Found(
            file.path,
            node.line + invocation.line - (1 if "\n" not in node.text else 0),
            "recipe",
            "",
            invocation,
        )


def _service(file: Candidate, name: str, service: Node) -> Iterator[Found]:
    image = _scalar(service.get("image"))
    environ = _environment(service.get("environment"))
    unread = ("env_file: its variables are not known here",) if service.get("env_file") is not None else ()
    entrypoint, command = service.get("entrypoint"), service.get("command")
    words = _command_words(command, environ)
    for found in container_invocations(
        _composed(image, environ),
        None if entrypoint is None else _command_words(entrypoint, environ),
        words,
        environ,
        line=(command or service).line,
        unread=unread,
    ):
        yield Found(file.path, found.line, "compose", name, found)


def _command_words(node: Node | None, environ: Mapping[str, str | None]) -> list[str]:
    if node is None:
        return []
    if node.text is not None:
        try:
            return [_composed(word, environ) for word in shlex.split(node.text, comments=False)]
        except ValueError:
            return []
    return [_composed(item.text or "", environ) for item in node.items]


def _composed(text: str, environ: Mapping[str, str | None]) -> str:
    """Compose's `${NAME:-default}`: the default where it gives one; `$$` is a dollar sign."""
    text = re.sub(r"\$\{\w+:?-([^}$]*)\}", lambda match: match[1], text)
    return text.replace("$$", "$")


def _environment(node: Node | None) -> dict[str, str | None]:
    """`environment` of a service: a mapping, or a list of `NAME=value`."""
    if node is None:
        return {}
    if node.entries:
        return {name: _composed(value.text or "", {}) for name, value in node.entries.items()}
    pairs = ((item.text or "").partition("=") for item in node.items)
    return {name: value for name, equals, value in pairs if equals}


def _container(file: Candidate, node: Node, seen: set[int]) -> Iterator[Found]:
    """A container of Kubernetes, a model of KServe or of a chart's values, or none of these."""
    entries = node.entries
    if "modelFormat" in entries and "args" in entries:
        yield from _kserve_model(file, node)
    elif "modelURL" in entries:
        yield from _chart_model(file, node)
    elif "image" in entries and ("args" in entries or "command" in entries):
        mark([entries[key] for key in ("args", "command") if key in entries], seen)
        environ, unread = _container_environment(entries.get("env"))
        if "envFrom" in entries:
            unread = (*unread, "envFrom: its variables are not known here")
        command = _arguments(entries["command"], environ) if "command" in entries else None
        arguments = _arguments(entries.get("args"), environ)
        for found in container_invocations(
            _image(entries["image"]),
            command,
            arguments,
            environ,
            line=entries.get("args", entries.get("command", node)).line,
            unread=unread,
        ):
            yield Found(file.path, found.line, "kubernetes", _scalar(entries.get("name")), found)


def _arguments(node: Node | None, environ: Mapping[str, str | None]) -> list[str]:
    """A list of arguments; charts also write one text."""
    if node is None:
        return []
    if node.text is not None:
        return _command_words(node, environ)
    return [_kubernetes(item.text or "", environ) for item in node.items]


def _kubernetes(text: str, environ: Mapping[str, str | None]) -> str:
    """`$(NAME)` replaced by the container's own variable."""
    return re.sub(r"\$\((\w+)\)", lambda match: environ.get(match[1]) or match[0], text)


def _container_environment(node: Node | None) -> tuple[dict[str, str | None], tuple[str, ...]]:
    environ: dict[str, str | None] = {}
    unread: list[str] = []
    for item in node.items if node is not None else ():
        name, value = _scalar(item.get("name")), item.get("value")
        if value is not None and value.text is not None:
            environ[name] = value.text
        elif name.startswith("VLLM_"):
            unread.append(f"{name}: its value comes from elsewhere and is not known here")
    return environ, tuple(unread)


def _image(node: Node) -> str:
    """`image`, as text or as a chart's `{repository, tag}`."""
    if node.text is not None:
        return node.text
    repository, tag = _scalar(node.get("repository")), _scalar(node.get("tag"))
    return f"{repository}:{tag}" if tag else repository


def _kserve_model(file: Candidate, node: Node) -> Iterator[Found]:
    """A model of an InferenceService: `args` go to vLLM; `--model_id` and the storage name the model."""
    format_name = _scalar(node.get("modelFormat", "name")).lower()
    image = _scalar(node.get("image"))
    if format_name not in _KSERVE_FORMATS and not is_vllm_image(image):
        return
    environ, unread = _container_environment(node.get("env"))
    arguments: list[str] = []
    for word in _arguments(node.get("args"), environ):
        option, equals, value = word.partition("=")
        if option == "--model_id":
            arguments += ["--model", value] if equals else ["--model"]
        elif option not in _KSERVE_FLAGS or not equals:
            arguments.append(word)
    storage = _scalar(node.get("storageUri"))
    if not any(word.partition("=")[0] == "--model" for word in arguments):
        name = storage.removeprefix("hf://") if storage.startswith("hf://") else storage or TEMPLATE_VALUE
        arguments = ["--model", name, *arguments]
    args = node.get("args")
    line = node.line if args is None else args.line
    invocation = Invocation(tuple(arguments), environ, image_release(image), line, unread)
    yield Found(file.path, line, "kserve", _scalar(node.get("name")), invocation)


_CHART_FLAGS: Final = {
    "tensorParallelSize": "--tensor-parallel-size",
    "pipelineParallelSize": "--pipeline-parallel-size",
    "dtype": "--dtype",
    "maxModelLen": "--max-model-len",
}
_CHART_SWITCHES: Final = {
    "enableChunkedPrefill": "enable-chunked-prefill",
    "enablePrefixCaching": "enable-prefix-caching",
}


def _chart_model(file: Candidate, node: Node) -> Iterator[Found]:
    """A model of the values of vLLM's production-stack chart."""
    model = _scalar(node.get("modelURL"))
    if not model:
        return
    arguments = ["--model", model]
    config = node.get("vllmConfig")
    for key, value in config.entries.items() if config is not None else ():
        if key in _CHART_FLAGS and value.text:
            arguments += [_CHART_FLAGS[key], value.text]
        elif key in _CHART_SWITCHES and value.text:
            arguments.append(("--" if value.text.lower() == "true" else "--no-") + _CHART_SWITCHES[key])
    extra = config.get("extraArgs") if config is not None else None
    arguments += [item.text or "" for item in extra.items] if extra is not None else []
    environ, unread = _container_environment(node.get("env"))
    image = f"{_scalar(node.get('repository'))}:{_scalar(node.get('tag'))}"
    invocation = Invocation(tuple(arguments), environ, image_release(image), node.line, unread)
    yield Found(file.path, node.line, "helm", _scalar(node.get("name")), invocation)


def _is_recipe(document: Node) -> bool:
    """Whether a document is what `vllm serve --config` reads: a model, and nothing but vLLM's arguments."""
    names = [key.replace("-", "_") for key in document.entries]
    known = flag_table().names
    return "model" in names and len(names) > 1 and all(name in known for name in names)


def _recipe(file: Candidate, document: Node) -> Iterator[Found]:
    words: list[str] = []
    for key, node in document.entries.items():
        option = "--" + key.replace("_", "-")
        flag = flag_table().names[key.replace("-", "_")]
        if flag.values == "switch":
            on = (node.text or "true").lower() in ("true", "yes", "on", "1", "")
            words.append(option if on else f"--no-{option[2:]}")
        elif node.text is not None:
            words += [option, node.text]
        elif node.items:
            words += [option, *(item.text or "" for item in node.items)]
        else:
            steps = sum(1 for _ in itertools.islice(walk([node]), MAX_SECTION + 1))
            if steps > MAX_SECTION:
                raise ConfigError(f"{file.path}:{node.line}: {key} has more than {MAX_SECTION} values")
            words += [option, json.dumps(_plain(node))]
    yield Found(file.path, document.line, "recipe", "", Invocation(tuple(words), {}, None, document.line))


def _plain(node: Node) -> object:
    """A node of at most `MAX_SECTION` values as JSON's values."""
    if node.text is not None:
        try:
            return json.loads(node.text)
        except ValueError:
            return node.text
    if node.items:
        return [_plain(item) for item in node.items]
    return {key: _plain(value) for key, value in node.entries.items()}


def _scalar(node: Node | None) -> str:
    return (node.text or "") if node is not None else ""
