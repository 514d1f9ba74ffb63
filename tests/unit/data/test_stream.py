"""What the tasks of a stream do, called directly: Ray is not started."""

import hashlib
import io
import threading
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tlray.config.training import Augmentation
from tlray.data import decoding, inspection, looks, stream
from tlray.data.augmentation import augment, augmentation_rng
from tlray.data.row_numbers import RowNumbers
from tlray.data.schedule import EvalSchedule, PlainSchedule, TrainSchedule
from tlray.data.stream import Pixels
from tlray.errors import ImageError, ImageErrorCode
from tlray.files import storage


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    """Object references are the objects themselves."""
    monkeypatch.setattr(stream.ray, "get", lambda reference: reference)


def encode(pixels: np.ndarray, file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format)
    return buffer.getvalue()


def grey(value: int) -> np.ndarray:
    return np.full((6, 5), value, dtype=np.uint8)


FLOATING = encode(np.zeros((2, 2), dtype=np.float32), "TIFF")
WIDE = encode(np.array([[100, 600], [1100, 5000]], dtype=np.uint16))


@pytest.fixture
def table(tmp_path) -> pa.Table:
    """Seven files: three plain images of grey 10, 20, 30, then text, nothing, an empty file and a floating TIFF."""
    contents = {f"{value}.png": encode(grey(value)) for value in (10, 20, 30)}
    contents |= {"text.png": b"no image", "empty.png": b"", "float.tif": FLOATING}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    names = ["10.png", "20.png", "30.png", "text.png", "missing.png", "empty.png", "float.tif"]
    return pa.table({"image_id": names, "uri": [f"{tmp_path}/{name}" for name in names]})


CODES = ["", "", "", "unsupported_format", "not_found", "empty", "unsupported_format"]


def decode_rows(table, schedule, ids, *, pixels: Pixels, first_row: int = 0) -> dict:
    return stream._decode_rows({"row": np.array(ids)}, [table], schedule, pixels, first_row)


# Reading


def code_of(uri: str) -> ImageErrorCode:
    with pytest.raises(ImageError) as caught:
        stream.read_file(uri)
    return caught.value.code


def test_read_file(tmp_path, monkeypatch):
    (tmp_path / "a b.png").write_bytes(b"1234")
    assert stream.read_file(f"{tmp_path}/a b.png") == b"1234"
    assert stream.read_file(f"file://{tmp_path}/a%20b.png") == b"1234"
    assert code_of(f"{tmp_path}/other.png") == ImageErrorCode.NOT_FOUND
    assert code_of(str(tmp_path)) == ImageErrorCode.UNREADABLE
    assert code_of("ftp://host/1.png") == ImageErrorCode.UNREADABLE
    assert code_of(f"{tmp_path}/a b.png/c.png") in (ImageErrorCode.NOT_FOUND, ImageErrorCode.UNREADABLE)
    monkeypatch.setattr(decoding, "MAX_FILE_BYTES", 4)
    assert stream.read_file(f"{tmp_path}/a b.png") == b"1234"
    monkeypatch.setattr(decoding, "MAX_FILE_BYTES", 3)
    assert code_of(f"{tmp_path}/a b.png") == ImageErrorCode.TOO_LARGE


def test_a_file_may_have_to_be_what_it_was(tmp_path):
    (tmp_path / "a.png").write_bytes(b"1234")
    digest = hashlib.sha256(b"1234").hexdigest()
    assert stream.read_file(f"{tmp_path}/a.png", sha256=digest) == b"1234"
    (tmp_path / "a.png").write_bytes(b"1235")
    with pytest.raises(ImageError, match="has changed since it was first read") as caught:
        stream.read_file(f"{tmp_path}/a.png", sha256=digest)
    assert caught.value.code == ImageErrorCode.CHANGED


def test_broken_link_is_not_found(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    assert code_of(f"{tmp_path}/link.png") == ImageErrorCode.NOT_FOUND


def test_read_zip_member(tmp_path):
    archive = f"{tmp_path}/set.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a/1.png", b"1234")
    (tmp_path / "bad.zip").write_bytes(b"no archive")
    assert stream.read_file(f"{archive}!/a/1.png") == b"1234"
    assert code_of(f"{archive}!/a/2.png") == ImageErrorCode.NOT_FOUND
    assert code_of(f"{tmp_path}/none.zip!/1.png") == ImageErrorCode.NOT_FOUND
    assert code_of(f"{tmp_path}/bad.zip!/1.png") == ImageErrorCode.UNREADABLE


