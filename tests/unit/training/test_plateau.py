import math

import pytest

from tlray.training.plateau import best_epoch, learning_rate, should_stop

NAN, INF = math.nan, math.inf


def rates(losses: list[float], **settings) -> list[float]:
    """Returns the rate of every epoch, the one after the last loss included."""
    rule = {"initial": 1.0, "factor": 0.5, "patience": 2} | settings
    return [learning_rate(losses[:num], **rule) for num in range(len(losses) + 1)]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([], 0),
        ([3.0], 0),
        ([3.0, 1.0, 2.0], 1),
        ([3.0, 1.0, 1.0], 1),  # the first of several
        ([NAN, 5.0, INF, 4.0, NAN], 3),
        ([NAN, NAN], 0),
        ([-INF, 2.0], 1),  # not finite, however low
    ],
)
def test_best_epoch(losses, expected):
    assert best_epoch(losses) == expected


# Traces of Keras' ReduceLROnPlateau(min_delta=0, min_lr=0): a better loss sets wait to 0, another adds 1 to it, and at
# `patience` the rate is multiplied and wait is 0 again. (https://keras.io/api/callbacks/reduce_lr_on_plateau/)
@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        # wait: 0 0 0
        ([5.0, 4.0, 3.0], [1, 1, 1, 1]),
        # wait: 0 1 2->0 1 2->0 1
        ([1.0, 2.0, 2.0, 2.0, 2.0, 2.0], [1, 1, 1, 0.5, 0.5, 0.25, 0.25]),
        # An equal loss is no better one. wait: 0 1 2->0
        ([1.0, 1.0, 1.0], [1, 1, 1, 0.5]),
        # A better one in between starts anew. wait: 0 1 0 1 2->0
        ([3.0, 4.0, 2.0, 2.5, 2.2], [1, 1, 1, 1, 1, 0.5]),
        # The best so far counts, not the last. wait: 0 1 2->0 1 0
        ([1.0, 9.0, 8.0, 7.0, 0.5], [1, 1, 1, 0.5, 0.5, 0.5]),
        # NaN and infinity are never better. wait: 0 1 2->0 0
        ([3.0, NAN, INF, 2.0], [1, 1, 1, 0.5, 0.5]),
        # From the start: wait 1 2->0 0
        ([NAN, NAN, 2.0], [1, 1, 0.5, 0.5]),
    ],
)
def test_rate_by_hand(losses, expected):
    assert rates(losses) == expected


def test_rate_with_patience_one_and_without():
    assert rates([1.0, 2.0, 3.0], patience=1, factor=0.1, initial=0.01) == pytest.approx([0.01, 0.01, 0.001, 0.0001])
    assert rates([1.0, 2.0, 3.0, 4.0], patience=None) == [1.0] * 5


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([], False),
        ([1.0], False),
        ([1.0, 2.0], False),
        ([1.0, 2.0, 2.0], True),  # two epochs since the best
        ([2.0, 3.0, 1.0, 1.5], False),
        ([2.0, 3.0, 1.0, 1.0, NAN], True),
        ([NAN, NAN], False),
        ([NAN, NAN, NAN], True),
    ],
)
def test_early_stopping_by_hand(losses, expected):
    assert should_stop(losses, patience=2) is expected
    assert should_stop(losses, patience=None) is False
