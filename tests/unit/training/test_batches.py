"""What a worker learns from where images can no longer be read; tests/ray and tests/e2e have the batches themselves."""

import numpy as np
import pytest

from tlray.errors import DataError
from tlray.training.batches import replace_failed


@pytest.mark.parametrize(
    ("readable", "place", "num_replaced"),
    [
        ([True, True, True], [0, 1, 2], 0),
        ([True, False, True], [0, 0, 2], 1),
        ([False, False, True], [2, 2, 2], 2),
        ([True, False, True, False, False], [0, 0, 2, 2, 0], 3),
    ],
)
def test_readable_images_of_the_batch_take_the_places_of_others(readable, place, num_replaced):
    found, count = replace_failed(np.array(readable))
    assert (found.tolist(), count) == (place, num_replaced)


def test_a_batch_of_which_nothing_can_be_read_ends_the_training():
    with pytest.raises(DataError, match="continue with --resume"):
        replace_failed(np.array([False, False]))
