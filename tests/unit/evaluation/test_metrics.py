import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tlray.errors import DataError
from tlray.evaluation.metrics import evaluate_predictions
from tlray.trust import classification


def one_hot(indices: Sequence[int] | np.ndarray, num_classes: int) -> np.ndarray:
    return np.eye(num_classes, dtype=np.float32)[indices]


# Two classes, worked out by hand. Predicted: 0 0 1 0 1.
#            predicted 0  1
#   truth 0           [2, 1]   recall 2/3, precision 2/3
#   truth 1           [1, 1]   recall 1/2, precision 1/2
TWO_LABELS = np.array([0, 0, 0, 1, 1])
TWO_P1 = np.array([0.1, 0.4, 0.6, 0.35, 0.8])
TWO_PROBS_BK = np.stack([1 - TWO_P1, TWO_P1], axis=1).astype(np.float32)

# Four classes, worked out by hand. Predicted: 0 0 1 | 1 1 | 2 2 0 | 3 2.
#            predicted 0  1  2  3
#   truth 0           [2, 1, 0, 0]
#   truth 1           [0, 2, 0, 0]
#   truth 2           [1, 0, 2, 0]
#   truth 3           [0, 0, 1, 1]
FOUR_LABELS = np.array([0, 0, 0, 1, 1, 2, 2, 2, 3, 3], dtype=np.int64)
FOUR_PROBS_BK = np.array(
    [
        [0.7, 0.1, 0.1, 0.1],
        [0.6, 0.2, 0.1, 0.1],
        [0.3, 0.5, 0.1, 0.1],
        [0.1, 0.8, 0.1, 0.0],
        [0.2, 0.4, 0.3, 0.1],
        [0.1, 0.1, 0.6, 0.2],
        [0.0, 0.0, 0.9, 0.1],
        [0.5, 0.1, 0.3, 0.1],
        [0.1, 0.0, 0.2, 0.7],
        [0.1, 0.1, 0.5, 0.3],
    ],
    dtype=np.float32,
)
FOUR_CLASSES = ("adenocarcinoma", "large_cell", "normal", "squamous")


def without_intervals(values: dict) -> dict:
    return {name: value for name, value in values.items() if not name.endswith("_ci95")}


