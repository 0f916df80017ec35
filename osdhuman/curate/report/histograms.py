"""Counts for the histograms of the report, aggregated by polars: the manifest is never held in memory."""

import numpy as np
import polars as pl

from osdhuman.curate.report.figures import Histogram
from osdhuman.curate.report.run import Run


def score_histogram(run: Run, metric: str) -> Histogram | None:
    """All crops that have a score, and those of train among them."""
    found = histogram(run.rows, pl.col(metric), (pl.col("split") == "train").fill_null(False))
    if found is None:
        return None
    nothing = np.zeros(len(found.edges) - 1, int)
    train, others = (found.counts.get(str(group).lower(), nothing) for group in (True, False))
    return Histogram(found.edges, {"all crops": train + others, "train": train})


def image_sharpness(run: Run) -> pl.LazyFrame:
    """Source and sharpness, once for each image whose sharpness was measured; told apart by a hash, not by name."""
    rows = run.rows.filter(pl.col("sharpness") > 0)
    rows = rows.select(image=pl.struct("source", "file").hash(), source="source", sharpness="sharpness")
    return rows.unique("image").select("source", "sharpness").collect(engine="streaming").lazy()


def histogram(rows: pl.LazyFrame, value: pl.Expr, group: pl.Expr) -> Histogram | None:
    """Counts of `value` by group, in about 2 n^(1/3) bins, at most 60. None if there is no value.

    The outermost thousandths fall into the outermost bins.
    """
    values = rows.select(group=group.cast(pl.String), value=value.fill_nan(None)).drop_nulls()
    ends = {"low": pl.col("value").quantile(0.001), "high": pl.col("value").quantile(0.999)}
    count, low, high = values.select(count=pl.len(), **ends).collect(engine="streaming").row(0)
    if count == 0:
        return None
    bins = min(round(2 * count ** (1 / 3)), 60)
    high = high if high > low else low + 1.0
    place = ((pl.col("value") - low) / (high - low) * bins).floor().clip(0, bins - 1).cast(pl.Int32)
    table = values.group_by("group", bin=place).len().sort("group", "bin").collect(engine="streaming")
    counts = {name: np.zeros(bins, int) for name in table["group"].unique(maintain_order=True)}
    for name, bin_, count in table.iter_rows():
        counts[name][bin_] = count
    return Histogram(np.linspace(low, high, bins + 1), counts)