@pytest.mark.parametrize("error", [PermissionError("denied"), TimeoutError("slow"), ValueError("odd"), MemoryError()])
def test_whatever_a_store_raises_is_an_unreadable_image(monkeypatch, error):
    def fail(*_args: object, **_settings: object) -> bytes:
        raise error

    monkeypatch.setattr(storage, "read_bytes", fail)
    with pytest.raises(ImageError, match=f"The file cannot be read: {error}") as caught:
        stream.read_file("s3://bucket/1.png")
    assert caught.value.code == ImageErrorCode.UNREADABLE
    assert caught.value.__cause__ is error


class Window:
    """Counts the files that have been read or begun, and those that their consumer has taken."""

    def __init__(self, num_files: int) -> None:
        self.largest = 0
        self._num_files = num_files
        self._num_begun = self._num_taken = 0
        self._changed = threading.Condition()

    def read(self, uri: str, **_settings: object) -> bytes:
        with self._changed:
            self._num_begun += 1
            self.largest = max(self.largest, self._num_begun - self._num_taken)
            self._changed.notify_all()
        return encode(grey(int(uri)))

    def take(self, content: bytes) -> None:
        """Waits until as many files as the threads can hold have been begun, as a slow decoder does."""
        assert content
        with self._changed:
            self._num_taken += 1
            due = min(self._num_taken + stream.READ_THREADS, self._num_files)
            assert self._changed.wait_for(lambda: self._num_begun >= due, timeout=20)


@pytest.mark.parametrize("kind", ["decode", "inspect", "digest"])
def test_few_files_wait_in_memory(monkeypatch, kind):
    """A decoder that is slower than the storage has no more files than threads waiting, and never fewer."""
    table = pa.table({"image_id": [str(number) for number in range(64)], "uri": [str(number) for number in range(64)]})
    window = Window(64)
    rows = np.arange(64)

    def slow(function):
        def call(content: bytes, *args, **settings):
            window.take(content)
            return function(content, *args, **settings)

        return call

    monkeypatch.setattr(storage, "read_bytes", window.read)
    monkeypatch.setattr(inspection.inspected, "stamps", lambda uris: [""] * len(uris))
    if kind == "decode":
        monkeypatch.setattr(decoding, "decode", slow(decoding.decode))
        batch = decode_rows(table, PlainSchedule(num_rows=64), rows, pixels=Pixels(size_px=4))
        assert batch["image"][:, 0, 0, 0].tolist() == [*range(64)]
    elif kind == "inspect":
        monkeypatch.setattr(looks, "look", slow(looks.look))
        found = inspection._inspect_rows({"row": rows}, [table["uri"]], [])
        assert found["error_code"].to_pylist() == [None] * 64
    else:
        sha256 = hashlib.sha256
        monkeypatch.setattr(hashlib, "sha256", slow(sha256))
        digests = inspection._digest_rows({"row": rows}, [table["uri"]])["sha256"].tolist()
        assert digests == [sha256(encode(grey(number))).hexdigest() for number in range(64)]
    # The file that the decoder has is taken; while it asks for the next one, that one has not been taken yet.
    assert window.largest <= stream.READ_THREADS + 1


# Decoding


def test_rows_with_and_without_pixels(table):
    batch = decode_rows(table, PlainSchedule(num_rows=7), range(7), pixels=Pixels(size_px=4))
    assert batch["row"].tolist() == list(range(7))
    assert (batch["image"].dtype, batch["image"].shape) == (np.uint8, (7, 4, 4, 3))
    assert [image.min() for image in batch["image"]] == [10, 20, 30, 0, 0, 0, 0]
    assert [image.max() for image in batch["image"]] == [10, 20, 30, 0, 0, 0, 0]
    assert batch["error_code"].tolist() == CODES
    assert [bool(text) for text in batch["error"]] == [bool(code) for code in CODES]
    assert batch["error"][4] == "There is no such file."
    # A file that is no image has been read: its checksum is known.
    contents = [encode(grey(value)) for value in (10, 20, 30)] + [b"no image", None, b"", FLOATING]
    digests = ["" if content is None else hashlib.sha256(content).hexdigest() for content in contents]
    assert batch["sha256"].tolist() == digests
    assert batch["weight"].tolist() == [1] * 7
    assert batch["epoch"].tolist() == [0] * 7


def test_a_file_that_has_changed_since_it_was_first_read_has_an_error(table):
    """The first two are as they were, or not known. The others have changed, also those that are no image any more."""
    digests = [hashlib.sha256(encode(grey(10))).hexdigest(), None, *["another"] * 5]
    known = table.append_column("sha256", pa.array(digests, pa.string()))
    batch = decode_rows(known, PlainSchedule(num_rows=7), range(7), pixels=Pixels(size_px=4))
    assert batch["error_code"].tolist() == ["", "", "changed", "changed", "not_found", "changed", "changed"]
    assert batch["error"][2] == stream.CHANGED
    assert [image.max() for image in batch["image"]] == [10, 20, 0, 0, 0, 0, 0]
    assert batch["sha256"][2] == hashlib.sha256(encode(grey(30))).hexdigest()


