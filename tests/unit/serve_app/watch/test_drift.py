import dataclasses
import json
import math

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from serve_app.watch.drift import STATISTICS, STRIDE, WINDOW, DriftWindow
from tlray.data.dataset import MAX_MEASURED
from tlray.data.drift import (
    MIN_IMAGES_PER_BIN,
    NUM_BINS,
    Distribution,
    TrainingImages,
    ValidationPredictions,
    chance_level,
    confidences,
    grey_statistics,
    population_stability_index,
)

TENTHS = Distribution(edges=tuple(float(edge) for edge in range(10, 100, 10)), counts=(10,) * 10)
TRAINING = TrainingImages(grey_mean=TENTHS, grey_deviation=TENTHS)
PREDICTIONS = ValidationPredictions(class_counts=(40, 40), confidence=Distribution(edges=(0.75,), counts=(40, 40)))


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
    # Half an image of the four is a share of 1/8: (7, 3) and (5, 5) tenths once they sum to 1.
    assert population_stability_index([3, 1], [20, 20]) == pytest.approx(0.2 * math.log(7 / 3))
    assert population_stability_index([20, 20], [3, 1]) == pytest.approx(0.2 * math.log(7 / 3))
    # Half an image of ten is 1/20: (1, 21) and (21, 1) parts of 22.
    assert population_stability_index([0, 10], [10, 0]) == pytest.approx(2 * 20 / 22 * math.log(21))


@pytest.mark.parametrize("shares", [(1, 0, 0), (1, 3, 0), (2, 1, 1)])
@pytest.mark.parametrize(("num_before", "num_now"), [(20, 500), (500, 20), (1, 500), (20, 20)])
def test_index_of_equal_shares_is_0(shares, num_before, num_now):
    """However many images either sample has, and where a class is never predicted."""
    before, now = ([share * count for share in shares] for count in (num_before, num_now))
    assert population_stability_index(before, now) == pytest.approx(0, abs=1e-12)


def test_index_of_a_class_that_is_seldom_predicted_is_what_chance_makes_it():
    """Three classes, of which one has 2 % of the images and the other 38 and 60 %; few images are known."""
    generator = np.random.default_rng(0)
    shares = [0.38, 0.6, 0.02]
    above = []
    for _ in range(2000):
        before, now = (generator.multinomial(count, shares).tolist() for count in (72, WINDOW))
        above.append(population_stability_index(before, now) > chance_level(before, WINDOW))
    assert np.mean(above) == pytest.approx(0.05, abs=0.03)


