"""The input of an EAGLE3 head's first layer: the norms of a token's embedding and of its features, side by
side."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dodona.kernels.dependent_launch import (
    launch_options,
    let_next_start,
    supports_dependent_launch,
    wait_for_inputs,
)
from dodona.kernels.linear.rms_norm import rms_norm_reference


@triton.jit
def _joined_norms_kernel(
    token_ids,
    embedding,
    features,
    embedding_norm,
    features_norm,
    out,
    eps,
    SIZE: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    of_features = tl.program_id(1) == 1
    columns = tl.arange(0, BLOCK)
    mask = columns < SIZE
    if of_features:
        w = tl.load(features_norm + columns, mask=mask, other=0.0).to(tl.float32)
    else:
        w = tl.load(embedding_norm + columns, mask=mask, other=0.0).to(tl.float32)
    if DEPENDENT:
        let_next_start()
        wait_for_inputs()
    if of_features:
        h = tl.load(features + row * SIZE + columns, mask=mask, other=0.0).to(tl.float32)
    else:
        token = tl.load(token_ids + row).to(tl.int64)
        h = tl.load(embedding + token * SIZE + columns, mask=mask, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(h * h, axis=0) / SIZE + eps)
    target = out + (2 * row + tl.program_id(1)) * SIZE + columns
    tl.store(target, (h * inverse * w).to(out.dtype.element_ty), mask=mask)


def joined_norms(
    *,
    token_ids: Tensor,
    embedding: Tensor,
    features: Tensor,
    embedding_norm: Tensor,
    features_norm: Tensor,
    eps: float,
) -> Tensor:
    """`cat([rms_norm(embedding[token_ids]), rms_norm(features)])`, computed in fp32.

    Args:
        token_ids: [tokens] int32 or int64.
        embedding: [vocab, size], contiguous.
        features: [tokens, size], contiguous, dtype of `embedding`.
        embedding_norm, features_norm: [size]: the norms' weights.
        eps: added to the mean squares.

    Returns:
        [tokens, 2 * size], dtype of `features`.
    """
    tokens, size = features.shape
    out = torch.empty((tokens, 2 * size), dtype=features.dtype, device=features.device)
    dependent = supports_dependent_launch(features.device)
    if tokens:
        _joined_norms_kernel[(tokens, 2)](
            token_ids=token_ids,
            embedding=embedding,
            features=features,
            embedding_norm=embedding_norm,
            features_norm=features_norm,
            out=out,
            eps=eps,
            SIZE=size,
            DEPENDENT=dependent,
            BLOCK=triton.next_power_of_2(size),
            num_warps=4 if size <= 2048 else 8,
            **launch_options(dependent),
        )
    return out


def joined_norms_reference(
    token_ids: Tensor,
    embedding: Tensor,
    features: Tensor,
    embedding_norm: Tensor,
    features_norm: Tensor,
    eps: float,
) -> Tensor:
    """`joined_norms` in torch."""
    embedded = embedding[token_ids.long()]
    normed = (
        rms_norm_reference(embedded, embedding_norm, eps),
        rms_norm_reference(features, features_norm, eps),
    )
    return torch.cat(normed, dim=-1).to(features.dtype)
