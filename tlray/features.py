"""Features: what a pretrained network sees in each image, computed once and kept as Parquet.

Each row has a key, a fingerprint of all that decides its features. A second run keeps the rows whose keys it wants, in
whole and undamaged parts, and computes the others.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from tlray import cluster, dataset, images, manifest, storage, streams
from tlray.cluster import ScorePlan
from tlray.config import TrainConfig
from tlray.errors import ConfigError, DataError, TlrayError
from tlray.jobconfig import FeaturesConfig
from tlray.progress import Progress
from tlray.schedule import ViewSchedule

ROWS_PER_PART = 256
PART_BYTES = 64 * 2**20
"""The most rows and about the most bytes of one Parquet part: an interrupted run loses no more than it was at."""

# Readers of Parquet folders pass over names that begin with an underscore.
NETWORK = "_network.json"
MANIFEST = "_manifest.parquet"
SUCCESS = "_SUCCESS"

NAMES = frozenset({NETWORK, MANIFEST, SUCCESS, "part-"})

KEY = "key"
COLUMNS = ("image_id", "label", "split", "group_id")
"""The manifest's columns that features keep, besides `view` and `key`."""

FLOAT16_MAX = 65504.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturesResult:
    """What an extraction came to.

    Attributes:
        out: Where the features lie.
        num_rows: Rows: images and their views.
        num_reused: Rows that were there already.
        num_failed: Images that could not be read, and have no row.
        shapes: The shape of each feature.
        notes: What else a user must know, such as damaged parts.
    """

    out: str
    num_rows: int
    num_reused: int
    num_failed: int
    shapes: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What computes the features.

    Attributes:
        architecture: A model from uint8 images to a list of features, as JSON.
        weights: In the object store.
        names: The features' names, in the model's order.
        shapes: Their shapes, without the batch.
        preprocessing: What the network wants to see; a part of the model.
        fingerprint: sha256 of architecture and weights.
    """

    architecture: str
    weights: "ray.ObjectRef[list[np.ndarray]]"
    names: list[str]
    shapes: list[tuple[int, ...]]
    preprocessing: str
    fingerprint: str

    @property
    def bytes_per_row(self) -> int:
        """Size of one image's features, float16."""
        return sum(2 * math.prod(shape) for shape in self.shapes)


def extract(config: FeaturesConfig) -> FeaturesResult:
    """Computes the features of every readable image and writes `part-*.parquet`, then `_SUCCESS`.

    Columns: `image_id`, `label`, `split`, `group_id`, `view` (int32), `key`, and each feature, float16, a row a list of
    its values (the shape is in the column's type, an Arrow tensor). Images that cannot be read are in
    `_manifest.parquet` with their error.

    Raises:
        ConfigError: A setting cannot work, or --out holds features of another network.
        DataError: There are no images, or none can be read.
    """
    cluster.connect()
    training = cluster.absolute(config.training())
    available = cluster.capacity()
    cluster.check_shared(training.out, available)
    if not storage.exists(storage.join(training.out, NETWORK)):
        storage.check_output(training.out, kind="features", known_names=NAMES, overwrite=config.overwrite)
    plan = cluster.plan_scoring(available, use_gpu=config.use_gpu)
    listed = dataset.list_classes(training)
    preparing = cluster.start_here(prepare, training, config.level)
    table = dataset.with_splits(dataset.read_images(listed.table, quiet=config.quiet), seed=config.seed)
    if not table["error_code"].null_count:
        raise DataError(f"Not one of the {table.num_rows} images of '{config.data}' can be read.")
    pixels = streams.Pixels(
        size_px=config.image_size_px,
        intensity_range=dataset.find_intensity_range(training, table),
        augmentation=config.augmentation,
        seed=config.seed,
    )
    network: Network = cluster.get(preparing)
    result = update(
        training.out, table, network, pixels,
        plan=plan, views=config.views, batch_size=config.batch_size, overwrite=config.overwrite, quiet=config.quiet,
    )  # fmt: skip
    if config.views > 1 and "train" not in table["split"].unique().to_pylist():
        note = "There are no training images (no labels, or no train split), so that there are no augmented views."
        return dataclasses.replace(result, notes=(*result.notes, note))
    return result


