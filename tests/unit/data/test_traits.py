"""Traits of small images, by hand."""

import io

import numpy as np
import pytest
from PIL import Image

from tlray.data import decoding, traits


def saved(image: np.ndarray | Image.Image, file_format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, file_format)
    return stream.getvalue()


def measured(data: bytes) -> dict[str, float | str]:
    image = decoding.load(data)
    return traits.measure(image, decoding.to_grey_or_rgb(image, None), num_bytes=len(data))


def half_white() -> np.ndarray:
    """Returns a black image with a white right half, 50 rows and 100 columns."""
    image = np.zeros((50, 100), np.uint8)
    image[:, 50:] = 255
    return image


def test_every_family_is_measured_and_no_trait_is_in_two():
    names = [name for family in traits.FAMILIES.values() for name in family]
    assert len(names) == len(set(names))
    assert set(measured(saved(half_white()))) == set(names)
    assert set(names) - set(traits.TECHNICAL) == set(traits.FAMILIES["tissue"])


def test_size_and_file():
    data = saved(half_white())
    found = measured(data)
    assert (found["width_px"], found["height_px"], found["aspect"]) == (100, 50, 2)
    assert (found["format"], found["mode"]) == ("PNG", "L")
    assert found["file_bytes"] == len(data)
    assert found["bytes_per_pixel"] == len(data) / 5000


def test_grey_levels():
    found = measured(saved(half_white()))
    assert (found["mean"], found["deviation"]) == (127.5, 127.5)
    assert (found["black_share"], found["white_share"]) == (0.5, 0.5)
    assert [found[f"percentile_{each}"] for each in (1, 5, 25, 50, 75, 95, 99)] == [0, 0, 0, 0, 255, 255, 255]


def test_percentiles_are_those_of_numpy():
    image = np.random.default_rng(0).integers(0, 256, (31, 47), dtype=np.uint8)
    found = measured(saved(image))
    expected = np.percentile(image, traits.PERCENTILES, method="inverted_cdf")
    assert [found[f"percentile_{each}"] for each in traits.PERCENTILES] == expected.tolist()
    assert found["mean"] == pytest.approx(image.mean())
    assert found["deviation"] == pytest.approx(image.std())


def test_borders_and_corners():
    found = measured(saved(half_white()))
    assert (found["left_mean"], found["right_mean"], found["top_mean"], found["bottom_mean"]) == (0, 255, 127.5, 127.5)
    assert (found["top_deviation"], found["left_deviation"]) == (127.5, 0)
    marked = half_white()
    marked[:4, :8] = 200  # 8 % of the sides
    changed = measured(saved(marked))
    assert changed["top_left_mean"] == 200
    unchanged = [name for name in (*traits.FAMILIES["borders"], *traits.FAMILIES["corners"]) if name != "top_left_mean"]
    assert [changed[name] for name in unchanged] == [found[name] for name in unchanged]


def test_wide_pixels_are_scaled_to_bytes():
    image = half_white().astype(np.uint16) * 257
    found, usual = measured(saved(image)), measured(saved(half_white()))
    assert found["mode"] == "I;16"
    for name in traits.TECHNICAL + traits.FAMILIES["tissue"]:
        if name not in traits.FAMILIES["file"]:
            assert found[name] == pytest.approx(usual[name]), name


def test_colour():
    image = np.zeros((10, 10, 3), np.uint8)
    image[:, :5] = (200, 100, 80)
    image[:, 5:] = 50
    found = measured(saved(image))
    assert (found["mode"], found["colour"]) == ("RGB", 60)  # 120 in one half
    assert found["percentile_99"] == round(0.299 * 200 + 0.587 * 100 + 0.114 * 80)  # ITU-R 601 luma, as in Pillow
    assert measured(saved(half_white()))["colour"] == 0


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_of_png_is_read(mode: str):
    found = measured(saved(Image.fromarray(half_white()).convert(mode)))
    assert (found["mode"], found["mean"]) == (mode, 127.5)


@pytest.mark.parametrize(
    ("file_format", "name"), [("JPEG", "JPEG"), ("BMP", "BMP"), ("TIFF", "TIFF"), ("WEBP", "WEBP")]
)
def test_formats(file_format: str, name: str):
    assert measured(saved(half_white(), file_format))["format"] == name


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 1), (3, 3)])
def test_tiny_images(shape: tuple[int, int]):
    found = measured(saved(np.full(shape, 9, np.uint8)))
    assert [found[name] for name in ("mean", "left_mean", "top_mean", "bottom_right_mean")] == [9, 9, 9, 9]
    assert found["top_deviation"] == 0


def test_table_and_matrix():
    rows = [measured(saved(half_white(), name)) for name in ("PNG", "JPEG")]
    table = traits.to_table(rows)
    assert table.column_names == [name for family in traits.FAMILIES.values() for name in family]
    assert table["format"].to_pylist() == ["PNG", "JPEG"]
    matrix = traits.to_matrix(table, ["width_px", "format", "mode"])
    np.testing.assert_array_equal(matrix, [[100, 0, 1], [100, 1, 1]])
    assert matrix.dtype == np.float32
    unknown = traits.to_table([{**rows[0], "format": "GIF"}])
    np.testing.assert_array_equal(traits.to_matrix(unknown, ["format"]), [[-1]])
    assert traits.to_table([]).num_rows == 0
