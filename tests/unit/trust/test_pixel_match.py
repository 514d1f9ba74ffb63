"""Pairs of phantoms whose relation is known."""

import io

import numpy as np
import pytest
from PIL import Image

from tlray.data import phantom_drawing, phantoms
from tlray.data.looks import THUMBNAIL_PX, look
from tlray.errors import ImageError
from tlray.trust import pixel_match, registration
from tlray.trust.pixel_match import compare


def slices(seed, count, size_px=192):
    """Slices of one phantom patient, uint8 [count, size_px, size_px]."""
    rng = np.random.default_rng(seed)
    anatomy = phantoms.sample_anatomy(rng)
    lesion = phantoms.sample_lesion("adenocarcinoma", anatomy, rng)
    return np.stack([phantom_drawing.render_slice(anatomy, lesion, rng=rng, size_px=size_px) for _ in range(count)])


def encoded(pixels, kind="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def noisy(pixels):
    values = pixels + np.random.default_rng(0).normal(0.0, 10.0, pixels.shape)
    return np.clip(values, 0, 255).astype(np.uint8)


def scribbled(pixels):
    changed = pixels.copy()
    changed[np.arange(30, 150), np.arange(30, 150)] = 255
    changed[100:102, 20:170] = 0
    return changed


@pytest.fixture(scope="module")
def patient():
    return slices(1, 2)


def match(*files):
    thumbnails = np.stack([look(data).thumbnail for data in files])
    return compare(thumbnails, np.array([[0, index] for index in range(1, len(files))]))


def test_a_picture_is_a_thumbnail_and_the_hash_of_its_pixels():
    pixels = np.zeros((2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX), np.uint8)
    pixels[:, 1::2] = 100
    grey = look(encoded(pixels))
    assert (grey.thumbnail == 50).all()
    assert grey.thumbnail.shape == (THUMBNAIL_PX, THUMBNAIL_PX)
    assert look(encoded(np.stack([pixels] * 3, axis=2), "BMP")).pixels_sha256 == grey.pixels_sha256
    pixels[7, 7] += 1
    assert look(encoded(pixels)).pixels_sha256 != grey.pixels_sha256


def test_an_unreadable_file_is_refused():
    with pytest.raises(ImageError):
        look(b"no image")


def test_shrink_averages():
    assert registration.shrink(np.arange(16).reshape(1, 4, 4), 2).tolist() == [[[2.5, 4.5], [10.5, 12.5]]]


def test_resampling_is_a_product_on_both_sides():
    rng = np.random.default_rng(0)
    pictures, down, across = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 6, 7), (3, 6), (4, 7)))
    np.testing.assert_allclose(registration.resample(pictures, down, across), down @ pictures @ across.T, atol=1e-5)


def test_changed_pictures_are_copies_and_another_slice_is_a_neighbour(patient):
    pixels, other = patient
    narrow = np.asarray(Image.fromarray(pixels).resize((130, 260), Image.Resampling.BICUBIC))
    window = np.clip((pixels.astype(float) - 100) * 1.4 + 80, 0, 255).astype(np.uint8)
    files = [
        encoded(pixels), encoded(pixels, "BMP"), encoded(pixels, "JPEG", quality=30), encoded(narrow),
        encoded(window), encoded(pixels[4:185, 12:190]), encoded(pixels[:, ::-1]), encoded(scribbled(pixels)),
        encoded(noisy(pixels)), encoded(other), encoded(slices(7, 1)[0]),
    ]  # fmt: skip
    found = match(*files)
    assert found.kinds.tolist() == ["identical", *["copy"] * 7, "neighbour", "other"]
    assert found.is_mirrored.tolist() == [index == 5 for index in range(10)]
    assert found.scores[0] == 1.0
    assert found.scores[5] == pytest.approx(1.0, abs=1e-3)  # a mirrored picture fits to the last pixel
    assert (found.scores <= 1.0).all()


def test_registration_finds_the_crop(patient):
    small = registration.shrink(patient[:1], 48)
    cropped = np.asarray(Image.fromarray(patient[0][0:180, 12:192]).resize((48, 48), Image.Resampling.BOX))
    start = np.array([[1, 0, 1, 0]], np.float32)
    params, correlation = registration.register(cropped[None].astype(np.float32), small, start, 13)
    # 180 of 192 pixels: a scale of 0.9375; the middle is moved by 6 of 96 pixels, to the right and to the top.
    assert params[0] == pytest.approx([0.9375, 0.0625, 0.9375, -0.0625], abs=0.003)
    assert correlation[0] == pytest.approx(0.99, abs=0.005)  # not 1: the pixels of the two are not the same ones


def test_a_pair_does_not_depend_on_the_others(patient, monkeypatch):
    monkeypatch.setattr(pixel_match, "_CHUNK_PAIRS", 16)
    thumbnails = np.stack([look(encoded(pixels)).thumbnail for pixels in (*patient, scribbled(patient[0]))])
    pairs = np.array([[0, 1], [0, 2], [1, 2]] * 10)
    scores = compare(thumbnails, pairs).scores.reshape(10, 3)
    assert scores == pytest.approx(np.tile(scores[:1], (10, 1)), abs=1e-4)
    assert compare(thumbnails, pairs[:1]).scores[0] == pytest.approx(scores[0, 0], abs=1e-4)


def test_blank_pictures_match_themselves_only():
    blank = np.zeros((3, THUMBNAIL_PX, THUMBNAIL_PX), np.uint8)
    blank[2] = 200
    found = compare(blank, np.array([[0, 1], [0, 2]]))
    assert found.kinds.tolist() == ["identical", "other"]
    assert found.scores.tolist() == [1.0, 0.0]


def test_no_pairs():
    found = compare(np.zeros((1, THUMBNAIL_PX, THUMBNAIL_PX), np.uint8), np.empty((0, 2), np.int64))
    assert len(found.kinds) == len(found.scores) == len(found.is_mirrored) == 0
