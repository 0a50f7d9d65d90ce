"""The report as a local web page, current at each load. Reads the store, and writes nothing."""

from __future__ import annotations

import socket
import threading
from importlib.util import find_spec
from typing import TYPE_CHECKING

from klscale.errors import InputError, KlscaleError
from klscale.progress import SILENT, Progress
from klscale.show import pages, reports
from klscale.show.contents import read_contents
from klscale.store.store import Store

if TYPE_CHECKING:
    from starlette.applications import Starlette

LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class _Pages:
    """The page of a store; made anew where the store has changed since."""

    def __init__(self, store: Store, texts: str | None, progress: Progress) -> None:
        self.store, self.texts, self.progress = store, texts, progress
        self.made_from, self.page = "", ""
        self.lock = threading.Lock()

    def current(self) -> str:
        with self.lock:
            if (made_from := self._state()) != self.made_from:
                texts = self.store.resolve_texts(self.texts, progress=self.progress)
                contents = read_contents(self.store, texts, progress=self.progress)
                self.page = pages.render(reports.gather(contents))
                self.made_from = made_from
            return self.page

    def _state(self) -> str:
        return " ".join(map(self.store.state, ("texts", "vectors", "compact", "weights", "noise", "maps")))


def application(store: Store, texts: str | None = None, *, host: str, progress: Progress = SILENT) -> Starlette:
    """The web application. On a loopback `host` it answers to local names only, so that no other site's page can reach
    it by a name that it points here. Raises InputError where what it needs is not installed."""
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise InputError(f"klscale serve needs {' and '.join(missing)}.", remedy="pip install 'klscale[serve]'")
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, PlainTextResponse, Response
    from starlette.routing import Route

    pages = _Pages(store, texts, progress)

    def page(request: Request) -> Response:
        try:
            return HTMLResponse(pages.current(), headers=HEADERS)
        except KlscaleError as error:
            return PlainTextResponse(str(error), status_code=503, headers=HEADERS)

    allowed = [*LOOPBACK, "[::1]"] if host in LOOPBACK else ["*"]
    return Starlette(
        routes=[Route("/", page, methods=["GET"])],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=allowed, www_redirect=False)],
    )


def listen(host: str, port: int, *, expose: bool = False) -> socket.socket:
    """A socket that listens. Raises InputError for a host that other machines reach, unless `expose` says so, and for a
    port that is taken."""
    if host not in LOOPBACK and not expose:
        raise InputError(
            f"{host} can be reached from other machines.",
            "Whoever reaches it reads what the store holds; there is no password.",
            "Add --expose if that is meant, or leave --host out.",
        )
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise InputError(
            f"Nothing can listen on {host}, port {port}.", f"{error.strerror or error}.", "Another port: --port 0"
        ) from error


def run(app: Starlette, listening: socket.socket) -> None:
    """Answer until interrupted."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    config.timeout_graceful_shutdown = 1  # who interrupts does not wait for a page that is being made
    uvicorn.Server(config).run([listening])
