import copy
import dataclasses
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import Literal, cast

import numpy as np
import pytest
from PIL import Image

from tlray.config.training import Augmentation
from tlray.data import decoding
from tlray.data.augmentation import augment, augmentation_rng
from tlray.errors import DataError, ImageError, ImageErrorCode

BLACK, GREY, WHITE = (0, 0, 0), (128, 128, 128), (255, 255, 255)
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def inspected(data: bytes) -> decoding.ImageInfo:
    image = decoding.load(data)
    decoding.to_grey_or_rgb(image, (0.0, 1.0))
    return decoding.describe(image)


def encode(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def from_pixels(pixels, dtype: type = np.uint8) -> Image.Image:
    return Image.fromarray(np.array(pixels, dtype=dtype))


def png(*, width: int, height: int, bit_depth: int, colour_type: int, scanlines: bytes) -> bytes:
    """Writes a PNG by hand (https://www.w3.org/TR/png-3/): what Pillow reads but does not write, or damaged ones."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", scanlines) + chunk(b"IEND", b"")


def tiff(
    pixels: np.ndarray,
    *,
    photometric: int | None = 1,
    sample_format: int | None = None,
    byte_order: Literal["<", ">"] = "<",
) -> bytes:
    """Writes an uncompressed grey TIFF by hand (https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf)."""
    content = pixels.astype(pixels.dtype.newbyteorder(byte_order)).tobytes()
    height, width = pixels.shape
    tags = [(256, width), (257, height), (258, pixels.itemsize * 8), (259, 1), (262, photometric), (273, 8), (277, 1)]
    tags += [(278, height), (279, len(content)), (339, sample_format)]
    fields = [struct.pack(f"{byte_order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags if value is not None]
    mark = b"II" if byte_order == "<" else b"MM"
    head = mark + struct.pack(f"{byte_order}HI", 42, 8 + len(content))
    return head + content + struct.pack(f"{byte_order}H", len(fields)) + b"".join(fields) + bytes(4)


def grey_alpha_png(grey: np.ndarray, alpha: int) -> bytes:
    pixels = np.dstack([grey, np.full_like(grey, alpha)]).astype(">u2")
    lines = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    height, width = grey.shape
    return png(width=width, height=height, bit_depth=16, colour_type=4, scanlines=lines)


def palette_png(**options) -> bytes:
    image = Image.new("P", (2, 2))
    image.putpalette([*RED, *GREEN, *BLUE, *GREY])
    image.putdata([0, 1, 2, 3])
    return encode(image, "PNG", **options)


def code_of(function: Callable[[bytes], object], data: bytes) -> ImageErrorCode:
    with pytest.raises(ImageError) as caught:
        function(data)
    return caught.value.code


def decode(data: bytes, size_px: int = 4, **options) -> np.ndarray:
    return decoding.to_array(decoding.decode(data, size_px=size_px, **options))


FOUR = [[RED, GREEN], [BLUE, GREY]]  # a 2 x 2 image with a different colour everywhere
GREY_4 = [[0, 85], [128, 255]]


def as_rgb(grey) -> np.ndarray:
    return np.repeat(np.array(grey)[..., None], 3, axis=2)


# Decoding: every format and pixel type


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encode(from_pixels(FOUR), "PNG"), FOUR),
        (encode(from_pixels(FOUR), "BMP"), FOUR),
        (encode(from_pixels(FOUR), "TIFF"), FOUR),
        (encode(from_pixels(FOUR), "TIFF", compression="tiff_lzw"), FOUR),
        (encode(from_pixels(FOUR), "WEBP", lossless=True), FOUR),
        (encode(from_pixels(GREY_4), "PNG"), as_rgb(GREY_4)),
        (encode(from_pixels(GREY_4), "BMP"), as_rgb(GREY_4)),
        (encode(from_pixels(GREY_4), "TIFF"), as_rgb(GREY_4)),
        # Alpha is dropped, not blended: the second colour is nearly transparent and stays.
        (encode(from_pixels([[[*RED, 255], [*GREEN, 3]], [[*BLUE, 128], [*GREY, 255]]]), "PNG"), FOUR),
        (encode(from_pixels([[[*RED, 255], [*GREEN, 3]], [[*BLUE, 128], [*GREY, 255]]]), "TIFF"), FOUR),
        (encode(from_pixels([[[0, 9], [85, 0]], [[128, 255], [255, 1]]]), "PNG"), as_rgb(GREY_4)),
        (palette_png(), FOUR),
        (palette_png(transparency=1), FOUR),
        (palette_png(transparency=bytes([0, 10, 255, 128])), FOUR),
        (encode(from_pixels([[0, 255], [255, 0]]).convert("1"), "PNG"), as_rgb([[0, 255], [255, 0]])),
        (encode(from_pixels([[0, 255], [255, 0]]).convert("1"), "TIFF"), as_rgb([[0, 255], [255, 0]])),
        # CMYK: all ink none is white, all black ink is black, full cyan takes away red, full magenta green.
        (
            encode(
                Image.frombytes("CMYK", (2, 2), bytes([0] * 4 + [0, 0, 0, 255, 255, 0, 0, 0, 0, 255, 0, 0])), "TIFF"
            ),
            [[WHITE, BLACK], [(0, 255, 255), (255, 0, 255)]],
        ),
        # 16 bits a colour (type 2): the high byte.
        (
            png(width=2, height=1, bit_depth=16, colour_type=2, scanlines=zlib.compress(bytes(range(13)))),
            [[(1, 3, 5), (7, 9, 11)]],
        ),
    ],
)
def test_pixels_by_format(data, expected):
    expected = np.array(expected)
    height, width = expected.shape[:2]
    decoded = decode(data, size_px=2)
    assert decoded.dtype == np.uint8
    assert decoded.shape == (2, 2, 3)
    assert np.array_equal(decoded[:height], np.broadcast_to(expected, decoded[:height].shape))
    info = decoding.ImageInfo(width_px=width, height_px=height, is_16_bit=False)
    assert decoding.describe(decoding.load(data)) == info


@pytest.mark.parametrize(
    ("mode", "colour", "file_format", "expected"),
    [
        ("L", 128, "JPEG", GREY),
        ("RGB", GREY, "JPEG", GREY),
        ("CMYK", (0, 0, 0, 255), "JPEG", BLACK),
        ("CMYK", (0, 0, 0, 0), "JPEG", WHITE),
        ("L", 255, "WEBP", WHITE),
        ("RGB", BLACK, "WEBP", BLACK),
    ],
)
def test_lossy_formats_keep_a_plain_image(mode, colour, file_format, expected):
    data = encode(Image.new(mode, (24, 16), colour), file_format)
    assert np.array_equal(decode(data, size_px=8), np.full((8, 8, 3), expected))
    assert decoding.describe(decoding.load(data)) == decoding.ImageInfo(width_px=24, height_px=16, is_16_bit=False)


WIDE = [[100, 600], [1100, 5000]]


@pytest.mark.parametrize(
    "data",
    [
        encode(from_pixels(WIDE, np.uint16), "PNG"),
        encode(from_pixels(WIDE, np.uint16), "TIFF"),
        encode(Image.frombytes("I;16B", (2, 2), np.array(WIDE, dtype=">u2").tobytes()), "TIFF"),
        encode(from_pixels(WIDE, np.int32), "TIFF"),
        tiff(np.array(WIDE, dtype=np.int16), sample_format=2),
        tiff(np.array(WIDE, dtype=np.int16), sample_format=2, byte_order=">"),
        grey_alpha_png(np.array(WIDE), 65535),
        grey_alpha_png(np.array(WIDE), 0x1234),
    ],
    ids=[
        "png", "tiff", "big-endian tiff", "32-bit tiff", "signed tiff", "big-endian signed tiff",
        "png with alpha", "png with some alpha",
    ],
)  # fmt: skip
def test_16_bits_are_mapped_by_the_range(data):
    # (value - 100) / (1100 - 100) * 255: 0, 127.5 (rounded to the even 128), 255, and 5000 is cut off at 255.
    expected = as_rgb([[0, 128], [255, 255]])
    assert np.array_equal(decode(data, size_px=2, intensity_range=(100, 1100)), expected)
    # 600 / 65535 * 255 = 2.33, 1100: 4.28, 5000: 19.46, 100: 0.39
    assert np.array_equal(decode(data, size_px=2), as_rgb([[0, 2], [4, 19]]))
    assert decoding.describe(decoding.load(data)) == decoding.ImageInfo(width_px=2, height_px=2, is_16_bit=True)


def test_hounsfield_units_keep_what_is_below_zero():
    data = tiff(np.array([[-1000, -300], [40, 400]], dtype=np.int16), sample_format=2)
    # (-300 + 1000) / 1400 * 255 = 127.5, rounded to the even 128; (40 + 1000) / 1400 * 255 = 189.4
    assert np.array_equal(decode(data, size_px=2, intensity_range=(-1000, 400)), as_rgb([[0, 128], [189, 255]]))


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_values_below_zero_are_refused_without_a_range(dtype):
    data = tiff(np.array([[-1000, -1], [40, 400]], dtype=dtype), sample_format=2)
    message = r"lowest pixel value is -1000, but the model has no intensity range\. Save"
    with pytest.raises(ImageError, match=message) as caught:
        decode(data, size_px=2)
    assert caught.value.code == ImageErrorCode.UNSUPPORTED_FORMAT
    # Reading the data set, which finds the range, takes them.
    assert decoding.describe(decoding.load(data)).is_16_bit
    # (40 / 400 * 255) = 25.5, rounded to the even 26; what is below the range is black.
    assert np.array_equal(decode(data, size_px=2, intensity_range=(0, 400)), as_rgb([[0, 0], [26, 255]]))


@pytest.mark.parametrize("photometric", [0, 1])
def test_12_bits_are_refused_without_a_range(photometric):
    """In the range (0, 65535) they would be 0 to 15 of 255, so that a model would see no picture."""
    pixels = np.array([[0, 4095], [1000, 2000]], dtype=np.uint16)
    data = tiff(pixels, photometric=photometric)
    message = (
        r"highest pixel value is 4095 of 65535, but the model has no intensity range\. Save the image with 8 bits, or"
    )
    with pytest.raises(ImageError, match=message) as caught:
        decode(data, size_px=2)
    assert caught.value.code == ImageErrorCode.UNSUPPORTED_FORMAT
    with pytest.raises(ImageError, match="highest pixel value is 0 of 65535"):
        decode(encode(from_pixels([[0, 0], [0, 0]], np.uint16), "PNG"), size_px=2)
    # A range that was given is taken, and so are images that use more bits: 4096 / 257 = 15.9, 65535 / 257 = 255.
    assert decode(data, size_px=2, intensity_range=(0, 65535)).shape == (2, 2, 3)
    wide = tiff(np.array([[0, 4096], [0, 0]], dtype=np.uint16))
    assert np.array_equal(decode(wide, size_px=2), as_rgb([[0, 16], [0, 0]]))
    full = encode(from_pixels([[0, 65535], [257, 514]], np.uint16), "PNG")
    assert np.array_equal(decode(full, size_px=2), as_rgb([[0, 255], [1, 2]]))
    eight = encode(from_pixels([[0, 1], [2, 3]], np.uint8), "PNG")
    assert np.array_equal(decode(eight, size_px=2), as_rgb([[0, 1], [2, 3]]))


def test_unsigned_32_bits_within_31_are_read():
    data = tiff(np.array([[0, 2**31 - 1]], dtype=np.uint32))
    assert np.array_equal(decode(data, size_px=2, intensity_range=(0, 2.0**31)), as_rgb([[0, 255], [0, 255]]))


def test_white_is_zero_is_inverted_after_the_range():
    # The stored values are 12 bits of 16, as scanners write them: 0 is white and 4095 black.
    data = tiff(np.array([[4095, 1365], [819, 0]], dtype=np.uint16), photometric=0)
    # 255 - 1365 / 4095 * 255 = 170; 255 - 819 / 4095 * 255 = 204
    assert np.array_equal(decode(data, size_px=2, intensity_range=(0, 4095)), as_rgb([[0, 170], [204, 255]]))
    assert decoding.describe(decoding.load(data)).is_16_bit
    # Over all of 16 bits: 255 - 4095 / 257 = 239.07
    assert decode(data, size_px=2, intensity_range=(0, 65535))[0, 0, 0] == 239
    eight = tiff(np.array([[0, 55], [200, 255]], dtype=np.uint8), photometric=0)
    assert np.array_equal(decode(eight, size_px=2), as_rgb([[255, 200], [55, 0]]))


def test_grey_with_alpha_is_turned_by_exif_and_read_in_16_bits():
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored left edge is shown on top
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(content)) + b"eXIf" + content + struct.pack(">I", zlib.crc32(b"eXIf" + content))
    data = grey_alpha_png(np.array([[0, 4095], [0, 4095]]), 65535)
    place = data.index(b"IDAT") - 4
    shown = decode(data[:place] + chunk + data[place:], size_px=2, intensity_range=(0, 4095))
    assert np.array_equal(shown, as_rgb([[0, 0], [255, 255]]))


def test_exif_rotation_is_applied():
    # Orientation 6: the stored left edge is shown on top (https://exiftool.org/TagNames/EXIF.html).
    stored = np.zeros((32, 48), dtype=np.uint8)
    stored[:, 16:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(stored), "JPEG", exif=exif)
    info = decoding.describe(decoding.load(data))
    assert (info.width_px, info.height_px) == (32, 48)
    shown = decode(data, size_px=48)
    assert np.array_equal(shown, np.repeat(np.repeat([[0], [255]], [16, 32], axis=0), 48, axis=1)[..., None] + [0] * 3)


@pytest.mark.parametrize(("file_format", "options"), [("TIFF", {}), ("WEBP", {"lossless": True})])
def test_first_frame_is_taken(file_format, options):
    frames = [Image.new("RGB", (2, 2), colour) for colour in (RED, GREEN, BLUE)]
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(decode(data, size_px=2), np.full((2, 2, 3), RED))


def test_resizing_by_hand():
    # Pillow's bilinear filter from 4 to 2 is a triangle of half-width 2 about 1 and 3: pixels at 0.5, 1.5, 2.5 weigh
    # 0.75, 0.75, 0.25, that is 3/7, 3/7, 1/7. So (0, 0, 70, 70) becomes 70 / 7 and (3 + 3) * 70 / 7.
    data = encode(from_pixels([[0, 0, 70, 70]] * 4), "PNG")
    assert np.array_equal(decode(data, size_px=2), as_rgb([[10, 60], [10, 60]]))


def test_resizing_is_pillows_and_does_not_keep_the_aspect_ratio():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((17, 17), Image.Resampling.BILINEAR))
    assert np.array_equal(decode(encode(Image.fromarray(pixels), "PNG"), size_px=17), expected)


def test_jpeg_may_shrink_while_decoding_but_never_below_the_size():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    data = encode(Image.fromarray(pixels), "JPEG")
    # 64 / 4 = 16: the decoder gives 16 px itself; for 17 px it must stay at 32.
    for size_px, drafted_px in ((16, 16), (17, 32)):
        drafted = Image.open(io.BytesIO(data))
        drafted.draft(None, (drafted_px, drafted_px))
        assert drafted.size == (drafted_px, drafted_px)
        expected = drafted.convert("RGB").resize((size_px, size_px), Image.Resampling.BILINEAR)
        assert np.array_equal(decode(data, size_px=size_px), np.asarray(expected))


# Decoding: what cannot be


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
PNG, JPEG, TIFF, BMP = (encode(NOISE, name) for name in ("PNG", "JPEG", "TIFF", "BMP"))


@pytest.mark.parametrize("function", [decode, inspected])
@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (b"", ImageErrorCode.EMPTY, "zero bytes"),
        (
            b"patient,diagnosis\n7,normal\n",
            ImageErrorCode.UNSUPPORTED_FORMAT,
            r"is of an unknown format\. Use PNG, JPEG, BMP, TIFF, WEBP",
        ),
        (bytes(128) + b"DICM", ImageErrorCode.UNSUPPORTED_FORMAT, "DICOM is not supported"),
        (encode(NOISE, "GIF"), ImageErrorCode.UNSUPPORTED_FORMAT, "Use PNG"),
        (encode(NOISE, "GIF"), ImageErrorCode.UNSUPPORTED_FORMAT, r"is a GIF\. Use PNG"),
        (bytes(128) + b"DICM", ImageErrorCode.UNSUPPORTED_FORMAT, r"is a DICOM file\. Use PNG"),
        (b"PK\3\4" + bytes(99), ImageErrorCode.UNSUPPORTED_FORMAT, r"is a zip archive \(\.npz"),
        (encode(NOISE.convert("F"), "TIFF"), ImageErrorCode.UNSUPPORTED_FORMAT, "are 32-bit floating-point .*16-bit"),
        (
            tiff(np.zeros((2, 2)), sample_format=3),
            ImageErrorCode.UNSUPPORTED_FORMAT,
            r"cannot be read: 64 bits, floating point, BlackIsZero\. Save it with 8- or 16-bit",
        ),
        (
            tiff(np.zeros((2, 2)), sample_format=3, byte_order=">"),
            ImageErrorCode.UNSUPPORTED_FORMAT,
            "cannot be read: 64 bits, floating point",
        ),
        (
            tiff(np.zeros((2, 2), dtype=np.int16), sample_format=2, photometric=0),
            ImageErrorCode.UNSUPPORTED_FORMAT,
            r"cannot be read: 16 bits, signed integer, WhiteIsZero\. Save it as BlackIsZero with one channel\.$",
        ),
        (
            tiff(np.zeros((2, 2), dtype=np.uint16), photometric=32844),
            ImageErrorCode.UNSUPPORTED_FORMAT,
            r"cannot be read: 16 bits, unsigned integer.*\. Save it as BlackIsZero with one channel\.$",
        ),
        (
            tiff(np.zeros((2, 2), dtype=np.int8), sample_format=2, photometric=0),
            ImageErrorCode.UNSUPPORTED_FORMAT,
            r"cannot be read: 8 bits, signed integer, WhiteIsZero\. Save it with 8- or 16-bit integers\.$",
        ),
        (
            tiff(np.array([[0, 2**31]], dtype=np.uint32)),
            ImageErrorCode.UNSUPPORTED_FORMAT,
            r"are unsigned 32-bit integers above 2,147,483,647, which cannot be read\. Save the image with 16-bit",
        ),
        (
            tiff(np.array([[0, 2**32 - 1]], dtype=np.uint32), sample_format=1),
            ImageErrorCode.UNSUPPORTED_FORMAT,
            "are unsigned 32-bit integers above 2,147,483,647",
        ),
        (
            tiff(np.zeros((2, 2), dtype=np.int8), sample_format=2),
            ImageErrorCode.UNSUPPORTED_FORMAT,
            "are signed 8-bit integers",
        ),
        (b"II*\0" + bytes(40), ImageErrorCode.DECODE_FAILED, "header is damaged"),
        (b"II+\0" + bytes(4), ImageErrorCode.DECODE_FAILED, "header is damaged"),
        (PNG[: len(PNG) // 2], ImageErrorCode.TRUNCATED, "truncated"),
        (JPEG[: len(JPEG) // 2], ImageErrorCode.TRUNCATED, "truncated"),
        (JPEG[:-1], ImageErrorCode.TRUNCATED, "truncated"),
        (TIFF[: len(TIFF) // 2], ImageErrorCode.TRUNCATED, "truncated"),
        (BMP[: len(BMP) // 2], ImageErrorCode.TRUNCATED, "truncated"),
        (PNG[:8] + bytes(40), ImageErrorCode.DECODE_FAILED, "header is damaged"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", ImageErrorCode.DECODE_FAILED, "cannot be decoded|header is damaged"),
        (
            png(width=2, height=2, bit_depth=8, colour_type=0, scanlines=b"no zlib stream"),
            ImageErrorCode.DECODE_FAILED,
            "cannot be decoded",
        ),
        (
            png(width=50000, height=50000, bit_depth=8, colour_type=2, scanlines=b""),
            ImageErrorCode.TOO_LARGE,
            "more than 89,478,485 pixels",
        ),
    ],
)
def test_error_codes(function, data, code, message):
    with pytest.raises(ImageError, match=message) as caught:
        function(data)
    assert caught.value.code == code


def test_limit_of_pixels_is_exact(monkeypatch):
    # 10,000 x 9,000 is over the limit and under the double of it, where Pillow alone would only warn.
    with warnings.catch_warnings(action="ignore"):
        big = png(width=10_000, height=9_000, bit_depth=8, colour_type=0, scanlines=b"")
        assert code_of(inspected, big) == ImageErrorCode.TOO_LARGE
    data = encode(from_pixels(FOUR), "PNG")
    monkeypatch.setattr(decoding, "MAX_PIXELS", 4)
    assert decoding.describe(decoding.load(data)).width_px == 2
    monkeypatch.setattr(decoding, "MAX_PIXELS", 3)
    assert code_of(inspected, data) == ImageErrorCode.TOO_LARGE


@pytest.mark.parametrize(
    "error", [AttributeError("odd"), ZeroDivisionError("odd"), RecursionError("odd"), MemoryError()]
)
def test_whatever_a_decoder_raises_is_an_image_that_cannot_be_decoded(monkeypatch, error):
    def fail(*_args: object, **_settings: object) -> Image.Image:
        raise error

    monkeypatch.setattr(decoding.Image, "open", fail)
    with pytest.raises(ImageError, match=f"^The image cannot be decoded: {str(error) or 'MemoryError'}$") as caught:
        decoding.load(PNG)
    assert caught.value.code == ImageErrorCode.DECODE_FAILED
    assert caught.value.__cause__ is error


def test_a_user_can_interrupt_a_decoder(monkeypatch):
    def fail(*_args: object, **_settings: object) -> Image.Image:
        raise KeyboardInterrupt

    monkeypatch.setattr(decoding.Image, "open", fail)
    with pytest.raises(KeyboardInterrupt):
        decoding.load(PNG)


# Intensities


def test_jpegs_of_endless_scans_are_refused_and_usual_ones_are_not():
    file = io.BytesIO()
    Image.new("L", (64, 64), 128).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data[data.rfind(b"\xff\xda") : -2]
    assert data.count(b"\xff\xda") < decoding.MAX_JPEG_SCANS / 10
    assert decoding.describe(decoding.load(data)).width_px == 64
    assert code_of(inspected, data[:-2] + last * decoding.MAX_JPEG_SCANS + data[-2:]) == ImageErrorCode.TOO_LARGE


def counts_of(histogram: np.ndarray) -> dict[int, int]:
    """Returns the number of pixels of each value that occurs."""
    assert histogram.shape == (decoding.NUM_BINS,)
    values = range(decoding.LOWEST_INTENSITY - 1, decoding.HIGHEST_INTENSITY + 2)
    return {value: int(histogram[value]) for value in values if histogram[value]}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            encode(from_pixels([[0, 7, 7], [65535, 40000, 7]], np.uint16), "PNG"),
            {0: 1, 7: 3, 40000: 1, 65535: 1},
        ),
        (
            tiff(np.array([[-32768, -1, -1], [0, -1000, 32767]], dtype=np.int16), sample_format=2),
            {-32768: 1, -1000: 1, -1: 2, 0: 1, 32767: 1},
        ),
        (grey_alpha_png(np.array([[300, 4095, 4095]]), 65535), {300: 1, 4095: 2}),
        # 32 bits: what lies outside of 16 is counted just below and just above.
        (
            encode(from_pixels([[-1000, 5, 70000, 65535, -40000]], np.int32), "TIFF"),
            {-32769: 1, -1000: 1, 5: 1, 65535: 1, 65536: 1},
        ),
    ],
    ids=["unsigned", "signed", "grey with alpha", "32-bit"],
)
def test_histogram_by_hand(data, expected):
    assert counts_of(decoding.intensity_histogram(data)) == expected


def histogram_of(counts: dict[int, int]) -> np.ndarray:
    histogram = np.zeros(decoding.NUM_BINS, dtype=np.int64)
    for value, count in counts.items():
        histogram[value] = count
    return histogram


@pytest.mark.parametrize(
    ("counts", "percentiles", "expected"),
    [
        # 10 pixels of each of 100 values: one in a thousand is reached within the first, 99.9 % within the last.
        (dict.fromkeys(range(100, 200), 10), {}, (100, 199)),
        (dict.fromkeys(range(-1000, -900), 10), {}, (-1000, -901)),
        # 1 outlier in 10,000 on each side is left out.
        ({5: 1, 1000: 4999, 2000: 4999, 60000: 1}, {}, (1000, 2000)),
        ({-32769: 1, -1000: 4999, 400: 4999, 65536: 1}, {}, (-1000, 400)),
        # All of 16 bits.
        ({-32768: 1, 65535: 1}, {}, (-32768, 65535)),
        # 10 % of 10 pixels is reached with the first value, 90 % with the ninth.
        (dict.fromkeys(range(10), 1), {"low": 10, "high": 90}, (0, 8)),
        # One value alone: the range is at least 1 wide.
        ({300: 7}, {}, (300, 301)),
    ],
)
def test_percentile_range_by_hand(counts, percentiles, expected):
    assert decoding.percentile_range(histogram_of(counts), **percentiles) == expected


@pytest.mark.parametrize("counts", [{0: 1, 65536: 1}, {-32769: 1, 0: 1}])
def test_a_range_beyond_16_bits_is_refused(counts):
    with pytest.raises(DataError, match=r"outside of -32768 to 65535.*--intensity-range LO,HI"):
        decoding.percentile_range(histogram_of(counts))


# Augmentation

STRONG = Augmentation(
    rotation_deg=30, shear_deg=10, zoom=0.2, shift=0.1, brightness=0.3, contrast=0.3, horizontal_flip=True
)
DRAWS = ("angle", "shear", "zoom_x", "zoom_y", "shift_x", "shift_y", "brightness", "contrast")


class Drawn:
    """Random numbers of our choice, all zero but for those named."""

    def __init__(self, flip: bool = False, **draws: float) -> None:
        self.draws, self.flip = draws, flip

    def uniform(self, low: float, high: float, size: int) -> np.ndarray:
        assert (low, high, size) == (-1, 1, 8)
        return np.array([self.draws.get(name, 0.0) for name in DRAWS])

    def random(self) -> float:
        return 0.0 if self.flip else 0.99


def augment_with(image: np.ndarray, augmentation: Augmentation, flip: bool = False, **draws: float) -> np.ndarray:
    return augmented(image, augmentation, cast("np.random.Generator", Drawn(flip, **draws)))


def augmented(image: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Augments an array by way of an RGB image, which must be left as it was, and as grey where it is."""
    given = Image.fromarray(np.ascontiguousarray(image))
    state = copy.deepcopy(rng)
    result = decoding.to_array(augment(given, augmentation, rng))
    assert np.array_equal(np.asarray(given), image)
    assert result.dtype == np.uint8
    assert result.shape == image.shape
    if (image == image[..., :1]).all():
        grey = augment(given.getchannel(0), augmentation, state)
        assert grey.mode == "L"
        assert np.array_equal(decoding.to_array(grey), result)
    return result


def noise(height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rows_of(*values: int) -> np.ndarray:
    """An image as wide as the values are many, all rows alike."""
    return np.broadcast_to(np.array(values, dtype=np.uint8)[None, :, None], (4, len(values), 3))


def test_all_zero_is_the_identity():
    image = noise()
    drawn = dict.fromkeys(DRAWS, 0.7)
    assert np.array_equal(augment_with(image, Augmentation(), flip=True, **drawn), image)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 7)])
