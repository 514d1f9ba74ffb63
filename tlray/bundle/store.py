"""Bundles as directories: sealed with checksums when all files are there, verified when they are read."""

import dataclasses
import hashlib
import json
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

from tlray.bundle.spec import BUNDLE_JSON, MODEL_FILE, SAVED_MODEL_DIR, BundleSpec, library_versions, read_spec
from tlray.errors import BundleError
from tlray.files import storage


class _TemporaryCopy:
    """A directory for a remote bundle's files, deleted with this object: TemporaryDirectory would warn of that."""

    def __init__(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="tlray-bundle-")
        weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A verified bundle on this node's disk.

    Attributes:
        spec: What `bundle.json` says.
        directory: Where its files lie.
        sha256: Of `bundle.json`: the name of this exact model.
    """

    spec: BundleSpec
    directory: Path
    sha256: str
    _copy: "_TemporaryCopy | None" = None

    @property
    def model_path(self) -> Path:
        """The Keras model."""
        return self.directory / MODEL_FILE

    @property
    def saved_model_path(self) -> Path:
        """The SavedModel directory."""
        return self.directory / SAVED_MODEL_DIR


def seal(location: str, spec: BundleSpec) -> str:
    """Makes a directory with model files a bundle: checksums all its files and writes `bundle.json`, last.

    Args:
        location: The directory, with `model.keras` and `saved_model/` in it.
        spec: `files` and `library_versions` are filled in here.

    Returns:
        The bundle's sha256.
    """
    files = {
        name: hashlib.sha256(storage.read_bytes(storage.join(location, name))).hexdigest()
        for name in storage.walk(location)
        if name not in (BUNDLE_JSON, storage.MARK)
    }
    sealed = dataclasses.replace(spec, files=files, library_versions=library_versions())
    content = json.dumps(dataclasses.asdict(sealed), indent=2).encode() + b"\n"
    storage.write_bytes(storage.join(location, BUNDLE_JSON), content)
    return hashlib.sha256(content).hexdigest()


def load(location: str) -> Bundle:
    """Opens a bundle and verifies the checksum of every file.

    Args:
        location: The bundle's directory; a remote one is copied to this node for as long as the result lives.

    Raises:
        BundleError: It is missing, incomplete, or was changed after its export.
    """
    spec, sha256 = read_spec(location)
    copy = None
    directory = Path(storage.open_location(location)[1])
    if not storage.is_local(location):
        copy = _TemporaryCopy()
        directory = Path(copy.directory)
        storage.copy_tree(location, copy.directory)
    for name, wanted in spec.files.items():
        path = (directory / name).resolve()
        if not path.is_relative_to(directory.resolve()):
            raise BundleError(f"The bundle '{location}' lists a file outside of itself: {name}. Do not use it.")
        if not path.is_file():
            raise BundleError(f"The bundle '{location}' lacks its file {name}. Restore it or export it again.")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != wanted:
            raise BundleError(
                f"The bundle '{location}' was changed after its export: sha256 of {name} is {found[:12]}…, "
                f"{BUNDLE_JSON} says {wanted[:12]}…. Restore it or export it again."
            )
    missing = {MODEL_FILE, f"{SAVED_MODEL_DIR}/saved_model.pb"} - set(spec.files)
    if missing:
        raise BundleError(f"{BUNDLE_JSON} of '{location}' does not list {', '.join(sorted(missing))}.")
    return Bundle(spec=spec, directory=directory, sha256=sha256, _copy=copy)
