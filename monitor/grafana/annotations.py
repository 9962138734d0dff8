"""Writes transitions into a Grafana as annotations: regions from their onset to their end.

Training never waits for Grafana. A thread sends; it is started with the first transition, uses the
standard library alone, and draws from no random generator. What waits is bounded: the latest
state of each transition. A failure is raised from the next call of the sink, so that the watch
counts it.
"""

from __future__ import annotations

import html
import http.client
import json
import threading
import urllib.parse
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from phasewatch.monitor.core.bounded_http import NoAnswerError, fetch
from phasewatch.monitor.core.errors import GrafanaError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.explanation import Explanation, explain
from phasewatch.monitor.core.metrics import label_value
from phasewatch.monitor.core.transitions import Transition, TransitionStatus
from phasewatch.monitor.grafana.access import HOW_TO_TOKEN, base_url, find_token

MAX_PENDING = 256
"""Transitions that wait to be sent; the oldest gives way."""

MAX_BACKOFF_SECONDS = 60.0
MAX_ANSWER_BYTES = 1 << 20
_WITHDRAWN = "withdrawn"
_GOES_BY = frozenset({408, 429, 500, 502, 503, 504})


class GrafanaAnnotations:
    """A sink that writes confirmed transitions through Grafana's API.

    An annotation carries the tags `phasewatch`, the kind, `run:NAME`, `run_id:ID` and
    `transition:ID`. By the
    last it is found again after a resume or a lost answer, so it is never written twice.

    Args:
        url: Address of the Grafana, with the path under which it is served, if any.
        run: Name of the run.
        run_id: Its identity, a tag of its annotations.
        config: What is stored as its configuration, for the words.
        token: Token of a service account that may write annotations; None reads `token_file`, else
            the environment variable PHASEWATCH_GRAFANA_TOKEN.
        token_file: File that holds the token.
        timeout_seconds: How long one answer may take, and the end of a run wait for the last ones.

    Raises:
        ConfigError: The address cannot be one, or there is no token.
    """

    latest_only = True
    """The values are of no interest, only when their steps were."""

    def __init__(
        self,
        url: str,
        run: str,
        *,
        run_id: str = "",
        config: Mapping[str, Any] | None = None,
        token: str | None = None,
        token_file: Path | None = None,
        timeout_seconds: float = 5.0,
    ) -> None:
        self._api = _Api(base_url(url), find_token(token, token_file), timeout_seconds)
        self._run = run
        self._run_id = run_id
        self._config = config
        self._units: dict[str, str] = {}
        self._timeout = timeout_seconds
        self._times = _StepTimes()
        self._pending: dict[str, dict[str, Any]] = {}
        self._ids: dict[str, int] = {}
        self._failures: deque[str] = deque(maxlen=MAX_PENDING)
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def emit(self, observation: Observation) -> None:
        """Note when a step was, and what unit the stream has.

        Raises:
            GrafanaError: An annotation could not be written meanwhile.
        """
        self._times.note(observation.step, observation.timestamp)
        self._units[observation.name] = observation.unit
        self._tell()

    def notify(self, transition: Transition) -> None:
        """Have a transition written that is confirmed, has ended or is withdrawn.

        Raises:
            GrafanaError: An annotation could not be written meanwhile.
        """
        if transition.status is not TransitionStatus.SUSPECTED:
            annotation = self._annotation(transition)
            with self._changed:
                self._pending.pop(transition.id, None)
                self._pending[transition.id] = annotation
                if len(self._pending) > MAX_PENDING:
                    del self._pending[next(iter(self._pending))]
                    self._failures.append("too many annotations wait; the oldest was given up")
                self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._send_all, name="phasewatch-grafana", daemon=True
                )
                self._thread.start()
        self._tell()

    def flush(self) -> None:
        """Do nothing: the thread sends as fast as it can."""

    def close(self) -> None:
        """Wait for what is being sent, at most for the time of one answer.

        Raises:
            GrafanaError: An annotation was not written.
        """
        if self._thread is not None:
            with self._changed:
                self._closing = True
                self._changed.notify()
            self._thread.join(self._timeout)
        with self._changed:
            lost = len(self._pending)
            self._pending.clear()
        if lost:
            last = f"; the last failure: {self._failures[-1]}" if self._failures else ""
            raise GrafanaError(f"{lost} annotations were not written to Grafana{last}")
        self._tell()

    def _tell(self) -> None:
        """Raise one failure of the thread, if there is any."""
        if self._failures:
            raise GrafanaError(self._failures.popleft())

    def _annotation(self, transition: Transition) -> dict[str, Any]:
        """The annotation of a transition, as Grafana's API takes it; times in milliseconds."""
        end = transition.end_step
        withdrawn = transition.status is TransitionStatus.WITHDRAWN
        start = self._times.at(transition.onset_step, transition.detected_at)
        stop = transition.detected_at
        if end is not None:
            stop = self._times.at(end, stop)
        tags = ["phasewatch", transition.kind.value, f"run:{label_value(self._run)}"]
        if self._run_id:
            tags.append(f"run_id:{self._run_id}")
        return {
            "time": round(1000 * start),
            "timeEnd": round(1000 * max(start, stop)),
            "text": _text(explain(transition, config=self._config, units=self._units)),
            "tags": [*tags, f"transition:{transition.id}", *([_WITHDRAWN] if withdrawn else [])],
        }

    # ---- the thread

    def _send_all(self) -> None:
        attempt = 0
        while True:
            with self._changed:
                while not self._pending:
                    if self._closing:
                        return
                    self._changed.wait()
                key, annotation = next(iter(self._pending.items()))
            try:
                self._send(key, annotation)
            except _RefusedError as refusal:
                self._failures.append(str(refusal))
                if refusal.goes_by:
                    if self._closing:
                        return
                    attempt += 1
                    with self._changed:
                        self._changed.wait(min(MAX_BACKOFF_SECONDS, 2.0**attempt))
                    continue
            attempt = 0
            with self._changed:
                if self._pending.get(key) is annotation:  # it may have changed meanwhile
                    del self._pending[key]

    def _send(self, key: str, annotation: dict[str, Any]) -> None:
        known = self._ids.get(key)
        if known is None:
            tag = urllib.parse.quote(f"transition:{key}", safe="")
            known = _first_id(self._api.call("GET", f"/annotations?tags={tag}&limit=1"))
        if known is not None:
            self._api.call("PATCH", f"/annotations/{known}", annotation)
        elif _WITHDRAWN in annotation["tags"]:
            return  # nobody was told of it
        else:
            known = _first_id([self._api.call("POST", "/annotations", annotation)])
        if known is not None:
            self._ids[key] = known


