"""PERSONA as a folder: what lies where, how `datasets` reads it, and how a manifest makes it again."""

import os
import shutil
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest
from PIL import Image

from osdhuman.curate import rebuild as rebuilding
from osdhuman.curate.crops import CutConfig, cut
from osdhuman.curate.manifest_reader import read_settings
from osdhuman.curate.persona import (
    PersonaConfig,
    card,
    describe,
    encode_png,
    settings_metadata,
    write_metadata,
    write_shard,
)
from osdhuman.curate.rebuild import rebuild
from osdhuman.curate.record import Box, ImageRecord, Reason, candidate_id, candidates_frame
from osdhuman.data.samples import find_pairs
from osdhuman.folders import find_images

SMALL = CutConfig(size=64, min_side=64)
SETTINGS = PersonaConfig(seed=3)
SPLITS = {"a.jpg": "train", "b.jpg": "val", "c.jpg": "test", "d.jpg": None}


def draw(path: Path, seed: int) -> None:
    """A JPEG of 160 x 120 with edges and colours."""
    small = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).resize((160, 120), Image.Resampling.BICUBIC).save(path, quality=92)


def name_of(file: str) -> str:
    return candidate_id("coco", file, "1")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run folder of one shard, with four images of one crop each, up to its manifest."""
    candidates, selection, folder = [], [], tmp_path / "out" / "crops" / "00000"
    folder.mkdir(parents=True)
    for seed, (file, split) in enumerate(SPLITS.items()):
        draw(tmp_path / "coco" / file, seed)
        record = ImageRecord("coco", file, file, (Box(10, 10, 100, 110, "1"),), licence="CC BY", url=f"http://x/{file}")
        rows, crops = cut(record, tmp_path / "coco", SMALL, 0.0)
        png = encode_png(crops[rows[0].id])
        (folder / f"{rows[0].id}.png").write_bytes(png)
        candidates += rows
        reason = None if split else str(Reason.NOT_TOP_THIRD)
        outcome = {"musiq": 50.0 + seed, "normalized": 0.1 * seed, "split": split, "reason": reason, "detail": None}
        selection.append({"id": rows[0].id, **outcome, "crop_sha256": sha256(png).hexdigest()})
    candidates, selection = (
        candidates_frame(candidates),
        pl.DataFrame(selection).with_columns(detail=pl.lit("", pl.String)),
    )
    candidates.write_parquet(folder / "candidates.parquet")
    (tmp_path / "out" / "selection").mkdir()
    selection.drop("crop_sha256").write_parquet(tmp_path / "out" / "selection" / "selection.parquet")
    manifest = candidates.drop("reason", "detail").join(selection, on="id", maintain_order="left")
    manifest.write_parquet(tmp_path / "out" / "manifest.parquet", metadata=settings_metadata(SMALL, SETTINGS))
    return tmp_path / "out"


@pytest.fixture
def written(out: Path) -> Path:
    write_shard(out, 0, SETTINGS)
    write_metadata(out)
    return out / "persona"


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- the folder ----


def test_every_image_lies_in_its_split(written: Path):
    train, val, test = (name_of(file) for file in ("a.jpg", "b.jpg", "c.jpg"))
    expected = {f"train/{train}.png", f"val/hq/{val}.png", f"val/lq/{val}.png", f"test/{test}.png"}
    assert {name for name in files(written) if name.endswith(".png")} == expected


def test_crops_are_counted_by_split(out: Path):
    assert write_shard(out, 0, SETTINGS) == {"test": 1, "train": 1, "val": 1}


def test_a_crop_takes_no_second_place_on_the_disk(out: Path):
    write_shard(out, 0, SETTINGS)
    name = f"{name_of('a.jpg')}.png"
    assert (out / "persona" / "train" / name).samefile(out / "crops" / "00000" / name)


def test_a_crop_is_copied_where_there_are_no_hard_links(out: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*paths: Path) -> None:
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", refuse)
    write_shard(out, 0, SETTINGS)
    name = f"{name_of('a.jpg')}.png"
    assert (out / "persona" / "train" / name).read_bytes() == (out / "crops" / "00000" / name).read_bytes()


def test_an_interrupted_shard_continues(out: Path, written: Path):
    whole = files(written)
    (written / "val" / "lq" / f"{name_of('b.jpg')}.png").unlink()
    (written / "test" / f"{name_of('c.jpg')}.png").unlink()
    write_shard(out, 0, SETTINGS)
    write_metadata(out)
    assert files(written) == whole


def test_existing_files_are_not_written_again(out: Path, written: Path):
    places = [path.stat().st_ino for path in sorted(written.rglob("*.png"))]
    write_shard(out, 0, SETTINGS)
    assert [path.stat().st_ino for path in sorted(written.rglob("*.png"))] == places


def test_lq_is_degraded(written: Path):
    (pair,) = find_pairs(written / "val")
    assert not np.array_equal(cv2.imread(str(pair.hq)), cv2.imread(str(pair.lq)))


def test_lq_depends_on_the_seed(out: Path, written: Path):
    lq = next((written / "val" / "lq").iterdir())
    first = lq.read_bytes()
    lq.unlink()
    write_shard(out, 0, PersonaConfig(seed=4))
    assert lq.read_bytes() != first


def test_training_reads_the_train_folder(written: Path):
    assert [path.stem for path in find_images(written / "train")] == [name_of("a.jpg")]


def test_png_keeps_every_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(BytesIO(encode_png(pixels)))), pixels)


# ---- metadata ----


@pytest.fixture
def loaded(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    return datasets.load_dataset("imagefolder", data_dir=str(written), cache_dir=str(tmp_path / "cache"))


def test_datasets_finds_the_splits(loaded: dict):
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 1, "validation": 1, "test": 1}


def test_datasets_decodes_hq_and_lq(loaded: dict, written: Path):
    row = loaded["validation"][0]
    assert np.array_equal(row["lq"], Image.open(written / "val" / "lq" / f"{row['id']}.png"))
    assert np.array_equal(row["hq"], Image.open(written / "val" / "hq" / f"{row['id']}.png"))


def test_train_has_no_lq_and_test_no_hq(loaded: dict):
    assert loaded["train"][0]["lq"] is None and loaded["test"][0]["hq"] is None


def test_metadata_says_where_a_crop_comes_from(loaded: dict):
    row = loaded["train"][0]
    box = [row[name] for name in ("x0", "y0", "x1", "y1")]
    assert [row["source"], row["licence"], row["file"], row["url"]] == ["coco", "CC BY", "a.jpg", "http://x/a.jpg"]
    assert [row["box_id"], box, row["crop_side"], row["musiq"]] == ["1", [10, 10, 100, 110], 100, 50.0]


def test_metadata_has_the_sha256_of_every_image(written: Path):
    row = pl.read_parquet(written / "val" / "metadata.parquet").row(0, named=True)
    for kind in ("hq", "lq"):
        data = (written / "val" / row[f"{kind}_file_name"]).read_bytes()
        assert row[f"{kind}_sha256"] == sha256(data).hexdigest()


def test_the_card_counts_sources_and_licences(written: Path):
    assert "| coco | CC BY | 1 | 1 | 1 |" in (written / "README.md").read_text()


def test_a_licence_cannot_break_the_card():
    licence = "free | <img src=x onerror=y>\n# `Own` *terms* [here](http://x)"
    rows = pl.DataFrame({"source": ["my_set"], "licence": [licence]})
    shown = r"free \| &lt;img src=x onerror=y&gt; # \`Own\` \*terms\* \[here\](http://x)"
    assert f"| my_set | {shown} | 1 | 0 | 0 |\n" in card({"train": rows, "val": rows.clear(), "test": rows.clear()})


def test_a_missing_image_is_named(out: Path, written: Path):
    (written / "train" / f"{name_of('a.jpg')}.png").unlink()
    with pytest.raises(ValueError, match=rf"1 file\(s\) are missing.*{name_of('a.jpg')}"):
        write_metadata(out)


def test_an_image_that_is_not_selected_is_named(out: Path, written: Path):
    shutil.copy(written / "train" / f"{name_of('a.jpg')}.png", written / "train" / "stranger.png")
    with pytest.raises(ValueError, match=r"1 file\(s\) are not selected: stranger.png"):
        write_metadata(out)


def test_a_split_without_crops_is_left_out(out: Path, written: Path, tmp_path: Path):
    absent = [name_of("c.jpg")]
    (written / "test" / f"{absent[0]}.png").unlink()
    assert describe(out / "manifest.parquet", written, absent) == {"train": 1, "val": 1, "test": 0}
    assert not (written / "test" / "metadata.parquet").exists()


# ---- rebuild ----


def test_a_manifest_makes_the_identical_folder(out: Path, written: Path, tmp_path: Path):
    report = rebuild(out / "manifest.parquet", {"coco": tmp_path / "coco"}, tmp_path / "again")
    assert report.complete and report.written == 3
    assert files(tmp_path / "again") == files(written)


def test_two_workers_make_the_same_folder(out: Path, written: Path, tmp_path: Path):
    rebuild(out / "manifest.parquet", {"coco": tmp_path / "coco"}, tmp_path / "again", workers=2)
    assert files(tmp_path / "again") == files(written)


def test_a_rebuild_continues_where_it_stopped(out: Path, written: Path, tmp_path: Path):
    roots = {"coco": tmp_path / "coco"}
    rebuild(out / "manifest.parquet", roots, tmp_path / "again")
    (tmp_path / "again" / "val" / "lq" / f"{name_of('b.jpg')}.png").unlink()
    report = rebuild(out / "manifest.parquet", roots, tmp_path / "again")
    assert (report.written, report.kept) == (1, 2) and files(tmp_path / "again") == files(written)


def test_a_crop_damaged_on_the_disk_is_made_again(out: Path, written: Path, tmp_path: Path):
    roots = {"coco": tmp_path / "coco"}
    rebuild(out / "manifest.parquet", roots, tmp_path / "again")
    (tmp_path / "again" / "train" / f"{name_of('a.jpg')}.png").write_bytes(b"half")
    rebuild(out / "manifest.parquet", roots, tmp_path / "again")
    assert files(tmp_path / "again") == files(written)


def test_missing_images_are_listed(out: Path, tmp_path: Path):
    (tmp_path / "coco" / "a.jpg").unlink()
    report = rebuild(out / "manifest.parquet", {"coco": tmp_path / "coco"}, tmp_path / "again")
    assert [line.split(":")[0] for line in report.missing] == ["coco/a.jpg"]


def test_a_damaged_crop_that_cannot_be_made_again_is_removed(out: Path, tmp_path: Path):
    roots, crop = {"coco": tmp_path / "coco"}, tmp_path / "again" / "train" / f"{name_of('a.jpg')}.png"
    rebuild(out / "manifest.parquet", roots, tmp_path / "again")
    crop.write_bytes(b"half")
    (tmp_path / "coco" / "a.jpg").unlink()
    rebuild(out / "manifest.parquet", roots, tmp_path / "again")
    assert not crop.exists()


def test_other_images_of_the_same_name_are_listed(out: Path, tmp_path: Path):
    draw(tmp_path / "coco" / "a.jpg", seed=99)
    report = rebuild(out / "manifest.parquet", {"coco": tmp_path / "coco"}, tmp_path / "again")
    assert report.differ == ("coco/a.jpg: another image than the manifest's (sha256)",)


def test_a_crop_that_comes_out_differently_is_listed_and_not_written(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rebuilding, "encode_png", lambda pixels: b"another encoder")
    report = rebuild(out / "manifest.parquet", {"coco": tmp_path / "coco"}, tmp_path / "again")
    assert len(report.differ) == 3 and not list((tmp_path / "again").rglob("*.png"))


def test_what_could_be_rebuilt_can_be_loaded(out: Path, tmp_path: Path):
    (tmp_path / "coco" / "a.jpg").unlink()
    rebuild(out / "manifest.parquet", {"coco": tmp_path / "coco"}, tmp_path / "again")
    assert sorted(path.parent.name for path in (tmp_path / "again").glob("*/metadata.parquet")) == ["test", "val"]


def test_other_versions_are_named_where_crops_differ(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rebuilding, "encode_png", lambda pixels: b"another encoder")
    monkeypatch.setattr(
        rebuilding, "versions", lambda: read_settings(out / "manifest.parquet")["versions"] | {"torch": "9"}
    )
    report = rebuild(out / "manifest.parquet", {"coco": tmp_path / "coco"}, tmp_path / "again")
    assert "(here 9)" in str(report)


def test_a_source_without_a_folder_is_an_error(out: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="no folder is given for source coco"):
        rebuild(out / "manifest.parquet", {}, tmp_path / "again")


# ---- manifests that are damaged, or come from somebody else ----


def change(out: Path, tmp_path: Path, **columns: pl.Expr) -> Path:
    """The manifest of `out` with other values in its first selected row, which is row 1."""
    rows = pl.read_parquet(out / "manifest.parquet").with_row_index("row")
    changed = {name: pl.when(pl.col("row") == 0).then(value).otherwise(name) for name, value in columns.items()}
    path = tmp_path / "changed.parquet"
    rows.with_columns(**changed).drop("row").write_parquet(path, metadata=settings_metadata(SMALL, SETTINGS))
    return path


@pytest.mark.parametrize(
    "file",
    [
        "/etc/passwd",
        "../secret.jpg",
        "a/../../secret.jpg",
        "..\\secret.jpg",
        "C:\\secret.jpg",
        "C:secret.jpg",
        "\\\\host\\share\\x.jpg",
        "",
    ],
)
def test_a_file_outside_its_sources_folder_is_refused_by_row_before_anything_is_read(
    out: Path, tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    message = r"changed.parquet, row 1: file .* is not below the folder of source 'coco'; no image was read"
    with pytest.raises(ValueError, match=message):
        rebuild(change(out, tmp_path, file=pl.lit(file)), {"coco": tmp_path / "coco"}, tmp_path / "again")


def test_a_link_inside_a_sources_folder_is_followed(out: Path, written: Path, tmp_path: Path):
    (tmp_path / "coco").rename(tmp_path / "elsewhere")
    (tmp_path / "coco").mkdir()
    for image in (tmp_path / "elsewhere").iterdir():
        (tmp_path / "coco" / image.name).symlink_to(image)
    rebuild(out / "manifest.parquet", {"coco": tmp_path / "coco"}, tmp_path / "again")
    assert files(tmp_path / "again") == files(written)


def test_a_name_that_is_too_long_is_missing(out: Path, tmp_path: Path):
    manifest = change(out, tmp_path, file=pl.lit("x" * 300))
    report = rebuild(manifest, {"coco": tmp_path / "coco"}, tmp_path / "again")
    assert len(report.missing) == 1 and "File name too long" in report.missing[0]


@pytest.mark.parametrize("column", ["file", "sha256", "crop_x"])
def test_a_value_that_is_missing_is_refused_by_row(out: Path, tmp_path: Path, column: str):
    with pytest.raises(ValueError, match=f"row 1: {column} is missing"):
        rebuild(change(out, tmp_path, **{column: pl.lit(None)}), {"coco": tmp_path / "coco"}, tmp_path / "again")


def test_an_id_that_is_a_path_is_never_written(out: Path, tmp_path: Path):
    manifest = change(out, tmp_path, id=pl.lit("../../") + pl.col("id"))
    with pytest.raises(ValueError, match=r"row 1: id is .*expected 16 hexadecimal digits"):
        rebuild(manifest, {"coco": tmp_path / "coco"}, tmp_path / "again")


def test_a_table_without_settings_is_no_manifest(tmp_path: Path):
    pl.DataFrame({"id": ["0"]}).write_parquet(tmp_path / "table.parquet")
    with pytest.raises(ValueError, match=r"expected a manifest.parquet of HQ-ACF"):
        rebuild(tmp_path / "table.parquet", {}, tmp_path / "again")


@pytest.mark.parametrize("settings", ["", "{", "null", "{}", '{"cut": 1, "persona": {}, "versions": {}}'])
def test_broken_settings_are_one_line(out: Path, tmp_path: Path, settings: str):
    path = tmp_path / "broken.parquet"
    pl.read_parquet(out / "manifest.parquet").write_parquet(path, metadata={"osdhuman": settings})
    with pytest.raises(ValueError, match=r"^[^\n]*its settings [^\n]*expected a manifest.parquet of HQ-ACF$"):
        rebuild(path, {"coco": tmp_path / "coco"}, tmp_path / "again")


def test_a_manifest_without_a_column_names_it(out: Path, tmp_path: Path):
    path = tmp_path / "short.parquet"
    rows = pl.read_parquet(out / "manifest.parquet").drop("crop_x", "licence")
    rows.write_parquet(path, metadata=settings_metadata(SMALL, SETTINGS))
    with pytest.raises(ValueError, match="has no column crop_x, licence; expected a manifest"):
        rebuild(path, {"coco": tmp_path / "coco"}, tmp_path / "again")


def test_a_column_of_another_kind_is_named(out: Path, tmp_path: Path):
    path = tmp_path / "kind.parquet"
    rows = pl.read_parquet(out / "manifest.parquet").with_columns(pl.col("crop_x").cast(pl.String))
    rows.write_parquet(path, metadata=settings_metadata(SMALL, SETTINGS))
    with pytest.raises(ValueError, match="column crop_x holds String, expected Int32"):
        rebuild(path, {"coco": tmp_path / "coco"}, tmp_path / "again")


@pytest.mark.parametrize("kept", [0, 4, 100, 2000, -8, -1])
def test_a_manifest_that_is_cut_off_is_one_line(out: Path, tmp_path: Path, kept: int):
    data = (out / "manifest.parquet").read_bytes()
    (tmp_path / "half.parquet").write_bytes(data[:kept])
    with pytest.raises(ValueError, match=r"^[^\n]*half.parquet cannot be read [^\n]*expected a manifest.parquet"):
        rebuild(tmp_path / "half.parquet", {"coco": tmp_path / "coco"}, tmp_path / "again")


@pytest.mark.parametrize("name", ["none.parquet", "coco"])
def test_no_file_at_all_is_one_line(out: Path, tmp_path: Path, name: str):
    with pytest.raises(FileNotFoundError, match=f"{name} is not a file; expected a manifest.parquet"):
        rebuild(tmp_path / name, {"coco": tmp_path / "coco"}, tmp_path / "again")
