"""Every kernel compiles for sm_90 as its wrapper launches it, on a machine without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(p.stem for p in (Path(__file__).parent / "sm90").glob("*.py") if p.stem != "compile_only")
PARTS = {"small_batch": 8, "model": 3, "quantized": 4}
"""Modules whose cases take minutes to compile, in parts that run in parallel; others are in one part."""
H200_SHARED_MEMORY = 232_448  # bytes a block may have


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "part"),
    [(module, f"{i}/{PARTS.get(module, 1)}") for module in MODULES for i in range(PARTS.get(module, 1))],
)
def test_kernels_compile_for_sm90(module: str, part: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT / "src"), str(ROOT), environment.get("PYTHONPATH", "")]
    )
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.sm90.compile_only", module, "--part", part],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    reports = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert reports, f"tests/kernels/sm90/{module}.py has no cases"
    for report in reports:
        assert report["error"] is None, f"{report['case']}:\n{report['error']}"
        assert report["kernels"], f"{report['case']} launched no kernel"
        for kernel in report["kernels"]:
            assert kernel["target"].startswith("sm_90")
            assert kernel["cubin_bytes"] > 0
            assert kernel["shared"] <= H200_SHARED_MEMORY, kernel
