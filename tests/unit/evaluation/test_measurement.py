"""Metrics of all images of a split, and of those that the model cannot know."""

import numpy as np
import pyarrow as pa
import pytest

from tlray.bundle.judgement import Limits
from tlray.evaluation.measurement import (
    accuracy_rows,
    headline,
    measure_probabilities,
    with_leak_free,
    with_subgroups,
)

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
    *_, crossed, balanced = accuracy_rows({"test": found.metrics}, evaluation([0, 1], [0, 1]).metrics)
    assert crossed[0] == "probes, cross-validated: accuracy"
    assert crossed[1].startswith("1.000 (95 %: ")
    assert crossed[1].endswith(", 2 images)")
    assert balanced[0] == "probes, cross-validated: balanced accuracy"


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


def test_a_split_of_another_name_is_quoted_where_it_is_the_only_one():
    plain = evaluation([0, 1, 1], [0, 1, 0]).metrics
    quoted = headline({"all": plain})
    assert (quoted["split"], quoted["num_images"]) == ("all", 3)
    assert quoted["is_leak_free"] is None  # nobody has looked for images that the model knows
    assert headline({"all": plain, "valid": plain})["split"] == "valid"


def test_subgroups_are_of_the_images_that_are_new():
    """Image 0 is known. Of the others, 10 of scanner a are right and 10 of b are wrong; the table has another order."""
    labels = [0] * 21
    predicted = [0] * 11 + [1] * 10
    ids = [str(number) for number in range(21)]
    table = pa.table({"image_id": [*ids[::-1], "another"], "given_scanner": [*["b"] * 10, *["a"] * 11, "b"]})
    found = with_subgroups(with_leak_free(evaluation(labels, predicted), {"0"}), table).metrics
    assert found["subgroups"]["num_looked_at"] == 2
    worst, best = found["subgroups"]["lowest"]
    assert (worst["column"], worst["value"], worst["num_images"], worst["accuracy"]) == ("scanner", "b", 10, 0)
    assert (best["value"], best["num_images"], best["accuracy"], best["is_worse"]) == ("a", 10, 1, False)
    assert worst["is_worse"]
    quoted = headline({"test": found})
    assert quoted["subgroups"] == found["subgroups"]
    assert "subgroups" not in quoted["all_images"]