def test_flip_is_exact(height, width):
    image = noise(height, width)
    flipping = Augmentation(horizontal_flip=True)
    assert np.array_equal(augment_with(image, flipping, flip=True), image[:, ::-1])
    assert np.array_equal(augment_with(image, flipping, flip=False), image)


@pytest.mark.parametrize(("draw", "turns"), [(1.0, -1), (-1.0, 1)])
def test_rotation_by_90_degrees(draw, turns):
    # The map goes from output to input: with +90 degrees the output's right edge (x, 0) shows the input's (0, -x), the
    # top edge (y grows downwards). The image turns clockwise, which is np.rot90's k = -1.
    rotated = augment_with(noise(), Augmentation(rotation_deg=90), angle=draw)
    assert_one_off(rotated, np.rot90(noise(), turns))


def test_rotation_by_180_degrees():
    assert_one_off(augment_with(noise(), Augmentation(rotation_deg=180), angle=1.0), noise()[::-1, ::-1])


def assert_one_off(image: np.ndarray, expected: np.ndarray) -> None:
    """Pillow cuts 199.9999, which cos(90 degrees) = 6e-17 makes of 200, to 199."""
    assert set(np.unique(expected.astype(int) - image)) <= {0, 1}


def test_shear_by_hand():
    # Keras: in_x = cos(s) x, in_y = y - sin(s) x about the centre; s = 30 degrees: sin = 1/2. The left edge of a plain
    # horizontal border lies lower by x / 2 than the right one.
    image = np.zeros((40, 40, 3), dtype=np.uint8)
    image[20:] = 255
    sheared = augment_with(image, Augmentation(shear_deg=30), shear=1.0)
    # in_y >= 20 where y >= 20 + (x - 20) / 2: at x = 2.5 that is 11.25, at x = 38.5 it is 29.25.
    assert int(np.argmax(sheared[:, 2, 0] > 127)) == 11
    assert int(np.argmax(sheared[:, 38, 0] > 127)) == 29


