"""Hostile weights of the corpus: headers of safetensors files and indices that rules read before anything is
loaded.

Each entry makes a small model's weights another file, or other files.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.hostile_files import QWEN3, command, folder
from tests.support.hostile_parts import SHORT, Change, head

Header = dict[str, Any]


def whole(name: str = "model.safetensors") -> Header:
    """The header of the small model's weights."""
    raw = (QWEN3 / name).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return dict(json.loads(raw[8 : 8 + length]))


def written(file: Path, header: Header | bytes, size: int | None = None) -> None:
    """A safetensors file of a header and zeros without blocks on the disk; size: bytes of the zeros."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    if size is None and isinstance(header, bytes):
        size = 0
    elif size is None:
        tensors = [item for name, item in header.items() if name != "__metadata__"]  # type: ignore[union-attr]
        size = max((item["data_offsets"][1] for item in tensors), default=0)
    file.unlink(missing_ok=True)
    file.write_bytes(struct.pack("<Q", len(raw)) + raw)
    os.truncate(file, 8 + len(raw) + size)


def tensor(shape: Any = (0,), dtype: Any = "F32", begin: Any = 0, end: Any = 0) -> Header:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


class Empty(bytes):
    """A header that no data follow."""


def many(count: int) -> Empty:
    """A header of many empty tensors: to write them one by one takes seconds."""
    empty = json.dumps(EMPTY).encode()
    return Empty(b"{" + b",".join(b'"t%d":%b' % (i, empty) for i in range(count)) + b"}")


HEADERS: dict[str, Callable[[], Header | bytes]] = {
    "none": lambda: b"",
    "no tensors": dict,
    "spaces": lambda: b" " * 1_000_000,
    "space before": lambda: b"  " + json.dumps(whole()).encode(),
    "spaces after": lambda: json.dumps(whole()).encode() + b" " * 1_000_000,
    "mark before": lambda: b"\xef\xbb\xbf" + json.dumps(whole()).encode(),
    "zeros after": lambda: json.dumps(whole()).encode() + b"\0" * 8,
    "300,000 tensors": lambda: many(300_000),
    "250,000 tensors": lambda: many(250_000),
    "240,000 more tensors": lambda: json.dumps(whole())[:-1].encode() + b"," + many(240_000)[1:],
    "9,000 more tensors": lambda: {**whole(), **{f"t{i}": EMPTY for i in range(9_000)}},
    "300,000 tensors with escapes": lambda: many(300_000).replace(b"data_o", b"data\\u005fo"),
    "names of colons": lambda: {**whole(), **{f"{i}" + ":" * 100: EMPTY for i in range(9_000)}},
    "100,000 tensors": lambda: {f"t{i}": EMPTY for i in range(100_000)},
    "a million tensors": lambda: many(1_000_000),
    "20,000 more layers": lambda: {
        **whole(), **{f"model.layers.{i}.self_attn.q_proj.weight": EMPTY for i in range(100, 20_000)}},
    "20,000 kinds of layers": lambda: {
        **whole(), **{f"a{i}.layers.{i}.weight": EMPTY for i in range(20_000)}},
    "a name of a million characters": lambda: {**whole(), "x" * 1_000_000: EMPTY},
    "a name of a million dots": lambda: {**whole(), "." * 1_000_000: EMPTY},
    "a name of many layers": lambda: {**whole(), "layers." * 100_000: EMPTY},
    "a name of many numbers": lambda: {**whole(), "layers.1" * 100_000: EMPTY},
    "10,000 names of 10,000 characters": lambda: {
        **whole(), **{f"{i}" + "layers." * 1_400: EMPTY for i in range(5_000)}},
    "escapes in a name": lambda: {**whole(), "model.layers.\x1b[2J\u202e\x00.weight": EMPTY},
    "escapes in a wrong tensor": lambda: {**whole(), "\x1b[2J\u202e": tensor(dtype="\x1b[2J")},
    "an unpaired surrogate": lambda: {**whole(), "\ud800": EMPTY},
    "a name twice": lambda: json.dumps(whole())[:-1].encode() + b',"a":1,"a":1}',
    "metadata twice": lambda: b'{"__metadata__":{},' + json.dumps(whole())[1:].encode(),
    "metadata of 20 MB": lambda: {"__metadata__": {"x": "y" * 20_000_000}, **whole()},
    "metadata of a million entries": lambda: {
        "__metadata__": {f"{i}": "" for i in range(1_000_000)}, **whole()},
    "metadata of numbers": lambda: {"__metadata__": {"x": 1}, **whole()},
    "metadata of objects": lambda: {"__metadata__": {"x": {"y": []}}, **whole()},
    "metadata null": lambda: {"__metadata__": None, **whole()},
    "more fields": lambda: {**whole(), "x": {**EMPTY, "more": {"a": [1]}}},
    "a field twice": lambda: (
        json.dumps(whole())[:-1].encode()
        + b',"x":{"dtype":"F32","dtype":"F32","shape":[0],"data_offsets":[0,0]}}'),
    "deep": lambda: json.dumps(whole())[:-1].encode() + b',"x":' + b"[" * 100_000,
    "a number of a million digits": lambda: json.dumps(whole())[:-1].encode() + b',"x":' + b"9" * 1_000_000,
    "NaN": lambda: json.dumps(whole())[:-1].encode() + b',"x":NaN}',
    "a shape of a million ones": lambda: {**whole(), "x": tensor([1] * 1_000_000, "U8", 0, 1)},
    "a shape of a million zeros": lambda: {**whole(), "x": tensor([0] * 1_000_000)},
    "a shape of huge sizes": lambda: {**whole(), "x": tensor([2**62] * 1_000)},
    "a shape of huge sizes and none": lambda: {**whole(), "x": tensor([2**62] * 1_000 + [0])},
    **{
        f"shape {shape!r:.30}": lambda s=shape: {**whole(), "x": tensor(s)}
        for shape in (None, 0, "0", [True], [-1], [0.0], ["0"], [2**63], [2**64], [10**400], [[0]], {})
    },
    **{
        f"dtype {dtype!r:.30}": lambda d=dtype: {**whole(), "x": tensor(dtype=d)}
        for dtype in (None, 0, "", "f32", "F32 ", ["F32"], {}, "F7", "X" * 1_000_000, "\ud800", True, "F4")
    },
    **{
        f"offsets {offsets!r:.30}": lambda o=offsets: {**whole(), "x": {**EMPTY, "data_offsets": o}}
        for offsets in (
            None, [], [0], [0, 0, 0], [-1, -1], [1, 0], [5, 5], [0.0, 0.0], ["0", "0"], [2**63, 2**63],
            [2**64, 2**64], [10**400, 10**400], [True, True], {}, "00",
        )
    },
    "overlaps": lambda: {**whole(), "x": tensor([4], "U8", 2, 6)},
    "a hole": lambda: {**whole(), "x": tensor([1], "U8", 10**9, 10**9 + 1)},
    "half a byte": lambda: {**whole(), "x": tensor([1], "F4", 0, 1)},
    "a terabyte": lambda: {
        **whole(), "x": tensor([1 << 40], "U8", size_of(whole()), size_of(whole()) + (1 << 40))},
    "an embedding of a terabyte": lambda: {
        name: item if name != "model.embed_tokens.weight" else tensor([1 << 33, 128], "U8", 0, 1 << 40)
        for name, item in list(whole().items())[:1]} | {
            "model.embed_tokens.weight": tensor([1 << 33, 128], "U8", 0, 1 << 40)},
    "zero-size weights": lambda: {name: EMPTY for name in whole() if name != "__metadata__"},
    "transposed": lambda: {
        name: {**item, "shape": item["shape"][::-1]} if "shape" in item else item
        for name, item in whole().items()},
    "other types": lambda: {
        name: {**item, "dtype": {"BF16": "I16", "F32": "I32", "F16": "U16"}.get(item["dtype"], "U8")}
        if "shape" in item else item
        for name, item in whole().items()},
}  # fmt: skip
"""Headers by what is odd about them."""


ELSEWHERE = ("100,000 tensors", "a name of a million characters", "escapes in a name", "zero-size weights")
"""Those that other readers are given too."""


def size_of(header: Header) -> int:
    return max(item["data_offsets"][1] for name, item in header.items() if name != "__metadata__")


def headers() -> Iterator[Change]:
    """Headers of the target's and of a draft head's weights."""
    for name, make in HEADERS.items():
        yield f"header: {name}", lambda p, m=make: read(p, m)
    for name in (
        "300,000 tensors",
        "a name of a million characters",
        "escapes in a name",
        "zero-size weights",
    ):
        yield f"head: {name}", lambda p, m=HEADERS[name]: read_head(p, m)
        yield f"quantized: {name}", lambda p, m=HEADERS[name]: read(p, m, "qwen3-w4a16")
        yield f"embed: {name}", lambda p, m=HEADERS[name]: read(p, m, verb="embed")


def read(
    path: Path, make: Callable[[], Header | bytes], source: str = "qwen3", verb: str = "generate"
) -> None:
    """A model whose weights have another header."""
    folder(path, {}, QWEN3.with_name(source))
    header = make()
    size = size_of(whole()) if isinstance(header, bytes) and not isinstance(header, Empty) else None
    try:
        written(path / "model.safetensors", header, size)
    except (TypeError, KeyError, IndexError, AttributeError, OSError, OverflowError):
        written(path / "model.safetensors", header, size_of(whole()))
    try:
        command(["select", str(path), "--explain"])
    finally:
        more = ["--max-tokens", "2"] if verb == "generate" else []
        command([verb, str(path), "--prompt", "1 + 1", *more, *SHORT])


def read_head(path: Path, make: Callable[[], Header | bytes]) -> None:
    """A draft head whose weights have another header."""
    head(path, "qwen3-eagle3", {}, "model.safetensors", lambda file: written(file, make()))


def indices() -> Iterator[Change]:
    """Indices and shards."""
    names = ["\x1b[2J.safetensors", "\u202e.safetensors", "x" * 300 + ".safetensors",
             "x" * 100_000 + ".safetensors", " .safetensors", "-rf.safetensors", "~.safetensors",
             "%s.safetensors", "\ud800.safetensors", "é.safetensors", "\n.safetensors",
             "model.safetensors"]  # fmt: skip
    for name in names:
        yield f"a shard {name!r:.30}", lambda p, n=name: index(p, lambda _: n)
        yield f"a shard {name!r:.30} that is there", lambda p, n=name: index(p, lambda _: n, True)
    for count in (500, 5_000):
        yield f"{count} shards", lambda p, c=count: index(p, lambda i: f"s{i % c}.safetensors", True, c)
    for name, make in SHARDS.items():
        yield f"a shard is {name}", lambda p, m=make: index(p, lambda i: "s.safetensors", make=m)
    for name, text in INDICES.items():
        yield f"an index {name}", lambda p, t=text: index_text(p, t())


SHARDS: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a directory": Path.mkdir,
    "endless": lambda file: file.symlink_to("/dev/zero"),
    "a link to itself": lambda file: file.symlink_to(file),
    "a link to nothing": lambda file: file.symlink_to("/no/such/file"),
    "a link outside": lambda file: file.symlink_to(QWEN3 / "model.safetensors"),
    "unreadable memory": lambda file: file.symlink_to("/proc/self/mem"),
    "a file that has no size": lambda file: file.symlink_to("/proc/self/maps"),
    "the index": lambda file: file.symlink_to("model.safetensors.index.json"),
}


def indexed(count: int) -> str:
    """An index of many tensors in one file."""
    return '{"weight_map": {' + ",".join(f'"t{i}":"s.safetensors"' for i in range(count)) + "}}"


INDICES: dict[str, Callable[[], str]] = {
    "of a million tensors": lambda: indexed(1_000_000),
    "of 250,000 tensors": lambda: indexed(250_000),
    "of 290,000 tensors with escapes": lambda: indexed(290_000).replace("tensors", "tensor\\u0073"),
    "of a million tensors with escapes": lambda: indexed(1_000_000).replace("tensors", "tensor\\u0073"),
    "with metadata of 200,000 entries": lambda: json.dumps(
        {"metadata": {f"{i}": i for i in range(200_000)},
         "weight_map": dict.fromkeys(whole(), "s.safetensors")}),
    "with a map twice": lambda: '{"weight_map": {"a": "s.safetensors"}, "weight_map": {}}',
    "with a null byte": lambda: json.dumps({"weight_map": dict.fromkeys(whole(), "s\0.safetensors")}),
    "of names of a million characters": lambda: json.dumps(
        {"weight_map": {"x" * 1_000_000 + f"{i}": "s.safetensors" for i in range(20)}}),
    "of 100,000 shards": lambda: json.dumps(
        {"weight_map": {f"t{i}": f"s{i}.safetensors" for i in range(100_000)}}),
    "of tensors that are not there": lambda: json.dumps(
        {"weight_map": {**dict.fromkeys(whole(), "s.safetensors"), "\x1b[2J": "s.safetensors"}}),
    "without most tensors": lambda: json.dumps({"weight_map": {"model.norm.weight": "s.safetensors"}}),
    "with more": lambda: json.dumps(
        {"metadata": {"total_size": "\x1b[2J"}, "weight_map": dict.fromkeys(whole(), "s.safetensors")}),
    "with total_size": lambda: json.dumps(
        {"metadata": {"total_size": 10**400}, "weight_map": dict.fromkeys(whole(), "s.safetensors")}),
    "with metadata of a list": lambda: json.dumps(
        {"metadata": [], "weight_map": dict.fromkeys(whole(), "s.safetensors")}),
}  # fmt: skip


def index(
    path: Path,
    name_of: Callable[[int], str],
    is_there: bool = False,
    count: int = 1,
    make: Callable[[Path], object] | None = None,
) -> None:
    """A model whose tensors lie in files of these names, each a copy of the whole."""
    folder(path, {})
    (path / "model.safetensors").unlink()
    names = [name for name in whole() if name != "__metadata__"]
    names += [f"t{i}" for i in range(count - len(names))]
    places = {name: name_of(i) for i, name in enumerate(names)}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    if make is not None:
        make(path / "s.safetensors")
    for name in set(places.values()) if is_there else ():
        try:
            (path / name).symlink_to(QWEN3 / "model.safetensors")
        except (OSError, ValueError):
            return
    command(["generate", str(path), "--prompt", "1 + 1", "--max-tokens", "2", *SHORT])


def index_text(path: Path, text: str) -> None:
    """A model with this index, and one shard."""
    folder(path, {})
    (path / "model.safetensors").rename(path / "s.safetensors")
    (path / "model.safetensors.index.json").write_text(text)
    command(["generate", str(path), "--prompt", "1 + 1", "--max-tokens", "2", *SHORT])
