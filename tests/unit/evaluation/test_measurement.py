"""Metrics of all images of a split, and of those that the model cannot know."""

import numpy as np
import pytest

from tlray.bundle.judgement import Limits
from tlray.evaluation.measurement import accuracy_rows, headline, measure_probabilities, with_leak_free

CLASSES = ("a", "b")


def evaluation(labels: list[int], predicted: list[int]):
    return measure_probabilities(
        np.array(labels),
        np.eye(2)[predicted] * 0.8 + 0.1,
        CLASSES,
        groups=np.array([f"patient {number}" for number in range(len(labels))]),
        image_ids=np.array([str(number) for number in range(len(labels))]),
        ood_scores=np.full(len(labels), np.nan, np.float32),
        limits=Limits(refer_below=0.5),
    )


def test_images_that_the_model_knows_are_left_out_beside_all_of_them():
    found = with_leak_free(evaluation([0, 0, 1, 1, 0, 1], [0, 0, 1, 1, 1, 1]), {"0", "1", "2"})
    assert found.metrics["accuracy"] == pytest.approx(5 / 6)
    assert found.metrics["leak_free"]["num_images"] == 3
    assert found.metrics["leak_free"]["accuracy"] == pytest.approx(2 / 3)
    quoted = headline({"valid": evaluation([0, 1], [0, 1]).metrics, "test": found.metrics})
    assert (quoted["split"], quoted["accuracy"]) == ("test", pytest.approx(2 / 3))
    assert quoted["all_images"]["accuracy"] == pytest.approx(5 / 6)
    assert "leak_free" not in quoted["all_images"]
    assert (quoted["is_leak_free"], quoted["num_failed"], quoted["num_leaked"]) == (True, 0, 3)
    names = [name for name, _ in accuracy_rows({"test": found.metrics})]
    assert names[::2] == ["test, new images: accuracy", "test, all images: accuracy"]


def test_without_leaks_there_is_one_figure():
    found = with_leak_free(evaluation([0, 1, 1], [0, 1, 0]), {"elsewhere"})
    assert (found.metrics["num_leaked"], found.metrics["leak_free"]) == (0, None)
    quoted = headline({"valid": found.metrics})
    assert (quoted["split"], quoted["is_leak_free"]) == ("valid", True)
    assert "all_images" not in quoted
    assert [name for name, _ in accuracy_rows({"valid": found.metrics})][:1] == ["valid: accuracy"]


def test_where_the_model_knows_all_images_this_is_said():
    found = with_leak_free(evaluation([0, 1, 1], [0, 1, 0]), {"0", "1", "2"})
    assert (found.metrics["num_leaked"], found.metrics["leak_free"]) == (3, None)
    assert headline({"test": found.metrics})["is_leak_free"] is False
    assert accuracy_rows({"test": found.metrics})[0][0] == "test, all known from training: accuracy"
