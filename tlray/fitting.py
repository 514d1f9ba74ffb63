"""Fine-tuning a run's model on Ray Train's workers."""

import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.train

from tlray import board, storage
from tlray.cluster import TrainPlan
from tlray.config import TrainConfig
from tlray.dataset import Dataset
from tlray.errors import TlrayError
from tlray.traintask import TrainTask

HISTORY = "history.csv"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedModel:
    """A classifier that was built once, for all workers.

    Attributes:
        architecture: For training, as JSON.
        export_architecture: The same in float32.
        weights: The model's weights, in the object store.
        preprocessing: What the backbone wants to see.
    """

    architecture: str
    export_architecture: str
    weights: "ray.ObjectRef[list[np.ndarray]]"
    preprocessing: str


def prepare(config: TrainConfig, num_classes: int) -> PreparedModel:
    """Builds the classifier of a config; to be run by `cluster.start_here`."""
    import keras  # noqa: PLC0415 (TensorFlow only in this process)

    from tlray import devices  # noqa: PLC0415
    from tlray import model as models  # noqa: PLC0415

    devices.use_cpus()  # the workers want all of the GPUs
    keras.utils.set_random_seed(config.seed)
    preprocessing = config.preprocessing or models.application_preprocessing(config.backbone)
    classifier = models.build_classifier(config, preprocessing=preprocessing, num_classes=num_classes)
    export_architecture = architecture = classifier.to_json()
    if config.precision == "bfloat16":
        architecture = models.mixed_bfloat16(architecture)
    return PreparedModel(
        architecture=architecture,
        export_architecture=export_architecture,
        weights=ray.put(models.get_weights(classifier)),
        preprocessing=preprocessing,
    )


def _train_worker(config: dict[str, Any]) -> None:
    # Ray's TensorFlow backend has just chosen Keras 2 for this process.
    os.environ["TF_USE_LEGACY_KERAS"] = "0"
    from tlray import trainloop  # noqa: PLC0415 (TensorFlow only in workers)

    trainloop.run(config["task"])


def fit(
    config: TrainConfig, plan: TrainPlan, images: Dataset, model: PreparedModel, *, artifact: str
) -> list[dict[str, float]]:
    """Trains on Ray Train's workers, from the last checkpoint if there is one, and returns the history.

    Rank 0 writes the best epoch's model files.

    Args:
        config: A resolved config.
        plan: How the cluster is shared.
        images: The run's images.
        model: From `prepare`.
        artifact: Where the model files go, a path or URI.

    Raises:
        TlrayError: Training failed or diverged, with what to do.
    """
    train_table, valid_table = images.split("train"), images.split("valid")
    posted = board.start()
    task = TrainTask(
        config=config,
        architecture=model.architecture,
        export_architecture=model.export_architecture,
        initial_weights=[model.weights],
        train_table=[ray.put(train_table)],
        valid_table=[ray.put(valid_table)],
        num_train=train_table.num_rows,
        num_valid=valid_table.num_rows,
        class_weights=images.balanced_class_weights() if config.class_weights else (1.0,) * len(images.classes),
        intensity_range=images.intensity_range,
        share=plan.share,
        board=posted,
        artifact=artifact,
        history_file=storage.join(config.out, HISTORY),
    )
    with _silent_stderr():
        from ray.train.tensorflow import TensorflowTrainer  # noqa: PLC0415 (brings TensorFlow)
    trainer = TensorflowTrainer(
        _train_worker,
        train_loop_config={"task": task},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": plan.cpus_per_worker}
            | ({"GPU": plan.gpus_per_worker} if plan.gpus_per_worker else {}),
        ),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS,
            storage_path=config.out,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            callbacks=[board.FailurePoster(posted)],
        ),
    )
    num_steps = -(-task.num_train // config.batch_size)
    with _interrupts_as_before(), board.shown(posted, config, steps_per_epoch=num_steps):
        try:
            result = trainer.fit()
        except SystemExit:
            raise KeyboardInterrupt from None  # how Ray Train's own handler of Ctrl-C ends
        except ray.train.TrainingFailedError as error:
            raise _explained(error, config) from error
    _delete_orphans(config, result.checkpoint)
    history = _read_history(config)
    if not any(math.isfinite(row["valid_loss"]) for row in history):
        raise TlrayError(
            f"Training diverged: the validation loss is no number in any epoch. Begin anew with a lower "
            f"--learning-rate (it was {config.learning_rate:g}) and --overwrite."
        )
    return history


def _delete_orphans(config: TrainConfig, last: ray.train.Checkpoint | None) -> None:
    """Deletes the checkpoints that killed workers had begun: Ray Train forgets them, and they are large."""
    directory = storage.join(config.out, CHECKPOINTS)
    for name in storage.list_names(directory):
        if name.startswith("checkpoint_2") and last is not None and name != os.path.basename(last.path):
            storage.delete(storage.join(directory, name))


@contextmanager
def _interrupts_as_before() -> Iterator[None]:
    """Takes back the handler of Ctrl-C that Ray Train leaves, which ends nothing once its training is over."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Hides what TensorFlow's C++ writes while it is imported, before any setting of its logs is read."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _explained(error: ray.train.TrainingFailedError, config: TrainConfig) -> TlrayError:
    """Finds the cause that a user can do something about."""
    failures = list(getattr(error, "worker_failures", {}).values())
    for failure in failures:
        cause: BaseException | None = failure
        while cause is not None:
            cause = getattr(cause, "cause", None) or cause.__cause__
            if isinstance(cause, TlrayError):
                return cause
    first = str(failures[0]) if failures else str(error)
    return TlrayError(
        f"Training failed (and is continued by itself at most --max-failures {config.max_failures} times). Mend the "
        f"cause and continue with --resume. The last failure:\n{first.strip()[-2000:]}"
    )


def _read_history(config: TrainConfig) -> list[dict[str, float]]:
    lines = storage.read_bytes(storage.join(config.out, HISTORY)).decode().splitlines()
    names = lines[0].split(",")
    return [dict(zip(names, map(float, line.split(",")), strict=True)) for line in lines[1:]]
