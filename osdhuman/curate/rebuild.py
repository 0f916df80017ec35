"""PERSONA from its manifest and local copies of the sources' images."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Literal, NamedTuple

import polars as pl
from tqdm import tqdm

from osdhuman.config import parse_config
from osdhuman.curate.crops import CutConfig, recut
from osdhuman.curate.manifest_reader import leaves_folder, read_settings, readable_manifest, scan_manifest
from osdhuman.curate.persona import CROP_ID, FILES, PersonaConfig, describe, encode_png, freeze, image_files, versions
from osdhuman.files import file_sha256, replacing


@dataclass(frozen=True)
class RebuildReport:
    """What became of the crops of a manifest; `missing` and `differ` name each file and what is wrong with it."""

    written: int
    kept: int  # existed already
    missing: tuple[str, ...]
    differ: tuple[str, ...]
    versions: dict[str, tuple[str, str]]  # of the libraries that made the manifest and have another version here

    @property
    def complete(self) -> bool:
        """Whether every crop of the manifest is in the folder."""
        return not self.missing and not self.differ

    def __str__(self) -> str:
        lines = [f"{self.written:,} crops written, {self.kept:,} existed"]
        for names, title in ((self.missing, "missing"), (self.differ, "different")):
            lines += [f"{len(names):,} {title}:", *(f"  {name}" for name in names)] if names else []
        if self.differ and self.versions:
            changed = ", ".join(f"{name} {made} (here {here})" for name, (made, here) in self.versions.items())
            lines.append(f"the manifest was made with {changed}; other versions may write other bytes")
        return "\n".join(lines)


class Crop(NamedTuple):
    """One crop of the manifest."""

    id: str
    split: str
    crop_x: int
    crop_y: int
    crop_side: int
    crop_sha256: str


class ManifestImage(NamedTuple):
    """One image that the manifest names, and its crops."""

    name: str  # source/file
    path: Path
    sha256: str
    crops: tuple[Crop, ...]


class Outcome(NamedTuple):
    """What became of a crop, and why."""

    crop: Crop
    state: Literal["written", "kept", "missing", "differ"]
    detail: str = ""


NEEDED = {  # columns that every row with a split must fill
    **dict.fromkeys(("source", "file", "sha256", "id", "split", "crop_sha256"), pl.String()),
    **dict.fromkeys(("crop_x", "crop_y", "crop_side"), pl.Int32()),
}
COLUMNS = {**NEEDED, **dict.fromkeys(("licence", "reason", "detail"), pl.String())}


def rebuild(manifest: Path, roots: Mapping[str, Path], output: Path, workers: int = 1) -> RebuildReport:
    """Make the folder PERSONA again from its manifest and local copies of the sources' images.

    `roots` names the folder of images of each source. Every image and every crop is compared with its sha256; a crop
    that comes out differently is not written. Files in `output` are checked and kept, so the same call continues after
    a stop. A manifest may come from anybody: no name in it leads out of the folders given here. Links inside these
    folders are followed, as their owner made them.

    Raises FileNotFoundError where there is no manifest, and ValueError, before an image is read, for a manifest that
    is damaged or names a file outside its source's folder, and for sources without a folder.
    """
    settings = read_settings(manifest)
    cut = parse_config(CutConfig, settings["cut"], f"cut of {manifest}")
    persona = parse_config(PersonaConfig, settings["persona"], f"persona of {manifest}")
    images = read_images(manifest, roots)
    work = partial(rebuild_image, output=output, cut=cut, persona=persona)
    with ThreadPoolExecutor(workers) as pool:  # decoding, resizing, PNG and sha256 all let other threads run
        done = tqdm(pool.map(work, images), total=len(images), unit="image", disable=None)
        outcomes = [outcome for of_image in done for outcome in of_image]
    absent = [outcome.crop for outcome in outcomes if outcome.state in ("missing", "differ")]
    for path in (path for crop in absent for path in image_files(output, crop.split, crop.id)):
        path.unlink(missing_ok=True)  # damaged, or of another manifest
    describe(manifest, output, [crop.id for crop in absent])
    return summarize(outcomes, settings["versions"])


def summarize(outcomes: Sequence[Outcome], made_with: Mapping[str, str]) -> RebuildReport:
    """Counts and details of all outcomes; `made_with` has the manifest's versions of the libraries."""
    counts = Counter(outcome.state for outcome in outcomes)
    missing, differ = (
        tuple(sorted({outcome.detail for outcome in outcomes if outcome.state == state}))
        for state in ("missing", "differ")
    )
    here = versions()
    changed = {name: (made_with[name], here[name]) for name in here if made_with.get(name, here[name]) != here[name]}
    return RebuildReport(counts["written"], counts["kept"], missing, differ, changed)


