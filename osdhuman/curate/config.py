"""Settings of HQ-ACF, and which product each of them changes."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field, model_validator

from osdhuman.config import Config
from osdhuman.curate.crops import CutConfig
from osdhuman.curate.detect import DetectorConfig
from osdhuman.curate.engines import EngineConfig
from osdhuman.curate.persona import PersonaConfig
from osdhuman.curate.score import ScoreConfig
from osdhuman.curate.select import SelectConfig
from osdhuman.curate.sources import SourceConfig
from osdhuman.resume import differences

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
NO_EFFECT = {"out", "engine", "detector.batch", "detector.device", "detector.threads", "score.batch", "score.device"}


class HQACFConfig(Config):
    """One run of HQ-ACF."""

    out: Path = Path("outputs/persona")  # the run folder; the same command continues it
    root: Path = Path()  # relative paths of the sources are taken from here
    sources: tuple[SourceConfig, ...] = Field((), min_length=1)
    shard_size: int = Field(1000, gt=0)  # images
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
        if missing := sorted(set(self.select.needed_metrics) - set(self.score.metrics)):
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


def _differences(before: dict, now: dict) -> Iterator[tuple[str, tuple]]:
    for key, old, new in differences(before, now):
        if key not in NO_EFFECT and not key.startswith("engine."):
            yield key, (old, new)


def _spoilt_by(key: str) -> Sequence[str]:
    setting = max((name for name in FIRST_PRODUCT if f"{key}.".startswith(f"{name}.")), key=len)
    return PRODUCTS[PRODUCTS.index(FIRST_PRODUCT[setting]) :]
