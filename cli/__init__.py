"""The command line; `cli/app.py` lists its commands."""

from __future__ import annotations


def main() -> None:
    """Run the command line on `sys.argv` and exit: 0 done, 1 the engine failed, 2 bad input, 3 refused by
    a rule."""
    from dodona.cli.app import app
    from dodona.cli.output import run

    run(lambda: app(prog_name="dodona"))