def update(
    out: str,
    table: pa.Table,
    network: Network,
    pixels: streams.Pixels,
    *,
    plan: ScorePlan,
    views: int,
    batch_size: int,
    overwrite: bool,
    quiet: bool,
) -> FeaturesResult:
    """Brings the features in a directory up to date.

    Args:
        out: The directory.
        table: A manifest with `streams.INSPECTION_COLUMNS` and splits; see `dataset.with_splits`.
        network: What computes the features.
        pixels: How files become its pixels.
        plan: How the cluster is shared.
        views: Rows of each training image.
        batch_size: Images that the network takes at once.
        overwrite: Replace features of another network.
        quiet: Show no progress.

    Raises:
        ConfigError: The directory holds features of another network.
    """
    _open_output(out, network, overwrite=overwrite)
    rows = _rows(table.filter(pc.field("error_code").is_null()), views, network, pixels)
    kept, notes = _keep(out, rows)
    missing = rows.filter(pa.array([key not in kept for key in rows[KEY].to_pylist()], pa.bool_()))
    failures: list[dict[str, Any]] = []
    with Progress("Computing features", rows.num_rows, quiet=quiet) as progress:
        progress.update(len(kept))
        for batch in _compute(out, missing, network, pixels, plan, batch_size=batch_size):
            progress.update(len(kept) + batch["num_done"])
            failures += batch["failures"]
    table = _with_failures(table, failures)
    if len(failures) == rows.num_rows:
        raise DataError(f"Not one of {rows.num_rows} images can be read any more. Check the storage, and run it again.")
    manifest.write_manifest(table, storage.join(out, MANIFEST))
    storage.write_text(storage.join(out, SUCCESS), "")
    return FeaturesResult(
        out=out,
        num_rows=rows.num_rows - len(failures),
        num_reused=len(kept),
        num_failed=table.num_rows - table["error_code"].null_count,
        shapes=dict(zip(network.names, network.shapes, strict=True)),
        notes=tuple(notes),
    )


def read_features(out: str, *, columns: list[str] | None = None) -> pa.Table:
    """Reads finished features.

    Raises:
        DataError: They are not finished, or damaged.
    """
    if not storage.exists(storage.join(out, SUCCESS)):
        raise DataError(f"'{out}' has no {SUCCESS}: the features are not complete. Run `tlray features` again.")
    return pa.concat_tables([read_part(out, name, columns=columns) for name in part_names(out)])


def part_names(out: str) -> list[str]:
    """Returns the names of the Parquet parts."""
    return [name for name in storage.list_names(out) if name.startswith("part-") and name.endswith(".parquet")]


def read_part(out: str, name: str, *, columns: list[str] | None = None) -> pa.Table:
    """Reads one part.

    Raises:
        DataError: It is damaged.
    """
    location = storage.join(out, name)
    try:
        source = pa.BufferReader(storage.read_bytes(location))
        return pq.read_table(source, columns=columns, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"'{location}' is damaged: {error}. Run `tlray features` again.") from error


# -- the network, in a process of its own


def prepare(config: TrainConfig, level: str) -> Network:
    """Builds the network of a config that computes `pooled`, `cut` or `both`; to be run by `cluster.start_here`."""
    import keras  # noqa: PLC0415 (TensorFlow only in this process)

    from tlray import devices, trunk  # noqa: PLC0415
    from tlray import model as models  # noqa: PLC0415

    devices.use_cpus()  # the extractors want all of the GPUs
    keras.utils.clear_session()  # layers are numbered through a process, which may have built others before
    keras.utils.set_random_seed(config.seed)  # --weights none: the same network again
    preprocessing = config.preprocessing or models.application_preprocessing(config.backbone)
    backbone = models.build_backbone(config)
    models.set_trainable(backbone, config)
    extractor, names = trunk.extractor(backbone, preprocessing, pooled=level != "cut", cut=level != "pooled")
    return as_network(extractor, names, preprocessing)


