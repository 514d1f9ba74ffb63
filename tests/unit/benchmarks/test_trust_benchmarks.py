"""What the benchmarks of trust draw and compute: simulated patients, synthetic rows, means over groups."""

import numpy as np
import pytest

from benchmarks import audit_cost, by_source, interval_coverage, other_anatomy, trust
from tlray.trust.intervals import Interval


def test_simulated_images_are_right_as_often_and_as_correlated_as_said():
    case = interval_coverage.Case(kind="patients", num_groups=20_000, accuracy=0.8, correlation=0.3)
    is_right, groups = interval_coverage.simulate(case, np.random.default_rng(0))
    assert np.mean(is_right) == pytest.approx(0.8, abs=0.01)
    starts, sizes = np.unique(groups, return_index=True, return_counts=True)[1:]
    assert (sizes.min(), sizes.max()) == (1, 10)
    first = starts[sizes > 1]
    assert np.corrcoef(is_right[first], is_right[first + 1])[0, 1] == pytest.approx(0.3, abs=0.03)


def test_groups_of_copies_are_mostly_single_images():
    case = interval_coverage.Case(kind="copies", num_groups=10_000, accuracy=0.8, correlation=0.9)
    sizes = interval_coverage.group_sizes(case, np.random.default_rng(0))
    assert np.mean(sizes == 1) == pytest.approx(0.9, abs=0.02)
    assert (sizes[sizes > 1].min(), sizes.max()) == (5, 20)


def test_simulated_probabilities_are_calibrated_unless_they_are_sharpened():
    calibrated = interval_coverage.LogitCase(num_groups=4000, signal=2.0, sharpness=1.0)
    found = interval_coverage.figures(*interval_coverage.simulate_logits(calibrated, 4000, np.random.default_rng(0)))
    assert found["calibration error"].value < 0.02
    assert found["calibration error"].low == 0
    sharp = interval_coverage.LogitCase(num_groups=4000, signal=2.0, sharpness=2.0)
    sharpened = interval_coverage.figures(*interval_coverage.simulate_logits(sharp, 4000, np.random.default_rng(0)))
    assert sharpened["calibration error"].low > 0.1
    assert sharpened["accuracy"] == found["accuracy"]


def test_figures_of_simulated_sets_are_covered_mostly(monkeypatch):
    monkeypatch.setattr(interval_coverage, "TRUTH_GROUPS", 2000)
    case = interval_coverage.LogitCase(num_groups=40, signal=2.0, sharpness=1.0)
    found = interval_coverage.measure_figures(case, 20, np.random.default_rng(0))
    assert all(coverage >= 0.75 and 0 < width < 1 for coverage, width in found.values()), found


def test_the_mean_over_groups_counts_a_group_once():
    found = trust.mean_over_groups(np.array([1, 1, 1, 0]), np.array(["a", "a", "a", "b"]))
    half = 1.96 * np.sqrt(0.5) / np.sqrt(2)  # the deviation of 1 and 0, of two groups
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))


def test_probabilities_that_are_right_have_a_small_calibration_error_by_chance():
    probs_BK = np.tile([0.7, 0.3], (2_000, 1))
    # The mean of |observed - 0.7| in one bin: sqrt(2 / pi) standard errors.
    expected = np.sqrt(2 / np.pi) * np.sqrt(0.7 * 0.3 / 2_000)
    assert trust.right_by_chance(probs_BK, 0) == pytest.approx(expected, rel=0.2)


def test_the_mean_of_a_figure_is_over_the_cuts_that_have_it():
    cuts = [{"a": 1.0, "b": Interval(value=0.5, low=0.4, high=0.6)}, {"a": 3.0}]
    assert (trust.mean_of(cuts, "a"), trust.mean_of(cuts, "b"), trust.mean_of(cuts, "c")) == (2.0, 0.5, None)
    assert trust.text_of(cuts[0]["b"]) == "0.500 (0.400 to 0.600)"


@pytest.mark.parametrize(
    ("uri", "width_px", "kind"),
    [
        ("data/a.JPEG", 299, "jpg, 0 to 299 px wide"),
        ("data/a.png", 300, "png, 300 to 511 px wide"),
        ("data/a.png", 512, "png, 512 px wide or more"),
    ],
)
def test_kinds_of_files(uri, width_px, kind):
    assert by_source.kind_of(uri, width_px, (300, 512)) == kind


def test_thumbnails_are_enlarged_by_splines_that_keep_a_slope():
    enlarge = audit_cost._cubic(96, 12)
    assert enlarge.sum(axis=1) == pytest.approx(np.ones(96))
    slope = enlarge @ np.arange(12, dtype=np.float32)
    place = (np.arange(96) + 0.5) / 8 - 0.5
    inner = (place >= 1) & (place <= 10)
    assert slope[inner] == pytest.approx(place[inner], abs=1e-4)


def test_planted_copies_are_like_their_originals_and_others_stay():
    rng = np.random.default_rng(0)
    features_BD, thumbnails_BHW = (
        audit_cost.synthetic_features(200, rng),
        audit_cost.synthetic_thumbnails(200, 0.0, rng),
    )
    before = thumbnails_BHW.copy()
    pairs = audit_cost.plant(features_BD, thumbnails_BHW, rng)
    assert pairs.shape == (4, 2)
    assert len(np.unique(pairs)) == 8
    for source, place in pairs:
        both = np.corrcoef(thumbnails_BHW[source].ravel(), thumbnails_BHW[place].ravel())
        assert both[0, 1] > 0.95
        assert features_BD[source] == pytest.approx(features_BD[place], abs=0.1)
    others = np.setdiff1d(np.arange(200), pairs[:, 1])
    assert (thumbnails_BHW[others] == before[others]).all()


@pytest.mark.parametrize("draw", [other_anatomy.head, other_anatomy.abdomen])
def test_other_anatomy_is_a_body_in_air(draw):
    pixels = draw(np.random.default_rng(0), 64)
    assert (pixels.shape, pixels.dtype) == ((64, 64), np.uint8)
    assert pixels[:4, :4].mean() < 20
    assert pixels[24:40, 24:40].mean() > 60
