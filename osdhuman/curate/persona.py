"""The end of HQ-ACF: crops become the folder PERSONA, and a published manifest becomes the same folder again.

    persona/train/<id>.png                              hq
    persona/val/hq/<id>.png, persona/val/lq/<id>.png    hq and its frozen lq
    persona/test/<id>.png                               lq as it was found; there is no hq
    persona/{train,val,test}/metadata.parquet           one row per crop
    persona/README.md                                   counts and licences

`datasets.load_dataset("imagefolder", data_dir="persona")` reads it: splits train, validation and test with the images
`hq` and `lq`, None where there is none.
"""

import json
import multiprocessing
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from hashlib import file_digest, sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import polars as pl
from pydantic import Field
from tqdm import tqdm

from osdhuman.config import Config, parse_config
from osdhuman.curate.crops import CutConfig, recut
from osdhuman.data.degradation import Degradation, DegradationConfig
from osdhuman.data.freeze import freeze_lq
from osdhuman.images import load_rgb, replacing, save_png

FILES = {  # where the images of a crop lie in its split; the first is the crop itself
    "train": {"hq": "{}.png"},
    "val": {"hq": "hq/{}.png", "lq": "lq/{}.png"},
    "test": {"lq": "{}.png"},
}
SETTINGS = "osdhuman"  # the key of the settings in the metadata of manifest.parquet
VERSIONS = ("numpy", "opencv-python-headless", "pillow", "torch")  # a change of these may move a rounding
CROP_ID = "^[0-9a-f]{16}$"


class PersonaConfig(Config):
    """How the LQ of val are frozen: by the degradation of training (paper 4.2)."""

    seed: int = Field(0, ge=0)
    degradation: DegradationConfig = DegradationConfig()


# ------------------------------------------------------------------------------------------------------------- writing


def write_shard(out: Path, shard: int, config: PersonaConfig) -> dict[str, int]:
    """Put the selected crops of one shard into `out`/persona; returns their number by split.

    Crops are hard links where the file system allows it. What is there stays, so an interrupted shard goes on.
    """
    folder, persona = out / "crops" / f"{shard:05d}", out / "persona"
    crops = pl.scan_parquet(folder / "candidates.parquet").filter(pl.col("reason").is_null())
    chosen = pl.scan_parquet(out / "selection" / "selection.parquet").filter(pl.col("split").is_not_null())
    rows = chosen.join(crops, on="id", how="semi").select("id", "split").collect()
    for crop, split in rows.iter_rows():
        link(folder / f"{crop}.png", crop_file(persona, split, crop))
        if split == "val":
            freeze(persona, crop, config)
    return dict(rows["split"].value_counts().sort("split").iter_rows())


def crop_file(persona: Path, split: str, crop: str) -> Path:
    """Where the crop itself lies: the lq of test, the hq of the others."""
    return persona / split / next(iter(FILES[split].values())).format(crop)


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy where there are no hard links; never half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:
        with replacing(target) as part:
            shutil.copyfile(source, part)


