"""Bulk scoring: every image of a manifest through a bundle's model, one row out for every row in."""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pv
import pyarrow.parquet as pq
import ray

from tlray import bundle as bundle_module
from tlray import cluster, manifest, plans, roots, storage, streams
from tlray.bundle import BundleSpec
from tlray.config import parse_columns
from tlray.errors import BundleError, ConfigError, DataError, ImageErrorCode, some
from tlray.jobconfig import ScoreConfig
from tlray.listing import Listing, list_images
from tlray.plans import ScorePlan
from tlray.progress import Progress
from tlray.schedule import PlainSchedule

ROWS_PER_PART = 4096
"""Predictions in one Parquet part: an interrupted scoring goes on after the last whole part."""

SUCCESS = "_SUCCESS"
CSV = "predictions.csv"
STATE = "scoring.json"
PROGRESS = "progress.json"
KIND = "scoring"
NAMES = frozenset({SUCCESS, CSV, STATE, PROGRESS, "part-"})

PROGRESS_INTERVAL_S = 2.0
"""The least time between two versions of `progress.json`: object stores take one a second of a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreResult:
    """What a scoring came to.

    Attributes:
        out: Where the predictions lie.
        num_images: Rows, one for every input file.
        num_failed: Rows with an error code.
        num_referred: Rows marked `refer`.
        num_by_label: Rows by predicted label.
        num_by_error: Rows by error code.
        num_skipped: Hidden files that were passed over.
    """

    out: str
    num_images: int
    num_failed: int
    num_referred: int
    num_by_label: Mapping[str, int]
    num_by_error: Mapping[str, int]
    num_skipped: int


class _Scorer:
    """An actor of Ray Data's pool. TensorFlow is imported here and not in the driver."""

    def __init__(self, location: str, sha256: str, num_threads: int | None, use_gpu: bool) -> None:
        from tlray.predictor import Predictor  # noqa: PLC0415

        self.predictor = Predictor(location, num_threads=num_threads, use_gpu=use_gpu)
        _check_bundle(location, found=self.predictor.bundle.sha256, wanted=sha256)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        images = batch.pop("image")
        readable = batch["error_code"] == ""
        probabilities = np.full((len(images), len(self.predictor.bundle.spec.classes)), np.nan, dtype=np.float32)
        probabilities[readable] = self.predictor.predict(np.ascontiguousarray(images[readable]))
        del batch["epoch"], batch["weight"]
        return {**batch, "probabilities": probabilities}


def predict(
    bundle: str, table: pa.Table, *, plan: ScorePlan, batch_size: int, first_row: int = 0
) -> Iterator[pa.Table]:
    """Scores the images of a manifest on a pool of predictors that grows and shrinks.

    Args:
        bundle: The bundle's location.
        table: A manifest.
        plan: How the cluster is shared.
        batch_size: Images that the model takes at once.
        first_row: The manifest's row to start with.

    Yields:
        Tables of predictions in the manifest's order, one row for each of its rows: see `prediction_schema`.
    """
    if first_row >= table.num_rows:
        return
    spec, sha256 = bundle_module.read_spec(bundle)
    pixels = streams.Pixels(size_px=spec.image_size_px, intensity_range=spec.intensity_range)
    schedule = PlainSchedule(num_rows=table.num_rows)
    dataset = streams.image_stream(ray.put(table), schedule, pixels, first_row=first_row)
    dataset = dataset.map_batches(
        _Scorer,
        fn_constructor_args=(bundle, sha256, plan.num_threads, bool(plan.gpus_per_actor)),
        batch_size=batch_size,
        **plan.pool(),
    )
    streams.configure(dataset)
    for batch in streams.iterate(dataset):
        yield prediction_table(table.take(batch["row"]), batch, spec, sha256)


def prediction_schema(classes: Sequence[str]) -> pa.Schema:
    """Returns the columns of predictions.

    The manifest's columns (`label` is the truth), `predicted_label` (null on error), `confidence` (the largest
    probability), `refer` (confidence under the bundle's threshold), `p_<class>` for each class, `error_code`, `error`
    (null where all is well), `bundle_sha256`.
    """
    return pa.schema(
        [
            *manifest.SCHEMA,
            pa.field("predicted_label", pa.string()),
            pa.field("confidence", pa.float32()),
            pa.field("refer", pa.bool_()),
            *(pa.field(f"p_{name}", pa.float32()) for name in classes),
            pa.field("error_code", pa.string()),
            pa.field("error", pa.string()),
            pa.field("bundle_sha256", pa.string()),
        ]
    )


