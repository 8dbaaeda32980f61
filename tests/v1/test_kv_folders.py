"""Folders of KV connectors that can't be used: a trial load says what a start says, and makes nothing."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dodona.oracle.systems.own.kv_transfer import SharedMemorySettings, SharedStorageSettings
from dodona.runners.errors import EngineSetupError
from dodona.runners.kv_transfer import folders
from dodona.runners.kv_transfer.folders import check_folder, make_folder
from dodona.runners.kv_transfer.regions import Region
from dodona.runners.kv_transfer.shared_memory.arena import create_arena
from dodona.runners.llm import LLM
from dodona.runners.trial_load import try_load
from tests.support.tiny_models import TinyModels
from tests.v1.test_kv_shared_memory import memory
from tests.v1.test_kv_shared_storage import storage
from tests.v1.test_trial_kv import permitted, refused_alike

NAME = "x" * 300


def stored(path: Path, *, stores: bool = True) -> SharedStorageSettings:
    return SharedStorageSettings(path, None, loads=True, stores=stores)


def shared(path: Path, memory_bytes: int | None = 1000) -> SharedMemorySettings:
    return SharedMemorySettings(path, memory_bytes, 1.0)


@pytest.mark.parametrize("connector", ["storage", "memory"])
@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("file", "file' is no folder"),
        ("file/kv/deep", "file' is no folder"),
        ("link", "link' is no folder"),
        ("long/kv", "long' is no folder"),
        ("/proc/x", "'/proc' belongs to the system"),
        ("/proc/self/cwd/file/kv", "file' is no folder"),
        (f"kv/{NAME}/kv", "File name too long"),
        ("kv/" * 2000, "File name too long"),
    ],
)
def test_a_folder_that_cannot_be_is_said_by_the_trial_load(
    connector: str, where: str, words: str, tiny_models: TinyModels, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "long").symlink_to(NAME)
    path = tmp_path / where
    flat = storage(path) if connector == "storage" else memory(path, "kv_both")
    refused_alike(
        permitted(tiny_models.path("llama"), **flat), f"shared_{connector}_path .* can't be used: .*{words}"
    )
    assert sorted(os.listdir(tmp_path)) == ["file", "link", "long"]


@pytest.mark.parametrize("mode", [0o755, 0o720])
def test_shared_memory_that_others_may_enter(mode: int, tiny_models: TinyModels, tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    folder.mkdir()
    folder.chmod(mode)
    refused_alike(permitted(tiny_models.path("llama"), **memory(folder, "kv_consumer")), "with mode 0700")
    assert folder.stat().st_mode & 0o777 == mode


def test_shared_memory_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    check_folder(shared(tmp_path, None))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(EngineSetupError, match="must be this user's"):
        check_folder(shared(tmp_path, None))


def test_a_trial_load_makes_no_folder_and_a_start_does(tiny_models: TinyModels, tmp_path: Path) -> None:
    for flat in (storage(tmp_path / "a" / "storage"), memory(tmp_path / "b" / "memory", "kv_both")):
        verdict = permitted(tiny_models.path("llama"), num_gpu_blocks_override=8, **flat)
        before = sorted(os.listdir(tmp_path))
        assert try_load(verdict) is None
        assert sorted(os.listdir(tmp_path)) == before
        LLM.from_verdict(verdict).shutdown()
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a/storage", "b/memory")] == [0o700] * 2


def test_folders_without_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that is asked for, this user may have what the folder's mode gives others."""

    def access(path: Path, asked: int) -> bool:
        return path.stat().st_mode & asked == asked

    monkeypatch.setattr(os, "access", access)
    for mode, reads, writes, makes in (
        (0o700, False, False, False),
        (0o705, True, False, False),
        (0o706, False, False, False),
        (0o703, False, False, True),
        (0o707, True, True, True),
    ):
        tmp_path.chmod(mode)
        for path, stores, can in (
            (tmp_path, False, reads),
            (tmp_path, True, writes),
            (tmp_path / "kv", False, makes),
        ):
            if can:
                check_folder(stored(path, stores=stores))
                continue
            with pytest.raises(
                EngineSetupError, match=f"this user can't (enter or read|write to) '{tmp_path}'"
            ):
                check_folder(stored(path, stores=stores))


def test_what_the_check_did_not_find_is_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(self: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuses)
    with pytest.raises(EngineSetupError, match=r"Permission denied: '.*kv'; name another folder"):
        make_folder(stored(tmp_path / "kv"))


def test_a_folder_that_somebody_makes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_faster(self: Path, **_: object) -> None:
        os.mkdir(self, 0o755)

    monkeypatch.setattr(Path, "mkdir", is_faster)
    with pytest.raises(EngineSetupError, match="with mode 0700"):
        make_folder(shared(tmp_path / "kv"))


def test_more_shared_memory_than_there_is_room_for(tiny_models: TinyModels, tmp_path: Path) -> None:
    verdict = permitted(tiny_models.path("llama"), **memory(tmp_path / "kv", "kv_both", memory_bytes=1 << 60))
    words = "1152921504606846976 bytes are more than the .* GiB that .* has left; lower memory_bytes"
    with pytest.raises(EngineSetupError, match=words):
        try_load(verdict)
    with pytest.raises(EngineSetupError, match=words):
        LLM.from_verdict(verdict)
    assert not (tmp_path / "kv").exists()


def test_room_is_that_of_the_file_system_of_memory_and_of_engines_that_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    system = SimpleNamespace(f_blocks=100, f_frsize=1000, f_bavail=50, f_bfree=60)
    monkeypatch.setattr(os, "statvfs", lambda _: system)
    free = (system.f_bfree if tmp_path.stat().st_uid == 0 else system.f_bavail) * 1000

    def has(room: int, num_engines: int = 1) -> None:
        each = room // num_engines
        check_folder(shared(tmp_path, each), num_engines=num_engines)
        with pytest.raises(EngineSetupError, match="memory_bytes: "):
            check_folder(shared(tmp_path, each + 1), num_engines=num_engines)

    kinds = {"tmpfs": 7000, "ext4": free, None: free}
    monkeypatch.setattr(folders, "available_memory", lambda: 7000)
    for kind, room in kinds.items():
        monkeypatch.setattr(folders, "_file_system", lambda _, kind=kind: kind)
        has(room)
        has(room, 2)
    arena = create_arena(tmp_path, 2, [(Region(0, 1, 0, 1), 10_000)])
    taken = arena.path.stat().st_blocks * 512
    has(free)  # its engine lives
    os.close(arena._descriptor)  # as when it is killed
    arena._descriptor = -1
    assert taken >= 20_000
    has(free + taken)
    system.f_blocks = 0
    check_folder(shared(tmp_path, 1 << 61))


def test_the_kind_of_a_file_system(tmp_path: Path) -> None:
    assert folders._file_system(Path("/proc")) == "proc"
    assert folders._file_system(tmp_path) not in (None, "proc")
    if Path("/dev/shm").is_dir():
        assert folders._file_system(Path("/dev/shm")) == "tmpfs"
