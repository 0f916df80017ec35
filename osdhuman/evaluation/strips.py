"""Comparison strips as in Figs. 8 and 9: one image by every method, side by side, with zoomed boxes below.

Whole images are shrunk by Lanczos where they are too large for their column, never enlarged; boxes are enlarged by a
whole factor, each pixel becoming a square, so that artifacts stay visible. PNG and PDF hold the same pixels; in the PDF
the text is text.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from osdhuman.evaluation.config import EvalConfig, StripConfig, title_of
from osdhuman.evaluation.image_folders import by_stem, common_stems, evenly_spaced, images_of
from osdhuman.files import replacing
from osdhuman.images import load_rgb

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, half-open

GAP, LABEL = 6, 26  # pixels: between images, and of the line of text above them
COLUMN = 288  # pixels: the width of a column of images
NAME_LENGTH = 200  # bytes of a strip's name without suffix; file systems take 255
COLORS = ("#e6194b", "#0082c8", "#f58231", "#3cb44b")  # of the boxes, in their order


def write_strips(config: EvalConfig) -> list[Path]:
    """Write figures/<set>_<image>.png and .pdf under `config.output`; returns their paths.

    A strip shows LQ, every method that has restored the image, and HQ where there is one.
    """
    paths = []
    for strip in config.strips or _spread(config):
        images = strip_images(config, strip.set, strip.image)
        restored = [image for label, image in images.items() if label not in ("LQ", "HQ")]
        compared = restored if len(restored) > 1 else list(images.values())
        boxes = strip.boxes or (most_different_box(compared, COLUMN // config.zoom),)
        name = file_name(f"{strip.set}_{Path(strip.image).name.removesuffix('.png')}")
        paths += draw_strip(images, boxes, config.zoom, config.output / "figures" / name)
    return paths


def file_name(name: str) -> str:
    """`name`, or where it is too long for a file its beginning and a hash of it."""
    data = os.fsencode(name)
    if len(data) <= NAME_LENGTH:
        return name
    return f"{data[: NAME_LENGTH - 17].decode('utf-8', 'ignore')}_{hashlib.sha256(data).hexdigest()[:16]}"


def _spread(config: EvalConfig) -> list[StripConfig]:
    """`strips_per_set` images of each set, evenly spaced over the sorted names."""
    return [
        StripConfig(set=name, image=f"{stem}.png")
        for name in config.sets
        for stem in evenly_spaced(common_stems(config, name), config.strips_per_set)
    ]


def strip_images(config: EvalConfig, set_: str, image: str) -> dict[str, np.ndarray]:
    """Label -> uint8 RGB (H,W,3): LQ, the methods, HQ. ValueError if LQ has no such image."""
    places = {"LQ": config.sets[set_].lq}
    methods = {name: method for name, method in config.methods.items() if method.restorer != "input"}  # it is LQ
    places |= {title_of(name, method): images_of(config, set_, name) for name, method in methods.items()}
    places |= {"HQ": config.sets[set_].hq}
    folders = {label: by_stem(folder) for label, folder in places.items()}
    stem = image if image in folders["LQ"] else Path(image).with_suffix("").as_posix()
    if stem not in folders["LQ"]:
        raise ValueError(f"set {set_} has no image {image} in {places['LQ']}; strips name images of the LQ folder")
    return {label: _pixels(images[stem]) for label, images in folders.items() if stem in images}


def _pixels(path: Path) -> np.ndarray:
    return (load_rgb(path) * 255).round().byte().permute(1, 2, 0).numpy()


def most_different_box(images: Sequence[np.ndarray], side: int) -> Box:
    """The square box of about `side` pixels over which the grey values of images (H,W,3) vary most between them.

    Boxes stand a quarter of their side apart; of equal ones the first, row by row. Pictures of another size than the
    first do not take part.
    """
    same = [image for image in images if image.shape == images[0].shape]
    gray = np.stack([image.astype(np.float32).mean(axis=-1) for image in same])
    height, width = gray.shape[1:]
    side = min(side, height, width)
    sums = cv2.integral(gray.var(axis=0), sdepth=cv2.CV_64F)
    tops, lefts = (np.arange(0, length - side + 1, max(1, side // 4)) for length in (height, width))
    (y0, y1), (x0, x1) = ((starts, starts + side) for starts in (tops, lefts))
    inside = sums[np.ix_(y1, x1)] - sums[np.ix_(y0, x1)] - sums[np.ix_(y1, x0)] + sums[np.ix_(y0, x0)]
    row, column = np.unravel_index(inside.argmax(), inside.shape)
    x, y = int(lefts[column]), int(tops[row])
    return x, y, x + side, y + side


def draw_strip(images: Mapping[str, np.ndarray], boxes: Sequence[Box], zoom: int, path: Path) -> list[Path]:
    """Write `path`.png and `path`.pdf: one column for each image (label -> uint8 RGB (H,W,3)), one row for each box.

    Raises ValueError for a box that is empty or outside the first image.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    size = next(iter(images.values())).shape[:2]
    for box in boxes:
        _require_inside(box, size)
    columns = [_column(image, boxes, zoom) for image in images.values()]
    widths, heights = zip(*[(tile.shape[1], tile.shape[0]) for tile in columns[0]], strict=True)
    cell, height = max(widths), LABEL + sum(heights) + GAP * len(boxes)
    width = len(columns) * (cell + GAP) - GAP
    dpi = 100
    figure = Figure((width / dpi, height / dpi), dpi=dpi, facecolor="white")
    scale = widths[0] / size[1]
    for i, (label, tiles) in enumerate(zip(images, columns, strict=True)):
        left, top = i * (cell + GAP), LABEL
        figure.text((left + cell / 2) / width, 1 - LABEL / 2 / height, label, ha="center", va="center", fontsize=9)
        for j, tile in enumerate(tiles):
            rows, cols = tile.shape[:2]
            axes = figure.add_axes((left / width, 1 - (top + rows) / height, cols / width, rows / height))
            axes.imshow(tile, interpolation="none", aspect="auto")
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(visible=j > 0, color=COLORS[(j - 1) % len(COLORS)], linewidth=2)
            for k, (x0, y0, x1, y1) in enumerate(boxes if j == 0 else ()):
                corner, sides = (x0 * scale - 0.5, y0 * scale - 0.5), ((x1 - x0) * scale, (y1 - y0) * scale)
                axes.add_patch(Rectangle(corner, *sides, fill=False, color=COLORS[k % len(COLORS)], linewidth=1.5))
            top += rows + GAP
    return [_save(figure, path.with_name(path.name + suffix), dpi) for suffix in (".png", ".pdf")]


def _column(image: np.ndarray, boxes: Sequence[Box], zoom: int) -> list[np.ndarray]:
    """The whole image at the column's width at most, then each box enlarged."""
    height, width = image.shape[:2]
    whole = Image.fromarray(image)
    if width > COLUMN:
        whole = whole.resize((COLUMN, max(1, round(height * COLUMN / width))), Image.Resampling.LANCZOS)
    crops = [image[y0:y1, x0:x1] for x0, y0, x1, y1 in boxes]
    return [np.asarray(whole), *(crop.repeat(zoom, axis=0).repeat(zoom, axis=1) for crop in crops)]


def _require_inside(box: Box, size: tuple[int, int]) -> None:
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0]):
        raise ValueError(
            f"box {box} does not lie in the image of {size[1]}x{size[0]} pixels (x0, y0, x1, y1, half-open)"
        )


def _save(figure, path: Path, dpi: int) -> Path:
    kind = path.suffix.removeprefix(".")
    with replacing(path) as part:  # no date inside: the same images give the same file
        figure.savefig(part, format=kind, dpi=dpi, metadata={"CreationDate": None} if kind == "pdf" else None)
    return path
