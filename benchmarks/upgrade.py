"""Times verdicts of vLLM's command lines, and `dodona upgrade` over many files.

    python benchmarks/upgrade.py [--files 200] [--verdicts 2000]

The files are copies of those in examples/deployments. Times are of one process, in wall
time and in CPU time, which says more on a machine that others use.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.oracle import MODEL, ROOT, machine
from dodona.oracle.machine.assumed import assumed_machine
from dodona.oracle.select import select_runner
from dodona.oracle.upgrade.comparison import books_between
from dodona.oracle.upgrade.sentinel import examine

FIRST, LAST = "0.24.0", "0.33.0"
COMMANDS = (
    "vllm serve {model}",
    "VLLM_USE_V2_MODEL_RUNNER=0 vllm serve {model} --tensor-parallel 2 --max-model-len 32k",
    "docker run --gpus all -e HF_TOKEN=x -p 8000:8000 vllm/vllm-openai:v0.25.1 --model {model} -tp 4 -pp 2 "
    '--speculative-config \'{{"method": "eagle3", "num_speculative_tokens": 3}}\' --enable-lora',
    "python3 -m vllm.entrypoints.openai.api_server --model={model} -cc.mode 1 --kv-cache-dtype fp8 -O3",
)


def time_verdicts(count: int) -> list[float]:
    """CPU seconds of each of `count` verdicts, after one of each command has loaded what they need."""
    commands = [command.format(model=MODEL) for command in COMMANDS]
    environment = assumed_machine([])
    for command in commands:
        select_runner(command, rulebook="vllm/0.33.0", environment=environment)
    times = []
    for command in itertools.islice(itertools.cycle(commands), count):
        start = time.process_time()
        select_runner(command, rulebook="vllm/0.33.0", environment=environment)
        times.append(time.process_time() - start)
    return times


def time_upgrade(count: int) -> tuple[float, float, int]:
    """Wall and CPU seconds for `count` files, and the number of starts that were found."""
    samples = sorted(path for path in (ROOT / "examples" / "deployments").iterdir() if path.is_file())
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(itertools.islice(itertools.cycle(samples), count)):
            place = Path(folder, str(number))
            place.mkdir()
            (place / path.name).write_bytes(path.read_bytes())
        wall, cpu = time.perf_counter(), time.process_time()
        report = examine([folder], first=FIRST, last=LAST, machine=assumed_machine([]), machine_name="h100")
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert report.files == count, (report.files, report.left_out[:3])
    return wall, cpu, len(report.findings) + len(report.unknown)


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--verdicts", type=int, default=2000)
    arguments = parser.parse_args()
    print(machine())
    times = time_verdicts(arguments.verdicts)
    # where others use the machine too, the quietest hundred says most of the program
    rounds = [statistics.mean(times[i : i + 100]) for i in range(0, len(times), 100)]
    print(
        f"a verdict from a command line: {min(rounds) * 1e3:.2f} ms of CPU in the quietest hundred, "
        f"{statistics.median(times) * 1e3:.2f} ms in the median of all"
    )
    wall, cpu, found = time_upgrade(arguments.files)
    releases = len(books_between(FIRST, LAST))
    print(f"{arguments.files} files, {found} starts, {releases} releases: {wall:.1f} s, {cpu:.1f} s of CPU")
    return 0


if __name__ == "__main__":
    sys.exit(main())
