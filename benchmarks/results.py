"""Files of results: one JSON object {"schema": ..., "records": [...]} per run of a program.

A record of "dodona.throughput/1":

- engine: a name of `benchmarks.engines.ENGINES`; label: what else tells it apart ("" as a rule)
- model: name or directory as given; config: its config.json; dtype
- workload: name, seed, requests, input_tokens, output_tokens, fingerprint (hash of all that is asked: records
  with equal fingerprints may be compared), online
- settings: what the engine says of itself; versions: of the engine
- environment: see `benchmarks.environment.describe`
- start_seconds: from before the engine's import until it can take requests
- runs: one {"seconds": ...} per repetition after the warm-up, in order
- seconds: their median; output_tokens_per_s, input_tokens_per_s: the workload's tokens by it
- roofline: bandwidth (bytes/s), flops (operations/s), prefill_seconds, decode_seconds, output_tokens_per_s,
  share (the roofline's seconds by ours); null for online workloads, whose time the arrivals decide
- latency: ttft_s and tpot_s (seconds; mean, p50, p90, p99, max over requests), streamed; null where not
  measured. A request's TPOT is the mean time between its tokens after the first.

A record of "dodona.kernels/1": see `benchmarks.kernels`. Of "dodona.step/1": see `benchmarks.profile_step`.
Of "dodona.workload/1": see `benchmarks.profile_workload`. Of "dodona.kv_offload/1": see
`benchmarks.kv_offload`. Of "dodona.speculation/1", one engine each: see `benchmarks.speculation`. Of
"dodona.memory/1", values in bytes: see `benchmarks.memory`. Of "dodona.torch_compile/1": see
`benchmarks.torch_compile`.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engines.base import Timeline

THROUGHPUT = "dodona.throughput/1"
KERNELS = "dodona.kernels/1"
STEP = "dodona.step/1"
WORKLOAD = "dodona.workload/1"
KV_OFFLOAD = "dodona.kv_offload/1"
SPECULATION = "dodona.speculation/1"
MEMORY = "dodona.memory/1"
TORCH_COMPILE = "dodona.torch_compile/1"

FIELDS: Mapping[str, frozenset[str]] = {
    THROUGHPUT: frozenset(
        {
            "engine", "label", "model", "config", "dtype", "workload", "settings", "versions", "environment",
            "start_seconds", "runs", "seconds", "output_tokens_per_s", "input_tokens_per_s", "roofline",
            "latency",
        }
    ),
    KERNELS: frozenset({"kernel", "case", "seconds", "roofline_seconds", "bound", "share", "torch_seconds"}),
    STEP: frozenset(
        {
            "engine", "model", "sampling", "batch", "context", "mean_context", "host_us", "step_us",
            "tokens_per_s", "gpu",
        }
    ),
    WORKLOAD: frozenset({"engine", "model", "workload", "seconds", "gpu"}),
    KV_OFFLOAD: frozenset({"measurement", "values"}),
    MEMORY: frozenset({"engine", "model", "settings", "environment", "values"}),
    TORCH_COMPILE: frozenset(
        {
            "model", "dtype", "environment", "settings", "start_seconds", "compilations", "tokens",
            "output_tokens_per_s",
        }
    ),
    SPECULATION: frozenset(
        {
            "speculative_config", "forced_acceptance", "note", "mean_acceptance_length", "batches", "profile",
            "against_plain",
        }
    ),
}  # fmt: skip
"""Fields of a record by schema: these and no others."""


def write(path: Path, schema: str, records: Sequence[Mapping[str, Any]], **head: Any) -> None:
    """Write a file of records; `head` goes beside them. Raises ValueError for a record of other fields."""
    for record in records:
        if record.keys() != FIELDS[schema]:
            raise ValueError(f"a {schema} record differs in {sorted(record.keys() ^ FIELDS[schema])}")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"schema": schema, **head, "records": list(records)}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """A file of records; ValueError naming the file where it is none."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        schema = content["schema"]
        records = content["records"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path}: expected {{"schema": …, "records": […]}}: {error!r}') from error
    if schema not in FIELDS:
        raise ValueError(f"{path}: schema {schema!r} is not known; expected one of {', '.join(FIELDS)}")
    for record in records:
        if record.keys() != FIELDS[schema]:
            raise ValueError(f"{path}: a record differs in {sorted(record.keys() ^ FIELDS[schema])}")
    return content


def percentile(values: Sequence[float], percent: float) -> float:
    """By linear interpolation between the sorted values, as numpy does.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 50)
    2.5
    """
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, percentiles and maximum; None for no values."""
    if not values:
        return None
    return {
        "mean": statistics.fmean(values),
        "p50": percentile(values, 50),
        "p90": percentile(values, 90),
        "p99": percentile(values, 99),
        "max": max(values),
    }


def latency(timelines: Sequence[Timeline]) -> dict[str, Any]:
    """Times to the first token and between tokens, over requests."""
    between = [t.time_per_output_token for t in timelines]
    return {
        "ttft_s": spread([t.time_to_first_token for t in timelines]),
        "tpot_s": spread([seconds for seconds in between if seconds is not None]),
    }
