"""Builds the data set of a training run: lists the images, reads each once, audits them, and assigns splits."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from tlray.config.training import TrainConfig
from tlray.config.values import parse_columns
from tlray.data import (
    audit,
    decoding,
    inspected,
    inspection,
    intensity,
    labels,
    layout,
    listing,
    looks,
    manifest,
    prior,
    splits,
    stream,
)  # fmt: skip
from tlray.data.drift import Distribution, TrainingImages, grey_statistics
from tlray.data.two_samples import independent_images
from tlray.errors import DataError, ImageError, counted, some
from tlray.files import storage
from tlray.progress import Progress

MANIFEST = "manifest.parquet"
"""Name of the file with the manifest in a run's directory."""

AUDIT = "audit.json"
"""Name of the file with the findings of the audit in a run's directory."""

GALLERY = "gallery.json"
"""Name of the file with pictures of copies and neighbouring slices in a run's directory."""

MAX_MEASURED = 400
"""Maximum number of training images whose grey levels are measured. It takes one core a second, and is enough for ten
bins; see `drift`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """The images of a training run and what was found about them.

    Attributes:
        table: The manifest of the run, with `manifest.SCHEMA`, `inspection.INSPECTION_COLUMNS`, `looks.KEPT`,
            `splits.PIXELS`, `splits.PICTURE`, `splits.SERIES`, and what else a table said of the images, see
            `tables.further_columns`.
        findings: The reports of `audit.audit` and `tlray.trust.findings.find`, with the `intensity_range` and
            `num_skipped` of the run, and `untrained_16_bit`, see `intensity.count_untrained`.
        gallery: Pictures of copies and neighbouring slices for the report, see `tlray.trust.gallery`.
        thumbnails: JPEGs of training images by their ids, see `tlray.training.lookalikes.encode`. They are not stored:
            a run that is continued has none.
    """

    table: pa.Table
    findings: dict[str, Any]
    gallery: Sequence[Mapping[str, Any]] = ()
    thumbnails: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def readable(self) -> pa.Table:
        """The labelled rows of images without an error."""
        return self.table.filter(pc.field("error_code").is_null() & pc.field("label").is_valid())

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the model's outputs."""
        return tuple(splits.check_trainable(self.readable))

    @property
    def intensity_range(self) -> tuple[float, float] | None:
        """The pixel values of a 16-bit image that become 0 and 255; see `decoding.decode`."""
        limits = self.findings["intensity_range"]
        return (limits[0], limits[1]) if limits else None

    def split(self, name: str) -> pa.Table:
        """Returns the rows of `readable` in one split, with a column `class_index` (int32)."""
        rows = self.readable.filter(pc.field("split") == name)
        index = {label: number for number, label in enumerate(self.classes)}
        numbers = pa.array([index[label] for label in rows["label"].to_pylist()], pa.int32())
        return rows.append_column("class_index", numbers)

    @property
    def group_of(self) -> dict[str, str]:
        """The group of each readable, labelled image by its id; see `splits.independent_groups`."""
        rows = self.readable
        return dict(zip(rows["image_id"].to_pylist(), splits.independent_groups(rows), strict=True))

    @property
    def leaked(self) -> frozenset[str]:
        """Ids of the images of valid and test that the model knows from its training; see `splits.has_leaked`."""
        rows = self.readable
        return frozenset(rows["image_id"].filter(pa.array(splits.has_leaked(rows))).to_pylist())

    def class_weights(self, *, balanced: bool) -> tuple[float, ...]:
        """Returns the loss weight of each class: its inverse training frequency if `balanced`, otherwise 1."""
        return tuple(prior.class_weights(self._train_labels(), len(self.classes), balanced=balanced).tolist())

    def wanted_shares(self, wanted: str) -> np.ndarray:
        """Returns the class shares that a value of --prior means for these images; see `prior.wanted_shares`."""
        train_shares = prior.class_shares(self._train_labels(), len(self.classes))
        return prior.wanted_shares(wanted, self.classes, train_shares)

    def logit_shift(self, wanted: str, *, balanced: bool) -> np.ndarray:
        """Returns the shift to add to trained logits so that their softmax assumes the class shares of a --prior.

        Args:
            wanted: A value of --prior; see `tlray.config.values.parse_prior`.
            balanced: The logits were trained with balanced class weights.

        Returns:
            float32 [classes].
        """
        return prior.logit_shift(self.assumed_shares(balanced=balanced), self.wanted_shares(wanted))

    def assumed_shares(self, *, balanced: bool) -> np.ndarray:
        """Returns the class shares that logits assume which were trained on the training images, float64 [classes].

        Args:
            balanced: They were trained with balanced class weights.
        """
        labels = self._train_labels()
        weights = prior.class_weights(labels, len(self.classes), balanced=balanced)
        return prior.class_shares(labels, len(self.classes), weights[labels])

    def _train_labels(self) -> np.ndarray:
        return self.split("train")["class_index"].to_numpy()


