#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "babel",
#     "bottle>=0.13",
#     "certifi>=2024.7.4",
#     "maxminddb>=2.6",
#     "Pillow>=11",
#     "urllib3>=2.2.2",
#     "waitress>=3.0.1,<4",
#     "axe-playwright-python",
#     "httpie",
#     "hypothesis",
#     "matplotlib",
#     "mmdb-writer",
#     "opencv-python-headless==4.10.0.84",
#     "opentelemetry-exporter-otlp-proto-http",
#     "packaging",
#     "playwright",
#     "prometheus-client",
#     "pytest",
#     "pytest-timeout",
#     "pytest-xdist",
#     "sentry-sdk",
#     "trustme",
# ]
# [tool.uv]
# exclude-newer = "2026-11-01T00:00:00Z"
# ///
"""The tests of catscii, grouped as the program is.

`uv run test_catscii.py` runs them, with any arguments of pytest, such as `-k art`; `--thorough` repeats more often what
depends on chance. Several processes run tests at the same time: each test makes its own server, files and folder.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import fcntl
import gzip
import html.parser
import importlib.metadata
import io
import ipaddress
import itertools
import json
import math
import os
import pty
import random
import re
import resource
import shutil
import signal
import socket
import sqlite3
import ssl
import statistics
import string
import struct
import subprocess
import sys
import tarfile
import tempfile
import termios
import threading
import time
import tomllib
import wsgiref.util
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlsplit

import certifi
import netaddr
import packaging.requirements
import pytest
import trustme
import urllib3
import waitress.channel
import waitress.parser
import waitress.task
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdb_writer import MMDBWriter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps
from prometheus_client.parser import text_string_to_metric_families
from xdist.scheduler import LoadScopeScheduling

import bench_catscii
import catscii

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SCRIPT = Path(catscii.__file__)
FOLDER = SCRIPT.parent
CHROME = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0 Safari/537.36",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
}
CURL = {"User-Agent": "curl/8.16.0", "Accept": "*/*"}
SOON = 8.0  # seconds: more than a busy machine takes, less than what waits for a timeout would take
http = urllib3.PoolManager(retries=False, timeout=60)


# ---------------------------------------------------------------------------------------------------------------------
# What the tests stand on: a service as a process, upstreams on real sockets, pictures, a MaxMind DB
# ---------------------------------------------------------------------------------------------------------------------


def rounds(thorough: int) -> int:
    """Return how often to repeat a test: so many times with --thorough, a fifth of that without."""
    return thorough if "THOROUGH" in os.environ else thorough // 5


class Running:
    """`python catscii.py` on a free port, and what it logged."""

    def __init__(self, folder: Path, command: list[str] | None = None, **variables: str) -> None:
        self.database = Path(variables.setdefault("ANALYTICS_DB", str(folder / "catscii.db")))
        environment = {"PATH": os.environ["PATH"], "HOST": "127.0.0.1", "PORT": "0", "CAT_SOURCES": "", **variables}
        command = command or [sys.executable, str(SCRIPT)]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        self.log: list[dict[str, Any]] = []
        self.lines: list[str] = []  # as they came
        self.listening = threading.Event()  # while it is not set, nobody reads the log
        self.listening.set()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = f"http://127.0.0.1:{environment['PORT']}"
        if environment["PORT"] == "0":
            self.url = "http://" + self.wait_for("Listening on ").removeprefix("Listening on ")

    def _read(self) -> None:
        for line in self.process.stderr:  # type: ignore[union-attr]
            self.listening.wait()
            self.lines.append(line)
            if line.startswith("{"):  # `nix run` has its own word first
                self.log.append(json.loads(line))

    def wait_for(self, start: str) -> str:
        """The first logged message that starts so."""
        return eventually(lambda: next((m for m in self.messages() if m.startswith(start)), None))

    @property
    def started(self) -> dict[str, Any]:
        """What the start said."""
        return next(line["fields"] for line in self.log if line["fields"]["message"].startswith("Listening on "))

    def messages(self) -> list[str]:
        return [line["fields"]["message"] for line in self.log]

    def get(
        self, path: str, headers: dict[str, str] = CURL, method: str = "GET", **kwargs: Any
    ) -> urllib3.BaseHTTPResponse:
        return http.request(method, self.url + path, headers=headers, redirect=False, decode_content=False, **kwargs)

    def json(self, path: str) -> Any:
        return json.loads(self.get(path, {"Accept": "application/json"}).data)

    def json_of(self, path: str, headers: dict[str, str]) -> Any:
        return json.loads(self.get(path, headers).data)

    def visits(self) -> bytes:
        return self.get("/analytics?format=text").data

    def stored(self) -> int:
        """How many pictures the store holds, read from the file."""
        return int(sql(self.database, "SELECT count(*) FROM cats WHERE picture IS NOT NULL")[0][0])

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        self.process.send_signal(signal_number)
        status = self.process.wait(30)
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


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One service of house cats for the tests that only read from it."""
    service = Running(tmp_path_factory.mktemp("service"))
    yield service
    service.process.kill()
    service.process.wait()


def connected(
    service: Running, patience: float = 60, receive_buffer: int = 0, source: tuple[str, int] | None = None
) -> socket.socket:
    """A connection to the service."""
    connection = socket.socket()
    connection.settimeout(patience)
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    if source:
        connection.bind(source)
    host, port = service.url.removeprefix("http://").split(":")
    connection.connect((host, int(port)))
    return connection


def read_all(connection: socket.socket) -> bytes:
    """Return what comes until the service closes the connection, resets it, or is silent for too long."""
    data = bytearray()
    with contextlib.suppress(TimeoutError, ConnectionError):
        while part := connection.recv(65536):
            data += part
    return bytes(data)


def eventually(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """What `condition` gives once it is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not true within {seconds} seconds"
        time.sleep(0.02)
    return value


def patched(code: str) -> list[str]:
    """The command of a service with other constants, so that its patience ends while a test waits."""
    code = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import catscii\n{code}\n"
    return [sys.executable, "-c", code + "sys.exit(catscii.main([]))"]


FEW_CATS = 4
QUICKLY_FILLED = patched(f"catscii.STORED_CATS = {FEW_CATS}")


class Upstream:
    """A local server in the documented shapes of The Cat API (/v1/images/...) and of CATAAS (/cat...)."""

    def __init__(self, certificate: trustme.LeafCert | None = None) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.posts: list[tuple[str, dict[str, str], bytes]] = []
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

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                upstream.posts.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
                upstream.answers.get("POST", lambda handler: reply(handler, b""))(self)

            def do_CONNECT(self) -> None:
                upstream.answers["CONNECT"](self)

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
    handler.close_connection |= headers.get("Connection") == "close"


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
    path = tmp_path_factory.mktemp("geo") / "country.mmdb"
    records = {
        "81.2.69.0/24": {"country": {"iso_code": "GB"}, "registered_country": {"iso_code": "US"}},
        "2001:db8:1::/48": {"country": {"iso_code": "FR"}},
        "198.51.100.0/24": {"registered_country": {"iso_code": "DE"}},
        "2001:db8:2::/48": {"country_code": "JP"},
        "203.0.113.0/24": {"continent": {"code": "AN"}},
    }
    write_mmdb(path, "Test-Country", records)
    return str(path)


def sql(database: Path, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Run one statement in a database and return the rows of its result."""
    with contextlib.closing(sqlite3.connect(database, 60)) as connection, connection:
        return connection.execute(statement, parameters).fetchall()


def write_mmdb(path: Path, type_: str, records: dict[str, dict[str, Any]]) -> None:
    writer = MMDBWriter(6, type_, languages=["en"], ipv4_compatible=True)
    for network, record in records.items():
        writer.insert_network(netaddr.IPSet([network]), record)
    writer.to_db_file(str(path))


# ---------------------------------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------------------------------


def run(*arguments: str, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
    """`python catscii.py ARGUMENTS` to its end."""
    environment = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], input=stdin, capture_output=True, env=environment, timeout=60
    )


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


def test_requirements_txt_is_what_the_script_needs_pinned_and_hashed():
    text = SCRIPT.with_name("requirements.txt").read_text()
    needs = [packaging.requirements.Requirement(need) for need in script_metadata(SCRIPT)["dependencies"]]
    pins = dict(re.findall(r"(?m)^([\w-]+)==(\S+) \\\n(?=    --hash=sha256:[0-9a-f]{64})", text))
    assert pins.keys() == {need.name.lower() for need in needs}
    assert all(need.specifier.contains(pins[need.name.lower()]) for need in needs)
    assert all(re.fullmatch(r"\S+==\S+ \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in text.splitlines())


def test_help_names_commands_variables_and_defaults():
    result = run("--help")
    text = result.stdout.decode()
    assert result.returncode == 0
    words = """
        HOST 0.0.0.0 PORT 8080 ANALYTICS_DB catscii.db GEOLITE2_COUNTRY_DB CLIENT_IP_HEADER NO_COLOR
        Fly-Client-IP CAT_SOURCES api.thecatapi.com CAT_API_KEY SSL_CERT_FILE LOG_LEVEL SENTRY_DSN HONEYCOMB_API_KEY
        OTEL_EXPORTER_OTLP_ENDPOINT examples:
    """
    assert "art [PICTURE|URL|house-N|-]" in text and "--format html|ansi|text|json|png" in text
    assert all(word in text for word in words.split())
    assert run("--version").stdout.decode() == f"catscii {catscii.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "9000"], "argument --port: the environment sets it, as in PORT='9000' catscii.py"),
        (["--host=::1"], "argument --host: the environment sets it, as in HOST='::1' catscii.py"),
        (["--analytics-db", "x"], "ANALYTICS_DB='x' catscii.py"),
    ],
)
def test_an_option_that_is_a_setting_names_its_variable(arguments, words):
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (2, b"") and words in result.stderr.decode().splitlines()[-1]


def test_all_wrong_settings_are_reported_in_one_go():
    wrong = {"PORT": "http", "GEOLITE2_COUNTRY_DB": "/no/such.mmdb", "CAT_SOURCES": "ftp://cats", "LOG_LEVEL": "loud"}
    wrong |= {"CLIENT_IP_HEADER": "a b", "ANALYTICS_DB": "/no/such/folder/x.db", "SSL_CERT_FILE": "/no/such.pem"}
    result = run(**wrong)
    lines = result.stderr.decode().splitlines()
    assert result.returncode == 2 and len(lines) == len(wrong)
    for value in wrong.values():
        assert sum(f"{value!r}" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("variables", "field", "value"),
    [
        ({}, "cat_sources", ("https://api.thecatapi.com/v1/images/search", "https://cataas.com/cat")),
        ({"CAT_SOURCES": ""}, "cat_sources", ()),
        ({"CAT_SOURCES": "HTTPS://a/cat,Http://b/cat"}, "cat_sources", ("HTTPS://a/cat", "Http://b/cat")),
        ({"CAT_SOURCES": "http://a/s?m=jpg,png, http://b/c,"}, "cat_sources", ("http://a/s?m=jpg,png", "http://b/c")),
        ({}, "client_ip_header", None),
        ({"FLY_APP_NAME": "cats"}, "client_ip_header", "Fly-Client-IP"),
        ({"FLY_APP_NAME": "cats", "CLIENT_IP_HEADER": "X-Real-IP"}, "client_ip_header", "X-Real-IP"),
        ({"PORT": ""}, "port", 8080),
        ({"NIX_SSL_CERT_FILE": certifi.where()}, "ssl_cert_file", certifi.where()),
        ({"NIX_SSL_CERT_FILE": "/dev/null", "SSL_CERT_FILE": certifi.where()}, "ssl_cert_file", certifi.where()),
        ({"LOG_LEVEL": "WARNING"}, "log_level", 30),
    ],
)
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
        sql(path, "PRAGMA user_version = 99")
    result = run(ANALYTICS_DB=str(path), PORT="0")
    assert result.returncode == 2
    assert re.fullmatch(rf"catscii: ANALYTICS_DB: .*{path}.*", result.stderr.decode().splitlines()[-1])


METADATA = {  # what to replace in a country database by what
    "without a type": (b"database_type", b"database_typo"),
    "without a node count": (b"node_count", b"mode_count"),
    "a number as its type": (b"database_type\x4cTest-Country", b"database_type\xa1\7"),
}