def as_network(extractor: Any, names: list[str], preprocessing: str) -> Network:
    """Makes a Keras model, from uint8 images to a list of features, what extractors on any node can load."""
    from tlray import model as models  # noqa: PLC0415

    extractor.trainable = False  # what will be trained has decided the cut, and nothing else here
    architecture, weights = extractor.to_json(), models.get_weights(extractor)
    shapes = [tuple(output.shape[1:]) for output in extractor.outputs]
    digest = hashlib.sha256(json.dumps([architecture, names, shapes]).encode())
    for array in weights:
        digest.update(array.tobytes())
    return Network(
        architecture=architecture,
        weights=ray.put(weights),
        names=names,
        shapes=shapes,
        preprocessing=preprocessing,
        fingerprint=digest.hexdigest(),
    )


# -- what is there and what is wanted


def _open_output(out: str, network: Network, *, overwrite: bool) -> None:
    """Makes the output ready; what the same network has left there stays."""
    location = storage.join(out, NETWORK)
    is_same = storage.exists(location) and json.loads(storage.read_bytes(location))["sha256"] == network.fingerprint
    if storage.exists(location) and not is_same and not overwrite:
        raise ConfigError(
            f"'{out}' holds features of another network, level or image size. Give another --out, or --overwrite."
        )
    if not is_same:
        storage.prepare_output(out, kind="features", known_names=NAMES, overwrite=overwrite)
        about = {"sha256": network.fingerprint, "features": dict(zip(network.names, network.shapes, strict=True))}
        storage.write_text(location, json.dumps(about, indent=2) + "\n")
    storage.delete(storage.join(out, SUCCESS))


def _rows(readable: pa.Table, views: int, network: Network, pixels: streams.Pixels) -> pa.Table:
    """Returns a row for each image and view that features are wanted of, with its `key`."""
    places, numbers, keys = [], [], []
    for place, image in enumerate(readable.select(["image_id", "split", "sha256", "is_16_bit"]).to_pylist()):
        for view in range(views if image["split"] == "train" else 1):
            parts = [network.fingerprint, images.DECODING, image["image_id"], image["sha256"], view]
            parts += [pixels.intensity_range] if image["is_16_bit"] else []
            parts += [asdict(pixels.augmentation), pixels.seed] if view and pixels.augmentation else []
            places.append(place)
            numbers.append(view)
            keys.append(hashlib.sha256(json.dumps(parts).encode()).hexdigest())
    table = readable.select(["uri", *COLUMNS]).take(pa.array(places))
    return table.append_column("view", pa.array(numbers, pa.int32())).append_column(KEY, pa.array(keys))


def _keep(out: str, rows: pa.Table) -> tuple[set[str], list[str]]:
    """Goes through the parts that are there: wanted rows stay, with today's labels, others and damaged parts go.

    Returns:
        The keys of the rows that stay, and notes for the user.
    """
    wanted = {key: place for place, key in enumerate(rows[KEY].to_pylist())}
    kept: set[str] = set()
    notes: list[str] = []
    for name in storage.list_names(out):
        if name.startswith(".part-"):  # what a killed writer has left
            storage.delete(storage.join(out, name))
    for name in part_names(out):
        location = storage.join(out, name)
        try:
            part = read_part(out, name)
            keys = part[KEY].to_pylist()
        except (DataError, KeyError):
            notes.append(f"{name} was damaged; its features were computed again.")
            storage.delete(location)
            continue
        places = [place for place, key in enumerate(keys) if key in wanted and key not in kept]
        current = part.take(pa.array(places, pa.int64()))
        today = rows.take(pa.array([wanted[keys[place]] for place in places], pa.int64()))
        for column in COLUMNS:
            current = current.set_column(current.schema.get_field_index(column), column, today[column])
        if not places:
            storage.delete(location)
        elif not current.equals(part):
            _write_part(location, current)
        kept.update(keys[place] for place in places)
    return kept, notes


