"""The driver of a training run: prepare the data and the model, train, evaluate, export."""

import dataclasses
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.train
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tlray import audit, bundle, cluster, evaluation, labels, listing, manifest, plateau, scoring, storage, streams
from tlray.bundle import BundleSpec
from tlray.cluster import Capacity, TrainPlan
from tlray.config import TrainConfig, parse_columns, parse_intensity_range, to_json
from tlray.errors import ConfigError, DataError, TlrayError, some
from tlray.progress import Progress
from tlray.report import Report, SplitEvaluation
from tlray.traintask import TrainTask

CONFIG = "config.json"
MANIFEST = "manifest.parquet"
AUDIT = "audit.json"
HISTORY = "history.csv"
CHECKPOINTS = "checkpoints"
BUNDLE = "bundle"
PARTIAL_BUNDLE = "bundle.partial"
NAMES = evaluation.NAMES | {CONFIG, MANIFEST, AUDIT, HISTORY, CHECKPOINTS, BUNDLE, PARTIAL_BUNDLE}

# What may differ between a run and its continuation.
_FREE_ON_RESUME = frozenset({"resume", "overwrite", "quiet", "epochs", "num_workers", "max_failures"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a training run came to.

    Attributes:
        out: The run's directory.
        bundle: The exported model.
        num_epochs: Epochs that were trained.
        best_epoch: The exported one, from 1.
        metrics: By split, see `metrics.evaluate_predictions`.
        warnings: What a careful reader must know of the data.
    """

    out: str
    bundle: str
    num_epochs: int
    best_epoch: int
    metrics: Mapping[str, Mapping[str, Any]]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """The images of a run, read once.

    Attributes:
        table: The run's manifest: `manifest.SCHEMA` and `streams.INSPECTION_COLUMNS`.
        findings: See `audit.audit`, and the `intensity_range`, `class_mapping` and `num_skipped` of the run.
    """

    table: pa.Table
    findings: dict[str, Any]

    @property
    def readable(self) -> pa.Table:
        """The rows without an error."""
        return self.table.filter(pc.field("error_code").is_null() & pc.field("label").is_valid())

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the model's outputs."""
        return tuple(manifest.check_trainable(self.readable))

    @property
    def intensity_range(self) -> tuple[float, float] | None:
        """See `images.decode`."""
        limits = self.findings["intensity_range"]
        return (limits[0], limits[1]) if limits else None

    def split(self, name: str) -> pa.Table:
        """Returns the readable rows of one split with a column `class_index` (int32)."""
        rows = self.readable.filter(pc.field("split") == name)
        index = {label: number for number, label in enumerate(self.classes)}
        numbers = pa.array([index[label] for label in rows["label"].to_pylist()], pa.int32())
        return rows.append_column("class_index", numbers)


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


def train(config: TrainConfig) -> TrainResult:
    """Runs a training from images to an evaluated and exported model.

    `metrics.json` is written last: a run without it is not finished and can be continued with `resume`.

    Raises:
        ConfigError: A setting cannot work.
        DataError: The data cannot be used.
        TlrayError: Training failed, with what to do.
    """
    config = _absolute(config.resolved())
    cluster.connect()
    available = cluster.capacity()
    cluster.check_shared(config.out, available)
    plan = cluster.plan_training(available, num_workers=config.num_workers, use_gpu=config.use_gpu)
    _prepare_output(config)
    if config.resume and storage.exists(storage.join(config.out, evaluation.METRICS_JSON)):
        return _finished(config)
    listed = _list_classes(config)
    preparing = _start_preparing(config, num_classes=_num_classes(listed.table))
    dataset = _read_dataset(config, listed)
    model: PreparedModel = get(preparing)
    spec = _make_spec(config, dataset, model)
    history = _fit(config, plan, dataset, model)
    return _finish(config, available, dataset, spec, history)


# -- before training


def _absolute(config: TrainConfig) -> TrainConfig:
    def if_path(location: str | None, *names: str) -> Any:
        return location if location is None or location in names else cluster.input_location(location)

    own_model = config.backbone.endswith(".keras")
    return dataclasses.replace(
        config,
        data=cluster.input_location(config.data),
        out=cluster.output_location(config.out),
        weights=if_path(config.weights, "imagenet", "none"),
        class_map=if_path(config.class_map),
        backbone=cluster.input_location(config.backbone) if own_model else config.backbone,
    )


def _prepare_output(config: TrainConfig) -> None:
    location = storage.join(config.out, CONFIG)
    if config.resume and storage.exists(location):
        before, now = json.loads(storage.read_bytes(location)), json.loads(to_json(config))
        changed = [name for name in now if name not in _FREE_ON_RESUME and now[name] != before.get(name)]
        if changed:
            listed = "; ".join(f"{name} was {before.get(name)!r} and is {now[name]!r}" for name in changed)
            raise ConfigError(f"--resume continues the run in {config.out} with its own settings: {listed}.")
        return
    storage.prepare_output(config.out, known_names=NAMES, overwrite=config.overwrite)
    storage.write_text(location, to_json(config))


def _finished(config: TrainConfig) -> TrainResult:
    content = json.loads(storage.read_bytes(storage.join(config.out, evaluation.METRICS_JSON)))
    return TrainResult(
        out=config.out,
        bundle=storage.join(config.out, BUNDLE),
        num_epochs=content["num_epochs"],
        best_epoch=content["best_epoch"],
        metrics=content["splits"],
        warnings=("The run had already finished: nothing was done.",),
    )


def _list_classes(config: TrainConfig) -> listing.Listing:
    """Lists the images, with the same class names in all splits."""
    listed = listing.list_images(config.data, columns=parse_columns(config.columns))
    class_map = labels.read_class_map(config.class_map) if config.class_map else None
    table, mapping = labels.unify_classes(listed.table, class_map)
    if any(name != label for name, label in mapping.items()) and not config.quiet:
        print("Classes: " + ", ".join(f"{name} -> {label}" for name, label in sorted(mapping.items())))
    return dataclasses.replace(listed, table=table)


def _num_classes(table: pa.Table) -> int:
    return len(table["label"].drop_null().unique())


def _start_preparing(config: TrainConfig, *, num_classes: int) -> "ray.ObjectRef[PreparedModel]":
    """Builds the model in a process of its own, while this one reads the images: TensorFlow takes its time to start.

    On this node, where a local weights file is, and without a CPU, of which a cluster's head may offer none.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    task = ray.remote(_prepare_model).options(num_cpus=0, scheduling_strategy=here, max_retries=0)
    return task.remote(config, max(2, num_classes))


def _prepare_model(config: TrainConfig, num_classes: int) -> PreparedModel:
    import keras  # noqa: PLC0415 (TensorFlow only in this process)

    from tlray import model as models  # noqa: PLC0415

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


def get(reference: Any) -> Any:
    """Waits for a task; its own errors come through as they were raised, without Ray's wrapping."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, TlrayError):
            raise error.cause from None
        raise


def _read_dataset(config: TrainConfig, listed: listing.Listing) -> Dataset:
    """Reads every image once, or takes what an interrupted run has written of it."""
    manifest_file, audit_file = storage.join(config.out, MANIFEST), storage.join(config.out, AUDIT)
    if config.resume and storage.exists(manifest_file) and storage.exists(audit_file):
        return Dataset(table=manifest.read_manifest(manifest_file), findings=json.loads(storage.read_bytes(audit_file)))
    parts: list[pa.Table] = []
    with Progress("Reading images", listed.table.num_rows, quiet=config.quiet) as progress:
        for part in streams.inspect_images(listed.table):
            parts.append(part)
            progress.update(sum(each.num_rows for each in parts))
    inspected = pa.concat_tables(parts)
    table = listed.table.drop_columns(["sha256"])
    for name in streams.INSPECTION_COLUMNS:
        table = table.append_column(name, inspected[name])
    readable = table.filter(pc.field("error_code").is_null())
    lost = set(table["label"].to_pylist()) - set(readable["label"].to_pylist())
    if lost:
        raise DataError(f"Not one image of {some(lost)} can be read. Replace the files, or take those classes out.")
    unreadable = table.filter(pc.field("error_code").is_valid())
    table = pa.concat_tables([manifest.assign_splits(readable, seed=config.seed), unreadable]).sort_by("image_id")
    findings = audit.audit(table)
    findings["num_skipped"] = listed.num_skipped
    findings["intensity_range"] = _find_intensity_range(config, table)
    dataset = Dataset(table=table, findings=findings)
    manifest.check_trainable(dataset.readable)
    manifest.write_manifest(table, manifest_file)
    storage.write_text(audit_file, json.dumps(findings, indent=2) + "\n")
    return dataset


def _find_intensity_range(config: TrainConfig, table: pa.Table) -> tuple[float, float] | None:
    given = parse_intensity_range(config.intensity_range)
    wide = table.filter(pc.field("is_16_bit") & (pc.field("split") == "train"))
    if given is not None or not wide.num_rows:
        return given
    return streams.intensity_range(wide["uri"])


def class_weights(class_index: np.ndarray, num_classes: int) -> tuple[float, ...]:
    """Returns the inverse class frequencies, scaled to a mean of 1 over the images.

    The rule of scikit-learn's `class_weight="balanced"`: images / (classes * images of the class).

    Args:
        class_index: int [images], every class at least once.
        num_classes: Number of classes.
    """
    counts = np.bincount(class_index, minlength=num_classes)
    return tuple(float(weight) for weight in len(class_index) / (num_classes * counts))


def _make_spec(config: TrainConfig, dataset: Dataset, model: PreparedModel) -> BundleSpec:
    return BundleSpec(
        classes=dataset.classes,
        image_size_px=config.image_size_px,
        preprocessing=model.preprocessing,
        intensity_range=dataset.intensity_range,
        thresholds={"refer_below": config.refer_below},
        backbone=os.path.basename(config.backbone),
        weights=os.path.basename(config.weights),
        data_fingerprint=manifest.fingerprint(dataset.table),
        split_fingerprint=manifest.split_fingerprint(dataset.table),
    )


# -- training


class _Board:
    """An actor on which rank 0 posts how far it is and the controller what failed, and from which the driver reads."""

    def __init__(self) -> None:
        self._latest: dict[str, Any] = {}
        self._failures: list[str] = []

    def post(self, latest: dict[str, Any]) -> None:
        self._latest = latest

    def post_failure(self, failure: str) -> None:
        self._failures.append(failure)

    def read(self) -> tuple[dict[str, Any], list[str]]:
        return self._latest, self._failures


class _FailurePoster(ray.train.UserCallback):
    """Tells the driver of failures that Ray Train recovers from by itself."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        for rank, error in list(worker_exceptions.items())[:1]:
            self._board.post_failure.remote(f"worker {rank} failed: {_last_line(error)}")


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _train_worker(config: dict[str, Any]) -> None:
    # Ray's TensorFlow backend has just chosen Keras 2 for this process.
    os.environ["TF_USE_LEGACY_KERAS"] = "0"
    from tlray import trainloop  # noqa: PLC0415 (TensorFlow only in workers)

    trainloop.run(config["task"])


def _fit(config: TrainConfig, plan: TrainPlan, dataset: Dataset, model: PreparedModel) -> list[dict[str, float]]:
    """Trains on Ray Train's workers and returns the history."""
    train_table, valid_table = dataset.split("train"), dataset.split("valid")
    num_classes = len(dataset.classes)
    weights = (1.0,) * num_classes
    if config.class_weights:
        weights = class_weights(train_table["class_index"].to_numpy(), num_classes)
    board = ray.remote(_Board).options(num_cpus=0).remote()
    task = TrainTask(
        config=config,
        architecture=model.architecture,
        export_architecture=model.export_architecture,
        initial_weights=[model.weights],
        train_table=[ray.put(train_table)],
        valid_table=[ray.put(valid_table)],
        num_train=train_table.num_rows,
        num_valid=valid_table.num_rows,
        class_weights=weights,
        intensity_range=dataset.intensity_range,
        share=plan.share,
        board=board,
        artifact=storage.join(config.out, PARTIAL_BUNDLE),
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
            callbacks=[_FailurePoster(board)],
        ),
    )
    with _shown(config, board, task):
        try:
            trainer.fit()
        except SystemExit:
            raise KeyboardInterrupt from None  # how Ray Train's own handler of Ctrl-C ends
        except ray.train.TrainingFailedError as error:
            raise _explained(error, config) from error
    return _read_history(config)


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
        f"Training failed, and was continued --max-failures {config.max_failures} times. Mend the cause and continue "
        f"with --resume. The last failure:\n{first.strip()[-2000:]}"
    )


