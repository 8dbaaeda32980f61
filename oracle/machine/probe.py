"""Looks at the machine without importing torch or triton and without a CUDA context.

NVML is asked first: unlike the CUDA driver, it keeps no state in the process that a later fork would break.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

_CAPABILITY_MAJOR = 75
_CAPABILITY_MINOR = 76


@functools.cache
def has_package(name: str) -> bool:
    """Whether `import name` would find a package; nothing is imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


@functools.cache
def torch_supports_cuda() -> bool:
    """Whether the installed torch was built for CUDA, read from its version file."""
    spec = importlib.util.find_spec("torch") if has_package("torch") else None
    if spec is None or spec.origin is None:
        return False
    try:
        text = (Path(spec.origin).parent / "version.py").read_text()
    except OSError:
        return True
    found = re.search(r"^cuda\b[^=]*=\s*(.+)$", text, re.MULTILINE)
    return found is None or found.group(1).strip() != "None"


@functools.cache
def is_wsl() -> bool:
    """Whether this is Linux inside Windows, told as vLLM tells it: by the kernel's name."""
    return "microsoft" in " ".join(os.uname()).lower()


@functools.cache
def has_entry_points(group: str) -> bool:
    """Whether an installed distribution has entry points in `group`."""
    # importlib.metadata parses the metadata of every distribution, which takes a hundred times as long.
    header = f"[{group}]"
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except OSError:
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                try:
                    with open(os.path.join(folder, name, "entry_points.txt"), encoding="utf-8") as file:
                        if header in file.read():
                            return True
                except (OSError, UnicodeDecodeError):
                    continue
    return False


@functools.cache
def cuda_capabilities(visible: str | None) -> tuple[int, ...]:
    """The compute capability (as 90) of each device that `CUDA_VISIBLE_DEVICES` shows.

    Where it names devices by their ids, which may be abbreviated, the lowest capability of the machine stands
    for each.
    """
    wanted = _visible_devices(visible)
    if wanted == [] or not os.path.exists("/dev/nvidiactl"):
        return ()
    try:
        return _ask_nvml(wanted)
    except OSError:
        pass
    try:
        return _ask_driver()
    except OSError:
        return ()


@functools.cache
def cuda_memory(visible: str | None) -> float | None:
    """GiB of the smallest device that `CUDA_VISIBLE_DEVICES` shows by its number, else of all that there are;
    None where NVML doesn't tell.
    """
    if not os.path.exists("/dev/nvidiactl"):
        return None
    wanted = _visible_devices(visible)
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() != 0:
            return None
        try:
            count = ctypes.c_uint()
            if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
                return None
            numbers = {int(name) for name in wanted or () if name.isdecimal()}
            sizes = [
                _nvml_memory(nvml, index) for index in range(count.value) if index in numbers or not numbers
            ]
        finally:
            nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return None
    mig = any(name.startswith("MIG-") for name in wanted or ())
    return None if mig or not sizes or None in sizes else min(filter(None, sizes)) / (1 << 30)


def _nvml_memory(nvml: ctypes.CDLL, index: int) -> int | None:
    handle, memory = ctypes.c_void_p(), (ctypes.c_ulonglong * 3)()
    if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) != 0:
        return None
    # total, free, used
    return memory[0] if nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0 else None


def _visible_devices(visible: str | None) -> list[str] | None:
    """The devices named, up to the first that can't be one, as CUDA reads it; None means all."""
    if visible is None:
        return None
    devices = []
    for name in visible.split(","):
        name = name.strip()
        if not (name.isdecimal() or name.startswith(("GPU-", "MIG-"))):
            break
        devices.append(name)
    return devices


def _ask_nvml(wanted: list[str] | None) -> tuple[int, ...]:
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    if nvml.nvmlInit_v2() != 0:
        return ()
    try:
        count = ctypes.c_uint()
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0 or count.value == 0:
            return ()
        numbered = wanted is None or all(name.isdecimal() for name in wanted)
        indices = list(range(count.value))
        if wanted is not None and numbered:
            indices = [int(name) for name in wanted if int(name) < count.value]
        found = [c for index in indices if (c := _nvml_capability(nvml, index)) is not None]
        if numbered or not found or wanted is None:
            return tuple(found)
        # Names may be abbreviated, and those of MIG slices are no devices of their own: all devices stand for
        # them.
        return (min(found),) * len(wanted)
    finally:
        nvml.nvmlShutdown()


def _nvml_capability(nvml: ctypes.CDLL, index: int) -> int | None:
    handle, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) != 0:
        return None
    if nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)) != 0:
        return None
    return major.value * 10 + minor.value


def _ask_driver() -> tuple[int, ...]:
    """By the CUDA driver, which reads CUDA_VISIBLE_DEVICES itself; device attributes need no context."""
    cuda = ctypes.CDLL("libcuda.so.1")
    count = ctypes.c_int()
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    found = []
    for ordinal in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        if cuda.cuDeviceGet(ctypes.byref(device), ordinal) != 0:
            continue
        cuda.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device)
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device)
        found.append(major.value * 10 + minor.value)
    return tuple(found)


def uses_ray_cluster(environ: Mapping[str, str]) -> bool:
    """Whether Ray's workers are to run on a cluster, as `Environment.ray_cluster` says it."""
    if environ.get("RAY_ADDRESS") not in (None, "", "local"):
        return True
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
