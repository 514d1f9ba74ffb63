"""Bulk scoring as Keras' users do it: `python score_keras.py BUNDLE IMAGES READER OUT.csv`.

READER is `tf.data` (files decoded by TensorFlow in parallel calls) or `image_dataset_from_directory`. The bundle's
SavedModel is a Keras layer; `predict` runs it in batches of 32. Both readers resize as TensorFlow does by default, so
their probabilities are not those of tlray.
"""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

BATCH_SIZE = 32  # tlray's own


def read_by_tf_data(directory: Path, size_px: int) -> Any:
    """Returns a dataset of batches, uint8 [images, size, size, 3], of a flat folder."""

    def decode(path: Any) -> Any:
        image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        resized = tf.image.resize(image, (size_px, size_px))
        return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)

    paths = tf.data.Dataset.from_tensor_slices(sorted(map(str, directory.iterdir())))
    images = paths.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    return images.batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE)


def read_by_keras(directory: Path, size_px: int) -> Any:
    """Returns the same, read by `keras.utils.image_dataset_from_directory`."""
    no_labels: Any = None
    images: Any = keras.utils.image_dataset_from_directory(
        str(directory),
        labels=no_labels,
        image_size=(size_px, size_px),
        batch_size=BATCH_SIZE,
        shuffle=False,
        verbose=False,
    )
    whole = images.map(
        lambda batch: tf.cast(tf.clip_by_value(tf.round(batch), 0, 255), tf.uint8), num_parallel_calls=tf.data.AUTOTUNE
    )
    return whole.prefetch(tf.data.AUTOTUNE)


def main(bundle: str, directory: str, reader: str, out: str) -> None:
    """Scores all images and writes a row for each."""
    spec = json.loads(Path(bundle, "bundle.json").read_text())
    size_px = spec["image_size_px"]
    read = {"tf.data": read_by_tf_data, "image_dataset_from_directory": read_by_keras}[reader]
    pixels = keras.Input((size_px, size_px, 3), dtype="uint8")
    layer = keras.layers.TFSMLayer(str(Path(bundle, "saved_model")), call_endpoint="serving_default")
    probabilities = layer(pixels)["output_0"]
    model = keras.Model(pixels, probabilities)
    probs_BK = model.predict(read(Path(directory), size_px), verbose=0)  # pyright: ignore[reportArgumentType]
    names = sorted(path.name for path in Path(directory).iterdir())
    with Path(out).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", *spec["classes"]])
        for name, probs_K in zip(names, np.asarray(probs_BK), strict=True):
            writer.writerow([name, spec["classes"][int(probs_K.argmax())], *probs_K.tolist()])


if __name__ == "__main__":
    main(*sys.argv[1:])
