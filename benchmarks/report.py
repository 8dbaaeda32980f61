"""Puts the tables and plots of docs/performance.md together from benchmarks/results/.

    python -m benchmarks.report             # rewrite the generated parts
    python -m benchmarks.report --check     # only say whether they are up to date

A generated part stands between `<!-- begin: NAME -->` and `<!-- end: NAME -->`; all else is written by hand
and stays. Of several records of the same thing (engine, label, model, workload, GPU, and so on) the latest
counts.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import results

ROOT = Path(__file__).resolve().parents[1]
NOTHING = "No results yet."
SAME = ("model", "workload.name", "environment.gpu", "engine", "label")
"""What records of throughput have in common of which the latest counts."""
Record = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the document and the plots, or compare."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "performance.md")
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 where it would change")
    options = parser.parse_args(arguments)
    plots = options.document.parent / options.document.stem
    records = load(options.results)
    files = {options.document: fill(options.document.read_text(encoding="utf-8"), records, plots.name)}
    files |= {plots / name: content for name, content in draw(records[results.THROUGHPUT]).items()}
    stale = [path for path, content in files.items() if not path.is_file() or path.read_text() != content]
    if options.check:
        for path in stale:
            print(f"{path} is not up to date: run python -m benchmarks.report", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path], encoding="utf-8")
        print(f"wrote {path}")
    return 0


def load(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """All records below a directory by schema, in order of time; each has its "environment"."""
    found: dict[str, list[dict[str, Any]]] = {schema: [] for schema in results.FIELDS}
    for path in sorted(directory.rglob("*.json")):
        content = results.read(path)
        for record in content["records"]:
            found[content["schema"]].append({"environment": content.get("environment"), **record})
    for records in found.values():
        records.sort(key=lambda record: record["environment"]["time"])
    return found


def fill(document: str, records: Mapping[str, Sequence[Record]], plots: str) -> str:
    """The document with its generated parts made anew. ValueError for a name that no part has."""
    parts: Mapping[str, Callable[[], str]] = {
        "throughput": lambda: throughput_table(records[results.THROUGHPUT]),
        "plots": lambda: plot_links(records[results.THROUGHPUT], plots),
        "latency": lambda: latency_table(records[results.THROUGHPUT]),
        "kernels": lambda: kernel_table(records[results.KERNELS]),
        "steps": lambda: step_table(records[results.STEP]),
    }

    def part(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in parts:
            raise ValueError(f"<!-- begin: {name} -->: no such part; expected one of {', '.join(parts)}")
        return f"<!-- begin: {name} -->\n\n{parts[name]()}\n\n<!-- end: {name} -->"

    return re.sub(
        r"<!-- begin: (?P<name>[\w-]+) -->.*?<!-- end: (?P=name) -->", part, document, flags=re.DOTALL
    )


def throughput_table(records: Iterable[Record]) -> str:
    """Tokens per second and share of the roofline, and what each was measured with."""
    rows = []
    for record in _latest(records, *SAME):
        workload, least = record["workload"], record["roofline"]
        if workload["online"]:
            continue
        side, rate = main_rate(record)
        rows.append(
            (
                record["model"],
                workload["name"],
                _engine(record),
                f"{rate:,.0f} {side}",
                "–" if least is None else f"{100 * least['share']:.1f} %",
                f"{record['start_seconds']:.1f}",
                *_where(record),
            )
        )
    return _table(
        ("model", "workload", "engine", "tok/s", "of the roofline", "start, s", "GPU", "with", "commit"), rows
    )


def latency_table(records: Iterable[Record]) -> str:
    """Times to the first token and between tokens, in milliseconds."""
    rows = []
    for record in _latest(records, *SAME):
        if record["latency"] is not None:
            figures = [
                "–" if record["latency"][kind] is None else f"{1e3 * record['latency'][kind][which]:.2f}"
                for kind in ("ttft_s", "tpot_s")
                for which in ("p50", "p90", "p99")
            ]
            name = record["workload"]["name"]
            rows.append((record["model"], name, _engine(record), _gpu(record), *figures))
    head = [f"{kind} {which}" for kind in ("TTFT", "TPOT") for which in ("p50", "p90", "p99")]
    return _table(("model", "workload", "engine", "GPU", *head), rows)


def kernel_table(records: Iterable[Record]) -> str:
    """Microseconds by kernel and shape, beside the roofline and torch."""
    rows = []
    for record in _latest(records, "kernel", "case"):
        in_torch = record["torch_seconds"]
        rows.append(
            (
                record["kernel"],
                record["case"],
                f"{1e6 * record['seconds']:,.1f}",
                f"{1e6 * record['roofline_seconds']:,.1f} ({record['bound']})",
                f"{100 * record['share']:.1f} %",
                "–" if in_torch is None else f"{1e6 * in_torch:,.1f}",
                record["environment"]["commit"],
            )
        )
    return _table(("kernel", "shape", "µs", "least µs", "share", "torch µs", "commit"), rows)


def step_table(records: Iterable[Record]) -> str:
    """A decode step's time on the host and on the GPU, with the kernels that take most of it."""
    rows = []
    for record in _latest(records, "engine", "model", "sampling", "batch", "context"):
        host = sum(value for name, value in record["host_us"].items() if name != "result")
        gpu = record["gpu"]
        busy, idle, kernels = "–", "–", "–"
        if gpu is not None:
            busy, idle = f"{gpu['busy_us']:,.0f}", f"{gpu['idle_us']:,.0f}"
            kernels = "; ".join(
                f"{_short(k['name'])} {k['us']:,.0f} ({k['launches']:.0f}×)" for k in gpu["kernels"][:4]
            )
        rows.append(
            (
                record["model"],
                record["engine"],
                record["sampling"],
                str(record["batch"]),
                f"{record['mean_context']:,.0f}",
                f"{record['step_us']:,.0f}",
                f"{host:,.0f}",
                busy,
                idle,
                kernels,
                record["environment"]["commit"],
            )
        )
    head = ("model", "engine", "sampling", "batch", "context", "step µs", "host µs", "GPU busy", "GPU idle")
    return _table((*head, "most of it", "commit"), rows)


