"""Starts of vLLM's server in a file: shell scripts, Dockerfiles, units of systemd, and YAML of compose,
Kubernetes, KServe, Helm and recipes.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from dodona.oracle.errors import ConfigError
from dodona.oracle.files import parse_json
from dodona.oracle.systems.vllm.flags import flag_table
from dodona.oracle.systems.vllm.invocation import (
    Invocation,
    container_invocations,
    image_release,
    invocations,
    is_vllm_image,
)
from dodona.oracle.systems.vllm.shell import MAX_VARIABLES, TooLarge, Work, split_words
from dodona.oracle.upgrade.discovery import Candidate
from dodona.oracle.upgrade.documents import TEMPLATE_VALUE, Node, mark, parse_documents, walk, walk_once

Place = Literal["shell", "dockerfile", "compose", "kubernetes", "kserve", "helm", "recipe", "systemd"]

MAX_SECTION: Final = 2000
"""Most values of one argument of a file for `--config`."""

MAX_STARTS: Final = 1000
"""Most starts in a file."""

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


@dataclass(frozen=True)
class _File:
    """A file that is read, and what may still be done for it."""

    path: str
    text: str
    work: Work


def starts(candidate: Candidate) -> Iterator[Found]:
    """Every start in a file. Raises ConfigError for a file that can't be read as what it is, and TooLarge for
    one that has, or grows to, more than is looked at."""
    file = _File(candidate.path, candidate.text, Work())
    read = {"shell": _shell, "dockerfile": _dockerfile, "systemd": _systemd, "yaml": _yaml}[candidate.kind]
    for number, found in enumerate(read(file), 1):
        if number > MAX_STARTS:
            raise TooLarge(f"has more than {MAX_STARTS} starts of the server")
        yield found


def _shell(file: _File) -> Iterator[Found]:
    for found in invocations(file.text, work=file.work):
        yield Found(file.path, found.line, "shell", "", found)


# --- Dockerfile ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stage:
    """What a stage of a Dockerfile would run."""

    image: str
    environ: Mapping[str, str | None]
    entrypoint: tuple[str, ...] | None = None
    command: tuple[str, ...] = ()
    line: int = 1


def _dockerfile(file: _File) -> Iterator[Found]:
    """What the last stage runs, with what it takes over from the stages that it is built on."""
    stages: dict[str, _Stage] = {}
    arguments: dict[str, str | None] = {}
    environ: dict[str, str | None] = {}
    stage, name = _Stage("", environ), ""
    for line, text in _logical_lines(file.text):
        file.work.take_words()
        word, _, rest = text.partition(" ")
        word, rest = word.upper(), rest.strip()
        if word == "FROM":
            parts = [part for part in rest.split() if not part.startswith("--")]
            base = _expanded(parts[0], arguments, file.work) if parts else ""
            before = stages.get(base, _Stage(base, {}))
            environ = dict(before.environ)
            file.work.take_words(len(environ))
            stage = replace(before, line=line, environ=environ)
            name = parts[2] if len(parts) > 2 else ""
        elif word == "ARG":
            key, equals, value = rest.partition("=")
            if equals:
                arguments[key] = value.strip("\"'")
            _check_variables(arguments)
        elif word == "ENV":
            environ.update(_assignments(rest, ChainMap(environ, arguments), file.work))
            _check_variables(environ)
        elif word == "ENTRYPOINT":
            stage = replace(stage, entrypoint=_exec_form(rest), command=(), line=line)
        elif word == "CMD":
            stage = replace(stage, command=_exec_form(rest), line=line)
        stages[name] = stage
    for found in container_invocations(
        stage.image, stage.entrypoint, stage.command, stage.environ, line=stage.line, work=file.work
    ):
        yield Found(file.path, stage.line, "dockerfile", "", found)


def _exec_form(text: str) -> tuple[str, ...]:
    """The words of CMD or ENTRYPOINT, which is a JSON list or a shell's text."""
    if text.startswith("["):
        try:
            words = parse_json(text, where="")
        except ConfigError:
            words = None
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            return tuple(words)
    return ("sh", "-c", text)


