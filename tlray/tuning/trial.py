"""One trial of a sweep: a probe, then fine-tuning from it, cross-validated, on features in Ray's object store."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import ray
import tensorflow as tf
from ray import tune

from tlray.data import prior
from tlray.data.schedule import Rows, TrainSchedule, view_of
from tlray.features.cache import FeatureReader
from tlray.models import classifier as models
from tlray.models import devices
from tlray.models.layers import leaf_layers
from tlray.probe import regression
from tlray.training import step
from tlray.tuning import comparison
from tlray.tuning.task import TrialTask
from tlray.tuning.trial_table import GroupLosses

PREDICT_BATCH = 256

MAX_BASES_BYTES = 512 * 2**20
"""Size in bytes of the bases kept by a trial process above which it drops those of other depths than its current one.
For N training images and F features, a basis and the features turned into it take 8 (F + N) N bytes, or 8 F N where
N > F: with InceptionV3's five depths 22 MB for 457 images (0.4 s to find), 122 MB for 2,000 (7 s)."""

Bases = dict[tuple[int, int], tuple[regression.Basis, np.ndarray]]
"""Maps fold and number of columns to the basis of the fold's training images and their features turned into it."""


class Trial(tune.Trainable):
    """A trial of Ray Tune. Its first iteration fits the probe, each further one fine-tunes for an epoch in every fold.

    Its config has `settings`: `depths`, `inverse_penalty`, `hidden_layers` (in the head, beside the linear probe),
    `trainable_layers`, `learning_rate`, `dropout`, `views`, `seed`. Without hidden and trainable layers there is no
    fine-tuning. It reports `valid_loss` over the held-out images of all folds, `probe_loss` and `probe_accuracy`,
    `best_loss` with its `standard_error`, `best_accuracy` and `best_epoch` of its best iteration so far (epoch 0: the
    probe), `num_epochs` so far, and `losses`, the `GroupLosses` of the probe and of that iteration. It ends early if
    fine-tuning diverges.
    """

    def setup(self, config: dict[str, Any], task: TrialTask | None = None) -> None:
        """Chooses TensorFlow's devices and takes the features from shared memory; see `TrialTask`."""
        assert task is not None  # noqa: S101
        if task.use_gpu:
            devices.use_gpus()
        else:
            devices.use_cpus(1)
        self.task = task
        self.reader = FeatureReader(task.cache)
        self.bases: Bases = {}
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begins another trial in the same process."""
        self.config = new_config
        self.settings: dict[str, Any] = new_config["settings"]
        self.tail: _Tail | None = None
        self.best: dict[str, Any] = {}
        return True

    def step(self) -> dict[str, Any]:
        """Runs one iteration and returns its results, see `Trial`."""
        epoch = self.iteration
        folds = self.task.folds
        if epoch == 0:
            self.probes = [self._fit_probe(fold) for fold in range(len(folds))]
            logits = [self._probe_logits(found, held) for found, (_, held) in zip(self.probes, folds, strict=True)]
        else:
            if self.tail is None:
                self.tail = _Tail(self.task, self.settings, self.reader, self.probes)
            logits = [self.tail.train_epoch(fold, epoch - 1) for fold in range(len(folds))]
        logits = [each + _shift(self.task, fold) for fold, each in enumerate(logits)]
        held_out = np.concatenate([held for _, held in folds])
        losses, accuracy = _measure(np.concatenate(logits), self.task.labels[held_out])
        loss, sums = float(losses.mean()), np.bincount(self.task.groups[held_out], weights=losses).astype(np.float32)
        if epoch == 0:
            self.best = {"probe_loss": loss, "probe_accuracy": accuracy, "best_loss": np.inf}
            self.best["losses"] = GroupLosses(probe=sums, best=sums)
        if loss < self.best["best_loss"]:
            _, standard_error = comparison.mean_by_group(sums, np.bincount(self.task.groups[held_out]))
            self.best |= {"best_loss": loss, "standard_error": standard_error, "best_accuracy": accuracy}
            self.best |= {"best_epoch": epoch, "losses": dataclasses.replace(self.best["losses"], best=sums)}
        is_probe = not self.settings["hidden_layers"] and not self.settings["trainable_layers"]
        is_last = is_probe or epoch == self.task.epochs or not np.isfinite(loss)
        return {"valid_loss": loss, "num_epochs": epoch, "done": is_last, **self.best}

    def _pooled(self, images: np.ndarray, num_columns: int) -> np.ndarray:
        return self.reader.take(self.task.rows[images, 0], ["pooled"])[0][:, -num_columns:]

    def _fit_probe(self, fold: int) -> dict[str, np.ndarray]:
        train, _ = self.task.folds[fold]
        num_columns = sum(self.task.depth_sizes[-self.settings["depths"] :])
        if (fold, num_columns) not in self.bases:
            self.bases = _kept(self.bases, num_columns)
            features = self._pooled(train, num_columns)
            basis = regression.basis(features)
            self.bases[fold, num_columns] = basis, basis.turn(features)
        basis, turned = self.bases[fold, num_columns]
        model = regression.regression(balanced=True)
        regression.solve(model, turned, self.task.labels[train], inverse_penalty=self.settings["inverse_penalty"])
        return basis.turn_back(*regression.coefficients(model))

    def _probe_logits(self, arrays: Mapping[str, np.ndarray], images: np.ndarray) -> np.ndarray:
        features = self._pooled(images, len(arrays["mean"])).astype(np.float32)
        return (features - arrays["mean"]) / arrays["deviation"] @ arrays["weights"] + arrays["bias"]


class _Tail:
    """The part of the network that is fine-tuned. One model, traced once, takes the state of each fold in turn."""

    def __init__(
        self,
        task: TrialTask,
        settings: Mapping[str, Any],
        reader: FeatureReader,
        starts: Sequence[Mapping[str, np.ndarray]],
    ) -> None:
        self.task, self.settings, self.reader = task, settings, reader
        keras.utils.set_random_seed(settings["seed"])
        tail = models.from_json(task.tail, ray.get(task.tail_weights[0]))
        trained = set(task.tail_layers[max(0, len(task.tail_layers) - settings["trainable_layers"]) :])
        for layer in leaf_layers(tail):
            if layer.name in task.tail_layers and layer.name not in trained:
                layer.trainable = False
            if layer.name == models.HEAD_DROPOUT_LAYER:
                layer.rate = settings["dropout"]
        self.model = models.with_hidden_layers(
            tail,
            hidden_units=[task.hidden_units] * settings["hidden_layers"],
            dropout=settings["dropout"],
            num_features=len(starts[0]["mean"]),
        )
        self.optimizer = keras.optimizers.Adam(settings["learning_rate"])
        self.optimizer.build(self.model.trainable_variables)
        self.states: list[list[np.ndarray]] = []
        for start in starts:
            models.set_linear_head(self.model, **_widened(start, sum(task.depth_sizes)))
            self.states.append(self._state())
        self._train_step = tf.function(self._update, autograph=False)
        self._predict = tf.function(lambda features: self.model(features, training=False), autograph=False)

    def _variables(self) -> list[Any]:
        """Returns all variables that training changes: weights, the optimizer's moments, and the seeds of dropout."""
        return [*self.model.variables, *self.optimizer.variables]

    def _state(self) -> list[np.ndarray]:
        return [variable.numpy() for variable in self._variables()]

    def _take(self, rows: np.ndarray) -> list[Any]:
        return [tf.constant(each) for each in self.reader.take(rows, self.task.cache.names[1:])]

    def train_epoch(self, fold: int, epoch: int) -> np.ndarray:
        """Trains once on each training image of a fold; returns the logits of those held out, see `_predict_all`."""
        for variable, value in zip(self._variables(), self.states[fold], strict=True):
            variable.assign(value)
        train, held = self.task.folds[fold]
        self._train(train, epoch)
        self.states[fold] = self._state()
        return self._predict_all(held)

    def _train(self, images: np.ndarray, epoch: int) -> None:
        schedule = TrainSchedule(
            num_images=len(images),
            batch_size=self.task.batch_size,
            num_workers=1,
            rank=0,
            seed=self.settings["seed"],
            num_epochs=epoch + 1,
            first_epoch=epoch,
        )
        labels = self.task.labels[images]
        class_weights = _class_weights(self.task, labels)
        for start in range(0, schedule.num_rows, self.task.batch_size):
            rows = schedule.rows(np.arange(start, min(start + self.task.batch_size, schedule.num_rows)))
            view = self._views(rows, len(images))
            weights = rows.weight * class_weights[labels[rows.index]] / rows.weight.sum()
            self._train_step(
                self._take(self.task.rows[images[rows.index], view]),
                tf.constant(labels[rows.index], tf.int32),
                tf.constant(weights, tf.float32),
            )

    def _views(self, rows: Rows, num_images: int) -> np.ndarray:
        return view_of(rows, num_images=num_images, num_views=self.settings["views"], seed=self.settings["seed"])

    def _update(self, features: list[Any], labels: Any, weights: Any) -> None:
        step.update(self.model, self.optimizer, lambda: self.model(features, training=True), labels, weights)

    def _predict_all(self, images: np.ndarray) -> np.ndarray:
        """Returns the logits of some images, float32 [images, classes]."""
        rows = self.task.rows[images, 0]
        batches = [rows[start : start + PREDICT_BATCH] for start in range(0, len(rows), PREDICT_BATCH)]
        return np.concatenate([self._predict(self._take(batch)).numpy() for batch in batches])


