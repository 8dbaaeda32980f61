"""A model's folder as transformers is to see it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ADAPTER_CONFIG: Final = "adapter_config.json"


@contextmanager
def without_adapter(folder: Path) -> Iterator[Path]:
    """Inside, a folder of the same files, but for an adapter that lies in it.

    Where PEFT is installed, transformers would add such an adapter to the model, or read another model that
    the adapter names. Adapters are for requests (`lora_request`); a folder of links leaves this one away.
    """
    if not (folder / ADAPTER_CONFIG).exists():
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        for entry in folder.iterdir():
            if entry.name != ADAPTER_CONFIG:
                (Path(temporary) / entry.name).symlink_to(entry.absolute())
        yield Path(temporary)
