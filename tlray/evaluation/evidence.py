"""Keeps what a run's figures were computed from and checksums of its files, and checks both: `tlray verify`."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from tlray.bundle import spec as bundle_files
from tlray.bundle import store
from tlray.bundle.spec import BundleSpec
from tlray.cluster import locations
from tlray.config.commands import VerifyConfig
from tlray.data import dataset, manifest
from tlray.data.dataset import Dataset
from tlray.errors import DataError
from tlray.evaluation import checks, evaluate, out_of_fold
from tlray.evaluation.checks import Check
from tlray.evaluation.measurement import SplitEvaluation, headline
from tlray.evaluation.out_of_fold import Predicted
from tlray.evaluation.recomputation import measure_again
from tlray.files import storage

EVIDENCE = "evidence.json"
"""Name of the file with the figures of a run, what they came from (see `origin`), and checksums of the run's files."""

EVALUATED = "evaluated.parquet"
"""Name of the file with the predictions that the figures of a run's splits were computed from."""

BUNDLE = "bundle"
"""Name of the directory of a run's bundle."""

FILES = (dataset.MANIFEST, EVALUATED, f"{BUNDLE}/{bundle_files.BUNDLE_JSON}")
"""The files of a run from which its figures can be computed again."""

MUST_HAVE = (*FILES, evaluate.METRICS_JSON, evaluate.REPORT_HTML)
"""The files of which `EVIDENCE` must have a checksum. Otherwise one could leave out that of a report that was changed.
"""

UNSEEN = "figures of cross-validation and calibration"
"""Name by which `tlray verify` shows the figures that are computed from out-of-fold predictions."""

