"""Draws the settings that the trials of a sweep try."""

from typing import Any

import numpy as np

from tlray.config.commands import SweepConfig

MAX_HIDDEN_LAYERS = 2
"""Maximum number of hidden layers in the head, as in the recipe `article`."""


def draw_settings(config: SweepConfig) -> list[dict[str, Any]]:
    """Returns the settings to try: first roughly those of the recipe `standard`, then random ones.

    The same config gives the same settings, so that a continued sweep knows which are left. Every head has a linear
    probe and, beside it, zero, one or two hidden layers.
    """
    most = config.trainable_layers
    layers = sorted({0, most // 3, most * 2 // 3, most})
    generator = np.random.default_rng(config.seed)
    first = {
        "depths": 5,
        "inverse_penalty": 1e-3,
        "hidden_layers": 0,
        "trainable_layers": most,
        "learning_rate": 1e-4,
        "dropout": 0.3,
        "views": config.views,
        "seed": config.seed,
    }
    others = [
        {
            "depths": int(generator.integers(1, 6)),
            "inverse_penalty": _log_uniform(generator, 1e-5, 1.0),
            "hidden_layers": int(generator.integers(0, MAX_HIDDEN_LAYERS + 1)),
            "trainable_layers": int(generator.choice(layers)),
            "learning_rate": _log_uniform(generator, 1e-5, 1e-3),
            "dropout": float(generator.choice([0.0, 0.3, 0.5])),
            "views": int(generator.integers(1, config.views + 1)),
            "seed": int(generator.integers(0, 1000)),
        }
        for _ in range(config.num_trials - 1)
    ]
    return [first, *others]


def _log_uniform(generator: np.random.Generator, low: float, high: float) -> float:
    """Draws a number log-uniformly, rounded to three significant digits so that the table holds it exactly."""
    return float(f"{np.exp(generator.uniform(np.log(low), np.log(high))):.3g}")
