"""The throughput program: on a tiny model with V1, and its accounting with engines that cheat."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import results, side_by_side, tensor_parallel, throughput
from benchmarks.engines import BenchmarkEngine, Setup, engine_class
from benchmarks.engines.base import Timeline, timeline
from benchmarks.models import read_config
from benchmarks.roofline import Rates
from benchmarks.turns import alternate
from benchmarks.workloads import Ask, make_workload

RATES = Rates(1e12, 1e12)


@pytest.fixture
def forced_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs set the variable for their process; here it must not outlive the test."""
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")


def test_v1_end_to_end(tmp_path: Path, forced_runner: None, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    names = ["nano256", "poisson", "mixed"]
    status = throughput.main(
        ["--engine", "dodona-v1", "--model", "tiny", "--json", str(out), "--requests", "13", "--divide", "40"]
        + ["--repeat", "1", "--rate", "200", "--latency"]
        + [part for name in names for part in ("--workload", name)]
    )
    assert status == 0
    records = results.read(out)["records"]
    assert [record["workload"]["name"] for record in records] == [f"{name}-small" for name in names]
    for record, name in zip(records, names, strict=True):
        asked = make_workload(name, vocab_size=211, rate=200.0).smaller(13, 40)
        assert record["workload"]["fingerprint"] == asked.fingerprint
        assert record["workload"]["output_tokens"] == asked.output_tokens
        assert record["output_tokens_per_s"] == pytest.approx(asked.output_tokens / record["seconds"])
        assert record["input_tokens_per_s"] == pytest.approx(asked.input_tokens / record["seconds"])
        assert 0 < record["latency"]["ttft_s"]["p50"] <= record["latency"]["ttft_s"]["p99"]
        assert record["latency"]["tpot_s"]["p50"] > 0
        assert record["start_seconds"] > 0
        assert record["settings"]["enable_prefix_caching"] is False
        assert record["environment"]["torch"]
        assert (record["roofline"] is None) == (name == "poisson")
    assert "nano256-small:" in capsys.readouterr().out


class CheatingEngine(BenchmarkEngine):
    """Leaves out the last token of its last request."""

    name = "cheat"

    @classmethod
    def load(cls, setup: Setup) -> CheatingEngine:
        return cls()

    def versions(self) -> dict[str, str]:
        return {}

    def settings(self) -> dict[str, Any]:
        return {}

    def generate(self, asks: Sequence[Ask]) -> list[list[int]]:
        outputs = [[1] * ask.max_tokens for ask in asks]
        outputs[-1].pop()
        return outputs

    def serve(self, asks: Sequence[Ask]) -> list[Timeline]:
        return [timeline(ask, 0.0, [1.0] * (ask.max_tokens - 1)) for ask in asks]

    def close(self) -> None:
        pass


class InstantEngine(CheatingEngine):
    """Gives every request its tokens: the first half a second after arrival, then one every 10 ms."""

    def generate(self, asks: Sequence[Ask]) -> list[list[int]]:
        return [[1] * ask.max_tokens for ask in asks]

    def serve(self, asks: Sequence[Ask]) -> list[Timeline]:
        return [
            timeline(ask, 5.0, [5.0 + ask.arrival + 0.5 + 0.01 * i for i in range(ask.max_tokens)])
            for ask in asks
        ]


HEAD = {"config": read_config("tiny"), "dtype": "float32"}


def test_a_token_too_few_is_an_error() -> None:
    workload = make_workload("bs1", vocab_size=211)
    with pytest.raises(RuntimeError, match="request 0 has 7 tokens instead of 8"):
        throughput.measure(CheatingEngine(), workload, HEAD, repeat=1, streamed=False, rates=RATES)
    with pytest.raises(RuntimeError, match="a request for 512 tokens got 511"):
        CheatingEngine().serve(workload.asks)
    with pytest.raises(RuntimeError, match="0 outputs for 1 requests"):
        throughput.check_tokens(workload, [])


def test_latency_and_online_time() -> None:
    workload = make_workload("poisson", vocab_size=211)
    record = throughput.measure(InstantEngine(), workload, HEAD, repeat=2, streamed=False, rates=RATES)
    last = max(ask.arrival + 0.5 + 0.01 * (ask.max_tokens - 1) for ask in workload.asks)
    assert [run["seconds"] for run in record["runs"]] == pytest.approx([last, last])
    assert record["roofline"] is None
    assert record["latency"]["ttft_s"]["p99"] == pytest.approx(0.5)
    assert record["latency"]["tpot_s"]["mean"] == pytest.approx(0.01)


def test_one_token_has_no_time_between_tokens() -> None:
    workload = make_workload("prefill256", vocab_size=211).smaller(2, 100)
    record = throughput.measure(InstantEngine(), workload, HEAD, repeat=1, streamed=True, rates=RATES)
    assert record["latency"]["tpot_s"] is None
    assert record["latency"]["ttft_s"]["max"] == pytest.approx(0.5)


def test_share_is_the_rooflines_time_by_ours() -> None:
    workload = make_workload("nano256", vocab_size=211)
    once = throughput.roofline(workload, HEAD, 10.0, RATES)
    assert once["share"] == pytest.approx((once["prefill_seconds"] + once["decode_seconds"]) / 10.0)
    twice = throughput.roofline(workload, HEAD, 10.0, Rates(2e12, 2e12))
    assert twice["share"] == pytest.approx(once["share"] / 2)


def test_percentiles_are_numpys() -> None:
    np = pytest.importorskip("numpy")
    values = [0.3, 5.0, 1.0, 2.5, 9.0, 4.0, 4.0]
    for percent in (0, 10, 50, 90, 99, 100):
        assert results.percentile(values, percent) == pytest.approx(np.percentile(values, percent))


def test_too_long_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="max_position_embeddings is 512; use --divide"):
        throughput.main(["--engine", "dodona-v1", "--model", "tiny", "--workload", "nano256"])


