"""Frozen validation sets: pairs of HQ and LQ whose degradation depends on a seed and the image's name, nothing else.

So a frozen set can be made again, and does not change when images are added or removed. In its folder are hq/ and lq/
(PNG, same names), manifest.json (settings, versions, the sha256 of every file) and, where images have no pair,
not_frozen.jsonl.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from osdhuman.config import Config
from osdhuman.data.degradation import Degradation, DegradationConfig, to_8_bits
from osdhuman.files import disk_is_full, file_sha256, printable, replacing
from osdhuman.folders import Unlisted, list_images
from osdhuman.images import ImageError, load_rgb, resize, save_png
from osdhuman.result_names import result_names
from osdhuman.resume import differences
from osdhuman.summary import Summary

KINDS = ("hq", "lq")
VERSIONS = ("numpy", "torch", "opencv-python-headless", "osdhuman")  # a change of these may move a rounding
MANIFEST, NOT_FROZEN = "manifest.json", "not_frozen.jsonl"
_LOCK = Lock()


class PairsConfig(Config):
    """How pairs are made."""

    size: int = Field(512, ge=0)  # side of the centre square in pixels; 0 keeps images whole
    seed: int = Field(0, ge=0)
    device: str = "cpu"  # where the degradation is computed
    degradation: DegradationConfig = DegradationConfig()

    def recorded(self) -> dict[str, Any]:
        """What the manifest holds, and what a later run in the same folder must agree with."""
        return {"seed": self.seed, "size": self.size, "config": self.degradation.model_dump(mode="json")}


@dataclass
class FrozenSet:
    """What a run has made: the manifest's record of each pair by name, and the images without one."""

    records: dict[str, dict[str, str]] = field(default_factory=dict)
    failed: Summary = field(default_factory=Summary)
    unlisted: Summary = field(default_factory=Summary)  # files that are no images
    full: bool = False  # no space was left: the rest was not tried

    @property
    def not_frozen(self) -> Summary:
        """Everything without a pair, by reason."""
        summary = Summary()
        for path, reason in [*self.failed.entries, *self.unlisted.entries]:
            summary.add(path, reason)
        return summary


# --------------------------------------------------------------------------------------------------------- one image


def freeze_lq(hq: Tensor, name: str, seed: int, degradation: Degradation, device: str = "cpu") -> Tensor:
    """LQ (3,H,W) in [0,1] of an HQ (3,H,W) in [0,1] that was rounded to 8 bits, as it is read from its file."""
    index = int(hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8], 16)
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


def centre_square(image: Tensor, size: int) -> Tensor:
    """(3,H,W) -> (3,size,size): the largest centre square, shrunk; size 0 returns the image whole."""
    if size == 0:
        return image
    height, width = image.shape[-2:]
    side = min(height, width)
    if side < size:
        raise ValueError(f"the shorter side has {side} pixels, expected at least {size}; choose a smaller --size")
    top, left = (height - side) // 2, (width - side) // 2
    return resize(image[None, :, top : top + side, left : left + side], (size, size))[0]


# ------------------------------------------------------------------------------------------------------------ the set


def find_sources(folder: Path, output: Path) -> tuple[dict[str, Path], list[Unlisted]]:
    """Output name -> image, for every image below `folder` but not below `output`; and what is not listed.

    `a.jpg` becomes `a.png`; `result_names` says what becomes of several images that would share it. Raises
    FileNotFoundError if there is no image.
    """
    images, unlisted = list_images(folder, skip=(output,))
    if not images:
        raise FileNotFoundError(f"no image in {printable(folder.absolute())}")
    by_name = {image.relative_to(folder): image for image in images}
    results = result_names(by_name)
    return {results[name].as_posix(): image for name, image in by_name.items()}, unlisted


def freeze_all(folder: Path, output: Path, config: PairsConfig, frozen: FrozenSet) -> None:
    """Write the pair of every image below `folder` that `output` lacks, and its manifest.

    `frozen` holds the records of earlier runs and is filled as the run goes. An image that cannot be read, or whose
    pair cannot be written, is noted and stops nothing; a full disk ends the run. Errors: those of `find_sources`.
    """
    sources, unlisted = find_sources(folder, output)
    for path, reason in unlisted:
        frozen.unlisted.add(path, reason)
    write_manifest(output, config, frozen.records)  # from now on the folder belongs to these settings
    degradation = Degradation(config.degradation)
    for name, source in tqdm(sources.items(), unit="image", disable=None):
        try:
            _add(name, source, source.relative_to(folder).as_posix(), output, config, degradation, frozen)
        except (OSError, ValueError, MemoryError) as error:
            frozen.failed.add(source, _reason(error))
            if disk_is_full(error):
                frozen.full = True
                return
    write_manifest(output, config, frozen.records)
    frozen.not_frozen.write(output / NOT_FROZEN)


