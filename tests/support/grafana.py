"""A stand-in for Grafana: what phasewatch calls, held to Grafana's API specification.

It keeps folders, data sources, dashboards, rules and annotations in memory, as Grafana's
documentation says. A request or an answer that the specification does not allow is kept as a
fault, and a test must look at `faults`.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

from openapi_core.testing import MockRequest

from support.grafana_spec import check_answer, check_request, grafana_api
from support.stand_in import StandInServer

TOKEN = "glsa_test_secret_0123456789"
Answer = tuple[int, Any]


class FakeGrafana:
    """A server on a free port of the loopback.

    Attributes:
        prefix: Path under which it is served.
        requests: Method and path of each request.
        faults: What was not as the specification says.
        failures: Statuses to answer next, in place of the true answer; 0 closes the connection.
        delay_seconds: How long it thinks before each answer.
        forbidden: Methods and first parts of paths that the token may not use.
    """

    def __init__(self, prefix: str = "") -> None:
        grafana_api()  # skips here, in the test's own thread, where the specification is absent
        self.prefix = prefix
        self.requests: list[tuple[str, str]] = []
        self.faults: list[str] = []
        self.failures: list[int] = []
        self.delay_seconds = 0.0
        self.forbidden: list[tuple[str, str]] = []
        self.folders: dict[str, dict[str, Any]] = {}
        self.sources: dict[str, dict[str, Any]] = {}
        self.dashboards: dict[str, dict[str, Any]] = {}
        self.rules: dict[str, dict[str, Any]] = {}
        self.annotations: dict[int, dict[str, Any]] = {}
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                fake._serve(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

            def log_message(self, *_: Any) -> None:
                pass

        self._server = StandInServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}{prefix}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def writes(self) -> list[tuple[str, str]]:
        """The requests that may change something."""
        return [request for request in self.requests if request[0] != "GET"]

    # ---- serving

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        self.requests.append((handler.command, handler.path))
        time.sleep(self.delay_seconds)
        if self.failures:
            status = self.failures.pop(0)
            if status:
                self._answer(handler, status, {"message": "made to fail"})
            return
        parts = urlsplit(handler.path)
        if not parts.path.startswith(f"{self.prefix}/api/"):
            page = b"<!doctype html><html>Grafana</html>"  # the start page answers any path
            handler.send_response(200)
            handler.send_header("Content-Type", "text/html; charset=UTF-8")
            handler.send_header("Content-Length", str(len(page)))
            handler.end_headers()
            handler.wfile.write(page)
            return
        path = parts.path.removeprefix(f"{self.prefix}/api")
        if handler.headers.get("Authorization") != f"Bearer {TOKEN}" and path != "/health":
            self._answer(handler, 401, {"message": "Invalid API key"})
            return
        if any(handler.command == m and path.startswith(p) for m, p in self.forbidden):
            self._answer(handler, 403, {"message": "You'll need additional permissions"})
            return
        request = MockRequest(
            "http://127.0.0.1",
            handler.command.lower(),
            f"/api{path}",
            args=parse_qsl(parts.query),
            headers={"x-disable-provenance": handler.headers.get("X-Disable-Provenance", "")},
            data=body,
            content_type=handler.headers.get("Content-Type", "application/json"),
        )
        self._judge(f"request {handler.command} {path}", lambda: check_request(request))
        status, answer = self._route(
            handler.command, path, parts.query, json.loads(body or b"null")
        )
        content = b"" if answer is None else json.dumps(answer).encode()
        if content:
            self._judge(
                f"answer to {handler.command} {path}",
                lambda: check_answer(request, status, content),
            )
        self._answer(handler, status, answer)

    def _judge(self, what: str, check: Callable[[], None]) -> None:
        try:
            check()
        except Exception as error:
            cause = getattr(error, "__cause__", None)
            self.faults.append(f"{what}: {error!r} {getattr(cause, 'schema_errors', cause)!r}")

    @staticmethod
    def _answer(handler: BaseHTTPRequestHandler, status: int, answer: Any) -> None:
        content = b"" if answer is None else json.dumps(answer).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def _route(self, method: str, path: str, query: str, body: Any) -> Answer:
        for pattern, name in _ROUTES:
            if match := re.fullmatch(pattern, path):
                serve = getattr(self, f"_{method.lower()}_{name}", None)
                if serve is not None:
                    return serve(*match.groups(), *([query] if method == "GET" else []), body)
        return 404, {"message": "Not found"}

    # ---- what Grafana does

    def _get_health(self, query: str, body: Any) -> Answer:
        return 200, {"database": "ok", "version": "11.4.0", "commit": "abc"}

    def _get_folder(self, uid: str, query: str, body: Any) -> Answer:
        return self._one(self.folders, uid)

    def _post_folders(self, body: Any) -> Answer:
        if any(folder["title"] == body["title"] for folder in self.folders.values()):
            return 409, {"message": "a folder with the same name already exists"}
        self.folders[body["uid"]] = {"id": 7, "orgId": 1, "version": 1, **body}
        return 200, self.folders[body["uid"]]

    def _delete_folder(self, uid: str, body: Any) -> Answer:
        title = self.folders.pop(uid)["title"]
        return 200, {"id": 7, "title": title, "message": f"Folder {title} deleted"}

    def _get_counts(self, uid: str, query: str, body: Any) -> Answer:
        boards = [d for d in self.dashboards.values() if d["meta"]["folderUid"] == uid]
        rules = [rule for rule in self.rules.values() if rule["folderUID"] == uid]
        return 200, {"folder": 0, "dashboard": len(boards), "alertrule": len(rules)}

    def _get_source(self, uid: str, query: str, body: Any) -> Answer:
        return self._one(self.sources, uid)

    def _post_sources(self, body: Any) -> Answer:
        if any(source["name"] == body["name"] for source in self.sources.values()):
            return 409, {"message": "data source with the same name already exists"}
        return self._keep_source(body)

    def _put_source(self, uid: str, body: Any) -> Answer:
        return self._keep_source(body)

    def _keep_source(self, body: Any) -> Answer:
        source = {"id": 3, "orgId": 1, "version": 1, "readOnly": False, **body}
        self.sources[body["uid"]] = source
        return 200, {
            "id": 3,
            "name": body["name"],
            "message": "Datasource added",
            "datasource": source,
        }

    def _delete_source(self, uid: str, body: Any) -> Answer:
        del self.sources[uid]
        return 200, {"message": "Data source deleted"}

    def _get_dashboard(self, uid: str, query: str, body: Any) -> Answer:
        return self._one(self.dashboards, uid)

    def _post_dashboards(self, body: Any) -> Answer:
        if body["folderUid"] and body["folderUid"] not in self.folders:
            return 400, {"message": "folder not found"}
        uid = body["dashboard"]["uid"]
        old = self.dashboards.get(uid)
        version = 1 if old is None else old["dashboard"]["version"] + 1
        self.dashboards[uid] = {
            "dashboard": body["dashboard"] | {"id": 11, "version": version},
            "meta": {"folderUid": body["folderUid"], "provisioned": False, "version": version},
        }
        title = body["dashboard"]["title"]
        url = f"/d/{uid}/x"
        return 200, {
            "id": 11,
            "uid": uid,
            "title": title,
            "url": url,
            "status": "success",
            "version": version,
        }

    def _delete_dashboard(self, uid: str, body: Any) -> Answer:
        title = self.dashboards.pop(uid)["dashboard"]["title"]
        return 200, {"uid": uid, "title": title, "message": f"Dashboard {title} deleted"}

    def _get_rule(self, uid: str, query: str, body: Any) -> Answer:
        if uid not in self.rules:
            return 404, None
        return 200, self.rules[uid]

    def _post_rules(self, body: Any) -> Answer:
        if body["folderUID"] not in self.folders:
            return 400, {"message": "folder does not exist"}
        self.rules[body["uid"]] = {"id": 5, "provenance": "", "isPaused": False, **body}
        return 201, self.rules[body["uid"]]

    def _put_rule(self, uid: str, body: Any) -> Answer:
        self.rules[uid] = {"id": 5, **body}
        return 200, self.rules[uid]

    def _delete_rule(self, uid: str, body: Any) -> Answer:
        del self.rules[uid]
        return 204, None

    def _get_annotations(self, query: str, body: Any) -> Answer:
        wanted = set(parse_qs(query).get("tags", []))
        return 200, [a for a in self.annotations.values() if wanted <= set(a["tags"])]

    def _post_annotations(self, body: Any) -> Answer:
        number = 1 + len(self.annotations)
        self.annotations[number] = {"id": number, **body}
        return 200, {"id": number, "message": "Annotation added"}

    def _patch_annotation(self, number: str, body: Any) -> Answer:
        self.annotations[int(number)] |= body
        return 200, {"message": "Annotation patched"}

    @staticmethod
    def _one(things: dict[str, dict[str, Any]], uid: str) -> Answer:
        return (200, things[uid]) if uid in things else (404, {"message": "not found"})


_ROUTES = (
    ("/health", "health"),
    ("/folders", "folders"),
    ("/folders/([^/]+)/counts", "counts"),
    ("/folders/([^/]+)", "folder"),
    ("/datasources", "sources"),
    ("/datasources/uid/([^/]+)", "source"),
    ("/dashboards/db", "dashboards"),
    ("/dashboards/uid/([^/]+)", "dashboard"),
    ("/v1/provisioning/alert-rules", "rules"),
    ("/v1/provisioning/alert-rules/([^/]+)", "rule"),
    ("/annotations", "annotations"),
    ("/annotations/([0-9]+)", "annotation"),
)
