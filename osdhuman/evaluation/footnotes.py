"""What makes the numbers of a table comparable with others: images, metric variants, versions, what is missing."""

from collections.abc import Iterator, Mapping
from typing import Any

from osdhuman import paper
from osdhuman.evaluation.config import EvalConfig, title_of
from osdhuman.evaluation.results import MethodScores, Result
from osdhuman.metrics.table import METRICS

PAPER_IMAGES = {"val": paper.VAL, "test": paper.TEST}
ScoresOf = Mapping[tuple[str, str], MethodScores]  # by set and method
ResultsOf = Mapping[str, Mapping[str, Result]]  # by method and column


def footnotes(config: EvalConfig, scores: ScoresOf, cells: ResultsOf) -> Iterator[str]:
    """One sentence per note, in the order in which they are printed."""
    for name, set_ in config.sets.items():
        rows = [found.measurement for (of, _), found in scores.items() if of == name]
        of = f" of the paper's {PAPER_IMAGES[set_.paper]}" if set_.paper else ""
        what = f"{rows[0]['images']}{of} images, digest {rows[0]['inputs_digest'][:16]}" if rows else "not measured yet"
        own = "" if set_.paper else "not the paper's images, so its values do not stand beside"
        yield "; ".join(filter(None, [f"{set_.title or name}: {what}", set_.note, own])) + "."
    for name, method in config.methods.items():
        if method.note and any(of == name for _, of in scores):
            yield f"{title_of(name, method)}: {method.note}."
    identities = {
        name: m for found in scores.values() for name, m in found.measurement["metrics"].items() if "mean" in m
    }
    yield from (_identity(name, identities[name]) for name in config.metrics if name in identities)
    yield from _partly_judged(config, scores, cells)
    yield from _missing(config, cells)
    yield "Intervals: 95 %, percentile bootstrap of the mean over images; FID has none, being one number per set."
    yield f"Paper: {paper.SOURCE}."


def _missing(config: EvalConfig, cells: ResultsOf) -> Iterator[str]:
    """Each reason why cells are empty, with the metrics, or the methods, that it concerns."""
    whom: dict[str, dict[str, None]] = {}
    for method, row in cells.items():
        for key, cell in row.items():
            of_metric = cell.reason.startswith("unavailable")
            title = METRICS[key.rpartition("/")[2]].title if of_metric else title_of(method, config.methods[method])
            if cell.reason:
                whom.setdefault(cell.reason, {})[title] = None
    yield from (f"{', '.join(titles)} {reason.splitlines()[0].rstrip('.')}." for reason, titles in whom.items())


def _partly_judged(config: EvalConfig, scores: ScoresOf, cells: ResultsOf) -> Iterator[str]:
    """Means over fewer images than the set has: too small, or without any texture."""
    for (set_, method), found in scores.items():
        images = found.measurement["images"]
        cells_here = {key: cell for key, cell in cells[method].items() if key.startswith(f"{set_}/")}
        few = {
            key.rpartition("/")[2]: cell.judged for key, cell in cells_here.items() if cell.judged not in (None, images)
        }
        if few:
            counts = ", ".join(f"{metric} {count}" for metric, count in few.items())
            title = title_of(method, config.methods[method])
            yield f"{title} on {config.sets[set_].title or set_}: images that could be judged, of {images}: {counts}."


def _identity(name: str, measured: dict[str, Any]) -> str:
    weights = " ".join(digest[:12] for digest in (measured.get("weights_sha256") or "").split())
    parts = [
        measured.get("variant"),
        f"{measured.get('library')} {measured.get('version')}",
        f"weights sha256 {weights}" if weights else None,
        f"on {measured.get('color')}",
        f"border {measured['border']}" if measured.get("border") else None,
    ]
    return f"{METRICS[name].title}: {', '.join(filter(None, parts))}."
