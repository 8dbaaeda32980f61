"""A model's folder as transformers is to see it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from dodona.oracle.files import read_json
from dodona.oracle.models.weight_files import INDEX_FILE, MAX_INDEX_BYTES, SINGLE_FILE, is_there, read_index

ADAPTER_CONFIG: Final = "adapter_config.json"


@contextmanager
def folder_for_transformers(folder: Path) -> Iterator[Path]:
    """Inside, a folder of the same files, but for an adapter that lies in it, and with an index of weights
    that has `metadata`.

    Where PEFT is installed, transformers would add such an adapter to the model, or read another model that
    the adapter names. Adapters are for requests (`lora_request`); a folder of links leaves this one away.
    Of an index transformers needs `metadata`, which says nothing of the weights.
    """
    has_adapter, lacks_metadata = (folder / ADAPTER_CONFIG).exists(), _lacks_metadata(folder)
    if not has_adapter and not lacks_metadata:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        for entry in folder.iterdir():
            if entry.name != ADAPTER_CONFIG and not (lacks_metadata and entry.name == INDEX_FILE):
                (Path(temporary) / entry.name).symlink_to(entry.absolute())
        if lacks_metadata:
            index = {"metadata": {}, "weight_map": read_index(folder / INDEX_FILE)}
            (Path(temporary) / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
        yield Path(temporary)


def _lacks_metadata(folder: Path) -> bool:
    index = folder / INDEX_FILE
    if is_there(folder / SINGLE_FILE) or not is_there(index):
        return False
    data = read_json(index, limit=MAX_INDEX_BYTES, expected="an index of weights")
    return not isinstance(data, dict) or not isinstance(data.get("metadata"), dict)
