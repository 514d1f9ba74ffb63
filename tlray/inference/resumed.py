"""Finds out which results of an interrupted scoring still hold: those of files that have not changed since."""

import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tlray.data import inspection
from tlray.files import storage
from tlray.inference import predictions, score_state
from tlray.progress import Progress


def keep_unchanged(out: str, table: pa.Table, *, verify: bool, quiet: bool) -> tuple[int, int]:
    """Deletes the first part with an image whose file has changed since it was scored, and all parts after it.

    To find it, only files whose size or time has changed are read again, and those that could not be read before. Then
    it is printed how many images were scored before.

    Args:
        out: The output.
        table: The manifest.
        verify: Read all files again.
        quiet: Show nothing.

    Returns:
        The number of rows that stay, and the number of these with an error.
    """
    names = predictions.part_names(out)
    parts = [predictions.read_part(out, name, columns=["sha256", "error_code"]) for name in names]
    ends = np.cumsum([0, *(part.num_rows for part in parts)])
    before = pa.concat_tables(parts)["sha256"].fill_null("").to_pylist() if parts else []
    stamps = _stamps_now(table["uri"].slice(0, len(before)), quiet=quiet)
    known = [
        score_state.read_stamps(out, name, num_rows=part.num_rows) for name, part in zip(names, parts, strict=True)
    ]
    same = [bool(old and old == new) for old, new in zip(itertools.chain(*known), stamps, strict=True)]
    doubtful = [place for place, sha256 in enumerate(before) if verify or not sha256 or not same[place]]
    changed = _changed(table["uri"], before, doubtful, quiet=quiet)
    num_kept = int(np.searchsorted(ends[1:], changed[0], side="right")) if changed else len(parts)
    num_done = int(ends[num_kept])
    if changed:
        if not quiet:
            print(
                f"{len(changed)} of the {len(before)} scored images have changed. Scoring continues after image "
                f"{num_done} of {table.num_rows}."
            )
        storage.delete(storage.join(out, predictions.SUCCESS))
        for name in reversed(names[num_kept:]):
            predictions.delete_part(out, name)
    elif not quiet:
        print(f"{num_done} of {table.num_rows} images were scored before.")
    for number, name in enumerate(names[:num_kept]):
        now = stamps[ends[number] : ends[number + 1]]
        if now != known[number]:  # so that unchanged content with another time is not read again the next time
            score_state.write_stamps(out, name, now)
    return num_done, sum(part.num_rows - part["error_code"].null_count for part in parts[:num_kept])


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
