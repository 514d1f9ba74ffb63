"""The training loop of a worker, with TensorFlow's MultiWorkerMirroredStrategy over the ranks of Ray Train.

Every rank runs the same number of steps and reports equally often, or the collective operations would wait for ever.
Keras' own `fit` does not run under this strategy, so the loop is written out.

The training loss is weighted by class. The accuracies and the validation loss, which selects the best epoch, are those
of the logits as they are exported with the prior `train`: shifted to the class shares of the training images.
"""

import contextlib
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import ray
import ray.train
import tensorflow as tf

from tlray.cluster import ray_internals
from tlray.data.schedule import EvalSchedule, TrainSchedule
from tlray.files import storage
from tlray.models import classifier as models
from tlray.models import trunk
from tlray.models.layers import leaf_layers
from tlray.training import checkpoint, plateau, step
from tlray.training.batches import Batches
from tlray.training.checkpoint import RunState
from tlray.training.history import _start_row, history_csv
from tlray.training.strategy import make_strategy, set_up_devices
from tlray.training.task import TrainTask

POST_INTERVAL_S = 0.5

ROUND_S = 0.05
"""Seconds that Ray Data's loop rests between two rounds: long, because it takes CPU time from the training step."""


def run(task: TrainTask) -> None:
    """Trains on this rank, continuing from the last checkpoint if there is one. Called on every rank."""
    context = ray.train.get_context()
    ray_internals.rest_between_rounds(ROUND_S)
    set_up_devices(use_gpu=task.config.use_gpu, workers_on_node=context.get_local_world_size())
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    with _checkpoint(task) as directory:
        start = Path(directory) if directory else None
        trainer = Trainer(task, rank=rank, num_workers=num_workers, start=start)
    trainer.train()


def _checkpoint(task: TrainTask) -> AbstractContextManager[str | Path | None]:
    """Gives the directory of the checkpoint to continue from, None without one."""
    if (saved := ray.train.get_checkpoint()) is not None:
        return saved.as_directory()
    return storage.local_copy(task.checkpoint) if task.checkpoint else contextlib.nullcontext()


