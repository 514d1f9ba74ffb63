"""Computes features, the outputs of a pretrained network for each image, and keeps them up to date as Parquet.

Each row has a key, a fingerprint of all that decides its features. A second run keeps the rows whose keys it wants, in
whole and undamaged parts, and computes the others. Rows that are not wanted are deleted last, once these are written.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from tlray.cluster import capacity, connection, locations, plans
from tlray.cluster.capacity import Capacity
from tlray.cluster.plans import ScorePlan
from tlray.config.commands import FeaturesConfig
from tlray.config.training import TrainConfig
from tlray.data import audit, dataset, inspected, intensity, manifest, splits, stream
from tlray.engines import choice
from tlray.engines.kinds import EngineKind
from tlray.errors import ConfigError, DataError
from tlray.features import extraction, preparation, store
from tlray.features.preparation import Network
from tlray.features.store import KEY, MANIFEST, NAMES, NETWORK, POOLED, SUCCESS
from tlray.features.wanted import wanted_rows
from tlray.files import storage
from tlray.models.weights import check_weights
from tlray.probe import regression
from tlray.progress import Progress
from tlray.trust import finding_warnings, pictures

SAMPLED_PARTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturesResult:
    """The result of a feature extraction.

    Attributes:
        out: Directory of the features.
        num_rows: Number of rows: images and their views.
        num_reused: Number of rows that were there already.
        num_failed: Number of images that could not be read and have no row.
        shapes: The shape of each feature.
        notes: Further notes to the user, for example about damaged parts.
    """

    out: str
    num_rows: int
    num_reused: int
    num_failed: int
    shapes: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...]


def extract_features(config: FeaturesConfig) -> FeaturesResult:
    """Computes the features of every readable image and writes `part-*.parquet`, then `_SUCCESS`.

    Columns: `image_id`, `label`, `split`, `group_id`, `view` (int32), `key`, and each feature as float16, one list of
    values per row (the shape is in the column's type, an Arrow tensor). Images that cannot be read are in
    `_manifest.parquet` with their error.

    Raises:
        ConfigError: A setting cannot work, or --out holds features of another network, or features most of which would
            be deleted.
        DataError: There are no images, or none can be read.
    """
    training = locations.absolute(config.training())
    if not storage.exists(storage.join(training.out, NETWORK)):
        storage.check_output(training.out, kind="features", known_names=NAMES, overwrite=config.overwrite)
    kind = check(config, training)
    listed = dataset.list_classes(
        training.data, columns=training.columns, class_map=training.class_map, quiet=training.quiet
    )
    connection.connect()
    available = capacity.measure()
    locations.check_shared(training.out, available)
    locations.check_shared_images(training.data, training.columns, available)
    plan = plans.plan_scoring(available, use_gpu=config.use_gpu)
    capacity.tell_shortage(available, num_gpus=plan.gpus_per_actor, quiet=config.quiet)
    preparing = preparation.start(config, kind)
    table = dataset.read_images(
        listed.table,
        out=training.out,
        kind="features",
        task_cpus=available.task_cpus,
        meanwhile=partial(connection.check, preparing),
        quiet=config.quiet,
    )
    # Copies matter only for the splits that are cut.
    if splits.missing(table):
        table = pictures.look(table, task_cpus=available.task_cpus, quiet=config.quiet).table
    else:
        table = dataset.without_looks(table)
    table = dataset.with_splits(table, seed=config.seed)
    if not table["error_code"].null_count:
        raise DataError(
            f"None of the {table.num_rows} images of '{config.data}' can be read, {audit.explain_failures(table)}"
        )
    pixels = stream.Pixels(
        size_px=config.image_size_px,
        intensity_range=intensity.find_range(training, table),
        augmentation=config.augmentation,
        seed=config.seed,
    )
    network = preparation.finish(preparing, table, pixels, config.precision)
    result = update(
        training.out, table, network, pixels,
        plan=plan, views=config.views, batch_size=config.batch_size, overwrite=config.overwrite, quiet=config.quiet,
        keep_most=not config.overwrite,
    )  # fmt: skip
    inspected.forget(training.out)
    untrained = intensity.count_untrained(training, table)
    about = {"intensity_range": pixels.intensity_range, "untrained_16_bit": untrained}
    notes = [*result.notes, *finding_warnings.intensity_warnings(about)]
    if POOLED in network.names and result.num_rows > 1:
        notes += regression.variation_warning(_variation(result.out))
    if config.views > 1 and "train" not in table["split"].unique().to_pylist():
        notes.append(
            "There are no training images (no labels, or no train split), so no augmented views were computed."
        )
    return dataclasses.replace(result, notes=tuple(notes))


def check(config: FeaturesConfig, training: TrainConfig) -> EngineKind:
    """Checks the settings of a network, which needs no Ray; returns the engine and precision that are to run it.

    Args:
        config: The settings.
        training: `config.training()` with absolute locations.

    Raises:
        ConfigError: There are no such weights, they are a bundle that was trained with another preprocessing, or this
            machine does not have the engine or the precision.
    """
    check_weights(training.weights, training.preprocessing)
    return choice.for_features(config.engine, config.precision, use_gpu=config.use_gpu)


def pooled_features(
    config: FeaturesConfig,
    network: "ray.ObjectRef[Network]",
    table: pa.Table,
    directory: str,
    available: Capacity,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Computes the pooled features of images that have been read, as they are.

    Args:
        config: The settings of the network.
        network: The network, see `preparation.start`.
        table: A manifest with `inspection.INSPECTION_COLUMNS`.
        directory: The directory for the features; an interrupted run continues with what it has there.
        available: Resources of the cluster.

    Returns:
        float16 [readable images, features], in the order of the table; and notes to the user.

    Raises:
        DataError: An image has changed since it was read, or can no longer be read.
    """
    intensity_range = intensity.find_range(config.training(), table)
    pixels = stream.Pixels(size_px=config.image_size_px, intensity_range=intensity_range)
    result = update(
        directory,
        table,
        preparation.finish(network, table, pixels, config.precision),
        pixels,
        plan=plans.plan_scoring(available, use_gpu=config.use_gpu),
        views=1,
        batch_size=config.batch_size,
        overwrite=True,
        quiet=config.quiet,
    )
    found = store.read_features(directory, columns=["image_id", "view", POOLED], view=0)
    return store.look_up(found, table.filter(table["error_code"].is_null())), result.notes


def _variation(out: str) -> float:
    """Returns the variation of the pooled features in some parts; see `regression.variation`."""
    names = store.part_names(out)
    parts = [store.read_part(out, name, columns=[POOLED]) for name in names[:: -(-len(names) // SAMPLED_PARTS)]]
    pooled = np.concatenate([part[POOLED].combine_chunks().to_numpy_ndarray() for part in parts]).astype(np.float32)
    return regression.variation(pooled.mean(axis=0), pooled.std(axis=0))


def update(
    out: str,
    table: pa.Table,
    network: Network,
    pixels: stream.Pixels,
    *,
    plan: ScorePlan,
    views: int,
    batch_size: int,
    overwrite: bool,
    quiet: bool,
    keep_most: bool = False,
    title: str = "Computing features",
) -> FeaturesResult:
    """Brings the features in a directory up to date.

    Features that are not wanted any more are deleted once all others have been written.

    Args:
        out: The directory.
        table: A manifest with `inspection.INSPECTION_COLUMNS` and splits; see `dataset.with_splits`.
        network: The network that computes the features.
        pixels: How image files become the network's pixels.
        plan: How the network and its data share the cluster.
        views: Number of views of each training image.
        batch_size: Number of images that the network takes at once.
        overwrite: Replace features of another network.
        quiet: Show no progress. None is shown either if no features are missing.
        keep_most: Refuse to delete more than half of the features that are there.
        title: Name of the work in the progress display.

    Raises:
        ConfigError: The directory holds features of another network, or more than half of those that are there would
            be deleted.
        DataError: None of the images can be read any more.
    """
    _open_output(out, network, overwrite=overwrite)
    rows = wanted_rows(table.filter(pc.field("error_code").is_null()), views, network, pixels)
    stored = store.look(out, rows)
    if keep_most and stored.num_unwanted > stored.num_rows / 2:
        raise ConfigError(
            f"{stored.num_unwanted} of the {stored.num_rows} features in '{out}' would be deleted: they are of images "
            "that --data does not have now, or of other pixels or views (--views, --seed, the augmentation, the "
            "intensity range). Check these options and the storage, give another --out, or --overwrite."
        )
    storage.delete(storage.join(out, SUCCESS))
    kept, notes = stored.kept, store.clear_damage(out, stored)
    missing = rows.filter(pa.array([key not in kept for key in rows[KEY].to_pylist()], pa.bool_()))
    failures: list[dict[str, Any]] = []
    with Progress(title, rows.num_rows, quiet=quiet or not missing.num_rows) as progress:
        progress.update(len(kept))
        for batch in extraction.compute(out, missing, network, pixels, plan, batch_size=batch_size):
            progress.update(len(kept) + batch["num_done"])
            failures += batch["failures"]
    table = extraction.with_failures(table, failures)
    if len(failures) == rows.num_rows:
        raise DataError(
            f"None of the {rows.num_rows} images and views can be read any more. Check the storage, and run the "
            "command again (train and sweep: with --resume)."
        )
    store.bring_up_to_date(out, stored, rows)
    manifest.write_manifest(table, storage.join(out, MANIFEST))
    storage.write_text(storage.join(out, SUCCESS), "")
    return FeaturesResult(
        out=out,
        num_rows=rows.num_rows - len(failures),
        num_reused=len(kept),
        num_failed=table.num_rows - table["error_code"].null_count,
        shapes=dict(zip(network.names, network.shapes, strict=True)),
        notes=(*([network.packed.note] if network.packed.note else []), *notes),
    )


def derive(
    source: str,
    out: str,
    table: pa.Table,
    *,
    networks: tuple[Network, Network],
    pixels: stream.Pixels,
    views: int,
) -> None:
    """Copies features that another network has computed, so that `update` finds them in the output.

    Args:
        source: Directory of these features. Rows of other images, pixels or weights, and damaged parts, are skipped.
        out: The directory to fill, see `update`.
        table: See `update`.
        networks: The network that computed the features, and the one whose features are wanted: the same, or one that
            gives only the last of its pooled columns.
        pixels: See `update`.
        views: See `update`.

    Raises:
        ValueError: The networks differ, and not only pooled features are wanted.
    """
    theirs, ours = networks
    if theirs.fingerprint != ours.fingerprint and ours.names != [POOLED]:
        raise ValueError("Feature maps of two networks cannot be matched by name: each network numbers its own.")
    _open_output(out, ours, overwrite=True)
    storage.delete(storage.join(out, SUCCESS))
    readable = table.filter(pc.field("error_code").is_null())
    rows = wanted_rows(readable, views, ours, pixels).drop_columns(["uri", "sha256"])
    place_of = {key: place for place, key in enumerate(wanted_rows(readable, views, theirs, pixels)[KEY].to_pylist())}
    for name in store.part_names(source):
        try:
            part = store.read_part(source, name, columns=[KEY, *ours.names])
        except DataError:
            continue
        keys = part[KEY].to_pylist()
        found = [place for place, key in enumerate(keys) if key in place_of]
        if not found:
            continue
        derived = rows.take(pa.array([place_of[keys[place]] for place in found]))
        for feature, shape in zip(ours.names, ours.shapes, strict=True):
            values = part[feature].combine_chunks().to_numpy_ndarray()[found]
            values = np.ascontiguousarray(values[..., -shape[-1] :])
            derived = derived.append_column(feature, pa.FixedShapeTensorArray.from_numpy_ndarray(values))
        store.write_part(storage.join(out, name), derived)


def _open_output(out: str, network: Network, *, overwrite: bool) -> None:
    """Prepares the output directory; features of the same network stay there."""
    location = storage.join(out, NETWORK)
    stored, kind = _stored_network(location)
    is_same = stored == network.fingerprint
    if storage.exists(location) and not is_same and not overwrite:
        raise ConfigError(
            f"'{out}' holds features of another network, level, image size or precision: {kind} has computed them, and "
            f"{network.packed.kind} would now. The files of --weights or --backbone, the CPU, tlray itself, or with "
            "--precision int8 the training images or OpenVINO's version may have changed (in other precisions rows of "
            "its earlier versions are kept). Give another --out, or --overwrite."
        )
    if not is_same:
        storage.prepare_output(out, kind="features", known_names=NAMES, overwrite=overwrite)
        about = {
            "sha256": network.fingerprint,
            "engine": str(network.packed.kind),
            "features": dict(zip(network.names, network.shapes, strict=True)),
        }
        storage.write_text(location, json.dumps(about, indent=2) + "\n")


def _stored_network(location: str) -> tuple[str | None, str]:
    """Returns the fingerprint of the network that computed the features (None: not known), and its engine."""
    try:
        about = json.loads(storage.read_bytes(location))
        return about["sha256"], about.get("engine", "tensorflow float32")
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None, "an unknown engine"
