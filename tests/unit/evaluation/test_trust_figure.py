"""The figure of how far predictions can be believed: numbers and the threshold's name stay clear of what is drawn."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection

from tlray.evaluation.trust_figure import draw_trust


def predictions(num_images: int, *, seed: int, accuracy: float) -> tuple[np.ndarray, np.ndarray]:
    """Makes labels and probabilities of two classes; the confident predictions are right more often."""
    rng = np.random.default_rng(seed)
    confidence = np.append(rng.uniform(0.5, 1, num_images - 1), 0.99)
    is_right = rng.uniform(size=num_images) < np.clip(accuracy + confidence - 0.75, 0, 1)
    return np.where(is_right, 0, 1), np.stack([confidence, 1 - confidence], axis=1)


def panels(labels: np.ndarray, probs_BK: np.ndarray, refer_below: float) -> tuple[Axes, Axes, float]:
    """Draws the figure; returns its two panels, and its pixels for each point."""
    figure = draw_trust(labels, probs_BK, refer_below=refer_below)
    figure.draw_without_rendering()
    left, right = figure.axes
    return left, right, figure.dpi / 72


@pytest.mark.parametrize("refer_below", [0.5, 0.6, 0.75, 0.97])
@pytest.mark.parametrize(("num_images", "accuracy"), [(12, 0.5), (111, 0.2), (111, 0.8), (111, 1.25)])
def test_the_threshold_is_named_once_beside_the_curve_and_inside_the_axes(num_images, accuracy, refer_below):
    labels, probs_BK = predictions(num_images, seed=num_images, accuracy=accuracy)
    _, right, scale = panels(labels, probs_BK, refer_below)
    assert right.get_legend() is None
    (text,) = right.texts
    assert text.get_text() == f"threshold {refer_below:.2f}"
    box, inside = text.get_window_extent(), right.bbox
    assert inside.x0 <= box.x0 < box.x1 <= inside.x1
    assert inside.y0 <= box.y0 < box.y1 <= inside.y1
    (line,) = right.lines
    assert not line.get_transform().transform_path(line.get_path()).intersects_bbox(box, filled=False)
    (star,) = right.collections
    x, y = right.transData.transform(star.get_offsets())[0]
    distance = np.hypot(max(box.x0 - x, x - box.x1, 0), max(box.y0 - y, y - box.y1, 0))
    assert distance > 6 * scale  # the star's radius in points


def test_without_accepted_images_no_threshold_is_marked():
    labels, probs_BK = predictions(12, seed=0, accuracy=0.5)
    _, right, _ = panels(labels, probs_BK, 1.1)
    assert len(right.texts) == len(right.collections) == 0


def test_numbers_do_not_touch_their_bubbles():
    labels, probs_BK = predictions(200, seed=0, accuracy=1.25)
    left, _, scale = panels(labels, probs_BK, 0.5)
    (bubbles,) = left.collections
    assert isinstance(bubbles, PathCollection)
    radii = np.sqrt(bubbles.get_sizes()) / 2 * scale
    assert len(left.texts) == len(radii) > 3
    for text, radius, point in zip(left.texts, radii, left.transData.transform(bubbles.get_offsets()), strict=True):
        box = text.get_window_extent()
        assert box.y0 > point[1] + radius
        assert box.y1 <= left.bbox.y1
