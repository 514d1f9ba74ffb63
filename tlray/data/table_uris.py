"""Resolves the uris in a manifest: relative to the manifest, with the spelling that the files have on this system."""

import posixpath
import unicodedata
import zipfile
from collections.abc import Sequence

from pyarrow import fs

from tlray.files import storage

FORMS_OF_NAMES = ("NFC", "NFD")
"""Unicode normal forms in which file systems store names: composed and decomposed."""


def with_slashes(location: str, uris: Sequence[str | None]) -> list[str | None]:
    """Returns a manifest's uris with `/` in place of the backslashes of Windows.

    The uris stay as they are if the first one with a backslash is the name of an existing file.
    """
    first = next((uri for uri in uris if uri and "\\" in uri and not storage.is_uri(uri)), None)
    if first is None or storage.exists(resolve(location, first)):
        return list(uris)
    return [uri.replace("\\", "/") if uri and not storage.is_uri(uri) else uri for uri in uris]


def in_stored_form(location: str, uris: Sequence[str | None]) -> list[str | None]:
    """Returns a manifest's uris in the Unicode form of their files' names, if no file has the uri as it is written.

    A table written on macOS may have `é` as one character, and its files `e` and an accent. On an object store, where
    each check costs a request, the first such uri in a folder decides for all others in it.
    """
    form_of: dict[str, str | None] = {}
    found = []
    for uri in uris:
        if not uri or storage.is_uri(uri) or all(unicodedata.is_normalized(form, uri) for form in FORMS_OF_NAMES):
            found.append(uri)
            continue
        spellings = {None: uri} | {form: unicodedata.normalize(form, uri) for form in FORMS_OF_NAMES}
        key = posixpath.dirname(uri) if storage.is_uri(location) else uri
        if key not in form_of:
            form_of[key] = next((form for form in spellings if _is_there(resolve(location, spellings[form]))), None)
        found.append(spellings[form_of[key]])
    return found


def _is_there(location: str) -> bool:
    file, member = storage.split_member(location)
    try:
        is_file = storage.file_info(file).type == fs.FileType.File
        return is_file and (member is None or storage.open_zip(file).find(member) is not None)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):  # reading the image says why
        return False


def is_absolute(uri: str) -> bool:
    """Tells whether a uri is an absolute path or has a scheme, so that it does not depend on its table's location."""
    return uri.startswith("/") or storage.is_uri(uri)


def resolve(manifest: str, uri: str) -> str:
    """Returns the location of a uri in a manifest; relative uris start at the manifest's folder."""
    if is_absolute(uri):
        return localize(uri)
    scheme, separator, path = manifest.rpartition("://")
    return scheme + separator + posixpath.normpath(posixpath.join(posixpath.dirname(path), uri))


def localize(location: str) -> str:
    """Returns local locations, including `file://` URIs, as absolute paths, so that each file has only one name."""
    return storage.absolute(storage.open_location(location)[1] if location.startswith("file://") else location)
