"""Small numbers of quantized weights as float16, exactly, in registers of Gluon's kernels.

E4M3 by the GPU's conversion; 4 and 8 bits by a mask and the exponent of 1024, from which 1024 and the zero
point are taken away at once.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def halves_of_nibbles(words, first_zero):
    """Eight float16 of each word, less their zero point; `first_zero`: pairs of float16, 1024 + zero."""
    return gl.inline_asm_elementwise(
        """{ .reg .b32 a, b, c, d, s, k, z, m;
        mov.b32 k, 0x2C002C00; mov.b32 m, 0x63806380;
        shr.u32 s, $4, 8;
        lop3.b32 a, $4, 0x000F000F, 0x64006400, 0xEA;
        lop3.b32 b, $4, 0x00F000F0, 0x64006400, 0xEA;
        lop3.b32 c, s, 0x000F000F, 0x64006400, 0xEA;
        lop3.b32 d, s, 0x00F000F0, 0x64006400, 0xEA;
        sub.f16x2 z, m, $12;
        sub.f16x2 $0, a, $12;
        fma.rn.f16x2 $1, b, k, z;
        sub.f16x2 $2, c, $12;
        fma.rn.f16x2 $3, d, k, z; }""",
        "=r,=r,=r,=r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r",
        [words, first_zero],
        dtype=gl.float16,
        is_pure=True,
        pack=8,
    )


@gluon.jit
def halves_of_bytes(words):
    """Four float16 of each word of four signed bytes."""
    return gl.inline_asm_elementwise(
        """{ .reg .b32 t, a, b, m, z;
        mov.b32 m, 0x64646464; mov.b32 z, 0x64806480;
        xor.b32 t, $2, 0x80808080;
        prmt.b32 a, t, m, 0x4140;
        prmt.b32 b, t, m, 0x4342;
        sub.f16x2 $0, a, z;
        sub.f16x2 $1, b, z; }""",
        "=r,=r,r,r,r,r",
        [words],
        dtype=gl.float16,
        is_pure=True,
        pack=4,
    )


@gluon.jit
def halves_of_e4m3(words):
    """Four float16 of each word of four E4M3 numbers."""
    return gl.inline_asm_elementwise(
        """{ .reg .b16 l, h;
        mov.b32 {l, h}, $2;
        cvt.rn.f16x2.e4m3x2 $0, l;
        cvt.rn.f16x2.e4m3x2 $1, h; }""",
        "=r,=r,r,r,r,r",
        [words],
        dtype=gl.float16,
        is_pure=True,
        pack=4,
    )


@gluon.jit
def products_of_halves(halves, factor):
    """`halves * factor` in float16, two at a time; `factor` is broadcast, and the same for both."""
    return gl.inline_asm_elementwise(
        "mul.rn.f16x2 $0, $1, $2;", "=r,r,r", [halves, factor], dtype=gl.float16, is_pure=True, pack=2
    )
