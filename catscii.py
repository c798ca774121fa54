#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "bottle>=0.13",
#     "certifi>=2024.7.4",
#     "maxminddb>=2.6",
#     "Pillow>=11",
#     "urllib3>=2.2.2",
#     "waitress>=3.0.1,<4",
# ]
# [tool.uv]
# exclude-newer = "2026-11-01T00:00:00Z"
# ///
"""catscii: cats as coloured ASCII art, over HTTP and in the terminal.

The sections stand in the order of the data: Settings, Telemetry, Art, House cats, Cats, Visitors, Web, Running.
"""

from __future__ import annotations

import atexit
import cmath
import contextlib
import errno
import gc
import importlib
import io
import itertools
import math
import os
import re
import signal
import sys
import time
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any, AnyStr, Generic, NamedTuple, NoReturn, Protocol, TypeVar, cast, overload


class Lazy:
    """An object that is made when it is first used, such as a module. So a start imports only what it needs."""

    def __init__(self, make: Callable[[], object]) -> None:
        self._make = make

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self._make(), attribute)
        setattr(self, attribute, value)  # this method is called for missing attributes only
        return value


if TYPE_CHECKING:
    import argparse
    import array
    import base64
    import bisect
    import contextvars
    import datetime
    import gzip
    import hashlib
    import html
    import ipaddress
    import json
    import logging
    import random
    import reprlib
    import resource
    import select
    import shutil
    import socket
    import sqlite3
    import ssl
    import struct
    import subprocess
    import textwrap
    import threading
    import unicodedata
    import zlib
    from concurrent import futures
    from contextlib import AbstractContextManager
    from http import client as http_client
    from urllib import parse as urllib_parse
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    import bottle  # type: ignore[import-untyped]
    import certifi
    import maxminddb
    import PIL
    import urllib3
    import waitress  # type: ignore[import-untyped]
    from PIL import (
        Image,
        ImageChops,
        ImageDraw,
        ImageEnhance,
        ImageFilter,
        ImageMath,
        ImageOps,
        JpegImagePlugin,
    )
    from sentry_sdk.types import Event
else:
    def lazy(name: str) -> Lazy:
        return Lazy(partial(importlib.import_module, name))

    argparse = lazy("argparse")
    array = lazy("array")
    base64 = lazy("base64")
    bisect = lazy("bisect")
    contextvars = lazy("contextvars")
    datetime = lazy("datetime")
    gzip = lazy("gzip")
    hashlib = lazy("hashlib")
    html = lazy("html")
    ipaddress = lazy("ipaddress")
    json = lazy("json")
    logging = lazy("logging")
    random = lazy("random")
    reprlib = lazy("reprlib")
    resource = lazy("resource")
    select = lazy("select")
    shutil = lazy("shutil")
    socket = lazy("socket")
    sqlite3 = lazy("sqlite3")
    ssl = lazy("ssl")
    struct = lazy("struct")
    subprocess = lazy("subprocess")
    textwrap = lazy("textwrap")
    threading = lazy("threading")
    unicodedata = lazy("unicodedata")
    zlib = lazy("zlib")
    futures = lazy("concurrent.futures")
    http_client = lazy("http.client")
    urllib_parse = lazy("urllib.parse")
    bottle = lazy("bottle")
    certifi = lazy("certifi")
    maxminddb = lazy("maxminddb")
    PIL = lazy("PIL")
    urllib3 = lazy("urllib3")
    waitress = lazy("waitress")
    Image = lazy("PIL.Image")
    ImageChops = lazy("PIL.ImageChops")
    ImageDraw = lazy("PIL.ImageDraw")
    ImageEnhance = lazy("PIL.ImageEnhance")
    ImageFilter = lazy("PIL.ImageFilter")
    ImageMath = lazy("PIL.ImageMath")
    ImageOps = lazy("PIL.ImageOps")
    JpegImagePlugin = lazy("PIL.JpegImagePlugin")

__version__ = "0.1.0"


# ---------------------------------------------------------------------------------------------------------------------
# Settings: read from the environment once, all problems reported together
# ---------------------------------------------------------------------------------------------------------------------

DEFAULT_SOURCES = (
    "https://api.thecatapi.com/v1/images/search",
    "https://cataas.com/cat",
)
HONEYCOMB = "https://api.honeycomb.io/v1/traces"
LOG_LEVELS = {  # the numbers are those of logging
    "debug": 10,
    "info": 20,
    "warn": 30,
    "warning": 30,
    "error": 40,
}
OTLP_HEADER = r" *[\w.-]+=([ !#$&-+\--:<-\[\]-~]|%[2-7]\w)*"  # NAME=VALUE in OTEL_EXPORTER_OTLP_HEADERS


class SetupError(Exception):
    """The program cannot start. Each argument describes one problem."""


def quoted(text: str) -> str:
    """Quote a text, of which 200 characters are kept, as printable ASCII, for use in logs, terminals and pages."""
    if len(text) > 200:
        text = text[:197] + "..."
    return ascii(text)


def ensure(text: str, valid: Callable[[str], object], what: str, secret: bool = False) -> str:
    """Return `text` if it is valid, else raise ValueError. The message does not show a text that is `secret`."""
    if valid(text):
        return text
    if secret:
        raise ValueError(f"is not {what}")
    raise ValueError(f"{quoted(text)} is not {what}")


class FreeText(NamedTuple):
    """The values of a parameter that takes any text, within the rules of `read`."""

    name: str  # stands for a text in the usage of an option
    read: Callable[[str], str]  # returns a text as it is used; raises ValueError


Choices = range | Collection[str] | FreeText


@overload
def one_of(text: str, choices: range) -> int: ...
@overload
def one_of(text: str, choices: Collection[str] | FreeText) -> str: ...
def one_of(text: str, choices: Choices) -> int | str:
    """Return `text` if it is one of the choices, as a number if the choices are a range. Raises ValueError."""
    if isinstance(choices, FreeText):
        return choices.read(text)
    if not isinstance(choices, range):
        return ensure(text, choices.__contains__, f"one of {', '.join(choices)}")
    if re.fullmatch("[0-9]{1,9}", text) and int(text) in choices:
        return int(text)
    raise ValueError(f"{quoted(text)} is not a whole number from {choices[0]} to {choices[-1]}")


def is_web_url(text: str) -> bool:
    """Tell whether `text` is a URL of HTTP or HTTPS that names a host."""
    if "://" not in text:  # `art` asks this of names of files, for which nothing has to be imported
        return False
    if len(text) > 2048 or not text.isprintable():
        return False
    try:
        parts = urllib_parse.urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0


def is_source_url(text: str) -> bool:
    """Tell whether `text` is a URL without commas before its query. There, a comma separates URLs."""
    before_query, _, _ = text.partition("?")
    return is_web_url(text) and "," not in before_query


def is_in_folder(path: str) -> bool:
    """Tell whether the folder of a file exists."""
    return os.path.isdir(os.path.dirname(path) or ".")


existing_file = partial(ensure, valid=os.path.isfile, what="a file")
database_file = partial(ensure, valid=is_in_folder, what="in a folder that exists")
header_name = partial(
    ensure,
    valid=partial(re.fullmatch, "[A-Za-z0-9-]+"),
    what="a header, such as Fly-Client-IP",
)
source_url = partial(ensure, valid=is_source_url, what=f"a URL such as {DEFAULT_SOURCES[-1]}")
key_text = partial(
    ensure,
    valid=partial(re.fullmatch, "[!-~]+"),
    what="printable ASCII without spaces",
    secret=True,
)
etcd_url = partial(
    ensure,
    valid=is_web_url,
    what="a URL such as http://localhost:2379",
    secret=True,
)
otlp_url = partial(
    ensure,
    valid=is_web_url,
    what="a URL such as http://localhost:4318",
    secret=True,
)
otlp_headers = partial(
    ensure,
    valid=partial(re.fullmatch, rf"(?a)({OTLP_HEADER}(,|$))+"),
    what="a list such as NAME=VALUE,NAME=VALUE, in ASCII or percent-encoded",
    secret=True,
)
dsn = partial(
    ensure,
    valid=partial(re.fullmatch, r"https?://[!-~]+@[A-Za-z0-9.-]+(:[0-9]+)?(/[!-~]*)?/[0-9]+"),
    what="a DSN such as https://KEY@HOST/PROJECT",
    secret=True,
)


def source_urls(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of URLs. A comma in a query does not end its URL. Raises ValueError."""
    urls = re.split(r"\s*,\s*(?=https?:|$)", text, flags=re.IGNORECASE)
    return tuple(source_url(url) for url in urls if url)


def etcd_urls(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of URLs. A comma at its end counts for nothing. Raises ValueError."""
    return tuple(etcd_url(url) for url in re.split(r"\s*,\s*", text.removesuffix(",")))


def certificate_file(text: str) -> str:
    """Return `text` if certificates can be loaded from this file. Raises ValueError."""
    try:
        ssl.create_default_context(cafile=text)
    except OSError as error:
        raise ValueError(f"no CA certificates can be read from {quoted(text)}: {error}") from None
    return text


def log_level(text: str) -> int:
    """Return the number of a level of logs. Its name may be in upper case. Raises ValueError."""
    name = one_of(text.lower(), LOG_LEVELS)
    return LOG_LEVELS[name]


class Settings(NamedTuple):
    """The settings. Except for `otlp_endpoint`, each is read from the environment variable of the same name.

    None means that it is not set.
    """

    host: str = "0.0.0.0"
    port: int = 8080
    analytics_db: str = "catscii.db"
    geolite2_country_db: str | None = None
    client_ip_header: str | None = None
    cat_sources: tuple[str, ...] = DEFAULT_SOURCES
    cat_api_key: str | None = None
    etcd_endpoints: tuple[str, ...] = ()
    ssl_cert_file: str | None = None
    log_level: int = LOG_LEVELS["info"]
    sentry_dsn: str | None = None
    sentry_environment: str | None = None
    honeycomb_api_key: str | None = None
    otlp_endpoint: str | None = None  # made from several variables; None: send no traces

    def __repr__(self) -> str:
        return "Settings(...)"  # many of them are secret


class Setting(NamedTuple):
    """How the text of a setting is read, and what --help says about it, with its default in parentheses."""

    parse: Callable[[str], object]
    help: str


SETTINGS = {
    "host": Setting(str, "address to listen on (0.0.0.0)"),
    "port": Setting(
        partial(one_of, choices=range(65536)),
        "port to listen on, 0 for any free one (8080)",
    ),
    "analytics_db": Setting(database_file, "SQLite file for visits and pictures (catscii.db)"),
    "geolite2_country_db": Setting(existing_file, "MaxMind DB of countries (none: all count for ZZ)"),
    "client_ip_header": Setting(
        header_name,
        "header in which a trusted proxy names the client (Fly-Client-IP on fly.io, else none)",
    ),
    "cat_sources": Setting(
        source_urls,
        f"comma-separated API URLs, tried in order; empty: house cats only\n({','.join(DEFAULT_SOURCES)})",
    ),
    "cat_api_key": Setting(key_text, "key for The Cat API, sent as x-api-key (none)"),
    "etcd_endpoints": Setting(
        etcd_urls,
        "comma-separated URLs of etcd, where machines add up visits (none)",
    ),
    "ssl_cert_file": Setting(
        certificate_file,
        "CA certificates, PEM (NIX_SSL_CERT_FILE, else certifi's)",
    ),
    "log_level": Setting(log_level, "debug, info, warn or error (info)"),
    "sentry_dsn": Setting(dsn, "DSN of the Sentry project for errors (none)"),
    "sentry_environment": Setting(str, "environment of these errors (FLY_APP_NAME, else production)"),
    "honeycomb_api_key": Setting(
        key_text,
        "key for traces to Honeycomb (none), or OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_*",
    ),
}


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Return the settings. Empty variables are ignored, except CAT_SOURCES. Raises SetupError with all problems."""
    given = {
        name: text.strip()
        for name, text in environ.items()
        if text.strip() or name == "CAT_SOURCES"
    }
    if "FLY_APP_NAME" in given:
        given.setdefault("CLIENT_IP_HEADER", "Fly-Client-IP")
        given.setdefault("SENTRY_ENVIRONMENT", given["FLY_APP_NAME"])
    problems: list[str] = []

    def read(name: str, parse: Callable[[str], object], default: object = None) -> Any:
        if name not in given:
            return default
        try:
            return parse(given[name])
        except ValueError as error:
            problems.append(f"{name}: {error}")
            return default

    values = {
        name: read(name.upper(), setting.parse, Settings._field_defaults[name])
        for name, setting in SETTINGS.items()
    }
    if "SSL_CERT_FILE" not in given:
        values["ssl_cert_file"] = read("NIX_SSL_CERT_FILE", certificate_file)

    collector = None
    for kind in ("", "TRACES_"):
        collector = read(f"OTEL_EXPORTER_OTLP_{kind}ENDPOINT", otlp_url, collector)
        # The SDK itself reads these headers. If some are invalid, it logs them, with their keys.
        read(f"OTEL_EXPORTER_OTLP_{kind}HEADERS", otlp_headers)
    if collector:
        values["honeycomb_api_key"] = None  # so that the collector does not get it
    elif values["honeycomb_api_key"]:
        collector = HONEYCOMB
    if given.get("OTEL_SDK_DISABLED", "").lower() != "true":
        values["otlp_endpoint"] = collector

    if problems:
        raise SetupError(*problems)
    return Settings(**values)


# ---------------------------------------------------------------------------------------------------------------------
# Telemetry: logs, metrics for Prometheus, errors for Sentry, traces for an OTLP collector
# ---------------------------------------------------------------------------------------------------------------------

FLUSH_SECONDS = 1.5  # in which Sentry and the traces, at the end, send what is left
TRACE = "opentelemetry.trace"  # a module that is in sys.modules only if traces are sent
METRICS = {
    "catscii_requests_total": ("counter", "Requests by route and status."),
    "catscii_request_seconds": ("histogram", "Time to answer a request, by route."),
    "catscii_render_seconds": ("histogram", "Time to render a cat that was not in the cache."),
    "catscii_waiting_drawings": ("gauge", "Requests that wait for a drawing, or whose cat is being drawn."),
    "catscii_refused_drawings_total": ("counter", "Requests that got 503 because too many waited for a drawing."),
    "catscii_visits_total": ("counter", "Visits by country, of all time."),
    "catscii_waiting_visits": ("gauge", "Visits that wait in memory for the database."),
    "catscii_stored_cats": ("gauge", "Pictures in the store, by source."),
    "catscii_refreshes_total": ("counter", "Refreshes of the store, by result."),
    "catscii_refresh_age_seconds": ("gauge", "Time since a source last gave a cat, or since the start."),
    "catscii_machines": ("gauge", "Machines whose visits are added up, including this one."),
    "catscii_failed_exchanges_total": ("counter", "Exchanges with etcd that failed."),
    "catscii_agreed_age_seconds": ("gauge", "Time since this machine last read the visits of all machines."),
    "catscii_open_connections": ("gauge", "Connections of clients."),
    "catscii_live_streams": ("gauge", "Clients that watch a cat that moves."),
    "catscii_dropped_log_lines_total": ("counter", "Log lines that could not be written."),
    "catscii_build_info": ("gauge", "1, with the version of catscii."),
    "process_start_time_seconds": ("gauge", "When the process started, in Unix time."),
    "process_cpu_seconds_total": ("counter", "Processor time in user and system mode."),
    "process_resident_memory_bytes": ("gauge", "Resident memory."),
    "process_open_fds": ("gauge", "Open file descriptors."),
    "process_max_fds": ("gauge", "The limit of open file descriptors."),
}
BUCKETS = ("0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "+Inf")
MAX_UNWRITTEN = 256 << 10  # bytes of log lines that wait for a slow reader
LEVEL_NAMES = {"WARNING": "WARN", "CRITICAL": "ERROR"}  # in tracing-subscriber; other levels have the same names
Labels = tuple[tuple[str, object], ...]  # names and values of the labels of a time series
log = cast("logging.Logger", Lazy(lambda: logging.getLogger("catscii")))


def utc(seconds: float) -> datetime.datetime:
    """Return the date and time in UTC that is this many seconds after the start of 1970."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


class LogWriter:
    """Writes JSON lines to standard error without blocking: keeps 256 KiB for a slow reader, and drops the rest.

    `lock` is that of the handler which calls `write`.
    """

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        self._lock = lock
        self._file = 2  # standard error
        with contextlib.suppress(OSError):  # a write to a terminal can block, so open it again in non-blocking mode
            self._file = os.open(os.ttyname(2), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLOUT)
        self._unwritten = bytearray()
        self._untold = 0  # dropped lines that no warning has told of
        self.dropped = 0  # dropped lines since the start
        self.buffered = False  # if True, lines below WARNING wait until `flush` is called

    def _format(self, record: logging.LogRecord) -> str:
        """Return a line in the format of Rust's tracing-subscriber, as the Rust service wrote it.

        Arguments that are a dict add fields.
        """
        fields: dict[str, object] = {"message": record.getMessage()}
        if isinstance(record.args, Mapping):
            fields |= record.args
        if record.exc_info:
            fields["error"] = logging.Formatter().formatException(record.exc_info)
        if trace := sys.modules.get(TRACE):
            context = trace.get_current_span().get_span_context()
            if context.is_valid:
                fields["trace_id"] = trace.format_trace_id(context.trace_id)
        timestamp = utc(record.created).isoformat(timespec="microseconds")
        return json.dumps({
            "timestamp": timestamp.removesuffix("+00:00") + "Z",
            "level": LEVEL_NAMES.get(record.levelname, record.levelname),
            "fields": fields,
            "target": record.name,
        })

    def write(self, record: logging.LogRecord) -> None:
        try:
            text = self._format(record)
        except Exception:  # a package may pass arguments that cannot be formatted
            record.args = None
            text = self._format(record)
        line = text.encode() + b"\n"
        if len(self._unwritten) + len(line) <= MAX_UNWRITTEN:
            self._unwritten += line
        else:
            self._count_dropped(1)
        if not self.buffered or record.levelno > logging.INFO:
            self.flush()

    def greet(self, text: str) -> None:
        """Write a line for people, but only to a terminal, so that programs read nothing but JSON."""
        if os.isatty(self._file):
            self._unwritten += text.encode() + b"\n"
            self.flush()

    def flush(self, seconds: float = 0.0) -> None:
        """Write the lines that wait. Give up if the reader does not take them within `seconds`."""
        deadline = time.monotonic() + seconds
        with self._lock:
            while self._unwritten and self._is_ready(deadline - time.monotonic()):
                try:
                    self._write_some()
                except BlockingIOError:
                    return
                except OSError:  # the reader is gone, or the disk is full
                    self._count_dropped(self._unwritten.count(b"\n"))
                    self._unwritten.clear()
                    return
            if self._untold and not self._unwritten:
                self._tell_of_dropped()

    def _is_ready(self, seconds: float) -> bool:
        """Wait for the reader, `seconds` at most. Return whether it takes bytes."""
        return bool(self._poll.poll(1000 * max(0.0, seconds)))

    def _write_some(self) -> None:
        """Write whole lines if possible, and no more than a pipe that is ready takes without blocking (pipe(7))."""
        size = self._unwritten.rfind(b"\n", 0, select.PIPE_BUF) + 1
        if size == 0:
            size = select.PIPE_BUF
        count = os.write(self._file, self._unwritten[:size])
        del self._unwritten[:count]

    def _count_dropped(self, lines: int) -> None:
        self._untold += lines
        self.dropped += lines

    def _tell_of_dropped(self) -> None:
        lines = self._untold
        self._untold = 0
        log.warning("Log lines were dropped", {"lines": lines})
        if self._untold:  # the warning itself was dropped
            self._untold = lines


def start_logging(level: int) -> LogWriter:
    """Make all packages log to the LogWriter that is returned."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            writer.write(record)

        def close(self) -> None:
            writer.flush(FLUSH_SECONDS)
            super().close()

    handler = Handler()
    writer = LogWriter(handler.lock or contextlib.nullcontext())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Log lines name no code, thread or process. To leave them out saves time:
    # docs.python.org/3/howto/logging.html#optimization
    module: Any = importlib.import_module("logging")  # not the Lazy that stands for it
    module._srcfile = None
    module.logThreads = False
    module.logProcesses = False
    module.logMultiprocessing = False
    for name in ("waitress.queue", "urllib3", "PIL"):  # catscii itself logs what they log at lower levels
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("waitress").setLevel(logging.WARNING)  # INFO has a line for each client that hangs up
    return writer


class Trouble:
    """A failure that lasts for a while. It is true from `begin` to `end`, and each of the two logs one line."""

    def __init__(self, begins: str, ends: str, level: int = LOG_LEVELS["error"], quiet_seconds: float = 0.0) -> None:
        self._begins = begins
        self._ends = ends
        self._level = level
        self._quiet_seconds = quiet_seconds
        self.reason = ""
        self.since = math.inf  # the time.monotonic() of its beginning
        self._last = 0.0  # the time.monotonic() of the last failure

    def __bool__(self) -> bool:
        return self.since < math.inf

    def begin(self, reason: object) -> None:
        """Begin the trouble, or keep it from ending. The reason is logged only if it begins."""
        self.reason = str(reason)
        self._last = time.monotonic()
        if not self:
            self.since = self._last
            log.log(self._level, self._begins, {"error": self.reason})

    def end(self) -> None:
        """End the trouble, unless it was reported less than `quiet_seconds` ago."""
        if self and time.monotonic() - self._last >= self._quiet_seconds:
            self.since = math.inf
            log.info(self._ends)

    @contextlib.contextmanager
    def contain(self, *expected: type[Exception]) -> Iterator[None]:
        """End the trouble after a block without exceptions. An exception begins the trouble, and goes no further.

        If it is none of the `expected` exceptions, a traceback is logged when the trouble begins.
        """
        try:
            yield
            self.end()
        except Exception as error:
            if not self and not isinstance(error, expected):
                log.exception("Unexpected failure")
            self.begin(error)


class Limit:
    """Allows `count` events in any period of so many seconds."""

    def __init__(self, count: int, seconds: float) -> None:
        self.seconds = seconds
        self._recent = deque([-math.inf] * count, maxlen=count)  # time.monotonic() of events that were allowed
        self._lock = threading.Lock()

    def allows(self) -> bool:
        """Return whether an event is allowed now, and count the event if so."""
        now = time.monotonic()
        with self._lock:
            if now - self._recent[0] < self.seconds:
                return False
            self._recent.append(now)
            return True


class Histogram:
    """Counts times by BUCKETS, and adds them up."""

    def __init__(self) -> None:
        self._counts = [0.0] * len(BUCKETS)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect.bisect_left(BUCKETS, seconds, key=float)] += 1
        self._sum += seconds

    def samples(self, name: str, labels: Mapping[str, object]) -> Iterator[tuple[str, float]]:
        """Yield the time series of this histogram with their values. Each bucket counts those below it, too."""
        for bound, count in zip(BUCKETS, itertools.accumulate(self._counts), strict=True):
            yield series(name + "_bucket", **labels, le=bound), count
        yield series(name + "_sum", **labels), self._sum
        yield series(name + "_count", **labels), sum(self._counts)


class Metrics:
    """Counters and histograms since the start. Labels must not come from a request: each new label takes memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters = Counter[str]()
        self._histograms: defaultdict[tuple[str, Labels], Histogram] = defaultdict(Histogram)

    def add(self, name: str, /, **labels: object) -> None:
        with self._lock:
            self._counters[series(name, **labels)] += 1

    def observe(self, name: str, seconds: float, /, **labels: object) -> None:
        with self._lock:
            self._histograms[name, tuple(labels.items())].observe(seconds)

    def text(self, others: Mapping[str, float]) -> str:
        """Return these metrics and the `others` (values by time series) in Prometheus' text format 0.0.4.

        Raises KeyError if METRICS lacks one of them.
        """
        samples = dict(others)
        with self._lock:
            samples |= self._counters
            for (name, labels), histogram in self._histograms.items():
                samples |= histogram.samples(name, dict(labels))
        lines: dict[str, list[str]] = {}
        for name, (kind, meaning) in METRICS.items():
            lines[name] = [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
        for key, value in samples.items():
            name, _, _ = key.partition("{")
            if name not in METRICS:
                name = name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")  # of a histogram
            lines[name].append(f"{key} {value}")
        return "\n".join(itertools.chain(*lines.values())) + "\n"


def process_figures() -> dict[str, float]:
    """Return metrics of this process. Memory and files are known on Linux only (proc(5))."""
    max_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    figures = {
        "process_cpu_seconds_total": time.process_time(),
        "process_max_fds": max_files,
    }
    with contextlib.suppress(OSError):
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        figures["process_resident_memory_bytes"] = pages * os.sysconf("SC_PAGE_SIZE")
        figures["process_open_fds"] = len(os.listdir("/proc/self/fd"))
    return figures


@lru_cache(1000)
def series(name: str, /, **labels: object) -> str:
    """Return the name of a time series. JSON strings have the escapes that Prometheus expects in labels."""
    pairs = [f"{label}={json.dumps(str(value), ensure_ascii=False)}" for label, value in labels.items()]
    return name + "{" + ",".join(pairs) + "}"


def span(name: str, /, *context: object, **attributes: object) -> AbstractContextManager[object]:
    """Open a span if traces are sent and the name is not empty. An exception that leaves the span marks it failed."""
    trace = sys.modules.get(TRACE)
    if not name or not trace:
        return contextlib.nullcontext()
    tracer = trace.get_tracer("catscii")
    current: AbstractContextManager[object] = tracer.start_as_current_span(name, *context, attributes=attributes)
    return current


def annotate(attributes: Mapping[str, object] = {}, error: Exception | None = None) -> None:
    """Add attributes to the current span. If there is an error, mark the span as failed."""
    if trace := sys.modules.get(TRACE):
        current = trace.get_current_span()
        current.set_attributes(attributes)
        if error:
            current.set_status(trace.StatusCode.ERROR, str(error))


@contextlib.contextmanager
def optional_package(package: str, variables: str) -> Iterator[None]:
    """Turn an ImportError into a SetupError that names the package, and a ValueError into one that names variables."""
    try:
        yield
    except ImportError as error:
        ways = f"`uv run --with {package} catscii.py` or `pip install {package}`"
        raise SetupError(f"{variables}: the package {package} is missing: {ways} ({error})") from error
    except ValueError as error:
        raise SetupError(f"{variables}: {error}") from error


@optional_package("sentry-sdk", "SENTRY_DSN")
def start_sentry(settings: Settings) -> Callable[[], object]:
    """Start to send logged errors to Sentry. Return a function that sends what is left. Raises SetupError."""
    import sentry_sdk
    from sentry_sdk.integrations.bottle import BottleIntegration
    from sentry_sdk.integrations.logging import ignore_logger

    def without_headers(event: Event, hint: object) -> Event:
        event["request"] = {**event.get("request", {}), "headers": {}}
        return event

    ignore_logger("opentelemetry.*")  # it logs repeatedly that the collector is down
    sentry_sdk.init(
        settings.sentry_dsn,
        release=f"catscii@{__version__}",
        environment=settings.sentry_environment,
        ca_certs=settings.ssl_cert_file or certifi.where(),
        shutdown_timeout=FLUSH_SECONDS - 0.5,
        integrations=[BottleIntegration("url")],
        auto_enabling_integrations=False,
        auto_session_tracking=False,
        ignore_errors=[bottle.HTTPResponse],  # not errors: the cause of a 500 has been logged
        trace_propagation_targets=[],  # the sources get no trace headers
        # Addresses of visitors stay here. Headers and variables may hold them.
        send_default_pii=False,
        max_request_body_size="never",
        include_local_variables=False,
        before_send=without_headers,
    )
    return sentry_sdk.get_client().close


@optional_package("opentelemetry-exporter-otlp-proto-http", "OTEL_*, HONEYCOMB_API_KEY")
def start_tracing(settings: Settings) -> Callable[[], object]:
    """Start a thread that sends spans in batches. Return a function that sends what is left. Raises SetupError."""
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider, export

    if not os.environ.get("OTEL_EXPORTER_OTLP_CERTIFICATE"):
        os.environ["OTEL_EXPORTER_OTLP_CERTIFICATE"] = settings.ssl_cert_file or certifi.where()
    if key := settings.honeycomb_api_key:
        headers = {"x-honeycomb-team": key, "x-honeycomb-dataset": "catscii"}
        exporter = OTLPSpanExporter(HONEYCOMB, headers=headers)
    else:
        exporter = OTLPSpanExporter()  # it reads the variables of OTEL_EXPORTER_OTLP_*
    named = Resource.create({"service.name": "catscii", "service.version": __version__})
    provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()))
    provider.add_span_processor(export.BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return provider.shutdown


@optional_package("opentelemetry-api", "OTEL_PROPAGATORS")
def traced(app: WSGIApplication) -> WSGIApplication:
    """Wrap a WSGI app so that each request is a span of the trace in its headers. Raises SetupError."""
    from opentelemetry import propagate, trace

    def traced_app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] in ("/health", "/metrics"):  # programs ask for these again and again
            return app(environ, start_response)
        headers = {
            name.removeprefix("HTTP_").replace("_", "-").lower(): value
            for name, value in environ.items()
            if name.startswith("HTTP_")
        }
        with span("request", propagate.extract(headers), trace.SpanKind.SERVER):
            body = app(environ, start_response)
            if route := environ.get("bottle.route"):
                first = route.rule.split("/")[1]
                name = f"{first or 'root'}_{route.method.lower()}"
                trace.get_current_span().update_name(name)
            return body

    return traced_app


# ---------------------------------------------------------------------------------------------------------------------
# Art: picture -> grid of cells -> text
# ---------------------------------------------------------------------------------------------------------------------
# A glyph with the coverage m (the share of ink in each part of a cell), the foreground f and the background b gives its
# cell the luma b + (f - b) m. Let x be the luma of the picture in a cell; subtract their means from x and m. By linear
# regression, the best contrast f - b is <x, m> / |m|^2, and the squared error is |x|^2 - <x, m>^2 / |m|^2. To find the
# best glyph fast, round m to a stencil s of black and white: the mean of |x - s| is linear in <x, s>, and Pillow
# computes this mean for all cells at once. `render_fill` does so for one glyph after another.

STYLES = ("fill", "ink")  # "fill" has glyphs with backgrounds, "ink" has glyphs alone
BACKGROUNDS = {"dark": (16, 16, 20), "light": (255, 255, 255)}  # of pages; transparent pictures get the dark one
CONTRAST = 26  # levels of luma that a letter and its background differ by at least, except in the format "ansi"
PICTURE_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
JPEG_START = b"\xff\xd8\xff"
ORIENTATION = 0x0112  # a tag of EXIF
UPRIGHT = 1
TOO_MUCH_MEMORY = "the picture takes too much memory"
MAX_PIXELS = 64_000_000
MAX_COLUMNS = 240
MAX_ROWS = 240
MOST_LARGE_CELLS = 24_000  # in a PNG; a window of 2,560 x 1,440 pixels has at most 19,200
TERMINAL_ROWS = 22  # of 24 rows, the caption and the prompt take two
LEVELS = range(256)  # of a band of a picture; tables for Image.point have an entry for each
PARTS = (10, 20)  # columns and rows of COVERAGE in a cell; a cell is twice as tall as it is wide
SAMPLES = (5, 10)  # columns and rows of pixels in a cell of art; more pixels take longer and do not improve the art
FILL_GLYPHS = r"""_+<>LJ^|,`/\=v"""  # lines and corners, which people take for parts of the picture
LETTERS = ".:;!clits?vxzouneakhdbq"  # for cells without relief, roughly from thin to dense
INK_TONES = " .:;!lxoSkGXUO8QRB@"  # roughly from thin to dense
EDGES = r"""/\_-^`',<>()LJ7TVvY|"""  # they show the direction of an edge
GLYPHS = [chr(code) for code in range(32, 127)]  # printable ASCII: those above, and those of texts
RELIEF = 2  # factor for the luma minus the cell's mean, so that faint relief is not rounded to nothing
KEPT = 0.75  # with few colours, a glyph stays if its error is this share of that of a flat cell or less
MOST_LUMINANCE = 0.3  # of glyphs on white: a relative luminance of 0.3 has a contrast of 3:1 (WCAG 2.2)
LEAST_CHANGE = 12  # levels of a colour: a cell of a moving picture changes if its mean changes as much
MOST_CHANGED = 1000  # cells of a moving picture that change at once, which bounds the memory for them
FADE = 2  # lower values make glyphs fainter that fit their cells badly
COVERAGE = """
c-rlo4UXg}426Bkcgc6jZ#4r?Lgh}jq7LbwT}ztz8Uq0vf`L^1X9V9t)`e$m5K-a{`bmNc&F0r=zCAj^6#wD6oJ}N~T$@CCB^msOg(UeeMJtqi$(AA$RXAi<$&!SYn%i?fD^9g?jAq4<NmG?UCA+Gs{a^OX(QC45O-sJpMFzjlMfF+fBnqfx!&OLB2^BIUD>dv79z`|E
8yL7{R-DsM5qpAYNrk%dO%mN!Wp{Pice=wqO<WtOx5#I9v2S*{^+Ix4@<8kgdDZr^`(^Vy5>w9e{Q`kT;$&KWl?b4Iy$CnjAnGrX^CVL8Vv^Vw_O9!>{-Ve~cG{2gbX>Smv?-BVSZmJHc8CmvERob*1hA(kP5^2v{y19o+}}0usxu0xR{-pb6P4gu_$0iDcD1Nh)W>8c
pS;H#&2S+!$(|%?5}IUc5}G8YoOW&3iyyx+z&Z2VNrct>5#81a;-j$FdDDPr`=Gzg?2w4IQX;#Z4Z;vL>*5KzLD`Zv?gvGzX7a>P{+t<8B5Co0x@S^$t3O(+gwrY!I|?lnty5xZK<Horcf}C`>j%V08_MqQ$4`sf<#i^NjJ1rBK{X`W@T#cqBx1^S?U#wHpkd|J<X$P-
lt?Z6r1{?J>vZTS@WXHI#f2K}6K6rhD%q8JM~Nzdkz9q!$Qt@VdL>7j5~xTm>x{P5je1=KZR}ti^V!u7%`5#~7Z$Tb=5ZB{3rv}9J~5E-Tqo=Kss&g|L|ZsyTAERwro9uysAN^_rGo>(MyH34T5H}Hn8ZM_oF<j&aY^BGY9-8CbDp+uInb4@_SF)tthe>U?;k#=A5D9S
cJHGWJFCxy-Y9c4!c1s6!l+#v^gQ<h4QbkIv}s%|o!Uv-7<{pA{cj{y2I0$gP_=DbnS=MFClsDg03n(6NVUJcAtXE~`g=v_QQ9=H1oK}p+)oL+3R6Oq1{Jag*=UfU1{Drf{X5+*kTC!bLC7d1LWM$hNQ4T7M5rKSy!$(VJm@7F(d9R*)>@*-)3(JWR-y-^NrgkEr5Uxd
RTt<N_+#mnZaXN++8kSZQW;HBC*fX}^H|x0gf{s@%XTToQU6RPXe))???2M7if8Q9T;3G8n<;uEE(vXm6LlBawUQn>rxwcCoz&)PYs)g^-9OzcWKUYI3PXaO--=>~WYR^EB~Fx>|H)?d+_FYzkZo7llsr1^xy)+NItMq#i81@?lyoLG?PtwsHN@)Lv^iDbE$2RcTzz!!
Vv<G3Zaw-o^V|$+hxtY)cjfBYk1x}V`qQ>VCZVb?p&NRJ&%Y+Tn%KjQ^TZAA_$r48xThll`{f=MeIkhaUx>KQrGGmc{G}p;2dK|wc|9TR@qKO!P*zNX_k``7lSowWHQcJUZ)}u&FJ-~{GKa*nO4H7I9t@>yzyEm7DFQ2A5M&aqJH7)-zO`)XdtSWm-c20@??c@0s8Y6M
Z8{i@2vEO8jw;%u-9XRE{&6Lid;556)BDOFzOOVWe_p2zVt0xF4*T=u%%i8?RuS)wB3m!5eZP*%f;OShgu*c`7^Q>>6>hcc*`V(>c(aUvdRj0RD8I3@Lvj`Q9p`m=Se}1hJ@Hkn-aU<PXLxQa#Is@q9u$B0<qj4f(2_5T)R%mnwyx*Ol`L92<KwS;wdPaGF7-YB8NZws
*i{~M!`1DB(r&Ay*K3ZT%<>0RknAP>-2AX#i6PfRkdq@Vpq`ezCqGBk=f}g6^Q%~SX<z>I*-Z$3=>FsS?TDzQxwy<oX7<;j&>(yHTw+;bo)-I~yJKX!ot-j911KHcgnWrZ>~&Y3!5@V)k!JIkUK+R2gb#oC>8)FL=nJm98}Lac_4>B{qLYhvN@<}uyheYAOmE9|LEn@v
$e|_A$ssR^r(V?wHLpG_2CL+f@;jV;@(;c6fVT
"""  # made by bench_catscii.py: 0, 85, 170 or 255 for each of the PARTS of each of GLYPHS in DejaVu Sans Mono
MAX_SAID = 200  # characters that a cat says
NARROWEST = 10  # columns of art with a bubble
SHORTEST_LINE = 15  # columns of the longest lines that a bubble beside the art has room for, at least
LONGEST_LINE = 56  # columns of a line in a bubble, at most
LONGEST_WORD = 24  # columns of a word that a bubble beside the art makes room for
JOINERS = "\u200c\u200d"  # between letters of some scripts, and between emojis
# What makes one emoji of many, or changes the width of a character: joiners, variants, keycaps and tones of skin.
SEQUENCES = f"[{JOINERS}\ufe00-\ufe0f\u20e3\U0001f3fb-\U0001f3ff]"
ASCII_FORMS = str.maketrans({  # of what Unicode does not decompose
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00ab": '"', "\u00bb": '"', "\u2013": "-",
    "\u2014": "-", "\u00df": "ss", "\u00c6": "AE", "\u00e6": "ae", "\u0152": "OE", "\u0153": "oe", "\u00d8": "O",
    "\u00f8": "o", "\u0141": "L", "\u0142": "l"})
Grid = tuple[int, int]  # columns and rows
Pair = tuple[bytes, bytes]  # foreground and background of a cell in "fill"
Operands = dict[str, Any]  # the images and functions of a formula of ImageMath, by name
Run = tuple[str, bytes | None, bytes | None]  # text; its foreground, or None for spaces; its background, if any
Cell = tuple[str, bytes, bytes | None]  # glyph, foreground, background
Colours = tuple[bytes | None, bytes | None]  # foreground and background of any text, as in Run and Cell


class PictureError(ValueError):
    """A picture cannot be shown. The message says why, in words for users."""


class Art(NamedTuple):
    """A grid of cells, row by row."""

    rows: tuple[str, ...]  # printable ASCII
    foreground: bytes  # R, G, B of each cell
    background: bytes | None  # R, G, B of each cell; None if the glyphs have the page as their background


class Bubble(NamedTuple):
    """A speech bubble: lines above the art, or what follows each row of the art from the first one on."""

    above: Sequence[str] = ()
    beside: Sequence[str] = ()
    scale: int = 1  # in a PNG: the columns and rows of the art that a cell of the bubble takes


SILENCE = Bubble()


def opened(data: bytes) -> Image.Image:
    """Open a picture. Most are JPEGs, which need only one of Pillow's plugins: to import the others takes a while."""
    if data.startswith(JPEG_START):
        return JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    return Image.open(io.BytesIO(data), formats=PICTURE_FORMATS)


def decode(data: bytes, longest: int) -> Image.Image:
    """Return the first frame, upright, in RGB, with `longest` pixels or more if it has them. Raises PictureError."""
    try:
        with warnings.catch_warnings(action="ignore"), opened(data) as picture:
            return reduced(picture, longest)
    except (Image.DecompressionBombError, MemoryError) as error:
        raise PictureError(TOO_MUCH_MEMORY) from error
    except PIL.UnidentifiedImageError as error:
        raise PictureError(f"not a picture in a known format ({', '.join(PICTURE_FORMATS)})") from error
    except Exception as error:  # decoders raise almost anything on broken data
        raise PictureError(f"the picture cannot be read: {error}") from error


def reduced(picture: Image.Image, longest: int) -> Image.Image:
    """Return an open picture as `decode` does."""
    if picture.width * picture.height > MAX_PIXELS:  # Pillow only warns
        raise MemoryError
    scale = min(1.0, longest / max(picture.size))
    width = max(1, int(picture.width * scale))
    height = max(1, int(picture.height * scale))
    picture.draft("RGB", (width, height))  # a JPEG is decoded in this size or larger
    small = picture
    if picture.mode not in ("L", "RGB", "RGBA") or "transparency" in picture.info:
        small = flatten(picture)  # before it is reduced: the mean of numbers in a palette is no colour
    factor = max(picture.size) // longest
    if factor > 1:
        small = small.reduce(factor)
    small.load()  # before the picture is closed
    small.info = picture.info
    with contextlib.suppress(Exception):  # broken EXIF data does not damage the pixels
        if small.getexif().get(ORIENTATION, UPRIGHT) != UPRIGHT:
            ImageOps.exif_transpose(small, in_place=True)
    if small.mode == "RGB":
        return small
    return flatten(small)


def flatten(picture: Image.Image) -> Image.Image:
    """Return a picture of any mode in RGB. Its transparent parts get the colour of the dark page."""
    if picture.mode.startswith("I;16"):
        return flatten_16_bits(picture)
    if picture.mode in ("I", "F"):  # there is no usual range of levels, so stretch the picture's own
        low, high = map(float, picture.getextrema())  # type: ignore[arg-type]
        scale = 255 / (high - low or 1)
        stretched = picture.convert("F").point(lambda level: level * scale - low * scale)
        return stretched.convert("L").convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    page = Image.new("RGBA", picture.size, BACKGROUNDS["dark"])
    return Image.alpha_composite(page, picture.convert("RGBA")).convert("RGB")


def flatten_16_bits(picture: Image.Image) -> Image.Image:
    """Return a picture with 65,536 levels of grey in RGB, as `flatten` does."""
    wide = picture.convert("I")
    flat = wide.point(lambda level: level * (1 / 257)).convert("L").convert("RGB")
    transparent = picture.info.get("transparency")  # the level of transparent pixels
    if isinstance(transparent, int):
        equal = evaluate(lambda x: x["convert"](x["wide"] == transparent, "L"), wide=wide)  # 0 or 1
        flat.paste(BACKGROUNDS["dark"], mask=equal.point(lambda level: 255 * level))
    return flat


# A sandbox is a process that decodes one picture and may do nothing else. Its standard input is a socket, the channel,
# on which it reads the longest side that the picture may have, a space, and the file. Its answer is "picture", the
# width, the height, a line feed and the pixels, or "reason", a line feed and a reason.

SANDBOX_BYTES = 120 << 20  # its memory, beyond that of the program in it
SANDBOX_SECONDS = 9.0  # its life
KEEPER = """
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
loader = SourceFileLoader("catscii", sys.argv[1])  # which loads a file of any name
script = module_from_spec(spec_from_loader("catscii", loader))
loader.exec_module(script)
script.keep_sandboxes()
"""


def import_decoders(data: bytes) -> None:
    """Import what `decode` needs for this data, or for any if it is empty, because a sandbox can open no file."""
    plugins = ["Bmp", "Gif", "Jpeg", "Png", "Ppm", "Tiff", "WebP"]
    if data.startswith(JPEG_START):
        plugins = ["Jpeg"]
    if b"Exif" in data:
        plugins.append("Tiff")  # which reads EXIF data, too
    for plugin in plugins:
        importlib.import_module(f"PIL.{plugin}ImagePlugin")
    for name in ("PIL.ImageChops", "PIL.ImageMath", "PIL.ImageOps", "copy"):
        importlib.import_module(name)


def confine() -> None:
    """Limit this process. It keeps standard input, and can open nothing. Its environment is empty."""
    mapped = 0
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:  # macOS has none, and no limit of memory
        pages = int(file.read().split()[0])
        mapped = pages * os.sysconf("SC_PAGE_SIZE")
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # the descriptor that listed the folder is closed
            if name != "0":
                os.close(int(name))
    os.environ.clear()
    limits = {
        resource.RLIMIT_AS: mapped + SANDBOX_BYTES,
        resource.RLIMIT_CPU: int(SANDBOX_SECONDS / 2),
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for limit, most in limits.items():
        with contextlib.suppress(ValueError, OSError):  # macOS does not have all of them
            resource.setrlimit(limit, (most, most))


def ignore_signals() -> None:
    """Ignore SIGINT and SIGTERM. The process that needs this one ends it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def work_in_sandbox(channel: socket.socket) -> NoReturn:
    """Decode the picture that arrives on the channel, answer with its pixels or the reason for a failure, and end."""
    try:
        ignore_signals()
        os.dup2(channel.fileno(), 0)
        confine()
        with open(0, "rb", closefd=False) as question:
            longest, _, data = question.read().partition(b" ")
        try:
            picture = decode(data, int(longest))
            answer = b"picture %d %d\n" % picture.size + picture.tobytes()
        except PictureError as error:
            answer = b"reason\n" + str(error).encode()
        except MemoryError:
            answer = b"reason\n" + TOO_MUCH_MEMORY.encode()
        with open(0, "wb", closefd=False) as file:
            file.write(answer)
    finally:
        os._exit(0)


@contextlib.contextmanager
def forked_sandbox(channel: socket.socket) -> Iterator[None]:
    """Let a fork of this process work in a sandbox on the channel, until the block ends.

    This process must have no other thread, and must have called `import_decoders`.
    """
    pid = os.fork()
    if pid == 0:
        work_in_sandbox(channel)
    channel.close()
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


class SandboxKeeper:
    """Makes sandboxes for a process that has threads and keys, one sandbox at a time.

    Sandboxes must have neither, so they are forks of another process. That process starts with the first sandbox. It
    ends when this process does, because its standard input is closed then.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    @contextlib.contextmanager
    def sandbox(self, channel: socket.socket) -> Iterator[None]:
        """Let another process be the sandbox on the channel until the block ends. Raises OSError."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            socket.send_fds(self._control, [b"+"], [channel.fileno()])
            channel.close()
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # the keeper was killed
                    self._control.send(b"-")

    def _start(self) -> None:
        kept = ("PATH", "PYTHON", "LD_", "DYLD_")  # other variables may hold keys
        environment = {name: value for name, value in os.environ.items() if name.startswith(kept)}
        self._control, standard_input = socket.socketpair()
        with standard_input:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", KEEPER, os.path.abspath(__file__)],
                env=environment,
                stdin=standard_input.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )


def keep_sandboxes() -> None:
    """Make a sandbox for each channel that arrives at standard input, and end it when another byte arrives."""
    ignore_signals()  # the last requests may need sandboxes
    import_decoders(b"")
    control = socket.socket(fileno=0)
    while True:
        _, files, _, _ = socket.recv_fds(control, 1, 1)
        if not files:
            return
        with forked_sandbox(socket.socket(fileno=files[0])):
            control.recv(1)


def decode_in_sandbox(
    data: bytes,
    longest: int,
    sandbox: Callable[[socket.socket], AbstractContextManager[None]],
) -> Image.Image:
    """Return what `decode` returns for a picture from outside. Raises PictureError."""
    try:
        ours, channel = socket.socketpair()
        with ours, channel, sandbox(channel):
            answer = ask_sandbox(ours, b"%d " % longest + data)
    except TimeoutError:
        raise PictureError(f"decoding takes more than {SANDBOX_SECONDS:.0f} seconds") from None
    except ConnectionError:  # the sandbox ended before it had read everything
        answer = bytearray()
    except OSError as error:
        raise PictureError(f"there is no process that decodes it: {error}") from error
    head, _, body = answer.partition(b"\n")
    if head == b"reason":
        raise PictureError(body.decode("utf-8", "replace"))
    if match := re.fullmatch(rb"picture ([1-9][0-9]{0,7}) ([1-9][0-9]{0,7})", head):
        width = int(match[1])
        height = int(match[2])
        if len(body) == 3 * width * height:
            return Image.frombytes("RGB", (width, height), body)
    raise PictureError("decoding takes too much memory or time")


def ask_sandbox(channel: socket.socket, question: bytes) -> bytearray:
    """Return the answer of a sandbox, or the beginning of one that is longer than SANDBOX_BYTES. Raises OSError."""
    answer = bytearray()
    deadline = time.monotonic() + SANDBOX_SECONDS
    channel.settimeout(SANDBOX_SECONDS)
    channel.sendall(question)
    channel.shutdown(socket.SHUT_WR)
    while len(answer) <= SANDBOX_BYTES:
        channel.settimeout(max(0.001, deadline - time.monotonic()))
        part = channel.recv(1 << 20)
        if not part:
            break
        answer += part
    return answer


def fit(size: tuple[int, int], width: int, height: int | None) -> Grid:
    """Return the largest grid within the limits that keeps the picture's aspect ratio, rounded to whole cells."""
    across, down = size
    max_rows = height or MAX_ROWS
    rows = (width * down + across) // (2 * across)  # a cell is twice as tall as it is wide
    if rows <= max_rows:
        return width, max(1, rows)
    columns = (4 * max_rows * across + down) // (2 * down)
    return min(width, max(1, columns)), max_rows


@cache
def glyphs() -> dict[str, Image.Image]:
    """Return the coverage of each of GLYPHS as an image (L) with a pixel for each of the PARTS."""
    coverage = zlib.decompress(base64.b85decode("".join(COVERAGE.split())))
    parts = chunks(coverage, PARTS[0] * PARTS[1])
    return {name: Image.frombytes("L", PARTS, levels) for name, levels in zip(GLYPHS, parts, strict=True)}


@cache
def densities() -> list[float]:
    """Return the mean coverage of each glyph, from 0 to 1, by character code."""
    by_code = [0.0] * 256
    for name, glyph in glyphs().items():
        by_code[ord(name)] = sum(glyph.tobytes()) / (PARTS[0] * PARTS[1]) / 255
    return by_code


@cache
def variance(name: str) -> float:
    """Return the variance of the coverage within a glyph."""
    mean = densities()[ord(name)]
    levels = glyphs()[name].tobytes()
    return sum((level / 255 - mean) ** 2 for level in levels) / len(levels)


class Stencil:
    """The stencil of a glyph, and two tables by the mean difference, 0 to 255, between the stencil and a cell.

    The formulas at the head of this section say what x, m and s are.
    """

    def __init__(self, name: str) -> None:
        glyph = glyphs()[name]
        mean = densities()[ord(name)]
        deviation = math.sqrt(variance(name))
        covers = [level / 255 - mean for level in glyph.resize(SAMPLES, Image.Resampling.BOX).tobytes()]
        threshold = 0.1 * max(covers)
        white = [cover > threshold for cover in covers]
        self.image = Image.frombytes("L", SAMPLES, bytes(255 * part for part in white))

        share = sum(white) / len(white)
        covered = sum(itertools.compress(covers, white)) / len(white)
        slope = covered / (share * (1 - share))  # m is about slope * s
        flat = 128 - share  # the difference of a cell without relief, for which any glyph is equally wrong
        gain = slope / (2 * RELIEF)  # <x, m> for each level that a difference is away from `flat`

        rank_slope = 2.4 * gain / deviation
        below = linear_levels(-rank_slope, flat)
        above = linear_levels(rank_slope, flat)
        ranks = bytearray(ImageChops.lighter(below, above).tobytes())
        ranks[round(flat)] = 0
        if name == "_":  # it fits all that is darker or brighter below, but is seen as a thin line
            ranks = bytearray(max(0, rank - 5) for rank in ranks)
        self.ranks = bytes(ranks)  # how well the glyph fits the cell: 2.4 for each level that the glyph explains

        contrast_slope = gain / deviation ** 2 / 2
        contrasts = bytearray(linear_levels(-contrast_slope, flat, 128).tobytes())
        contrasts[round(flat)] = 128
        self.contrasts = bytes(contrasts)  # half the contrast that regression finds, plus 128


def linear_levels(slope: float, zero: float, base: float = 0.0) -> Image.Image:
    """Return the level that is nearest to base + slope * (level - zero) for each level, as an image (L, 256 x 1)."""
    levels = Image.frombytes("L", (len(LEVELS), 1), bytes(LEVELS)).convert("F")
    shift = base - slope * zero + 0.5
    return levels.point(lambda level: level * slope + shift).convert("L")


@cache
def stencils() -> dict[str, Stencil]:
    """Return the stencil of each of FILL_GLYPHS."""
    return {name: Stencil(name) for name in FILL_GLYPHS}


def evaluate(formula: Callable[[Operands], object], **images: Image.Image) -> Image.Image:
    """Return the image that a formula of ImageMath makes of other images: in mode F, unless the formula converts it."""
    image: Image.Image = ImageMath.lambda_eval(formula, **images)
    return image


@cache
def noise() -> Image.Image:
    """Return random levels for the cells of the largest grid (L). They repeat, so that pages can be compressed."""
    repeated = Image.new("L", (MAX_COLUMNS, MAX_ROWS))
    tile = Image.frombytes("L", (61, 4), random.Random(0).randbytes(61 * 4))
    for left in range(0, repeated.width, tile.width):
        for top in range(0, repeated.height, tile.height):
            repeated.paste(tile, (left, top))
    return repeated


@cache
def edge_shades() -> dict[str, Image.Image]:
    """Return the luma of each of EDGES as seen from afar (L, 5 x 10). The mean of the densest of INK_TONES is white."""
    densest = densities()[ord(INK_TONES[-1])]
    brighter = [level / densest for level in LEVELS]
    blur = ImageFilter.GaussianBlur(2)
    return {name: glyphs()[name].filter(blur).reduce(2).point(brighter) for name in EDGES}


def render(
    picture: Image.Image,
    width: int = 80,
    height: int | None = None,
    style: str = "fill",
    contrast: int = CONTRAST,
    background: str = "dark",
    colors: str = "true",
) -> Art:
    """Draw the picture in at most `width` columns and `height` rows (MAX_ROWS if None), in one of STYLES.

    In "fill", a glyph and its background differ by at least `contrast` (0 to 100) levels of luma; if this is 0, flat
    parts have no glyphs. In "ink", glyphs are drawn for a page that is "dark" or "light". `colors` is "true" (24-bit),
    "256" or "16", or "none" for art whose colours nobody sees.
    """
    grid = fit(picture.size, width, height)
    if picture.mode != "RGB":
        picture = flatten(picture)
    if style == "ink":
        art = render_ink(picture, grid, light=background == "light", plain=colors in ("16", "none"))
    elif colors == "16":
        art = render_fill(vivid(picture, grid), grid, contrast)
    else:
        art = render_fill(picture, grid, contrast)
    if colors in ("16", "256"):
        return limited(art, colors, contrast, background)
    return art


def varied(luma: Image.Image, most: int) -> Image.Image:
    """Return the luma of cells (L) with random changes by up to `most`, so that letters take turns in even areas."""
    changes = noise().crop((0, 0, *luma.size)).point([level * (2 * most + 1) // 256 for level in LEVELS])
    return ImageChops.add(luma, changes, offset=-most)


def chunks(data: AnyStr, size: int) -> list[AnyStr]:
    return [data[i:i + size] for i in range(0, len(data), size)]


def text_rows(codes: Image.Image) -> tuple[str, ...]:
    """Return the characters with these codes (L), as a string for each row."""
    return tuple(chunks(codes.tobytes().decode("ascii"), codes.width))


def sampled(picture: Image.Image, grid: Grid, resampling: Image.Resampling) -> Image.Image:
    """Return the picture with SAMPLES for each cell."""
    columns, rows = grid
    return picture.resize((columns * SAMPLES[0], rows * SAMPLES[1]), resampling)


def tiled(tile: Image.Image, grid: Grid) -> Image.Image:
    """Return an image (L) of `grid` columns and rows, each cell of which is a copy of the tile (L)."""
    columns, rows = grid
    across, down = tile.size
    band = b"".join(line * columns for line in chunks(tile.tobytes(), across))
    return Image.frombuffer("L", (columns * across, rows * down), band * rows, "raw", "L", 0, 1)


def cell_means(image: Image.Image, grid: Grid) -> Image.Image:
    """Return the mean of each cell as a pixel. The image's size must be a multiple of the grid's."""
    columns, rows = grid
    return image.reduce((image.width // columns, image.height // rows))


def vivid(picture: Image.Image, grid: Grid) -> Image.Image:
    """Return the picture (RGB, SAMPLES a cell) as 16 colours can show it: bright, and of strong colours."""
    samples = sampled(picture, grid, Image.Resampling.BOX)
    saturated = ImageEnhance.Color(samples).enhance(2.5)
    return ImageOps.autocontrast(saturated, cutoff=(4, 25), preserve_tone=True)


def render_fill(picture: Image.Image, grid: Grid, least: int) -> Art:
    """Draw a picture (RGB) in "fill". Glyphs fit the luma of cells. Cells keep their mean colour."""
    samples = sampled(picture.convert("L"), grid, Image.Resampling.BOX)  # the luma of BT.601
    codes, contrasts = match_glyphs(samples, grid)
    mean = picture.resize(grid, Image.Resampling.BOX)
    if least:
        place_letters(codes, contrasts, mean, least)
    foreground, background = solve_colours(codes, contrasts, mean, least)
    place_dots(codes, foreground, background, mean, least)
    return Art(text_rows(codes), foreground.tobytes(), background.tobytes())


def match_glyphs(luma: Image.Image, grid: Grid) -> tuple[Image.Image, Image.Image]:
    """Return the code of the glyph that fits each cell best, and its contrast, halved plus 128. `luma` has SAMPLES.

    A glyph that fits exactly has the contrast that regression finds. The worse it fits, the fainter it is, so that it
    looks like a part of the picture and not like a letter. Cells without relief have spaces.
    """
    flat = cell_means(luma, grid).resize(luma.size, Image.Resampling.NEAREST)
    relief = ImageChops.subtract(luma, flat, scale=1 / RELIEF, offset=128)
    codes = Image.new("L", grid, ord(" "))
    contrasts = Image.new("L", grid, 128)
    best = Image.new("L", grid, 8)  # ranks up to 8 are noise
    for name, stencil in stencils().items():
        difference = ImageChops.difference(relief, tiled(stencil.image, grid))
        differences = cell_means(difference, grid).tobytes()
        rank = Image.frombytes("L", grid, differences.translate(stencil.ranks))
        contrast = Image.frombytes("L", grid, differences.translate(stencil.contrasts))
        better = ImageChops.subtract(rank, best, scale=1 / 255)  # 255 where the rank is higher, else 0
        codes.paste(ord(name), mask=better)
        contrasts.paste(contrast, mask=better)
        best = ImageChops.lighter(best, rank)
    spread = cell_means(relief.point([abs(level - 128) for level in LEVELS]), grid)  # the mean of |x|, times RELIEF
    contrasts = faded(contrasts, best, spread)
    unseen = contrasts.point([255 * (abs(level - 128) < 3) for level in LEVELS])
    codes.paste(ord(" "), mask=unseen)
    contrasts.paste(128, mask=unseen)
    return codes, contrasts


def faded(contrasts: Image.Image, ranks: Image.Image, spread: Image.Image) -> Image.Image:
    """Return contrasts that are the smaller, the lower the rank of a glyph is for the spread of luma in its cell."""
    def formula(x: Operands) -> object:
        share = x["min"](x["rank"] * FADE / (x["spread"] + 1.0), 1.0)
        return (x["contrast"] - 128.0) * share ** 2 + 128.5

    return evaluate(formula, contrast=contrasts, rank=ranks, spread=spread).convert("L")


class ContrastTables:
    """Tables for Image.point that depend on the least contrast. In them, contrasts are halved, plus 128."""

    def __init__(self, least: int) -> None:
        half = least // 2 + 2
        dark_contrasts = [min(level, 128 - half) for level in range(128)]
        light_contrasts = [max(level, 128 + half) for level in range(128, 256)]
        # For a contrast, one that is not less than the least.
        self.raised = dark_contrasts + light_contrasts

        below_light = [int(least * density) for density in densities()[:128]]
        below_dark = [int(least * (1 - density)) for density in densities()[:128]]
        # For a code, plus 128 if the glyph is darker: how far the darker colour is below the mean.
        self.below = below_light + below_dark

        turn = 255 - least  # from here on, a lighter letter has no room, and a darker one is used
        light_letters = [LETTERS[level * len(LETTERS) // turn] for level in range(turn)]
        dark_letters = [LETTERS[(255 - level) * len(LETTERS) // (least + 1)] for level in range(turn, 256)]
        # For the largest of R, G and B, the code of a letter, and the contrast of this letter.
        self.letters = "".join(light_letters + dark_letters).encode()
        self.letter_contrasts = [128 + half] * len(light_letters) + [128 - half] * len(dark_letters)

        sizes = [abs(2 * level - 256) for level in LEVELS]
        # For a contrast, whether it is far less than the least: 255 or 0.
        self.faint = [255 * (size < 0.7 * least) for size in sizes]

        sizes[128] = 2000  # a space hides any change
        away = [8 + size // 5 for size in sizes]  # a high contrast masks a change
        nearer = [min(8 + size // 5, max(0, size - least) // 2) for size in sizes]
        # For a contrast, how much darker or lighter a shared foreground may be.
        self.fall = away[:128] + nearer[128:]
        self.rise = nearer[:128] + away[128:]


contrast_tables = cache(ContrastTables)


def place_letters(codes: Image.Image, contrasts: Image.Image, mean: Image.Image, least: int) -> None:
    """Replace glyphs that are faint or have no room by letters, and raise all contrasts to the least one."""
    tables = contrast_tables(least)
    faint = contrasts.point(tables.faint)
    contrasts.paste(contrasts.point(tables.raised))
    dark = contrasts.point([128] * 128 + [0] * 128)  # what `below` adds to the codes of darker glyphs
    below = ImageChops.add(codes, dark).point(tables.below)
    darker = ImageChops.subtract(mean.convert("L"), below)  # the luma of the darker colour; the other is `least` above
    no_room = darker.point([255] + [0] * (255 - least) + [255] * least)
    replaced = ImageChops.lighter(faint, no_room)
    red, green, blue = mean.split()
    peak = ImageChops.lighter(ImageChops.lighter(red, green), blue)  # at 255, there is no room for a lighter letter
    codes.paste(varied(peak, 15).point(tables.letters), mask=replaced)
    contrasts.paste(peak.point(tables.letter_contrasts), mask=replaced)


def place_dots(
    codes: Image.Image,
    foreground: Image.Image,
    background: Image.Image,
    mean: Image.Image,
    least: int,
) -> None:
    """Put a dot where foreground and background differ too little. A dot of any colour hardly changes the mean."""
    apart = ImageChops.difference(background.convert("L"), foreground.convert("L"))
    weak = apart.point([255] * least + [0] * (256 - least))
    if not weak.getbbox():
        return
    codes.paste(ord("."), mask=weak)
    background.paste(mean, mask=weak)
    lighter = mean.point([level + 2 * least for level in LEVELS] * 3)
    darker = mean.point([level - 2 * least for level in LEVELS] * 3)
    dark = mean.convert("L").point([255] * 128 + [0] * 128)
    foreground.paste(Image.composite(lighter, darker, dark), mask=weak)


def solve_colours(
    codes: Image.Image,
    contrasts: Image.Image,
    mean: Image.Image,
    least: int,
) -> tuple[Image.Image, Image.Image]:
    """Return foreground and background. Each cell has its mean colour and, as far as there is room, its contrast."""
    covers = [max(1e-3, density) for density in densities()]
    cover_of_cells = array.array("f", map(covers.__getitem__, codes.tobytes()))
    level = stacked(*mean.split())
    contrast = stacked(contrasts, contrasts, contrasts)
    cover = Image.frombytes("F", level.size, cover_of_cells.tobytes() * 3)

    foreground = merged(solve(
        lambda x: x["level"] + (x["contrast"] * 2.0 - 256.0) * (1.0 - x["cover"]),
        level=level, contrast=contrast, cover=cover))
    share_foregrounds(foreground, contrasts, least)
    # The background corrects a changed foreground, and the second foreground corrects a clipped background.
    ground = solve(
        lambda x: (x["level"] - x["foreground"] * x["cover"]) / (1.0 - x["cover"]),
        level=level, foreground=stacked(*foreground.split()), cover=cover)
    foreground = merged(solve(
        lambda x: (x["level"] - x["ground"] * (1.0 - x["cover"])) / x["cover"],
        level=level, ground=ground, cover=cover))

    # Few levels make all formats smaller.
    coarse = [min(255, (level + 2) // 4 * 4) for level in LEVELS] * 3
    half = merged(solve(lambda x: x["ground"] * 0.5, ground=ground))
    return foreground.point(coarse), ImageChops.add(half, half)


def stacked(*bands: Image.Image) -> Image.Image:
    """Return bands (L) one below the other, so that a formula applies to all of them."""
    width, height = bands[0].size
    levels = b"".join(band.tobytes() for band in bands)
    return Image.frombytes("L", (width, len(bands) * height), levels)


def solve(formula: Callable[[Operands], object], **images: Image.Image) -> Image.Image:
    """Return what `evaluate` returns, limited to levels."""
    return evaluate(lambda x: x["min"](x["max"](formula(x), 0.0), 255.0), **images)


def merged(plane: Image.Image) -> Image.Image:
    """Return a picture (RGB) of three bands (F) that are one below the other."""
    size = (plane.width, plane.height // 3)
    levels = plane.point(lambda level: level + 0.5).convert("L").tobytes()
    return Image.merge("RGB", [Image.frombytes("L", size, band) for band in chunks(levels, size[0] * size[1])])


def share_foregrounds(foreground: Image.Image, contrasts: Image.Image, least: int) -> None:
    """Give cells the foreground (RGB) of a cell beside them, for longer runs, where the contrasts stay similar."""
    tables = contrast_tables(least)
    luma = foreground.convert("L")
    lowest = ImageChops.subtract(luma, contrasts.point(tables.fall))
    highest = ImageChops.add(luma, contrasts.point(tables.rise))
    for step in (4, 2):  # offer the foreground of one cell in four, then of one in two
        narrow = (math.ceil(luma.width / step), luma.height)
        other = foreground.resize(narrow, Image.Resampling.NEAREST).resize(luma.size, Image.Resampling.NEAREST)
        tone = other.convert("L")
        too_dark = ImageChops.subtract(lowest, tone)
        too_light = ImageChops.subtract(tone, highest)
        shared = ImageChops.add(too_dark, too_light).point([255] + [0] * 255)
        foreground.paste(other, mask=shared)


def render_ink(picture: Image.Image, grid: Grid, light: bool, plain: bool) -> Art:
    """Draw a picture (RGB) in "ink". A glyph shows the tone of its cell, or the direction of an edge.

    `plain` glyphs show all of the tone. Others share it with their colours.
    """
    samples = sampled(picture, grid, Image.Resampling.HAMMING)
    grey = clearer(samples.convert("L"), grid, plain)
    if plain:
        gamma = 1.6
    elif light:
        gamma = 0.8
    else:
        gamma = 0.3
    bright = ImageOps.invert(grey) if light else grey
    target = bright.point([255 * (level / 255) ** gamma for level in LEVELS])
    codes = match_tones(target, grid, plain)
    tone = cell_means(grey, grid).point([255 * (level / 255) ** 0.5 for level in LEVELS])
    colours = ImageEnhance.Color(cell_means(samples, grid)).enhance(2)
    return Art(text_rows(codes), readable_colours(colours, tone, light), None)


def match_tones(target: Image.Image, grid: Grid, plain: bool) -> Image.Image:
    """Return the code of the glyph that fits each cell best. `target` (L, SAMPLES) is white for the densest glyph."""
    densest = densities()[ord(INK_TONES[-1])]
    lumas = [255 * density / densest for density in densities()]

    def nearest_tone(level: int) -> int:
        return min(INK_TONES.encode(), key=lambda code: abs(lumas[code] - level))

    means = cell_means(target, grid)
    if not plain:
        means = varied(means, 8)
    codes = means.point([nearest_tone(level) for level in LEVELS])
    flat = codes.point(lumas).resize(target.size, Image.Resampling.NEAREST)
    best = cell_means(ImageChops.difference(target, flat), grid)
    best = best.point(lambda level: level - 8)  # edges must fit better
    for name, shade in edge_shades().items():
        difference = cell_means(ImageChops.difference(target, tiled(shade, grid)), grid)
        codes.paste(ord(name), mask=ImageChops.subtract(best, difference, scale=1 / 255))
        best = ImageChops.darker(best, difference)
    return codes


def clearer(grey: Image.Image, grid: Grid, plain: bool) -> Image.Image:
    """Return the luma (L, SAMPLES a cell) over the whole range, with local contrast; more of it in `plain` text."""
    if plain:
        cutoff = 3
        gain = 1.6
    else:
        cutoff = 1
        gain = 1.3
    stretched = ImageOps.autocontrast(grey, cutoff=cutoff)
    around = cell_means(stretched, grid).filter(ImageFilter.BoxBlur(4)).resize(grey.size, Image.Resampling.BILINEAR)
    local = Image.blend(around, stretched, gain)
    return Image.blend(local.filter(ImageFilter.BoxBlur(4)), local, 1.4)


def readable_colours(colours: Image.Image, lumas: Image.Image, light: bool) -> bytes:
    """Return the colours (RGB) with these lumas (L), limited so that glyphs can be read on a dark or a light page."""
    shown = colours.point([max(1, level) for level in LEVELS] * 3)  # black gets a hue, that of grey
    luma = lumas.point([max(32, level) for level in LEVELS])
    bands = dict(zip(("red", "green", "blue"), shown.split(), strict=True))
    gain = evaluate(
        lambda x: x["luma"] / (x["red"] * 0.299 + x["green"] * 0.587 + x["blue"] * 0.114),
        luma=luma, **bands)
    peak = evaluate(lambda x: x["max"](x["max"](x["red"], x["green"]), x["blue"]) * x["gain"], gain=gain, **bands)
    # A share of white brings the largest channel down to 255, and keeps the luma.
    white = evaluate(
        lambda x: x["max"](x["peak"] - 255.0, 0.0) / (x["peak"] - x["luma"] + 1e-3),
        peak=peak, luma=luma)
    for name, band in bands.items():
        bands[name] = evaluate(
            lambda x: x["level"] * x["gain"] * (1.0 - x["white"]) + x["luma"] * x["white"],
            level=band, gain=gain, white=white, luma=luma)
    if light:
        darken(bands)
    even = [level & ~7 for level in LEVELS]  # so that more neighbours have the same colour
    return Image.merge("RGB", [band.convert("L").point(even) for band in bands.values()]).tobytes()


def darken(bands: dict[str, Image.Image]) -> None:
    """Limit colours (F) to a relative luminance of 0.28. This is MOST_LUMINANCE with a margin."""
    linear = {name: evaluate(lambda x: ((x["level"] / 255.0 + 0.055) / 1.055) ** 2.4, level=band)
              for name, band in bands.items()}
    relative_luminance = evaluate(
        lambda x: x["red"] * 0.2126 + x["green"] * 0.7152 + x["blue"] * 0.0722,
        **linear)
    for name, band in bands.items():
        bands[name] = evaluate(
            lambda x: x["level"] * x["min"]((0.28 / x["luminance"]) ** 0.5, 1.0),
            level=band, luminance=relative_luminance)


@cache
def palette(colors: str) -> dict[bytes, tuple[str, str]]:
    """Map xterm's colours (256colres.h) to SGR codes for text and background. "256" omits the 16 that themes change."""
    if colors == "16":
        basic = bytes.fromhex(
            "000000 cd0000 00cd00 cdcd00 0000ee cd00cd 00cdcd e5e5e5"
            "7f7f7f ff0000 00ff00 ffff00 5c5cff ff00ff 00ffff ffffff"
        )
        codes = (*range(30, 38), *range(90, 98))
        return {
            colour: (str(code), str(code + 10))
            for colour, code in zip(chunks(basic, 3), codes, strict=True)
        }
    cube = itertools.product((0, 95, 135, 175, 215, 255), repeat=3)
    greys = ((level, level, level) for level in range(8, 239, 10))
    extended = enumerate((*cube, *greys), 16)
    return {bytes(levels): (f"38;5;{code}", f"48;5;{code}") for code, levels in extended}


def limited(art: Art, colors: str, least: int, background: str) -> Art:
    """Return the art in the nearest of 256 or 16 colours, without the glyphs that would make their cells worse.

    If `least` is not 0, all glyphs stay, and their lumas differ from those of their backgrounds by `least` levels.
    """
    if not art.background:
        return limited_ink(art, colors, background)
    allowed = [*palette(colors)]
    columns = len(art.rows[0])
    characters = "".join(art.rows)
    wanted_foregrounds = chunks(art.foreground, 3)
    wanted_backgrounds = chunks(art.background, 3)
    means = b"".join(map(cell_mean, characters, wanted_foregrounds, wanted_backgrounds))
    near_foregrounds = chunks(nearest(art.foreground, columns, allowed), 3)
    near_backgrounds = chunks(nearest(art.background, columns, allowed), 3)
    near_means = chunks(nearest(means, columns, allowed), 3)
    wanted_colours = zip(wanted_foregrounds, wanted_backgrounds, strict=True)
    near_colours = zip(near_foregrounds, near_backgrounds, strict=True)
    cells = []
    for glyph, wanted, near, flat in zip(characters, wanted_colours, near_colours, near_means, strict=True):
        foreground, ground = near
        if least:
            cells.append((glyph, contrasting(foreground, ground, least, colors), ground))
        elif glyph != " " and improves(glyph, wanted, near, (flat, flat)):
            cells.append((glyph, foreground, ground))
        else:
            cells.append((" ", flat, flat))
    text, foregrounds, backgrounds = zip(*cells, strict=True)
    return Art(tuple(chunks("".join(text), columns)), b"".join(foregrounds), b"".join(backgrounds))


def limited_ink(art: Art, colors: str, background: str) -> Art:
    """Return art in "ink" in the nearest of 256 or 16 colours that can be read on the background."""
    if background == "light":
        readable = [colour for colour in palette(colors) if luminance(colour) <= MOST_LUMINANCE]
    else:
        readable = [colour for colour in palette(colors) if any(colour)]  # no black on black
    return art._replace(foreground=nearest(art.foreground, len(art.rows[0]), readable))


def nearest(plane: bytes, columns: int, colours: Collection[bytes]) -> bytes:
    """Return for each cell of the plane (R, G, B) the nearest of `colours`."""
    allowed = Image.new("P", (1, 1))
    allowed.putpalette(b"".join(colours))
    wanted = Image.frombytes("RGB", (columns, len(plane) // 3 // columns), plane)
    return wanted.quantize(palette=allowed, dither=Image.Dither.NONE).convert("RGB").tobytes()


def cell_mean(glyph: str, foreground: bytes, ground: bytes) -> bytes:
    """Return the mean colour of a cell."""
    if glyph == " ":
        return ground
    cover = densities()[ord(glyph)]
    return bytes(round(low + (high - low) * cover) for high, low in zip(foreground, ground, strict=True))


def improves(glyph: str, wanted: Pair, shown: Pair, flat: Pair) -> bool:
    """Tell whether a glyph in these colours is clearly closer to the wanted cell than a flat cell is."""
    return cell_error(glyph, wanted, shown) < KEPT * cell_error(glyph, wanted, flat)


def cell_error(glyph: str, wanted: Pair, shown: Pair) -> float:
    """Return how different a glyph looks in two pairs of colours.

    This is the squared difference of the means, plus three times that of the contrasts, which people notice more.
    """
    cover = densities()[ord(glyph)]
    spread = variance(glyph)
    error = 0.0
    for high, low, shown_high, shown_low in zip(*wanted, *shown, strict=True):
        contrast = (high - low) - (shown_high - shown_low)
        error += (low - shown_low + contrast * cover) ** 2 + 3 * spread * contrast ** 2
    return error


@lru_cache(1 << 14)
def contrasting(colour: bytes, ground: bytes, least: int, colors: str) -> bytes:
    """Return the colour of the palette that is nearest to a colour, `least` levels of luma from the background."""
    def difference(other: bytes) -> int:
        return sum((a - b) ** 2 for a, b in zip(colour, other, strict=True))

    return min(far_colours(ground, least, colors), key=difference)


@cache
def far_colours(ground: bytes, least: int, colors: str) -> list[bytes]:
    """Return the colours of the palette with at least `least` levels of luma between them and the background."""
    luma = luma_of(ground)
    return [other for other in palette(colors) if abs(luma_of(other) - luma) >= least]


def luma_of(colour: bytes) -> float:
    """Return the BT.601 luma of a colour, 0 to 255."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def luminance(colour: bytes) -> float:
    """Return the relative luminance of a colour, 0 to 1 (WCAG 2.2)."""
    red, green, blue = (math.pow((level / 255 + 0.055) / 1.055, 2.4) for level in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def runs(art: Art) -> Iterator[list[Run]]:
    """Yield for each row its runs of cells with the same colours. The foreground of a space does not matter."""
    foregrounds = chunks(art.foreground, 3)
    backgrounds: Sequence[bytes | None] = [None] * len(foregrounds)
    if art.background:
        backgrounds = chunks(art.background, 3)
    cells = zip("".join(art.rows), foregrounds, backgrounds, strict=True)
    for row in art.rows:
        yield row_runs(itertools.islice(cells, len(row)))


def row_runs(cells: Iterable[Cell]) -> list[Run]:
    made: list[Run] = []
    text = ""
    foreground: bytes | None = None  # of the letters in the run, if there are any
    background: bytes | None = None
    for glyph, colour, ground in cells:
        blank = glyph == " "
        fits = ground == background and (blank or foreground is None or colour == foreground)
        if text and not fits:
            made.append((text, foreground, background))
            text = ""
            foreground = None
        text += glyph
        background = ground
        if not blank:
            foreground = colour
    made.append((text, foreground, background))
    return made


def to_text(art: Art) -> str:
    """Return the glyphs without colours, in lines."""
    return "".join(f"{row}\n" for row in art.rows)


def to_ansi(art: Art, colors: str = "true") -> str:
    """Return lines with SGR sequences where colours change. Each ends with a reset.

    The art must have been drawn with these `colors`.
    """
    codes = {} if colors == "true" else palette(colors)
    parts: list[str] = []
    levels: list[int] = []  # they fill the placeholders of all parts at once, which is fast
    for row in runs(art):
        shown_foreground = None
        shown_background = None
        for text, foreground, background in row:
            changes = []
            if background and background != shown_background:
                if codes:
                    changes.append(codes[background][1])
                else:
                    changes.append("48;2;%d;%d;%d")
                    levels += background
            if foreground and foreground != shown_foreground:
                if codes:
                    changes.append(codes[foreground][0])
                else:
                    changes.append("38;2;%d;%d;%d")
                    levels += foreground
                shown_foreground = foreground
            if changes:
                parts.append(f"\x1b[{';'.join(changes)}m")
            parts.append(text.replace("%", "%%"))
            shown_background = background
        parts.append("\x1b[0m\n")
    return "".join(parts) % tuple(levels)


class Patch(NamedTuple):
    """Some cells of art. The planes are as in Art."""

    places: Sequence[int]  # the cells of the art are counted from the top left, row by row
    glyphs: str
    foreground: bytes
    background: bytes | None

    def cells(self) -> dict[int, Cell]:
        """Return the cells by place."""
        foregrounds = chunks(self.foreground, 3)
        backgrounds: Sequence[bytes | None] = [None] * len(foregrounds)
        if self.background is not None:
            backgrounds = chunks(self.background, 3)
        cells = zip(self.glyphs, foregrounds, backgrounds, strict=True)
        return dict(zip(self.places, cells, strict=True))


def cut(art: Art, places: Iterable[int]) -> Patch:
    """Return the cells of the art at these places."""
    chosen = array.array("H", sorted(places))
    text = "".join(art.rows)

    def cut_plane(plane: bytes) -> bytes:
        return b"".join(plane[3 * place:3 * place + 3] for place in chosen)

    glyphs_there = "".join(text[place] for place in chosen)
    background = cut_plane(art.background) if art.background else None
    return Patch(chosen, glyphs_there, cut_plane(art.foreground), background)


def changed_places(before: Image.Image, after: Image.Image, grid: Grid, share: float) -> list[int]:
    """Return the places of the cells that two pictures of the same size differ in most, at most a share of all cells.

    There are at most MOST_CHANGED of them.
    """
    difference = ImageChops.difference(before, after).resize(grid, Image.Resampling.BOX)
    red, green, blue = difference.split()
    levels = ImageChops.lighter(ImageChops.lighter(red, green), blue).tobytes()
    changed = [place for place, level in enumerate(levels) if level >= LEAST_CHANGE]
    changed.sort(key=levels.__getitem__, reverse=True)
    most = min(MOST_CHANGED, math.ceil(share * len(levels)))
    return changed[:most]


def to_changes(cells: Mapping[int, Cell], grid: Grid, colors: str = "true") -> str:
    """Return what draws these cells over art of this grid, for a terminal with these `colors`.

    The cursor is on the line below the art and one more line. It returns there, and the colours are plain again.
    """
    columns, rows = grid
    cursor_row = rows + 1
    cursor_column = 0
    shown: Colours = (None, None)
    parts = []
    for place in sorted(cells):
        row, column = divmod(place, columns)
        if row != cursor_row:
            parts.append(lines_down(row - cursor_row))
            cursor_row = row
            cursor_column = -1
        if column != cursor_column:
            parts.append(f"\x1b[{column + 1}G")
            cursor_column = column
        glyph, foreground, background = cells[place]
        if glyph == " ":
            foreground = shown[0] or foreground  # which nobody sees
        parts.append(sgr(shown, (foreground, background), colors) + glyph)
        shown = (foreground, background)
        cursor_column += 1
    parts.append(f"\x1b[0m{lines_down(rows - cursor_row)}\n")  # a line feed makes curl show what it has
    return "".join(parts)


def lines_down(count: int) -> str:
    """Return what moves the cursor down by so many lines, or up if the count is negative."""
    if not count:
        return ""
    direction = "B" if count > 0 else "A"
    return f"\x1b[{abs(count)}{direction}"


def sgr(before: Colours, after: Colours, colors: str) -> str:
    """Return what changes the colours of text and background, or "" if they stay."""
    changes = []
    for plane, (old, new) in enumerate(zip(before, after, strict=True)):  # 0: of the text, 1: of its background
        if not new or new == old:
            continue
        if colors == "true":
            changes.append("%d8;2;%d;%d;%d" % (3 + plane, *new))
        else:
            changes.append(palette(colors)[new][plane])
    if not changes:
        return ""
    return f"\x1b[{';'.join(changes)}m"


def to_png(art: Art, background: str, bubble: Bubble = SILENCE) -> bytes:
    """Return a PNG of the art with a bubble of ASCII."""
    picture = pictured(art, background)
    if bubble is not SILENCE:
        picture = with_drawn_bubble(picture, len(art.rows[0]), background, bubble)
    return written(picture, "PNG", compress_level=4)


def with_drawn_bubble(picture: Image.Image, columns: int, background: str, bubble: Bubble) -> Image.Image:
    """Return a picture of art of so many columns with the bubble, on a page of this background."""
    drawn = drawn_bubble(bubble, background, bubble.scale * picture.width // columns)
    if bubble.above:
        size = (max(picture.width, drawn.width), picture.height + drawn.height)
        art_corner = (0, drawn.height)
        bubble_corner = (0, 0)
    else:
        size = (picture.width + drawn.width, max(picture.height, drawn.height))
        art_corner = (0, 0)
        bubble_corner = (picture.width, 0)
    joined_picture = Image.new("RGB", size, BACKGROUNDS[background])
    joined_picture.paste(picture, art_corner)
    joined_picture.paste(drawn, bubble_corner)
    return joined_picture


def drawn_bubble(bubble: Bubble, background: str, cell_width: int) -> Image.Image:
    """Return a picture of a bubble for a page of this background, with cells of this width in pixels."""
    lines = bubble.above or bubble.beside
    width = max(map(len, lines))
    rows = tuple(line.ljust(width) for line in lines)
    ink = BACKGROUNDS["light" if background == "dark" else "dark"]
    art = Art(rows, bytes(ink) * width * len(rows), None)
    size = (cell_width * width, 2 * cell_width * len(rows))
    return pictured(art, background).resize(size, Image.Resampling.BICUBIC)


def pictured(art: Art, background: str) -> Image.Image:
    """Return a picture of the art. A cell has 10 x 20 pixels, or 5 x 10 in large art."""
    columns = len(art.rows[0])
    rows = len(art.rows)
    step = 1 if columns * rows <= MOST_LARGE_CELLS else 2
    width = PARTS[0] // step
    height = PARTS[1] // step
    tiles = {name: glyph.reduce(step) for name, glyph in glyphs().items()}
    page = bytes(BACKGROUNDS[background]) * (columns * rows)
    picture = Image.new("RGB", (columns * width, rows * height))
    for row, names in enumerate(art.rows):  # row by row, because the layers of a whole picture take 70 MB
        colours = slice(3 * columns * row, 3 * columns * (row + 1))
        mask = Image.new("L", (columns * width, height))
        for column, name in enumerate(names):
            mask.paste(tiles[name], (column * width, 0))
        foreground = enlarged_row(art.foreground[colours], mask.size)
        behind = enlarged_row((art.background or page)[colours], mask.size)
        picture.paste(Image.composite(foreground, behind, mask), (0, row * height))
    return picture


def enlarged_row(colours: bytes, size: tuple[int, int]) -> Image.Image:
    """Return a picture of this size whose columns of equal width have these colours, as RGB."""
    return Image.frombytes("RGB", (len(colours) // 3, 1), colours).resize(size, Image.Resampling.NEAREST)


def written(picture: Image.Image, format: str, **options: int) -> bytes:
    """Return the bytes of a file with the picture, in one of Pillow's formats."""
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def to_html(art: Art) -> str:
    """Return the content of a <pre> element: the glyphs as text. Its colours are the layers."""
    return html.escape("\n".join(art.rows), quote=False)


def layer(plane: bytes | None, columns: int) -> str:
    """Return a picture with a pixel for each cell as a URL for CSS, or "none" without a plane. It is lossless."""
    if plane is None:
        return "none"
    return picture_url(Image.frombytes("RGB", (columns, len(plane) // 3 // columns), plane))


def patch_layer(patch: Patch, grid: Grid) -> str:
    """Return a layer for art of this grid that shows the mean colours of a patch, as a URL for CSS."""
    picture = Image.new("RGBA", grid)
    columns, _ = grid
    for place, (glyph, foreground, background) in patch.cells().items():
        if background is not None:
            mean = cell_mean(glyph, foreground, background)
            picture.putpixel((place % columns, place // columns), (*mean, 255))
    return picture_url(picture)


def picture_url(picture: Image.Image) -> str:
    file = written(picture, "WEBP", lossless=True, quality=0, method=0)  # more effort saves less than a tenth
    return f"url(data:image/webp;base64,{base64.b64encode(file).decode()})"


def to_dict(art: Art) -> dict[str, object]:
    """Return the art for JSON: rows as text, and for each row the colours of its cells, each as six hex digits."""
    width = len(art.rows[0])

    def in_hex(plane: bytes) -> list[str]:
        return plane.hex(" ", 3 * width).split()

    return {
        "width": width,
        "height": len(art.rows),
        "style": "fill" if art.background else "ink",
        "rows": art.rows,
        "foreground": in_hex(art.foreground),
        "background": in_hex(art.background) if art.background else None,
    }


class Layout(NamedTuple):
    """A bubble, and the columns and rows that it takes from the art."""

    columns: int
    rows: int
    bubble: Bubble


def sayable(text: str) -> str:
    """Return a text that a cat can say. Raises ValueError, which does not repeat the text."""
    if len(text) > MAX_SAID:
        raise ValueError(f"{len(text):,} characters are more than the {MAX_SAID} that a cat can say")
    for character in text:
        if character.isprintable() or character in JOINERS:
            continue
        if unicodedata.category(character) != "Zs":  # spaces of other widths, such as that of Japanese
            raise ValueError(f"a cat cannot say {quoted(character)}, which is not a printable character")
    return text


def in_cells(text: str) -> str:
    """Return the text without what terminals disagree about: each emoji of a sequence becomes one of its own."""
    return unicodedata.normalize("NFC", re.sub(SEQUENCES, "", text))


def in_ascii(text: str) -> str:
    """Return the text in the glyphs that a PNG has: letters without accents, and "?" for what is not in ASCII."""
    alone = re.sub(SEQUENCES, "", text).translate(ASCII_FORMS)
    parts = unicodedata.normalize("NFKD", alone)
    letters = [part for part in parts if not unicodedata.category(part).startswith("M")]
    return "".join(letters).encode("ascii", "replace").decode()


@lru_cache(1 << 12)
def cells_of(character: str) -> int:
    """Return how many columns of a terminal a character takes."""
    if unicodedata.category(character) in ("Mn", "Me"):  # it is drawn over the character before it
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def columns_of(text: str) -> int:
    return sum(map(cells_of, text))


def wrapped(text: str, width: int) -> list[str]:
    """Return the words of a text in lines of at most `width` columns. A word breaks only if it is wider than a line."""
    lines = [""]
    left = width  # columns that the last line has left
    for word in text.split():
        taken = columns_of(word)
        breaks = taken > width
        if lines[-1] and (breaks or taken < left):
            lines[-1] += " "
            left -= 1
        elif lines[-1]:
            lines.append("")
            left = width
        pieces = list(word) if breaks else [word]
        for piece in pieces:
            taken = columns_of(piece)
            if taken > left:
                lines.append("")
                left = width
            lines[-1] += piece
            left -= taken
    return [line.rstrip() for line in lines]


def balanced(text: str, width: int, most: int) -> list[str]:
    """Return the text in lines of about the same length, of `width` columns at most. "..." ends the last of `most`."""
    lines = wrapped(text, width)
    if len(lines) > most:
        *kept, last = lines[:most]
        beginning = wrapped(last, width - 3)[0]
        return [*kept, f"{beginning}..."]

    def suffices(narrower: int) -> bool:
        return len(wrapped(text, narrower)) <= len(lines)

    longest = min(width, max(map(columns_of, text.split())))
    fewer = bisect.bisect_left(range(longest, width), True, key=suffices)
    return wrapped(text, longest + fewer)


def framed(lines: list[str]) -> list[str]:
    """Return the lines in a frame, all of the same width."""
    width = max(2, *map(columns_of, lines))
    padded = [line + " " * (width - columns_of(line)) for line in lines]
    edge = "-" * (width + 2)
    return [f".{edge}.", *(f"| {line} |" for line in padded), f"'{edge}'"]


def bubble_above(lines: list[str], columns: int) -> Bubble:
    """Return a bubble that points down at the middle of art of so many columns."""
    *frame, bottom = framed(lines)
    left = max(0, (columns - len(bottom)) // 2)
    middle = columns // 2 - 2 - left
    mouth = max(1, min(middle, len(bottom) - 5))
    opened_bottom = bottom[:mouth] + ".  ." + bottom[mouth + 4:]
    tip = " " * (mouth + 1) + "\\/"
    return Bubble(above=[" " * left + line for line in (*frame, opened_bottom, tip)])


def bubble_beside(lines: list[str], rows: int) -> Bubble:
    """Return a bubble that points left at the upper half of art of so many rows."""
    frame = ["  " + line for line in framed(lines)]
    mouth = (len(frame) - 1) // 2
    frame[mouth] = " < " + frame[mouth][3:]
    lowest = rows - len(frame)
    top = max(0, min(lowest, rows // 2 - 1 - mouth))
    return Bubble(beside=[""] * top + frame)


def layouts(text: str, size: tuple[int, int], width: int, height: int) -> Iterator[Layout]:
    """Yield what there is room for in `width` columns and `height` rows, with a picture of this size."""
    words = text.split()
    if not words or width < NARROWEST:
        return
    most = max(1, height // 2 - 3)  # so that half of the rows are for the cat
    lines = balanced(text, min(width - 4, LONGEST_LINE), most)
    taken = len(lines) + 3
    if taken < height:
        columns, _ = fit(size, width, height - taken)
        yield Layout(0, taken, bubble_above(lines, columns))
    longest = max(map(columns_of, words))
    least = SHORTEST_LINE
    if SHORTEST_LINE < longest <= LONGEST_WORD:
        least = longest
    for room in range(least, LONGEST_LINE + 1, 8):
        taken = room + 6
        if width - taken < SHORTEST_LINE:
            return
        columns, rows = fit(size, width - taken, height)
        lines = balanced(text, min(width - columns - 6, LONGEST_LINE), MAX_SAID)
        if len(lines) + 2 <= rows:
            yield Layout(taken, 0, bubble_beside(lines, rows))


def best_layout(text: str, size: tuple[int, int], width: int, height: int) -> Layout | None:
    """Return the layout that leaves the largest art for a picture, or None if there is no room for any bubble."""
    most_cells = math.prod(fit(size, width, height))

    def cells(layout: Layout) -> int:
        columns, rows = fit(size, width - layout.columns, height - layout.rows)
        return min(most_cells, columns * rows)

    return max(layouts(text, size, width, height), key=cells, default=None)


def with_bubble(rows: Sequence[str], bubble: Bubble) -> list[str]:
    """Return the rows of art with the bubble, as lines."""
    pairs = itertools.zip_longest(rows, bubble.beside, fillvalue="")
    return [*bubble.above, *map("".join, pairs)]


# ---------------------------------------------------------------------------------------------------------------------
# House cats: pictures drawn from a seed, so that there is always a cat
# ---------------------------------------------------------------------------------------------------------------------

# The tables say what there is: heads, bodies, coats, and what is around a cat. HouseCat chooses from them, and Scene
# decides how the cat is drawn. Then draw_house_cat draws it, and Film makes it move.

HOUSE_CATS = 2**32
FIRST_SEED = 754_723  # of house-0; thus the icon and house-42, the example in the docs, are portraits
HOUSE_CAT_IDS = f"house-0 to house-{HOUSE_CATS - 1}"
PORTRAIT = (480, 360)  # the size of a picture in pixels
SKETCH = (240, 180)
ROOM = (160, 120)
BLACK = "#140d10"
WHITE = "#ffffff"
LIGHT = "#fff4e0"
SHADOW = "#150d2c"
PINK = "#d98f8a"
# Points are complex numbers: 0 is the middle of the cat's face, x runs right, y runs down, and the cheeks are at
# distance 1. The points of a list are on a smooth closed curve; those of a tuple are the corners of a polygon.
Shape = Sequence[complex]
Ink = tuple[str, float, Sequence[Shape]]  # a colour or its name, alpha, and what has this colour
Polygon = tuple[tuple[int, ...], Shape]  # a colour with alpha, and corners in pixels
Place = Callable[[Shape], Shape]  # returns the corners of a shape in pixels
HEXAGON = [cmath.rect(1, i / 6 * cmath.tau) for i in range(6)]


def mirrored(shape: Shape) -> Shape:
    """Return the mirror image of a shape, on the other side of the face."""
    points = [-z.conjugate() for z in shape]
    if isinstance(shape, tuple):
        return tuple(points)
    return points


def both(*shapes: Shape) -> list[Shape]:
    """Return each shape and, after it, its mirror image."""
    return [side for shape in shapes for side in (shape, mirrored(shape))]


def symmetric(*half: complex) -> Shape:
    """Return a symmetric shape, given the points of its right half from top to bottom."""
    return [*half, *mirrored(half[::-1])]


def stroke(width: float, root: complex, middle: complex, tip: complex) -> Shape:
    """Return a stroke of the brush, which is thin at both ends and `width` wide in the middle."""
    way = (tip - root) / abs(tip - root)
    side = 1j * way * width / 2
    return [root, middle - side, tip, middle + side]


def oval(centre: complex, rx: float, ry: float) -> Shape:
    """Return an ellipse with the radii `rx` and `ry`."""
    return [centre + complex(rx * z.real, ry * z.imag) for z in HEXAGON]


def whorl(centre: complex, rx: float, ry: float) -> Shape:
    """Return a thick line around a centre, which it leaves open on one side."""
    around = [cmath.rect(1, angle) for angle in (0.5, 1.4, 2.3, 3.2, 4.1, 5.0, 5.8)]
    edges = [*around, *(z * 0.6 for z in reversed(around))]
    return [centre + complex(rx * z.real, ry * z.imag) for z in edges]


def dots(rx: float, ry: float, *centres: complex) -> list[Shape]:
    return [oval(centre, rx, ry) for centre in centres]


def stripes(width: float, *places: float) -> list[Shape]:
    """Return stripes across a limb, at these places along it."""
    return [[x-2j, x + width - 2j, x + width + 2j, x+2j] for x in places]


def streaks(width: float, root: complex, middle: complex, tip: complex, *places: float) -> list[Shape]:
    """Return the same stroke at several places along a limb."""
    return [stroke(width, x + root, x + middle, x + tip) for x in places]


# The head: its shapes, ears, eyes and mouths, and the moods that choose the eyes and the mouth.

SKULL = symmetric(0.12-0.86j, 0.40-0.80j, 0.72-0.60j, 0.96-0.18j, 1.05+0.22j, 0.92+0.54j, 0.56+0.78j, 0.18+0.88j)
TUFTS = both([0.86+0.1j, 1.08+0.22j, 1.26+0.5j, 1.06+0.56j, 1.1+0.76j, 0.8+0.76j, 0.5+0.8j])  # of long hair
EAR_FOOT = 0.6-0.5j
EAR = [0.97-0.22j, 1.02-0.62j, 1.01-1.02j, 0.94-1.34j, 0.70-1.20j, 0.42-0.96j, 0.16-0.70j, 0.5-0.3j]
CONCH = [0.88-0.48j, 0.93-0.82j, 0.89-1.16j, 0.70-1.04j, 0.48-0.80j, 0.58-0.58j]
EARS = {  # how far the right and the left ear are turned, and the words for that
    "up": (0, 0, ""),
    "back": (0.36, 0.36, "its ears back"),
    "one": (0, 0.42, "one ear turned"),
}
MUZZLE = [
    *both(oval(0.19+0.54j, 0.26, 0.17)),
    oval(0.70j, 0.2, 0.13),
    oval(0.4j, 0.16, 0.2),
]
NOSE = symmetric(0.05+0.32j, 0.145+0.345j, 0.11+0.425j, 0.02+0.49j)
PORES = both(*(dot[::2] for dot in dots(0.014, 0.014, 0.2+0.5j, 0.31+0.51j, 0.24+0.59j, 0.35+0.58j)))
WHISKERS = both(
    stroke(0.022, 0.32+0.51j, 0.8+0.42j, 1.35+0.47j),
    stroke(0.022, 0.32+0.565j, 0.8+0.54j, 1.35+0.67j),
    stroke(0.022, 0.32+0.62j, 0.8+0.66j, 1.35+0.87j),
)
FACE_LIGHTS = [  # shapes, and how much lighter they are
    ([oval(-0.5j, 0.35, 0.25)], 28),
    (both(oval(0.42+0.02j, 0.34, 0.33)), -32),
    (both(stroke(0.14, 0.20-0.05j, 0.14+0.15j, 0.20+0.36j)), -34),
    ([oval(0.12j, 0.08, 0.22)], 40),
    (both(oval(0.2+0.55j, 0.2, 0.13)), 30),
]
EYES = {
    "green": "#5f9a35 #d3ea86",
    "amber": "#cf8a1c #ffe07a",
    "copper": "#b35a18 #ffb455",
    "blue": "#3f86d6 #bfe8ff",
}
EYE = [-0.31+0.10j, -0.22-0.17j, 0.02-0.29j, 0.24-0.19j, 0.33-0.03j, 0.24+0.17j, 0.02+0.265j, -0.2+0.22j]
BROW = [-0.28+0.08j, -0.19-0.14j, 0.02-0.25j, 0.2-0.16j, 0.29-0.02j, 0.18-0.09j, 0.02-0.13j, -0.15-0.05j]
LID = [-0.32-0.02j, -0.22-0.175j, 0.02-0.295j, 0.24-0.195j, 0.35+0.03j, 0.22+0.08j, 0.02+0.02j, -0.18-0.045j]
SHUT = [-0.30-0.02j, -0.17+0.12j, 0.02+0.17j, 0.2+0.09j, 0.34-0.08j, 0.23+0.16j, 0.02+0.26j, -0.2+0.2j]
OPEN: list[Ink] = [
    ("black", 1, [EYE]),
    ("iris", 1, [[0.01j + z * 0.86 for z in EYE]]),
    ("glow", 0.35, [[0.05j + z * 0.72 for z in EYE]]),
    ("glow", 0.45, [[0.10j + z * 0.52 for z in EYE]]),
    ("shadow", 0.45, [BROW]),
]
HALF_CLOSED: list[Ink] = [
    ("black", 1, [LID]),
    ("lid", 1, [[z * 0.91 - 0.03j for z in LID]]),
]
PUPIL: list[Ink] = [
    ("black", 1, [oval(0, 0.14, 0.2)]),
    ("white", 1, [oval(0.08-0.1j, 0.075, 0.075), oval(-0.09+0.1j, 0.035, 0.035)]),
]


class Look(NamedTuple):
    """How the right eye is drawn. The pupil moves with the gaze."""

    under: Sequence[Ink]
    pupil: Sequence[Ink] = ()
    over: Sequence[Ink] = ()
    size: float = 1


LOOKS = {
    "open": Look(OPEN, PUPIL, size=0.92),
    "wide": Look(OPEN, PUPIL, size=1.08),
    "half": Look(OPEN, PUPIL, HALF_CLOSED),
    "closed": Look([("line", 1, [SHUT])]),
    "happy": Look([("line", 1, [[0.14j + z.conjugate() * 1.06 for z in SHUT]])]),
}
NOSTRILS: list[Ink] = [
    ("black", 0.35, PORES),
    ("black", 1, [NOSE]),
    ("nose", 1, [[0.4j + (z - 0.4j) * 0.78 for z in NOSE]]),
]
PHILTRUM = stroke(0.035, 0.46j, 0.53j, 0.61j)
SMILE: Ink = ("line", 1, [PHILTRUM, *both(stroke(0.045, 0.57j, 0.14+0.66j, 0.31+0.60j))])
TONGUE = symmetric(0.04+0.6j, 0.115+0.64j, 0.11+0.76j, 0.05+0.83j)
MOUTHS: dict[str, list[Ink]] = {
    "smile": [SMILE],
    "small": [("line", 1, [PHILTRUM, *both(stroke(0.04, 0.58j, 0.08+0.63j, 0.17+0.60j))])],
    "grin": [("line", 1, [PHILTRUM, *both(stroke(0.055, 0.56j, 0.17+0.7j, 0.40+0.55j))])],
    "tongue": [
        ("#7d2f3c", 1, [TONGUE]),
        ("#f08a94", 1, [[0.6j + (z - 0.6j) * 0.82 for z in TONGUE]]),
        ("#c9606c", 1, [stroke(0.02, 0.62j, 0.67j, 0.74j)]),
        SMILE,
    ],
    "yawn": [
        ("black", 1, [symmetric(0.06+0.50j, 0.2+0.54j, 0.27+0.72j, 0.2+0.92j, 0.07+0.99j)]),
        ("#8c3440", 1, [symmetric(0.06+0.53j, 0.17+0.57j, 0.23+0.72j, 0.17+0.89j, 0.06+0.95j)]),
        ("#f08a94", 1, [symmetric(0.05+0.74j, 0.14+0.78j, 0.14+0.88j, 0.05+0.94j)]),
        ("white", 1, both([0.09+0.53j, 0.17+0.55j, 0.13+0.66j])),
    ],
}


class Mood(NamedTuple):
    """How a cat looks. Its eyes are open, wide, half, closed or happy."""

    eyes: str
    mouth: str
    doing: str = ""
    gaze: str = ""  # an adjective of the eyes
    trait: str = ""


MOODS = {
    "calm": Mood("open", "smile"),
    "curious": Mood("wide", "small", gaze="wide "),
    "sleepy": Mood("half", "smile", gaze="half-closed "),
    "happy": Mood("happy", "grin", "smiling"),
    "cheeky": Mood("open", "tongue", trait="its tongue out"),
    "yawning": Mood("closed", "yawn", "yawning"),
    "asleep": Mood("closed", "smile"),
}


# The body: limbs and poses.


class Limb:
    """A part of the cat: circles along a curve. It has the patterns of its kinds, and is darker if it is "far"."""

    def __init__(self, kinds: str, *path: tuple[complex, float], melt: float = 0) -> None:
        self.kinds = kinds.split()
        self.path = path  # the middles and radii of some circles
        self.melt = melt  # the share of its length that melts into the parts behind
        self.breathes = self.kinds[0] in ("front", "side", "back")


def pair(kinds: str, *path: tuple[complex, float], melt: float = 0) -> tuple[Limb, Limb]:
    """Return a limb, and its mirror image on the other side of the cat."""
    other_side = [(-z.conjugate(), radius) for z, radius in path]
    return Limb(kinds, *path, melt=melt), Limb(kinds, *other_side, melt=melt)


class Pose(NamedTuple):
    """What a cat does, and where its parts are."""

    doing: str
    size: float  # pixels of the distance 1
    face: complex  # the pixel of its middle
    limbs: Sequence[Limb]  # behind the head
    front: Sequence[Limb] = ()  # before the head
    over: Sequence[Limb] = ()  # before the box or the table
    tilt: float = 0  # of the head, in radians
    facing: complex = 0j  # where the face is turned to
    moods: str = "calm calm curious sleepy happy cheeky yawning"  # one that is repeated is likelier
    worn: str = "bell bow"
    floor: int = 0  # the pixel where it begins
    stage: str = ""  # a thing that it always has, if it is not in a box
    boxed: str = ""  # what a cat in a box does
    box: tuple[int, int, int] = (0, 0, 0)  # left, top and right pixels of the box
    beside: tuple[int, int] = (0, 0)  # where a plant stands, and where wool lies


POSES = {
    "portrait": Pose(
        "",
        size=121,
        face=240+202j,
        limbs=[Limb("front", (0.25+0.75j, 0.5), (0.1+1.2j, 0.95), (0.1+1.8j, 1.15))],
    ),
    "sitting": Pose(
        "sitting",
        size=86,
        face=240+130j,
        limbs=[
            Limb("front", (0.6j, 0.5), (1.2j, 0.66), (1.85j, 0.84), (2.1j, 0.86)),
            *pair("haunch", (0.62+2.0j, 0.5), (0.8+2.27j, 0.36)),
            *pair("leg", (0.27+1.2j, 0.3), (0.26+1.9j, 0.21), (0.27+2.4j, 0.2), melt=0.4),
            *pair("paw", (0.28+2.36j, 0.19), (0.3+2.46j, 0.21)),
            Limb(
                "tail",
                (1.05+2.1j, 0.15),
                (1.22+2.42j, 0.18),
                (0.75+2.56j, 0.18),
                (0.1+2.56j, 0.16),
                (-0.4+2.5j, 0.12),
            ),
        ],
        floor=255,
        boxed="sitting in a box",
        box=(98, 262, 382),
        beside=(70, 415),
    ),
    "profile": Pose(
        "sitting in profile",
        size=84,
        face=160+128j,
        limbs=[
            Limb("tail", (1.7+2.2j, 0.18), (2.2+2.42j, 0.19), (2.6+2.1j, 0.18), (2.55+1.5j, 0.16), (2.25+1.3j, 0.11)),
            Limb("far leg", (0.25+1.2j, 0.3), (0.22+1.8j, 0.2), (0.12+2.35j, 0.19), (2.42j, 0.2)),
            Limb("side belly", (0.25+0.4j, 0.55), (0.5+1.0j, 0.68), (0.85+1.55j, 0.83), (1.05+1.85j, 0.8)),
            Limb("haunch", (1.05+1.75j, 0.64), (1.0+1.95j, 0.6)),
            Limb("paw", (1.1+2.4j, 0.2), (0.7+2.42j, 0.2)),
            Limb("leg", (0.3+1.1j, 0.38), (0.1+1.8j, 0.24), (-0.05+2.35j, 0.19), (-0.2+2.42j, 0.21), melt=0.35),
        ],
        facing=-0.24,
        floor=260,
        beside=(425, 420),
    ),
    "loaf": Pose(
        "in a loaf",
        size=94,
        face=165+165j,
        limbs=[
            Limb("side belly", (0.1+0.75j, 0.62), (0.45+0.75j, 0.85), (1.1+0.72j, 1.0), (1.75+0.85j, 0.88)),
            Limb("haunch", (1.75+1.12j, 0.55), (1.85+1.25j, 0.5)),
            Limb("paw", (-0.3+1.55j, 0.17), (-0.1+1.57j, 0.17)),
            Limb("paw", (0.22+1.6j, 0.17), (0.42+1.6j, 0.17)),
            Limb("tail", (2.45+1.45j, 0.15), (2.1+1.66j, 0.19), (1.5+1.7j, 0.18), (1.0+1.64j, 0.13)),
        ],
        floor=250,
        boxed="in a box",
        box=(70, 262, 425),
        beside=(430, 425),
    ),
    "curled": Pose(
        "asleep",
        size=88,
        face=150+210j,
        limbs=[Limb("side", (0.4+0.1j, 0.6), (1.0-0.5j, 0.85), (1.8-0.4j, 0.98), (2.3+0.2j, 0.88), (1.4+0.5j, 0.7))],
        front=[Limb("tail", (2.6+0.6j, 0.2), (2.2+1.02j, 0.26), (1.4+1.12j, 0.26), (0.6+1.03j, 0.27), (0.95j, 0.2))],
        tilt=0.3,
        moods="asleep",
        worn="bow",
        floor=230,
        boxed="asleep in a box",
        box=(50, 268, 430),
        beside=(430, 430),
    ),
    "walking": Pose(
        "walking",
        size=74,
        face=125+130j,
        limbs=[
            Limb("tail", (2.9+0.75j, 0.17), (3.3+0.3j, 0.17), (3.4-0.4j, 0.16), (3.25-0.95j, 0.15), (2.85-1.1j, 0.1)),
            Limb("far leg", (1.0+1.2j, 0.3), (1.15+1.8j, 0.2), (1.4+2.4j, 0.17), (1.3+2.5j, 0.18)),
            Limb("far leg", (2.4+1.1j, 0.4), (2.2+1.8j, 0.22), (2.2+2.2j, 0.17), (1.95+2.5j, 0.18)),
            Limb("side belly", (0.4+0.6j, 0.5), (1.1+0.95j, 0.68), (1.9+0.95j, 0.66), (2.5+0.95j, 0.62)),
            Limb("leg", (0.75+1.15j, 0.36), (0.65+1.8j, 0.22), (0.4+2.45j, 0.17), (0.25+2.55j, 0.19), melt=0.3),
            Limb(
                "leg",
                (2.45+1.1j, 0.5),
                (2.75+1.7j, 0.27),
                (2.65+2.1j, 0.18),
                (2.85+2.5j, 0.17),
                (2.7+2.57j, 0.19),
                melt=0.3,
            ),
        ],
        facing=-0.14,
        floor=260,
        beside=(440, 440),
    ),
    "stretching": Pose(
        "stretching",
        size=74,
        face=130+195j,
        limbs=[
            Limb("tail", (2.9-0.5j, 0.17), (3.3-1.0j, 0.17), (3.3-1.7j, 0.16), (3.0-2.1j, 0.14), (2.7-2.05j, 0.1)),
            Limb("far leg", (2.4+0.2j, 0.4), (2.25+0.9j, 0.22), (2.3+1.3j, 0.17), (2.0+1.6j, 0.18)),
            Limb("side belly", (0.4+0.5j, 0.5), (1.0+0.75j, 0.62), (1.85+0.25j, 0.66), (2.5-0.15j, 0.66)),
            Limb("far leg", (0.8+1.0j, 0.3), (1.3j, 0.2), (-1.0+1.42j, 0.18), (-1.2+1.42j, 0.19)),
            Limb(
                "leg",
                (2.5, 0.6),
                (2.85+0.55j, 0.3),
                (2.75+1.1j, 0.18),
                (2.9+1.6j, 0.17),
                (2.75+1.66j, 0.19),
                melt=0.3,
            ),
            Limb("leg", (0.85+1.0j, 0.34), (0.2+1.46j, 0.22), (-0.6+1.62j, 0.18), (-0.85+1.62j, 0.2), melt=0.3),
        ],
        facing=-0.12,
        moods="calm curious happy happy cheeky yawning yawning",
        floor=265,
        beside=(430, 425),
    ),
    "back": Pose(
        "on its back",
        size=88,
        face=150+235j,
        limbs=[
            Limb("tail", (2.2-0.8j, 0.18), (2.75-0.5j, 0.18), (2.9+0.1j, 0.17), (2.6+0.5j, 0.12)),
            Limb("front", (0.3, 0.5), (0.95-0.2j, 0.72), (1.65-0.35j, 0.82), (1.9-0.4j, 0.78)),
            Limb("leg", (1.9+0.1j, 0.4), (2.25+0.4j, 0.3)),
            Limb("leg", (1.75-0.95j, 0.4), (2.0-1.4j, 0.3)),
            Limb("sole", (2.3+0.35j, 0.25), (2.2+0.7j, 0.25)),
            Limb("sole", (2.0-1.3j, 0.25), (1.8-1.7j, 0.25)),
        ],
        front=[
            Limb("leg", (0.6-0.7j, 0.24), (0.9-1.1j, 0.22), (0.8-1.35j, 0.2)),
            Limb("leg", (0.9+0.35j, 0.24), (1.3+0.55j, 0.22), (1.2+0.85j, 0.2)),
        ],
        tilt=-1.95,
        moods="calm curious happy happy cheeky",
        worn="bow",
        floor=90,
        beside=(430, 430),
    ),
    "peeking": Pose(
        "peeking over a table",
        size=124,
        face=240+206j,
        limbs=[Limb("front", (0.8j, 0.8), (0.1+1.2j, 0.9))],
        over=pair("paw", (0.93+0.45j, 0.21), (0.97+0.66j, 0.23)),
        moods="calm curious curious sleepy",
        worn="bow",
        stage="table",
        boxed="peeking out of a box",
        box=(60, 270, 420),
    ),
    "shoulder": Pose(
        "looking over its shoulder",
        size=88,
        face=200+133j,
        limbs=[
            Limb("tail", (1.0+2.35j, 0.18), (1.6+2.5j, 0.2), (2.2+2.35j, 0.19), (2.5+1.85j, 0.17), (2.4+1.45j, 0.12)),
        ],
        front=[
            Limb("back", (0.5+1.0j, 0.36), (0.6+1.25j, 0.6), (0.55+1.75j, 0.86), (0.5+1.95j, 0.9)),
            Limb("haunch", (1.15+2.15j, 0.4), (1.2+2.25j, 0.36)),
            Limb("haunch", (-0.15+2.15j, 0.4), (-0.2+2.25j, 0.36)),
        ],
        facing=-0.2+0.05j,
        worn="bow",
        floor=255,
        beside=(60, 440),
    ),
}
TOES = [stroke(0.12, 1.0+0.33j, 1.5+0.33j, 2.2+0.36j), stroke(0.12, 1.0-0.33j, 1.5-0.33j, 2.2-0.36j)]  # between them


# The coat: colours and patterns.


class Coat(NamedTuple):
    """The colours and patterns of a cat. It has one of its colours of eyes; "blue/amber" has one of each."""

    name: str
    fur: str
    belly: str
    mark: str
    patch: str
    nose: str
    patterns: str
    eyes: str
    room: str = "deep"  # "pale" behind dark fur


COATS = (
    Coat("brown tabby", "#a07c54", "#ead7b5", "#38281b", "", "#b5655a", "tabby", "green amber"),
    Coat("silver tabby", "#a7abae", "#f0eeea", "#34373d", "", "#b86b66", "tabby", "green amber"),
    Coat("grey tabby", "#8793a3", "#dfe4e8", "#454e5c", "", "#b07a78", "tabby", "copper green"),
    Coat("ginger tabby", "#dd8f40", "#f9e3c0", "#a04c16", "", "#d97f74", "tabby", "amber green copper"),
    Coat("cream tabby", "#eed4a6", "#fdf4e3", "#c98f4e", "", "#e0908a", "tabby", "amber copper blue"),
    Coat("ginger-and-white tabby", "#dd8f40", "#fbf4e8", "#a04c16", "", "#e0877f", "tabby white", "green amber"),
    Coat("black cat", "#2e2d35", "#45434d", "", "", "#1a181c", "", "amber green copper", "pale"),
    Coat("grey cat", "#737d8a", "#98a1ab", "", "", "#3d4149", "", "copper amber green"),
    Coat("white cat", "#f2efe9", "#ffffff", "", "", "#e79a97", "", "blue green amber blue/amber"),
    Coat("black-and-white cat", "#2a2a31", "#f7f4ee", "", "", "#d98583", "white", "green amber", "pale"),
    Coat("grey-and-white cat", "#707a86", "#f5f3ef", "", "", "#d98583", "white", "amber green copper"),
    Coat("seal-point cat", "#ecdfc8", "#f5ecdb", "#54402f", "", "#2b1d19", "points", "blue"),
    Coat("flame-point cat", "#f5e8d4", "#fdf6ea", "#cd8348", "", "#e0908a", "points", "blue"),
    Coat("calico cat", "#f4f0e8", "#ffffff", "#dc8c3c", "#322c2d", "#e0877f", "calico", "green amber copper"),
    Coat("tortoiseshell cat", "#3b3130", "#b98a5e", "#c87a33", "#e6b676", "#a0635a", "tortie", "amber green", "pale"),
)
TABBIES = "mackerel", "spotted", "classic"
M_STRIPES = both(
    stroke(0.11, 0.58-0.30j, 0.46-0.52j, 0.37-0.84j),
    stroke(0.10, 0.39-0.70j, 0.24-0.45j, 0.09-0.14j),
    stroke(0.08, 0.15-0.50j, 0.17-0.64j, 0.18-0.90j),
    stroke(0.10, 0.64+0.03j, 0.86+0.05j, 1.08-0.04j),
    stroke(0.11, 0.56+0.27j, 0.80+0.36j, 1.08+0.30j),
    stroke(0.09, 0.60+0.50j, 0.76+0.58j, 0.96+0.56j),
)
ALL: Shape = [-3-3j, 4-3j, 4+3j, -3+3j]
LENGTH = stripes(0.3, -0.3, -0.1, 0.1, 0.3, 0.5, 0.7, 0.9, 1.1)
END: Shape = [0.62-2j, 2-2j, 2+2j, 0.62+2j]
TIP: Shape = [0.84-2j, 1.6-2j, 1.6+2j, 0.84+2j]
SIDE_SPOTS = [x + y for x in (0.08, 0.22, 0.36, 0.5, 0.64, 0.78, 0.92) for y in (-0.88j, 0.06-0.5j, -0.1j, 0.06+0.3j)]
BACK_SPOTS = [x + y for x in (0.2, 0.36, 0.52, 0.68, 0.84) for y in (-0.75j, 0.05-0.4j, 0, 0.05+0.4j, 0.75j)]
SPINE: Shape = [0.05-0.1j, 1-0.13j, 1+0.13j, 0.05+0.1j]
# The patterns of each kind of part. On the head, points are as above. On a limb, x runs along it from 0 to 1, and y
# across it from -1 to 1. Every cat has the patterns of "".
PATTERNS: dict[str, dict[str, dict[str, list[Shape]]]] = {
    "": {
        "head": {"belly": MUZZLE},
        "front": {"belly": [[-0.1-0.35j, 0.3-0.5j, 0.7-0.42j, 1.2-0.3j, 1.2+0.3j, 0.7+0.42j, 0.3+0.5j, -0.1+0.35j]]},
        "belly": {"belly": [[-0.1+0.5j, 0.3+0.66j, 0.65+0.72j, 1.2+0.8j, 1.2+2j, -0.1+2j]]},
        "sole": {"pink": [oval(0.95, 0.3, 0.42), *dots(0.17, 0.2, 1.55-0.62j, 1.7-0.22j, 1.7+0.22j, 1.55+0.62j)]},
    },
    "mackerel": {
        "head": {"mark": M_STRIPES},
        "front": {
            "mark": [
                *streaks(0.12, -1.2j, 0.02-0.85j, 0.1-0.5j, 0.2, 0.36, 0.52, 0.68, 0.84),
                *streaks(0.12, 1.2j, 0.02+0.85j, 0.1+0.5j, 0.2, 0.36, 0.52, 0.68, 0.84),
            ],
        },
        "side": {"mark": streaks(0.1, -1.2j, 0.02-0.5j, -0.04+0.4j, 0.1, 0.25, 0.4, 0.55, 0.7, 0.85)},
        "back": {
            "mark": [
                SPINE,
                *streaks(0.1, -1.2j, -0.1-0.6j, -0.12-0.2j, 0.3, 0.47, 0.64, 0.81, 0.98),
                *streaks(0.1, 1.2j, -0.1+0.6j, -0.12+0.2j, 0.3, 0.47, 0.64, 0.81, 0.98),
            ],
        },
        "haunch": {"mark": streaks(0.4, -1.2j, 0.1-0.7j, -0.1-0.1j, -0.8, 0, 0.8)},
        "leg": {"mark": streaks(0.09, -1.2j, 0.02-0.3j, 0.5j, 0.28, 0.46, 0.64)},
        "tail": {"mark": [TIP, *stripes(0.08, 0.12, 0.3, 0.48, 0.66)]},
    },
    "spotted": {
        "head": {"mark": M_STRIPES},
        "front": {
            "mark": dots(
                0.045, 0.1, 0.25+0.7j, 0.42+0.85j, 0.45+0.6j, 0.6+0.75j, 0.78+0.9j, 0.78+0.6j, 0.3-0.8j, 0.4-0.58j,
                0.55-0.8j, 0.66-0.55j, 0.75-0.85j,
            ),
        },
        "side": {"mark": dots(0.035, 0.13, *SIDE_SPOTS)},
        "back": {"mark": dots(0.04, 0.1, *BACK_SPOTS)},
        "haunch": {"mark": dots(0.2, 0.11, -0.9-0.1j, -0.3-0.5j, -0.1+0.25j, 0.5-0.2j, 1.1-0.55j, 1+0.3j)},
        "leg": {"mark": dots(0.04, 0.25, 0.25-0.3j, 0.36+0.35j, 0.48-0.4j, 0.6+0.2j)},
        "tail": {"mark": [TIP, *stripes(0.08, 0.12, 0.3, 0.48, 0.66)]},
    },
    "classic": {
        "head": {"mark": [*M_STRIPES, *both(stroke(0.14, 0.52+0.42j, 0.84+0.5j, 1.0+0.02j))]},
        "front": {
            "mark": [
                *streaks(0.22, -1.3j, 0.04-0.8j, 0.16-0.42j, 0.3, 0.66),
                *streaks(0.22, 1.3j, 0.04+0.8j, 0.16+0.42j, 0.3, 0.66),
            ],
        },
        "side": {
            "mark": [
                whorl(0.56-0.1j, 0.2, 0.55),
                oval(0.56-0.1j, 0.06, 0.16),
                [0.1-1.4j, 1-1.4j, 1-0.85j, 0.1-0.85j],
                stroke(0.14, 0.2-1.2j, 0.26-0.4j, 0.18+0.5j),
                stroke(0.12, 0.86-1.2j, 0.9-0.2j, 0.84+0.5j),
            ],
        },
        "back": {
            "mark": [
                SPINE,
                *streaks(0.2, -1.2j, -0.12-0.6j, -0.1-0.3j, 0.36, 0.66, 0.96),
                *streaks(0.2, 1.2j, -0.12+0.6j, -0.1+0.3j, 0.36, 0.66, 0.96),
            ],
        },
        "haunch": {"mark": streaks(0.7, -1.3j, 0.2-0.7j, -0.1, -0.5, 0.8)},
        "leg": {"mark": streaks(0.13, -1.2j, 0.02-0.3j, 0.5j, 0.32, 0.58)},
        "tail": {"mark": [[0.72-2j, 1.6-2j, 1.6+2j, 0.72+2j], *stripes(0.14, 0.12, 0.42)]},
    },
    "white": {
        "head": {"belly": [symmetric(0.015-0.62j, 0.07-0.3j, 0.12+0.05j, 0.30+0.28j, 0.56+0.50j, 0.46+0.95j)]},
        "leg": {"belly": [END]},
        "paw": {"belly": [ALL]},
        "sole": {"belly": [ALL]},
        "tail": {"belly": [TIP]},
    },
    "points": {
        "head": {"mark": [*both(EAR), oval(0.25j, 0.48, 0.56)]},
        "leg": {"mark": [END]},
        "paw": {"mark": [ALL]},
        "sole": {"mark": [ALL]},
        "tail": {"mark": LENGTH},
    },
    "calico": {
        "head": {
            "mark": [[0.10-0.9j, 0.16-0.45j, 0.30-0.05j, 0.62+0.2j, 1.1+0.2j, 1.2-1.5j]],
            "patch": [[-0.24-0.9j, -0.3-0.5j, -0.36-0.2j, -0.66+0.1j, -1.1+0.1j, -1.2-1.5j]],
        },
        "front": {
            "mark": [[0.3+0.5j, 0.5+0.35j, 0.8+0.6j, 0.9+1.3j, 0.3+1.4j]],
            "patch": [[0.5-0.7j, 0.75-0.5j, 0.95-0.8j, 0.9-1.4j, 0.4-1.4j]],
        },
        "side": {
            "mark": [[0.16-1.3j, 0.18-0.5j, 0.3+0.1j, 0.45-0.1j, 0.5-1.3j]],
            "patch": [[0.62-1.3j, 0.6-0.4j, 0.72+0.2j, 0.9+0.1j, 1.1-0.3j, 1.2-1.3j]],
        },
        "back": {
            "mark": [[0.15-0.1j, 0.4+0.3j, 0.45+1.3j, 0.1+1.4j]],
            "patch": [[0.45-0.1j, 0.7+0.2j, 0.95-0.2j, 0.9-1.3j, 0.5-1.4j]],
        },
        "haunch": {"mark": [[-0.6-1.2j, -0.5-0.3j, 0.3+0.1j, 0.9-0.5j, 0.7-1.4j]]},
        "tail": {
            "mark": stripes(0.2, -0.1, 0.05, 0.2),
            "patch": [TIP, *stripes(0.2, 0.5, 0.65, 0.8)],
        },
    },
    "tortie": {
        "head": {
            "mark": [
                [0.02-0.9j, 0.08-0.45j, 0.05-0.1j, 0.2+0.25j, 0.5+0.4j, 0.75+0.6j, 1.1+0.3j, 0.95-0.3j, 0.8-0.7j],
                oval(-0.5+0.45j, 0.17, 0.12),
                oval(-0.45-0.62j, 0.14, 0.08),
            ],
            "patch": [[-0.02-0.75j, 0.07-0.5j, 0.05-0.1j, -0.05-0.3j], oval(0.7+0.45j, 0.12, 0.07)],
        },
        "front": {
            "mark": [oval(0.3+0.5j, 0.12, 0.25), oval(0.6-0.6j, 0.12, 0.3), oval(0.85+0.5j, 0.1, 0.3)],
            "patch": [oval(0.45-0.2j, 0.06, 0.12), oval(0.7+0.75j, 0.05, 0.12)],
        },
        "side": {
            "mark": [
                [0.1-1.2j, 0.12-0.4j, 0.22-0.1j, 0.3-0.6j, 0.3-1.2j],
                oval(0.42+0.1j, 0.09, 0.22),
                [0.55-1.2j, 0.56-0.6j, 0.7-0.3j, 0.78-1.2j],
                oval(0.85+0.1j, 0.07, 0.25),
            ],
            "patch": dots(0.04, 0.12, 0.33-0.3j, 0.62+0.3j, 0.9-0.6j),
        },
        "back": {
            "mark": dots(0.12, 0.3, 0.3+0.4j, 0.6-0.5j, 0.85+0.4j),
            "patch": dots(0.05, 0.12, 0.45-0.1j, 0.75+0.1j),
        },
        "haunch": {
            "mark": [oval(-0.2-0.5j, 0.7, 0.35)],
            "patch": [oval(0.7+0.2j, 0.3, 0.15)],
        },
        "leg": {"mark": [oval(0.45-0.2j, 0.1, 0.5)]},
        "tail": {"mark": stripes(0.18, 0.2, 0.6)},
    },
}


# What is around the cat: things and rooms.

ACCENTS = "#d2404b", "#2d8fc4", "#e7b32f", "#7d55b8", "#3d9a68"  # of bows, collars and wool
COLLAR = [-0.68+0.66j, -0.40+0.86j, 0.92j, 0.40+0.86j, 0.68+0.66j,
          0.66+0.80j, 0.40+1.0j, 1.08j, -0.40+1.0j, -0.66+0.80j]
GLEAM = [-0.66+0.65j, -0.40+0.85j, 0.91j, 0.40+0.85j, 0.66+0.65j, 0.40+0.91j, 0.97j, -0.40+0.91j]
BOW = both([0.02, 0.16-0.2j, 0.4-0.26j, 0.44+0.04j, 0.38+0.24j, 0.14+0.14j])
LEAF_TIPS = [-0.75-0.75j, 0.75-0.8j, -0.45-1.25j, 0.5-1.3j, 0.05-1.5j, -0.85-0.3j, 0.85-0.35j]
LEAVES = [stroke(0.26, 0, 0.62 * z.real + 0.6j * z.imag, z) for z in LEAF_TIPS]
THREADS = [
    [z * cmath.rect(1, turn) for z in stroke(0.09, -0.8 + y * 0.6j, y * 1.05j, 0.8 + y * 0.6j)]
    for turn in (0.5, 1.15, -0.7)
    for y in (-0.75, -0.25, 0.25, 0.75)
]


class Thing(NamedTuple):
    """A thing that a cat has: how it is described, and how it is drawn."""

    phrase: str
    behind: Sequence[Ink] = ()  # the cat
    under: Sequence[Ink] = ()  # the face, on the fur
    before: Sequence[Ink] = ()  # the cat


THINGS = {
    "": Thing(""),
    "bell": Thing(
        "a bell",
        under=[
            ("accent", 1, [COLLAR]),
            ("light", 0.6, [GLEAM]),
            ("#8a5a14", 1, [oval(1.14j, 0.16, 0.16)]),
            ("#f5c84c", 1, [oval(1.13j, 0.14, 0.14)]),
            ("white", 0.9, [oval(-0.05+1.07j, 0.035, 0.03)]),
            ("#8a5a14", 1, [oval(1.18j, 0.035, 0.035)]),
            ("#8a5a14", 1, [stroke(0.04, -0.11+1.13j, 1.16j, 0.11+1.13j)]),
        ],
    ),
    "bow": Thing(
        "a bow",
        before=[
            ("dark", 1, [[z * 1.1 for z in loop] for loop in BOW]),
            ("accent", 1, BOW),
            ("light", 0.5, [[z * 0.55 - 0.05j for z in loop] for loop in BOW]),
            ("dark", 1, [oval(0.02j, 0.11, 0.13)]),
            ("light", 1, [oval(-0.01-0.01j, 0.08, 0.1)]),
        ],
    ),
    "wool": Thing(
        "by a ball of wool",
        before=[
            ("shadow", 0.45, [oval(0.1+0.92j, 1.1, 0.16)]),
            ("dark", 1, [stroke(0.12, 0.9j, -1.2+1.15j, -2.3+0.9j)]),
            ("dark", 1, [oval(0, 1, 1)]),
            ("accent", 1, [oval(-0.08-0.1j, 0.88, 0.86)]),
            ("light", 0.5, THREADS),
        ],
    ),
    "plant": Thing(
        "by a plant",
        behind=[
            ("#3f7d47", 1, LEAVES[:2]),
            ("#579a55", 1, LEAVES[2:5]),
            ("#2f6640", 1, LEAVES[5:]),
            ("#a5d18a", 0.25, [[*leaf[:3], (leaf[1] + leaf[3]) / 2] for leaf in LEAVES]),
            ("#c0623f", 1, [(-0.42-0.02j, 0.42-0.02j, 0.32+0.75j, -0.32+0.75j)]),
            ("#d08a63", 1, [(-0.47-0.12j, 0.47-0.12j, 0.45+0.1j, -0.45+0.1j)]),
        ],
    ),
    # A box or a table reaches from -1 to 1. 0 is the middle of its upper edge, and y is in hundreds of pixels.
    "box": Thing(
        "",
        behind=[
            ("#c59e71", 1, [(-0.9-0.34j, 0.9-0.34j, 0.76-0.62j, -0.76-0.62j)]),
            ("#614744", 1, [(-0.9-0.34j, 0.9-0.34j, 1, -1)]),
        ],
        before=[
            ("#bd8d58", 1, [(-1, 1, 0.96+1.1j, -0.96+1.1j)]),
            ("#dec19c", 1, [(-1, 1, 1+0.07j, -1+0.07j)]),
            ("#cea778", 1, [(1, 1.32+0.2j, 1.26+0.4j, 0.99+0.12j), (-1, -1.32+0.2j, -1.26+0.4j, -0.99+0.12j)]),
            ("#694d42", 0.8, [oval(0.6j, 0.09, 0.11)]),
            ("#694d42", 0.8, dots(0.035, 0.07, -0.11+0.48j, -0.04+0.39j, 0.04+0.39j, 0.11+0.48j)),
        ],
    ),
    "table": Thing(
        "",
        before=[
            ("#8f5c3e", 1, [(-1, 1, 1+1j, -1+1j)]),
            ("#bc997f", 1, [(-1, 1, 1+0.15j, -1+0.15j)]),
            ("shadow", 0.35, [(-1+0.15j, 1+0.15j, 1+0.21j, -1+0.21j)]),
            ("shadow", 0.3, [stroke(0.03, -0.9+0.5j, -0.2+0.42j, 0.4+0.52j)]),
            ("shadow", 0.3, [stroke(0.03, -0.2+0.75j, 0.4+0.68j, 0.95+0.76j)]),
        ],
    ),
    "moon": Thing("at a window under the moon"),
    "rain": Thing("at a window in the rain"),
}
ROOMS = {  # the colours of shadows, walls and lamps
    "pale": (
        "#6f9fae #b5d5d2 #fff6e0",
        "#cf8069 #f2c4a6 #fff3dc",
        "#6c98c6 #b9d5ea #fff8e6",
        "#8fae6e #d0e0aa #fffae2",
        "#b98bb0 #ecc9d8 #fff4e6",
    ),
    "deep": (
        "#12303c #35807a #f3f0c8",
        "#211a44 #74529a #fbe0cc",
        "#16301f #56904d #f6f0b8",
        "#32142b #9c4560 #ffdcb4",
        "#10203f #4475b2 #f8f0d0",
        "#29130e #84482b #ffe6b0",
    ),
}
GREYS = {  # how light the parts of a room are
    "pale": {"wall": 95, "bright wall": 165, "shadow": 23, "window": 200, "sky": 62},
    "deep": {"wall": 28, "bright wall": 125, "shadow": 7, "window": 96, "sky": 6},
}
FLOORS = {"pale": 0.8, "deep": 0.62}  # the share of the wall's light that a floor has


class HouseCat:
    """What a seed (0 to 2**32 - 1) decides about a cat, without drawing it. The order of the choices is fixed."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(FIRST_SEED + seed)
        self.coat = choose_coat(rng)
        self.long_hair = rng.random() < 0.25
        self.eyes = rng.choice(self.coat.eyes.split())  # a colour, or two with a slash between them
        self.pose = rng.choice(tuple(POSES))
        pose = POSES[self.pose]
        self.mood = rng.choice(pose.moods.split())
        self.ears = rng.choice(("up", "up", "up", "back", "one"))
        self.stage = pose.stage  # a box or a table
        if pose.boxed and rng.random() < 0.4:
            self.stage = "box"
        self.worn = rng.choice(("", "", *pose.worn.split()))
        self.beside = ""
        if any(pose.beside) and not self.stage:
            self.beside = rng.choice(("", "wool", "plant"))
        self.sight = rng.choice(("", "", "moon", "rain"))  # at the window
        self.things = (self.stage, self.worn, self.beside, self.sight)  # "" for each that it does not have

    @property
    def description(self) -> str:
        """What the cat looks like, such as "a calico cat asleep in a box, with a bow"."""
        pose = POSES[self.pose]
        mood = MOODS[self.mood]
        hair = "long-haired" if self.long_hair else ""
        doing = pose.doing
        if self.stage == "box":
            doing = pose.boxed
        doing = joined(" and ", doing, mood.doing)
        where = joined(" ", doing, THINGS[self.beside].phrase, THINGS[self.sight].phrase)
        cat = joined(" ", "a", hair, self.coat.name, where)

        _, _, ears = EARS[self.ears]
        traits = [described_eyes(self.eyes, mood), mood.trait, ears, THINGS[self.worn].phrase]
        *others, last = list(filter(None, traits)) or [""]
        listed = joined(" and ", ", ".join(others), last)
        between = ", with " if where else " with "
        return joined(between, cat, listed)


def choose_coat(rng: random.Random) -> Coat:
    """Return a random coat. A tabby has one of the patterns that tabbies have."""
    coat = rng.choice(COATS)
    tabby = rng.choice(TABBIES)
    if "tabby" not in coat.patterns:
        return coat
    name = coat.name.replace("tabby", f"{tabby} tabby")
    patterns = coat.patterns.replace("tabby", tabby)
    return coat._replace(name=name, patterns=patterns)


def described_eyes(colours: str, mood: Mood) -> str:
    """Return what is said of the eyes, or "" if they are closed."""
    if not LOOKS[mood.eyes].pupil:
        return ""
    first, *others = colours.split("/")
    if others:
        return f"one {first} and one {others[0]} eye"
    return f"{mood.gaze}{first} eyes"


def joined(between: str, *parts: str) -> str:
    """Join the parts that are not empty."""
    return between.join(filter(None, parts))


def house_words() -> set[str]:
    """Return all words that descriptions of house cats may contain."""
    phrases = ["a long-haired and with one eye eyes", *TABBIES, *EYES]
    phrases += [coat.name for coat in COATS]
    phrases += [thing.phrase for thing in THINGS.values()]
    phrases += [phrase for pose in POSES.values() for phrase in (pose.doing, pose.boxed)]
    phrases += [phrase for mood in MOODS.values() for phrase in (mood.doing, mood.gaze, mood.trait)]
    phrases += [phrase for _, _, phrase in EARS.values()]
    return set(" ".join(phrases).split())


# A cat is sketched in grey, at half the size: how much light falls on each part, where it is, and where its coat has
# which colour. Then each colour is painted as a range from shadow to light, with hairs at all edges. Finally, shapes
# with crisp edges are drawn in ink: the face, and things.

WEIGHTS = [  # of four points, for three points of the curve
    ((2*t*t - t - t**3) / 2, (2 - 5*t*t + 3*t**3) / 2, (t + 4*t*t - 3*t**3) / 2, (t**3 - t*t) / 2)
    for t in (0, 1 / 3, 2 / 3)
]
Bounds = tuple[float, float, float, float]  # left, top, right, bottom


def smooth(points: Sequence[complex]) -> list[complex]:
    """Return corners on the curve from the second to the next to last point, without its end (Catmull-Rom spline)."""
    quads = zip(points, points[1:], points[2:], points[3:], strict=False)
    return [wa * a + wb * b + wc * c + wd * d for a, b, c, d in quads for wa, wb, wc, wd in WEIGHTS]


def curve(points: Sequence[complex]) -> Shape:
    """Return the corners of a polygon that looks like a smooth closed curve through the points."""
    return smooth([points[-1], *points, *points[:2]])


def outlined(shape: Shape, points: Sequence[complex]) -> Shape:
    """Return the corners of a shape whose points are there: a tuple has corners, and a list is a smooth curve."""
    if isinstance(shape, tuple):
        return points
    return curve(points)


def at(spot: complex, unit: complex) -> Place:
    """Return what places shapes at a spot, in a unit of pixels."""

    def place(shape: Shape) -> Shape:
        return outlined(shape, [spot + unit * z for z in shape])

    return place


def along(left: float, top: float, right: float) -> Place:
    """Return what places the shapes of a box or a table, whose upper edge is there."""
    middle = (left + right) / 2
    half = (right - left) / 2

    def place(shape: Shape) -> Shape:
        return outlined(shape, [complex(middle + half * z.real, top + 100 * z.imag) for z in shape])

    return place


def corners(points: Iterable[complex]) -> list[tuple[float, float]]:
    return [(z.real, z.imag) for z in points]


def bounds(points: Iterable[complex]) -> Bounds:
    xs, ys = zip(*corners(points), strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def circle(centre: complex, radius: float) -> Bounds:
    return centre.real - radius, centre.imag - radius, centre.real + radius, centre.imag + radius


@lru_cache(256)
def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def mixed(colour: str, other: str, share: float) -> str:
    """Return a colour with a share of another one."""
    levels = [round(a + (b - a) * share) for a, b in zip(rgb(colour), rgb(other), strict=True)]
    return "#" + bytes(levels).hex()


@lru_cache(64)
def ramp(*stops: str) -> bytes:
    """Return a palette of 256 colours, which run through the stops."""
    levels = b"".join(bytes(rgb(stop)) for stop in stops)
    colours = Image.frombytes("RGB", (len(stops), 1), levels)
    between_middles = (0.5, 0, len(stops) - 0.5, 1)
    return colours.resize((256, 1), Image.Resampling.BILINEAR, between_middles).tobytes()


@lru_cache(64)
def fur(colour: str) -> bytes:
    """Return a palette of fur from deep shadow to bright light."""
    darker = [mixed(colour, SHADOW, share) for share in (0.85, 0.42)]
    lighter = [mixed(colour, LIGHT, share) for share in (0.42, 0.85)]
    return ramp(*darker, colour, *lighter)


def tinted(tone: Image.Image, colours: bytes) -> Image.Image:
    """Return a grey image in the 256 colours of a palette."""
    image = tone.copy()
    image.putpalette(colours)
    return image.convert("RGB")


def fainter(plane: Image.Image, share: float) -> Image.Image:
    """Return a grey plane with this share of its levels."""
    return Image.blend(Image.new("L", plane.size), plane, share)


class Moment(NamedTuple):
    """How a cat is just now: a cat that is alive breathes, blinks and twitches an ear."""

    breath: float = 0.0  # from 0 to 1: how far the chest has risen
    eyes: str = ""  # "open", "half" or "closed"; "" is as the mood has them
    ear: float = 0.0  # from -1 to 1: how far an ear is turned


STILL = Moment()


class Head:
    """Where the head is. What stands out moves further when the face turns to look somewhere."""

    def __init__(self, centre: complex, turn: complex, facing: complex) -> None:
        self.centre = centre  # in pixels
        self.turn = turn  # its length is the size in pixels
        self.facing = facing

    def place(self, depth: float, scale: float = 1) -> Place:
        """Return what places shapes that stand out so far."""
        return at(scale * (self.centre + self.turn * self.facing * depth), scale * self.turn)


class Scene:
    """What is decided about the drawing of a seed's cat at a moment. The order of the choices is fixed."""

    def __init__(self, seed: int, moment: Moment) -> None:
        rng = random.Random(FIRST_SEED + HOUSE_CATS + seed)
        self.cat = HouseCat(seed)
        self.pose = POSES[self.cat.pose]
        centre = self.pose.face + jitter(rng, 8, 4)
        turn = cmath.rect(self.pose.size, self.pose.tilt + rng.uniform(-0.12, 0.12))
        facing = self.pose.facing + jitter(rng, 0.12, 0.06)
        self.head = Head(centre, turn, facing)

        right, left, _ = EARS[self.cat.ears]
        self.right_ear = right + rng.uniform(-0.1, 0.15) + 0.35 * moment.ear
        self.left_ear = left + rng.uniform(-0.1, 0.15)
        self.breath = moment.breath
        self.fluff = 2.6
        if not self.cat.long_hair:
            self.fluff = rng.uniform(1, 1.8)
        self.eyes = moment.eyes or MOODS[self.cat.mood].eyes
        self.gaze = jitter(rng, 0.04, 0.02)
        self.pupil = rng.uniform(0.85, 1.15)  # its size

        self.colours = ink_colours(self.cat.coat, accent=rng.choice(ACCENTS))
        self.room = rng.choice(ROOMS[self.cat.coat.room]).split()
        self.glow = complex(rng.uniform(11, 29), rng.uniform(10, 18))  # where the wall is brightest, of 40 x 30
        self.spots = [complex(rng.random(), rng.random()) for _ in range(30)]  # lamps, stars or drops, from 0 to 1


def jitter(rng: random.Random, x: float, y: float) -> complex:
    """Return a random offset, at most so far in each direction."""
    return complex(rng.uniform(-x, x), rng.uniform(-y, y))


def ink_colours(coat: Coat, accent: str) -> dict[str, str]:
    """Return the colours of inks by name. Things have the accent, and a lighter and a darker tone of it."""
    line = BLACK
    if coat.room == "pale":  # the coat is dark
        line = mixed(coat.fur, LIGHT, 0.5)
    return {
        "black": BLACK,
        "white": WHITE,
        "shadow": SHADOW,
        "nose": coat.nose,
        "line": line,
        "accent": accent,
        "dark": mixed(accent, SHADOW, 0.4),
        "light": mixed(accent, WHITE, 0.4),
    }


@cache
def hairs() -> Image.Image:
    """Return a sheet of grey hairs, which grow from its middle to all sides, and a bit down."""
    rng = random.Random(1)
    half = Image.new("L", (180, 270), 128)
    pen = ImageDraw.Draw(half)
    for _ in range(1450):
        way = cmath.rect(1, cmath.pi * (rng.random() - 0.5))
        root = 135j + way * rng.random() ** 0.6 * 220
        tip = root + (way + 0.5j * rng.random()) * rng.uniform(5, 11)
        pen.line(corners([root, tip]), rng.choice((60, 95, 160, 195)))
    sheet = Image.new("L", (360, 270))
    sheet.paste(half, (180, 0))
    sheet.paste(ImageOps.mirror(half), (0, 0))
    return sheet.resize((720, 540), Image.Resampling.BICUBIC)


def hairy(mask: Image.Image, hair: Image.Image, sharp: float) -> Image.Image:
    """Return a blurred mask with edges of hair."""
    return ImageChops.add(mask, hair, 1 / sharp, round(128 - 255 * sharp))


class Frame(NamedTuple):
    """A part of a sketch, in its pixels."""

    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def around(cls, edges: Bounds, margin: float) -> Frame:
        """Return the frame of edges with a margin, as far as they are in the sketch."""
        left = max(0, int(edges[0] - margin))
        top = max(0, int(edges[1] - margin))
        right = min(SKETCH[0], int(edges[2] + margin) + 1)
        bottom = min(SKETCH[1], int(edges[3] + margin) + 1)
        return cls(left, top, max(left + 1, right), max(top + 1, bottom))

    def doubled(self, left: int = 0, top: int = 0) -> tuple[int, int, int, int]:
        """Return this part of the picture, seen from there."""
        return 2 * self.left - left, 2 * self.top - top, 2 * self.right - left, 2 * self.bottom - top

    def large(self, plane: Image.Image, blur: float = 0) -> Image.Image:
        """Return this part of a plane, blurred, at the size of the picture."""
        part = plane.crop(self)
        if blur:
            part = part.filter(ImageFilter.BoxBlur(blur))
        return part.resize((2 * part.width, 2 * part.height), Image.Resampling.BILINEAR)

    def hair(self, crown: complex) -> Image.Image:
        """Return hairs for this part, at the size of the picture, which grow away from a pixel of the picture."""
        sheet = hairs()
        left, top, right, bottom = self.doubled()
        x = round(sheet.width / 2 + left - crown.real)
        y = round(sheet.height / 2 + top - crown.imag)
        x = max(0, min(sheet.width - right + left, x))
        y = max(0, min(sheet.height - bottom + top, y))
        return sheet.crop((x, y, x + right - left, y + bottom - top))

    def filled(self, polygons: Iterable[tuple[Shape, int]], ground: int = 0) -> Image.Image:
        """Return this part of a grey plane with polygons, each of its level."""
        plane = Image.new("L", SKETCH, ground)
        pen = ImageDraw.Draw(plane)
        for polygon, level in polygons:
            pen.polygon(corners(polygon), level)
        return plane.crop(self)

    def masks(self, coat: Coat, kinds: Iterable[str], place: Place) -> dict[str, Image.Image]:
        """Return a mask for each colour that a part of these kinds has."""
        shapes: dict[str, list[tuple[Shape, int]]] = {}
        for pattern in ("", *coat.patterns.split()):
            for kind in kinds:
                for colour, marks in PATTERNS[pattern].get(kind, {}).items():
                    shapes.setdefault(colour, []).extend((place(mark), 255) for mark in marks)
        return {colour: self.filled(polygons) for colour, polygons in shapes.items()}


class Sketch:
    """Parts of a cat in grey: how light they are, where they are, and where they have which colour."""

    def __init__(self) -> None:
        self._tone = Image.new("L", SKETCH, 128)
        self.where = Image.new("L", SKETCH)
        self._colours: dict[str, Image.Image] = {}

    def add(self, part: Image.Image, frame: Frame, colours: Mapping[str, Image.Image], relief: float,
            details: Image.Image | None = None, tone: int = 132, melt: Image.Image | None = None) -> None:
        """Add a part. Light falls on it from the upper left, and it casts a shadow on the parts behind it."""
        soft = part.filter(ImageFilter.BoxBlur(relief))
        mask = part.filter(ImageFilter.BoxBlur(0.7))
        step = max(1, round(relief * 0.6))
        form = ImageChops.subtract(soft, ImageChops.offset(soft, step, step), 2.0, tone)
        rim = ImageChops.subtract(mask, ImageChops.offset(mask, 1, 2), 2.2)
        light = ImageChops.add(form, rim)
        if details:
            light = ImageChops.add(light, details, offset=-128)
        if melt:
            mask = ImageChops.multiply(mask, melt)
        shadow = fainter(soft, 0.55)
        self._tone.paste(20, (frame.left + step, frame.top + 2 * step), shadow)
        self._tone.paste(light, frame, mask)
        self.where.paste(255, frame, mask)
        for colour in colours:
            self._colours.setdefault(colour, Image.new("L", SKETCH))
        for colour, plane in self._colours.items():
            plane.paste(colours.get(colour, 0), frame, mask)

    def paint(self, picture: Image.Image, coat: Coat, crown: complex, fluff: float) -> None:
        """Paint the sketch on the picture, in the colours of the coat. Hairs grow away from the crown."""
        edges = self.where.getbbox()
        if not edges:
            return
        frame = Frame.around(edges, 6)
        left, top, *_ = frame.doubled()
        hair = frame.hair(crown)
        tone = Image.blend(frame.large(self._tone), hair, 0.2)
        cat = hairy(frame.large(self.where, fluff), hair, 3)
        picture.paste(tinted(tone, fur(coat.fur)), (left, top), cat)
        # The colours of the coat are painted over its fur in this order.
        tints = {"mark": coat.mark, "patch": coat.patch, "belly": coat.belly, "pink": PINK}
        for name, colour in tints.items():
            if name not in self._colours:
                continue
            plane = self._colours[name]
            edges = plane.getbbox()
            if not edges:
                continue
            part = Frame.around(edges, 2)
            corner = part.doubled()[:2]
            area = part.doubled(left, top)  # in the frame of the cat
            mask = hairy(part.large(plane, 1), hair.crop(area), 2.5)
            mask = ImageChops.multiply(mask, cat.crop(area))
            picture.paste(tinted(tone.crop(area), fur(colour)), corner, mask)


class Tube:
    """A limb: points along its middle, the radius at each, and the way across."""

    def __init__(self, spots: Sequence[complex], radii: Sequence[float], across: Sequence[complex]) -> None:
        self.spots = spots
        self.radii = radii
        self.across = across

    def scaled(self, origin: complex, unit: float, bulge: float) -> Tube:
        """Return the limb in pixels."""
        spots = [origin + unit * spot for spot in self.spots]
        radii = [unit * bulge * radius for radius in self.radii]
        return Tube(spots, radii, self.across)

    def bend(self, shape: Shape) -> Shape:
        """Return the corners of a shape, whose x runs along the limb, and y across it."""
        bent = []
        last = len(self.spots) - 2
        for z in shape:
            place = z.real * (last + 1)
            i = max(0, min(last, int(place)))
            share = place - i
            near = max(0, min(1, share))
            spot = self.spots[i] + (self.spots[i + 1] - self.spots[i]) * share
            radius = self.radii[i] + (self.radii[i + 1] - self.radii[i]) * near
            way = self.across[i] + (self.across[i + 1] - self.across[i]) * near
            bent.append(spot + way * radius * z.imag)
        return curve(bent)

    def draw(self, frame: Frame, levels: Iterable[int], wide: float = 1) -> Image.Image:
        """Return a mask with the limb, which has these levels from its root to its tip."""
        plane = Image.new("L", SKETCH)
        pen = ImageDraw.Draw(plane)
        before: list[complex] = []
        for spot, radius, way, level in zip(self.spots, self.radii, self.across, levels, strict=False):
            side = way * radius * wide
            pen.ellipse(circle(spot, radius * wide), level)
            if before:
                pen.polygon(corners([*before, spot - side, spot + side]), level)
            before = [spot + side, spot - side]
        return plane.crop(frame)


@cache
def tube(path: tuple[tuple[complex, float], ...]) -> Tube:
    """Return the limb along a path."""
    spots, radii = zip(*path, strict=True)
    before = 2 * spots[0] - spots[1]
    after = 2 * spots[-1] - spots[-2]
    middle = [*smooth([before, *spots, after]), spots[-1]]
    wide = [*smooth([radii[0], *radii, radii[-1]]), radii[-1]]
    ways = [b - a for a, b in zip([before, *middle], [*middle[1:], after], strict=False)]
    across = [way / abs(way) * 1j for way in ways]
    return Tube(middle, [radius.real for radius in wide], across)


def sketch_limb(sketch: Sketch, limb: Limb, scene: Scene) -> None:
    """Add a limb to the sketch."""
    bulge = 1.0
    if limb.breathes:
        bulge += 0.04 * scene.breath
    if scene.cat.long_hair:
        bulge *= 1.6 if "tail" in limb.kinds else 1.06
    shape = tube(limb.path).scaled(scene.head.centre / 2, scene.pose.size / 2, bulge)
    relief = max(2, min(8, max(shape.radii) * 0.35))
    frame = Frame.around(bounds(shape.spots), max(shape.radii) + relief)
    part = shape.draw(frame, itertools.repeat(255))
    colours = frame.masks(scene.cat.coat, limb.kinds, shape.bend)
    details = None
    if "paw" in limb.kinds:
        details = draw_toes(shape, frame)
    melt = None
    if limb.melt:
        melt = draw_melt(shape, frame, limb.melt)
    tone = 94 if "far" in limb.kinds else 132
    sketch.add(part, frame, colours, relief, details, tone, melt)


def draw_toes(paw: Tube, frame: Frame) -> Image.Image:
    """Return the lines between the toes of a paw, as details of a sketch."""
    lines = [(paw.bend(toe), 68) for toe in TOES]
    return frame.filled(lines, 128).filter(ImageFilter.BoxBlur(0.5))


def draw_melt(shape: Tube, frame: Frame, melt: float) -> Image.Image:
    """Return a mask in which a limb emerges from the body: along a share `melt` of its length."""
    last = len(shape.spots) - 1
    levels = []
    for i in range(last + 1):
        emerged = i / last / melt - 0.3
        levels.append(int(255 * max(0, min(1, emerged))))
    return shape.draw(frame, levels, 1.4).filter(ImageFilter.BoxBlur(2))


def sketch_head(sketch: Sketch, scene: Scene) -> None:
    """Add the head to the sketch."""
    head = scene.head
    unit = abs(head.turn) / 2
    outline = [SKULL]
    if scene.cat.long_hair:
        outline += TUFTS
    outline = [*map(head.place(0, 0.5), outline), *placed_ears(scene, EAR)]
    frame = Frame.around(bounds(z for polygon in outline for z in polygon), 12)
    part = frame.filled((polygon, 255) for polygon in outline)

    colours = frame.masks(scene.cat.coat, ["head"], head.place(0.6, 0.5))
    conches = placed_ears(scene, CONCH)
    colours["pink"] = frame.filled((conch, 255) for conch in conches)

    place = head.place(0.7, 0.5)
    hollow = head.turn * 0.05j
    details: list[tuple[Shape, int]] = [([z + hollow for z in conch], 88) for conch in conches]
    for shapes, light in FACE_LIGHTS:
        details += [(place(shape), 128 + light) for shape in shapes]
    blurred = frame.filled(details, 128).filter(ImageFilter.BoxBlur(unit * 0.06))
    sketch.add(part, frame, colours, unit * 0.11, blurred)


def placed_ears(scene: Scene, ear: Shape) -> list[Shape]:
    """Return a shape of the right ear as both ears have it, in pixels of the sketch."""
    right = turned_ear(ear, scene.right_ear)
    left = turned_ear(ear, scene.left_ear)
    place = scene.head.place(-0.35, 0.5)
    return [place(right), place(mirrored(left))]


def turned_ear(ear: Shape, angle: float) -> Shape:
    """Return a shape of the right ear, turned around the ear's foot."""
    turn = cmath.rect(1, angle)
    return [EAR_FOOT + (z - EAR_FOOT) * turn for z in ear]


def inked(inks: Iterable[Ink], place: Place, colours: Mapping[str, str]) -> list[Polygon]:
    """Return the polygons of some inks. `colours` has colours by name."""
    polygons: list[Polygon] = []
    for name, alpha, shapes in inks:
        colour = (*rgb(colours.get(name, name)), round(255 * alpha))
        polygons += [(colour, place(shape)) for shape in shapes]
    return polygons


def draw_ink(picture: Image.Image, polygons: Collection[Polygon]) -> None:
    """Draw polygons with smooth edges: at twice the size."""
    if not polygons:
        return
    edges = bounds(z for _, polygon in polygons for z in polygon)
    left = max(0, int(edges[0]) - 1)
    top = max(0, int(edges[1]) - 1)
    right = min(PORTRAIT[0], int(edges[2]) + 2)
    bottom = min(PORTRAIT[1], int(edges[3]) + 2)
    part = picture.crop((left, top, right, bottom))
    part = part.resize((part.width * 2, part.height * 2), Image.Resampling.NEAREST)
    opaque = ImageDraw.Draw(part, "RGB")
    blending = ImageDraw.Draw(part, "RGBA")
    for colour, polygon in polygons:
        pen = opaque if colour[3] == 255 else blending
        pen.polygon([(2 * (z.real - left), 2 * (z.imag - top)) for z in polygon], colour)
    picture.paste(part.reduce(2), (left, top))


def colour_at(picture: Image.Image, spot: complex) -> str:
    """Return the colour of the pixel that is nearest to a spot."""
    x = max(0, min(picture.width - 1, int(spot.real)))
    y = max(0, min(picture.height - 1, int(spot.imag)))
    return "#" + picture.crop((x, y, x + 1, y + 1)).tobytes().hex()


def inked_eye(scene: Scene, picture: Image.Image, side: int, colour: str) -> list[Polygon]:
    """Return the polygons of the right eye (1) or the left eye (-1). Its lid has the colour of the fur above it."""
    head = scene.head
    eye = LOOKS[scene.eyes]
    middle = 0.42 * side
    brow = head.centre + head.turn * (middle - 0.40j + 0.7 * head.facing)
    iris, glow = EYES[colour].split()
    colours = scene.colours | {"iris": iris, "glow": glow, "lid": colour_at(picture, brow)}
    place = head.place(0.7)

    def place_eye(shape: Shape) -> Shape:
        if side < 0:
            shape = mirrored(shape)
        return place([middle + eye.size * z for z in shape])

    def place_pupil(shape: Shape) -> Shape:
        return place([middle + scene.gaze + eye.size * scene.pupil * z for z in shape])

    under = inked(eye.under, place_eye, colours)
    pupil = inked(eye.pupil, place_pupil, colours)
    over = inked(eye.over, place_eye, colours)
    return under + pupil + over


def inked_face(scene: Scene, picture: Image.Image) -> list[Polygon]:
    """Return the polygons of the face. The picture has the fur."""
    near = scene.head.place(0.8)
    mouth = MOUTHS[MOODS[scene.cat.mood].mouth]
    colours = scene.cat.eyes.split("/")
    nose_and_mouth = inked([*NOSTRILS, *mouth], near, scene.colours)
    right_eye = inked_eye(scene, picture, 1, colours[0])
    left_eye = inked_eye(scene, picture, -1, colours[-1])
    whiskers = inked([("white", 0.85, WHISKERS)], near, scene.colours)
    return nose_and_mouth + right_eye + left_eye + whiskers


def placed(scene: Scene, thing: str) -> Place:
    """Return what places the shapes of a thing."""
    head = scene.head
    pose = scene.pose
    match thing:
        case "bell":
            return head.place(0.3)
        case "bow":
            return at(head.centre + head.turn * (0.56-0.76j - 0.3 * head.facing), head.turn * (0.85+0.3j))
        case "wool":
            return at(complex(pose.beside[1], 312), 38)
        case "plant":
            return at(complex(pose.beside[0], 275), 84)
        case "table":
            return along(0, pose.box[1], PORTRAIT[0])
        case _:
            return along(*pose.box)


def draw_window(scene: Scene) -> Image.Image:
    """Return a window, and what is seen there, in grey, at a third of the size."""
    greys = GREYS[scene.cat.coat.room]
    sky = greys["sky"]
    image = Image.new("L", (60, 72), greys["window"])
    pen = ImageDraw.Draw(image)
    pen.rectangle((4, 4, 55, 64), sky)
    spots = [complex(6 + 48 * spot.real, 6 + 54 * spot.imag) for spot in scene.spots]
    if scene.cat.sight == "moon":
        pen.point(corners(spots[::2]), 200)
        pen.ellipse(circle(41+18j, 9), 250)
    else:
        for spot in spots:
            pen.line(corners([spot, spot - 2+6j]), sky + 80)
    pen.line((30, 4, 30, 64), greys["window"], 3)
    pen.line((4, 34, 55, 34), greys["window"], 3)
    pen.line((0, 66, 59, 66), sky)
    return image.filter(ImageFilter.BoxBlur(0.7))


def draw_room(scene: Scene, cat_edges: Bounds) -> Image.Image:
    """Return the room in grey, at a third of the size: it is out of focus."""
    greys = GREYS[scene.cat.coat.room]
    wall = Image.new("L", (40, 30), greys["wall"])
    ImageDraw.Draw(wall).ellipse(circle(scene.glow, 13), greys["bright wall"])
    wall = wall.filter(ImageFilter.BoxBlur(5)).filter(ImageFilter.BoxBlur(3))
    room = wall.resize(ROOM, Image.Resampling.BICUBIC)
    if scene.pose.floor:
        add_floor(room, scene.pose.floor // 3, FLOORS[scene.cat.coat.room])
        add_shadow(room, cat_edges, greys["shadow"])
    if scene.cat.sight:
        cat_at_right = scene.pose.face.real > 200
        bright_at_right = scene.glow.real > 20
        left = 2 if cat_at_right and bright_at_right else 97
        room.paste(draw_window(scene), (left, 5))
    else:
        add_lamps(room, scene.spots[:8])
    return room


def add_floor(room: Image.Image, edge: int, share: float) -> None:
    """Make all below the edge darker."""
    floor = room.crop((0, edge, *ROOM))
    room.paste(fainter(floor, share), (0, edge))


def add_shadow(room: Image.Image, cat_edges: Bounds, level: int) -> None:
    """Add the shadow of the cat on the floor. The edges of the cat are in pixels of its sketch."""
    left, _, right, bottom = [edge * 2 / 3 for edge in cat_edges]
    shadow = Image.new("L", ROOM)
    ImageDraw.Draw(shadow).ellipse((left - 2, bottom - 11, right + 4, bottom + 4), 150)
    room.paste(level, (0, 0), shadow.filter(ImageFilter.BoxBlur(3)))


def add_lamps(room: Image.Image, spots: Iterable[complex]) -> None:
    """Add lamps that are out of focus, in three sizes."""
    lamps = Image.new("L", ROOM)
    pen = ImageDraw.Draw(lamps)
    for i, spot in enumerate(spots):
        centre = complex(160 * spot.real, 100 * spot.imag)
        size = i % 3
        pen.ellipse(circle(centre, 7 + 2 * size), 30 + 12 * size)
    room.paste(255, (0, 0), lamps.filter(ImageFilter.BoxBlur(0.7)))


def draw_house_cat(seed: int, moment: Moment = STILL) -> Image.Image:
    """Return the picture of this seed's cat at a moment, RGB, 480 x 360, with a description in its `info`."""
    scene = Scene(seed, moment)
    cat = scene.cat
    pose = scene.pose
    head = scene.head

    # Sketch the cat: the body, the head, and what is before the head.
    sketch = Sketch()
    for limb in pose.limbs:
        sketch_limb(sketch, limb, scene)
    body_edges = sketch.where.getbbox() or (0, 0, 0, 0)
    sketch_head(sketch, scene)
    for limb in pose.front:
        sketch_limb(sketch, limb, scene)
    paws = Sketch()  # which lie on a thing
    for limb in pose.over:
        sketch_limb(paws, limb, scene)

    # Paint from the back to the front: the room, things, the cat, its face, more things, and paws on them.
    room = draw_room(scene, body_edges).resize(PORTRAIT, Image.Resampling.BILINEAR)
    picture = tinted(room, ramp(*scene.room))
    things = [(THINGS[thing], placed(scene, thing)) for thing in cat.things]
    for thing, place in things:
        draw_ink(picture, inked(thing.behind, place, scene.colours))
    sketch.paint(picture, cat.coat, head.centre + head.turn * 0.3j, scene.fluff)
    collar: list[Polygon] = []
    for thing, place in things:
        collar += inked(thing.under, place, scene.colours)
    draw_ink(picture, collar + inked_face(scene, picture))
    for thing, place in things:
        draw_ink(picture, inked(thing.before, place, scene.colours))
    paws.paint(picture, cat.coat, head.centre, scene.fluff)
    if scene.glow.imag > 14:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture.info["description"] = cat.description
    return picture


ASLEEP = Moment(eyes="closed")
DROWSY = Moment(eyes="half")
ALERT = Moment(ear=1.0)
RISEN = Moment(1.0)
BREATH = [(RISEN, 1.8), (STILL, 2.4)]
SLEEP = [(Moment(1.0, "closed"), 2.4), (ASLEEP, 3.0)]
ACTS = {  # what a house cat does: moments, which PARTS_OF_MOMENTS make up, and their seconds
    "breathe": BREATH,
    "blink": [(ASLEEP, 0.2), (STILL, 0.4), *BREATH],
    "blink slowly": [(DROWSY, 0.4), (ASLEEP, 0.6), (DROWSY, 0.4), (STILL, 0.6), *BREATH],
    "listen": [(ALERT, 0.2), (STILL, 0.4), (ALERT, 0.2), (STILL, 0.6), *BREATH],
    "sleep": [(DROWSY, 1.0), (ASLEEP, 2.0), *SLEEP * 5, (DROWSY, 0.8), *BREATH],
}
CHANGING = 0.06  # the share of the cells that change at most: a minute in a terminal takes some 50 kB
BREATHING = 0.02  # the share of those that breathing changes
AWAKE = "blink", "blink", "blink slowly", "listen"  # for about a minute, in random order, between breaths
BREATHS = 2, 3
NAPS = 5  # in the life of a cat, which then begins anew
PARTS_OF_MOMENTS = RISEN, ALERT, DROWSY, ASLEEP


@lru_cache(200)
def life(seed: int) -> tuple[list[float], list[Moment]]:
    """Return what this cat does: the seconds at which moments end, and these moments."""
    rng = random.Random(seed)
    acts = []
    for minutes in rng.choices((1, 2, 3), k=NAPS):
        for _ in range(minutes):
            for act in rng.sample(AWAKE, len(AWAKE)):
                acts += ["breathe"] * rng.choice(BREATHS)
                acts.append(act)
        acts.append("sleep")
    moments, seconds = zip(*itertools.chain.from_iterable(ACTS[act] for act in acts), strict=True)
    return [*itertools.accumulate(seconds)], [*moments]


def moment_of(seed: int, now: float) -> Moment:
    """Return what this cat does at a time. All who watch it see the same."""
    ends, moments = life(seed)
    return moments[bisect.bisect_left(ends, now % ends[-1])]


def draw_patch(seed: int, moment: Moment, still: Image.Image, draw: Callable[[Image.Image], Art]) -> Patch:
    """Return the cells that differ at a moment from art of the cat's picture `still`."""
    picture = draw_house_cat(seed, moment)
    art = draw(picture)
    grid = len(art.rows[0]), len(art.rows)
    share = BREATHING if moment == RISEN else CHANGING
    return cut(art, changed_places(still, picture, grid, share))


class Film:
    """A house cat that moves, for terminals: the art of STILL, and a patch for each of PARTS_OF_MOMENTS."""

    def __init__(self, seed: int, still: Art, colors: str, patches: Mapping[Moment, Patch]) -> None:
        everywhere = {place for patch in patches.values() for place in patch.places}
        self.seed = seed
        self._grid = len(still.rows[0]), len(still.rows)
        self._colors = colors
        self._still = cut(still, everywhere)
        self._patches = patches

    def size(self) -> int:
        """Return the bytes of memory that the film takes, about."""
        patches = [self._still, *self._patches.values()]
        cells = sum(len(patch.places) for patch in patches)
        return 20 * cells + 2000

    def cells(self, moment: Moment) -> dict[int, Cell]:
        """Return the cells that change, as they are at this moment."""
        cells = self._still.cells()
        parts = Moment(moment.breath), Moment(ear=moment.ear), Moment(eyes=moment.eyes)
        for part in parts:
            if part != STILL:
                cells |= self._patches[part].cells()
        return cells

    def change(self, before: Moment, after: Moment) -> bytes:
        """Return what turns one moment into another on the screen. It is empty if they look the same."""
        old = self.cells(before)
        new = self.cells(after)
        changed = {place: cell for place, cell in new.items() if cell != old[place]}
        if not changed:
            return b""
        return to_changes(changed, self._grid, self._colors).encode()


# ---------------------------------------------------------------------------------------------------------------------
# Cats: the sources, the store of their pictures, the refresher that fills the store
# ---------------------------------------------------------------------------------------------------------------------

# The store and the refresher
STORED_CATS = 24
STORED_SIDE = 800  # pixels on the longer side are enough for 160 columns; such a JPEG has some 70 kB
REFRESH_SECONDS = 60.0
QUICK_SECONDS = 0.1  # stands in for REFRESH_SECONDS while the store is short of cats
QUICK_REPEATS = 10  # this many searches in a row without a new cat end the hurry
LEASE_SECONDS = 120.0  # longer than a fetch
LONGEST_BACKOFF = 600.0
LONGEST_RETRY_AFTER = 86400.0

# Answers of other servers
SILENT_SECONDS = 5.0  # at most, to connect and between bytes
TOTAL_SECONDS = 20.0  # at most, for a response with its redirects
MAX_REDIRECTS = 5
MAX_JSON_BYTES = 1 << 20
MAX_PICTURE_BYTES = 16 << 20
MAX_FILE_BYTES = 64 << 20  # of a file that `art` shows
SOURCE_CAT_ID = r"(?!house-)[A-Za-z0-9_-]{1,64}"  # paths and terminals show ids without escapes
MAX_TAGS = 5
MAX_TAG_LENGTH = 30

# What visitors may cause
REVIVALS_AT_ONCE = 2
VISITORS_REQUESTS_A_MINUTE = 30  # to the sources; redirects are requests too

# How long to wait for the lock of another process on the database
LOCKED_SECONDS = 0.1  # in a request
START_SECONDS = 15.0  # at the start

NAMED_COLOURS = {
    "black": "#000000 #201c1c", "grey": "#5c5c5c #8c8c8c #b8b8b8", "white": "#e0e0e0 #ffffff",
    "brown": "#3c2818 #6b4a30 #977050", "orange": "#c87832 #f08c28", "cream": "#cdb492 #f2e2c4", "yellow": "#f0d23c",
    "green": "#2d4b23 #508240 #96b96e", "blue": "#233264 #3c64b4 #8cb4dc", "purple": "#6e468c",
    "pink": "#e196a0 #f0c4c8", "red": "#b42828"}
COLOUR_NAMES = {bytes.fromhex(shade[1:]): name for name, tones in NAMED_COLOURS.items() for shade in tones.split()}
MAX_LOOK = 100  # characters of the words that a cat is looked for by
TRIES = 4000  # cats whose descriptions are read in search of one, in less than a tenth of a second
DULL_WORDS = "a and at by in its of on out over the under with"  # nobody looks for these
PORTRAITS = 8  # that are kept, with 0.5 MB each: a page asks for a cat again in the size of its window
MAIN_SHARE = 0.2  # a second main colour has at least this share of the picture

# Each entry upgrades the schema by one version.
SCHEMA = ("""
CREATE TABLE visits (
    day TEXT NOT NULL,          -- UTC, YYYY-MM-DD
    country TEXT NOT NULL,      -- ISO 3166-1 alpha-2, ZZ for unknown
    count INTEGER NOT NULL,
    PRIMARY KEY (day, country)
) WITHOUT ROWID;
CREATE TABLE cats (             -- the higher the rowid, the fresher the picture
    id TEXT NOT NULL UNIQUE,
    source TEXT NOT NULL,       -- host of the API
    url TEXT NOT NULL,          -- the picture at its source: a credit, and to fetch it again after its eviction
    fetched TEXT NOT NULL,      -- UTC, ISO 8601
    picture BLOB                -- JPEG, or NULL after its eviction
);
CREATE INDEX stored_cats ON cats (id) WHERE picture IS NOT NULL;
""", """
ALTER TABLE cats ADD COLUMN art BLOB;
CREATE TABLE refresher (due REAL NOT NULL, sources TEXT NOT NULL);  -- one row, see Store.schedule_fetch
INSERT INTO refresher VALUES (0, '{}');
""", """
CREATE TABLE totals (           -- sums of visits by country; the triggers see INSERT, UPDATE and DELETE, not REPLACE
    country TEXT PRIMARY KEY,
    count INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO totals SELECT country, sum(count) FROM visits GROUP BY country;
CREATE TRIGGER visits_added AFTER INSERT ON visits BEGIN
    INSERT INTO totals VALUES (new.country, new.count)
        ON CONFLICT (country) DO UPDATE SET count = count + excluded.count;
END;
CREATE TRIGGER visits_changed AFTER UPDATE ON visits BEGIN
    UPDATE totals SET count = count - old.count WHERE country = old.country;
    INSERT INTO totals VALUES (new.country, new.count)
        ON CONFLICT (country) DO UPDATE SET count = count + excluded.count;
END;
CREATE TRIGGER visits_deleted AFTER DELETE ON visits BEGIN
    UPDATE totals SET count = count - old.count WHERE country = old.country;
END;
""", """
ALTER TABLE cats DROP COLUMN art;  -- each request may want another size, so art is not stored
""", """
CREATE TABLE machine (due REAL NOT NULL, state TEXT NOT NULL);  -- one row, see Machines
INSERT INTO machine VALUES (0, '{}');
CREATE VIEW here AS SELECT * FROM visits UNION ALL SELECT '', country, count FROM totals;  -- day '': of all time
CREATE VIEW everywhere AS SELECT * FROM here UNION ALL
    SELECT substr(key, 1, length(key) - 2), substr(key, -2), value FROM machine, json_each(state, '$.elsewhere');
""", """
ALTER TABLE cats ADD COLUMN tags TEXT NOT NULL DEFAULT '';  -- what the source calls the cat, such as 'cute, sleepy'
""")

STORED_IDS = "SELECT id FROM cats WHERE picture IS NOT NULL"
CAT_BY_ID = "SELECT source, url, tags, picture FROM cats WHERE id = ?"
CATS_BY_SOURCE = "SELECT source, count(*) FROM cats WHERE picture IS NOT NULL GROUP BY source"
PUT_CAT = """
REPLACE INTO cats (id, source, url, tags, fetched, picture)
VALUES (?, ?, ?, ?, ?, ?)"""
EVICT_CATS = """
UPDATE cats SET picture = NULL WHERE id IN (
    SELECT id FROM cats WHERE picture IS NOT NULL ORDER BY rowid DESC LIMIT -1 OFFSET ?)"""
DUE_FETCH = "SELECT due, sources FROM refresher"
CLAIM_FETCH = "UPDATE refresher SET due = ? WHERE due = ? RETURNING 1"
SCHEDULE_FETCH = "UPDATE refresher SET due = ?, sources = ?"


class Cat(NamedTuple):
    """A cat's id, where its picture comes from, and what is known of it. A house cat has no `url`."""

    id: str
    source: str
    url: str
    description: str = ""  # made from the picture; sources and the store do not know it
    tags: str = ""  # words of the source about the cat, from `readable_tags`
    size: tuple[int, int] = (0, 0)  # of the picture, in pixels


class NoSuchCat(LookupError):
    """No source knows the id."""


class Unavailable(Exception):
    """Another server, or what it sent, cannot be used now. The message says why."""

    def __init__(self, reason: str, status: int | None = None, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.status = status  # of the response, if there is one
        self.retry_after = retry_after  # seconds


class Database:
    """The SQLite file with one connection in autocommit mode: a statement that has returned is committed."""

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._lock = threading.RLock()
        try:
            self.open(START_SECONDS)
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:  # a message of SQLite may have bytes of the file
            raise SetupError(f"ANALYTICS_DB: cannot use {quoted(path)}: {error}") from error

    def open(self, patience: float) -> None:
        """Open or create the file. Wait `patience` seconds at most for locks. Raises sqlite3.Error and OSError."""
        self._connection = sqlite3.connect(
            self._path, timeout=patience, isolation_level=None, check_same_thread=False)
        self._stat = os.stat(self._path)
        self._synced = 0  # how many changes of this connection are on the disk
        self._enable_wal(patience)
        self._connection.execute("PRAGMA synchronous = NORMAL")  # commits survive `kill -9`, and need no fsync each
        self._migrate()
        self.wait_for_locks(LOCKED_SECONDS)

    def wait_for_locks(self, seconds: float) -> None:
        """Let statements wait so long, at most, for the lock of another process."""
        self._connection.execute(f"PRAGMA busy_timeout = {1000 * seconds:.0f}")

    def _enable_wal(self, patience: float) -> None:
        """Let SQLite keep a write-ahead log. It does not wait while another process does this, so try again."""
        deadline = time.monotonic() + patience
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() > deadline:
                    raise
            time.sleep(0.1 * random.random())

    def _migrate(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > len(SCHEMA):
            raise sqlite3.DatabaseError(f"its schema is version {version}, this program knows {len(SCHEMA)}")
        missing = "".join(SCHEMA[version:])
        for statement in statements(missing):
            self._connection.execute(statement)
        self._connection.execute(f"PRAGMA user_version = {len(SCHEMA)}")  # always, to find out if it is read-only
        self._connection.execute("COMMIT")

    def execute(self, sql: str, *parameters: object) -> list[Any]:
        """Execute and commit one statement, and return its rows. Raises sqlite3.Error."""
        with self._lock:
            if not self._in_place():
                raise sqlite3.OperationalError("the file was deleted, moved or replaced; restart the service")
            return self._connection.execute(sql, parameters).fetchall()

    def _in_place(self) -> bool:
        """Return whether the open file is still at the path. SQLite would go on with a file that is not."""
        try:
            return os.path.samestat(os.stat(self._path), self._stat)
        except OSError:
            return False

    def sync(self) -> None:
        """Make what was committed survive a power failure, too. SQLite does this only every thousand pages."""
        with self._lock:
            changes = self._connection.total_changes
        if changes == self._synced:
            return
        with open(self._path + "-wal", "rb") as log_file:
            os.fsync(log_file)  # without the lock, so that no request waits for the disk
        self._synced = changes

    def close(self) -> None:
        with self._lock:
            if not os.path.exists(self._path):  # SQLite would leave commits in the log of a file that was moved
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._connection.close()


def statements(script: str) -> Iterator[str]:
    """Split SQL into statements. A semicolon in a comment, a string or a trigger does not end one."""
    statement = ""
    for part in re.findall("[^;]*;?", script):
        statement += part
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    yield statement  # a comment after the last semicolon, or a statement without one


def check_database(path: str) -> None:
    """Raise SetupError if the file is damaged. This reads all but the pictures: 10 years of visits take 30 ms."""
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=START_SECONDS)) as connection:
            connection.text_factory = partial(str, encoding="utf-8", errors="replace")
            (problem,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError:
        return  # Database tells why the file cannot be used, such as that it is locked
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        problem = str(error)
    if problem == "ok":
        return
    last_line = problem.splitlines()[-1]
    raise SetupError(
        f"ANALYTICS_DB: cannot use {quoted(path)}: the file is damaged: {quoted(last_line)};"
        " restore a backup, or move the file away")


class Store:
    """Keeps the pictures of the STORED_CATS newest cats, and the ids and URLs of all cats that were ever stored."""

    def __init__(self, database: Database) -> None:
        self._execute = database.execute
        self._ids: list[str] = []
        self._listed = -math.inf  # time.monotonic() when `_ids` was read; other processes store cats too

    def ids(self, max_age: float = 1.0) -> list[str]:
        """Return the ids of the stored cats, from a list that is at most `max_age` seconds old."""
        if time.monotonic() - self._listed > max_age:
            self._ids = [cat_id for (cat_id,) in self._execute(STORED_IDS)]
            self._listed = time.monotonic()
        return self._ids

    def get(self, cat_id: str) -> tuple[Cat, bytes | None] | None:
        """Return the cat and its JPEG, or the cat and None if the JPEG was evicted, or None for an unknown id."""
        for source, url, tags, jpeg in self._execute(CAT_BY_ID, cat_id):
            return Cat(cat_id, source, url, tags=tags), jpeg
        return None

    def put(self, cat: Cat, picture: bytes) -> None:
        """Store the cat with its picture, a JPEG from Fetcher.picture, and evict the oldest pictures."""
        fetched = utc(time.time()).isoformat(timespec="seconds")
        self._execute(PUT_CAT, cat.id, cat.source, cat.url, cat.tags, fetched, picture)
        self._execute(EVICT_CATS, STORED_CATS)
        self._listed = -math.inf

    def counts(self) -> dict[str, int]:
        """Return the number of stored cats of each source."""
        return dict(self._execute(CATS_BY_SOURCE))

    def claim_due_fetch(self) -> dict[str, tuple[int, float]] | None:
        """If a fetch is due, claim it for LEASE_SECONDS, and return the sources that `schedule_fetch` saved."""
        now = time.time()
        ((due, sources),) = self._execute(DUE_FETCH)
        latest = now + 2 * LONGEST_RETRY_AFTER  # a `due` beyond that is from a clock that was wrong
        if now < due < latest:
            return None
        if not self._execute(CLAIM_FETCH, now + LEASE_SECONDS, due):
            return None  # another process was faster
        return dict(json.loads(sources))

    def schedule_fetch(self, due: float, sources: Mapping[str, tuple[int, float]]) -> None:
        """Save when the next fetch is due, and each source's failures in a row and next try, in Unix time."""
        self._execute(SCHEDULE_FETCH, due, json.dumps(sources))


# Special addresses for which `is_global` may be true: some in iana.org/assignments/iana-ipv4-special-registry and
# iana-ipv6-special-registry, multicast, IPv6 outside 2000::/3, and IPv6 that embeds IPv4 (Teredo in 2001::/23, 6to4).
SPECIAL_NETWORKS = (
    "192.0.0.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.175.48.0/24", "224.0.0.0/4",
    "::/3", "4000::/2", "8000::/1", "2001::/23", "2002::/16", "2620:4f:8000::/48", "3fff::/20")


def is_public(address: str) -> bool:
    """Return whether a socket's address belongs to the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    return ip.is_global and not any(ip in ipaddress.ip_network(network) for network in SPECIAL_NETWORKS)


def connect(host: str, port: int, anywhere: bool) -> socket.socket:
    """Connect to a host. Unless `anywhere`, all its addresses must be public. Raises Unavailable and OSError."""
    # Resolve the name only once, because the answer could change after the check.
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(address[0]) for *_, address in found]
    for address in addresses:
        if not anywhere and not is_public(address):
            raise Unavailable(f"{address} is not a public address")
    *others, last = addresses
    for address in others:
        with contextlib.suppress(OSError):
            return socket.create_connection((address, port), SILENT_SECONDS)
    return socket.create_connection((last, port), SILENT_SECONDS)


class Request(NamedTuple):
    """What to ask another server for, and the limits of its answer."""

    url: str
    limit: int  # of the body, in bytes
    seconds: float | None = None  # for the whole answer with its redirects; None means TOTAL_SECONDS
    headers: Mapping[str, str] = {}
    post: str = ""  # the body of a POST; if it is empty, the request is a GET
    kind: str = "file"  # the names of the spans begin with it; if it is empty, there are none
    permit: Callable[[], None] = lambda: None  # is called before the request, and again before each redirect
    tell: Callable[[int, int | None], None] = lambda *_: None  # gets the bytes so far and, if it is known, their total


class Reading:
    """What a thread reads from another server, so that those who wait for it can give it up."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._given_up = False

    def begin(self, connected: socket.socket) -> None:
        """Note the socket that the thread reads from. Raises Unavailable if nobody waits any more."""
        # Each thread writes before it reads, so that one of them sees what the other has written.
        self._socket = connected
        if self._given_up:
            raise Unavailable("nobody waits for the response any more")

    def give_up(self) -> None:
        """Make the thread's next read or connection fail."""
        self._given_up = True
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it is closed already
                self._socket.shutdown(socket.SHUT_RDWR)


class Fetcher:
    """Reads URLs within limits of time and size. Only the hosts of the `trusted` URLs may have private addresses."""

    def __init__(self, ssl_cert_file: str | None, trusted: Iterable[str]) -> None:
        self._ssl_cert_file = ssl_cert_file
        self._trusted = trusted
        self._sandboxes = SandboxKeeper()

    @cached_property
    def _tls(self) -> ssl.SSLContext:  # one for all connections: the certificates take megabytes
        return ssl.create_default_context(cafile=self._ssl_cert_file or certifi.where())

    def get(self, request: Request) -> bytes:
        """Return the body of the answer. Raises Unavailable."""
        # urllib3 limits only the time between bytes. To limit the whole time, read in a thread.
        body: futures.Future[bytes] = futures.Future()
        reading = Reading()

        def read() -> None:
            try:
                body.set_result(self._read(request, reading))
            except Exception as error:
                body.set_exception(error)

        in_this_span = contextvars.copy_context().run
        thread = threading.Thread(target=in_this_span, args=(read,), name="fetcher", daemon=True)
        thread.start()
        seconds = request.seconds or TOTAL_SECONDS
        try:
            data = body.result(seconds)
        except TimeoutError:
            reading.give_up()
            thread.join(1)
            raise Unavailable(f"no whole answer after {seconds:.0f} seconds") from None
        thread.join()  # a CGI process may fork after this, which is safe only without other threads
        return data

    def _read(self, request: Request, reading: Reading) -> bytes:
        try:
            return self._follow(request, reading)
        except (urllib3.exceptions.HTTPError, http_client.HTTPException, OSError, ValueError, OverflowError) as error:
            raise Unavailable(f"{type(error).__name__}: {error}") from error

    def _follow(self, request: Request, reading: Reading) -> bytes:
        """Follow redirects to a body."""
        schemes = ["https", "http"]
        for _ in range(MAX_REDIRECTS + 1):
            url = parse_target(request.url, schemes)
            if url.scheme == "https":
                schemes = ["https"]  # never go back to http
            request.permit()
            with self._response(url, request, reading) as response:
                location = response.get_redirect_location()
                if not location:
                    return read_body(response, request)
            # The headers may have the key, which is for the API alone.
            request = request._replace(url=urllib_parse.urljoin(url.url, location), headers={})
        raise Unavailable(f"more than {MAX_REDIRECTS} redirects")

    @contextlib.contextmanager
    def _response(self, url: urllib3.util.Url, request: Request,
                  reading: Reading) -> Iterator[urllib3.BaseHTTPResponse]:
        """Send the request to this URL. Close the connection at the end."""
        method = "POST" if request.post else "GET"
        headers = {"User-Agent": f"catscii/{__version__} (ASCII cats; urllib3)", **request.headers}
        kind = request.kind
        with contextlib.ExitStack() as stack:
            with span(kind and f"{kind}_headers", host=url.host):
                connection = self._connect(url)
                stack.callback(connection.close)
                reading.begin(connection.sock)
                connection.request(method, url.request_uri, request.post or None, headers, preload_content=False)
                response = connection.getresponse()
            with response, span(kind and f"{kind}_body", status=response.status):
                yield response

    def _connect(self, url: urllib3.util.Url) -> urllib3.connection.HTTPConnection:
        """Connect to the URL's host. Raises Unavailable and OSError."""
        host = str(url.host).strip("[]")
        secure = url.scheme == "https"
        trusted = {host_and_port(urllib3.util.parse_url(each)) for each in self._trusted}
        connection_class = urllib3.connection.HTTPSConnection if secure else urllib3.connection.HTTPConnection
        connection = connection_class(host, url.port, timeout=SILENT_SECONDS)
        connection.sock = connect(host, connection.port, anywhere=host_and_port(url) in trusted)
        if secure:
            connection.sock = self._tls.wrap_socket(connection.sock, server_hostname=host)
        return connection

    def json(self, url: str, headers: Mapping[str, str], permit: Callable[[], None] = lambda: None) -> Any:
        """Fetch JSON, and return what it says. Raises Unavailable."""
        headers = {"Accept": "application/json", **headers}
        body = self.get(Request(url, MAX_JSON_BYTES, headers=headers, kind="api", permit=permit))
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Unavailable(f"the answer is not JSON: {error}") from error

    def picture(self, cat: Cat, permit: Callable[[], None] = lambda: None) -> bytes:
        """Fetch the cat's picture. Returns a JPEG of at most STORED_SIDE pixels. Raises Unavailable."""
        with span("download_file", url=cat.url):
            data = self.get(Request(cat.url, MAX_PICTURE_BYTES, permit=permit))
        try:
            with span("decode", bytes=len(data)):
                picture = decode_in_sandbox(data, STORED_SIDE, self._sandboxes.sandbox)
        except PictureError as error:
            raise Unavailable(str(error)) from error
        picture.thumbnail((STORED_SIDE, STORED_SIDE))
        return written(picture, "JPEG", quality=88)


def parse_target(url: str, schemes: Collection[str]) -> urllib3.util.Url:
    """Return the parts of a URL with one of these schemes. Raises Unavailable for any other."""
    if is_web_url(url):
        parts = urllib3.util.parse_url(url)
        if parts.scheme in schemes:
            return parts
    raise Unavailable(f"{quoted(url)} is not a URL that may be followed: {' or '.join(schemes)} only")


def host_and_port(url: urllib3.util.Url) -> tuple[str | None, int]:
    usual = 443 if url.scheme == "https" else 80
    return url.host, url.port or usual


def read_body(response: urllib3.BaseHTTPResponse, request: Request) -> bytes:
    """Return the body of a 200. Raises Unavailable for other statuses, and above the limit of the request."""
    if response.status != 200:
        retry_after = urllib3.Retry().get_retry_after(response) or 0.0
        raise Unavailable(f"status {response.status}", response.status, retry_after)
    body = bytearray()
    total = response.length_remaining
    while part := response.read1(65536):
        body += part
        request.tell(len(body), total)
        if len(body) > request.limit:
            raise Unavailable(f"more than {request.limit} bytes")
    return bytes(body)


class Api:
    """An adapter: how to ask one API for cats, and how to read its answers. APIS lists the adapters."""

    host: str
    title: str  # for people

    def __init__(self, url: urllib_parse.SplitResult) -> None:
        self.url = url
        self.base = url._replace(query="", fragment="").geturl().rstrip("/")

    @classmethod
    def serves(cls, url: urllib_parse.SplitResult) -> bool:
        """Return whether this API is at a URL of CAT_SOURCES."""
        return url.hostname == cls.host

    def search_url(self) -> str:
        raise NotImplementedError

    def cat_url(self, cat_id: str) -> str:
        raise NotImplementedError

    def headers(self, key: str | None) -> dict[str, str]:
        """Return what is sent to the API alone, such as the key of CAT_API_KEY."""
        return {}

    def cats(self, answer: object) -> Sequence[object]:
        """Return the cats in the answer to a search, or to the question for one cat. `read` reads each."""
        if isinstance(answer, list) and answer:
            return answer
        return [answer]  # one cat, or else what the log shows

    def read(self, cat: dict[str, Any]) -> tuple[object, object, object]:
        """Return the id, the URL of the picture, and the tags. Source checks whether they are valid."""
        return cat.get("id") or cat.get("_id"), cat.get("url"), cat.get("tags")


class Cataas(Api):
    """https://cataas.com/doc.html"""

    host = "cataas.com"
    title = "CATAAS"

    @classmethod
    def serves(cls, url: urllib_parse.SplitResult) -> bool:
        return url.hostname == cls.host or url.path.rstrip("/").endswith("/cat")

    def search_url(self) -> str:
        return f"{self.base}?{self.url.query or 'json=true'}"

    def cat_url(self, cat_id: str) -> str:
        return f"{self.base}/{cat_id}?json=true"


class TheCatApi(Api):
    """https://docs.thecatapi.com"""

    host = "api.thecatapi.com"
    title = "The Cat API"

    def __init__(self, url: urllib_parse.SplitResult) -> None:
        super().__init__(url)
        self.base = self.base.removesuffix("/search").removesuffix("/images") + "/images"

    def search_url(self) -> str:
        return f"{self.base}/search?{self.url.query or 'limit=10&mime_types=jpg,png'}"

    def cat_url(self, cat_id: str) -> str:
        return f"{self.base}/{cat_id}"

    def headers(self, key: str | None) -> dict[str, str]:
        trusted = self.url.hostname == self.host or self.url.fragment == "key"
        if key and trusted:
            return {"x-api-key": key}
        return {}


APIS: tuple[type[Api], ...] = (Cataas, TheCatApi)
SOURCE_NAMES = {api.host: api.title for api in APIS}  # other sources are called by their host


class Source:
    """The API at `url`, and how it has worked of late."""

    def __init__(self, url: str, fetcher: Fetcher, key: str | None) -> None:
        parts = urllib_parse.urlsplit(url)
        api = next((api for api in APIS if api.serves(parts)), TheCatApi)
        self._api = api(parts)
        self._headers = self._api.headers(key)
        self._fetcher = fetcher
        self.name = parts.netloc.rpartition("@")[2]
        self.listed: deque[Cat] = deque()  # results of a search that are not stored yet
        self._failures = 0  # in a row
        self.ready = 0.0  # time.monotonic() of the next try

    def search(self) -> list[Cat]:
        """Return the cats that a search finds, at least one. Raises Unavailable."""
        answer = self._fetcher.json(self._api.search_url(), self._headers)
        results = self._api.cats(answer)
        cats = [*filter(None, map(self._cat, results))]  # of ten results, one may have no URL
        if not cats:
            raise no_cat(results[0])
        return cats

    def find(self, cat_id: str, permit: Callable[[], None]) -> Cat:
        """Ask for the cat with this id. Raises NoSuchCat, and Unavailable if the source gives no useful answer."""
        if self.ready > time.monotonic():
            raise Unavailable("it failed a moment ago")
        try:
            answer = self._fetcher.json(self._api.cat_url(cat_id), self._headers, permit)
        except Unavailable as error:
            if error.status in (400, 404):  # The Cat API sends 400, CATAAS 404
                raise NoSuchCat(cat_id) from error
            raise
        result = self._api.cats(answer)[0]
        cat = self._cat(result)
        if cat is None:
            raise no_cat(result)
        if cat.id != cat_id:  # CATAAS searches for a tag if it does not know the id
            raise NoSuchCat(cat_id)
        return cat

    def _cat(self, result: object) -> Cat | None:
        """Return the cat that the API describes, or None unless its id and its URL are valid."""
        if not isinstance(result, dict):
            return None
        cat_id, url, tags = self._api.read(result)
        picture_url = self._picture_url(url)
        if not picture_url or not isinstance(cat_id, str) or not re.fullmatch(SOURCE_CAT_ID, cat_id):
            return None
        return Cat(cat_id, self.name, picture_url, tags=readable_tags(tags))

    def _picture_url(self, url: object) -> str | None:
        """Return a URL from an answer as an absolute URL, or None if it is not valid or leads from https to http."""
        if not isinstance(url, str) or not url:
            return None
        search_url = self._api.search_url()
        parts = urllib_parse.urlsplit(search_url)
        public = parts._replace(netloc=parts.netloc.rpartition("@")[2])  # visitors see the URL, but no password
        with contextlib.suppress(ValueError):  # is_web_url refuses this URL below
            url = urllib_parse.urljoin(public.geturl(), url)
        as_safe = url.startswith("https:") or search_url.startswith("http:")
        if as_safe and is_web_url(url):
            return url
        return None

    def failed(self, error: Unavailable) -> None:
        """Rest for 50 to 100 % (at random) of 1, 2, 4 ... LONGEST_BACKOFF seconds, but at least as the error tells."""
        self._failures += 1
        doubled = 2.0 ** min(self._failures - 1, 10)
        rest = min(doubled, LONGEST_BACKOFF) * random.uniform(0.5, 1)
        wanted = min(error.retry_after, LONGEST_RETRY_AFTER)
        self.ready = time.monotonic() + max(rest, wanted)
        if self._failures == 1:
            log.warning("Source fails", {"source": self.name, "error": str(error)})

    def worked(self) -> None:
        if self._failures:
            self._failures = 0
            log.info("Source works again", {"source": self.name})

    def state(self) -> tuple[int, float]:
        """Return the failures in a row, and the next try, in Unix time."""
        return self._failures, self.ready + time.time() - time.monotonic()

    def restore(self, failures: int, ready: float) -> None:
        """Go on from what `state` has returned in another process."""
        self._failures = failures
        self.ready = ready + time.monotonic() - time.time()


def no_cat(result: object) -> Unavailable:
    return Unavailable(f"the answer is no cat with an id and a url: {quoted(reprlib.repr(result))}")


def readable_tags(tags: object) -> str:
    """Return the first tags of a list from a source, without characters that are not printable, for use in a text."""
    if not isinstance(tags, list):
        return ""
    readable: list[str] = []
    for tag in tags:
        if not isinstance(tag, str):
            continue
        spaced = " ".join(tag.split())
        printable = "".join(filter(str.isprintable, spaced))
        readable.append(printable[:MAX_TAG_LENGTH].strip())
    different = dict.fromkeys(filter(None, readable))
    return ", ".join(itertools.islice(different, MAX_TAGS))


class Refresher:
    """Fills the store quickly, then adds a cat every REFRESH_SECONDS, independently of the traffic."""

    def __init__(self, store: Store, sources: list[Source], fetcher: Fetcher) -> None:
        self._store = store
        self._sources = sources
        self._fetcher = fetcher
        self._due = 0.0  # time.monotonic() of the next fetch
        self._repeats = 0  # searches in a row that found no new cat
        self.results = Counter(stored=0, repeated=0, failed=0)
        self.last_good: float | None = None  # time.monotonic() when a source last worked, or when `run` began
        self._trouble = Trouble("The store cannot be refreshed", "The store can be refreshed again")
        with contextlib.suppress(sqlite3.Error):  # `fetch_one` raises it again
            if not self._short():
                self._due = time.monotonic() + REFRESH_SECONDS

    def run(self, stopping: threading.Event) -> None:
        """Fetch a cat whenever one is due, until `stopping`. The server runs this in a thread."""
        if not self._sources:
            return
        self.last_good = time.monotonic()
        while not stopping.wait(self._delay()):
            try:
                self.fetch_one(LEASE_SECONDS)  # other processes need not fetch while this one runs
                self._trouble.end()
            except Exception as error:
                if stopping.is_set():  # the database is closed by now
                    return
                self.results["failed"] += 1
                if isinstance(error, sqlite3.Error):
                    self._trouble.begin(error)
                else:
                    log.exception("Refreshing the store failed")
                self._due = time.monotonic() + REFRESH_SECONDS

    def claim_due_fetch(self) -> bool:
        """Return whether this process has to call `fetch_one`, because a fetch is due. Only for CGI requests."""
        if not self._sources:
            return False
        saved = self._store.claim_due_fetch()
        if saved is None:
            return False
        for source in self._sources:
            source.restore(*saved.get(source.name, (0, 0.0)))
        self._repeats = QUICK_REPEATS - 1  # of earlier processes, none is known; one more ends the hurry
        return True

    def fetch_one(self, lease_seconds: float = 0.0) -> None:
        """Store a cat from the first source that works. Save when the next fetch is due.

        Other processes wait for `lease_seconds` more, so that they only fetch if this one has ended.
        """
        for source in self._sources:
            if source.ready <= time.monotonic() and self._fetch_from(source):
                break
        else:
            self.results["failed"] += 1
        saved = {source.name: source.state() for source in self._sources}
        self._store.schedule_fetch(time.time() + self._delay() + lease_seconds, saved)

    def _short(self) -> bool:
        """Return whether the store is short of cats."""
        return sum(self._store.counts().values()) < STORED_CATS

    def _delay(self) -> float:
        """Return how many seconds to wait for the next fetch."""
        first_ready = min(source.ready for source in self._sources)
        due = max(self._due, first_ready)
        return max(0.0, due - time.monotonic())

    def _fetch_from(self, source: Source) -> bool:
        """Store a new cat if the source has one. Return False if the source fails."""
        try:
            with span("get_cat_ascii_art", source=source.name):
                stored = self._store_next(source)
        except Unavailable as error:
            source.failed(error)
            return False
        source.worked()
        if stored:
            self._repeats = 0
        else:
            self._repeats += 1
        hurry = self._short() and self._repeats < QUICK_REPEATS
        self.last_good = time.monotonic()
        self._due = self.last_good + (QUICK_SECONDS if hurry else REFRESH_SECONDS)
        self.results["stored" if stored else "repeated"] += 1
        return True

    def _store_next(self, source: Source) -> bool:
        """Store the first new cat of the list, after a search if the list is empty. Return False if none is new."""
        if not source.listed:
            source.listed.extend(source.search())
        while source.listed:
            cat = source.listed.popleft()
            if cat.id not in self._store.ids(max_age=0):
                self._store.put(cat, self._fetcher.picture(cat))
                return True
        return False


Item = TypeVar("Item")


class Cache(Generic[Item]):
    """A cache that drops the least recently used items when they have more than `limit` bytes together."""

    def __init__(self, limit: int, size_of: Callable[[Item], int]) -> None:
        self._limit = limit
        self._size_of = size_of
        self._size = 0
        self._lock = threading.Lock()
        self._items: OrderedDict[object, Item] = OrderedDict()

    def get(self, key: object) -> Item | None:
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
            return self._items.get(key)

    def put(self, key: object, item: Item) -> None:
        with self._lock:
            old = self._items.pop(key, None)
            if old is not None:
                self._size -= self._size_of(old)
            self._items[key] = item
            self._size += self._size_of(item)
            while self._size > self._limit:
                _, dropped = self._items.popitem(last=False)
                self._size -= self._size_of(dropped)

    def get_or_make(self, key: object, make: Callable[[], Item]) -> Item:
        """Return the item with this key. If there is none, return what `make` returns, which is kept."""
        item = self.get(key)
        if item is None:
            item = make()
            self.put(key, item)
        return item


def main_colours(picture: Image.Image) -> str:
    """Return the names of the one or two colours that most of the picture (RGB) has, such as "orange and white"."""
    side = 32  # small, so that the stripes of a coat become its colour
    small = picture.resize((side, side), Image.Resampling.BOX)
    pixels = chunks(nearest(small.tobytes(), side, COLOUR_NAMES), 3)
    (main, _), *others = Counter(COLOUR_NAMES[pixel] for pixel in pixels).most_common(2)
    second = [name for name, count in others if count >= MAIN_SHARE * len(pixels)]
    return " and ".join([main, *second])


def described(cat: Cat, photograph: Image.Image) -> Cat:
    """Return the cat with a description of its photograph."""
    source = SOURCE_NAMES.get(cat.source, cat.source)
    description = f"a photograph from {source}, mainly {main_colours(photograph)}"
    tags = f"; tags: {cat.tags}" if cat.tags else ""
    return cat._replace(description=description + tags, size=photograph.size)


class Cattery:
    """Finds cats for requests: stored cats, house cats, and, for permalinks, cats that only the sources have."""

    def __init__(self, store: Store, sources: list[Source], fetcher: Fetcher) -> None:
        self._store, self._sources, self._fetcher = store, sources, fetcher
        self._revived = Cache[tuple[Cat, bytes]](4 << 20, size_of=lambda found: len(found[1]))
        self._free = threading.BoundedSemaphore(REVIVALS_AT_ONCE)
        self._budgets = {known: Limit(VISITORS_REQUESTS_A_MINUTE, 60) for known in (True, False)}
        self._picked = ""

    def pick(self, seen: Sequence[str] = ()) -> str:
        """Return the id of a random local cat, if possible not the last one and none of `seen`."""
        order = {cat_id: position for position, cat_id in enumerate([self._picked, *seen])}
        ids = (self._sources and self._store.ids()) or house_cats()
        self._picked = min(ids, key=lambda cat_id: (order.get(cat_id, -1), random.random()))
        return self._picked

    def find_local(self, cat_id: str) -> tuple[Cat, bytes]:
        """Return the cat and its JPEG without a request to a source. The JPEG of a house cat is empty.

        Raises NoSuchCat.
        """
        if seed_of(cat_id) is not None:
            return Cat(cat_id, "house", ""), b""
        cat, jpeg = self._revived.get(cat_id) or self._store.get(cat_id) or (None, None)
        if cat is None or jpeg is None:
            raise NoSuchCat(cat_id)
        return cat, jpeg

    def find_or_fetch(self, cat_id: str) -> tuple[Cat, bytes]:
        """Return the cat and its JPEG, from a source if necessary. Raises NoSuchCat and Unavailable."""
        try:
            return self.find_local(cat_id)
        except NoSuchCat:
            if not self._sources or not re.fullmatch(SOURCE_CAT_ID, cat_id):
                raise
        if not self._free.acquire(blocking=False):
            raise Unavailable("other pictures are being fetched")
        try:
            stored = self._store.get(cat_id)
            permit = partial(self._permit, known=bool(stored))
            cat = stored[0] if stored else self._ask(cat_id, permit)
            jpeg = self._fetcher.picture(cat, permit)
        finally:
            self._free.release()
        self._revived.put(cat_id, (cat, jpeg))
        return cat, jpeg

    def _permit(self, known: bool) -> None:
        """Count a request to a source that a visitor causes. Raises Unavailable if there were too many.

        Cats that were `known` to the store have a budget of their own, which made-up ids cannot use up.
        """
        if not self._budgets[known].allows():
            raise Unavailable("visitors caused too many requests in the last minute")

    def _ask(self, cat_id: str, permit: Callable[[], None]) -> Cat:
        """Ask the sources for a cat that was never stored. Raises NoSuchCat, and Unavailable if one fails."""
        failure: Exception = NoSuchCat(cat_id)
        for source in self._sources:
            try:
                return source.find(cat_id, permit)
            except NoSuchCat:
                log.debug("Cat not found", {"source": source.name, "id": cat_id})
            except Unavailable as error:
                failure = Unavailable(f"{source.name}: {error}")
        raise failure


def seed_of(cat_id: str) -> int | None:
    """Return the seed of the house cat with this id, or None if the id is another cat's."""
    found = re.fullmatch(r"house-(0|[1-9][0-9]{0,9})", cat_id)
    seed = int(found[1]) if found else HOUSE_CATS
    return seed if seed < HOUSE_CATS else None


portrait = lru_cache(PORTRAITS)(draw_house_cat)


def picture_of(cat: Cat, jpeg: bytes) -> tuple[Cat, Image.Image]:
    """Return the cat with its description, and its picture, which callers must not change."""
    seed = seed_of(cat.id)
    if seed is None:
        photograph = decode(jpeg, STORED_SIDE)
        return described(cat, photograph), photograph
    picture = portrait(seed)
    return cat._replace(description=picture.info["description"], size=picture.size), picture


def house_cats(count: int = 24, seconds: int = 60) -> list[str]:
    """Return the ids of the current house cats. Every `seconds`, a new cat replaces the oldest one."""
    now = int(time.time() // seconds)
    return [f"house-{zlib.crc32(b'%d' % period)}" for period in range(now - count + 1, now + 1)]


def words_of(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def look(text: str) -> str:
    """Return the words that are looked for, in lower case, with a space between them. Raises ValueError."""
    if len(text) > MAX_LOOK:
        raise ValueError(f"{len(text):,} characters are more than the {MAX_LOOK} for words of a description")
    return " ".join(words_of(text))


@cache
def looks() -> frozenset[str]:
    """Return all words that descriptions of house cats have."""
    return frozenset(words_of(" ".join(house_words())))


def house_cat_like(wanted: str) -> str:
    """Return the id of a random house cat whose description has all words that are wanted.

    Raises NoSuchCat if none of TRIES random cats has them, with a message that names the words there are.
    """
    words = {*wanted.split()}
    tries = TRIES if words <= looks() else 0
    for _ in range(tries):
        seed = random.randrange(HOUSE_CATS)
        description = HouseCat(seed).description
        if all(map(description.__contains__, words)) and words <= {*words_of(description)}:
            return f"house-{seed}"
    known = ", ".join(sorted(looks() - {*DULL_WORDS.split()}))
    raise NoSuchCat(f"no house cat like {quoted(wanted)} was found; the words are {known}")


# ---------------------------------------------------------------------------------------------------------------------
# Visitors: count visits by day and country, keep no address; draw the map of the world
# ---------------------------------------------------------------------------------------------------------------------
# WORLD holds the names of the countries from Unicode CLDR, and a map of Natural Earth's data in Gall's stereographic
# projection: for each cell, how much of it is land, and the countries in it.

UNKNOWN_COUNTRY = "ZZ"  # CLDR's "Unknown Region"
MAX_ADDRESS = 64  # characters; one with a port has at most 53
MOST_WAITING = 10_000  # pairs of day and country that wait for the database; a statement can write 10,922 of them

COUNT_VISITS = """
INSERT INTO visits (day, country, count) VALUES (?, ?, ?){more}
ON CONFLICT (day, country) DO UPDATE SET count = count + excluded.count"""
CHECK_VISITS = "UPDATE visits SET count = count WHERE FALSE"  # takes the write lock, like a visit
VISITS_BY_COUNTRY = "SELECT country, count FROM totals WHERE count > 0 ORDER BY 2 DESC, 1"
VISITS_BY_DAY = "SELECT day, sum(count) FROM {view} WHERE day BETWEEN ? AND ? GROUP BY day"
VISITS_BY_DAY_AND_COUNTRY = """
SELECT day, country, sum(count) AS visits FROM {view} WHERE day BETWEEN ? AND ?
GROUP BY 1, 2 HAVING visits > 0 ORDER BY 1, 3 DESC, 2"""
VISITS_HERE = "SELECT day || country, count FROM here WHERE day = '' OR day >= ?"

ETCD_PREFIX = b"catscii/visits/"
EXCHANGE_SECONDS = 2.0
ENDPOINT_SECONDS = 2.0  # for the answer of an endpoint
SAVE_SECONDS = 60.0  # how often the time of the last exchange is saved if nothing else has changed
MAX_ANSWER = 8 << 20  # what etcd holds is not trusted
MAX_DOCUMENT = 256 << 10
MOST_VISITS = 10**11  # under a key; with the documents that fit into an answer, sums stay below 2**63
CLAIM_EXCHANGE = "UPDATE machine SET due = ? WHERE due NOT BETWEEN ? AND ? RETURNING 1"
DELAY_EXCHANGE = "UPDATE machine SET due = ?"
LOAD_STATE = "SELECT state FROM machine"
SAVE_STATE = "UPDATE machine SET state = ? WHERE state = ? RETURNING 1"

WORLD_COLUMNS = 80
WORLD_ROWS = 22
GLOWING = "o#@"  # glyphs of cells with visits, from few to many; the others have those of WORLD
FAINTEST = 120  # the least glow of cells with visits, of 255; halos reach half of it, so that borders are clear
LAND = (152, 164, 192)  # glyphs without visits
EMBER = (250, 112, 44)  # glyphs with few visits
FLAME = (255, 240, 180)  # glyphs with many visits
SEA = (8, 12, 24)  # backgrounds without visits
COALS = (92, 28, 8)  # backgrounds with few visits
BLAZE = (168, 66, 16)  # backgrounds with many visits
WORLD = """
c-mZ6$%5KU4!-jgzRa%V9l)#&rU^EX?wha`Tfwd(auxjM{pLkxUvG1pRfRj`&-7ZWK7F5-Vmvg36+xKn3_B{Kq2Mu^G%V<-h3W89S)t+9p@G@ZI4(U#KaEBxM_(W;hNkpf*9fa&eMG|u$xs>!gJ<2dy7NJ=q2!KpgzZpDQY!`_9X2GoW}*}ui;xX{>x2<@_W{;AJPgGj
5kCI9MpHzKHvDVhb$BB=B7a6R7>;afIJh(?xlw5^!S*QlhlOonJVH~}SWsKRWJGnzzJck;%ZUv}Q*15FM!qgFAkRlw39^BO9`L4Mcp8z>`6_kq17}zLxu&LrWJJ;g{_ByRBZlXZt@*-AHb&v&k(Ab&Tt(8myd4SNxQ0{_u)!9xQRRcC`;qk*a&O$=FtV<_qCt33XHmSe
)dAmVFpSZlLdLPpZ5#c3NxE*zUp!<P$5sW8-bG6`ZG|nuG$s?2jE0|jrMGnU$C`7PeLWley5U7bNH9;Y>~6iwu!#TRC@OxoxL6i~Wo+%~0kw)N)(c6D4T-e|*1BLc<gu-7b7T#4Y+HxXHUxbaham1_JX5qMDF_a+7yKhy_!w8hty4w5D)16_=R58AMtQ|Jn9N8TG#xyR
Kl9Og$FLleX;4m(jBUdvU_AGu??}E5>ykuG#FN}(VFf0W*4dDovq{;V9n25ZI+Bor6^eR25q3fdX?hNMkWF00_N*orQ#N=1o~Ha+J(yyB`YtJxgmbZm+K~BE6ibh-?Nrd@8o?PJt$|TrX(3EyVH+6Fgzk}5rdCSUxJ`8>ucDb}H0tcklbDt|n9r)Pu$b{tuy!c0(#zC)
mdx-j{aUXXLfFidG}YFh2|i4|cyv}6>*#HJ8*b*LR8>>O>an$u`gy7*ubfv87MYrJ)L^Xv)nNmN-q5=dw=H^jnfVS44wiFk%4n&7Aej?Np(c}jYz@}m)LQGI!V9W6u~>ABkj;@D!*1?PiP8<m3sb!5IavtZDXtc+Ak~nl9g6IyC_w{jJs3nEiQaG3;V?DPa~_H?Bhh6m
9eh{_eu1t2HIOdy-e9(HSa*ZT6G_lFdBO(o>GWi!Km(g6Jfj&*mSj2&#IlpJyWN}NJXW=B0A4Iv_=xIz65Ga#ReGUcEZMnM$*<|cEo|0SRMw@HpuKARm>ib=itIG=v1`zLYjaDy;i(E}gW(F*>}W+tG}b^I?5}(t&{wQ=;>fg)*uXLsj#g++3bNuO2_vK{YOSj*WGi-+
M-!Ut%Kt!0z)K1H6}r&7Ui3nTgJGf^^4vn4ScCe1oY=as7mb51C=!)oVH#XWP@IC!5-hO9Hb;TEuC*1`^@GQ<XP#hAg$>xN1Z&oU=`d7r^z)II27dwT#D)hWgi_C<eUpsD1RO?#50f8yVE*C>wh4M+hbAx$4z?tM4l+e?O0?f*-@;y33cgSa2OZ&+;bTHSurhoJ^Dd;?
YhrI2*kE}uTw}wbqT)4OqZsQq|0ioMNnon(eX{k}t_ZXHatO(qa}+GSQvLBG@T?cE*eNeMV-4FidhxJZv$A*%5U+&c<RE!&Ld-X4uu-@TiGTEjjjg-BDrOrzdyK-xx00T3Dz5o_)``l#!BhWkuQs-C5Fun6CJ_oX893IVcW>C`$YQ=Vtc@peHgs<b=|+jSLG2%v6DvTr
vEqEGOb&V^bbw9Ix*H5XphFo<wtx1972<hon?67(Nl<jR^=;sA*j^P;b1p?+a5NMQyQ4HbBlep^aY|iYQC%zSIQ5}2C+U?6GB8Wolz6s6Fc19ZR8we?X>BhQAfM6;*2lgNJz>bDPOmM)KAu80ra=*mR%8vSM%bsDv0BAsDDZnu)%}`7-Fn@@=Fv5KU$XSKHp*=CXNB0v
-%ZYEg8ih9Qmilchv%bu>C`TYQ}CCxlaOnZ_KHE+L7aIxg<cUOhsXWflU`x*2>l(B<ohVhGFw`hXBBe)K4tis-vYnP?1@5TRv9-|-mNr_N-=;nWcoAf%<Cu=U1m+G6tjQHi93QUQ>t8G&@Hn^RFr+@RZ9<t3|Zp_uNj&f8rJyjPJ(O*X1g*36q4Qh^nLW~UEOJX9)!}j
w=Z?*)cKd4_>eI0y1N~z_j)kgqq{%kF}tpBb$d2B8K<7~Z{<C~Cwnq<^GXnAZ@pg+O3CH{w+LSR|KfVj<P0{j+oSR5{9t;(y5^w&)H`oNnqp&duw2^KUhH7<LaJBjD4lgq8$%!b{!<ksul>7wc;)7Z$15otb29d7{>LaCoWKFYP!LTiQ^6}h{TG(YE?Hr0GDjoke;NI$
4Q4@Ar7BTX^adZ>uToVRwL}cdymMw|7$3)vZx>X<PauQ7xhH1iJM3qUd86Y6Gs;XAsrfG??3(N~Yh=dLV_KZkePQN}(x&zVXVy(jC+)nJ4(2MOld|i#-)}#-Y+KBX!ln0|YwLwEgMUhgPxU=esY-XSa?PSDQ!!<dQo6X$gUQ}cmC2x+=PYz)tR^33cq#2Nshp=K6%$2;
JU8AM%$~M-ue8JGh>#<A341K;c+-LTIR{-hZEvWGtFI^SuQ%UbKpWlo+xR@dXBCBE0MGogo9&%t&PLX<W^cKcYqo8BS+kXGH=92_ojd3L*Z0*q0=+g2h{<Hof4{`2;$j-^Raq%8$WQgZsH6s0{9I>Z5|f{=ocSOA*ogK}kBP}w#>D^W^V=?3(AQd?pMOCXHh(Stb-b>Y
7R<1A+EPU0;?gCTP{Q}+3(d67v}W`b64F1scOTuWz-2`Z4Ga;*8Q7a*JjzhB7n4zxf&FlWBU<lZh68Pf)wEqVLOd9RFdZ!`2f40@^@`HcrtmY>#z^h=@3HvNdyJZ7{N_#dOM(NW-_c{1mX$%3z2@54NlU-AwY8O#vw$8>;aawlF^(G>4;z+lU_cN{dRbb23u08x2iFsM
A8D$)N-jG)dnj&UW}<Pr0W}re2JVEyE_i;T1>5$39}iBL?^}th4LE`k@I^hG@DOu0!y7Ab8p9Wq`?$Heg@-?VnwOWSklmJ;NISW^pKK&)UQtPyCnZ$}4lKlkx}ErdDOiQtP1u2r=TIs(9nWV+Mm`nJyQie2gk=>5XI~s_OiR15UCrf?6fNXjgS(t!>mqSq5?e%sguYr?
Ra6A%1fxJl2W&bzI&sM|$(+43g@lAYV-~VLf6g`3>64n8`Y}0~oxLZgaP;WWot=Rp?Ktc#xQK<<EEX#@r>XfBS}-nNJcXV8CMOjd%FEjo65{N98~&_bVJh#gj2%0ciFR~!;5;6OIJ5dhNYGFfX9v~)FM;_-AN2VwK|(@xE6?ul!Nwxw
"""


class Countries:
    """Finds the countries of addresses in the MaxMind DB at `path`. Without one, all are UNKNOWN_COUNTRY."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._reader: maxminddb.Reader | None = None
        self._stat: tuple[int, ...] | None = None  # of the file when it was last read
        self.from_dbip = False  # the licence, CC BY 4.0, requires a link to DB-IP where its countries are shown
        try:
            self.reload()
        except ValueError as error:
            raise SetupError(f"GEOLITE2_COUNTRY_DB: cannot read {quoted(str(path))}: {error}") from error

    def reload(self) -> bool:
        """Read the file if it has changed, and return whether it has. Raises ValueError."""
        if self._path is None:
            return False
        stat: tuple[int, ...] = ()
        with contextlib.suppress(OSError):  # a missing file is an error below, but only once
            status = os.stat(self._path)
            stat = (status.st_ino, status.st_size, status.st_mtime_ns)
        if self._stat == stat:
            return False
        self._stat = stat
        try:
            # MODE_MEMORY uses the reader in Python. A damaged file could crash the reader in C, and the process.
            reader = maxminddb.open_database(self._path, maxminddb.MODE_MEMORY)
            kind = reader.metadata().database_type
            from_dbip = kind.startswith("DBIP")
        except Exception as error:  # the reader raises almost anything on a damaged file
            raise ValueError(f"{type(error).__name__}: {error}") from error
        found = set[str]()
        with contextlib.suppress(Exception):  # damaged records count for UNKNOWN_COUNTRY later
            first_records = itertools.islice(reader, 1000)
            found = {country_of(record) for _, record in first_records}
        if found == {UNKNOWN_COUNTRY}:
            raise ValueError(f"it is of type {quoted(kind)}, and has no countries")
        self._reader = reader
        self.from_dbip = from_dbip
        return True

    def country(self, address: str) -> str:
        """Return the ISO 3166-1 alpha-2 code for a client's address, or for the last address in a header's list."""
        if not self._reader:
            return UNKNOWN_COUNTRY
        try:
            return country_of(self._reader.get(parse_address(address)))
        except Exception:  # no address, IPv6 in a database of IPv4, or a damaged record: it raises almost anything
            return UNKNOWN_COUNTRY


def parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return a client's address, or the last one in a header's list, which the proxy added. Raises ValueError."""
    last = text.rpartition(",")[2].strip()
    with_port = re.fullmatch(r"\[(.*)\](:\d+)?|([^:]*):\d+", last)
    if with_port:
        last = with_port[1] or with_port[3] or ""
    address = ipaddress.ip_address(last.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def client_of(address: str) -> str:
    """Return the name of the client at an address: an IPv4 address, or the /64 network of an IPv6 address.

    A customer of a network usually has all addresses of a /64 (RFC 6177). Of a header's list, the last address counts.
    """
    last = address.rpartition(",")[2].strip()
    return client_at(last[:MAX_ADDRESS])


@lru_cache(4096)
def client_at(address: str) -> str:
    """Return what `client_of` does, for one address."""
    try:
        parsed = parse_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return str(parsed)
    return str(ipaddress.ip_network((int(parsed), 64), strict=False))


def country_of(record: object) -> str:
    """Return the code in a record: `iso_code` in `country` or `registered_country`, or a flat `country_code`."""
    if not isinstance(record, dict):
        return UNKNOWN_COUNTRY
    for entry in (record.get("country"), record.get("registered_country"), record):
        if not isinstance(entry, dict):
            continue
        code = entry.get("iso_code") or entry.get("country_code")
        if isinstance(code, str) and re.fullmatch("[A-Z]{2}", code):
            return code
    return UNKNOWN_COUNTRY


class Analytics(NamedTuple):
    """Visits by country, and by day in UTC."""

    visits: int  # of all time
    today: int
    last_30_days: int
    days: dict[str, int]  # visits on each of the last 30 days, today last
    countries: dict[str, int]  # visits of all time by country, most first
    machines: Mapping[str, Any]  # how many there are, and when this one last read the others; empty without etcd

    def __str__(self) -> str:
        if not self.visits:
            return "Nobody has seen a cat here yet. You could be the first."
        totals = f"Visits: {self.visits:,} in all, {self.today:,} today, {self.last_30_days:,} in the last 30 days"
        if self.machines.get("count", 1) > 1:
            totals += " on {count} machines, as of {agreed}".format(**self.machines)
        return totals


def read_analytics(database: Database, view: str = "here", machines: Mapping[str, Any] = {}) -> Analytics:
    """Read the visits in a view of the database: "here" are those of this machine, "everywhere" those of all."""
    today = utc(time.time()).date()
    days = {str(today - datetime.timedelta(ago)): 0 for ago in range(29, -1, -1)}
    days |= database.execute(VISITS_BY_DAY.format(view=view), min(days), max(days))
    of_all_time = database.execute(VISITS_BY_DAY_AND_COUNTRY.format(view=view), "", "")
    countries = {country: count for _, country, count in of_all_time}
    return Analytics(
        visits=sum(countries.values()),
        today=days[str(today)],
        last_30_days=sum(days.values()),
        days=days,
        countries=countries,
        machines=machines,
    )


class World(NamedTuple):
    names: dict[str, str]  # of countries, by code
    cells: str  # for each cell, row by row: a colon if most of it is land, a dot if some of it is, or a space
    homes: dict[int, list[str]]  # the countries in each cell with land, the largest first


@cache
def world() -> World:
    """Unpack WORLD: a line of names for each first letter of the codes, the cells, and the countries in them."""
    packed = base64.b85decode("".join(WORLD.split()))
    text, _, data = zlib.decompress(packed).decode("latin-1").partition("\0")
    names = {}
    for initial, line in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", text.split("\n"), strict=True):
        for entry in line.split(","):
            names[initial + entry[0]] = entry[1:]
    codes = list(names)
    cells = data[:WORLD_COLUMNS * WORLD_ROWS]
    land = [cell for cell, glyph in enumerate(cells) if glyph != " "]
    groups = re.findall("[^\xff](?:\xff.)*", data[len(cells):], re.DOTALL)  # the owner, and others after \xff
    homes = {}
    for cell, group in zip(land, groups, strict=True):
        homes[cell] = [codes[ord(number)] for number in group[::2]]
    return World(names, cells, homes)


def world_map(visits: Mapping[str, int]) -> Art:
    """Draw the world. The glow of a country grows with the logarithm of its visits."""
    glow = glow_of_cells(visits)
    step = math.ceil((256 - FAINTEST) / len(GLOWING))
    cells = ""
    for glyph, level in zip(world().cells, glow, strict=True):
        cells += GLOWING[(level - FAINTEST) // step] if level else glyph

    picture = Image.frombytes("L", (WORLD_COLUMNS, WORLD_ROWS), glow)
    halo = picture.filter(ImageFilter.GaussianBlur((1.6, 0.8)))  # cells are twice as tall as wide
    halo = halo.point(lambda level: min(level, FAINTEST // 2))
    warmth = ImageChops.lighter(picture, halo)
    foreground = ImageOps.colorize(picture, LAND, FLAME, EMBER, midpoint=FAINTEST)
    background = ImageOps.colorize(warmth, SEA, BLAZE, COALS, midpoint=FAINTEST)
    background = background.point(lambda level: level & ~3)  # for longer runs
    return Art(tuple(chunks(cells, WORLD_COLUMNS)), foreground.tobytes(), background.tobytes())


def glow_of_cells(visits: Mapping[str, int]) -> bytes:
    """Return how brightly each cell of the map glows: as brightly as the country in it with the most visits."""
    known = [count for code, count in visits.items() if code != UNKNOWN_COUNTRY]
    most = max(known, default=0)
    glow = bytearray(WORLD_COLUMNS * WORLD_ROWS)
    for cell, codes in world().homes.items():
        count = max(visits.get(code, 0) for code in codes)
        if count:
            glow[cell] = FAINTEST + round((255 - FAINTEST) * math.log1p(count) / math.log1p(most))
    return bytes(glow)


def country_name(code: str) -> str:
    return world().names.get(code, code)


class VisitCounter:
    """Counts visits in the database. While it fails, visits wait in memory, as a number for each day and country."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._committing = threading.Lock()
        self.trouble = Trouble("Visits cannot be counted and wait in memory", "Visits are counted again")

    @property
    def waiting(self) -> int:
        """The number of visits that are not committed yet."""
        with self._lock:
            return self._waiting.total()

    def count(self, country: str) -> None:
        """Count a visit in memory. `write` commits it."""
        day = time.strftime("%Y-%m-%d", time.gmtime())
        visit = (day, country)
        with self._lock:
            if visit in self._waiting or len(self._waiting) < MOST_WAITING:
                self._waiting[visit] += 1

    def write(self) -> None:
        """Commit the visits that wait, unless the last commit failed."""
        if self._waiting and not self.trouble:
            self.commit()

    def commit(self) -> None:
        """Commit all visits that wait. If none wait, find out whether the database can be written to."""
        with self._committing:
            with self._lock:
                visits = self._waiting.copy()  # keep them until the commit: `write` does not wait if none are left
            with self.trouble.contain(sqlite3.Error):  # after any exception, the visits still wait
                self._commit(visits)
                with self._lock:
                    self._waiting -= visits

    def _commit(self, visits: Counter[tuple[str, str]]) -> None:
        if not visits:
            self._database.execute(CHECK_VISITS)
            return
        sql = COUNT_VISITS.format(more=", (?, ?, ?)" * (len(visits) - 1))
        rows = [(day, country, count) for (day, country), count in visits.items()]
        self._database.execute(sql, *itertools.chain(*rows))

    def close(self, patience: float) -> None:
        """Try for some seconds to count the visits that wait, and log how many are lost."""
        deadline = time.monotonic() + patience
        while self.waiting:
            self.commit()
            if not self.trouble or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        lost = self.waiting
        if lost:
            log.error("Visits are lost: the database cannot be written to", {"visits": lost})


class Overtaken(Exception):
    """Another process has written what this one wanted to write."""


class Document(NamedTuple):
    """What is under a key of etcd. The machine that owns the key writes another mark each time."""

    revision: str  # etcd counts the writes
    mark: str
    visits: Counter[str]

    def raised(self, visits: Mapping[str, int]) -> Document:
        """Return the document with numbers at least as high as those of the visits."""
        return self._replace(visits=recent(self.visits | Counter(visits)))


ABSENT = Document("0", "", Counter())


class State(NamedTuple):
    """What a database remembers of its exchanges, as JSON. docs/machines.md explains it."""

    inode: int = 0  # of the file
    key: str = ""  # that the machine writes now
    marks: Sequence[str] = ()  # the last ones that it wrote under the key
    begun: Mapping[str, int] = {}  # visits already counted under the file's earlier keys
    past: Mapping[str, Mapping[str, int]] = {}  # visits under each key that the file had before
    elsewhere: Mapping[str, int] = {}  # visits of all other machines
    machines: int = 1
    agreed: float = 0.0  # when all this was exchanged last, in Unix time

    def with_another_key(self, begun: Counter[str]) -> State:
        """Return a state with a new key. The visits in `begun` stay under the keys that the file had before."""
        past = dict(self.past)
        if self.key:
            past[self.key] = recent(begun - Counter(self.begun))
        return self._replace(key=random_name(), marks=(), begun=begun, past=past)


class Etcd:
    """Asks etcd through its JSON gateway: the endpoint that worked last, and then the others in turn."""

    def __init__(self, settings: Settings) -> None:
        self._endpoints = deque(map(urllib_parse.urlsplit, settings.etcd_endpoints))
        self._fetcher = Fetcher(settings.ssl_cert_file, settings.etcd_endpoints)
        self._token = ""

    def ask(self, path: str, message: object) -> Any:
        """Return the answer of the first endpoint that works. Raises Unavailable if none does."""
        for _ in range(len(self._endpoints)):
            with contextlib.suppress(Unavailable):
                return self._ask_next(path, message)
        return self._ask_next(path, message)  # the first one again, because its token may have expired

    def _ask_next(self, path: str, message: object) -> Any:
        """Ask the first endpoint. If it fails, make it the last, forget the token, and raise Unavailable."""
        endpoint = self._endpoints[0]
        host = endpoint.netloc.rpartition("@")[2]
        server = f"{endpoint.scheme}://{host}/v3/"
        try:
            if endpoint.username and not self._token:
                self._token = self._log_in(server, endpoint.username, endpoint.password or "")
            return self._post(server + path, message)
        except Exception as error:  # anything may answer there
            self._token = ""
            self._endpoints.rotate(-1)
            raise Unavailable(f"{server}: {error}") from None

    def _log_in(self, server: str, name: str, password: str) -> str:
        """Return a token for a user, whose name and password are percent-encoded."""
        user = {"name": urllib_parse.unquote(name), "password": urllib_parse.unquote(password)}
        token: str = self._post(server + "auth/authenticate", user)["token"]
        return token

    def _post(self, url: str, message: object) -> Any:
        text = json.dumps(message, default=lambda data: base64.b64encode(data).decode())
        headers = {"Authorization": self._token} if self._token else {}
        request = Request(url, MAX_ANSWER, ENDPOINT_SECONDS, headers, post=text, kind="")
        return json.loads(self._fetcher.get(request))


class Machines:
    """Adds up the visits of many machines through etcd. docs/machines.md explains why the sum is always right.

    A machine writes its visits by country ("FR"), and by day and country ("2026-07-27FR"), to its own key. No
    number under a key ever falls. A copy of the database file gets a new key, for the visits that the copy counts. It
    is known by its inode or, if a whole volume was copied, by a mark under the key that the database did not write.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        self._etcd = Etcd(settings)
        self._execute = database.execute
        self._path = settings.analytics_db
        self._failing = Trouble("Visits cannot be exchanged with etcd", "Visits are exchanged again", logging.WARNING)
        self._invalid = Trouble("Invalid documents in etcd are ignored", "All documents are valid", logging.WARNING, 10)
        self._known = Counter[str]()  # the visits in the database at the last exchange
        self.on = bool(settings.etcd_endpoints)
        self.count = 1
        self.agreed = 0.0
        self.failed = 0  # exchanges
        with contextlib.suppress(sqlite3.Error, OSError, Overtaken):  # the first exchange tries again
            if self.on:
                state = self._load()
                self._known = self._here()
                self.count = state.machines
                self.agreed = state.agreed

    def run(self, ended: threading.Event) -> None:
        """Exchange visits now, every EXCHANGE_SECONDS, and after `ended`. The server runs this in a thread."""
        if not self.on:
            return
        self.exchange()
        while not ended.wait(EXCHANGE_SECONDS):
            self.exchange()
        self.exchange()

    def exchange_if_due(self) -> None:
        """Exchange visits after a CGI request, unless another process did so a moment ago."""
        if not self.on:
            return
        now = time.time()
        latest = now + 60  # a `due` beyond that is from a clock that was wrong
        if self._execute(CLAIM_EXCHANGE, now + EXCHANGE_SECONDS, now, latest):
            self.exchange()
            if self._failing:
                self._execute(DELAY_EXCHANGE, latest)  # one log line a minute

    @property
    def view(self) -> str:
        """The view of the database that has the visits to show: those of all machines, or those of this one."""
        return "everywhere" if self.on else "here"

    def summary(self) -> dict[str, Any]:
        """Return how many machines there are and when they last agreed, for JSON; an empty dict without etcd."""
        if not self.on:
            return {}
        agreed = utc(self.agreed).isoformat(timespec="seconds") if self.agreed else None
        return {"count": self.count, "agreed": agreed}

    def exchange(self) -> None:
        """Raise the numbers under the keys of this file, and save the sum of all other keys."""
        # If the exchange fails, the visits are still in the database.
        with self._failing.contain(sqlite3.Error, Unavailable), contextlib.suppress(Overtaken):
            self._exchange()
        if self._failing:
            self.failed += 1

    def _exchange(self) -> None:
        documents = self._read()
        state = self._load()
        here = self._here()
        mine = recent(here - Counter(state.begun))
        own = documents.get(state.key, ABSENT)
        lacking = recent(own.visits) - mine  # an older state of the file has taken its place
        copied = own.mark not in ["", *state.marks]  # a copy of the file writes the key, too
        if lacking or copied:
            self._save(state.with_another_key(self._known & here))
            return
        self._raise_past_keys(state, documents)
        state = self._raise_own_key(state, documents, mine)
        self._known = here
        self._add_up(state, documents)

    def _raise_past_keys(self, state: State, documents: dict[str, Document]) -> None:
        """Write what the file counted under other keys, in case the machines there could not."""
        for key, visits in state.past.items():
            document = documents.get(key, ABSENT)
            raised = document.raised(visits)
            if raised != document:
                self._put(key, raised)
                documents[key] = raised

    def _raise_own_key(self, state: State, documents: dict[str, Document], mine: Counter[str]) -> State:
        """Write the visits under the key of the file, with a new mark. Return the state with this mark."""
        document = documents.get(state.key, ABSENT)
        raised = document.raised(mine)
        if raised == document:
            return state
        # Save the mark before it is written. Keep the last ones, because a write that failed may have been done.
        mark = random_name()
        state = state._replace(marks=[document.mark, *state.marks[-9:], mark])
        self._save(state)
        raised = raised._replace(mark=mark)
        self._put(state.key, raised)
        documents[state.key] = raised
        return state

    def _add_up(self, state: State, documents: Mapping[str, Document]) -> None:
        """Add up the visits of the other keys, and save the sum if it has changed."""
        others = [document.visits for key, document in documents.items() if key != state.key]
        elsewhere = sum(others, Counter[str]())
        elsewhere.subtract(recent(state.begun))
        self.count = 1 + sum(map(is_active, others))
        self.agreed = time.time()
        changed = elsewhere != state.elsewhere or self.count != state.machines
        late = state.agreed + SAVE_SECONDS < self.agreed
        if changed or late:
            self._save(state._replace(elsewhere=elsewhere, machines=self.count, agreed=self.agreed))

    def _load(self) -> State:
        """Return the saved state. A file with another inode is a copy, and gets a key of its own."""
        ((text,),) = self._execute(LOAD_STATE)
        self._text = text
        saved = json.loads(text)
        state = State(**{name: saved[name] for name in State._fields if name in saved})
        inode = os.stat(self._path).st_ino
        if state.inode == inode:
            return state
        counted = self._here() if state.key else Counter[str]()
        state = state.with_another_key(counted)._replace(inode=inode)
        self._save(state)
        return state

    def _save(self, state: State) -> None:
        """Save the state. Raises Overtaken if another process has saved one since `_load`."""
        text = json.dumps(state._asdict())
        if not self._execute(SAVE_STATE, text, self._text):
            raise Overtaken
        self._text = text

    def _here(self) -> Counter[str]:
        """Return the visits in the database."""
        first = utc(time.time()).date() - datetime.timedelta(29)
        rows = self._execute(VISITS_HERE, str(first))
        return Counter({key: count for key, count in rows if key[-2:] in world().names})

    def _read(self) -> dict[str, Document]:
        """Return the document under each key. An invalid document has no visits."""
        every_key = {"key": ETCD_PREFIX, "range_end": ETCD_PREFIX[:-1] + b"0"}
        answer = self._etcd.ask("kv/range", every_key)
        documents = {}
        for entry in answer.get("kvs", []):
            key = base64.b64decode(entry["key"]).decode("latin-1")[len(ETCD_PREFIX):]
            revision = entry["mod_revision"]
            document = ABSENT._replace(revision=revision)
            try:
                document = read_document(base64.b64decode(entry["value"]), revision)
            except Exception as error:  # anything may be there
                self._invalid.begin(f"{quoted(key)}: {quoted(str(error))}")
            documents[key] = document
        self._invalid.end()
        return documents

    def _put(self, key: str, document: Document) -> None:
        """Write a document. Raises Overtaken if the key was written after the document's revision."""
        name = ETCD_PREFIX + key.encode()
        text = json.dumps({"version": 1, "mark": document.mark, "visits": document.visits})
        compare = {"key": name, "target": "MOD", "result": "EQUAL", "mod_revision": document.revision}
        put = {"key": name, "value": zlib.compress(text.encode())}
        answer = self._etcd.ask("kv/txn", {"compare": [compare], "success": [{"request_put": put}]})
        if not answer.get("succeeded"):
            raise Overtaken


def random_name() -> str:
    return os.urandom(8).hex()


def read_document(data: bytes, revision: str) -> Document:
    """Return the document in the value of a key. Raises almost any exception if no machine can have written it."""
    document = json.loads(zlib.decompressobj().decompress(data, MAX_DOCUMENT))
    for key, count in document["visits"].items():
        day = key[:-2]
        country = key[-2:]
        possible = type(count) is int and 0 <= count <= MOST_VISITS
        if not possible or country not in world().names:
            raise ValueError(f"it has {reprlib.repr(count)} visits of {reprlib.repr(key)}")
        if day and str(datetime.date.fromisoformat(day)) != day:
            raise ValueError(f"it has visits on {reprlib.repr(day)}")
    if document["version"] != 1:
        raise ValueError("its version is unknown")
    return Document(revision, document.get("mark", ""), recent(document["visits"]))


def recent(visits: Mapping[str, int]) -> Counter[str]:
    """Return the visits of all time, and those of the last 30 days."""
    first, last = last_days(30)
    found = Counter[str]()
    for key, count in visits.items():
        day = key[:-2]  # empty for the visits of all time
        if count and (not day or first <= day <= last):
            found[key] = count
    return found


def is_active(visits: Mapping[str, int]) -> bool:
    """Return whether there are visits of yesterday or today."""
    first, last = last_days(2)
    return any(count and first <= key[:-2] <= last for key, count in visits.items())


def last_days(count: int) -> tuple[str, str]:
    """Return the first of the last days, and tomorrow: another clock may be ahead, but not by more than a day."""
    today = utc(time.time()).date()
    first = today - datetime.timedelta(count - 1)
    tomorrow = today + datetime.timedelta(1)
    return str(first), str(tomorrow)


# ---------------------------------------------------------------------------------------------------------------------
# Web: the routes
# ---------------------------------------------------------------------------------------------------------------------
# The first methods of Service are the way of a request, in this order.

COLUMNS = 80  # of art, if no width is given
WIDTHS = range(20, MAX_COLUMNS + 1)
STREAMERS = r"(?i)(curl|wget2?|fetch)\b"  # they show what has arrived of an answer; other terminals wait for its end
TERMINALS = r"(?i)(curl|wget2?|httpie|xh|fetch)\b|.*powershell"
CRAWLERS = (  # found in the names of crawlers and link previews, from monperrus/crawler-user-agents (MIT)
    r"(?i)(?<!cu)bot|crawl|spider|slurp|scrap|preview|fetcher|scan|check|monitor|uptime|archiv|feed|index|google|"
    r"whatsapp|viber|bluesky|externalhit|\(compatible; (?!msie|konq)|://|@[a-z]|\.(com|org|net|io)\b")
GZIP = r"(?i)\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))"
QUALITY = r"q=(0?\.[0-9]+|0\.?|1(\.0*)?)"  # the weight of a media type in Accept
HOST = r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?"
MAX_HEADER_BYTES = 16 << 10  # browsers and proxies send less
MAX_ACCEPT = 1000  # characters of Accept that are read; those of browsers have some 150
MAX_BODY_BYTES = 8 << 10  # the service ignores bodies
REFUSALS = {
    413: f"a request's body must have less than {MAX_BODY_BYTES:,} bytes, and none is needed",
    431: f"a request's address and headers must have less than {MAX_HEADER_BYTES:,} bytes",
}
ROBOTS = """\
User-agent: *
Allow: /
Disallow: /?
Disallow: /panic
"""  # the longest match wins (RFC 9309, 2.2.2)
PLACES = 48  # for requests that wait for a drawing; a usual drawing takes some 30 ms
PLACES_OF_A_CLIENT = 32
PATIENCE_SECONDS = 0.5  # for clients that read nothing while the service ends
STREAMS = 200  # that are open at the same time; beyond half of them, one for each client
STREAM_SECONDS = 600.0
TURN_SECONDS = 0.05  # in which the loop of the server does one kind of work; what remains waits for its next turn
GOODBYE = b"\x1b[2mThe cat walks away. Call again, and another one comes.\x1b[0m\n"
MOST_LOGGED = 200  # characters of a path, or of a method, in the log
UNCOUNTED_SECONDS = 60.0  # /health fails when visits wait for longer than any restart or lock lasts
CGI_PATIENCE = 3.0  # seconds for which a CGI process tries to count its visit


class Format(NamedTuple):
    """What a response can be: the media type, the suffix of permalinks, and the pages that have the format."""

    media_type: str
    suffix: str
    pages: str

    @property
    def content_type(self) -> str:
        if self.media_type.startswith("text/"):
            return self.media_type + "; charset=utf-8"
        return self.media_type


FORMATS = {
    "html": Format("text/html", "html", "all"),
    "ansi": Format("text/plain", "ansi", "all"),
    "text": Format("text/plain", "txt", "all"),  # after ansi: in Accept, the last format of a media type wins
    "json": Format("application/json", "json", "all"),
    "png": Format("image/png", "png", "cats"),
    "jpg": Format("image/jpeg", "jpg", "none"),  # the original picture
    "csv": Format("text/csv", "", "analytics"),
}
CONTENT_TYPES = {name: format.content_type for name, format in FORMATS.items()}
COMPRESSED = {CONTENT_TYPES["png"], CONTENT_TYPES["jpg"]}  # by themselves
SPEAKING_FORMATS = ("ansi", "text", "png")  # whose art has the speech bubble in it
LINKED_FORMATS = ("html", "ansi")  # with links to the service, at the host that the request names
SUFFIXES = {format.suffix: name for name, format in FORMATS.items() if format.suffix}
PAGE_FORMATS = {
    "all": [name for name, format in FORMATS.items() if format.pages == "all"],
    "cats": [name for name, format in FORMATS.items() if format.pages in ("all", "cats")],
    "analytics": [name for name, format in FORMATS.items() if format.pages in ("all", "analytics")],
}


class Parameter(NamedTuple):
    """What is known of a field of View. /help shows `example` and `help`; `art --help` shows `values` and `art`."""

    values: Choices
    example: str
    help: str
    art: str


PARAMETERS = {
    "width": Parameter(
        WIDTHS,
        "?width=120",
        f"{WIDTHS[0]} to {WIDTHS[-1]} columns; {COLUMNS} if not given, in a browser what fits",
        art=f"{WIDTHS[0]} to {WIDTHS[-1]} columns (as many as the terminal has, else {COLUMNS})",
    ),
    "height": Parameter(
        range(1, MAX_ROWS + 1),
        "?height=40",
        f"rows at most, 1 to {MAX_ROWS}; {TERMINAL_ROWS} in a terminal if neither is given; "
        'to fill the window: "?width=$COLUMNS&height=$((LINES-2))"',
        art=f"1 to {MAX_ROWS} rows at most (as many as the terminal shows above the prompt, else {MAX_ROWS})",
    ),
    "style": Parameter(
        STYLES,
        "?style=ink",
        "glyphs without a background; fill, if not given: with one",
        art="fill: glyphs with a background; ink: glyphs alone (fill, for plain text ink)",
    ),
    "contrast": Parameter(
        range(101),
        "?contrast=48",
        f"least contrast of fill, 0 to 100; 0 for ansi, else {CONTRAST}",
        art=f"0 to 100 levels that glyph and background of fill differ by at least (0 for ansi, else {CONTRAST})",
    ),
    "background": Parameter(
        tuple(BACKGROUNDS),
        "?background=light",
        "ink and text for a light background",
        art="what ink and plain text are drawn for (dark)",
    ),
    "colors": Parameter(
        ("16", "256", "true"),
        "?colors=256",
        "or 16, for terminals without 24-bit colours",
        art="true: 24 bits (in a terminal as TERM and COLORTERM tell, else true)",
    ),
    "format": Parameter(
        PAGE_FORMATS["cats"],
        "?format=text",
        f"one of {', '.join(PAGE_FORMATS['cats'])}; text is in ink by default",
        art="ansi has colours (ansi in a terminal with colours, or if colors are given; else text)",
    ),
    "says": Parameter(
        FreeText("TEXT|-", sayable),
        "?says=hello",
        f"what the cat says, in at most {MAX_SAID} characters",
        art=f"what the cat says, in at most {MAX_SAID} characters; - for standard input, which is cut there (nothing)",
    ),
    "like": Parameter(
        FreeText("WORDS", look),
        "?like=green+eyes",
        "a random house cat with all these words in its description; photographs are not searched",
        art="a random house cat whose description has these words (any)",
    ),
}


class View(NamedTuple):
    """How to show a cat. Each field is a parameter of the query and an option of the command `art`."""

    width: int | None = None
    height: int | None = None
    style: str = "fill"
    contrast: int | None = None
    background: str = "dark"
    colors: str = "true"
    format: str = "html"
    says: str = ""
    like: str = ""

    def options(self) -> tuple[int, int | None, str, int, str, str]:
        """Return the arguments of `render` after the picture. Views with equal options show the same art."""
        width = self.width or COLUMNS
        contrast = self.contrast
        if contrast is None:
            contrast = {"ansi": 0}.get(self.format, CONTRAST)
        colors = {"ansi": self.colors, "text": "none"}.get(self.format, "true")
        return width, self.height, self.style, contrast, self.background, colors

    def draw(self, picture: Image.Image) -> Art:
        return render(picture, *self.options())

    def speaking(self, size: tuple[int, int]) -> tuple[View, Bubble]:
        """Return how to draw a picture of this size, and the bubble of its art. Pages and JSON have no bubble in it."""
        if not self.says or self.format not in SPEAKING_FORMATS:
            return self, SILENCE
        width = self.width or COLUMNS
        height = self.height or MAX_ROWS
        text = in_cells(self.says)
        scale = 1
        if self.format == "png":
            text = in_ascii(self.says)
            scale = max(1, min(width // COLUMNS, height // TERMINAL_ROWS))  # large art has large letters
        spare = scale - 1  # in small cells, art may be half a large cell wider than in large ones
        layout = best_layout(text, size, (width - spare) // scale, height // scale)
        if not layout:
            return self, SILENCE
        bubble = layout.bubble._replace(scale=scale)
        left = width - scale * layout.columns
        below = height - scale * layout.rows
        if fit(size, left, below) == fit(size, width, height):
            return self, bubble
        return self._replace(width=left, height=below), bubble

    def given(self, *without: str) -> dict[str, object]:
        """Return the parameters that differ from their defaults, except those named in `without`."""
        return {
            name: value
            for name, value in self._asdict().items()
            if value != View._field_defaults[name] and name not in without
        }

    def link(self, path: str) -> str:
        """Return a link to `path` for a browser, with the parameters of this view."""
        given = self.given("colors", "format")
        if not given:
            return path
        return f"{path}?{urllib_parse.urlencode(given)}"


def value_names(values: Choices) -> str:
    """Return what stands for a value in the usage of an option."""
    if isinstance(values, FreeText):
        return values.name
    if isinstance(values, range):
        return "N"
    return "|".join(values)


# The art's font size makes it fit the space that the footer leaves, and letter spacing makes each cell 0.6 x 1.2 em
# in any font. The text about the cat (`.about`) has a fixed height, so that the controls never move. The message of an
# error stands above or beside its art, and all starts at the top left, so that nothing moves while the page arrives.
STYLE = """
:root { color-scheme: light dark; --paper: #101014; --text: #b9b9c6; --strong: #f2f2f7; --link: #ffb870; --line: #556 }
@media print, (prefers-color-scheme: light) {
  :root { --paper: #faf8f4; --text: #4a4a55; --strong: #17171c; --link: #984500; --line: #c9c4bb } }
@media screen and (prefers-contrast: more) {
  :root { --text: #e9e9f0; --strong: #fff; --link: #ffd9ae; --line: #b4b4c2 } }
@media (prefers-contrast: more) and (prefers-color-scheme: light) {
  :root { --text: #22222a; --strong: #000; --link: #5c2a00; --line: #55524c } }
@media (prefers-reduced-motion: reduce) { *, ::after { transition: none !important } }
* { box-sizing: border-box }
body { margin: 0; min-height: 100vh; min-height: 100dvh; display: flex; flex-direction: column;
  background: var(--paper); color: var(--text); font: 16px/1.5 system-ui, sans-serif }
a { color: var(--link); text-underline-offset: .2em }
:focus-visible { outline: 2px solid var(--link); outline-offset: 3px }
h1, h2, dt, code { color: var(--strong) } h2 { font-size: 1.125rem; margin: 1.5rem 0 .5rem }
main { flex: 1 1 0; overflow-wrap: break-word }
footer, .text { width: 100%; max-width: 48rem; margin: 0 auto; padding: .5rem 1rem }
footer { font-size: .875rem; display: flex; flex-wrap: wrap; place-content: center; gap: .5rem 1rem }
footer p { margin: 0; display: flex; gap: 0 1rem }
nav, form, form div { flex: auto; display: flex; gap: .5rem; align-items: center; justify-content: space-between }
nav > *, form button { min-height: 2.25rem; padding: 0 .75rem; display: flex; align-items: center; white-space: nowrap;
  justify-content: center; border: 1px solid var(--line); border-radius: .5rem; background: none; color: var(--strong);
  font: inherit; text-decoration: none; cursor: pointer }
nav > :hover { border-color: var(--link) }
#another { padding: 0 1.25rem; border-color: var(--link); background: var(--link); color: var(--paper) }
:root:not(.copies) :is(#copy, #share) { display: none }
form div { flex: 0 1 24rem } input { flex: auto; width: 8rem; accent-color: var(--link) }
output { min-width: 3ch; text-align: right; font-variant-numeric: tabular-nums }
.about { flex: 1 1 calc(100% - 24rem); min-width: 0; height: 4rem; flex-direction: column; overflow: hidden }
.about span { flex: none; max-width: 100%; overflow: hidden; display: -webkit-box; -webkit-box-orient: vertical;
  -webkit-line-clamp: 2 }
@media (max-width: 48rem), (max-height: 30rem) { nav, form, .about { flex: 1 0 100%; justify-content: center }
  .about { height: 5.25rem; align-items: center; justify-content: start; text-align: center }
  .about span { -webkit-line-clamp: 4 } }
@media (max-width: 30rem), (max-height: 30rem) {
  nav { flex-wrap: wrap; gap: .4rem } nav > * { flex: auto; padding: 0 .4rem } #another { flex: 1 0 100% } }
@media (max-height: 30rem) and (min-width: 40rem) { body:has(nav) { flex-direction: row; footer { width: 16rem } } }
@media (pointer: coarse) { nav > *, form button, input { min-height: 2.75rem } .links a { line-height: 2.75rem } }
.links { flex-wrap: wrap } .links, .end { justify-content: center } .end { flex: 1 0 100%; white-space: nowrap }
.end code { flex: auto; overflow: hidden; text-overflow: ellipsis; color: inherit; user-select: all }
@media (max-width: 48rem), (max-height: 40rem) { .end code, .end:not(:has(a)) { display: none } }
@media (max-height: 30rem) { .links { gap: 0 .5rem } }
@media print { nav, form, .links, .end, .about span + span { display: none } }
[aria-busy=true] figure { opacity: .6; transition: opacity .1s }
.stage, .text figure { min-height: 12rem; display: grid; place-content: center; container-type: size; overflow: hidden }
.art { --fit: min(200cqw / var(--columns), 100cqh / var(--rows), var(--most, 100vw)); --row: var(--fit);
  width: calc(var(--row) / 2 * var(--columns)); height: calc(var(--row) * var(--rows)); position: relative;
  background-image: var(--ground) }
@supports (width: round(down, 1px, 1px)) { .art { --row: max(1px, round(down, var(--fit), 1px)) } }
.art, .art pre { background-size: 100% 100%; image-rendering: pixelated }
.art pre { margin: 0; height: 100%; color: transparent; background-image: var(--ink); -webkit-background-clip: text;
  background-clip: text; font-family: "DejaVu Sans Mono", Menlo, Consolas, "Liberation Mono", monospace;
  font-size: calc(var(--row) / 1.2); line-height: var(--row); letter-spacing: calc(var(--row) / 2 - 1ch);
  font-variant-ligatures: none; -webkit-text-size-adjust: none; text-size-adjust: none }
.lids { position: absolute; inset: 0; background-size: 100% 100%; image-rendering: pixelated; opacity: 0;
  animation: blink 2.4s step-end 2; pointer-events: none }
@keyframes blink { 85% { opacity: 1 } 95% { opacity: 0 } }
@media print, (prefers-reduced-motion: reduce) { .lids { display: none } }
.art ::selection { background: #3367d1; color: #fff }
figure, .art *, [scope=row]::after { forced-color-adjust: none; print-color-adjust: exact;
  -webkit-print-color-adjust: exact }
@media (forced-colors: active) { #another { background: LinkText; color: Canvas; forced-color-adjust: none } }
#news:not(:has(~ footer .links)) ~ * { visibility: hidden }
figure { margin: 0; position: relative; -webkit-touch-callout: none }
@media (pointer: coarse) { figure { user-select: none; -webkit-user-select: none } }
figure::after { content: ""; position: absolute; inset: 0; opacity: 0; transition: opacity .2s; pointer-events: none;
  background: linear-gradient(#0000 0 0) 0 0 / 100% 100% no-repeat }
@media (hover: hover) { figure:hover:not(.selecting)::after { opacity: 1; background-image: var(--photo);
  mask-image: radial-gradient(circle 8rem at var(--pointer, 50%), #000 70%, #0000) } }
figure:is(.held, :active:not(.selecting), :focus-visible)::after { opacity: 1; background-image: var(--photo);
  mask-image: none }
.says + main { align-content: start }
.says { flex: none; position: relative; max-width: min(46ch, 100% - 2rem); margin: .75rem auto 1rem;
  padding: .5rem 1rem; border: 1px solid; border-radius: 1.25rem; color: var(--strong);
  text-align: center; text-wrap: balance;
  font-family: "DejaVu Sans Mono", Menlo, Consolas, "Liberation Mono", monospace; overflow-wrap: anywhere }
.says::after { content: ""; position: absolute; top: 100%; left: 50%; width: .75rem; height: .75rem;
  border: solid; border-width: 0 1px 1px 0; background: var(--paper); transform: translate(-50%, -50%) rotate(45deg) }
@media (max-height: 30rem) and (min-width: 40rem) {
  .says + main { align-content: center } .says { max-width: 14rem; align-self: center; margin: 1rem }
  .says::after { top: 50%; left: 100%; transform: translate(-50%, -50%) rotate(-45deg) } }
dd { margin: 0 0 .5rem 1rem } code { font-size: min(.9em, 3.75vw) } dd code { white-space: nowrap }
a code { color: inherit }
@media (min-width: 48rem) { dl { display: grid; grid-template-columns: 17rem 1fr; gap: .25rem 1rem } dd { margin: 0 } }
table { margin-top: 1rem; border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem 0 .2rem 1rem; text-align: right; font-weight: normal }
th:first-child { width: 100%; padding-left: 0; text-align: left }
.axis { margin: 0; display: flex; justify-content: space-between; font-size: .875rem }
.days { height: 6rem; display: flex; border: solid; border-width: 1px 0; border-top-style: dotted }
.days i { flex: 1; display: flex; align-items: end; justify-content: center }
.days i::before { content: ""; width: 80%; height: var(--height); background: var(--link);
  forced-color-adjust: none; print-color-adjust: exact; -webkit-print-color-adjust: exact }
[scope=row]::after { content: ""; display: block; width: var(--length); height: .3rem; background: #fa702c }
.text figure { min-height: 0; aspect-ratio: calc(var(--columns) / var(--rows) / 2); place-content: start }
.error { flex: none; display: grid; gap: 0 2rem; overflow-wrap: anywhere } .error h1 { margin-bottom: 0 }
.error + footer { place-content: start }
.error p::first-letter { text-transform: uppercase }
@media (min-width: 40rem) { .error { grid-template: auto auto 1fr / 1fr 1fr }
  .error > * { grid-column: 1 } .error figure { grid-area: 1 / 2 / 4; align-self: start; margin-top: 1rem } }
.unseen, .stage h1 { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
.toast { position: fixed; z-index: 1; top: 1rem; left: 50%; translate: -50%; margin: 0; padding: .5rem 1rem;
  border: 1px solid; border-radius: .5rem; background: var(--strong); color: var(--paper) }
"""

# The script replaces parts of the page by those of the page that it fetches. All links also work without the script.
# If the address has no size, the script asks for as many cells as fit the window. The art that came with the page shows
# until it has them, and stays if it has nearly as many.
SCRIPT = """
const html = document.documentElement, find = (selector, page = document) => page.querySelector(selector)
const hasSize = url => /[?&](width|height)=/.test(url), seen = []
const shown = name => Number(find("#art").style.getPropertyValue(name))
let latest = new AbortController(), pause, touch

function room() {  // in cells: a row has 7 pixels on a phone, and 22 at most
  const {clientWidth, clientHeight} = find("main"), row = Math.max(7, Math.min(22, Math.floor(5 + clientWidth / 190)))
  return {width: Math.min(find("#width").max, Math.floor(2 * clientWidth / row)),
    height: Math.min(240, Math.floor(clientHeight / row))}
}

function fitsBadly() {
  const {width, height} = room(), columns = Math.min(width, height * shown("--columns") / shown("--rows"))
  return Math.abs(columns / shown("--columns") - 1) > .15
}

async function show(link, remember, parts = ["main", "footer"], first = false) {
  latest.abort()
  clearTimeout(pause)
  const {signal} = latest = new AbortController(), focused = document.activeElement.id, url = new URL(link)
  if (!hasSize(link)) for (const [name, cells] of Object.entries(room())) url.searchParams.set(name, cells)
  if (remember === "pushState") url.searchParams.set("seen", seen.slice(-10))
  document.body.ariaBusy = "true"
  const text = await fetch(url, {signal, headers: {Accept: "text/html"}})
    .then(response => response.ok && response.text()).catch(() => false)
  if (signal.aborted) return
  document.body.ariaBusy = "false"
  if (!text && !first) return location.assign(link)
  if (!text) return
  const page = new DOMParser().parseFromString(text, "text/html")
  if (!hasSize(link)) find("figure", page).style.setProperty("--most", "22px")
  for (const part of parts) find(part).replaceWith(find(part, page))
  for (const a of hasSize(link) ? [] : document.querySelectorAll("#another, #permalink, #restyle")) {
    const target = new URL(a.href)
    for (const name of ["width", "height"]) target.searchParams.delete(name)
    a.href = target
  }
  if (document.title !== page.title) find("#news").textContent = "Now: " + page.title
  document.title = page.title
  if (remember) history[remember](null, "", find("#permalink").href)
  document.getElementById(focused)?.focus()
}

async function copy(text, what) {
  const done = await text.then(text => navigator.clipboard.writeText(text)).then(() => true, () => false)
  Object.assign(find("#news"), {textContent: what + (done ? " copied" : " not copied"), className: "toast"})
  setTimeout(() => find("#news").className = "unseen", 2000)
}

addEventListener("click", event => {
  const {id, href} = event.target, permalink = new URL(find("#permalink").href)
  if (event.detail) document.activeElement.closest("a, button, figure")?.blur()  // or space would click it again
  if (event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return
  if (id === "another" || id === "restyle") {
    event.preventDefault()
    history.replaceState(null, "", permalink)
    seen.push(permalink.pathname.split("/").pop())
    show(href, id === "another" ? "pushState" : "replaceState")
  } else if (id === "share") {
    if (!navigator.share) return copy(Promise.resolve(permalink.href), "link")
    navigator.share({title: document.title, url: permalink.href}).catch(() => {})  // the visitor may cancel
  } else if (id === "copy") {
    permalink.pathname += ".txt"
    permalink.searchParams.set("width", Math.max(find("#width").min, shown("--columns")))
    permalink.searchParams.set("height", shown("--rows"))
    const scheme = matchMedia("(prefers-color-scheme: light)").matches ? "light" : "dark"
    if (!permalink.searchParams.has("background")) permalink.searchParams.set("background", scheme)
    copy(fetch(permalink).then(response => response.ok ? response.text() : Promise.reject()), "text")
  }
})
addEventListener("keydown", event => {
  const {key, target} = event, arrow = key === "ArrowRight" && !target.closest("input")
  const wanted = arrow || key.toLowerCase() === "n" || (key === " " && !target.closest("button"))
  if (!wanted || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return
  event.preventDefault()
  find("#another").click()
})
addEventListener("input", ({target}) => {
  const url = new URL(find("#permalink").href)
  url.searchParams.set("width", find("output").textContent = target.value)
  document.body.ariaBusy = "true"
  clearTimeout(pause)
  pause = setTimeout(show, 50, url.href, "replaceState", ["main", "nav", ".links"])
})
function onArt(name, act) {
  addEventListener(name, event => event.target.closest?.("#art") && act(event, find("#art")))
}
onArt("contextmenu", event => event.pointerType === "touch" && event.preventDefault())
onArt("pointermove", ({clientX, clientY}, art) => {
  const {left, top} = art.getBoundingClientRect()
  art.style.setProperty("--pointer", `${clientX - left}px ${clientY - top}px`)
})
onArt("pointerdown", (event, art) => {
  const selecting = event.shiftKey || event.altKey
  art.classList.toggle("held", !selecting)
  art.classList.toggle("selecting", selecting)
})
onArt("mousedown", event => !event.shiftKey && !event.altKey && event.preventDefault())  // with a key, it selects text
onArt("dblclick", (event, art) => {
  art.classList.add("selecting")
  getSelection().selectAllChildren(find("pre", art))
})
for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => find(".held")?.classList.remove("held"))
onArt("touchstart", ({touches}) => touch = touches.length === 1 && touches[0])
onArt("touchend", ({changedTouches: [{clientX, clientY}]}) => {
  const left = touch.clientX - clientX, down = Math.abs(touch.clientY - clientY)
  if (left > 60 && left > 2 * down) find("#another").click()
})
addEventListener("popstate", () => show(location.href))
addEventListener("DOMContentLoaded", () =>
  !hasSize(location) && fitsBadly() && show(find("#permalink").href, undefined, ["main", "footer"], true))
html.classList.toggle("copies", Boolean(navigator.clipboard))
"""


@cache
def security_headers() -> dict[str, str]:
    """Return headers for every response. A page can load only what is inside it or comes from its own origin."""
    policy = [
        "default-src 'none'",
        f"style-src {policy_hash(STYLE)}",
        f"script-src {policy_hash(SCRIPT)}",
        "connect-src 'self'",
        "style-src-attr 'unsafe-inline'",
        "img-src 'self' data:",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
    return {
        "Content-Security-Policy": "; ".join(policy),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def policy_hash(text: str) -> str:
    """Return the hash by which a Content-Security-Policy allows this inline style or script."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


PAGE = """\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="description" content="A random cat as coloured ASCII art">
<title>{{title}} &middot; catscii</title>
<link rel="icon" href="{{root}}favicon.ico">
<style>{{!STYLE}}</style>
% if cat:
%     permalink = f"{root}cat/{cat.id}"
%     url = f"{base_url}cat/{cat.id}"
%     original = "photo" if cat.url else "drawing"
%     preview = view._replace(says="", like="")
<meta property="og:title" content="{{title}}, an ASCII cat">
<meta property="og:type" content="website">
<meta property="og:url" content="{{preview.link(url)}}">
<meta property="og:image" content="{{preview.link(url + '.png')}}">
<meta property="og:image:alt" content="{{title}} as coloured ASCII art">
<meta name="twitter:card" content="summary_large_image">
<script>{{!SCRIPT}}</script>
<p class="unseen" id="news" role="status"></p>
% end
% if view and view.says:
<p class="says" dir="auto" aria-hidden="true">{{view.says}}</p>
% end
<main class="{{"stage" if view else "text error" if message else "text"}}">
<h1>{{title}}</h1>
% if message:
<p>{{message}}.
%     if art:
Here is <a href="{{root}}">another cat</a>.
%     end
</p>
% end
% if note:
<p>{{note}}</p>
% end
% if art:
%     columns = len(art.rows[0])
%     rows = len(art.rows)
<figure role="img" aria-label="{{label}}" {{!'id="art" tabindex="0"' if cat else ""}}
 style="--columns:{{columns}};--rows:{{rows}};--photo:{{f'url({permalink}.jpg)' if cat else ''}};
 --ground:{{layer(art.background, columns)}};--ink:{{layer(art.foreground, columns)}}">
<div class="art" style="background-color:rgb{{BACKGROUNDS[view.background if view else "dark"]}}">
<pre aria-hidden="true">{{!to_html(art)}}</pre>
%     if lids:
<div class="lids" style="background-image:{{lids}}"></div>
%     end
</div></figure>
% end
% if analytics:
<p>{{analytics}}</p>
% end
% if guide:
%     for group, hints in guide.items():
<h2>{{group}}</h2>
<dl>
%         for term, meaning, link in hints:
%             if link:
<dt><a href="{{link}}"><code>{{term}}</code></a></dt>
%             else:
<dt>{{term}}</dt>
%             end
<dd>{{!with_links(meaning, link)}}</dd>
%         end
</dl>
%     end
% end
% if analytics:
%     if analytics.countries:
%         days = analytics.days
%         most = max(days.values())
<p class="axis">Visits a day, up to {{f"{most:,}"}}</p>
<div class="days" role="img" aria-label="Visits a day: {{', '.join(map(str, days.values()))}}">
%         for day, count in days.items():
<i style="--height:{{ceil(100 * count / (most or 1))}}%" title="{{day}}: {{f"{count:,}"}}"></i>
%         end
</div>
<p class="axis"><time>{{min(days)}}</time> <time>{{max(days)}}</time></p>
<table>
<tr><th scope="col">Country</th><th scope="col">Visits</th><th scope="col">Share</th></tr>
%         largest = max(analytics.countries.values())
%         for code, count in analytics.countries.items():
<tr><th scope="row" style="--length:{{f"{count / largest:.1%}"}}">{{country_name(code)}}</th>
<td>{{f"{count:,}"}}</td><td>{{f"{count / analytics.visits:.1%}"}}</td></tr>
%         end
</table>
%     end
<p>{{PRIVACY}}</p>
% end
</main>
% if root:
<footer>
%     if cat:
%         other_style = "ink" if view.style == "fill" else "fill"
%         restyled = view._replace(style=other_style)
<nav>
<a id="another" href="{{view.link(root)}}">another cat</a>
<button id="share" type="button">share</button>
<a id="save" href="{{view.link(permalink + '.png')}}" download="{{cat.id}}.png">save</a>
<button id="copy" type="button">copy as text</button>
<a id="restyle" href="{{restyled.link(permalink)}}">in {{other_style}}</a>
</nav>
<form action="{{permalink}}">
<div><label for="width">width</label> <input id="width" type="range" name="width" min="{{WIDTHS[0]}}"
 max="{{WIDTHS[-1]}}" value="{{columns}}"> <output for="width">{{columns}}</output></div>
%         for name, value in view.given("width", "colors", "format").items():
<input type="hidden" name="{{name}}" value="{{value}}">
%         end
<noscript><button>draw</button></noscript></form>
<p class="about"><span>
%         if cat.url:
<a href="{{cat.url}}" rel="external">{{cat.description}}</a>
%         else:
{{cat.description}}
%         end
</span><span>hold to see the {{original}}</span></p>
<p class="links"><a href="{{root}}">catscii</a>
<a id="permalink" href="{{view.link(permalink)}}" rel="bookmark">permalink</a>
%     else:
<p class="links"><a href="{{root}}">a cat</a>
%     end
<a href="{{root}}analytics">visitors</a> <a href="{{root}}help">help</a></p>
%     if cat or dbip:
<p class="end">
%         if cat and "://" in url:
<code>curl {{url.removeprefix("http://")}}</code>
%         end
%         if dbip:
<a href="https://db-ip.com" rel="external">IP Geolocation by DB-IP</a>
%         end
</p>
%     end
</footer>
% end
"""
DBIP_CREDIT = "IP Geolocation by DB-IP, https://db-ip.com"
PRIVACY = ("A page with a cat counts as a visit, except for crawlers and link previews.\n"
           "Only the day and the country of a visit are stored, no address and no cookie.")


class Hint(NamedTuple):
    """A line of the guide. On the page, the term links to an example, unless `link` is empty."""

    term: str
    meaning: str
    link: str


def option_hint(name: str, parameter: Parameter) -> Hint:
    """Return the hint about a parameter. Its example shows house-42, but `like` looks for a random cat."""
    path = "{root}" if name == "like" else "{root}cat/house-42"
    return Hint(parameter.example, parameter.help, path + parameter.example)


GUIDE = {  # of /help, by groups; without their names, it fits a terminal of 24 lines of 80 columns, with the prompt
    "Look at a cat": [
        Hint("curl {base_url}", "a random cat, another one each time", "{root}"),
        Hint("{root}cat/house-42", "this cat, forever", "{root}cat/house-42"),
        Hint("{root}live", "a cat that breathes and blinks, in a terminal with curl -N", "{root}live"),
        Hint("in the browser", "space, n or a swipe: another cat; hold the art: its picture", ""),
    ],
    "Options": [option_hint(name, parameter) for name, parameter in PARAMETERS.items()],
    "Formats": [
        Hint("{root}cat/house-42.txt", f"one of .{', .'.join(SUFFIXES)} (the original)", "{root}cat/house-42.txt"),
        Hint("JSON", "colours: one string per row, six hexadecimal digits per cell", "{root}cat/house-42.json"),
    ],
    "Visitors": [
        Hint("{root}analytics", "where visitors come from; ?format=csv and ?format=json too", "{root}analytics"),
    ],
}


def linked_guide(links: Links) -> dict[str, list[Hint]]:
    """Return the guide with the paths and URLs that the client can use."""
    places = links._asdict()
    groups = {}
    for group, hints in GUIDE.items():
        groups[group] = [
            Hint(hint.term.format_map(places), hint.meaning, hint.link.format_map(places))
            for hint in hints
        ]
    return groups


def guide_text(title: str, pairs: Sequence[tuple[str, str]], bold: bool, dbip: bool) -> str:
    """Return terms with their meanings beside them, in 80 columns. The meaning of a long term stands below it."""
    column = max(len(term) for term, _ in pairs if len(term) <= 24)
    lines = [title, ""]
    for term, meaning in pairs:
        text = textwrap.fill(meaning, 78 - column)
        text = textwrap.indent(text, " " * (column + 2))
        text = text[len(term):] if len(term) <= column else "\n" + text
        if bold:
            term = f"\x1b[1m{term}\x1b[0m"
        lines.append(term + text)
    if dbip:
        lines += ["", DBIP_CREDIT]
    return "\n".join(lines) + "\n"


def with_links(meaning: str, link: str) -> str:
    """Return the meaning of a hint as HTML. Suffixes and queries in it link to variants of the hint's example."""
    page = link.removesuffix(".txt")
    text = re.sub('"[^"]+"', r"<code>\g<0></code>", html.escape(meaning, quote=False))
    return re.sub(r"(\?[a-z]+=|(?<= )\.)[a-z]+", rf'<a href="{page}\g<0>"><code>\g<0></code></a>', text)


@cache
def page_template() -> bottle.SimpleTemplate:
    template = bottle.SimpleTemplate(PAGE)
    template.defaults = {
        "STYLE": STYLE,
        "SCRIPT": SCRIPT,
        "WIDTHS": WIDTHS,
        "BACKGROUNDS": BACKGROUNDS,
        "PRIVACY": PRIVACY,
        "to_html": to_html,
        "layer": layer,
        "with_links": with_links,
        "country_name": country_name,
        "ceil": math.ceil,
    }
    return template


def render_page(
    title: str,
    root: str = "",
    base_url: str = "",
    label: str = "",  # of the art
    art: Art | None = None,
    view: View | None = None,  # of a cat
    cat: Cat | None = None,
    lids: str | None = None,  # a layer for art that blinks
    note: str | None = None,
    message: str | None = None,  # of an error
    guide: Mapping[str, Sequence[Hint]] | None = None,
    analytics: Analytics | None = None,
    dbip: bool = False,
) -> str:
    """Return a page in HTML. It has no part for what is None."""
    return str(page_template().render(locals()))


class Links(NamedTuple):
    """Where the service is for a client: its path, with a slash at both ends, and its URL."""

    root: str
    base_url: str


class Connection(Protocol):
    """What a stream needs of a connection of the server."""

    connected: bool
    requests: Sequence[object]  # that a thread answers
    unsent: Collection[bytes]
    touched: float  # when bytes last came or went, a time of time.monotonic()

    def go_on(self, data: bytes, last: bool = False) -> None: ...
    def handle_close(self) -> None: ...


NO_LINKS = Links("", "")
BeginStream = Callable[[], Connection]  # keeps the connection of a request open, for a response that goes on
Body = bytes | Iterable[bytes]  # of a response
Find = Callable[[str], tuple[Cat, bytes]]  # returns the cat with an id, and its JPEG, which may be empty


class ClientRequest:
    """What a request asks for, and where it comes from. Its texts are decoded as Latin-1, except for the path."""

    def __init__(self, request: bottle.BaseRequest) -> None:
        self.started = time.perf_counter()
        self._environ = request.environ
        self.method: str = request.method
        self.path: str = request.path
        self.query: str = request.query_string
        self.accept = self.header("Accept")[:MAX_ACCEPT]
        self.agent = self.header("User-Agent")
        self.country = UNKNOWN_COUNTRY
        self.client = ""  # stands for the address, as in `client_of`
        self.refused = False  # by the server, or because too many requests wait
        self.begin_stream: BeginStream | None = self._environ.get("catscii.begin_stream")  # CGI has none

    def header(self, name: str) -> str:
        """Return a header, or an empty string. bottle's get_header requires UTF-8."""
        variable = "HTTP_" + name.upper().replace("-", "_")
        text: str = self._environ.get(variable, "")
        return text

    @cached_property
    def parameters(self) -> dict[str, list[str]]:
        return parse_query(self.query)

    def add_parameter(self, name: str, value: str) -> None:
        self.query += f"&{name}={urllib_parse.quote(value)}"
        self.__dict__.pop("parameters", None)  # they are read again

    @property
    def route(self) -> str:
        """The rule of the route that bottle has found, or "none"."""
        route = self._environ.get("bottle.route")
        return route.rule if route else "none"

    @property
    def links(self) -> Links:
        """Where the client sees the service. A URL without a valid Host header is only a path."""
        root = self.root
        host = self.header("Host")
        if not re.fullmatch(HOST, host):
            return Links(root, root)
        scheme = self.header("X-Forwarded-Proto") or self._environ["wsgi.url_scheme"]
        if scheme != "https":
            scheme = "http"
        return Links(root, f"{scheme}://{host}{root}")

    @property
    def root(self) -> str:
        """The path of the service, encoded as in a URL, with a slash at both ends."""
        script_name = self._environ.get("SCRIPT_NAME", "").strip("/")
        if not script_name:
            return "/"
        return f"/{urllib_parse.quote(script_name, encoding='latin-1')}/"

    def format(self, page: str = "all") -> str:
        """Return the format that the client asks for. Raises HTTPError 400."""
        return read_format(self.parameters, self.accept, self.agent, page)

    def format_headers(self) -> list[str]:
        """Return the headers that the format of the response depends on."""
        named = self.parameters.get("format")
        if named is None:
            return ["Accept", "User-Agent"]
        if named[-1] == "ansi":
            return ["User-Agent"]  # terminals get fewer rows
        return []


class Page:
    """The body of a response. Its compressed form and its ETag are made once, when they are first needed."""

    def __init__(self, body: str | bytes, content_type: str, links: bool = False) -> None:
        self.body = body.encode() if isinstance(body, str) else body
        self.content_type = content_type
        self.links = links  # to this service, with the host that the request names

    @property
    def compressible(self) -> bool:
        """Whether compression makes the body smaller. Up to 1,400 bytes fit one packet without it."""
        return len(self.body) > 1400 and self.content_type not in COMPRESSED

    @cached_property
    def gzipped(self) -> bytes:
        return gzip.compress(self.body, 6, mtime=0)

    @cached_property
    def etag(self) -> str:
        """A weak ETag, because it also stands for the compressed body."""
        return f'W/"{hashlib.blake2b(self.body, digest_size=12).hexdigest()}"'

    def is_among(self, etags: str) -> bool:
        """Tell whether the header If-None-Match names this page. Weak and strong ETags compare equal."""
        if etags.strip() == "*":
            return True
        return self.etag.removeprefix("W/") in re.findall(r'"[^"]*"', etags)


Made = TypeVar("Made")


class QueueFull(Exception):
    """Too many requests wait for a drawing."""


class Lines(Generic[Item]):
    """Items that wait. Each client has its own line, and the lines take turns."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[Item]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, client: str, item: Item) -> None:
        self._lines.setdefault(client, deque()).append(item)
        self._length += 1

    def popleft(self) -> Item:
        client, line = self._lines.popitem(last=False)
        item = line.popleft()
        if line:
            self._lines[client] = line
        self._length -= 1
        return item


class DrawingQueue:
    """The requests that wait for a drawing, each in a thread of its own. Another thread draws, one after the other.

    Two at a time would take as long, because Pillow holds the GIL while it draws. And memory that one thread frees is
    used again, while each thread of many would keep its own.
    """

    def __init__(self) -> None:
        self.refused = 0
        self._occupied = Counter[str]()  # taken places by client, including the drawing in progress
        self._lines = Lines[Callable[[], None]]()
        self._ending = False
        self._changed = threading.Condition()  # the lines are longer, or the thread has to end
        self._artist = threading.Thread(target=self._draw_for_clients, name="artist", daemon=True)

    def __len__(self) -> int:
        return self._occupied.total()

    def draw(self, client: str, make: Callable[[], Made]) -> Made:
        """Wait for a turn, and return what `make` returns.

        Raises QueueFull if all places are taken, or those that one client may have, and any exception of `make`.
        """
        drawing: futures.Future[Made] = futures.Future()
        in_this_span = contextvars.copy_context().run

        def work() -> None:
            try:
                drawing.set_result(in_this_span(make))
            except BaseException as error:
                drawing.set_exception(error)

        with self._changed:
            if len(self) >= PLACES or self._occupied[client] >= PLACES_OF_A_CLIENT:
                self.refused += 1
                raise QueueFull
            self._occupied[client] += 1
            self._lines.append(client, work)
            self._changed.notify()
            if not self._artist.ident:
                self._artist.start()
        try:
            return drawing.result()
        finally:
            with self._changed:
                self._occupied[client] -= 1
                self._occupied += Counter()  # drops clients that do not wait

    def _draw_for_clients(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._ending)
                if not self._lines:
                    return
                work = self._lines.popleft()
            work()

    def close(self) -> None:
        """End the thread that draws. A process can fork only without other threads."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        if self._artist.ident:
            self._artist.join()


class Stream:
    """A client that watches a film."""

    def __init__(self, film: Film, client: str, connection: Connection) -> None:
        self.film = film
        self.client = client
        self.connection = connection
        self.shown = STILL
        self.ends = time.monotonic() + STREAM_SECONDS


class Streams:
    """The streams that are open. Threads add streams, and the loop of the server calls `tick` from time to time."""

    def __init__(self) -> None:
        self._streams: deque[Stream] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._streams)

    def check(self, client: str) -> None:
        """Raise HTTPError if the client cannot have a stream now."""
        watching = any(stream.client == client for stream in [*self._streams])
        if len(self) >= STREAMS or (watching and len(self) >= STREAMS // 2):
            raise bottle.HTTPError(503, f"{len(self)} clients watch a cat already; try again in a minute")

    def add(self, film: Film, client: str, begin: BeginStream) -> None:
        """Open a stream on the connection that `begin` returns. Raises HTTPError."""
        with self._lock:
            self.check(client)
            self._streams.append(Stream(film, client, begin()))

    def tick(self, ending: bool) -> None:
        """Send what the cats do now. End the streams that are over, or all if the service ends.

        A client that has not read the last change misses this one. When TURN_SECONDS are used up, the remaining clients
        are skipped, and come first in the next call.
        """
        now = time.monotonic()
        seconds = time.time()
        moment_now = cache(lambda film: moment_of(film.seed, seconds))
        change = cache(Film.change)
        with self._lock:
            self._streams = deque(stream for stream in self._streams if stream.connection.connected)
            streams = [*self._streams]
        for number, stream in enumerate(streams):
            if time.monotonic() - now > TURN_SECONDS:
                with self._lock:
                    self._streams.rotate(-number)
                return
            connection = stream.connection
            if connection.requests:  # its thread has not sent everything
                continue
            if connection.unsent:
                if ending and now - connection.touched > PATIENCE_SECONDS:
                    connection.handle_close()
            elif ending or now > stream.ends:
                connection.go_on(GOODBYE, last=True)
            elif stream.shown != moment_now(stream.film):
                data = change(stream.film, stream.shown, moment_now(stream.film))
                stream.shown = moment_now(stream.film)
                if data:
                    connection.go_on(data)


def size_of_drawing(drawing: tuple[Cat, Art]) -> int:
    _, art = drawing
    return 7 * len(art.foreground) // 3 + 2000  # 7 bytes a cell, and the key


class Studio:
    """Draws for requests when it is their turn, and keeps what it has drawn.

    Only `page` and `film` wait for their turn. What they call runs when it has come.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.queue = DrawingQueue()
        self.pages = Cache[Page](8 << 20, size_of=lambda page: 2 * len(page.body) + 2000)  # with its compressed body
        self._drawings = Cache[tuple[Cat, Art]](8 << 20, size_of=size_of_drawing)
        self._films = Cache[Film](4 << 20, size_of=Film.size)
        self._patches = Cache[Patch](1 << 20, size_of=lambda patch: 9 * len(patch.places) + 1000)  # of unfinished films
        self._metrics = metrics

    def page(self, client: str, key: object, make: Callable[[], Page], kept: bool = True) -> Page:
        """Return the page with this key from the cache, or what `make` returns. Keep this page, if it is to be `kept`.

        Raises QueueFull.
        """
        if not kept:
            return self.queue.draw(client, make)
        page = self.pages.get(key)
        # When it is the request's turn, a request before it may have made the page.
        return page or self.queue.draw(client, partial(self.pages.get_or_make, key, make))

    def film(self, client: str, cat: Cat, view: View) -> Film:
        """Return the film of a house cat. Its moments are drawn one by one, so that other drawings come in between.

        Raises QueueFull.
        """
        key = cat.id, view.options()
        return self._films.get_or_make(key, partial(self._make_film, client, cat, view))

    def _make_film(self, client: str, cat: Cat, view: View) -> Film:
        draw = partial(self.queue.draw, client)
        _, still = draw(partial(self.drawing, cat, b"", view))
        patches = {moment: draw(partial(self.patch, cat, view, moment)) for moment in PARTS_OF_MOMENTS}
        return Film(seed_of(cat.id) or 0, still, view.colors, patches)

    def drawing(self, cat: Cat, jpeg: bytes, view: View) -> tuple[Cat, Art]:
        """Return the cat with its description and size, and its art."""
        key = cat.id, view.options()
        return self._drawings.get_or_make(key, partial(self._draw, cat, jpeg, view))

    def _draw(self, cat: Cat, jpeg: bytes, view: View) -> tuple[Cat, Art]:
        started = time.perf_counter()
        with span("render", width=view.width or COLUMNS, style=view.style):
            cat, picture = picture_of(cat, jpeg)
            art = view.draw(picture)
        self._metrics.observe("catscii_render_seconds", time.perf_counter() - started)
        return cat, art

    def patch(self, cat: Cat, view: View, moment: Moment) -> Patch:
        """Return what moves in a house cat at a moment."""
        key = cat.id, view.options(), moment
        return self._patches.get_or_make(key, partial(self._draw_patch, cat, view, moment))

    def _draw_patch(self, cat: Cat, view: View, moment: Moment) -> Patch:
        _, picture = picture_of(cat, b"")
        return draw_patch(seed_of(cat.id) or 0, moment, picture, view.draw)


class Service:
    """The routes and what they share: the database, the cats, the countries and the rendered pages.

    A request goes through `before_request`, then through `guard` into its route, and then through `after_request`.
    """

    def __init__(self, settings: Settings) -> None:
        self.client_ip_header = settings.client_ip_header
        self.countries = Countries(settings.geolite2_country_db)
        self.database = Database(settings.analytics_db)
        self.visit_counter = VisitCounter(self.database)
        self.machines = Machines(settings, self.database)
        self.store = Store(self.database)
        fetcher = Fetcher(settings.ssl_cert_file, settings.cat_sources)
        sources = [Source(url, fetcher, settings.cat_api_key) for url in settings.cat_sources]
        self.refresher = Refresher(self.store, sources, fetcher)
        self.cattery = Cattery(self.store, sources, fetcher)
        self.metrics = Metrics()
        self.studio = Studio(self.metrics)
        self.streams = Streams()
        self.started = time.time()
        self.gauges: dict[str, Callable[[], float]] = {}  # metrics of the server
        self.read_trouble = Trouble("The database cannot be read", "The database can be read again", quiet_seconds=3)
        self.logged_refusals = Limit(5, 1)
        self.logged_failures = Limit(5, 1)
        self.allowed_panics = Limit(1, 10)

    def before_request(self) -> None:
        """Look up the country, and decode the path. Raises HTTPError if the server refuses the request."""
        environ = bottle.request.environ
        environ["PATH_INFO"] = environ["bottle.raw_path"].encode("latin-1").decode("utf-8", "replace")
        request = ClientRequest(bottle.request)
        environ["catscii.request"] = request
        peer = environ.get("REMOTE_ADDR", "")
        address = peer
        if self.client_ip_header:
            address = request.header(self.client_ip_header)
        request.country = self.countries.country(address)
        request.client = client_of(address or peer)
        refusal = environ.get("catscii.refusal")
        if refusal:
            request.refused = True
            raise bottle.HTTPError(refusal.code, REFUSALS.get(refusal.code, refusal.body))

    def guard(self, route: Callable[..., Body]) -> Callable[..., Body]:
        """Wrap a route, as a plugin of bottle: pass it the request, and make short errors of unexpected exceptions."""

        def guarded(**arguments: str) -> Body:
            request: ClientRequest = bottle.request.environ["catscii.request"]
            try:
                return route(request, **arguments)
            except bottle.HTTPResponse:
                raise
            except QueueFull as error:
                request.refused = True
                message = "too many cats are being drawn right now; try again in a few seconds"
                raise bottle.HTTPError(503, message, error) from None
            except sqlite3.Error as error:
                self.read_trouble.begin(error)
                raise bottle.HTTPError(503, f"the database cannot be used right now: {error}", error) from None
            except Exception as error:
                if self.logged_failures.allows():  # /metrics counts all failures
                    log.exception("Request failed", {"path": request.path})
                raise bottle.HTTPError(500, "something went wrong here; it has been logged", error) from None

        return guarded

    def after_request(self) -> None:
        """Record the request in the metrics, the trace and the log, without the address of the client."""
        environ = bottle.request.environ
        request: ClientRequest = environ["catscii.request"]
        seconds = time.perf_counter() - request.started
        status = bottle.response.status_code
        route = request.route
        method = request.method[:MOST_LOGGED]
        path = environ["PATH_INFO"]
        if len(path) > MOST_LOGGED:
            path = path[:MOST_LOGGED] + "..."
        if environ["wsgi.run_once"]:  # in CGI; Server commits the visits of many responses at once
            self.visit_counter.write()
        self.metrics.add("catscii_requests_total", route=route, status=status)
        self.metrics.observe("catscii_request_seconds", seconds, route=route)
        attributes = {
            "http.request.method": method,
            "http.response.status_code": status,
            "url.path": path,
            "url.scheme": environ["wsgi.url_scheme"],
            "user_agent.original": request.agent,
            "country": request.country,
        }
        if route != "none":
            attributes["http.route"] = route
        if status >= 500:
            attributes["error.type"] = str(status)
        annotate(attributes)
        if request.refused and not self.logged_refusals.allows():  # /metrics counts all refusals
            return
        facts = {"method": method, "path": path, "status": status, "country": request.country}
        log.info("%(method)s %(path)s %(status)d", facts | {"ms": round(seconds * 1000, 3)})

    def show_cat(self, request: ClientRequest, cat_id: str, find: Find, format: str = "", max_age: int = 0) -> bytes:
        """Respond with a cat, from the cache of pages or from what `find` returns. Count the visit, if it is one.

        All routes of cats end here. `before_request` has looked up the country, and `after_request` writes the log.
        """
        view = read_view(format, request.query, request.accept, request.agent)
        links = request.links if view.format in LINKED_FORMATS else NO_LINKS
        key = cat_id, view, links
        page = self.studio.pages.get(key)
        annotate({"cat_id": cat_id, "cached": page is not None})
        if page is None:
            with span("store"):
                cat, jpeg = find(cat_id)
            make = partial(self._cat_page, cat, jpeg, view, links)
            kept = not view.says  # there are too many texts to keep their pages
            page = self.studio.page(request.client, key, make, kept)
        if is_seen(request, page):
            self._count_visit(request)
        if view.says:
            bottle.response.set_header("X-Robots-Tag", "noindex")  # anybody can choose the text
        format_from = [] if format else request.format_headers()
        return send(page, request, max_age, format_from)

    def random_cat(self, request: ClientRequest) -> bytes:
        find = self.cattery.find_local
        wanted = read_parameter(request.parameters, "like")
        if wanted:
            return self.show_cat(request, self._cat_like(wanted, request.client), find)
        cat_id = ""
        try:
            cat_id = self._pick(request)
            return self.show_cat(request, cat_id, find)
        except NoSuchCat:
            pass  # the store dropped the cat after it was picked
        except PictureError as error:
            self._log_unavailable(cat_id, error)
        except sqlite3.Error as error:
            self.read_trouble.begin(error)
        return self.show_cat(request, random.choice(house_cats()), find)

    def _pick(self, request: ClientRequest) -> str:
        """Return the id of a random cat. Crawlers get the cat of the day, whatever they ask."""
        if crawls(request.agent):
            return house_cats(1, 86400)[0]
        seen = request.parameters.get("seen", [""])[-1]  # ids that the page's script sends
        return self.cattery.pick(seen.split(",")[-10:])

    def _cat_like(self, wanted: str, client: str) -> str:
        """Return the id of a house cat with this look. The search takes as long as a drawing, so it waits like one."""
        try:
            return self.studio.queue.draw(client, partial(house_cat_like, wanted))
        except NoSuchCat as error:
            raise bottle.HTTPError(404, str(error)) from None

    def cat_says(self, request: ClientRequest, cat_id: str, text: str) -> bytes:
        """Serve the cat as for the parameter `says`."""
        request.add_parameter("says", text)
        return self.cat_by_id(request, cat_id)

    def cat_by_id(self, request: ClientRequest, cat_id: str) -> bytes:
        cat_id, dot, suffix = cat_id.partition(".")
        if dot and suffix not in SUFFIXES:
            raise bottle.HTTPError(404, f"{quoted(suffix)} is not one of {', '.join(SUFFIXES)}")
        try:
            format = SUFFIXES.get(suffix, "")
            return self.show_cat(request, cat_id, self.cattery.find_or_fetch, format, max_age=3600)
        except NoSuchCat:
            message = f"there is no cat {quoted(cat_id)}; the ids {HOUSE_CAT_IDS} always exist"
            raise bottle.HTTPError(404, message) from None
        except (Unavailable, PictureError) as error:
            self._log_unavailable(cat_id, error)
            raise bottle.HTTPError(503, "the source of this cat's picture is unavailable right now", error) from None

    def _log_unavailable(self, cat_id: str, error: Unavailable | PictureError) -> None:
        """Log that a source gives no picture, or that the stored picture is damaged."""
        if self.logged_failures.allows():
            log.warning("Cat unavailable", {"id": cat_id, "error": str(error)})

    def _count_visit(self, request: ClientRequest) -> None:
        if request.method == "GET" and not crawls(request.agent):
            self.visit_counter.count(request.country)

    def _cat_page(self, cat: Cat, jpeg: bytes, view: View, links: Links) -> Page:
        body = self._body(cat, jpeg, view, links)
        return Page(body, CONTENT_TYPES[view.format], links=view.format in LINKED_FORMATS)

    def _body(self, cat: Cat, jpeg: bytes, view: View, links: Links) -> str | bytes:
        if view.format == "jpg":
            if jpeg:
                return jpeg
            _, picture = picture_of(cat, jpeg)  # of a house cat
            return written(picture, "JPEG", quality=88)
        cat, art = self.studio.drawing(cat, jpeg, view)
        smaller, bubble = view.speaking(cat.size)
        if smaller != view:
            cat, art = self.studio.drawing(cat, jpeg, smaller)
        with span("encode", format=view.format):
            return encode_cat(cat, art, view, bubble, links, self.countries.from_dbip)

    def live(self, request: ClientRequest) -> Body:
        """Serve the house cat of this minute, which moves if the client can show that."""
        view = live_view(request)
        cat, _ = self.cattery.find_local(house_cats(1)[0])
        begin = request.begin_stream
        body: Body
        if begin and view.format == "ansi" and shows_parts(request):
            body = self._send_moving(request, begin, cat, view)
        else:
            body = self._send_still(request, cat, view)
        self._count_visit(request)
        return body

    def _send_moving(self, request: ClientRequest, begin: BeginStream, cat: Cat, view: View) -> Iterable[bytes]:
        """Send a cat. The loop of the server goes on with the response."""
        self.streams.check(request.client)
        key = "first screen", cat.id, view.options()
        first = self.studio.page(request.client, key, partial(self._first_screen, cat, view))
        film = self.studio.film(request.client, cat, view)
        if request.method == "GET":
            self.streams.add(film, request.client, begin)
        else:
            begin()
        response = bottle.response
        response.content_type = CONTENT_TYPES["ansi"]
        response.headers.update(security_headers())
        response.set_header("Cache-Control", "no-store")
        response.set_header("X-Accel-Buffering", "no")  # nginx sends on what it gets
        return iter([first.body])  # an iterator has no length, and so the response has none

    def _first_screen(self, cat: Cat, view: View) -> Page:
        cat, still = self.studio.drawing(cat, b"", view)
        return Page(to_ansi(still, view.colors) + live_line(cat.description), CONTENT_TYPES["ansi"])

    def _send_still(self, request: ClientRequest, cat: Cat, view: View) -> bytes:
        """Send a cat that does not move, and a sentence that tells where it does."""
        note = f"This cat moves in a terminal: curl -N {request.links.base_url}live"
        if not request.begin_stream:
            note = f"This cat moves in a terminal of your own: catscii.py live {cat.id}"
        key = "still", cat.id, view.format, view.options(), note, request.root
        make = partial(self._still_page, cat, view, note, request.root)
        return send(self.studio.page(request.client, key, make), request, format_from=request.format_headers())

    def _still_page(self, cat: Cat, view: View, note: str, root: str) -> Page:
        cat, art = self.studio.drawing(cat, b"", view)
        lids = None
        if view.format == "html":  # in a browser it blinks, twice
            grid = len(art.rows[0]), len(art.rows)
            lids = patch_layer(self.studio.patch(cat, view, ASLEEP), grid)
        text = to_ansi(art, view.colors) if view.format == "ansi" else to_text(art)
        title = capitalized(cat.description)
        facts = {"id": cat.id, "description": cat.description, "note": note}
        html_page = partial(render_page, title, root, label=title, art=art, lids=lids, note=note)
        return formatted_page(view.format, facts, f"{text}{note}\n", html_page)

    def analytics(self, request: ClientRequest) -> bytes:
        analytics = read_analytics(self.database, self.machines.view, self.machines.summary())
        format = request.format("analytics")
        dbip = self.countries.from_dbip
        art = None
        if format in ("html", "ansi"):
            art = world_map(analytics.countries)
        if format == "csv":
            text = self._csv(min(analytics.days), max(analytics.days))
        elif art:
            text = to_ansi(art) + bars(analytics, dbip)
        else:
            lines = [f"{country}: {count}\n" for country, count in analytics.countries.items()]
            text = "".join(lines)
        facts = analytics._asdict()
        if not analytics.machines:
            del facts["machines"]
        first = ", ".join(map(country_name, [*analytics.countries][:5]))
        label = f"Map of the world. Most visits: {first or 'none yet'}"
        html_page = partial(
            render_page, "Visitors", request.root, label=label, art=art, analytics=analytics, dbip=dbip)
        page = formatted_page(format, facts, text, html_page)
        return send(page, request, format_from=request.format_headers())

    def _csv(self, first: str, last: str) -> str:
        """Return the visits from the first to the last day, by day and country."""
        sql = VISITS_BY_DAY_AND_COUNTRY.format(view=self.machines.view)
        rows = self.database.execute(sql, first, last)
        lines = [f"{day},{country},{count}\n" for day, country, count in rows]
        return "day,country,visits\n" + "".join(lines)

    def help(self, request: ClientRequest) -> bytes:
        """Serve the guide. As text, it fits one screen; as JSON, it is a list of pairs."""
        format = request.format()
        dbip = self.countries.from_dbip
        groups = linked_guide(request.links)
        pairs = [(hint.term, hint.meaning) for hint in itertools.chain(*groups.values())]
        title = "Cats as coloured ASCII art"
        text = guide_text(title, pairs, bold=format == "ansi", dbip=dbip)
        html_page = partial(render_page, title, request.root, guide=groups, dbip=dbip)
        page = formatted_page(format, pairs, text, html_page)
        return send(page, request, format_from=request.format_headers())

    def health(self, request: ClientRequest) -> bytes:
        health = {"status": "ok", "version": __version__}
        trouble = self.visit_counter.trouble
        if trouble:
            health["status"] = "degraded"
            health["reason"] = f"visits cannot be counted: {trouble.reason}"
            if time.monotonic() - trouble.since >= UNCOUNTED_SECONDS:
                health["status"] = "failing"
                bottle.response.status = 503
        elif self.read_trouble:
            health["status"] = "degraded"
            health["reason"] = f"the database cannot be read: {self.read_trouble.reason}"
        if self.machines.on:
            health["machines"] = "never agreed"
        if self.machines.agreed:
            age = time.time() - self.machines.agreed
            health["machines"] = f"last agreed {age:.0f} seconds ago"
        return send(Page(json.dumps(health) + "\n", CONTENT_TYPES["json"]), request)

    def prometheus(self, request: ClientRequest) -> bytes:
        """Serve all metrics. While the database cannot be read, those from the database are missing."""
        figures = process_figures()
        figures["process_start_time_seconds"] = self.started
        for name, read in self.gauges.items():
            figures[name] = read()
        figures[series("catscii_build_info", version=__version__)] = 1
        figures["catscii_waiting_visits"] = self.visit_counter.waiting
        figures["catscii_live_streams"] = len(self.streams)
        figures["catscii_waiting_drawings"] = len(self.studio.queue)
        figures["catscii_refused_drawings_total"] = self.studio.queue.refused
        figures |= self._refresher_figures()
        figures |= self._machines_figures()
        try:
            figures |= self._stored_figures()
        except sqlite3.Error as error:
            self.read_trouble.begin(error)
        return send(Page(self.metrics.text(figures), "text/plain; version=0.0.4; charset=utf-8"), request)

    def _refresher_figures(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        for result, count in self.refresher.results.items():
            figures[series("catscii_refreshes_total", result=result)] = count
        if self.refresher.last_good is not None:
            figures["catscii_refresh_age_seconds"] = time.monotonic() - self.refresher.last_good
        return figures

    def _machines_figures(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        agreed = self.machines.agreed
        if self.machines.on:
            figures["catscii_failed_exchanges_total"] = self.machines.failed
        if agreed:
            figures["catscii_machines"] = self.machines.count
            figures["catscii_agreed_age_seconds"] = time.time() - agreed
        return figures

    def _stored_figures(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        for country, count in self.database.execute(VISITS_BY_COUNTRY):
            figures[series("catscii_visits_total", country=country)] = count
        for source, count in self.store.counts().items():
            figures[series("catscii_stored_cats", source=source)] = count
        return figures

    def panic(self, request: ClientRequest) -> bytes:
        seconds = self.allowed_panics.seconds
        if not self.allowed_panics.allows():
            raise bottle.HTTPError(429, f"somebody asked for this less than {seconds:.0f} seconds ago")
        raise RuntimeError("This is a drill: somebody asked for /panic")


def make_app(settings: Settings) -> bottle.Bottle:
    """Return the WSGI app, with its Service in `app.service`. Starts no threads. Raises SetupError."""
    app = bottle.Bottle()
    service = Service(settings)
    app.service = service
    app.router.add_filter("any", lambda _: (r"[\s\S]+", None, None))
    app.get("/", callback=service.random_cat)
    app.get("/cat/<cat_id>/says/<text:any>", callback=service.cat_says)
    app.get("/cat/<cat_id>", callback=service.cat_by_id)
    app.get("/live", callback=service.live)
    app.get("/analytics", callback=service.analytics)
    app.get(["/help", r"/\:help"], callback=service.help)
    app.get("/health", callback=service.health)
    app.get("/metrics", callback=service.prometheus)
    app.get("/panic", callback=service.panic)
    app.get("/favicon.ico", callback=lambda request: send(icon(), request, max_age=86400))
    robots = Page(ROBOTS, CONTENT_TYPES["text"])
    app.get("/robots.txt", callback=lambda request: send(robots, request, max_age=86400))
    app.add_hook("before_request", service.before_request)
    app.add_hook("after_request", service.after_request)
    app.install(service.guard)
    app.default_error_handler = show_error
    return app


def is_seen(request: ClientRequest, page: Page) -> bool:
    """Tell whether a person opens the page. At "/", this is always true; elsewhere, a page or a script may load it."""
    if request.path == "/":
        return True
    navigation = request.header("Sec-Fetch-Dest") in ("", "document")
    return navigation and not page.content_type.startswith("image/")


@lru_cache(256)
def crawls(agent: str) -> bool:
    """Tell whether the User-Agent is that of a crawler or a link preview."""
    return bool(re.search(CRAWLERS, agent))


@lru_cache(256)  # each key has less than MAX_HEADER_BYTES
def read_view(format: str, query: str, accept: str, agent: str) -> View:
    """Return the view that a request asks for. `format` is that of the path's suffix, if any. Raises HTTPError 400."""
    given = parse_query(query)
    negotiated = format or read_format(given, accept, agent, "cats")
    view = make_view(negotiated, partial(read_parameter, given))
    if format or view.format != "ansi" or view.width or view.height:
        return view
    if not re.match(TERMINALS, agent):
        return view
    rows = TERMINAL_ROWS
    if agent.startswith("HTTPie"):
        rows -= 2  # it adds two empty lines
    return view._replace(height=rows)


def live_view(request: ClientRequest) -> View:
    """Return the view that a request for a cat that moves asks for. Raises HTTPError 400."""
    view = make_view(request.format(), partial(read_parameter, request.parameters))
    if view.format == "ansi" and view.height is None:  # the cursor cannot go back to lines that have scrolled away
        return view._replace(height=TERMINAL_ROWS)
    return view


def shows_parts(request: ClientRequest) -> bool:
    """Tell whether the client asks for a stream, or is one that shows what has arrived of an answer."""
    return "format" in request.parameters or bool(re.match(STREAMERS, request.agent))


def make_view(format: str, read: Callable[[str], object]) -> View:
    """Return a view. `read` returns a parameter's value, or None for the default. Text is in ink by default."""
    fields: dict[str, Any] = {"style": "ink" if format == "text" else "fill"}
    for name in PARAMETERS:
        value = read(name)
        if value is not None:
            fields[name] = value
    fields["format"] = format
    return View(**fields)


def parse_query(query: str) -> dict[str, list[str]]:
    """Return all values of each parameter in the query of a WSGI request."""
    text = query.encode("latin-1").decode("utf-8", "replace")
    return urllib_parse.parse_qs(text, keep_blank_values=True, errors="replace")


def read_format(given: Mapping[str, list[str]], accept: str, agent: str, page: str) -> str:
    """Return the format that the parameters name, or else the Accept header. Raises HTTPError 400."""
    return read_parameter(given, "format", PAGE_FORMATS[page]) or negotiated_format(accept, agent)


def read_parameter(given: Mapping[str, list[str]], name: str, values: Choices | None = None) -> Any:
    """Return a parameter, or None. Raises HTTPError 400, which tells the value and the valid ones."""
    texts = given.get(name)
    if not texts:
        return None
    try:
        if len(texts) > 1:
            raise ValueError(f"is given {len(texts)} times")
        return one_of(texts[0], values or PARAMETERS[name].values)
    except ValueError as error:
        raise bottle.HTTPError(400, f"{name}: {error}") from None


def negotiated_format(accept: str, agent: str) -> str:
    """Return the format with the largest weight in Accept (RFC 9110, 12.5.1), else ANSI for terminals, else HTML."""
    weights = media_weights(accept)
    first = "ansi" if re.match(TERMINALS, agent) else "html"
    acceptable = (name for name in (first, "text", "json") if weights.get(FORMATS[name].media_type, 1))
    default = next(acceptable, first)
    known = {FORMATS[name].media_type: name for name in PAGE_FORMATS["all"]}
    known |= {"application/xhtml+xml": "html", "*/*": default}
    named = [media for media in weights if media in known]
    best = max(named, key=lambda media: weights[media], default="*/*")
    if not weights.get(best):
        return default
    return known[best]


def media_weights(accept: str) -> dict[str, float]:
    """Return the weights of the media types in an Accept header. A weight that is not valid counts as 1."""
    weights: dict[str, float] = {}
    for part in accept.lower().split(","):
        media, *parameters = [piece.strip() for piece in part.split(";")]
        given = [float(parameter[2:]) for parameter in parameters if re.fullmatch(QUALITY, parameter)]
        weights.setdefault(media, given[0] if given else 1.0)
    return weights


def send(page: Page, request: ClientRequest, max_age: int = 0, format_from: Iterable[str] = ()) -> bytes:
    """Set the headers of the response. Return its body, or none if the client has it.

    `max_age` is in seconds. `format_from` names the headers of the request that its format depends on.
    """
    response = bottle.response
    response.content_type = page.content_type
    response.headers.update(security_headers())
    response.set_header("Cache-Control", cache_control(page, max_age))
    varies = [*format_from]
    if page.links:
        varies.append("X-Forwarded-Proto")
    if page.compressible:
        varies.append("Accept-Encoding")
    if varies:
        response.set_header("Vary", ", ".join(varies))
    if max_age:
        response.set_header("ETag", page.etag)
        if page.is_among(request.header("If-None-Match")):
            response.status = 304
            return b""
    if page.compressible and re.search(GZIP, request.header("Accept-Encoding")):
        response.set_header("Content-Encoding", "gzip")
        return page.gzipped
    return page.body


def cache_control(page: Page, max_age: int) -> str:
    if not max_age:
        return "no-store"
    if page.links:  # to a host that perhaps no other client uses
        return f"private, max-age={max_age}"
    return f"public, max-age={max_age}"


def encode(art: Art, view: View, bubble: Bubble) -> str | bytes:
    """Return the art of a picture in the format of the view."""
    match view.format:
        case "html":
            label = f"A cat, {drawn_in(art)}{speech_label(view)}"
            return render_page("A cat", label=label, art=art, view=view)
        case "json":
            return json.dumps(said_by(view) | to_dict(art)) + "\n"
        case "ansi":
            return terminal_art(art, view, bubble)
        case "text":
            return "\n".join([*with_bubble(art.rows, bubble), ""])
        case "png":
            return to_png(art, view.background, bubble)
        case _:
            raise NotImplementedError(view.format)


def encode_cat(cat: Cat, art: Art, view: View, bubble: Bubble, links: Links, dbip: bool) -> str | bytes:
    """Return the art of a cat in the format of the view. HTML and JSON name its source, HTML and ANSI have links."""
    match view.format:
        case "html":
            title = capitalized(cat.description)
            width, height = cat.size
            picture = f"its picture of {width} by {height} pixels shows while you hold or focus it"
            label = f"{title}, {drawn_in(art)}; {picture}{speech_label(view)}"
            return render_page(title, *links, label=label, art=art, view=view, cat=cat, dbip=dbip)
        case "json":
            credit = {"id": cat.id, "source": cat.source, "credit": cat.url, "description": cat.description}
            return json.dumps(credit | said_by(view) | to_dict(art)) + "\n"
        case "ansi":
            return terminal_art(art, view, bubble) + link_line(view, cat, links)
        case _:
            return encode(art, view, bubble)


def terminal_art(art: Art, view: View, bubble: Bubble) -> str:
    lines = to_ansi(art, view.colors).splitlines()
    return "\n".join([*with_bubble(lines, bubble), ""])


def capitalized(text: str) -> str:
    return text[0].upper() + text[1:]


def drawn_in(art: Art) -> str:
    return f"drawn in {len(art.rows[0])} by {len(art.rows)} coloured characters"


def speech_label(view: View) -> str:
    """Return what the label of the art ends with, for those who cannot see the bubble."""
    if not view.says:
        return ""
    return f". It says: {view.says}"


def said_by(view: View) -> dict[str, object]:
    """Return what JSON has of a text that the cat says."""
    if not view.says:
        return {}
    return {"says": view.says}


def link_line(view: View, cat: Cat, links: Links) -> str:
    """Return a faint line: what the cat is, a command that shows it again, the guide's path.

    The line has at most 80 characters, unless the shortest command is longer.
    """
    coat = re.split(" by | at | with |, ", cat.description)[0]
    given = view.given("height", "format", "says", "like")
    url = f"{links.base_url}cat/{cat.id}"
    larger = shell_command(url, {"width": 120} | given)
    same = shell_command(url, given)
    starts = (f"{cat.description}: ", f"{coat}: ", "")
    ends = (f"  {links.root}:help", "")
    lines = map("".join, itertools.product(starts, (larger, same), ends))  # the first ones say most
    line = next((line for line in lines if len(line) <= 80), same)
    return f"\x1b[2m{line}\x1b[0m\n"


def live_line(description: str, columns: int = COLUMNS) -> str:
    """Return a faint line below a cat that moves. It is not wider than the terminal."""
    return f"\x1b[2m{description[:columns]}\x1b[0m\n"


def shell_command(url: str, query: Mapping[str, object]) -> str:
    """Return a command for any shell, interactive or not. A shell may expand `?` and ends a command at `&`."""
    if not query:
        return f"curl {url}"
    return f'curl "{url}?{urllib_parse.urlencode(query)}"'


def bars(analytics: Analytics, dbip: bool) -> str:
    """Return what a terminal of 80 columns shows below the map: a bar for each country, the totals, the days."""
    ember = "\x1b[38;2;%d;%d;%dm{}\x1b[0m" % EMBER
    lines = [""]
    days: list[str] = []
    if analytics.countries:
        names = {code: country_name(code) for code in analytics.countries}
        longest = max(map(len, names.values()))
        most = max(analytics.countries.values())
        for code, count in analytics.countries.items():
            bar = ember.format(horizontal_bar(count, most, 58 - longest))
            share = count / analytics.visits
            lines.append(f"{names[code]:{longest}} {bar} {count:11,} {share:6.1%}")
        lines.append("")
        heights, *axis = sparkline(analytics.days)
        days = [ember.format(heights), *axis]
    lines.append(PRIVACY)
    if dbip:
        lines.append(DBIP_CREDIT)
    return "\n".join([*lines, "", str(analytics), *days]) + "\n"


def horizontal_bar(count: int, most: int, width: int) -> str:
    """Return a bar that is as long as the count's share of `most`, in a field of `width` columns and one more."""
    eighths = -(-8 * width * count // most)  # rounded up
    blocks, rest = divmod(eighths, 8)
    bar = "█" * blocks + " ▏▎▍▌▋▊▉"[rest]
    return bar.ljust(width + 1)


def sparkline(days: Mapping[str, int]) -> tuple[str, str, str]:
    """Return a block for each day, as high as its share of the largest count; the line they stand on; and its dates."""
    most = max(days.values())
    blocks = ""
    for count in days.values():
        eighths = math.ceil(8 * count / (most or 1))
        blocks += " ▁▂▃▄▅▆▇█"[eighths]
    line = "▔" * len(days)
    first = min(days)
    last = max(days).rjust(len(days) - len(first))
    return blocks, line, f"{first}{last}  Visits a day, up to {most:,}"


def formatted_page(format: str, facts: object, text: str, html_page: Callable[[], str]) -> Page:
    """Return a page that is not a cat: the facts as JSON, the page as HTML, or else the text."""
    body = text
    if format == "json":
        body = json.dumps(facts) + "\n"
    elif format == "html":
        body = html_page()
    return Page(body, CONTENT_TYPES[format])


icon = cache(lambda: Page(written(draw_house_cat(0).resize((64, 48)), "PNG"), "image/png"))


@cache
def lost_cat(seed: int, format: str) -> Art:
    """Return a small cat, which fits a terminal of 24 lines with the message of an error."""
    return View(width=60, height=TERMINAL_ROWS, format=format).draw(draw_house_cat(seed))


def show_error(error: bottle.HTTPError) -> bytes:
    """Send a page about the error. bottle calls this after the hooks."""
    request: ClientRequest = bottle.request.environ["catscii.request"]
    annotate(error=error.exception)
    format = error_format(request)
    message = error_message(error, request)
    bottle.response.headers.update(error_headers(error))
    illustrated = ["html"]
    if error.status_code == 404:
        illustrated.append("ansi")  # other errors are short in a terminal
    if format in illustrated and not request.refused:
        try:
            seed = zlib.crc32(request.path.encode()) % 8  # robots ask for thousands of pages: 8 cats stay in memory
            return send_error(request, error, message, format, lost_cat(seed, format))
        except Exception:
            log.exception("The cat of an error page cannot be drawn")
    return send_error(request, error, message, format)


def error_format(request: ClientRequest) -> str:
    """Return the format that the URL names, or the negotiated format if the URL names no valid one."""
    if request.path.startswith("/cat/"):
        name = request.path.split("/")[2]
        _, _, suffix = name.rpartition(".")
        format = SUFFIXES.get(suffix)
        if format in PAGE_FORMATS["all"]:
            return format
    try:
        return request.format()
    except bottle.HTTPError:
        return negotiated_format(request.accept, request.agent)


def error_headers(error: bottle.HTTPError) -> dict[str, str]:
    """Return headers that tell what the client can do."""
    match error.status_code:
        case 405:
            return {"Allow": allowed_methods(error)}
        case 429:
            return {"Retry-After": "10"}
        case 503 if isinstance(error.exception, QueueFull):
            return {"Retry-After": "3"}
        case 503:
            return {"Retry-After": "60"}
        case _:
            return {}


def allowed_methods(error: bottle.HTTPError) -> str:
    allowed: str = error.get_header("Allow")
    return allowed.replace("GET", "GET, HEAD")  # bottle answers HEAD, but does not list it


def error_message(error: bottle.HTTPError, request: ClientRequest) -> str:
    """Return the message of the error. It replaces those of bottle."""
    if error.status_code == 405:
        return f"{quoted(request.method)} is not one of {allowed_methods(error)}"
    if error.status_code == 404 and request.route == "none":
        return f"there is nothing at {quoted(request.path)}"
    return str(error.body)


def send_error(
    request: ClientRequest, error: bottle.HTTPError, message: str, format: str, art: Art | None = None,
) -> bytes:
    """Send the message of an error, and the art, if there is any."""
    title = error.status_line
    facts = {"status": error.status_code, "error": message}
    text = f"{title}: {message}\n"
    if art:
        text = to_ansi(art) + text
    html_page = partial(render_page, title, request.root, label="A cat", art=art, message=message)
    page = formatted_page(format, facts, text, html_page)
    return send(page, request, format_from=request.format_headers())


# ---------------------------------------------------------------------------------------------------------------------
# Running: the server, one CGI request, the art command
# ---------------------------------------------------------------------------------------------------------------------

QUICK_THREADS = 4  # answer what needs no drawing; REVIVALS_AT_ONCE of them may wait for an upstream
END_PATIENCE = 1.0  # seconds for which the service, when it ends, tries to count the visits that wait
GRACE_SECONDS = 6.0  # for the last requests, so that the service ends within ten seconds
MAX_HEADERS = 100  # the limit of Apache and of Python's http.client
MAX_CONNECTIONS = 1000
ACCEPTED_AT_ONCE = 100  # in a turn of the loop, so that it also notices which connections end
READ_BYTES = 8 << 10  # of a connection, in a turn of the loop
RESERVED_FILES = 32  # for the database, the sources and modules
SILENT_CONNECTION_SECONDS = 30.0  # without a byte
REQUEST_SECONDS = 30.0  # from the first to the last byte of a request
MAX_UNSENT_IN_ALL = 16 << 20  # bytes that wait in this process until clients read
MAX_KERNEL_MEMORY = 48 << 20  # bytes, for all connections
KERNEL_BUFFER = 32 << 10  # bytes that the kernel holds for a connection, about, in each direction
SO_MEMINFO = 55  # an option of sockets in Linux, whose value is described in linux/sock_diag.h
PASSED_FILE = 3  # the file descriptor of the socket that systemd passes
TIDY_SECONDS = 0.2  # between calls of `_tidy`; while the service ends, the longest silence of an idle connection

CLEAR_LINE = b"\r\x1b[K"
CLEAR_SCREEN = b"\x1b[H\x1b[2J"
LIVE_SECONDS = 0.1  # between looks at what a cat does

SOURCES = "PICTURE|URL|house-N|-"


def usage() -> str:
    option_lines = f"\n{' ' * 13}".join(
        f"[--{name} {value_names(parameter.values)}]" for name, parameter in PARAMETERS.items())
    variable_lines = "\n".join(
        f"  {name.upper():21} " + setting.help.replace("\n", f"\n{' ' * 24}") for name, setting in SETTINGS.items())
    return f"""\
catscii {__version__}: cats as coloured ASCII art

usage:
  catscii.py                          serve over HTTP
  catscii.py art [{SOURCES}]   show a picture, or a house cat, as large as the terminal
             {option_lines}
  catscii.py art --help               explain these options
  catscii.py live [house-N]           show a house cat that moves, until Ctrl+C
  catscii.py --help | --version

environment (defaults in parentheses):
{variable_lines}
  NO_COLOR              makes art print plain text, like TERM=dumb; COLORTERM=truecolor gives 24-bit colours, not 256
"""


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, answer the requests that have arrived, and return 0. Raises SetupError."""
    log_writer = start_logging(settings.log_level)
    flush = start_reporting(settings)
    check_database(settings.analytics_db)
    app = make_app(settings)
    service: Service = app.service
    listener = passed_listener() or listen(settings.host, settings.port)
    server = Server(
        traced(app) if settings.otlp_endpoint else app,
        listener,
        settings.client_ip_header,
        commit_visits=service.visit_counter.write,
        write_log=log_writer.flush,
        streams=service.streams,
    )
    service.gauges["catscii_open_connections"] = lambda: len(server.active_channels)
    service.gauges["catscii_dropped_log_lines_total"] = lambda: log_writer.dropped

    def stop(*_: object) -> None:
        notify("STOPPING=1")
        server.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    announce(settings, listener, log_writer)
    stopping = threading.Event()
    maintenance = start_thread(maintain, service, stopping)
    start_thread(service.refresher.run, stopping)
    all_counted = threading.Event()  # then the last exchange with other machines is due
    exchange = start_thread(service.machines.run, all_counted)
    notify("READY=1")
    log_writer.buffered = True
    gc.freeze()  # what exists now is never garbage
    gc.enable()
    server.run(stopping)
    maintenance.join(1)
    service.visit_counter.close(END_PATIENCE)
    all_counted.set()
    exchange.join(1)
    service.database.close()
    flush()
    return 0


def maintain(service: Service, stopping: threading.Event) -> None:
    """Every second until `stopping`, check and sync the database, and read the countries again if replaced."""
    while not stopping.wait(1):
        service.visit_counter.commit()
        if not service.visit_counter.trouble:
            with service.read_trouble.contain(sqlite3.Error):
                service.store.counts()
                service.database.sync()
        try:
            if service.countries.reload():
                log.info("Countries were replaced")
        except Exception as error:
            log.warning("Countries cannot be replaced", {"error": str(error)})


def announce(settings: Settings, listener: socket.socket, log_writer: LogWriter) -> None:
    """Log where the service listens and what it uses. A terminal shows an address to open."""
    host, port = listener.getsockname()[:2]
    address = f"{host}:{port}"
    if ":" in host:  # IPv6
        address = f"[{host}]:{port}"
    reachable = address
    if host in ("0.0.0.0", "::"):  # all addresses of the machine
        reachable = f"localhost:{port}"
    log_writer.greet(f"open http://{reachable}")
    if not settings.geolite2_country_db:
        log.warning("No countries: GEOLITE2_COUNTRY_DB is not set")
    log.info("Listening on %(address)s", {
        "address": address,
        "version": __version__,
        "countries": settings.geolite2_country_db or "off",
        "sources": [host_name(url) for url in settings.cat_sources],
        "etcd": [host_name(url) for url in settings.etcd_endpoints],
        "sentry": host_name(settings.sentry_dsn),
        "otlp": host_name(settings.otlp_endpoint),
    })


def host_name(url: str | None) -> str:
    """Return what the log tells of a URL, which may contain a key, or "off" if there is no URL."""
    return urllib_parse.urlsplit(url or "").hostname or "off"


def start_thread(run: Callable[..., object], *arguments: object) -> threading.Thread:
    """Start a thread that does not keep the process from ending."""
    thread = threading.Thread(target=run, args=arguments, daemon=True)
    thread.start()
    return thread


def start_reporting(settings: Settings) -> Callable[[], None]:
    """Start Sentry and traces if they are set. Return a function that sends the remaining data. Raises SetupError."""
    senders = []
    if settings.sentry_dsn:
        senders.append(start_sentry(settings))
    if settings.otlp_endpoint:
        senders.append(start_tracing(settings))

    def flush() -> None:
        threads = [start_thread(send_rest) for send_rest in senders]
        deadline = time.monotonic() + FLUSH_SECONDS  # OpenTelemetry itself would wait without limit
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    return flush


def serve_cgi() -> int:
    """Answer the CGI request (RFC 3875) in the environment. Return the exit status: 2 for wrong settings, else 0."""
    from wsgiref.handlers import CGIHandler

    start_logging(logging.INFO)
    try:
        settings = read_settings(os.environ)
        start_logging(settings.log_level)
        flush = start_reporting(settings)
        app = make_app(settings)
        wsgi_app = traced(app) if settings.otlp_endpoint else app
    except SetupError as error:
        for problem in error.args:
            log.critical("Not set up", {"problem": problem})
        print("Status: 500 Internal Server Error\r\nContent-Type: text/plain\r\n\r\nnot set up; the log tells why")
        return 2
    os.environ.setdefault("PATH_INFO", "")  # servers may omit an empty path
    os.environ.setdefault("REQUEST_METHOD", "GET")
    CGIHandler().run(wsgi_app)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Apache sends SIGTERM when it has the whole response
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        length = int(os.environ.get("CONTENT_LENGTH") or 0)
        sys.stdin.buffer.read(max(0, min(length, 1 << 20)))  # Apache loses a response if it cannot send the body
    discard_output()
    finish_cgi(app.service)
    flush()
    return 0


def finish_cgi(service: Service) -> None:
    """End a CGI process, whose client has the response: count the visit, exchange visits, and fetch a cat if due.

    A fork fetches the cat.
    """
    service.studio.queue.close()
    service.visit_counter.close(CGI_PATIENCE)
    try:
        service.database.wait_for_locks(START_SECONDS)
        service.machines.exchange_if_due()
        due = service.refresher.claim_due_fetch()
        service.database.close()  # SQLite connections do not survive a fork
        if due and not os.fork():
            service.database.open(START_SECONDS)
            service.database.wait_for_locks(START_SECONDS)
            service.refresher.fetch_one()
    except sqlite3.Error as error:
        log.warning("The store cannot be refreshed", {"error": str(error)})
    except Exception:
        log.exception("Refreshing the store failed")
    service.database.close()


# waitress parses requests, runs the app in its threads and writes the heads of responses. Server has a loop of its own,
# because the loop of waitress visits all connections each time, and polls for urgent data without reading that data.
# The code below relies on these internals of waitress, which a test looks for in the installed version:
#   adjustments.Adjustments      the settings that channels, parsers and tasks read
#   channel.HTTPChannel          calls its server's pull_trigger, and what WaitressChannel names
#   channel.ClientDisconnected   tells a task that its client is gone
#   parser.HTTPRequestParser     what WaitressParser names
#   parser.ParsingError          what parse_header raises for a head that it refuses
#   utilities.BadRequest         the error of a request that cannot be parsed
#   task.WSGITask                what WaitressTask names
#   task.ThreadedTaskDispatcher  threads, active_count, add_task, set_thread_count, shutdown; ClientQueues is its queue
#   wasyncore.readwrite          calls a channel for an event; if the channel raises, logs that and closes it
# Parser, Task and Channel are mixins, to which `channel_class` adds the classes of waitress. So CGI and `art` do not
# import waitress, which takes 25 ms. What the mixins use of these classes is declared here, for type checkers.

if TYPE_CHECKING:
    Socket = socket.socket
    Address = tuple[str, *tuple[int, ...]]  # a host, a port and, in IPv6, two numbers more

    class WaitressParser:
        """A request as it arrives."""

        command: str
        version: str
        headers: dict[str, str]  # by names in capital letters, with "_" instead of "-"
        header_plus: bytes  # the part of the head that has arrived
        headers_finished: bool
        expect_continue: bool
        completed: bool
        empty: bool  # True for blank lines before a request
        error: object  # None if the request is valid

        def __init__(self, adj: object) -> None: ...
        def received(self, data: bytes) -> int: ...
        def parse_header(self, head: bytes) -> None: ...

    class WaitressTask:
        """A response that a thread writes."""

        channel: Channel
        request: Parser
        version: str
        has_body: bool
        close_on_finish: bool

        def __init__(self, channel: Channel, request: Parser) -> None: ...
        def get_environment(self) -> WSGIEnvironment: ...
        def finish(self) -> None: ...
        def set_close_on_finish(self) -> None: ...

    class WaitressChannel:
        """A connection."""

        parser_class: type[Parser]
        server: Server
        adj: object
        addr: Address
        socket: Socket  # None if the connection is closed
        connected: bool
        request: Parser | None  # the one that arrives
        requests: list[Parser]  # the one that is answered
        requests_lock: threading.Lock
        close_when_flushed: bool
        will_close: bool

        def __init__(
            self, server: Server, client: Socket, address: Address, adj: object, map: dict[int, Channel],
        ) -> None: ...
        def del_channel(self, map: dict[int, Channel] | None = None) -> None: ...
        def handle_close(self) -> None: ...
        def service(self) -> None: ...
else:
    WaitressParser = WaitressTask = WaitressChannel = object

# RFC 9112, 3 and 5, without line folding. Possessive quantifiers keep the time linear.
REQUEST_LINE = (
    rb"[!#$%&'*+.^_`|~0-9A-Z-]++ "
    rb"(?:[A-Za-z][A-Za-z0-9+.-]*+:/)?/[!\"$-~\x80-\xff]*+ "
    rb"HTTP/1\.[01]\r\n"
)
HEADER_LINE = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++:[ \t]{0,64}+(?:[!-~\x80-\xff]++[ \t]{0,64}+)*+\r\n"
REQUEST_HEAD = REQUEST_LINE + rb"(?:" + HEADER_LINE + rb")*+(?:\r\n)?+"


def check_head(head: bytes) -> None:
    """Raise ValueError, with the reason, if the service refuses the head of a request."""
    if head.count(b"\r\n") > MAX_HEADERS + 2:
        raise ValueError(f"a request may have at most {MAX_HEADERS} headers")
    if not re.fullmatch(REQUEST_HEAD, head):
        wrong = invalid_line(head).decode("latin-1")
        raise ValueError(f"{quoted(wrong)} is not HTTP/1.1 or HTTP/1.0")
    if b"\r\ntransfer-encoding:" in head.lower():  # waitress accepts chunks that a proxy may read differently
        raise ValueError("Transfer-Encoding is not supported: no request needs a body here")


def invalid_line(head: bytes) -> bytes:
    """Return the first line of an invalid head that is wrong."""
    request_line, *header_lines = head.split(b"\r\n")
    if re.fullmatch(REQUEST_LINE, request_line + b"\r\n"):
        for line in header_lines:
            if line and not re.fullmatch(HEADER_LINE, line + b"\r\n"):
                return line
    return request_line


class Parser(WaitressParser):
    """A request, whose body is ignored. Refuses requests that a proxy may have read differently."""

    # What a task reads of a request that cannot be parsed:
    command = "GET"
    url_scheme = "http"
    request_uri = ""
    path = ""
    query = ""

    def received(self, data: bytes) -> int:
        arrived = self.header_plus + data
        self.indented = bool(re.match(rb"(?:\r\n)*+\s", arrived))  # waitress strips such bytes
        head, _, _ = arrived.lstrip(b"\r\n").partition(b"\r\n\r\n")
        if not self.headers_finished and re.search(rb"\n(?<!\r\n)", head):  # waitress would wait for CR LF
            self.error = waitress.utilities.BadRequest("a line of the head ends without a carriage return")
            self.completed = True
            return len(data)
        consumed = super().received(data)
        if self.expect_continue:  # send the final response instead of "100 Continue"
            self.expect_continue = False
            self.completed = True
            self.headers["CONNECTION"] = "close"
        return consumed

    def parse_header(self, head: bytes) -> None:
        try:
            if self.indented:
                raise ValueError("the request begins with white space")
            check_head(head)
            super().parse_header(head)  # raises ValueError for an invalid URI or length
            if "," in self.headers.get("HOST", ""):
                raise ValueError("more than one Host")
            if self.version == "1.1" and "HOST" not in self.headers:  # RFC 9112, 3.2
                raise ValueError("a request of HTTP/1.1 must have a Host")
        except ValueError as error:
            raise waitress.parser.ParsingError(str(error)) from None


class Task(WaitressTask):
    """The app's response to a request. The app also responds to refused requests."""

    def __init__(self, channel: Channel, request: Parser) -> None:
        super().__init__(channel, request)
        if request.error and not request.headers:  # not parsed
            request.headers["ACCEPT"] = "text/plain"
        if self._is_last():
            request.headers["CONNECTION"] = "close"

    def _is_last(self) -> bool:
        """Return whether the connection ends with this response."""
        # 1. Where a refused request ends is uncertain, and so is what follows.
        if self.request.error:
            return True
        # 2. The client asks for it, perhaps as one of many options.
        options = self.request.headers.get("CONNECTION", "")
        if re.search(r"(?i)(^|,)\s*close\s*(,|$)", options):
            return True
        # 3. The service ends, and has answered all that the client has sent.
        return self.channel.server.draining and not self.channel.has_more()

    def get_environment(self) -> WSGIEnvironment:
        return {**super().get_environment(), "catscii.begin_stream": self.begin_stream,
                "catscii.refusal": self.request.error}  # None if the request is valid

    def begin_stream(self) -> Channel:
        """Return the channel, which can go on with the response when this task has ended.

        The response is one of HTTP/1.0: its end is that of the connection.
        """
        self.version = "1.0"
        self.channel.streaming = self.request.command == "GET"
        return self.channel

    def finish(self) -> None:
        super().finish()
        if self.channel.streaming:
            self.close_on_finish = False

    def set_close_on_finish(self) -> None:
        # waitress also calls this for a 304 in HTTP/1.1, which has no Content-Length, but needs no end either.
        asked = self.version == "1.0" or self.request.headers.get("CONNECTION", "").lower() == "close"
        if asked or self.has_body:
            super().set_close_on_finish()


class Channel(WaitressChannel):
    """A connection. The loop sends its responses, directly from the cache of pages, without a copy."""

    streaming = False  # True if the loop goes on with the last response
    leaving = False  # True when all is sent, and the connection ends when the client has acknowledged it

    def __init__(self, server: Server, client: Socket, address: Address) -> None:
        self.unsent: deque[bytes] = deque()
        self.sent_of_first = 0  # bytes of unsent[0]
        self.behind = b""  # what the client has sent behind the request that is answered now
        self.client = client_of(address[0])
        self.touched = time.monotonic()  # when bytes last came or went
        self.begun = self.touched  # when self.request began
        super().__init__(server, client, address, server.adj, map=server.active_channels)
        server.watch(self)

    def __repr__(self) -> str:
        return "a connection"  # for the log; the text of waitress has the client's address

    def del_channel(self, map: dict[int, Channel] | None = None) -> None:
        if self.socket and not self.leaving:
            self.server.poll.unregister(self.socket)
        self.unsent.clear()
        super().del_channel(map)

    def readable(self) -> bool:
        """Return whether a request may come now. All of the last response has to be on its way."""
        return not (self.requests or self.unsent or self.close_when_flushed or self.will_close)

    def handle_read(self) -> None:
        try:
            data = self.socket.recv(READ_BYTES)
        except OSError:  # the client hung up
            self.handle_close()
            return
        if data:
            self.received(data)
        else:  # the client sends no more, but may still read
            self.leave()

    def received(self, data: bytes) -> None:
        """Parse one request. Keep what comes behind it until the answer is on its way."""
        self.touched = time.monotonic()
        with self.requests_lock:
            while data and not self.requests and not self.close_when_flushed and not self.streaming:
                if self.request is None:
                    data = re.sub(rb"\A(?:\r\n)++", b"", data)  # a parser for each blank line would take long
                    if not data:
                        break
                    self.request = self.parser_class(self.adj)
                    self.begun = self.touched
                data = data[self.request.received(data):]
                if self.request.completed:
                    if not self.request.empty:
                        self.requests.append(self.request)
                        self.server.add_task(self)
                    self.request = None
            self.behind = data

    def has_more(self) -> bool:
        """Return whether the client has sent more than the request that is answered now."""
        try:
            return bool(self.behind or self.socket.recv(1, socket.MSG_PEEK))
        except (OSError, AttributeError):  # nothing has arrived, or the connection is closed
            return False

    def service(self) -> None:
        """Answer the request, in a thread."""
        try:
            super().service()
        except BaseException:
            self.will_close = True
            raise
        finally:
            self.server.wake(self)

    def write_soon(self, data: bytes) -> int:
        if not self.connected:
            raise waitress.channel.ClientDisconnected
        self.touched = time.monotonic()
        self.unsent.append(data)
        return len(data)

    def go_on(self, data: bytes, last: bool = False) -> None:
        """Add to the response, from the loop."""
        self.write_soon(data)
        if last:
            self.close_when_flushed = True
        self.handle_write()

    def writable(self) -> bool:
        return bool(self.unsent or self.close_when_flushed or self.will_close)

    def handle_write(self) -> None:
        self.server.answered.append(self)

    def send(self, parts: int) -> None:
        """Send as much of the first `parts` items of `unsent` as the socket takes now. Then parse the next request.

        The kernel takes one more piece if it holds less than KERNEL_BUFFER. Raises OSError.
        """
        while parts:
            first = memoryview(self.unsent[0])[self.sent_of_first:]
            pieces = [first[:KERNEL_BUFFER]]
            if parts > 1 and len(first) < KERNEL_BUFFER:  # usually the head of a response, and its body
                pieces.append(memoryview(self.unsent[1])[:KERNEL_BUFFER - len(first)])
            try:
                self.sent_of_first += self.socket.sendmsg(pieces)
            except BlockingIOError:
                break
            self.touched = time.monotonic()
            while parts and self.sent_of_first >= len(self.unsent[0]):
                self.sent_of_first -= len(self.unsent.popleft())
                parts -= 1
        if self.will_close:
            self.handle_close()
        elif self.close_when_flushed and not self.unsent:
            self.leave()
        elif self.behind and not self.unsent:
            self.received(self.behind)

    def leave(self) -> None:
        """Close the connection when the client has all that was sent to it, or at once if the service ends.

        The kernel sends the rest of closed connections too, but it has no limit for their number.
        """
        if self.server.draining or not self.unacknowledged():
            self.handle_close()
            return
        self.server.poll.unregister(self.socket)  # after the shutdown below, poll() could report POLLHUP in every turn
        self.leaving = True
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:  # the client hung up
            self.handle_close()

    def drop(self) -> None:
        """Close the connection, and make the kernel forget what the client has not read, unless the service ends."""
        if not self.server.draining and self.unacknowledged():
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # on, 0 seconds
        self.handle_close()

    def unacknowledged(self) -> int:
        """Return the bytes of memory that the kernel uses for what the client has not acknowledged."""
        _, _, sent = self._kernel_memory()
        return sent

    def kernel_memory(self) -> int:
        """Return the bytes of memory that the kernel uses for the connection."""
        return sum(self._kernel_memory())

    def _kernel_memory(self) -> tuple[int, int, int]:
        """Return the receive, reserved and send memory, in bytes.

        If this is not Linux, they are unknown, and seem to be 0.
        """
        try:
            value = self.socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 24)
        except OSError:
            return 0, 0, 0
        arrived, _, _, _, reserved, sent = struct.unpack("6I", value)
        return arrived, reserved, sent


def channel_class() -> type[Channel]:
    """Return the class of connections: Channel with the classes of waitress."""

    class ServerParser(Parser, waitress.parser.HTTPRequestParser):  # type: ignore[misc]
        pass

    class ServerTask(Task, waitress.task.WSGITask):  # type: ignore[misc]
        pass

    class ServerChannel(Channel, waitress.channel.HTTPChannel):  # type: ignore[misc]
        parser_class = ServerParser
        task_class = ServerTask
        error_task_class = ServerTask

    return ServerChannel


class ClientQueues:
    """The queue of channels that wait for a thread. Each client has its own line, and the lines take turns."""

    def __init__(self, client_header: str | None) -> None:
        self._header = (client_header or "").upper().replace("-", "_")
        self._lines = Lines[Channel]()

    def __len__(self) -> int:
        return len(self._lines)

    def append(self, channel: Channel) -> None:
        headers = channel.requests[0].headers
        address = headers.get(self._header) or channel.addr[0]
        self._lines.append(client_of(address), channel)

    def popleft(self) -> Channel:
        return self._lines.popleft()


class Server:
    """Serves an app on a socket. The main thread calls `run`, a signal handler calls `stop`, threads call `wake`."""

    def __init__(
        self,
        app: WSGIApplication,
        listener: socket.socket,
        client_header: str | None,
        commit_visits: Callable[[], None],
        write_log: Callable[[], None],
        streams: Streams,
    ) -> None:
        # Channels and tasks of waitress read these.
        self.application = app
        self.adj = waitress.adjustments.Adjustments(
            ident="",
            log_socket_errors=False,
            max_request_header_size=MAX_HEADER_BYTES,
            max_request_body_size=MAX_BODY_BYTES,
        )
        self.server_name = "localhost"
        self.effective_port = listener.getsockname()[1]
        self.active_channels: dict[int, Channel] = {}  # by file descriptor

        self.answered: deque[Channel] = deque()  # channels that have something to send
        self.draining = False  # True while the last requests are answered
        self._stopping = False
        self._ending_since = 0.0
        self._tidied = 0.0
        self._commit_visits = commit_visits
        self._write_log = write_log
        self._streams = streams

        self._channel_class = channel_class()
        self._limit = connection_limit()
        self._full = Trouble("No connection is free: idle ones are closed", "Connections are free", logging.WARN, 10)
        self._tasks: deque[Channel] = deque()  # channels whose request gets a thread at the end of the turn
        self._dispatcher = waitress.task.ThreadedTaskDispatcher()
        self._dispatcher.queue = ClientQueues(client_header)

        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BUFFER // 2)  # Linux doubles these
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BUFFER)
        self._listener = listener
        self._alarm, self._bell = os.pipe()  # what is written to the bell ends the sleep of the loop
        self._asleep = False
        self.poll = select.poll()
        self.poll.register(self._listener, select.POLLIN)
        self.poll.register(self._alarm, select.POLLIN)

    def run(self, stopping: threading.Event) -> None:
        """Serve until `stop` is called. Then set `stopping`, and use GRACE_SECONDS to answer what has arrived."""
        while not self._stopping:
            self._turn(TIDY_SECONDS)
        log.info("Initiating graceful shutdown")
        stopping.set()
        self._accept(MAX_CONNECTIONS)
        self.poll.unregister(self._listener)
        self._listener.close()
        self.draining = True
        self._ending_since = time.monotonic()
        while self.active_channels and time.monotonic() < self._ending_since + GRACE_SECONDS:
            self._turn(TIDY_SECONDS / 4)
        for channel in [*self.active_channels.values()]:
            channel.handle_close()
        self._dispatcher.shutdown(timeout=1)

    def stop(self) -> None:
        self._stopping = True
        os.write(self._bell, b"!")

    def wake(self, channel: Channel) -> None:
        """Make the loop send the channel's response. The loop sets `_asleep` before it looks at `answered`."""
        self.answered.append(channel)
        if self._asleep:
            self._asleep = False
            os.write(self._bell, b"!")

    def pull_trigger(self) -> None:
        """Do nothing. waitress calls this when a thread has answered, but does not tell which channel: see `wake`."""

    def add_task(self, channel: Channel) -> None:
        self._tasks.append(channel)

    def watch(self, channel: Channel) -> None:
        """Poll an open channel for the events that it waits for. poll() always reports errors too."""
        if channel.connected and not channel.leaving:
            events = 0
            if channel.readable():
                events |= select.POLLIN
            if channel.writable():
                events |= select.POLLOUT
            self.poll.register(channel.socket, events)

    def _turn(self, seconds: float) -> None:
        """Wait for events, but at most so many seconds, and handle them."""
        self._asleep = True
        events = dict(self.poll.poll(0 if self.answered else 1000 * seconds))
        self._asleep = False
        if events.pop(self._alarm, None):
            os.read(self._alarm, 4096)
        arrivals = events.pop(self._listener.fileno(), None)
        self._read(events)
        self._send()
        while self._tasks:  # after _send, because busy threads compete with the loop for the GIL
            self._ensure_idle_thread()
            self._dispatcher.add_task(self._tasks.popleft())
        if arrivals:  # last, because a new connection may get the file descriptor of a closed one
            self._accept(ACCEPTED_AT_ONCE)
        if time.monotonic() - self._tidied > TIDY_SECONDS:
            self._tidy()

    def _read(self, events: Mapping[int, int]) -> None:
        """Handle the events of connections, by file descriptor. What takes too long waits for the next turn.

        Clients take turns, each with the connection that has been silent for longest.
        """
        lines = Lines[Channel]()
        channels = [self.active_channels[file] for file in events if file in self.active_channels]
        for channel in sorted(channels, key=lambda channel: channel.touched):
            lines.append(channel.client, channel)
        ends = time.monotonic() + TURN_SECONDS
        while lines and time.monotonic() < ends:
            channel = lines.popleft()
            waitress.wasyncore.readwrite(channel, events[channel.socket.fileno()])
            self.watch(channel)

    def _ensure_idle_thread(self) -> None:
        """Start a thread if none is free for one more request and there may be one more."""
        dispatcher = self._dispatcher
        threads = len(dispatcher.threads)
        idle = threads - dispatcher.active_count - len(dispatcher.queue)
        if idle < 1 and threads < QUICK_THREADS + PLACES:
            dispatcher.set_thread_count(threads + 1)

    def _send(self) -> None:
        """Send the responses that are ready, after a commit of their visits.

        Responses that become ready during the commit wait, because it may not have their visits.
        """
        ready: dict[Channel, int] = {}  # how many parts of its response each channel has
        while self.answered:
            channel = self.answered.popleft()
            ready[channel] = len(channel.unsent)
        if not ready:
            return
        self._commit_visits()
        self._write_log()
        for channel, parts in ready.items():
            if not channel.connected:  # it was closed meanwhile
                continue
            try:
                channel.send(parts)
            except OSError:  # the client hung up
                channel.handle_close()
            self.watch(channel)

    def _accept(self, most: int) -> None:
        """Accept the connections that wait, but at most so many. If too many are open, each replaces another one."""
        for _ in range(most):
            try:
                client, address = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, KERNEL_BUFFER)
            except BlockingIOError:
                return
            except OSError as error:  # the client hung up, or too many files are open
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self._make_room()
                continue
            if len(self.active_channels) >= self._limit:
                self._make_room()
            self._channel_class(self, client, address)

    def _make_room(self) -> None:
        """Of the clients with most connections, drop the idlest connection; prefer one with no request in progress."""
        self._full.begin(f"{len(self.active_channels)} are open")
        channels = self.active_channels.values()
        if not channels:
            time.sleep(TIDY_SECONDS / MAX_CONNECTIONS)  # other processes have all files open: do not spin
            return
        numbers = Counter(channel.client for channel in channels)
        most = max(numbers.values())
        greedy = [channel for channel in channels if numbers[channel.client] == most]
        idlest = min(greedy, key=lambda channel: (bool(channel.requests), channel.touched))
        idlest.drop()

    def _tidy(self) -> None:
        """Close the connections that are over, and those of clients that read too little."""
        now = time.monotonic()
        self._tidied = now
        self._write_log()  # of lines that belong to no response
        self._streams.tick(self.draining)
        for channel in [*self.active_channels.values()]:
            if self._is_over(channel, now):
                channel.drop()
        self._drop_greedy()
        self._full.end()

    def _is_over(self, channel: Channel, now: float) -> bool:
        """Tell whether nothing more is expected of a connection."""
        # 1. While a thread answers, the client is right to be silent.
        if channel.requests:
            return False
        # 2. The last answer is sent. It is over when the client has read it, or when the service ends.
        if channel.leaving and (self.draining or not channel.unacknowledged()):
            return True
        # 3. The client watches a cat, which may be quiet for long. Streams ends this.
        if channel.streaming and not channel.unsent and not channel.leaving:
            return False
        # 4. The client sends nothing, or does not read.
        silence = now - max(channel.touched, self._ending_since)
        if silence > SILENT_CONNECTION_SECONDS:
            return True
        # 5. The client sends a request, but too slowly.
        if channel.request:
            return now - channel.begun > REQUEST_SECONDS
        # 6. The service ends, and the client, which has all answers, has had the time for another request.
        return self.draining and not channel.unsent and silence > TIDY_SECONDS

    def _drop_greedy(self) -> None:
        """While clients read too little, drop the connection with the most bytes, of the client with the most."""
        unsent = {channel: [*channel.unsent] for channel in self.active_channels.values()}
        readers = Counter(id(data) for parts in unsent.values() for data in parts)  # those of a page share its bytes
        in_process = Counter[Channel]()
        in_kernel = Counter[Channel]()
        of_clients = Counter[str]()
        for channel, parts in unsent.items():
            in_process[channel] = sum(len(data) // readers[id(data)] for data in parts)
            in_kernel[channel] = channel.kernel_memory()
            of_clients[channel.client] += in_process[channel] + in_kernel[channel]
        while in_process.total() > MAX_UNSENT_IN_ALL or in_kernel.total() > MAX_KERNEL_MEMORY:
            most = max(of_clients.values())
            of_the_greediest = [channel for channel in in_process if of_clients[channel.client] == most]
            channel = max(of_the_greediest, key=lambda channel: in_process[channel] + in_kernel[channel])
            of_clients[channel.client] -= in_process.pop(channel) + in_kernel.pop(channel)
            channel.drop()


def connection_limit() -> int:
    """Return how many connections may be open: MAX_CONNECTIONS, or fewer if the system allows too few open files."""
    wanted = MAX_CONNECTIONS + RESERVED_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return MAX_CONNECTIONS
    allowed = wanted
    if hard != resource.RLIM_INFINITY:
        allowed = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return max(1, allowed - RESERVED_FILES)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. The host "::" also accepts IPv4 where the system can. Raises SetupError."""
    try:
        name = host.encode("ascii")  # a str makes Python import a codec, which is 1 % of the time to start
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        dual_stack = family == socket.AF_INET6 and host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address[:2], family=family, backlog=1024, dualstack_ipv6=dual_stack)
    except (OSError, UnicodeError) as error:  # UnicodeError: the host name is invalid
        raise SetupError(f"HOST, PORT: cannot listen on {quoted(host)}, port {port}: {error}") from error


def passed_listener() -> socket.socket | None:
    """Return the listening socket that systemd passes (sd_listen_fds(3)), if it passes one. Raises SetupError."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None  # the variables are for another process
    number = os.environ.get("LISTEN_FDS", "")
    if number != "1":
        raise SetupError(f"LISTEN_FDS: {quoted(number)} is not 1: one socket has to be passed")
    try:
        listener = socket.socket(fileno=PASSED_FILE)
        listener.set_inheritable(False)
        listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise SetupError(f"LISTEN_FDS: file {PASSED_FILE} is no socket: {error}") from error
    if not listens or listener.family not in (socket.AF_INET, socket.AF_INET6):
        raise SetupError("LISTEN_FDS: the socket has to listen on TCP, and systemd must not accept the connections")
    return listener


def notify(state: str) -> None:
    """Tell systemd, or another manager of services that asks for it, the state of this one (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # an abstract address, which is no file
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(state.encode(), address)
    except OSError as error:
        log.warning("NOTIFY_SOCKET cannot be used", {"state": state, "error": str(error)})


class Progress:
    """Shows on standard error, if that is a terminal, how much of a picture has arrived, while a block runs.

    The line appears after half a second. A timer shows it, because no thread may run when a sandbox is made.
    """

    def __init__(self) -> None:
        self._text = "0 bytes"
        self._shown = False

    def __enter__(self) -> Progress:
        if os.isatty(2):
            signal.signal(signal.SIGALRM, lambda *_: self._show())
            signal.setitimer(signal.ITIMER_REAL, 0.5, 0.1)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self._shown:
            os.write(2, CLEAR_LINE)

    def tell(self, arrived: int, total: int | None) -> None:
        if total:
            self._text = f"{arrived:,} of {total:,} bytes"
        else:
            self._text = f"{arrived:,} bytes"

    def _show(self) -> None:
        self._shown = True
        os.write(2, CLEAR_LINE + f"catscii: {self._text}".encode())


def show_picture(source: str, options: Mapping[str, object]) -> int:
    """Print a picture, or else a random house cat, as art. The terminal provides missing options.

    Return 0, or 1 if the picture cannot be shown. Raises SetupError.
    """
    if source and options.get("like"):
        raise SetupError("--like chooses a house cat, so no picture can be given")
    if source == options.get("says") == "-":
        raise SetupError("standard input cannot be both the picture and what the cat says")
    view = view_in_terminal(options)
    try:
        source = source or house_cat_like(view.like)
        picture = find_picture(source, view)
    except NoSuchCat as error:
        complain(str(error))
        return 1
    except (OSError, PictureError, Unavailable) as error:
        reason = str(getattr(error, "strerror", error))
        printable = "".join(filter(str.isprintable, reason))  # a server may have chosen it
        hint = f"; house cats are {HOUSE_CAT_IDS}" if source.startswith("house-") else ""
        complain(f"{quoted(source)}: {printable}{hint}")
        return 1
    drawn, bubble = view.speaking(picture.size)
    encoded = encode(drawn.draw(picture), view, bubble)
    return print_out(Page(encoded, "").body)


def view_in_terminal(options: Mapping[str, object]) -> View:
    """Return the view that the options of `art` ask for, in the terminal if there is one. Raises SetupError."""
    format = "text"
    if shows_colours() or "colors" in options:
        format = "ansi"
    format = str(options.get("format", format))
    terminal = sys.stdout.isatty()
    if terminal and format == "png":
        raise SetupError("a terminal cannot show a PNG: send it to a file, as with > cat.png")
    columns, lines = shutil.get_terminal_size()
    defaults: dict[str, object] = {"width": min(columns, WIDTHS[-1])}
    if terminal:
        defaults["height"] = max(1, lines - 1)  # a line is for the prompt
        defaults["colors"] = terminal_colors()
    view = make_view(format, {**defaults, **options}.get)
    if view.says == "-":
        view = view._replace(says=read_said())
    return view


def find_picture(source: str, view: View) -> Image.Image:
    """Return the house cat or other picture that `source` names, large enough for the view.

    Raises NoSuchCat, OSError, PictureError, SetupError and Unavailable.
    """
    seed = seed_of(source)
    if seed is not None:
        return draw_house_cat(seed)
    longest = max(6 * (view.width or COLUMNS), 12 * (view.height or 0))
    return read_picture(source, longest)


def complain(message: str) -> None:
    if sys.stderr:  # it is None if it was closed when Python started; then print() would choose standard output
        print(f"catscii: {message}", file=sys.stderr)


def discard_output() -> None:
    """Let what is written to standard output vanish, because Python flushes it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def shows_colours() -> bool:
    """Tell whether standard output is a terminal that shows colours, and the user does not forbid them."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return sys.stdout.isatty()


def terminal_colors() -> str:
    """Return which colours the environment promises, as in the parameter `colors`."""
    if os.environ.get("COLORTERM") in ("truecolor", "24bit"):
        return "true"
    if os.environ.get("TERM") == "linux":  # the console of Linux
        return "16"
    return "256"


def show_live(cat_id: str) -> int:
    """Show a house cat that moves until SIGINT or SIGTERM, or a still one where none can move. Return the status."""
    seed = seed_of(cat_id)
    if seed is None:
        complain(f"{quoted(cat_id)}: house cats are {HOUSE_CAT_IDS}")
        return 1
    if not shows_colours():
        complain("the cat keeps still: it moves in a terminal with colours only")
        return show_picture(cat_id, {})
    gc.enable()
    ending = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # a change that is being written must not be cut off
        signal.signal(number, lambda *_: ending.set())
    while not ending.is_set():
        play(seed, ending)
        write_out(b"\n" if ending.is_set() else CLEAR_SCREEN)
    return 0


def play(seed: int, ending: threading.Event) -> None:
    """Show a house cat that moves, until `ending` is set or the window changes its size."""
    window = shutil.get_terminal_size()
    height = max(1, window.lines - 2)  # one line tells what the cat is, and the cursor is on one
    view = View(min(window.columns, WIDTHS[-1]), height, colors=terminal_colors(), format="ansi")
    picture = draw_house_cat(seed)
    still = view.draw(picture)
    line = live_line(picture.info["description"], window.columns)
    write_out((to_ansi(still, view.colors) + line).encode())
    patches = {moment: draw_patch(seed, moment, picture, view.draw) for moment in PARTS_OF_MOMENTS}
    film = Film(seed, still, view.colors, patches)
    shown = STILL
    while not ending.is_set() and shutil.get_terminal_size() == window:
        moment = moment_of(seed, time.time())
        write_out(film.change(shown, moment))
        shown = moment
        time.sleep(LIVE_SECONDS)


def write_out(data: bytes) -> None:
    """Write all of the data to standard output, also if a signal comes."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def print_out(data: bytes) -> int:
    """Write the data to standard output, and return 0, or 1 if it cannot be written."""
    try:
        write_out(data)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # a reader such as head may stop early
            complain(f"standard output: {error.strerror}")
        discard_output()
        return 1
    return 0


def read_picture(source: str, longest: int) -> Image.Image:
    """Return the picture in a file, at a URL or, for "-", in standard input. See `decode` for `longest`.

    Raises OSError, PictureError, SetupError and Unavailable.
    """
    data = read_source(source)
    import_decoders(data)
    return decode_in_sandbox(data, longest, forked_sandbox)


def read_said() -> str:
    """Return the text in standard input, on one line. "..." ends a text that is too long. Raises SetupError."""
    with open(0, "rb") as file:
        words = file.read(1 << 16).decode("utf-8", "replace").split()
    text = " ".join(words)
    if len(text) > MAX_SAID:
        text = text[:MAX_SAID - 3].rstrip() + "..."
    try:
        return sayable(text)
    except ValueError as error:
        raise SetupError(f"--says: {error}") from None


def read_source(source: str) -> bytes:
    with Progress() as progress:
        if is_web_url(source):
            return download(source, progress)
        with open(0 if source == "-" else source, "rb") as file:
            return read_file(file, progress)


def download(url: str, progress: Progress) -> bytes:
    variables = {name: value for name, value in os.environ.items() if name.endswith("SSL_CERT_FILE")}
    fetcher = Fetcher(read_settings(variables).ssl_cert_file, [url])
    return fetcher.get(Request(url, MAX_PICTURE_BYTES, tell=progress.tell))


def read_file(file: io.BufferedReader, progress: Progress) -> bytes:
    total = os.fstat(file.fileno()).st_size or None  # 0 for a pipe
    data = bytearray()
    while part := file.read1(1 << 20):
        data += part
        if len(data) > MAX_FILE_BYTES:
            raise PictureError(f"it has more than {MAX_FILE_BYTES:,} bytes")
        progress.tell(len(data), total)
    if not data:
        raise PictureError("it is empty")
    return bytes(data)


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("catscii.py", usage="see catscii.py --help")
    parser.format_help = usage  # type: ignore[method-assign]
    parser.add_argument("--version", action="version", version=f"catscii {__version__}")
    for name in SETTINGS:
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=partial(refuse_setting, name.upper()))
    commands = parser.add_subparsers(dest="command", metavar="art|live")
    live = commands.add_parser("live", prog="catscii.py live")
    live.add_argument("picture", nargs="?", metavar="house-N", default="", help="a house cat (a random one)")
    art = commands.add_parser(
        "art",
        prog="catscii.py art",
        usage=f"catscii.py art [{SOURCES}] [OPTION ...]",
        description="Show a picture as coloured ASCII art. Defaults are in parentheses.",
        argument_default=argparse.SUPPRESS,
    )
    art.add_argument(
        "picture",
        nargs="?",
        metavar=SOURCES,
        default="",
        help="a file, an address, a house cat, or - for standard input (a random house cat)",
    )
    for name, parameter in PARAMETERS.items():
        art.add_argument(
            f"--{name}",
            metavar=value_names(parameter.values),
            type=partial(read_option, parameter.values),
            help=parameter.art,
        )
    return parser.parse_args(arguments)


def refuse_setting(name: str, value: str) -> NoReturn:
    """Tell that the environment, and not an option, has the setting."""
    raise argparse.ArgumentTypeError(f"the environment sets it, as in {name}={quoted(value)} catscii.py")


def read_option(choices: Choices, value: str) -> int | str:
    try:
        return one_of(value, choices)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(arguments: list[str]) -> int:
    """Return the exit status: 0, 1 for a picture that cannot be shown, 2 for a wrong command line or setting."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl+C ends the program without a traceback
    open_closed_streams()
    if "GATEWAY_INTERFACE" in os.environ:  # then the arguments may come from the query
        return serve_cgi()
    if arguments and sys.stdout is None:
        complain("standard output is closed")
        return 2
    if arguments in (["--help"], ["--version"]):  # argparse would take a fifth of their time
        texts = {"--help": usage(), "--version": f"catscii {__version__}\n"}
        return print_out(texts[arguments[0]].encode())
    try:
        if not arguments:  # the service need not import argparse
            return serve(read_settings(os.environ))
        options = parse_arguments(arguments)
        if options.command == "live":
            return show_live(options.picture or f"house-{random.randrange(HOUSE_CATS)}")
        if options.command == "art":
            return show_picture(options.picture, vars(options))
        return serve(read_settings(os.environ))
    except SetupError as error:
        for problem in error.args:
            complain(problem)
        return 2


def open_closed_streams() -> None:
    """Open standard streams that are closed, so that no other file is opened in the place of one."""
    file = 0
    while file <= 2:
        file = os.open(os.devnull, os.O_RDWR)
    os.close(file)


def end(status: int) -> NoReturn:
    """End the process, but do not free its memory, which takes a sixth of the time of `art` and of a CGI request."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream:  # it is None if it was closed when Python started
            try:
                stream.flush()
            except OSError:  # the disk is full, or nobody reads
                status = 1
    os._exit(status)


def start() -> NoReturn:
    """Run the command that Python was started with."""
    gc.disable()  # most commands end before the search for garbage pays; those that last enable it again
    end(main(sys.argv[1:]))


if __name__ == "__main__":
    start()