@pytest.mark.parametrize("how", ["garbage", "empty", "truncated", "asn", *METADATA])
def test_an_unusable_country_database_is_a_clear_error_at_the_start(tmp_path: Path, country_db: str, how: str):
    path, good = tmp_path / "x.mmdb", Path(country_db).read_bytes()
    asn = {"1.0.0.0/24": {"autonomous_system_number": 13335, "autonomous_system_organization": "CLOUDFLARENET"}}
    if how == "asn":
        write_mmdb(path, "GeoLite2-ASN", asn)
    elif how in METADATA:
        path.write_bytes(good.replace(*METADATA[how]))
    else:
        path.write_bytes({"garbage": b"no database" * 99, "empty": b"", "truncated": good[: len(good) // 2]}[how])
    result = run(GEOLITE2_COUNTRY_DB=str(path), ANALYTICS_DB=str(tmp_path / "x.db"), PORT="0")
    assert result.returncode == 2
    assert f"catscii: GEOLITE2_COUNTRY_DB: cannot read '{path}'" in result.stderr.decode().splitlines()[-1]


def test_a_list_of_sources_of_which_one_has_no_scheme_is_refused():
    with pytest.raises(catscii.SetupError, match="'http://a/cat,b/cat' is not a URL"):
        catscii.read_settings({"CAT_SOURCES": "http://a/cat,b/cat"})


def test_a_host_that_cannot_be_is_a_clear_error(tmp_path: Path):
    result = run(HOST="a..b", ANALYTICS_DB=str(tmp_path / "x.db"), CAT_SOURCES="")
    assert result.returncode == 2 and "cannot listen on 'a..b', port 8080: " in result.stderr.decode().splitlines()[-1]


def test_a_port_in_use_is_a_clear_error(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run(HOST="127.0.0.1", PORT=port, ANALYTICS_DB=str(tmp_path / "x.db"), CAT_SOURCES="")
    assert result.returncode == 2
    assert f"cannot listen on '127.0.0.1', port {port}: " in result.stderr.decode()


# ---------------------------------------------------------------------------------------------------------------------
# Telemetry: the real SDKs, against servers that take what they send apart
# ---------------------------------------------------------------------------------------------------------------------

PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VISITOR = CURL | {
    "traceparent": f"00-{PARENT[0]}-{PARENT[1]}-01",
    "X-Real-IP": "81.2.69.160",
    "X-Forwarded-For": "81.2.69.161",
    "Forwarded": "for=81.2.69.162",
    "Cookie": "c=81.2.69.163",
}
SECRETS = {
    "CAT_API_KEY": "live_s3cret1",
    "SENTRY_DSN": "http://s3cret2@localhost:9/1",
    "HONEYCOMB_API_KEY": "s3cret3",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://u:s3cret4@localhost:9",
    "OTEL_EXPORTER_OTLP_HEADERS": "x-key=s3cret5",
}


def sentry_events(upstream: Upstream) -> list[dict[str, Any]]:
    """The events in the envelopes (https://develop.sentry.dev/sdk/data-model/envelopes/) that Sentry was sent."""
    events = []
    for path, headers, body in upstream.posts:
        assert path == "/api/42/envelope/" and "sentry_key=abc" in headers["x-sentry-auth"]
        envelope = io.BytesIO(gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body)
        envelope.readline()
        while line := envelope.readline():
            item = json.loads(line)
            payload = envelope.read(item["length"]) if "length" in item else envelope.readline()
            envelope.readline()
            events += [json.loads(payload)] if item["type"] == "event" else []
    return events


class Span:
    """A span as an OTLP collector understands it, its ids in hexadecimal."""

    def __init__(self, span: Any, resource: dict[str, str]) -> None:
        self.name, self.kind, self.resource = span.name, span.kind, resource
        self.trace, self.id, self.parent = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
        self.error = span.status.message if span.status.code == 2 else None
        self.attributes = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def collected(upstream: Upstream) -> list[Span]:
    """The spans that the collector was sent."""
    spans = []
    for path, headers, body in list(upstream.posts):
        assert path == "/v1/traces" and headers["content-type"] == "application/x-protobuf"
        for part in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = {a.key: a.value.string_value for a in part.resource.attributes}
            spans += [Span(span, resource) for scope in part.scope_spans for span in scope.spans]
    return spans


def samples(service: Running) -> dict[str, dict[tuple[str, ...], float]]:
    """The figures of /metrics by name and by the values of their labels, read by Prometheus' own parser."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(service.get("/metrics").data.decode()):
        assert family.documentation and family.type != "unknown"
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_sentry_gets_a_failure_once_with_its_route_and_nothing_of_the_visitor(start, upstream):
    dsn = upstream.url.replace("//", "//abc@") + "/42"
    service = start(SENTRY_DSN=dsn, FLY_APP_NAME="my-cats", CLIENT_IP_HEADER="X-Real-IP")
    for path in ("/", "/cat/house-7?width=1", "/cat/nobody", "/nowhere", "/panic?q=1"):
        service.get(path, VISITOR)
    service.get("/", VISITOR, "POST", body=b"81.2.69.164")
    assert service.stop() == 0
    (event,) = sentry_events(upstream)
    assert event["exception"]["values"][-1]["value"].startswith("This is a drill")
    assert event["transaction"] == "/panic" and event["request"]["url"].endswith("/panic")
    assert (event["release"], event["environment"]) == (f"catscii@{catscii.__version__}", "my-cats")
    assert "81.2.69" not in json.dumps(event) and "REMOTE_ADDR" not in json.dumps(event) and "user" not in event
    assert not any("vars" in frame for frame in event["exception"]["values"][-1]["stacktrace"]["frames"])


def test_sentry_gets_what_the_refresher_did_not_expect(start, upstream):
    service = start(
        SENTRY_DSN=upstream.url.replace("//", "//abc@") + "/42",
        SENTRY_ENVIRONMENT="tests",
        FLY_APP_NAME="my-cats",
        CAT_SOURCES=upstream.cataas.replace("localhost", "127.0.0.1"),  # for the SDK, another host than Sentry's
    )
    service.wait_for("Listening on ")
    sql(service.database, "ALTER TABLE cats RENAME TO gone")
    service.wait_for("Refreshing the store failed")

    def events() -> list[dict[str, Any]]:  # not those of the check of the database, which fails too
        return [each for each in sentry_events(upstream) if each["logentry"]["message"].startswith("Refreshing")]

    (event,) = eventually(events)
    assert event["exception"]["values"][-1]["value"] == "no such table: cats" and event["environment"] == "tests"
    assert not any(name.lower() in ("sentry-trace", "baggage") for _, sent in upstream.requests for name in sent)
    assert samples(service)["catscii_refreshes_total"]["failed",] == 1


def test_a_request_is_a_trace_with_its_parts_in_the_trace_of_its_caller(start, upstream, country_db):
    service = start(
        OTEL_EXPORTER_OTLP_ENDPOINT=upstream.url + "/",
        OTEL_SERVICE_NAME="my-cats",
        OTEL_RESOURCE_ATTRIBUTES="team=tabby",
        GEOLITE2_COUNTRY_DB=country_db,
        CLIENT_IP_HEADER="X-Real-IP",
    )
    for path in ("/cat/house-7", "/cat/house-7", "/", "/panic", "/nowhere"):
        service.get(path, VISITOR if path == "/cat/house-7" else CURL)
    assert service.stop() == 0
    spans = collected(upstream)
    roots = [span for span in spans if span.kind == 2]  # SPAN_KIND_SERVER
    assert [root.name for root in roots] == ["cat_get", "cat_get", "root_get", "panic_get", "request"]
    first, again, root, panic, nowhere = roots
    assert (first.trace, first.parent) == (again.trace, again.parent) == PARENT
    assert root.parent == "" and root.trace not in (first.trace, panic.trace)
    assert {span.name: span.trace for span in spans if span.parent == first.id} == dict.fromkeys(
        ("store", "render", "encode"), PARENT[0]
    )
    assert not any(span.parent == again.id for span in spans)
    assert first.attributes == {
        "http.request.method": "GET",
        "http.route": "/cat/<cat_id>",
        "http.response.status_code": 200,
        "url.path": "/cat/house-7",
        "user_agent.original": CURL["User-Agent"],
        "country": "GB",
        "cat_id": "house-7",
        "cached": False,
    }
    assert again.attributes["cached"] is True
    assert panic.error == "This is a drill: somebody asked for /panic" and first.error is nowhere.error is None
    assert nowhere.attributes["http.response.status_code"] == 404
    assert first.resource["service.name"] == "my-cats" and first.resource["team"] == "tabby"
    assert first.resource["service.version"] == catscii.__version__
    logged = [line["fields"] for line in service.log if "trace_id" in line["fields"]]
    assert [line["trace_id"] for line in logged if "ms" in line] == [root.trace for root in roots]
    assert panic.trace in [line["trace_id"] for line in logged if line["message"] == "Request failed"]


def test_a_refresh_is_a_trace_with_the_names_of_the_rust_service(start, upstream):
    upstream.answers["/v1/images/search"] = lambda handler: reply(handler, b"down", 503)
    service = start(
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=upstream.url + "/v1/traces",
        CAT_SOURCES=f"{upstream.the_cat_api},{upstream.cataas}",
    )
    eventually(service.stored)
    assert service.stop() == 0
    spans = collected(upstream)
    children = {
        root.id: [s for s in spans if s.parent == root.id] for root in spans if root.name == "get_cat_ascii_art"
    }
    assert len({span.trace for span in spans}) == len(children) and not any(s.parent for s in spans if s.id in children)
    failed = next(span for span in spans if span.id in children and span.error)
    assert failed.error == "Unavailable: status 503"
    assert [s.name for s in children[failed.id]] == ["api_headers", "api_body"] and children[failed.id][1].error
    good = next(span for span in spans if span.id in children and not span.error and span.resource)
    assert [s.name for s in children[good.id]] == ["api_headers", "api_body", "download_file", "decode"]
    download, decoded = children[good.id][2:]
    assert [span.name for span in spans if span.parent == download.id] == ["file_headers", "file_body"]
    assert decoded.attributes["bytes"] > 1000
    assert good.resource["service.name"] == "catscii"


@pytest.mark.parametrize("kind", ["SENTRY_DSN", "OTEL_EXPORTER_OTLP_ENDPOINT"])
def test_telemetry_trusts_the_same_authorities_as_everything_else(start, secure_upstream, ca_file, tmp_path, kind):
    url = secure_upstream.url
    variables = {kind: url.replace("//", "//abc@") + "/42" if kind == "SENTRY_DSN" else url}
    for trusted in ({}, {"NIX_SSL_CERT_FILE": ca_file}):  # the SDKs know SSL_CERT_FILE themselves
        assert not secure_upstream.posts
        service = start(**variables, **trusted)
        service.get("/panic")
        assert service.stop() == 0
    assert secure_upstream.posts


def test_honeycomb_gets_traces_for_its_key(start, authority, ca_file, upstream):
    """A proxy leads to a stand-in of api.honeycomb.io, whose certificate the SDK verifies."""
    certificate = authority.issue_cert("api.honeycomb.io")
    tunnels = []

    def tunnel(handler: BaseHTTPRequestHandler) -> None:
        tunnels.append(handler.path)
        handler.send_response(200)
        handler.end_headers()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        handler.connection = context.wrap_socket(handler.connection, server_side=True)
        handler.rfile, handler.wfile = handler.connection.makefile("rb"), handler.connection.makefile("wb", 0)
        handler.close_connection = False  # Python before 3.12 asks in HTTP/1.0

    upstream.answers["CONNECT"] = tunnel
    service = start(HONEYCOMB_API_KEY="k3y", SSL_CERT_FILE=ca_file, HTTPS_PROXY=upstream.url)
    service.get("/")
    assert service.stop() == 0
    assert tunnels[0] == "api.honeycomb.io:443"
    path, headers, _ = upstream.posts[0]
    assert path == "/v1/traces" and (headers["x-honeycomb-team"], headers["x-honeycomb-dataset"]) == ("k3y", "catscii")
    assert collected(upstream)[-1].resource["service.name"] == "catscii"


def test_a_key_for_honeycomb_goes_to_no_other_collector_and_a_collector_gets_its_own(start, upstream):
    service = start(
        HONEYCOMB_API_KEY="k3y", OTEL_EXPORTER_OTLP_ENDPOINT=upstream.url, OTEL_EXPORTER_OTLP_HEADERS="x-key=a%20b,y=z"
    )
    service.get("/")
    assert service.stop() == 0
    ((_, headers, body),) = upstream.posts
    assert (headers["x-key"], headers["y"]) == ("a b", "z") and "k3y" not in repr((headers, body))


@pytest.mark.parametrize("off", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_SAMPLER": "always_off"}])
def test_traces_are_sampled_or_left_out_as_opentelemetry_says(start, upstream, off):
    service = start(OTEL_EXPORTER_OTLP_ENDPOINT=upstream.url, **off)
    service.get("/")
    assert service.stop() == 0 and not upstream.posts
    assert service.started["otlp"] == ("off" if "OTEL_SDK_DISABLED" in off else "localhost")


@pytest.mark.parametrize("how", ["dead", "hanging"])
def test_neither_visitors_nor_the_end_wait_for_telemetry(start, upstream, how):
    release = threading.Event()
    upstream.answers["POST"] = lambda handler: release.wait(60) and None
    url = upstream.url
    if how == "dead":
        with socket.create_server(("127.0.0.1", 0)) as closed:
            url = f"http://localhost:{closed.getsockname()[1]}"
    telemetry = {"SENTRY_DSN": url.replace("//", "//abc@") + "/42", "OTEL_EXPORTER_OTLP_ENDPOINT": url}
    service = start(**telemetry, OTEL_BSP_SCHEDULE_DELAY="50", OTEL_BSP_MAX_QUEUE_SIZE="8",
                    OTEL_BSP_MAX_EXPORT_BATCH_SIZE="4")  # fmt: skip
    service.get("/panic")
    if how == "hanging":
        eventually(lambda: {path for path, *_ in upstream.posts} == {"/api/42/envelope/", "/v1/traces"})
    for _ in range(100):
        started = time.monotonic()
        assert service.get("/health").status == 200
        assert time.monotonic() - started < SOON
    started = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - started < 2 * catscii.FLUSH_SECONDS + SOON
    assert all(line.startswith("{") for line in service.lines), "nobody but the log writes"
    release.set()


@pytest.mark.parametrize("content", [None, "", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n", "key"])
@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "NIX_SSL_CERT_FILE"])
def test_a_wrong_file_of_certificates_is_said_at_the_start(tmp_path, authority, variable, content):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(authority.private_key_pem.bytes() if content == "key" else content.encode())
    with pytest.raises(catscii.SetupError) as error:
        catscii.read_settings({variable: str(path)})
    (problem,) = error.value.args
    assert re.match(rf"{variable}: no CA certificates can be read from '{path}': \[", problem)
    assert "\n" not in problem


def test_a_wrong_file_of_certificates_ends_the_start(tmp_path):
    (tmp_path / "ca.pem").write_text("no certificate")
    result = run(SSL_CERT_FILE=str(tmp_path / "ca.pem"), ANALYTICS_DB=str(tmp_path / "x.db"), PORT="0")
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("variables", "package", "module"),
    [
        ({"SENTRY_DSN": "http://abc@localhost:9/42"}, "sentry-sdk", "sentry_sdk"),
        ({"HONEYCOMB_API_KEY": "k3y"}, "opentelemetry-exporter-otlp-proto-http", "opentelemetry"),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_command_that_brings_it(tmp_path, variables, package, module):
    without = f"import runpy, sys; sys.modules[{module!r}] = None; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    environment = {"PATH": os.environ["PATH"], "ANALYTICS_DB": str(tmp_path / "x.db"), "PORT": "0", **variables}
    result = subprocess.run(
        [sys.executable, "-c", without], env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert next(iter(variables)) in line and "k3y" not in line and "abc" not in line
    assert f"`uv run --with {package} catscii.py`" in line and f"`pip install {package}`" in line


@pytest.mark.parametrize(
    "wrong", [{"OTEL_PROPAGATORS": "pigeon"}, {"OTEL_BSP_MAX_QUEUE_SIZE": "1", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2"}]
)
def test_what_the_sdk_refuses_is_a_clear_error(tmp_path, wrong):
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:9", "ANALYTICS_DB": str(tmp_path / "x.db"), **wrong}
    result = run(**variables, PORT="0", GEOLITE2_COUNTRY_DB="", LOG_LEVEL="error", CAT_SOURCES="")
    assert result.returncode == 2
    assert re.fullmatch(rb"catscii: OTEL_\S+ .+\n", result.stderr)


def test_a_collector_that_is_down_is_no_error_for_sentry(start, upstream):
    service = start(
        SENTRY_DSN=upstream.url.replace("//", "//abc@") + "/42",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://localhost:9",
        OTEL_EXPORTER_OTLP_TIMEOUT="1",
        OTEL_BSP_SCHEDULE_DELAY="50",
    )
    service.get("/")
    eventually(lambda: any(line["level"] == "ERROR" for line in service.log))
    assert service.stop() == 0 and not sentry_events(upstream)


def test_without_telemetry_nothing_of_it_is_imported(tmp_path):
    service = Running(tmp_path, [sys.executable, "-X", "importtime", str(SCRIPT)])
    service.get("/")
    assert service.stop() == 0
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in service.lines if "import time:" in line}
    assert "bottle" in imported
    assert not imported & {"sentry_sdk", "opentelemetry", "requests", "google", "certifi", "urllib3"}


def test_the_start_says_what_is_on_and_off(start, country_db):
    switches = ("version", "countries", "sources", "sentry", "otlp")
    plain = start().started
    assert [plain[name] for name in switches] == [catscii.__version__, "off", [], "off", "off"]
    full = start(**SECRETS, GEOLITE2_COUNTRY_DB=country_db, CAT_SOURCES="http://u:s3cret6@localhost:9/cat?key=s3cret7")
    assert [full.started[name] for name in switches[1:]] == [country_db, ["localhost"], "localhost", "localhost"]
    assert "s3cret" not in "".join(full.lines)


def test_secrets_stay_secret(start, upstream):
    secrets = SECRETS | {"CAT_SOURCES": f"{upstream.the_cat_api},http://localhost:9/v1/images/search"}
    upstream.answers["/v1/images/search"] = lambda handler: reply(handler, b"no", 500)
    service = start(**secrets, LOG_LEVEL="debug", OTEL_BSP_SCHEDULE_DELAY="50")
    pages = [service.get(path).data for path in ("/", "/cat/nobody", "/panic", "/health", "/metrics", "/nowhere")]
    service.wait_for("Source fails")
    eventually(lambda: any(line["target"].startswith("opentelemetry") for line in service.log))
    assert service.stop() == 0
    shown = b"".join([*pages, *(line.encode() for line in service.lines), run("--help", **secrets).stdout])
    assert b"s3cret" not in shown and "s3cret" not in repr(catscii.read_settings(secrets))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *((name, "s3cret\nx") for name in ("CAT_API_KEY", "HONEYCOMB_API_KEY", "SENTRY_DSN")),
        *((name, "s3crét") for name in ("CAT_API_KEY", "HONEYCOMB_API_KEY")),
        *(("SENTRY_DSN", dsn) for dsn in ("s3cret", "https://s3cret@/1", "https://s3cret@host", "ftp://s3cret@host/1")),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "s3cret:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "grpc://u:s3cret@host"),
        *(("OTEL_EXPORTER_OTLP_HEADERS", headers) for headers in ("s3cret", "a=b,s3cret", "a=s3cret%0Ax", "a=s3crét")),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", 'a="s3cret"'),
    ],
)
def test_a_wrong_secret_is_refused_without_being_shown(variable, value):
    with pytest.raises(catscii.SetupError) as error:
        catscii.read_settings({variable: value})
    (problem,) = error.value.args
    assert problem.startswith(f"{variable}: is not ") and "s3cr" not in problem


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SENTRY_DSN", "https://0a1b:2c3d@o1.ingest.de.sentry.io/4501"),
        ("SENTRY_DSN", "http://abc@sentry.local:9000/path/7"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic YTpi==, x-b=c%20d,"),
    ],
)
def test_right_secrets_are_taken(variable, value):
    catscii.read_settings({variable: value})


def test_metrics_are_what_prometheus_reads(start, upstream, country_db):
    countries = {"GEOLITE2_COUNTRY_DB": country_db, "CLIENT_IP_HEADER": "X-Real-IP"}
    service = start(command=QUICKLY_FILLED, CAT_SOURCES=upstream.cataas, **countries)
    eventually(lambda: service.stored() == FEW_CATS)
    before = samples(service)
    for path in ("/?width=79", "/cat/house-9", "/cat/house-9", "/cat/nobody", "/panic"):
        service.get(path, VISITOR)
    figures = samples(service)
    requests = figures["catscii_requests_total"]
    assert requests["/cat/<cat_id>", "200"] == 2 and requests["/cat/<cat_id>", "404"] == requests["/panic", "500"] == 1
    assert figures["catscii_visits_total"] == {("GB",): 3}
    assert figures["catscii_stored_cats"] == {(urlsplit(upstream.url).netloc,): FEW_CATS}
    assert figures["catscii_refreshes_total"]["stored",] == FEW_CATS
    assert 0 <= figures["catscii_refresh_age_seconds"][()] < 60
    assert abs(figures["process_start_time_seconds"][()] - time.time()) < 60
    assert figures["catscii_request_seconds_count"]["/cat/<cat_id>",] == 3
    assert figures["catscii_render_seconds_count"][()] == before.get("catscii_render_seconds_count", {}).get((), 0) + 2
    buckets = [figures["catscii_request_seconds_bucket"]["/cat/<cat_id>", bound] for bound in catscii.BUCKETS]
    assert buckets == sorted(buckets) and buckets[-1] == 3
    assert figures["catscii_render_seconds_bucket"]["0.001",] == 0
    assert 0 < figures["catscii_request_seconds_sum"]["/cat/<cat_id>",] < 10


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is needed, of Prometheus")
def test_metrics_please_promtool(service):
    service.get("/cat/house-9?width=33")
    result = subprocess.run(["promtool", "check", "metrics"], input=service.get("/metrics").data, capture_output=True)
    assert (result.returncode, result.stdout + result.stderr) == (0, b"")


def test_visitors_cannot_make_more_figures(start):
    service = start()
    service.get("/cat/nobody")
    service.get("/nowhere")
    known = len(service.get("/metrics").data.splitlines())
    for i in range(20):
        service.get(f"/cat/nobody{i}?width={i}", CURL | {"User-Agent": str(i)})
        service.get(f"/nowhere{i}", method=f"METHOD{i}")
        service.get("/", method=f"METHOD{i}")
    lines = service.get("/metrics").data.decode().splitlines()
    assert not any("nobody" in line or "METHOD" in line for line in lines)
    fresh = 1 + 3 + len(catscii.BUCKETS) + 1 + 2  # 400s; /metrics itself, counted when it was asked for again; 405s
    assert len(lines) <= known + fresh


def test_labels_are_escaped():
    metrics = catscii.Metrics()
    metrics.add("catscii_stored_cats", source='a"b\\c\nd')
    (family,) = [f for f in text_string_to_metric_families(metrics.text({})) if f.samples]
    assert family.samples[0].labels == {"source": 'a"b\\c\nd'}


# ---------------------------------------------------------------------------------------------------------------------
# Art
# ---------------------------------------------------------------------------------------------------------------------


class Spans(html.parser.HTMLParser):
    """An art's HTML as rows of (character, style)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[tuple[str, str]]] = [[]]
        self.style = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "b"
        self.style = dict(attrs)["style"] or ""

    def handle_endtag(self, tag: str) -> None:
        self.style = ""

    def handle_data(self, data: str) -> None:
        for character in data:
            if character == "\n":
                self.rows.append([])
            else:
                self.rows[-1].append((character, self.style))


def cells_of_art(art: catscii.Art) -> list[list[tuple[str, str, str]]]:
    """Rows of (character, foreground, background), the foreground of spaces left out."""

    def colour(plane: bytes | None, i: int) -> str:
        return plane[3 * i : 3 * i + 3].hex() if plane else ""

    width = len(art.rows[0])
    return [
        [
            (c, "" if c == " " else colour(art.foreground, y * width + x), colour(art.background, y * width + x))
            for x, c in enumerate(row)
        ]
        for y, row in enumerate(art.rows)
    ]


def cells_of_ansi(text: str) -> list[list[tuple[str, str, str]]]:
    rows = []
    for line in text.splitlines():
        ink = paper = ""
        row: list[tuple[str, str, str]] = []
        for codes, character in re.findall(r"\x1b\[([0-9;]*)m|(.)", line):
            if character:
                row.append((character, "" if character == " " else ink, paper))
            elif codes == "0":
                ink = paper = ""
            else:
                for kind, *rgb in re.findall(r"([34]8);2;(\d+);(\d+);(\d+)", codes):
                    value = bytes(map(int, rgb)).hex()
                    ink, paper = (value, paper) if kind == "38" else (ink, value)
        assert (ink, paper) == ("", ""), "a line leaves its colours behind"
        rows.append(row)
    return rows


def cells_of_html(text: str) -> list[list[tuple[str, str, str]]]:
    def cell(character: str, style: str) -> tuple[str, str, str]:
        colours = dict(part.split(":#") for part in style.split(";")) if style else {}
        colours = {name: "".join(2 * d for d in rgb) if len(rgb) == 3 else rgb for name, rgb in colours.items()}
        return character, "" if character == " " else colours.get("color", ""), colours.get("background", "")

    return [[cell(*pair) for pair in row] for row in Spans(text).rows]


pictures = st.builds(
    lambda seed, size, mode: Image.open(io.BytesIO(photograph(seed, size, "PNG"))).convert(mode),
    st.integers(0, 99),
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F"]),
)


@settings(max_examples=rounds(60), deadline=None)
@given(pictures, st.integers(20, 240), st.none() | st.integers(1, 240), st.sampled_from(catscii.STYLES))
def test_art_has_exactly_the_shape_that_fits_and_printable_ascii(picture, width, height, style):
    columns, rows = catscii.fit(picture.size, width, height)
    art = catscii.render(picture, width, height, style)
    assert 1 <= columns <= width and 1 <= rows <= (height or catscii.MAX_ROWS)
    assert [len(row) for row in art.rows] == [columns] * rows
    assert all(" " <= character <= "~" for row in art.rows for character in row)
    assert len(art.foreground) == 3 * columns * rows
    assert len(art.background or "") == (0 if style == "ink" else len(art.foreground))


@settings(max_examples=rounds(30), deadline=None)
@given(pictures, st.integers(20, 60), st.sampled_from(catscii.STYLES))
def test_the_encoders_agree_cell_by_cell(picture, width, style):
    art = catscii.render(picture, width, None, style)
    cells = cells_of_art(art)
    assert cells_of_ansi(catscii.to_ansi(art)) == cells
    assert cells_of_html(catscii.to_html(art)) == cells
    assert catscii.to_text(art).splitlines() == list(art.rows) == json.loads(json.dumps(catscii.to_dict(art)))["rows"]
    assert "".join(catscii.to_dict(art)["foreground"]) == art.foreground.hex()


@pytest.mark.parametrize(
    ("size", "width", "height", "grid"),
    [
        ((400, 400), 80, None, (80, 40)),
        ((400, 300), 80, None, (80, 30)),
        ((300, 400), 80, None, (80, 53)),
        ((400, 400), 80, 20, (40, 20)),
        ((400, 300), 240, 240, (240, 90)),
        ((1, 20000), 80, None, (1, 240)),
        ((20000, 1), 80, None, (80, 1)),
    ],
)
def test_a_cell_is_twice_as_tall_as_wide(size, width, height, grid):
    assert catscii.fit(size, width, height) == grid


def drawn_cells(art: catscii.Art) -> Iterator[tuple[str, bytes, bytes, list[float]]]:
    """Of each cell: the glyph, its colour, that of the background, and their mean over the cell."""
    planes = (catscii.chunks(plane, 3) for plane in (art.foreground, art.background))
    for glyph, ink, ground in zip("".join(art.rows), *planes, strict=True):
        cover = catscii.densities()[ord(glyph)]
        yield glyph, ink, ground, [g + (i - g) * cover for i, g in zip(ink, ground, strict=True)]


extreme_colours = st.tuples(*[st.sampled_from([0, 1, 8, 40, 128, 200, 247, 254, 255]) | st.integers(0, 255)] * 3)


def mosaic(colours: list[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], Image.Image]:
    """Cells without relief, as colours and as a picture."""
    line = Image.frombytes("RGB", (len(colours), 1), bytes(itertools.chain(*colours)))
    return colours, line.resize((20 * len(colours), 40), Image.Resampling.NEAREST)


mosaics = st.lists(extreme_colours, min_size=1, max_size=12).map(mosaic)
smooth_mosaics = st.tuples(extreme_colours, st.lists(st.integers(-4, 4), max_size=11)).map(
    lambda drift: mosaic(
        [tuple(max(0, min(255, level + step)) for level in drift[0]) for step in itertools.accumulate([0, *drift[1]])]
    )
)


@settings(max_examples=rounds(200), deadline=None)
@given(mosaics | smooth_mosaics, st.integers(0, 45))
def test_every_cell_without_relief_keeps_its_colour(mosaic, contrast):
    colours, picture = mosaic
    art = catscii.render(picture, len(colours), contrast=contrast)
    for colour, (_, _, _, mean) in zip(colours, drawn_cells(art), strict=True):
        assert all(abs(a - b) <= 2.6 for a, b in zip(mean, colour, strict=True)), "two levels, and rounding"


@settings(max_examples=rounds(60), deadline=None)
@given(pictures | mosaics.map(lambda mosaic: mosaic[1]), st.integers(1, 100))
def test_every_glyph_can_be_read(picture, contrast):
    for glyph, ink, ground, _ in drawn_cells(catscii.render(picture, 24, contrast=contrast)):
        assert glyph != " " and abs(bench_catscii.luma(ink) - bench_catscii.luma(ground)) > contrast - 1.5


@pytest.mark.parametrize("faint", [14, 20])
def test_faint_relief_keeps_its_glyph_and_gets_the_least_contrast(faint):
    font, cell = ImageFont.truetype(bench_catscii.font_path(), 256), Image.new("L", (160, 320))
    ImageDraw.Draw(cell).text((0, 0), "/", font=font, fill=faint)
    picture = cell.point(lambda level: 100 + level).convert("RGB")
    ((glyph, ink, ground, _),) = drawn_cells(catscii.render(picture, 1, contrast=40))
    assert glyph == "/" and 39 <= bench_catscii.luma(ink) - bench_catscii.luma(ground) <= 44


def test_without_contrast_a_flat_picture_has_no_glyphs():
    art = catscii.render(Image.new("RGB", (200, 100), (200, 120, 40)), 40, contrast=0)
    assert set(art.rows) == {" " * 40} and art.background[:3] == bytes((200, 120, 40))


def test_the_table_of_glyphs_is_that_of_the_font():
    packed = zlib.decompress(base64.b85decode("".join(catscii.COVERAGE.split())))
    assert packed == bench_catscii.coverage()


@pytest.mark.parametrize(("ink", "paper"), [((210, 205, 200), (70, 60, 80)), ((30, 10, 10), (220, 200, 180))])
def test_a_glyph_drawn_large_comes_back_as_that_glyph(ink, paper):
    font = ImageFont.truetype(bench_catscii.font_path(), 256)
    for glyph in catscii.FILL_GLYPHS:
        cell = Image.new("L", (160, 320))
        ImageDraw.Draw(cell).text((0, 0), glyph, font=font, fill=255)
        picture = Image.composite(Image.new("RGB", cell.size, ink), Image.new("RGB", cell.size, paper), cell)
        assert catscii.render(picture, 1).rows == (glyph,)


def ink_of(picture: Image.Image, width: int, background: str, plain: bool) -> catscii.Art:
    return catscii.render(picture, width, None, "ink", 0, background, plain)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("background", catscii.BACKGROUNDS)
def test_ink_is_a_smooth_ramp_of_glyphs(background, plain):
    art = ink_of(Image.linear_gradient("L").rotate(90).convert("RGB"), 60, background, plain)
    for row in art.rows:
        densities = [catscii.densities()[ord(glyph)] for glyph in row]
        assert densities == sorted(densities, reverse=background == "light") and len(set(densities)) > 6
    assert len(set(art.rows)) == 1


@pytest.mark.parametrize("colour", ["white", (200, 180, 160), (90, 90, 90)])
def test_ink_is_calm_where_the_picture_is(colour):
    picture = Image.new("RGB", (400, 300), colour)
    ImageDraw.Draw(picture).ellipse((100, 50, 300, 250), "black")
    corners = {row[:10] for row in catscii.render(picture, 60, style="ink").rows[:4]}
    assert len(corners) == 1 and len(set(corners.pop())) == 1


@pytest.mark.parametrize(("turn", "glyph", "others"), [(27, "/", "\\"), (-27, "\\", "/"), (0, "|", "\\/")])
def test_edges_in_ink_have_glyphs_of_their_direction(turn, glyph, others):
    picture = Image.new("L", (600, 600))
    ImageDraw.Draw(picture).line([(310, -300), (310, 900)], 255, 6)
    drawn = "".join(ink_of(picture.rotate(-turn).convert("RGB"), 30, "dark", True).rows)
    assert drawn.count(glyph) >= 4 and not set(drawn) & set(others)


@settings(max_examples=rounds(40), deadline=None)
@given(pictures | mosaics.map(lambda mosaic: mosaic[1]))
def test_colours_of_ink_can_be_read_on_their_page(picture):
    """WCAG 2.2: contrast on white is 3:1 or more. On black, legible is what is 24 levels of luma from it."""
    for colour in catscii.chunks(ink_of(picture, 24, "light", False).foreground, 3):
        linear = [c / 12.92 if (c := level / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for level in colour]
        assert 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05) >= 3
    dark = catscii.chunks(ink_of(picture, 24, "dark", False).foreground, 3)
    assert all(bench_catscii.luma(colour) >= 24 for colour in dark)


@pytest.mark.opencv
@pytest.mark.parametrize(("style", "share"), [("fill", 0.9), ("ink", 0.5)])
def test_cats_are_recognised_in_their_art(style, share):
    """Over 200 house cats it is 0.97 and 0.66 of all looks."""
    pictures = [catscii.draw_house_cat(seed) for seed in range(20)]
    arts = [Image.open(io.BytesIO(catscii.to_png(catscii.render(p, style=style), "dark"))) for p in pictures]
    assert statistics.fmean(itertools.chain(*map(bench_catscii.looks, arts))) >= share


@settings(max_examples=rounds(60), deadline=None)
@given(st.integers(0, 255), st.integers(0, 255))
def test_mirrored_and_negated_pictures_behave(left, right):
    ramp = Image.linear_gradient("L").rotate(90).point(lambda level: left + (right - left) * level / 255).convert("RGB")
    straight, mirrored, negated = (
        catscii.chunks(catscii.render(picture, 16).background, 3)
        for picture in (ramp, ImageOps.mirror(ramp), ImageOps.invert(ramp))
    )
    for i, (r, g, b) in enumerate(straight):
        x = i % 16
        assert all(abs(p - q) <= 40 for p, q in zip((r, g, b), mirrored[i - x + 15 - x], strict=True))
        assert all(abs(p + q - 255) <= 40 for p, q in zip((r, g, b), negated[i], strict=True))


def test_art_is_deterministic_and_sees_what_is_there():
    picture = Image.open(io.BytesIO(photograph(7)))
    assert catscii.render(picture) == catscii.render(picture)
    assert catscii.render(picture) != catscii.render(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


MODES = {"JPEG": "RGB L CMYK", "PNG": "1 L LA P RGB RGBA I;16", "GIF": "P", "WEBP": "RGB", "BMP": "RGB"}
MODES |= {"TIFF": "CMYK F", "PPM": "RGB"}


@pytest.mark.parametrize(("format", "mode"), [(format, mode) for format in MODES for mode in MODES[format].split()])
def test_every_format_and_mode_shows_the_same_picture(format, mode):
    picture = Image.open(io.BytesIO(photograph(3, (320, 240)))).convert("L")
    data, levels = io.BytesIO(), picture.convert("I").point(lambda v: v * 257)
    (levels.convert("I;16") if mode == "I;16" else picture.convert(mode)).save(data, format)
    seen = catscii.decode(data.getvalue(), 320).convert("L")
    difference = sum(abs(a - b) for a, b in zip(seen.tobytes(), picture.tobytes(), strict=True)) / (320 * 240)
    assert difference < (125 if mode == "1" else 20 if mode == "F" else 3)


def test_exif_orientation_transparency_and_first_frame():
    picture, data = Image.new("RGB", (60, 40), "red"), io.BytesIO()
    picture.paste("blue", (0, 0, 60, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    picture.save(data, "PNG", exif=exif)
    turned = catscii.decode(data.getvalue(), 100)
    assert (turned.size, turned.getpixel((5, 5)), turned.getpixel((35, 5))) == ((40, 60), (255, 0, 0), (0, 0, 255))

    data = io.BytesIO()
    Image.new("RGBA", (9, 9), (255, 255, 255, 0)).save(data, "PNG")
    assert catscii.decode(data.getvalue(), 9).getpixel((4, 4)) == catscii.BACKGROUNDS["dark"]

    data, frames = io.BytesIO(), [Image.new("RGB", (9, 9), colour) for colour in ("lime", "red", "blue")]
    frames[0].save(data, "GIF", save_all=True, append_images=frames[1:])
    assert catscii.decode(data.getvalue(), 9).getpixel((4, 4)) == (0, 255, 0)


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"<html>not a picture</html>", photograph()[:3000], b"\x89PNG\r\n\x1a\n" + b"\0" * 99]
)
def test_what_is_no_whole_picture_is_refused_with_a_reason(data):
    with pytest.raises(catscii.PictureError, match="picture"):
        catscii.decode(data, 480)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0this is no TIFF header", b"Exif\0\0MM\0*"])
def test_a_picture_with_broken_exif_data_is_shown_all_the_same(format, exif):
    data = io.BytesIO()
    Image.new("RGB", (40, 20), "red").save(data, format, exif=exif)
    assert catscii.decode(data.getvalue(), 40).size == (40, 20)


def test_a_picture_of_too_many_pixels_is_refused_from_its_header():
    data = io.BytesIO()
    Image.new("1", (9000, 9000)).save(data, "PNG")
    with pytest.raises(catscii.PictureError, match="too much memory"):
        catscii.decode(data.getvalue(), 480)


def test_a_large_picture_is_made_small_before_it_is_copied():
    for mode in ("L", "RGB", "RGBA"):
        assert catscii.decode(photograph(1, (3000, 2000), "PNG", mode), 500).size == (500, 334)


def test_the_transparent_level_of_a_16_bit_grey_png_is_clear_and_its_neighbours_are_not():
    picture, data = Image.new("I;16", (4, 1)), io.BytesIO()
    for x, level in enumerate((255, 40000, 40001, 65535)):
        picture.putpixel((x, 0), level)
    picture.save(data, "PNG", transparency=40000)
    seen = catscii.decode(data.getvalue(), 4)
    assert [seen.getpixel((x, 0)) for x in range(4)] == [(0,) * 3, catscii.BACKGROUNDS["dark"], (155,) * 3, (255,) * 3]


def zeros(count: int) -> bytes:
    """So many zeros, deflated: any number in a moment."""
    deflater = zlib.compressobj(9, wbits=-15)
    mebibyte = deflater.compress(bytes(1 << 20)) + deflater.flush(zlib.Z_FULL_FLUSH)
    rest = deflater.compress(bytes(count % (1 << 20))) + deflater.flush()
    return b"x\xda" + mebibyte * (count >> 20) + rest + struct.pack(">HH", count % 65521, 1)


def png(width: int, height: int, channels: int, exif: bytes = b"") -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I4s", len(data), name) + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = {b"IHDR": header, b"eXIf": exif, b"IDAT": zeros((1 + width * channels) * height), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(itertools.starmap(chunk, chunks.items()))


def tiff(width: int, height: int, bits: int, compression: int, data: bytes, tile: int = 0) -> bytes:
    """A grey picture in one strip or in one tile."""
    place = {322: tile, 323: tile, 324: 8, 325: len(data)} if tile else {273: 8, 278: height, 279: len(data)}
    tags = {256: width, 257: height, 258: bits, 259: compression, 262: 1, 277: 1, **place}
    entries = [struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags)]
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + b"".join(entries)


def jpeg(side: int, frame: int, components: int, scans: list[tuple[bytes, bytes]]) -> bytes:
    """A square whose coefficients are all 0, which its tables write as a bit of 0."""

    def segment(marker: int, data: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, 2 + len(data)) + data

    tables = segment(0xDB, b"\0" + b"\1" * 64) + b"".join(segment(0xC4, bytes([i, 1, *[0] * 16])) for i in (0, 0x10))
    layout = b"".join(bytes([i + 1, 0x11, 0]) for i in range(components))
    start = tables + segment(frame, struct.pack(">BHHB", 8, side, side, components) + layout)
    return b"\xff\xd8" + start + b"".join(segment(0xDA, head) + data for head, data in scans) + b"\xff\xd9"


def bmp(width: int, height: int, data: bytes) -> bytes:
    """A picture of runs, as Windows writes them."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
    return struct.pack("<2sIII", b"BM", 1078 + len(data), 0, 1078) + header + bytes(1024) + data


def gif(extensions: bytes) -> bytes:
    data = io.BytesIO()
    Image.new("L", (8, 8)).save(data, "GIF")
    before, comma, after = data.getvalue().rpartition(b",\0\0\0\0\x08")
    return before + extensions + comma + after


TURNED = b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"  # EXIF data: by 90 degrees
GREEDY: dict[str, Callable[[], bytes]] = {  # files that want gigabytes or minutes, or that libtiff complains of
    "a-tile-larger-than-its-picture": lambda: tiff(64, 64, 8, 8, zeros(46_000**2), 46_000),
    "a-strip-of-all": lambda: tiff(8000, 8000, 16, 8, zeros(2 * 8000**2)),
    "complaints": lambda: tiff(8, 500_000, 1, 3, random.Random(1).randbytes(1_000_000)),
    "a-column": lambda: png(1, 64_000_000, 4),
    "turned": lambda: png(8000, 8000, 3, TURNED),
    "comments": lambda: gif(b"!\xfe" + b"\2ab" * 5_000_000 + b"\0"),
    "scans-of-a-component": lambda: jpeg(
        8000, 0xC0, 4, [(bytes([1, i, 0, 0, 63, 0]), bytes(250_000)) for i in (1, 2, 3, 4)]
    ),
    "scans": lambda: jpeg(4000, 0xC2, 1, [(bytes([1, 1, 0, 0, 0, 0]), b"\0")] * 60_000),
    "a-leap": lambda: bmp(4_000_000, 16, b"\0\2\0\xff" * 200),
    "lines-of-comments": lambda: b"P1 8 8 " + b"#\n" * 8_000_000,
}


def children(pid: int) -> list[int]:
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


@contextlib.contextmanager
def watched(pid: int) -> Iterator[list[float]]:
    """What the process and its children together have resident, in megabytes, again and again."""
    sums, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            with contextlib.suppress(OSError):  # one has ended
                sums.append(sum(map(resident_megabytes, [pid, *children(pid)])))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield sums
    finally:
        ended.set()
        watcher.join()


def test_greedy_pictures_are_refused_in_little_time_memory_and_log_and_the_next_one_is_shown(start, upstream):
    upstream.known.add("only")
    upstream.answers["/v1/images/search"] = lambda handler: reply(handler, [upstream.the_cat_api_entry("only")])
    patient = patched("catscii.VISITORS_REQUESTS_A_MINUTE, catscii.BOX_SECONDS = 999, 200")
    service = start(command=patient, CAT_SOURCES=upstream.the_cat_api)
    eventually(lambda: service.stored() == 1)
    statuses = {}
    for name, make in GREEDY.items():
        upstream.known |= {name, f"after-{name}"}
        upstream.answers[f"/images/{name}.jpg"] = partial(reply, body=make())
        with watched(service.process.pid) as megabytes:
            used = processor_seconds(service.process.pid)
            statuses[name] = service.get(f"/cat/{name}", timeout=200).status
            assert processor_seconds(service.process.pid) - used < catscii.BOX_SECONDS, name
        assert max(megabytes) < 250, name
        assert service.json(f"/cat/after-{name}")["id"] == f"after-{name}"
    service.stop()
    refused = GREEDY.keys() - {"complaints"}  # which is drawn
    assert statuses == dict.fromkeys(GREEDY, 200) | dict.fromkeys(refused, 503)
    told = [line["fields"].get("id") for line in service.log if "path" not in line["fields"]]
    assert {name: told.count(name) for name in refused} == dict.fromkeys(refused, 1)
    assert len(service.lines) == len(service.log) < 3 * len(GREEDY) + 10  # nothing of libtiff's


def test_the_process_that_decodes_has_no_secret_and_no_file(monkeypatch):
    monkeypatch.setenv("CAT_API_KEY", "s3cret")
    with ThreadPoolExecutor(1) as executor, open(os.devnull) as file:
        os.set_inheritable(file.fileno(), True)
        known = children(os.getpid())
        refused = executor.submit(catscii.run_in_box, GREEDY["scans"](), 480, True)
        (child,) = eventually(lambda: set(children(os.getpid())).difference(known))
        limits = Path(f"/proc/{child}/limits")
        eventually(lambda: re.search(r"(?m)^Max open files +0 +0 ", limits.read_text()))
        assert {path.name for path in Path(f"/proc/{child}/fd").iterdir()} == {"0", "1", "2"}
        assert b"s3cret" not in Path(f"/proc/{child}/environ").read_bytes()
        os.kill(child, signal.SIGKILL)
        with pytest.raises(catscii.PictureError, match="too much memory or time"):
            refused.result()


def test_the_process_that_decodes_imports_nothing_from_the_working_folder(monkeypatch, tmp_path):
    (tmp_path / "random.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    assert catscii.run_in_box(photograph(), 480, True)


def damaged(seed: int) -> bytes:
    rng = random.Random(seed)
    format = catscii.PICTURE_FORMATS[seed % len(catscii.PICTURE_FORMATS)]
    data = bytearray(photograph(1, (64, 48), format))
    for _ in range(rng.randrange(6)):
        at = rng.randrange(min(len(data), rng.choice((32, 256, len(data)))))  # mostly in the header
        data[at : at + rng.randrange(3)] = rng.choice((rng.randbytes(2), b"\xff\xff", b"\0", data[at : at + 99]))
    if rng.random() < 0.2:
        del data[rng.randrange(len(data)) :]
    at = 8
    while format == "PNG" and at + 12 <= len(data):  # has checksums, which would give the damage away
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(data)


def test_damaged_pictures_are_drawn_or_refused_with_a_reason(tmp_path):
    """One process makes all those that decode, each from itself: to start Python 200 times would take minutes."""
    code = f"""
import json, os, random, sys; sys.path.insert(0, {str(SCRIPT.parent)!r})
import catscii, PIL.Image; PIL.Image.preinit(); catscii.glyphs()
for name in sorted(os.listdir()):
    reading, writing = os.pipe()
    if not os.fork():
        os.dup2(os.open(name, os.O_RDONLY), 0)
        os.dup2(writing, 1)
        catscii.work_in_box(480, True)
    os.close(writing)
    made, status = open(reading, "rb").read(), os.waitstatus_to_exitcode(os.wait()[1])
    print(json.dumps([name, status, made.decode("latin-1")]))"""
    for seed in range(rounds(200)):
        (tmp_path / f"{seed:03}").write_bytes(damaged(seed))
    outcomes: Counter[int] = Counter()
    lines = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, timeout=120).splitlines()
    for name, status, made in map(json.loads, lines):
        outcomes[status] += 1
        if status == 0:
            assert Image.open(io.BytesIO(made.encode("latin-1"))).size[0] <= 480, name
        else:
            assert status == catscii.UNREADABLE and 20 < len(made) < 300, (name, status, made)
    assert len(lines) == rounds(200) and min(outcomes.values()) > rounds(50)


def test_a_jpeg_is_decoded_no_larger_than_needed():
    assert max(catscii.decode(photograph(1, (3200, 2400)), 400).size) == 400


# ---------------------------------------------------------------------------------------------------------------------
# House cats
# ---------------------------------------------------------------------------------------------------------------------


@settings(max_examples=rounds(15), deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_house_cat_is_the_same_for_the_same_seed(seed):
    picture = catscii.draw_house_cat(seed)
    assert (picture.mode, picture.size) == ("RGB", catscii.PORTRAIT)
    assert picture.tobytes() == catscii.draw_house_cat(seed).tobytes()


@pytest.mark.parametrize(
    ("seed", "description", "colours"),  # of the four quarters of the picture; a permalink is for ever
    [
        (0, "a grey cat with amber eyes", "3c4e43 657a61 455650 6b7c6f"),
        (1, "a ginger tabby with copper eyes", "5b635a 5b786f 786b57 6d705e"),
        (2, "a brown tabby with amber eyes", "584665 584660 6d5868 6f5c64"),
        (61, "a white cat with one blue and one amber eye", "61765e 4f6250 83917d 6b7d71"),
    ],
)
def test_a_house_cat_looks_as_it_always_did_and_as_it_is_described(seed, description, colours):
    picture = catscii.draw_house_cat(seed)
    assert picture.info["description"] == description
    quarters = picture.resize((2, 2), Image.Resampling.BOX).tobytes()
    assert all(abs(a - b) <= 1 for a, b in zip(quarters, bytes.fromhex(colours), strict=True))


def test_house_cats_differ_and_have_dark_pupils_in_bright_eyes():
    cats = [catscii.draw_house_cat(seed) for seed in range(12)]
    assert len({cat.tobytes() for cat in cats}) == 12
    for cat in cats:
        dark, bright = cat.convert("L").crop((120, 120, 360, 300)).getextrema()
        assert dark < 40 and bright > 220


# ---------------------------------------------------------------------------------------------------------------------
# Cats: sources, store, refresher
# ---------------------------------------------------------------------------------------------------------------------


def make_refresher(tmp_path: Path, *urls: str, ca_file: str | None = None, key: str | None = None):
    """A store in a file, and a refresher that is stepped by hand."""
    database = catscii.Database(str(tmp_path / "cats.db"))
    fetcher = catscii.Fetcher(ca_file, urls)
    store = catscii.Store(database)
    return store, catscii.Refresher(store, [catscii.Source(url, fetcher, key) for url in urls], fetcher)


def test_the_store_fills_at_the_start_and_requests_are_served_from_it(start, upstream):
    service = start(command=patched("catscii.STORED_CATS = 11"), CAT_SOURCES=upstream.the_cat_api)
    eventually(lambda: service.stored() == 11)
    served = {service.json("/")["id"] for _ in range(60)}
    assert len(served) > 5 and served <= upstream.known
    shown = service.json("/")
    assert shown["source"] == urlsplit(upstream.url).netloc
    assert shown["credit"] == f"{upstream.url}/images/{shown['id']}.jpg"
    assert upstream.asked("/v1/images/search?limit=10&mime_types=jpg,png") == 2  # of ten cats each
    assert upstream.asked("/images/") == 11
    assert all(re.match(r"catscii/\d", headers["User-Agent"]) for _, headers in upstream.requests)


def test_a_cat_that_was_seen_comes_back_when_there_is_no_other_the_oldest_first(tmp_path):
    store, _ = make_refresher(tmp_path)
    cattery = catscii.Cattery(store, [object()], no_fetcher)
    store._execute = lambda query: [(str(i),) for i in range(12)]
    for _ in range(100):
        seen = random.sample([str(i) for i in range(12)], 12)
        cattery._picked = ""
        assert cattery.pick(seen[:10]) in seen[10:]
        cattery._picked = ""
        assert cattery.pick(seen) == seen[0]
        assert cattery.pick(["nobody", *"0123456789"]) in {"10", "11"}


@pytest.mark.parametrize("cats", [1, 2])
def test_another_cat_is_another_if_there_is_one(tmp_path, upstream, cats):
    store, refresher = make_refresher(tmp_path, upstream.the_cat_api)
    for _ in range(cats):
        refresher.fetch_one()
    cattery = catscii.Cattery(store, refresher._sources, refresher._fetcher)
    picked = [cattery.pick() for _ in range(10_000)]
    assert set(picked) <= upstream.known and len(set(picked)) == cats
    repeated = sum(a == b for a, b in itertools.pairwise(picked))
    assert repeated == (9_999 if cats == 1 else 0)


def test_traffic_causes_no_upstream_requests(start, upstream):
    service = start(command=QUICKLY_FILLED, CAT_SOURCES=upstream.cataas)
    eventually(lambda: service.stored() == FEW_CATS)
    before = len(upstream.requests)
    for _ in range(100):
        assert service.get("/").status == 200
    assert len(upstream.requests) == before


def test_pictures_are_stored_small_with_their_credit(tmp_path, upstream):
    upstream.answers["/cat"] = lambda handler: reply(handler, {"_id": "big", "url": "/big", "mimetype": "image/png"})
    upstream.answers["/big"] = lambda handler: reply(handler, photograph(1, (2000, 1000), "PNG"))
    store, refresher = make_refresher(tmp_path, upstream.cataas)
    refresher.fetch_one()
    cat, jpeg = store.get("big")
    assert cat == catscii.Cat("big", urlsplit(upstream.url).netloc, f"{upstream.url}/big")
    assert (Image.open(io.BytesIO(jpeg)).format, Image.open(io.BytesIO(jpeg)).size) == ("JPEG", (480, 240))


def test_a_full_store_replaces_its_oldest_cat_once_a_minute(tmp_path, upstream):
    store, refresher = make_refresher(tmp_path, upstream.the_cat_api)
    order = []
    while sum(store.counts().values()) < catscii.STORED_CATS:
        assert refresher._delay() <= catscii.QUICK_SECONDS
        refresher.fetch_one()
        order += [cat for cat in upstream.known if store.holds(cat) and cat not in order]
    assert 59 < refresher._delay() <= 60
    refresher.fetch_one()
    assert sum(store.counts().values()) == catscii.STORED_CATS
    assert not store.holds(order[0]) and store.get(order[0]) == (store.get(order[0])[0], None)
    assert all(store.holds(cat) for cat in order[1:])


def test_an_upstream_with_few_cats_is_not_asked_without_end(tmp_path, upstream):
    upstream.answers["/cat"] = lambda handler: reply(handler, upstream.cataas_entry("only"))
    upstream.known.add("only")
    store, refresher = make_refresher(tmp_path, upstream.cataas)
    for _ in range(catscii.QUICK_REPEATS + 1):
        refresher.fetch_one()
    assert store.counts() and refresher._delay() > 59
    assert upstream.asked("/cat/only") == 1


def test_the_second_source_serves_while_the_first_fails_and_rests(tmp_path, upstream, caplog):
    upstream.answers["/v1/images/search"] = lambda handler: reply(handler, b"no", 500, **{"Retry-After": "60"})
    store, refresher = make_refresher(tmp_path, upstream.the_cat_api, upstream.cataas)
    for _ in range(3):
        refresher.fetch_one()
    first, second = refresher._sources
    assert sum(store.counts().values()) == 3 and upstream.asked("/v1") == first.failures == 1 and second.failures == 0
    for failures, longest in ((4, 8), (12, 600), (5000, 600)):
        first.failures = failures - 1
        first.failed()
        assert longest / 2 <= first.ready - time.monotonic() <= longest
    del upstream.answers["/v1/images/search"]
    first.ready = 0
    refresher.fetch_one()
    assert first.failures == 0
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == ["Source fails"]


def test_with_every_source_down_house_cats_serve_at_once_and_the_store_recovers(start, upstream):
    upstream.answers["/cat"] = lambda handler: reply(handler, b"down", 503)
    service = start(CAT_SOURCES=upstream.cataas)
    assert service.json("/")["id"].startswith("house-")
    service.wait_for("Source fails")
    del upstream.answers["/cat"]
    service.wait_for("Source works again")
    eventually(lambda: not service.json("/")["id"].startswith("house-"))


def test_a_hanging_upstream_delays_nobody(start, upstream):
    release = threading.Event()
    upstream.answers["/cat"] = lambda handler: release.wait(60) and None
    service = start(command=patched("catscii.SILENT_SECONDS = catscii.TOTAL_SECONDS = 60"), CAT_SOURCES=upstream.cataas)
    eventually(lambda: upstream.asked("/cat"))
    begun = time.monotonic()
    assert service.get("/").status == 200
    assert service.stop() == 0 and time.monotonic() - begun < SOON
    release.set()


def test_https_is_verified_and_the_key_goes_to_the_api_alone(tmp_path, secure_upstream, ca_file):
    store, refresher = make_refresher(tmp_path, secure_upstream.the_cat_api, ca_file=ca_file, key="s3cret")
    refresher.fetch_one()
    assert sum(store.counts().values()) == 1
    sent = {
        path.partition("?")[0].rpartition("/")[0]: headers.get("x-api-key")
        for path, headers in secure_upstream.requests
    }
    assert sent == {"/v1/images": "s3cret", "/images": None}

    _, distrustful = make_refresher(tmp_path, secure_upstream.cataas)
    distrustful.fetch_one()
    assert distrustful._sources[0].failures == 1


def test_a_redirect_does_not_take_the_key_along(tmp_path, upstream, secure_upstream, ca_file):
    upstream.answers["/v1/images/search"] = redirect(secure_upstream.the_cat_api)
    _, refresher = make_refresher(tmp_path, upstream.the_cat_api, ca_file=ca_file, key="s3cret")
    refresher.fetch_one()
    assert upstream.requests[0][1]["x-api-key"] == "s3cret"
    assert secure_upstream.requests and not any("x-api-key" in headers for _, headers in secure_upstream.requests)


def test_redirects_lead_from_https_to_https_only(upstream, secure_upstream, ca_file):
    fetcher = catscii.Fetcher(ca_file, [upstream.url])
    secure_upstream.answers["/down"] = redirect(f"{upstream.url}/images/1")
    secure_upstream.answers["/file"] = redirect("file:///etc/passwd")
    secure_upstream.answers["/loop"] = redirect("/loop")
    secure_upstream.answers["/ok"] = redirect("/images/2")
    upstream.answers["/up"] = redirect(f"{secure_upstream.url}/images/3")
    upstream.answers["/up-and-down"] = redirect(f"{secure_upstream.url}/down")
    for url in (f"{upstream.url}/up-and-down", *(secure_upstream.url + path for path in ("/down", "/file", "/loop"))):
        with pytest.raises(catscii.Unavailable):
            fetcher.get(url, 1 << 20)
    assert [path for path, _ in upstream.requests] == ["/up-and-down"]
    assert secure_upstream.asked("/loop") == catscii.MAX_REDIRECTS + 1
    assert fetcher.get(f"{secure_upstream.url}/ok", 1 << 20) == photograph("/images/2")
    assert fetcher.get(f"{upstream.url}/up", 1 << 20) == photograph("/images/3")


@contextlib.contextmanager
def unvisited(host: str, port: int = 0) -> Iterator[int]:
    """The port of a socket that listens there. Nobody connects to it."""
    with socket.create_server((host, port)) as listener:
        yield listener.getsockname()[1]
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize(
    "form",
    [r"http://{other}\@{trusted}/x", "http://{other}#@{trusted}/x", "http://{other}?@{trusted}/x",
     "http://{trusted}@{other}/x", r"http://{trusted}\@{other}@{other}/x", "//{other}/x", r"/\{other}/x"],
)  # fmt: skip
def test_a_url_that_can_be_read_in_two_ways_leads_to_no_untrusted_host(tmp_path, upstream, form):
    trusted = f"127.0.0.1:{urlsplit(upstream.url).port}"
    with unvisited("127.0.0.2") as port:
        url = form.format(trusted=trusted, other=f"127.0.0.2:{port}")
        upstream.answers["/cat/moved"] = redirect(url)
        for picture in (url, "/cat/moved"):
            upstream.answers["/cat"] = lambda handler, url=picture: reply(handler, {"_id": "x", "url": url})
            store, refresher = make_refresher(tmp_path, f"http://{trusted}/cat")
            refresher.fetch_one()
            assert not store.counts()


SPECIAL_NETWORKS = """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.0.0/29 192.0.0.8/32
    192.0.0.9/32 192.0.0.10/32 192.0.0.170/31 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16
    192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 255.255.255.255/32
    ::/128 ::1/128 ::/96 ::ffff:0:0/96 64:ff9b::/96 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 2001::/32
    2001:1::1/128 2001:1::2/128 2001:1::3/128 2001:2::/48 2001:3::/32 2001:4:112::/48 2001:10::/28 2001:20::/28
    2001:30::/28 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8
    ::127.0.0.1/128 ::ffff:10.0.0.1/128 ::ffff:100.64.0.1/128 ::ffff:8.8.8.8/128 64:ff9b::192.168.0.1/128
    2002:7f00:1::/48 2001:0:7f00:1::/64
"""  # IANA's registries of special-purpose addresses, multicast, and IPv4 in IPv6


@pytest.mark.parametrize("network", SPECIAL_NETWORKS.split())
def test_an_address_for_a_special_purpose_is_not_public(network):
    addresses = ipaddress.ip_network(network)
    for address in (addresses[0], addresses[addresses.num_addresses // 2], addresses[-1]):
        assert not catscii.is_public(str(address))
    assert not catscii.is_public(f"{addresses[0]}%eth0")


PUBLIC_ADDRESSES = """
    1.0.0.0 1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 169.253.255.255
    169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.0 192.0.3.0 192.88.98.255 192.167.255.255 192.169.0.0 198.17.255.255
    198.20.0.0 198.51.99.255 203.0.114.0 223.255.255.255 2000:: 2001:200:: 2001:4860:4860::8888 2001:db7::
    2001:db9:: 2003:: 2606:4700::1 2620:4f:7fff:: 2620:4f:8001:: 2a00:1450::1 3ffe:: 3fff:1000::
"""


@pytest.mark.parametrize("address", PUBLIC_ADDRESSES.split())
def test_other_addresses_are_public(address):
    assert catscii.is_public(address)


def resolve(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Let cats.example have these addresses, others each time; the result tells how often it was resolved."""
    getaddrinfo, resolved = socket.getaddrinfo, []

    def resolve(host: Any, *arguments: Any, **options: Any) -> list[Any]:
        if host != "cats.example":
            return getaddrinfo(host, *arguments, **options)
        resolved.append(host)
        addresses = answers[min(len(resolved), len(answers)) - 1]
        return [entry for address in addresses for entry in getaddrinfo(address, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return resolved


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "8.8.8.8"]])
def test_nothing_goes_to_a_name_that_has_a_private_address(monkeypatch, scheme, addresses):
    resolve(monkeypatch, addresses)
    with unvisited("127.0.0.1") as port, pytest.raises(catscii.Unavailable, match="1 is not a public address"):
        catscii.Fetcher(None, []).get(f"{scheme}://cats.example:{port}/", 1000)


def test_a_name_is_resolved_once_and_all_its_addresses_are_tried(monkeypatch, upstream):
    port = urlsplit(upstream.url).port
    monkeypatch.setattr(catscii, "is_public", lambda address: address in ("127.0.0.1", "127.0.0.3"))
    resolved = resolve(monkeypatch, ["127.0.0.3", "127.0.0.1"], ["127.0.0.2"])
    with unvisited("127.0.0.2", port):
        url = f"http://cats.example:{port}/images/1"
        assert catscii.Fetcher(None, []).get(url, 1 << 20) == photograph("/images/1")
    assert resolved == ["cats.example"]


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    while True:
        handler.wfile.write(b"\0" * 65536)


def going_on(handler: BaseHTTPRequestHandler) -> None:
    while True:
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.01)


def dripping(handler: BaseHTTPRequestHandler, bodyless: bool = False) -> None:
    if not bodyless:
        reply(handler, b"", **{"Content-Length": "1000"})  # type: ignore[arg-type]
    for _ in range(150):
        handler.wfile.write(b"x")
        time.sleep(0.1)


def dripping_to_the_end(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    dripping(handler, bodyless=True)


def slow_redirect(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(0.2)
    reply(handler, b"", 302, Location=handler.path)


def dripping_headers(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    dripping(handler, bodyless=True)


def test_reading_stops_at_the_limits_of_size_and_time(upstream, monkeypatch):
    upstream.answers["/endless"] = endless
    upstream.answers["/short"] = lambda handler: reply(
        handler, b"short", **{"Content-Length": "9", "Connection": "close"}
    )
    fetcher = catscii.Fetcher(None, [upstream.url])
    with pytest.raises(catscii.Unavailable, match="more than 1000000 bytes"):
        fetcher.get(f"{upstream.url}/endless", 1_000_000)
    with pytest.raises(catscii.Unavailable):
        fetcher.get(f"{upstream.url}/short", 1_000_000)
    monkeypatch.setattr(catscii, "TOTAL_SECONDS", 0.5)
    for slow in (dripping, dripping_to_the_end, dripping_headers, slow_redirect, going_on):
        upstream.answers["/slow"], begun = slow, time.monotonic()
        with pytest.raises(catscii.Unavailable, match="no whole answer after"):
            fetcher.get(f"{upstream.url}/slow", 1_000_000)
        assert time.monotonic() - begun < SOON
        eventually(no_fetcher)


def no_fetcher() -> bool:
    return not any(thread.name == "fetcher" for thread in threading.enumerate())


def test_an_answer_that_nobody_waits_for_any_more_is_not_read(authority, ca_file, monkeypatch):
    context, listener = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), socket.create_server(("127.0.0.1", 0))
    authority.issue_cert("localhost").configure_cert(context)

    def answer() -> None:
        connection, _ = listener.accept()
        time.sleep(1)
        with context.wrap_socket(connection, server_side=True) as client, contextlib.suppress(OSError):
            while True:
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                time.sleep(0.01)

    threading.Thread(target=answer, daemon=True).start()
    url = f"https://localhost:{listener.getsockname()[1]}"
    monkeypatch.setattr(catscii, "TOTAL_SECONDS", 0.5)
    with listener, pytest.raises(catscii.Unavailable, match="no whole answer after"):
        catscii.Fetcher(ca_file, [url]).get(url, 1_000_000)
    assert not no_fetcher()
    eventually(no_fetcher)


@pytest.mark.parametrize(
    "answer",
    [
        *(b"", b"<html>", b"[]", b"{}", b"null", b"[1]", b'[{"id": 1, "url": "x"}]', b'{"id": "a b", "url": "/x"}'),
        *(b'[{"id": "house-1", "url": "/x"}]', b'[{"id": "x", "url": "ftp://x"}]'),
        *(b'[{"id": "x", "url": "http://[bad"}]', b"[" * 100000),
    ],
)
def test_an_answer_of_another_shape_is_a_failure_and_nothing_more(tmp_path, upstream, answer):
    upstream.answers["/v1/images/search"] = upstream.answers["/cat"] = lambda handler: reply(handler, answer)
    store, refresher = make_refresher(tmp_path, upstream.the_cat_api, upstream.cataas)
    refresher.fetch_one()
    assert [each.failures for each in refresher._sources] == [1, 1] and not store.counts()


def test_an_evicted_cat_keeps_its_permalink(start, upstream):
    service = start(command=QUICKLY_FILLED, CAT_SOURCES=upstream.the_cat_api)
    eventually(lambda: service.stored() == FEW_CATS)
    evict = "UPDATE cats SET picture = NULL"
    ((cat,),) = sql(service.database, f"{evict} WHERE rowid = 1 RETURNING id")
    before = upstream.asked(f"/images/{cat}.jpg")
    assert service.json(f"/cat/{cat}")["id"] == service.json(f"/cat/{cat}?width=40")["id"] == cat
    assert upstream.asked(f"/images/{cat}.jpg") == before + 1

    ((cat,),) = sql(service.database, f"{evict} WHERE rowid = 2 RETURNING id")
    upstream.answers[f"/images/{cat}.jpg"] = lambda handler: reply(handler, b"gone", 410)
    response = service.get(f"/cat/{cat}")
    assert (response.status, response.headers["Retry-After"]) == (503, "60")


def test_a_cat_that_only_a_source_knows_is_found_there(start, upstream):
    service = start(CAT_SOURCES=f"{upstream.the_cat_api},{upstream.cataas}")
    upstream.known.add("abc123")
    assert service.json("/cat/abc123")["credit"] == f"{upstream.url}/images/abc123.jpg"
    assert service.get("/cat/nobody").status == 404


def test_without_sources_there_are_house_cats_only(start, upstream):
    service = start(command=QUICKLY_FILLED, CAT_SOURCES=upstream.cataas)
    eventually(lambda: service.stored() == FEW_CATS)
    service.stop()
    service = start(CAT_SOURCES="")
    assert all(service.json("/")["source"] == "house" for _ in range(20))
    assert {service.get(f"/cat/nobody{i}").status for i in range(catscii.VISITORS_REQUESTS_A_MINUTE + 5)} == {404}
    assert "catscii_refresh_age_seconds" not in samples(service)


def test_visitors_cause_a_bounded_number_of_upstream_requests_with_all_redirects(start, upstream):
    upstream.known.add("only")
    upstream.answers["/v1/images/search"] = lambda handler: reply(handler, [upstream.the_cat_api_entry("only")])
    upstream.answers["/cat"] = lambda handler: reply(handler, upstream.cataas_entry("only"))
    for cat, hop in itertools.product(range(40), range(catscii.MAX_REDIRECTS)):
        for path in (f"/v1/images/unknown{cat}", f"/cat/unknown{cat}"):
            upstream.answers[f"{path}/{hop}" if hop else path] = redirect(f"{path}/{hop + 1}")
    service = start(CAT_SOURCES=f"{upstream.the_cat_api},{upstream.cataas}")
    statuses = Counter(service.get(f"/cat/unknown{cat}").status for cat in range(40))
    assert statuses == {404: 2, 503: 38}  # each 404 after 12 requests
    assert sum("unknown" in path for path, _ in upstream.requests) == catscii.VISITORS_REQUESTS_A_MINUTE


def test_pictures_of_evicted_cats_count_among_the_requests_that_visitors_cause(start, upstream):
    service = start(CAT_SOURCES=upstream.cataas)
    rows = [(f"gone{i}", "x", f"{upstream.url}/images/gone{i}.jpg", "2026-01-01") for i in range(40)]
    for i in range(40):
        upstream.answers[f"/images/gone{i}.jpg"] = lambda handler: reply(handler, b"gone", 410)
    with contextlib.closing(sqlite3.connect(service.database, 10)) as connection, connection:
        connection.executemany("INSERT INTO cats (id, source, url, fetched) VALUES (?, ?, ?, ?)", rows)
    assert {service.get(f"/cat/gone{i}").status for i in range(40)} == {503}
    assert upstream.asked("/images/gone") == catscii.VISITORS_REQUESTS_A_MINUTE


def test_a_url_of_a_megabyte_is_refused_in_an_answer_and_in_a_redirect(tmp_path, upstream):
    long = upstream.url + "/images/" + "x" * 1_000_000
    entry = upstream.cataas_entry("long") | {"url": long}
    upstream.answers["/cat"] = lambda handler: reply(handler, entry)
    store, refresher = make_refresher(tmp_path, upstream.cataas)
    refresher.fetch_one()
    upstream.answers["/cat"] = redirect(long[:60_000])
    refresher._sources[0].ready = 0
    refresher.fetch_one()
    assert store.counts() == {} and upstream.asked("/images") == 0 and refresher.results["failed"] == 2


def never(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(4)
    handler.close_connection = True


def short(handler: BaseHTTPRequestHandler) -> None:
    reply(handler, b"[{", **{"Content-Length": "99", "Connection": "close"})  # type: ignore[arg-type]


def bomb(format: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB" if format == "WEBP" else "1", (12000, 12000)).save(data, format, method=0)  # the fastest for WebP
    return data.getvalue()


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\0IDAT"
    return b"\x89PNG\r\n\x1a\n" + chunks + struct.pack(">I", zlib.crc32(b"IDAT"))


SEARCHES: dict[str, tuple[Any, str]] = {  # what a source answers, and what is said of it
    "loop": (redirect("/cat"), "more than 5 redirects"),
    "file": (redirect("file:///etc/passwd"), "is not a URL that may be followed"),
    "private": (b"", "127.0.0.1 is not a public address"),
    "metadata": (redirect("http://169.254.169.254/latest"), "Error|not a public address"),
    "403": (lambda handler: reply(handler, b"no", 403), "status 403"),
    "404": (lambda handler: reply(handler, b"no", 404), "status 404"),
    "429": (lambda handler: reply(handler, b"no", 429), "status 429"),
    "500": (lambda handler: reply(handler, b"no", 500), "status 500"),
    "empty": (b"", "not JSON"),
    "short": (short, "IncompleteRead"),
    "drip": (dripping, "no whole answer after 2 seconds"),
    "never": (never, "[Tt]imed? ?out"),
    "endless": (endless, "more than 1048576 bytes"),
    "html": (b"<!DOCTYPE html><p>Sorry", "not JSON"),
    "utf-16": (b"\xff\xfe[", "not JSON"),
    "cut": (b'[{"id": "a"', "not JSON"),
    "NaN": (b"NaN", "no cat"),
    "text": (b'"cat"', "no cat"),
    "number": (b"[7]", "no cat"),
    "nothing": (b"[]", "no cat"),
    "no url": (b'{"id": "a"}', "no cat"),
    "no id": (b'{"url": "/a"}', "no cat"),
    "ESC in a url": (b'{"id": "a", "url": "/\\u001b[31m"}', "no cat"),
    "long url": (b'{"id": "a", "url": "/%b"}' % (b"a" * 1_000_000), "no cat"),
    "redirect to a long url": (redirect("/" + "a" * 60_000), "is not a URL that may be followed"),
    "url of no web": (b'{"id": "a", "url": "data:image/png,x"}', "no cat"),
    "ESC": (b'{"id": "\\u001b[31m", "url": "/a"}', "no cat"),
    "deep": (b"[" * 100_000, "not JSON"),
    "less deep": (b"[" * 900 + b"]" * 900, "no cat|not JSON"),
    "Retry-After": (
        lambda handler: reply(handler, b"", 503, **{"Retry-After": f"Fri, 31 Dec {9**20} 23:59:59 GMT"}),
        "OverflowError|status 503",
    ),
    "100 for ever": (going_on, "no whole answer"),
}
PICTURES: dict[str, tuple[Any, str]] = {  # the same of a picture
    "text": (b"meow", "not a picture"),
    "truncated": (photograph()[:3000], "cannot be read"),
    "header": (png_header(50_000, 50_000), "too much memory"),
    "too big": (endless, "more than 16777216 bytes"),
}


def test_no_answer_of_a_source_stops_the_service_or_is_told_twice(start, authority, ca_file):
    bombs = {"PNG": "too much memory", "GIF": "too much memory", "WEBP": "too much memory|cannot be read"}
    pictures = PICTURES | {f"{format} bomb": (bomb(format), reason) for format, reason in bombs.items()}
    expired = authority.issue_cert("localhost", not_after=datetime(2020, 1, 1, tzinfo=UTC))
    upstreams = {
        "certificate of somebody": Upstream(trustme.CA().issue_cert("localhost")),
        "expired certificate": Upstream(expired),
        "downgrade": Upstream(authority.issue_cert("localhost")),
        **{name: Upstream() for name in SEARCHES},
        **{f"picture: {name}": Upstream() for name in pictures},
    }
    reasons = dict.fromkeys(upstreams, "certificate verify failed") | {"downgrade": "https only"}
    upstreams["downgrade"].answers["/cat"] = redirect("http://localhost/cat")
    for name, (answer, reason) in SEARCHES.items():
        fixed = (lambda body: lambda handler: reply(handler, body))(answer) if isinstance(answer, bytes) else answer
        upstreams[name].answers["/cat"], reasons[name] = fixed, reason
    port = urlsplit(upstreams["private"].url).port
    upstreams["private"].answers["/cat"] = redirect(f"http://127.0.0.1:{port}/cat")
    for name, (answer, reason) in pictures.items():
        fixed = (lambda body: lambda handler: reply(handler, body))(answer) if isinstance(answer, bytes) else answer
        upstream = upstreams[f"picture: {name}"]
        upstream.answers["/cat/x"], reasons[f"picture: {name}"] = fixed, reason
        upstream.answers["/cat"] = (lambda each: lambda handler: reply(handler, each.cataas_entry("x")))(upstream)
    good = Upstream()
    sources = {"refused": "http://localhost:1/cat", "unresolvable": "http://nowhere.invalid/cat"}
    reasons |= {"refused": "refused", "unresolvable": "gaierror"}
    sources |= {name: upstream.cataas for name, upstream in upstreams.items()}
    constants = "catscii.SILENT_SECONDS, catscii.TOTAL_SECONDS, catscii.LONGEST_BACKOFF = 1, 2, 0"
    service = start(
        command=patched(constants), SSL_CERT_FILE=ca_file, CAT_SOURCES=",".join([*sources.values(), good.cataas])
    )
    try:
        while not service.stored():
            begun = time.monotonic()
            assert service.get("/").status == 200 and time.monotonic() - begun < SOON
            time.sleep(0.1)
        eventually(lambda: service.stored() >= 2)  # all failed for a second time in between
        failures = [line["fields"] for line in service.log if line["fields"]["message"] == "Source fails"]
        told = {failure["source"]: failure["error"] for failure in failures}
        for name, url in sources.items():
            assert re.search(reasons[name], told[urlsplit(url).netloc]), (name, told[urlsplit(url).netloc])
        assert len(failures) == len(sources) and "Traceback" not in json.dumps(service.log)
        assert resident_megabytes(service.process.pid) < 160
    finally:
        for upstream in [*upstreams.values(), good]:
            upstream.close()


def resident_megabytes(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_odd_pictures_are_shown(start, upstream):
    frames, data = [Image.new("P", (8, 8), i % 256) for i in range(2000)], io.BytesIO()
    frames[0].save(data, "GIF", save_all=True, append_images=frames[1:])
    odd = {"dot": photograph(1, (1, 1), "PNG"), "line": photograph(1, (1, 20_000), "PNG"), "film": data.getvalue()}
    entries = [{"id": name, "url": f"/{name}"} for name in odd]
    upstream.answers["/v1/images/search"] = lambda handler: reply(handler, entries)
    for name in odd:
        upstream.answers[f"/{name}"] = lambda handler: reply(handler, odd[handler.path[1:]])
    service = start(CAT_SOURCES=upstream.the_cat_api)
    eventually(lambda: service.stored() == 3)
    for name in odd:
        assert service.json(f"/cat/{name}")["id"] == name
    assert "Source fails" not in service.messages()


def test_retry_after_is_obeyed_by_the_refresher_and_for_permalinks(start, upstream):
    upstream.answers["/cat"] = lambda handler: reply(handler, b"", 429, **{"Retry-After": "3"})
    service = start(CAT_SOURCES=upstream.cataas)
    service.wait_for("Source fails")
    asked = time.monotonic()
    assert service.get("/cat/unknown").status == 503
    eventually(lambda: upstream.asked("/cat") > 1)
    assert 2.5 < time.monotonic() - asked < 3 + SOON and upstream.asked("/cat/unknown") == 0


def test_what_a_failing_source_may_know_is_unavailable_and_not_unknown(start, upstream):
    service = start(command=QUICKLY_FILLED, CAT_SOURCES=f"{upstream.the_cat_api},{upstream.cataas}")
    eventually(lambda: service.stored() == FEW_CATS)
    assert service.get("/cat/nobody").status == 404
    upstream.answers["/v1/images/nobody"] = lambda handler: reply(handler, b"", 500)
    assert service.get("/cat/nobody").status == 503


def test_a_credit_is_harmless_wherever_it_is_shown(start, upstream):
    entries = [{"id": "x", "url": "/images/\"><script>' onclick=x"}]
    upstream.answers["/v1/images/search"] = lambda handler: reply(handler, entries)
    service = start(CAT_SOURCES=upstream.the_cat_api)
    eventually(lambda: service.stored() == 1)
    for format in catscii.PAGE_FORMATS["all"]:
        response = service.get(f"/cat/x?format={format}")
        body = response.data.decode()
        assert response.status == 200 and (format == "json" or "\"><script>'" not in body)
        assert format != "html" or "/images/&quot;&gt;&lt;script&gt;&#039; onclick=x" in body


# ---------------------------------------------------------------------------------------------------------------------
# Visitors
# ---------------------------------------------------------------------------------------------------------------------

ADDRESSES = {
    "GB": ["81.2.69.160", " 81.2.69.160 ", "::ffff:81.2.69.160", "81.2.69.160:4711", "10.0.0.1, 81.2.69.160"],
    "FR": ["2001:db8:1::5", "[2001:db8:1::5]:4711", "[2001:db8:1::5]", "2001:db8:1::5%eth0"],
    "DE": ["198.51.100.7"],
    "JP": ["2001:db8:2::1"],
    "ZZ": ["203.0.113.9", "127.0.0.1", "", "garbage", "81.2.69", "[]", ":1", "81.2.69.160,"],
}


@pytest.mark.parametrize(("country", "address"), [(code, each) for code in ADDRESSES for each in ADDRESSES[code]])
def test_the_country_of_an_address(country_db, address, country):
    assert catscii.Countries(country_db).country(address) == country


def test_a_damaged_record_counts_for_nobody(tmp_path: Path, country_db: str):
    data = Path(country_db).read_bytes()
    (tmp_path / "damaged.mmdb").write_bytes(data.replace(b"\x42GB", b"\xff\xff\xff"))  # a string of two bytes
    assert catscii.Countries(str(tmp_path / "damaged.mmdb")).country("81.2.69.160") == "ZZ"


@settings(max_examples=rounds(200), deadline=None)
@given(st.text(max_size=60))
def test_any_text_as_an_address_gives_a_country_and_no_error(country_db, text):
    assert re.fullmatch("[A-Z]{2}", catscii.Countries(country_db).country(text))


def test_visits_are_counted_by_the_header_of_a_trusted_proxy_only(start, country_db):
    service = start(GEOLITE2_COUNTRY_DB=country_db, CLIENT_IP_HEADER="X-Real-IP")
    for address in ("81.2.69.160", "2001:db8:1::5", "2001:db8:1::6"):
        assert service.get("/", CURL | {"X-Real-IP": address}).status == 200
    assert service.visits() == b"FR: 2\nGB: 1\n"

    service.stop()
    service = start(GEOLITE2_COUNTRY_DB=country_db)
    service.get(
        "/", CURL | {"X-Real-IP": "81.2.69.160", "X-Forwarded-For": "81.2.69.160", "Fly-Client-IP": "81.2.69.160"}
    )
    assert service.visits() == b"FR: 2\nGB: 1\nZZ: 1\n"


SHOWN = [("/", {}, "GET"), ("/?format=json", {}, "GET"), ("/cat/house-1", {}, "GET"), ("/cat/house-1.txt", {}, "GET")]
SHOWN += [("/", {"Sec-Fetch-Dest": "empty"}, "GET"), ("/cat/house-1", {"Sec-Fetch-Dest": "document"}, "GET")]
NOT_SHOWN = [(path, {}, "GET") for path in ("/health", "/metrics", "/analytics", "/favicon.ico", "/no", "/panic")]
NOT_SHOWN += [(path, {}, "GET") for path in ("/?width=1", "/cat/none", "/cat/house-1.png", "/cat/house-1.jpg")]
NOT_SHOWN += [("/cat/house-1?format=png", {}, "GET"), ("/cat/house-1", {"Sec-Fetch-Dest": "empty"}, "GET")]
NOT_SHOWN += [(path, {}, "HEAD") for path in ("/", "/cat/house-1")]
NOT_SHOWN += [(path, {"User-Agent": "Slackbot-LinkExpanding 1.0"}, "GET") for path in ("/", "/cat/house-1")]


def test_a_visit_is_somebody_who_sees_a_cat(start):
    service, visits = start(), 0
    for path, headers, method in SHOWN + NOT_SHOWN:
        service.get(path, CURL | headers, method)
        visits += (path, headers, method) in SHOWN
        assert service.visits() == b"ZZ: %d\n" % visits, (path, headers, method)
    asked = sum(count for name, count in samples(service)["catscii_requests_total"].items() if "/analytics" not in name)
    assert asked == len(SHOWN + NOT_SHOWN) - 1  # that of /analytics; the figures have every other request


def test_a_slider_and_a_link_preview_are_no_visits(start):
    """As they were seen to be: three steps of the slider as three visits, a preview as two."""
    service = start()
    service.get("/cat/house-1", CHROME | {"Sec-Fetch-Dest": "document"})
    for width in (60, 70, 80):
        service.get(f"/cat/house-1?width={width}", CHROME | {"Sec-Fetch-Dest": "empty"})
    for path in ("/cat/house-1", "/cat/house-1.png"):
        service.get(path, {"User-Agent": "facebookexternalhit/1.1"})
    assert service.visits() == b"ZZ: 1\n"


def test_a_crawler_gets_one_cat_a_day(start):
    def cat(client: str) -> str:
        return str(service.json_of("/?format=json", {"User-Agent": client})["id"])

    service, day = start(), int(time.time() // 86400)
    crawlers = {cat(client) for client in ("Googlebot/2.1", "Twitterbot/1.0", "WhatsApp/2.23") for _ in range(3)}
    assert day != int(time.time() // 86400) or crawlers == {f"house-{zlib.crc32(b'%d' % day)}"}
    assert len({cat("curl/8.16.0") for _ in range(9)}) > 1


@pytest.mark.npm
def test_crawlers_are_told_from_browsers(tmp_path):
    """By the agents that monperrus/crawler-user-agents lists, and by those that Intoli's user-agents saw."""
    agents = {}
    for package, member in (
        ("crawler-user-agents@1.60.0", "crawler-user-agents.json"),
        ("user-agents@2.1.198", "dist/user-agents.json"),
    ):
        subprocess.run(["npm", "pack", "--silent", package], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(tmp_path / f"{package.replace('@', '-')}.tgz") as archive:
            agents[member] = json.load(archive.extractfile(f"package/{member}"))
    crawlers, browsers = agents.values()
    assert not [entry["userAgent"] for entry in browsers if catscii.crawls(entry["userAgent"])]
    programs = {agent for entry in crawlers for agent in entry["instances"] if "http-library" not in entry["tags"]}
    programs -= {agent for agent in programs if catscii.TERMINALS.match(agent)}
    assert len(programs) > 1500 and sum(map(bool, map(catscii.crawls, programs))) > 0.88 * len(programs)
    previews = {agent for entry in crawlers for agent in entry["instances"] if "social-preview" in entry["tags"]}
    assert len(previews) > 100 and sum(map(bool, map(catscii.crawls, previews))) > 0.9 * len(previews)


@pytest.mark.parametrize(
    ("client", "crawler"),
    [
        ("Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)", True),
        ("Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)", True),
        ("Mozilla/5.0 (Windows NT 6.1; WOW64) SkypeUriPreview Preview/0.5", True),
        ("facebookexternalhit/1.1", True),
        ("WhatsApp/2.23.18.78 i", True),
        ("Mozilla/5.0 (Linux; Android 12; CUBOT P60) AppleWebKit/537.36 Chrome/120.0 Mobile Safari/537.36", False),
        ("Mozilla/5.0 (compatible; MSIE 9.0; Windows NT 6.1; Trident/5.0)", False),
        ("Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (Ecosia android@150.0.0.0)", False),
        *((client, False) for client in ("curl/8.16.0", "Wget/1.21.4", "HTTPie/3.2.4", "xh/0.24.0", "Lynx/2.9", "")),
        ("fetch libfetch/2.0", False),
    ],
)
def test_a_crawler_is_known_by_its_user_agent(client, crawler):
    assert bool(catscii.crawls(client)) == crawler


def test_visits_are_kept_by_day_in_utc_and_an_address_nowhere(start, country_db):
    service = start(GEOLITE2_COUNTRY_DB=country_db, CLIENT_IP_HEADER="X-Real-IP")
    service.get("/", CURL | {"X-Real-IP": "81.2.69.160"})
    service.stop()
    assert sql(service.database, "SELECT * FROM visits") == [(datetime.now(UTC).strftime("%Y-%m-%d"), "GB", 1)]
    assert sql(service.database, "PRAGMA journal_mode") == [("wal",)]
    assert sql(service.database, "PRAGMA user_version") == [(len(catscii.SCHEMA),)]
    assert b"81.2.69" not in service.database.read_bytes() and "81.2.69" not in json.dumps(service.log)


def test_two_processes_count_into_one_database(start):
    services = [start(), start()]
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda i: services[i % 2].get("/cat/house-1").status, range(200)))
    assert statuses == [200] * 200
    assert services[0].visits() == services[1].visits() == b"ZZ: 200\n"


def test_a_killed_process_has_lost_no_visit_that_it_answered(start):
    service = start()
    answered: list[bool] = []
    killer = threading.Thread(target=lambda: eventually(lambda: len(answered) > 20) and service.process.kill())
    killer.start()
    with pytest.raises(urllib3.exceptions.HTTPError):
        while True:
            answered.append(service.get("/cat/house-1").status == 200)
    killer.join()
    counted = int(start().visits().split()[1])
    assert sum(answered) <= counted <= sum(answered) + 1


def cell_at(longitude: float, latitude: float) -> int:
    column, row = bench_catscii.on_the_map((longitude, latitude))
    return int(row) * catscii.WORLD_COLUMNS + int(column)


@pytest.mark.npm
def test_the_world_is_natural_earths_with_cldrs_names():
    packed = zlib.decompress(base64.b85decode("".join(catscii.WORLD.split())))
    assert packed == bench_catscii.world()


def test_every_country_has_a_name_and_a_home():
    names, glyphs, homes = catscii.world()
    assert len(names) == 249 + 2  # ISO 3166-1, Kosovo and the unknown
    assert all(re.fullmatch("[A-Z]{2}", code) and name.isprintable() for code, name in names.items())
    told = [names[code] for code in ("FR", "CI", "ST", "ZZ")]
    assert told == ["France", "Côte d'Ivoire", "São Tomé & Príncipe", "Unknown"]
    assert {code for codes in homes.values() for code in codes} == names.keys() - {"AQ", "ZZ"}
    assert set(homes) == {cell for cell, glyph in enumerate(glyphs) if glyph != " "}
    assert set(glyphs) <= set(string.printable) and len(glyphs) == catscii.WORLD_COLUMNS * catscii.WORLD_ROWS


LARGE = """
    AR -65 -35  AU 134 -25  BR -52 -10  CA -105 58  CD 23 -3  CN 103 35  DE 10 51  EG 29 26.5  ES -3.7 40  FI 27 64
    FR 2.5 46.5  GB -1.5 53  GL -41 72  ID 114 -1  IN 79 22  IT 12.5 42.5  JP 138.5 36.5  KZ 68 48  MX -103 24  NG 8 9.5
    NO 9 61  NZ 172 -43  RU 100 62  RU 185 67  SA 45 24  SJ 16 78.5  US -98 39  US -152 65  ZA 24 -30
"""
SMALL = """
    AD 1.55 42.55  BB -59.55 13.2  BH 50.55 26.05  FJ 178 -17.8  GF -53 4  GI -5.35 36.15  HK 114.15 22.35  LU 6.1 49.75
    MC 7.4 43.75  MT 14.4 35.9  MV 73.5 3.2  RE 55.5 -21.1  SG 103.85 1.35  TV 179.2 -8.5  VA 12.45 41.9  WS 187.7 -13.8
    XK 20.9 42.6
"""  # codes, longitudes and latitudes


@pytest.mark.parametrize("place", re.split(r"\s{2,}", LARGE.strip()))
def test_a_large_country_owns_the_cell_that_it_lies_in(place):
    code, longitude, latitude = place.split()
    assert catscii.world().homes[cell_at(float(longitude), float(latitude))][0] == code


@pytest.mark.parametrize("place", re.split(r"\s{2,}", SMALL.strip()))
def test_a_country_too_small_for_a_cell_glows_where_it_is(place):
    code, longitude, latitude = place.split()
    (cell,) = (cell for cell, codes in catscii.world().homes.items() if code in codes)
    here = cell_at(float(longitude), float(latitude))
    assert abs(cell % 80 - here % 80) <= 1 and abs(cell // 80 - here // 80) <= 1
    dark, lit = (catscii.world_map(visits) for visits in ({}, {code: 1}))
    assert lit.rows[cell // 80][cell % 80] != " "
    planes = zip(catscii.chunks(dark.foreground, 3), catscii.chunks(lit.foreground, 3), strict=True)
    assert [i for i, (before, after) in enumerate(planes) if before != after] == [cell]


def test_countries_glow_by_the_logarithm_of_their_visits():
    visits = {"US": 100_000, "BR": 1000, "AU": 10, "ZZ": 10**9}
    art, places = catscii.world_map(visits), {"US": (-98, 39), "BR": (-52, -10), "AU": (134, -25), "CN": (103, 35)}
    cells = {code: cell_at(*place) for code, place in places.items()}
    colours = {code: tuple(art.foreground[3 * cell :][:3]) for code, cell in cells.items()}
    assert colours["US"] == catscii.FLAME and colours["CN"] == catscii.LAND
    assert colours["US"] > colours["BR"] > colours["AU"] > colours["CN"]
    assert [art.rows[cell // 80][cell % 80] for cell in cells.values()] == ["@", "#", "o", ":"]
    shore = cell_at(-34, -14)  # off Brazil
    assert art.rows[shore // 80][shore % 80] == " "
    assert art.background[3 * cells["US"]] > art.background[3 * shore] > 10 > art.background[3 * cells["CN"]]  # in red
    assert catscii.world_map({"ZZ": 5}) == catscii.world_map({})
    assert catscii.to_text(catscii.world_map({"FR": 1})).count("\n") == 22


def relative_luminance(colour: bytes) -> float:
    """As WCAG 2.2 defines it."""
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (level / 255 for level in colour))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("dark", ["BY", "MX", "KZ", "MT", None])
def test_the_map_has_a_contrast_of_four_and_a_half_even_in_the_halo(dark):
    art = catscii.world_map({code: 1000 for code in catscii.world().names if code != dark} if dark else {"FR": 1})
    for cell in catscii.world().homes:
        ink, paper = (relative_luminance(plane[3 * cell :][:3]) for plane in (art.foreground, art.background))
        assert (ink + 0.05) / (paper + 0.05) >= 4.5


def test_the_days_are_drawn_as_blocks():
    assert catscii.sparkline([0, 1, 4, 8, 100, 800]) == " ▁▁▁▁█"
    assert catscii.sparkline([1, 2, 3, 4, 5, 6, 7, 8]) == "▁▂▃▄▅▆▇█"
    assert catscii.sparkline([0, 0]) == "  "


def test_many_who_open_a_new_database_at_once_all_can(start, tmp_path):
    for i in range(rounds(20)):
        together = threading.Barrier(8)

        def use(path: Path = tmp_path / f"{i}.db", together: threading.Barrier = together) -> None:
            together.wait()
            database = catscii.Database(str(path))
            database.execute(catscii.CHECK_VISITS)
            database.close()

        with ThreadPoolExecutor(8) as pool:
            for future in [pool.submit(use) for _ in range(8)]:
                future.result()
    with ThreadPoolExecutor(6) as pool:
        services = list(pool.map(lambda _: start(), range(6)))
    assert [service.get("/cat/house-1").status for service in services] == [200] * 6
    assert services[0].visits() == b"ZZ: 6\n"


def test_a_visit_is_in_the_database_before_its_answer_is_there(start):
    slow = "import time; write = catscii.Tally.check\n"
    slow += "catscii.Tally.check = lambda *given, **how: time.sleep(0.01) or write(*given, **how)"
    service = start(command=patched(slow))
    with contextlib.closing(sqlite3.connect(service.database)) as database, connected(service) as connection:
        for i in range(1, 51):
            connection.sendall(b"HEAD / HTTP/1.1\r\n\r\nGET /cat/house-1?format=text&width=20 HTTP/1.1\r\n\r\n")
            answer = b""
            while answer.count(b"\r\n\r\n") < 2:
                answer += connection.recv(65536)
            assert database.execute("SELECT sum(count) FROM visits").fetchone()[0] == i
            while not answer.endswith(b"\n") or len(answer.rpartition(b"\r\n\r\n")[2]) < 8 * 21:
                answer += connection.recv(65536)


def test_a_visit_that_is_being_committed_holds_its_answer_back(tmp_path):
    database, committed, go_on = catscii.Database(str(tmp_path / "catscii.db")), threading.Event(), threading.Event()
    tally, renew = catscii.Tally(database), database.renew
    database.renew = lambda: (go_on.wait(5), renew())
    tally.count("FR")
    keeper = threading.Thread(target=tally.check)
    keeper.start()
    loop = threading.Thread(target=lambda: (tally.write(), committed.set()))
    loop.start()
    assert not committed.wait(0.3)
    go_on.set()
    assert committed.wait(5) and database.execute("SELECT count FROM totals") == [(1,)]
    keeper.join()
    loop.join()
    database.close()


def counted(service: Running) -> int:
    response = service.get("/analytics?format=json")
    return int(json.loads(response.data)["visits"]) if response.status == 200 else -1


def visit(service: Running, times: int = 5) -> None:
    """Visits that are answered with a cat at once, whatever becomes of them."""
    for _ in range(times):
        begun = time.monotonic()
        assert service.get("/cat/house-1?width=20").status == 200 and time.monotonic() - begun < SOON


def health(service: Running) -> tuple[int, str, str]:
    response = service.get("/health")
    return response.status, json.loads(response.data)["status"], json.loads(response.data).get("reason", "")


IMPATIENT = patched("catscii.UNCOUNTED_SECONDS = 2")


@contextlib.contextmanager
def locked(service: Running) -> Iterator[None]:
    connection = sqlite3.connect(service.database, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    yield
    connection.execute("ROLLBACK")
    connection.close()


@contextlib.contextmanager
def full_disk(service: Running) -> Iterator[None]:
    unlimited = resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (512, unlimited[1]))
    yield
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, unlimited)


@contextlib.contextmanager
def read_only_file(service: Running) -> Iterator[None]:
    copy = service.database.with_name("copy")
    with sqlite3.connect(service.database) as connection:
        connection.execute("VACUUM INTO ?", [str(copy)])
    copy.chmod(0o444)
    copy.replace(service.database)
    yield
    service.database.chmod(0o644)


@contextlib.contextmanager
def read_only_folder(service: Running) -> Iterator[None]:
    for path in service.database.parent.glob(service.database.name + "*"):
        path.unlink()
    service.database.parent.chmod(0o555)
    yield
    service.database.parent.chmod(0o755)


@contextlib.contextmanager
def garbage_in_its_place(service: Running) -> Iterator[None]:
    copy = service.database.with_name("copy")
    copy.write_bytes(b"no database" * 9999)
    copy.replace(service.database)
    yield
    service.database.unlink()


def test_a_database_that_is_moved_keeps_its_visits(start):
    service = start()
    for _ in range(5):
        assert service.get("/").status == 200
    moved = service.database.rename(service.database.with_name("moved.db"))
    assert eventually(lambda: service.get("/").status == 200 and service.database.exists())
    assert sql(moved, "SELECT sum(count) FROM visits") >= [(5,)]
    assert service.stop() == 0


@contextlib.contextmanager
def another_schema(service: Running, table: str = "visits") -> Iterator[None]:
    sql(service.database, f"ALTER TABLE {table} RENAME TO gone")
    yield
    sql(service.database, f"ALTER TABLE gone RENAME TO {table}")


@pytest.mark.parametrize(
    ("fault", "reason", "kept"),
    [
        (locked, "locked", True),
        (full_disk, "full|disk I/O", True),
        (read_only_file, "readonly", True),
        (read_only_folder, "readonly|unable to open", False),
        (garbage_in_its_place, "not a database", False),
        (another_schema, "no such table", True),
    ],
)
def test_visits_wait_while_the_database_fails_and_are_counted_when_it_is_back(start, tmp_path, fault, reason, kept):
    """`kept`: what was counted before is still there, since the file is."""
    (tmp_path / "db").mkdir()
    service = start(command=mortal(IMPATIENT), ANALYTICS_DB=str(tmp_path / "db/x.db"))
    visit(service)
    with fault(service):
        visit(service)
        eventually(lambda: health(service)[1] == "degraded")
        assert health(service)[0] == 200
        eventually(lambda: health(service)[:2] == (503, "failing"))
        assert re.search(reason, health(service)[2]), health(service)
        visit(service)
    eventually(lambda: health(service)[:2] == (200, "ok"))
    visit(service)
    assert counted(service) == (20 if kept else 15)
    assert service.stop() == 0 and "Traceback" not in json.dumps(service.log)
    assert [service.messages().count(m) for m in ("Visits cannot be counted and wait in memory", AGAIN)] == [1, 1]
    assert sql(service.database, "PRAGMA integrity_check") == [("ok",)]


AGAIN = "Visits are counted again"


def mortal(command: list[str]) -> list[str]:
    """The command without root's right to write what is read-only."""
    rights = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.geteuid() == 0 else []
    return [*rights, *command]


@pytest.mark.parametrize("how", ["all of it", "the file alone", "garbage over it"])
def test_a_database_that_goes_while_it_is_in_use_is_made_anew(start, how):
    service = start()
    visit(service)
    if how == "garbage over it":  # in the same inode
        service.database.write_bytes(b"no database" * 9999)
    for path in service.database.parent.glob("catscii.db*") if how == "all of it" else [service.database]:
        path.unlink(missing_ok=True)
    visit(service)
    eventually(lambda: counted(service) == 5)
    visit(service)
    assert counted(service) == 10
    eventually(lambda: health(service)[:2] == (200, "ok"))


def test_garbage_written_over_the_open_database_is_noticed(start):
    service = start()
    visit(service)
    service.database.write_bytes(b"no database" * 9999)
    visit(service)
    service.wait_for("The database was deleted, replaced or overwritten")  # SQLite's log still holds all of it
    eventually(lambda: health(service)[1] == "ok")
    visit(service)
    assert counted(service) in (10, 15)
    service.stop()
    assert sql(service.database, "PRAGMA integrity_check") == [("ok",)]


def test_visits_that_wait_at_the_end_are_written_if_they_can_be(start):
    service = start()
    with locked(service):
        visit(service)
        service.wait_for("Visits cannot be counted")
    assert service.stop() == 0
    assert counted(start()) == 5


def test_visits_that_cannot_be_written_to_the_end_are_lost_with_an_error_that_counts_them(start):
    service = start()
    with locked(service):
        visit(service, 7)
        assert service.stop() == 0
    errors = [line["fields"] for line in service.log if line["level"] == "ERROR"]
    assert [error["visits"] for error in errors if error["message"].startswith("Visits are lost")] == [7]
    assert len(errors) == 2  # one when the trouble began
    assert counted(start()) == 0


def test_countries_are_replaced_while_the_service_runs(start, tmp_path):
    path, new = tmp_path / "x.mmdb", tmp_path / "new.mmdb"
    write_mmdb(path, "Test-Country", {"127.0.0.0/8": {"country": {"iso_code": "GB"}}})
    write_mmdb(new, "Test-Country", {"127.0.0.0/8": {"country": {"iso_code": "FR"}}})
    service = start(GEOLITE2_COUNTRY_DB=str(path))
    visit(service, 1)
    path.with_name("half.mmdb").write_bytes(new.read_bytes()[:99])
    path.with_name("half.mmdb").replace(path)
    service.wait_for("Countries cannot be replaced")
    visit(service, 1)
    new.replace(path)
    service.wait_for("Countries were replaced")
    visit(service, 1)
    assert service.json("/analytics")["countries"] == {"GB": 2, "FR": 1}
    path.unlink()
    eventually(lambda: service.messages().count("Countries cannot be replaced") == 2)
    time.sleep(1.2)
    assert service.messages().count("Countries cannot be replaced") == 2


@pytest.mark.parametrize("how", METADATA)
def test_counting_survives_countries_that_cannot_be_read(start, tmp_path, country_db, how):
    path, new = tmp_path / "x.mmdb", tmp_path / "new.mmdb"
    shutil.copy(country_db, path)
    service = start(GEOLITE2_COUNTRY_DB=str(path), CLIENT_IP_HEADER="X-IP")
    new.write_bytes(Path(country_db).read_bytes().replace(*METADATA[how]))
    new.replace(path)
    service.wait_for("Countries cannot be replaced")
    with locked(service):
        visit(service)
        service.wait_for("Visits cannot be counted")
    service.wait_for(AGAIN)
    shutil.copy(country_db, new)
    new.replace(path)
    service.wait_for("Countries were replaced")
    service.get("/", CURL | {"X-IP": "81.2.69.1"})
    assert service.json("/analytics")["countries"] == {"ZZ": 5, "GB": 1}
    assert service.messages().count("Countries cannot be replaced") == 1


# Many machines


ETCD_RANGE = {"key": base64.b64encode(catscii.ETCD_PREFIX).decode(), "range_end": "Y2F0c2NpaS92aXNpdHMw"}  # to visits0


class Etcd:
    """A cluster of etcd on free ports. Its members can be killed, stopped and started again."""

    def __init__(self, folder: Path, members: int, *options: str, certificate: trustme.LeafCert | None = None) -> None:
        folder.mkdir()
        self.ca = certificate and str(folder.parent / "ca.pem")
        ports, scheme, tls = free_ports(2 * members), "https" if certificate else "http", []
        if certificate:
            certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
            certificate.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
            tls = ["--cert-file", str(folder / "cert.pem"), "--key-file", str(folder / "key.pem")]
        self.urls = [f"{scheme}://localhost:{port}" for port in ports[:members]]
        peers = [f"http://127.0.0.1:{port}" for port in ports[members:]]
        cluster = ",".join(f"m{i}={url}" for i, url in enumerate(peers))
        self.commands = [[
            "etcd", "--name", f"m{i}", "--data-dir", str(folder / f"m{i}"), "--logger", "zap", *tls, *options,
            "--listen-client-urls", url.replace("localhost", "127.0.0.1"), "--advertise-client-urls", url,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", cluster,
        ] for i, (url, peer) in enumerate(zip(self.urls, peers, strict=True))]
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        for member in range(members):
            self.start(member)
        self.endpoints = ",".join(self.urls)

    def start(self, member: int) -> None:
        self.processes[member] = subprocess.Popen(
            self.commands[member], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self, member: int) -> None:
        self.processes[member].kill()
        self.processes[member].wait()

    def post(self, path: str, message: Mapping[str, Any], member: int = 0) -> Any:
        pool = urllib3.PoolManager(retries=False, timeout=5, ca_certs=self.ca)
        return pool.request("POST", f"{self.urls[member]}/v3/{path}", json=message).json()

    def wait(self) -> Etcd:
        """Return the cluster once each member answers."""
        def answers(member: int) -> bool:
            with contextlib.suppress(urllib3.exceptions.HTTPError, ValueError):
                return "header" in self.post("maintenance/status", {}, member)
            return False

        for member in self.processes:
            eventually(partial(answers, member))
        return self

    def leader(self) -> int:
        """Return the member that leads, or the first one while none leads."""
        for member in self.processes:
            with contextlib.suppress(urllib3.exceptions.HTTPError, ValueError, KeyError):
                status = self.post("maintenance/status", {}, member)
                if status["leader"] == status["header"]["member_id"]:
                    return member
        return 0

    def documents(self) -> dict[str, Any]:
        """Return what the keys of machines hold, unpacked."""
        found = {base64.b64decode(entry["key"])[15:].decode(): base64.b64decode(entry["value"])
                 for entry in self.post("kv/range", ETCD_RANGE).get("kvs", [])}
        return {key: json.loads(zlib.decompress(value)) for key, value in found.items()}

    def put(self, key: str, value: bytes) -> None:
        name = catscii.ETCD_PREFIX + key.encode()
        self.post("kv/put", {"key": base64.b64encode(name).decode(), "value": base64.b64encode(value).decode()})

    def close(self) -> None:
        for member in self.processes:
            self.kill(member)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[..., Etcd]]:
    """Starts clusters of etcd, and kills them at the end."""
    clusters: list[Etcd] = []

    def start_cluster(members: int = 1, *options: str, **more: Any) -> Etcd:
        clusters.append(Etcd(tmp_path / f"etcd{len(clusters)}", members, *options, **more))
        return clusters[-1].wait()

    yield start_cluster
    for each in clusters:
        each.close()


@pytest.fixture
def machine(start, tmp_path: Path, country_db: str) -> Callable[..., Running]:
    """Starts a machine, given the name of its database and its endpoints."""
    common: dict[str, Any] = {"GEOLITE2_COUNTRY_DB": country_db, "CLIENT_IP_HEADER": "X-Real-IP"}
    if "THOROUGH" not in os.environ:
        common["command"] = patched("catscii.EXCHANGE_SECONDS = 0.3")
    return lambda name, endpoints, **more: start(
        **common, ANALYTICS_DB=str(tmp_path / name), ETCD_ENDPOINTS=endpoints, **more)


VISITORS = {"GB": "81.2.69.160", "FR": "2001:db8:1::5", "DE": "198.51.100.7", "JP": "2001:db8:2::1"}


def visit_from(service: Running, *countries: str) -> None:
    for country in countries:
        assert service.get("/cat/house-1?width=20", CURL | {"X-Real-IP": VISITORS[country]}).status == 200


def agree(visits: dict[str, int], *services: Running, seconds: float = 10) -> None:
    """Wait until all services show these visits."""
    ordered = sorted(visits.items(), key=lambda item: (-item[1], item[0]))
    expected = "".join(f"{country}: {count}\n" for country, count in ordered).encode()
    eventually(lambda: all(service.visits() == expected for service in services), seconds)


def test_machines_show_one_sum_in_every_format(machine, cluster):
    etcd = cluster()
    a, b = (machine(name, etcd.endpoints) for name in "ab")
    visit_from(a, "FR", "FR", "GB")
    visit_from(b, "FR", "JP")
    agree({"FR": 3, "GB": 1, "JP": 1}, a, b)
    c = machine("c", etcd.endpoints)
    agree({"FR": 3, "GB": 1, "JP": 1}, c, seconds=SOON)  # a new machine sees the sum
    visit_from(c, "JP")
    today = str(datetime.now(UTC).date())
    eventually(lambda: all(service.json("/analytics")["machines"]["count"] == 3 for service in (a, b, c)))
    for service in (a, b, c):
        facts = service.json("/analytics")
        assert [facts[name] for name in ("visits", "today", "last_30_days")] == [6, 6, 6]
        assert facts["days"][today] == 6 and facts["countries"] == {"FR": 3, "JP": 2, "GB": 1}
        assert datetime.now(UTC) - datetime.fromisoformat(facts["machines"]["agreed"]) < timedelta(seconds=10)
        for headers in (CHROME, CURL):
            assert "in the last 30 days on 3 machines, as of 20" in service.get("/analytics", headers).data.decode()
        assert service.get("/analytics?format=csv").data.decode() == (
            f"day,country,visits\n{today},FR,3\n{today},JP,2\n{today},GB,1\n")
        assert re.fullmatch(r"last agreed \d seconds ago", service.json("/health")["machines"])
        figures = samples(service)
        assert figures["catscii_machines"] == {(): 3} and 0 <= figures["catscii_agreed_age_seconds"][()] < 10
    assert samples(a)["catscii_visits_total"] == {("FR",): 2, ("GB",): 1}  # Prometheus adds these up itself
    assert a.started["etcd"] == ["localhost"]
    visit_from(c, "DE")
    assert c.stop() == 0  # writes its last visit, and keeps its visits in the sum
    agree({"FR": 3, "JP": 2, "DE": 1, "GB": 1}, a, b)
    alone = machine("a", "")
    assert alone.visits() == b"FR: 2\nGB: 1\n" and "machine" not in alone.get("/analytics", CHROME).data.decode()
    assert "machines" not in {**alone.json("/analytics"), **alone.json("/health")}
    assert alone.started["etcd"] == [] and "catscii_machines" not in samples(alone)


def test_machines_agree_exactly_after_whatever_fails(machine, cluster):
    etcd, answered, pause = cluster(3), Counter[str](), 10.0 if "THOROUGH" in os.environ else 1.0
    services = [machine(str(i), etcd.endpoints) for i in range(3)]
    asking = [threading.Lock() for _ in services]  # a visitor holds it until the answer is there, and replace does

    def visitor(i: int, stopping: threading.Event, rng: random.Random) -> None:
        while not stopping.wait(0.02):
            country = rng.choice([*VISITORS])
            with asking[i]:
                visit_from(services[i], country)
            answered[country] += 1

    def replace(i: int, number: int) -> None:
        with asking[i]:
            services[i].stop(number)
            services[i] = machine(str(i), etcd.endpoints)

    def kill_leader() -> None:
        leader = etcd.leader()
        etcd.kill(leader)
        time.sleep(rng.uniform(0, 3))
        etcd.start(leader)

    def stop_follower() -> None:
        process = etcd.processes[(etcd.leader() + 1) % 3]
        process.send_signal(signal.SIGSTOP)
        time.sleep(pause)
        process.send_signal(signal.SIGCONT)

    def kill_all() -> None:
        for member in range(3):
            etcd.kill(member)
        time.sleep(pause)
        for member in range(3):
            etcd.start(member)

    for round_ in range(20 if "THOROUGH" in os.environ else 2):
        rng, stopping = random.Random(round_), threading.Event()
        threads = [threading.Thread(target=visitor, args=(i, stopping, random.Random(i))) for i in range(3)]
        for thread in threads:
            thread.start()
        killed, told = rng.sample(range(3), 2)
        of_etcd: list[Callable[[], None]] = [kill_leader, stop_follower, kill_all]
        of_machines = [partial(replace, killed, signal.SIGKILL), partial(replace, told, signal.SIGTERM)]
        for faults in (of_etcd, of_machines):
            rng.shuffle(faults)
        with ThreadPoolExecutor(2) as pool:  # faults of machines and of etcd may coincide
            list(pool.map(lambda faults: [fault() for fault in faults], (of_etcd, of_machines)))
        stopping.set()
        for thread in threads:
            thread.join()
        etcd.wait()
        agree(answered, *services)
        assert len(etcd.documents()) == 3


def test_visitors_do_not_notice_that_etcd_hangs(machine):
    with contextlib.ExitStack() as stack:
        hanging = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        plain = machine("plain", "")
        alone = machine("alone", ",".join(f"http://127.0.0.1:{each.getsockname()[1]}" for each in hanging))
        assert alone.json("/health")["machines"] == "never agreed"
        alone.wait_for("Visits cannot be exchanged with etcd")
        taken: dict[Running, list[float]] = {plain: [], alone: []}
        for service in [plain, alone] * 400:
            begun = time.perf_counter()
            visit_from(service, "FR")
            taken[service].append(time.perf_counter() - begun)
        p90, of_plain = (statistics.quantiles(taken[service], n=10)[-1] for service in (alone, plain))
        assert p90 < 2 * of_plain + 0.005
        assert alone.get("/health").status == 200 and alone.visits() == b"FR: 400\n"
        assert alone.json("/analytics")["machines"] == {"count": 1, "agreed": None}
        begun = time.monotonic()
        assert alone.stop() == 0 and time.monotonic() - begun < 4
        assert alone.messages().count("Visits cannot be exchanged with etcd") == 1


def test_an_outage_is_logged_once_and_the_last_known_sum_is_shown_with_its_time(machine, cluster):
    etcd = cluster()
    a, b = (machine(name, etcd.endpoints) for name in "ab")
    visit_from(a, "FR")
    visit_from(b, "GB")
    agree({"FR": 1, "GB": 1}, a, b)
    etcd.kill(0)
    a.wait_for("Visits cannot be exchanged with etcd")
    known = a.json("/analytics")["machines"]["agreed"]
    visit_from(a, "FR")
    assert a.visits() == b"FR: 2\nGB: 1\n"
    eventually(lambda: int(re.findall(r"last agreed (\d+) seconds ago", a.json("/health")["machines"])[0]) >= 4)
    assert a.get("/health").status == 200
    assert f"on 2 machines, as of {known}" in a.get("/analytics").data.decode()
    a.stop(signal.SIGKILL)
    a = machine("a", etcd.endpoints)
    assert a.visits() == b"FR: 2\nGB: 1\n"  # from the database
    a.wait_for("Visits cannot be exchanged with etcd")
    etcd.start(0)
    agree({"FR": 2, "GB": 1}, a, b)
    for service in (a, b):
        service.wait_for("Visits are exchanged again")
        assert service.messages().count("Visits cannot be exchanged with etcd") == 1
        assert service.messages().count("Visits are exchanged again") == 1


def test_etcd_with_users_whose_tokens_expire_and_no_password_is_shown(machine, cluster):
    etcd, password = cluster(3, "--auth-token", "simple", "--auth-token-ttl", "1"), "s3cret p@ss:w/rd,%"
    for path, message in (
        ("user/add", {"name": "root", "password": "root"}), ("user/add", {"name": "cats", "password": password}),
        ("role/add", {"name": "root"}), ("role/add", {"name": "counter"}),
        ("role/grant", {"name": "counter", "perm": {"permType": "READWRITE", **ETCD_RANGE}}),
        ("user/grant", {"user": "root", "role": "root"}), ("user/grant", {"user": "cats", "role": "counter"}),
        ("enable", {}),
    ):
        etcd.post("auth/" + path, message)
    endpoints = etcd.endpoints.replace("//", f"//cats:{quote(password, safe='')}@")
    a, b = (machine(name, endpoints, LOG_LEVEL="debug") for name in "ab")
    for i in range(1, 4):
        visit_from(a, "FR")
        visit_from(b, "FR")
        agree({"FR": 2 * i}, a, b)
        time.sleep(1.5)  # the tokens expire
    assert "Visits cannot be exchanged with etcd" not in a.messages() + b.messages()
    wrong = machine("c", endpoints.replace("cats:s3cret", "cats:wr0ng"), LOG_LEVEL="debug")
    nobody = machine("d", etcd.endpoints)
    for service in (wrong, nobody):
        service.wait_for("Visits cannot be exchanged with etcd")
    shown = b"".join(service.get(path).data for service in (a, wrong) for path in ("/analytics", "/health", "/metrics"))
    for service in (a, b, wrong):
        assert service.stop() == 0
        shown += "".join(service.lines).encode()
    shown += repr(catscii.read_settings({"ETCD_ENDPOINTS": endpoints})).encode()
    shown += (refusal := run(ETCD_ENDPOINTS="http://cats:s3cret@, nonsense", PORT="0").stderr)
    assert b"ETCD_ENDPOINTS: is not a list of URLs" in refusal and not re.search(b"s3cret|wr0ng", shown)


def test_etcd_over_tls_is_verified(machine, cluster, authority, ca_file):
    etcd = cluster(1, certificate=authority.issue_cert("localhost"))
    a = machine("a", etcd.endpoints, SSL_CERT_FILE=ca_file)
    visit_from(a, "FR")
    eventually(lambda: any(each["visits"].get("FR") == 1 for each in etcd.documents().values()))
    b = machine("b", etcd.endpoints)  # does not know the authority
    b.wait_for("Visits cannot be exchanged with etcd")
    assert "CERTIFICATE_VERIFY_FAILED" in json.dumps(b.log)


def test_endpoints_are_tried_in_turn(machine, cluster):
    etcd, dead = cluster(), f"http://127.0.0.1:{free_ports(1)[0]}"
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        a = machine("a", f"{dead},http://127.0.0.1:{hanging.getsockname()[1]}/ , {etcd.endpoints}")
        b = machine("b", etcd.endpoints)
        visit_from(a, "FR")
        agree({"FR": 1}, a, b)
        assert "Visits cannot be exchanged with etcd" not in a.messages()


def packed(text: bytes = b"", **changes: Any) -> bytes:
    """Return a document of a machine with other contents, or a compressed text."""
    return zlib.compress(text or json.dumps({"version": 1, "visits": {"FR": 5}} | changes).encode())


INVALID_DOCUMENTS = {
    "newer": packed(version=2), "older": packed(version=None), "json": packed(b"{"), "bare": b'{"version": 1}',
    "empty": b"", "bytes": b"\xff\x00\x9f", "list": packed(b"[]"), "deep": packed(b"[" * 200_000),
    "bomb": packed(b"[" + b"0," * 50_000_000 + b"0]"), "negative": packed(visits={"FR": 5, "DE": -1}),
    "fraction": packed(visits={"FR": 5.5}), "huge": packed(visits={"FR": 10**15 + 1}),
    "infinite": packed(b'{"version": 1, "visits": {"FR": 1e999}}'),
    "digits": packed(b'{"version": 1, "visits": {"FR": %s}}' % (b"9" * 100_000)),
    "true": packed(visits={"FR": True}), "text": packed(visits={"FR": "5"}), "nowhere": packed(visits={"QQ": 5}),
    "lower": packed(visits={"fr": 5}), "name": packed(visits={"France": 5}), "script": packed(visits={"<script>": 5}),
    "array": packed(visits=[5]), "bare visits": packed(b'{"FR": 5}'),
    "\x1b[31m" + "x" * 1000: packed(visits={"FR": -1}),
}


def test_what_no_machine_can_have_written_is_ignored_and_logged_once(machine, cluster):
    etcd = cluster()
    a = machine("a", etcd.endpoints)
    visit_from(a, "FR")
    (own,) = eventually(etcd.documents)
    for name, value in INVALID_DOCUMENTS.items():
        etcd.put(name, value)
    today = str(datetime.now(UTC).date())
    etcd.put("ab" * 8, packed(visits={"DE": 7, f"{today}DE": 7, "2001-01-01DE": 3, "9999-01-01DE": 3, "no dayDE": 1}))
    b = machine("b", etcd.endpoints)
    agree({"DE": 7, "FR": 1}, a, b)
    visit_from(b, "GB")  # and again, two exchanges later
    agree({"DE": 7, "FR": 1, "GB": 1}, a, b)
    for service in (a, b):
        assert service.json("/analytics")["machines"]["count"] == 3
        assert service.messages().count("Invalid documents in etcd are ignored") == 1
        assert "\x1b" not in "".join(service.lines) and bench_catscii.resident(service.process.pid) < 120
    etcd.put(own, b"garbage")  # which its machine writes anew
    visit_from(a, "JP")
    agree({"DE": 7, "FR": 1, "GB": 1, "JP": 1}, a, b)


def test_an_endless_answer_of_etcd_is_given_up(machine, upstream):
    def flood(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" " * (1 << 20))
        handler.close_connection = True

    upstream.answers["POST"] = flood
    a = machine("a", upstream.url)
    a.wait_for("Visits cannot be exchanged with etcd")
    visit_from(a, "FR")
    assert a.visits() == b"FR: 1\n" and bench_catscii.resident(a.process.pid) < 120
    assert f"more than {catscii.MAX_ANSWER} bytes" in json.dumps(a.log)


def backup(service: Running, to: Path) -> None:
    with contextlib.closing(sqlite3.connect(service.database)) as now, contextlib.closing(sqlite3.connect(to)) as copy:
        now.backup(copy)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("first", ["original", "copy"])
def test_a_copied_database_loses_no_visit_and_counts_none_twice(machine, tmp_path, cluster, known, first):
    etcd = cluster()

    def written(country: str) -> None:
        eventually(lambda: any(each["visits"].get(country) for each in etcd.documents().values()))

    a = machine("a", etcd.endpoints)
    visit_from(a, "FR", "GB")
    if known:
        written("GB")
    a.process.send_signal(signal.SIGSTOP)  # it writes what it has when it goes on
    backup(a, tmp_path / "b")
    if first == "original":
        a.process.send_signal(signal.SIGCONT)
        visit_from(a, "FR", "DE")
        written("DE")
    b = machine("b", etcd.endpoints)
    visit_from(b, "FR", "JP")
    written("JP")
    if first == "copy":
        a.process.send_signal(signal.SIGCONT)
        visit_from(a, "FR", "DE")
    agree({"FR": 3, "DE": 1, "GB": 1, "JP": 1}, a, b)
    eventually(lambda: all(service.json("/analytics")["machines"]["count"] == 2 for service in (a, b)))


@pytest.mark.parametrize("how", ["in place", "as another file"])
def test_an_older_database_keeps_in_the_sum_what_it_lost(machine, tmp_path, cluster, how):
    etcd = cluster()
    a, b = (machine(name, etcd.endpoints) for name in "ab")
    visit_from(a, "FR", "GB")
    backup(a, tmp_path / "old")
    visit_from(a, "FR", "JP", "JP")
    agree({"FR": 2, "JP": 2, "GB": 1}, a, b)
    assert a.stop() == 0
    if how == "in place":
        shutil.copyfile(tmp_path / "old", a.database)
    else:
        (tmp_path / "old").rename(a.database)
    a = machine("a", etcd.endpoints)
    visit_from(a, "FR", "FR", "FR", "JP", "JP")
    agree({"FR": 5, "JP": 4, "GB": 1}, a, b)


class MachineModel:
    """A process on a database, and the numbers of the visits that are in the database."""

    def __init__(self, path: Path, etcd: EtcdModel, visits: set[int]) -> None:
        self.path, self.etcd, self.visits = path, etcd, set(visits)
        self.open()

    def open(self) -> None:
        self.settled = False  # whether an exchange succeeded since then
        self.database = catscii.Database(str(self.path))
        variables = {"ANALYTICS_DB": str(self.path), "ETCD_ENDPOINTS": "http://localhost:9"}
        self.machines = catscii.Machines(catscii.read_settings(variables), self.database)
        self.machines._ask = self.etcd.ask  # type: ignore[method-assign]

    def exchange(self, loses: str = "") -> None:
        self.etcd.loses = loses
        with contextlib.suppress(catscii.Unavailable):
            self.machines._exchange()
            self.settled |= not loses

    def copy(self, path: Path) -> Path:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            self.database._connection.backup(connection)
        return path

    def reopen(self, path: Path) -> None:
        self.database.close()
        self.path = path
        self.open()


class EtcdModel:
    """What Machines asks of etcd, in memory. A write can get lost "before" or "after" it is done."""

    def __init__(self) -> None:
        self.keys: dict[bytes, tuple[bytes, int]] = {}  # values and revisions
        self.backup, self.revision, self.loses = self.keys, 1, ""

    def ask(self, path: str, message: dict[str, Any]) -> dict[str, Any]:
        if path == "kv/range":
            found = ((base64.b64encode(key), base64.b64encode(value), n) for key, (value, n) in self.keys.items())
            return {"kvs": [{"key": key, "value": value, "mod_revision": str(n)} for key, value, n in found]}
        (compare,), (success,) = message["compare"], message["success"]
        if self.loses == "before":
            raise catscii.Unavailable("lost")
        if succeeded := compare["mod_revision"] == str(self.keys.get(compare["key"], (b"", 0))[1]):
            self.revision += 1
            self.keys = {**self.keys, compare["key"]: (success["request_put"]["value"], self.revision)}
        if self.loses == "after":
            raise catscii.Unavailable("lost")
        return {"succeeded": succeeded}


def play(seed: int, folder: Path) -> tuple[list[str], Counter[str], list[dict[str, int]]]:
    """Play random events. Returns them, the visits that must be in the sum, and those that each machine shows."""
    rng, etcd, lost, today = random.Random(seed), EtcdModel(), set[int](), datetime.now(UTC).strftime("%Y-%m-%d")
    countries: dict[int, str] = {}  # by the number of the visit
    played, machines, old = [], [MachineModel(folder / f"{seed}", etcd, set())], []
    for i in range(rng.randrange(5, 40)):
        each, path = rng.choice(machines), folder / f"{seed}-{i}"
        event = rng.choice(["visit"] * 8 + ["exchange"] * 5 + [
            "copy", "move", "restart", "new", "keep", "restore", "lose etcd", "keep etcd"])
        played.append(f"{event} {machines.index(each)}")
        if event == "visit":
            countries[i] = rng.choice(["FR", "DE"])
            each.database.execute(catscii.COUNT_VISITS.format(more=""), today, countries[i], 1)
            each.visits.add(i)
        elif event == "exchange":
            each.exchange(loses=rng.choice(["", "", "before", "after"]))
        elif event == "copy":
            machines.append(MachineModel(each.copy(path), etcd, each.visits))
        elif event == "move":
            each.reopen(each.copy(path))
        elif event == "restart" and each.settled:
            each.reopen(each.path)
        elif event == "new" and len(machines) < 4:
            machines.append(MachineModel(path, etcd, set()))
        elif event == "keep":
            old.append((each, each.copy(path), set(each.visits)))
        elif event == "restore" and old and all(machine.settled for machine in machines):
            each, path, visits = rng.choice(old)
            each.exchange()
            each.exchange()  # the first one may have found that another machine writes the key
            lost |= each.visits - visits
            each.visits = visits
            each.database.close()
            shutil.copyfile(path, each.path)  # in place
            each.open()
            each.exchange()
        elif event == "lose etcd" and not lost:
            etcd.keys = rng.choice([{}, etcd.backup])
        elif event == "keep etcd":
            etcd.backup = etcd.keys
    for each in machines * 5:
        each.exchange()
    expected = Counter(countries[i] for i in lost.union(*(each.visits for each in machines)))
    shown = [catscii.read_visits(each.database, "everywhere") for each in machines]
    assert all(visits.today == visits.visits for visits in shown), played
    for each in machines:
        each.database.close()
    return played, expected, [visits.countries for visits in shown]


def test_no_sequence_of_copies_moves_and_losses_makes_a_wrong_sum_of_machines():
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        for seed in range(rounds(1000)):
            played, expected, shown = play(seed, Path(folder))
            assert all(visits == expected for visits in shown), (seed, played, expected, shown)


def test_machines_write_again_what_etcd_has_lost(machine, cluster):
    etcd = cluster()
    a, b = (machine(name, etcd.endpoints) for name in "ab")
    visit_from(a, "FR")
    visit_from(b, "GB")
    agree({"FR": 1, "GB": 1}, a, b)
    etcd.post("kv/deleterange", ETCD_RANGE)
    eventually(lambda: len(etcd.documents()) == 2)
    agree({"FR": 1, "GB": 1}, a, b)


def test_processes_that_share_a_database_are_one_machine(machine, cluster):
    etcd = cluster()
    services = [machine("a", etcd.endpoints) for _ in range(3)]
    other = machine("b", etcd.endpoints)
    for service in services * 5:
        visit_from(service, "FR")
    agree({"FR": 15}, *services, other)
    visit_from(services[0], "GB")
    agree({"FR": 15, "GB": 1}, *services, other)
    assert len(etcd.documents()) == 2


def test_cgi_exchanges_visits_after_the_answer_and_only_when_that_is_due(machine, tmp_path, cluster):
    etcd = cluster()
    other = machine("other", etcd.endpoints)
    visit_from(other, "GB")
    agree({"GB": 1}, other)
    for _ in range(4):
        cgi(tmp_path, ETCD_ENDPOINTS=etcd.endpoints)
        time.sleep(catscii.EXCHANGE_SECONDS)
    agree({"ZZ": 4, "GB": 1}, other)
    answer = cgi(tmp_path, ETCD_ENDPOINTS=etcd.endpoints, PATH_INFO="/analytics", QUERY_STRING="format=text")
    assert answer.body == b"ZZ: 4\nGB: 1\n"
    dead = f"http://127.0.0.1:{free_ports(1)[0]}"
    logged = ""
    for _ in range(3):
        time.sleep(catscii.EXCHANGE_SECONDS)
        logged += json.dumps(cgi(tmp_path, ETCD_ENDPOINTS=dead).log)
    assert logged.count("cannot be exchanged") == 1
    time.sleep(catscii.EXCHANGE_SECONDS)
    assert "exchanged again" in json.dumps(cgi(tmp_path, ETCD_ENDPOINTS=etcd.endpoints).log)
    code = "import sys, catscii; catscii.main([]); print(*sys.modules, file=sys.stderr)"
    variables = cgi_variables(tmp_path, PYTHONPATH=str(SCRIPT.parent))
    result = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, check=True)
    assert "urllib3" not in result.stderr.decode().splitlines()[-1].split()  # nothing is imported without etcd


def test_the_document_of_a_busy_machine_is_small(tmp_path):
    database, rng = catscii.Database(str(tmp_path / "busy.db")), random.Random(0)
    for ago in range(400):
        day = str(datetime.now(UTC).date() - timedelta(ago))
        for rank, code in enumerate(rng.sample([*catscii.world().names], 150), 1):
            database.execute("INSERT INTO visits VALUES (?, ?, ?)", day, code, rng.randrange(1 + 1_000_000 // rank**2))
    database.close()
    etcd = EtcdModel()
    MachineModel(tmp_path / "busy.db", etcd, set()).exchange()
    ((document, _),) = etcd.keys.values()
    assert 10_000 < len(document) < 40_000 and catscii.read_document(document)["FR"] > 0


# ---------------------------------------------------------------------------------------------------------------------
# Web
# ---------------------------------------------------------------------------------------------------------------------


def kind(response: urllib3.BaseHTTPResponse) -> str:
    """The format that a response is in."""
    body = response.data.decode()
    if response.headers["Content-Type"].startswith("text/html"):
        assert body.startswith("<!DOCTYPE html>")
        return "html"
    if response.headers["Content-Type"] == "application/json":
        json.loads(body)
        return "json"
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    return "ansi" if "\x1b[" in body else "text"


TERMINALS = ["Wget/1.21.4", "HTTPie/3.2.4", "xh/0.24.0", "fetch libfetch/2.0"]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        *((CHROME, "html"), (CURL, "ansi"), ({}, "html"), ({"Accept": "*/*"}, "html")),
        *(({"User-Agent": agent, "Accept": "*/*"}, "ansi") for agent in TERMINALS),
        ({"User-Agent": "Mozilla/5.0 (Windows NT; Windows NT 10.0; en-US) WindowsPowerShell/5.1.22621"}, "ansi"),
        ({"User-Agent": "HTTPie/3.2.4", "Accept": "application/json, */*;q=0.5"}, "json"),
        *((CURL | {"Accept": "text/html"}, "html"), (CURL | {"Accept": "text/plain"}, "text")),
        *((CURL | {"Accept": "text/html;q=0"}, "ansi"), (CURL | {"Accept": "text/html;q=0.2, */*"}, "ansi")),
        ({"Accept": "text/html;q=0.2, application/json;q=0.7"}, "json"),
        ({"Accept": "text/html;q=0.8, application/json;q=.5"}, "html"),
        ({"Accept": "application/json;q=.9, text/html;q=0.8"}, "json"),
        ({"Accept": "*/*, text/html;q=0.0, text/plain;q=0"}, "json"),
        ({"Accept": "text/html;q=0, */*"}, "text"),
        *(({"Accept": "image/png"}, "html"), ({"Accept": ";;q=,,"}, "html")),
    ],
)
def test_the_format_is_what_accept_or_the_client_asks_for(service, headers, expected):
    assert kind(service.get("/cat/house-1", headers)) == expected


@pytest.mark.parametrize("format", ["html", "ansi", "text", "json"])
def test_each_format_by_its_name_with_parameters(service, format):
    response = service.get(f"/cat/house-2?format={format}&width=60&height=12&style=ink", CHROME)
    assert (response.status, kind(response)) == (200, format)
    body = response.data.decode()
    art = catscii.render(catscii.draw_house_cat(2), 60, 12, "ink", plain=format == "text")
    if format == "json":
        assert json.loads(body) == {
            "id": "house-2",
            "source": "house",
            "credit": "",
            "description": "a brown tabby with amber eyes",
            **json.loads(json.dumps(catscii.to_dict(art))),
        }
    elif format == "html":
        assert f">{catscii.to_html(art)}</pre>" in body
    elif format == "ansi":
        assert body.startswith(catscii.to_ansi(art)) and body.count("\n") == len(art.rows) + 1
    else:
        assert body == catscii.to_text(art)


def test_contrast_and_background_are_heeded_in_every_format(service):
    portrait, light = catscii.draw_house_cat(2), "style=ink&background=light"
    flat = catscii.render(portrait, 40, contrast=0)
    assert service.json("/cat/house-2?width=40&contrast=0")["rows"] == list(flat.rows)
    assert f">{catscii.to_html(flat)}</pre>" in service.get("/cat/house-2?width=40&contrast=0", CHROME).data.decode()
    ink = catscii.render(portrait, 40, style="ink", background="light")
    assert service.json(f"/cat/house-2?width=40&{light}")["rows"] == list(ink.rows)
    png = Image.open(io.BytesIO(service.get(f"/cat/house-2.png?width=40&{light}").data))
    assert png.getpixel((0, png.height - 1)) == (255, 255, 255)
    body = service.get(f"/cat/house-2?{light}", CHROME).data.decode()
    assert "background:rgb(255, 255, 255)" in body
    dark = service.get("/cat/house-2?style=ink", CHROME).data.decode()
    assert "background:rgb(16, 16, 20)" in dark


TERMINALS = ["curl/8.16.0", "Wget/1.21.4", "HTTPie/3.2.4", "xh/0.24.0", "fetch libfetch/2.0", "x PowerShell/7.4"]


@pytest.mark.parametrize("client", TERMINALS)
def test_terminals_get_art_that_fits_24_lines_of_80_columns(service, client):
    for path in ("/", "/cat/house-2", "/?style=ink", "/?colors=256", "/?format=ansi"):
        *rows, below = service.get(path, {"User-Agent": client}).data.decode().splitlines(keepends=True)
        assert all(row.endswith("\x1b[0m\n") for row in [*rows, below])
        size = (53, 20) if "HTTPie" in client else (59, 22)  # which adds two empty lines
        assert (len(cells_of_ansi(rows[0])[0]), len(rows)) == size
        assert len(re.sub("\x1b[^m]*m", "", below).rstrip("\n")) <= 80
    url = re.search(r"http[^?]+", below)[0]
    assert service.get(urlsplit(url).path, {"User-Agent": client}).data.decode() == "".join([*rows, below])


@pytest.mark.parametrize(
    ("path", "headers", "rows"),
    [
        ("/cat/house-2?width=80", CURL, 30),
        ("/cat/house-2?height=40", CURL, 30),
        ("/cat/house-2.ansi", CURL, 30),
        ("/cat/house-2?format=ansi", CHROME, 30),
        ("/cat/house-2?format=text", CURL, 30),
        ("/cat/house-2?width=120&height=46", CURL, 45),
    ],
)
def test_everything_else_is_as_large_as_asked(service, path, headers, rows):
    lines = service.get(path, headers).data.decode().splitlines()
    assert len(lines) == rows + ("text" not in path)


def footer_of(service: Running, path: str, **headers: str) -> str:
    return re.sub("\x1b[^m]*m", "", service.get(path, CURL | headers).data.decode().splitlines()[-1])


def test_the_line_below_the_art_fills_the_window_when_pasted_into_a_shell(service):
    line = footer_of(service, "/cat/house-2?style=ink&colors=16&width=50", Host="a.example")
    assert line == '"http://a.example/cat/house-2?style=ink&colors=16&width=$COLUMNS"  /:help'
    line = footer_of(service, "/cat/house-2")
    for columns, lines, size in ((120, 40, (101, 38)), (40, 20, (40, 15))):
        script = f"COLUMNS={columns} LINES={lines}; curl --silent {line.split()[0]}"
        *rows, _ = subprocess.check_output(["bash", "-c", script], text=True).splitlines()
        assert (len(cells_of_ansi(rows[0] + "\n")[0]), len(rows)) == size


@pytest.mark.parametrize(
    ("host", "cat", "ends"),
    [
        ("localhost:8080", "house-7", 'house-7?width=$COLUMNS&height=$((LINES-2))"  /:help'),
        ("localhost:8080", "house-1234567890", 'house-1234567890?width=$COLUMNS&height=$((LINES-2))"'),
        ("cats-of-somebody.fly.dev", "house-1234567890", 'house-1234567890?width=$COLUMNS"  /:help'),
        ("c" * 60 + ".example", "house-1234567890", 'house-1234567890?width=$COLUMNS"'),
    ],
)
def test_the_line_below_the_art_fits_80_columns(service, host, cat, ends):
    line = footer_of(service, f"/cat/{cat}", Host=host)
    assert line == f'"http://{host}/cat/{ends}' and len(line) <= max(80, len(host) + 46)


@pytest.mark.parametrize(
    ("suffix", "format"), [("txt", "text"), ("ansi", "ansi"), ("json", "json"), ("html", "html"), ("png", "png")]
)
def test_a_suffix_is_short_for_a_format(service, suffix, format):
    short = service.get(f"/cat/house-2.{suffix}?width=40", CHROME)
    assert (short.status, short.data) == (200, service.get(f"/cat/house-2?format={format}&width=40").data)


@pytest.mark.parametrize("path", ["/cat/house-2.gif", "/cat/house-2.", "/cat/.png", "/cat/house-2.txt.png"])
def test_other_suffixes_are_not_found(service, path):
    assert service.get(path).status == 404


@pytest.mark.parametrize(
    ("query", "size"), [("", (800, 600)), ("width=20&style=ink", (200, 160)), ("width=240", (1200, 900))]
)
def test_a_png_shows_the_art(service, query, size):
    response = service.get(f"/cat/house-2.png?{query}")
    assert response.headers["Content-Type"] == "image/png"
    picture = Image.open(io.BytesIO(response.data))
    assert picture.size == size
    seen, drawn = (image.convert("L").resize((40, 30)) for image in (picture, catscii.draw_house_cat(2)))
    pairs = [*zip(seen.tobytes(), drawn.tobytes(), strict=True)]
    assert statistics.correlation(*zip(*pairs, strict=True)) > (0.6 if "ink" in query else 0.98)


def test_the_picture_behind_the_art(service):
    visits = service.get("/analytics?format=text").data
    response = service.get("/cat/house-2.jpg", CHROME | {"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in response.headers, "a picture is compressed already"
    picture = Image.open(io.BytesIO(response.data))
    assert (response.headers["Content-Type"], picture.format, picture.size) == ("image/jpeg", "JPEG", (480, 360))
    assert service.get("/analytics?format=text").data == visits, "it belongs to a page that was counted"


@pytest.mark.parametrize(("colors", "code"), [("256", r"[34]8;5;\d{2,3}"), ("16", r"3[0-7]|4[0-7]|9[0-7]|10[0-7]")])
def test_fewer_colours_for_older_terminals(service, colors, code):
    body = service.get(f"/cat/house-2.ansi?colors={colors}").data.decode()
    *rows, _ = body.splitlines()
    codes = {sgr for sgr in re.findall(r"\x1b\[([0-9;]+)m", "".join(rows)) if sgr != "0"}
    assert len(codes) > 10
    assert all(re.fullmatch(f"({code})(;({code}))?", sgr) for sgr in codes)
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", row) for row in rows]
    assert plain == json.loads(service.get("/cat/house-2.json").data)["rows"]


def oklab(colour: bytes) -> tuple[float, float, float]:
    """As https://bottosson.github.io/posts/oklab has it."""
    r, g, b = (c / 12.92 if (c := level / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for level in colour)
    long = (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b) ** (1 / 3)
    medium = (0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b) ** (1 / 3)
    short = (0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b) ** (1 / 3)
    return (
        0.2104542553 * long + 0.7936177850 * medium - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * medium + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * medium - 0.8086757660 * short,
    )


@pytest.mark.parametrize(("colors", "size"), [("256", 240), ("16", 16)])
def test_fewer_colours_are_the_nearest(colors, size):
    palette = catscii.palette(colors)
    assert len(palette) == size
    plane = random.Random(0).randbytes(300)
    chosen = catscii.snapped(plane, 100, palette, 0)
    for colour, other in zip(catscii.chunks(plane, 3), catscii.chunks(chosen, 3), strict=True):
        distances = {each: math.dist(colour, each) for each in palette}
        assert distances[other] <= min(distances.values()) + 12  # Pillow looks the nearest up in steps


def grounds(art: catscii.Art) -> list[tuple[float, ...]]:
    """The colours of the background in Oklab, from a step back."""
    size = len(art.rows[0]), len(art.rows)
    ground = Image.frombytes("RGB", size, art.background).filter(ImageFilter.GaussianBlur(1.5))
    return [oklab(colour) for colour in catscii.chunks(ground.tobytes(), 3)]


@pytest.mark.parametrize("colors", ["256", "16"])
def test_smooth_backgrounds_keep_their_hue_in_fewer_colours(colors):
    """The nearest in RGB leave more than three times as many that are off in hue, or grey: teal and grey patches."""

    def off(art: catscii.Art, other: catscii.Art) -> float:
        pairs = [*zip(grounds(art), grounds(other), strict=True)]
        angles = [(math.atan2(*x[1:]) - math.atan2(*y[1:]) + math.pi) % math.tau - math.pi for x, y in pairs]
        return statistics.fmean(
            abs(angle) > math.pi / 4 and max(math.hypot(*x[1:]), math.hypot(*y[1:])) > 0.04
            for angle, (x, y) in zip(angles, pairs, strict=True)
        )

    palette, wrong, wrong_in_rgb = catscii.palette(colors), [], []
    image = Image.new("P", (1, 1))
    image.putpalette(b"".join(palette))
    for seed in (1, 2, 3, 42):
        art = catscii.render(catscii.draw_house_cat(seed))
        line = Image.frombytes("RGB", (len(art.background) // 3, 1), art.background)
        plain = line.quantize(palette=image, dither=Image.Dither.NONE).convert("RGB").tobytes()
        wrong_in_rgb.append(off(art, art._replace(background=plain)))
        drawn = catscii.snapped(art.background, len(art.rows[0]), palette, catscii.CARRIED)
        wrong.append(off(art, art._replace(background=drawn)))
    assert statistics.fmean(wrong) < statistics.fmean(wrong_in_rgb) / 3


def assert_fits_24_lines(text: str) -> None:
    lines = re.sub(r"\x1b\[\d*m", "", text).splitlines()
    assert len(lines) < 24 and max(map(len, lines)) <= 80, "with a line for the prompt"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of bottle, about the path /:help
def test_help_fits_with_the_credit_of_countries(tmp_path):
    MMDBWriter(6, "DBIP-Country-Lite", languages=["en"]).to_db_file(tmp_path / "country.mmdb")
    variables = {"ANALYTICS_DB": f"{tmp_path}/x.db", "GEOLITE2_COUNTRY_DB": f"{tmp_path}/country.mmdb"}
    app = catscii.make_app(catscii.read_settings(variables))
    environ = {"PATH_INFO": "/help", "HTTP_USER_AGENT": "curl/8.16.0", "HTTP_HOST": "cats-of-somebody.fly.dev"}
    wsgiref.util.setup_testing_defaults(environ)
    text = b"".join(app(environ, lambda *_: None)).decode()
    assert "?contrast=48" in text and catscii.DBIP_CREDIT in text
    assert_fits_24_lines(text)


@pytest.mark.parametrize("path", ["/help", "/:help"])
@pytest.mark.parametrize("headers", [CURL, CHROME], ids=["curl", "browser"])
def test_help_is_one_screen_of_commands_that_work(service, path, headers):
    response = service.get(path, headers)
    body = html.unescape(response.data.decode()).split("<main")[-1]
    assert (response.status, kind(response)) == (200, "html" if headers == CHROME else "ansi")
    if headers == CURL:
        assert_fits_24_lines(body)
    for url in set(re.findall(r"http://[^\s<\x1b]+", body)):
        assert service.get(urlsplit(url).path).status == 200
    for path in re.findall(r"(?m)^(?:<dt><code>|\x1b\[1m)(/[^\s<\x1b]+)", body):
        assert service.get(path).status == 200
    for example in set(re.findall(r"\?[a-z]+=[a-z0-9=&]+", body)) - {"?format=csv"}:
        assert service.get(f"/cat/house-42{example}").status == 200
    for suffix in re.findall(r" (\.[a-z]+)\b", body):
        assert service.get(f"/cat/house-42{suffix}").status == 200


@pytest.mark.parametrize("host", ["evil.example/<b>", "a b", "x[31m", '"', ""])
def test_a_host_that_cannot_be_shown_is_left_out(service, host):
    for format in ("ansi", "html"):
        response = exchange(service, f"GET /cat/house-9?format={format} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        assert b"evil" not in response
        assert b"[31m" not in response
        assert b"/cat/house-9" in response


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of bottle, about the path /:help
def test_hosts_take_no_memory_and_a_page_without_links_is_the_same_for_all(start, tmp_path):
    app = catscii.make_app(catscii.read_settings({"ANALYTICS_DB": str(tmp_path / "x.db"), "CAT_SOURCES": ""}))
    kept = []
    for suffix, i in itertools.product(("txt", "json", "png", "jpg", "html", "ansi"), range(5)):
        environ = {"PATH_INFO": f"/cat/house-1.{suffix}", "QUERY_STRING": "width=20", "HTTP_HOST": f"host{i}.example"}
        wsgiref.util.setup_testing_defaults(environ)
        assert b"".join(app(environ, lambda *_: None))
        kept.append(len(app.service.pages._values))
    assert kept == [1] * 5 + [2] * 5 + [3] * 5 + [4] * 5 + [*range(5, 15)]

    service = start()
    before = resident_megabytes(service.process.pid)
    with connected(service) as connection:
        for i in range(0, 2000, 20):
            request, answers = b"GET /cat/house-1.txt?width=20 HTTP/1.1\r\nHost: a:%015900d\r\n\r\n", b""
            connection.sendall(b"".join(request % host for host in range(i, i + 20)))
            while whole_answers(answers) < 20:
                answers += connection.recv(65536)
    assert resident_megabytes(service.process.pid) - before < 10


def test_links_are_those_that_the_client_sees(service):
    headers = CHROME | {"Host": "cats.example", "X-Forwarded-Proto": "https"}
    body = service.get("/cat/house-9", headers).data.decode()
    assert '<meta property="og:image" content="https://cats.example/cat/house-9.png">' in body
    assert b"https://cats.example/cat/house-9" in service.get("/cat/house-9", headers | CURL).data


@pytest.mark.browser
@pytest.mark.parametrize("client", ["curl --silent", "wget --quiet --output-document=-", "http --ignore-stdin --body"])
def test_terminals_get_another_cat_at_each_call(service, client):
    program, *options = client.split()
    command = [shutil.which(program) or Path(sys.executable).with_name(program), *options, service.url]
    cats = {subprocess.check_output(command, text=True, timeout=60) for _ in range(6)}
    assert len(cats) > 1
    for cat in cats:
        rows = cells_of_ansi("".join(cat.splitlines(keepends=True)[:-1]))
        assert (len(rows[0]), len(rows)) == ((53, 20) if program == "http" else (59, 22))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome") or pytest.skip("Chromium is not installed")
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(service: Running, chromium: Browser) -> Iterator[Page]:
    """A tab in which every message on the console and every request elsewhere is an error."""
    context = chromium.new_context(viewport={"width": 1280, "height": 720}, base_url=service.url)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab, complaints = context.new_page(), []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: request.url.startswith(service.url) or complaints.append(request.url))
    yield tab
    context.close()
    assert complaints == []


@pytest.mark.browser
@pytest.mark.parametrize(
    "path", ["/cat/house-1", "/cat/house-1?style=ink&width=200", "/analytics", "/help", "/nothing"]
)
@pytest.mark.parametrize("size", [(320, 640), (390, 844), (768, 1024), (1280, 720), (2560, 1440), (3840, 2160)])
def test_pages_fit_every_window(service, chromium, path, size):
    context = chromium.new_context(viewport={"width": size[0], "height": size[1]})
    page = context.new_page()
    page.goto(f"{service.url}{path}")
    page.wait_for_selector(":root:not(.fitting)")
    width, height = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert width == size[0]
    if "/cat/" in path:
        assert height == size[1]
        stage, art = page.locator("main").bounding_box(), page.locator("pre").bounding_box()
        assert max(art["width"] / stage["width"], art["height"] / stage["height"]) > 0.97, "it fills its room"
        assert abs(art["width"] / art["height"] - 4 / 3) < 0.05
    context.close()


LINK = "document.querySelector('#permalink').href"
OTHER = f"link => {LINK} !== link"


@pytest.mark.browser
def test_another_cat_is_swapped_in_by_click_and_key_and_history_leads_back(tab):
    tab.goto("/?width=60")
    tab.evaluate("window.mark = 'not reloaded'")
    seen = [tab.evaluate(LINK)]
    for act in (
        lambda: tab.click("#another"),
        lambda: tab.keyboard.press("n"),
        lambda: (tab.evaluate("document.activeElement.blur()"), tab.keyboard.press(" ")),
    ):
        act()
        tab.wait_for_function(OTHER, arg=seen[-1])
        seen.append(tab.evaluate(LINK))
        assert tab.url == seen[-1] and re.search(r"/cat/house-\d+\?width=60$", tab.url)
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    for _ in range(5):
        tab.keyboard.down("n")
    tab.keyboard.up("n")
    tab.wait_for_function(OTHER, arg=seen[-1])
    seen.append(tab.evaluate(LINK))
    assert len(asked) == 1, "a key that is held brings one cat"
    for url in seen[-2::-1]:
        tab.go_back()
        tab.wait_for_function(f"url => {LINK} === url", arg=url)
    tab.go_forward()
    tab.wait_for_function(f"url => {LINK} === url", arg=seen[1])
    assert tab.evaluate("window.mark") == "not reloaded"


def sized(chromium: Browser, service: Running, width: int, height: int, **options: Any) -> Page:
    """A tab of that size, whose `shifts` are what the layout shifted by."""
    view = {"width": width, "height": height}
    tab = chromium.new_context(viewport=view, base_url=service.url, **options).new_page()
    tab.add_init_script("""window.shifts = 0; new PerformanceObserver(list => {
        for (const entry of list.getEntries()) window.shifts += entry.value
    }).observe({type: "layout-shift", buffered: true})""")
    return tab


@pytest.mark.browser
@pytest.mark.parametrize(
    ("width", "height", "least", "most"),
    [(360, 740, 48, 52), (768, 1024, 90, 110), (1280, 800, 120, 160), (1920, 1080, 140, 200), (3840, 2160, 230, 240)],
)
def test_the_art_fits_the_window_with_one_more_request_and_no_shift(service, chromium, width, height, least, most):
    tab, asked, shown = sized(chromium, service, width, height), [], []
    tab.on("request", lambda request: asked.append(request.url.removeprefix(service.url)))
    visible = "getComputedStyle(document.querySelector('pre')).visibility"
    tab.route("**/cat/*", lambda route: (shown.append(tab.evaluate(visible)), route.continue_()))
    tab.goto("/?style=ink")
    tab.wait_for_selector(":root:not(.fitting)")
    assert re.fullmatch(r"/cat/house-\d+\?style=ink&width=\d+&height=\d+", asked[1]) and len(asked) == 2
    assert (shown, tab.evaluate(visible)) == (["hidden"], "visible"), "the art of 80 columns is never seen"
    columns = len(tab.locator("pre").text_content().split("\n")[0])
    assert least <= columns <= most
    assert 7 <= tab.locator("pre").bounding_box()["width"] / columns <= 11.6
    assert tab.locator("output").text_content() == tab.locator("#width").input_value() == str(columns)
    assert tab.evaluate("shifts") <= 0.02
    links = [tab.evaluate(f"document.querySelector('{link}').href") for link in ("#another", "#permalink", "#restyle")]
    assert links[0] == f"{service.url}/?style=ink" and links[2] == links[1].removesuffix("?style=ink")
    tab.click("#another")
    tab.wait_for_url("**/cat/*")
    assert len(asked) == 3 and re.search(r"&width=\d+&height=\d+", asked[2]), "the next one fits at once"
    assert re.fullmatch(r"/cat/house-\d+\?style=ink", tab.url.removeprefix(service.url))
    tab.context.close()


@pytest.mark.browser
def test_a_page_that_fits_its_window_and_is_made_wider_is_one_visit(start, chromium):
    service = start()
    tab = sized(chromium, service, 1280, 800)
    tab.goto("/")
    tab.wait_for_selector(":root:not(.fitting)")
    with tab.expect_response("**/cat/*width=201*"):
        tab.locator("#width").fill("201")
    assert service.visits() == b"ZZ: 1\n"
    tab.context.close()


@pytest.mark.browser
@pytest.mark.parametrize("query", ["", "?width=200"])
def test_the_layout_does_not_shift_while_the_page_comes_in_slowly(service, chromium, query):
    tab = sized(chromium, service, 1280, 800)
    line = {"offline": False, "latency": 20, "downloadThroughput": 60_000, "uploadThroughput": 60_000}
    tab.context.new_cdp_session(tab).send("Network.emulateNetworkConditions", line)
    tab.goto(f"/cat/house-1{query}")
    tab.wait_for_selector(":root:not(.fitting)")
    assert tab.evaluate("shifts") <= 0.02
    tab.context.close()


@pytest.mark.browser
def test_if_the_art_cannot_be_fitted_that_of_80_columns_is_shown(service, chromium):
    tab = sized(chromium, service, 1280, 800)
    tab.route("**/*width=*", lambda route: route.abort())
    tab.goto("/cat/house-1")
    tab.wait_for_selector("pre:visible")
    assert tab.locator("pre").text_content().index("\n") == 80 and tab.url.endswith("/cat/house-1")
    tab.context.close()


@pytest.mark.browser
@pytest.mark.parametrize(
    "size", [(320, 640), (360, 740), (390, 844), (768, 1024), (740, 360), (1280, 800), (2560, 1440), (3840, 2160)]
)
def test_the_controls_never_move(start, chromium, size):
    service = start()
    database = sqlite3.connect(service.database)
    for name, host in (("abc", "a.example"), ("b" * 40, "photographs-of-cats-" * 5 + ".example")):
        picture = photograph(name, size=(300, 400))
        row = name, host, f"http://{host}/", "2026-01-01", picture
        database.execute("INSERT INTO cats (id, source, url, fetched, picture) VALUES (?, ?, ?, ?, ?)", row)
    database.commit()
    tab, places = sized(chromium, service, *size, has_touch=True, is_mobile=True), []
    for name in ("house-1", "abc", "house-61", "b" * 40):
        tab.goto(f"/cat/{name}")
        tab.wait_for_selector(":root:not(.fitting)")
        boxes = [tab.locator(f"#{name}").bounding_box() for name in ("another", "share", "width", "permalink")]
        places.append([{side: round(pixels, 1) for side, pixels in box.items()} for box in boxes])
        first = tab.evaluate("document.querySelector('footer').querySelector('a, button, input').id")
        assert first == "another" and places[-1][0]["height"] >= 44
        assert tab.evaluate("document.documentElement.scrollWidth") == size[0]
        assert tab.locator("#permalink").bounding_box()["y"] + 20 < size[1]
    for place in places:
        assert place == places[0]
    tab.context.close()


@pytest.mark.browser
def test_space_and_n_are_for_another_cat_after_a_click_and_space_presses_a_button_by_keyboard(tab):
    tab.goto("/cat/house-5?width=40")
    for target, key in (("#another", " "), ("#restyle", " "), ("#copy", " "), ("#copy", "n"), ("#width", " ")):
        tab.click(target)
        tab.wait_for_load_state("networkidle")
        before = tab.evaluate(LINK)
        tab.keyboard.press(key)
        tab.wait_for_function(OTHER, arg=before)
        tab.wait_for_load_state("networkidle")
    before = tab.evaluate(LINK)
    tab.keyboard.press("Tab")
    tab.focus("#copy")
    tab.evaluate("navigator.clipboard.writeText('')")
    tab.keyboard.press(" ")
    tab.wait_for_function("async () => (await navigator.clipboard.readText()).length > 100")
    assert tab.evaluate(LINK) == before


@pytest.mark.browser
def test_pressing_the_art_selects_nothing(tab):
    tab.goto("/cat/house-5?width=60")
    box = tab.locator("figure").bounding_box()
    tab.mouse.move(box["x"] + 50, box["y"] + 50)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 300, box["y"] + 200, steps=5)
    tab.mouse.up()
    assert tab.evaluate("getSelection().toString()") == ""
    tab.keyboard.press("n")
    tab.wait_for_url(lambda url: "house-5?" not in url)
    assert not tab.evaluate("document.querySelector('figure').matches(':focus-visible')")  # shows it


@pytest.mark.browser
def test_a_long_touch_shows_the_photograph_and_no_menu(service, chromium):
    tab = sized(chromium, service, 360, 740, has_touch=True, is_mobile=True)
    tab.goto("/cat/house-5?width=40")
    assert tab.is_visible("text=hold to see the drawing")
    tab.evaluate("""window.menus = []
        addEventListener("contextmenu", event => setTimeout(() => menus.push(event.defaultPrevented)))""")
    box, touch = tab.locator("figure").bounding_box(), tab.context.new_cdp_session(tab)
    point = {"x": box["x"] + 100, "y": box["y"] + 100}
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
    tab.wait_for_timeout(1500)
    assert tab.evaluate("getComputedStyle(document.querySelector('figure'), '::after').opacity") == "1"
    assert False not in tab.evaluate("menus") and tab.evaluate("getSelection().toString()") == ""
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    tab.wait_for_function("() => getComputedStyle(document.querySelector('figure'), '::after').opacity === '0'")
    tab.context.close()


@pytest.mark.browser
@pytest.mark.parametrize("path", ["/cat/house-1?width=60", "/cat/house-1?width=60&style=ink"])
def test_high_contrast_keeps_the_colours_of_the_art(service, chromium, path):
    tab, pictures = sized(chromium, service, 800, 600), []
    for forced in ("none", "active"):
        tab.emulate_media(forced_colors=forced)
        tab.goto(path)
        assert tab.evaluate("matchMedia('(forced-colors: active)').matches") == (forced == "active")
        pictures.append(Image.open(io.BytesIO(tab.locator("pre").screenshot())).convert("RGB"))
    difference = ImageChops.difference(*pictures)
    assert max(high for _, high in difference.getextrema()) < 24, "no more than the page shines through between cells"
    tab.context.close()


@pytest.mark.browser
def test_on_paper_there_is_the_cat_on_white_without_controls(service, chromium):
    tab = sized(chromium, service, 800, 600, color_scheme="dark")
    tab.goto("/cat/house-1?width=60")
    tab.emulate_media(media="print")
    assert [tab.is_visible(part) for part in ("pre", "nav", "#width", "#permalink")] == [True, False, False, False]
    assert tab.is_visible("text=a ginger tabby") and not tab.is_visible("text=hold to see")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(250, 248, 244)"
    assert len(re.findall(rb"/Type\s*/Page\b", tab.pdf(format="A4"))) == 1
    tab.context.close()


@pytest.mark.browser
def test_share_asks_the_system_or_else_copies_the_link_and_says_so(tab, service):
    tab.goto("/cat/house-61?style=ink")
    tab.wait_for_selector(":root:not(.fitting)")
    tab.evaluate("navigator.share = undefined")
    tab.click("#share")
    tab.wait_for_selector(".toast >> text=link copied")
    assert tab.evaluate("navigator.clipboard.readText()") == f"{service.url}/cat/house-61?style=ink"
    tab.evaluate("() => { navigator.share = what => { window.shared = what; return Promise.reject('cancelled') } }")
    tab.click("#share")
    assert tab.evaluate("shared") == {"title": tab.title(), "url": f"{service.url}/cat/house-61?style=ink"}


@pytest.mark.browser
def test_save_downloads_the_picture_of_what_is_shown(tab, service):
    tab.goto("/cat/house-5?width=40&style=ink")
    with tab.expect_download() as download:
        tab.click("#save")
    assert download.value.suggested_filename == "house-5.png"
    assert download.value.path().read_bytes() == service.get("/cat/house-5.png?width=40&style=ink").data


@pytest.mark.browser
def test_the_slider_answers_at_once_and_cancels_what_was_asked_before(service, chromium):
    tab = sized(chromium, service, 1280, 800)
    tab.goto("/cat/house-5?width=60")
    asked: list[str] = []
    tab.on("requestfailed", lambda request: asked.append(request.url))
    tab.route("**/*width=100", lambda route: None)  # an answer that does not come
    drag = """width => {
        window.slider ??= document.querySelector("#width")
        slider.value = width
        slider.dispatchEvent(new Event("input", {bubbles: true}))
    }"""
    tab.evaluate(drag, "100")
    assert tab.evaluate("[document.body.ariaBusy, document.querySelector('output').textContent]") == ["true", "100"]
    tab.wait_for_timeout(200)
    tab.evaluate(drag, "90")
    tab.wait_for_url("**/cat/house-5?width=90")
    assert tab.locator("pre").text_content().index("\n") == 90 and tab.evaluate("document.body.ariaBusy") == "false"
    assert [urlsplit(url).query for url in asked] == ["width=100"]
    assert tab.evaluate("slider === document.querySelector('#width')"), "it is not replaced under the finger"
    tab.context.close()


@pytest.mark.browser
def test_the_last_ten_cats_are_not_shown_again(tab, service):
    shown = []
    tab.goto("/?width=20")
    for _ in range(25):
        shown.append(tab.evaluate(LINK))
        tab.keyboard.press("n")
        tab.wait_for_function(OTHER, arg=shown[-1])
    for i in range(25):
        assert shown[i] not in shown[max(0, i - 10):i]


@pytest.mark.browser
def test_style_and_width_are_redrawn_in_place_and_kept_in_the_address(tab):
    tab.goto("/cat/house-5")
    tab.wait_for_selector(":root:not(.fitting)")
    tab.evaluate("window.mark = 'not reloaded'")
    tab.click("text=in ink")
    tab.wait_for_url("**/cat/house-5?style=ink")
    assert tab.locator("pre b[style*=background]").count() == 0
    tab.evaluate("document.querySelector('#width').value = 80")
    tab.focus("#width")
    tab.keyboard.press("ArrowRight")
    tab.wait_for_url("**/cat/house-5?width=81&style=ink")
    assert tab.evaluate("document.activeElement.id") == "width"
    assert len(tab.locator("pre").text_content().split("\n")[0]) == 81
    assert tab.locator("#another").get_attribute("href") == "/?width=81&style=ink"
    assert tab.evaluate("window.mark") == "not reloaded"


@pytest.mark.browser
def test_copy_puts_plain_text_on_the_clipboard(tab, service):
    tab.goto("/cat/house-5?width=50&height=9")
    tab.click("#copy")
    tab.wait_for_selector(".toast >> text=text copied")
    text = tab.evaluate("navigator.clipboard.readText()")
    scheme = "light" if tab.evaluate("matchMedia('(prefers-color-scheme: light)').matches") else "dark"
    assert text == service.get(f"/cat/house-5.txt?width=50&height=9&background={scheme}").data.decode()
    assert text.count("\n") == 9


def test_links_and_the_form_keep_what_is_not_a_default(service):
    query = "width=50&height=9&style=ink"
    body = html.unescape(service.get(f"/cat/house-5?{query}&colors=16", CHROME).data.decode())
    for link in (f'property="og:url" content="{service.url}/cat/house-5', 'id="save" href="/cat/house-5.png'):
        assert f'{link}?{query}"' in body
    assert f'property="og:image" content="{service.url}/cat/house-5.png?{query}"' in body
    for name, link in (("another", "/"), ("permalink", "/cat/house-5")):
        assert f'id="{name}" href="{link}?{query}"' in body
    assert 'id="restyle" href="/cat/house-5?width=50&height=9"' in body
    hidden = re.findall(r'<input type="hidden" name="(\w+)" value="(\w+)">', body)
    assert hidden == [("height", "9"), ("style", "ink")]
    body = service.get("/cat/house-5?style=fill", CHROME).data.decode()
    assert 'id="permalink" href="/cat/house-5"' in body and 'type="hidden"' not in body
    body = service.get("/cat/house-5?width=80", CHROME).data.decode()
    assert 'id="permalink" href="/cat/house-5?width=80"' in body, "chosen by hand, it is no longer the window's"


def test_every_parameter_is_in_the_guide_and_in_the_usage(service):
    guide = " ".join(term for term, _ in json.loads(service.get("/help?format=json").data))
    usage = run("--help").stdout.decode()
    for field in dataclasses.fields(catscii.View):
        assert f"{field.name}=" in guide and f"[--{field.name} " in usage


def test_every_format_is_in_the_guide_and_in_the_errors(service):
    guide = service.get("/help?format=text").data.decode()
    suffixes = service.get("/cat/house-1.gif").data.decode()
    cats, analytics = ["/", "/cat/house-1"], ["/analytics"]
    named = {"all": [*cats, *analytics, "/help"], "cats": cats, "analytics": analytics, "none": []}
    for name, (_, suffix, pages) in catscii.FORMATS.items():
        assert re.search(rf"\b{name}\b", guide)
        assert not suffix or (f".{suffix}" in guide and re.search(rf"\b{suffix}\b", suffixes))
        for path in named["all"]:
            message = service.get(f"{path}?format=gif").data.decode()
            assert bool(re.search(rf"\b{name}\b", message)) == (path in named[pages]), (name, path)


@pytest.mark.browser
def test_the_photograph_shows_under_the_pointer_and_to_the_keyboard(tab):
    photographs = []
    tab.on("request", lambda request: request.url.endswith(".jpg") and photographs.append(request.url))
    tab.goto("/cat/house-5")
    shown = "() => getComputedStyle(document.querySelector('figure'), '::after').opacity"
    assert (tab.evaluate(shown), photographs) == ("0", [])
    plain = tab.screenshot()
    box = tab.locator("figure").bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.wait_for_function(f"{shown} === '1'")
    eventually(lambda: photographs and tab.screenshot() != plain)
    tab.mouse.move(0, 0)
    tab.wait_for_function(f"{shown} === '0'")
    tab.keyboard.press("Tab")
    tab.wait_for_function(f"{shown} === '1'")


@pytest.mark.browser
def test_everything_is_reached_by_keyboard_with_a_visible_focus(tab):
    tab.goto("/cat/house-5")
    tab.wait_for_selector(":root:not(.fitting)")
    reached = []
    for _ in range(10):
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("document.activeElement.id || document.activeElement.textContent"))
        assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    order = ["art", "another", "share", "save", "copy", "restyle", "width", "permalink", "visitors", "help"]
    assert reached == order


@pytest.mark.browser
def test_without_javascript_there_are_plain_links(service, chromium):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{service.url}/cat/house-5")
    assert not page.locator("#copy").is_visible() and not page.locator("#share").is_visible()
    assert page.locator("pre").is_visible() and page.locator("pre").text_content().index("\n") == 80
    page.click("#restyle")
    assert page.url.endswith("/cat/house-5?style=ink")
    page.click("button:text('draw')")
    assert page.url.endswith("/cat/house-5?width=80&style=ink")
    page.click("#another")
    assert urlsplit(page.url).path == "/" and page.locator("pre").count() == 1
    context.close()


@pytest.mark.browser
@pytest.mark.parametrize("forced", ["none", "active"])
@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("path", ["/cat/house-1", "/cat/house-1?style=ink", "/analytics", "/help", "/nothing"])
def test_pages_are_accessible(service, chromium, path, scheme, forced):
    from axe_playwright_python.sync_playwright import Axe

    context = chromium.new_context(color_scheme=scheme, reduced_motion="reduce", forced_colors=forced)
    page = context.new_page()
    page.goto(f"{service.url}{path}")
    page.wait_for_selector(":root:not(.fitting)")
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert forced == "active" or background == ("rgb(16, 16, 20)" if scheme == "dark" else "rgb(250, 248, 244)")
    assert page.evaluate("getComputedStyle(document.body, '::after').transitionDuration") == "0s"
    context.close()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_the_copied_text_is_for_the_background_of_the_page(tab, scheme):
    tab.emulate_media(color_scheme=scheme)
    tab.goto("/cat/house-5?width=50")
    with tab.expect_request("**/*.txt?*") as request:
        tab.click("#copy")
    assert request.value.url.endswith(f"/cat/house-5.txt?width=50&background={scheme}")


@pytest.mark.parametrize("path", ["/", "/cat/house-1?style=ink", "/analytics", "/help"])
def test_first_pages_are_small(service, path):
    response = service.get(path, CHROME | {"Accept-Encoding": "gzip"})
    assert response.headers["Content-Encoding"] == "gzip"
    assert len(response.data) < 60_000


def test_plain_text_shows_the_cat_without_colours(service):
    body = service.get("/cat/house-3?format=text").data.decode()
    assert body == catscii.to_text(catscii.render(catscii.draw_house_cat(3), 80, None, "ink", plain=True))


BAD_PARAMETERS = """
    width=19 width=241 width= width=80.0 width=1e2 width=-80 width=%D9%A8%D9%A0 height=0 height=241 height=%00
    style=bold format=gif width=40&width=50 width=%ff contrast=-1 contrast=101 contrast=high background=grey
"""


@pytest.mark.parametrize("query", [*BAD_PARAMETERS.split(), "width=" + "9" * 5000])
@pytest.mark.parametrize("path", ["/", "/cat/house-1"])
def test_a_bad_parameter_is_a_400_that_names_it_and_what_would_be_right(service, path, query):
    for headers, expected in ((CURL, "text"), (CHROME, "html"), ({"Accept": "application/json"}, "json")):
        response = service.get(f"{path}?{query}", headers)
        assert (response.status, kind(response)) == (400, expected)
        name = query.partition("=")[0]
        assert f"{name}: " in response.data.decode() and len(response.data) < 8000
        right = "from (20|1|0) to (240|100)|fill, ink|dark, light|html, ansi, text, json|given 2 times"
        assert re.search(right, response.data.decode())


@pytest.mark.parametrize("name", ["User-Agent", "Accept", "Accept-Encoding", "If-None-Match", "X-Real-IP"])
def test_a_header_that_is_not_utf8_harms_nothing(start, name):
    service = start(CLIENT_IP_HEADER="X-Real-IP")
    assert service.get("/cat/house-1", {name: b"caf\xe9"}).status == 200
    assert service.get("/nothing", {name: b"caf\xe9"}).status == 404
    assert not any("Traceback" in json.dumps(line) for line in service.log)


UNKNOWN_PATHS = """
    /nothing /cat/house-4294967296 /cat/house-01 /cat/ /cat/%3Cscript%3Ealert(1)%3C/script%3E /cat/%1b%5b31m /cat/%00
    /cat/%ff%fe /%ff /%ffhealth /%00 /analytics%00 /health%0a /cat/house-1%0a /cat/%2e%2e /%2e%2e/etc/passwd
    /cat/..%2f..%2fetc%2fpasswd /%E2%80%AE
"""


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        *((path, "GET", 404) for path in UNKNOWN_PATHS.split()),
        ("/" + "x" * 10_000, "GET", 404),
        *(("/", method, 405) for method in ("POST", "OPTIONS", "TRACE")),
        *(("/cat/house-1", "PUT", 405), ("/health", "PATCH", 405), ("/analytics", "DELETE", 405)),
        ("/panic", "GET", 500),
    ],
)
def test_errors_come_in_the_format_that_was_asked_for_and_carry_nothing_raw(service, path, method, status):
    terminal = "ansi" if status == 404 else "text"  # a cat that is lost as well
    for headers, expected in ((CURL, terminal), (CHROME, "html"), ({"Accept": "application/json"}, "json")):
        response = service.get(path, headers, method)
        assert (response.status, kind(response)) == (status, expected)
        body = response.data.decode()
        if expected == "ansi":
            *rows, body = body.splitlines()
            assert {len(row) for row in cells_of_ansi("\n".join(rows) + "\n")} == {60}
        assert "Traceback" not in body and "\x1b" not in body and "\0" not in body
        assert expected != "html" or "<script" not in body
        if expected == "json":
            assert json.loads(body)["status"] == status
        if status == 405:
            assert response.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(("suffix", "format"), [("json", "json"), ("txt", "text"), ("ansi", "ansi"), ("html", "html")])
def test_an_error_of_a_suffix_comes_in_its_format(service, suffix, format):
    response = service.get(f"/cat/nobody.{suffix}", CHROME)
    assert (response.status, kind(response)) == (404, format)
    response = service.get(f"/cat/house-1.{suffix}?width=0", CHROME)
    assert (response.status, kind(response)) == (400, format.replace("ansi", "text"))


VALUES = ["", "-1", "1e9", "80.5", "0x50", "%D9%A8%D9%A0", "%00", "%ff", "%F0%9F%90%88", "..%2f", "%0d%0aX:%20y", "+80"]


@pytest.mark.parametrize("name", ["width", "height", "style", "format"])
def test_every_parameter_refuses_what_it_cannot_be(service, name):
    for value in [*VALUES, "9" * 10_000, "%00" * 3_000]:
        response = service.get(f"/?{name}={value}")
        assert response.status == 400 and len(response.data) < 1000 and "X" not in response.headers
        assert f"{name}: " in response.data.decode("ascii")
    assert service.get(f"/cat/house-1?{name}x=%ff&{name.upper()}=%00").status == 200, "unknown names are nobody's"


def exchange(service: Running, request: bytes, patience: float = 60) -> bytes:
    """All that comes back for these bytes, until the service closes the connection or is silent for so many seconds."""
    with connected(service, patience=patience) as connection:
        connection.sendall(request)
        return read_all(connection)


# What a proxy in front of the service may read differently, so that the two do not agree where the next request begins.
DOUBTFUL_LINES = [
    *(b"GET /\thealth HTTP/1.1", b"GET /\x0bhealth HTTP/1.1", b"GET /\x0c HTTP/1.1", b"GET /\0 HTTP/1.1"),
    *(b"GET /\rX HTTP/1.1", b"GET /\r HTTP/1.1", b"GET\t/ HTTP/1.1", b"GET /\x0bHTTP/1.1", b"GET / HTTP/1.1\r"),
    *(b" GET / HTTP/1.1", b"\tGET / HTTP/1.1", b"GET /  HTTP/1.1", b"GET / HTTP/1.1 ", b"GET / HTTP/1.1\t"),
    *(b"GET / HTTP/1.1\0", b"GET / x HTTP/1.1", b"GET / HTTP/1.1 HTTP/1.1", b"GET / HTTP/1.1;a", b"GET /", b"GET"),
    *(b"GET / http/1.1", b"GET / HTTP/1", b"GET / HTTP/1.", b"GET / HTTP/.1", b"GET / HTTP/11", b"GET / HTTP/1.1.1"),
    *(b"GET / HTTP/01.1", b"GET / HTTP/1.10", b"GET / HTTP/1,1", b"GET / HTTP/+1.1", b"GET / HTTPS/1.1", b"GET / 1.1"),
    *(b"Get / HTTP/1.1", b"G\0ET / HTTP/1.1", b"G(T / HTTP/1.1", b"GET: / HTTP/1.1", b"G\xc9T / HTTP/1.1"),
    *(b"\nGET / HTTP/1.1", b"\rGET / HTTP/1.1", b"\n\n\r\rGET / HTTP/1.1", b"\r\n GET / HTTP/1.1"),
    *(b"GET health HTTP/1.1", b"GET /health#x HTTP/1.1", b"GET \\health HTTP/1.1", b"GET ?/ HTTP/1.1"),
]
DOUBTFUL_HEADERS = [
    *(b" X: a", b"\tX: a", b"\x0bX: a", b"\x0cX: a", b" ", b"\t", b"X: a\r\n b", b"X: a\r\n\tb", b"X:\r\n a"),
    *(b"X: a\r\n ", b"X : a", b"X\t: a", b"X\x0b: a", b"X", b"X a", b": a", b":", b"X y: a", b"X\xe9: a", b"X(): a"),
    *(b"X: a\rb", b"X: a\r", b"\rX: a", b"X\r: a", b"X: a\r\rY: b", b"X: a\nb: c", b"X: a\0b", b"X\0Y: a", b"\0X: a"),
    *(b'"X": a', b"X;: a", b"X/Y: a"),
    *(b"Content-Length: 1_0", b"Content-Length: \x0b5", b"Content-Length: 5\x0c", b"Content-Length: 0x5"),
    *(b"Content-Length:", b"Content-Length: 5 5", b"Content-Length: 5, 6", b"Content-Length: 5,"),
    *(b"Content-Length: 5.0", b"Content-Length: 5e0", b"Content-Length: \xb2", b'Content-Length: "5"'),
    *(b"Content-Length : 5", b"Content-Length\0: 5", b"Content-Length: 5\r\nContent-Length: 05, 6"),
    *(b"Transfer-Encoding:", b"Transfer-Encoding:\r\n chunked", b"Transfer-Encoding: chunked, chunked"),
    *(b"Transfer-Encoding: xchunked", b"Transfer-Encoding: chunked, gzip", b"Transfer-Encoding: gzip, chunked"),
    *(b"Transfer-Encoding: chunked;q=1", b"Transfer-Encoding: \"chunked\"", b"Transfer-Encoding: identity"),
    *(b"Transfer-Encoding: \x0bchunked", b"Transfer-Encoding: chunked\x0c", b"Transfer-Encoding: chunked chunked"),
    *(b"Transfer-Encoding: identity, chunked", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
    *(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", b"Transfer-Encoding\r\n: chunked"),
    *(b"Transfer-Encoding: chunked\r\nContent-Length: 5", b"Content-Length: 0\r\nTransfer-Encoding: chunked"),
]
DOUBTFUL_BODIES = [
    *(b"0\n\r\n", b"0\r\n\n", b"0\n\n", b"0\r\r\n", b"0\rX\r\n\r\n", b"5\nabcde\r\n0\r\n\r\n"),
    *(b"5;a\nabcde\r\n0\r\n\r\n", b"5;a\rb\r\nabcde\r\n0\r\n\r\n", b"5;a=\"\n\"\r\nabcde\r\n0\r\n\r\n"),
    *(b"5\r\nabcde\n0\r\n\r\n", b"5\r\nabcde\r0\r\n\r\n", b"5\r\nabcdef\r\n0\r\n\r\n", b"5\r\nabcde0\r\n\r\n"),
    *(b"%s\r\nabcde\r\n0\r\n\r\n" % size for size in (b"", b" 5", b"0x5", b"+5", b"-5", b"5_0", b"5,", b"5\0")),
    *(b"%s\r\nabcde\r\n0\r\n\r\n" % size for size in (b"5\t5", b"5 5", b"\xb2", b";a", b"g", b"5\x0c", b"\x0b5")),
    *(b"0\r\nX: a\n\r\n", b"0\r\nX\r\n\r\n", b"0\r\nX: a\r\n b\r\n\r\n", b"0\r\n X: a\r\n\r\n", b"0\r\nX : a\r\n\r\n"),
]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n" + b"X-Fill: %s\r\n" % (b"x" * 1000) * 64 + b"\r\n", 431),
        (b"GET /%s HTTP/1.1\r\n\r\n" % (b"x" * 65536), 431),
        (b"POST / HTTP/1.1\r\nContent-Length: 999999\r\n\r\n", 413),
        (b"GET http://[::1/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: +4\r\n\r\nabcd", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -4\r\n\r\nabcd", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;\n\r\na\r\n0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 999999\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nExpect: 100-continue\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: \x1b[31m\nY: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX\0: a\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        *((b"%s\r\nHost: a\r\n\r\n" % line, 400) for line in DOUBTFUL_LINES),
        *((b"GET / HTTP/1.1\r\n%s\r\nHost: a\r\n\r\nabcde" % header, 400) for header in DOUBTFUL_HEADERS),
        *((b"GET / HTTP/1.1\r\nHost: a\r\n%s\r\n\r\nabcde" % header, 400) for header in DOUBTFUL_HEADERS),
        *((b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%s" % body, 400) for body in DOUBTFUL_BODIES),
    ],
)
def test_requests_of_doubtful_shape_get_one_refusal_and_the_connection_is_closed(service, request_, status):
    answer = exchange(service, request_ + b"GET /cat/house-1 HTTP/1.1\r\n\r\n" * (status not in (413, 431)))
    assert answer.startswith((b"HTTP/1.1 %d " % status, b"HTTP/1.0 %d " % status))
    assert len(re.findall(rb"(?m)^HTTP/1\.", answer)) == 1
    assert re.findall(rb"Connection: (.*)\r\n", answer) == [b"close"]
    assert b"Traceback" not in answer and b"\x1b" not in answer
    assert b"\r\nContent-Security-Policy: default-src 'none'" in answer and answer.count(b"%d " % status) > 1


BODY = b"GET /nothing HTTP/1.1\r\n\r\n"  # 25 bytes, which must not be taken for a request
CHUNKED = b"GET /health HTTP/1.1\r\nTransfer-Encoding:"


@pytest.mark.parametrize(
    ("request_", "status", "kept"),
    [
        (b"\r\nGET /health HTTP/1.1\r\n\r\n", 200, True),
        (b"GET http://x.example/health HTTP/1.1\r\nHost: y\r\n\r\n", 200, True),
        (b"GET HTTP://x.example:80/health?a HTTP/1.1\r\nHost:\r\n\r\n", 200, True),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", None, False),
        (b"M-SEARCH!#$%&'*+.^_`|~ / HTTP/1.1\r\n\r\n", 405, True),
        (b"GET /health HTTP/1.1\r\nX:a\r\nX: \t a \t \r\n!#$%&'*+.^_`|~:\r\nX: \xff\r\n\r\n", 200, True),
        (b"GET /health HTTP/1.1\r\nContent_Length: 26\r\nTransfer_Encoding: chunked\r\n\r\n", 200, True),
        (b"GET /health HTTP/1.1\r\ncontent-length:25\r\n\r\n" + BODY, 200, False),
        (b"GET /health HTTP/1.1\r\nContent-Length: 00025\r\n\r\n" + BODY, 200, False),
        # These may be refused as well (RFC 9110, 8.6; RFC 9112, 2.2, 6.3 and 7.1.1).
        (CHUNKED + b"\t Chunked \r\n\r\n0019\r\n" + BODY + b"\r\n000\r\n\r\n", None, False),
        (CHUNKED + b"chunked\r\n\r\n19;a=b;c=\"d\"\r\n" + BODY + b"\r\n0;e\r\n\r\n", None, False),
        (CHUNKED + b"chunked\r\n\r\n19\r\n" + BODY + b"\r\n0\r\nContent-Length: 9\r\nX:\r\n\r\n", None, False),
        (CHUNKED + b"chunked\r\n\r\n19 ; a\r\n" + BODY + b"\r\n0\r\n\r\n", None, False),
        (b"GET //health HTTP/1.1\r\nConnection: close\r\n\r\n", None, False),
        (b"GET /health HTTP/1.1\r\nContent-Length: 25, 25\r\n\r\n" + BODY, None, False),
        (b"GET /health HTTP/1.1\r\n" + b"Content-Length: 25\r\n" * 2 + b"\r\n" + BODY, None, False),
        (b"GET /health HTTP/1.1\nHost: x\n\n", None, False),
        (b"GET /health HTTP/2.0\r\n\r\n", None, False),
    ],
)
def test_requests_that_are_unusual_and_right_are_read_as_they_are_meant(service, request_, status, kept):
    """Whole and byte by byte. `status` None: it may be refused. `kept`: and the connection stays open."""
    for size in (len(request_), 1):
        with connected(service) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(ConnectionError):
                for start in range(0, len(request_), size):
                    connection.sendall(request_[start : start + size])
                connection.sendall(b"GET /help HTTP/1.1\r\nConnection: close\r\n\r\n")
            answer = read_all(connection)
        statuses = list(map(int, re.findall(rb"HTTP/1\.[01] (\d+) ", answer)))
        assert len(statuses) == 2 if kept else len(statuses) in (1, 2)
        assert statuses[1:] in ([], [200]) and (statuses[0] == status or not status)
        assert len(statuses) == 2 or answer.count(b"Connection: close") == 1


def test_who_asks_whether_to_send_a_body_has_the_answer_at_once(service):
    request = b"%s /health HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    for method, length, status in ((b"GET", 0, b"200"), (b"POST", 1, b"405")):
        answer = exchange(service, request % (method, length))
        assert re.findall(rb"HTTP/1.1 (\d+)|Connection: (close)", answer) == [(status, b""), (b"", b"close")]


def test_a_refusal_is_in_the_format_asked_for_and_logged_once(start):
    service = start()
    for accept, start_of_body in (
        (b"application/json", b'{"status": 413, "error": "a request\'s body has less than 8,192 bytes here'),
        (b"text/html", b"<!DOCTYPE html>"),
        (b"text/plain", b"413 Request Entity Too Large: a request's body"),
    ):
        head = b"POST /cat/house-1 HTTP/1.1\r\nAccept: " + accept
        answer = exchange(service, head + b"\r\nContent-Length: 8192\r\n\r\n")
        headers, body = answer.split(b"\r\n\r\n")
        assert body.startswith(start_of_body) and headers.count(b"Connection: close") == 1
        assert b"\r\nContent-Type: " + accept in headers
    service.stop()
    lines = [line["fields"] for line in service.log if line["fields"].get("status") == 413]
    assert [(line["method"], line["path"]) for line in lines] == [("POST", "/cat/house-1")] * 3


def test_a_connection_is_kept_for_any_answer_whose_length_is_known(service):
    tag = service.get("/cat/house-1", {}).headers["ETag"].encode()
    host = service.url.removeprefix("http://").encode()
    cached = b"GET /cat/house-1 HTTP/1.1\r\nHost: %s\r\nIf-None-Match: %s\r\n" % (host, tag)
    head, missing = b"HEAD / HTTP/1.1\r\n\r\n", b"GET /nothing HTTP/1.1\r\n\r\n"
    answer = exchange(service, cached + b"\r\n" + head + missing + cached + b"Connection: close\r\n\r\n")
    assert re.findall(rb"HTTP/1.1 (\d+)|Connection: (close)", answer) == [
        *((status, b"") for status in (b"304", b"200", b"404", b"304")),
        (b"", b"close"),
    ]


def test_every_answer_has_the_security_headers_and_none_names_the_software(service):
    for path in ("/", "/cat/house-1", "/analytics", "/health", "/metrics", "/favicon.ico", "/nothing", "/panic"):
        for method in ("GET", "POST"):
            headers = service.get(path, CHROME, method).headers
            policy = headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
            assert "unsafe-inline" not in policy.replace("style-src-attr 'unsafe-inline'", "")
            assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"
            assert "Server" not in headers and not re.search("waitress|bottle|python", str(headers), re.IGNORECASE)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory, country_db: str) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("fuzzed")
    service = Running(folder, GEOLITE2_COUNTRY_DB=country_db, CLIENT_IP_HEADER="X-Real-IP")
    yield service
    assert service.stop() == 0
    assert not any("Traceback" in json.dumps(line) or line["level"] == "ERROR" for line in service.log)


PIECES = re.findall(r"\S+", "/ cat house-1 analytics .. %2e %2f %00 %ff ? & = width height style format 80 ink html %")
HEADERS = re.findall(r"\S+", "Accept User-Agent Accept-Encoding If-None-Match X-Real-IP Host Range Cookie")
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=9), max_size=8).map("".join)
values = st.binary(max_size=60) | st.sampled_from([b"*/*", b"text/html;q=0", b"gzip;q=", b'"', b"::1%x", b"keep-alive"])


@settings(max_examples=rounds(300), deadline=None)
@given(
    st.sampled_from(["GET", "GET", "GET", "HEAD", "POST", "OPTIONS", "BREW"]),
    texts,
    texts,
    st.dictionaries(st.sampled_from(HEADERS), values),
)
def test_no_request_makes_the_service_fail(fuzzed, method, path, query, headers):
    lines = [f"{method} /{path}?{query} HTTP/1.1".encode(), b"Connection: close"]
    lines += [name.encode() + b": " + re.sub(rb"[\r\n]", b"", value) for name, value in headers.items()]
    answer = exchange(fuzzed, b"\r\n".join(lines) + b"\r\n\r\n")
    status = re.match(rb"HTTP/1\.[01] ([234]\d\d) ", answer)
    assert status, answer[:200]
    assert method in ("GET", "HEAD") or status[1] in (b"400", b"404", b"405")


def test_permalinks_can_be_cached_and_the_random_cat_cannot(service):
    assert service.get("/").headers["Cache-Control"] == "no-store" and "ETag" not in service.get("/").headers
    first = service.get("/cat/house-5")
    assert first.headers["Cache-Control"] == "public, max-age=3600"
    again = service.get("/cat/house-5", CURL | {"If-None-Match": f'"other", {first.headers["ETag"]}'})
    assert (again.status, again.data, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
    assert service.get("/cat/house-5", CURL | {"If-None-Match": "*"}).status == 304
    assert service.get("/cat/house-5", CURL | {"If-None-Match": '"other"'}).status == 200
    assert service.get("/cat/house-6").headers["ETag"] != first.headers["ETag"]


def test_pages_are_compressed_for_those_who_take_it(service):
    plain = service.get("/cat/house-7", CHROME)
    packed = service.get("/cat/house-7", CHROME | {"Accept-Encoding": "br, gzip;q=0.8"})
    assert "Content-Encoding" not in plain.headers and packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.data) == plain.data and len(packed.data) < 40_000
    assert "Content-Encoding" not in service.get("/cat/house-7", CHROME | {"Accept-Encoding": "gzip;q=0, br"}).headers
    assert "Accept-Encoding" in plain.headers["Vary"] and "User-Agent" in plain.headers["Vary"]


def test_head_is_get_without_a_body(service):
    for path in ("/cat/house-8", "/analytics", "/health", "/favicon.ico", "/nothing"):
        get, head = service.get(path), service.get(path, method="HEAD")
        assert (head.status, head.data) == (get.status, b"")
        assert head.headers["Content-Length"] == get.headers["Content-Length"]


def test_the_page_has_what_a_browser_and_a_screen_reader_need(service):
    body = service.get("/cat/house-61", CHROME).data.decode()
    title = "A white cat with one blue and one amber eye"
    for part in (
        '<html lang="en">',
        'name="viewport"',
        f"<title>{title} &middot; catscii",
        f'property="og:title" content="{title}, an ASCII cat"',
        f'property="og:image:alt" content="{title} as coloured ASCII art"',
        f'aria-label="{title}, drawn in 80 by 30 coloured characters',
        'rel="icon"',
        'href="/analytics"',
        'href="/"',
    ):
        assert part in body
    assert service.get("/favicon.ico").headers["Content-Type"] == "image/png"


def test_a_house_cat_is_described_and_a_photograph_has_its_id_and_source(start, upstream):
    service = start(CAT_SOURCES=upstream.cataas)
    cat = service.json("/cat/house-18")
    assert (cat["id"], cat["source"], cat["description"]) == ("house-18", "house", "a ginger tabby with green eyes")
    eventually(service.stored)
    cat = service.json("/")
    assert cat["description"] == ""
    body = service.get(f"/cat/{cat['id']}", CHROME).data.decode()
    assert f"<title>Cat {cat['id']} from {cat['source']} &middot;" in body
    assert f'photo: <a href="{html.escape(cat["credit"])}" rel="external">{cat["source"]}</a>' in body


def test_a_page_that_is_not_there_has_a_cat_of_its_own(service):
    for headers in (CHROME, CURL):
        cats = {re.sub(r"'/\w+'", "", service.get(f"/nothing{i}", headers).data.decode()) for i in range(8)}
        assert len(cats) > 4
        assert service.get("/nothing1", headers).data == service.get("/nothing1", headers).data
    assert b"<pre" not in service.get("/cat/house-1?width=0", CHROME).data, "there is nothing lost here"


def test_crawlers_are_told_to_leave_variations_of_the_random_cat(service):
    response = service.get("/robots.txt", CHROME)
    assert (response.status, response.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    rules = response.data.decode().splitlines()
    assert rules == ["User-agent: *", "Allow: /", "Disallow: /?", "Disallow: /panic"]


def test_health_and_metrics(service):
    health = service.get("/health")
    assert (health.status, json.loads(health.data)["status"]) == (200, "ok")
    service.get("/cat/house-9")
    metrics = service.get("/metrics")
    assert metrics.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert re.search(r'(?m)^catscii_requests_total\{route="/cat/<cat_id>",status="200"\} \d+$', metrics.data.decode())
    assert re.search(r'(?m)^catscii_visits_total\{country="ZZ"\} \d+$', metrics.data.decode())


def test_there_is_a_cat_even_while_the_store_cannot_be_read(start):
    service = start()
    sql(service.database, "ALTER TABLE cats RENAME TO gone")
    assert service.json("/")["id"].startswith("house-")


def test_there_are_figures_while_visits_cannot_be_read(start):
    service = start()
    sql(service.database, "ALTER TABLE visits RENAME TO gone")
    service.get("/health")
    assert "catscii_requests_total" in samples(service) and "catscii_visits_total" not in samples(service)
    assert service.get("/").status == 200


@pytest.fixture
def visited(start) -> Running:
    """A service with visits of today, of the first of the last 30 days, and of the day before that."""
    service = start()
    days = [(datetime.now(UTC) - timedelta(ago)).strftime("%Y-%m-%d") for ago in (0, 0, 29, 29, 30)]
    rows = zip(days, ("FR", "ZZ", "FR", "QQ", "SG"), (3, 1, 1000, 2, 20), strict=True)
    with contextlib.closing(sqlite3.connect(service.database)) as connection, connection:
        connection.executemany("INSERT INTO visits VALUES (?, ?, ?)", rows)
    return service


def test_analytics_for_programs(visited):
    today = datetime.now(UTC).date()
    first = str(today - timedelta(29))
    answer = visited.json("/analytics")
    assert list(answer) == ["visits", "today", "last_30_days", "days", "countries"]
    assert (answer["visits"], answer["today"], answer["last_30_days"]) == (1026, 4, 1006)
    assert answer["days"] == {str(today - timedelta(ago)): 0 for ago in range(30)} | {first: 1002, str(today): 4}
    assert list(answer["days"]) == sorted(answer["days"])
    assert list(answer["countries"].items()) == [("FR", 1003), ("SG", 20), ("QQ", 2), ("ZZ", 1)]
    assert visited.visits() == b"FR: 1003\nSG: 20\nQQ: 2\nZZ: 1\n"
    response = visited.get("/analytics?format=csv")
    assert response.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert response.data.decode() == (
        f"day,country,visits\n{first},FR,1000\n{first},QQ,2\n{today},FR,3\n{today},ZZ,1\n"
    )
    assert visited.get("/?format=csv").status == 400  # a cat is no table
    assert b"'xml' is not one of html, ansi, text, json, csv" in visited.get("/analytics?format=xml").data


def test_analytics_in_the_terminal(visited):
    lines = visited.get("/analytics").data.decode().splitlines()
    grid = cells_of_ansi("\n".join(lines[:22]) + "\n")
    assert "".join(glyph for row in grid for glyph, _, _ in row) == "".join(
        catscii.world_map({"FR": 1003, "SG": 20, "QQ": 2}).rows
    )
    plain = [re.sub("\x1b[^m]*m", "", line) for line in lines]
    assert max(map(len, plain)) <= 80
    assert plain[-2:] == ["Visits: 1,026 in all, 4 today, 1,006 in the last 30 days", "█" + 28 * " " + "▁"]
    rows = [re.fullmatch(r"(\S+)\s+(\S+)\s+(\S+)\s+(\S+)", line) for line in plain[23:27]]
    assert [row.group(1, 3, 4) for row in rows if row] == [
        ("France", "1,003", "97.8%"),
        ("Singapore", "20", "1.9%"),
        ("QQ", "2", "0.2%"),
        ("Unknown", "1", "0.1%"),
    ]
    assert [row[2] for row in rows if row] == ["█" * 49, "█", "▏", "▏"]
    assert plain[28:-2] == [*catscii.PRIVACY.split("\n"), ""]


def test_the_longest_names_and_counts_fit_the_terminal(start):
    service = start()
    with contextlib.closing(sqlite3.connect(service.database)) as connection, connection:
        rows = [("2026-01-01", code, 123_456_789) for code in catscii.world().names]
        connection.executemany("INSERT INTO visits VALUES (?, ?, ?)", rows)
    text = re.sub("\x1b[^m]*m", "", service.get("/analytics").data.decode())
    assert max(map(len, text.splitlines())) == 80
    assert all(name in text for name in catscii.world().names.values())


def test_analytics_for_people(visited):
    page = visited.get("/analytics", CHROME).data.decode()
    assert "Visits: 1,026 in all, 4 today, 1,006 in the last 30 days" in page
    assert 'aria-label="Map of the world. Most visits: France, Singapore, QQ, Unknown"' in page
    assert f'aria-label="Visits a day: 1002{28 * ", 0"}, 4"' in page
    assert page.count('role="img"') == 2
    flags = {"🇫🇷": "France", "🇸🇬": "Singapore", "🌐": "Unknown"}
    for flag, name in flags.items():
        assert f'<span aria-hidden="true">{flag}</span> {name}</th>' in page
    assert "<td>1,003</td><td>97.8%</td>" in page and "--length:100.0%" in page and "--length:2.0%" in page
    map_ = catscii.world_map({"FR": 1003, "SG": 20, "QQ": 2})
    assert catscii.to_html(map_) in page
    assert catscii.PRIVACY in page and "Set-Cookie" not in visited.get("/analytics", CHROME).headers


def test_analytics_of_no_visits_are_friendly(start):
    service = start()
    for headers in (CHROME, CURL):
        text = service.get("/analytics", headers).data.decode()
        assert "Nobody has seen a cat here yet" in text and catscii.PRIVACY in text and "<table" not in text
    assert service.visits() == b""
    assert service.get("/analytics?format=csv").data == b"day,country,visits\n"
    answer = service.json("/analytics")
    assert (answer["visits"], answer["today"], answer["last_30_days"], answer["countries"]) == (0, 0, 0, {})
    assert [*answer["days"].values()] == [0] * 30


@pytest.mark.parametrize(("maker", "credited"), [("DBIP-Country-Lite", True), ("GeoLite2-Country", False)])
def test_dbip_is_credited_where_its_countries_are_shown(start, tmp_path, maker, credited):
    path = str(tmp_path / "country.mmdb")
    MMDBWriter(6, maker, languages=["en"], ipv4_compatible=True).to_db_file(path)
    service = start(GEOLITE2_COUNTRY_DB=path)
    page, text = (service.get("/analytics", headers).data.decode() for headers in (CHROME, CURL))
    for shown in (page, service.get("/cat/house-1", CHROME).data.decode()):
        assert ('<a href="https://db-ip.com" rel="external">IP Geolocation by DB-IP</a>' in shown) == credited
    assert ("IP Geolocation by DB-IP, https://db-ip.com\n" in text) == credited


# ---------------------------------------------------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------------------------------------------------


def test_logs_are_json_lines_in_the_shape_of_the_rust_service(start):
    service = start(LOG_LEVEL="info")
    service.get("/cat/house-1?width=40")
    service.get("/panic")
    assert service.stop() == 0
    for line in service.log:
        assert set(line) == {"timestamp", "level", "target", "fields"}
        assert line["timestamp"].endswith("Z") and datetime.fromisoformat(line["timestamp"]).tzinfo
        assert line["target"] == "catscii"
    messages = service.messages()
    assert re.fullmatch(r"Listening on 127\.0\.0\.1:\d+", messages[1])
    assert messages[0] == "No countries: GEOLITE2_COUNTRY_DB is not set"
    assert messages[-1] == "Initiating graceful shutdown"
    access = next(line["fields"] for line in service.log if line["fields"].get("path") == "/cat/house-1")
    assert (access["method"], access["status"], access["country"]) == ("GET", 200, "ZZ") and access["ms"] > 0
    failure = next(line for line in service.log if line["level"] == "ERROR")
    assert "RuntimeError" in failure["fields"]["error"]
    assert sum("RuntimeError" in json.dumps(line) for line in service.log) == 1


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_every_request_that_arrived_before_the_signal_is_answered(start, signal_number):
    service = start(command=patched("catscii.GRACE_SECONDS = 60"))  # a busy machine takes its time
    service.process.send_signal(signal.SIGSTOP)  # so that all wait at the door when the signal comes
    waiting = [connected(service) for _ in range(24)]
    for seed, connection in enumerate(waiting):
        connection.sendall(b"GET /cat/house-%d?format=text HTTP/1.1\r\nHost: x\r\n\r\n" % seed)
    service.process.send_signal(signal_number)
    service.process.send_signal(signal.SIGCONT)
    assert service.stop(signal_number) == 0
    for connection in waiting:
        answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and len(answer.partition(b"\r\n\r\n")[2]) == 30 * 81
        connection.close()
    assert "Initiating graceful shutdown" in service.messages()
    with pytest.raises(ConnectionRefusedError):
        connected(service)
    assert not Path(f"{service.database}-wal").exists(), "the database is closed"


def test_requests_sent_ahead_are_all_answered_before_the_end(start):
    service = start()
    with connected(service) as connection:
        service.process.send_signal(signal.SIGSTOP)
        connection.sendall(b"GET /cat/house-1?format=text HTTP/1.1\r\nHost: x\r\n\r\n" * 5)
        service.process.send_signal(signal.SIGTERM)
        service.process.send_signal(signal.SIGCONT)
        answers = read_all(connection)
    assert answers.count(b"HTTP/1.1 200 OK") == 5 and answers.count(b"Connection: close") == 1


def test_the_installed_waitress_has_all_that_the_server_relies_on():
    server = catscii.Server(lambda environ, start: [], socket.create_server(("127.0.0.1", 0)), None, lambda: None)
    ours, theirs = socket.socketpair()
    channel = waitress.channel.HTTPChannel(server, ours, ("127.0.0.1", 1), server.adj, map={})
    request = waitress.parser.HTTPRequestParser(server.adj)
    assert request.received(b"GET / HTTP/1.1\r\n\r\n") == 18
    parts = {
        channel: "received service handle_close readable del_channel connected requests request outbuf_lock "
        "total_outbufs_len close_when_flushed will_close task_class error_task_class parser_class addr socket",
        request: "received parse_header error headers completed expect_continue header_plus version",
        waitress.task.WSGITask(channel, request): "get_environment set_close_on_finish has_body version channel",
        waitress.task.ThreadedTaskDispatcher(): "add_task set_thread_count shutdown queue",
        waitress.wasyncore: "readwrite",
        waitress.channel: "ClientDisconnected",
        waitress.parser: "ParsingError",
    }
    missing = [f"{part}: {name}" for part, names in parts.items() for name in names.split() if not hasattr(part, name)]
    assert not missing, f"waitress {importlib.metadata.version('waitress')} has no longer {missing}"
    source = SCRIPT.read_text()
    header = source[source.index("# waitress parses requests") : source.index("REQUEST_HEAD = ")]
    for part in ("Adjustments", "HTTPChannel", "HTTPRequestParser", "WSGITask", "ThreadedTaskDispatcher", "readwrite"):
        assert part in header
    for each in (ours, theirs):
        each.close()


def unread(service: Running, paths: list[str], times: int) -> list[socket.socket]:
    """A connection for each path, which asks for it that many times and reads nothing."""
    connections = [connected(service, 5, receive_buffer=4096) for _ in paths]  # the system keeps little for it
    for connection, path in zip(connections, paths, strict=True):
        connection.sendall(b"GET %s HTTP/1.1\r\n\r\n" % path.encode() * times)
    return connections


def files(service: Running) -> int:
    return len(os.listdir(f"/proc/{service.process.pid}/fd"))


def test_clients_that_ask_on_and_on_and_read_nothing_wait_and_are_then_given_up(start):
    service = start(command=patched("catscii.SILENT_CONNECTION_SECONDS = 8"))
    assert service.get("/cat/house-1?width=240&height=240").status == 200
    open_before = files(service)
    greedy = unread(service, ["/cat/house-1?width=240&height=240"] * 12, 120)
    eventually(lambda: files(service) >= open_before + len(greedy))
    assert service.get("/").status == 200
    assert files(service) >= open_before + len(greedy), "the others did not wait for these to be given up"
    assert resident_megabytes(service.process.pid) < 100
    assert counted(service) < 2 + 12 * 20, "what nobody reads is not drawn"
    eventually(lambda: files(service) <= open_before)
    for connection in greedy:
        connection.close()
    assert service.stop() == 0


def test_of_clients_who_together_leave_too_much_unread_the_greediest_are_given_up(start):
    service = start(command=patched("catscii.MAX_UNSENT_IN_ALL = 2 << 20"))
    service.get("/cat/house-0?width=240&format=json")
    open_before = files(service)
    same = unread(service, ["/cat/house-0?width=240&format=json"] * 50, 40)
    time.sleep(1)
    assert files(service) >= open_before + len(same), "they all wait for the same bytes, which take no more room"
    others = unread(service, [f"/cat/house-{seed}?width=240&format=json" for seed in range(1, 13)], 40)
    for connection in others:
        with contextlib.suppress(ConnectionError):
            connection.recv(1, socket.MSG_PEEK)
    eventually(lambda: files(service) <= open_before + len(same) + 7)  # 2 MiB of 282 kB each
    assert service.get("/health").status == 200
    for connection in [*same, *others]:
        connection.close()
    assert service.stop() == 0


def test_a_client_that_asks_ahead_and_reads_steadily_is_not_given_up(start):
    service = start(command=patched("catscii.REQUEST_SECONDS = catscii.SILENT_CONNECTION_SECONDS = 1"))
    path, answer = b"/cat/house-1?width=240&height=240", b""
    with connected(service, receive_buffer=65536) as connection:
        request = b"GET %s HTTP/1.1\r\nX: %s\r\n\r\n" % (path, b"x" * 300)
        connection.sendall(request * 29 + request.replace(b"\r\nX", b"\r\nConnection: close\r\nX"))
        while data := connection.recv(1 << 17):
            answer += data
            time.sleep(0.02)
    assert answer.count(b"HTTP/1.1 200 OK") == 30 and whole_answers(answer) == 30


@pytest.mark.parametrize("value", [b"close", b"Close", b"TE, close", b"keep-alive,Close"])
def test_a_connection_is_closed_if_the_client_says_so(service, value):
    request = b"GET /health HTTP/1.1\r\nConnection: %s\r\n\r\n" % value
    assert whole_answers(exchange(service, request * 2)) == 1


def test_a_terminal_that_nobody_reads_does_not_stop_the_service(tmp_path):
    leader, follower = pty.openpty()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {"PATH": os.environ["PATH"], "PORT": str(port), "HOST": "127.0.0.1", "CAT_SOURCES": ""}
    variables["ANALYTICS_DB"] = str(tmp_path / "catscii.db")
    with subprocess.Popen([sys.executable, str(SCRIPT)], env=variables, stderr=follower) as process:
        try:
            for _ in range(rounds(400)):
                patient = urllib3.Retry(9, backoff_factor=0.05)
                assert http.request("GET", f"http://127.0.0.1:{port}/health", retries=patient).status == 200
            process.terminate()
            assert process.wait(10) == 0
        finally:
            process.kill()
    os.close(leader)
    os.close(follower)


def test_clients_behind_a_proxy_have_a_line_each(start):
    service = start(command=patched("catscii.THREADS = 1"), CLIENT_IP_HEADER="X-Real-IP")
    head = b"Host: x\r\nX-Real-IP: 1.1.1.1, 192.0.2."
    service.process.send_signal(signal.SIGSTOP)  # so that all of them wait when it goes on
    greedy = [connected(service) for _ in range(30)]
    for seed, connection in enumerate(greedy):
        connection.sendall(b"GET /cat/house-%d?width=240&height=240 HTTP/1.1\r\n%s1\r\n\r\n" % (seed, head))
    with connected(service) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n%s2\r\n\r\n" % head)
        service.process.send_signal(signal.SIGCONT)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200") and counted(service) < 25
    for connection in greedy:
        connection.close()


def test_a_request_has_a_hundred_headers_at_most(service):
    for count, status in ((100, b"200"), (101, b"400")):
        headers = b"X: a\r\n" * (count - 1) + b"Connection: close\r\n\r\n"
        assert exchange(service, b"GET /health HTTP/1.1\r\n" + headers).split()[1] == status


def test_a_client_that_never_ends_its_request_does_not_keep_the_service_up(start):
    service = start()
    with connected(service) as idle, connected(service) as half:
        half.sendall(b"GET / HTTP/1.1\r\nHost:")
        time.sleep(0.2)
        started = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - started < catscii.GRACE_SECONDS + SOON
        assert idle.recv(1) == b""


HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def prompt(service: Running, seconds: float = 0) -> None:
    """Assert that one new client after another has an answer at once, for so many seconds."""
    end = time.monotonic() + seconds
    while True:
        begun = time.monotonic()
        assert exchange(service, HEALTH).startswith(b"HTTP/1.1 200 ") and time.monotonic() - begun < 20
        if time.monotonic() > end:
            return
        time.sleep(0.1)


def processor_seconds(pid: int) -> float:
    """Return what the process has used, and those of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def open_files(pid: int) -> list[str]:
    """Return where the process's descriptors lead to, but for its standard streams, which pytest made."""
    links = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        if int(path.name) > 2:
            with contextlib.suppress(FileNotFoundError):  # closed by now
                links.append(os.readlink(path))
    return links


@contextlib.contextmanager
def crowd(
    service: Running, clients: int, talk: Callable[[socket.socket], object] = lambda _: None, **options: Any
) -> Iterator[list[socket.socket]]:
    """So many connections, which have had their `talk` with the service, one after another, and stay open."""
    few = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few[1], few[1]))
    try:
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(connected(service, **options)) for _ in range(clients)]
            for connection in connections:
                with contextlib.suppress(ConnectionError):  # the service has the right to close it
                    talk(connection)
            yield connections
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, few)


ANSWER = re.compile(rb"HTTP/1\.1 200 OK\r\n.*?Content-Length: (\d+)\r\n.*?\r\n\r\n", re.DOTALL | re.IGNORECASE)


def whole_answers(data: bytes | bytearray) -> int:
    count = end = 0
    while (head := ANSWER.match(data, end)) and (end := head.end() + int(head[1])) <= len(data):
        count += 1
    return count


def read_answer(connection: socket.socket, but: int = 0) -> None:
    """Read one answer, but for so many bytes at its end, and keep nothing."""
    head = connection.recv(65536)
    while not (match := ANSWER.match(head)):
        if not (data := connection.recv(65536)):
            return
        head += data
    rest = match.end() + int(match[1]) - len(head) - but
    while rest > 0 and (data := connection.recv(min(rest, 65536))):
        rest -= len(data)


def page(format: str) -> bytes:
    return b"GET /cat/house-1?width=240&format=%s HTTP/1.1\r\nHost: x\r\n\r\n" % format.encode()


@contextlib.contextmanager
def slow_headers(service: Running, begin: bytes = b"GET / HTTP/1.1\r\nX: ") -> Iterator[None]:
    def drip() -> None:
        while not over.wait(3):
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.send(b"a")

    over = threading.Event()
    with crowd(service, 1050, lambda connection: connection.sendall(begin)) as connections:
        thread = threading.Thread(target=drip)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def readers(service: Running, format: str = "html", but: int = 0) -> contextlib.AbstractContextManager[Any]:
    def talk(connection: socket.socket) -> None:
        connection.sendall(page(format))
        read_answer(connection, but)

    return crowd(service, 900, talk, receive_buffer=65536 if but else 0)


def greedy(service: Running) -> contextlib.AbstractContextManager[Any]:
    seeds = itertools.count()

    def ask(connection: socket.socket) -> None:
        connection.sendall(b"GET /cat/house-%d?width=240&height=240 HTTP/1.1\r\n\r\n" % next(seeds))

    return crowd(service, 1000, ask, source=("127.0.0.2", 0))


@contextlib.contextmanager
def unread_log(service: Running) -> Iterator[None]:
    service.listening.clear()
    try:
        with connected(service, 5) as connection:
            for _ in range(30):
                connection.sendall(HEALTH.replace(b"close", b"keep-alive") * 100)
                answers = b""
                while whole_answers(answers) < 100:
                    answers += connection.recv(65536)
        yield
    finally:
        service.listening.set()


@pytest.mark.parametrize(
    ("attack", "seconds", "files", "busy"),
    [
        (partial(crowd, clients=10, talk=lambda connection: connection.send(b"!", socket.MSG_OOB)), 0, 1024, False),
        (unread_log, 0, 1024, False),
        (slow_headers, 10, 1024, True),
        (partial(slow_headers, begin=b"GET / HTTP/1.1\r\n" + b"X:\r\n" * 4000), 1, 1024, True),
        (partial(crowd, clients=1100), 5, 1024, False),
        (partial(crowd, clients=100), 2, 64, False),
        (readers, 0, 1024, False),
        (partial(readers, format="json"), 0, 1024, False),
        (partial(readers, but=6000), 0, 1024, False),
        (greedy, 2, 1024, True),
    ],
    ids=["urgent data", "unread log", "slow headers", "slow long headers", "idle", "idle, few files", "readers of HTML",
         "readers of JSON", "readers of all but the end", "greedy"],
)  # fmt: skip
def test_whatever_one_client_does_others_are_answered_at_once_and_the_end_comes_in_time(
    start, attack, seconds, files, busy
):
    """`files`: how many the service may open. `busy`: it has the right to use a core."""
    service = start(command=["prlimit", f"--nofile={files}", *patched("")])
    pid = service.process.pid
    with attack(service):
        prompt(service, seconds)
        cat = exchange(service, b"GET /cat/house-5000 HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert whole_answers(cat) == 1
        logged, used = len(service.lines), processor_seconds(pid)
        time.sleep(0 if busy else 2)
        assert processor_seconds(pid) - used < 0.3 and len(service.lines) - logged < 30
        links = open_files(pid)
        assert resident_megabytes(pid) < 150 and not any(link.endswith("(deleted)") for link in links)
        assert sum(link.startswith("socket:") for link in links) <= 1000 + 1
        begun = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) == 0 and time.monotonic() - begun < 9 + SOON
    service.stop()
    warnings = sum(line["level"] != "INFO" for line in service.log) - 1  # no countries
    assert warnings in (range(1, 6) if files < 100 else range(6))


@pytest.mark.parametrize(
    ("request_", "statuses"),
    [
        (b"GET a://" + b"1" * 16_360 + b" x\r\n\r\n", {400, 431}),
        (b"GET / HTTP/1.1\r\nX:" + b" " * 16_300 + b"\x01\r\n\r\n", {400, 431}),
        (b"GET / HTTP/1.1\r\nConnection: close\r\nX:" + b" " * 16_000 + b"a\r\n\r\n", {200, 400, 431}),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n" + b"a:\r\n" * 4_000 + b"\r\n", {200, 400, 431}),
        (b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 4_000 + b"b\r\n\r\n", {400, 431}),
        (b"GET /" + b"%" * 16_000 + b" HTTP/1.1\r\nConnection: close\r\n\r\n", {400, 404}),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b" " * 16_000 + b"\x01\r\n\r\n", {400, 413, 431}),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 16_000 + b"z\r\n\r\n", {400, 413, 431}),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: " + b"chunked," * 2_000 + b"\r\n\r\n", {400, 431}),
        (b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 16_000 + b"\r\n\r\n", {400, 413, 431}),
    ],
    ids=lambda value: value[:50] if isinstance(value, bytes) else "",
)
def test_16_kib_of_anything_are_read_at_once(start, request_, statuses):
    service = start(command=patched("catscii.GRACE_SECONDS = 60"))
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(exchange, service, request_) for _ in range(24)]
        prompt(service, 0.5)
        for answer in answers:
            assert int((answer.result() or b"HTTP/1.1 000")[9:12]) in statuses
    assert service.stop() == 0, "at once, as there is nobody to wait for"


def pipelined(service: Running, client: str, kill_at: float = math.inf) -> int:
    """How many whole answers such a client gets to sixteen requests; after so many bytes, it kills the service."""
    received = bytearray()
    with connected(service, receive_buffer=65536 if client == "slow" else 0) as connection:
        connection.sendall(page("json") * 16)
        if client == "half-closed":
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while data := connection.recv(65536):
                received += data
                if len(received) > kill_at:
                    service.process.kill()
                elif client == "slow":
                    time.sleep(0.005)
                elif client == "aborting" and len(received) > 1_000_000:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
                if received.endswith(b"]}\n") and whole_answers(received) == 16:
                    break
    return whole_answers(received)


def test_killed_while_it_answers_requests_sent_ahead_it_has_counted_all_that_were_answered(tmp_path):
    def kill(folder: Path) -> None:
        counted, chance = 0, random.Random(folder.name)
        for i in range(rounds(50)):
            service, client = Running(folder), ("fast", "slow", "half-closed", "aborting")[i % 4]
            answered = pipelined(service, client, max(0, chance.uniform(-4_000_000, 4_000_000)))
            service.process.kill()
            service.process.wait()
            before, counted = counted, visits_in(service.database)
            assert answered <= counted - before <= 16, client

    in_two_folders(tmp_path, kill)


@pytest.mark.parametrize("client", ["fast", "slow", "half-closed"])
def test_each_request_sent_ahead_is_answered_and_counted_once(start, client):
    service = start()
    assert pipelined(service, client) == 16 == counted(service)


def test_a_request_that_takes_too_long_to_come_is_given_up(start):
    service = start(command=patched("catscii.REQUEST_SECONDS = 2"))
    begins = (
        b"GET / HTTP/1.1\r\nX: ",
        b"GET /health HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nX: ",
        b"POST / HTTP/1.1\r\nContent-Length: 1000\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",
    )

    def given_up(begin: bytes) -> None:
        def closed() -> bool:
            with contextlib.suppress(TimeoutError):
                connection.send(b"a")
                return not connection.recv(65536)
            return False

        with connected(service, 0.2) as connection, contextlib.suppress(ConnectionError):
            connection.sendall(begin)
            eventually(closed)

    def kept() -> None:
        with connected(service) as connection:
            for _ in range(6):  # all in all for longer than one request may take
                connection.sendall(b"GET /health HT")
                time.sleep(0.3)
                connection.sendall(b"TP/1.1\r\n\r\n")
                assert whole_answers(connection.recv(65536)) == 1
                time.sleep(0.3)

    with ThreadPoolExecutor(6) as pool:
        for future in [pool.submit(given_up, begin) for begin in begins] + [pool.submit(kept)]:
            future.result()


def test_pictures_are_fetched_also_while_idle_clients_have_all_files_that_the_service_may_open(start, upstream):
    few = patched("catscii.STORED_CATS, catscii.QUICK_SECONDS = 8, 0.5")
    service = start(command=["prlimit", "--nofile=64", *few], CAT_SOURCES=upstream.the_cat_api)
    with crowd(service, 100):
        assert service.stored() < 8
        eventually(lambda: service.stored() == 8)


def test_a_log_that_is_read_again_goes_on_and_says_how_much_is_missing(start):
    service = start()
    with unread_log(service):
        prompt(service)
    eventually(lambda: "Log lines were dropped" in service.messages())
    assert service.get("/cat/house-7").status == 200
    eventually(lambda: service.log[-1]["fields"].get("path") == "/cat/house-7")
    lines = [json.loads(line)["fields"] for line in service.lines]
    dropped = [line["lines"] for line in lines if line["message"] == "Log lines were dropped"]
    assert len(dropped) < 5 and all(isinstance(number, int) and number > 0 for number in dropped)
    assert sum(line.get("path") == "/health" for line in lines) + sum(dropped) == 3001
    assert service.stop() == 0


@pytest.mark.parametrize("redirection", ["2>&-", "<&- >&- 2>&-", "2> >(exit)", "2> /dev/full"])
def test_it_serves_without_a_log(start, redirection):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    service = start(command=["bash", "-c", f'exec "$@" {redirection}', "", *patched("")], PORT=port)

    def answers() -> bool:
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            return service.get("/health").status == 200
        return False

    eventually(answers)
    visit(service, rounds(500))
    assert health(service)[:2] == (200, "ok") and service.get("/panic").status == 500
    assert service.stop() == 0 and visits_in(service.database) == rounds(500) and not service.lines


@pytest.mark.parametrize(
    ("table", "paths"), [("cats", ["/", "/cat/abc", "/metrics"]), ("visits", ["/", "/analytics", "/metrics"])]
)
def test_a_table_that_cannot_be_read_is_an_error_once_and_the_service_is_degraded(start, upstream, table, paths):
    service = start(command=patched("catscii.STORED_CATS = 3"), CAT_SOURCES=upstream.the_cat_api)
    eventually(lambda: service.stored() == 3)

    def events(level: str) -> list[str]:
        lines = [line for line in service.log[begun:] if line["level"] == level and "status" not in line["fields"]]
        return [line["fields"]["message"] for line in lines]

    begun = len(service.log)
    with another_schema(service, table):
        assert [service.get(path).status for path in paths * 3][::3] == [200] * 3
        eventually(lambda: health(service)[1] == "degraded")
        assert health(service)[0] == 200 and "no such table" in health(service)[2]
        for path in paths * 5:
            service.get(path)
        time.sleep(1.5)
        assert len(events("ERROR")) == len(set(events("ERROR"))) and events("ERROR") and not events("INFO")
    eventually(lambda: health(service)[:2] == (200, "ok"))
    assert [service.get(path).status for path in ("/", "/analytics", "/metrics")] == [200] * 3
    time.sleep(1.5)
    assert len(events("ERROR")) == len(events("INFO")) == len(set(events("INFO"))) == (1 if table == "cats" else 2)


def fill(connection: sqlite3.Connection, days: int, countries: int) -> None:
    codes = itertools.islice(itertools.product(string.ascii_uppercase, repeat=2), countries)
    dates = [str(datetime.now(UTC).date() - timedelta(day)) for day in range(days)]
    rows = ((day, "".join(code), i) for i, (day, code) in enumerate(itertools.product(dates, codes), 1))
    with connection:
        connection.executemany("INSERT INTO visits VALUES (?, ?, ?)", rows)


def test_figures_of_years_cost_no_more_than_those_of_days(start, tmp_path):
    costs = []
    for days in (10, 1460):
        service = start(ANALYTICS_DB=str(tmp_path / f"{days}.db"))
        with contextlib.closing(sqlite3.connect(service.database)) as connection:
            fill(connection, days, 250)
        for _ in range(2):  # the first time, there may be more to do
            used = processor_seconds(service.process.pid)
            for path in ("/metrics", "/analytics?format=json") * 20:
                assert service.get(path).status == 200
            costs.append(processor_seconds(service.process.pid) - used)
    assert costs[3] < 3 * costs[1] + 0.2


def sums(rows: list[tuple[str, str, int]]) -> tuple[int, dict[str, int], dict[str, int]]:
    """Of all visits, of those of the last 30 days by day, of all by country."""
    days = {str(datetime.now(UTC).date() - timedelta(day)): 0 for day in range(29, -1, -1)}
    countries: Counter[str] = Counter()
    for day, country, count in rows:
        countries[country] += count
        if day in days:
            days[day] += count
    return sum(countries.values()), days, dict(countries)


@pytest.mark.parametrize("version", [1, 2, None])
def test_sums_are_exact_whoever_writes_and_after_a_migration(start, tmp_path, version):
    database = tmp_path / "catscii.db"
    if version is None:
        start().stop()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        if version:
            connection.executescript(f"{''.join(catscii.SCHEMA[:version])} PRAGMA user_version = {version}")
        fill(connection, 50, 20)
    service, today = start(), str(datetime.now(UTC).date())
    with contextlib.closing(sqlite3.connect(database, 10)) as connection:
        for statement in (
            "SELECT 1",
            f"INSERT INTO visits VALUES ('{today}', 'FR', 7), ('2001-02-03', 'FR', 5), ('2001-02-03', 'GB', 1)",
            f"INSERT INTO visits VALUES ('{today}', 'FR', 3) ON CONFLICT DO UPDATE SET count = count + excluded.count",
            "UPDATE visits SET count = 2 * count + 1 WHERE country < 'AF'",
            f"UPDATE visits SET country = 'JP', day = '2001-02-04' WHERE country = 'AG' AND day = '{today}'",
            "DELETE FROM visits WHERE country = 'GB' OR country = 'AH' OR count % 3 = 0",
            "DELETE FROM visits",
        ):
            with connection:
                connection.execute(statement)
            visit(service, 1)
            expected = sums(connection.execute("SELECT day, country, count FROM visits").fetchall())
            told = service.json("/analytics")
            assert (told["visits"], told["days"], told["countries"]) == expected, statement
            assert (told["today"], told["last_30_days"]) == (expected[1][today], sum(expected[1].values()))
            counts = samples(service)["catscii_visits_total"]
            assert {country: int(count) for (country,), count in counts.items()} == expected[2], statement


@pytest.mark.parametrize("length", ["-1", "x"])
def test_cgi_does_not_wait_for_a_body_of_a_length_that_cannot_be(tmp_path, length):
    variables = cgi_variables(tmp_path, CONTENT_LENGTH=length, PATH_INFO="/health")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, str(SCRIPT)], env=variables, stdin=pipe, stdout=pipe) as process:
        try:
            assert process.wait(60) == 0
            assert process.stdout and process.stdout.read().startswith(b"Status: 200 ")
        finally:
            process.kill()


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02" * 4 + b"\r\n\r\n",
        b"GET /" + b"x" * 16_384,
        b"GET / HTTP/1.1\r\n" + b"a: \x01\r\n" * 2000 + b"\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 99999\r\n\r\n" + b"x" * 8000,
        page("html") * 9,  # and it is gone
    ],
    ids=["garbage", "a long path", "bad headers", "a large body", "aborted"],
)
def test_a_flood_of_what_is_refused_or_given_up_does_not_flood_the_log(start, request_):
    service = start()

    def flood(connections: int) -> None:
        while time.monotonic() < begun + seconds:
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                addresses = [("127.0.0.2", 0)] * connections
                clients = [stack.enter_context(connected(service, 3, source=address)) for address in addresses]
                for client in clients:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    client.sendall(request_)
                for client in () if answered else clients:
                    client.recv(1)

    seconds, answered = rounds(5), b"house" in request_
    begun = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        floods = [pool.submit(flood, 100) for _ in range(2)]
        time.sleep(seconds / 3)
        prompt(service, seconds / 3)
        for future in floods:
            future.result()
    prompt(service)
    assert resident_megabytes(service.process.pid) < 150
    others = [line for line in service.log if line["fields"].get("status", 400) >= 400]
    assert len(others) < 15 * (time.monotonic() - begun) + 10
    assert answered or eventually(lambda: any(line["fields"].get("lines", 0) > 0 for line in service.log))
    assert service.stop() == 0


