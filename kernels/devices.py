"""What kinds of GPUs kernels are written for."""

from __future__ import annotations

import functools

import torch


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Whether `device` has compute capability 9.x."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


@functools.cache
def count_multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 of any other device."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


SHARED_MEMORY = 98_304
"""Bytes of shared memory that a block has on every GPU from compute capability 8.0 on."""


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Most bytes of shared memory that a block may have."""
    if device.type != "cuda":
        return SHARED_MEMORY
    return int(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)
