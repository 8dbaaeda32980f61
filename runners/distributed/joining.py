"""How a worker joins the other ranks of its engine, by torch.distributed, and leaves them."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist

from dodona.runners.distributed.mesh import Alone, Group, Mesh
from dodona.runners.distributed.messages import Start
from dodona.runners.distributed.ranks import RankSizes

ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
}
"""Nothing listens beyond this machine, unless what starts workers on several machines has said otherwise.
NVLink's multicast is left alone: not every machine grants it."""


class ProcessGroup:
    """A group of processes, by torch.distributed."""

    def __init__(self, ranks: Sequence[int], handle: dist.ProcessGroup) -> None:
        self._ranks = tuple(ranks)
        self._handle = handle
        self.rank = self._ranks.index(dist.get_rank())
        self.size = len(self._ranks)

    @property
    def handle(self) -> dist.ProcessGroup:
        """torch's own group."""
        return self._handle

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place."""
        dist.all_reduce(tensor, group=self._handle)
        return tensor

    def all_gather(self, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        """Every rank's tensor."""
        gathered = tensor.new_empty(self.size, *tensor.shape)
        if tensor.is_cuda:  # not by a list, which NCCL would have to be copied from
            dist.all_gather_into_tensor(gathered, tensor.contiguous(), group=self._handle)
        else:
            dist.all_gather(list(gathered), tensor.contiguous(), group=self._handle)
        return list(gathered)

    def send(self, tensor: torch.Tensor, to: int) -> None:
        """Hand the tensor to the group's rank `to`."""
        dist.send(tensor.contiguous(), dst=self._ranks[to], group=self._handle)

    def receive(self, tensor: torch.Tensor, source: int) -> torch.Tensor:
        """Fill the tensor with what the group's rank `source` sent."""
        dist.recv(tensor, src=self._ranks[source], group=self._handle)
        return tensor


def join(start: Start) -> Mesh:
    """Find the other ranks: by NCCL where they are on GPUs, else by gloo. Returns this rank's place."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    cuda, world = start.limits.device == "cuda", start.sizes.world
    store = open_store(start.store, world, timedelta(seconds=start.start_timeout_s))
    # The group's own limit is that of a step, in which ranks that import faster must not wait for others.
    here = [f"rank-{rank}-is-here" for rank in range(world)]
    store.set(here[start.rank], "")
    store.wait(here, timedelta(seconds=start.start_timeout_s))
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=store,
        rank=start.rank,
        world_size=world,
        timeout=timedelta(seconds=start.timeout_s),
        device_id=torch.device("cuda", start.device_index) if cuda else None,
    )
    return process_mesh(start.sizes)


@contextlib.contextmanager
def store_at(host: str) -> Iterator[str]:
    """A store by which ranks on several machines find each other, at an address of this one: tcp://HOST:PORT,
    within the context."""
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = listener.getsockname()[1]
    store = dist.TCPStore(  # type: ignore[attr-defined]
        host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    try:
        yield f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
    finally:
        del store  # it ends with its last user


def open_store(address: str, world: int, limit: timedelta) -> Any:
    """torch's store of `world` ranks, at `worker_handle.Launched.store`. limit: longest wait for a key."""
    if not address.startswith("tcp://"):
        return dist.FileStore(address, world)  # type: ignore[attr-defined]
    parts = urlsplit(address)
    assert parts.hostname is not None
    assert parts.port is not None
    return dist.TCPStore(  # type: ignore[attr-defined]
        parts.hostname, parts.port, world, is_master=False, timeout=limit
    )


def leave() -> None:
    """Leave the other ranks, where this process joined them."""
    if dist.is_initialized():
        dist.destroy_process_group()


def process_mesh(sizes: RankSizes) -> Mesh:
    """This process's place, where torch.distributed is initialised with `sizes.world` ranks."""
    return Mesh(
        dist.get_rank(),
        sizes.world,
        tensor=_group(sizes.tensor_groups()),
        context=_group(sizes.context_groups()),
        pipeline=_group(sizes.pipeline_groups()),
    )


def _group(groups: Sequence[tuple[int, ...]]) -> Group:
    """The group, of `groups`, that this process is in; all processes make all groups, as torch asks."""
    if len(groups[0]) == 1:
        return Alone()
    handles = [dist.new_group(list(ranks)) for ranks in groups]
    for ranks, handle in zip(groups, handles, strict=True):
        if dist.get_rank() in ranks:
            return ProcessGroup(ranks, handle)
    raise RuntimeError(f"rank {dist.get_rank()} is in none of {groups}")
