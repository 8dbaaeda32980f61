"""Which part of a model's KV a rank has, from the layers and heads that it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from dodona.oracle.errors import UnsupportedConfiguration
from dodona.runners.distributed.mesh import Mesh
from dodona.runners.interface import KVPart, LayerKVSpec
from dodona.runners.v1.tensor_parallel import LinearShare

_KEY_PROJECTIONS = ("k_proj", "kv_b_proj", "query_key_value")
"""Names of linear layers whose outputs are the heads of the keys."""


def kv_part(
    layers: Sequence[LayerKVSpec], shares: Mapping[str, LinearShare], mesh: Mesh, device: torch.device
) -> KVPart:
    """The part of a rank that holds `layers`; `shares` are those of its linear layers by name.

    All ranks of a pipeline call it together; `device`: where they exchange tensors. Raises
    UnsupportedConfiguration where layers are split in different ways.
    """
    split = {share for name, share in shares.items() if name.rpartition(".")[2] in _KEY_PROJECTIONS}
    if len(split) > 1:
        raise UnsupportedConfiguration.lacking(
            "v1", "tensor-parallel-families", why="layers share heads differently"
        )
    parts, index = next(((share.parts, share.index) for share in split), (1, 0))
    held = [replace(layer, num_kv_heads=layer.num_kv_heads * parts) for layer in layers]
    stages = _of_stages(held, mesh, device)
    ranks_alike = mesh.tensor.size // parts
    return KVPart(
        layers=tuple(layer for stage in stages for layer in stage),
        first_layer=sum(len(stage) for stage in stages[: mesh.pipeline.rank]),
        num_layers=len(held),
        head_share=index,
        head_shares=parts,
        is_writer=mesh.context.rank == 0 and mesh.tensor.rank % ranks_alike == 0,
    )


def _of_stages(layers: list[LayerKVSpec], mesh: Mesh, device: torch.device) -> list[list[LayerKVSpec]]:
    """The layers of every pipeline stage."""
    if mesh.pipeline.size == 1:
        return [layers]
    sizes = [(layer.num_kv_heads, layer.head_size_k, layer.head_size_v) for layer in layers]
    counts = mesh.pipeline.all_gather(torch.tensor([len(sizes)], device=device))
    table = torch.zeros(max(int(count) for count in counts), 3, dtype=torch.int64)
    table[: len(sizes)] = torch.tensor(sizes, dtype=torch.int64).view(-1, 3)
    gathered = mesh.pipeline.all_gather(table.to(device))
    return [
        [LayerKVSpec(*row) for row in rows[: int(count)].tolist()]
        for rows, count in zip(gathered, counts, strict=True)
    ]
