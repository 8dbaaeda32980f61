"""What an installed release of vLLM decides for given command lines, recorded without a GPU.

    python tools/record_vllm/record.py CASES OUTPUT        # JSON lines in, JSON lines out
    python tools/record_vllm/record.py --flags OUTPUT          # the flags of `vllm serve`
    python tools/record_vllm/record.py --architectures OUTPUT  # the registry of model classes

Runs in an environment that `environment.py` makes. A case is an object with `id`, `argv` (the words after
`vllm serve`) and `env`. It runs in a fork of a process that imported vLLM once, through vLLM's own parser,
its engine arguments and its engine configuration. The answer has `use_v2`, the unsupported features of each
runner, `facts`, or what was raised: `raised.type`, `.message` (first line), `.where` (innermost place in
vLLM), `.stage` (parser, validate, arguments, config). README.md beside this file describes the fields.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import gc
import importlib
import inspect
import io
import json
import logging
import math
import os
import re
import signal
import sys
import textwrap
import time
import traceback
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

sys.path.insert(0, str(Path(__file__).parent))
import machine

TIMEOUT = 120
"""Seconds for one case."""

TOGETHER = 25
"""Cases that one fork answers, one after another."""

FACTS = tuple((Path(__file__).parent / "facts.txt").read_text().split())
"""Dotted names below vLLM's configuration."""


def main() -> None:
    """Read the arguments and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flags", action="store_true", help="record the flags of the parser, no cases")
    parser.add_argument("--architectures", action="store_true", help="record the registry of model classes")
    parser.add_argument("--no-triton", action="store_true", help="Triton finds no driver")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after this time; goes on later")
    parser.add_argument("cases", nargs="?")
    parser.add_argument("output")
    args = parser.parse_args()
    os.environ.update(
        HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="INFO", DO_NOT_TRACK="1"
    )
    machine.install(triton=not args.no_triton)
    import vllm.entrypoints.cli.serve  # noqa: F401  (imported once, before the forks)

    machine.after_import()
    if args.flags:
        Path(args.output).write_text(json.dumps(flags(), indent=0, sort_keys=True) + "\n")
        return
    if args.architectures:
        Path(args.output).write_text(json.dumps(architectures(), indent=0, sort_keys=True) + "\n")
        return
    record(Path(args.cases), Path(args.output), args.seconds)


def record(planned: Path, target: Path, seconds: float) -> None:
    """Append the answer of each case that target lacks, until the time is over."""
    end = time.monotonic() + seconds
    done = set()
    if target.exists():
        done = {json.loads(line)["id"] for line in target.read_text().splitlines()}
    cases = [
        case for line in planned.read_text().splitlines() if (case := json.loads(line))["id"] not in done
    ]
    if not cases:
        return
    parser = _serve_parser()
    _prepare(cases)
    with target.open("a") as output:
        while cases and time.monotonic() < end:
            for answer in _in_fork(cases[:TOGETHER], parser):
                _import(answer.pop("imported", ()))
                output.write(json.dumps({"id": cases.pop(0)["id"], **answer}, sort_keys=True) + "\n")
                output.flush()


def flags() -> list[dict[str, Any]]:
    """The parser's flags: names, the field each sets, its number of values, choices."""
    return [
        {
            "flags": action.option_strings,
            "dest": action.dest,
            "action": type(action).__name__,
            "nargs": action.nargs,
            "const": action.const if isinstance(action.const, (str, int, bool)) else None,
            "choices": None if action.choices is None else [str(c) for c in action.choices],
            "type": getattr(action.type, "__name__", None),
        }
        for action in _serve_parser()[1]._actions
        if action.option_strings and action.dest != "help"
    ]


