"""Comparison strips as in Figs. 8 and 9: one picture by every method, side by side, with zoomed boxes below.

Whole pictures are shrunk by Lanczos where they are too large for their column, never enlarged; boxes are enlarged by
a whole factor, each pixel becoming a square, so that nothing is smoothed that a method left rough. PNG and PDF hold
the same pixels; in the PDF the text is text.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from osdhuman.evaluation.config import EvalConfig, StripConfig
from osdhuman.evaluation.tables import title_of
from osdhuman.files import replacing
from osdhuman.images import load_rgb

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, half-open

GAP, LABEL = 6, 26  # pixels: between pictures, and of the line of text above them
COLUMN = 288  # pixels: the width of a column of pictures
COLORS = ("#e6194b", "#0082c8", "#f58231", "#3cb44b")  # of the boxes, in their order


def write_strips(config: EvalConfig) -> list[Path]:
    """Write figures/<set>_<image>.png and .pdf under `config.output`; returns their paths.

    A strip shows LQ, every method that has restored the picture, and HQ where there is one.
    """
    paths = []
    for strip in config.strips or _spread(config):
        pictures = strip_pictures(config, strip.set, strip.image)
        name = f"{strip.set}_{Path(strip.image).stem}"
        restored = [picture for label, picture in pictures.items() if label not in ("LQ", "HQ")]
        compared = restored if len(restored) > 1 else list(pictures.values())
        boxes = strip.boxes or (most_different_box(compared, COLUMN // config.zoom),)
        paths += draw_strip(pictures, boxes, config.zoom, config.output / "figures" / name)
    return paths


def _spread(config: EvalConfig) -> list[StripConfig]:
    """`strips_per_set` pictures of each set, evenly spaced over the sorted names."""
    return [
        StripConfig(set=name, image=image)
        for name, set_ in config.sets.items()
        for image in evenly_spaced(restored_names(config, name), config.strips_per_set)
    ]


def evenly_spaced(names: Sequence[str], count: int) -> list[str]:
    """`count` of the names, from the middles of as many equal parts."""
    count = min(count, len(names))
    return [names[int((i + 0.5) * len(names) / count)] for i in range(count)]


def restored_names(config: EvalConfig, set_: str) -> list[str]:
    """Sorted names (PNG, relative) of the pictures that every method with any has restored."""
    folders = [images_of(config, set_, method) for method in config.methods]
    found = [{p.relative_to(folder).as_posix() for p in folder.rglob("*.png")} for folder in folders if folder.is_dir()]
    found = [names for names in found if names]
    return sorted(set.intersection(*found)) if found else []


def images_of(config: EvalConfig, set_: str, method: str) -> Path:
    """Where a method's restored pictures of a set lie."""
    return config.methods[method].images.get(set_, config.output / "restored" / set_ / method)


def strip_pictures(config: EvalConfig, set_: str, image: str) -> dict[str, np.ndarray]:
    """Label -> uint8 RGB (H,W,3): LQ, the methods, HQ. ValueError if LQ has no such picture."""
    stem = Path(image).with_suffix("")
    places = {"LQ": config.sets[set_].lq}
    methods = {name: method for name, method in config.methods.items() if method.restorer != "input"}  # it is LQ
    places |= {title_of(name, method): images_of(config, set_, name) for name, method in methods.items()}
    places |= {"HQ": config.sets[set_].hq} if config.sets[set_].hq else {}
    found = {label: path for label, folder in places.items() if (path := picture_at(folder, stem))}
    if "LQ" not in found:
        raise ValueError(f"set {set_} has no picture {image} in {places['LQ']}; strips name pictures of the LQ folder")
    return {label: _pixels(path) for label, path in found.items()}


def picture_at(folder: Path, stem: Path) -> Path | None:
    """The picture of that name in `folder`, whatever its suffix."""
    from osdhuman.images import SUFFIXES

    names = (folder / f"{stem.as_posix()}{suffix}" for suffix in SUFFIXES)
    return next((name for name in names if name.is_file()), None)


def _pixels(path: Path) -> np.ndarray:
    return (load_rgb(path) * 255).round().byte().permute(1, 2, 0).numpy()


def most_different_box(pictures: Sequence[np.ndarray], side: int) -> Box:
    """The square box of about `side` pixels over which the grey values of (n,H,W,3) vary most from picture to picture.

    Boxes stand a quarter of their side apart; of equal ones the first, row by row. Pictures of another size than the
    first do not take part.
    """
    same = [picture for picture in pictures if picture.shape == pictures[0].shape]
    gray = np.stack([picture.astype(np.float32).mean(axis=-1) for picture in same])
    height, width = gray.shape[1:]
    side = min(side, height, width)
    sums = cv2.integral(gray.var(axis=0), sdepth=cv2.CV_64F)
    tops, lefts = (np.arange(0, length - side + 1, max(1, side // 4)) for length in (height, width))
    (y0, y1), (x0, x1) = ((starts, starts + side) for starts in (tops, lefts))
    inside = sums[np.ix_(y1, x1)] - sums[np.ix_(y0, x1)] - sums[np.ix_(y1, x0)] + sums[np.ix_(y0, x0)]
    row, column = np.unravel_index(inside.argmax(), inside.shape)
    x, y = int(lefts[column]), int(tops[row])
    return x, y, x + side, y + side


def draw_strip(pictures: Mapping[str, np.ndarray], boxes: Sequence[Box], zoom: int, path: Path) -> list[Path]:
    """Write `path`.png and `path`.pdf: one column for each picture (label -> uint8 RGB (H,W,3)), one row for each box.

    Raises ValueError for a box that is empty or outside the first picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    size = next(iter(pictures.values())).shape[:2]
    for box in boxes:
        _require_inside(box, size)
    columns = [_column(picture, boxes, zoom) for picture in pictures.values()]
    widths, heights = zip(*[(tile.shape[1], tile.shape[0]) for tile in columns[0]], strict=True)
    cell, height = max(widths), LABEL + sum(heights) + GAP * len(boxes)
    width = len(columns) * (cell + GAP) - GAP
    dpi = 100
    figure = Figure((width / dpi, height / dpi), dpi=dpi, facecolor="white")
    scale = widths[0] / size[1]
    for i, (label, tiles) in enumerate(zip(pictures, columns, strict=True)):
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


def _column(picture: np.ndarray, boxes: Sequence[Box], zoom: int) -> list[np.ndarray]:
    """The whole picture at the column's width at most, then each box enlarged."""
    height, width = picture.shape[:2]
    whole = Image.fromarray(picture)
    if width > COLUMN:
        whole = whole.resize((COLUMN, max(1, round(height * COLUMN / width))), Image.Resampling.LANCZOS)
    crops = [picture[y0:y1, x0:x1] for x0, y0, x1, y1 in boxes]
    return [np.asarray(whole), *(crop.repeat(zoom, axis=0).repeat(zoom, axis=1) for crop in crops)]


def _require_inside(box: Box, size: tuple[int, int]) -> None:
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0]):
        raise ValueError(
            f"box {box} does not lie in the picture of {size[1]}x{size[0]} pixels (x0, y0, x1, y1, half-open)"
        )


def _save(figure, path: Path, dpi: int) -> Path:
    kind = path.suffix.removeprefix(".")
    with replacing(path) as part:  # no date inside: the same pictures give the same file
        figure.savefig(part, format=kind, dpi=dpi, metadata={"CreationDate": None} if kind == "pdf" else None)
    return path
