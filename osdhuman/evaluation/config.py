"""Settings of a benchmark: which methods restore which sets, what is measured, and which table it fills."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from osdhuman import paper
from osdhuman.config import Config
from osdhuman.metrics.table import METRICS

PAPER_METRICS = tuple(paper.VAL_METRICS.split())
PAPER_ROWS = {2: tuple(paper.TABLE_2), 3: tuple(paper.TABLE_3), 4: tuple(paper.TABLE_4)}

# Becomes the name of a folder.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]

T = TypeVar("T")


def _without_nulls(values: Any) -> Any:
    return {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else values


# `sets.real=null` on the command line takes an entry of the file away.
Named = Annotated[dict[Name, T], BeforeValidator(_without_nulls), Field(min_length=1)]


def _known(names: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := [name for name in names if name not in METRICS]:
        raise ValueError(f"unknown metrics {', '.join(unknown)}; known: {', '.join(METRICS)}")
    return names


class SetConfig(Config):
    """Images to restore, and the ground truth where there is one. Files pair by their names."""

    lq: Path
    hq: Path | None = None
    title: str | None = None  # as the table prints it; the set's own name if null
    note: str = ""  # which images these are: the PERSONA-Val of this paper and of later ones are not the same
    paper: Literal["val", "test"] | None = None  # these are the paper's own images, so its values are shown beside


class MethodConfig(Config):
    """A restorer with its settings, or folders of images that were restored elsewhere, or neither: an empty row."""

    restorer: str | None = None
    settings: dict[str, Any] = Field({})
    images: dict[Name, Path] = Field({})  # set -> folder of PNGs
    title: str | None = None  # as the table prints it; the method's own name if null
    group: str = "One-Step Diffusion"  # best and second best are marked within a group
    paper: str | None = None  # the paper's row of this method
    tiny: bool = False  # the row is named tiny: no result of the full model
    prompt_from: Literal["hq", "lq"] | None = None  # Table 4: what the prompt extractor saw in training
    note: str = ""

    @model_validator(mode="after")
    def _one_origin(self) -> "MethodConfig":
        if self.restorer is not None and self.images:
            raise ValueError(f"either restorer or images, got both ({self.restorer} and {len(self.images)} folders)")
        if self.settings and self.restorer is None:
            raise ValueError("settings belong to a restorer, but none is named")
        return self


def title_of(name: str, method: MethodConfig) -> str:
    """What a method is called where it stands alone: that it is tiny, and what its prompts were read from, included."""
    return short_title(name, method) + (f", from {method.prompt_from.upper()}" if method.prompt_from else "")


def short_title(name: str, method: MethodConfig) -> str:
    """What a method is called in a row that says in other columns what its prompts were read from."""
    return (method.title or name) + (" (tiny)" if method.tiny else "")


class StripConfig(Config):
    """One comparison strip (Figs. 8, 9). Boxes are x0, y0, x1, y1 in pixels of the image, half-open."""

    set: Name
    image: str  # name of the image, with or without its suffix
    boxes: tuple[tuple[int, int, int, int], ...] = ()  # none: one where the methods differ most


class EvalConfig(Config):
    """One benchmark run. `output` holds all of it; the same command continues it."""

    output: Path = Path("runs/eval")
    table: Literal[2, 3, 4] = 2
    sets: Named[SetConfig]
    methods: Named[MethodConfig]
    metrics: Annotated[tuple[str, ...], AfterValidator(_known)] = PAPER_METRICS
    against: Name | None = None  # the method from which the others' paired differences are taken; null: the first
    seed: int = Field(0, ge=0)
    device: str = "cpu"
    batch: int = Field(8, gt=0)  # images measured at once
    restore_batch: int = Field(1, gt=0)
    workers: int = Field(1, gt=0)  # processes that restore (a method each) and measure (a batch each); 1 on a GPU
    cost: bool = True
    cost_size: int = Field(512, gt=0)
    strips: tuple[StripConfig, ...] = ()  # none: `strips_per_set`, evenly spaced over the names
    strips_per_set: int = Field(2, ge=0)
    zoom: int = Field(3, gt=0)  # of a strip's boxes
    page_images: int = Field(12, ge=0)  # images of each set that the page shows

    @model_validator(mode="after")
    def _names_exist(self) -> "EvalConfig":
        rows = PAPER_ROWS[self.table]
        wrong = [m.paper for m in self.methods.values() if m.paper is not None and m.paper not in rows]
        if wrong:
            raise ValueError(f"Table {self.table} of the paper has no row {', '.join(wrong)}; rows: {', '.join(rows)}")
        named = [*(s.set for s in self.strips), *(name for m in self.methods.values() for name in m.images)]
        if unknown := sorted(set(named) - set(self.sets)):
            raise ValueError(f"no set is called {', '.join(unknown)}; sets: {', '.join(self.sets)}")
        if self.against is not None and self.against not in self.methods:
            raise ValueError(f"against names no method: {self.against}; methods: {', '.join(self.methods)}")
        return self


class TrainedRow(Config):
    """One row of an ablation: a training run, and how its row is named."""

    config: Path  # of scripts/train.py
    overrides: tuple[str, ...] = ()  # key=value, after the ablation's own
    title: str
    paper: str | None = None
    stand_in: Literal["dape"] | None = None  # see osdhuman.tiny.stand_in
    note: str = ""


class AblationConfig(Config):
    """Train every row, then evaluate them all. `overrides` hold for all trainings, as a row's own do for it."""

    rows: Named[TrainedRow]
    data: Path | None = None  # training photographs of all rows, in place of what their settings say
    overrides: tuple[str, ...] = ()
    tiny: bool = False
    settings: dict[str, Any] = Field({})  # of the restorer `osdhuman`, for all rows
    eval: dict[str, Any]  # an EvalConfig without its methods, which are the rows