def architectures() -> dict[str, Any]:
    """What vLLM's registry says of each model class, and which ones it had or has elsewhere."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
    from vllm.config import speculative
    from vllm.config import vllm as vllm_config
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.model_executor.models import registry
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    found: dict[str, Any] = {}
    for name, model in registry.ModelRegistry.models.items():
        try:
            found[name] = vars(registry._ModelInfo.from_model_cls(model.load_model_cls()))
        except Exception as error:
            found[name] = {"raised": f"{type(error).__name__}: {error}"[:200]}
    return {
        "models": {name: {k: _plain(v) for k, v in info.items()} for name, info in found.items()},
        "previously": dict(getattr(registry, "_PREVIOUSLY_SUPPORTED_MODELS", {})),
        "elsewhere": dict(getattr(registry, "_OOT_SUPPORTED_MODELS", {})),
        "of_type": {
            kind: name if isinstance(name, str) else name[0] for kind, name in MODEL_MAPPING_NAMES.items()
        },
        "quantization": sorted(QUANTIZATION_METHODS),
        "speculation": sorted(_words(speculative.SpeculativeMethod)),
        "connectors": sorted(KVConnectorFactory._registry),
        "config_types": sorted(_CONFIG_REGISTRY),
        "drafts_for": _drafts_for(speculative.SpeculativeConfig),
        "breakable_graphs": _breakable_graphs(vllm_config),
        "sections": _sections(),
        "without_backend": _without_backend(),
        "without_interface": _without_interface(),
        "choices": {flag["dest"]: flag["choices"] for flag in flags() if flag["choices"]},
    }


def _breakable_graphs(module: Any) -> list[str]:
    """Classes that get breakable CUDA graphs by default: a constant since 0.29, a condition before."""
    listed = getattr(module, "DEFAULT_BREAKABLE_CUDAGRAPH_ARCHITECTURES", None)
    if listed is not None:
        return sorted(listed)
    found: set[Any] = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.If):
            words = {part.value for part in ast.walk(node.test) if isinstance(part, ast.Constant)}
            if "VLLM_USE_BREAKABLE_CUDAGRAPH" in words:
                found |= words - {"VLLM_USE_BREAKABLE_CUDAGRAPH"}
    return sorted(word for word in found if isinstance(word, str))


def _without_backend() -> list[str]:
    """Model types of transformers whose models take no other attention: up to 0.28 vLLM can't wrap them."""
    import transformers.models

    folder = Path(transformers.models.__path__[0])
    found = [
        file.parent.name
        for file in folder.glob("*/modeling_*.py")
        if file.stem == f"modeling_{file.parent.name}"
        and "_supports_attention_backend = True" not in file.read_text()
    ]
    return sorted(found)


def _without_interface() -> list[str]:
    """Those of them whose attention can't be set either, as transformers tells: no release wraps them."""
    import transformers.models

    folder = Path(transformers.models.__path__[0])
    found = []
    for name in _without_backend():
        code = (folder / name / f"modeling_{name}.py").read_text()
        attention = re.search(r"^class \w*Attention\w*\(nn\.Module\):", code, re.MULTILINE)
        if attention and "ALL_ATTENTION_FUNCTIONS.get_interface(" not in code:
            found.append(name)
    return found


def _sections() -> dict[str, list[str]]:
    """The fields of sections that the command line takes as JSON; `!`: it must be given."""
    import dataclasses

    import vllm.config as configs

    classes = {
        "attention_config": "AttentionConfig",
        "compilation_config": "CompilationConfig",
        "compilation_config.pass_config": "PassConfig",
        "ec_transfer_config": "ECTransferConfig",
        "kv_transfer_config": "KVTransferConfig",
        "reasoning_config": "ReasoningConfig",
        "speculative_config": "SpeculativeConfig",
        "watermark_config": "WatermarkConfig",
    }
    found = {}
    for name, cls in classes.items():
        section = getattr(configs, cls, None) or getattr(configs.vllm, cls, None)
        if section is not None:
            missing = dataclasses.MISSING
            found[name] = sorted(
                field.name + ("!" if field.default is missing and field.default_factory is missing else "")
                for field in dataclasses.fields(section)
                if field.init
            )
    return found


