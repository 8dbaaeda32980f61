"""A runner for tests of workers: it imports neither torch nor a model, and does what its steps say."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from dodona.oracle.errors import ConfigError


class Strange(Exception):
    """Can be pickled, but not read again."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"strange: {one} {two}")


class PlainRunner:
    """Made like a runner; a step is (what to do, argument)."""

    name = "plain"
    max_steps_in_flight = 1

    def __init__(self, config: Any, model: Any, limits: Any) -> None:
        self.step: Any = None

    def echo(self, a: Any, *, b: Any) -> Any:
        return a, b

    def refuse(self, field: str) -> None:
        raise ConfigError(f"{field}: no")

    def warn(self, text: str) -> None:
        print(f"before {text}", flush=True)
        logging.getLogger("dodona.plain").warning(text)
        logging.getLogger("dodona.plain").info("not said")

    def raise_strange(self) -> None:
        raise Strange("a", "b")

    def strange_result(self) -> Any:
        return lambda: None

    def execute_model(self, step: Any) -> None:
        self.step = step
        what, argument, *_ = step
        if what == "raise":
            print("about to raise", flush=True)
            raise RuntimeError(argument)
        if what == "raise when peers are gone":
            time.sleep(argument)
            raise RuntimeError("connection closed by peer")
        if what == "die":
            print("about to die", flush=True)
            os.kill(os.getpid(), argument)
        if what == "sleep":
            time.sleep(argument)

    def sample_tokens(self, grammar_output: Any) -> Any:
        return self

    def take_kv_connector_output(self) -> Any:
        return ("moved", self.step)

    def result(self) -> Any:
        return ("sampled", self.step)

    def shutdown(self) -> None:
        pass
