"""Draws how far predictions can be believed: a reliability diagram, and errors by the share of accepted images."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tlray.evaluation.figures import COLOURS, MUTED, percent_tick, tidy, to_png
from tlray.trust import calibration, referral


def plot_trust(labels: np.ndarray, probs_BK: np.ndarray, *, refer_below: float) -> bytes:
    """Draws how often predictions are right by their confidence, and how errors fall as more of them are referred.

    Args:
        labels: True classes, int [images]; at least one.
        probs_BK: Probabilities, floating point [images, K], in [0, 1].
        refer_below: The confidence below which predictions are referred.

    Returns:
        A PNG: a reliability diagram in `calibration.NUM_BINS` bins beside the curve of risk and coverage, with a mark
        at the threshold.
    """
    found = calibration.reliability(probs_BK, labels)
    confidence, is_right = np.minimum(probs_BK.max(axis=1), 1), probs_BK.argmax(axis=1) == labels
    curve = referral.risk_coverage(confidence, is_right)
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, 2)
    left, right = panels
    left.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":", label="calibrated")
    has_images = found.num_images > 0
    sizes = 20 + 280 * found.num_images[has_images] / found.num_images.max()
    left.scatter(found.confidence[has_images], found.accuracy[has_images], s=sizes, c=COLOURS[0], alpha=0.8)
    for x, y, count in zip(found.confidence, found.accuracy, found.num_images, strict=True):
        if count:
            left.annotate(str(count), (x, y), xytext=(0, 9), textcoords="offset points", ha="center", fontsize=8)
    left.set(xlim=(0, 1.02), ylim=(0, 1.08))
    left.set_title("Right, by confidence", loc="left", fontweight="bold")
    left.set_xlabel("mean confidence (areas and numbers: images)")
    left.legend(frameon=False, fontsize=9, loc="upper left")
    right.step(curve.coverages, curve.risks, where="post", color=COLOURS[0], linewidth=2)
    is_accepted = confidence >= refer_below
    if is_accepted.any():
        coverage, error = float(is_accepted.mean()), float(np.mean(~is_right[is_accepted]))
        text = f"confidence {refer_below:.2f}"
        right.scatter([coverage], [error], s=170, marker="*", c=COLOURS[1], ec="black", zorder=3, label=text)
        right.legend(frameon=False, fontsize=9, loc="lower right")  # the curve is highest at the right
    right.set(xlim=(0, 1.02), ylim=(0, max(0.05, 1.1 * float(curve.risks.max()))))
    right.set_title("Wrong among those accepted", loc="left", fontweight="bold")
    right.set_xlabel("accepted, the most confident first")
    for axes in panels:
        axes.xaxis.set_major_formatter(percent_tick)
        axes.yaxis.set_major_formatter(percent_tick)
        tidy(axes)
    return to_png(figure)
