"""Reads tables of images (CSV of any spreadsheet, TSV or Parquet) as columns of strings.

What a table says of its images beside `COLUMNS`, such as the scanner, is kept where it has few different values, so
that a model can be measured on each of them; see `tlray.trust.subgroups`.
"""

import codecs
import contextlib
import csv
import io
import posixpath
from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from tlray.data.manifest import FURTHER, refuse_repeated
from tlray.data.table_uris import is_absolute, localize
from tlray.errors import DataError
from tlray.files import spreadsheet, storage

GROUPINGS = frozenset({"pixels", "picture", "series"})
"""Columns of groups of images in a manifest that an audit or a training has written; see `tlray.data.splits`."""

COLUMNS = ("uri", "label", "split", "group_id", "image_id")
"""Names of the columns that a table of images may have, and that decide how an image is used."""

ENDINGS = (".csv", ".tsv", ".parquet")
"""Ends of the names of files that are tables."""

MAX_VALUES = 20
"""Maximum number of different values of a further column that is kept. With more, subgroups would have few images."""


def read_csv(data: bytes, location: str) -> dict[str, list[str | None]]:
    """Returns the columns of a CSV file as strings, None for empty values; labels such as `01` stay as they are.

    Values are separated by commas, semicolons or tabs, whichever gives the header the most columns. The text is UTF-8,
    or UTF-16 with a byte order mark (a spreadsheet's "Unicode text"). Empty rows and columns are left out, and so is a
    first column without a name (the index that pandas writes).

    Args:
        data: Content of the file.
        location: Location of the file, for messages.

    Raises:
        DataError: The file is not such a table.
    """
    try:
        rows = _split_rows(_decode_text(data))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{location}' is not a CSV file: {error}. Save it as comma-separated UTF-8.") from error
    header, *rows = rows or [[]]
    named = [index for index, name in enumerate(header) if name]
    refuse_repeated((header[index] for index in named), f"A column of '{location}'")
    num_needed = max(named, default=-1) + 1
    for number, row in enumerate(rows, start=1):
        if len(row) < num_needed or any(row[len(header) :]):
            raise DataError(
                f"'{location}' has {len(row)} values in row {number} (not counting the header), "
                f"but {len(header)} columns. Quote values that contain the separator."
            )
        stray = [index for index in range(1, min(len(row), len(header))) if row[index] and not header[index]]
        if stray:
            raise DataError(
                f"'{location}' has the value '{row[stray[0]]}' in row {number} (not counting the header), in column "
                f"{stray[0] + 1}, which has no name. Name the column, or quote values that contain the separator."
            )
    return {header[index]: [row[index] or None for row in rows] for index in named}


def _decode_text(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    if b"\0" in data[:1024]:
        raise csv.Error("it has null bytes, like a binary file or UTF-16 without a byte order mark")
    return data.decode("utf-8-sig")  # spreadsheets put a byte order mark first


def _split_rows(text: str) -> list[list[str]]:
    """Returns the rows that are not empty, without the spaces around values."""
    found: dict[str, list[str]] = {}
    for separator in ",;\t":
        with contextlib.suppress(csv.Error):  # the reader below raises it again
            found[separator] = next((row for row in _reader(text, separator) if any(row)), [])
    separator = max(found, key=lambda each: len(found[each]), default=",")
    rows = ([value.strip() for value in row] for row in _reader(text, separator))
    return [row for row in rows if any(row)]


def _reader(text: str, separator: str) -> Iterator[list[str]]:
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)


def read_table(location: str, suffix: str, columns: Mapping[str, str]) -> dict[str, list[str | None]]:
    """Returns the columns of a table as strings, None for missing values.

    In a CSV file, an apostrophe that keeps a spreadsheet from running a formula is no part of the value, so that the
    tables that tlray writes for people can be read again; see `spreadsheet.as_text`. Uris keep theirs: tlray writes
    none that needs one, and a file may have such a name.

    Columns of a Parquet file that are not wanted have no values if they have more than `MAX_VALUES` different ones, or
    no text form.

    Args:
        location: The table, a path or URI.
        suffix: Format of the table: ".csv", ".tsv" or ".parquet".
        columns: Names in the table of those of `COLUMNS` that it calls otherwise.

    Raises:
        DataError: The table cannot be parsed.
        OSError: The file cannot be read.
    """
    data = storage.read_bytes(location)
    if suffix == ".parquet":
        return _read_parquet(data, location, columns)
    uri = columns.get("uri", "uri")
    return {
        name: column if name == uri else [cell and spreadsheet.from_text(cell) for cell in column]
        for name, column in read_csv(data, location).items()
    }


def _read_parquet(data: bytes, location: str, columns: Mapping[str, str]) -> dict[str, list[str | None]]:
    wanted = {columns.get(name, name) for name in COLUMNS}
    try:
        table = pq.read_table(pa.BufferReader(data))
        return {
            name: table[name].cast(pa.string()).to_pylist() if name in wanted else _few_texts(table[name])
            for name in table.column_names
        }
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(
            f"'{location}' is not a Parquet manifest: {error}. Write it again, with text columns."
        ) from error


def _few_texts(column: pa.ChunkedArray) -> list[str | None]:
    """Returns the values of a column as strings if there are at most `MAX_VALUES` different ones; otherwise none."""
    try:
        if pa.types.is_dictionary(column.type):  # categories of pandas
            column = column.cast(column.type.value_type)
        return column.cast(pa.string()).to_pylist() if len(column.unique().drop_null()) <= MAX_VALUES else []
    except pa.ArrowException:  # lists, structures, bytes that are no text
        return []


def further_columns(values: Mapping[str, list[str | None]], columns: Mapping[str, str]) -> dict[str, list[str | None]]:
    """Returns the columns of a table beside `COLUMNS` that have two to `MAX_VALUES` different values.

    Args:
        values: The columns of the table, see `read_table`.
        columns: Names in the table of those of `COLUMNS` that it calls otherwise.

    Returns:
        The columns, named as in the table, with `manifest.FURTHER` before it. An empty value is None. Of a manifest
        that tlray has written, `GROUPINGS` are left out: they have ids of images.
    """
    ours = {columns.get(name, name) for name in COLUMNS}
    ours |= GROUPINGS if values.keys() >= GROUPINGS else set()
    few = {name: column for name, column in values.items() if 2 <= len({*column} - {None, ""}) <= MAX_VALUES}
    return {
        FURTHER + name.removeprefix(FURTHER): [value or None for value in column]
        for name, column in few.items()
        if name not in ours
    }


def plain_path(source: str, *, columns: Mapping[str, str] | None = None) -> str | None:
    """Returns a location that is a plain path, so that other nodes may not see it; None if all locations are URIs.

    Args:
        source: See `listing.list_images`.
        columns: See `listing.list_images`.

    Returns:
        The source. For a manifest: the first plain path that it lists, or its own one for an image with a relative uri.

    Raises:
        DataError: The manifest cannot be read.
    """
    location = localize(source)
    suffix = posixpath.splitext(location)[1].lower()
    if suffix not in ENDINGS or storage.file_info(location).type != fs.FileType.File:
        return None if storage.is_uri(source) else source
    name = (columns or {}).get("uri", "uri")
    values = read_table(location, suffix, columns or {})
    given = (uri if is_absolute(uri) else source for uri in values.get(name, []) if uri)
    return next((each for each in given if not storage.is_uri(each)), None)
