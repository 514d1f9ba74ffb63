"""Reads the files of a finished training run, and tells those that were changed from others that cannot be used.

`tlray.evaluation.verification` computes the figures of the run again from them.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from tlray.bundle import spec as bundle_files
from tlray.bundle import store
from tlray.bundle.spec import BundleSpec
from tlray.data import dataset, manifest
from tlray.data.dataset import Dataset
from tlray.errors import BundleError, DataError, some
from tlray.evaluation import evaluate, out_of_fold
from tlray.evaluation.evidence import BUNDLE, DESCRIPTION, EVALUATED, EVIDENCE
from tlray.files import storage

T = TypeVar("T")

_UNUSABLE = (
    FileNotFoundError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    pa.ArrowException,
    BundleError,
)
"""Errors of code that gets no file, or one with another content than a training run writes.

Other kinds of OSError are not among them: a file that cannot be read now may be as it was.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The content of `EVIDENCE`, and its own sha256.

    Attributes:
        files: The checksum of each file by its name in the run.
        of_splits: Split to its figures.
        of_unseen: The figures of `out_of_fold.FIGURES`.
        origin: See `tlray.evaluation.evidence.origin`; None: an earlier version did not write it.
        sha256: The sha256 of the file.
    """

    files: Mapping[str, Any]
    of_splits: Mapping[str, Any]
    of_unseen: Mapping[str, Any]
    origin: Mapping[str, Any] | None
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBundle:
    """The content of `DESCRIPTION`.

    Attributes:
        spec: The description of the run's bundle.
        sha256: The sha256 of the file.
        of_unseen: The figures of the calibration, see `out_of_fold.told`.
    """

    spec: BundleSpec
    sha256: str
    of_unseen: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunImages:
    """The content of a run's manifest.

    Attributes:
        dataset: The images, without the findings of the audit.
        fingerprints: Fingerprints of the manifest, by their names in `Evidence.origin`.
    """

    dataset: Dataset
    fingerprints: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """The files of a run, whose checksums were compared.

    Each method returns None if a file that it takes was changed so that it cannot be used; `unusable` says why then. It
    raises a DataError, or a BundleError for `DESCRIPTION`, if a file cannot be used though none of them was changed. It
    raises an OSError if a file is there and cannot be read.

    Attributes:
        location: The run's location.
        given: The location as the user gave it.
        changed: Names of the files that are not as their checksums say.
        unusable: Which of them cannot be used, and why: a text each.
    """

    location: str
    given: str
    changed: Set[str]
    unusable: list[str] = field(default_factory=list)

    def use(self, step: Callable[[], T], *names: str) -> T | None:
        """Returns the result of a function that takes some files.

        Args:
            step: The function.
            names: The names of the files. An error names the first one before the others.
        """
        try:
            return step()
        except _UNUSABLE as error:
            changed = [name for name in names if name in self.changed]
            if changed:
                self.unusable.append(f"{' and '.join(changed)}: {_reason(error)}")
                return None
            if isinstance(error, BundleError):
                raise
            raise _refusal(self.given, error, *names) from error

    def table(self, name: str) -> pa.Table | None:
        """Reads a Parquet file."""
        return self.use(lambda: self._read_table(name), name)

    def metrics(self) -> dict[str, Any] | None:
        """Reads `metrics.json`. Its `splits` are an object."""
        name = evaluate.METRICS_JSON
        return self.use(lambda: _parse(self._read(name), "splits"), name)

    def bundle(self) -> RunBundle | None:
        """Reads `DESCRIPTION`."""
        return self.use(self._read_bundle, DESCRIPTION)

    def images(self) -> RunImages | None:
        """Reads the manifest."""
        return self.use(self._read_images, dataset.MANIFEST)

    def _read(self, name: str) -> bytes:
        if storage.file_info(storage.join(self.location, name)).type == fs.FileType.Directory:
            raise DataError("it is a directory")
        return storage.read_bytes(storage.join(self.location, name))

    def _read_table(self, name: str) -> pa.Table:
        content = self._read(name)
        try:
            return pq.read_table(pa.BufferReader(content))
        except OSError as error:  # a damaged page
            raise DataError(str(error)) from error

    def _read_bundle(self) -> RunBundle:
        spec, sha256 = store.read_spec(storage.join(self.location, BUNDLE))
        return RunBundle(spec=spec, sha256=sha256, of_unseen=out_of_fold.told({}, spec.trust))

    def _read_images(self) -> RunImages:
        table = self._read_table(dataset.MANIFEST)
        lacking = {*manifest.SCHEMA.names, "error_code"}.difference(table.column_names)
        if lacking:
            raise DataError(f"it lacks the columns {some(lacking)}")
        return RunImages(
            dataset=Dataset(table=table, findings={}),
            fingerprints={
                "data_fingerprint": manifest.fingerprint(table),
                "split_fingerprint": manifest.split_fingerprint(table),
                "id_fingerprint": manifest.id_fingerprint(table),
            },
        )


def check_run(run: str, given: str) -> None:
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
    if made_as == "training" and not {EVIDENCE, evaluate.METRICS_JSON}.intersection(missing):
        # What has a checksum was there; the checks of the files say that it is missing.
        told = read_evidence(run, given).files
        missing = [name for name in missing if name not in told and not (name == BUNDLE and DESCRIPTION in told)]
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


def read_evidence(location: str, given: str) -> Evidence:
    """Reads `EVIDENCE` of a run, which has no checksum itself.

    Args:
        location: The run's location.
        given: The location as the user gave it.

    Raises:
        DataError: It is damaged.
        OSError: It cannot be read.
    """
    try:
        content = storage.read_bytes(storage.join(location, EVIDENCE))
        told = _parse(content, "sha256", "figures", optional="origin")
    except _UNUSABLE as error:
        raise _refusal(given, error, EVIDENCE) from error
    figures = told["figures"]
    return Evidence(
        files=told["sha256"],
        of_splits={name: each for name, each in figures.items() if name not in out_of_fold.FIGURES},
        of_unseen={name: each for name, each in figures.items() if name in out_of_fold.FIGURES},
        origin=told.get("origin"),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _parse(content: bytes, *names: str, optional: str = "") -> dict[str, Any]:
    """Returns the object in a JSON file whose values of some names are objects, too.

    Args:
        content: The content of the file.
        names: Names that it must have.
        optional: A name that it may have.

    Raises:
        ValueError: It is no JSON, or no such object.
    """
    found = json.loads(content)
    if not isinstance(found, dict):
        raise DataError("it is no JSON object")
    needed = (*names, *([optional] if optional in found else []))
    lacking = [name for name in needed if not isinstance(found.get(name), dict)]
    if lacking:
        raise DataError(f"it has no object {some(lacking)}")
    return found


def _refusal(given: str, error: Exception, name: str, *others: str) -> DataError:
    """Returns the error for a file that cannot be used, though nobody can be shown to have changed it.

    Args:
        given: The run's location as the user gave it.
        error: What went wrong.
        name: The file's name in the run.
        others: Names of files that it was used with.
    """
    beside = f" with {' and '.join(others)}" if others else ""
    return DataError(f"{name} of '{given}' cannot be used{beside}: {_reason(error)}. Restore the run, or train again.")


def _reason(error: Exception) -> str:
    """Returns what an error says, without a full stop; str() of a KeyError would have quotation marks."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return text.rstrip(".")