def visitors(service: Running, threads: int) -> Callable[[], Counter[str]]:
    """Visits as fast as they come, each thread's on one connection until that is closed; then how they went, if asked.

    This returns when each thread has its first answer.
    """
    outcomes: Counter[str] = Counter()
    ready = threading.Barrier(threads + 1)

    def hammer() -> None:
        with connected(service) as connection, contextlib.suppress(OSError):
            for i in range(1_000_000):
                connection.sendall(b"GET /cat/house-1?format=text&width=20 HTTP/1.1\r\n\r\n")
                answer = b""
                while len(answer.partition(b"\r\n\r\n")[2]) < 8 * 21:
                    if not (data := connection.recv(65536)):
                        outcomes["cut"] += 1
                        return
                    answer += data
                outcomes["whole"] += 1
                if i == 0:
                    ready.wait(60)
                if b"Connection: close" in answer:
                    return

    pool = [threading.Thread(target=hammer) for _ in range(threads)]
    for thread in pool:
        thread.start()
    ready.wait(60)

    def result() -> Counter[str]:
        for thread in pool:
            thread.join(60)
        return outcomes

    return result


def visits_in(database: Path) -> int:
    assert sql(database, "PRAGMA integrity_check") == [("ok",)]
    return int(sql(database, "SELECT sum(count) FROM visits")[0][0])


