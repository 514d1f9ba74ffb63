"""When a precision is fit, on probabilities that can be checked by hand."""

import numpy as np
import pytest

from tlray.bundle.agreement import AccuracyChange, compare

CLEAR = [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]
CLOSE = [0.52, 0.48]


def agreement(found, expected, labels, precision="bfloat16", num_referrals_changed=0):
    def compare_accuracy(predicted, reference):
        change = np.mean(predicted == np.array(labels)) - np.mean(reference == np.array(labels))
        return AccuracyChange(value=float(change), low=-0.75, high=0.5, num_groups=2)

    return compare(
        np.array(found, np.float32), np.array(expected, np.float32), np.array(labels),
        compare_accuracy=compare_accuracy, engine="openvino", precision=precision,
        num_referrals_changed=num_referrals_changed, images_per_s=10.0, cpu="a CPU",
    )  # fmt: skip


def test_figures_by_hand():
    found = agreement([[0.8, 0.2], [0.2, 0.8], [0.4, 0.6], [0.52, 0.48]], [*CLEAR, CLOSE], [0, 1, 0, 1])
    assert found.label_agreement == 0.75
    assert found.num_clear_changed == 1  # the third
    assert found.max_difference == pytest.approx(0.3)
    assert found.mean_difference == pytest.approx((0.1 + 0.3) * 2 / 8)
    assert found.log_loss_change == pytest.approx((np.log(0.9 / 0.8) + np.log(0.7 / 0.4)) / 4, abs=1e-6)
    assert found.accuracy_change == -0.25
    assert (found.accuracy_change_low, found.accuracy_change_high, found.num_groups) == (-0.75, 0.5, 2)
    assert not found.is_fit


def test_a_close_call_decides_nothing():
    found = agreement([*CLEAR, [0.49, 0.51]], [*CLEAR, CLOSE], [0, 1, 0, 1])
    assert (found.label_agreement, found.num_clear_changed) == (0.75, 0)
    assert abs(found.log_loss_change) == pytest.approx(np.log(0.51 / 0.48) / 4, abs=1e-6)
    assert not found.is_fit  # because of the log loss, 0.015
    many = agreement([*CLEAR * 10, [0.49, 0.51]], [*CLEAR * 10, CLOSE], [*[0, 1, 0] * 10, 1])
    assert many.is_fit


@pytest.mark.parametrize(("precision", "is_fit"), [("bfloat16", False), ("int8", True)])
def test_int8_may_change_labels_up_to_a_larger_margin(precision, is_fit):
    expected = [*CLEAR * 40, [0.55, 0.45], [0.45, 0.55]]
    found = [*CLEAR * 40, [0.48, 0.52], [0.52, 0.48]]
    result = agreement(found, expected, [*[0, 1, 0] * 40, 1, 1], precision)
    assert result.accuracy_change == 0
    assert result.is_fit == is_fit


def test_int8_must_not_cost_accuracy():
    expected = [*CLEAR * 10, [0.55, 0.45]]
    found = [*CLEAR * 10, [0.48, 0.52]]
    result = agreement(found, expected, [*[0, 1, 0] * 10, 0], "int8")
    assert result.accuracy_change == pytest.approx(-1 / 31)
    assert not result.is_fit


@pytest.mark.parametrize(("num_moved", "is_fit"), [(1, True), (2, False)])
def test_a_precision_that_moves_referrals_is_not_fit(num_moved, is_fit):
    """Of some 30 images one may move, which is near a threshold; two are more than a hundredth."""
    expected = found = CLEAR * 10
    labels = [0, 1, 0] * 10
    assert agreement(found, expected, labels).is_fit
    moved = agreement(found, expected, labels, num_referrals_changed=num_moved)
    assert moved.num_referrals_changed == num_moved
    assert moved.is_fit == is_fit
