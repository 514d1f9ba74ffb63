"""Compares two bundles on the same labelled images (`tlray compare`): scores the images with both, writes the result.

Copies, and images that a bundle knows, are looked for as in an evaluation: see `tlray.evaluation.relations`. The
figures come from `tlray.evaluation.paired`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv

from tlray.bundle import store
from tlray.bundle.lookalikes import KeptImages
from tlray.bundle.store import Bundle
from tlray.bundle.wording import bracketed, estimate, percent
from tlray.cluster import capacity, connection, locations, plans
from tlray.cluster.capacity import Capacity
from tlray.cluster.plans import ScorePlan
from tlray.config.prediction import CompareConfig
from tlray.config.values import parse_columns
from tlray.data import inspected, labels
from tlray.data.listing import list_images
from tlray.engines import choice
from tlray.engines.kinds import EngineKind
from tlray.errors import ConfigError, DataError, ImageErrorCode, counted, some
from tlray.evaluation import evaluate, paired_doubts, relations, scope
from tlray.evaluation.paired import SIDES, csv_table, measure, pair
from tlray.files import storage
from tlray.inference import score
from tlray.progress import Progress

COMPARISON_JSON = "comparison.json"
COMPARISON_CSV = "comparison.csv"
KIND = "comparison"
NAMES = frozenset({COMPARISON_JSON, COMPARISON_CSV})

SMALLEST_P = 0.001
"""Smallest p value that people are shown as a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareResult:
    """The result of a comparison.

    Attributes:
        out: The output directory.
        split: The split that the bundles were compared on.
        comparison: The content of `comparison.json`: the figures of `tlray.evaluation.paired.measure`; `split`,
            `num_unlabelled` (images without a label, which were not scored), `renamed_labels` (the class of each label
            that is not the class's own name), `is_leak_free` (all compared images are new to both bundles, as far as
            was found; None: it cannot be told) and `warnings`; and for both the location, sha256, engine and the fields
            of `LeakSearch`: `bundle`, `bundle_sha256`, `bundle_engine`, `bundle_leak_search`, and the same for
            `reference`.
        warnings: Warnings about the comparison, the gravest first.
    """

    out: str
    split: str
    comparison: Mapping[str, Any]
    warnings: tuple[str, ...]

    def rows(self) -> list[tuple[str, str]]:
        """Returns lines for people, a name and a text each."""
        found = self.comparison
        value, low, high = (100 * each for each in (found["accuracy_difference"], *found["accuracy_difference_ci95"]))
        same = found["same_label_share_ci95"]
        gained, lost = found["num_only_bundle_right"], found["num_only_reference_right"]
        num_failed = sum(found["num_by_error"].values())
        p_value = f"below {SMALLEST_P}" if found["p_value"] < SMALLEST_P else f"{found['p_value']:.3f}"
        left_out = f", {found['num_left_out']} known from training" if found["num_left_out"] else ""
        images = f"{found['num_images']} compared{left_out}, {num_failed} failed, {found['num_unlabelled']} unlabelled"
        return [
            ("images", images),
            *((f"known to the {side}", _known(found, side)) for side in SIDES),
            *((f"accuracy of the {side}", _estimate(found[f"{side}_metrics"], "accuracy")) for side in SIDES),
            ("difference", f"{value:+.1f} percentage points (95 %: {low:+.1f} to {high:+.1f})"),
            ("conclusion", found["conclusion"]),
            ("only one is right", f"the bundle for {counted(gained, 'image')}, the reference for {lost}"),
            ("p value", f"{p_value} (McNemar's exact test, which takes all images for independent)"),
            *_sensitivities(found["bundle_metrics"]["per_class"], found["reference_metrics"]["per_class"]),
            ("same label from both", f"{percent(found['same_label_share'])} of the images{bracketed(same)}"),
            ("only one marks 'refer'", counted(found["num_refer_differs"], "image")),
            ("all figures", f"{self.out}/{COMPARISON_JSON}"),
            ("image by image", f"{self.out}/{COMPARISON_CSV}"),
        ]


