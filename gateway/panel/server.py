"""The panel's web server: the page, the status as JSON, pictures, metrics. GET only; nothing ticks while nobody looks."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from gateway.errors import ControlError, OctogateError
from gateway.panel.daemon import Daemon, Picture

log = logging.getLogger("gateway.panel")

MAX_CONNECTIONS = 64  # past it the oldest is closed: who opens and says nothing cannot lock others out
SHUTDOWN_S = 0.3
HERE = Path(__file__).parent
ASSETS = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/tools.js": ("tools.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
PICTURE_MEDIA = ("image/jpeg", "image/png")

DAEMON: web.AppKey[Daemon] = web.AppKey("daemon", Daemon)
SPOOL: web.AppKey[Path] = web.AppKey("spool", Path)
HOSTS: web.AppKey[Any] = web.AppKey("hosts", object)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(control: Path, spool: Path, host: str = "127.0.0.1") -> web.Application:
    """The panel as an aiohttp application.

    Args:
        control: the daemon's control socket; it may come and go.
        spool: the spool's file, of which only the size and the free room around it are read.
        host: the address it is bound to; requests that name another host are refused.
    """
    app = web.Application(middlewares=[_guard], client_max_size=1024)
    app[DAEMON] = Daemon(control)
    app[SPOOL] = spool
    app[HOSTS] = _allowed_hosts(host)
    for path, (name, media) in ASSETS.items():
        app.router.add_get(path, _asset(HERE / name, media), allow_head=False)
    for path, handler in (
        ("/healthz", _healthz),
        ("/api/status", _status),
        ("/api/pipelines/{name}", _pipeline),
        ("/api/sources/{name}/annotation", _annotation),
        ("/api/sources/{name}/picture", _picture),
        ("/metrics", _metrics),
    ):
        app.router.add_get(path, handler, allow_head=False)
    app.on_response_prepare.append(_add_headers)
    app.on_cleanup.append(_close)
    return app


@asynccontextmanager
async def serve(app: web.Application, host: str, port: int) -> AsyncIterator[str]:
    """Listen until the block is left; gives the address to open, with the real port if `port` is 0.

    Raises:
        OctogateError: the address cannot be had.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S, keepalive_timeout=15)
    await runner.setup()
    assert runner.server is not None
    try:
        server = await asyncio.get_running_loop().create_server(_bounded(runner.server), host, port, backlog=32)
    except OSError as error:
        await runner.cleanup()
        raise OctogateError(
            f"cannot listen on {host}:{port}: {os.strerror(error.errno) if error.errno else error}",
            hint="choose another [panel] port or end what uses it",
        ) from error
    bound = server.sockets[0].getsockname()
    if not ipaddress.ip_address(bound[0]).is_loopback:
        log.warning("the page is open to the network on %s: it shows readings and pictures without a login", bound[0])
    try:
        yield f"http://{f'[{host}]' if ':' in host else host}:{bound[1]}/"
    finally:
        server.close()
        await runner.cleanup()


def _bounded(server: web.Server) -> Callable[[], web.RequestHandler]:
    def make() -> web.RequestHandler:
        if len(server.connections) >= MAX_CONNECTIONS:
            server.connections[0].force_close()
        return server()

    return make


