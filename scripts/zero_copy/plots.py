"""Plots as inline SVG, in the colours of the page that they stand in, dark or light."""

import re
from io import StringIO
from math import ceil
from typing import Any, NamedTuple

import matplotlib
import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from zero_copy.formats import short_time

# matplotlib needs to be told a colour, and the page is to decide: each stands for one of the
# page's CSS variables, whose names are the keys.
COLOURS = {
    "ink": "#010101",
    "faint": "#020202",
    "ours": "#030303",
    "stock": "#040404",
    "other": "#050505",
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "zero-copy",  # the same plot is the same file
    "font.size": 10,
    "text.parse_math": False,  # a label may hold a $
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), COLOURS["ink"]),
    **dict.fromkeys(("xtick.color", "ytick.color"), COLOURS["ink"]),
    "grid.color": COLOURS["faint"],
}
# Round times, in seconds, and how many of them an axis has room for.
SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
TIMES = (
    *SECONDS,
    *(60 * minutes for minutes in (2, 5, 10, 20)),
    *(3600 * h for h in (1, 2, 5, 10)),
)
MOST_TIMES = 7
# Where a name may stand beside its point, in points: x, y, and how it is aligned.
PLACES = ((7, 0, "left"), (-7, 0, "right"), (0, 10, "center"), (0, -10, "center"))
LETTER_WIDTH, LINE_HEIGHT = 5.6, 11.0
MOST_LETTERS = 24
MOST_NUMBERED_CELLS = 20


class Point(NamedTuple):
    """A pipeline or baseline among others.

    name (str): What to write beside it, if anything.
    seconds (float): How long it trained.
    accuracy (float): Its accuracy on the test set, 0 to 1.
    kind (str): `ours`, `stock` or `other`.
    """

    name: str
    seconds: float
    accuracy: float
    kind: str


class Curve(NamedTuple):
    """The scores of a training over time.

    seconds (List[float]): When each evaluation was over.
    scores (List[float]): Its score, 0 to 1.
    kind (str): `ours` or `stock`.
    """

    seconds: list[float]
    scores: list[float]
    kind: str


@matplotlib.rc_context(STYLE)
def plot_frontier(points: list[Point]) -> str:
    """Accuracy against training time, and the line of those that none beats in both.

    points (List[Point]): All pipelines and baselines; a twin has the name of its variant.
    RETURNS (str): The SVG.
    """
    figure, axes = _figure(5.2, 4.0)
    _set_seconds(axes, [point.seconds for point in points])
    front = frontier([point for point in points if point.kind != "other"])
    heights = [100 * point.accuracy for point in front]
    axes.step(
        [*(point.seconds for point in front), axes.get_xlim()[1]],
        [*heights, heights[-1]],
        where="post",
        color=COLOURS["ours"],
        alpha=0.5,
        zorder=1,
    )
    ours = {point.name: point for point in points if point.kind == "ours"}
    for point in points:
        height = 100 * point.accuracy
        is_hollow = point.kind == "stock"
        axes.plot(
            point.seconds,
            height,
            marker="D" if point.kind == "other" else "o",
            color=COLOURS[point.kind],
            markerfacecolor="none" if is_hollow else COLOURS[point.kind],
            markersize=6,
            linestyle="none",
        )
        twin = ours.get(point.name) if is_hollow else None
        if twin:
            line = [point.seconds, twin.seconds], [height, 100 * twin.accuracy]
            axes.plot(*line, color=COLOURS["stock"], linewidth=0.6, linestyle=":", zorder=0)
    axes.margins(y=0.15)
    figure.draw_without_rendering()  # It is then known where everything stands.
    _label(axes, points, [point for point in points if point.kind != "stock"])
    axes.set_xlabel("training time")
    axes.set_ylabel("accuracy on test, %")
    axes.grid(linewidth=0.5)
    return _svg(figure)