def list_classes(data: str, *, columns: str | None, class_map: str | None, quiet: bool) -> listing.Listing:
    """Lists images and gives all splits the same class names.

    Args:
        data: The images, see `listing.list_images`.
        columns: A value of --columns, see `parse_columns`.
        class_map: Location of a class map; None: there is none.
        quiet: Do not print which names were unified.

    Raises:
        DataError: There are no images, or the splits' class names do not fit together.
    """
    listed = listing.list_images(data, columns=parse_columns(columns))
    table, mapping = labels.unify_classes(listed.table, labels.read_class_map(class_map) if class_map else None)
    labels.tell(mapping, quiet=quiet)
    return dataclasses.replace(listed, table=table)


def list_trainable(config: TrainConfig) -> listing.Listing:
    """Lists the images of a run, and refuses those that cannot be trained on even if all of them can be read.

    Raises:
        DataError: There are fewer than two classes, a class has no training image, or there is no validation image. See
            also `list_classes`.
    """
    listed = list_classes(config.data, columns=config.columns, class_map=config.class_map, quiet=config.quiet)
    splits.check_trainable(splits.assign_splits(listed.table, seed=config.seed))
    return listed


def as_listed(config: TrainConfig, listed: listing.Listing) -> Dataset | None:
    """Returns a preliminary data set before any file is read, assuming that all files named like images are readable.

    Returns:
        A data set without findings; None if it could not be trained on.
    """
    names = listed.table["uri"].to_pylist()
    table = listed.table.filter(pa.array([layout.is_image_name(name) for name in names], pa.bool_()))
    table = splits.assign_splits(table, seed=config.seed).append_column("error_code", pa.nulls(len(table), pa.string()))
    try:
        splits.check_trainable(table)
    except DataError:
        return None
    return Dataset(table=table, findings={})


def assemble(config: TrainConfig, table: pa.Table, *, num_skipped: int, before: Dataset | None = None) -> Dataset:
    """Returns the audited data set, with splits.

    Args:
        config: A resolved config.
        table: The images, sorted by id, with `inspection.INSPECTION_COLUMNS`; copies have the same `splits.PICTURE`.
        num_skipped: Number of entries that were left out, see `listing.Listing`.
        before: The same images before their copies were known. Its intensity range stays, although some images may
            have come into another split since: features in that range have been computed.

    Raises:
        DataError: The readable images cannot be trained on.
    """
    readable = table.filter(pc.field("error_code").is_null())
    lost = set(table["label"].drop_null().to_pylist()) - set(readable["label"].to_pylist())
    if lost:
        failed = table.filter(pc.field("error_code").is_valid() & pc.field("label").isin(sorted(lost)))
        raise DataError(f"None of the images of {some(lost)} can be read, {audit.explain_failures(failed)}")
    table = with_splits(table, seed=config.seed)
    findings = audit.audit(table)
    findings["num_skipped"] = num_skipped
    findings["intensity_range"] = before.intensity_range if before else intensity.find_range(config, table)
    findings["untrained_16_bit"] = intensity.count_untrained(config, table)
    dataset = Dataset(table=table, findings=findings)
    splits.check_trainable(dataset.readable)
    return dataset


def stored_dataset(out: str) -> Dataset | None:
    """Reads the data set that `write_dataset` has written into a run's directory; None if there is none."""
    manifest_file, audit_file = storage.join(out, MANIFEST), storage.join(out, AUDIT)
    if not storage.exists(manifest_file) or not storage.exists(audit_file):
        return None
    gallery_file = storage.join(out, GALLERY)
    return Dataset(
        table=manifest.read_manifest(manifest_file),
        findings=json.loads(storage.read_bytes(audit_file)),
        gallery=json.loads(storage.read_bytes(gallery_file)) if storage.exists(gallery_file) else (),
    )


