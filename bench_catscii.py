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
#     "ascii_magic",
#     "chafa.py",
#     "climage",
#     "matplotlib",
#     "numpy",
#     "scikit-image",
# ]
# [tool.uv]
# exclude-newer = "2026-11-01T00:00:00Z"
# ///
"""Measures catscii beside its peers, and regenerates its table of glyphs.

    uv run bench_catscii.py art PICTURE...    quality, size and speed of art at 80 columns
    uv run bench_catscii.py coverage          the COVERAGE literal of catscii.py

art runs all renderers by turns, on the pictures given and on four house cats. A row has the means over these pictures:
ssim (luma, 7 x 7 windows) and psnr (colours blurred by 6 pixels) of the art, drawn with DejaVu Sans Mono in cells of
10 x 20 pixels, against the picture; corr (luma blurred by 5 pixels); the share of inked cells (a glyph, 8 levels or
more from its background); the bytes printed; the median time, and its ratio to the floor: Pillow's draft + convert +
resize to 4 x 8 samples a cell.
Peers that are not installed (chafa and jp2a are programs) are left out.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import io
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

import catscii

ROUNDS = 7
Colour = tuple[int, int, int]
Cell = tuple[str, Colour, Colour]


def font_path() -> Path:
    """DejaVu Sans Mono, which matplotlib brings along."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec and spec.origin
    return Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSansMono.ttf"


def coverage() -> bytes:
    """How much ink each printable ASCII glyph has in the 10 x 20 parts of its cell: 0 to 3 a part, row by row.

    The font is drawn at 16 pixels, in cells of 10 x 20.
    """
    font, levels = ImageFont.truetype(font_path(), 16), bytearray()
    for code in range(32, 127):
        cell = Image.new("L", (10, 20))
        ImageDraw.Draw(cell).text((0, 0), chr(code), font=font, fill=255)
        levels += bytes((level + 42) // 85 for level in cell.tobytes())
    return bytes(levels)


def print_coverage() -> None:
    literal = base64.b85encode(zlib.compress(coverage(), 9)).decode()
    print('COVERAGE = """', *(literal[i : i + 118] for i in range(0, len(literal), 118)), '"""', sep="\n")


def catscii_in_process(style: str) -> Callable[[Path], str]:
    return lambda path: catscii.to_ansi(catscii.render(catscii.decode(path.read_bytes(), 6 * 80), style=style))


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
    return lambda path: subprocess.run([*command.split(), path], capture_output=True, check=True).stdout.decode()


RENDERERS: dict[str, Callable[[Path], str]] = {
    "floor": floor,
    "catscii fill": catscii_in_process("fill"),
    "catscii ink": catscii_in_process("ink"),
    "chafa (in-process)": chafa_in_process,
    "chafa (process)": process("chafa -f symbols --symbols ascii -c full -s 80x200 --animate off"),
    "jp2a (process)": process("jp2a --colors --fill --color-depth=24 --width=80 --background=dark"),
    "ascii_magic": ascii_magic_in_process,
    "climage": climage_in_process,
}


def parse(text: str) -> list[list[Cell]]:
    """ANSI text with 16 or 24-bit colours as rows of (character, foreground, background)."""
    basic = [tuple(80 * (code >> 3) + 170 * (code >> bit & 1) for bit in range(3)) for code in range(16)]
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
                    case [(7 | 27) as code, *values]:
                        inverse = code == 7
                    case [0, *values]:
                        colours, inverse = list(default), False
                    case [code, *values] if 30 <= code <= 49 and code % 10 < 8:
                        colours[code >= 40] = basic[code % 10]
                    case [code, *values] if 90 <= code <= 97:
                        colours[0] = basic[code - 82]
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
    """The rows as a terminal would show them."""
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


def score(text: str, path: Path) -> tuple[float, float, float, float]:
    """SSIM, PSNR, correlation and the share of inked cells."""
    import numpy as np
    from skimage.metrics import structural_similarity

    rows = parse(text)
    drawn = draw(rows)
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB").resize(drawn.size, Image.Resampling.LANCZOS)
    a, b = (np.asarray(image.convert("L")) for image in (picture, drawn))
    x, y = (np.asarray(image.filter(ImageFilter.GaussianBlur(6)), float) for image in (picture, drawn))
    cells = [cell for row in rows for cell in row]
    inked = sum(char != " " and max(abs(p - q) for p, q in zip(f, g, strict=True)) >= 8 for char, f, g in cells)
    psnr = 10 * np.log10(255**2 / max(((x - y) ** 2).mean(), 1e-9))
    soft = [np.asarray(image.convert("L").filter(ImageFilter.GaussianBlur(5))).ravel() for image in (picture, drawn)]
    return structural_similarity(a, b, data_range=255), psnr, np.corrcoef(*soft)[0, 1], inked / len(cells)


def compare(pictures: list[Path]) -> None:
    """Print the table."""
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
                if turn:  # the first is to warm up
                    taken.setdefault(name, []).append(time.perf_counter() - start)
                elif text:
                    figures.setdefault(name, []).append((*score(text, path), len(text.encode())))
        for name in taken:
            times.setdefault(name, []).append(statistics.median(taken[name]))
    print(f"{len(pictures)} pictures\n\n| | ssim | psnr | corr | inked | bytes | ms | x floor |\n|{'---|' * 8}")
    for name in RENDERERS:
        means = [statistics.fmean(column) for column in zip(*figures.get(name, []), strict=True)]
        quality = "{:.3f} | {:.1f} | {:.3f} | {:.2f} | {:,.0f}".format(*means) if means else " | | | | "
        spent, least = statistics.fmean(times[name]), statistics.fmean(times["floor"])
        print(f"| {name} | {quality} | {1e3 * spent:.1f} | {spent / least:.2f} |")


def main(arguments: list[str]) -> None:
    match arguments:
        case ["art", *pictures]:
            with tempfile.TemporaryDirectory() as folder:
                house_cats = [Path(folder, f"house-{seed}.png") for seed in range(4)]
                for seed, path in enumerate(house_cats):
                    catscii.draw_house_cat(seed).save(path)
                compare([*map(Path, pictures), *house_cats])
        case ["coverage"]:
            print_coverage()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