def _drafts_for(speculation: Any) -> list[str]:
    """Words of the code that makes a draft's configuration of a model's own: types and classes among them."""
    source = inspect.getsource(speculation.hf_config_override)
    words = {
        node.value for node in ast.walk(ast.parse(textwrap.dedent(source))) if isinstance(node, ast.Constant)
    }
    return sorted(word for word in words if isinstance(word, str) and word.isidentifier())


def _words(literal: Any) -> set[str]:
    """The texts of a Literal, nested ones included."""
    found: set[str] = set()
    for item in typing.get_args(literal):
        found |= {item} if isinstance(item, str) else _words(item)
    return found


def _prepare(cases: list[dict[str, Any]]) -> None:
    """Do once, before the forks, what each case would do: import model classes, configure the log."""
    from vllm.model_executor.models.registry import ModelRegistry

    # releases before 0.33 configure it at import
    with contextlib.suppress(ImportError):
        from vllm.config.logging import LoggingConfig
        from vllm.logger import configure_logging_if_needed

        configure_logging_if_needed(LoggingConfig())
    folders = {word for case in cases for word in case["argv"] if os.path.isfile(f"{word}/config.json")}
    named = {
        name
        for folder in folders
        for name in json.loads(Path(folder, "config.json").read_text()).get("architectures") or ()
    }
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    for name in sorted(named & set(ModelRegistry.models)):
        # a class that can't be imported fails in the case itself
        with contextlib.suppress(Exception):
            ModelRegistry.models[name].load_model_cls()
    _freeze()


def _import(modules: Sequence[str]) -> None:
    """Import what a case imported, so that the next ones find it."""
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    if modules:
        _freeze()


def _freeze() -> None:
    """Keep the collector from writing to the pages that forks share."""
    gc.collect()
    gc.freeze()
    gc.disable()


