"""Checks that a finished training run is still as it was when it ended: `tlray verify`.

Checksums tell which files were changed. The figures are computed again from all files that can be used, changed or not.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from tlray.bundle import spec as bundle_files
from tlray.bundle.spec import BundleSpec
from tlray.cluster import locations
from tlray.config.commands import VerifyConfig
from tlray.data import dataset, fingerprints
from tlray.data.dataset import Dataset
from tlray.evaluation import checks, evaluate, out_of_fold, run_files
from tlray.evaluation.checks import Check
from tlray.evaluation.evidence import BUNDLE, DESCRIPTION, EVALUATED, EVIDENCE, MUST_HAVE, origin
from tlray.evaluation.measurement import headline
from tlray.evaluation.recomputation import measure_again
from tlray.evaluation.run_files import Evidence, RunBundle, RunFiles, RunImages
from tlray.files import storage

UNSEEN = "figures of cross-validation and calibration"
"""Name by which `tlray verify` shows the figures that are computed from out-of-fold predictions."""


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
        unusable: Which files were changed so that they cannot be used, and why: a text each. The figures that take them
            were not computed again.
    """

    checks: tuple[Check, ...]
    num_files: int
    num_images: int
    num_figures: int
    evidence_sha256: str
    is_older: bool = False
    has_origin: bool = True
    has_unseen: bool = True
    unusable: tuple[str, ...] = ()

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
            *(("cannot be used", text) for text in self.unusable),
            *rows,
            (f"sha256 of {EVIDENCE}", self.evidence_sha256),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Computed:
    """Figures that were computed again from predictions, the checks of their images, and the ids of these."""

    figures: Mapping[str, Any]
    of_images: Sequence[Check]
    image_ids: Set[str]


def verify(config: VerifyConfig) -> VerifyResult:
    """Checks a finished run: computes its figures again, and compares its files with each other and with checksums.

    The figures of splits, cross-validation and calibration come from the stored predictions, the manifest and the
    limits of the bundle. Images, splits and labels of the predictions are compared with the manifest, and its
    fingerprints with those of the bundle. Nothing is computed from a file that was changed so that it cannot be used.

    Raises:
        DataError: There is no finished training run of this version, `EVIDENCE` is damaged, or a file cannot be used
            though it is as its checksum says.
        BundleError: The same, for the description of the run's bundle.
        OSError: A file is there and cannot be read.
    """
    location = locations.input_location(config.run)
    run_files.check_run(location, config.run)
    evidence = run_files.read_evidence(location, config.run)
    has_file = storage.exists(storage.join(location, out_of_fold.FILE))
    is_told = has_file or out_of_fold.FILE in evidence.files or bool(evidence.of_unseen)
    of_files = [
        checks.check_file(location, name, evidence.files.get(name), where=EVIDENCE)
        for name in dict.fromkeys((*MUST_HAVE, *[out_of_fold.FILE] * is_told, *evidence.files))
    ]
    changed = {check.name for check in of_files if not check.is_right}
    run = RunFiles(location=location, given=config.run, changed=changed)
    bundle, metrics, images = run.bundle(), run.metrics(), run.images()
    if bundle is not None:
        of_files += [
            checks.check_file(location, f"{BUNDLE}/{name}", wanted, where=bundle_files.BUNDLE_JSON)
            for name, wanted in bundle.spec.files.items()
        ]
    of_splits = _compute(run, EVALUATED, _of_splits, images, bundle)
    of_unseen = _compute(run, out_of_fold.FILE, _of_unseen, images, bundle) if has_file else None
    is_older = not any(checks.is_later(name) for name, _ in checks.leaves([evidence.of_splits, evidence.of_unseen]))
    compared = [
        *_compare_splits(of_splits, evidence, metrics, bundle, is_older=is_older),
        *_compare_unseen(of_unseen, evidence, metrics, bundle),
    ]
    computed = [each for each in (of_splits, of_unseen) if each is not None]
    of_images = [check for each in computed for check in each.of_images]
    of_origin = _check_origin(images, bundle, evidence.origin)
    if images is not None and bundle is not None:
        check_again = partial(_check_known_again, images.dataset.table, bundle.spec)
        of_origin += run.use(check_again, dataset.MANIFEST, DESCRIPTION) or []
    wrong = [check for check in (*of_files, *of_origin, *of_images, *compared) if not check.is_right]
    tells_unseen = out_of_fold.told(metrics or {}, {}) or (bundle is not None and bundle.of_unseen)
    return VerifyResult(
        checks=tuple(wrong) or (checks.SAME,),
        num_files=len(of_files),
        num_images=len(set[str]().union(*(each.image_ids for each in computed))),
        num_figures=len(compared),
        evidence_sha256=evidence.sha256,
        is_older=is_older,
        has_origin=evidence.origin is not None,
        has_unseen=is_told or not tells_unseen,
        unusable=tuple(run.unusable),
    )


