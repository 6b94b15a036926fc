"""The live page's server: one address, two methods, this machine only; pages made seldom, and of whatever is there."""

from __future__ import annotations

import gzip
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from spinerl.errors import InputError
from spinerl.watch import LivePage, Server, pages, watch
from tests.commands import exit_code
from tests.report.synthetic import write_run
from tests.report.test_report_safety import PAYLOADS, hostile_run


@pytest.fixture
def serve():
    """A function: folder -> a server of its page, with no pauses between two pages made."""
    servers = []

    def start(folder: Path) -> Server:
        server = Server(LivePage(folder))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        servers.append((server, thread))
        return server

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    for name in ("_PAUSE_S", "_IDLE", "_LOOK_S"):
        monkeypatch.setattr(pages, name, 0)


def ask(server: Server, path: str = "/", method: str = "GET", **headers: str | None) -> tuple[HTTPResponse, bytes]:
    """The answer to a request; a header of None is left out."""
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": f"127.0.0.1:{server.server_port}", **headers}.items():
            if value is not None:
                connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def test_the_page_is_the_report_and_asks_nothing_but_its_server(serve, tmp_path):
    answer, body = ask(serve(write_run(tmp_path / "run", steps=20, done=7)))
    page = body.decode()
    assert answer.status == 200
    assert "This run is unfinished: 7 of 20 steps so far." in page
    header = str(answer.headers["Content-Security-Policy"])
    meta = re.search('Content-Security-Policy" content="([^"]*)"', page)
    assert meta is not None
    assert header == f"{meta[1].replace('&#39;', chr(39))}; frame-ancestors 'none'"
    rules = dict(rule.strip().split(" ", 1) for rule in header.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["connect-src"] == "'self'"
    assert re.fullmatch("('sha256-[A-Za-z0-9+/]{43}=' ?){2}", rules["script-src"])
    assert answer.headers["Server"] == "spinerl", "no versions are given away"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_only_what_has_changed_is_sent_and_made(serve, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", steps=20, done=7)
    made = []
    monkeypatch.setattr(pages, "render", lambda *args, real=pages.render: made.append(1) or real(*args))
    server = serve(run)
    first, _ = ask(server)
    again, nothing = ask(server, If_None_Match=first.headers["ETag"])
    assert (again.status, nothing, len(made)) == (304, b"", 1)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 8, "reward/mean": 0.5}) + "\n")
    changed, body = ask(server, If_None_Match=first.headers["ETag"])
    assert (changed.status, len(made)) == (200, 2)
    assert b"8 of 20 steps" in body
    head, nothing = ask(server, method="HEAD")
    assert (head.status, nothing, head.headers["ETag"]) == (200, b"", changed.headers["ETag"])
    packed, body = ask(server, Accept_Encoding="gzip")
    assert packed.headers["Content-Encoding"] == "gzip"
    assert b"8 of 20 steps" in gzip.decompress(body)
    assert len(made) == 2


def test_a_page_that_takes_long_is_made_seldom(tmp_path, monkeypatch):
    """Ten times as long as making it took, nothing is made, however often it is asked for."""
    run = write_run(tmp_path / "run", steps=20, done=7)
    made: list[float] = []

    def slow(*_):
        time.sleep(0.05)
        made.append(time.monotonic())
        return "page"

    monkeypatch.setattr(pages, "render", slow)
    monkeypatch.setattr(pages, "_IDLE", 10)
    page = LivePage(run)
    while len(made) < 2:
        (run / "metrics.jsonl").open("a").close()
        (run / "manifest.json").write_text(json.dumps({"a": time.monotonic()}))
        page.current()
    assert made[1] - made[0] >= 0.5


@pytest.mark.parametrize("path", [
    "/config.yaml", "/../config.yaml", "/%2e%2e/config.yaml", "/..%2f..%2fetc%2fpasswd", "//etc/passwd", "/etc/passwd",
    "/?path=/etc/passwd", "/index.html", "/.", "file:///etc/passwd", "http://127.0.0.1/../etc/passwd", "*", "/\\..\\x",
])  # fmt: skip
def test_no_path_names_a_file(serve, tmp_path, path):
    answer, body = ask(serve(write_run(tmp_path / "run", steps=2)), path)
    assert (answer.status, body) == (404, b"404 there is one page here, /\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE", "<script>"])
def test_nothing_can_be_written(serve, tmp_path, method):
    answer, body = ask(serve(write_run(tmp_path / "run", steps=2)), method=method)
    assert (answer.status, body, answer.headers["Allow"]) == (405, b"405 only GET and HEAD\n", "GET, HEAD")


@pytest.mark.parametrize("host", [
    "evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "127.0.0.1@evil.example",
    "127.0.0.2", "0.0.0.0", "localhost:80:80", "", None,
])  # fmt: skip
def test_a_foreign_host_is_refused(serve, tmp_path, host):
    """Another site whose name was made to point here (DNS rebinding) reads nothing."""
    answer, body = ask(serve(write_run(tmp_path / "run", steps=2)), Host=host)
    assert (answer.status, body) == (403, b"403 this page is for 127.0.0.1 and localhost only\n")