UNSEEN_IN = (evaluate.METRICS_JSON, bundle_files.BUNDLE_JSON)
"""The file that tells each of `out_of_fold.FIGURES`, beside `EVIDENCE`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """The result of verifying a run.

    Attributes:
        checks: What is not as the run says, files first; `checks.SAME` if all is.
        num_files: Number of files whose checksums were compared.
        num_images: Number of images whose predictions were compared with the manifest.
        num_figures: Number of figures that were computed again and compared.
        evidence_sha256: The sha256 of `EVIDENCE`. A run with the same one has the same files.
        is_older: An earlier version made the run, without the figures of `checks.LATER`.
        has_origin: `EVIDENCE` says what the figures came from, see `origin`. Earlier versions did not write that.
        has_unseen: The run has the predictions of its cross-validation and calibration, if it has figures of these.
            Earlier versions did not write them.
    """

    checks: tuple[Check, ...]
    num_files: int
    num_images: int
    num_figures: int
    evidence_sha256: str
    is_older: bool = False
    has_origin: bool = True
    has_unseen: bool = True

    @property
    def is_right(self) -> bool:
        """Everything is as the run says."""
        return all(check.is_right for check in self.checks)

    def wrong(self) -> list[str]:
        """Returns the names of what is not as the run says."""
        return [check.name for check in self.checks if not check.is_right]

    def rows(self) -> list[tuple[str, str]]:
        """Returns lines for people, a name and a text each."""
        rows = [(check.name, "as it says" if check.is_right else check.detail) for check in self.checks]
        lacks = {"intervals": self.is_older, "an origin": not self.has_origin, UNSEEN: not self.has_unseen}
        lacking = ", ".join(name for name, is_lacking in lacks.items() if is_lacking)
        why = f"{lacking} in {EVIDENCE}: an earlier version made the run, and did not write that"
        return [
            ("files", str(self.num_files)),
            ("images compared with the manifest", str(self.num_images)),
            ("figures computed again", str(self.num_figures)),
            *([("not compared", why)] if lacking else []),
            *rows,
            (f"sha256 of {EVIDENCE}", self.evidence_sha256),
        ]


def write(
    out: str,
    evaluations: Mapping[str, SplitEvaluation],
    *,
    metrics_json: str,
    shown: Sequence[str] = (),
    unseen: Mapping[str, Predicted],
) -> None:
    """Writes a run's predictions and `EVIDENCE` into its directory, once all its files but `metrics.json` are there.

    The predictions go into `EVALUATED` and `out_of_fold.FILE`.

    Args:
        out: The directory.
        evaluations: Split to its evaluation.
        metrics_json: The content that `metrics.json` will have, as it is written last.
        shown: Names of files in the directory that people read, of which checksums are kept as well; those that are
            not there are passed over. The report's figures need not be named.
        unseen: Predictions of cross-validation and calibration, see `out_of_fold.to_table`; may be empty.
    """
    spec, bundle_sha256 = store.read_spec(storage.join(out, BUNDLE))
    tables = {EVALUATED: _predictions(evaluations)}
    if unseen:
        tables[out_of_fold.FILE] = out_of_fold.to_table(unseen, spec.classes)
    for name, table in tables.items():
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        storage.write_bytes(storage.join(out, name), sink.getvalue().to_pybytes())
    figures = [f"{evaluate.FIGURES}/{name}" for name in storage.walk(storage.join(out, evaluate.FIGURES))]
    shown = [name for name in shown if storage.exists(storage.join(out, name))]
    names = [*dict.fromkeys((*FILES, *tables)), *shown, *figures]
    sha256 = {name: checks.sha256_of(storage.join(out, name)) for name in names}
    content = {
        "figures": {split: each.metrics for split, each in evaluations.items()}
        | (out_of_fold.told(json.loads(metrics_json), spec.trust) if unseen else {}),
        "origin": origin(spec, bundle_sha256),
        "sha256": sha256 | {evaluate.METRICS_JSON: hashlib.sha256(metrics_json.encode()).hexdigest()},
        "libraries": bundle_files.library_versions(),
    }
    storage.write_text(storage.join(out, EVIDENCE), json.dumps(content, indent=2) + "\n")


def _predictions(evaluations: Mapping[str, SplitEvaluation]) -> pa.Table:
    """Returns `split`, `image_id`, `label` (class index), `p_CLASS` for each class, and `ood_score`."""
    tables = []
    for split, each in evaluations.items():
        columns: dict[str, Any] = {
            "split": [split] * len(each.labels),
            "image_id": each.image_ids.tolist(),
            "label": each.labels.astype(np.int32),
            **{f"p_{name}": each.probs_BK[:, k] for k, name in enumerate(each.classes)},
            "ood_score": each.ood_scores,
        }
        tables.append(pa.table(columns))
    return pa.concat_tables(tables, promote_options="permissive")


def origin(spec: BundleSpec, bundle_sha256: str) -> dict[str, str | None]:
    """Returns what the figures of a run came from: fingerprints of its data, its weights and its bundle.

    Args:
        spec: Description of the run's bundle.
        bundle_sha256: The sha256 of its `bundle.json`.

    Returns:
        `data_fingerprint`, `split_fingerprint` and `id_fingerprint`, see `manifest.fingerprint`; `weights`, the name of
        the weights that training started from; `model_sha256`, that of the trained model's file; and `bundle_sha256`.
    """
    return {
        "data_fingerprint": spec.data_fingerprint,
        "split_fingerprint": spec.split_fingerprint,
        "id_fingerprint": spec.id_fingerprint,
        "weights": spec.weights,
        "model_sha256": spec.files.get(bundle_files.MODEL_FILE),
        "bundle_sha256": bundle_sha256,
    }


def verify(config: VerifyConfig) -> VerifyResult:
    """Checks a finished run: computes its figures again, and compares its files with each other and with checksums.

    The figures of splits, cross-validation and calibration come from the stored predictions, the manifest and the
    limits of the bundle. Images, splits and labels of the predictions are compared with the manifest, and its
    fingerprints with those of the bundle.

    Raises:
        DataError: There is no finished training run of this version, or its files are damaged.
        BundleError: The run's bundle cannot be used.
    """
    run = locations.input_location(config.run)
    _check_run(run, config.run)
    try:
        evidence = storage.read_bytes(storage.join(run, EVIDENCE))
        claimed = json.loads(evidence)
        predicted, unseen = _read_table(run, EVALUATED), None
        if storage.exists(storage.join(run, out_of_fold.FILE)):
            unseen = _read_table(run, out_of_fold.FILE)
        told = json.loads(storage.read_bytes(storage.join(run, evaluate.METRICS_JSON)))
        images = dataset.stored_dataset(run)
        files, figures, splits = dict(claimed["sha256"]), dict(claimed["figures"]), told["splits"]
        came_from = dict(claimed["origin"]) if "origin" in claimed else None
    except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(f"The files of '{config.run}' are damaged: {error}. Restore them.") from error
    if images is None:
        raise DataError(f"'{config.run}' has no {dataset.MANIFEST}. Give the directory of a finished training run.")
    spec, bundle_sha256 = store.read_spec(storage.join(run, BUNDLE))
    is_told = unseen is not None or out_of_fold.FILE in files or not figures.keys().isdisjoint(out_of_fold.FIGURES)
    must_have = (*MUST_HAVE, *[out_of_fold.FILE] * is_told)
    of_files = [
        checks.check_file(run, name, files.get(name), where=EVIDENCE) for name in dict.fromkeys((*must_have, *files))
    ]
    of_files += [
        checks.check_file(run, f"{BUNDLE}/{name}", wanted, where=bundle_files.BUNDLE_JSON)
        for name, wanted in spec.files.items()
    ]
    try:
        of_images = list(checks.check_images(predicted, images.readable, spec.classes))
        found = {split: each.metrics for split, each in measure_again(predicted, images, spec).items()}
    except KeyError as error:
        raise DataError(f"{EVALUATED} of '{config.run}' does not fit its bundle: it has no {error}.") from error
    if unseen is None:  # if the run should have it, the check of the file says so
        of_unseen = dict[str, Any]()
        figures = {name: each for name, each in figures.items() if name not in out_of_fold.FIGURES}
    else:
        of_unseen, more = _check_unseen(unseen, images, spec, config.run)
        of_images += more
    quoted = headline(found) if found else {}
    is_older = not any(checks.is_later(name) for name, _ in checks.leaves(figures))
    of_metrics = {name: told[name] for name in quoted if name in told}
    compared = [
        *checks.check_values(found, splits, evaluate.METRICS_JSON, is_older=is_older),
        *checks.check_values(quoted, of_metrics, evaluate.METRICS_JSON, is_older=is_older),
        *checks.check_values(found | of_unseen, figures, EVIDENCE, is_older=is_older),
        *checks.check_values(found, spec.metrics, bundle_files.BUNDLE_JSON, is_older=is_older),
    ]
    told_unseen = (out_of_fold.told(told, {}), out_of_fold.told({}, spec.trust))
    if unseen is not None:
        for figure, each, where in zip(out_of_fold.FIGURES, told_unseen, UNSEEN_IN, strict=True):
            compared += checks.check_values(
                {name: values for name, values in of_unseen.items() if name == figure}, each, where
            )
    of_origin = _check_origin(images.table, origin(spec, bundle_sha256), came_from)
    wrong = [check for check in (*of_files, *of_origin, *of_images, *compared) if not check.is_right]
    return VerifyResult(
        checks=tuple(wrong) or (checks.SAME,),
        num_files=len(of_files),
        num_images=_num_images(predicted, unseen),
        num_figures=len(compared),
        evidence_sha256=hashlib.sha256(evidence).hexdigest(),
        is_older=is_older,
        has_origin=came_from is not None,
        has_unseen=is_told or not any(told_unseen),
    )


def _read_table(run: str, name: str) -> pa.Table:
    """Reads a Parquet file in a run's directory."""
    return pq.read_table(pa.BufferReader(storage.read_bytes(storage.join(run, name))))


