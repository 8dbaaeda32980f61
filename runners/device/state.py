"""The requests' state on the device, and the batch's description, both changed by staged writes.

All of it is int32 and lies in one arena, so that whatever a step changes (a new request's tokens, a few block
ids, the batch's order) goes to the device in one copy and one launch, and a step that changes nothing sends
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from dodona.kernels.state.staged_writes import pack_writes, scatter_ragged
from dodona.runners.drafting.device_drafts import DeviceDrafts
from dodona.runners.interface import NewRequest

_ALIGNMENT = 32  # elements; keeps every region's start at a multiple of 128 bytes


MOST_ELEMENTS = 2**31
"""Elements of the state that int32 can index."""


def fits(*, max_num_seqs: int, max_model_len: int, block_size: int) -> bool:
    """Whether a `RequestState` of such sizes can be indexed."""
    sizes = _sizes(max_num_seqs, max_num_seqs, max_model_len, -(-max_model_len // block_size))
    return _starts(sizes)[1] < MOST_ELEMENTS


def _sizes(max_num_seqs: int, max_num_entries: int, max_model_len: int, max_blocks: int) -> dict[str, int]:
    """Elements of each region."""
    return {
        "token_ids": max_num_seqs * max_model_len,
        "block_table": max_num_seqs * max_blocks,
        "num_computed": max_num_seqs,
        "rows": max_num_entries,
        "offsets": max_num_entries,
        "query_start": max_num_entries + 1,
        "sample_index": max_num_entries,
        "sample_rows": max_num_entries,
        "sample_positions": max_num_entries,
        "sample_tokens": max_num_entries,
        "sample_entries": max_num_entries,
        "first_samples": max_num_seqs,
    }


def _starts(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Where each region starts in the arena, and the arena's size."""
    starts, total = {}, 0
    for name, size in sizes.items():
        starts[name] = total
        total += -(-size // _ALIGNMENT) * _ALIGNMENT
    return starts, total


class DraftBatchSizes(NamedTuple):
    """How much there is of a batch in which rows verify drafts."""

    num_entries: int
    num_single: int
    """Leading entries of one token each."""
    num_samples: int


class RequestState:
    """State rows and batch arrays. Tensors are views of one int32 arena on the device.

    Args:
        max_num_seqs: state rows.
        max_model_len: most tokens of a row.
        block_size: tokens of a KV block.
        device: where it is.
        own_blocks: KV blocks of each row's own, which its table has after those that it was given: for drafts
            that reach beyond these.
        first_own_block: id of the first row's.
        max_num_entries: most batch entries; a row that verifies k drafts has 1 + k of them. None: one per
            row.
    """

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
        device: torch.device,
        max_num_entries: int | None = None,
        own_blocks: int = 0,
        first_own_block: int = 0,
    ) -> None:
        max_blocks = -(-max_model_len // block_size) + own_blocks
        sizes = _sizes(max_num_seqs, max_num_entries or max_num_seqs, max_model_len, max_blocks)
        starts, total = _starts(sizes)
        if total >= MOST_ELEMENTS:
            raise ValueError(
                f"max_num_seqs {max_num_seqs} × max_model_len {max_model_len} needs {total} state elements, "
                "expected fewer than 2**31; lower one of the two"
            )
        self._arena = torch.zeros(total, dtype=torch.int32, device=device)
        self._starts = starts
        self._destinations: list[int] = []
        self._values: list[npt.NDArray[np.int32]] = []
        self._device = device
        self._max_model_len = max_model_len
        self._max_blocks = max_blocks

        def view(name: str) -> torch.Tensor:
            return self._arena[starts[name] : starts[name] + sizes[name]]

        self.token_ids = view("token_ids").view(max_num_seqs, max_model_len)
        """[state rows, max_model_len]: prompt, then what was sampled."""
        self.block_table = view("block_table").view(max_num_seqs, max_blocks)
        """[state rows, max blocks]: KV block ids."""
        self.num_computed = view("num_computed")
        """[state rows]: tokens whose KV is computed."""
        self.rows = view("rows")
        """[max_num_entries]: the batch's state rows; -1 where a decode batch is padded."""
        self.offsets = view("offsets")
        """[max_num_entries]: in a batch with drafts, how many entries of the same row come before."""
        self.query_start = view("query_start")
        """[max_num_entries + 1]: where each batch entry's tokens start in the packed step."""
        self.sample_index = view("sample_index")
        """[max_num_entries]: each batch entry's place among the sampled ones, or -1."""
        self.sample_rows = view("sample_rows")
        """[max_num_entries]: state row of each sampled entry."""
        self.sample_positions = view("sample_positions")
        """[max_num_entries]: position that each sampled token will have."""
        self.sample_tokens = view("sample_tokens")
        """[max_num_entries]: packed index of each sampled entry's last token."""
        self.sample_entries = view("sample_entries")
        """[max_num_entries]: in a batch with drafts, the batch entry of each sampled one."""
        self.first_samples = view("first_samples")
        """[max_num_seqs]: in a batch with drafts, where the entries of each row that samples begin among
        those that sample; -1 for padding."""
        self._own_blocks = [
            range(first_own_block + row * own_blocks, first_own_block + (row + 1) * own_blocks)
            for row in range(max_num_seqs)
        ]
        self._num_blocks = np.zeros(max_num_seqs, dtype=np.int64)
        self._expected_computed = np.full(max_num_seqs, -1, dtype=np.int64)
        """Per row what `num_computed` holds on the device once all steps so far are done; -1: nothing that
        counts."""
        self._decode_rows: tuple[tuple[int, ...], npt.NDArray[np.int64], int] | None = None
        """The decode batch that `rows` describes, as tuple and array, and its padded length."""
        self._draft_batch: tuple[object, DraftBatchSizes] | None = None
        """The batch of rows that all verify drafts on the device which the batch arrays describe, with its
        sizes."""

    def add_request(self, request: NewRequest) -> None:
        """Stage a request's tokens and blocks into its row."""
        row = request.row
        self._stage("token_ids", row * self._max_model_len, request.token_ids)
        self._stage("block_table", row * self._max_blocks, [*request.block_ids, *self._own_blocks[row]])
        self._num_blocks[row] = len(request.block_ids)
        self._expected_computed[row] = -1

    def append_blocks(self, row: int, block_ids: Sequence[int]) -> None:
        """Stage block ids to the end of a row's table."""
        place = row * self._max_blocks + int(self._num_blocks[row])
        self._stage("block_table", place, [*block_ids, *self._own_blocks[row]])
        self._num_blocks[row] += len(block_ids)

    def set_decode_batch(self, rows: Sequence[int], num_computed: Sequence[int], padded_length: int) -> bool:
        """Describe a batch of which every entry computes one token and samples; stages only what changed.

        Args:
            rows: state row of each entry.
            num_computed: tokens of each computed before.
            padded_length: entries of the captured graph that runs it, >= len(rows); the rest get row -1.

        Returns whether the last step had another batch.
        """
        key, current = tuple(rows), self._decode_rows
        changed = current is None or current[2] != padded_length or current[0] != key
        if changed:
            array = np.asarray(rows, dtype=np.int64)
            padded = np.full(padded_length, -1, dtype=np.int32)
            padded[: len(array)] = array
            self._draft_batch = None
            self._stage("rows", 0, padded)
            self._decode_rows = (key, array, padded_length)
        else:
            assert current is not None
            array = current[1]
        self._advance(array, np.asarray(num_computed, dtype=np.int64), 1)
        return changed

    def set_mixed_batch(
        self,
        rows: Sequence[int],
        num_computed: Sequence[int],
        num_tokens: Sequence[int],
        samples: Sequence[bool],
    ) -> int:
        """Describe any batch. Returns how many entries sample.

        Args:
            rows, num_computed, num_tokens, samples: per entry its state row, tokens computed before, tokens
                in this step, and whether its last token yields a next one.
        """
        row_array = np.asarray(rows, dtype=np.int64)
        computed, lengths = np.asarray(num_computed, dtype=np.int64), np.asarray(num_tokens, dtype=np.int64)
        sampling = np.asarray(samples, dtype=bool)
        ends = np.cumsum(lengths)
        places = np.cumsum(sampling) - 1
        self._decode_rows = self._draft_batch = None
        self._stage("rows", 0, row_array)
        self._stage("query_start", 0, np.concatenate([[0], ends]))
        self._stage("sample_index", 0, np.where(sampling, places, -1))
        self._stage("sample_rows", 0, row_array[sampling])
        self._stage("sample_positions", 0, (computed + lengths)[sampling])
        self._stage("sample_tokens", 0, ends[sampling] - 1)
        self._advance(row_array, computed, lengths)
        return int(sampling.sum())

    def set_draft_batch(
        self,
        rows: Sequence[int],
        num_computed: Sequence[int],
        num_tokens: Sequence[int],
        samples: Sequence[bool],
        *,
        drafts: Mapping[int, Sequence[int]],
        num_single: int,
        padded_length: int = 0,
        padded_rows: int = 0,
    ) -> DraftBatchSizes:
        """Describe a batch in which rows verify drafts, and stage these as the rows' next tokens, unless they
        are there already. Where they are, `num_computed` is, too: the host need not know it. Where all rows
        are like that and the batch is the one before, nothing is staged.

        A row that decodes or verifies has an entry of one token for its last token and for each draft; each
        of them samples.

        Args:
            rows, num_computed, num_tokens, samples: see `set_mixed_batch`.
            drafts: by row.
            num_single: how many of `rows`, from the first on, decode or verify.
            padded_length: least entries; those that are missing get row -1.
            padded_rows: least places in `first_samples`; those that are missing get -1.
        """
        on_device = [isinstance(drafts.get(row), DeviceDrafts) for row in rows]
        key = (tuple(rows), tuple(num_tokens), padded_length, padded_rows) if all(on_device) else None
        if key is not None and self._draft_batch is not None and self._draft_batch[0] == key:
            return self._draft_batch[1]
        row_array = np.asarray(rows, dtype=np.int64)
        computed, lengths = np.asarray(num_computed, dtype=np.int64), np.asarray(num_tokens, dtype=np.int64)
        for row, start, is_there in zip(rows, num_computed, on_device, strict=True):
            if row in drafts and not is_there:
                self._stage("token_ids", row * self._max_model_len + start + 1, drafts[row])
        is_single = np.arange(len(row_array)) < num_single
        counts = np.where(is_single, lengths, 1)
        num_entries = int(counts.sum())
        starts = np.cumsum(counts) - counts
        offsets = np.arange(num_entries) - np.repeat(starts, counts)
        entry_rows = np.repeat(row_array, counts)
        entry_lengths = np.repeat(np.where(is_single, 1, lengths), counts)
        sampling = np.repeat(np.asarray(samples, dtype=bool), counts)
        ends = np.cumsum(entry_lengths)
        missing = max(0, padded_length - num_entries)
        self._decode_rows = None
        self._stage("rows", 0, np.pad(entry_rows, (0, missing), constant_values=-1))
        self._stage("offsets", 0, np.pad(offsets, (0, missing)))
        self._stage("query_start", 0, np.concatenate([[0], ends]))
        self._stage("sample_index", 0, np.where(sampling, np.cumsum(sampling) - 1, -1))
        self._stage("sample_rows", 0, entry_rows[sampling])
        self._stage("sample_entries", 0, np.flatnonzero(sampling))
        self._stage("sample_tokens", 0, ends[sampling] - 1)
        first = np.flatnonzero(offsets[sampling] == 0)
        self._stage(
            "first_samples", 0, np.pad(first, (0, max(0, padded_rows - len(first))), constant_values=-1)
        )
        self._advance(row_array, computed, lengths, np.asarray(on_device))
        sizes = DraftBatchSizes(num_entries, int(counts[:num_single].sum()), int(sampling.sum()))
        self._draft_batch = None if key is None else (key, sizes)
        return sizes

    def set_draft_padding(self) -> None:
        """Describe entries of no row, for steps that verify drafts and have any size."""
        self._decode_rows = self._draft_batch = None
        self._stage("rows", 0, np.full(len(self.rows), -1))
        self._stage("offsets", 0, np.zeros(len(self.offsets), dtype=np.int64))
        self._stage("first_samples", 0, np.full(len(self.first_samples), -1))

    def set_empty_prompt(self) -> None:
        """Describe a batch of one prompt without tokens, of no row: a step over it changes no state."""
        self._decode_rows = self._draft_batch = None
        for name, values in (
            ("rows", [-1]),
            ("query_start", [0, 0]),
            ("sample_index", [-1]),
            ("sample_rows", [-1]),
            ("sample_positions", [0]),
            ("sample_tokens", [0]),
        ):
            self._stage(name, 0, values)

    def flush(self) -> None:
        """Bring everything staged to the device: one copy, one launch; nothing if nothing is staged. Never
        waits."""
        if not self._destinations:
            return
        lengths = np.fromiter((len(v) for v in self._values), dtype=np.int32, count=len(self._values))
        packed, writes = pack_writes(
            np.asarray(self._destinations, dtype=np.int32), lengths, np.concatenate(self._values)
        )
        self._destinations = []
        self._values = []
        staging = torch.from_numpy(packed)
        if self._device.type == "cuda":
            # torch's host allocator gives pinned memory out again only after the copies from it are done.
            pinned = torch.empty(len(packed), dtype=torch.int32, pin_memory=True)
            pinned.numpy()[:] = packed
            staging = pinned.to(self._device, non_blocking=True)
        scatter_ragged(target=self._arena, packed=staging, num_writes=writes)

    def _stage(self, region: str, offset: int, values: Sequence[int] | npt.NDArray[np.integer]) -> None:
        if len(values):
            self._destinations.append(self._starts[region] + offset)
            self._values.append(np.asarray(values, dtype=np.int32))

    def _advance(
        self,
        rows: npt.NDArray[np.int64],
        computed: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64] | int,
        on_device: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Stage `num_computed` of rows where the device will not have it by itself, and count the step's
        tokens. on_device: rows of which the device knows it and the host need not."""
        if not np.array_equal(self._expected_computed[rows], computed):
            differs = self._expected_computed[rows] != computed
            for i in np.flatnonzero(differs if on_device is None else differs & ~on_device):
                self._stage("num_computed", int(rows[i]), [int(computed[i])])
        after = computed + lengths
        self._expected_computed[rows] = after if on_device is None else np.where(on_device, -1, after)
