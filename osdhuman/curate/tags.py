"""The tags that RAM++ finds in a folder of images, counted per tag and per category (paper 4.1, Fig. 7).

The weights, the list of tags and their thresholds are the files that the recognize-anything project publishes. Which
tag belongs to which of the paper's ten categories is not published: `tag_categories.csv` is our own map, of common
English words; `read_categories` reads another one.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from osdhuman.config import Config
from osdhuman.files import file_sha256, replacing
from osdhuman.folders import find_images
from osdhuman.images import ImageError, load_rgb, resize
from osdhuman.models.checkpoint import read_checkpoint
from osdhuman.models.ram import RAMConfig, RAMEncoder, encoder_from_state
from osdhuman.models.tagging import TaggingConfig, TaggingHead, head_from_state, read_tag_list, tags
from osdhuman.paper import FIGURE_7

PUBLISHED = (
    "RAM++'s weights are ram_plus_swin_large_14m.pth of the project xinyu1205/recognize-anything (licence Apache-2.0), "
    "published at huggingface.co/xinyu1205/recognize-anything-plus-model"
)
CATEGORIES = tuple(FIGURE_7)
UNSORTED = "Unsorted"  # tags that the map does not know; the paper has none
OWN_MAP = Path(__file__).with_name("tag_categories.csv")
CHUNK = pl.Schema({"file": pl.String, "tags": pl.List(pl.String), "fault": pl.String})


class TagConfig(Config):
    """Official files of RAM++ (or of RAM, with `head: {descriptions: 1}`) and how to go through a folder."""

    checkpoint: Path = Path("ram_plus_swin_large_14m.pth")
    tag_list: Path = Path("ram_tag_list.txt")
    thresholds: Path = Path("ram_tag_list_threshold.txt")
    encoder: RAMConfig = RAMConfig()
    head: TaggingConfig = TaggingConfig(descriptions=51)
    batch: int = Field(32, gt=0)
    chunk: int = Field(1024, gt=0)  # images per file that is written: what a stop can cost
    readers: int = Field(4, gt=0)  # threads that decode images while the network works
    device: str = "cpu"


@dataclass(frozen=True)
class Tagger:
    """Encoder, head, and what the head's logits mean."""

    encoder: RAMEncoder
    head: TaggingHead
    words: Sequence[str]
    thresholds: Tensor

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> list[list[str]]:
        """Images (B,3,H,W) in [0,1] -> the tags of each, in the order of the list of tags."""
        logits = self.head(self.encoder(image))
        return [line.split(", ") if line else [] for line in tags(logits, self.words, self.thresholds)]


def load_tagger(config: TagConfig) -> Tagger:
    """Read RAM++ from its official files.

    Raises FileNotFoundError that says where they are published, and ValueError for a file of another layout.
    """
    state = read_checkpoint(config.checkpoint, PUBLISHED)
    words, thresholds = read_tag_list(config.tag_list, config.thresholds, config.head.tags)
    encoder = encoder_from_state(state, config.encoder).to(config.device)
    return Tagger(encoder, head_from_state(state, config.head).to(config.device), words, thresholds)


def tag_folder(images: Path, output: Path, config: TagConfig) -> None:
    """Tag every image under `images`, in any depth, into `output`/00000.parquet ...: file, tags, fault.

    An image that cannot be read has null for its tags and says why. A chunk's file appears whole; the same call
    continues after a stop. Raises FileNotFoundError if there are no images, ValueError if `output` holds tags of other
    files of RAM++.
    """
    files = sorted(path.relative_to(images).as_posix() for path in find_images(images))
    tagger = load_tagger(config)
    _claim(output, config)
    chunks = [files[i : i + config.chunk] for i in range(0, len(files), config.chunk)]
    paths = [output / f"{index:05d}.parquet" for index in range(len(chunks))]
    for leftover in set(output.glob("*.parquet")) - set(paths):  # the folder was larger
        leftover.unlink()
    with tqdm(total=len(files), unit="image", desc="tags", disable=None) as progress:
        for path, chunk in zip(paths, chunks, strict=True):
            if not _holds(path, chunk):
                frame = pl.DataFrame(list(_rows(tagger, images, chunk, config)), schema=CHUNK, orient="row")
                with replacing(path) as part:
                    frame.write_parquet(part)
            progress.update(len(chunk))


def _rows(tagger: Tagger, images: Path, files: Sequence[str], config: TagConfig) -> Iterator[tuple]:
    size = (tagger.encoder.config.image_size,) * 2

    def read(file: str) -> Tensor | ImageError:
        try:
            return resize(load_rgb(images / file)[None], size, "bilinear")
        except ImageError as error:
            return error

    with ThreadPoolExecutor(config.readers) as pool:
        for start in range(0, len(files), config.batch):
            batch = files[start : start + config.batch]
            read_ones = list(pool.map(read, batch))
            good = [image for image in read_ones if isinstance(image, Tensor)]
            found = iter(tagger(torch.cat(good).to(config.device)) if good else [])
            for file, image in zip(batch, read_ones, strict=True):
                is_bad = isinstance(image, ImageError)
                yield file, None if is_bad else next(found), image.reason if is_bad else None


