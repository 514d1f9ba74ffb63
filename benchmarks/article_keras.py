"""The article's training, written out in plain Keras: the peer of `train_step.py`, and nothing else.

    python benchmarks/article_keras.py TRAIN_DIR WEIGHTS EPOCHS OUT.json

Only the timing is ours, and the weights, which come from a file: `OUT.json` gets the images per second of each epoch.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from keras.applications import InceptionV3
from keras.layers import Dense, Dropout, GlobalAveragePooling2D
from keras.models import Model

# tf.keras is loaded when it is first used, which pyright does not follow.
ImageDataGenerator: Any = tf.keras.preprocessing.image.ImageDataGenerator  # pyright: ignore


class EpochTimer(keras.callbacks.Callback):
    """Notes how long each epoch takes."""

    def __init__(self) -> None:
        super().__init__()
        self.times_s: list[float] = []
        self._start_s = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002, D102
        self._start_s = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002, D102
        self.times_s.append(time.monotonic() - self._start_s)


def main(train_dir: str, weights: str, epochs: str, out: str) -> None:
    """Trains as the article does, and writes the rates."""
    train_datagen = ImageDataGenerator(rescale=1.0 / 255, shear_range=0.2, zoom_range=0.2, horizontal_flip=True)
    training_set = train_datagen.flow_from_directory(
        train_dir, target_size=(224, 224), batch_size=32, class_mode="categorical"
    )

    base_model = InceptionV3(include_top=False, weights=weights, input_shape=(224, 224, 3))
    for layer in base_model.layers[:-15]:
        layer.trainable = False

    x = base_model.output
    x = GlobalAveragePooling2D()(x)
    x = Dense(512, activation="relu")(x)
    x = Dropout(0.3)(x)
    x = Dense(512, activation="relu")(x)
    x = Dropout(0.3)(x)
    predictions = Dense(4, activation="softmax")(x)
    model = Model(inputs=base_model.input, outputs=predictions)
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate=1e-3),  # pyright: ignore[reportArgumentType]
        loss="categorical_crossentropy",
        metrics=["accuracy"],
    )

    timer = EpochTimer()
    model.fit(training_set, epochs=int(epochs), callbacks=[timer], verbose=0)  # pyright: ignore[reportArgumentType]
    Path(out).write_text(json.dumps([training_set.n / time_s for time_s in timer.times_s]))


if __name__ == "__main__":
    main(*sys.argv[1:])
