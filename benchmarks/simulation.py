"""Many stories of the engine's simulation, and how many it takes to find planted bugs.

    python -m benchmarks.simulation --seeds 1000000 --processes 2
    python -m benchmarks.simulation --seeds 1000000 --first 250000
    python -m benchmarks.simulation --planted

The first runs stories of the seeds 0 to N - 1, says how far it came, and stops at the first that fails, which
it prints as a test. The second goes on from a seed. The third plants each bug of benchmarks/planted_bugs.py
into a copy of the code and runs stories until one fails. See tests/support/simulation.py.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.planted_bugs import PLANTED, Planted

ROOT = Path(__file__).resolve().parents[1]
BLOCK = 500
"""Seeds that a process runs at a time."""
PROGRESS = 20_000
"""Seeds from one line of progress to the next."""
MOST_SEEDS = 10_000
"""Stories after which a planted bug counts as not found."""


def first_failure(seeds: range) -> tuple[int, str] | None:
    """The first of the seeds whose story fails, and what it says."""
    from tests.support.simulation import run
    from tests.support.stories import story_of

    for seed in seeds:
        story = story_of(seed)
        try:
            run(story)
        except Exception as error:
            return seed, f"{type(error).__name__}: {error}\n\n{story.test()}"
    # Each engine freezes what exists when it starts, garbage of earlier stories too, and the collector comes
    # to what was frozen only when it is asked.
    gc.collect()
    return None


def find_planted(planted: Planted) -> int | None:
    """How many stories it takes until one fails in a copy of the code with this bug; None for none."""
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        tree = Path(folder)
        (tree / "src").mkdir()
        shutil.copytree(
            ROOT / "src/dodona", tree / "src/dodona", ignore=shutil.ignore_patterns("__pycache__")
        )
        for name in ("tests", "benchmarks"):
            ignored = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(ROOT / name, tree / name, ignore=ignored)
        file = tree / "src/dodona" / planted.file
        text = file.read_text(encoding="utf-8")
        if planted.old not in text:
            raise SystemExit(f"{planted.name}: {planted.file} has no longer the text {planted.old!r}")
        file.write_text(text.replace(planted.old, planted.new, 1), encoding="utf-8")
        code = (
            "from benchmarks.simulation import first_failure; "
            f"found = first_failure(range({MOST_SEEDS})); print('' if found is None else found[0])"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tree / "src"), str(tree)])}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        said = done.stdout.strip()
        return int(said) + 1 if said else None


def _find_and_say(planted: Planted) -> int | None:
    count = find_planted(planted)
    print(f"| {planted.name} | {'not found' if count is None else count} |", flush=True)
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; 1 where a story fails or a bug is not found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="seed to begin with; default: 0")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--planted", action="store_true")
    given = parser.parse_args(arguments)
    if given.planted:
        print("| planted bug | stories until it is found |\n| --- | --- |")
        counts = [_find_and_say(planted) for planted in PLANTED]
        return int(None in counts)
    if given.first >= given.seeds:
        parser.error(f"--first {given.first} is not below --seeds {given.seeds}")
    return run_stories(given.first, given.seeds, given.processes)


def run_stories(first: int, end: int, processes: int) -> int:
    """Run the stories of the seeds [first, end); 1 where one fails, which is printed."""
    begin = time.monotonic()
    blocks = [range(i, min(i + BLOCK, end)) for i in range(first, end, BLOCK)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for block, failure in zip(blocks, pool.imap(first_failure, blocks), strict=True):
            if failure is not None:
                print(f"seed {failure[0]}: {failure[1]}", flush=True)
                return 1
            if block.stop % PROGRESS < BLOCK or block.stop == end:
                seconds = time.monotonic() - begin
                print(f"seeds {first} to {block.stop - 1} hold ({seconds:.0f} s)", flush=True)
    print(f"{end - first} stories hold ({time.monotonic() - begin:.0f} s, {processes} processes)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