def _known(found: Mapping[str, Any], side: str) -> str:
    """Returns how many of the images a bundle knows, given `CompareResult.comparison`."""
    num_known = found[f"{side}_num_known"]
    num_scored = found["num_images"] + found["num_left_out"]
    return "cannot be told" if num_known is None else f"{num_known} of {counted(num_scored, 'image')}"


def _estimate(values: Mapping[str, Any], name: str) -> str:
    return estimate(values[name], values[f"{name}_ci95"])


def _sensitivities(bundle: Mapping[str, Any], reference: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns a line for each class that has images, given the metrics `per_class` of both."""
    return [
        (
            f"sensitivity of '{name}'",
            f"bundle {_estimate(values, 'recall')}, reference {_estimate(reference[name], 'recall')}",
        )
        for name, values in bundle.items()
        if values["support"]
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """One of the two bundles: its location, the verified bundle, the engine that runs it, and the images it keeps."""

    location: str
    bundle: Bundle
    kind: EngineKind
    kept: KeptImages | None


def compare(config: CompareConfig) -> CompareResult:
    """Scores the images of one split with two bundles, and writes which of the two is more often right.

    It reads the images once before it scores them, to find copies. If the data set is one that a bundle's model was
    trained on, it also reads those that the model learned from. `comparison.json` is written last.

    Raises:
        ConfigError: A setting cannot work, the two bundles are the same, or they have different classes.
        DataError: The data has no such split, no labels, labels that the bundles do not know, or no usable image.
        BundleError: A bundle cannot be used.
        TlrayError: Most images were not found.
    """
    out = locations.output_location(config.out)
    # First the checks that need no Ray.
    storage.check_output(out, kind=KIND, known_names=NAMES, overwrite=config.overwrite)
    given = {"bundle": config.bundle, "reference": config.reference}
    candidates = {side: _open(location, config) for side, location in given.items()}
    check_bundles(candidates["bundle"].bundle, candidates["reference"].bundle)
    specs = {side: each.bundle.spec for side, each in candidates.items()}
    source = locations.input_location(config.data)
    listed = list_images(source, columns=parse_columns(config.columns)).table
    selected = evaluate.select_split(listed, config.split)
    table, class_of = _labelled(selected, specs["bundle"].classes, config)
    scopes = {side: scope.choose(spec, listed, table, config.split) for side, spec in specs.items()}
    available = _connect(out, source, candidates, config)
    plan = plans.plan_scoring(available, use_gpu=config.use_gpu)
    capacity.tell_shortage(available, num_gpus=plan.gpus_per_actor, quiet=config.quiet)
    # Both scopes have the labelled images of the split; that of a model's own data may have what it learned from, too.
    largest = max(scopes.values(), key=lambda each: (int(each.is_read.sum()), each.knows_splits))
    seen = relations.look(largest, out=out, kind=KIND, task_cpus=available.task_cpus, quiet=config.quiet)
    scopes = {side: scope.with_files(each, specs[side], seen, config.split) for side, each in scopes.items()}
    storage.prepare_output(out, kind=KIND, known_names=NAMES, overwrite=config.overwrite)
    predicted = {side: _score(side, each, table, plan, config) for side, each in candidates.items()}
    related = {
        side: relations.find(
            scopes[side],
            seen,
            predicted[side],
            each.kept,
            specs[side].classes,
            split=config.split,
            with_pictures=False,
            task_cpus=available.task_cpus,
            quiet=config.quiet,
        )
        for side, each in candidates.items()
    }
    regrouped = (related[side].regrouped(predicted[side]) for side in SIDES)
    paired = pair(*regrouped, known={side: each.leaked for side, each in related.items()})
    warnings = tuple(paired_doubts.find(paired, related, specs))
    is_leak_free = paired_doubts.is_leak_free(paired, related)
    comparison: dict[str, Any] = {
        **measure(paired, {side: spec.classes for side, spec in specs.items()}, are_new=is_leak_free),
        "is_leak_free": is_leak_free,
        "split": config.split,
        "num_unlabelled": selected["label"].null_count,
        "renamed_labels": labels.renamed(class_of),
        "warnings": list(warnings),
        **given,
        **{f"{side}_sha256": each["bundle_sha256"][0].as_py() for side, each in predicted.items()},
        **{f"{side}_engine": str(each.kind) for side, each in candidates.items()},
        **{f"{side}_leak_search": dict(each.findings["leak_search"]) for side, each in related.items()},
    }
    sink = pa.BufferOutputStream()
    pv.write_csv(csv_table(paired), sink)
    storage.write_bytes(storage.join(out, COMPARISON_CSV), sink.getvalue().to_pybytes())
    storage.write_text(storage.join(out, COMPARISON_JSON), json.dumps(comparison, indent=2) + "\n")
    inspected.forget(out)
    return CompareResult(out=out, split=config.split, comparison=comparison, warnings=warnings)


def _open(given: str, config: CompareConfig) -> _Candidate:
    location = locations.input_location(given)
    bundle = store.load(location)
    kind = choice.for_bundle(bundle, config.engine, config.precision, use_gpu=config.use_gpu)
    return _Candidate(location=location, bundle=bundle, kind=kind, kept=bundle.lookalikes())


def check_bundles(bundle: Bundle, reference: Bundle) -> None:
    """Refuses two bundles that cannot be compared. The order of their classes may differ.

    Raises:
        ConfigError: They are the same bundle, or have different classes.
    """
    if bundle.sha256 == reference.sha256:
        raise ConfigError(
            f"--bundle and --reference are the same bundle (sha256 {bundle.sha256[:12]}…). Give two different ones."
        )
    classes, others = set(bundle.spec.classes), set(reference.spec.classes)
    if classes != others:
        raise ConfigError(
            "--bundle and --reference have different classes. Only --bundle has: "
            f"{some(classes - others) or 'none'}; only --reference has: {some(others - classes) or 'none'}. Give "
            "bundles with the same class names."
        )


def _labelled(selected: pa.Table, classes: Sequence[str], config: CompareConfig) -> tuple[pa.Table, dict[str, str]]:
    """Returns the labelled images of a split, with classes of the bundles as labels, and the class of each label."""
    labelled = selected.filter(pc.field("label").is_valid())
    if not labelled.num_rows:
        raise DataError(
            f"The images of '{config.data}' have no labels, which a comparison needs. Give a folder with a folder for "
            "each class, or a table with labels."
        )
    class_map = labels.read_class_map(config.class_map) if config.class_map else None
    table, class_of = labels.match_classes(labelled, classes, class_map)
    labels.tell(class_of, quiet=config.quiet)
    return table, class_of


def _connect(out: str, source: str, candidates: Mapping[str, _Candidate], config: CompareConfig) -> Capacity:
    """Connects to Ray, checks that all its nodes can reach the locations, and returns its resources."""
    connection.connect()
    available = capacity.measure()
    locations.check_shared(out, available)
    for side, each in candidates.items():
        locations.check_shared(each.location, available, option=f"--{side}")
    locations.check_shared_images(source, config.columns, available)
    return available


def _score(side: str, candidate: _Candidate, table: pa.Table, plan: ScorePlan, config: CompareConfig) -> pa.Table:
    """Returns the predictions of one of the bundles, with places, a row for each row of a manifest.

    See `score.predict`.
    """
    tables: list[pa.Table] = []
    num_done = 0
    found = score.predict(
        candidate.location,
        candidate.bundle.spec,
        candidate.bundle.sha256,
        table,
        plan=plan,
        kind=candidate.kind,
        batch_size=config.batch_size,
        with_places=True,
    )
    with Progress(f"Scoring with the {side}", table.num_rows, quiet=config.quiet) as progress:
        for each in found:
            tables.append(each)
            num_done += each.num_rows
            progress.update(num_done)
    predicted = pa.concat_tables(tables)
    num_missing = predicted.filter(pc.field("error_code") == ImageErrorCode.NOT_FOUND.value).num_rows
    score.check_found(num_missing, predicted.num_rows, source=config.data, remedy="run the same command again")
    return predicted
