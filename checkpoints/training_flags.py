"""The command line of the scripts that train."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent


def training_parser(
    prog: str,
    description: str | None,
    names: Iterable[str],
    *,
    steps: int,
    batch: int,
    pool: int,
    measure: int,
) -> argparse.ArgumentParser:
    """A parser for these names of recipes, with these defaults of its numbers."""
    listed = sorted(names)
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("names", nargs="+", choices=listed, metavar="NAME", help=", ".join(listed))
    add = parser.add_argument
    add("--steps", type=int, default=steps, help="optimizer steps (default %(default)s)")
    add("--batch", type=int, default=batch, help="sequences a step (default %(default)s)")
    add("--pool", type=int, default=pool, help="training sequences (default %(default)s)")
    add("--learning-rate", type=float, default=2e-3, help="peak (default %(default)s)")
    add("--seed", type=int, default=0, help="of weights, data and order (default %(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--measure", type=int, default=measure, help="held-out prompts of each form (default %(default)s)")
    add("--measure-only", action="store_true", help="measure what is saved, train nothing")
    add("--output", type=Path, default=HERE, help="parent of the folders (default: beside this file)")
    return parser


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, with numbers that can be."""
    found = parser.parse_args(arguments)
    if min(found.steps, found.batch, found.pool, found.measure) < 1:
        parser.error("--steps, --batch, --pool and --measure must be at least 1")
    return found