def test_a_tunnel_from_another_port_is_served(serve, tmp_path):
    server = serve(write_run(tmp_path / "run", steps=2))
    assert [ask(server, Host=host)[0].status for host in ("localhost:9", "LOCALHOST", "[::1]:8100")] == [200] * 3


def own_addresses() -> list[str]:
    """Addresses of this machine that are not 127.0.0.1; nothing is sent to find them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            found = [probe.getsockname()[0]]
        except OSError:
            found = []
    return [*found, "127.0.0.2"]


def test_no_other_address_of_this_machine_answers(serve, tmp_path):
    server = serve(write_run(tmp_path / "run", steps=2))
    socket.create_connection(("127.0.0.1", server.server_port), 5).close()
    for address in own_addresses():
        with pytest.raises(OSError, match=r"refused|unreachable|timed out"):
            socket.create_connection((address, server.server_port), 5)


def test_hostile_text_stays_text(serve, tmp_path):
    """In a browser: `test_report_safety.py`."""
    payloads = [payload.replace("SERVER", "http://evil.example") for payload in PAYLOADS]
    run = hostile_run(tmp_path / "runs" / re.sub("[/\0]", "\\\\", payloads[0])[:200], payloads)
    _, body = ask(serve(run))
    page = body.decode()
    assert page.count("<script") == 2
    assert not re.search("<(img|iframe|object|embed|base|link|video)", page)


EVIDENCE = ("metrics.jsonl", "eval.jsonl", "manifest.json")


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda run: (run / "config.yaml").write_text("a: [\n"), "cannot read"),
    (lambda run: (run / "config.yaml").write_text("5\n"), "config.yaml holds int"),
    (lambda run: [(run / name).unlink() for name in EVIDENCE], "has the run started?"),
    (lambda run: (run / "metrics.jsonl").write_text('{"step": 1}\nno JSON\n{"step": 2}\n'), "line 2 cannot be read"),
    (lambda run: (run / "config.yaml").unlink(), "there is no run in it"),
])  # fmt: skip
def test_a_damaged_run_is_a_page_that_says_so(serve, tmp_path, spoil, said):
    run = write_run(tmp_path / "run", steps=4)
    server = serve(run)
    spoil(run)
    answer, body = ask(server)
    assert answer.status == 200
    assert said in body.decode()
    write_run(run, steps=4)
    assert said not in ask(server)[1].decode(), "once it is repaired, so is the page"


def test_a_comparison_in_progress(serve, tmp_path):
    folder = tmp_path / "comparison"
    server = serve(folder)
    assert "there is no such folder" in ask(server)[1].decode()
    write_run(folder / "tiny-shift-a" / "none-seed0", method="none", steps=0)
    write_run(folder / "tiny-shift-a" / "spine-seed0", steps=20, done=20)
    write_run(folder / "tiny-shift-a" / "spine-seed1", seed=1, steps=20, done=9)
    (folder / "tiny-shift-a" / "ttrl-seed0").mkdir()
    (folder / "tiny-shift-a" / "ttrl-seed0" / "config.yaml").write_text("steps: 20\n")
    page = re.sub("<[^>]*>", " ", ask(server)[1].decode())
    words = " ".join(page.split())
    assert "Runs begun 4" in words
    assert "spine seed 0 unfinished, seed 1 unfinished" in words
    assert "9–20 of 20" in words
    assert "ttrl-seed0 is not a run folder: it has none of" in words
    assert "comparison.html will have" in words
    (folder / "comparison.html").write_text("<script>alert(1)</script>")
    page = ask(server)[1].decode()
    assert "comparison.html has the tables" in page
    assert "alert(1)" not in page, "it is named, not shown"


def test_several_runs_in_a_folder_are_one_report(serve, tmp_path, monkeypatch):
    write_run(tmp_path / "runs" / "a", steps=4)
    write_run(tmp_path / "runs" / "b", method="ttrl", steps=4)
    monkeypatch.chdir(tmp_path)
    assert b"SPINE and TTRL on tiny/shift-a" in ask(serve(Path("runs")))[1]


def test_refusals(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert exit_code(["watch", tmp_path / "file"]) == 2
    assert "is a file, not a run folder" in capsys.readouterr().err
    with Server(LivePage(tmp_path)) as taken:
        with pytest.raises(InputError, match=f"--port {taken.server_port} is in use; give another"):
            watch(tmp_path, taken.server_port)
        assert exit_code(["watch", tmp_path, "--port", taken.server_port]) == 2
    assert exit_code(["watch", tmp_path, "--port", "70000"]) == 2


def test_ctrl_c_ends_it_in_one_line(tmp_path):
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "  # ignored in a job of a shell
        "from spinerl.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "watch", str(tmp_path / "not-yet")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "there is no such folder yet; the page waits for it" in process.stdout.readline()
    address = re.search(r"http://127\.0\.0\.1:(\d+)/ \(Ctrl-C ends it\)", process.stdout.readline())
    assert address is not None
    with socket.create_connection(("127.0.0.1", int(address[1]))):  # one that says nothing holds up nothing
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "spinerl: interrupted\n")
