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
import os
import shutil
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import polars as pl
from pydantic import Field

from osdhuman.config import Config
from osdhuman.curate.crops import CutConfig
from osdhuman.curate.manifest_reader import SETTINGS, readable_manifest
from osdhuman.data.degradation import Degradation, DegradationConfig
from osdhuman.data.pairs import freeze_lq
from osdhuman.files import file_sha256, replacing
from osdhuman.images import load_rgb, save_png
from osdhuman.markdown import table

FILES = {  # where the images of a crop lie in its split; the first is the crop itself
    "train": {"hq": "{}.png"},
    "val": {"hq": "hq/{}.png", "lq": "lq/{}.png"},
    "test": {"lq": "{}.png"},
}
VERSIONS = ("numpy", "opencv-python-headless", "pillow", "torch")  # a change of these may move a rounding
CROP_ID = "^[0-9a-f]{16}$"


class PersonaConfig(Config):
    """How the LQ of val are frozen: by the degradation of training (paper 4.2)."""

    seed: int = Field(0, ge=0)
    degradation: DegradationConfig = DegradationConfig()


def write_shard(out: Path, shard: int, config: PersonaConfig) -> dict[str, int]:
    """Put the selected crops of one shard into `out`/persona; returns their number by split.

    Crops are hard links where the file system allows it. Existing files stay, so an interrupted shard continues.
    """
    folder, persona = out / "crops" / f"{shard:05d}", out / "persona"
    crops = pl.scan_parquet(folder / "candidates.parquet").filter(pl.col("reason").is_null())
    chosen = pl.scan_parquet(out / "selection" / "selection.parquet").filter(pl.col("split").is_not_null())
    rows = chosen.join(crops, on="id", how="semi").select("id", "split").collect()
    for crop, split in rows.iter_rows():
        link(folder / f"{crop}.png", image_files(persona, split, crop)[0])
        if split == "val":
            freeze(persona, crop, config)
    return dict(rows["split"].value_counts().sort("split").iter_rows())


def image_files(persona: Path, split: str, crop: str) -> list[Path]:
    """The crop itself, which is the lq of test and the hq of the others; then the frozen lq of val."""
    return [persona / split / name.format(crop) for name in FILES[split].values()]


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
    """Write val/lq/<crop>.png from val/hq/<crop>.png, unless it exists."""
    hq, lq = image_files(persona, "val", crop)
    if not lq.exists():
        save_png(lq, freeze_lq(load_rgb(hq), f"{crop}.png", config.seed, Degradation(config.degradation)))


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 RGB (H,W,3) -> the bytes of a PNG, the same for the same pixels and version of OpenCV.

    Compression 1 takes a quarter of the time of 6, and 8 % more space.
    """
    done, data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done, f"OpenCV cannot encode {pixels.dtype} {pixels.shape}"
    return data.tobytes()


def settings_metadata(cut: CutConfig, persona: PersonaConfig) -> dict[str, str]:
    """The parquet metadata of a manifest: what `rebuild` needs besides the rows."""
    settings = {"cut": cut.model_dump(mode="json"), "persona": persona.model_dump(mode="json"), "versions": versions()}
    return {SETTINGS: json.dumps(settings)}


def versions() -> dict[str, str]:
    """Installed versions of the libraries whose change may change a pixel."""
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
    for split, rows in tables.items():
        path = persona / split / "metadata.parquet"
        path.unlink(missing_ok=True)  # an earlier one; `datasets` takes no split without a row
        if len(rows):
            with replacing(path) as part:
                rows.write_parquet(part)
    with replacing(persona / "README.md") as part:
        part.write_text(card(tables), encoding="utf-8")
    return {split: len(rows) for split, rows in tables.items()}


def metadata(manifest: Path, persona: Path, split: str, absent: Collection[str] = ()) -> pl.DataFrame:
    """The rows of a split, sorted by id: hq_file_name and lq_file_name, all columns of the manifest, both sha256.

    All splits have the same columns, as `datasets` demands.
    """
    folder, crop_kind = persona / split, next(iter(FILES[split]))
    with readable_manifest(manifest):
        rows = pl.scan_parquet(manifest).filter(pl.col("split") == split, ~pl.col("id").is_in(list(absent)))
        rows = rows.drop("split", "reason", "detail").sort("id").collect()
    files = {kind: rows.select(pl.format(name, "id")).to_series() for kind, name in FILES[split].items()}
    check_files(folder, {name for names in files.values() for name in names})
    digests = {
        kind: rows["crop_sha256"]
        if kind == crop_kind
        else pl.Series([file_sha256(folder / name) for name in names], dtype=pl.String)
        for kind, names in files.items()
    }
    nothing = pl.Series([None] * len(rows), dtype=pl.String)
    return rows.select(
        *(files.get(kind, nothing).alias(f"{kind}_file_name") for kind in ("hq", "lq")),
        pl.exclude("crop_sha256"),
        *(digests.get(kind, nothing).alias(f"{kind}_sha256") for kind in ("hq", "lq")),
    )


def check_files(folder: Path, expected: Collection[str]) -> None:
    """Raises ValueError unless the images in `folder` are exactly the expected ones."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    for names, fault in ((expected - found, "are missing; write them again"), (found - expected, "are not selected")):
        if names:
            raise ValueError(f"{len(names)} file(s) {fault}: {', '.join(sorted(names)[:3])} ... in {folder}")


def card(tables: Mapping[str, pl.DataFrame]) -> str:
    """The data set card: what it is, and how many crops come from which source under which licence."""
    rows = pl.concat([rows.select("source", "licence", split=pl.lit(split)) for split, rows in tables.items()])
    counts = rows.group_by("source", "licence").agg((pl.col("split") == split).sum().alias(split) for split in FILES)
    lines = [
        [source, licence or "not stated", *(f"{count:,}" for count in numbers)]
        for source, licence, *numbers in counts.sort("source", "licence").iter_rows()
    ]
    lines.append(["all", "", *(f"{len(rows):,}" for rows in tables.values())])
    return CARD.format(table=table(["source", "licence of the photographs", *FILES], lines, left=2))


CARD = """---
pretty_name: PERSONA
license: other
task_categories:
- image-to-image
---

# PERSONA

Square crops of persons for human body restoration, made by HQ-ACF (OSDHuman, ICML 2025). `train` has high-quality
images, `val` high-quality images with frozen degraded ones, `test` real low-quality images without reference.

{table}
The photographs belong to their owners; their licences differ, and some forbid passing them on. `metadata.parquet` of
each split names source, file, licence, address, box, crop, scores and sha256 of every image.

```python
from datasets import load_dataset

persona = load_dataset("imagefolder", data_dir="persona")  # train, validation, test; images hq and lq
```
"""