def _first_id(found: Any) -> int | None:
    """Identity of the first annotation of an answer; None where there is none."""
    try:
        return int(found[0]["id"]) if found else None
    except (KeyError, TypeError, ValueError):
        raise _RefusedError(
            "annotation not written: the answer is not what Grafana's API gives", goes_by=False
        ) from None


class _RefusedError(Exception):
    """A call failed; `goes_by` says whether the same call may succeed later."""

    def __init__(self, message: str, *, goes_by: bool) -> None:
        super().__init__(message)
        self.goes_by = goes_by


class _Api:
    """Calls of Grafana's API by the standard library.

    HTTP libraries draw from the process-wide generator: for retries, name servers, certificates.
    """

    def __init__(self, url: str, token: str, timeout_seconds: float) -> None:
        self._url = url
        self._token = token
        self._timeout = timeout_seconds

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            answer = fetch(
                f"{self._url}/api{path}",
                data=None if body is None else json.dumps(body).encode(),
                method=method,
                headers={
                    "Authorization": f"Bearer {self._token}",
                    "Accept": "application/json",
                    "Content-Type": "application/json",
                },
                seconds=self._timeout,
                max_bytes=MAX_ANSWER_BYTES,
            )
            if 200 <= (status := answer.status) < 300:
                return json.loads(answer.body)
            hint = {401: f"; {HOW_TO_TOKEN}", 403: "; the token may not write annotations"}
            reason = f"it answers {status} {http.client.responses.get(status, '')}".rstrip()
            reason += hint.get(status, "")
            goes_by = status in _GOES_BY
        except NoAnswerError as error:
            reason = f"it cannot be reached: {error}"
            goes_by = True
        except ValueError:
            reason = "its answer is not JSON; is the address that of a Grafana's start page?"
            goes_by = False
        text = f"annotation not written to Grafana at {self._url}: {reason}"
        raise _RefusedError(text.replace(self._token, "***"), goes_by=goes_by)


class _StepTimes:
    """When steps were, with as many of them as fit; between them it is a straight line."""

    def __init__(self, capacity: int = 2048) -> None:
        self._capacity = capacity
        self._steps: list[int] = []
        self._seconds: list[float] = []

    def note(self, step: int, seconds: float) -> None:
        if self._steps and step <= self._steps[-1]:
            return
        self._steps.append(step)
        self._seconds.append(seconds)
        if len(self._steps) > self._capacity:
            del self._steps[1::2], self._seconds[1::2]

    def at(self, step: int, otherwise: float) -> float:
        if not self._steps:
            return otherwise
        return float(np.interp(step, self._steps, self._seconds))


def _text(told: Explanation) -> str:
    """What people read. Grafana shows it as HTML, so names are escaped."""
    return "<br>".join(html.escape(line) for line in str(told).splitlines())
