"""Looks at the pictures of a data set as a whole: which images are copies, and what the traits of the files are."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import ray
from threadpoolctl import threadpool_limits

from tlray.cluster import connection
from tlray.data import dataset, looks, splits
from tlray.progress import Progress
from tlray.trust import pixel_match
from tlray.trust.copies import Copies, find_copies
from tlray.trust.pixel_match import Match

PAIRS_PER_TASK = 1024
"""Number of pairs that are compared at once, in about a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """The copies, traits and thumbnails of the images of a data set, in the order of their ids.

    Attributes:
        table: All images, with the columns `splits.PIXELS`, `splits.PICTURE` and `splits.SERIES`.
        traits: The traits of the readable ones, with `traits.SCHEMA`.
        copies: The copies among the readable ones.
        thumbnails_BHW: The thumbnails of the readable ones, uint8 [images, THUMBNAIL_PX, THUMBNAIL_PX].
    """

    table: pa.Table
    traits: pa.Table
    copies: Copies
    thumbnails_BHW: np.ndarray


def look(table: pa.Table, pooled_BD: np.ndarray | None = None, *, task_cpus: float | None, quiet: bool) -> Pictures:
    """Finds the copies in a table of images.

    Args:
        table: A table of `dataset.read_images` or `inspection.inspect_here`.
        pooled_BD: Pooled features of the readable images, float16 [images, values]; None: copies are found by
            thumbnails and the hashes of pixels alone, which finds fewer of those that were cropped.
        task_cpus: See `compare`.
        quiet: Show no progress.
    """
    is_readable = table["error_code"].is_null()
    readable = table.filter(is_readable)
    thumbnails = looks.thumbnails(readable)
    found = find_copies(
        pooled_BD,
        thumbnails,
        readable["pixels_sha256"].to_pylist(),
        compare=partial(compare, task_cpus=task_cpus, quiet=quiet),
    )
    told = dataset.without_looks(table)
    columns = {splits.PIXELS: found.identical_of, splits.PICTURE: found.group_of, splits.SERIES: found.series_of}
    for name, firsts in columns.items():
        ids = iter(readable["image_id"].take(pa.array(firsts)).to_pylist())
        told = told.append_column(
            name, pa.array([next(ids) if each else None for each in is_readable.to_pylist()], pa.string())
        )
    return Pictures(
        table=told,
        traits=looks.traits_of(readable),
        copies=found,
        thumbnails_BHW=thumbnails,
    )


def compare(thumbnails_BHW: np.ndarray, pairs: np.ndarray, *, task_cpus: float | None, quiet: bool) -> Match:
    """Does what `pixel_match.compare` does, in tasks on the cluster or in this process, and shows progress.

    Args:
        thumbnails_BHW: See `pixel_match.compare`.
        pairs: See `pixel_match.compare`.
        task_cpus: CPUs that a task asks for; a task keeps one CPU busy. None: compare in this process, without Ray.
        quiet: Show no progress.
    """
    parts = [pairs[start : start + PAIRS_PER_TASK] for start in range(0, len(pairs), PAIRS_PER_TASK)]
    matches = _here(thumbnails_BHW, parts) if task_cpus is None else _in_tasks(thumbnails_BHW, parts, task_cpus)
    found: list[Match] = [pixel_match.compare(thumbnails_BHW, pairs[:0])]
    with Progress("Comparing pictures", len(pairs), unit="pairs", quiet=quiet) as progress:
        for each in matches:
            found.append(each)
            progress.update(sum(len(match.scores) for match in found))
    return Match(
        kinds=np.concatenate([match.kinds for match in found]),
        scores=np.concatenate([match.scores for match in found]),
        is_mirrored=np.concatenate([match.is_mirrored for match in found]),
    )


def _here(thumbnails_BHW: np.ndarray, parts: Iterable[np.ndarray]) -> Iterator[Match]:
    """Yields the matches of some parts of the pairs, which it compares in this process."""
    with threadpool_limits(1, "blas"):  # the products are so small that the threads of BLAS only wait for one another
        for part in parts:
            yield pixel_match.compare(thumbnails_BHW, part)


def _in_tasks(thumbnails_BHW: np.ndarray, parts: Iterable[np.ndarray], task_cpus: float) -> Iterator[Match]:
    """Yields the matches of some parts of the pairs, each compared in a task on the cluster; all run at once."""
    reference = ray.put(thumbnails_BHW)
    task = ray.remote(pixel_match.compare).options(num_cpus=task_cpus)
    for each in [task.remote(reference, part) for part in parts]:
        yield connection.get(each)