def frontier(points: list[Point]) -> list[Point]:
    """The points that no other beats in both time and accuracy.

    points (List[Point]): All points.
    RETURNS (List[Point]): Those on the frontier, the fastest first.
    """
    front: list[Point] = []
    for point in sorted(points, key=lambda it: (it.seconds, -it.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def _label(axes: Axes, points: list[Point], named: list[Point]) -> None:
    """Write names beside points, each where it hides least of what stands there already."""
    scale = 72 / axes.figure.dpi
    centres = {
        point: scale * axes.transData.transform((point.seconds, 100 * point.accuracy))
        for point in points
    }
    taken = [(x - 4, x + 4, y - 4, y + 4) for x, y in centres.values()]
    right_end = scale * axes.bbox.x1
    for point in sorted(named, key=lambda it: -it.accuracy):
        name = point.name[:MOST_LETTERS]
        boxes = [_box(centres[point], place, LETTER_WIDTH * len(name)) for place in PLACES]
        hidden = [
            sum(_overlap(box, other) for other in taken) + 1e3 * max(box[1] - right_end, 0)
            for box in boxes
        ]
        best = hidden.index(min(hidden))
        taken.append(boxes[best])
        x, y, side = PLACES[best]
        axes.annotate(
            name,
            (point.seconds, 100 * point.accuracy),
            xytext=(x, y),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=9,
        )


Box = tuple[float, float, float, float]


def _box(centre: numpy.ndarray, place: tuple[float, float, str], width: float) -> Box:
    x, y = centre[0] + place[0], centre[1] + place[1]
    left = x - {"left": 0.0, "right": 1.0, "center": 0.5}[place[2]] * width
    return left, left + width, y - LINE_HEIGHT / 2, y + LINE_HEIGHT / 2


def _overlap(one: Box, other: Box) -> float:
    width = min(one[1], other[1]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[2], other[2])
    return max(width, 0.0) * max(height, 0.0)


@matplotlib.rc_context(STYLE)
def plot_curves(curves: list[Curve], everything: list[Curve]) -> str:
    """The dev score of a variant, and its twin's, over time.

    curves (List[Curve]): Its trainings.
    everything (List[Curve]): Those of all variants, for which the axes are the same.
    RETURNS (str): The SVG.
    """
    figure, axes = _figure(3.4, 2.2)
    for curve in curves:
        axes.plot(
            curve.seconds,
            [100 * score for score in curve.scores],
            color=COLOURS[curve.kind],
            linestyle="-" if curve.kind == "ours" else "--",
            linewidth=1.4,
        )
    _set_seconds(axes, [second for curve in everything for second in curve.seconds])
    best = max(max(curve.scores) for curve in everything)
    # What is below the median of all is a beginning that tells nothing apart.
    middle = float(numpy.median([score for curve in everything for score in curve.scores]))
    low = min(middle, best - 0.05)
    axes.set_ylim(100 * (2 * low - best), 100 * (best + 0.1 * (best - low)))
    axes.grid(linewidth=0.5)
    axes.set_ylabel("dev score, %", fontsize=9)
    axes.tick_params(labelsize=8)
    return _svg(figure)


@matplotlib.rc_context(STYLE)
def plot_label_scores(labels: list[str], scores: list[float], counts: list[int]) -> str:
    """The F-score of every label.

    labels (List[str]): The labels, in the order wanted.
    scores (List[float]): The F-scores, 0 to 1.
    counts (List[int]): How many texts of the test set have the label.
    RETURNS (str): The SVG.
    """
    figure, axes = _figure(5.2, 0.7 + 0.24 * len(labels))
    rows = range(len(labels))
    axes.barh(rows, [100 * score for score in scores], color=COLOURS["ours"], height=0.7)
    for row, (score, count) in enumerate(zip(scores, counts, strict=True)):
        axes.text(100 * score + 1, row, f"{100 * score:.0f} ({count:,})", va="center", fontsize=9)
    axes.set_yticks(rows, [_short(label) for label in labels], fontsize=9)
    axes.set_xlim(0, 118)
    axes.set_xticks(range(0, 101, 25))
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("F on test, % (texts)")
    return _svg(figure)


@matplotlib.rc_context(STYLE)
def plot_confusion(matrix: numpy.ndarray, labels: list[str]) -> str:
    """How often texts of one label were taken for another.

    matrix (numpy.ndarray): Texts, `(labels, labels)`: a row a right label, a column a predicted.
    labels (List[str]): The labels, in the same order.
    RETURNS (str): The SVG.
    """
    size = 2.2 + (0.34 if len(labels) <= MOST_NUMBERED_CELLS else 0.19) * len(labels)
    figure, axes = _figure(size, size)
    shares = matrix / numpy.maximum(matrix.sum(1, keepdims=True), 1)
    cells = numpy.zeros((*matrix.shape, 4))
    colour = matplotlib.colors.to_rgb("#7f7fff")  # An image's colours can't be the page's.
    cells[..., :3] = colour
    cells[..., 3] = numpy.sqrt(shares)  # The few that are wrong are what one looks for.
    axes.imshow(cells, interpolation="none")
    if len(labels) <= MOST_NUMBERED_CELLS:
        for row, column in zip(*numpy.nonzero(matrix), strict=True):
            text = f"{matrix[row, column]:,}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8)
    names = [_short(label) for label in labels]
    axes.set_xticks(range(len(labels)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(labels)), names, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("right")
    return _svg(figure)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _set_seconds(axes: Axes, seconds: list[float]) -> None:
    low, high = min(seconds) * 0.8, max(seconds) * 1.25
    ticks = [tick for tick in TIMES if low <= tick <= high]
    ticks = ticks[:: ceil(len(ticks) / MOST_TIMES) or 1]
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [short_time(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _short(label: str) -> str:
    return label if len(label) <= MOST_LETTERS else label[: MOST_LETTERS - 1] + "…"


def _svg(figure: Figure) -> str:
    text = StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg
