"""The machine as torch sees it, for the check that a runner makes before it loads a model."""

from __future__ import annotations

import torch

from dodona.oracle.machine.environment import Environment
from dodona.oracle.machine.memory import host_memory
from dodona.oracle.machine.packages import installed_versions
from dodona.oracle.machine.probe import has_package


def torch_environment(device: str) -> Environment:
    """What a runner on `device` ("cpu" or "cuda") has of this machine, whatever the verdict was made for.

    Without a GPU, or for a runner on the CPU, the platform is "cpu". A GPU is not touched for a runner on the
    CPU: asking for its compute capability makes a CUDA context.
    """
    packages, memory = installed_versions(), host_memory()
    if device == "cpu" or not torch.cuda.is_available():
        return Environment(False, "cpu", host_memory=memory, is_here=True, packages=packages)
    major, minor = torch.cuda.get_device_capability()
    sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    return Environment(
        has_triton=has_package("triton"),
        platform="cuda",
        compute_capability=10 * major + minor,
        device_count=len(sizes),
        memory=min(sizes) / (1 << 30),
        host_memory=memory,
        is_here=True,
        packages=packages,
    )
