"""The nearest training images by hand, and against a search that compares all pairs."""

import numpy as np
import pytest

from tlray.bundle.lookalikes import KeptImages
from tlray.bundle.novelty import directions
from tlray.inference import lookalikes
from tlray.inference.lookalikes import Lookalike


def kept(places: np.ndarray) -> KeptImages:
    labels = np.arange(len(places)) % 3
    return KeptImages(directions=directions(places), labels=labels, jpegs=[b"%d" % row for row in range(len(places))])


def test_the_nearest_are_found_by_their_angle():
    known = kept(np.array([[1, 0], [0, 2], [-3, 0], [1, 1]], np.float32))
    (found,) = lookalikes.find(np.array([[5, 0.0]], np.float32), known)
    assert [(each.class_index, each.jpeg) for each in found] == [(0, b"0"), (0, b"3"), (1, b"1")]
    assert [each.similarity for each in found] == pytest.approx([1, 0.5**0.5, 0])


def test_they_are_those_of_an_exhaustive_search():
    rng = np.random.default_rng(0)
    places, known = rng.normal(size=(7, 16)), rng.normal(size=(50, 16))
    rows, similarities = lookalikes.nearest(places, kept(known), count=5)
    for place, found, values in zip(places, rows, similarities, strict=True):
        cosines = [place @ each / (np.linalg.norm(place) * np.linalg.norm(each)) for each in known]
        assert found.tolist() == sorted(range(50), key=lambda row: -cosines[row])[:5]
        np.testing.assert_allclose(values, [cosines[row] for row in found], atol=1e-5)


def test_fewer_are_found_where_fewer_are_kept():
    known = kept(np.array([[1.0, 0.0]]))
    assert lookalikes.find(np.array([[2.0, 0.0]]), known) == [[Lookalike(class_index=0, similarity=1.0, jpeg=b"0")]]
    assert lookalikes.find(np.zeros((0, 2)), known) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_place_that_is_no_number_is_like_nothing(bad):
    found = lookalikes.find(np.array([[bad, 1.0], [0.0, 1.0]]), kept(np.eye(2)), count=1)
    assert [each[0].similarity for each in found] == [0.0, 1.0]
