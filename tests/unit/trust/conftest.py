"""Pictures that the tests of copies share."""

import numpy as np
import pytest

from tlray.data import phantom_drawing, phantoms
from tlray.data.looks import THUMBNAIL_PX

NUM_PATIENTS = 6


@pytest.fixture(scope="module")
def thumbnails():
    """A slice of each of 6 patients."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(NUM_PATIENTS):
        anatomy = phantoms.sample_anatomy(rng)
        drawn.append(phantom_drawing.render_slice(anatomy, None, rng=rng, size_px=THUMBNAIL_PX))
    return np.stack(drawn)
