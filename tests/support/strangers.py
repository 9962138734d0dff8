"""Servers that answer badly: they drip, flood, redirect, hang or hang up."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

Behaviour = Callable[[socket.socket], None]


def drip_head(connection: socket.socket) -> None:
    """Send a header, a byte at a time, without an end."""
    for byte in b"HTTP/1.0 200 OK\r\nX-A: " + b"a" * 4000:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def drip_body(connection: socket.socket) -> None:
    """Say yes at once, then send a body a byte at a time, without an end."""
    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
    for _ in range(4000):
        connection.sendall(b"x")
        time.sleep(0.05)


def flood(connection: socket.socket) -> None:
    """Say yes, and send three gigabytes."""
    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
    for _ in range(3000):
        connection.sendall(b"x" * 1_000_000)


def hang(connection: socket.socket) -> None:
    """Take everything and say nothing."""
    while connection.recv(65536):
        pass


def cut(connection: socket.socket) -> None:
    """Hang up in the middle of a line."""
    connection.sendall(b"HTTP/1.0 20")


def babble(connection: socket.socket) -> None:
    """Speak no HTTP."""
    connection.sendall(b"220 mail.example ESMTP\r\n" * 3)


def redirect_to(address: str, status: int = 302) -> Behaviour:
    """Send whoever asks to another place."""

    def redirect(connection: socket.socket) -> None:
        connection.sendall(
            f"HTTP/1.0 {status} Moved\r\nLocation: {address}\r\nContent-Length: 0\r\n\r\n".encode()
        )

    return redirect


@contextlib.contextmanager
def stranger(behave: Behaviour) -> Iterator[tuple[int, list[bytes]]]:
    """A server that behaves so to everybody; its port, and what it was asked."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            asked.append(connection.recv(65536))
            behave(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True, name="phasewatch-stranger").start()
    try:
        yield listener.getsockname()[1], asked
    finally:
        listener.close()
