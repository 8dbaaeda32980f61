"""The one place where safetensors files are opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dodona.oracle.errors import ConfigError
from dodona.oracle.models.stored_tensors import check_header
from dodona.oracle.models.weight_files import check_num_tensors


@contextmanager
def open_safetensors(file: Path, *, of: str = "the model") -> Iterator[Any]:
    """The open file (`safetensors.safe_open`), its tensors to be read on the CPU.

    of: whose file it is, for the message. Raises ConfigError that names the file where it is missing, no
    regular file, damaged, or has more tensors than a model may have; damage that is met inside the block too.
    """
    from safetensors import SafetensorError, safe_open

    try:
        check_header(file, of=of)
        with safe_open(file, framework="pt", device="cpu") as stored:
            check_num_tensors(file, len(stored.keys()))
            yield stored
    except (SafetensorError, OSError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{file}: cannot be read as safetensors: {why}; fetch {of} again") from error
