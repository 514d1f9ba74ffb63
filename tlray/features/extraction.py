"""Feature extraction: a pretrained network, built once, runs over images on an actor pool and fills Parquet parts."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from tlray.cluster.plans import ScorePlan
from tlray.data import stream
from tlray.data.schedule import ViewSchedule
from tlray.engines import networks
from tlray.errors import TlrayError
from tlray.features import store
from tlray.features.preparation import Network
from tlray.features.store import COLUMNS, KEY
from tlray.files import storage

FLOAT16_MAX = 65504.0

MIN_ROWS_FOR_CONSTANTS = 2000
"""Rows per actor from which on TensorFlow's weights are made constants (`trunk.as_constant`), which takes seconds once.
Over 10,000 images `benchmarks/features_pass.py` gave 32.5 images/s in place of 30.5 (2 cores, AMD EPYC, 2026-11-28)."""

WRITE_CPUS = 0.25
"""CPUs that a task asks for that writes a part. It waits for the storage more than it works."""


class _Extractor:
    """An actor of Ray Data's pool that computes features."""

    def __init__(
        self,
        network: "list[ray.ObjectRef[Network]]",
        num_threads: int | None,
        use_gpu: bool,
        is_long: bool,
        batch_size: int,
    ) -> None:
        found = ray.get(network[0])
        self.names = found.names
        self._error: TlrayError | None = None
        try:
            self.engine = networks.load(
                found.packed, num_threads=num_threads, use_gpu=use_gpu, is_long=is_long, batch_size=batch_size
            )
        except TlrayError as error:  # raised by the first call, as Ray would show an actor's death in many lines
            self._error = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self._error is not None:
            raise self._error
        features = self.engine.run(np.ascontiguousarray(batch.pop("image")))
        arrays = [np.clip(each, -FLOAT16_MAX, FLOAT16_MAX) for each in features]
        kept = {name: batch[name] for name in ("row", "error_code", "error")}
        return kept | {name: array.astype(np.float16) for name, array in zip(self.names, arrays, strict=True)}


def _is_long(num_rows: int, plan: ScorePlan) -> bool:
    return num_rows >= MIN_ROWS_FOR_CONSTANTS * plan.max_actors


def compute(
    out: str, rows: pa.Table, network: Network, pixels: stream.Pixels, plan: ScorePlan, *, batch_size: int
) -> Iterator[dict[str, Any]]:
    """Computes and writes the features of some rows; yields `num_done` (rows so far) and the new `failures`."""
    if not rows.num_rows:
        return
    reference = ray.put(rows)
    schedule = ViewSchedule(views=rows["view"].to_numpy())
    features = stream.image_stream(reference, schedule, pixels)
    features = features.map_batches(
        _Extractor,
        fn_constructor_args=(
            [ray.put(network)],
            plan.num_threads,
            bool(plan.gpus_per_actor),
            _is_long(rows.num_rows, plan),
            batch_size,
        ),
        batch_size=batch_size,
        **plan.pool(),
    ).map_batches(
        _write_rows,  # pyright: ignore[reportArgumentType]
        fn_kwargs={"out": out, "rows": [reference], "names": network.names},
        batch_size=max(1, min(store.ROWS_PER_PART, store.PART_BYTES // network.bytes_per_row)),
        num_cpus=WRITE_CPUS,
        zero_copy_batch=True,
    )
    stream.configure(features)
    num_done = 0
    for batch in stream.iterate(features):
        write_error = next(filter(None, batch["write_error"]), "")
        if write_error:
            raise TlrayError(
                f"The features cannot be written: {write_error}. Fix the cause and run the command again (train and "
                "sweep: with --resume); it continues with the features that are there."
            )
        num_done += len(batch["image_id"])
        failed = batch["error_code"] != ""
        columns = {name: batch[name][failed].tolist() for name in ("image_id", "error_code", "error")}
        yield {
            "num_done": num_done,
            "failures": [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)],
        }


def _write_rows(
    batch: Mapping[str, np.ndarray], out: str, rows: list["ray.ObjectRef[pa.Table]"], names: list[str]
) -> dict[str, np.ndarray]:
    """Writes one part, named by the keys of its rows, so that a task that Ray repeats writes the same file."""
    taken = ray.get(rows[0]).take(batch["row"])
    about = taken.select([*COLUMNS, "view", KEY])
    # The key is that of the file as it was inspected: a file that has changed since has an error, and no features.
    good = np.flatnonzero(batch["error_code"] == "")
    number = hashlib.sha256("".join(about[KEY].to_pylist()).encode()).hexdigest()[:16]
    write_error = ""
    try:
        if len(good):  # Arrow cannot make a tensor column without rows
            table = about.take(good)
            for name in names:
                values = np.ascontiguousarray(batch[name][good])
                table = table.append_column(name, pa.FixedShapeTensorArray.from_numpy_ndarray(values))
            store.write_part(storage.join(out, f"part-{number}.parquet"), table)
    except OSError as error:  # such as a full disk, which Ray Data would report in thirty lines
        write_error = str(error)
    return {
        "image_id": np.array(about["image_id"].to_pylist()),
        "error_code": batch["error_code"],
        "error": batch["error"],
        "write_error": np.full(len(about), write_error),
    }


def with_failures(table: pa.Table, failures: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Returns a manifest with the errors of images that could be read at first and later not.

    Args:
        table: The manifest, with `error_code` and `error`.
        failures: The failures of `compute`, each with `image_id`, `error_code` and `error`.
    """
    codes, errors = table["error_code"].to_pylist(), table["error"].to_pylist()
    place_of = {image_id: place for place, image_id in enumerate(table["image_id"].to_pylist())}
    for failure in failures:
        place = place_of[failure["image_id"]]
        codes[place], errors[place] = failure["error_code"], failure["error"]
    for name, values in (("error_code", codes), ("error", errors)):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return table