def test_columns_keep_their_types_where_nothing_or_all_fails(table):
    for ids in ([0, 1], [3, 4]):
        batch = decode_rows(table, PlainSchedule(num_rows=7), ids, pixels=Pixels(size_px=2))
        assert {name: batch[name].dtype.kind for name in ("sha256", "error_code", "error")} == {
            "sha256": "U", "error_code": "U", "error": "U"
        }  # fmt: skip


def test_first_row_shifts_the_positions(table):
    batch = decode_rows(table, PlainSchedule(num_rows=7), [0, 1], pixels=Pixels(size_px=2), first_row=1)
    assert batch["row"].tolist() == [1, 2]
    assert batch["image"][:, 0, 0, 0].tolist() == [20, 30]


def test_padding_rows_are_decoded_at_weight_0(table):
    # Three images for two ranks: the second has row 1 and, to fill up, row 0.
    schedule = EvalSchedule(num_images=3, num_workers=2, rank=1)
    batch = decode_rows(table, schedule, [0, 1], pixels=Pixels(size_px=2))
    assert batch["row"].tolist() == [1, 0]
    assert batch["weight"].tolist() == [1, 0]
    assert batch["image"][:, 0, 0, 0].tolist() == [20, 10]


def test_16_bit_images_are_mapped_by_the_range(tmp_path):
    (tmp_path / "wide.png").write_bytes(WIDE)
    table = pa.table({"image_id": ["wide.png"], "uri": [f"{tmp_path}/wide.png"]})
    pixels = Pixels(size_px=2, intensity_range=(100, 1100))
    image = decode_rows(table, PlainSchedule(num_rows=1), [0], pixels=pixels)["image"][0]
    # (600 - 100) / 1000 * 255 = 127.5, rounded to the even 128
    assert image[..., 0].tolist() == [[0, 128], [255, 255]]


def test_augmentation_is_of_seed_epoch_and_image(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"{number}.png" for number in range(3)]
    for name in names:
        (tmp_path / name).write_bytes(encode(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)))
    table = pa.table({"image_id": names, "uri": [f"{tmp_path}/{name}" for name in names]})
    augmentation = Augmentation(rotation_deg=40, brightness=0.3)
    pixels = Pixels(size_px=16, augmentation=augmentation, seed=9)
    schedule = TrainSchedule(num_images=3, batch_size=3, num_workers=1, rank=0, seed=1, num_epochs=2)
    whole = decode_rows(table, schedule, range(6), pixels=pixels)
    assert whole["epoch"].tolist() == [0, 0, 0, 1, 1, 1]
    for place in range(6):
        row, epoch = int(whole["row"][place]), int(whole["epoch"][place])
        plain = decoding.decode((tmp_path / names[row]).read_bytes(), size_px=16)
        generator = augmentation_rng(seed=9, epoch=epoch, image_id=names[row])
        changed = decoding.to_array(augment(plain, augmentation, generator))
        assert np.array_equal(whole["image"][place], changed)
    # However the rows are cut into tasks, and from wherever they start.
    part = decode_rows(table, schedule, [1, 2], pixels=pixels, first_row=3)
    for name in ("row", "image", "epoch", "weight"):
        assert np.array_equal(part[name], whole[name][4:6])


# Inspecting


def test_inspection_tells_size_or_error(table):
    found = inspection._inspect_rows({"row": np.arange(7)}, [table["uri"]], [])
    assert tuple(found.column_names) == (*inspection.INSPECTION_COLUMNS, *looks.SCHEMA.names, "stamp")
    assert found["error_code"].to_pylist() == [code or None for code in CODES]
    assert found["width_px"].to_pylist() == [5, 5, 5, None, None, None, None]
    assert found["height_px"].to_pylist() == [6, 6, 6, None, None, None, None]
    assert found["is_16_bit"].to_pylist() == [False, False, False, None, None, None, None]
    assert found["sha256"].to_pylist()[0] == hashlib.sha256(encode(grey(10))).hexdigest()
    assert found["sha256"].to_pylist()[3] == hashlib.sha256(b"no image").hexdigest()
    assert found["sha256"].to_pylist()[4] is None
    # A block in which nothing failed, or all, has the same types.
    for ids in ([0], [4]):
        assert inspection._inspect_rows({"row": np.array(ids)}, [table["uri"]], []).schema == found.schema


