"""How long do intervals and paired tests of a whole table take? numpy (`osdhuman.evaluation.statistics`) against scipy.

    python benchmarks/significance.py --images 4216 --methods 10 --metrics 9 --json benchmarks/results/significance.json

Both compute, for every method and metric, the 95 % bootstrap interval of the mean, and for every method but the first
the interval and the sign-flip p-value of its paired difference to it: the work of one set's columns in Table 2. scipy's
`bootstrap` and `permutation_test` are called as this project did before. Their results are compared too.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure import processor, write_json
from scipy.stats import bootstrap, permutation_test

from osdhuman.evaluation.statistics import RESAMPLES, mean_interval, paired_difference

Values = tuple[float, ...]


def draw(methods: int, metrics: int, images: int) -> np.ndarray:
    """Scores (methods, metrics, images): an image's difficulty, plus a method's noise and its advantage."""
    rng = np.random.default_rng(0)
    difficulty = rng.normal(20, 2, (1, metrics, images))
    return difficulty + rng.normal(0, 1, (methods, metrics, images)) + 0.02 * np.arange(methods)[:, None, None]


def whole_table(scores: np.ndarray, interval: Callable, difference: Callable) -> list[Values]:
    results = [tuple(interval(row)) for method in scores for row in method]
    return results + [
        tuple(difference(row, first)) for method in scores[1:] for row, first in zip(method, scores[0], strict=True)
    ]


def scipy_interval(scores: np.ndarray) -> Values:
    found = bootstrap(
        (scores,),
        np.mean,
        n_resamples=RESAMPLES,
        method="percentile",
        batch=max(1, 2**22 // len(scores)),
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(scores.mean()), float(found.low), float(found.high)


def scipy_difference(ours: np.ndarray, theirs: np.ndarray) -> Values:
    test = permutation_test(
        (ours - theirs,),
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=max(1, 2**22 // len(ours)),
        rng=np.random.default_rng(0),
    )
    return *scipy_interval(ours - theirs), float(test.pvalue)


def compare(methods: int, metrics: int, images: int) -> dict[str, Any]:
    scores = draw(methods, metrics, images)
    ways = {"numpy": (mean_interval, paired_difference), "scipy": (scipy_interval, scipy_difference)}
    seconds, results = {}, {}
    for name, (interval, difference) in ways.items():
        start = time.perf_counter()
        results[name] = whole_table(scores, interval, difference)
        seconds[name] = time.perf_counter() - start
    ends = [[value for row in found for value in row[1:3]] for found in results.values()]
    widths = [row[2] - row[1] for row in results["scipy"] for _ in range(2)]
    p = [[row[3] for row in found if len(row) == 4] for found in results.values()]
    return {
        "processor": processor(),
        "images": images,
        "methods": methods,
        "metrics": metrics,
        "resamples": RESAMPLES,
        "seconds": seconds,
        "ratio": seconds["scipy"] / seconds["numpy"],
        "largest_difference_of_an_end_in_widths": float(np.max(np.abs(np.subtract(*ends)) / widths)),
        "largest_difference_of_a_p_value": float(np.max(np.abs(np.subtract(*p)))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4216)
    parser.add_argument("--methods", type=int, default=10)
    parser.add_argument("--metrics", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = compare(arguments.methods, arguments.metrics, arguments.images)
    print(json.dumps(result, indent=2))
    if arguments.json:
        write_json(arguments.json, result)


if __name__ == "__main__":
    main()