def in_two_folders(tmp_path: Path, test: Callable[[Path], None]) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(test, folders))


def test_killed_again_and_again_under_load_it_has_lost_no_visit_that_it_answered(tmp_path):
    def kill(folder: Path) -> None:
        answered = 0
        for i in range(rounds(25)):
            service = Running(folder)
            result = visitors(service, 4)
            time.sleep(random.uniform(0, 0.1))
            service.process.kill()
            service.process.wait()
            answered += result()["whole"]
            assert answered <= visits_in(service.database) <= answered + 4 * (i + 1)

    in_two_folders(tmp_path, kill)


def test_told_to_end_again_and_again_under_load_it_answers_all_that_it_accepted(tmp_path):
    def end(folder: Path) -> None:
        answered = 0
        for _ in range(rounds(25)):
            service = Running(folder, patched("catscii.GRACE_SECONDS = 60"))
            result = visitors(service, 6)
            time.sleep(random.uniform(0, 0.1))
            assert service.stop() == 0
            assert not result()["cut"]
            answered += result()["whole"]
            assert visits_in(service.database) == answered

    in_two_folders(tmp_path, end)


def test_a_clock_that_is_set_back_by_a_day_harms_nothing(start, tmp_path):
    back = tmp_path / "back"
    code = f"import os, time\nreal = time.time\ntime.time = lambda: real() - 86400 * os.path.exists({str(back)!r})"
    service = start(command=patched(f"{code}\ncatscii.GRACE_SECONDS = 60"))
    with connected(service) as idle:
        idle.sendall(b"GET /cat/house-1?width=20&format=text HTTP/1.1\r\n\r\n")
        assert idle.recv(65536)
        back.touch()
        visit(service)
        assert counted(service) == 6
        assert service.stop() == 0, "in time: it does not wait for the connection until the clock is back"


