"""Keeps what a run's figures were computed from and checksums of its files, and checks both: `tlray verify`."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from tlray.bundle import spec as bundle_files
from tlray.bundle import store
from tlray.bundle.spec import BundleSpec
from tlray.cluster import locations
from tlray.config.commands import VerifyConfig
from tlray.data import dataset
from tlray.data.dataset import Dataset
from tlray.errors import DataError
from tlray.evaluation import evaluate
from tlray.evaluation.measurement import (
    SplitEvaluation,
    headline,
    measure_probabilities,
    with_leak_free,
    with_subgroups,
)
from tlray.files import storage

EVIDENCE = "evidence.json"
"""Name of the file with the figures of a run, and the checksums of what they were computed from and of what shows them.
"""

EVALUATED = "evaluated.parquet"
"""Name of the file with the predictions that a run's figures were computed from."""

BUNDLE = "bundle"
"""Name of the directory of a run's bundle."""

FILES = (dataset.MANIFEST, EVALUATED, f"{BUNDLE}/{bundle_files.BUNDLE_JSON}")
"""The files of a run from which its figures can be computed again."""

MUST_HAVE = (*FILES, evaluate.METRICS_JSON, evaluate.REPORT_HTML)
"""The files of which `EVIDENCE` must have a checksum. Otherwise one could leave out that of a report that was changed.
"""

TOLERANCE = 1e-6
"""Largest difference of a figure that is computed again: other versions of libraries may round differently."""


LATER = frozenset(
    {"referred_share", "referred_share_ci95", "ece_ci95", "brier_ci95", "mean_set_size_ci95"}
    | {"precision_ci95", "f1_ci95", "roc_auc_ci95"}
)
"""Names of figures that runs of earlier versions do not have. They are not compared for a run without any of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was verified.

    Attributes:
        name: What it is, such as a file or a figure.
        is_right: It is as the run says.
        detail: What was found; empty where all is well.
    """

    name: str
    is_right: bool
    detail: str = ""


