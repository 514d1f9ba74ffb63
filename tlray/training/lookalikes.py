"""Collects the training images that a bundle keeps, to be shown beside predictions for images that are like them."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from PIL import Image

from tlray.bundle.lookalikes import KeptImages
from tlray.bundle.novelty import Novelty, directions
from tlray.data import splits, thumbnail
from tlray.data.sample import read_each, spread_by_class
from tlray.data.stream import Pixels, known_digests
from tlray.training.logits import MAX_TRAIN_OUTPUTS, Outputs


def encode(train: pa.Table, image_ids: Sequence[str], thumbnails_BHW: np.ndarray) -> dict[str, bytes]:
    """Encodes thumbnails that are in memory anyway, so that `collect` need not read the images again.

    Those of 16-bit images are left out: each has a window of its own, not the intensity range of the data set.

    Args:
        train: The training images, with `image_id`, `class_index` and `is_16_bit`.
        image_ids: The ids of images, those of training among them.
        thumbnails_BHW: The thumbnails of the images in this order, grey, uint8 [images, height, width]; see
            `tlray.data.looks`.

    Returns:
        The id of a training image to its JPEG, for at most `MAX_TRAIN_OUTPUTS` of them: those that `logits.of_features`
        takes.
    """
    rows = train.take(pa.array(spread_by_class(train["class_index"].to_numpy(), MAX_TRAIN_OUTPUTS)))
    place_of = {image_id: place for place, image_id in enumerate(image_ids)}
    pairs = zip(rows["image_id"].to_pylist(), rows["is_16_bit"].to_pylist(), strict=True)
    return {
        image_id: thumbnail.to_jpeg(thumbnails_BHW[place_of[image_id]])
        for image_id, is_16_bit in pairs
        if not is_16_bit
    }


def collect(
    train: Outputs, table: pa.Table, novelty: Novelty, pixels: Pixels, known: Mapping[str, bytes] | None = None
) -> KeptImages | None:
    """Collects training images with their thumbnails, in grey, their labels and their places.

    Only one of several copies of a picture is taken: it would be shown several times otherwise.

    Args:
        train: The model's outputs for some training images, at most `logits.MAX_TRAIN_OUTPUTS`.
        table: The training images, with `class_index`, and with `splits.PICTURE` where copies were looked for.
        novelty: The space in which look-alikes are searched.
        pixels: How files become pixels.
        known: Thumbnails by the ids of the images, see `encode`. Other images are read, unless they have changed.

    Returns:
        None if the model gives no features, or none of the images can be read any more.
    """
    if train.features_BD is None:
        return None
    rows = table.take(pa.array(train.places))
    chosen = _first_of_pictures(rows)
    taken = rows.take(pa.array(chosen))
    image_ids, jpeg_of = taken["image_id"].to_pylist(), dict(known or {})
    missing = taken.filter(pa.array([image_id not in jpeg_of for image_id in image_ids], pa.bool_()))
    read = read_each(missing["uri"].to_pylist(), pixels, _convert, sha256=known_digests(missing))
    pairs = zip(missing["image_id"].to_pylist(), read, strict=True)
    jpeg_of |= {image_id: jpeg for image_id, jpeg in pairs if jpeg is not None}
    found = [
        (row, jpeg_of[image_id])
        for row, image_id in zip(chosen.tolist(), image_ids, strict=True)
        if image_id in jpeg_of
    ]
    if not found:
        return None
    places = [row for row, _ in found]
    return KeptImages(
        directions=directions(novelty.place(train.features_BD[places])[1]),
        labels=rows["class_index"].to_numpy()[places],
        jpegs=[jpeg for _, jpeg in found],
        num_pictures=len(_first_of_pictures(table)),
    )


def _convert(image: Image.Image) -> bytes:
    """Returns the thumbnail of an image in grey, as those of `tlray.data.looks` are."""
    return thumbnail.encode(image.convert("L"))


def _first_of_pictures(rows: pa.Table) -> np.ndarray:
    """Returns the number of the first row of each picture, ascending, int64 [pictures]."""
    image_ids = rows["image_id"].to_pylist()
    pictures = rows[splits.PICTURE].to_pylist() if splits.PICTURE in rows.column_names else image_ids
    names = [picture or image_id for picture, image_id in zip(pictures, image_ids, strict=True)]
    return np.sort(np.unique(np.array(names, dtype=str), return_index=True)[1])