def _allowed_hosts(bound: str) -> Callable[[str], bool]:
    """Whether a Host header's name may ask: keeps a rebound name of a foreign page out."""
    names = {"localhost", "127.0.0.1", "[::1]", bound, f"[{bound}]"}
    wildcard = bound in ("0.0.0.0", "::", "")
    if wildcard:
        names.add(socket.gethostname().lower())

    def allowed(header: str) -> bool:
        name = header.strip().lower()
        if name.rpartition(":")[2].isdigit() and not name.endswith("]"):
            name = name.rpartition(":")[0]
        return name in names or (wildcard and _is_address(name))  # rebinding needs a name, never an address

    return allowed


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse foreign hosts; give every refusal as JSON with what is wrong and what to do."""
    if not request.app[HOSTS](request.headers.get("Host", "")):
        return _refused(403, "this name is not served", "open it as localhost or by the [panel] host")
    if request.method != "GET":
        return _refused(405, "the panel only answers GET")
    try:
        return await handler(request)
    except ControlError as error:
        return _refused(503, error.what, error.hint, **_disk(request.app[SPOOL]))
    except web.HTTPNotFound as error:
        return _refused(404, error.text if error.text != "404: Not Found" else "there is no such page")


def _refused(status: int, error: str | None, hint: str = "", **more: int) -> web.Response:
    return _json(msgspec.json.encode({"error": error or "", "hint": hint, **more}), status)


def _json(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json", charset="utf-8")


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["Server"] = "octogate"


async def _close(app: web.Application) -> None:
    await app[DAEMON].close()


def _asset(path: Path, media: str) -> Handler:
    body = path.read_bytes()
    etag = hashlib.sha256(body).hexdigest()[:16]

    async def handler(request: web.Request) -> web.StreamResponse:
        return _cached(request, body, etag, media, charset="utf-8")

    return handler


def _cached(request: web.Request, body: bytes, etag: str, media: str, charset: str | None = None) -> web.Response:
    known = request.if_none_match or ()
    response = (
        web.Response(status=304)
        if any(tag.value == etag for tag in known)
        else web.Response(body=body, content_type=media, charset=charset)
    )
    response.etag = etag
    response.headers["Cache-Control"] = "no-cache"
    return response


async def _healthz(_: web.Request) -> web.StreamResponse:
    """The panel itself is alive; the daemon is not asked."""
    return web.Response(text="ok\n")


async def _status(request: web.Request) -> web.StreamResponse:
    return _json(await request.app[DAEMON].status_json())


async def _pipeline(request: web.Request) -> web.StreamResponse:
    """The newest inference of a pipeline."""
    name = request.match_info["name"]
    status = await request.app[DAEMON].status()
    pipeline = next((p for p in status.pipelines if p.name == name), None)
    if pipeline is None:
        raise web.HTTPNotFound(text=f"there is no pipeline '{name}'")
    if pipeline.newest is None:
        raise web.HTTPNotFound(text=f"pipeline '{name}' has not run yet")
    return _json(msgspec.json.encode(pipeline.newest))


async def _newest_picture(request: web.Request, seq: int | None = None) -> Picture:
    name = request.match_info["name"]
    daemon = request.app[DAEMON]
    status = await daemon.status()
    if name not in status.pictures and all(source.name != name for source in status.sources):
        raise web.HTTPNotFound(text=f"there is no source '{name}'")
    try:
        picture = await daemon.picture(name, seq)
    except ControlError as error:  # it answered a moment ago: there is none
        raise web.HTTPNotFound(text=error.what) from error
    if picture is None:
        raise web.HTTPNotFound(text=f"source '{name}' has no such picture yet")
    return picture


async def _annotation(request: web.Request) -> web.StreamResponse:
    """Number and inference of the newest picture; the page then loads `picture?seq=` of that number."""
    picture = await _newest_picture(request)
    return _json(msgspec.json.encode({"seq": picture.seq, "inference": picture.inference}))


async def _picture(request: web.Request) -> web.StreamResponse:
    """The newest picture as it came from the camera; its number is the ETag."""
    asked = request.query.get("seq", "")
    picture = await _newest_picture(request, int(asked) if asked.isdecimal() and len(asked) < 20 else None)
    media = picture.media if picture.media in PICTURE_MEDIA else "application/octet-stream"
    return _cached(request, picture.data, str(picture.seq), media)


async def _metrics(request: web.Request) -> web.StreamResponse:
    """Prometheus or OpenMetrics text. A daemon that is away is a value (octogate_up 0), not a failed scrape."""
    from gateway.panel import metrics  # 4 MB that only a scraped panel pays for

    try:
        status = await request.app[DAEMON].status()
    except ControlError:
        status = None
    body, media = metrics.render(status, _disk(request.app[SPOOL]), request.headers.get("Accept", ""))
    return web.Response(body=body, headers={"Content-Type": media})


def _disk(spool: Path) -> dict[str, int]:
    """What the disk says about the spool even while the daemon is away; empty when there is none yet."""
    try:
        room = os.statvfs(spool.parent)
        return {"spool_bytes": spool.stat().st_size, "disk_free_bytes": room.f_bavail * room.f_frsize}
    except OSError:
        return {}
