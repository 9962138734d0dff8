"""Stand-ins for the places that alerts go to."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from support.stand_in import StandInServer


@dataclass
class Answer:
    """What a target does with one request.

    Attributes:
        status: Status it answers with.
        headers: Headers beside it.
        hang: Seconds it says nothing.
        drop: Close the connection without an answer, after the request was read.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hang: float = 0.0
    drop: bool = False


class HttpTarget:
    """A web server that keeps what it is sent, and answers as it is told.

    Attributes:
        answers: What to do with the next requests; 200 once there are none.
        taken: Bodies of the requests answered with 200, in order.
        seen: Every request: when, path, body.
    """

    def __init__(self, port: int = 0) -> None:
        self.answers: deque[Answer] = deque()
        self.always: Answer | None = None
        self.taken: list[Any] = []
        self.seen: list[tuple[float, str, Any]] = []
        self._released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(size) or b"null")
                outer.seen.append((time.monotonic(), self.path, body))
                answer = outer.always or (outer.answers.popleft() if outer.answers else Answer())
                if answer.hang:
                    outer._released.wait(answer.hang)
                if answer.drop:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                if answer.status == 200:
                    outer.taken.append(body)
                with contextlib.suppress(OSError):
                    self.send_response(answer.status)
                    for name, value in answer.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self._server = StandInServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """The target as Apprise names it."""
        return f"json://127.0.0.1:{self.port}/hook"

    @property
    def ids(self) -> list[str]:
        """Transition ids of the messages taken, in order."""
        return [transition_id(body) for body in self.taken]

    def close(self) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def transition_id(body: Any) -> str:
    """The id that a message ends with."""
    return str(body["message"]).rsplit("Id: ", 1)[1].strip()


@contextlib.contextmanager
def http_target(port: int = 0) -> Iterator[HttpTarget]:
    target = HttpTarget(port)
    try:
        yield target
    finally:
        target.close()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class FailingSmtp:
    """A mail server that takes the greeting and refuses every mail for now.

    Attributes:
        num_mails: How many were refused after their text had been sent.
        largest: Bytes of the largest.
    """

    def __init__(self) -> None:
        from aiosmtpd.controller import Controller

        self.num_mails = 0
        self.largest = 0
        outer = self

        class Handler:
            async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
                outer.num_mails += 1
                outer.largest = max(outer.largest, len(envelope.content))
                return "451 come back later"

        self._controller = Controller(Handler(), hostname="127.0.0.1", port=free_port())
        self._controller.start()

    @property
    def url(self) -> str:
        port = self._controller.port
        return f"mailto://127.0.0.1:{port}?from=a@example.org&to=b@example.org&mode=insecure"

    def close(self) -> None:
        self._controller.stop()


def notify(watch: Any, transition: Any) -> None:
    """Have a watch say that a transition has changed, as its detectors would."""
    watch._sinks.notify(transition)


Check = Callable[[], bool]
