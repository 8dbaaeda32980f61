"""A made-up machine for vLLM: eight H100s that answer questions and compute nothing.

`install()` comes before the first import of vLLM. It replaces what vLLM asks of the driver, of torch and of
Triton, and gives vLLM's compiled modules empty stand-ins. None of vLLM's Python is changed, but for what
`after_import` says.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import re
import sys
import types
from pathlib import Path
from typing import Any

CAPABILITY = (9, 0)
DEVICES = 8
MEMORY = 80 << 30
"""Bytes of each device."""
NAME = "NVIDIA H100 80GB HBM3"
CUDA = "13.0"

_TRUE_OPERATORS = (
    "cutlass_scaled_mm_supports_fp8",
    "cutlass_scaled_mm_supports_block_fp8",
    "cutlass_group_gemm_supported",
)
"""Questions to the compiled operators that an H100 answers with yes; the rest are answered with no."""
_FALSE_OPERATORS = ("cutlass_scaled_mm_supports_fp4", "cutlass_sparse_scaled_mm_supported")


def install(*, triton: bool = True) -> None:
    """Make up the machine. triton: whether Triton finds a driver."""
    sys.meta_path.insert(0, _CompiledModules(_compiled_modules()))
    sys.meta_path.insert(0, _Nvml())
    _torch()
    _triton(triton)


def after_import() -> None:
    """Let vLLM look at model classes in its own process: a child process for each costs 15 s."""
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda fn: fn()


def _compiled_modules() -> frozenset[str]:
    files = importlib.metadata.files("vllm") or ()
    return frozenset(
        ".".join((*file.parent.parts, file.name.split(".")[0])) for file in files if file.name.endswith(".so")
    )


class _CompiledModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Empty modules in place of vLLM's compiled ones, which aren't unpacked."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname in self.names:
            return importlib.machinery.ModuleSpec(fullname, self)
        return None

    def create_module(self, spec: Any) -> Any:
        return None

    def exec_module(self, module: Any) -> None:
        if module.__name__ == "vllm.spinloop":
            module.spinloop = None


class _Nvml(importlib.abc.MetaPathFinder):
    """Fills in NVML's answers as soon as vLLM's binding is imported, which may be while vLLM itself is."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != "vllm.third_party.pynvml":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.loader is not None
        run = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            _answer_nvml(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _answer_nvml(nvml: Any) -> None:
    memory = types.SimpleNamespace(total=MEMORY, free=MEMORY, used=0)
    answers: dict[str, Any] = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: DEVICES,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetCudaComputeCapability": lambda handle: CAPABILITY,
        "nvmlDeviceGetName": lambda handle: NAME,
        "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle:08d}",
        "nvmlDeviceGetMemoryInfo": lambda handle, *more: memory,
        "nvmlDeviceGetP2PStatus": lambda *args: 0,
        "nvmlSystemGetDriverVersion": lambda: "580.95.05",
        "nvmlSystemGetCudaDriverVersion": lambda: 13000,
    }
    for name, answer in answers.items():
        setattr(nvml, name, answer)


def _torch() -> None:
    import torch

    properties = types.SimpleNamespace(
        name=NAME,
        major=CAPABILITY[0],
        minor=CAPABILITY[1],
        total_memory=MEMORY,
        multi_processor_count=132,
        warp_size=32,
        shared_memory_per_block_optin=232448,
        L2_cache_size=50 << 20,
        uuid="GPU-00000000",
    )
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: False,
        "device_count": lambda: DEVICES,
        "_device_count_nvml": lambda: DEVICES,
        "_is_compiled": lambda: True,
        "current_device": lambda: 0,
        "get_device_capability": lambda *args: CAPABILITY,
        "get_device_name": lambda *args: NAME,
        "get_device_properties": lambda *args: properties,
        "mem_get_info": lambda *args: (MEMORY, MEMORY),
        "is_bf16_supported": lambda *args, **more: True,
        "get_arch_list": lambda: ["sm_80", "sm_90", "sm_100"],
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch.version.cuda = CUDA
    if hasattr(torch, "accelerator"):
        torch.accelerator.is_available = lambda: True
        torch.accelerator.device_count = lambda: DEVICES
        torch.accelerator.current_accelerator = lambda *args, **more: torch.device("cuda")
        torch.accelerator.get_memory_info = lambda *args: (MEMORY, MEMORY)
    if not hasattr(torch._C, "_cuda_getCurrentRawStream"):
        torch._C._cuda_getCurrentRawStream = lambda device: 0
    for name in _torchvision_operators():
        torch.library.define(f"torchvision::{name}", "(Tensor input) -> Tensor")
    for name in (*_TRUE_OPERATORS, *_FALSE_OPERATORS):
        torch.library.define(f"_C::{name}", "(int capability) -> bool")
    for name in _named_operators() - {*_TRUE_OPERATORS, *_FALSE_OPERATORS}:
        torch.library.define(f"_C::{name}", "(Tensor input) -> Tensor")
    for name in (*_TRUE_OPERATORS, *_FALSE_OPERATORS):
        answer = name in _TRUE_OPERATORS
        torch.library.impl(f"_C::{name}", "default", lambda capability, answer=answer: answer)


def _named_operators() -> set[str]:
    """Operators of vLLM that its Python asks for by name while it is imported, and that a GPU's build has."""
    package = importlib.util.find_spec("vllm")
    if package is None or package.origin is None:
        raise SystemExit(
            "vLLM isn't installed in this environment; environment.py beside this file makes one"
        )
    root = Path(package.origin).parent
    found, asked = {"rotary_embedding"}, set()
    for file in (root / "_custom_ops.py", *(root / "compilation").rglob("*.py")):
        text = file.read_text()
        asked |= set(re.findall(r"hasattr\(\s*torch\.ops\._C,\s*\"(\w+)\"", text))
        if file.name != "_custom_ops.py":
            found |= set(re.findall(r"torch\.ops\._C\.(\w+)", text))
    # what is asked for first may be missing, and its stand-in would need the very schema
    return found - asked


def _torchvision_operators() -> set[str]:
    """Operators that torchvision's Python expects of its compiled part, which needs CUDA's libraries."""
    package = importlib.util.find_spec("torchvision")
    if package is None or package.origin is None:
        return set()
    text = (Path(package.origin).parent / "_meta_registrations.py").read_text()
    return set(re.findall(r"register_(?:meta|fake)\(\"(?:torchvision::)?(\w+)\"", text))


def _triton(found: bool) -> None:
    import triton.backends
    import triton.backends.nvidia.driver as nvidia

    class Utils:
        """Answers of the class that links libcuda."""

        def get_device_properties(self, device: int) -> dict[str, int]:
            return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}

    nvidia.CudaUtils = Utils
    nvidia.CudaDriver.is_active = staticmethod(lambda: found)
    for name, backend in triton.backends.backends.items():
        if name != "nvidia":
            backend.driver.is_active = staticmethod(lambda: False)