SAME = Check(name="the run", is_right=True)
"""The check of a run in which nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """The result of verifying a run.

    Attributes:
        checks: What is not as the run says, files first; `SAME` if all is.
        num_files: Number of files whose checksums were compared.
        num_figures: Number of figures that were computed again and compared.
        evidence_sha256: The sha256 of `EVIDENCE`. A run with the same one has the same files.
        is_older: An earlier version made the run, without the figures of `LATER`.
    """

    checks: tuple[Check, ...]
    num_files: int
    num_figures: int
    evidence_sha256: str
    is_older: bool = False

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
        return [
            ("files", str(self.num_files)),
            ("figures computed again", str(self.num_figures)),
            *(
                [("not compared", "intervals that the run does not have, because an earlier version made it")]
                * self.is_older
            ),
            *rows,
            (f"sha256 of {EVIDENCE}", self.evidence_sha256),
        ]


def write(
    out: str, evaluations: Mapping[str, SplitEvaluation], *, metrics_json: str, shown: Sequence[str] = ()
) -> None:
    """Writes `EVALUATED` and `EVIDENCE` into a run's directory, once all its files but `metrics.json` are there.

    Args:
        out: The directory.
        evaluations: Split to its evaluation.
        metrics_json: The content that `metrics.json` will have, as it is written last.
        shown: Names of files in the directory that people read, of which checksums are kept as well; those that are
            not there are passed over. The report's figures need not be named.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(_predictions(evaluations), sink)
    storage.write_bytes(storage.join(out, EVALUATED), sink.getvalue().to_pybytes())
    figures = [f"{evaluate.FIGURES}/{name}" for name in storage.walk(storage.join(out, evaluate.FIGURES))]
    names = [*FILES, *(name for name in shown if storage.exists(storage.join(out, name))), *figures]
    sha256 = {name: _sha256(storage.join(out, name)) for name in names}
    content = {
        "figures": {split: each.metrics for split, each in evaluations.items()},
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


def _sha256(location: str) -> str:
    return hashlib.sha256(storage.read_bytes(location)).hexdigest()


def verify(config: VerifyConfig) -> VerifyResult:
    """Checks a finished run: computes its figures again, and compares its files with their checksums.

    The figures come from the stored predictions, the manifest and the limits of the bundle.

    Raises:
        DataError: There is no finished training run of this version, or its files are damaged.
        BundleError: The run's bundle cannot be used.
    """
    run = locations.input_location(config.run)
    _check_run(run, config.run)
    try:
        evidence = storage.read_bytes(storage.join(run, EVIDENCE))
        claimed = json.loads(evidence)
        predicted = pq.read_table(pa.BufferReader(storage.read_bytes(storage.join(run, EVALUATED))))
        told = json.loads(storage.read_bytes(storage.join(run, evaluate.METRICS_JSON)))
        images = dataset.stored_dataset(run)
        files, figures, splits = dict(claimed["sha256"]), claimed["figures"], told["splits"]
    except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(f"The files of '{config.run}' are damaged: {error}. Restore them.") from error
    if images is None:
        raise DataError(f"'{config.run}' has no {dataset.MANIFEST}. Give the directory of a finished training run.")
    spec, _ = store.read_spec(storage.join(run, BUNDLE))
    checks = [_check_file(run, name, files.get(name)) for name in dict.fromkeys((*MUST_HAVE, *files))]
    checks += [_check_file(run, f"{BUNDLE}/{name}", wanted) for name, wanted in spec.files.items()]
    try:
        found = {split: each.metrics for split, each in measure_again(predicted, images, spec).items()}
        quoted = headline(found)
    except KeyError as error:
        raise DataError(f"{EVALUATED} of '{config.run}' does not fit its bundle: it has no {error}.") from error
    is_older = not any(_is_later(name) for name, _ in _leaves(figures))
    of_metrics = {name: told[name] for name in quoted if name in told}
    compared = [
        *_compare(found, splits, evaluate.METRICS_JSON, is_older=is_older),
        *_compare(quoted, of_metrics, evaluate.METRICS_JSON, is_older=is_older),
        *_compare(found, figures, EVIDENCE, is_older=is_older),
        *_compare(found, spec.metrics, bundle_files.BUNDLE_JSON, is_older=is_older),
    ]
    wrong = [check for check in (*checks, *compared) if not check.is_right]
    return VerifyResult(
        checks=(*wrong, *([] if wrong else [SAME])),
        num_files=len(checks),
        num_figures=len(compared),
        evidence_sha256=hashlib.sha256(evidence).hexdigest(),
        is_older=is_older,
    )


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


def measure_again(predicted: pa.Table, images: Dataset, spec: BundleSpec) -> dict[str, SplitEvaluation]:
    """Returns the evaluations of a run, computed from its predictions.

    Args:
        predicted: The table of `EVALUATED`.
        images: The images of the run.
        spec: Description of its bundle.

    Raises:
        DataError: The manifest does not have an image of the predictions.
    """
    group_of, leaked = images.group_of, images.leaked
    found = {}
    for split in predicted["split"].unique().to_pylist():
        rows = predicted.filter(pc.field("split") == split)
        image_ids = rows["image_id"].to_pylist()
        missing = [image_id for image_id in image_ids if image_id not in group_of]
        if missing:
            raise DataError(f"{dataset.MANIFEST} does not have the image '{missing[0]}', which was measured.")
        evaluation = measure_probabilities(
            rows["label"].to_numpy(),
            np.column_stack([rows[f"p_{name}"].to_numpy() for name in spec.classes]),
            spec.classes,
            groups=np.array([group_of[image_id] for image_id in image_ids]),
            image_ids=np.array(image_ids),
            ood_scores=rows["ood_score"].to_numpy(),
            limits=spec.limits,
        )
        found[split] = with_subgroups(with_leak_free(evaluation, leaked), images.table)
    return found


def _check_file(run: str, name: str, wanted: str | None) -> Check:
    if wanted is None:
        return Check(name=name, is_right=False, detail=f"{EVIDENCE} has no checksum of it.")
    try:
        found = _sha256(storage.join(run, name))
    except FileNotFoundError:
        return Check(name=name, is_right=False, detail="The file is missing.")
    except OSError as error:
        return Check(name=name, is_right=False, detail=f"The file cannot be read: {error}.")
    detail = "" if found == wanted else f"The file was changed: its sha256 is {found[:12]}…, not {wanted[:12]}…."
    return Check(name=name, is_right=found == wanted, detail=detail)


_NOT_PREDICTED = frozenset({"num_failed", "num_unlabelled"})
"""Figures that count images without a prediction, which `EVALUATED` does not have."""


def _compare(found: Mapping[str, Any], told: Mapping[str, Any], where: str, *, is_older: bool) -> Iterator[Check]:
    """Compares all figures of two mappings, one of which may have figures that the other one lacks.

    Args:
        found: The figures that were computed again.
        told: The figures of the run.
        where: The file that has them.
        is_older: The run may lack the figures of `LATER`. It may also have an interval where there is none any more,
            such as that of the specificity of a class without images.
    """
    computed, expected = dict(_leaves(found)), dict(_leaves(told))
    for name in dict.fromkeys((*computed, *expected)):
        if name.rpartition(".")[2] in _NOT_PREDICTED or (is_older and name not in expected and _is_later(name)):
            continue
        if is_older and "_ci95." in name and name in computed and computed[name] is None:
            continue
        both = name in computed and name in expected
        is_right = both and _is_same(computed[name], expected[name])
        detail = f"{where} says {expected.get(name, 'nothing')}, and it is {computed.get(name, 'not known')}."
        yield Check(name=name, is_right=is_right, detail="" if is_right else detail)


def _is_later(name: str) -> bool:
    """Tells whether a leaf, such as test.ece_ci95.0, belongs to a figure of `LATER`."""
    return not LATER.isdisjoint(name.split("."))


def _is_same(value: Any, other: Any) -> bool:
    if isinstance(value, float) and isinstance(other, int | float):
        return math.isclose(value, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return value == other


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the name, such as test.per_class.normal.recall, and the value of every leaf."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _leaves(value, f"{prefix}{key}.")
    elif isinstance(values, list | tuple):
        for number, value in enumerate(values):
            yield from _leaves(value, f"{prefix}{number}.")
    else:
        yield prefix.removesuffix("."), values
