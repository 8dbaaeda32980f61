"""vLLM's engine flags, made from the table of flat arguments, and vLLM's YAML configuration files."""

from __future__ import annotations

import ast
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer

from dodona.cli.output import say
from dodona.oracle.config import sections as config_module
from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.config.flat import FLAT_ARGUMENTS, SECTION_ARGUMENTS, SWITCHES, flat_names
from dodona.oracle.config.sections import SECTIONS
from dodona.oracle.errors import ConfigError

_SHORT = {
    "tensor_parallel_size": "-tp",
    "pipeline_parallel_size": "-pp",
    "data_parallel_size": "-dp",
    "prefill_context_parallel_size": "-pcp",
    "decode_context_parallel_size": "-dcp",
    "quantization": "-q",
    "compilation_config": "-cc",
}
_SECTION_HELP = {
    "speculative_config": "Speculative decoding, as a JSON object.",
    "compilation_config": "Compilation, as a JSON object or a mode.",
    "kv_transfer_config": "KV transfer, as a JSON object.",
    "pooler_config": "What becomes of a pooling model's output, as a JSON object.",
    "enable_lora": "Serve LoRA adapters.",
}
# fmt: off
SERVER_ARGUMENTS = frozenset({
    "host", "port", "uds", "api_key", "served_model_name", "root_path", "middleware",
    "uvicorn_log_level", "api_server_count", "ssl_keyfile", "ssl_certfile", "ssl_ca_certs",
    "ssl_cert_reqs", "allow_credentials", "allowed_origins", "allowed_methods", "allowed_headers",
    "chat_template", "chat_template_content_format", "response_role", "enable_auto_tool_choice",
    "tool_call_parser", "tool_parser_plugin", "enable_request_id_headers",
    "return_tokens_as_token_ids", "disable_fastapi_docs", "enable_log_requests",
    "disable_log_requests", "disable_log_stats", "max_log_len",
})
# fmt: on
"""What vLLM's configuration files say of its HTTP server: nothing here reads it."""


def with_engine_flags(
    *, without: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command vLLM's engine flags, except those in `without`.

    The command takes them as one argument `engine`: a mapping of those that were given, by flat name.
    """
    names = [name for name in flat_names() if name not in ("model", *without)]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def wrapper(**arguments: Any) -> None:
            engine = {name: value for name in names if (value := arguments.pop(name)) is not None}
            command(engine=engine, **arguments)

        own = inspect.signature(command, eval_str=True)
        parameters = [p for p in own.parameters.values() if p.name != "engine"]
        parameters += [_parameter(name) for name in names]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        # typer reads a command's options from its signature.
        flagged: Any = wrapper
        flagged.__signature__ = inspect.Signature(parameters)
        flagged.__annotations__ = {p.name: p.annotation for p in parameters}
        flagged.__name__, flagged.__doc__ = command.__name__, command.__doc__
        return wrapper

    return decorate


def engine_config(model: str | None, engine: Mapping[str, Any], file: Path | None) -> EngineConfig:
    """The configuration of a command: the file's keys, the flags over them, and the model over either.

    Raises ConfigError.
    """
    arguments = {**(read_config_file(file) if file else {}), **engine}
    if model is not None:
        arguments["model"] = model
    if "model" not in arguments:
        raise ConfigError("no model: give MODEL_DIR, or a --config file with a `model` key")
    return EngineConfig.from_flat(**arguments)


def read_config_file(path: Path) -> dict[str, Any]:
    """vLLM's YAML form: flat argument names, with dashes or underscores. Raises ConfigError that names the
    file.

    Arguments of vLLM's HTTP server are left out, with a note on stderr.
    """
    from dodona.oracle.config.yaml_file import read_arguments
    from dodona.oracle.errors import did_you_mean

    arguments = read_arguments(path)
    for_server = [name for name in arguments if name in SERVER_ARGUMENTS]
    if for_server:
        names = ", ".join(for_server)
        say(f"dodona: note: {path}: left out, since there is no HTTP server here: {names}", err=True)
    arguments = {name: value for name, value in arguments.items() if name not in SERVER_ARGUMENTS}
    for name in arguments:
        if name not in flat_names():
            hint = did_you_mean(name, flat_names())
            raise ConfigError(f"{path}: {name}: no such argument" + (f"; {hint}" if hint else ""))
    return arguments


def _parameter(name: str) -> inspect.Parameter:
    flag = "--" + name.replace("_", "-")
    kind, text, panel = _describe(name)
    names = [f"{flag}/--no-{flag[2:]}"] if kind is bool else [flag]
    if name in _SHORT:
        names.append(_SHORT[name])
    option = typer.Option(None, *names, help=text, rich_help_panel=panel, show_default=False)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind | None)


def _describe(name: str) -> tuple[type, str, str]:
    """The type of a flag's value, its help and the panel of --help it is in."""
    if name in SECTION_ARGUMENTS:
        return str, _SECTION_HELP[name], "Features"
    if name in SWITCHES:
        return bool, _SECTION_HELP[name], "Features"
    section, field = FLAT_ARGUMENTS[name]
    cls = SECTIONS[section]
    hints = typing.get_type_hints(cls)
    kind = _plain_type(hints[field])
    text = _field_docs().get((cls.__name__, field), "")
    choices = _choices(hints[field])
    if choices:
        text += f" One of {', '.join(choices)}."
    return kind, text, section.replace("_config", "").capitalize()


def _plain_type(annotation: Any) -> type:
    """bool, int, float or str of an annotation such as ``int | None`` or ``Literal["a"]``."""
    for part in typing.get_args(annotation) or (annotation,):
        if part in (bool, int, float, str):
            return typing.cast(type, part)
        if isinstance(part, str):
            return str
        if part is not type(None) and typing.get_args(part):
            return _plain_type(part)
    return str


def _choices(annotation: Any) -> list[str]:
    """The texts of a Literal within an annotation."""
    found: list[str] = []
    for part in typing.get_args(annotation):
        found += [part] if isinstance(part, str) else _choices(part)
    return found


@functools.cache
def _field_docs() -> dict[tuple[str, str], str]:
    """(class, field) → the text below the field in config.py, which Python does not keep."""
    docs = {}
    for cls in ast.parse(inspect.getsource(config_module)).body:
        if not isinstance(cls, ast.ClassDef):
            continue
        for statement, after in zip(cls.body, cls.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                docs[cls.name, statement.target.id] = inspect.cleandoc(str(after.value.value))
    return docs
