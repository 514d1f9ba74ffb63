"""Overlays beside a model of which it is known what decides: a textured patch, which is somewhere in an image."""

import math

import numpy as np
import pytest

from tlray.errors import DataError
from tlray.trust import overlays
from tlray.trust.overlays import CENTRE, NOT_SHOWN, NUM_STEPS, OVERLAY, RANDOM

SIZE_PX, PATCH_PX = 40, 8


def make_images(num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Dark images with a checkerboard somewhere, which blurring makes grey; and heatmaps that are 1 there."""
    generator = np.random.default_rng(0)
    images_BHWC = np.full((num_images, SIZE_PX, SIZE_PX, 3), 20, np.uint8)
    heatmaps_BHW = np.zeros((num_images, SIZE_PX, SIZE_PX), np.float32)
    board = np.indices((PATCH_PX, PATCH_PX)).sum(axis=0) % 2
    for image_HWC, heatmap_HW in zip(images_BHWC, heatmaps_BHW, strict=True):
        row, column = generator.integers(0, SIZE_PX - PATCH_PX, 2)
        place = (slice(row, row + PATCH_PX), slice(column, column + PATCH_PX))
        image_HWC[place] = 255 * board[..., np.newaxis]
        heatmap_HW[place] = 1
    return images_BHWC, heatmaps_BHW


def predict(images_BHWC: np.ndarray) -> np.ndarray:
    """The probability of class 1 is the share of the checkerboard's bright pixels that are there."""
    share = (images_BHWC[..., 0] > 200).sum(axis=(1, 2)) / (PATCH_PX**2 / 2)
    return np.stack([1 - share, share], axis=1).astype(np.float32)


def check(images_BHWC, heatmaps_BHW, groups=None, predict=predict):
    classes = np.ones(len(images_BHWC), np.int64)
    groups = np.arange(len(images_BHWC)) if groups is None else groups
    return overlays.check(images_BHWC, heatmaps_BHW, classes, groups, predict)


def test_overlays_of_what_decides_are_told_from_chance():
    found = check(*make_images(16))
    assert (found.num_images, found.num_groups, found.num_without) == (16, 16, 0)
    # The patch is 4 % of an image, so it is gone after the first step, and there after the first step.
    step = 1 / NUM_STEPS
    deletion, insertion = found.orders[OVERLAY].deletion, found.orders[OVERLAY].insertion
    assert (deletion.value, deletion.low, deletion.high) == pytest.approx((step / 2,) * 3)
    assert (insertion.value, insertion.low, insertion.high) == pytest.approx((1 - step / 2,) * 3)
    assert found.is_shown
    for control in (RANDOM, CENTRE):
        gains, areas = found.gains[control], found.orders[control]
        assert gains.deletion.value == pytest.approx(areas.deletion.value - step / 2)
        assert gains.insertion.value == pytest.approx(1 - step / 2 - areas.insertion.value)
        assert 0 < gains.deletion.low < gains.deletion.value < gains.deletion.high
        # What is deleted from a picture is inserted into the other one, in the same steps.
        assert areas.insertion.value == pytest.approx(1 - areas.deletion.value)
    gain = found.gains[RANDOM].deletion
    assert found.text == (
        f"Overlays point at what decides: deleting by the overlay lowers the probability by {gain.value:.3f} more than "
        f"deleting at random (95 %: {gain.low:.3f} to {gain.high:.3f}). Measured on 16 images in 16 groups."
    )


def test_overlays_of_something_else_are_not_shown_to_point_at_it():
    images_BHWC, heatmaps_BHW = make_images(16)
    found = check(images_BHWC, np.roll(heatmaps_BHW, (1, SIZE_PX // 2), axis=(0, 2)))
    assert not found.is_shown
    assert found.text.startswith(f"{NOT_SHOWN} Compared with a random place, deleting by the overlay ")
    gains = found.gains[RANDOM]
    assert min(gains.deletion.low, gains.insertion.low) <= 0


def test_overlays_of_the_centre_tell_no_more_than_where_it_is():
    """The patch is always in the middle, and so is the overlay."""
    images_BHWC, heatmaps_BHW = make_images(1)
    row, column = (int(each.min()) for each in np.nonzero(heatmaps_BHW[0]))
    shift = [(SIZE_PX - PATCH_PX) // 2 - row, (SIZE_PX - PATCH_PX) // 2 - column]
    images_BHWC = np.repeat(np.roll(images_BHWC, shift, axis=(1, 2)), 12, axis=0)
    heatmaps_BHW = np.repeat(np.roll(heatmaps_BHW, shift, axis=(1, 2)), 12, axis=0)
    found = check(images_BHWC, heatmaps_BHW)
    assert found.is_shown
    assert found.gains[CENTRE].deletion.value == pytest.approx(0)
    assert "But it is not shown to lower it more than deleting from the centre outwards (0.000, " in found.text


def test_a_model_that_looks_at_nothing_has_no_gain():
    num_asked = []

    def constant(images_BHWC: np.ndarray) -> np.ndarray:
        num_asked.append(len(images_BHWC))
        return np.full((len(images_BHWC), 2), 0.5, np.float32)

    found = check(*make_images(3), predict=constant)
    assert num_asked == [3 + 3 * 2 * (NUM_STEPS - 1)] * 3 == [57] * 3
    assert not found.is_shown
    assert {each.deletion.value for each in found.orders.values()} == {0.5}
    assert (found.gains[RANDOM].deletion.value, found.gains[RANDOM].insertion.value) == (0, 0)


def test_images_of_one_patient_show_nothing():
    found = check(*make_images(16), groups=np.zeros(16))
    assert (found.num_images, found.num_groups, found.is_shown) == (16, 1, False)
    assert (found.gains[RANDOM].deletion.low, found.gains[RANDOM].deletion.high) == (-1, 1)
    assert (found.orders[RANDOM].deletion.low, found.orders[RANDOM].deletion.high) == (0, 1)


def test_intervals_count_patients_and_not_images():
    images_BHWC, heatmaps_BHW = make_images(8)
    once = check(images_BHWC, heatmaps_BHW).gains[CENTRE].deletion
    often = check(
        np.repeat(images_BHWC, 4, axis=0), np.repeat(heatmaps_BHW, 4, axis=0), groups=np.repeat(np.arange(8), 4)
    ).gains[CENTRE].deletion  # fmt: skip
    assert often.value == pytest.approx(once.value)
    assert often.high - often.low == pytest.approx(once.high - once.low, rel=0.1)
    # Student's t of seven degrees of freedom.
    values = [
        check(image[None], heat[None]).gains[CENTRE].deletion.value
        for image, heat in zip(images_BHWC, heatmaps_BHW, strict=True)
    ]
    expected = 2 * 2.3646 * np.std(values, ddof=1) / math.sqrt(8)
    assert once.high - once.low == pytest.approx(expected, rel=0.1)


def test_images_without_heat_are_left_out():
    images_BHWC, heatmaps_BHW = make_images(4)
    heatmaps_BHW[:3] = 0
    found = check(images_BHWC, heatmaps_BHW)
    assert (found.num_images, found.num_groups, found.num_without) == (1, 1, 3)
    assert found.text.endswith(" Measured on 1 image in 1 group.")
    found = check(images_BHWC, np.zeros_like(heatmaps_BHW))
    assert (found.num_images, found.num_without, found.is_shown, found.orders, found.gains) == (0, 4, False, {}, {})
    assert found.text == f"{NOT_SHOWN} None of the 4 images has one."


def test_pixels_without_heat_follow_by_their_distance():
    found = overlays.ranks(np.array([[0.5, 1, 0], [0, 0, 0]]))
    assert found.tolist() == [[1, 0, 2], [3, 4, 5]]


def test_what_does_not_fit_is_refused():
    images_BHWC, heatmaps_BHW = make_images(2)
    with pytest.raises(DataError, match="heatmap of its size"):
        check(images_BHWC, heatmaps_BHW[:, 1:])
    with pytest.raises(DataError, match="at least one image"):
        check(images_BHWC[:0], heatmaps_BHW[:0])