def _check_variables(environ: Mapping[str, str | None]) -> None:
    if len(environ) > MAX_VARIABLES:
        raise TooLarge(f"sets more than {MAX_VARIABLES} variables")


def _expanded(text: str, environ: Mapping[str, str | None], work: Work) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        return work.take(environ.get(name) or match[0])

    return re.sub(r"\$(?:(\w+)|\{(\w+)(?::?-[^}$]*)?\})", value, text)


def _assignments(text: str, environ: Mapping[str, str | None], work: Work) -> dict[str, str]:
    """`ENV A=1 B="two"`, or `ENV A 1`."""
    if "=" not in text.split(" ")[0]:
        name, _, value = text.partition(" ")
        return {name: value.strip()} if name else {}
    try:
        words = split_words(text, work)
    except TooLarge:
        raise
    except ConfigError:
        return {}
    pairs = (word.partition("=") for word in words if "=" in word)
    return {name: _expanded(value, environ, work) for name, _, value in pairs}


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


def _systemd(file: _File) -> Iterator[Found]:
    environ: dict[str, str | None] = {}
    unread: list[str] = []
    commands: list[tuple[int, str]] = []
    for line, text in _logical_lines(file.text):
        key, equals, value = text.partition("=")
        if not equals:
            continue
        if key == "Environment":
            environ.update(_assignments(value, {}, file.work))
            _check_variables(environ)
        elif key == "EnvironmentFile":
            unread.append(f"EnvironmentFile={value.lstrip('-')}: its variables are not known here")
        elif key == "ExecStart":
            # a leading -, @, :, + or ! says how systemd runs it
            commands.append((line, value.lstrip("-@:+!").replace("%", "$")))
    name = file.path.rpartition("/")[2]
    for line, command in commands:
        for found in invocations(command, environ, file.work):
            yield Found(file.path, line, "systemd", name, _with_unread(found, unread))


def _with_unread(found: Invocation, unread: Sequence[str]) -> Invocation:
    return Invocation(found.arguments, found.environ, found.release, found.line, (*unread, *found.unread))


# --- YAML ---------------------------------------------------------------------------------------------------


def _yaml(file: _File) -> Iterator[Found]:
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
        for node in walk_once([document], seen):
            if node.text is not None:
                yield from _text(file, node)
            elif node.entries:
                yield from _container(file, node, seen)


def _text(file: _File, node: Node) -> Iterator[Found]:
    """A text that is a command of its own: a step of a workflow, a recipe's command."""
    if node.text is None or not _SERVES.search(node.text):
        return
    try:
        found = list(invocations(node.text, work=file.work))
    except TooLarge as error:
        raise TooLarge(f"{file.path}:{node.line}: {error}") from None
    except ConfigError:  # prose
        return
    for invocation in found:
        yield Found(
            file.path,
            node.line + invocation.line - (1 if "\n" not in node.text else 0),
            "recipe",
            "",
            invocation,
        )


def _service(file: _File, name: str, service: Node) -> Iterator[Found]:
    image = _scalar(service.get("image"))
    environ = _environment(service.get("environment"), file.work)
    unread = ("env_file: its variables are not known here",) if service.get("env_file") is not None else ()
    entrypoint, command = service.get("entrypoint"), service.get("command")
    words = _command_words(command, file.work)
    for found in container_invocations(
        _composed(image),
        None if entrypoint is None else _command_words(entrypoint, file.work),
        words,
        environ,
        line=(command or service).line,
        unread=unread,
        work=file.work,
    ):
        yield Found(file.path, found.line, "compose", name, found)


def _command_words(node: Node | None, work: Work) -> list[str]:
    if node is None:
        return []
    if node.text is not None:
        try:
            return [_composed(word) for word in split_words(node.text, work)]
        except TooLarge:
            raise
        except ConfigError:
            return []
    work.take_words(len(node.items))
    return [_composed(work.take(item.text or "")) for item in node.items]


def _composed(text: str) -> str:
    """Compose's `${NAME:-default}`: the default where it gives one; `$$` is a dollar sign."""
    text = re.sub(r"\$\{\w+:?-([^}$]*)\}", lambda match: match[1], text)
    return text.replace("$$", "$")