def freeze(persona: Path, crop: str, config: PersonaConfig) -> None:
    """Write val/lq/<crop>.png from val/hq/<crop>.png, unless it is there."""
    hq, lq = (persona / "val" / name.format(crop) for name in FILES["val"].values())
    if not lq.exists():
        save_png(lq, freeze_lq(load_rgb(hq), f"{crop}.png", config.seed, Degradation(config.degradation)))


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 RGB (H,W,3) -> the bytes of a PNG, the same for the same pixels and version of OpenCV.

    Compression 1 takes a quarter of the time of 6, and 8 % more space.
    """
    done, data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done, f"OpenCV cannot encode {pixels.dtype} {pixels.shape}"
    return data.tobytes()


# ---------------------------------------------------------------------------------------------------------- describing


def settings_metadata(cut: CutConfig, persona: PersonaConfig) -> dict[str, str]:
    """What `rebuild` must know besides the rows: the parquet metadata of a manifest."""
    settings = {"cut": cut.model_dump(mode="json"), "persona": persona.model_dump(mode="json"), "versions": versions()}
    return {SETTINGS: json.dumps(settings)}


def read_settings(manifest: Path) -> dict[str, Any]:
    """What `settings_metadata` gave to a manifest: cut, persona, versions. Raises ValueError where there is nothing."""
    settings = pl.read_parquet_metadata(manifest).get(SETTINGS)
    if settings is None:
        raise ValueError(f"{manifest} does not say how its crops were cut; expected a manifest.parquet of HQ-ACF")
    return json.loads(settings)


def versions() -> dict[str, str]:
    return {name: version(name) for name in VERSIONS}


def write_metadata(out: Path) -> dict[str, int]:
    """Describe `out`/persona by `out`/manifest.parquet; returns the number of crops by split.

    Writes metadata.parquet of each split, and README.md. Raises ValueError where a split holds other files than the
    manifest names.
    """
    return describe(out / "manifest.parquet", out / "persona")


def describe(manifest: Path, persona: Path, absent: Collection[str] = ()) -> dict[str, int]:
    """As `write_metadata`; the crops with the ids `absent` are left out."""
    tables = {split: metadata(manifest, persona, split, absent) for split in FILES}
    for split, table in tables.items():
        if len(table):  # `datasets` takes no split without a row
            with replacing(persona / split / "metadata.parquet") as part:
                table.write_parquet(part)
    with replacing(persona / "README.md") as part:
        part.write_text(card(tables), encoding="utf-8")
    return {split: len(table) for split, table in tables.items()}


def metadata(manifest: Path, persona: Path, split: str, absent: Collection[str] = ()) -> pl.DataFrame:
    """The rows of a split, sorted by id: hq_file_name and lq_file_name, all that the manifest says, both sha256.

    All splits have the same columns, as `datasets` demands.
    """
    rows = pl.scan_parquet(manifest).filter(pl.col("split") == split, ~pl.col("id").is_in(list(absent)))
    rows = rows.drop("split", "reason", "detail").sort("id").collect()
    files = {kind: [name.format(crop) for crop in rows["id"]] for kind, name in FILES[split].items()}
    check_files(persona / split, {name for names in files.values() for name in names})
    digests = {kind: [digest(persona / split / name) for name in files[kind]] for kind in [*files][1:]}
    digests[next(iter(files))] = rows["crop_sha256"]
    columns = {f"{kind}_file_name": files.get(kind) for kind in ("hq", "lq")}
    columns |= {f"{kind}_sha256": digests.get(kind) for kind in ("hq", "lq")}
    columns = {name: pl.Series(values or [None] * len(rows), dtype=pl.String) for name, values in columns.items()}
    names = rows.drop("crop_sha256").columns
    return rows.with_columns(**columns).select("hq_file_name", "lq_file_name", *names, "hq_sha256", "lq_sha256")


def check_files(folder: Path, expected: Collection[str]) -> None:
    """Raises ValueError unless the pictures in `folder` are exactly the expected ones."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    for names, fault in ((expected - found, "are missing; write them again"), (found - expected, "are not selected")):
        if names:
            raise ValueError(f"{len(names)} file(s) {fault}: {', '.join(sorted(names)[:3])} ... in {folder}")


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def card(tables: Mapping[str, pl.DataFrame]) -> str:
    """The data set card: what it is, and how many crops come from which source under which licence."""
    rows = pl.concat([table.select("source", "licence", split=pl.lit(split)) for split, table in tables.items()])
    counts = rows.group_by("source", "licence").agg((pl.col("split") == split).sum().alias(split) for split in FILES)
    lines = [
        f"| {source} | {licence or 'not stated'} | {' | '.join(f'{count:,}' for count in numbers)} |"
        for source, licence, *numbers in counts.sort("source", "licence").iter_rows()
    ]
    total = " | ".join(f"**{len(table):,}**" for table in tables.values())
    return CARD.format(lines="\n".join(lines), total=total)


CARD = """---
pretty_name: PERSONA
license: other
task_categories:
- image-to-image
---

# PERSONA

Square crops of persons for human body restoration, made by HQ-ACF (OSDHuman, ICML 2025). `train` has high-quality
images, `val` high-quality images with frozen degraded ones, `test` real low-quality images without reference.

| source | licence of the photographs | train | val | test |
| --- | --- | ---: | ---: | ---: |
{lines}
| **all** | | {total} |

The photographs belong to their owners; their licences differ, and some forbid passing them on. `metadata.parquet` of
each split names source, file, licence, address, box, crop, scores and sha256 of every image.

```python
from datasets import load_dataset

persona = load_dataset("imagefolder", data_dir="persona")  # train, validation, test; images hq and lq
```
"""


# ---------------------------------------------------------------------------------------------------------- rebuilding


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


class Picture(NamedTuple):
    """One picture of the manifest and its crops: (id, split, crop_x, crop_y, crop_side, crop_sha256)."""

    name: str  # source/file
    path: Path
    sha256: str
    crops: tuple[tuple, ...]


