"""The folders of KV connectors: trial loads check them and make nothing, starts make them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dodona.oracle.machine.memory import available_memory
from dodona.oracle.systems.own.kv_transfer import (
    KVTransferSettings,
    SharedMemorySettings,
    SharedStorageSettings,
)
from dodona.runners.errors import EngineSetupError
from dodona.runners.kv_transfer.shared_memory.arena import files_of_ended

_MOUNTS: Final = Path("/proc/self/mountinfo")
_IN_MEMORY: Final = ("tmpfs", "devtmpfs", "ramfs")
_OF_THE_SYSTEM: Final = (
    "proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue", "debugfs", "tracefs", "securityfs", "configfs",
    "bpf", "pstore", "efivarfs",
)  # fmt: skip
"""File systems that take nobody's files, also where their modes say so."""


def check_folder(settings: KVTransferSettings | None, *, num_engines: int = 1) -> None:
    """Raise EngineSetupError where the connector's folder can't be made or used by this user, where others
    can write to shared memory, or where there is too little room for it. Makes nothing.

    num_engines: those that will share memory in it.
    """
    if isinstance(settings, SharedStorageSettings):
        where = f"kv_connector_extra_config: shared_storage_path {str(settings.path)!r}"
        _check_access(settings.path, where, writes=settings.stores)
    elif isinstance(settings, SharedMemorySettings):
        where = f"kv_connector_extra_config: shared_memory_path {str(settings.path)!r}"
        _check_is_own(settings.path, where)
        _check_access(settings.path, where, writes=settings.memory_bytes is not None)
        if settings.memory_bytes is not None:
            _check_room(settings.path, settings.memory_bytes, num_engines)


def make_folder(settings: KVTransferSettings | None) -> None:
    """Make the connector's folder, if it has one. Raises what `check_folder` raises."""
    check_folder(settings)
    if not isinstance(settings, SharedStorageSettings | SharedMemorySettings):
        return
    try:
        settings.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EngineSetupError(f"kv_connector_extra_config: {error}; name another folder") from error
    check_folder(settings)  # somebody else may have made it meanwhile


def _check_is_own(path: Path, where: str) -> None:
    try:
        status = path.stat()
    except OSError:
        return  # it is to be made, or can't be used
    if path.is_dir() and (status.st_uid != os.geteuid() or status.st_mode & 0o077):
        raise EngineSetupError(
            f"{where} must be this user's, with mode 0700: who can write there can give wrong keys and values"
        )


def _check_access(path: Path, where: str, *, writes: bool) -> None:
    nearest = _nearest(path)
    needs = os.W_OK | os.X_OK  # to make a folder in it
    if nearest == path:
        needs = os.R_OK | os.X_OK | (os.W_OK if writes else 0)
    fault = _fault(nearest, needs)
    if fault is None and nearest != path:
        fault = _fault_of_names(path, nearest, path.parts[len(nearest.parts) :])
    if fault is not None:
        raise EngineSetupError(f"{where} can't be used: {fault}; name another folder")


def _nearest(path: Path) -> Path:
    """The folder, or what there is of its parents."""
    return next((place for place in (path, *path.parents) if os.path.lexists(place)), Path())


def _fault(folder: Path, needs: int) -> str | None:
    """needs: as `os.access` takes it."""
    if not os.path.isdir(folder):  # Path.is_dir raises where a link leads to what nobody may look at
        return f"{str(folder)!r} is no folder"
    kind = _file_system(folder)
    if kind in _OF_THE_SYSTEM:
        return f"{str(folder)!r} belongs to the system ({kind})"
    if not os.access(folder, needs & ~os.W_OK):
        return f"this user can't enter or read {str(folder)!r}"
    if not os.access(folder, needs):
        return f"this user can't write to {str(folder)!r}"
    return None


def _fault_of_names(path: Path, folder: Path, names: Iterable[str]) -> str | None:
    """Why the file system takes no such names."""
    for place in (path, *(folder / name for name in names)):
        try:
            place.lstat()
        except FileNotFoundError:
            continue
        except OSError as error:
            return error.strerror
    return None


def _check_room(path: Path, memory_bytes: int, num_engines: int) -> None:
    room = _room(path)
    if room is None or memory_bytes * num_engines <= room:
        return
    needed = f"{memory_bytes}" if num_engines == 1 else f"{num_engines} times {memory_bytes}"
    raise EngineSetupError(
        f"kv_connector_extra_config: memory_bytes: {needed} bytes are more than the {room / 2**30:.4g} GiB "
        f"that {str(path)!r} has left; lower memory_bytes, or give the folder's file system more room"
    )


def _room(path: Path) -> int | None:
    """Bytes that can still be written below a folder, with those of engines that have ended; None: not
    known."""
    nearest = _nearest(path)
    status = os.statvfs(nearest)
    is_root = os.geteuid() == 0
    known = [(status.f_bfree if is_root else status.f_bavail) * status.f_frsize] if status.f_blocks else []
    if _file_system(nearest) in _IN_MEMORY:
        # Memory that isn't there is no error of such a file system: the system ends the process.
        known += [left] if (left := available_memory()) is not None else []
    if not known:
        return None
    ended = sum(file.lstat().st_blocks for file in files_of_ended(path)) * 512
    return min(known) + ended


def _file_system(folder: Path) -> str | None:
    """The kind of file system that a folder is in; None: not known."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = _MOUNTS.read_text(errors="replace").splitlines()
    except OSError:
        return None
    for mount in mounts:
        place, _, source = mount.partition(" - ")
        if place.split()[2] == number:
            return source.split()[0]
    return None
