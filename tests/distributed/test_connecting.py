"""Workers that connect over TCP: who has no key is refused, and holds up nobody."""

from __future__ import annotations

import socket
import threading
import time
from datetime import timedelta
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection

import pytest

from dodona.runners.distributed import ray_actors
from dodona.runners.distributed.connecting import Listener, connect, hang_up, wait_for_end
from dodona.runners.distributed.joining import open_store, store_at

LIMIT = 60.0


def nothing() -> None:
    """Waiting goes on."""


@pytest.fixture(params=["127.0.0.1", "::1"])
def listener(request: pytest.FixtureRequest):
    try:
        made = Listener(request.param)
    except OSError as error:
        pytest.skip(f"no loopback address {request.param}: {error}")
    yield made
    made.close()


def test_each_rank_gets_its_own_connection(listener: Listener) -> None:
    def work(rank: int) -> None:
        time.sleep(0.1 * (2 - rank))  # the last one connects first
        with connect(listener.host, listener.port, listener.key, rank) as connection:
            connection.send_bytes(connection.recv_bytes() + b" from %d" % rank)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    found = listener.accept(3, LIMIT, nothing)
    assert sorted(found) == [0, 1, 2]
    for rank, connection in found.items():
        connection.send_bytes(b"x" * (1 << 20) + b"to %d" % rank)
    for rank, connection in found.items():
        assert connection.recv_bytes() == b"x" * (1 << 20) + b"to %d from %d" % (rank, rank)
        connection.close()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("by", ["engine", "worker"])
def test_a_worker_hears_of_the_end_beside_its_messages(listener: Listener, by: str) -> None:
    made: list[Connection] = []
    thread = threading.Thread(
        target=lambda: made.append(connect(listener.host, listener.port, listener.key, 0))
    )
    thread.start()
    ours = listener.accept(1, LIMIT, nothing)[0]
    thread.join()
    (theirs,) = made
    ended = threading.Thread(target=wait_for_end, args=(theirs,))
    ended.start()
    ours.send_bytes(b"unread")
    ended.join(0.3)
    assert ended.is_alive()
    ours.close() if by == "engine" else hang_up(theirs)
    ended.join(LIMIT)
    assert not ended.is_alive()
    if by == "worker":
        with pytest.raises((EOFError, OSError)):
            ours.recv_bytes()
        ours.close()
    theirs.close()


def test_strangers_are_refused_and_workers_come_after_them(listener: Listener) -> None:
    silent = socket.create_connection((listener.host, listener.port))
    noisy = socket.create_connection((listener.host, listener.port))
    noisy.sendall(b"GET / HTTP/1.1\r\n\r\n")
    refused: list[Exception] = []

    def work() -> None:
        for key in (b"another key", listener.key):
            try:
                connect(listener.host, listener.port, key, 0)
            except (AuthenticationError, OSError) as error:
                refused.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    found = listener.accept(1, LIMIT, nothing)
    thread.join()
    assert len(refused) == 1
    assert list(found) == [0]
    found[0].close()
    silent.close()
    noisy.close()


def test_waiting_ends_where_nobody_comes_or_it_is_of_no_use(listener: Listener) -> None:
    with pytest.raises(TimeoutError, match=r"no connection from ranks \[0, 1\]"):
        listener.accept(2, 0.3, nothing)

    def ended() -> None:
        raise OSError("the worker of rank 0 has ended")

    with pytest.raises(OSError, match="has ended"):
        listener.accept(2, LIMIT, ended)


def test_a_store_of_several_machines_is_at_one_address() -> None:
    with store_at("127.0.0.1") as address:
        assert address.startswith("tcp://127.0.0.1:")
        limit = timedelta(seconds=LIMIT)
        ranks = [open_store(address, 2, limit) for _ in range(2)]
        ranks[0].set("rank-0", "here")
        assert ranks[1].get("rank-0") == b"here"
        port = int(address.rpartition(":")[2])
        with pytest.raises(ConnectionRefusedError):  # it does not listen on all addresses
            socket.create_connection(("127.0.0.2", port), timeout=5)


@pytest.mark.parametrize(
    ("visible", "name", "number"),
    [(None, "3", 3), ("", "0", 0), ("2,3", "3", 1), ("GPU-a,GPU-b", "GPU-b", 1)],
)
def test_rays_gpu_among_the_visible_ones(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, name: str, number: int
) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert ray_actors.visible_number(name) == number


def test_the_interface_of_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psutil")
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    assert ray_actors.interface_variables("127.0.0.1") == {
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "=lo",
    }
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert ray_actors.interface_variables("127.0.0.1") == {"NCCL_SOCKET_IFNAME": "=lo"}
    with pytest.raises(RuntimeError, match=r"no network interface has the address 192\.0\.2\.1.*set NCCL"):
        ray_actors.interface_variables("192.0.2.1")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth7")
    assert ray_actors.interface_variables("192.0.2.1") == {}