def test_unknown_engines_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one of dodona-v2, dodona-v1, vllm, transformers"):
        engine_class("sglang")


def test_files_of_other_fields_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    with pytest.raises(ValueError, match="differs in"):
        results.write(path, results.STEP, [{"engine": "dodona-v2"}])
    path.write_text(json.dumps({"schema": "other/1", "records": []}))
    with pytest.raises(ValueError, match="schema 'other/1' is not known"):
        results.read(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"expected \{"):
        results.read(path)


def a_record(**changes: Any) -> dict[str, Any]:
    """A throughput record as a file holds it."""
    workload = make_workload("bs1", vocab_size=211)
    measured = throughput.measure(InstantEngine(), workload, HEAD, repeat=1, streamed=True, rates=RATES)
    head = {
        "engine": "dodona-v2", "label": "", "model": "tiny", "settings": {}, "versions": {"dodona": "0"},
        "environment": {
            "gpu": "G", "torch": "2", "triton": "3", "commit": "abc", "time": "2026-01-01T00:00:00"
        },
        "start_seconds": 1.0,
    }  # fmt: skip
    return {**HEAD, **head, **measured, **changes}


def test_side_by_side_ratio() -> None:
    ours = [a_record(output_tokens_per_s=rate) for rate in (300.0, 310.0)]
    theirs = [a_record(engine="vllm", output_tokens_per_s=rate) for rate in (200.0, 206.67)]
    table = side_by_side.table("dodona-v2", "vllm", ours, theirs)
    assert "| bs1 | output tok/s | 305 (±1.6 %) | 203 (±1.6 %) | 1.500 |" in table
    assert "| bs1 | TPOT p50 ms | 10.00 (±0.0 %) | 10.00 (±0.0 %) | 1.000 |" in table


def test_side_by_side_refuses_other_questions() -> None:
    other = a_record()
    other["workload"] = {**other["workload"], "fingerprint": "other"}
    with pytest.raises(ValueError, match="not asked the same"):
        side_by_side.table("dodona-v2", "vllm", [a_record()], [other])


def test_side_by_side_runs_a_b_b_a(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[list[str], str | None]] = []

    class Finished:
        returncode = 0

    def run(command: list[str], *, env: dict[str, str], check: bool) -> Finished:
        engine = command[command.index("--engine") + 1]
        calls.append((command, env.get("PYTHONPATH")))
        path = Path(command[command.index("--json") + 1])
        results.write(path, results.THROUGHPUT, [a_record(engine=engine)])
        return Finished()

    monkeypatch.setattr(side_by_side.subprocess, "run", run)
    monkeypatch.setenv("PYTHONPATH", "src")
    arguments = [
        "--a",
        "dodona-v2",
        "--b",
        "vllm",
        "--b-path",
        "/opt/vllm",
        "--b-set",
        "async_scheduling=true",
    ]
    arguments += ["--json-dir", str(tmp_path), "--", "--model", "tiny", "--workload", "bs1"]
    status = side_by_side.main(arguments)
    assert status == 0
    engines = [command[command.index("--engine") + 1] for command, _ in calls]
    assert engines == ["dodona-v2", "vllm", "vllm", "dodona-v2"]
    assert [path for _, path in calls] == ["src", "/opt/vllm:src", "/opt/vllm:src", "src"]
    assert all("--model" in command for command, _ in calls)
    assert ["async_scheduling=true" in command for command, _ in calls] == [False, True, True, False]
    assert len(list(tmp_path.glob("*.json"))) == 4
    assert "| bs1 | output tok/s |" in capsys.readouterr().out


