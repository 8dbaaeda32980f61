"""The kernel benchmark: its tiny cases agree with the references, and its arithmetic is right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import kernels, results
from benchmarks.kernel_cases import Case, Inputs, Scene, decode_attention_cases, prefill_attention_cases
from benchmarks.roofline import Rates, Shape

pytest.importorskip("triton", reason="Triton exists for Linux only")


def test_tiny_cases_agree_with_their_references(tmp_path: Path) -> None:
    out = tmp_path / "kernels.json"
    assert kernels.main(["--tiny", "--json", str(out)]) == 0
    names = {record["kernel"] for record in results.read(out)["records"]}
    assert names == {
        "paged_decode_attention", "paged_prefill_attention", "rms_norm", "add_rms_norm", "silu_and_mul",
        "qk_norm_rope_kv_write", "torch linear", "gumbel_sample", "filter_cuts", "token_logprobs",
        "prepare_scores", "apply_penalties", "single_token_linear", "small_batch_attention",
        "DeviceSampler.sample", "experts", "route", "selective_scan",
    }  # fmt: skip


def test_only_takes_a_pattern(tmp_path: Path) -> None:
    out = tmp_path / "kernels.json"
    assert kernels.main(["--tiny", "--json", str(out), "--only", "^silu"]) == 0
    assert [record["kernel"] for record in results.read(out)["records"]] == ["silu_and_mul"]


def test_a_wrong_kernel_is_seen() -> None:
    ones = torch.ones(3)
    inputs = Inputs(lambda: ones, None, lambda: [(ones, ones + 1e-2)])
    with pytest.raises(AssertionError, match="wrong one"):
        kernels.check(Case("wrong", "one", 1, 0, lambda: inputs))


def test_bytes_and_operations_by_hand() -> None:
    scene = Scene(torch.device("cpu"), torch.float16, 1)
    shape = Shape(8, 16, 1, 4, 2, 16, 32, None, 2)
    (decode,) = decode_attention_cases(scene, "s", shape, [(3, 10)])
    assert decode.num_bytes == 3 * (2 * 10 * 2 * 16 + 2 * 4 * 16) * 2  # keys and values; query and result
    assert decode.flops == 3 * 10 * 4 * 16 * 4
    (prefill,) = prefill_attention_cases(scene, "s", shape, [(2, 5)])
    assert prefill.flops == 2 * 15 * 4 * 16 * 4


def test_the_larger_time_binds() -> None:
    case = Case("k", "n", 1000, 10, lambda: Inputs(lambda: None, None, None))
    by_bytes = kernels.record(case, 4.0, 8.0, Rates(500.0, 10.0))
    assert (by_bytes["bound"], by_bytes["roofline_seconds"], by_bytes["share"]) == ("bytes", 2.0, 0.5)
    by_flops = kernels.record(case, 4.0, None, Rates(500.0, 2.5))
    assert (by_flops["bound"], by_flops["roofline_seconds"], by_flops["share"]) == ("flops", 4.0, 1.0)


@pytest.mark.gpu
def test_a_timed_case() -> None:
    scene = Scene(torch.device("cuda"), torch.bfloat16, 132)
    (case,) = decode_attention_cases(scene, "s", Shape(8, 16, 1, 16, 8, 128, 32, None, 2), [(4, 1024)])
    own, in_torch = kernels.measure(case, True)
    assert own > 0
    assert in_torch is not None
