"""What ranks that split layers must have in common, compared before the first request."""

from __future__ import annotations

import torch

from dodona.oracle.errors import ConfigError
from dodona.runners.device.rehearsal import PLAIN, RehearsalStep
from dodona.runners.device.steps import DeviceSteps
from dodona.runners.distributed.mesh import Group

_NAME_BYTES = 256


def check_equal_devices(group: Group, device: torch.device) -> None:
    """Raise ConfigError, on all ranks, unless they have the same kind of device: kernels are chosen by it."""
    if group.size == 1:
        return
    text = _description(device).encode()[:_NAME_BYTES]
    own = torch.zeros(_NAME_BYTES, dtype=torch.uint8)
    own[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    found = [bytes(each.tolist()).rstrip(b"\0").decode() for each in group.all_gather(own.to(device))]
    if len(set(found)) > 1:
        listed = "; ".join(f"rank {rank}: {each}" for rank, each in enumerate(found))
        raise ConfigError(
            f"tensor-parallel ranks have different devices ({listed}); choose equal ones by "
            "CUDA_VISIBLE_DEVICES"
        )


def check_equal_bits(group: Group, steps: DeviceSteps) -> None:
    """Raise ConfigError, on all ranks, unless a step gives the same logits on each of them, bit by bit: each
    draws the next tokens from its own."""
    if group.size == 1:
        return
    vocab_size = steps.model.vocab_size
    step = RehearsalStep([4], kinds=(PLAIN,), token_ids=range(1, vocab_size, max(1, vocab_size // 4)))
    steps.rehearse(step)
    first, *others = group.all_gather(steps.ready.steps.logits(1).view(torch.uint8))
    unlike = [rank for rank, each in enumerate(others, start=1) if not torch.equal(each, first)]
    if unlike:
        raise ConfigError(
            f"tensor-parallel ranks {unlike} compute other logits than rank 0: the sums over ranks, or the "
            "ranks' libraries, are not alike; set tensor_parallel_size to 1"
        )


def _description(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    found = torch.cuda.get_device_properties(device)
    return f"{found.name}, compute capability {found.major}.{found.minor}, {found.multi_processor_count} SMs"
