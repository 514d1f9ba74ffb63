import dataclasses
import json
import math

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from serve_app.drift import STRIDE, WINDOW, DriftWindow
from tlray.dataset import MAX_MEASURED
from tlray.drift import NUM_BINS, Distribution, TrainingImages, grey_statistics, population_stability_index

TENTHS = Distribution(edges=tuple(float(edge) for edge in range(10, 100, 10)), counts=(10,) * 10)
TRAINING = TrainingImages(grey_mean=TENTHS, grey_deviation=TENTHS, class_counts=(250, 250))


def test_a_distribution_has_equal_shares():
    found = Distribution.of(range(100))
    assert found.counts == (10,) * 10
    assert found.edges == pytest.approx([9.9 * number for number in range(1, 10)])


def test_a_distribution_of_few_values_has_fewer_bins():
    found = Distribution.of([7.0] * 95 + [9.0] * 5)
    assert (found.edges, found.counts) == ((7.0,), (0, 100))
    assert [found.bin(value) for value in (6.9, 7.0, 100.0)] == [0, 1, 1]


def test_a_value_at_an_edge_belongs_above_it():
    assert [TENTHS.bin(value) for value in (-1, 9.9, 10, 19.9, 90, 1000)] == [0, 0, 1, 1, 9, 9]


def test_grey_statistics():
    pixels = np.array([[0, 0], [100, 200]], np.uint8)  # mean 75, squares' mean 12,500
    expected = pytest.approx((75.0, math.sqrt(12_500 - 75**2)))
    assert grey_statistics(Image.fromarray(pixels)) == expected
    assert grey_statistics(Image.fromarray(np.stack([pixels] * 3, axis=2))) == expected


def test_index_by_hand():
    assert population_stability_index([10, 30], [10, 30]) == 0.0
    before, now = (10.5 / 41, 30.5 / 41), (20.5 / 41, 20.5 / 41)
    expected = sum((b - a) * math.log(b / a) for a, b in zip(before, now, strict=True))
    assert expected == pytest.approx(0.26, abs=0.001)
    assert population_stability_index([10, 30], [20, 20]) == pytest.approx(expected)
    assert math.isfinite(population_stability_index([0, 10], [10, 0]))


def test_index_of_equal_sources_is_what_chance_makes_it():
    limit = stats.chi2.ppf(0.95, NUM_BINS - 1) * (1 / WINDOW + 1 / MAX_MEASURED)
    assert limit == pytest.approx(0.076, abs=0.0005)  # as the documentation of WINDOW says
    generator = np.random.default_rng(0)
    found = []
    for _ in range(400):
        training = Distribution.of(generator.normal(size=MAX_MEASURED).tolist())
        served = np.bincount([training.bin(value) for value in generator.normal(size=WINDOW)], minlength=NUM_BINS)
        found.append(population_stability_index(training.counts, served.tolist()))
    assert 0.02 < np.mean(np.array(found) > limit) < 0.09


def test_what_is_written_comes_back():
    assert TrainingImages.from_json(json.loads(json.dumps(dataclasses.asdict(TRAINING)))) == TRAINING


@pytest.mark.parametrize(
    "changes",
    [
        {"grey_mean": None},
        {"grey_mean": {"edges": [2, 1], "counts": [1, 1, 1]}},
        {"grey_mean": {"edges": [1], "counts": [1]}},
        {"grey_mean": {"edges": [math.nan], "counts": [1, 1]}},
        {"class_counts": [0, 0]},
        {"class_counts": [1, -1]},
        {"class_counts": [1.5, 1]},
        {"class_counts": "12"},
    ],
)
def test_something_else_is_refused(changes):
    with pytest.raises((KeyError, TypeError, ValueError)):
        TrainingImages.from_json(dataclasses.asdict(TRAINING) | changes)


def like_training(count: int) -> tuple[list[tuple[float, float]], list[int]]:
    """Images whose statistics fill the tenths alike, and as many of each class."""
    levels = [number % 10 * 10 + 5.0 for number in range(count)]
    return list(zip(levels, levels, strict=True)), [number % 2 for number in range(count)]


def test_a_window_says_nothing_until_it_is_full():
    window = DriftWindow(TRAINING)
    assert window.add(*like_training(WINDOW - 1)) is None
    indices = window.add(*like_training(1))
    assert indices is not None
    assert indices == pytest.approx(dict.fromkeys(("grey_mean", "grey_deviation", "predicted_class"), 0.0), abs=1e-3)


def test_a_window_forgets_and_looks_in_strides():
    window = DriftWindow(TRAINING)
    window.add(*like_training(WINDOW))
    bright = ([(95.0, 5.0)] * STRIDE, [0] * STRIDE)
    assert window.add(bright[0][1:], bright[1][1:]) is None
    window.add(bright[0][:1], bright[1][:1])
    for _ in range(WINDOW // STRIDE - 2):
        window.add(*bright)
    indices = window.add(*bright)
    assert indices is not None
    # All of the images in one of ten bins, and in one of two classes.
    alone = population_stability_index([10] * 10, [WINDOW] + [0] * 9)
    assert indices["grey_mean"] == pytest.approx(alone)
    assert indices["grey_deviation"] == pytest.approx(alone)
    assert indices["predicted_class"] == pytest.approx(population_stability_index([250, 250], [WINDOW, 0]))
    assert alone > 0.25
