import numpy as np
import pytest

from tlray.config.training import Outputs
from tlray.errors import ConfigError
from tlray.models.outputs import find_outputs, trial_images

SHARES = [[0.2, 0.8], [1.0, 0.0], [0.5, 0.5]]
SIGMOIDS = [[0.2, 0.9], [0.6, 0.4]]  # the second row sums to 1 by chance


def find(values, given: Outputs | None = None, *, ends_in_sigmoid: bool = False) -> Outputs:
    return find_outputs(np.array(values, np.float32), given=given, ends_in_sigmoid=ends_in_sigmoid)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (SHARES, "probabilities"),
        ([[0.203, 0.8], [0.996, 0.0]], "probabilities"),  # as bfloat16 rounds
        ([[1.0 + 5e-7, -5e-7]], "probabilities"),
        ([[0.5, 0.5], [-0.2, 1.2]], "logits"),  # all rows sum to 1
        ([[0.3, 0.2], [0.1, 1.5]], "logits"),
        ([[-0.1, -2.4], [-0.7, -0.7]], "logits"),  # logarithms of probabilities, whose softmax gives these back
        ([[0.3], [-4.0]], "logits"),
        ([[np.nan, 0.5], [0.3, 0.7]], "probabilities"),
        ([[np.inf, -np.inf], [3.0, 0.7]], "logits"),
    ],
)
def test_values_tell_logits_from_probabilities(values, expected):
    assert find(values) == expected


def test_a_single_number_within_0_and_1_is_asked_for_unless_a_sigmoid_is_seen():
    values = [[0.0], [0.7], [1.0]]
    message = r"outputs from 0 to 1, which may be probabilities of the second class or logits\. Give"
    with pytest.raises(ConfigError, match=message):
        find(values)
    assert find(values, ends_in_sigmoid=True) == "probabilities"
    assert find(values, "probabilities") == "probabilities"
    assert find(values, "logits") == "logits"


def test_what_is_neither_is_refused():
    message = r"outputs from 0.2 to 0.9 in rows that sum to 1 to 1.1. If these are independent .* give --outputs logits"
    with pytest.raises(ConfigError, match=message):
        find(SIGMOIDS)
    assert find(SIGMOIDS, "logits") == "logits"  # who says so must know
    for given in (None, "logits", "probabilities"):
        with pytest.raises(ConfigError, match=r"ends in 2 independent sigmoids \(.*\), which are not class probabili"):
            find(SIGMOIDS, given, ends_in_sigmoid=True)
    for given in (None, "logits", "probabilities"):  # saturated, they sum to 1
        with pytest.raises(
            ConfigError, match=r"ends in 2 independent sigmoids \(outputs from 0 to 1 in rows that sum to 1"
        ):
            find([[0, 1], [1, 0], [1, 0]], given, ends_in_sigmoid=True)
    with pytest.raises(ConfigError, match=r"no finite numbers for any trial image. Check its weights"):
        find([[np.nan, 1.0]])


@pytest.mark.parametrize("values", [SIGMOIDS, [[-1.0, 2.0]], [[1.5]]])
def test_what_the_user_says_must_be_possible(values):
    with pytest.raises(ConfigError, match=r"--outputs probabilities: for trial images the model gives outputs from"):
        find(values, "probabilities")


@pytest.mark.parametrize("values", [SHARES, [[0.203, 0.8], [0.996, 0.0]], [[0.2, 0.3, 0.5]]])
def test_rows_that_all_sum_to_1_are_no_logits(values):
    assert find(values, "probabilities") == "probabilities"
    with pytest.raises(
        ConfigError, match=r"^--outputs logits: for trial .*, as a softmax does\. Give --outputs probab"
    ):
        find(values, "logits")


def test_trial_images_are_varied():
    images = trial_images(8)
    assert (images.dtype, images.shape) == (np.uint8, (9, 8, 8, 3))
    assert np.ptp(images, axis=(1, 2, 3)).min() == 0
    assert len(np.unique(images.mean(axis=(1, 2, 3)).round())) >= 6
    assert images[3][0].max() == images[4][-1].max() == 0
    assert images[3][-1].min() == images[5][:, -1].min() == 255
