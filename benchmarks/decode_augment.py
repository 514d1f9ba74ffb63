"""Decoding and augmenting on one core, tlray beside Keras' ImageDataGenerator: a part of `train_step.py`.

    python benchmarks/decode_augment.py FOLDER ROUNDS OUT.json

Both do what they do for one image of a training batch with the article's augmentation, from the file to the array
that goes into the batch, in one thread of one process, in turns. The clock is the thread's CPU time, so that a core
which others use as well distorts less; the wall clock's figures stand beside it.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from keras.utils import img_to_array, load_img

from tlray.config import recipes
from tlray.data import augmentation, decoding, stream

SIZE_PX = 224
AUGMENTATION = recipes.article("", "").augmentation

# tf.keras is loaded when it is first used, which pyright does not follow.
ImageDataGenerator: Any = tf.keras.preprocessing.image.ImageDataGenerator  # pyright: ignore
GENERATOR = ImageDataGenerator(rescale=1.0 / 255, shear_range=0.2, zoom_range=0.2, horizontal_flip=True)


def tlray_image(path: str) -> np.ndarray:
    """Does what tlray's stream does for one image: uint8 [224, 224, 3], which the model rescales."""
    image = decoding.decode(stream.read_file(path), size_px=SIZE_PX)
    return decoding.to_array(
        augmentation.augment(image, AUGMENTATION, augmentation.augmentation_rng(seed=0, epoch=0, image_id=path))
    )


def keras_image(path: str) -> np.ndarray:
    """Does what DirectoryIterator does for one image: float32 [224, 224, 3] in [0, 1]."""
    image = img_to_array(load_img(path, target_size=(SIZE_PX, SIZE_PX)))
    return GENERATOR.standardize(GENERATOR.random_transform(image))


def measure(function: Callable[[str], np.ndarray], dtype: type, paths: list[str]) -> dict[str, float]:
    """Fills batches of 32 and returns images per second of CPU time and of the wall clock."""
    batch = np.zeros((32, SIZE_PX, SIZE_PX, 3), dtype=dtype)
    start_s, start_cpu_s = time.perf_counter(), time.thread_time()
    for place, path in enumerate(paths):
        batch[place % 32] = function(path)
    time_s, cpu_s = time.perf_counter() - start_s, time.thread_time() - start_cpu_s
    return {"cpu": len(paths) / cpu_s, "wall": len(paths) / time_s}


def main(folder: str, rounds: str, out: str) -> None:
    """Measures both in turns, after one untimed pass of each, and writes the rates of all rounds."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    paths = sorted(str(path) for path in Path(folder).glob("*/*"))
    sides: dict[str, tuple[Callable[[str], np.ndarray], type]] = {
        "tlray": (tlray_image, np.uint8),
        "keras": (keras_image, np.float32),
    }
    for function, dtype in sides.values():
        measure(function, dtype, paths)
    results = [
        {side: measure(function, dtype, paths) for side, (function, dtype) in sides.items()} for _ in range(int(rounds))
    ]
    Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
