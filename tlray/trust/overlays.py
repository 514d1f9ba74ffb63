"""Measures whether overlays (heatmaps such as Grad-CAM) point at what decides a prediction, by deletion and insertion.

An overlay may look plausible and have nothing to do with the prediction. If it points at what decides, the probability
of the predicted class falls soon when pixels are deleted in its order, the hottest first, and rises soon when they are
inserted in its order into a blurred image [1]. What any order does is told by two others: the same heatmap at a random
place, which is as smooth, and from the centre of the image outwards, as the anatomy is in the middle.

[1] Petsiuk, Das, Saenko. RISE: randomized input sampling for explanation of black-box models. BMVC 2018,
arXiv:1806.07421, section 4.3.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

from tlray.errors import DataError, counted
from tlray.trust.groups import bootstrap_variance, evidence_of, group_index, resample, student
from tlray.trust.intervals import NUM_RESAMPLES, Interval

OVERLAY, RANDOM, CENTRE = "overlay", "random", "centre"
"""Names of the orders of pixels: by the overlay, by the overlay at a random place, and from the centre outwards."""

NUM_STEPS = 10
"""Number of equal steps in which the pixels of an image are deleted or inserted: 57 predictions for each image."""

BLUR = 5 / 224
"""Standard deviation of the Gaussian blur that insertion begins with, as a share of the image's size: 5 px at 224 px,
as in the code of [1]."""

NOT_SHOWN = "Overlays are not shown to point at what decides: do not read them as a reason."


@dataclass(frozen=True, slots=True, kw_only=True)
class Areas:
    """Means over images of the areas under both curves, or of their gains, each with its 95 % interval.

    Attributes:
        deletion: Area under the probability of the predicted class as pixels are deleted, in [0, 1]: the lower, the
            better the order points at what decides. A gain, in [-1, 1], is how much lower it is than a control's.
        insertion: The same as pixels are inserted: the higher, the better. A gain is how much higher it is.
    """

    deletion: Interval
    insertion: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayCheck:
    """Whether overlays point at what decides.

    Attributes:
        num_images: Number of images that were measured.
        num_groups: Number of groups (patients) that they are of.
        num_without: Number of further images whose heatmap is 0 everywhere, so that it orders nothing.
        orders: Maps `OVERLAY`, `RANDOM` and `CENTRE` to their areas; empty without images.
        gains: Maps `RANDOM` and `CENTRE` to the gains of the overlay over them, image by image; empty without images.
        is_shown: Deletion and insertion are both surely better than with `RANDOM`: their intervals are above 0.
        text: The result for people, with the number of images.
    """

    num_images: int
    num_groups: int
    num_without: int
    orders: Mapping[str, Areas]
    gains: Mapping[str, Areas]
    is_shown: bool
    text: str


def check(
    images_BHWC: np.ndarray,
    heatmaps_BHW: np.ndarray,
    classes: np.ndarray,
    groups: np.ndarray,
    predict: Callable[[np.ndarray], np.ndarray],
    *,
    seed: int = 0,
) -> OverlayCheck:
    """Measures overlays and two controls by deletion and insertion.

    Args:
        images_BHWC: uint8 [images, height, width, 3].
        heatmaps_BHW: The overlay of each image for its class, floating point [images, height, width], not negative.
        classes: The class that each overlay is for, int [images]: the predicted one.
        groups: The group of each image, [images], any values that can be sorted.
        predict: Takes images like these and returns probabilities, float [images, K].
        seed: Seed of the random places and of the intervals.

    Raises:
        DataError: There are no images, or the arrays do not fit together.
    """
    index = group_index(groups, len(images_BHWC))
    if heatmaps_BHW.shape != images_BHWC.shape[:3] or classes.shape != (len(images_BHWC),):
        raise DataError(
            f"Each image needs a heatmap of its size and a class; got images {images_BHWC.shape}, heatmaps "
            f"{heatmaps_BHW.shape}, classes {classes.shape}."
        )
    rng = np.random.default_rng(seed)
    is_there = heatmaps_BHW.any(axis=(1, 2))
    found = [
        _areas(image_HWC, _orders(heatmap_HW, rng), lambda images, number=int(each): predict(images)[:, number])
        for image_HWC, heatmap_HW, each in zip(
            images_BHWC[is_there], heatmaps_BHW[is_there], classes[is_there], strict=True
        )
    ]
    num_without = int((~is_there).sum())
    if not found:
        return OverlayCheck(
            num_images=0, num_groups=0, num_without=num_without, orders={}, gains={}, is_shown=False,
            text=f"{NOT_SHOWN} None of the {num_without} images has one.",
        )  # fmt: skip
    return _summary(np.array(found), index[is_there], num_without=num_without, rng=rng)


def _orders(heatmap_HW: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns the place of each pixel in each order, int [height, width], from 0."""
    height, width = heatmap_HW.shape
    offsets = (int(rng.integers(height)), int(rng.integers(width)))
    moved_HW = np.roll(heatmap_HW, offsets, axis=(0, 1))
    moved_HW = moved_HW[:, ::-1] if rng.random() < 0.5 else moved_HW
    rows, columns = np.ogrid[:height, :width]
    distance_HW = np.hypot(rows - (height - 1) / 2, columns - (width - 1) / 2)
    return {OVERLAY: ranks(heatmap_HW), RANDOM: ranks(moved_HW), CENTRE: ranks(1 / (1 + distance_HW))}


