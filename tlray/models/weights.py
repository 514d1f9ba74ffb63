"""Checks the pretrained weights given as --weights, before anything is built with them."""

from typing import get_args

from pyarrow import fs

from tlray.bundle import spec, store
from tlray.config.training import Preprocessing
from tlray.errors import BundleError, ConfigError
from tlray.files import storage

NAMED = frozenset({"imagenet", "none"})
"""Values of `--weights` that are names, not locations."""

# First bytes of HDF5 (its format specification, II.A) and zip (APPNOTE.TXT 4.3.7); Keras goes by a file's ending.
_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK\x03\x04"
_BEGINNINGS = {".h5": _HDF5, ".hdf5": _HDF5, ".keras": _ZIP, ".weights.json": b""}


def has_bundle(location: str) -> bool:
    """Tells whether a location holds a bundle of tlray."""
    return storage.exists(storage.join(location, spec.BUNDLE_JSON))


def trained_preprocessing(weights: str) -> Preprocessing | None:
    """Returns how the pixels were scaled that a bundle's network was trained on; None: the weights are not a bundle.

    Args:
        weights: `imagenet`, `none`, or a location.

    Raises:
        BundleError: The bundle's `bundle.json` is damaged, or names no scaling that this version knows.
    """
    if weights in NAMED or not has_bundle(weights):
        return None
    found = store.read_spec(weights)[0].preprocessing
    for mode in get_args(Preprocessing):
        if mode == found:
            return mode
    raise BundleError(
        f"The bundle '{weights}' names the preprocessing '{found}', which is none of "
        f"{', '.join(get_args(Preprocessing))}. Restore it or export it again."
    )


def check_weights(weights: str, preprocessing: Preprocessing | None = None) -> None:
    """Refuses weights that no backbone could start from; whether they fit one is checked when that is built.

    Args:
        weights: `imagenet`, `none`, or a location.
        preprocessing: The wanted scaling of the pixels; None: that of the bundle, or of the backbone.

    Raises:
        BundleError: A preprocessing is wanted, and the bundle's `bundle.json` is damaged.
        ConfigError: The location holds nothing, or neither a Keras weights file nor a bundle; or the bundle's network
            was trained with another preprocessing.
    """
    if weights in NAMED:
        return
    kind = storage.file_info(weights).type
    if kind == fs.FileType.NotFound:
        raise ConfigError(
            f"There are no weights at '{weights}'. Give 'imagenet', 'none', a Keras weights file, or a bundle."
        )
    if kind == fs.FileType.Directory:
        if not has_bundle(weights):
            raise ConfigError(
                f"--weights '{weights}' is a folder but not a bundle of tlray: it has no {spec.BUNDLE_JSON}. Give the "
                "folder that has it (of a run: RUN/bundle), or a Keras weights file."
            )
        trained = trained_preprocessing(weights) if preprocessing else None
        if trained != preprocessing:
            raise ConfigError(
                f"The network of --weights '{weights}' was trained with --preprocessing {trained}, and would be given "
                f"pixels of --preprocessing {preprocessing}. Give --preprocessing {trained}."
            )
        return
    beginning = next((begin for ending, begin in _BEGINNINGS.items() if weights.endswith(ending)), None)
    file_system, path = storage.open_location(weights)
    if beginning is not None:
        with file_system.open_input_file(path) as file:
            if file.read(len(beginning)) == beginning:
                return
    what = "ending is not one of these" if beginning is None else "first bytes are not those of such a file"
    raise ConfigError(
        f"--weights '{weights}' is not a Keras weights file ({', '.join(_BEGINNINGS)}): its {what}. Give the file as "
        "Keras saved it."
    )