def main_rate(record: Record) -> tuple[str, float]:
    """("in" or "out", tokens per second): input tokens where almost all tokens are inputs."""
    workload = record["workload"]
    if workload["input_tokens"] > 100 * workload["output_tokens"]:
        return "in", record["input_tokens_per_s"]
    return "out", record["output_tokens_per_s"]


def draw(records: Iterable[Record]) -> dict[str, str]:
    """One SVG by model: bars of each workload's engines, as parts of the roofline."""
    by_model: dict[str, list[Record]] = {}
    for record in _latest(records, *SAME):
        if record["roofline"] is not None:
            by_model.setdefault(record["model"], []).append(record)
    return {plot_name(model): bars(chosen) for model, chosen in by_model.items()}


def plot_links(records: Iterable[Record], folder: str) -> str:
    """The plots, as the document shows them."""
    models = dict.fromkeys(record["model"] for record in records if record["roofline"] is not None)
    return "\n\n".join(f"![{model}]({folder}/{plot_name(model)})" for model in sorted(models)) or NOTHING


def plot_name(model: str) -> str:
    """A plot's file name."""
    return re.sub(r"[^\w.-]+", "-", model).strip("-") + ".svg"


def bars(records: Sequence[Record]) -> str:
    """Horizontal bars, 100 % is the roofline; grouped by workload."""
    label, scale, step, pad = 210, 420, 22, 10
    lines, y, last = [], pad, None
    for record in records:
        name = record["workload"]["name"]
        if name != last:
            y += 20
            lines.append(f'<text x="{pad}" y="{y}" font-weight="bold">{name}</text>')
            y, last = y + 8, name
        share = min(1.0, record["roofline"]["share"])
        side, rate = main_rate(record)
        color = "#2b6cb0" if record["engine"].startswith("dodona") else "#a0aec0"
        end = label + scale * share
        lines += [
            f'<text x="{pad}" y="{y + 12}">{_engine(record)}, {_gpu(record)}</text>',
            f'<rect x="{label}" y="{y}" width="{scale * share:.1f}" height="16" fill="{color}"/>',
            f'<text x="{end + 6:.1f}" y="{y + 12}">{rate:,.0f} tok/s {side}, {100 * share:.0f} %</text>',
        ]
        y += step
    frame = f'<line x1="{label + scale}" y1="{pad}" x2="{label + scale}" y2="{y}" stroke="#888"/>'
    size = f'width="{label + scale + 190}" height="{y + pad}"'
    body = "\n".join([frame, *lines])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _latest(records: Iterable[Record], *fields: str) -> list[Record]:
    """The last record for each value of the fields ("a.b" is a field of a field), sorted by them."""

    def key(record: Record) -> tuple[Any, ...]:
        values = []
        for name in fields:
            value: Any = record
            for part in name.split("."):
                value = value[part]
            values.append(value)
        return tuple(values)

    found = {key(record): record for record in records}
    return [found[each] for each in sorted(found)]


def _engine(record: Record) -> str:
    version = record["versions"].get(record["engine"])
    return " ".join(filter(None, (record["engine"], version, record["label"])))


def _gpu(record: Record) -> str:
    """A GPU's short name: "H200" of "NVIDIA H200"."""
    return record["environment"]["gpu"].removeprefix("NVIDIA ").split()[0]


def _where(record: Record) -> tuple[str, str, str]:
    where = record["environment"]
    return where["gpu"], f"torch {where['torch']}, triton {where['triton']}", where["commit"]


def _short(kernel: str) -> str:
    """A kernel's name without templates and arguments."""
    return re.split(r"[<(]", kernel.removeprefix("void "))[0].rsplit("::", 1)[-1][:40]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return NOTHING
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"error: {error}")
