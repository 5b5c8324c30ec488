"""Style that all pictures share: names, lines, colour scales and files; equal input gives equal bytes."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from PIL import Image

from fieldcast.pipeline.datasets.labels import COLOURS, without_mathematics
from fieldcast.pipeline.datasets.schema import RAIN_RATE_UNITS

Styles = Mapping[str, dict[str, Any]]  # model -> keywords of a matplotlib line

MISSING = "#c4c4c4"
INK, SOFT, FAINT = "#222222", "#555555", "#dddddd"
RAIN_LEVELS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)  # mm/h
# ever darker, and 9.9 or more apart (CIEDE2000) for readers who lack red or green receptors too
RAIN_COLOURS = ("#bce5f5", "#91ccf9", "#31aeff", "#6695b8", "#5678d1", "#7f4493", "#831858", "#71002a")
RAIN_UNDER, RAIN_OVER = "#ffffff", "#2f1500"
RAIN_STEPS = (0.5, 1.0, 2.0, 5.0, 10.0)  # mm/h of a difference, to either side
LINES = ("-", "-.", ":")  # for models that share a spare colour
DASHES = ((0, (4, 1.5)), (0, (1.2, 1.2)), (0, (7, 1.5, 1.2, 1.5)))  # for references that do
GIF_MILLISECONDS = 450
WEBP_QUALITY = 75
MEDIA = {".png": "image/png", ".gif": "image/gif", ".webp": "image/webp"}


def spread_out(count: int, length: int) -> list[int]:
    """Return at most `count` indices spread evenly over `length`, the last one included."""
    return sorted({round((k + 1) * length / count) - 1 for k in range(count)} - {-1})


def model_styles(names: Sequence[str], references: Sequence[str]) -> Styles:
    """Return the line that is a model's own in every picture of a comparison of `names`; references are dashed.

    Names without a fixed colour get spare ones, which hang on what other such names there are.
    """
    others = [name for name in sorted(names) if name not in COLOURS]
    styles = {}
    for name in names:
        turn, spare = divmod(others.index(name), len(SPARE_COLOURS)) if name in others else (0, 0)
        dashed = name in references
        styles[name] = {
            "color": COLOURS.get(name, SPARE_COLOURS[spare]),
            "linestyle": DASHES[turn % len(DASHES)] if dashed else LINES[turn % len(LINES)],
            "linewidth": 1.4 if dashed else 2.2,
            "zorder": 2 if dashed else 3,
        }
    return styles


def colour_scale(observed: xr.DataArray) -> tuple[Colormap, Normalize]:
    """Return the colours of a field: steps for a rain rate, else viridis over the range that was observed."""
    if observed.attrs.get("units") == RAIN_RATE_UNITS:
        steps = ListedColormap(list(RAIN_COLOURS), name="rain").with_extremes(
            under=RAIN_UNDER, over=RAIN_OVER, bad=MISSING
        )
        return steps, BoundaryNorm(RAIN_LEVELS, len(RAIN_COLOURS))
    finite = observed.values[np.isfinite(observed.values)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
    return colormaps["viridis"].with_extremes(bad=MISSING), Normalize(low, high if high > low else low + 1.0)


def difference_scale(differences: Sequence[xr.DataArray]) -> tuple[Colormap, BoundaryNorm]:
    """Return the colours of forecast minus observed: steps to either side of white, the same for all `differences`.

    Five steps of a rain rate, else five equal ones to the 99th percentile of all absolute values.
    """
    first = differences[0]
    rain = first.attrs.get("units") == RAIN_RATE_UNITS
    steps = np.asarray(RAIN_STEPS)
    if not rain:
        values = np.abs(np.concatenate([array.values[np.isfinite(array.values)] for array in differences]))
        steps = np.arange(1, 6) * _round_step(float(np.percentile(values, 99)) / 5 if values.size else 0.0)
    levels = [*(-steps[::-1]), *steps]
    colours = colormaps["BrBG" if rain else "RdBu_r"].resampled(len(levels) + 1).with_extremes(bad=MISSING)
    return colours, BoundaryNorm(levels, len(levels) + 1, extend="both")


def _round_step(step: float) -> float:
    """Return the smallest of 1, 2, 2.5, 5 and 10 times a power of ten that is at least `step`; 1 for 0."""
    if step <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= step * (1 - 1e-9))


def write_png(figure: Figure, path: Path) -> None:
    """Write `figure` with at most 256 colours, which take a third of the room; equal figures are equal bytes."""
    write_pixels(pixels(FigureCanvasAgg(figure)), path)


def write_pixels(picture: np.ndarray, path: Path) -> None:
    """Write a picture `(height, width, 3)` uint8 as PNG of at most 256 colours; with opacity, `(…, 4)`, of all."""
    image = Image.fromarray(picture)
    if image.mode == "RGB":
        image = image.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    image.save(path, format="PNG", optimize=True)


def stacked(paths: Sequence[Path]) -> np.ndarray:
    """Return picture files one above the other `(height, width, 3)` uint8, white where one is narrower."""
    pictures = []
    for path in paths:
        with Image.open(path) as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
    width = max(picture.shape[1] for picture in pictures)
    gaps = [((0, 0), (0, width - picture.shape[1]), (0, 0)) for picture in pictures]
    return np.concatenate([np.pad(one, gap, constant_values=255) for one, gap in zip(pictures, gaps, strict=True)])


def write_gif(frames: Sequence[np.ndarray], path: Path) -> None:
    """Write pictures `(height, width, 3)` as an endless animation; the last one is held."""
    durations = [GIF_MILLISECONDS] * (len(frames) - 1) + [4 * GIF_MILLISECONDS]
    timing = durations if len(frames) > 1 else GIF_MILLISECONDS  # one frame takes no list
    iio.imwrite(path, np.stack(frames), extension=".gif", duration=timing, loop=0)


def webp(picture: np.ndarray) -> bytes:
    """Return a picture `(height, width, 3)` uint8 as WebP: as it is, or with loss where that takes less room."""
    image, files = Image.fromarray(picture), []
    for options in ({"lossless": True, "quality": 100}, {"quality": WEBP_QUALITY}):
        stream = io.BytesIO()
        image.save(stream, format="WEBP", method=4, **options)
        files.append(stream.getvalue())
    return min(files, key=len)


def pixels(canvas: FigureCanvasAgg) -> np.ndarray:
    """Return what is drawn on `canvas`, `(height, width, 3)` uint8."""
    without_mathematics(canvas.figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def data_address(path: Path) -> str:
    """Return the content of a picture file as a `data:` address."""
    return f"data:{MEDIA[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


SPARE_COLOURS = ("#a6761d", "#17becf", "#e0218a", "#8fce00")