class Answer(NamedTuple):
    """What one CGI process wrote."""

    status: str
    headers: dict[str, str]
    body: bytes
    log: list[dict[str, Any]]


def cgi_variables(folder: Path, **variables: str) -> dict[str, str]:
    mine = {"PATH": os.environ["PATH"], "ANALYTICS_DB": str(folder / "catscii.db"), "CAT_SOURCES": ""}
    mine |= bench_catscii.REQUEST | bench_catscii.TERMINAL | variables
    return {name: value for name, value in mine.items() if value or name != "PATH_INFO"}  # servers leave it out


def cgi(folder: Path, *arguments: str, **variables: str) -> Answer:
    """One request, to the end of all that the process started."""
    process = run(*arguments, **cgi_variables(folder, **variables))
    head, _, body = process.stdout.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode("latin-1").split("\r\n"))
    status = headers.pop("Status")
    return Answer(status, headers, body, list(map(json.loads, process.stderr.splitlines())))


@pytest.mark.parametrize(
    ("path", "variables"),
    [
        *((f"/cat/house-1.{suffix}", {}) for suffix in catscii.SUFFIXES),
        ("/cat/house-1", {"HTTP_ACCEPT": "text/html", "HTTP_ACCEPT_ENCODING": "gzip"}),
        ("/cat/house-1", {"QUERY_STRING": "width=50&height=9&style=ink&format=json"}),
        ("/cat/house-1", {"REQUEST_METHOD": "HEAD"}),
        ("/cat/house-1", {"HTTP_IF_NONE_MATCH": "*"}),
        ("/", {"QUERY_STRING": "width=1"}),
        ("/", {"REQUEST_METHOD": "POST", "CONTENT_LENGTH": "0"}),
        ("/analytics", {"HTTP_ACCEPT": "text/html"}),
        *((path, {}) for path in ("/help", "/health", "/favicon.ico", "/panic", "/nothing", "/cat/café")),
    ],
)
def test_cgi_answers_what_the_service_answers(service, tmp_path, path, variables):
    host = {"SCRIPT_NAME": "", "HTTP_HOST": urlsplit(service.url).netloc, "QUERY_STRING": ""}
    here = bench_catscii.TERMINAL | host | variables
    answer = cgi(tmp_path, PATH_INFO=path, **here)
    headers = {name[5:].replace("_", "-"): value for name, value in here.items() if name.startswith("HTTP_")}
    expected = service.get(f"{path}?{here['QUERY_STRING']}", headers, variables.get("REQUEST_METHOD", "GET"))
    assert answer.status.split()[0] == str(expected.status)
    assert answer.body == expected.data or path == "/analytics"
    differing = {"date", "server", "connection", "content-length" * (expected.status == 304 or path == "/analytics")}
    told = {name.lower(): value for name, value in answer.headers.items() if name.lower() not in differing}
    assert told == {name.lower(): value for name, value in expected.headers.items() if name.lower() not in differing}


