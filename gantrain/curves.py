"""Hides how rows of metrics become curves: what belongs on one chart, and how it is drawn."""

import io
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import numpy as np

from gantrain.pictures import new_figure

Rows = Sequence[Mapping[str, Any]]

_WIDTH, _HEIGHT = 5.2, 2.9  # inches
_FRAME = (0.14, 0.17, 0.83, 0.72)  # left, bottom, width, height of a chart: alike, so they align
_HEALTHY = (0.6, 0.8)  # discriminator accuracy
_OF_DATA = "_data"  # ends the name of what was measured on the data in place of samples
_NOT_MEASURED = {"images_seen", "seconds", "images_per_second", "diagnosis_seconds", "rollbacks"}

# Colours stand for places in the page's style sheet, so that curves follow light and dark; what
# stands beside a place is used where an SVG is shown alone. Blue and vermilion of Okabe and Ito's
# palette can be told apart by everybody; dashes part them in black and white.
_INK, _GRID, _BAND = "#010203", "#010204", "#010205"
_SERIES = ("#010206", "#010207", "#010208")
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))
_PLACES = {
    _INK: "currentColor",
    _GRID: "var(--grid, #dddddd)",
    _BAND: "var(--band, #cfe8cf)",
    _SERIES[0]: "var(--series-1, #0072b2)",
    _SERIES[1]: "var(--series-2, #d55e00)",
    _SERIES[2]: "var(--series-3, #009e73)",
}


@dataclass(frozen=True)
class Chart:
    """Metrics that are drawn together: key -> name in the legend."""

    title: str
    series: dict[str, str]
    unit: str = ""
    share: bool = False  # 0 to 1, shown in percent
    logarithmic: bool = False  # where all values are positive and span two decades


CHARTS = (
    Chart("Losses", {"discriminator_loss": "discriminator", "generator_loss": "generator"}),
    Chart(
        "Discriminator accuracy",
        {"discriminator_accuracy_real": "on reals", "discriminator_accuracy_fake": "on fakes"},
        share=True,
    ),
    Chart(
        "Mean absolute error",
        {"discriminator_error": "discriminator", "generator_error": "generator"},
        unit="of the belief against its label",
    ),
    Chart(
        "Gradient norm",
        {"discriminator_gradient": "discriminator", "generator_gradient": "generator"},
        logarithmic=True,
    ),
    Chart("Logits", {"real_logits": "reals, mean", "fake_logits": "fakes, mean"}),
    Chart("Logit size", {"logit_size": ""}, unit="mean of the absolute value", logarithmic=True),
    Chart(
        "Gradient penalties",
        {"r1_penalty": "R1", "r2_penalty": "R2", "gradient_penalty": "on interpolates"},
        unit="before weighting",
        logarithmic=True,
    ),
    Chart("Learning rate", {"lr": ""}),
)

# What a chart shows and what to look for, by its title, for readers who know little of GANs.
MEANINGS: Final = {
    "Losses": "What each network tries to lower. They pull against each other, so neither need "
    "fall; steady levels are good.",
    "Discriminator accuracy": "How often the discriminator is right. Far above the band it teaches "
    "the generator little (a Wasserstein critic may be there); near 50 % it guesses.",
    "Mean absolute error": "How far the discriminator's scores are from what each network wants. "
    "Discriminator: 0 is always right and sure, 0.5 guesses. Generator: near 1 no fake passes for "
    "real.",
    "Gradient norm": "How hard the loss pulls at the weights. Growth without end is divergence.",
    "Logits": "The discriminator's output before it becomes a score. The further apart the lines, "
    "the surer it is.",
    "Logit size": "How large that output is. Growth without end is divergence.",
    "Gradient penalties": "How steep the discriminator is, which the loss holds down.",
    "Learning rate": "How far a step moves the generator's weights.",
    "Diversity": "How much samples differ from each other. 1: as much as reals; below 0.5 they are "
    "too alike.",
    "Feature diversity": "The same by random features of the samples.",
    "Duplicates": "Share of samples that have a near-duplicate among 256. Well above the data's: "
    "the samples are alike.",
    "Energy distance": "How far samples are from the data: 0 is alike, 1 has nothing in common. It "
    "falls while a run learns.",
    "Class coverage": "Share of the classes that appear among the samples. Without labels, "
    "clusters stand for classes.",
    "Class distance": "How far the shares of the classes are from the data's: 0 is alike, 1 has "
    "nothing in common.",
    "Dead pixels": "Share of pixels that are isolated dots.",
    "Classifier accuracy": "How often the classes of unseen reals are recognised. What is said of "
    "classes is no surer than this.",
    "Training distance": "Distance of samples to the nearest training example. 1: as far as other "
    "reals; near 0 they are copies.",
    "Near training": "Share of samples that are nearer to a training example than 99 % of other "
    "reals are. Well above the data's: examples are learned by heart.",
    "Far from training": "Share of samples that are farther from all training examples than 99 % "
    "of other reals are.",
    "Copies": "Share of samples that are far nearer to one training example than to any other. "
    "Well above the data's: examples are learned by heart.",
    "Class histogram": "Share of each class in the samples, brighter for more; in brackets its "
    "share in the data. Without labels, clusters stand for classes.",
}