def _with_failures(table: pa.Table, failures: list[dict[str, Any]]) -> pa.Table:
    """Returns the manifest with what could be read at first and later not."""
    codes, errors = table["error_code"].to_pylist(), table["error"].to_pylist()
    place_of = {image_id: place for place, image_id in enumerate(table["image_id"].to_pylist())}
    for failure in failures:
        place = place_of[failure["image_id"]]
        codes[place], errors[place] = failure["error_code"], failure["error"]
    for name, values in (("error_code", codes), ("error", errors)):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return table


# -- computing


class _Extractor:
    """An actor of Ray Data's pool. TensorFlow is imported here and not in the driver."""

    def __init__(self, network: Network, num_threads: int | None, use_gpu: bool) -> None:
        from tlray import devices, trunk  # noqa: PLC0415
        from tlray import model as models  # noqa: PLC0415

        if use_gpu:
            devices.use_gpus()
        else:
            devices.use_cpus(num_threads)
        self.names = network.names
        self.run = trunk.as_function(models.from_json(network.architecture, ray.get(network.weights)))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        features = self.run(np.ascontiguousarray(batch.pop("image")))
        arrays = [np.clip(each.numpy().astype(np.float32), -FLOAT16_MAX, FLOAT16_MAX) for each in features]
        kept = {name: batch[name] for name in ("row", "error_code", "error")}
        return kept | {name: array.astype(np.float16) for name, array in zip(self.names, arrays, strict=True)}


def _compute(
    out: str, rows: pa.Table, network: Network, pixels: streams.Pixels, plan: ScorePlan, *, batch_size: int
) -> Iterator[dict[str, Any]]:
    """Computes and writes the features of some rows; yields `num_done` so far, and `failures` since."""
    if not rows.num_rows:
        return
    reference = ray.put(rows)
    schedule = ViewSchedule(views=rows["view"].to_numpy())
    features = streams.image_stream(reference, schedule, pixels)
    features = features.map_batches(
        _Extractor,
        fn_constructor_args=(network, plan.num_threads, bool(plan.gpus_per_actor)),
        batch_size=batch_size,
        **plan.pool(),
    ).map_batches(
        _write_rows,  # pyright: ignore[reportArgumentType]
        fn_kwargs={"out": out, "rows": [reference], "names": network.names},
        batch_size=max(1, min(ROWS_PER_PART, PART_BYTES // network.bytes_per_row)),
        num_cpus=min(streams.TASK_CPUS, 0.25),
        zero_copy_batch=True,
    )
    streams.configure(features)
    num_done = 0
    for batch in streams.iterate(features):
        write_error = next(filter(None, batch["write_error"]), "")
        if write_error:
            raise TlrayError(
                f"The features cannot be written: {write_error}. Mend the cause and run the same command again: it "
                "goes on with what is there."
            )
        num_done += len(batch["image_id"])
        failed = batch["error_code"] != ""
        columns = {name: batch[name][failed].tolist() for name in ("image_id", "error_code", "error")}
        yield {
            "num_done": num_done,
            "failures": [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)],
        }


def _write_rows(
    batch: Mapping[str, np.ndarray], out: str, rows: list["ray.ObjectRef[pa.Table]"], names: list[str]
) -> dict[str, np.ndarray]:
    """Writes one part, named by what is in it, so that a task that Ray runs again writes the same file."""
    about = ray.get(rows[0]).select([*COLUMNS, "view", KEY]).take(batch["row"])
    good = np.flatnonzero(batch["error_code"] == "")
    table = about.take(good)
    for name in names:
        values = np.ascontiguousarray(batch[name][good])
        table = table.append_column(name, pa.FixedShapeTensorArray.from_numpy_ndarray(values))
    number = hashlib.sha256("".join(about[KEY].to_pylist()).encode()).hexdigest()[:16]
    write_error = ""
    try:
        if len(good):
            _write_part(storage.join(out, f"part-{number}.parquet"), table)
    except OSError as error:  # a full disk, which Ray Data would tell in thirty lines
        write_error = str(error)
    return {
        "image_id": np.array(about["image_id"].to_pylist()),
        "error_code": batch["error_code"],
        "error": batch["error"],
        "write_error": np.full(len(about), write_error),
    }


def _write_part(location: str, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="lz4", write_page_checksum=True)
    storage.write_bytes(location, sink.getvalue().to_pybytes())
