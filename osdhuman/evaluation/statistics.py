"""How sure a mean is, how two methods differ on the same images, and who is best.

All scores are raw: a metric that is better when lower is reversed only where methods are ranked.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 2000  # the ends of a 95 % interval then move by about 2 % of its length from seed to seed


class Interval(NamedTuple):
    """A mean over images and its confidence interval; `low` and `high` are NaN where there is none."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """The mean over images of one method's score minus another's, its interval, and the p-value of "no difference"."""

    mean: float
    low: float
    high: float
    p: float


def mean_interval(scores: ArrayLike, confidence: float = 0.95, seed: int = 0) -> Interval:
    """The mean of scores (n,) and its percentile bootstrap interval, images drawn with replacement.

    Percentiles rather than BCa: of the mean of hundreds of images both are the same within a digit that no table
    prints, and percentiles also exist where all scores are equal. Fewer than two images, or a score that is not finite,
    leave no interval. ValueError without any score.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"scores must be (n,) with n > 0, got {scores.shape}")
    mean = float(scores.mean())
    if len(scores) < 2 or not np.isfinite(scores).all():
        return Interval(mean, np.nan, np.nan)
    center = scores[0]  # drawn means of equal scores are then equal to the last bit
    means = center + _drawn_counts(len(scores), seed) @ (scores - center) / len(scores)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean, float(low), float(high))


def paired_difference(ours: ArrayLike, theirs: ArrayLike, confidence: float = 0.95, seed: int = 0) -> Difference:
    """`ours - theirs`, scores (n,) of the same images in the same order.

    The p-value is that of a two-sided sign-flip test: if the methods were alike, each image's difference could as well
    have the other sign. Exact up to 10 images, then from `RESAMPLES` draws, so never below 2 / (RESAMPLES + 1).
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"a paired difference needs the same images twice, got {ours.shape} and {theirs.shape} scores")
    differences = ours - theirs
    interval = mean_interval(differences, confidence, seed)
    if len(differences) < 2 or not np.isfinite(differences).all():
        return Difference(*interval, np.nan)
    return Difference(*interval, sign_flip_p(differences, seed))


def sign_flip_p(differences: np.ndarray, seed: int = 0) -> float:
    """Two-sided p-value of differences (n,): twice the smaller tail of their sum under all, or drawn, choices of signs.

    A sum counts for a tail if it lies beyond the observed one or within rounding errors of it. Drawn tails count the
    observed sum itself once, so that no p-value is zero (Phipson & Smyth, 2010).
    """
    exact = 2 ** len(differences) <= RESAMPLES
    sums = (_all_signs(len(differences)) if exact else _drawn_signs(len(differences), seed)) @ differences
    observed, rounding = differences.sum(), 1e-12 * np.abs(differences).sum()
    tail = min(np.count_nonzero(sums >= observed - rounding), np.count_nonzero(sums <= observed + rounding))
    return min(1.0, 2 * (tail / len(sums) if exact else (tail + 1) / (len(sums) + 1)))


# The draws depend on nothing but the number of images and the seed, so all cells of a table's column share them: each
# interval and each p-value is then one product of a matrix with the scores. 67 MB for 4,216 images.
@lru_cache(maxsize=2)
def _drawn_counts(n: int, seed: int) -> np.ndarray:
    """How often each of n images is drawn in each bootstrap sample, (RESAMPLES, n)."""
    drawn = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    drawn += n * np.arange(RESAMPLES)[:, None]
    return np.bincount(drawn.ravel(), minlength=RESAMPLES * n).reshape(RESAMPLES, n).astype(np.float64)


@lru_cache(maxsize=2)
def _drawn_signs(n: int, seed: int) -> np.ndarray:
    """-1 or 1 for each of n images in each draw, (RESAMPLES, n)."""
    return np.random.default_rng(seed).integers(0, 2, (RESAMPLES, n), dtype=np.int8) * 2.0 - 1


def _all_signs(n: int) -> np.ndarray:
    """Every choice of n signs, (2**n, n)."""
    return 1.0 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)


def ranks(values: Mapping[str, float], higher_is_better: bool) -> dict[str, float]:
    """Name -> rank from 1, the best; equal values share the average of their ranks."""
    from scipy.stats import rankdata

    signed = [-value if higher_is_better else value for value in values.values()]
    return dict(zip(values, map(float, rankdata(signed)), strict=True)) if values else {}


def average_ranks(table: Mapping[str, Mapping[str, float]], higher_is_better: Mapping[str, bool]) -> dict[str, float]:
    """Method -> mean of its ranks over the columns that every method has. `table`: method -> column -> value."""
    shared = [column for column in higher_is_better if table and all(column in row for row in table.values())]
    by_column = [
        ranks({name: row[column] for name, row in table.items()}, higher_is_better[column]) for column in shared
    ]
    return {name: float(np.mean([column[name] for column in by_column])) for name in table} if shared else {}


def marks(values: Mapping[str, float], higher_is_better: bool) -> dict[str, str]:
    """Name -> "best" or "second", as Table 2 colours them; equal values share a mark. One value alone has no rival."""
    levels = sorted(set(values.values()), reverse=higher_is_better)
    if len(values) < 2:
        return {}
    return {
        name: mark
        for level, mark in zip(levels, ("best", "second"), strict=False)
        for name in values
        if values[name] == level
    }
