"""Tables and plots of docs/performance.md from files of results."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import report, results
from tests.benchmarks.test_throughput import a_record

ENVIRONMENT = {"gpu": "G", "commit": "abc", "time": "2026-01-01T00:00:00"}
DOCUMENT = """By hand.
<!-- begin: throughput -->
old
<!-- end: throughput -->
Between.
<!-- begin: plots --><!-- end: plots -->
<!-- begin: latency --><!-- end: latency -->
<!-- begin: kernels --><!-- end: kernels -->
<!-- begin: steps --><!-- end: steps -->
The end.
"""


def at(time: str, **changes: Any) -> dict[str, Any]:
    record = a_record(**changes)
    return {**record, "environment": {**record["environment"], "time": time}}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    folder, document = tmp_path / "results", tmp_path / "performance.md"
    newer = at("2026-01-02T00:00:00", output_tokens_per_s=222.0)
    older = at("2026-01-01T00:00:00", output_tokens_per_s=111.0)
    vllm = at("2026-01-01T00:00:00", engine="vllm", versions={"vllm": "0.25.1"}, output_tokens_per_s=99.0)
    results.write(folder / "a" / "2.json", results.THROUGHPUT, [newer])
    results.write(folder / "b.json", results.THROUGHPUT, [older, vllm])
    kernel = {
        "kernel": "rms_norm", "case": "256 tokens", "seconds": 2e-6, "roofline_seconds": 1e-6,
        "bound": "bytes", "share": 0.5, "torch_seconds": None,
    }  # fmt: skip
    results.write(folder / "kernels.json", results.KERNELS, [kernel], environment=ENVIRONMENT)
    step = {
        "engine": "dodona-v2", "model": "m", "sampling": "greedy", "batch": 256, "context": 1024,
        "mean_context": 1100.0, "host_us": {"schedule": 100.0, "update": 50.0, "result": 5000.0},
        "step_us": 6000.0, "tokens_per_s": 1.0,
        "gpu": {
            "busy_us": 5900.0, "idle_us": 60.0,
            "kernels": [{"name": "void at::native::gemm<int>(float*)", "us": 80.0, "launches": 28.0}],
        },
    }  # fmt: skip
    results.write(folder / "step.json", results.STEP, [step], environment=ENVIRONMENT)
    document.write_text(DOCUMENT)
    return folder, document


def run(files: tuple[Path, Path], *more: str) -> int:
    return report.main(["--results", str(files[0]), "--document", str(files[1]), *more])


def test_tables_hold_the_latest_of_each(files: tuple[Path, Path]) -> None:
    assert run(files, "--check") == 1
    assert files[1].read_text() == DOCUMENT
    assert run(files) == 0
    text = files[1].read_text()
    assert text.startswith("By hand.\n")
    assert "Between.\n" in text
    assert text.endswith("The end.\n")
    assert "old" not in text
    assert "| tiny | bs1 | dodona-v2 | 222 out |" in text
    assert "111 out" not in text
    assert "| tiny | bs1 | vllm 0.25.1 | 99 out |" in text
    assert "| rms_norm | 256 tokens | 2.0 | 1.0 (bytes) | 50.0 % | – | abc |" in text
    assert "| m | dodona-v2 | greedy | 256 | 1,100 | 6,000 | 150 | 5,900 | 60 | gemm 80 (28×) | abc |" in text
    assert "![tiny](performance/tiny.svg)" in text
    assert run(files, "--check") == 0


def test_the_plot_is_an_image_with_a_bar_for_each_engine(files: tuple[Path, Path]) -> None:
    run(files)
    root = ElementTree.parse(files[1].parent / "performance" / "tiny.svg").getroot()
    tag = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{tag}rect")) == 3  # the background is one
    assert any("222 tok/s out" in (each.text or "") for each in root.findall(f"{tag}text"))


def test_unknown_parts_are_refused(files: tuple[Path, Path]) -> None:
    files[1].write_text("<!-- begin: speed -->\n<!-- end: speed -->")
    with pytest.raises(ValueError, match="no such part; expected one of throughput"):
        run(files)


def test_the_document_is_up_to_date() -> None:
    assert report.main(["--check"]) == 0, "run python -m benchmarks.report"
