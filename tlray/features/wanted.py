"""The rows of features that are wanted, each with a key: a fingerprint of all that decides its features."""

import hashlib
import json
from dataclasses import asdict

import pyarrow as pa

from tlray.data import decoding, stream
from tlray.features.preparation import Network
from tlray.features.store import COLUMNS, KEY


def wanted_rows(readable: pa.Table, views: int, network: Network, pixels: stream.Pixels) -> pa.Table:
    """Returns a table with a row, and its `key`, for each image and view whose features are wanted.

    Args:
        readable: The images that can be read, with `inspection.INSPECTION_COLUMNS` and splits.
        views: Number of views of each training image.
        network: The network that computes the features.
        pixels: How image files become the network's pixels.

    Returns:
        `uri`, `sha256`, the columns `store.COLUMNS`, `view` (int32) and `store.KEY`.
    """
    places, numbers, keys = [], [], []
    for place, image in enumerate(readable.select(["image_id", "split", "sha256", "is_16_bit"]).to_pylist()):
        for view in range(views if image["split"] == "train" else 1):
            parts = [network.fingerprint, decoding.DECODING, pixels.size_px, image["image_id"], image["sha256"], view]
            parts += [pixels.intensity_range] if image["is_16_bit"] else []
            parts += [asdict(pixels.augmentation), pixels.seed] if view and pixels.augmentation else []
            places.append(place)
            numbers.append(view)
            keys.append(hashlib.sha256(json.dumps(parts).encode()).hexdigest())
    table = readable.select(["uri", "sha256", *COLUMNS]).take(pa.array(places))
    return table.append_column("view", pa.array(numbers, pa.int32())).append_column(KEY, pa.array(keys))
