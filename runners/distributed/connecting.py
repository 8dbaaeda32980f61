"""Connections between the engine's process and workers that it did not start itself, over TCP.

Both ends prove that they have the same key before anything is read. Messages are not encrypted.
"""

from __future__ import annotations

import contextlib
import secrets
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge

_PROOF_S = 5
"""Seconds in which who connects must have proved that it has the key."""

_REACHED_S = 30.0
"""Seconds in which a worker must have reached the engine's machine."""

_SLICE_S = 0.25
"""Seconds between two looks at the time, and whether waiting is of use."""

_IDLE_S, _BETWEEN_S, _PROBES = 20, 10, 4
"""A machine that is gone, or its network, is noticed within a minute, where nothing is on its way to it."""


class Listener:
    """Takes the workers' connections at an address of this machine, on a port that the system chooses."""

    def __init__(self, host: str) -> None:
        self._socket = socket.create_server((host, 0), family=_family(host))
        self._socket.settimeout(_SLICE_S)
        self.host: str = host
        self.port: int = self._socket.getsockname()[1]
        self.key = secrets.token_bytes(32)

    def accept(self, count: int, limit_s: float, check: Callable[[], None]) -> Mapping[int, Connection]:
        """The connections of the ranks 0 .. count-1. check: is called while they are waited for, and may
        raise.

        Raises TimeoutError where they do not come within `limit_s` seconds.
        """
        found: dict[int, Connection] = {}
        deadline = time.monotonic() + limit_s
        try:
            while len(found) < count:
                check()
                if time.monotonic() > deadline:
                    missing = sorted(set(range(count)) - found.keys())
                    raise TimeoutError(f"no connection from ranks {missing} within {limit_s:.0f} s")
                with contextlib.suppress(TimeoutError):
                    accepted, _ = self._socket.accept()
                    proved = self._prove(accepted)
                    if proved is not None:
                        rank, connection = proved
                        found[rank] = connection
        except BaseException:
            for connection in found.values():
                connection.close()
            raise
        return found

    def close(self) -> None:
        """Take no more connections. Idempotent."""
        self._socket.close()

    def _prove(self, accepted: socket.socket) -> tuple[int, Connection] | None:
        """The rank that connected; None where it does not have the key, or says nothing."""
        accepted.setblocking(True)
        _limit_reads(accepted, _PROOF_S)
        _watch(accepted)
        descriptor = accepted.detach()
        connection = Connection(descriptor)
        try:
            deliver_challenge(connection, self.key)
            answer_challenge(connection, self.key)
            rank = int.from_bytes(connection.recv_bytes(8))
        except (AuthenticationError, AssertionError, EOFError, OSError, ValueError):
            connection.close()
            return None
        with socket.socket(fileno=descriptor) as same:
            _limit_reads(same, 0)
            same.detach()
        return rank, connection


def connect(host: str, port: int, key: bytes, rank: int) -> Connection:
    """A worker's connection to the engine's process.

    Raises OSError where it can't be reached, and AuthenticationError where it does not have the key.
    """
    connected = socket.create_connection((host, port), timeout=_REACHED_S)
    connected.setblocking(True)
    _watch(connected)
    # The engine's process reads all answers, so that one which is unread as long as this has not arrived.
    unread_ms = 1000 * (_IDLE_S + _BETWEEN_S * _PROBES)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unread_ms)
    connection = Connection(connected.detach())
    try:
        answer_challenge(connection, key)
        deliver_challenge(connection, key)
        connection.send_bytes(rank.to_bytes(8))
    except BaseException:
        connection.close()
        raise
    return connection


def hang_up(connection: Connection) -> None:
    """End the connection for both ends; who waits for its end hears of it. It stays to be closed."""
    with contextlib.suppress(OSError), socket.socket(fileno=connection.fileno()) as same:
        try:
            same.shutdown(socket.SHUT_RDWR)
        finally:
            same.detach()


def wait_for_end(connection: Connection) -> None:
    """Wait until either end has hung up, or the other one is gone; messages may be read meanwhile."""
    ended = select.poll()
    ended.register(connection.fileno(), select.POLLRDHUP)  # an error is reported, too
    ended.poll()


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _limit_reads(connected: socket.socket, seconds: int) -> None:
    """Let reads fail that take longer; 0: none."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, 0))


def _watch(connected: socket.socket) -> None:
    """Send small messages at once, and let the connection fail where the other machine is gone."""
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _BETWEEN_S)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