def _compute(
    run: RunFiles,
    name: str,
    measure: Callable[[pa.Table, Dataset, BundleSpec], _Computed],
    images: RunImages | None,
    bundle: RunBundle | None,
) -> _Computed | None:
    """Returns what a function computes from a file of predictions; None if a file that it takes cannot be used."""
    predicted = run.table(name)
    if predicted is None or images is None or bundle is None:
        return None
    return run.use(partial(measure, predicted, images.dataset, bundle.spec), name, dataset.MANIFEST, DESCRIPTION)


def _of_splits(predicted: pa.Table, images: Dataset, spec: BundleSpec) -> _Computed:
    """Returns the figures of each split, given the content of `EVALUATED`."""
    return _Computed(
        figures={split: each.metrics for split, each in measure_again(predicted, images, spec).items()},
        of_images=list(checks.check_images(predicted, images.readable, spec.classes)),
        image_ids=set(predicted["image_id"].to_pylist()),
    )


def _of_unseen(predicted: pa.Table, images: Dataset, spec: BundleSpec) -> _Computed:
    """Returns the figures of cross-validation and calibration, given the content of `out_of_fold.FILE`."""
    return _Computed(
        figures=out_of_fold.measure(predicted, images, spec.classes),
        of_images=list(out_of_fold.check_images(predicted, images, spec.classes)),
        image_ids=set(predicted["image_id"].to_pylist()),
    )


def _compare_splits(
    found: _Computed | None,
    evidence: Evidence,
    metrics: Mapping[str, Any] | None,
    bundle: RunBundle | None,
    *,
    is_older: bool,
) -> list[Check]:
    """Compares the figures of splits with those that the files of the run tell.

    Args:
        found: The figures, computed again; None: they could not be, and nothing is compared.
        evidence: The content of `EVIDENCE`.
        metrics: The content of `metrics.json`; None: it cannot be used.
        bundle: The run's bundle.
        is_older: See `checks.check_values`.
    """
    if found is None or bundle is None:
        return []
    compare, compared = partial(checks.check_values, is_older=is_older), list[Check]()
    if metrics is not None:
        quoted = headline(found.figures) if found.figures else {}
        of_metrics = {name: metrics[name] for name in quoted if name in metrics}
        compared += compare(found.figures, metrics["splits"], evaluate.METRICS_JSON)
        compared += compare({"quoted": quoted}, {"quoted": of_metrics}, evaluate.METRICS_JSON)
    compared += compare(found.figures, evidence.of_splits, EVIDENCE)
    compared += compare(found.figures, bundle.spec.metrics, bundle_files.BUNDLE_JSON)
    return compared


def _compare_unseen(
    found: _Computed | None, evidence: Evidence, metrics: Mapping[str, Any] | None, bundle: RunBundle | None
) -> list[Check]:
    """Compares the figures of cross-validation and calibration with those that the files of the run tell.

    Args:
        found: The figures, computed again; None: the run has none, or they could not be. Nothing is compared then.
        evidence: The content of `EVIDENCE`.
        metrics: The content of `metrics.json`; None: it cannot be used.
        bundle: The run's bundle.
    """
    if found is None or bundle is None:
        return []
    crossed, calibrated = (
        {name: each for name, each in found.figures.items() if name == figure} for figure in out_of_fold.FIGURES
    )
    compared = list(checks.check_values(found.figures, evidence.of_unseen, EVIDENCE))
    if metrics is not None:
        compared += checks.check_values(crossed, out_of_fold.told(metrics, {}), evaluate.METRICS_JSON)
    compared += checks.check_values(calibrated, bundle.of_unseen, bundle_files.BUNDLE_JSON)
    return compared


def _check_origin(
    images: RunImages | None, bundle: RunBundle | None, came_from: Mapping[str, Any] | None
) -> list[Check]:
    """Compares the fingerprints of a manifest with the bundle's, and all of these with those of `EVIDENCE`.

    Args:
        images: The manifest; None: it cannot be used.
        bundle: The bundle; None: its description cannot be used, and nothing is compared.
        came_from: What `EVIDENCE` says; None: nothing, because an earlier version wrote it.
    """
    if bundle is None:
        return []
    of_manifest = {} if images is None else dict(images.fingerprints)
    of_bundle = origin(bundle.spec, bundle.sha256)
    told = {name: of_bundle[name] for name in of_manifest}
    found = list(checks.check_values(of_manifest, told, bundle_files.BUNDLE_JSON))
    if came_from is not None:
        found += checks.check_values({**of_bundle, **of_manifest}, came_from, EVIDENCE)
    return found


def _check_known_again(table: pa.Table, spec: BundleSpec) -> list[Check]:
    """Compares the fingerprints by which an evaluation knows given splits and files again with those of a manifest.

    Args:
        table: The manifest.
        spec: Description of the run's bundle. Nothing is compared that an earlier version did not write.
    """
    found: dict[str, Any] = {}
    if spec.given_split_fingerprint is not None:
        cut = spec.trust.get("data", {}).get("cut_splits", ())
        found["given_split_fingerprint"] = fingerprints.of_given_splits(table, cut)
    if spec.file_fingerprints:
        found["file_fingerprints"] = fingerprints.of_files(table)
    told = {name: getattr(spec, name) for name in found}
    return list(checks.check_values(found, told, bundle_files.BUNDLE_JSON))
