"""Keeps what a run's figures were computed from, and computes them again: `tlray verify`."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tlray.bundle import spec as bundle_files
from tlray.bundle import store
from tlray.bundle.spec import BundleSpec
from tlray.cluster import locations
from tlray.config.commands import VerifyConfig
from tlray.data import dataset
from tlray.data.dataset import Dataset
from tlray.errors import DataError
from tlray.evaluation import evaluate
from tlray.evaluation.measurement import SplitEvaluation, headline, measure_probabilities, with_leak_free
from tlray.files import storage

EVIDENCE = "evidence.json"
"""Name of the file with the figures of a run and the checksums of what they were computed from."""

EVALUATED = "evaluated.parquet"
"""Name of the file with the predictions that a run's figures were computed from."""

BUNDLE = "bundle"
"""Name of the directory of a run's bundle."""

FILES = (dataset.MANIFEST, EVALUATED, f"{BUNDLE}/{bundle_files.BUNDLE_JSON}")
"""The files of a run from which its figures can be computed again."""

TOLERANCE = 1e-6
"""Largest difference of a figure that is computed again: other versions of libraries may round differently."""


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
    """

    checks: tuple[Check, ...]
    num_files: int
    num_figures: int

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
        return [("files", str(self.num_files)), ("figures computed again", str(self.num_figures)), *rows]


def write(out: str, evaluations: Mapping[str, SplitEvaluation]) -> None:
    """Writes `EVALUATED` and `EVIDENCE` into a run's directory, once the files of `FILES` are there.

    Args:
        out: The directory.
        evaluations: Split to its evaluation.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(_predictions(evaluations), sink)
    storage.write_bytes(storage.join(out, EVALUATED), sink.getvalue().to_pybytes())
    content = {
        "figures": {split: each.metrics for split, each in evaluations.items()},
        "sha256": {name: _sha256(storage.join(out, name)) for name in FILES},
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
    """Computes all figures of a finished run again, from its predictions, its manifest and its bundle's limits.

    Raises:
        DataError: The run is not finished, or is of an earlier version.
        BundleError: The run's bundle cannot be used.
    """
    run = locations.input_location(config.run)
    try:
        claimed = json.loads(storage.read_bytes(storage.join(run, EVIDENCE)))
        predicted = pq.read_table(pa.BufferReader(storage.read_bytes(storage.join(run, EVALUATED))))
        told = json.loads(storage.read_bytes(storage.join(run, evaluate.METRICS_JSON)))
        images = dataset.stored_dataset(run)
        files, figures, splits = claimed["sha256"], claimed["figures"], told["splits"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"'{config.run}' cannot be verified: it has no {EVIDENCE}, {EVALUATED} or {evaluate.METRICS_JSON}. Give "
            "the directory of a finished training run of this version."
        ) from error
    except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(f"The files of '{config.run}' are damaged: {error}. Restore them.") from error
    if images is None:
        raise DataError(f"'{config.run}' has no {dataset.MANIFEST}. Give the directory of a finished training run.")
    spec, _ = store.read_spec(storage.join(run, BUNDLE))
    checks = [_check_file(run, name, wanted) for name, wanted in files.items()]
    checks += [_check_file(run, f"{BUNDLE}/{name}", wanted) for name, wanted in spec.files.items()]
    try:
        found = {split: each.metrics for split, each in measure_again(predicted, images, spec).items()}
        quoted = headline(found)
    except KeyError as error:
        raise DataError(f"{EVALUATED} of '{config.run}' does not fit its bundle: it has no {error}.") from error
    compared = [
        *_compare(found, splits, evaluate.METRICS_JSON),
        *_compare(quoted, {name: told[name] for name in quoted if name in told}, evaluate.METRICS_JSON),
        *_compare(found, figures, EVIDENCE),
        *_compare(found, spec.metrics, bundle_files.BUNDLE_JSON),
    ]
    wrong = [check for check in (*checks, *compared) if not check.is_right]
    return VerifyResult(checks=(*wrong, *([] if wrong else [SAME])), num_files=len(checks), num_figures=len(compared))


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
        found[split] = with_leak_free(evaluation, leaked)
    return found


def _check_file(run: str, name: str, wanted: str) -> Check:
    try:
        found = _sha256(storage.join(run, name))
    except FileNotFoundError:
        return Check(name=name, is_right=False, detail="The file is missing.")
    detail = "" if found == wanted else f"The file was changed: its sha256 is {found[:12]}…, not {wanted[:12]}…."
    return Check(name=name, is_right=found == wanted, detail=detail)


_NOT_PREDICTED = frozenset({"num_failed", "num_unlabelled"})
"""Figures that count images without a prediction, which `EVALUATED` does not have."""


def _compare(found: Mapping[str, Any], told: Mapping[str, Any], where: str) -> Iterator[Check]:
    """Compares all figures of two mappings, one of which may have figures that the other one lacks."""
    computed, expected = dict(_leaves(found)), dict(_leaves(told))
    for name in dict.fromkeys((*computed, *expected)):
        if name.rpartition(".")[2] in _NOT_PREDICTED:
            continue
        both = name in computed and name in expected
        is_right = both and _is_same(computed[name], expected[name])
        detail = f"{where} says {expected.get(name, 'nothing')}, and it is {computed.get(name, 'not known')}."
        yield Check(name=name, is_right=is_right, detail="" if is_right else detail)


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
