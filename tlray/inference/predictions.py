"""Predictions on disk: their columns, Parquet parts in a folder of their own, and a CSV beside it for people."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pv
import pyarrow.parquet as pq

from tlray.bundle.judgement import judge
from tlray.bundle.spec import BundleSpec
from tlray.data import manifest
from tlray.errors import DataError, ImageErrorCode
from tlray.files import file_stamps, spreadsheet, storage
from tlray.inference import score_state
from tlray.progress import Progress

ROWS_PER_PART = 4096
"""Number of predictions in one Parquet part. An interrupted scoring goes on after the last whole part."""

DATA = "predictions"
"""Name of the folder of Parquet parts within an output. Nothing else lies there: Polars refuses a mixed folder."""

CSV = "predictions.csv"
SUCCESS = "_SUCCESS"

SET_SEPARATOR = " | "
"""Text between two classes of a prediction set in the CSV."""

NAMES = frozenset({DATA, CSV, SUCCESS})
"""Names that `write_predictions` fills at the top level of an output."""


def prediction_schema(classes: Sequence[str]) -> pa.Schema:
    """Returns the schema of predictions.

    Columns: the manifest's (`label` is the truth; `group_id` is the patient: the image's own id where none is known,
    and null in what `write_predictions` writes), `predicted_label` (null on error), `confidence` (the largest
    probability), `refer` (a person must look at the image) and `refer_reason` (see `judgement.REASONS`; null where
    nothing is referred), `prediction_set` (the classes that it may have, in CSV joined with ` | `), `ood_score` (how
    foreign it is), `p_<class>` for each class, `error_code`, `error` (null where all is well), `bundle_sha256`.
    `prediction_set` and `ood_score` are null where the bundle cannot tell.
    """
    return pa.schema(
        [
            *manifest.SCHEMA,
            pa.field("predicted_label", pa.string()),
            pa.field("confidence", pa.float32()),
            pa.field("refer", pa.bool_()),
            pa.field("refer_reason", pa.string()),
            pa.field("prediction_set", pa.list_(pa.string())),
            pa.field("ood_score", pa.float32()),
            *(pa.field(f"p_{name}", pa.float32()) for name in classes),
            pa.field("error_code", pa.string()),
            pa.field("error", pa.string()),
            pa.field("bundle_sha256", pa.string()),
        ]
    )


def prediction_table(rows: pa.Table, batch: Mapping[str, Any], spec: BundleSpec, bundle_sha256: str) -> pa.Table:
    """Joins a manifest's rows with the model's predictions for them.

    Args:
        rows: The manifest's rows.
        batch: `probabilities` (float32 [rows, classes], NaN where there are none), `ood_score` (float32 [rows], NaN
            where it is not known), and the strings `sha256`, `error_code` and `error`, empty for none.
        spec: The bundle's description.
        bundle_sha256: The bundle's sha256, by which it is known.
    """
    probs_BK = np.asarray(batch["probabilities"])
    error_code, error = (_null_if_empty(batch[name]) for name in ("error_code", "error"))
    valid = np.asarray(np.isfinite(probs_BK).all(axis=1))
    for place in np.flatnonzero(~valid):
        if error_code[place] is None:
            error_code[place] = ImageErrorCode.PREDICT_FAILED.value
            error[place] = "The model gave no finite probabilities for this image."
    confidence = np.where(valid, probs_BK.max(axis=1), np.nan)
    best = probs_BK.argmax(axis=1)
    labels = [spec.classes[k] for k in best]
    ood_scores = np.asarray(batch["ood_score"])
    judged = judge(np.where(valid[:, np.newaxis], probs_BK, 0), ood_scores, spec.limits)
    columns: dict[str, Any] = {
        **{name: rows[name] for name in manifest.SCHEMA.names},
        "sha256": _null_if_empty(batch["sha256"]),
        "predicted_label": pa.array(labels, pa.string(), mask=~valid),
        "confidence": pa.array(confidence, pa.float32(), mask=~valid),
        "refer": pa.array(judged.refer, pa.bool_(), mask=~valid),
        "refer_reason": pa.array(judged.reasons, pa.string(), mask=~valid | ~judged.refer),
        "prediction_set": pa.array(_class_sets(judged.sets_BK, valid, spec.classes), pa.list_(pa.string())),
        "ood_score": pa.array(ood_scores, pa.float32(), mask=~valid | np.isnan(ood_scores)),
        **{f"p_{name}": pa.array(probs_BK[:, k], pa.float32(), mask=~valid) for k, name in enumerate(spec.classes)},
        "error_code": error_code,
        "error": error,
        "bundle_sha256": [bundle_sha256] * len(best),
    }
    return pa.table(columns, schema=prediction_schema(spec.classes))


def _class_sets(sets_BK: np.ndarray | None, valid: np.ndarray, classes: Sequence[str]) -> list[list[str] | None]:
    """Returns the classes in each prediction set; None where there is none."""
    if sets_BK is None:
        return [None] * len(valid)
    return [
        [name for name, is_in in zip(classes, row, strict=True) if is_in] if is_valid else None
        for row, is_valid in zip(sets_BK.tolist(), valid.tolist(), strict=True)
    ]


def _null_if_empty(values: np.ndarray) -> list[str | None]:
    return [str(value) or None for value in values]


def part_names(out: str) -> list[str]:
    """Returns the names of an output's Parquet parts, in order."""
    names = storage.list_names(storage.join(out, DATA))
    return [name for name in names if re.fullmatch(r"part-\d{5}\.parquet", name)]


