"""Compiles kernels for sm_90 on a machine without a GPU, exactly as their wrappers launch them.

Run as a program (`python -m tests.kernels.sm90.compile_only [MODULE ...] [--part I/N]`), without
TRITON_INTERPRET: it calls every case in the modules of this folder (of each module the I-th, then every N-th,
counted from 0) with launches replaced by `triton.compile`, and prints one JSON line per case.
It is a program of its own because a process has either interpreted kernels or compilable ones.

A case module holds `CASES: dict[str, Callable[[], None]]`; a case calls wrappers with CPU tensors.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import os
import pkgutil
import sys
import traceback
from collections.abc import Iterator
from typing import Any

TORCH_TO_TRITON = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "int64": "i64",
    "int32": "i32",
    "int16": "i16",
    "int8": "i8",
    "uint8": "u8",
    "bool": "i1",
    "float8_e4m3fn": "fp8e4nv",
}
LAUNCH_OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg", "launch_pdl")


def _dtype_name(tensor: Any) -> str:
    return TORCH_TO_TRITON[str(tensor.dtype).removeprefix("torch.")]


def _argument_type(value: Any) -> str:
    if hasattr(value, "data_ptr"):
        return "*" + _dtype_name(value)
    if hasattr(value, "block_shape"):
        return f"tensordesc<{_dtype_name(value.base)}{value.block_shape},{value.layout!r}>"
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    raise TypeError(f"a kernel got an argument of type {type(value).__name__}")


def compile_launch(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compile one launch of a `triton.jit` or `gluon.jit` function for sm_90."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    options = {k: kwargs.pop(k) for k in LAUNCH_OPTIONS if k in kwargs}
    bound = kernel.signature.bind(*args, **kwargs)
    bound.apply_defaults()
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for index, (parameter, (name, value)) in enumerate(
        zip(kernel.params, bound.arguments.items(), strict=True)
    ):
        if parameter.is_constexpr or value is None:
            signature[name] = "constexpr"
            constants[name] = value
            continue
        signature[name] = _argument_type(value)
        aligned = hasattr(value, "data_ptr") or (type(value) is int and value % 16 == 0)
        if aligned and not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source_type = GluonASTSource if kernel.is_gluon() else ASTSource
    source = source_type(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


@contextlib.contextmanager
def launches_compile() -> Iterator[list[tuple[str, Any]]]:
    """Within it, launching a kernel compiles it; yields the list of (kernel name, compiled kernel)."""
    from triton.runtime.jit import JITFunction

    compiled: list[tuple[str, Any]] = []

    def getitem(self: Any, grid: Any) -> Any:
        def launch(*args: Any, **kwargs: Any) -> Any:
            kernel = compile_launch(self, args, kwargs)
            compiled.append((self.__name__, kernel))
            return kernel

        return launch

    original = JITFunction.__getitem__
    JITFunction.__getitem__ = getitem  # type: ignore[method-assign]
    try:
        yield compiled
    finally:
        JITFunction.__getitem__ = original  # type: ignore[method-assign]


def main() -> int:
    assert os.environ.get("TRITON_INTERPRET", "0") != "1", (
        "unset TRITON_INTERPRET: interpreted kernels don't compile"
    )
    # As on an sm_90 GPU, whatever device the tensors are on; kernels' modules import it later, by name.
    dependent_launch = importlib.import_module("dodona.kernels.dependent_launch")
    dependent_launch.supports_dependent_launch = lambda device: True  # type: ignore[attr-defined]
    package = importlib.import_module("tests.kernels.sm90")
    parser = argparse.ArgumentParser()
    parser.add_argument("modules", nargs="*")
    parser.add_argument("--part", default="0/1")
    options = parser.parse_args()
    chosen = set(options.modules)
    first, step = map(int, options.part.split("/"))
    for info in pkgutil.iter_modules(package.__path__):
        if info.name == "compile_only" or (chosen and info.name not in chosen):
            continue
        module = importlib.import_module(f"tests.kernels.sm90.{info.name}")
        for name, case in itertools.islice(module.CASES.items(), first, None, step):
            report: dict[str, Any] = {"module": info.name, "case": name, "kernels": [], "error": None}
            with launches_compile() as compiled:
                try:
                    case()
                except Exception:
                    report["error"] = traceback.format_exc()
            for kernel_name, kernel in compiled:
                ptx = kernel.asm["ptx"]
                report["kernels"].append(
                    {
                        "name": kernel_name,
                        "target": next(
                            line.split()[1] for line in ptx.splitlines() if line.startswith(".target")
                        ),
                        "shared": kernel.metadata.shared,
                        "cubin_bytes": len(kernel.asm["cubin"]),
                    }
                )
            print(json.dumps(report), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
