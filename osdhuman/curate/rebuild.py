"""PERSONA from its manifest and local copies of the sources' images."""

from collections import Counter
from collections.abc import Mapping, Sequence
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
from osdhuman.curate.persona import (
    CROP_ID,
    FILES,
    PersonaConfig,
    describe,
    encode_png,
    freeze,
    image_files,
    read_settings,
    versions,
)
from osdhuman.files import file_sha256, replacing


@dataclass(frozen=True)
class RebuildReport:
    """What became of the crops of a manifest; `missing` and `differ` say of which file what is wrong."""

    written: int
    kept: int  # were there already
    missing: tuple[str, ...]
    differ: tuple[str, ...]
    versions: dict[str, tuple[str, str]]  # of the libraries that made the manifest and have another version here

    @property
    def complete(self) -> bool:
        return not self.missing and not self.differ

    def __str__(self) -> str:
        lines = [f"{self.written:,} crops written, {self.kept:,} were there"]
        for names, title in ((self.missing, "missing"), (self.differ, "different")):
            lines += [f"{len(names):,} {title}:", *(f"  {name}" for name in names)] if names else []
        if self.differ and self.versions:
            changed = ", ".join(f"{name} {there} (here {here})" for name, (there, here) in self.versions.items())
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


class Picture(NamedTuple):
    """One picture of the manifest and its crops."""

    name: str  # source/file
    path: Path
    sha256: str
    crops: tuple[Crop, ...]


class Fate(NamedTuple):
    """What became of a crop, and why."""

    crop: Crop
    state: Literal["written", "kept", "missing", "differ"]
    detail: str = ""


def rebuild(manifest: Path, roots: Mapping[str, Path], output: Path, workers: int = 1) -> RebuildReport:
    """Make the folder PERSONA again from its manifest and local copies of the sources' pictures.

    `roots` names the folder of pictures of each source. Every picture and every crop is compared with its sha256; a
    crop that comes out differently is not written. What is in `output` is checked and kept, so the same call goes on
    after a stop. Raises ValueError for a manifest without settings and for sources without a folder.
    """
    settings = read_settings(manifest)
    cut = parse_config(CutConfig, settings["cut"], f"cut of {manifest}")
    persona = parse_config(PersonaConfig, settings["persona"], f"persona of {manifest}")
    pictures = read_pictures(manifest, roots)
    work = partial(rebuild_picture, output=output, cut=cut, persona=persona)
    with ThreadPoolExecutor(workers) as pool:  # decoding, resizing, PNG and sha256 all let other threads run
        done = tqdm(pool.map(work, pictures), total=len(pictures), unit="picture", disable=None)
        fates = [fate for of_picture in done for fate in of_picture]
    absent = [fate.crop for fate in fates if fate.state in ("missing", "differ")]
    for path in (path for crop in absent for path in image_files(output, crop.split, crop.id)):
        path.unlink(missing_ok=True)  # damaged, or of another manifest
    describe(manifest, output, [crop.id for crop in absent])
    counts = Counter(fate.state for fate in fates)
    missing, differ = (
        tuple(sorted({fate.detail for fate in fates if fate.state == state})) for state in ("missing", "differ")
    )
    here, there = versions(), settings["versions"]
    changed = {name: (there[name], here[name]) for name in here if there.get(name, here[name]) != here[name]}
    return RebuildReport(counts["written"], counts["kept"], missing, differ, changed)


def read_pictures(manifest: Path, roots: Mapping[str, Path]) -> list[Picture]:
    """The pictures that have a crop in a split, by source and file. Raises ValueError for a source without a root."""
    selected = pl.scan_parquet(manifest).filter(pl.col("split").is_in(list(FILES)))
    rows = selected.select("source", "file", "sha256", *Crop._fields).sort("source", "file", "id").collect()
    if strange := rows.filter(~pl.col("id").str.contains(CROP_ID))["id"].to_list():  # it becomes the name of a file
        raise ValueError(f"{manifest} has the id {strange[0]!r}; expected 16 hexadecimal digits")
    if lacking := sorted(set(rows["source"]) - set(roots)):
        raise ValueError(f"no folder is given for source {', '.join(lacking)}; the manifest has crops of it")
    return [
        Picture(f"{source}/{file}", Path(roots[source]) / file, sha, tuple(Crop(*row[3:]) for row in group))
        for (source, file, sha), group in groupby(rows.iter_rows(), key=lambda row: row[:3])
    ]


def rebuild_picture(picture: Picture, output: Path, cut: CutConfig, persona: PersonaConfig) -> list[Fate]:
    """Write the crops of one picture that are not in `output` yet."""
    kept = [crop for crop in picture.crops if is_there(output, crop)]
    to_do = [crop for crop in picture.crops if crop not in kept]
    return [*(Fate(crop, "kept") for crop in kept), *_rebuild_crops(picture, to_do, output, cut, persona)]


def is_there(output: Path, crop: Crop) -> bool:
    files = image_files(output, crop.split, crop.id)
    return all(file.exists() for file in files) and file_sha256(files[0]) == crop.crop_sha256


def _rebuild_crops(
    picture: Picture, crops: Sequence[Crop], output: Path, cut: CutConfig, persona: PersonaConfig
) -> list[Fate]:
    if not crops:
        return []
    if not picture.path.is_file():
        return [Fate(crop, "missing", f"{picture.name}: no file {picture.path}") for crop in crops]
    data = picture.path.read_bytes()
    if sha256(data).hexdigest() != picture.sha256:
        detail = f"{picture.name}: another picture than the manifest's (sha256)"
        return [Fate(crop, "differ", detail) for crop in crops]
    return [_rebuild_crop(picture.name, data, crop, output, cut, persona) for crop in crops]


def _rebuild_crop(name: str, data: bytes, crop: Crop, output: Path, cut: CutConfig, persona: PersonaConfig) -> Fate:
    try:
        png = encode_png(recut(data, crop.crop_x, crop.crop_y, crop.crop_side, cut))
    except ValueError as error:  # DecodeFault too
        return Fate(crop, "differ", f"{name}: crop {crop.id}: {error}")
    if sha256(png).hexdigest() != crop.crop_sha256:
        return Fate(crop, "differ", f"{name}: crop {crop.id} comes out differently (sha256)")
    with replacing(image_files(output, crop.split, crop.id)[0]) as part:
        part.write_bytes(png)
    if crop.split == "val":
        freeze(output, crop.id, persona)
    return Fate(crop, "written")
