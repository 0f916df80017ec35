"""Freeze the LQ of a validation image: a degradation that depends on a seed and the image's name, on nothing else.

So a frozen set can be made again, and does not change when images are added or removed.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor
from tqdm import tqdm

from osdhuman.data.degradation import Degradation, to_8_bits
from osdhuman.files import file_sha256, replacing
from osdhuman.images import SUFFIXES, ImageError, load_rgb, resize, save_png

_LOCK = Lock()


def freeze_lq(hq: Tensor, name: str, seed: int, degradation: Degradation, device: str = "cpu") -> Tensor:
    """LQ (3,H,W) in [0,1] of an HQ (3,H,W) in [0,1] that was rounded to 8 bits, as it is read from its file."""
    index = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    with one_thread():
        return degradation(hq[None].to(device), seed, [index])[0].cpu()


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch splits its sums by threads: with another number of them, pixels would differ by a level here and there.

    The number belongs to the whole process, so one caller at a time.
    """
    with _LOCK:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


KINDS = ("hq", "lq")
VERSIONS = ("numpy", "torch", "opencv-python-headless", "osdhuman")  # a change of these may move a rounding


def find_sources(folder: Path) -> dict[str, Path]:
    """Output name -> picture, sorted. Raises ValueError where two pictures would get the same name."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected one with HQ pictures")
    sources: dict[str, Path] = {}
    for source in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
        name = source.relative_to(folder).with_suffix(".png").as_posix()
        if name in sources:
            raise ValueError(f"{sources[name]} and {source} would both be written as {name}; rename one of them")
        sources[name] = source
    if not sources:
        raise ValueError(f"no pictures in {folder} (looked for {', '.join(SUFFIXES)})")
    return sources


def freeze_all(
    args: argparse.Namespace, sources: dict[str, Path], records: dict[str, dict], degradation: Degradation
) -> dict[str, str]:
    """Write every pair that is not there yet and add it to `records`; returns the pictures that failed and why."""
    bad = {}
    for name, source in tqdm(sources.items(), unit="image", disable=None):
        try:
            freeze(source, name, args, degradation)
            origin = {"source": source.relative_to(args.hq_folder).as_posix()}
            records.setdefault(
                name, origin | {f"{kind}_sha256": file_sha256(args.output / kind / name) for kind in KINDS}
            )
        except ImageError as error:
            bad[str(source)] = error.reason
        except (OSError, ValueError) as error:
            bad[str(source)] = str(error)
    return bad


def freeze(source: Path, name: str, args: argparse.Namespace, degradation: Degradation) -> None:
    """Write the pair of one picture unless it is there."""
    hq_path, lq_path = (args.output / kind / name for kind in KINDS)
    if hq_path.exists() and lq_path.exists():
        return
    hq = to_8_bits(centre_square(load_rgb(source), args.size)) / 255
    lq = freeze_lq(hq, name, args.seed, degradation, args.device)
    save_png(hq_path, hq)
    save_png(lq_path, lq)


def centre_square(image: Tensor, size: int) -> Tensor:
    """(3,H,W) -> (3,size,size): the largest centre square, shrunk; size 0 returns the picture whole."""
    if size == 0:
        return image
    height, width = image.shape[-2:]
    side = min(height, width)
    if side < size:
        raise ValueError(f"the shorter side has {side} pixels, expected at least {size}; choose a smaller --size")
    top, left = (height - side) // 2, (width - side) // 2
    return resize(image[None, :, top : top + side, left : left + side], (size, size))[0]


def read_manifest(output: Path, settings: dict) -> dict[str, dict]:
    """The records of an earlier run with the same settings, or none. Raises ValueError for other settings."""
    path = output / "manifest.json"
    if not path.exists():
        return {}
    manifest = json.loads(path.read_text(encoding="utf-8"))
    changed = [key for key in settings if manifest.get(key) != settings[key]]
    if changed:
        raise ValueError(f"{output} was made with another {' and '.join(changed)}; choose another --output")
    return manifest["pairs"]


def write_manifest(output: Path, settings: dict, records: dict[str, dict]) -> None:
    versions = {name: version(name) for name in VERSIONS}
    content = {**settings, "versions": versions, "pairs": dict(sorted(records.items()))}
    with replacing(output / "manifest.json") as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def verify(args: argparse.Namespace, records: dict[str, dict], degradation: Degradation) -> Iterator[tuple[str, str]]:
    """Every file that is missing, extra or changed, and every LQ that comes out differently now: (path, reason)."""
    found = {p.relative_to(args.output).as_posix() for kind in KINDS for p in (args.output / kind).rglob("*.png")}
    expected = {f"{kind}/{name}": record[f"{kind}_sha256"] for name, record in records.items() for kind in KINDS}
    yield from ((file, "is not in the manifest") for file in sorted(found - expected.keys()))
    yield from ((file, "is missing") for file in sorted(expected.keys() - found))
    for file in sorted(found & expected.keys()):
        if file_sha256(args.output / file) != expected[file]:
            yield file, "differs from the manifest's sha256"
    for name in tqdm(records, unit="image", disable=None):
        if {f"hq/{name}", f"lq/{name}"} <= found:
            hq, lq = (load_rgb(args.output / kind / name) for kind in KINDS)
            if not torch.equal(freeze_lq(hq, name, args.seed, degradation, args.device), lq):
                yield f"lq/{name}", "comes out differently with the libraries installed now"
