"""HQ-ACF from end to end (paper 3.1, Fig. 3): one pass after another, each over all shards.

    sources -> detect -> cut -> score -> select -> write -> manifest

A shard is `shard_size` pictures of one source. A pass reads the folder of the pass before and leaves its own; what is
finished is never done again, so the same command goes on after any stop, and ends with the same files.
"""

import fcntl
import json
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from pydantic import Field, model_validator
from tqdm import tqdm

from osdhuman.config import Config, dump_config
from osdhuman.curate.crops import CutConfig, cut
from osdhuman.curate.decode import Decoded, DecodeFault, decode, read_header, reduction
from osdhuman.curate.detect import DetectorConfig, build_detector
from osdhuman.curate.engines import Engine, EngineConfig, build_engine, read_done, remove_remains, whole_folder
from osdhuman.curate.manifest import DIGESTS, Entry, write_manifest
from osdhuman.curate.persona import PersonaConfig, encode_png, settings_metadata, write_metadata, write_shard
from osdhuman.curate.record import Box, Candidate, ImageRecord, Reason, candidates_frame, images_frame, images_of
from osdhuman.curate.score import ScoreConfig, score_crops
from osdhuman.curate.select import SelectConfig, select
from osdhuman.curate.sharpness import estimate_threshold
from osdhuman.curate.sources import Faults, SourceConfig, read_source
from osdhuman.files import replacing
from osdhuman.iqa import load_scorers

PRODUCTS = (
    "images",
    "boxes",
    "thresholds.json",
    "crops",
    "scores",
    "selection",
    "manifest.parquet",
    "account.json",
    "persona",
)
FIRST_PRODUCT = {  # what a changed setting spoils: this product and those after it
    "root": "images",
    "sources": "images",
    "shard_size": "images",
    "detector": "boxes",
    "cut.decode": "boxes",
    "cut": "thresholds.json",
    "score": "scores",
    "select": "selection",
    "persona": "persona",
}
WRITTEN = ".written"  # where the write pass notes its shards
DETECTOR_SIDE = 1280  # pixels, twice what detectors look at: larger pictures are read reduced, but not below this
FAULTS = pl.Schema({"file": pl.String, "reason": pl.String, "detail": pl.String})
NO_EFFECT = {"out", "engine", "detector.batch", "detector.device", "detector.threads", "score.batch", "score.device"}


