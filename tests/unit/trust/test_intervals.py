"""Intervals over groups: known values, that they cover the truth, and what they say where the data says little."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk_metrics

from tlray.errors import DataError
from tlray.trust.calibration import brier_interval, calibration_error_interval, expected_calibration_error
from tlray.trust.classification import balanced_accuracy_interval, metric_intervals
from tlray.trust.groups import effective_size_of_share
from tlray.trust.intervals import Interval, bootstrap, mean_interval, share_interval
from tlray.trust.paired_models import compare_accuracy, compare_paired


def probabilities(predicted, num_classes=2, confidence=0.9):
    rest = (1 - confidence) / (num_classes - 1)
    return np.where(np.eye(num_classes, dtype=bool)[predicted], confidence, rest)


def of(labels, probs_BK, groups=None):
    labels = np.array(labels)
    groups = np.arange(len(labels)) if groups is None else np.array(groups)
    return metric_intervals(labels, probs_BK, groups)


def simulated(rng, num_patients, num_classes=3, signal=2.0):
    """Patients with 1 to 10 images each, which share part of their noise.

    With the signal 2, the probabilities are perfectly calibrated: for noise with the variance 2, the logarithm of a
    class's likelihood is its logit, up to a constant.
    """
    labels = rng.permutation(np.arange(num_patients) % num_classes)
    groups = np.repeat(np.arange(num_patients), rng.integers(1, 11, num_patients))
    logits_BK = rng.normal(size=(num_patients, num_classes))[groups] + rng.normal(size=(len(groups), num_classes))
    logits_BK[np.arange(len(groups)), labels[groups]] += signal
    probs_BK = np.exp(logits_BK)
    return labels[groups], probs_BK / probs_BK.sum(axis=1, keepdims=True), groups


def test_values_are_those_of_scikit_learn():
    labels, probs_BK, groups = simulated(np.random.default_rng(0), 60)
    probs_BK = probs_BK.round(2) + 1e-3  # equal scores, too
    probs_BK /= probs_BK.sum(axis=1, keepdims=True)
    predicted = probs_BK.argmax(axis=1)
    found = of(labels, probs_BK, groups)
    assert found.accuracy.value == pytest.approx(sk_metrics.accuracy_score(labels, predicted))
    assert found.balanced_accuracy.value == pytest.approx(sk_metrics.balanced_accuracy_score(labels, predicted))
    assert found.f1_macro.value == pytest.approx(sk_metrics.f1_score(labels, predicted, average="macro"))
    assert found.log_loss.value == pytest.approx(sk_metrics.log_loss(labels, probs_BK))
    auroc = sk_metrics.roc_auc_score(labels, probs_BK, multi_class="ovr")
    assert found.auroc_macro.value == pytest.approx(auroc)
    recalls = sk_metrics.recall_score(labels, predicted, average=None)  # pyright: ignore[reportArgumentType]
    assert [each.value for each in found.sensitivities] == pytest.approx(recalls)
    for index, each in enumerate(found.specificities):
        assert each.value == pytest.approx(np.mean(predicted[labels != index] != index))
    precisions = sk_metrics.precision_score(labels, predicted, average=None)  # pyright: ignore[reportArgumentType]
    assert [each.value for each in found.precisions] == pytest.approx(precisions)
    f1s = sk_metrics.f1_score(labels, predicted, average=None)  # pyright: ignore[reportArgumentType]
    assert [each.value for each in found.f1s] == pytest.approx(f1s)
    for index, each in enumerate(found.aurocs):
        assert each.value == pytest.approx(sk_metrics.roc_auc_score(labels == index, probs_BK[:, index]))
        assert 0 < each.low < each.value < each.high < 1
    alone = balanced_accuracy_interval(labels, predicted, groups)
    assert alone.value == pytest.approx(found.balanced_accuracy.value)
    # Its variance is linear, not a jackknife.
    ends = found.balanced_accuracy.low, found.balanced_accuracy.high
    assert (alone.low, alone.high) == pytest.approx(ends, abs=0.005)


def wilson(value, size, num_groups):
    t = stats.t.ppf(0.975, num_groups - 1)
    centre = (value + t**2 / (2 * size)) / (1 + t**2 / size)
    half = t * math.sqrt(value * (1 - value) / size + t**2 / (4 * size**2)) / (1 + t**2 / size)
    return centre - half, centre + half


def test_precision_and_f1_by_hand():
    """Of class 0: 6 images found, 2 missed, 3 of class 1 taken for it; 9 are of class 1 and taken for it."""
    found = of([0] * 8 + [1] * 12, probabilities([0] * 6 + [1] * 2 + [0] * 3 + [1] * 9))
    precision, f1 = found.precisions[0], found.f1s[0]
    # The jackknife of a share of single images has its variance, and 9 images rest on as many groups.
    assert (precision.value, precision.low, precision.high) == pytest.approx((6 / 9, *wilson(6 / 9, 9, 9)))
    # The Jaccard index is 6 / 11. Its interval counts the 8 groups of the class.
    assert f1.value == pytest.approx(12 / 17)
    assert (f1.low, f1.high) == pytest.approx([2 * end / (1 + end) for end in wilson(6 / 11, 11, 8)])


def test_a_class_that_is_never_predicted():
    found = of([0] * 20 + [1] * 20, probabilities([1] * 40))
    assert math.isnan(found.precisions[0].value)
    assert (found.f1s[0].value, found.f1s[0].low) == (0, 0)
    upper = wilson(0, 20, 20)[1]
    assert found.f1s[0].high == pytest.approx(2 * upper / (1 + upper))
    assert found.precisions[1].value == 0.5


def test_images_of_one_group_predicted_as_a_class_leave_its_precision_open():
    found = of([0, 0, 1, 1, 1], probabilities([0, 0, 0, 1, 1]), [1, 1, 1, 2, 3])
    assert (found.precisions[0].value, found.precisions[0].low, found.precisions[0].high) == (
        pytest.approx(2 / 3),
        0,
        1,
    )
    assert (found.f1s[0].low, found.f1s[0].high) == (0, 1)  # the class has one group
    assert (found.aurocs[0].low, found.aurocs[0].high) == (0, 1)
    assert found.precisions[1].low > 0


def test_accuracy_of_single_images_has_wilsons_interval_with_student_t():
    labels = np.zeros(100, int)
    found = of(labels, probabilities([1] * 20 + [0] * 80)).accuracy
    t, size = stats.t.ppf(0.975, 99), 100
    centre = (0.8 + t**2 / (2 * size)) / (1 + t**2 / size)
    half = t * math.sqrt(0.16 / size + t**2 / (4 * size**2)) / (1 + t**2 / size)
    assert (found.value, found.low, found.high) == pytest.approx((0.8, centre - half, centre + half))


def test_images_of_a_patient_count_as_one_if_they_agree():
    labels, predicted = np.zeros(100, int), np.array([1] * 20 + [0] * 80)
    single = of(labels, probabilities(predicted)).accuracy
    repeated = of(np.repeat(labels, 7), probabilities(np.repeat(predicted, 7)), np.repeat(np.arange(100), 7)).accuracy
    # The variance is the same; as a share of that of independent images it makes 99.14 of them, in place of 100.
    assert (repeated.low, repeated.high) == pytest.approx((single.low, single.high), abs=5e-4)


@pytest.mark.parametrize(("right", "value"), [(True, 1.0), (False, 0.0)])
def test_all_right_or_all_wrong_has_an_interval_with_a_width(right, value):
    labels = np.arange(40) % 2
    found = of(labels, probabilities(labels if right else 1 - labels))
    t = stats.t.ppf(0.975, 39)
    edge = t**2 / (40 + t**2)  # Wilson's bound of 0 of 40
    assert (found.accuracy.low, found.accuracy.high) == pytest.approx((1 - edge, 1) if right else (0, edge))
    t = stats.t.ppf(0.975, 19)
    edge = t**2 / (20 + t**2)  # 20 images of each class
    for each in (found.balanced_accuracy, found.f1_macro, found.auroc_macro, *found.sensitivities):
        assert each.value == value
        assert (each.low, each.high) == pytest.approx((1 - edge, 1) if right else (0, edge))


def test_groups_of_unequal_size_count_as_fewer_where_all_are_right():
    found = of([0] * 6, probabilities([0] * 6), [0, 0, 0, 0, 1, 2]).accuracy
    t, size = stats.t.ppf(0.975, 2), 36 / 18
    assert (found.low, found.high) == pytest.approx((size / (size + t**2), 1))


def test_one_group_or_one_image_tells_nothing():
    for labels, groups in (([0], None), ([0, 1, 0, 1], [7, 7, 7, 7])):
        found = of(labels, probabilities(labels), groups)
        assert (found.accuracy.value, found.accuracy.low, found.accuracy.high) == (1, 0, 1)
        assert (found.balanced_accuracy.low, found.balanced_accuracy.high) == (0, 1)
        assert found.log_loss.value == pytest.approx(-math.log(0.9))
        assert (found.log_loss.low, found.log_loss.high) == (0, math.inf)


@pytest.mark.parametrize("sizes", [(1, 200), (1, 1, 2000), (1, 60)])
def test_the_log_loss_of_nearly_one_group_has_no_upper_end(sizes):
    """Only the image of the first group is wrong, and the model is sure of all."""
    groups = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.arange(len(groups)) % 2
    found = of(labels, probabilities(np.where(groups == 0, 1 - labels, labels), confidence=1 - 1e-9), groups).log_loss
    assert found.value == pytest.approx(-math.log(1e-9) / len(groups))
    assert (found.low, found.high) == (0, math.inf)


def test_the_least_log_loss_is_that_of_scikit_learn():
    found = of([0, 1, 0, 1], probabilities([0, 1, 0, 1], confidence=1.0)).log_loss
    assert found.low <= sk_metrics.log_loss([0, 1, 0, 1], probabilities([0, 1, 0, 1], confidence=1.0)) <= found.high


def test_a_log_loss_that_two_equal_groups_limit():
    found = of([0, 0, 1, 1], probabilities([0, 0, 1, 0], confidence=0.999), [0, 0, 1, 1]).log_loss
    assert 0 < found.low < found.value < found.high < 1e6


def test_a_class_without_images():
    found = of([0, 0, 1, 1] * 5, probabilities([0, 2, 1, 1] * 5, 3))
    assert [each.value for each in found.sensitivities] == pytest.approx([0.5, 1, math.nan], nan_ok=True)
    assert math.isnan(found.sensitivities[2].low)
    assert [each.value for each in found.specificities] == pytest.approx([1, 1, 0.75])
    assert found.balanced_accuracy.value == 0.75
    assert found.f1_macro.value == pytest.approx((2 / 3 + 1) / 2)
    assert math.isnan(found.auroc_macro.value)
    assert [each.value for each in found.precisions] == pytest.approx([1, 1, 0])
    assert [each.value for each in found.f1s] == pytest.approx([2 / 3, 1, math.nan], nan_ok=True)
    assert [each.value for each in found.aurocs] == pytest.approx([0.75, 1, math.nan], nan_ok=True)


def test_one_class_only():
    found = of([1] * 10, probabilities([1] * 9 + [0]))
    assert (found.accuracy.value, found.balanced_accuracy.value) == (0.9, 0.9)
    assert math.isnan(found.specificities[1].value)
    assert math.isnan(found.auroc_macro.high)


def test_a_class_with_a_single_group_leaves_averages_open():
    labels = [0] * 10 + [1]
    found = of(labels, probabilities(labels))
    assert (found.balanced_accuracy.low, found.balanced_accuracy.high) == (0, 1)
    assert found.accuracy.low > 0.6


@pytest.mark.parametrize("accuracy", [0.7, 0.85, 0.95])
def test_the_interval_of_accuracy_covers_the_truth(accuracy):
    """200 sets of 40 patients; each has an accuracy of its own, so that images correlate by 0.2."""
    rng = np.random.default_rng(0)
    num_covered = 0
    for _ in range(200):
        groups = np.repeat(np.arange(40), rng.integers(1, 11, 40))
        is_right = rng.random(len(groups)) < rng.beta(4 * accuracy, 4 * (1 - accuracy), 40)[groups]
        labels = np.zeros(len(groups), int)
        found = metric_intervals(labels, probabilities((~is_right).astype(int)), groups)
        num_covered += found.accuracy.low <= accuracy <= found.accuracy.high
    assert 0.92 <= num_covered / 200 <= 0.98


def test_the_intervals_of_averages_cover_the_truth():
    rng = np.random.default_rng(0)
    names = ("balanced_accuracy", "f1_macro", "auroc_macro", "log_loss")
    truth = metric_intervals(*simulated(rng, 9000))
    num_covered = dict.fromkeys(names, 0)
    for _ in range(200):
        found = metric_intervals(*simulated(rng, 60))
        for name in names:
            interval = getattr(found, name)
            num_covered[name] += interval.low <= getattr(truth, name).value <= interval.high
    assert all(0.92 <= each / 200 <= 0.99 for each in num_covered.values()), num_covered


def judged(labels, probs_BK, groups) -> dict[str, Interval]:
    """The other intervals of a report. A set has the classes with a probability above 0.2."""
    found = metric_intervals(labels, probs_BK, groups)
    overconfident_BK = probs_BK**2 / np.sum(probs_BK**2, axis=1, keepdims=True)
    sizes = (probs_BK > 0.2).sum(axis=1)
    return {
        "precision": found.precisions[0],
        "f1": found.f1s[0],
        "auroc": found.aurocs[0],
        "calibration error": calibration_error_interval(probs_BK, labels, groups),
        "calibration error of an overconfident model": calibration_error_interval(overconfident_BK, labels, groups),
        "Brier score": brier_interval(probs_BK, labels, groups),
        "set size": mean_interval(sizes, groups, low=1, high=3),
        "referred": share_interval(probs_BK.max(axis=1) < 0.7, groups),
    }


def test_the_other_intervals_of_a_report_cover_the_truth():
    """That of the calibration error is wide on purpose, so that it covers the 0 of a perfectly calibrated model."""
    rng = np.random.default_rng(0)
    truth = {name: each.value for name, each in judged(*simulated(rng, 9000)).items()}
    assert truth["calibration error"] < 0.01
    truth["calibration error"] = 0.0
    assert truth["calibration error of an overconfident model"] > 0.1
    num_covered = dict.fromkeys(truth, 0)
    for _ in range(200):
        for name, interval in judged(*simulated(rng, 60)).items():
            assert interval.low <= interval.value <= interval.high
            num_covered[name] += interval.low <= truth[name] <= interval.high
    assert all(0.92 <= each / 200 <= 0.995 for each in num_covered.values()), num_covered


@pytest.mark.parametrize("confidence", [0.8, 0.99])
def test_the_calibration_error_of_a_model_that_is_always_right_has_an_interval_with_a_width(confidence):
    labels = np.arange(40) % 2
    found = calibration_error_interval(probabilities(labels, confidence=confidence), labels, np.arange(40))
    assert found.value == pytest.approx(1 - confidence)
    # As many more images as Agresti and Coull add, half of them wrong.
    t = stats.t.ppf(0.975, 39)
    added = (confidence**2 + (1 - confidence) ** 2) / 2
    half = t * math.sqrt(t**2 * added) / (40 + t**2)
    # The error with these images: the accuracy falls from 1 toward 0.5.
    with_added = found.value - 0.5 * t**2 / (40 + t**2)
    assert (found.low, found.high) == pytest.approx((max(0, with_added - half), found.value + half))


def test_a_calibration_error_that_is_sure_by_hand():
    """All 400 images have the confidence 0.8; 160 are right. The gap is 16 standard errors, so its bias is 0."""
    labels = np.zeros(400, int)
    probs_BK = probabilities((np.arange(400) >= 160).astype(int), confidence=0.8)
    found = calibration_error_interval(probs_BK, labels, np.arange(400))
    assert found.value == pytest.approx(expected_calibration_error(probs_BK, labels)) == pytest.approx(0.4)
    t, size, variance = stats.t.ppf(0.975, 399), 400, 0.4 * 0.6
    half = t * math.sqrt(size * variance + t**2 * (0.8**2 + 0.2**2) / 2) / (size + t**2)
    # Of the images that are added, half are right: their own gap is 0.3.
    with_added = (400 * 0.4 + t**2 * 0.3) / (400 + t**2)
    assert (found.low, found.high) == pytest.approx((with_added - half, 0.4 + half))


@pytest.mark.parametrize(
    ("num_images", "confidence", "accuracy"),
    [(20, 0.55, 0.9), (40, 0.9, 0.94), (80, 0.75, 0.97), (20, 0.75, 0.6)],  # the last: 15 of 20 have the gap 0
)
def test_a_calibration_error_of_one_confidence_covers_the_truth(num_images, confidence, accuracy):
    probs_BK, covered = probabilities([0] * num_images, confidence=confidence), 0.0
    for num_right in range(num_images + 1):
        labels = (np.arange(num_images) >= num_right).astype(int)
        found = calibration_error_interval(probs_BK, labels, np.arange(num_images))
        is_covered = found.low <= abs(accuracy - confidence) <= found.high
        covered += is_covered * stats.binom.pmf(num_right, num_images, accuracy)
    assert covered >= 0.92


def test_calibration_error_and_brier_score_of_one_group():
    labels, probs_BK = np.array([0, 1, 0]), probabilities([0, 1, 1])
    found = calibration_error_interval(probs_BK, labels, np.zeros(3))
    assert (found.value, found.low, found.high) == (pytest.approx(0.9 - 2 / 3), 0, 1)
    found = brier_interval(probs_BK, labels, np.zeros(3))
    assert (found.value, found.low, found.high) == (pytest.approx((2 * 2 * 0.01 + 2 * 0.81) / 3), 0, 2)
    for interval in (calibration_error_interval, brier_interval):
        with pytest.raises(DataError, match="needs a group"):
            interval(probs_BK, labels, np.zeros(2))


def test_any_metric_of_weights_can_be_bootstrapped():
    labels, probs_BK, groups = simulated(np.random.default_rng(0), 100)
    is_right = probs_BK.argmax(axis=1) == labels

    def balanced(weights):
        return float(
            np.mean([np.average(is_right[labels == each], weights=weights[labels == each]) for each in range(3)])
        )

    expected = of(labels, probs_BK, groups).balanced_accuracy
    found = bootstrap(balanced, groups, np.random.default_rng(0), labels=labels, num_resamples=1000)
    assert found.value == pytest.approx(expected.value)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)
    right = bootstrap(lambda weights: float(weights.sum() / weights.sum()), np.arange(9), np.random.default_rng(0))
    t = stats.t.ppf(0.975, 8)
    assert (right.low, right.high) == pytest.approx((9 / (9 + t**2), 1))


def test_the_change_of_accuracy_counts_groups():
    """One of four images is lost: alone, or as one of two patients."""
    labels, reference, predicted = np.array([0, 1, 0, 1]), np.array([0, 1, 0, 1]), np.array([0, 1, 1, 1])
    found = compare_accuracy(predicted, reference, labels=labels, groups=np.arange(4))
    # Agresti and Min with Student's t of 3 degrees of freedom: half an image more in each of four cells.
    half = stats.t.ppf(0.975, 3) * np.sqrt(2 - 1 / 6) / 6
    assert (found.value, found.num_groups) == (-0.25, 4)
    assert (found.low, found.high) == pytest.approx((max(-1, -1 / 6 - half), -1 / 6 + half))
    of_two = compare_accuracy(predicted, reference, labels=labels, groups=np.array(["a", "a", "b", "b"]))
    assert of_two.num_groups == 2
    assert of_two.high - of_two.low > found.high - found.low
    assert of_two.high == compare_paired(labels, predicted, reference, np.array([0, 0, 1, 1])).difference.high


def test_a_paired_comparison_by_hand():
    labels = np.zeros(20, int)
    predicted = np.array([0] * 6 + [1] * 1 + [0] * 13)
    reference = np.array([1] * 6 + [0] * 14)
    found = compare_paired(labels, predicted, reference, np.arange(20))
    assert (found.num_gained, found.num_lost) == (6, 1)
    assert found.p_value == pytest.approx(2 * (1 + 7) / 2**7)  # 0 or 1 of 7, two-sided
    # Agresti and Min, with Student's t of 19 degrees of freedom.
    size, t = 20, stats.t.ppf(0.975, 19)
    centre = size * 0.25 / (size + 2)
    half = t * math.sqrt(size * 0.35 + 1 - (size * 0.25) ** 2 / (size + 2)) / (size + 2)
    interval = found.difference
    assert interval.value == pytest.approx(0.25)
    assert (interval.low, interval.high) == pytest.approx((centre - half, centre + half))


def test_two_models_that_agree_everywhere():
    labels = np.zeros(30, int)
    found = compare_paired(labels, labels, labels, np.arange(30))
    assert (found.num_gained, found.num_lost, found.p_value, found.difference.value) == (0, 0, 1.0, 0.0)
    half = stats.t.ppf(0.975, 29) / 32
    assert (found.difference.low, found.difference.high) == pytest.approx((-half, half))
    alone = compare_paired(labels, labels, 1 - labels, np.zeros(30)).difference
    assert (alone.value, alone.low, alone.high) == (1, -1, 1)


def test_the_paired_interval_covers_the_truth():
    rng = np.random.default_rng(0)
    num_covered = 0
    for _ in range(200):
        groups = np.repeat(np.arange(40), rng.integers(1, 11, 40))
        wrong = rng.random(len(groups)) < rng.beta(0.6, 3.4, 40)[groups]  # 15 % on average
        wrong_reference = rng.random(len(groups)) < rng.beta(1, 3, 40)[groups]  # 25 %
        labels = np.zeros(len(groups), int)
        found = compare_paired(labels, wrong.astype(int), wrong_reference.astype(int), groups)
        num_covered += found.difference.low <= 0.1 <= found.difference.high
    assert 0.92 <= num_covered / 200 <= 0.98


def bootstrapped(change: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Returns the 95 % interval of a mean by a bootstrap over groups: percentiles of 2,000 draws with replacement."""
    sums_G, sizes_G = np.bincount(groups, change), np.bincount(groups)
    drawn = rng.multinomial(len(sizes_G), np.full(len(sizes_G), 1 / len(sizes_G)), size=2000)
    low, high = np.quantile(drawn @ sums_G / (drawn @ sizes_G), [0.025, 0.975])
    return float(low), float(high)


