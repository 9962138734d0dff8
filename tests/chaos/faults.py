"""What is done to a run's store and to its web hook while it trains."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

BAD_SECONDS = 4.0
"""How long a web hook behaves badly; after that it takes what it gets."""


class Hook:
    """A web hook that counts what it takes, and behaves badly for its first seconds.

    Args:
        kind: healthy, down (nobody listens), refusing (HTTP 503), hanging, dripping (an answer of
            a byte a second) or redirecting (to an address that counts too).
    """

    KINDS = ("healthy", "down", "refusing", "hanging", "dripping", "redirecting")

    def __init__(self, kind: str) -> None:
        self.taken: Counter[str] = Counter()
        self.strayed = 0
        self._kind = kind
        self._good_at = time.monotonic() + (0.0 if kind == "healthy" else BAD_SECONDS)
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path.startswith("/elsewhere"):
                    outer.strayed += 1
                elif time.monotonic() < outer._good_at:
                    outer._misbehave(self)
                    return
                else:
                    (key,) = (x for x in body["message"].splitlines() if x.startswith("Id:"))
                    outer.taken[f"{key} {body['title'].split(':')[1]}"] += 1
                self.send_response(200)
                self.end_headers()

            do_GET = do_POST  # what a redirect makes of it

            def log_message(self, *_: object) -> None:
                return

        self._server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), Handler, bind_and_activate=False
        )
        self._server.server_bind()
        self.port = self._server.server_port
        listen = threading.Timer(BAD_SECONDS if kind == "down" else 0.0, self._listen)
        listen.daemon = True
        listen.start()
        self._listening = listen

    def _listen(self) -> None:
        self._server.server_activate()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def _misbehave(self, request: http.server.BaseHTTPRequestHandler) -> None:
        if self._kind == "redirecting":
            request.send_response(307)
            request.send_header("Location", f"http://127.0.0.1:{self.port}/elsewhere")
            request.end_headers()
            return
        if self._kind == "hanging":
            time.sleep(BAD_SECONDS)
        if self._kind == "dripping":
            with contextlib.suppress(OSError):
                for byte in b"HTTP/1.0 503 no\r\nX-Drip: " + b"x" * 60:
                    request.wfile.write(bytes([byte]))
                    time.sleep(0.5)
            return
        request.send_response(503)
        request.end_headers()

    def close(self) -> None:
        """Listen no more."""
        self._listening.join()
        self._server.shutdown()
        self._server.server_close()


def lock(store: Path, seconds: float) -> None:
    """Another process' transaction holds the write lock for a while."""
    held = threading.Event()

    def hold() -> None:
        raw = sqlite3.connect(store, timeout=30, isolation_level=None)
        raw.execute("BEGIN IMMEDIATE")
        held.set()
        time.sleep(seconds)
        raw.execute("ROLLBACK")
        raw.close()

    threading.Thread(target=hold, daemon=True).start()
    held.wait(30)


def fill(store: Path, seconds: float) -> None:
    """The disk is full for a while: no store of this process can grow."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    full_until = time.monotonic() + seconds

    def limit(raw: sqlite3.Connection, *_: object) -> None:
        pages = 1 if time.monotonic() < full_until else 2**30  # never below what is in use
        raw.execute(f"PRAGMA max_page_count={pages}").fetchone()

    event.listen(Engine, "checkout", limit)


def take_away(store: Path, seconds: float) -> None:
    """The store's folder is gone for a while, as where a mount is lost, and comes back."""
    away = store.parent.with_name(store.parent.name + ".away")
    store.parent.rename(away)

    def bring_back() -> None:
        time.sleep(seconds)
        with contextlib.suppress(OSError):  # the process may be another one by then
            away.rename(store.parent)

    threading.Thread(target=bring_back, daemon=True).start()


def delete(store: Path, seconds: float) -> None:
    """Somebody removes the store; what was in it is lost, and must be marked."""
    for path in (store, *(store.with_name(store.name + end) for end in ("-wal", "-shm"))):
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


STORE_FAULTS: dict[str, Callable[[Path, float], None]] = {
    "locked": lock,
    "full": fill,
    "away": take_away,
    "deleted": delete,
}


def mend(store: Path) -> None:
    """Between two lives: what a killed process could not bring back."""
    away = store.parent.with_name(store.parent.name + ".away")
    if away.exists() and not store.exists():
        if store.parent.exists():
            store.parent.rmdir()
        away.rename(store.parent)