@dataclass
class Outcome:
    """What became of the crops of one picture."""

    written: int = 0
    kept: int = 0
    missing: list[str] = field(default_factory=list)
    differ: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)  # the ids of crops that were not made


def rebuild(manifest: Path, roots: Mapping[str, Path], output: Path, workers: int = 1) -> RebuildReport:
    """Make the folder PERSONA again from its manifest and local copies of the sources' pictures.

    `roots` names the folder of pictures of each source. Every picture and every crop is compared with its sha256; a
    crop that comes out differently is not written. What is in `output` is checked and kept, so the same call goes on
    after a stop. Raises ValueError for a manifest without settings and for sources without a folder.
    """
    settings = read_settings(manifest)
    cut = parse_config(CutConfig, settings["cut"], f"cut of {manifest}")
    persona = parse_config(PersonaConfig, settings["persona"], f"persona of {manifest}")
    pictures = list(read_pictures(manifest, roots))
    total = Outcome()
    work = partial(rebuild_picture, output=output, cut=cut, persona=persona)
    for outcome in tqdm(_map(work, pictures, workers), total=len(pictures), unit="picture", disable=None):
        for name, value in vars(outcome).items():
            setattr(total, name, getattr(total, name) + value)
    describe(manifest, output, total.absent)
    here, there = versions(), settings["versions"]
    changed = {name: (there[name], here[name]) for name in here if there.get(name, here[name]) != here[name]}
    return RebuildReport(total.written, total.kept, tuple(sorted(total.missing)), tuple(sorted(total.differ)), changed)


def read_pictures(manifest: Path, roots: Mapping[str, Path]) -> Iterator[Picture]:
    """The pictures that have a crop in a split, by source and file. Raises ValueError for a source without a root."""
    crop = ("id", "split", "crop_x", "crop_y", "crop_side", "crop_sha256")
    selected = pl.scan_parquet(manifest).filter(pl.col("split").is_in(list(FILES)), pl.col("id").str.contains(CROP_ID))
    rows = selected.select("source", "file", "sha256", *crop).sort("source", "file", "id").collect()
    if lacking := sorted(set(rows["source"]) - set(roots)):
        raise ValueError(f"no folder is given for source {', '.join(lacking)}; the manifest has crops of it")
    for (source, file, digest), group in rows.group_by("source", "file", "sha256", maintain_order=True):
        yield Picture(f"{source}/{file}", Path(roots[source]) / file, digest, tuple(group.select(crop).iter_rows()))


def _map(work: partial, pictures: Iterable[Picture], workers: int) -> Iterator[Outcome]:
    if workers == 1:
        yield from map(work, pictures)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _one_thread) as pool:
        yield from (done.result() for done in as_completed([pool.submit(work, picture) for picture in pictures]))


def _one_thread() -> None:
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def rebuild_picture(picture: Picture, output: Path, cut: CutConfig, persona: PersonaConfig) -> Outcome:
    """Write the crops of one picture that are not in `output` yet."""
    outcome = Outcome()
    to_do = [crop for crop in picture.crops if not _is_there(output, crop)]
    outcome.kept = len(picture.crops) - len(to_do)
    data = picture.path.read_bytes() if to_do and picture.path.is_file() else None
    if to_do and data is None:
        outcome.missing.append(f"{picture.name}: no file {picture.path}")
    elif to_do and sha256(data).hexdigest() != picture.sha256:
        outcome.differ.append(f"{picture.name}: another picture than the manifest's (sha256)")
    else:
        to_do = [crop for crop in to_do if not _rebuild_crop(picture, data, crop, output, cut, persona, outcome)]
    outcome.absent = [crop[0] for crop in to_do]
    return outcome


def _is_there(output: Path, crop: tuple) -> bool:
    name, split, *_, expected = crop
    files = [output / split / file.format(name) for file in FILES[split].values()]
    return all(file.exists() for file in files) and digest(files[0]) == expected


def _rebuild_crop(
    picture: Picture, data: bytes, crop: tuple, output: Path, cut: CutConfig, persona: PersonaConfig, outcome: Outcome
) -> bool:
    name, split, *square, expected = crop
    try:
        png = encode_png(recut(data, *square, cut))
    except ValueError as error:  # DecodeFault too
        outcome.differ.append(f"{picture.name}: {error}")
        return False
    if sha256(png).hexdigest() != expected:
        outcome.differ.append(f"{picture.name}: crop {name} comes out differently (sha256)")
        return False
    with replacing(crop_file(output, split, name)) as part:
        part.write_bytes(png)
    if split == "val":
        freeze(output, name, persona)
    outcome.written += 1
    return True
