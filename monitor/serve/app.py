"""The web application: addresses, answers, and the server that runs until it is told to stop."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import signal
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aiohttp import web
from plotly.offline import get_plotlyjs

from phasewatch.monitor.core.errors import ConfigError, PhasewatchError
from phasewatch.monitor.reports.tables import FORMATS, write_table
from phasewatch.monitor.serve.access import Access
from phasewatch.monitor.serve.comparison import compare
from phasewatch.monitor.serve.content import Library, Shelf
from phasewatch.monitor.store.store import RunInfo, Store

MAX_KEYS = 200
"""Runs, or streams, that one question may name."""

TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}

LIBRARY = web.AppKey("library", Library)


def make_app(stores: Sequence[Store], access: Access) -> web.Application:
    """The application over some stores.

    Args:
        stores: The run histories.
        access: Who may see it.
    """
    app = web.Application(middlewares=[access.guard, _told])
    app[LIBRARY] = Library(stores)
    app.on_cleanup.append(_close)
    app.add_routes(
        [
            web.get("/", _page),
            web.get("/run/{key}", _page),
            web.get("/compare", _page),
            web.get("/static/{name}", _static),
            web.get("/api/runs", _runs),
            web.get("/api/sparks", _sparks),
            web.get("/api/compare", _compare),
            web.get("/api/run/{key}", _run),
            web.get("/api/run/{key}/series", _series),
            web.get("/run/{key}/report.html", _report),
            web.get("/run/{key}/export.{form}", _export),
        ]
    )
    return app


async def serve(
    stores: Sequence[Store],
    *,
    host: str,
    port: int,
    access: Access,
    ready: Callable[[str], None],
) -> None:
    """Serve the page until the process is interrupted or told to end.

    Args:
        stores: The run histories.
        host: Address to listen on.
        port: Port to listen on; 0 takes any that is free.
        access: Who may see it.
        ready: Called with the address of the page once it is there.

    Raises:
        ConfigError: The address or the port cannot be had.
    """
    runner = web.AppRunner(make_app(stores, access), access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ConfigError(
                f"{host}:{port} cannot be listened on: {error.strerror}; give --port another, or 0 "
                "for any that is free"
            ) from error
        stop = asyncio.Event()
        for name in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
        shown = f"[{host}]" if ":" in host else host
        query = f"?token={access.token}" if access.token else ""
        ready(f"http://{shown}:{runner.addresses[0][1]}/{query}")
        await stop.wait()
    finally:
        await runner.cleanup()


async def _close(app: web.Application) -> None:
    await asyncio.to_thread(app[LIBRARY].close)


@web.middleware
async def _told(request: web.Request, handler: Any) -> web.StreamResponse:
    """What goes wrong on purpose is said as JSON."""
    try:
        response: web.StreamResponse = await handler(request)
    except PhasewatchError as error:
        return web.json_response({"error": str(error)}, status=404)
    return response


async def _answer(request: web.Request, make: Callable[[], Any]) -> web.Response:
    """JSON made beside the event loop; nothing but a mark where the visitor has it already."""
    text = await asyncio.to_thread(lambda: json.dumps(make(), allow_nan=False))
    mark = hashlib.sha256(text.encode()).hexdigest()[:32]
    if any(tag.value == mark for tag in request.if_none_match or ()):
        return web.Response(status=304)
    response = web.json_response(text=text)
    response.etag = mark
    response.headers["Cache-Control"] = "no-cache"
    response.enable_compression()
    return response


async def _page(_: web.Request) -> web.Response:
    return web.Response(text=_read("index.html"), content_type="text/html")


async def _static(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    if name == "plotly.js":
        text = get_plotlyjs()
    elif name in _names():
        text = _read(name)
    else:
        raise web.HTTPNotFound
    mark = hashlib.sha256(text.encode()).hexdigest()[:32]
    if any(tag.value == mark for tag in request.if_none_match or ()):
        return web.Response(status=304)
    response = web.Response(text=text, content_type=TYPES[name.rpartition(".")[2]])
    response.etag = mark
    response.headers["Cache-Control"] = "no-cache"
    response.enable_compression()
    return response


def _names() -> set[str]:
    return {path.name for path in files(__package__).joinpath("static").iterdir()}


def _read(name: str) -> str:
    return files(__package__).joinpath("static", name).read_text(encoding="utf-8")


async def _runs(request: web.Request) -> web.Response:
    return await _answer(request, request.app[LIBRARY].runs)


async def _sparks(request: web.Request) -> web.Response:
    keys = request.query.getall("run", [])[:MAX_KEYS]
    return await _answer(request, lambda: request.app[LIBRARY].sparks(keys))


async def _run(request: web.Request) -> web.Response:
    key = request.match_info["key"]
    return await _answer(request, lambda: request.app[LIBRARY].run(key))


async def _series(request: web.Request) -> web.Response:
    key, names = request.match_info["key"], request.query.getall("name", [])[:MAX_KEYS]
    view = _number(request, "from", -math.inf), _number(request, "to", math.inf)
    timed = "timed" in request.query
    return await _answer(
        request, lambda: request.app[LIBRARY].series(key, names, view, timed=timed)
    )


def _number(request: web.Request, name: str, otherwise: float) -> float:
    given = request.query.get(name, "")
    try:
        number = float(given) if given else otherwise
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise web.HTTPBadRequest(text=f"{name} is {given!r}; it must be a number")
    return number


async def _compare(request: web.Request) -> web.Response:
    keys = request.query.getall("run", [])[:MAX_KEYS]
    names = request.query.getall("name", [])[:MAX_KEYS]
    align = request.query.get("align", "")
    return await _answer(request, lambda: compare(request.app[LIBRARY], keys, names, align))


async def _found(request: web.Request) -> tuple[Shelf, RunInfo]:
    key = request.match_info["key"]
    (found,) = await asyncio.to_thread(request.app[LIBRARY].find, key)
    return found


async def _report(request: web.Request) -> web.Response:
    from phasewatch.monitor.reports.data import read_run
    from phasewatch.monitor.reports.run_page import render

    shelf, info = await _found(request)
    page = await asyncio.to_thread(lambda: render([read_run(shelf.store, info.id)]))
    response = web.Response(text=page, content_type="text/html")
    response.headers["Content-Security-Policy"] = "frame-ancestors 'none'"  # the page has its own
    response.enable_compression()
    return response


async def _export(request: web.Request) -> web.StreamResponse:
    form = request.match_info["form"]
    if form not in FORMATS:
        raise web.HTTPNotFound(text=f"no format {form!r}; there are {', '.join(FORMATS)}")
    shelf, info = await _found(request)
    response = web.StreamResponse()
    name = f"{info.id}.{form}"
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    response.content_type = FORMATS[form]
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        await asyncio.to_thread(write_table, shelf.store, info.id, path, form)
        await response.prepare(request)
        with path.open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, 1 << 20):
                await response.write(chunk)
    await response.write_eof()
    return response