def paired_ends(num_groups: int, num_sets: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ends of paired intervals of simulated sets, by a bootstrap and by `compare_paired`, [2, sets] each.

    The true difference is 0.1, and patients have 1 to 10 images each.
    """
    rng = np.random.default_rng(0)
    drawn, own = np.empty((2, num_sets)), np.empty((2, num_sets))
    for number in range(num_sets):
        groups = np.repeat(np.arange(num_groups), rng.integers(1, 11, num_groups))
        wrong = rng.random(len(groups)) < rng.beta(0.6, 3.4, num_groups)[groups]  # 15 % on average
        wrong_reference = rng.random(len(groups)) < rng.beta(1, 3, num_groups)[groups]  # 25 %
        labels = np.zeros(len(groups), int)
        found = compare_paired(labels, wrong.astype(int), wrong_reference.astype(int), groups).difference
        own[:, number] = found.low, found.high
        drawn[:, number] = bootstrapped(wrong_reference.astype(float) - wrong, groups, rng)
    return drawn, own


def test_a_paired_bootstrap_over_many_patients_gives_the_same_interval():
    """docs/compare.md says so."""
    drawn, own = paired_ends(1000, 10)
    np.testing.assert_allclose(drawn, own, atol=0.003)


def test_a_paired_bootstrap_over_few_patients_is_too_narrow():
    """docs/compare.md has these figures."""
    drawn, own = (float(np.mean((low <= 0.1) & (high >= 0.1))) for low, high in paired_ends(8, 500))
    assert (drawn, own) == pytest.approx((0.88, 0.96), abs=0.02)


def test_effective_size_of_a_share():
    assert effective_size_of_share(np.array([True, False] * 4), np.repeat(np.arange(4), 2)) == 8  # groups do not differ
    # Groups of 2 that agree, 2 of 4 true: variance 4 (1 / 8)^2 4 / 3 = 1 / 12; independent images 0.25 / 7.
    assert effective_size_of_share(np.array([True] * 4 + [False] * 4), np.repeat(np.arange(4), 2)) == pytest.approx(
        8 * (0.25 / 7) / (1 / 12)
    )


@pytest.mark.parametrize(
    ("labels", "probs", "groups", "message"),
    [
        ([0], [[math.nan, 0.5]], [0], "finite and in"),
        ([0], [[1.5, 0.5]], [0], "finite and in"),
        ([2], [[0.5, 0.5]], [0], "Labels must be integers"),
        ([0.5], [[0.5, 0.5]], [0], "Labels must be integers"),
        ([0, 1], [[0.5, 0.5]], [0], "must match"),
        ([0], [[0.5, 0.5]], [0, 1], "needs a group"),
    ],
)
def test_what_does_not_fit_is_refused(labels, probs, groups, message):
    with pytest.raises(DataError, match=message):
        of(labels, np.array(probs), groups)
    assert issubclass(DataError, ValueError)


def test_a_comparison_needs_predictions_of_each_image():
    with pytest.raises(DataError, match="must predict each image"):
        compare_paired(np.zeros(2), np.zeros(2), np.zeros(3), np.zeros(2))
