#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "bottle>=0.13",
#     "certifi>=2024.7.4",
#     "maxminddb>=2.6",
#     "Pillow>=11",
#     "urllib3>=2.2.2",
#     "waitress>=3.0.1",
#     "hypothesis",
#     "mmdb-writer",
#     "pytest",
#     "trustme",
# ]
# [tool.uv]
# exclude-newer = "2026-11-01T00:00:00Z"
# ///
"""The tests of catscii, grouped as the program is: `uv run test_catscii.py`, with any arguments of pytest."""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import netaddr
import pytest
import trustme
import urllib3
from mmdb_writer import MMDBWriter
from PIL import Image, ImageDraw

import catscii

SCRIPT = Path(catscii.__file__)
CHROME = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0 Safari/537.36",
          "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"}
CURL = {"User-Agent": "curl/8.16.0", "Accept": "*/*"}
http = urllib3.PoolManager(retries=False, timeout=30)


# ---------------------------------------------------------------------------------------------------------------------
# What the tests stand on: a service as a process, upstreams on real sockets, pictures, a MaxMind DB
# ---------------------------------------------------------------------------------------------------------------------


class Running:
    """`python catscii.py` on a free port, and what it logged."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.database = Path(variables.setdefault("ANALYTICS_DB", str(folder / "catscii.db")))
        environment = {"PATH": os.environ["PATH"], "HOST": "127.0.0.1", "PORT": "0", "CAT_SOURCES": "", **variables}
        self.process = subprocess.Popen([sys.executable, SCRIPT], env=environment, stderr=subprocess.PIPE, text=True)
        self.log: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = "http://" + self.wait_for("Listening on ").removeprefix("Listening on ")

    def _read(self) -> None:
        for line in self.process.stderr:  # type: ignore[union-attr]
            self.log.append(json.loads(line))

    def wait_for(self, start: str) -> str:
        """The first logged message that starts so."""
        return eventually(lambda: next((m for m in self.messages() if m.startswith(start)), None))

    def messages(self) -> list[str]:
        return [line["fields"]["message"] for line in self.log]

    def get(self, path: str, headers: dict[str, str] = CURL, method: str = "GET", **kwargs: Any) -> urllib3.BaseHTTPResponse:
        return http.request(method, self.url + path, headers=headers, redirect=False, decode_content=False, **kwargs)

    def json(self, path: str) -> Any:
        return json.loads(self.get(path, {"Accept": "application/json"}).data)

    def stored(self) -> int:
        """How many pictures the store holds, read from the file."""
        with sqlite3.connect(self.database) as connection:
            return int(connection.execute("SELECT count(*) FROM cats WHERE picture IS NOT NULL").fetchone()[0])

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        self.process.send_signal(signal_number)
        status = self.process.wait(15)
        self._reader.join(5)
        return status


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts services in the test's folder; those still running at its end are killed."""
    running: list[Running] = []

    def starter(**variables: str) -> Running:
        running.append(Running(tmp_path, **variables))
        return running[-1]

    yield starter
    for service in running:
        service.process.kill()
        service.process.wait()


