"""HQ-ACF from end to end (paper 3.1, Fig. 3): one pass after another, each over all shards.

    sources -> detect -> cut -> score -> select -> write -> manifest

A shard is `shard_size` images of one source. A pass reads the folder of the pass before and leaves its own; what is
finished is never done again, so the same command goes on after any stop, and ends with the same files.
"""

import shutil
from contextlib import closing
from functools import partial
from pathlib import Path

import yaml

from osdhuman.config import dump_config, load_yaml
from osdhuman.curate.config import PRODUCTS, HQACFConfig, refuse_other_settings
from osdhuman.curate.detect import build_detector
from osdhuman.curate.engines import Engine, build_engine, read_done, remove_leftovers
from osdhuman.curate.passes import (
    WRITTEN,
    cut_shard,
    detect_shard,
    is_decided,
    make_manifest,
    read_sources,
    run_pass,
    score_shard,
    select_crops,
    shard_folder,
    sharpness_thresholds,
    write_crops,
)
from osdhuman.curate.persona import write_metadata
from osdhuman.files import replacing
from osdhuman.metrics.scorers import load_scorers
from osdhuman.resume import exclusive


def run(config: HQACFConfig) -> dict:
    """Do whatever is left to do in `config.out`; returns the account.

    Raises MetricUnavailable before any work where a metric cannot be had; ValueError where the folder holds a run with
    other settings, or a source names no image; ShardError for a shard that cannot be done; AccountError for an image
    that was lost.
    """
    config = config.absolute()
    if not is_decided(config):
        check_networks(config)
    if config.out.exists() and not config.out.is_dir():
        raise ValueError(f"out={config.out} is a file; name a folder, which is made if it does not exist")
    config.out.mkdir(parents=True, exist_ok=True)
    with exclusive(config.out, "wait until it ends, or choose out=..."):
        claim(config)
        try:
            with closing(build_engine(config.engine)) as engine:
                return do_passes(config, engine)
        finally:
            remove_unfinished(config.out)


def progress(out: Path) -> str:
    """What a stopped run in `out` has finished, in one line."""
    total = (read_done(out / "images") or {}).get("shards")
    if total is None:
        return f"the sources were not read to the end; the same command begins again in {out}"
    passes = {"detected": "boxes", "cut": "crops", "scored": "scores"}
    counts = {name: len(list((out / folder).glob("[0-9]*"))) for name, folder in passes.items()}
    done = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none begun"
    return f"of {total} shards {done}; they are kept in {out} and the same command continues"


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


def check_networks(config: HQACFConfig) -> None:
    """Load every metric once, and the detector if it has work to do, so that what is missing is said before the work.

    Weights that can be downloaded are, by this one process. Raises MetricUnavailable, which names all metrics that
    cannot be had, and what `build_detector` raises.
    """
    load_scorers(config.score.metrics, "cpu")
    if any(source.format == "folder" for source in config.sources):
        build_detector(config.detector.model_copy(update={"device": "cpu"}))


def _settings_of(path: Path) -> dict:
    """The settings that an earlier run wrote. Raises ValueError, one line, for a damaged file."""
    try:
        settings = load_yaml(path.read_bytes())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is damaged: {str(error).splitlines()[0]}; delete it or choose out=...") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings; delete it or choose out=...")
    return settings


def claim(config: HQACFConfig) -> None:
    """Make the run folder this run's: refuse other settings, note these, remove what unfinished attempts left."""
    path = config.out / "config.yaml"
    if path.exists():
        refuse_other_settings(config, _settings_of(path))
    with replacing(path) as part:
        part.write_text(dump_config(config), encoding="utf-8")
    remove_unfinished(config.out)


def remove_unfinished(out: Path) -> None:
    """Delete the temporary files and folders of attempts that ended before they were whole."""
    for folder in ("", *PRODUCTS, *(f"persona/{inside}" for inside in (WRITTEN, "train", "val/hq", "val/lq", "test"))):
        remove_leftovers(out / folder)
