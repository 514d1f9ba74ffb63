"""What the uris of a table mean: relative to the table, and spelt as the files are here."""

import posixpath
import unicodedata
import zipfile
from collections.abc import Sequence

from pyarrow import fs

from tlray.files import storage

FORMS_OF_NAMES = ("NFC", "NFD")
"""Unicode's composed and decomposed forms, in which file systems store names."""


def with_slashes(location: str, uris: Sequence[str | None]) -> list[str | None]:
    """Returns a manifest's uris with `/` for the backslashes of Windows, unless files have such names here."""
    first = next((uri for uri in uris if uri and "\\" in uri and not storage.is_uri(uri)), None)
    if first is None or storage.exists(resolve(location, first)):
        return list(uris)
    return [uri.replace("\\", "/") if uri and not storage.is_uri(uri) else uri for uri in uris]


def in_stored_form(location: str, uris: Sequence[str | None]) -> list[str | None]:
    """Returns a manifest's uris in the Unicode form that their files' names have here, where only that form is there.

    A table written on macOS may have `é` as one letter, and its files `e` and an accent. On a store, where each look
    is a request, the first such uri of a folder decides for all in it.
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
    """Tells whether a uri means the same whatever table it stands in."""
    return uri.startswith("/") or storage.is_uri(uri)


def resolve(manifest: str, uri: str) -> str:
    """Returns the location that a manifest's uri means."""
    if is_absolute(uri):
        return localize(uri)
    scheme, separator, path = manifest.rpartition("://")
    return scheme + separator + posixpath.normpath(posixpath.join(posixpath.dirname(path), uri))


def localize(location: str) -> str:
    """Makes a local location, `file://` ones too, an absolute path, so that a file has one name however it is given."""
    return storage.absolute(storage.open_location(location)[1] if location.startswith("file://") else location)
