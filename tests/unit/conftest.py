"""What unit tests share: a small model, and what the endpoint counts."""

from pathlib import Path
from typing import Any

import pytest


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
