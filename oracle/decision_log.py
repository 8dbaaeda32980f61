"""The decision log: one JSON line for each verdict, where `DODONA_DECISION_LOG` names a file.

A line has no names, paths or values of the configuration, only hashes of it and the rules' ids:

    {"time": "2026-11-21T03:16:07.250413Z", "config_hash": "5f0c…", "model_hash": "9a31…",
     "rulebook": "dodona", "rulebook_hash": "77ab…", "runner": "v1", "forced": false,
     "decided_by": "fallback", "fired": ["stock-torch-compile"], "refusals": []}

`config_hash` is the same for equal configurations, wherever they are (see `config_hash`); `model_hash` is of
the model's name alone. Hashes hide a name from readers, not from someone who guesses it.

Each line is appended by one write to a file that is opened for it, so that several processes may log to one
file on a local file system, and a rotated file is left at once. A line that can't be written is a warning of
the logger `dodona.oracle.decision_log`; the verdict stands all the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import json
import logging
import os
import stat
import time
from typing import TYPE_CHECKING, Any, Final

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.config.sections import OPTIONAL_SECTIONS, SECTIONS
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.select import Configuration, select_runner

if TYPE_CHECKING:
    from dodona.oracle.decide.verdict import Verdict
    from dodona.oracle.language.rulebook import RuleBook
    from dodona.oracle.machine.environment import Environment

LOG_VARIABLE: Final = "DODONA_DECISION_LOG"

_MODE = 0o640
_LOCK_TRIES, _LOCK_PAUSE = 20, 0.005  # the second in seconds
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK

_logger = logging.getLogger(__name__)


def select_and_log(
    config: Configuration,
    *,
    rulebook: str | os.PathLike[str] | RuleBook = "dodona",
    environment: Environment | None = None,
    log: str | os.PathLike[str] | None = None,
) -> Verdict:
    """`select_runner`, and a line in the decision log for its verdict, refused ones too.

    log: the file; None: what `DODONA_DECISION_LOG` names, or no log. Raises as `select_runner` does.
    """
    try:
        verdict = select_runner(config, rulebook=rulebook, environment=environment)
    except UnsupportedConfiguration as refusal:
        if refusal.verdict is not None:
            log_decision(refusal.verdict, log)
        raise
    log_decision(verdict, log)
    return verdict


def log_decision(verdict: Verdict, log: str | os.PathLike[str] | None = None) -> bool:
    """Append a verdict's line to `log` (None: to the file that `DODONA_DECISION_LOG` names, if any).

    Returns whether it was written. Never raises for what the file system does: that is a warning.
    """
    path = os.environ.get(LOG_VARIABLE) if log is None else os.fspath(log)
    if not path:
        return False
    line = json.dumps(decision(verdict), separators=(",", ":")).encode() + b"\n"
    try:
        _append(path, line)
    except (OSError, ValueError) as error:
        _logger.warning("the decision log %s can't be written: %s", path, error)
        return False
    return True


def _append(path: str | bytes, line: bytes) -> None:
    # A pipe without a reader would block the engine's start: without O_NONBLOCK opening it waits for one.
    file = os.open(path, _FLAGS, _MODE)
    try:
        # what an earlier write left, for instance on a full disk
        if _lock(file) and _ends_within_a_line(path, os.fstat(file)):
            line = b"\n" + line
        written = os.write(file, line)
        if written != len(line):
            raise OSError(f"only {written} of {len(line)} bytes were taken")
    finally:
        os.close(file)


def _lock(file: int) -> bool:
    """Keep other writers from the file until it is closed; False where that takes too long.

    Without it, the end of a line that another process is writing could be missed.
    """
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE)
        except OSError:
            return False  # a file system without locks
        else:
            return True
    return False


def _ends_within_a_line(path: str | bytes, status: os.stat_result) -> bool:
    """Whether a log's last line has no end; False where that can't be read."""
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        return False
    with contextlib.suppress(OSError), open(path, "rb") as log:
        log.seek(-1, os.SEEK_END)
        return log.read(1) != b"\n"
    return False


def decision(verdict: Verdict) -> dict[str, Any]:
    """What a line says of a verdict, as plain JSON values. Times are UTC."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "time": now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "config_hash": config_hash(verdict),
        "model_hash": _sha256(verdict.config.model_config.model),
        "rulebook": verdict.rulebook.name,
        "rulebook_hash": verdict.rulebook.content_hash,
        "runner": verdict.runner,
        "forced": verdict.forced,
        "decided_by": verdict.decided_by,
        "fired": [reason.rule for reason in verdict.reasons],
        "refusals": [reason.rule for reason in verdict.refusals],
    }


def config_hash(verdict: Verdict) -> str:
    """SHA-256 of a verdict's configuration: of the sections that are configured and, in them, of the fields
    that differ from their defaults, as JSON with sorted keys. A field that a later version of Dodona adds
    changes no hash until it is used.
    """
    what = {"config": _differences(verdict.config), "vllm_config": json.loads(verdict.vllm_config or "null")}
    return _sha256(json.dumps(what, sort_keys=True, separators=(",", ":")))


def _differences(config: EngineConfig) -> dict[str, Any]:
    mapping = config.to_mapping()
    found: dict[str, Any] = {}
    for name, cls in SECTIONS.items():
        if mapping[name] is None:
            continue
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        fields = {field: value for field, value in mapping[name].items() if value != defaults[field]}
        # an optional section that is there counts, be it empty
        if fields or name in OPTIONAL_SECTIONS:
            found[name] = fields
    return found


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