def test_zoom_in_by_hand():
    # Factor 0.5 about the centre 2: output pixels at 0.5, 1.5, 2.5, 3.5 show 1.25, 1.75, 2.25, 2.75 of the input, whose
    # pixels lie at 0.5, 1.5, 2.5, 3.5: (0 + 3 * 100) / 4, (3 * 100 + 200) / 4, (100 + 3 * 200) / 4, (3 * 200 + 40) / 4.
    zoomed = augment_with(rows_of(0, 100, 200, 40), Augmentation(zoom=0.5), zoom_x=-1.0)
    assert np.array_equal(zoomed, rows_of(75, 125, 175, 160))


def test_zoom_out_fills_with_the_nearest():
    # Factor 1.5 about 2: 0.5 shows -0.25 (the edge), 1.5 shows 1.25: (0 + 3 * 100) / 4, 2.5 shows 2.75, 3.5 the edge.
    zoomed = augment_with(rows_of(0, 100, 200, 40), Augmentation(zoom=0.5), zoom_x=1.0)
    assert np.array_equal(zoomed, rows_of(0, 75, 160, 40))


def test_zooms_of_height_and_width_are_independent():
    image = rows_of(0, 100, 200, 40)
    assert np.array_equal(augment_with(image, Augmentation(zoom=0.5), zoom_y=-1.0), image)
    standing = np.ascontiguousarray(image.transpose(1, 0, 2))
    zoomed = augment_with(standing, Augmentation(zoom=0.5), zoom_y=-1.0)
    assert np.array_equal(zoomed, rows_of(75, 125, 175, 160).transpose(1, 0, 2))