def write_dataset(dataset: Dataset, out: str) -> None:
    """Writes `MANIFEST`, `GALLERY` and `AUDIT` into a directory, and deletes the partial results of reading there."""
    manifest.write_manifest(dataset.table, storage.join(out, MANIFEST))
    storage.write_text(storage.join(out, GALLERY), json.dumps(list(dataset.gallery)) + "\n")
    storage.write_text(storage.join(out, AUDIT), json.dumps(dataset.findings, indent=2) + "\n")
    inspected.forget(out)


def describe(dataset: Dataset) -> str:
    """Returns a text with a line for each class: its images in each split, and its patients if they are named."""
    counts: dict[str, dict[str, int]] = dataset.findings["counts"]
    patients = audit.patients_by_class(dataset.findings)
    lines = [
        f"  {name}: {', '.join(f'{counts.get(split, {}).get(name, 0)} {split}' for split in manifest.SPLITS)}"
        + (f" (of {counted(patients[name], 'patient')})" if name in patients else "")
        for name in dataset.classes
    ]
    return "\n".join(["Images by class:", *lines])


def read_images(
    table: pa.Table, *, out: str, kind: str, task_cpus: float, meanwhile: Callable[[], None], quiet: bool
) -> pa.Table:
    """Reads every image of a manifest once; images that an interrupted reading has read already are not read again.

    Args:
        table: A manifest.
        out: The output directory, where partial results are kept; see `inspected.forget`.
        kind: Kind of output, see `storage.check_output`.
        task_cpus: CPUs that a reading task asks for.
        meanwhile: A function that is called after each part; an exception from it ends the reading.
        quiet: Show no progress.

    Returns:
        The manifest with `inspection.INSPECTION_COLUMNS` and those of `looks.SCHEMA`, sorted by id.
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
    return inspection.with_results(table, pa.concat_tables(parts)).sort_by("image_id")


def without_looks(table: pa.Table) -> pa.Table:
    """Returns a table of `read_images` without most columns of `looks.SCHEMA`, which are too large to be stored."""
    return table.drop_columns([name for name in looks.SCHEMA.names if name not in looks.KEPT])


def with_splits(table: pa.Table, *, seed: int) -> pa.Table:
    """Returns the table of `read_images` with missing splits filled in, sorted by id; see `splits.assign_splits`."""
    readable = table.filter(pc.field("error_code").is_null())
    unreadable = table.filter(pc.field("error_code").is_valid())
    return pa.concat_tables([splits.assign_splits(readable, seed=seed), unreadable]).sort_by("image_id")


def measure(config: TrainConfig, dataset: Dataset) -> "ray.ObjectRef[TrainingImages | None]":
    """Starts a task that measures the grey levels of the training images, and returns its reference at once.

    If there are more than `MAX_MEASURED` training images, a random sample is measured, chosen by the config's seed.
    """
    train = dataset.split("train")
    num_measured = min(MAX_MEASURED, train.num_rows)
    sample = np.random.default_rng(config.seed).choice(train.num_rows, num_measured, replace=False)
    measured = train.take(pa.array(np.sort(sample)))
    group_of = dataset.group_of
    groups = [group_of[image_id] for image_id in measured["image_id"].to_pylist()]
    # The task asks for no CPU, because all CPUs are planned for other work.
    task = ray.remote(_measure).options(num_cpus=0)
    files = [*zip(measured["uri"].to_pylist(), stream.known_digests(measured), strict=True)]
    return task.remote(files, groups, config.image_size_px, dataset.intensity_range)


def _measure(
    files: list[tuple[str, str | None]], groups: list[str], size_px: int, intensity_range: tuple[float, float] | None
) -> TrainingImages | None:
    def grey(file: tuple[str, str | None]) -> tuple[float, float] | None:
        uri, sha256 = file
        try:
            content = stream.read_file(uri, sha256=sha256)
            image = decoding.decode(content, size_px=size_px, intensity_range=intensity_range)
        except ImageError:  # training itself reports images that can no longer be read, or have changed
            return None
        return grey_statistics(image)

    with ThreadPoolExecutor(stream.READ_THREADS) as pool:
        found = [(each, group) for each, group in zip(pool.map(grey, files), groups, strict=True) if each is not None]
    if not found:
        return None
    means, deviations = zip(*(greys for greys, _ in found), strict=True)
    return TrainingImages(
        grey_mean=Distribution.of(means),
        grey_deviation=Distribution.of(deviations),
        num_independent=independent_images([group for _, group in found]),
    )