@contextmanager
def _shown(config: TrainConfig, board: Any, task: Any) -> Iterator[None]:
    """Shows the progress that rank 0 posts, for as long as the block runs."""
    stopped = threading.Event()
    steps_per_epoch = -(-task.num_train // config.batch_size)
    progress = Progress("Training", config.epochs * steps_per_epoch, unit="steps", quiet=config.quiet)

    def watch() -> None:
        num_said = num_failures = 0
        while True:
            is_last = stopped.wait(0.5)
            latest, failures = ray.get(board.read.remote())
            for failure in failures[num_failures:]:
                progress.say(
                    f"{failure}\nIt is continued from the last checkpoint, at most {config.max_failures} times."
                )
            num_failures = len(failures)
            if latest:
                progress.update((latest["epoch"] - 1) * steps_per_epoch + latest["step"])
                for row in latest["history"][num_said:]:
                    progress.say(_epoch_line(row, config.epochs))
                num_said = len(latest["history"])
            if is_last:
                return

    watcher = threading.Thread(target=watch, daemon=True)
    with progress:
        watcher.start()
        try:
            yield
        finally:
            stopped.set()
            watcher.join()


def _epoch_line(row: Mapping[str, float], num_epochs: int) -> str:
    return (
        f"epoch {row['epoch']}/{num_epochs}  loss {row['loss']:.4f}  accuracy {row['accuracy']:.3f}  "
        f"valid_loss {row['valid_loss']:.4f}  valid_accuracy {row['valid_accuracy']:.3f}  "
        f"rate {row['learning_rate']:.2g}  {row['time_s']:.0f} s"
    )


def _read_history(config: TrainConfig) -> list[dict[str, float]]:
    lines = storage.read_bytes(storage.join(config.out, HISTORY)).decode().splitlines()
    names = lines[0].split(",")
    return [dict(zip(names, map(float, line.split(",")), strict=True)) for line in lines[1:]]


# -- after training


def _finish(
    config: TrainConfig, available: Capacity, dataset: Dataset, spec: BundleSpec, history: list[dict[str, float]]
) -> TrainResult:
    """Evaluates the exported model through scoring, then publishes bundle, report and metrics."""
    best = plateau.best_epoch([row["valid_loss"] for row in history])
    partial = storage.join(config.out, PARTIAL_BUNDLE)
    bundle.seal(partial, spec)
    evaluations = _evaluate(config, available, dataset, partial)
    metrics = {split: result.metrics for split, result in evaluations.items()}
    spec = dataclasses.replace(spec, metrics=metrics)
    warnings = tuple(audit.warnings(dataset.findings))
    content = Report(
        title=os.path.basename(config.out.rstrip("/")),
        subtitle=f"{spec.backbone} fine-tuned on {config.data}",
        notices=(evaluation.NOTICE, *_weights_notice(config)),
        config=dataclasses.asdict(config),
        provenance=evaluation.provenance(spec),
        audit=dataset.findings,
        warnings=warnings,
        history=history,
        evaluations=evaluations,
    )
    evaluation.write_report(config.out, content)
    location = storage.join(config.out, BUNDLE)
    _publish(partial, location, spec, storage.read_bytes(storage.join(config.out, evaluation.REPORT_HTML)))
    headline = "test" if "test" in metrics else "valid"
    summary = {
        **metrics[headline],
        "split": headline,
        "num_epochs": len(history),
        "best_epoch": best + 1,
        "splits": metrics,
    }
    storage.write_text(storage.join(config.out, evaluation.METRICS_JSON), json.dumps(summary, indent=2) + "\n")
    return TrainResult(
        out=config.out,
        bundle=location,
        num_epochs=len(history),
        best_epoch=best + 1,
        metrics=metrics,
        warnings=warnings,
    )


def _weights_notice(config: TrainConfig) -> tuple[str, ...]:
    if config.weights != "none":
        return ()
    return ("Trained from random weights: this shows the machinery and means nothing clinically.",)


def _evaluate(config: TrainConfig, available: Capacity, dataset: Dataset, location: str) -> dict[str, SplitEvaluation]:
    """Scores validation and test images in one go, and measures each split."""
    table = pa.concat_tables([dataset.split("valid"), dataset.split("test")])
    plan = cluster.plan_scoring(available, use_gpu=config.use_gpu)
    parts: list[pa.Table] = []
    with Progress("Evaluating", table.num_rows, quiet=config.quiet) as progress:
        for part in scoring.predict(location, table, plan=plan, batch_size=config.batch_size):
            parts.append(part)
            progress.update(sum(each.num_rows for each in parts))
    predictions = pa.concat_tables(parts)
    by_split = {split: predictions.filter(pc.field("split") == split) for split in ("valid", "test")}
    return {split: evaluation.measure(rows, dataset.classes) for split, rows in by_split.items() if rows.num_rows}


def _publish(partial: str, location: str, spec: BundleSpec, report_html: bytes) -> None:
    """Makes the evaluated model a bundle under its final name; `bundle.json` appears there last."""
    storage.delete(storage.join(partial, bundle.BUNDLE_JSON))
    storage.write_text(storage.join(partial, bundle.MODEL_CARD), bundle.model_card(spec))
    storage.write_bytes(storage.join(partial, bundle.REPORT), report_html)
    storage.delete(location)
    storage.move_tree(partial, location)
    bundle.seal(location, spec)