@pytest.mark.parametrize(
    ("prefix", "link"), [("", ""), ("/cats", "/cats"), ("/a b(c)", "/a%20b%28c%29"), ("/café", "/caf%C3%A9")]
)
@pytest.mark.parametrize("path", ["", "/", "/cat/house-1"])
def test_links_are_right_under_any_prefix(tmp_path, prefix, link, path):
    answer = cgi(tmp_path, SCRIPT_NAME=prefix, PATH_INFO=path, HTTP_ACCEPT="text/html", LC_ALL="C.UTF-8")
    links = re.findall(r'(?:href|action|data-text)="([^"]*)"', answer.body.decode())
    assert answer.status == "200 OK" and len(links) >= 7
    assert all(url.startswith(link + "/") for url in links)
    assert (
        f"url({link}/cat/" in answer.body.decode() and f'content="http://localhost{link}/cat/' in answer.body.decode()
    )


def test_a_query_is_no_command_line(tmp_path):
    """A server passes one without "=" as arguments (RFC 3875, 4.4)."""
    assert cgi(tmp_path, "--version", QUERY_STRING="--version").status == "200 OK"


def test_cgi_that_is_not_set_up_tells_the_log_alone(tmp_path):
    answer = cgi(tmp_path, LOG_LEVEL="s3cret", GEOLITE2_COUNTRY_DB="/nowhere")
    assert answer.status == "500 Internal Server Error" and len(answer.body) < 100
    assert b"s3cret" not in answer.body and b"nowhere" not in answer.body
    problems = [line["fields"]["problem"] for line in answer.log]
    assert [problem.split(":")[0] for problem in problems] == ["GEOLITE2_COUNTRY_DB", "LOG_LEVEL"]


