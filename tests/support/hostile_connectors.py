"""Hostile settings of KV connectors, and what may lie in the folders that engines share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.hostile_files import CONTENTS, HUGE, QWEN3, SPECIAL, TEXTS

Act = Callable[[Path], object]

PATHS = (
    *TEXTS[:3],
    "a\0b",
    "~nobody-of-this-name/x",
    "s3://user:SECRET@host/x",
    "/dev/null/x",
    "/tmp/" + "x/" * 2500,
)
KEYS = {
    "SharedStorageConnector": ("shared_storage_path", "max_bytes", "x"),
    "SharedMemoryConnector": ("shared_memory_path", "memory_bytes", "wait_seconds", "\u202ex"),
    "OffloadingConnector": ("cpu_bytes_to_use",),
}
REGIONS = ("0-999999999.0of1", "0-2.0of999999937", "0-2.1of3", "1-3.0of2", f"0-{'9' * 200}.0of1")


def connectors() -> Iterator[tuple[str, Act]]:
    """Settings, and folders."""
    for name, keys in KEYS.items():
        for key in keys:
            for value in (
                *HUGE,
                10**400,
                float("nan"),
                float("inf"),
                *(PATHS if key.endswith("path") else TEXTS[:3]),
            ):
                yield f"{name}: {key}={value!r:.20}", lambda p, n=name, c={key: value}: serve(p, n, c)
    for size in (1e30, 1e300, float("inf"), -1.0, float("nan"), 1e12):
        yield f"kv_offloading_size={size}", lambda p, s=size: serve(p, "OffloadingConnector", {}, offload=s)
    for name, content in (*CONTENTS.items(), *SPECIAL.items()):
        yield f"memory: {name}", lambda p, c=content: serve(p, "SharedMemoryConnector", {}, found=c)
        yield f"block: {name}", lambda p, c=content: serve(p, "SharedStorageConnector", {}, found=c)
        yield (
            f"part: {name}",
            lambda p, c=content: serve(p, "SharedStorageConnector", {}, found=c, parts=True),
        )


def serve(
    path: Path,
    connector: str,
    changes: dict[str, Any],
    *,
    offload: float | None = None,
    found: bytes | Act | None = None,
    parts: bool = False,
) -> None:
    """Two engines after one another, with something else in place of what the first one stored."""
    from dodona import LLM, SamplingParams
    from dodona.oracle.errors import DodonaError

    shared = path / "kv"
    extra: dict[str, Any] = {
        "SharedStorageConnector": {"shared_storage_path": str(shared)},
        "SharedMemoryConnector": {"shared_memory_path": str(shared), "memory_bytes": 1 << 20},
        "OffloadingConnector": {} if offload is not None else {"cpu_bytes_to_use": 1 << 20},
    }[connector]
    settings: dict[str, Any] = {
        "kv_transfer_config": {
            "kv_connector": connector, "kv_role": "kv_both",
            "kv_connector_extra_config": {**extra, **changes},
        }
    }  # fmt: skip
    if offload is not None:
        settings = {"kv_offloading_size": offload}
    answers = []
    try:
        for _ in range(2):
            with LLM(QWEN3, device="cpu", max_model_len=64, num_gpu_blocks_override=16, **settings) as llm:
                (output,) = llm.generate("1 + 1 " * 12, SamplingParams(temperature=0.0, max_tokens=2))
                assert output.error is None, output.error
                answers.append(output.outputs[0].token_ids)
            if found is None:
                return
            _replace(shared, found, parts=parts, memory=connector == "SharedMemoryConnector")
    except DodonaError as error:
        if "SECRET" in str(error):
            raise AssertionError("an error shows a password") from None
        raise
    assert answers[0] == answers[1]


def _replace(shared: Path, found: bytes | Act, *, parts: bool, memory: bool) -> None:
    """Put something else in the place of each stored block, of its parts, or beside the engines' memory."""
    files = (
        [shared / f"{number}.kv" for number in range(2)] if memory else list(shared.rglob("*.safetensors"))
    )
    assert files
    for file in files:
        file.unlink(missing_ok=True)
        for place in (
            [file.with_suffix(".parts") / f"{name}.safetensors" for name in REGIONS] if parts else [file]
        ):
            place.parent.mkdir(exist_ok=True)
            if callable(found):
                found(place)
            else:
                place.write_bytes(found)
