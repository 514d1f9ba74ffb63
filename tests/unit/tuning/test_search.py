"""The training of a sweep's best settings."""

import pytest

from tlray.config.commands import SweepConfig
from tlray.config.training import Augmentation
from tlray.tuning import search


@pytest.mark.parametrize(
    ("best_epoch", "expected"), [(0, ("probe", (), 0.3, 1, 15)), (2, ("lp-ft", (512,), 0.5, 2, 5))]
)
def test_a_probe_is_trained_without_the_settings_of_fine_tuning(best_epoch, expected):
    config = SweepConfig(data="d", out="o", views=3, augmentation=Augmentation(zoom=0.1))
    trial = {
        "depths": 3, "inverse_penalty": 0.1, "learning_rate": 1e-3, "dropout": 0.5, "hidden_layers": 1, "views": 2,
        "trainable_layers": 5, "best_epoch": best_epoch,
    }  # fmt: skip
    best = search.best_config(config, trial)
    assert (best.method, best.hidden_units, best.dropout, best.views, best.trainable_layers) == expected
    assert (best.depths, best.inverse_penalty) == (3, 0.1)