class HQACFConfig(Config):
    """One run of HQ-ACF."""

    out: Path = Path("outputs/persona")  # the run folder; the same command continues it
    root: Path = Path()  # relative paths of the sources are taken from here
    sources: tuple[SourceConfig, ...] = Field((), min_length=1)
    shard_size: int = Field(1000, gt=0)  # pictures
    detector: DetectorConfig = DetectorConfig()  # for sources without boxes
    cut: CutConfig = CutConfig()
    score: ScoreConfig = ScoreConfig()
    select: SelectConfig = SelectConfig()
    persona: PersonaConfig = PersonaConfig()
    engine: EngineConfig = EngineConfig()

    @model_validator(mode="after")
    def _names_are_unique(self) -> "HQACFConfig":
        names = [source.name for source in self.sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sources have the name {', '.join(twice)}; every source needs its own")
        return self

    @model_validator(mode="after")
    def _selection_uses_scored_metrics(self) -> "HQACFConfig":
        if missing := sorted({*self.select.metrics, *self.select.test_limits} - set(self.score.metrics)):
            raise ValueError(f"select needs {', '.join(missing)}, score.metrics has {', '.join(self.score.metrics)}")
        return self

    def absolute(self) -> "HQACFConfig":
        """The same run with absolute paths, as workers may run in another folder."""
        root = self.root.resolve()
        sources = tuple(
            source.model_copy(
                update={
                    "images": root / source.images,
                    "annotations": tuple(root / path for path in source.annotations),
                    "classes": source.classes and root / source.classes,
                }
            )
            for source in self.sources
        )
        return self.model_copy(update={"out": self.out.resolve(), "root": root, "sources": sources})

    def source(self, name: str) -> SourceConfig:
        return next(source for source in self.sources if source.name == name)


def run(config: HQACFConfig) -> dict:
    """Do whatever is left to do in `config.out`; returns the account.

    Raises MetricUnavailable before any work where a metric cannot be had, ValueError where the folder holds a run with
    other settings, ShardError for a shard that cannot be done, AccountError for a picture that was lost.
    """
    config = config.absolute()
    if not is_decided(config):
        check_networks(config)
    config.out.mkdir(parents=True, exist_ok=True)
    with alone_in(config.out):
        claim(config)
        return do_passes(config, build_engine(config.engine))


def do_passes(config: HQACFConfig, engine: Engine) -> dict:
    """Every pass in order; returns the account."""
    index = read_sources(config)
    images = {shard: entry["images"] for shard, entry in index.items()}
    without_boxes = {shard: images[shard] for shard, entry in index.items() if entry["boxes"] is None}
    on_cards = config.detector.device != "cpu"
    run_pass(engine, config.out / "boxes", without_boxes, partial(detect_shard, config), "detect", on_cards)
    thresholds = sharpness_thresholds(config, index)
    run_pass(engine, config.out / "crops", images, partial(cut_shard, config, thresholds), "cut")
    crops = {shard: read_done(shard_folder(config, "crops", shard))["crops"] for shard in index}
    on_cards = config.score.device != "cpu"
    run_pass(engine, config.out / "scores", crops, partial(score_shard, config), "score", on_cards)
    select_crops(config)
    account = make_manifest(config, index)
    if not (config.out / "persona" / "README.md").exists():  # the last file of the folder
        run_pass(engine, config.out / "persona" / WRITTEN, crops, partial(write_crops, config), "write")
        write_metadata(config.out)
    shutil.rmtree(config.out / "persona" / WRITTEN, ignore_errors=True)
    return account


# ---------------------------------------------------------------------------------------------- before the work starts


def check_networks(config: HQACFConfig) -> None:
    """Load every metric once, and the detector if it has work to do, so that what is missing is said before the work.

    Weights that can be downloaded are, by this one process. Raises MetricUnavailable, which names all metrics that
    cannot be had, and what `build_detector` raises.
    """
    load_scorers(config.score.metrics, "cpu")
    if any(source.format == "folder" for source in config.sources):
        build_detector(config.detector.model_copy(update={"device": "cpu"}))


def claim(config: HQACFConfig) -> None:
    """Make the run folder this run's: refuse other settings, note these, remove what dead attempts left."""
    path = config.out / "config.yaml"
    if path.exists():
        refuse_other_settings(config, yaml.safe_load(path.read_text(encoding="utf-8")))
    with replacing(path) as part:
        part.write_text(dump_config(config), encoding="utf-8")
    for folder in ("", *PRODUCTS, *(f"persona/{inside}" for inside in (WRITTEN, "train", "val/hq", "val/lq", "test"))):
        remove_remains(config.out / folder)


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Raises ValueError while another run works in the folder: each would delete what the other is writing."""
    with (out / ".lock").open("w") as lock:  # the system opens it again when the process ends, however that ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another run is working in {out}; wait for its end, or choose out=...") from None
        yield


def refuse_other_settings(config: HQACFConfig, before: dict) -> None:
    """Raises ValueError if a setting that made something still in the folder is another now."""
    changed = dict(_differences(before, config.model_dump(mode="json")))
    spoilt = [product for product in PRODUCTS if any(product in _spoilt_by(key) for key in changed)]
    spoilt = [str(config.out / product) for product in spoilt if (config.out / product).exists()]
    if spoilt:
        lines = [f"{config.out} holds a run with other settings:"]
        lines += [f"  {key}: {old!r} there, {new!r} now" for key, (old, new) in changed.items()]
        lines += ["choose another folder with out=..., or delete what depends on them and run again:"]
        raise ValueError("\n".join([*lines, f"  rm -r {shlex.join(spoilt)}"]))


def _differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, tuple]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            yield from _differences(before.get(name), now.get(name), f"{key}.{name}".lstrip("."))
    elif before != now and key not in NO_EFFECT and not key.startswith("engine."):
        yield key, (before, now)


def _spoilt_by(key: str) -> Sequence[str]:
    setting = max((name for name in FIRST_PRODUCT if f"{key}.".startswith(f"{name}.")), key=len)
    return PRODUCTS[PRODUCTS.index(FIRST_PRODUCT[setting]) :]


# --------------------------------------------------------------------------------------------------------- the passes


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