def refresher(folder: Path) -> tuple[float, dict[str, Any]]:
    """Seconds until a cat is due, and the failures of the sources."""
    ((due, sources),) = sql(folder / "catscii.db", "SELECT due, sources FROM refresher")
    return due - time.time(), {name: failures for name, (failures, _) in json.loads(sources).items()}


def set_due(folder: Path, seconds: float) -> None:
    sql(folder / "catscii.db", "UPDATE refresher SET due = ?", time.time() + seconds)


def stored_cats(folder: Path) -> int:
    return int(sql(folder / "catscii.db", "SELECT count(*) FROM cats WHERE picture NOT NULL")[0][0])


def test_of_many_requests_one_fetches_a_cat_and_none_waits_for_it(tmp_path, upstream):
    go_on, variables = threading.Event(), cgi_variables(tmp_path, CAT_SOURCES=upstream.cataas)
    upstream.answers["/cat"] = lambda handler: (go_on.wait(30), upstream.answer(handler))
    processes = [
        subprocess.Popen([sys.executable, SCRIPT], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(6)
    ]
    for process in processes:
        assert process.stdout.read().startswith(b"Status: 200") and process.wait() == 0
    eventually(lambda: upstream.asked("/cat?"))
    assert stored_cats(tmp_path) == 0
    go_on.set()
    eventually(lambda: stored_cats(tmp_path) == 1)
    for process in processes:
        assert b"failed" not in process.stderr.read()
    assert upstream.asked("/cat?") == 1 and refresher(tmp_path)[0] < 1


def test_one_request_reports_once_what_failed_and_what_came_after_it(tmp_path, upstream):
    with contextlib.closing(Upstream()) as sentry:
        answer = cgi(
            tmp_path,
            PATH_INFO="/panic",
            CAT_SOURCES=upstream.cataas,
            SENTRY_DSN=sentry.url.replace("//", "//abc@") + "/42",
            OTEL_EXPORTER_OTLP_ENDPOINT=upstream.url,
        )
        assert answer.status.startswith("500 ") and stored_cats(tmp_path) == 1
        events = [event.get("exception", event) for event in sentry_events(sentry)]
    assert [str(event["values"][-1]["value"])[:15] for event in events] == ["This is a drill"], events
    roots = [span for span in collected(upstream) if not span.parent]
    assert [(root.name, bool(root.error)) for root in roots] == [("panic_get", True), ("get_cat_ascii_art", False)]


def test_of_those_that_claim_at_once_one_is_told_so(tmp_path):
    databases = [catscii.Database(str(tmp_path / "catscii.db")) for _ in range(8)]
    barrier = threading.Barrier(len(databases))

    def claim(database: catscii.Database) -> dict[str, tuple[int, float]] | None:
        barrier.wait()
        return catscii.Store(database).claim_due_fetch()

    with ThreadPoolExecutor(len(databases)) as pool:
        for _ in range(rounds(100)):
            set_due(tmp_path, -1)
            claims = list(pool.map(claim, databases))
            assert len(claims) - claims.count(None) == 1
    for database in databases:
        database.close()


def test_a_full_store_is_due_a_cat_a_minute_and_a_lost_lease_ends(tmp_path, upstream):
    for seed in range(catscii.STORED_CATS):
        store_cat(tmp_path, f"cat{seed}")
    cgi(tmp_path, CAT_SOURCES=upstream.cataas)
    assert upstream.asked("/cat?") == 1 and 30 < refresher(tmp_path)[0] < 60
    cgi(tmp_path, CAT_SOURCES=upstream.cataas)
    assert upstream.asked("/cat?") == 1
    for seconds in (-1, 1e7):  # the lease of a process that died; a clock that was wrong
        set_due(tmp_path, seconds)
        cgi(tmp_path, CAT_SOURCES=upstream.cataas)
    assert upstream.asked("/cat?") == 3 and stored_cats(tmp_path) == catscii.STORED_CATS


def test_a_source_that_fails_rests_for_all_processes(tmp_path, upstream):
    upstream.answers["/cat"] = lambda handler: reply(handler, b"", 500)
    name, log = urlsplit(upstream.url).netloc, []
    for failures, following in ((1, 2), (2, 6), (6, 11), (11, 12)):
        log += cgi(tmp_path, CAT_SOURCES=upstream.cataas).log
        seconds, failing = refresher(tmp_path)
        rest = min(2 ** (failures - 1), catscii.LONGEST_BACKOFF)
        assert failing == {name: failures} and rest / 2 - SOON < seconds <= rest
        state = json.dumps({name: [following - 1, 0]})
        sql(tmp_path / "catscii.db", "UPDATE refresher SET due = 0, sources = ?", state)
    upstream.answers["/cat"] = lambda handler: reply(handler, b"", 429, **{"Retry-After": "5000"})
    log += cgi(tmp_path, CAT_SOURCES=upstream.cataas).log
    assert 4900 < refresher(tmp_path)[0] <= 5000
    set_due(tmp_path, -1)
    asked = upstream.asked("/cat?")
    log += cgi(tmp_path, CAT_SOURCES=upstream.cataas).log  # it is due a cat, and none may be asked
    assert upstream.asked("/cat?") == asked
    assert [line["fields"]["message"] for line in log].count("Source fails") == 1


def store_cat(folder: Path, name: str) -> None:
    database = catscii.Database(str(folder / "catscii.db"))
    catscii.Store(database).put(catscii.Cat(name, "localhost", "http://localhost/"), photograph("stored", (480, 360)))
    database.close()


def test_one_cgi_request_imports_only_what_it_uses(tmp_path):
    store_cat(tmp_path, "stored")
    set_due(tmp_path, 60)
    code = "import sys, catscii; catscii.main([]); print(*sys.modules, file=sys.stderr)"
    variables = cgi_variables(tmp_path, CAT_SOURCES="http://localhost:9/", PYTHONPATH=str(SCRIPT.parent))
    result = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, check=True)
    assert b"/cat/stored" in result.stdout
    modules = set(result.stderr.decode().splitlines()[-1].split())
    assert "bottle" in modules
    assert not modules & {"urllib3", "waitress", "maxminddb", "certifi", "argparse"}


@pytest.mark.parametrize("version", range(1, len(catscii.SCHEMA)))
def test_a_database_of_an_earlier_version_keeps_its_cats_and_visits(start, tmp_path, version):
    with contextlib.closing(sqlite3.connect(tmp_path / "catscii.db", isolation_level=None)) as connection:
        connection.executescript("".join(catscii.SCHEMA[:version]) + f"PRAGMA user_version = {version}")
        row = "stored", "localhost", "http://localhost/", "2026-01-01", photograph("stored", (480, 360))
        connection.execute("INSERT INTO cats (id, source, url, fetched, picture) VALUES (?, ?, ?, ?, ?)", row)
        connection.execute("INSERT INTO visits VALUES ('2026-01-01', 'FR', 7)")
    service = start()
    assert service.visits() == b"FR: 7\n"
    assert service.get("/cat/stored").status == 200


def printed(language: str, instead: Mapping[str, object]) -> str:
    """The block of docs/deploy.md in this language, with some of its words replaced."""
    text: str = re.search(rf"```{language}\n(.*?)```", (FOLDER / "docs/deploy.md").read_text(), re.DOTALL)[1]  # type: ignore[index]
    for old, new in instead.items():
        assert old in text
        text = text.replace(old, str(new))
    return text


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def program_of(name: str) -> str:
    """The path of a program that may be one for administrators only."""
    return shutil.which(name, path="/usr/sbin:/usr/bin") or pytest.skip(f"{name} is not installed")


@contextlib.contextmanager
def web_server_of(command: list[Any], ask: Callable[[], urllib3.BaseHTTPResponse], **kwargs: Any) -> Iterator[None]:
    """The process of a web server, from when it answers with a 200."""
    process = subprocess.Popen(command, **kwargs)

    def answers() -> bool:
        assert process.poll() is None
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            return ask().status == 200
        return False

    try:
        eventually(answers)
        yield
    finally:
        process.terminate()
        process.wait(15)


BEFORE = {  # what a distribution's own configuration says
    "lighttpd": """
        server.document-root = "{folder}"
        server.bind = "127.0.0.1"
        server.port = {port}
        server.modules = ("mod_setenv")
        setenv.add-environment = ("CAT_SOURCES" => "{sources}")
        """,
    "apache2": """
        ServerRoot "{folder}"
        DefaultRuntimeDir "{folder}"
        ServerName localhost
        Listen 127.0.0.1:{port}
        PidFile pid
        ErrorLog log
        ScriptSock socket
        LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
        LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
        LoadModule alias_module /usr/lib/apache2/modules/mod_alias.so
        LoadModule env_module /usr/lib/apache2/modules/mod_env.so
        LoadModule cgid_module /usr/lib/apache2/modules/mod_cgid.so
        SetEnv CAT_SOURCES "{sources}"
        """,
}


@pytest.fixture(params=["lighttpd", "apache2"])
def web_server(request: pytest.FixtureRequest, tmp_path: Path, upstream: Upstream) -> Iterator[str]:
    """The URL of catscii under a real web server, with the configuration of docs/deploy.md."""
    program, port = program_of(request.param), free_port()
    shutil.copy(SCRIPT, tmp_path)
    launcher = tmp_path / "catscii"
    launcher.write_text(f"#!{sys.executable} -mcatscii\n")
    launcher.chmod(0o755)
    subprocess.run([sys.executable, "-m", "compileall", "-q", tmp_path / "catscii.py"], check=True)
    said = printed(request.param.removesuffix("2"), {"/srv/catscii": tmp_path, "/var/lib/catscii": tmp_path})
    before = BEFORE[request.param].format(folder=tmp_path, port=port, sources=upstream.cataas)
    (tmp_path / "conf").write_text(before + said)
    command = [program, "-D", "-f"] if request.param == "lighttpd" else [program, "-D", "FOREGROUND", "-f"]
    if request.param == "apache2" and os.geteuid() == 0:  # it does not serve as root, and root's files are read here
        rights = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *rights, *command]
    url = f"http://127.0.0.1:{port}/cats"
    with web_server_of([*command, tmp_path / "conf"], lambda: http.request("GET", url + "/health")):
        yield url


@pytest.mark.cgi
def test_under_a_web_server_every_visit_is_counted_once(web_server, tmp_path, upstream):
    busy, most, visits = [], [], rounds(500)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        busy.append(1)
        most.append(len(busy))
        upstream.answer(handler)
        busy.pop()

    upstream.answers["/cat"] = answer
    curl = ["curl", "--silent", "--show-error", "--parallel", "--parallel-max", "20", "--output", os.devnull]
    told = subprocess.check_output([*curl, "--write-out", "%{http_code}\n", web_server + f"/?[1-{visits}]"], text=True)
    assert Counter(told.split()) == {"200": visits}
    assert http.request("GET", web_server + "/analytics?format=text").data == f"ZZ: {visits}\n".encode()
    assert most and max(most) == 1
    eventually(lambda: 0 < stored_cats(tmp_path) <= upstream.asked("/cat?"))


@pytest.mark.cgi
def test_under_a_web_server_requests_are_what_they_are_elsewhere(web_server):
    get = partial(http.request, "GET", decode_content=False)
    permalink = web_server + "/cat/house-1"
    picture = get(permalink + ".png")
    assert picture.headers["Content-Type"] == "image/png" and Image.open(io.BytesIO(picture.data)).size == (800, 600)
    page = get(permalink, headers=CHROME | {"Accept-Encoding": "gzip"})
    assert page.headers["Content-Encoding"] == "gzip" and b'href="/cats/cat/house-1"' in gzip.decompress(page.data)
    assert get(permalink, headers={"If-None-Match": page.headers["ETag"], **CHROME}).status == 304
    head = http.request("HEAD", permalink, headers=CURL)  # Apache keeps the length for itself
    assert head.status == 200 and head.data == b"" and int(head.headers.get("Content-Length", 99_999)) > 10_000
    assert get(web_server, headers=CURL).data.decode().endswith("\x1b[0m\n")
    assert get(web_server + "/cat/house-1?width=1").status == 400 and get(web_server + "/caf%C3%A9%20x").status == 404
    assert get(web_server + "/?--version", headers=CURL).data.startswith(b"\x1b[")
    assert http.request("POST", web_server + "/", body=b"x" * 100_000).status == 405
    assert get(web_server + "/panic").status == 500


@pytest.mark.cgi
@pytest.mark.browser
def test_the_page_works_under_a_prefix(web_server, chromium):
    tab, complaints = chromium.new_page(), []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("response", lambda response: response.ok or complaints.append(response.url))
    tab.goto(web_server + "/cat/house-1")  # another one is from the store
    tab.wait_for_selector(":root:not(.fitting)")
    first = tab.evaluate("document.querySelector('#permalink').href")
    tab.click("#another")
    tab.wait_for_function("href => document.querySelector('#permalink').href !== href", arg=first)
    second = tab.evaluate("document.querySelector('#permalink').href")
    assert {first.rpartition("/")[0], second.rpartition("/")[0]} == {web_server + "/cat"} and tab.url == second
    tab.hover("figure")
    tab.click("#restyle")
    tab.wait_for_url("**/cats/cat/*?style=ink")
    tab.click("text=visitors")
    assert tab.title().startswith("Visitors") and tab.url == web_server + "/analytics"
    tab.click("text=a cat")
    assert complaints == []
    tab.close()


def test_a_service_suspended_for_an_hour_goes_on_where_it_was(start, upstream, tmp_path):
    """fly.io suspends the machine, and its connections are gone when it wakes up; the clocks may have gone on."""
    connections, answer, later = set(), upstream.answer, tmp_path / "later"
    upstream.answer = lambda handler: (connections.add(handler.connection), answer(handler))
    code = (
        f"import os, time\nclocks = time.time, time.monotonic\nlater = lambda: 3600 * os.path.exists({str(later)!r})\n"
    )
    code += "time.time, time.monotonic = lambda: clocks[0]() + later(), lambda: clocks[1]() + later()\n"
    code += "catscii.STORED_CATS, catscii.QUICK_SECONDS, catscii.SILENT_SECONDS = 8, 0.5, 60"
    service = start(command=patched(code), CAT_SOURCES=upstream.the_cat_api)
    visit(service)
    eventually(lambda: service.stored() >= 3)  # the next one is due in QUICK_SECONDS
    service.process.send_signal(signal.SIGSTOP)
    later.touch()
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
    http.clear()
    assert service.stored() < 8
    service.process.send_signal(signal.SIGCONT)
    visit(service)
    assert counted(service) == 10 and health(service)[0] == 200
    eventually(lambda: service.stored() == 8)
    assert b'catscii_refreshes_total{result="failed"} 0\n' in service.get("/metrics").data
    assert "Source fails" not in service.messages()


def test_art_from_a_file_standard_input_and_a_url(tmp_path, upstream):
    path = tmp_path / "cat.jpg"
    path.write_bytes(photograph("/images/x"))
    file = run("art", str(path), "--width", "60", "--style", "fill", "--format", "ansi")
    assert (file.returncode, file.stderr) == (0, b"")
    assert {len(row) for row in cells_of_ansi(file.stdout.decode())} == {60}
    piped = run("art", "-", "--width", "60", "--style", "fill", "--format", "ansi", stdin=path.read_bytes())
    fetched = run("art", f"{upstream.url}/images/x", "--width", "60", "--style", "fill", "--format", "ansi")
    assert file.stdout == piped.stdout == fetched.stdout


