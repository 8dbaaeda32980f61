"""Which part of a model's KV a rank has, from the layers and heads that it holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from dodona.runners.distributed.mesh import Mesh
from dodona.runners.interface import KVPart, LayerKVSpec
from dodona.runners.v1.served_model import ServedModel


def kv_part(model: ServedModel, kv_parts: Mapping[str, int], mesh: Mesh, device: torch.device) -> KVPart:
    """The part of a rank that holds the model's layers; `kv_parts` as in `tensor_parallel.Shares`.

    All ranks of a pipeline call it together; `device`: where they exchange tensors.
    """
    own = [kv_parts.get(name, 1) for name in model.layer_names]
    held = [
        replace(layer, num_kv_heads=layer.num_kv_heads * parts)
        for layer, parts in zip(model.layers, own, strict=True)
    ]
    stages = _of_stages(held, mesh, device)
    # Each layer's number of parts divides that of ranks. Where it differs, ranks are alike that have the same
    # part of every layer.
    parts = math.lcm(*own)
    ranks_alike = mesh.tensor.size // parts
    return KVPart(
        layers=tuple(layer for stage in stages for layer in stage),
        first_layer=sum(len(stage) for stage in stages[: mesh.pipeline.rank]),
        num_layers=len(held),
        head_share=mesh.tensor.rank // ranks_alike,
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
