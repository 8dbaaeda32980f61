"""V1 with SharedMemoryConnector: a consumer waits for what a producer announces, and its tokens are
transformers', whatever becomes of the producer."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import UnsupportedConfiguration
from dodona.oracle.systems.own.kv_transfer import SharedMemorySettings, resolve_kv_transfer
from dodona.runners.errors import EngineSetupError
from dodona.runners.interface import KVPart, LayerKVSpec
from dodona.runners.kv_transfer.part_layout import PartLayout
from dodona.runners.kv_transfer.regions import Region
from dodona.runners.kv_transfer.shared_memory.arena import Arena, ArenaError, create_arena, open_arena
from dodona.runners.kv_transfer.shared_memory.index import OtherArenas
from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from tests.v1.test_kv_shared_storage import SIZES, prompts, run

FIRST_TOKEN = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)


@pytest.fixture(autouse=True)
def _v1(monkeypatch):
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")


@pytest.fixture(scope="module")
def expected(tiny_models, reference):
    plain = reference(tiny_models.path("llama"))
    return [plain.generate(prompt, 6) for prompt in prompts()]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "kv"


def memory(folder: Path, role: str, **extra: object) -> dict[str, Any]:
    if role != "kv_consumer":
        extra.setdefault("memory_bytes", 1 << 20)
    return {
        "kv_transfer_config": {
            "kv_connector": "SharedMemoryConnector",
            "kv_role": role,
            "kv_connector_extra_config": {"shared_memory_path": str(folder), **extra},
        }
    }


def full(todo) -> list[int]:
    return [4 * ((len(prompt) - 1) // 4) for prompt in todo]


def test_a_consumer_has_what_a_producer_computed(tiny_models, folder, expected):
    path = tiny_models.path("llama")
    with LLM(path, **SIZES, **memory(folder, "kv_producer")) as producer:
        assert [file.stat().st_mode & 0o777 for file in (folder, *folder.iterdir())] == [0o700, 0o600]
        with LLM(path, **SIZES, **memory(folder, "kv_consumer")) as consumer:
            assert run(consumer, prompts()[1:2]) == (expected[1:2], [0])  # nobody has it
            assert run(producer, prompts(), FIRST_TOKEN)[0] == [answer[:1] for answer in expected]
            # What is still being written is waited for.
            assert run(consumer, prompts()) == (expected, full(prompts()))
            producer.reload_weights()
            assert run(producer, prompts()[2:3], FIRST_TOKEN)[1] == [0]
            assert run(consumer, prompts()[2:3]) == (expected[2:3], [16])
    assert not list(folder.iterdir())


def test_two_engines_hand_blocks_to_each_other(tiny_models, folder, expected):
    path, todo = tiny_models.path("llama"), prompts()
    with (
        LLM(path, **SIZES, **memory(folder, "kv_both")) as one,
        LLM(path, **SIZES, **memory(folder, "kv_both", memory_bytes=1 << 16)) as other,
    ):
        assert run(one, todo[1:2]) == (expected[1:2], [0])
        assert run(other, todo[1:2]) == (expected[1:2], [32])
        assert run(other, todo[2:3]) == (expected[2:3], [0])
        assert run(one, todo[2:3]) == (expected[2:3], [16])
        assert run(one, todo[3:]) == (expected[3:], [0, 24])


def test_a_producer_in_another_process_is_killed(tiny_models, folder, expected):
    path = tiny_models.path("llama")
    program = f"""
