"""Draws how far predictions can be believed: a reliability diagram, and errors by the share of accepted images."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tlray.evaluation.figures import COLOURS, MUTED, percent_tick, tidy, to_png
from tlray.trust import calibration, referral

_FONT_SIZE = 9
_STAR_AREA = 170  # in square points, as Matplotlib counts markers


def plot_trust(labels: np.ndarray, probs_BK: np.ndarray, *, refer_below: float) -> bytes:
    """Returns the figure that `draw_trust` draws, as PNG."""
    return to_png(draw_trust(labels, probs_BK, refer_below=refer_below))


def draw_trust(labels: np.ndarray, probs_BK: np.ndarray, *, refer_below: float) -> Figure:
    """Draws how often predictions are right by their confidence, and how errors fall as more of them are referred.

    Args:
        labels: True classes, int [images]; at least one.
        probs_BK: Probabilities, floating point [images, K], in [0, 1].
        refer_below: The confidence below which predictions are referred.

    Returns:
        A reliability diagram in `calibration.NUM_BINS` bins beside the curve of risk and coverage, with a mark at the
        threshold.
    """
    found = calibration.reliability(probs_BK, labels)
    confidence, is_right = np.minimum(probs_BK.max(axis=1), 1), probs_BK.argmax(axis=1) == labels
    curve = referral.risk_coverage(confidence, is_right)
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, 2)
    left, right = panels
    left.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":", label="calibrated")
    has_images = found.num_images > 0
    points = [values[has_images] for values in (found.confidence, found.accuracy, found.num_images)]
    areas = 20 + 280 * points[2] / points[2].max()
    left.scatter(points[0], points[1], s=areas, c=COLOURS[0], alpha=0.8, linewidths=0)
    for x, y, count, area in zip(*points, areas, strict=True):
        above = (0, np.sqrt(area) / 2 + 2)  # points
        left.annotate(str(count), (x, y), xytext=above, textcoords="offset points", ha="center", va="bottom", size=8)
    left.set(xlim=(0, 1.02), ylim=(0, 1.14))
    left.set_title("Right, by confidence", loc="left", fontweight="bold")
    left.set_xlabel("mean confidence (areas and numbers: images)")
    left.legend(frameon=False, fontsize=_FONT_SIZE, loc="upper left")
    steps = np.repeat(curve.coverages, 2)[1:], np.repeat(curve.risks, 2)[:-1]
    (line,) = right.plot(*steps, color=COLOURS[0], linewidth=2)
    right.set(xlim=(0, 1.02), ylim=(0, max(0.05, 1.15 * float(curve.risks.max()))))
    right.set_title("Wrong among those accepted", loc="left", fontweight="bold")
    right.set_xlabel("accepted, the most confident first")
    for axes in panels:
        axes.xaxis.set_major_formatter(percent_tick)
        axes.yaxis.set_major_formatter(percent_tick)
        tidy(axes)
    is_accepted = confidence >= refer_below
    if is_accepted.any():
        coverage, error = float(is_accepted.mean()), float(np.mean(~is_right[is_accepted]))
        right.scatter([coverage], [error], s=_STAR_AREA, marker="*", c=COLOURS[1], ec="black", zorder=3)
        _name(figure, right, (coverage, error), f"threshold {refer_below:.2f}", line)
    return figure


def _name(figure: Figure, axes: Axes, point: tuple[float, float], text: str, line: Line2D) -> None:
    """Writes a text beside a point, inside the axes, where it does not cover a line."""
    figure.draw_without_rendering()  # the layout is final from here on
    for x, y in ((10, 8), (-10, 8), (10, -8), (-10, -8), (0, 14), (0, -14), (10, 24), (-10, 24), (24, -24)):
        side, height = "left" if x > 0 else "right" if x else "center", "bottom" if y > 0 else "top"
        note = axes.annotate(
            text, point, xytext=(x, y), textcoords="offset points", ha=side, va=height, size=_FONT_SIZE
        )
        box, inside = note.get_window_extent(), axes.bbox
        fits = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
        path = line.get_transform().transform_path(line.get_path())
        if fits and not path.intersects_bbox(box.padded(3), filled=False):
            return
        note.remove()
    # Above the whole curve there is always room for one line of text.
    left, right = axes.get_xlim()
    side = "left" if point[0] < (left + right) / 2 else "right"
    top = (point[0], 0.99 * axes.get_ylim()[1])
    axes.annotate(text, top, xytext=(0, 0), textcoords="offset points", ha=side, va="top", size=_FONT_SIZE)
