"""The novelty score on features of a known space."""

import numpy as np
import pytest

from tlray.bundle.novelty import Novelty
from tlray.errors import DataError
from tlray.trust import novelty_fit

NUM_FEATURES = 300


def usual(num_images: int, seed: int, *, noise: float = 0.05) -> np.ndarray:
    """Returns features that are mixtures of five parts, with some noise, float16 [images, features]."""
    parts = np.random.default_rng(0).random((5, NUM_FEATURES)) ** 4
    rng = np.random.default_rng(seed)
    mixed = rng.random((num_images, 5)) @ parts
    return (mixed * (1 + noise * rng.normal(size=mixed.shape))).clip(0).astype(np.float16)


def foreign(num_images: int = 50) -> np.ndarray:
    """Returns mixtures of other parts."""
    rng = np.random.default_rng(7)
    return (rng.random((num_images, 5)) @ rng.random((5, NUM_FEATURES)) ** 4).astype(np.float16)


def names(num_images: int) -> list[str]:
    return [str(number) for number in range(num_images)]


def is_foreign(found: Novelty, features_BD: np.ndarray) -> np.ndarray:
    return found.score(features_BD) > found.threshold


def test_not_finite_is_foreign():
    found = novelty_fit.fit(usual(100, 1), names(100))
    broken = usual(3, 2)
    broken[0, 0], broken[1, 0] = np.nan, np.inf
    assert found.score(broken)[:2].tolist() == [5.0, 5.0]
    assert is_foreign(found, broken).tolist()[:2] == [True, True]


def test_no_images_to_score():
    found = novelty_fit.fit(usual(100, 1), names(100))
    assert found.score(np.zeros((0, NUM_FEATURES), np.float16)).shape == (0,)


def test_foreign_are_told_and_new_ones_accepted():
    found = novelty_fit.fit(usual(300, 1), names(300))
    assert is_foreign(found, foreign()).all()
    assert is_foreign(found, usual(2000, 2)).mean() == pytest.approx(0.05, abs=0.04)
    # A part that is accepted less is told at a lower score.
    assert novelty_fit.fit(usual(300, 1), names(300), accepted=0.5).threshold < found.threshold


def test_scale_makes_no_difference():
    found = novelty_fit.fit(usual(100, 1), names(100))
    some = usual(20, 2).astype(np.float32)
    np.testing.assert_allclose(found.score(some * 7), found.score(some), atol=1e-5)


def test_copies_in_one_group_do_not_lower_the_threshold():
    single = usual(60, 1, noise=0.3)
    copies, groups = np.repeat(single, 4, axis=0), np.repeat(names(60), 4).tolist()
    grouped, apart = novelty_fit.fit(copies, groups), novelty_fit.fit(copies, names(240))
    new = usual(1000, 2, noise=0.3)
    assert is_foreign(apart, new).mean() > 0.9
    assert is_foreign(grouped, new).mean() < 0.15


def test_validation_images_raise_the_threshold_and_never_lower_it():
    train = usual(100, 1)
    alone = novelty_fit.fit(train, names(100))
    other = usual(40, 2, noise=0.3)
    raised = novelty_fit.fit(train, names(100), valid_BD=other)
    assert raised.threshold == np.sort(raised.score(other))[38]  # the 39th: 0.95 * 41 rounded up
    assert raised.threshold > alone.threshold
    for similar in (train, train[:0]):
        assert novelty_fit.fit(train, names(100), valid_BD=similar).threshold == alone.threshold


@pytest.mark.parametrize("num_similar", [0, 1, 29])
def test_one_strange_validation_image_among_few_does_not_set_the_threshold(num_similar):
    train = usual(100, 1)
    similar = train[:num_similar]
    found = novelty_fit.fit(train, names(100), valid_BD=np.concatenate([similar, foreign()[:1]]))
    assert found.threshold == novelty_fit.fit(train, names(100), valid_BD=similar).threshold
    assert is_foreign(found, foreign()).all()


def test_many_images_are_sampled_in_whole_groups(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(novelty_fit, "MAX_IMAGES", 90)
    found = novelty_fit.fit(usual(600, 1), np.repeat(names(200), 3).tolist())
    assert found.basis.shape == (30, NUM_FEATURES)  # a third of the images
    assert is_foreign(found, foreign()).all()


def test_wrong_features():
    with pytest.raises(DataError, match="60 images and 59 groups"):
        novelty_fit.fit(usual(60, 1), names(59))
    with pytest.raises(DataError, match="20 groups"):
        novelty_fit.fit(usual(60, 1), names(60)[:19] * 3 + names(3))
    broken = usual(60, 1)
    broken[3, 4] = np.nan
    with pytest.raises(DataError, match="not finite"):
        novelty_fit.fit(broken, names(60))