import sys
from dodona import LLM, SamplingParams
from tests.v1.test_kv_shared_memory import FIRST_TOKEN, SIZES, memory, prompts, run
from pathlib import Path
with LLM({str(path)!r}, **SIZES, **memory(Path({str(folder)!r}), "kv_producer")) as llm:
    run(llm, prompts()[1:3], FIRST_TOKEN)
    print("computed", flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "computed\n"
    with LLM(path, **SIZES, **memory(folder, "kv_consumer", wait_seconds=60)) as consumer:
        assert run(consumer, prompts()[1:2]) == (expected[1:2], [32])
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert run(consumer, prompts()[2:3]) == (expected[2:3], [0])
        assert len(list(folder.iterdir())) == 1
        with LLM(path, **SIZES, **memory(folder, "kv_producer")):
            assert len(list(folder.iterdir())) == 1  # that of the dead one is gone


def make(folder: Path, **changes: Any) -> Arena:
    folder.mkdir(exist_ok=True)
    return create_arena(folder, 3, [(Region(0, 2, share, 2), 40) for share in range(2)])


def test_parts_are_read_whole_or_not_at_all(folder):
    arena = make(folder)
    content = np.arange(40, dtype=np.uint8)
    generation = arena.assign(1, b"k" * 16)
    reader = open_arena(arena.path, writes=False)
    assert reader.find(b"k" * 16) == (1, generation)
    assert reader.find(b"l" * 16) is None
    arena.write(1, generation, 0, content)
    assert not reader.is_settled(1, generation)
    assert reader.read(1, generation, 0).tolist() == content.tolist()
    with pytest.raises(ArenaError, match="not written"):
        reader.read(1, generation, 1)
    arena.write(1, generation, 1, content)
    assert reader.is_settled(1, generation)
    with pytest.raises(ValueError, match="read-only"):
        reader._part(1, 0)[0] = 1
    arena._part(1, 0)[7] ^= 16
    with pytest.raises(ArenaError, match="sum is wrong"):
        reader.read(1, generation, 0)
    later = arena.assign(1, b"m" * 16)
    assert reader.is_settled(1, generation)
    assert reader.find(b"k" * 16) is None
    assert not reader.is_settled(1, later)
    arena.give_up(1, later, 1)
    assert reader.is_settled(1, later)
    arena.write(1, generation, 1, content)  # late: of what was there before
    assert reader.is_settled(1, later)
    with pytest.raises(ArenaError, match="not written"):
        reader.read(1, later, 1)
    assert reader.is_alive()
    arena.close()
    assert not reader.is_alive()
    reader.close()
    reader.close()
    assert not reader.is_alive()
    assert not list(make(folder).path.parent.glob(arena.path.name))


def test_files_that_are_no_arenas(folder):
    arena = make(folder)
    for name, content in {"empty": b"", "zeros": bytes(8192), "text": b"x" * 8192}.items():
        (folder / name).write_bytes(content)
        with pytest.raises(ArenaError, match="is no arena"):
            open_arena(folder / name, writes=False)
    whole = arena.path.read_bytes()
    (folder / "cut").write_bytes(whole[:-1])
    with pytest.raises(ArenaError, match="is cut"):
        open_arena(folder / "cut", writes=False)


def test_what_lies_in_the_folder_and_is_no_arena(folder):
    folder.mkdir()
    (folder / "link.kv").symlink_to(folder / "link.kv")
    (folder / "zero.kv").symlink_to("/dev/zero")
    (folder / "folder.kv").mkdir()
    os.mkfifo(folder / "pipe.kv")
    arena = make(folder)
    for name in ("zero", "folder", "pipe"):
        with pytest.raises(ArenaError, match="is no arena"):
            open_arena(folder / f"{name}.kv", writes=False)
    others = OtherArenas(folder, None)
    others.look()
    assert others.find(b"k" * 16) is None
    arena.assign(0, b"k" * 16)
    assert others.find(b"k" * 16) is not None
    others.close()
    arena.close(remove=True)


def test_what_an_engine_that_was_killed_left_unfinished_is_removed(folder):
    folder.mkdir(mode=0o700)
    left, begun, made = (folder / f"{name}.new" for name in ("left", "begun", "made"))
    left.write_bytes(bytes(4096))
    begun.touch()  # another engine has made it, and will lock it
    made.write_bytes(bytes(4096))
    with made.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        make(folder).close(remove=True)
    assert sorted(folder.iterdir()) == [begun, made]


def test_regions_that_are_none_of_the_models_are_not_read():
    layers = (LayerKVSpec(4, 2, 2),) * 2
    layout = PartLayout(KVPart.whole(layers), block_size=2, dtype=torch.float32)
    lies = [Region(0, 1 << 60), Region(0, 2, 0, 0), Region(1, 3), Region(0, 2, 2, 3), Region(0, 2, 5, 4)]
    assert layout.assemble(lies, lambda region: pytest.fail(f"{region} is read")) is None


def test_an_arena_ends_with_its_engine_though_a_forked_child_lives(folder):
    arena = make(folder)
    reader = open_arena(arena.path, writes=False)
    reading, writing = os.pipe()
    said, saying = os.pipe()
    child = os.fork()
    if not child:
        os.write(saying, b"x")
        os.read(reading, 1)  # lives on
        os._exit(int(arena.is_alive() or arena._descriptor >= 0))
    os.read(said, 1)
    os.close(arena._descriptor)  # as when the parent is killed
    arena._descriptor = -1
    assert not reader.is_alive()
    os.write(writing, b"x")
    assert os.waitpid(child, 0)[1] == 0
    reader.close()
    for end in (reading, writing, said, saying):
        os.close(end)


@pytest.mark.parametrize(
    ("role", "extra", "error"),
    [
        ("kv_producer", {"memory_bytes": None}, "memory_bytes must be a number of bytes"),
        ("kv_producer", {"memory_bytes": 100}, "memory_bytes 100 holds no KV block of"),
        ("kv_producer", {"memory_bytes": 1 << 60}, "has left; lower memory_bytes"),
        ("kv_producer", {"wait_seconds": 3}, "as kv_producer doesn't know 'wait_seconds'"),
        ("kv_consumer", {"memory_bytes": 100}, "as kv_consumer doesn't know 'memory_bytes'"),
        ("kv_consumer", {"wait_seconds": -1}, "wait_seconds must be a number, at least 0"),
        ("kv_producer", {"memory_bytes": 10**30}, "memory_bytes must be a number of bytes"),
        ("kv_consumer", {"wait_seconds": 10**400}, "wait_seconds must be a number, at least 0"),
        ("kv_consumer", {"shared_memory_path": "a\0b"}, "needs shared_memory_path"),
        ("kv_consumer", {"shared_memory_path": None}, "needs shared_memory_path"),
        ("kv_consumer", {"shared_memory_path": "/"}, "with mode 0700"),
    ],
)
def test_settings_that_cannot_be_are_refused(tiny_models, folder, role, extra, error):
    with pytest.raises((EngineSetupError, UnsupportedConfiguration), match=error):
        LLM(tiny_models.path("llama"), **SIZES, **memory(folder, role, **extra))
    assert not folder.exists() or not list(folder.iterdir())


def test_room_that_others_take_meanwhile(tiny_models, folder, monkeypatch):
    monkeypatch.setattr("dodona.runners.kv_transfer.folders._room", lambda path: None)
    with pytest.raises(EngineSetupError, match=r"of shared memory in .*: .*; lower memory_bytes"):
        LLM(tiny_models.path("llama"), **SIZES, **memory(folder, "kv_producer", memory_bytes=1 << 60))
    assert not list(folder.iterdir())


def test_a_default(folder):
    config = EngineConfig.from_flat("m", **memory(folder, "kv_consumer"))
    assert resolve_kv_transfer(config) == SharedMemorySettings(folder, None, 30.0)