def test_order_of_rotation_zoom_and_flip():
    # The map is rotation . shear . zoom . flip from output to input: the image is turned, zoomed, then mirrored.
    turned_back = np.rot90(rows_of(0, 100, 200, 40), 1)
    augmentation = Augmentation(rotation_deg=90, zoom=0.5, horizontal_flip=True)
    assert_one_off(augment_with(turned_back, augmentation, angle=1.0, zoom_x=-1.0), rows_of(75, 125, 175, 160))
    mirrored = augment_with(turned_back, augmentation, angle=1.0, zoom_x=-1.0, flip=True)
    assert_one_off(mirrored, rows_of(160, 175, 125, 75))


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (1.0, (20, 30, 40, 40)),  # a quarter of 4 px: every pixel shows its right neighbour, the last the edge
        (-1.0, (10, 10, 20, 30)),
        (0.5, (15, 25, 35, 40)),  # half a pixel: the mean of two
    ],
)
def test_shift_by_hand(draw, expected):
    image = rows_of(10, 20, 30, 40)
    assert np.array_equal(augment_with(image, Augmentation(shift=0.25), shift_x=draw), rows_of(*expected))
    standing = np.ascontiguousarray(image.transpose(1, 0, 2))
    shifted = augment_with(standing, Augmentation(shift=0.25), shift_y=draw)
    assert np.array_equal(shifted, rows_of(*expected).transpose(1, 0, 2))


