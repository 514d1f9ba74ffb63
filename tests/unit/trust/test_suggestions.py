"""Which images are worth labelling: by hand, and what holds for any images."""

import math

import numpy as np
import pytest

from tlray.trust.suggestions import COPY_DISTANCE, Seen, choose, is_unsure, uncertainty


def two(*confidences: float) -> np.ndarray:
    """Returns probabilities of two classes, the first of them the more probable one."""
    return np.array([[each, 1 - each] for each in confidences], np.float32)


def at(*degrees: float) -> np.ndarray:
    """Returns places in a plane, by their angles; their lengths differ, which must not matter."""
    angles, lengths = np.radians(degrees), np.arange(1, len(degrees) + 1)
    return np.stack([lengths * np.cos(angles), lengths * np.sin(angles)], axis=1).astype(np.float16)


def unknown(num_images: int) -> np.ndarray:
    return np.full(num_images, math.nan, np.float32)


def test_uncertainty_by_hand():
    found = uncertainty(np.array([[0.25, 0.25, 0.25, 0.25], [0, 1, 0, 0], [0.5, 0.5, 0, 0]], np.float32))
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx([1, 0, 0.5])
    assert uncertainty(two(0.9, 0.75)).tolist() == pytest.approx([0.468996, 0.811278], abs=1e-6)


def test_a_model_is_sure_from_a_confidence_of_95_percent_on():
    assert is_unsure(np.array([[0.95, 0.05], [0.949, 0.051], [0.01, 0.99], [0.5, 0.5]])).tolist() == [
        *(False, True, False, True),
    ]


def test_the_order_by_hand():
    """Uncertainties: 1, 0.97, 0.47, 0.81, 0. The second image is a copy of the first one.

    Seen from the first image, the third is 2 away (product 0.94) and the fourth 0.5 (product 0.41).
    """
    probs_BK, places_BC = two(0.5, 0.6, 0.9, 0.75, 1.0), at(0, 0, 180, 60, 90)
    assert choose(probs_BK, unknown(5), None, places_BC, count=2) == [0, 2]
    assert choose(probs_BK, unknown(5), None, places_BC, count=9) == [0, 2, 3, 4]


def test_without_places_the_most_uncertain_come_first():
    probs_BK = two(0.6, 0.9, 0.5, 0.6)
    assert choose(probs_BK, unknown(4), None, None, count=3) == [2, 0, 3]
    assert choose(probs_BK, unknown(4), None, None, count=9) == [2, 0, 3, 1]


@pytest.mark.parametrize("places_BC", [None, at(0, 90, 180, 270)])
def test_foreign_images_are_left_out(places_BC):
    probs_BK, ood_scores = two(0.6, 0.5, 0.7, 0.5), np.array([0.3, 0.31, math.nan, 5.0], np.float32)
    if places_BC is not None:
        places_BC[3] = math.nan  # its features are not finite numbers
    assert choose(probs_BK, ood_scores, 0.305, places_BC, count=4) == [0, 2]
    assert choose(probs_BK, ood_scores, 0.1, places_BC, count=4) == [2]
    assert choose(probs_BK[:2], ood_scores[:2], 0.1, None if places_BC is None else places_BC[:2], count=4) == []


def test_an_uncertain_outlier_beats_a_certain_one_and_a_near_image():
    probs_BK = two(0.5, 0.55, 0.6, 0.99)
    places_BC = np.array([[1, 0, 0], [0.9, 0.3, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    # The second image is as uncertain as the others, but only 0.05 away from the first one.
    assert choose(probs_BK, unknown(4), None, places_BC, count=4) == [0, 2, 3, 1]


def test_of_copies_one_is_chosen():
    rng = np.random.default_rng(0)
    pictures_BC = np.tile(rng.normal(size=(6, 16)), (3, 1))
    places_BC = (pictures_BC + 1e-3 * rng.normal(size=pictures_BC.shape)).astype(np.float16)
    probs_BK = two(*rng.uniform(0.5, 0.9, 18))
    chosen = choose(probs_BK, unknown(18), None, places_BC, count=18)
    assert sorted(place % 6 for place in chosen) == list(range(6))


@pytest.mark.parametrize("places_BC", [None, at(0, 90, 180, 270, 45)])
def test_of_images_with_one_picture_one_is_chosen_and_none_that_the_model_knows(places_BC):
    """The images are far apart for the model: a mirrored copy is, for example."""
    probs_BK = two(0.6, 0.5, 0.7, 0.51, 0.8)
    seen = Seen(picture_of={0: 7, 1: 3, 2: 3, 3: 5, 4: 7}, known=frozenset({3}))
    assert choose(probs_BK, unknown(5), None, places_BC, count=9, seen=seen) == [1, 0]
    # Images that nobody has looked at are copies of none.
    seen = Seen(picture_of={1: 3, 2: 3})
    assert sorted(choose(probs_BK, unknown(5), None, places_BC, count=9, seen=seen)) == [0, 1, 3, 4]
    everything = Seen(picture_of=dict.fromkeys(range(5), 0), known=frozenset(range(5)))
    assert choose(probs_BK, unknown(5), None, places_BC, count=9, seen=everything) == []


def test_a_smaller_count_gives_the_first_images():
    rng = np.random.default_rng(2)
    probs_BK, places_BC = rng.dirichlet(np.ones(3), 40).astype(np.float32), rng.normal(size=(40, 4))
    seen = Seen(picture_of={number: number // 2 for number in range(20)}, known=frozenset({3, 30}))
    for places in (None, places_BC):
        whole = choose(probs_BK, unknown(40), None, places, count=40, seen=seen)
        assert choose(probs_BK, unknown(40), None, places, count=7, seen=seen) == whole[:7]


def test_equal_images_are_taken_in_their_order():
    assert choose(two(*[0.7] * 4), unknown(4), None, np.eye(4), count=3) == [0, 1, 2]
    assert choose(two(*[1.0] * 3), unknown(3), None, np.eye(3), count=3) == [0, 1, 2]
    assert choose(two(*[0.7] * 4), unknown(4), None, None, count=3) == [0, 1, 2]


def test_each_choice_is_the_best_one_that_is_left():
    rng = np.random.default_rng(1)
    probs_BK, ood_scores = rng.dirichlet(np.ones(3), 200).astype(np.float32), rng.random(200).astype(np.float32)
    places_BC = rng.normal(size=(200, 8)).astype(np.float16)
    places_BC[100:110] = places_BC[:10]
    chosen = choose(probs_BK, ood_scores, 0.8, places_BC, count=40)
    assert chosen == choose(probs_BK, ood_scores, 0.8, places_BC, count=40)
    assert len(set(chosen)) == 40

    directions_BC = places_BC.astype(np.float64)
    directions_BC /= np.linalg.norm(directions_BC, axis=1, keepdims=True)
    distances = 1 - directions_BC @ directions_BC.T
    weights = np.where(ood_scores > 0.8, -1, uncertainty(probs_BK))
    assert chosen[0] == weights.argmax()
    for number in range(1, 40):
        nearest = distances[chosen[:number]].min(axis=0)
        assert nearest[chosen[number]] > COPY_DISTANCE - 1e-4
        products = np.where(nearest > COPY_DISTANCE + 1e-4, weights * nearest, -1)
        assert weights[chosen[number]] * nearest[chosen[number]] > products.max() - 1e-4