def test_side_by_side_with_few_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two runs of B are one process's, and count as two."""
    repeats: list[tuple[str, str]] = []

    class Finished:
        returncode = 0

    def run(command: list[str], *, env: dict[str, str], check: bool) -> Finished:
        engine, repeat = (command[command.index(name) + 1] for name in ("--engine", "--repeat"))
        repeats.append((engine, repeat))
        runs = [{"seconds": 2.0 + i} for i in range(int(repeat))]
        results.write(
            Path(command[command.index("--json") + 1]),
            results.THROUGHPUT,
            [a_record(engine=engine, runs=runs)],
        )
        return Finished()

    tables: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = []
    monkeypatch.setattr(side_by_side.subprocess, "run", run)
    monkeypatch.setattr(side_by_side, "table", lambda name_a, name_b, a, b: tables.append((a, b)) or "")
    arguments = ["--a", "dodona-v1", "--b", "vllm", "--few-starts", "--json-dir", str(tmp_path)]
    assert side_by_side.main([*arguments, "--", "--model", "tiny", "--workload", "bs1"]) == 0
    assert repeats == [("dodona-v1", "1"), ("vllm", "2"), ("dodona-v1", "1")]
    ((ours, theirs),) = tables
    output = a_record()["workload"]["output_tokens"]
    assert [record["output_tokens_per_s"] for record in theirs] == [output / 2.0, output / 3.0]
    assert [record["seconds"] for record in ours] == [2.0, 2.0]


def test_processes_that_stay_alive_take_turns(tmp_path: Path) -> None:
    """A workload at a time: both warm up, A B B A, and both stream where it is streamed."""
    log = tmp_path / "log"
    program = (
        "import sys; from benchmarks.turns import wait_for_turn\n"
        "for _ in range(int(sys.argv[2])):\n"
        "    wait_for_turn(); open(sys.argv[3], 'a').write(sys.argv[1])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}

    def play(turns: int, *, sides: str = "ab", hangs: str = "", patience: float | None = None) -> bool:
        log.write_text("")
        commands = {
            side: [
                *(sys.executable, "-c"),
                "import time; time.sleep(600)" if side in hangs else program,
                *(side, str(turns), str(log)),
            ]
            for side in sides
        }
        return alternate(commands, dict.fromkeys(sides, environment), [False, True], patience=patience)

    assert play(7)
    assert log.read_text() == "ababba" + "ababba" + "ab"
    assert not play(5)  # they end before their turns
    assert not play(7, sides="axb", hangs="x", patience=3.0)  # the others run without the one that hangs
    assert log.read_text() == "ababba" + "ababba" + "ab"


def test_tensor_parallel_sizes_beside_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each engine has its GPUs and its ranks' share of the KV cache; ratios are of means."""
    seen: dict[str, tuple[Sequence[str], Mapping[str, str]]] = {}

    def play(
        commands: Mapping[str, Sequence[str]],
        environments: Mapping[str, Mapping[str, str]],
        streamed: Sequence[bool],
        *,
        patience: float | None,
    ) -> bool:
        assert (list(streamed), patience) == ([True], 5.0)
        for (side, command), seconds in zip(commands.items(), (4.0, 2.0, 1.0, 3.0), strict=True):
            seen[side] = command, environments[side]
            runs = [{"seconds": seconds}, {"seconds": seconds}]
            path = Path(command[command.index("--json") + 1])
            results.write(path, results.THROUGHPUT, [a_record(runs=runs)])
        return True

    monkeypatch.setattr(tensor_parallel, "alternate", play)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.setenv("PYTHONPATH", "src")
    arguments = ["--vllm", "/opt/vllm", "--json-dir", str(tmp_path), "--kv-tokens", "1000", "--patience", "5"]
    assert tensor_parallel.main([*arguments, "--", "--model", "qwen3-8b", "--workload", "bs1"]) == 0
    devices = {side: environment["CUDA_VISIBLE_DEVICES"] for side, (_, environment) in seen.items()}
    assert devices == {"tp1": "7", "tp2": "4,5", "tp4": "4,5,6,7", "vllm-tp2": "4,5"}
    paths = {side: environment["PYTHONPATH"] for side, (_, environment) in seen.items()}
    assert paths == {"tp1": "src", "tp2": "src", "tp4": "src", "vllm-tp2": "/opt/vllm:src"}
    assert "kv_cache_memory_bytes=36864000" in seen["tp4"][0]  # 36 layers, 8 heads of 128, over 4 ranks
    printed = capsys.readouterr().out
    tokens = a_record()["workload"]["output_tokens"]
    assert (
        f"| bs1 | tp2 | {tokens / 2:,.0f} | {tokens / 2:,.0f}, {tokens / 2:,.0f} | 2.000 | 1.500 |" in printed
    )


def test_every_run_waits_for_its_turn() -> None:
    turns: list[int] = []
    workload = make_workload("bs1", vocab_size=211).smaller(1, 100)
    throughput.measure(
        InstantEngine(), workload, HEAD, repeat=2, streamed=True, rates=RATES, turn=lambda: turns.append(1)
    )
    assert len(turns) == 4
