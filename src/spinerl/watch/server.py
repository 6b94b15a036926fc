"""The server behind `spinerl watch`: one page, to this machine only.

It listens on 127.0.0.1, knows one address, `/`, and two methods, GET and HEAD; no part of a request names a file.  A
request whose Host is not this machine's own name is refused, for then another site's name was pointed at it.
"""

from __future__ import annotations

import contextlib
import errno
import http.server
import os
import re
import sys
import threading
import webbrowser
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from spinerl.errors import InputError, cause_of
from spinerl.files import kind_of
from spinerl.report.page import policy
from spinerl.watch.pages import LivePage

__all__ = ["Server", "watch"]

_OWN_NAME = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
_NICE = 10
_SILENCE_S = 10.0  # after which a connection is closed

_HEADERS = {
    # A page cannot forbid by itself that others frame it.
    "Content-Security-Policy": f"{policy(live=True)}; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def watch(
    folder: Path,
    port: int = 0,
    open_browser: bool = False,
    say: Callable[[str], object] = print,
) -> None:
    """Serve the live page of a run folder, or of a folder of runs, on this machine until interrupted.

    The folder need not be there yet.  Raises InputError if the path is no folder, or the port cannot be used.

    Args:
        port: 0 for any that is free.
        open_browser: whether to open the page in the user's browser.
        say: gets the lines for the user.
    """
    try:
        kind = kind_of(folder, follow=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} cannot be opened: {cause_of(error)}") from None
    if kind not in (None, "a folder"):
        raise InputError(f"{folder} is {kind}, not a run folder; give the folder that a run or a comparison writes")
    with Server(LivePage(folder), port) as server:
        if kind is None:
            say(f"{folder}: there is no such folder yet; the page waits for it")
        say(f"live page of {folder}: {server.address} (Ctrl-C ends it)")
        if open_browser:  # in a thread: browsers of a terminal do not return before they end
            threading.Thread(target=_open, args=(server.address, say), daemon=True).start()
        server.serve_forever()


def _open(address: str, say: Callable[[str], object]) -> None:
    try:
        opened = webbrowser.open(address)
    except webbrowser.Error:
        opened = False
    if not opened:
        say(f"no browser could be opened; open {address} yourself")


def _give_way() -> None:
    """Lower the priority of this thread, which may make a page, so that a run goes first.  Only Linux has such."""
    with contextlib.suppress(AttributeError, OSError):
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(_NICE, os.getpriority(os.PRIO_PROCESS, thread)))


class Server(http.server.ThreadingHTTPServer):
    """Listens on 127.0.0.1 from when it is made.  InputError if the port cannot be used."""

    def __init__(self, page: LivePage, port: int = 0) -> None:
        self.page = page
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise InputError(f"--port {port} {why}; give another, or none for any that is free") from None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """What a browser that leaves causes is no error; anything else is shown."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = _SILENCE_S

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not _OWN_NAME.fullmatch(hosts[0].strip()):
            return self.send_error(HTTPStatus.FORBIDDEN, "this page is for 127.0.0.1 and localhost only")
        if self.path != "/":
            return self.send_error(HTTPStatus.NOT_FOUND, "there is one page here, /")
        _give_way()
        page = self.server.page.current()
        if self.headers.get("If-None-Match") == f'"{page.tag}"':
            return self._send(HTTPStatus.NOT_MODIFIED, {"ETag": f'"{page.tag}"'})
        packs = "gzip" in self.headers.get("Accept-Encoding", "")
        headers = {"ETag": f'"{page.tag}"', "Content-Type": "text/html; charset=utf-8"}
        return self._send(
            HTTPStatus.OK,
            headers | ({"Content-Encoding": "gzip"} if packs else {}),
            page.packed if packs else page.html,
        )

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """One line of text, in which nothing of the request stands."""
        headers = {"Content-Type": "text/plain; charset=utf-8"}
        if code == HTTPStatus.NOT_IMPLEMENTED:  # the base class says so of methods without a function here
            code, message = HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD"
            headers["Allow"] = "GET, HEAD"
        status = HTTPStatus(code)
        own = message if status in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED) else None
        self.close_connection = True
        self._send(status, headers, f"{status.value} {own or status.phrase}\n".encode())

    def _send(self, status: HTTPStatus, headers: dict[str, str], body: bytes | None = None) -> None:
        self.send_response(status)
        for name, value in (_HEADERS | headers).items():
            self.send_header(name, value)
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body is not None and self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "spinerl"

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""