def _class_weights(task: TrialTask, labels: np.ndarray) -> np.ndarray:
    return prior.class_weights(labels, task.num_classes, balanced=True)


def _shift(task: TrialTask, fold: int) -> np.ndarray:
    """Returns what is added to a fold's logits so that they assume the class shares of all images.

    The class shares of the fold's training images would not do: a class that is over-represented among these is
    under-represented among those held out.
    """
    labels = task.labels[task.folds[fold][0]]
    wanted = prior.class_shares(task.labels, task.num_classes)
    return prior.weighted_logit_shift(labels, _class_weights(task, labels), wanted)


def _widened(arrays: Mapping[str, np.ndarray], num_columns: int) -> dict[str, np.ndarray]:
    """Returns a probe of the last columns as one of all columns: an infinite deviation keeps the others at 0."""
    missing = num_columns - len(arrays["mean"])
    return {
        "mean": np.pad(arrays["mean"], (missing, 0)),
        "deviation": np.pad(arrays["deviation"], (missing, 0), constant_values=np.inf),
        "weights": np.pad(arrays["weights"], ((missing, 0), (0, 0))),
        "bias": arrays["bias"],
    }


def _kept(bases: Bases, num_columns: int) -> Bases:
    """Returns the bases to keep: all of them, or only those of one depth where all take too much memory."""
    rotations = [basis.rotation for basis, _ in bases.values() if basis.rotation is not None]
    if sum(array.nbytes for array in [*rotations, *(turned for _, turned in bases.values())]) <= MAX_BASES_BYTES:
        return bases
    return {key: kept for key, kept in bases.items() if key[1] == num_columns}


def _measure(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the log loss of each image, nats, and the accuracy; infinite losses and 0 if any logit is not finite."""
    if not np.isfinite(logits).all():  # fine-tuning diverged: an earlier iteration stays the trial's best
        return np.full(len(labels), np.inf), 0.0
    shifted = (logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    return losses, float((logits.argmax(axis=1) == labels).mean())