def plot_curves(rows: Rows, class_names: Sequence[str] = ()) -> dict[str, str]:
    """Draw every number that rows of metrics have, title -> SVG.

    What nobody gave a chart gets one of its own, together with its value for the data, which is
    called `<key>_data`; a list of shares (the class histogram) becomes a map over time. Values
    that are not finite leave gaps.
    """
    placed = {key for chart in CHARTS for key in chart.series} | _NOT_MEASURED
    keys = dict.fromkeys(key for row in rows for key in row if key not in placed)
    own = [
        key for key in keys if not key.endswith(_OF_DATA) or key.removesuffix(_OF_DATA) not in keys
    ]
    charts = [*CHARTS, *(_chart_alone(key, keys) for key in own if _series(rows, key).size)]
    curves = {chart.title: svg for chart in charts if (svg := plot_chart(rows, chart))}
    lists = [key for key in own if any(isinstance(row.get(key), list) for row in rows)]
    return curves | {_title(key): plot_shares(rows, key, class_names) for key in lists}


def _chart_alone(key: str, keys: Collection[str]) -> Chart:
    of_data = key + _OF_DATA
    return Chart(_title(key), {key: "samples", of_data: "data"} if of_data in keys else {key: ""})


def plot_chart(rows: Rows, chart: Chart) -> str:
    """One chart over images seen as SVG, empty where no row has any of its numbers."""
    series = {key: values for key in chart.series if (values := _series(rows, key)).size}
    if not series or (chart.title == "Learning rate" and np.ptp(series["lr"][1]) == 0):
        return ""
    figure = new_figure(_WIDTH, _HEIGHT)
    figure.set_layout_engine("none")
    axes = figure.add_axes(_FRAME)
    for (key, values), colour, dashes in zip(series.items(), _SERIES, _DASHES, strict=False):
        few = values.shape[1] < 3  # a line through one point cannot be seen
        axes.plot(
            *values,
            color=colour,
            linestyle=dashes,
            marker="o" if few else "",
            clip_on=not few,  # the last point lies on the frame, which would halve it
            lw=1.5,
            label=chart.series[key],
        )
    if chart.share:
        axes.axhspan(*_HEALTHY, color=_BAND, lw=0, zorder=0, label="healthy, 60-80 %")
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    everything = np.concatenate([values[1] for values in series.values()])
    positive = everything[np.isfinite(everything)]
    if chart.logarithmic and positive.size and 0 < 100 * positive.min() < positive.max():
        axes.set_yscale("log")
    if any(chart.series.values()):
        axes.legend(
            fontsize=9,
            frameon=False,
            labelcolor=_INK,
            ncols=3,
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            borderaxespad=0.2,
        )
    axes.set_ylabel(chart.unit, fontsize=9, color=_INK)
    axes.set_xlim(0, rows[-1]["images_seen"])
    return _svg(figure, axes, chart.title)


def plot_shares(rows: Rows, key: str, class_names: Sequence[str]) -> str:
    """A list of shares over images seen as a map: one line a class, the brighter the more.

    Beside each class stands its share in the data, where `<key>_data` tells it.
    """
    found = [(row["images_seen"], row[key]) for row in rows if isinstance(row.get(key), list)]
    shares = np.array([values for _, values in found], float).T  # [classes, times]
    names = class_names if len(class_names) == len(shares) else range(len(shares))
    figure = new_figure(_WIDTH, _HEIGHT)
    axes = figure.add_subplot()
    picture = axes.pcolormesh(
        _edges(np.array([at for at, _ in found], float)),
        np.arange(len(shares) + 1) - 0.5,
        shares,
        cmap="viridis",
        vmin=0,
        rasterized=True,
    )
    of_data = next((row[key + _OF_DATA] for row in rows if key + _OF_DATA in row), None)
    labels = [str(name)[:20] for name in names]
    if of_data:
        axes.set_ylabel("class (share in the data)", fontsize=9, color=_INK)
        labels = [f"{label} ({share:.0%})" for label, share in zip(labels, of_data, strict=True)]
    if len(labels) <= 30:
        axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, rows[-1]["images_seen"])
    bar = figure.colorbar(picture, ax=axes, format=lambda value, _: f"{value:.0%}")
    bar.ax.tick_params(labelsize=9, colors=_INK)
    bar.outline.set_visible(False)
    return _svg(figure, axes, _title(key))


def _series(rows: Rows, key: str) -> Any:  # noqa: ANN401
    """Positions and values [2, n] of one metric; nan where a value is not finite."""
    found = [
        (row["images_seen"], row[key]) for row in rows if isinstance(row.get(key), int | float)
    ]
    values = np.array(found, float).reshape(-1, 2).T
    values[1, ~np.isfinite(values[1])] = np.nan
    return values


def _edges(positions: Any) -> Any:  # noqa: ANN401
    """Borders halfway between positions [n]: [n + 1]."""
    if len(positions) == 1:
        return np.array([0.0, positions[0]])
    middles = (positions[1:] + positions[:-1]) / 2
    return np.concatenate(
        [[2 * positions[0] - middles[0]], middles, [2 * positions[-1] - middles[-1]]]
    )


def _title(key: str) -> str:
    return key.replace("_", " ").capitalize()


def _svg(figure: Any, axes: Any, title: str) -> str:  # noqa: ANN401
    """The figure as an SVG element whose colours a page decides, the same bytes each time."""
    import matplotlib as mpl

    axes.grid(color=_GRID, lw=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("images seen", fontsize=9, color=_INK)
    axes.xaxis.set_major_formatter(lambda value, _: _short_count(value))
    axes.tick_params(colors=_INK, labelsize=9)
    axes.spines[:].set_visible(False)
    content = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}), warnings.catch_warnings():
        # The page's reader has other fonts than the one that texts are measured with.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(content, format="svg", transparent=True, metadata=metadata)
    svg = content.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"#01020[3-8]", lambda found: _PLACES[found.group()], svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    # Clip paths and markers keep their ids, which differ between charts; nothing needs the others.
    svg = re.sub(r' id="(?![a-zA-Z][0-9a-f]{10}")[^"]*"', "", svg)
    label = escape(f"{title} over images seen")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _short_count(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