def ranks(heatmap_HW: np.ndarray) -> np.ndarray:
    """Returns the place of each pixel in the order of a heatmap, int [height, width], 0 for the hottest.

    Pixels without heat, which are often half of an image, follow by their distance from the nearest one with some. In
    random order they would change the picture more than its content does.

    Args:
        heatmap_HW: floating point [height, width], not negative, and not 0 everywhere.
    """
    distance_HW = np.asarray(ndimage.distance_transform_edt(heatmap_HW <= 0))
    order = np.lexsort((distance_HW.ravel(), -heatmap_HW.ravel()))
    places = np.empty(order.size, np.int64)
    places[order] = np.arange(order.size)
    return places.reshape(heatmap_HW.shape)


def _areas(
    image_HWC: np.ndarray, orders: Mapping[str, np.ndarray], predict: Callable[[np.ndarray], np.ndarray]
) -> list[list[float]]:
    """Returns the areas under the curves of deletion and insertion for each order.

    Args:
        image_HWC: uint8 [height, width, 3].
        orders: See `_orders`.
        predict: Returns the probability of one class for images, float [images].
    """
    blurred_HWC = _blurred(image_HWC)
    empty_HWC = np.broadcast_to(np.rint(image_HWC.mean(axis=(0, 1))).astype(np.uint8), image_HWC.shape)
    counts = np.rint(np.arange(1, NUM_STEPS) * image_HWC[..., 0].size / NUM_STEPS)
    changed = [image_HWC, empty_HWC, blurred_HWC]
    for places_HW in orders.values():
        masks = [(places_HW < count)[..., np.newaxis] for count in counts]
        changed += [np.where(mask_HW1, empty_HWC, image_HWC) for mask_HW1 in masks]
        changed += [np.where(mask_HW1, image_HWC, blurred_HWC) for mask_HW1 in masks]
    whole, empty, blurred, *between = predict(np.stack(changed)).astype(np.float64).tolist()
    curves = np.array(between).reshape(len(orders), 2, NUM_STEPS - 1)
    return [
        [_area([whole, *deletion, empty]), _area([blurred, *insertion, whole])]
        for deletion, insertion in curves.tolist()
    ]


def _blurred(image_HWC: np.ndarray) -> np.ndarray:
    blur = ImageFilter.GaussianBlur(BLUR * image_HWC.shape[0])
    return np.asarray(Image.fromarray(image_HWC).filter(blur))


def _area(curve: list[float]) -> float:
    return float(np.trapezoid(curve, dx=1 / (len(curve) - 1)))


def _summary(areas_BO2: np.ndarray, index: np.ndarray, *, num_without: int, rng: np.random.Generator) -> OverlayCheck:
    """Returns the result of areas [images, orders, deletion and insertion] and the number of each image's group."""
    names = (OVERLAY, RANDOM, CENTRE)

    def both(values_B2: np.ndarray, low: float) -> Areas:
        deletion, insertion = (_interval(values, index, rng, low=low) for values in values_B2.T)
        return Areas(deletion=deletion, insertion=insertion)

    orders = {name: both(areas_BO2[:, number], 0.0) for number, name in enumerate(names)}
    gains_BO2 = (areas_BO2[:, :1] - areas_BO2) * [-1, 1]  # deletion shall be low and insertion high
    gains = {name: both(gains_BO2[:, number], -1.0) for number, name in enumerate(names) if name != OVERLAY}
    by_chance, by_place = gains[RANDOM], gains[CENTRE]
    is_shown = min(by_chance.deletion.low, by_chance.insertion.low) > 0
    text = _describe(by_chance.deletion) if is_shown else f"{NOT_SHOWN} {_describe_not(by_chance)}"
    if is_shown and by_place.deletion.low <= 0:
        text += (
            " But it is not shown to lower it more than deleting from the centre outwards "
            f"({_figures(by_place.deletion)}): an overlay may tell little more than where the middle of the image is."
        )
    num_images, num_groups = len(areas_BO2), len(np.unique(index))
    return OverlayCheck(
        num_images=num_images,
        num_groups=num_groups,
        num_without=num_without,
        orders=orders,
        gains=gains,
        is_shown=is_shown,
        text=f"{text} Measured on {counted(num_images, 'image')} in {counted(num_groups, 'group')}.",
    )


def _describe(gain: Interval) -> str:
    return (
        f"Overlays point at what decides: deleting by the overlay lowers the probability by {gain.value:.3f} more than "
        f"deleting at random (95 %: {gain.low:.3f} to {gain.high:.3f})."
    )


def _describe_not(gains: Areas) -> str:
    return (
        "Compared with a random place, deleting by the overlay lowers the probability more by "
        f"{_figures(gains.deletion)}, and inserting raises it more by {_figures(gains.insertion)}."
    )


def _figures(gain: Interval) -> str:
    return f"{gain.value:.3f}, 95 %: {gain.low:.3f} to {gain.high:.3f}"


def _interval(values: np.ndarray, index: np.ndarray, rng: np.random.Generator, *, low: float) -> Interval:
    """Returns a mean over images with its 95 % interval, by a Bayesian bootstrap over groups, with Student's t.

    Args:
        values: float [images], in [`low`, 1].
        index: Number of each image's group, int [images].
        rng: Source of the bootstrap's weights.
        low: Least possible value. With fewer than two groups the interval is the whole range.
    """
    present = np.unique(index, return_inverse=True)[1]
    evidence, value = evidence_of(present), float(values.mean())
    if evidence.num_groups < 2:
        return Interval(value=value, low=low, high=1.0)
    sums_G, sizes_G = np.bincount(present, values), np.bincount(present)
    replicates = np.concatenate([
        (weights_RG @ sums_G) / (weights_RG @ sizes_G)
        for weights_RG in resample(evidence.num_groups, rng, NUM_RESAMPLES)
    ])  # fmt: skip
    half = student(evidence) * math.sqrt(bootstrap_variance(replicates, evidence))
    return Interval(value=value, low=max(low, value - half), high=min(1.0, value + half))
