"""Training images that a bundle keeps, to be shown beside a prediction: small pictures, labels, and where they lie.

Nothing else of the images is kept: no name, no id, no metadata of their files. `tlray.inference.lookalikes` finds those
that are most like an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tlray.bundle.novelty import directions
from tlray.data import thumbnail
from tlray.errors import DataError

NUM_AXES = {"directions": 2, "labels": 1, "jpegs": 1, "ends": 1}
"""Names of the stored arrays that must be there, with their numbers of axes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeptImages:
    """Some training images of a model.

    Attributes:
        directions: Where they lie in the space that the training images span, scaled to length 1, float32
            [images, components]; see `novelty.directions`.
        labels: Their classes, integer [images], in [0, K).
        jpegs: A thumbnail of each, JPEG.
        num_pictures: Number of pictures that the training images show, copies counted once; more than are kept here if
            some are left out. None: it is not known, as in bundles of earlier versions.
    """

    directions: np.ndarray
    labels: np.ndarray
    jpegs: Sequence[bytes]
    num_pictures: int | None = None

    def pictures(self) -> tuple[np.ndarray, list[int]]:
        """Returns the pixels of the thumbnails, to be compared with those of other images.

        They are as large as the thumbnails of `looks.look`, and fit to be compared with these: of 60 slices of the
        public chest-CT set each one scored at least 0.973 with its own picture, as a JPEG or made from the model's
        pixels at 128 to 299 px (2026-11-30); `tlray.trust.pixel_match.COPY_SCORE` is less.

        Returns:
            uint8 [pictures, SIZE_PX, SIZE_PX] (see `thumbnail.SIZE_PX`), and which image each one is of, ascending.
            Those whose JPEG is damaged, or of another size, are left out.
        """
        decoded = [(number, thumbnail.decode(jpeg)) for number, jpeg in enumerate(self.jpegs)]
        found = [(number, pixels) for number, pixels in decoded if pixels is not None]
        pixels_BHW = np.empty((len(found), thumbnail.SIZE_PX, thumbnail.SIZE_PX), np.uint8)
        for row, (_, pixels) in enumerate(found):
            pixels_BHW[row] = pixels
        return pixels_BHW, [number for number, _ in found]

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns arrays for an .npz file, without pickle; `from_arrays` reads them.

        `directions` are float16, `labels` int32, `jpegs` all thumbnails one after another, uint8 [bytes], and `ends`
        where each of them ends, int64 [images]. `num_pictures` is an int64 without axes; missing if it is not known.
        """
        arrays = {
            "directions": self.directions.astype(np.float16),
            "labels": self.labels.astype(np.int32),
            "jpegs": np.frombuffer(b"".join(self.jpegs), np.uint8),
            "ends": np.cumsum([len(jpeg) for jpeg in self.jpegs], dtype=np.int64),
        }
        return arrays if self.num_pictures is None else arrays | {"num_pictures": np.array(self.num_pictures, np.int64)}


def from_arrays(arrays: Mapping[str, np.ndarray], *, num_classes: int, num_components: int | None = None) -> KeptImages:
    """Returns what was stored by `KeptImages.arrays`.

    Args:
        arrays: The arrays.
        num_classes: Number of classes of the model.
        num_components: Number of components of the bundle's `novelty.Novelty`; None: it has none.

    Raises:
        DataError: An array is missing, or they do not fit together or the novelty score.
    """
    missing = set(NUM_AXES) - set(arrays)
    if missing:
        raise DataError(f"The arrays of the training images lack {sorted(missing)}.")
    found = {name: np.asarray(arrays[name]) for name in NUM_AXES}
    num_pictures = np.asarray(arrays["num_pictures"]) if "num_pictures" in arrays else None
    if not _fit(found, num_classes):
        shapes = ", ".join(f"{name} {each.dtype} {list(each.shape)}" for name, each in found.items())
        raise DataError(f"The arrays of the training images do not fit together: {shapes}.")
    found_components = found["directions"].shape[1]
    if num_components not in (None, found_components):
        raise DataError(
            f"The training images lie in a space of {found_components} components, but the space of the novelty score "
            f"has {num_components}."
        )
    if num_pictures is not None and (
        num_pictures.ndim or num_pictures.dtype.kind not in "iu" or num_pictures < len(found["labels"])
    ):
        raise DataError(f"The number of training pictures is {num_pictures}, fewer than are there or no whole number.")
    data, ends = found["jpegs"].tobytes(), found["ends"].tolist()
    return KeptImages(
        directions=directions(found["directions"]),  # once more, as they were rounded
        labels=found["labels"],
        jpegs=[data[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)],
        num_pictures=None if num_pictures is None else int(num_pictures),
    )


def _fit(found: Mapping[str, np.ndarray], num_classes: int) -> bool:
    """Tells whether arrays have the types, shapes and ranges of `KeptImages.arrays`, of at least one image."""
    kinds = {"directions": "f", "labels": "iu", "jpegs": "u", "ends": "iu"}
    if any(
        found[name].ndim != num_axes or found[name].dtype.kind not in kinds[name] for name, num_axes in NUM_AXES.items()
    ):
        return False
    labels, jpegs, ends = found["labels"], found["jpegs"], found["ends"]
    if not len(found["directions"]) == len(labels) == len(ends) > 0 or jpegs.dtype != np.uint8:
        return False
    is_known = labels.min() >= 0 and labels.max() < num_classes and np.isfinite(found["directions"]).all()
    return bool(is_known and ends[0] >= 0 and (np.diff(ends) >= 0).all() and ends[-1] == len(jpegs))
