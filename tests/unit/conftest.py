"""What unit tests share: a small model, what the endpoint counts, and how they are kept quick."""

import gc
import os
from pathlib import Path
from typing import Any

import pytest

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
"""Variables that limit the threads of NumPy, SciPy, scikit-learn and TensorFlow."""


def pytest_configure(config: pytest.Config) -> None:
    """Gives each process of `-n auto` one thread: together they have one for each CPU, and more wait for each other."""
    if config.getoption("numprocesses", None):
        for name in ONE_THREAD:
            os.environ.setdefault(name, "1")


def pytest_collection() -> None:
    """Stops the garbage collector while modules are imported: nothing of them is garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Keeps the garbage collector from going through the imported modules again and again."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(10_000, 10, 10)


@pytest.fixture
def own_model(tmp_path: Path) -> tuple[str, Any]:
    """A small model of one's own, 32 px, with BatchNormalization; its path and itself."""
    import keras

    keras.utils.set_random_seed(3)
    images = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=False, name="first")(images)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Conv2D(6, 3, name="second")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(images, keras.layers.Dense(3, activation="softmax")(x))
    path = str(tmp_path / "own.keras")
    model.save(path)
    return path, model


@pytest.fixture
def recorded(monkeypatch) -> list[tuple[str, float, dict[str, str]]]:
    """Name, value and tags of all that is recorded from here on, as Ray is given it."""
    from ray.util import metrics

    records: list[tuple[str, float, dict[str, str]]] = []

    def record(self: Any, value: float, tags: dict[str, str] | None = None) -> None:
        final = self._get_final_tags(tags)
        assert set(final) == set(self._tag_keys)
        records.append((self._name, value, final))

    monkeypatch.setattr(metrics.Metric, "_record", record)
    return records
