"""Suggests which unlabelled images to label next (`tlray suggest`): scores them, selects some, writes the selection.

The selection comes from `tlray.inference.selection`, its picture from `tlray.inference.contact_sheet`.
"""

import dataclasses
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv

from tlray.bundle import store
from tlray.bundle.store import Bundle
from tlray.cluster import capacity, connection, locations, plans
from tlray.cluster.plans import ScorePlan
from tlray.config.prediction import SuggestConfig
from tlray.config.values import parse_columns
from tlray.data import sample
from tlray.data.listing import list_images
from tlray.data.stream import Pixels
from tlray.engines import choice
from tlray.engines.kinds import EngineKind
from tlray.errors import DataError, ImageErrorCode, counted
from tlray.files import storage
from tlray.inference import contact_sheet, pool, predictions, score, selection
from tlray.inference.copy_search import CopySearch
from tlray.inference.selection import Scored
from tlray.progress import Progress

SUGGESTIONS_CSV = "suggestions.csv"
SUGGESTIONS_PNG = "suggestions.png"
SUGGESTIONS_JSON = "suggestions.json"
KIND = "suggestions"
NAMES = frozenset({SUGGESTIONS_CSV, SUGGESTIONS_PNG, SUGGESTIONS_JSON})

MAX_SHOWN = 200
"""Maximum number of images on the contact sheet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuggestResult:
    """The images whose labels would help a model most.

    Attributes:
        out: The output directory.
        image_ids: The suggested images, the most wanted first.
        summary: The content of `suggestions.json`: the counts of `selection.summarize`; `num_images`, `num_labelled`
            (images that were left out because they have a label) and `num_skipped` (hidden files and folders);
            `bundle`, `bundle_sha256` and `engine`; `settings` (the options of the command) and `notes`.
        notes: Remarks for people on how the images were selected.
    """

    out: str
    image_ids: tuple[str, ...]
    summary: Mapping[str, Any]
    notes: tuple[str, ...]

    def rows(self) -> list[tuple[str, str]]:
        """Returns lines for people, a name and a text each."""
        found = self.summary
        codes = ", ".join(f"{code}: {number}" for code, number in found["num_by_error"].items())
        failed = f"{sum(found['num_by_error'].values())} failed" + (f" ({codes})" if codes else "")
        low, high = found["uncertainty_range"]
        foreign = "not known" if found["max_ood_score"] is None else f"{found['num_foreign']} left out"
        known = "not known" if found["num_known"] is None else f"{found['num_known']} left out"
        return [
            ("images", f"{found['num_scored']} scored, {failed}"),
            ("images with a label", f"{found['num_labelled']} left out"),
            ("unlike the training images", foreign),
            ("copies of training images", known),
            *([("hidden files and folders skipped", str(found["num_skipped"]))] if found["num_skipped"] else []),
            (
                "suggested",
                f"{counted(found['num_suggested'], 'image')}; the model is unsure of {found['num_unsure']}",
            ),
            ("their uncertainty", f"{low:.2f} to {high:.2f} (0: one class is certain, 1: all are equally likely)"),
            ("engine", found["engine"]),
            ("table to fill in", f"{self.out}/{SUGGESTIONS_CSV}"),
            ("contact sheet", f"{self.out}/{SUGGESTIONS_PNG}"),
            ("all counts", f"{self.out}/{SUGGESTIONS_JSON}"),
        ]


def suggest(config: SuggestConfig) -> SuggestResult:
    """Scores unlabelled images with a bundle, and writes those whose labels would help the model most.

    `suggestions.json` is written last.

    Raises:
        ConfigError: A setting cannot work.
        DataError: There is no image without a label, none could be scored, or all are unlike the training images or
            copies of them.
        BundleError: The bundle cannot be used.
        TlrayError: Most images were not found.
    """
    # First the checks that need no Ray.
    out = locations.output_location(config.out)
    storage.check_output(out, kind=KIND, known_names=NAMES, overwrite=config.overwrite)
    location = locations.input_location(config.bundle)
    bundle = store.load(location)
    kind = choice.for_bundle(bundle, config.engine, config.precision, use_gpu=config.use_gpu)
    kept = bundle.lookalikes()
    source = locations.input_location(config.input)
    listed = list_images(source, columns=parse_columns(config.columns), labels_needed=False)
    unlabelled = without_labels(listed.table, config.input)
    plan = _plan(out, location, source, config)
    storage.prepare_output(out, kind=KIND, known_names=NAMES, overwrite=config.overwrite)
    scored = _score(location, bundle, unlabelled, plan=plan, kind=kind, config=config)
    num_missing = scored.predictions.filter(pc.field("error_code") == ImageErrorCode.NOT_FOUND.value).num_rows
    num_images = scored.predictions.num_rows
    score.check_found(num_missing, num_images, source=config.input, remedy="run the same command again")
    selected = selection.select(
        scored,
        bundle.spec,
        count=config.count,
        search=lambda uris, places_BC: CopySearch(uris, places_BC, kept).find,
    )
    notes = selection.notes_on(selected, count=config.count, max_shown=MAX_SHOWN)
    summary: dict[str, Any] = {
        "num_images": listed.table.num_rows,
        "num_labelled": listed.table.num_rows - unlabelled.num_rows,
        "num_skipped": listed.num_skipped,
        **selection.summarize(selected, bundle.spec),
        "bundle": config.bundle,
        "bundle_sha256": bundle.sha256,
        "engine": str(kind),
        "settings": dataclasses.asdict(config),
        "notes": list(notes),
    }
    sink = pa.BufferOutputStream()
    pv.write_csv(selection.csv_table(selected, bundle.spec.classes), sink)
    storage.write_bytes(storage.join(out, SUGGESTIONS_CSV), sink.getvalue().to_pybytes())
    picture = draw_sheet(selected.rows, bundle.spec.intensity_range)
    storage.write_bytes(storage.join(out, SUGGESTIONS_PNG), picture)
    storage.write_text(storage.join(out, SUGGESTIONS_JSON), json.dumps(summary, indent=2) + "\n")
    image_ids = tuple(selected.rows["image_id"].to_pylist())
    return SuggestResult(out=out, image_ids=image_ids, summary=summary, notes=notes)


def without_labels(table: pa.Table, source: str) -> pa.Table:
    """Returns the rows of a manifest that have no label.

    Args:
        table: The manifest.
        source: Where its images were found, for the message.

    Raises:
        DataError: All images have labels.
    """
    unlabelled = table.filter(pc.field("label").is_null())
    if not unlabelled.num_rows:
        raise DataError(
            f"All {table.num_rows} images of '{source}' have labels (the names of folders count as labels). Give a "
            "folder without subfolders, or a table with a column uri and without labels."
        )
    return unlabelled


def _plan(out: str, bundle: str, source: str, config: SuggestConfig) -> ScorePlan:
    """Connects to Ray, checks that all its nodes can reach the locations, and returns how scoring uses its CPUs."""
    connection.connect()
    available = capacity.measure()
    locations.check_shared(out, available)
    locations.check_shared(bundle, available, option="--bundle")
    locations.check_shared_images(source, config.columns, available, option="--input")
    plan = plans.plan_scoring(available, use_gpu=config.use_gpu)
    capacity.tell_shortage(available, num_gpus=plan.gpus_per_actor, quiet=config.quiet)
    return plan


def _score(
    location: str, bundle: Bundle, table: pa.Table, *, plan: ScorePlan, kind: EngineKind, config: SuggestConfig
) -> Scored:
    """Scores the images of a manifest on a pool of predictors, in the manifest's order."""
    batches = pool.score_batches(
        location,
        bundle.spec,
        bundle.sha256,
        table,
        plan=plan,
        kind=kind,
        batch_size=config.batch_size,
        with_places=True,
    )
    tables: list[pa.Table] = []
    places: list[np.ndarray] = []
    num_done = 0
    with Progress("Scoring", table.num_rows, quiet=config.quiet) as progress:
        for batch in batches:
            rows = table.take(batch["row"])
            tables.append(predictions.prediction_table(rows, batch, bundle.spec, bundle.sha256))
            if pool.PLACES in batch:
                places.append(batch[pool.PLACES])
            num_done += rows.num_rows
            progress.update(num_done)
    return Scored(predictions=pa.concat_tables(tables), places_BC=np.concatenate(places) if places else None)


def draw_sheet(rows: pa.Table, intensity_range: tuple[float, float] | None) -> bytes:
    """Returns a contact sheet of the first `MAX_SHOWN` images, a PNG file, with rank and predicted label below each.

    The images are read once more, in this process; one that cannot be read any more is a grey square.

    Args:
        rows: The images, with `uri` and `predicted_label`, at least one.
        intensity_range: The pixel values of a 16-bit image that become 0 and 255, see `decoding.decode`.
    """
    shown = rows.slice(0, MAX_SHOWN)
    pixels = Pixels(size_px=contact_sheet.THUMBNAIL_PX, intensity_range=intensity_range)
    images = sample.read_some(shown, pixels, max_images=MAX_SHOWN)
    labels = shown["predicted_label"].to_pylist()
    sheet = contact_sheet.draw(
        [images.get(place) for place in range(shown.num_rows)],
        [f"{rank} {label}" for rank, label in enumerate(labels, start=1)],
    )
    sink = io.BytesIO()
    sheet.save(sink, "PNG")
    return sink.getvalue()
