"""The images of a training run: listed, read once, audited, and cut into splits."""

import dataclasses
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from tlray.config.training import TrainConfig, parse_columns, parse_intensity_range
from tlray.data import audit, decoding, inspected, inspection, labels, layout, listing, manifest, prior, splits, stream
from tlray.data.drift import Distribution, TrainingImages, grey_statistics
from tlray.errors import DataError, ImageError, some
from tlray.files import storage
from tlray.progress import Progress

MANIFEST = "manifest.parquet"
AUDIT = "audit.json"

MAX_MEASURED = 400
"""Training images whose grey levels are measured: a second of one core, and enough for ten bins; see `drift`."""


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
        return tuple(splits.check_trainable(self.readable))

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

    def class_weights(self, *, balanced: bool) -> tuple[float, ...]:
        """Returns a factor of the loss for each class: its inverse frequency among the training images, or 1."""
        return tuple(prior.class_weights(self._train_labels(), len(self.classes), balanced=balanced).tolist())

    def wanted_shares(self, wanted: str) -> np.ndarray:
        """Returns the class shares that a --prior means for these images; see `prior.wanted_shares`."""
        train_shares = prior.class_shares(self._train_labels(), len(self.classes))
        return prior.wanted_shares(wanted, self.classes, train_shares)

    def logit_shift(self, wanted: str, *, balanced: bool) -> np.ndarray:
        """Returns what is added to trained logits so that their softmax assumes the class shares of a --prior.

        Args:
            wanted: A --prior; see `config.parse_prior`.
            balanced: The logits were trained with balanced class weights.

        Returns:
            float32 [classes].
        """
        labels = self._train_labels()
        weights = prior.class_weights(labels, len(self.classes), balanced=balanced)
        return prior.weighted_logit_shift(labels, weights, self.wanted_shares(wanted))

    def _train_labels(self) -> np.ndarray:
        return self.split("train")["class_index"].to_numpy()


def list_classes(config: TrainConfig) -> listing.Listing:
    """Lists the images of a run, with the same class names in all splits.

    Raises:
        DataError: There are none, or the splits' class names do not fit together.
    """
    listed = listing.list_images(config.data, columns=parse_columns(config.columns))
    class_map = labels.read_class_map(config.class_map) if config.class_map else None
    table, mapping = labels.unify_classes(listed.table, class_map)
    if any(name != label for name, label in mapping.items()) and not config.quiet:
        print("Classes: " + ", ".join(f"{name} -> {label}" for name, label in sorted(mapping.items())))
    return dataclasses.replace(listed, table=table)


def list_trainable(config: TrainConfig) -> listing.Listing:
    """Lists the images of a run, see `list_classes`; refuses what no image among them could make trainable.

    Raises:
        DataError: There are fewer than two classes, or one without a training image, or no validation image.
    """
    listed = list_classes(config)
    splits.check_trainable(splits.assign_splits(listed.table, seed=config.seed))
    return listed


def as_listed(config: TrainConfig, listed: listing.Listing) -> Dataset | None:
    """Returns a run's images as they are if all files that are named like images can be read, before one has been.

    Returns:
        A data set without findings; None where it could not be trained on.
    """
    names = listed.table["uri"].to_pylist()
    table = listed.table.filter(pa.array([layout.is_image_name(name) for name in names], pa.bool_()))
    table = splits.assign_splits(table, seed=config.seed).append_column("error_code", pa.nulls(len(table), pa.string()))
    try:
        splits.check_trainable(table)
    except DataError:
        return None
    return Dataset(table=table, findings={})


def read_dataset(
    config: TrainConfig, listed: listing.Listing, *, kind: str, task_cpus: float, meanwhile: Callable[[], None]
) -> Dataset:
    """Reads every image once.

    Args:
        config: A resolved config.
        listed: See `list_classes`.
        kind: See `read_images`.
        task_cpus: See `read_images`.
        meanwhile: See there.

    Raises:
        DataError: The readable images cannot be trained on.
    """
    table = read_images(
        listed.table, out=config.out, kind=kind, task_cpus=task_cpus, meanwhile=meanwhile, quiet=config.quiet
    )
    readable = table.filter(pc.field("error_code").is_null())
    lost = set(table["label"].drop_null().to_pylist()) - set(readable["label"].to_pylist())
    if lost:
        failed = table.filter(pc.field("error_code").is_valid() & pc.field("label").isin(sorted(lost)))
        raise DataError(f"Not one image of {some(lost)} can be read, {audit.explain_failures(failed)}")
    table = with_splits(table, seed=config.seed)
    findings = audit.audit(table)
    findings["num_skipped"] = listed.num_skipped
    findings["intensity_range"] = find_intensity_range(config, table)
    dataset = Dataset(table=table, findings=findings)
    splits.check_trainable(dataset.readable)
    return dataset


