"""What a finished run puts into its bundle."""

import numpy as np

from tlray.bundle.judgement import Limits
from tlray.evaluation.measurement import SplitEvaluation, measure_probabilities, with_leak_free
from tlray.training import finish


def evaluation() -> SplitEvaluation:
    """Six images of three patients; the model is surest of the first two."""
    first = np.array([1.0, 1.0, 0.75, 0.25, 0.75, 0.25], np.float32)
    return measure_probabilities(
        np.array([0, 0, 0, 1, 0, 1]),
        np.stack([first, 1 - first], axis=1),
        ("a", "b"),
        groups=np.array(["p", "p", "q", "q", "r", "r"]),
        image_ids=np.arange(6).astype(str),
        ood_scores=np.array([0.0, 0.0, 0.5, 0.25, 0.5, 0.25], np.float32),
        limits=Limits(),
    )


def test_the_reference_for_drift_is_of_images_that_are_new_to_the_model():
    found = finish._validation_predictions(with_leak_free(evaluation(), {"0", "1"}))
    assert found is not None
    assert found.class_counts == (2, 2)
    assert found.confidences == (0.75,) * 4
    assert found.ood_scores == (0.25, 0.25, 0.5, 0.5)
    assert found.num_independent == 2


def test_there_is_no_reference_where_the_model_knows_all_images():
    everything = {str(number) for number in range(6)}
    assert finish._validation_predictions(with_leak_free(evaluation(), everything)) is None
