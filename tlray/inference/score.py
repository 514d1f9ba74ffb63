"""Bulk scoring on Ray: runs a bundle's model on every image of a manifest, one output row for every input row."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from tlray.bundle import store
from tlray.bundle.spec import BundleSpec
from tlray.bundle.store import Bundle
from tlray.cluster import capacity, connection, locations, plans
from tlray.cluster.plans import ScorePlan
from tlray.config.prediction import ScoreConfig
from tlray.config.values import parse_columns
from tlray.data import decoding, manifest
from tlray.data.listing import Listing, list_images
from tlray.data.table_uris import localize
from tlray.engines import choice
from tlray.engines.kinds import EngineKind
from tlray.errors import ConfigError, DataError, ImageErrorCode, TlrayError, some
from tlray.files import file_stamps, roots, storage
from tlray.inference import pool, predictions, resumed, score_state
from tlray.progress import Progress

KIND = "scoring"
EARLIER_NAMES = frozenset({"scoring.json", "progress.json", "part-*.parquet"})
"""Names at the top level of the outputs of earlier versions, which --overwrite replaces too; see `storage.check_output`
for `part-*.parquet`."""
NAMES = predictions.NAMES | EARLIER_NAMES | {score_state.FOLDER}

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreResult:
    """The result of a scoring.

    Attributes:
        out: The output directory with the predictions.
        engine: The engine and precision that predicted, such as "openvino bfloat16".
        num_images: Number of rows, one for every input file.
        num_failed: Number of rows with an error code.
        num_referred: Number of rows marked `refer`.
        num_by_reason: Number of these by `refer_reason`.
        num_by_label: Number of rows by predicted label.
        num_by_error: Number of rows by error code.
        num_skipped: Number of hidden files and folders that were passed over, see `listing.Listing`.
    """

    out: str
    engine: str
    num_images: int
    num_failed: int
    num_referred: int
    num_by_reason: Mapping[str, int]
    num_by_label: Mapping[str, int]
    num_by_error: Mapping[str, int]
    num_skipped: int


def predict(
    location: str,
    spec: BundleSpec,
    sha256: str,
    table: pa.Table,
    *,
    plan: ScorePlan,
    kind: EngineKind,
    batch_size: int,
    first_row: int = 0,
    with_stamps: bool = False,
    with_places: bool = False,
) -> Iterator[pa.Table]:
    """Scores the images of a manifest on a pool of predictors that grows and shrinks.

    Args:
        location: The bundle's location.
        spec: Its description.
        sha256: Its sha256. Nothing is scored if the bundle has been replaced by another one since it was read.
        table: A manifest.
        plan: How the model and its data share the cluster.
        kind: The engine and precision that predict.
        batch_size: Number of images that the model takes at once.
        first_row: The manifest's row to start with.
        with_stamps: Give the column `file_stamps.COLUMN` too.
        with_places: Give the column `pool.PLACES` too, of fixed-size lists of float16, if the bundle has a novelty
            score; NaN for images that could not be scored.

    Yields:
        Tables in the manifest's order, one row for each of its rows: see `predictions.prediction_schema`.

    Raises:
        BundleError: The bundle cannot be used, or was replaced.
    """
    if first_row >= table.num_rows:
        return
    batches = pool.score_batches(
        location,
        spec,
        sha256,
        table,
        plan=plan,
        kind=kind,
        batch_size=batch_size,
        first_row=first_row,
        with_stamps=with_stamps,
        with_places=with_places,
    )
    for batch in batches:
        predicted = predictions.prediction_table(table.take(batch["row"]), batch, spec, sha256)
        if with_stamps:
            predicted = predicted.append_column(file_stamps.COLUMN, pa.array(batch[file_stamps.COLUMN]))
        if with_places and pool.PLACES in batch:
            places_BC = batch[pool.PLACES]
            lists = pa.FixedSizeListArray.from_arrays(pa.array(places_BC.ravel()), places_BC.shape[1])
            predicted = predicted.append_column(pool.PLACES, lists)
        yield predicted


def score(config: ScoreConfig) -> ScoreResult:
    """Scores a file, folder, glob, zip or manifest of images into Parquet parts and a CSV.

    `_SUCCESS` is written last, `_state/progress.json` now and then. An interrupted scoring can be continued with
    `resume`.

    Raises:
        ConfigError: A setting cannot work.
        DataError: There is nothing to score, or images do not lie below the roots.
        BundleError: The bundle cannot be used.
        TlrayError: Most images were not found.
    """
    # First the checks that need no Ray.
    out = locations.output_location(config.out)
    location = locations.input_location(config.bundle)
    bundle = store.load(location)
    spec = bundle.spec
    if config.bundle_sha256 is not None:
        pool.check_bundle(location, found=bundle.sha256, wanted=config.bundle_sha256)
    kind = _choose(out, bundle, config)
    source = locations.input_location(config.input)
    listing = _list_below_roots(source, config)
    identity = {
        "bundle_sha256": bundle.sha256,
        "engine": str(kind),
        "input": localize(source),  # the same for every spelling of a location
        "data_fingerprint": manifest.fingerprint(listing.table),
        "columns": ",".join(predictions.prediction_schema(spec.classes).names),
        "decoding": str(decoding.DECODING),
    }
    is_continued = _check_output(out, identity, config)
    connection.connect()
    available = capacity.measure()
    locations.check_shared(out, available)
    locations.check_shared(location, available, option="--bundle")
    locations.check_shared_images(source, config.columns, available, option="--input")
    plan = plans.plan_scoring(available, use_gpu=config.use_gpu)
    capacity.tell_shortage(available, num_gpus=plan.gpus_per_actor, quiet=config.quiet)
    num_done = num_failed = 0
    if is_continued:
        num_done, num_failed = resumed.keep_unchanged(out, listing.table, verify=config.verify, quiet=config.quiet)
    else:
        storage.prepare_output(out, kind=KIND, known_names=NAMES, overwrite=config.overwrite)
        score_state.write_identity(out, identity)
    num_images = listing.table.num_rows
    tables = predict(
        location,
        spec,
        bundle.sha256,
        listing.table,
        plan=plan,
        kind=kind,
        batch_size=config.batch_size,
        first_row=num_done,
        with_stamps=True,
    )
    tables = score_state.write_progress(
        tables, out, job=connection.job_name(), num_images=num_images, num_done=num_done, num_failed=num_failed
    )
    with Progress("Scoring", num_images, quiet=config.quiet) as progress:
        predictions.write_predictions(
            tables, out, schema=predictions.prediction_schema(spec.classes), num_done=num_done, progress=progress
        )
    result = _summarize(out, spec, listing, engine=str(kind))
    num_missing = result.num_by_error.get(ImageErrorCode.NOT_FOUND, 0)
    check_found(num_missing, num_images, source=config.input, out=config.out, remedy="continue with --resume")
    return result


def _choose(out: str, bundle: Bundle, config: ScoreConfig) -> EngineKind:
    """Returns the engine and precision to score with: without a choice, those of the scoring to continue."""
    found = score_state.read_identity(out) if config.resume else None
    if found is None or "engine" not in found or (config.engine, config.precision) != ("auto", "auto"):
        return choice.for_bundle(bundle, config.engine, config.precision, use_gpu=config.use_gpu)
    engine, precision = found["engine"].split()
    try:
        return choice.for_bundle(bundle, engine, precision, use_gpu=config.use_gpu)
    except ConfigError as error:
        reason, _, _ = str(error).partition(". ")
        raise ConfigError(
            f"--resume: '{out}' was begun with {engine} in {precision}, which cannot be had now ({reason}). Continue "
            "with the bundle and options of then on a machine like that one, or begin anew with another --out."
        ) from error


def check_found(num_missing: int, num_images: int, *, source: str, remedy: str, out: str | None = None) -> None:
    """Raises a TlrayError if most images were not found, as the results of the others are of no use then.

    Args:
        num_missing: The number of images that were not found.
        num_images: The number of all images.
        source: Where the images were expected.
        remedy: What to do when the images are there.
        out: Where the predictions are, which have a row for every image all the same; None: they are not kept.
    """
    if 2 * num_missing > num_images:
        rows = f" (the rows are in '{out}')" if out else ""
        raise TlrayError(
            f"{num_missing} of {num_images} images of '{source}' were not found{rows}. Check that the files are there "
            f"and that every node sees them, then {remedy}."
        )


def _list_below_roots(source: str, config: ScoreConfig) -> Listing:
    """Lists the images; refuses those that do not lie below the roots, without naming them.

    Whoever gave the source is not entitled to know what lies elsewhere. The names are in the log, for the operator.
    """
    if config.roots and roots.outside([source], config.roots):  # before a manifest is opened
        raise DataError(f"'{config.input}' does not lie below the allowed roots. Give a location below one of them.")
    columns = parse_columns(config.columns)
    listing = list_images(source, columns=columns, labels_needed=False, allowed=config.roots)
    outside = roots.outside(listing.table["uri"].to_pylist(), config.roots) if config.roots else []
    if outside:
        _LOG.warning("Refused, because they do not lie below the allowed roots: %s", some(outside, limit=3))
        raise DataError(
            f"{len(outside)} of the {listing.table.num_rows} images of '{config.input}' do not lie below the allowed "
            "roots: a manifest or a symbolic link leads elsewhere. Leave them out."
        )
    return listing


def _check_output(out: str, identity: Mapping[str, str], config: ScoreConfig) -> bool:
    """Tells whether there is a scoring to continue; refuses an output that must not be touched."""
    found = score_state.read_identity(out) if config.resume else None
    if found is None:
        storage.check_output(out, kind=KIND, known_names=NAMES, overwrite=config.overwrite)
        if config.resume and not config.quiet:
            print(f"There is no {KIND} to resume in '{out}', so it starts from the beginning.")
        return False
    if "decoding" in identity:
        found = {"decoding": "2"} | dict(found)  # versions that did not yet note the decoding had this one at last
    if found != identity:
        differing = {name for name in identity if found.get(name) != identity[name]}
        other = "with another bundle or other images"
        if differing == {"engine"}:
            other = f"in another precision ({found.get('engine')})"
        elif differing <= {"columns", "decoding", "engine"}:
            what = "other columns" if "columns" in differing else "another decoding of images"
            other = f"by another version of tlray, with {what}"
        raise ConfigError(f"--resume: '{out}' was made {other}. Give what it was made with, or another output.")
    return True


def _summarize(out: str, spec: BundleSpec, listing: Listing, *, engine: str) -> ScoreResult:
    num_by_label = dict.fromkeys(spec.classes, 0)
    num_by_error: dict[str, int] = {}
    num_by_reason: dict[str, int] = {}
    columns = (("predicted_label", num_by_label), ("refer_reason", num_by_reason), ("error_code", num_by_error))
    for name in predictions.part_names(out):
        part = predictions.read_part(out, name, columns=[key for key, _ in columns])
        for key, counts in columns:
            for item in part[key].value_counts().to_pylist():
                if item["values"] is not None:
                    counts[item["values"]] = counts.get(item["values"], 0) + item["counts"]
    return ScoreResult(
        out=out,
        engine=engine,
        num_images=listing.table.num_rows,
        num_failed=sum(num_by_error.values()),
        num_referred=sum(num_by_reason.values()),
        num_by_reason=num_by_reason,
        num_by_label=num_by_label,
        num_by_error=num_by_error,
        num_skipped=listing.num_skipped,
    )