def _holds(path: Path, files: Sequence[str]) -> bool:
    try:
        return path.is_file() and pl.read_parquet(path, columns=["file"])["file"].to_list() == list(files)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):  # damaged: it is made again
        return False


def _claim(output: Path, config: TagConfig) -> None:
    """Write what makes these tags; refuse a folder that was made by something else."""
    identity = {name: file_sha256(getattr(config, name)) for name in ("checkpoint", "tag_list", "thresholds")}
    path = output / "tagger.json"
    if path.is_file() and (found := _read_identity(path)) != identity:
        differing = ", ".join(name for name in identity if found.get(name) != identity[name])
        raise ValueError(f"{output} holds tags made with another {differing}: give another folder, or delete it")
    with replacing(path) as part:
        part.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")


def _read_identity(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged, expected a JSON object; delete the folder {path.parent} and tag again")
    return found


# ----------------------------------------------------------------------------------------------------------- counting


@dataclass(frozen=True)
class TagCounts:
    """Tags of a folder. `per_tag`: tag, category, count, the most frequent first. `per_category`: category, tags,
    distinct, in the paper's order, all ten and then Unsorted if there are any. `images` counts those that were read."""

    images: int
    per_tag: pl.DataFrame
    per_category: pl.DataFrame

    @property
    def per_image(self) -> float:
        """Mean number of tags (paper: 13.32); NaN without images."""
        return self.per_tag["count"].sum() / self.images if self.images else float("nan")


def count_tags(folder: Path, categories: Mapping[str, str] | None = None) -> TagCounts:
    """Count what `tag_folder` wrote; `categories` None is our own map.

    Raises FileNotFoundError if there are no tags, ValueError for a file of tags that is damaged.
    """
    categories = read_categories(OWN_MAP) if categories is None else categories
    images, counts = _read_counts(folder)
    per_tag = counts.with_columns(
        category=pl.col("tag").map_elements(lambda tag: category_of(tag, categories), return_dtype=pl.String)
    )
    per_tag = per_tag.select("tag", "category", "count").sort("count", "tag", descending=[True, False])
    sums = per_tag.group_by("category").agg(tags=pl.col("count").sum(), distinct=pl.len().cast(pl.Int64))
    order = pl.DataFrame({"category": [*CATEGORIES, UNSORTED]})
    per_category = order.join(sums, on="category", how="left", maintain_order="left").fill_null(0)
    return TagCounts(images, per_tag, per_category.filter((pl.col("tags") > 0) | (pl.col("category") != UNSORTED)))


def _read_counts(folder: Path) -> tuple[int, pl.DataFrame]:
    """Number of images that were read; tag and count."""
    if not list(folder.glob("*.parquet")):
        raise FileNotFoundError(f"{folder} holds no tags; `osdhuman.curate.tags.tag_folder` writes them")
    try:
        rows = pl.scan_parquet(folder / "*.parquet").filter(pl.col("tags").is_not_null())
        counts = rows.select(tag="tags").explode("tag").drop_nulls().group_by("tag").agg(count=pl.len().cast(pl.Int64))
        return rows.select(pl.len()).collect().item(), counts.collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise ValueError(f"{folder} holds a damaged file of tags ({reason}); tag again, which remakes it") from None


def category_of(tag: str, categories: Mapping[str, str]) -> str:
    """Category of the whole tag; where the map lacks it, of its last word ("baseball player" is a player)."""
    tag = tag.lower()
    return categories.get(tag) or categories.get(tag.split(" ")[-1]) or UNSORTED


def read_categories(path: Path) -> dict[str, str]:
    """Read a map from a CSV file with the columns tag,category; tags are compared in lower case.

    Raises ValueError that names the line of an unknown category or of a tag that comes twice with two categories.
    """
    known = (*CATEGORIES, UNSORTED)
    categories: dict[str, str] = {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if rows.fieldnames != ["tag", "category"]:
            raise ValueError(f"{path} must begin with the line tag,category, but begins with {rows.fieldnames}")
        for row in rows:
            tag, category = row["tag"].lower(), row["category"]
            if category not in known:
                raise ValueError(f"{path}, line {rows.line_num}: unknown category {category!r}; one of {known}")
            if categories.setdefault(tag, category) != category:
                raise ValueError(f"{path}, line {rows.line_num}: {tag!r} is already in {categories[tag]}")
    return categories
