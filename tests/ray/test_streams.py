import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
from PIL import Image

from tlray.config.training import Augmentation
from tlray.data import augmentation, dataset, decoding, inspected, inspection, listing, looks, stream
from tlray.data.schedule import EvalSchedule, PlainSchedule, TrainSchedule
from tlray.errors import DataError
from tlray.files import storage

pytestmark = pytest.mark.usefixtures("local_ray")

AUGMENTATION = Augmentation(rotation_deg=10, zoom=0.2, horizontal_flip=True)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """70 images, more than two blocks; image n is grey of value n. Numbers 7 and 40 are unreadable."""
    root = tmp_path_factory.mktemp("images")
    for number in range(70):
        Image.new("L", (20, 10), number).save(root / f"{number:02d}.png")
    (root / "07.png").write_bytes(b"")
    (root / "40.png").unlink()
    (root / "40.png").symlink_to(root / "nowhere")
    return listing.list_images(str(root)).table


def collect(dataset) -> dict[str, np.ndarray]:
    batches = list(stream.iterate(dataset, 16))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def test_every_row_comes_once_and_in_order(table):
    rows = collect(stream.image_stream(ray.put(table), PlainSchedule(num_rows=70), stream.Pixels(size_px=8)))
    assert rows["row"].tolist() == list(range(70))
    assert rows["image"].shape == (70, 8, 8, 3)
    codes = {int(row): str(code) for row, code in zip(rows["row"], rows["error_code"], strict=True) if code}
    assert codes == {7: "empty", 40: "not_found"}
    greys = np.arange(70)
    greys[[7, 40]] = 0
    assert (rows["image"] == greys[:, None, None, None]).all()
    assert rows["sha256"][3] == hashlib.sha256(Path(table["uri"][3].as_py()).read_bytes()).hexdigest()
    assert rows["sha256"][40] == ""


def test_a_stream_can_start_at_any_row(table):
    pixels = stream.Pixels(size_px=8)
    rows = collect(stream.image_stream(ray.put(table), PlainSchedule(num_rows=70), pixels, first_row=50))
    assert rows["row"].tolist() == list(range(50, 70))


def test_ranks_see_the_rows_of_the_schedule_augmented_as_by_a_direct_call(table):
    share = stream.Share(num_cpus=0.5, object_store_bytes=64 * 2**20)
    pixels = stream.Pixels(size_px=16, augmentation=AUGMENTATION, seed=5)
    reference = ray.put(table)
    uris = table["uri"].to_pylist()
    for rank in (0, 1):
        schedule = TrainSchedule(num_images=70, batch_size=32, num_workers=2, rank=rank, seed=5, num_epochs=2)
        rows = collect(stream.image_stream(reference, schedule, pixels, share=share))
        expected = schedule.rows(np.arange(schedule.num_rows))
        assert rows["row"].tolist() == expected.index.tolist()
        assert rows["epoch"].tolist() == expected.epoch.tolist()
        assert rows["weight"].tolist() == expected.weight.tolist()
        for place in (0, 17, 60, 95):
            row, epoch = int(rows["row"][place]), int(rows["epoch"][place])
            if row in (7, 40):
                continue
            image = decoding.decode(Path(uris[row]).read_bytes(), size_px=16)
            rng = augmentation.augmentation_rng(seed=5, epoch=epoch, image_id=table["image_id"][row].as_py())
            changed = decoding.to_array(augmentation.augment(image, AUGMENTATION, rng))
            assert np.array_equal(rows["image"][place], changed)


