"""Attention of rows that verify drafts against the separate steps it replaces."""

from __future__ import annotations

import pytest
import torch

from dodona.kernels.attention.arguments import NewTokens
from dodona.kernels.attention.decode import paged_decode_attention_reference
from dodona.kernels.attention.rotary import qk_norm_rope_kv_write_reference
from dodona.kernels.attention.verify import VERIFY_TILES, VerifyTiles, verify_attention
from tests.kernels.test_attention import make_new_tokens
from tests.kernels.test_small_batch_attention import make_case

ROWS = [[70, 71, 72], [1], [2, 3, 4, 5, 6], list(range(14, 23)), [40]]
"""Tokens of each entry, by row; a block has 16. The last entry is padding."""


@pytest.mark.parametrize(
    ("shape", "norm", "window", "lengths", "tiles"),
    [
        ((1, 1, 32), True, None, ROWS, VerifyTiles(16, 4, 4)),
        ((4, 2, 32), False, 20, ROWS, VerifyTiles(16, 4, 2)),
        ((3, 1, 32), True, 3, ROWS, VerifyTiles(32, 4, 8)),
        ((8, 1, 64), True, 5, ROWS[:3], VerifyTiles(16, 4, 1)),
        ((8, 2, 128), True, None, ROWS[:3], VERIFY_TILES),
        ((8, 2, 128), False, None, [[300, 301, 302, 303, 304], [4]], VERIFY_TILES),
    ],
    ids=str,
)
def test_entries_of_one_row_see_each_other(
    shape, norm, window, lengths, tiles, dtype, device, tolerance, generator
):
    """A row's last token and its drafts, whose keys are in the projection: as if they were written before."""
    counts, seq_lens = [len(own) for own in lengths], [length for own in lengths for length in own]
    case, _, _ = make_case(
        shape, seq_lens, norm, window, dtype, device, generator, padded=[len(seq_lens) - 1]
    )
    sequences = case.pop("sequences")
    offsets = [i for count in counts for i in range(count)]
    lasts = [sum(counts[: i + 1]) - 1 for i, count in enumerate(counts) for _ in range(count)]
    sequences.rows[:-1] = sequences.rows[lasts][:-1]
    tokens = make_new_tokens(sequences, 16, shape[2], 700, device, generator)
    case["tokens"] = NewTokens(tokens.positions, tokens.slots, case["tokens"].cos_sin)
    queries, expected_cache = qk_norm_rope_kv_write_reference(**case)
    expected = paged_decode_attention_reference(queries, expected_cache, sequences, case["shape"])
    arrivals = torch.zeros(len(offsets) * shape[1], dtype=torch.int32, device=device)
    for max_offset in {max(offsets), max(7, max(offsets))} if shape[0] // shape[1] < 8 else {max(offsets)}:
        actual = verify_attention(
            **case,
            sequences=sequences,
            arrivals=arrivals,
            tiles=tiles,
            offsets=torch.tensor(offsets, dtype=torch.int32, device=device),
            max_offset=max_offset,
        )
        torch.testing.assert_close(actual, expected, **tolerance)
        torch.testing.assert_close(case["kv_cache"], expected_cache, equal_nan=True, **tolerance)
        assert not arrivals.any()
        assert (actual[-1] == 0).all()


def test_more_entries_than_it_serves_are_refused(device, generator):
    offsets = torch.tensor([0, 1], dtype=torch.int32, device=device)
    for shape, most in (((8, 1, 32), 8), ((1, 1, 16), 0)):
        case, _, _ = make_case(shape, [3, 4], False, None, torch.float32, device, generator)
        with pytest.raises(ValueError, match=f"max_offset: expected less than {most} .*, got 8"):
            verify_attention(**case, offsets=offsets, max_offset=8)
