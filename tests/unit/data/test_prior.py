import numpy as np
import pyarrow as pa
import pytest
from sklearn.utils.class_weight import compute_sample_weight

from tlray.data import prior
from tlray.data.dataset import Dataset
from tlray.errors import ConfigError

LABELS = np.repeat([0, 1, 2], [60, 30, 10])


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits)
    return powers / powers.sum(axis=-1, keepdims=True)


def test_shares_count_the_weights_of_images():
    assert prior.class_shares(LABELS, 4) == pytest.approx([0.6, 0.3, 0.1, 0])
    weights = np.array([0.5, 1.0, 4.0])[LABELS]  # 30, 30, 40
    assert prior.class_shares(LABELS, 3, weights) == pytest.approx([0.3, 0.3, 0.4])


def test_a_posterior_under_another_prior_is_that_of_bayes():
    """An image that is seen 2, 1 and 4 times as often in the classes, by the rule itself under both priors."""
    likelihoods, before, after = np.array([2.0, 1.0, 4.0]), np.full(3, 1 / 3), np.array([0.6, 0.3, 0.1])
    found = softmax(np.log(likelihoods * before) + 7.0 + prior.logit_shift(before, after))
    assert found == pytest.approx(np.array([12, 3, 4]) / 19)
    posterior = (likelihoods * before / (likelihoods * before).sum())[np.newaxis]
    assert prior.shifted(posterior, prior.logit_shift(before, after))[0] == pytest.approx(np.array([12, 3, 4]) / 19)


def test_nothing_is_shifted_between_equal_priors():
    shares = prior.class_shares(LABELS, 3)
    assert prior.logit_shift(shares, shares).tolist() == [0, 0, 0]


def test_balanced_weights_make_classes_equal():
    """100 / (3 * 60) and so on: the weights of each class sum to a third of the images."""
    balanced = prior.class_weights(LABELS, 3, balanced=True)
    assert balanced == pytest.approx([100 / 180, 100 / 90, 100 / 30])
    assert balanced == pytest.approx(np.unique(compute_sample_weight("balanced", LABELS)))
    assert prior.class_weights(LABELS, 3, balanced=False).tolist() == [1, 1, 1]


def test_the_shift_of_logits_that_were_trained_with_weights():
    """Weights 1, 2, 4 make the shares 60, 60 and 40 of 160; 1 of each makes them those of the images."""
    wanted = np.array([0.2, 0.3, 0.5])
    shift = prior.weighted_logit_shift(LABELS, np.array([1.0, 2.0, 4.0]), wanted)
    assert shift == pytest.approx(np.log([0.2 / 0.375, 0.3 / 0.375, 0.5 / 0.25]))
    shift = prior.weighted_logit_shift(LABELS, np.ones(3), wanted)
    assert shift == pytest.approx(np.log([0.2 / 0.6, 0.3 / 0.3, 0.5 / 0.1]), abs=1e-7)


def dataset() -> Dataset:
    """Ten training images, 8 of them normal, and validation images in other shares."""
    labels = ["ill"] * 2 + ["normal"] * 8 + ["ill"] * 5 + ["normal"] * 5
    columns = {"label": labels, "split": ["train"] * 10 + ["valid"] * 10, "error_code": pa.nulls(20, pa.string())}
    names = [f"{number}" for number in range(20)]
    return Dataset(table=pa.table({"image_id": names, "uri": names, "group_id": names} | columns), findings={})


@pytest.mark.parametrize(
    ("wanted", "shares"),
    [("train", [0.2, 0.8]), ("uniform", [0.5, 0.5]), ("normal=0.96,ill=0.04", [0.04, 0.96])],
)
def test_what_a_prior_means_for_a_data_set(wanted, shares):
    images = dataset()
    assert images.classes == ("ill", "normal")
    assert images.wanted_shares(wanted) == pytest.approx(shares)
    assert images.class_weights(balanced=True) == pytest.approx((2.5, 0.625))
    # What is learned from images without any difference is the weighted share of the classes.
    for balanced, learned in ((True, [0.5, 0.5]), (False, [0.2, 0.8])):
        shift = images.logit_shift(wanted, balanced=balanced)
        assert softmax(np.log(learned) + shift) == pytest.approx(shares)


@pytest.mark.parametrize("wanted", ["normal=1", "normal=0.5,sick=0.5", "normal=0.5,ill=0.3,sick=0.2"])
def test_a_prior_of_other_classes_is_refused(wanted):
    with pytest.raises(ConfigError, match=f"share for each class, 'ill', 'normal'. Received: {wanted}"):
        dataset().wanted_shares(wanted)


def test_a_prior_may_have_another_unicode_form_than_the_labels():
    prior.check_classes("bo\u0308se=0.1,gut=0.9", ["b\u00f6se", "gut"])
    shares = prior.wanted_shares("bo\u0308se=0.1,gut=0.9", ("b\u00f6se", "gut"), np.full(2, 0.5))
    assert shares == pytest.approx([0.1, 0.9])


def test_shares_that_nearly_sum_to_1_do_so_afterwards():
    shares = prior.wanted_shares("a=0.333,b=0.333,c=0.333", ("a", "b", "c"), np.full(3, 1 / 3))
    assert shares.sum() == pytest.approx(1, abs=1e-15)
