"""A hub on this machine, as far as uploading a model and asking for a file go: it keeps what it is sent."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

from spinerl import hub

TOKEN = "hf_" + "SecretOfThisTest" * 2


class Hub(ThreadingHTTPServer):
    """The server and what it knows.

    repos: visibility by repository.  branches: those asked for.  files: content by (repository, revision, path), once
    committed.  asked: method and path of every request.  failing: answers in place of the usual ones, (status, headers,
    body) by a pattern of "METHOD /path".
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, bool] = {}
        self.branches: list[str] = []
        self.files: dict[tuple[str, str, str], bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.messages: list[str] = []
        self.asked: list[str] = []
        self.failing: dict[str, tuple[int, dict[str, str], Any]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_):
        """A client that leaves in the middle of a request, as some tests do, is nothing to print."""


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = f"{self.command} {path}"
        self.server.asked.append(asked)
        for pattern, answer in self.server.failing.items():
            if re.search(pattern, asked):
                return self._send(*answer)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and not path.startswith("/objects/"):
            return self._send(401, {}, {"error": "Invalid credentials"})
        for pattern, act in ROUTES.items():
            found = re.fullmatch(pattern, asked)
            if found is not None:
                return self._send(*act(self.server, body, *found.groups()))
        return self._send(404, {"X-Error-Code": "RepoNotFound"}, {"error": "Repository not found"})

    def _send(self, status: int, headers: dict[str, str], content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


Answer = tuple[int, dict[str, str], Any]


def _whoami(_server: Hub, _body: bytes) -> Answer:
    return 200, {}, {"type": "user", "name": "me", "orgs": []}


def _info(server: Hub, _body: bytes, repo: str) -> Answer:
    if repo not in server.repos:
        return 404, {"X-Error-Code": "RepoNotFound"}, {"error": "Repository not found"}
    return 200, {}, {"id": repo, "private": server.repos[repo], "sha": "0" * 40, "siblings": [], "tags": []}


def _create(server: Hub, body: bytes) -> Answer:
    asked = json.loads(body)
    repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
    server.repos[repo] = asked.get("visibility") == "private"
    return 200, {}, {"url": f"{server.url}/{repo}"}


def _branch(server: Hub, _body: bytes, _repo: str, name: str) -> Answer:
    server.branches.append(name)
    return 200, {}, {}


def _preupload(_server: Hub, body: bytes, _repo: str, _revision: str) -> Answer:
    files = [
        {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
         "shouldIgnore": False, "oid": None}
        for one in json.loads(body)["files"]
    ]  # fmt: skip
    return 200, {}, {"files": files}


def _batch(server: Hub, body: bytes, _repo: str) -> Answer:
    objects = [
        {"oid": one["oid"], "size": one["size"], "actions": {"upload": {"href": f"{server.url}/objects/{one['oid']}"}}}
        for one in json.loads(body)["objects"]
    ]
    return 200, {}, {"transfer": "basic", "objects": objects}


def _object(server: Hub, body: bytes, oid: str) -> Answer:
    if hashlib.sha256(body).hexdigest() != oid:
        return 400, {}, {"error": "another object"}
    server.objects[oid] = body
    return 200, {}, {}


def _commit(server: Hub, body: bytes, repo: str, revision: str) -> Answer:
    for line in body.decode().splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "header":
            server.messages.append(value["summary"])
        elif entry["key"] == "file":
            server.files[repo, revision, value["path"]] = base64.b64decode(value["content"])
        elif entry["key"] == "lfsFile":
            server.files[repo, revision, value["path"]] = server.objects[value["oid"]]
    return 200, {}, {"commitUrl": f"{server.url}/{repo}/commit/{'1' * 40}", "commitOid": "1" * 40}


ROUTES: dict[str, Callable[..., Answer]] = {
    r"GET /api/whoami-v2": _whoami,
    r"GET /api/models/([\w.-]+/[\w.-]+)": _info,
    r"POST /api/repos/create": _create,
    r"POST /api/validate-yaml": lambda _server, _body: (200, {}, {"errors": [], "warnings": []}),
    r"POST /api/models/([\w.-]+/[\w.-]+)/branch/(.+)": _branch,
    r"POST /api/models/([\w.-]+/[\w.-]+)/preupload/(.+)": _preupload,
    r"POST /([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch": _batch,
    r"PUT /objects/(\w+)": _object,
    r"POST /api/models/([\w.-]+/[\w.-]+)/commit/(.+)": _commit,
}


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers as long as this lasts."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use(monkeypatch: pytest.MonkeyPatch, endpoint: str, token: str | None = TOKEN) -> None:
    """Let this process take the address for the hub, online, with this token, and wait for nothing."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", endpoint)
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr(hub, "_found", {})
    if token is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", token)