def test_an_interrupted_reading_goes_on_where_it_was(tmp_path, monkeypatch):
    """It is interrupted when the second part of the files comes, so that the first one is kept."""
    monkeypatch.setattr(inspected, "INTERVAL_S", 0.0)
    paths = [tmp_path / "data" / f"{number:03d}.png" for number in range(150)]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_bytes(b"no image")
    table = listing.list_images(str(tmp_path / "data")).table
    out = str(tmp_path / "out")
    asked = []

    def interrupt() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise KeyboardInterrupt

    def read(meanwhile: Callable[[], None]) -> list[str]:
        found = dataset.read_images(table, out=out, kind="run", task_cpus=1, meanwhile=meanwhile, quiet=True)
        before = table.drop_columns(["sha256"]).column_names
        assert found.column_names == [*before, *inspection.INSPECTION_COLUMNS, *looks.SCHEMA.names]
        return found["sha256"].to_pylist()

    with pytest.raises(KeyboardInterrupt):
        read(interrupt)
    kept = inspected.known_rows(out, table["uri"], inspection.INSPECTED_SCHEMA)
    assert kept is not None
    num_kept = len(kept["sha256"].drop_null())
    assert 2 < num_kept < 150
    # Other contents whose size and time are the same: what is kept is told by the checksum of what was there before.
    for path in paths:
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        path.write_bytes(b"some one")
        os.utime(path, ns=times)
    paths[1].write_bytes(b"no image, again")  # changed
    before, now, other = (hashlib.sha256(each).hexdigest() for each in (b"no image", b"some one", b"no image, again"))
    expected = [before, other, *[before] * (num_kept - 2), *[now] * (150 - num_kept)]
    assert read(lambda: None) == expected
    assert read(lambda: None) == expected
    storage.prepare_output(out, kind="run", known_names=frozenset(), overwrite=False)
    assert read(lambda: None) == expected
    inspected.forget(out)
    assert read(lambda: None) == [now, other, *[now] * 148]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_stream_in_parts_has_the_batches_of_the_schedule(table, monkeypatch, num_workers):
    """70 images in batches of 16 are 5 steps an epoch; parts of one block, 32 rows, end within epochs."""
    monkeypatch.setattr(stream, "MAX_BLOCKS", 1)
    begun = []
    map_rows = stream.map_rows
    monkeypatch.setattr(stream, "map_rows", lambda num_rows, *more: begun.append(num_rows) or map_rows(num_rows, *more))
    share = stream.Share(num_cpus=0.5, object_store_bytes=64 * 2**20)
    for rank in range(num_workers):
        schedule = TrainSchedule(
            num_images=70, batch_size=16, num_workers=num_workers, rank=rank, seed=5, num_epochs=2, first_epoch=1
        )
        size = schedule.rank_batch_size
        pixels = stream.Pixels(size_px=8)
        batches = list(stream.image_batches(ray.put(table), schedule, pixels, batch_size=size, share=share))
        expected = schedule.rows(np.arange(schedule.num_rows))
        assert [len(batch["row"]) for batch in batches] == [size] * 5
        for name, values in (("row", expected.index), ("epoch", expected.epoch), ("weight", expected.weight)):
            assert np.concatenate([batch[name] for batch in batches]).tolist() == values.tolist()
    assert begun == {1: [32, 32, 16], 2: [32, 8] * 2}[num_workers]


def test_validation_rows_of_both_ranks_together_are_all_rows_once(table):
    counted: list[int] = []
    for rank in (0, 1):
        schedule = EvalSchedule(num_images=69, num_workers=2, rank=rank)
        rows = collect(stream.image_stream(ray.put(table), schedule, stream.Pixels(size_px=8)))
        assert len(rows["row"]) == 35
        counted += rows["row"][rows["weight"] == 1].tolist()
    assert sorted(counted) == list(range(69))


def test_inspection_has_a_row_for_every_file_in_order(table):
    found = pa.concat_tables(list(inspection.inspect_images(table)))
    assert found.column_names == [*inspection.INSPECTION_COLUMNS, *looks.SCHEMA.names, "stamp"]
    assert found.num_rows == 70
    assert found["error_code"].to_pylist() == [{7: "empty", 40: "not_found"}.get(row) for row in range(70)]
    assert found["width_px"][0].as_py() == 20
    assert found["height_px"][0].as_py() == 10
    assert found["width_px"][7].as_py() is None


@pytest.mark.parametrize(("dtype", "suffix", "first"), [(np.uint16, "png", 0), (np.int32, "tif", -1000)])
def test_intensity_range_is_over_all_images(tmp_path, dtype, suffix, first):
    # 2 images of 1,000 pixels: values 0..999 and 1000..1999. The 0.1 and 99.9 percentiles of 0..1999 are 1 and 1997.
    for number in range(2):
        values = np.arange(1000, dtype=dtype).reshape(40, 25) + 1000 * number + first
        Image.fromarray(values.astype(dtype)).save(tmp_path / f"{number}.{suffix}")
    uris = listing.list_images(str(tmp_path)).table["uri"]
    assert inspection.intensity_range(uris) == (first + 1.0, first + 1997.0)


def test_the_range_is_of_the_16_bit_images_that_are_left(tmp_path):
    """67 images are two tasks, of which the second has none left; 1,000 pixels of 0 to 999: percentiles 0 and 998."""
    Image.fromarray(np.arange(1000, dtype=np.uint16).reshape(40, 25)).save(tmp_path / "0.png")
    uris = pa.chunked_array([[f"{tmp_path}/{number}.png" for number in range(67)]])
    assert inspection.intensity_range(uris) == (0.0, 998.0)
    with pytest.raises(DataError, match=r"None of the 66 16-bit images can be read any more\. Check the storage"):
        inspection.intensity_range(uris.slice(1))


def test_digests_are_of_the_files_as_they_are(table):
    found = [digest for some in inspection.digests(table["uri"]) for digest in some]
    contents = [b"" if number == 40 else Path(uri).read_bytes() for number, uri in enumerate(table["uri"].to_pylist())]
    expected = [hashlib.sha256(content).hexdigest() for content in contents]
    expected[40] = ""  # not there
    assert found == expected