def _add(
    name: str,
    source: Path,
    relative: str,
    output: Path,
    config: PairsConfig,
    degradation: Degradation,
    frozen: FrozenSet,
) -> None:
    known = frozen.records.get(name)
    if known is not None and known["source"] != relative:
        raise ValueError(
            f"its pair {printable(name)} was made from {printable(known['source'])}; choose another output"
        )
    freeze(source, name, output, config, degradation)
    if known is None:
        sums = {f"{kind}_sha256": file_sha256(output / kind / name) for kind in KINDS}
        frozen.records[name] = {"source": relative} | sums


def freeze(source: Path, name: str, output: Path, config: PairsConfig, degradation: Degradation) -> None:
    """Write the pair of one image unless it exists."""
    hq_path, lq_path = (output / kind / name for kind in KINDS)
    if hq_path.exists() and lq_path.exists():
        return
    hq = to_8_bits(centre_square(load_rgb(source), config.size)) / 255
    lq = freeze_lq(hq, name, config.seed, degradation, config.device)
    save_png(hq_path, hq)
    save_png(lq_path, lq)


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "does not fit into the memory"
    return error.reason if isinstance(error, ImageError) else str(error)


# ------------------------------------------------------------------------------------------------------- the manifest


def read_manifest(output: Path, config: PairsConfig) -> dict[str, dict[str, str]] | None:
    """The records of an earlier run with the same settings; None if there was none.

    Raises ValueError for other settings, each named with both values, and for a manifest that is damaged.
    """
    path = output / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        _check_records(manifest["pairs"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{printable(path)} is damaged ({type(error).__name__}: {error}); remove it, and the same command makes it "
            "again from the pairs"
        ) from None
    if not manifest["pairs"] and not any(output.glob("[hl]q/**/*.png")):
        return {}  # nothing was made with the other settings
    now = config.recorded()
    changed = [f"{key}: {old} -> {new}" for key, old, new in differences({k: manifest.get(k) for k in now}, now)]
    if changed:
        raise ValueError(f"{printable(output)} was made with other settings ({', '.join(changed)}); choose another one")
    return manifest["pairs"]


def _check_records(records: Mapping[str, Mapping[str, str]]) -> None:
    for record in records.values():
        for key in ("source", "hq_sha256", "lq_sha256"):
            record[key]


def write_manifest(output: Path, config: PairsConfig, records: Mapping[str, Mapping[str, str]]) -> None:
    """Settings, versions of the libraries, and the records sorted by name."""
    versions = {name: version(name) for name in VERSIONS}
    content = {**config.recorded(), "versions": versions, "pairs": dict(sorted(records.items()))}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    with replacing(output / MANIFEST) as part:
        part.write_bytes(text.encode("utf-8", "backslashreplace"))  # of a name that is not UTF-8: JSON's own \udcXX


def verify(output: Path, config: PairsConfig, records: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[Path, str]]:
    """Every file that is missing, extra or changed, and every LQ that comes out differently now: (path, reason)."""
    found = {path.relative_to(output).as_posix() for kind in KINDS for path in (output / kind).rglob("*.png")}
    expected = {f"{kind}/{name}": record[f"{kind}_sha256"] for name, record in records.items() for kind in KINDS}
    yield from ((output / file, "is not in the manifest") for file in sorted(found - expected.keys()))
    yield from ((output / file, "is missing") for file in sorted(expected.keys() - found))
    for file in sorted(found & expected.keys()):
        if file_sha256(output / file) != expected[file]:
            yield output / file, "differs from the manifest's sha256"
    degradation = Degradation(config.degradation)
    for name in tqdm(records, unit="image", disable=None):
        if {f"hq/{name}", f"lq/{name}"} <= found:
            try:
                hq, lq = (load_rgb(output / kind / name) for kind in KINDS)
            except ImageError as error:
                yield error.path, error.reason
                continue
            if not torch.equal(freeze_lq(hq, name, config.seed, degradation, config.device), lq):
                yield output / "lq" / name, "comes out differently with the libraries installed now"
