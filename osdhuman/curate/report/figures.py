"""The figures of the report on a run of HQ-ACF: small counts in, matplotlib figures out.

In every plot of a metric, right is better: the axis of a metric whose lower values are better runs backwards. Blue is
this run, an open diamond or a dashed line is the paper. The colours are Okabe and Ito's, which colour-blind people can
tell apart.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from osdhuman.files import replacing
from osdhuman.metrics.table import METRICS, Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0  # inches
DPI = 160
UNDATED = {
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "svg": {"Creator": None, "Date": None},
}
WEDGES = ("#0072b2", "#e69f00", "#56b4e9", "#d55e00", "#009e73", "#8c6d9f", "#7fb069", "#cc79a7", "#f0e442", "#8a6d4b")


@dataclass(frozen=True)
class Theme:
    """Colours of one drawing; the page shows the light or the dark one as the reader's screen asks."""

    ink: str = "#1d2733"
    muted: str = "#66727f"
    faint: str = "#d5dce3"
    paper: str = "#ffffff"
    run: str = "#0072b2"
    rest: str = "#9db2c4"
    limit: str = "#d55e00"

    @property
    def rc(self) -> dict[str, Any]:
        """matplotlib's settings; the salt makes the same drawing the same SVG."""
        return {
            "font.family": "DejaVu Sans",
            "font.size": 9,
            "axes.titlesize": 9.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "text.color": self.ink,
            "axes.edgecolor": self.faint,
            "axes.labelcolor": self.muted,
            "axes.titlecolor": self.ink,
            "axes.facecolor": self.paper,
            "figure.facecolor": self.paper,
            "savefig.facecolor": self.paper,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "grid.color": self.faint,
            "grid.linewidth": 0.6,
            "xtick.color": self.muted,
            "ytick.color": self.muted,
            "ytick.labelcolor": self.ink,
            "legend.frameon": False,
            "svg.hashsalt": "osdhuman",
            "svg.fonttype": "path",
            "pdf.fonttype": 42,
        }


LIGHT = Theme()
DARK = Theme("#e6ebf0", "#9aa7b4", "#3a4654", "#171d24", "#56b4e9", "#566778", "#f0894a")


@dataclass(frozen=True)
class Histogram:
    """Counts per group, each (bins,), between edges (bins+1,)."""

    edges: np.ndarray
    counts: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Scores:
    """Means of one data set, measured over `images` of a kind (`unit`), and as the paper prints them."""

    name: str
    images: int
    measured: Mapping[str, float]
    paper: Mapping[str, float]
    unit: str = ""  # what an image is here: a crop, a whole image; "" where nothing was measured


# ------------------------------------------------------------------------------------------------------------ drawing


def draw_scores(figure: "Figure", theme: Theme, rows: Sequence[Scores], metrics: Sequence[str]) -> None:
    """Fig. 1: a panel per metric, a line per data set."""
    figure.set_size_inches(WIDTH, 1.5 + 0.3 * len(rows))
    axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axis, metric in zip(axes, (METRICS[name] for name in metrics), strict=True):
        for place, row in enumerate(rows):
            colour = theme.run if row.name.startswith("PERSONA") else theme.muted
            if metric.name in row.paper:
                axis.plot(row.paper[metric.name], place, "D", ms=5.5, mfc="none", mec=colour, mew=1, alpha=0.75)
            if metric.name in row.measured:
                axis.plot(row.measured[metric.name], place, "o", ms=7, color=colour)
        axis.set_yticks(range(len(rows)), [plain(row.name) for row in rows])
        axis.set_title(metric.title)
        axis.grid(axis="both")
        axis.tick_params(length=0)
        axis.margins(x=0.12)
        right_is_better(axis, metric)
        if not any(metric.name in row.measured for row in rows):
            axis.set_xlabel(axis.get_xlabel() + "\nnot measured")
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    axes[0].spines["left"].set_visible(False)
    _markers(figure, theme)


def _markers(figure: "Figure", theme: Theme) -> None:
    from matplotlib.lines import Line2D

    this = Line2D([], [], marker="o", ls="", ms=7, color=theme.muted, label="this run")
    paper = Line2D([], [], marker="D", ls="", ms=5.5, mfc="none", mec=theme.muted, label="the paper")
    figure.legend(handles=[this, paper], loc="outside upper right", ncols=2, labelcolor=theme.muted)


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def right_is_better(axis: "Axes", metric: Metric) -> None:
    """Let the axis of a metric run so that better values stand on the right, and say so."""
    axis.xaxis.set_inverted(not metric.higher_is_better)
    axis.set_xlabel("higher is better →" if metric.higher_is_better else "lower is better →")


