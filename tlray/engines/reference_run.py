"""Runs a SavedModel with TensorFlow on CPUs, as a program: `python -m`, this module, and the arguments of `main`.

A process that predicts with OpenVINO starts it to compare the two, so that it does not get TensorFlow's memory and
threads itself.
"""

import sys
from pathlib import Path

import numpy as np


def main(saved_model: str, images: str, outputs: str) -> None:
    """Runs a SavedModel on images, and writes its outputs.

    Args:
        saved_model: Directory of the SavedModel.
        images: Path of an .npy file with the images, uint8 [images, size, size, 3].
        outputs: Path of the .npz file to write, with an array float32 [images, ...] for each output, in their order.

    Raises:
        ValueError: The SavedModel cannot be loaded.
    """
    from tlray.engines import tensorflow_engine  # noqa: PLC0415 (TensorFlow only where it computes)

    engine = tensorflow_engine.load_saved_model(Path(saved_model))
    np.savez(outputs, *engine.run(np.load(images)))


if __name__ == "__main__":
    main(*sys.argv[1:])
