"""Which images a run's calibration is fitted on: only a probe is judged by what probes say about other images."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tlray.cluster import plans
from tlray.config.training import TrainConfig
from tlray.timing import Timing
from tlray.training import fit, probing
from tlray.training.judgement_fit import Unseen
from tlray.training.learn import learn
from tlray.training.stages import Learned

UNSEEN = Unseen(
    logits_BK=np.zeros((4, 2)), image_ids=["1", "2", "3", "4"], labels=np.array([0, 1, 0, 1]),
    groups=np.arange(4).astype(str), assumed_shares=np.array([0.5, 0.5]), origin="simulated images",
)  # fmt: skip
WEIGHTS = [np.ones(2)]


def learned(
    monkeypatch: pytest.MonkeyPatch,
    valid_losses: list[float],
    *,
    method: Any = "lp-ft",
    num_workers: int = 1,
    unseen: Unseen | None = UNSEEN,
    has_enough: bool = False,
) -> Learned:
    """Learns with stand-ins for all that computes; the history has the losses of the probe and of each epoch."""
    monkeypatch.setattr(plans, "plan_scoring", lambda *_, **__: None)
    stand_ins = {"compute": None, "read_pooled": None, "fit": "probe", "out_of_fold": unseen}
    for name, value in (stand_ins | {"has_enough_validation": has_enough}).items():
        monkeypatch.setattr(probing, name, lambda *_, _value=value, **__: _value)
    history = [{"epoch": float(epoch), "valid_loss": loss} for epoch, loss in enumerate(valid_losses)]
    monkeypatch.setattr(fit, "fit", lambda *_, **__: (history, WEIGHTS))
    run: Any = SimpleNamespace(
        config=TrainConfig(data="d", out="o", method=method, num_workers=num_workers),
        images=None, model=SimpleNamespace(network="network"), paths=SimpleNamespace(features="f"), available=None,
        is_cached=False,
    )  # fmt: skip
    found = learn(run, Timing())
    assert found.unseen is unseen  # it is cross-validated on them, and suspect labels are found by them, in any case
    return found


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize(
    ("valid_losses", "is_probe"),
    [
        ([0.5], True),
        ([0.5, 0.625, 0.75], True),
        ([0.5, 0.5], True),  # of equal losses the first counts
        ([0.5, float("nan")], True),
        ([0.5, 0.375, 0.75], False),
        ([0.5, 0.625, 0.75, 0.25], False),  # a run that was continued for more epochs
    ],
)
def test_predictions_of_probes_judge_the_model_only_if_it_is_one(monkeypatch, valid_losses, is_probe, num_workers):
    found = learned(monkeypatch, valid_losses, num_workers=num_workers)
    assert found.trained.weights is WEIGHTS
    assert found.trained.out_of_fold is (UNSEEN if is_probe else None)


def test_validation_images_judge_a_probe_that_has_enough_of_them_or_no_other_predictions(monkeypatch):
    assert learned(monkeypatch, [0.5, 0.75], has_enough=True).trained.out_of_fold is None
    assert learned(monkeypatch, [0.5, 0.75], unseen=None).trained.out_of_fold is None


@pytest.mark.parametrize("has_enough", [False, True])
def test_the_recipe_probe_is_judged_in_the_same_way(monkeypatch, has_enough):
    found = learned(monkeypatch, [], method="probe", has_enough=has_enough)
    assert (found.trained.weights, found.history) == (None, [])
    assert found.trained.out_of_fold is (None if has_enough else UNSEEN)