def read_images(manifest: Path, roots: Mapping[str, Path]) -> list[ManifestImage]:
    """The images that have a crop in a split, by source and file.

    Raises ValueError that names the row for a value that is missing, an id that is no id or a file outside its
    source's folder, and for a source without a root.
    """
    rows = scan_manifest(manifest, COLUMNS).with_row_index("row", offset=1)
    with readable_manifest(manifest):
        rows = rows.filter(pl.col("split").is_in(list(FILES))).select("row", *NEEDED).collect()
    if fault := next(row_faults(rows), None):
        raise ValueError(f"{manifest}, {fault}; no image was read")
    if lacking := sorted(set(rows["source"]) - set(roots)):
        raise ValueError(f"no folder is given for source {', '.join(lacking)}; the manifest has crops of it")
    rows = rows.sort("source", "file", "id").select("source", "file", "sha256", *Crop._fields)
    return [
        ManifestImage(f"{source}/{file}", Path(roots[source]) / file, sha, tuple(Crop(*row[3:]) for row in group))
        for (source, file, sha), group in groupby(rows.iter_rows(), key=lambda row: row[:3])
    ]


def row_faults(rows: pl.DataFrame) -> Iterator[str]:
    """What is wrong with the rows: `id` becomes the name of a file that is written, `file` of one that is read."""
    for name in NEEDED:
        for (row,) in rows.filter(pl.col(name).is_null()).select("row").iter_rows():
            yield f"row {row}: {name} is missing"
    for row, crop in rows.filter(~pl.col("id").str.contains(CROP_ID)).select("row", "id").iter_rows():
        yield f"row {row}: id is {crop!r:.120}, expected 16 hexadecimal digits"
    for row, file, source in rows.select("row", "file", "source").iter_rows():
        if leaves_folder(file):
            yield f"row {row}: file {file!r:.120} is not below the folder of source {source!r:.120}"


def rebuild_image(image: ManifestImage, output: Path, cut: CutConfig, persona: PersonaConfig) -> list[Outcome]:
    """Write the crops of one image that are not in `output` yet."""
    existing = [crop for crop in image.crops if exists(output, crop)]
    to_do = [crop for crop in image.crops if crop not in existing]
    return [*(Outcome(crop, "kept") for crop in existing), *_rebuild_crops(image, to_do, output, cut, persona)]


def exists(output: Path, crop: Crop) -> bool:
    """Whether all files of a crop are in `output`, the crop itself with the manifest's sha256."""
    files = image_files(output, crop.split, crop.id)
    return all(file.exists() for file in files) and file_sha256(files[0]) == crop.crop_sha256


def _rebuild_crops(
    image: ManifestImage, crops: Sequence[Crop], output: Path, cut: CutConfig, persona: PersonaConfig
) -> list[Outcome]:
    if not crops:
        return []
    try:
        data = image.path.read_bytes()
    except OSError as error:  # no such file, no permission, a folder, a name that is too long
        detail = f"{image.name}: {error.strerror or type(error).__name__}: {image.path}"
        return [Outcome(crop, "missing", detail) for crop in crops]
    if sha256(data).hexdigest() != image.sha256:
        detail = f"{image.name}: another image than the manifest's (sha256)"
        return [Outcome(crop, "differ", detail) for crop in crops]
    return [_rebuild_crop(image.name, data, crop, output, cut, persona) for crop in crops]


def _rebuild_crop(name: str, data: bytes, crop: Crop, output: Path, cut: CutConfig, persona: PersonaConfig) -> Outcome:
    try:
        png = encode_png(recut(data, crop.crop_x, crop.crop_y, crop.crop_side, cut))
    except ValueError as error:  # DecodeFault too
        return Outcome(crop, "differ", f"{name}: crop {crop.id}: {error}")
    if sha256(png).hexdigest() != crop.crop_sha256:
        return Outcome(crop, "differ", f"{name}: crop {crop.id} comes out differently (sha256)")
    with replacing(image_files(output, crop.split, crop.id)[0]) as part:
        part.write_bytes(png)
    if crop.split == "val":
        freeze(output, crop.id, persona)
    return Outcome(crop, "written")
