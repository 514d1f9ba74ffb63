"""The nearest pairs of small sets of phantoms, by features and by thumbnails."""

import numpy as np
import pytest

from tlray.data.looks import THUMBNAIL_PX
from tlray.trust import candidates
from tlray.trust.candidates import find_candidates
from tlray.trust.registration import averaging

NUM_PATIENTS = 6


def test_candidates_by_features_alone_are_the_nearest_cosines(thumbnails, monkeypatch):
    monkeypatch.setattr(candidates, "_search_thumbnails", lambda *_: [])
    angles = np.deg2rad([0.0, 1.0, 50.0, 53.0, 120.0])
    lengths = np.array([1.0, 90.0, 3.0, 0.1, 7.0])
    features = lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found, ranks = find_candidates(features, thumbnails[:5], num_nearest=1)
    assert found.tolist() == [[0, 1], [2, 3], [3, 4]]
    assert ranks.tolist() == [1, 1, 1]


def test_the_rank_of_a_pair_is_the_best_one_of_all_searches(thumbnails, monkeypatch):
    """By features 1 is the second one of 0; by thumbnails the nearest one."""
    by_thumbnails = [(np.array([0, 1, 2]), np.array([1, 0, 1]), np.array([1, 1, 1]))]
    monkeypatch.setattr(candidates, "_search_thumbnails", lambda *_: by_thumbnails)
    angles = np.deg2rad([0.0, 50.0, 20.0, 70.0])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found, ranks = find_candidates(features, thumbnails[:4], num_nearest=2)
    assert dict(zip(map(tuple, found.tolist()), ranks.tolist(), strict=True)) == {
        (0, 1): 1, (0, 2): 1, (1, 2): 1, (1, 3): 1, (2, 3): 2,
    }  # fmt: skip


def test_candidates_by_thumbnails_are_those_of_a_full_search(thumbnails):
    images = np.concatenate([thumbnails, thumbnails[:, :, ::-1]])
    found, _ = find_candidates(None, images, num_nearest=1)
    assert {(index, index + NUM_PATIENTS) for index in range(NUM_PATIENTS)} <= set(map(tuple, found.tolist()))
    pool = averaging(THUMBNAIL_PX, 16)
    rows = candidates._descriptors(images, pool, pool)
    cosines = rows @ rows.T - 2 * np.eye(len(rows))
    for index, other in enumerate(cosines.argmax(axis=1).tolist()):
        assert [min(index, other), max(index, other)] in found.tolist()
    assert (found[:, 0] < found[:, 1]).all()
    assert len(np.unique(found, axis=0)) == len(found)


def test_chunks_make_no_difference(thumbnails, monkeypatch):
    whole, _ = find_candidates(None, thumbnails, num_nearest=2)
    monkeypatch.setattr(candidates, "_CHUNK_ROWS", 5)
    assert find_candidates(None, thumbnails, num_nearest=2)[0].tolist() == whole.tolist()


@pytest.mark.parametrize(("place", "first", "last"), [(0.0, 0, 93), (0.5, 3, 96), (1.0, 6, 99)])
def test_a_zoom_takes_the_wanted_part(place, first, last):
    zoomed = candidates._zoomed(np.eye(100, dtype=np.float32), place) @ np.arange(100)
    assert (zoomed[0], zoomed[-1]) == (first, last)
    assert (np.diff(zoomed) >= 0).all()


def test_the_nearest_one_comes_first():
    rows = np.array([0.0, 1.0, 3.0, 7.0, 15.0], np.float32)[:, None] / 15
    query, other, ranks = candidates._nearest(rows, rows, 3)
    assert list(zip(query[:3].tolist(), other[:3].tolist(), ranks[:3].tolist(), strict=True)) == [
        (0, 1, 1),
        (0, 2, 2),
        (0, 3, 3),
    ]
    assert other[query == 4].tolist() == [3, 2, 1]


def test_the_nearest_by_components_are_no_candidates_if_they_are_too_unlike():
    """Noise: the nearest of 300 pictures is as unlike as any other."""
    noise = np.random.default_rng(0).integers(0, 256, (300, THUMBNAIL_PX, THUMBNAIL_PX)).astype(np.uint8)
    noise[1] = noise[0]
    found, _ = find_candidates(None, noise)
    assert found.tolist() == [[0, 1]]
