"""The kernels at the shapes of real models: inputs, least bytes and operations, and torch's equivalent.

Each function yields `Case`s. Bytes count every input read once and every output written once; scratch memory
is not counted. Operations are those of matrix products (2 per multiply-add).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from benchmarks.roofline import Shape
from dodona.kernels.attention.arguments import AttentionShape, NewTokens, PagedSequences, QKNorm
from dodona.kernels.attention.decode import paged_decode_attention, paged_decode_attention_reference
from dodona.kernels.attention.decode_plan import plan_decode_attention
from dodona.kernels.attention.prefill import paged_prefill_attention, paged_prefill_attention_reference
from dodona.kernels.attention.rotary import qk_norm_rope_kv_write, qk_norm_rope_kv_write_reference
from dodona.kernels.attention.stream import supports_streams
from dodona.kernels.linear.activation import silu_and_mul, silu_and_mul_reference
from dodona.kernels.linear.rms_norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference

Call = Callable[[], object]
EPS = 1e-6
BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Inputs:
    """One set of inputs, bound to what is timed."""

    kernel: Call
    torch: Call | None
    """torch's equivalent over inputs of the same size; None where there is none."""
    verify: Callable[[], Sequence[tuple[torch.Tensor, torch.Tensor]]] | None
    """Results and references, for tiny shapes; called before the others, once."""


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel at one shape."""

    kernel: str
    name: str
    num_bytes: int
    flops: int
    make: Callable[[], Inputs]
    """Fresh inputs; called several times, so that timed calls rotate through more than the L2 cache."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Where inputs are made."""

    device: torch.device
    dtype: torch.dtype
    num_multiprocessors: int

    def random(self, *shape: int) -> torch.Tensor:
        """Normally distributed."""
        return torch.randn(shape, dtype=self.dtype, device=self.device)

    def ints(self, values: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """int32 on the device."""
        return torch.as_tensor(values, dtype=torch.int32).to(self.device)


def elementwise_cases(scene: Scene, label: str, shape: Shape, tokens: Sequence[int]) -> Iterator[Case]:
    """Norms, SiLU·mul, and QK-norm with RoPE and KV write."""
    hidden, size = shape.hidden_size, shape.intermediate_size
    item = scene.dtype.itemsize
    for count in tokens:

        def make_norm(count: int = count) -> Inputs:
            x, weight = scene.random(count, hidden), scene.random(hidden)
            return Inputs(
                lambda: rms_norm(x=x, weight=weight, eps=EPS),
                lambda: functional.rms_norm(x, (hidden,), weight, EPS),
                lambda: [(rms_norm(x=x, weight=weight, eps=EPS), rms_norm_reference(x, weight, EPS))],
            )

        def make_add_norm(count: int = count) -> Inputs:
            x, residual, weight = (
                scene.random(count, hidden),
                scene.random(count, hidden),
                scene.random(hidden),
            )

            def verify() -> Sequence[tuple[torch.Tensor, torch.Tensor]]:
                expected = add_rms_norm_reference(x, residual, weight, EPS)
                return [
                    (add_rms_norm(x=x, residual=residual, weight=weight, eps=EPS), expected[0]),
                    (residual, expected[1]),
                ]

            return Inputs(
                lambda: add_rms_norm(x=x, residual=residual, weight=weight, eps=EPS),
                lambda: functional.rms_norm(residual.add_(x), (hidden,), weight, EPS),
                verify,
            )

        def make_silu(count: int = count) -> Inputs:
            gate_up = scene.random(count, 2 * size)
            gate, up = gate_up.chunk(2, dim=-1)
            return Inputs(
                lambda: silu_and_mul(gate_up=gate_up),
                lambda: functional.silu(gate) * up,
                lambda: [(silu_and_mul(gate_up=gate_up), silu_and_mul_reference(gate_up))],
            )

        name = f"{label} {count} tokens"
        yield Case("rms_norm", name, 2 * count * hidden * item, 0, make_norm)
        yield Case("add_rms_norm", name, 4 * count * hidden * item, 0, make_add_norm)
        yield Case("silu_and_mul", name, 3 * count * size * item, 0, make_silu)
        yield _rotary_case(scene, name, shape, count)


def _rotary_case(scene: Scene, name: str, shape: Shape, count: int) -> Case:
    q_heads, kv_heads, dim = shape.num_q_heads, shape.num_kv_heads, shape.head_size
    blocks = -(-count // BLOCK_SIZE)

    def make() -> Inputs:
        qkv = scene.random(count, (q_heads + 2 * kv_heads) * dim)
        norm = QKNorm(scene.random(dim), scene.random(dim), EPS)
        positions = scene.ints(torch.arange(count))
        slots = scene.ints(torch.randperm(blocks * BLOCK_SIZE)[:count])
        angles = torch.rand(count, dim // 2, device=scene.device) * 6
        cos_sin = torch.cat([angles.cos(), angles.sin()], dim=-1)
        new = NewTokens(positions, slots, cos_sin)
        kv_cache = torch.zeros((blocks, 2, kv_heads, BLOCK_SIZE, dim), dtype=scene.dtype, device=scene.device)
        block, offset = slots.long() // BLOCK_SIZE, slots.long() % BLOCK_SIZE

        def kernel() -> torch.Tensor:
            return qk_norm_rope_kv_write(
                qkv=qkv, tokens=new, norm=norm, kv_cache=kv_cache, shape=attention_shape(shape)
            )

        def in_torch() -> None:
            heads = qkv.view(count, -1, dim)
            q, k, v = heads.split([q_heads, kv_heads, kv_heads], dim=1)
            cos, sin = cos_sin[positions].to(scene.dtype).unsqueeze(1).chunk(2, dim=-1)
            rotated = []
            for x, weight in ((q, norm.q_weight), (k, norm.k_weight)):
                first, second = functional.rms_norm(x, (dim,), weight, EPS).chunk(2, dim=-1)
                rotated.append(torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1))
            q.copy_(rotated[0])
            kv_cache[block, 0, :, offset] = rotated[1]
            kv_cache[block, 1, :, offset] = v

        def verify() -> Sequence[tuple[torch.Tensor, torch.Tensor]]:
            expected = qk_norm_rope_kv_write_reference(
                qkv.clone(), new, norm, kv_cache, attention_shape(shape)
            )
            return [(kernel(), expected[0]), (kv_cache, expected[1])]

        return Inputs(kernel, in_torch, verify)

    moved = (q_heads + 2 * kv_heads) * dim * 2 * scene.dtype.itemsize + dim * 4
    return Case("qk_norm_rope_kv_write", name, count * moved, 0, make)


def decode_attention_cases(
    scene: Scene, label: str, shape: Shape, grid: Sequence[tuple[int, int]]
) -> Iterator[Case]:
    """One query per sequence over pages; grid: (batch, context)."""
    q_heads, kv_heads, dim = shape.num_q_heads, shape.num_kv_heads, shape.head_size
    for batch, context in grid:

        def make(batch: int = batch, context: int = context) -> Inputs:
            pages = Pages(scene, batch, context, kv_heads, dim)
            q = scene.random(batch, q_heads, dim)
            plan = plan_decode_attention(
                sequences=pages.sequences,
                shape=attention_shape(shape),
                row_bytes=dim * scene.dtype.itemsize,
                includes_new_key=True,
                num_multiprocessors=scene.num_multiprocessors,
                can_stream=supports_streams(device=scene.device, dtype=scene.dtype, head_size=dim),
            )
            # torch gets the same memory as if it were contiguous per sequence: the best it could have.
            k, v = pages.contiguous()
            query = q[:, :, None]

            def kernel() -> torch.Tensor:
                return paged_decode_attention(
                    q=q, kv_cache=pages.kv_cache, sequences=pages.sequences, shape=attention_shape(shape),
                    plan=plan,
                )  # fmt: skip

            return Inputs(
                kernel,
                lambda: functional.scaled_dot_product_attention(query, k, v, enable_gqa=True),
                lambda: [
                    (
                        kernel(),
                        paged_decode_attention_reference(
                            q, pages.kv_cache, pages.sequences, attention_shape(shape)
                        ),
                    )
                ],
            )

        item = scene.dtype.itemsize
        moved = batch * (2 * context * kv_heads + 2 * q_heads) * dim * item
        flops = 4 * batch * context * q_heads * dim
        yield Case("paged_decode_attention", f"{label} batch {batch} context {context}", moved, flops, make)


def prefill_attention_cases(
    scene: Scene, label: str, shape: Shape, grid: Sequence[tuple[int, int]]
) -> Iterator[Case]:
    """Whole prompts over their own pages; grid: (prompts, tokens of each)."""
    q_heads, kv_heads, dim = shape.num_q_heads, shape.num_kv_heads, shape.head_size
    for batch, length in grid:

        def make(batch: int = batch, length: int = length) -> Inputs:
            pages = Pages(scene, batch, length, kv_heads, dim)
            q = scene.random(batch * length, q_heads, dim)
            starts = scene.ints([i * length for i in range(batch + 1)])
            k, v = pages.contiguous()
            query = q.view(batch, length, q_heads, dim).transpose(1, 2)

            def kernel() -> torch.Tensor:
                return paged_prefill_attention(
                    q=q, kv_cache=pages.kv_cache, sequences=pages.sequences, query_start=starts,
                    max_query_len=length, shape=attention_shape(shape),
                )  # fmt: skip

            return Inputs(
                kernel,
                lambda: functional.scaled_dot_product_attention(query, k, v, is_causal=True, enable_gqa=True),
                lambda: [
                    (
                        kernel(),
                        paged_prefill_attention_reference(
                            q, pages.kv_cache, pages.sequences, starts, attention_shape(shape)
                        ),
                    )
                ],
            )

        moved = batch * length * (2 * kv_heads + 2 * q_heads) * dim * scene.dtype.itemsize
        flops = 4 * batch * (length * (length + 1) // 2) * q_heads * dim
        yield Case("paged_prefill_attention", f"{label} {batch} × {length} tokens", moved, flops, make)


def linear_cases(scene: Scene, label: str, shape: Shape, tokens: Sequence[int]) -> Iterator[Case]:
    """The matrix products, as torch does them: no kernels of ours, but most of a small batch's time."""
    q, kv = shape.num_q_heads * shape.head_size, shape.num_kv_heads * shape.head_size
    hidden, size = shape.hidden_size, shape.intermediate_size
    sizes = {
        "qkv": (q + 2 * kv, hidden),
        "o": (hidden, q),
        "gate_up": (2 * size, hidden),
        "down": (hidden, size),
        "lm_head": (shape.vocab_size, hidden),
    }
    for count in tokens:
        for part, (rows, columns) in sizes.items():

            def make(count: int = count, rows: int = rows, columns: int = columns) -> Inputs:
                x, weight = scene.random(count, columns), scene.random(rows, columns)
                return Inputs(lambda: functional.linear(x, weight), None, None)

            moved = (rows * columns + count * (rows + columns)) * scene.dtype.itemsize
            name = f"{label} {part} {count} tokens"
            yield Case("torch linear", name, moved, 2 * count * rows * columns, make)


def attention_shape(shape: Shape) -> AttentionShape:
    """The attention of a model of that shape, without a window."""
    return AttentionShape(shape.num_q_heads, shape.num_kv_heads, shape.head_size, scale=shape.head_size**-0.5)


class Pages:
    """Keys and values of `batch` sequences in blocks whose order is random, as after some time of service."""

    def __init__(self, scene: Scene, batch: int, context: int, kv_heads: int, dim: int) -> None:
        each = -(-context // BLOCK_SIZE)
        self.kv_cache = scene.random(batch * each, 2, kv_heads, BLOCK_SIZE, dim)
        self.sequences = PagedSequences(
            block_table=scene.ints(torch.randperm(batch * each).view(batch, each)),
            rows=scene.ints(torch.arange(batch)),
            seq_lens=scene.ints([context] * batch),
        )
        self._shape = (batch, kv_heads, context, dim)

    def contiguous(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [batch, kv heads, context, dim] over the same memory; other values."""
        batch, kv_heads, context, dim = self._shape
        count = batch * kv_heads * context * dim
        flat = self.kv_cache.view(-1)
        half = flat.numel() // 2
        return flat[:count].view(self._shape), flat[half : half + count].view(self._shape)
