"""The passes of HQ-ACF: each reads the files of the pass before, shard by shard, and writes its own."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from itertools import islice
from pathlib import Path

import polars as pl
from tqdm import tqdm

from osdhuman.curate.config import HQACFConfig
from osdhuman.curate.crops import cut
from osdhuman.curate.detect import DetectorConfig, build_detector
from osdhuman.curate.engines import Engine, read_done, whole_folder
from osdhuman.curate.manifest import DIGESTS, Entry, write_manifest
from osdhuman.curate.persona import encode_png, settings_metadata, write_shard
from osdhuman.curate.pixels import Decoded, DecodeFault, decode, read_header, reduction
from osdhuman.curate.record import Box, Candidate, ImageRecord, Reason, candidates_frame, images_frame, images_of
from osdhuman.curate.score import score_crops
from osdhuman.curate.select import select
from osdhuman.curate.sharpness import estimate_threshold
from osdhuman.curate.sources import Faults, read_source
from osdhuman.files import replacing

WRITTEN = ".written"  # where the write pass notes its shards
DETECTOR_SIDE = 1280  # pixels, twice what detectors look at: larger pictures are read reduced, but not below this
FAULTS = pl.Schema({"file": pl.String, "reason": pl.String, "detail": pl.String})


def run_pass(
    engine: Engine, folder: Path, sizes: Mapping[int, int], work: Callable[[int], dict], name: str, gpu: bool = False
) -> None:
    """Do `work` for the shards that have no finished folder yet; `sizes` are their numbers of pictures or crops."""
    left = [shard for shard in sizes if read_done(folder / f"{shard:05d}") is None]
    total, to_do = sum(sizes.values()), sum(sizes[shard] for shard in left)
    with tqdm(total=total, initial=total - to_do, desc=name, unit="image", disable=None) as bar:
        for shard, _ in engine.run(left, work, gpu):
            bar.update(sizes[shard])


def read_sources(config: HQACFConfig) -> dict[int, dict]:
    """Read the annotations into images/*.parquet; returns what entered with every shard: source, images and boxes.

    `boxes` is None for a shard that holds records for the detector. Memory holds one shard, and at the end 8 bytes
    of every record. Raises ValueError where a source names a picture twice, as two of its annotation files may.
    """
    folder = config.out / "images"
    if (done := read_done(folder)) is None:
        shutil.rmtree(folder, ignore_errors=True)
        with whole_folder(folder) as (part, done), Faults.written_to(config.out / "faults.jsonl") as faults:
            done["index"] = [
                _write_records(part / f"{shard:05d}.parquet", records)
                for shard, records in enumerate(_chunks(config, faults))
            ]
            refuse_twins(part)
            done |= {"images": sum(entry["images"] for entry in done["index"]), "shards": len(done["index"])}
            done["faults"] = faults.count
    return dict(enumerate(done["index"]))


def refuse_twins(images: Path) -> None:
    """Raises ValueError where two records of a source are the same file: their crops would have the same ids."""
    records, key = pl.scan_parquet(images / "*.parquet"), pl.concat_str("source", "file", separator="\n").hash()
    repeated = records.group_by(key=key).len().filter(pl.col("len") > 1).collect(engine="streaming")["key"]
    if len(repeated):
        twins = records.filter(key.is_in(repeated.implode())).select("source", "file").unique().sort("source", "file")
        source, file = twins.collect().row(0)
        raise ValueError(
            f"{len(repeated)} pictures come twice, the first is {file} of source {source!r}; name one annotation file "
            "for each picture (instances or keypoints, not both), or make two sources of them"
        )


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
    return config.out / product / f"{shard:05d}"


def read_records(config: HQACFConfig, shard: int) -> list[ImageRecord]:
    """The records of a shard, as annotated or, if it was its turn, as the detector completed them."""
    detected = shard_folder(config, "boxes", shard) / "images.parquet"
    annotated = config.out / "images" / f"{shard:05d}.parquet"
    return list(images_of(pl.read_parquet(detected if detected.exists() else annotated)))


def detect_shard(config: HQACFConfig, shard: int) -> dict:
    """Fill the boxes that are None; a picture that cannot be read gets no box, and a row in faults.parquet."""
    records = read_records(config, shard)
    unknown = [place for place, record in enumerate(records) if record.boxes is None]
    faults: list[tuple[str, str, str]] = []
    for start in range(0, len(unknown), config.detector.batch):
        pictures: dict[int, Decoded] = {}
        for place in unknown[start : start + config.detector.batch]:
            try:
                pictures[place] = read_picture(config, records[place])
            except DecodeFault as fault:
                faults.append((records[place].file, str(fault.reason), fault.detail))
                records[place] = replace(records[place], boxes=())
        found = _detector(config.detector)([picture.pixels for picture in pictures.values()])
        for (place, picture), boxes in zip(pictures.items(), found, strict=True):
            records[place] = replace(records[place], boxes=tuple(scaled(box, picture) for box in boxes))
    with whole_folder(shard_folder(config, "boxes", shard)) as (part, counts):
        images_frame(records).write_parquet(part / "images.parquet")
        pl.DataFrame(faults, schema=FAULTS, orient="row").write_parquet(part / "faults.parquet")
        counts |= {"images": len(records), "boxes": sum(len(record.boxes) for record in records)}
    return counts


def read_picture(config: HQACFConfig, record: ImageRecord) -> Decoded:
    """A picture as large as a detector looks at it. Raises DecodeFault."""
    try:
        data = (config.source(record.source).images / record.file).read_bytes()
    except OSError as error:
        raise DecodeFault(Reason.UNREADABLE, error.strerror or type(error).__name__) from error
    header = read_header(data, config.cut.decode)
    return decode(data, config.cut.decode, reduction(max(header.width, header.height), DETECTOR_SIDE))


def scaled(box: Box, picture: Decoded) -> Box:
    """A box of a reduced picture in pixels of the full one."""
    width, height, factor = picture.width, picture.height, picture.factor
    x0, x1 = (min(x * factor, float(width)) for x in (box.x0, box.x1))
    y0, y1 = (min(y * factor, float(height)) for y in (box.y0, box.y1))
    return Box(x0, y0, x1, y1, box.id)


@lru_cache(maxsize=1)
def _detector(config: DetectorConfig) -> Callable[[list], list[tuple[Box, ...]]]:
    """Once per process: a worker sees many shards."""
    return build_detector(config)


def sharpness_thresholds(config: HQACFConfig, index: Mapping[int, dict]) -> dict[str, float]:
    """The sharpness that a picture must have, for each source; estimated once, then read from thresholds.json."""
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
    """Pictures -> candidates.parquet, a PNG of 512x512 for each that is not dropped, and the PNGs' sha256."""
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
    """File -> `reason` and `detail`, of the pictures that could not be shown to the detector."""
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
    if not (config.out / "selection" / "selection.parquet").exists():
        select(config.out, config.select, [source.name for source in config.sources if source.split == "test"])


def is_decided(config: HQACFConfig) -> bool:
    """Whether the fate of every candidate is known and written."""
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
