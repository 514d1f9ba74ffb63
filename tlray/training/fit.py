"""Fine-tunes a run's model on Ray Train's workers; the driver's side of `training/loop`."""

import json
import math
import os
import signal
from typing import Any

import numpy as np
import ray
import ray.train
from ray.train.backend import Backend, BackendConfig

from tlray.cluster import connection
from tlray.cluster.plans import TrainPlan
from tlray.cluster.ports import free_ports
from tlray.config.training import TrainConfig
from tlray.config.values import TRAIN_PRIOR
from tlray.errors import TlrayError
from tlray.features.cache import FeatureCache
from tlray.files import storage
from tlray.probe.regression import Probe
from tlray.training import checkpoint, live_progress
from tlray.training.paths import CHECKPOINTS, RunPaths
from tlray.training.stages import Run
from tlray.training.task import TrainTask

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""The file in which Ray Train lists a run's checkpoints."""


class _TensorFlowWorkers(BackendConfig):
    """Makes Ray Train set TF_CONFIG in its workers, from which `tf.distribute` knows their addresses.

    Ray's own `TensorflowConfig` sets the same variable, but it loads TensorFlow in the process that only controls the
    workers, before they are started, and chooses Keras 2 for them.
    """

    @property
    def backend_cls(self) -> type[Backend]:
        return _TensorFlowBackend


class _TensorFlowBackend(Backend):
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:  # noqa: ARG002
        addresses: list[str] = []
        while len(set(addresses)) < max(1, len(addresses)):  # workers on one node may draw the same port
            addresses = worker_group.execute(_free_address)
        ranks = range(len(worker_group))
        told: Any = [worker_group.execute_single_async(rank, _set_tf_config, addresses, rank) for rank in ranks]
        ray.get(told)


def _free_address() -> str:
    """Returns an address HOST:PORT of this worker's node at which nobody listens."""
    host = ray.util.get_node_ip_address()
    (port,) = free_ports(1)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _set_tf_config(addresses: list[str], rank: int) -> None:
    """Sets TF_CONFIG in one worker, see https://www.tensorflow.org/guide/distributed_training#TF_CONFIG."""
    content = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
    os.environ["TF_CONFIG"] = json.dumps(content)


def _train_worker(config: dict[str, Any]) -> None:
    from tlray.training import loop  # noqa: PLC0415 (TensorFlow only in workers)

    loop.run(config["task"])


