"""How many pictures a second one core cuts: read, decode, Laplacian, crop, resize; beside the plain Pillow loop.

    python benchmarks/curate.py PHOTOGRAPHS --json benchmarks/results/curate.json

PHOTOGRAPHS is a folder of JPEGs; the box of each is the largest square in its middle. They are measured as they are,
and at the size of a camera: enlarged to 4000 pixels and saved again as JPEG (synthetic: their finest structure is that
of the small ones, so their files are smaller and faster to decode than a camera's).

All rows do eight pictures in turn, in one process of one thread, so that a busy machine slows all alike; `cpu ms`
counts only the time in which the process really ran. The Pillow loop decodes everything and measures the Laplacian at
full size; ours also checks, judges the box and hashes the file. The scaling counts wall time, without the workers'
start, and wants a machine that does nothing else; `--workers` without a number leaves it out.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from measure import machine, markdown, write_json
from PIL import Image

from osdhuman.curate.crops import CutConfig, cut
from osdhuman.curate.record import Box, ImageRecord

CAMERA = 4000  # pixels of the longer side
TURN = 8  # pictures that a row does before the next row's turn
CONFIG = CutConfig(min_side=1, decode={"keep_gray": True})  # nothing may be dropped
UNREDUCED = CutConfig(min_side=1, decode={"keep_gray": True, "reduced": False})


def main() -> int:
    args = parse_arguments()
    one_thread()
    paths = sorted(args.photographs.glob("*.jpg"))[:: args.every][: args.images]
    records = [record_of(path) for path in paths]
    results = measure("as they are", args.photographs, records, args.rounds)
    with tempfile.TemporaryDirectory() as folder:
        enlarged = [record_of(enlarge(path, Path(folder))) for path in paths[: args.cameras]]
        results += measure("camera", Path(folder), enlarged, args.rounds)
    print(markdown(results))
    scaling = [scale(workers, args.photographs, records, args.rounds) for workers in args.workers]
    if scaling:
        print("\n" + markdown(scaling))
    if args.json:
        write_json(args.json, {"machine": machine("cpu", 1), "results": results, "scaling": scaling})
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--images", type=int, default=100, help="at most so many, ...")
    parser.add_argument("--every", type=int, default=8, help="... every so manieth of the folder")
    parser.add_argument("--cameras", type=int, default=10, help="how many of them are enlarged")
    parser.add_argument("--rounds", type=int, default=3, help="the fastest counts")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not any(args.photographs.glob("*.jpg")):
        sys.exit(f"expected a folder of .jpg photographs, found none in {args.photographs}")
    return args


def one_thread() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def enlarge(path: Path, folder: Path) -> Path:
    with Image.open(path) as image:
        scale = CAMERA / max(image.size)
        size = tuple(round(side * scale / 8) * 8 for side in image.size)
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(folder / path.name, quality=92)
    return folder / path.name


def record_of(path: Path) -> ImageRecord:
    with Image.open(path) as image:
        width, height = image.size
    side = min(width, height)
    x, y = (width - side) // 2, (height - side) // 2
    return ImageRecord("benchmark", path.name, path.stem, (Box(x, y, x + side, y + side),), width=width, height=height)


# ----------------------------------------------------------------------------------------------------------- the rows


def ours(record: ImageRecord, root: Path, config: CutConfig = CONFIG) -> np.ndarray:
    (crop,) = cut(record, root, config, threshold=0).crops.values()
    return crop


def plain(record: ImageRecord, root: Path, kernel: Image.Resampling) -> tuple[float, np.ndarray]:
    """The loop as one would write it, with the fastest of the Laplacians at hand (Pillow's and SciPy's are slower)."""
    with Image.open(root / record.file) as image:
        image = image.convert("RGB")
    gray = np.asarray(image.convert("L"), np.float32)
    middle, up, down, left, right = (
        gray[rows, columns]
        for rows, columns in [
            (slice(1, -1), slice(1, -1)),
            (slice(None, -2), slice(1, -1)),
            (slice(2, None), slice(1, -1)),
            (slice(1, -1), slice(None, -2)),
            (slice(1, -1), slice(2, None)),
        ]
    )
    sharpness = (up + down + left + right - 4 * middle).var()
    crop = image.crop(record.boxes[0][:4]).resize((CONFIG.size, CONFIG.size), kernel)
    return float(sharpness), np.asarray(crop)


ROWS: dict[str, Callable[[ImageRecord, Path], object]] = {
    "ours": ours,
    "ours, nothing reduced": partial(ours, config=UNREDUCED),
    "Pillow, bicubic as ours": partial(plain, kernel=Image.Resampling.BICUBIC),
    "Pillow, Lanczos": partial(plain, kernel=Image.Resampling.LANCZOS),
}


def seconds_of(function: Callable[[ImageRecord, Path], object], records: list[ImageRecord], root: Path) -> float:
    start = time.process_time()
    for record in records:
        function(record, root)
    return time.process_time() - start


def measure(name: str, root: Path, records: list[ImageRecord], rounds: int) -> list[dict]:
    """One result per row: processor's milliseconds a picture in the fastest round, and how often ours is faster."""
    fastest = dict.fromkeys(ROWS, float("inf"))
    for _ in range(rounds + 1):  # the first round warms up, unless it is the fastest
        spent = dict.fromkeys(ROWS, 0.0)
        for start in range(0, len(records), TURN):
            for row, function in ROWS.items():
                spent[row] += seconds_of(function, records[start : start + TURN], root)
        fastest = {row: min(fastest[row], spent[row]) for row in ROWS}
    pixels = float(np.mean([record.width * record.height for record in records])) / 1e6
    return [
        {
            "pictures": f"{name} ({len(records)} of {pixels:.2g} MP)",
            "row": row,
            "cpu ms": 1e3 * seconds / len(records),
            "pictures/s": len(records) / seconds,
            "ours is faster": seconds / fastest["ours"],
        }
        for row, seconds in fastest.items()
    ]


# ------------------------------------------------------------------------------------------------------------ scaling


def scale(workers: int, root: Path, records: list[ImageRecord], rounds: int) -> dict:
    """Pictures a second of wall time with so many processes, fastest round."""
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), one_thread) as pool:
        work = partial(_all, root=root)
        chunks = [records[start :: 4 * workers] for start in range(4 * workers)]
        list(pool.map(work, chunks))  # the start of the processes, and their imports
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            list(pool.map(work, chunks))
            seconds.append(time.perf_counter() - start)
    return {"workers": workers, "pictures/s": len(records) / min(seconds)}


def _all(records: list[ImageRecord], root: Path) -> None:
    for record in records:
        ours(record, root)


if __name__ == "__main__":
    sys.exit(main())