def draw_survivors(figure: "Figure", theme: Theme, account: Mapping[str, Any]) -> None:
    """Fig. 3 in numbers: what is left after each reason for which something was dropped."""
    dropped = [account[kind]["dropped"] for kind in ("images", "boxes")]
    heights = [len(reasons) + 2 for reasons in dropped]
    figure.set_size_inches(WIDTH, 0.8 + 0.26 * sum(heights))
    panels = figure.subplots(2, 1, height_ratios=heights)
    for axis, kind, unit in zip(panels, ("images", "boxes"), ("images", "boxes of persons"), strict=True):
        _waterfall(axis, theme, account[kind], unit)
    panels[0].barh(heights[0] - 1, account["images"]["kept"], color=theme.run, height=0.62)
    left = 0
    for split, colour in (("train", theme.run), ("val", "#009e73"), ("test", "#e69f00")):
        panels[1].barh(
            heights[1] - 1, account["splits"].get(split, 0), left=left, color=colour, height=0.62, label=split
        )
        left += account["splits"].get(split, 0)
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, labelcolor=theme.muted)


def _waterfall(axis: "Axes", theme: Theme, part: Mapping[str, Any], unit: str) -> None:
    left, labels, notes = part["in"], ["in"], [f"{part['in']:,}"]
    axis.barh(0, left, color=theme.rest, height=0.62)
    for place, (reason, count) in enumerate(part["dropped"].items(), start=1):
        axis.barh(place, left - count, color=theme.rest, height=0.62)
        axis.barh(place, count, left=left - count, color=theme.limit, height=0.62, alpha=0.55)
        labels.append(reason)
        notes.append(f"{left - count:,}  (-{count:,})")
        left -= count
    labels, notes = [*labels, "kept"], [*notes, f"{left:,}"]
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.set_xlim(0, max(part["in"], 1))
    axis.set_title(unit)
    axis.set_xticks([])
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    right = axis.secondary_yaxis("right")
    right.set_yticks(range(len(notes)), notes)
    right.tick_params(length=0)
    right.spines[:].set_visible(False)


def draw_persons(figure: "Figure", theme: Theme, counts: Mapping[int, int], paper_mean: float) -> None:
    """Persons that a crop of the training set shows."""
    figure.set_size_inches(WIDTH, 2.8)
    axis = figure.subplots()
    last = min(max(counts), 15)
    shares = np.zeros(last + 1)
    for persons, images in counts.items():
        shares[min(persons, last)] += images
    total = sum(counts.values())
    mean = sum(persons * images for persons, images in counts.items()) / total
    axis.bar(range(last + 1), 100 * shares / total, color=theme.rest, width=0.75)
    axis.axvline(mean, color=theme.run, lw=2, label=f"mean of this run {mean:.4f}")
    axis.axvline(paper_mean, color=theme.limit, lw=1.5, ls="--", label=f"mean of the paper {paper_mean:.4f}")
    labels = [str(persons) for persons in range(last + 1)]
    axis.set_xticks(range(last + 1), [*labels[:-1], f"{last}+" if max(counts) > last else labels[-1]])
    axis.set_xlim(0.4, max(last, paper_mean) + 0.6)
    axis.set_xlabel("persons in the crop")
    axis.set_ylabel("crops (%)")
    axis.grid(axis="y")
    axis.legend()


def draw_sharpness(figure: "Figure", theme: Theme, histogram: Histogram, thresholds: Mapping[str, float]) -> None:
    """Variance of the Laplacian per source, on a logarithmic axis (edges are log10); threshold by source."""
    names = list(histogram.counts)
    figure.set_size_inches(WIDTH, 0.9 + 0.75 * len(names))
    axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, names, strict=True):
        counts = histogram.counts[name]
        axis.stairs(100 * counts / counts.sum(), 10**histogram.edges, fill=True, color=theme.rest)
        if name in thresholds:
            axis.axvline(thresholds[name], color=theme.limit, lw=1.5)
            note = f"threshold {thresholds[name]:.4g}"
            axis.annotate(note, (1.01, 0.4), xycoords="axes fraction", color=theme.limit)
        axis.set_xscale("log")
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
        axis.set_ylabel(plain(name), rotation=0, ha="right", va="center", color=theme.ink)
    axes[-1].set_xlabel("variance of the Laplacian (grey levels²), share of images; sharper →")