def _in_fork(cases: list[dict[str, Any]], parser: tuple[Any, Any, Any]) -> Iterator[dict[str, Any]]:
    """Answers in the order of the cases; the one that the fork died of is the last."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as pipe:
            _answer(cases, parser, pipe)
        os._exit(0)
    os.close(writing)
    answered = 0
    with os.fdopen(reading) as pipe:
        for line in pipe:
            answered += 1
            yield json.loads(line)
    _, status = os.waitpid(child, 0)
    if answered < len(cases):
        yield {"broken": f"ended with status {status}"}


def _answer(cases: list[dict[str, Any]], parser: tuple[Any, Any, Any], pipe: TextIO) -> None:
    """Write a line for each case. Each finds the environment and the defaults that the first one found."""
    import vllm.logger

    said_once = [value for value in vars(vllm.logger).values() if hasattr(value, "cache_clear")]
    environ, lines, readings = dict(os.environ), _listen(), _watch()
    for case in cases:
        signal.alarm(TIMEOUT)
        before = set(sys.modules)
        os.environ.clear()
        os.environ.update({**environ, **(case.get("env") or {})})
        for known in said_once:
            known.cache_clear()
        lines.clear()
        readings.clear()
        try:
            # defaults of the parser may come from the environment
            answer = _record(case, _serve_parser() if case.get("env") else parser)
            answer |= {"choices": readings, "log": lines}
            answer["imported"] = [name for name in set(sys.modules) - before if name.startswith("vllm.")]
            text = json.dumps(answer, default=str)
        except BaseException:
            text = json.dumps({"broken": traceback.format_exc()})
        pipe.write(text + "\n")
        pipe.flush()


def _serve_parser() -> tuple[Any, Any, Any]:
    """The whole parser, that of `serve`, and the subcommand."""
    from vllm.entrypoints.cli.serve import ServeSubcommand

    try:
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError:
        from vllm.utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(description="vLLM CLI")
    command = ServeSubcommand()
    serve = command.subparser_init(parser.add_subparsers(required=False, dest="subparser"))
    return parser, serve, command


def _record(case: dict[str, Any], built: tuple[Any, Any, Any]) -> dict[str, Any]:
    parser, _, command = built
    answer: dict[str, Any] = {}
    stage = "parser"
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            # a configuration that is made changes the parser's own defaults
            args = copy.deepcopy(parser.parse_args(["serve", *case["argv"]]))
        stage = "validate"
        command.validate(args)
        if getattr(args, "model_tag", None) is not None:
            args.model = args.model_tag
        stage = "arguments"
        from vllm import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext

        engine_args = AsyncEngineArgs.from_cli_args(args)
        stage = "config"
        config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
        stage = "choice"
        answer["use_v2"] = bool(config.use_v2_model_runner)
        stage = "read"
        for name in ("v1", "v2"):
            listed = getattr(config, f"_get_{name}_model_runner_unsupported_features", None)
            answer[f"unsupported_{name}"] = None if listed is None else sorted(map(str, listed()))
        answer["facts"] = {name: value for name in FACTS if (value := _fact(config, name)) is not _ABSENT}
    except BaseException as error:
        answer["raised"] = _raised(error, stage, printed.getvalue())
    return answer


def _raised(error: BaseException, stage: str, printed: str) -> dict[str, Any]:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/vllm/" in frame.filename]
    text = str(error)
    if isinstance(error, SystemExit):
        text = next((ln for ln in reversed(printed.splitlines()) if "error:" in ln), printed[-300:])
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if type(error).__name__ == "ValidationError" and len(lines) > 1:
        lines = lines[1:] if lines[1].startswith(("Value error", "Assertion")) else lines[1:3]
    return {
        "type": type(error).__name__,
        "message": " | ".join(lines[:2])[:400],
        "where": " < ".join(
            f"{frame.filename.rpartition('/vllm/')[2]}:{frame.name}" for frame in reversed(frames[-3:])
        ),
        "stage": stage,
    }


_ABSENT = object()


def _fact(config: Any, name: str) -> Any:
    value = config
    for part in name.split("."):
        if value is None:
            return None
        try:
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        except (AttributeError, KeyError):
            return _ABSENT
        except Exception as error:
            return {"raised": f"{type(error).__name__}: {error}"[:200]}
    return _plain(value)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return (
            value
            if type(value) in (bool, int, float, str, type(None))
            else getattr(value, "name", str(value))
        )
    if hasattr(value, "name") and hasattr(value, "value"):
        return value.name
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value][:200]
    if callable(value) and hasattr(value, "__name__"):
        return _plain(value())
    return True


def _watch() -> list[bool | str]:
    """Each answer of the choice, in order: a release may ask before its configuration is done."""
    from vllm.config import VllmConfig

    readings: list[bool | str] = []
    told = VllmConfig.__dict__["use_v2_model_runner"]
    get = told.fget if isinstance(told, property) else told.func

    def reading(self: Any) -> Any:
        try:
            value = get(self)
        except BaseException as error:
            readings.append(f"{type(error).__name__}: {error}"[:200])
            raise
        readings.append(bool(value))
        return value

    VllmConfig.use_v2_model_runner = property(reading)
    return readings


def _listen() -> list[str]:
    """Warnings of vLLM, and what it says of its runners; a factory hears all, handlers come late."""
    lines: list[str] = []
    make = logging.getLogRecordFactory()

    def heard(*args: Any, **more: Any) -> logging.LogRecord:
        record = make(*args, **more)
        text = record.getMessage().split("\n")[0][:300]
        if record.name.startswith("vllm") and (record.levelno >= logging.WARNING or "runner" in text.lower()):
            lines.append(text)
        return record

    logging.setLogRecordFactory(heard)
    return lines


if __name__ == "__main__":
    main()