def eventually(condition: Callable[[], Any], seconds: float = 15) -> Any:
    """What `condition` gives once it is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not true within {seconds} seconds"
        time.sleep(0.02)
    return value


class Upstream:
    """A local server in the documented shapes of The Cat API (/v1/images/...) and of CATAAS (/cat...)."""

    def __init__(self, certificate: trustme.LeafCert | None = None) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}  # by path, before the documented ones
        self.known: set[str] = set()
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = urlsplit(self.path).path
                upstream.requests.append((self.path, dict(self.headers)))
                try:
                    upstream.answers.get(path, upstream.answer)(self)
                except (ConnectionError, ssl.SSLError):
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.configure_cert(context)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"{'https' if certificate else 'http'}://localhost:{self.server.server_address[1]}"
        self.the_cat_api, self.cataas = self.url + "/v1/images/search", self.url + "/cat"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path, _, query = handler.path.partition("?")
        if path == "/v1/images/search":
            reply(handler, [self.the_cat_api_entry(self.new_id()) for _ in range(10)])
        elif path.startswith("/v1/images/") and path.rpartition("/")[2] in self.known:
            reply(handler, self.the_cat_api_entry(path.rpartition("/")[2]))
        elif path == "/cat" and query == "json=true":
            reply(handler, self.cataas_entry(self.new_id()))
        elif path.startswith("/cat/") and (cat := path.removeprefix("/cat/")) in self.known:
            reply(handler, self.cataas_entry(cat) if query == "json=true" else photograph(cat))
        elif path.startswith("/images/"):
            reply(handler, photograph(path))
        else:
            reply(handler, {"message": "no such thing"}, 404)

    def new_id(self) -> str:
        self.known.add(cat := f"{random.getrandbits(48):012x}")
        return cat

    def the_cat_api_entry(self, cat: str) -> dict[str, Any]:
        return {"id": cat, "url": f"{self.url}/images/{cat}.jpg", "width": 640, "height": 480}

    def cataas_entry(self, cat: str) -> dict[str, Any]:
        return {"_id": cat, "url": f"/cat/{cat}", "mimetype": "image/jpeg", "tags": []}

    def asked(self, start: str) -> int:
        return sum(path.startswith(start) for path, _ in self.requests)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def reply(handler: BaseHTTPRequestHandler, body: Any, status: int = 200, **headers: str) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(data)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)


def redirect(location: str) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: reply(handler, b"", 302, Location=location)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.close()


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure_upstream(authority: trustme.CA) -> Iterator[Upstream]:
    upstream = Upstream(authority.issue_cert("localhost"))
    yield upstream
    upstream.close()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


def photograph(seed: object = 0, size: tuple[int, int] = (640, 480), format: str = "JPEG", mode: str = "RGB") -> bytes:
    """An encoded picture with shapes and shades, another one for each seed."""
    rng = random.Random(str(seed))
    picture = Image.radial_gradient("L").resize(size).convert("RGB")
    pen = ImageDraw.Draw(picture)
    for _ in range(6):
        x, y = rng.randrange(size[0]), rng.randrange(size[1])
        pen.ellipse((x - 90, y - 60, x + 90, y + 60), fill=tuple(rng.randbytes(3)))
    data = io.BytesIO()
    picture.convert(mode).save(data, format)
    return data.getvalue()


@pytest.fixture(scope="session")
def country_db(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A MaxMind DB with every shape of record that is understood, for IPv4 and IPv6."""
    writer = MMDBWriter(6, "Test-Country", languages=["en"], ipv4_compatible=True)
    for network, record in {
        "81.2.69.0/24": {"country": {"iso_code": "GB"}, "registered_country": {"iso_code": "US"}},
        "2001:db8:1::/48": {"country": {"iso_code": "FR"}},
        "198.51.100.0/24": {"registered_country": {"iso_code": "DE"}},
        "2001:db8:2::/48": {"country_code": "JP"},
        "203.0.113.0/24": {"continent": {"code": "AN"}},
    }.items():
        writer.insert_network(netaddr.IPSet([network]), record)
    path = str(tmp_path_factory.mktemp("geo") / "country.mmdb")
    writer.to_db_file(path)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------------------------------