def _environment(node: Node | None, work: Work) -> dict[str, str | None]:
    """`environment` of a service: a mapping, or a list of `NAME=value`."""
    if node is None:
        return {}
    work.take_words(len(node.entries) + len(node.items))
    if node.entries:
        return {name: _composed(work.take(value.text or "")) for name, value in node.entries.items()}
    pairs = ((item.text or "").partition("=") for item in node.items)
    return {name: value for name, equals, value in pairs if equals}


def _container(file: _File, node: Node, seen: set[int]) -> Iterator[Found]:
    """A container of Kubernetes, a model of KServe or of a chart's values, or none of these."""
    entries = node.entries
    if "modelFormat" in entries and "args" in entries:
        yield from _kserve_model(file, node)
    elif "modelURL" in entries:
        yield from _chart_model(file, node)
    elif "image" in entries and ("args" in entries or "command" in entries):
        mark([entries[key] for key in ("image", "args", "command") if key in entries], seen)
        environ, unread = _container_environment(entries.get("env"), file.work)
        if "envFrom" in entries:
            unread = (*unread, "envFrom: its variables are not known here")
        command = _arguments(entries["command"], environ, file.work) if "command" in entries else None
        arguments = _arguments(entries.get("args"), environ, file.work)
        for found in container_invocations(
            _image(entries["image"]),
            command,
            arguments,
            environ,
            line=entries.get("args", entries.get("command", node)).line,
            unread=unread,
            work=file.work,
        ):
            yield Found(file.path, found.line, "kubernetes", _scalar(entries.get("name")), found)


def _arguments(node: Node | None, environ: Mapping[str, str | None], work: Work) -> list[str]:
    """A list of arguments; charts also write one text."""
    if node is None:
        return []
    if node.text is not None:
        return _command_words(node, work)
    work.take_words(len(node.items))
    return [_kubernetes(work.take(item.text or ""), environ, work) for item in node.items]


def _kubernetes(text: str, environ: Mapping[str, str | None], work: Work) -> str:
    """`$(NAME)` replaced by the container's own variable."""
    return re.sub(r"\$\((\w+)\)", lambda match: work.take(environ.get(match[1]) or match[0]), text)


def _container_environment(node: Node | None, work: Work) -> tuple[dict[str, str | None], tuple[str, ...]]:
    environ: dict[str, str | None] = {}
    unread: list[str] = []
    items = node.items if node is not None else []
    work.take_words(len(items))
    for item in items:
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


def _kserve_model(file: _File, node: Node) -> Iterator[Found]:
    """A model of an InferenceService: `args` go to vLLM; `--model_id` and the storage name the model."""
    format_name = _scalar(node.get("modelFormat", "name")).lower()
    image = _scalar(node.get("image"))
    if format_name not in _KSERVE_FORMATS and not is_vllm_image(image):
        return
    environ, unread = _container_environment(node.get("env"), file.work)
    arguments: list[str] = []
    for word in _arguments(node.get("args"), environ, file.work):
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


def _chart_model(file: _File, node: Node) -> Iterator[Found]:
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
    file.work.take_words(len(extra.items) if extra is not None else 0)
    arguments += [item.text or "" for item in extra.items] if extra is not None else []
    environ, unread = _container_environment(node.get("env"), file.work)
    image = f"{_scalar(node.get('repository'))}:{_scalar(node.get('tag'))}"
    invocation = Invocation(tuple(arguments), environ, image_release(image), node.line, unread)
    yield Found(file.path, node.line, "helm", _scalar(node.get("name")), invocation)


def _is_recipe(document: Node) -> bool:
    """Whether a document is what `vllm serve --config` reads: a model, and nothing but vLLM's arguments."""
    names = [key.replace("-", "_") for key in document.entries]
    known = flag_table().names
    return "model" in names and len(names) > 1 and all(name in known for name in names)


def _recipe(file: _File, document: Node) -> Iterator[Found]:
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
            file.work.take_words(len(node.items))
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
            return parse_json(node.text, where="")
        except ConfigError:
            return node.text
    if node.items:
        return [_plain(item) for item in node.items]
    return {key: _plain(value) for key, value in node.entries.items()}


def _scalar(node: Node | None) -> str:
    return (node.text or "") if node is not None else ""