class Trainer:
    """One rank's part of a training run.

    Args:
        task: The inputs of the worker.
        rank: This worker's rank.
        num_workers: Number of ranks.
        start: Directory of the checkpoint to continue from, if any.

    Attributes:
        rank: This worker's rank.
        state: State of the run so far; complete on rank 0 after each epoch.
    """

    def __init__(self, task: TrainTask, *, rank: int, num_workers: int, start: Path | None = None) -> None:
        self.task = task
        self.config = task.config
        self.rank = rank
        self.num_workers = num_workers
        keras.utils.set_random_seed(self.config.seed)
        self.strategy = make_strategy(use_gpu=self.config.use_gpu)
        initial = ray.get(task.initial_weights[0])
        self.state = RunState(weights=[], optimizer=[], best_weights=[], history=[])
        if start is not None:
            self.state = checkpoint.load(start)
        weights = self.state.weights or initial
        architecture = task.architecture
        if self.config.precision == "bfloat16":
            architecture = models.mixed_bfloat16(architecture)
        if task.cache is not None:
            self.trunk = _as_float32
        else:
            # Made from a copy outside the strategy: variables that become constants need not be mirrored.
            self.trunk = trunk.as_constant(trunk.split(models.from_json(architecture, weights))[0])
        with self.strategy.scope():
            self.model = models.from_json(architecture, weights)
            self.tail = self.model if task.cache is not None else trunk.split(self.model)[1]
            self.optimizer = keras.optimizers.Adam(self.config.initial_learning_rate)
            self.optimizer.build(self.model.trainable_variables)
        self.seeds = [variable for variable in self.model.variables if "seed_generator" in variable.path]
        for index, variable in enumerate(self.seeds):
            variable.assign(checkpoint.first_seed(self.config.seed, index=index, rank=rank))
        if start is not None:
            self._restore(start)
        elif task.start is not None:
            models.set_linear_head(self.model, **task.start.arrays())
            self.state.history.append(_start_row(task.start, self.config))
        if not self.state.best_weights:
            self.state.best_weights = models.get_weights(self.model)
        self.batches = Batches(task)
        self._train_step = tf.function(self._replicated(self._train_replica), autograph=False)
        self._eval_step = tf.function(self._replicated(self._eval_replica), autograph=False)
        self._sum_over_ranks = tf.function(self._reduce, autograph=False)

    # -- state

    def _restore(self, directory: Path) -> None:
        for variable, value in zip(self.optimizer.variables, self.state.optimizer, strict=True):
            variable.assign(value)
        # A rank that the saved run did not have starts its dropout anew.
        saved = checkpoint.load_seeds(directory, self.rank)
        for variable, value in zip(self.seeds, saved or [], strict=saved is not None):
            variable.assign(value)

    def _report(self, row: dict[str, float]) -> None:
        """Saves this rank's part of a checkpoint, which Ray Train counts only once every rank has saved its part."""
        with tempfile.TemporaryDirectory(prefix="tlray-checkpoint-") as temporary:
            directory = Path(temporary)
            checkpoint.save_seeds(directory, self.rank, [variable.numpy() for variable in self.seeds])
            if self.rank == 0:
                self.state.weights = models.get_weights(self.model)
                self.state.optimizer = [variable.numpy() for variable in self.optimizer.variables]
                checkpoint.save(directory, self.state)
                storage.write_text(self.task.history_file, history_csv(self.state.history))
            ray.train.report(row, checkpoint=ray.train.Checkpoint.from_directory(directory))

    # -- the loop

    def train(self) -> None:
        """Runs the remaining epochs until the last one, early stopping, or a loss that is not finite."""
        first_epoch = int(self.state.history[-1]["epoch"]) if self.state.history else 0
        if first_epoch >= self.config.epochs or self._is_finished():
            return
        schedule = TrainSchedule(
            num_images=self.task.num_train,
            batch_size=self.config.batch_size,
            num_workers=self.num_workers,
            rank=self.rank,
            seed=self.config.seed,
            num_epochs=self.config.epochs,
            first_epoch=first_epoch,
        )
        with contextlib.closing(self.batches.of("train", schedule, schedule.rank_batch_size)) as batches:
            for epoch in range(first_epoch, self.config.epochs):
                self.optimizer.learning_rate = self._learning_rate()
                self._train_epoch(epoch, schedule, batches)
                if self._is_finished():
                    break

    def _train_epoch(self, epoch: int, schedule: TrainSchedule, batches: Iterator[tuple[Any, Any, Any]]) -> None:
        start_s = time.monotonic()
        self._post(epoch, 0, schedule)
        last_post_s = start_s
        totals = tf.zeros(2)
        for number in range(schedule.steps_per_epoch):
            batch = next(batches)
            count = float(schedule.num_images_in_step(number))
            totals += self._train_step(*batch, tf.constant(count))
            if time.monotonic() - last_post_s > POST_INTERVAL_S:
                self._post(epoch, number + 1, schedule)
                last_post_s = time.monotonic()
        if self.config.batch_norm == "local":
            self._average_moving_statistics()
        loss, accuracy = self._mean_over_ranks(totals, schedule.num_images)
        train_time_s = time.monotonic() - start_s
        valid_loss, valid_accuracy = self.evaluate()
        row = {
            "epoch": epoch + 1,
            "loss": loss,
            "accuracy": accuracy,
            "valid_loss": valid_loss,
            "valid_accuracy": valid_accuracy,
            "learning_rate": self._learning_rate(),
            "time_s": time.monotonic() - start_s,
            "images_per_s": schedule.num_images / train_time_s,
            "num_replaced": float(self._sum_over_ranks(tf.constant(float(self.batches.num_replaced)))),
        }
        self.state.history.append(row)
        if self.rank == 0 and plateau.best_epoch(self._valid_losses()) == len(self.state.history) - 1:
            self.state.best_weights = models.get_weights(self.model)
        self._report(row)
        self._post(epoch, schedule.steps_per_epoch, schedule)

    def _average_moving_statistics(self) -> None:
        """Sets the moving means and variances of every rank to those of the batches of all ranks together.

        The variance of a mixture is the mean of the variances plus the variance of the means.
        """
        for layer in leaf_layers(self.model):
            if not isinstance(layer, keras.layers.BatchNormalization) or not layer.trainable:
                continue
            local_mean, local_variance = layer.moving_mean.numpy(), layer.moving_variance.numpy()
            sums = np.stack([local_mean, local_variance + np.square(local_mean)])
            mean, mean_of_squares = self._sum_over_ranks(tf.constant(sums)).numpy() / self.num_workers
            layer.moving_mean.assign(mean)
            layer.moving_variance.assign(np.maximum(mean_of_squares - np.square(mean), 0.0))

    def evaluate(self) -> tuple[float, float]:
        """Returns loss and accuracy on the validation images, exact over all ranks."""
        schedule = EvalSchedule(num_images=self.task.num_valid, num_workers=self.num_workers, rank=self.rank)
        totals = tf.zeros(2)
        for batch in self.batches.of("valid", schedule, self.config.batch_size // self.num_workers):
            totals += self._eval_step(*batch, tf.constant(1.0))
        return self._mean_over_ranks(totals, self.task.num_valid)

    # -- one step, on every rank at once

    def _replicated(self, function: Any) -> Any:
        def run_step(images: Any, labels: Any, weights: Any, count: Any) -> Any:
            return self.strategy.run(function, args=(images, labels, weights, count))

        return run_step

    def _train_replica(self, images: Any, labels: Any, weights: Any, count: Any) -> Any:
        """Makes one update. `count` is the number of rows of the global batch that have weight 1."""
        class_weights = tf.gather(tf.constant(self.task.class_weights, tf.float32), labels)
        logits, loss = step.update(
            self.model,
            self.optimizer,
            lambda: self.tail(self.trunk(images), training=True),
            labels,
            weights * class_weights / count,
            num_replicas=self.num_workers,
        )
        return tf.stack([loss * count, _num_correct(logits + self.task.logit_shift, labels, weights)])

    def _eval_replica(self, images: Any, labels: Any, weights: Any, count: Any) -> Any:
        logits = self.tail(self.trunk(images), training=False) + self.task.logit_shift
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return tf.stack([tf.reduce_sum(losses * weights), _num_correct(logits, labels, weights)]) / count

    def _reduce(self, value: Any) -> Any:
        def all_reduce(local: Any) -> Any:
            # The identity gives the value a device, without which it cannot be reduced.
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(local))

        return self.strategy.run(all_reduce, args=(value,))

    def _mean_over_ranks(self, totals: Any, num_images: int) -> tuple[float, float]:
        loss_sum, num_correct = self._sum_over_ranks(totals).numpy()
        return float(loss_sum) / num_images, float(num_correct) / num_images

    # -- helpers

    def _valid_losses(self) -> list[float]:
        return [row["valid_loss"] for row in self.state.history]

    def _learning_rate(self) -> float:
        return plateau.learning_rate(
            self._valid_losses(),
            initial=self.config.initial_learning_rate,
            factor=self.config.reduce_lr_factor,
            patience=self.config.reduce_lr_patience,
        )

    def _is_finished(self) -> bool:
        if self.state.history and not math.isfinite(self.state.history[-1]["loss"]):
            return True
        return plateau.should_stop(self._valid_losses(), patience=self.config.early_stopping_patience)

    def _post(self, epoch: int, step: int, schedule: TrainSchedule) -> None:
        if self.rank == 0:
            self.task.board.post.remote(
                {
                    "epoch": epoch + 1,
                    "step": step,
                    "steps_per_epoch": schedule.steps_per_epoch,
                    "history": self.state.history,
                }
            )


def _as_float32(features: list[Any]) -> list[Any]:
    return [tf.cast(each, tf.float32) for each in features]


def _num_correct(logits: Any, labels: Any, weights: Any) -> Any:
    hits = tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), labels)
    return tf.reduce_sum(tf.cast(hits, tf.float32) * weights)