def test_index_of_equal_sources_is_what_chance_makes_it():
    limit = stats.chi2.ppf(0.95, NUM_BINS - 1) * (1 / WINDOW + 1 / MAX_MEASURED)
    assert limit == pytest.approx(0.076, abs=0.0005)  # as the documentation of WINDOW says
    assert chance_level([MAX_MEASURED // NUM_BINS] * NUM_BINS, WINDOW) == pytest.approx(limit)
    generator = np.random.default_rng(0)
    found = []
    for _ in range(400):
        training = Distribution.of(generator.normal(size=MAX_MEASURED).tolist())
        served = np.bincount([training.bin(value) for value in generator.normal(size=WINDOW)], minlength=NUM_BINS)
        found.append(population_stability_index(training.counts, served.tolist()))
    assert 0.02 < np.mean(np.array(found) > limit) < 0.09


def test_what_is_written_comes_back():
    for each in (TRAINING, PREDICTIONS):
        assert type(each).from_json(json.loads(json.dumps(dataclasses.asdict(each)))) == each


def test_predictions_are_counted_by_class_and_by_confidence():
    confident = np.repeat([0.6, 0.8, 0.99999, 1.0], 20)
    probs_BK = np.stack([confident, 1 - confident, np.zeros(80)], axis=1)
    probs_BK[:30] = probs_BK[:30, ::-1]
    found = ValidationPredictions.of(probs_BK.astype(np.float32))
    assert found.class_counts == (50, 0, 30)
    # The median of 20 times 0.6 and 0.8, 40 times 1 to four digits.
    assert found.confidence == Distribution(edges=(0.9,), counts=(40, 40))
    assert confidences(probs_BK.astype(np.float32))[-21:] == [1.0] * 21


@pytest.mark.parametrize(
    ("num_images", "num_bins"), [(1, 2), (79, 2), (119, 2), (120, 3), (200, 5), (400, 10), (9999, 10)]
)
def test_few_predictions_have_few_bins(num_images, num_bins):
    probs = np.linspace(0.5, 1, num_images)
    counts = ValidationPredictions.of(np.stack([probs, 1 - probs], axis=1)).confidence.counts
    assert len(counts) == num_bins
    if num_images >= 2 * MIN_IMAGES_PER_BIN:
        assert chance_level(counts, WINDOW) < 0.1


def predict(generator: np.random.Generator, num_images: int, share_ill: float) -> np.ndarray:
    """Probabilities [images, 2] of a model of sensitivity 0.6 and specificity 1 for images, so many of them ill."""
    is_found = generator.random(num_images) < 0.6 * share_ill
    confidence = generator.uniform(0.5, 1, num_images)
    ill = np.where(is_found, confidence, 1 - confidence)
    return np.stack([1 - ill, ill], axis=1)


@pytest.mark.parametrize("num_validated", [72, 400])
def test_index_of_a_model_that_errs_is_what_chance_makes_it_without_drift(num_validated):
    generator = np.random.default_rng(0)
    above = []
    for _ in range(300):
        window = DriftWindow(None, ValidationPredictions.of(predict(generator, num_validated, 0.5)))
        indices = window.add([], predict(generator, WINDOW, 0.5))
        assert indices is not None
        above.append([indices[name] > window.chance[name] for name in ("predicted_class", "confidence")])
    assert np.mean(above, axis=0) == pytest.approx([0.05, 0.05], abs=0.03)
    # Beside the labels, half of which are ill, it was told to have drifted far.
    labels, predicted = [500, 500], [700, 300]
    assert population_stability_index(labels, predicted) == pytest.approx(0.2 * math.log(7 / 3), abs=1e-3)  # 0.17


def test_index_of_predictions_shows_a_real_shift():
    generator = np.random.default_rng(0)
    validated = ValidationPredictions.of(predict(generator, 400, 0.5))
    assert validated.class_counts == pytest.approx((280, 120), abs=20)  # 0.6 of a half is taken for ill
    window = DriftWindow(None, validated)
    indices = window.add([], predict(generator, WINDOW, 1.0))
    assert indices is not None
    # 0.3 of the images before, 0.6 now.
    assert indices["predicted_class"] == pytest.approx(0.3 * math.log(0.6 / 0.3) + 0.3 * math.log(0.7 / 0.4), abs=0.1)
    assert indices["predicted_class"] > 0.25 > 10 * window.chance["predicted_class"]
    assert indices["confidence"] < window.chance["confidence"]
    unsure = np.full((WINDOW, 2), 0.5) + generator.uniform(-0.1, 0.1, (WINDOW, 1)) * [1, -1]
    indices = window.add([], unsure)
    assert indices is not None
    assert indices["confidence"] > 1


@pytest.mark.parametrize(
    "distribution",
    [
        None,
        {"edges": [2, 1], "counts": [1, 1, 1]},
        {"edges": [1], "counts": [1]},
        {"edges": [math.nan], "counts": [1, 1]},
        {"edges": [1], "counts": [0, 0]},
    ],
)
@pytest.mark.parametrize(
    ("known", "name"), [(TRAINING, "grey_mean"), (TRAINING, "grey_deviation"), (PREDICTIONS, "confidence")]
)
def test_something_else_is_refused(known, name, distribution):
    with pytest.raises((KeyError, TypeError, ValueError)):
        type(known).from_json(dataclasses.asdict(known) | {name: distribution})


@pytest.mark.parametrize("counts", [[0, 0], [1, -1], [1.5, 1], "12"])
def test_other_counts_are_refused(counts):
    with pytest.raises((KeyError, TypeError, ValueError)):
        ValidationPredictions.from_json(dataclasses.asdict(PREDICTIONS) | {"class_counts": counts})


def test_earlier_versions_counted_the_classes_of_training_images():
    assert TrainingImages.from_json(dataclasses.asdict(TRAINING) | {"class_counts": [100, 400]}) == TRAINING


def like_training(count: int) -> tuple[list[tuple[float, float]], np.ndarray]:
    """Images whose statistics fill the tenths alike, and as many of each class, half of them in doubt."""
    levels = [number % 10 * 10 + 5.0 for number in range(count)]
    first = np.resize([0.1, 0.9, 0.7, 0.3], count)
    return list(zip(levels, levels, strict=True)), np.stack([first, 1 - first], axis=1)


def test_a_window_says_nothing_until_it_is_full():
    window = DriftWindow(TRAINING, PREDICTIONS)
    assert window.add(*like_training(WINDOW - 1)) is None
    greys, probs_BK = like_training(WINDOW)
    indices = window.add(greys[-1:], probs_BK[-1:])
    assert indices is not None
    assert indices == pytest.approx(dict.fromkeys(STATISTICS, 0.0), abs=1e-3)


def test_a_window_forgets_and_looks_in_strides():
    window = DriftWindow(TRAINING, PREDICTIONS)
    window.add(*like_training(WINDOW))
    greys, probs_BK = [(95.0, 5.0)] * STRIDE, np.tile([[0.9, 0.1]], (STRIDE, 1))
    assert window.add(greys[1:], probs_BK[1:]) is None
    window.add(greys[:1], probs_BK[:1])
    for _ in range(WINDOW // STRIDE - 2):
        window.add(greys, probs_BK)
    indices = window.add(greys, probs_BK)
    assert indices is not None
    # All of the images in one of ten bins, in one of two classes, and sure.
    alone = population_stability_index([10] * 10, [WINDOW] + [0] * 9)
    assert indices["grey_mean"] == pytest.approx(alone)
    assert indices["grey_deviation"] == pytest.approx(alone)
    assert indices["predicted_class"] == pytest.approx(population_stability_index([40, 40], [WINDOW, 0]))
    assert indices["confidence"] == pytest.approx(population_stability_index([40, 40], [0, WINDOW]))
    assert alone > 0.25


@pytest.mark.parametrize(
    ("training", "predictions", "known"),
    [(TRAINING, None, STATISTICS[:2]), (None, PREDICTIONS, STATISTICS[2:]), (TRAINING, PREDICTIONS, STATISTICS)],
)
def test_what_is_not_known_has_no_index(training, predictions, known):
    window = DriftWindow(training, predictions)
    greys, probs_BK = like_training(WINDOW)
    indices = window.add(greys if training else [], probs_BK)
    assert indices is not None
    assert tuple(indices) == tuple(window.chance) == known