def _num_images(*tables: pa.Table | None) -> int:
    """Returns the number of images in tables of predictions."""
    return len({image_id for table in tables if table is not None for image_id in table["image_id"].to_pylist()})


def _check_unseen(
    unseen: pa.Table, images: Dataset, spec: BundleSpec, given: str
) -> tuple[dict[str, Any], list[Check]]:
    """Returns the figures of cross-validation and calibration, computed again, and the checks of their images.

    Args:
        unseen: The content of `out_of_fold.FILE`.
        images: The images of the run.
        spec: Description of its bundle.
        given: The run's location as the user gave it.
    """
    try:
        found = list(out_of_fold.check_images(unseen, images, spec.classes))
        return out_of_fold.measure(unseen, images, spec.classes), found
    except KeyError as error:
        raise DataError(f"{out_of_fold.FILE} of '{given}' does not fit its bundle: it has no {error}.") from error


def _check_origin(
    table: pa.Table, of_bundle: Mapping[str, str | None], came_from: Mapping[str, Any] | None
) -> list[Check]:
    """Compares the fingerprints of a manifest with the bundle's, and all of these with those of `EVIDENCE`.

    Args:
        table: The manifest.
        of_bundle: What the bundle says, see `origin`.
        came_from: What `EVIDENCE` says; None: nothing, because an earlier version wrote it.
    """
    of_manifest = {
        "data_fingerprint": manifest.fingerprint(table),
        "split_fingerprint": manifest.split_fingerprint(table),
        "id_fingerprint": manifest.id_fingerprint(table),
    }
    told = {name: of_bundle[name] for name in of_manifest}
    found = list(checks.check_values(of_manifest, told, bundle_files.BUNDLE_JSON))
    if came_from is not None:
        found += checks.check_values({**of_bundle, **of_manifest}, came_from, EVIDENCE)
    return found


def _check_run(run: str, given: str) -> None:
    """Raises a DataError, with the remedy, unless there is a finished training run.

    Args:
        run: The location.
        given: The location as the user gave it.
    """
    kind = storage.file_info(run).type
    if kind != fs.FileType.Directory:
        what = f"There is no directory '{given}'" if kind == fs.FileType.NotFound else f"'{given}' is not a directory"
        raise DataError(f"{what}. Give the directory of a finished training run.")
    names, made_as = set(storage.list_names(run)), storage.output_kind(run)
    needed = (evaluate.METRICS_JSON, EVIDENCE, EVALUATED, dataset.MANIFEST, dataset.AUDIT, BUNDLE)
    missing = [name for name in needed if name not in names]
    if not missing:
        return
    if bundle_files.BUNDLE_JSON in names:
        raise DataError(f"'{given}' is a bundle. Give the directory of the training run that made it.")
    if made_as == "sweep":
        best = storage.join(given, "best")
        raise DataError(f"'{given}' is a sweep. Give the directory of its best training: '{best}'.")
    if made_as == "training" and evaluate.METRICS_JSON in missing:
        raise DataError(
            f"The training run '{given}' is not finished: it has no {evaluate.METRICS_JSON}. Continue it with the same "
            "`tlray train` command and --resume."
        )
    if made_as == "training":
        raise DataError(
            f"The training run '{given}' lacks {', '.join(missing)}: an earlier version of tlray made it, or somebody "
            "deleted this. Restore it, or train again."
        )
    what = f"is an output of another kind ({made_as})" if made_as else f"lacks {', '.join(missing)}"
    raise DataError(f"'{given}' is no training run: it {what}. Give the directory of a finished training run.")