def draw_score_distributions(
    figure: "Figure", theme: Theme, histograms: Mapping[str, Histogram], floors: Mapping[str, float]
) -> None:
    """Each metric: all scored crops, those of the training set, and the floor."""
    columns = min(3, len(histograms))
    rows = -(-len(histograms) // columns)
    figure.set_size_inches(WIDTH, 0.5 + 2.2 * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[len(histograms) :]:
        axis.remove()
    for axis, (name, histogram) in zip(axes, histograms.items(), strict=False):
        for group, colour, alpha in (("all crops", theme.rest, 1.0), ("train", theme.run, 0.65)):
            counts = histogram.counts[group]
            share = 100 * counts / max(counts.sum(), 1)
            axis.stairs(share, histogram.edges, fill=True, color=colour, alpha=alpha, label=group)
        if name in floors:
            axis.axvline(floors[name], color=theme.limit, lw=1.5, label="floor")
        axis.set_title(METRICS[name].title)
        right_is_better(axis, METRICS[name])
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
    axes[0].set_ylabel("share of crops")
    handles = {label: h for axis in figure.axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=3, labelcolor=theme.muted)


def draw_contact_sheet(figure: "Figure", theme: Theme, sheet: np.ndarray) -> None:
    """Fig. 6: images side by side, uint8 RGB (H,W,3)."""
    figure.set_size_inches(WIDTH, WIDTH * sheet.shape[0] / sheet.shape[1])
    figure.set_layout_engine("none")
    axis = figure.add_axes((0, 0, 1, 1))
    axis.imshow(sheet, interpolation="none")
    axis.axis("off")


def draw_tags(
    figure: "Figure", theme: Theme, run: Mapping[str, tuple[int, int]], paper: Mapping[str, tuple[int, int]]
) -> None:
    """Fig. 7: angles are tags per category; the labels say category, tags and distinct tags."""
    figure.set_size_inches(WIDTH, 3.7)
    colours = dict(zip(paper, WEDGES, strict=True))
    for axis, title, part in zip(figure.subplots(1, 2), ("this run", "the paper"), (run, paper), strict=True):
        part = {name: counts for name, counts in part.items() if counts[0]}
        wedges, _ = axis.pie(
            [tags for tags, _ in part.values()],
            colors=[colours.get(name, theme.rest) for name in part],
            startangle=90,
            counterclock=False,
            radius=0.78,
            wedgeprops={"width": 0.34, "edgecolor": theme.paper, "linewidth": 1},
        )
        _label_wedges(axis, theme, wedges, part)
        tags, distinct = (sum(counts) for counts in zip(*part.values(), strict=True))
        axis.text(0, 0, f"{title}\n{tags:,} tags\n{distinct:,} distinct", ha="center", va="center")
        axis.set(xlim=(-1.4, 1.4), ylim=(-1.12, 1.12))


def _label_wedges(axis: "Axes", theme: Theme, wedges: Sequence[Any], part: Mapping[str, tuple[int, int]]) -> None:
    """Labels beside the ring, on each side pushed apart so that none covers another."""
    middles = [np.deg2rad((wedge.theta1 + wedge.theta2) / 2) for wedge in wedges]
    spots = np.array([(np.cos(angle), np.sin(angle)) for angle in middles])
    for side in (1, -1):
        members = [i for i in range(len(wedges)) if (spots[i, 0] >= 0) == (side > 0)]
        members.sort(key=lambda i: -spots[i, 1])
        heights = spread_apart([spots[i, 1] * 0.95 for i in members], gap=0.225, limit=1.05)
        for i, height in zip(members, heights, strict=True):
            name, (tags, distinct) = list(part.items())[i]
            axis.annotate(
                f"{name}\n{tags:,} · {distinct:,}",
                xy=spots[i] * 0.8,
                xytext=(side * 0.95, height),
                ha="left" if side > 0 else "right",
                va="center",
                fontsize=7.5,
                arrowprops={"arrowstyle": "-", "color": theme.muted, "lw": 0.6, "relpos": (side < 0, 0.5)},
            )


def spread_apart(heights: Sequence[float], gap: float, limit: float) -> list[float]:
    """Falling heights moved down until each is `gap` below the one before, then up again from `-limit`."""
    placed: list[float] = []
    for height in heights:
        placed.append(min(height, placed[-1] - gap) if placed else min(height, limit))
    for i in range(len(placed) - 1, -1, -1):
        floor = -limit if i == len(placed) - 1 else placed[i + 1] + gap
        placed[i] = max(placed[i], floor)
    return placed


# ------------------------------------------------------------------------------------------------------------- saving


def save(folder: Path, name: str, draw: Callable[..., None], *data: Any) -> tuple[str, str]:
    """Write `folder`/name.png and .pdf; returns the drawing in light and in dark as data URIs of SVG."""
    light, dark = _render(draw, LIGHT, data, ("png", "pdf", "svg")), _render(draw, DARK, data, ("svg",))
    for kind in ("png", "pdf"):
        with replacing(folder / f"{name}.{kind}") as part:
            part.write_bytes(light[kind])
    return data_uri(light["svg"], "image/svg+xml"), data_uri(dark["svg"], "image/svg+xml")


def _render(draw: Callable[..., None], theme: Theme, data: Sequence[Any], kinds: Sequence[str]) -> dict[str, bytes]:
    """One drawing in several formats, without dates and names of programs."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rendered = {}
    with rc_context(theme.rc):
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure, theme, *data)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # it is laid out now, and need not be for each format
        for kind in kinds:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=DPI, metadata=UNDATED[kind])
            rendered[kind] = buffer.getvalue()
    return rendered


def data_uri(data: bytes, kind: str) -> str:
    """Data as a URI that a page can hold; `kind` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
