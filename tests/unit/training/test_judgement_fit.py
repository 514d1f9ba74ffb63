"""Calibration and limits of a trained model, on simulated images whose true probabilities are known."""

import functools
import json

import numpy as np
import pytest
from scipy import special
from sklearn.model_selection import GroupKFold

from tlray.bundle.judgement import prediction_sets
from tlray.data.prior import class_shares
from tlray.errors import DataError
from tlray.evaluation import out_of_fold
from tlray.training import judgement_fit
from tlray.training.judgement_fit import Judging, Unseen, Wanted
from tlray.trust import calibration

HALVES = np.array([0.5, 0.5])
FOUR_BK = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.55, 0.45]])
"""Probabilities of four images; with the labels 0, 1, 1, 0 only the second one is wrong."""

FOUR = np.array([0, 1, 1, 0])


def simulated(seed: int, num_images: int, num_classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the true probability, and labels drawn from it."""
    rng = np.random.default_rng(seed)
    logits_BK = 2 * rng.normal(size=(num_images, num_classes))
    edges = special.softmax(logits_BK, axis=1).cumsum(axis=1)[:, :-1]
    return logits_BK, (rng.random((num_images, 1)) > edges).sum(axis=1)


def patients(num_images: int, *, size: int = 1) -> np.ndarray:
    """Groups of `size` images each."""
    return np.array([f"patient {number // size}" for number in range(num_images)])


def unseen(
    logits_BK: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    assumed: np.ndarray | None = None,
) -> Unseen:
    """Unseen images, whose logits assume their own class shares unless others are given."""
    num_classes = logits_BK.shape[1]
    own = class_shares(labels, num_classes) if len(labels) else np.full(num_classes, 1 / num_classes)
    groups = patients(len(labels)) if groups is None else groups
    return Unseen(
        logits_BK=logits_BK.astype(np.float32),
        image_ids=[str(number) for number in range(len(labels))],
        labels=labels,
        groups=groups,
        assumed_shares=own if assumed is None else assumed,
        origin="simulated images",
    )


def wish(shares: np.ndarray, assumed: np.ndarray | None = None, *, refer_below: float | None = None) -> Wanted:
    assumed = shares if assumed is None else assumed
    return Wanted(assumed_shares=assumed, shares=shares, refer_below=refer_below, max_error=0.05)


def probabilities(logits_BK: np.ndarray, judged: Judging) -> np.ndarray:
    """What the exported model gives."""
    return special.softmax((logits_BK + judged.shift) / judged.temperature, axis=1)


@functools.cache
def overconfident() -> tuple[np.ndarray, np.ndarray, Judging]:
    """True logits and labels of 4,000 images, and the judging of a model whose logits are three times too large."""
    true_BK, labels = simulated(0, 4000)
    return true_BK, labels, judgement_fit.fit(unseen(3 * true_BK, labels), wish(class_shares(labels, 3)), seed=0)


def test_probabilities_of_logits():
    found = unseen(np.log(FOUR_BK) + 7, FOUR).probs_BK
    assert (found.dtype, found.shape) == (np.float64, (4, 2))
    np.testing.assert_allclose(found, FOUR_BK, atol=1e-6)


@pytest.mark.parametrize("given", [None, 0.8])
@pytest.mark.parametrize(
    "nothing", [None, unseen(np.zeros((0, 3)), np.zeros(0, int), np.zeros(0, str))], ids=["none", "empty"]
)
def test_without_unseen_images_only_the_prior_is_changed(nothing, given):
    shares, assumed = np.array([0.5, 0.3, 0.2]), np.array([0.25, 0.25, 0.5])
    found = judgement_fit.fit(nothing, wish(shares, assumed, refer_below=given), seed=0)
    assert found.shift == pytest.approx(np.log([2, 1.2, 0.4]))
    assert (found.temperature, found.refer_below) == (1, given or 0.5)
    assert not found.predicted
    assert (found.set_thresholds, found.about, found.warnings) == (None, {}, (judgement_fit.NOTHING_UNSEEN,))


def test_the_errors_can_be_computed_again_from_the_predictions_that_are_kept():
    _, labels, judged = overconfident()
    found: dict[str, object] = {}
    for kind, end in ((out_of_fold.BEFORE, "_before"), (out_of_fold.AFTER, "")):
        each = judged.predicted[kind]
        assert each.image_ids == [str(number) for number in range(len(labels))]
        assert np.array_equal(each.labels, labels)
        found |= out_of_fold.calibration_errors(each.probs_BK, each.labels, patients(len(labels)), end=end)
    assert found.items() <= judged.about["calibration"].items()
    assert found.keys() >= {"ece", "ece_before", "brier_ci95", "brier_before_ci95"}
    assert out_of_fold.told({}, judged.about)["calibration"].items() >= found.items()


def test_logits_that_are_too_large_are_divided():
    true_BK, labels, judged = overconfident()
    assert judged.temperature == pytest.approx(3, rel=0.1)
    found = judged.about["calibration"]
    assert found["temperature"] == judged.temperature
    assert found["ece_before"] > 0.1
    assert found["ece"] < found["ece_before"] / 2
    assert found["brier"] < found["brier_before"]
    for name in ("ece", "ece_before", "brier", "brier_before"):
        low, high = found[f"{name}_ci95"]
        assert low < found[name] < high
    assert found["ece_ci95"][1] < found["ece_before_ci95"][0]
    probs_BK = probabilities(3 * true_BK, judged)
    assert probs_BK.mean(axis=0) == pytest.approx(class_shares(labels, 3), abs=1e-3)
    assert np.abs(probs_BK - special.softmax(true_BK, axis=1)).mean() < 0.03
    assert judged.shift.dtype == np.float32


def test_all_that_is_told_can_be_written_as_json():
    about = overconfident()[2].about
    assert (about["num_images"], about["num_groups"], about["origin"]) == (4000, 4000, "simulated images")
    read = json.loads(json.dumps(about, allow_nan=False))
    assert all(read[name] == about[name] for name in ("referral", "class_shares", "prior"))


def test_the_chosen_threshold_keeps_the_error_rate_of_new_images():
    _, _, judged = overconfident()
    chosen = judged.about["referral"]
    assert (judged.warnings, chosen["note"], chosen["max_error"]) == ((), "", 0.05)
    assert chosen["refer_below"] == judged.refer_below
    assert chosen["error_rate"] < chosen["error_rate_high"] <= 0.05
    assert chosen["coverage"] > 0.1
    true_BK, labels = simulated(1, 4000)
    probs_BK = probabilities(3 * true_BK, judged)
    is_accepted = probs_BK.max(axis=1) >= judged.refer_below
    assert is_accepted.mean() == pytest.approx(chosen["coverage"], abs=0.05)
    assert np.mean(probs_BK.argmax(axis=1)[is_accepted] != labels[is_accepted]) < 0.065


def test_logits_of_balanced_training_get_the_shares_of_the_images():
    """Gaussian clusters 1.5 from the origin: 1.5 times the features are the logits under equal class shares; twice that
    is given."""
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 3000, p=[0.6, 0.3, 0.1])
    logits_BK = 3 * (1.5 * np.eye(3)[labels] + rng.normal(size=(3000, 3)))
    shares = class_shares(labels, 3)
    balanced = np.full(3, 1 / 3)
    judged = judgement_fit.fit(unseen(logits_BK, labels, assumed=balanced), wish(shares, balanced), seed=0)
    assert judged.temperature == pytest.approx(2, rel=0.15)
    shift = judged.shift / judged.temperature
    assert shift - shift.mean() == pytest.approx(np.log(shares) - np.log(shares).mean(), abs=0.3)
    assert probabilities(logits_BK, judged).mean(axis=0) == pytest.approx(shares, abs=5e-3)


def test_wished_shares_move_the_odds_by_their_ratio():
    true_BK, labels, judged = overconfident()
    own, other = class_shares(labels, 3), np.array([0.2, 0.3, 0.5])
    moved = judgement_fit.fit(unseen(3 * true_BK, labels), wish(other, own), seed=0)
    assert moved.about["class_shares"] == pytest.approx(own)
    assert moved.about["prior"] == [0.2, 0.3, 0.5]
    assert moved.temperature == judged.temperature
    ratio_BK = probabilities(3 * true_BK, moved) / probabilities(3 * true_BK, judged)
    expected = (other / own) / (other / own)[0]
    np.testing.assert_allclose(ratio_BK / ratio_BK[:, :1], np.tile(expected, (4000, 1)), rtol=1e-4)


def test_patients_with_many_images_do_not_change_the_prior():
    """Logits that are right for equal shares, which the images have; a patient of the first class has five of them."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 600)
    x = rng.normal(2.0 * labels - 1)  # clusters at -1 and 1: the log odds are 2 x
    groups = np.r_[patients(600, size=5), np.array([f"single {number}" for number in range(600)])]
    judged = judgement_fit.fit(unseen(np.stack([-x, x], axis=1), labels, groups), wish(HALVES), seed=0)
    assert judged.temperature == pytest.approx(1, abs=0.25)
    assert judged.shift[1] - judged.shift[0] == pytest.approx(0, abs=0.4)
    assert judged.about["calibration"]["ece"] < 0.1


@pytest.mark.parametrize(("given", "coverage", "error_rate"), [(0.6, 0.75, 1 / 3), (0.5, 1, 1 / 4), (0.95, 0, None)])
def test_a_given_threshold_is_kept_and_measured(given, coverage, error_rate):
    judged = judgement_fit.fit(unseen(np.log(FOUR_BK), FOUR), wish(HALVES, refer_below=given), seed=0)
    assert (judged.refer_below, judged.warnings) == (given, ())
    found = judged.about["referral"]
    assert (found["refer_below"], found["max_error"], found["note"]) == (given, None, "")
    assert (found["coverage"], found["error_rate"]) == (coverage, pytest.approx(error_rate))
    if given == 0.6:  # at the bound, at most one error of three comes with 0.05
        high = found["error_rate_high"]
        assert (1 - high) ** 2 * (1 + 2 * high) == pytest.approx(0.05)
    if given == 0.95:
        assert found["error_rate_high"] == 1


def test_too_few_images_are_told():
    shares, assumed = np.array([0.3, 0.7]), np.array([0.6, 0.4])
    judged = judgement_fit.fit(unseen(np.log(FOUR_BK), FOUR, assumed=assumed), wish(shares, assumed), seed=0)
    assert judged.refer_below == 0.5
    (warning,) = judged.warnings
    note = judged.about["referral"]["note"]
    assert "4 images (4 groups)" in note
    assert note in warning
    assert "--refer-below" in warning
    assert judged.about["referral"]["max_error"] == 0.05
    assert judged.about["calibration"]["note"] == "Not calibrated: the images are of 4 groups, and 5 are needed."
    assert judged.shift == pytest.approx(np.log(shares / assumed), abs=1e-6)
    assert (judged.temperature, judged.set_thresholds, judged.about["sets"]) == (1, None, None)


def test_a_class_without_images_is_not_calibrated():
    true_BK, labels = simulated(2, 400)
    is_kept = labels < 2
    shares, assumed = np.array([0.5, 0.3, 0.2]), np.array([0.25, 0.25, 0.5])
    some = unseen(3 * true_BK[is_kept], labels[is_kept], assumed=assumed)
    judged = judgement_fit.fit(some, wish(shares, assumed), seed=0)
    assert judged.temperature == 1
    assert judged.shift == pytest.approx(np.log(shares / assumed), abs=1e-6)
    found = judged.about["calibration"]
    assert "not images of every class" in found["note"]
    assert (found["biases"], found["ece"]) == ((0, 0, 0), found["ece_before"])
    assert (judged.set_thresholds, judged.about["sets"]) == (None, None)
    is_accepted = probabilities(3 * true_BK[is_kept], judged).max(axis=1) >= judged.refer_below
    assert judged.about["referral"]["coverage"] == pytest.approx(is_accepted.mean())


@pytest.mark.parametrize("given", [None, 0.7])
def test_a_model_that_says_the_same_of_all_images_leaves_all_to_a_person(given):
    judged = judgement_fit.fit(unseen(np.zeros((10, 2)), np.arange(10) % 2), wish(HALVES, refer_below=given), seed=0)
    assert judged.set_thresholds == pytest.approx((0.5, 0.5))
    found = judged.about["referral"]
    assert (found["coverage"], found["error_rate"], judged.refer_below) == (0, None, given or 0.5)
    assert len(judged.warnings) == (given is None)


def test_prediction_sets_need_nine_groups():
    """Of nine scores of true classes the largest, 1 - 0.3, is the threshold; 0.65, 0.6 and 0.3 make sets of two."""
    right = np.array([0.95, 0.9, 0.85, 0.8, 0.75, 0.72, 0.65, 0.6, 0.3])
    labels = np.arange(9) % 2
    probs_BK = np.where(np.arange(2) == labels[:, None], right[:, None], 1 - right[:, None])
    judged = judgement_fit.fit(unseen(np.log(probs_BK), labels), wish(class_shares(labels, 2)), seed=0)
    assert judged.set_thresholds == pytest.approx((0.7, 0.7), abs=1e-6)
    assert judged.about["sets"]["mean_size"] == pytest.approx(12 / 9)
    few = judgement_fit.fit(unseen(np.log(probs_BK[:8]), labels[:8]), wish(HALVES), seed=0)
    assert (few.set_thresholds, few.about["sets"]) == (None, None)
    in_one_less = np.append(patients(8), "patient 0")
    assert judgement_fit.fit(unseen(np.log(probs_BK), labels, in_one_less), wish(HALVES), seed=0).set_thresholds is None


def test_prediction_sets_cover_new_images():
    true_BK, labels = simulated(3, 2000)
    of_two = unseen(3 * true_BK, labels, patients(2000, size=2))
    judged = judgement_fit.fit(of_two, wish(class_shares(labels, 3)), seed=0)
    assert judged.set_thresholds is not None
    assert judged.about["num_groups"] == 1000
    assert judged.about["sets"]["is_class_conditional"] == (True, True, True)
    true_BK, labels = simulated(4, 4000)
    sets_BK = prediction_sets(probabilities(3 * true_BK, judged), judged.set_thresholds)
    assert sets_BK[np.arange(4000), labels].mean() == pytest.approx(0.9, abs=0.04)
    assert sets_BK.sum(axis=1).mean() == pytest.approx(judged.about["sets"]["mean_size"], abs=0.1)


def test_no_group_calibrates_itself():
    """With as many groups as folds each group is held out alone; all labels of the third group are wrong.

    Each group has the weight of a hundred images, as five would be too few.
    """
    true_BK, labels = simulated(5, 500, num_classes=2)
    groups = np.repeat(np.array(list("abcde")), [60, 140, 100, 80, 120])
    labels = np.where(groups == "c", 1 - labels, labels)
    weights = 100 / np.array([np.sum(groups == group) for group in groups])
    fitted, probs_BK = judgement_fit._calibrated(2 * true_BK, labels, groups, weights, seed=0)
    assert fitted == calibration.fit(2 * true_BK, labels, weights)
    for group in "abcde":
        own = groups == group
        without = calibration.fit(2 * true_BK[~own], labels[~own], weights[~own])
        assert probs_BK[own] == pytest.approx(calibration.apply(2 * true_BK[own], without), abs=1e-9)
    own = groups == "c"
    assert np.abs(probs_BK[own] - calibration.apply(2 * true_BK[own], fitted)).max() > 0.02


@pytest.mark.parametrize("counts", [(12, 12), (100, 11)], ids=["too few without a part", "a class too few"])
def test_no_image_is_judged_by_a_calibration_that_saw_it_even_if_the_others_are_few(counts):
    """The images are enough to fit a temperature or biases; without a fifth of them they would not be."""
    labels = np.repeat([0, 1], counts)
    rng = np.random.default_rng(0)
    logits_BK = 4 * rng.normal(size=(len(labels), 2)) + 2 * np.eye(2)[labels]
    groups = patients(len(labels))
    form = calibration.form_for(labels, 2)
    fitted, probs_BK = judgement_fit._calibrated(logits_BK, labels, groups, np.ones(len(labels)), seed=0)
    assert fitted == calibration.fit(logits_BK, labels)
    assert fitted.temperature > 1
    assert (np.abs(probs_BK - calibration.apply(logits_BK, fitted)).max(axis=1) > 1e-9).all()
    folds = GroupKFold(judgement_fit.NUM_FOLDS, shuffle=True, random_state=0)
    for rest, held_out in folds.split(logits_BK, groups=np.unique(groups, return_inverse=True)[1]):
        each = calibration.fit(logits_BK[rest], labels[rest], form=form)
        assert any(each.biases) == form.has_biases
        assert probs_BK[held_out] == pytest.approx(calibration.apply(logits_BK[held_out], each), abs=1e-9)


@pytest.mark.parametrize("groups", [patients(33), np.repeat("a", 33)], ids=["many groups", "one group"])
def test_limits_are_set_on_calibrated_probabilities_where_the_model_is_calibrated(groups):
    """Eleven images of each class calibrate a model; one group cannot be held out."""
    true_BK, _ = simulated(6, 33)
    labels = np.arange(33) % 3
    fitted, probs_BK = judgement_fit._calibrated(3 * true_BK, labels, groups, judgement_fit._weights(groups), seed=0)
    is_calibrated = not np.allclose(probs_BK, special.softmax(3 * true_BK, axis=1))
    assert is_calibrated is (fitted.temperature != 1)


def test_one_group_shows_no_limits():
    true_BK, labels = simulated(7, 300)
    judged = judgement_fit.fit(unseen(3 * true_BK, labels, np.repeat("a", 300)), wish(class_shares(labels, 3)), seed=0)
    assert judged.about["num_groups"] == 1
    assert (judged.refer_below, judged.set_thresholds) == (0.5, None)


@pytest.mark.parametrize("labels", [[0, 1], [0, 0]], ids=["all classes", "one class"])
def test_logits_that_are_not_finite_are_refused(labels):
    some = unseen(np.array([[np.nan, 0.0], [1.0, 0.0]]), np.array(labels), assumed=HALVES)
    with pytest.raises(DataError, match=r"must be finite|confidence must lie in"):
        judgement_fit.fit(some, wish(HALVES), seed=0)