@pytest.mark.parametrize(
    ("draws", "expected"),
    [
        ({"brightness": 1.0}, (0, 150, 255)),  # times 1.5; 300 is cut off
        ({"brightness": -1.0}, (0, 50, 100)),
        ({"brightness": 0.012}, (0, 101, 201)),  # times 1.006: 100.6 and 201.2, rounded
        ({"contrast": 1.0}, (0, 100, 250)),  # the mean is 100: 100 +- 1.5 * 100; -50 is cut off
        ({"contrast": -1.0}, (50, 100, 150)),
        ({"brightness": -1.0, "contrast": -1.0}, (25, 50, 75)),
    ],
)
def test_brightness_and_contrast_by_hand(draws, expected):
    image = rows_of(0, 100, 200)
    assert np.array_equal(augment_with(image, Augmentation(brightness=0.5, contrast=0.5), **draws), rows_of(*expected))


def test_no_black_corners():
    white = np.full((24, 16, 3), 255, dtype=np.uint8)
    extreme = Augmentation(rotation_deg=180, shear_deg=60, zoom=0.9, shift=0.9, horizontal_flip=True)
    for seed in range(50):
        assert (augmented(white, extreme, np.random.default_rng(seed)) == 255).all()


def test_augmentation_depends_on_seed_epoch_and_image_alone():
    def one(**changes) -> np.ndarray:
        rng = augmentation_rng(**({"seed": 1, "epoch": 2, "image_id": "a/1.png"} | changes))
        return augmented(noise(24, 24), STRONG, rng)

    assert np.array_equal(one(), one())
    for changes in ({"seed": 2}, {"epoch": 1}, {"image_id": "a/2.png"}):
        assert not np.array_equal(one(), one(**changes))


def test_the_same_numbers_are_drawn_whatever_the_ranges():
    states = []
    for augmentation in (Augmentation(), STRONG, dataclasses.replace(STRONG, zoom=0.0, horizontal_flip=False)):
        rng = augmentation_rng(seed=0, epoch=0, image_id="x")
        augmented(noise(), augmentation, rng)
        states.append(rng.random())
    assert states[0] == states[1] == states[2]
