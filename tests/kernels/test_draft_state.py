"""Kernels of drafting on the device, against loops in Python and torch."""

from __future__ import annotations

import pytest
import torch

from dodona.kernels.linear.joined_norms import joined_norms, joined_norms_reference
from dodona.kernels.sampling.gumbel import gumbel_sample, gumbel_sample_reference
from dodona.kernels.state import draft_state
from dodona.kernels.state.copy_rows import copy_rows

ROWS = [3, -1, 0]
POSITIONS = [7, 0, 21]
LENGTH = 24


def ints(values: list[int] | list[list[int]], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def history(device: torch.device) -> torch.Tensor:
    tokens = torch.arange(4 * LENGTH, dtype=torch.int32, device=device).view(4, LENGTH) + 100
    tokens[3, 8] = -1
    return tokens


def test_ends_of_rows_that_verified(device: torch.device) -> None:
    arguments = {
        "first_samples": ints([0, 3, -1, 4], device),
        "rows": ints([5, 5, 5, 2, 7, 7, -1], device),
        "seq_lens": ints([11, 12, 13, 4, 9, 10, 0], device),
        "num_kept": ints([2, 0, 0, 1, 2, 0, 0], device),
    }
    found = [part.tolist() for part in draft_state.step_ends(**arguments)]
    assert found == [part.tolist() for part in draft_state.step_ends_reference(**arguments)]
    assert found == [[5, 2, -1, 7], [1, 3, 0, 5], [11, 3, 0, 9]]


def test_tokens_that_follow(device: torch.device) -> None:
    for rows in (ints([3, -1, 0, 3, 1], device), ints([2], device).expand(5)):
        positions = ints([2, 0, LENGTH - 1, 7, 0], device)
        arguments = {"rows": rows, "positions": positions, "token_ids": history(device)}
        found = draft_state.following_tokens(**arguments)
        assert found.tolist() == draft_state.following_tokens_reference(**arguments).tolist()


@pytest.mark.parametrize("ahead", [1, 2])
def test_entries_of_drafts(ahead: int, device: torch.device) -> None:
    arguments = {
        "rows": ints(ROWS, device),
        "positions": ints(POSITIONS, device),
        "ahead": ahead,
        "drafts": ints([-1, 99, 6], device),
        "block_table": torch.arange(5, 29, dtype=torch.int32, device=device).view(4, 6),
        "block_size": 4,
    }
    found = draft_state.draft_entries(**arguments)
    expected = draft_state.draft_entries_reference(**arguments)
    assert [part.tolist() for part in found] == [part.tolist() for part in expected]


def test_drafts_go_into_the_history(device: torch.device) -> None:
    drafts = ints([[1, 2, 3], [4, 5, -1], [7, 8, 9]], device)
    for own in (drafts, drafts.t().contiguous().t()):
        tokens = history(device)
        arguments = {"drafts": own, "rows": ints(ROWS, device), "positions": ints(POSITIONS, device)}
        expected = draft_state.append_drafts_reference(**arguments, token_ids=tokens)
        copy = torch.full_like(drafts, -5)
        draft_state.append_drafts(**arguments, token_ids=tokens, out=copy)
        assert tokens.tolist() == expected.tolist()
        assert copy.tolist() == drafts.tolist()
        assert tokens[3, 9:12].tolist() == [1, 2, 3]
        assert tokens[0, 23] == 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_side_by_side(dtype: torch.dtype, device: torch.device) -> None:
    generator = torch.Generator(device=device).manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    arguments = {
        "token_ids": ints([4, 0, 4], device), "embedding": random(5, 24), "features": random(3, 24),
        "embedding_norm": random(24), "features_norm": random(24), "eps": 1e-5,
    }  # fmt: skip
    torch.testing.assert_close(joined_norms(**arguments), joined_norms_reference(**arguments))


def test_noise_belongs_to_tokens_not_to_places(device: torch.device) -> None:
    generator = torch.Generator(device=device).manual_seed(4)
    vocabulary = torch.tensor([1, 4, 5, 8, 12], device=device)
    arguments = {
        "idx_mapping": torch.zeros(40, dtype=torch.int32, device=device),
        "positions": torch.arange(40, dtype=torch.int32, device=device),
        "seeds": torch.tensor([3], device=device), "fallback": torch.tensor([2], device=device),
    }  # fmt: skip
    logits = torch.randn(40, 5, generator=generator, device=device)
    logits[5] = -torch.inf
    whole = torch.full((40, 14), -torch.inf, device=device).index_copy(1, vocabulary, logits)
    for inverse in (0.0, 1.0):
        inverses = torch.full((1,), inverse, device=device)
        out = torch.empty(40, dtype=torch.int32, device=device)
        found = gumbel_sample(
            logits, **arguments, inverse_temperatures=inverses, vocabulary=vocabulary, out=out
        )
        assert found is out
        assert found.tolist() == gumbel_sample(whole, **arguments, inverse_temperatures=inverses).tolist()
        reference = gumbel_sample_reference(
            logits, **arguments, inverse_temperatures=inverses, vocabulary=vocabulary
        )
        assert found.tolist() == reference.tolist()
        assert found[5] == 2
        assert len(set(found.tolist())) > 3


@pytest.mark.parametrize("size", [5, 1300])
def test_rows_are_copied_into_wider_ones(size: int, device: torch.device) -> None:
    source = torch.randn((3, size), device=device)
    wide = torch.zeros((4, 3 * size), device=device)
    copy_rows(source=source, target=wide[:3, size : 2 * size])
    expected = torch.zeros_like(wide)
    expected[:3, size : 2 * size] = source
    assert torch.equal(wide, expected)
    copy_rows(source=source[:0], target=wide[:0, :size])
