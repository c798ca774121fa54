#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "babel", "bottle>=0.13", "certifi>=2024.7.4", "maxminddb>=2.6", "Pillow>=11", "urllib3>=2.2.2",
#     "waitress>=3.0.1,<4", "wcwidth", "axe-playwright-python", "httpie", "hypothesis", "matplotlib", "mmdb-writer",
#     "opencv-python-headless==4.10.0.84", "opentelemetry-exporter-otlp-proto-http", "packaging", "playwright",
#     "prometheus-client", "pyte", "pytest>=9", "pytest-timeout", "pytest-xdist", "selenium", "sentry-sdk", "trustme",
#     "websocket-client",
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
import fcntl
import gzip
import html
import importlib.metadata
import io
import ipaddress
import itertools
import json
import os
import pty
import queue
import random
import re
import resource
import select
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
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

import certifi
import netaddr
import packaging.requirements
import pyte
import pytest
import trustme
import urllib3
import waitress.adjustments
import waitress.channel
import waitress.parser
import waitress.wasyncore
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdb_writer import MMDBWriter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageStat
from prometheus_client.parser import text_string_to_metric_families
from xdist.scheduler import LoadScopeScheduling

import bench_catscii
import catscii

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SCRIPT = Path(catscii.__file__)
FOLDER = SCRIPT.parent
PROGRAM = [sys.executable, "-m", "catscii"]  # uses the bytecode that is kept, while the script is compiled each time
ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": str(FOLDER)}
CHROME = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/142.0 Safari/537.36",
          "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"}
CURL = {"User-Agent": "curl/8.16.0", "Accept": "*/*"}
SOON = 8.0  # seconds: longer than a busy machine takes, shorter than any timeout in the program
http = urllib3.PoolManager(retries=False, timeout=60)


# ---------------------------------------------------------------------------------------------------------------------
# Helpers: a service as a process, upstreams on real sockets, pictures, a MaxMind DB
# ---------------------------------------------------------------------------------------------------------------------


THOROUGH = "THOROUGH" in os.environ  # main sets it for --thorough


def slow(test: Callable[..., None]) -> Callable[..., None] | None:
    """Leave a test out without --thorough, because it builds something that other tests build, too."""
    return test if THOROUGH else None


def rounds(thorough: int) -> int:
    """Return how often to repeat a test: `thorough` times with --thorough, otherwise a tenth of that."""
    return thorough if THOROUGH else thorough // 10


def sections() -> dict[int, str]:
    """Return the marker of each section of this file by the line of its banner. That of House cats is house_cats."""
    banners: dict[int, str] = {}
    lines = Path(__file__).read_text().splitlines()
    for number, (before, title, after) in enumerate(zip(lines, lines[1:], lines[2:], strict=False), 2):
        if before == after == f"# {'-' * 117}":
            banners[number] = title.removeprefix("# ").partition(":")[0].lower().replace(" ", "_")
    return banners


def every_test() -> list[Callable[..., None]]:
    return [value for name, value in globals().items() if name.startswith("test_") and value]


def mark_sections() -> None:
    """Give each test the marker of the section that it stands in."""
    banners = sections()
    for test in every_test():
        line = max(number for number in banners if number < test.__code__.co_firstlineno)
        pytest.mark.__getattr__(banners[line])(test)


class Running(contextlib.AbstractContextManager["Running"]):
    """A running service on a free port, and its log. As a context, it is killed at the end."""

    def __init__(self, folder: Path, command: list[str] | None = None, **variables: str) -> None:
        self.database = Path(variables.setdefault("ANALYTICS_DB", str(folder / "catscii.db")))
        environment = {**ENVIRONMENT, "HOST": "127.0.0.1", "PORT": "0", "CAT_SOURCES": "", **variables}
        self.process = subprocess.Popen(command or PROGRAM, env=environment, stderr=subprocess.PIPE, text=True)
        self.log: list[dict[str, Any]] = []  # the parsed lines
        self.lines: list[str] = []
        self.listening = threading.Event()  # while it is not set, nobody reads the log
        self.listening.set()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = f"http://127.0.0.1:{environment['PORT']}"
        if environment["PORT"] == "0":
            self.url = "http://" + self.wait_for("Listening on ")["message"].removeprefix("Listening on ")

    def _read(self) -> None:
        for line in self.process.stderr:  # type: ignore[union-attr]
            self.listening.wait()
            self.lines.append(line)
            if line.startswith("{"):  # `nix run` and `python -X importtime` write other lines too
                self.log.append(json.loads(line))

    def wait_for(self, start: str) -> dict[str, Any]:
        """Wait for a logged message that starts with `start`, and return the fields of its line."""
        return eventually(lambda: next((line["fields"] for line in self.log
                                        if line["fields"]["message"].startswith(start)), None))

    def messages(self) -> list[str]:
        return [line["fields"]["message"] for line in self.log]

    def get(self, path: str, headers: dict[str, str] = CURL, method: str = "GET",
            **kwargs: Any) -> urllib3.BaseHTTPResponse:
        return http.request(method, self.url + path, headers=headers, redirect=False, decode_content=False, **kwargs)

    def json(self, path: str) -> Any:
        return json.loads(self.get(path, {"Accept": "application/json"}).data)

    def visits(self) -> bytes:
        return self.get("/analytics?format=text").data

    def stored(self) -> int:
        """Return the number of pictures in the store, read from its file."""
        return int(sql(self.database, "SELECT count(*) FROM cats WHERE picture IS NOT NULL")[0][0])

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        self.process.send_signal(signal_number)
        status = self.process.wait(30)
        self._reader.join(5)
        return status

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Yield a function that starts services in the test's folder, which are killed at the end of the test."""
    with contextlib.ExitStack() as stack:
        yield lambda **variables: stack.enter_context(Running(tmp_path, **variables))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Yield one service of house cats, which tests only read from."""
    with Running(tmp_path_factory.mktemp("service")) as service:
        yield service


def connected(service: Running, patience: float = 60, receive_buffer: int = 0,
              source: tuple[str, int] | None = None) -> socket.socket:
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
    """Return what arrives until the service closes or resets the connection, or is silent for too long."""
    data = bytearray()
    with contextlib.suppress(TimeoutError, ConnectionError):
        while part := connection.recv(65536):
            data += part
    return bytes(data)


def eventually(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait until `condition()` is true, and return its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not true within {seconds} seconds"
        time.sleep(0.02)
    return value


def patched(code: str) -> list[str]:
    """Return the command of a service that runs `code` first, which gives catscii other constants, such as timeouts."""
    code = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import catscii\n{code}\n"
    return [sys.executable, "-c", code + "sys.exit(catscii.main([]))"]


FEW_CATS = 4
QUICKLY_FILLED = patched(f"catscii.STORED_CATS = {FEW_CATS}")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        try:
            self.server.answers.get(urlsplit(self.path).path, self.server.answer)(self)
        except (ConnectionError, ssl.SSLError):
            self.close_connection = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        self.server.answers.get("POST", sends(b""))(self)

    def log_message(self, *_: object) -> None:
        pass


class Upstream(ThreadingHTTPServer):
    """A local server that answers like The Cat API (/v1/images/...) and CATAAS (/cat...)."""

    def __init__(self, certificate: trustme.LeafCert | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.posts: list[tuple[str, dict[str, str], bytes]] = []
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}  # by path; these replace the usual ones
        self.known: set[str] = set()
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.configure_cert(context)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.url = f"{'https' if certificate else 'http'}://localhost:{self.server_port}"
        self.the_cat_api, self.cataas = self.url + "/v1/images/search", self.url + "/cat"
        self.dsn = self.url.replace("//", "//abc@") + "/42"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

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
        return {"_id": cat, "url": f"/cat/{cat}", "mimetype": "image/jpeg", "tags": ["cute", "sleepy"]}

    def asked(self, start: str) -> int:
        return sum(path.startswith(start) for path, _ in self.requests)

    def close(self) -> None:
        self.shutdown()
        self.server_close()


def reply(handler: BaseHTTPRequestHandler, body: Any, status: int = 200, **headers: str) -> None:
    """Send a response whose body is these bytes, or anything else as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(data)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)
    handler.close_connection |= headers.get("Connection") == "close"


def sends(body: Any, status: int = 200, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """Return a value for Upstream.answers: a function that sends this response."""
    return partial(reply, body=body, status=status, **headers)


def redirect(location: str) -> Callable[[BaseHTTPRequestHandler], None]:
    return sends(b"", 302, Location=location)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with contextlib.closing(Upstream()) as upstream:
        yield upstream


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure_upstream(authority: trustme.CA) -> Iterator[Upstream]:
    with contextlib.closing(Upstream(authority.issue_cert("localhost"))) as upstream:
        yield upstream


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


def encoded(picture: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def photograph(seed: object = 0, size: tuple[int, int] = (640, 480), format: str = "JPEG", mode: str = "RGB") -> bytes:
    """Return an encoded picture with shapes and shades, different for each seed."""
    rng = random.Random(str(seed))
    picture = Image.radial_gradient("L").resize(size).convert("RGB")
    pen = ImageDraw.Draw(picture)
    for _ in range(6):
        x, y = rng.randrange(size[0]), rng.randrange(size[1])
        pen.ellipse((x - 90, y - 60, x + 90, y + 60), fill=tuple(rng.randbytes(3)))
    return encoded(picture.convert(mode), format)


@pytest.fixture(scope="session")
def country_db(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of a MaxMind DB that has every supported shape of record, for IPv4 and IPv6."""
    path = tmp_path_factory.mktemp("geo") / "country.mmdb"
    write_mmdb(path, "Test-Country", {
        "81.2.69.0/24": {"country": {"iso_code": "GB"}, "registered_country": {"iso_code": "US"}},
        "2001:db8:1::/48": {"country": {"iso_code": "FR"}}, "2001:db8:2::/48": {"country_code": "JP"},
        "198.51.100.0/24": {"registered_country": {"iso_code": "DE"}}, "203.0.113.0/24": {"continent": {"code": "AN"}},
    })
    return str(path)


def sql(database: Path, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Execute one statement in a database, and return the rows of its result."""
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
    """Run `catscii ARGUMENTS` until it exits."""
    return subprocess.run([*PROGRAM, *arguments], input=stdin, capture_output=True,
                          env=ENVIRONMENT | variables, timeout=60)


def error_at_start(tmp_path: Path, **variables: str) -> str:
    """Return the only line that a service writes which cannot start with these variables."""
    usual = {"ANALYTICS_DB": str(tmp_path / "new.db"), "PORT": "0", "CAT_SOURCES": "", "LOG_LEVEL": "error"}
    result = run(**usual | variables)
    (line,) = result.stderr.decode().splitlines()
    assert (result.returncode, result.stdout) == (2, b"")
    return line


def test_each_test_is_in_one_section_and_the_sections_of_the_program_are_in_its_order():
    of_the_program = re.search("Settings, .*Running", catscii.__doc__)[0].lower().replace(" ", "_").split(",_")
    helpers, *of_the_tests = sections().values()
    assert helpers == "helpers"
    assert [section for section in of_the_tests if section not in ("machines", "packaging")] == of_the_program
    for test in every_test():
        (section,) = {mark.name for mark in test.pytestmark} & {helpers, *of_the_tests}
        assert section != helpers, test


def script_metadata(path: Path) -> dict[str, Any]:
    """Return the PEP 723 block of a script."""
    match = re.search(r"(?m)^# /// script$\n((?:#.*\n)+?)# ///$", path.read_text())
    assert match
    return tomllib.loads("".join(line[2:] for line in match[1].splitlines(keepends=True)))


def test_the_script_needs_six_packages_which_the_tests_need_too_and_requirements_txt_pins_with_hashes():
    script, tests = script_metadata(SCRIPT), script_metadata(Path(__file__))
    needs = [packaging.requirements.Requirement(need) for need in script["dependencies"]]
    assert {need.name.lower() for need in needs} == {"bottle", "waitress", "urllib3", "maxminddb", "pillow", "certifi"}
    assert all(">=" in need for need in script["dependencies"])
    assert set(script["dependencies"]) <= set(tests["dependencies"])
    assert script["tool"]["uv"]["exclude-newer"] == tests["tool"]["uv"]["exclude-newer"]
    assert script["requires-python"] == tests["requires-python"] == ">=3.11"
    lines = SCRIPT.with_name("requirements.txt").read_text()
    pins = dict(re.findall(r"(?m)^([\w-]+)==(\S+) \\\n(?=    --hash=sha256:[0-9a-f]{64})", lines))
    assert pins.keys() == {need.name.lower() for need in needs}
    assert all(need.specifier.contains(pins[need.name.lower()]) for need in needs)
    assert re.fullmatch(r"(\S+==\S+ \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n)+)+", lines)


def test_help_names_commands_variables_and_defaults():
    result = run("--help")
    text = result.stdout.decode()
    words = """
        HOST 0.0.0.0 PORT 8080 ANALYTICS_DB catscii.db GEOLITE2_COUNTRY_DB CLIENT_IP_HEADER NO_COLOR
        Fly-Client-IP CAT_SOURCES api.thecatapi.com CAT_API_KEY SSL_CERT_FILE LOG_LEVEL SENTRY_DSN HONEYCOMB_API_KEY
        OTEL_EXPORTER_OTLP_ENDPOINT ETCD_ENDPOINTS"""
    assert result.returncode == 0 and all(word in text for word in words.split())
    assert "art [PICTURE|URL|house-N|-]" in text and "--format html|ansi|text|json|png" in text
    assert run("--version").stdout.decode() == f"catscii {catscii.__version__}\n"


def test_help_of_art_explains_its_options_with_ranges_and_defaults_and_nothing_else():
    result, usage = run("art", "--help"), run("--help").stdout.decode()
    text = " ".join(result.stdout.decode().split())
    options = {option.split()[0]: option for option in text.split(" --")[2:]}
    assert result.returncode == 0 and "catscii.py art --help" in usage
    assert [*options] == [*catscii.View._fields] == [*catscii.PARAMETERS]
    for name, (values, *_) in catscii.PARAMETERS.items():
        choices = (f"{values[0]} to {values[-1]} " if isinstance(values, range)
                   else f"{name} {catscii.value_names(values)} ")
        assert choices in options[name] and re.search(r"\(.+\)$", options[name]), "the default is in parentheses"
    assert not any(name.upper() in text.split() for name in catscii.Settings._fields)


def test_an_option_that_is_a_setting_names_its_variable():
    result = run("--host=::1")
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.endswith(b"argument --host: the environment sets it, as in HOST='::1' catscii.py\n")
    assert b"OTLP_ENDPOINT" not in run("--otlp-endpoint=http://localhost").stderr, "no such variable is read"


def test_all_wrong_settings_are_reported_in_one_go():
    wrong = {"PORT": "http", "GEOLITE2_COUNTRY_DB": "/no/such.mmdb", "CAT_SOURCES": "http://a/cat,b/cat",
             "LOG_LEVEL": "loud", "CLIENT_IP_HEADER": "a b", "ANALYTICS_DB": "/no/such/folder/x.db",
             "SSL_CERT_FILE": "/no/such.pem"}
    result = run(**wrong)
    assert result.returncode == 2 and len(lines := result.stderr.decode().splitlines()) == len(wrong)
    assert [sum(f"{value!r}" in line for line in lines) for value in wrong.values()] == [1] * len(wrong)


@pytest.mark.parametrize(("variables", "field", "value"), [
    ({}, "cat_sources", ("https://api.thecatapi.com/v1/images/search", "https://cataas.com/cat")),
    ({"CAT_SOURCES": ""}, "cat_sources", ()),
    ({"CAT_SOURCES": "HTTPS://a/s?m=jpg,png, Http://b/c,"}, "cat_sources", ("HTTPS://a/s?m=jpg,png", "Http://b/c")),
    ({"PORT": ""}, "port", 8080),
    ({"LOG_LEVEL": "warn"}, "log_level", 30),
    ({}, "client_ip_header", None),
    ({"FLY_APP_NAME": "cats"}, "client_ip_header", "Fly-Client-IP"),
    ({"FLY_APP_NAME": "cats", "CLIENT_IP_HEADER": "X-Real-IP"}, "client_ip_header", "X-Real-IP"),
    ({"NIX_SSL_CERT_FILE": certifi.where()}, "ssl_cert_file", certifi.where()),
    ({"NIX_SSL_CERT_FILE": "/dev/null", "SSL_CERT_FILE": certifi.where()}, "ssl_cert_file", certifi.where()),
    ({"FLY_APP_NAME": "cats", "SENTRY_ENVIRONMENT": "tests"}, "sentry_environment", "tests"),
    ({"SENTRY_DSN": "https://0a:2c@o1.ingest.de.sentry.io/45"}, "sentry_dsn", "https://0a:2c@o1.ingest.de.sentry.io/45"),
    ({"SENTRY_DSN": "http://abc@sentry.local:9000/path/7"}, "sentry_dsn", "http://abc@sentry.local:9000/path/7"),
    ({"HONEYCOMB_API_KEY": "k3y"}, "otlp_endpoint", "https://api.honeycomb.io/v1/traces"),
    ({"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Basic YTpi==, x-b=c%20d,"}, "otlp_endpoint", None),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost", "OTEL_SDK_DISABLED": "True"}, "otlp_endpoint", None),
])
def test_settings(variables: dict[str, str], field: str, value: object):
    assert getattr(catscii.read_settings(variables), field) == value


def test_what_cannot_be_used_is_a_clear_error(tmp_path, authority):
    garbage, folder, future, numbers = (tmp_path / name for name in ("garbage", "folder", "future", "numbers"))
    garbage.write_bytes(b"not a database, but long enough to be taken for one" * 20)
    folder.mkdir()
    sql(future, "PRAGMA user_version = 99")
    for path in (garbage, folder, future):
        assert re.match(f"catscii: ANALYTICS_DB: .*{path}", error_at_start(tmp_path, ANALYTICS_DB=str(path)))
    write_mmdb(numbers, "GeoLite2-ASN", {"1.0.0.0/24": {"autonomous_system_number": 13335}})
    error = error_at_start(tmp_path, GEOLITE2_COUNTRY_DB=str(numbers))
    assert error.startswith(f"catscii: GEOLITE2_COUNTRY_DB: cannot read '{numbers}'")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for host, port in (("a..b", 8080), taken.getsockname()):
            error = error_at_start(tmp_path, HOST=host, PORT=str(port))
            assert f"cannot listen on {host!r}, port {port}: " in error
    for wrong in ({"OTEL_PROPAGATORS": "pigeon"},
                  {"OTEL_BSP_MAX_QUEUE_SIZE": "1", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2"}):  # which the SDK refuses
        error = error_at_start(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT="http://localhost:9", **wrong)
        assert re.match(r"catscii: OTEL_\S+ .+", error)
    for content in (b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n", authority.private_key_pem.bytes()):
        garbage.write_bytes(content)
        error = error_at_start(tmp_path, NIX_SSL_CERT_FILE=str(garbage))
        assert error.startswith(f"catscii: NIX_SSL_CERT_FILE: no CA certificates can be read from '{garbage}': [")


# ---------------------------------------------------------------------------------------------------------------------
# Telemetry: the real SDKs, against servers that take apart what they send
# ---------------------------------------------------------------------------------------------------------------------

PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VISITOR = CURL | {"traceparent": f"00-{PARENT[0]}-{PARENT[1]}-01", "Cookie": "c=81.2.69.163",
                  "X-Real-IP": "81.2.69.160", "X-Forwarded-For": "81.2.69.161", "Forwarded": "for=81.2.69.162"}
SECRETS = {"CAT_API_KEY": "live_s3cret1", "SENTRY_DSN": "http://s3cret2@localhost:9/1", "HONEYCOMB_API_KEY": "s3cret3",
           "OTEL_EXPORTER_OTLP_ENDPOINT": "http://u:s3cret4@localhost:9", "OTEL_EXPORTER_OTLP_HEADERS": "x-key=s3cret5"}


def sentry_events(upstream: Upstream) -> list[dict[str, Any]]:
    """Return the events in the envelopes (https://develop.sentry.dev/sdk/data-model/envelopes/) that Sentry got."""
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


def collected(upstream: Upstream) -> list[SimpleNamespace]:
    """Return the spans that the OTLP collector got, with hexadecimal ids."""
    def attributes(item: Any) -> dict[str, Any]:
        return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in item.attributes}

    spans = []
    for path, headers, body in list(upstream.posts):
        assert path == "/v1/traces" and headers["content-type"] == "application/x-protobuf"
        for part in ExportTraceServiceRequest.FromString(body).resource_spans:
            spans += [SimpleNamespace(
                name=span.name, kind=span.kind, attributes=attributes(span), resource=attributes(part.resource),
                trace=span.trace_id.hex(), id=span.span_id.hex(), parent=span.parent_span_id.hex(),
                error=span.status.message if span.status.code == 2 else None,
            ) for scope in part.scope_spans for span in scope.spans]
    return spans


def samples(service: Running) -> dict[str, dict[tuple[str, ...], float]]:
    """Return the samples of /metrics by name and label values, as Prometheus' own parser reads them."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(service.get("/metrics").data.decode()):
        assert family.documentation and family.type != "unknown"
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_sentry_gets_each_failure_once_with_its_route_and_nothing_of_the_visitor(start, upstream):
    source = upstream.cataas.replace("localhost", "127.0.0.1")  # which the SDK takes for another host than Sentry's
    service = start(command=patched("catscii.STORED_CATS = 999"), CAT_SOURCES=source,
                    SENTRY_DSN=upstream.dsn, FLY_APP_NAME="my-cats", CLIENT_IP_HEADER="X-Real-IP")
    for path in ("/", "/cat/house-7?width=1", "/cat/nobody", "/nowhere", "/panic?q=1"):
        service.get(path, VISITOR)
    service.get("/", VISITOR, "POST", body=b"81.2.69.164")
    sql(service.database, "ALTER TABLE cats RENAME TO gone")
    service.wait_for("The store cannot be refreshed")
    assert samples(service)["catscii_refreshes_total"]["failed",] == 1
    assert service.stop() == 0
    panic, *others = sentry_events(upstream)
    assert panic["exception"]["values"][-1]["value"].startswith("This is a drill")
    assert panic["transaction"] == "/panic" and panic["request"]["url"].endswith("/panic")
    assert (panic["release"], panic["environment"]) == (f"catscii@{catscii.__version__}", "my-cats")
    assert not any(word in json.dumps([panic, *others]) for word in ("81.2.69", "REMOTE_ADDR", '"user"', '"vars"'))
    (refresh,) = (event for event in others if event["logentry"]["message"].startswith("The store cannot"))
    assert "no such table: cats" in json.dumps(refresh)
    assert not any(name.lower() in ("sentry-trace", "baggage") for _, sent in upstream.requests for name in sent)


def test_a_request_is_a_trace_with_its_parts_in_the_trace_of_its_caller(start, upstream, country_db):
    service = start(OTEL_EXPORTER_OTLP_ENDPOINT=upstream.url + "/", OTEL_EXPORTER_OTLP_HEADERS="x-key=a%20b,y=z",
                    OTEL_SERVICE_NAME="my-cats", OTEL_RESOURCE_ATTRIBUTES="team=tabby", HONEYCOMB_API_KEY="k3y",
                    GEOLITE2_COUNTRY_DB=country_db, CLIENT_IP_HEADER="X-Real-IP")
    for path in ("/cat/house-7", "/cat/house-7", "/", "/health", "/metrics", "/panic", "/nowhere"):
        service.get(path, VISITOR if path == "/cat/house-7" else CURL)
    assert service.stop() == 0
    spans = collected(upstream)
    roots = [span for span in spans if span.kind == 2]  # SPAN_KIND_SERVER
    assert [root.name for root in roots] == ["cat_get", "cat_get", "root_get", "panic_get", "request"]
    first, again, root, panic, nowhere = roots
    assert (first.trace, first.parent) == (again.trace, again.parent) == PARENT
    assert root.parent == "" and root.trace not in (first.trace, panic.trace)
    parts = {span.name: span.trace for span in spans if span.parent == first.id}
    assert parts == dict.fromkeys(("store", "render", "encode"), PARENT[0])
    assert not any(span.parent == again.id for span in spans)
    assert first.attributes == {
        "http.request.method": "GET", "http.route": "/cat/<cat_id>", "http.response.status_code": 200,
        "url.path": "/cat/house-7", "url.scheme": "http", "user_agent.original": CURL["User-Agent"],
        "country": "GB", "cat_id": "house-7", "cached": False,
    }
    assert again.attributes["cached"] is True
    assert panic.error == "This is a drill: somebody asked for /panic" and first.error is nowhere.error is None
    assert nowhere.attributes["http.response.status_code"] == 404 and "http.route" not in nowhere.attributes
    assert panic.attributes["error.type"] == "500" and "error.type" not in nowhere.attributes
    assert first.resource["service.name"] == "my-cats" and first.resource["team"] == "tabby"
    assert first.resource["service.version"] == catscii.__version__
    logged = [line["fields"] for line in service.log if "trace_id" in line["fields"]]
    assert [line["trace_id"] for line in logged if "ms" in line] == [root.trace for root in roots]
    assert panic.trace in [line["trace_id"] for line in logged if line["message"] == "Request failed"]
    assert {(headers["x-key"], headers["y"]) for _, headers, _ in upstream.posts} == {("a b", "z")}
    assert "k3y" not in repr(upstream.posts), "the key goes to Honeycomb alone"


def test_a_refresh_is_a_trace_with_the_names_of_the_rust_service(start, upstream):
    upstream.answers["/v1/images/search"] = sends(b"down", 503)
    endpoint, sources = upstream.url + "/v1/traces", f"{upstream.the_cat_api},{upstream.cataas}"
    service = start(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=endpoint, CAT_SOURCES=sources)
    eventually(service.stored)
    assert service.stop() == 0
    spans = collected(upstream)
    roots = [span for span in spans if span.name == "get_cat_ascii_art"]
    assert len({span.trace for span in spans}) == len(roots) and not any(root.parent for root in roots)
    failed, good = (next(root for root in roots if bool(root.error) == failed) for failed in (True, False))
    assert failed.error == "Unavailable: status 503" and good.resource["service.name"] == "catscii"
    children = [span for span in spans if span.parent == failed.id]
    assert [span.name for span in children] == ["api_headers", "api_body"] and children[1].error
    children = [span for span in spans if span.parent == good.id]
    assert [span.name for span in children] == ["api_headers", "api_body", "download_file", "decode"]
    assert [span.name for span in spans if span.parent == children[2].id] == ["file_headers", "file_body"]
    assert children[3].attributes["bytes"] > 1000


@pytest.mark.parametrize("kind", ["SENTRY_DSN", "OTEL_EXPORTER_OTLP_ENDPOINT"])
def test_telemetry_trusts_the_same_authorities_as_everything_else(start, secure_upstream, ca_file, kind):
    variables = {kind: secure_upstream.dsn if kind == "SENTRY_DSN" else secure_upstream.url}
    for trusted in ({}, {"NIX_SSL_CERT_FILE": ca_file}):  # the SDKs read SSL_CERT_FILE themselves
        assert not secure_upstream.posts
        service = start(**variables, **trusted)
        service.get("/panic")
        assert service.stop() == 0
    assert secure_upstream.posts


def test_honeycomb_gets_traces_for_its_key(start, upstream):
    service = start(command=patched(f"catscii.HONEYCOMB = '{upstream.url}/v1/traces'"), HONEYCOMB_API_KEY="k3y")
    service.get("/")
    assert service.stop() == 0 and collected(upstream)[-1].resource["service.name"] == "catscii"
    headers = upstream.posts[0][1]
    assert (headers["x-honeycomb-team"], headers["x-honeycomb-dataset"]) == ("k3y", "catscii")


@pytest.mark.parametrize("dead", [False, True])
def test_neither_visitors_nor_the_end_wait_for_telemetry_that_hangs_or_is_dead(start, upstream, dead):
    release, nowhere = threading.Event(), "http://abc@localhost:9/42"
    upstream.answers["POST"] = lambda handler: release.wait(60) and None
    service = start(SENTRY_DSN=nowhere if dead else upstream.dsn, OTEL_EXPORTER_OTLP_TIMEOUT="1",
                    OTEL_EXPORTER_OTLP_ENDPOINT=nowhere if dead else upstream.url,
                    OTEL_BSP_SCHEDULE_DELAY="50", OTEL_BSP_MAX_QUEUE_SIZE="8", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="4")
    service.get("/panic")
    if not dead:
        eventually(lambda: {path for path, *_ in upstream.posts} == {"/api/42/envelope/", "/v1/traces"})
    else:
        eventually(lambda: any(line["target"].startswith("opentelemetry") for line in service.log))
    for _ in range(100):
        started = time.monotonic()
        assert service.get("/health").status == 200 and time.monotonic() - started < SOON
    started = time.monotonic()
    assert service.stop() == 0 and time.monotonic() - started < 2 * catscii.FLUSH_SECONDS + SOON
    assert all(line.startswith("{") for line in service.lines), "the SDKs write nothing beside the log"
    release.set()


@pytest.mark.parametrize(("variable", "value", "package", "module"), [
    ("SENTRY_DSN", "http://k3y@localhost:9/42", "sentry-sdk", "sentry_sdk"),
    ("HONEYCOMB_API_KEY", "k3y", "opentelemetry-exporter-otlp-proto-http", "opentelemetry"),
])
def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path, variable, value, package, module):
    code = f"import runpy, sys; sys.modules[{module!r}] = None; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    environment = {"PATH": os.environ["PATH"], "ANALYTICS_DB": str(tmp_path / "x.db"), "PORT": "0", variable: value}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    (line,) = result.stderr.splitlines()
    assert result.returncode == 2 and variable in line and "k3y" not in line
    assert f"`uv run --with {package} catscii.py`" in line and f"`pip install {package}`" in line


def test_without_telemetry_the_start_says_so_and_nothing_of_it_is_imported(start):
    listing = "import atexit; atexit.register(lambda: print('modules:', *sys.modules, file=sys.stderr))"
    service = start(command=patched(listing))
    service.get("/")
    assert service.stop() == 0
    off = {"version": catscii.__version__, "countries": "off", "sources": [], "sentry": "off", "otlp": "off"}
    told = service.wait_for("Listening on ")
    assert {name: told[name] for name in off} == off
    listed = next(line for line in service.lines if line.startswith("modules:"))
    imported = {name.partition(".")[0] for name in listed.split()}
    assert "bottle" in imported
    assert not imported & {"sentry_sdk", "opentelemetry", "requests", "google", "certifi", "urllib3"}


def test_the_first_log_line_says_what_is_on_and_secrets_stay_secret(start, upstream, country_db):
    urls = f"{upstream.the_cat_api},http://u:s3cret6@localhost:9/v1/images/search?key=s3cret7"
    upstream.answers["/v1/images/search"] = sends(b"no", 500)
    variables = SECRETS | {"CAT_SOURCES": urls, "GEOLITE2_COUNTRY_DB": country_db}
    service = start(**variables, LOG_LEVEL="debug", OTEL_BSP_SCHEDULE_DELAY="50")
    on = {"countries": country_db, "sources": ["localhost", "localhost"], "sentry": "localhost", "otlp": "localhost"}
    told = service.wait_for("Listening on ")
    assert {name: told[name] for name in on} == on
    pages = [service.get(path).data for path in ("/", "/cat/nobody", "/panic", "/health", "/metrics", "/nowhere")]
    service.wait_for("Source fails")
    eventually(lambda: any(line["target"].startswith("opentelemetry") for line in service.log))
    assert service.stop() == 0
    shown = b"".join([*pages, *(line.encode() for line in service.lines), run("--help", **variables).stdout])
    assert b"s3cret" not in shown and "s3cret" not in repr(catscii.read_settings(SECRETS))


def test_a_list_of_urls_may_end_with_a_comma():
    endpoints = "http://a:1, http://b:2,"
    assert catscii.read_settings({"ETCD_ENDPOINTS": endpoints}).etcd_endpoints == ("http://a:1", "http://b:2")
    assert catscii.read_settings({"CAT_SOURCES": endpoints}).cat_sources == ("http://a:1", "http://b:2")


@pytest.mark.parametrize(("variable", "value"), [
    ("ETCD_ENDPOINTS", "http://u:s3cret@host,,http://host"),
    ("CAT_API_KEY", "s3cret\nx"),
    ("CAT_API_KEY", "s3crét"),
    ("HONEYCOMB_API_KEY", "s3cret\nx"),
    ("HONEYCOMB_API_KEY", "s3crét"),
    ("SENTRY_DSN", "s3cret\nx"),
    ("SENTRY_DSN", "s3cret"),
    ("SENTRY_DSN", "https://s3cret@/1"),
    ("SENTRY_DSN", "https://s3cret@host"),
    ("SENTRY_DSN", "ftp://s3cret@host/1"),
    ("ETCD_ENDPOINTS", "http://u:s3cret@host:65536"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "s3cret:4318"),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "grpc://u:s3cret@host"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "s3cret"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "a=b,s3cret"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "a=s3cret%0Ax"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "a=s3crét"),
    ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", 'a="s3cret"'),
])
def test_a_wrong_secret_is_refused_without_being_shown(variable, value):
    with pytest.raises(catscii.SetupError) as error:
        catscii.read_settings({variable: value})
    (problem,) = error.value.args
    assert problem.startswith(f"{variable}: is not ") and "s3cr" not in problem


def test_metrics_are_what_prometheus_reads_and_visitors_cannot_add_time_series(start, upstream, country_db):
    service = start(command=QUICKLY_FILLED, CAT_SOURCES=upstream.cataas,
                    GEOLITE2_COUNTRY_DB=country_db, CLIENT_IP_HEADER="X-Real-IP")
    eventually(lambda: service.stored() == FEW_CATS)
    sql(service.database, "UPDATE cats SET source = ? WHERE rowid = 1", 'a"b\\c\nd')
    before = samples(service)
    for path in ("/?width=79", "/cat/house-9", "/cat/house-9", "/cat/nobody", "/panic"):
        service.get(path, VISITOR)
    found = samples(service)
    requests = found["catscii_requests_total"]
    assert requests["/cat/<cat_id>", "200"] == 2 and requests["/cat/<cat_id>", "404"] == requests["/panic", "500"] == 1
    assert found["catscii_visits_total"] == {("GB",): 3}
    assert found["catscii_stored_cats"] == {(urlsplit(upstream.url).netloc,): FEW_CATS - 1, ('a"b\\c\nd',): 1}
    assert found["catscii_refreshes_total"]["stored",] == FEW_CATS
    assert 0 <= found["catscii_refresh_age_seconds"][()] < 60 > time.time() - found["process_start_time_seconds"][()]
    assert found["catscii_request_seconds_count"]["/cat/<cat_id>",] == 3
    assert found["catscii_render_seconds_count"][()] == before.get("catscii_render_seconds_count", {}).get((), 0) + 2
    buckets = [found["catscii_request_seconds_bucket"]["/cat/<cat_id>", bound] for bound in catscii.BUCKETS]
    assert buckets == sorted(buckets) and buckets[-1] == 3 and found["catscii_render_seconds_bucket"]["0.001",] == 0
    known = len(service.get("/metrics").data.splitlines())
    for i in range(20):
        service.get(f"/cat/nobody{i}?width={i}", CURL | {"User-Agent": str(i)})
        service.get(f"/nowhere{i}", method=f"METHOD{i}")
        service.get("/", method=f"METHOD{i}")
    text = service.get("/metrics").data.decode()
    fresh = len(catscii.BUCKETS) + 2 + 3  # the histogram of unknown routes, and three pairs of a route and a status
    assert "nobody" not in text and "METHOD" not in text and len(text.splitlines()) <= known + fresh


def test_metrics_tell_of_the_process_of_connections_and_of_the_version(service):
    with crowd(service, 5, lambda _: None):
        eventually(lambda: samples(service)["catscii_open_connections"][()] >= 5)
    found = {name: values[()] for name, values in samples(service).items() if () in values}
    assert samples(service)["catscii_build_info"] == {(catscii.__version__,): 1}
    assert found["process_cpu_seconds_total"] > 0.1 and found["catscii_dropped_log_lines_total"] == 0
    assert 10 <= found["process_open_fds"] < found["process_max_fds"]
    assert abs(found["process_resident_memory_bytes"] / 1e6 - resident_megabytes(service.process.pid)) < 20


NEEDS_PROMTOOL = pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool, which is part of Prometheus")


@NEEDS_PROMTOOL
def test_metrics_please_promtool(service):
    service.get("/cat/house-9?width=33")
    result = subprocess.run(["promtool", "check", "metrics"], input=service.get("/metrics").data, capture_output=True)
    assert (result.returncode, result.stdout + result.stderr) == (0, b"")


class Alert(NamedTuple):
    """An alert of docs/alerts.yml, and the values of a time series, one per minute, for which it fires or does not."""

    name: str
    series: str
    values: str
    minute: int  # when it fires
    severity: str
    summary: str
    quiet: str = "0x99"  # the values of a healthy service


ALERTS = [
    Alert("CatsciiDown", "up", "1x4 0x9", 8, "page", "one does not answer Prometheus", "1x99"),
    Alert("CatsciiErrors", 'catscii_requests_total{status="500",route="/"}', "_x29 1", 30, "ticket",  # a first error
          "one failed to answer /; the log has the traceback", "7x99"),
    Alert("CatsciiErrors", 'catscii_requests_total{status="500",route="/"}', "5x29 6", 30, "ticket",
          "one failed to answer /; the log has the traceback", "7x99"),
    Alert("CatsciiVisitsNotWritten", "catscii_waiting_visits", "0x4 9x9", 8, "page",
          "one cannot write to its database; /health and the log have the reason"),
    Alert("CatsciiSlow", 'catscii_request_seconds_bucket{route="/",le="5"}', "0+9x20", 18, "ticket",
          "one takes more than 2.5 seconds for one of 100 pages"),
    Alert("CatsciiTooManyDrawings", "catscii_refused_drawings_total", "0+1x30", 20, "ticket",
          "one refuses drawings, because too many wait"),
    Alert("CatsciiManyConnections", "catscii_open_connections", "950x20", 10, "ticket",
          "one has 950 connections; at 1000, each new one replaces another", "800x99"),
    Alert("CatsciiMemory", "process_resident_memory_bytes", "450000000x30", 20, "ticket",
          "one uses 450MB of memory", "250000000x99"),
    Alert("CatsciiRestarts", "process_start_time_seconds", "0+60x20", 3, "page",
          "one started 3 times in 30 minutes", "0x40 60x40"),
    Alert("CatsciiNoNewCats", "catscii_refresh_age_seconds", "0+3600x20", 17, "ticket",
          "one got no photograph for 17h 0m 0s", "0+60x99"),
    Alert("CatsciiLogLinesLost", "catscii_dropped_log_lines_total", "0x9 5x9", 11, "ticket",
          "one drops log lines, because nothing reads them in time"),
    Alert("CatsciiMachinesApart", "catscii_failed_exchanges_total", "0+60x30", 20, "ticket",
          "one cannot exchange visits with etcd"),
]


def scraped(series: str, instance: str = "one") -> str:
    """Return a time series with the labels that Prometheus adds to it."""
    name, _, labels = series.partition("{")
    added = f'{name}{{job="catscii",instance="{instance}"'
    return added + (f",{labels}" if labels else "}")


def complaints(folder: Path, **test: Any) -> str:
    """Run a test of Prometheus' rules, with docs/alerts.yml, and return what promtool complains about."""
    file = folder / "test.json"  # JSON is YAML
    tests = {"rule_files": [str(FOLDER / "docs/alerts.yml")], "evaluation_interval": "1m"}
    file.write_text(json.dumps({**tests, "tests": [{"interval": "1m", **test}]}))
    result = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, timeout=60)
    assert result.returncode in (0, 1)
    return "" if result.returncode == 0 else result.stdout + result.stderr


@NEEDS_PROMTOOL
@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_fires_when_it_should_and_a_healthy_service_is_quiet(tmp_path, alert):
    labels = {"job": "catscii", "instance": "one", "severity": alert.severity}
    if alert.name == "CatsciiErrors":
        labels |= {"route": "/", "status": "500"}
    fires = {"exp_labels": labels, "exp_annotations": {"summary": alert.summary}}
    for values, expected in ((alert.values, [fires]), (alert.quiet, [])):
        series = {alert.series: values}
        if alert.name == "CatsciiSlow":  # all requests take longer than 2.5 and at most 5 seconds
            series[alert.series.replace('"5"', '"+Inf"')] = values
            series[alert.series.replace('"5"', '"2.5"')] = "0x99"
        given = [{"series": scraped(name), "values": text} for name, text in series.items()]
        check = {"eval_time": f"{alert.minute}m", "alertname": alert.name, "exp_alerts": expected}
        assert complaints(tmp_path, input_series=given, alert_rule_test=[check]) == ""


@NEEDS_PROMTOOL
def test_every_alert_is_tested_and_prometheus_takes_the_printed_configuration(tmp_path):
    rules = FOLDER / "docs/alerts.yml"
    names = re.findall("alert: (.*)", rules.read_text())
    assert set(names) == {alert.name for alert in ALERTS}
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(printed("yaml", {"/etc/prometheus/alerts.yml": rules}))
    result = subprocess.run(["promtool", "check", "config", configuration], capture_output=True, text=True)
    assert result.returncode == 0 and f"{len(names)} rules" in result.stdout, result


def queries() -> list[str]:
    """Return all queries of the dashboard, of the alerts (without their limits) and of docs/machines.md."""
    dashboard = json.loads((FOLDER / "docs/dashboard.json").read_text())
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    shown = [query.replace("$__rate_interval", "5m").replace("$instance", ".*") for query in shown]
    rules = re.findall(r"expr: (?:>-\n)?(.*(?:\n {10}.*)*)", (FOLDER / "docs/alerts.yml").read_text())
    watched = [re.sub(r" (==|>) [\de. *]+(?= or |$)", "", " ".join(rule.split())) for rule in rules]
    summed = re.findall(r"`(sum .*?)`", (FOLDER / "docs/machines.md").read_text())
    assert len(shown) > 20 and len(watched) == len({alert.name for alert in ALERTS}) and len(summed) == 1
    return [*shown, *watched, *summed]


@NEEDS_PROMTOOL
def test_every_query_of_the_dashboard_and_of_the_alerts_finds_something_in_real_services(
        machine, cluster, upstream, tmp_path):
    etcd = cluster()
    services = {name: machine(name, etcd.endpoints, CAT_SOURCES=upstream.the_cat_api) for name in ("one", "two")}

    def busy() -> dict[str, str]:
        """Return the values of all time series, after some requests to both services."""
        values = {}
        for name, service in services.items():
            visit_from(service, "FR", "JP")
            for path in ("/", f"/cat/house-{random.randrange(catscii.HOUSE_CATS)}", "/panic"):
                service.get(path)
            text = service.get("/metrics").data.decode()
            values |= {scraped(series, name): value for series, value in re.findall("^([a-z].*) (.*)$", text, re.M)}
        return values

    for service in services.values():
        eventually(lambda: service.stored() > 2)  # noqa: B023
        eventually(lambda: "catscii_machines" in samples(service))  # noqa: B023
    before = busy()
    after = busy()
    # For a quarter of an hour, Prometheus sees the first values, then the others.
    seen = {series: f"{before.get(series, '_')}x15 {value}x5" for series, value in after.items()}
    seen |= {scraped("up", name): "1x20" for name in services}
    given = [{"series": series, "values": values} for series, values in seen.items()]
    checks = []
    for query in queries():
        known = f"({query}) == ({query})"  # without NaN, which is not equal to itself
        found = {"labels": "{}", "value": 1}
        checks.append({"expr": f"clamp_max(count({known}), 1)", "eval_time": "18m", "exp_samples": [found]})
    assert complaints(tmp_path, input_series=given, promql_expr_test=checks) == ""
    visits = Counter[str]()
    for series, value in after.items():
        if country := re.search('^catscii_visits_total.*country="(..)"', series):
            visits[country[1]] += int(value)
    summed = [{"labels": f'{{country="{country}"}}', "value": count} for country, count in visits.items()]
    check = {"expr": queries()[-1], "eval_time": "18m", "exp_samples": summed}
    assert len(visits) == 3 and complaints(tmp_path, input_series=given, promql_expr_test=[check]) == ""


# ---------------------------------------------------------------------------------------------------------------------
# Art
# ---------------------------------------------------------------------------------------------------------------------


def cells_of_art(art: catscii.Art) -> list[list[tuple[str, str, str]]]:
    """Return rows of (character, foreground, background), without the foreground of spaces."""
    planes = (catscii.chunks(plane.hex(), 6) if plane else [""] * (len(art.foreground) // 3) for plane in art[1:])
    cells = zip("".join(art.rows), *planes, strict=True)
    return catscii.chunks([(c, "" if c == " " else ink, paper) for c, ink, paper in cells], len(art.rows[0]))


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
            for kind, *rgb in re.findall(r"([34]8);2;(\d+);(\d+);(\d+)", codes):
                value = bytes(map(int, rgb)).hex()
                ink, paper = (value, paper) if kind == "38" else (ink, value)
        assert (ink, paper) == ("", ""), "a line does not reset its colours"
        rows.append(row)
    return rows


def plane_of(layer: str) -> bytes | None:
    """Return R, G, B of each pixel of a layer of the page, or None for "none"."""
    if layer == "none":
        return None
    file = base64.b64decode(layer.removeprefix("url(data:image/webp;base64,").removesuffix(")"))
    return Image.open(io.BytesIO(file)).convert("RGB").tobytes()


pictures = st.builds(
    lambda seed, size, mode: Image.open(io.BytesIO(photograph(seed, size, "PNG"))).convert(mode),
    st.integers(0, 99), st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F"]))


@settings(max_examples=rounds(100), deadline=None)
@given(pictures, st.integers(20, 240), st.none() | st.integers(1, 240), st.sampled_from(catscii.STYLES))
def test_art_has_the_shape_that_fits_and_is_the_same_cell_by_cell_in_every_encoding(picture, width, height, style):
    columns, rows = catscii.fit(picture.size, width, height)
    art = catscii.render(picture, width, height, style)
    assert 1 <= columns <= width and 1 <= rows <= (height or catscii.MAX_ROWS)
    assert [len(row) for row in art.rows] == [columns] * rows and len(art.foreground) == 3 * columns * rows
    assert all(" " <= character <= "~" for row in art.rows for character in row)
    assert len(art.background or "") == (0 if style == "ink" else len(art.foreground))
    assert cells_of_ansi(catscii.to_ansi(art)) == cells_of_art(art)
    assert html.unescape(catscii.to_html(art)) == "\n".join(art.rows)
    assert [plane_of(catscii.layer(plane, columns)) for plane in art[1:]] == [*art[1:]]
    values = json.loads(json.dumps(catscii.to_dict(art)))
    assert catscii.to_text(art).splitlines() == list(art.rows) == values["rows"]
    for plane, name in zip(art[1:], ("foreground", "background"), strict=True):
        rows_of_colours = plane and re.findall(f".{{{6 * columns}}}", plane.hex())
        assert values[name] == rows_of_colours


@pytest.mark.parametrize(("size", "width", "height", "grid"), [
    ((400, 400), 80, None, (80, 40)), ((300, 400), 80, None, (80, 53)), ((400, 305), 80, None, (80, 31)),
    ((400, 400), 80, 20, (40, 20)), ((1, 20000), 80, None, (1, 240)), ((20000, 1), 80, None, (80, 1)),
    ((400, 304), 80, 30, (80, 30))])
def test_a_cell_is_twice_as_tall_as_wide(size, width, height, grid):
    assert catscii.fit(size, width, height) == grid


def drawn_cells(art: catscii.Art) -> Iterator[tuple[str, bytes, bytes, list[float]]]:
    """Yield the glyph, foreground, background and mean colour of each cell."""
    planes = (catscii.chunks(plane, 3) for plane in (art.foreground, art.background))
    for glyph, ink, ground in zip("".join(art.rows), *planes, strict=True):
        cover = catscii.densities()[ord(glyph)]
        yield glyph, ink, ground, [g + (i - g) * cover for i, g in zip(ink, ground, strict=True)]


def mosaic(colours: list[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], Image.Image]:
    """Return the colours, and a picture with a plain cell of each."""
    line = Image.frombytes("RGB", (len(colours), 1), bytes(itertools.chain(*colours)))
    return colours, line.resize((20 * len(colours), 40), Image.Resampling.NEAREST)


extreme_colours = st.tuples(*[st.sampled_from([0, 1, 8, 40, 128, 200, 247, 254, 255]) | st.integers(0, 255)] * 3)
mosaics = st.lists(extreme_colours, min_size=1, max_size=12).map(mosaic)
smooth_mosaics = st.tuples(extreme_colours, st.lists(st.integers(-4, 4), max_size=11)).map(lambda drift: mosaic(
    [tuple(max(0, min(255, level + step)) for level in drift[0]) for step in itertools.accumulate([0, *drift[1]])]))
all_pictures = pictures | mosaics.map(lambda mosaic: mosaic[1])


@settings(max_examples=rounds(200), deadline=None)
@given(mosaics | smooth_mosaics, st.integers(0, 45))
def test_every_cell_without_relief_keeps_its_colour(mosaic, contrast):
    colours, picture = mosaic
    art = catscii.render(picture, len(colours), contrast=contrast)
    for colour, (_, _, _, mean) in zip(colours, drawn_cells(art), strict=True):
        assert all(abs(a - b) <= 2.6 for a, b in zip(mean, colour, strict=True)), "two levels, and rounding"


@settings(max_examples=rounds(100), deadline=None)
@given(all_pictures, st.integers(1, 100))
def test_every_glyph_can_be_read(picture, contrast):
    for glyph, ink, ground, _ in drawn_cells(catscii.render(picture, 24, contrast=contrast)):
        assert glyph != " " and abs(bench_catscii.luma(ink) - bench_catscii.luma(ground)) > contrast - 1.5


def test_cells_share_colours_with_their_neighbours_and_keep_their_glyphs():
    art = catscii.render(catscii.draw_house_cat(3))  # 2,400 cells; a dot replaces a glyph that is too weak
    assert len(catscii.to_ansi(art)) < 26 * 2400 and "".join(art.rows).count(".") < 100


def test_flat_parts_are_empty_in_a_terminal_and_varied_text_on_a_page():
    picture = Image.new("RGB", (400, 400), (150, 120, 90))
    assert set("".join(catscii.render(picture, 40, contrast=0).rows)) == {" "}
    page = Counter("".join(catscii.render(picture, 40).rows))
    assert len(page) > 3 and max(page.values()) < 0.5 * 800, "letters of similar tone take turns"


def mean_contrast(picture: Image.Image) -> float:
    """Return the mean difference of luma between glyphs and backgrounds in a terminal. Spaces have none."""
    cells = drawn_cells(catscii.render(picture, 20, contrast=0))
    return statistics.fmean(abs(bench_catscii.luma(a) - bench_catscii.luma(b)) * (c != " ") for c, a, b, _ in cells)


def test_glyphs_that_fit_badly_are_faint_and_those_that_fit_are_not():
    """Squares of random luma are like no glyph. The slashes are like themselves."""
    squares = Image.effect_noise((100, 100), 120).resize((400, 400), Image.Resampling.NEAREST)
    font, slashes = ImageFont.truetype(bench_catscii.font_path(), 32), Image.new("L", (400, 400))
    for top in range(0, 400, 40):
        ImageDraw.Draw(slashes).text((0, top), "/" * 20, font=font, fill=255)
    assert mean_contrast(squares) < 0.35 * mean_contrast(slashes)


def test_no_glyph_but_the_space_is_in_more_than_a_tenth_of_a_terminal():
    for seed in range(8):
        text = "".join(catscii.render(catscii.draw_house_cat(seed), contrast=0).rows)
        assert Counter(text.replace(" ", "")).most_common(1)[0][1] < 0.1 * len(text)


def test_the_table_of_glyphs_is_that_of_the_font():
    assert zlib.decompress(base64.b85decode("".join(catscii.COVERAGE.split()))) == bench_catscii.coverage()


@pytest.mark.parametrize(("ink", "paper"), [
    ((210, 205, 200), (70, 60, 80)), ((30, 10, 10), (220, 200, 180)), ((220, 220, 220), (80, 80, 80))])
def test_a_glyph_drawn_large_comes_back_as_that_glyph(ink, paper):
    font, cell = ImageFont.truetype(bench_catscii.font_path(), 256), Image.new("L", (160, 320))
    for glyph in catscii.FILL_GLYPHS:
        cell.paste(0, (0, 0, *cell.size))
        ImageDraw.Draw(cell).text((0, 0), glyph, font=font, fill=255)
        picture = Image.composite(Image.new("RGB", cell.size, ink), Image.new("RGB", cell.size, paper), cell)
        assert catscii.render(picture, 1).rows == (glyph,)


def squared(a: bytes, b: bytes) -> int:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("contrast", [1, 2, 3, 4, 5, 6, 26, 100])
def test_each_cell_has_a_glyph_if_a_contrast_is_given(contrast):
    art = catscii.render(catscii.draw_house_cat(1), contrast=contrast)
    assert " " not in "".join(art.rows)


@pytest.mark.parametrize("colors", ["256", "16"])
@settings(max_examples=rounds(80), deadline=None)
@given(pictures, st.integers(0, 60), st.sampled_from(catscii.STYLES))
def test_few_colours_are_those_of_the_terminal_and_keep_the_contrast(colors, picture, contrast, style):
    art = catscii.render(picture, 24, None, style, contrast, colors=colors)
    allowed = catscii.palette(colors)
    assert all(colour in allowed for plane in art[1:] for colour in catscii.chunks(plane or b"", 3))
    if style == "fill" and contrast:
        for glyph, ink, ground, _ in drawn_cells(art):
            assert glyph != " " and abs(bench_catscii.luma(ink) - bench_catscii.luma(ground)) >= contrast


def test_a_flat_cell_has_the_nearest_of_256_colours():
    colours, picture = mosaic([tuple(random.Random(i).randbytes(3)) for i in range(40)])
    art, allowed = catscii.render(picture, 40, contrast=0, colors="256"), catscii.palette("256")
    for colour, ground in zip(colours, catscii.chunks(art.background, 3), strict=True):
        least = min(squared(bytes(colour), other) for other in allowed)
        assert squared(bytes(colour), ground) <= 1.2 * least + 100, "Pillow compares blocks of four levels"


def test_few_colours_keep_the_glyphs_that_they_can_show():
    """A white stroke on black can be shown in 16 colours. One that is hardly lighter than its background cannot."""
    for ink, paper, kept in (((255, 255, 255), (0, 0, 0), True), ((150, 130, 120), (130, 110, 100), False)):
        picture = Image.new("RGB", (400, 400), paper)
        ImageDraw.Draw(picture).line([(100, 400), (300, 0)], ink, 16)
        picture.paste((255, 255, 255), (0, 0, 100, 100))  # so that stretching the contrast changes little
        picture.paste((0, 0, 0), (300, 300, 400, 400))
        shown = "".join(catscii.render(picture, 20, contrast=0, colors="16").rows)
        assert bool(shown.strip()) is kept


def test_in_16_colours_grey_stays_grey_and_ginger_warm():
    colours = [(20, 20, 20), (235, 235, 235), (120, 118, 122), (205, 140, 75), (70, 150, 60)]
    art = catscii.render(mosaic(colours)[1], 5, contrast=0, colors="16")
    black, white, grey, ginger, green = catscii.chunks(art.background, 3)
    assert max(black) < 80 and min(white) > 200 and len(set(grey)) == 1
    assert ginger[0] >= ginger[1] > ginger[2] and green[1] > max(green[0], green[2])


@pytest.mark.parametrize("background", catscii.BACKGROUNDS)
def test_plain_text_is_a_smooth_ramp_of_glyphs(background):
    picture = Image.linear_gradient("L").rotate(90)
    row, = set(catscii.render(picture, 60, style="ink", background=background, colors="none").rows)
    densities = [catscii.densities()[ord(glyph)] for glyph in row]
    assert densities == sorted(densities, reverse=background == "light") and len(set(densities)) > 12


@pytest.mark.parametrize("background", catscii.BACKGROUNDS)
def test_glyphs_and_colours_of_ink_share_the_tone(background):
    picture = Image.linear_gradient("L").rotate(90)
    art = catscii.render(picture, 60, style="ink", background=background)
    densities = [catscii.densities()[ord(glyph)] for glyph in art.rows[0]]
    lumas = [*map(bench_catscii.luma, catscii.chunks(art.foreground[:3 * 60], 3))]
    rising = statistics.fmean(densities[:20]) < statistics.fmean(densities[20:40]) < statistics.fmean(densities[40:])
    falling = statistics.fmean(densities[:20]) > statistics.fmean(densities[20:40]) > statistics.fmean(densities[40:])
    assert falling if background == "light" else rising
    assert background == "light" or (lumas == sorted(lumas) and len(set(lumas)) > 20)


def test_no_glyph_of_ink_is_in_most_cells():
    for seed in range(8):
        text = "".join(catscii.render(catscii.draw_house_cat(seed), style="ink").rows)
        assert Counter(text).most_common(1)[0][1] < 0.4 * len(text)


@pytest.mark.parametrize(("turn", "glyph", "others"), [(27, "/", "\\"), (-27, "\\", "/"), (0, "|", "\\/")])
def test_edges_in_ink_have_glyphs_of_their_direction(turn, glyph, others):
    picture = Image.new("L", (600, 600))
    ImageDraw.Draw(picture).line([(310, -300), (310, 900)], 255, 8)
    drawn = "".join(catscii.render(picture.rotate(-turn), 30, style="ink", colors="none").rows)
    assert drawn.count(glyph) >= 4 and not set(drawn) & set(others)


def relative_luminance(colour: bytes) -> float:
    """Return what WCAG 2.2 defines under this name."""
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (level / 255 for level in colour))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@settings(max_examples=rounds(80), deadline=None)
@given(all_pictures)
def test_colours_of_ink_can_be_read_on_their_page(picture):
    """On white, WCAG 2.2 wants a contrast of 3:1. On black, colours of 24 or more levels of luma can be read."""
    light, dark = (catscii.chunks(catscii.render(picture, 24, style="ink", background=background).foreground, 3)
                   for background in ("light", "dark"))
    assert all(1.05 / (relative_luminance(colour) + 0.05) >= 3 for colour in light)
    assert all(bench_catscii.luma(colour) >= 24 for colour in dark)


def test_the_docs_show_the_steps_as_they_are_now(tmp_path):
    bench_catscii.draw_steps(catscii.draw_house_cat(42), tmp_path)
    shown = re.findall(r"\((step-.*?\.png)\)", (FOLDER / "docs/design.md").read_text())
    assert sorted(shown) == sorted(path.name for path in tmp_path.iterdir())
    for name in shown:
        new, old = (Image.open(folder / name).convert("RGB") for folder in (tmp_path, FOLDER / "docs"))
        assert new.size == old.size and max(ImageStat.Stat(ImageChops.difference(new, old)).mean) < 1, name


@pytest.mark.opencv
@pytest.mark.parametrize(("style", "share"), [("fill", 0.9), ("ink", 0.38)])
def test_detectors_recognise_the_cats(style, share):
    """Over 30 portraits with open eyes, OpenCV recognises 0.96 and 0.47 of them."""
    cats = ((seed, catscii.HouseCat(seed)) for seed in itertools.count())
    portraits = (seed for seed, cat in cats if cat.pose == "portrait" and cat.mood in ("calm", "curious", "cheeky"))
    pictures = map(catscii.draw_house_cat, itertools.islice(portraits, 20 if THOROUGH else 5))
    arts = [Image.open(io.BytesIO(catscii.to_png(catscii.render(p, style=style), "dark"))) for p in pictures]
    assert statistics.fmean(itertools.chain(*map(bench_catscii.looks, arts))) >= share


MODES = {"JPEG": "RGB L CMYK", "PNG": "1 L LA P RGB RGBA I;16", "GIF": "P", "WEBP": "RGB", "BMP": "RGB",
         "TIFF": "CMYK F", "PPM": "RGB"}


@pytest.mark.parametrize(("format", "mode"), [(format, mode) for format in MODES for mode in MODES[format].split()])
def test_every_format_and_mode_shows_the_same_picture_also_in_a_box(format, mode):
    picture = Image.open(io.BytesIO(photograph(3, (320, 240)))).convert("L")
    deep = picture.convert("I").point(lambda level: level * 257).convert("I;16")
    data = encoded(deep if mode == "I;16" else picture.convert(mode), format)
    in_process = catscii.decode(data, 320)
    in_box = catscii.decode_in_sandbox(data, 320, catscii.SandboxKeeper().sandbox)
    assert (in_process.size, in_process.tobytes()) == (in_box.size, in_box.tobytes())
    seen = in_process.convert("L")
    difference = sum(abs(a - b) for a, b in zip(seen.tobytes(), picture.tobytes(), strict=True)) / (320 * 240)
    assert difference < (125 if mode == "1" else 20 if mode == "F" else 3)


def test_exif_orientation_transparency_and_the_first_frame_are_heeded():
    picture, exif = Image.new("RGB", (60, 40), "red"), Image.Exif()
    picture.paste("blue", (0, 0, 60, 20))
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    turned = catscii.decode(encoded(picture, "PNG", exif=exif), 100)
    assert (turned.size, turned.getpixel((5, 5)), turned.getpixel((35, 5))) == ((40, 60), (255, 0, 0), (0, 0, 255))
    clear = catscii.decode(encoded(Image.new("RGBA", (9, 9), (255, 255, 255, 0)), "PNG"), 9)
    assert clear.getpixel((4, 4)) == catscii.BACKGROUNDS["dark"]
    first, *others = (Image.new("RGB", (9, 9), colour) for colour in ("lime", "red", "blue"))
    assert catscii.decode(encoded(first, "GIF", save_all=True, append_images=others), 9).getpixel((4, 4)) == (0, 255, 0)
    for format, broken in itertools.product(("JPEG", "PNG", "WEBP"), (b"Exif\0\0no TIFF header", b"Exif\0\0MM\0*")):
        assert catscii.decode(encoded(picture, format, exif=broken), 60).size == (60, 40)


def test_a_large_picture_is_reduced_and_one_of_too_many_pixels_is_refused_from_its_header():
    for format, mode in (("PNG", "L"), ("PNG", "RGB"), ("PNG", "RGBA"), ("JPEG", "RGB")):
        assert catscii.decode(photograph(1, (3200, 2400), format, mode), 400).size == (400, 300)
    with pytest.raises(catscii.PictureError, match="too much memory"):
        catscii.decode(encoded(Image.new("1", (9000, 9000)), "PNG")[:99], 480)


def test_a_picture_of_any_shape_is_stored_as_a_small_jpeg(upstream, monkeypatch):
    monkeypatch.setattr(catscii, "STORED_SIDE", 480)
    fetcher = catscii.Fetcher(None, [upstream.url])
    first, *others = (Image.new("P", (8, 8), i % 256) for i in range(2000))
    film = encoded(first, "GIF", save_all=True, append_images=others)
    shapes = [(photograph(1, size, "PNG"), small) for size, small in (
        ((1, 1), (1, 1)), ((1, 20_000), (1, 480)), ((2000, 1000), (480, 240)))]
    for data, size in [*shapes, (film, (8, 8))]:
        upstream.answers["/picture"] = sends(data)
        stored = Image.open(io.BytesIO(fetcher.picture(catscii.Cat("", "", upstream.url + "/picture"))))
        assert (stored.format, stored.size) == ("JPEG", size)


def zeros(count: int) -> bytes:
    """Return `count` zeros in zlib's format. This is fast for gigabytes too."""
    deflater = zlib.compressobj(9, wbits=-15)
    mebibyte = deflater.compress(bytes(1 << 20)) + deflater.flush(zlib.Z_FULL_FLUSH)
    rest = deflater.compress(bytes(count % (1 << 20))) + deflater.flush()
    return b"x\xda" + mebibyte * (count >> 20) + rest + struct.pack(">HH", count % 65521, 1)


def png(width: int, height: int, channels: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I4s", len(data), name) + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zeros((1 + width * channels) * height), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(itertools.starmap(chunk, chunks.items()))


def tiff(width: int, height: int, bits: int, compression: int, data: bytes, tile: int = 0) -> bytes:
    """Return a grey picture in one strip or, if `tile` is its side, in one tile."""
    place = {322: tile, 323: tile, 324: 8, 325: len(data)} if tile else {273: 8, 278: height, 279: len(data)}
    tags = {256: width, 257: height, 258: bits, 259: compression, 262: 1, 277: 1, **place}
    entries = [struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags)]
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + b"".join(entries)


def jpeg(side: int, frame: int, components: int, scans: list[tuple[bytes, bytes]]) -> bytes:
    """Return a square whose coefficients are all 0, each of which takes a bit."""
    def segment(marker: int, data: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, 2 + len(data)) + data

    tables = segment(0xDB, b"\0" + b"\1" * 64) + b"".join(segment(0xC4, bytes([i, 1, *[0] * 16])) for i in (0, 0x10))
    layout = b"".join(bytes([i + 1, 0x11, 0]) for i in range(components))
    start = tables + segment(frame, struct.pack(">BHHB", 8, side, side, components) + layout)
    return b"\xff\xd8" + start + b"".join(segment(0xDA, head) + data for head, data in scans) + b"\xff\xd9"


GREEDY: dict[str, Callable[[], bytes]] = {  # files that want gigabytes or minutes, or that libtiff complains about
    "a-tile-larger-than-its-picture": lambda: tiff(64, 64, 8, 8, zeros(46_000**2), 46_000),
    "a-strip-of-all": lambda: tiff(8000, 8000, 16, 8, zeros(2 * 8000**2)),
    "complaints": lambda: tiff(8, 500_000, 1, 3, random.Random(1).randbytes(1_000_000)),
    "a-column": lambda: png(1, 64_000_000, 4),
    "comments": lambda: encoded(Image.new("1", (8, 8)), "GIF").replace(b",", b"!\xfe" + b"\2ab" * 5_000_000 + b"\0,"),
    "scans-of-a-component": lambda: jpeg(8000, 0xC0, 4, [(bytes([1, i, 0, 0, 63, 0]), bytes(250_000))
                                                         for i in (1, 2, 3, 4)]),
    "scans": lambda: jpeg(4000, 0xC2, 1, [(bytes([1, 1, 0, 0, 0, 0]), b"\0")] * 60_000),
}


def children(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread has ended
            found += map(int, path.read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """Return the children of a process, their children, and so on."""
    found = children(pid)
    return [*found, *itertools.chain(*map(descendants, found))]


def resident_megabytes(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_greedy_pictures_are_refused_in_little_time_memory_and_log_and_the_next_one_is_shown(start, upstream):
    upstream.known.add("only")
    upstream.answers["/v1/images/search"] = sends([upstream.the_cat_api_entry("only")])
    patient = patched("catscii.VISITORS_REQUESTS_A_MINUTE, catscii.SANDBOX_SECONDS = 999, 200")
    service = start(command=patient, CAT_SOURCES=upstream.the_cat_api)
    eventually(lambda: service.stored() == 1)
    statuses, pid = {}, service.process.pid
    for name, make in GREEDY.items():
        upstream.known |= {name, f"after-{name}"}
        upstream.answers[f"/images/{name}.jpg"] = sends(make())
        used, most = processor_seconds(service), 0.0
        with ThreadPoolExecutor(1) as pool:
            response = pool.submit(service.get, f"/cat/{name}", timeout=200)
            while not response.done():
                with contextlib.suppress(OSError):  # a process has ended
                    most = max(most, sum(map(resident_megabytes, [pid, *descendants(pid)])))
                time.sleep(0.01)
        statuses[name] = response.result().status
        assert processor_seconds(service) - used < catscii.SANDBOX_SECONDS and 0 < most < 250, name
        assert service.json(f"/cat/after-{name}")["id"] == f"after-{name}"
    service.stop()
    refused = GREEDY.keys() - {"complaints"}  # which is drawn
    assert statuses == dict.fromkeys(GREEDY, 200) | dict.fromkeys(refused, 503)
    told = [line["fields"].get("id") for line in service.log if "path" not in line["fields"]]
    assert {name: told.count(name) for name in refused} == dict.fromkeys(refused, 1)
    assert len(service.lines) == len(service.log) < 3 * len(GREEDY) + 10  # none from libtiff


def decoding(box: str, tmp_path: Path, data: bytes, code: str = "") -> subprocess.Popen[bytes]:
    """Start a process that decodes the data in a box, and prints why that fails."""
    (tmp_path / "data").write_bytes(data)
    (tmp_path / "random.py").write_text("raise SystemExit")
    code = f"""
import sys
sys.path.insert(0, {str(FOLDER)!r})
import catscii
{code}
data = open("data", "rb").read()
catscii.import_decoders(data)
try:
    catscii.decode_in_sandbox(data, 480, {box})
except catscii.PictureError as error:
    print(error)
"""
    return subprocess.Popen([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, cwd=tmp_path,
                            env={"PATH": os.environ["PATH"], "CAT_API_KEY": "s3cret"})


BOXES = {"forked": "catscii.forked_sandbox", "kept": "catscii.SandboxKeeper().sandbox"}


@pytest.mark.parametrize("box", BOXES)
def test_a_box_has_no_file_and_no_key_in_its_environment_and_cannot_get_more_than_its_limits(box, tmp_path):
    with decoding(BOXES[box], tmp_path, GREEDY["scans"]()) as process:
        def confined() -> int:
            for child in descendants(process.pid):
                with contextlib.suppress(OSError):  # a process has ended
                    if re.search(r"(?m)^Max open files +0 +0 ", Path(f"/proc/{child}/limits").read_text()):
                        return child
            return 0

        child = eventually(confined)
        limits = dict(re.findall(r"(?m)^(.+?)  +(\d+)  +\d+ ", Path(f"/proc/{child}/limits").read_text()))
        assert {limits[f"Max {name}"] for name in ("open files", "file size", "core file size")} == {"0"}
        assert limits["Max cpu time"] == "4"
        assert 0 < int(limits["Max address space"]) - catscii.SANDBOX_BYTES < 100 << 20
        assert {path.name for path in Path(f"/proc/{child}/fd").iterdir()} == {"0"}
        assert box == "forked" or b"s3cret" not in Path(f"/proc/{child}/environ").read_bytes()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            assert Path(f"/proc/{child}/stat").exists()
            os.kill(child, number)
        assert process.communicate(timeout=60) == (b"decoding takes too much memory or time\n", None)


@pytest.mark.parametrize("box", BOXES)
def test_a_box_that_takes_too_long_is_killed(box, tmp_path):
    with decoding(BOXES[box], tmp_path, GREEDY["scans"](), "catscii.SANDBOX_SECONDS = 6") as process:
        eventually(lambda: len(descendants(process.pid)) == (1 if box == "forked" else 2))
        os.kill(descendants(process.pid)[-1], signal.SIGSTOP)
        assert process.communicate(timeout=60) == (b"decoding takes more than 6 seconds\n", None)


def test_an_answer_of_a_box_that_does_not_end_is_refused(monkeypatch):
    monkeypatch.setattr(catscii, "SANDBOX_BYTES", 1 << 20)

    @contextlib.contextmanager
    def taken_over(channel: socket.socket) -> Iterator[None]:
        def flood() -> None:
            with contextlib.suppress(OSError):
                while True:
                    channel.sendall(bytes(1 << 16))

        threading.Thread(target=flood, daemon=True).start()
        yield

    with pytest.raises(catscii.PictureError, match="too much memory or time"):
        catscii.decode_in_sandbox(b"", 480, taken_over)


def test_photographs_with_exif_are_upright_after_a_box_too():
    exif, picture = Image.Exif(), Image.new("RGB", (64, 32), "red")
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    for format in ("JPEG", "PNG", "WEBP", "TIFF"):
        made = run("art", "-", "--format", "json", "--width", "20", stdin=encoded(picture, format, exif=exif))
        assert json.loads(made.stdout)["height"] == 20, format


@pytest.mark.parametrize("name", ["catscii", "my-cats.py"])
def test_pictures_are_decoded_whatever_the_name_of_the_program_is(start, upstream, tmp_path, name):
    program = tmp_path / name
    shutil.copy(FOLDER / "catscii.py", program)
    service = start(command=[sys.executable, str(program)], CAT_SOURCES=upstream.the_cat_api)
    eventually(lambda: service.stored() > 0)


def test_the_keeper_of_boxes_is_replaced_if_it_is_killed_and_ends_with_the_service(start, upstream):
    upstream.known |= {"one", "two", "three"}
    upstream.answers["/v1/images/search"] = sends([upstream.the_cat_api_entry("one")])
    service = start(CAT_SOURCES=upstream.the_cat_api)
    eventually(lambda: service.stored() == 1)
    (keeper,) = children(service.process.pid)
    assert service.get("/cat/two").status == 200 and children(service.process.pid) == [keeper]
    os.kill(keeper, signal.SIGTERM)  # as a terminal or systemd does, which sends it to all processes
    assert service.get("/cat/three").status == 200 and children(service.process.pid) == [keeper]
    assert not children(keeper), "boxes end, and leave no zombie"
    os.kill(keeper, signal.SIGKILL)
    upstream.known.add("four")
    assert service.get("/cat/four").status == 200
    (keeper,) = children(service.process.pid)
    service.process.kill()
    eventually(lambda: not Path(f"/proc/{keeper}").exists())


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
    while format == "PNG" and at + 12 <= len(data):  # correct its checksums, which would reveal the damage
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(data)


def test_damaged_pictures_are_drawn_or_refused_with_a_reason():
    def outcome(seed: int) -> str:
        try:
            made = catscii.decode_in_sandbox(damaged(seed), 480, keeper.sandbox)
        except catscii.PictureError as error:
            assert re.match("(the|not a) picture .{10,300}", str(error)), (seed, error)
            return "refused"
        assert max(made.size) < 2 * 480, seed
        return "drawn"

    keeper = catscii.SandboxKeeper()
    with ThreadPoolExecutor(2) as pool:
        outcomes = Counter(pool.map(outcome, range(rounds(300))))
    assert min(outcomes["drawn"], outcomes["refused"]) > rounds(60)


WISH = "Happy birthday, dear friend! May your bowl always be full."


@pytest.mark.parametrize(("text", "size", "width", "height", "grid", "bubble"), [
    (WISH, (480, 360), 80, 22, (59, 22), """
                                                             .-----------------.
                                                             | Happy birthday, |
                                                            <  dear friend!    |
                                                             | May your bowl   |
                                                             | always be full. |
                                                             '-----------------'"""),
    (WISH, (480, 360), 55, None, (55, 21), """
           .-------------------------------.
           | Happy birthday, dear friend!  |
           | May your bowl always be full. |
           '-------------.  .--------------'
                          \\/"""),
    ("Hi", (300, 300), 20, 12, (16, 8), """
     .----.
     | Hi |
     '.  .'
       \\/"""),
    ("\u732b e\u0301t\u00e9 \u2764\ufe0f \U0001f44d\U0001f3fd \U0001f468\u200d\U0001f467",
     (480, 360), 40, None, (40, 15), """
          .------------------.
          | \u732b \u00e9t\u00e9 \u2764 \U0001f44d \U0001f468\U0001f467 |
          '-------.  .-------'
                   \\/"""),
], ids=["beside", "above", "small", "wide"])
def test_a_bubble_stands_where_it_leaves_the_largest_cat_and_has_lines_of_even_length(
        text, size, width, height, grid, bubble):
    height = height or catscii.MAX_ROWS
    stage = catscii.best_layout(catscii.in_cells(text), size, width, height)
    assert catscii.fit(size, width - stage.columns, height - stage.rows) == grid
    shown = [*stage.bubble.above, *(" " * grid[0] + line for line in stage.bubble.beside if line)]
    assert "\n".join(["", *shown]) == bubble


def test_a_long_word_is_broken_and_a_text_that_has_no_room_ends_in_dots():
    assert catscii.wrapped("see https://cats.example/x", 10) == ["see https:", "//cats.exa", "mple/x"]
    assert catscii.wrapped("猫" * 7, 5) == ["猫猫", "猫猫", "猫猫", "猫"], "wide characters take two columns"
    assert catscii.balanced("one two three four", 10, 9) == ["one two", "three four"]
    assert catscii.balanced("one two three four", 9, 2) == ["one two", "three..."]
    assert catscii.best_layout("Meow", (480, 360), 20, 4) is None, "the cat needs a row"


def test_a_bubble_in_a_png_has_the_glyphs_of_the_art_and_other_letters_without_accents_or_as_question_marks():
    assert catscii.in_ascii("“Ça\u3000alors, Größe…” naïf œuf — 猫 👍🏽") == '"Ca alors, Grosse..." naif oeuf - ? ?'
    art = catscii.render(catscii.draw_house_cat(2), 60, 22)
    for background, ink in (("dark", (255, 255, 255)), ("light", (16, 16, 20))):
        stage = catscii.best_layout("~{[#]}~", (480, 360), 80, 22)
        data = catscii.to_png(art, background, stage.bubble)
        picture = Image.open(io.BytesIO(data))
        lines = catscii.with_bubble(art.rows, stage.bubble)
        assert picture.size == (10 * max(map(len, lines)), 20 * 22)
        column, row = next((line.index("~{["), y) for y, line in enumerate(lines) if "{[#]}" in line)
        shown = picture.crop((10 * column, 20 * row, 10 * column + 70, 20 * row + 20)).convert("L")
        glyphs = catscii.to_png(catscii.Art(("~{[#]}~",), bytes(ink) * 7, None), background)
        assert shown.tobytes() == Image.open(io.BytesIO(glyphs)).convert("L").tobytes()
        alone = Image.open(io.BytesIO(catscii.to_png(art, background)))
        assert picture.crop((0, 0, *alone.size)).tobytes() == alone.tobytes()


@pytest.mark.parametrize(("query", "cells"), [
    ("width=80&height=22", (80, 22)), ("width=232&height=50", (232, 50)), ("width=160&height=120", (160, 120)),
    ("width=240", (240, 240)), ("width=239&height=67", (239, 67)), ("width=20&height=5", (20, 5)), ("", (80, 240))])
def test_a_png_with_a_bubble_is_never_larger_than_asked(service, query, cells):
    plain = Image.open(io.BytesIO(service.get(f"/cat/house-2.png?{query}").data))
    columns, _ = catscii.fit((480, 360), *cells)
    cell = plain.width // columns
    for text in ("Hi", WISH, "long " * 40):
        picture = Image.open(io.BytesIO(service.get(f"/cat/house-2.png?{query}&says={quote(text)}").data))
        assert picture.size != plain.size
        assert picture.width <= cell * cells[0] and picture.height <= 2 * cell * cells[1]


# ---------------------------------------------------------------------------------------------------------------------
# House cats
# ---------------------------------------------------------------------------------------------------------------------


def test_a_house_cat_looks_as_it_always_did_and_as_it_is_described():
    for seed, description, colours in (  # of the quarters of the picture, and the share of edges, as in fur
        (0, "a grey-and-white cat with amber eyes and a bell", "7b4c5f 74465a 7c626f 735e6a 161614"),
        (1, "a cream classic tabby stretching and smiling by a plant at a window under the moon, with a bell",
         "7e4e55 7a4954 8b705e 926f69 1d1f1d"),
        (2, "a long-haired seal-point cat walking, with blue eyes and a bell", "534267 7c6a82 635671 745e81 191917"),
        (61, "a long-haired cream mackerel tabby on its back by a plant at a window under the moon, "
             "with copper eyes and its tongue out",
         "5e6b7b 4c5d76 968b79 8e827c 1d1f1d"),
    ):
        picture = catscii.draw_house_cat(seed)
        edges = picture.filter(ImageFilter.FIND_EDGES).point(lambda level: 255 * (level > 10))
        shown = b"".join(each.resize((n, n), Image.Resampling.BOX).tobytes() for n, each in ((2, picture), (1, edges)))
        assert picture.info["description"] == description
        assert all(abs(a - b) <= 1 for a, b in zip(shown, bytes.fromhex(colours), strict=True)), description


LOOKS = """
    QzJZiL|KnOT9i*@dqP-EAUI+wLzifDk&Tswe1mvUVO=OdT_`|+V{f39jF*mtZ&zthB05eXIdfHKsJFbYySrjgVoM)4
    e@|I|P)}zpMrJHUQzJY}A2(AjK9g@`r)+MtdU&^rcx^#XUWQbbhi=NOh|H^ozo?vSK}?TIKYLGAdQ4VwN>rG0Wok!H
    G$&Y1JXk|9XK_`0dtrV>G-5g{U1n8ZjCYx?ou7?|f_-d^H7Hqxb%)8kvdzD<m2Qw+L4GVEP*q80P(fa7Ty;}FZ#*nu
    <GG;Y!m8f3pyj%t>$jTiyPnmtn`Ko-pmIXRmvYvskl?bD<hh@gcvzKjNo!Y0Q$#y-mSE+pkiL+5p?F}CYgUbDRnUZE
    HYi#<ELl@MZ%#OKLNI1FC|Wr&S#)G?r<RzRh?QhjcsD9pS#nOeuAA-R(5IZ0l7xI^PHlutN=!LYTuf$#c#nNxWH>8W
    95Y#NUS()*Y-D$QEk|!wZHOE+T6bbmt%6d6Xi*z6RwO-R8!}ilM`p5<cCCI@DoJ-PMQax<Pb4%_(2PsikV<G*Q${{V
    HD5Mtf=yI}M^AD?TVp{cNGn5hKbMJG#)VDCg-eKSMkYuqKWRLvhfubHOt*wjs(VB&PA_3-LdA|$yNz7Cja<c!R9<92
    TX#-3RWwd-LPmE%J!?BHQZFu2F@k+wxv`O{sfTBOTRT}dZ--FSyPfmu+swMEx0;1wXH0)sIbT>hWM)Qrh;yENVKz@R
    >BiOX(Ax3U-0;%dpo^E_y3f+Cx|55QqMfP3ue5t^cj3Lzx}UC0NKisQM=~%vdTDpyyU(+gsD^Wak9CWddytrioPL_V
    ztfw<*Pp@AoxY=hx~huJ-Ke?Hm&n?q$<(HlZ9{NfNYvl4a-n3Uvww<$XH!5qz`>c<<g>k(X`Yj1URFkFUrnsHjK9;H
    y2F&SxQw;Lo7(2Kz{HZn)t;)fi-KcEua05M#+|RHfzjZr!`7a>!<A)ELSs@yg@|v-+N8G3lCi^&la_9io_3t4dbZ4x
    >9d!ffOGD?q4US8^2Dd^y`Sl`mw#(zxSox+mx_;jbI+!d>9dxLacMCwIYUKBQdwENor{8%q^5>@sey8;fpeC5YPpYm
    YF2zeF<@Rtc${g6mVcU6LvcDRTrwq9YEy~X)za0^%x+qWIVxRvYmB(AzSGaolYpvKKX`dIQn#Y3y0yE*zQb{3hchNu
    K`~rxQ*VP^e_}?6N;_h0SbtJRXt}1BxrcFURe)<#TRbgZH7HnPRe#XJx~HM0hkBMjE@LbrP(wIjc5a7eTzh0%dM+bU
    Z8S@xZ+5eDQFugAP9Zr>AUTmsV!N-U(4}{LK2=E`H%=ire>hU8Zh_LlvZscGQ!GDGB0EeVIDlGd!L_!jje&qzLyKcL
    B0FJ<ac_2ZgIjHpEKPhSLvJ%qcCd(9v3x{Vb)Pq2l_f%LB0XkSXNA3hN}73MOkRE;Ibj$rP(?{usCG-6Xg_C9Mi(ql
    Q!yoaPCtrPKXODdLn0PJA{JdeGJ11$e|LFxUt38pB|<40PB12Odv|q$f`EsTc!G*ugi$sd5>PxfYi4L}ZF6U4Y==oQ
    LLwGHAr)jgC1NxoSu!9&Ar?$07r1jc$c9X$hitogP*E!!c19)7gFnH3Ke&Ta%dC-PJt;e1cXdfEoL@4ZcwT2oJUSf|
    95Y!aJ6)A`ZfRw9GD~tFIA0$*VK`EG#ixg(nU6<qpesyzA2?uMU~RdttH`ydZ+D0>R)-`tQki*Jxr$f0idUO`UMW3Z
    A30$~Rd;7=e1C3mAUR+jHeM%1aYba1kaJj%bz3DnUK}%8B|>dxY<!)CZ=8m2Sy*BqI%6d^RhfBNxr$f0idUF;SR^%4
"""  # of the first house cats: the mean colours of 6 x 4 parts of each picture


def test_twenty_house_cats_have_the_colours_that_they_always_had():
    for seed, colours in enumerate(LOOKS.split()):
        shown = catscii.draw_house_cat(seed).resize((6, 4), Image.Resampling.BOX).tobytes()
        assert all(abs(a - b) <= 2 for a, b in zip(shown, base64.b85decode(colours), strict=True)), f"house-{seed}"


def test_house_cats_differ_and_are_bright_and_dark():
    cats = {seed: catscii.draw_house_cat(seed) for seed in (*range(12), 2**32 - 1)}
    assert len({cat.tobytes() for cat in cats.values()}) == len(cats)
    for seed, cat in cats.items():
        assert (cat.mode, cat.size) == ("RGB", catscii.PORTRAIT)
        assert cat.tobytes() == catscii.draw_house_cat(seed).tobytes(), "the same seed gives the same picture"
        dark, bright = cat.convert("L").getextrema()
        assert dark < 40 and bright > 200


def test_seeds_choose_among_all_that_house_cats_can_be():
    cats = [catscii.HouseCat(seed) for seed in range(4000)]
    assert {cat.pose for cat in cats} == {*catscii.POSES} and len(catscii.POSES) >= 8
    assert {cat.mood for cat in cats} == {*catscii.MOODS}
    assert {cat.ears for cat in cats} == {*catscii.EARS}
    assert {thing for cat in cats for thing in cat.things} == {*catscii.THINGS}
    assert {pattern for cat in cats for pattern in ("", *cat.coat.patterns.split())} == {*catscii.PATTERNS}
    assert statistics.fmean(len({cat.pose for cat in cats[i:i + 24]}) for i in range(0, 3960, 24)) >= 9
    assert len({cat.description for cat in cats}) > 3600


def test_a_house_cat_is_described_in_words_that_are_known_before():
    seen = set[str]()
    for seed in range(4000):
        cat = catscii.HouseCat(seed)
        pose, coat = catscii.POSES[cat.pose], f"a {'long-haired ' * cat.long_hair}{cat.coat.name}"
        assert cat.description.startswith(coat)
        assert (pose.boxed if "box" in cat.things else pose.doing) in cat.description
        assert all(catscii.THINGS[thing].phrase in cat.description for thing in cat.things)
        seen.update(word.strip(",") for word in cat.description.split())
    assert seen == catscii.house_words()


def pixels(picture: Image.Image, other: Image.Image) -> tuple[float, tuple[int, int, int, int]]:
    """Return the share of pixels that differ, and the box around them."""
    difference = ImageChops.difference(picture, other).convert("L").point(lambda level: 255 * (level > 4))
    return difference.histogram()[255] / (picture.width * picture.height), difference.getbbox() or (0, 0, 0, 0)


@pytest.mark.parametrize("pose", catscii.POSES)
def test_a_cat_that_is_alive_changes_only_where_it_moves(pose):
    mood = "asleep" if pose == "curled" else "calm"
    cats = ((seed, catscii.HouseCat(seed)) for seed in itertools.count())
    seed = next(seed for seed, cat in cats if (cat.pose, cat.mood) == (pose, mood))
    still, size = catscii.draw_house_cat(seed), catscii.POSES[pose].size
    assert catscii.draw_house_cat(seed, catscii.Moment()).tobytes() == still.tobytes()
    for eyes in ("half", "open") if pose == "curled" else ("half", "closed"):
        share, (left, top, right, bottom) = pixels(still, catscii.draw_house_cat(seed, catscii.Moment(eyes=eyes)))
        assert 0.002 < share < 0.05 and max(right - left, bottom - top) < 1.8 * size
    share, (left, top, right, bottom) = pixels(still, catscii.draw_house_cat(seed, catscii.Moment(ear=1)))
    assert 0.002 < share < 0.08 and max(right - left, bottom - top) < 1.6 * size
    halves = [pixels(still, catscii.draw_house_cat(seed, catscii.Moment(breath)))[0] for breath in (0.5, 1)]
    assert pose == "peeking" or 0.001 < halves[0] < halves[1] < 0.2


class Terminal:
    """A terminal of 80 columns and 24 lines, in which a command was typed. Line feeds also return the carriage."""

    def __init__(self, *output: str) -> None:
        self.screen = pyte.Screen(80, 24)
        self._stream = pyte.Stream(self.screen)
        self.show("$ curl")
        for text in ("\n", *output):
            self.show(text)

    def show(self, text: str) -> None:
        self._stream.feed(text.replace("\n", "\r\n"))

    def seen(self) -> list[Any]:
        """Return what can be seen: the cells, the place of the cursor, and the colours that text would have there."""
        cells = []
        for row in range(self.screen.lines):
            for column in range(self.screen.columns):
                cell = self.screen.buffer[row][column]
                cells.append((cell.data, "" if cell.data == " " else cell.fg, cell.bg))
        cursor = self.screen.cursor
        return [*cells, (cursor.x, cursor.y, cursor.hidden), cursor.attrs]


def test_the_cells_that_change_most_move_if_too_many_change():
    before = Image.new("RGB", (20, 1))
    after = before.copy()
    for place in range(20):
        after.putpixel((place, 0), (10 * place, 0, 0))
    assert sorted(catscii.changed_places(before, after, (20, 1), 0.25)) == [15, 16, 17, 18, 19]
    assert len(catscii.changed_places(before, after, (20, 1), 1)) < 20, "the least changes are not seen"


def film_of(cat: int, **options: Any) -> tuple[catscii.Film, catscii.Art, catscii.View]:
    """Return the film of a house cat, its still art, and their view."""
    view = catscii.View(**{"height": catscii.TERMINAL_ROWS, "format": "ansi", **options})
    picture = catscii.draw_house_cat(cat)
    still = view.draw(picture)
    patches = {moment: catscii.draw_patch(cat, moment, picture, view.draw) for moment in catscii.PARTS_OF_MOMENTS}
    return catscii.Film(cat, still, view.colors, patches), still, view


def redrawn(film: catscii.Film, still: catscii.Art, moment: catscii.Moment) -> catscii.Art:
    """Return the art of a moment as a whole."""
    columns = len(still.rows[0])
    glyphs = [*"".join(still.rows)]
    foreground = catscii.chunks(still.foreground, 3)
    background = still.background and catscii.chunks(still.background, 3)
    for place, (glyph, colour, ground) in film.cells(moment).items():
        glyphs[place] = glyph
        foreground[place] = colour
        if background:
            background[place] = ground
    rows = tuple(catscii.chunks("".join(glyphs), columns))
    return catscii.Art(rows, b"".join(foreground), background and b"".join(background))


MOMENTS = sorted({moment for act in catscii.ACTS.values() for moment, _ in act})
EVERY_FILM = [{}, {"colors": "256"}, {"colors": "16"}, {"style": "ink"}, {"style": "ink", "colors": "16"},
              {"contrast": 40}, {"height": 3}, {"width": 20}]


@pytest.mark.parametrize("options", EVERY_FILM, ids=str)
def test_each_change_of_a_film_leaves_on_the_screen_what_a_full_redraw_shows(options):
    rng = random.Random(str(options))
    film, still, view = film_of(rng.randrange(2**32), **options)
    line = catscii.live_line("a cat")
    terminal = Terminal(catscii.to_ansi(still, view.colors) + line)
    before = catscii.STILL
    seen = set()
    for after in rng.sample(MOMENTS, len(MOMENTS)) * (3 if THOROUGH else 1):
        terminal.show(film.change(before, after).decode())
        whole = Terminal(catscii.to_ansi(redrawn(film, still, after), view.colors) + line)
        assert terminal.seen() == whole.seen(), (before, after)
        seen.add(str(whole.seen()))
        before = after
    assert len(seen) > 2


def test_most_of_a_cat_that_moves_keeps_its_cells_and_a_minute_takes_at_most_60_kb():
    for seed in range(rounds(50)):
        film, still, _ = film_of(seed)
        cells = len(still.foreground) // 3
        assert all(len(patch.places) < cells / 6 for patch in film._patches.values())
        assert len(film.change(catscii.ASLEEP, catscii.STILL)) < len(catscii.to_ansi(still)) / 6
        ends, moments = catscii.life(seed)
        sizes = {pair: len(film.change(*pair)) for pair in set(itertools.pairwise([*moments, moments[0]]))}
        changes = [sizes[pair] for pair in itertools.pairwise([*moments, *moments])]
        times = [*ends, *[ends[-1] + end for end in ends]]
        sent = [0, *itertools.accumulate(changes)]
        worst = max(sent[catscii.bisect.bisect_left(times, end + 60)] - sent[i] for i, end in enumerate(ends))
        assert worst <= 60_000, f"house-{seed}"


def test_the_cells_of_a_film_take_little_memory_however_large_it_is():
    for seed in range(8):
        film, still, _ = film_of(seed, height=240, width=240)
        assert len(still.foreground) == 3 * 240 * 90
        assert all(len(patch.places) <= catscii.MOST_CHANGED for patch in film._patches.values())
        assert 5_000 < film.size() < 130_000


def test_a_house_cat_breathes_blinks_listens_and_sleeps_in_its_own_order():
    lives = [catscii.life(seed) for seed in range(20)]
    assert len({str(life) for life in lives}) == 20
    for seed, (ends, moments) in enumerate(lives):
        assert set(moments) == set(MOMENTS)
        starts = [0.0, *ends]
        for moment, start, end in zip(moments, starts, ends, strict=False):
            assert catscii.moment_of(seed, 3 * ends[-1] + (start + end) / 2) == moment
        asleep = sum(end - start for moment, start, end in zip(moments, starts, ends, strict=False)
                     if moment.eyes == "closed")
        assert 0.1 < asleep / ends[-1] < 0.5


def test_a_password_in_the_url_of_a_source_is_not_in_the_credit_of_a_picture():
    url = "http://user:secret@127.0.0.1:9/images/search"
    source = catscii.Source(url, catscii.Fetcher(None, [url]), None)
    assert source._picture_url("/cat.jpg") == "http://127.0.0.1:9/cat.jpg"


# ---------------------------------------------------------------------------------------------------------------------
# Cats: sources, store, refresher
# ---------------------------------------------------------------------------------------------------------------------


def test_a_cat_like_some_words_has_all_of_them_whole_whatever_their_case_and_other_words_are_answered_with_all():
    found = set[str]()
    for wanted in ("calico", "GREEN eyes", "white, green & black"):
        for _ in range(5):
            cat = catscii.house_cat_like(catscii.look(wanted))
            words = re.findall("[a-z]+", catscii.HouseCat(catscii.seed_of(cat)).description)
            assert {*re.findall("[a-z]+", wanted.lower())} <= {*words}
            found.add(cat)
    assert len(found) == 15, "each time another cat"
    for wanted in ("calic", "dog", "dog calico", "calico silver"):
        message = f"no house cat like '{wanted}' was found; the words are "
        with pytest.raises(catscii.NoSuchCat, match=message) as failure:
            catscii.house_cat_like(catscii.look(wanted))
    known = str(failure.value).rpartition(" are ")[2].split(", ")
    assert {"calico", "green", "white"} <= {*known} and "a" not in known and known == sorted(known)
    for word in known:
        assert catscii.house_cat_like(word)


def make_refresher(tmp_path: Path, *urls: str, ca_file: str | None = None, key: str | None = None):
    """Return a store in a file, and a refresher whose `fetch_one` the test calls itself."""
    store, fetcher = catscii.Store(catscii.Database(str(tmp_path / "cats.db"))), catscii.Fetcher(ca_file, urls)
    return store, catscii.Refresher(store, [catscii.Source(url, fetcher, key) for url in urls], fetcher)


def test_an_empty_store_is_filled_and_requests_are_served_from_it(start, upstream):
    service = start(command=patched("catscii.STORED_CATS = 11"), CAT_SOURCES=upstream.the_cat_api)
    eventually(lambda: service.stored() == 11)
    served = {service.json("/")["id"] for _ in range(100)}
    assert len(served) > 5 and served <= upstream.known
    shown = service.json("/")
    assert shown["source"] == urlsplit(upstream.url).netloc
    assert shown["credit"] == f"{upstream.url}/images/{shown['id']}.jpg"
    assert upstream.asked("/v1/images/search?limit=10&mime_types=jpg,png") == 2  # for ten cats each
    assert upstream.asked("/images/") == 11 and len(upstream.requests) == 13, "visitors cause no requests"
    assert all(re.match(r"catscii/\d", headers["User-Agent"]) for _, headers in upstream.requests)


@pytest.mark.parametrize("name", catscii.NAMED_COLOURS)
def test_a_plain_picture_has_one_main_colour_and_a_picture_of_two_has_both_the_larger_first(name):
    for shade in catscii.NAMED_COLOURS[name].split():
        picture = Image.new("RGB", (90, 60), shade)
        assert catscii.main_colours(picture) == name
        other = "green" if name != "green" else "pink"
        picture.paste(catscii.NAMED_COLOURS[other].split()[0], (0, 0, 30, 60))
        assert catscii.main_colours(picture) == f"{name} and {other}"
        picture.paste("cyan", (0, 0, 9, 60))
        picture.paste(shade, (9, 0, 30, 60))
        assert catscii.main_colours(picture) == name, "a tenth is no main colour"


@pytest.mark.parametrize(("colour", "name"), [
    ((20, 18, 16), "black"), ((128, 128, 128), "grey"), ((250, 250, 245), "white"), ((120, 80, 50), "brown"),
    ((221, 143, 64), "orange"), ((238, 212, 166), "cream"), ((250, 220, 50), "yellow"), ((60, 140, 50), "green"),
    ((70, 110, 190), "blue"), ((240, 160, 180), "pink")])
def test_colours_have_the_names_that_people_use(colour, name):
    assert catscii.main_colours(Image.new("RGB", (3, 2), colour)) == name


def test_another_cat_is_one_that_was_not_seen_or_else_the_one_seen_longest_ago(tmp_path):
    store, _ = make_refresher(tmp_path)
    for cat in "abcdef":
        store.put(catscii.Cat(cat, "", ""), b"a picture")
    for _ in range(100):
        cattery, seen = catscii.Cattery(store, [object()], None), random.sample("abcdef", 6)
        assert cattery.pick(seen[:4]) in seen[4:] and cattery.pick(["nobody", *"abcd"]) in {"e", "f"}
        assert catscii.Cattery(store, [object()], None).pick(seen) == seen[0]
    picked = [cattery.pick() for _ in range(1000)]
    assert set(picked) == {*"abcdef"} and all(a != b for a, b in itertools.pairwise(picked))


def test_a_full_store_replaces_its_oldest_cat_once_a_minute(tmp_path, upstream, monkeypatch):
    monkeypatch.setattr(catscii, "STORED_CATS", FEW_CATS)
    store, refresher = make_refresher(tmp_path, upstream.the_cat_api)
    order = []
    while len(order) < FEW_CATS:
        assert refresher._delay() <= catscii.QUICK_SECONDS
        refresher.fetch_one()
        order += [cat for cat in upstream.known if cat in store.ids(0) and cat not in order]
    assert 59 < refresher._delay() <= 60
    refresher.fetch_one()
    assert sum(store.counts().values()) == FEW_CATS and store.get(order[0])[1] is None
    assert [cat in store.ids(0) for cat in order] == [False, *[True] * (FEW_CATS - 1)]


def test_a_source_that_fails_rests_for_1_2_4_and_at_most_600_seconds_or_half_as_long():
    source = catscii.Source("http://localhost/cat", catscii.Fetcher(None, []), None)
    for failures, longest in ((1, 1), (2, 2), (3, 4), (12, 600), (5000, 600)):
        source.restore(failures - 1, 0.0)
        source.failed(catscii.Unavailable("no answer"))
        assert longest / 2 <= source.ready - time.monotonic() <= longest


def test_while_every_source_fails_house_cats_serve_and_no_source_is_asked_before_its_retry_after(start, upstream):
    upstream.answers["/cat"] = sends(b"", 429, **{"Retry-After": "3"})
    service = start(CAT_SOURCES=upstream.cataas)
    assert service.json("/")["id"].startswith("house-")
    service.wait_for("Source fails")
    failed = time.monotonic()
    assert service.get("/cat/unknown").status == 503 and upstream.asked("/cat/unknown") == 0
    del upstream.answers["/cat"]
    service.wait_for("Source works again")
    assert 2.5 < time.monotonic() - failed < 3 + SOON
    eventually(lambda: not service.json("/")["id"].startswith("house-"))


def test_the_key_goes_to_the_api_alone(tmp_path, upstream, secure_upstream, ca_file):
    trusted = secure_upstream.the_cat_api + "#key"
    store, refresher = make_refresher(tmp_path, trusted, ca_file=ca_file, key="s3cret")
    refresher.fetch_one()
    keys = {path[:8]: headers.get("x-api-key") for path, headers in secure_upstream.requests}
    assert keys == {"/v1/imag": "s3cret", "/images/": None} and store.counts()
    secure_upstream.requests.clear()
    upstream.answers["/v1/images/search"] = redirect(secure_upstream.the_cat_api)
    sources = upstream.the_cat_api + "#key", secure_upstream.the_cat_api
    _, refresher = make_refresher(tmp_path, *sources, ca_file=ca_file, key="s3cret")
    refresher.fetch_one()
    assert upstream.requests[0][1]["x-api-key"] == "s3cret"
    upstream.requests.clear()
    _, refresher = make_refresher(tmp_path, upstream.the_cat_api, ca_file=ca_file, key="s3cret")
    refresher.fetch_one()
    assert "x-api-key" not in upstream.requests[0][1], "a source that is not marked"
    assert secure_upstream.requests and not any("x-api-key" in headers for _, headers in secure_upstream.requests)


def test_redirects_lead_from_https_to_https_only(upstream, secure_upstream, ca_file):
    secure = secure_upstream.url
    fetcher = catscii.Fetcher(ca_file, [upstream.url, secure])
    targets = {"/down": f"{upstream.url}/images/1", "/file": "file:///etc/passwd", "/loop": "/loop", "/ok": "/images/2"}
    secure_upstream.answers |= {path: redirect(target) for path, target in targets.items()}
    upstream.answers |= {"/up": redirect(f"{secure}/images/3"), "/up-and-down": redirect(f"{secure}/down")}
    for url in (f"{upstream.url}/up-and-down", f"{secure}/down", f"{secure}/file", f"{secure}/loop"):
        with pytest.raises(catscii.Unavailable):
            fetcher.get(catscii.Request(url, 1 << 20))
    assert [path for path, _ in upstream.requests] == ["/up-and-down"]
    assert secure_upstream.asked("/loop") == catscii.MAX_REDIRECTS + 1
    assert fetcher.get(catscii.Request(f"{secure}/ok", 1 << 20)) == photograph("/images/2")
    assert fetcher.get(catscii.Request(f"{upstream.url}/up", 1 << 20)) == photograph("/images/3")


@contextlib.contextmanager
def unvisited(host: str) -> Iterator[int]:
    """Yield the port of a socket that listens there. Assert that nobody connects to it."""
    with socket.create_server((host, 0)) as listener:
        yield listener.getsockname()[1]
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("form", [
    r"http://{other}\@{trusted}/x", "http://{other}#@{trusted}/x", "http://{other}?@{trusted}/x",
    "http://{trusted}@{other}/x", r"http://{trusted}\@{other}@{other}/x", "//{other}/x", r"/\{other}/x"])
def test_a_url_that_can_be_read_in_two_ways_leads_to_no_untrusted_host(tmp_path, upstream, form):
    trusted = f"127.0.0.1:{urlsplit(upstream.url).port}"
    with unvisited("127.0.0.2") as port:
        url = form.format(trusted=trusted, other=f"127.0.0.2:{port}")
        upstream.answers["/cat/moved"] = redirect(url)
        for picture in (url, "/cat/moved"):
            upstream.answers["/cat"] = sends({"_id": "x", "url": picture})
            store, refresher = make_refresher(tmp_path, f"http://{trusted}/cat")
            refresher.fetch_one()
            assert not store.counts()


# IANA's registries of special-purpose addresses, multicast, and IPv4 in IPv6
SPECIAL_NETWORKS = """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.0.9/32 192.0.2.0/24
    192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24
    203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 ::/128 ::1/128 ::/96 ::ffff:0:0/96 64:ff9b::/96 64:ff9b:1::/48 100::/64
    100:0:0:1::/64 2001::/23 2001::/32 2001:1::1/128 2001:2::/48 2001:3::/32 2001:4:112::/48 2001:20::/28 2001:30::/28
    2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8 ::127.0.0.1/128
    ::ffff:10.0.0.1/128 ::ffff:8.8.8.8/128 64:ff9b::192.168.0.1/128 2002:7f00:1::/48 2001:0:7f00:1::/64"""
PUBLIC_ADDRESSES = """
    1.0.0.0 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 169.253.255.255
    169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.0 192.0.3.0 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0
    223.255.255.255 2000:: 2001:200:: 2001:4860:4860::8888 2001:db7:: 2001:db9:: 2003:: 2a00:1450:: 3fff:1000::"""


def test_an_address_is_public_unless_it_is_for_a_special_purpose():
    for addresses in map(ipaddress.ip_network, SPECIAL_NETWORKS.split()):
        for address in (addresses[0], addresses[addresses.num_addresses // 2], addresses[-1], f"{addresses[0]}%eth0"):
            assert not catscii.is_public(str(address)), address
    for address in PUBLIC_ADDRESSES.split():
        assert catscii.is_public(address), address


def resolve_once(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let cats.example have these addresses when it is resolved for the first time. The second time fails the test."""
    getaddrinfo, names = socket.getaddrinfo, {"cats.example": addresses}

    def resolve(host: Any, *arguments: Any, **options: Any) -> list[Any]:
        found = names.pop(host) if host == "cats.example" else [host]
        return [entry for address in found for entry in getaddrinfo(address, *arguments, **options)]

    monkeypatch.setattr(catscii.socket, "getaddrinfo", resolve)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "8.8.8.8"]])
def test_nothing_goes_to_a_name_that_has_a_private_address(monkeypatch, scheme, addresses):
    resolve_once(monkeypatch, *addresses)
    with unvisited("127.0.0.1") as port, pytest.raises(catscii.Unavailable, match="1 is not a public address"):
        catscii.Fetcher(None, []).get(catscii.Request(f"{scheme}://cats.example:{port}/", 1000))


def test_the_port_of_a_source_is_trusted_and_not_the_others_of_its_host(upstream):
    with unvisited("127.0.0.1") as port, pytest.raises(catscii.Unavailable, match="1 is not a public address"):
        catscii.Fetcher(None, [upstream.url]).get(catscii.Request(f"http://127.0.0.1:{port}/", 1000))


@pytest.mark.parametrize(("url", "port"), [
    ("https://cats.example/cat", 443),
    ("http://cats.example/cat", 80),
    ("https://cats.example:80/", 80),
    ("http://cats.example:443/", 443),
])
def test_the_scheme_chooses_the_port(monkeypatch, url, port):
    asked = []
    monkeypatch.setattr(catscii, "connect", lambda host, port, anywhere: asked.append(port) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        catscii.Fetcher(None, [url]).get(catscii.Request(url, 1000))
    assert asked == [port]


def test_a_name_is_resolved_once_and_all_its_addresses_are_tried(monkeypatch, upstream):
    monkeypatch.setattr(catscii, "is_public", lambda address: address in ("127.0.0.1", "127.0.0.3"))
    resolve_once(monkeypatch, "127.0.0.3", "127.0.0.1")
    url = f"http://cats.example:{urlsplit(upstream.url).port}/images/1"
    assert catscii.Fetcher(None, []).get(catscii.Request(url, 1 << 20)) == photograph("/images/1")


def going_on(part: bytes, seconds: float = 0, start: bytes = b"") -> Callable[[BaseHTTPRequestHandler], None]:
    """Return a value for Upstream.answers: a function that sends `start`, and then `part` again and again."""
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(start)
        while True:
            handler.wfile.write(part)
            time.sleep(seconds)

    return answer


OK, CONTINUE = b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"
ENDLESS = going_on(bytes(65536), start=OK + b"\r\n")
DRIPPING = going_on(b"x", 0.1, OK + b"Content-Length: 1000\r\n\r\n")
SHORT = sends(b"[{", **{"Content-Length": "99", "Connection": "close"})


def test_reading_stops_at_the_limits_of_size_and_time(upstream, monkeypatch):
    def slow_redirect(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.2)
        reply(handler, b"", 302, Location=handler.path)

    upstream.answers |= {"/endless": ENDLESS, "/short": SHORT}
    fetcher = catscii.Fetcher(None, [upstream.url])
    with pytest.raises(catscii.Unavailable, match="more than 1000000 bytes"):
        fetcher.get(catscii.Request(f"{upstream.url}/endless", 1_000_000))
    with pytest.raises(catscii.Unavailable):
        fetcher.get(catscii.Request(f"{upstream.url}/short", 1_000_000))
    monkeypatch.setattr(catscii, "TOTAL_SECONDS", 0.5)
    for slow in (DRIPPING, going_on(b"x", 0.1, OK + b"Connection: close\r\n\r\n"), slow_redirect,
                 going_on(b"x", 0.1, OK + b"X-Slow: "), going_on(CONTINUE, 0.01)):
        upstream.answers["/slow"], begun = slow, time.monotonic()
        with pytest.raises(catscii.Unavailable, match="no whole answer after"):
            fetcher.get(catscii.Request(f"{upstream.url}/slow", 1_000_000))
        assert time.monotonic() - begun < SOON
        eventually(lambda: not any(thread.name == "fetcher" for thread in threading.enumerate()))


def test_a_permalink_leads_to_an_evicted_cat_and_to_one_that_only_a_source_knows_unless_that_fails(start, upstream):
    service = start(command=QUICKLY_FILLED, CAT_SOURCES=f"{upstream.the_cat_api},{upstream.cataas}")
    eventually(lambda: service.stored() == FEW_CATS)
    evict = "UPDATE cats SET picture = NULL WHERE rowid = ? RETURNING id"
    ((cat,),) = sql(service.database, evict, 1)
    before = upstream.asked(f"/images/{cat}.jpg")
    assert service.json(f"/cat/{cat}")["id"] == service.json(f"/cat/{cat}?width=40")["id"] == cat
    assert upstream.asked(f"/images/{cat}.jpg") == before + 1
    ((cat,),) = sql(service.database, evict, 2)
    upstream.answers[f"/images/{cat}.jpg"] = sends(b"gone", 410)
    response = service.get(f"/cat/{cat}")
    assert (response.status, response.headers["Retry-After"]) == (503, "60")
    upstream.known.add("abc123")
    assert service.json("/cat/abc123")["credit"] == f"{upstream.url}/images/abc123.jpg"
    assert service.json("/cat/abc123")["description"].startswith(f"a photograph from {upstream.url[7:]}, mainly ")
    assert service.get("/cat/nobody").status == 404
    upstream.answers["/v1/images/nobody"] = sends(b"", 500)
    assert service.get("/cat/nobody").status == 503


def test_a_damaged_picture_in_the_store_is_told_by_its_cat_and_a_house_cat_is_shown(start, upstream):
    service = start(command=QUICKLY_FILLED, CAT_SOURCES=upstream.cataas)
    eventually(lambda: service.stored() == FEW_CATS)
    sql(service.database, "UPDATE cats SET picture = ?", b"no picture")
    for _ in range(4):
        assert service.json("/?width=33")["id"].startswith("house-")
    assert health(service)[:2] == (200, "ok")
    told = [line["fields"] for line in service.log if line["fields"]["message"] == "Cat unavailable"]
    assert told and not any(fields["id"].startswith("house-") for fields in told)


def test_a_result_of_a_search_that_is_no_cat_does_not_hide_the_others(start, upstream):
    upstream.known.add("good")
    results = [{"id": "bad"}, "bad", upstream.the_cat_api_entry("good")]
    upstream.answers["/v1/images/search"] = sends(results)
    service = start(CAT_SOURCES=upstream.the_cat_api)
    eventually(lambda: service.stored() == 1)
    assert service.get("/cat/good").status == 200


def test_without_sources_there_are_house_cats_only(start, tmp_path):
    service = start()
    cat = catscii.Cat("stored", "localhost", "http://localhost/")
    catscii.Store(catscii.Database(str(service.database))).put(cat, photograph())
    assert all(service.json("/")["source"] == "house" for _ in range(20))
    assert {service.get(f"/cat/nobody{i}").status for i in range(catscii.VISITORS_REQUESTS_A_MINUTE + 5)} == {404}
    assert "catscii_refresh_age_seconds" not in samples(service)


def test_visitors_cause_a_bounded_number_of_upstream_requests_with_all_redirects(start, upstream):
    upstream.known.add("only")
    upstream.answers["/v1/images/search"] = sends([upstream.the_cat_api_entry("only")])
    upstream.answers["/cat"] = sends(upstream.cataas_entry("only"))
    service = start(CAT_SOURCES=f"{upstream.the_cat_api},{upstream.cataas}")
    for i, hop in itertools.product(range(9), range(catscii.MAX_REDIRECTS)):
        for path in (f"/v1/images/unknown{i}", f"/cat/unknown{i}"):
            upstream.answers[f"{path}/{hop}" if hop else path] = redirect(f"{path}/{hop + 1}")
    for i in range(9):
        upstream.answers[f"/images/gone{i}"] = sends(b"gone", 410)
        evicted = f"gone{i}", f"{upstream.url}/images/gone{i}"
        sql(service.database, "INSERT INTO cats (id, source, url, fetched) VALUES (?, 'x', ?, '2026-01-01')", *evicted)
    for i, kind_of_id in itertools.product(range(40), ("gone", "unknown")):
        assert service.get(f"/cat/{kind_of_id}{i % 9}").status in (404, 503)
    for kind_of_id in ("gone", "unknown"):
        asked = [path for path, _ in upstream.requests if kind_of_id in path]
        assert len(asked) == catscii.VISITORS_REQUESTS_A_MINUTE


class Bad(NamedTuple):
    """What is wrong with a source, and what the log says about it."""

    reason: str  # a regular expression
    search: Callable[[BaseHTTPRequestHandler], None] | None = None  # the answer to a search, if that is bad
    picture: Callable[[BaseHTTPRequestHandler], None] | None = None  # the answer for the picture, if that is bad


def found(**cat: object) -> Callable[[BaseHTTPRequestHandler], None]:
    """Return an answer to a search with a cat, which has an id and a URL unless others are given."""
    return sends({"id": "x", "url": "/x", **cat})


NO_FOLLOWING = "is not a URL that may be followed"
TOO_LATE = sends(b"", 503, **{"Retry-After": f"Fri, 31 Dec {9**20} 23:59:59 GMT"})
BAD_SOURCES = {
    "a redirect to a file": Bad(NO_FOLLOWING, redirect("file:///etc/passwd")),
    "a redirect to a long path": Bad(NO_FOLLOWING, redirect("/" + "a" * 60_000)),
    "a redirect to itself": Bad("more than 5 redirects", redirect("/cat")),
    "a redirect to this host": Bad("127.0.0.1 is not a public address", redirect("http://127.0.0.1/cat")),
    "a redirect to a private host": Bad(
        "169.254.169.254 is not a public address", redirect("http://169.254.169.254/latest")),
    "403": Bad("status 403", sends(b"no", 403)),
    "404": Bad("status 404", sends(b"no", 404)),
    "429": Bad("status 429", sends(b"no", 429)),
    "500": Bad("status 500", sends(b"no", 500)),
    "503 until a year too late": Bad("OverflowError|status 503", TOO_LATE),
    "nothing": Bad("not JSON", sends(b"")),
    "a page": Bad("not JSON", sends(b"<!DOCTYPE html><p>Sorry")),
    "no UTF-8": Bad("not JSON", sends(b"\xff\xfe[")),
    "JSON without an end": Bad("not JSON", sends(b'[{"id"')),
    "deep JSON without an end": Bad("not JSON", sends(b"[" * 100_000)),
    "NaN": Bad("no cat", sends(b"NaN")),
    "a string": Bad("no cat", sends(b'"cat"')),
    "null": Bad("no cat", sends(b"null")),
    "an empty object": Bad("no cat", sends(b"{}")),
    "an empty list": Bad("no cat", sends(b"[]")),
    "a number": Bad("no cat", sends(b"[7]")),
    "deep JSON": Bad("no cat", sends(b"[" * 900 + b"]" * 900)),
    "a URL that is null": Bad("no cat", found(url=None)),
    "an empty URL": Bad("no cat", found(url="")),
    "an escape in a URL": Bad("no cat", found(url="/\x1b[31m")),
    "a long URL": Bad("no cat", found(url="/" + "a" * 1_000_000)),
    "a URL with its data": Bad("no cat", found(url="data:image/png,x")),
    "a URL of FTP": Bad("no cat", found(url="ftp://x")),
    "a URL with half a host": Bad("no cat", found(url="http://[bad")),
    "an id that is null": Bad("no cat", found(id=None)),
    "an id that is a number": Bad("no cat", found(id=1)),
    "a space in an id": Bad("no cat", found(id="a b")),
    "an escape in an id": Bad("no cat", found(id="\x1b[31m")),
    "the id of a house cat": Bad("no cat", found(id="house-1")),
    "less than was announced": Bad("IncompleteRead", SHORT),
    "a byte at a time": Bad("no whole answer after 2 seconds", DRIPPING),
    "no end": Bad("more than 1048576 bytes", ENDLESS),
    "100 Continue without an end": Bad("no whole answer", going_on(CONTINUE, 0.01)),
    "silence": Bad("[Tt]imed? ?out", lambda handler: time.sleep(4)),
    "no picture": Bad("not a picture", picture=sends(b"meow")),
    "a part of a picture": Bad("cannot be read", picture=lambda handler: reply(handler, photograph()[:3000])),
    "a PNG of 2,500 megapixels": Bad("too much memory", picture=sends(png(50_000, 50_000, 3)[:99])),
    "a picture without an end": Bad("more than 16777216 bytes", picture=ENDLESS),
}
BOMBS = {"PNG": "1", "GIF": "1", "WEBP": "RGB"}  # small files of 66 megapixels, and their modes
UNREACHABLE_SOURCES = {  # and what the log says about them
    "a closed port": "refused",
    "an unknown host": "gaierror",
    "an unknown authority": "certificate verify failed",
    "an expired certificate": "certificate verify failed",
    "a redirect from https to http": "https only",
}


class BadSources:
    """A service with all bad sources and a good one, which is stopped when each bad one has failed twice."""

    def __init__(self, folder: Path, authority: trustme.CA) -> None:
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        expired = authority.issue_cert("localhost", not_after=datetime(2020, 1, 1, tzinfo=UTC))
        self.urls = {"a closed port": "http://localhost:1/cat", "an unknown host": "http://nowhere.invalid/cat"}
        self.reasons = {**UNREACHABLE_SOURCES}
        with contextlib.ExitStack() as self._stack:
            self._add("an unknown authority", trustme.CA().issue_cert("localhost"))
            self._add("an expired certificate", expired)
            secure = self._add("a redirect from https to http", authority.issue_cert("localhost"))
            secure.answers["/cat"] = redirect("http://localhost/cat")
            bombs = {format: sends(encoded(Image.new(mode, (8_100, 8_100)), format, method=0))
                     for format, mode in BOMBS.items()}
            bad_sources = BAD_SOURCES | {
                format: Bad("too much memory|cannot be read", picture=bomb) for format, bomb in bombs.items()}
            for name, bad in bad_sources.items():
                upstream = self._add(name)
                self.reasons[name] = bad.reason
                upstream.answers["/cat"] = bad.search or sends(upstream.cataas_entry("x"))
                if bad.picture:
                    upstream.answers["/cat/x"] = bad.picture
            sources = [*self.urls.values(), self._add("good").cataas]
            constants = "catscii.SILENT_SECONDS, catscii.TOTAL_SECONDS, catscii.LONGEST_BACKOFF = 1, 2, 0"
            self.service = self._stack.enter_context(Running(
                folder, patched(constants), SSL_CERT_FILE=str(folder / "ca.pem"), CAT_SOURCES=",".join(sources)))
            self.statuses = set[int]()
            while self.service.stored() < 2:  # before the second one, all others have failed twice
                self.statuses.add(self.service.get("/", timeout=SOON).status)
                time.sleep(0.1)
            self.megabytes = resident_megabytes(self.service.process.pid)
            self.exit_status = self.service.stop()

    def _add(self, name: str, certificate: trustme.LeafCert | None = None) -> Upstream:
        upstream = self._stack.enter_context(contextlib.closing(Upstream(certificate)))
        self.urls[name] = upstream.cataas
        return upstream

    def errors(self, name: str) -> list[str]:
        """Return the errors in the log that say that this source fails."""
        host = urlsplit(self.urls[name]).netloc
        failures = [line["fields"] for line in self.service.log if line["fields"]["message"] == "Source fails"]
        return [failure["error"] for failure in failures if failure["source"] == host]


@pytest.fixture(scope="module")
def bad_sources(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> BadSources:
    return BadSources(tmp_path_factory.mktemp("sources"), authority)


def test_bad_sources_do_not_stop_a_service_which_stays_small(bad_sources):
    assert (bad_sources.exit_status, bad_sources.statuses) == (0, {200})
    assert bad_sources.megabytes < 160 and "Traceback" not in json.dumps(bad_sources.service.log)


@pytest.mark.parametrize("name", [*UNREACHABLE_SOURCES, *BAD_SOURCES, *BOMBS])
def test_what_is_wrong_with_a_source_is_told_once(bad_sources, name):
    (error,) = bad_sources.errors(name)
    assert re.search(bad_sources.reasons[name], error)
    assert not bad_sources.errors("good")


def test_a_credit_is_harmless_wherever_it_is_shown(start, upstream):
    upstream.answers["/v1/images/search"] = sends([{"id": "x", "url": "/images/\"><script>' onclick=x"}])
    service = start(CAT_SOURCES=upstream.the_cat_api)
    eventually(lambda: service.stored() == 1)
    for format in catscii.PAGE_FORMATS["all"]:
        response = service.get(f"/cat/x?format={format}")
        body = response.data.decode()
        assert response.status == 200 and (format == "json" or "\"><script>'" not in body)
        assert format != "html" or "/images/&quot;&gt;&lt;script&gt;&#039; onclick=x" in body


TAGS: list[tuple[object, str]] = [  # of a source, and what is shown of them
    (["cute", "sleepy"], "cute, sleepy"),
    ([" two \n words ", "two words", "", "\t", "\u200b"], "two words"),
    (["\x1b[31m\x07red", "\u202egnp\ud800\0", "<script>alert(1)</script>"], "[31mred, gnp, <script>alert(1)</script>"),
    ([*"abcdefgh"], "a, b, c, d, e"),
    (["x" * 1000], "x" * 30),
    ([None, 1, ["a"], {}], ""),
    ("cute", ""),
    (None, ""),
]


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Yield a service with a cat for each of TAGS."""
    with contextlib.closing(Upstream()) as upstream:
        cats = [{"id": f"x{i}", "url": f"/images/{i}.jpg", "tags": tags} for i, (tags, _) in enumerate(TAGS)]
        upstream.answers["/v1/images/search"] = sends(cats)
        with Running(tmp_path_factory.mktemp("tagged"), CAT_SOURCES=upstream.the_cat_api) as service:
            eventually(lambda: service.stored() == len(TAGS))
            yield service


@pytest.mark.parametrize("number", range(len(TAGS)))
def test_tags_are_harmless_wherever_they_are_shown(tagged, number):
    description = tagged.json(f"/cat/x{number}")["description"]
    assert description.startswith("a photograph from localhost")
    assert description.partition("; tags: ")[2] == TAGS[number][1]
    html_page, ansi, text = (tagged.get(f"/cat/x{number}.{suffix}").data.decode() for suffix in ("html", "ansi", "txt"))
    assert f"{html.escape(description)}</a>" in html_page and f"A{html.escape(description[1:])}, drawn in" in html_page
    assert "alert(1)</script>" not in html_page + ansi + text and "\x07" not in html_page + ansi + text


# ---------------------------------------------------------------------------------------------------------------------
# Visitors
# ---------------------------------------------------------------------------------------------------------------------


def test_the_country_of_an_address(tmp_path, country_db):
    damaged = tmp_path / "damaged.mmdb"
    damaged.write_bytes(Path(country_db).read_bytes().replace(b"\x42GB", b"\xff\xff\xff"))  # a string of two bytes
    assert catscii.Countries(str(damaged)).country("81.2.69.160") == "ZZ"
    for country, addresses in {
        "GB": ["81.2.69.160", " 81.2.69.160 ", "::ffff:81.2.69.160", "81.2.69.160:4711", "10.0.0.1, 81.2.69.160"],
        "FR": ["2001:db8:1::5", "[2001:db8:1::5]:4711", "[2001:db8:1::5]", "2001:db8:1::5%eth0"],
        "DE": ["198.51.100.7"],
        "JP": ["2001:db8:2::1"],
        "ZZ": ["203.0.113.9", "127.0.0.1", "", "garbage", "81.2.69", "[]", ":1", "81.2.69.160,", "\0é", "%"],
    }.items():
        assert [catscii.Countries(country_db).country(address) for address in addresses] == [country] * len(addresses)


def test_visits_are_counted_by_day_and_by_the_header_of_a_trusted_proxy_only_and_addresses_not_kept(start, country_db):
    service = start(GEOLITE2_COUNTRY_DB=country_db, CLIENT_IP_HEADER="X-Real-IP")
    for address in ("81.2.69.160", "2001:db8:1::5", "2001:db8:1::6"):
        assert service.get("/", CURL | {"X-Real-IP": address}).status == 200
    assert service.visits() == b"FR: 2\nGB: 1\n"
    assert service.stop() == 0
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    assert sql(service.database, "SELECT * FROM visits ORDER BY country") == [(day, "FR", 2), (day, "GB", 1)]
    kept = service.database.read_bytes().decode("latin-1") + json.dumps(service.log)
    assert "81.2.69" not in kept and "2001:db8" not in kept
    service = start(GEOLITE2_COUNTRY_DB=country_db)
    service.get("/", CURL | dict.fromkeys(("X-Real-IP", "X-Forwarded-For", "Fly-Client-IP"), "81.2.69.160"))
    assert service.visits() == b"FR: 2\nGB: 1\nZZ: 1\n"


BROWSERS = [
    "Mozilla/5.0 (Linux; Android 12; CUBOT P60) AppleWebKit/537.36 Chrome/120.0 Mobile Safari/537.36", "Lynx/2.9",
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (Ecosia android@150.0.0.0)", "fetch libfetch/2.0",
    "Mozilla/5.0 (compatible; MSIE 9.0; Windows NT 6.1; Trident/5.0)", "Wget/1.21.4", "HTTPie/3.2.4", "xh/0.24.0", ""]
CRAWLERS = [
    "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)", "facebookexternalhit/1.1",
    "Mozilla/5.0 (Windows NT 6.1; WOW64) SkypeUriPreview Preview/0.5", "WhatsApp/2.23.18.78 i", "Googlebot/2.1",
    "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)", "Twitterbot/1.0"]
SHOWN = [
    *((path, {}, "GET") for path in ("/", "/?format=json", "/cat/house-1", "/cat/house-1.txt")),
    ("/", {"Sec-Fetch-Dest": "empty"}, "GET"), ("/cat/house-1", {"Sec-Fetch-Dest": "document"}, "GET"),
    *(("/cat/house-1", {"User-Agent": client}, "GET") for client in BROWSERS)]
NOT_SHOWN = [
    *((path, {}, "GET") for path in ("/health", "/metrics", "/analytics", "/favicon.ico", "/no", "/panic", "/?width=1",
                                     "/cat/no", "/cat/house-1.png", "/cat/house-1.jpg", "/cat/house-1?format=png")),
    ("/", {}, "HEAD"), ("/cat/house-1", {}, "HEAD"), ("/cat/house-1?width=60", {"Sec-Fetch-Dest": "empty"}, "GET"),
    *((path, {"User-Agent": client}, "GET") for client in CRAWLERS for path in ("/", "/cat/house-1"))]


def test_a_visit_is_somebody_who_sees_a_cat(start):
    service, visits = start(), 0
    for path, headers, method in SHOWN + NOT_SHOWN:
        service.get(path, CURL | headers, method)
        visits += (path, headers, method) in SHOWN
        assert service.visits() == b"ZZ: %d\n" % visits, (path, headers, method)
    asked = sum(count for name, count in samples(service)["catscii_requests_total"].items() if "/analytics" not in name)
    assert asked == len(SHOWN + NOT_SHOWN) - 1, "the metrics have every request"


def test_a_crawler_gets_one_cat_a_day(service):
    day = int(time.time() // 86400)
    crawlers, visitors = ({json.loads(service.get("/?format=json", {"User-Agent": client}).data)["id"]
                           for client in clients} for clients in (CRAWLERS, ["curl/8.16.0"] * 9))
    assert day != int(time.time() // 86400) or crawlers == {f"house-{zlib.crc32(b'%d' % day)}"}
    assert len(visitors) > 1


@pytest.mark.npm
def test_crawlers_are_told_from_browsers(tmp_path):
    """The lists are those of crawlers in monperrus/crawler-user-agents, and of browsers in Intoli's user-agents."""
    def packed(package: str, member: str) -> Any:
        subprocess.run(["npm", "pack", "--silent", package], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(tmp_path / f"{package.replace('@', '-')}.tgz") as archive:
            return json.load(archive.extractfile(f"package/{member}"))

    browsers = packed("user-agents@2.1.198", "dist/user-agents.json")
    assert not [entry["userAgent"] for entry in browsers if catscii.crawls(entry["userAgent"])]
    crawlers = packed("crawler-user-agents@1.60.0", "crawler-user-agents.json")
    programs = {agent for entry in crawlers for agent in entry["instances"] if "http-library" not in entry["tags"]}
    programs -= {agent for agent in programs if re.match(catscii.TERMINALS, agent)}
    assert len(programs) > 1500 and sum(map(bool, map(catscii.crawls, programs))) > 0.88 * len(programs)


def cell_at(longitude: float, latitude: float) -> int:
    column, row = bench_catscii.on_the_map((longitude, latitude))
    return int(row) * catscii.WORLD_COLUMNS + int(column)


@pytest.mark.npm
def test_the_map_and_its_names_are_those_of_their_sources():
    assert zlib.decompress(base64.b85decode("".join(catscii.WORLD.split()))) == bench_catscii.world()


# Codes, longitudes and latitudes
LARGE_COUNTRIES = """
    AU 134 -25  BR -52 -10  CA -105 58  CN 103 35  DE 10 51  EG 29 26.5  FR 2.5 46.5  GB -1.5 53  GL -41 72  IN 79 22
    IT 12.5 42.5  JP 138.5 36.5  NZ 172 -43  RU 100 62  RU 185 67  SJ 16 78.5  US -98 39  US -152 65  ZA 24 -30"""
SMALL_COUNTRIES = """
    AD 1.55 42.55  BB -59.55 13.2  FJ 178 -17.8  GF -53 4  GI -5.35 36.15  HK 114.15 22.35  LU 6.1 49.75  MT 14.4 35.9
    RE 55.5 -21.1  SG 103.85 1.35  TV 179.2 -8.5  VA 12.45 41.9  WS 187.7 -13.8  XK 20.9 42.6"""


def test_a_large_country_owns_the_cell_that_it_lies_in_and_a_small_one_glows_where_it_is():
    (names, _, homes), dark = catscii.world(), catscii.chunks(catscii.world_map({}).foreground, 3)
    assert [len(names), *map(names.get, ("CI", "ZZ"))] == [251, "Côte d'Ivoire", "Unknown"]  # ISO 3166-1, XK and ZZ
    assert {code for codes in homes.values() for code in codes} == names.keys() - {"AQ", "ZZ"}
    for code, longitude, latitude in map(str.split, re.split(r"\s{2,}", LARGE_COUNTRIES.strip())):
        assert homes[cell_at(float(longitude), float(latitude))][0] == code
    for code, longitude, latitude in map(str.split, re.split(r"\s{2,}", SMALL_COUNTRIES.strip())):
        (cell,) = (cell for cell, codes in homes.items() if code in codes)
        here = cell_at(float(longitude), float(latitude))
        assert abs(cell % 80 - here % 80) <= 1 and abs(cell // 80 - here // 80) <= 1, code
        art = catscii.world_map({code: 1})
        lit = catscii.chunks(art.foreground, 3)
        assert [i for i in range(len(dark)) if dark[i] != lit[i]] == [cell] and "".join(art.rows)[cell] != " ", code


def test_land_without_visits_is_quiet_and_a_country_with_one_visit_glows_beside_one_with_many():
    codes, homes = catscii.world().names, catscii.world().homes
    assert set("".join(catscii.world_map({}).rows)) == set(" .:")
    lit = "".join(catscii.world_map(dict.fromkeys(codes, 1)).rows)
    assert {lit[cell] for cell in homes} == {"@"} and lit.count("@") == len(homes)
    for code in ("CA", "GB", "PT", "LU", "MT"):
        art = catscii.world_map({"US": 10**6, "FR": 10**6, code: 1})
        glyphs, papers = "".join(art.rows), [*map(relative_luminance, catscii.chunks(art.background, 3))]
        country = {cell for cell in homes if glyphs[cell] == "o"}
        assert country and all(code in homes[cell] for cell in country)
        halo = max(papers[cell] for cell, glyph in enumerate(glyphs) if glyph in " .:")
        assert all(art.foreground[3 * cell] > 240 and papers[cell] > 2 * halo for cell in country)


ALL_COUNTRIES = dict.fromkeys(catscii.world().names, 1000)


@pytest.mark.parametrize("visits", [{"FR": 1}, ALL_COUNTRIES, dict.fromkeys(ALL_COUNTRIES, 1) | {"FR": 10**9}] + [
    ALL_COUNTRIES | {dark: 0} for dark in ("BY", "MX", "KZ", "MT")])
def test_the_map_has_a_contrast_of_four_and_a_half_even_in_the_halo(visits):
    art = catscii.world_map(visits)
    for cell in catscii.world().homes:
        ink, paper = (relative_luminance(plane[3 * cell :][:3]) for plane in (art.foreground, art.background))
        assert (ink + 0.05) / (paper + 0.05) >= 4.5


def test_many_processes_open_a_new_database_at_once_and_count_into_it(start, tmp_path):
    def use(path: Path, together: threading.Barrier) -> None:
        together.wait()
        database = catscii.Database(str(path))
        database.execute(catscii.CHECK_VISITS)
        database.close()

    with ThreadPoolExecutor(8) as pool:
        for i in range(rounds(100)):
            list(pool.map(use, [tmp_path / f"{i}.db"] * 8, [threading.Barrier(8)] * 8))
        services = list(pool.map(lambda _: start(), range(6)))
        statuses = list(pool.map(lambda i: services[i % 6].get("/cat/house-1").status, range(204)))
    assert statuses == [200] * 204
    for service in services:  # a visit that met a lock waits in memory
        eventually(lambda: service.visits() == b"ZZ: 204\n")  # noqa: B023


def test_a_visit_is_in_the_database_before_its_answer_is_there(start):
    slow = "import time; write = catscii.VisitCounter.commit\n"
    slow += "catscii.VisitCounter.commit = lambda *given, **how: time.sleep(0.01) or write(*given, **how)"
    service = start(command=patched(slow))
    for i in range(1, 51):
        with connected(service) as connection:
            connection.sendall(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"
                               b"GET /cat/house-1?format=text&width=20 HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while answer.count(b"\r\n\r\n") < 2:
                answer += connection.recv(65536)
            assert sql(service.database, "SELECT sum(count) FROM visits") == [(i,)]


def test_all_answered_visits_are_in_the_files_at_any_moment(start, tmp_path):
    def visit_on() -> None:
        nonlocal answered
        while not ended:
            assert service.get("/cat/house-1?format=text&width=20").status == 200
            answered += 1

    service, answered, ended = start(), 0, False
    copy, log, shared = (tmp_path / f"copy.db{suffix}" for suffix in ("", "-wal", "-shm"))
    with ThreadPoolExecutor(1) as pool:
        visitor = pool.submit(visit_on)
        try:
            for pause in random.choices([0, 0.005, 0.01, 0.02], k=rounds(500)):
                time.sleep(pause)
                with suspended(service):
                    os.waitid(os.P_PID, service.process.pid, os.WSTOPPED)
                    before = answered
                    shutil.copyfile(service.database, copy)
                    shutil.copyfile(f"{service.database}-wal", log)
                shared.unlink(missing_ok=True)
                with contextlib.closing(sqlite3.connect(copy)) as connection:
                    ((visits,),) = connection.execute("SELECT ifnull(sum(count), 0) FROM visits")
                    assert before <= visits and list(connection.execute("PRAGMA integrity_check")) == [("ok",)]
        finally:
            ended = True
        visitor.result()
        assert answered == counted(service)


def test_visits_are_on_the_disk_a_second_later(start):
    code = """if True:
        import os
        fsync, log = os.fsync, os.environ["ANALYTICS_DB"] + "-wal"
        def told(file):
            fsync(file)
            print("synced" if os.path.samestat(os.fstat(file.fileno()), os.stat(log)) else "?", file=sys.stderr)
        os.fsync = told
    """
    service = start(command=patched(code))
    made = -1
    while made != service.lines.count("synced\n"):  # until the new database is on the disk
        made = service.lines.count("synced\n")
        time.sleep(1.5)
    for visits in range(1, 4):
        visit(service, 1)
        eventually(lambda: service.lines.count("synced\n") == made + visits)  # noqa: B023
        time.sleep(1.5)
    assert service.lines.count("synced\n") == made + 3, "without visits there is nothing to write"


def counted(service: Running) -> int:
    response = service.get("/analytics?format=json")
    return int(json.loads(response.data)["visits"]) if response.status == 200 else -1


def visit(service: Running, times: int = 5) -> None:
    """Visit the service, which has to answer with a cat at once, even if it cannot count."""
    for _ in range(times):
        begun = time.monotonic()
        assert service.get("/cat/house-1?width=20").status == 200 and time.monotonic() - begun < SOON


def health(service: Running) -> tuple[int, str, str]:
    response = service.get("/health")
    return response.status, json.loads(response.data)["status"], json.loads(response.data).get("reason", "")


@contextlib.contextmanager
def locked(service: Running) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(service.database, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


@contextlib.contextmanager
def another_schema(service: Running, table: str = "visits") -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(service.database, 60)) as connection:
        connection.execute("PRAGMA legacy_alter_table = ON")  # views and triggers keep the old name
        connection.execute(f"ALTER TABLE {table} RENAME TO gone")
        yield
        connection.execute(f"ALTER TABLE gone RENAME TO {table}")


@contextlib.contextmanager
def failing(service: Running, how: str) -> Iterator[None]:
    """Make the database fail within the context."""
    if how in ("locked", "another schema"):
        with (locked if how == "locked" else another_schema)(service):
            yield
    elif how == "full disk":
        unlimited = resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (512, unlimited[1]))
        yield
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, unlimited)
    elif how == "moved and moved back":
        moved = service.database.rename(service.database.with_name("moved.db"))
        yield
        moved.rename(service.database)


@pytest.mark.parametrize(("how", "reason"), [
    ("locked", "locked"), ("another schema", "no such table"), ("full disk", "full|disk I/O"),
    ("moved and moved back", "moved"),
])
def test_visits_wait_while_the_database_fails_and_are_counted_when_it_is_back(start, how, reason):
    service = start(command=patched("catscii.UNCOUNTED_SECONDS = 2"))
    visit(service)
    with failing(service, how):
        visit(service)
        eventually(lambda: health(service)[1] == "degraded")
        assert health(service)[0] == 200
        eventually(lambda: health(service)[:2] == (503, "failing"))
        assert re.search(reason, health(service)[2]), health(service)
        visit(service)
    eventually(lambda: health(service)[:2] == (200, "ok"))
    visit(service)
    assert counted(service) == 20
    assert service.stop() == 0 and "Traceback" not in json.dumps(service.log)
    for message in ("Visits cannot be counted and wait in memory", "Visits are counted again"):
        assert service.messages().count(message) == 1
    assert sql(service.database, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("how", ["deleted", "moved", "moved without its log", "replaced", "replaced by garbage"])
def test_visits_wait_for_a_restart_if_the_database_is_deleted_moved_or_replaced(start, tmp_path, how):
    (tmp_path / "elsewhere").mkdir()
    variables = {"CAT_SOURCES": "http://localhost:1/cat"}  # the refresher writes to the database too
    service = start(command=patched("catscii.UNCOUNTED_SECONDS = 2; catscii.LONGEST_BACKOFF = 0.1"), **variables)
    visit(service)
    backup(service, tmp_path / "backup.db")
    visit(service, 2)
    for path in tmp_path.glob("catscii.db" if how == "moved without its log" else "catscii.db*"):
        path.rename(tmp_path / "elsewhere" / path.name)
    if how == "replaced":
        (tmp_path / "backup.db").rename(service.database)
    elif how == "replaced by garbage":
        service.database.write_bytes(b"no database" * 9999)
    visit(service, 4)
    assert service.get("/").status == 200
    status, _, reason = health(service)
    assert status == 200 and reason.startswith("visits cannot be counted: the file was deleted, moved or replaced")
    eventually(lambda: health(service)[:2] == (503, "failing"))
    service.wait_for("The store cannot be refreshed")
    assert service.stop() == 0 and "Traceback" not in json.dumps(service.log)
    assert service.messages().count("Visits cannot be counted and wait in memory") == 1
    assert [line["fields"]["visits"] for line in service.log if "Visits are lost" in line["fields"]["message"]] == [5]
    assert "moved" not in how or sql(tmp_path / "elsewhere/catscii.db", "SELECT sum(count) FROM visits") == [(7,)]
    if how == "replaced by garbage":
        assert "the file is damaged" in error_at_start(tmp_path, ANALYTICS_DB=str(service.database))
    else:
        service = start()
        visit(service)
        assert health(service) == (200, "ok", "") and counted(service) == (10 if how == "replaced" else 5)


@pytest.mark.parametrize("deleted", ["catscii.db", "catscii.db*"])
def test_no_server_loses_visits_in_silence_while_others_make_the_database_anew(start, deleted):
    def restart(service: Running) -> tuple[Running, int]:
        assert service.stop() == 0
        return start(), sum(line["fields"].get("visits", 0) for line in service.log)

    for _ in range(rounds(10)):
        services, lost = [start() for _ in range(4)], 0
        for path in services[0].database.parent.glob(deleted):
            path.unlink()
        for i in range(4):
            for service in services:
                visit(service, 1)
            services[i], lost_here = restart(services[i])
            lost += lost_here
        assert counted(services[0]) + lost == 16
        for service in services:
            service.stop()
        services[0].database.unlink()


def damaged_database(database: Path, rng: random.Random) -> bytes:
    """Return the bytes of the file, of which a page, some bytes or the end are damaged so that SQLite notices it."""
    whole, copy = database.read_bytes(), database.with_name("damaged.db")
    while True:
        data, page = bytearray(whole), 4096 * rng.randrange(len(whole) // 4096)
        how = rng.randrange(5)
        if how == 0:
            data[page : page + 4096] = bytes(4096)
        elif how == 1:
            data[page : page + 4096] = rng.randbytes(4096)
        elif how == 2:
            del data[page + rng.randrange(4096) :]
        else:
            for _ in range(5):
                data[rng.randrange(4096 if how == 3 else len(data))] = rng.randrange(256)
        copy.write_bytes(data)
        try:
            if data and sql(copy, "PRAGMA quick_check(1)") != [("ok",)]:
                return bytes(data)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if not isinstance(error, sqlite3.OperationalError):
                return bytes(data)


def test_a_damaged_database_ends_the_start_with_one_line_and_cgi_answers_without_a_traceback(start, tmp_path):
    service = start()
    add_visits(service.database, many_visits(50, 20))
    for name in ("a", "b", "c"):
        store_cat(service.database, name)
    assert service.stop() == 0
    path, whole, clear = tmp_path / "catscii.db", tmp_path / "whole.db", "restore a backup, or move the file away"
    path.rename(whole)
    zeroed = [whole.read_bytes()[:start] + bytes(4096) + whole.read_bytes()[start + 4096 :] for start in (8192, 16384)]
    rng = random.Random(0)
    for data in [*zeroed, *(damaged_database(whole, rng) for _ in range(rounds(100)))]:
        for beside in tmp_path.glob("catscii.db-*"):
            beside.unlink()
        path.write_bytes(data)
        error = error_at_start(tmp_path, ANALYTICS_DB=str(path))
        assert error.startswith(f"catscii: ANALYTICS_DB: cannot use '{path}': the file is damaged: ") and clear in error
        path.write_bytes(data)
        answer = cgi(tmp_path, PATH_INFO=rng.choice(["/", "/analytics", "/cat/a", "/health"]), QUERY_STRING="width=20")
        assert answer.status[:3] in ("200", "500", "503") and "Traceback" not in json.dumps(answer.log)


def test_cgi_does_not_read_the_whole_database(start, tmp_path):
    service = start()
    add_visits(service.database, many_visits(50, 200))
    assert service.stop() == 0
    ((page,),) = sql(service.database, "SELECT rootpage FROM sqlite_schema WHERE name = 'totals'")
    data = bytearray(service.database.read_bytes())
    data[4096 * (page - 1) : 4096 * page] = bytes(4096)
    service.database.write_bytes(data)
    assert cgi(tmp_path, PATH_INFO="/cat/house-1", REQUEST_METHOD="HEAD").status == "200 OK"


def test_a_read_only_database_is_a_clear_error(start, tmp_path):
    service = start()
    assert service.stop() == 0
    service.database.chmod(0o444)
    command = [sys.executable, str(SCRIPT)]
    if os.geteuid() == 0:  # who may otherwise write what is read-only
        command = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override", *command]
    variables = {"PATH": os.environ["PATH"], "ANALYTICS_DB": str(service.database), "PORT": "0"}
    result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    error = f"catscii: ANALYTICS_DB: cannot use '{service.database}': attempt to write a readonly database\n"
    assert (result.returncode, result.stderr) == (2, error)


def test_visits_that_wait_are_written_at_the_end_or_else_lost_with_an_error_that_counts_them(start):
    service = start()
    with locked(service):
        visit(service)
        service.wait_for("Visits cannot be counted")
    assert service.stop() == 0
    service = start()
    with locked(service):
        visit(service, 7)
        assert service.stop() == 0
    errors = [line["fields"] for line in service.log if line["level"] == "ERROR"]
    assert len(errors) == 2  # one when the trouble began
    assert [error["visits"] for error in errors if error["message"].startswith("Visits are lost")] == [7]
    assert counted(start()) == 5


def test_the_last_visits_wait_for_a_lock_that_another_process_holds_for_a_moment(start):
    service = start(command=patched("catscii.END_PATIENCE = 60"))
    with locked(service):
        visit(service, 3)
        service.wait_for("Visits cannot be counted")
        service.process.terminate()
        service.wait_for("Initiating graceful shutdown")
        with pytest.raises(subprocess.TimeoutExpired):
            service.process.wait(0.5)
    assert service.process.wait(30) == 0
    assert counted(start()) == 3


def test_countries_are_replaced_while_the_service_runs(start, tmp_path):
    path, half, new = (tmp_path / name for name in ("x.mmdb", "half.mmdb", "new.mmdb"))
    write_mmdb(path, "Test-Country", {"127.0.0.0/8": {"country": {"iso_code": "GB"}}})
    write_mmdb(new, "Test-Country", {"127.0.0.0/8": {"country": {"iso_code": "FR"}}})
    service = start(GEOLITE2_COUNTRY_DB=str(path))
    visit(service, 1)
    half.write_bytes(new.read_bytes()[:99])
    half.replace(path)
    service.wait_for("Countries cannot be replaced")
    with locked(service):
        visit(service, 1)
        service.wait_for("Visits cannot be counted")
    service.wait_for("Visits are counted again")  # by the same thread, which goes on
    new.replace(path)
    service.wait_for("Countries were replaced")
    visit(service, 1)
    assert service.json("/analytics")["countries"] == {"GB": 2, "FR": 1}
    assert service.messages().count("Countries cannot be replaced") == 1


# ---------------------------------------------------------------------------------------------------------------------
# Machines: many that share one count
# ---------------------------------------------------------------------------------------------------------------------


ETCD_RANGE = {"key": base64.b64encode(catscii.ETCD_PREFIX).decode(), "range_end": "Y2F0c2NpaS92aXNpdHMw"}  # to visits0


class Etcd(contextlib.AbstractContextManager["Etcd"]):
    """A cluster of etcd on free ports. Its members can be killed, stopped and started again."""

    def __init__(self, folder: Path, members: int, *options: str, certificate: trustme.LeafCert | None = None) -> None:
        folder.mkdir()
        ports, scheme = free_ports(2 * members), "https" if certificate else "http"
        if certificate:
            certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "tls.pem"))
            options += "--cert-file", str(folder / "tls.pem"), "--key-file", str(folder / "tls.pem")
        ca_file = str(folder.parent / "ca.pem") if certificate else None
        self.pool = urllib3.PoolManager(retries=False, timeout=5, ca_certs=ca_file)
        self.urls = [f"{scheme}://localhost:{port}" for port in ports[:members]]
        peers = [f"http://127.0.0.1:{port}" for port in ports[members:]]
        cluster = ",".join(f"m{i}={url}" for i, url in enumerate(peers))
        self.commands = [[
            "etcd", "--name", f"m{i}", "--data-dir", str(folder / f"m{i}"), "--logger", "zap", *options,
            "--listen-client-urls", url.replace("localhost", "127.0.0.1"), "--advertise-client-urls", url,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", cluster,
        ] for i, (url, peer) in enumerate(zip(self.urls, peers, strict=True))]
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.start(*range(members))
        self.endpoints = ",".join(self.urls)

    def start(self, *members: int) -> None:
        for member in members:
            self.processes[member] = subprocess.Popen(
                self.commands[member], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self, *members: int) -> None:
        for member in members:
            self.processes[member].kill()
            self.processes[member].wait()

    def post(self, path: str, message: Mapping[str, Any], member: int = 0) -> Any:
        return self.pool.request("POST", f"{self.urls[member]}/v3/{path}", json=message).json()

    def statuses(self) -> dict[int, dict[str, Any]]:
        """Return what each member that answers says of itself."""
        found = {}
        for member in self.processes:
            with contextlib.suppress(urllib3.exceptions.HTTPError, ValueError):
                found[member] = self.post("maintenance/status", {}, member)
        return {member: status for member, status in found.items() if "header" in status}

    def wait(self) -> Etcd:
        """Return the cluster once each member answers."""
        eventually(lambda: len(self.statuses()) == len(self.processes))
        return self

    def leader(self) -> int:
        """Return the member that leads, or the first one while none leads."""
        return next((member for member, status in self.statuses().items()
                     if status.get("leader") == status["header"]["member_id"]), 0)

    def documents(self) -> dict[str, Any]:
        """Return what the keys of machines hold, unpacked."""
        found = {base64.b64decode(entry["key"])[15:].decode(): base64.b64decode(entry["value"])
                 for entry in self.post("kv/range", ETCD_RANGE).get("kvs", [])}
        return {key: json.loads(zlib.decompress(value)) for key, value in found.items()}

    def wait_for(self, country: str) -> None:
        """Wait until a machine has written a visit from there."""
        eventually(lambda: any(each["visits"].get(country) for each in self.documents().values()))

    def put(self, key: str, value: bytes) -> None:
        name = catscii.ETCD_PREFIX + key.encode()
        self.post("kv/put", {"key": base64.b64encode(name).decode(), "value": base64.b64encode(value).decode()})

    def __exit__(self, *_: object) -> None:
        self.kill(*self.processes)


WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))  # the number of this process
PORTS = itertools.cycle(random.sample(range(10_000 + 1000 * WORKER, 11_000 + 1000 * WORKER), 1000))


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on. Connections do not take them meanwhile: theirs are above 32767."""
    ports: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(ports) < count:
            port = next(PORTS)
            with contextlib.suppress(OSError):  # somebody listens
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                ports.append(port)
    return ports


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[..., Etcd]]:
    """Yield a function that starts the cluster of a test, which is killed at the end of the test."""
    shutil.which("etcd") or pytest.skip("etcd is not installed")
    with contextlib.ExitStack() as stack:
        yield lambda members=1, *options, **more: stack.enter_context(
            Etcd(tmp_path / "etcd", members, *options, **more)).wait()


@pytest.fixture
def machine(start, tmp_path: Path, country_db: str) -> Callable[..., Running]:
    """Starts a machine, given the name of its database and its endpoints."""
    common: dict[str, Any] = {"GEOLITE2_COUNTRY_DB": country_db, "CLIENT_IP_HEADER": "X-Real-IP"}
    if not THOROUGH:
        common["command"] = patched("catscii.EXCHANGE_SECONDS = 0.3")
    return lambda name, endpoints, **more: start(
        **{**common, "ANALYTICS_DB": str(tmp_path / name), "ETCD_ENDPOINTS": endpoints, **more})


VISITORS = {"GB": "81.2.69.160", "FR": "2001:db8:1::5", "DE": "198.51.100.7", "JP": "2001:db8:2::1"}
OUTAGE = "Visits cannot be exchanged with etcd"


def visit_from(service: Running, *countries: str) -> None:
    for country in countries:
        assert service.get("/cat/house-1?width=20", CURL | {"X-Real-IP": VISITORS[country]}).status == 200


def agree(visits: dict[str, int], *services: Running, seconds: float = 10) -> None:
    """Wait until all services show these visits."""
    eventually(lambda: all(service.json("/analytics")["countries"] == visits for service in services), seconds)


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
    assert a.wait_for("Listening on")["etcd"] == ["localhost"]
    visit_from(c, "DE")
    assert c.stop() == 0  # writes its last visit, and keeps its visits in the sum
    agree({"FR": 3, "JP": 2, "DE": 1, "GB": 1}, a, b)
    alone = machine("a", "")
    assert alone.visits() == b"FR: 2\nGB: 1\n" and "machine" not in alone.get("/analytics", CHROME).data.decode()
    assert "machines" not in {**alone.json("/analytics"), **alone.json("/health")}
    assert alone.wait_for("Listening on")["etcd"] == [] and "catscii_machines" not in samples(alone)


@pytest.mark.timeout(1800)
def test_machines_agree_exactly_after_whatever_fails(machine, cluster):
    etcd, answered, pause = cluster(3), Counter[str](), 10.0 if THOROUGH else 1.0
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

    def kill(*members: int) -> None:
        etcd.kill(*members)
        time.sleep(rng.uniform(0, 2 * pause))
        etcd.start(*members)

    def stop_follower() -> None:
        process = etcd.processes[(etcd.leader() + 1) % 3]
        process.send_signal(signal.SIGSTOP)
        time.sleep(pause)
        process.send_signal(signal.SIGCONT)

    for round_ in range(20 if THOROUGH else 2):
        rng, stopping = random.Random(round_), threading.Event()
        killed, told = rng.sample(range(3), 2)
        of_etcd: list[Callable[[], None]] = [lambda: kill(etcd.leader()), stop_follower, lambda: kill(*range(3))]
        of_machines = [partial(replace, killed, signal.SIGKILL), partial(replace, told, signal.SIGTERM)]
        for faults in (of_etcd, of_machines):
            rng.shuffle(faults)
        with ThreadPoolExecutor(5) as pool:  # faults of machines and of etcd may coincide
            visitors = [pool.submit(visitor, i, stopping, random.Random(i)) for i in range(3)]
            list(pool.map(lambda faults: [fault() for fault in faults], (of_etcd, of_machines)))
            stopping.set()
        assert not any(each.result() for each in visitors)
        etcd.wait()
        agree(answered, *services)
        assert len(etcd.documents()) == 3


def test_a_machine_of_etcd_on_fly_sleeps_until_it_knows_the_members(tmp_path):
    shutil.which("etcd") or pytest.skip("etcd is not installed")
    text = (FOLDER / "docs/machines.md").read_text()
    fly = tomllib.loads(re.search("```toml\n(.*?)```", text, re.DOTALL)[1])  # type: ignore[index]
    clients, peers = free_ports(2)
    (command,) = fly["experimental"]["cmd"]
    for old, new in (("/data/", f"{tmp_path}/"), ("2379", clients), ("2380", peers), ("[::]", "127.0.0.1"),
                     ("$FLY_MACHINE_ID.vm.catscii-etcd.internal", "127.0.0.1")):
        assert old in command
        command = command.replace(old, str(new))
    start = partial(subprocess.Popen, [*fly["experimental"]["entrypoint"], command], stderr=subprocess.DEVNULL)
    environment = {"PATH": os.environ["PATH"], "FLY_MACHINE_ID": "one"}
    with start(env=environment) as machine:
        try:
            eventually(lambda: Path(f"/proc/{machine.pid}/comm").read_text() == "sleep\n")
        finally:
            machine.kill()
    environment["MEMBERS"] = f"one=http://127.0.0.1:{peers}"
    with start(env=environment) as machine:
        try:
            patient = urllib3.Retry(20, backoff_factor=0.05)
            health = urllib3.request("GET", f"http://127.0.0.1:{clients}/health", retries=patient)
            assert health.status == 200 and health.json()["health"] == "true"
        finally:
            machine.kill()


def test_visitors_do_not_notice_that_etcd_hangs(machine):
    with contextlib.ExitStack() as stack:
        hanging = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        alone = machine("alone", ",".join(f"http://127.0.0.1:{each.getsockname()[1]}" for each in hanging))
        assert alone.json("/health")["machines"] == "never agreed"
        alone.wait_for(OUTAGE)
        begun = time.monotonic()
        visit_from(alone, *["FR"] * 200)
        assert time.monotonic() - begun < 200 * catscii.ENDPOINT_SECONDS / 10
        assert alone.get("/health").status == 200 and alone.visits() == b"FR: 200\n"
        assert alone.json("/analytics")["machines"] == {"count": 1, "agreed": None}
        begun = time.monotonic()
        assert alone.stop() == 0 and time.monotonic() - begun < 4
        assert alone.messages().count(OUTAGE) == 1


def test_an_outage_is_logged_once_and_the_last_known_sum_is_shown_with_its_time(machine, cluster):
    etcd = cluster()
    a, b = (machine(name, etcd.endpoints) for name in "ab")
    visit_from(a, "FR")
    visit_from(b, "GB")
    agree({"FR": 1, "GB": 1}, a, b)
    etcd.post("kv/deleterange", ETCD_RANGE)  # what etcd has lost is written again
    visit_from(b, "GB")
    agree({"FR": 1, "GB": 2}, a, b)
    etcd.kill(0)
    a.wait_for(OUTAGE)
    known = a.json("/analytics")["machines"]["agreed"]
    visit_from(a, "FR")
    assert a.visits() == b"FR: 2\nGB: 2\n"
    eventually(lambda: int(re.findall(r"last agreed (\d+) seconds ago", a.json("/health")["machines"])[0]) >= 4)
    assert a.get("/health").status == 200 and f"on 2 machines, as of {known}" in a.get("/analytics").data.decode()
    a.stop(signal.SIGKILL)
    a = machine("a", etcd.endpoints)
    assert a.visits() == b"FR: 2\nGB: 2\n"  # from the database
    a.wait_for(OUTAGE)
    etcd.start(0)
    agree({"FR": 2, "GB": 2}, a, b)
    for service in (a, b):
        service.wait_for("Visits are exchanged again")
        assert service.messages().count(OUTAGE) == service.messages().count("Visits are exchanged again") == 1


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
    assert OUTAGE not in a.messages() + b.messages()
    wrong = machine("c", endpoints.replace("cats:s3cret", "cats:wr0ng"), LOG_LEVEL="debug")
    wrong.wait_for(OUTAGE)
    shown = b"".join(service.get(path).data for service in (a, wrong) for path in ("/analytics", "/health", "/metrics"))
    for service in (a, b, wrong):
        assert service.stop() == 0
        shown += "".join(service.lines).encode()
    shown += repr(catscii.read_settings({"ETCD_ENDPOINTS": endpoints})).encode()
    shown += (refusal := run(ETCD_ENDPOINTS="http://cats:s3cret@, nonsense", PORT="0").stderr)
    assert b"ETCD_ENDPOINTS: is not a URL such as" in refusal and not re.search(b"s3cret|wr0ng", shown)


def test_endpoints_are_tried_in_turn_and_verified_over_tls(machine, cluster, authority, ca_file):
    etcd, dead = cluster(certificate=authority.issue_cert("localhost")), f"http://127.0.0.1:{free_ports(1)[0]}"
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        endpoints = f"{dead},http://127.0.0.1:{hanging.getsockname()[1]}/ , {etcd.endpoints}"
        a = machine("a", endpoints, SSL_CERT_FILE=ca_file)
        visit_from(a, "FR")
        etcd.wait_for("FR")
        assert OUTAGE not in a.messages()
    b = machine("b", etcd.endpoints)  # does not know the authority
    b.wait_for(OUTAGE)
    assert "CERTIFICATE_VERIFY_FAILED" in json.dumps(b.log)


def packed(text: bytes = b"", **changes: Any) -> bytes:
    """Return a document of a machine with other contents, or a compressed text."""
    return zlib.compress(text or json.dumps({"version": 1, "visits": {"FR": 5}} | changes).encode())


INVALID_DOCUMENTS = [
    b"", b'{"version": 1}', b"\xff\x00\x9f", *map(packed, (
        b"{", b"[]", b"[" * 200_000, b"[" + b"0," * 50_000_000 + b"0]", b'{"FR": 5}',
        b'{"version": 1, "visits": {"FR": 1e999}}', b'{"version": 1, "visits": {"FR": %s}}' % (b"9" * 100_000))),
    packed(version=2), packed(version=None), packed(visits=[5]), packed(visits={"FR": 5, "DE": -1}),
    *(packed(visits={"FR": wrong}) for wrong in (-1, 5.5, catscii.MOST_VISITS + 1, True, "5")),
    *(packed(visits={wrong: 5}) for wrong in ("QQ", "fr", "France", "<script>")),
    *(packed(visits={day + "FR": 5}) for day in (
        "2026-11-15\n=cmd|' /C calc'!A0", "\x1b]0;", "2026-02-30", "20261115", "2026-W47-1", " 2026-11-15", "0-1-1")),
]


def test_what_no_machine_can_have_written_is_ignored_and_logged_once(machine, cluster):
    etcd = cluster()
    a = machine("a", etcd.endpoints)
    visit_from(a, "FR")
    (own,) = eventually(etcd.documents)
    for i, value in enumerate(INVALID_DOCUMENTS):
        etcd.put(f"\x1b[31m{i}" + "x" * 1000, value)
    today = str(datetime.now(UTC).date())
    etcd.put("ab" * 8, packed(visits={"DE": 7, f"{today}DE": 7, "2001-01-01DE": 3, "9999-01-01DE": 3}))
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
    upstream.answers["POST"] = ENDLESS
    a = machine("a", upstream.url)
    a.wait_for(OUTAGE)
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
    a = machine("a", etcd.endpoints)
    visit_from(a, "FR", "GB")
    if known:
        etcd.wait_for("GB")
    a.process.send_signal(signal.SIGSTOP)  # it writes what it has when it goes on
    backup(a, tmp_path / "b")
    if first == "original":
        a.process.send_signal(signal.SIGCONT)
        visit_from(a, "FR", "DE")
        etcd.wait_for("DE")
    b = machine("b", etcd.endpoints)
    visit_from(b, "FR", "JP")
    etcd.wait_for("JP")
    if first == "copy":
        a.process.send_signal(signal.SIGCONT)
        visit_from(a, "FR", "DE")
    agree({"FR": 3, "DE": 1, "GB": 1, "JP": 1}, a, b)
    eventually(lambda: all(service.json("/analytics")["machines"]["count"] == 2 for service in (a, b)))


@pytest.mark.parametrize("replace", [shutil.copyfile, os.replace])  # in place, and as another file
def test_an_older_database_keeps_in_the_sum_what_it_lost(machine, tmp_path, cluster, replace):
    etcd = cluster()
    a, b = (machine(name, etcd.endpoints) for name in "ab")
    visit_from(a, "FR", "GB")
    backup(a, tmp_path / "old")
    visit_from(a, "FR", "JP", "JP")
    agree({"FR": 2, "JP": 2, "GB": 1}, a, b)
    assert a.stop() == 0
    replace(tmp_path / "old", a.database)
    a = machine("a", etcd.endpoints)
    visit_from(a, "FR", "FR", "FR", "JP", "JP")
    agree({"FR": 5, "JP": 4, "GB": 1}, a, b)


def test_clones_of_a_volume_count_each_visit_once(machine, tmp_path, cluster):
    etcd = cluster()
    a = machine("a", etcd.endpoints)
    visit_from(a, "FR")
    etcd.wait_for("FR")
    a.stop()
    shutil.copyfile(a.database, tmp_path / "b")
    with contextlib.closing(sqlite3.connect(tmp_path / "b")) as database, database:  # a clone has the same inode
        inode = os.stat(tmp_path / "b").st_ino
        database.execute("UPDATE machine SET state = json_set(state, '$.inode', ?)", [inode])
    a, b = (machine(name, etcd.endpoints) for name in "ab")
    for total in range(3, 13, 2):
        visit_from(a, "FR")
        visit_from(b, "FR")
        agree({"FR": total}, a, b)
    assert len(etcd.documents()) == 2


def test_a_new_host_name_takes_no_new_key(machine, cluster):
    etcd = cluster()
    for number in range(1, 6):
        rename = f"import socket; socket.gethostname = lambda: 'host-{number % 3}'"
        a = machine("a", etcd.endpoints, command=patched(f"catscii.EXCHANGE_SECONDS = 0.3; {rename}"))
        visit_from(a, "FR")
        agree({"FR": number}, a)
        a.stop()
    assert len(etcd.documents()) == 1


class MachineModel:
    """A process on a database, and the numbers of the visits that are in the database."""

    def __init__(self, path: Path, etcd: EtcdModel, visits: set[int]) -> None:
        self.etcd, self.visits = etcd, set(visits)
        self.open(path)

    def open(self, path: Path) -> None:
        self.path, self.settled = path, False  # settled: an exchange has succeeded since then
        self.database = catscii.Database(str(path))
        variables = {"ANALYTICS_DB": str(path), "ETCD_ENDPOINTS": "http://localhost:9"}
        self.machines = catscii.Machines(catscii.read_settings(variables), self.database)
        self.machines._etcd.ask = self.etcd.ask  # type: ignore[method-assign]

    def exchange(self, loses: str = "") -> None:
        self.etcd.loses = loses
        self.machines.exchange()
        assert not self.machines._failing or self.machines._failing.reason == "lost"
        self.settled |= not loses

    def copy(self, path: Path) -> Path:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            self.database._connection.backup(connection)
        return path


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
        succeeded = compare["mod_revision"] == str(self.keys.get(compare["key"], (b"", 0))[1])
        if succeeded and self.loses != "before":
            self.revision += 1
            self.keys = {**self.keys, compare["key"]: (success["request_put"]["value"], self.revision)}
        if self.loses:
            raise catscii.Unavailable("lost")
        return {"succeeded": succeeded}


def play(seed: int, folder: Path) -> None:
    """Play random events, and compare the sum that each machine shows with the visits that must be in it."""
    rng, etcd, lost, today = random.Random(seed), EtcdModel(), set[int](), datetime.now(UTC).strftime("%Y-%m-%d")
    countries: dict[int, str] = {}  # by the number of the visit
    played, machines, old = [], [MachineModel(folder / f"{seed}", etcd, set())], []
    cloned = False

    def visit(machine: MachineModel) -> None:
        number = len(countries)
        countries[number] = rng.choice(["FR", "DE"])
        machine.database.execute(catscii.COUNT_VISITS.format(more=""), today, countries[number], 1)
        machine.visits.add(number)

    for i in range(rng.randrange(5, 40)):
        each, path = rng.choice(machines), folder / f"{seed}-{i}"
        event = rng.choice(["visit"] * 8 + ["exchange"] * 5 + [
            "copy", "clone", "move", "restart", "new", "keep", "restore", "lose etcd", "keep etcd"])
        played.append(f"{event} {machines.index(each)}")
        if event == "visit":
            visit(each)
        elif event == "exchange":
            each.exchange(loses=rng.choice(["", "", "before", "after"]))
        elif event == "copy":
            machines.append(MachineModel(each.copy(path), etcd, each.visits))
        elif event == "clone":  # of a whole volume, so that the inode is the same
            each.exchange()
            each.exchange()  # the first one may have found that another machine writes the key
            cloned = True
            clone = each.copy(path)
            with contextlib.closing(sqlite3.connect(clone)) as database, database:
                inode = os.stat(clone).st_ino
                database.execute("UPDATE machine SET state = json_set(state, '$.inode', ?)", [inode])
            machines.append(MachineModel(clone, etcd, each.visits))
            for machine in rng.sample([each, machines[-1]] * 2, 4):
                visit(machine)
                machine.exchange()
        elif event == "move" or (event == "restart" and each.settled):
            moved = each.copy(path) if event == "move" else each.path
            each.database.close()
            each.open(moved)
        elif event == "new" and len(machines) < 4:
            machines.append(MachineModel(path, etcd, set()))
        elif event == "keep":
            old.append((each, each.copy(path), set(each.visits)))
        elif event == "restore" and old and all(machine.settled for machine in machines):
            each, path, visits = rng.choice(old)
            each.exchange()
            each.exchange()  # the first one may have found that another machine writes the key
            lost |= each.visits - visits
            each.visits = set(visits)
            each.database.close()
            each.open(shutil.copyfile(path, each.path))  # in place
            each.exchange()
        elif event == "lose etcd" and not lost:
            etcd.keys = {} if cloned else rng.choice([{}, etcd.backup])
        elif event == "keep etcd":
            etcd.backup = etcd.keys
    for each in machines * 5:
        each.exchange()
    expected = Counter(countries[i] for i in lost.union(*(each.visits for each in machines)))
    for each in machines:
        shown = catscii.read_analytics(each.database, "everywhere")
        assert shown.countries == expected and shown.today == shown.visits, (seed, played)
        each.database.close()


def test_no_sequence_of_copies_moves_and_losses_makes_a_wrong_sum_of_machines():
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        for seed in range(rounds(1000)):
            play(seed, Path(folder))


def test_processes_that_share_a_database_are_one_machine(machine, cluster):
    etcd = cluster()
    services = [machine("a", etcd.endpoints) for _ in range(3)]
    other = machine("b", etcd.endpoints)
    for service in [*services * 5, services[0]]:
        visit_from(service, "FR")
    agree({"FR": 16}, *services, other)
    assert len(etcd.documents()) == 1  # the other one has none to write


def test_cgi_exchanges_visits_after_the_answer_and_only_when_that_is_due(machine, tmp_path, cluster):
    etcd = cluster()
    other = machine("other", etcd.endpoints)
    visit_from(other, "GB")
    agree({"GB": 1}, other)
    for _ in range(2):
        cgi(tmp_path, ETCD_ENDPOINTS=etcd.endpoints)
        time.sleep(catscii.EXCHANGE_SECONDS)
    agree({"ZZ": 2, "GB": 1}, other)
    answer = cgi(tmp_path, ETCD_ENDPOINTS=etcd.endpoints, PATH_INFO="/analytics", QUERY_STRING="format=text")
    assert answer.body == b"ZZ: 2\nGB: 1\n"
    logged = ""
    for _ in range(3):
        time.sleep(catscii.EXCHANGE_SECONDS)
        logged += json.dumps(cgi(tmp_path, ETCD_ENDPOINTS=f"http://127.0.0.1:{free_ports(1)[0]}").log)
    assert logged.count("cannot be exchanged") == 1


def test_the_document_of_a_busy_machine_is_small(tmp_path):
    machine, rng = MachineModel(tmp_path / "busy.db", EtcdModel(), set()), random.Random(0)
    for ago, rank in itertools.product(range(40), range(1, 151)):
        row = str(datetime.now(UTC).date() - timedelta(ago)), [*catscii.world().names][(ago + rank) % 251]
        machine.database.execute("INSERT INTO visits VALUES (?, ?, ?)", *row, rng.randrange(1 + 1_000_000 // rank**2))
    machine.exchange()
    ((document, _),) = machine.etcd.keys.values()
    assert 10_000 < len(document) < 40_000 and catscii.read_document(document, "1").visits["FR"] > 0


def test_sums_of_all_documents_in_an_answer_do_not_overflow():
    smallest = len(base64.b64encode(zlib.compress(b'{"version": 1, "visits": {"FR": 1}}')))
    assert catscii.MAX_ANSWER // smallest * len(catscii.world().names) * catscii.MOST_VISITS < 2**63


def test_days_in_the_future_do_not_count():
    today = datetime.now(UTC).date()
    visits = {f"{today + timedelta(days)}FR": 1 for days in (-40, -29, 0, 1, 2, 365_000)} | {"FR": 9}
    assert set(catscii.recent(visits)) == {"FR", *(f"{today + timedelta(days)}FR" for days in (-29, 0, 1))}
    assert not catscii.is_active({f"{today + timedelta(9)}FR": 1}), "a machine is not there because of its clock"


# ---------------------------------------------------------------------------------------------------------------------
# Web
# ---------------------------------------------------------------------------------------------------------------------


def kind(response: urllib3.BaseHTTPResponse) -> str:
    """Return the format of a response."""
    if response.headers["Content-Type"] == "text/plain; charset=utf-8":
        return "ansi" if b"\x1b[" in response.data else "text"
    format, begins = {"text/html; charset=utf-8": ("html", b"<!DOCTYPE html>"), "image/png": ("png", b"\x89PNG"),
                      "application/json": ("json", b"{")}[response.headers["Content-Type"]]
    assert response.data.startswith(begins)
    return format


@pytest.mark.parametrize(("headers", "expected"), [
    (CHROME, "html"),
    (CURL, "ansi"),
    ({}, "html"),
    ({"Accept": "*/*"}, "html"),
    ({"Accept": "image/png"}, "html"),
    ({"User-Agent": "HTTPie/3.2.4", "Accept": "application/json, */*;q=0.5"}, "json"),
    (CURL | {"Accept": "text/html"}, "html"),
    (CURL | {"Accept": "text/plain"}, "text"),
    (CURL | {"Accept": "text/html;q=0"}, "ansi"),
    (CURL | {"Accept": "text/html;q=0.2, */*"}, "ansi"),
    ({"Accept": "text/html;q=0.2, application/json;q=0.7"}, "json"),
    ({"Accept": "text/html;q=0.8, application/json;q=.5"}, "html"),
    ({"Accept": "application/json;q=.9, text/html;q=0.8"}, "json"),
    ({"Accept": "*/*, text/html;q=0.0, text/plain;q=0"}, "json"),
    ({"Accept": "text/html;q=0, */*"}, "text"),
    ({"Accept": ";;q=,,"}, "html"),
    ({"Accept": "text/html, application/json;q=1.9"}, "html"),
    ({"Accept": "text/html;q=0.9, application/json;q=1.00"}, "json"),
])
def test_the_format_is_what_accept_or_the_client_asks_for(service, headers, expected):
    assert kind(service.get("/cat/house-1", headers)) == expected


@pytest.mark.parametrize("format", ["html", "ansi", "text", "json", "png"])
@pytest.mark.parametrize("options", [
    {"width": 60, "height": 12, "style": "ink"}, {"width": 40, "contrast": 0}, {"style": "ink", "background": "light"},
], ids=str)
def test_each_format_shows_the_art_that_the_parameters_ask_for(service, format, options):
    query = "&".join(f"{name}={value}" for name, value in options.items())
    response = service.get(f"/cat/house-2?format={format}&{query}", CHROME)
    assert (response.status, kind(response)) == (200, format)
    options = {"width": 80, "style": "ink" if format == "text" else "fill", "background": "dark"} | options
    options = {"contrast": 0 if format == "ansi" else catscii.CONTRAST} | options
    art = catscii.render(catscii.draw_house_cat(2), **options, colors="none" if format == "text" else "true")
    if format == "png":
        assert response.data == catscii.to_png(art, options["background"])
        return
    body = response.data.decode()
    if format == "json":
        description = "a long-haired seal-point cat walking, with blue eyes and a bell"
        cat = {"id": "house-2", "source": "house", "credit": "", "description": description}
        assert json.loads(body) == cat | json.loads(json.dumps(catscii.to_dict(art)))
    elif format == "html":
        assert f">{catscii.to_html(art)}</pre>" in body
        assert f"background-color:rgb{catscii.BACKGROUNDS[options['background']]}" in body
    elif format == "ansi":
        assert body.startswith(catscii.to_ansi(art)) and body.count("\n") == len(art.rows) + 1
    else:
        assert body == catscii.to_text(art)


@pytest.mark.parametrize("client", [
    "curl/8.16.0", "Wget/1.21.4", "HTTPie/3.2.4", "xh/0.24.0", "fetch libfetch/2.0", "x PowerShell/7.4",
    "Mozilla/5.0 (Windows NT; Windows NT 10.0; en-US) WindowsPowerShell/5.1.22621"])
def test_terminals_get_cats_of_24_lines_and_80_columns(service, client):
    for path in ("/", "/cat/house-2", "/?style=ink", "/?colors=256", "/?format=ansi"):
        *rows, below = service.get(path, {"User-Agent": client}).data.decode().splitlines(keepends=True)
        assert all(row.endswith("\x1b[0m\n") for row in [*rows, below])
        size = (53, 20) if "HTTPie" in client else (59, 22)  # HTTPie adds two empty lines
        assert (len(cells_of_ansi(rows[0])[0]), len(rows)) == size
        assert len(re.sub("\x1b[^m]*m", "", below).rstrip("\n")) <= 80
    url = re.search(r"http[^?\x1b]+", below)[0].split()[0]
    assert service.get(urlsplit(url).path, {"User-Agent": client}).data.decode() == "".join([*rows, below])


def test_the_line_below_the_art_says_as_much_of_the_cat_its_command_and_the_guide_as_80_columns_take(start):
    service, local, long = start(), "localhost:8080", "house-2507004154"
    store_cat(service.database, "abc", "cats.example")
    for path, host, expected in (
        ("house-585", "a.b", 'a grey cat with green eyes: curl "http://a.b/cat/house-585?width=120"  /:help'),
        ("house-585", "ab.example", 'a grey cat with green eyes: curl "http://ab.example/cat/house-585?width=120"'),
        ("house-585", "calicos.fly.dev",
         "a grey cat with green eyes: curl http://calicos.fly.dev/cat/house-585  /:help"),
        ("house-1", "a.b", "a cream classic tabby stretching and smiling: curl http://a.b/cat/house-1"),
        (long, "a.b", f"a grey-and-white cat with green eyes: curl http://a.b/cat/{long}"),
        (long, local, f"a grey-and-white cat: curl http://{local}/cat/{long}  /:help"),
        (long, "c" * 25, f"a grey-and-white cat: curl http://{'c' * 25}/cat/{long}"),
        (long, "c" * 27, f'curl "http://{"c" * 27}/cat/{long}?width=120"  /:help'),
        (long, "c" * 60, f"curl http://{'c' * 60}/cat/{long}"),
        ("abc", "localhost", "a photograph from cats.example, mainly grey: curl http://localhost/cat/abc"),
        ("abc?style=ink&width=50&height=9", "a.b",
         'a photograph from cats.example: curl "http://a.b/cat/abc?width=50&style=ink"'),
    ):
        line = service.get(f"/cat/{path}", CURL | {"Host": host}).data.decode().splitlines()[-1]
        assert line == f"\x1b[2m{expected}\x1b[0m" and (len(expected) <= 80 or "c" * 60 in expected)


@pytest.mark.parametrize("query", ["", "?width=60", "?style=ink&colors=16"])
@pytest.mark.parametrize("shell", ["sh -euc", "bash -euc", "bash --norc -ic"])
def test_the_command_below_the_art_works_in_scripts_and_in_interactive_shells(service, shell, query):
    line = re.sub("\x1b[^m]*m", "", service.get(f"/cat/house-2{query}").data.decode().splitlines()[-1])
    command, path = re.search(f'curl "?{service.url}([^ "]+)"?', line).group(0, 1)
    command = command.replace("curl", "curl --silent")
    variables = {"PATH": os.environ["PATH"]}  # scripts have no COLUMNS
    shown = subprocess.check_output([*shell.split(), command], env=variables, stderr=subprocess.DEVNULL)
    assert shown == service.get(path).data and path.startswith("/cat/house-2") and query.partition("?")[2] in path


def test_a_suffix_is_short_for_a_format_also_in_errors(service):
    formats = {"txt": "text", "ansi": "ansi", "json": "json", "html": "html", "png": "png"}
    for suffix, format in formats.items():
        short = service.get(f"/cat/house-2.{suffix}?width=40", CHROME)
        assert (short.status, short.data) == (200, service.get(f"/cat/house-2?format={format}&width=40").data)
        if suffix != "png":
            missing, wrong = (service.get(f"/cat/{path}", CHROME)
                              for path in (f"nobody.{suffix}", f"house-1.{suffix}?width=0"))
            assert (missing.status, kind(missing)) == (404, format)
            assert (wrong.status, kind(wrong)) == (400, format.replace("ansi", "text"))


ANY_TEXT = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=200)
SCRIPTS = (  # whose widths are the same in all versions of Unicode
    " ~", "\xa1\u052f", "\u0e01\u0e3a", "\u3041\u30ff", "\u4e00\u9fa5", "\uac00\ud7a3", "\u200c\u200d", "\ufe00\ufe0f",
    "\U0001f3fb\U0001f3ff", "\U0001f600\U0001f64f")
KNOWN_WIDTHS = st.text(st.sampled_from([
    character for first, last in SCRIPTS for character in map(chr, range(ord(first), ord(last) + 1))
    if character in "\u200c\u200d" or character.isprintable()]), max_size=200)


def test_what_a_cat_says_fits_the_art_without_escapes_and_json_has_it_as_it_was_given(service):
    wcwidth = pytest.importorskip("wcwidth")

    @settings(max_examples=rounds(1000), deadline=None)
    @given(ANY_TEXT, KNOWN_WIDTHS, st.sampled_from([(80, 22), (55, 240), (100, 10), (20, 6), (20, 1)]))
    def check(any_text, text, size):
        width, height = size
        path = f"/cat/house-2.{{}}?width={width}&height={height}&says={{}}"
        assert service.json(path.format("json", quote(any_text))).get("says", "") == any_text
        for suffix, sgr, below in (("txt", "(?!)", 0), ("ansi", r"\x1b\[[0-9;]*m", 1)):
            body = service.get(path.format(suffix, quote(text))).data.decode()
            rows = re.sub(sgr, "", body).split("\n")[:-1 - below]
            assert "".join(rows).isprintable()
            assert len(rows) <= height and max(map(wcwidth.wcswidth, rows)) <= width

    check()


def test_control_characters_and_long_texts_are_refused_and_errors_do_not_repeat_the_text(service):
    for character in "\0\n\t\x1b\x7f\x9b\u202e\u2028\ufeff\ue000":
        said = quote(f"secret {character}")
        for path in (f"/cat/house-2?says={said}", f"/?says={said}", f"/cat/house-2/says/{said}"):
            for headers in (CHROME, CURL):
                response = service.get(path, headers)
                message = html.unescape(response.data.decode())
                assert response.status == 400 and "secret" not in message and "\x1b" not in message
                assert f"says: a cat cannot say {character!a}, which is not a printable character" in message
    assert service.get(f"/cat/house-2?says={quote('猫' * 200)}").status == 200
    long = service.get(f"/cat/house-2?says={'a' * 1234}")
    assert (long.status, long.data) == (
        400, b"400 Bad Request: says: 1,234 characters are more than the 200 that a cat can say\n")


EVIL = "</p><script>alert(1)</script> \"x' & javascript:evil() http://evil.example"


def test_a_page_says_what_the_cat_says_only_in_its_bubble_its_alternative_text_and_its_links(service):
    path = f"/cat/house-2?style=ink&says={quote(EVIL)}"
    response = service.get(path, CHROME)
    page = response.data.decode()
    escaped = "&lt;/p&gt;&lt;script&gt;alert(1)&lt;/script&gt; &quot;x&#039; &amp; javascript:evil() http://evil.example"
    assert f'<p class="says" dir="auto" aria-hidden="true">{escaped}</p>' in page
    assert re.search(rf'aria-label="A [^"]*\. It says: {re.escape(escaped)}"', page)
    head, body = page.split("<script>")[0], page.split("</script>", 1)[1]
    assert "evil" not in head and f'property="og:url" content="{service.url}/cat/house-2?style=ink"' in head
    assert page.count("<script") == 1 and len(re.findall("evil.example", body)) == 7
    targets = {"another": "/", "permalink": "/cat/house-2", "save": "/cat/house-2.png", "restyle": "/cat/house-2"}
    for name, target in targets.items():
        link = urlsplit(html.unescape(re.search(f'id="{name}" href="(.*?)"', page)[1]))
        assert link.path == target and parse_qs(link.query)["says"] == [EVIL]
    assert service.get(path, CURL).data.decode().splitlines()[-1].count("evil") == 0
    for suffix in ("html", "png", "txt", "json"):
        assert service.get(f"/cat/house-2.{suffix}?says=x").headers["X-Robots-Tag"] == "noindex"
    assert "X-Robots-Tag" not in service.get("/cat/house-2").headers


def test_the_path_of_a_text_is_short_for_the_parameter(service):
    for text in ("Hello", "What? / é 猫.png", "100% & more=1#2"):
        for suffix, query in (("", "?width=40"), (".txt", ""), (".json", "?width=30&style=ink")):
            for headers in (CHROME, CURL):
                short = service.get(f"/cat/house-2{suffix}/says/{quote(text)}{query}", headers)
                long = service.get(f"/cat/house-2{suffix}{query}{'&' if query else '?'}says={quote(text)}", headers)
                assert (short.status, short.data) == (200, long.data)
    twice = service.get("/cat/house-2/says/a?says=b")
    assert (twice.status, twice.data) == (400, b"400 Bad Request: says: is given 2 times\n")
    assert service.get("/cat/house-2/says/").status == service.get("/cat/nobody/says/x").status == 404
    assert kind(service.get("/cat/nobody.json/says/x.html")) == "json"
    assert b'{route="/cat/<cat_id>/says/<text:any>",status="200"}' in service.get("/metrics").data


def test_a_text_is_said_without_drawing_the_cat_again(service):
    plain = [f"/cat/house-4042{suffix}?width=80&height=22" for suffix in ("", ".ansi", ".png", ".txt")]
    for path in plain:
        service.get(path, CHROME)
    made = drawings(service)["made"]
    for number in range(10):
        assert {service.get(f"{path}&says=it+is+{number}", CHROME).status for path in plain} == {200}
    assert drawings(service)["made"] == made


def test_pages_with_texts_are_not_kept(held_up):
    service, go_on = held_up
    go_on.touch()
    for path in ("/cat/house-2.txt", "/cat/house-2.txt?says=hello"):
        assert service.get(path).status == 200
    go_on.unlink()
    assert service.get("/cat/house-2.txt").status == 200
    with ThreadPoolExecutor(1) as pool:
        page = pool.submit(service.get, "/cat/house-2.txt?says=hello")
        eventually(lambda: drawings(service)["waiting"] == 1)
        go_on.touch()
        assert b"hello" in page.result().data


@pytest.mark.parametrize(("query", "size", "likeness"), [
    ("", (800, 600), 0.98), ("width=240", (2400, 1800), 0.98),
    ("width=20&style=ink&background=light", (200, 160), 0.45),
])
def test_a_png_shows_the_art(service, query, size, likeness):
    response = service.get(f"/cat/house-2.png?{query}")
    picture = Image.open(io.BytesIO(response.data))
    assert (response.headers["Content-Type"], picture.format, picture.size) == ("image/png", "PNG", size)
    assert "light" not in query or picture.getpixel((0, picture.height - 1)) == (255, 255, 255)
    shown, drawn = (image.convert("L").resize((40, 30)).tobytes() for image in (picture, catscii.draw_house_cat(2)))
    assert statistics.correlation([*shown], [*drawn]) > likeness


def test_the_jpg_of_a_photograph_is_the_stored_one(start):
    service = start()
    store_cat(service.database, "abc", "cats.example")
    with contextlib.closing(sqlite3.connect(service.database)) as database:
        ((stored,),) = database.execute("SELECT picture FROM cats")
    assert service.get("/cat/abc.jpg").data == stored


def test_a_jpg_is_the_picture_behind_the_art_and_no_visit(service):
    before = counted(service)
    response = service.get("/cat/house-2.jpg", CHROME | {"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in response.headers, "a picture is compressed already"
    picture = Image.open(io.BytesIO(response.data))
    assert (response.headers["Content-Type"], picture.format, picture.size) == ("image/jpeg", "JPEG", (480, 360))
    assert counted(service) == before


@pytest.mark.parametrize(("colors", "code"), [("256", r"[34]8;5;\d{2,3}"), ("16", r"3[0-7]|4[0-7]|9[0-7]|10[0-7]")])
def test_older_terminals_get_fewer_colours(service, colors, code):
    *rows, _ = service.get(f"/cat/house-2.ansi?colors={colors}").data.decode().splitlines()
    codes = set(re.findall(r"\x1b\[([0-9;]+)m", "".join(rows))) - {"0"}
    assert len(codes) > 5 and all(re.fullmatch(f"({code})(;({code}))?", each) for each in codes)
    art = catscii.render(catscii.draw_house_cat(2), contrast=0, colors=colors)
    assert "\n".join(rows) + "\n" == catscii.to_ansi(art, colors)


def test_ink_in_16_colours_has_the_glyphs_of_plain_text_and_is_black_on_light_only(service):
    dark, light, text = (service.get(f"/cat/house-7.{query}").data.decode().splitlines()[:30] for query in (
        "ansi?style=ink&colors=16", "ansi?style=ink&colors=16&background=light", "txt"))
    assert [re.sub(r"\x1b\[\d+m", "", row) for row in dark] == text
    assert ["\x1b[30m" in "".join(rows) for rows in (dark, light)] == [False, True]


@pytest.mark.parametrize("colors", ["true", "256", "16"])
def test_ink_on_light_can_be_read_in_all_colours(colors):
    for seed in range(10):
        art = catscii.render(catscii.draw_house_cat(seed), style="ink", background="light", colors=colors)
        colours = set(catscii.chunks(art.foreground, 3))
        assert all(1.05 / (relative_luminance(colour) + 0.05) >= 3 for colour in colours), "the contrast of WCAG 2.2"


def assert_fits_24_lines(text: str) -> None:
    lines = re.sub("\x1b[^m]*m", "", text).splitlines()
    assert len(lines) < 24 and max(map(len, lines)) <= 80, "with a line for the prompt"


@pytest.mark.parametrize("path", ["/help", "/:help"])
def test_help_is_one_screen_of_commands_that_work(service, path):
    response = service.get(path)
    body = response.data.decode()
    assert (response.status, kind(response)) == (200, "ansi")
    assert_fits_24_lines(body)
    urls = [urlsplit(url).path for url in re.findall(r"http://[^\s\x1b]+", body)]
    paths = re.findall(r"(?m)^\x1b\[1m(/[^\s\x1b]+)", body)
    examples = {*re.findall(r"\?[a-z]+=[a-z0-9=&]+", body), *re.findall(r" (\.[a-z]+)\b", body)} - {"?format=csv"}
    assert urls and paths and examples
    for path in {*urls, *paths, *(f"/cat/house-42{example}" for example in examples)}:
        with contextlib.closing(service.get(path, preload_content=False)) as answer:  # that of /live goes on
            assert answer.status == 200


@pytest.mark.parametrize("path", ["/help", "/:help"])
def test_help_in_a_browser_has_the_lines_of_the_text_in_groups_and_an_example_to_click_for_each_option(service, path):
    page, pairs = service.get(path, CHROME).data.decode(), service.json(path)
    for group in ("Look at a cat", "Options", "Formats", "Visitors"):
        assert f"<h2>{group}</h2>" in page
    shown = re.findall("(?s)<dt>(.*?)</dt>\n<dd>(.*?)</dd>", page)
    assert [[html.unescape(re.sub("<[^>]*>", "", part)) for part in pair] for pair in shown] == pairs
    links = [html.unescape(link) for link in re.findall('href="(/[^"]*)"', page.split("<main")[1])]
    for name, parameter in catscii.PARAMETERS.items():
        assert ("/" if name == "like" else "/cat/house-42") + parameter.example in links
    assert {f"/cat/house-42.{suffix}" for suffix in catscii.SUFFIXES} | {"/analytics?format=csv"} <= {*links}
    assert {service.get(link, CHROME).status for link in links} == {200}
    assert '<code>"?width=$COLUMNS&amp;height=$((LINES-2))"</code>' in page


def test_the_guide_has_every_parameter_and_format_as_the_usage_and_the_errors_have(service):
    guide, suffixes = (service.get(path).data.decode() for path in ("/help?format=text", "/cat/house-1.gif"))
    usage = run("--help").stdout.decode()
    for name in catscii.View._fields:
        assert f"{name}=" in guide and f"[--{name} " in usage
    cats, analytics = ["/", "/cat/house-1"], ["/analytics"]
    named = {"all": [*cats, *analytics, "/help"], "cats": cats, "analytics": analytics, "none": []}
    for name, (_, suffix, pages) in catscii.FORMATS.items():
        assert re.search(rf"\b{name}\b", guide)
        assert not suffix or (f".{suffix}" in guide and re.search(rf"\b{suffix}\b", suffixes))
        for path in named["all"]:
            message = service.get(f"{path}?format=gif").data.decode()
            assert bool(re.search(rf"\b{name}\b", message)) == (path in named[pages]), (name, path)


def test_links_have_the_host_and_scheme_that_the_client_sees_unless_they_cannot_be_shown(service):
    headers = CHROME | {"Host": "cats.example", "X-Forwarded-Proto": "https"}
    body = service.get("/cat/house-9", headers).data.decode()
    assert '<meta property="og:image" content="https://cats.example/cat/house-9.png">' in body
    assert b"https://cats.example/cat/house-9" in service.get("/cat/house-9", headers | CURL).data
    for host, format in itertools.product(("evil.example/<b>", "a b", "x[31m", '"', ""), ("ansi", "html")):
        answer = exchange(service, f"GET /cat/house-9?format={format} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        assert b"evil" not in answer and b"[31m" not in answer and b"/cat/house-9" in answer


def test_links_and_the_form_keep_what_is_not_a_default(service):
    query = "width=50&height=9&style=ink"
    body = html.unescape(service.get(f"/cat/house-5?{query}&colors=16", CHROME).data.decode())
    for link in (f'property="og:url" content="{service.url}/cat/house-5', 'id="save" href="/cat/house-5.png',
                 f'property="og:image" content="{service.url}/cat/house-5.png', 'id="another" href="/',
                 'id="permalink" href="/cat/house-5'):
        assert f'{link}?{query}"' in body
    assert 'id="restyle" href="/cat/house-5?width=50&height=9"' in body
    assert re.findall('type="hidden" name="(.+?)" value="(.+?)"', body) == [("height", "9"), ("style", "ink")]
    for query, kept in (("style=fill", ""), ("width=80", "?width=80")):  # a width that was chosen is not the window's
        body = service.get(f"/cat/house-5?{query}", CHROME).data.decode()
        assert f'id="permalink" href="/cat/house-5{kept}"' in body and 'type="hidden"' not in body


def test_a_search_for_a_cat_waits_in_the_queue_of_drawings_and_ends(start, monkeypatch):
    full = start(command=patched("catscii.PLACES = 0"))
    assert full.get("/?like=calico").status == 503 and full.get("/help").status == 200
    seeds: list[int] = []
    monkeypatch.setattr(catscii, "HouseCat", lambda seed: seeds.append(seed) or SimpleNamespace(description="a cat"))
    with pytest.raises(catscii.NoSuchCat):
        catscii.house_cat_like("calico")
    assert len(seeds) == catscii.TRIES and f"{catscii.TRIES:,}" in (FOLDER / "SECURITY.md").read_text()


def test_like_shows_another_house_cat_each_time_that_its_links_keep_and_no_photograph(start):
    service = start()
    store_cat(service.database, "calico", "cats.example")
    for headers in (CHROME, CURL, {"Accept": "application/json"}):
        responses = [service.get("/?like=Calico,+green", headers) for _ in range(3)]
        assert {response.headers["Cache-Control"] for response in responses} == {"no-store"}
        assert len({response.data for response in responses}) > 1
        for response in responses:
            assert headers is CURL or (b"calico" in response.data and b"green" in response.data)
    page = service.get("/?like=Calico,+green", CHROME).data
    assert b'id="another" href="/?like=calico+green"' in page and b'name="like" value="calico green"' in page
    assert {service.json("/?like=calico")["source"] for _ in range(5)} == {"house"}
    assert service.visits() == b"ZZ: 15\n"


def test_no_cat_like_that_is_a_404_with_the_words_there_are(service):
    for wanted in ("dog", "black calico", "a" * 100):
        for headers in (CHROME, CURL, {"Accept": "application/json"}):
            response = service.get(f"/?like={quote(wanted)}", headers)
            assert response.status == 404 and b"the words are amber, " in response.data
            assert f"no house cat like {wanted!r} was found" in html.unescape(response.data.decode())
    assert service.get(f"/?like={'a' * 101}").status == 400
    assert service.get("/?like=").status == service.get("/?like=%2C").status == 200


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    programs = "chromium-headless-shell", "chromium", "google-chrome"  # the first one takes half the time
    program = next(filter(None, map(shutil.which, programs)), None) or pytest.skip("Chromium is not installed")
    with sync_playwright() as player, player.chromium.launch(executable_path=program, args=["--no-sandbox"]) as browser:
        yield browser


@pytest.fixture
def new_tab(service: Running, chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Yield a function that opens a tab of a size, whose `shifts` say how far its layout has shifted."""
    with contextlib.ExitStack() as stack:

        def new_tab(width: int = 1280, height: int = 720, **options: Any) -> Page:
            options = {"base_url": service.url, "viewport": {"width": width, "height": height}} | options
            tab = stack.enter_context(chromium.new_context(**options)).new_page()
            tab.add_init_script("""window.shifts = 0; new PerformanceObserver(list => {
                for (const entry of list.getEntries()) window.shifts += entry.value
            }).observe({type: "layout-shift", buffered: true})""")
            return tab

        yield new_tab


@pytest.fixture
def tab(service: Running, new_tab: Callable[..., Page]) -> Iterator[Page]:
    """Yield a tab in which each message on the console and each request to elsewhere is an error."""
    tab, complaints = new_tab(permissions=["clipboard-read", "clipboard-write"]), []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: request.url.startswith(service.url) or complaints.append(request.url))
    yield tab
    assert complaints == []


def show(tab: Page, path: str) -> None:
    """Open a page and wait until its art fits the window."""
    tab.goto(path)
    tab.wait_for_selector("body:not([aria-busy=true])")


def columns(tab: Page) -> int:
    return len(tab.locator("pre").text_content().split("\n")[0])


LINK = "document.querySelector('#permalink').href"
PHOTOGRAPH_IS = "opacity => getComputedStyle(document.querySelector('figure'), '::after').opacity === opacity"


@contextlib.contextmanager
def another_cat(tab: Page) -> Iterator[None]:
    """Wait at the end until another cat is shown."""
    before = tab.evaluate(LINK)
    yield
    tab.wait_for_function(f"link => {LINK} !== link", arg=before)


def slow_down(tab: Page) -> None:
    line = {"offline": False, "latency": 20, "downloadThroughput": 60_000, "uploadThroughput": 60_000}
    tab.context.new_cdp_session(tab).send("Network.emulateNetworkConditions", line)


WINDOWS = [(320, 640), (390, 844), (768, 1024), (1280, 720), (2560, 1440), (3840, 2160)]
PAGES = ["/cat/house-1", "/cat/house-1?style=ink&width=200", "/analytics", "/help", "/none",
         f"/cat/house-1?says={quote(WISH)}"]
PAGES_IN_WINDOWS = [  # without --thorough two windows for each page, and two pages for each window
    (page, window) for (i, page), (j, window) in itertools.product(enumerate(PAGES), enumerate(WINDOWS))
    if THOROUGH or (i + j) % 3 == 0]


@pytest.mark.browser
@pytest.mark.parametrize(("path", "size"), PAGES_IN_WINDOWS)
def test_pages_fit_every_window_and_do_not_shift_on_a_slow_line(new_tab, path, size):
    tab = new_tab(*size)
    slow_down(tab)
    show(tab, path)
    width, height = tab.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert width == size[0] and tab.evaluate("shifts") <= 0.02
    if "/cat/" in path:
        assert height == size[1]
        stage, art = tab.locator("main").bounding_box(), tab.locator("pre").bounding_box()
        filled = max(art["width"] / stage["width"], art["height"] / stage["height"])
        row = art["width"] / columns(tab) * 2
        assert filled > row / (row + 1) - 0.01 or row > 21.4, "a whole number of pixels a row, or the largest cells"
        assert abs(art["width"] / art["height"] - 4 / 3) < 0.05


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 768, 1280])
def test_no_command_of_the_guide_is_broken_into_lines(new_tab, width):
    tab = new_tab(width)
    tab.goto("/help")
    lines = tab.locator("main code").evaluate_all("codes => codes.map(code => code.getClientRects().length)")
    assert len(lines) > 15 and {*lines} == {1}


@pytest.mark.browser
@pytest.mark.parametrize("size", [(844, 390), (390, 844), (1280, 720)])
def test_an_error_has_a_cat_below_or_beside_its_message_and_a_link_to_another_one(start, upstream, new_tab, size):
    upstream.answers["/v1/images/nobody"] = sends(b"", 500)
    service, tab = start(CAT_SOURCES=upstream.the_cat_api), new_tab(*size)
    slow_down(tab)
    for path, status in (("/?width=1", 400), ("/" + "x" * 300, 404), ("/panic", 500), ("/cat/nobody", 503)):
        assert tab.goto(service.url + path).status == status
        assert tab.evaluate("document.documentElement.scrollWidth") == size[0]
        message, art = (tab.locator(part).bounding_box() for part in ("main p", "main figure pre"))
        assert message["y"] + message["height"] < size[1] and art["y"] + art["height"] < size[1], "above the fold"
        below, beside = art["y"] >= message["y"] + message["height"], art["x"] >= message["x"] + message["width"]
        assert (below or beside) and art["width"] > 300
        assert tab.evaluate("shifts") == 0
        tab.click("text=another cat")
        tab.wait_for_selector("#another")
        assert urlsplit(tab.url).path == "/"


@pytest.mark.parametrize("broken", ["catscii.draw_house_cat", "catscii.page_template().defaults['to_html']"])
def test_an_error_whose_cat_cannot_be_drawn_is_sent_without_it(start, broken):
    service = start(command=patched(f"{broken} = lambda *_: 1 / 0"))
    for path, status, words in (("/panic", 500, "something went wrong"), ("/nothing", 404, "there is nothing at")):
        response = service.get(path, CHROME)
        body = response.data.decode()
        assert (response.status, kind(response)) == (status, "html") and words in body and "<figure" not in body
    service.wait_for("The cat of an error page cannot be drawn")


@pytest.mark.browser
def test_another_cat_is_swapped_in_by_click_and_key_and_history_leads_back(tab):
    tab.goto("/?width=60")
    tab.evaluate("window.mark = 'not reloaded'")
    seen = [tab.evaluate(LINK)]
    for act in 4 * (lambda: tab.click("#another"), lambda: tab.keyboard.press("n"),
                    lambda: (tab.evaluate("document.activeElement.blur()"), tab.keyboard.press(" "))):
        with another_cat(tab):
            act()
        seen.append(tab.evaluate(LINK))
        assert tab.url == seen[-1] and re.search(r"/cat/house-\d+\?width=60$", tab.url)
    assert len({*seen[-11:]}) == 11, "none of the last ten cats is shown again"
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    with another_cat(tab):
        for _ in range(5):
            tab.keyboard.down("n")
        tab.keyboard.up("n")
    assert len(asked) == 1, "a key that is held brings one cat"
    for url in reversed(seen):
        tab.go_back()
        tab.wait_for_function(f"url => {LINK} === url", arg=url)
    tab.go_forward()
    tab.wait_for_function(f"url => {LINK} === url", arg=seen[1])
    assert tab.evaluate("window.mark") == "not reloaded"


@pytest.mark.browser
def test_a_bubble_points_at_the_cat_and_stays_while_cats_change(tab):
    for width, height in ((390, 844), (1280, 720), (844, 390)):
        tab.set_viewport_size({"width": width, "height": height})
        show(tab, f"/?says={quote(WISH)}")
        for _ in range(2):
            with another_cat(tab):
                tab.click("#another")
            assert tab.inner_text(".says") == WISH and f"says={WISH[:5]}" in tab.url
            assert tab.get_attribute("figure", "aria-label").endswith(f". It says: {WISH}")
            bubble, art = tab.locator(".says").bounding_box(), tab.locator("#art").bounding_box()
            if width == 844:
                gap = art["x"] - bubble["x"] - bubble["width"]
            else:
                gap = art["y"] - bubble["y"] - bubble["height"]
            assert 8 < gap < 64 and bubble["x"] >= 8 and bubble["x"] + bubble["width"] <= width - 8
    tab.click("#copy")
    tab.wait_for_selector(".toast")
    assert "| Happy birthday," in tab.evaluate("navigator.clipboard.readText()")


@pytest.mark.browser
@pytest.mark.parametrize(("width", "height", "least", "most"), [
    (360, 740, 100, 103), (390, 844, 108, 112), (768, 1024, 150, 192), (1280, 800, 150, 220), (1920, 1080, 150, 200),
    (3840, 2160, 230, 240)])
def test_a_cat_fits_the_window_with_one_more_request_and_no_shift(service, new_tab, width, height, least, most):
    tab, asked, shown = new_tab(width, height), [], []
    tab.on("request", lambda request: asked.append(request.url.removeprefix(service.url)))
    visible = "getComputedStyle(document.querySelector('pre')).visibility"
    tab.route("**/cat/*", lambda route: (shown.append(tab.evaluate(visible)), route.continue_()))
    show(tab, "/?style=ink")
    assert re.fullmatch(r"/cat/house-\d+\?style=ink&width=\d+&height=\d+", asked[1]) and len(asked) == 2
    assert (shown, tab.evaluate(visible)) == (["visible"], "visible"), "the art that came with the page shows at once"
    assert least <= columns(tab) <= most
    assert 3.5 <= tab.locator("pre").bounding_box()["width"] / columns(tab) <= 11
    assert tab.locator("output").text_content() == tab.locator("#width").input_value() == str(columns(tab))
    assert tab.evaluate("shifts") <= 0.02
    links = [tab.evaluate(f"document.querySelector('{link}').href") for link in ("#another", "#permalink", "#restyle")]
    assert links[0] == f"{service.url}/?style=ink" and links[2] == links[1].removesuffix("?style=ink")
    with another_cat(tab):
        tab.click("#another")
    assert len(asked) == 3 and re.search(r"&width=\d+&height=\d+", asked[2]), "the next one fits at once"
    assert re.fullmatch(r"/cat/house-\d+\?style=ink", tab.url.removeprefix(service.url))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Yield a service with two photographs, of which one has the longest names."""
    with Running(tmp_path_factory.mktemp("photographs")) as service:
        store_cat(service.database, "abc", "a.example")
        store_cat(service.database, "b" * 40, "photographs-of-cats-" * 5 + ".example")
        sql(service.database, "UPDATE cats SET tags = 'cute, sleepy'")
        yield service


@pytest.mark.browser
@pytest.mark.parametrize("size", [
    (320, 640), (360, 740), (390, 844), (768, 1024), (740, 360), (1280, 800), (2560, 1440), (3840, 2160)])
def test_the_controls_never_move(photographs, new_tab, size):
    tab, places = new_tab(*size, has_touch=True, is_mobile=True), []
    for name in ("house-1", "abc", "house-61", "b" * 40):
        show(tab, f"{photographs.url}/cat/{name}")
        boxes = [tab.locator(f"#{name}").bounding_box() for name in ("another", "share", "width", "permalink")]
        places.append([{side: round(pixels, 1) for side, pixels in box.items()} for box in boxes])
        first = tab.evaluate("document.querySelector('footer').querySelector('a, button, input').id")
        assert first == "another" and places[-1][0]["height"] >= 44
        assert tab.evaluate("document.documentElement.scrollWidth") == size[0] and boxes[3]["y"] + 20 < size[1]
        whole = tab.locator(".about span").first.evaluate(
            "span => span.scrollWidth <= span.clientWidth && span.scrollHeight <= span.clientHeight")
        assert whole or len(name) == 40 or size == (740, 360), "there is room for the words about usual cats"
    assert places == places[:1] * 4


@pytest.mark.browser
def test_space_and_n_are_for_another_cat_after_a_click_and_space_presses_a_button_by_keyboard(tab):
    tab.goto("/cat/house-5?width=40")
    for target, key in (("#another", " "), ("#restyle", " "), ("#copy", " "), ("#copy", "n"), ("#width", " ")):
        tab.click(target)
        tab.wait_for_load_state("networkidle")
        with another_cat(tab):
            tab.keyboard.press(key)
        tab.wait_for_load_state("networkidle")
    before = tab.evaluate(LINK)
    tab.keyboard.press("Tab")
    tab.focus("#copy")
    tab.evaluate("navigator.clipboard.writeText('')")
    tab.keyboard.press(" ")
    tab.wait_for_function("async () => (await navigator.clipboard.readText()).length > 100")
    assert tab.evaluate(LINK) == before


@pytest.mark.browser
@pytest.mark.parametrize(("left", "down", "swipes"), [(150, 10, True), (30, 0, False), (100, 90, False)])
def test_a_swipe_to_the_left_shows_another_cat(new_tab, left, down, swipes):
    tab = new_tab(360, 740, has_touch=True, is_mobile=True)
    show(tab, "/cat/house-5")
    box, touch = tab.locator("figure").bounding_box(), tab.context.new_cdp_session(tab)
    begun = {"x": box["x"] + 250, "y": box["y"] + 100}
    ended = {"x": begun["x"] - left, "y": begun["y"] + down}
    with another_cat(tab) if swipes else contextlib.nullcontext():
        for kind, points in (("touchStart", [begun]), ("touchMove", [ended]), ("touchEnd", [])):
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    tab.wait_for_load_state("networkidle")
    assert tab.url.endswith("/cat/house-5") is not swipes


@pytest.mark.browser
def test_a_long_touch_shows_the_photograph_and_no_menu(new_tab):
    tab = new_tab(360, 740, has_touch=True, is_mobile=True)
    tab.goto("/cat/house-5?width=40")
    assert tab.is_visible("text=hold to see the drawing")
    box, touch = tab.locator("figure").bounding_box(), tab.context.new_cdp_session(tab)
    point = {"x": box["x"] + 100, "y": box["y"] + 100}
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
    tab.wait_for_timeout(1500)  # what makes a touch a long one
    assert tab.evaluate(PHOTOGRAPH_IS, "1") and tab.evaluate("getSelection().toString()") == ""
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    tab.wait_for_function(PHOTOGRAPH_IS, arg="0")
    opens_a_menu = """pointerType => document.querySelector("figure").dispatchEvent(
        new PointerEvent("contextmenu", {pointerType, bubbles: true, cancelable: true}))"""
    assert [tab.evaluate(opens_a_menu, pointer) for pointer in ("touch", "mouse")] == [False, True]


@pytest.mark.browser
def test_the_photograph_shows_under_the_pointer_which_selects_nothing_and_to_the_keyboard(tab):
    photographs, art = [], tab.locator("#art")
    tab.on("request", lambda request: request.url.endswith(".jpg") and photographs.append(request.url))
    tab.goto("/cat/house-5")
    assert tab.evaluate(PHOTOGRAPH_IS, "0") and photographs == []
    plain = tab.screenshot()
    art.drag_to(art, source_position={"x": 50, "y": 50}, target_position={"x": 300, "y": 200})
    assert tab.evaluate("getSelection().toString()") == ""
    tab.wait_for_function(PHOTOGRAPH_IS, arg="1")
    eventually(lambda: photographs and tab.screenshot() != plain)
    tab.mouse.move(0, 0)
    tab.wait_for_function(PHOTOGRAPH_IS, arg="0")
    with another_cat(tab):
        tab.keyboard.press("n")
    assert tab.evaluate(PHOTOGRAPH_IS, "0"), "the pointer has not moved the focus"
    tab.keyboard.press("Tab")
    tab.wait_for_function(PHOTOGRAPH_IS, arg="1")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_what_is_shown_can_be_shared_copied_and_saved(tab, service, scheme):
    tab.emulate_media(color_scheme=scheme)
    url = f"{service.url}/cat/house-5?width=50&height=9&style=ink"
    tab.goto(url)
    tab.evaluate("navigator.share = undefined")
    text = service.get(f"/cat/house-5.txt?width=50&height=9&style=ink&background={scheme}").data.decode()
    for button, toast, copied in (("#share", "link copied", url), ("#copy", "text copied", text)):
        tab.click(button)
        tab.wait_for_selector(f".toast >> text={toast}")
        assert tab.evaluate("navigator.clipboard.readText()") == copied
    tab.evaluate("() => { navigator.share = what => { window.shared = what; return Promise.reject('cancelled') } }")
    tab.click("#share")
    assert tab.evaluate("shared") == {"title": tab.title(), "url": url}
    with tab.expect_download() as download:
        tab.click("#save")
    assert download.value.suggested_filename == "house-5.png"
    picture = service.get("/cat/house-5.png?width=50&height=9&style=ink").data
    assert download.value.path().read_bytes() == picture


@pytest.mark.browser
def test_style_and_width_are_redrawn_in_place_at_once_and_kept_in_the_address(tab):
    show(tab, "/cat/house-5")
    tab.evaluate("window.mark = 'not reloaded'")
    tab.click("text=in ink")
    tab.wait_for_url("**/cat/house-5?style=ink")
    assert tab.evaluate("document.querySelector('#art').style.getPropertyValue('--ground')") == "none"
    assert tab.evaluate("mark") == "not reloaded"
    tab.evaluate("window.slider = document.querySelector('#width')")
    tab.route("**/*width=100*", lambda route: None)  # an answer that does not come
    drag = "width => { slider.value = width; slider.dispatchEvent(new Event('input', {bubbles: true})) }"
    with tab.expect_event("requestfailed", lambda request: "width=100" in request.url):  # cancelled by the next one
        with tab.expect_request("**/*width=100*"):
            tab.evaluate(drag, "100")
        assert tab.evaluate("[document.body.ariaBusy, document.querySelector('output').textContent]") == ["true", "100"]
        tab.evaluate(drag, "80")
    tab.wait_for_url("**/cat/house-5?width=80&style=ink")
    tab.focus("#width")
    tab.keyboard.press("ArrowRight")
    tab.wait_for_url("**/cat/house-5?width=81&style=ink")
    assert tab.evaluate("document.activeElement === slider"), "it is not replaced under the finger"
    assert columns(tab) == 81 and tab.evaluate("document.body.ariaBusy") == "false"
    assert tab.locator("#another").get_attribute("href") == "/?width=81&style=ink"


@pytest.mark.browser
def test_everything_is_reached_by_keyboard_with_a_visible_focus(tab):
    show(tab, "/cat/house-5")
    names = "art another share save copy restyle width catscii permalink visitors help"
    for name in names.split():
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.id || document.activeElement.textContent") == name
        assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


# Returns what JavaScript returns, and a screenshot, after it opened a URL.
Look = Callable[[str, str], tuple[Any, bytes]]


@contextlib.contextmanager
def chromium_engine(request: pytest.FixtureRequest, zoom: int) -> Iterator[Look]:
    browser = request.getfixturevalue("chromium")  # Playwright runs once in a thread
    with browser.new_page(viewport={"width": 1280, "height": 800}, device_scale_factor=zoom) as tab:

        def look(url: str, script: str) -> tuple[Any, bytes]:
            tab.goto(url)
            return tab.evaluate(script), tab.screenshot()

        yield look


@contextlib.contextmanager
def firefox_engine(request: pytest.FixtureRequest, zoom: int) -> Iterator[Look]:
    """Firefox is driven over WebDriver BiDi (w3c.github.io/webdriver-bidi), for which it needs no driver."""
    import websocket

    program = shutil.which("firefox-esr") or shutil.which("firefox") or pytest.skip("Firefox is not installed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, subprocess.Popen(
            [program, "--headless", "--profile", profile, "--remote-debugging-port", "0"], text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            address = next(line.split()[-1] for line in process.stderr if "BiDi listening" in line)
            connection = websocket.create_connection(address + "/session", timeout=60, suppress_origin=True)
            ids = itertools.count()

            def call(method: str, **params: object) -> Any:
                connection.send(json.dumps({"id": next(ids), "method": method, "params": params}))
                while "id" not in (answer := json.loads(connection.recv())):
                    pass  # an event
                return answer["result"]

            call("session.new", capabilities={})
            tab = call("browsingContext.getTree")["contexts"][0]["context"]
            viewport = {"width": 1280, "height": 800}
            call("browsingContext.setViewport", context=tab, viewport=viewport, devicePixelRatio=zoom)

            def look(url: str, script: str) -> tuple[Any, bytes]:
                call("browsingContext.navigate", context=tab, url=url, wait="complete")
                returned = call("script.evaluate", expression=script, target={"context": tab}, awaitPromise=True)
                picture = call("browsingContext.captureScreenshot", context=tab)["data"]
                return returned["result"]["value"], base64.b64decode(picture)

            yield look
        finally:
            process.terminate()


@contextlib.contextmanager
def webkit_engine(request: pytest.FixtureRequest, zoom: int) -> Iterator[Look]:
    from selenium import webdriver
    from selenium.webdriver.webkitgtk.service import Service

    driver, screen = shutil.which("WebKitWebDriver"), shutil.which("Xvfb")
    if not driver or not screen:
        pytest.skip("WebKitGTK's driver or Xvfb is not installed")
    (browser, *_) = Path("/usr/lib").glob("*/webkit2gtk-4.*/MiniBrowser")
    options = webdriver.WebKitGTKOptions()
    options.binary_location = str(browser)
    options.add_argument("--automation")
    read, write = os.pipe()
    with subprocess.Popen([screen, "-displayfd", str(write), "-screen", "0", "2800x2000x24"], pass_fds=[write],
                          stderr=subprocess.DEVNULL) as display:
        number = os.read(read, 10).decode().strip()
        environ = os.environ | {"DISPLAY": f":{number}", "GDK_SCALE": str(zoom), "GDK_BACKEND": "x11"}
        tab = webdriver.WebKitGTK(options=options, service=Service(driver, env=environ))
        try:
            tab.set_window_size(1280, 800)

            def look(url: str, script: str) -> tuple[Any, bytes]:
                tab.get(url)
                eventually(lambda: tab.execute_script("return innerWidth") == 1280)  # the window gets its size late
                tab.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 500))")
                return tab.execute_script("return " + script), tab.get_screenshot_as_png()

            yield look
        finally:
            tab.quit()
            display.terminate()
            os.close(read)
            os.close(write)


ART = """(() => {
    const {left, top, right, bottom} = document.querySelector(".art").getBoundingClientRect()
    getSelection().selectAllChildren(document.querySelector("pre"))
    const text = getSelection().toString()
    getSelection().removeAllRanges()
    return JSON.stringify([text, devicePixelRatio, left, top, right, bottom])
})()"""


ENGINES = [chromium_engine, firefox_engine, webkit_engine]
MAGNIFIED = ENGINES if THOROUGH else [chromium_engine]


@pytest.mark.browser
@pytest.mark.parametrize(("engine", "zoom"), [
    *itertools.product(ENGINES, [1]), *itertools.product(MAGNIFIED, [2])])
def test_three_engines_show_the_art_of_the_png_and_select_it_as_text(service, request, engine, zoom):
    with engine(request, zoom) as look:
        for width in (60, 100, 140):
            path = f"/cat/house-5{{}}?width={width}"
            found, screenshot = look(service.url + path.format(""), ART)
            text, ratio, *box = json.loads(found)
            assert ratio == zoom
            rows = service.get(path.format(".txt") + "&style=fill").data.decode().splitlines()
            assert text.splitlines() == rows
            grid = width, len(rows)
            shown = Image.open(io.BytesIO(screenshot)).convert("RGB").crop([round(side * ratio) for side in box])
            picture = Image.open(io.BytesIO(service.get(path.format(".png")).data))
            means = [image.resize(grid, Image.Resampling.BOX) for image in (shown, picture)]
            differences = sorted(ImageChops.difference(*means).tobytes())
            most = 18 if engine is webkit_engine else 12  # WebKit draws bolder letters
            assert statistics.fmean(differences) <= 2 and differences[len(differences) * 99 // 100] <= most
            fine = shown.resize(picture.size, Image.Resampling.BOX)
            moved = [ImageChops.offset(picture, *by) for by in ((0, 0), (5, 0), (-5, 0), (0, 7), (0, -7))]
            still, *others = (statistics.fmean(ImageChops.difference(fine, other).tobytes()) for other in moved)
            assert still < 0.8 * min(others), "the letters are in their places"


@pytest.mark.browser
def test_art_is_selected_with_a_key_or_two_clicks_and_copied_in_the_size_that_is_shown(tab, service):
    show(tab, "/cat/house-5")
    rows = tab.locator("pre").text_content()
    tab.locator("#art").dblclick()
    assert tab.evaluate("getSelection().toString()") == rows
    tab.evaluate("getSelection().removeAllRanges()")
    tab.keyboard.press("Control+a")
    assert rows in tab.evaluate("getSelection().toString()")
    tab.evaluate("getSelection().removeAllRanges()")
    tab.keyboard.down("Shift")
    tab.locator("#art").drag_to(tab.locator("#art"), source_position={"x": 303, "y": 50},
                                target_position={"x": 500, "y": 200})
    tab.keyboard.up("Shift")
    assert len(tab.evaluate("getSelection().toString()")) > 100
    assert tab.evaluate("getComputedStyle(find('#art'), '::after').opacity") == "0", "no picture hides the selection"
    tab.click("#copy")
    tab.wait_for_selector(".toast")
    copied = tab.evaluate("navigator.clipboard.readText()").splitlines()
    assert (len(copied[0]), len(copied)) == (columns(tab), len(rows.split("\n")))
    show(tab, "/cat/house-5?height=5")
    tab.click("#copy")
    tab.wait_for_selector("text=text copied")
    copied = tab.evaluate("navigator.clipboard.readText()").splitlines()
    assert (len(copied[0]), len(copied)) == (13, 5), "fewer columns than a width may have"
    tab.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject() }")
    tab.click("#copy")
    tab.wait_for_selector("text=text not copied")
    assert tab.evaluate("navigator.clipboard.readText()").splitlines() == copied


@pytest.mark.browser
def test_a_saved_picture_is_as_large_as_the_window(new_tab):
    tab = new_tab(1440, 900)
    show(tab, "/cat/house-5")
    with tab.expect_download() as download:
        tab.click("#save")
    assert Image.open(download.value.path()).width >= 1400


@pytest.mark.browser
def test_art_that_nearly_fits_is_not_fetched_again(new_tab):
    for width, requests in ((290, 1), (1280, 2)):
        tab, asked = new_tab(width, 700), []
        tab.on("request", lambda request, asked=asked: asked.append(request.url))
        show(tab, "/cat/house-5")
        assert len(asked) == requests


@pytest.mark.browser
def test_a_page_with_a_cat_names_the_site_and_where_there_is_room_the_command_that_shows_the_cat(service, new_tab):
    for width, height, room in ((1280, 720, True), (1024, 768, True), (390, 844, False), (1280, 480, False)):
        tab = new_tab(width, height)
        show(tab, "/cat/house-5")
        assert tab.is_visible("footer >> text=catscii") and tab.is_visible("footer code") == room
    command = tab.locator("footer code").text_content()
    assert command == f"curl {service.url.removeprefix('http://')}/cat/house-5"
    assert subprocess.check_output([*command.split(), "--silent"]) == service.get("/cat/house-5").data
    secure = service.get("/cat/house-5", CHROME | {"Host": "a.example", "X-Forwarded-Proto": "https"}).data
    assert b"<code>curl https://a.example/cat/house-5</code>" in secure, "curl would take http without the scheme"
    tab.click("footer >> text=catscii")
    tab.wait_for_url(f"{service.url}/")


@pytest.mark.browser
def test_without_javascript_there_are_plain_links(new_tab):
    tab = new_tab(java_script_enabled=False)
    tab.goto("/cat/house-5")
    assert [tab.is_visible(part) for part in ("pre", "#copy", "#share")] == [True, False, False] and columns(tab) == 80
    for control, link in (("#restyle", "?style=ink"), ("button:text('draw')", "?width=80&style=ink")):
        tab.click(control)
        assert tab.url.endswith(f"/cat/house-5{link}")
    tab.click("#another")
    assert urlsplit(tab.url).path == "/" and tab.locator("pre").count() == 1


@pytest.mark.browser
def test_in_a_browser_the_cat_of_live_blinks_twice_unless_motion_is_reduced(new_tab):
    tab = new_tab()
    tab.goto("/live")
    opacities = """times => {
        const lids = document.querySelector(".lids"), [animation] = lids.getAnimations()
        animation.pause()
        return times.map(time => { animation.currentTime = time; return getComputedStyle(lids).opacity })
    }"""
    assert tab.evaluate(opacities, [0, 2000, 2100, 2300, 4500, 4700, 9000]) == ["0", "0", "1", "0", "1", "0", "0"]
    assert tab.evaluate("document.querySelector('.lids').getBoundingClientRect().width > 200")
    calm = new_tab(reduced_motion="reduce")
    calm.goto("/live")
    assert not calm.is_visible(".lids") and calm.is_visible(".art")


@pytest.mark.browser
@pytest.mark.parametrize("path", [
    "/cat/house-1", "/cat/house-1?style=ink", "/analytics", "/help", "/live", "/nothing",
    f"/cat/house-1?says={quote(WISH)}"])
def test_pages_are_accessible(new_tab, path):
    from axe_playwright_python.sync_playwright import Axe

    tab = new_tab(reduced_motion="reduce")
    show(tab, path)
    for scheme, forced in itertools.product(("dark", "light"), ("none", "active")):
        tab.emulate_media(color_scheme=scheme, forced_colors=forced)
        results = Axe().run(tab)
        assert results.violations_count == 0, (scheme, forced, results.generate_report())
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert forced == "active" or background == ("rgb(16, 16, 20)" if scheme == "dark" else "rgb(250, 248, 244)")
        assert tab.evaluate("getComputedStyle(document.body, '::after').transitionDuration") == "0s"


@pytest.mark.npm
def test_the_nu_html_checker_finds_no_error(service, tmp_path):
    """It reports some CSS that all browsers know, such as container-type, which is left out here."""
    java = shutil.which("java") or pytest.skip("Java is not installed")
    subprocess.run(["npm", "pack", "--silent", "vnu-jar@26.9.27"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    with tarfile.open(tmp_path / "vnu-jar-26.9.27.tgz") as package:
        package.extract("package/build/dist/vnu.jar", tmp_path, filter="data")
    paths = ("/cat/house-5", "/cat/house-5?style=ink", "/cat/house-5?says=%3Cb%3E%26amp;", "/analytics", "/help",
             "/live", "/nothing", "/?width=1")
    for number, path in enumerate(paths):
        (tmp_path / f"{number}.html").write_bytes(service.get(path, CHROME).data)
    checker = [java, "-jar", tmp_path / "package/build/dist/vnu.jar", "--exit-zero-always", "--format", "json"]
    done = subprocess.run([*checker, *sorted(tmp_path.glob("*.html"))], check=True, stderr=subprocess.PIPE)
    messages = json.loads(done.stderr)["messages"]
    assert messages and [each["message"] for each in messages if not each["message"].startswith("CSS: ")] == []


CONTRASTS = """["--text", "--strong", "--link", "--line"].map(name => {
    const luminance = name => {
        document.body.style.outlineColor = `var(${name})`
        const levels = getComputedStyle(document.body).outlineColor.match(/[0-9]+/g).map(level => level / 255)
        const [r, g, b] = levels.map(level => level <= .04045 ? level / 12.92 : ((level + .055) / 1.055) ** 2.4)
        return .2126 * r + .7152 * g + .0722 * b + .05
    }, [dark, light] = [luminance(name), luminance("--paper")].sort((a, b) => a - b)
    return light / dark
})"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_those_who_prefer_more_contrast_get_stronger_text_links_and_lines_and_the_same_art(new_tab, scheme):
    usual, more = (new_tab(color_scheme=scheme, contrast=contrast) for contrast in ("no-preference", "more"))
    arts = []
    for tab in (usual, more):
        show(tab, "/cat/house-1?width=40")
        arts.append(tab.locator("figure").screenshot())
    before, after = (tab.evaluate(CONTRASTS) for tab in (usual, more))
    assert all(a > b for a, b in zip(after, before, strict=True)) and arts[0] == arts[1]
    assert min(after[:3]) > 11 and after[3] > 7


@pytest.mark.browser
@pytest.mark.parametrize("client", ["curl", "wget -qO-", "http --ignore-stdin --body"])
def test_in_a_terminal_of_80x24_each_call_brings_another_cat_and_nothing_scrolls_away(service, client):
    program, *options = client.split()
    program = shutil.which(program) or str(Path(sys.executable).with_name(program))
    shown = {}
    for path, words in [("/:help", "?style=ink"), *[("/", "/cat/house-")] * 6]:
        status, output = in_terminal(80, 24, program, *options, service.url + path, HOME="/nonexistent")
        assert status == 0 and words in output and "\x1b[" in output and output.endswith("\n")
        assert_fits_24_lines(output)
        shown[output] = path
    assert len(shown) > 2


BAD_VALUES = {"width": "19 241", "height": "0 241", "contrast": "101", "style": "bold", "background": "grey",
              "colors": "8", "format": "gif"}
UNFIT = " -1 1e9 80.5 0x50 high %D9%A8%D9%A0 %00 %ff %F0%9F%90%88 ..%2f %0d%0aX:%20y +80"


@pytest.mark.parametrize("name", BAD_VALUES)
@pytest.mark.parametrize("path", ["/", "/cat/house-1"])
def test_a_bad_parameter_is_a_400_that_names_it_and_what_would_be_right(service, path, name):
    right = "from (20|1|0) to (240|100)|fill, ink|dark, light|16, 256, true|html, ansi, text, json|given 2 times"
    for value in [*(BAD_VALUES[name] + UNFIT).split(), "", f"1&{name}=1", "9" * 10_000, "%00" * 3_000]:
        for headers, expected in ((CURL, "text"), (CHROME, "html"), ({"Accept": "application/json"}, "json")):
            response = service.get(f"{path}?{name}={value}", headers)
            body = response.data.decode("ascii" if expected == "text" else "utf-8")
            assert (response.status, kind(response)) == (400, expected) and "X" not in response.headers
            told = body.partition("<figure")[0]
            most = 10_000 if expected == "html" else 1200
            assert f"{name}: " in told and re.search(right, told) and len(told) < most
    assert service.get(f"{path}?{name}x=%ff&{name.upper()}=%00").status == 200, "other names mean nothing"


UNKNOWN_PATHS = """
    /nothing /cat/house-4294967296 /cat/house-01 /cat/ /cat/%3Cscript%3Ealert(1)%3C/script%3E /cat/%1b%5b31m /cat/%00
    /cat/%ff%fe /%ff /%ffhealth /%00 /analytics%00 /health%0a /cat/house-1%0a /cat/%2e%2e /%2e%2e/etc/passwd
    /cat/..%2f..%2fetc%2fpasswd /%E2%80%AE /cat/house-2.gif /cat/house-2. /cat/.png /cat/house-2.txt.png
"""


@pytest.mark.parametrize(("path", "method", "status"), [
    *((path, "GET", 404) for path in UNKNOWN_PATHS.split()),
    ("/" + "x" * 10_000, "GET", 404),
    ("/", "POST", 405),
    ("/", "OPTIONS", 405),
    ("/", "TRACE", 405),
    ("/cat/house-1", "PUT", 405),
    ("/health", "PATCH", 405),
    ("/analytics", "DELETE", 405),
    ("/cat/house-1", "POST", 413),
])
def test_errors_come_in_the_format_that_was_asked_for_and_carry_nothing_raw(service, path, method, status):
    terminal = "ansi" if status == 404 else "text"  # a page that does not exist has a cat
    for headers, expected in ((CURL, terminal), (CHROME, "html"), ({"Accept": "application/json"}, "json")):
        response = service.get(path, headers | {"Content-Length": "8192"} if status == 413 else headers, method)
        assert (response.status, kind(response)) == (status, expected)
        body = response.data.decode()
        if expected == "ansi":
            *rows, body = body.splitlines()
            assert {len(row) for row in cells_of_ansi("\n".join(rows) + "\n")} == {59}
        assert "Traceback" not in body and "\x1b" not in body and "\0" not in body
        assert expected != "html" or "<script" not in body
        assert expected != "json" or json.loads(body)["status"] == status
        assert status != 405 or response.headers["Allow"] == "GET, HEAD"


def test_in_a_terminal_a_page_that_does_not_exist_has_a_calm_cat_that_fits_24_lines(service):
    cat = catscii.draw_house_cat(zlib.crc32(b"/nothing") % 8)
    art = catscii.to_ansi(catscii.render(cat, 60, catscii.TERMINAL_ROWS, contrast=0))
    assert service.get("/nothing").data.decode() == f"{art}404 Not Found: there is nothing at '/nothing'\n"


def exchange(service: Running, request: bytes, patience: float = 60) -> bytes:
    """Send a request, and return the data that comes until the connection is closed or silent for too long."""
    with connected(service, patience=patience) as connection:
        connection.sendall(request)
        return read_all(connection)


# A proxy in front of the service may read these differently, and see the next request begin elsewhere.
DOUBTFUL_METHODS = [
    b"get", b"Get", b"G\0ET", b"G(T", b"GET:", b"G\xc9T", b"GET ", b" GET", b"\tGET", b"\nGET", b"\rGET",
    b"\n\n\r\rGET", b"\r\n GET"]
DOUBTFUL_TARGETS = [
    b"health", b"/health#x", b"\\health", b"?/", b"http://[::1/", b"/\thealth", b"/\x0bhealth", b"/\x0c", b"/\0",
    b"/\rX", b"/\r", b"/ ", b"/ x", b"/ HTTP/1.1"]
DOUBTFUL_VERSIONS = [
    b"HTTP/1.1;a", b"HTTP/1.1.1", b"HTTP/01.1", b"HTTP/1.10", b"HTTP/1,1", b"HTTP/+1.1", b"HTTP/11", b"HTTP/1",
    b"HTTP/1.", b"HTTP/.1", b"http/1.1", b"HTTPS/1.1", b"1.1", b"HTTP/1.1 ", b"HTTP/1.1\t", b"HTTP/1.1\0",
    b"HTTP/1.1\r"]
DOUBTFUL_LINES = [
    *(b"%s / HTTP/1.1" % method for method in DOUBTFUL_METHODS),
    *(b"GET %s HTTP/1.1" % target for target in DOUBTFUL_TARGETS),
    *(b"GET / %s" % version for version in DOUBTFUL_VERSIONS),
    b"GET\t/ HTTP/1.1",
    b"GET /\x0bHTTP/1.1",
    b"GET /",
    b"GET",
    b"\x16\x03\x01\x02\x00\x01",
]
DOUBTFUL_NAMES = [
    b"X\xe9", b"X()", b'"X"', b"X;", b"X/Y", b"X\0", b"X\0Y", b"\0X", b"", b" X", b"\tX", b"\x0bX", b"\x0cX", b"\rX",
    b"X ", b"X\t", b"X\x0b", b"X\r", b"X y"]
DOUBTFUL_ENDS = [
    b"\r\n b", b"\r\n\tb", b"\r\n ", b"\rb", b"\r", b"\r\rY: b", b"\nb: c", b"\0b", b"\x1b[31m\nY: b"]
DOUBTFUL_LENGTHS = [
    b"1_0", b"0x5", b"+4", b"-4", b"5,", b"5.0", b"5e0", b"\xb2", b'"5"', b"", b"\x0b5", b"5\x0c", b"5 5", b"5, 6",
    b"4\r\nContent-Length: 5", b"5\r\nContent-Length: 05, 6", b"0\r\nTransfer-Encoding: chunked"]
DOUBTFUL_CODINGS = [
    b"", b"chunked", b"\r\n chunked", b"chunked, chunked", b"xchunked", b"gzip", b"chunked, gzip", b"gzip, chunked",
    b"chunked;q=1", b'"chunked"', b"identity", b"\x0bchunked", b"chunked\x0c", b"chunked chunked", b"\t Chunked ",
    b"chunked\r\nTransfer-Encoding: chunked", b"chunked\r\nContent-Length: 5"]
DOUBTFUL_HEADERS = [
    *(b"%s: a" % name for name in DOUBTFUL_NAMES),
    *(b"X: a%s" % end for end in DOUBTFUL_ENDS),
    *(b"Content-Length: %s" % length for length in DOUBTFUL_LENGTHS),
    *(b"Transfer-Encoding: %s" % coding for coding in DOUBTFUL_CODINGS),
    b" ",
    b"\t",
    b"X:\r\n a",
    b"X",
    b"X a",
    b":",
    b"Host: b",
    b"Content-Length : 5",
    b"Content-Length\0: 5",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding\r\n: chunked",
]
BODY = b"GET /nothing HTTP/1.1\r\n\r\n"  # 25 bytes, which are no request


@pytest.mark.parametrize(("request_", "statuses"), [
    (b"\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n", [200, 200]),
    (b"GET http://x.example/health HTTP/1.1\r\nHost: y\r\n\r\n", [200, 200]),
    (b"GET HTTP://x.example:80/health?a HTTP/1.1\r\nHost:\r\n\r\n", [200, 200]),
    (b"M-SEARCH!#$%&'*+.^_`|~ / HTTP/1.1\r\nHost: x\r\n\r\n", [405, 200]),
    (b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", [404, 200]),
    (b"GET /health HTTP/1.1\r\nHost: x\r\nX:a\r\nX: \t a \t \r\n!#$%&'*+.^_`|~:\r\nX: \xff\r\n\r\n", [200, 200]),
    (b"GET /health HTTP/1.1\r\nHost: x\r\nContent_Length: 26\r\nTransfer_Encoding: chunked\r\n\r\n", [200, 200]),
    (b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 99 + b"\r\n", [200, 200]),
    (b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 100 + b"\r\n", [400]),
    (b"GET /health HTTP/1.1\r\nHost: x\r\ncontent-length:25\r\n\r\n" + BODY, [200, 200]),
    (b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 00025\r\n\r\n" + BODY, [200, 200]),
    (b"GET /cat/house-1 HTTP/1.1\r\nHost: x\r\nIf-None-Match: *\r\n\r\nHEAD / HTTP/1.1\r\nHost: x\r\n\r\n",
     [304, 200, 200]),
    (b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", [200]),
    (b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Close\r\n\r\n", [200]),
    (b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: TE, close\r\n\r\n", [200]),
    (b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: keep-alive,Close\r\n\r\n", [200]),
    # A client that asks whether to send a body has the answer at once.
    (b"GET /health HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n", [200]),
    (b"POST /health HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", [405]),
    (b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 999999\r\n\r\n", [413]),
    (b"GET / HTTP/1.1\r\nExpect: 100-continue\r\nHost: a\r\nHost: b\r\n\r\n", [400]),
    # RFC 9110, 8.6, and RFC 9112, 2.2 and 6.3, allow other answers to these.
    (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", [400]),
    (b"GET //health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", [200]),
    (b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 25, 25\r\n\r\n" + BODY, [400]),
    (b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"Content-Length: 25\r\n" * 2 + b"\r\n" + BODY, [400]),
    (b"GET /health HTTP/1.1\nHost: x\n\n", [400]),
    (b"GET /health HTTP/0.9\r\nHost: x\r\n\r\n", [400]),
    (b"GET /health HTTP/1.2\r\nHost: x\r\n\r\n", [400]),
    (b"GET /health HTTP/2.0\r\nHost: x\r\n\r\n", [400]),
    (b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n", [400]),
    (b"GET /health HTTP/1.1\r\n\r\n", [400]),
    (b"GET /health HTTP/1.0\r\n\r\n", [200]),
    (b"GET /health HTTP/1.1\nHost: x\r\n", [400]),
    (b"\r\n\r\nGET /health HTTP/1.1\nHost: x\n\n", [400]),
    # Too large, and doubtful.
    (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-Fill: %s\r\n" % (b"x" * 1000) * 64 + b"\r\n", [431]),
    (b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"x" * 65536), [431]),
    (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n", [413]),
    (b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n", [400]),
    (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;\n\r\na\r\n0\r\n\r\n", [400]),
    *((b"%s\r\nHost: a\r\n\r\n" % line, [400]) for line in DOUBTFUL_LINES),
    *((b"GET / HTTP/1.1\r\n%s\r\nHost: a\r\n\r\nabcde" % header, [400]) for header in DOUBTFUL_HEADERS),
    *((b"GET / HTTP/1.1\r\nHost: a\r\n%s\r\n\r\nabcde" % header, [400]) for header in DOUBTFUL_HEADERS),
])
def test_requests_are_answered_as_they_are_meant_or_refused_once_and_the_connection_is_closed(
        service, request_, statuses):
    """The last status is that of another request, which is answered unless the connection is closed."""
    another = b"GET /help HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" * (statuses[0] not in (413, 431))
    for size in {len(request_), 1 if len(request_) < 1000 else len(request_)}:  # whole, and byte by byte
        with connected(service) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(ConnectionError):
                for start in range(0, len(request_), size):
                    connection.sendall(request_[start : start + size])
                connection.sendall(another)
            answer = read_all(connection)
        assert list(map(int, re.findall(rb"(?m)^HTTP/1\.[01] (\d+) ", answer))) == statuses
        assert re.findall(rb"Connection: (.*)\r\n", answer) == [b"close"]
        if statuses[0] in (400, 413, 431):
            assert b"\r\nContent-Security-Policy: default-src 'none'" in answer
            assert answer.count(b"%d " % statuses[0]) > 1 and b"Traceback" not in answer and b"\x1b" not in answer
            assert b"<figure" not in answer, "a refusal is short"


def test_every_answer_has_the_security_headers_and_none_names_the_software_and_head_is_get_without_a_body(service):
    for path in ("/", "/cat/house-1", "/analytics", "/health", "/metrics", "/favicon.ico", "/nothing", "/panic"):
        answers = {method: service.get(path, CHROME, method) for method in ("GET", "HEAD", "POST")}
        for answer in answers.values():
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
            assert "img-src 'self' data:;" in policy, "no picture of another host"
            assert "unsafe-inline" not in policy.replace("style-src-attr 'unsafe-inline'", "")
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Referrer-Policy"] == "no-referrer" and "Server" not in answer.headers
            assert not re.search("waitress|bottle|python", str(answer.headers), re.IGNORECASE)
        get, head = answers["GET"], answers["HEAD"]
        assert head.data == b"" and (head.status == get.status or path == "/panic")
        changing = ("/", "/metrics", "/panic")
        assert head.headers["Content-Length"] == get.headers["Content-Length"] or path in changing


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory, country_db: str) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("fuzzed")
    service = Running(folder, GEOLITE2_COUNTRY_DB=country_db, CLIENT_IP_HEADER="X-Real-IP")
    yield service
    assert service.stop() == 0
    assert not any("Traceback" in json.dumps(line) or line["level"] == "ERROR" for line in service.log)


PIECES = re.findall(r"\S+", "/ cat house-1 analytics .. %2e %2f %00 %ff ? & = width height style format 80 ink html %")
HEADERS = ["Accept", "User-Agent", "Accept-Encoding", "If-None-Match", "X-Real-IP", "Host", "Range", "Cookie"]
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=9), max_size=8).map("".join)
values = st.binary(max_size=60) | st.sampled_from([b"*/*", b"text/html;q=0", b"gzip;q=", b'"', b"::1%x", b"keep-alive"])


@settings(max_examples=rounds(300), deadline=None)
@given(st.sampled_from(["GET", "GET", "GET", "HEAD", "POST", "OPTIONS", "BREW"]), texts, texts,
       st.dictionaries(st.sampled_from(HEADERS), values))
def test_no_request_makes_the_service_fail(fuzzed, method, path, query, headers):
    lines = [f"{method} /{path}?{query} HTTP/1.1".encode(), b"Host: x", b"Connection: close"]
    lines += [name.encode() + b": " + re.sub(rb"[\r\n]", b"", value) for name, value in headers.items()]
    answer = exchange(fuzzed, b"\r\n".join(lines) + b"\r\n\r\n")
    status = re.match(rb"HTTP/1\.[01] ([234]\d\d) ", answer)
    assert status, answer[:200]
    assert method in ("GET", "HEAD") or status[1] in (b"400", b"404", b"405")


def test_permalinks_can_be_cached_and_the_random_cat_cannot(service):
    assert service.get("/").headers["Cache-Control"] == "no-store" and "ETag" not in service.get("/").headers
    first = service.get("/cat/house-5")
    tag = first.headers["ETag"]
    assert first.headers["Cache-Control"] == "private, max-age=3600"
    for held, status, body in ((f'"other", {tag}', 304, b""), ("*", 304, b""), ('"other"', 200, first.data)):
        again = service.get("/cat/house-5", CURL | {"If-None-Match": held})
        assert (again.status, again.data, again.headers["ETag"]) == (status, body, tag)
    assert service.get("/cat/house-6").headers["ETag"] != tag


@pytest.mark.parametrize(("path", "caching", "varies"), [
    ("", "private", "Accept, User-Agent, X-Forwarded-Proto, Accept-Encoding"),
    (".html", "private", "X-Forwarded-Proto, Accept-Encoding"),
    ("?format=html", "private", "X-Forwarded-Proto, Accept-Encoding"),
    (".ansi", "private", "X-Forwarded-Proto, Accept-Encoding"),
    ("?format=ansi", "private", "User-Agent, X-Forwarded-Proto, Accept-Encoding"),
    (".txt", "public", "Accept-Encoding"), (".json", "public", "Accept-Encoding"),
    ("?format=json", "public", "Accept-Encoding"), (".png", "public", None), (".jpg", "public", None)])
def test_shared_caches_keep_pages_without_the_host_and_know_what_they_depend_on(service, path, caching, varies):
    response = service.get("/cat/house-7" + path, CHROME | {"Host": "evil.example"})
    assert response.headers["Cache-Control"] == f"{caching}, max-age=3600" and response.headers.get("Vary") == varies
    assert caching == "private" or b"evil" not in response.data


def test_a_405_lists_what_the_route_allows(service):
    for path in ("/", "/cat/house-1", "/metrics"):
        assert service.get(path, method="POST").headers["Allow"] == "GET, HEAD"


def test_panic_fails_at_most_once_in_ten_seconds(start, upstream):
    service = start()
    answers = [service.get("/panic") for _ in range(20)]
    assert [answer.status for answer in answers] == [500] + 19 * [429]
    assert answers[1].headers["Retry-After"] == "10" and b"less than 10 seconds ago" in answers[1].data
    assert service.messages().count("Request failed") == 1


def test_a_flood_of_unavailable_cats_and_long_paths_does_not_flood_the_log(start, upstream):
    upstream.answers["/v1/images/gone"] = sends(b"", 500)
    service = start(CAT_SOURCES=upstream.the_cat_api)
    begun = time.monotonic()
    assert {service.get("/cat/gone").status for _ in range(60)} == {503}
    logged = service.messages().count("Cat unavailable")
    assert 1 <= logged <= 5 * (time.monotonic() - begun + 1)
    service.get("/" + "%ff" * 5000)
    assert max(len(json.dumps(line)) for line in service.log) < 3000


def test_made_up_ids_do_not_use_up_the_budget_of_evicted_cats(start, upstream):
    service = start(CAT_SOURCES=upstream.the_cat_api)
    eventually(lambda: service.json("/")["id"].startswith("house-") is False)
    cat = service.json("/")["id"]
    for i in range(catscii.VISITORS_REQUESTS_A_MINUTE + 5):
        service.get(f"/cat/madeup{i}")
    assert service.get("/cat/madeup").status == 503
    sql(service.database, "UPDATE cats SET picture = NULL WHERE id = ?", cat)
    assert service.get(f"/cat/{cat}?width=33").status == 200


@pytest.mark.parametrize("path", ["/cat/house-7", "/cat/house-7?style=ink", "/analytics", "/help"])
def test_pages_are_compressed_for_those_who_take_it_and_are_small(service, path):
    plain, packed, refused = (service.get(path, CHROME | accepted) for accepted in (
        {}, {"Accept-Encoding": "br, gzip;q=0.8"}, {"Accept-Encoding": "gzip;q=0, br"}))
    assert packed.headers["Content-Encoding"] == "gzip" and len(packed.data) < 60_000
    assert gzip.decompress(packed.data) == plain.data == refused.data
    assert not any("Content-Encoding" in response.headers for response in (plain, refused))
    assert {"Accept-Encoding", "User-Agent"} <= set(plain.headers["Vary"].split(", "))


@pytest.mark.parametrize(("host", "name"), [
    ("api.thecatapi.com", "The Cat API"), ("cataas.com", "CATAAS"), ("cats.example:8443", "cats.example:8443")])
def test_the_page_of_a_photograph_says_what_is_known_of_it_and_names_its_source(start, host, name):
    service = start()
    store_cat(service.database, "tom", host)
    picture = Image.new("RGB", (360, 480), "white")
    picture.paste("orange", (0, 0, 360, 300))
    sql(service.database, "UPDATE cats SET tags = 'cute, sleepy', picture = ?", encoded(picture, "JPEG"))
    words = f"photograph from {name}, mainly orange and white; tags: cute, sleepy"
    told, body = service.json("/cat/tom"), service.get("/cat/tom?width=40", CHROME).data.decode()
    assert (told["source"], told["description"]) == (host, f"a {words}")
    assert f"<title>A {words} &middot;" in body and f'og:image:alt" content="A {words} as' in body
    alternative = f"A {words}, drawn in 40 by 27 coloured characters; its picture of 360 by 480 pixels shows while"
    assert f'aria-label="{alternative} you hold' in body
    assert f'<a href="http://{host}/" rel="external">a {words}</a>' in body


def test_other_files_have_their_types_and_crawlers_are_told_to_leave_variations_of_the_random_cat(service):
    rules = "User-agent: *\nAllow: /\nDisallow: /?\nDisallow: /panic\n"
    for path, content_type, body in (
        ("/robots.txt", "text/plain; charset=utf-8", rules.encode()), ("/favicon.ico", "image/png", b"\x89PNG"),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8", b"# HELP"), ("/health", "application/json", b"{"),
    ):
        response = service.get(path, CHROME)
        assert (response.status, response.headers["Content-Type"]) == (200, content_type)
        assert response.data == body if "robots" in path else response.data.startswith(body)


@pytest.fixture
def visited(start) -> Running:
    """Return a service with visits of today, of the first of the last 30 days, and of the day before that."""
    service = start()
    days = [str(datetime.now(UTC).date() - timedelta(ago)) for ago in (0, 0, 29, 29, 30)]
    add_visits(service.database, [*zip(days, ("FR", "ZZ", "FR", "QQ", "SG"), (3, 1, 1000, 2, 20), strict=True)])
    return service


def add_visits(database: Path, rows: list[tuple[str, str, int]]) -> None:
    """Add visits by day and country."""
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.executemany("INSERT INTO visits VALUES (?, ?, ?)", rows)


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
    assert response.data.decode().splitlines() == [
        "day,country,visits", f"{first},FR,1000", f"{first},QQ,2", f"{today},FR,3", f"{today},ZZ,1"]


def test_analytics_in_the_terminal(visited):
    lines = visited.get("/analytics").data.decode().splitlines()
    world = ["".join(glyph for glyph, _, _ in row) for row in cells_of_ansi("\n".join(lines[:22]) + "\n")]
    assert world == list(catscii.world_map({"FR": 1003, "SG": 20, "QQ": 2}).rows)
    plain = [re.sub("\x1b[^m]*m", "", line) for line in lines]
    assert max(map(len, plain)) <= 80
    today = datetime.now(UTC).date()
    assert plain[-4:] == [
        "Visits: 1,026 in all, 4 today, 1,006 in the last 30 days", "█" + 28 * " " + "▁", "▔" * 30,
        f"{today - timedelta(29)}          {today}  Visits a day, up to 1,002"]
    assert [tuple(line.split()) for line in plain[23:27]] == [
        ("France", "█" * 49, "1,003", "97.8%"), ("Singapore", "█", "20", "1.9%"), ("QQ", "▏", "2", "0.2%"),
        ("Unknown", "▏", "1", "0.1%")]
    assert plain[28:-4] == [*catscii.PRIVACY.split("\n"), ""]


def test_analytics_for_people(visited):
    response = visited.get("/analytics", CHROME)
    page, today = response.data.decode(), datetime.now(UTC).date()
    assert "Visits: 1,026 in all, 4 today, 1,006 in the last 30 days" in page
    assert 'aria-label="Map of the world. Most visits: France, Singapore, QQ, Unknown"' in page
    assert f'aria-label="Visits a day: 1002{28 * ", 0"}, 4"' in page
    assert page.count('role="img"') == 2
    assert "Visits a day, up to 1,002<" in page and f"<time>{today - timedelta(29)}</time> <time>{today}</time>" in page
    assert f'title="{today - timedelta(29)}: 1,002"' in page and f'title="{today}: 4"' in page
    assert re.findall('scope="row".*>(.+)</th>', page) == ["France", "Singapore", "QQ", "Unknown"]
    assert not re.search("[\U0001f000-\U0001ffff]", page), "many systems have no font for flags"
    assert "<td>1,003</td><td>97.8%</td>" in page and "--length:100.0%" in page and "--length:2.0%" in page
    assert catscii.to_html(catscii.world_map({"FR": 1003, "SG": 20, "QQ": 2})) in page
    assert catscii.PRIVACY in page and "Set-Cookie" not in response.headers


@pytest.mark.browser
def test_a_day_with_visits_is_a_bar_on_a_baseline(visited, new_tab):
    from axe_playwright_python.sync_playwright import Axe

    tab = new_tab(color_scheme="dark")
    tab.goto(f"{visited.url}/analytics")
    assert Axe().run(tab).violations_count == 0
    chart = Image.open(io.BytesIO(tab.locator(".days").screenshot())).convert("RGB")
    foot = chart.height - 1
    baseline = {chart.getpixel((x, foot)) for x in range(chart.width)}
    assert baseline == {(185, 185, 198)}, "it reaches from the first day to the last"
    heights = [[chart.getpixel((x, y)) for y in range(foot)].count((255, 184, 112))
               for x in (12, chart.width // 2, chart.width - 12)]
    assert heights == [pytest.approx(foot, abs=3), 0, 1], "the highest bar reaches the upper line, the least is visible"
    assert chart.getpixel((12, foot - 1)) == chart.getpixel((chart.width - 12, foot - 1)) == (255, 184, 112)


@pytest.mark.parametrize(("maker", "credited"), [("DBIP-Country-Lite", True), ("GeoLite2-Country", False)])
def test_dbip_is_credited_where_its_countries_are_shown(start, tmp_path, maker, credited):
    write_mmdb(tmp_path / "country.mmdb", maker, {})
    service = start(GEOLITE2_COUNTRY_DB=str(tmp_path / "country.mmdb"))
    for path in ("/analytics", "/cat/house-1"):
        page = service.get(path, CHROME).data.decode()
        assert ('<a href="https://db-ip.com" rel="external">IP Geolocation by DB-IP</a>' in page) == credited
    for path in ("/analytics", "/help"):
        text = service.get(path, CURL | {"Host": "cats-of-somebody.fly.dev"}).data.decode()
        assert (f"{catscii.DBIP_CREDIT}\n" in text) == credited
    assert_fits_24_lines(text)


# ---------------------------------------------------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------------------------------------------------


def logging_processes(count: int, code: str) -> list[str]:
    """Return the lines that processes which run `code` with a LogWriter write to the same pipe."""
    start_code = "import catscii\nwriter = catscii.start_logging(20)\nwriter.buffered = True\n"
    command = [sys.executable, "-c", f"{start_code}{code}\nwriter.flush(60)"]
    reading, writing = os.pipe()
    writers = [subprocess.Popen(command, cwd=SCRIPT.parent, stderr=writing) for _ in range(count)]
    os.close(writing)
    with open(reading) as file:
        lines = file.read().splitlines()
    assert [writer.wait() for writer in writers] == [0] * count
    return lines


def test_lines_of_processes_that_share_a_log_stay_whole():
    lines = logging_processes(2, """if True:
        for number in range(200):
            for length in (500, 1500, 3000):
                catscii.log.info(length * "x")
            writer.flush(60)
    """)
    messages = [json.loads(line)["fields"]["message"] for line in lines]
    assert Counter(map(len, messages)) == {500: 400, 1500: 400, 3000: 400}


def test_a_line_that_is_longer_than_a_pipe_takes_at_once_is_logged():
    (line,) = logging_processes(1, "catscii.log.info(100_000 * 'x')")
    assert len(json.loads(line)["fields"]["message"]) == 100_000


def test_the_log_does_not_look_up_code_threads_and_processes_which_takes_time():
    (line,) = logging_processes(1, """if True:
        import logging
        record = logging.getLogger().makeRecord("", 20, "", 0, "", (), None)
        catscii.log.info("names", {"found": [logging._srcfile, record.threadName, record.process, record.processName]})
    """)
    assert json.loads(line)["fields"]["found"] == [None, None, None, None]


def test_a_line_whose_arguments_cannot_be_formatted_is_logged_without_them():
    (line,) = logging_processes(1, "catscii.log.info('%d cats', 'no')")
    assert json.loads(line)["fields"] == {"message": "%d cats"}


def test_logs_are_json_lines_in_the_shape_of_the_rust_service(start):
    service = start(LOG_LEVEL="info")
    service.get("/cat/house-1?width=40")
    service.get("/panic")
    assert service.stop() == 0
    assert len(service.lines) == len(service.log), "only a terminal gets a line that is not JSON"
    for line in service.log:
        assert set(line) == {"timestamp", "level", "target", "fields"} and line["target"] == "catscii"
        assert line["timestamp"].endswith("Z") and datetime.fromisoformat(line["timestamp"]).tzinfo
    messages = service.messages()
    assert messages[0] == "No countries: GEOLITE2_COUNTRY_DB is not set"
    assert re.fullmatch(r"Listening on 127\.0\.0\.1:\d+", messages[1])
    assert messages[-1] == "Initiating graceful shutdown"
    access = next(line["fields"] for line in service.log if line["fields"].get("path") == "/cat/house-1")
    assert (access["method"], access["status"], access["country"]) == ("GET", 200, "ZZ") and access["ms"] > 0
    (failure,) = [line for line in service.log if "RuntimeError" in json.dumps(line)]
    assert failure["level"] == "ERROR" and "RuntimeError" in failure["fields"]["error"]


def test_the_parser_of_the_installed_waitress_works_as_that_of_the_service_expects():
    line, rest = b"GET /cat HTTP/1.1\r\n", b"Host: x\r\nX-A: b\r\nExpect: 100-continue\r\n\r\n"
    parser = waitress.parser.HTTPRequestParser(waitress.adjustments.Adjustments())
    assert parser.received(line) == len(line)
    assert (parser.header_plus, parser.headers_finished, parser.completed) == (line, False, False)
    assert parser.received(rest + b"GET") == len(rest)
    assert (parser.headers_finished, parser.completed, parser.expect_continue) == (True, True, True)
    assert (parser.command, parser.version, parser.error, parser.empty) == ("GET", "1.1", None, False)
    assert parser.headers == {"HOST": "x", "X_A": "b", "EXPECT": "100-continue"}
    parser = waitress.parser.HTTPRequestParser(parser.adj)
    assert parser.received(b"\r\n\r\n") == 4 and parser.empty


def test_a_parser_that_refuses_a_head_has_an_error_for_the_installed_waitress():
    class Refusing(waitress.parser.HTTPRequestParser):
        def parse_header(self, head: bytes) -> None:
            assert head == request
            raise waitress.parser.ParsingError("no")

    request = b"GET / HTTP/1.1\r\n\r\n"
    parser = Refusing(waitress.adjustments.Adjustments())
    assert parser.received(request) == len(request)
    assert parser.completed and parser.error.body == "no" and parser.headers == {}


def test_a_connection_thread_and_response_of_the_installed_waitress_work_together_as_the_server_expects():
    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
        assert environ["catscii.refusal"] is None
        start_response("200 OK", [("Content-Length", "4")])
        return [environ["PATH_INFO"].encode()]

    def ask(headers: bytes = b"") -> bytes:
        """Do what a turn of the loop does for a request, and return the answer."""
        client.sendall(b"GET /cat HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
        waitress.wasyncore.readwrite(channel, select.POLLIN)
        server._dispatcher.add_task(server._tasks.popleft())  # a thread answers the request
        eventually(lambda: server.answered)
        server._send()
        return client.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = catscii.Server(app, listener, None, lambda: None, lambda: None, catscii.Streams())
        ours, client = socket.socketpair()
        ours.setblocking(False)
        channel = server._channel_class(server, ours, ("127.0.0.1", 1))
        server._dispatcher.set_thread_count(1)
        with client:
            for headers, goes_on in ((b"", True), (b"Connection: close\r\n", False)):
                answer = ask(headers)
                assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and answer.endswith(b"\r\n\r\n/cat")
                assert (b"\r\nConnection: close\r\n" in answer) is not goes_on
                assert channel.connected is bool(server.active_channels) is goes_on
        server._dispatcher.shutdown(timeout=1)
        with pytest.raises(waitress.channel.ClientDisconnected):
            channel.write_soon(b"more")


ANSWER = re.compile(rb"HTTP/1\.1 200 OK\r\n.*?Content-Length: (\d+)\r\n.*?\r\n\r\n", re.DOTALL | re.IGNORECASE)
ABORT = socket.SO_LINGER, struct.pack("ii", 1, 0)  # an option that makes close() reset a connection
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
HUGE, LARGE = "/cat/house-{}?width=240&height=240", "/cat/house-{}?width=240&format=json"


def whole_answers(data: bytes | bytearray) -> int:
    """Return how many complete answers the data begins with."""
    count = end = 0
    while (head := ANSWER.match(data, end)) and (end := head.end() + int(head[1])) <= len(data):
        count += 1
    return count


def read_answers(connection: socket.socket, count: int = 1) -> bytes:
    """Return the data that comes until `count` answers are complete or the connection is closed."""
    data = b""
    while whole_answers(data) < count and (part := connection.recv(65536)):
        data += part
    return data


def asking(path: str, times: int = 1, headers: str = "") -> Callable[[socket.socket], object]:
    """Return a function that requests a path on a connection, with another number in place of {} at each call."""
    seeds = itertools.count()
    return lambda connection: connection.sendall(
        f"GET {path.format(next(seeds))} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode() * times)


@contextlib.contextmanager
def crowd(service: Running, clients: int, talk: Callable[[socket.socket], object] = lambda _: None,
          **options: Any) -> Iterator[list[socket.socket]]:
    """Open connections, call `talk` with each, and yield them."""
    few = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few[1], few[1]))
    try:
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(connected(service, **options)) for _ in range(clients)]
            for connection in connections:
                with contextlib.suppress(ConnectionError):  # the service may close it
                    talk(connection)
            yield connections
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, few)


@contextlib.contextmanager
def suspended(service: Running) -> Iterator[None]:
    """Suspend the process, so that it finds everything that is sent to it at the same time."""
    service.process.send_signal(signal.SIGSTOP)
    yield
    service.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_every_request_that_arrived_before_the_signal_is_answered(start, signal_number):
    service = start(command=patched("catscii.GRACE_SECONDS = 60"))  # a busy machine takes its time
    with contextlib.ExitStack() as stack:
        with suspended(service):
            clients = stack.enter_context(crowd(service, 16, asking("/cat/house-{}?format=text", times=3)))
            service.process.send_signal(signal_number)
        assert service.stop(signal_number) == 0, "a second signal changes nothing"
        for client in clients:
            answers = read_all(client)
            assert whole_answers(answers) == 3 and answers.count(b"Connection: close") == 1
    assert "Initiating graceful shutdown" in service.messages()
    with pytest.raises(ConnectionRefusedError):
        connected(service)
    assert not Path(f"{service.database}-wal").exists(), "the database is closed"


def processor_seconds(service: Running) -> float:
    """Return the processor time that the process, its descendants and their ended children have used."""
    ticks = 0
    for pid in (service.process.pid, *descendants(service.process.pid)):
        with contextlib.suppress(OSError):  # a child has ended
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def open_files(service: Running) -> list[str]:
    """Return the targets of the process's file descriptors, without the standard streams."""
    links = []
    for path in Path(f"/proc/{service.process.pid}/fd").iterdir():
        if int(path.name) > 2:
            with contextlib.suppress(FileNotFoundError):  # closed by now
                links.append(os.readlink(path))
    return links


def test_clients_that_ask_on_and_on_and_read_nothing_wait_and_are_then_given_up(start):
    service, path = start(command=patched("catscii.SILENT_CONNECTION_SECONDS = 8")), HUGE.format(1)
    assert service.get(path).status == 200
    before = len(open_files(service))
    with crowd(service, 12, asking(path, 120), patience=5, receive_buffer=4096):
        eventually(lambda: len(open_files(service)) >= before + 12)
        assert service.get("/").status == 200
        assert len(open_files(service)) >= before + 12, "others do not wait until these are given up"
        assert resident_megabytes(service.process.pid) < 100
        assert counted(service) < 2 + 12 * 60, "what nobody reads is not drawn"
        eventually(lambda: len(open_files(service)) <= before)
    assert service.stop() == 0


def open_connections(service: Running) -> int:
    """Return how many connections are open, with that of the request which asks."""
    return int(samples(service)["catscii_open_connections"][()])


def kernel_megabytes(service: Running) -> float:
    """Return how much the kernel holds for the connections of the service, and for closed ones (proc(5))."""
    port = f":{int(service.url.rpartition(':')[2]):04X}"
    held = 0
    for line in Path("/proc/net/tcp").read_text().splitlines():
        fields = line.split()
        if fields[1].endswith(port):
            held += sum(int(queue, 16) for queue in fields[4].split(":"))
    return held / 1e6


PIPELINED = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="only Linux tells the queues of connections")
@pytest.mark.parametrize("request_", [PIPELINED, b"GET /cat/house-1?width=240 HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_connections_that_send_ahead_and_read_nothing_take_little_time_and_memory(start, request_):
    service = start()
    service.get("/cat/house-1?width=240")
    used = processor_seconds(service)
    ahead = request_ * (24000 // len(request_))
    options = {"source": ("127.0.0.2", 0), "receive_buffer": 4096}
    with crowd(service, 950, lambda connection: connection.sendall(ahead), **options):
        prompt(service, 3)
        assert kernel_megabytes(service) < 48
        assert resident_megabytes(service.process.pid) < 150
        assert processor_seconds(service) - used < 15
        assert service.stop() == 0


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="only Linux tells the queues of connections")
def test_answers_that_nobody_reads_keep_their_connections_until_others_need_the_places(start):
    service = start(command=patched("catscii.MAX_CONNECTIONS = 50"))
    service.get("/cat/house-1?width=240")
    ask = asking("/cat/house-1?width=240", headers="Connection: close\r\n")
    with contextlib.ExitStack() as stack:
        for _ in range(600):
            client = stack.enter_context(connected(service, source=("127.0.0.2", 0), receive_buffer=4096))
            ask(client)
            assert client.recv(1)
        prompt(service)
        assert len(open_files(service)) < 80
        assert 0 < kernel_megabytes(service) < 4, "closed connections would leave some 30 kB each"


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="only Linux tells the queues of connections")
def test_connections_that_together_take_too_much_memory_of_the_kernel_are_dropped(start):
    service = start(command=patched("catscii.MAX_KERNEL_MEMORY = 2 << 20"))
    service.get("/cat/house-1?width=240")
    with crowd(service, 200, asking("/cat/house-1?width=240"), receive_buffer=4096) as clients:
        for client in clients:
            with contextlib.suppress(ConnectionError):
                client.recv(1)
        eventually(lambda: kernel_megabytes(service) < 2.1)
        assert len(open_files(service)) > 20


@pytest.mark.parametrize("half_closed", [False, True])
def test_a_client_that_reads_late_gets_the_whole_last_answer(service, half_closed):
    with connected(service, receive_buffer=4096) as connection:
        asking("/cat/house-1?width=60", headers="Connection: close\r\n")(connection)
        if half_closed:
            connection.shutdown(socket.SHUT_WR)
        time.sleep(1)
        assert whole_answers(read_all(connection)) == 1
    eventually(lambda: open_connections(service) == 1)


@pytest.mark.parametrize("last", ["Connection: close\r\n", ""])
def test_what_the_kernel_holds_for_a_client_arrives_when_the_service_has_ended(start, last):
    service = start()
    with connected(service, receive_buffer=4096) as connection:
        asking("/cat/house-1?width=60", headers=last)(connection)
        connection.recv(1, socket.MSG_PEEK)
        time.sleep(0.5)
        assert service.stop() == 0
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert f"\r\nContent-Length: {len(body)}\r\n".encode() in head


def test_long_heads_of_one_client_do_not_hold_up_others(start):
    service = start()
    fields = "".join(f"A{number}: {'x ' * 70}\r\n" for number in range(95))
    with crowd(service, 400, source=("127.0.0.2", 0)) as clients, connected(service) as other:
        eventually(lambda: open_connections(service) == 402)
        with suspended(service):
            for client in clients:
                asking("/help", headers=fields)(client)
            asking("/health")(other)
        begun = time.monotonic()
        assert whole_answers(read_answers(other)) == 1
        waited = time.monotonic() - begun
        assert all(whole_answers(read_answers(client)) == 1 for client in clients)
        assert waited < (time.monotonic() - begun) / 3


def test_a_client_with_many_connections_takes_none_from_others(start):
    service = start(command=patched("catscii.MAX_CONNECTIONS = 50"))
    with contextlib.ExitStack() as stack:
        slow = stack.enter_context(connected(service))
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        others = stack.enter_context(crowd(service, 49, lambda _: None, source=("127.0.0.2", 0)))
        stack.enter_context(crowd(service, 200, asking("/help"), source=("127.0.0.2", 0)))
        eventually(lambda: len(open_files(service)) > 40)
        slow.sendall(b"\r\n")
        assert whole_answers(read_answers(slow)) == 1
        assert sum(bool(select.select([other], [], [], 0)[0]) for other in others) > 40, "the idlest were closed"


def test_pipelined_requests_are_answered_one_after_the_other_in_order(service):
    with connected(service) as connection:
        paths = [f"/cat/house-{seed}.txt?width={20 + seed}" for seed in range(60)]
        for path in paths:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        data = read_answers(connection, 60)
    bodies = [part.partition(b"\r\n\r\n")[2] for part in data.split(b"HTTP/1.1 200 OK\r\n")[1:]]
    assert [len(body.splitlines()[0]) for body in bodies] == [20 + seed for seed in range(60)]


def test_of_clients_who_together_leave_too_much_unread_the_greediest_are_given_up(start):
    service = start(command=patched("catscii.MAX_UNSENT_IN_ALL, catscii.SILENT_CONNECTION_SECONDS = 3 << 20, 600"))
    options = {"patience": 5, "receive_buffer": 4096}
    large_picture = asking("/cat/house-{}.png?width=240&height=240")  # of 1.1 MB
    service.get(LARGE.format(0))
    before = len(open_files(service))
    with crowd(service, 50, asking(LARGE.format(0), 40), **options):
        time.sleep(1)
        assert len(open_files(service)) >= before + 50, "they wait for the same bytes, which take no more room"
        with (
            crowd(service, 1, large_picture, source=("127.0.0.2", 0), **options) as [modest],
            crowd(service, 12, asking(LARGE, 40), source=("127.0.0.3", 0), **options) as others,
        ):
            for connection in others:
                with contextlib.suppress(ConnectionError):
                    connection.recv(1, socket.MSG_PEEK)
            eventually(lambda: len(open_files(service)) <= before + 51 + 10)  # of 282 kB each
            assert service.get("/health").status == 200
            assert whole_answers(read_answers(modest)) == 1, "a client with less in all keeps its connection"
    assert service.stop() == 0


# Each moment of a cat takes the same short time.
LIVELY = "catscii.ACTS = {name: [(moment, 0.2) for moment, _ in act] for name, act in catscii.ACTS.items()}\n"


def watching(path: str = "/live", headers: str = "", version: str = "1.1") -> Callable[[socket.socket], object]:
    """Return a function that asks for a cat that moves on a connection, like curl."""
    request = f"GET {path} HTTP/{version}\r\nHost: x\r\nUser-Agent: curl/8.16.0\r\n{headers}\r\n"
    return lambda connection: connection.sendall(request.encode())


def current_film(body: str, **options: Any) -> tuple[catscii.Film, catscii.Art, catscii.View, str]:
    """Return the film that a body is of, what `film_of` returns with it, and the part that is sent first."""
    for name in reversed(catscii.house_cats(3)):
        made = film, still, view = film_of(catscii.seed_of(name) or 0, **options)
        description = catscii.draw_house_cat(film.seed).info["description"]
        first = catscii.to_ansi(still, view.colors) + catscii.live_line(description)
        if body.startswith(first):
            return *made, first
    raise AssertionError("no cat of the last minutes")


def sees_a_change(client: socket.socket) -> bool:
    """Read until something in a cat moves. Return False if the stream ends before."""
    while part := client.recv(65536):
        if re.search(rb"\x1b\[\d+G", part):  # a change moves the cursor, unlike the first screen
            return True
    return False


def open_streams(service: Running) -> int:
    return int(samples(service)["catscii_live_streams"][()])


@pytest.mark.parametrize(("version", "headers", "query", "options"), [
    ("1.0", "", "", {}),
    ("1.1", "", "", {}),
    ("1.1", "Connection: close\r\n", "", {}),
    ("1.1", "", "?width=100&style=ink", {"width": 100, "style": "ink"}),
    ("1.1", "", "?colors=16&height=12", {"colors": "16", "height": 12}),
])
def test_a_stream_is_a_visit_and_consists_of_a_whole_cat_and_changes(start, version, headers, query, options):
    service = start(command=patched(LIVELY))
    lines = options.get("height", catscii.TERMINAL_ROWS) + 1  # of the whole cat
    with connected(service) as connection:
        watching(f"/live{query}", headers, version)(connection)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        data = b""
        while data.partition(b"\r\n\r\n")[2].count(b"\n") < lines + 3:
            data += connection.recv(65536)
        assert (open_streams(service), service.visits()) == (1, b"ZZ: 1\n")
        assert service.stop() == 0
        data += read_all(connection)
    head, _, body = data.decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.0 200 OK\r\n") and "\r\nConnection: close" in head
    assert "Content-Length" not in head and "Transfer-Encoding" not in head
    assert "\r\nX-Accel-Buffering: no" in head and "\r\nCache-Control: no-store" in head
    film, _, _, first = current_film(body, **options)
    changes = {film.change(before, after).decode() for before in MOMENTS for after in MOMENTS}
    *sent, goodbye = body.removeprefix(first).splitlines(keepends=True)
    assert goodbye.encode() == catscii.GOODBYE
    assert set(sent) <= changes


def test_a_stream_ends_after_its_time(start):
    service = start(command=patched("catscii.STREAM_SECONDS = 1"))
    with connected(service) as connection:
        watching()(connection)
        assert read_all(connection).endswith(catscii.GOODBYE)
    eventually(lambda: open_streams(service) == 0)


def test_a_head_of_a_stream_ends_at_once_and_is_no_visit(service):
    before = service.visits()
    answer = exchange(service, b"HEAD /live HTTP/1.1\r\nHost: x\r\nUser-Agent: curl/8\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 200 OK\r\n") and answer.endswith(b"\r\n\r\n")
    assert b"Content-Length" not in answer and b"Transfer-Encoding" not in answer
    assert (open_streams(service), service.visits()) == (0, before)


@pytest.mark.parametrize(("headers", "query", "type_"), [
    (CHROME, "", "text/html"), (CURL, "?format=html", "text/html"), (CURL, "?format=text", "text/plain"),
    (CURL, "?format=json", "application/json"), ({"User-Agent": "HTTPie/3.2"}, "", "text/plain"),
])
def test_who_cannot_show_a_cat_that_moves_gets_a_still_one_and_a_sentence(service, headers, query, type_):
    before = counted(service)
    answer = service.get(f"/live{query}", headers)
    note = f"This cat moves in a terminal: curl -N {service.url}/live"
    assert answer.status == 200 and note in answer.data.decode()
    assert answer.headers["Content-Type"].startswith(type_)
    assert counted(service) == before + 1
    assert service.get("/live?format=png").status == 400


def test_half_of_the_streams_are_one_for_each_client_and_no_more_are_opened_than_there_may_be(start):
    service = start(command=patched("catscii.STREAMS = 4"), CLIENT_IP_HEADER="X-Real-IP")
    with contextlib.ExitStack() as stack:
        def status(client: int, expected: int) -> socket.socket:
            (connection,) = stack.enter_context(crowd(service, 1, watching(headers=f"X-Real-IP: 192.0.2.{client}\r\n")))
            assert connection.recv(65536).startswith(b"HTTP/1.%d %d" % (expected != 200, expected))
            return connection

        streams = [status(client, expected) for client, expected in
                   ((1, 200), (1, 200), (1, 503), (2, 200), (2, 503), (3, 200), (4, 503))]
        assert open_streams(service) == 4
        streams[0].close()
        eventually(lambda: open_streams(service) == 3)
        status(4, 200)


def test_a_client_that_reads_nothing_misses_changes_and_then_sees_the_cat_as_it_is(start):
    service = start(command=patched(LIVELY + "catscii.STREAM_SECONDS = 6"))
    size = {"width": 200, "height": 100}
    watch = watching("/live?width=200&height=100")
    with (connected(service) as fast, connected(service, receive_buffer=4096) as slow):
        watch(slow)
        watch(fast)
        seen = read_all(fast).decode().partition("\r\n\r\n")[2]
        missed = read_all(slow).decode().partition("\r\n\r\n")[2]
    film, _, _, first = current_film(missed, **size)
    assert seen.startswith(first) and seen.count("\n") > first.count("\n") + 9
    changes = [film.change(catscii.STILL, moment).decode() for moment in MOMENTS]
    rest = missed.removeprefix(first).removesuffix(catscii.GOODBYE.decode())
    assert rest in ["", *changes]


SLOW_CHANGES = """import time
change = catscii.Film.change
def changed_later(*arguments):
    time.sleep(0.2)
    return change(*arguments)
catscii.Film.change = changed_later
"""


def test_many_films_do_not_hold_up_others_and_take_turns(start):
    service = start(command=patched(LIVELY + SLOW_CHANGES))
    widths = range(20, 40)
    with contextlib.ExitStack() as stack:
        clients = []
        for width in widths:
            (client,) = stack.enter_context(crowd(service, 1, watching(f"/live?width={width}")))
            clients.append(client)
        eventually(lambda: open_streams(service) == len(widths), 200)
        begun = time.monotonic()
        for _ in range(3):
            assert service.get("/health").status == 200
        assert time.monotonic() - begun < 0.2 * len(widths), "less than one turn with all films would take"
        for client in clients:
            assert sees_a_change(client)


def test_a_stream_goes_on_when_nothing_moves_for_longer_than_clients_may_be_silent(start):
    quiet = "catscii.ACTS = {name: [(moment, 4) for moment, _ in act] for name, act in catscii.ACTS.items()}\n"
    service = start(command=patched(quiet + "catscii.SILENT_CONNECTION_SECONDS = 1"))
    with crowd(service, 1, watching()) as [client], connected(service) as silent:
        assert read_all(silent) == b""
        assert sees_a_change(client)


@pytest.mark.parametrize("unread", [0, 3])
def test_streams_take_no_thread_and_end_well_with_the_service_which_does_not_wait_for_readers(start, unread):
    service = start(command=patched(LIVELY + "catscii.GRACE_SECONDS = 3600"))
    streams = catscii.QUICK_THREADS + catscii.PLACES + 5

    def watch(connection: socket.socket) -> None:  # one after the other, because few may wait for a drawing
        watching()(connection)
        assert connection.recv(12) == b"HTTP/1.0 200"

    with (crowd(service, streams, watch) as clients,
          crowd(service, unread, watching("/live?width=240&height=180"), receive_buffer=4096)):
        eventually(lambda: open_streams(service) == streams + unread)
        assert service.stop() == 0
        for client in clients:
            assert read_all(client).endswith(catscii.GOODBYE)


def test_threads_start_when_requests_need_them(start):
    service = start()

    def threads() -> int:
        return len(os.listdir(f"/proc/{service.process.pid}/task"))

    for _ in range(20):
        service.get("/")
    assert threads() < 10
    with contextlib.ExitStack() as stack:
        with suspended(service):
            clients = stack.enter_context(crowd(service, 25, asking("/cat/house-{}?width=240")))
        assert sum(map(whole_answers, map(read_answers, clients))) == 25
    assert 25 < threads() < 40


def test_the_service_collects_garbage_though_commands_do_not(start, tmp_path):
    collected = tmp_path / "collected"
    report = f"catscii.gc.callbacks.append(lambda *_: open({str(collected)!r}, 'w').close())"
    service = start(command=patched(f"catscii.gc.disable()\n{report}"))
    for seed in range(50):
        service.get(f"/cat/house-{seed}")
    assert collected.exists()


def test_blank_lines_before_requests_cost_little(start):
    service = start()
    blank_lines = 8192 * b"\r\n"

    def processor_seconds() -> float:
        fields = Path(f"/proc/{service.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = processor_seconds()
    with crowd(service, 20, lambda connection: connection.sendall(blank_lines)) as clients:
        for client in clients:
            client.sendall(HEALTH)
            assert read_all(client).startswith(b"HTTP/1.1 200 OK")
    assert processor_seconds() - before < 3, "a parser for each blank line takes eight seconds"


def test_a_long_method_is_cut_in_the_log(start):
    service = start()
    with connected(service) as connection:
        connection.sendall(b"A" * 9000 + b" / HTTP/1.0\r\n\r\n")
        assert read_all(connection).split()[1] == b"405"
    assert service.stop() == 0
    (line,) = [line for line in service.log if line["fields"].get("status") == 405]
    assert line["fields"]["method"] == "A" * 200


def test_a_long_list_of_addresses_takes_no_memory_beyond_the_last_one():
    catscii.client_at.cache_clear()
    for number in range(10):
        assert catscii.client_of(f"{number}{'x' * 9999}, 192.0.2.1") == "192.0.2.1"
    catscii.client_of("y" * 9999)
    assert catscii.client_at.cache_info().currsize == 2


def test_clients_behind_a_proxy_have_a_line_each(start):
    one_thread = patched("catscii.QUICK_THREADS, catscii.PLACES = 1, 0")
    service = start(command=one_thread, CLIENT_IP_HEADER="X-Real-IP")
    address = "X-Real-IP: 1.1.1.1, 2001:db8::"
    with crowd(service, 200) as others, connected(service) as client:
        eventually(lambda: open_connections(service) == 202)
        with suspended(service):
            for number, other in enumerate(others):
                asking("/help", headers=f"{address}{number}\r\n")(other)
            asking("/help", headers=f"{address}1:0:0:0:0\r\n")(client)
        assert whole_answers(read_answers(client)) == 1
        waiting = [other for other in others if not select.select([other], [], [], 0)[0]]
        assert len(waiting) > 100, "the /64 network of the others is one client"


def drawings(service: Running) -> dict[str, int]:
    """Return how many drawings are made, waited for and refused."""
    text = service.get("/metrics").data.decode()
    shown = dict(re.findall(r"^catscii_(render_seconds_count|\w+_drawings\w*)(?:{})? (\d+)", text, re.MULTILINE))
    names = {"made": "render_seconds_count", "waiting": "waiting_drawings", "refused": "refused_drawings_total"}
    return {short: int(shown.get(name, 0)) for short, name in names.items()}


def asking_from_clients(path: str, network: str = "192.0.2.{}") -> Callable[[socket.socket], object]:
    """Return a function that requests a path on a connection, behind a proxy, each time from another client."""
    seeds = itertools.count(1)

    def ask(connection: socket.socket) -> None:
        seed = next(seeds)
        headers = f"X-Real-IP: {network.format(seed)}\r\nConnection: close\r\n"
        connection.sendall(f"GET {path.format(seed)} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())

    return ask


def statuses(connections: Sequence[socket.socket]) -> Counter[str]:
    return Counter(read_all(connection)[9:12].decode() for connection in connections)


# Each drawing waits until a file exists.
HELD_UP = """import os, time
draw = catscii.DrawingQueue.draw
def draw_later(queue, client, make):
    def made():
        while not os.path.exists({path!r}):
            time.sleep(0.02)
        return make()
    return draw(queue, client, made)
catscii.DrawingQueue.draw = draw_later
"""


@pytest.fixture
def held_up(start, tmp_path: Path) -> tuple[Running, Path]:
    """Return a service behind a proxy that has drawn one page, and a file. It draws others once the file exists."""
    go_on = tmp_path / "go on"
    service = start(command=patched(HELD_UP.format(path=str(go_on))), CLIENT_IP_HEADER="X-Real-IP")
    go_on.touch()
    assert service.get("/cat/house-0").status == 200
    go_on.unlink()
    return service, go_on


def test_what_needs_no_drawing_does_not_wait_for_drawings(held_up):
    service, go_on = held_up
    client = CURL | {"X-Real-IP": "192.0.2.1"}
    with crowd(service, 32, asking_from_clients("/cat/house-{}")) as connections:
        eventually(lambda: drawings(service)["waiting"] == 32)
        for path in ("/health", "/cat/house-0", "/help", "/analytics", "/nothing", "/?width=1"):
            assert service.get(path, client).status in (200, 400, 404)
        assert drawings(service) == {"made": 1, "waiting": 32, "refused": 0}
        go_on.touch()
        assert statuses(connections) == {"200": 32}
    assert drawings(service) == {"made": 33, "waiting": 0, "refused": 0}


def test_a_fixed_number_of_requests_waits_for_drawings_and_others_get_a_short_503(held_up):
    service, go_on = held_up
    with crowd(service, 100, asking_from_clients("/cat/house-{}")) as connections:
        eventually(lambda: drawings(service) == {"made": 1, "waiting": catscii.PLACES, "refused": 52})
        go_on.touch()
        answers = [read_all(connection) for connection in connections]
    refused = [answer for answer in answers if answer.startswith(b"HTTP/1.1 503")]
    assert len(refused) == 52 and all(b"\r\nRetry-After: 3\r\n" in answer for answer in refused)
    assert not any(b"<figure" in answer for answer in refused)
    assert sum(answer.startswith(b"HTTP/1.1 200") for answer in answers) == catscii.PLACES
    assert service.get("/cat/house-1000").status == 200


@pytest.mark.parametrize("network", ["192.0.2.1", "2001:db8:0:7::{}", "::ffff:192.0.2.1"])
def test_one_client_cannot_take_all_places_for_drawings(held_up, network):
    service, go_on = held_up
    others = ["192.0.2.2", "2001:db8:0:8::1"]
    with crowd(service, 60, asking_from_clients("/cat/house-{}", network)) as connections:
        eventually(lambda: drawings(service)["refused"] == 28)
        with ThreadPoolExecutor(2) as pool:
            pages = [pool.submit(service.get, f"/cat/house-{1000 + i}", {"X-Real-IP": client})
                     for i, client in enumerate(others)]
            eventually(lambda: drawings(service)["waiting"] == catscii.PLACES_OF_A_CLIENT + 2)
            go_on.touch()
            assert [page.result().status for page in pages] == [200, 200]
        assert statuses(connections) == {"200": catscii.PLACES_OF_A_CLIENT, "503": 28}


def test_clients_take_turns_at_drawings():
    queue, begun, go_on, drawn = catscii.DrawingQueue(), threading.Event(), threading.Event(), []

    def make(client: str) -> None:
        begun.set()
        go_on.wait()
        drawn.append(client)

    with ThreadPoolExecutor(6) as pool:
        for place, client in enumerate("aaaaab", start=1):
            pool.submit(queue.draw, client, partial(make, client))
            eventually(lambda place=place: len(queue) == place and begun.is_set())
        go_on.set()
    queue.close()
    assert sorted(drawn) == [*"aaaaab"] and drawn.index("b") <= 2


def test_still_pages_of_live_wait_like_drawings(held_up):
    service, go_on = held_up
    go_on.touch()
    assert service.get("/live?format=html").status == 200
    go_on.unlink()
    with ThreadPoolExecutor(1) as pool:
        page = pool.submit(service.get, "/live?format=json")  # of the same art
        eventually(lambda: drawings(service)["waiting"] == 1)
        go_on.touch()
        assert page.result().status == 200


def test_a_page_that_many_ask_for_is_drawn_once(service):
    before = drawings(service)["made"]
    with suspended(service):
        stack = contextlib.ExitStack()
        connections = stack.enter_context(crowd(service, 12, asking_from_clients("/cat/house-4040?width=200")))
    with stack:
        assert statuses(connections) == {"200": 12}
    assert drawings(service)["made"] == before + 1


def test_the_same_art_is_drawn_once_for_all_formats_hosts_and_paths(service):
    before = drawings(service)["made"]
    for path in ("", ".json", ".png", "?background=dark", "?style=fill"):
        for host in ("a.example", "b.example"):
            headers = CHROME | {"Host": host, "X-Forwarded-Proto": "https"}
            assert service.get(f"/cat/house-4041{path}", headers).status == 200
    assert drawings(service)["made"] == before + 1
    assert service.get("/cat/house-4041.ansi").status == 200, "with another contrast"
    assert drawings(service)["made"] == before + 2


def prompt(service: Running, seconds: float = 0) -> None:
    """Assert for some seconds that new clients are answered at once."""
    end = time.monotonic() + seconds
    while True:
        begun = time.monotonic()
        assert exchange(service, HEALTH).startswith(b"HTTP/1.1 200 ") and time.monotonic() - begun < 20
        if time.monotonic() > end:
            return
        time.sleep(0.1)


@contextlib.contextmanager
def slow_headers(service: Running, begin: bytes = b"GET / HTTP/1.1\r\nHost: x\r\nX: ") -> Iterator[None]:
    def drip() -> None:
        while not over.wait(3):
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.send(b"a")

    over = threading.Event()
    with crowd(service, 1050, lambda client: client.sendall(begin)) as connections, ThreadPoolExecutor(1) as pool:
        pool.submit(drip)
        try:
            yield
        finally:
            over.set()


def readers(service: Running, path: str = "/cat/house-1?width=240", but: int = 0) -> Any:
    """Open connections that have read an answer except for its last `but` bytes."""
    with connected(service) as connection:
        asking(path)(connection)
        length = len(read_answers(connection)) - but

    def talk(connection: socket.socket) -> None:
        asking(path)(connection)
        rest = length
        while rest > 0 and (data := connection.recv(min(rest, 65536))):
            rest -= len(data)

    return crowd(service, 900, talk, receive_buffer=65536 if but else 0)


@contextlib.contextmanager
def unread_log(service: Running) -> Iterator[None]:
    service.listening.clear()
    try:
        with connected(service, 5) as connection:
            for _ in range(30):
                asking("/health", 100)(connection)
                read_answers(connection, 100)
        yield
    finally:
        service.listening.set()


@pytest.mark.parametrize(("attack", "seconds", "files", "busy"), [
    (partial(crowd, clients=10, talk=lambda connection: connection.send(b"!", socket.MSG_OOB)), 0, 1024, False),
    (unread_log, 0, 1024, False),
    (slow_headers, 10, 1024, True),
    (partial(slow_headers, begin=b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X:\r\n" * 4000), 1, 1024, True),
    (partial(crowd, clients=1100), 5, 1024, False),
    (partial(crowd, clients=100), 2, 64, False),
    (readers, 0, 1024, False),
    (partial(readers, path=LARGE.format(1)), 0, 1024, False),
    (partial(readers, but=6000), 0, 1024, False),
    (partial(crowd, clients=1000, talk=asking(HUGE), source=("127.0.0.2", 0)), 2, 1024, True),
], ids=["urgent data", "unread log", "slow headers", "slow long headers", "idle", "idle, few files", "readers of HTML",
        "readers of JSON", "readers of all but the end", "greedy"])
def test_whatever_one_client_does_others_are_answered_at_once_and_the_end_comes_in_time(
        start, attack, seconds, files, busy):
    """The service can open `files` files. If it is `busy`, it may use a core."""
    service = start(command=["prlimit", f"--nofile={files}", *PROGRAM])
    with attack(service):
        prompt(service, seconds)
        request = b"GET /cat/house-5000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert whole_answers(exchange(service, request)) == 1
        logged, used = len(service.lines), processor_seconds(service)
        time.sleep(0 if busy else 2)
        assert processor_seconds(service) - used < 0.3 and len(service.lines) - logged < 30
        links = open_files(service)
        assert resident_megabytes(service.process.pid) < 150 and not any(link.endswith("(deleted)") for link in links)
        assert sum(link.startswith("socket:") for link in links) <= 1000 + 1
        begun = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) == 0 and time.monotonic() - begun < 9 + SOON
    service.stop()
    warnings = sum(line["level"] != "INFO" for line in service.log) - 1  # one says that there are no countries
    assert warnings in (range(1, 6) if files < 100 else range(6))


@pytest.mark.parametrize(("request_", "statuses"), [
    (b"GET a://" + b"1" * 16_360 + b" x\r\n\r\n", {400, 431}),
    (b"GET / HTTP/1.1\r\nHost: x\r\nX:" + b" " * 16_300 + b"\x01\r\n\r\n", {400, 431}),
    (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX:" + b" " * 16_000 + b"a\r\n\r\n", {200, 400, 431}),
    (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + b"a:\r\n" * 4_000 + b"\r\n", {200, 400, 431}),
    (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 4_000 + b"b\r\n\r\n", {400, 431}),
    (b"GET /" + b"%" * 16_000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {400, 404}),
    (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b" " * 16_000 + b"\x01\r\n\r\n",
     {400, 413, 431}),
    (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: " + b"chunked," * 2_000 + b"\r\n\r\n", {400, 431}),
    (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 16_000 + b"\r\n\r\n", {400, 413, 431}),
], ids=lambda value: value[:50] if isinstance(value, bytes) else "")
def test_16_kib_of_anything_are_read_at_once(start, request_, statuses):
    service = start(command=patched("catscii.GRACE_SECONDS = 60"))
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(exchange, service, request_) for _ in range(24)]
        prompt(service, 0.5)
        for answer in answers:
            assert int((answer.result() or b"HTTP/1.1 000")[9:12]) in statuses
    assert service.stop() == 0


@pytest.mark.parametrize("begin", [
    b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\nX: ",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"])
def test_a_request_that_takes_too_long_to_come_is_given_up_and_others_on_a_connection_go_on(start, begin):
    service = start(command=patched("catscii.REQUEST_SECONDS = 4"))
    with connected(service) as slow, connected(service) as steady:
        slow.sendall(begin)
        for _ in range(5):  # together longer than one request may take
            steady.sendall(b"GET /health HT")
            time.sleep(1)
            steady.sendall(b"TP/1.1\r\nHost: x\r\n\r\n")
            assert whole_answers(read_answers(steady)) == 1
            with contextlib.suppress(ConnectionError):
                slow.send(b"a")
        with contextlib.suppress(ConnectionError):
            while slow.recv(65536):  # until it is closed
                pass


def test_a_log_that_is_read_again_goes_on_and_says_how_much_is_missing(start):
    service = start()
    with unread_log(service):
        prompt(service)
    service.wait_for("Log lines were dropped")
    assert service.get("/cat/house-7").status == 200
    eventually(lambda: service.log[-1]["fields"].get("path") == "/cat/house-7")
    lines = [json.loads(line)["fields"] for line in service.lines]
    dropped = [line["lines"] for line in lines if line["message"] == "Log lines were dropped"]
    assert len(dropped) < 5 and all(isinstance(number, int) and number > 0 for number in dropped)
    assert sum(line.get("path") == "/health" for line in lines) + sum(dropped) == 3001
    assert service.stop() == 0


@pytest.mark.parametrize(("host", "shown"), [("0.0.0.0", "localhost"), ("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_on_a_terminal_the_log_begins_with_an_address_to_open_and_goes_on_in_json(start, host, shown):
    (leader, terminal), (port,) = pty.openpty(), free_ports(1)
    command = ["bash", "-c", f'exec "$@" 2> {os.ttyname(terminal)}', "", *PROGRAM]
    service = start(command=command, HOST=host, PORT=str(port))
    patient = urllib3.Retry(9, backoff_factor=0.05)
    assert urllib3.request("GET", f"http://{shown}:{port}/health", retries=patient).status == 200
    assert service.stop() == 0
    first, *others = os.read(leader, 65536).decode().splitlines()
    assert first == f"open http://{shown}:{port}"
    listening = shown if host == "::1" else host
    assert f"Listening on {listening}:{port}" in [json.loads(line)["fields"]["message"] for line in others]
    os.close(leader)
    os.close(terminal)


@pytest.mark.parametrize("redirection", ["2>&-", "<&- >&- 2>&-", "2> >(exit)", "2> /dev/full", "2> TERMINAL"])
def test_it_serves_without_a_log_and_with_one_in_a_terminal_that_nobody_reads(start, redirection):
    leader, terminal = pty.openpty()
    redirection = redirection.replace("TERMINAL", os.ttyname(terminal))
    command = ["bash", "-c", f'exec "$@" {redirection}', "", *PROGRAM]
    service = start(command=command, PORT=str(free_ports(1)[0]))
    assert service.get("/health", retries=urllib3.Retry(9, backoff_factor=0.05)).status == 200
    visit(service, rounds(500))
    assert health(service)[:2] == (200, "ok") and service.get("/panic").status == 500
    assert service.stop() == 0 and visits_in(service.database) == rounds(500) and not service.lines
    os.close(leader)
    os.close(terminal)


@pytest.mark.parametrize("request_", [
    b"\x16\x03\x01\x02" * 4 + b"\r\n\r\n",
    b"GET /" + b"x" * 16_384,
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: \x01\r\n" * 2000 + b"\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n" + b"x" * 8000,
    b"GET /cat/house-1?width=240 HTTP/1.1\r\nHost: x\r\n\r\n" * 9,
], ids=["garbage", "a long path", "bad headers", "a large body", "aborted"])
def test_a_flood_of_what_is_refused_or_given_up_does_not_flood_the_log(start, request_):
    service, seconds, aborted = start(), 5 if THOROUGH else 1, b"house" in request_
    ended = threading.Event()

    def flood() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                clients = [stack.enter_context(connected(service, 3, source=("127.0.0.2", 0))) for _ in range(100)]
                for client in clients:
                    client.setsockopt(socket.SOL_SOCKET, *ABORT)
                    client.sendall(request_)
                for client in () if aborted else clients:
                    client.recv(1)

    def refused() -> float:
        requests = samples(service)["catscii_requests_total"].items()
        return sum(number for (_, status), number in requests if int(status) >= 400)

    begun = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        floods = [pool.submit(flood) for _ in range(2)]
        try:
            prompt(service, seconds)
            eventually(lambda: aborted or refused() > 500)
        finally:
            ended.set()
        for future in floods:
            future.result()
    prompt(service)
    assert resident_megabytes(service.process.pid) < 150
    others = [line for line in service.log if line["fields"].get("status", 400) >= 400]
    assert len(others) < 15 * (time.monotonic() - begun) + 10
    assert service.stop() == 0


def visits_in(database: Path) -> int:
    assert sql(database, "PRAGMA integrity_check") == [("ok",)]
    return int(sql(database, "SELECT total(count) FROM visits")[0][0])


@contextlib.contextmanager
def sent_ahead(service: Running, kinds: str, path: str, headers: str = "",
               pause: float = 0.02) -> Iterator[dict[str, bytearray]]:
    """Request sixteen pages at once with each kind of client. Yield the data received so far, and wait for the rest."""

    def read(connection: socket.socket, kind: str, data: bytearray) -> None:
        if kind == "half-closed":
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while whole_answers(data) < 16 and (part := connection.recv(65536)):
                data += part
                if kind == "slow":
                    time.sleep(pause)
                elif kind == "aborting" and len(data) > 1_000_000:
                    connection.setsockopt(socket.SOL_SOCKET, *ABORT)
                    connection.close()
                    break

    received = {kind: bytearray() for kind in kinds.split()}
    talk = asking(path, 16, headers)
    with crowd(service, len(received), talk, receive_buffer=65536) as clients, ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read, client, *item) for client, item in zip(clients, received.items(), strict=True)]
        yield received
        for reader in readers:
            reader.result()


def test_each_request_sent_ahead_is_answered_and_counted_once_however_slowly_it_is_read(start):
    service = start(command=patched("catscii.REQUEST_SECONDS, catscii.SILENT_CONNECTION_SECONDS = 4, 8"))
    headers = f"X: {'x' * 600}\r\n"  # together more than the service reads at once
    with sent_ahead(service, "fast slow half-closed", HUGE.format(1), headers, pause=0.08) as received:
        pass  # for more than 4 seconds, the service has a part of the slow client's twelfth request, and reads no more
    assert [whole_answers(data) for data in received.values()] == [16] * 3 and counted(service) == 48


@pytest.mark.timeout(1500)  # a busy machine takes seconds for a round
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_ended_again_and_again_under_load_it_has_counted_what_it_answered_and_sigterm_cuts_nothing_off(
        tmp_path, signal_number):
    counted = 0
    for _ in range(rounds(100 if signal_number == signal.SIGKILL else 30)):
        service, moment = Running(tmp_path, patched("catscii.GRACE_SECONDS = 60")), random.uniform(0, 10_000_000)
        with sent_ahead(service, "fast slow half-closed aborting", LARGE.format(1)) as received:
            eventually(lambda: sum(map(len, received.values())) >= moment)  # noqa: B023
            status = service.stop(signal_number)
        answered = {kind: whole_answers(data) for kind, data in received.items()}
        before, counted = counted, visits_in(service.database)
        assert sum(answered.values()) <= counted - before <= 64
        if signal_number == signal.SIGTERM:
            assert status == 0 and [answered[kind] for kind in ("fast", "slow", "half-closed")] == [16] * 3


# Keeps a listening socket open, passes it to the service as systemd does, and starts the service again when it ends.
# SIGHUP restarts the service. The service dies with this process: libc's prctl(PR_SET_PDEATHSIG, SIGKILL) does that.
MANAGER = f"""
import ctypes, os, signal, socket, sys
listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)  # dup2 does nothing if the socket is file 3
status = 0
while status == 0:
    service = os.fork()
    if service == 0:
        ctypes.CDLL(None).prctl(1, 9)
        os.environ["LISTEN_PID"] = str(os.getpid())
        os.environ["LISTEN_FDS"] = "1"
        os.execv(sys.executable, [sys.executable, {str(SCRIPT)!r}])
    signal.signal(signal.SIGHUP, lambda *_: os.kill(service, signal.SIGTERM))
    _, status = os.waitpid(service, 0)
"""


def test_no_connection_is_refused_while_a_service_with_a_socket_of_systemd_restarts(start):
    service = start(command=[sys.executable, "-c", MANAGER])
    restarts = rounds(30)
    ended = threading.Event()
    ask = asking("/", headers="Connection: close\r\n")

    def visit_until_the_end() -> Counter[bytes]:
        statuses = Counter[bytes]()
        while not ended.is_set():
            with connected(service) as connection:  # raises ConnectionRefusedError
                with contextlib.suppress(ConnectionError):  # closed before the request was sent
                    ask(connection)
                statuses[read_all(connection)[:15]] += 1
        return statuses

    def started() -> int:
        return sum(message.startswith("Listening on") for message in service.messages())

    with ThreadPoolExecutor(4) as pool:
        visitors = [pool.submit(visit_until_the_end) for _ in range(4)]
        try:
            for i in range(restarts):
                eventually(lambda: started() == i + 1)  # noqa: B023
                service.process.send_signal(signal.SIGHUP)
            eventually(lambda: started() == restarts + 1)
        finally:
            ended.set()
    statuses = sum((visitor.result() for visitor in visitors), Counter[bytes]())
    silent = statuses.pop(b"", 0)  # of clients that connected, and sent nothing for TIDY_SECONDS while a service ended
    assert statuses.keys() == {b"HTTP/1.1 200 OK"} and silent <= len(visitors) * restarts
    answered = statuses[b"HTTP/1.1 200 OK"]
    assert answered <= visits_in(service.database) <= answered + silent


def test_a_service_that_systemd_starts_at_the_first_connection_ignores_host_and_port(start):
    program = program_of("systemd-socket-activate")
    (port,) = free_ports(1)
    names = ["ANALYTICS_DB", "CAT_SOURCES", "HOST", "PORT"]
    variables = [f"--setenv={name}" for name in names]
    command = [program, f"--listen=127.0.0.1:{port}", *variables, sys.executable, str(SCRIPT)]
    service = start(command=command, PORT=str(port))  # which is in use
    patient = urllib3.Retry(9, backoff_factor=0.05)
    assert service.get("/", retries=patient).status == 200
    assert service.messages().count(f"Listening on 127.0.0.1:{port}") == 1
    assert service.stop() == 0 and visits_in(service.database) == 1


def with_passed(file: int, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run a service with this file as file 3, until it ends because it cannot start."""
    script = f'LISTEN_PID=$$ exec "$@" 3<&{file}'
    command = ["bash", "-c", script, "", *PROGRAM]
    environment = {**ENVIRONMENT, "CAT_SOURCES": "", **variables}
    return subprocess.run(command, env=environment, pass_fds=[file], capture_output=True, timeout=60)


@pytest.mark.parametrize(("family", "kind", "number", "reason"), [
    (socket.AF_INET, socket.SOCK_STREAM, "2", "'2' is not 1: one socket has to be passed"),
    (socket.AF_INET, socket.SOCK_STREAM, "cat", "'cat' is not 1"),
    (socket.AF_INET, socket.SOCK_STREAM, "1", "the socket has to listen on TCP"),  # it is not listening
    (socket.AF_INET, socket.SOCK_DGRAM, "1", "the socket has to listen on TCP"),
    (socket.AF_UNIX, socket.SOCK_STREAM, "1", "the socket has to listen on TCP"),
    (None, None, "1", "file 3 is no socket"),
])
def test_what_is_not_one_listening_socket_of_systemd_is_a_clear_error(tmp_path, family, kind, number, reason):
    variables = {"LISTEN_FDS": number, "ANALYTICS_DB": str(tmp_path / "x.db")}
    if family is None:
        with open(os.devnull) as file:
            result = with_passed(file.fileno(), **variables)
    else:
        with socket.socket(family, kind) as passed:
            if family == socket.AF_UNIX:
                passed.bind(str(tmp_path / "socket"))
                passed.listen()
            result = with_passed(passed.fileno(), **variables)
    assert result.returncode == 2
    assert result.stderr.decode().splitlines()[-1].startswith(f"catscii: LISTEN_FDS: {reason}")


def test_a_socket_for_another_process_is_not_used(start):
    service = start(LISTEN_PID="1", LISTEN_FDS="1")
    assert service.get("/").status == 200


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_when_the_service_serves_and_when_it_stops(start, tmp_path, abstract):
    name = f"@{tmp_path}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(60)
        manager.bind(name.replace("@", "\0"))
        service = start(NOTIFY_SOCKET=name)
        assert manager.recv(99) == b"READY=1" and service.get("/").status == 200
        assert service.stop() == 0
        assert manager.recv(99) == b"STOPPING=1"


def test_a_service_whose_manager_is_gone_serves_and_says_so(start):
    service = start(NOTIFY_SOCKET="/no/such/socket")
    told = service.wait_for("NOTIFY_SOCKET cannot be used")
    assert told["state"] == "READY=1" and "No such file" in told["error"]
    assert service.get("/").status == 200 and service.stop() == 0


@pytest.mark.parametrize(("table", "statuses"), [
    ("cats", {"/": 200, "/cat/abc": 503, "/metrics": 200}), ("visits", {"/": 200, "/analytics": 503, "/metrics": 200})])
def test_a_table_that_cannot_be_read_is_an_error_once_and_the_service_is_degraded(start, upstream, table, statuses):
    service = start(command=patched("catscii.STORED_CATS = 3"), CAT_SOURCES=upstream.the_cat_api)
    eventually(lambda: service.stored() == 3)

    def events(level: str) -> list[str]:
        return [line["fields"]["message"] for line in service.log[begun:]
                if line["level"] == level and "status" not in line["fields"]]

    begun = len(service.log)
    with another_schema(service, table):
        for _ in range(3):
            assert {path: service.get(path).status for path in statuses} == statuses
        eventually(lambda: health(service)[1] == "degraded")
        assert health(service)[0] == 200 and "no such table" in health(service)[2]
        assert table != "cats" or service.json("/")["source"] == "house"
        assert "catscii_requests_total" in samples(service)
        for path in [*statuses] * 5:
            service.get(path)
        time.sleep(1.5)
        assert len(events("ERROR")) == len(set(events("ERROR"))) and events("ERROR") and not events("INFO")
    eventually(lambda: health(service)[:2] == (200, "ok"))
    assert [service.get(path).status for path in ("/", "/analytics", "/metrics")] == [200] * 3
    time.sleep(1.5)
    assert len(events("ERROR")) == len(events("INFO")) == len(set(events("INFO"))) == (1 if table == "cats" else 2)


def many_visits(days: int, countries: int) -> list[tuple[str, str, int]]:
    """Return visits of the last days from some countries, with another number for each day and country."""
    codes = itertools.islice(map("".join, itertools.product(string.ascii_uppercase, repeat=2)), countries)
    dates = [str(datetime.now(UTC).date() - timedelta(day)) for day in range(days)]
    return [(day, code, i) for i, (day, code) in enumerate(itertools.product(dates, codes), 1)]


def test_figures_of_years_cost_no_more_than_those_of_days(start, tmp_path):
    costs = []
    for days in (10, 1460):
        service = start(ANALYTICS_DB=str(tmp_path / f"{days}.db"))
        add_visits(service.database, many_visits(days, 250))
        for _ in range(2):  # the first time, there may be more to do
            used = processor_seconds(service)
            for path in ("/metrics", "/analytics?format=json") * 20:
                assert service.get(path).status == 200
            costs.append(processor_seconds(service) - used)
    assert costs[3] < 3 * costs[1] + 0.2


def store_cat(database: Path, name: str, host: str = "localhost") -> None:
    sql(database, "INSERT INTO cats (id, source, url, fetched, picture) VALUES (?, ?, ?, ?, ?)",
        name, host, f"http://{host}/", "2026-01-01", photograph(name, (480, 360)))


def test_a_migration_may_have_any_statements_and_happens_as_a_whole_or_not_at_all(start, tmp_path):
    service = start()
    visit(service)
    assert service.stop() == 0
    migration = """
        -- a comment; with a semicolon
        DROP INDEX stored_cats; CREATE TABLE words (word TEXT); /* another; one */
        REPLACE INTO words VALUES ('CREATE; ALTER'), ('
INSERT; END;');
        CREATE TRIGGER twice AFTER INSERT ON words BEGIN
            UPDATE words SET word = CASE WHEN TRUE THEN 'x' END; DELETE FROM words WHERE FALSE;
        END;
        WITH all_words AS (SELECT * FROM words) DELETE FROM words WHERE word NOT IN all_words;  -- the end
    """
    wrong = subprocess.run(patched(f"catscii.SCHEMA += ({migration + ';DROP TABLE no_such_table'!r},)"), text=True,
                           env={"ANALYTICS_DB": str(service.database), "PORT": "0"}, capture_output=True, timeout=60)
    assert wrong.returncode == 2 and re.fullmatch("catscii: .* no such table: no_such_table\n", wrong.stderr)
    assert sql(service.database, "SELECT name FROM sqlite_schema WHERE name = 'words'") == []
    service = start(command=patched(f"catscii.SCHEMA += ({migration!r},)"))
    visit(service)
    assert counted(service) == 10
    assert sql(service.database, "SELECT * FROM words") == [("CREATE; ALTER",), ("\nINSERT; END;",)]
    assert sql(service.database, "PRAGMA user_version") == [(len(catscii.SCHEMA) + 1,)]


# Versions 4 and 5 had two layouts each. A database of version 5 may have any pair of them.
WITH_ART = "UPDATE cats SET art = NULL;"
WITH_FAILING = catscii.SCHEMA[4].replace("state TEXT", "failing INTEGER NOT NULL, state TEXT").replace("(0,", "(0, 0,")
OLD_LAYOUTS = [catscii.SCHEMA[:version] for version in range(1, len(catscii.SCHEMA))]
OLD_LAYOUTS += [(*catscii.SCHEMA[:3], WITH_ART), (*catscii.SCHEMA[:4], WITH_FAILING)]
OLD_LAYOUTS += [(*catscii.SCHEMA[:3], WITH_ART, five) for five in (catscii.SCHEMA[4], WITH_FAILING)]


@pytest.mark.parametrize("layout", [*OLD_LAYOUTS, None])
def test_sums_are_exact_whoever_writes_and_a_migration_keeps_visits_and_cats(start, tmp_path, layout):
    database, today = tmp_path / "catscii.db", str(datetime.now(UTC).date())
    if layout is None:
        start().stop()
    else:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.executescript(f"{''.join(layout)} PRAGMA user_version = {len(layout)}")
    store_cat(database, "stored")
    add_visits(database, many_visits(50, 20))
    service = start()
    assert service.json("/cat/stored")["source"] == "localhost"
    assert sql(database, "SELECT tags FROM cats") == [("",)]
    for statement in (
        "SELECT 1",
        f"INSERT INTO visits VALUES ('{today}', 'FR', 7), ('2001-02-03', 'FR', 5), ('2001-02-03', 'GB', 1)",
        f"INSERT INTO visits VALUES ('{today}', 'FR', 3) ON CONFLICT DO UPDATE SET count = count + excluded.count",
        "UPDATE visits SET count = 2 * count + 1 WHERE country < 'AF'",
        f"UPDATE visits SET country = 'JP', day = '2001-02-04' WHERE country = 'AG' AND day = '{today}'",
        "DELETE FROM visits WHERE country = 'GB' OR country = 'AH' OR count % 3 = 0",
        "DELETE FROM visits",
    ):
        sql(database, statement)
        visit(service, 1)
        eventually(lambda: health(service) == (200, "ok", ""))  # a visit that met a lock waits in memory
        countries, days = (dict(sql(database, f"SELECT {by}, sum(count) FROM visits GROUP BY {by}"))
                           for by in ("country", "day"))
        told, counts = service.json("/analytics"), samples(service)["catscii_visits_total"]
        assert (told["visits"], told["countries"]) == (sum(countries.values()), countries), statement
        assert told["days"] == {day: days.get(day, 0) for day in told["days"]} and len(told["days"]) == 30
        assert (told["today"], told["last_30_days"]) == (days[today], sum(told["days"].values()))
        assert {country: int(count) for (country,), count in counts.items()} == countries, statement


def test_a_service_suspended_for_an_hour_goes_on_where_it_was(start, upstream, tmp_path):
    """When fly.io resumes a machine, its connections are gone, and its clocks may have gone on."""
    connections, answer, later = set(), upstream.answer, tmp_path / "later"
    upstream.answer = lambda handler: (connections.add(handler.connection), answer(handler))
    service = start(CAT_SOURCES=upstream.the_cat_api, command=patched(f"""import os, time
clocks, later = (time.time, time.monotonic), lambda: 3600 * os.path.exists({str(later)!r})
time.time, time.monotonic = lambda: clocks[0]() + later(), lambda: clocks[1]() + later()
catscii.STORED_CATS, catscii.QUICK_SECONDS, catscii.SILENT_SECONDS = 8, 0.5, 60"""))
    visit(service)
    eventually(lambda: service.stored() >= 3)  # the next one is due in QUICK_SECONDS
    with suspended(service):
        later.touch()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        http.clear()
        assert service.stored() < 8
    visit(service)
    assert counted(service) == 10 and health(service)[0] == 200
    eventually(lambda: service.stored() == 8)
    assert samples(service)["catscii_refreshes_total"]["failed",] == 0
    assert "Source fails" not in service.messages()


# The output of one CGI process.
Answer = NamedTuple("Answer", [("status", str), ("headers", dict[str, str]), ("body", bytes), ("log", list[Any])])


def cgi_variables(folder: Path, **variables: str) -> dict[str, str]:
    mine = {**ENVIRONMENT, "ANALYTICS_DB": str(folder / "catscii.db"), "CAT_SOURCES": ""}
    mine |= bench_catscii.REQUEST | bench_catscii.TERMINAL | variables
    return {name: value for name, value in mine.items() if value or name != "PATH_INFO"}  # servers omit an empty one


def cgi(folder: Path, *arguments: str, **variables: str) -> Answer:
    """Answer one request in a process of its own, and wait for its children too."""
    process = run(*arguments, **cgi_variables(folder, **variables))
    head, _, body = process.stdout.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode("latin-1").split("\r\n"))
    return Answer(headers.pop("Status"), headers, body, list(map(json.loads, process.stderr.splitlines())))


@pytest.mark.parametrize("length", ["-1", "x"])
def test_cgi_does_not_wait_for_a_body_of_an_impossible_length(tmp_path, length):
    variables, pipe = cgi_variables(tmp_path, CONTENT_LENGTH=length, PATH_INFO="/health"), subprocess.PIPE
    with subprocess.Popen(PROGRAM, env=variables, stdin=pipe, stdout=pipe) as process:
        try:
            assert process.wait(60) == 0 and process.stdout.read().startswith(b"Status: 200 ")
        finally:
            process.kill()


def test_under_cgi_the_cat_of_live_is_still_and_the_answer_says_where_it_moves(tmp_path):
    answer = cgi(tmp_path, PATH_INFO="/live")
    assert answer.status == "200 OK"
    art, _, note = answer.body.decode().rstrip("\n").rpartition("\n")
    assert re.fullmatch(r"This cat moves in a terminal of your own: catscii\.py live house-[0-9]+", note)
    assert len(cells_of_ansi(art)) == catscii.TERMINAL_ROWS
    assert cgi(tmp_path, PATH_INFO="/analytics", QUERY_STRING="format=text").body == b"ZZ: 1\n"


def test_cgi_without_a_method_is_a_get(tmp_path):
    variables = cgi_variables(tmp_path, PATH_INFO="/health")
    del variables["REQUEST_METHOD"]
    assert subprocess.run(PROGRAM, env=variables, stdout=subprocess.PIPE).stdout.startswith(b"Status: 200 ")


@pytest.mark.parametrize(("path", "variables"), [
    *((f"/cat/house-1.{suffix}", {}) for suffix in catscii.SUFFIXES),
    ("/cat/house-1", {"HTTP_ACCEPT": "text/html", "HTTP_ACCEPT_ENCODING": "gzip"}),
    ("/cat/house-1", {"QUERY_STRING": "width=50&height=9&style=ink&format=json"}),
    ("/cat/house-1", {"QUERY_STRING": "--version"}),
    ("/cat/house-1", {"REQUEST_METHOD": "HEAD"}),
    ("/cat/house-1", {"HTTP_IF_NONE_MATCH": "*"}),
    ("/", {"QUERY_STRING": "width=1"}),
    ("/", {"REQUEST_METHOD": "POST", "CONTENT_LENGTH": "0"}),
    ("/analytics", {"HTTP_ACCEPT": "text/html"}),
    ("/help", {}),
    ("/health", {}),
    ("/favicon.ico", {}),
    ("/panic", {}),
    ("/nothing", {}),
    ("/cat/café", {}),
    ("/cat/house-1/says/né", {}),
])
def test_cgi_answers_what_the_service_answers(service, tmp_path, path, variables):
    host = {"SCRIPT_NAME": "", "HTTP_HOST": urlsplit(service.url).netloc, "QUERY_STRING": ""}
    here = bench_catscii.TERMINAL | host | variables
    query = here["QUERY_STRING"]
    arguments = [query] if "=" not in query else []  # servers pass such a query as arguments too (RFC 3875, 4.4)
    answer = cgi(tmp_path, *filter(None, arguments), PATH_INFO=path, **here)
    headers = {name[5:].replace("_", "-"): value for name, value in here.items() if name.startswith("HTTP_")}
    expected = service.get(f"{path}?{query}", headers, variables.get("REQUEST_METHOD", "GET"))
    assert answer.status.split()[0] == str(expected.status)
    assert answer.body == expected.data or path == "/analytics"
    differing = {"date", "server", "connection", "content-length" * (expected.status == 304 or path == "/analytics")}
    told, those = ({name.lower(): value for name, value in each.headers.items() if name.lower() not in differing}
                   for each in (answer, expected))
    assert told == those


def test_cgi_that_is_not_set_up_tells_the_log_alone(tmp_path):
    answer = cgi(tmp_path, LOG_LEVEL="s3cret", GEOLITE2_COUNTRY_DB="/nowhere")
    assert answer.status == "500 Internal Server Error" and len(answer.body) < 100
    assert b"s3cret" not in answer.body and b"nowhere" not in answer.body
    problems = [line["fields"]["problem"] for line in answer.log]
    assert [problem.split(":")[0] for problem in problems] == ["GEOLITE2_COUNTRY_DB", "LOG_LEVEL"]


def test_cgi_tells_the_log_that_traces_are_not_set_up(tmp_path):
    answer = cgi(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT="http://localhost:9", OTEL_PROPAGATORS="pigeon")
    assert answer.status == "500 Internal Server Error"
    (line,) = answer.log
    assert line["fields"]["problem"].startswith("OTEL_PROPAGATORS: ")


def test_a_cgi_process_and_its_child_both_send_their_spans(tmp_path, upstream):
    telemetry = {"SENTRY_DSN": upstream.dsn, "OTEL_EXPORTER_OTLP_ENDPOINT": upstream.url}
    result = run(**cgi_variables(tmp_path, CAT_SOURCES=upstream.cataas, **telemetry))
    assert result.stdout.startswith(b"Status: 200 OK") and b"\nTraceback" not in result.stderr
    assert {"root_get", "get_cat_ascii_art"} <= {span.name for span in collected(upstream)}


def test_cgi_counts_the_visit_as_soon_as_the_database_is_no_longer_locked(tmp_path, monkeypatch):
    path, naps = str(tmp_path / "catscii.db"), []
    service = catscii.Service(catscii.Settings(analytics_db=path, cat_sources=()))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        service.visit_counter.count("ZZ")
        service.visit_counter.write()
        monkeypatch.setattr(catscii.time, "sleep", lambda _: naps.append(other.execute("COMMIT" if not naps else "")))
        catscii.finish_cgi(service)
    assert len(naps) == 1 and visits_in(Path(path)) == 1


def refresher(folder: Path) -> tuple[float, dict[str, Any]]:
    """Return the seconds until a cat is due, and how often each source has failed in a row."""
    ((due, sources),) = sql(folder / "catscii.db", "SELECT due, sources FROM refresher")
    return due - time.time(), {name: failures for name, (failures, _) in json.loads(sources).items()}


def set_due(folder: Path, seconds: float) -> None:
    sql(folder / "catscii.db", "UPDATE refresher SET due = ?", time.time() + seconds)


def stored_cats(folder: Path) -> int:
    return int(sql(folder / "catscii.db", "SELECT count(*) FROM cats WHERE picture NOT NULL")[0][0])


def test_of_many_requests_one_fetches_a_cat_and_none_waits_for_it(tmp_path, upstream):
    go_on, variables, pipe = threading.Event(), cgi_variables(tmp_path, CAT_SOURCES=upstream.cataas), subprocess.PIPE
    upstream.answers["/cat"] = lambda handler: (go_on.wait(30), upstream.answer(handler))
    processes = [subprocess.Popen(PROGRAM, env=variables, stdout=pipe, stderr=pipe) for _ in range(6)]
    for process in processes:
        assert process.stdout.read().startswith(b"Status: 200") and process.wait() == 0
    eventually(lambda: upstream.asked("/cat?"))
    assert stored_cats(tmp_path) == 0
    go_on.set()
    eventually(lambda: stored_cats(tmp_path) == 1)
    for process in processes:
        assert b"failed" not in process.stderr.read()
    assert upstream.asked("/cat?") == 1 and refresher(tmp_path)[0] < 1


def test_a_full_store_is_due_a_cat_a_minute_and_a_lost_lease_ends(tmp_path, upstream):
    cgi(tmp_path)  # makes the database
    for seed in range(catscii.STORED_CATS):
        store_cat(tmp_path / "catscii.db", f"cat{seed}")
    set_due(tmp_path, -1)
    for _ in range(2):
        cgi(tmp_path, CAT_SOURCES=upstream.cataas)
        assert upstream.asked("/cat?") == 1 and 30 < refresher(tmp_path)[0] < 60
    for seconds in (-1, 1e7):  # the lease of a process that died; a clock that was wrong
        set_due(tmp_path, seconds)
        cgi(tmp_path, CAT_SOURCES=upstream.cataas)
    assert upstream.asked("/cat?") == 3 and stored_cats(tmp_path) == catscii.STORED_CATS


def test_a_source_that_fails_rests_for_all_processes(tmp_path, upstream):
    upstream.answers["/cat"] = sends(b"", 500)
    name, log = urlsplit(upstream.url).netloc, []
    for failures, following in ((1, 2), (2, 6), (6, 11), (11, 12)):
        log += cgi(tmp_path, CAT_SOURCES=upstream.cataas).log
        seconds, failing = refresher(tmp_path)
        rest = min(2 ** (failures - 1), catscii.LONGEST_BACKOFF)
        assert failing == {name: failures} and rest / 2 - SOON < seconds <= rest
        state = json.dumps({name: [following - 1, 0]})
        sql(tmp_path / "catscii.db", "UPDATE refresher SET due = 0, sources = ?", state)
    upstream.answers["/cat"] = sends(b"", 429, **{"Retry-After": "5000"})
    log += cgi(tmp_path, CAT_SOURCES=upstream.cataas).log
    assert 4900 < refresher(tmp_path)[0] <= 5000
    set_due(tmp_path, -1)
    asked = upstream.asked("/cat?")
    log += cgi(tmp_path, CAT_SOURCES=upstream.cataas).log  # a cat is due, and no source may be asked
    assert upstream.asked("/cat?") == asked
    assert [line["fields"]["message"] for line in log].count("Source fails") == 1


def printed(language: str, instead: Mapping[str, object]) -> str:
    """The block of docs/deploy.md in this language, with some of its words replaced."""
    text: str = re.search(rf"```{language}\n(.*?)```", (FOLDER / "docs/deploy.md").read_text(), re.DOTALL)[1]  # type: ignore[index]
    for old, new in instead.items():
        assert old in text
        text = text.replace(old, str(new))
    return text


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
        """ + "\n".join(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so"
                        for name in ("mpm_event", "authz_core", "alias", "env", "cgid"))
    + '\nSetEnv CAT_SOURCES "{sources}"\n',
}


@pytest.fixture(params=["lighttpd", "apache2"])
def web_server(request: pytest.FixtureRequest, tmp_path: Path, upstream: Upstream) -> Iterator[str]:
    """The URL of catscii under a real web server, with the configuration of docs/deploy.md."""
    program, port = program_of(request.param), free_ports(1)[0]
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
    busy, most, visits = [], [], rounds(300)

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
def test_the_page_works_under_a_prefix(web_server, new_tab):
    tab, complaints = new_tab(), []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("response", lambda response: response.ok or complaints.append(response.url))
    show(tab, web_server + "/cat/house-1")  # another one is from the store
    with another_cat(tab):
        tab.click("#another")
    assert tab.url == tab.evaluate(LINK) and tab.url.startswith(web_server + "/cat/")
    tab.hover("figure")
    tab.click("#restyle")
    tab.wait_for_url("**/cats/cat/*?style=ink")
    tab.click("text=visitors")
    assert tab.title().startswith("Visitors") and tab.url == web_server + "/analytics"
    tab.click("text=a cat")
    assert complaints == []


def test_art_from_a_file_standard_input_and_a_url(tmp_path, upstream):
    path = tmp_path / "cat.jpg"
    path.write_bytes(photograph("/images/x"))
    options = ["--width", "60", "--style", "fill", "--format", "ansi"]
    file = run("art", str(path), *options)
    assert (file.returncode, file.stderr) == (0, b"")
    assert {len(row) for row in cells_of_ansi(file.stdout.decode())} == {60}
    assert run("art", "-", *options, stdin=path.read_bytes()).stdout == file.stdout
    without_service = {"PORT": "none", "ANALYTICS_DB": "/no/such/folder/x"}
    assert run("art", f"{upstream.url}/images/x", *options, **without_service).stdout == file.stdout


def test_art_without_a_terminal_is_80_columns_of_plain_text_unless_options_decide_otherwise():
    text = run("art", "-", stdin=photograph()).stdout
    assert {len(line) for line in text.splitlines()} == {80} and b"\x1b" not in text
    assert b"38;5;" in run("art", "house-2", "--colors", "256").stdout
    assert b"38;2;" in run("art", "house-2", "--format", "ansi").stdout, "a file gets all colours"
    for format, begins in (("html", "<!DOCTYPE html>"), ("json", '{"width": 27, "height": 10'), ("text", "")):
        small = run("art", "-", "--format", format, "--width", "40", "--height", "10", stdin=photograph()).stdout
        assert small.decode().startswith(begins) and (format != "text" or small.count(b"\n") == 10)


def in_terminal(columns: int, lines: int, *command: Any, **environment: str) -> tuple[int, str]:
    """Run a command in a terminal of this size, and return its exit status and its output."""
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environment = {**ENVIRONMENT, "TERM": "xterm-256color", **environment}
    process = subprocess.Popen([*map(str, command)], stdout=inside, stderr=inside, env=environment)
    os.close(inside)
    output = b""
    with contextlib.suppress(OSError):  # Linux raises one when the other end is closed
        while part := os.read(terminal, 65536):
            output += part
    os.close(terminal)
    return process.wait(10), output.decode().replace("\r\n", "\n")


class Watched(contextlib.AbstractContextManager["Watched"]):
    """A command in a terminal of 80x24, and what a terminal emulator shows of it."""

    def __init__(self, *command: Any, **environment: str) -> None:
        self._inside, self._outside = pty.openpty()
        self.resize(80, 24)
        environment = {**ENVIRONMENT, "TERM": "xterm-256color", **environment}
        streams = {"stdin": self._outside, "stdout": self._outside, "stderr": self._outside}
        self.process = subprocess.Popen([*map(str, command)], env=environment, start_new_session=True, **streams)
        os.close(self._outside)
        self.terminal = Terminal()
        self.output = ""

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._inside, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def has_more(self) -> bool:
        """Return whether a line is there, or something comes within a second."""
        return "\n" in self.output or bool(select.select([self._inside], [], [], 1)[0])

    def next_line(self) -> str:
        """Show what comes until a line feed, and return it, or "" at the end of the output."""
        while True:
            line, feed, rest = self.output.partition("\n")
            if feed:
                self.terminal.show(line.replace("\r", "") + feed)
                self.output = rest
                return line + feed
            with contextlib.suppress(OSError):  # Linux raises one when the other end is closed
                if part := os.read(self._inside, 65536):
                    self.output += part.decode()
                    continue
            self.terminal.show(self.output)
            self.output = ""
            return ""

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._inside)


def screens_of(film: catscii.Film, still: catscii.Art, view: catscii.View, line: str) -> dict[str, catscii.Moment]:
    """Return what a terminal shows of each moment when the art is drawn as a whole."""
    screens = {}
    for moment in [*MOMENTS, catscii.STILL]:  # the last one of equals counts
        art = catscii.to_ansi(redrawn(film, still, moment), view.colors)
        screens[str(Terminal(art + line).seen())] = moment
    return screens


def test_curl_in_a_terminal_shows_whole_moments_of_a_cat_and_can_be_stopped_after_each(start):
    service = start(command=patched(LIVELY))
    with Watched(shutil.which("curl"), "--silent", f"{service.url}/live") as watched:  # also without -N
        lines = 0
        whole = ""
        while lines < catscii.TERMINAL_ROWS + 1:
            assert watched.next_line()
            lines += 1
        for name in reversed(catscii.house_cats(2)):
            film, still, view = film_of(catscii.seed_of(name) or 0)
            line = catscii.live_line(catscii.draw_house_cat(film.seed).info["description"])
            screens = screens_of(film, still, view, line)
            if screens.get(str(watched.terminal.seen())) == catscii.STILL:
                break
        seen = Counter[catscii.Moment]()
        while len(seen) < 3:
            assert watched.next_line()
            whole = str(watched.terminal.seen())
            seen[screens[whole]] += 1
        with suspended(service):  # so that curl is not stopped while it writes
            while watched.has_more():
                assert watched.next_line()
                whole = str(watched.terminal.seen())
            watched.process.send_signal(signal.SIGINT)
            while watched.next_line():
                pass
        assert str(watched.terminal.seen()) == whole and whole in screens
        assert not watched.terminal.screen.cursor.hidden and watched.terminal.screen.cursor.x == 0


@pytest.mark.parametrize(("environment", "colors"), [
    ({}, "256"), ({"COLORTERM": "truecolor"}, "true"), ({"TERM": "linux"}, "16")])
def test_live_fills_the_window_with_a_cat_that_moves_until_ctrl_c(environment, colors):
    code = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import catscii\n{LIVELY}"
    code += "sys.exit(catscii.main(['live', 'house-42']))"
    with Watched(sys.executable, "-c", code, **environment) as watched:
        film, still, view = film_of(42, colors=colors, width=80)
        line = catscii.live_line(catscii.draw_house_cat(42).info["description"])
        screens = screens_of(film, still, view, line)
        for _ in range(catscii.TERMINAL_ROWS + 1):
            assert watched.next_line()
        assert screens[str(watched.terminal.seen())] == catscii.STILL
        seen = Counter[catscii.Moment]()
        while len(seen) < 3:
            assert watched.next_line()
            seen[screens[str(watched.terminal.seen())]] += 1
        watched.resize(60, 14)
        watched.terminal.screen.resize(14, 60)
        while "\x1b[2J" not in watched.next_line():
            pass
        for _ in range(12):
            assert watched.next_line()
        assert watched.terminal.screen.display[-2].startswith(line[4:20]), "the smaller window is filled again"
        watched.process.send_signal(signal.SIGINT)
        while watched.next_line():
            pass
        assert watched.process.wait(SOON) == 0
        cursor = watched.terminal.screen.cursor
        assert (cursor.x, cursor.y, cursor.hidden) == (0, 13, False)
        assert cursor.attrs == watched.terminal.screen.default_char


def test_live_shows_a_still_cat_where_none_can_move():
    still = "catscii: the cat keeps still: it moves in a terminal with colours only\n"
    result = run("live", "house-42")
    assert (result.returncode, result.stderr.decode()) == (0, still)
    assert result.stdout == run("art", "house-42").stdout
    for variables in ({"TERM": "dumb"}, {"NO_COLOR": "1"}):
        status, output = in_terminal(80, 24, *PROGRAM, "live", **variables)
        assert status == 0 and output.startswith(still) and "\x1b" not in output
    wrong = run("live", "tom")
    assert (wrong.returncode, wrong.stdout) == (1, b"") and b"'tom': house cats are house-0 to" in wrong.stderr


@pytest.mark.parametrize(("window", "options", "size"), [
    ((80, 24), "", (61, 23)),
    ((120, 40), "", (104, 39)),
    ((40, 20), "", (40, 15)),
    ((12, 20), "", (12, 5)),
    ((300, 100), "", (240, 90)),
    ((80, 1), "", (3, 1)),
    ((80, 24), "--width 40", (40, 15)),
    ((80, 24), "--height 100", (80, 30)),
    ((80, 24), "--height 10", (27, 10)),
])
def test_art_in_a_terminal_leaves_a_line_for_the_prompt_unless_options_decide_otherwise(window, options, size):
    status, output = in_terminal(*window, *PROGRAM, "art", "house-2", *options.split())
    rows = cells_of_ansi(output)
    assert (status, len(rows[0]), len(rows)) == (0, *size)


@pytest.mark.parametrize(("options", "environment", "code"), [
    ("", {}, "8;5;"),
    ("", {"COLORTERM": "truecolor"}, "8;2;"),
    ("", {"COLORTERM": "24bit"}, "8;2;"),
    ("", {"COLORTERM": "yes"}, "8;5;"),
    ("", {"NO_COLOR": "1", "COLORTERM": "truecolor"}, ""),
    ("", {"NO_COLOR": ""}, "8;5;"),
    ("", {"TERM": "dumb"}, ""),
    ("", {"TERM": "linux"}, "[10"),
    ("", {"TERM": "linux", "COLORTERM": "truecolor"}, "8;2;"),
    ("--colors true", {}, "8;2;"),
    ("--colors 16", {"COLORTERM": "truecolor"}, "[10"),
    ("--colors 256", {"NO_COLOR": "1"}, "8;5;"),
    ("--format ansi", {"TERM": "dumb"}, "8;5;"),
])
def test_art_in_a_terminal_heeds_its_colours_unless_options_decide_otherwise(options, environment, code):
    status, output = in_terminal(40, 20, *PROGRAM, "art", "house-2", *options.split(), **environment)
    rows = cells_of_ansi(output)
    assert (status, len(rows[0]), len(rows)) == (0, 40, 15)
    assert code in output and ("\x1b" in output) == bool(code)
    assert not any(other in output for other in {"8;5;", "8;2;"} - {code})


UNUSED = {"bottle", "waitress", "http.client", "sqlite3", "ssl", "urllib3", "maxminddb", "certifi", "dataclasses"}


@pytest.mark.parametrize(("arguments", "also_unused"), [
    ("--version", {"PIL.Image", "argparse", "socket", "logging", "subprocess", "random", "json", "urllib.parse"}),
    ("--help", {"PIL.Image", "argparse", "socket", "logging", "subprocess", "random", "json", "urllib.parse"}),
    ("art house-1", {"socket", "subprocess", "json", "urllib.parse"}),
    ("art cat.jpg", {"random", "json", "urllib.parse", "PIL.PngImagePlugin", "PIL.ImageDraw"}),
    ("art cat.png", {"random", "json", "urllib.parse", "PIL.ImageDraw"}),
])
def test_a_command_imports_only_what_it_needs(arguments, also_unused, tmp_path):
    (tmp_path / "cat.jpg").write_bytes(photograph(1, (64, 48)))
    (tmp_path / "cat.png").write_bytes(photograph(1, (64, 48), "PNG"))
    listing = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
    running = "import catscii; catscii.end(catscii.main(sys.argv[1:]))"
    options = {"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 60}
    result = subprocess.run([sys.executable, "-c", listing + running, *arguments.split()], env=ENVIRONMENT, **options)
    bare = subprocess.run([sys.executable, "-c", listing], env=ENVIRONMENT, **options)
    imported = set(result.stderr.split()) - set(bare.stderr.split())
    assert result.returncode == 0 and result.stdout and "catscii" in imported
    assert not imported & (UNUSED | also_unused)


def test_art_of_a_file_starts_no_program(tmp_path):
    path = tmp_path / "cat.jpg"
    path.write_bytes(photograph())
    code = f"""
import sys
sys.path.insert(0, {str(FOLDER)!r})
import catscii
watched = ("os.fork", "os.exec", "os.posix_spawn", "os.system", "subprocess.Popen")
sys.addaudithook(lambda event, arguments: event in watched and print(event, file=sys.stderr))
sys.exit(catscii.main(["art", {str(path)!r}]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "os.fork\n") and result.stdout.count("\n") > 10


class Slowly:
    """`art` of a picture from a pipe or a URL, whose bytes come when the test sends them."""

    def __init__(self, source: str, upstream: Upstream, **options: Any) -> None:
        self._parts: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        upstream.answers["/slow"] = self._answer
        self._from_pipe = source == "-"
        command = [*PROGRAM, "art", "--width", "40", source if self._from_pipe else f"{upstream.url}/slow"]
        environment = {**ENVIRONMENT, "TERM": "xterm-256color"}
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, **options)

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        part = self._parts.get(timeout=60)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(photograph())))
        handler.end_headers()
        while part:
            handler.wfile.write(part)
            part = self._parts.get(timeout=60)

    def send(self, part: bytes, last: bool = False) -> None:
        if self._from_pipe:
            self.process.stdin.write(part)
            self.process.stdin.flush()
            if last:
                self.process.stdin.close()
        else:
            self._parts.put(part)
            if last:
                self._parts.put(b"")


@pytest.mark.parametrize(("source", "arrived"), [("-", "1,000 bytes"), ("URL", "1,000 of {:,} bytes")])
def test_a_picture_that_arrives_slowly_shows_its_progress_in_a_terminal(source, arrived, upstream):
    data = photograph()
    terminal, inside = pty.openpty()
    slowly = Slowly(source, upstream, stdout=inside, stderr=inside)
    os.close(inside)
    output = ""

    def show_until(words: str) -> None:
        nonlocal output
        while words not in output:
            output += os.read(terminal, 65536).decode()

    show_until("\r\x1b[Kcatscii: 0 bytes")
    slowly.send(data[:1000])
    show_until(f"\r\x1b[Kcatscii: {arrived.format(len(data))}")
    slowly.send(data[1000:], last=True)
    with contextlib.suppress(OSError):  # Linux raises one when the other end is closed
        while part := os.read(terminal, 65536):
            output += part.decode(errors="replace")
    os.close(terminal)
    art = output.rpartition("\r\x1b[K")[2].replace("\r\n", "\n")
    assert slowly.process.wait(60) == 0 and {len(row) for row in cells_of_ansi(art)} == {40}


@pytest.mark.parametrize("source", ["-", "URL"])
def test_a_picture_that_arrives_slowly_shows_no_progress_elsewhere(source, upstream):
    slowly = Slowly(source, upstream, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(1.5)  # in a terminal, the progress would show after half a second
    slowly.send(photograph(), last=True)
    assert slowly.process.stdout.read().count(b"\n") > 10 and slowly.process.stderr.read() == b""
    assert slowly.process.wait(60) == 0


def test_an_interrupt_ends_the_command_without_a_traceback():
    pipe = subprocess.PIPE
    with subprocess.Popen([*PROGRAM, "art", "-"], env=ENVIRONMENT, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        reads = Path(f"/proc/{process.pid}/wchan"), Path(f"/proc/{process.pid}/syscall")
        eventually(lambda: "pipe" in reads[0].read_text() or reads[1].read_text().startswith("0 0x0 "))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT
        assert process.stdout and process.stderr
        assert process.stdout.read() + process.stderr.read() == b""


def test_progress_is_gone_when_an_error_is_shown_and_does_not_show_for_what_comes_at_once(tmp_path):
    art = f"{sys.executable} -m catscii art"
    status, output = in_terminal(80, 24, "bash", "-c", f"(sleep 1; echo no picture) | {art} -")
    assert status == 1 and output.rpartition("\r\x1b[K")[2].startswith("catscii: '-': not a picture")
    assert "\r" not in in_terminal(80, 24, "bash", "-c", f"{art} - <<< 'no picture'")[1]


def test_art_alone_is_a_house_cat_and_a_name_is_that_one_and_a_png_goes_to_no_terminal():
    art = catscii.render(catscii.draw_house_cat(42), 80)
    assert json.loads(run("art", "house-42", "--format", "json").stdout)["rows"] == list(art.rows)
    assert len({run("art").stdout for _ in range(4)}) > 1
    assert run("art", "house-42", "--format", "png").stdout == catscii.to_png(art, "dark")
    status, output = in_terminal(80, 24, *PROGRAM, "art", "house-42", "--format", "png")
    assert (status, output) == (2, "catscii: a terminal cannot show a PNG: send it to a file, as with > cat.png\n")


def test_art_says_a_text_beside_the_cat_within_the_terminal():
    art = catscii.render(catscii.draw_house_cat(2), 40, colors="none", style="ink")
    shown = run("art", "house-2", "--width", "40", "--says", "Hi").stdout.decode()
    assert shown == "\n".join([*catscii.best_layout("Hi", (480, 360), 40, 240).bubble.above, *art.rows, ""])
    assert json.loads(run("art", "house-2", "--format", "json", "--says", "é").stdout)["says"] == "é"
    assert b'<p class="says"' in run("art", "house-2", "--format", "html", "--says", "Hi").stdout
    for window in ((80, 24), (40, 24), (12, 20), (80, 5)):
        for text in ("Hi", "猫" * 100):
            command = [*PROGRAM, "art", "house-2", "--says", text]
            status, output = in_terminal(*window, *command, COLORTERM="truecolor")
            rows = re.sub("\x1b[^m]*m", "", output).splitlines()
            widths = [sum(1 + (character == "猫") for character in row) for row in rows]
            assert status == 0 and max(widths) <= window[0] and len(rows) < window[1]
            assert (text[0] in "".join(rows)) == (text == "Hi" or window != (80, 5))


def test_art_says_what_standard_input_has_on_one_line_and_cuts_it():
    def said(text: str) -> str:
        options = ["--says", "-", "--format", "json", "--width", "20"]
        return json.loads(run("art", "house-2", *options, stdin=text.encode()).stdout).get("says", "")

    assert said("A line,\n\tanother\r\n   -- Anybody\n") == "A line, another -- Anybody"
    assert said("meow " * 60) == ("meow " * 40)[:197].strip() + "..." and said("") == said(" \n") == ""


def test_a_cat_greets_at_each_login(tmp_path):
    programs = {"fortune": "printf 'Cats are\\nliquid.\\n\\t-- %s\\n' Somebody",
                "catscii": f'exec {sys.executable} {SCRIPT} "$@"'}
    for name, command in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{command}\n")
        (tmp_path / name).chmod(0o755)
    (line,) = re.findall(r"(?m)^    (.*--says -.*)$", (FOLDER / "docs/deploy.md").read_text())
    (tmp_path / ".bashrc").write_text(f"{line}\n")
    home = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    status, shown = in_terminal(80, 24, "bash", "-ic", "exit", **home)
    assert status == 0 and "Cats are" in shown and "8;5;" in shown
    silent = home | {"BASH_ENV": str(tmp_path / ".bashrc")}  # what ssh and scp run reads ~/.bashrc too
    assert subprocess.check_output(["bash", "-c", "true"], env=silent, stderr=subprocess.STDOUT) == b""
    script = printed("shell", {"/usr/games/": f"{tmp_path}/", "/usr/local/bin/": f"{tmp_path}/"})
    (tmp_path / "60-catscii").write_text(script)
    (tmp_path / "60-catscii").chmod(0o755)
    shown = subprocess.check_output([tmp_path / "60-catscii"], env={}, text=True)
    rows = re.sub("\x1b[^m]*m", "", shown).splitlines()
    assert "8;5;" in shown and "liquid." in shown and len(rows) == 22 and max(map(len, rows)) <= 80


def test_art_shows_a_random_cat_like_some_words():
    found = {run("art", "--like", "Calico", "--format", "html").stdout for _ in range(3)}
    assert len(found) == 3


@pytest.mark.parametrize(("command", "status", "words"), [
    ("art /no/such.jpg", 1, "catscii: '/no/such.jpg': No such file or directory"),
    ("art house-99999999999", 1, "No such file or directory; house cats are house-0 to house-4294967295"),
    (f"art {__file__}", 1, f"catscii: {__file__!r}: not a picture"),
    ("art /no/such.jpg 2>&-", 1, ""),
    ("art http://127.0.0.1:9/x.jpg", 1, "catscii: 'http://127.0.0.1:9/x.jpg': "),
    ("art house-1 --format json > /dev/full", 1, "catscii: standard output: No space left on device"),
    ("--help > /dev/full", 1, "catscii: standard output: No space left on device"),
    ("--help >&-", 2, "catscii: standard output is closed"),
    ("art house-1 >&-", 2, "catscii: standard output is closed"),
    ("art house-1 | true", 1, ""),  # a closed pipe is quiet
    ("draw", 2, "draw"),
    ("art /dev/null", 1, "catscii: '/dev/null': it is empty"),
    ("art - --width 9", 2, "'9' is not a whole number from 20 to 240"),
    ("art - --style x", 2, "'x' is not one of fill, ink"),
    ("art --like dog", 1, "catscii: no house cat like 'dog' was found; the words are amber, "),
    ("art house-1 --like calico", 2, "catscii: --like chooses a house cat, so no picture can be given"),
    ("art - --says -", 2, "catscii: standard input cannot be both the picture and what the cat says"),
    ("art --says $'\\e[31m'", 2, "argument --says: a cat cannot say '\\x1b', which is not a printable character"),
    ("art --says - <<< $'\\e[31m'", 2, "catscii: --says: a cat cannot say '\\x1b', which is not"),
    ("art --says \"$(printf %201s)\"", 2, "argument --says: 201 characters are more than the 200 that a cat can say"),
])
def test_art_explains_what_is_wrong_in_one_line(command, status, words):
    script = f"set -o pipefail; {sys.executable} -m catscii {command}"
    result = subprocess.run(["bash", "-c", script], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    *before, line = result.stderr.splitlines() or [""]
    assert result.returncode == status and words in line and (status == 2 or not before)
    assert bool(words) == bool(line) and "Traceback" not in result.stderr and not result.stdout


# ---------------------------------------------------------------------------------------------------------------------
# Packaging: fly.toml, docs/deploy.md, and default.nix and flake.nix under a real Nix, without nixpkgs
# ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.nix  # each key is one of https://fly.io/docs/reference/configuration/
def test_fly_is_told_what_the_service_and_the_image_are():
    fly = tomllib.loads((FOLDER / "fly.toml").read_text())
    assert " ".join(fly) == "app primary_region kill_signal kill_timeout build http_service metrics mounts vm"
    assert fly["kill_signal"] == "SIGTERM" and fly["build"] == {"image": "catscii:latest"}
    assert fly["kill_timeout"] > catscii.GRACE_SECONDS + 2 * catscii.FLUSH_SECONDS + 1
    service = fly["http_service"]
    assert service.pop("concurrency").keys() == {"type", "soft_limit", "hard_limit"}
    (check,) = service.pop("checks")
    assert check.keys() == {"method", "path", "grace_period", "interval", "timeout"} and check["path"] == "/health"
    asleep = {"auto_stop_machines": "suspend", "auto_start_machines": True, "min_machines_running": 0}
    assert service == {"internal_port": 8080, "force_https": True, **asleep}
    assert fly["metrics"] == {"port": 8080, "path": "/metrics"}
    mount = fly["mounts"]
    assert mount.pop("source") and mount.pop("destination") == "/db" and mount.pop("initial_size") == "1gb"
    grows = {"auto_extend_size_threshold": 80, "auto_extend_size_increment": "1GB", "auto_extend_size_limit": "5GB"}
    assert mount == {**grows, "snapshot_retention": 14}
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


@contextlib.contextmanager
def proxied(name: str, service: Running, folder: Path, authority: trustme.CA, ca_file: str,
            edit: Callable[[str], str] = str) -> Iterator[Any]:
    """Run this proxy as docs/deploy.md configures it, and yield a function that asks it for a path."""
    pem = folder / "cats.example.org.pem"
    authority.issue_cert(host := pem.stem).private_key_and_cert_chain_pem.write_to_path(str(pem))
    command, around, words = PROXIES[name]
    configuration = around % printed(name, words | {"127.0.0.1:8080": service.url.removeprefix("http://")})
    for old, new in ("FOLDER", str(folder)), ("PORT", str(port := free_ports(1)[0])):
        command, configuration = command.replace(old, new), configuration.replace(old, new)
    (folder / "conf").write_text(edit(configuration))
    checks = {"ca_certs": ca_file, "server_hostname": host, "assert_hostname": host, "retries": False}
    clients: dict[str, urllib3.HTTPSConnectionPool] = {}

    def get(path: str, client: str = "127.0.0.2", whole: bool = True, **headers: str) -> urllib3.BaseHTTPResponse:
        if client not in clients:
            clients[client] = urllib3.HTTPSConnectionPool("127.0.0.1", port, source_address=(client, 0), **checks)
        headers = CHROME | headers | {"Host": host}
        return clients[client].request("GET", path, headers=headers, preload_content=whole)

    words = [program_of(name), *command.split()[1:]]
    with open(folder / "log", "w") as log, web_server_of(
            words, lambda: get("/health"), cwd=folder, env={"HOME": str(folder)}, stderr=log):
        yield get


@pytest.mark.cgi
@pytest.mark.parametrize("name", PROXIES)
def test_behind_a_proxy_clients_have_their_own_country_and_links_are_https(name, start, tmp_path, authority, ca_file):
    countries = {"127.0.0.1/32": "DE", "127.0.0.2/32": "FR", "81.2.69.0/24": "GB"}
    write_mmdb(tmp_path / "c", "Test", {network: {"country_code": code} for network, code in countries.items()})
    header = re.search("CLIENT_IP_HEADER=(.*)", printed("ini", {}))[1]
    service = start(GEOLITE2_COUNTRY_DB=f"{tmp_path}/c", CLIENT_IP_HEADER=header)
    forged = {"X-Real-IP": "81.2.69.1", "X-Forwarded-For": "81.2.69.1", "X-Forwarded-Proto": "http"}
    with proxied(name, service, tmp_path, authority, ca_file) as ask:
        get = partial(ask, **forged)
        for _ in range(9):
            assert b'"og:url" content="https://cats.example.org/cat/house-1"' in get("/cat/house-1").data
        assert service.visits() == b"FR: 9\n"
        closed = rf"(?m)^.*:{urlsplit(service.url).port:04X} .* 06 [0-9A-F]+:"  # in TIME_WAIT
        assert len(re.findall(closed, Path("/proc/net/tcp").read_text())) <= 2, "the proxy keeps its connections"


@pytest.mark.cgi
@pytest.mark.parametrize("name", PROXIES)
def test_through_a_proxy_each_change_of_a_cat_comes_at_once(name, start, tmp_path, authority, ca_file):
    service = start(command=patched(LIVELY))
    with (proxied(name, service, tmp_path, authority, ca_file) as get,
          contextlib.closing(get("/live?format=ansi", whole=False)) as stream):
        first = b""
        while first.count(b"\n") <= catscii.TERMINAL_ROWS:
            first += stream.read1(65536)
        while not re.fullmatch(rb"[^\n]{1,4000}\n", stream.read1(65536)):
            pass  # until a change comes alone


@pytest.mark.cgi
@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_keeps_metrics_and_the_drill_from_the_public(name, start, tmp_path, authority, ca_file):
    with proxied(name, start(), tmp_path, authority, ca_file) as get:
        for path in ("/metrics", "/panic", "/metrics?x=y", "/%6detrics", "/cat/../metrics", "/./panic"):
            assert get(path).status == 403
        for path in ("//metrics", "/metrics/", "/METRICS", "/metrics;x", "/metrics%00"):
            assert b"catscii_requests_total" not in get(path).data


@pytest.mark.cgi
def test_nginx_limits_the_requests_of_each_client_and_its_log_has_no_address(start, tmp_path, authority, ca_file):
    with proxied("nginx", start(), tmp_path, authority, ca_file) as get:

        for client in ("127.0.0.3", "127.0.0.4"):  # the second may ask although the first asked for too much
            status = partial(lambda client, _: get("/health", client).status, client)
            assert {*map(status, range(40))} == {200}, "so many may come at once"
            with ThreadPoolExecutor(8) as pool:
                eventually(lambda: 429 in [*pool.map(status, range(100))])  # noqa: B023
        get("/panic", "127.0.0.3")
    assert not re.search(r"127\.0\.0\.[34]", (tmp_path / "log").read_text())


@pytest.mark.cgi
def test_nginx_lets_a_prometheus_on_another_machine_collect_metrics(start, tmp_path, authority, ca_file):
    def edit(configuration: str) -> str:
        (lines,) = re.findall(r"location / \{(.*?)\}", configuration, re.DOTALL)
        allowed = "location = /metrics { allow 127.0.0.3; deny all; " + lines + "}\nlocation / {"
        return configuration.replace("location / {", allowed)

    with proxied("nginx", start(), tmp_path, authority, ca_file, edit) as get:
        assert b"catscii_requests_total" in get("/metrics", "127.0.0.3").data
        assert get("/metrics").status == get("/panic", "127.0.0.3").status == 403


def system_calls(group: str) -> set[str]:
    lines = subprocess.check_output(["systemd-analyze", "syscall-filter", group], text=True).split("\n")[1:]
    names = {name for line in lines if (name := line.strip()) and not name.startswith("#")}
    return set().union(*(system_calls(name) if name.startswith("@") else {name} for name in names))


def units() -> dict[str, str]:
    """Return the files of systemd in docs/deploy.md. Each begins with a comment that has its path."""
    blocks = re.findall(r"```ini\n(.*?)```", (FOLDER / "docs/deploy.md").read_text(), re.DOTALL)
    parts = re.split(r"(?m)^# /etc/systemd/system/(\S+)\n", "".join(blocks))[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def shell_command(unit: str) -> str:
    """Return the script of a unit's ExecStart, as systemd passes it to the shell."""
    script: str = re.search(r"ExecStart=/bin/sh -e?c '(.*?)'", units()[unit], re.DOTALL)[1]  # type: ignore[index]
    return script.replace("\\\n", "").replace("$$", "$").replace("%%", "%")


@pytest.mark.nix
def test_the_units_are_right(tmp_path):
    files = units()
    tasks = [f"catscii-{task}.{kind}" for task in ("backup", "countries") for kind in ("service", "timer")]
    assert files.keys() == {"catscii.service", "catscii.socket", *tasks}
    for name, text in files.items():
        text = text.replace("/opt/catscii/venv/bin/python3", sys.executable).replace("/opt/catscii", str(tmp_path))
        (tmp_path / name).write_text(text)
    analyze, paths = program_of("systemd-analyze"), [tmp_path / name for name in files]
    verify = [analyze, "verify", "--recursive-errors=no", *paths]
    result = subprocess.run(verify, capture_output=True, text=True)
    assert result.returncode == 0 and "catscii" not in result.stderr, result
    for moment in re.findall("OnCalendar=(.*)", "".join(files.values())):
        subprocess.run([analyze, "calendar", moment], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.nix
def test_the_timers_fetch_the_countries_and_copy_the_database(start, upstream, tmp_path):
    program_of("sqlite3")
    shell = partial(subprocess.run, shell=True, executable="/bin/sh", check=True, cwd=tmp_path)
    file = tmp_path / "dbip-country-lite.mmdb"
    address = "https://download.db-ip.com/"
    fetch = shell_command("catscii-countries.service")
    assert address in fetch
    fetch = "set -e; " + fetch.replace(address, upstream.url + "/")
    with pytest.raises(subprocess.CalledProcessError):  # DB-IP is late
        shell(fetch, stderr=subprocess.DEVNULL)
    assert not file.exists()

    def publish(country: str) -> None:
        write_mmdb(tmp_path / "new", "DBIP-Country-Lite", {"127.0.0.0/8": {"country": {"iso_code": country}}})
        packed = gzip.compress((tmp_path / "new").read_bytes())
        month = datetime.now(UTC).strftime("%Y-%m")
        upstream.answers[f"/free/dbip-country-lite-{month}.mmdb.gz"] = sends(packed)

    publish("FR")
    shell(fetch)
    service = start(GEOLITE2_COUNTRY_DB=str(file))
    service.get("/")
    publish("DE")
    shell(fetch)
    eventually(lambda: service.get("/") and b"DE" in service.visits())
    assert b"FR" in service.visits()
    copy = shell_command("catscii-backup.service")
    for old, new in (("/var/lib/catscii/catscii.db", service.database), ("/var/backups", tmp_path)):
        assert old in copy
        copy = copy.replace(old, str(new))
    for _ in range(2):  # the second replaces the copy of last week
        service.get("/")
        shell(copy)
    (made,) = tmp_path.glob("catscii-[1-7].db")
    assert visits_in(made) == visits_in(service.database)


@pytest.mark.nix
def test_the_unit_confines_a_service_that_works(start, upstream, tmp_path):
    unit = tmp_path / "catscii.service"
    text = units()[unit.name].replace("/opt/catscii/venv/bin/python3", sys.executable)
    unit.write_text(text)
    security = [program_of("systemd-analyze"), "security", "--offline=true", "--threshold=15", unit]
    result = subprocess.run(security, capture_output=True, text=True)
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
def test_the_capacity_is_that_of_the_benchmarks_and_a_request_logs_about_200_bytes(start):
    told = (FOLDER / "docs/deploy.md").read_text().partition("\n## Capacity")[2].partition("\n## ")[0]
    pages, drawings = (re.findall(r"\| ([\d,]+) per second", line) for line in re.findall(r"\| .* per second.*", told))
    measured = (FOLDER / "docs/benchmarks.md").read_text()
    microseconds = int(re.search(r"\| house cats \| [^|]+\| [^|]+\| (\d+) \|", measured)[1])  # type: ignore[index]
    milliseconds = int(re.search(r"80\ncolumns takes (\d+) ms", measured)[1])  # type: ignore[index]
    for figures, seconds in ((pages, microseconds / 1e6), (drawings, milliseconds / 1e3)):
        core, shared = (int(figure.replace(",", "")) for figure in figures)
        assert abs(core * seconds - 1) < 0.05
        assert 0.9 < shared * seconds * 16 <= 1.1
    service = start()
    for _ in range(50):
        for path in ("/", "/cat/house-1?width=100&height=40"):
            service.get(path)
    assert service.stop() == 0
    lines = [line for line in service.lines if '"GET ' in line]
    assert len(lines) == 100 and "about 200 bytes" in told
    assert 180 < statistics.mean(map(len, lines)) < 220


@pytest.mark.nix
def test_a_program_that_replicates_the_database_as_litestream_does_loses_no_visit(start):
    service = start()
    ended = threading.Event()

    def replicate() -> int:
        """Hold a lock for readers, and make checkpoints under a lock for writers. Return their number."""
        with contextlib.closing(sqlite3.connect(service.database, 60, isolation_level=None)) as connection:
            connection.execute("CREATE TABLE _litestream_lock (id INTEGER)")
            made = 0
            while not ended.is_set():
                connection.execute("BEGIN")
                connection.execute("SELECT count(*) FROM visits").fetchall()
                time.sleep(0.1)
                connection.execute("COMMIT")
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("INSERT INTO _litestream_lock VALUES (1)")
                time.sleep(0.3)  # longer than the service waits for a lock
                connection.execute("ROLLBACK")
                blocked, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                made += not blocked
            return made

    with ThreadPoolExecutor(1) as pool:
        checkpoints = pool.submit(replicate)
        for _ in range(20):
            visit(service, 10)
            time.sleep(0.05)
        assert health(service)[0] == 200
        ended.set()
        assert checkpoints.result() > 1
    eventually(lambda: counted(service) == 200)
    assert service.stop() == 0 and visits_in(service.database) == 200
    again = start()
    assert counted(again) == 200


@pytest.mark.nix
def test_a_backup_of_a_running_service_is_restored(start, tmp_path):
    program_of("sqlite3")
    (folder := tmp_path / "state").mkdir()
    section = (FOLDER / "docs/deploy.md").read_text().partition("\n## Backup")[2].partition("\n## ")[0]
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


@pytest.mark.nix
def test_the_sections_of_the_tests_are_documented():
    documented = re.search("markers: (.*?)\\.", (FOLDER / "docs/development.md").read_text(), re.DOTALL)[1]
    _, *of_the_tests = sections().values()
    assert re.findall("`(.*?)`", documented) == of_the_tests


@pytest.mark.nix
def test_the_project_is_the_script_with_its_packages():
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
    script = script_metadata(SCRIPT)
    assert project["dependencies"] == script["dependencies"]
    assert project["requires-python"] == script["requires-python"]
    assert (FOLDER / "LICENSE").read_text().startswith(project["license"])


class Newcomer:
    """Somebody who has the project, uv and an empty home."""

    def __init__(self, folder: Path) -> None:
        uv = Path(os.environ.get("UV") or shutil.which("uv") or pytest.skip("uv is not installed"))
        self.home, self.project, self.python = folder / "home", folder / "catscii", folder / "python"
        path = f"{self.python}/bin:{self.home}/.local/bin:/usr/bin:/bin"
        of_the_network = re.compile("CERT|PROXY|INDEX", re.IGNORECASE)
        kept = {name: value for name, value in os.environ.items() if of_the_network.search(name)}
        self.environment = {**kept, "HOME": str(self.home), "PATH": path}
        self.home.mkdir()
        self.project.mkdir()
        for name in "catscii.py", "pyproject.toml", "LICENSE":
            shutil.copy(FOLDER / name, self.project)
        self.files = sorted(self.project.iterdir())
        subprocess.run([uv, "venv", "--quiet", "--seed", "--python", sys.executable, self.python], check=True)
        for program in uv, uv.with_name("uvx"):
            (self.python / "bin" / program.name).symlink_to(program)

    def __call__(self, command: str) -> bytes:
        result = subprocess.run(["bash", "-euc", command], cwd=self.project, env=self.environment, capture_output=True)
        assert result.returncode == 0, result.stderr
        return result.stdout


@pytest.fixture
def newcomer(tmp_path: Path) -> Newcomer:
    return Newcomer(tmp_path)


def in_the_readme(command: str) -> str:
    assert command in (FOLDER / "README.md").read_text()
    return command


INSTALLATIONS = ["uv tool install .", "pipx install ."]
if THOROUGH:  # otherwise, pipx calls pip
    INSTALLATIONS.append("pip install .")


@pytest.mark.nix
@pytest.mark.pypi
@pytest.mark.parametrize("command", INSTALLATIONS)
def test_the_project_is_installed_as_a_command(newcomer, command):
    if command.startswith("pipx"):
        newcomer("pip install --quiet pipx")
    newcomer(in_the_readme(command))
    assert newcomer("catscii art house-42") == run("art", "house-42").stdout
    assert newcomer("catscii --version").decode() == f"catscii {catscii.__version__}\n"
    (module,) = newcomer.home.parent.rglob("site-packages/catscii.py")
    assert list(module.parent.glob("__pycache__/catscii.*.pyc")), "the next start need not compile it"
    assert sorted(newcomer.project.iterdir()) == newcomer.files


@pytest.mark.nix
@pytest.mark.pypi
def test_the_script_runs_without_an_installation_and_without_a_clone(newcomer):
    art = run("art", "house-42").stdout
    assert newcomer(in_the_readme("uvx --from . catscii art house-42")) == art
    assert newcomer(in_the_readme("./catscii.py") + " art house-42") == art
    newcomer("sed -i 's/^__version__ = .*/__version__ = \"9.9\"/' catscii.py")
    assert newcomer("uvx --from . catscii --version") == b"catscii 9.9\n", "uv must not keep the old script"
    assert sorted(newcomer.project.iterdir()) == newcomer.files
    with contextlib.closing(Upstream()) as web:
        web.answers["/catscii.py"] = sends(SCRIPT.read_bytes())
        command = in_the_readme("uv run https://").replace("https://", f"{web.url}/catscii.py")
        assert newcomer(f"{command} art house-42") == art


@pytest.mark.nix
@pytest.mark.pypi
def test_the_wheel_has_one_module_and_extras_for_telemetry(newcomer):
    newcomer("uv build --quiet --wheel --out-dir ../dist")
    (wheel,) = newcomer.project.parent.glob("dist/*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert [name for name in names if ".dist-info/" not in name] == ["catscii.py"]
    command = "uv tool install '.[sentry,otlp]'"
    assert command in (FOLDER / "docs/deploy.md").read_text()
    newcomer(command.replace(".", str(wheel), 1))
    variables = {"SENTRY_DSN": "http://k3y@localhost:9/42", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:9"}
    with Running(newcomer.home, [f"{newcomer.home}/.local/bin/catscii"], **variables) as service:
        fields = service.wait_for("Listening on ")
        assert fields["sentry"] == fields["otlp"] == "localhost"


@pytest.mark.nix
@pytest.mark.pypi
@pytest.mark.parametrize(("machine", "recipes"), [
    ("Linux x86_64", {"docker", "deploy"}), ("Linux aarch64", {"docker"}), ("Darwin arm64", set())])
def test_just_builds_the_image_where_it_can_and_says_where_it_cannot(newcomer, machine, recipes):
    programs = {"uname": f"echo {machine}", "nix": "echo 'echo the image' > result; chmod +x result; echo built",
                "docker": "echo loaded $(cat)", "fly": "echo deployed"}
    for name, script in programs.items():
        program = newcomer.python / "bin" / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    shutil.copy(FOLDER / "Justfile", newcomer.project)
    for recipe, done in ("docker", "built loaded the image"), ("deploy", "built loaded the image deployed"):
        said = newcomer(f"uvx --from rust-just just {recipe} 2> errors || cat errors").decode()
        if recipe in recipes:
            assert said.split() == done.split()
        else:
            assert f"{machine} builds another image, or none: see docs/image.md" in said and "built" not in said


# A nixpkgs of the names that default.nix and flake.nix use, on the machine's own Python and tools. Each name was looked
# up in nixpkgs 24.11 and in a copy of its master of July 2026: 26.05 lies between them. Functions take the arguments
# that are given to them here and no others, so a new one has to be looked up there first.
STAND_IN = r"""
{ system ? builtins.currentSystem }:
let
  machine = builtins.fromJSON (builtins.readFile ./machine.json);
  pkgs = import ./. { inherit system; };

  callPackage = path: args:
    let function = import path; in
    function (builtins.intersectAttrs (builtins.functionArgs function) { inherit pkgs; } // args)
    // { override = new: callPackage path (args // new); };

  # The second of three modules has options and a configuration, and the third sets its options.
  nixosSystem = { modules }:
    let
      module = import (builtins.elemAt modules 1) { inherit config lib pkgs; };
      set = (builtins.elemAt modules 2).services.catscii;
      options = module.options.services.catscii;
      config.services.catscii = builtins.mapAttrs (name: option: set.${name} or option.default) options;
    in
    { inherit (module) config; };

  lib = {
    inherit nixosSystem;
    concatStringsSep = builtins.concatStringsSep;
    escapeShellArgs = list: toString (map (word: "'${word}'") list);
    findFirst = found: default: list: builtins.head (builtins.filter found list ++ [ default ]);
    genAttrs = names: f: builtins.listToAttrs (map (name: { inherit name; value = f name; }) names);
    getBin = package: package;
    getExe = package: "${package}/bin/${package.meta.mainProgram}";
    hasInfix = part: text: builtins.length (builtins.split part text) > 1;
    hasPrefix = prefix: text: builtins.substring 0 (builtins.stringLength prefix) text == prefix;
    licenses.mit = { };
    literalExpression = text: { _type = "literalExpression"; inherit text; };
    literalMD = text: { _type = "literalMD"; inherit text; };
    mapAttrs = builtins.mapAttrs;
    mkEnableOption = name: { default = false; };
    mkIf = condition: content: if condition then content else { };
    mkOption = option: option;
    optionalAttrs = condition: attrs: if condition then attrs else { };
    optionalString = condition: text: if condition then text else "";
    optionals = condition: list: if condition then list else [ ];
    platforms = { linux = [ "x86_64-linux" "aarch64-linux" ]; darwin = [ "x86_64-darwin" "aarch64-darwin" ]; };
    removePrefix = prefix: text: builtins.substring (builtins.stringLength prefix) (-1) text;
    removeSuffix = suffix: text: builtins.substring 0 (builtins.stringLength text - builtins.stringLength suffix) text;
    splitString = separator: text: builtins.filter builtins.isString (builtins.split separator text);
    types = { attrsOf = type: type; either = one: other: one; nullOr = type: type; }
      // lib.genAttrs [ "bool" "int" "package" "path" "port" "str" ] (name: name);
  };

  runCommand =
    name: attrs@{ passthru ? { }, meta ? { }, nativeBuildInputs ? [ ], ... }: script:
    builtins.deepSeq meta derivation (
      removeAttrs attrs [ "passthru" "meta" "nativeBuildInputs" ]
      // {
        inherit name system; outputs = [ "out" ]; builder = "/bin/bash"; # `nix develop` looks for the outputs
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
  inherit callPackage lib pkgs runCommand;

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

  testers.runNixOSTest = { name, nodes, testScript }: nothing;

  mkShell = { packages, GEOLITE2_COUNTRY_DB }:
    runCommand "shell" { inherit GEOLITE2_COUNTRY_DB; nativeBuildInputs = packages; } "touch $out";

  # A layer for each store path that the configuration leads to, and one for the contents.
  dockerTools.streamLayeredImage =
    { name, tag, created, contents, extraCommands, config }:
    let
      image = runCommand "image.json" { image = builtins.toJSON { inherit created config; tag = "${name}:${tag}"; }; }
        ''echo "$image" > $out'';
      archive = runCommand "archive" { exportReferencesGraph = [ "graph" image ]; } ''
        mkdir root && cd root
        for package in ${toString contents}; do cp -r --no-preserve=mode $package/. .; done
        ${extraCommands}
        cd ..
        ${machine.base}/bin/${machine.python} -I ${./archive.py} ${image} $(grep "^$NIX_STORE/" graph | sort -u) > $out
      '';
    in
    runCommand "stream-${name}" { } ''
      echo -e "#!/bin/sh\nexec cat ${archive}" > $out
      chmod +x $out
    '';
}
// lib.genAttrs
  (lib.splitString " " "binutils-unwrapped dive flyctl just libjpeg libwebp nixfmt nixfmt-tree patchelf skopeo uv zlib")
  (name: nothing)
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

OF_THE_IMAGE = """bottle certifi maxminddb opentelemetry-exporter-otlp-proto-http opentelemetry-sdk pillow sentry-sdk
    urllib3 waitress"""
PACKAGES = """babel bottle certifi hypothesis matplotlib maxminddb netaddr opentelemetry-exporter-otlp-proto-http
    opentelemetry-sdk packaging pillow prometheus-client pyte pytest pytest-timeout pytest-xdist selenium sentry-sdk
    trustme urllib3 waitress wcwidth websocket-client"""


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
        settings = "experimental-features = nix-command flakes\nbuild-users-group =\nsandbox = false\nsubstituters ="
        folders = {f"NIX_{name.upper()}_DIR": f"{folder}/{name}" for name in ("store", "state", "log")}
        self.environment = os.environ | folders | {"HOME": str(folder), "NIX_CONFIG": settings}
        packages = {name: parts_of(name, set()) for name in PACKAGES.split()}
        machine = {"base": sys.base_prefix, "python": f"python{sys.version_info.major}.{sys.version_info.minor}",
                   "packages": packages, "mmdb_writer": parts_of("mmdb_writer", set()), "certificates": certifi.where()}
        self.machine = self.nixpkgs / "machine.json"
        for name, text in (("default.nix", STAND_IN), ("flake.nix", STAND_IN_FLAKE), ("archive.py", ARCHIVE),
                           ("machine.json", json.dumps(machine))):
            (self.nixpkgs / name).write_text(text)
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
    tools = all(map(shutil.which, ("crun", "nix", "patchelf", "skopeo", "strip")))
    reason = "crun, nix, patchelf, skopeo and strip are needed, and to be root"
    return pytest.mark.nix(pytest.mark.skipif(not tools or os.geteuid() != 0, reason=reason)(test))


@pytest.fixture(scope="session")
def nix(country_db: str) -> Iterator[Nix]:
    with tempfile.TemporaryDirectory(prefix="nix") as folder:
        yield Nix(Path(folder), country_db)
        subprocess.run(["chmod", "-R", "u+w", folder], check=True)


@with_nix
def test_the_flake_has_its_outputs_on_every_system_a_shell_for_the_tests_and_a_pinned_nixpkgs(nix):
    shown = nix("flake show", "", "--json")
    assert shown.returncode == 0, shown.stderr
    flake = json.loads(shown.stdout)
    assert flake.pop("nixosModules").keys() == flake.pop("overlays").keys() == {"default"}
    assert flake.keys() == {"packages", "apps", "checks", "devShells", "formatter"}
    systems = {"x86_64-linux", "aarch64-linux", "x86_64-darwin", "aarch64-darwin"}
    assert all(outputs.keys() == systems for outputs in flake.values())
    for system in systems:
        on_linux = system.endswith("linux")
        images = {"dockerImage", "dockerArchive"} if on_linux else set()
        assert flake["packages"][system].keys() == {"default", "bin"} | images
        assert flake["checks"][system].keys() == {"suite"} | ({"module"} if on_linux else set())
    locked = json.loads((FOLDER / "flake.lock").read_text())["nodes"]["nixpkgs"]
    assert locked["original"]["ref"] == "nixos-26.05" and len(locked["locked"]["rev"]) == 40
    code = "import hypothesis, os, trustme; print(os.stat(os.environ['GEOLITE2_COUNTRY_DB']).st_size)"
    result = nix("develop", "", "--command", "python3", "-c", code)
    assert result.returncode == 0 and int(result.stdout) > 0, result.stderr
    needs = {re.split("[<>=]", need)[0].lower() for need in script_metadata(Path(__file__))["dependencies"]}
    of_their_own = {"axe-playwright-python", "httpie", "mmdb-writer", "opencv-python-headless", "playwright"}
    assert needs - of_their_own <= set(PACKAGES.split()), "default.nix lacks a package"


@slow
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
        path = "package: (package.override { telemetry = false; }).outPath"
        overridden = nix("eval", "default", "--raw", "--apply", path)
        assert overridden.stdout == str(nix_build("--arg", "telemetry", "false")), overridden.stderr


@with_nix
def test_the_overlay_has_the_package_of_the_flake_which_says_what_it_is(nix):
    path = f"overlay: (overlay (import {nix.nixpkgs} {{ }}) {{ }}).catscii.outPath"
    result = nix("eval", "overlays.default", "--raw", "--impure", "--apply", path)
    assert result.stdout == str(nix.build("default")), result.stderr
    meta = json.loads(nix("eval", "default.meta", "--json").stdout)
    assert meta.keys() == {"description", "longDescription", "license", "mainProgram", "platforms"}
    assert meta["mainProgram"] == "catscii"
    assert {"x86_64-linux", "aarch64-linux", "x86_64-darwin", "aarch64-darwin"} <= set(meta["platforms"])
    description = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]["description"]
    assert meta["description"] == description and description in (FOLDER / "flake.nix").read_text()


def documented(section: str) -> dict[str, list[str]]:
    """Return the values by name of the first section with this title in the units of docs/deploy.md."""
    text = (FOLDER / "docs/deploy.md").read_text()
    _, _, rest = text.partition(f"\n[{section}]\n")
    lines = re.split(r"\n\[|```", rest)[0]
    values: dict[str, list[str]] = {}
    for name, value in re.findall("^([A-Za-z]+)=(.*)$", lines, re.M):
        values.setdefault(name, []).append(value)
    return values


HOST = """config: {
    inherit (config.systemd.services.catscii) environment wants after serviceConfig stopIfChanged;
    requires = config.systemd.services.catscii.requires or [ ];
    inherit (config.systemd.sockets.catscii) listenStreams;
    ports = config.networking.firewall.allowedTCPPorts;
}"""


@with_nix
def test_on_nixos_the_units_are_those_of_the_documentation(nix, tmp_path):
    """NIXPKGS may name the folder of a real nixpkgs, which replaces the stand-in."""
    nixpkgs = os.environ.get("NIXPKGS", nix.nixpkgs)
    (tmp_path / "configuration.nix").write_text('{ nixpkgs.hostPlatform = "x86_64-linux"; }')
    flake = printed("nix", {"git+https://git.example.org/catscii": f"path:{nix.flake}"})

    def host(text: str) -> Any:
        (tmp_path / "flake.nix").write_text(text)
        command = ["nix", "eval", "--json", "--no-write-lock-file", "--override-input", "nixpkgs", f"path:{nixpkgs}",
                   f"path:{tmp_path}#nixosConfigurations.cats.config", "--apply", HOST]
        result = subprocess.run(command, env=nix.environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    def words(value: Any) -> list[str]:
        """Return what systemd reads."""
        if isinstance(value, list):
            return [word for item in value for word in words(item)]
        if isinstance(value, bool):
            return ["yes" if value else "no"]
        return str(value).split()

    cats, unit, service = host(flake), documented("Unit"), documented("Service")
    assert cats["serviceConfig"].pop("ExecStart").endswith(f"-catscii-{catscii.__version__}/bin/catscii")
    assert cats["serviceConfig"].pop("EnvironmentFile") == [service.pop("EnvironmentFile")[0].removeprefix("-")]
    environment = dict(pair.split("=", 1) for pair in words(service.pop("Environment")))
    for name in "ANALYTICS_DB", "CLIENT_IP_HEADER":
        assert cats["environment"][name] == environment[name]
    of_the_folder = "ExecStart", "WorkingDirectory"
    expected = {name: words(value) for name, value in service.items() if name not in of_the_folder}
    assert {name: words(value) for name, value in cats["serviceConfig"].items()} == expected
    for name in "Requires", "Wants", "After":
        assert cats[name.lower()] == words(unit.get(name, []))
    assert cats["listenStreams"] == documented("Socket")["ListenStream"]
    assert not cats["ports"] and not cats["stopIfChanged"], "NixOS must not stop the socket"

    public = 'enable = true; address = "::"; port = 80; openFirewall = true;'
    cats = host(flake.replace("enable = true;", public))
    assert cats["listenStreams"] == ["[::]:80"] and cats["ports"] == [80]


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


@with_nix
def test_the_archive_is_the_image(nix, image):
    assert nix.build("dockerArchive").read_bytes() == image.read_bytes()


def inspect(image: Path, *arguments: str) -> Any:
    return json.loads(subprocess.check_output(["skopeo", "inspect", *arguments, f"docker-archive:{image}"]))


@with_nix
def test_the_image_is_four_things_in_a_layer_each(nix, image):
    config = inspect(image, "--config")["config"]
    (program,) = config["Entrypoint"]
    assert config.get("Cmd") is None, "`docker run` adds its arguments to the program"
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


@slow
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
    assert len(old) == len(new) == 5 and len(gzip.compress(new[changed])) < 400_000


class Container:
    """The image's files in a folder, in which crun runs the image's program without a network."""

    def __init__(self, folder: Path, image: Path) -> None:
        self.folder = folder
        self.root = folder / "rootfs"
        self.root.mkdir()
        for layer in read_layers(image).values():
            subprocess.run(["tar", "-x", "-C", self.root], input=layer, check=True)
        self.config = inspect(image, "--config")["config"]

    def command(self, *arguments: str, **variables: str) -> list[str]:
        """Return the command of `docker run catscii ARGUMENTS`."""
        specification = self.folder / "config.json"
        specification.unlink(missing_ok=True)
        subprocess.run(["crun", "spec"], check=True, cwd=self.folder)
        spec = json.loads(specification.read_text())
        user = int(self.config["User"])
        process = spec["process"]
        process["terminal"] = False
        process["args"] = [*self.config["Entrypoint"], *arguments]
        process["env"] = [*self.config["Env"], *itertools.starmap("{}={}".format, variables.items())]
        process["user"] = {"uid": user, "gid": user}
        spec["root"]["readonly"] = False
        specification.write_text(json.dumps(spec))
        return self.crun("run", "--bundle", str(self.folder), "catscii")

    def crun(self, *arguments: str) -> list[str]:
        """In a mount namespace with one hierarchy of cgroups, since crun refuses a machine that has two."""
        options = f"--root {self.folder}/c --cgroup-manager disabled"
        command = f'umount -R $0; mount -t cgroup2 0 $0; exec crun {options} "$@"'
        return ["unshare", "--mount", "sh", "-c", command, "/sys/fs/cgroup", *arguments]


@with_nix
def test_the_image_without_any_network_serves_cats_and_stops(image, tmp_path):
    container = Container(tmp_path, image)
    root = container.root
    assert (root / "tmp").stat().st_mode & 0o7777 == (root / "db").stat().st_mode & 0o7777 == 0o1777
    programs = {path.name for path in root.rglob("*") if path.parent.name == "bin"}
    assert programs == {"catscii", "python3"}, "no shell, no other program"

    telemetry = {"SENTRY_DSN": "http://abc@localhost:9/42", "HONEYCOMB_API_KEY": "k3y"}  # their packages are there
    running = Running(tmp_path, container.command(**telemetry), PORT="8080")
    try:
        running.wait_for("Listening on")
        ask = "import sys, urllib.request as r; print(r.urlopen('http://127.0.0.1:8080' + sys.argv[1]).read().decode())"
        python = next(root.rglob("*-catscii-runtime/bin/python3")).relative_to(root)
        for path, answer in {"/": "<html", "/cat/house-1?format=json": "house-1", "/health": '"ok"'}.items():
            command = container.crun("exec", "--env", "LANG=C.UTF-8", "catscii", f"/{python}", "-I", "-c", ask, path)
            assert answer in subprocess.check_output(command, text=True)
        subprocess.run(container.crun("kill", "catscii", "SIGTERM"), check=True)
        assert running.process.wait(15) == 0
        assert (root / "db/analytics.db").stat().st_uid == int(container.config["User"])
    finally:
        subprocess.run(container.crun("delete", "--force", "catscii"), capture_output=True)


@with_nix
def test_the_image_takes_the_arguments_of_catscii(image, tmp_path):
    container = Container(tmp_path, image)
    drawn = subprocess.check_output(container.command("art", "house-42"))
    assert drawn == run("art", "house-42").stdout
    read = subprocess.check_output(container.command("art", "-", "--width", "40"), input=photograph())
    assert read == run("art", "-", "--width", "40", stdin=photograph()).stdout


# Python runs this first in every process that inherits PYTHONPATH. It notes which modules are read.
LISTENER = """
import os, sys

def note(path):
    if isinstance(path, str) and path.endswith((".py", ".pyc", ".so")):
        try:
            file = os.open(TRACE, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        except OSError:  # a box can open no file
            return
        os.write(file, path.encode() + b"\\n")
        os.close(file)

def hear(event, values):
    if event == "open":
        note(values[0])
    if event == "import":  # of a C extension, if it has a file
        note(values[1])

for module in [*sys.modules.values()]:
    note(getattr(module, "__file__", None))
sys.addaudithook(hear)
"""


class Rehearsal:
    """What a program can do: the service, CGI, `art`, the box, Sentry, traces, countries and machines."""

    def __init__(self, program: list[str], folder: Path, variables: dict[str, str]) -> None:
        folder.mkdir()
        self.program, self.folder = program, folder
        self.variables = {"PATH": os.environ["PATH"], **variables}

    def run(self, *arguments: str, stdin: bytes = b"", **variables: str) -> bytes:
        """Return what the program writes to standard output."""
        environment = self.variables | variables
        command = [*self.program, *arguments]
        result = subprocess.run(command, input=stdin, capture_output=True, env=environment, timeout=60)
        assert b"\nTraceback" not in b"\n" + result.stderr
        return result.stdout

    def art(self, url: str, ca_file: str) -> list[bytes]:
        """Show a picture in each format, errors, and help."""
        pictures = [b"no picture", photograph()[:999]]
        exif = Image.Exif()
        exif[0x0112] = 6  # turned
        for format in catscii.PICTURE_FORMATS:
            mode = "P" if format in ("PNG", "GIF", "BMP", "TIFF") else "RGB"
            picture = Image.radial_gradient("L").convert(mode)
            pictures.append(encoded(picture, format, exif=exif))
        shown = [self.run("art", "-", stdin=picture) for picture in pictures]
        shown += [self.run("art", "house-7", "--format", format) for format in catscii.PARAMETERS["format"].values]
        shown += [self.run("art", each, SSL_CERT_FILE=ca_file) for each in (url, "https://b\u00fccher.example/")]
        shown += [self.run(*words.split()) for words in ("--help", "--version", "art --help", "art --width x")]
        return shown

    def cgi(self, **variables: str) -> None:
        for path in ("/", "/cat/house-1", "/analytics", "/panic"):
            answer = self.run(**cgi_variables(self.folder, PATH_INFO=path, **variables))
            assert answer.startswith(b"Status: ") and b"not set up" not in answer

    def serve(self, **variables: str) -> None:
        client = {"X-Real-IP": "81.2.69.160", "Accept-Encoding": "gzip"}
        client["traceparent"] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        with Running(self.folder, self.program, **self.variables, **variables) as service:
            eventually(lambda: service.stored() > 2)
            for path in ("/", "/analytics", "/help", "/metrics", "/panic", "/robots.txt", "/favicon.ico", "/?width=1"):
                for headers in (CURL, CHROME, client | {"Accept": "application/json"}):
                    service.get(path, headers)
            for suffix in catscii.SUFFIXES:
                assert service.get(f"/cat/house-7.{suffix}", client).status == 200
            service.get("/", method="POST")
            assert service.json("/analytics")["countries"]["GB"] > 0
            assert service.stop() == 0
        unexpected = [line for line in service.log if line["level"] in ("WARN", "ERROR")]
        assert {line["fields"]["message"] for line in unexpected} == {"Request failed"}, "of /panic"


LIBRARIES_OF_WHEELS = (  # in the stand-in, but not in nixpkgs' packages as default.nix takes them
    r"pillow\.libs/|/lib(Xau|brotli\w+|freetype|harfbuzz|lcms2|lzma|openjp2|png16|tiff|xcb|zstd)-|/libstdc\+\+\.")
PILLOW_CAN_DO_WITHOUT = {"site-packages/PIL/_avif", "site-packages/PIL/_imagingft"}
COUNTRIES = 8_000_000  # bytes of DB-IP's database, instead of which the stand-in has a tiny one


def names_of_modules(lines: str) -> set[str]:
    """Return the paths below lib/python3.x, as the image names them: without __pycache__, and all compiled."""
    paths = re.findall(r"(?m)/lib(?:64)?/python3\.\d+/(.*)$", lines)
    sources = {re.sub(r"__pycache__/(.+)\.cpython-\d+(\.opt-\d)?\.pyc$", r"\1.py", path) for path in paths}
    return {re.sub(r"\.py$", ".pyc", path) for path in sources}


@slow
@with_nix
def test_the_image_has_what_the_program_imports_and_little_more(
        image, cluster, secure_upstream, ca_file, country_db, tmp_path):
    trace = tmp_path / "trace"
    listener = tmp_path / "listener/sitecustomize.py"
    listener.parent.mkdir()
    listener.write_text(LISTENER.replace("TRACE", repr(str(trace))))
    listening = {"PYTHONPATH": f"{listener.parent}:{FOLDER}"}
    secure_upstream.answers["/picture"] = sends(photograph())
    settings = {
        "SENTRY_DSN": secure_upstream.dsn, "OTEL_EXPORTER_OTLP_ENDPOINT": secure_upstream.url,
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip", "SSL_CERT_FILE": ca_file, "ETCD_ENDPOINTS": cluster().endpoints,
        "GEOLITE2_COUNTRY_DB": country_db, "CLIENT_IP_HEADER": "X-Real-IP", "CAT_SOURCES": secure_upstream.cataas,
    }
    script = Rehearsal(PROGRAM, tmp_path / "script", listening)
    entrypoint = inspect(image, "--config")["config"]["Entrypoint"]
    packaged = Rehearsal(entrypoint, tmp_path / "packaged", {})
    shown = []
    for program in (script, packaged):
        shown.append(program.art(secure_upstream.url + "/picture", ca_file))
        program.cgi()
        program.cgi(**settings)
        secure_upstream.posts.clear()
        program.serve(**settings)
        assert {path for path, *_ in secure_upstream.posts} == {"/api/42/envelope/", "/v1/traces"}
    assert shown[0] == shown[1]

    python = Path(entrypoint[0]).read_text().split()[0].removeprefix("#!")
    runtime = Path(python).parents[1]
    sizes = {str(path): path.stat().st_size for path in runtime.rglob("*") if path.is_file()}
    own = {path: size for path, size in sizes.items() if not re.search(LIBRARIES_OF_WHEELS, path)}
    modules = {name: path for path in own for name in names_of_modules(path)}
    imported = names_of_modules(trace.read_text())
    parts = {Path(part).name for name in OF_THE_IMAGE.split() for part in parts_of(name, set())}
    other = {name for name in imported if name.startswith("site-packages/") and name.split("/")[1] not in parts}
    missing = imported - other - modules.keys()
    assert {name.split(".")[0] for name in missing} <= PILLOW_CAN_DO_WITHOUT, "the image lacks more"

    unused = {name: own[modules[name]] for name in modules.keys() - imported}
    used_folders = {folder for name in imported for folder in Path(name).parents}
    unused_folders: Counter[str] = Counter()
    for name, size in unused.items():
        for folder in {*Path(name).parents} - used_folders:
            unused_folders[str(folder)] += size
    assert not [folder for folder, size in unused_folders.items() if size > 150_000], "nothing imports these"
    assert sum(unused.values()) < 5_000_000, sorted(unused.items(), key=lambda item: item[1])[-99:]

    layers = [tarfile.TarFile(fileobj=io.BytesIO(data)) for data in read_layers(image).values()]
    entries = [entry for layer in layers for entry in layer]
    size = sum(entry.size for entry in entries if not re.search(LIBRARIES_OF_WHEELS, entry.name))
    assert size + COUNTRIES < 50_000_000


@with_nix
def test_an_image_with_more_in_it_than_it_needs_is_not_built(nix, tmp_path):
    (tmp_path / "bash").touch()
    with nix.planted("bottle", tmp_path / "bash"):
        result = nix("build", "dockerImage", "--no-link", "--print-build-logs")
    assert result.returncode != 0 and "the image must not contain bash" in result.stderr


@with_nix
def test_an_image_that_lacks_an_import_is_not_built(nix):
    default = nix.flake / "default.nix"
    lists = "  unneeded = [\n"
    text = default.read_text()
    assert lists in text
    with edited(default, text.replace(lists, f'{lists}"site-packages/PIL/GifImagePlugin.py"')):
        result = nix("build", "dockerImage", "--no-link", "--print-build-logs")
    assert result.returncode != 0 and "No module named 'PIL.GifImagePlugin'" in result.stderr


def readme() -> str:
    return (FOLDER / "README.md").read_text()


def rows_of_the_readme() -> dict[str, str]:
    """Return the rows of the tables by the names in their first column."""
    return {name: row for row in re.findall(r"(?m)^\| `.*", readme())
            for name in re.findall("`([^`]+)`", row.split("|")[1])}


@pytest.mark.cgi
def test_the_readme_is_one_page_and_a_command_of_it_starts_the_service_and_another_one_the_tests():
    setup = "    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet uv && python3 -m uv run {}catscii.py\n"
    assert len(readme().splitlines()) <= 130
    assert setup.format("") in readme() and setup.format("test_") in readme()


@pytest.mark.cgi
def test_the_readme_has_all_settings_and_no_others():
    settings = {name.upper() for name in catscii.SETTINGS}
    told = {name for name in rows_of_the_readme() if name.isupper()}
    assert told == settings | {"OTEL_*", "OTEL_EXPORTER_OTLP_ENDPOINT"}


@pytest.mark.cgi
@pytest.mark.parametrize("name", catscii.PARAMETERS)
def test_the_readme_has_the_values_of_each_parameter(name):
    values = catscii.PARAMETERS[name].values
    if isinstance(values, catscii.FreeText):
        words = [str(catscii.MAX_SAID) if name == "says" else "description"]
    elif isinstance(values, range):
        words = [f" {values[0]} to {values[-1]}"]
    else:
        words = [f"`{each}`" for each in values]
    row = rows_of_the_readme()[name]
    assert [word for word in words if word not in row] == []


@pytest.mark.cgi
def test_each_route_of_the_readme_answers(service, subtests):
    examples = {"<id>": "house-1", "<suffix>": "json", "<text>": "hello"}
    for route in (name for name in rows_of_the_readme() if name.startswith("/")):
        path = re.sub("<id>|<suffix>|<text>", lambda part: examples[part[0]], route)
        with subtests.test(route), contextlib.closing(service.get(path, preload_content=False)) as answer:
            assert answer.status in ((500, 429) if path == "/panic" else (200,))  # that of /live goes on


@pytest.mark.cgi
def test_each_command_of_the_readme_with_curl_works(service, tmp_path, subtests):
    (tmp_path / ".curlrc").write_text("fail")  # a wrong status is an error
    variables = os.environ | {"COLUMNS": "60", "LINES": "30", "CURL_HOME": str(tmp_path)}
    for command in re.findall("(?m)^    (curl .*)", readme().replace("localhost:8080", service.url)):
        with subtests.test(command):
            output = subprocess.check_output(["bash", "-euc", command], cwd=tmp_path, env=variables)
            assert output or "cat.png" in command


@pytest.mark.cgi
def test_each_link_of_the_documentation_leads_somewhere(subtests):
    for page in [*FOLDER.glob("*.md"), *FOLDER.glob("docs/*.md")]:
        for link, anchor in re.findall(r"\]\(([^):#]*)#?([^):]*)\)", page.read_text()):
            target = page.parent / link if link else page
            with subtests.test(f"{page.name}: {link}#{anchor}"):
                assert target.exists()
                titles = target.read_text().lower().replace(" ", "-").replace(".", "") if anchor else ""
                assert not anchor or f"#-{anchor}\n" in titles


mark_sections()

SLOW_TO_SET_UP = "chromium", "nix", "bad_sources", "tagged"  # fixtures that one process sets up, for all their tests


class Run:
    """A pytest plugin, which runs tests in several processes, and reports failures at once."""

    def __init__(self) -> None:
        self.scopes: dict[str, str] = {}  # of each selected test, by its name; one process runs all tests of a scope

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            slow = [name for name in SLOW_TO_SET_UP if name in item.fixturenames]  # type: ignore[attr-defined]
            self.scopes[item.nodeid] = slow[0] if slow else item.nodeid

    @pytest.hookimpl(tryfirst=True)
    def pytest_xdist_auto_num_workers(self) -> int:
        """Most tests wait for something, so that more processes than cores are of use; few tests are not worth them."""
        return min(5 if THOROUGH else 7, len(self.scopes) // 16)

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> LoadScopeScheduling:
        scheduling = LoadScopeScheduling(config, log)
        scheduling._split_scope = self.scopes.__getitem__
        return scheduling

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            case = getattr(report, "context", None)  # of a subtest
            name = f"{report.nodeid} ({case.msg})" if case else report.nodeid
            print(f"\n{name} failed: {str(crash.message if crash else report.longrepr)[:300]}", flush=True)


def main(arguments: list[str]) -> int:
    # Keep the bytecode, or each process would rewrite and compile the assertions of this file again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    if "--thorough" in arguments:  # the processes of pytest-xdist do not know the option, but have the environment
        os.environ["THOROUGH"] = "1"
        arguments = [argument for argument in arguments if argument != "--thorough"]
    markers = "nix: of the packaging, which is not there when the package is tested\nnpm: needs npm and its registry\n"
    markers += "pypi: needs uv and the registry of Python's packages\n"
    markers += "browser: needs Chromium, or another client\ncgi: needs web servers\nopencv: detectors of faces\n"
    markers += "\n".join(f"{section}: of the section {section}" for section in sections().values())
    options = ["-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning", "-o", f"markers={markers}"]
    command, run = [__file__, *options, "--dist=loadscope", "--timeout=300", "-n", "auto", *arguments], Run()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        pytest.main([*command, "--collect-only", "-n", "0"], [run])
    return pytest.main(command, [run])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
