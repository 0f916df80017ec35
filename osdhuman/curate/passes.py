"""The passes of HQ-ACF: each reads the files of the pass before, shard by shard, and writes its own."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from itertools import islice
from pathlib import Path

import polars as pl
from tqdm import tqdm

from osdhuman.curate.config import HQACFConfig
from osdhuman.curate.crops import cut, read_file
from osdhuman.curate.detect import DetectorConfig, build_detector
from osdhuman.curate.engines import Engine, read_done, whole_folder
from osdhuman.curate.manifest import DIGESTS, Entry, write_manifest
from osdhuman.curate.persona import encode_png, settings_metadata, write_shard
from osdhuman.curate.pixels import Decoded, DecodeFault, open_image, reduction
from osdhuman.curate.record import Box, Candidate, ImageRecord, candidates_frame, images_frame, images_of
from osdhuman.curate.score import score_crops
from osdhuman.curate.select import select
from osdhuman.curate.sharpness import estimate_threshold
from osdhuman.curate.sources import Faults, SourceConfig, read_source
from osdhuman.files import replacing

WRITTEN = ".written"  # where the write pass notes its shards
DETECTOR_SIDE = 1280  # pixels, twice what detectors look at: larger images are read reduced, but not below this
FILE_KEY = pl.concat_str("source", "file", separator="\n").hash()  # 64 bits
NAMES = ["source", "file", "image_id"]
FAULTS = pl.Schema({"file": pl.String, "reason": pl.String, "detail": pl.String})


def run_pass(
    engine: Engine, folder: Path, sizes: Mapping[int, int], work: Callable[[int], dict], name: str, gpu: bool = False
) -> None:
    """Do `work` for the shards that have no finished folder yet; `sizes` are their numbers of images or crops."""
    left = [shard for shard in sizes if read_done(folder / f"{shard:05d}") is None]
    total, to_do = sum(sizes.values()), sum(sizes[shard] for shard in left)
    bar = tqdm(total=total, initial=total - to_do, desc=name, unit="image", disable=None)
    with bar, closing(engine.run(left, work, gpu)) as finished:  # closed at once where Ctrl-C comes between two shards
        for shard, _ in finished:
            bar.update(sizes[shard])


def read_sources(config: HQACFConfig) -> dict[int, dict]:
    """Read the annotations into images/*.parquet; returns what entered with every shard: source, images and boxes.

    `boxes` is None for a shard that holds records for the detector. Memory holds one shard, and at the end 8 bytes
    of every record. Raises ValueError for a source without a single image; its faults are in faults.jsonl.
    """
    folder = config.out / "images"
    if (done := read_done(folder)) is None:
        shutil.rmtree(folder, ignore_errors=True)
        with whole_folder(folder) as (part, done), Faults.written_to(config.out / "faults.jsonl") as faults:
            index = [
                _write_records(part / f"{shard:05d}.parquet", records)
                for shard, records in enumerate(_chunks(config, faults))
            ]
            done["index"] = drop_repeated(part, index, faults)
            done |= {"images": sum(entry["images"] for entry in index), "shards": len(index), "faults": faults.count}
    refuse_empty_sources(config, done["index"])
    return dict(enumerate(done["index"]))


def drop_repeated(images: Path, index: Sequence[dict], faults: Faults) -> list[dict]:
    """Of the records of a source that name the same file keep the first; the others become faults. Returns the index.

    Two records of one file would give crops of the same ids. They come from one annotation file that names an image
    twice, or from two that both name it (instances and keypoints).
    """
    files = [images / f"{shard:05d}.parquet" for shard in range(len(index))]
    if not files:
        return []
    counts = pl.scan_parquet(files).group_by(key=FILE_KEY).len()
    repeated = counts.filter(pl.col("len") > 1).collect(engine="streaming")["key"].implode()
    seen: set[tuple[str, str]] = set()
    if repeated.list.len().item():
        return [_keep_first(file, entry, repeated, seen, faults) for file, entry in zip(files, index, strict=True)]
    return list(index)


def _keep_first(file: Path, entry: dict, repeated: pl.Series, seen: set[tuple[str, str]], faults: Faults) -> dict:
    frame = pl.read_parquet(file)
    kept = []
    for suspect, source, name, image in frame.select(key=FILE_KEY.is_in(repeated)).hstack(frame[NAMES]).rows():
        kept.append(not suspect or (source, name) not in seen)
        seen |= {(source, name)} if suspect else set()
        if not kept[-1]:
            faults.add(source, name, f"image {image}", "names an image that came before; its first record is used")
    if all(kept):
        return entry
    frame = frame.filter(pl.Series(kept, dtype=pl.Boolean))
    frame.write_parquet(file)
    boxes = None if frame["boxes"].has_nulls() else int(frame["boxes"].list.len().sum())
    return {**entry, "images": len(frame), "boxes": boxes}


def refuse_empty_sources(config: HQACFConfig, index: Sequence[dict]) -> None:
    """Raises ValueError where a source has no image: its paths or its format are wrong. Its records are forgotten."""
    empty = [source for source in config.sources if not any(entry["source"] == source.name for entry in index)]
    if empty:
        shutil.rmtree(config.out / "images")
        raise ValueError("\n".join(_explain_empty(config.out / "faults.jsonl", source) for source in empty))


def _explain_empty(path: Path, source: SourceConfig) -> str:
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    of_source = [fault for fault in lines if fault["source"] == source.name]
    faults = [f"{fault['file']} {fault['record']}: {fault['fault']}" for fault in of_source]
    images, annotations = source.images, ", ".join(map(str, source.annotations))
    if not faults:
        return f"source {source.name!r} names no image; check {annotations or images} and its format {source.format!r}"
    return f"source {source.name!r} names no image; its {len(faults)} faults are in {path}, the first is {faults[0]}"


def _chunks(config: HQACFConfig, faults: Faults) -> Iterator[list[ImageRecord]]:
    for source in config.sources:
        records = iter(tqdm(read_source(source, faults), desc=source.name, unit="image", disable=None))
        while chunk := list(islice(records, config.shard_size)):
            yield chunk


def _write_records(path: Path, records: Sequence[ImageRecord]) -> dict:
    images_frame(records).write_parquet(path)
    boxes = [record.boxes for record in records]
    total = None if None in boxes else sum(map(len, boxes))
    return {"source": records[0].source, "images": len(records), "boxes": total}


def shard_folder(config: HQACFConfig, product: str, shard: int) -> Path:
    """Where a pass leaves the shard of a product."""
    return config.out / product / f"{shard:05d}"


def read_records(config: HQACFConfig, shard: int) -> list[ImageRecord]:
    """The records of a shard, as annotated or, if it was its turn, as the detector completed them."""
    detected = shard_folder(config, "boxes", shard) / "images.parquet"
    annotated = config.out / "images" / f"{shard:05d}.parquet"
    return list(images_of(pl.read_parquet(detected if detected.exists() else annotated)))


def detect_shard(config: HQACFConfig, shard: int) -> dict:
    """Fill the boxes that are None; an image that cannot be read gets no box, and a row in faults.parquet."""
    records = read_records(config, shard)
    unknown = [place for place, record in enumerate(records) if record.boxes is None]
    faults: list[tuple[str, str, str]] = []
    for start in range(0, len(unknown), config.detector.batch):
        images: dict[int, Decoded] = {}
        for place in unknown[start : start + config.detector.batch]:
            try:
                images[place] = read_image(config, records[place])
            except DecodeFault as fault:
                faults.append((records[place].file, str(fault.reason), fault.detail))
                records[place] = replace(records[place], boxes=())
        found = _detector(config.detector)([image.pixels for image in images.values()])
        for (place, image), boxes in zip(images.items(), found, strict=True):
            records[place] = replace(records[place], boxes=tuple(scaled(box, image) for box in boxes))
    with whole_folder(shard_folder(config, "boxes", shard)) as (part, counts):
        images_frame(records).write_parquet(part / "images.parquet")
        pl.DataFrame(faults, schema=FAULTS, orient="row").write_parquet(part / "faults.parquet")
        counts |= {"images": len(records), "boxes": sum(len(record.boxes) for record in records)}
    return counts


def read_image(config: HQACFConfig, record: ImageRecord) -> Decoded:
    """An image as large as a detector looks at it. Raises DecodeFault."""
    image = open_image(read_file(config.source(record.source).images / record.file), config.cut.decode)
    return image.decode(reduction(max(image.width, image.height), DETECTOR_SIDE))


def scaled(box: Box, image: Decoded) -> Box:
    """A box of a reduced image in pixels of the full one."""
    width, height, factor = image.width, image.height, image.factor
    x0, x1 = (min(x * factor, float(width)) for x in (box.x0, box.x1))
    y0, y1 = (min(y * factor, float(height)) for y in (box.y0, box.y1))
    return Box(x0, y0, x1, y1, box.id)


@lru_cache(maxsize=1)
def _detector(config: DetectorConfig) -> Callable[[list], list[tuple[Box, ...]]]:
    """Once per process: a worker sees many shards."""
    return build_detector(config)


def sharpness_thresholds(config: HQACFConfig, index: Mapping[int, dict]) -> dict[str, float]:
    """The sharpness that an image must have, for each source; estimated once, then read from thresholds.json."""
    path = config.out / "thresholds.json"
    if not path.exists():
        thresholds = {}
        for source in config.sources:
            shards = [shard for shard, entry in index.items() if entry["source"] == source.name]
            records = (record for shard in shards for record in read_records(config, shard))
            thresholds[source.name] = estimate_threshold(
                records, source.images, config.cut.sharpness, config.cut.decode
            )
        with replacing(path) as part:
            part.write_text(json.dumps(thresholds, indent=1) + "\n", encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def cut_shard(config: HQACFConfig, thresholds: Mapping[str, float], shard: int) -> dict:
    """Images -> candidates.parquet, a PNG of 512x512 for each candidate that is not dropped, and the PNGs' sha256."""
    candidates: list[Candidate] = []
    digests: list[tuple[str, str]] = []
    faults = read_faults(config, shard)
    with whole_folder(shard_folder(config, "crops", shard)) as (part, counts):
        for record in read_records(config, shard):
            result = cut(record, config.source(record.source).images, config.cut, thresholds[record.source])
            why = faults.get(record.file, {})  # nobody was found where nothing could be seen
            candidates += [replace(candidate, **why) for candidate in result.candidates]
            for crop, pixels in result.crops.items():
                png = encode_png(pixels)
                (part / f"{crop}.png").write_bytes(png)
                digests.append((crop, sha256(png).hexdigest()))
        candidates_frame(candidates).write_parquet(part / "candidates.parquet")
        pl.DataFrame(digests, schema=DIGESTS, orient="row").write_parquet(part / "digests.parquet")
        counts |= {"candidates": len(candidates), "crops": len(digests)}
    return counts


def read_faults(config: HQACFConfig, shard: int) -> dict[str, dict[str, str]]:
    """File -> `reason` and `detail`, of the images that could not be shown to the detector."""
    path = shard_folder(config, "boxes", shard) / "faults.parquet"
    rows = pl.read_parquet(path).rows() if path.exists() else []
    return {file: {"reason": reason, "detail": detail} for file, reason, detail in rows}


def score_shard(config: HQACFConfig, shard: int) -> dict:
    """Crops -> scores.parquet, one row each."""
    crops = shard_folder(config, "crops", shard)
    ids = pl.read_parquet(crops / "digests.parquet")["id"].to_list()
    scores = score_crops(crops, ids, config.score)
    with whole_folder(shard_folder(config, "scores", shard)) as (part, counts):
        scores.write_parquet(part / "scores.parquet")
        counts["crops"] = len(ids)
    return counts


def select_crops(config: HQACFConfig) -> None:
    """The one global step, unless it is done."""
    if not (config.out / "selection" / "selection.parquet").exists():
        select(config.out, config.select, [source.name for source in config.sources if source.split == "test"])


def is_decided(config: HQACFConfig) -> bool:
    """Whether the outcome of every candidate is known and written."""
    return all((config.out / name).exists() for name in ("manifest.parquet", "account.json"))


def make_manifest(config: HQACFConfig, index: Mapping[int, dict]) -> dict:
    """The account, from account.json if the manifest is there."""
    if is_decided(config):
        return json.loads((config.out / "account.json").read_text(encoding="utf-8"))
    entries = {}
    for shard, entry in index.items():
        detected = read_done(shard_folder(config, "boxes", shard)) if entry["boxes"] is None else entry
        entries[shard] = Entry(entry["source"], entry["images"], detected["boxes"])
    return write_manifest(config.out, entries, settings_metadata(config.cut, config.persona))


def write_crops(config: HQACFConfig, shard: int) -> dict:
    """Selected crops -> persona; what is there stays."""
    with whole_folder(config.out / "persona" / WRITTEN / f"{shard:05d}") as (_, counts):
        counts |= write_shard(config.out, shard, config.persona)
    return counts
