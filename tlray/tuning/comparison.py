"""The standard error of a mean over images that come in groups, such as the slices of a patient."""

import math

import numpy as np


def mean_by_group(sums_G: np.ndarray, num_images_G: np.ndarray) -> tuple[float, float]:
    """Returns the mean of a value over images and its standard error, with groups as the independent units.

    The cluster-robust variance (Cameron and Miller, J. Human Resources 50:317-372, 2015, section II.C) of a model that
    has an intercept alone: the deviations are summed in each group first, so that the many slices of a patient do not
    count as many patients. For two models on the same images, give the sums of their differences: what is hard for
    both cancels out.

    Args:
        sums_G: The sum of the value over the images of each group, shape [groups].
        num_images_G: Number of images of each group, at least 1.

    Returns:
        The mean, and its standard error; that is infinite for a single group.
    """
    sums_G = np.asarray(sums_G, np.float64)
    num_groups, num_images = len(sums_G), num_images_G.sum()
    mean = float(sums_G.sum() / num_images)
    if num_groups < 2:
        return mean, math.inf
    deviations_G = sums_G - num_images_G * mean
    return mean, math.sqrt(num_groups / (num_groups - 1) * float(deviations_G @ deviations_G)) / int(num_images)