def fit(
    run: Run, *, start: Probe | None = None, cache: FeatureCache | None = None
) -> tuple[list[dict[str, float]], list[np.ndarray]]:
    """Trains on Ray Train's workers, continuing from the last checkpoint if there is one.

    Args:
        run: The run.
        start: The probe that the head starts from.
        cache: Features to train the tail on, in place of images.

    Returns:
        The history, one row per epoch (epoch 0: the probe), and the weights of the best epoch.

    Raises:
        TlrayError: Training failed or diverged; the message says what to do.
    """
    config, images, model = run.config, run.images, run.model
    train_table, valid_table = images.split("train"), images.split("valid")
    posted = live_progress.start()
    architecture, weights = model.architecture, model.weights
    if cache is not None:
        assert model.tail is not None and model.tail_weights is not None  # noqa: PT018, S101
        architecture, weights = model.tail, model.tail_weights
    task = TrainTask(
        config=config,
        architecture=architecture,
        initial_weights=[ray.put(weights)],
        start=start,
        checkpoint=lost_checkpoint(run.paths),
        cache=cache,
        train_table=[ray.put(train_table)],
        valid_table=[ray.put(valid_table)],
        num_train=train_table.num_rows,
        num_valid=valid_table.num_rows,
        class_weights=images.class_weights(balanced=config.class_weights),
        logit_shift=tuple(images.logit_shift(TRAIN_PRIOR, balanced=config.class_weights).tolist()),
        intensity_range=images.intensity_range,
        share=run.plan.share,
        board=posted,
        history_file=run.paths.history,
    )
    num_steps = -(-task.num_train // config.batch_size)
    with live_progress.shown(posted, config, steps_per_epoch=num_steps):
        weights = connection.get(connection.start_here(_run, task, run.plan, run.paths))
    return _read_history(run.paths), weights


def has_checkpoint(paths: RunPaths) -> bool:
    """Tells whether a run has saved a checkpoint to continue from."""
    return bool(_checkpoint_names(paths))


def lost_checkpoint(paths: RunPaths) -> str | None:
    """Returns the checkpoint to continue from after Ray Train was killed while it wrote its list of checkpoints.

    Ray Train overwrites that list in place, so that an interruption may leave an empty one, with which it refuses to
    start. Such a list is deleted here. The training continues from the last checkpoint that every rank has saved whole.

    Returns:
        The checkpoint's location; None if Ray Train can read its list, or has none.
    """
    snapshot = storage.join(paths.checkpoints, SNAPSHOT)
    if not storage.exists(snapshot):
        return None
    try:
        json.loads(storage.read_bytes(snapshot))
    except ValueError:
        storage.delete(snapshot)
    else:
        return None
    num_ranks = {}
    for location in (storage.join(paths.checkpoints, name) for name in sorted(_checkpoint_names(paths))):
        with storage.local_copy(location) as directory:
            num_ranks[location] = checkpoint.count_ranks(directory)
    # The last of those with the most ranks: a later one with fewer was not finished.
    last = max(reversed(num_ranks), key=num_ranks.__getitem__, default=None)
    return last if last and num_ranks[last] else None


def _checkpoint_names(paths: RunPaths) -> list[str]:
    names = storage.list_names(paths.checkpoints)
    return [name for name in names if name.startswith("checkpoint_2")]


def _run(task: TrainTask, plan: TrainPlan, paths: RunPaths) -> list[np.ndarray]:
    """Runs Ray Train and returns the best weights; in a process of its own, as Ray's trainer imports TensorFlow."""
    from ray.train.tensorflow import TensorflowTrainer  # noqa: PLC0415

    config = task.config
    trainer = TensorflowTrainer(
        _train_worker,
        train_loop_config={"task": task},
        tensorflow_config=_TensorFlowWorkers(),  # pyright: ignore[reportArgumentType]
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": plan.cpus_per_worker}
            | ({"GPU": plan.gpus_per_worker} if plan.gpus_per_worker else {}),
        ),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS,
            storage_path=paths.out,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            callbacks=[live_progress.FailurePoster(task.board)],
        ),
    )
    handler = signal.getsignal(signal.SIGINT)
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _explained(error, config) from error
    finally:
        # Ray Train sets a handler that holds its controller, a process of 0.4 GB, which would live on. (A task of Ray
        # runs in its process's main thread, where handlers may be set.)
        signal.signal(signal.SIGINT, handler)
    last = result.checkpoint.path if result.checkpoint is not None else task.checkpoint
    assert last is not None  # noqa: S101
    _delete_orphans(paths, last)
    if not any(math.isfinite(row["valid_loss"]) for row in _read_history(paths)):
        raise TlrayError(
            "Training diverged: the validation loss is not a number in any epoch. Start again with --overwrite and a "
            f"lower --learning-rate (it was {config.initial_learning_rate:g})."
        )
    with storage.local_copy(storage.join(paths.checkpoints, os.path.basename(last))) as directory:
        return checkpoint.load_best_weights(directory)


def _delete_orphans(paths: RunPaths, last: str) -> None:
    """Deletes the checkpoints that killed workers left: they are large, and Ray Train does not delete them."""
    for name in _checkpoint_names(paths):
        if name != os.path.basename(last):
            storage.delete(storage.join(paths.checkpoints, name))


def _explained(error: ray.train.TrainingFailedError, config: TrainConfig) -> TlrayError:
    """Returns the failed training's cause as an error that a user can act on."""
    failures = list(getattr(error, "worker_failures", {}).values())
    for failure in failures:
        cause: BaseException | None = failure
        while cause is not None:
            cause = getattr(cause, "cause", None) or cause.__cause__
            if isinstance(cause, TlrayError):
                return cause
    first = str(failures[0]) if failures else str(error)
    return TlrayError(
        f"Training failed more often than --max-failures {config.max_failures} allows. Fix the cause and continue with "
        f"--resume. The last failure:\n{first.strip()[-2000:]}"
    )


def _read_history(paths: RunPaths) -> list[dict[str, float]]:
    lines = storage.read_bytes(paths.history).decode().splitlines()
    names = lines[0].split(",")
    return [dict(zip(names, map(float, line.split(",")), strict=True)) for line in lines[1:]]
