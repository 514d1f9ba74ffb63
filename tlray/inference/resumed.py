"""Finds out which results of an interrupted scoring still hold: those of images that have not changed since."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from tlray.data import inspection, manifest
from tlray.errors import DataError
from tlray.files import storage
from tlray.inference import predictions, score_state
from tlray.progress import Progress

_GIVEN = ("uri", "split", "group_id")
"""Columns that predictions take over from the manifest and that may differ when a scoring is continued. Ids and labels
may not: they are part of the identity of a scoring."""


def keep_unchanged(out: str, table: pa.Table, *, verify: bool, quiet: bool) -> tuple[int, int]:
    """Deletes the first part that is damaged or has an image that has changed, and all parts after it.

    An image has changed if its file has, or its `uri`, `split` or `group_id` in the manifest. Only files whose size or
    time has changed are read again, and those that could not be read before. Then it is printed how many images were
    scored before.

    Args:
        out: The output.
        table: The manifest, with the ids and labels of the scoring.
        verify: Read all files again.
        quiet: Show nothing.

    Returns:
        The number of rows that stay, and the number of these with an error.
    """
    names, parts = _undamaged_parts(out, quiet=quiet)
    ends = np.cumsum([0, *(part.num_rows for part in parts)])
    before = pa.concat_tables(parts)["sha256"].fill_null("").to_pylist() if parts else []
    stamps = _stamps_now(table["uri"].slice(0, len(before)), quiet=quiet)
    known = [
        score_state.read_stamps(out, name, num_rows=part.num_rows) for name, part in zip(names, parts, strict=True)
    ]
    same = [bool(old and old == new) for old, new in zip(itertools.chain(*known), stamps, strict=True)]
    given = _given(predictions.without_own_groups(table.slice(0, len(before))))
    stored = itertools.chain.from_iterable(map(_given, parts))
    other = {place for place, (old, new) in enumerate(zip(stored, given, strict=True)) if old != new}
    unsure = (place for place, sha256 in enumerate(before) if verify or not sha256 or not same[place])
    doubtful = [place for place in unsure if place not in other]
    changed = sorted(other.union(_changed(table["uri"], before, doubtful, quiet=quiet)))
    num_kept = int(np.searchsorted(ends[1:], changed[0], side="right")) if changed else len(parts)
    num_done = int(ends[num_kept])
    if changed:
        if not quiet:
            print(
                f"{len(changed)} of the {len(before)} scored images have changed. Scoring continues after image "
                f"{num_done} of {table.num_rows}."
            )
        _delete_parts(out, names[num_kept:])
    elif not quiet:
        print(f"{num_done} of {table.num_rows} images were scored before.")
    for number, name in enumerate(names[:num_kept]):
        now = stamps[ends[number] : ends[number + 1]]
        if now != known[number]:  # so that unchanged content with another time is not read again the next time
            score_state.write_stamps(out, name, now)
    return num_done, sum(part.num_rows - part["error_code"].null_count for part in parts[:num_kept])


def _undamaged_parts(out: str, *, quiet: bool) -> tuple[list[str], list[pa.Table]]:
    """Returns names and some columns of the parts up to the first damaged one; deletes that one and all after it."""
    names = predictions.part_names(out)
    parts: list[pa.Table] = []
    for name in names:
        try:
            part = predictions.read_part(out, name)  # all of it: any column may be damaged
        except DataError:
            _delete_parts(out, names[len(parts) :])
            if not quiet:
                print(f"{name} was damaged. Its images and those after it are scored again.")
            break
        parts.append(part.select([*_GIVEN, "sha256", "error_code"]))
    return names[: len(parts)], parts


def _delete_parts(out: str, names: Sequence[str]) -> None:
    """Deletes the last parts of an output, which is no longer finished."""
    storage.delete(storage.join(out, predictions.SUCCESS))
    for name in reversed(names):
        predictions.delete_part(out, name)


def _given(table: pa.Table) -> Iterator[tuple[str | None, ...]]:
    """Yields what a manifest says of each image, see `_GIVEN`."""
    return zip(*manifest.column_lists(table, *_GIVEN), strict=True)


def _stamps_now(uris: pa.ChunkedArray, *, quiet: bool) -> list[str]:
    found: list[str] = []
    with Progress("Looking for images that have changed", len(uris), quiet=quiet) as progress:
        for stamps in inspection.stamps(uris) if len(uris) else ():
            found += stamps
            progress.update(len(found))
    return found


def _changed(uris: pa.ChunkedArray, before: Sequence[str], places: Sequence[int], *, quiet: bool) -> list[int]:
    """Reads the images at some places again; returns the places whose sha256 (empty: unreadable) has changed."""
    now: list[str] = []
    with Progress("Reading images again", len(places), quiet=quiet) as progress:
        for digests in inspection.digests(uris.take(pa.array(places, pa.int64()))) if places else ():
            now += digests
            progress.update(len(now))
    return [place for place, digest in zip(places, now, strict=True) if before[place] != digest]
