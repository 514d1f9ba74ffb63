"""Lists the images at a source (folder, file, glob, zip, CSV, TSV or Parquet) as a manifest.

No image is opened. Files that are not images get an error code later, when they are read.
"""

import fnmatch
import logging
import os
import posixpath
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import fs

from tlray.data.layout import is_hidden, read_layout, split_of
from tlray.data.manifest import SCHEMA, normal_form, refuse_repeated
from tlray.data.table_uris import in_stored_form, is_absolute, localize, resolve, with_slashes
from tlray.data.tables import COLUMNS, ENDINGS, further_columns, read_table
from tlray.errors import DataError, some
from tlray.files import roots, storage
from tlray.files.zip_archive import member_name

_FORMS = "Give a folder, an image, a glob, a .zip, or a table (.csv, .tsv, .parquet) with a row for each image"
_AS_IMAGES = "Save its images as PNG or TIFF files in class folders"
_AS_FOLDER = "Unpack it and give the folder, or pack it as .zip"
_AS_CSV = "Save the table as CSV (UTF-8)"
_REMEDIES = {
    **dict.fromkeys((".npz", ".npy", ".h5", ".hdf5", ".mat", ".pkl", ".pt", ".tfrecord"), _AS_IMAGES),
    **dict.fromkeys((".dcm", ".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".svs", ".pdf", ".gif"), _AS_IMAGES),
    **dict.fromkeys((".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"), _AS_FOLDER),
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods"), _AS_CSV),
    **dict.fromkeys((".json", ".jsonl", ".feather", ".arrow"), "Save the table as CSV (UTF-8) or Parquet"),
}
"""Remedies for files that are neither images nor other readable sources, by the ending of their names."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The images found at a source."""

    table: pa.Table
    """The manifest, with `manifest.SCHEMA` and `tables.further_columns`, sorted by `image_id`."""
    num_skipped: int
    """Number of entries left out: hidden and system files, loops, pipes, loose files beside split or class folders. A
    hidden or system folder on a local disk is one entry, and none in a glob; elsewhere each of its files is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    image_id: str
    uri: str
    label: str | None = None
    split: str | None = None
    group_id: str | None = None
    further: Sequence[str | None] = ()


def list_images(
    source: str,
    *,
    columns: Mapping[str, str] | None = None,
    labels_needed: bool = True,
    allowed: Sequence[str] = (),
) -> Listing:
    """Lists the images at a source. Every file that is not hidden is listed, with any extension.

    On a local disk hidden and system folders (see `layout.is_hidden`) are not entered, and need not be readable.

    The layout of a folder (or zip, or the part of a glob before its first wildcard) is read by these rules:

    1. Wrapping folders are entered: a folder that is the only entry, is not named like a split, and holds folders
       itself or has the name of the source (`scans.zip` with `scans/1.png`). `image_id` is the path below them.
    2. If a folder is named like a split (in any case; also `Training`, `val`, `dev`, `test_set` and the like), the
       layout is `SPLIT/CLASS/*`. Other folders beside it are ambiguous. A split without class folders is unlabelled.
    3. Otherwise folders are classes (`CLASS/*`). But if a loose file beside them is named like an image, nothing shows
       that the folders are classes, and all files, at any depth, are unlabelled.
    4. Loose files beside split or class folders (a README) are skipped and counted.
    5. `group_id` is the name of the folder below the class (`CLASS/PATIENT/*`); a patient with images in two classes is
       one group. Without such a folder it is the image's own id. If every class holds nothing but one folder such as
       `images`, that is not a patient. Other folders that do not look like patients are ambiguous: split folders,
       `images` and `masks`, names without a digit, and ten names or fewer if several classes share more than half of
       them (a manifest with `group_id` can state that these are patients).
    6. `images`, `masks` and the like are kinds of files: they are ambiguous as class folders, or if there are several
       below patients.

    Labels, groups and ids are in Unicode's normal form NFC. A `uri` has the form that the file system or the archive
    uses, even if a manifest spells it in another form.

    Args:
        source: A folder, one file, a glob (`*`, `?`, `[...]`, `**`), a .zip, or a .csv, .tsv or .parquet manifest; a
            local path or a URI. A path that exists is taken literally even if it looks like a glob.
        columns: A manifest's names of the columns `uri`, `label`, `split`, `group_id`, `image_id`, where they differ.
        labels_needed: Refuse an ambiguous layout. Otherwise all its files are listed without labels and splits.
        allowed: Roots that links to folders must not leave, see `roots.outside`. Empty: links may lead anywhere.

    Raises:
        DataError: There is no such source, it has no images, it cannot be read, its layout is ambiguous, or a folder in
            it leads out of the roots.
        ConfigError: The scheme of the URI is unknown.
    """
    location = localize(source)
    suffix = posixpath.splitext(location)[1].lower()
    try:
        kind = storage.file_info(location).type
        is_manifest = kind == fs.FileType.File and suffix in ENDINGS
        if columns and not is_manifest:
            raise DataError(
                f"--columns works with a .csv, .tsv or .parquet manifest only, and '{source}' is not one. Leave it out."
            )
        if kind == fs.FileType.Directory:
            listing = _list_folder(location, allowed, labels_needed=labels_needed)
        elif is_manifest:
            listing = _list_manifest(location, suffix, columns or {})
        elif kind == fs.FileType.File and suffix == ".zip":
            listing = _list_zip(location, labels_needed=labels_needed)
        elif kind == fs.FileType.File:
            listing = _list_file(location)
        elif re.search(r"[*?\[]", location):
            listing = _list_glob(location, allowed, labels_needed=labels_needed)
        else:
            raise DataError(f"There is no file or folder '{source}'. {_FORMS}.")
    except OSError as error:
        raise DataError(f"Cannot read '{source}': {error}. Check that it is there and that you may read it.") from error
    if not listing.table.num_rows:
        skipped = f" (skipped as hidden or loose: {listing.num_skipped})" if listing.num_skipped else ""
        raise DataError(f"'{source}' has no images{skipped}. {_FORMS}.")
    return listing


def _list_file(location: str) -> Listing:
    name = posixpath.basename(location)
    for ending, remedy in _REMEDIES.items():
        if name.lower().endswith(ending):
            raise DataError(f"'{name}' is a {ending} file, which tlray cannot read. {remedy}.")
    return Listing(table=_to_table([_Row(image_id=name, uri=location)]), num_skipped=0)


def _to_table(rows: Iterable[_Row], further: Sequence[str] = ()) -> pa.Table:
    """Returns rows as a manifest; `further` are the names of the values in `_Row.further`."""
    rows = list(rows)
    refuse_repeated((row.image_id for row in rows), "The image_id")
    counts = Counter(normal_form(row.image_id) for row in rows)
    # On Linux two files may have names that differ only in their Unicode form: these keep their ids unchanged.
    id_of = {row.image_id: name if counts[name := normal_form(row.image_id)] == 1 else row.image_id for row in rows}
    ordered = sorted(rows, key=lambda row: id_of[row.image_id])
    try:
        table = pa.table(
            {
                "image_id": [id_of[row.image_id] for row in ordered],
                "uri": [row.uri for row in ordered],
                "label": [normal_form(row.label) if row.label else None for row in ordered],
                "split": [row.split for row in ordered],
                "group_id": [normal_form(row.group_id) if row.group_id else id_of[row.image_id] for row in ordered],
                "sha256": [None] * len(ordered),
            },
            schema=SCHEMA,
        )
    except UnicodeEncodeError as error:
        raise DataError(f"The file name {error.object!r} is not UTF-8. Rename the file.") from error
    for place, name in enumerate(further):
        table = table.append_column(name, pa.array([row.further[place] for row in ordered], pa.string()))
    return table


def _to_listing(
    paths: Sequence[str], name: str, to_uri: Callable[[str], str], *, labels_needed: bool, num_special: int = 0
) -> Listing:
    places = read_layout(paths, name, labels_needed=labels_needed)
    rows = [
        _Row(image_id=each.image_id, uri=to_uri(each.path), label=each.label, split=each.split, group_id=each.group_id)
        for each in places
    ]
    return Listing(table=_to_table(rows), num_skipped=len(paths) - len(rows) + num_special)


def _list_folder(location: str, allowed: Sequence[str], *, labels_needed: bool) -> Listing:
    if storage.is_uri(location):
        paths, num_special = list(storage.walk(location)), 0
    else:
        paths = []
        num_special = _walk_local(
            location, (), frozenset(), lambda folder: _may_enter(location, folder, allowed), paths
        )
    return _to_listing(
        paths,
        posixpath.basename(location),
        lambda path: storage.join(location, path),
        labels_needed=labels_needed,
        num_special=num_special,
    )


def _list_glob(location: str, allowed: Sequence[str], *, labels_needed: bool) -> Listing:
    parts = location.split("/")
    first = next(index for index, part in enumerate(parts) if re.search(r"[*?\[]", part))
    root, patterns = "/".join(parts[:first]) or "/", parts[first:]
    paths: list[str] = []
    if storage.is_uri(root):
        paths.extend(storage.walk(root))
    elif os.path.isdir(root):

        def enter(folder: Sequence[str]) -> bool:
            return _may_hold(folder, patterns) and _may_enter(root, folder, allowed)

        _walk_local(root, (), frozenset(), enter, paths)
    matching = [path for path in paths if _matches(path.split("/"), patterns)]
    return _to_listing(
        matching, posixpath.basename(root), lambda path: storage.join(root, path), labels_needed=labels_needed
    )


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns or not parts:
        return not parts and all(pattern == "**" for pattern in patterns)
    if patterns[0] == "**":
        return _matches(parts, patterns[1:]) or _matches(parts[1:], patterns)
    return fnmatch.fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])


def _may_hold(folder: Sequence[str], patterns: Sequence[str]) -> bool:
    """Tells whether files below a folder can match, so that `/data/*.png` does not walk all of /data."""
    for part, pattern in zip(folder, patterns, strict=False):
        if pattern == "**":
            return True
        if not fnmatch.fnmatchcase(part, pattern):
            return False
    return len(folder) < len(patterns)


def _may_enter(root: str, folder: Sequence[str], allowed: Sequence[str]) -> bool:
    """Tells whether a folder may be entered; raises a DataError, without its name, if it leads out of the roots."""
    location = storage.join(root, *folder)
    if not allowed or not roots.outside([location], allowed):
        return True
    _LOG.warning("Refused, because it does not lie below the allowed roots: '%s'", location)
    raise DataError(f"A symbolic link in '{root}' leads to a folder outside of the allowed roots. Remove the link.")


def _walk_local(
    root: str,
    folder: tuple[str, ...],
    ancestors: frozenset[tuple[int, int]],
    enter: Callable[[Sequence[str]], bool],
    paths: list[str],
) -> int:
    """Appends the paths of files below `root/folder`, relative to `root`; hidden and system folders are not entered.

    `os.walk` and pyarrow would not do: `os.walk` swallows errors, and neither follows links and stops at loops.

    Returns:
        The number of hidden and system folders, loops and pipes that it skipped.
    """
    directory = os.path.join(root, *folder)
    status = os.stat(directory)
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:
        return 1
    num_skipped = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            below = (*folder, entry.name)
            is_link = entry.is_symlink()
            if os.path.isdir(entry.path) if is_link else entry.is_dir():
                if is_hidden([entry.name]):  # such as lost+found, which only root may read, or .git
                    num_skipped += 1
                elif enter(below):
                    num_skipped += _walk_local(root, below, ancestors | {identity}, enter, paths)
            # A broken link is listed and becomes a row with `not_found`. Pipes are not, as reading one may never end.
            elif (os.path.isfile(entry.path) or not os.path.exists(entry.path)) if is_link else entry.is_file():
                paths.append("/".join(below))
            else:
                num_skipped += 1
    return num_skipped


def _list_zip(location: str, *, labels_needed: bool) -> Listing:
    try:
        members = [member_name(info) for info in storage.open_zip(location).members()]
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:  # ValueError: bad names or offsets
        raise DataError(f"The zip archive '{location}' is damaged: {error}. Copy or pack it again.") from error
    member_of: dict[str, str] = {}
    for member in members:
        if "\\" in member or re.match(r"/|[A-Za-z]:", member) or ".." in member.split("/"):
            raise DataError(
                f"The zip archive '{location}' has a member that points out of it: '{member}'. "
                "Pack it again with relative paths and forward slashes."
            )
        if not member.endswith("/"):
            path = posixpath.normpath(member)
            if path in member_of:
                raise DataError(f"The zip archive '{location}' has '{path}' twice. Pack it again with one of them.")
            member_of[path] = member
    name = posixpath.splitext(posixpath.basename(location))[0]
    uri_prefix = location + storage.ZIP_SEPARATOR
    return _to_listing(list(member_of), name, lambda path: uri_prefix + member_of[path], labels_needed=labels_needed)


def _list_manifest(location: str, suffix: str, columns: Mapping[str, str]) -> Listing:
    unknown = columns.keys() - set(COLUMNS)
    if unknown:
        raise DataError(f"--columns cannot rename {some(unknown)}. It can rename: {some(COLUMNS)}.")
    values = read_table(location, suffix, columns)
    if not values:
        raise DataError(f"'{location}' is empty. A manifest needs a column 'uri' and a row for each image.")
    absent = {name for name in columns.values() if name not in values}
    if absent:
        raise DataError(f"'{location}' has no column {some(absent)}. Its columns: {some(values)}.")
    if columns.get("uri", "uri") not in values:
        raise DataError(f"'{location}' has no column 'uri'. Rename one (--columns uri=NAME) of: {some(values)}.")
    num_rows = len(values[columns.get("uri", "uri")])
    uris = with_slashes(location, values[columns.get("uri", "uri")])
    values[columns.get("uri", "uri")] = in_stored_form(location, uris)
    ours = (values.get(columns.get(name, name), [None] * num_rows) for name in COLUMNS)
    further = further_columns(values, columns)
    rows = []
    for number, (uri, label, split, group_id, image_id) in enumerate(zip(*ours, strict=True), start=1):
        if not uri:
            raise DataError(f"'{location}' has no uri in row {number} (not counting a header). Fill or remove it.")
        if split and not split_of(split):
            raise DataError(
                f"'{location}' has split '{split}' in row {number}. Use train, valid or test, or leave it empty."
            )
        rows.append(
            _Row(
                image_id=image_id or (uri if is_absolute(uri) else posixpath.normpath(uri)),
                uri=resolve(location, uri),
                label=label or None,
                split=split_of(split) if split else None,
                group_id=group_id,
                further=[column[number - 1] for column in further.values()],
            )
        )
    refuse_repeated((row.uri for row in rows), f"The uri in '{location}'")
    return Listing(table=_to_table(rows, list(further)), num_skipped=0)