def test_a_file_that_is_known_is_not_read_again(table):
    """The first file has the stamp that it had, the second another one, and of the third none is known."""
    first = inspection._inspect_rows({"row": np.arange(3)}, [table["uri"]], [])
    stamps = first["stamp"].to_pylist()
    known = first.set_column(0, "sha256", pa.array(["kept"] * 3))
    known = known.set_column(first.schema.get_field_index("stamp"), "stamp", pa.array([stamps[0], "1:0:0", None]))
    found = inspection._inspect_rows({"row": np.arange(3)}, [table["uri"]], [known])
    assert found["sha256"].to_pylist() == ["kept", *first["sha256"].to_pylist()[1:]]
    assert found["stamp"].to_pylist() == stamps
    assert found["width_px"].to_pylist() == [5, 5, 5]
    # A file that has gone has no stamp, whatever is known of it, and no stamp is like none.
    known = known.set_column(first.schema.get_field_index("stamp"), "stamp", pa.array([stamps[0], "1:0:0", ""]))
    gone = inspection._inspect_rows({"row": np.array([4])}, [table["uri"]], [known.take([0, 0, 0, 0, 2])])
    assert (gone["error_code"].to_pylist(), gone["stamp"].to_pylist()) == (["not_found"], [""])


def test_histogram_of_16_bit_images(tmp_path):
    for name, content in {"a.png": WIDE, "b.png": WIDE}.items():
        (tmp_path / name).write_bytes(content)
    uris = pa.chunked_array([[f"{tmp_path}/a.png"], [f"{tmp_path}/b.png"]])
    histogram = inspection._histogram_rows({"row": np.array([0, 1])}, [uris])["histogram"]
    assert histogram.shape == (1, decoding.NUM_BINS)
    counts = {int(value): int(histogram[0, value]) for value in np.flatnonzero(histogram[0])}
    assert counts == {100: 2, 600: 2, 1100: 2, 5000: 2}


def test_16_bit_images_that_have_gone_are_passed_over(tmp_path):
    (tmp_path / "a.png").write_bytes(WIDE)
    (tmp_path / "text.png").write_bytes(b"no image")
    uris = pa.chunked_array([[f"{tmp_path}/{name}.png" for name in ("gone", "a", "text")]])
    histogram = inspection._histogram_rows({"row": np.arange(3)}, [uris])["histogram"]
    assert {int(value): int(histogram[0, value]) for value in np.flatnonzero(histogram[0])} == {
        100: 1, 600: 1, 1100: 1, 5000: 1
    }  # fmt: skip
    none_left = inspection._histogram_rows({"row": np.array([0, 2])}, [uris])["histogram"]
    assert (none_left.shape, none_left.sum()) == ((1, decoding.NUM_BINS), 0)


# Long streams


def test_a_million_images_in_thirty_epochs_are_cut_into_parts_by_hand():
    schedule = TrainSchedule(num_images=1_000_000, batch_size=64, num_workers=2, rank=1, seed=1, num_epochs=30)
    assert schedule.num_rows == 15_000_000  # 15,625 steps of 32 rows, 30 times
    parts = stream.parts_of(schedule.num_rows, schedule.rank_batch_size)
    # 2,048 blocks of 32 rows are 65,536; 15,000,000 / 65,536 = 228.9, and 228 * 65,536 = 14,942,208.
    assert (parts[:2], parts[-1]) == ([(0, 65_536), (65_536, 65_536)], (14_942_208, 57_792))
    assert len(parts) == 229
    numbers = [RowNumbers(num_rows, stream.ROWS_PER_BLOCK) for _, num_rows in parts]
    assert max(len(each.get_read_tasks(1)) for each in numbers) == 2048


def test_row_numbers_come_in_blocks_of_one_size():
    numbers = RowNumbers(70, 32)
    tasks = numbers.get_read_tasks(1)
    blocks = [block for task in tasks for block in task()]
    assert [block["row"].to_pylist() for block in blocks] == [[*range(32)], [*range(32, 64)], [*range(64, 70)]]
    assert [task.metadata.num_rows for task in tasks] == [32, 32, 6]
    assert [task.metadata.size_bytes for task in tasks] == [block.nbytes for block in blocks]
    assert numbers.estimate_inmemory_data_size() == sum(block.nbytes for block in blocks)
    assert RowNumbers(0, 32).get_read_tasks(1) == []


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "expected"),
    [
        (13_710, 32, [(0, 13_710)]),  # 457 images in 30 epochs: one dataset, without a pause between epochs
        (65_530, 30, [(0, 65_520), (65_520, 10)]),  # 2,184 batches of 30
        (250_000, 100_000, [(0, 100_000), (100_000, 100_000), (200_000, 50_000)]),  # a batch is never cut
        (0, 32, []),
    ],
)
def test_parts_are_whole_batches(num_rows, batch_size, expected):
    assert stream.parts_of(num_rows, batch_size) == expected