def test_two_classes_by_hand():
    metrics = evaluate_predictions(TWO_LABELS, TWO_PROBS_BK, ("benign", "malignant"))

    assert metrics["num_images"] == 5
    assert metrics["classes"] == ["benign", "malignant"]
    assert metrics["confusion_matrix"] == [[2, 1], [1, 1]]
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    assert metrics["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert metrics["f1_macro"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    # Pairs (positive, negative) in the right order: 0.35 beats 0.1 alone, 0.8 beats all three: 4 of 6.
    assert metrics["roc_auc_ovr_macro"] == pytest.approx(4 / 6)
    assert metrics["log_loss"] == pytest.approx(-math.log(0.9 * 0.6 * 0.4 * 0.35 * 0.8) / 5, rel=1e-6)
    assert metrics["notes"] == {}
    assert without_intervals(metrics["per_class"]["malignant"]) == pytest.approx(
        {"precision": 1 / 2, "recall": 1 / 2, "specificity": 2 / 3, "f1": 1 / 2, "roc_auc": 2 / 3, "support": 2}
    )
    # For two classes the specificity of the one is the recall of the other.
    assert metrics["per_class"]["benign"]["specificity"] == pytest.approx(1 / 2)


def test_four_classes_by_hand():
    metrics = evaluate_predictions(FOUR_LABELS, FOUR_PROBS_BK, FOUR_CLASSES)

    assert metrics["confusion_matrix"] == [[2, 1, 0, 0], [0, 2, 0, 0], [1, 0, 2, 0], [0, 0, 1, 1]]
    assert metrics["accuracy"] == pytest.approx(7 / 10)
    assert metrics["balanced_accuracy"] == pytest.approx((2 / 3 + 1 + 2 / 3 + 1 / 2) / 4)
    # F1 = 2 TP / (2 TP + FP + FN): 4/6, 4/5, 4/6, 2/3.
    assert metrics["f1_macro"] == pytest.approx((2 / 3 + 4 / 5 + 2 / 3 + 2 / 3) / 4)
    true_class_probs = [0.7, 0.6, 0.3, 0.8, 0.4, 0.6, 0.9, 0.3, 0.7, 0.3]
    assert metrics["log_loss"] == pytest.approx(-sum(map(math.log, true_class_probs)) / 10, rel=1e-6)
    assert without_intervals(metrics["per_class"]["large_cell"]) == pytest.approx(
        # Negatives: 8, of which one (row 2) is predicted large_cell. AUC: 0.8 beats all 8; 0.4 all but 0.5: 15 of 16.
        {"precision": 2 / 3, "recall": 1, "specificity": 7 / 8, "f1": 4 / 5, "roc_auc": 15 / 16, "support": 2}
    )
    assert without_intervals(metrics["per_class"]["squamous"]) == pytest.approx(
        # AUC: both 0.7 and 0.3 beat every negative (at most 0.2).
        {"precision": 1, "recall": 1 / 2, "specificity": 1, "f1": 2 / 3, "roc_auc": 1, "support": 2}
    )
    # Adenocarcinoma: 0.7 and 0.6 beat all 7 negatives, 0.3 all but 0.5: 20 of 21.
    # Normal, negatives 0.1 0.1 0.1 0.1 0.3 0.2 0.5: 0.6 and 0.9 beat 7; 0.3 beats 5 and ties with one: 19.5 of 21.
    assert metrics["roc_auc_ovr_macro"] == pytest.approx((20 / 21 + 15 / 16 + 19.5 / 21 + 1) / 4)


def test_macro_roc_auc_is_scikit_learns():
    metrics = evaluate_predictions(FOUR_LABELS, FOUR_PROBS_BK, FOUR_CLASSES)
    expected = roc_auc_score(FOUR_LABELS, FOUR_PROBS_BK, multi_class="ovr", average="macro")
    assert metrics["roc_auc_ovr_macro"] == pytest.approx(expected, abs=1e-12)


def test_perfect_predictions():
    metrics = evaluate_predictions(np.array([0, 1, 2, 2]), one_hot([0, 1, 2, 2], 3), "abc")

    for name in ("accuracy", "balanced_accuracy", "f1_macro", "roc_auc_ovr_macro"):
        assert metrics[name] == 1.0
    assert metrics["log_loss"] == pytest.approx(0, abs=1e-12)
    assert metrics["accuracy_ci95"][1] == 1.0
    assert without_intervals(metrics["per_class"]["c"]) == {
        "precision": 1.0,
        "recall": 1.0,
        "specificity": 1.0,
        "f1": 1.0,
        "roc_auc": 1.0,
        "support": 2,
    }


def test_class_absent_from_labels_is_null_and_explained():
    # `c` has no image and is predicted once: recalls of the present classes are 1/2 and 1.
    metrics = evaluate_predictions(np.array([0, 0, 1, 1]), one_hot([0, 2, 1, 1], 3), "abc")

    assert metrics["confusion_matrix"] == [[1, 0, 1], [0, 2, 0], [0, 0, 0]]
    assert metrics["balanced_accuracy"] == pytest.approx(3 / 4)
    assert metrics["f1_macro"] == pytest.approx((2 / 3 + 1) / 2)
    assert metrics["roc_auc_ovr_macro"] is None
    assert "'c'" in metrics["notes"]["roc_auc_ovr_macro"]
    assert "'c'" in metrics["notes"]["per_class"]
    assert without_intervals(metrics["per_class"]["c"]) == {
        "precision": None,
        "recall": None,
        "specificity": None,
        "f1": None,
        "roc_auc": None,
        "support": 0,
    }
    # The other classes keep their own curves: scores 1, 0 against 0, 0 give (1 + 1/2) / 2.
    assert metrics["per_class"]["a"]["roc_auc"] == pytest.approx(3 / 4)


def test_single_class_labels():
    metrics = evaluate_predictions(np.array([1, 1, 1]), one_hot([1, 1, 0], 2), "ab")

    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["balanced_accuracy"] == pytest.approx(2 / 3)
    assert metrics["roc_auc_ovr_macro"] is None
    assert metrics["per_class"]["b"]["recall"] == pytest.approx(2 / 3)
    assert metrics["per_class"]["b"]["specificity"] is None
    assert metrics["notes"]["specificity"] == "Not defined: every image is 'b'."


def test_class_that_is_never_predicted_has_no_precision():
    metrics = evaluate_predictions(np.array([0, 1]), one_hot([0, 0], 2), "ab")

    assert metrics["per_class"]["b"]["precision"] is None
    assert metrics["per_class"]["b"]["recall"] == 0.0
    assert metrics["per_class"]["b"]["f1"] == 0.0
    assert metrics["notes"] == {"precision": "Not defined for classes that are never predicted: 'b'."}


def test_log_loss_divides_by_the_row_sum():
    # Rows that sum to 0.8 and 1.0: the true classes have 0.6 / 0.8 and 0.5.
    probs_BK = np.array([[0.6, 0.2], [0.5, 0.5]], dtype=np.float32)
    metrics = evaluate_predictions(np.array([0, 1]), probs_BK, "ab")
    assert metrics["log_loss"] == pytest.approx(-(math.log(0.75) + math.log(0.5)) / 2, rel=1e-6)


def test_log_loss_of_a_certain_mistake_is_finite():
    # scikit-learn clips to the resolution of float64, 2**-52.
    metrics = evaluate_predictions(np.array([0, 1]), one_hot([0, 0], 2), "ab")
    assert metrics["log_loss"] == pytest.approx(52 * math.log(2) / 2, rel=1e-9)


def test_result_is_json_without_nan():
    metrics = evaluate_predictions(np.array([0, 0], dtype=np.uint8), one_hot([2, 0], 3), "abc")
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_inputs_are_left_alone():
    labels, probs_BK = FOUR_LABELS.copy(), FOUR_PROBS_BK.copy()
    labels.flags.writeable = probs_BK.flags.writeable = False
    evaluate_predictions(labels, probs_BK, FOUR_CLASSES)


def test_metrics_have_intervals_over_groups():
    """Patients of four images each, all alike: a fourth of the images would tell as much."""
    labels = np.tile([0, 1], 20)
    predicted = np.where(np.arange(40) < 6, 1 - labels, labels)
    alone = evaluate_predictions(labels, one_hot(predicted, 2), "ab")
    assert (alone["num_images"], alone["num_groups"], alone["accuracy"]) == (40, 40, 0.85)
    four = [np.repeat(values, 4) for values in (labels, predicted)]
    grouped = evaluate_predictions(four[0], one_hot(four[1], 2), "ab", np.repeat(np.arange(40), 4))
    assert (grouped["num_images"], grouped["num_groups"]) == (160, 40)
    for name in ("accuracy", "balanced_accuracy", "f1_macro", "roc_auc_ovr_macro", "log_loss"):
        assert grouped[name] == pytest.approx(alone[name])
        # Not the same: the variance between images has n - 1 in its denominator.
        assert grouped[f"{name}_ci95"] == pytest.approx(alone[f"{name}_ci95"], abs=0.01)
        low, high = alone[f"{name}_ci95"]
        assert low < alone[name] < high
    for name in ("precision", "recall", "specificity", "f1", "roc_auc"):
        of_class, of_grouped = alone["per_class"]["a"], grouped["per_class"]["a"]
        assert of_grouped[f"{name}_ci95"] == pytest.approx(of_class[f"{name}_ci95"], abs=0.01)
        low, high = of_class[f"{name}_ci95"]
        assert low < of_class[name] < high
    expected = classification.metric_intervals(labels, one_hot(predicted, 2), np.arange(40)).accuracy
    assert alone["accuracy_ci95"] == [expected.low, expected.high]


def test_an_interval_that_is_not_defined_is_none():
    metrics = evaluate_predictions(np.array([1, 1]), one_hot([1, 0], 2), "ab")
    assert metrics["roc_auc_ovr_macro_ci95"] == [None, None]
    of_class = metrics["per_class"]["a"]  # predicted once, and without images
    for name in ("precision", "recall", "specificity", "f1", "roc_auc"):
        assert (of_class[name], of_class[f"{name}_ci95"]) == (None, [None, None])
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


@pytest.mark.parametrize(
    ("labels", "probs_BK", "classes", "message"),
    [
        ([], np.zeros((0, 2)), "ab", "no labelled images"),
        ([0], np.ones((1, 1)), "a", "at least two classes"),
        ([0, 1], one_hot([0, 1], 2), "aa", "different names"),
        ([0, 1], one_hot([0], 2), "ab", r"shapes \(2,\) and \(1, 2\)"),
        ([0, 1], one_hot([0, 1], 3), "ab", r"shapes \(2,\) and \(2, 3\)"),
        ([0.0, 1.0], one_hot([0, 1], 2), "ab", "dtype float64"),
        ([0, 2], one_hot([0, 1], 2), "ab", "got 0 to 2"),
        ([-1, 1], one_hot([0, 1], 2), "ab", "got -1 to 1"),
        ([0, 1], np.array([[1, 0], [math.nan, 1]]), "ab", r"row 1 is \[nan, 1.0\]"),
        ([0, 1], np.array([[1, 0], [-0.5, 1]]), "ab", r"row 1 is \[-0.5, 1.0\]"),
        ([0, 1], np.array([[0.0, 0], [0, 1]]), "ab", r"row 0 is \[0.0, 0.0\]"),
    ],
)
def test_unusable_input_is_refused(labels: list[float], probs_BK: np.ndarray, classes: str, message: str):
    with pytest.raises(DataError, match=message):
        evaluate_predictions(np.array(labels), probs_BK, classes)