def read_part(out: str, name: str, *, columns: list[str] | None = None) -> pa.Table:
    """Reads one Parquet part of an output.

    Args:
        out: The output.
        name: See `part_names`.
        columns: The columns to read; None: all.

    Raises:
        DataError: The part is damaged.
        OSError: The file cannot be read.
    """
    location = storage.join(out, DATA, name)
    content = pa.BufferReader(storage.read_bytes(location))  # a storage that fails has damaged nothing
    try:
        return pq.read_table(content, columns=columns, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"'{location}' is damaged: {error}. Continue the scoring with --resume, or run the evaluation again."
        ) from error


def delete_part(out: str, name: str) -> None:
    """Deletes one Parquet part of an output."""
    storage.delete(storage.join(out, DATA, name))


def write_part(out: str, number: int, table: pa.Table) -> None:
    """Writes one Parquet part of an output, whole or not at all.

    Args:
        out: The output.
        number: The part's number.
        table: Predictions. A column `file_stamps.COLUMN` goes into the private state.
    """
    name = f"part-{number:05d}.parquet"
    if file_stamps.COLUMN in table.column_names:
        # First: a part without its stamps costs reading its images again, stamps without a part cost nothing.
        score_state.write_stamps(out, name, table[file_stamps.COLUMN].to_pylist())
        table = table.drop_columns([file_stamps.COLUMN])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    storage.write_bytes(storage.join(out, DATA, name), sink.getvalue().to_pybytes())


def write_predictions(
    tables: Iterator[pa.Table], out: str, *, schema: pa.Schema, num_done: int = 0, progress: Progress
) -> None:
    """Writes predictions as Parquet parts, then the CSV, then `_SUCCESS`.

    Where no patient is named, a manifest has the image's own id as `group_id`. It is written as null. Files that a
    killed scoring has left half written are deleted.

    Args:
        tables: The predictions.
        out: The output. Parts that are there already stay, and the new ones follow them.
        schema: See `prediction_schema`.
        num_done: The number of rows in the parts that are there already.
        progress: Shows the number of rows.
    """
    _delete_leftovers(out)
    waiting: list[pa.Table] = []
    num_waiting, num_parts = 0, len(part_names(out))
    for table in tables:
        waiting.append(without_own_groups(table))
        num_waiting += table.num_rows
        while num_waiting >= ROWS_PER_PART:
            whole = pa.concat_tables(waiting)
            write_part(out, num_parts, whole.slice(0, ROWS_PER_PART))
            waiting, num_parts = [whole.slice(ROWS_PER_PART)], num_parts + 1
            num_waiting -= ROWS_PER_PART
        num_done += table.num_rows
        progress.update(num_done)
    if num_waiting or not num_parts:
        write_part(out, num_parts, pa.concat_tables(waiting) if waiting else schema.empty_table())
    _write_csv(out, schema)
    storage.write_text(storage.join(out, SUCCESS), "")


def _delete_leftovers(out: str) -> None:
    """Deletes the files `.NAME.RANDOM` that a killed writer has left of an output, see `storage.output_stream`.

    Polars would refuse the folder of parts with them.
    """
    state, parts = score_state.FOLDER, (".part-",)
    starts_of = {
        out: tuple(f".{name}." for name in (CSV, SUCCESS, storage.MARK)),
        storage.join(out, DATA): parts,
        storage.join(out, state): tuple(f".{name}." for name in (score_state.IDENTITY, score_state.PROGRESS)),
        storage.join(out, state, score_state.STAMPS): parts,
    }
    for folder, starts in starts_of.items():
        for name in storage.list_names(folder):
            if name.startswith(starts):
                storage.delete(storage.join(folder, name))


def without_own_groups(table: pa.Table) -> pa.Table:
    """Returns a manifest or predictions, with a null `group_id` where it is the image's own id: no patient is known."""
    if "group_id" not in table.column_names:
        return table
    ids, groups = manifest.column_lists(table, "image_id", "group_id")
    known = [None if group == own else group for group, own in zip(groups, ids, strict=True)]
    return manifest.with_column(table, "group_id", known)


def _write_csv(out: str, schema: pa.Schema) -> None:
    schema = _for_people(schema.empty_table()).schema
    with storage.output_stream(storage.join(out, CSV)) as sink, pv.CSVWriter(sink, schema) as writer:
        for name in part_names(out):
            writer.write_table(_for_people(read_part(out, name)))


def _for_people(table: pa.Table) -> pa.Table:
    """Returns a table of texts and numbers; no text is one that a spreadsheet takes for a formula."""
    for place, field in enumerate(table.schema):
        is_set = pa.types.is_list(field.type)
        if not is_set and field.type != pa.string():
            continue
        texts = table[field.name].to_pylist()
        if is_set:
            texts = [None if names is None else SET_SEPARATOR.join(names) for names in texts]
        texts = [None if text is None else spreadsheet.as_text(text) for text in texts]
        table = table.set_column(place, field.name, pa.array(texts, pa.string()))
    return table


def read_predictions(out: str) -> pa.Table:
    """Reads the predictions of a finished output.

    Raises:
        DataError: The scoring did not finish.
    """
    if not storage.exists(storage.join(out, SUCCESS)):
        raise DataError(
            f"'{out}' has no {SUCCESS}: the scoring did not finish. Continue it with --resume, or run the evaluation "
            "again."
        )
    return pa.concat_tables([read_part(out, name) for name in part_names(out)])
