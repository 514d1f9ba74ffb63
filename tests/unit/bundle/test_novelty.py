"""The novelty score by hand, and how it is stored."""

from typing import Any

import numpy as np
import pytest

from tlray.bundle import novelty
from tlray.errors import DataError


@pytest.fixture
def space() -> novelty.Novelty:
    """A plane in five dimensions, rounded as a stored one is."""
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 2)))[0].T.astype(np.float16).astype(np.float32)
    return novelty.Novelty(mean=np.full(5, 0.1, np.float32), basis=basis, threshold=0.25)


def test_score_by_hand():
    basis = np.array([[1, 0, 0]], np.float32)
    found = novelty.Novelty(mean=np.zeros(3, np.float32), basis=basis, threshold=0.5)
    # Roots of the shares: (1, 0, 0), (0, 1, 0), (sqrt 0.75, -sqrt 0.25, 0); of zeros: zeros.
    features = np.array([[4, 0, 0], [0, 2, 0], [3, -1, 0], [0, 0, 0]], np.float16)
    scores = found.score(features)
    np.testing.assert_allclose(scores, [0, 1, 0.25, 0], atol=1e-6)
    assert scores.dtype == np.float32
    assert (found.score(features) > found.threshold).tolist() == [False, True, False, False]


def test_stored_and_read(space, tmp_path):
    stored: dict[str, Any] = dict(space.arrays())
    np.savez(tmp_path / "novelty.npz", **stored)
    with np.load(tmp_path / "novelty.npz", allow_pickle=False) as arrays:
        again = novelty.from_arrays(arrays, threshold=0.25)
        assert arrays["basis"].dtype == np.float16
    assert again.threshold == space.threshold
    features = np.random.default_rng(1).random((20, 5)).astype(np.float16)
    np.testing.assert_array_equal(again.score(features), space.score(features))


def test_arrays_that_do_not_fit(space):
    arrays = space.arrays()
    with pytest.raises(DataError, match=r"lack \['basis'\]"):
        novelty.from_arrays({"mean": arrays["mean"]}, threshold=0.25)
    with pytest.raises(DataError, match="shapes that do not fit"):
        novelty.from_arrays(arrays | {"mean": arrays["mean"][1:]}, threshold=0.25)
