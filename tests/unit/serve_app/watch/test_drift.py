import dataclasses
import json
import math

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from serve_app.watch.drift import FALSE_ALARM_RATE, STATISTICS, STRIDE, WINDOW, DriftWindow, Look
from tlray.data.dataset import MAX_MEASURED
from tlray.data.drift import (
    MAX_VALUES,
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
WITH_VALUES = dataclasses.replace(
    PREDICTIONS, confidences=(0.5, 0.75, 1.0), ood_scores=(0.125, 0.25), num_independent=70
)


def validated(probs_BK: np.ndarray, groups: np.ndarray | None = None) -> ValidationPredictions:
    """What is kept of predictions for images, each of a patient of its own; nobody knows how foreign they are."""
    unknown = np.full(len(probs_BK), np.nan, np.float32)
    own = np.arange(len(probs_BK)).astype(str)
    return ValidationPredictions.of(probs_BK, unknown, own if groups is None else groups)


def look_at(window: DriftWindow, greys: list[tuple[float, float]], probs_BK: np.ndarray) -> Look:
    look = window.add(greys, probs_BK)
    assert look is not None
    return look


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
    for each in (TRAINING, dataclasses.replace(TRAINING, num_independent=90), PREDICTIONS, WITH_VALUES):
        assert type(each).from_json(json.loads(json.dumps(dataclasses.asdict(each)))) == each


def test_predictions_are_counted_by_class_and_by_confidence():
    confident = np.repeat([0.6, 0.8, 0.99999, 1.0], 20)
    probs_BK = np.stack([confident, 1 - confident, np.zeros(80)], axis=1)
    probs_BK[:30] = probs_BK[:30, ::-1]
    found = validated(probs_BK.astype(np.float32))
    assert found.class_counts == (50, 0, 30)
    # The median of 20 times 0.6 and 0.8, 40 times 1 to four digits.
    assert found.confidence == Distribution(edges=(0.9,), counts=(40, 40))
    assert confidences(probs_BK.astype(np.float32))[-21:] == [1.0] * 21


@pytest.mark.parametrize(
    ("num_images", "num_bins"), [(1, 2), (79, 2), (119, 2), (120, 3), (200, 5), (400, 10), (9999, 10)]
)
def test_few_predictions_have_few_bins(num_images, num_bins):
    probs = np.linspace(0.5, 1, num_images)
    counts = validated(np.stack([probs, 1 - probs], axis=1)).confidence.counts
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
        window = DriftWindow(None, validated(predict(generator, num_validated, 0.5)))
        indices = look_at(window, [], predict(generator, WINDOW, 0.5)).indices
        above.append([indices[name] > window.chance[name] for name in ("predicted_class", "confidence")])
    assert np.mean(above, axis=0) == pytest.approx([0.05, 0.05], abs=0.03)
    # Beside the labels, half of which are ill, it was told to have drifted far.
    labels, predicted = [500, 500], [700, 300]
    assert population_stability_index(labels, predicted) == pytest.approx(0.2 * math.log(7 / 3), abs=1e-3)  # 0.17


def test_index_of_predictions_shows_a_real_shift():
    generator = np.random.default_rng(0)
    before = validated(predict(generator, 400, 0.5))
    assert before.class_counts == pytest.approx((280, 120), abs=20)  # 0.6 of a half is taken for ill
    window = DriftWindow(None, before)
    look = look_at(window, [], predict(generator, WINDOW, 1.0))
    indices = look.indices
    assert look.drifted == ("predicted_class",)
    assert look.is_news
    assert "predicted_class (p " in look.describe()
    assert "confidence" not in look.describe()
    # 0.3 of the images before, 0.6 now.
    assert indices["predicted_class"] == pytest.approx(0.3 * math.log(0.6 / 0.3) + 0.3 * math.log(0.7 / 0.4), abs=0.1)
    assert indices["predicted_class"] > 0.25 > 10 * window.chance["predicted_class"]
    assert indices["confidence"] < window.chance["confidence"]
    unsure = np.full((WINDOW, 2), 0.5) + generator.uniform(-0.1, 0.1, (WINDOW, 1)) * [1, -1]
    look = look_at(window, [], unsure)
    assert look.indices["confidence"] > 1
    assert "confidence" in look.drifted
    assert look.is_news
    assert not look_at(window, [], unsure).is_news
    healthy = predict(generator, WINDOW, 0.5)
    look = look_at(window, [], healthy)
    assert (look.drifted, look.is_news) == ((), True)
    assert look.describe() == f"no drift any more in the latest {WINDOW} images."


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


WITHOUT_SCORES = STATISTICS[:4]
"""What is known where nothing tells how foreign an image is, as with bundles of earlier versions."""


def test_a_window_says_nothing_until_it_is_full():
    window = DriftWindow(TRAINING, PREDICTIONS)
    assert window.add(*like_training(WINDOW - 1)) is None
    greys, probs_BK = like_training(WINDOW)
    look = look_at(window, greys[-1:], probs_BK[-1:])
    assert look.indices == pytest.approx(dict.fromkeys(WITHOUT_SCORES, 0.0), abs=1e-3)
    assert look.p_values == pytest.approx(dict.fromkeys(WITHOUT_SCORES, 1.0), abs=1e-3)
    assert not look.is_news


def test_a_window_forgets_and_looks_in_strides():
    window = DriftWindow(TRAINING, PREDICTIONS)
    window.add(*like_training(WINDOW))
    greys, probs_BK = [(95.0, 5.0)] * STRIDE, np.tile([[0.9, 0.1]], (STRIDE, 1))
    assert window.add(greys[1:], probs_BK[1:]) is None
    window.add(greys[:1], probs_BK[:1])
    for _ in range(WINDOW // STRIDE - 2):
        window.add(greys, probs_BK)
    indices = look_at(window, greys, probs_BK).indices
    # All of the images in one of ten bins, in one of two classes, and sure.
    alone = population_stability_index([10] * 10, [WINDOW] + [0] * 9)
    assert indices["grey_mean"] == pytest.approx(alone)
    assert indices["grey_deviation"] == pytest.approx(alone)
    assert indices["predicted_class"] == pytest.approx(population_stability_index([40, 40], [WINDOW, 0]))
    assert indices["confidence"] == pytest.approx(population_stability_index([40, 40], [0, WINDOW]))
    assert alone > 0.25


@pytest.mark.parametrize(
    ("training", "predictions", "known"),
    [
        (TRAINING, None, STATISTICS[:2]),
        (None, PREDICTIONS, STATISTICS[2:4]),
        (TRAINING, PREDICTIONS, STATISTICS[:4]),
        (TRAINING, WITH_VALUES, STATISTICS),
    ],
)
def test_what_is_not_known_has_no_index(training, predictions, known):
    window = DriftWindow(training, predictions)
    greys, probs_BK = like_training(WINDOW)
    look = look_at(window, greys if training else [], probs_BK)
    assert tuple(look.indices) == tuple(look.p_values) == tuple(window.chance) == known
    # Nobody has told how foreign the images of the window are.
    assert {name for name, value in look.p_values.items() if math.isnan(value)} == set(known[4:])
    assert "ood_score" not in look.drifted


@pytest.mark.parametrize(
    "changes",
    [
        {"confidences": (0.5, math.nan)},
        {"confidences": (0.75, 0.5)},
        {"ood_scores": ("far",)},
        {"num_independent": 0},
        {"num_independent": 1.5},
    ],
)
def test_other_values_are_refused(changes):
    with pytest.raises((TypeError, ValueError)):
        ValidationPredictions.from_json(dataclasses.asdict(WITH_VALUES) | changes)


def test_what_is_kept_of_predictions():
    probs_BK = np.stack([np.linspace(0.6, 0.9, 4), 1 - np.linspace(0.6, 0.9, 4)], axis=1).astype(np.float32)
    scores = np.array([0.3, 0.1, 0.2, 0.25], np.float32)
    found = ValidationPredictions.of(probs_BK, scores, np.array(["a", "a", "b", "c"]))
    assert found.confidences == (0.6, 0.7, 0.8, 0.9)
    assert found.ood_scores == (0.1, 0.2, 0.25, 0.3)  # as decimal numbers, not as float32 has them
    assert found.num_independent == 2  # 16 / (4 + 1 + 1)
    many = ValidationPredictions.of(
        np.full((MAX_VALUES + 1, 2), 0.5), np.linspace(0, 1, MAX_VALUES + 1), np.arange(MAX_VALUES + 1).astype(str)
    )
    assert len(many.confidences) == len(many.ood_scores) == many.num_independent == MAX_VALUES
    assert sum(many.class_counts) == MAX_VALUES + 1


# The rate of false alarms


SHARES = (0.5, 0.3, 0.2)
Images = tuple[list[tuple[float, float]], np.ndarray, np.ndarray]


def draw(
    generator: np.random.Generator, num_images: int, *, shares: tuple[float, ...] = SHARES, foreign_share: float = 0.0
) -> Images:
    """Grey statistics, probabilities and foreignness of images, the latter as large as no other for foreign ones."""
    classes = generator.choice(3, num_images, p=shares)
    confidence = 1 - 0.6 * generator.beta(0.7, 3, num_images)
    probs_BK = np.repeat((1 - confidence) / 2, 3).reshape(num_images, 3)
    probs_BK[np.arange(num_images), classes] = confidence
    scores = generator.gamma(20, 0.01, num_images)
    scores[: round(foreign_share * num_images)] = 2.0
    greys = generator.normal([100, 40], [10, 5], (num_images, 2))
    return [(mean, deviation) for mean, deviation in greys.tolist()], probs_BK, scores.astype(np.float32)


def new_window(generator: np.random.Generator, num_validated: int, *, num_copies: int = 1) -> DriftWindow:
    """The window of a model: validated on so many images, each of which is there several times."""
    greys, _, _ = draw(generator, MAX_MEASURED)
    means, deviations = zip(*greys, strict=True)
    training = TrainingImages(
        grey_mean=Distribution.of(means), grey_deviation=Distribution.of(deviations), num_independent=MAX_MEASURED
    )
    _, probs_BK, scores = draw(generator, num_validated // num_copies)
    patients = np.arange(len(probs_BK)).astype(str)
    predictions = ValidationPredictions.of(
        *(np.repeat(each, num_copies, axis=0) for each in (probs_BK, scores, patients))
    )
    return DriftWindow(training, predictions)


@pytest.mark.parametrize(("num_validated", "num_copies"), [(72, 1), (300, 1), (300, 4)])
def test_false_alarms_are_as_rare_as_promised(num_validated, num_copies):
    """Nothing has drifted: a small reference is a sample like the window, and copies do not make it larger."""
    generator, num_windows, smallest = np.random.default_rng(1), 500, []
    for _ in range(num_windows):
        look = new_window(generator, num_validated, num_copies=num_copies).add(*draw(generator, WINDOW))
        assert look is not None
        assert tuple(look.p_values) == STATISTICS
        assert bool(look.drifted) == (min(look.p_values.values()) < FALSE_ALARM_RATE)
        smallest.append(min(look.p_values.values()))
    # At 0.05, too, where more windows show more.
    for level in (FALSE_ALARM_RATE, 0.05):
        assert sum(each < level for each in smallest) <= stats.binom.ppf(0.999, num_windows, level)


def test_false_alarms_are_as_rare_in_windows_that_overlap():
    """The promise is about the mean over looks: as many models, each looked at ten times in a row."""
    generator = np.random.default_rng(2)
    num_models, num_looks, count = 100, 10, 0
    for _ in range(num_models):
        window = new_window(generator, 300)
        looks = [window.add(*draw(generator, WINDOW))]
        looks += [window.add(*draw(generator, STRIDE)) for _ in range(num_looks - 1)]
        count += any(look is not None and look.drifted for look in looks)
        assert None not in looks
    assert count <= stats.binom.ppf(0.999, num_models, num_looks * FALSE_ALARM_RATE)


def test_a_tenth_of_foreign_images_is_found():
    generator = np.random.default_rng(3)
    for _ in range(20):
        look = new_window(generator, 300).add(*draw(generator, WINDOW, foreign_share=0.1))
        assert look is not None
        assert "ood_score" in look.drifted
        assert look.p_values["ood_score"] < 1e-6


def test_a_class_that_becomes_twice_as_frequent_is_found():
    generator = np.random.default_rng(4)
    found = []
    for _ in range(20):
        look = new_window(generator, 300).add(*draw(generator, WINDOW, shares=(0.375, 0.225, 0.4)))
        assert look is not None
        found.append("predicted_class" in look.drifted)
    assert sum(found) >= 18


def test_other_images_and_doubts_are_found():
    generator = np.random.default_rng(5)
    window = new_window(generator, 300)
    greys, probs_BK, scores = draw(generator, WINDOW)
    look = window.add([(mean + 10, deviation) for mean, deviation in greys], probs_BK, scores)
    assert look is not None
    assert look.drifted == ("grey_mean",)
    look = window.add(greys, 0.6 * probs_BK + 0.4 / 3, scores)
    assert look is not None
    assert look.drifted == ("confidence",)
