"""The article's script, from images to a saved model, in plain Keras: the peer of `time_to_accuracy.py`.

    python benchmarks/article_script.py TRAIN_DIR VALID_DIR TEST_DIR WEIGHTS EPOCHS SEED OUT.json OUT.keras

Ours are only the weights, which come from a file, the seed, and what comes after `model.save`: the time at which the
model was saved, where its clock stops, and the accuracy on TEST_DIR, which is measured only then. `OUT.json` gets both,
and the accuracy on VALID_DIR after the last epoch.
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


def main() -> None:
    """Trains and saves as the article does, then measures the model."""
    train_dir, valid_dir, test_dir, weights, epochs, seed, out, model_out = sys.argv[1:]
    keras.utils.set_random_seed(int(seed))

    train_datagen = ImageDataGenerator(rescale=1.0 / 255, shear_range=0.2, zoom_range=0.2, horizontal_flip=True)
    test_datagen = ImageDataGenerator(rescale=1.0 / 255)
    training_set = train_datagen.flow_from_directory(
        train_dir, target_size=(224, 224), batch_size=32, class_mode="categorical"
    )
    validation_set = test_datagen.flow_from_directory(
        valid_dir, target_size=(224, 224), batch_size=32, class_mode="categorical"
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

    history = model.fit(
        training_set,
        epochs=int(epochs),
        validation_data=validation_set,
        verbose=2,  # pyright: ignore[reportArgumentType]
    )
    model.save(model_out)
    saved_at_s = time.time()

    test_set = test_datagen.flow_from_directory(
        test_dir, target_size=(224, 224), batch_size=32, class_mode="categorical", shuffle=False
    )
    measured: Any = model.evaluate(test_set, verbose=0, return_dict=True)  # pyright: ignore[reportArgumentType]
    content = {
        "saved_at_s": saved_at_s,
        "valid_accuracy": float(history.history["val_accuracy"][-1]),
        "test_accuracy": float(measured["accuracy"]),
    }
    Path(out).write_text(json.dumps(content))


if __name__ == "__main__":
    main()
