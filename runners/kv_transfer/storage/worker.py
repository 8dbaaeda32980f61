"""The worker's side of SharedStorageConnector."""

from __future__ import annotations

from concurrent.futures import Executor

from dodona.runners.kv_transfer.part_layout import PartLayout
from dodona.runners.kv_transfer.storage.block_files import BlockFiles
from dodona.runners.kv_transfer.storage.stored_blocks import StoredBlocks
from dodona.runners.kv_transfer.threaded_worker import BlockStore, ThreadedWorker


class SharedStorageWorker(ThreadedWorker):
    """Reads and writes this rank's part of blocks, below the files' root.

    A file that is missing, damaged or can't be read makes a load error, and its block is computed again; one
    that can't be written is lost. Nothing of it ends the engine.
    """

    def __init__(
        self, files: BlockFiles, *, readers: Executor | None = None, writer: Executor | None = None
    ) -> None:
        super().__init__(readers=readers, writer=writer)
        self._files = files

    def make_store(self, layout: PartLayout) -> BlockStore:
        """The files, for parts of this layout."""
        return StoredBlocks(self._files, layout)
