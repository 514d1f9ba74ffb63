"""Which images are worth labelling: by hand, and what holds for any images."""

import math

import numpy as np
import pytest

from tlray.trust.suggestions import COPY_DISTANCE, SHORTLIST, Seen, choose, is_unsure, shortlist, uncertainty


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


def test_the_most_uncertain_images_are_listed_without_copies():
    """Uncertainties: 1, 0.97, 0.47, 0.81, 0. The second image is a copy of the first one."""
    probs_BK, places_BC = two(0.5, 0.6, 0.9, 0.75, 1.0), at(0, 0, 180, 60, 90)
    assert shortlist(probs_BK, unknown(5), None, places_BC, num_wanted=2) == [0, 3]
    assert shortlist(probs_BK, unknown(5), None, places_BC, num_wanted=9) == [0, 3, 2, 4]
    assert shortlist(probs_BK, unknown(5), None, None, num_wanted=9) == [0, 1, 3, 2, 4]


def test_of_each_kind_the_image_in_its_middle_is_chosen_the_most_uncertain_kind_first():
    """Three kinds of three images each, whose middle one is neither the most uncertain nor the first."""
    places_BC = at(*(kind + offset for kind in (0, 120, 240) for offset in (12, 0, -12)))
    probs_BK = two(0.70, 0.72, 0.74, 0.50, 0.52, 0.54, 0.60, 0.62, 0.64)
    assert choose(probs_BK, unknown(9), None, places_BC, count=3) == [4, 7, 1]


def test_an_image_that_is_merely_unlike_all_others_is_not_chosen():
    """A certain outlier among uncertain images; farthest-first would take it second."""
    places_BC = at(-12, 0, 12, 60, 48, 72, 180)
    probs_BK = two(0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.97)
    assert choose(probs_BK, unknown(7), None, places_BC, count=2) == [1, 3]


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
    assert choose(probs_BK, unknown(5), None, places_BC, count=2, seen=seen) == [1, 0]
    # Images that nobody has looked at are copies of none.
    seen = Seen(picture_of={1: 3, 2: 3})
    assert sorted(choose(probs_BK, unknown(5), None, places_BC, count=9, seen=seen)) == [0, 1, 3, 4]
    everything = Seen(picture_of=dict.fromkeys(range(5), 0), known=frozenset(range(5)))
    assert choose(probs_BK, unknown(5), None, places_BC, count=9, seen=everything) == []


def test_a_shorter_list_has_the_first_images():
    rng = np.random.default_rng(2)
    probs_BK, places_BC = rng.dirichlet(np.ones(3), 40).astype(np.float32), rng.normal(size=(40, 4))
    seen = Seen(picture_of={number: number // 2 for number in range(20)}, known=frozenset({3, 30}))
    for places in (None, places_BC):
        whole = shortlist(probs_BK, unknown(40), None, places, num_wanted=40, seen=seen)
        assert shortlist(probs_BK, unknown(40), None, places, num_wanted=7, seen=seen) == whole[:7]


def test_equal_images_are_taken_in_their_order():
    for confidence in (0.7, 1.0):
        assert choose(two(*[confidence] * 4), unknown(4), None, None, count=3) == [0, 1, 2]
        assert choose(two(*[confidence] * 4), unknown(4), None, np.eye(4), count=4) == [0, 1, 2, 3]
        assert len({*choose(two(*[confidence] * 4), unknown(4), None, np.eye(4), count=3)}) == 3


def test_choices_are_uncertain_different_no_copies_and_the_same_each_time():
    rng = np.random.default_rng(1)
    probs_BK, ood_scores = rng.dirichlet(np.ones(3), 200).astype(np.float32), rng.random(200).astype(np.float32)
    places_BC = rng.normal(size=(200, 8)).astype(np.float16)
    places_BC[100:110] = places_BC[:10]
    chosen = choose(probs_BK, ood_scores, 0.8, places_BC, count=20)
    assert chosen == choose(probs_BK, ood_scores, 0.8, places_BC, count=20)
    assert len(set(chosen)) == 20
    assert set(chosen) <= set(shortlist(probs_BK, ood_scores, 0.8, places_BC, num_wanted=20 * SHORTLIST))
    assert ood_scores[chosen].max() <= 0.8
    uncertain = uncertainty(probs_BK[chosen])
    assert np.all(np.diff(uncertain) <= 0)
    directions_BC = places_BC.astype(np.float64) / np.linalg.norm(places_BC.astype(np.float64), axis=1, keepdims=True)
    nearest = np.sort(1 - directions_BC[chosen] @ directions_BC[chosen].T, axis=1)[:, 1]
    assert nearest.min() >= COPY_DISTANCE
    most_uncertain = shortlist(probs_BK, ood_scores, 0.8, places_BC, num_wanted=20)
    alike = np.sort(1 - directions_BC[most_uncertain] @ directions_BC[most_uncertain].T, axis=1)[:, 1]
    assert nearest.mean() > alike.mean()  # more different than the most uncertain ones are