def stored_dataset(out: str) -> Dataset | None:
    """Reads what `write_dataset` has written into a run's directory; None where it has not."""
    manifest_file, audit_file = storage.join(out, MANIFEST), storage.join(out, AUDIT)
    if not storage.exists(manifest_file) or not storage.exists(audit_file):
        return None
    return Dataset(table=manifest.read_manifest(manifest_file), findings=json.loads(storage.read_bytes(audit_file)))


def write_dataset(dataset: Dataset, out: str) -> None:
    """Writes `MANIFEST` and `AUDIT` into a run's directory, in place of what reading has kept there."""
    manifest.write_manifest(dataset.table, storage.join(out, MANIFEST))
    storage.write_text(storage.join(out, AUDIT), json.dumps(dataset.findings, indent=2) + "\n")
    inspected.forget(out)


def describe(dataset: Dataset) -> str:
    """Returns the classes with their images in each split, a line each."""
    counts: dict[str, dict[str, int]] = dataset.findings["counts"]
    lines = [
        f"  {name}: {', '.join(f'{counts.get(split, {}).get(name, 0)} {split}' for split in manifest.SPLITS)}"
        for name in dataset.classes
    ]
    return "\n".join(["Images by class:", *lines])


def read_images(
    table: pa.Table, *, out: str, kind: str, task_cpus: float, meanwhile: Callable[[], None], quiet: bool
) -> pa.Table:
    """Reads every image of a manifest once, and not again what an interrupted reading has left in the output.

    Args:
        table: A manifest.
        out: The output directory, where what has been read is kept; see `inspected.forget`.
        kind: See `storage.prepare_output`.
        task_cpus: CPUs that a reading task asks for.
        meanwhile: Called now and then: what it raises ends the reading.
        quiet: Show no progress.

    Returns:
        The manifest with `streams.INSPECTION_COLUMNS`.
    """
    known = inspected.known_rows(out, table["uri"], inspection.INSPECTED_SCHEMA)
    keeper = inspected.Keeper(out, kind, table["uri"], known)
    parts: list[pa.Table] = []
    with Progress("Reading images", table.num_rows, quiet=quiet) as progress:
        for part in inspection.inspect_images(table, known=known, task_cpus=task_cpus):
            meanwhile()
            keeper.add(part)
            parts.append(part)
            progress.update(sum(each.num_rows for each in parts))
    found = pa.concat_tables(parts)
    table = table.drop_columns(["sha256"])
    for name in inspection.INSPECTION_COLUMNS:
        table = table.append_column(name, found[name])
    return table


def with_splits(table: pa.Table, *, seed: int) -> pa.Table:
    """Returns what `read_images` gave with the splits cut that the data lacks, sorted; see `manifest.assign_splits`."""
    readable = table.filter(pc.field("error_code").is_null())
    unreadable = table.filter(pc.field("error_code").is_valid())
    return pa.concat_tables([splits.assign_splits(readable, seed=seed), unreadable]).sort_by("image_id")


def find_intensity_range(config: TrainConfig, table: pa.Table) -> tuple[float, float] | None:
    """Returns the range of 16-bit pixels that is given, or that of the training images; None: they have none.

    Where no image is in a split all are taken.
    """
    given = parse_intensity_range(config.intensity_range)
    wanted = "train" if "train" in table["split"].unique().to_pylist() else None
    wide = table.filter(pc.field("is_16_bit") & (pc.field("split") == wanted if wanted else True))
    if given is not None or not wide.num_rows:
        return given
    return inspection.intensity_range(wide["uri"])


def measure(config: TrainConfig, dataset: Dataset) -> "ray.ObjectRef[TrainingImages | None]":
    """Starts to measure the training images, in a process that has read images before, beside what comes next.

    Of more than `MAX_MEASURED` a random sample is taken, by the config's seed.
    """
    train = dataset.split("train")
    num_measured = min(MAX_MEASURED, train.num_rows)
    sample = np.random.default_rng(config.seed).choice(train.num_rows, num_measured, replace=False)
    uris = train["uri"].take(np.sort(sample)).to_pylist()
    # It asks for no CPU: what the rest needs has been planned.
    task = ray.remote(_measure).options(num_cpus=0)
    return task.remote(uris, config.image_size_px, dataset.intensity_range)


def _measure(uris: list[str], size_px: int, intensity_range: tuple[float, float] | None) -> TrainingImages | None:
    def grey(uri: str) -> tuple[float, float] | None:
        try:
            image = decoding.decode(stream.read_file(uri), size_px=size_px, intensity_range=intensity_range)
        except ImageError:  # training itself tells of what can no longer be read
            return None
        return grey_statistics(image)

    with ThreadPoolExecutor(stream.READ_THREADS) as pool:
        greys = [each for each in pool.map(grey, uris) if each is not None]
    if not greys:
        return None
    means, deviations = zip(*greys, strict=True)
    return TrainingImages(grey_mean=Distribution.of(means), grey_deviation=Distribution.of(deviations))
