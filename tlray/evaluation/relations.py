"""Finds how measured images are related: to one another, and to the images that their model learned from.

Images of one patient and copies of a picture are not independent, and an image that the model learned from, or a copy
of it, does not show what the model is worth. `tlray evaluate` looks at the images as a training does: `look` reads them
(`tlray.evaluation.scope` says which), and `find` compares them with one another, and with the pictures in the bundle
where the images that the model learned from are not there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.bundle.leaks import IMAGES, NOTHING, PICTURES, LeakSearch
from tlray.bundle.lookalikes import KeptImages
from tlray.bundle.novelty import directions
from tlray.data import dataset, inspection, label_conflicts, looks, manifest, splits
from tlray.data.manifest import FURTHER, with_column
from tlray.evaluation.scope import LEARNED_FROM, Scope
from tlray.files import file_stamps
from tlray.inference.pool import PLACES
from tlray.trust import pictures
from tlray.trust.copies import Copies, describe, find_copies
from tlray.trust.gallery import make_gallery

MEASURED, IN_BUNDLE = "measured", "training"
"""Names in the report for the split of measured images of another data set, and of the pictures in the bundle."""


def look(images: Scope, *, out: str, kind: str, task_cpus: float, quiet: bool) -> pa.Table:
    """Reads the images of a scope that are to be looked at, once each, in tasks on the cluster.

    Args:
        images: The scope.
        out: The output directory, where partial results are kept; see `inspected.forget`.
        kind: Kind of output, see `storage.check_output`.
        task_cpus: CPUs that a task asks for.
        quiet: Show no progress.

    Returns:
        See `dataset.read_images`.
    """
    table = images.table.filter(pa.array(images.is_read))
    if not table.num_rows:  # no image has a label
        columns = [field for field in inspection.INSPECTED_SCHEMA if field.name != file_stamps.COLUMN]
        return pa.schema([*table.drop_columns(["sha256"]).schema, *columns]).empty_table()
    return dataset.read_images(table, out=out, kind=kind, task_cpus=task_cpus, meanwhile=lambda: None, quiet=quiet)


def with_traits(chosen: pa.Table, seen: pa.Table) -> pa.Table:
    """Returns measured images with their sizes, formats and modes, by which subgroups are cut.

    Args:
        chosen: The manifest of the measured images.
        seen: See `look`. Images that are not in it have nulls.
    """
    place_of = {image_id: place for place, image_id in enumerate(seen["image_id"].to_pylist())}
    places = pa.array([place_of.get(image_id) for image_id in chosen["image_id"].to_pylist()], pa.int64())
    # The manifest of a training, given as a table, says the same of its images, and more that is no trait of them.
    pictures = (splits.PIXELS, splits.PICTURE, splits.SERIES)
    own = {*inspection.INSPECTION_COLUMNS, *looks.KEPT, *pictures}
    chosen = chosen.drop_columns([FURTHER + name for name in own if FURTHER + name in chosen.column_names])
    for name in ("width_px", "height_px", *looks.KEPT):
        chosen = chosen.append_column(name, seen[name].take(places))
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Relations:
    """Groups of measured images, and which of them their model knows.

    Attributes:
        group_of: The group of each image by its id: its patient, joined with those who have a copy or a neighbour of
            one of its pictures.
        leaked: Ids of the images that the model knows from its training; None: it cannot be told.
        findings: `copies` (see `copies.describe`), `neighbours` (split to the number of images in `near`) and
            `leak_search` (the fields of `LeakSearch`), for the report.
        near: Ids of other images that look like slices of the same series as images that the model learned from, where
            these are known. Of the model's own data, only images without a named patient.
        fold_group_of: The group that stays whole in a cross-validation of each image by its id, see
            `splits.dividing_groups`.
        gallery: Pictures of copies and neighbours, see `gallery.make_gallery`.
    """

    group_of: Mapping[str, str]
    leaked: frozenset[str] | None
    findings: Mapping[str, Any]
    near: frozenset[str] = frozenset()
    fold_group_of: Mapping[str, str] = field(default_factory=dict)
    gallery: Sequence[Mapping[str, Any]] = ()

    def regrouped(self, predicted: pa.Table) -> pa.Table:
        """Returns predictions with these groups in `group_id`; images without a label keep theirs."""
        image_ids, given = manifest.column_lists(predicted, "image_id", "group_id")
        groups = [self.group_of.get(image_id, group) for image_id, group in zip(image_ids, given, strict=True)]
        return with_column(predicted, "group_id", groups)


def find(
    images: Scope,
    seen: pa.Table,
    predicted: pa.Table,
    kept: KeptImages | None,
    classes: Sequence[str],
    *,
    split: str,
    with_pictures: bool,
    task_cpus: float,
    quiet: bool,
) -> Relations:
    """Compares images with one another, and with the images that the model learned from, as far as these are there.

    Args:
        images: The scope.
        seen: See `look`.
        predicted: Predictions for the measured images, with `PLACES` where the bundle knows them.
        kept: The training images that the bundle keeps; None: it keeps none.
        classes: The bundle's classes.
        split: Name of the measured split.
        with_pictures: Give pictures of copies and neighbours.
        task_cpus: CPUs that a task asks for.
        quiet: Show no progress.
    """
    rows = _comparable(images, seen, predicted)
    # Other files with the ids of images that the model learned from do not show what it has learned.
    has_learned = images.has_learned and images.has_own_files is not False
    shown, labels, toward = _pictures(None if has_learned else kept, classes)
    num_kept = len(labels)
    thumbnails = looks.thumbnails(rows) if rows.num_rows else shown[:0]
    if num_kept:
        thumbnails = np.concatenate([thumbnails, shown])
    rows = rows.drop_columns(["thumbnail"])  # memory
    found = find_copies(
        joint_directions(rows, predicted, toward),
        thumbnails,
        [*rows["pixels_sha256"].to_pylist(), *(f"in the bundle {number}" for number in range(num_kept))],
        num_known=num_kept,
        compare=partial(pictures.compare, task_cpus=task_cpus, quiet=quiet),
    )
    named = rows.select(["image_id", "split", "label"])
    if not images.knows_splits:
        named = with_column(named, "split", [MEASURED] * named.num_rows)
    # Beside files of the training split their pictures are no copies in another split.
    kept_in = "train" if images.has_learned else IN_BUNDLE
    extra = {"image_id": [label_conflicts.IN_BUNDLE] * num_kept, "split": [kept_in] * num_kept, "label": labels}
    named = pa.concat_tables([named, pa.table(extra, schema=named.schema)])
    related = relate(images, rows["image_id"].to_pylist(), found, split=split)
    num_learned = sum(each in LEARNED_FROM[split] for each in rows["split"].to_pylist())
    search = LeakSearch(
        among=IMAGES if has_learned else PICTURES if num_kept else NOTHING,
        num_compared=num_learned if has_learned else num_kept,
        num_pictures=None if kept is None else kept.num_pictures,
        is_own=images.is_own,
        knows_splits=images.knows_splits,
        has_own_files=images.has_own_files,
    )
    return Relations(
        group_of=related.group_of,
        leaked=related.leaked if images.knows_splits or num_kept else None,
        near=related.near,
        fold_group_of=related.fold_group_of,
        findings={
            "copies": describe(found, named),
            "neighbours": {split: len(related.near)},
            "leak_search": asdict(search),
        },
        gallery=make_gallery(found, named, thumbnails) if with_pictures else (),
    )


def _comparable(images: Scope, seen: pa.Table, predicted: pa.Table) -> pa.Table:
    """Returns the rows of `look` with a thumbnail that were scored, or that are not measured."""
    scored = predicted.filter(pc.field("confidence").is_valid())["image_id"]
    unmeasured = images.table.filter(pa.array(~images.is_measured))["image_id"]
    wanted = pa.array([*scored.to_pylist(), *unmeasured.to_pylist()], pa.string())
    return seen.filter(pc.field("error_code").is_null() & pc.field("image_id").isin(wanted))


def _pictures(kept: KeptImages | None, classes: Sequence[str]) -> tuple[np.ndarray, list[str], np.ndarray | None]:
    """Returns the pictures of kept images, with their labels and directions; see `KeptImages.pictures`.

    Args:
        kept: The kept images; None: there are none.
        classes: The bundle's classes.

    Returns:
        uint8 [images, THUMBNAIL_PX, THUMBNAIL_PX]; the labels; and float32 [images, components], None without images.
    """
    if kept is None:
        return np.empty((0, looks.THUMBNAIL_PX, looks.THUMBNAIL_PX), np.uint8), [], None
    shown, places = kept.pictures()
    labels = [classes[int(index)] for index in kept.labels[places]]
    return shown, labels, kept.directions[places] if places else None


def joint_directions(rows: pa.Table, predicted: pa.Table, toward: np.ndarray | None) -> np.ndarray | None:
    """Returns where images lie in the space of the training images, with kept images after them.

    Args:
        rows: The images.
        predicted: See `find`.
        toward: Directions of the kept images, float32 [images, components]; None: there are none.

    Returns:
        Directions, float32 [images, components]; None unless those of all images are known.
    """
    if PLACES not in predicted.column_names:
        return None
    place_of = {image_id: place for place, image_id in enumerate(predicted["image_id"].to_pylist())}
    places = [place_of.get(image_id) for image_id in rows["image_id"].to_pylist()]
    if None in places or not places:
        return None
    column = predicted[PLACES].take(pa.array(places, pa.int64())).combine_chunks()
    places_BC = column.flatten().to_numpy(zero_copy_only=False).reshape(len(places), -1)
    if not np.isfinite(places_BC).all() or (toward is not None and toward.shape[1] != places_BC.shape[1]):
        return None
    own = directions(places_BC)
    return own if toward is None else np.concatenate([own, toward])


@dataclass(frozen=True, slots=True, kw_only=True)
class Related:
    """The groups of images, and what the model knows of them.

    Attributes:
        group_of: See `Relations`.
        fold_group_of: See `Relations`.
        leaked: Ids of the measured images in a group with an image, or picture, that the model learned from. Among all
            images those of validation are such images, too: they chose the epoch and the settings.
        near: See `Relations`.
    """

    group_of: dict[str, str]
    fold_group_of: dict[str, str]
    leaked: frozenset[str]
    near: frozenset[str]


def relate(images: Scope, image_ids: Sequence[str], found: Copies, *, split: str) -> Related:
    """Groups images by patients and copies, and tells which measured ones the model knows.

    Args:
        images: The scope.
        image_ids: The ids of the images that were compared. They are the first ones in `found`; training pictures of
            the bundle, which have no ids, come after them.
        found: The copies among them.
        split: Name of the measured split, or `all`.
    """
    num_images = len(image_ids)
    first_of = [image_ids[first] for first in found.group_of[:num_images].tolist()]
    picture_of = dict(zip(image_ids, first_of, strict=True))
    in_bundle = {image_ids[first] for first in found.group_of[num_images:].tolist() if first < num_images}
    ids, given = manifest.column_lists(images.table, "image_id", "split")
    shown = [picture_of.get(image_id) for image_id in ids]
    table = images.table.append_column(splits.PICTURE, pa.array(shown, pa.string()))
    groups = splits.image_groups(table)
    first_of = [image_ids[first] for first in found.series_of[:num_images].tolist()]
    series_of = dict(zip(image_ids, first_of, strict=True))
    in_series = pa.array([series_of.get(image_id) for image_id in ids], pa.string())
    table = table.append_column(splits.SERIES, in_series)
    independent, in_folds = splits.independent_groups(table), splits.dividing_groups(table)
    is_learned = [each in LEARNED_FROM[split] for each in given]
    known = {
        group
        for group, picture, learned in zip(groups, shown, is_learned, strict=True)
        if learned or picture in in_bundle
    }
    is_known = np.array([group in known for group in groups], dtype=bool)
    leaked = frozenset(np.array(ids, dtype=object)[is_known & images.is_measured].tolist())
    measured = set(np.array(ids, dtype=object)[images.is_measured].tolist())
    # A bundle does not name its patients, so named patients of other data may be among them.
    series = splits.unnamed_series(table) if images.knows_splits else in_series.to_pylist()
    near_series = {image_ids[first] for first in found.series_of[num_images:].tolist() if first < num_images}
    near_series |= {each for each, learned in zip(series, is_learned, strict=True) if learned and each is not None}
    near = {image_id for image_id, each in zip(ids, series, strict=True) if each in near_series}
    return Related(
        group_of=dict(zip(ids, independent, strict=True)),
        fold_group_of=dict(zip(ids, in_folds, strict=True)),
        leaked=leaked,
        near=frozenset((near & measured) - leaked),
    )