def test_art_is_80_columns_of_plain_text_where_there_is_no_terminal(tmp_path):
    result = run("art", "-", stdin=photograph())
    assert {len(line) for line in result.stdout.decode().splitlines()} == {80} and b"\x1b" not in result.stdout


def in_terminal(columns: int, lines: int, *command: Any, **environment: str) -> tuple[int, str]:
    """The exit status of the command, and what it wrote into a terminal of that size."""
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", **environment}
    process = subprocess.Popen([*map(str, command)], stdout=inside, stderr=inside, env=environment)
    os.close(inside)
    output = b""
    with contextlib.suppress(OSError):  # what Linux says when the other end is closed
        while part := os.read(terminal, 65536):
            output += part
    os.close(terminal)
    return process.wait(10), output.decode().replace("\r\n", "\n")


def art_in_terminal(columns: int, lines: int, *options: Any, **environment: str) -> str:
    status, output = in_terminal(columns, lines, sys.executable, SCRIPT, "art", *options, **environment)
    assert status == 0
    return output


@pytest.mark.parametrize(
    ("window", "options", "size"),
    [
        ((80, 24), "", (61, 23)),
        ((120, 40), "", (104, 39)),
        ((40, 20), "", (40, 15)),
        ((12, 20), "", (12, 5)),
        ((300, 100), "", (240, 90)),
        ((80, 1), "", (3, 1)),
        ((80, 24), "--width 40", (40, 15)),
        ((80, 24), "--height 100", (80, 30)),
        ((80, 24), "--height 10", (27, 10)),
    ],
)
def test_art_fits_the_terminal_with_a_line_for_the_prompt(window, options, size):
    rows = cells_of_ansi(art_in_terminal(*window, "house-2", *options.split()))
    assert (len(rows[0]), len(rows)) == size


@pytest.mark.parametrize(
    ("options", "environment", "codes"),
    [
        ("", {}, "8;5;"),
        ("", {"COLORTERM": "truecolor"}, "8;2;"),
        ("", {"COLORTERM": "24bit"}, "8;2;"),
        ("", {"COLORTERM": "yes"}, "8;5;"),
        ("", {"NO_COLOR": "1", "COLORTERM": "truecolor"}, ""),
        ("", {"NO_COLOR": ""}, "8;5;"),
        ("", {"TERM": "dumb"}, ""),
        ("--colors true", {}, "8;2;"),
        ("--colors 16", {"COLORTERM": "truecolor"}, "[10"),
        ("--colors 256", {"NO_COLOR": "1"}, "8;5;"),
        ("--format ansi", {"TERM": "dumb"}, "8;5;"),
    ],
)
def test_art_heeds_what_the_terminal_can_show(options, environment, codes):
    output = art_in_terminal(40, 20, "house-2", *options.split(), **environment)
    assert codes in output if codes else "\x1b" not in output
    assert not codes or not {"8;5;", "8;2;"} - {codes} & {code for code in ("8;5;", "8;2;") if code in output}
    assert len(output.splitlines()) == 15


def test_colours_are_written_elsewhere_too_if_they_are_asked_for():
    assert b"38;5;" in run("art", "house-2", "--colors", "256").stdout
    assert b"38;2;" in run("art", "house-2", "--format", "ansi").stdout, "a file has all of them"


def test_art_alone_is_a_house_cat_and_a_name_is_that_one():
    drawn = [run("art", "house-42", "--format", "json").stdout for _ in range(2)]
    assert drawn[0] == drawn[1]
    art = catscii.render(catscii.draw_house_cat(42), 80)
    assert json.loads(drawn[0])["rows"] == list(art.rows)
    assert len({run("art").stdout for _ in range(4)}) > 1
    result = run("art", "house-4294967296")
    assert (result.returncode, result.stderr) == (1, b"catscii: 'house-4294967296': No such file or directory\n")


def test_art_as_a_png_goes_to_a_file_and_to_no_terminal():
    result = run("art", "house-42", "--format", "png", "--width", "40")
    picture = Image.open(io.BytesIO(result.stdout))
    assert (picture.format, picture.size) == ("PNG", (400, 300))
    status, output = in_terminal(80, 24, sys.executable, SCRIPT, "art", "house-42", "--format", "png")
    assert (status, output) == (2, "catscii: a terminal cannot show a PNG: send it to a file, as with > cat.png\n")


@pytest.mark.browser
@pytest.mark.parametrize("client", ["curl", "wget -qO-", "http --ignore-stdin --body"])
@pytest.mark.parametrize(("path", "words"), [("/", "/cat/house-"), ("/:help", "?style=ink")])
def test_in_a_terminal_of_80x24_nothing_scrolls_away(service, client, path, words):
    program, *options = client.split()
    program = shutil.which(program) or str(Path(sys.executable).with_name(program))
    status, output = in_terminal(80, 24, program, *options, service.url + path, HOME="/nonexistent")
    assert status == 0 and words in output and "\x1b[" in output
    lines = re.sub("\x1b[^m]*m", "", output).split("\n")
    assert len(lines) <= 24 and max(map(len, lines)) <= 80 and lines[-1] == ""


@pytest.mark.parametrize("format", ["html", "json", "text"])
def test_art_in_other_formats(format):
    result = run("art", "-", "--format", format, "--width", "40", "--height", "10", stdin=photograph()).stdout.decode()
    assert {"html": "<!DOCTYPE html>", "json": '{"width"', "text": ""}[format] in result
    assert (json.loads(result)["height"] if format == "json" else 10) == 10


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["art", "/no/such.jpg"], 1, "catscii: '/no/such.jpg': No such file or directory"),
        (["art", __file__], 1, f"catscii: {__file__!r}: not a picture"),
        (["art", "http://127.0.0.1:9/x.jpg"], 1, "catscii: 'http://127.0.0.1:9/x.jpg': "),
        (["draw"], 2, "draw"),
        (["art", "-", "--width", "9"], 2, "'9' is not a whole number from 20 to 240"),
        (["art", "-", "--style", "x"], 2, "'x' is not one of fill, ink"),
    ],
)
def test_art_explains_what_is_wrong_in_one_line(arguments, status, words):
    result = run(*arguments)
    *before, line = result.stderr.decode().splitlines()
    assert result.returncode == status and words in line and (status == 2 or not before)
    assert b"Traceback" not in result.stderr


def test_art_minds_its_own_settings_only(upstream):
    assert run("art", f"{upstream.url}/images/1", PORT="none", ANALYTICS_DB="/no/such/folder/x").returncode == 0


def test_art_into_a_full_disk_is_an_error_of_one_line(tmp_path):
    (tmp_path / "cat.jpg").write_bytes(photograph())
    command = [sys.executable, SCRIPT, "art", f"{tmp_path}/cat.jpg", "--format", "json"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=30)
    assert (result.returncode, result.stderr) == (1, b"catscii: standard output: No space left on device\n")


def test_art_into_a_closed_pipe_is_quiet(tmp_path):
    (tmp_path / "cat.jpg").write_bytes(photograph())
    command = f"{sys.executable} {SCRIPT} art {tmp_path}/cat.jpg --width 240 --format json | head -c 10"
    result = subprocess.run(["bash", "-c", command], capture_output=True, timeout=30)
    assert (result.stdout, result.stderr) == (b'{"width": ', b"")


# ---------------------------------------------------------------------------------------------------------------------
# Packaging: fly.toml, docs/deploy.md, and default.nix and flake.nix under a real Nix, without nixpkgs
# ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.nix  # each key is one of https://fly.io/docs/reference/configuration/
def test_fly_is_told_what_the_service_and_the_image_are():
    fly = tomllib.loads((FOLDER / "fly.toml").read_text())
    sections = "app primary_region kill_signal kill_timeout build http_service metrics mounts vm"
    assert set(fly) == set(sections.split())
    assert fly["kill_signal"] == "SIGTERM" and fly["build"] == {"image": "catscii:latest"}
    assert fly["kill_timeout"] > catscii.GRACE_SECONDS + 2 * catscii.FLUSH_SECONDS + 1
    service = fly["http_service"]
    assert service.pop("concurrency").keys() == {"type", "soft_limit", "hard_limit"}
    (check,) = service.pop("checks")
    assert check.keys() == {"method", "path", "grace_period", "interval", "timeout"} and check["path"] == "/health"
    asleep = {"auto_stop_machines": "suspend", "auto_start_machines": True, "min_machines_running": 0}
    assert service == {"internal_port": 8080, "force_https": True, **asleep}
    assert fly["metrics"] == {"port": 8080, "path": "/metrics"}
    assert fly["mounts"]["destination"] == "/db" and fly["mounts"].keys() == {"source", "destination", "initial_size"}
    assert [machine.keys() for machine in fly["vm"]] == [{"size", "memory"}]


# The command, the configuration around the page's, and what has to change in the page's. The PEM has the key as well.
PROXIES = {
    "nginx": (
        "nginx -e stderr -p FOLDER -c conf",
        "user root; daemon off; pid FOLDER/pid; events {} http { client_body_temp_path FOLDER/1; "
        "proxy_temp_path FOLDER/2; fastcgi_temp_path FOLDER/3; scgi_temp_path FOLDER/4; uwsgi_temp_path FOLDER/5;\n%s}",
        {"443": "PORT", "/etc/ssl/cats": "FOLDER/cats", "/etc/ssl/private/": "FOLDER/", ".key": ".pem"},
    ),
    "caddy": (
        "caddy run --adapter caddyfile --config conf",
        "{\nadmin off\nauto_https disable_redirects\n}\n%s",
        {"org {": "org:PORT {\ntls FOLDER/cats.example.org.pem FOLDER/cats.example.org.pem"},
    ),
}


@pytest.mark.cgi
@pytest.mark.parametrize("name", PROXIES)
def test_behind_a_proxy_clients_have_their_own_country_and_links_are_https(name, start, tmp_path, authority, ca_file):
    countries = {"127.0.0.1/32": "DE", "127.0.0.2/32": "FR", "81.2.69.0/24": "GB"}
    write_mmdb(tmp_path / "c", "Test", {network: {"country_code": code} for network, code in countries.items()})
    header = re.search("CLIENT_IP_HEADER=(.*)", printed("ini", {}))[1]
    service = start(GEOLITE2_COUNTRY_DB=f"{tmp_path}/c", CLIENT_IP_HEADER=header)
    pem = tmp_path / "cats.example.org.pem"
    authority.issue_cert(host := pem.stem).private_key_and_cert_chain_pem.write_to_path(str(pem))
    command, around, words = PROXIES[name]
    configuration = around % printed(name, words | {"127.0.0.1:8080": service.url.removeprefix("http://")})
    for old, new in ("FOLDER", str(tmp_path)), ("PORT", str(port := free_port())):
        command, configuration = command.replace(old, new), configuration.replace(old, new)
    (tmp_path / "conf").write_text(configuration)
    checks = {"ca_certs": ca_file, "server_hostname": host, "assert_hostname": host, "retries": False}
    client = urllib3.HTTPSConnectionPool("127.0.0.1", port, source_address=("127.0.0.2", 0), **checks)
    forged = {"X-Real-IP": "81.2.69.1", "X-Forwarded-For": "81.2.69.1", "X-Forwarded-Proto": "http"}
    get = partial(client.request, "GET", headers=CHROME | forged | {"Host": host})
    words = [program_of(name), *command.split()[1:]]
    with web_server_of(words, lambda: get("/health"), cwd=tmp_path, env={"HOME": str(tmp_path)}):
        for _ in range(9):
            assert b'"og:url" content="https://cats.example.org/cat/house-1"' in get("/cat/house-1").data
        assert service.visits() == b"FR: 9\n"
        closed = rf"(?m)^.*:{urlsplit(service.url).port:04X} .* 06 [0-9A-F]+:"  # in TIME_WAIT
        assert len(re.findall(closed, Path("/proc/net/tcp").read_text())) <= 2, "the proxy keeps its connections"


def system_calls(group: str) -> set[str]:
    lines = subprocess.check_output(["systemd-analyze", "syscall-filter", group], text=True).split("\n")[1:]
    names = {name for line in lines if (name := line.strip()) and not name.startswith("#")}
    return set().union(*(system_calls(name) if name.startswith("@") else {name} for name in names))


@pytest.mark.nix
def test_the_unit_is_right_and_confines_a_service_that_works(start, upstream, tmp_path):
    unit, words = tmp_path / "catscii.service", {"/opt/catscii/venv/bin/python3": sys.executable}
    unit.write_text(text := printed("ini", words | {"/opt/catscii": tmp_path}))
    for check in ("verify --recursive-errors=no", "security --offline=true --threshold=15"):
        result = subprocess.run([program_of("systemd-analyze"), *check.split(), unit], capture_output=True, text=True)
        assert result.returncode == 0 and "catscii" not in result.stderr, result
    allowed, denied = re.findall("^SystemCallFilter=~?(@.*)", text, re.M)
    names = system_calls(allowed) - system_calls(denied)
    code = f"""if True:
        import ctypes, os
        libc, seccomp = ctypes.CDLL(None), ctypes.CDLL("libseccomp.so.2")
        libc.prctl(65, 1, 0, 0, 0)  # PR_SET_MDWE, as MemoryDenyWriteExecute
        seccomp.seccomp_init.restype = ctypes.c_void_p
        rules = ctypes.c_void_p(seccomp.seccomp_init(0x50001))  # EPERM
        for name in {sorted(names)}:
            seccomp.seccomp_rule_add(rules, 0x7FFF0000, seccomp.seccomp_syscall_resolve_name(name.encode()), 0)
        assert seccomp.seccomp_load(rules) == 0
        os.execv({sys.executable!r}, [{sys.executable!r}, {str(SCRIPT)!r}])
    """
    service = start(command=[sys.executable, "-c", code], CAT_SOURCES=upstream.cataas)
    assert eventually(lambda: service.stored() > 2) and service.get("/").status == 200 and b"1" in service.visits()
    assert service.stop() == 0 and {line["level"] for line in service.log} <= {"INFO", "WARN"}


@pytest.mark.nix
def test_a_backup_of_a_running_service_is_restored(start, tmp_path):
    program_of("sqlite3")
    (folder := tmp_path / "state").mkdir()
    section = (FOLDER / "docs/deploy.md").read_text().partition("## Backup")[2]
    commands = re.findall("^    ((?:sqlite3|rm|cp|chown) .*)", section.replace("/var/lib/catscii", str(folder)), re.M)
    shell = partial(subprocess.run, shell=True, check=True, cwd=tmp_path)
    service = start(ANALYTICS_DB=f"{folder}/catscii.db")
    service.get("/")
    shell(commands[0])
    service.get("/")
    assert len(commands) == 4 and service.visits() == b"ZZ: 2\n"
    service.stop(signal.SIGKILL)
    shell("\n".join(["set -e", *commands[1:]]))
    assert start(ANALYTICS_DB=f"{folder}/catscii.db").visits() == b"ZZ: 1\n"


# A nixpkgs of the names that default.nix and flake.nix use, on the machine's own Python and tools. Its functions take
# the arguments that are given to them here and no others, so a new one has to be looked up in nixpkgs first.
STAND_IN = r"""
{ system ? builtins.currentSystem }:
let
  machine = builtins.fromJSON (builtins.readFile ./machine.json);

  lib = {
    escapeShellArgs = list: toString (map (word: "'${word}'") list);
    findFirst = found: default: list: builtins.head (builtins.filter found list ++ [ default ]);
    genAttrs = names: f: builtins.listToAttrs (map (name: { inherit name; value = f name; }) names);
    getBin = package: package;
    getExe = package: "${package}/bin/${package.meta.mainProgram}";
    hasPrefix = prefix: text: builtins.substring 0 (builtins.stringLength prefix) text == prefix;
    licenses.mit = { };
    optionalAttrs = condition: attrs: if condition then attrs else { };
    optionals = condition: list: if condition then list else [ ];
    removePrefix = prefix: text: builtins.substring (builtins.stringLength prefix) (-1) text;
    removeSuffix = suffix: text: builtins.substring 0 (builtins.stringLength text - builtins.stringLength suffix) text;
    splitString = separator: text: builtins.filter builtins.isString (builtins.split separator text);
  };

  runCommand =
    name: attrs@{ passthru ? { }, meta ? { }, nativeBuildInputs ? [ ], ... }: script:
    builtins.deepSeq meta derivation (
      removeAttrs attrs [ "passthru" "meta" "nativeBuildInputs" ]
      // {
        inherit name system;
        outputs = [ "out" ]; # `nix develop` looks for them
        builder = "/bin/bash";
        args = [ "-euo" "pipefail" "-c" "${script}\n:" ]; # bash ends last: Nix kills what closes its output first
        PATH = builtins.concatStringsSep ":" (map (package: "${package}/bin") nativeBuildInputs ++ [ "/usr/bin:/bin" ]);
      }
    )
    // passthru
    // { inherit meta; overrideAttrs = new: runCommand name (attrs // new) script; };

  nothing = runCommand "nothing" { } "mkdir -p $out/bin";

  # As withPackages makes one: the standard library and the packages in one tree of links.
  environment = parts: runCommand "python3-env" { } ''
    mkdir -p $out/bin $out/lib/${machine.python}/site-packages
    ln -s ${machine.base}/bin/${machine.python} $out/bin/python3
    echo "home = ${machine.base}/bin" > $out/pyvenv.cfg
    find ${machine.base}/lib/${machine.python} -mindepth 1 -maxdepth 1 ! -name site-packages ! -name dist-packages \
      -exec ln -s -t $out/lib/${machine.python} {} +
    for part in ${toString parts}; do ln -sf $part $out/lib/${machine.python}/site-packages; done
  '';

  packages = builtins.mapAttrs (name: parts: {
    inherit parts;
    overridePythonAttrs =
      { buildInputs, preConfigure, doCheck }: builtins.seq (toString buildInputs) { inherit parts; };
  }) machine.packages // {
    buildPythonPackage =
      { pname, version, format, src, propagatedBuildInputs }: builtins.seq "${src}" { parts = machine.mmdb_writer; };
  };
in
{
  inherit lib runCommand;

  python3 = runCommand "python3" {
    passthru = {
      executable = machine.python;
      libPrefix = machine.python;
      interpreter = "${machine.base}/bin/${machine.python}";
      withPackages = choose: environment (builtins.concatMap (package: package.parts) (choose packages));
    };
  } "mkdir -p $out/bin; ln -s ${machine.base}/bin/${machine.python} $out/bin";

  cacert = runCommand "cacert" { } "install -D ${machine.certificates} $out/etc/ssl/certs/ca-bundle.crt";
  dbip-country-lite.mmdb = "${./country.mmdb}";
  stdenv = { cc.libc = nothing; hostPlatform.isLinux = builtins.match ".*-linux" system != null; };
  fetchPypi = { pname, version, format, dist, python, hash }: nothing;

  nukeReferences = runCommand "nuke-references" { } ''
    mkdir -p $out/bin
    cat > $out/bin/nuke-refs <<'END'
    #!/usr/bin/perl -pi
    BEGIN { $store = $ENV{NIX_STORE}; shift eq "-e" or die; $kept = substr(shift, length($store) + 1, 32) }
    s|\Q$store\E/\K[0-9a-z]{32}(?=-)|$& eq $kept ? $& : "e" x 32|ge;
    END
    chmod +x $out/bin/nuke-refs
  '';

  mkShell = { packages, GEOLITE2_COUNTRY_DB }:
    runCommand "shell" { inherit GEOLITE2_COUNTRY_DB; nativeBuildInputs = packages; } "touch $out";

  # A layer for each store path that the configuration leads to, and one for the contents.
  dockerTools.streamLayeredImage =
    { name, tag, created, contents, extraCommands, config }:
    let
      image = runCommand "image.json" { image = builtins.toJSON { inherit created config; tag = "${name}:${tag}"; }; }
        ''echo "$image" > $out'';
      archive = runCommand "archive" { exportReferencesGraph = [ "graph" image ]; } ''
        mkdir root
        cd root
        for package in ${toString contents}; do cp -r --no-preserve=mode $package/. .; done
        ${extraCommands}
        cd ..
        ${machine.base}/bin/${machine.python} -I ${./archive.py} ${image} $(grep "^$NIX_STORE/" graph | sort -u) > $out
      '';
    in
    runCommand "stream-${name}" { } ''
      echo "#!/bin/sh" > $out
      echo "exec cat ${archive}" >> $out
      chmod +x $out
    '';
}
// lib.genAttrs (lib.splitString " " "dive flyctl just libjpeg libwebp nixfmt patchelf skopeo uv zlib") (name: nothing)
"""

STAND_IN_FLAKE = """
{
  outputs = { self }: rec {
    lib = (import ./. { system = "x86_64-linux"; }).lib;
    legacyPackages = lib.genAttrs (lib.splitString " " "x86_64-linux aarch64-linux x86_64-darwin aarch64-darwin")
      (system: import ./. { inherit system; });
  };
}
"""

# What `docker save` writes: https://github.com/moby/docker-image-spec
ARCHIVE = """
import hashlib, io, json, subprocess, sys, tarfile

image, *paths = sys.argv[1:]
archive, layers = tarfile.open(fileobj=sys.stdout.buffer, mode="w|"), {}

def add(name, data):
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))
    return name

for path in [path for path in paths if path != image] + ["root"]:
    folder, name = ("root", ".") if path == "root" else ("/", path[1:])
    tar = "tar", "--sort=name", "--mtime=@1", "--owner=root:0", "--group=root:0", "-c", "--directory", folder, name
    data = subprocess.check_output(tar)
    digest = hashlib.sha256(data).hexdigest()
    layers["sha256:" + digest] = add(digest + "/layer.tar", data)

config = json.load(open(image))
tag, parts = config.pop("tag"), {"type": "layers", "diff_ids": [*layers]}
config = json.dumps(config | {"architecture": "amd64", "os": "linux", "rootfs": parts}).encode()
manifest = {"Config": add("config.json", config), "RepoTags": [tag], "Layers": [*layers.values()]}
add("manifest.json", json.dumps([manifest]).encode())
archive.close()
"""

# Each was looked up in nixpkgs 24.11 and in a copy of its master of July 2026, which 26.05 lies between.
IN_NIXPKGS = {
    ".dbip-country-lite": "mmdb",
    ".dockerTools": "streamLayeredImage",
    "": """cacert dbip-country-lite dive dockerTools fetchPypi flyctl just lib libjpeg libwebp mkShell nixfmt
        nukeReferences patchelf python3 runCommand skopeo stdenv uv zlib""",
    ".lib": """escapeShellArgs findFirst genAttrs getBin getExe hasPrefix licenses optionalAttrs optionals removePrefix
        removeSuffix splitString""",
}
PACKAGES = """babel bottle certifi hypothesis matplotlib maxminddb netaddr opentelemetry-exporter-otlp-proto-http
    opentelemetry-sdk packaging pillow prometheus-client pytest pytest-timeout pytest-xdist sentry-sdk trustme urllib3
    waitress"""


def parts_of(name: str, seen: set[str]) -> list[str]:
    """What an installed package and those that it needs have put into site-packages."""
    distribution = next(iter(importlib.metadata.distributions(name=name)), None)
    if distribution is None or name in seen:
        return []
    seen.add(name)
    entries = {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}
    needs = [re.split(r"[^A-Za-z0-9._-]", need)[0] for need in distribution.requires or [] if "extra ==" not in need]
    parts = [str(distribution.locate_file(entry)) for entry in sorted(entries)]
    return parts + [part for need in needs for part in parts_of(need, seen)]


@contextlib.contextmanager
def edited(path: Path, text: str) -> Iterator[None]:
    before = path.read_text()
    path.write_text(text)
    try:
        yield
    finally:
        path.write_text(before)


class Nix:
    """A real `nix` with a store of its own, a copy of the flake, and the stand-in for its nixpkgs."""

    def __init__(self, folder: Path, countries: str) -> None:
        self.flake, self.nixpkgs, self.store = folder / "flake", folder / "nixpkgs", folder / "store"
        for new in (self.flake, self.nixpkgs):
            new.mkdir()
        for path in [*FOLDER.glob("*.py"), *FOLDER.glob("*.nix"), FOLDER / "flake.lock", FOLDER / "requirements.txt"]:
            shutil.copy(path, self.flake)
        self.environment = os.environ | {
            "HOME": str(folder), "NIX_STORE_DIR": str(self.store),
            "NIX_STATE_DIR": f"{folder}/state", "NIX_LOG_DIR": f"{folder}/log",
            "NIX_CONFIG": "experimental-features = nix-command flakes\nbuild-users-group =\nsandbox = false\n"
            "substituters =",
        }
        machine = {
            "base": sys.base_prefix,
            "python": f"python{sys.version_info.major}.{sys.version_info.minor}",
            "packages": {name: parts_of(name, set()) for name in PACKAGES.split()},
            "mmdb_writer": parts_of("mmdb_writer", set()),
            "certificates": certifi.where(),
        }
        self.machine = self.nixpkgs / "machine.json"
        for name, text in ("default.nix", STAND_IN), ("flake.nix", STAND_IN_FLAKE), ("archive.py", ARCHIVE):
            (self.nixpkgs / name).write_text(text)
        self.machine.write_text(json.dumps(machine))
        shutil.copy(countries, self.nixpkgs / "country.mmdb")

    def planted(self, package: str, path: Path) -> contextlib.AbstractContextManager[None]:
        """The file is a part of the package meanwhile."""
        machine = json.loads(self.machine.read_text())
        machine["packages"][package].append(str(path))
        return edited(self.machine, json.dumps(machine))

    def command(self, verb: str, output: str = "", *arguments: str) -> list[str]:
        override = ["--no-write-lock-file", "--override-input", "nixpkgs", f"path:{self.nixpkgs}"]
        return ["nix", *verb.split(), *override, f"path:{self.flake}{output and '#' + output}", *arguments]

    def __call__(self, verb: str, output: str = "", *arguments: str) -> subprocess.CompletedProcess[str]:
        command = self.command(verb, output, *arguments)
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300)

    def build(self, output: str) -> Path:
        result = self("build", output, "--no-link", "--json")
        assert result.returncode == 0, result.stderr
        return Path(json.loads(result.stdout)[0]["outputs"]["out"])


def with_nix(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that takes a real nix, and root's rights for crun."""
    tools = all(map(shutil.which, ("crun", "nix", "patchelf", "skopeo")))
    reason = "crun, nix, patchelf and skopeo are needed, and to be root"
    return pytest.mark.nix(pytest.mark.skipif(not tools or os.geteuid() != 0, reason=reason)(test))


@pytest.fixture(scope="session")
def nix(country_db: str) -> Iterator[Nix]:
    with tempfile.TemporaryDirectory(prefix="nix") as folder:
        yield Nix(Path(folder), country_db)
        subprocess.run(["chmod", "-R", "u+w", folder], check=True)


@with_nix
def test_the_stand_in_has_no_name_that_nixpkgs_has_not(nix):
    for part, names in IN_NIXPKGS.items():
        expression = f'builtins.attrNames (import {nix.nixpkgs} {{ system = "x86_64-linux"; }}){part}'
        command = ["nix", "eval", "--impure", "--json", "--expr", expression]
        assert set(json.loads(subprocess.check_output(command, env=nix.environment))) == set(names.split())
    needs = {re.split("[<>=]", need)[0].lower() for need in script_metadata(Path(__file__))["dependencies"]}
    of_their_own = {"axe-playwright-python", "httpie", "mmdb-writer", "opencv-python-headless", "playwright"}
    assert needs - of_their_own <= set(PACKAGES.split()), "default.nix lacks a package"


@with_nix
def test_the_flake_has_its_outputs_on_every_system_a_shell_for_the_tests_and_a_pinned_nixpkgs(nix):
    shown = nix("flake show", "", "--json")
    assert shown.returncode == 0, shown.stderr
    flake = json.loads(shown.stdout)
    assert flake.keys() == {"packages", "apps", "checks", "devShells", "formatter"}
    systems = {"x86_64-linux", "aarch64-linux", "x86_64-darwin", "aarch64-darwin"}
    assert all(outputs.keys() == systems for outputs in flake.values())
    for system, packages in flake["packages"].items():
        assert packages.keys() == {"default", "bin"} | ({"dockerImage"} if system.endswith("linux") else set())
    assert nix("eval", "checks.x86_64-linux.suite.drvPath", "--raw").stdout.endswith(".drv")
    locked = json.loads((FOLDER / "flake.lock").read_text())["nodes"]["nixpkgs"]
    assert locked["original"]["ref"] == "nixos-26.05" and len(locked["locked"]["rev"]) == 40
    code = "import hypothesis, os, trustme; print(os.stat(os.environ['GEOLITE2_COUNTRY_DB']).st_size)"
    result = nix("develop", "", "--command", "python3", "-c", code)
    assert result.returncode == 0 and int(result.stdout) > 0, result.stderr


@with_nix
def test_nix_build_takes_any_nixpkgs_and_may_leave_telemetry_out(nix, tmp_path):
    def nix_build(*arguments: str) -> Path:
        command = ["nix-build", "--no-out-link", "-I", f"nixpkgs={nix.nixpkgs}", str(nix.flake), *arguments]
        return Path(subprocess.check_output(command, env=nix.environment, text=True).strip())

    assert nix_build() == nix.build("default"), "the package of the flake"
    (tmp_path / "planted.py").touch()
    with nix.planted("sentry-sdk", tmp_path / "planted.py"):
        for arguments, found in ((), 1), (("--arg", "telemetry", "false"), 0):
            script = (nix_build(*arguments) / "bin/catscii").read_text()
            python = Path(script.split()[0].removeprefix("#!"))
            assert len(list(python.parents[1].rglob("planted.py"))) == found


@with_nix
def test_nix_run_serves_a_cat_without_compiling_the_script(nix, start):
    catscii_bin = nix.build("bin")
    assert list((catscii_bin / "lib/__pycache__").glob("catscii.*.pyc"))
    assert nix("run", "", "--", "--version").stdout == f"catscii {catscii.__version__}\n"
    service = start(command=nix.command("run"), **nix.environment)
    assert service.get("/").status == service.get("/health").status == 200
    assert service.stop() == 0


@pytest.fixture(scope="session")
def image(nix: Nix) -> Path:
    return stream(nix)


def stream(nix: Nix) -> Path:
    path = Path(tempfile.mkstemp(".tar", dir=nix.flake.parent)[1])
    with path.open("wb") as file:
        subprocess.run([nix.build("dockerImage")], stdout=file, check=True)
    return path


def inspect(image: Path, *arguments: str) -> Any:
    return json.loads(subprocess.check_output(["skopeo", "inspect", *arguments, f"docker-archive:{image}"]))


@with_nix
def test_the_image_is_four_things_in_a_layer_each(nix, image):
    config = inspect(image, "--config")["config"]
    (program,) = config["Cmd"]
    variables = dict(variable.split("=", 1) for variable in config["Env"])
    assert program.startswith(f"{nix.store}/") and program.endswith(f"-catscii-{catscii.__version__}/bin/catscii")
    assert variables.keys() == {"SSL_CERT_FILE", "GEOLITE2_COUNTRY_DB", "ANALYTICS_DB"}
    assert variables["SSL_CERT_FILE"].endswith("-cacert/etc/ssl/certs/ca-bundle.crt")
    assert variables["ANALYTICS_DB"] == "/db/analytics.db"
    assert config["ExposedPorts"] == {"8080/tcp": {}} and config["User"] == "65532"
    assert (seen := inspect(image))["Created"] == "1970-01-01T00:00:01Z"
    layers = [tarfile.TarFile(fileobj=io.BytesIO(data)).getnames() for data in read_layers(image).values()]
    assert len(layers) == len(seen["Layers"]) == 5
    packages = {names[0].rpartition("/")[2].partition("-")[2] for names in layers[:-1]}
    assert packages == {"cacert", f"catscii-{catscii.__version__}", "catscii-runtime", "country.mmdb"}
    assert {"./db", "./tmp", "./etc/passwd"} <= set(layers[-1])


def read_layers(image: Path) -> dict[str, bytes]:
    """The layers' archives by name, lowest first."""
    with tarfile.open(image) as archive:
        files = {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]
    return {name: files[name] for name in json.loads(files["manifest.json"])[0]["Layers"]}


@with_nix
def test_a_second_build_is_the_same_image_to_the_byte(nix, image):
    drv = nix("eval", "dockerImage.drvPath", "--raw").stdout
    paths = subprocess.check_output(["nix-store", "--query", "--requisites", drv], env=nix.environment, text=True)
    command = ["nix-store", "--realise", "--check", *re.findall(r"\S+\.drv\b", paths)]
    again = subprocess.run(command, env=nix.environment, capture_output=True)
    assert again.returncode == 0, again.stderr.decode()


@with_nix
def test_an_edit_of_the_script_changes_one_small_layer(nix, image):
    script = nix.flake / "catscii.py"
    with edited(script, script.read_text() + "# an edit\n"):
        edited_image = stream(nix)
    old, new = read_layers(image), read_layers(edited_image)
    (changed,) = new.keys() - old.keys()
    assert len(old) == len(new) == 5 and len(gzip.compress(new[changed])) < 250_000


@with_nix
def test_the_image_without_any_network_serves_cats_and_stops(nix, image, tmp_path):
    root = tmp_path / "rootfs"
    root.mkdir()
    for layer in read_layers(image).values():
        subprocess.run(["tar", "-x", "-C", root], input=layer, check=True)
    assert (root / "tmp").stat().st_mode & 0o7777 == (root / "db").stat().st_mode & 0o7777 == 0o1777
    programs = {path.name for path in root.rglob("*") if path.parent.name == "bin"}
    assert programs == {"catscii", "python3"}, "no shell, no other program"

    config = inspect(image, "--config")["config"]
    subprocess.run(["crun", "spec"], check=True, cwd=tmp_path)
    spec = json.loads((tmp_path / "config.json").read_text())
    user = {"uid": int(config["User"]), "gid": int(config["User"])}
    env = [*config["Env"], "SENTRY_DSN=http://abc@localhost:9/42", "HONEYCOMB_API_KEY=k3y"]  # their packages are there
    spec["process"] |= {"terminal": False, "args": config["Cmd"], "env": env, "user": user}
    spec["root"]["readonly"] = False
    (tmp_path / "config.json").write_text(json.dumps(spec))

    def crun(*arguments: str) -> list[str]:
        """In a mount namespace with one hierarchy of cgroups, since crun refuses a machine that has two."""
        command = f'umount -R $0; mount -t cgroup2 0 $0; exec crun --root {tmp_path}/c --cgroup-manager disabled "$@"'
        return ["unshare", "--mount", "sh", "-c", command, "/sys/fs/cgroup", *arguments]

    container = Running(tmp_path, crun("run", "--bundle", str(tmp_path), "catscii"), PORT="8080")
    try:
        container.wait_for("Listening on")
        ask = "import sys, urllib.request as r; print(r.urlopen('http://127.0.0.1:8080' + sys.argv[1]).read().decode())"
        python = next(root.rglob("*-catscii-runtime/bin/python3")).relative_to(root)
        for path, answer in {"/": "<html", "/cat/house-1?format=json": "house-1", "/health": '"ok"'}.items():
            command = crun("exec", "--env", "LANG=C.UTF-8", "catscii", f"/{python}", "-I", "-c", ask, path)
            assert answer in subprocess.check_output(command, text=True)
        subprocess.run(crun("kill", "catscii", "SIGTERM"), check=True)
        assert container.process.wait(15) == 0
        assert (root / "db/analytics.db").stat().st_uid == user["uid"]
    finally:
        subprocess.run(crun("delete", "--force", "catscii"), capture_output=True)


@with_nix
def test_an_image_with_more_in_it_than_it_needs_is_not_built(nix, tmp_path):
    (tmp_path / "bash").touch()
    with nix.planted("bottle", tmp_path / "bash"):
        result = nix("build", "dockerImage", "--no-link", "--print-build-logs")
    assert result.returncode != 0 and "the image must not contain bash" in result.stderr


class Run:
    """A pytest plugin: has the option --thorough, runs tests in several processes, and tells of failures at once."""

    def __init__(self) -> None:
        self.scopes: dict[str, str] = {}  # of each selected test, by its name; one process runs all tests of a scope

    def pytest_addoption(self, parser: pytest.Parser) -> None:
        parser.addoption("--thorough", action="store_true", help="five times the rounds and examples")  # see main

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            slow_to_set_up = {"chromium", "nix"} & set(item.fixturenames)  # type: ignore[attr-defined]
            self.scopes[item.nodeid] = "".join(slow_to_set_up) or item.nodeid

    @pytest.hookimpl(tryfirst=True)
    def pytest_xdist_auto_num_workers(self) -> int:
        """Most tests wait for something, so that more processes than cores are of use; few tests are not worth them."""
        return min(5, len(self.scopes) // 16)

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> LoadScopeScheduling:
        scheduling = LoadScopeScheduling(config, log)
        scheduling._split_scope = self.scopes.__getitem__
        return scheduling

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            print(f"\n{report.nodeid} failed: {str(crash.message if crash else report.longrepr)[:300]}", flush=True)


def main(arguments: list[str]) -> int:
    # Keep the bytecode, or each process would rewrite and compile the assertions of this file again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    if "--thorough" in arguments:  # the processes of pytest-xdist do not know the option, but have the environment
        os.environ["THOROUGH"] = "1"
        arguments = [argument for argument in arguments if argument != "--thorough"]
    markers = "nix: of the packaging, which is not there when the package is tested\nnpm: needs npm and its registry\n"
    markers += "browser: needs Chromium, or another client\ncgi: needs web servers\nopencv: detectors of faces"
    options = ["-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning", "-o", f"markers={markers}"]
    command, run = [__file__, *options, "--dist=loadscope", "--timeout=300", "-n", "auto", *arguments], Run()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        pytest.main([*command, "--collect-only", "-n", "0"], [run])
    return pytest.main(command, [run])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
