"""The intensity range of a data set: the pixel values of its 16-bit images that become 0 and 255."""

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from tlray.config.training import TrainConfig
from tlray.config.values import parse_intensity_range
from tlray.data import audit, inspection


def find_range(config: TrainConfig, table: pa.Table) -> tuple[float, float] | None:
    """Returns the intensity range of the config, or that of the 16-bit training images, or else of all 16-bit images.

    Returns:
        None if no range is given and no image has 16 bits.
    """
    given = parse_intensity_range(config.intensity_range)
    wide = table.filter(pc.field("is_16_bit"))
    if given is not None or not wide.num_rows:
        return given
    learned = wide.filter(pc.field("split") == "train")
    return inspection.intensity_range((learned if learned.num_rows else wide)["uri"])


def count_untrained(config: TrainConfig, table: pa.Table) -> dict[str, int]:
    """Returns the number of 16-bit images by split if these alone set the intensity range, as train has none of them.

    Empty if a range is given, if train has some, or if there are no training images at all.
    """
    wide = Counter(table.filter(pc.field("is_16_bit"))["split"].to_pylist())
    is_given = parse_intensity_range(config.intensity_range) is not None
    if is_given or wide["train"] or "train" not in table["split"].unique().to_pylist():
        return {}
    return {split or audit.UNASSIGNED: number for split, number in wide.items() if number}