def prediction_table(rows: pa.Table, batch: Mapping[str, Any], spec: BundleSpec, bundle_sha256: str) -> pa.Table:
    """Joins a manifest's rows with what the model said of them.

    Args:
        rows: The manifest's rows.
        batch: `probabilities` (float32 [rows, classes], NaN where there are none), and the strings `sha256`,
            `error_code` and `error`, empty for none.
        spec: The bundle's description.
        bundle_sha256: The bundle's name.
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
    columns: dict[str, Any] = {
        **{name: rows[name] for name in manifest.SCHEMA.names},
        "sha256": _null_if_empty(batch["sha256"]),
        "predicted_label": pa.array(labels, pa.string(), mask=~valid),
        "confidence": pa.array(confidence, pa.float32(), mask=~valid),
        "refer": pa.array(confidence < spec.refer_below, pa.bool_(), mask=~valid),
        **{f"p_{name}": pa.array(probs_BK[:, k], pa.float32(), mask=~valid) for k, name in enumerate(spec.classes)},
        "error_code": error_code,
        "error": error,
        "bundle_sha256": [bundle_sha256] * len(best),
    }
    return pa.table(columns, schema=prediction_schema(spec.classes))


def _null_if_empty(values: np.ndarray) -> list[str | None]:
    return [str(value) or None for value in values]


def score(config: ScoreConfig) -> ScoreResult:
    """Scores a file, folder, glob, zip or manifest of images into Parquet parts and a CSV.

    `_SUCCESS` is written last, `progress.json` now and then. An interrupted scoring can be continued with `resume`.

    Raises:
        ConfigError: A setting cannot work.
        DataError: There is nothing to score, or it lies elsewhere than below the roots.
        BundleError: The bundle cannot be used.
    """
    # First what needs no Ray.
    out = cluster.output_location(config.out)
    bundle = cluster.input_location(config.bundle)
    spec, bundle_sha256 = bundle_module.read_spec(bundle)
    if config.bundle_sha256 is not None:
        _check_bundle(bundle, found=bundle_sha256, wanted=config.bundle_sha256)
    bundle_module.load(bundle)
    source = cluster.input_location(config.input)
    _check_roots([source], config.roots)  # before a manifest is opened
    listing = list_images(source, columns=parse_columns(config.columns), labels_needed=False)
    _check_roots(listing.table["uri"].to_pylist(), config.roots)
    identity = {
        "bundle_sha256": bundle_sha256,
        "input": config.input,
        "data_fingerprint": manifest.fingerprint(listing.table),
    }
    is_continued = _check_output(out, identity, config)
    cluster.connect()
    available = cluster.capacity()
    plan = plans.plan_scoring(available, use_gpu=config.use_gpu)
    cluster.tell_shortage(available, num_gpus=plan.gpus_per_actor, quiet=config.quiet)
    num_done = num_failed = 0
    if is_continued:
        num_done, num_failed = _keep_unchanged(out, listing.table, quiet=config.quiet)
    else:
        storage.prepare_output(out, kind=KIND, known_names=NAMES, overwrite=config.overwrite)
        storage.write_text(storage.join(out, STATE), json.dumps(identity, indent=2) + "\n")
    num_images = listing.table.num_rows
    tables = predict(bundle, listing.table, plan=plan, batch_size=config.batch_size, first_row=num_done)
    with Progress("Scoring", num_images, quiet=config.quiet) as progress:
        write_predictions(
            write_progress(tables, out, num_images=num_images, num_done=num_done, num_failed=num_failed),
            out,
            schema=prediction_schema(spec.classes),
            num_done=num_done,
            progress=progress,
        )
    return _summarize(out, spec, listing)


def _check_bundle(location: str, *, found: str, wanted: str) -> None:
    if found != wanted:
        raise BundleError(
            f"The bundle '{location}' is {found[:12]}…, not {wanted[:12]}…: another one took its place. Score with the "
            "present one, or give the location of that one."
        )


def _check_roots(locations: Sequence[str], allowed: Sequence[str]) -> None:
    outside = roots.outside(locations, allowed) if allowed else []
    if outside:
        raise DataError(
            f"Not below the roots, by a manifest or a symbolic link: {some(outside, limit=3)}. Leave such images out."
        )


def _check_output(out: str, identity: Mapping[str, str], config: ScoreConfig) -> bool:
    """Tells whether there is a scoring to continue; refuses an output that must not be touched."""
    state_file = storage.join(out, STATE)
    if not config.resume or not storage.exists(state_file):
        storage.check_output(out, kind=KIND, known_names=NAMES, overwrite=config.overwrite)
        if config.resume and not config.quiet:
            print(f"There is no {KIND} to resume in '{out}': it begins anew.")
        return False
    if json.loads(storage.read_bytes(state_file)) != identity:
        raise ConfigError(
            f"--resume: '{out}' was made with another bundle or other images. Give another output, or --overwrite."
        )
    return True


def _keep_unchanged(out: str, table: pa.Table, *, quiet: bool) -> tuple[int, int]:
    """Deletes the first part with an image whose file is another than when it was scored, and all behind it.

    Returns:
        How many rows stay, and how many of them have an error.
    """
    names = part_names(out)
    parts = [pq.read_table(_open(storage.join(out, name)), columns=["sha256", "error_code"]) for name in names]
    before = pa.concat_tables(parts)["sha256"].fill_null("").to_pylist() if parts else []
    now: list[str] = []
    with Progress("Looking for images that have changed", len(before), quiet=quiet) as progress:
        for digests in streams.digests(table["uri"].slice(0, len(before))) if before else ():
            now += digests
            progress.update(len(now))
    changed = [place for place, (old, new) in enumerate(zip(before, now, strict=True)) if old != new]
    ends = np.cumsum([part.num_rows for part in parts])
    num_kept = int(np.searchsorted(ends, changed[0], side="right")) if changed else len(parts)
    num_done = sum(part.num_rows for part in parts[:num_kept])
    if changed:
        if not quiet:
            print(
                f"Changed since it was scored: {len(changed)} of {len(before)} images. Scoring goes on behind image "
                f"{num_done} of {table.num_rows}."
            )
        storage.delete(storage.join(out, SUCCESS))
        for name in reversed(names[num_kept:]):
            storage.delete(storage.join(out, name))
    return num_done, sum(part.num_rows - part["error_code"].null_count for part in parts[:num_kept])


def write_progress(
    tables: Iterator[pa.Table], out: str, *, num_images: int, num_done: int = 0, num_failed: int = 0
) -> Iterator[pa.Table]:
    """Passes predictions on and writes how far they are into `progress.json`, for whoever looks from outside.

    It has `job` (see `cluster.job_name`), `done`, `failed` (of these, with an error), `total`, and `waiting`: the first
    ones have yet to come, as a model is being loaded or waits for a free CPU.
    """

    def write(*, waiting: bool = False) -> None:
        now = {
            "job": cluster.job_name(),
            "done": num_done,
            "failed": num_failed,
            "total": num_images,
            "waiting": waiting,
        }
        storage.write_text(storage.join(out, PROGRESS), json.dumps(now) + "\n")

    write(waiting=num_done < num_images)
    written_s = -PROGRESS_INTERVAL_S
    for table in tables:
        num_done += table.num_rows
        num_failed += table.num_rows - table["error_code"].null_count
        if time.monotonic() - written_s >= PROGRESS_INTERVAL_S:
            write()
            written_s = time.monotonic()
        yield table
    write()


def _open(location: str) -> pa.NativeFile:
    file_system, path = storage.open_location(location)
    return file_system.open_input_file(path)


def part_names(out: str) -> list[str]:
    """Returns the names of the Parquet parts of an output, in order."""
    return [name for name in storage.list_names(out) if re.fullmatch(r"part-\d{5}\.parquet", name)]


def write_predictions(
    tables: Iterator[pa.Table], out: str, *, schema: pa.Schema, num_done: int = 0, progress: Progress
) -> None:
    """Writes predictions as Parquet parts, each whole or not at all, then the CSV, then `_SUCCESS`."""
    waiting: list[pa.Table] = []
    num_waiting, num_parts = 0, len(part_names(out))
    for table in tables:
        waiting.append(table)
        num_waiting += table.num_rows
        while num_waiting >= ROWS_PER_PART:
            whole = pa.concat_tables(waiting)
            _write_part(out, num_parts, whole.slice(0, ROWS_PER_PART))
            waiting, num_parts = [whole.slice(ROWS_PER_PART)], num_parts + 1
            num_waiting -= ROWS_PER_PART
        num_done += table.num_rows
        progress.update(num_done)
    if num_waiting or not num_parts:
        _write_part(out, num_parts, pa.concat_tables(waiting) if waiting else schema.empty_table())
    _write_csv(out, schema)
    storage.write_text(storage.join(out, SUCCESS), "")


def _write_part(out: str, number: int, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.write_bytes(storage.join(out, f"part-{number:05d}.parquet"), sink.getvalue().to_pybytes())


def _write_csv(out: str, schema: pa.Schema) -> None:
    with storage.output_stream(storage.join(out, CSV)) as sink, pv.CSVWriter(sink, schema) as writer:
        for name in part_names(out):
            writer.write_table(pq.read_table(_open(storage.join(out, name))))


def read_predictions(out: str) -> pa.Table:
    """Reads a finished output.

    Raises:
        DataError: It is not finished.
    """
    if not storage.exists(storage.join(out, SUCCESS)):
        raise DataError(f"'{out}' has no {SUCCESS}: the scoring did not finish. Continue it with --resume.")
    return pa.concat_tables([pq.read_table(_open(storage.join(out, name))) for name in part_names(out)])


def _summarize(out: str, spec: BundleSpec, listing: Listing) -> ScoreResult:
    num_by_label = dict.fromkeys(spec.classes, 0)
    num_by_error: dict[str, int] = {}
    num_referred = 0
    for name in part_names(out):
        columns = ["predicted_label", "refer", "error_code"]
        part = pq.read_table(_open(storage.join(out, name)), columns=columns)
        num_referred += sum(1 for value in part["refer"].to_pylist() if value)
        for key, counts in (("predicted_label", num_by_label), ("error_code", num_by_error)):
            for item in part[key].value_counts().to_pylist():
                if item["values"] is not None:
                    counts[item["values"]] = counts.get(item["values"], 0) + item["counts"]
    return ScoreResult(
        out=out,
        num_images=listing.table.num_rows,
        num_failed=sum(num_by_error.values()),
        num_referred=num_referred,
        num_by_label=num_by_label,
        num_by_error=num_by_error,
        num_skipped=listing.num_skipped,
    )
