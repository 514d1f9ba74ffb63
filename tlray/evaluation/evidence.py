"""Keeps what a run's figures were computed from, and checksums of its files; `tlray verify` checks both."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tlray.bundle import spec as bundle_files
from tlray.bundle import store
from tlray.bundle.spec import BundleSpec
from tlray.data import dataset
from tlray.evaluation import checks, evaluate, out_of_fold
from tlray.evaluation.measurement import SplitEvaluation
from tlray.evaluation.out_of_fold import Predicted
from tlray.files import storage

EVIDENCE = "evidence.json"
"""Name of the file with the figures of a run, what they came from (see `origin`), and checksums of the run's files."""

EVALUATED = "evaluated.parquet"
"""Name of the file with the predictions that the figures of a run's splits were computed from."""

BUNDLE = "bundle"
"""Name of the directory of a run's bundle."""

DESCRIPTION = f"{BUNDLE}/{bundle_files.BUNDLE_JSON}"
"""Name of the file that describes a run's bundle, in the run's directory."""

FILES = (dataset.MANIFEST, EVALUATED, DESCRIPTION)
"""The files of a run from which its figures can be computed again."""

MUST_HAVE = (*FILES, evaluate.METRICS_JSON, evaluate.REPORT_HTML)
"""The files of which `EVIDENCE` must have a checksum. Otherwise one could leave out that of a report that was changed.
"""


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
