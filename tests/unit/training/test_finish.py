"""What a finished run puts into its bundle."""

import dataclasses
import os
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.unit.evaluation.test_evidence import make_images
from tlray.bundle import card
from tlray.bundle.judgement import Limits
from tlray.bundle.spec import BundleSpec
from tlray.config.training import TrainConfig
from tlray.data import audit
from tlray.engines.kinds import REFERENCE
from tlray.errors import DataError
from tlray.evaluation import out_of_fold
from tlray.evaluation.measurement import SplitEvaluation, measure_probabilities, with_leak_free
from tlray.evaluation.out_of_fold import Predicted
from tlray.training import finish, wording
from tlray.training.export import Exported
from tlray.training.judgement_fit import Judging, Unseen


def evaluation() -> SplitEvaluation:
    """Six images of three patients; the model is surest of the first two."""
    first = np.array([1.0, 1.0, 0.75, 0.25, 0.75, 0.25], np.float32)
    return measure_probabilities(
        np.array([0, 0, 0, 1, 0, 1]),
        np.stack([first, 1 - first], axis=1),
        ("a", "b"),
        groups=np.array(["p", "p", "q", "q", "r", "r"]),
        image_ids=np.arange(6).astype(str),
        ood_scores=np.array([0.0, 0.0, 0.5, 0.25, 0.5, 0.25], np.float32),
        limits=Limits(),
    )


@pytest.mark.parametrize(
    ("backbone", "weights", "of_bundle", "of_report"),
    [
        ("InceptionV3", "imagenet", "imagenet", "imagenet"),
        ("InceptionV3", "/runs/a.h5", "a.h5", "/runs/a.h5"),
        ("/models/own.keras", "imagenet", "own.keras", "/models/own.keras"),
        ("/models/own.keras", "/runs/a.h5", "a.h5", "/runs/a.h5"),
    ],
)
def test_the_weights_of_an_own_backbone_are_those_of_its_file(backbone, weights, of_bundle, of_report):
    config = TrainConfig(data="d", out="o", backbone=backbone, weights=weights, preprocessing="unit").resolved()
    images = make_images()
    spec = finish.make_spec(
        config, dataclasses.replace(images, findings=images.findings | audit.audit(images.table)), "unit"
    )
    assert (spec.weights, spec.backbone) == (of_bundle, os.path.basename(backbone))
    assert f"- Starting weights: {of_bundle}\n" in card.model_card(spec)
    assert wording.settings(config, "unit", None)["weights"] == of_report


def test_the_report_shows_the_settings_that_were_found():
    config = TrainConfig(data="d", out="o", seed=3).resolved()
    shown = wording.settings(config, "symmetric", None)
    assert (shown["preprocessing"], shown["probe"], shown["seed"]) == ("symmetric", None, 3)
    assert next(iter(shown.items())) == ("trained_on", "images that are read in every epoch, without augmentation")


def test_the_report_leaves_out_settings_that_changed_nothing():
    def shown(**settings: Any) -> set[str]:
        return set(wording.settings(TrainConfig(data="d", out="o", **settings).resolved(), "unit", None))

    tuning = {"trainable_layers", "epochs", "learning_rate", "batch_norm", "dropout", "augmentation"}
    probing = {"depths", "inverse_penalty", "folds", "learning_curve"}
    of_probe = shown(method="probe")
    assert not of_probe & (tuning | {"cache", "views", "hidden_units", "reduce_lr_factor"})
    assert probing | {"seed", "class_weights", "batch_size"} <= of_probe
    of_fine_tuning = shown()
    assert tuning <= of_fine_tuning
    assert not of_fine_tuning & (probing | {"cache", "views", "reduce_lr_factor", "batch_norm_momentum"})
    both = shown(method="lp-ft", reduce_lr_patience=3, cache="off")
    assert tuning | probing | {"cache", "reduce_lr_factor"} <= both
    assert "augmentation" not in shown(method="lp-ft")  # on stored features of the images as they are