def run(*arguments: str, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
    """`python catscii.py ARGUMENTS` to its end."""
    environment = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run([sys.executable, SCRIPT, *arguments], input=stdin, capture_output=True, env=environment, timeout=60)


def script_metadata(path: Path) -> dict[str, Any]:
    """A script's PEP 723 block."""
    match = re.search(r"(?m)^# /// script$\n((?:#.*\n)+?)# ///$", path.read_text())
    assert match
    return tomllib.loads("".join(line[2:] for line in match[1].splitlines(keepends=True)))


def test_the_script_needs_its_six_packages_and_the_tests_need_the_same_ones():
    script, tests = script_metadata(SCRIPT), script_metadata(Path(__file__))
    names = {re.match(r"[A-Za-z0-9-]+", need)[0].lower() for need in script["dependencies"]}  # type: ignore[index]
    assert names == {"bottle", "waitress", "urllib3", "maxminddb", "pillow", "certifi"}
    assert all(">=" in need for need in script["dependencies"])
    assert set(script["dependencies"]) <= set(tests["dependencies"])
    assert script["tool"]["uv"]["exclude-newer"] == tests["tool"]["uv"]["exclude-newer"]
    assert script["requires-python"] == tests["requires-python"] == ">=3.11"


def test_help_names_commands_variables_and_defaults():
    result = run("--help")
    text = result.stdout.decode()
    assert result.returncode == 0
    for word in ("art PICTURE|URL|-", "HOST", "0.0.0.0", "PORT", "8080", "ANALYTICS_DB", "catscii.db", "GEOLITE2_COUNTRY_DB",
                 "CLIENT_IP_HEADER", "Fly-Client-IP", "CAT_SOURCES", "api.thecatapi.com", "CAT_API_KEY", "SSL_CERT_FILE",
                 "LOG_LEVEL", "examples:"):
        assert word in text
    assert run("--version").stdout.decode() == f"catscii {catscii.__version__}\n"


def test_all_wrong_settings_are_reported_in_one_go():
    result = run(PORT="http", GEOLITE2_COUNTRY_DB="/no/such.mmdb", CAT_SOURCES="ftp://cats", LOG_LEVEL="loud",
                 CLIENT_IP_HEADER="a b", ANALYTICS_DB="/no/such/folder/x.db", SSL_CERT_FILE="/no/such.pem")
    lines = result.stderr.decode().splitlines()
    assert result.returncode == 2
    assert len(lines) == 7
    for value in ("http", "/no/such.mmdb", "ftp://cats", "loud", "a b", "/no/such/folder/x.db", "/no/such.pem"):
        assert sum(f"{value!r}" in line for line in lines) == 1


@pytest.mark.parametrize(("variables", "field", "value"), [
    ({}, "cat_sources", ("https://api.thecatapi.com/v1/images/search", "https://cataas.com/cat")),
    ({"CAT_SOURCES": ""}, "cat_sources", ()),
    ({"CAT_SOURCES": "https://a/s?m=jpg,png, http://b/cat,"}, "cat_sources", ("https://a/s?m=jpg,png", "http://b/cat")),
    ({}, "client_ip_header", None),
    ({"FLY_APP_NAME": "cats"}, "client_ip_header", "Fly-Client-IP"),
    ({"FLY_APP_NAME": "cats", "CLIENT_IP_HEADER": "X-Real-IP"}, "client_ip_header", "X-Real-IP"),
    ({"PORT": ""}, "port", 8080),
    ({"NIX_SSL_CERT_FILE": __file__}, "ssl_cert_file", __file__),
    ({"NIX_SSL_CERT_FILE": "/dev/null", "SSL_CERT_FILE": __file__}, "ssl_cert_file", __file__),
    ({"LOG_LEVEL": "WARNING"}, "log_level", 30),
])
def test_settings(variables: dict[str, str], field: str, value: object):
    assert getattr(catscii.read_settings(variables), field) == value


@pytest.mark.parametrize("how", ["garbage", "folder", "future"])
def test_an_unusable_database_is_a_clear_error_at_the_start(tmp_path: Path, how: str):
    path = tmp_path / "x.db"
    if how == "garbage":
        path.write_bytes(b"not a database, but long enough to be taken for one" * 20)
    elif how == "folder":
        path.mkdir()
    else:
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA user_version = 99")
    result = run(ANALYTICS_DB=str(path), PORT="0")
    assert result.returncode == 2
    assert re.fullmatch(rf"catscii: ANALYTICS_DB: .*{path}.*\n", result.stderr.decode())


@pytest.mark.parametrize("how", ["garbage", "empty", "truncated"])
def test_an_unusable_country_database_is_a_clear_error_at_the_start(tmp_path: Path, country_db: str, how: str):
    path, good = tmp_path / "x.mmdb", Path(country_db).read_bytes()
    path.write_bytes({"garbage": b"no database" * 99, "empty": b"", "truncated": good[:len(good) // 2]}[how])
    result = run(GEOLITE2_COUNTRY_DB=str(path), ANALYTICS_DB=str(tmp_path / "x.db"), PORT="0")
    assert result.returncode == 2
    assert f"catscii: GEOLITE2_COUNTRY_DB: cannot read '{path}'" in result.stderr.decode().splitlines()[-1]


def test_a_port_in_use_is_a_clear_error(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run(HOST="127.0.0.1", PORT=port, ANALYTICS_DB=str(tmp_path / "x.db"), CAT_SOURCES="")
    assert result.returncode == 2
    assert f"cannot listen on '127.0.0.1', port {port}: " in result.stderr.decode()
