"""Computes logits and pooled features of a run's images with its trained classifier, before it is calibrated."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.data.sample import read_some, spread_by_class
from tlray.data.stream import Pixels
from tlray.features.cache import FeatureCache, FeatureReader

PREDICT_BATCH, IMAGE_BATCH = 256, 32
"""Number of images whose features, and whose pixels, a model takes at once."""

MAX_TRAIN_OUTPUTS = 2000
"""Number of training images whose features the score of foreign images is fitted to, and which may be shown beside
predictions; more add little. Each class has its share."""

MAX_IMAGES_AGAIN = 500
"""Number of training images, and of validation images, that a model sees again if their features are not stored. It
takes some ten seconds for InceptionV3 on two cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Logits and pooled features of some images of a table.

    Attributes:
        places: Rows of the table, int [images].
        logits_BK: Logits before any shift, float32 [images, classes].
        features_BD: Pooled features, float32 [images, features]; None where they are not known.
    """

    places: np.ndarray
    logits_BK: np.ndarray
    features_BD: np.ndarray | None

    @property
    def arrays(self) -> list[np.ndarray]:
        """The arrays as `novelty.scores_of` takes them."""
        return [self.logits_BK] if self.features_BD is None else [self.logits_BK, self.features_BD]


def of_features(model: Any, tables: Mapping[str, pa.Table], cache: FeatureCache) -> dict[str, Outputs]:
    """Returns a model's outputs for all images but some of train, by split; it takes features from the cache.

    Args:
        model: See `trunk.with_features`.
        tables: Split to the table of its images, with the column `class_index`.
        cache: The features.
    """
    reader = FeatureReader(cache)
    found = {}
    for split, table in tables.items():
        max_rows = MAX_TRAIN_OUTPUTS if split == "train" else table.num_rows
        places = spread_by_class(table["class_index"].to_numpy(), max_rows)
        rows = cache.rows[split][places, 0]
        batches = (reader.take(rows[start : start + PREDICT_BATCH]) for start in range(0, len(rows), PREDICT_BATCH))
        found[split] = _collect(places, (model(batch, training=False) for batch in batches))
    return found


def of_images(
    run: Callable[[np.ndarray], list[Any]],
    tables: Mapping[str, pa.Table],
    pixels: Pixels,
    *,
    rows_of: Mapping[str, np.ndarray] | None = None,
    max_images: int = MAX_IMAGES_AGAIN,
) -> dict[str, Outputs]:
    """Returns a model's outputs for some training and validation images that can still be read, by split.

    Args:
        run: The model, see `trunk.as_function`.
        tables: Split to the table of its images, with the column `class_index`.
        pixels: How files become pixels.
        rows_of: Split to the rows of its table among which images are drawn, int [rows]. None, or no such split: all
            its rows.
        max_images: Maximum number of images of each split; each class has its share.
    """
    found = {}
    for split in ("train", "valid"):
        if split not in tables:
            continue
        labels = tables[split]["class_index"].to_numpy()
        rows = (rows_of or {}).get(split, np.arange(len(labels)))
        rows = rows[spread_by_class(labels[rows], max_images)]
        places, outputs = [], []
        for start in range(0, len(rows), IMAGE_BATCH):  # read batch by batch, as all pixels may not fit into memory
            batch = rows[start : start + IMAGE_BATCH]
            read = read_some(tables[split].take(pa.array(batch)), pixels, max_images=len(batch))
            if read:
                places.append(batch[[*read]])
                outputs.append(run(np.stack([*read.values()])))
        if places:
            found[split] = _collect(np.concatenate(places), outputs)
    return found


def _collect(places: np.ndarray, outputs: Iterable[Any]) -> Outputs:
    """Joins the outputs of batches: logits, or a list of logits and features."""
    batches = [[np.asarray(each) for each in (both if isinstance(both, list | tuple) else [both])] for both in outputs]
    logits_BK, *features = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    return Outputs(places=places, logits_BK=logits_BK, features_BD=features[0] if features else None)