def test_the_reference_for_drift_is_of_images_that_are_new_to_the_model():
    found = finish._validation_predictions(with_leak_free(evaluation(), {"0", "1"}))
    assert found is not None
    assert found.class_counts == (2, 2)
    assert found.confidences == (0.75,) * 4
    assert found.ood_scores == (0.25, 0.25, 0.5, 0.5)
    assert found.num_independent == 2


def test_there_is_no_reference_where_the_model_knows_all_images():
    everything = {str(number) for number in range(6)}
    assert finish._validation_predictions(with_leak_free(evaluation(), everything)) is None


def test_suspects_are_found_by_their_ids():
    """The images are in another order than those of the run; the third of them has the label of the others' class."""
    images = make_images()
    labels = np.array([1, 0, 0, 1, 0])
    logits_BK = np.array([[0, 4], [4, 0], [0, 5], [0, 4], [4, 0]], np.float32)
    unseen = Unseen(
        logits_BK=logits_BK, image_ids=["19.png", "04.png", "02.png", "01.png", "00.png"], labels=labels,
        groups=np.arange(5).astype(str), assumed_shares=np.array([0.5, 0.5]), origin="",
    )  # fmt: skip
    (found,) = finish._suspects(images, unseen)
    assert (found["image_id"], found["uri"], found["split"]) == ("02.png", "/data/02.png", "train")
    assert (found["label"], found["suggested"]) == images.classes
    assert found["label_prob"] == pytest.approx(1 - found["suggested_prob"], abs=1e-6)
    assert found["suggested_prob"] > 0.99


def test_the_predictions_that_are_kept_give_the_figures_of_the_cross_validation():
    images = make_images()
    rows = [*range(20)]
    unseen = Unseen(
        logits_BK=np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32),
        image_ids=[f"{number:02d}.png" for number in rows], labels=np.array(rows) % 2,
        groups=np.array([images.group_of[f"{number:02d}.png"] for number in rows]),
        assumed_shares=np.array([0.25, 0.75]), origin="",
    )  # fmt: skip
    spec = BundleSpec(
        classes=images.classes, image_size_px=8, preprocessing="unit", backbone="b", weights="w", prior=(0.5, 0.5)
    )
    crossed = finish._cross_validated(unseen, images, spec)
    calibrated = {out_of_fold.BEFORE: Predicted(image_ids=["00.png"], labels=np.array([0]), probs_BK=np.eye(2)[:1])}
    exported = Exported(judging=Judging(shift=np.zeros(2), temperature=1.0, refer_below=0.5, predicted=calibrated))
    assert finish._predicted_unseen(exported, None) == calibrated
    kept = finish._predicted_unseen(exported, crossed)
    assert list(kept) == [out_of_fold.BEFORE, out_of_fold.CROSS_VALIDATION]
    found = out_of_fold.measure(out_of_fold.to_table(kept, spec.classes), images, spec.classes)
    assert found == {"cross_validation": crossed.metrics}
    assert crossed.metrics["num_images"] == 20


def test_images_that_have_changed_are_not_measured(monkeypatch):
    """The exported model is measured on the files of valid and test, whose labels belong to the earlier pixels."""
    names = ("image_id", "split", "error_code")
    rows = pa.table(
        dict(zip(names, (["a", "b", "c"], ["valid", "test", "test"], [None, "changed", "empty"]), strict=True))
    )
    images = SimpleNamespace(split=lambda name: rows.filter(pc.field("split") == name), group_of={})
    config = SimpleNamespace(use_gpu=False, quiet=True, batch_size=2)
    run: Any = SimpleNamespace(config=config, images=images, available=None, paths=SimpleNamespace(partial_bundle="b"))
    monkeypatch.setattr(finish.plans, "plan_scoring", lambda *_, **__: None)
    monkeypatch.setattr(finish.score, "predict", lambda *given, **_: iter([given[3]]))
    with pytest.raises(
        DataError, match=r"Images have changed .* \(1 so far, for example 'b'\)\..* --resume, or begin anew"
    ):
        finish._evaluate(run, REFERENCE, cast("Any", None), "0")
